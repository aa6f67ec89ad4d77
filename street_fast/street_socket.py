"""StreetSocket: typed events over a WebSocket, in order, one after the other.

A text message is an envelope (see `messages`); its ``type`` is the event. Each handler gets ``data``, decoded to the
type that it declares. What does not fit is answered with an ``error`` event and reaches no handler.

Order: a plain handler runs at once, inside the read. A coroutine handler makes the later events of its socket wait
in an inbox; when that is full (``Limits.inbox_messages``) the socket is not read any more, so that TCP slows the
sender down; until then pings are answered and a close is seen. A task exists only while something waits.

A handler that raises is logged, once, and that is all. A peer above its rate is told so and its events are dropped;
one that stays above it is closed with 4029. Malformed messages are answered; too many in a row close with 1008.

A library that speaks a protocol of its own over the socket sets `protocol`: it sees each event first, and what it
leaves goes to the handlers.

An idle socket is this object, its WebSocket and its Request; the rest comes with the first handler or message.
The WebSocket must be made with `socket_limits`, which makes it refuse an event above ``event_bytes`` (1009).
"""

from __future__ import annotations

import asyncio
import functools
import logging
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar, cast, overload

from street_fast._core import UNHANDLED, Frame, Intake, IntakeContext, Rate
from street_fast.errors import CloseCode, ConfigurationError, LimitExceeded
from street_fast.handler_types import declared_type, takes
from street_fast.messages import (
    UNSET,
    Envelope,
    ErrorCode,
    MalformedMessage,
    Message,
    decode,
    decode_data,
    decode_envelope,
    decoder_for,
    error_message,
    message_json,
)
from street_fast.metrics import Counters
from street_fast.rates import ABUSIVE_REASON, DROPPED_MESSAGE, Verdict

if TYPE_CHECKING:
    from street_fast._core import LoopContext, Unhandled, WebSocket
    from street_fast.limits import Limits
    from street_fast.request import Request

__all__ = ["STOPPING", "UNHANDLED", "Event", "EventProtocol", "SocketContext", "StreetSocket", "socket_limits"]

logger = logging.getLogger("street_fast")

Handler = Callable[..., object]
AnyHandler = TypeVar("AnyHandler", bound=Handler)

# An event's entry in the handler table: mostly one listener, and then no list. A listener is the handler itself,
# or (type, handler) if its data is decoded to a type.
_Listener = Handler | tuple[Any, Handler]
_Entry = _Listener | list[_Listener]

STOPPING = (KeyboardInterrupt, SystemExit, GeneratorExit)
"""What a handler may raise to end more than itself. Everything else is its failure, also what is no Exception: a
CancelledError that somebody else's future had, or what an extension written in Rust raises when it crashes."""

_INBOX_LARGEST_EVENTS = 4
"""So many of the largest events fill an inbox, however few they are."""

_OWN_EVENTS = frozenset({"*", "close"})
"""Names that a client cannot use to reach the handlers of the same name."""


class Event(NamedTuple):
    """What a ``"*"`` handler gets: any event of the client, whether or not it has a handler of its own."""

    type: str
    data: Any
    id: int | str | None
    channel: str | None


class EventProtocol(Protocol):
    """What speaks for the application; see `StreetSocket.protocol`."""

    def handle(self, envelope: Envelope, /) -> Coroutine[Any, Any, object] | Unhandled | None:
        """Deals with an event: at once (None), in a coroutine, for which later events wait, or not (UNHANDLED)."""


def socket_limits(limits: Limits) -> Limits:
    """The limits of the WebSocket under a StreetSocket: no message is larger than an event may be."""
    return replace(limits, message_bytes=limits.event_bytes)


class SocketContext(IntakeContext):
    """What the StreetSockets of one server share."""

    __slots__ = ("on_closed", "tasks")

    def __init__(
        self,
        loop_context: LoopContext,
        limits: Limits,
        counters: Counters | None = None,
        on_closed: Callable[[StreetSocket], object] | None = None,
        opening_messages: int = 0,
    ) -> None:
        counters = Counters() if counters is None else counters
        super().__init__(loop_context, limits, counters, decode_envelope, opening_messages)
        self.on_closed = on_closed
        self.tasks: set[asyncio.Task[None]] = set()

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs what a handler left to await. The task is held here until it is done."""
        task = self.loop_context.loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class StreetSocket(Intake):
    """One client of a `StreetWebSocketServer`, as its handler sees it.

    `request` is the opening request; `state` a dict for the application. Not to be used from other threads.
    `protocol` is for libraries: an `EventProtocol` that sees each event before the handlers of `on` do, or None.
    """

    __slots__ = ("__weakref__", "_close_callbacks", "_handlers", "_state", "request")

    _context: SocketContext
    protocol: EventProtocol | None

    def __init__(self, ws: WebSocket, request: Request, context: SocketContext) -> None:
        super().__init__(ws, context)
        self.request = request
        self._handlers: dict[str, _Entry] | None = None
        self._close_callbacks: tuple[Callable[[StreetSocket], object], ...] | None = ()  # None: the end has come
        self._state: dict[str, Any] | None = None

    # --- what it is ---

    @property
    def id(self) -> str:
        """Unique among the connections of this process, and not to be guessed."""
        return self._ws.id

    @property
    def closed(self) -> bool:
        """Whether the connection has ended, or is ending: nothing more is sent."""
        return self._ws.closed

    @property
    def subprotocol(self) -> str | None:
        """What was agreed on in the handshake; None if the client offered nothing that the server speaks."""
        return self._ws.subprotocol

    @property
    def state(self) -> dict[str, Any]:
        """A dict for the application, made when it is first asked for."""
        if self._state is None:
            self._state = {}
        return self._state

    @property
    def sink(self) -> WebSocket:
        """The WebSocket underneath, which is what a fan-out writes to."""
        return self._ws

    def __repr__(self) -> str:
        return f"<StreetSocket {self.id}{' closed' if self.closed else ''}>"

    # --- out ---

    def emit(
        self,
        type: str,  # noqa: A002
        data: object = UNSET,
        *,
        id: int | str | None = None,  # noqa: A002
    ) -> bool:
        """Sends ``{"type", "data"?, "id"?}``; False if the socket is closed.

        Never blocks; a peer that does not read is evicted (4008) when too much waits for it, see `drain`.
        Raises TypeError for data that JSON cannot hold.
        """
        return self._ws.send(Frame.text(message_json(type, data, id)))

    def deliver(self, message: Message, droppable: bool = False) -> None:
        """Sends a message that was built elsewhere; a `droppable` one is dropped if the peer reads too slowly."""
        self._ws.send(message._frame or message.frame, droppable=droppable)

    async def drain(self) -> None:
        """Waits until at most ``Limits.write_soft_bytes`` are unsent. Raises ConnectionClosed if it ends before."""
        await self._ws.drain()

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Starts the closing handshake; again, or on a closed socket, it does nothing.

        Raises ValueError for a code that may not be sent (RFC 6455 section 7.4).
        """
        self._ws.close(code, reason)

    # --- handlers ---

    @overload
    def on(self, event: str, handler: AnyHandler, *, type: Any = None) -> AnyHandler: ...
    @overload
    def on(self, event: str, *, type: Any = None) -> Callable[[AnyHandler], AnyHandler]: ...
    def on(self, event: str, handler: AnyHandler | None = None, *, type: Any = None) -> Any:  # noqa: A002
        """Calls ``handler(data)`` for each `event` of the client; also a decorator. Handlers run in order.

        The handler may be a plain function or a coroutine function. `data` is decoded to `type`, or else to what
        the handler's first parameter is annotated with (a msgspec Struct, dataclass, TypedDict, builtin type; or
        `msgspec.Raw`, which decodes nothing); without either it is what the JSON says, None if there is no data.

        Two events are the socket's own:
            ``"*"``: ``handler(event)`` with an `Event`, for every event of the client, after the event's own handlers.
            ``"close"``: ``handler(code, reason)``, once, when the connection has ended; 1006 if it was lost.

        Raises:
            ConfigurationError: msgspec cannot decode to the type, or the handler does not take these arguments.
            LimitExceeded: the event has ``Limits.listeners_per_event`` handlers already.
        """
        if not isinstance(event, str):
            hint = "; a decorator has it in parentheses: @socket.on('event')" if callable(event) else ""
            raise ConfigurationError(f"on({event!r}): must be a str, the name of the event{hint}")
        if handler is None:
            return functools.partial(self.on, event, type=type)
        if not callable(handler):
            raise ConfigurationError(f"on({event!r}, {handler!r}): the handler must be callable")
        if not takes(handler, 2 if event == "close" else 1):
            what = {"close": "two arguments, code and reason", "*": "one argument, an Event"}
            raise ConfigurationError(
                f"on({event!r}, {handler!r}): the handler must take {what.get(event, 'one argument, the data')}"
            )
        kind = type
        if event == "close":
            kind = None
        elif kind is None and event != "*":
            kind = declared_type(handler)
        listener: _Listener = handler
        if kind is not None and kind is not Any:
            decoder_for(kind)  # now, rather than at the first event
            listener = (kind, handler)
        if self._close_callbacks is None:
            return handler  # nothing will happen any more
        handlers = self._handlers
        if handlers is None:
            handlers = self._handlers = {}
        listeners = _listeners(handlers.get(event))
        limit = self._context.limits.listeners_per_event
        if len(listeners) >= limit:
            raise LimitExceeded(
                f"on({event!r}): the event has {len(listeners)} handlers already, and "
                f"Limits.listeners_per_event={limit} allows no more; is one added for each message?"
            )
        handlers[event] = [*listeners, listener] if listeners else listener
        return handler

    def off(self, event: str, handler: Handler | None = None) -> None:
        """Takes back `on`: that handler, or all handlers of the event. What is not there is not missed."""
        handlers = self._handlers
        if handlers is None or event not in handlers:
            return
        listeners = [] if handler is None else _listeners(handlers[event])
        kept = [one for one in listeners if (one[1] if isinstance(one, tuple) else one) != handler]
        if kept:
            handlers[event] = kept
        else:
            del handlers[event]

    def add_close_callback(self, callback: Callable[[StreetSocket], object]) -> None:
        """Calls ``callback(self)`` once when the connection has ended, before the ``"close"`` handlers; now if it has.

        For parts of the library and applications that keep sockets in a registry; a hub binds itself with it.
        """
        if self._close_callbacks is None:
            self._call_at_close(callback, self)
        else:
            self._close_callbacks += (callback,)

    # --- for libraries and the server ---

    def note_abuse(self) -> None:
        """An event of the peer was refused for a rate that is not its own: that of a channel, say.

        Counts as an event above its own rate does: after ``Limits.rate_grace_s`` of it the socket is closed with 4029.
        Says nothing to the peer, who may well be waiting for an answer with the id of its event.
        """
        context = self._context
        if self._rate is None:
            self._rate = Rate(context.rates)
        context.counters.events_rate_limited += 1
        if self._rate.refuse(context.rates, context.loop_context.time()) is Verdict.ABUSIVE:
            self.close(CloseCode.RATE_LIMITED, ABUSIVE_REASON)

    def serve(self, handler: Callable[[StreetSocket, Request], object]) -> None:
        """Runs the connection handler; a coroutine becomes a task, which is cancelled when the socket closes.

        A connection that could not be set up is of no use to anybody: if the handler raises, it is closed with 1011.
        """
        try:
            result = handler(self, self.request)
        except STOPPING:
            raise
        except BaseException as error:
            self._connection_failed(error)
            return
        if result is not None and asyncio.iscoroutine(result):
            self._main = self._context.spawn(self._await_connection(result))

    async def _await_connection(self, coroutine: Coroutine[Any, Any, object]) -> None:
        try:
            await coroutine
        except asyncio.CancelledError as error:
            if self._close_callbacks is None or _is_cancelling():
                raise
            self._connection_failed(error)
        except STOPPING:
            raise
        except BaseException as error:
            self._connection_failed(error)

    def _connection_failed(self, error: BaseException) -> None:
        self._context.counters.handler_errors += 1
        logger.error("connection %s: the connection handler failed, closing it", self.id, exc_info=error)
        self.close(CloseCode.INTERNAL_ERROR, "internal error")

    # --- in ---

    def _wait_in_line(self, text: bytes) -> None:
        inbox = self._inbox
        if inbox is None:
            inbox = self._inbox = deque()
        inbox.append(text)
        limits = self._context.limits
        if not self._full and (
            len(inbox) >= limits.inbox_messages or sum(map(len, inbox)) >= _INBOX_LARGEST_EVENTS * limits.event_bytes
        ):
            self._full = True
            self._ws.pause_reading()

    def _work_on(self, left: Coroutine[Any, Any, None]) -> None:
        self._worker = self._context.spawn(self._work(left))

    async def _work(self, left: Coroutine[Any, Any, None]) -> None:
        """Awaits what a handler left to do, then goes through the inbox."""
        try:
            await left
            while self._inbox and not self._ws.closed:
                text = self._inbox.popleft()
                if self._full and not self._inbox:
                    self._full = False
                    self._ws.resume_reading()
                more = self._handle(text)
                if more is not None:
                    await more
        except asyncio.CancelledError:
            if self._close_callbacks is not None:
                # Somebody else's wish; the events that wait cannot be handled any more.
                self.close(CloseCode.INTERNAL_ERROR, "internal error")
            raise
        finally:
            self._worker = self._inbox = None

    def _dispatch(self, envelope: Envelope) -> Coroutine[Any, Any, None] | None:
        """Calls the handlers of one event; returns what is left to await, if one of them is a coroutine."""
        handlers = self._handlers
        if handlers is None:
            return None
        event = envelope.type
        entry = None if event in _OWN_EVENTS else handlers.get(event)
        every = handlers.get("*")
        if every is None and not isinstance(entry, list):
            return None if entry is None else self._call(envelope, entry)
        calls = iter([(listener, False) for listener in _listeners(entry)] + [(one, True) for one in _listeners(every)])
        for listener, whole in calls:
            left = self._call(envelope, listener, whole)
            if left is not None:
                return self._call_rest(envelope, left, calls)
        return None

    async def _call_rest(
        self, envelope: Envelope, left: Coroutine[Any, Any, None], calls: Iterator[tuple[_Listener, bool]]
    ) -> None:
        await left
        for listener, whole in calls:
            more = self._call(envelope, listener, whole)
            if more is not None:
                await more

    def _call(self, envelope: Envelope, listener: _Listener, whole: bool = False) -> Coroutine[Any, Any, None] | None:
        """Calls one handler with the data, or with the `whole` event."""
        kind, handler = listener if isinstance(listener, tuple) else (Any, listener)
        try:
            data = decode_data(envelope.raw_data, kind)
        except MalformedMessage as error:
            self._context.counters.events_malformed += 1
            self._emit_error("bad_request", str(error), envelope.id)
            return None
        try:
            result = handler(Event(envelope.type, data, envelope.id, envelope.channel) if whole else data)
        except STOPPING:
            raise
        except BaseException as error:
            self._handler_failed(envelope.type, error)
            return None
        if result is None or not asyncio.iscoroutine(result):  # the first costs less, and is nearly always the answer
            return None
        return self._await(envelope.type, result)

    async def _await(self, event: str, coroutine: Coroutine[Any, Any, object]) -> None:
        try:
            await coroutine
        except asyncio.CancelledError as error:
            if self._close_callbacks is None or _is_cancelling():
                raise
            self._handler_failed(event, error)
        except STOPPING:
            raise
        except BaseException as error:
            self._handler_failed(event, error)

    def _handler_failed(self, event: str, error: BaseException) -> None:
        if isinstance(error, STOPPING):
            raise error
        self._context.counters.handler_errors += 1
        logger.error("connection %s: a handler of event %.100r failed", self.id, event, exc_info=error)

    # --- what the peer does wrong ---

    def _emit_error(self, code: ErrorCode, message: str, event_id: int | str | None = None) -> None:
        self._ws.send(error_message(code, message, id=event_id).frame)

    def _decode(self, text: bytes) -> Envelope | None:
        try:
            return decode(text, self._context.limits.json_depth)
        except MalformedMessage as error:
            self._malformed(str(error))
            return None

    def _malformed(self, why: str) -> None:
        context = self._context
        context.counters.events_malformed += 1
        self._malformed_in_a_row += 1
        self._emit_error("bad_request", why)
        if self._malformed_in_a_row >= context.limits.malformed_messages:
            self.close(CloseCode.POLICY_VIOLATION, f"{self._malformed_in_a_row} malformed messages in a row")

    def _above_rate(self, verdict: Verdict) -> None:
        self._context.counters.events_rate_limited += 1
        if verdict is Verdict.TELL:
            self._emit_error("rate_limited", DROPPED_MESSAGE)
        elif verdict is Verdict.ABUSIVE:
            self.close(CloseCode.RATE_LIMITED, ABUSIVE_REASON)

    # --- the end ---

    def _on_close(self, code: int, reason: str) -> None:
        handlers, callbacks = self._handlers, self._close_callbacks
        if callbacks is None:
            return
        self._handlers = self._close_callbacks = None
        context = self._context
        if context.on_closed is not None:
            context.on_closed(self)
        for task in (self._worker, self._main):
            if task is not None:
                # Not at once: a coroutine whose event came together with the close shall at least begin.
                context.loop_context.loop.call_soon(task.cancel)
        self._main = None
        for callback in callbacks:
            self._call_at_close(callback, self)
        for listener in _listeners(handlers.get("close") if handlers else None):
            self._call_at_close(cast("Handler", listener), code, reason)
        self.protocol = None  # it knows the socket, most likely

    def _call_at_close(self, callback: Handler, *arguments: object) -> None:
        try:
            result = callback(*arguments)
        except STOPPING:
            raise
        except BaseException as error:
            self._handler_failed("close", error)
            return
        if result is not None and asyncio.iscoroutine(result):
            self._context.spawn(self._await("close", result))


def _listeners(entry: _Entry | None) -> list[_Listener]:
    if entry is None:
        return []
    return entry if isinstance(entry, list) else [entry]


def _is_cancelling() -> bool:
    """Whether the running task was asked to end; a CancelledError can also come out of what it awaits."""
    if sys.version_info < (3, 11):
        return True
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

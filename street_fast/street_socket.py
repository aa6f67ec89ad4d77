"""StreetSocket: typed events over a WebSocket, in order, one after the other.

A text message is an envelope (see `messages`); its ``type`` is the event. Each handler gets ``data``, decoded to the
type that it declares. What does not fit is answered with an ``error`` event and reaches no handler.

Order: a plain handler runs at once, inside the read. A coroutine handler makes the later events of its socket wait
in an inbox; when that is full (``Limits.inbox_messages``) the socket is not read any more, so that TCP slows the
sender down; until then pings are answered and a close is seen. A task exists only while something waits.

A handler that raises is logged, once, and that is all. A peer above its rate is told so and its events are dropped;
one that stays above it is closed with 4029. Malformed messages are answered; too many in a row close with 1008.

An idle socket is this object, its WebSocket, its Request and one dict; everything else comes with the first message.
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
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast, overload

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
    decoder_for,
    error_message,
)
from street_fast.metrics import Counters

if TYPE_CHECKING:
    from street_fast._core import LoopContext, WebSocket
    from street_fast.limits import Limits
    from street_fast.request import Request

__all__ = ["STOPPING", "Event", "SocketContext", "StreetSocket", "socket_limits"]

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

_OWN_EVENTS = frozenset({"*", "close"})
"""Names that a client cannot use to reach the handlers of the same name."""


class Event(NamedTuple):
    """What a ``"*"`` handler gets: any event of the client, whether or not it has a handler of its own."""

    type: str
    data: Any
    id: int | str | None
    channel: str | None


def socket_limits(limits: Limits) -> Limits:
    """The limits of the WebSocket under a StreetSocket: no message is larger than an event may be."""
    return replace(limits, message_bytes=limits.event_bytes)


class SocketContext:
    """What the StreetSockets of one server share."""

    __slots__ = (
        "bytes_cost_s",
        "bytes_span_s",
        "counters",
        "limits",
        "loop_context",
        "message_cost_s",
        "message_span_s",
        "on_closed",
        "tasks",
    )

    def __init__(
        self,
        loop_context: LoopContext,
        limits: Limits,
        counters: Counters | None = None,
        on_closed: Callable[[StreetSocket], object] | None = None,
    ) -> None:
        self.loop_context = loop_context
        self.limits = limits
        self.counters = Counters() if counters is None else counters
        self.on_closed = on_closed
        self.tasks: set[asyncio.Task[None]] = set()
        # A bucket is kept as the time at which it will be full again: an event of n tokens moves it n * cost ahead,
        # and is refused if that is further ahead of now than the span, which is the whole bucket.
        rate, bytes_rate = limits.messages_per_second, limits.bytes_per_second
        self.message_cost_s = 1 / rate if rate else 0.0
        self.message_span_s = limits.messages_burst / rate + _ROUNDING_S if rate else float("inf")
        self.bytes_cost_s = 1 / bytes_rate if bytes_rate else 0.0
        # One second's worth, and at least one event of any size that is allowed.
        self.bytes_span_s = max(1.0, limits.event_bytes / bytes_rate) + _ROUNDING_S if bytes_rate else float("inf")

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Runs what a handler left to await. The task is held here until it is done."""
        task = self.loop_context.loop.create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task


class _Traffic:
    """What a socket needs once it has received a message: its rate, its inbox, its tasks."""

    __slots__ = (
        "abused_since",
        "bytes_full_at",
        "full",
        "inbox",
        "main",
        "malformed",
        "messages_full_at",
        "told_at",
        "worker",
    )

    def __init__(self) -> None:
        self.messages_full_at = 0.0
        self.bytes_full_at = 0.0
        self.abused_since: float | None = None
        self.told_at = 0.0
        self.malformed = 0
        self.inbox: deque[bytes] | None = None
        self.full = False
        self.worker: asyncio.Task[None] | None = None
        self.main: asyncio.Task[None] | None = None


class StreetSocket:
    """One client of a `StreetWebSocketServer`, as its handler sees it.

    `request` is the opening request; `state` a dict for the application. Not to be used from other threads.
    """

    __slots__ = (
        "__weakref__",
        "_close_callbacks",
        "_context",
        "_handlers",
        "_state",
        "_traffic",
        "_ws",
        "request",
    )

    def __init__(self, ws: WebSocket, request: Request, context: SocketContext) -> None:
        self._ws = ws
        self.request = request
        self._context = context
        self._handlers: dict[str, _Entry] | None = {}  # None: the connection has ended
        self._close_callbacks: tuple[Callable[[StreetSocket], object], ...] = ()
        self._state: dict[str, Any] | None = None
        self._traffic: _Traffic | None = None
        ws.text_as_bytes = True
        ws.on_message = self._on_message
        ws.on_close = self._on_close

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
        return self._ws.send(Message(type, None, data, None, id).frame)

    def deliver(self, message: Message, droppable: bool = False) -> None:
        """Sends a message that was built elsewhere; a `droppable` one is dropped if the peer reads too slowly."""
        self._ws.send(message.frame, droppable=droppable)

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
        handlers = self._handlers
        if handlers is None:
            return handler  # nothing will happen any more
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
        if self._handlers is None:
            self._call_at_close(callback, self)
        else:
            self._close_callbacks += (callback,)

    # --- for the server ---

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
            traffic = self._traffic
            if traffic is None:
                traffic = self._traffic = _Traffic()
            traffic.main = self._context.spawn(self._await_connection(result))

    async def _await_connection(self, coroutine: Coroutine[Any, Any, object]) -> None:
        try:
            await coroutine
        except asyncio.CancelledError as error:
            if self._handlers is None or _is_cancelling():
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

    def _on_message(self, data: bytes | bytearray) -> None:
        """A whole message: bytes if it was text, a bytearray if it was binary."""
        traffic = self._traffic
        if traffic is None:
            traffic = self._traffic = _Traffic()
        context = self._context
        context.counters.events_received += 1
        if not self._within_rate(traffic, len(data)):
            return
        if isinstance(data, bytearray):
            self._malformed(traffic, "an event is a text message, not a binary one")
            return
        if traffic.worker is None:
            left = self._handle(traffic, data)
            if left is not None:
                traffic.worker = context.spawn(self._work(traffic, left))
            return
        inbox = traffic.inbox
        if inbox is None:
            inbox = traffic.inbox = deque()
        inbox.append(data)
        if len(inbox) >= context.limits.inbox_messages and not traffic.full:
            traffic.full = True
            self._ws.pause_reading()

    async def _work(self, traffic: _Traffic, left: Coroutine[Any, Any, None]) -> None:
        """Awaits what a handler left to do, then goes through the inbox."""
        try:
            await left
            while traffic.inbox and not self._ws.closed:
                text = traffic.inbox.popleft()
                if traffic.full and not traffic.inbox:
                    traffic.full = False
                    self._ws.resume_reading()
                more = self._handle(traffic, text)
                if more is not None:
                    await more
        except asyncio.CancelledError:
            if self._handlers is not None:  # somebody else's wish; the events that wait cannot be handled any more
                self.close(CloseCode.INTERNAL_ERROR, "internal error")
            raise
        finally:
            traffic.worker = None
            traffic.inbox = None

    def _handle(self, traffic: _Traffic, text: bytes) -> Coroutine[Any, Any, None] | None:
        """Calls the handlers of one event; returns what is left to await, if a handler is a coroutine."""
        try:
            envelope = decode(text, self._context.limits.json_depth)
        except MalformedMessage as error:
            self._malformed(traffic, str(error))
            return None
        traffic.malformed = 0
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
            if self._handlers is None or _is_cancelling():
                raise
            self._handler_failed(event, error)
        except STOPPING:
            raise
        except BaseException as error:
            self._handler_failed(event, error)

    def _handler_failed(self, event: str, error: BaseException) -> None:
        self._context.counters.handler_errors += 1
        logger.error("connection %s: a handler of event %.100r failed", self.id, event, exc_info=error)

    # --- what the peer does wrong ---

    def _emit_error(self, code: ErrorCode, message: str, event_id: int | str | None = None) -> None:
        self._ws.send(error_message(code, message, id=event_id).frame)

    def _malformed(self, traffic: _Traffic, why: str) -> None:
        context = self._context
        context.counters.events_malformed += 1
        traffic.malformed += 1
        self._emit_error("bad_request", why)
        if traffic.malformed >= context.limits.malformed_messages:
            self.close(CloseCode.POLICY_VIOLATION, f"{traffic.malformed} malformed messages in a row")

    def _within_rate(self, traffic: _Traffic, size: int) -> bool:
        """Takes an event of `size` bytes from both buckets; or, if one has not enough, deals with the abuse."""
        context = self._context
        now = context.loop_context.time()
        messages_full_at = max(traffic.messages_full_at, now)
        bytes_full_at = max(traffic.bytes_full_at, now)
        if traffic.abused_since is not None and messages_full_at == bytes_full_at == now:
            traffic.abused_since = None  # it has been quiet for long enough to fill both buckets
        messages_full_at += context.message_cost_s
        bytes_full_at += context.bytes_cost_s * size
        if messages_full_at - now <= context.message_span_s and bytes_full_at - now <= context.bytes_span_s:
            traffic.messages_full_at = messages_full_at
            traffic.bytes_full_at = bytes_full_at
            return True
        context.counters.events_rate_limited += 1
        if traffic.abused_since is None:
            traffic.abused_since = now
        elif now - traffic.abused_since >= context.limits.rate_grace_s:
            self.close(CloseCode.RATE_LIMITED, "too many messages for too long")
            return False
        elif now - traffic.told_at < _TELL_AGAIN_S:
            return False
        traffic.told_at = now
        self._emit_error("rate_limited", "too many messages, or too many bytes, per second; this one was dropped")
        return False

    # --- the end ---

    def _on_close(self, code: int, reason: str) -> None:
        handlers = self._handlers
        if handlers is None:
            return
        self._handlers = None
        self._ws.on_message = None
        self._ws.on_close = None
        context, traffic = self._context, self._traffic
        if context.on_closed is not None:
            context.on_closed(self)
        if traffic is not None:
            self._traffic = None
            for task in (traffic.worker, traffic.main):
                if task is not None:
                    # Not at once: a coroutine whose event came together with the close shall at least begin.
                    context.loop_context.loop.call_soon(task.cancel)
        callbacks, self._close_callbacks = self._close_callbacks, ()
        for callback in callbacks:
            self._call_at_close(callback, self)
        for listener in _listeners(handlers.get("close")):
            self._call_at_close(cast("Handler", listener), code, reason)

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


_ROUNDING_S = 1e-6

_TELL_AGAIN_S = 1.0
"""A peer above its rate is told so once, and then once in this time."""


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

"""`connect` and what it returns: the client of a Realtime, for asyncio and uvloop.

::

    async with connect("wss://example.com/realtime", token=get_token) as rt:
        await rt.publish("chat", {"text": "hello"})
        async for message in rt.subscribe("chat", type=ChatMessage):
            print(message.from_member, message.data.text)

It connects again by itself, subscribes again, and goes on where it was: each message comes once and in order, or the
gap is told. What it does on the wire is in `protocol`, how it connects in `link`.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
import ssl as tls
from collections import deque
from typing import TYPE_CHECKING, Any, Final, TypeVar, overload

import msgspec

from street_fast.auth import Member
from street_fast.backplanes import Position
from street_fast.client.feed import Feed
from street_fast.client.handshake import Target, checked_headers
from street_fast.client.link import Link
from street_fast.client.messages import (
    HistoryPage,
    Incoming,
    PageData,
    Presence,
    PresenceData,
    Published,
    RealtimeError,
)
from street_fast.client.subscription import Reader, Subscription, received_of
from street_fast.errors import ConfigurationError, StreetError
from street_fast.limits import MOST_SECONDS, Limits, checked_limits
from street_fast.messages import UNSET, MalformedMessage, decoder_for, encode

if TYPE_CHECKING:
    import builtins
    from collections.abc import Awaitable, Callable, Generator, Mapping
    from types import TracebackType

    from street_fast.client.feed import TokenSource
    from street_fast.client.messages import Gap, Received
    from street_fast.client.protocol import State

__all__ = ["RealtimeClient", "connect"]

logger = logging.getLogger("street_fast")

T = TypeVar("T")
AnyHandler = TypeVar("AnyHandler", bound="Callable[..., object]")

_LIMITS: Final = Limits(message_bytes=4_194_304)
"""A page of history is one message."""
_UNREAD_EVENTS: Final = 1_000


def connect(
    url: str,
    *,
    token: str | Callable[[], str | Awaitable[str]] | None = None,
    headers: Mapping[str, str] | None = None,
    ssl: tls.SSLContext | None = None,
    uds: str | None = None,
    open_timeout_s: float = 10.0,
    request_timeout_s: float = 10.0,
    queue_size: int = 100,
    backoff_s: tuple[float, float] = (0.5, 30.0),
    reconnect: bool = True,
    limits: Limits | None = None,
) -> RealtimeClient:
    """A client of the Realtime at `url`: ``async with connect(url) as rt``, or ``rt = await connect(url)``.

    Either waits until the server has let us in. That raises CannotConnect if there is no way to it or no answer,
    HandshakeRefused if it refuses (with its HTTP status), RealtimeError ``unauthorized`` if it does not take the token.
    Afterwards the client connects again by itself, until it is closed or the server says not to come back.

    Args:
        url: ws:// or wss://; http:// and https:// mean the same.
        token: what to log in with; or a function, plain or coroutine, that returns one. The function is called before
            each connection, before its token expires, and once more if the server refuses one.
        headers: more headers for the handshake, such as Cookie or Authorization.
        ssl: for wss://, instead of ``ssl.create_default_context()``.
        uds: the path of a Unix socket, instead of the host and port of the URL.
        open_timeout_s: the longest that one attempt to connect may take, from the address lookup to the login; and the
            longest that the token function may.
        request_timeout_s: the longest that publish, history, presence and a first subscribe wait, also for a
            connection.
        queue_size: requests that wait to be sent, for a connection or for their turn; more are a ``limit_exceeded``.
        backoff_s: the first and the longest delay between attempts; each is a random part of twice the one before.
            Where the server says how long to wait, that counts.
        reconnect: False: the client is closed when its connection is lost.
        limits: of the WebSocket, such as `message_bytes` (4 MiB here) and `close_timeout_s`.

    Raises ConfigurationError for a bad option.
    """
    return RealtimeClient(
        Target.parse(url),
        token=_checked_token("token", token),
        headers=checked_headers(headers),
        ssl=ssl,
        uds=uds,
        open_timeout_s=_checked_seconds("open_timeout_s", open_timeout_s),
        request_timeout_s=_checked_seconds("request_timeout_s", request_timeout_s),
        queue_size=_checked_count("queue_size", queue_size),
        backoff_s=_checked_backoff(backoff_s),
        reconnect=reconnect,
        limits=_LIMITS if limits is None else checked_limits(limits),
    )


class RealtimeClient:
    """What `connect` returns. It belongs to the event loop that it was opened in."""

    def __init__(self, target: Target, *, ssl: tls.SSLContext | None, uds: str | None, **options: Any) -> None:
        if ssl is not None and (not isinstance(ssl, tls.SSLContext) or not target.secure):
            raise ConfigurationError(f"ssl={ssl!r}: must be an SSLContext, and goes with a wss:// URL")
        if uds is not None and (not isinstance(uds, str) or not uds):
            raise ConfigurationError(f"uds={uds!r}: must be the path of a Unix socket")
        self._target = target
        self._ssl = ssl
        self._uds = uds
        self._options = options
        self._request_timeout_s: float = options["request_timeout_s"]
        self._link: Link | None = None
        self._handlers: dict[str, list[tuple[Callable[..., object], Any]]] = {}
        self._events: deque[Incoming] = deque()
        self._events_task: asyncio.Task[None] | None = None
        self._event_came: asyncio.Future[None] | None = None

    # --- opening and closing ---

    async def __aenter__(self) -> RealtimeClient:  # noqa: PYI034 - Self is of Python 3.11
        if self._link is not None:
            raise RuntimeError("this client was opened already; connect() makes a new one")
        ssl = self._ssl
        if ssl is None and self._target.secure:
            ssl = tls.create_default_context()
        self._link = Link(
            self._target, ssl=ssl, uds=self._uds, on_event=self._event, on_state=self._state_changed, **self._options
        )
        self._start_events()
        await self._link.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, RealtimeClient]:
        return self.__aenter__().__await__()

    async def close(self) -> None:
        """Close the connection and end everything: iterations end, requests and later calls raise ConnectionClosed.

        Waits for the server's answer, at most ``Limits.close_timeout_s``. Any number of times.
        """
        if self._link is not None:
            await self._link.close()

    def _open_link(self) -> Link:
        link = self._link
        if link is None:
            raise RuntimeError("the client is not open: use `async with connect(...) as rt`, or `await connect(...)`")
        if link.error is not None:
            raise link.error.with_traceback(None)
        return link

    # --- what is known ---

    @property
    def state(self) -> State:
        """``connecting`` until the server has let us in, then ``open``, ``reconnecting``, and at last ``closed``."""
        return "connecting" if self._link is None else self._link.protocol.state

    @property
    def member(self) -> Member | None:
        """Who we are for the server; None before it has said so."""
        member = None if self._link is None else self._link.protocol.member
        return None if member is None else Member(member.id, info=member.info)

    @property
    def latency_ms(self) -> float | None:
        """How long the last ping and its answer took; one is sent with each heartbeat of the server."""
        latency_s = None if self._link is None else self._link.protocol.latency_s
        return None if latency_s is None else 1000 * latency_s

    # --- channels ---

    @overload
    def subscribe(
        self,
        channel: str,
        handler: Callable[[Received[T]], object] | None = None,
        *,
        type: builtins.type[T],
        since: str | None = None,
        token: str | Callable[[], str | Awaitable[str]] | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        queue_size: int = 1_000,
    ) -> Subscription[T]: ...

    @overload
    def subscribe(
        self,
        channel: str,
        handler: Callable[[Received[Any]], object] | None = None,
        *,
        type: Any = Any,
        since: str | None = None,
        token: str | Callable[[], str | Awaitable[str]] | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        queue_size: int = 1_000,
    ) -> Subscription[Any]: ...

    def subscribe(
        self,
        channel: str,
        handler: Callable[[Received[Any]], object] | None = None,
        *,
        type: Any = Any,  # noqa: A002
        since: str | None = None,
        token: str | Callable[[], str | Awaitable[str]] | None = None,
        on_gap: Callable[[Gap], object] | None = None,
        queue_size: int = 1_000,
    ) -> Subscription[Any]:
        """Subscribe to a channel: read the messages with ``async for``, or give a `handler`, plain or coroutine.

        The wish stands from the call on, across reconnects; see `Subscription` for how to wait for it and how it ends.
        A handler is called with one message at a time, in a task of its own. One that raises is logged.

        Args:
            type: what the data is decoded to: a msgspec Struct, a dataclass, a builtin. A message that does not fit is
                left out, logged and counted (`Subscription.misfits`).
            since: a position, such as `Subscription.position` of an earlier run: begin behind it.
            token: a token for this channel, where the server wants that; or a function that returns one, called for
                each connection, and when the token has come to its end.
            on_gap: called where messages are missing, before the next one, with a `Gap`; plain or coroutine. Without
                it, a gap is logged. Show something that depends on every message anew then.
            queue_size: messages that may be unread. With more, the client stops reading from the server, which slows it
                down and in the end makes it close the connection; then what was missed comes from the history.

        Raises ConnectionClosed if the client is closed, ConfigurationError for a bad option.
        """
        link = self._open_link()
        _check_channel(channel)
        decoder_for(type)
        if handler is not None and not callable(handler):
            raise ConfigurationError(f"handler={handler!r}: must be a function")
        if on_gap is not None and not callable(on_gap):
            raise ConfigurationError(f"on_gap={on_gap!r}: must be a function")
        feed = Feed(
            channel,
            since=_checked_since(since),
            size=_checked_count("queue_size", queue_size),
            token=_checked_token("token", token),
        )
        reader = Reader(link, feed, type, on_gap)
        link.protocol.subscriptions.attach(feed)
        link.update_reading()
        if handler is not None:
            link.run(reader.hand_to(handler))
        return Subscription(link, reader, of_handler=handler is not None, timeout_s=self._request_timeout_s)

    async def publish(self, channel: str, data: object, *, key: str | None = None) -> Published:
        """Publish to a channel, and wait until the server has taken it (and stored it, if the channel keeps history).

        It is sent again after a reconnect, and arrives once: each has a random `key`, by which the server knows it.
        Give one of your own (at most 64 bytes) if you want to try again after an error.

        Raises RealtimeError: ``forbidden``, ``rate_limited``, ``limit_exceeded``, ``bad_request``, ``unavailable`` (not
        published), ``unknown`` (no answer came in time: perhaps published, perhaps not). Raises TypeError for data that
        cannot be written as JSON, ConnectionClosed if the client is closed.
        """
        _check_channel(channel)
        if key is not None and (not isinstance(key, str) or not key):
            raise ConfigurationError(f"key={key!r}: must be a string that is not empty")
        key = secrets.token_urlsafe(12) if key is None else key
        return await self._request("publish", Published, {"channel": channel, "data": data, "key": key})

    async def presence(self, channel: str) -> Presence:
        """Who is subscribed to a channel. Raises RealtimeError and ConnectionClosed as `publish` does."""
        _check_channel(channel)
        data = await self._request("presence", PresenceData, {"channel": channel})
        return Presence(data.member_count if data.members is None else len(data.members), data.members)

    @overload
    async def history(
        self,
        channel: str,
        *,
        limit: int = 50,
        since: str | None = None,
        type: builtins.type[T],
    ) -> HistoryPage[T]: ...

    @overload
    async def history(
        self,
        channel: str,
        *,
        limit: int = 50,
        since: str | None = None,
        type: Any = Any,
    ) -> HistoryPage[Any]: ...

    async def history(
        self,
        channel: str,
        *,
        limit: int = 50,
        since: str | None = None,
        type: Any = Any,  # noqa: A002
    ) -> HistoryPage[Any]:
        """The newest `limit` messages of a channel, oldest first; with `since` (a position) the oldest after that.

        Messages whose data is not of the type are left out and logged. Raises as `publish` does; a channel that keeps
        no history is a ``bad_request``.
        """
        _check_channel(channel)
        decoder_for(type)
        wish: dict[str, object] = {"limit": _checked_count("limit", limit)}
        if since is not None:
            wish["since"] = str(_checked_since(since))
        page = await self._request("history", PageData, {"channel": channel, "data": wish})
        messages = [_received_or_none(message, type) for message in page.messages]
        return HistoryPage(tuple(message for message in messages if message is not None), page.position, page.recovered)

    def typing(self, channel: str, typing: bool) -> bool:
        """Tell the channel that we are typing, or not any more. The server forgets it after five seconds.

        Never waits. False if it was not sent, because there is no connection.
        """
        _check_channel(channel)
        return self._tell("typing", {"channel": channel, "data": {"typing": bool(typing)}})

    def emit(self, event: str, data: object = UNSET, *, channel: str | None = None) -> bool:
        """Send an event of the application's own to its handlers on the server. At most once, without an answer.

        Never waits. False if it was not sent, because there is no connection, or too much waits already.
        """
        if not isinstance(event, str) or not event or event in _OF_THE_PROTOCOL:
            raise ConfigurationError(f"event={event!r}: must be a name that is none of the protocol's own")
        return self._tell(event, {"data": data, "channel": UNSET if channel is None else channel})

    def _tell(self, type: str, fields: dict[str, object]) -> bool:  # noqa: A002
        return self._open_link().protocol.requests.tell(type, fields)

    async def _request(self, type: str, kind: builtins.type[T], fields: dict[str, object]) -> T:  # noqa: A002
        link = self._open_link()
        future: asyncio.Future[msgspec.Raw] = link.loop.create_future()

        def done(data: msgspec.Raw | None, error: Exception | None) -> None:
            if future.done():
                return
            if data is not None:
                future.set_result(data)
            else:
                future.set_exception(error or RealtimeError("unknown", "the server gave no reason"))

        request = link.protocol.requests.ask(type, fields, done)
        link.update_reading()
        try:
            data = await future
        except asyncio.CancelledError:
            link.protocol.requests.cancel(request)
            link.update_reading()
            raise
        except StreetError as error:
            raise error.with_traceback(None)  # noqa: B904 - it is the same one
        try:
            return msgspec.json.decode(data, type=kind)
        except msgspec.DecodeError as error:
            raise RealtimeError("unknown", f"the answer to {type!r} cannot be read: {error}") from None

    # --- events ---

    @overload
    def on(self, event: str, handler: AnyHandler, *, type: Any = Any) -> AnyHandler: ...

    @overload
    def on(self, event: str, *, type: Any = Any) -> Callable[[AnyHandler], AnyHandler]: ...

    def on(self, event: str, handler: Any = None, *, type: Any = Any) -> Any:  # noqa: A002
        """Call `handler`, plain or coroutine, with each event of that name, as a `Received`; also as a decorator.

        ``presence``, ``typing``, ``gap``, ``unsubscribed``, ``error`` (one that belongs to no request), ``welcome``,
        the application's own; ``state`` when the state of the client is another (`data` is the state); ``*`` for all
        of them. Messages of channels go to their subscriptions. Events are handled one after the other, all handlers
        of one before the next. One that raises, or an event whose data is not of the `type`, is logged.
        """
        if handler is None:
            return lambda handler: self.on(event, handler, type=type)
        if not isinstance(event, str) or not event:
            raise ConfigurationError(f"event={event!r}: must be the name of an event")
        if event == "message":
            raise ConfigurationError("event='message': messages go to subscribe(channel, handler)")
        if not callable(handler):
            raise ConfigurationError(f"handler={handler!r}: must be a function")
        decoder_for(type)
        self._handlers.setdefault(event, []).append((handler, type))
        self._start_events()
        return handler

    def off(self, event: str, handler: Callable[..., object]) -> None:
        """Take a handler back. One that is not there is ignored."""
        left = [entry for entry in self._handlers.get(event, ()) if entry[0] != handler]
        if left:
            self._handlers[event] = left
        else:
            self._handlers.pop(event, None)

    def _event(self, event: Incoming) -> None:
        if event.type in self._handlers or "*" in self._handlers:
            if len(self._events) >= 8 * _UNREAD_EVENTS:  # reading goes on for the answer to a request
                logger.warning("an event %r is dropped: the handlers of events are too slow", event.type)
                return
            self._events.append(event)
            if self._event_came is not None and not self._event_came.done():
                self._event_came.set_result(None)
            if len(self._events) >= _UNREAD_EVENTS and self._link is not None:
                self._link.set_full(self, True)

    def _state_changed(self, state: State) -> None:
        self._event(Incoming("state", data=msgspec.Raw(encode(state))))

    def _start_events(self) -> None:
        """The task that calls the handlers exists once there is one."""
        if self._handlers and self._events_task is None and self._link is not None and self._link.error is None:
            self._events_task = self._link.run(self._handle_events(self._link))

    async def _handle_events(self, link: Link) -> None:
        while True:
            while self._events:
                event = self._events.popleft()
                if len(self._events) <= _UNREAD_EVENTS // 2:
                    link.set_full(self, False)
                for handler, kind in [*self._handlers.get(event.type, ()), *self._handlers.get("*", ())]:
                    try:
                        received = _received_or_none(event, kind)
                        done = handler(received) if received is not None else None
                        if inspect.isawaitable(done):
                            await done
                    except Exception:
                        logger.exception("a handler of %r failed", event.type)
            if link.error is not None:
                return
            self._event_came = link.loop.create_future()
            await self._event_came

    def __repr__(self) -> str:
        return f"<RealtimeClient {self._target} {self.state}>"


_OF_THE_PROTOCOL = frozenset(
    ("auth", "history", "ping", "pong", "presence", "publish", "subscribe", "typing", "unsubscribe")
)


def _received_or_none(message: Incoming, kind: Any) -> Received[Any] | None:
    try:
        return received_of(message, kind)
    except MalformedMessage as error:
        logger.warning("%s of channel %r is left out: %s", message.type, message.channel, error)
        return None


def _check_channel(channel: object) -> None:
    if not isinstance(channel, str) or not channel:
        raise ConfigurationError(f"channel={channel!r}: must be the name of a channel, a string that is not empty")


def _checked_since(since: str | None) -> Position | None:
    if since is None:
        return None
    try:
        return Position.parse(since)
    except ValueError as error:
        raise ConfigurationError(f"since: {error}") from None


def _checked_token(option: str, token: Any) -> TokenSource | None:
    if token is None or callable(token) or (isinstance(token, str) and token):
        return token  # type: ignore[no-any-return]
    raise ConfigurationError(f"{option}: must be a string that is not empty, or a function that returns one")


def _checked_seconds(option: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= MOST_SECONDS:
        raise ConfigurationError(f"{option}={value!r}: must be a number of seconds above 0 and at most {MOST_SECONDS}")
    return value


def _checked_count(option: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{option}={value!r}: must be a whole number above 0")
    return value


def _checked_backoff(backoff_s: tuple[float, float]) -> tuple[float, float]:
    try:
        first, most = backoff_s
    except (TypeError, ValueError):
        raise ConfigurationError(f"backoff_s={backoff_s!r}: must be two numbers, (first, longest)") from None
    if _checked_seconds("backoff_s", first) > _checked_seconds("backoff_s", most):
        raise ConfigurationError(f"backoff_s={backoff_s!r}: the first must not be above the longest")
    return first, most

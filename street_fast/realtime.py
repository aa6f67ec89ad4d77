"""Realtime: channels for browsers, without server code.

It speaks the protocol of docs/protocol.md over a `StreetWebSocketServer` (and, with `realtime_http`, over Server-Sent
Events and HTTP): clients subscribe, publish, see who is there and recover what they missed. What one client may do is
in `session`; how messages get from a publisher to the subscribers is in `exchange`. Here is what belongs to no single
client: the options, who a request is from, the sessions by member, and what an application calls.

Tokens are checked after the upgrade, because a page sees why a WebSocket is closed and not why it is refused. Until a
token has been checked its client is not read. An application that has its own `authenticate` on the server is served as
it is: then the request has its member already.

One Realtime serves one event loop. `start` it before the first client; `attach`, `serve` and `run` see to that.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import secrets
from collections.abc import Awaitable, Callable, Generator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar, cast

from street_fast._core import Frame
from street_fast.auth import Member, TokenRefused
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.backplanes.urls import backplane_at
from street_fast.errors import CloseCode, ConfigurationError, is_sendable_close_code
from street_fast.exchange import Exchange, HistoryRules
from street_fast.handler_types import takes
from street_fast.http_server import HttpServer
from street_fast.hub import ChannelHub
from street_fast.limits import checked_limits
from street_fast.listening import host_and_port
from street_fast.messages import Message, Order, decode_whole, encode, publication_json, publish_json
from street_fast.realtime_http import RealtimeHttp
from street_fast.runner import run_until_stopped
from street_fast.server import StreetWebSocketServer
from street_fast.session import Guest, Session

if TYPE_CHECKING:
    import os
    import ssl as ssl_module
    from collections.abc import Sequence

    from street_fast._core import TimerWheel
    from street_fast.backplanes import Backplane, History, Position, Published
    from street_fast.limits import Limits
    from street_fast.permissions import Authorize
    from street_fast.request import Request
    from street_fast.server import Front
    from street_fast.session import SessionPeer
    from street_fast.street_socket import StreetSocket

__all__ = ["Realtime", "Receipt"]

logger = logging.getLogger("street_fast")

Who: TypeAlias = Member | None

AnyHandler = TypeVar("AnyHandler", bound=Callable[..., object])

SUBPROTOCOL = "street-fast"

_HEARTBEAT = Frame.text(b'{"type":"ping"}')
_WELL_KNOWN_PATH = "/realtime"


class Receipt(NamedTuple):
    """What became of a publish: when, in milliseconds since the epoch, and where it is kept."""

    ts: int
    position: Position | None
    """None in a channel without history."""
    duplicate: bool
    """The key was known: nothing was published, and the position is that of the first time."""


class Realtime:
    """Channels for clients of docs/protocol.md.

    Options:
        server: the WebSocket server that the clients connect to; by default one on `path`. Give one to have its
            `authenticate`, `max_connections` or `heartbeat_interval_ms`; `path`, `allowed_origins` and `limits` are
            then its own. For logins by subprotocol it needs ``subprotocols=["street-fast"]``.
        hub: the channels, if the application uses them too. Its presence comes in differences from then on.
        auth: who finds a member in a token: a JwtAuth. Without it, and without an `authenticate`, all are guests.
        authorize: ``authorize(member, channel, action) -> bool``, plain or coroutine function, is asked each time;
            the actions are "subscribe", "publish" (and to type), "presence" (who is there) and "history". Without it,
            everything is allowed, except in channels ``user:<id>``.
        history: which channels keep how much, by name or pattern: ``{"room:*": History(size=100, ttl_s=300)}``. The
            first that matches counts; None stands for no history.
        backplane: what carries messages to other processes: the address of a Redis or NATS server (``redis://``,
            ``rediss://``, ``nats://``, see `backplanes.urls`), or a Backplane. By default there are none.
        api_key: what other programs publish with over HTTP; a list to have two while one is changed. At least 16
            characters.
        limits: every number; see `Limits`.
        path: of the WebSocket; the other paths are below it.
        guests: whether, with `auth`, clients without a token are let in as guests.
        allowed_origins: pages that may connect; see StreetWebSocketServer.

    Raises ConfigurationError for a bad option.
    """

    def __init__(
        self,
        server: StreetWebSocketServer | None = None,
        hub: ChannelHub | None = None,
        *,
        auth: Any = None,
        authorize: Authorize | None = None,
        history: Mapping[str, History | None] | None = None,
        backplane: Backplane | str | None = None,
        api_key: str | Sequence[str] | None = None,
        limits: Limits | None = None,
        path: str = _WELL_KNOWN_PATH,
        guests: bool = True,
        allowed_origins: Sequence[str] | None = None,
    ) -> None:
        if server is None:
            server = StreetWebSocketServer(
                path=path, allowed_origins=allowed_origins, limits=limits, subprotocols=[SUBPROTOCOL]
            )
        else:
            _check_server(server, limits=limits, path=path, allowed_origins=allowed_origins)
        _check_auth(auth, guests, server)
        _check_authorize(authorize)
        if hub is not None and not isinstance(hub, ChannelHub):
            raise ConfigurationError(f"hub={hub!r}: must be a ChannelHub, or None")
        self.server = server
        self.limits = checked_limits(server.limits)
        self.hub = ChannelHub(limits=self.limits) if hub is None else hub
        self.auth = auth
        self.authorize = authorize
        self.guests = guests
        self.api_keys = _checked_keys(api_key)
        self._has_default_backplane = backplane is None
        self.exchange = Exchange(
            self.hub, _checked_backplane(backplane, self.limits), HistoryRules(history), self.limits, self._follow
        )
        self.hub.batch_presence(self.limits.presence_interval_s)
        server.opening_messages = self.hub.limits.channels_per_connection
        server.checks_clients = auth is not None
        self.clock_ms = self.hub.clock_ms
        self.timers: TimerWheel  # from `start` on
        self.forbidden = 0
        """What clients were not allowed to do."""
        self._on_connect: Callable[[StreetSocket, Request], object] | None = None
        self._members: dict[str, Session | set[Session]] = {}
        self._session_count = 0
        self._recovered = 0
        self._not_recovered = 0
        self._starting: asyncio.Future[None] | None = None
        self._stopping: asyncio.Future[None] | None = None
        self._http_side = RealtimeHttp(self)
        self._http: HttpServer | None = None  # serve()'s own

    # --- what it is ---

    @property
    def has_handlers(self) -> bool:
        """Whether the application may know messages of types of its own."""
        return self._on_connect is not None

    @property
    def session_count(self) -> int:
        """Clients that are connected, over any transport."""
        return self._session_count

    @property
    def port(self) -> int:
        """The port that `serve` listens on."""
        if self._http is None:
            raise RuntimeError("port: the Realtime listens nowhere; await serve() first")
        return self._http.port

    def stats(self) -> dict[str, dict[str, int]]:
        """What can be measured: ``"realtime"``, ``"sse"``: the event streams, and what the server's `stats` tells."""
        told = {
            "sessions": self._session_count,
            "members": len(self._members),
            "channels": len(self.hub.sinks),
            "subscriptions": sum(map(len, self.hub.sinks.values())),
            "catching_up": self.exchange.catching_up,
            "published": self.exchange.delivered,
            "forbidden": self.forbidden,
            "rate_limited": self.exchange.rate_limited,
            "unavailable": self.exchange.unavailable,
            "unknown": self.exchange.unknown,
            "foreign": self.exchange.refused,
            "recovered": self._recovered,
            "not_recovered": self._not_recovered,
        }
        return {"realtime": told, "sse": self._http_side.stats(), **self.server.stats()}

    def __repr__(self) -> str:
        return f"<Realtime {self.server.path} {self._session_count} clients>"

    # --- where it serves ---

    def on_connect(self, handler: AnyHandler) -> AnyHandler:
        """Calls ``handler(socket, request)`` for each WebSocket client that has been let in; also a decorator.

        The member is ``request.member``. For events of the application's own: ``socket.on(...)``, ``socket.emit(...)``.
        Plain or coroutine function; if it raises, the client is closed with 1011. There is one such handler.
        """
        if not callable(handler) or not takes(handler, 2):
            raise ConfigurationError(f"on_connect({handler!r}): must be a function of a socket and a request")
        if self._on_connect is not None:
            raise ConfigurationError(f"on_connect({handler!r}): there is a handler already, {self._on_connect!r}")
        self._on_connect = handler
        return handler

    def attach(self, http: Front) -> None:
        """Serves on an HTTP server that is there already: an HttpServer, `uvicorn.Config` or `aiohttp.web.Application`.

        It is started and closed with that server. Raises ConfigurationError for any other `http`.
        """
        self._http_side.attach(http)
        self.server.attach(http, self._serve)

    async def serve(
        self,
        host: str = "127.0.0.1",
        port: int = 3000,
        *,
        uds: str | os.PathLike[str] | None = None,
        ssl: ssl_module.SSLContext | None = None,
        reuse_port: bool = False,
    ) -> None:
        """Listens, with an HTTP server of its own, and returns as soon as clients can connect.

        Then `wait_closed`, or anything else; `close` ends it. Port 0 takes a free one, see `port`. Raises ListenError,
        after which it can be tried again, and RuntimeError if it listens already or is closed.
        """
        if self.server.draining:
            raise RuntimeError("serve(): this Realtime is closed; make a new one")
        if self._http is None:
            http = HttpServer(limits=self.limits)
            self.attach(http)
            self._http = http
        elif self._http.accepting:
            raise RuntimeError(f"serve(): this Realtime is already listening on {self._http.addresses}")
        await self._http.listen(host, port, uds=uds, ssl=ssl, reuse_port=reuse_port)

    def run(self, host: str = "127.0.0.1", port: int = 3000) -> None:
        """Serves until SIGINT or SIGTERM, then closes cleanly. Prints one line with the address.

        Makes its own event loop, uvloop's if it is installed. If it cannot listen, the process says why in one
        line and exits with status 1 (SystemExit).
        """

        async def start() -> Realtime:
            await self.serve(host, port)
            address = host_and_port(host, self.port)
            print(f"street_fast: ws://{address}{self.server.path} (Ctrl-C stops)", flush=True)  # noqa: T201
            return self

        run_until_stopped(start)

    def use_backplane(self, backplane: Backplane | str) -> bool:
        """For who runs an application, and gives it what carries its messages to its other processes.

        False if it has one of its own already: then nothing is changed. Raises RuntimeError after `start`, and
        ConfigurationError for a bad address.
        """
        if self._starting is not None:
            raise RuntimeError("use_backplane(): this Realtime is started already")
        if not self._has_default_backplane:
            return False
        self.exchange.backplane = _checked_backplane(backplane, self.limits)
        return True

    async def start(self) -> None:
        """Begins; before the first client. Called again, it does nothing. Raises RuntimeError if it is closed."""
        if self.server.draining:
            raise RuntimeError("start(): this Realtime is closed; make a new one")
        if self._starting is None:
            self._starting = asyncio.ensure_future(self._start())
        try:
            await asyncio.shield(self._starting)
        except BaseException:
            if self._starting is not None and self._starting.done():
                self._starting = None  # it can be tried again
            raise

    async def _start(self) -> None:
        self.timers = self.hub.timers()
        await self.exchange.start()

    async def close(self) -> None:
        """Ends it: clients are closed with 1012, as `StreetWebSocketServer.close` does it. Any number of times."""
        if self._http is not None:
            await self._http.close()
        await self.server.close()
        await self.end()

    async def wait_closed(self) -> None:
        """Returns when the server is closed, whoever closes it."""
        await self.server.wait_closed()

    async def end(self) -> None:
        """Ends the clients of every transport and what is behind them; an HTTP server that shuts down calls it."""
        self.exchange.linger()
        await asyncio.gather(self.server.drain(), self._http_side.drain())
        if self._stopping is None:
            self._stopping = asyncio.ensure_future(self.exchange.close())
        await asyncio.shield(self._stopping)

    # --- what an application calls ---

    def publish(self, channel: str, data: object, *, key: str | None = None) -> Awaitable[Receipt]:
        """Publishes to the subscribers of `channel`. `data` is anything that JSON can hold.

        It need not be awaited: it is on its way when this returns, and an error is logged; of many in a row one in ten
        seconds, with their number. Who awaits it gets a `Receipt` when the message is accepted (and stored, if the
        channel keeps history), or an error: Unavailable (it was not published), OutcomeUnknown (perhaps it was). `key`
        makes a second try harmless for five minutes.

        Raises ValueError for a bad channel or key, TypeError for data that JSON cannot hold, and RuntimeError before
        `start` and in another thread: use ``loop.call_soon_threadsafe(realtime.publish, channel, data)`` there.
        """
        self._check_loop()
        self.hub.check_name("channel", channel)
        most = self.limits.publish_key_bytes
        if key is not None and (not isinstance(key, str) or not 0 < len(key.encode()) <= most):
            raise ValueError(f"key={key!r}: must be a str of 1 to {most} bytes in UTF-8")
        try:
            written = encode(data)
        except TypeError as error:
            raise TypeError(f"data for channel {channel!r} cannot be written as JSON: {error}") from error
        ts = self.clock_ms()
        json = publish_json(channel, written, ts, None)
        try:
            published = self.exchange.publish(channel, json, None if key is None else f"\n{key}")
        except Exception as error:
            published = _failed(error)
        if inspect.isawaitable(published):
            return _Publishing(channel, ts, published, self.exchange)
        return _Published(Receipt(ts, *published))

    def _check_loop(self) -> None:
        starting = self._starting
        if starting is None:
            raise RuntimeError("publish(): this Realtime is not started: await its start(), or serve() or attach() it")
        try:
            if asyncio.get_running_loop() is starting.get_loop():
                return
        except RuntimeError:
            pass
        raise RuntimeError(
            "publish(): called outside of the event loop that this Realtime runs in, from another thread perhaps; "
            "there, use loop.call_soon_threadsafe(realtime.publish, channel, data)"
        )

    def notify(self, user_id: str, data: object, *, key: str | None = None) -> Awaitable[Receipt]:
        """Publishes to ``user:<user_id>``, which only that member may subscribe to. Otherwise as `publish`."""
        if not isinstance(user_id, str) or not user_id:
            raise ValueError(f"user_id={user_id!r}: must be the id of a member")
        return self.publish(f"user:{user_id}", data, key=key)

    def presence(self, channel: str) -> list[str]:
        """The ids of the members in `channel`, in the order in which they came.

        Those on other nodes too, as far as this node has heard, if somebody is in the channel here. Of a channel that
        nobody here is in this node knows nothing: then it is empty, whoever is there on others. (The `presence` of a
        client, and ``GET {path}/presence``, ask them.)
        """
        return self.hub.presence(channel)

    def members(self, channel: str) -> list[dict[str, Any]]:
        """The same, of the same members, as ``{"memberId", "info"?}``."""
        return self.hub.members(channel)

    async def history(self, channel: str, limit: int = 50) -> list[dict[str, Any]]:
        """The newest messages of `channel`, oldest first, as clients get them; empty if it keeps none.

        Raises Unavailable if the history cannot be read now.
        """
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise ValueError(f"limit={limit!r}: must be a whole number, 0 or more")
        history = self.exchange.history_of(channel)
        if history is None:
            return []
        page = self.exchange.backplane.read(channel, history, since=None, limit=limit)
        if inspect.isawaitable(page):
            page = await page
        texts = [publication_json(payload, str(position)) for payload, position, _ in page.publications]
        return [decode_whole(text) for text in texts]

    def unsubscribe(self, member_id: str, channel: str, message: str = "the application ended the subscription") -> int:
        """Takes a member out of a channel, on all nodes; its clients are told. Returns how many were of this process.

        It keeps the member out only if `authorize` says so, too.
        """
        order = Order(member_id, message, channel)
        self.exchange.tell_nodes(order)
        return self._follow(order)

    def disconnect(
        self, member_id: str, code: int = CloseCode.POLICY_VIOLATION, reason: str = "disconnected by the application"
    ) -> int:
        """Closes the connections of a member, on all nodes, with a code after which clients do not come back.

        Returns how many were of this process. Nodes that cannot be reached at this moment do not hear of it. Raises
        ValueError for a code that may not be sent.
        """
        if not is_sendable_close_code(code):
            raise ValueError(f"code={code}: may not be sent; use 1000-1003, 1007-1014 or 3000-4999")
        order = Order(member_id, reason, code=int(code))
        self.exchange.tell_nodes(order)
        return self._follow(order)

    def _follow(self, order: Order) -> int:
        sessions = self._sessions_of(order.member_id)
        if order.channel is not None:
            return sum(session.take_out(order.channel, "forbidden", order.reason) for session in sessions)
        for session in sessions:
            session.peer.close(order.code, order.reason)
        return len(sessions)

    # --- for transports ---

    def identify(self, request: Request) -> Who | Awaitable[Who]:
        """Who a request is from: a member, a guest, or None for somebody who must log in with an ``auth`` message.

        Raises TokenRefused, or the awaitable does, for somebody who is not let in.
        """
        if request.member is not None:
            return request.member
        if self.server.authenticate is not None:
            return self._authenticated(self.server.authenticate, request)
        token = None if self.auth is None else self.auth.token_of(request)
        if token is not None:
            return cast("Who | Awaitable[Who]", self.auth.verify(token))
        return Guest(f"guest-{secrets.token_hex(8)}") if self.guests else None

    async def _authenticated(self, authenticate: Callable[[Request], Any], request: Request) -> Member:
        """What the server does with an upgrade, for a request that is none."""
        try:
            answer = authenticate(request)
            member = (await answer) if inspect.isawaitable(answer) else answer
        except Exception:
            logger.exception("authenticate failed, the client is refused")
            member = None
        if not isinstance(member, Member):
            raise TokenRefused("not authenticated")
        return member

    def open(self, peer: SessionPeer, member: Member | None, heartbeat_s: float | None = None) -> Session:
        """The session of a new client, who is sent ``welcome``; its transport gives it the envelopes.

        `member` is what `identify` said, `heartbeat_s` how often the transport sends a ping (None: never). Raises
        ValueError for a member whose id or info channels cannot take, and RuntimeError before `start`.
        """
        if self._starting is None or not self._starting.done():
            raise RuntimeError("a client has come before the Realtime was started: await start() first")
        session = Session(self, peer)
        if member is None:
            session.await_login()
        else:
            session.log_in(member)
        self._session_count += 1
        peer.add_close_callback(session.end)
        peer.deliver(self._welcome(session, heartbeat_s))
        return session

    def _welcome(self, session: Session, heartbeat_s: float | None) -> Message:
        limits, channels = self.limits, self.hub.limits
        return Message(
            "welcome",
            None,
            {
                "id": session.peer.id,
                **session.who(),
                "heartbeatMs": None if heartbeat_s is None else round(heartbeat_s * 1_000),
                "limits": {
                    "messageBytes": limits.event_bytes,
                    "channels": channels.channels_per_connection,
                    "channelNameBytes": channels.channel_name_bytes,
                    "messagesPerSecond": limits.messages_per_second,
                    "messagesBurst": limits.messages_burst,
                    "bytesPerSecond": limits.bytes_per_second,
                },
            },
        )

    def _serve(self, socket: StreetSocket, request: Request) -> object:
        """The connection handler of the WebSocket server."""
        try:
            who = self.identify(request)
        except TokenRefused as error:
            self._turn_away(socket, error)
            return None
        if inspect.isawaitable(who):
            socket.sink.pause_reading()
            return self._serve_later(socket, request, who)
        return self._let_in(socket, request, who)

    async def _serve_later(self, socket: StreetSocket, request: Request, who: Awaitable[Who]) -> None:
        result = None
        try:
            result = self._let_in(socket, request, await asyncio.wait_for(who, self.limits.login_timeout_s))
        except TokenRefused as error:
            self._turn_away(socket, error)
        except asyncio.TimeoutError:
            self._turn_away(socket, TokenRefused("the token could not be checked in time", temporary=True))
        finally:
            socket.sink.resume_reading()
        if inspect.isawaitable(result):
            await result

    def _let_in(self, socket: StreetSocket, request: Request, member: Who) -> object:
        if socket.closed:
            return None
        request.member = member
        interval_s = self.limits.ping_interval_s
        if interval_s is not None:
            socket.sink.heartbeat = _HEARTBEAT
        try:
            socket.protocol = self.open(socket, member, interval_s)
        except ValueError as error:
            logger.error("a member cannot be let in: %s", error)
            socket.close(CloseCode.UNAUTHORIZED, "this member cannot be let in")
            return None
        if self._on_connect is None:
            socket.request = request.stripped()  # nobody will read the rest, a token among it
            return None
        return self._on_connect(socket, request) if member is not None else None

    def _turn_away(self, socket: StreetSocket, error: TokenRefused) -> None:
        if error.temporary:
            socket.close(CloseCode.TRY_AGAIN_LATER, self.server.retry_reason(_short(str(error))))
        else:
            socket.close(CloseCode.UNAUTHORIZED, _short(str(error)))

    # --- for sessions ---

    def note_recovery(self, recovered: bool) -> None:
        """A client has asked for what it missed."""
        if recovered:
            self._recovered += 1
        else:
            self._not_recovered += 1

    def remember(self, session: Session) -> None:
        """The session has got a member."""
        assert session.member is not None
        known = self._members.setdefault(session.member.id, session)
        if isinstance(known, set):
            known.add(session)
        elif known is not session:
            self._members[session.member.id] = {known, session}

    def forget(self, session: Session) -> None:
        """Take back `remember`."""
        if session.member is None:
            return
        known = self._members.get(session.member.id)
        if known is session:
            del self._members[session.member.id]
        elif isinstance(known, set):
            known.discard(session)
            if not known:
                del self._members[session.member.id]

    def ended(self, session: Session) -> None:
        """The client has gone."""
        self.forget(session)
        self._session_count -= 1

    def logged_in(self, session: Session, first: bool) -> None:
        """A client has sent a token; `first` if it was nobody before."""
        socket: Any = session.peer
        request = getattr(socket, "request", None)
        if request is not None:
            request.member = session.member
            if first and self._on_connect is not None:
                socket.serve(self._on_connect)

    def _sessions_of(self, member_id: str) -> list[Session]:
        known = self._members.get(member_id)
        if known is None:
            return []
        return list(known) if isinstance(known, set) else [known]


class _Published:
    """A publish that is done."""

    __slots__ = ("_receipt",)

    def __init__(self, receipt: Receipt) -> None:
        self._receipt = receipt

    def __await__(self) -> Generator[Any, None, Receipt]:
        yield from ()
        return self._receipt


class _Publishing:
    """A publish that goes on, whether or not anybody awaits it; in the latter case an error is logged."""

    __slots__ = ("_awaited", "_channel", "_exchange", "_future", "_ts")

    def __init__(self, channel: str, ts: int, published: Awaitable[Published], exchange: Exchange) -> None:
        self._channel = channel
        self._exchange = exchange
        self._ts = ts
        self._awaited = False
        self._future = asyncio.ensure_future(published)
        self._future.add_done_callback(self._done)

    def __await__(self) -> Generator[Any, None, Receipt]:
        self._awaited = True
        published = yield from asyncio.shield(self._future).__await__()
        return Receipt(self._ts, *published)

    def _done(self, future: asyncio.Future[Published]) -> None:
        if future.cancelled():
            return
        error = future.exception()
        if error is not None:
            self._exchange.note_failed(error)
            if not self._awaited:
                self._exchange.say_failed(self._channel, error)


def _failed(error: Exception) -> asyncio.Future[Published]:
    future: asyncio.Future[Published] = asyncio.get_running_loop().create_future()
    future.set_exception(error)
    return future


def _short(reason: str) -> str:
    """What fits into a close reason, with a retry hint behind it (RFC 6455 section 5.5)."""
    return reason.encode()[:90].decode(errors="ignore")


# --- options ---


def _check_server(server: object, **own: object) -> None:
    if not isinstance(server, StreetWebSocketServer):
        raise ConfigurationError(f"server={server!r}: must be a StreetWebSocketServer, or None")
    for option, default in (("limits", None), ("path", _WELL_KNOWN_PATH), ("allowed_origins", None)):
        if own[option] != default:
            raise ConfigurationError(f"{option}={own[option]!r}: with server=..., give it to the server")


def _check_auth(auth: object, guests: bool, server: StreetWebSocketServer) -> None:
    if not isinstance(guests, bool):
        raise ConfigurationError(f"guests={guests!r}: must be True or False")
    if auth is None:
        if not guests and server.authenticate is None:
            raise ConfigurationError("guests=False: nobody could log in; give an auth, or a server with authenticate")
        return
    if not all(callable(getattr(auth, name, None)) for name in ("token_of", "verify", "grant")):
        raise ConfigurationError(f"auth={auth!r}: must be a JwtAuth, or have its methods token_of, verify and grant")
    if server.authenticate is not None:
        raise ConfigurationError("auth: the server has an authenticate already; give one of the two")


def _check_authorize(authorize: object) -> None:
    if authorize is not None and (not callable(authorize) or not takes(authorize, 3)):
        raise ConfigurationError(f"authorize={authorize!r}: must be a function of a member, a channel and an action")


def _checked_backplane(backplane: Backplane | str | None, limits: Limits) -> Backplane:
    if backplane is None:
        return MemoryBackplane(limits=limits)
    if isinstance(backplane, str):
        return backplane_at(backplane, limits)
    methods = "start close publish signal subscribe unsubscribe read join leave members health"
    missing = [name for name in methods.split() if not callable(getattr(backplane, name, None))]
    if missing:
        raise ConfigurationError(f"backplane={backplane!r}: must be a Backplane; it has no {', '.join(missing)}")
    return backplane


def _checked_keys(api_key: object) -> tuple[str, ...]:
    keys = () if api_key is None else (api_key,) if isinstance(api_key, str) else api_key
    if not isinstance(keys, (list, tuple)) or not all(
        isinstance(key, str) and len(key) >= 16 and key.isascii() and key.isprintable() for key in keys
    ):
        raise ConfigurationError(
            "api_key: must be a string of at least 16 printable ASCII characters, or a list of such strings"
        )
    return tuple(keys)

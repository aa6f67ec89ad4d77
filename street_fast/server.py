"""StreetWebSocketServer: from an upgrade request to a handler, and from close() to the last connection.

A front (HttpServer, uvicorn, aiohttp) hands each WebSocket request on the server's path to `handle_upgrade`, which
answers in this order: Origin (403, before any code of the application), handshake (400, 405, 426), capacity (503 with
Retry-After; a browser cannot see a status, so it is upgraded and closed with 1013), `authenticate` (401), 101.

The connection handler runs before the connection starts: what it sends goes out behind the 101, and what it registers
is there before the first byte of the client is looked at, also what came with the request. A coroutine gets as far
as its first await.

Everybody whom the server turns away for now is told when to come back: Retry-After with 503, and with 1012 (restart)
and 1013 (over capacity) a close reason that ends in ``retry in <seconds> s``, a random time up to
``Limits.retry_hint_s``, so that they do not all come back at once. In JavaScript: ``/retry in ([0-9.]+) s$/``.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import inspect
import logging
import math
import random
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, Union, cast

from street_fast._core import LoopContext, WebSocket, broadcast
from street_fast.auth import Member
from street_fast.errors import CloseCode, ConfigurationError, ConnectionClosed, HandshakeRefused
from street_fast.handler_types import takes
from street_fast.handshake import Acceptance, Upgrade, accept, check_allowed_origins, refusal
from street_fast.http_server import HttpServer, check_path
from street_fast.limits import MOST_SECONDS, Limits, checked_limits
from street_fast.listening import host_and_port
from street_fast.messages import UNSET, Message
from street_fast.metrics import Counters
from street_fast.request import TOKEN_CHARS, Request, Response
from street_fast.runner import run_until_stopped
from street_fast.street_socket import STOPPING, SocketContext, StreetSocket, socket_limits

if TYPE_CHECKING:
    import os
    import ssl as ssl_module
    from collections.abc import Awaitable

    import aiohttp.web
    import uvicorn

__all__ = ["StreetWebSocketServer"]

logger = logging.getLogger("street_fast")

Handler: TypeAlias = Callable[[StreetSocket, Request], object]
BareHandler: TypeAlias = Callable[[WebSocket, Request], object]
Authenticate: TypeAlias = Callable[[Request], Union[Member, "Awaitable[Member | None]", None]]
Front: TypeAlias = Union[HttpServer, "uvicorn.Config", "aiohttp.web.Application"]


class _Application(NamedTuple):
    """What serves a subprotocol: a handler of StreetSockets or of bare WebSockets."""

    handler: Callable[..., object]
    bare: bool


class _CountedWebSocket(WebSocket):
    """A WebSocket whose server hears of its end; its `on_close` belongs to the application."""

    __slots__ = ("server",)

    server: StreetWebSocketServer

    def connection_lost(self, error: Exception | None) -> None:
        try:
            super().connection_lost(error)
        finally:
            self.server._forget_bare(self)


class StreetWebSocketServer:
    """WebSocket clients on one path of an HTTP server.

    Options:
        path: where clients connect.
        heartbeat_interval_ms: a ping after this silence; overrides ``limits.ping_interval_s``.
        max_connections: above it, clients are turned away.
        authenticate: ``authenticate(request) -> Member | None``, plain or coroutine function. None or an exception
            refuses the client (401); the Member is the request's `member` from then on. It has what is left of
            ``limits.handshake_timeout_s``, and is cancelled when the client goes away.
        allowed_origins: pages that may connect: None for those of the same origin, a list of origins
            (``https://app.example.com``, ``https://*.example.com``), or ``["*"]``. Who is no browser sends none.
        limits: every other number.
        subprotocols: those that the handler of `attach`, `serve` and `run` speaks, best first.

    Raises ConfigurationError for a bad option. One server serves one event loop, until it is closed.
    """

    def __init__(
        self,
        *,
        path: str = "/",
        heartbeat_interval_ms: float | None = None,
        max_connections: int = 10_000,
        authenticate: Authenticate | None = None,
        allowed_origins: Sequence[str] | None = None,
        limits: Limits | None = None,
        subprotocols: Sequence[str] = (),
    ) -> None:
        check_path(path)
        _check_options(heartbeat_interval_ms, max_connections, authenticate)
        limits = checked_limits(limits)
        if heartbeat_interval_ms is not None:
            limits = dataclasses.replace(limits, ping_interval_s=heartbeat_interval_ms / 1_000)
        self.path = path
        self.limits = limits
        self.max_connections = max_connections
        self.counters = Counters()
        self._socket_limits = socket_limits(limits)
        self.authenticate = authenticate
        self.allowed_origins = _checked_origins(allowed_origins)
        self._subprotocols = _checked_subprotocols("subprotocols", subprotocols)
        self._applications: dict[str | None, _Application] = {}
        self._offered: tuple[str, ...] = ()
        self._fronts: list[Front] = []
        self._http: HttpServer | None = None  # serve()'s own
        self.opening_messages = 0
        """For a library that serves here: what a client may send above its rate, once, to take up where it was."""
        self.checks_clients = False
        """For a library that serves here: it finds out by itself who the clients are, so nobody need be warned."""
        self.other_connections = 0
        """For a library that serves here: connections of its own that count towards `max_connections`."""
        self._context: SocketContext | None = None
        self._sockets: dict[WebSocket, StreetSocket] = {}
        self._bare: dict[_CountedWebSocket, asyncio.Task[None] | None] = {}
        self._turned_away: set[_CountedWebSocket] = set()
        self._authenticating: set[asyncio.Task[None]] = set()
        self._closed_by_code: dict[str, int] = {}
        self._warned = False
        self._warned_of_origin = False
        self._draining: asyncio.Task[None] | None = None
        self._all_gone: asyncio.Event | None = None
        self._closed = asyncio.Event()

    # --- what it is ---

    @property
    def clients(self) -> list[StreetSocket]:
        """The open StreetSockets, as a new list."""
        return list(self._sockets.values())

    @property
    def connection_count(self) -> int:
        """Open connections, those of `attach_protocol` included."""
        return len(self._sockets) + len(self._bare)

    @property
    def full(self) -> bool:
        """Whether there are as many connections, also of those that are being let in, as `max_connections` allows."""
        return self.connection_count + self.other_connections + len(self._authenticating) >= self.max_connections

    @property
    def draining(self) -> bool:
        """Whether `close` or `drain` has begun: nobody is let in any more."""
        return self._draining is not None

    def stats(self) -> dict[str, dict[str, int]]:
        """What can be measured: ``"server"`` counts handshakes, events and errors of this server, ``"closed"`` the
        connections that have ended by their close code (those of `CloseCode`, and ``"other"``), ``"loop"`` the
        connections, messages, bytes, drops and slow consumers of the whole event loop, and how late the loop is
        (``loop_lag_ms``, ``worst_loop_lag_ms``). ``"loop"`` is empty before the first client."""
        loop = {} if self._context is None else self._context.loop_context.stats()
        return {"server": self.counters.as_dict(), "closed": self._closed_by_code.copy(), "loop": loop}

    @property
    def port(self) -> int:
        """The port that `serve` listens on."""
        if self._http is None:
            raise RuntimeError("port: the server listens nowhere; await serve() first")
        return self._http.port

    def __repr__(self) -> str:
        return f"<StreetWebSocketServer {self.path} {self.connection_count} connections>"

    # --- where it serves ---

    def attach(self, http: Front, handler: Handler) -> None:
        """Serves the WebSocket clients of an HTTP server that is there already, on `path`.

        `http` is an HttpServer, a `uvicorn.Config` or an `aiohttp.web.Application`; it is not started here, and when
        it shuts down this server is drained. ``handler(socket, request)``, plain or a coroutine function, is
        called for each connection. Raises ConfigurationError for any other `http`, for a second handler, and for a
        second server on the path; then nothing is attached.
        """
        self._attach(http, (None, *self._subprotocols), _Application(handler, bare=False))

    def attach_protocol(self, http: Front, subprotocol: str | None, handler: BareHandler) -> None:
        """Serves bare WebSockets to the clients that ask for `subprotocol`, or to any client if it is None.

        ``handler(ws, request)`` sets ``ws.on_message`` and ``ws.on_close``. Of several subprotocols that a client
        offers, those attached first are preferred. Otherwise as `attach`.
        """
        if subprotocol is not None:
            _checked_subprotocols("subprotocol", [subprotocol])
        self._attach(http, (subprotocol,), _Application(handler, bare=True))

    def _attach(self, http: Front, subprotocols: Iterable[str | None], application: _Application) -> None:
        handler = application.handler
        if not callable(handler):
            raise ConfigurationError(f"handler={handler!r}: must be a function")
        if not takes(handler, 2):
            first = "ws" if application.bare else "socket"
            raise ConfigurationError(f"handler={handler!r}: must take two arguments, {first} and request")
        applications = self._applications.copy()
        for subprotocol in subprotocols:
            if applications.setdefault(subprotocol, application) != application:
                kind = "clients without a subprotocol" if subprotocol is None else f"subprotocol {subprotocol!r}"
                raise ConfigurationError(f"handler={handler!r}: {kind} of {self!r} have another handler already")
        if not any(front is http for front in self._fronts):
            self._add_front(http)
        self._serve_applications(applications)

    def _serve_applications(self, applications: dict[str | None, _Application]) -> None:
        self._applications = applications
        self._offered = tuple(name for name in applications if name is not None)

    def _add_front(self, http: Front) -> None:
        kinds = {(base.__module__.partition(".")[0], base.__name__) for base in type(http).__mro__}
        if isinstance(http, HttpServer):
            http.upgrade(self.path, self.handle_upgrade)
            http.on_shutdown(self.drain)
        elif ("uvicorn", "Config") in kinds:
            from street_fast.integrations import uvicorn as uvicorn_front

            uvicorn_front.attach(self, cast("uvicorn.Config", http))
        elif ("aiohttp", "Application") in kinds:
            from street_fast.integrations import aiohttp as aiohttp_front

            aiohttp_front.attach(self, cast("aiohttp.web.Application", http))
        else:
            raise ConfigurationError(
                f"attach({http!r}): must be a street_fast.HttpServer, a uvicorn.Config (for FastAPI, Starlette and "
                f"other ASGI applications: the one that uvicorn.Server gets) or an aiohttp.web.Application"
            )
        self._fronts.append(http)

    async def serve(
        self,
        handler: Handler,
        host: str = "127.0.0.1",
        port: int = 3000,
        *,
        uds: str | os.PathLike[str] | None = None,
        ssl: ssl_module.SSLContext | None = None,
        reuse_port: bool = False,
    ) -> None:
        """Listens, with an HTTP server of its own, and returns as soon as clients can connect, as asyncio does.

        Then `wait_closed`, or anything else; `close` ends it. Port 0 takes a free one, see `port`. Raises ListenError,
        after which it can be tried again, and RuntimeError on a server that listens already or is closed.
        """
        if self._draining is not None:
            raise RuntimeError("serve(): this server is closed; make a new one")
        if self._http is not None:
            where = self._http.addresses
            raise RuntimeError(f"serve(): this server is already listening{where and ' on ' + where}")
        http = HttpServer(limits=self.limits)
        before = self._applications
        self.attach(http, handler)
        self._http = http
        try:
            await http.listen(host, port, uds=uds, ssl=ssl, reuse_port=reuse_port)
        except BaseException:
            self._http = None
            self._fronts.remove(http)
            self._serve_applications(before)
            raise

    def run(self, handler: Handler, host: str = "127.0.0.1", port: int = 3000) -> None:
        """Serves until SIGINT or SIGTERM, then closes cleanly. Prints one line with the address.

        Makes its own event loop, uvloop's if it is installed. If it cannot listen, the process says why in one
        line and exits with status 1 (SystemExit).
        """

        async def start() -> StreetWebSocketServer:
            await self.serve(handler, host, port)
            address = host_and_port(host, self.port)
            print(f"street_fast: ws://{address}{self.path} (Ctrl-C stops)", flush=True)  # noqa: T201
            return self

        run_until_stopped(start)

    # --- out ---

    def broadcast(self, type: str, data: object = UNSET) -> int:  # noqa: A002
        """Emits an event to every StreetSocket, written and framed once. Returns how many took it.

        Raises TypeError for data that JSON cannot hold.
        """
        return broadcast(self._sockets, Message(type, None, data).frame)

    # --- from an upgrade to a handler ---

    def handle_upgrade(self, upgrade: Upgrade) -> None:
        """Answers one WebSocket request, now or, if `authenticate` is a coroutine, later. For fronts; never raises."""
        request = upgrade.request
        try:
            acceptance = accept(request, subprotocols=self._offered, allowed_origins=self.allowed_origins)
            application = self._applications.get(acceptance.subprotocol)
            if not self._applications:
                raise HandshakeRefused(503, "no_handler", "no handler is attached to this WebSocket server")
            if application is None:
                known = ", ".join(self._offered)
                raise HandshakeRefused(400, "subprotocol", f"a Sec-WebSocket-Protocol is needed here, one of: {known}")
        except HandshakeRefused as error:
            if error.code == "origin" and not self._warned_of_origin:
                self._warned_of_origin = True  # once: anybody can have this happen
                logger.warning(
                    "%r has refused a page of %.200r, and goes on to do so; if it is yours, name it in allowed_origins",
                    self,
                    request.headers.get("origin"),
                )
            self._refuse(upgrade, refusal(error))
            return
        if self._draining is not None:
            self._turn_away(upgrade, acceptance, CloseCode.SERVICE_RESTART, "restart")
        elif self.full:
            self._turn_away(upgrade, acceptance, CloseCode.TRY_AGAIN_LATER, "over capacity")
        elif self.authenticate is None:
            if not (self._warned or self.checks_clients) and _is_from_outside(request):
                self._warned = True
                logger.warning("%r has no authenticate: anybody who reaches it may connect", self)
            self._open(upgrade, acceptance, application)
        else:
            self._ask(self.authenticate, upgrade, acceptance, application)

    def _ask(
        self, authenticate: Authenticate, upgrade: Upgrade, acceptance: Acceptance, application: _Application
    ) -> None:
        try:
            answer = authenticate(upgrade.request)
        except STOPPING:
            raise
        except BaseException as error:
            self._admit(upgrade, acceptance, application, error)
            return
        if not inspect.isawaitable(answer):
            self._admit(upgrade, acceptance, application, answer)
            return
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._ask_later(answer, upgrade, acceptance, application))
        self._authenticating.add(task)
        task.add_done_callback(self._authenticating.discard)

        def abandon() -> None:
            loop.call_soon(task.cancel)  # in the next turn: a coroutine that has begun can clean up

        upgrade.on_abandoned = abandon

    async def _ask_later(
        self, answer: Awaitable[Member | None], upgrade: Upgrade, acceptance: Acceptance, application: _Application
    ) -> None:
        try:
            member: object = await answer
        except asyncio.CancelledError:
            if self._draining is not None:
                self._send_away(upgrade, "restart")
            else:  # it went away, or else authenticate was cancelled by somebody else
                self._refuse(upgrade, Response.text("not now\n", 503, self.retry_after()))
            raise
        except STOPPING:
            raise
        except BaseException as error:
            member = error
        self._admit(upgrade, acceptance, application, member)

    def _admit(self, upgrade: Upgrade, acceptance: Acceptance, application: _Application, answer: object) -> None:
        """Lets a client in if `answer`, what `authenticate` returned or raised, is a Member."""
        if isinstance(answer, Member):
            upgrade.request.member = answer
            if self._draining is None:
                self._open(upgrade, acceptance, application)
            else:
                self._turn_away(upgrade, acceptance, CloseCode.SERVICE_RESTART, "restart")
            return
        if isinstance(answer, BaseException):
            logger.error("authenticate failed, the client is refused", exc_info=answer)
        elif answer is not None:
            logger.error("authenticate returned %r, which is no Member: the client is refused", type(answer).__name__)
        self._refuse(upgrade, Response.text("not authenticated\n", 401, [("WWW-Authenticate", "Bearer")]))

    def _open(self, upgrade: Upgrade, acceptance: Acceptance, application: _Application) -> None:
        taken = self._take_over(upgrade)
        if taken is None:
            return
        transport, tail = taken
        ws: WebSocket
        serve: Callable[[Callable[..., object]], None]
        with self._or_abort(transport):
            context = self._socket_context()
            if application.bare:
                ws = bare = self._counted_websocket(context, acceptance)
                self._bare[bare] = None
                serve = functools.partial(self._serve_bare, bare, request=upgrade.request)
            else:
                ws = WebSocket(context.loop_context, self._socket_limits, subprotocol=acceptance.subprotocol)
                socket = self._sockets[ws] = StreetSocket(ws, upgrade.request, context)
                serve = socket.serve
            self.counters.connections_opened += 1
            try:
                serve(application.handler)
            finally:  # also when the process is being stopped: nobody else owns the transport
                _start(ws, transport, acceptance.head, tail)

    def _take_over(self, upgrade: Upgrade) -> tuple[asyncio.Transport, bytes] | None:
        upgrade.on_abandoned = None
        try:
            return upgrade.take_over()
        except ConnectionClosed:
            return None  # it went away just now

    @contextlib.contextmanager
    def _or_abort(self, transport: asyncio.Transport) -> Iterator[None]:
        """For what is done with a transport that nobody else owns; fronts rely on it that nothing is raised."""
        try:
            yield
        except Exception:
            logger.exception("%r could not serve a client", self)
            transport.abort()

    def _socket_context(self) -> SocketContext:
        if self._context is None:
            self._context = SocketContext(
                LoopContext.of(), self.limits, self.counters, self._forget, self.opening_messages
            )
        return self._context

    def _counted_websocket(self, context: SocketContext, acceptance: Acceptance) -> _CountedWebSocket:
        ws = _CountedWebSocket(context.loop_context, self.limits, subprotocol=acceptance.subprotocol)
        ws.server = self
        return ws

    def _serve_bare(self, ws: _CountedWebSocket, handler: BareHandler, request: Request) -> None:
        try:
            result = handler(ws, request)
        except STOPPING:
            raise
        except BaseException as error:
            self._bare_failed(ws, error)
            return
        if asyncio.iscoroutine(result):
            self._bare[ws] = self._socket_context().spawn(self._await_bare(ws, result))

    async def _await_bare(self, ws: _CountedWebSocket, coroutine: Coroutine[Any, Any, object]) -> None:
        try:
            await coroutine
        except (asyncio.CancelledError, KeyboardInterrupt, SystemExit, GeneratorExit):
            raise
        except BaseException as error:
            self._bare_failed(ws, error)

    def _bare_failed(self, ws: WebSocket, error: BaseException) -> None:
        self.counters.handler_errors += 1
        logger.error("connection %s: the connection handler failed, closing it", ws.id, exc_info=error)
        ws.close(CloseCode.INTERNAL_ERROR, "internal error")

    # --- who does not get in ---

    def _refuse(self, upgrade: Upgrade, response: Response) -> None:
        self.counters.handshakes_refused += 1
        upgrade.on_abandoned = None
        upgrade.refuse(response)

    def _turn_away(self, upgrade: Upgrade, acceptance: Acceptance, code: CloseCode, why: str) -> None:
        """503 for programs; browsers, who send an Origin, are upgraded and closed while there is room for that."""
        if "origin" not in upgrade.request.headers or len(self._turned_away) >= self.limits.unfinished_handshakes:
            self._send_away(upgrade, why)
            return
        self.counters.handshakes_turned_away += 1
        taken = self._take_over(upgrade)
        if taken is None:
            return
        transport, tail = taken
        with self._or_abort(transport):
            ws = self._counted_websocket(self._socket_context(), acceptance)
            self._turned_away.add(ws)
            ws.close(code, self.retry_reason(why))
            _start(ws, transport, acceptance.head, tail)

    def _send_away(self, upgrade: Upgrade, why: str) -> None:
        self.counters.handshakes_turned_away += 1
        upgrade.on_abandoned = None
        upgrade.refuse(Response.text(f"{why}\n", 503, self.retry_after()))

    def retry_after(self) -> list[tuple[str, str]]:
        """The header of a 503: after how many seconds, random ones, to come back."""
        return [("Retry-After", str(random.randint(1, math.ceil(self.limits.retry_hint_s))))]  # noqa: S311

    def retry_reason(self, why: str) -> str:
        """The reason of a close with 1012 or 1013: why, and after how many seconds, random ones, to come back."""
        return f"{why}; retry in {random.uniform(0, self.limits.retry_hint_s):.1f} s"  # noqa: S311

    # --- the end of a connection ---

    def _forget(self, socket: StreetSocket) -> None:
        del self._sockets[socket.sink]
        self._count_end(socket.sink)
        self._look_whether_all_are_gone()

    def _forget_bare(self, ws: _CountedWebSocket) -> None:
        self._turned_away.discard(ws)
        if ws in self._bare:
            self._count_end(ws)
        task = self._bare.pop(ws, None)
        if task is not None:
            task.get_loop().call_soon(task.cancel)
        self._look_whether_all_are_gone()

    def _count_end(self, ws: WebSocket) -> None:
        code = ws.close_code
        name = str(code) if code in _KNOWN_CODES else "other"  # clients may send any, and these are kept for good
        self._closed_by_code[name] = self._closed_by_code.get(name, 0) + 1

    def _look_whether_all_are_gone(self) -> None:
        if self._all_gone is not None and not (self._sockets or self._bare or self._turned_away):
            self._all_gone.set()

    # --- the end of the server ---

    async def close(self) -> None:
        """Ends the server: no new clients, and those that are there are closed with 1012, in batches.

        Their close reason tells them when to come back (see above). Who is still there after
        ``limits.shutdown_timeout_s`` is cut off. Returns when the last is gone and its handlers are done. An HTTP
        server that this one is attached to goes on; for its WebSocket clients it is as if it were restarting.
        """
        if self._http is not None:
            await self._http.close()  # which drains this server
        await self.drain()

    async def wait_closed(self) -> None:
        """Returns when `close` is done, whoever calls it."""
        await self._closed.wait()

    async def drain(self) -> None:
        """What `close` does with the connections; an attached HTTP server that shuts down calls it."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
        await asyncio.shield(self._draining)

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        limits = self.limits
        deadline = loop.time() + limits.shutdown_timeout_s
        for task in self._authenticating:
            loop.call_soon(task.cancel)
        connections: list[WebSocket] = [*self._sockets, *self._bare]
        for start in range(0, len(connections), limits.shutdown_batch):
            if start:
                if loop.time() + limits.shutdown_batch_interval_s >= deadline:
                    break
                await asyncio.sleep(limits.shutdown_batch_interval_s)
            for ws in connections[start : start + limits.shutdown_batch]:
                ws.close(CloseCode.SERVICE_RESTART, self.retry_reason("restart"))
        await self._wait_until_all_are_gone(deadline - loop.time())
        for ws in [*self._sockets, *self._bare, *self._turned_away]:
            ws.abort()
        await self._wait_until_all_are_gone(_ABORT_S)
        await self._end_tasks(deadline - loop.time())
        self._closed.set()

    async def _wait_until_all_are_gone(self, timeout_s: float) -> None:
        self._all_gone = asyncio.Event()
        self._look_whether_all_are_gone()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._all_gone.wait(), max(0.0, timeout_s))

    async def _end_tasks(self, timeout_s: float) -> None:
        """Lets "close" handlers finish; what does not is cancelled."""
        tasks = self._authenticating | (set() if self._context is None else self._context.tasks)
        if tasks:
            _, late = await asyncio.wait(tasks, timeout=max(0.0, timeout_s))
            for task in late:
                task.cancel()
            if late:
                await asyncio.wait(late, timeout=_ABORT_S)


_KNOWN_CODES = frozenset(int(code) for code in CloseCode)
_ABORT_S = 1.0
"""What an aborted connection or a cancelled task gets to come to its end; both need one turn of the loop."""


def _start(ws: WebSocket, transport: asyncio.Transport, head: bytes, tail: bytes) -> None:
    try:
        ws.start(transport, head, tail)
    except Exception as error:
        ws.connection_lost(error)  # so that all who know it hear that it is nothing
        raise


def _check_options(heartbeat_interval_ms: float | None, max_connections: int, authenticate: object) -> None:
    if heartbeat_interval_ms is not None and (
        isinstance(heartbeat_interval_ms, bool)
        or not isinstance(heartbeat_interval_ms, int | float)
        or not 0 < heartbeat_interval_ms <= 1_000 * MOST_SECONDS
    ):
        raise ConfigurationError(
            f"heartbeat_interval_ms={heartbeat_interval_ms!r}: must be a number above 0 and at most "
            f"{1_000 * MOST_SECONDS}, or None for limits.ping_interval_s"
        )
    if isinstance(max_connections, bool) or not isinstance(max_connections, int) or max_connections < 1:
        raise ConfigurationError(f"max_connections={max_connections!r}: must be a whole number above 0")
    if authenticate is not None and not callable(authenticate):
        raise ConfigurationError(f"authenticate={authenticate!r}: must be a function of a Request, or None")


def _checked_origins(origins: Sequence[str] | None) -> tuple[str, ...] | None:
    if origins is None:
        return None
    check_allowed_origins(origins)
    return tuple(origins)


def _checked_subprotocols(option: str, names: Sequence[str]) -> tuple[str, ...]:
    if not isinstance(names, list | tuple):
        raise ConfigurationError(f"{option}={names!r}: must be a list of names")
    for name in names:
        if not isinstance(name, str) or not name or not TOKEN_CHARS.issuperset(name):
            raise ConfigurationError(f"{option}: {name!r} is no token (RFC 9110 section 5.6.2)")
    if len(set(names)) < len(names):
        raise ConfigurationError(f"{option}={list(names)!r}: a name is there twice")
    return tuple(names)


def _is_from_outside(request: Request) -> bool:
    """Whether a request came from another machine, itself or through a proxy."""
    if request.client is None:
        return True
    address = request.client[0]
    if not (address.startswith(("127.", "::ffff:127.")) or address == "::1"):
        return True
    headers = request.headers
    return "forwarded" in headers or "x-forwarded-for" in headers

"""HttpServer: the HTTP/1.1 front. Routes for GET and POST, WebSocket requests handed on, everything else refused.

The server knows what is served, where it listens, and which connections there are; what happens on one of them is in
`http_connection`, and how bytes become a request in `http1`.

A connection is an unfinished handshake until its request is all there. While there are more of those than
``unfinished_handshakes``, the oldest are dropped as long as they are older than a second, so that a flood of
connections that say nothing does not keep others out. A complete request waits for our answer and not for the peer:
it is bounded by its deadline, and by what the server that gets it admits.

A handler may answer with an `SseStream`, which then has the connection to itself, until the client goes or the server
closes: streams are closed with the server, whatever the shutdown hooks have left of them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import socket
import ssl as ssl_module
import sys
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, TypeVar, overload

from street_fast._core import LoopContext
from street_fast.errors import ConfigurationError, ListenError
from street_fast.handshake import is_websocket_request
from street_fast.http_connection import Handler, HttpConnection, UpgradeHandler
from street_fast.limits import Limits, checked_limits
from street_fast.listening import bind_unix, host_and_port, listen_error, remove_unix
from street_fast.request import Request, Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from street_fast.sse import SseStream

__all__ = ["HttpServer", "check_path", "method_not_allowed"]

logger = logging.getLogger("street_fast")

AnyHandler = TypeVar("AnyHandler", bound=Handler)

_NEVER_DROPPED_S = 1.0  # an unfinished handshake younger than this
_GLANCE_S = 0.02


class HttpServer:
    """An HTTP/1.1 server for a few routes, and the place to attach a WebSocket server to.

    A handler gets the `Request` and returns a `Response`, a str (plain text), bytes, dict or list (JSON), or an
    `SseStream`; it may be a coroutine function. One that raises is logged and answered with 500. Unknown paths get 404,
    other methods 405; HEAD is answered by the handler of GET. Raises ConfigurationError for `limits` that are none.
    """

    def __init__(self, *, limits: Limits | None = None) -> None:
        self.limits = checked_limits(limits)
        self.accepting = False  # whether it listens; answers say ``Connection: close`` when it does not
        self._routes: dict[str, dict[str, Handler]] = {}
        self._upgrades: dict[str, UpgradeHandler] = {}
        self._startup_hooks: list[Callable[[], Awaitable[None]]] = []
        self._shutdown_hooks: list[Callable[[], Awaitable[None]]] = []
        self._starting = asyncio.Lock()
        self._listeners: list[asyncio.AbstractServer] = []
        self._unix_sockets: list[tuple[str, os.stat_result]] = []
        self._connections: set[HttpConnection] = set()
        self._streams: set[SseStream] = set()
        self._unfinished: OrderedDict[HttpConnection, None] = OrderedDict()
        self._tls = False
        self._expecting = False  # it listens no more, but who was accepted before is let in
        self._closing = False
        self._closed: asyncio.Event = asyncio.Event()
        self._last_gone: asyncio.Event = asyncio.Event()

    # --- what is served ---

    @overload
    def get(self, path: str, handler: None = None) -> Callable[[AnyHandler], AnyHandler]: ...
    @overload
    def get(self, path: str, handler: AnyHandler) -> AnyHandler: ...
    def get(self, path: str, handler: AnyHandler | None = None) -> AnyHandler | Callable[[AnyHandler], AnyHandler]:
        """Serve GET (and HEAD) on exactly this path, as it is percent-decoded. A decorator without `handler`."""
        return self._route("GET", path, handler)

    @overload
    def post(self, path: str, handler: None = None) -> Callable[[AnyHandler], AnyHandler]: ...
    @overload
    def post(self, path: str, handler: AnyHandler) -> AnyHandler: ...
    def post(self, path: str, handler: AnyHandler | None = None) -> AnyHandler | Callable[[AnyHandler], AnyHandler]:
        """Serve POST on exactly this path; the body is in ``request.body``. A decorator without `handler`."""
        return self._route("POST", path, handler)

    def upgrade(self, path: str, handler: UpgradeHandler) -> None:
        """Hand the WebSocket requests on this path to `handler(upgrade)`, which answers now or later.

        So are all other requests on it that no route serves: `handshake.accept` knows the answers (426, 405).
        """
        _check_route(path, handler)
        if path in self._upgrades:
            raise ConfigurationError(f"upgrade(path={path!r}): a WebSocket server is attached to this path already")
        self._upgrades[path] = handler

    def on_startup(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await `callback()` in `listen()`, once, before anybody can connect; in the order of registration.

        What it raises, `listen` raises, and it is called again by the next.
        """
        self._startup_hooks.append(callback)

    def on_shutdown(self, callback: Callable[[], Awaitable[None]]) -> None:
        """Await `callback()` in `close()`, before connections are dropped; in the order of registration."""
        self._shutdown_hooks.append(callback)

    def _route(
        self, method: str, path: str, handler: AnyHandler | None
    ) -> AnyHandler | Callable[[AnyHandler], AnyHandler]:
        if handler is not None:
            self.add_route(method, path, handler)
            return handler
        if callable(path):
            raise ConfigurationError(f"@http.{method.lower()} needs a path: @http.{method.lower()}('/path')")
        check_path(path)

        def decorate(decorated: AnyHandler) -> AnyHandler:
            self.add_route(method, path, decorated)
            return decorated

        return decorate

    def add_route(self, method: str, path: str, handler: Handler) -> None:
        """Serve `method`, in capitals, on exactly this path; what `get` and `post` do."""
        _check_route(path, handler)
        routes = self._routes.setdefault(path, {})
        if method in routes:
            raise ConfigurationError(f"{method.lower()}(path={path!r}): this path has a handler already")
        routes[method] = handler

    # --- listening ---

    async def listen(
        self,
        host: str | None = "127.0.0.1",
        port: int = 3000,
        *,
        uds: str | os.PathLike[str] | None = None,
        sock: socket.socket | None = None,
        ssl: ssl_module.SSLContext | None = None,
        reuse_port: bool = False,
        backlog: int = 1024,
    ) -> None:
        """Accept connections on `host` and `port` (0: any free one, see `port`), on the Unix socket `uds`, or `sock`.

        `host` None means every interface. May be called more than once. The file of a Unix socket on which nobody
        listens any more is replaced, and goes away with the server. `sock` is bound already, by somebody who has
        others for the same address or gives it to several processes; it is closed here, and its file stays. Raises
        ListenError with one sentence if the address cannot be had, ConfigurationError for an address or an `ssl` that
        is none.
        """
        self._check_open()
        _check_socket(sock)
        path = _check_address(host, port, uds)
        if ssl is not None and not isinstance(ssl, ssl_module.SSLContext):
            raise ConfigurationError(f"listen(ssl={ssl!r}): must be an ssl.SSLContext with the certificate, or None")
        await self.start()
        self._check_open()
        loop = asyncio.get_running_loop()
        context = LoopContext.of(loop)
        options: dict[str, Any] = {"backlog": backlog}
        if ssl is not None:
            self._tls = True
            options |= {"ssl": ssl, "ssl_handshake_timeout": self.limits.handshake_timeout_s}
            if sys.version_info >= (3, 11) or not isinstance(loop, asyncio.BaseEventLoop):
                options["ssl_shutdown_timeout"] = self.limits.abort_timeout_s

        def accept() -> HttpConnection:
            return HttpConnection(self, context)

        self.accepting = True  # asyncio may accept before create_server() has returned
        try:
            if sock is None and path is not None:
                sock = bind_unix(path)
                if not path.startswith("\0"):
                    self._unix_sockets.append((path, os.stat(path)))
            if sock is not None:
                sock.setblocking(False)
                sock.listen(backlog)  # uvloop would not say that it fails
                if sys.platform != "win32" and sock.family == socket.AF_UNIX:
                    if sys.version_info >= (3, 13):
                        options["cleanup_socket"] = False  # that is our business, if it is
                    listener: asyncio.AbstractServer = await loop.create_unix_server(accept, sock=sock, **options)
                else:
                    listener = await loop.create_server(accept, sock=sock, **options)
            else:
                if reuse_port:
                    options["reuse_port"] = True
                listener = await loop.create_server(accept, host, port, **options)
        except (OSError, ValueError) as error:
            self.accepting = bool(self._listeners)
            if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
                host, port = sock.getsockname()[:2]
            raise listen_error(error, host, port, path) from error
        self._listeners.append(listener)
        if self._closing:  # meanwhile
            self.stop_accepting()
        self._check_open()

    def _check_open(self) -> None:
        if self._closing:
            raise ListenError("this HttpServer was closed; make a new one")

    @property
    def startup_hooks(self) -> list[Callable[[], Awaitable[None]]]:
        """What `listen` will await first."""
        return list(self._startup_hooks)

    async def start(self) -> None:
        """Run the startup hooks that have not been run. `listen` does so."""
        async with self._starting:
            while self._startup_hooks:
                await self._startup_hooks[0]()
                del self._startup_hooks[0]

    @property
    def sockets(self) -> list[Any]:
        """The listening sockets."""
        return [sock for listener in self._listeners for sock in getattr(listener, "sockets", ())]

    @property
    def addresses(self) -> str:
        """Where it listens, for people."""
        names = (sock.getsockname() for sock in self.sockets)
        return ", ".join(host_and_port(*name[:2]) if isinstance(name, tuple) else repr(name) for name in names)

    @property
    def port(self) -> int:
        """The port of the first TCP socket that it listens on; 0 if there is none."""
        ports = (sock.getsockname()[1] for sock in self.sockets if sock.family in (socket.AF_INET, socket.AF_INET6))
        return int(next(ports, 0))

    @property
    def connection_count(self) -> int:
        """Connections that speak HTTP at this moment; those that became WebSockets or streams do not count."""
        return len(self._connections)

    # --- the end ---

    def stop_accepting(self) -> None:
        """Close the listening sockets, and the connections without a request. Requests in progress are answered."""
        self._stop_listening()
        self._expecting = False
        for connection in list(self._connections):
            connection.close_if_idle()

    def _stop_listening(self) -> None:
        self.accepting = False
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()
        for path, made in self._unix_sockets:
            remove_unix(path, made)
        self._unix_sockets.clear()

    async def hand_over(self, grace_s: float = 1.0) -> None:
        """Stop listening where others go on accepting; what `close` does not: let in those who are on their way.

        A connection that was accepted last has not said yet what it wants, and its client would take it for a refusal
        if it were closed. Returns when there is none of those any more, after `grace_s` in any case. Then `close`.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        self._expecting = bool(self._listeners)
        self._stop_listening()
        while self._expecting and loop.time() < deadline:
            await asyncio.sleep(_GLANCE_S)  # at least once: the loop may have accepted what it has not told of yet
            if not (self._unfinished or self._tls):  # who is in a TLS handshake, we do not see
                break

    async def close(self) -> None:
        """Stop accepting, run the shutdown hooks, close the streams, let requests in progress finish, then drop what is
        left.

        Requests get ``shutdown_timeout_s`` after the hooks. A second call waits for the same end.
        """
        if self._closing:
            await self._closed.wait()
            return
        self._closing = True
        try:
            self.stop_accepting()
            for hook in self._shutdown_hooks:
                try:
                    await hook()
                except Exception:
                    logger.exception("a shutdown hook failed")
            for stream in list(self._streams):
                stream.close()
            for connection in list(self._connections):
                connection.close_if_idle(receiving=True)
            if self._connections or self._streams:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._last_gone.wait(), self.limits.shutdown_timeout_s)
        finally:
            for connection in list(self._connections):
                connection.abort()
            for stream in list(self._streams):
                stream.abort()
            await asyncio.sleep(0)  # the loop lets go of the sockets in its next turn
            self._closed.set()

    async def wait_closed(self) -> None:
        """Wait until somebody has called `close()` and it is through."""
        await self._closed.wait()

    # --- what a connection asks ---

    def handlers_of(self, path: str) -> dict[str, Handler] | None:
        """The handlers of a path by method, if it has any."""
        return self._routes.get(path)

    def serve(self, connection: HttpConnection, request: Request) -> None:
        """Find out who answers this request."""
        path = request.path
        routes = self.handlers_of(path)
        handler = routes.get("GET" if request.method == "HEAD" else request.method) if routes is not None else None
        upgrade = self._upgrades.get(path)
        if upgrade is not None and (handler is None or is_websocket_request(request)):
            connection.hand_on(request, upgrade)
        elif handler is not None:
            connection.run(request, handler)
        elif routes is not None:
            connection.respond(method_not_allowed(routes))
        else:
            connection.respond(Response.text("there is nothing at this path\n", 404))

    def connection_opened(self, connection: HttpConnection) -> None:
        """A connection was accepted."""
        self._connections.add(connection)
        self.request_begun(connection)
        if not (self.accepting or self._expecting):
            connection.abort()  # it was in its TLS handshake when stop_accepting() was called

    def request_begun(self, connection: HttpConnection) -> None:
        """A request is awaited, or its first byte is there."""
        unfinished = self._unfinished
        unfinished[connection] = None
        while len(unfinished) > self.limits.unfinished_handshakes:
            oldest = next(iter(unfinished))
            if connection.since - oldest.since < _NEVER_DROPPED_S:
                break
            del unfinished[oldest]
            oldest.abort()

    def request_complete(self, connection: HttpConnection) -> None:
        """The request is all there, or will not be."""
        self._unfinished.pop(connection, None)

    def connection_gone(self, connection: HttpConnection) -> None:
        """The connection was lost, or is a WebSocket's or a stream's now."""
        self._connections.discard(connection)
        self._unfinished.pop(connection, None)
        self._look_whether_all_are_gone()

    def stream_begins(self, stream: SseStream) -> None:
        """A handler answers with this stream, which is about to have a connection."""
        self._streams.add(stream)
        stream.add_close_callback(self._stream_ended)
        if self._closing:
            stream.close()

    def _stream_ended(self, stream: SseStream) -> None:
        self._streams.discard(stream)
        self._look_whether_all_are_gone()

    def _look_whether_all_are_gone(self) -> None:
        if self._closing and not (self._connections or self._streams):
            self._last_gone.set()


def method_not_allowed(handlers: dict[str, Handler]) -> Response:
    """The answer to a method that a path has no handler for."""
    allow = ", ".join("GET, HEAD" if method == "GET" else method for method in handlers)
    return Response.text(f"the methods of this path are {allow}\n", 405, [("Allow", allow)])


_NOT_IN_PATHS = re.compile(r"[?#{}*%\x00-\x1f\x7f]")


def check_path(path: object) -> None:
    """Raises ConfigurationError for what no request is meant to match: a query, a pattern, percent-encoding."""
    if not isinstance(path, str) or not path.startswith("/"):
        raise ConfigurationError(f"path={path!r}: must be a string that starts with '/'")
    found = _NOT_IN_PATHS.search(path)
    if found is not None:
        raise ConfigurationError(
            f"path={path!r}: must be without {found[0]!r}; paths are literal, as they are when percent-decoded, and "
            f"without the query"
        )


def _check_address(host: object, port: object, uds: object) -> str | None:
    """The path of the Unix socket, if there is one."""
    if host is not None and not isinstance(host, str):
        raise ConfigurationError(f"listen(host={host!r}): must be a name or an address, or None for every interface")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65_535:
        raise ConfigurationError(f"listen(port={port!r}): must be a whole number from 0 to 65535")
    if uds is None:
        return None
    path = os.fspath(uds) if isinstance(uds, os.PathLike) else uds
    if not isinstance(path, str):
        raise ConfigurationError(f"listen(uds={uds!r}): must be the path of a Unix socket, or None")
    return path


def _check_socket(sock: object) -> None:
    if sock is not None and (not isinstance(sock, socket.socket) or sock.type != socket.SOCK_STREAM):
        raise ConfigurationError(f"listen(sock={sock!r}): must be a bound stream socket, or None")


def _check_route(path: str, handler: object) -> None:
    check_path(path)
    if not callable(handler):
        raise ConfigurationError(f"the handler of {path!r} is {handler!r}: must be callable")

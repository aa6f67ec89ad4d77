"""A StreetWebSocketServer on the port of an aiohttp application: ``server.attach(app, handler)``; and plain routes.

    app = aiohttp.web.Application()
    server.attach(app, handler)
    aiohttp.web.run_app(app)

How. The application gets a GET route on the path of the server. When a WebSocket request arrives there, aiohttp's
RequestHandler is told that it has lost its connection, which is true: the transport and the bytes behind the request
go to the server. aiohttp drops its request, its tasks and its timers, as it does for every client that goes away, and
a WebSocket costs what it costs on our own HttpServer. Middlewares run before that and may refuse; what they do with
the response reaches nobody. Requests on the path that are no WebSocket requests get 426 from aiohttp.

* When the application shuts down (``on_shutdown``), the server is drained: clients see 1012.
* aiohttp's access log does not have these requests, as it cannot know how they were answered.
* Works with sub-applications, where the path is below the prefix, and with TLS.
* Plain routes (`add_routes`) are routes of the application. An event stream is given the transport as a WebSocket is,
  so what middlewares do with its response reaches nobody; it is closed when the application shuts down.

Used of aiohttp, besides its documented names: ``RequestHandler.set_parser``, which gives out the bytes behind an
upgrade, and its attributes ``transport`` and ``access_logger``. None of them is private.
"""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from street_fast._core import LoopContext
from street_fast.errors import ConfigurationError
from street_fast.handshake import is_websocket_request
from street_fast.http_server import HttpServer, check_path
from street_fast.integrations.handover import Handover, answer
from street_fast.request import Request
from street_fast.sse import SseStream

if TYPE_CHECKING:
    from collections.abc import Iterable

    from street_fast.http_connection import Handler, Route
    from street_fast.limits import Limits
    from street_fast.server import StreetWebSocketServer

__all__ = ["add_routes", "attach"]


def attach(server: StreetWebSocketServer, app: web.Application) -> None:
    """Serve the WebSocket clients of an aiohttp application on ``server.path``.

    Raises ConfigurationError if the application has started already, or has a GET route (or a server) there.
    """
    handover = Handover(server)
    try:
        app.router.add_get(server.path, functools.partial(_upgrade, handover))
    except RuntimeError as error:
        why = "the application has started" if app.frozen else "a WebSocket server, or a GET route, is there"
        raise ConfigurationError(f"path={server.path!r}: {why} already") from error

    async def drain(app: web.Application) -> None:
        await handover.close()

    app.on_shutdown.append(drain)


def add_routes(app: web.Application, routes: Iterable[Route], limits: Limits) -> HttpServer:
    """Serve plain routes. A body has ``limits.handshake_timeout_s`` to arrive, ``limits.request_body_bytes`` of room.

    What is returned has `on_startup` and `on_shutdown`, for when the application starts and shuts down. Raises
    ConfigurationError if the application has started already, or has one of the routes.
    """
    routes = list(routes)
    if app.frozen:
        raise ConfigurationError(f"path={routes[0][1]!r}: the application has started already")
    taken = {(resource.canonical, route.method) for resource in app.router.resources() for route in resource}
    for method, path, _ in routes:
        check_path(path)
        if not taken.isdisjoint({(path, method), (path, "*")}):
            raise ConfigurationError(f"path={path!r}: a {method} route is there already")
    front = HttpServer(limits=limits)
    for method, path, handler in routes:
        serve = functools.partial(_serve, front, handler)
        for each in ("GET", "HEAD") if method == "GET" else (method,):
            app.router.add_route(each, path, serve)

    async def start(app: web.Application) -> None:
        await front.start()

    async def close(app: web.Application) -> None:
        await front.close()

    app.on_startup.append(start)
    app.on_shutdown.append(close)
    return front


async def _serve(front: HttpServer, handler: Handler, request: web.Request) -> web.StreamResponse:
    """The handler of a plain route."""
    limits = front.limits
    try:
        body = await asyncio.wait_for(_read_body(request, limits.request_body_bytes), limits.handshake_timeout_s)
    except asyncio.TimeoutError:
        return _refuse(408, "the request did not come in time\n")
    except (web.RequestPayloadError, ConnectionError):
        return _refuse(400, "the body is not all there\n")
    if body is None:
        return _refuse(413, f"the body is over {limits.request_body_bytes} bytes\n")
    ours = _make_request(request, body)
    result = await answer(handler, ours)
    if isinstance(result, SseStream):
        return _stream(front, result, request)
    return web.Response(status=result.status, body=result.body, headers=result.headers)


async def _read_body(request: web.Request, limit: int) -> bytes | None:
    """None if it is over the limit."""
    body = b""
    async for part in request.content.iter_any():
        body += part
        if len(body) > limit:
            return None
    return body


def _refuse(status: int, text: str) -> web.Response:
    response = web.Response(status=status, text=text)
    response.force_close()
    return response


def _stream(front: HttpServer, stream: SseStream, request: web.Request) -> web.Response:
    """Give the transport to `stream`."""
    transport = request.transport
    if request.method == "HEAD":
        stream.abort()
        return web.Response(headers=stream.headers)
    if transport is None:
        stream.abort()
    else:
        _let_go(request.protocol)
        front.stream_begins(stream)
        stream.start(transport, stream.head(), LoopContext.of())
    return web.Response(status=101)  # to a client that is gone, as far as aiohttp knows


def _make_request(request: web.Request, body: bytes = b"") -> Request:
    peer = request.transport.get_extra_info("peername") if request.transport is not None else None
    return Request.from_pairs(
        request.method,
        request.raw_path,
        request.raw_headers,
        http_version=f"{request.version.major}.{request.version.minor}",
        client=(peer[0], peer[1]) if isinstance(peer, tuple) and len(peer) >= 2 else None,
        body=body,
    )


async def _upgrade(handover: Handover, request: web.Request) -> web.Response:
    """The handler of the route."""
    ours = Request.from_pairs(request.method, request.raw_path, request.raw_headers)
    if not is_websocket_request(ours):
        return web.Response(status=426, text="a WebSocket is served here\n", headers={"Upgrade": "websocket"})
    line = f"{ours.method} {ours.target} HTTP/{request.version.major}.{request.version.minor}"
    transport = request.transport
    if transport is not None:
        behind = _let_go(request.protocol)
        handover.adopt(transport, line.encode("utf-8", "surrogateescape") + ours.raw_headers + b"\r\n", behind)
    return web.Response(status=101)  # to a client that is gone, as far as aiohttp knows


def _let_go(protocol: web.RequestHandler) -> bytes:
    """Make aiohttp forget a connection; returns what it has read behind the request."""
    tail = _Tail()
    protocol.set_parser(cast("Any", tail))
    protocol.transport = None
    protocol.access_logger = None
    protocol.connection_lost(None)
    return tail.data


class _Tail:
    """A parser for the upgraded protocol that keeps what it is given."""

    def __init__(self) -> None:
        self.data = b""

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        """Nothing more comes: the connection is lost to aiohttp."""

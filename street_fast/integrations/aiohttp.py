"""A StreetWebSocketServer on the port of an aiohttp application: ``server.attach(app, handler)``.

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

Used of aiohttp, besides its documented names: ``RequestHandler.set_parser``, which gives out the bytes behind an
upgrade, and its attributes ``transport`` and ``access_logger``. None of them is private.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, cast

from aiohttp import web

from street_fast.errors import ConfigurationError
from street_fast.handshake import is_websocket_request
from street_fast.integrations.handover import Handover
from street_fast.request import Request

if TYPE_CHECKING:
    from street_fast.server import StreetWebSocketServer

__all__ = ["attach"]


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

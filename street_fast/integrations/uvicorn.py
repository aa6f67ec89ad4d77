"""A StreetWebSocketServer on the port of a uvicorn server: ``server.attach(config, handler)``; and plain routes.

The ASGI application keeps its HTTP side, and its own WebSockets on every other path.

    app = FastAPI()
    config = uvicorn.Config(app, port=8000)
    server.attach(config, handler)
    uvicorn.Server(config).run()

How. When a client asks for a WebSocket, uvicorn's HTTP protocol makes one of ``config.ws``, gives it the transport and
the head of the request, and sets it as the protocol of the transport. `_House` stands there instead and, one turn of
the loop later, gives the connection to the server of that path, or makes the WebSocket class that would have been
there without us and calls it as uvicorn does.

* The path is compared with the one in the request line; ``root_path`` is not part of that. Requests for these paths
  that are no WebSocket requests go to the application. ``ws="none"`` and the ``ws_*`` options do not concern us.
* When uvicorn shuts down, the server is drained (clients see 1012), at most for ``Limits.shutdown_timeout_s`` or
  uvicorn's ``timeout_graceful_shutdown``. All its connections count as one for ``limit_concurrency``.
* A client may send frames behind its request without waiting; uvicorn forgets them. They are looked up in the HTTP
  protocol: ``conn.trailing_data`` of h11; for httptools, a subclass keeps what is being parsed. Other HTTP protocols
  lose them.
* Plain routes (`add_routes`) stand in front of the application, see `asgi`. For an event stream, h11 and httptools are
  told that they have lost their connection; under other HTTP protocols it is a response of uvicorn's, and uvicorn waits
  for its client to go when it shuts down.
* A server lives in one process, so a Config with one attached cannot be sent to others (`workers`, `reload`): it
  raises ConfigurationError there. Let each process make its own Config and attach to it.

Used of uvicorn, besides the attributes of Config: ``HTTP_PROTOCOLS``, ``WS_PROTOCOLS`` and ``import_from_string``, to
find out what a name in a Config stands for; ``ServerState.connections`` and ``tasks``; of the HTTP protocols
``server_state``, ``conn`` and ``cycle.response_complete``; of their cycles ``transport`` and ``flow``. None is private.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NoReturn, cast

from httptools import HttpParserUpgrade
from uvicorn.config import HTTP_PROTOCOLS, WS_PROTOCOLS, Config
from uvicorn.importer import import_from_string
from uvicorn.lifespan.on import LifespanOn
from uvicorn.protocols.http.h11_impl import RequestResponseCycle as H11Cycle
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from street_fast.errors import ConfigurationError
from street_fast.integrations.asgi import AsgiRoutes
from street_fast.integrations.handover import Handover
from street_fast.request import Request, Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable

    from uvicorn.server import ServerState

    from street_fast.http_connection import Route
    from street_fast.limits import Limits
    from street_fast.server import StreetWebSocketServer

__all__ = ["add_routes", "attach"]

_ProtocolFactory = Callable[..., asyncio.Protocol]


def attach(server: StreetWebSocketServer, config: Config) -> None:
    """Serve the WebSocket clients of a uvicorn server on ``server.path``; before or after ``config.load()``.

    Raises ConfigurationError if a server is attached to that path already.
    """
    house = _house_of(config)
    if server.path in house.guests:
        raise ConfigurationError(f"path={server.path!r}: a WebSocket server is attached to this path already")
    house.guests[server.path] = _Guests(server)


def add_routes(config: Config, routes: Iterable[Route], limits: Limits) -> AsgiRoutes:
    """Serve plain routes in front of the application; before or after ``config.load()``.

    What is returned has `on_startup` and `on_shutdown`, and keeps them with the lifespan of uvicorn, whether the
    application has one or not. Raises ConfigurationError if a path has routes here already.
    """
    routes = list(routes)
    house = _house_of(config)
    for _, path, _ in routes:
        if any(other.handlers_of(path) is not None for other in house.routes):
            raise ConfigurationError(f"path={path!r}: there are routes on this path already")
    front = _Routes(routes, limits, str(config.lifespan))
    house.routes.append(front)
    options: Any = config
    if config.lifespan == "off":
        options.lifespan = "on"
        options.lifespan_class = LifespanOn
    if config.loaded:
        options.loaded_app = front.wrap(config.loaded_app)
        return front
    load = config.load

    def load_and_wrap() -> None:
        load()
        options.loaded_app = front.wrap(options.loaded_app)

    options.load = load_and_wrap
    return front


def _house_of(config: Config) -> _House:
    house: object = config.ws_protocol_class if config.loaded else config.ws
    return house if isinstance(house, _House) else _install(config)


def _install(config: Config) -> _House:
    options: Any = config
    if config.loaded:
        house = _House(config.ws_protocol_class)
        options.ws_protocol_class = house
        options.http_protocol_class = _keeping_the_tail(config.http_protocol_class)
        return house
    if config.interface == "wsgi":
        raise ConfigurationError(
            "interface='wsgi': uvicorn.Config.load() removes WebSockets then; call it before attach()"
        )
    house = _House(import_from_string(WS_PROTOCOLS.get(options.ws, options.ws)))
    options.ws = house
    options.http = _keeping_the_tail(import_from_string(HTTP_PROTOCOLS.get(options.http, options.http)))
    return house


def _keeping_the_tail(http: type[asyncio.Protocol]) -> type[asyncio.Protocol]:
    return _HttpToolsProtocol if http is HttpToolsProtocol else http


class _Guest:
    """One member of ``server_state.connections``, for all connections that somebody has."""

    def __init__(self, close: Callable[[], Awaitable[None]]) -> None:
        self._close = close
        self._state: ServerState | None = None
        self._told = False

    def check_in(self, state: ServerState) -> None:
        """Make uvicorn tell us when it shuts down, and wait for us then."""
        if not self._told:
            self._state = state
            state.connections.add(cast("Any", self))

    def shutdown(self) -> None:
        """uvicorn begins to shut down."""
        assert self._state is not None
        self._told = True
        task = asyncio.get_running_loop().create_task(self._check_out(self._state))
        self._state.tasks.add(task)  # cancelled if it takes too long
        task.add_done_callback(self._state.tasks.discard)

    async def _check_out(self, state: ServerState) -> None:
        try:
            await self._close()
        finally:
            state.connections.discard(cast("Any", self))


class _Guests(Handover):
    """The connections of one WebSocket server."""

    def __init__(self, server: StreetWebSocketServer) -> None:
        super().__init__(server)
        self.guest = _Guest(self.close)


class _Routes(AsgiRoutes):
    """Plain routes, and their event streams."""

    def __init__(self, routes: Iterable[Route], limits: Limits, lifespan: str) -> None:
        super().__init__(routes, limits, lifespan)
        self._guest = _Guest(self.close)

    def let_go(self, send: object) -> asyncio.Transport | None:
        cycle = getattr(send, "__self__", None)
        if not isinstance(cycle, (RequestResponseCycle, H11Cycle)) or cycle.transport.is_closing():
            return None
        transport = cycle.transport
        http: Any = transport.get_protocol()
        self._guest.check_in(http.server_state)
        cycle.flow.resume_reading()  # it pauses behind a pipelined request, and an end could not be seen
        http.connection_lost(ConnectionAbortedError("an event stream takes the connection over"))
        return transport


class _House:
    """What stands for the WebSocket class in a Config: `guests` by path, and for all other paths `other`.

    `routes` are the plain ones.
    """

    def __init__(self, other: _ProtocolFactory | None) -> None:
        self.other = other
        self.guests: dict[str, _Guests] = {}
        self.routes: list[_Routes] = []

    def __call__(self, *, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> _Crossing:
        return _Crossing(self, config, server_state, app_state)

    def __reduce__(self) -> NoReturn:
        raise ConfigurationError(
            "a uvicorn.Config with a StreetWebSocketServer attached cannot be sent to other processes (workers, "
            "reload): let each process make its own Config and attach to it"
        )


class _Crossing(asyncio.Protocol):
    """The protocol between HTTP and WebSocket, for one turn of the loop: until uvicorn has let go of the transport."""

    _transport: asyncio.Transport
    _http: Any

    def __init__(self, house: _House, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        self._house = house
        self._config = config
        self._server_state = server_state
        self._app_state = app_state
        self._received: list[bytes] = []  # the head of the request, and what came since
        self._behind = b""  # what came with the request

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        if not self._received:
            self._http = self._transport.get_protocol()
            self._behind = _tail_of(self._http)
            asyncio.get_running_loop().call_soon(self._arrive)
        self._received.append(data)

    def _arrive(self) -> None:
        transport, head = self._transport, self._received[0]
        if transport.is_closing():
            return
        guests = self._house.guests.get(_path_of(head))
        if guests is None:
            self._continue_without_us()
        elif _is_answering(self._http):
            # The request before it, in the same segment, has no answer yet (httptools); it would become part of ours.
            transport.set_protocol(self._http)
            transport.close()
        else:
            guests.guest.check_in(self._server_state)
            guests.adopt(transport, head, b"".join([self._behind, *self._received[1:]]))

    def _continue_without_us(self) -> None:
        transport = self._transport
        if self._house.other is None:
            transport.write(Response.text("there is no WebSocket at this path\n", 404).encode(keep_alive=False))
            transport.close()
            return
        protocol = self._house.other(config=self._config, server_state=self._server_state, app_state=self._app_state)
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        for data in self._received:
            protocol.data_received(data)


def _path_of(head: bytes) -> str:
    """The path in the request line, as the servers compare it."""
    return Request("GET", head.split(b" ", 2)[1].decode("latin-1")).path


def _is_answering(http: Any) -> bool:
    cycle = getattr(http, "cycle", None)
    return cycle is not None and not cycle.response_complete


def _tail_of(http: Any) -> bytes:
    """What uvicorn's HTTP protocol has read behind the request that it is handing over."""
    if isinstance(http, _HttpToolsProtocol):
        return http.tail()
    trailing = getattr(getattr(http, "conn", None), "trailing_data", None)
    return trailing[0] if isinstance(trailing, tuple) else b""


class _HttpToolsProtocol(HttpToolsProtocol):
    """Knows what is being parsed, so that the end of it can be had."""

    _segment = b""

    def data_received(self, data: bytes) -> None:
        self._segment = data
        super().data_received(data)
        self._segment = b""

    def tail(self) -> bytes:
        """What is behind the upgrade request. To be called while uvicorn handles the parser's HttpParserUpgrade."""
        error = sys.exc_info()[1]
        return self._segment[error.args[0] :] if isinstance(error, HttpParserUpgrade) else b""

"""attach() to uvicorn, with real clients: under both of its HTTP protocols, on both event loops."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pickle
import socket
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from fastapi import FastAPI, WebSocket
from fastapi import Request as HttpRequest
from fastapi.responses import PlainTextResponse
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from street_fast._core import LoopContext, encode_frame
from street_fast.auth import Member
from street_fast.errors import ConfigurationError
from street_fast.limits import Limits
from street_fast.server import StreetWebSocketServer
from tests.http_harness import Wire, handshake, head, parse, settle

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from street_fast.request import Request
    from street_fast.street_socket import StreetSocket

FAST = Limits(shutdown_timeout_s=5, shutdown_batch_interval_s=0.01, abort_timeout_s=0.5)
HTTP = ["h11", "httptools"]


def application() -> FastAPI:
    """What the application has of its own: a page, a slow page, a WebSocket, and a note of its shutdown."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> Any:
        yield
        app.state.ended = True

    app = FastAPI(lifespan=lifespan)
    app.state.ended = False
    app.state.release = asyncio.Event()

    @app.get("/page")
    async def page() -> PlainTextResponse:
        return PlainTextResponse("a page")

    @app.get("/slow")
    async def slow(request: HttpRequest) -> PlainTextResponse:
        await app.state.release.wait()
        app.state.client_gone = await request.is_disconnected()
        return PlainTextResponse("a slow page")

    @app.websocket("/own")
    async def own(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(f"own {text}")

    return app


def echo(socket: StreetSocket, request: Request) -> None:
    socket.on("echo", lambda data: socket.emit("echo", data))


def echo_event(data: object) -> bytes:
    """A frame with an event that `echo` answers."""
    return encode_frame(1, json.dumps({"type": "echo", "data": data}).encode(), mask=b"\1\2\3\4")


class Site:
    """uvicorn with `application` and a StreetWebSocketServer on /ws, running in this loop."""

    def __init__(self, http: str = "httptools", *, uds: str | None = None, tls: Any = None, **options: Any) -> None:
        self.app = application()
        self.server = StreetWebSocketServer(path="/ws", limits=options.pop("limits", FAST), **options.pop("server", {}))
        options = {"log_config": None, "port": 0, "http": http, **options}
        self.config = uvicorn.Config(self.app, uds=uds, **(tls or {}), **options)
        self.uvicorn = uvicorn.Server(self.config)
        self.handler: Any = echo

    async def __aenter__(self) -> Site:  # noqa: PYI034
        self.server.attach(self.config, self.handler)
        self.running = asyncio.get_running_loop().create_task(self.uvicorn.serve())
        while not self.uvicorn.started:
            await asyncio.sleep(0.005)
            assert not self.running.done()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """As SIGTERM does. Fails if uvicorn does not come to its end."""
        self.uvicorn.should_exit = True
        await asyncio.wait_for(asyncio.shield(self.running), 20)
        assert self.uvicorn.server_state.connections == set()
        assert self.uvicorn.server_state.tasks == set()

    @property
    def port(self) -> int:
        return int(self.uvicorn.servers[0].sockets[0].getsockname()[1])

    def client(self, path: str = "/ws", **options: Any) -> connect:
        scheme = "wss" if "ssl" in options else "ws"
        return connect(f"{scheme}://127.0.0.1:{self.port}{path}", compression=None, **options)

    async def exchange(self, *pieces: bytes, apart: bool = False) -> bytes:
        """Send `pieces` and read until the server closes."""
        async with self.raw() as (reader, writer):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0.01 if apart else 0)
            return await asyncio.wait_for(reader.read(), 20)

    @contextlib.asynccontextmanager
    async def raw(self) -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        try:
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


async def until(condition: Callable[[], object]) -> None:
    """Waits for something that is about to happen; fails after five seconds."""
    for _ in range(4_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")


async def event(ws: ClientConnection) -> Any:
    return json.loads(await asyncio.wait_for(ws.recv(), 20))


async def close_code(ws: ClientConnection) -> int:
    await asyncio.wait_for(ws.wait_closed(), 20)
    assert ws.close_code is not None
    return ws.close_code


async def refused(connecting: connect) -> Any:
    """The response to a handshake that is refused."""
    with pytest.raises(InvalidStatus) as caught:
        async with connecting:
            pass
    return caught.value.response


@pytest.fixture(params=HTTP)
def http(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def in_use() -> tuple[int, int]:
    """Tasks and descriptors."""
    descriptors = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    return len(asyncio.all_tasks()), len(descriptors)


# --- who gets what --------------------------------------------------------------------------------------------------


@pytest.mark.both_loops
async def test_one_port_for_the_application_and_for_us(http: str) -> None:
    async with Site(http) as site:
        answer = parse(await site.exchange(head("GET", "/page", "Connection: close")))[0]
        assert (answer.status, answer.body) == (200, b"a page")
        async with site.client("/own") as own, site.client() as ours:
            await own.send("1")
            await ours.send('{"type":"echo","data":2}')
            assert await own.recv() == "own 1"
            assert await event(ours) == {"type": "echo", "data": 2}
            assert site.server.connection_count == 1
        await until(lambda: site.server.connection_count == 0)
        assert (await refused(site.client("/none"))).status_code == 403  # FastAPI's answer


@pytest.mark.parametrize("ws", ["auto", "websockets-sansio", "wsproto"])
async def test_other_paths_get_the_websocket_class_of_the_config(ws: str) -> None:
    if ws == "wsproto":
        pytest.importorskip("wsproto")
    async with Site(ws=ws) as site, site.client("/own") as own, site.client() as ours:
        await own.send("1")
        assert await own.recv() == "own 1"
        await ours.send('{"type":"echo","data":2}')
        assert (await event(ours))["data"] == 2


async def test_without_a_websocket_class_only_ours_is_there(http: str) -> None:
    async with Site(http, ws="none") as site:
        assert (await refused(site.client("/own"))).status_code == 404
        async with site.client() as ours:
            await ours.send('{"type":"echo","data":2}')
            assert (await event(ours))["data"] == 2


async def test_the_request_and_its_client(http: str) -> None:
    seen: list[Request] = []
    site = Site(http, root_path="/api")
    site.handler = lambda socket, request: seen.append(request)
    async with site:
        async with site.client("/%77s?user=ann&x=%C3%A4", additional_headers={"Cookie": "a=b"}) as ws:
            await until(lambda: seen)
            (request,) = seen
            assert (request.path, request.query["x"], request.cookies["a"]) == ("/ws", "ä", "b")
            assert request.client == ws.local_address
        assert (await refused(site.client("/ws/"))).status_code == 403


async def test_a_second_request_on_a_connection(http: str) -> None:
    async with Site(http) as site, site.raw() as (reader, writer):
        writer.write(head("GET", "/page"))
        await reader.readuntil(b"a page")
        (waiting,) = site.uvicorn.server_state.connections
        assert getattr(waiting, "_segment", b"") == b""
        writer.write(handshake("/ws"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        writer.write(echo_event(1))
        assert (await reader.readexactly(2))[0] == 0x81


async def test_a_request_on_our_path_that_is_no_websocket_request_is_the_applications(http: str) -> None:
    async with Site(http) as site:
        answer = parse(await site.exchange(head("GET", "/ws", "Connection: close")))[0]
        assert (answer.status, answer.body) == (404, b'{"detail":"Not Found"}')


# --- bytes behind the request ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 40, -30, -3], ids=str)
@pytest.mark.both_loops
async def test_frames_that_come_with_the_request_are_kept(http: str, cut: int) -> None:
    async with Site(http) as site, site.raw() as (reader, writer):
        data = handshake("/ws") + echo_event("one") + echo_event("two")
        for piece in filter(None, [data[:cut], data[cut:]]):
            writer.write(piece)
            await asyncio.sleep(0.02)
        await reader.readuntil(b"\r\n\r\n")
        expected = b"".join(encode_frame(1, b'{"type":"echo","data":"%s"}' % word) for word in (b"one", b"two"))
        assert await asyncio.wait_for(reader.readexactly(len(expected)), 20) == expected


@pytest.mark.both_loops
async def test_frames_that_come_while_the_client_is_authenticated_are_kept_in_order(http: str) -> None:
    decided = asyncio.Event()
    asked = asyncio.Event()

    async def authenticate(request: Request) -> Member | None:
        asked.set()
        await decided.wait()
        return Member("ann")

    async with Site(http, server={"authenticate": authenticate}) as site, site.raw() as (reader, writer):
        events = [echo_event(number) for number in range(200)]
        writer.write(handshake("/ws") + events[0])
        await asyncio.wait_for(asked.wait(), 20)
        for frame in events[1:]:
            writer.write(frame)
        await asyncio.sleep(0.05)
        decided.set()
        await reader.readuntil(b"\r\n\r\n")
        numbers = []
        while len(numbers) < 20:  # above its rate the socket gets errors
            length = (await reader.readexactly(2))[1]
            numbers.append(json.loads(await reader.readexactly(length))["data"])
        assert numbers == list(range(20))


async def test_a_request_that_is_not_answered_yet_is_not_overtaken(http: str) -> None:
    """Two requests in one segment. h11 waits with the second; httptools does not, and the connection is given up."""
    async with Site(http) as site, site.raw() as (reader, writer):
        writer.write(head("GET", "/slow") + handshake("/ws"))
        if http == "httptools":
            assert await asyncio.wait_for(reader.read(), 20) == b""
        site.app.state.release.set()
        await until(lambda: hasattr(site.app.state, "client_gone"))
        data = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n") if http == "h11" else reader.read(), 20)
        assert site.app.state.client_gone == (http == "httptools")
        if http == "h11":
            data += await reader.readexactly(len(b"a slow page"))
            data += await reader.readuntil(b"\r\n\r\n")
            assert data.index(b"a slow page") < data.index(b"HTTP/1.1 101 ")
        else:
            assert b"101" not in data
            assert site.server.connection_count == 0


# --- who does not get in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (handshake("/ws", Origin="http://evil.example"), 403),
        (handshake("/ws", Sec_WebSocket_Key="short"), 400),
        (handshake("/ws", Sec_WebSocket_Version="12"), 426),
        (handshake("/ws", "Content-Length: 4") + b"body", 400),
        (handshake("/ws", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (handshake("/ws", "Cookie: " + 9_000 * "a"), 431),
        (handshake("/ws").replace(b"GET", b"POST"), 405),
    ],
    ids=["origin", "key", "version", "body", "chunks", "long line", "method"],
)
async def test_a_refusal_ends_the_connection_and_nothing_behind_it_is_served(
    http: str, data: bytes, status: int
) -> None:
    async with Site(http) as site:
        behind = head("GET", "/page")
        answers = parse(await site.exchange(data + behind, behind, apart=True))
        assert [(answer.status, answer.closes) for answer in answers] == [(status, True)]
        assert site.server.connection_count == 0


@pytest.mark.both_loops
async def test_a_client_that_leaves_while_it_is_authenticated_leaves_nothing(http: str) -> None:
    waiting: list[object] = []

    async def authenticate(request: Request) -> Member | None:
        waiting.append(request)
        try:
            await asyncio.sleep(3_600)
        finally:
            waiting.remove(request)
        return None

    async with Site(http, server={"authenticate": authenticate}) as site:
        await asyncio.sleep(0)
        before = in_use()
        for abort in (False, True):
            async with site.raw() as (_, writer):
                writer.write(handshake("/ws"))
                await until(lambda: waiting)
                if abort:
                    writer.transport.abort()
            await until(lambda: not waiting)
        await until(lambda: in_use() == before)
        assert site.server.connection_count == 0
        assert len(LoopContext.of().wheel) == 0


async def test_the_handshake_has_a_deadline(http: str) -> None:
    async def authenticate(request: Request) -> Member | None:
        await asyncio.sleep(3_600)
        return None

    limits = Limits(handshake_timeout_s=0.1, abort_timeout_s=0.5)
    async with Site(http, limits=limits, server={"authenticate": authenticate}) as site:
        answers = parse(await site.exchange(handshake("/ws")))
        assert [answer.status for answer in answers] == [503]


async def test_above_its_capacity(http: str) -> None:
    async with Site(http, server={"max_connections": 1}) as site, site.client():
        response = await refused(site.client())
        assert response.status_code == 503
        assert int(response.headers["Retry-After"]) >= 1


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.both_loops
async def test_a_shutdown_tells_the_clients_and_waits_for_them(http: str) -> None:
    asked = asyncio.Event()

    async def authenticate(request: Request) -> Member | None:
        if "wait" in request.query:
            asked.set()
            await asyncio.sleep(3_600)
        return Member("ann")

    async with Site(http, server={"authenticate": authenticate}) as site:
        ended_first: list[bool] = []
        clients = [await site.client() for _ in range(3)]
        for socket_ in site.server.clients:
            socket_.on("close", lambda code, reason: ended_first.append(site.app.state.ended))
        async with site.raw() as (reader, writer):
            writer.write(handshake("/ws?wait"))
            await asyncio.wait_for(asked.wait(), 20)
            stopping = asyncio.ensure_future(site.stop())
            assert [await close_code(ws) for ws in clients] == [1012] * 3
            assert parse(await asyncio.wait_for(reader.read(), 20))[0].status == 503
        await stopping
        assert ended_first == [False] * 3
        assert site.app.state.ended
        assert site.server.connection_count == 0


async def test_a_shutdown_without_any_client(http: str) -> None:
    async with Site(http) as site:
        await site.stop()


async def test_a_shutdown_after_the_last_client(http: str) -> None:
    async with Site(http) as site:
        async with site.client():
            assert site.uvicorn.server_state.connections != set()
        await site.stop()


async def test_a_client_that_never_answers_the_close_does_not_hang_the_shutdown(http: str) -> None:
    limits = Limits(shutdown_timeout_s=0.3, abort_timeout_s=0.2)
    async with Site(http, limits=limits) as site, site.raw() as (reader, writer):
        writer.write(handshake("/ws"))
        await reader.readuntil(b"\r\n\r\n")
        await site.stop()
        assert (await reader.read())[:1] == b"\x88"


async def test_uvicorn_may_give_up_waiting() -> None:
    async with Site(limits=Limits(shutdown_timeout_s=60), timeout_graceful_shutdown=1) as site:
        async with site.raw() as (reader, writer):
            writer.write(handshake("/ws"))
            await reader.readuntil(b"\r\n\r\n")
            await site.stop()
            assert site.server.connection_count == 1
        await asyncio.wait_for(site.server.close(), 20)


async def test_a_client_that_comes_late_is_told_so(crossing: Any) -> None:
    site, wire, protocol = crossing
    (guests,) = site.config.ws.guests.values()
    guests.guest.check_in(site.uvicorn.server_state)
    guests.guest.shutdown()
    await until(lambda: not site.uvicorn.server_state.connections)
    protocol.data_received(handshake("/ws"))
    await until(lambda: wire.taken)
    assert parse(wire.taken)[0].status == 503
    assert site.uvicorn.server_state.connections == set()  # nobody would call shutdown() again


# --- the turn of the loop between HTTP and WebSocket ----------------------------------------------------------------


@pytest.fixture
async def crossing() -> tuple[Site, Wire, asyncio.Protocol]:
    """What uvicorn makes for an upgrade, on a wire of the test. The site does not run."""

    class UvicornWire(Wire):
        def get_protocol(self) -> asyncio.Protocol:
            return asyncio.Protocol()

        def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
            pass

        def resume_reading(self) -> None:
            pass

    site = Site()
    site.server.attach(site.config, site.handler)
    wire = UvicornWire(asyncio.get_running_loop())
    protocol = site.config.ws(config=site.config, server_state=site.uvicorn.server_state, app_state={})
    protocol.connection_made(wire)
    wire.set_protocol(protocol)
    return site, wire, protocol


async def test_what_is_read_in_that_turn_is_kept(crossing: Any) -> None:
    _, wire, protocol = crossing
    protocol.data_received(handshake("/ws"))
    protocol.data_received(echo_event("one"))
    protocol.data_received(echo_event("two"))
    await until(lambda: b"two" in wire.taken)
    assert wire.taken.index(b"one") < wire.taken.index(b"two")
    wire.abort()
    await settle()


@pytest.mark.parametrize("path", ["/ws", "/own"])
async def test_a_client_that_leaves_in_that_turn_leaves_nothing(crossing: Any, path: str) -> None:
    site, wire, protocol = crossing
    protocol.data_received(handshake(path))
    wire.abort()
    await settle()
    assert site.uvicorn.server_state.connections == set()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert wire.protocol is protocol


# --- transports -----------------------------------------------------------------------------------------------------


@pytest.mark.both_loops
async def test_tls(http: str, certificate: Any) -> None:
    context = certificate.client
    tls = {"ssl_keyfile": str(certificate.key), "ssl_certfile": str(certificate.chain)}
    async with Site(http, tls=tls) as site:
        async with site.client("/own", ssl=context) as own, site.client(ssl=context) as ours:
            await own.send("1")
            assert await own.recv() == "own 1"
            await ours.send(json.dumps({"type": "echo", "data": 60_000 * "x"}))
            assert len((await event(ours))["data"]) == 60_000
        refusal = await refused(site.client(ssl=context, origin="https://evil.example"))
        assert (refusal.status_code, refusal.headers["Connection"]) == (403, "close")
        ws = await site.client(ssl=context)
        stopping = asyncio.ensure_future(site.stop())
        assert await close_code(ws) == 1012
        await stopping


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="Unix sockets")
async def test_a_unix_socket(http: str, tmp_path: Path) -> None:
    seen: list[Request] = []
    site = Site(http, uds=str(tmp_path / "s"))
    site.handler = lambda socket, request: seen.append(request)
    async with site:
        reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
        writer.write(handshake("/ws"))
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert seen[0].client is None
        writer.close()
        await writer.wait_closed()


# --- attaching ------------------------------------------------------------------------------------------------------


async def test_a_config_that_is_loaded_already(http: str) -> None:
    site = Site(http)
    site.config.load()
    async with site, site.raw() as (reader, writer):
        writer.write(handshake("/ws") + echo_event(1))
        await reader.readuntil(b"\r\n\r\n")
        assert (await reader.readexactly(2))[0] == 0x81
        async with site.client("/own") as own:
            await own.send("1")
            assert await own.recv() == "own 1"


async def test_two_servers_on_one_config(http: str) -> None:
    other = StreetWebSocketServer(path="/other", limits=FAST)
    site = Site(http)
    other.attach(site.config, lambda socket, request: socket.emit("other"))
    async with site, site.client("/other") as ws, site.client() as ours:
        assert await event(ws) == {"type": "other"}
        assert (other.connection_count, site.server.connection_count) == (1, 1)
        stopping = asyncio.ensure_future(site.stop())
        assert [await close_code(ws), await close_code(ours)] == [1012, 1012]
        await stopping


def test_one_path_has_one_server() -> None:
    config = uvicorn.Config(application(), log_config=None)
    StreetWebSocketServer(path="/ws").attach(config, echo)
    with pytest.raises(ConfigurationError, match=r"path='/ws': .* already"):
        StreetWebSocketServer(path="/ws").attach(config, echo)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
async def test_a_wsgi_application() -> None:
    def page(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "6")])
        return [b"a page"]

    site = Site(interface="wsgi")
    site.config.app = page
    with pytest.raises(ConfigurationError, match=r"interface='wsgi': .* before attach\(\)"):
        StreetWebSocketServer(path="/other").attach(site.config, echo)
    site.config.load()
    async with site, site.client() as ws:
        await ws.send('{"type":"echo","data":2}')
        assert (await event(ws))["data"] == 2
        assert parse(await site.exchange(head("GET", "/", "Connection: close")))[0].body == b"a page"


def test_the_config_does_not_go_to_other_processes() -> None:
    config = uvicorn.Config("module:app", log_config=None, workers=2)
    StreetWebSocketServer(path="/ws").attach(config, echo)
    with pytest.raises(ConfigurationError, match="other processes"):
        pickle.dumps(config)

"""attach() to aiohttp, with real clients: what aiohttp keeps, what it must let go of."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import os
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from street_fast._core import LoopContext, encode_frame
from street_fast.auth import Member
from street_fast.errors import ConfigurationError
from street_fast.limits import Limits
from street_fast.server import StreetWebSocketServer
from tests.http_harness import handshake, head, parse

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

    from street_fast._core import WebSocket
    from street_fast.request import Request
    from street_fast.street_socket import StreetSocket

FAST = Limits(shutdown_timeout_s=5, shutdown_batch_interval_s=0.01, abort_timeout_s=0.5)
MASK = b"\1\2\3\4"


def echo(socket: StreetSocket, request: Request) -> None:
    socket.on("echo", lambda data: socket.emit("echo", data))


def echo_event(data: object) -> bytes:
    """A frame with an event that `echo` answers."""
    return encode_frame(1, json.dumps({"type": "echo", "data": data}).encode(), mask=MASK)


async def page(request: web.Request) -> web.Response:
    return web.Response(text="a page")


async def own(request: web.Request) -> web.WebSocketResponse:
    websocket = web.WebSocketResponse()
    await websocket.prepare(request)
    async for message in websocket:
        await websocket.send_str(f"own {message.data}")
    return websocket


class Site:
    """An aiohttp application with a StreetWebSocketServer on /ws, running in this loop."""

    def __init__(
        self, *, tls: ssl.SSLContext | None = None, runner: dict[str, Any] | None = None, **server: Any
    ) -> None:
        self.app = web.Application()
        self.app.router.add_get("/page", page)
        self.app.router.add_get("/own", own)
        self.server = StreetWebSocketServer(**{"path": "/ws", "limits": FAST, **server})
        self.handler: Any = echo
        self.attach_to = self.app
        self._options = {"access_log": None, "shutdown_timeout": 3.0, **(runner or {})}
        self._tls = tls

    async def __aenter__(self) -> Site:  # noqa: PYI034
        if self.handler is not None:
            self.server.attach(self.attach_to, self.handler)
        self.runner = web.AppRunner(self.app, **self._options)
        await self.runner.setup()
        await web.TCPSite(self.runner, "127.0.0.1", 0, ssl_context=self._tls).start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.stop()

    async def stop(self) -> None:
        """As run_app() does at SIGTERM. Fails if it does not come to its end."""
        await asyncio.wait_for(self.runner.cleanup(), 20)

    @property
    def port(self) -> int:
        return int(self.runner.addresses[0][1])

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


def in_use() -> tuple[int, int]:
    """Tasks and descriptors."""
    descriptors = os.listdir("/proc/self/fd") if os.path.isdir("/proc/self/fd") else []
    return len(asyncio.all_tasks()), len(descriptors)


def things_of_aiohttp() -> int:
    """Objects that aiohttp makes for each connection or request."""
    kinds = (web.BaseRequest, web.RequestHandler, web.StreamResponse)
    return sum(isinstance(thing, kinds) for thing in gc.get_objects())


# --- who gets what --------------------------------------------------------------------------------------------------


@pytest.mark.both_loops
async def test_one_port_for_the_application_and_for_us() -> None:
    async with Site() as site:
        answer = parse(await site.exchange(head("GET", "/page", "Connection: close")))[0]
        assert (answer.status, answer.body) == (200, b"a page")
        async with site.client("/own") as theirs, site.client() as ours:
            await theirs.send("1")
            await ours.send('{"type":"echo","data":2}')
            assert await theirs.recv() == "own 1"
            assert await event(ours) == {"type": "echo", "data": 2}
            assert site.server.connection_count == 1
        await until(lambda: site.server.connection_count == 0)
        assert (await refused(site.client("/none"))).status_code == 404


async def test_the_request_and_its_client() -> None:
    seen: list[Request] = []
    site = Site()
    site.handler = lambda socket, request: seen.append(request)
    async with site, site.client("/%77s?user=ann&x=%C3%A4", additional_headers={"Cookie": "a=b"}) as ws:
        await until(lambda: seen)
        (request,) = seen
        assert (request.path, request.query["x"], request.cookies["a"]) == ("/ws", "ä", "b")
        assert request.client == ws.local_address


async def test_below_the_prefix_of_a_subapplication() -> None:
    site = Site()
    site.attach_to = web.Application()
    async with contextlib.AsyncExitStack() as stack:
        site.server.attach(site.attach_to, echo)
        site.handler = None
        site.app.add_subapp("/api", site.attach_to)
        await stack.enter_async_context(site)
        ws = await stack.enter_async_context(site.client("/api/ws"))
        await ws.send('{"type":"echo","data":2}')
        assert (await event(ws))["data"] == 2
        stopping = asyncio.ensure_future(site.stop())
        assert await close_code(ws) == 1012
        await stopping


async def test_a_second_request_on_a_connection() -> None:
    async with Site() as site, site.raw() as (reader, writer):
        writer.write(head("GET", "/page") + handshake("/ws") + echo_event(1))
        await reader.readuntil(b"a page")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        assert (await reader.readexactly(2))[0] == 0x81


async def test_a_request_on_our_path_that_is_no_websocket_request() -> None:
    async with Site() as site, site.raw() as (reader, writer):
        for _ in range(2):  # it is HTTP, and stays so
            writer.write(head("GET", "/ws"))
            (answer,) = parse((await reader.readuntil(b"\r\n\r\n")) + await reader.readuntil(b"\n"))
            assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")


# --- bytes behind the request ---------------------------------------------------------------------------------------


@pytest.mark.both_loops
@pytest.mark.parametrize("cut", [0, 1, 40, -30, -3], ids=str)
async def test_frames_that_come_with_the_request_are_kept(cut: int) -> None:
    async with Site() as site, site.raw() as (reader, writer):
        data = handshake("/ws") + echo_event("one") + echo_event("two")
        for piece in filter(None, [data[:cut], data[cut:]]):
            writer.write(piece)
            await asyncio.sleep(0.02)
        await reader.readuntil(b"\r\n\r\n")
        expected = b"".join(encode_frame(1, b'{"type":"echo","data":"%s"}' % word) for word in (b"one", b"two"))
        assert await asyncio.wait_for(reader.readexactly(len(expected)), 20) == expected


@pytest.mark.both_loops
@pytest.mark.parametrize("slow", ["middleware", "authenticate"])
async def test_whatever_comes_before_the_answer_is_kept_in_order(slow: str) -> None:
    """A megabyte, more than anybody reads ahead: the client is held back, and goes on afterwards."""
    asked, decided = asyncio.Event(), asyncio.Event()
    got = bytearray()

    async def wait() -> None:
        asked.set()
        await decided.wait()

    async def authenticate(request: Request) -> Member | None:
        if slow == "authenticate":
            await wait()
        return Member("ann")

    @web.middleware
    async def middleware(request: web.Request, handler: Any) -> web.StreamResponse:
        if slow == "middleware":
            await wait()
        response: web.StreamResponse = await handler(request)
        return response

    def collect(ws: WebSocket, request: Request) -> None:
        ws.on_message = got.extend  # type: ignore[assignment]

    site = Site(authenticate=authenticate)
    site.app.middlewares.append(middleware)
    site.server.attach_protocol(site.app, None, collect)
    site.handler = None
    async with site, site.raw() as (reader, writer):
        sent = [bytes([number]) * 10_000 for number in range(100)]
        writer.write(handshake("/ws"))
        writer.writelines(encode_frame(2, payload, mask=MASK) for payload in sent)
        await asyncio.wait_for(asked.wait(), 20)
        await asyncio.sleep(0.05)
        decided.set()
        await reader.readuntil(b"\r\n\r\n")
        await until(lambda: len(got) == 1_000_000)
        assert bytes(got) == b"".join(sent)


# --- what aiohttp keeps ---------------------------------------------------------------------------------------------


@pytest.mark.both_loops
@pytest.mark.parametrize("cancellation", [False, True])
async def test_nothing_of_aiohttp_stays_with_a_websocket(cancellation: bool) -> None:
    async with Site(runner={"handler_cancellation": cancellation, "keepalive_timeout": 0.05}) as site:
        gc.collect()
        before = things_of_aiohttp()
        clients = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            clients.append((reader, writer))
            writer.write(handshake("/ws"))
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        await asyncio.sleep(0.2)  # the keep-alive timer of aiohttp would have closed them
        gc.collect()
        assert things_of_aiohttp() == before
        assert site.runner.server is not None
        assert site.runner.server.connections == []
        assert asyncio.all_tasks() == {asyncio.current_task()}
        for reader, writer in clients:
            writer.write(echo_event(1))
            assert (await reader.readexactly(2))[0] == 0x81
            writer.close()
            await writer.wait_closed()


async def test_the_access_log_has_http_requests_only(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("test.access")
    with caplog.at_level(logging.DEBUG):
        async with Site(runner={"access_log": logger}) as site:
            await site.exchange(head("GET", "/page", "Connection: close"))
            async with site.client():
                pass
            await refused(site.client(origin="http://evil.example"))
    lines = [record.getMessage() for record in caplog.records if record.name == "test.access"]
    assert len(lines) == 1
    assert "GET /page" in lines[0]
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert "allowed_origins" in warning  # the page that was refused is explained


async def test_a_middleware_may_refuse_and_may_touch_the_response() -> None:
    @web.middleware
    async def gate(request: web.Request, handler: Any) -> web.StreamResponse:
        if "refuse" in request.query:
            raise web.HTTPForbidden(text="not you")
        response: web.StreamResponse = await handler(request)
        response.headers["X-Seen"] = "yes"
        return response

    site = Site()
    site.app.middlewares.append(gate)
    async with site:
        assert (await refused(site.client("/ws?refuse"))).body == b"not you"
        async with site.client() as ws:
            await ws.send('{"type":"echo","data":2}')
            assert (await event(ws))["data"] == 2
            assert ws.response is not None
            assert "X-Seen" not in ws.response.headers


# --- who does not get in --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (handshake("/ws", Origin="http://evil.example"), 403),
        (handshake("/ws", Sec_WebSocket_Key="short"), 400),
        (handshake("/ws", Sec_WebSocket_Version="12"), 426),
        (handshake("/ws", "Content-Length: 4") + b"body", 400),
        (handshake("/ws", "Content-Length: 4000") + b"body", 400),
        (handshake("/ws", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (handshake("/ws", *[f"Cookie: {4_000 * 'a'}"] * 5), 431),
        (handshake("/ws").replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    ],
    ids=["origin", "key", "version", "body", "unfinished body", "chunks", "long head", "HTTP/1.0"],
)
async def test_a_refusal_ends_the_connection_and_nothing_behind_it_is_served(data: bytes, status: int) -> None:
    async with Site() as site:
        behind = head("GET", "/page")
        answers = parse(await site.exchange(data + behind, behind, apart=True))
        assert [(answer.status, answer.closes) for answer in answers] == [(status, True)]
        assert site.server.connection_count == 0


@pytest.mark.both_loops
async def test_a_client_that_leaves_while_it_is_authenticated_leaves_nothing() -> None:
    waiting: list[object] = []

    async def authenticate(request: Request) -> Member | None:
        waiting.append(request)
        try:
            await asyncio.sleep(3_600)
        finally:
            waiting.remove(request)
        return None

    async with Site(authenticate=authenticate) as site:
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


async def test_a_client_that_left_before_the_handler_ran() -> None:
    left = asyncio.Event()

    @web.middleware
    async def slow(request: web.Request, handler: Any) -> web.StreamResponse:
        await until(lambda: request.transport is None)
        left.set()
        response: web.StreamResponse = await handler(request)
        return response

    site = Site()
    site.app.middlewares.append(slow)
    async with site:
        async with site.raw() as (_, writer):
            writer.write(handshake("/ws"))
            await writer.drain()
            await asyncio.sleep(0.02)
        await asyncio.wait_for(left.wait(), 20)
        await asyncio.sleep(0.01)
        assert site.server.connection_count == 0
        assert site.server.counters.connections_opened == 0


async def test_a_connection_that_a_middleware_has_closed(caplog: pytest.LogCaptureFixture) -> None:
    @web.middleware
    async def closing(request: web.Request, handler: Any) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        response: web.StreamResponse = await handler(request)
        return response

    site = Site()
    site.app.middlewares.append(closing)
    async with site:
        assert await site.exchange(handshake("/ws")) == b""
        assert site.server.counters.handshakes_refused == 0
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_the_handshake_has_a_deadline() -> None:
    async def authenticate(request: Request) -> Member | None:
        await asyncio.sleep(3_600)
        return None

    async with Site(limits=Limits(handshake_timeout_s=0.1, abort_timeout_s=0.5), authenticate=authenticate) as site:
        assert [answer.status for answer in parse(await site.exchange(handshake("/ws")))] == [503]


# --- the end --------------------------------------------------------------------------------------------------------


@pytest.mark.both_loops
async def test_a_shutdown_tells_the_clients_and_waits_for_them() -> None:
    asked = asyncio.Event()
    order: list[str] = []

    async def authenticate(request: Request) -> Member | None:
        if "wait" in request.query:
            asked.set()
            await asyncio.sleep(3_600)
        return Member("ann")

    async def cleanup(app: web.Application) -> None:
        order.append("cleanup")

    site = Site(authenticate=authenticate)
    site.app.on_cleanup.append(cleanup)
    async with site:
        clients = [await site.client() for _ in range(3)]
        for socket in site.server.clients:
            socket.on("close", lambda code, reason: order.append("closed"))
        async with site.raw() as (reader, writer):
            writer.write(handshake("/ws?wait"))
            await asyncio.wait_for(asked.wait(), 20)
            stopping = asyncio.ensure_future(site.stop())
            assert [await close_code(ws) for ws in clients] == [1012] * 3
            assert parse(await asyncio.wait_for(reader.read(), 20))[0].status == 503
        await stopping
        assert order == ["closed"] * 3 + ["cleanup"]


async def test_a_client_that_comes_late_is_told_so() -> None:
    asked, decided = asyncio.Event(), asyncio.Event()

    @web.middleware
    async def slow(request: web.Request, handler: Any) -> web.StreamResponse:
        asked.set()
        await decided.wait()
        response: web.StreamResponse = await handler(request)
        return response

    site = Site()
    site.app.middlewares.append(slow)
    async with site, site.raw() as (reader, writer):
        writer.write(handshake("/ws"))
        await asyncio.wait_for(asked.wait(), 20)
        stopping = asyncio.ensure_future(site.stop())
        await asyncio.wait_for(site.server.wait_closed(), 20)
        decided.set()
        assert [answer.status for answer in parse(await asyncio.wait_for(reader.read(), 20))] == [503]
        await stopping


async def test_a_client_that_never_answers_the_close_does_not_hang_the_shutdown() -> None:
    limits = Limits(shutdown_timeout_s=0.3, abort_timeout_s=0.2)
    async with Site(limits=limits) as site, site.raw() as (reader, writer):
        writer.write(handshake("/ws"))
        await reader.readuntil(b"\r\n\r\n")
        await site.stop()
        assert (await reader.read())[:1] == b"\x88"


# --- attaching ------------------------------------------------------------------------------------------------------


@pytest.mark.both_loops
async def test_tls(certificate: Any) -> None:
    context = certificate.client
    async with Site(tls=certificate.server) as site:
        ws = await site.client(ssl=context)
        await ws.send('{"type":"echo","data":2}')
        assert (await event(ws))["data"] == 2
        assert (await refused(site.client(ssl=context, origin="https://evil.example"))).status_code == 403
        stopping = asyncio.ensure_future(site.stop())
        assert await close_code(ws) == 1012
        await stopping


async def test_an_application_that_runs_cannot_be_attached_to() -> None:
    async with Site() as site:
        with pytest.raises(ConfigurationError, match=r"path='/other': the application has started already"):
            StreetWebSocketServer(path="/other").attach(site.app, echo)

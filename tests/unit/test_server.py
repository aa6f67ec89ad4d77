"""StreetWebSocketServer with real clients on real sockets: who gets in, who serves them, and how it ends."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import re
import signal
import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from street_fast._core import WebSocket, encode_frame
from street_fast.auth import Member
from street_fast.errors import ConfigurationError, ListenError
from street_fast.http_server import HttpServer
from street_fast.limits import Limits
from street_fast.request import Request
from street_fast.server import StreetWebSocketServer
from street_fast.testing import MemoryTransport
from tests.connection_harness import Panic
from tests.http_harness import handshake

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from street_fast.street_socket import StreetSocket

MASK = b"\x01\x02\x03\x04"
RETRY = re.compile(r"retry in ([0-9.]+) s$")
FAST = Limits(shutdown_timeout_s=5, shutdown_batch_interval_s=0.01, abort_timeout_s=2)


@pytest.fixture
async def serve() -> AsyncIterator[Any]:
    """``await serve(handler, **options)`` -> a server that listens; closed at the end."""
    servers: list[StreetWebSocketServer] = []

    async def start(handler: Any = lambda socket, request: None, **options: Any) -> StreetWebSocketServer:
        server = StreetWebSocketServer(limits=options.pop("limits", FAST), **options)
        servers.append(server)
        await server.serve(handler, port=0)
        return server

    yield start
    for server in servers:
        await asyncio.wait_for(server.close(), 20)


def client(server: StreetWebSocketServer, path: str = "/", **options: Any) -> connect:
    return connect(f"ws://127.0.0.1:{server.port}{path}", compression=None, **options)


async def event(ws: ClientConnection) -> Any:
    return json.loads(await asyncio.wait_for(ws.recv(), 20))


async def status(server: StreetWebSocketServer, path: str = "/", **options: Any) -> tuple[int, Any]:
    """Status and headers of a refused handshake."""
    with pytest.raises(InvalidStatus) as caught:
        async with client(server, path, **options):
            pass
    return caught.value.response.status_code, caught.value.response.headers


async def close_of(ws: ClientConnection) -> tuple[int, str]:
    try:
        while True:
            await asyncio.wait_for(ws.recv(), 20)
    except ConnectionClosed as error:
        closed = error.rcvd
    assert closed is not None
    return closed.code, closed.reason


async def until(condition: Callable[[], object]) -> None:
    """Waits for something that is about to happen; fails after twenty seconds."""
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def upgrade_request(server: StreetWebSocketServer, *headers: str, path: str = "/") -> bytes:
    key = base64.b64encode(b"0123456789abcdef").decode()
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: 127.0.0.1:{server.port}",
        "Connection: Upgrade",
        "Upgrade: websocket",
        "Sec-WebSocket-Version: 13",
        f"Sec-WebSocket-Key: {key}",
        *headers,
        "",
        "",
    ]
    return "\r\n".join(lines).encode()


def text(data: Any) -> bytes:
    return encode_frame(1, json.dumps(data).encode(), mask=MASK)


# --- serving ----------------------------------------------------------------------------------------------------


async def test_events_both_ways(serve: Any) -> None:
    def chat(socket: StreetSocket, request: Request) -> None:
        socket.emit("hello", request.query["user"])
        socket.on("echo", lambda data: socket.emit("echo", data))

    server = await serve(chat)
    assert server.stats()["loop"] == {}
    async with client(server, "/?user=ann") as ws:
        assert await event(ws) == {"type": "hello", "data": "ann"}
        await ws.send('{"type":"echo","data":[1,"ä"]}')
        assert await event(ws) == {"type": "echo", "data": [1, "ä"]}
        assert server.connection_count == 1
        stats = server.stats()
        assert (stats["server"]["events_received"], stats["loop"]["messages_in"]) == (1, 1)
        assert stats["loop"]["connections"] == 1
        assert [socket.request.query["user"] for socket in server.clients] == ["ann"]
    await until(lambda: server.connection_count == 0)
    assert server.clients == []
    assert server.counters.connections_opened == 1


@pytest.mark.parametrize("as_coroutine", [False, True])
async def test_what_comes_with_the_request_is_not_lost(serve: Any, as_coroutine: bool) -> None:
    got: list[Any] = []

    def plain(socket: StreetSocket, request: Request) -> None:
        socket.emit("first")
        socket.on("x", got.append)

    async def coroutine(socket: StreetSocket, request: Request) -> None:
        plain(socket, request)
        await asyncio.sleep(3600)

    server = await serve(coroutine if as_coroutine else plain)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(upgrade_request(server) + text({"type": "x", "data": 1}) + text({"type": "x", "data": 2}))
    head = await reader.readuntil(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 ")
    assert await reader.readexactly(18) == b'\x81\x10{"type":"first"}'
    await until(lambda: got == [1, 2])
    writer.close()
    await writer.wait_closed()


async def test_coroutine_handlers(serve: Any) -> None:
    seen: list[str] = []

    async def chat(socket: StreetSocket, request: Request) -> None:
        @socket.on("slow")
        async def _(data: int) -> None:
            await asyncio.sleep(0)
            socket.emit("done", data)

        try:
            await asyncio.sleep(3600)
        finally:
            seen.append("cancelled")

    server = await serve(chat)
    async with client(server) as ws:
        await ws.send('{"type":"slow","data":1}')
        assert await event(ws) == {"type": "done", "data": 1}
    await until(lambda: seen == ["cancelled"])


@pytest.mark.parametrize("as_coroutine", [False, True])
async def test_connection_handler_that_raises(serve: Any, as_coroutine: bool, caplog: Any) -> None:
    async def coroutine(socket: StreetSocket, request: Request) -> None:
        request.query["missing"]

    def plain(socket: StreetSocket, request: Request) -> None:
        request.query["missing"]

    server = await serve(coroutine if as_coroutine else plain)
    async with client(server) as ws:
        assert await close_of(ws) == (1011, "internal error")
    assert "the connection handler failed" in caplog.text
    assert server.counters.handler_errors == 1


async def test_ends_are_counted_by_their_code(serve: Any) -> None:
    server = await serve()
    server.attach_protocol(server._http, "bare", lambda ws, request: None)
    for code, subprotocols in ((1000, None), (1000, ["bare"]), (4321, None), (4322, ["bare"]), (1001, None)):
        async with client(server, subprotocols=subprotocols) as ws:
            await ws.close(code)
    await until(lambda: server.connection_count == 0)
    assert server.stats()["closed"] == {"1000": 2, "1001": 1, "other": 2}


async def test_broadcast(serve: Any) -> None:
    server = await serve()
    assert server.broadcast("x") == 0
    async with client(server) as one, client(server) as two:
        assert server.broadcast("x", {"a": 1}) == 2
        assert await event(one) == await event(two) == {"type": "x", "data": {"a": 1}}
        with pytest.raises(TypeError):
            server.broadcast("x", object())


async def test_other_paths_are_not_ours(serve: Any) -> None:
    server = await serve(path="/chat")
    assert (await status(server, "/"))[0] == 404
    async with client(server, "/chat?user=ann"):
        pass


async def test_heartbeat(serve: Any) -> None:
    server = await serve(heartbeat_interval_ms=100, limits=None)
    assert server.limits.ping_interval_s == 0.1
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(upgrade_request(server))
    await reader.readuntil(b"\r\n\r\n")
    assert await asyncio.wait_for(reader.readexactly(2), 20) == b"\x89\x00"
    writer.close()
    await writer.wait_closed()


async def test_an_event_that_is_too_big_is_refused_on_its_declared_length(serve: Any) -> None:
    server = await serve(limits=Limits(event_bytes=1_000))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(upgrade_request(server) + b"\x81\xfe" + (1_001).to_bytes(2, "big"))
    await reader.readuntil(b"\r\n\r\n")
    assert (await reader.readexactly(4))[2:] == (1009).to_bytes(2, "big")
    writer.close()
    await writer.wait_closed()


# --- who gets in ------------------------------------------------------------------------------------------------


class Gate:
    """An authenticate that counts its calls."""

    def __init__(self, answer: object = None) -> None:
        self.calls = 0
        self.answer = answer

    def __call__(self, request: Request) -> Any:
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_a_foreign_page_is_refused_before_any_hook(serve: Any) -> None:
    gate = Gate(Member("ann"))
    server = await serve(authenticate=gate)
    assert (await status(server, origin="https://evil.example"))[0] == 403
    assert gate.calls == 0
    async with client(server, origin=f"http://127.0.0.1:{server.port}"):
        pass
    assert gate.calls == 1
    assert server.counters.handshakes_refused == 1


async def test_a_refused_page_is_explained_once(serve: Any, caplog: Any) -> None:
    server = await serve()
    for origin in ("https://app.example", "https://other.example"):
        assert (await status(server, origin=origin))[0] == 403
    assert [record.message for record in caplog.records if "allowed_origins" in record.message] == [
        f"{server!r} has refused a page of 'https://app.example', and goes on to do so; if it is yours, name it in "
        f"allowed_origins"
    ]


async def test_allowed_origins(serve: Any) -> None:
    server = await serve(allowed_origins=["https://app.example"])
    async with client(server, origin="https://app.example"):
        pass
    assert (await status(server, origin=f"http://127.0.0.1:{server.port}"))[0] == 403


async def test_a_bad_handshake_is_refused_before_any_hook(serve: Any) -> None:
    gate = Gate(Member("ann"))
    server = await serve(authenticate=gate)
    assert (await status(server, additional_headers={"Sec-WebSocket-Version": "8"}))[0] == 400  # two versions now
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(upgrade_request(server).replace(b"websocket", b"other"))
    assert (await reader.readline()).startswith(b"HTTP/1.1 426 ")
    writer.close()
    await writer.wait_closed()
    assert gate.calls == 0


@pytest.mark.parametrize("as_coroutine", [False, True])
async def test_authenticate_names_the_member(serve: Any, as_coroutine: bool) -> None:
    async def later(request: Request) -> Member | None:
        await asyncio.sleep(0)
        return now(request)

    def now(request: Request) -> Member | None:
        return Member(request.query["user"]) if "user" in request.query else None

    def chat(socket: StreetSocket, request: Request) -> None:
        assert request.member is not None
        socket.emit("you", request.member.id)

    server = await serve(chat, authenticate=later if as_coroutine else now)
    async with client(server, "/?user=ann") as ws:
        assert await event(ws) == {"type": "you", "data": "ann"}
    code, headers = await status(server)
    assert code == 401
    assert headers["WWW-Authenticate"] == "Bearer"
    assert server.counters.handshakes_refused == 1


@pytest.mark.parametrize("answer", [RuntimeError("boom"), {"id": "ann"}, True])
async def test_authenticate_that_fails_refuses_and_says_so(serve: Any, answer: object, caplog: Any) -> None:
    server = await serve(authenticate=Gate(answer))
    assert (await status(server))[0] == 401
    assert "authenticate" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.parametrize("as_coroutine", [False, True])
async def test_authenticate_that_crashes_refuses_too(serve: Any, as_coroutine: bool) -> None:
    def now(request: Request) -> Member | None:
        raise Panic("boom")

    async def later(request: Request) -> Member | None:
        raise Panic("boom")

    server = await serve(authenticate=later if as_coroutine else now)
    assert (await status(server))[0] == 401


async def test_authenticate_that_fails_later_refuses_too(serve: Any, caplog: Any) -> None:
    async def authenticate(request: Request) -> Member | None:
        await asyncio.sleep(0)
        raise RuntimeError("boom")

    server = await serve(authenticate=authenticate)
    assert (await status(server))[0] == 401
    assert "boom" in caplog.text


@pytest.mark.parametrize("swallows", [False, True])
async def test_authenticate_is_cancelled_when_the_client_goes_away(serve: Any, swallows: bool) -> None:
    seen: list[str] = []

    async def authenticate(request: Request) -> Member | None:
        seen.append("begins")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.append("cancelled")
            if not swallows:
                raise
        return Member("ann")

    server = await serve(lambda socket, request: seen.append("opened"), authenticate=authenticate)
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(upgrade_request(server))
    await until(lambda: seen == ["begins"])
    writer.transport.abort()
    await until(lambda: seen == ["begins", "cancelled"])
    await until(lambda: not server._authenticating)
    assert server.connection_count == 0
    assert seen == ["begins", "cancelled"]


async def test_authenticate_has_until_the_handshake_deadline(serve: Any) -> None:
    seen: list[str] = []

    async def authenticate(request: Request) -> Member | None:
        try:
            await asyncio.sleep(3600)
        finally:
            seen.append("cancelled")
        return None

    server = await serve(authenticate=authenticate, limits=Limits(handshake_timeout_s=1))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(upgrade_request(server))
    await asyncio.wait_for(reader.read(), 20)
    await until(lambda: seen == ["cancelled"])
    writer.close()
    await writer.wait_closed()


async def test_capacity(serve: Any) -> None:
    opened: list[int] = []
    gate = Gate(Member("ann"))
    server = await serve(lambda socket, request: opened.append(1), max_connections=1, authenticate=gate)
    async with client(server):
        code, headers = await status(server)
        assert code == 503
        assert 1 <= int(headers["Retry-After"]) <= 10
        # A browser cannot see a status.
        async with client(server, origin=f"http://127.0.0.1:{server.port}") as browser:
            code, reason = await close_of(browser)
            assert code == 1013
            hint = RETRY.search(reason)
            assert hint is not None
            assert 0 <= float(hint[1]) <= 10
        assert server.connection_count == 1
        assert server.counters.handshakes_turned_away == 2
    await until(lambda: server.connection_count == 0)
    async with client(server):
        pass
    assert len(opened) == gate.calls == 2


async def test_those_who_wait_for_authenticate_count(serve: Any) -> None:
    gate = asyncio.Event()

    async def authenticate(request: Request) -> Member | None:
        await gate.wait()
        return Member("ann")

    server = await serve(max_connections=1, authenticate=authenticate)
    waiting = asyncio.ensure_future(client(server).__aenter__())
    await until(lambda: server._authenticating)
    assert (await status(server))[0] == 503
    gate.set()
    ws = await waiting
    await ws.close()


async def test_a_server_without_authenticate_says_so_once_somebody_comes_from_outside(caplog: Any) -> None:
    server = StreetWebSocketServer()
    http = HttpServer()
    server.attach(http, lambda socket, request: None)
    await http.listen(port=0)
    url = f"ws://127.0.0.1:{http.port}/"
    async with connect(url):
        assert not caplog.records
    for _ in range(2):
        async with connect(url, additional_headers={"X-Forwarded-For": "192.0.2.1"}):
            assert len(caplog.records) == 1
    assert "no authenticate" in caplog.text
    await http.close()


# --- protocols --------------------------------------------------------------------------------------------------


async def test_bare_websockets() -> None:
    server = StreetWebSocketServer(limits=FAST)
    http = HttpServer()
    closed: list[tuple[int, str]] = []

    def echo(ws: WebSocket, request: Request) -> None:
        ws.on_message = ws.send
        ws.on_close = lambda code, reason: closed.append((code, reason))

    server.attach_protocol(http, None, echo)
    await http.listen(port=0)
    async with connect(f"ws://127.0.0.1:{http.port}/") as ws:
        await ws.send("ä")
        await ws.send(b"\xff")
        assert [await ws.recv(), await ws.recv()] == ["ä", b"\xff"]
        assert server.connection_count == 1
        assert server.clients == []
        assert server.broadcast("x") == 0  # its framing is its own
        await ws.close(4000, "bye")
    await until(lambda: closed == [(4000, "bye")])
    assert server.connection_count == 0
    await http.close()


async def test_dispatch_by_subprotocol() -> None:
    server = StreetWebSocketServer(subprotocols=["street.v2", "street.v1"])
    http = HttpServer()

    def bare(name: str) -> Any:
        return lambda ws, request: ws.send(f"{name} {ws.subprotocol}")

    server.attach_protocol(http, "graphql-ws", bare("graphql"))
    server.attach_protocol(http, "mqtt", bare("mqtt"))
    server.attach(http, lambda socket, request: socket.emit(socket.sink.subprotocol or "none"))
    await http.listen(port=0)
    for offered, chosen, first in [
        (["mqtt"], "mqtt", "mqtt mqtt"),
        (["mqtt", "graphql-ws"], "graphql-ws", "graphql graphql-ws"),
        (["street.v1", "street.v2"], "street.v2", '{"type":"street.v2"}'),
        (["other"], None, '{"type":"none"}'),
        (None, None, '{"type":"none"}'),
    ]:
        async with connect(f"ws://127.0.0.1:{http.port}/", subprotocols=offered) as ws:
            assert ws.subprotocol == chosen
            assert await ws.recv() == first
    await http.close()


async def test_a_client_without_a_protocol_that_is_spoken_here() -> None:
    server = StreetWebSocketServer()
    http = HttpServer()
    server.attach_protocol(http, "mqtt", lambda ws, request: None)
    await http.listen(port=0)
    with pytest.raises(InvalidStatus) as caught:
        async with connect(f"ws://127.0.0.1:{http.port}/"):
            pass
    assert caught.value.response.status_code == 400
    assert b"mqtt" in caught.value.response.body
    await http.close()


@pytest.mark.parametrize("as_coroutine", [False, True])
async def test_bare_handler_that_raises(as_coroutine: bool, caplog: Any) -> None:
    def plain(ws: WebSocket, request: Request) -> None:
        raise RuntimeError("boom")

    async def coroutine(ws: WebSocket, request: Request) -> None:
        raise RuntimeError("boom")

    server = StreetWebSocketServer()
    http = HttpServer()
    server.attach_protocol(http, None, coroutine if as_coroutine else plain)
    await http.listen(port=0)
    async with connect(f"ws://127.0.0.1:{http.port}/") as ws:
        assert await close_of(ws) == (1011, "internal error")
    assert "boom" in caplog.text
    await http.close()


@pytest.mark.parametrize("error", [asyncio.CancelledError, Panic])
@pytest.mark.parametrize("where", ["handler", "coroutine", "close"])
async def test_what_is_no_exception_fails_a_bare_handler_all_the_same(error: type[BaseException], where: str) -> None:
    def fail(*_: object) -> None:
        raise error("boom")

    async def fail_later(*_: object) -> None:
        raise Panic("boom")

    def open_(ws: WebSocket, request: Request) -> None:
        ws.on_close = fail

    server = StreetWebSocketServer()
    http = HttpServer()
    server.attach_protocol(http, None, {"handler": fail, "coroutine": fail_later, "close": open_}[where])
    await http.listen(port=0)
    async with connect(f"ws://127.0.0.1:{http.port}/") as ws:
        if where == "close":
            await ws.close()
        else:
            assert await close_of(ws) == (1011, "internal error")
    await until(lambda: server.connection_count == 0)
    await asyncio.wait_for(http.close(), 20)


@pytest.mark.parametrize("bare", [False, True])
async def test_a_handler_that_stops_the_process_leaves_a_connection_that_ends(bare: bool) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    here, there = MemoryTransport.pair()
    wire = handshake()
    request = Request("GET", "/", wire[wire.index(b"\r\n") : -2], client=("127.0.0.1", 1))
    upgrade: Any = SimpleNamespace(request=request, on_abandoned=None, take_over=lambda: (here, b""))
    server = StreetWebSocketServer()
    if bare:
        server.attach_protocol(HttpServer(), None, stop)
    else:
        server.attach(HttpServer(), stop)
    with pytest.raises(KeyboardInterrupt):
        server.handle_upgrade(upgrade)
    there.abort()
    await until(lambda: server.connection_count == 0)


class Unusable(MemoryTransport):
    """A transport that cannot be set up."""

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        raise OverflowError("too large")


@pytest.mark.parametrize("who", ["street", "bare", "turned away"])
async def test_a_transport_that_cannot_be_used_is_closed(who: str, caplog: Any) -> None:
    transport = Unusable(asyncio.get_running_loop())
    wire = handshake("/", Origin="http://a.example" if who == "turned away" else None)
    request = Request("GET", "/", wire[wire.index(b"\r\n") : -2], client=("127.0.0.1", 1))
    upgrade: Any = SimpleNamespace(request=request, on_abandoned=None, take_over=lambda: (transport, b""))
    closed: list[Any] = []
    server = StreetWebSocketServer(allowed_origins=["*"])
    if who == "bare":
        server.attach_protocol(
            HttpServer(), None, lambda ws, _: setattr(ws, "on_close", lambda *end: closed.append(end))
        )
    else:
        server.attach(HttpServer(), lambda socket, _: socket.on("close", lambda *end: closed.append(end)))
    if who == "turned away":
        await server.close()
    server.handle_upgrade(upgrade)
    assert transport.is_closing()
    assert server.connection_count == 0
    assert not server._turned_away
    assert closed == ([] if who == "turned away" else [(1006, "connection lost: too large")])
    assert ["too large" in record.exc_text for record in caplog.records] == [True]


async def test_bare_coroutine_handler_is_cancelled_at_the_end() -> None:
    seen: list[str] = []

    async def handler(ws: WebSocket, request: Request) -> None:
        ws.on_message = ws.send
        try:
            await asyncio.sleep(3600)
        finally:
            seen.append("cancelled")

    server = StreetWebSocketServer()
    http = HttpServer()
    server.attach_protocol(http, None, handler)
    await http.listen(port=0)
    async with connect(f"ws://127.0.0.1:{http.port}/") as ws:
        await ws.send("x")
        assert await ws.recv() == "x"
    await until(lambda: seen == ["cancelled"])
    await http.close()


async def test_two_servers_on_one_front() -> None:
    http = HttpServer()
    for path in ("/a", "/b"):
        server = StreetWebSocketServer(path=path)
        server.attach(http, lambda socket, request: socket.emit(request.path))
    await http.listen(port=0)
    for path in ("/a", "/b"):
        async with connect(f"ws://127.0.0.1:{http.port}{path}") as ws:
            assert await event(ws) == {"type": path}
    await http.close()


# --- the end ----------------------------------------------------------------------------------------------------


async def test_close_drains(serve: Any) -> None:
    finished: list[str] = []

    def chat(socket: StreetSocket, request: Request) -> None:
        @socket.on("close")
        async def _(code: int, reason: str) -> None:
            await asyncio.sleep(0.05)
            finished.append(socket.id)

    server = await serve(chat, limits=Limits(shutdown_batch=2, shutdown_batch_interval_s=0.01))
    port = server.port
    clients = [await client(server) for _ in range(5)]
    ended = asyncio.ensure_future(server.wait_closed())
    await asyncio.gather(server.close(), server.close())
    await asyncio.wait_for(ended, 20)
    assert len(finished) == 5
    assert server.connection_count == 0
    hints = set()
    for ws in clients:
        code, reason = await close_of(ws)
        assert code == 1012
        hint = RETRY.search(reason)
        assert hint is not None
        hints.add(hint[1])
    assert len(hints) > 1
    with pytest.raises(ConnectionRefusedError):
        await connect(f"ws://127.0.0.1:{port}/")


async def test_close_goes_in_batches(serve: Any) -> None:
    server = await serve(limits=Limits(shutdown_batch=2, shutdown_batch_interval_s=30, shutdown_timeout_s=60))
    clients = [await client(server) for _ in range(5)]
    closing = asyncio.ensure_future(server.close())
    await until(lambda: server.connection_count == 3)
    assert [ws.state.name for ws in clients].count("OPEN") == 3
    closing.cancel()
    server._draining.cancel()
    server._draining = None
    with contextlib.suppress(asyncio.CancelledError):
        await closing
    for ws in clients:
        await ws.close()


async def test_batches_end_with_the_time_for_them(serve: Any) -> None:
    limits = Limits(shutdown_batch=2, shutdown_batch_interval_s=3600, shutdown_timeout_s=1)
    server = await serve(limits=limits)
    clients = [await client(server) for _ in range(5)]
    await asyncio.wait_for(server.close(), 20)
    assert server.connection_count == 0
    for ws in clients:
        await ws.wait_closed()
    assert sorted(int(ws.close_code or 0) for ws in clients) == [1006] * 3 + [1012] * 2


async def test_who_does_not_answer_is_cut_off(serve: Any) -> None:
    server = await serve(limits=Limits(shutdown_timeout_s=0.2))
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(upgrade_request(server))
    await reader.readuntil(b"\r\n\r\n")
    await asyncio.wait_for(server.close(), 20)
    assert server.connection_count == 0
    frame = await reader.read()
    assert frame[2:4] == (1012).to_bytes(2, "big")
    writer.close()
    await writer.wait_closed()


async def test_handlers_that_do_not_end_are_cancelled(serve: Any) -> None:
    seen: list[str] = []

    def chat(socket: StreetSocket, request: Request) -> None:
        @socket.on("close")
        async def _(code: int, reason: str) -> None:
            try:
                await asyncio.sleep(3600)
            finally:
                seen.append("cancelled")

    server = await serve(chat, limits=Limits(shutdown_timeout_s=1))
    async with client(server):
        await asyncio.wait_for(server.close(), 20)
    assert seen == ["cancelled"]


async def test_an_http_server_that_closes_drains_what_is_attached() -> None:
    server = StreetWebSocketServer()
    http = HttpServer()
    server.attach(http, lambda socket, request: None)
    await http.listen(port=0)
    async with connect(f"ws://127.0.0.1:{http.port}/") as ws:
        await http.close()
        assert (await close_of(ws))[0] == 1012
    await asyncio.wait_for(server.wait_closed(), 20)


async def test_an_attached_server_that_is_closed_turns_clients_away() -> None:
    server = StreetWebSocketServer()
    http = HttpServer()
    server.attach(http, lambda socket, request: None)
    http.get("/", lambda request: "still here")
    await http.listen(port=0)
    await server.close()
    with pytest.raises(InvalidStatus) as caught:
        async with connect(f"ws://127.0.0.1:{http.port}/"):
            pass
    assert caught.value.response.status_code == 503
    async with connect(f"ws://127.0.0.1:{http.port}/", origin=f"http://127.0.0.1:{http.port}") as browser:
        code, reason = await close_of(browser)
        assert code == 1012
        assert RETRY.search(reason)
    await http.close()


async def test_close_ends_those_who_wait_for_authenticate(serve: Any) -> None:
    async def authenticate(request: Request) -> Member | None:
        await asyncio.sleep(3600)
        return None

    server = await serve(authenticate=authenticate, limits=Limits(shutdown_timeout_s=30))
    waiting = asyncio.ensure_future(status(server))
    await until(lambda: server._authenticating)
    await asyncio.wait_for(server.close(), 20)
    assert (await waiting)[0] == 503
    assert server.counters.handshakes_turned_away == 1
    assert server.counters.handshakes_refused == 0


# --- bad options ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"path": "chat"}, "path='chat'"),
        ({"path": "/chat?x"}, r"path='/chat\?x'"),
        ({"path": None}, "path=None"),
        ({"path": "/chat/{room}"}, r"path='/chat/\{room\}': must be without '\{'; paths are literal"),
        ({"heartbeat_interval_ms": 0}, "heartbeat_interval_ms=0"),
        ({"heartbeat_interval_ms": "30"}, "heartbeat_interval_ms='30'"),
        ({"heartbeat_interval_ms": True}, "heartbeat_interval_ms=True"),
        ({"heartbeat_interval_ms": float("nan")}, "heartbeat_interval_ms=nan"),
        ({"heartbeat_interval_ms": 1e10}, "heartbeat_interval_ms=10000000000.0: .* at most 1000000000"),
        ({"heartbeat_interval_ms": 1e30}, r"heartbeat_interval_ms=1e\+30"),
        ({"max_connections": 0}, "max_connections=0"),
        ({"max_connections": 1.5}, "max_connections=1.5"),
        ({"authenticate": "yes"}, "authenticate='yes'"),
        ({"allowed_origins": "https://a.example"}, "allowed_origins"),
        ({"allowed_origins": ["a.example"]}, "allowed_origins"),
        ({"allowed_origins": 5}, "allowed_origins=5"),
        ({"allowed_origins": [["https://a.example"]]}, "allowed_origins"),
        ({"limits": {"message_bytes": 1}}, "limits="),
        ({"subprotocols": "mqtt"}, "subprotocols='mqtt'"),
        ({"subprotocols": None}, "subprotocols=None: must be a list of names"),
        ({"subprotocols": 5}, "subprotocols=5"),
        ({"subprotocols": iter(["a"])}, "subprotocols=.*: must be a list"),
        ({"subprotocols": ["a b"]}, "'a b'"),
        ({"subprotocols": ["a", "a"]}, "twice"),
    ],
)
def test_bad_options(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        StreetWebSocketServer(**options)


def test_bad_attachments() -> None:
    server = StreetWebSocketServer()
    http = HttpServer()

    def first(*_: object) -> None: ...

    def second(*_: object) -> None: ...

    with pytest.raises(ConfigurationError, match="HttpServer"):
        server.attach(object(), first)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="handler=None"):
        server.attach(http, None)  # type: ignore[arg-type]
    server.attach(http, first)
    server.attach(http, first)
    server.attach(HttpServer(), first)
    with pytest.raises(ConfigurationError, match="another handler"):
        server.attach(http, second)
    with pytest.raises(ConfigurationError, match="another handler"):
        server.attach_protocol(http, None, second)
    with pytest.raises(ConfigurationError, match="'a b'"):
        server.attach_protocol(http, "a b", second)


def nothing(connection: object, request: object) -> None: ...


@pytest.mark.parametrize(
    "http",
    [uvicorn.Server(uvicorn.Config(FastAPI())), FastAPI(), web.AppRunner(web.Application()), web, HttpServer, None],
    ids=["uvicorn.Server", "FastAPI", "AppRunner", "aiohttp.web", "class", "None"],
)
def test_what_is_no_front_is_told_from_one(http: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"attach\(.*: must be a street_fast.HttpServer, a uvicorn.Config \("):
        StreetWebSocketServer().attach(http, nothing)


@pytest.mark.parametrize("front", [HttpServer, lambda: uvicorn.Config(FastAPI()), web.Application])
def test_a_path_has_one_server_on_every_front(front: Callable[[], Any]) -> None:
    http = front()
    StreetWebSocketServer(path="/ws").attach(http, nothing)
    with pytest.raises(ConfigurationError, match=r"path='/ws'.*: a WebSocket server.* already"):
        StreetWebSocketServer(path="/ws").attach(http, nothing)


async def test_an_attach_that_fails_leaves_nothing() -> None:
    server, http = StreetWebSocketServer(subprotocols=["a"]), HttpServer()
    with pytest.raises(ConfigurationError, match="attach"):
        server.attach(object(), lambda socket, request: None)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="attach"):
        server.attach_protocol(object(), "b", nothing)  # type: ignore[arg-type]
    server.attach_protocol(HttpServer(), "a", nothing)
    with pytest.raises(ConfigurationError, match="subprotocol 'a'"):
        server.attach(http, nothing)  # which would have been the handler of clients without a subprotocol
    server.attach_protocol(http, None, nothing)
    server.attach_protocol(http, "b", nothing)
    await http.close()


@pytest.mark.parametrize("handler", [lambda: None, lambda one: None, lambda one, two, three: None, list])
async def test_a_handler_takes_two_arguments(handler: Any) -> None:
    server = StreetWebSocketServer()
    said = "handler=.*: must take two arguments, {} and request"
    with pytest.raises(ConfigurationError, match=said.format("socket")):
        await server.serve(handler, port=0)
    with pytest.raises(ConfigurationError, match=said.format("socket")):
        server.attach(HttpServer(), handler)
    with pytest.raises(ConfigurationError, match=said.format("ws")):
        server.attach_protocol(HttpServer(), "a", handler)


def test_port_before_serve() -> None:
    with pytest.raises(RuntimeError, match="serve"):
        _ = StreetWebSocketServer().port


async def test_a_closed_server_does_not_serve_again(serve: Any) -> None:
    server = await serve()
    await server.close()
    with pytest.raises(RuntimeError, match="closed"):
        await server.serve(lambda socket, request: None, port=0)


async def test_a_server_that_serves_does_not_serve_twice(serve: Any) -> None:
    server = await serve()
    with pytest.raises(RuntimeError, match=rf"already listening on 127\.0\.0\.1:{server.port}"):
        await server.serve(nothing, port=0)
    port = server.port
    await server.close()
    with pytest.raises(ConnectionRefusedError):
        await connect(f"ws://127.0.0.1:{port}/")


async def test_a_port_in_use(serve: Any) -> None:
    taken = await serve()
    server = StreetWebSocketServer()
    with pytest.raises(ListenError, match=str(taken.port)):
        await server.serve(lambda socket, request: None, port=taken.port)
    with pytest.raises(RuntimeError, match="listens nowhere"):
        _ = server.port
    await server.serve(nothing, port=0)  # again, and with another handler
    async with client(server):
        await until(lambda: server.connection_count == 1)
    await server.close()


# --- run() ------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
from street_fast.server import StreetWebSocketServer
StreetWebSocketServer().run(lambda socket, request: socket.emit("hello"), port=int(sys.argv[1]))
"""


def start_program() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", PROGRAM, "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_run_until_a_signal(number: signal.Signals) -> None:
    with start_program() as process:
        line = (await asyncio.to_thread(process.stdout.readline)).decode()
        url = re.search(r"ws://127\.0\.0\.1:\d+/", line)
        assert url is not None
        async with connect(url[0]) as ws:
            assert await event(ws) == {"type": "hello"}
            process.send_signal(number)
            assert (await close_of(ws))[0] == 1012
        out, err = await asyncio.to_thread(process.communicate, None, 5)
        assert (out, err, process.returncode) == (b"", b"", 0)


def test_run_on_a_port_in_use() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(port)], capture_output=True, text=True, timeout=20, check=False
        )
    assert ran.returncode == 1
    assert ran.stdout == ""
    assert len(ran.stderr.splitlines()) == 1
    assert str(port) in ran.stderr

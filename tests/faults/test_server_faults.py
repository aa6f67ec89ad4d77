"""What a server must stand: clients that vanish, flood, do not read, or come in the thousands; handlers that misbehave;
a process that is stopped. After each, nothing is left behind, and whoever did nothing wrong has lost nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from street_fast import ChannelHub, CloseCode, Limits, Member, Request, StreetSocket, StreetWebSocketServer
from street_fast._core import WebSocket, encode_frame

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

MASK = b"\x01\x02\x03\x04"
HEAD = (
    "GET /?user=ann HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


@pytest.fixture
async def serve() -> AsyncIterator[Any]:
    """``await serve(handler, **options)`` -> a server that listens; closed at the end."""
    servers: list[StreetWebSocketServer] = []

    async def start(handler: Any, **options: Any) -> StreetWebSocketServer:
        server = StreetWebSocketServer(limits=Limits(**options.pop("limits", {})), **options)
        servers.append(server)
        await server.serve(handler, port=0)
        return server

    yield start
    for server in servers:
        await asyncio.wait_for(server.close(), 20)


@pytest.fixture
def rand() -> random.Random:
    seed = random.randrange(2**32)
    print(f"seed={seed}")
    return random.Random(seed)


async def until(condition: Callable[[], object]) -> None:
    """Waits for something that is about to happen; fails after ten seconds."""
    for _ in range(2_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not happen")


def echo(socket: StreetSocket, request: Request) -> None:
    socket.on("echo", lambda data: socket.emit("echo", data))


def url(server: StreetWebSocketServer) -> str:
    return f"ws://127.0.0.1:{server.port}/?user=ann"


def event(name: str, data: Any = None) -> bytes:
    return encode_frame(1, json.dumps({"type": name, "data": data}).encode(), mask=MASK)


async def serves(server: StreetWebSocketServer) -> None:
    """A new client is served."""
    async with connect(url(server)) as ws:
        await ws.send('{"type":"echo","data":"still here"}')
        assert json.loads(await asyncio.wait_for(ws.recv(), 20)) == {"type": "echo", "data": "still here"}


class Baseline:
    """What exists now; `back()` waits until there is no more than that again."""

    def __init__(self, server: StreetWebSocketServer) -> None:
        self.server = server
        self.before = self.count()

    def count(self) -> dict[str, int]:
        gc.collect()
        objects = gc.get_objects()
        return {
            "descriptors": len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0,
            "tasks": len(asyncio.all_tasks()),
            "sockets": sum(isinstance(one, StreetSocket) for one in objects),
            "websockets": sum(isinstance(one, WebSocket) for one in objects),
            "connections": self.server.connection_count,
            "authenticating": len(self.server._authenticating),
        }

    async def back(self) -> None:
        for _ in range(100):
            now = self.count()
            if all(now[name] <= self.before[name] for name in now):
                return
            await asyncio.sleep(0.05)
        assert now == self.before


# --- clients that vanish ----------------------------------------------------------------------------------------


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


async def test_a_client_that_vanishes_at_any_byte(serve: Any) -> None:
    server = await serve(echo, limits={"messages_per_second": None})
    await serves(server)
    stream = HEAD.format(port=server.port).encode() + event("echo", "x") + encode_frame(9, b"p", mask=MASK)
    baseline = Baseline(server)

    async def cut(length: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(stream[:length])
        await asyncio.sleep(0)
        if length % 2:
            reset(writer)
        else:
            writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    for start in range(0, len(stream), 50):
        await asyncio.gather(*(cut(length) for length in range(start, min(start + 50, len(stream)))))
    await baseline.back()
    await serves(server)


@pytest.mark.parametrize("as_coroutine", [False, True])
async def test_clients_that_vanish_while_they_are_let_in(
    serve: Any, rand: random.Random, as_coroutine: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def authenticate(request: Request) -> Member | None:
        await asyncio.sleep(rand.random() * 0.05)
        if rand.random() < 0.1:
            raise RuntimeError("no luck")
        return Member("ann")

    async def later(socket: StreetSocket, request: Request) -> None:
        await asyncio.sleep(rand.random() * 0.05)
        echo(socket, request)
        await asyncio.sleep(3600)

    server = await serve(later if as_coroutine else echo, authenticate=authenticate)
    baseline = Baseline(server)

    async def come_and_go() -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(HEAD.format(port=server.port).encode() + event("echo", "x"))
        await asyncio.sleep(rand.random() * 0.1)
        if rand.random() < 0.5:
            reset(writer)
        else:
            writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    for _ in range(5):
        await asyncio.gather(*(come_and_go() for _ in range(50)))
    await baseline.back()
    failed = [record for record in caplog.records if record.levelname == "ERROR"]
    assert all("authenticate failed" in record.getMessage() for record in failed)


# --- floods -----------------------------------------------------------------------------------------------------


async def test_a_flood_of_connections(serve: Any) -> None:
    server = await serve(echo, max_connections=20)
    baseline = Baseline(server)

    async def dial() -> Any:
        try:
            return await connect(url(server))
        except InvalidStatus as error:
            return error.response.status_code

    clients = await asyncio.gather(*(dial() for _ in range(100)))
    assert sum(one == 503 for one in clients) == 80
    assert server.connection_count == 20
    assert server.counters.handshakes_turned_away == 80
    for ws in clients:
        if ws != 503:
            await ws.close()
    await until(lambda: server.connection_count == 0)
    await serves(server)
    del clients, ws
    await baseline.back()


SERVER = """
import sys
from street_fast import Limits, StreetWebSocketServer
if sys.argv[1] != "0":
    import resource
    resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]),) * 2)
limits = Limits(ping_interval_s=float(sys.argv[2]), pong_timeout_s=float(sys.argv[2]))
server = StreetWebSocketServer(limits=limits)
server.run(lambda socket, request: socket.on("echo", lambda data: socket.emit("echo", data)), port=0)
"""


class Process(contextlib.AbstractContextManager[None]):
    """A server in a process of its own."""

    def __init__(self, descriptors: int = 0, ping_s: float = 25) -> None:
        self.popen = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(descriptors), str(ping_s)], stdout=subprocess.PIPE, text=True
        )
        assert self.popen.stdout is not None
        found = re.search(r"ws://\S+", self.popen.stdout.readline())
        assert found is not None
        self.url = found[0]

    def cpu_s(self) -> float:
        with open(f"/proc/{self.popen.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def __exit__(self, *_: object) -> None:
        self.popen.send_signal(signal.SIGCONT)
        self.popen.terminate()
        try:
            self.popen.wait(10)
        finally:
            self.popen.kill()
            self.popen.wait()
            assert self.popen.stdout is not None
            self.popen.stdout.close()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
async def test_a_server_that_runs_out_of_descriptors_recovers() -> None:
    with Process(descriptors=64) as process:
        host, port = "127.0.0.1", int(process.url.rpartition(":")[2].rstrip("/"))
        dialed = [socket.create_connection((host, port)) for _ in range(150)]  # the kernel's queue takes them
        await asyncio.sleep(0.3)
        before = process.cpu_s()
        await asyncio.sleep(1)
        assert process.cpu_s() - before < 0.5  # it does not spin
        for sock in dialed:
            sock.close()
        for _ in range(50):
            try:
                async with connect(process.url, open_timeout=1) as ws:
                    await ws.send('{"type":"echo","data":1}')
                    assert await asyncio.wait_for(ws.recv(), 20) == '{"type":"echo","data":1}'
                    break
            except (OSError, asyncio.TimeoutError, InvalidHandshake):
                await asyncio.sleep(0.1)
        else:
            pytest.fail("it did not recover")


async def test_a_flood_of_events_is_told_and_closed(serve: Any) -> None:
    got: list[int] = []

    def handler(socket: StreetSocket, request: Request) -> None:
        socket.on("x", got.append)

    server = await serve(handler, limits={"messages_per_second": 10, "messages_burst": 10, "rate_grace_s": 0.5})
    async with connect(url(server)) as ws, connect(url(server)) as other:
        codes = []
        closed = None
        began = time.monotonic()
        try:
            while time.monotonic() - began < 20:
                for _ in range(20):
                    await ws.send('{"type":"x","data":1}')
                await asyncio.sleep(0.02)
                with contextlib.suppress(asyncio.TimeoutError):
                    codes.append(json.loads(await asyncio.wait_for(ws.recv(), 0.001))["data"]["code"])
        except ConnectionClosed as error:
            closed = error.rcvd
        assert closed is not None
        assert closed.code == CloseCode.RATE_LIMITED
        lasted = time.monotonic() - began
        assert set(codes) == {"rate_limited"}
        assert len(codes) <= lasted + 1
        assert len(got) <= 10 * (lasted + 2)
        await other.send('{"type":"x","data":2}')  # its rate is its own
        await until(lambda: 2 in got)


# --- a hub in the hands of its clients --------------------------------------------------------------------------


def rooms(hub: ChannelHub) -> Callable[[StreetSocket, Request], None]:
    """Clients join, publish and type as they like."""

    def handler(socket: StreetSocket, request: Request) -> None:
        socket.on("join", lambda room: hub.join(room, request.query["user"], socket))
        socket.on("say", lambda room: hub.publish(room, "say", request.query["user"]))
        socket.on("typing", lambda room: hub.set_typing(room, request.query["user"], True, socket))
        socket.on("echo", lambda data: socket.emit("echo", data))

    return handler


async def test_e1_joins_and_names_without_end_leave_nothing(serve: Any) -> None:
    hub = ChannelHub()
    server = await serve(rooms(hub), limits={"messages_per_second": None, "bytes_per_second": None})
    async with connect(url(server)) as ws:
        for name in ("", "x" * 60_000, "a\nb", "a\0b", "\x7f", 5, None, ["a"], {"a": 1}):
            for action in ("join", "say", "typing"):
                await ws.send(json.dumps({"type": action, "data": name}))
        for number in range(1_000):
            await ws.send(json.dumps({"type": "join", "data": f"room-{number}"}))
            await ws.send(json.dumps({"type": "say", "data": f"other-{number}"}))
        await ws.send('{"type":"echo","data":"through"}')
        while json.loads(await asyncio.wait_for(ws.recv(), 20)) != {"type": "echo", "data": "through"}:
            pass
        assert hub.channel_names() == [f"room-{number}" for number in range(server.limits.channels_per_connection)]
        assert not hub._typing_timers
    await until(lambda: not hub._subscribers)
    assert hub.channel_names() == []
    assert not hub._presence._members


@pytest.mark.parametrize("vanishes", [False, True])
async def test_e5_typing_ends_with_its_time_or_its_client(serve: Any, vanishes: bool) -> None:
    hub = ChannelHub(typing_ttl_ms=600_000 if vanishes else 100)
    server = await serve(rooms(hub))
    async with connect(url(server).replace("ann", "bob")) as bob:
        await bob.send('{"type":"join","data":"room"}')
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(HEAD.format(port=server.port).encode() + event("join", "room") + event("typing", "room"))
        events = []
        while not (events and events[-1] == ("typing", {"memberId": "ann", "typing": False})):
            message = json.loads(await asyncio.wait_for(bob.recv(), 20))
            events.append((message["type"], message["data"]))
            if vanishes and events[-1] == ("typing", {"memberId": "ann", "typing": True}):
                reset(writer)
        assert [kind for kind, _ in events] == ["presence:join", "typing", "typing"]
        if vanishes:
            assert json.loads(await asyncio.wait_for(bob.recv(), 20))["type"] == "presence:leave"
            assert hub.presence("room") == ["bob"]
        assert not hub._typing_timers
        writer.close()


# --- slow readers, slow handlers --------------------------------------------------------------------------------


def raw_client(port: int, receive_buffer: int = 4_096) -> socket.socket:
    """A connection whose kernel buffer is small, and which has sent its handshake."""
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    sock.connect(("127.0.0.1", port))
    sock.sendall(HEAD.format(port=port).encode())
    return sock


async def test_clients_that_never_read_do_not_hurt_those_who_do(serve: Any) -> None:
    codes: list[int] = []
    server = await serve(
        lambda socket, request: socket.on("close", lambda code, reason: codes.append(code)),
        limits={"write_soft_bytes": 16_384, "write_hard_bytes": 65_536, "abort_timeout_s": 0.2},
    )
    baseline = Baseline(server)
    slow = [raw_client(server.port) for _ in range(50)]
    await until(lambda: server.connection_count == 50)
    healthy = [await connect(url(server), max_size=None) for _ in range(50)]
    received: list[list[int]] = [[] for _ in healthy]

    async def read(ws: Any, into: list[int]) -> None:
        async for text in ws:
            into.append(json.loads(text)["data"]["number"])
            if len(into) == 1_500:
                return

    def have(number: int) -> bool:
        return min(map(len, received)) >= number

    reading = [asyncio.ensure_future(read(ws, into)) for ws, into in zip(healthy, received, strict=True)]
    for number in range(1_500):
        server.broadcast("x", {"number": number, "padding": "." * 4_000})
        if number % 5 == 0:
            await until(functools.partial(have, number - 5))
    await asyncio.wait_for(asyncio.gather(*reading), 30)
    assert all(into == list(range(1_500)) for into in received)
    await until(lambda: len(codes) == 50)
    assert set(codes) == {CloseCode.SLOW_CONSUMER}
    assert server.connection_count == 50
    for sock in slow:
        sock.close()
    for ws in healthy:
        await ws.close()
    del healthy, slow, reading, ws, sock
    await baseline.back()


async def test_a_slow_handler_slows_its_sender_down_and_loses_nothing(serve: Any) -> None:
    got: list[int] = []
    gate = asyncio.Event()

    def handler(socket: StreetSocket, request: Request) -> None:
        @socket.on("x")
        async def _(number: int) -> None:
            await gate.wait()
            got.append(number)

    server = await serve(handler, limits={"messages_per_second": None, "bytes_per_second": None, "inbox_messages": 8})
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HEAD.format(port=server.port).encode())
    padding = "." * 20_000
    frames = [
        encode_frame(1, f'{{"type":"x","data":{number},"padding":"{padding}"}}'.encode(), mask=MASK)
        for number in range(2_000)
    ]
    for frame in frames:
        writer.write(frame)
    total = sum(len(frame) for frame in frames)
    await until(lambda: server.connection_count == 1)
    (client,) = server.clients
    await until(lambda: client._full)
    await asyncio.sleep(0.2)
    unsent = writer.transport.get_write_buffer_size()
    assert unsent > total / 2  # it waits on the sender's side
    assert len(client._inbox) == 8
    assert client.sink.buffered < 600_000
    assert got == []
    gate.set()
    await until(lambda: len(got) == 2_000)
    assert got == list(range(2_000))
    writer.close()
    await writer.wait_closed()


async def test_a_client_that_vanishes_behind_a_handler_that_hangs(serve: Any) -> None:
    hub = ChannelHub()

    async def hang(_: object) -> None:
        await asyncio.sleep(3600)

    def handler(socket: StreetSocket, request: Request) -> None:
        hub.join("room", "ann", socket)
        socket.on("hang", hang)

    server = await serve(handler, limits={"ping_interval_s": 0.1, "inbox_messages": 4})
    _, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(HEAD.format(port=server.port).encode() + event("hang") * 10)
    await until(lambda: server.counters.events_received >= 5)  # so that it is not read any more
    reset(writer)
    await until(lambda: server.connection_count == 0)
    assert hub.channel_names() == []


async def test_a_handler_that_blocks_the_loop_costs_nobody_the_connection(serve: Any) -> None:
    def handler(socket: StreetSocket, request: Request) -> None:
        echo(socket, request)
        socket.on("block", time.sleep)

    server = await serve(handler, limits={"ping_interval_s": 0.2, "pong_timeout_s": 0.2})
    clients = [await connect(url(server)) for _ in range(10)]
    await clients[0].send('{"type":"block","data":1.5}')
    await asyncio.sleep(0.5)
    for ws in clients:
        await ws.send('{"type":"echo","data":1}')
        assert await asyncio.wait_for(ws.recv(), 20) == '{"type":"echo","data":1}'
        await ws.close()


# --- one bad apple ----------------------------------------------------------------------------------------------


async def test_sockets_that_come_and_go_during_a_broadcast(serve: Any, rand: random.Random) -> None:
    """Handlers close sockets, others and their own, and broadcast in between: who stays gets all, once, in order."""
    server: StreetWebSocketServer

    def handler(socket: StreetSocket, request: Request) -> None:
        @socket.on("go")
        def _(data: object) -> None:
            for number in range(10):
                server.broadcast("n", number)
                for victim in server.clients:
                    if victim.request.query["user"] == "victim" and rand.random() < 0.2:
                        victim.close(4000 + number)

        @socket.on("close")
        def _(code: int, reason: str) -> None:
            server.broadcast("gone", code)
            raise RuntimeError("a close handler fails")

    server = await serve(handler)
    stay = [await connect(url(server), max_queue=None) for _ in range(5)]
    victims = [await connect(url(server).replace("ann", "victim"), max_queue=None) for _ in range(20)]
    await stay[0].send('{"type":"go"}')
    await until(lambda: server.counters.handler_errors > 10)
    for ws in victims:
        await ws.close()
    await until(lambda: server.connection_count == 5)
    for ws in stay:
        events = []
        while len(events) < 30:
            events.append(json.loads(await asyncio.wait_for(ws.recv(), 20)))
        assert [one["data"] for one in events if one["type"] == "n"] == list(range(10))
        assert len([one for one in events if one["type"] == "gone"]) == 20
        await ws.close()


# --- the process ------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
async def test_a_process_that_was_stopped_keeps_its_clients() -> None:
    with Process(ping_s=1.0) as process:
        clients = [await connect(process.url, ping_interval=None) for _ in range(20)]
        await asyncio.sleep(1.2)  # pings have been out
        process.popen.send_signal(signal.SIGSTOP)
        await asyncio.sleep(2.5)  # longer than ping and pong together
        process.popen.send_signal(signal.SIGCONT)
        await asyncio.sleep(0.5)
        for ws in clients:
            await ws.send('{"type":"echo","data":1}')
            assert await asyncio.wait_for(ws.recv(), 20) == '{"type":"echo","data":1}'
            await ws.close()

"""Attacks on the handshake and on HTTP, and what must come of them. A1 to A8 are the names of the attacks:

A1 slowloris, A2 huge and many headers, A3 headers that make a parser slow, A4 foreign pages (CSWSH), A5 requests
smuggled behind a refused upgrade, A6 heads that two parsers read differently, A7 clients that go away in the
handshake, A8 a flood of connections and no descriptors left.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import subprocess
import sys
import time
import tracemalloc
from typing import Any

import pytest

from street_fast import Limits, Member, Request, StreetWebSocketServer
from street_fast._core import LoopContext
from street_fast.errors import HandshakeRefused
from street_fast.handshake import parse_extensions, parse_tokens
from street_fast.http_server import HttpServer
from tests.conformance.test_http_heads import HEADS, by_h11
from tests.frames_harness import byte_by_byte
from tests.http_harness import Bench, exchange, handshake, head, on_loop, parse, serving, settle, text

__all__ = ["on_loop"]  # a fixture


@pytest.fixture
def rand() -> random.Random:
    seed = random.randrange(2**32)
    print(f"seed={seed}")
    return random.Random(seed)


# --- A1: slowloris ---


async def test_a1_dribbled_heads_end_at_the_deadline_and_keep_nobody_out():
    bench = Bench(Limits(handshake_timeout_s=10.0, unfinished_handshakes=1_000))
    bench.server.get("/", text("hello"))
    slow = handshake("/ws")
    attackers = [bench.connect() for _ in range(500)]
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ended: dict[int, int] = {}
        for second in range(1, 13):
            for number, attacker in enumerate(attackers):
                if attacker.wire.closing:
                    ended.setdefault(number, second - 1)
                else:
                    attacker.send(slow[second : second + 1] if second > 1 else slow[:2])
            if second == 9:
                held = tracemalloc.get_traced_memory()[0] - before
            good = bench.connect()
            good.send(head("GET", "/", "Connection: close"))
            assert good.answer.status == 200
            await good.wait(1.0)
    finally:
        tracemalloc.stop()
    assert set(ended.values()) == {10}
    assert len(ended) == len(attackers)
    assert held / len(attackers) < 1_000  # bytes that an attacker gets for nine of his own
    bench.assert_clean()


async def test_a1_five_thousand_at_once_are_bounded():
    bench = Bench(Limits(unfinished_handshakes=1_000))
    bench.server.get("/", text("hello"))
    waves = []
    for _ in range(5):
        waves.append([bench.connect() for _ in range(1_000)])
        for attacker in waves[-1]:
            attacker.send(b"GE")
        bench.clock.now += 1.1
        good = bench.connect()
        good.send(head("GET", "/", "Connection: close"))
        assert good.answer.status == 200
        await settle()
        assert bench.server.connection_count <= 1_001
    await waves[-1][0].wait(11.0)
    bench.assert_clean()


def test_a1_on_real_sockets(on_loop):
    server = HttpServer(limits=Limits(handshake_timeout_s=0.4))
    server.get("/", text("hello"))

    async def attack() -> None:
        """Returns when the server has ended it: with a 408, or with a reset if a byte crossed that."""
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        try:
            for byte in byte_by_byte(handshake("/ws") * 100):
                writer.write(byte)
                with contextlib.suppress(asyncio.TimeoutError):
                    assert [answer.status for answer in parse(await asyncio.wait_for(reader.read(), 0.05))] in (
                        [],
                        [408],
                    )
                    return
            pytest.fail("the bytes extended the deadline")
        except ConnectionError:
            return
        finally:
            writer.close()

    async def main() -> None:
        async with serving(server):
            attackers = asyncio.gather(*(attack() for _ in range(50)))
            while not attackers.done():
                (good,) = parse(await exchange(server, head("GET", "/", "Connection: close")))
                assert good.status == 200
                await asyncio.sleep(0.05)
            await attackers
            await asyncio.sleep(0.05)
            assert server.connection_count == 0

    on_loop(main)


# --- A2: huge and many headers ---


@pytest.mark.parametrize(
    ("wire", "statuses"),
    [
        (b"GET /" + b"x" * 1_000_000, {414}),
        (b"GET / HTTP/1.1\r\nHost: h\r\nX: " + b"x" * 1_000_000, {431}),
        (b"GET / HTTP/1.1\r\nHost: h\r\n" + b"X" * 1_000_000, {431}),
        (head("GET", "/", *["X: y"] * 2_000), {431}),
        (handshake("/", *["X: y"] * 96), {431}),
        (head("GET", "/", *["X: y"] * 100, *handshake().decode().split("\r\n")[2:-2]), {431}),
        (head("GET", "/", *[f"Cookie: {'x' * 4_000}"] * 5), {431}),
    ],
)
@pytest.mark.parametrize("size", [1, 1_460, 65_536])
async def test_a2_too_much_is_refused_as_soon_as_it_is(wire, statuses, size):
    bench = Bench()
    bench.server.get("/", text("hello"))
    client = bench.connect()
    sent = 0
    while sent < len(wire) and not client.wire.half_closed:
        client.send(wire[sent : sent + size])
        sent += size
    assert client.answer.status in statuses
    assert client.answer.closes
    assert sent <= bench.server.limits.request_head_bytes + 2 * size
    await client.wait(2.5)  # it never closes its side
    bench.assert_clean()


# --- A3: headers that make a parser slow ---


def calls(function: Any, *arguments: Any) -> int:
    """How many calls it makes, of Python and of C."""
    count = 0

    def profile(_frame: object, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        with contextlib.suppress(ValueError, HandshakeRefused):
            function(*arguments)
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "unit",
    ["a, ", "a, a ,", ",", " ,\t", "a;", "a;b;", 'a;b="c";', '"', 'a;b="', 'a;b="\\', "\\", "a;b=", " ", "\t ", ", , ",
     "__proto__,", "constructor;x,", "a" * 50 + ",", "((((", "a" + " " * 50 + ";", ";,"],
)  # fmt: skip
@pytest.mark.parametrize("parse_value", [parse_tokens, parse_extensions])
def test_a3_the_work_grows_no_faster_than_the_header(unit, parse_value):
    """In calls, not in seconds; what one call does is a run of characters that it steps over, or a split."""
    small, large = ([unit * (size // len(unit))] for size in (1_000, 8_000))
    assert calls(parse_value, large) <= 8 * 1.1 * calls(parse_value, small) + 20


@pytest.mark.parametrize("name", ["Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions"])
async def test_a3_through_the_server(name):
    bench = Bench()
    seen: list[Any] = []
    bench.server.upgrade("/ws", seen.append)
    client = bench.connect()
    client.send(handshake("/ws", *[f"{name}: {'a, a ,' * 500}"] * 4))
    assert len(seen) == 1
    assert len(parse_tokens(seen[0].request.headers.get_all(name))) == 4_000
    client.vanish()
    await settle()


# --- A4: foreign pages ---


@contextlib.asynccontextmanager
async def chat(**options: Any):
    """A StreetWebSocketServer on /ws beside a page at /; counts whom its hooks see."""
    seen = {"authenticated": 0, "opened": 0, "routed": 0}

    def authenticate(request: Request) -> Member | None:
        seen["authenticated"] += 1
        return Member("m") if request.query.get("user") else None

    def opened(_socket: object, _request: Request) -> None:
        seen["opened"] += 1

    def page(_request: Request) -> str:
        seen["routed"] += 1
        return "page"

    http = HttpServer(limits=options.get("limits", Limits()))
    http.get("/", page)
    http.post("/", page)
    server = StreetWebSocketServer(path="/ws", **{"authenticate": authenticate, **options})
    server.attach(http, opened)
    async with serving(http):
        yield http, server, seen


ORIGINS = [
    "null", "", "http://evil.example", "http://127.0.0.1", "https://127.0.0.1:{port}", "http://127.0.0.1.:{port}",
    "http://127.0.0.1:{port}.evil.example", "http://evil127.0.0.1:{port}", "http://user@127.0.0.1:{port}",
    "http://127.0.0.1:{port}@evil.example", "http://127.0.0.1:{port}/", "http://localhost:{port}",
    "http://b\xfccher.example", "http://xn--bcher-kva.example", "http://127.0.0.1:{port}, http://127.0.0.1:{port}",
    "file://", "127.0.0.1:{port}", "//127.0.0.1:{port}",
]  # fmt: skip


def test_a4_no_foreign_page_reaches_the_application(on_loop):
    async def main() -> dict[str, int]:
        async with chat() as (http, _, seen):
            own = f"http://127.0.0.1:{http.port}"
            host = f"127.0.0.1:{http.port}"
            for origin in ORIGINS:
                spoofed = ["X-Forwarded-Host: evil.example", "Forwarded: host=evil.example"]
                # "https://host:port" names the same host and port as ours; a proxy that ends TLS makes it so.
                wire = handshake("/ws?user=1", *spoofed, Host=host, Origin=origin.format(port=http.port))
                data = await exchange(http, wire, end=True)
                expected = [101] if origin.startswith("https://127.0.0.1:{port}") else [403]
                assert [int(data[9:12])] == expected, origin
            two = handshake("/ws?user=1", f"Origin: {own}", Host=host, Origin=own)
            assert parse(await exchange(http, two))[0].status == 403
            return seen

    assert on_loop(main) == {"authenticated": 1, "opened": 1, "routed": 0}


# --- A5: requests behind a refused upgrade ---


def test_a5_nothing_behind_a_refused_upgrade_is_routed(on_loop):
    refused = [
        (handshake("/ws"), 401),
        (handshake("/ws?user=1", Origin="http://evil.example"), 403),
        (handshake("/elsewhere"), 404),
        (handshake("/ws").replace(b"GET", b"POST", 1), 405),
        (head("GET", "/ws"), 426),
        (handshake("/ws?user=1", Upgrade="notupgrade"), 426),
        (handshake("/ws?user=1", Sec_WebSocket_Version="8"), 426),
        (handshake("/ws?user=1", Sec_WebSocket_Key="x"), 400),
        (handshake("/ws?user=1", "Content-Length: 3") + b"abc", 400),
        (handshake("/ws?user=1", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (handshake("/ws?user=1", "Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (handshake("/ws?user=1", "X: " + "x" * 9_000), 431),
        (handshake("/" + "x" * 9_000), 414),
        (head("POST", "/", "Content-Length: 99999999"), 413),
        (head("POST", "/", "Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n", 501),
        (handshake("/", Upgrade="h2c"), 200),
        (head("POST", "/", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 200),
    ]

    async def main() -> None:
        async with chat() as (http, server, seen):
            for wire, status in refused:
                for behind in (head(), head("POST", "/", "Content-Length: 0"), handshake("/ws?user=1")):
                    data = await exchange(http, wire + behind)
                    (answer,) = parse(data, [wire.partition(b" ")[0].decode()])
                    assert (answer.status, answer.closes) == (status, True), wire
            assert seen["routed"] == 2 * 3
            assert seen["opened"] == 0
            assert server.connection_count == http.connection_count == 0

    on_loop(main)


def test_a5_over_capacity_is_a_refusal_too(on_loop):
    async def main() -> None:
        async with chat(max_connections=1, authenticate=None) as (http, server, seen):
            reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
            writer.write(handshake("/ws"))
            assert (await reader.readline()).startswith(b"HTTP/1.1 101 ")
            assert server.connection_count == 1
            (answer,) = parse(await exchange(http, handshake("/ws") + head()))
            assert answer.status == 503
            assert "retry-after" in answer.headers
            assert seen["routed"] == 0
            writer.close()

    on_loop(main)


# --- A6: heads that two parsers read differently (all of them: tests/conformance/test_http_heads.py) ---


def test_a6_on_real_sockets(on_loop, rand):
    bad = [wire for reason, wire in HEADS if reason is not None or by_h11(wire) is None]
    sample = rand.sample(bad, 60)

    async def main() -> None:
        async with chat() as (http, _, seen):
            for wire in sample:
                at = rand.randrange(len(wire))
                (answer,) = parse(await exchange(http, wire[:at], wire[at:] + head(), pause=True))
                assert answer.status in (400, 501, 505), wire
                assert answer.closes
            assert seen["routed"] == 0

    on_loop(main)


# --- A7: clients that go away in the handshake ---


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_a7_clients_that_go_at_any_byte_and_at_any_moment_leave_nothing(on_loop, rand):
    async def authenticate(_request: Request) -> Member | None:
        await asyncio.sleep(rand.choice([0, 0, 0.001, 0.01, 5]))
        if rand.random() < 0.05:
            raise RuntimeError("the database is down")
        return Member("m") if rand.random() < 0.8 else None

    async def come_and_go(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        wire = rand.choice(
            [handshake("/ws"), handshake("/ws") + b"\x81\x80abcd", head(), head("POST", "/", "Content-Length: 9")]
        )
        writer.write(wire[: rand.choice([len(wire), rand.randrange(len(wire) + 1)])])
        await asyncio.sleep(rand.choice([0, 0, 0.001, 0.005, 0.02]))
        how = rand.randrange(4)
        if how == 0:
            writer.transport.abort()
        elif how == 1:
            writer.transport.get_extra_info("socket").setsockopt(
                socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0"
            )
            writer.close()
        elif how == 2:
            writer.write_eof()
            with contextlib.suppress(OSError, asyncio.TimeoutError):
                await asyncio.wait_for(reader.read(), 0.02)
            writer.transport.abort()
        else:
            writer.close()

    async def main() -> None:
        async with chat(authenticate=authenticate, limits=Limits(close_timeout_s=0.2, abort_timeout_s=0.2)) as (
            http,
            server,
            _,
        ):
            await come_and_go(http.port)
            wheel = LoopContext.of().wheel
            tasks = len(asyncio.all_tasks())
            baseline = descriptors()
            for _ in range(12):
                await asyncio.gather(*(come_and_go(http.port) for _ in range(40)))
            deadline = time.monotonic() + 10
            while time.monotonic() < deadline:
                await asyncio.sleep(0.02)
                if http.connection_count == server.connection_count == 0 and len(asyncio.all_tasks()) <= tasks:
                    break
            assert http.connection_count == 0
            assert server.connection_count == 0
            assert not server._authenticating
            assert not http._unfinished
            assert len(asyncio.all_tasks()) <= tasks
            assert len(wheel) == 0
            assert descriptors() <= baseline + 1

    on_loop(main)


# --- A8: no descriptors left ---

SERVER = """
import asyncio, logging, resource, signal, sys, time
from street_fast.http_server import HttpServer
if sys.argv[1] == "uvloop":
    import uvloop as loops
else:
    import asyncio as loops
logging.disable()

async def main():
    server = HttpServer()
    server.get("/", lambda request: "hello")
    server.get("/cpu", lambda request: [time.process_time()])
    await server.listen(port=0, backlog=128)
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    print(server.port, flush=True)
    await server.wait_closed()

loop = loops.new_event_loop()
loop.run_until_complete(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_NOFILE")
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
async def test_a8_without_descriptors_it_waits_and_comes_back(loop):
    if loop == "uvloop":
        pytest.importorskip("uvloop")
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", SERVER, loop, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        port = int(await process.stdout.readline())

        async def ask(target: str) -> bytes:
            """Asks until it is answered."""
            for _ in range(100):
                with contextlib.suppress(OSError, asyncio.TimeoutError, ValueError):
                    reader, writer = await asyncio.open_connection("127.0.0.1", port)
                    try:
                        writer.write(head("GET", target, "Connection: close"))
                        (answer,) = parse(await asyncio.wait_for(reader.read(), 2))
                        return answer.body
                    finally:
                        writer.close()
                await asyncio.sleep(0.05)
            pytest.fail("it does not come back")

        before = float((await ask("/cpu"))[1:-1])
        dialled = [socket.socket() for _ in range(200)]
        for sock in dialled:
            sock.setblocking(False)
            sock.connect_ex(("127.0.0.1", port))
        await asyncio.sleep(1.0)
        assert process.returncode is None
        for sock in dialled:
            sock.close()
        assert await ask("/") == b"hello"
        spent = float((await ask("/cpu"))[1:-1]) - before
        assert spent < 0.5  # of more than a second: no busy loop
    finally:
        process.kill()
        await process.communicate()

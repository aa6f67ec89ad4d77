"""WebSockets under peers that never read, vanish at any byte, or come back from a stopped process.

Real sockets on loopback. What must hold: others are served as if nothing was, and nothing is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

from street_fast._core import OP_BINARY, OP_TEXT, Frame, LoopContext, WebSocket, broadcast, encode_close, encode_frame
from street_fast.limits import Limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

pytestmark = pytest.mark.both_loops

ROOT = Path(__file__).resolve().parents[2]
MASK = b"\x01\x02\x03\x04"


class Endpoint:
    """WebSockets behind a listening socket, without HTTP: each begins as soon as it is accepted."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.connections: dict[WebSocket, None] = {}
        self.closed: list[tuple[int, str]] = []
        self.context = LoopContext.of()

    def accept(self) -> asyncio.Protocol:
        endpoint = self

        class Accepted(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                ws = WebSocket(endpoint.context, endpoint.limits)
                endpoint.connections[ws] = None

                def on_close(code: int, reason: str) -> None:
                    endpoint.closed.append((code, reason))
                    del endpoint.connections[ws]

                ws.on_close = on_close
                ws.start(cast("asyncio.Transport", transport))

        return Accepted()


@contextlib.asynccontextmanager
async def listening(limits: Limits, send_buffer: int = 0) -> AsyncIterator[tuple[Endpoint, int]]:
    endpoint = Endpoint(limits)
    listener = socket.create_server(("127.0.0.1", 0))
    if send_buffer:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)  # inherited by what it accepts
    server = await asyncio.get_running_loop().create_server(endpoint.accept, sock=listener, backlog=4_096)
    try:
        yield endpoint, listener.getsockname()[1]
    finally:
        server.close()
        for ws in list(endpoint.connections):
            ws.abort()
        await until(lambda: not endpoint.connections)


async def until(condition: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.002)


def dial(port: int, receive_buffer: int = 0) -> socket.socket:
    client = socket.socket()
    if receive_buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    client.connect(("127.0.0.1", port))
    client.setblocking(False)
    return client


async def dial_many(count: int, port: int, receive_buffer: int = 0) -> list[socket.socket]:
    clients = []
    for number in range(count):
        clients.append(dial(port, receive_buffer))
        if number % 50 == 49:
            await asyncio.sleep(0)  # the listener's backlog has its bounds
    return clients


def read_into(client: socket.socket, received: bytearray) -> None:
    with contextlib.suppress(BlockingIOError):
        received += client.recv(1 << 20)


async def test_a_thousand_who_never_read_beside_a_thousand_who_do() -> None:
    """Row D1: the slow are closed with 4008, the others get every frame in order."""
    each = 1_000 if resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 4_500 else 100
    limits = Limits(write_soft_bytes=16_384, write_hard_bytes=65_536, abort_timeout_s=0.5)
    async with listening(limits, send_buffer=16_384) as (endpoint, port):
        slow = await dial_many(each, port, receive_buffer=4_096)
        readers = await dial_many(each, port)
        await until(lambda: len(endpoint.connections) == 2 * each)
        received = dict.fromkeys(readers, 0)
        sent = b""
        number = 0
        while len(endpoint.connections) > each:
            assert number < 20_000, "the slow are not evicted"
            frame = Frame.text(f"{number:04}" * 2_000)
            assert broadcast(endpoint.connections, frame) >= each
            sent += frame.wire
            number += 1
            # Read everything before the next one, so that only the slow are slow.
            pending = set(readers)
            deadline = time.monotonic() + 20
            while pending:
                assert time.monotonic() < deadline, f"{len(pending)} readers wait for frame {number}"
                for reader in list(pending):
                    with contextlib.suppress(BlockingIOError):
                        piece = reader.recv(1 << 16)
                        at = received[reader]
                        assert piece == sent[at : at + len(piece)]
                        received[reader] = at + len(piece)
                    if received[reader] == len(sent):
                        pending.discard(reader)
                await asyncio.sleep(0)
        assert len(endpoint.connections) == each
        assert {code for code, _ in endpoint.closed} == {4008}
        assert len(endpoint.closed) == each
        assert endpoint.context.stats()["slow_consumers"] == each
        for client in [*slow, *readers]:
            client.close()


async def test_a_blocked_peer_gets_whole_frames_in_order_once_it_reads() -> None:
    """Partial writes, frames kept as references, resumption: the byte stream is what was sent."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    async with listening(Limits(write_hard_bytes=1 << 26), send_buffer=16_384) as (endpoint, port):
        client = dial(port, receive_buffer=8_192)
        await until(lambda: len(endpoint.connections) == 1)
        (ws,) = endpoint.connections
        expected = bytearray()
        received = bytearray()
        for number in range(400):
            payload = rng.randbytes(rng.choice([0, 5, 200, 5_000, 70_000]))
            assert ws.send(payload)
            expected += encode_frame(OP_BINARY, payload)
            if rng.random() < 0.2:
                await asyncio.sleep(0)
            if number % 40 == 0:
                read_into(client, received)
        assert ws.bytes_buffered > 1_000_000
        drained = asyncio.ensure_future(ws.drain())
        await asyncio.sleep(0)
        assert not drained.done()
        while len(received) < len(expected):
            read_into(client, received)
            await asyncio.sleep(0)
        assert received == expected
        await asyncio.wait_for(drained, 20)
        await until(lambda: ws.bytes_buffered == 0)
        client.close()


async def test_slow_peers_of_one_channel_share_one_copy() -> None:
    """Row D1: what waits for a slow peer is references to the same frames, not copies."""
    async with listening(Limits(write_hard_bytes=1 << 26), send_buffer=16_384) as (endpoint, port):
        clients = [dial(port, receive_buffer=4_096) for _ in range(20)]
        await until(lambda: len(endpoint.connections) == 20)
        frames = [Frame.binary(bytes([number]) * 50_000) for number in range(20)]
        before = [sys.getrefcount(frame.wire) for frame in frames]
        for frame in frames:
            broadcast(endpoint.connections, frame)
            await asyncio.sleep(0)
        await until(lambda: all(ws.bytes_buffered > 500_000 for ws in endpoint.connections))
        assert sys.getrefcount(frames[-1].wire) >= before[-1] + 20
        for client in clients:
            client.close()
        await until(lambda: not endpoint.connections)
        assert [sys.getrefcount(frame.wire) for frame in frames] == before


@pytest.mark.parametrize("reset", [False, True], ids=["fin", "rst"])
async def test_a_client_that_vanishes_at_any_byte_leaves_nothing(reset: bool) -> None:
    stream = (
        encode_frame(OP_TEXT, b"hello", mask=MASK)
        + encode_frame(OP_TEXT, b"a" * 200, fin=False, mask=MASK)
        + encode_frame(9, b"ping", mask=MASK)
        + encode_frame(0, b"b" * 70, mask=MASK)
        + encode_frame(8, encode_close(1000, "bye"), mask=MASK)
    )
    async with listening(Limits()) as (endpoint, port):
        timers = len(endpoint.context.wheel)
        for length in range(len(stream)):
            client = socket.create_connection(("127.0.0.1", port))
            client.sendall(stream[:length])
            if reset:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            if length % 16 == 0:
                await asyncio.sleep(0)
        await until(lambda: len(endpoint.closed) == len(stream))
        assert not endpoint.connections
        assert {code for code, _ in endpoint.closed} == {1006}
        assert len(endpoint.context.wheel) == timers
        assert endpoint.context.stats()["connections"] == 0


async def test_pings_from_a_peer_that_never_reads_are_answered_with_the_newest_only() -> None:
    """Row B5 (RFC 6455 section 5.5.3): the write buffer stays near the soft mark."""
    limits = Limits(control_frames_per_second=1e9, control_frames_burst=10**9, write_soft_bytes=16_384)
    async with listening(limits, send_buffer=4_096) as (endpoint, port):
        client = dial(port, receive_buffer=4_096)
        await until(lambda: len(endpoint.connections) == 1)
        (ws,) = endpoint.connections
        wire = b"".join(encode_frame(9, struct.pack(">I", n) * 30, mask=MASK) for n in range(5_000))
        sent = 0
        while sent < len(wire):
            with contextlib.suppress(BlockingIOError):
                sent += client.send(wire[sent : sent + 65_536])
            await asyncio.sleep(0)
            assert ws.bytes_buffered < 2 * limits.write_soft_bytes
        answers = bytearray()
        last = encode_frame(10, struct.pack(">I", 4_999) * 30)
        deadline = time.monotonic() + 10
        while not answers.endswith(last):
            assert time.monotonic() < deadline
            read_into(client, answers)
            await asyncio.sleep(0)
        client.close()


async def test_a_ping_flood_is_a_policy_violation() -> None:
    """Row B5: 100 at once are answered, ten times as many are not, however slow this machine is."""
    async with listening(Limits()) as (endpoint, port):
        client = dial(port)
        client.send(encode_frame(9, b"", mask=MASK) * 1_000)
        received = bytearray()
        await until(lambda: read_into(client, received) or b"\x88" in received)
        client.close()
        await until(lambda: endpoint.closed)
        answers = received[: received.index(b"\x88")]
        assert answers == encode_frame(10, b"") * (len(answers) // 2)
        assert 100 <= len(answers) // 2 < 1_000
        assert received[len(answers) + 2 :][:2] == struct.pack(">H", 1008)
        assert endpoint.closed[0][0] == 1008


STOPPED_SERVER = """
import asyncio
import sys
from street_fast._core import LoopContext, WebSocket
from street_fast.limits import Limits

class Accepted(asyncio.Protocol):
    def connection_made(self, transport):
        ws = WebSocket(LoopContext.of(), Limits(ping_interval_s=0.2, pong_timeout_s=1.5))
        ws.on_close = lambda code, reason: print("closed", code, reason, flush=True)
        ws.start(transport)

async def main():
    server = await asyncio.get_running_loop().create_server(Accepted, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.sleep(60)

loop = __import__(sys.argv[1]).new_event_loop()
loop.run_until_complete(main())
"""


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="this system cannot stop a process")
async def test_a_process_that_was_stopped_drops_no_healthy_peer() -> None:
    """Row H2: after SIGCONT every timer is due at once; what the peers answered meanwhile is read first."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    loop_module = type(asyncio.get_running_loop()).__module__.partition(".")[0]
    server = subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", STOPPED_SERVER, loop_module], stdout=subprocess.PIPE, env=environment, text=True
    )
    assert server.stdout is not None
    try:
        port = int(server.stdout.readline())
        clients = [dial(port) for _ in range(20)]

        def answer_pings() -> int:
            answered = 0
            for client in clients:
                with contextlib.suppress(BlockingIOError):
                    piece = client.recv(4_096)
                    assert piece, "the server hung up on a healthy client"
                    for _ in range(piece.count(b"\x89\x00")):
                        client.send(encode_frame(10, b"", mask=MASK))
                        answered += 1
            return answered

        await until(lambda: answer_pings() > 0)
        server.send_signal(signal.SIGSTOP)
        stopped_until = time.monotonic() + 2.0  # pings and pong deadlines pass
        while time.monotonic() < stopped_until:
            answer_pings()
            for client in clients:
                client.send(encode_frame(10, b"", mask=MASK))
            await asyncio.sleep(0.05)
        server.send_signal(signal.SIGCONT)
        await until(lambda: answer_pings() > 0)
        for _ in range(50):
            answer_pings()
            await asyncio.sleep(0.01)
        for client in clients:
            client.shutdown(socket.SHUT_WR)  # not closed: a ping that nobody has read would make it a reset
        lines = [server.stdout.readline() for _ in clients]
        assert all(line.startswith("closed 1006 the peer hung up") for line in lines), lines
        for client in clients:
            client.close()
    finally:
        server.kill()
        server.wait()
        server.stdout.close()

"""WebSocket over real sockets, compiled and pure, on asyncio and uvloop: what the kernel decides.

test_connection.py has what needs no kernel.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import socket
import struct
import weakref

import pytest

from street_fast.limits import Limits
from tests.connection_harness import Clock, connected, until
from tests.frames_harness import BINARY, CLOSE, TEXT, frame

pytestmark = pytest.mark.both_loops


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


class TestRealSockets:
    @pytest.mark.parametrize("tcp", [True, False])
    async def test_echo(self, core, tcp):
        async with connected(core, tcp=tcp) as link:
            link.ws.on_message = link.ws.send
            for message in (b"a", b"", b"x" * 1_000, b"y" * 100_000):
                await link.peer.send(frame(BINARY, message))
                assert await link.peer.frame() == (BINARY, message)

    async def test_a_slow_reader_gets_everything_in_order(self, core):
        """Partial writes, frames handed over to the transport, and those that wait behind them."""
        limits = Limits(write_soft_bytes=100_000, write_hard_bytes=100_000_000)
        async with connected(core, limits) as link:
            link.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
            sent = []
            for i in range(300):
                message = b"%d " % i * (i * 37 % 5_000 + 1)
                sent.append(message)
                assert link.ws.send(message)
                if i % 7 == 0:
                    await asyncio.sleep(0)
            assert link.ws.bytes_buffered > 0
            drained = asyncio.ensure_future(link.ws.drain())
            for message in sent:
                assert await link.peer.frame() == (BINARY, message)
            await drained
            assert link.ws.bytes_buffered == 0
            link.ws.send("still fine")
            assert await link.peer.frame() == (TEXT, b"still fine")

    async def test_a_slow_reader_that_says_goodbye_is_lost_once(self, core):
        """The transport is not closed within resume_writing(): asyncio would call connection_lost() twice."""
        problems = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: problems.append(context))
        message = b"x" * 8_000_000
        async with connected(core, Limits(write_soft_bytes=10_000_000, write_hard_bytes=100_000_000)) as link:
            closes = []
            link.ws.on_close = lambda code, reason: closes.append(code)
            link.ws.send(message)
            await until(lambda: link.ws.bytes_buffered > 0)
            await link.peer.send(frame(CLOSE, b"\x03\xe8"))
            assert await link.peer.frame() == (BINARY, message)
            await link.peer.frame()
            await until(lambda: closes)
            await asyncio.sleep(0.01)
        assert closes == [1000]
        assert problems == []

    async def test_bursts_of_many_frames(self, core):
        """More than fit into one vector, and more bytes than are joined."""
        async with connected(core) as link:
            for count, size in ((64, 10), (65, 10), (300, 10), (3, 40_000), (100, 1_000)):
                messages = [b"%d" % i + bytes(size) for i in range(count)]
                writes = link.ws.context.stats()["writes"]
                for message in messages:
                    link.ws.send(message)
                for message in messages:
                    assert await link.peer.frame() == (BINARY, message)
                if count <= 64 and size < 1_000:
                    assert link.ws.context.stats()["writes"] == writes + 1

    async def test_the_protocol_before_is_let_go(self, core):
        """uvloop keeps a reference to the protocol that an upgrade replaced, unless it is talked out of it."""
        near, far = socket.socketpair()
        near.setblocking(False)
        before = type("Before", (asyncio.Protocol,), {})
        transport, protocol = await asyncio.get_running_loop().create_connection(before, sock=near)
        gone = weakref.ref(protocol)
        ws = core.WebSocket(core.LoopContext.of())
        ws.start(transport)
        del protocol
        gc.collect()
        try:
            assert gone() is None
        finally:
            ws.abort()
            await ws.wait_closed()
            far.close()

    async def test_a_peer_that_resets_the_connection(self, core):
        async with connected(core) as link:
            link.peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            link.peer.close()
            for _ in range(20):
                link.ws.send(b"into the void")
                await asyncio.sleep(0)
            await asyncio.wait_for(link.ws.wait_closed(), 20)
            assert [code for code, _ in link.ends] == [1006]
            assert link.ws.send("a") is False

    async def test_a_closed_descriptor_is_never_written_to(self, core):
        """The kernel gives the number of a closed socket to the next one that is opened."""
        async with connected(core) as link:
            descriptor = link.transport.get_extra_info("socket").fileno()
            link.ws.send("last")
            link.ws.abort()
            link.ws.send("too late")
            await link.ws.wait_closed()
            await until(lambda: not is_open(descriptor))
            pairs = [socket.socketpair() for _ in range(10)]
            try:
                (observer,) = [
                    other for pair in pairs for one, other in (pair, pair[::-1]) if one.fileno() == descriptor
                ]
                assert link.ws.send("too late") is False
                core.broadcast([link.ws], "too late")
                await asyncio.sleep(0.01)
                observer.setblocking(False)
                with pytest.raises(BlockingIOError):
                    observer.recv(100)
            finally:
                for end in itertools.chain(*pairs):
                    end.close()

    async def test_peers_that_break_the_rules_and_reset_disturb_nobody(self, core):
        """asyncio's write_eof() raises where the peer has reset the connection and the loop has not seen it yet."""
        async with connected(core) as good, contextlib.AsyncExitStack() as stack:
            rude = [await stack.enter_async_context(connected(core)) for _ in range(30)]
            for link in rude:
                await link.peer.send(b"\x83\x80")  # a reserved opcode
                link.peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                link.peer.close()
                link.ws.send("too late")
            for number in range(10):
                core.broadcast([link.ws for link in rude] + [good.ws], str(number))
                assert await good.peer.frame() == (TEXT, str(number).encode())
            await until(lambda: all(link.ends for link in rude))

    async def test_a_peer_that_hangs_up_half(self, core):
        """Half-closed by the peer: what is queued is still written, then the connection ends with 1006."""
        async with connected(core) as link:
            link.ws.send(b"x" * 1_000)
            link.peer.socket.shutdown(socket.SHUT_WR)
            await until(lambda: link.ends)
            assert link.ends == [(1006, "the peer hung up without a close frame")]
            assert len(await link.peer.end()) == 1_004

    async def test_eviction_with_a_full_kernel_buffer(self, core):
        limits = Limits(write_soft_bytes=10_000, write_hard_bytes=50_000, abort_timeout_s=0.2)
        async with connected(core, limits) as link:
            await until(lambda: not link.ws.send(bytes(100_000)))
            await until(lambda: link.ends)
            assert link.ends[0][0] == 4008

    async def test_a_frame_whose_rest_waits_for_many_counts_once_in_what_all_may_hold(self, core):
        """A transport keeps a view of it, no copy: nobody is evicted although all together are far above the bound."""
        limits = Limits(outbound_total_bytes=4_000_000, write_hard_bytes=100_000_000)
        loop = asyncio.get_running_loop()
        clock = Clock()
        context = core.LoopContext(loop, clock)
        async with contextlib.AsyncExitStack() as stack:
            sockets = []
            for _ in range(10):
                near, far = socket.socketpair()
                stack.callback(far.close)
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 10_000)
                near.setblocking(False)
                ws = core.WebSocket(context, limits)
                await loop.create_connection(lambda ws=ws: ws, sock=near)
                stack.push_async_callback(ws.wait_closed)
                stack.callback(ws.abort)
                sockets.append(ws)

            async def a_second_passes():
                await asyncio.sleep(0)
                clock.now += 1.1
                context.wheel.advance()

            core.broadcast(sockets, bytes(1_000_000))
            await a_second_passes()
            assert context.stats()["bytes_waiting"] > 9_000_000
            assert not any(ws.closed for ws in sockets)
            for ws in sockets:
                ws.send(bytes(500_000))
            await a_second_passes()
            assert 1 <= sum(ws.closed for ws in sockets) < 10

    async def test_many_that_do_not_read_do_not_disturb_one_who_does(self, core):
        limits = Limits(write_soft_bytes=10_000, write_hard_bytes=50_000)
        async with connected(core, limits, tcp=False) as good:
            context = core.LoopContext.of()
            slow = []
            for _ in range(50):
                near, far = socket.socketpair()
                near.setblocking(False)
                ws = core.WebSocket(context, limits)
                await asyncio.get_running_loop().create_connection(lambda ws=ws: ws, sock=near)
                slow.append((ws, far))
            for _ in range(60):
                core.broadcast([ws for ws, _ in slow] + [good.ws], bytes(10_000))
                assert (await good.peer.frame())[0] == BINARY
            assert all(ws.close_code == 4008 for ws, _ in slow)
            for ws, far in slow:
                ws.abort()
                await ws.wait_closed()
                far.close()


async def test_tls_carries_messages_of_any_size_both_ways(core, certificate):
    """Longer than a TLS record, than a read, and to a peer that does not read for a while."""
    loop = asyncio.get_running_loop()
    accepted = loop.create_future()

    def accept():
        ws = core.WebSocket(core.LoopContext.of(), Limits(write_hard_bytes=1 << 26))
        ws.on_message = ws.send
        accepted.set_result(ws)
        return ws

    server = await loop.create_server(accept, "127.0.0.1", 0, ssl=certificate.server)
    port = server.sockets[0].getsockname()[1]
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=certificate.client, limit=1 << 22)
    ws = await accepted
    for size in (0, 125, 16_385, 60_000, 300_000):
        message = bytes(range(256)) * (size // 256 + 1)
        writer.write(frame(BINARY, message))
        echoed = frame(BINARY, message, mask=None)
        assert await asyncio.wait_for(reader.readexactly(len(echoed)), 20) == echoed
    sent = b""
    for number in range(100):
        ws.send(bytes([number]) * 40_000)
        sent += frame(BINARY, bytes([number]) * 40_000, mask=None)
        await asyncio.sleep(0)
    assert await asyncio.wait_for(reader.readexactly(len(sent)), 20) == sent
    await ws.drain()
    ws.close(1000, "bye")
    assert await asyncio.wait_for(reader.readexactly(7), 20) == b"\x88\x05\x03\xe8bye"
    writer.write(frame(8, b"\x03\xe8"))
    assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    server.close()
    await server.wait_closed()
    assert ws.close_code == 1000

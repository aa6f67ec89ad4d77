"""The test doubles behave like what they stand for; the transport is held to asyncio's own over TCP."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from street_fast._core import LoopContext
from street_fast.errors import ConnectionClosed, HandshakeRefused
from street_fast.http_server import HttpServer
from street_fast.hub import ChannelHub
from street_fast.limits import Limits
from street_fast.messages import Message
from street_fast.server import StreetWebSocketServer
from street_fast.testing import FakeConnection, ManualClock, MemoryTransport, memory_client, memory_pair

if TYPE_CHECKING:
    from street_fast.auth import Member
    from street_fast.request import Request
    from street_fast.street_socket import StreetSocket


async def turns(count=20):
    for _ in range(count):
        await asyncio.sleep(0)


async def until(condition):
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it did not happen")


class TestManualClock:
    def test_stands_still_until_it_is_told(self):
        clock = ManualClock(10.0)
        assert clock() == clock() == 10.0
        assert clock.advance(2.5) == clock() == 12.5
        assert clock.ms() == 12_500

    def test_does_not_go_back(self):
        with pytest.raises(ValueError, match="back"):
            ManualClock().advance(-1)


class TestFakeConnection:
    def test_keeps_what_it_is_sent(self):
        conn = FakeConnection("c1")
        conn.deliver(Message("chat", "room", {"n": 1}, 5))
        assert conn.messages == [{"type": "chat", "channel": "room", "data": {"n": 1}, "ts": 5}]
        assert conn.take() == [{"type": "chat", "channel": "room", "data": {"n": 1}, "ts": 5}]
        assert conn.take() == []
        assert (conn.id, conn.sink) == ("c1", conn)
        assert FakeConnection().id != FakeConnection().id

    def test_slow(self):
        conn = FakeConnection()
        conn.slow = True
        conn.deliver(Message("typing"), droppable=True)
        conn.deliver(Message("chat"))
        assert [message["type"] for message in conn.messages] == ["chat"]
        assert conn.dropped == 1

    def test_closes_once(self):
        conn, closed = FakeConnection(), []
        conn.add_close_callback(closed.append)
        conn.simulate_close()
        conn.simulate_close()
        assert closed == [conn]
        conn.add_close_callback(closed.append)
        assert closed == [conn, conn]
        conn.deliver(Message("chat"))
        assert conn.messages == []


class Recorder(asyncio.Protocol):
    """Writes down what the transport calls."""

    def __init__(self, keep_open=False):
        self.calls = []
        self.data = bytearray()
        self.keep_open = keep_open

    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        assert isinstance(data, bytes)
        self.data += data

    def eof_received(self):
        self.calls.append("eof")
        return self.keep_open

    def pause_writing(self):
        self.calls.append("pause")

    def resume_writing(self):
        self.calls.append("resume")

    def connection_lost(self, error):
        self.calls.append(("lost", type(error)))


class BufferedRecorder(Recorder, asyncio.BufferedProtocol):
    def __init__(self, size=10):
        super().__init__()
        self.buffer = bytearray(size)

    def get_buffer(self, sizehint):
        return self.buffer

    def buffer_updated(self, count):
        self.data += self.buffer[:count]


def memory_recorders(**options):
    ends = MemoryTransport.pair(**options)
    recorders = Recorder(), Recorder()
    for transport, recorder in zip(ends, recorders, strict=True):
        transport.set_protocol(recorder)
        recorder.connection_made(transport)
    return recorders


async def tcp_recorders():
    loop = asyncio.get_running_loop()
    accepted = Recorder()
    server = await loop.create_server(lambda: accepted, "127.0.0.1", 0)
    _, connected = await loop.create_connection(Recorder, *server.sockets[0].getsockname()[:2])
    await until(lambda: hasattr(accepted, "transport"))
    server.close()
    return connected, accepted


@pytest.fixture(params=["memory", "tcp"])
async def recorders(request):
    """Two connected protocols, over memory and, to compare, over TCP."""
    a, b = memory_recorders() if request.param == "memory" else await tcp_recorders()
    yield a, b
    a.transport.abort()
    b.transport.abort()
    await asyncio.sleep(0.01 if request.param == "tcp" else 0)


@pytest.mark.both_loops
class TestLikeTcp:
    async def test_carries_bytes_both_ways_in_order(self, recorders):
        a, b = recorders
        a.transport.write(b"one ")
        a.transport.writelines([b"two ", bytearray(b"three "), memoryview(b"four")])
        b.transport.write(b"back")
        assert b.data == b""  # not before a later turn of the loop
        await asyncio.wait_for(until(lambda: len(b.data) == 18 and len(a.data) == 4), 20)
        assert (bytes(a.data), bytes(b.data)) == (b"back", b"one two three four")

    async def test_close_sends_the_rest_and_both_are_told_once(self, recorders):
        a, b = recorders
        a.transport.write(b"x" * 300_000)
        a.transport.close()
        a.transport.close()
        a.transport.write(b"ignored")
        assert a.transport.is_closing()
        assert not any(isinstance(call, tuple) for call in a.calls)
        await asyncio.wait_for(until(lambda: ("lost", type(None)) in b.calls), 20)
        assert len(b.data) == 300_000
        assert b.calls == ["eof", ("lost", type(None))]
        assert a.calls[-1] == ("lost", type(None))
        assert sum(isinstance(call, tuple) for call in a.calls) == 1

    async def test_abort_tells_in_a_later_turn(self, recorders):
        a, b = recorders
        a.transport.abort()
        a.transport.abort()
        assert a.calls == []
        assert a.transport.is_closing()
        await asyncio.wait_for(until(lambda: b.calls[-1:] == [("lost", type(None))]), 20)
        assert a.calls == [("lost", type(None))]

    async def test_half_close(self, recorders):
        a, b = recorders
        b.keep_open = True
        assert a.transport.can_write_eof()
        a.transport.write(b"question")
        a.transport.write_eof()
        with pytest.raises(RuntimeError):
            a.transport.write(b"more")
        await asyncio.wait_for(until(lambda: b.calls == ["eof"]), 20)
        b.transport.write(b"answer")
        await asyncio.wait_for(until(lambda: a.data == b"answer"), 20)
        b.transport.close()
        await asyncio.wait_for(until(lambda: ("lost", type(None)) in a.calls and b.calls[-1] != "eof"), 20)
        assert b.calls == ["eof", ("lost", type(None))]

    async def test_backpressure(self, recorders):
        a, b = recorders
        a.transport.set_write_buffer_limits(high=100_000, low=10_000)
        b.transport.pause_reading()
        assert not b.transport.is_reading()
        written = 0
        while not a.calls:
            a.transport.write(b"x" * 50_000)
            written += 50_000
            assert written < 100_000_000
            await asyncio.sleep(0)
        assert a.calls == ["pause"]
        assert a.transport.get_write_buffer_size() > 100_000
        await turns()
        assert a.calls == ["pause"]
        b.transport.resume_reading()
        await asyncio.wait_for(until(lambda: len(b.data) == written), 20)
        assert a.calls == ["pause", "resume"]
        assert a.transport.get_write_buffer_size() == 0

    async def test_limits_of_the_write_buffer(self, recorders):
        transport = recorders[0].transport
        transport.set_write_buffer_limits(high=1_000)
        assert transport.get_write_buffer_limits() == (250, 1_000)
        transport.set_write_buffer_limits(low=100)
        assert transport.get_write_buffer_limits() == (100, 400)
        with pytest.raises(ValueError, match="must be"):
            transport.set_write_buffer_limits(high=1, low=2)

    async def test_only_bytes_can_be_written(self, recorders):
        with pytest.raises(TypeError):
            recorders[0].transport.write("text")

    async def test_changing_the_protocol(self, recorders):
        a, b = recorders
        second = Recorder()
        a.transport.set_protocol(second)
        assert a.transport.get_protocol() is second
        b.transport.write(b"hello")
        await asyncio.wait_for(until(lambda: second.data == b"hello"), 20)
        assert a.data == b""

    async def test_names(self, recorders):
        a, b = recorders
        assert a.transport.get_extra_info("sockname") == b.transport.get_extra_info("peername")
        assert a.transport.get_extra_info("nothing", "default") == "default"


class TestMemoryTransport:
    async def test_small_reads(self):
        a, b = memory_recorders(read_bytes=1)
        pieces = []
        b.data_received = pieces.append
        a.transport.write(b"abc")
        await turns()
        assert pieces == [b"a", b"b", b"c"]

    async def test_buffered_protocol(self):
        a, _ = memory_recorders()
        buffered = BufferedRecorder(size=10)
        a.transport._other.set_protocol(buffered)
        a.transport.write(bytes(range(95)))
        await turns()
        assert bytes(buffered.data) == bytes(range(95))

    async def test_a_stalled_reader_reads_on_where_it_was(self):
        a, b = memory_recorders(socket_buffer_bytes=100)
        b.transport.stall()
        b.transport.resume_reading()
        a.transport.write(b"x" * 250)
        await turns()
        assert b.data == b""
        assert a.transport.get_write_buffer_size() == 150
        b.transport.unstall()
        await turns()
        assert len(b.data) == 250

    async def test_writing_resumes_at_the_low_mark(self):
        a, b = memory_recorders(socket_buffer_bytes=100, read_bytes=50)
        a.transport.set_write_buffer_limits(high=100, low=20)
        b.data_received = lambda data: b.transport.stall()
        b.transport.stall()
        a.transport.write(b"x" * 300)
        seen = []
        while a.transport.get_write_buffer_size():
            seen.append((a.transport.get_write_buffer_size(), list(a.calls)))
            b.transport.unstall()
            await turns(2)
        assert seen == [(200, ["pause"]), (150, ["pause"]), (100, ["pause"]), (50, ["pause"])]
        assert a.calls == ["pause", "resume"]

    async def test_bytes_wait_for_the_first_protocol(self):
        left, right = MemoryTransport.pair()
        left.write(b"early")
        await turns()
        recorder = Recorder()
        right.set_protocol(recorder)
        await turns()
        assert recorder.data == b"early"

    async def test_losing_the_connection(self):
        a, b = memory_recorders()
        a.transport.write(b"x")
        a.transport.lose(ConnectionResetError())
        await turns()
        assert a.calls == [("lost", ConnectionResetError)]
        assert b.calls == ["eof", ("lost", type(None))]

    async def test_writing_to_a_closed_end(self):
        a, b = memory_recorders()
        a.keep_open = True
        b.transport.abort()
        await turns()
        a.transport.write(b"x")
        await turns()
        assert a.calls == ["eof", ("lost", BrokenPipeError)]

    async def test_a_protocol_that_raises_loses_its_connection(self):
        a, b = memory_recorders()
        reported = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: reported.append(context["exception"]))
        b.data_received = lambda data: 1 / 0
        a.transport.write(b"x")
        await turns()
        assert [type(error) for error in reported] == [ZeroDivisionError]
        assert b.calls == [("lost", ZeroDivisionError)]
        assert a.calls == ["eof", ("lost", type(None))]


class TestMemoryPair:
    @pytest.mark.parametrize("read_bytes", [1, 65_536])
    async def test_messages_both_ways(self, read_bytes):
        pair = memory_pair(read_bytes=read_bytes, subprotocol="chat")
        got = []
        pair.server.on_message = lambda data: got.append(("server", data))
        pair.client.on_message = lambda data: got.append(("client", data))
        pair.client.send("hällo")
        pair.client.send(b"\0\1")
        await until(lambda: len(got) == 2)
        pair.server.send("hi")
        await until(lambda: len(got) == 3)
        assert got == [("server", "hällo"), ("server", b"\0\1"), ("client", "hi")]
        assert pair.server.subprotocol == pair.client.subprotocol == "chat"
        pair.client.close(1000, "bye")
        await asyncio.wait_for(asyncio.gather(pair.server.wait_closed(), pair.client.wait_closed()), 20)
        assert (pair.server.close_code, pair.server.close_reason) == (1000, "bye")

    async def test_a_stalled_client_is_evicted(self):
        limits = Limits(write_soft_bytes=1_000, write_hard_bytes=10_000)
        pair = memory_pair(limits=limits, socket_buffer_bytes=1_000)
        pair.client_transport.stall()
        sent = 0
        while pair.server.send("x" * 1_000):
            sent += 1
            assert sent < 100
            await asyncio.sleep(0)
        assert pair.server.bytes_buffered > 0
        await turns()
        pair.client_transport.unstall()
        await asyncio.wait_for(pair.client.wait_closed(), 20)
        assert pair.client.close_code == 4008

    async def test_heartbeats_by_a_manual_clock(self):
        clock = ManualClock()
        context = LoopContext(asyncio.get_running_loop(), clock)
        pair = memory_pair(context=context, limits=Limits(ping_interval_s=10, pong_timeout_s=5))
        ended = []
        pair.server.on_close = lambda code, reason: ended.append((code, reason))
        for _ in range(3):
            clock.advance(10.1)
            context.wheel.advance()
            await turns()
        assert not pair.server.closed  # the client answered
        pair.client_transport.stall()
        for _ in range(2):
            clock.advance(10.1)
            context.wheel.advance()
            await turns()
        assert [code for code, _ in ended] == [1006]
        pair.client.abort()
        await turns()


class TestMemoryClient:
    def rooms(self):
        hub = ChannelHub()

        def rooms(socket: StreetSocket, request: Request) -> None:
            member = request.query["user"]
            hub.join("general", member, socket)
            socket.emit("presence:snapshot", hub.presence("general"))
            socket.on("chat", lambda text: hub.publish("general", "chat", text, except_conn_id=socket.id))
            socket.on("fail", lambda _: socket.close(4000, "as you wish"))

        return rooms

    async def test_two_clients_of_one_handler(self):
        server = StreetWebSocketServer(path="/ws")
        server.attach(HttpServer(), self.rooms())
        async with memory_client(server, "/ws?user=ada") as ada, memory_client(server, "/ws?user=ben") as ben:
            assert (await ada.expect("presence:snapshot"))["data"] == ["ada"]
            assert (await ben.expect("presence:snapshot"))["data"] == ["ada", "ben"]
            assert (await ada.expect("presence:join"))["data"] == {"memberId": "ben"}
            ben.emit("chat", "hello")
            assert (await ada.expect("chat"))["data"] == "hello"
            assert await ben.settle() == []
            await ben.close()
            assert [event["type"] for event in await ada.settle()] == ["presence:leave"]
        assert server.connection_count == 0

    async def test_a_handler_is_enough_and_the_end_is_seen(self):
        async with memory_client(self.rooms(), "/?user=ada") as ada:
            with pytest.raises(AssertionError, match="expected an event 'chat', and got"):
                await ada.expect("chat")
            with pytest.raises(TimeoutError, match="no event came"):
                await ada.receive(timeout_s=0.01)
            ada.emit("fail")
            for _ in range(2):
                with pytest.raises(ConnectionClosed, match="4000: as you wish"):
                    await ada.receive()
            assert await ada.settle() == []

    async def test_the_server_refuses_as_it_would_over_http(self):
        async def nobody(request: Request) -> Member | None:
            await asyncio.sleep(0)
            return None

        server = StreetWebSocketServer(authenticate=nobody)
        server.attach(HttpServer(), self.rooms())
        with pytest.raises(HandshakeRefused, match="401: not authenticated") as refused:
            async with memory_client(server):
                pass
        assert refused.value.status == 401
        with pytest.raises(HandshakeRefused, match="403") as refused:
            async with memory_client(server, headers={"Origin": "https://evil.example"}):
                pass
        assert refused.value.status == 403

    async def test_a_server_without_a_handler_says_so(self):
        with pytest.raises(HandshakeRefused, match="503: no handler is attached"):
            async with memory_client(StreetWebSocketServer()):
                pass

    async def test_a_client_that_gives_up_is_abandoned(self):
        cancelled = asyncio.Event()

        async def slow(request: Request) -> Member | None:
            try:
                await asyncio.sleep(60)
            finally:
                cancelled.set()

        server = StreetWebSocketServer(authenticate=slow)
        server.attach(HttpServer(), self.rooms())
        with pytest.raises(asyncio.TimeoutError):
            async with memory_client(server, timeout_s=0.01):
                pass
        await asyncio.wait_for(cancelled.wait(), 20)

    async def test_subprotocols_and_bare_websockets(self):
        server = StreetWebSocketServer()
        server.attach_protocol(HttpServer(), "echo", lambda ws, request: setattr(ws, "on_message", ws.send))
        async with memory_client(server, subprotocols=("other", "echo")) as client:
            client.ws.send('{"type":"x"}')
            assert await client.receive() == {"type": "x"}

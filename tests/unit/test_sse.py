"""Events as bytes, judged by an EventSource; the stream on a transport and under a clock that the test moves, and as an
iterator."""

from __future__ import annotations

import asyncio
import gc
import random
import re
import socket
import weakref

import pytest

from street_fast._core import LoopContext
from street_fast.errors import CloseCode, ConfigurationError, ConnectionClosed
from street_fast.http_server import HttpServer
from street_fast.limits import Limits
from street_fast.sse import SseStream, encode_comment, encode_event
from street_fast.stream_context import StreamContext
from tests.http_harness import Clock, Wire, exchange, head, on_loop, serving, settle, until
from tests.sse_harness import EventSource, split

__all__ = ["on_loop"]  # a fixture

LIMITS = Limits(write_soft_bytes=1_000, write_hard_bytes=10_000)
SEEDS = range(20)
NASTY = [
    "\r",
    "\n",
    "\r\n",
    "\n\r",
    "\0",
    ":",
    " ",
    "data",
    "data:",
    "event: x",
    "id",
    "\ufeff",
    "\u2028",
    "\x85",
    "é",
    "",
]


# --- events ---


def only(data: bytes):
    source = EventSource().feed(data)
    (event,) = source.events
    return event


def test_an_event_has_all_its_fields():
    data = encode_event("hello", event="greeting", id="7", retry_ms=250)
    assert data == b"event: greeting\nid: 7\nretry: 250\ndata: hello\n\n"
    source = EventSource().feed(data)
    assert source.events == [("greeting", "hello", "7")]
    assert source.retry_ms == 250


@pytest.mark.parametrize(
    ("data", "text"),
    [
        ("", ""),
        (" a", " a"),
        (b"bytes", "bytes"),
        (bytearray(b"a\nb"), "a\nb"),
        (memoryview(b"a\rb"), "a\nb"),
        ("\n", "\n"),
        ("a\r\n\r\nb\r", "a\n\nb\n"),
        (None, "null"),
        ({"a": [1, True]}, '{"a":[1,true]}'),
        (5, "5"),
    ],
)
def test_data_of_any_kind(data, text):
    assert only(encode_event(data)) == ("message", text, "")


@pytest.mark.parametrize("seed", SEEDS)
def test_nothing_that_is_sent_makes_a_second_event(seed):
    """Whatever the fields hold, one event comes out, with the same data; or it is refused."""
    rng = random.Random(seed)
    print("seed", seed)

    def text() -> str:
        return "".join(rng.choice(NASTY) for _ in range(rng.randrange(6)))

    source = EventSource()
    expected = []
    wire = b""
    for _ in range(50):
        data, event, id = text(), text(), text()  # noqa: A001
        forbidden = re.compile(r"[\r\n\0]")
        if forbidden.search(event) or forbidden.search(id):
            with pytest.raises(ValueError, match="must be without CR, LF and NUL"):
                encode_event(data, event=event, id=id)
            event, id = forbidden.sub("", event), forbidden.sub("", id)  # noqa: A001
        wire += encode_event(data, event=event, id=id)
        wire += encode_comment(text())
        expected.append((event or "message", re.sub(r"\r\n|\r", "\n", data), id))
    while wire:
        cut = rng.randrange(1, 9)
        source.feed(wire[:cut])
        wire = wire[cut:]
    assert source.events == expected


def test_a_comment_is_no_event():
    source = EventSource().feed(encode_comment("one\ndata: two\r\rthree") + encode_event("x"))
    assert source.comments == [" one", " data: two", " ", " three"]
    assert source.events == [("message", "x", "")]


@pytest.mark.parametrize("retry_ms", [-1, 1.5, "5", True])
def test_a_retry_that_is_none(retry_ms):
    with pytest.raises(ValueError, match="retry_ms="):
        encode_event("", retry_ms=retry_ms)


@pytest.mark.parametrize("field", ["event", "id"])
def test_a_field_that_is_no_text(field):
    with pytest.raises(TypeError, match=f"{field}=5: must be a str"):
        encode_event("", **{field: 5})


def test_data_that_json_cannot_hold():
    with pytest.raises(TypeError):
        encode_event({1, object()})


# --- a stream on a transport ---


class Streaming:
    """A stream on a `Wire`."""

    def __init__(self, stream: SseStream | None = None, *, tls: bool = False, limits: Limits = LIMITS) -> None:
        self.clock = Clock()
        self.context = LoopContext(asyncio.get_running_loop(), self.clock)
        self.stream = SseStream(limits=limits) if stream is None else stream
        self.wire = Wire(asyncio.get_running_loop(), tls=tls)
        self.ended = []
        self.stream.add_close_callback(self.ended.append)

    def start(self) -> Streaming:
        self.stream.start(self.wire, self.stream.head(), self.context)
        return self

    @property
    def stats(self) -> dict[str, int]:
        return StreamContext.of(self.context).stats()

    @property
    def source(self) -> EventSource:
        return split(self.wire.taken)[1]

    @property
    def received(self) -> list[str]:
        return [event.data for event in self.source.events]

    async def wait(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(self.clock.now + 0.5, end)
            self.context.wheel.advance()
            await settle()

    def assert_gone(self) -> None:
        assert self.stream.closed
        assert self.stream.ended
        assert self.ended == [self.stream]
        assert self.stream.bytes_buffered == 0
        assert len(self.context.wheel) == 0
        assert self.stats["streams"] == 0


async def test_a_stream_from_head_to_end():
    bench = Streaming(SseStream(headers=[("X-More", "1")]))
    assert bench.stream.send("early")
    assert not bench.wire.taken
    bench.start()
    assert not bench.stream.closed
    bench.stream.send({"n": 1}, event="e", id="i")
    bench.stream.comment("c")
    await settle()
    bench.stream.send("last")
    bench.stream.close()
    assert not bench.stream.send("too late")
    await settle()
    first, source = split(bench.wire.taken)
    lines = first.split("\r\n")
    assert lines[0] == "HTTP/1.1 200 OK"
    assert sorted(lines[1:]) == [
        "Cache-Control: no-store",
        "Connection: close",
        "Content-Type: text/event-stream",
        "X-Accel-Buffering: no",
        "X-More: 1",
    ]
    assert source.events == [("message", "early", ""), ("e", '{"n":1}', "i"), ("message", "last", "i")]
    assert source.comments == [" c"]
    assert bench.wire.lost
    assert not bench.wire.aborted
    bench.assert_gone()
    assert bench.stats == {
        "streams": 0,
        "streams_opened": 1,
        "events_out": 4,
        "bytes_out": len(bench.wire.taken),
        "bytes_waiting": 0,
        "events_dropped": 0,
        "slow_consumers": 0,
    }


async def test_what_is_sent_in_one_turn_is_one_write(monkeypatch):
    bench = Streaming().start()
    writes = []
    monkeypatch.setattr(bench.wire, "write", lambda data: writes.append(bytes(data)))
    for n in range(5):
        bench.stream.send(str(n))
    assert writes == []
    await settle()
    assert len(writes) == 1
    bench.stream.abort()


async def test_many_streams_hold_the_same_bytes():
    """A slow client costs references: the event that ten of them wait for is there once."""
    benches = [Streaming(limits=Limits()) for _ in range(10)]
    for bench in benches:
        bench.wire.stalled = True
        bench.start()
    event = encode_event("x" * 100_000)
    for bench in benches:
        bench.stream.push(event)
    await settle()
    for bench in benches:
        assert [id(queued) for queued in bench.stream._queue] == [id(event)]
        bench.stream.abort()


@pytest.mark.parametrize("how", ["lost", "half-closed"])
async def test_a_client_that_goes(how):
    bench = Streaming().start()
    bench.wire.stalled = True
    bench.stream.send("x")
    await settle()
    if how == "lost":
        bench.wire.abort()
    elif not bench.wire.protocol.eof_received():
        bench.wire.close()
    await settle()
    assert bench.wire.lost
    bench.assert_gone()
    assert not bench.stream.send("y")


async def test_a_client_that_was_gone_before_the_start():
    bench = Streaming()
    bench.wire.abort()
    bench.start()
    bench.assert_gone()


async def test_what_a_client_says_is_not_looked_at():
    bench = Streaming().start()
    bench.wire.protocol.data_received(b"x" * 1_000_000)
    assert not bench.stream.closed
    assert bench.wire.reading
    bench.stream.abort()


async def test_a_silent_stream_sends_heartbeats():
    bench = Streaming().start()
    await bench.wait(14)
    assert bench.source.comments == []
    bench.stream.send("x")
    await bench.wait(14.5)
    assert bench.source.comments == []
    await bench.wait(1)
    assert bench.source.comments == [" ping"]
    await bench.wait(15)
    assert bench.source.comments == [" ping"] * 2
    assert bench.received == ["x"]
    bench.stream.abort()


async def test_a_slow_client_does_not_get_what_is_droppable():
    bench = Streaming().start()
    bench.wire.stalled = True
    assert bench.stream.send("a" * 600, droppable=True)
    await settle()
    assert bench.stream.send("b" * 600, droppable=True)
    assert not bench.stream.send("c", droppable=True)
    assert bench.stream.send("d")
    assert bench.stats["events_dropped"] == 1
    bench.wire.stalled = False
    bench.wire.take(10_000)
    await settle()
    assert [data[0] for data in bench.received] == ["a", "b", "d"]
    assert bench.stream.send("e", droppable=True)
    bench.stream.abort()


async def test_a_burst_to_a_client_that_reads_is_not_too_much():
    bench = Streaming().start()
    for n in range(100):
        assert bench.stream.send(f"{n:900}", droppable=True)
    await settle()
    assert [int(data) for data in bench.received] == list(range(100))
    bench.stream.abort()


async def test_too_much_waits():
    bench = Streaming().start()
    bench.wire.stalled = True
    sent = 0
    while bench.stream.send("x" * 500):
        sent += 1
        await settle()
        assert bench.stream.bytes_buffered <= LIMITS.write_hard_bytes + 600
    assert 15 < sent < 25
    assert bench.stream.closed
    assert bench.stats["slow_consumers"] == 1
    assert bench.stream.bytes_buffered < 1_000  # the batch in flight
    assert not bench.ended
    await bench.wait(2.5)
    assert bench.wire.aborted
    bench.assert_gone()


async def test_an_event_has_a_head_of_its_own_in_each_stream():
    event = encode_event("x" * 300)
    benches = [Streaming(limits=Limits()).start() for _ in range(3)]
    for n, bench in enumerate(benches):
        bench.wire.stalled = True
        for i in range(100):
            bench.stream.push(event, head=b"id: %d.%d\n" % (n, i))
            await settle()
        assert sum(queued is event for queued in bench.stream._queue) == 99
        assert bench.wire.unsent.endswith(b"\n\n")
        bench.wire.stalled = False
        bench.wire.take(100_000)
        await settle()
        assert [event.last_event_id for event in bench.source.events] == [f"{n}.{i}" for i in range(100)]
        bench.stream.abort()


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_batch_never_ends_between_the_head_and_the_rest(seed):
    """Or else the farewell of an eviction would get the id of an event that the client has not got."""
    rng = random.Random(seed)
    print("seed", seed)
    stream = SseStream()
    for n in range(60):
        stream.push(encode_event("x" * rng.randrange(3_000)), head=b"id: %d%b\n" % (n, b"y" * rng.randrange(3_000)))
    stream.close()
    chunks = [chunk async for chunk in stream]
    assert len(chunks) > 3
    assert all(chunk.endswith(b"\n\n") for chunk in chunks)


async def test_a_slow_client_that_reads_on_gets_whole_events_and_the_farewell():
    class Polite(SseStream):
        farewell = encode_event("too slow")

    bench = Streaming(Polite(limits=LIMITS)).start()
    bench.wire.stalled = True
    while bench.stream.send("x" * 500):
        await settle()
    bench.wire.stalled = False
    bench.wire.take(10_000)
    await settle()
    assert bench.received[-1] == "too slow"
    assert set(bench.received[:-1]) == {"x" * 500}
    assert not bench.wire.aborted
    bench.assert_gone()


async def test_a_client_that_takes_nothing():
    bench = Streaming().start()
    bench.wire.stalled = True
    bench.stream.send("x")
    await bench.wait(9.5)
    assert not bench.stream.closed
    await bench.wait(3)
    assert bench.stream.closed
    assert bench.stats["slow_consumers"] == 1
    await bench.wait(3)
    bench.assert_gone()


async def test_a_client_that_takes_a_little_now_and_then():
    bench = Streaming().start()
    bench.wire.stalled = True
    bench.stream.send("x" * 100)
    for _ in range(6):
        await bench.wait(8)
        bench.wire.take(1)
    assert not bench.stream.closed
    assert bench.source.comments == []  # a heartbeat would only wait, too
    bench.stream.abort()


async def test_a_close_that_the_client_does_not_take():
    bench = Streaming().start()
    bench.wire.stalled = True
    bench.stream.send("x")
    await settle()
    bench.stream.close()
    bench.stream.close()
    await bench.wait(1.5)
    assert not bench.wire.lost
    await bench.wait(1)
    assert bench.wire.aborted
    bench.assert_gone()


async def test_a_stream_closed_before_it_starts_is_sent_whole():
    bench = Streaming()
    bench.stream.send("x")
    bench.stream.close()
    bench.start()
    await settle()
    assert bench.received == ["x"]
    bench.assert_gone()


async def test_a_stream_that_never_starts_has_its_limit():
    bench = Streaming()
    while bench.stream.send("x" * 100):
        assert bench.stream.bytes_buffered <= LIMITS.write_hard_bytes + 200
    assert bench.stream.closed
    assert bench.stream.bytes_buffered == 0
    bench.start()
    await settle()
    assert bench.received == []
    bench.assert_gone()
    assert bench.stats["slow_consumers"] == 1


async def test_an_aborted_stream_that_starts():
    bench = Streaming()
    bench.stream.abort()
    bench.start()
    await settle()
    assert bench.wire.aborted
    bench.assert_gone()


async def test_a_stream_starts_once():
    bench = Streaming().start()
    with pytest.raises(RuntimeError, match="is for one response"):
        bench.start()
    with pytest.raises(RuntimeError, match="is for one response"):
        async for _ in bench.stream:
            pass
    bench.stream.abort()


async def test_a_transport_that_raises():
    bench = Streaming().start()

    def write(data: bytes) -> None:
        raise OSError("no")

    bench.wire.write = write
    while bench.stream.send("x" * 300):  # until it looks whether there is room
        assert not bench.ended
        if bench.stream.bytes_buffered > LIMITS.write_soft_bytes:
            break
    bench.stream.send("x")
    assert not bench.ended
    await settle()
    bench.assert_gone()


async def test_a_tls_transport_has_a_limit_above_0():
    bench = Streaming()
    bench.wire._extra["sslcontext"] = object()
    bench.start()
    assert bench.wire.high == LIMITS.write_soft_bytes
    bench.stream.abort()


@pytest.mark.parametrize("streams", [1, 300])
async def test_the_loop_has_its_turn_between_the_slices_of_a_flush(streams):
    """Time stands still for all but those who write: each write is half a slice."""
    clock = Clock()
    context = LoopContext(asyncio.get_running_loop(), clock)
    turns = []

    class Slow(Wire):
        def write(self, data):
            clock.now += 0.0005
            turns[-1] += 1

    made = []
    for _ in range(streams):
        stream = SseStream()
        wire = Slow(asyncio.get_running_loop())
        turns.append(0)
        stream.start(wire, b"", context)
        made.append(stream)
    turns[:] = [0]
    for stream in made:
        stream.send("x")
    while sum(turns) < streams:
        await asyncio.sleep(0)
        turns.append(0)
        assert len(turns) < 1_000
    assert max(turns) <= 3
    for stream in made:
        stream.abort()


async def test_drain_waits_until_enough_is_taken():
    bench = Streaming().start()
    await bench.stream.drain()
    bench.wire.stalled = True
    for _ in range(4):
        bench.stream.send("x" * 500)
    waiting = [asyncio.ensure_future(bench.stream.drain()) for _ in range(2)]
    await settle()
    waiting[0].cancel()
    assert not waiting[1].done()
    bench.wire.stalled = False
    bench.wire.take(5_000)
    await settle()
    assert waiting[1].done()
    bench.stream.abort()


@pytest.mark.parametrize("end", ["close", "abort", "lost"])
async def test_drain_of_a_stream_that_ends(end):
    bench = Streaming().start()
    bench.wire.stalled = True
    for _ in range(4):
        bench.stream.send("x" * 500)
    waiting = asyncio.ensure_future(bench.stream.drain())
    await settle()
    if end == "lost":
        bench.wire.abort()
    else:
        getattr(bench.stream, end)()
    await bench.wait(3)
    for end_of in (waiting, bench.stream.drain()):
        with pytest.raises(ConnectionClosed) as caught:
            await end_of
        assert caught.value.close_code == (CloseCode.NORMAL if end == "close" else CloseCode.ABNORMAL)


async def test_close_callbacks(caplog):
    bench = Streaming()
    called = []

    def broken(stream: SseStream) -> None:
        called.append("broken")
        raise RuntimeError("of the application")

    bench.stream.add_close_callback(broken)
    bench.stream.add_close_callback(called.append)
    bench.start()
    bench.stream.abort()
    bench.stream.add_close_callback(called.append)
    assert called == ["broken", bench.stream, bench.stream]
    assert "a close callback of <SseStream ended, 0 bytes wait> failed" in caplog.text
    assert bench.stream.id not in caplog.text


def test_a_stream_needs_no_loop_to_be_made():
    stream = SseStream()
    stream.send("x")
    assert stream.sink is stream
    assert len({SseStream().id for _ in range(10)}) == 10


def test_options_that_are_none():
    with pytest.raises(ConfigurationError, match="limits=5"):
        SseStream(limits=5)
    with pytest.raises(ValueError, match="CR, LF or NUL"):
        SseStream(headers=[("X", "a\r\nb")]).head()
    with pytest.raises(ValueError, match="not for the application"):
        SseStream(headers=[("Connection", "keep-alive")]).head()


async def test_nothing_keeps_a_stream_that_ended():
    bench = Streaming().start()
    bench.stream.send("x")
    await settle()
    bench.wire.abort()
    await settle()
    reference = weakref.ref(bench.stream)
    bench.stream = None
    bench.ended.clear()
    bench.wire.protocol = None
    gc.collect()
    assert reference() is None


# --- as an iterator ---


async def test_a_stream_in_chunks():
    stream = SseStream()
    stream.send("early")
    source = EventSource()

    async def consume() -> None:
        async for chunk in stream:
            assert isinstance(chunk, bytes)
            source.feed(chunk)

    task = asyncio.ensure_future(consume())
    await settle()
    assert [event.data for event in source.events] == ["early"]
    for n in range(3):
        stream.send(str(n))
    await settle()
    stream.send("last")
    stream.close()
    await asyncio.wait_for(task, 20)
    assert [event.data for event in source.events] == ["early", "0", "1", "2", "last"]
    assert stream.ended


async def test_chunks_are_whole_events_and_of_a_bounded_size():
    stream = SseStream()
    for n in range(100):
        stream.send(f"{n:1000}")
    stream.send("y" * 50_000)
    stream.close()
    chunks = [chunk async for chunk in stream]
    assert len(chunks) == 8
    assert all(chunk.endswith(b"\n\n") for chunk in chunks)
    assert [len(chunk) > 16_384 for chunk in chunks] == [False] * 7 + [True]


@pytest.mark.parametrize("where", ["waiting", "busy"])
async def test_a_consumer_that_is_cancelled(where):
    stream = SseStream()
    ended = []
    stream.add_close_callback(ended.append)
    busy = asyncio.Event()

    async def consume() -> None:
        async for _ in stream:
            await busy.wait()

    task = asyncio.ensure_future(consume())
    if where == "busy":
        stream.send("x")
    await settle()
    task.cancel()
    await asyncio.wait([task])
    del task
    await settle()
    assert ended == [stream]


@pytest.fixture
def consumer(monkeypatch):
    """Makes a stream whose consumer is the test: `iterator`, under a clock that the test moves."""

    def make():
        bench = Streaming()
        context = StreamContext.of(bench.context)
        monkeypatch.setattr(StreamContext, "of", lambda _=None: context)
        bench.iterator = bench.stream.__aiter__()
        return bench

    return make


async def test_a_consumer_that_does_not_come_back(consumer):
    bench = consumer()
    bench.stream.send("x")
    await bench.iterator.__anext__()
    await bench.wait(14)
    assert not bench.stream.closed  # nothing waits yet
    await bench.wait(15)  # the heartbeat waits, for ten seconds
    assert bench.stream.closed
    assert bench.stats["slow_consumers"] == 1
    await bench.wait(2.5)
    assert bench.ended == [bench.stream]
    with pytest.raises(StopAsyncIteration):
        await bench.iterator.__anext__()


async def test_a_consumer_that_comes_back_in_time_is_not_slow(consumer):
    bench = consumer()
    for _ in range(5):
        bench.stream.send("x")
        await bench.iterator.__anext__()
        bench.stream.send("y")
        await bench.wait(9)
        await bench.iterator.__anext__()
        await bench.wait(9)
    assert not bench.stream.closed
    await bench.iterator.aclose()
    assert bench.ended == [bench.stream]


async def test_a_burst_to_a_consumer_that_has_waited_long(consumer):
    """It takes the first of many events, and is no slow consumer for having had nothing to take before."""
    bench = consumer()
    first = asyncio.ensure_future(bench.iterator.__anext__())
    await bench.wait(14.9)
    for _ in range(100):
        bench.stream.send("x" * 50)
    await settle()
    assert first.result()
    assert bench.stream.bytes_buffered
    await bench.wait(9)
    assert not bench.stream.closed
    await bench.wait(3)
    assert bench.stream.closed
    assert bench.stats["slow_consumers"] == 1
    await bench.iterator.aclose()


async def test_what_a_consumer_has_not_taken_of_a_burst_counts_among_all_slow_ones(consumer):
    bench = consumer()
    first = asyncio.ensure_future(bench.iterator.__anext__())
    await settle()
    for _ in range(100):
        bench.stream.send("x" * 50)
    await settle()
    assert first.result()
    assert bench.stats["bytes_waiting"] == bench.stream.bytes_buffered > 0
    await bench.iterator.aclose()


async def test_too_much_waits_for_a_consumer(consumer):
    bench = consumer()
    bench.stream.send("x")
    await bench.iterator.__anext__()
    while bench.stream.send("x" * 500):
        assert bench.stream.bytes_buffered <= LIMITS.write_hard_bytes + 600
    assert bench.stats["slow_consumers"] == 1
    assert bench.stream.bytes_buffered < 100
    with pytest.raises(StopAsyncIteration):
        await bench.iterator.__anext__()
    assert bench.ended == [bench.stream]


async def test_a_silent_consumer_gets_heartbeats(consumer):
    bench = consumer()
    next_chunk = asyncio.ensure_future(bench.iterator.__anext__())
    await bench.wait(15.5)
    assert next_chunk.result() == b": ping\n\n"
    await bench.iterator.aclose()


async def test_drain_waits_for_a_consumer(consumer):
    bench = consumer()
    for _ in range(4):
        bench.stream.send("x" * 500)
    waiting = asyncio.ensure_future(bench.stream.drain())
    await bench.iterator.__anext__()
    await settle()
    assert not waiting.done()  # it holds the chunk
    waiting_for_more = asyncio.ensure_future(bench.iterator.__anext__())
    await settle()
    assert waiting.done()
    waiting_for_more.cancel()
    await settle()
    assert bench.ended == [bench.stream]


# --- with HttpServer ---


def test_a_handler_that_returns_a_stream(on_loop):
    server = HttpServer()
    streams = []

    @server.get("/plain")
    def plain(_request):
        stream = SseStream()
        stream.send("one")
        asyncio.get_running_loop().call_soon(stream.send, "two")
        asyncio.get_running_loop().call_later(0.01, stream.close)
        streams.append(stream)
        return stream

    @server.get("/later")
    async def later(request):
        await asyncio.sleep(0)
        return plain(request)

    async def main():
        async with serving(server):
            return [
                split(await exchange(server, head("GET", path) + head("GET", "/plain")))[1]
                for path in ("/plain", "/later")
            ]

    for source in on_loop(main):
        assert [event.data for event in source.events] == ["one", "two"]
    assert len(streams) == 2  # nobody answered what came behind
    assert all(stream.ended for stream in streams)


def test_head_gets_the_head_and_no_stream(on_loop):
    server = HttpServer()
    streams = []

    @server.get("/")
    def stream(_request):
        streams.append(SseStream())
        streams[-1].send("x")
        return streams[-1]

    async def main():
        async with serving(server):
            return await exchange(server, head("HEAD"), end=True)

    answer = on_loop(main)
    assert answer.endswith(b"\r\n\r\n")
    assert b"text/event-stream" in answer
    assert b"Content-Length" not in answer
    assert [stream.ended for stream in streams] == [True]


def test_a_stream_of_megabytes(on_loop):
    """More than the kernel takes at once: what waits goes out as the client reads, in order and whole."""
    server = HttpServer()

    @server.get("/")
    def stream(_request):
        stream = SseStream()

        async def feed() -> None:
            for n in range(3_000):
                stream.send(f"{n} " + "x" * 2_000)
                await stream.drain()
            stream.close()

        feeding.append(asyncio.ensure_future(feed()))
        return stream

    feeding = []

    async def main():
        async with serving(server):
            data = await exchange(server, head())
            await feeding[0]
        return data

    _, source = split(on_loop(main))
    assert [int(event.data.split()[0]) for event in source.events] == list(range(3_000))


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux")
def test_the_kernel_gives_up_a_client_that_acknowledges_nothing(on_loop):
    """A machine that is gone sends no FIN, and TCP by itself goes on for a quarter of an hour."""
    server = HttpServer()
    patience = []

    @server.get("/")
    def stream(_request):
        stream = SseStream(limits=Limits(sse_ping_interval_s=5, pong_timeout_s=7))

        def look() -> None:
            sock = stream._transport.get_extra_info("socket")
            patience.append(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT))
            stream.close()

        asyncio.get_running_loop().call_soon(look)
        return stream

    async def main():
        async with serving(server):
            await exchange(server, head())

    on_loop(main)
    assert patience == [12_000]


def test_closing_the_server_does_not_wait_for_streams(on_loop):
    server = HttpServer(limits=Limits(abort_timeout_s=0.2))
    streams = []

    @server.get("/")
    def stream(_request):
        streams.append(SseStream(limits=Limits(abort_timeout_s=0.2)))
        return streams[-1]

    async def main():
        await server.listen(port=0)
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        deaf = await asyncio.open_connection("127.0.0.1", server.port, limit=1)
        writer.write(head())
        deaf[1].write(head())
        await until(lambda: len(streams) == 2)
        assert server.connection_count == 0
        await until(lambda: not streams[1].send("x" * 100_000) or streams[1].bytes_buffered > 200_000)
        streams[0].send("last")
        began = loop.time()
        await server.close()
        assert loop.time() - began < 10
        wire = await reader.read()
        for each in (writer, deaf[1]):
            each.close()
        return wire

    _, source = split(on_loop(main))
    assert [event.data for event in source.events] == ["last"]
    assert all(stream.ended for stream in streams)


def test_a_stream_that_begins_while_the_server_closes(on_loop):
    server = HttpServer()
    release = []

    @server.get("/")
    async def stream(_request):
        release.append(asyncio.Event())
        await release[0].wait()
        stream = SseStream(limits=Limits(write_hard_bytes=20_000_000))
        stream.send("x" * 10_000_000)  # more than the kernels take at once
        stream.send("y")
        return stream

    async def main():
        await server.listen(port=0)
        asking = asyncio.ensure_future(exchange(server, head()))
        await until(lambda: release)
        closing = asyncio.ensure_future(server.close())
        await settle()
        release[0].set()
        await asyncio.wait_for(closing, 20)
        return await asking

    wire = on_loop(main)
    assert len(wire) > 10_000_000
    assert wire.endswith(b"data: y\n\n")

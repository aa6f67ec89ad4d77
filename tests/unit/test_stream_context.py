"""All slow event streams together: who goes when they hold too much, and what counts."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from street_fast import slow_consumers
from street_fast._core import LoopContext
from street_fast.limits import Limits
from street_fast.sse import SseStream, encode_event
from street_fast.stream_context import StreamContext
from tests.http_harness import Clock, Wire, settle

LIMITS = Limits(outbound_total_bytes=100_000, write_stall_timeout_s=1_000)


class Slow:
    """Streams whose clients take nothing."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.context = LoopContext(asyncio.get_running_loop(), self.clock)

    @property
    def stats(self) -> dict[str, int]:
        return StreamContext.of(self.context).stats()

    async def stream(self, size: int = 0, limits: Limits = LIMITS) -> Any:
        """A stream that waits with about `size` bytes of its own."""
        wire = Wire(asyncio.get_running_loop())
        wire.stalled = True
        stream = SseStream(limits=limits)
        stream.start(wire, b"head", self.context)
        await settle()
        for start in range(0, size, 1_000):
            stream.push(b"data: %b\n\n" % bytes(min(1_000, size - start) - 8))
        await settle()
        return stream

    async def wait(self, seconds: float) -> None:
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(self.clock.now + 0.25, end)
            self.context.wheel.advance()
            await settle()


@pytest.fixture
async def slow() -> Slow:
    return Slow()


async def test_the_largest_go_while_there_is_too_much(slow, caplog):
    a, b, c, d = [await slow.stream(size) for size in (20_000, 60_000, 40_000, 10_000)]
    healthy = await slow.stream()
    assert slow.stats["bytes_waiting"] == 130_000 + 5 * len(b"head")
    await slow.wait(0.75)
    assert not b.closed
    await slow.wait(0.5)
    assert [each.closed for each in (a, b, c, d, healthy)] == [False, True, False, False, False]
    await slow.wait(10)
    assert slow.stats["slow_consumers"] == 1
    assert [record.getMessage() for record in caplog.records] == [
        "1 slow event streams were evicted: all together held 130020 bytes, and Limits.outbound_total_bytes is 100000"
    ]
    for each in (a, c, d, healthy):
        each.abort()
    assert len(slow.context.wheel) == 0


async def test_what_many_wait_for_counts_once(slow):
    streams = [await slow.stream() for _ in range(50)]
    for n in range(60):
        event = encode_event(f"{n:04}" * 250)
        for stream in streams:
            stream.push(event)
    del event
    await settle()
    assert slow.stats["bytes_waiting"] > 2_500_000
    await slow.wait(2.5)
    assert not any(stream.closed for stream in streams)
    for n in range(100):
        streams[7].push(encode_event(f"{n:03}" * 1_000))
    await slow.wait(1.5)
    assert [i for i, stream in enumerate(streams) if stream.closed] == [7]
    for stream in streams:
        stream.abort()


async def test_no_rounds_while_nobody_is_slow(slow):
    stream = await slow.stream(10_000)
    await slow.wait(5)
    assert len(slow.context.wheel) == 2  # the round, and the stream's own
    stream._transport.stalled = False
    stream._transport.take(100_000)
    await settle()
    await slow.wait(1.5)
    assert len(slow.context.wheel) == 1
    assert slow.stats["bytes_waiting"] == 0
    stream.abort()


async def test_each_stream_has_the_bound_of_its_limits(slow):
    roomy = Limits(outbound_total_bytes=10_000_000, write_stall_timeout_s=1_000)
    big, biggest = [await slow.stream(size, roomy) for size in (300_000, 400_000)]
    small = await slow.stream(50_000)
    await slow.wait(1.5)
    assert [each.closed for each in (big, biggest, small)] == [False, False, True]
    for each in (big, biggest, small):
        each.abort()


async def test_the_default_is_a_quarter_of_what_the_process_may_have(slow, monkeypatch):
    monkeypatch.setattr(slow_consumers, "process_memory_limit", lambda: 400_000)
    streams = [await slow.stream(size, Limits()) for size in (60_000, 50_000)]
    await slow.wait(1.5)
    assert [each.closed for each in streams] == [True, False]
    for each in streams:
        each.abort()


async def test_a_consumer_that_is_busy_counts(slow, monkeypatch):
    context = StreamContext.of(slow.context)
    monkeypatch.setattr(StreamContext, "of", lambda _=None: context)
    stream = SseStream(limits=LIMITS)
    stream.send("x")
    iterator = stream.__aiter__()
    await iterator.__anext__()
    for _ in range(150):
        stream.push(b"data: %b\n\n" % bytes(1_000))
    await slow.wait(1.5)
    assert stream.closed
    await iterator.aclose()

"""All slow clients of an event loop together, whatever they are. Each kind: test_connection, test_stream_context."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from street_fast._core import TimerWheel
from street_fast.limits import Limits
from street_fast.slow_consumers import CONNECTIONS, EVENT_STREAMS, SlowConsumers
from street_fast.sse import SseStream
from street_fast.stream_context import StreamContext
from tests.http_harness import Clock, Wire, settle

LIMITS = Limits(outbound_total_bytes=100_000, write_soft_bytes=1, write_stall_timeout_s=1_000, ping_interval_s=None)


class Client:
    """Somebody slow; `then` is called when it is evicted."""

    limits = LIMITS
    closed = False

    def __init__(self, size, then=lambda: None):
        self.size = size
        self.then = then

    def _bytes_waiting(self):
        return self.size

    def _bytes_held(self):
        return float(self.size)

    def _evict(self, why):
        assert "too many bytes" in why
        self.closed = True
        self.then()


@pytest.fixture
def house():
    """The slow ones under a clock that the test moves."""
    clock, failures = Clock(), []
    wheel = TimerWheel(clock, on_error=failures.append)

    def wait(seconds):
        for _ in range(round(10 * seconds)):
            clock.now += 0.1
            wheel.advance()

    return SimpleNamespace(slow=SlowConsumers(wheel), wheel=wheel, wait=wait, failures=failures)


async def test_sockets_and_streams_together_stay_below_one_bound(core, caplog):
    """Either kind alone would be below it."""
    clock, loop = Clock(), asyncio.get_running_loop()
    context = core.LoopContext(loop, clock)

    def stalled(taker, start, *arguments):
        wire = Wire(loop)
        wire.stalled = True
        start(wire, *arguments)
        return taker

    def socket():
        ws = core.WebSocket(context, LIMITS)
        return stalled(ws, ws.start, b"head")

    def stream():
        stream = SseStream(limits=LIMITS)
        return stalled(stream, stream.start, b"head", context)

    everybody = [socket(), stream(), socket(), stream()]
    await settle()
    for each, size in zip(everybody, (30_000, 55_000, 60_000, 20_000), strict=True):
        for _ in range(0, size, 1_000):
            each.send("x" * 990)
    await settle()
    streams = StreamContext.of(context)
    assert (context.stats()["bytes_waiting"], streams.stats()["bytes_waiting"]) == (89_468, 74_858)
    clock.now += 1.1
    context.wheel.advance()
    assert [each.closed for each in everybody] == [False, True, True, False]
    await settle()
    assert context.stats()["bytes_waiting"] + streams.stats()["bytes_waiting"] <= 100_000
    assert [record.getMessage() for record in caplog.records] == [
        "1 slow connections and 1 slow event streams were evicted: all together held 164326 bytes, and "
        "Limits.outbound_total_bytes is 100000"
    ]
    assert (context.stats()["slow_consumers"], context.stats()["outbound_evictions"]) == (1, 1)
    assert streams.stats()["slow_consumers"] == 1
    for each in everybody:
        each.abort()
    await settle()
    assert len(context.wheel) == 0


@pytest.mark.parametrize("kinds", [(CONNECTIONS, EVENT_STREAMS), (EVENT_STREAMS, CONNECTIONS)])
def test_the_largest_go_first_whatever_they_are(house, kinds):
    clients = [Client(size) for size in (40_000, 30_000, 20_000, 50_000, 10_000)]
    for number, client in enumerate(clients):
        house.slow.note(client, kinds[number % 2])
    house.wait(0.8)
    assert not any(client.closed for client in clients)
    house.wait(0.4)
    assert [client.closed for client in clients] == [False, False, False, True, False]
    assert house.slow.evicted == {kinds[1]: 1}
    assert house.slow.bytes_waiting(kinds[0]) == 70_000
    assert house.slow.bytes_waiting(kinds[1]) == 30_000


def test_rounds_end_with_the_last_of_either_kind(house):
    a, b = Client(1), Client(1)
    house.slow.note(a, CONNECTIONS)
    house.slow.note(b, EVENT_STREAMS)
    house.wait(5)
    house.slow.forget(a)
    house.slow.forget(a)
    assert len(house.wheel) == 1
    house.slow.forget(b)
    assert len(house.wheel) == 0
    house.slow.note(a, CONNECTIONS)
    a.size = 0
    house.wait(1.2)
    assert len(house.wheel) == 0


def test_one_that_is_closing_counts_no_more(house):
    closing, small = Client(150_000), Client(60_000)
    closing.closed = True
    house.slow.note(closing, EVENT_STREAMS)
    house.slow.note(small, CONNECTIONS)
    house.wait(1.2)
    assert not small.closed
    assert house.slow.evicted == {}
    assert house.slow.bytes_waiting(EVENT_STREAMS) == 0


def test_one_that_ends_while_another_is_evicted(house):
    small = Client(60_000)
    house.slow.note(Client(90_000, then=lambda: house.slow.forget(small)), CONNECTIONS)
    house.slow.note(small, EVENT_STREAMS)
    house.wait(3)
    assert house.failures == []
    assert house.slow.bytes_waiting(CONNECTIONS) == house.slow.bytes_waiting(EVENT_STREAMS) == 0
    assert len(house.wheel) == 0


def test_an_eviction_that_fails_does_not_end_the_rounds(house):
    def fail():
        raise OSError("cannot be closed")

    house.slow.note(Client(150_000, then=fail), CONNECTIONS)
    late = Client(90_000)
    house.slow.note(late, EVENT_STREAMS)
    house.wait(1.2)
    assert [str(error) for error in house.failures] == ["cannot be closed"]
    late.size = 150_000
    house.wait(1.2)
    assert late.closed

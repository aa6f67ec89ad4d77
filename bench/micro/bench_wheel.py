"""A typing indicator is a timer that is nearly always moved before it fires: the wheel beside the loop's own timers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

TYPISTS = 1_000  # who type at the same time
REFRESHES = 100_000
TTL_S = 5.0
TICKS = range(REFRESHES // TYPISTS)


def fire(_: object = None) -> None: ...


def bench_refresh_wheel(benchmark: BenchmarkFixture, wheel_class: Any) -> None:
    """Everyone refreshes, a hundredth of a second passes, the wheel looks what is due; a hundred times."""
    now = 0.0
    wheel = wheel_class(lambda: now)
    timers = [wheel.schedule(TTL_S, fire) for _ in range(TYPISTS)]

    def refresh() -> None:
        nonlocal now
        for _ in TICKS:
            for timer in timers:
                timer.reschedule(TTL_S)
            now += 0.01
            wheel.advance()

    benchmark.extra_info["operations"] = REFRESHES
    benchmark(refresh)
    assert len(wheel) == TYPISTS


@pytest.mark.parametrize("new_loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def bench_refresh_call_later(benchmark: BenchmarkFixture, new_loop: Any) -> None:
    """The same by ``cancel`` and ``call_later``, the loop running in between."""
    loop = new_loop()
    handles = [loop.call_later(TTL_S, fire) for _ in range(TYPISTS)]

    async def refresh() -> None:
        for _ in TICKS:
            for i, handle in enumerate(handles):
                handle.cancel()
                handles[i] = loop.call_later(TTL_S, fire)
            await asyncio.sleep(0)

    benchmark.extra_info["operations"] = REFRESHES
    benchmark(lambda: loop.run_until_complete(refresh()))
    for handle in handles:
        handle.cancel()
    loop.close()


def bench_schedule_cancel(benchmark: BenchmarkFixture, wheel_class: Any) -> None:
    """A timer made and thrown away, as for a handshake that succeeds."""
    wheel = wheel_class(lambda: 0.0)
    calls = range(100)

    def schedule() -> None:
        for _ in calls:
            wheel.schedule(10.0, fire).cancel()

    benchmark.extra_info["operations"] = len(calls)
    benchmark(schedule)

"""The hub: publishing, and joining and leaving channels of any size.

The build is the one that is in use; with STREET_FAST_PURE=1, the pure twin.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import uvloop

from street_fast import ChannelHub
from street_fast._core import COMPILED, LoopContext, TimerWheel, WebSocket

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pytest_benchmark.fixture import BenchmarkFixture

BUILD = "compiled" if COMPILED else "pure"
build = pytest.mark.parametrize("build", [BUILD])
DATA = {"from": "alice", "text": "Hello, everybody!"}


class Swallow(asyncio.Transport):
    """A transport without a descriptor that takes everything at once: what is left is the library's own cost."""

    def write(self, data: object) -> None: ...
    def writelines(self, lines: object) -> None: ...
    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def set_protocol(self, protocol: object) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...
    def is_closing(self) -> bool:
        return False

    def get_write_buffer_size(self) -> int:
        return 0


class Peer:
    """A connection of the hub that writes to `sink`, or else is asked to deliver and does nothing."""

    ids = itertools.count()
    closed = False

    def __init__(self, sink: WebSocket | None = None) -> None:
        self.id = str(next(self.ids))
        self.sink = self if sink is None else sink

    def deliver(self, message: object, droppable: bool = False) -> None: ...
    def add_close_callback(self, callback: object) -> None: ...


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = uvloop.new_event_loop()
    yield loop
    loop.close()


@build
def bench_publish(benchmark: BenchmarkFixture, loop: asyncio.AbstractEventLoop, build: str) -> None:
    """To 1,000 WebSockets: encoded, framed, queued and given to their transports."""
    recipients = 1_000
    hub = ChannelHub()
    context = LoopContext.of(loop)

    async def fill() -> None:
        for _ in range(recipients):
            ws = WebSocket(context)
            ws.start(Swallow())
            hub.join("room", "member", Peer(ws))

    async def publish() -> None:
        hub.publish("room", "chat", DATA)
        await asyncio.sleep(0)

    loop.run_until_complete(fill())
    benchmark.extra_info["operations"] = recipients
    benchmark(lambda: loop.run_until_complete(publish()))


@build
@pytest.mark.parametrize("size", [10, 10_000])
def bench_join_leave(benchmark: BenchmarkFixture, size: int, build: str) -> None:
    """A second connection of somebody who is there comes and goes: no event, so the channel's size is not in it."""
    hub = ChannelHub()
    for i in range(size):
        hub.join("room", f"member {i}", Peer())
    tab: Any = Peer()
    calls = range(100)

    def come_and_go() -> None:
        for _ in calls:
            hub.join("room", "member 7", tab)
            hub.leave("room", "member 7", tab)

    benchmark.extra_info["operations"] = len(calls)
    benchmark(come_and_go)
    assert hub.connection_count("room") == size


@build
def bench_typing(benchmark: BenchmarkFixture, build: str) -> None:
    """Somebody who types goes on typing: the refresh of a typing indicator through the hub."""
    hub = ChannelHub(wheel=TimerWheel(lambda: 0.0))
    for i in range(100):
        hub.join("room", f"member {i}", Peer())
    hub.set_typing("room", "member 7", True)
    calls = range(100)

    def refresh() -> None:
        for _ in calls:
            hub.set_typing("room", "member 7", True)

    benchmark.extra_info["operations"] = len(calls)
    benchmark(refresh)

"""A backplane of several nodes in one process: slow, and as disorderly as a network may be.

The suite runs over it for two reasons. It shows that what answers later, over a bus that doubles and reorders, fits
behind the contract; and the tests about several nodes have something to fail on. For tests of what stands on a
backplane it is the one that makes everybody wait. It uses no time: delays are turns of the event loop, drawn from a
seed.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict, deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from street_fast._core import LoopContext
from street_fast.backplanes import Health, History, OutcomeUnknown, Page, Position, Publication, Published, Unavailable
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.testing import ManualClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from street_fast.backplanes import Backplane, BackplaneSink
    from street_fast.limits import Limits

_ANY = History()


class BrokerBus:
    """The broker, and the network to it."""

    several_nodes = True

    def __init__(self, limits: Limits | None = None, seed: int = 1) -> None:
        self.clock = ManualClock()
        self.context = LoopContext(asyncio.get_running_loop(), self.clock)
        self.random = random.Random(seed)
        self.store = MemoryBackplane(limits=limits, context=self.context)
        self.connected: list[BrokerBackplane] = []
        self.members: dict[str, dict[BrokerBackplane, dict[str, bytes | None]]] = defaultdict(dict)
        self._nodes: list[BrokerBackplane] = []

    def node(self) -> BrokerBackplane:
        self._nodes.append(BrokerBackplane(self))
        return self._nodes[-1]

    async def settle(self) -> None:
        while any(node.busy for node in self._nodes):  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def pass_time(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.context.wheel.advance()

    async def cut(self, node: Backplane) -> None:
        self.connected.remove(node)

    async def mend(self, node: Backplane) -> None:
        node.connect()

    async def close(self) -> None:
        await self.store.close()

    async def delay(self) -> None:
        for _ in range(self.random.randrange(4)):
            await asyncio.sleep(0)

    # The broker is the sink of its store.

    def deliver(self, channel: str, publication: Publication) -> None:
        for node in self.connected:
            node.arrive(channel, publication)

    def lost(self, channel: str | None) -> None:
        raise AssertionError(channel)

    def members_changed(self, channel: str, joined: Any, left: Any) -> None:
        raise AssertionError(channel)

    def set_members(self, node: BrokerBackplane, channel: str, members: dict[str, bytes | None]) -> None:
        if members:
            self.members[channel][node] = dict(members)
        else:
            self.members[channel].pop(node, None)
        for other in self.connected:
            if other is not node:
                other.tell_members(channel)


class BrokerBackplane:
    """One node: a queue of commands to the broker, and an inbox of what the broker sends."""

    def __init__(self, broker: BrokerBus) -> None:
        self._broker = broker
        self._sink: BackplaneSink | None = None

    @property
    def busy(self) -> bool:
        return self._sink is not None and bool(self._commands or self._working or self._inbox or self._reading)

    # --- life ---

    async def start(self, sink: BackplaneSink) -> None:
        if self._sink is not None:
            raise RuntimeError("started already")
        if not self._broker.store.health().ok:
            await self._broker.store.start(self._broker)
        self._sink = sink
        self._wanted: set[str] = set()
        self._last: dict[str, Position] = {}  # of the channels that the broker sends: what was delivered last
        self._own: dict[str, dict[str, bytes | None]] = defaultdict(dict)
        self._told: dict[str, dict[str, bytes | None]] = defaultdict(dict)
        self._commands: deque[tuple[Callable[[], Any], Callable[[], Any], Exception, asyncio.Future[Any]]] = deque()
        self._inbox: deque[tuple[str, Publication]] = deque()
        self._working = self._reading = False
        self._wake = asyncio.Event()
        self._arrived = asyncio.Event()
        self._tasks = [asyncio.create_task(self._work()), asyncio.create_task(self._read())]
        self.connect()

    async def close(self, *, linger: bool = False) -> None:
        if self._sink is None:
            return
        self._sink = None
        if self._connected:
            self._broker.connected.remove(self)
        for channel in () if linger else self._own:
            self._broker.set_members(self, channel, {})
        for task in self._tasks:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
        for _, _, error, future in self._commands:
            if not future.done():
                future.set_exception(error)

    def connect(self) -> None:
        """The broker is there (again): what was missed meanwhile is read."""
        self._broker.connected.append(self)
        for channel in list(self._wanted):
            if channel in self._last:
                self._catch_up(channel)
            else:
                self._sink.lost(channel)
                self._begin(channel)
            self.tell_members(channel)
        for channel, members in self._own.items():
            self._broker.set_members(self, channel, members)

    # --- the contract ---

    def publish(
        self,
        channel: str,
        payload: bytes,
        *,
        history: History | None = None,
        key: str | None = None,
        skip: str | None = None,
    ) -> asyncio.Future[Published]:
        store = self._broker.store

        def alone() -> Published:
            if history is not None or key is not None:
                raise Unavailable("the broker is not there")
            if channel in self._wanted:
                self._deliver(channel, Publication(payload, None, skip))
            return Published(None)

        def together() -> Published:
            return store.publish(channel, payload, history=history, key=key, skip=skip)

        return self._command(together, alone, OutcomeUnknown("no answer came"))

    def signal(self, channel: str, payload: bytes) -> None:
        def together() -> None:
            for node in self._broker.connected:
                if node is not self and channel in node._wanted:
                    node._sink.signalled(channel, payload)

        if self._sink is not None:
            self._command(together, lambda: None, Unavailable("closed"))

    def subscribe(self, channel: str, history: History | None = None) -> asyncio.Future[None]:
        future = self._command(lambda: self._begin(channel), self._unavailable, Unavailable("closed"))
        self._wanted.add(channel)
        return future

    def unsubscribe(self, channel: str) -> None:
        if self._sink is not None:
            self._wanted.discard(channel)
            self._last.pop(channel, None)
            self._told.pop(channel, None)

    def read(self, channel: str, history: History, *, since: Position | None, limit: int) -> asyncio.Future[Page]:
        read = self._broker.store.read
        return self._command(
            lambda: read(channel, history, since=since, limit=limit), self._unavailable, Unavailable("closed")
        )

    def join(self, channel: str, member_id: str, info: bytes | None) -> None:
        if self._sink is not None:
            self._own[channel][member_id] = info
            self._send_members(channel)

    def leave(self, channel: str, member_id: str) -> None:
        if self._sink is not None and self._own[channel].pop(member_id, self) is not self:
            self._send_members(channel)

    def members(self, channel: str) -> asyncio.Future[dict[str, bytes | None]]:
        return self._command(lambda: self._members_elsewhere(channel), self._unavailable, Unavailable("no answer came"))

    def health(self) -> Health:
        return Health(self._sink is not None and self._connected, "in a test")

    # --- commands: done one after the other, so that they keep their order ---

    @property
    def _connected(self) -> bool:
        return self in self._broker.connected

    def _unavailable(self) -> Any:
        raise Unavailable("the broker is not there")

    def _send_members(self, channel: str) -> None:
        self._command(
            lambda: self._broker.set_members(self, channel, self._own[channel]), lambda: None, Unavailable("closed")
        )

    def _command(
        self, together: Callable[[], Any], alone: Callable[[], Any], unanswered: Exception
    ) -> asyncio.Future[Any]:
        if self._sink is None:
            raise Unavailable("not started, or closed")
        future = asyncio.get_running_loop().create_future()
        future.add_done_callback(lambda future: future.cancelled() or future.exception())  # nobody need await it
        self._commands.append((together, alone, unanswered, future))
        self._wake.set()
        return future

    async def _work(self) -> None:
        while True:
            while self._commands:
                await self._broker.delay()
                together, alone, unanswered, future = self._commands.popleft()
                self._working = True
                reached = self._connected
                result: Any = None
                error: Exception | None = None
                try:
                    result = together() if reached else alone()
                except Exception as raised:
                    error = raised
                await self._broker.delay()
                if reached and not self._connected:
                    error = unanswered
                if not future.done():
                    if error is not None:
                        future.set_exception(error)
                    else:
                        future.set_result(result)
                self._working = False
            self._wake.clear()
            await self._wake.wait()

    # --- the bus: a hint; the truth is in the store ---

    def arrive(self, channel: str, publication: Publication) -> None:
        self._inbox.append((channel, publication))
        if publication.position is not None and self._broker.random.random() < 0.5:
            # Twice, or before what came before.
            self._inbox.insert(self._broker.random.randrange(len(self._inbox)), (channel, publication))
            if self._broker.random.random() < 0.5:
                self._inbox.pop()
        self._arrived.set()

    async def _read(self) -> None:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            self._reading = True
            await self._broker.delay()
            while self._inbox:
                self._take(*self._inbox.popleft())
            self._reading = False

    def _take(self, channel: str, publication: Publication) -> None:
        last = self._last.get(channel)
        position = publication.position
        if last is None:
            return
        if position is None:
            self._deliver(channel, publication)
        elif position.epoch != last.epoch or position.offset > last.offset + 1:
            self._catch_up(channel)
        elif position.offset == last.offset + 1:
            self._last[channel] = position
            self._deliver(channel, publication)

    def _deliver(self, channel: str, publication: Publication) -> None:
        with suppress(Exception):
            self._sink.deliver(channel, publication)

    def _begin(self, channel: str) -> None:
        if channel in self._wanted and channel not in self._last:
            self._broker.store.subscribe(channel)
            self._last[channel] = self._broker.store.read(channel, _ANY, since=None, limit=0).top
            self.tell_members(channel)

    def _catch_up(self, channel: str) -> None:
        page = self._broker.store.read(channel, _ANY, since=self._last[channel], limit=1_000_000)
        self._last[channel] = page.top
        if not page.recovered:
            self._sink.lost(channel)
        for publication in page.publications:
            self._deliver(channel, publication)

    def _members_elsewhere(self, channel: str) -> dict[str, bytes | None]:
        members: dict[str, bytes | None] = {}
        for node, theirs in self._broker.members[channel].items():
            if node is not self:
                members |= {member_id: info for member_id, info in theirs.items() if member_id not in members}
        return members

    def tell_members(self, channel: str) -> None:
        if channel not in self._last:
            return
        members = self._members_elsewhere(channel)
        told, self._told[channel] = self._told[channel], members
        joined = [(member_id, info) for member_id, info in members.items() if told.get(member_id, self) != info]
        left = [member_id for member_id in told if member_id not in members]
        if joined or left:
            self._sink.members_changed(channel, joined, left)

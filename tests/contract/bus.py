"""What the contract suite needs of an implementation, and a sink that writes down what it is told."""

from __future__ import annotations

import asyncio
import inspect
from collections import defaultdict
from typing import TYPE_CHECKING, Any, Protocol

from street_fast._core import LoopContext
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.testing import ManualClock

if TYPE_CHECKING:
    from street_fast.backplanes import Backplane, Page, Position, Publication
    from street_fast.limits import Limits


class Bus(Protocol):
    """Something that nodes can meet on: for Redis a server, for memory a process."""

    several_nodes: bool
    """Whether a second node meets the first one. If so `cut` and `mend` work too."""

    def node(self) -> Backplane:
        """A new one, not started."""

    async def settle(self) -> None:
        """Return when all that was published and told has arrived."""

    async def pass_time(self, seconds: float) -> None:
        """Let so much time pass, for what expires."""

    async def cut(self, node: Backplane) -> None:
        """The node does not reach the broker any more, and knows it; the others do."""

    async def mend(self, node: Backplane) -> None:
        """It does again, and knows it."""

    async def close(self) -> None:
        """The nodes are closed already."""


class MemoryBus:
    """No bus: every node is alone."""

    several_nodes = False

    def __init__(self, limits: Limits) -> None:
        self._clock = ManualClock()
        self._context = LoopContext(asyncio.get_running_loop(), self._clock)
        self._limits = limits

    def node(self) -> Backplane:
        return MemoryBackplane(limits=self._limits, context=self._context)

    async def settle(self) -> None:
        pass

    async def pass_time(self, seconds: float) -> None:
        self._clock.advance(seconds)
        self._context.wheel.advance()

    async def cut(self, node: Backplane) -> None:
        raise NotImplementedError

    async def mend(self, node: Backplane) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        pass


class Recorder:
    """A sink. `log` has everything, in order; `react(channel, publication)` is called within deliver, and may raise."""

    def __init__(self) -> None:
        self.log: list[tuple[Any, ...]] = []
        self.members: dict[str, dict[str, bytes | None]] = defaultdict(dict)
        self.left: list[str] = []
        self.react: Any = None

    def deliver(self, channel: str, publication: Publication) -> None:
        self.log.append(("message", channel, publication))
        if self.react is not None:
            self.react(channel, publication)

    def signalled(self, channel: str, payload: bytes) -> None:
        self.log.append(("signal", channel, payload))

    def lost(self, channel: str | None) -> None:
        self.log.append(("lost", channel))

    def members_changed(self, channel: str, joined: list[tuple[str, bytes | None]], left: list[str]) -> None:
        assert joined or left
        assert not {member_id for member_id, _ in joined} & set(left)
        members = self.members[channel]
        for member_id, info in joined:
            assert members.get(member_id, "absent") != info, f"{member_id} joined {channel}, and was there already"
            members[member_id] = info
        for member_id in left:
            del members[member_id]  # who left was there
        self.left += left

    def publications(self, channel: str) -> list[Publication]:
        return [entry[2] for entry in self.log if entry[:2] == ("message", channel)]

    def payloads(self, channel: str) -> list[bytes]:
        return [publication.payload for publication in self.publications(channel)]

    @property
    def losses(self) -> list[str | None]:
        return [entry[1] for entry in self.log if entry[0] == "lost"]


async def done(result: Any) -> Any:
    """The result of a call that answers at once or later."""
    return await result if inspect.isawaitable(result) else result


async def read_on(node: Backplane, channel: str, history: Any, since: Position, limit: int) -> Page | None:
    """All that came after `since`, page by page; None if some of it has gone."""
    publications: list[Publication] = []
    while True:
        page = await done(node.read(channel, history, since=since, limit=limit))
        if not page.recovered:
            return None
        publications += page.publications
        if publications:
            since = publications[-1].position
        if since == page.top:
            return page._replace(publications=publications)

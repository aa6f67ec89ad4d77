"""Missed: whom a client that reads slowly has not been told about, for when it reads again.

Events about presence and typing are dropped for a client that does not take them. What is noted here is not the event,
but whose state it told: when the client takes something again, it is told how they are by then. So it may be late, but
is not wrong for good.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from street_fast.limits import Limits

__all__ = ["Missed", "Untold"]


class Untold:
    """The ids of those who came or went, and of those who typed or stopped, in the order in which they did.

    `members` is None if they are too many to say.
    """

    __slots__ = ("members", "typists")

    def __init__(self) -> None:
        self.members: dict[str, None] | None = {}
        self.typists: dict[str, None] = {}


class Missed:
    """For all channels of a hub, by channel and sink. Sinks without ``bytes_buffered`` take everything."""

    __slots__ = ("_most_ids", "_slow_bytes", "_untold")

    def __init__(self, limits: Limits) -> None:
        self._slow_bytes = limits.write_soft_bytes  # above it, what may be dropped is
        self._most_ids = limits.presence_members
        self._untold: dict[str, dict[object, Untold]] = {}

    def __len__(self) -> int:
        """In how many channels somebody has missed something."""
        return len(self._untold)

    def note(
        self,
        channel: str,
        sinks: Iterable[object],
        skip: object,
        *,
        members: Iterable[str] = (),
        typists: Iterable[str] = (),
    ) -> None:
        """An event about these has been sent to `sinks`, except for `skip`, one or a set; not all may have taken it."""
        slow = [sink for sink in sinks if self._is_slow(sink)]
        if not slow:
            return
        skipped = skip if isinstance(skip, set) else {skip}
        for sink in slow:
            if sink not in skipped:
                untold = self._untold.setdefault(channel, {}).setdefault(sink, Untold())
                if untold.members is not None:
                    untold.members.update(dict.fromkeys(members))
                    if len(untold.members) > self._most_ids:
                        untold.members = None
                if len(untold.typists) < self._most_ids:
                    untold.typists.update(dict.fromkeys(typists))

    def forget(self, channel: str, sink: object) -> None:
        """The sink is not in the channel any more, or is not to be told."""
        untold = self._untold.get(channel)
        if untold is not None and untold.pop(sink, None) is not None and not untold:
            del self._untold[channel]

    def take(self) -> Iterator[tuple[str, object, Untold]]:
        """What can be told now, to those who can take it; it is forgotten here."""
        for channel, untold in list(self._untold.items()):
            for sink, about in list(untold.items()):
                if not self._is_slow(sink):
                    self.forget(channel, sink)
                    yield channel, sink, about

    def _is_slow(self, sink: object) -> bool:
        waiting: int = getattr(sink, "bytes_buffered", 0)
        return waiting > self._slow_bytes

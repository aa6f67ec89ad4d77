"""All slow clients of an event loop together, WebSockets and event streams: who goes when they hold too much.

While anybody is slow, a round a second looks at what waits for all of them; there are no rounds while nobody is. Above
``Limits.outbound_total_bytes`` the largest are evicted, whatever they are. Many may wait for the very same bytes, which
are in memory once: what counts then is what each keeps from being freed.
"""

from __future__ import annotations

import logging
from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol

from street_fast.memory_limit import process_memory_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from street_fast.limits import Limits

    class _Timer(Protocol):
        def cancel(self) -> None: ...

    class _Wheel(Protocol):
        """The TimerWheel of either build."""

        def schedule(self, delay_s: float, callback: Callable[[Any], object], arg: Any = None) -> _Timer: ...


__all__ = ["CONNECTIONS", "EVENT_STREAMS", "SlowConsumer", "SlowConsumers"]

logger = logging.getLogger("street_fast")

CONNECTIONS = "connections"
EVENT_STREAMS = "event streams"

_ROUND_S = 1.0  # between two looks


class SlowConsumer(Protocol):
    """A client that does not take what it is sent."""

    @property
    def limits(self) -> Limits:
        """Its ``outbound_total_bytes`` is what all may hold before this one goes."""

    @property
    def closed(self) -> bool:
        """Whether nothing more can be sent."""

    def _bytes_waiting(self) -> int:
        """What was sent and not taken; 0 if it is not slow any more."""

    def _bytes_held(self) -> float:
        """What would be freed without it: of bytes that others hold too, its part."""

    def _evict(self, why: str) -> None:
        """Closes it, and lets go at once of what it will not get."""


class SlowConsumers:
    """One for each event loop. `evicted` is how many of each kind had to go since the start."""

    __slots__ = ("_consumers", "_round", "_wheel", "evicted")

    def __init__(self, wheel: _Wheel) -> None:
        self._wheel = wheel
        self._consumers: dict[SlowConsumer, str] = {}  # and of what kind it is
        self._round: _Timer | None = None
        self.evicted: Counter[str] = Counter()

    def note(self, consumer: SlowConsumer, kind: str) -> None:
        """Something waits for this client. It is looked at until nothing does."""
        self._consumers[consumer] = kind
        if self._round is None:
            self._round = self._wheel.schedule(_ROUND_S, SlowConsumers._look, self)

    def forget(self, consumer: SlowConsumer) -> None:
        """It has ended, or is to be looked at no more."""
        self._consumers.pop(consumer, None)
        if self._round is not None and not self._consumers:
            self._round.cancel()
            self._round = None

    def bytes_waiting(self, kind: str) -> int:
        """What waits for all slow ones of a kind."""
        return sum(each._bytes_waiting() for each, of in self._consumers.items() if of == kind)

    def _look(self) -> None:
        self._round = None
        waiting = {each: each._bytes_waiting() for each in self._consumers if not each.closed}
        self._consumers = {each: kind for each, kind in self._consumers.items() if waiting.get(each)}
        if not self._consumers:
            return
        self._round = self._wheel.schedule(_ROUND_S, SlowConsumers._look, self)
        if sum(waiting.values()) > min(_total_allowed(each) for each in self._consumers):
            self._evict_largest()

    def _evict_largest(self) -> None:
        kinds = self._consumers.copy()
        held = {each: each._bytes_held() for each in kinds}
        total = before = sum(held.values())
        allowed = 0
        evicted: Counter[str] = Counter()
        for each in sorted(held, key=held.__getitem__, reverse=True):
            if total > _total_allowed(each):
                allowed = _total_allowed(each)
                total -= held[each]
                evicted[kinds[each]] += 1
                self.forget(each)
                each._evict("too many bytes wait for all, and many of them for you")
        if evicted:
            self.evicted.update(evicted)
            logger.warning(
                "%s were evicted: all together held %d bytes, and Limits.outbound_total_bytes is %d",
                " and ".join(f"{count} slow {kind}" for kind, count in evicted.items()),
                before,
                allowed,
            )


def _total_allowed(consumer: SlowConsumer) -> int:
    return consumer.limits.outbound_total_bytes or process_memory_limit() // 4

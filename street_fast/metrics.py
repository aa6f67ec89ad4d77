"""Plain numbers that only grow, added to where the thing happens.

`Counters` counts what the WebSocket server decides; bytes, frames and drops are counted by the loop context
(``LoopContext.stats()``). A `Histogram` counts how long something took. Nothing here knows a clock, a label or an
exporter.
"""

from __future__ import annotations

from bisect import bisect_left

__all__ = ["Counters", "Histogram"]


class Counters:
    """What one `StreetWebSocketServer` has seen since it was made."""

    __slots__ = (
        "connections_opened",
        "events_malformed",
        "events_rate_limited",
        "events_received",
        "handler_errors",
        "handshakes_refused",
        "handshakes_turned_away",
    )

    def __init__(self) -> None:
        self.connections_opened = 0
        """Upgrades that got a handler."""
        self.handshakes_refused = 0
        """Upgrades answered with 400, 401, 403, 405 or 426."""
        self.handshakes_turned_away = 0
        """Upgrades over capacity or during shutdown, answered with 503 or closed with 1012 or 1013."""
        self.events_received = 0
        """Messages to StreetSockets, whatever became of them."""
        self.events_malformed = 0
        """Of these, not an envelope, or data that does not fit a handler."""
        self.events_rate_limited = 0
        """Of these, dropped for the rate."""
        self.handler_errors = 0
        """Handlers that raised."""

    def as_dict(self) -> dict[str, int]:
        """All counters by name."""
        return {name: getattr(self, name) for name in self.__slots__}


class Histogram:
    """How many values were how large. `bounds`, ascending, are the upper ends of the buckets, ends included; one more
    bucket has what is above the last."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """One more value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def as_dict(self) -> dict[str, float | list[float] | list[int]]:
        """``bounds``, ``counts`` (of each bucket by itself) and ``sum``, as copies."""
        return {"bounds": list(self.bounds), "counts": list(self.counts), "sum": self.sum}

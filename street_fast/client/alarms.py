"""What is to be done later, in order of time, for one owner with one timer. Sans-IO: the clock is handed in."""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Alarm", "Alarms"]


class Alarm:
    """One of them. `cancel` it any number of times."""

    __slots__ = ("callback",)

    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class Alarms:
    """`set_timer(when)` is called when the nearest time comes nearer; then, or later, `run`."""

    def __init__(self, clock: Callable[[], float], set_timer: Callable[[float], object]) -> None:
        self._clock = clock
        self._set_timer = set_timer
        self._heap: list[tuple[float, int, Alarm]] = []
        self._numbers = itertools.count()

    def after(self, delay_s: float, callback: Callable[[], object]) -> Alarm:
        """Call `callback` in `delay_s` seconds."""
        alarm = Alarm(callback)
        entry = (self._clock() + delay_s, next(self._numbers), alarm)
        heapq.heappush(self._heap, entry)
        if self._heap[0] is entry:
            self._set_timer(entry[0])
        return alarm

    def run(self) -> None:
        """Do what is due."""
        now = self._clock()
        while self._heap and (self._heap[0][0] <= now or self._heap[0][2].callback is None):
            callback = heapq.heappop(self._heap)[2].callback
            if callback is not None:
                callback()
        if self._heap:
            self._set_timer(self._heap[0][0])

    def clear(self) -> None:
        """Forget all of them."""
        self._heap.clear()

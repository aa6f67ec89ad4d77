"""Seldom: what happens again and again is logged now and then, with how often it happened.

Whoever can send to a node, or a broker that is away, must not be able to fill a disk with lines that say the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Seldom"]

_PAUSE_S = 10.0


class Seldom:
    """Logs the first of its kind at once, and then one in ten seconds at most. `log` is a method of a logger.

    `clock` returns seconds.
    """

    __slots__ = ("_clock", "_log", "_next", "_unsaid")

    def __init__(self, log: Callable[..., None], clock: Callable[[], float]) -> None:
        self._log = log
        self._clock = clock
        self._next = float("-inf")
        self._unsaid = 0

    def __call__(self, message: str, *values: object) -> None:
        """A line for the log, with its values."""
        now = self._clock()
        if now < self._next:
            self._unsaid += 1
            return
        unsaid, self._unsaid, self._next = self._unsaid, 0, now + _PAUSE_S
        if unsaid:
            message, values = f"{message} (and %d more like it before)", (*values, unsaid)
        self._log(message, *values)

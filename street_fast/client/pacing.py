"""How fast a client may send, by the limits of the server's welcome: it must not get above them.

The server counts when messages arrive, and the network bunches them up. So a tenth of the rate and a quarter of the
burst are left unused. If the server drops messages all the same (bytes are not counted here), nothing is
sent for as long as it takes to fill the whole bucket, which is what makes the server forget it; then half as fast, and
faster again after a while.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Pacing"]

_SHARE_OF_RATE = 0.9
_SHARE_OF_BURST = 0.75
_LEAST_SPEED = 1 / 32
_FORGIVEN_AFTER_S = 10.0
_PAUSE_S = 0.5  # beyond what fills the bucket
_RATE_UNLESS_SAID = 20.0
_ROUNDING = 1e-3  # of a token: a wait must be long enough for a clock to show it


class Pacing:
    """A token bucket. Full speed until `begin`."""

    __slots__ = ("_burst", "_clock", "_full_s", "_rate", "_slowed_at", "_speed", "_tokens", "_updated")

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._rate: float | None = None
        self._burst = 1.0
        self._full_s = 1.0  # what the server's bucket takes to fill
        self._tokens = 1.0
        self._updated = 0.0
        self._speed = 1.0
        self._slowed_at = 0.0

    def begin(self, rate: float | None, burst: float, opening: int) -> None:
        """A connection begins: `rate` messages a second (None: any), `burst` at once, and `opening` more once."""
        self._speed = 1.0
        self._updated = self._clock()
        self._rate = None if rate is None or rate <= 0 else rate * _SHARE_OF_RATE
        self._burst = max(1.0, burst * _SHARE_OF_BURST)
        self._full_s = max(1.0, 1.0 if self._rate is None else burst / self._rate)
        self._tokens = self._burst + opening

    def wait(self) -> float:
        """Seconds until a message may be sent; 0 if it may be now."""
        if self._rate is None and self._speed == 1.0:
            return 0.0
        now = self._clock()
        if self._speed < 1.0 and now - self._slowed_at >= _FORGIVEN_AFTER_S:
            self._slowed_at = now
            self._speed = min(1.0, 2 * self._speed)
        rate = (_RATE_UNLESS_SAID if self._rate is None else self._rate) * self._speed
        if now < self._updated:
            return self._updated - now + 1.0 / rate
        if self._tokens < self._burst:
            self._tokens = min(max(1.0, self._burst * self._speed), self._tokens + (now - self._updated) * rate)
        self._updated = now
        return 0.0 if self._tokens >= 1.0 - _ROUNDING else (1.0 - self._tokens) / rate

    def take(self) -> None:
        """A message is sent, also one that could not wait."""
        self._tokens -= 1.0

    def slow_down(self) -> None:
        """The server has dropped something."""
        now = self._clock()
        if now < self._updated:  # told again during the pause
            return
        self._slowed_at = now
        self._speed = max(_LEAST_SPEED, self._speed / 2)
        self._tokens = 0.0
        self._updated = now + self._full_s + _PAUSE_S

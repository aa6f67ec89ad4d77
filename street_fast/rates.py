"""How much one client may send: two token buckets, and the clock of who stays above them.

Whatever its transport, a client has one `Rate`; the numbers that the clients of a server share are its `Rates`. An
event above a bucket is dropped. The first one is answered with a ``rate_limited`` error, and then one in a second; a
client that is dropped from again and again for ``Limits.rate_grace_s``, without a pause long enough to fill both
buckets, is to be disconnected (4029).

A bucket is kept as the time at which it will be full again: an event of n tokens moves it n * cost ahead, and is
refused if that is further ahead of now than the span, which is the whole bucket. So nothing has to be filled.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from street_fast.limits import Limits

__all__ = ["ABUSIVE_REASON", "DROPPED_MESSAGE", "Rate", "Rates", "Verdict"]

DROPPED_MESSAGE = "too many messages, or too many bytes, per second; this one was dropped"
"""What the ``rate_limited`` error says."""

ABUSIVE_REASON = "too many messages for too long"
"""The reason of the close with 4029."""

_ROUNDING_S = 1e-6

_TELL_AGAIN_S = 1.0
"""A client above its rate is told so once, and then once in this time."""


class Verdict(enum.Enum):
    """What becomes of an event."""

    TAKEN = enum.auto()
    TELL = enum.auto()
    """It is dropped, and the client is to be told."""
    DROPPED = enum.auto()
    """It is dropped, and the client was told a moment ago."""
    ABUSIVE = enum.auto()
    """It is dropped, and the client is to be disconnected."""


class Rates:
    """The rates of `limits`, for all clients of a server.

    `opening_messages` is how many messages a client may send above its bucket, once: a client that comes back
    subscribes to all of its channels.
    """

    __slots__ = (
        "bytes_cost_s",
        "bytes_span_s",
        "grace_s",
        "message_cost_s",
        "message_span_s",
        "opening_messages",
    )

    def __init__(self, limits: Limits, opening_messages: int = 0) -> None:
        rate, bytes_rate = limits.messages_per_second, limits.bytes_per_second
        self.message_cost_s = 1 / rate if rate else 0.0
        self.message_span_s = limits.messages_burst / rate + _ROUNDING_S if rate else float("inf")
        self.bytes_cost_s = 1 / bytes_rate if bytes_rate else 0.0
        # One second's worth, and at least one event of any size that is allowed.
        self.bytes_span_s = max(1.0, limits.event_bytes / bytes_rate) + _ROUNDING_S if bytes_rate else float("inf")
        self.grace_s = limits.rate_grace_s
        self.opening_messages = opening_messages


class Rate:
    """The buckets of one client of a server with `rates`; full to begin with. Times are on one monotonic clock."""

    __slots__ = ("abused_since", "bytes_full_at", "messages_full_at", "opening_messages", "told_at")

    def __init__(self, rates: Rates) -> None:
        self.messages_full_at = 0.0
        self.bytes_full_at = 0.0
        self.opening_messages = rates.opening_messages
        self.abused_since: float | None = None
        self.told_at = 0.0

    def take(self, rates: Rates, now: float, size: int) -> Verdict:
        """Takes an event of `size` bytes from both buckets, or from none of them."""
        messages_full_at = max(self.messages_full_at, now)
        bytes_full_at = max(self.bytes_full_at, now)
        if self.abused_since is not None and messages_full_at == bytes_full_at == now:
            self.abused_since = None  # it has been quiet for long enough to fill both buckets
        bytes_full_at += rates.bytes_cost_s * size
        if bytes_full_at - now > rates.bytes_span_s:
            return self.refuse(rates, now)
        messages_full_at += rates.message_cost_s
        if messages_full_at - now <= rates.message_span_s:
            self.messages_full_at = messages_full_at
        elif self.opening_messages:
            self.opening_messages -= 1
        else:
            return self.refuse(rates, now)
        self.bytes_full_at = bytes_full_at
        return Verdict.TAKEN

    def refuse(self, rates: Rates, now: float) -> Verdict:
        """What becomes of an event that was refused, here or for the rate of the channel that it is for."""
        if self.abused_since is None:
            self.abused_since = now
        elif now - self.abused_since >= rates.grace_s:
            return Verdict.ABUSIVE
        elif now - self.told_at < _TELL_AGAIN_S:
            return Verdict.DROPPED
        self.told_at = now
        return Verdict.TELL

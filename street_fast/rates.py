"""How much one client may send: two token buckets, and the clock of who stays above them.

Whatever its transport, a client has one `Rate`; the numbers that the clients of a server share are its `Rates`. An
event above a bucket is dropped. The first one is answered with a ``rate_limited`` error, and then one in a second; a
client that is dropped from again and again for ``Limits.rate_grace_s``, without a pause long enough to fill both
buckets, is to be disconnected (4029).

A bucket is kept as the time at which it will be full again: an event of n tokens moves it n * cost ahead, and is
refused if that is further ahead of now than the span, which is the whole bucket. So nothing has to be filled.

The classes are in ``_intake_py.py``, which is compiled.
"""

from __future__ import annotations

from street_fast._core import Rate, Rates, Verdict

__all__ = ["ABUSIVE_REASON", "DROPPED_MESSAGE", "Rate", "Rates", "Verdict"]

DROPPED_MESSAGE = "too many messages, or too many bytes, per second; this one was dropped"
"""What the ``rate_limited`` error says."""

ABUSIVE_REASON = "too many messages for too long"
"""The reason of the close with 4029."""

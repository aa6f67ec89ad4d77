# cython: annotation_typing=False, auto_pickle=False, cdivision=True, nonecheck=True
"""What becomes of each message of a client before anybody's code sees it: the rate, the envelope, whose it is.

`Rate` is policy only and goes with any transport (see `rates`). `Intake` is the half of a `StreetSocket` that runs once
for each message; what is rare, and what needs asyncio, is the other half's, which has a method for each.

This file is both twins: it runs as it is, and is compiled as ``_intake`` with the C types of ``_intake.pxd``. Hence the
style: no construct that would need the ``cython`` module to run.
"""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import asyncio
    from collections import deque
    from collections.abc import Callable

    from street_fast._connection_py import LoopContext, WebSocket
    from street_fast.limits import Limits
    from street_fast.messages import Envelope
    from street_fast.metrics import Counters

__all__ = ["UNHANDLED", "Intake", "IntakeContext", "Rate", "Rates", "Unhandled", "Verdict"]

_COMPILED = not __file__.endswith(".py")
_ROUNDING_S = 1e-6
_TELL_AGAIN_S = 1.0
_NEVER = -1.0


class Unhandled(enum.Enum):
    """The type of UNHANDLED."""

    UNHANDLED = enum.auto()


UNHANDLED: Final = Unhandled.UNHANDLED
"""What an EventProtocol returns for an event that is not its own."""


class Verdict(enum.Enum):
    """What becomes of an event."""

    TAKEN = 0
    TELL = 1
    """It is dropped, and the client is to be told."""
    DROPPED = 2
    """It is dropped, and the client was told a moment ago."""
    ABUSIVE = 3
    """It is dropped, and the client is to be disconnected."""


_TAKEN, _TELL, _DROPPED, _ABUSIVE = range(4)
_VERDICTS = tuple(Verdict)


class Rates:
    """The rates of `limits`, for all clients of a server.

    `opening_messages` is how many messages a client may send above its bucket, once: a client that comes back
    subscribes to all of its channels.
    """

    __slots__ = (
        "_bytes_cost_s",
        "_bytes_span_s",
        "_grace_s",
        "_message_cost_s",
        "_message_span_s",
        "_opening_messages",
    )

    _bytes_cost_s: float
    _bytes_span_s: float
    _grace_s: float
    _message_cost_s: float
    _message_span_s: float
    _opening_messages: int

    def __init__(self, limits: Limits, opening_messages: int = 0) -> None:
        rate, bytes_rate = limits.messages_per_second, limits.bytes_per_second
        self._message_cost_s = 1 / rate if rate else 0.0
        self._message_span_s = limits.messages_burst / rate + _ROUNDING_S if rate else float("inf")
        self._bytes_cost_s = 1 / bytes_rate if bytes_rate else 0.0
        # One second's worth, and at least one event of any size that is allowed.
        self._bytes_span_s = max(1.0, limits.event_bytes / bytes_rate) + _ROUNDING_S if bytes_rate else float("inf")
        self._grace_s = limits.rate_grace_s
        self._opening_messages = opening_messages


class Rate:
    """The buckets of one client of a server with `rates`; full to begin with. Times are on one monotonic clock."""

    __slots__ = ("_abused_since", "_bytes_full_at", "_messages_full_at", "_opening_messages", "_told_at")

    _abused_since: float
    _bytes_full_at: float
    _messages_full_at: float
    _opening_messages: int
    _told_at: float

    def __init__(self, rates: Rates) -> None:
        self._messages_full_at = 0.0
        self._bytes_full_at = 0.0
        self._opening_messages = rates._opening_messages
        self._abused_since = _NEVER
        self._told_at = 0.0

    def take(self, rates: Rates, now: float, size: int) -> Verdict:
        """Takes an event of `size` bytes from both buckets, or from none of them."""
        return _VERDICTS[self._take(rates, now, size)]

    def refuse(self, rates: Rates, now: float) -> Verdict:
        """What becomes of an event that was refused elsewhere, for the rate of the channel that it is for."""
        return _VERDICTS[self._refuse(rates, now)]

    def _take(self, rates: Rates, now: float, size: int) -> int:
        messages_full_at = self._messages_full_at
        bytes_full_at = self._bytes_full_at
        if messages_full_at <= now:
            messages_full_at = now
            if bytes_full_at <= now:
                self._abused_since = _NEVER  # it has been quiet for long enough to fill both buckets
        if bytes_full_at < now:
            bytes_full_at = now
        bytes_full_at += rates._bytes_cost_s * size
        if bytes_full_at - now > rates._bytes_span_s:
            return self._refuse(rates, now)
        messages_full_at += rates._message_cost_s
        if messages_full_at - now <= rates._message_span_s:
            self._messages_full_at = messages_full_at
        elif self._opening_messages:
            self._opening_messages -= 1
        else:
            return self._refuse(rates, now)
        self._bytes_full_at = bytes_full_at
        return _TAKEN

    def _refuse(self, rates: Rates, now: float) -> int:
        if self._abused_since == _NEVER:
            self._abused_since = now
        elif now - self._abused_since >= rates._grace_s:
            return _ABUSIVE
        elif now - self._told_at < _TELL_AGAIN_S:
            return _DROPPED
        self._told_at = now
        return _TELL


class IntakeContext:
    """What the intakes of one server share. `decode_envelope` raises an Exception for what is no envelope."""

    __slots__ = ("_decode_envelope", "_json_depth", "counters", "limits", "loop_context", "rates")

    _decode_envelope: Callable[[bytes], Envelope]
    _json_depth: int
    counters: Counters
    limits: Limits
    loop_context: LoopContext
    rates: Rates

    def __init__(
        self,
        loop_context: LoopContext,
        limits: Limits,
        counters: Counters,
        decode_envelope: Callable[[bytes], Envelope],
        opening_messages: int = 0,
    ) -> None:
        self.loop_context = loop_context
        self.limits = limits
        self.counters = counters
        self.rates = Rates(limits, opening_messages)
        self._decode_envelope = decode_envelope
        self._json_depth = limits.json_depth


class Intake:
    """Listens to `ws`. The events go to `protocol`, if there is one, and what that leaves to the subclass.

    The subclass has the methods that end in an ellipsis here, and ``_on_close(code, reason)``.
    """

    __slots__ = ("_context", "_full", "_inbox", "_main", "_malformed_in_a_row", "_rate", "_worker", "_ws", "protocol")

    _context: IntakeContext
    _full: bool  # the inbox is, and the WebSocket is not read
    _inbox: deque[bytes] | None  # events that wait for the worker
    _main: asyncio.Task[None] | None  # the connection handler, if it is a coroutine
    _malformed_in_a_row: int
    _rate: Rate | None  # None before the first message
    _worker: asyncio.Task[None] | None  # awaits what an event left to do
    _ws: WebSocket
    protocol: Any

    def __init__(self, ws: WebSocket, context: IntakeContext) -> None:
        self._ws = ws
        self._context = context
        self.protocol = None
        self._rate = None
        self._inbox = None
        self._worker = None
        self._main = None
        self._malformed_in_a_row = 0
        self._full = False
        ws.text_as_bytes = True
        ws.listener = self

    def _on_message(self, data: bytes | bytearray) -> None:
        """A whole message: bytes if it was text, a bytearray if it was binary."""
        context, rate = self._context, self._rate
        if rate is None:
            rate = self._rate = Rate(context.rates)
        context.counters.events_received += 1
        verdict = rate._take(context.rates, context.loop_context.time(), len(data))
        if verdict != _TAKEN:
            self._above_rate(_VERDICTS[verdict])
        elif isinstance(data, bytearray):
            self._malformed("an event is a text message, not a binary one")
        elif self._worker is not None:
            self._wait_in_line(data)
        else:
            left = self._handle(data)
            if left is not None:
                self._work_on(left)

    def _handle(self, text: bytes) -> Any:
        """Gives one event to whom it is for; returns what is left to await, if that is a coroutine."""
        context, protocol = self._context, self.protocol
        envelope = None
        # A text with few brackets cannot be deep; that is nearly every text.
        if _brackets(text) <= context._json_depth:
            try:
                envelope = context._decode_envelope(text)
            except Exception:
                envelope = None  # _decode() says what is wrong
        if envelope is None:
            envelope = self._decode(text)
            if envelope is None:
                return None
        self._malformed_in_a_row = 0
        if protocol is None:
            return self._dispatch(envelope)
        try:
            left = protocol.handle(envelope)
        except BaseException as error:
            self._handler_failed(envelope.type, error)
            return None
        if left is None:
            return None
        return self._dispatch(envelope) if left is UNHANDLED else self._await(envelope.type, left)

    def _decode(self, text: bytes) -> Envelope | None:
        """The envelope in a text that may be malformed; None if it was, and that has been dealt with."""

    def _above_rate(self, verdict: Verdict) -> None: ...
    def _malformed(self, why: str) -> None: ...
    def _wait_in_line(self, text: bytes) -> None: ...
    def _work_on(self, left: Any) -> None: ...
    def _dispatch(self, envelope: Envelope) -> Any: ...
    def _handler_failed(self, event: str, error: BaseException) -> None: ...
    def _await(self, event: str, coroutine: Any) -> Any: ...


def _brackets(text: bytes) -> int:
    if not _COMPILED:
        return text.count(b"[") + text.count(b"{")
    found = 0
    for octet in text:  # without a branch, so that a C compiler looks at many at once
        found += (octet | 0x20) == 0x7B
    return found

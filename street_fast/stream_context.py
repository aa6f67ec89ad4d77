"""What the event streams of one event loop share: the flush, the counters, and a bound for all slow ones together.

Dirty streams are flushed once per turn of the loop, in slices of a millisecond, so that others have their turn. While
anybody is slow, a round a second looks at what all of them keep from being freed; above ``Limits.outbound_total_bytes``
the largest are evicted. An event that many wait for is in memory once, and counts once.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING, Any

from street_fast._core import LoopContext
from street_fast.memory_limit import process_memory_limit

if TYPE_CHECKING:
    from street_fast._core import Timer
    from street_fast.sse import SseStream

__all__ = ["StreamContext"]

logger = logging.getLogger("street_fast")

_SLICE_S = 0.001  # of a flush, before the loop gets its turn
_SLOW_ROUND_S = 1.0  # between two looks at what all slow streams hold


class StreamContext:
    """One for each event loop; see above."""

    __slots__ = (
        "_bytes_out",
        "_dirty",
        "_dropped",
        "_ended",
        "_events_out",
        "_opened",
        "_round",
        "_scheduled",
        "_slow",
        "_waiting",
        "loop_context",
    )

    def __init__(self, loop_context: LoopContext) -> None:
        self.loop_context = loop_context
        self._dirty: deque[SseStream] = deque()
        self._scheduled = False
        self._opened = 0
        self._ended = 0
        self._events_out = 0
        self._bytes_out = 0
        self._dropped = 0
        self._slow = 0
        self._waiting: dict[SseStream, None] = {}
        self._round: Timer | None = None

    @staticmethod
    def of(loop_context: LoopContext | None = None) -> StreamContext:
        """The one that belongs to `loop_context` (default: that of the running loop), made at first use."""
        if loop_context is None:
            loop_context = LoopContext.of()
        loop: Any = loop_context.loop
        known: StreamContext | None = getattr(loop, "_street_fast_streams", None)
        if known is None or known.loop_context is not loop_context:
            known = loop._street_fast_streams = StreamContext(loop_context)
        return known

    def stats(self) -> dict[str, int]:
        """Open streams, streams opened since the start, events (pings too) and bytes given to their clients, bytes that
        wait for slow ones, droppable events that were dropped, and slow consumers that were closed."""
        return {
            "streams": self._opened - self._ended,
            "streams_opened": self._opened,
            "events_out": self._events_out,
            "bytes_out": self._bytes_out,
            "bytes_waiting": sum(stream.bytes_buffered for stream in self._waiting),
            "events_dropped": self._dropped,
            "slow_consumers": self._slow,
        }

    def opened(self) -> None:
        """A stream began."""
        self._opened += 1

    def ended(self, stream: SseStream) -> None:
        """A stream that began has ended."""
        self._ended += 1
        self._waiting.pop(stream, None)
        if self._round is not None and not self._waiting:
            self._round.cancel()
            self._round = None

    def sent(self, events: int, size_bytes: int) -> None:
        """A client was given this much."""
        self._events_out += events
        self._bytes_out += size_bytes

    def dropped(self) -> None:
        """A droppable event was dropped."""
        self._dropped += 1

    def slow(self) -> None:
        """A slow consumer is closed."""
        self._slow += 1

    def add_dirty(self, stream: SseStream) -> None:
        """See to it that `stream.flush()` is called before long. The stream sees to it that it is not here twice."""
        self._dirty.append(stream)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self.loop_context.loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        time = self.loop_context.time
        deadline = time() + _SLICE_S
        while self._dirty:
            self._dirty.popleft().flush()
            if time() >= deadline:
                break
        if self._dirty:
            self._schedule()

    # --- what all slow streams hold ---

    def note_slow(self, stream: SseStream) -> None:
        """Something waits for the client of this stream. It is looked at until nothing does."""
        self._waiting[stream] = None
        if self._round is None:
            self._round = self.loop_context.wheel.schedule(_SLOW_ROUND_S, StreamContext._look_at_waiting, self)

    def _look_at_waiting(self) -> None:
        self._round = None
        self._waiting = {stream: None for stream in self._waiting if not stream.closed and stream.bytes_buffered}
        if not self._waiting:
            return
        waiting = sum(stream.bytes_buffered for stream in self._waiting)
        if waiting > min(_total_allowed(stream) for stream in self._waiting):
            self._evict_largest()
        self._round = self.loop_context.wheel.schedule(_SLOW_ROUND_S, StreamContext._look_at_waiting, self)

    def _evict_largest(self) -> None:
        held = {stream: stream.bytes_held() for stream in self._waiting}
        total = before = sum(held.values())
        evicted = allowed = 0
        for stream in sorted(held, key=held.__getitem__, reverse=True):
            if total > _total_allowed(stream):
                allowed = _total_allowed(stream)
                total -= held[stream]
                evicted += 1
                del self._waiting[stream]
                stream.evict("too many bytes wait for all, and many of them for you")
        if evicted:
            logger.warning(
                "%d slow event streams were closed: all together held %d bytes, and Limits.outbound_total_bytes is %d",
                evicted,
                before,
                allowed,
            )


def _total_allowed(stream: SseStream) -> int:
    return stream.limits.outbound_total_bytes or process_memory_limit() // 4

"""What the event streams of one event loop share: the flush and the counters.

Dirty streams are flushed once per turn of the loop, in slices of a millisecond, so that others have their turn. Slow
ones are looked at together with the slow WebSockets of the loop: `SlowConsumers`.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any

from street_fast._core import LoopContext
from street_fast.slow_consumers import EVENT_STREAMS

if TYPE_CHECKING:
    from street_fast.sse import SseStream

__all__ = ["StreamContext"]

_SLICE_S = 0.001  # of a flush, before the loop gets its turn


class StreamContext:
    """One for each event loop; see above."""

    __slots__ = (
        "_dirty",
        "_dropped",
        "_ended",
        "_opened",
        "_scheduled",
        "_slow",
        "bytes_out",
        "events_out",
        "loop_context",
    )

    def __init__(self, loop_context: LoopContext) -> None:
        self.loop_context = loop_context
        self._dirty: deque[SseStream] = deque()
        self._scheduled = False
        self._opened = 0
        self._ended = 0
        self.events_out = 0  # that clients were given
        self.bytes_out = 0
        self._dropped = 0
        self._slow = 0

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
            "events_out": self.events_out,
            "bytes_out": self.bytes_out,
            "bytes_waiting": self.loop_context.slow.bytes_waiting(EVENT_STREAMS),
            "events_dropped": self._dropped,
            "slow_consumers": self._slow,
        }

    def opened(self) -> None:
        """A stream began."""
        self._opened += 1

    def ended(self, stream: SseStream) -> None:
        """A stream that began has ended."""
        self._ended += 1
        self.loop_context.slow.forget(stream)

    def dropped(self) -> None:
        """A droppable event was dropped."""
        self._dropped += 1

    def note_slow(self, stream: SseStream) -> None:
        """Something waits for the client of this stream."""
        self.loop_context.slow.note(stream, EVENT_STREAMS)

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

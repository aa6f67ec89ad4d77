"""MemoryBackplane: one process, no other nodes. History lives in memory, and ends with the process.

Everything is answered at once: no coroutine, no task. A publish has been delivered when it returns, unless it came from
within a delivery.

**What is kept.** A channel keeps its messages in the order of their offsets, bounded by its `History` and by
``Limits.history_bytes``. Above ``Limits.history_total_bytes`` the channel that was published to least recently loses
all its messages. A channel without messages is remembered by the position of its last one, so that a client who has
that one recovers; above ``Limits.history_channels`` channels are forgotten, those longest without messages first, then
the least recently published to. Bytes are those of the payloads and of what Python needs around them.

**Epochs.** A channel that is not known (never published to, or forgotten) costs nothing: it stands at offset 0 of an
epoch that all such channels share, and its first message continues that one. When a channel is forgotten the shared
epoch ends and another begins, so that nobody who saw the beginning of the forgotten one is told that nothing followed.
Channels that are known keep the epoch that they have.

**Time.** A message ends on time for whoever reads. Its memory is freed by the timer wheel, with one timer for each
channel that keeps messages and one for all keys, within a second or so.
"""

from __future__ import annotations

import logging
import os
import random
from collections import OrderedDict, deque
from itertools import islice
from typing import TYPE_CHECKING

from street_fast._core import LoopContext
from street_fast.backplanes import NOT_KEPT, Health, Page, Position, Publication, Published, Unavailable
from street_fast.limits import Limits, checked_limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from street_fast._core import Timer
    from street_fast.backplanes import BackplaneSink, History

__all__ = ["MemoryBackplane"]

logger = logging.getLogger("street_fast")

_AROUND_A_MESSAGE = 350
"""Bytes that a kept message takes beside its payload: objects for entry, publication, position, tag, offset, time."""
_AROUND_A_CHANNEL = 1_100
"""Bytes that a channel with messages takes beside them: itself, its timer, its name, and the first block of a deque."""
_SWEEP_S = 1.0
"""The least time between two looks for what has expired in one channel: a busy one would be looked at every tick."""


class _Channel:
    """What a channel keeps. `floor` is the position before the oldest message, `top` that of the newest."""

    __slots__ = ("entries", "floor", "name", "size_bytes", "timer", "top")

    def __init__(self, name: str, top: Position) -> None:
        self.name = name
        self.floor = top
        self.top = top
        self.entries: deque[tuple[Publication, float]] = deque()  # with the time at which it ends
        self.size_bytes = _AROUND_A_CHANNEL
        self.timer: Timer  # set by who makes it


class MemoryBackplane:
    """A `Backplane` for one process.

    `context` has the clock and the timer wheel (default: those of the loop that `start` runs in). Raises
    ConfigurationError if `limits` are none.
    """

    def __init__(self, *, limits: Limits | None = None, context: LoopContext | None = None) -> None:
        limits = checked_limits(limits)
        self._most_channels = limits.history_channels
        self._most_bytes = limits.history_total_bytes
        self._most_channel_bytes = min(limits.history_bytes, limits.history_total_bytes)
        self._most_keys = limits.publish_keys
        self._key_ttl_s = limits.publish_key_ttl_s
        self._context = context
        self._loop_context: LoopContext | None = None
        self._sink: BackplaneSink | None = None  # between start() and close()
        self._subscribed: set[str] = set()
        self._deliveries: deque[tuple[str, Publication]] = deque()
        self._delivering = False
        # Ordered by the last publish, as OrderedDict finds its oldest in O(1), and a dict does not.
        self._channels: OrderedDict[str, _Channel] = OrderedDict()
        self._tops: OrderedDict[str, Position] = OrderedDict()  # of channels without messages
        self._kept_messages = 0
        self._kept_bytes = 0
        self._keys: OrderedDict[tuple[str, str], tuple[Published, float]] = OrderedDict()
        self._keys_timer: Timer | None = None
        self._tags: Iterator[str]
        self._unknown_top: Position
        self._on_channel_due: Callable[[_Channel], None] = self._channel_due  # one bound method for all timers

    # --- life ---

    async def start(self, sink: BackplaneSink) -> None:
        """Begin to deliver to `sink`. Raises RuntimeError if it is started already."""
        if self._sink is not None:
            raise RuntimeError("this MemoryBackplane is started already; it serves one sink, until close()")
        self._loop_context = LoopContext.of() if self._context is None else self._context
        # Made here and not before, as processes that were forked with it must not go on with the same ones. The numbers
        # tell one history from another, and are no secret.
        self._tags = _tags(random.Random(os.urandom(16)))  # noqa: S311
        self._unknown_top = self._new_start()
        self._sink = sink

    async def close(self, *, linger: bool = False) -> None:
        """Forget everything, history included."""
        self._sink = self._loop_context = None
        self._subscribed.clear()
        self._deliveries.clear()
        for channel in self._channels.values():
            channel.timer.cancel()
        self._channels.clear()
        self._tops.clear()
        self._kept_messages = self._kept_bytes = 0
        self._keys.clear()
        if self._keys_timer is not None:
            self._keys_timer.cancel()
            self._keys_timer = None

    # --- messages ---

    def publish(
        self,
        channel: str,
        payload: bytes,
        *,
        history: History | None = None,
        key: str | None = None,
        skip: str | None = None,
    ) -> Published:
        """Keep `payload` if there is a `history`, and deliver it if the channel is subscribed, before this returns."""
        context = self._loop_context
        if context is None:
            context = self._started()
        if key is not None:
            known = self._known(channel, key, context.time())
            if known is not None:
                return known
        if history is None:
            publication, published = Publication(payload, None, skip), NOT_KEPT
        else:
            publication = self._keep(channel, payload, skip, history, context.time())
            published = Published(publication.position)
        if key is not None:
            self._remember(channel, key, published, context.time())
        if channel in self._subscribed:
            self._deliver(channel, publication)
        return published

    def subscribe(self, channel: str, history: History | None = None) -> None:
        """Deliver what is published to `channel` from now on."""
        self._started()
        self._subscribed.add(channel)

    def unsubscribe(self, channel: str) -> None:
        """Deliver nothing more of `channel`."""
        self._subscribed.discard(channel)

    def read(self, channel: str, history: History, *, since: Position | None, limit: int) -> Page:
        """A page of what is kept, see `Backplane.read`. It is recovered too if `since` is the newest that has gone."""
        context = self._started()
        if limit < 0:
            raise ValueError(f"limit={limit!r}: must be 0 or more")
        kept = self._channels.get(channel)
        if kept is not None:
            self._expire(kept, context.time())
        if kept is None or not kept.entries:
            top = self._tops.get(channel, self._unknown_top)
            return Page([], top, since == top)
        entries = kept.entries
        if since is None:
            return Page([entry[0] for entry in islice(entries, max(0, len(entries) - limit), None)], kept.top, False)
        seen = since.offset - kept.floor.offset
        if not 0 <= seen <= len(entries) or since != (entries[seen - 1][0].position if seen else kept.floor):
            return Page([], kept.top, False)
        return Page([entry[0] for entry in islice(entries, seen, seen + limit)], kept.top, True)

    def signal(self, channel: str, payload: bytes) -> None:
        """Nobody to tell."""

    # --- members ---

    def join(self, channel: str, member_id: str, info: bytes | None) -> None:
        """Nobody to tell."""

    def leave(self, channel: str, member_id: str) -> None:
        """Nobody to tell."""

    def members(self, channel: str) -> dict[str, bytes | None]:
        """Nobody: there are no other nodes."""
        self._started()
        return {}

    # --- questions ---

    def health(self) -> Health:
        """Well, while it is started."""
        return Health(True, "in memory") if self._sink is not None else Health(False, "not started, or closed")

    def stats(self) -> dict[str, int]:
        """What is held now; ``history_bytes`` counts as the limits do."""
        return {
            "channels_subscribed": len(self._subscribed),
            "history_channels": len(self._channels) + len(self._tops),
            "history_messages": self._kept_messages,
            "history_bytes": self._kept_bytes,
            "publish_keys": len(self._keys),
        }

    # --- inside: delivery ---

    def _started(self) -> LoopContext:
        if self._sink is None or self._loop_context is None:
            raise Unavailable("this MemoryBackplane is not started, or is closed")
        return self._loop_context

    def _deliver(self, channel: str, publication: Publication) -> None:
        if self._delivering or self._deliveries:
            self._deliveries.append((channel, publication))
            if self._delivering:
                return  # from within deliver(): the sink gets it when it is done with the one before
            channel, publication = self._deliveries.popleft()  # that one was cut short by what ends a process
        self._delivering = True
        try:
            while True:
                if self._sink is not None and channel in self._subscribed:
                    try:
                        self._sink.deliver(channel, publication)
                    except Exception:
                        logger.exception("the sink of the backplane failed to deliver, in channel %r", channel)
                if not self._deliveries:
                    return
                channel, publication = self._deliveries.popleft()
        finally:
            self._delivering = False

    # --- inside: history ---

    def _new_start(self) -> Position:
        return Position.start_of(os.urandom(6).hex())

    def _keep(self, name: str, payload: bytes, skip: str | None, history: History, now: float) -> Publication:
        channel = self._channels.get(name)
        if channel is None:
            channel = self._begin(name, history)
        else:
            self._channels.move_to_end(name)
        epoch, offset, _ = channel.top
        channel.top = Position(epoch, offset + 1, next(self._tags))
        publication = Publication(payload, channel.top, skip)
        channel.entries.append((publication, now + history.ttl_s))
        size_bytes = len(payload) + _AROUND_A_MESSAGE
        channel.size_bytes += size_bytes
        self._kept_bytes += size_bytes
        self._kept_messages += 1
        while len(channel.entries) > history.size or (
            channel.size_bytes > self._most_channel_bytes and channel.entries
        ):
            self._drop_oldest(channel)
        if not channel.entries:
            self._rest(channel)  # one message is above the limit already
        while self._kept_bytes > self._most_bytes:
            self._clear(next(iter(self._channels.values())))
        return publication

    def _begin(self, name: str, history: History) -> _Channel:
        """A channel that has no messages will have one."""
        context = self._started()
        top = self._tops.pop(name, None)
        if top is None:
            top = self._unknown_top
            if len(self._channels) + len(self._tops) >= self._most_channels:
                self._forget_one()
        channel = _Channel(name, top)
        channel.timer = context.wheel.schedule(history.ttl_s, self._on_channel_due, channel)
        self._channels[name] = channel
        self._kept_bytes += channel.size_bytes
        return channel

    def _forget_one(self) -> None:
        if not self._tops:
            self._clear(next(iter(self._channels.values())))
        self._tops.popitem(last=False)
        self._unknown_top = self._new_start()

    def _drop_oldest(self, channel: _Channel) -> None:
        publication, _ = channel.entries.popleft()
        size_bytes = len(publication.payload) + _AROUND_A_MESSAGE
        channel.size_bytes -= size_bytes
        self._kept_bytes -= size_bytes
        self._kept_messages -= 1
        assert publication.position is not None
        channel.floor = publication.position

    def _clear(self, channel: _Channel) -> None:
        while channel.entries:
            self._drop_oldest(channel)
        self._rest(channel)

    def _rest(self, channel: _Channel) -> None:
        """A channel that has lost its last message is only its top."""
        channel.timer.cancel()
        self._kept_bytes -= channel.size_bytes
        del self._channels[channel.name]
        self._tops[channel.name] = channel.top

    def _expire(self, channel: _Channel, now: float) -> None:
        while channel.entries and channel.entries[0][1] <= now:
            self._drop_oldest(channel)
        if not channel.entries:
            self._rest(channel)

    def _channel_due(self, channel: _Channel) -> None:
        now = self._started().time()
        self._expire(channel, now)
        if channel.entries:
            channel.timer.reschedule(max(channel.entries[0][1] - now, _SWEEP_S))

    # --- inside: keys ---

    def _known(self, channel: str, key: str, now: float) -> Published | None:
        known = self._keys.get((channel, key))
        if known is None:
            return None
        published, ends = known
        if ends <= now:
            del self._keys[channel, key]
            return None
        return published

    def _remember(self, channel: str, key: str, published: Published, now: float) -> None:
        self._keys[channel, key] = (Published(published.position, True), now + self._key_ttl_s)
        if len(self._keys) > self._most_keys:
            self._keys.popitem(last=False)
        if self._keys_timer is None:
            self._keys_timer = self._started().wheel.schedule(self._key_ttl_s, self._keys_due)

    def _keys_due(self, _: object) -> None:
        now = self._started().time()
        while self._keys:
            _, ends = next(iter(self._keys.values()))
            if ends > now:
                assert self._keys_timer is not None
                self._keys_timer.reschedule(max(ends - now, _SWEEP_S))
                return
            self._keys.popitem(last=False)
        self._keys_timer = None


def _tags(source: random.Random) -> Iterator[str]:
    """Random tags of 64 bits. Many are written at once, which costs half as much."""
    while True:
        written = source.randbytes(4_096).hex()
        for start in range(0, len(written), 16):
            yield written[start : start + 16]

"""Recovery: a subscriber gets what it missed and then what is new: in order, each message once, or is told of a gap.

A `CatchUp` is one subscriber who is behind in one channel. What is published meanwhile is not sent to it but held; what
it missed is read from the history, page by page. When the history is at its end, what is held is joined to it by
offset, and what is in both goes out once. Nothing grows: at most ``Limits.recovery_messages`` are held, as references
to what all others get. When they become more, they are dropped and read from the history later. Only if the history
does not have them any more either, the subscriber gets a ``gap``.

A `Recovery` is a client who is catching up. It goes through its channels one after the other, and sends only as much as
the client reads (`drain`): a recovery never makes a client slow enough to be evicted for it. Live messages are held for
one who reads more slowly than they come, until it has caught up or is gone.
"""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from typing import TYPE_CHECKING, Protocol

from street_fast.backplanes import Unavailable
from street_fast.errors import ConnectionClosed
from street_fast.messages import Message, gap_message, publication

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from street_fast.backplanes import Page, Position, Publication

__all__ = ["CatchUp", "Recovery"]

_READ_AGAIN_S = 1.0
"""Pause after the history could not be read."""


class CatchUp:
    """What one subscriber of a channel is still to get before it is live. `position` is how far it has come."""

    __slots__ = ("_held", "_missed", "_most_held", "_must_read", "channel", "position")

    def __init__(self, channel: str, since: Position, most_held: int) -> None:
        self.channel = channel
        self.position = since
        self._must_read = True  # the history goes on where what was read of it ends, or may do so
        self._most_held = most_held
        self._missed: deque[Publication] = deque()
        self._held: deque[tuple[Position, Message]] = deque()

    @property
    def wants_page(self) -> bool:
        """Whether nothing can be sent before the history is read."""
        return self._must_read and not self._missed

    @property
    def complete(self) -> bool:
        """Whether the subscriber has everything, and can be live from now on."""
        return not (self._must_read or self._missed or self._held)

    def hold(self, position: Position, message: Message) -> None:
        """A message that was published meanwhile."""
        if len(self._held) >= self._most_held:
            self.lost()
        self._held.append((position, message))

    def lost(self) -> None:
        """What is held does not follow what came before it, or the history could not be read: it has to be read."""
        self._held.clear()
        self._must_read = True

    def begin_read(self) -> Position:
        """The history after this position is being read; then comes `take`, or `lost`."""
        self._must_read = False
        return self.position

    def take(self, page: Page) -> Position | None:
        """The page that was read. Returns None if nothing is missing, or else the position from which it goes on."""
        if not page.recovered:
            self.position = page.top
            return self._join(page.top) or page.top
        self._missed.extend(page.publications)
        end = self._missed[-1].position if self._missed else None
        if end is not None and end != page.top:
            self._must_read = True
        return self._join(self.position if end is None else end)

    def missed_within(self, most_bytes: int) -> list[Message]:
        """The next messages from the history, of `most_bytes` in all."""
        found: list[Message] = []
        while self._missed and len(self._missed[0].payload) <= most_bytes:
            most_bytes -= len(self._missed[0].payload)
            found.append(self._next_missed())
        return found

    def next_batch(self, most_bytes: int) -> list[Message]:
        """The next messages, from the history or held: `most_bytes` in all, or one."""
        batch = self.missed_within(most_bytes)
        if not batch and self._missed:
            return [self._next_missed()]
        if self._missed or self._must_read:
            return batch
        left = most_bytes - sum(len(message.json) for message in batch)
        while self._held and (not batch or len(self._held[0][1].json) <= left):
            self.position, message = self._held.popleft()
            left -= len(message.json)
            batch.append(message)
        return batch

    def _next_missed(self) -> Message:
        payload, position, _ = self._missed.popleft()
        assert position is not None  # it comes from a history
        self.position = position
        return publication(self.channel, payload, str(position))

    def _join(self, end: Position) -> Position | None:
        """Drops what is held and was in the history up to `end`; a position if what is left does not follow it."""
        held = self._held
        if self._must_read:
            return None  # there is more in the history, before what is held
        for count in range(len(held), 0, -1):
            if _is_within(held[count - 1][0], end):
                for _ in range(count):
                    held.popleft()
                break
        if not held:
            return None
        epoch, offset, _ = held[0][0]
        if offset == (end.offset + 1 if epoch == end.epoch else 1):
            return None
        # It is of an epoch that is over, or the backplane broke its word. Better a gap too many than one in silence.
        self._missed.clear()
        self.position = held[-1][0] if epoch == end.epoch else end
        held.clear()
        return self.position


def _is_within(position: Position, end: Position) -> bool:
    return position.epoch == end.epoch and position.offset <= end.offset


class RecoveringPeer(Protocol):
    """What a recovery needs of a connection."""

    @property
    def closed(self) -> bool: ...
    def deliver(self, message: Message, droppable: bool = False) -> None: ...
    async def drain(self) -> None: ...


class Recovery:
    """One client who is catching up, in any number of channels.

    `read(channel, since)` reads the history, and `caught_up(channel)` is called when the client has everything: from
    then on it is live.
    """

    __slots__ = ("_batch_bytes", "_caught_up", "_peer", "_read", "catch_ups", "running")

    def __init__(
        self,
        peer: RecoveringPeer,
        read: Callable[[str, Position], Page | Awaitable[Page]],
        caught_up: Callable[[str], object],
        batch_bytes: int,
    ) -> None:
        self._peer = peer
        self._read = read
        self._caught_up = caught_up
        self._batch_bytes = batch_bytes
        self.catch_ups: dict[str, CatchUp] = {}
        self.running = False

    async def run(self) -> None:
        """Sends what is missed until nothing is, or the client is gone."""
        self.running = True
        try:
            while self.catch_ups:
                await self._peer.drain()
                for catch_up in self.catch_ups.values():
                    await self._go_on(catch_up)
                    break
        except ConnectionClosed:
            pass
        finally:
            self.running = False

    async def _go_on(self, catch_up: CatchUp) -> None:
        if catch_up.wants_page:
            try:
                page = self._read(catch_up.channel, catch_up.begin_read())
                if inspect.isawaitable(page):
                    page = await page
            except Unavailable:
                catch_up.lost()
                await asyncio.sleep(_READ_AGAIN_S)
                return
            position = catch_up.take(page)
            if self.catch_ups.get(catch_up.channel) is not catch_up:
                return  # it was ended meanwhile
            if position is not None:
                self._peer.deliver(gap_message(catch_up.channel, str(position)))
        for message in catch_up.next_batch(self._batch_bytes):
            self._peer.deliver(message)
        if catch_up.complete:
            self._caught_up(catch_up.channel)

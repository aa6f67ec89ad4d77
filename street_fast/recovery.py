"""Recovery: a subscriber gets what it missed and then what is new: in order, each message once, or is told of a gap.

A `CatchUp` is one subscriber who is behind in one channel. What is published meanwhile is not sent to it but held; what
it missed is read from the history, page by page. When the history is at its end, what is held is joined to it by
offset, and what is in both goes out once. A history that is read over a network may be ahead of what is delivered:
then the catch-up stays, and lets nothing pass that was in the history, until the first message that was not.

Nothing grows: at most ``Limits.recovery_messages`` are held, as references to what all others get, and no more bytes
in all channels of a client than may wait for it (`Room`). When they become more, they are dropped and read from the
history later. Only if the history does not have them any more either, the subscriber gets a ``gap``.

A `Recovery` is a client who is catching up. It goes through its channels one after the other, and sends only as much as
the client reads (`drain`): a recovery never makes a client slow enough to be evicted for it. Live messages are held for
one who reads more slowly than they come, until it has caught up or is gone.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol

from street_fast.backplanes import Unavailable
from street_fast.errors import CloseCode, ConnectionClosed
from street_fast.messages import Message, gap_message, publication, publication_json

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from street_fast.backplanes import Page, Position, Publication

__all__ = ["CatchUp", "Recovery", "Room"]

logger = logging.getLogger("street_fast")

_POSITION_BYTES = 50
"""What its position adds to a message, about."""

_READ_AGAIN_S = 1.0
"""Pause after the history could not be read."""


class Room:
    """How many bytes the catch-ups of one client may still keep from being freed; each may exceed it by a message."""

    __slots__ = ("left",)

    def __init__(self, most_bytes: int) -> None:
        self.left = most_bytes


class CatchUp:
    """What one subscriber of a channel is still to get before it is live; then `caught_up` is called with the channel.

    `position` is how far it has come; `answered`, whether it has got the reply to its subscribe, and all this may
    follow; `live_may_lag`, whether the history may have what is delivered only later. `read_on` is called when one that
    was answered, and may have been through, has to read the history again.
    """

    __slots__ = (
        "_end",
        "_held",
        "_lost_while_reading",
        "_missed",
        "_most_held",
        "_must_read",
        "_room",
        "answered",
        "caught_up",
        "channel",
        "live_may_lag",
        "position",
        "read_on",
    )

    def __init__(
        self,
        channel: str,
        since: Position,
        most_held: int,
        room: Room,
        caught_up: Callable[[str], object],
        read_on: Callable[[], object],
    ) -> None:
        self.channel = channel
        self.position = since
        self.caught_up = caught_up
        self.read_on = read_on
        self.answered = False
        self.live_may_lag = False
        self._end = since  # of what was read of the history, and is held
        self._must_read = True  # the history goes on from there, or may do so
        self._lost_while_reading = False
        self._most_held = most_held
        self._room = room
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

    def hold(self, position: Position, message: Message) -> bool:
        """A message that was published meanwhile. False if the subscriber is through, and gets it as all others do."""
        if not self._must_read and self._was_read(position):
            return True
        if self.complete:
            return False
        size = len(message.json)
        if len(self._held) >= self._most_held or size > self._room.left:
            self.lost()
            if size > self._room.left:  # others have it all; the history has this one
                return True
        self._room.left -= size
        self._held.append((position, message))
        if not self._must_read:
            self._end = position
        return True

    def lost(self) -> None:
        """What is held does not follow what came before it, or the history could not be read: it has to be read."""
        self._drop_held()
        self._must_read = self._lost_while_reading = True
        if self.answered:
            self.read_on()

    def go_back(self, position: Position) -> None:
        """The history could not be read for a subscriber who was live, or catching up: it goes on behind `position`."""
        self.position = position
        self._drop_missed()
        self.answered = True
        self.lost()

    def end(self) -> None:
        """Nothing of it is wanted any more."""
        self._drop_missed()
        self._drop_held()

    def begin_read(self) -> Position:
        """The history after this position is being read; then comes `take`, or `lost`."""
        self._lost_while_reading = False
        return self.position

    def take(self, page: Page) -> Position | None:
        """The page that was read. Returns None if nothing is missing, or else the position from which it goes on."""
        self._end = self.position if page.recovered else page.top
        for missed in page.publications:
            assert missed.position is not None  # it comes from a history
            if self._missed and len(missed.payload) > self._room.left:
                break  # the rest is read again
            self._room.left -= len(missed.payload)
            self._end = missed.position
            self._missed.append(missed)
        gone = None
        if not page.recovered:
            gone = self.position = page.top
        ends_there = self._end == page.top or not page.publications
        self._must_read = self._lost_while_reading or not ends_there
        return gone if self._must_read else self._join() or gone

    def missed_within(self, most_bytes: int) -> list[bytes]:
        """The next messages from the history as JSON, of `most_bytes` in all."""
        found: list[bytes] = []
        while self._missed and len(self._missed[0].payload) + _POSITION_BYTES <= most_bytes:
            payload, position = self._next_missed()
            found.append(publication_json(payload, position))
            most_bytes -= len(found[-1])
        return found

    def next_batch(self, most_bytes: int) -> list[Message]:
        """The next messages, from the history or held: `most_bytes` in all, or one."""
        batch: list[Message] = []
        while self._missed:
            if batch and len(self._missed[0].payload) + _POSITION_BYTES > most_bytes:
                return batch
            batch.append(publication(self.channel, *self._next_missed()))
            most_bytes -= len(batch[-1].json)
        if self._must_read:
            return batch
        while self._held and (not batch or len(self._held[0][1].json) <= most_bytes):
            self.position, message = self._held.popleft()
            self._room.left += len(message.json)
            batch.append(message)
            most_bytes -= len(message.json)
        return batch

    def _next_missed(self) -> tuple[bytes, str]:
        payload, position, _ = self._missed.popleft()
        assert position is not None  # it comes from a history
        self._room.left += len(payload)
        self.position = position
        return payload, str(position)

    def _drop_missed(self) -> None:
        self._room.left += sum(len(payload) for payload, _, _ in self._missed)
        self._missed.clear()

    def _drop_held(self) -> None:
        self._room.left += sum(len(message.json) for _, message in self._held)
        self._held.clear()

    def _join(self) -> Position | None:
        """Drops what is held and was read; a position if what is left does not follow it."""
        held, end = self._held, self._end
        while held and self._was_read(held[0][0]):
            self._room.left += len(held.popleft()[1].json)
        if not held:
            return None
        self._end = held[-1][0]
        if held[0][0].epoch != end.epoch or held[0][0].offset == end.offset + 1:
            return None
        # The backplane has broken its word. Better a gap too many than one in silence.
        self._drop_missed()
        self._drop_held()
        self.position = self._end
        return self.position

    def _was_read(self, position: Position) -> bool:
        """Whether a message that is delivered was in the history already, or before it."""
        if position.epoch != self._end.epoch:
            return position.offset != 1  # it does not begin a new epoch, so its epoch is over
        return position.offset <= self._end.offset


class RecoveringPeer(Protocol):
    """What a recovery needs of a connection."""

    def close(self, code: int = ..., reason: str = ...) -> None: ...
    def deliver(self, message: Message, droppable: bool = False) -> None: ...
    async def drain(self) -> None: ...


class Recovery:
    """One client who is catching up, in any number of channels. `read(channel, since)` reads the history."""

    __slots__ = ("_batch_bytes", "_peer", "_read", "_running", "catch_ups", "room")

    def __init__(
        self,
        peer: RecoveringPeer,
        read: Callable[[str, Position], Page | Awaitable[Page]],
        batch_bytes: int,
        most_bytes: int,
    ) -> None:
        self._peer = peer
        self._read = read
        self._batch_bytes = batch_bytes
        self.catch_ups: dict[str, CatchUp] = {}
        self.room = Room(most_bytes)
        self._running = False

    def start(self, spawn: Callable[[Coroutine[Any, Any, None]], object]) -> None:
        """Sends what those that were answered have missed, until they have it or the client is gone."""
        if not self._running:
            self._running = True
            spawn(self._run())

    async def _run(self) -> None:
        try:
            while True:
                await self._peer.drain()
                catch_up = next((one for one in self.catch_ups.values() if one.answered and not one.complete), None)
                if catch_up is None:
                    break
                await self._go_on(catch_up)
                await asyncio.sleep(0)  # as long as the kernel takes it, drain() does not wait, and others have to
        except ConnectionClosed:
            pass
        except Exception:
            # It would hold back what is published for ever; the client comes back and tries again.
            logger.exception("the recovery of a client failed, closing it")
            self._peer.close(CloseCode.INTERNAL_ERROR, "internal error")
        finally:
            self._running = False

    async def _go_on(self, catch_up: CatchUp) -> None:
        if catch_up.wants_page:
            try:
                page = self._read(catch_up.channel, catch_up.begin_read())
                if inspect.isawaitable(page):
                    catch_up.live_may_lag = True
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
        if catch_up.complete and not catch_up.live_may_lag:
            catch_up.caught_up(catch_up.channel)

"""A Feed: what one subscription has received and not read, in order, each message once.

Sans-IO. The protocol offers it every message of its channel, also those that it has had already: a feed keeps the
position of the last one that it took, and takes what comes behind it (docs/protocol.md, "Positions and recovery"). What
is missing becomes a `Gap` in its place in the queue, so that the reader learns of it in order.

A feed is `live` from the reply to its subscribe until the connection is lost. One that holds far more than it should
stops being live too, rather than grow; when it is read it is subscribed anew from where it stopped, and what it missed
comes from the history, or is told as a gap.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from street_fast.backplanes import Position
from street_fast.client.messages import Gap, Incoming

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import TypeAlias

    TokenSource: TypeAlias = str | Callable[[], str | Awaitable[str]]

__all__ = ["Feed", "position_of"]

_OVERFULL = 8
"""So many times the queue's size may be unread, while reading must go on for the answer to a request."""


def position_of(text: str | None) -> Position | None:
    """A position as it came; None if there is none, or none that this client understands."""
    if text is None:
        return None
    try:
        return Position.parse(text)
    except ValueError:
        return None


class Feed:
    """The unread messages of one subscription to `channel`. `on_change` is called when there is something to read."""

    __slots__ = (
        "_begun",
        "channel",
        "ended",
        "error",
        "items",
        "live",
        "on_change",
        "overfull",
        "position",
        "size",
        "token",
    )

    def __init__(
        self, channel: str, *, since: Position | None = None, size: int = 1_000, token: TokenSource | None = None
    ) -> None:
        self.channel = channel
        self.token = token
        self.size = size
        self.position = since  # of the last message taken
        self.items: deque[Incoming | Gap] = deque()
        self.live = False
        self.overfull = False
        self.ended = False
        self.error: Exception | None = None  # why it ended, unless that was the application's wish
        self.on_change: Callable[[Feed], object] = _nothing
        self._begun = False

    @property
    def begun(self) -> bool:
        """Whether it has ever been live."""
        return self._begun

    @property
    def full(self) -> bool:
        """Whether so much is unread that no more should be read from the connection."""
        return len(self.items) >= self.size

    def go_live(self, position: Position | None, since: Position | None = None) -> None:
        """The server has subscribed it: what follows comes after `position` (None: the channel keeps no history).

        With `since`, everything after that follows. (Its offset is not above the feed's own.)
        """
        if self.ended:
            return
        was_away = self._begun and not self.live
        self.live = self._begun = True
        self.overfull = False
        if self.position is None:
            self.position = position
            if was_away:  # and there was no history to go by
                self._put(Gap(self.channel, None if position is None else str(position)))
        elif since is None:
            self.skip_to(position)
        elif since.epoch != self.position.epoch:
            self.skip_to(since)
        self.on_change(self)

    def offer(self, message: Incoming) -> None:
        """Takes a message of the channel, unless it has had it."""
        if not self.live:
            return
        if len(self.items) >= _OVERFULL * self.size:
            self.live = False
            self.overfull = True
            return
        position = position_of(message.position)
        if position is not None:
            last = self.position
            if last is not None and last.epoch == position.epoch:
                missed = position.offset - last.offset - 1
                if missed < 0:
                    return
                if missed:  # the server says that this does not happen; if it does, it is told
                    self._put(Gap(self.channel, None, missed))
            self.position = position
        self._put(message)

    def skip_to(self, position: Position | None) -> None:
        """What comes next comes after `position`; what is between that and the feed's own is gone."""
        if not self.live:
            return
        last, missed = self.position, None
        if last is not None and position is not None and last.epoch == position.epoch:
            missed = position.offset - last.offset
            if missed <= 0:
                return
        self.position = position
        self._put(Gap(self.channel, None if position is None else str(position), missed))

    def end(self, error: Exception | None = None) -> None:
        """Nothing more comes. What is unread can still be read."""
        if not self.ended:
            self.ended = True
            self.live = False
            self.error = error
            self.on_change(self)

    def _put(self, item: Incoming | Gap) -> None:
        self.items.append(item)
        self.on_change(self)


def _nothing(feed: Feed) -> None:
    pass

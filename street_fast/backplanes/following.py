"""Following: the channels that a node is subscribed to, and how far each has been delivered here.

A bus is a hint: it doubles, it changes the order, it loses. The history of the broker is the truth. What the bus brings
is delivered if it is next; what was delivered already is dropped; and if something between is missing the history is
read from where the channel is. `catch_up(channel, since)` is called for that, at most once until it is answered with
`caught_up` or `could_not_read`. What the bus brings meanwhile is held, within bounds, and joined to what was read.

Everything that is kept is in the history before it is on the bus. So what shows a gap need not be held: the page that
is read now has it.

A channel without history is told of what is missing (`BackplaneSink.lost`), as is one whose history does not have it
any more. Nothing here waits, or knows a clock or a broker.
"""

from __future__ import annotations

import logging
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from street_fast.backplanes import BackplaneSink, History, Page, Position, Publication

__all__ = ["Following"]

logger = logging.getLogger("street_fast")

_MOST_HELD = 1_000  # messages of one channel, while its history is read


class _Followed:
    """A channel. `place` is the position of what was delivered last; None as long as that is not known."""

    __slots__ = ("again", "behind", "cut_off", "held", "history", "place", "reading")

    def __init__(self, history: History | None) -> None:
        self.history = history
        self.place: Position | None = None
        self.reading = False  # `catch_up` was called, and not answered
        self.again = False  # it has to be read once more after that
        self.behind = False  # something is missing, and could not be read yet
        self.cut_off = False  # something may be missing, and was not looked for yet
        self.held: list[Publication] = []


class Following:
    """What one node follows. `sink` gets the deliveries; `catch_up` asks for a read, see above."""

    def __init__(self, sink: BackplaneSink, catch_up: Callable[[str, Position], None]) -> None:
        self._sink = sink
        self._catch_up = catch_up
        self._channels: dict[str, _Followed] = {}
        self._deliveries: deque[tuple[str, _Followed, Publication | None]] = deque()
        self._delivering = False
        self.delivered = 0
        """Messages that the sink got."""
        self.doubles = 0
        """Messages of the bus that were delivered already."""
        self.gaps = 0
        """Times that something was missing on the bus."""
        self.losses = 0
        """Times that the sink was told of a loss."""

    # --- what the node is subscribed to ---

    def __contains__(self, channel: str) -> bool:
        return channel in self._channels

    def __len__(self) -> int:
        return len(self._channels)

    def channels(self) -> list[str]:
        """All of them, as a new list."""
        return [*self._channels]

    def open(self, channel: str, history: History | None) -> None:
        """The node wants the channel. Again: nothing."""
        if channel not in self._channels:
            self._channels[channel] = _Followed(history)

    def close(self, channel: str) -> None:
        """The node does not want it any more: nothing of it is delivered from now on."""
        self._channels.pop(channel, None)

    def history(self, channel: str) -> History | None:
        """What the channel keeps, as `open` said."""
        followed = self._channels.get(channel)
        return None if followed is None else followed.history

    def place(self, channel: str) -> Position | None:
        """The position of what was delivered last; None if that is not known."""
        followed = self._channels.get(channel)
        return None if followed is None else followed.place

    def places(self) -> list[tuple[str, Position]]:
        """The channels with history whose place is known, and that place: what `check` is for."""
        return [
            (channel, followed.place)
            for channel, followed in self._channels.items()
            if followed.place is not None and followed.history is not None
        ]

    @property
    def reading(self) -> bool:
        """Whether the history of a channel is being read, or has to be."""
        return any(followed.reading or followed.behind for followed in self._channels.values())

    # --- what comes ---

    def begun(self, channel: str, top: Position | None) -> None:
        """The bus carries the channel from now on; `top` was its newest position after that (None: not known)."""
        followed = self._channels.get(channel)
        if followed is not None and followed.place is None:
            followed.place = top
            followed.cut_off = False

    def arrive(self, channel: str, publication: Publication) -> None:
        """The bus has brought a message."""
        followed = self._channels.get(channel)
        if followed is None:
            return
        position = publication.position
        if position is None:
            if not followed.cut_off:
                self._deliver(channel, followed, publication)
            return
        if followed.reading:
            self._hold(followed, publication)
            return
        if followed.behind:
            return  # the read that is due has it
        place = followed.place
        if place is None or _is_next(place, position, followed.cut_off):
            followed.place = position
            self._deliver(channel, followed, publication)
        elif position == place or (place.epoch == position.epoch and position.offset < place.offset):
            self.doubles += 1
        else:  # something is missing before it, or the history is another one
            self.gaps += 1
            self._read(channel, followed)

    def acknowledged(self, channel: str, publication: Publication) -> None:
        """A message that this node has published is kept. The bus brings it too; who is first delivers it."""
        followed = self._channels.get(channel)
        if followed is None or followed.reading or followed.behind:
            return
        place, position = followed.place, publication.position
        if place is not None and position is not None and _is_next(place, position, followed.cut_off):
            followed.place = position
            self._deliver(channel, followed, publication)

    def deliver(self, channel: str, publication: Publication) -> None:
        """A message without history that this node has published: it needs no bus."""
        followed = self._channels.get(channel)
        if followed is not None:
            self._deliver(channel, followed, publication)

    def lost(self, channel: str) -> None:
        """Messages of the channel that are not kept have not reached the bus."""
        followed = self._channels.get(channel)
        if followed is not None and followed.history is None:
            self._lose(channel, followed)

    def cut_off(self, channels: Iterable[str]) -> None:
        """The bus does not carry these for now; when it does again, messages may come before `interrupted` does.

        Those that are not kept may have others before them that nobody was told of: they are part of what is lost. When
        that is told, `begun` has them delivered again.
        """
        for channel in channels:
            followed = self._channels.get(channel)
            if followed is not None:
                followed.cut_off = True

    def interrupted(self, channels: Iterable[str] | None = None) -> None:
        """The bus, which carries these channels (None: all) again, may have lost something of them."""
        for channel in [*self._channels] if channels is None else channels:
            followed = self._channels.get(channel)
            if followed is None:
                continue
            if followed.history is None or followed.place is None:
                self._lose(channel, followed)
            else:
                self._read(channel, followed)

    def check(self, channel: str, asked_at: Position, top: Position) -> bool:
        """`top` is the newest position in the history, read when the channel was at `asked_at`; reads what is missing.

        Returns False if the history has less than this node has delivered: it is not the same one any more.
        """
        followed = self._channels.get(channel)
        if followed is None or followed.place is None or top == asked_at:
            return True
        if top.epoch == asked_at.epoch and top.offset <= asked_at.offset:
            self.gaps += 1
            self._read(channel, followed)
            return False
        if top != followed.place and not (top.epoch == followed.place.epoch and top.offset < followed.place.offset):
            self._read(channel, followed)
        return True

    # --- the history ---

    def caught_up(self, channel: str, since: Position, page: Page) -> None:
        """What `catch_up(channel, since)` asked for."""
        followed = self._channels.get(channel)
        if followed is None or not followed.reading or followed.place != since:
            return  # it was closed meanwhile, and perhaps opened again
        followed.cut_off = False
        if page.recovered:
            for publication in page.publications:
                followed.place = publication.position
                self._deliver(channel, followed, publication)
            if self._channels.get(channel) is not followed:
                return
            if page.publications and followed.place != page.top:
                assert followed.place is not None
                self._catch_up(channel, followed.place)
                return
        else:
            followed.place = page.top
            self._lose(channel, followed)
        followed.reading = False
        held, followed.held = followed.held, []
        for publication in held:
            self.arrive(channel, publication)
        if followed.again and self._channels.get(channel) is followed:
            followed.again = False
            self._read(channel, followed)

    def could_not_read(self, channel: str, since: Position) -> None:
        """`catch_up(channel, since)` cannot be answered now; `retry` asks again."""
        followed = self._channels.get(channel)
        if followed is not None and followed.reading and followed.place == since:
            followed.reading = followed.again = False
            followed.behind = True
            followed.held.clear()

    def retry(self) -> None:
        """Ask again for what could not be read."""
        for channel, followed in [*self._channels.items()]:
            if followed.behind and not followed.reading:
                self._read(channel, followed)

    # --- inside ---

    def _hold(self, followed: _Followed, publication: Publication) -> None:
        if len(followed.held) >= _MOST_HELD:
            followed.held.clear()
            followed.again = True
        if not followed.again:  # otherwise the next read has it
            followed.held.append(publication)

    def _read(self, channel: str, followed: _Followed) -> None:
        assert followed.place is not None
        if followed.reading:
            followed.again = True
            return
        followed.reading = True
        followed.behind = False
        self._catch_up(channel, followed.place)

    def _lose(self, channel: str, followed: _Followed) -> None:
        self.losses += 1
        self._deliver(channel, followed, None)

    def _deliver(self, channel: str, followed: _Followed, publication: Publication | None) -> None:
        """None: the sink is told of a loss."""
        self._deliveries.append((channel, followed, publication))
        if self._delivering:
            return  # from within a delivery: it comes after that one
        self._delivering = True
        try:
            while self._deliveries:
                channel, followed, publication = self._deliveries.popleft()
                if self._channels.get(channel) is not followed:
                    continue
                try:
                    if publication is None:
                        self._sink.lost(channel)
                    else:
                        self.delivered += 1
                        self._sink.deliver(channel, publication)
                except Exception:
                    logger.exception("the sink of the backplane failed to deliver, in channel %r", channel)
        finally:
            self._delivering = False


def _is_next(place: Position, position: Position, cut_off: bool) -> bool:
    """Whether nothing is missing between the two.

    Of a channel in which there was nothing yet, the first message begins its epoch, whichever that is by now; unless
    it was `cut_off`, and others may have come and gone.
    """
    if place.epoch == position.epoch:
        return position.offset == place.offset + 1
    return place.offset == 0 and position.offset == 1 and not cut_off

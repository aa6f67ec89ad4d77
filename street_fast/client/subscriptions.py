"""The channels of a client: a wish that is kept on every connection, and the feeds that get what comes.

Any number of feeds may want a channel; on the wire it is subscribed once, and left with its last feed. A subscribe is
always for all feeds of a channel, from the oldest position among them: the server may still be sending what followed
an earlier one, and stops that when it is subscribed again. Each feed knows what it has had. If the oldest position is
too old for the history, it is asked again for the others.

Why a subscription fails decides what becomes of its feeds: a no ends them; "not now" ends one that has never been live,
because somebody waits to hear of it, and is tried again for the others. Where the token of a channel has come to its
end and a function gives another, the channel is subscribed anew with that.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from street_fast.client.feed import position_of
from street_fast.client.messages import PageData, RealtimeError, Refusal
from street_fast.client.requests import NoAnswer
from street_fast.messages import UNSET

if TYPE_CHECKING:
    from collections.abc import Callable

    from street_fast.backplanes import Position
    from street_fast.client.alarms import Alarms
    from street_fast.client.feed import Feed, TokenSource
    from street_fast.client.messages import Incoming
    from street_fast.client.requests import Request, Requests

__all__ = ["Subscriptions"]

_PASSING: Final = frozenset(("unavailable", "unknown", "rate_limited"))
"""Codes of what may go by."""
_AGAIN_S: Final = 1.0
"""Least time until the next try; five times that at most."""
_RENEWED_S: Final = 10.0
"""A token function that gives the same token again must not make a renewal turn in circles."""


class _Channel:
    """A channel that somebody wants."""

    __slots__ = ("asked", "feeds", "name", "renewed", "subscribed")

    def __init__(self, name: str) -> None:
        self.name = name
        self.feeds: list[Feed] = []
        self.asked: dict[Request, list[Feed]] = {}  # subscribes without an answer, and for whom they are
        self.subscribed = False  # or may be, on this connection
        self.renewed = False  # with another token, a moment ago

    @property
    def wanting(self) -> list[Feed]:
        """The feeds that can take something."""
        return [feed for feed in self.feeds if not (feed.overfull and feed.full)]

    @property
    def token(self) -> TokenSource | None:
        """The newest that it was given."""
        return next((feed.token for feed in reversed(self.feeds) if feed.token is not None), None)


class Subscriptions:
    """All of them. `fetch_token(source, then)` gets a token, later; None if it fails."""

    def __init__(
        self,
        requests: Requests,
        connection_alarms: Alarms,
        fetch_token: Callable[[TokenSource, Callable[[str | None], object]], object],
        random: Callable[[], float],
    ) -> None:
        self._requests = requests
        self._connection_alarms = connection_alarms
        self._fetch_token = fetch_token
        self._random = random
        self._channels: dict[str, _Channel] = {}
        self._connection = 0  # counts them
        self._open = False

    # --- feeds ---

    def attach(self, feed: Feed) -> None:
        """Subscribe a feed, now and on every connection to come."""
        channel = self._channels.get(feed.channel)
        if channel is None:
            channel = self._channels[feed.channel] = _Channel(feed.channel)
        channel.feeds.append(feed)
        if not self._open:
            return
        if feed.position is None and feed.token is None:
            live = [other for other in channel.feeds if other.live]
            if live:  # it begins where the foremost of them is
                feed.go_live(max((other.position for other in live if other.position), default=None))
                return
            if channel.asked:
                channel.asked[next(reversed(channel.asked))].append(feed)
                return
        self._subscribe(channel)

    def detach(self, feed: Feed, error: Exception | None = None) -> None:
        """End a feed; the channel is left with its last one."""
        channel = self._channels.get(feed.channel)
        if channel is not None and feed in channel.feeds:
            channel.feeds.remove(feed)
            if not channel.feeds:
                self._leave(channel)
        feed.end(error)

    def catch_up(self, feed: Feed) -> None:
        """A feed that was overfull has been read: it goes on where it stopped."""
        channel = self._channels.get(feed.channel)
        if channel is None or not feed.overfull or not self._open:
            return
        if feed.position is None:
            feed.go_live(None)
        else:
            feed.overfull = False
            self._subscribe(channel)

    def end(self, error: Exception | None) -> None:
        """End them all."""
        channels, self._channels = self._channels, {}
        for channel in channels.values():
            for feed in channel.feeds:
                feed.end(error)

    # --- connections ---

    def opened(self) -> None:
        """The server has let us in: ask for every channel, in the order in which they were wanted."""
        self._open = True
        for channel in list(self._channels.values()):
            self._subscribe(channel)

    def lost(self) -> None:
        """The connection is gone."""
        self._open = False
        self._connection += 1
        for channel in self._channels.values():
            channel.asked.clear()
            channel.subscribed = channel.renewed = False
            for feed in channel.feeds:
                feed.live = False

    # --- what the server says ---

    def message(self, message: Incoming) -> None:
        channel = self._channels.get(message.channel)
        if channel is not None:
            for feed in channel.feeds:
                feed.offer(message)

    def gap(self, channel_name: str, data: msgspec.Raw) -> None:
        channel = self._channels.get(channel_name)
        if channel is not None:
            position = position_of(msgspec.json.decode(data, type=PageData).position)
            for feed in channel.feeds:
                feed.skip_to(position)

    def unsubscribed(self, channel_name: str, refusal: Refusal) -> None:
        channel = self._channels.get(channel_name)
        if channel is None:
            return
        for request in channel.asked:
            self._requests.cancel(request)
        channel.asked.clear()
        channel.subscribed = False
        if refusal.code == "unauthorized" and callable(channel.token):
            for feed in channel.feeds:
                feed.live = False
            self._renew(channel)
            return
        del self._channels[channel_name]
        for feed in channel.feeds:
            feed.end(RealtimeError(refusal.code, refusal.message))

    # --- subscribing ---

    def _subscribe(self, channel: _Channel) -> None:
        source = channel.token
        if source is None or isinstance(source, str):
            self._ask(channel, source)
            return
        connection = self._connection

        def with_token(token: str | None) -> None:
            if connection != self._connection or not self._open:
                return
            if token is None:
                self._subscribe_later(channel)
            else:
                self._ask(channel, token)

        self._fetch_token(source, with_token)

    def _renew(self, channel: _Channel) -> None:
        """With another token than the one that has come to its end."""
        if channel.renewed:
            self._subscribe_later(channel)
            return

        def forget() -> None:
            channel.renewed = False

        channel.renewed = True
        self._connection_alarms.after(_RENEWED_S, forget)
        self._subscribe(channel)

    def _ask(self, channel: _Channel, token: str | None) -> None:
        feeds = channel.wanting
        if not feeds or self._channels.get(channel.name) is not channel:
            return
        positions = [feed.position for feed in feeds if feed.position is not None]
        since = min(positions, key=lambda position: position.offset) if positions else None

        def done(data: msgspec.Raw | None, error: Exception | None) -> None:
            asked = channel.asked.pop(request, [])
            channel.subscribed |= data is not None or isinstance(error, NoAnswer)
            if data is not None:
                self._subscribed(channel, asked, data, since)
            elif isinstance(error, RealtimeError):
                self._not_subscribed(channel, asked, error)

        fields: dict[str, object] = {
            "channel": channel.name,
            "since": UNSET if since is None else str(since),
            "token": UNSET if token is None else token,
        }
        request = self._requests.ask("subscribe", fields, done, lasting=False)
        channel.asked[request] = feeds

    def _subscribed(self, channel: _Channel, feeds: list[Feed], data: msgspec.Raw, since: Position | None) -> None:
        reply = msgspec.json.decode(data, type=PageData)
        begin, end = (since if reply.recovered else None), position_of(reply.position)
        feeds = feeds + [feed for feed in channel.feeds if feed.live and feed not in feeds]
        left_out = [feed for feed in feeds if _is_left_out(feed.position, since, begin, end)]
        for feed in feeds:
            if feed in left_out:
                feed.live = False  # what comes now does not follow what it has
            else:
                feed.go_live(end, begin)
        for message in reply.messages:
            for feed in feeds:
                feed.offer(message)
        if left_out:
            self._subscribe(channel)

    def _not_subscribed(self, channel: _Channel, feeds: list[Feed], error: RealtimeError) -> None:
        if not isinstance(error, NoAnswer):
            for feed in feeds:
                if not feed.begun or error.code not in _PASSING:
                    self.detach(feed, error)
        if any(not feed.ended for feed in feeds):
            self._subscribe_later(channel)

    def _subscribe_later(self, channel: _Channel) -> None:
        delay_s = _AGAIN_S * (1 + 4 * self._random())
        self._connection_alarms.after(delay_s, lambda: self._subscribe(channel))

    def _leave(self, channel: _Channel) -> None:
        del self._channels[channel.name]
        for request in channel.asked:
            if self._requests.cancel(request):  # it was sent
                channel.subscribed = True
        if channel.subscribed:
            self._requests.tell("unsubscribe", {"channel": channel.name})


def _is_left_out(
    position: Position | None, since: Position | None, begin: Position | None, end: Position | None
) -> bool:
    """Whether a feed may get what comes after its `position`, if it is asked for.

    It was asked `since`; what comes begins behind `begin`, or if that is None, the history did not reach back so far,
    at `end`.
    """
    if position is None:
        return False
    if begin is not None:
        return position.epoch == begin.epoch and position.offset < begin.offset
    return position != since and end is not None and position.epoch == end.epoch and position.offset < end.offset

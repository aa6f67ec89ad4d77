"""The connection of a client of Realtime that has an event stream; and where such a client is when it comes back.

**Where a client is.** ``id:`` is what the client comes back with. While the stream has one channel, that is the
position of the message, and the event is the very same bytes for everybody. With several channels it is the position in
each of them, which is different for each client: then the id is a line of its own in front of the bytes that are
shared. An event is dispatched with its id, or not at all, so that a connection that breaks anywhere leaves a state that
is true. The state has at most 4 KiB (it comes back in a header); above it the channels that were quiet longest are left
out, and are not recovered.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from street_fast.backplanes import Position
from street_fast.errors import CloseCode
from street_fast.messages import Message
from street_fast.rates import ABUSIVE_REASON, Rate, Rates, Verdict
from street_fast.sse import SseStream

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from street_fast.limits import Limits
    from street_fast.request import Request
    from street_fast.session import Session

__all__ = ["Opening", "SsePeer", "positions_of"]

_ID_BYTES = 4_096
_UNKNOWN = str(Position.start_of("-"))  # for what is no position: no history has it, so nothing is recovered


class SsePeer(SseStream):
    """The connection of a client that has an event stream.

    The id of the connection begins with the name of its `node`. `positions` are the channels that the client has named
    in its request, and where it is in each. If it is one, its position alone is the id of an event, as long as the
    client has no other.
    """

    heartbeat = b': ping\ndata: {"type":"ping"}\n\n'
    farewell = Message("close", None, {"code": 4008, "reason": "you read more slowly than the messages come"}).event

    __slots__ = ("_ids", "_most_ids", "_rates", "_single", "_time", "inbox", "opening", "rate", "session", "worker")

    session: Session

    def __init__(
        self,
        rates: Rates,
        time: Callable[[], float],
        *,
        node: str,
        positions: dict[str, str | None],
        headers: Iterable[tuple[str, str]],
        limits: Limits,
    ) -> None:
        super().__init__(headers=headers, limits=limits)
        self.id = f"{node}.{self.id}"
        self._rates = rates
        self._time = time
        self._single = next(iter(positions)) if len(positions) == 1 else None
        self._most_ids = max(len(positions), limits.channels_per_connection)
        # What the id says of each channel; that which moved last is last. What the client has come with stands until
        # its channel is subscribed to, or the first event would make it forget that of all others.
        self._ids = {
            channel: _noted(channel, position)
            for channel, position in positions.items()
            if position is not None and position != _UNKNOWN
        }
        self.opening: Opening | None = None
        self.rate = Rate(rates)
        self.inbox: deque[Callable[[], Any]] = deque()
        self.worker: asyncio.Task[None] | None = None

    def deliver(self, message: Message, droppable: bool = False) -> None:
        """Sends a message as one event, with an id if it moves the client on."""
        position, channel = message.position, message.channel
        if self.opening is not None:
            self.opening.note(message)
        if position is None or channel is None:
            self.push(message.event, droppable)
            return
        ids = self._ids
        if ids.pop(channel, None) is None and ids and (len(ids) >= self._most_ids or not (self.inbox or self.worker)):
            ids = self._forget_left()
        ids[channel] = _noted(channel, position)
        if len(ids) == 1 and channel == self._single:
            self.push(message.event, droppable)
        else:
            self.push(_without_id(message), droppable, head=b"id: %b\n" % self._state_of(ids))

    def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
        """Tells the client why, and ends the stream."""
        if not self.closed:
            self._append(Message("close", None, {"code": int(code), "reason": reason}).event)
            self._begin_close(code, reason)

    def next_step(self) -> Callable[[], Any] | None:
        """The next thing to do of what the client has asked for. Nothing more is done once it is closed."""
        if self.closed:
            self.inbox.clear()
            if self.opening is not None:
                self.opening.give_up()
        return self.inbox.popleft() if self.inbox else None

    def note_abuse(self) -> None:
        """A message was refused for the rate of a channel: that counts as one above the client's own."""
        if self.rate.refuse(self._rates, self._time()) is Verdict.ABUSIVE:
            self.close(CloseCode.RATE_LIMITED, ABUSIVE_REASON)

    def _forget_left(self) -> dict[str, bytes]:
        """Drops what was noted of channels that the client has left, before there is one more."""
        here = set(self.session.subscriptions)
        self._ids = {channel: noted for channel, noted in self._ids.items() if channel in here}
        return self._ids

    def _state_of(self, ids: dict[str, bytes]) -> bytes:
        newest: list[bytes] = []
        left = _ID_BYTES + 1
        for noted in reversed(ids.values()):
            left -= len(noted) + 1
            if left < 0:
                break
            newest.append(noted)
        return b";".join(reversed(newest))


def _noted(channel: str, position: str) -> bytes:
    return b"%b=%b" % (_quoted(channel), position.encode())


@functools.lru_cache(maxsize=1_024)
def _quoted(channel: str) -> bytes:
    return quote(channel, safe="").encode()


@functools.lru_cache(maxsize=1)  # of a fan-out, one message for one peer after the other
def _without_id(message: Message) -> bytes:
    """The event of a message, for those who get an id of their own."""
    event = message.event
    return event[event.index(b"data: ") :]


class Opening:
    """The channels of a request while they are subscribed to; `decided` when there is one, or can be none."""

    def __init__(self, channels: int) -> None:
        self.decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.subscribed = False
        self.errors: list[tuple[str, str]] = []
        """Codes and messages, of channels that cannot be had."""
        self._left = channels
        if not channels:
            self._decide()

    def subscribe(self, session: Session, channel: str, since: str | None) -> Any:
        """Does the next one, or returns what is left to await."""
        left = session.subscribe(channel, since=since)
        if left is not None:
            return self._wait(left)
        self._one_done()
        return None

    def note(self, message: Message) -> None:
        """The client is sent this."""
        if message.type == "subscribed":
            self.subscribed = True
            self._decide()
        elif message.type == "error" and isinstance(message.data, dict):
            self.errors.append((message.data["code"], message.data["message"]))

    async def _wait(self, left: Awaitable[object]) -> None:
        try:
            await left
        except BaseException:
            self._decide()  # the peer is gone
            raise
        self._one_done()

    def give_up(self) -> None:
        """No more channels are tried."""
        self._decide()

    def _one_done(self) -> None:
        self._left -= 1
        if not self._left:
            self._decide()

    def _decide(self) -> None:
        if not self.decided.done():
            self.decided.set_result(None)


def positions_of(request: Request, channels: list[str]) -> dict[str, str | None]:
    """Where the client is in each of its channels; None: it does not say.

    ``Last-Event-ID`` goes before ``since``. What cannot be read, and what is not in a Last-Event-ID, is a position that
    no channel has: the client is told that it has missed something.
    """
    found: dict[str, str | None] = dict.fromkeys(channels)
    found.update(_parse_state(";".join(request.query.get_all("since")), channels))
    resumed = request.headers.get("last-event-id", "")
    if resumed:
        known = _parse_state(resumed, channels)
        found = {channel: known.get(channel) or found[channel] or _UNKNOWN for channel in channels}
    return found


def _parse_state(text: str, channels: list[str]) -> dict[str, str]:
    """A position for the only channel, or ``channel=position;...``."""
    if not text:
        return {}
    if "=" not in text:
        position = _position(text) if len(channels) == 1 else _UNKNOWN
        return dict.fromkeys(channels, position)
    found = {}
    for part in text.split(";"):
        name, _, position = part.partition("=")
        found[unquote(name)] = _position(position)
    return {channel: found[channel] for channel in channels if channel in found}


def _position(text: str) -> str:
    try:
        return str(Position.parse(text))
    except ValueError:
        return _UNKNOWN

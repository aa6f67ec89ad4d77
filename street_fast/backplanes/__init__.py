"""What a Realtime asks of whatever carries messages between nodes and keeps the history of channels.

A `Backplane` carries opaque bytes. It knows channels by name and calls a `BackplaneSink`; of hubs, sockets and JSON it
knows nothing. ``backplanes.memory`` is the one for a single process. Whoever writes another one runs the suite in
``tests/contract`` over it: what is promised here is tested there.

**Order.** What one node publishes to one channel is stored and delivered in the order of the calls, awaited or not.
With history all nodes see the same order, that of the offsets.

**Positions.** A channel with history numbers its messages: offset 1, 2, 3, ... within an epoch, without holes. The
offset 0 of an epoch is the position before its first message. A random tag for each message tells two histories with
the same epoch and offset apart: the one that a client saw, and the one that a broker with older data wrote after it.

**Exactly once.** Of two publications of one channel that follow each other in `deliver`, the second is one offset above
the first, or it is the first of a new epoch and nothing is missing between them. Where an implementation cannot keep
that (its bus lost something and its history does not have it any more), it calls `lost` in between. Doubles and
disorder of its bus are its own business.

**Joining history and live.** Subscribe, and when that is done read: what is published meanwhile is in the page, or is
delivered, or both; never neither. Merge by offset.

**At once or later.** What returns an awaitable has begun by then; it goes on if nobody awaits it, or if the one who
does is cancelled. An implementation that need not wait returns the result itself. One event loop, that of `start`.
"""

from __future__ import annotations

import dataclasses
import re
from typing import TYPE_CHECKING, NamedTuple, Protocol

from street_fast.errors import ConfigurationError, StreetError
from street_fast.limits import MOST_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable

__all__ = [
    "NOT_KEPT",
    "Backplane",
    "BackplaneSink",
    "Health",
    "History",
    "OutcomeUnknown",
    "Page",
    "Position",
    "Publication",
    "Published",
    "Unavailable",
]

_MOST_MESSAGES = 1_000_000


class Unavailable(StreetError):
    """Nothing was done, because the backplane is not started, is closed, or does not reach its broker. Try later."""

    code = "unavailable"


class OutcomeUnknown(StreetError):
    """It may have been published or not: the answer did not come. To retry without doubling it, use the same key."""

    code = "unknown"


class Position(NamedTuple):
    """A place in the history of a channel: right behind the message with this offset and tag.

    As text ``epoch:offset:tag``, at most 64 characters of ``A-Z a-z 0-9 _ - :``. The offset fits into a JavaScript
    number. At offset 0, before the first message of the epoch, the tag is ``0``.
    """

    epoch: str
    offset: int
    tag: str

    def __str__(self) -> str:
        return f"{self.epoch}:{self.offset}:{self.tag}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """The position that `text` writes, in its only spelling. Raises ValueError for anything else.

        The text comes from a client: that it can be read does not mean that there is, or was, such a message.
        """
        match = _POSITION.fullmatch(text) if isinstance(text, str) else None
        if match is None:
            shown = repr(text)
            shown = shown if len(shown) <= 80 else f"{shown[:60]}... ({len(shown)} characters)"
            raise ValueError(f"position {shown}: must be epoch:offset:tag, as it came with a message")
        epoch, offset, tag = match.groups()
        return cls(epoch, int(offset), tag)

    @classmethod
    def start_of(cls, epoch: str) -> Position:
        """The position before the first message of an epoch."""
        return cls(epoch, 0, "0")


_POSITION = re.compile(r"([0-9A-Za-z_-]{1,24}):(0(?=:0\Z)|[1-9][0-9]{0,14}):([0-9A-Za-z_-]{1,16})")


@dataclasses.dataclass(frozen=True)
class History:
    """How much of a channel is kept: the newest `size` messages, each for `ttl_s` seconds.

    ``Limits.history_bytes`` and its neighbours may end it sooner. Raises ConfigurationError for a value that makes no
    sense.
    """

    size: int = 100
    ttl_s: float = 300.0

    def __post_init__(self) -> None:
        if isinstance(self.size, bool) or not isinstance(self.size, int) or not 1 <= self.size <= _MOST_MESSAGES:
            raise ConfigurationError(
                f"History.size={self.size!r}: must be a whole number of messages from 1 to {_MOST_MESSAGES}; "
                f"for none leave the channel out of history"
            )
        if (
            isinstance(self.ttl_s, bool)
            or not isinstance(self.ttl_s, int | float)
            or not 0 < self.ttl_s <= MOST_SECONDS
        ):
            raise ConfigurationError(
                f"History.ttl_s={self.ttl_s!r}: must be a number of seconds above 0 and at most {MOST_SECONDS}"
            )


class Publication(NamedTuple):
    """One message of a channel."""

    payload: bytes
    """Opaque. Nobody changes it."""
    position: Position | None = None
    """Where it is kept; None in a channel without history."""
    skip: str | None = None
    """The id of the connection that does not get it. Kept with the message, for those who get it late."""


class Published(NamedTuple):
    """What became of a publish."""

    position: Position | None
    """Where it is kept; None without history."""
    duplicate: bool = False
    """Its key was known: this is the answer that the first publish with that key got, and nothing was published."""


NOT_KEPT = Published(None)
"""What became of a publish without history: always this object, so that who has nothing to tell sees it at once."""


class Page(NamedTuple):
    """A piece of the history of a channel, as it was at one moment."""

    publications: list[Publication]
    """Oldest first, with consecutive offsets. The list is the caller's."""
    top: Position
    """The position of the newest message of the channel, kept or not: what comes next is one offset above it."""
    recovered: bool
    """Whether everything after `since` is still there; False without `since`."""


class Health(NamedTuple):
    """Whether messages go through; `detail` is a sentence for people."""

    ok: bool
    detail: str


class BackplaneSink(Protocol):
    """Who receives: one for each node. It is called in the event loop, does not block and does not raise.

    If it raises all the same, that is logged, and neither the publish nor a later delivery is the worse for it.
    """

    def deliver(self, channel: str, publication: Publication) -> None:
        """A message of a channel that this node has subscribed to, also if this node published it.

        In order, and exactly once, as the head of this module says. A publish from within it is delivered when it has
        returned.
        """

    def lost(self, channel: str | None) -> None:
        """Messages of `channel` (None: of every channel subscribed here) may be missing from here on, for good.

        What is delivered next may be of any offset and epoch. The clients have to be told.
        """

    def signalled(self, channel: str, payload: bytes) -> None:
        """Another node has sent a `signal` to a channel that this node has subscribed to."""

    def members_changed(self, channel: str, joined: list[tuple[str, bytes | None]], left: list[str]) -> None:
        """Members of a subscribed channel that came to be, or ceased to be, on any node but this one.

        `joined` are (member id, info) of those that no other node had before, or whose info changed; `left` the ids of
        those that no other node has any more, crashed nodes included. Nobody is in both. After `subscribe` everybody on
        the other nodes joins; after `unsubscribe` nothing is told, and what was told before is void.
        """


class Backplane(Protocol):
    """Carries messages between nodes, keeps the history of channels, and knows who is on the other nodes.

    Names of channels, ids, keys and infos come checked against `Limits`. Before `start` and after `close`, `publish`,
    `subscribe`, `read` and `members` raise Unavailable, at the call or when awaited; all else does nothing.
    """

    async def start(self, sink: BackplaneSink) -> None:
        """Begin. Returns also if the broker is not there yet: then `health` says so, and it is tried again for ever.

        Raises RuntimeError if it is started already. After `close` it may be started again, as if it were new.
        """

    async def close(self, *, linger: bool = False) -> None:
        """End: afterwards the sink is not called any more, and nothing is left running. Any number of times.

        The members of this node leave. With `linger` the others keep them for as long as if the node had crashed: who
        comes back on another node meanwhile has never been away.
        """

    def publish(
        self,
        channel: str,
        payload: bytes,
        *,
        history: History | None = None,
        key: str | None = None,
        skip: str | None = None,
    ) -> Published | Awaitable[Published]:
        """Deliver `payload` to the sinks of all nodes that have subscribed to `channel`, and keep it if `history`.

        A channel always comes with the same `history`, here, in `subscribe` and in `read`. When this is done the
        message is kept: a `read` that begins after it knows it. Delivery may be earlier or later; within this node it
        does not need the broker, unless there is a history or a key.

        `key` makes it idempotent: of all publishes to `channel` with this key within ``Limits.publish_key_ttl_s`` of
        the first one, at once or one after the other, from any node, only the first does anything; the others get its
        answer with `duplicate`. The oldest keys are forgotten above ``Limits.publish_keys``.

        Raises:
            Unavailable: it was not published, and will not be.
            OutcomeUnknown: perhaps it was; only with `history` or `key`.
        """

    def signal(self, channel: str, payload: bytes) -> None:
        """Tell the other nodes that have subscribed to `channel` something that may as well be missed.

        It is not kept, not delivered here, and dropped without a word if it cannot be sent now. Behind what this node
        has published to the channel before, as far as that is not kept.
        """

    def subscribe(self, channel: str, history: History | None = None) -> Awaitable[None] | None:
        """Deliver what is published to `channel`: when this is done, everything from then on. Twice is once.

        The interest stands from the call until `unsubscribe`, whatever becomes of the awaitable. With the `history` of
        the channel, what the bus has lost is read there; without, `lost` is called for it.

        Raises:
            Unavailable: other nodes are not heard yet. What this node publishes is delivered; the others follow when
                the broker is back, after `lost`.
        """

    def unsubscribe(self, channel: str) -> None:
        """Deliver nothing more of `channel`, from now on. What was not subscribed is ignored."""

    def read(self, channel: str, history: History, *, since: Position | None, limit: int) -> Page | Awaitable[Page]:
        """Up to `limit` messages that are kept: the oldest ones after `since`, or the newest if `since` is None.

        The page is recovered if `since` is a message that is kept, or the newest one, or the start of an epoch from
        which nothing has gone; so if `publications` ends before `top`, the caller goes on from its last position. It
        may be recovered too if `since` is the newest of those that have gone. Otherwise something after `since` is
        gone, or `since` was never here: not recovered, and no publications, rather than some. A `limit` of 0 asks for
        `top` and `recovered` alone.

        A channel without messages has a top too, at offset 0, and asking for it costs no memory: the first message
        comes in its epoch, if nothing has been dropped meanwhile.

        Raises:
            Unavailable: the history cannot be read now.
            ValueError: a negative `limit`.
        """

    def join(self, channel: str, member_id: str, info: bytes | None) -> None:
        """A member has come to be on this node. Again: its info has changed. Others learn of it, soon."""

    def leave(self, channel: str, member_id: str) -> None:
        """A member is not on this node any more. What never joined is ignored."""

    def members(self, channel: str) -> dict[str, bytes | None] | Awaitable[dict[str, bytes | None]]:
        """Who is in `channel` on the other nodes: {member id: info}, whether or not this node has subscribed to it.

        All of those who had come when it was called, as far as others have learned of them; none of a node that is
        known to be dead. The dict is the caller's.

        Raises:
            Unavailable: that cannot be known now. Rather that than some of them.
        """

    def health(self) -> Health:
        """Whether messages go through now, as far as is known; costs nothing."""

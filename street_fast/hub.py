"""ChannelHub: channels with presence and typing, over peers of any kind.

A peer is a connection: a StreetSocket, an SSE stream, a test double. A channel exists while it has members, and each
member while it has connections. Every operation costs the same however many channels and members there are that it
does not touch; a fan-out costs what its recipients cost.

Fan-out: a message is written and framed once. The WebSockets among the recipients are served in one C loop; all others
are asked to `deliver` it, one after the other. What a peer does there harms nobody else: if it raises, that is logged;
whatever it joins, leaves or closes counts from the next message on; and if it publishes, that message waits for its
turn, so that all get both, in the same order.

Presence and typing events go to peers that are not slow: they are droppable. Typing ends by itself after
``typing_ttl_ms`` without a refresh. A hub belongs to one event loop; from another thread, `loop.call_soon_threadsafe`.

Presence comes as ``presence:join`` and ``presence:leave`` at once; or, with ``presence_interval_s``, as ``presence``
events with the differences of that time, so that ten thousand joins are not ten thousand events to ten thousand peers.
Such a difference is not netted: whoever came or went is in it, as joined or left by how it ended. So it may follow a
list of members that was taken meanwhile, and the list is right afterwards.
"""

from __future__ import annotations

import itertools
import logging
import re
from collections import deque
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from street_fast._core import LoopContext, fan_out, unix_time_ms
from street_fast.errors import ConfigurationError, LimitExceeded
from street_fast.limits import Limits, checked_limits
from street_fast.messages import UNSET, Message, decode_data, encode
from street_fast.missed import Missed
from street_fast.presence import Difference, Presence, describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from street_fast._core import Timer, TimerWheel

__all__ = ["ChannelHub", "ChannelWatcher", "Peer"]

logger = logging.getLogger("street_fast")


class Peer(Protocol):
    """What a hub needs of a connection."""

    @property
    def id(self) -> str:
        """Unlike that of any other peer of the hub."""

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""

    @property
    def sink(self) -> object:
        """The WebSocket to write to; or else the peer itself, whose `deliver` is called."""

    def deliver(self, message: Message, droppable: bool = False) -> None:
        """Send or queue it, at once. Drop it if the peer is closed, or if it is droppable and too much is queued."""

    def add_close_callback(self, callback: Callable[[Any], object]) -> None:
        """Call `callback(self)` once, when the connection has ended; now, if it has."""


class ChannelWatcher(Protocol):
    """Who carries the channels of a hub beyond it; see `ChannelHub.watcher`."""

    def channel_opened(self, channel: str) -> None:
        """The first connection joins `channel`."""

    def channel_closed(self, channel: str) -> None:
        """The last connection has left `channel`."""

    def member_joined(self, channel: str, member_id: str, info: bytes | None) -> None:
        """The member has its first connection in `channel`; `info` is JSON."""

    def member_left(self, channel: str, member_id: str) -> None:
        """The last connection of the member has left `channel`."""

    def typing_set(self, channel: str, member_id: str, typing: bool) -> None:
        """`set_typing` was called for a member that is present, also if that is no news."""


class _Subscriber:
    """One connection that is bound to the hub."""

    __slots__ = ("channels", "memberships", "peer", "sink")

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.sink = peer.sink
        self.channels: dict[str, None] = {}
        self.memberships = 0


# The recipients of a channel, and as which members each is there: nearly always one.
_Sinks: TypeAlias = "dict[object, tuple[str, ...]]"


class ChannelHub:
    """Channels, their members and who is typing.

    Names of channels and ids of members are strings of 1 to ``limits.channel_name_bytes`` bytes of UTF-8 without
    control characters. What the hub refuses raises ValueError, or its subclass LimitExceeded, and changes nothing.

    `presence_interval_s` is None, or the least time between two ``presence`` events of a channel: ``{"joined", "left",
    "memberCount"}``, the latter alone while there are more than ``limits.presence_members``.

    `wheel` keeps the time of typing (default: the one of the running loop); `clock_ms` stamps messages (default: the
    time of day in milliseconds).
    """

    watcher: ChannelWatcher | None = None
    """Who is told which channels and members there are here. For libraries."""

    def __init__(
        self,
        *,
        typing_ttl_ms: float = 5_000,
        presence_interval_s: float | None = None,
        limits: Limits | None = None,
        wheel: TimerWheel | None = None,
        clock_ms: Callable[[], int] | None = None,
    ) -> None:
        if isinstance(typing_ttl_ms, bool) or not isinstance(typing_ttl_ms, int | float) or not 0 < typing_ttl_ms < 1e9:
            raise ConfigurationError(
                f"typing_ttl_ms={typing_ttl_ms!r}: must be a number of milliseconds above 0 and below 1e9; without an "
                f"end, whoever closes the laptop while typing types for ever"
            )
        self._typing_ttl_s = typing_ttl_ms / 1_000
        self.limits = checked_limits(limits)
        self._wheel = wheel
        self.clock_ms = clock_ms if clock_ms is not None else unix_time_ms
        self._presence = Presence()
        self._presence_interval_s: float | None = None
        self._changed: dict[str, dict[str, None]] = {}  # who came or went since the last event, by channel
        self._presence_timer: Timer | None = None
        self._unaware: dict[str, set[object]] = {}  # sinks that are not told who is there, by channel
        self._missed = Missed(self.limits)
        self._channels: dict[str, _Sinks] = {}
        self.has_channel: Callable[[str], bool] = self._channels.__contains__
        """Whether the channel has a connection. Asked for each publish: so no function stands before the dict."""
        self._subscribers: dict[str, _Subscriber] = {}  # by connection id, until it closes
        self._typing_timers: dict[tuple[str, str], Timer] = {}
        self._deliveries: deque[tuple[list[Any], Message, bool]] = deque()
        self._delivering = False
        # One bound method for all connections and timers, instead of one for each.
        self._on_closed: Callable[[Peer], None] = self._closed
        self._on_typing_expired: Callable[[tuple[str, str]], None] = self._typing_expired
        if presence_interval_s is not None:
            self.batch_presence(presence_interval_s)

    # --- members ---

    def join(self, channel: str, member_id: str, conn: Peer, info: Any = None, *, presence: bool = True) -> bool:
        """Subscribe `conn` to `channel` as `member_id`; True if the member was not present before.

        Then the other connections get ``presence:join`` with ``{"memberId", "info"?}``. `info` is any JSON up to
        ``limits.presence_info_bytes``; the one given when a member becomes present stands until it is absent again.
        A connection may join as several members. It leaves everything when it closes, as with `bind`. Joining again
        changes nothing, and neither does a closed connection; except that `presence`, whether the connection is told
        who comes, goes and types in the channel, is as the last join said.

        Raises:
            ValueError: a bad channel name, member id or info.
            LimitExceeded: the connection has ``limits.channels_per_connection`` memberships already.
        """
        self.check_name("channel name", channel)
        self.check_name("member id", member_id)
        written = self._write_info(member_id, info)
        if conn.closed:
            return False
        subscriber = self._subscriber(conn)
        sinks = self._channels.get(channel)
        members = () if sinks is None else sinks.get(subscriber.sink, ())
        if member_id in members:
            self._set_aware(channel, subscriber.sink, presence)
            return False
        if subscriber.memberships >= self.limits.channels_per_connection:
            raise LimitExceeded(
                f"connection {conn.id} cannot join channel {channel!r}: it is in {subscriber.memberships} already, and "
                f"Limits.channels_per_connection allows no more"
            )
        watcher = self.watcher
        if sinks is None:
            sinks = self._channels[channel] = {}
            if watcher is not None:
                watcher.channel_opened(channel)
        sinks[subscriber.sink] = (*members, member_id)
        subscriber.channels[channel] = None
        subscriber.memberships += 1
        self._set_aware(channel, subscriber.sink, presence)
        joined = self._presence.join(channel, member_id, written)
        if watcher is not None and self._presence.connections(channel, member_id) == 1:
            told = self._presence.info(channel, member_id)
            watcher.member_joined(channel, member_id, None if told is None else bytes(told))
        if joined is None:
            return False
        self._announce(channel, joined, skip=subscriber.sink)
        return True

    def leave(self, channel: str, member_id: str, conn: Peer) -> bool:
        """Take back `join`; True if the member is not present any more.

        Then the others get ``typing`` with false if it was typing, and ``presence:leave`` with what the join said. What
        was never joined is left without a complaint.
        """
        subscriber = self._known(conn)
        return subscriber is not None and self._leave(subscriber, channel, member_id)

    def disconnect(self, conn: Peer) -> None:
        """Leave every channel of the connection, as all its members."""
        subscriber = self._known(conn)
        if subscriber is None:
            return
        for channel in list(subscriber.channels):
            for member_id in self._channels.get(channel, {}).get(subscriber.sink, ()):
                self._leave(subscriber, channel, member_id)

    def bind(self, conn: Peer) -> None:
        """See to it that the connection leaves every channel when it closes. `join` does it too; twice is once."""
        if not conn.closed:
            self._subscriber(conn)

    def members_changed(self, channel: str, joined: list[tuple[str, bytes | None]], left: list[str]) -> None:
        """Members, with their info as JSON, that came to be or ceased to be present somewhere beyond this hub.

        For whoever watches the hub. Nobody beyond is present in a channel that has no connection here.
        """
        if channel not in self._channels:
            return
        for member_id, info in joined:
            appeared = self._presence.appear(channel, member_id, None if info is None else msgspec.Raw(info))
            if appeared is not None:
                self._announce(channel, appeared)
        for member_id in left:
            for change in self._presence.disappear(channel, member_id):
                self._announce(channel, change)

    def batch_presence(self, interval_s: float) -> None:
        """From now on, presence comes in differences, at most every `interval_s`. Raises ConfigurationError."""
        if isinstance(interval_s, bool) or not isinstance(interval_s, int | float) or not 0 < interval_s <= 3_600:
            raise ConfigurationError(
                f"presence_interval_s={interval_s!r}: must be a number of seconds above 0 and at most 3600, or None"
            )
        self._presence_interval_s = interval_s

    # --- messages ---

    def deliver(self, channel: str, message: Message, skip: object = None) -> None:
        """Send a message that was built elsewhere to the connections of `channel`; `skip`: a sink, or a set of them."""
        sinks = self._channels.get(channel)
        if sinks is not None:
            self._send(sinks, message, skip)

    def publish(
        self,
        channel: str,
        type: str,  # noqa: A002
        data: object = UNSET,
        *,
        except_conn_id: str | None = None,
        except_member_id: str | None = None,
    ) -> int:
        """Send ``{"type", "channel", "data"?, "ts"}`` to the connections of `channel`; returns to how many.

        Leaves out the connection with the id `except_conn_id`, and all connections that are there as
        `except_member_id`. Never blocks; peers that do not read are the business of their connections. Raises
        ValueError for a bad channel name, and TypeError for data that JSON cannot hold.
        """
        sinks = self._channels.get(channel)
        if sinks is None:
            self.check_name("channel name", channel)
            return 0
        skip: set[object] = set()
        if except_conn_id is not None:
            sink = self.sink_of(except_conn_id)
            if sink in sinks:
                skip.add(sink)
        if except_member_id is not None and self._presence.is_present(channel, except_member_id):
            skip.update(sink for sink, members in sinks.items() if except_member_id in members)
        recipients = len(sinks) - len(skip)
        if recipients:
            self._send(sinks, Message(type, channel, data, self.clock_ms()), skip or None)
        return recipients

    def set_typing(self, channel: str, member_id: str, typing: bool, conn: Peer | None = None) -> bool:
        """Note that a member types, or has stopped; True if that is news.

        Then every connection of the channel but `conn` gets ``typing`` with ``{"memberId", "typing"}``. It ends by
        itself `typing_ttl_ms` after the last call with true; such a refresh is no news. A member that is not present
        cannot type: that is ignored, because a last keystroke may well arrive behind the leave.

        Raises RuntimeError outside of an event loop, unless the hub was given a `wheel`.
        """
        presence = self._presence
        if (
            self.watcher is not None
            and presence.connections(channel, member_id)
            and (typing or presence.is_typing(channel, member_id))
        ):
            self.watcher.typing_set(channel, member_id, bool(typing))
        return self._set_typing(channel, member_id, typing, None if conn is None else conn.sink)

    def set_typing_elsewhere(self, channel: str, member_id: str, typing: bool) -> None:
        """`set_typing`, for a member that is present somewhere beyond this hub. For whoever watches it."""
        if channel in self._channels:
            self._set_typing(channel, member_id, typing, None)

    def _set_typing(self, channel: str, member_id: str, typing: bool, skip: object) -> bool:
        key = (channel, member_id)
        timer = self._typing_timers.get(key)
        if typing and timer is not None:
            timer.reschedule(self._typing_ttl_s)
            return False
        if typing and self._presence.is_present(channel, member_id):
            self._typing_timers[key] = self.timers().schedule(self._typing_ttl_s, self._on_typing_expired, key)
        elif timer is not None:
            del self._typing_timers[key]
            timer.cancel()
        change = self._presence.set_typing(channel, member_id, bool(typing))
        if change is None:
            return False
        self._announce(channel, change, skip=skip)
        return True

    # --- questions ---

    @property
    def sinks(self) -> dict[str, _Sinks]:
        """What a fan-out goes to, by channel: always the same dict, and not for others to change."""
        return self._channels

    def presence(self, channel: str) -> list[str]:
        """The ids of the members that are present, in the order in which they came."""
        return self._presence.ids(channel)

    def members(self, channel: str) -> list[dict[str, Any]]:
        """The same as ``{"memberId", "info"?}``, as ``presence:join`` told it."""
        return [
            {**member, "info": decode_data(member["info"])} if "info" in member else member
            for member in self._presence.describe(channel)
        ]

    def roll(self, channel: str, others: Mapping[str, bytes | None] | None = None) -> dict[str, Any]:
        """Who is present, for a client: ``{"members"}`` as in `members`, or ``{"memberCount"}`` if they are many.

        Many is above ``limits.presence_members``, or so much JSON that a slow client would be evicted for it. `others`
        are members, with their info as JSON, who are known to be beyond this hub.
        """
        presence = self._presence
        absent = {} if others is None else {id_: others[id_] for id_ in others if not presence.is_present(channel, id_)}
        count = presence.count(channel) + len(absent)
        if count <= self.limits.presence_members:
            found = presence.describe(channel)
            found += [describe(id_, None if info is None else msgspec.Raw(info)) for id_, info in absent.items()]
            written = encode(found)
            if len(written) <= self.limits.write_hard_bytes // 4:
                return {"members": msgspec.Raw(written)}
        return {"memberCount": count}

    def is_present(self, channel: str, member_id: str) -> bool:
        """Whether the member has a connection in the channel."""
        return self._presence.is_present(channel, member_id)

    def is_joined(self, channel: str, member_id: str, conn: Peer) -> bool:
        """Whether this connection is in the channel as that member."""
        return member_id in self._channels.get(channel, _NO_SINKS).get(conn.sink, ())

    def sink_of(self, conn_id: str) -> object:
        """The sink of the connection with this id; None if it is not bound to the hub."""
        subscriber = self._subscribers.get(conn_id)
        return None if subscriber is None else subscriber.sink

    def channels_of(self, conn: Peer) -> list[str]:
        """The names of the channels that the connection is in."""
        subscriber = self._known(conn)
        return [] if subscriber is None else list(subscriber.channels)

    def member_count(self, channel: str) -> int:
        """How many members are present."""
        return self._presence.count(channel)

    def connection_count(self, channel: str) -> int:
        """How many connections a message to the channel goes to."""
        return len(self._channels.get(channel, ()))

    def is_typing(self, channel: str, member_id: str) -> bool:
        """Whether the member is typing."""
        return self._presence.is_typing(channel, member_id)

    def typing_members(self, channel: str) -> list[str]:
        """The ids of the members that are typing, in the order in which they began."""
        return self._presence.typing_ids(channel)

    def channel_names(self) -> list[str]:
        """The names of all channels with members."""
        return list(self._channels)

    def check_name(self, what: str, name: str) -> None:
        """Raises ValueError for what is no name of a channel and no id of a member; `what` says which is meant."""
        limit = self.limits.channel_name_bytes
        if (
            not isinstance(name, str)
            or not 0 < len(name) <= limit
            or _FORBIDDEN.search(name)
            or len(name.encode()) > limit
        ):
            raise ValueError(
                f"{what} {_shortened(name)}: must be a str of 1 to {limit} bytes in UTF-8 without control characters"
            )

    def check_member(self, member_id: str, info: Any = None) -> None:
        """Raises ValueError, as `join` would, for an id or an info that cannot be those of a member."""
        self.check_name("member id", member_id)
        self._write_info(member_id, info)

    def timers(self) -> TimerWheel:
        """What keeps the time for the hub. Raises RuntimeError outside of an event loop if it was given none."""
        if self._wheel is not None:
            return self._wheel
        try:
            return LoopContext.of().wheel
        except RuntimeError:
            raise RuntimeError(
                "set_typing(), and presence in differences, need a running event loop to keep the time; elsewhere use "
                "ChannelHub(wheel=...)"
            ) from None

    # --- inside ---

    def _write_info(self, member_id: str, info: Any) -> msgspec.Raw | None:
        """`info` as JSON, so that nobody can change it any more."""
        if info is None:
            return None
        try:
            json = encode(info)
        except (TypeError, ValueError) as error:
            raise ValueError(f"info of member {member_id!r} cannot be written as JSON: {error}") from error
        if len(json) > self.limits.presence_info_bytes:
            raise LimitExceeded(
                f"info of member {member_id!r} has {len(json)} bytes, and Limits.presence_info_bytes allows "
                f"{self.limits.presence_info_bytes}"
            )
        return msgspec.Raw(json)

    def _known(self, conn: Peer) -> _Subscriber | None:
        subscriber = self._subscribers.get(conn.id)
        return subscriber if subscriber is not None and subscriber.peer is conn else None

    def _subscriber(self, conn: Peer) -> _Subscriber:
        subscriber = self._subscribers.get(conn.id)
        if subscriber is None:
            subscriber = self._subscribers[conn.id] = _Subscriber(conn)
            conn.add_close_callback(self._on_closed)
        elif subscriber.peer is not conn:
            raise ValueError(f"two connections have the id {conn.id!r}; the hub cannot tell them apart")
        return subscriber

    def _closed(self, conn: Peer) -> None:
        self.disconnect(conn)
        if self._known(conn) is not None:
            del self._subscribers[conn.id]

    def _leave(self, subscriber: _Subscriber, channel: str, member_id: str) -> bool:
        sinks = self._channels.get(channel)
        members = () if sinks is None else sinks.get(subscriber.sink, ())
        if sinks is None or member_id not in members:
            return False
        subscriber.memberships -= 1
        if len(members) > 1:
            sinks[subscriber.sink] = tuple(other for other in members if other != member_id)
        else:
            del sinks[subscriber.sink]
            del subscriber.channels[channel]
            self._missed.forget(channel, subscriber.sink)
            self._set_aware(channel, subscriber.sink, True)
        changes = self._presence.leave(channel, member_id)
        if self.watcher is not None and not self._presence.connections(channel, member_id):
            self.watcher.member_left(channel, member_id)
        if not sinks:
            del self._channels[channel]
            self._presence.disappear_all(channel)
            self._changed.pop(channel, None)
            if self.watcher is not None:
                self.watcher.channel_closed(channel)
        if not changes:
            return False
        timer = self._typing_timers.pop((channel, member_id), None)
        if timer is not None:
            timer.cancel()
        for change in changes:
            self._announce(channel, change, skip=subscriber.sink)
        return True

    def _typing_expired(self, key: tuple[str, str]) -> None:
        del self._typing_timers[key]
        channel, member_id = key
        change = self._presence.set_typing(channel, member_id, False)
        if change is not None:
            self._announce(channel, change)

    def _set_aware(self, channel: str, sink: object, aware: bool) -> None:
        """Note whether a sink is told who is there."""
        if not aware:
            self._unaware.setdefault(channel, set()).add(sink)
            self._missed.forget(channel, sink)
        elif self._unaware and channel in self._unaware:
            unaware = self._unaware[channel]
            unaware.discard(sink)
            if not unaware:
                del self._unaware[channel]

    def _announce(self, channel: str, change: Difference, skip: object = None) -> None:
        sinks = self._channels.get(channel)
        if sinks is None:
            return
        if self._presence_interval_s is not None and change.type != "typing":
            self._changed.setdefault(channel, {})[change.data["memberId"]] = None
            self._tell_presence_soon()
        elif len(sinks) > 1 or skip not in sinks:
            unaware = self._unaware.get(channel)
            skipped = skip if unaware is None else {*unaware, skip}
            self._send(sinks, Message(change.type, channel, change.data, self.clock_ms()), skipped, droppable=True)
            if self._presence_interval_s is not None:
                self._missed.note(channel, sinks, skipped, typists=(change.data["memberId"],))
                if self._missed:
                    self._tell_presence_soon()

    def _tell_presence_soon(self) -> None:
        if self._presence_timer is None:
            assert self._presence_interval_s is not None
            self._presence_timer = self.timers().schedule(self._presence_interval_s, self._tell_presence)

    def _tell_presence(self, _: object) -> None:
        """Send the differences of the channels that have some; of many channels, some now and the rest in a moment."""
        self._presence_timer = None
        for channel, sink, untold in self._missed.take():
            for member_id in untold.typists:
                typing = self._presence.is_typing(channel, member_id)
                message = Message("typing", channel, {"memberId": member_id, "typing": typing}, self.clock_ms())
                self._send((sink,), message, None, droppable=True)
            if untold.members != {}:
                self._send((sink,), self._difference(channel, untold.members), None, droppable=True)
        for channel in list(itertools.islice(self._changed, _CHANNELS_AT_ONCE)):
            changed = self._changed.pop(channel)
            sinks = self._channels[channel]
            if len(sinks) == 1 and changed.keys() <= set(*sinks.values()):
                continue  # it is alone with itself
            unaware = self._unaware.get(channel)
            self._send(sinks, self._difference(channel, changed), unaware, droppable=True)
            self._missed.note(channel, sinks, unaware, members=changed)
        if self._changed:
            self._presence_timer = self.timers().schedule(0, self._tell_presence)
        elif self._missed:
            self._tell_presence_soon()

    def _difference(self, channel: str, changed: Iterable[str] | None) -> Message:
        """The ``presence`` event about those who came or went; None: they are too many."""
        presence = self._presence
        count: dict[str, Any] = {"memberCount": presence.count(channel)}
        if changed is not None and presence.count(channel) <= self.limits.presence_members:
            here = [member_id for member_id in changed if presence.is_present(channel, member_id)]
            joined = [describe(member_id, presence.info(channel, member_id)) for member_id in here]
            left = [{"memberId": member_id} for member_id in changed if not presence.is_present(channel, member_id)]
            message = Message("presence", channel, {"joined": joined, "left": left, **count})
            if len(message.json) <= self.limits.write_hard_bytes // 4:
                return message
        return Message("presence", channel, count)

    def _send(self, sinks: Iterable[object], message: Message, skip: object, droppable: bool = False) -> None:
        others = fan_out(sinks, message.frame, skip, droppable)
        if others:
            self.deliver_to(others, message, droppable)

    def deliver_to(self, others: list[Any], message: Message, droppable: bool = False) -> None:
        """The rest of a fan-out, for who has done the first half: the peers that are no WebSocket."""
        self._deliveries.append((others, message, droppable))
        if self._delivering:
            return  # called from inside deliver(): everybody gets the message before this one first
        self._delivering = True
        try:
            while self._deliveries:
                self._deliver(*self._deliveries.popleft())
        finally:
            self._delivering = False

    def _deliver(self, peers: list[Any], message: Message, droppable: bool) -> None:
        for peer in peers:
            try:
                peer.deliver(message, droppable)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                logger.exception("%r: deliver() failed, for %r", peer, message)


_NO_SINKS: _Sinks = {}

_CHANNELS_AT_ONCE = 1_000
"""How many channels are told of their differences before the loop gets its turn."""

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and what is not in UTF-8


def _shortened(name: object) -> str:
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"

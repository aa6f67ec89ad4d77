"""What a node wants to hear of Redis: the channels that it is subscribed to, and how far that has come.

A subscription has three steps, and is heard when all are done: the bus carries the channel; its place, and who is in
it, are known. At the call the place is asked for already, so that what is kept from then on is delivered, too. Whatever
ends a link to the bus takes its channels back to the first step.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from street_fast.backplanes import Unavailable
from street_fast.backplanes.redis_links import pack
from street_fast.backplanes.redis_scripts import partition_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable
    from typing import Any

    from street_fast.backplanes import History, Position
    from street_fast.backplanes.following import Following
    from street_fast.backplanes.redis_histories import RedisHistories
    from street_fast.backplanes.redis_links import BusLink
    from street_fast.backplanes.redis_members import RedisMembers
    from street_fast.backplanes.redis_scripts import Names
    from street_fast.backplanes.redis_servers import Server, Servers

__all__ = ["RedisInterests"]

_SUBSCRIBE_AT_ONCE = 512


class _Interest:
    """A channel that this node has subscribed to."""

    __slots__ = ("confirmed", "heard", "missed", "placed", "placing", "rostered", "waiting")

    def __init__(self) -> None:
        self.confirmed = False  # the bus carries it
        self.placing = False  # its place is being asked for
        self.placed = False  # and known
        self.rostered = False  # and so are its members
        self.heard = False  # all of that
        self.missed = False  # the bus may have lost something before that
        self.waiting: list[asyncio.Future[None]] = []


class RedisInterests:
    """The channels of one node. `members` is set by who makes it."""

    members: RedisMembers

    def __init__(self, bus_names: Names, servers: Servers, following: Following, histories: RedisHistories) -> None:
        self._bus_names = bus_names
        self._servers = servers
        self._following = following
        self._histories = histories
        self._loop = asyncio.get_running_loop()
        self._subscribe_word = b"SSUBSCRIBE" if servers.clustered else b"SUBSCRIBE"
        self._unsubscribe_word = b"SUNSUBSCRIBE" if servers.clustered else b"UNSUBSCRIBE"
        self.channels: dict[str, _Interest] = {}
        """What this node is subscribed to. Not to be written to."""
        self._unheard: set[str] = set()  # those that are not heard
        self._channel_of: dict[bytes, str] = {}  # by the name on the bus
        self._changed: set[str] = set()
        self._closed = False
        self.channel_of = self._channel_of.get
        """The channel that has this name on the bus; None if it is no channel of this node."""

    def of(self, server: Server) -> list[str]:
        """The channels that this server has."""
        return [channel for channel in self.channels if self._servers.of(channel) is server]

    def close(self) -> None:
        """Nothing is sent, or told, from now on. Who waits is refused."""
        self._closed = True
        for interest in self.channels.values():
            _fail_waiting(interest)

    # --- what this node wants ---

    def add(self, channel: str, history: History | None) -> Awaitable[None] | None:
        """See `Backplane.subscribe`."""
        interest = self.channels.get(channel)
        server = self._servers.of(channel)
        if interest is None:
            interest = self.channels[channel] = _Interest()
            self._unheard.add(channel)
            self._following.open(channel, history)
            if history is None:  # what the bus brings before it carries the channel is of an earlier subscription
                self._following.cut_off([channel])
            self.members.open(channel)
            self._channel_of[self._bus_names.of("b", channel)] = channel
            self._has_changed(channel)
            if history is not None and server is not None and server.is_up:
                self._ask_place(server, channel, interest)
        elif interest.heard:
            return None
        if server is None or not server.is_up:
            interest.missed = True
            raise self._servers.unavailable(server)
        future: asyncio.Future[None] = self._loop.create_future()
        future.add_done_callback(lambda future: future.cancelled() or future.exception())
        interest.waiting.append(future)
        return future

    def discard(self, channel: str) -> None:
        """See `Backplane.unsubscribe`."""
        interest = self.channels.pop(channel, None)
        if interest is None:
            return
        self._unheard.discard(channel)
        self._following.close(channel)
        self.members.close(channel)
        _fail_waiting(interest)
        self._has_changed(channel)

    def _has_changed(self, channel: str) -> None:
        if not self._changed:
            self._loop.call_soon(self._send_changes)
        self._changed.add(channel)

    def _send_changes(self) -> None:
        """What has come and gone in this turn."""
        changed, self._changed = self._changed, set()
        if self._closed:
            return
        wanted, unwanted = [], []
        for channel in changed:
            server, interest = self._servers.of(channel), self.channels.get(channel)
            name = self._bus_names.of("b", channel)
            is_sent = server is not None and channel in server.sent
            if interest is None:
                if is_sent:
                    unwanted.append(channel)
                else:
                    self._channel_of.pop(name, None)
            elif not is_sent:
                wanted.append(channel)
            elif server is not None and name not in server.unconfirmed:
                self._confirmed(channel, interest)  # it was given up and taken up again in one turn
        self.subscribe(wanted)
        for server, channels in self._grouped(unwanted):
            names = []
            for channel in channels:
                name = self._bus_names.of("b", channel)
                names.append(name)
                server.sent.discard(channel)
                server.leaving[name] = server.leaving.get(name, 0) + 1
                self._channel_of.pop(name, None)
            if server.bus is not None:
                server.bus.send(pack((self._unsubscribe_word, *names)))

    def subscribe(self, channels: Iterable[str]) -> None:
        """Tell the servers that these are wanted."""
        for server, some in self._grouped(channels):
            if server.bus is None:
                continue
            names = []
            for channel in some:
                name = self._bus_names.of("b", channel)
                names.append(name)
                server.sent.add(channel)
                server.unconfirmed[name] = server.unconfirmed.get(name, 0) + 1
                self._channel_of[name] = channel
            server.bus.send(pack((self._subscribe_word, *names)))

    def _grouped(self, channels: Iterable[str]) -> list[tuple[Server, list[str]]]:
        """What may go in one command: so many of one server, and of one slot in a Cluster."""
        groups: dict[int, list[str]] = {}
        for channel in channels:
            groups.setdefault(partition_of(channel) if self._servers.clustered else 0, []).append(channel)
        return [
            (server, group[start : start + _SUBSCRIBE_AT_ONCE])
            for partition, group in groups.items()
            if (server := self._servers.by_partition[partition]) is not None
            for start in range(0, len(group), _SUBSCRIBE_AT_ONCE)
        ]

    # --- what the servers say ---

    def answered(self, link: BusLink, kind: bytes, name: bytes | None) -> None:
        """To SUBSCRIBE or UNSUBSCRIBE; or a server of a Cluster says that it does not have a slot any more."""
        server = self._servers.with_bus(link)
        if server is None or name is None:
            return
        if kind in (b"unsubscribe", b"sunsubscribe"):
            if _count_down(server.leaving, name) is None:
                channel = self._channel_of.get(name)
                if channel is not None and channel in server.sent:
                    server.sent.discard(channel)
                    self.interrupt([channel])
                self._servers.look_up()
            return
        if _count_down(server.unconfirmed, name) != 0:
            if name == server.probe_name:
                self._servers.probe(server)
            return
        channel = self._channel_of.get(name)
        interest = None if channel is None else self.channels.get(channel)
        if channel is not None and interest is not None and channel in server.sent:
            self._confirmed(channel, interest)

    def interrupt(self, channels: Iterable[str]) -> None:
        """The bus does not carry them any more."""
        channels = [*channels]
        self._following.cut_off(channels)
        for channel in channels:
            interest = self.channels.get(channel)
            if interest is not None:
                interest.confirmed = interest.placed = interest.rostered = interest.heard = False
                interest.missed = True
                self._unheard.add(channel)
                _fail_waiting(interest)

    def moved(self, before: list[Server | None], partitions: set[int]) -> None:
        """These partitions of a Cluster have other servers than `before`, or have one by now."""
        again = []
        for channel in self.channels:
            partition = partition_of(channel)
            server, old = self._servers.by_partition[partition], before[partition]
            if partition in partitions and old is not None:
                old.sent.discard(channel)
                self.interrupt([channel])
            if server is not None and channel not in server.sent:
                again.append(channel)
        self.subscribe(again)

    # --- from the bus to being heard ---

    def _ask_place(self, server: Server, channel: str, interest: _Interest) -> None:
        def answered(reply: Any) -> None:
            if self.channels.get(channel) is interest and isinstance(reply, list):
                self._following.begun(channel, self._histories.top_in(channel, reply))

        self._histories.ask_top(server, channel, answered)

    def _confirmed(self, channel: str, interest: _Interest) -> None:
        """The bus carries the channel: ask where it is now, and who is in it."""
        interest.confirmed = True
        interest.placed = interest.rostered = False
        self._begin(channel, interest)
        self.members.read(channel)

    def _begin(self, channel: str, interest: _Interest) -> None:
        server = self._servers.of(channel)
        if interest.placing or server is None:
            return
        if self._following.history(channel) is None:
            self._begun(server, channel, interest, None, None)
            return
        if server.command is None:
            return
        place = self._following.place(channel)
        interest.placing = self._histories.ask_top(
            server, channel, lambda reply: self._begun(server, channel, interest, place, reply)
        )

    def _begun(self, server: Server, channel: str, interest: _Interest, place: Position | None, reply: Any) -> None:
        interest.placing = False
        if self.channels.get(channel) is not interest or not interest.confirmed or self._closed:
            return
        if isinstance(reply, Exception):
            self._servers.refused(server, reply)
            _fail_waiting(interest)
            interest.missed = True  # `begin_unheard` asks again
            return
        top = None if reply is None else self._histories.top_in(channel, reply)
        if interest.missed:
            interest.missed = False
            self._following.interrupted([channel])
        elif top is not None and place is not None:
            self._histories.compare(channel, place, top)
        self._following.begun(channel, top)
        interest.placed = True
        self._hear(channel, interest)

    def members_read(self, channel: str) -> None:
        """It is known who is in the channel."""
        interest = self.channels.get(channel)
        if interest is not None and interest.confirmed and not interest.rostered:
            interest.rostered = True
            self._hear(channel, interest)

    def _hear(self, channel: str, interest: _Interest) -> None:
        if not interest.placed or not interest.rostered:
            return
        interest.heard = True
        self._unheard.discard(channel)
        waiting, interest.waiting = interest.waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    def begin_unheard(self) -> None:
        """Ask again for what the bus carries and is not known."""
        for channel in [*self._unheard]:
            interest = self.channels[channel]
            if interest.confirmed and not interest.placed:
                self._begin(channel, interest)
            if interest.confirmed and not interest.rostered and channel not in self.members.reading:
                self.members.read(channel)


def _fail_waiting(interest: _Interest) -> None:
    waiting, interest.waiting = interest.waiting, []
    for future in waiting:
        if not future.done():
            future.set_exception(Unavailable("the bus does not carry the channel yet"))


def _count_down(counts: dict[bytes, int], name: bytes) -> int | None:
    """One answer less is to come for a name; how many are left, or None if none was expected."""
    left = counts.get(name)
    if left is None:
        return None
    if left > 1:
        counts[name] = left - 1
    else:
        del counts[name]
    return left - 1

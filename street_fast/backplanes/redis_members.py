"""Members in Redis: those of this node are written there, those of the others are read, and who is dead is dropped.

**Written** is a hash for each channel, which ends by itself and is written again before that. A change is told on the
bus of the channel (`p`), with the version that it follows; what cannot be told as a change is written as a whole, and
the others are told to read it (`r`).

**Alive** is a node whose key with a short life is there. Of the others each node drops those whose key is gone, and
still is when it is asked for again; but not soon after it has reconnected, when others may not have been back. A node
that finds its own key gone did not run for a while: it writes everything again. After a reconnect members are written
first and the key then, so that who sees that a node lives finds its members.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from street_fast.backplanes import Unavailable, records
from street_fast.backplanes.reasons import reason_of
from street_fast.backplanes.redis_links import ask, pack
from street_fast.backplanes.redis_scripts import (
    MEMBERS_CHANGE,
    MEMBERS_REFRESH,
    MEMBERS_WRITE,
    ROSTER,
    Names,
    milliseconds,
    partition_of,
)
from street_fast.backplanes.roster import OwnMembers, Roster

if TYPE_CHECKING:
    from collections.abc import Callable

    from street_fast.backplanes import BackplaneSink
    from street_fast.backplanes.records import Record
    from street_fast.backplanes.redis_servers import Server, Servers
    from street_fast.backplanes.roster import Change
    from street_fast.limits import Limits

__all__ = ["RedisMembers"]

_Nodes = dict[str, "tuple[int, dict[str, bytes | None]]"]
"""Version and members of some nodes in one channel."""

_TTL_FACTOR = 2.4
"""How long members stay without being written again, in `presence_refresh_s`."""
_PARTS = 25
"""What is done every `presence_refresh_s` is spread over it: in so many parts, if there is a tick for each."""
_MOST_EMPTIED = 5_000
_LOOKS = 6
"""How often in `node_ttl_s` it is looked who lives."""
_AGAIN_S = 0.3
"""Until it is asked again for the key of a node that is gone."""
_BACK_S = 2.0
"""What the other nodes get to come back to a server that was started anew, before it is said who is there."""


class RedisMembers:
    """The members of one node and, for its `sink`, those of the others.

    `was_read(channel)` is called when it has been told who is in a channel that `read` was called for.
    """

    def __init__(
        self,
        node: str,
        names: Names,
        bus_names: Names,
        limits: Limits,
        clock: Callable[[], float],
        sink: BackplaneSink,
        was_read: Callable[[str], None],
        tick_s: float,
    ) -> None:
        self._node = node
        self._names = names
        self._bus_names = bus_names
        self._limits = limits
        self._time = clock
        self._was_read = was_read
        self.servers: Servers  # set by who makes it
        self.poisoned = 0
        self._roster = Roster(sink)
        self._own = OwnMembers()
        self._ttl_ms = milliseconds(limits.presence_refresh_s * _TTL_FACTOR)
        self._node_ms = milliseconds(limits.node_ttl_s)
        self._key = self._key_of(node)
        self._loop = asyncio.get_running_loop()
        self._telling = False
        self.unwritten: set[str] = set()
        """Channels of which Redis does not have what it should."""
        self._emptied: dict[
            str, float
        ] = {}  # channels that have no members here any more, and since when; oldest first
        self.reading: dict[str, bool] = {}
        """Channels whose members are being read; True: once more after that."""
        self._doubtful: set[str] = set()  # channels with members of a node that seemed dead
        self._alive: dict[str, float] = {}  # nodes, and when that was known
        self._lived = False  # the key of this node was there
        self._judge_from = self._complete_from = float("-inf")
        self._next_beat = float("-inf")
        self._next_look = self._next_part = clock()
        self._parts = max(1, min(_PARTS, int(limits.presence_refresh_s / tick_s)))
        self._part = 0
        self._closed = False

    def __len__(self) -> int:
        """How many other nodes have members here."""
        return len(self._roster.nodes())

    # --- this node ---

    def join(self, channel: str, member: str, info: bytes | None) -> None:
        """A member has come, or its info has changed."""
        self._own.join(channel, member, info)
        self._tell_soon()

    def leave(self, channel: str, member: str) -> None:
        """A member has gone."""
        self._own.leave(channel, member)
        self._tell_soon()

    @property
    def telling(self) -> bool:
        """Whether there is something to tell."""
        return self._telling or bool(self.unwritten)

    def goodbye(self) -> None:
        """All members leave, and the node is no more. Nothing is told to the sink from now on."""
        self._closed = True
        for channel, _, members in [*self._own.all()]:
            for member in [*members]:
                self._own.leave(channel, member)
        self._tell()
        command = self.servers.command_of(self._node)
        if command is not None:
            ask(command, pack((b"DEL", self._key)), _ignore)

    def _tell_soon(self) -> None:
        if not self._telling and self._own.changed:
            self._telling = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        """What has changed in this turn, to the others."""
        self._telling = False
        for change in self._own.take():
            self._tell_change(change)

    def _tell_change(self, change: Change) -> None:
        channel = change.channel
        self._emptied.pop(channel, None)
        if not change.members:
            self._emptied[channel] = self._time()
        command = self.servers.command_of(channel)
        if command is None or channel in self.unwritten:
            self.unwritten.add(channel)
            return
        words = [
            self._node.encode(),
            b"%d" % change.previous,
            b"%d" % change.version,
            self._ttl_ms,
            self.servers.publish_word,
            records.presence_changed(self._node, change.previous, change.version, change.joined, change.left),
            b"%d" % len(change.left),
            *(member.encode() for member in change.left),
        ]
        for member, info in change.joined.items():
            words += [member.encode(), _word_of(info)]

        def answered(reply: Any) -> None:
            if reply != 1:
                self.unwritten.add(channel)
                self._write_unwritten()

        if not ask(command, MEMBERS_CHANGE.call(self._keys_of(channel), words), answered):
            self.unwritten.add(channel)

    def _keys_of(self, channel: str) -> tuple[bytes, bytes, bytes]:
        of = self._names.of
        return self._names.members_of(channel, self._node), of("n", channel), self._bus_names.of("b", channel)

    def _write_unwritten(self) -> None:
        """All members of the channels of which not all is written, if their server can be reached."""
        if not self.unwritten or self._closed:
            return
        known = {channel: (version, members) for channel, version, members in self._own.all()}
        for channel in [*self.unwritten]:
            command = self.servers.command_of(channel)
            if command is None:
                continue
            version, members = known.get(channel, (0, {}))
            words = [
                self._node.encode(),
                b"%d" % version,
                self._ttl_ms,
                self.servers.publish_word,
                records.presence_unknown(self._node),
            ]
            for member, info in members.items():
                words += [member.encode(), _word_of(info)]

            def answered(reply: Any, channel: str = channel) -> None:
                if reply != 1:
                    self.unwritten.add(channel)  # `tick` tries again

            if ask(command, MEMBERS_WRITE.call(self._keys_of(channel), words), answered):
                self.unwritten.discard(channel)

    # --- the others ---

    def open(self, channel: str) -> None:
        """This node has subscribed to the channel; `read` follows."""
        self._roster.open(channel)

    def close(self, channel: str) -> None:
        """It has not any more."""
        self._roster.close(channel)
        self._doubtful.discard(channel)

    def heard(self, channel: str, record: Record) -> None:
        """Another node has told of its members in a channel: a `p` or an `r` record."""
        self._alive[record.node] = self._time()
        if record.kind == "r" or not self._roster.change(
            channel, record.node, record.previous, record.number, record.joined, record.left
        ):
            self.read(channel)

    def read(self, channel: str) -> None:
        """Find out who is in a channel; `was_read` when that is done. If it cannot be, it is tried again."""
        if channel in self.reading:
            self.reading[channel] = True
            return
        mark = self._roster.mark()

        def answered(nodes: _Nodes | Exception) -> None:
            again = self.reading.pop(channel, False)
            if self._closed:
                return
            if isinstance(nodes, Exception):
                self._doubtful.add(channel)
                return
            self._roster.read(channel, nodes, mark, lambda _: self._time() < self._judge_from)
            if again:  # what is known may be older than what is wanted
                self.read(channel)
            else:
                self._was_read(channel)

        self.reading[channel] = False
        try:
            self._ask_roster(channel, answered)
        except Unavailable:
            del self.reading[channel]
            self._doubtful.add(channel)

    def members(self, channel: str) -> asyncio.Future[dict[str, bytes | None]]:
        """See `Backplane.members`."""
        if self._time() < self._complete_from:
            raise Unavailable("Redis was started anew, and the other nodes may not have said yet who is there")
        future: asyncio.Future[dict[str, bytes | None]] = self._loop.create_future()
        future.add_done_callback(_look_at)

        def answered(nodes: _Nodes | Exception) -> None:
            if future.done():
                return
            if isinstance(nodes, Exception):
                future.set_exception(Unavailable(f"who is there cannot be read: {reason_of(nodes)}"))
                return
            found: dict[str, bytes | None] = {}
            for _, members in nodes.values():
                found |= members
            future.set_result(found)

        self._ask_roster(channel, answered)
        return future

    def _ask_roster(self, channel: str, answered: Callable[[_Nodes | Exception], None]) -> None:
        """`answered` gets the other nodes that live, and have members in a channel. Raises Unavailable."""
        server, command = self.servers.reach(channel)
        before = self._names.in_partition(partition_of(channel), "p:")

        def heard(reply: Any) -> None:
            if isinstance(reply, Exception):
                self.servers.refused(server, reply)
                answered(reply)
                return
            nodes: _Nodes = {}
            try:
                for node, flat in zip(reply[::2], reply[1::2], strict=True):
                    fields = dict(zip(flat[::2], flat[1::2], strict=True))
                    version = int(fields.pop(b""))
                    nodes[node.decode()] = (version, {name.decode(): _info_of(info) for name, info in fields.items()})
            except (ValueError, KeyError) as error:
                self.poisoned += 1
                answered(error)
                return
            self._without_dead(channel, nodes, answered)

        words = (before, b":" + channel.encode(), self._node.encode())
        command.ask(ROSTER.call((self._names.of("n", channel),), words), heard)

    def _without_dead(self, channel: str, nodes: _Nodes, answered: Callable[[_Nodes | Exception], None]) -> None:
        sure_from = self._time() - self._limits.node_ttl_s / 4
        unsure = [node for node in nodes if self._alive.get(node, float("-inf")) < sure_from]

        def judged(dead: set[str]) -> None:
            if self._time() < self._judge_from:
                dead = set()
            if dead:
                self._doubtful.add(channel)  # its key may be about to come: members are written first
            answered({node: there for node, there in nodes.items() if node not in dead})

        self._ask_living(unsure, judged)

    # --- who lives ---

    def _key_of(self, node: str) -> bytes:
        return self._names.in_partition(partition_of(node), f"l:{node}")

    def _ask_living(self, nodes: list[str], judged: Callable[[set[str]], None]) -> None:
        """`judged` gets those whose key is gone. One that cannot be asked for now is not known to be dead."""
        dead: set[str] = set()
        left = len(nodes)
        if not left:
            judged(dead)
            return

        def answered(node: str, reply: Any) -> None:
            nonlocal left
            left -= 1
            if reply == 0:
                dead.add(node)
            elif reply == 1:
                self._alive[node] = self._time()
            if not left:
                judged(dead)

        for node in nodes:
            command = self.servers.command_of(node)

            def heard(reply: Any, node: str = node) -> None:
                answered(node, reply)

            if command is None or not ask(command, pack((b"EXISTS", self._key_of(node))), heard):
                answered(node, None)

    def _look_who_lives(self) -> None:
        nodes, long_ago = self._roster.nodes(), self._time() - self._limits.node_ttl_s
        self._alive = {node: at for node, at in self._alive.items() if node in nodes or at > long_ago}
        doubtful, self._doubtful = self._doubtful, set()
        for channel in doubtful:
            self.read(channel)
        if self._time() >= self._judge_from:
            self._ask_living([*nodes], self._seem_dead)

    def _seem_dead(self, nodes: set[str]) -> None:
        if nodes and not self._closed:
            self._loop.call_later(_AGAIN_S, self._ask_again, [*nodes])

    def _ask_again(self, nodes: list[str]) -> None:
        if not self._closed:
            self._ask_living(nodes, self._are_dead)

    def _are_dead(self, nodes: set[str]) -> None:
        if not self._closed and self._time() >= self._judge_from:
            for node in nodes:
                self._roster.drop_node(node)

    def _beat(self) -> None:
        """This node lives."""
        command = self.servers.command_of(self._node)

        def answered(reply: Any) -> None:
            if reply == 0 and not self._closed:
                if self._lived:  # it did not run for a while, and the others have dropped it
                    self._write_all()
                self._set_key()

        if command is not None:  # PEXPIRE, as SET is refused when the memory is full
            ask(command, pack((b"PEXPIRE", self._key, self._node_ms)), answered)

    def _set_key(self) -> None:
        command = self.servers.command_of(self._node)

        def answered(reply: Any) -> None:
            self._lived = self._lived or not isinstance(reply, Exception)

        if command is not None:
            ask(command, pack((b"SET", self._key, b"1", b"PX", self._node_ms)), answered)

    def _write_all(self) -> None:
        # Those without members, too: a server that has lost its latest may have them still.
        self._forget_emptied()
        self.unwritten.update(self._emptied)
        self.unwritten.update(channel for channel, _, _ in self._own.all())
        self._write_unwritten()

    def _forget_emptied(self) -> None:
        """What has been without members for so long has ended in Redis by itself."""
        oldest = self._time() - self._limits.presence_refresh_s * _TTL_FACTOR
        too_many = len(self._emptied) - _MOST_EMPTIED
        over = [
            channel
            for number, (channel, since) in zip(range(_MOST_EMPTIED), self._emptied.items(), strict=False)
            if since < oldest or number < too_many
        ]
        for channel in over:
            del self._emptied[channel]

    # --- what happens ---

    def commands_up(self, server: Server, again: bool, is_other: bool) -> None:
        """A server can be reached (again)."""
        if again:
            self._judge_from = self._time() + self._limits.node_ttl_s
        if is_other:
            self._complete_from = self._time() + _BACK_S
        if again or self._lived:
            self._write_all()
        else:
            self._write_unwritten()
        if self.servers.of(self._node) is server:
            self._set_key()

    def moved(self, partitions: set[int]) -> None:
        """Partitions have other servers."""
        self._judge_from = self._time() + self._limits.node_ttl_s
        self.unwritten.update(channel for channel, _, _ in self._own.all() if partition_of(channel) in partitions)

    def tick(self, subscribed: Callable[[], list[str]]) -> None:
        """To be called every `tick_s`, about."""
        now, limits = self._time(), self._limits
        if now >= self._next_beat:
            self._next_beat = now + limits.node_beat_s
            self._beat()
        if now >= self._next_look:
            self._next_look = now + limits.node_ttl_s / _LOOKS
            self._forget_emptied()
            self._look_who_lives()
        if now >= self._next_part:
            self._next_part = now + limits.presence_refresh_s / self._parts
            self._part = (self._part + 1) % self._parts
            self._refresh()
            for channel in subscribed()[self._part :: self._parts]:
                self.read(channel)
        self._write_unwritten()

    def _refresh(self) -> None:
        """Write again what would end, of a part of the channels."""
        for channel, version, _ in [*self._own.all()][self._part :: self._parts]:
            command = self.servers.command_of(channel)

            def answered(reply: Any, channel: str = channel) -> None:
                if reply == 0:
                    self.unwritten.add(channel)

            if command is not None:
                words = (self._node.encode(), b"%d" % version, self._ttl_ms)
                ask(command, MEMBERS_REFRESH.call(self._keys_of(channel)[:2], words), answered)


def _ignore(reply: Any) -> None:
    pass


def _look_at(future: asyncio.Future[Any]) -> None:
    """Nobody may be left to hear of the error."""
    if not future.cancelled():
        future.exception()


def _word_of(info: bytes | None) -> bytes:
    return b"" if info is None else b"=" + info


def _info_of(word: bytes) -> bytes | None:
    return word[1:] if word else None

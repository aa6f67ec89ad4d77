"""The nodes that meet on a NATS server: who of them lives, and who is where.

**Life.** Each node says every few seconds, on ``<prefix>.b``, that it lives; it is a probe, and comes back to it. Zero
is its number when the node has just (re)connected: the others answer at once. Who was not heard for
``Limits.node_ttl_s`` is dropped; but only by a node that was connected for as long, and has heard itself since.

**Members** are not stored anywhere. Changes are told on the channel. Who opens a channel asks on
``<prefix>.w.<token>``, where the nodes listen that have members in it. Who misses a change asks that node about that
channel, and who hears a node for the first time since it was connected, or now and then, asks it about all of them: on
``<prefix>.n.<node>.`` followed by the token of the channel, or by ``=`` for all. The answer comes to the same subject
of the one who asked.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from street_fast.backplanes import OutcomeUnknown, Unavailable
from street_fast.backplanes.nats_history import channel_of, token
from street_fast.backplanes.nats_link import status
from street_fast.backplanes.reading import SharedReads
from street_fast.backplanes.records import decode, presence_changed, presence_unknown, probe, signal
from street_fast.backplanes.roster import OwnMembers, Roster

if TYPE_CHECKING:
    from collections.abc import Callable

    from street_fast.backplanes import BackplaneSink
    from street_fast.backplanes.nats_link import Link
    from street_fast.backplanes.records import Record
    from street_fast.limits import Limits

__all__ = ["ALL_SID", "OWN_SID", "Members", "Nodes"]

OWN_SID, ALL_SID = 2, 3
"""Subscriptions to what is for this node, and for all."""

_HELLO_S = 0.25
_ASK_AGAIN_S = 0.1
_IN_ONE_MESSAGE = 400  # members; with the longest infos that is half of what NATS takes

Members = dict[str, "bytes | None"]


class _Round:
    """Answers of one node about all its channels."""

    __slots__ = ("asked", "told")

    def __init__(self) -> None:
        self.asked = 0  # times, without an end of the answer yet
        self.told: set[str] = set()


class Nodes:
    """What `node` knows of the others, and tells them.

    `new_sid` numbers subscriptions. `on_confirmed(number)` is called when what `confirm` has sent comes back,
    `on_beat()` when a beat goes out, and `on_heard()` when all that went out have come back.
    """

    def __init__(
        self,
        link: Link,
        node: str,
        prefix: str,
        limits: Limits,
        sink: BackplaneSink,
        new_sid: Callable[[], int],
        on_confirmed: Callable[[int], None],
        on_beat: Callable[[], None],
        on_heard: Callable[[], None],
    ) -> None:
        self._link = link
        self._node = node
        self._prefix = prefix
        self._limits = limits
        self._new_sid = new_sid
        self._on_confirmed = on_confirmed
        self._on_beat = on_beat
        self._on_heard = on_heard
        self._loop = asyncio.get_running_loop()
        self._all = f"{prefix}.b".encode()
        self._question = presence_unknown(node)
        self.roster = Roster(sink)
        self._own = OwnMembers()
        self._telling: asyncio.Handle | None = None
        self._who_sids: dict[str, int] = {}
        self.who_channels: dict[int, str] = {}
        """The subscriptions on which others ask who is in a channel."""
        self._heard: dict[str, float] = {}  # the nodes that live, and when they said so last
        self._lingering: set[str] = set()  # those that have ended, and whose members stay until they would be dead
        self._fresh: set[str] = set()  # those that did since this node was connected
        self._rounds: dict[str, _Round] = {}  # of nodes that were asked about all channels
        self._parts: dict[tuple[str, str], Members] = {}  # of answers that come in several
        self._asking: set[tuple[str, str]] = set()
        self._asked: SharedReads[str, Members] = SharedReads(self._ask_everybody)
        self._beats = 0
        self._unechoed: deque[tuple[int, float]] = deque()
        self.beat_at = 0.0
        """When this node said last that it lives."""
        self._up_at = self._echo_at = self._refresh_at = 0.0

    def __len__(self) -> int:
        return len(self._heard)

    @property
    def telling(self) -> bool:
        """Whether a change is about to be told."""
        return self._telling is not None

    def overdue_s(self) -> float:
        """For how long a beat has not come back."""
        return self._loop.time() - self._unechoed[0][1] if self._unechoed else 0.0

    # --- life ---

    def connected(self) -> None:
        """There is a connection, and it carries what this node wants."""
        link = self._link
        link.send(b"SUB %b %d\r\n" % (self._subject(self._node, "*"), OWN_SID))
        link.send(b"SUB %b %d\r\n" % (self._all, ALL_SID))
        for channel, sid in self._who_sids.items():
            link.send(b"SUB %b %d\r\n" % (self._who(channel), sid))
        self._up_at = self._echo_at = self._refresh_at = self._loop.time()
        self._unechoed.clear()
        self._beats = -1
        self.beat()

    def disconnected(self) -> None:
        """It has ended: what others have told is not current any more."""
        self._fresh.clear()
        self._rounds.clear()
        self._parts.clear()
        self._asking.clear()

    def close(self, linger: bool) -> None:
        """Say goodbye, if possible, and end. With `linger` the others keep the members, but do not ask any more."""
        if self._telling is not None:
            self._telling.cancel()
            self._telling = None
        self._asked.cancel()
        if self._link.up:
            self._link.publish(self._all, signal(self._node, b"linger") if linger else self._question)

    def beat(self) -> None:
        """Say that this node lives."""
        self._beats += 1
        self.beat_at = self._loop.time()
        self._unechoed.append((self._beats, self.beat_at))
        self._link.publish(self._all, probe(self._node, self._beats))
        self._on_beat()

    def confirm(self, number: int) -> None:
        """Send something that comes back behind all that was sent before."""
        self._link.publish(self._subject(self._node, "="), probe(self._node, number))

    def judge(self) -> None:
        """Drop who was not heard for too long, if this node hears at all; and ask the others again now and then."""
        now, ttl_s = self._loop.time(), self._limits.node_ttl_s
        silent = [node for node, heard_at in self._heard.items() if now - max(heard_at, self._up_at) > ttl_s]
        if any(self._echo_at - max(self._heard[node], self._up_at) <= ttl_s for node in silent):
            self.beat()  # what comes back of this will show whether it is them, or this node that hears nothing
        for node in silent:
            if self._echo_at - max(self._heard[node], self._up_at) > ttl_s:
                self._drop(node)
        if now - self._refresh_at >= self._limits.presence_refresh_s:
            self._refresh_at = now
            self._asking.clear()
            self._rounds.clear()
            for node in self._fresh:
                self._ask_all(node)

    def _drop(self, node: str) -> None:
        self._heard.pop(node, None)
        self._fresh.discard(node)
        self._lingering.discard(node)
        self._rounds.pop(node, None)
        for part in [part for part in self._parts if part[0] == node]:
            del self._parts[part]
        self.roster.drop_node(node)

    # --- members ---

    def open(self, channel: str) -> None:
        """This node is subscribed to the channel, and connected: who is there?"""
        self._link.publish(self._who(channel), self._question)

    def join(self, channel: str, member: str, info: bytes | None) -> None:
        """A member has come to this node."""
        self._own.join(channel, member, info)
        self._tell_soon()

    def leave(self, channel: str, member: str) -> None:
        """A member has left it."""
        self._own.leave(channel, member)
        self._tell_soon()

    async def members(self, channel: str) -> Members:
        """Who is there on the other nodes. Raises Unavailable."""
        return dict(await self._asked.read(channel))

    def _tell_soon(self) -> None:
        if self._telling is None:
            self._telling = self._loop.call_soon(self._tell)

    def _tell_now(self) -> None:
        if self._telling is not None:
            self._telling.cancel()
            self._tell()

    def _tell(self) -> None:
        self._telling = None
        link = self._link
        for channel, previous, version, joined, left, members in self._own.take():
            if members and channel not in self._who_sids:
                sid = self._who_sids[channel] = self._new_sid()
                self.who_channels[sid] = channel
                if link.up:
                    link.send(b"SUB %b %d\r\n" % (self._who(channel), sid))
            elif not members and channel in self._who_sids:
                sid = self._who_sids.pop(channel)
                del self.who_channels[sid]
                if link.up:
                    link.send(b"UNSUB %d\r\n" % sid)
            if link.up:  # otherwise the others ask when they hear this node again
                record = self._question
                if len(joined) + len(left) <= _IN_ONE_MESSAGE:
                    record = presence_changed(self._node, previous, version, joined, left)
                link.publish(f"{self._prefix}.c.{token(channel)}".encode(), record)

    # --- what comes ---

    def take_all(self, record: Record) -> None:
        """A beat, or one of two kinds of goodbye."""
        node = record.node
        if node == self._node:
            if record.kind == "q":
                while self._unechoed and self._unechoed[0][0] <= record.number:
                    self._unechoed.popleft()
                self._echo_at = self._loop.time()
                if not self._unechoed:
                    self._on_heard()
        elif record.kind == "q":
            new = node not in self._fresh or record.number == 0
            self._heard[node] = self._loop.time()
            self._fresh.add(node)
            if record.number == 0:
                self.beat()
            if new:
                self._ask_all(node)
        elif record.kind == "r":
            self._drop(node)
        elif record.kind == "s":
            self._lingering.add(node)

    def take_channel(self, channel: str, record: Record) -> None:
        """Another node tells of its members in a channel of this one."""
        node = record.node
        if record.kind == "r":
            self._ask(node, channel)
        else:
            self._heard.setdefault(node, self._loop.time())
            if not self.roster.change(channel, node, record.previous, record.number, record.joined, record.left):
                self._ask(node, channel)

    def take_who(self, channel: str, record: Record) -> None:
        """Another node has opened a channel in which this one has members."""
        if record.kind == "r" and record.node != self._node:
            self._answer(self._subject(record.node, token(channel)), channel)

    def take_own(self, last: str, reply: bytes, record: Record) -> None:
        """What is for this node alone: questions, and answers to its own. `last` is a token, or ``=``."""
        node = record.node
        if record.kind == "q":
            if node == self._node:
                self._on_confirmed(record.number)
        elif record.kind == "r":
            if last == "=":
                self._answer_all(node)
            else:
                self._answer(reply or self._subject(node, last), channel_of(last))
        elif record.kind == "p":
            if last == "=":
                self._take_end(node, record.number)
            else:
                self._take_answer(node, channel_of(last), record)

    def _take_answer(self, node: str, channel: str, record: Record) -> None:
        self._heard.setdefault(node, self._loop.time())
        members = self._parts.pop((node, channel), {}) | record.joined
        if record.previous:  # so many parts are to come
            self._parts[node, channel] = members
            return
        self._asking.discard((node, channel))
        if node in self._rounds:
            self._rounds[node].told.add(channel)
        self.roster.read_node(channel, node, record.number, members)

    def _take_end(self, node: str, version: int) -> None:
        """The node has told of all its channels: in others it has nobody."""
        answers = self._rounds.get(node)
        if answers is None:
            return
        answers.asked -= 1
        if answers.asked > 0:
            return  # the next answer is on its way, and tells again what is in this one
        del self._rounds[node]
        for channel in self.roster.channels_of(node):
            if channel not in answers.told:
                self.roster.read_node(channel, node, version, {})

    # --- questions and answers ---

    def _subject(self, node: str, last: str) -> bytes:
        return f"{self._prefix}.n.{node}.{last}".encode()

    def _who(self, channel: str) -> bytes:
        return f"{self._prefix}.w.{token(channel)}".encode()

    def _ask(self, node: str, channel: str) -> None:
        if (node, channel) not in self._asking:
            self._asking.add((node, channel))
            self._link.publish(self._subject(node, token(channel)), self._question)

    def _ask_all(self, node: str) -> None:
        self._rounds.setdefault(node, _Round()).asked += 1
        self._link.publish(self._subject(node, "="), self._question)

    def _answer_all(self, node: str) -> None:
        self._tell_now()  # what is told between the answers and their end is in none of them
        for channel, _, _ in [*self._own.all()]:
            self._answer(self._subject(node, token(channel)), channel)
        version, _ = self._own.of("")
        self._link.publish(self._subject(node, "="), presence_changed(self._node, 0, version, {}, []))

    def _answer(self, subject: bytes, channel: str) -> None:
        self._tell_now()
        version, members = self._own.of(channel)
        items = [*members.items()]
        starts = range(0, max(1, len(items)), _IN_ONE_MESSAGE)
        parts = [dict(items[start : start + _IN_ONE_MESSAGE]) for start in starts]
        for number, part in enumerate(parts, 1):
            self._link.publish(subject, presence_changed(self._node, len(parts) - number, version, part, []))

    async def _ask_everybody(self, channel: str) -> Members:
        """The members of a channel on all other nodes that are not known to be dead. Raises Unavailable."""
        deadline = self._loop.time() + self._limits.backplane_timeout_s
        settled_s = self._up_at + _HELLO_S - self._loop.time()
        if settled_s > 0:
            await asyncio.sleep(settled_s)  # until then others may not have said that they are there
        members: Members = {}
        waiting = [*self._heard.keys() - self._lingering]
        while waiting:
            answers = await asyncio.gather(*(self._ask_one(node, channel) for node in waiting))
            for theirs in answers:
                members = (theirs or {}) | members
            waiting = [
                node
                for node, theirs in zip(waiting, answers, strict=True)
                if theirs is None and node in self._heard and node not in self._lingering
            ]
            if waiting:
                if self._loop.time() > deadline:
                    raise Unavailable(f"{len(waiting)} nodes do not say who is in channel {channel!r}")
                await asyncio.sleep(_ASK_AGAIN_S)
        return members

    async def _ask_one(self, node: str, channel: str) -> Members | None:
        """What one node answers; None if it does not."""
        members: Members = {}
        try:
            for _, data in await self._link.request(self._subject(node, token(channel)), self._question, last=_is_last):
                members |= decode(data).joined
        except (OutcomeUnknown, ValueError):  # the latter: nobody listens there
            return None
        return members


def _is_last(headers: bytes, data: bytes) -> bool:
    """Whether no more parts of the members of a channel are to come."""
    try:
        return bool(status(headers)) or decode(data).previous == 0
    except ValueError:  # it is no answer at all
        return True

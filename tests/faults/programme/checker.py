"""The judge: every acknowledged message, for every subscriber of its channel, is one of

    once            it was handed on, once
    twice           it was handed on twice, with no word between the two                                  must be 0
    repeated        the same, but in between the subscriber was told that the history is gone: with it the key is
                    forgotten, and a publisher that had no answer publishes anew
    flagged         it never came, and the subscriber was told so where it should have come
    silent          it never came, and nobody said anything                                               must be 0

and beside that what must not happen to any message, acknowledged or not:

    jumps           the next message was not the next offset, and nobody said anything
    disorder        a message acknowledged before another was published stands, or came, behind it
    mixed           the message at a position is not the one that was acknowledged with it, or one that nobody sent
    forked          two messages with the same epoch and offset. One that is missing is flagged if any flag came later

Owed to a subscriber is what was published after its first subscription, whatever became of its connections. Channels
that keep no history promise less: what did not come without a word there is counted apart, as `unpromised`, and what
came again after a flag or a reconnect as `repeated`.

Pure: entries of journal.py in, a Verdict out. Where a missing message belongs is decided by its position alone: between
the last message before a flag and the place from which it went on. Epochs are in the order in which anybody first saw
them.
"""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from typing import TYPE_CHECKING

from tests.faults.programme.journal import NOTHING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.faults.programme.journal import Entry

MOST_EXAMPLES = 12
NEVER = (1 << 60, 0)

UNKEPT = ("live:", "keyed:")
"""How the names of channels without history begin."""


@dataclasses.dataclass
class Verdict:
    """The counts. `examples` are the first of what must not be, as sentences."""

    acknowledged: int = 0
    unanswered: int = 0
    owed: int = 0
    once: int = 0
    twice: int = 0
    repeated: int = 0
    flagged: int = 0
    silent: int = 0
    jumps: int = 0
    disorder: int = 0
    mixed: int = 0
    forked: int = 0
    may_fork: bool = False
    live_owed: int = 0
    live_once: int = 0
    live_flagged: int = 0
    live_unpromised: int = 0
    live_repeated: int = 0
    examples: list[str] = dataclasses.field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether nothing is that must not be."""
        return not (
            self.twice
            or self.silent
            or self.jumps
            or self.disorder
            or self.mixed
            or (self.forked and not self.may_fork)
        )

    def note(self, kind: str, sentence: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        if sum(example.startswith(kind) for example in self.examples) < MOST_EXAMPLES:
            self.examples.append(f"{kind}: {sentence}")


@dataclasses.dataclass
class _Sent:
    """One message, as its publisher knows it."""

    key: str
    who: str
    channel: str
    sent: float
    acked: float = math.inf
    position: str = NOTHING


def is_kept(channel: str) -> bool:
    """Whether the channel keeps history."""
    return not channel.startswith(UNKEPT)


def check(published: Iterable[Entry], seen: Iterable[Entry]) -> Verdict:
    """Judge what subscribers saw (in the order of each of them) by what publishers published."""
    verdict = Verdict()
    messages = _messages(published, verdict)
    by_channel: dict[str, list[_Sent]] = defaultdict(list)
    for message in messages.values():
        by_channel[message.channel].append(message)
    lives: dict[tuple[str, str], list[Entry]] = defaultdict(list)
    places: dict[str, list[tuple[float, str]]] = defaultdict(list)
    for entry in seen:
        lives[entry.who, entry.channel].append(entry)
        if entry.position != NOTHING:
            places[entry.channel].append((entry.time, entry.position))
    for message in messages.values():
        if message.position != NOTHING:
            places[message.channel].append((message.acked, message.position))
    order = {channel: _Order(channel, found, verdict) for channel, found in places.items()}
    _check_places(messages, lives, verdict)
    for channel, sent in by_channel.items():
        if is_kept(channel):
            _check_order_of_history(channel, sent, order.get(channel), verdict)
    for (who, channel), entries in lives.items():
        if is_kept(channel):
            _Kept(who, channel, entries, order, messages, verdict).judge(by_channel[channel])
        else:
            _judge_unkept(who, channel, entries, by_channel[channel], messages, verdict)
    return verdict


def _messages(published: Iterable[Entry], verdict: Verdict) -> dict[str, _Sent]:
    messages: dict[str, _Sent] = {}
    for entry in published:
        if entry.kind == "send":
            messages[entry.key] = _Sent(entry.key, entry.who, entry.channel, entry.time)
        elif entry.kind == "ack":
            message = messages[entry.key]
            message.acked = entry.time
            message.position = entry.position
            verdict.acknowledged += 1
        elif entry.kind == "open":
            verdict.unanswered += 1
    return messages


class _Order:
    """The order of all positions of a channel, over its epochs."""

    def __init__(self, channel: str, places: list[tuple[float, str]], verdict: Verdict) -> None:
        self._rank: dict[str, int] = {}
        self._forked: set[tuple[str, int]] = set()
        tags: dict[tuple[str, int], str] = {}
        for _, position in sorted(places):
            epoch, offset, tag = _parts(position)
            self._rank.setdefault(epoch, len(self._rank))
            known = tags.setdefault((epoch, offset), tag)
            if offset and known != tag:
                verdict.note("forked", f"{channel} has {epoch}:{offset} with the tags {known} and {tag}")
                tags[epoch, offset] = tag
                self._forked.add((epoch, offset))

    def is_forked(self, position: str) -> bool:
        return _parts(position)[:2] in self._forked

    def of(self, position: str) -> tuple[int, int]:
        epoch, offset, _ = _parts(position)
        return self._rank[epoch], offset


def _parts(position: str) -> tuple[str, int, str]:
    epoch, offset, tag = position.split(":")
    return epoch, int(offset), tag


def _check_places(messages: dict[str, _Sent], lives: dict[tuple[str, str], list[Entry]], verdict: Verdict) -> None:
    """Each position has one message, whoever tells of it; and nobody got what nobody sent."""
    at: dict[tuple[str, str], str] = {}
    for message in messages.values():
        if message.position != NOTHING:
            other = at.setdefault((message.channel, message.position), message.key)
            if other != message.key:
                verdict.note("mixed", f"{message.position} of {message.channel} was told to {other} and {message.key}")
    for (who, channel), entries in lives.items():
        for entry in entries:
            if entry.kind == "bad":
                verdict.note("mixed", f"{who} got {entry.key} at {entry.position} of {channel} with other data")
            if entry.kind not in ("got", "dup"):
                continue
            sent = messages.get(entry.key)
            if sent is None or sent.channel != channel:
                verdict.note("mixed", f"{who} got {entry.key} in {channel}, where nobody sent it")
            elif entry.position != NOTHING:
                known = at.setdefault((channel, entry.position), entry.key)
                if known != entry.key:
                    verdict.note("mixed", f"{who} got {entry.key} at {entry.position} of {channel}, which is {known}")


def _check_order_of_history(channel: str, sent: list[_Sent], order: _Order | None, verdict: Verdict) -> None:
    if order is None:
        return
    placed = [message for message in sent if message.position != NOTHING and not order.is_forked(message.position)]
    placed.sort(key=lambda message: order.of(message.position))
    for first, second in _turned(placed):
        verdict.note(
            "disorder",
            f"{second.key} ({second.position} of {channel}) stands behind {first.key} ({first.position}), "
            f"which was published after it was acknowledged",
        )


def _turned(messages: list[_Sent]) -> list[tuple[_Sent, _Sent]]:
    """Pairs (earlier in the list, later in it) of which the later was acknowledged before the earlier was sent."""
    found = []
    oldest: _Sent | None = None
    for message in reversed(messages):
        if oldest is not None and oldest.acked < message.sent:
            found.append((message, oldest))
        if oldest is None or message.acked < oldest.acked:
            oldest = message
    return found


class _Kept:
    """One subscriber of one channel with history."""

    def __init__(
        self,
        who: str,
        channel: str,
        entries: list[Entry],
        order: dict[str, _Order],
        messages: dict[str, _Sent],
        verdict: Verdict,
    ) -> None:
        self.who = who
        self.channel = channel
        self.messages = messages
        self.verdict = verdict
        self.order = order.get(channel)
        self.since = math.inf
        self.holes: list[tuple[tuple[int, int], tuple[int, int]]] = []  # (behind this, up to this)
        self.got: dict[str, int] = {}  # the number of flags before it
        self.again: set[str] = set()
        self.doubled: set[str] = set()
        self.flags = 0
        self.last_flag = -math.inf
        self.end: tuple[int, int] | None = None  # of a subscriber who has left
        self._read(entries)

    def _read(self, entries: list[Entry]) -> None:
        cursor: str | None = None
        open_since: str | None = None  # a flag without a position came behind this one
        for entry in entries:
            if entry.kind == "here":
                self.since = min(self.since, entry.time)
                cursor = None if entry.position == NOTHING else entry.position
            elif entry.kind == "flag":
                self.flags += 1
                self.last_flag = entry.time
                if open_since is None:
                    open_since = cursor
                if entry.position != NOTHING:
                    self._hole(open_since, self._place(entry.position))
                    open_since, cursor = None, entry.position
            elif entry.kind == "dup" and entry.key in self.got:  # otherwise it is missing, and has to be flagged
                self.verdict.note("twice", f"{self.who} was sent {entry.key} ({entry.position} of {self.channel}) anew")
            elif entry.kind == "got":
                epoch, offset, _ = _parts(entry.position)
                if open_since is not None:
                    rank, _ = self._place(entry.position)
                    self._hole(open_since, (rank, offset - 1))
                    open_since = None
                elif cursor is not None:
                    self._follows(cursor, epoch, offset)
                cursor = entry.position
                self._count(entry)
            elif entry.kind == "left":
                self.end = (-1, 0) if cursor is None else self._place(cursor)
        if open_since is not None:
            self._hole(open_since, NEVER)

    def _follows(self, cursor: str, epoch: str, offset: int) -> None:
        last_epoch, last_offset, _ = _parts(cursor)
        expected = last_offset + 1 if epoch == last_epoch else 1
        if offset != expected:
            kind = "disorder" if epoch == last_epoch and offset <= last_offset else "jumps"
            self.verdict.note(
                kind, f"{self.who} got offset {offset} of epoch {epoch} right behind {cursor} of {self.channel}"
            )

    def _count(self, entry: Entry) -> None:
        if entry.key not in self.got:
            self.got[entry.key] = self.flags
        elif self.got[entry.key] != self.flags:
            self.again.add(entry.key)
        else:
            self.doubled.add(entry.key)
            self.verdict.note("twice", f"{self.who} got {entry.key} twice in {self.channel}")

    def _place(self, position: str) -> tuple[int, int]:
        assert self.order is not None  # this position is in it
        return self.order.of(position)

    def _hole(self, behind: str | None, to: tuple[int, int]) -> None:
        self.holes.append(((-1, 0) if behind is None else self._place(behind), to))

    def judge(self, sent: list[_Sent]) -> None:
        verdict = self.verdict
        for message in sent:
            if message.sent < self.since or message.acked == math.inf or self._is_after_the_end(message):
                continue
            verdict.owed += 1
            if message.key in self.doubled:
                continue
            if message.key in self.again:
                verdict.repeated += 1
            elif message.key in self.got:
                verdict.once += 1
            elif self._is_flagged(message):
                verdict.flagged += 1
            else:
                verdict.note(
                    "silent",
                    f"{self.who} never got {message.key} ({message.position} of {self.channel}), which was "
                    f"acknowledged at {message.acked:.3f}",
                )

    def _is_after_the_end(self, message: _Sent) -> bool:
        if self.end is None or message.key in self.got or message.position == NOTHING:
            return False
        return self._place(message.position) > self.end

    def _is_flagged(self, message: _Sent) -> bool:
        position = message.position
        if position == NOTHING:  # acknowledged without a place, in a channel that has places
            return False
        assert self.order is not None
        if self.order.is_forked(position) and self.last_flag > message.sent:
            return True
        place = self._place(position)
        return any(behind < place <= to for behind, to in self.holes)


def _judge_unkept(
    who: str,
    channel: str,
    entries: list[Entry],
    sent: list[_Sent],
    messages: dict[str, _Sent],
    verdict: Verdict,
) -> None:
    since = min((entry.time for entry in entries if entry.kind == "here"), default=math.inf)
    until = min((entry.time for entry in entries if entry.kind == "left"), default=math.inf)
    flags = 0
    got: dict[str, int] = {}
    # By connection of the publisher, and between two flags: another node may be behind, and nothing joins the two.
    came: dict[tuple[str, int], list[_Sent]] = defaultdict(list)
    for entry in entries:
        if entry.kind == "flag":
            flags += 1
        elif entry.kind in ("got", "dup"):
            if got.get(entry.key) == flags:
                verdict.note("twice", f"{who} got {entry.key} twice in {channel}")
            elif entry.key in got:
                verdict.live_repeated += 1
            got[entry.key] = flags
            message = messages.get(entry.key)
            if message is not None:
                came[message.who, flags].append(message)
    for messages_of_one in came.values():
        for first, second in _turned(messages_of_one):
            verdict.note("disorder", f"{who} got {second.key} in {channel} behind {first.key}, which is newer")
    # What is missing is flagged if a flag came between its neighbours of the same publisher.
    lines: dict[str, list[_Sent]] = defaultdict(list)
    for message in sent:
        lines[message.who.split(".")[0]].append(message)
    for line in lines.values():
        line.sort(key=lambda message: message.sent)
        before = 0
        later = flags
        after: list[int] = []
        for message in reversed(line):
            later = min(later, got.get(message.key, later))
            after.append(later)
        for message, next_flags in zip(line, reversed(after), strict=True):
            if message.key in got:
                before = got[message.key]
            if message.sent < since or message.acked >= until or message.acked == math.inf:
                continue
            verdict.live_owed += 1
            if message.key in got:
                verdict.live_once += 1
            elif next_flags > before:
                verdict.live_flagged += 1
            else:
                verdict.live_unpromised += 1

"""Roster: the members that other nodes have in the channels that this node is subscribed to; and those of this node.

A node numbers its changes, upwards over all channels: the number of the last change of a channel is the version of its
members there. A change says which version it follows, so that who missed one knows that it has to read.

Everybody tells only its own sink: a node that dies is dropped by each of the others, and its members leave everywhere,
once. Nothing here knows a clock or a broker.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from street_fast.backplanes import BackplaneSink

__all__ = ["Change", "OwnMembers", "Roster"]

logger = logging.getLogger("street_fast")

Members = dict[str, "bytes | None"]


class _There:
    """The members of one channel on one other node."""

    __slots__ = ("changed", "members", "version")

    def __init__(self, version: int, members: Members, changed: int) -> None:
        self.version = version
        self.members = members
        self.changed = changed


class Roster:
    """Tells `sink` who comes and goes on other nodes."""

    def __init__(self, sink: BackplaneSink) -> None:
        self._sink = sink
        self._channels: dict[str, dict[str, _There]] = {}
        self._told: dict[str, Members] = {}
        self._changes = 0

    def open(self, channel: str) -> None:
        """This node is subscribed: `read` tells who is there."""
        self._channels.setdefault(channel, {})
        self._told.setdefault(channel, {})

    def close(self, channel: str) -> None:
        """It is not any more; what was told is void."""
        self._channels.pop(channel, None)
        self._told.pop(channel, None)

    def nodes(self) -> set[str]:
        """The other nodes that have members in channels of this one."""
        return {node for nodes in self._channels.values() for node in nodes}

    def channels_of(self, node: str) -> list[str]:
        """The channels of this node in which the other one has members."""
        return [channel for channel, nodes in self._channels.items() if node in nodes]

    def mark(self) -> int:
        """To be taken before the broker is asked, and given to `read` with the answer."""
        return self._changes

    def read(
        self,
        channel: str,
        nodes: Mapping[str, tuple[int, Members]],
        mark: int,
        keep: Callable[[str], bool] = lambda node: False,
    ) -> None:
        """All other nodes with members in the channel, as {node: (version, members)}, asked for at `mark`.

        A node that is not in it has none, unless it has told of a change since, or `keep(node)`.
        """
        known = self._channels.get(channel)
        if known is None:
            return
        for node in [*known]:
            if node not in nodes and known[node].changed <= mark and not keep(node):
                del known[node]
        for node, (version, members) in nodes.items():
            self._set(known, node, version, members)
        self._tell(channel)

    def read_node(self, channel: str, node: str, version: int, members: Members) -> None:
        """What one node has in the channel."""
        known = self._channels.get(channel)
        if known is not None:
            self._set(known, node, version, members)
            self._tell(channel)

    def change(
        self, channel: str, node: str, previous: int, version: int, joined: Mapping[str, bytes | None], left: list[str]
    ) -> bool:
        """A node tells of a change. False: one before it was missed, and the node has to be read."""
        known = self._channels.get(channel)
        if known is None:
            return True
        there = known.get(node)
        if there is not None and version <= there.version:
            return True
        if previous != (0 if there is None else there.version):
            return False
        if there is None:
            there = known[node] = _There(0, {}, 0)
        self._changes += 1
        there.version, there.changed = version, self._changes
        for member in left:
            there.members.pop(member, None)
        there.members.update(joined)
        self._tell(channel, {*joined, *left})
        if not there.members:
            del known[node]
        return True

    def drop_node(self, node: str) -> None:
        """The node is dead."""
        for channel, known in [*self._channels.items()]:
            if known.pop(node, None) is not None:
                self._tell(channel)

    # --- inside ---

    def _set(self, known: dict[str, _There], node: str, version: int, members: Members) -> None:
        there = known.get(node)
        if there is not None and version < there.version:
            return
        if members:
            self._changes += 1
            known[node] = _There(version, dict(members), self._changes)
        else:
            known.pop(node, None)

    def _tell(self, channel: str, whom: set[str] | None = None) -> None:
        """Tell the sink what is different from what it was told, of all members or of these."""
        known, told = self._channels[channel], self._told[channel]
        if whom is None:
            whom = {*told}.union(*(there.members for there in known.values()))
        joined: list[tuple[str, bytes | None]] = []
        left: list[str] = []
        for member in whom:
            infos = [there.members[member] for there in known.values() if member in there.members]
            if not infos:
                if member in told:
                    del told[member]
                    left.append(member)
            elif member not in told or told[member] not in infos:
                told[member] = infos[0]
                joined.append((member, infos[0]))
        if joined or left:
            try:
                self._sink.members_changed(channel, joined, left)
            except Exception:
                logger.exception("the sink of the backplane failed to hear of members, in channel %r", channel)


class Change(NamedTuple):
    """What has changed in one channel of this node since it was told last."""

    channel: str
    previous: int
    """The version that the others know; 0: none."""
    version: int
    joined: Members
    """Who came, or has another info."""
    left: list[str]
    members: Members
    """All who are there now; empty if nobody is. Not to be written to."""


class OwnMembers:
    """The members of this node. What happens between two `take` is one change, or none if it came to nothing."""

    def __init__(self) -> None:
        self._members: dict[str, Members] = {}
        self._versions: dict[str, int] = {}  # of the channels that the others know
        # By channel, what the others know of members that have changed; True: nothing.
        self._before: dict[str, dict[str, bytes | bool | None]] = {}
        self._version = 0

    def __len__(self) -> int:
        return len(self._members)

    @property
    def changed(self) -> bool:
        """Whether `take` would return something."""
        return bool(self._before)

    def join(self, channel: str, member: str, info: bytes | None) -> None:
        """A member has come, or its info has changed."""
        members = self._members.setdefault(channel, {})
        self._before.setdefault(channel, {}).setdefault(member, members.get(member, True))
        members[member] = info

    def leave(self, channel: str, member: str) -> None:
        """A member has gone; what never joined is ignored."""
        members = self._members.get(channel)
        if members is None or member not in members:
            return
        self._before.setdefault(channel, {}).setdefault(member, members[member])
        del members[member]
        if not members:
            del self._members[channel]

    def take(self) -> list[Change]:
        """What has changed since the last time; from now on the others know."""
        before, self._before = self._before, {}
        changes = []
        for channel, was in before.items():
            members = self._members.get(channel, {})
            joined = {
                member: members[member] for member, info in was.items() if member in members and members[member] != info
            }
            left = [member for member, info in was.items() if info is not True and member not in members]
            if not joined and not left:
                continue
            self._version += 1
            changes.append(Change(channel, self._versions.get(channel, 0), self._version, joined, left, members))
            if members:
                self._versions[channel] = self._version
            else:
                self._versions.pop(channel, None)
        return changes

    def of(self, channel: str) -> tuple[int, Members]:
        """Who is in a channel now, and a version that is not below any that the others know of it."""
        return self._versions.get(channel) or max(1, self._version), self._members.get(channel, {})

    def all(self) -> Iterator[tuple[str, int, Members]]:
        """Channel, version and members of what the others know, to be written again."""
        for channel, version in self._versions.items():
            yield channel, version, self._members.get(channel, {})

"""Who is in which channel, and who is typing there: plain state, and the differences that others are to hear of.

Presence is counted by connection: a member is present from its first `join` to its last `leave`, so that a second tab
or an overlapping reconnect makes no difference to anybody. Besides its connections here it may be elsewhere, on other
nodes, which counts once (`appear`, `disappear`). Nothing is kept about a channel without members.

Every change returns what changed, ready to be sent: no I/O, no clock and no connection are known here. That typing
ends by itself after a while is for the caller to arrange, with `set_typing(..., False)`.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

__all__ = ["Difference", "Presence"]


class Difference(NamedTuple):
    """One event: its type, and its data as they go over the wire."""

    type: Literal["presence:join", "presence:leave", "typing"]
    data: dict[str, Any]


class _Member:
    __slots__ = ("count", "elsewhere", "info")

    def __init__(self, info: Any, count: int, elsewhere: bool) -> None:
        self.count = count
        self.elsewhere = elsewhere
        self.info = info


class Presence:
    """The members of any number of channels."""

    __slots__ = ("_members", "_typing")

    def __init__(self) -> None:
        self._members: dict[str, dict[str, _Member]] = {}
        self._typing: dict[str, dict[str, None]] = {}  # in the order in which they began

    def join(self, channel: str, member_id: str, info: Any = None) -> Difference | None:
        """Count one more connection of the member; the difference is that it is now present.

        `info` is what the others learn about it. The one given when the member becomes present stands until it is
        absent again, so that everybody has been told the same.
        """
        members = self._members.setdefault(channel, {})
        member = members.get(member_id)
        if member is not None:
            member.count += 1
            return None
        members[member_id] = _Member(info, 1, False)
        return Difference("presence:join", describe(member_id, info))

    def leave(self, channel: str, member_id: str) -> list[Difference]:
        """Count one connection less; the differences, in order, are that it stopped typing, and that it is absent.

        Raises KeyError if the member is not there.
        """
        members = self._members[channel]
        member = members[member_id]
        member.count -= 1
        return [] if member.count or member.elsewhere else self._gone(channel, member_id)

    def appear(self, channel: str, member_id: str, info: Any = None) -> Difference | None:
        """Note that the member is elsewhere, too; the difference is that it is now present. Again is once."""
        members = self._members.setdefault(channel, {})
        member = members.get(member_id)
        if member is None:
            members[member_id] = _Member(info, 0, True)
            return Difference("presence:join", describe(member_id, info))
        member.elsewhere = True
        return None

    def disappear(self, channel: str, member_id: str) -> list[Difference]:
        """Take back `appear`; the differences are as with `leave`. Who never appeared is not missed."""
        member = self._members.get(channel, {}).get(member_id)
        if member is None or not member.elsewhere:
            return []
        member.elsewhere = False
        return [] if member.count else self._gone(channel, member_id)

    def disappear_all(self, channel: str) -> None:
        """Take back every `appear` in the channel, without a word: nobody is there who could hear of it."""
        for member_id in self.ids(channel):
            self.disappear(channel, member_id)

    def _gone(self, channel: str, member_id: str) -> list[Difference]:
        stopped = self.set_typing(channel, member_id, False)
        member = self._members[channel].pop(member_id)
        if not self._members[channel]:
            del self._members[channel]
        left = Difference("presence:leave", describe(member_id, member.info))
        return [left] if stopped is None else [stopped, left]

    def set_typing(self, channel: str, member_id: str, typing: bool) -> Difference | None:
        """Note that the member types or has stopped; no difference if that was known, or if it is not present."""
        typists = self._typing.get(channel)
        if typing == (typists is not None and member_id in typists):
            return None
        if not typing:
            assert typists is not None
            del typists[member_id]
            if not typists:
                del self._typing[channel]
        elif self.is_present(channel, member_id):
            self._typing.setdefault(channel, {})[member_id] = None
        else:
            return None
        return Difference("typing", {"memberId": member_id, "typing": typing})

    def is_present(self, channel: str, member_id: str) -> bool:
        return member_id in self._members.get(channel, ())

    def is_typing(self, channel: str, member_id: str) -> bool:
        return member_id in self._typing.get(channel, ())

    def connections(self, channel: str, member_id: str) -> int:
        """How many connections the member has here."""
        member = self._members.get(channel, {}).get(member_id)
        return 0 if member is None else member.count

    def count(self, channel: str) -> int:
        """How many members are present."""
        return len(self._members.get(channel, ()))

    def ids(self, channel: str) -> list[str]:
        """The ids of all members, in the order in which they became present."""
        return list(self._members.get(channel, ()))

    def info(self, channel: str, member_id: str) -> Any:
        """What a member that is present tells about itself. Raises KeyError if it is not."""
        return self._members[channel][member_id].info

    def describe(self, channel: str) -> list[dict[str, Any]]:
        """All members as the events describe them: ``{"memberId", "info"?}``."""
        return [
            {"memberId": member_id} if member.info is None else {"memberId": member_id, "info": member.info}
            for member_id, member in self._members.get(channel, {}).items()
        ]

    def typing_ids(self, channel: str) -> list[str]:
        """The ids of those who are typing, in the order in which they began."""
        return list(self._typing.get(channel, ()))


def describe(member_id: str, info: Any) -> dict[str, Any]:
    """``{"memberId", "info"?}``"""
    return {"memberId": member_id} if info is None else {"memberId": member_id, "info": info}

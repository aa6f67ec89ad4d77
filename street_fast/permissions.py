"""What a member may do in a channel: what its channel is, what the tokens it brought allow, what `authorize` says.

Nobody is allowed anything by an accident: an `authorize` that raises, or answers anything but True, has refused. A
channel ``user:<id>`` is its member's: no other may subscribe to it or look into it, whatever `authorize` and tokens
say; and to publish there takes an explicit True, of one of them.

`authorize` may be a coroutine function. What it returned is then awaited by whoever goes through the generator that
`judge` is; this module awaits nothing by itself.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from street_fast.auth import Member
from street_fast.street_socket import STOPPING

if TYPE_CHECKING:
    from collections.abc import Generator

    from street_fast._core import Timer
    from street_fast.auth import Grant
    from street_fast.hub import Peer

__all__ = ["Authorize", "Grants", "ask", "judge"]

logger = logging.getLogger("street_fast")

Authorize: TypeAlias = Callable[[Member, str, str], bool | Awaitable[bool]]
"""Whether a member may do that in a channel: ``subscribe``, ``publish``, ``presence`` or ``history``."""

_USER = "user:"


def ask(authorize: Authorize | None, grants: Grants | None, member: Member, channel: str, action: str) -> object:
    """Whether the member may do that: True, False, or what `authorize` has returned, for `judge`.

    `grants` is what the tokens of its connection allow; None if it has brought none.
    """
    granted = grants is not None and grants.allow(channel, action)
    if channel[:5] == _USER:
        if action != "publish":
            return channel == _USER + member.id
        if authorize is None:
            return granted
    if granted or authorize is None:
        return True
    try:
        return authorize(member, channel, action)
    except STOPPING:
        raise
    except BaseException as error:
        return _failed(error, channel, action)


def judge(answer: object, channel: str, action: str, peer: Peer) -> Generator[Awaitable[Any], Any, bool]:
    """What an answer of `ask` comes to, which may have to be awaited: nothing but True allows.

    Raises what is raised meanwhile if `peer` has gone: then it may be that its task was cancelled.
    """
    if inspect.isawaitable(answer):
        try:
            answer = yield answer
        except STOPPING:
            raise
        except BaseException as error:
            if peer.closed:
                raise
            return _failed(error, channel, action)
    if isinstance(answer, bool):
        return answer
    logger.error(
        "authorize returned %r, which is neither True nor False: %s of channel %r is refused",
        type(answer).__name__,
        action,
        channel,
    )
    return False


def _failed(error: BaseException, channel: str, action: str) -> bool:
    logger.error("authorize failed: %s of channel %r is refused", action, channel, exc_info=error)
    return False


class _Granted(NamedTuple):
    """What the token for a channel allows, and the timer that has a look at its end."""

    actions: frozenset[str]
    timer: Timer | None


class Grants:
    """What the channel tokens of one connection allow: one token for each channel, until it is over.

    `schedule` calls something with an argument about when a token ends, and again when it is not over then: the time of
    day may be set. `is_over` says whether it is, and `ended` is called with the channel.
    """

    __slots__ = ("_ended", "_granted", "_is_over", "_schedule")

    def __init__(
        self,
        schedule: Callable[[float, Callable[[Any], object], Any], Timer],
        is_over: Callable[[float], bool],
        ended: Callable[[str], object],
    ) -> None:
        self._schedule = schedule
        self._is_over = is_over
        self._ended = ended
        self._granted: dict[str, _Granted] = {}

    def __len__(self) -> int:
        return len(self._granted)

    def channels(self) -> list[str]:
        """Those that there is a token for."""
        return list(self._granted)

    def allow(self, channel: str, action: str) -> bool:
        """Whether a token allows that."""
        granted = self._granted.get(channel)
        return granted is not None and action in granted.actions

    def put(self, channel: str, grant: Grant) -> None:
        """Notes what a token allows in the channel, in place of what one allowed before."""
        self.drop(channel)
        self._granted[channel] = _Granted(grant.actions, self._timer(channel, grant.expires_at))

    def drop(self, channel: str) -> None:
        """Forgets the token for the channel, if there is one."""
        granted = self._granted.pop(channel, None)
        if granted is not None and granted.timer is not None:
            granted.timer.cancel()

    def _timer(self, channel: str, expires_at: float | None) -> Timer | None:
        return None if expires_at is None else self._schedule(expires_at, self._on_due, (channel, expires_at))

    def _on_due(self, due: tuple[str, float]) -> None:
        channel, expires_at = due
        if self._is_over(expires_at):
            del self._granted[channel]
            self._ended(channel)
        else:
            self._granted[channel] = self._granted[channel]._replace(timer=self._timer(channel, expires_at))

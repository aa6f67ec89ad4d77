"""Exchange: what stands between the hub of a node and the backplane.

To the backplane it is the sink: what was published anywhere is delivered to the connections of the hub, written and
framed once. Subscribers that are still catching up are left out and hold it instead. To the hub it is the watcher: the
backplane hears which channels have connections here, and which members.

Which channels keep history is decided here, by name or pattern.
"""

from __future__ import annotations

import asyncio
import fnmatch
import inspect
import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import TYPE_CHECKING, Any

import msgspec

from street_fast._core import LoopContext
from street_fast.backplanes import History, Page, Position, Publication, Unavailable
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.errors import ConfigurationError
from street_fast.messages import (
    Order,
    Typist,
    decode_data,
    decode_node_message,
    gap_message,
    is_publication,
    publication,
    write,
)
from street_fast.publishing import Outlet
from street_fast.seldom import Seldom

if TYPE_CHECKING:
    from street_fast.backplanes import Backplane
    from street_fast.hub import ChannelHub
    from street_fast.limits import Limits
    from street_fast.node_calls import NodeCalls
    from street_fast.recovery import CatchUp

__all__ = ["Exchange", "HistoryRules"]

logger = logging.getLogger("street_fast")


class HistoryRules:
    """Which channels keep history: ``{"room:*": History(...), "lobby": History(...)}``.

    A key is a name or a pattern with ``*``, ``?`` and ``[...]`` as in the shell; the first that matches counts, and
    None stands for no history. Raises ConfigurationError for anything else.
    """

    __slots__ = ("_found", "_rules", "any")

    def __init__(self, rules: Mapping[str, History | None] | None) -> None:
        if rules is not None and not isinstance(rules, Mapping):
            raise ConfigurationError(
                f"history={rules!r}: must be a mapping of channel names or patterns to History objects, such as "
                f'{{"room:*": History()}}'
            )
        self._rules: list[tuple[re.Pattern[str], History | None]] = []
        for pattern, history in ({} if rules is None else rules).items():
            if not isinstance(pattern, str) or not pattern:
                raise ConfigurationError(f"history: {pattern!r} must be the name of a channel or a pattern")
            if history is not None and not isinstance(history, History):
                raise ConfigurationError(f"history[{pattern!r}]={history!r}: must be a History object, or None")
            self._rules.append((re.compile(fnmatch.translate(pattern)), history))
        self._found: dict[str, History | None] = {}
        self.any = any(history is not None for _, history in self._rules)
        """Whether any channel may keep history."""

    def of(self, channel: str) -> History | None:
        """What the channel keeps."""
        found = self._found
        if channel in found:
            return found[channel]
        history = next((history for pattern, history in self._rules if pattern.match(channel)), None)
        if len(found) >= _CHANNELS_REMEMBERED:
            found.clear()
        found[channel] = history
        return history


_CHANNELS_REMEMBERED = 10_000
_ORDERS = "\norders"
"""Where nodes tell each other what to do with clients; no client can name it."""
_QUESTIONS = 100
"""Questions at once about who is on the other nodes."""
_CANCEL_S = 1.0
"""What a cancelled task gets to come to its end; an application's `authorize` may not let itself be cancelled."""


class Exchange(Outlet):
    """Between `hub` and `backplane`; see above. It becomes the watcher of the hub. `follow` does what others say.

    Raises ConfigurationError for a hub that is watched already.
    """

    def __init__(
        self,
        hub: ChannelHub,
        backplane: Backplane,
        rules: HistoryRules,
        limits: Limits,
        follow: Callable[[Order], object],
    ) -> None:
        if hub.watcher is not None:
            raise ConfigurationError(f"hub={hub!r}: belongs to another Realtime already")
        super().__init__(hub, backplane, rules.of if rules.any else None, limits.channel_messages_per_second)
        self.history_of = rules.of
        self._most_missed = limits.recovery_messages
        self._catching_up: dict[str, dict[object, CatchUp]] = {}  # by channel and sink
        self._places: dict[str, Position] = {}  # where those are who are not catching up, by channel
        self._follow = follow
        self._say_refused = Seldom(logger.warning, time.monotonic)
        self._say_failed = Seldom(logger.error, time.monotonic)
        self._lingers = False
        self._calls: NodeCalls | None = None
        self.has_nodes = False
        """Whether there may be other nodes; then what is delivered may come from anybody who reaches the broker."""
        self.refused = 0
        """What other nodes sent and is not what a Realtime sends."""
        self.unavailable = 0
        """Publishes that were refused, because the backplane could not do them."""
        self.unknown = 0
        """Publishes of which nobody knows whether they were done."""
        self._gaps: dict[str, asyncio.Task[None]] = {}  # of channels that are about to be told of one
        self._interests: dict[str, asyncio.Future[None]] = {}  # of channels that the backplane is about to hear
        self._questions = 0  # about who is on the other nodes
        self._tasks: set[asyncio.Task[Any]] = set()
        hub.watcher = self

    def spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Runs what is nobody's to await, until `close`."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    async def start(self) -> None:
        """Begins with the backplane."""
        await self.backplane.start(self)
        is_alone = type(self.backplane) is MemoryBackplane
        self.has_nodes = not is_alone
        if not is_alone:
            self.channel_opened(_ORDERS)
            if self._calls is not None:
                self.channel_opened(self._calls.channel)
        self.begin(LoopContext.of().time, is_alone)

    def linger(self) -> None:
        """The clients are about to be sent away. That they leave is no news to other nodes, on which they come back."""
        self._lingers = True

    async def close(self) -> None:
        """Ends what runs here, and the backplane."""
        self.end()
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_S)
        self.hub.watcher = None
        await self.backplane.close(linger=True)

    def answer(self, calls: NodeCalls) -> None:
        """Has `calls` hear what other nodes ask, from `start` on."""
        self._calls = calls

    def tell_nodes(self, order: Order) -> None:
        """Has the other nodes do the same with their clients, as far as they can be reached now."""
        self.backplane.signal(_ORDERS, write(order))

    # --- for sessions ---

    @property
    def catching_up(self) -> int:
        """How many subscriptions are catching up."""
        return sum(not catch_up.complete for sinks in self._catching_up.values() for catch_up in sinks.values())

    def hold(self, channel: str, sink: object, catch_up: CatchUp) -> None:
        """What is published to the channel is for `catch_up` to hold, and not for the sink, until `release`."""
        self._catching_up.setdefault(channel, {})[sink] = catch_up

    def release(self, channel: str, sink: object) -> None:
        """Take back `hold`."""
        sinks = self._catching_up[channel]
        del sinks[sink]
        if not sinks:
            del self._catching_up[channel]

    def place_of(self, channel: str) -> Position | None:
        """Where a subscriber is who is not catching up; None if nothing was delivered since the channel was opened."""
        return self._places.get(channel)

    def read_top(self, channel: str) -> Page | Awaitable[Page]:
        """The position of the newest message of a channel, in a page. Raises Unavailable, or the awaitable does."""
        history = self.history_of(channel)
        assert history is not None
        return self.backplane.read(channel, history, since=None, limit=0)

    def read_missed(self, channel: str, since: Position) -> Page | Awaitable[Page]:
        """A page of the history of a channel after a position. Raises Unavailable, or the awaitable does."""
        history = self.history_of(channel)
        assert history is not None
        return self.backplane.read(channel, history, since=since, limit=self._most_missed)

    def interest_in(self, channel: str) -> Awaitable[object] | None:
        """To be awaited before the history is read: until the backplane hears the channel. Never raises."""
        future = self._interests.get(channel)
        return None if future is None else asyncio.wait([future])

    def is_followed(self, channel: str) -> bool:
        """Whether somebody here is in the channel, and the backplane is not just about to hear it."""
        return self.hub.has_channel(channel) and channel not in self._interests

    async def roll(self, channel: str) -> dict[str, Any]:
        """Who is in a channel on all nodes, as `ChannelHub.roll` has it, also if nobody is on this one.

        Raises Unavailable if that cannot be known now, or too many are asking.
        """
        if self._questions >= _QUESTIONS:
            raise Unavailable(f"{_QUESTIONS} questions about who is on the other nodes have no answer yet")
        self._questions += 1
        try:
            others = self.backplane.members(channel)
            if inspect.isawaitable(others):
                others = await others
        finally:
            self._questions -= 1
        return self.hub.roll(channel, dict(self._members_of(channel, others.items())))

    def note_failed(self, error: BaseException) -> None:
        """A publish has failed."""
        if isinstance(error, Unavailable):
            self.unavailable += 1
        else:
            self.unknown += 1

    def say_failed(self, channel: str, error: BaseException) -> None:
        """A publish has failed that nobody awaits. A broker that is away makes many of them."""
        self._say_failed("publishing to channel %r failed: %s", channel, error)

    # --- what the backplane says ---

    def deliver(self, channel: str, published: Publication) -> None:
        """Something was published."""
        self.delivered += 1
        payload, position, skip_id = published
        if self.has_nodes and not is_publication(payload, channel):
            self._not_ours(channel, "a message")
            return
        if position is None:
            message, behind = publication(channel, payload, None), None
        else:
            if self._gaps and channel in self._gaps:
                self._tell_gap(channel, None)  # in its place, which is before this message
            message, behind = publication(channel, payload, str(position)), self._catching_up.get(channel)
            self._places[channel] = position
        skip = None if skip_id is None else self.hub.sink_of(skip_id)
        if behind is None or position is None:
            self.send(channel, message, skip)
            return
        skipped = {skip}
        for sink, catch_up in list(behind.items()):
            if sink is skip or catch_up.hold(position, message):
                skipped.add(sink)
            else:
                catch_up.caught_up(channel)
        self.send(channel, message, skipped)

    def lost(self, channel: str | None) -> None:
        """Something was lost: who is catching up reads on in the history, and all others are told."""
        for name in self.hub.channel_names() if channel is None else [channel]:
            if not self.hub.has_channel(name):
                continue
            for catch_up in list(self._catching_up.get(name, {}).values()):
                catch_up.lost()
            if self.history_of(name) is None:
                self._tell_gap(name, None)
                continue
            try:
                page = self.read_top(name)
            except Exception as error:
                self._cannot_read(name, error)
                self._tell_gap(name, None)
                continue
            if inspect.isawaitable(page):
                self._gaps[name] = self.spawn(self._tell_gap_later(name, page))
            else:
                self._tell_gap(name, page.top)

    async def _tell_gap_later(self, channel: str, page: Awaitable[Page]) -> None:
        try:
            position = (await page).top
        except Exception as error:
            self._cannot_read(channel, error)
            position = None
        if self._gaps.get(channel) is asyncio.current_task():
            self._tell_gap(channel, position)

    def _cannot_read(self, channel: str, error: Exception) -> None:
        # However it has failed, that something was lost is told, of this channel and of the others.
        if not isinstance(error, Unavailable):
            logger.error("the backplane cannot read the history of channel %r", channel, exc_info=error)

    def _tell_gap(self, channel: str, position: Position | None) -> None:
        self._gaps.pop(channel, None)
        if position is not None:
            self._places[channel] = position
        message = gap_message(channel, None if position is None else str(position))
        self.hub.deliver(channel, message, set(self._catching_up.get(channel, ())))

    def members_changed(self, channel: str, joined: list[tuple[str, bytes | None]], left: list[str]) -> None:
        """Members of other nodes came or went."""
        self.hub.members_changed(channel, self._members_of(channel, joined), left)

    def signalled(self, channel: str, payload: bytes) -> None:
        """A member types on another node, or has stopped; or another node says what to do with the clients of one."""
        try:
            if channel == _ORDERS:
                self._follow(decode_node_message(payload, Order))
            elif self._calls is not None and channel == self._calls.channel:
                self._calls.arrive(payload)
            else:
                typist = decode_node_message(payload, Typist)
                self.hub.set_typing_elsewhere(channel, typist.member_id, typist.typing)
        except ValueError as error:
            self._not_ours(channel, str(error))

    # --- what the hub says ---

    def channel_opened(self, channel: str) -> None:
        """The channel has its first connection here."""
        try:
            pending = self.backplane.subscribe(channel, self.history_of(channel))
        except Exception as error:
            self._cannot_hear(channel, error)
            return
        if pending is not None:
            self._interests[channel] = self.spawn(self._hear(channel, pending))

    async def _hear(self, channel: str, pending: Awaitable[None]) -> None:
        try:
            await pending
        except Exception as error:
            self._cannot_hear(channel, error)
        finally:
            if self._interests.get(channel) is asyncio.current_task():
                del self._interests[channel]

    def _cannot_hear(self, channel: str, error: Exception) -> None:
        # What is published on this node arrives all the same; of the others the backplane says `lost` in time.
        if not isinstance(error, Unavailable):
            logger.error("the backplane cannot subscribe to channel %r", channel, exc_info=error)

    def channel_closed(self, channel: str) -> None:
        """The channel has no connection here any more."""
        self._places.pop(channel, None)
        self._gaps.pop(channel, None)
        self.backplane.unsubscribe(channel)

    def member_joined(self, channel: str, member_id: str, info: bytes | None) -> None:
        """A member has come to this node."""
        self.backplane.join(channel, member_id, info)

    def member_left(self, channel: str, member_id: str) -> None:
        """A member has left this node."""
        if not self._lingers:
            self.backplane.leave(channel, member_id)

    def typing_set(self, channel: str, member_id: str, typing: bool) -> None:
        """A member types on this node, still types, or has stopped."""
        self.backplane.signal(channel, write(Typist(member_id, typing)))

    # --- inside ---

    def _members_of(self, channel: str, told: Iterable[tuple[str, bytes | None]]) -> list[tuple[str, bytes | None]]:
        """Those of the members of other nodes that can be members."""
        found = []
        for member_id, info in told:
            try:
                self.hub.check_member(member_id, None if info is None else decode_data(msgspec.Raw(info)))
            except ValueError as error:
                self._not_ours(channel, str(error))
            else:
                found.append((member_id, info))
        return found

    def _not_ours(self, channel: str, what: str) -> None:
        self.refused += 1
        self._say_refused("channel %r: what came over the backplane is not from a Realtime: %s", channel, what)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of Realtime failed", exc_info=task.exception())

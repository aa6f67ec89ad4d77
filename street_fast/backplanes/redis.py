"""RedisBackplane: nodes meet on a Redis or Valkey server, alone, behind Sentinels, or a Cluster of them.

What is published without history is delivered here at once, and sent with PUBLISH; with history or a key one script
does everything, and its answer says where the message is. What a node has subscribers for, and how it gets to hear it,
is in ``redis_interests``; what it has missed is read in ``redis_histories``. Where the servers are, and whether they
are what they were, is in ``redis_servers``; members are in ``redis_members``, the Lua is in ``redis_scripts``.

**What may be lost is told.** A bus that was away has interrupted all its channels. What this node could not send is
announced to the others (`l`) when it can send again. Of a server that was no primary any more nobody knows who has
heard what was sent: then it is all channels.

**Order** within a channel is that of one connection. What needs no answer is delivered here at once, but not before
what was published with a key and is not answered yet.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from collections import deque
from typing import TYPE_CHECKING, Any

from street_fast._core import LoopContext
from street_fast.backplanes import (
    NOT_KEPT,
    Health,
    OutcomeUnknown,
    Page,
    Position,
    Publication,
    Published,
    Unavailable,
    records,
)
from street_fast.backplanes.following import Following
from street_fast.backplanes.reasons import reason_of
from street_fast.backplanes.redis_histories import RedisHistories, top_of
from street_fast.backplanes.redis_interests import RedisInterests
from street_fast.backplanes.redis_links import BusLink, NoAnswer, NotSent, Place, ask, pack
from street_fast.backplanes.redis_members import RedisMembers
from street_fast.backplanes.redis_scripts import PUBLISH, TELL_ONCE, Names, Routes, milliseconds
from street_fast.backplanes.redis_servers import Hooks, Server, Servers
from street_fast.errors import ConfigurationError
from street_fast.limits import Limits, checked_limits
from street_fast.seldom import Seldom

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from street_fast._core import Timer
    from street_fast.backplanes import BackplaneSink, History

__all__ = ["RedisBackplane"]

logger = logging.getLogger("street_fast")

_CHANNELS_REMEMBERED = 10_000
"""Channels with something unsent; above it all channels count as such."""
_POSITION_PARTS = 25
"""Positions are checked a part of the channels at a time."""
_LAG_S = 1.0
_UNANSWERED = 5
"""Publishes without a sure answer that are a matter of health, if they are more than one in a hundred."""
_SPAN_S = 10.0
_CLOSE_S = 2.0
"""What closing gets to tell the others."""


class RedisBackplane:
    """A `Backplane` over Redis 6.2 or later, or Valkey; a Cluster has to be of 7 or later.

    `url` is ``redis://[[user]:password@]host[:port][/db]``, ``rediss://`` for TLS, ``redis+sentinel://host,host/service``
    or ``redis+cluster://host,host``. All nodes with the same `prefix` (and database) meet.

    A publish with history is answered when `replicas` of the replicas have it too. `durable` says that the server loses
    nothing that it has answered, whatever happens (appendfsync always, and no failover to a replica that lacks it);
    otherwise all that was kept counts as lost when the server was started anew or promoted, as nobody can know.

    The server keeps keys for ``Limits.publish_key_ttl_s``, whatever their number, and should not evict anything
    (maxmemory-policy noeviction): when its memory is full it refuses what is to be kept.

    Nothing is connected before `start`. Raises ConfigurationError for a URL or an option that makes no sense.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "street_fast",
        durable: bool = False,
        replicas: int = 0,
        limits: Limits | None = None,
        context: LoopContext | None = None,
    ) -> None:
        self._place = Place.of(url)
        if not isinstance(prefix, str) or not prefix or set(prefix) & set("{}\r\n"):
            raise ConfigurationError(f"prefix={prefix!r}: must be text without braces, for the names in Redis")
        if isinstance(replicas, bool) or not isinstance(replicas, int) or not 0 <= replicas <= 100:
            raise ConfigurationError(f"replicas={replicas!r}: must be a whole number from 0 to 100")
        self._limits = limits = checked_limits(limits)
        self._durable = bool(durable)
        self._replicas = replicas
        self._context = context
        self._names = Names(prefix)
        db = self._place.db
        self._bus_names = Names(f"{prefix}/{db}") if db else self._names  # the bus knows no databases
        self._key_ms = milliseconds(limits.publish_key_ttl_s)
        self._most_bytes = b"%d" % limits.history_bytes
        self._tick_s = max(0.05, min(0.5, limits.backplane_timeout_s / 4, limits.backplane_probe_s / 4))
        self._sink: BackplaneSink | None = None
        self._begin_counting()

    def _begin_counting(self) -> None:
        self._published = self._published_kept = self._received = self._poisoned = 0
        self._dropped = 0
        # Publishes, in this span of time and in the one before.
        self._answered = [0, 0]
        self._unanswered = [0, 0]
        self._refused_at = float("-inf")
        self._refused_why = ""

    # --- life ---

    async def start(self, sink: BackplaneSink) -> None:
        """Begin, see `Backplane.start`: it waits for the first try to connect to end."""
        if self._sink is not None:
            raise RuntimeError("this RedisBackplane is started already; it serves one sink, until close()")
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        context = LoopContext.of() if self._context is None else self._context
        self._time = context.time
        self._begin_counting()
        self._say_poisoned = Seldom(logger.warning, self._time)
        self._node = records.new_node_id()
        self._head = records.message(self._node, Publication(b"", None, None))
        self._dice = random.Random(os.urandom(16))  # noqa: S311 - tells histories apart, and is no secret
        self._unsaid: set[str] = set()
        self._all_unsaid = False
        self._keyed: dict[str, deque[Publication | None]] = {}  # see _publish_keyed
        self._next_positions = self._next_span = self._time()
        self._position_part = 0
        hooks = Hooks(
            self._arrived,
            self._not_told,
            self._commands_up,
            self._bus_up,
            self._bus_lost,
            self._moved,
            self._doubt,
        )
        self._servers = servers = Servers(
            self._place,
            self._limits,
            self._time,
            self._bus_names,
            self._node,
            self._head.removesuffix(b"-\n"),  # what is not kept was delivered here when it was published
            self._durable,
            self._replicas,
            hooks,
        )
        self._routes = routes = Routes(self._names, self._bus_names, servers.publish_word)
        self._histories = histories = RedisHistories(self._limits, servers, routes, self._random, self._poison)
        self._following = histories.following = Following(sink, histories.catch_up)
        self._interests = RedisInterests(self._bus_names, servers, self._following, histories)
        self._members = self._interests.members = RedisMembers(
            self._node,
            self._names,
            self._bus_names,
            self._limits,
            self._time,
            sink,
            self._interests.members_read,
            self._tick_s,
        )
        self._members.servers = servers
        self._timer: Timer = context.wheel.schedule(self._tick_s, self._tick)
        await servers.tried()

    async def close(self, *, linger: bool = False) -> None:
        """End, see `Backplane.close`."""
        if self._sink is None:
            return
        self._sink = None
        self._timer.cancel()
        self._histories.close()
        self._interests.close()
        if not linger:
            self._members.goodbye()
        links = [server.command for server in self._servers.all if server.command is not None]
        deadline = self._loop.time() + min(_CLOSE_S, self._limits.backplane_timeout_s)
        while any(link.up and not link.idle for link in links) and self._loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        await self._servers.close()
        await asyncio.sleep(0)  # who reads is told
        self._histories.cancel()

    def _started(self) -> BackplaneSink:
        if self._sink is None:
            raise Unavailable("this RedisBackplane is not started, or is closed")
        return self._sink

    # --- messages ---

    def publish(
        self,
        channel: str,
        payload: bytes,
        *,
        history: History | None = None,
        key: str | None = None,
        skip: str | None = None,
    ) -> Published | Awaitable[Published]:
        """See `Backplane.publish`. Without history and key it is done when this returns."""
        if self._sink is None:
            self._started()
        if history is not None:
            return self._publish_kept(channel, Publication(payload, None, skip), history, key)
        if key is not None:
            return self._publish_keyed(channel, Publication(payload, None, skip), key)
        self._published += 1
        route = self._routes.known.get(channel) or self._routes.of(channel)
        head = self._head if skip is None else b"S1 m %b %b\n" % (self._node.encode(), skip.encode())
        server = self._servers.by_partition[route.partition]
        command = None if server is None else server.command
        # By hand, as one for each message is most of the cost of this.
        packed = b"%b$%d\r\n%b%b\r\n" % (route.publish, len(head) + len(payload), head, payload)
        if command is None or not command.tell(channel, packed):
            self._leave_unsaid(channel)
        if self._keyed and channel in self._keyed:  # who subscribes until that is answered gets both
            self._keyed[channel].append(Publication(payload, None, skip))
        elif channel in self._interests.channels:
            self._following.deliver(channel, Publication(payload, None, skip))
        return NOT_KEPT

    def signal(self, channel: str, payload: bytes) -> None:
        """See `Backplane.signal`."""
        if self._sink is None:
            return
        command = self._servers.command_of(channel)
        if command is not None:
            record = records.signal(self._node, payload)
            command.tell("", self._routes.publish(channel, record))

    def _random(self) -> bytes:
        return b"%016x" % self._dice.getrandbits(64)

    def _publish_kept(
        self, channel: str, publication: Publication, history: History, key: str | None
    ) -> asyncio.Future[Published]:
        server, command = self._servers.reach(channel)
        route = self._routes.of(channel)
        tag = self._random()
        packed = PUBLISH.call(
            (*route.keys, route.bus) if key is None else (*route.keys, route.bus, self._names.key_of(channel, key)),
            (
                server.identity,
                tag,
                self._histories.shared_ms,
                tag,
                b"%d" % history.size,
                milliseconds(history.ttl_s),
                self._most_bytes,
                self._histories.meta_ms,
                self._key_ms,
                self._servers.publish_word,
                b"S1 k %b " % self._node.encode(),
                b"-" if publication.skip is None else publication.skip.encode(),
                publication.payload,
            ),
        )
        future: asyncio.Future[Published] = self._loop.create_future()
        future.add_done_callback(_look_at)

        def answered(reply: Any) -> None:
            if isinstance(reply, Exception):
                self._not_published(server, reply, future)
                return
            try:
                position, duplicate = top_of(reply), bool(reply[3])
            except ValueError as error:
                self._poison(channel)
                self._not_published(server, error, future)
                return
            published = Published(position, duplicate)
            if not duplicate and self._sink is not None:
                self._following.acknowledged(channel, publication._replace(position=position))
            if self._replicas:
                server.unwaited.append(lambda reached: self._reached(reached, published, future))
            else:
                self._is_published(published, future)

        command.ask(packed, answered)
        self._published_kept += 1
        server.kept += 1
        return future

    def _reached(self, reached: Any, published: Published, future: asyncio.Future[Published]) -> None:
        """What WAIT says."""
        if isinstance(reached, int) and reached >= self._replicas:
            self._is_published(published, future)
            return
        self._unanswered[0] += 1
        if not future.done():
            why = reason_of(reached) if isinstance(reached, Exception) else f"{reached} of {self._replicas} replicas"
            future.set_exception(OutcomeUnknown(f"kept, but perhaps not for good: {why} have answered in time"))

    def _publish_keyed(self, channel: str, publication: Publication, key: str) -> asyncio.Future[Published]:
        """With a key, and not kept. It is delivered when it is known not to be a duplicate.

        What is published to the channel until then, without a key, is delivered behind it: it waits in ``_keyed``,
        where None stands for each that is not answered.
        """
        server, command = self._servers.reach(channel)
        packed = TELL_ONCE.call(
            (self._names.key_of(channel, key), self._routes.of(channel).bus),
            (self._key_ms, self._servers.publish_word, records.message(self._node, publication)),
        )
        future: asyncio.Future[Published] = self._loop.create_future()
        future.add_done_callback(_look_at)

        def tell_failed(error: Exception) -> None:
            said = self._not_published(server, error, future)
            if isinstance(said, OutcomeUnknown) and self._sink is not None:
                self._following.lost(channel)  # the others may have got it

        def answered(reply: Any) -> None:
            queue = self._keyed[channel]
            queue.popleft()
            refused = isinstance(reply, Exception) and not isinstance(reply, (NoAnswer, NotSent))
            if isinstance(reply, Exception):
                if not refused:
                    tell_failed(reply)
            else:
                if not reply and self._sink is not None:
                    self._following.deliver(channel, publication)
                self._is_published(Published(None, bool(reply)), future)
            while queue and queue[0] is not None:
                behind = queue.popleft()
                if self._sink is not None and behind is not None:
                    self._following.deliver(channel, behind)
            if not queue:
                self._keyed.pop(channel, None)
            if refused:  # it may end the link, which answers all that are behind this one
                tell_failed(reply)

        command.ask(packed, answered)
        self._keyed.setdefault(channel, deque()).append(None)
        return future

    def _is_published(self, published: Published, future: asyncio.Future[Published]) -> None:
        self._answered[0] += 1
        if not future.done():
            future.set_result(published)

    def _not_published(self, server: Server, error: Exception, future: asyncio.Future[Published]) -> Exception:
        """Tells who awaits it, if anybody still does, and returns what it is told."""
        said: Exception
        kind = self._servers.refused(server, error)
        if isinstance(error, NotSent):
            said = Unavailable(str(error))
        elif kind is not None:
            self._refused(kind, error)
            said = Unavailable(f"Redis refuses ({kind}): {error}")
        else:
            said = OutcomeUnknown(f"it may have been published or not: {reason_of(error)}")
            self._unanswered[0] += 1
        if not future.done():
            future.set_exception(said)
        return said

    def _refused(self, kind: str, error: Exception) -> None:
        if kind in ("OOM", "MISCONF", "NOREPLICAS", "NOPERM"):
            self._refused_at, self._refused_why = self._time(), f"{kind}, {error}"

    # --- interest ---

    def subscribe(self, channel: str, history: History | None = None) -> Awaitable[None] | None:
        """See `Backplane.subscribe`."""
        self._started()
        return self._interests.add(channel, history)

    def unsubscribe(self, channel: str) -> None:
        """See `Backplane.unsubscribe`."""
        if self._sink is not None:
            self._interests.discard(channel)

    # --- what the bus brings ---

    def _arrived(self, link: BusLink, message: Any) -> None:
        if self._sink is None:
            return
        if type(message) is not list:
            self._bus_said(link, message)
            return
        kind, name, data = message
        if kind != b"message" and kind != b"smessage":
            self._interests.answered(link, kind, name)
            return
        try:
            record = records.decode(data)
        except ValueError:
            self._poison(name)
            return
        self._received += 1
        what, publication = record.kind, record.publication
        channel = self._interests.channel_of(name)
        if channel is None:
            self._own_affair(link, name, record)
        elif what == "m" or what == "k":
            if publication is not None:
                self._following.arrive(channel, publication)
        elif record.node == self._node:
            pass
        elif what == "s":
            self._signalled(channel, publication)
        elif what == "p" or what == "r":
            self._members.heard(channel, record)
        elif what == "l":
            self._following.lost(channel)

    def _signalled(self, channel: str, publication: Publication | None) -> None:
        if publication is not None and channel in self._interests.channels and self._sink is not None:
            try:
                self._sink.signalled(channel, publication.payload)
            except Exception:
                logger.exception("the sink of the backplane failed to hear a signal, in channel %r", channel)

    def _own_affair(self, link: BusLink, name: bytes, record: records.Record) -> None:
        """What came of a name that is no channel of this node."""
        if record.kind == "q" and record.node == self._node:
            self._servers.probe_came(link, name, record.number)
        elif record.kind == "l" and name == self._servers.global_name and record.node != self._node:
            for channel in self._following.channels():
                self._following.lost(channel)

    def _bus_said(self, link: BusLink, error: Exception | None) -> None:
        if error is not None:
            self._servers.bus_said(link, error)
            return
        server = self._servers.with_bus(link)
        if server is not None:
            self._dropped += 1
            self._following.interrupted(self._interests.of(server))

    # --- the history ---

    def read(self, channel: str, history: History, *, since: Position | None, limit: int) -> Awaitable[Page]:
        """See `Backplane.read`. Who asks for the same at once is answered by one read."""
        if limit < 0:
            raise ValueError(f"limit={limit!r}: must be 0 or more")
        self._started()
        return self._histories.read(channel, since, limit)

    def _poison(self, where: str | bytes) -> None:
        self._poisoned += 1
        self._say_poisoned("Redis %s: what came of %r is not ours; skipped", self._place, where)

    # --- members ---

    def join(self, channel: str, member_id: str, info: bytes | None) -> None:
        """See `Backplane.join`."""
        if self._sink is not None:
            self._members.join(channel, member_id, info)

    def leave(self, channel: str, member_id: str) -> None:
        """See `Backplane.leave`."""
        if self._sink is not None:
            self._members.leave(channel, member_id)

    def members(self, channel: str) -> Awaitable[dict[str, bytes | None]]:
        """See `Backplane.members`. Soon after the server was started anew it is not known, as others come back, too."""
        self._started()
        return self._members.members(channel)

    # --- what could not be sent ---

    def _leave_unsaid(self, channel: str) -> None:
        if len(self._unsaid) >= _CHANNELS_REMEMBERED:
            self._doubt()
        if not self._all_unsaid:
            self._unsaid.add(channel)

    def _doubt(self) -> None:
        self._all_unsaid = True
        self._unsaid.clear()

    def _not_told(self, channel: str, error: Exception) -> None:
        if not channel or self._sink is None:
            return
        self._leave_unsaid(channel)
        server = self._servers.of(channel)
        if server is not None:
            self._servers.refused(server, error)

    def _say_what_was_lost(self) -> None:
        record = records.lost(self._node)
        if self._all_unsaid:
            server = self._servers.by_partition[0]
            if server is None or server.command is None:
                return

            def answered(reply: Any) -> None:
                if isinstance(reply, Exception):
                    self._doubt()

            packed = pack((self._servers.publish_word, self._servers.global_name, record))
            self._all_unsaid = not ask(server.command, packed, answered)
            return
        unsaid, self._unsaid = self._unsaid, set()
        for channel in unsaid:
            command = self._servers.command_of(channel)
            if command is None or not command.tell(channel, self._routes.publish(channel, record)):
                self._leave_unsaid(channel)

    # --- what happens to the servers ---

    def _commands_up(self, server: Server, again: bool, is_other: bool) -> None:
        self._answered, self._unanswered = [0, 0], [0, 0]
        self._members.commands_up(server, again, is_other)
        self._say_what_was_lost()
        if is_other:
            self._following.interrupted(self._interests.of(server))
        self._following.retry()
        self._interests.begin_unheard()

    def _bus_up(self, server: Server) -> None:
        self._interests.subscribe(self._interests.of(server))

    def _bus_lost(self, server: Server) -> None:
        self._interests.interrupt(self._interests.of(server))

    def _moved(self, before: list[Server | None], partitions: set[int]) -> None:
        """A Cluster has said who has what; some partitions have other servers."""
        self._interests.moved(before, partitions)
        if partitions and any(before):
            self._members.moved(partitions)

    # --- time ---

    def _tick(self, _: object) -> None:
        if self._sink is None:
            return
        self._timer.reschedule(self._tick_s)
        now, limits = self._time(), self._limits
        self._servers.look()
        self._members.tick(self._following.channels)
        if now >= self._next_positions:
            parts = max(1, min(_POSITION_PARTS, int(limits.position_check_s / self._tick_s)))
            self._next_positions = now + limits.position_check_s / parts
            self._position_part += 1
            for channel, place in self._following.places()[self._position_part % parts :: parts]:
                self._histories.check(channel, place)
        if now >= self._next_span:
            self._next_span = now + _SPAN_S
            self._answered = [0, self._answered[0]]
            self._unanswered = [0, self._unanswered[0]]
        if self._unsaid or self._all_unsaid:
            self._say_what_was_lost()
        self._following.retry()
        self._interests.begin_unheard()

    # --- questions ---

    def health(self) -> Health:
        """See `Backplane.health`. The sentence names what is wrong first."""
        if self._sink is None:
            return Health(False, "not started, or closed")
        trouble = self._servers.trouble()
        if trouble:
            return Health(False, trouble)
        if self._servers.thread.lag_s > _LAG_S:
            return Health(False, "what Redis has sent waits for longer than a second to be taken in")
        answered, unanswered = sum(self._answered), sum(self._unanswered)
        if unanswered >= _UNANSWERED and unanswered * 100 > answered + unanswered:
            return Health(False, f"{unanswered} of {answered + unanswered} publishes had no sure answer lately")
        if self._time() - self._refused_at < self._limits.backplane_probe_s:
            return Health(False, f"Redis refuses to write: {self._refused_why}")
        return Health(True, f"connected to {self._place}")

    def stats(self) -> dict[str, int]:
        """What happened since `start`, and what there is now."""
        counts = {
            "published": self._published,
            "published_kept": self._published_kept,
            "received": self._received,
            "poisoned": self._poisoned,
            "catch_ups": 0,
            "dropped": self._dropped,
            "resets": 0,
            "reconnects": 0,
            "timeouts": 0,
            "wrong_role": 0,
        }
        if self._sink is not None:
            servers, following, histories = self._servers, self._following, self._histories
            counts["poisoned"] += self._members.poisoned
            counts |= {
                "catch_ups": histories.catch_ups,
                "resets": histories.resets,
                "reconnects": servers.reconnects,
                "timeouts": servers.timeouts,
                "wrong_role": servers.wrong_role,
                "doubles": following.doubles,
                "gaps": following.gaps,
                "losses": following.losses,
                "channels_subscribed": len(self._interests.channels),
                "nodes": len(self._members),
                "pending_out_bytes": sum(s.command.pending_bytes for s in servers.all if s.command is not None),
                "pending_in_bytes": servers.thread.pending_bytes,
                "bus_lag_ms": int(servers.thread.lag_s * 1_000),
                "worst_bus_lag_ms": int(servers.thread.worst_lag_s * 1_000),
                "unsaid_channels": len(self._unsaid),
            }
        return counts


def _look_at(future: asyncio.Future[Any]) -> None:
    """Nobody may be left to hear of the error."""
    if not future.cancelled():
        future.exception()

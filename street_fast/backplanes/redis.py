"""RedisBackplane: nodes meet on a Redis or Valkey server, alone, behind Sentinels, or a Cluster of them.

What is published without history is delivered here at once, and sent with PUBLISH; with history or a key one script
does everything, and the answer says where it is. PUBLISH is a hint and the stream is the truth: `Following` reads what
the bus has lost. A node subscribes to what it has subscribers for, and to two names of its own affairs.

**Links.** For each server (a Cluster has several) there is a link for commands and one for the bus, each made anew
whenever it ends, for ever, by a task of its own. A link for commands is only used when the server says that it is the
primary. What it says about itself is its *identity*: see ``redis_scripts``.

**What may be lost is told.** A bus that was away is interrupted for all its channels. What this node could not send
while it had no link is announced to the others when it has one. Of a server that was no primary any more nobody knows
what it sent: then it is all channels. The position of each channel is compared with the history now and then.

**Members.** This node writes its own, for 60 s or so, and again before that; a key with a short life says that the node
lives. Each node drops those of whom that key has gone, twice in a row, but not soon after it has reconnected, when
others may not have been back yet.
"""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import functools
import logging
import os
import random
from collections import deque
from typing import TYPE_CHECKING, Any

from redis.exceptions import ResponseError

from street_fast._core import LoopContext
from street_fast.backplanes import Health, OutcomeUnknown, Page, Position, Publication, Published, Unavailable, records
from street_fast.backplanes.following import Following
from street_fast.backplanes.reading import SharedReads, page_of
from street_fast.backplanes.redis_links import (
    Address,
    BusLink,
    BusThread,
    CommandLink,
    NoAnswer,
    NotSent,
    Place,
    WrongCredentials,
    pack,
    parse_info,
    reason_of,
)
from street_fast.backplanes.redis_scripts import (
    MEMBERS_CHANGE,
    MEMBERS_REFRESH,
    MEMBERS_WRITE,
    PARTITIONS,
    PUBLISH,
    READ,
    RESET,
    ROSTER,
    SCRIPTS,
    TELL_ONCE,
    Names,
    Script,
    partition_of,
)
from street_fast.backplanes.roster import OwnMembers, Roster
from street_fast.errors import ConfigurationError
from street_fast.limits import Limits, checked_limits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

    from street_fast._core import Timer
    from street_fast.backplanes import BackplaneSink, History
    from street_fast.backplanes.roster import Change

__all__ = ["RedisBackplane"]

logger = logging.getLogger("street_fast")

_Nodes = dict[str, "tuple[int, dict[str, bytes | None]]"]
"""Version and members of some nodes in one channel."""
_NOT_KEPT = Published(None)
_BACKOFF_S = (0.05, 1.0)
"""Between two tries to connect: the least, and the most, of which a random part is taken."""
_CHANNELS_REMEMBERED = 10_000
"""Names worked out, and channels with something unsent; above it all channels count as such."""
_SUBSCRIBE_AT_ONCE = 512
_READS_AT_ONCE = 100
_MOST_SHARED_EPOCH_S = 43_200.0
_MEMBERS_TTL_FACTOR = 2.4  # how long members stay without being written again, in presence_refresh_s
_RECHECK_S = 0.3
_BACK_S = 2.0  # what the other nodes get to come back to a server that was started anew
_CLOSE_S = 2.0
_TOPOLOGY_S = 30.0
_WAIT_PART = 0.6  # of the time that an answer has: what replicas get
_OVERDUE_S = 10.0
_LAG_S = 1.0
_UNANSWERED = 5  # publishes without an answer on one link, within some 20 s, if they are more than 1 %
_SAY_AGAIN = ("READONLY", "OOM", "NOSCRIPT", "MASTERDOWN", "MISCONF", "NOREPLICAS", "CLUSTERDOWN", "MOVED", "ASK",
              "TRYAGAIN", "BUSY", "NOPERM", "CROSSSLOT", "NOAUTH")  # fmt: skip
"""Errors of Redis after which it has done nothing."""


class _Route:
    """What is worked out once for a channel."""

    __slots__ = ("bus", "keys", "partition", "publish")

    def __init__(self, partition: int, bus: bytes, publish: bytes, keys: tuple[bytes, bytes, bytes]) -> None:
        self.partition = partition
        self.bus = bus
        self.publish = publish  # the command, up to the record
        self.keys = keys  # meta, stream, shared epoch


class _Interest:
    """A channel that this node has subscribed to."""

    __slots__ = ("beginning", "confirmed", "heard", "missed", "placed", "rostered", "waiting")

    def __init__(self) -> None:
        self.confirmed = False  # the bus carries it
        self.beginning = False  # its place is being asked for
        self.placed = False  # and known
        self.rostered = False  # and so are its members
        self.heard = False  # all of that
        self.missed = False  # the bus may have lost something before that
        self.waiting: list[asyncio.Future[None]] = []


class _Shard:
    """One server, and the links to it."""

    def __init__(self, address: Address | None) -> None:
        self.fixed = address  # None: it has to be found
        self.command: CommandLink | None = None
        self.command_address: Address | None = None
        self.bus: BusLink | None = None
        self.bus_run_id = ""
        self.identity = b""
        self.run_id = ""
        self.partitions: list[int] = []
        self.sent: set[str] = set()  # channels for which SUBSCRIBE was sent
        self.unconfirmed: dict[bytes, int] = {}
        self.ended = asyncio.Event()  # the link for commands has
        self.bus_ended = asyncio.Event()
        self.tried: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.error = "not connected yet"
        self.probe_name = b""
        self.probe_number = 0
        self.probe_back = 0
        self.probe_sent_at = 0.0
        self.probe_late = False
        self.kept = 0  # messages that WAIT was not sent for
        self.unwaited: list[Callable[[int | Exception], None]] = []
        self.tasks: list[asyncio.Task[None]] = []

    @property
    def is_up(self) -> bool:
        return self.command is not None and self.bus is not None


class RedisBackplane:
    """A `Backplane` over Redis 6.2 or later, or Valkey; a Cluster has to be of 7 or later.

    `url` is ``redis://[[user]:password@]host[:port][/db]``, ``rediss://`` for TLS, ``redis+sentinel://host,host/service``
    or ``redis+cluster://host,host``. All nodes with the same `prefix` (and database) meet.

    A publish with history is answered when `replicas` of the replicas have it too. `durable` says that the server loses
    nothing that it has answered, whatever happens (appendfsync always, and no failover to a replica that lacks it);
    otherwise all that was kept counts as lost when the server was started anew or promoted, as nobody can know.

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
        self._clustered = self._place.kind == "cluster"
        self._publish_word = b"SPUBLISH" if self._clustered else b"PUBLISH"
        self._subscribe_word = b"SSUBSCRIBE" if self._clustered else b"SUBSCRIBE"
        self._unsubscribe_word = b"SUNSUBSCRIBE" if self._clustered else b"UNSUBSCRIBE"
        shared_s = min(_MOST_SHARED_EPOCH_S, limits.position_ttl_s / 3)
        self._shared_ms = _ms(shared_s)
        self._meta_ms = _ms(limits.position_ttl_s)
        self._key_ms = _ms(limits.publish_key_ttl_s)
        self._most_bytes = b"%d" % limits.history_bytes
        self._members_ms = _ms(limits.presence_refresh_s * _MEMBERS_TTL_FACTOR)
        self._node_ms = _ms(limits.node_ttl_s)
        self._tick_s = max(0.05, min(0.5, limits.backplane_timeout_s / 4, limits.backplane_probe_s / 4))
        self._sink: BackplaneSink | None = None
        self._begin_counting()

    def _begin_counting(self) -> None:
        self._published = self._published_kept = self._received = self._poisoned = 0
        self._timeouts = self._reconnects = self._catch_ups = self._dropped = self._positions_checked = 0
        self._wrong_role = self._resets = 0
        self._answered = [0, 0]  # publishes with an answer, in this span of time and in the one before
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
        self._node = records.new_node_id()
        self._head = b"S1 m %b -\n" % self._node.encode()
        assert records.message(self._node, Publication(b"", None, None)) == self._head
        self._dice = random.Random(os.urandom(16))  # noqa: S311 - tells histories apart, and is no secret
        self._following = Following(sink, self._catch_up)
        self._roster = Roster(sink)
        self._own = OwnMembers()
        self._routes: dict[str, _Route] = {}
        self._interests: dict[str, _Interest] = {}
        self._channel_of: dict[bytes, str] = {}
        self._changed_interests: set[str] = set()
        self._unsaid: set[str] = set()
        self._all_unsaid = False
        self._unwritten: set[str] = set()
        self._members_due = False
        self._keyed: dict[str, deque[Publication | None]] = {}
        self._keyed_waiting: dict[str, int] = {}
        self._to_read: deque[tuple[str, Position]] = deque()
        self._reads = 0
        self._resetting: set[str] = set()
        self._roster_reads: dict[str, bool] = {}  # channels whose members are being read; True: once more
        self._doubtful: set[str] = set()
        self._alive: dict[str, float] = {}
        self._judge_from = self._complete_from = float("-inf")
        self._lived = False
        self._shared_reads = SharedReads(self._fetch)
        self._global_name = self._bus_names.in_partition(0, "g")
        self._home = partition_of(self._node)
        self._alive_name = self._names.in_partition(self._home, f"l:{self._node}")
        self._tasks: set[asyncio.Task[None]] = set()
        now = self._time()
        self._due = {"beat": 0.0, "living": now, "positions": now, "refresh": now, "span": now}
        self._position_turn = 0
        echo = self._head.removesuffix(b"-\n")  # of what is not kept: it was delivered here when it was published
        self._thread = BusThread(self._arrived, self._limits.backplane_pending_bytes, echo)
        self._shards: list[_Shard | None] = [None] * PARTITIONS
        self._all_shards: list[_Shard] = []
        self._topology_changed = asyncio.Event()
        self._cluster_error = "not connected yet"
        self._said = ""
        self._timer: Timer = context.wheel.schedule(self._tick_s, self._tick)
        if self._clustered:
            tried: asyncio.Future[None] = self._loop.create_future()
            self._spawn(self._keep_topology(tried))
        else:
            shard = self._new_shard(None)
            shard.partitions = [*range(PARTITIONS)]
            self._shards = [shard] * PARTITIONS
            tried = shard.tried
        await asyncio.wait([tried], timeout=self._limits.backplane_timeout_s)

    async def close(self) -> None:
        """End. The members of this node leave."""
        if self._sink is None:
            return
        self._sink = None
        self._timer.cancel()
        self._say_goodbye()
        links = [shard.command for shard in self._all_shards if shard.command is not None]
        deadline = self._loop.time() + min(_CLOSE_S, self._limits.backplane_timeout_s)
        while any(link.up and not link.idle for link in links) and self._loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        self._shared_reads.cancel()
        tasks = [*self._tasks]
        for shard in self._all_shards:
            tasks += shard.tasks
        for task in tasks:
            task.cancel()
        for interest in self._interests.values():
            self._fail_waiting(interest)
        for shard in self._all_shards:
            self._end_bus(shard)
        for link in links:
            link.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(link.closed() for link in links))
        await self._thread.stop()
        self._interests.clear()
        self._all_shards.clear()

    def _spawn(self, coroutine: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("a task of RedisBackplane failed", exc_info=task.exception())

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
            raise Unavailable("this RedisBackplane is not started, or is closed")
        if history is not None or key is not None:
            return self._publish_script(channel, payload, history, key, skip)
        self._published += 1
        route = self._routes.get(channel) or self._new_route(channel)
        head = self._head if skip is None else b"S1 m %b %b\n" % (self._node.encode(), skip.encode())
        shard = self._shards[route.partition]
        command = None if shard is None else shard.command
        packed = b"%b$%d\r\n%b%b\r\n" % (route.publish, len(head) + len(payload), head, payload)
        if command is None or not command.tell(channel, packed):
            self._leave_unsaid(channel)
        if channel in self._interests:
            publication = Publication(payload, None, skip)
            if self._keyed and channel in self._keyed:
                self._keyed[channel].append(publication)  # behind the one with a key that is being answered
            else:
                self._following.deliver(channel, publication)
        return _NOT_KEPT

    def signal(self, channel: str, payload: bytes) -> None:
        """See `Backplane.signal`."""
        if self._sink is None:
            return
        route = self._routes.get(channel) or self._new_route(channel)
        shard = self._shards[route.partition]
        if shard is not None and shard.command is not None:
            record = records.signal(self._node, payload)
            shard.command.tell("", b"%b$%d\r\n%b\r\n" % (route.publish, len(record), record))

    def _new_route(self, channel: str) -> _Route:
        if len(self._routes) >= _CHANNELS_REMEMBERED:
            self._routes.clear()
        bus = self._bus_names.of("b", channel)
        publish = b"*3\r\n$%d\r\n%b\r\n$%d\r\n%b\r\n" % (len(self._publish_word), self._publish_word, len(bus), bus)
        keys = (self._names.of("m", channel), self._names.of("h", channel), self._names.epoch_of(channel))
        route = self._routes[channel] = _Route(partition_of(channel), bus, publish, keys)
        return route

    def _command_of(self, channel: str) -> tuple[_Shard, CommandLink]:
        shard = self._shards[partition_of(channel)]
        if shard is None or shard.command is None:
            raise Unavailable(self._why(shard))
        return shard, shard.command

    def _why(self, shard: _Shard | None) -> str:
        return f"Redis is not there: {self._cluster_error if shard is None else shard.error}"

    def _publish_script(
        self, channel: str, payload: bytes, history: History | None, key: str | None, skip: str | None
    ) -> asyncio.Future[Published]:
        shard, command = self._command_of(channel)
        route = self._routes.get(channel) or self._new_route(channel)
        future: asyncio.Future[Published] = self._loop.create_future()
        future.add_done_callback(_look_at)
        publication = Publication(payload, None, skip)
        if history is None:
            assert key is not None
            packed = _script(
                TELL_ONCE,
                (self._names.key_of(channel, key), route.bus),
                (self._key_ms, self._publish_word, records.message(self._node, publication)),
            )
            self._keyed.setdefault(channel, deque())

            def answered(reply: Any) -> None:
                self._keyed_answered(channel, publication, reply, future)

            try:
                command.ask(packed, answered)
            except NotSent:
                self._forget_keyed(channel)
                raise
            self._keyed_waiting[channel] = self._keyed_waiting.get(channel, 0) + 1
            self._keyed[channel].append(None)
            return future
        tag = b"%016x" % self._dice.getrandbits(64)
        names = (*route.keys, route.bus) if key is None else (*route.keys, route.bus, self._names.key_of(channel, key))
        packed = _script(
            PUBLISH,
            names,
            (
                shard.identity,
                tag,
                self._shared_ms,
                tag,
                b"%d" % history.size,
                _ms(history.ttl_s),
                self._most_bytes,
                self._meta_ms,
                self._key_ms,
                self._publish_word,
                b"S1 k %b " % self._node.encode(),
                b"-" if skip is None else skip.encode(),
                payload,
            ),
        )

        def kept(reply: Any) -> None:
            self._kept_answered(shard, channel, publication, reply, future)

        command.ask(packed, kept)
        self._published_kept += 1
        shard.kept += 1
        return future

    def _kept_answered(
        self, shard: _Shard, channel: str, publication: Publication, reply: Any, future: asyncio.Future[Published]
    ) -> None:
        if isinstance(reply, Exception):
            self._not_published(shard, reply, future)
            return
        epoch, offset, tag, duplicate = reply
        position = Position(epoch.decode(), int(offset), tag.decode())
        published = Published(position, bool(duplicate))
        if not duplicate and self._sink is not None:
            self._following.acknowledged(channel, publication._replace(position=position))
        if self._replicas:
            shard.unwaited.append(lambda reached: self._reached(reached, published, future))
            return
        self._answered[0] += 1
        if not future.done():
            future.set_result(published)

    def _reached(self, reached: int | Exception, published: Published, future: asyncio.Future[Published]) -> None:
        """What WAIT says."""
        if isinstance(reached, int) and reached >= self._replicas:
            self._answered[0] += 1
            if not future.done():
                future.set_result(published)
            return
        self._unanswered[0] += 1
        if not future.done():
            why = reason_of(reached) if isinstance(reached, Exception) else f"{reached} of {self._replicas} replicas"
            future.set_exception(OutcomeUnknown(f"kept, but perhaps not for good: {why} have answered in time"))

    def _keyed_answered(
        self, channel: str, publication: Publication, reply: Any, future: asyncio.Future[Published]
    ) -> None:
        # What was published behind it meanwhile waits in the queue; None stands for the one that is answered.
        queue = self._keyed[channel]
        queue.popleft()
        self._keyed_waiting[channel] -= 1
        if isinstance(reply, Exception):
            shard = self._shards[partition_of(channel)]
            assert shard is not None
            said = self._not_published(shard, reply, future)
            if isinstance(said, OutcomeUnknown) and self._sink is not None:
                self._following.lost(channel)  # the others may have got it
        else:
            if not reply and self._sink is not None:
                self._following.deliver(channel, publication)
            self._answered[0] += 1
            if not future.done():
                future.set_result(Published(None, bool(reply)))
        while queue and queue[0] is not None:
            behind = queue.popleft()
            if self._sink is not None and behind is not None:
                self._following.deliver(channel, behind)
        self._forget_keyed(channel)

    def _forget_keyed(self, channel: str) -> None:
        if not self._keyed_waiting.get(channel):
            self._keyed_waiting.pop(channel, None)
            self._keyed.pop(channel, None)

    def _not_published(self, shard: _Shard, error: Exception, future: asyncio.Future[Published]) -> Exception:
        """Tells who awaits it, if anybody still does, and returns what it is told."""
        said: Exception
        if isinstance(error, NotSent):
            said = Unavailable(str(error))
        elif isinstance(error, ResponseError) and self._is_refusal(shard, error):
            said = Unavailable(f"Redis refuses ({_kind_of(error)}): {error}")
        else:
            said = OutcomeUnknown(f"it may have been published or not: {reason_of(error)}")
            self._unanswered[0] += 1
        if not future.done():
            future.set_exception(said)
        return said

    def _is_refusal(self, shard: _Shard, error: ResponseError) -> bool:
        """Whether Redis says that it has done nothing; and what has to be done about it."""
        kind = _kind_of(error)
        if kind is None:
            return False
        if kind in ("READONLY", "MASTERDOWN") and shard.command is not None:
            self._wrong_role += 1
            self._all_unsaid = True
            shard.command.fail(Unavailable(f"the server is not the primary any more: {error}"))
        elif kind == "NOSCRIPT" and shard.command is not None:
            self._load_scripts(shard.command)
        elif kind in ("MOVED", "ASK", "CLUSTERDOWN"):
            self._topology_changed.set()
        elif kind in ("OOM", "MISCONF", "NOREPLICAS", "NOPERM"):
            self._refused_at, self._refused_why = self._time(), f"{kind}, {error}"
        return True

    # --- interest ---

    def subscribe(self, channel: str, history: History | None = None) -> Awaitable[None] | None:
        """See `Backplane.subscribe`."""
        if self._sink is None:
            raise Unavailable("this RedisBackplane is not started, or is closed")
        interest = self._interests.get(channel)
        if interest is None:
            interest = self._interests[channel] = _Interest()
            self._following.open(channel, history)
            self._roster.open(channel)
            self._channel_of[(self._routes.get(channel) or self._new_route(channel)).bus] = channel
            self._interest_changed(channel)
            shard = self._shards[partition_of(channel)]
            if history is not None and shard is not None and shard.is_up:
                self._ask_place(shard, channel, interest)
        elif interest.heard:
            return None
        shard = self._shards[partition_of(channel)]
        if shard is None or not shard.is_up:
            interest.missed = True
            raise Unavailable(self._why(shard))
        future: asyncio.Future[None] = self._loop.create_future()
        future.add_done_callback(_look_at)
        interest.waiting.append(future)
        return future

    def unsubscribe(self, channel: str) -> None:
        """See `Backplane.unsubscribe`."""
        if self._sink is None:
            return
        interest = self._interests.pop(channel, None)
        if interest is None:
            return
        self._following.close(channel)
        self._roster.close(channel)
        self._doubtful.discard(channel)
        self._fail_waiting(interest)
        self._interest_changed(channel)

    def _fail_waiting(self, interest: _Interest) -> None:
        waiting, interest.waiting = interest.waiting, []
        for future in waiting:
            if not future.done():
                future.set_exception(Unavailable("the bus does not carry the channel yet"))

    def _interest_changed(self, channel: str) -> None:
        if not self._changed_interests:
            self._loop.call_soon(self._send_interests)
        self._changed_interests.add(channel)

    def _send_interests(self) -> None:
        changed, self._changed_interests = self._changed_interests, set()
        if self._sink is None:
            return
        wanted: dict[int, list[str]] = {}
        unwanted: dict[int, list[str]] = {}
        for channel in changed:
            shard = self._shards[partition_of(channel)]
            interest = self._interests.get(channel)
            partition = partition_of(channel) if self._clustered else 0
            if interest is None:
                if shard is not None and channel in shard.sent:
                    unwanted.setdefault(partition, []).append(channel)
                elif channel not in self._interests:
                    self._channel_of.pop(self._bus_names.of("b", channel), None)
            elif shard is not None and channel not in shard.sent:
                wanted.setdefault(partition, []).append(channel)
            elif shard is not None and not shard.unconfirmed.get(self._bus_names.of("b", channel)):
                self._confirmed(channel, interest)  # it was given up and taken up again in one turn
        for partition, channels in wanted.items():
            shard = self._shards[partition]
            if shard is not None and shard.bus is not None:
                self._subscribe(shard, channels)
        for partition, channels in unwanted.items():
            shard = self._shards[partition]
            assert shard is not None
            names = []
            for channel in channels:
                shard.sent.discard(channel)
                name = self._bus_names.of("b", channel)
                self._channel_of.pop(name, None)
                names.append(name)
            if shard.bus is not None:
                shard.bus.send(pack((self._unsubscribe_word, *names)))

    def _subscribe(self, shard: _Shard, channels: list[str]) -> None:
        """Channels of one server; in a Cluster of one partition."""
        assert shard.bus is not None
        for start in range(0, len(channels), _SUBSCRIBE_AT_ONCE):
            names = []
            for channel in channels[start : start + _SUBSCRIBE_AT_ONCE]:
                shard.sent.add(channel)
                name = self._bus_names.of("b", channel)
                self._channel_of[name] = channel
                shard.unconfirmed[name] = shard.unconfirmed.get(name, 0) + 1
                names.append(name)
            shard.bus.send(pack((self._subscribe_word, *names)))

    def _confirmed(self, channel: str, interest: _Interest) -> None:
        """The bus carries the channel now."""
        interest.confirmed = True
        self._begin(channel, interest)

    def _ask_place(self, shard: _Shard, channel: str, interest: _Interest) -> None:
        """Where a channel with history is at the call of `subscribe`: what is kept after that is delivered."""
        route = self._routes.get(channel) or self._new_route(channel)

        def answered(reply: Any) -> None:
            if self._interests.get(channel) is interest and isinstance(reply, list):
                self._following.begun(channel, _top_of(reply))

        if shard.command is not None:
            _ask(shard.command, self._read_command(shard, route, None, 0), answered)

    def _begin(self, channel: str, interest: _Interest) -> None:
        """The bus carries the channel: ask where it is now, and who is in it."""
        shard = self._shards[partition_of(channel)]
        if interest.beginning or shard is None or shard.command is None:
            return
        interest.rostered = False
        self._read_roster(channel)
        if self._following.history(channel) is None:
            interest.beginning = True
            self._begun(shard, channel, interest, None, None)
            return
        place = self._following.place(channel)
        packed = self._read_command(shard, self._routes.get(channel) or self._new_route(channel), None, 0)
        interest.beginning = _ask(
            shard.command, packed, lambda reply: self._begun(shard, channel, interest, place, reply)
        )

    def _begun(self, shard: _Shard, channel: str, interest: _Interest, place: Position | None, reply: Any) -> None:
        interest.beginning = False
        if self._interests.get(channel) is not interest or not interest.confirmed or self._sink is None:
            return
        if isinstance(reply, Exception):
            if isinstance(reply, ResponseError):
                self._is_refusal(shard, reply)
            self._fail_waiting(interest)
            interest.missed = True  # _tick asks again
            return
        if interest.missed:
            interest.missed = False
            self._following.interrupted([channel])
        elif isinstance(reply, list) and place is not None:
            self._compare(channel, place, _top_of(reply))
        if isinstance(reply, list):
            self._following.begun(channel, _top_of(reply))
        interest.placed = True
        self._hear(interest)

    def _hear(self, interest: _Interest) -> None:
        if not interest.placed or not interest.rostered:
            return
        interest.heard = True
        waiting, interest.waiting = interest.waiting, []
        for future in waiting:
            if not future.done():
                future.set_result(None)

    # --- what the bus brings ---

    def _arrived(self, link: BusLink, message: Any) -> None:
        if self._sink is None:
            return
        if type(message) is not list:
            self._bus_said(link, message)
            return
        kind, name, data = message
        if kind != b"message" and kind != b"smessage":
            self._bus_confirmed(link, kind, name)
            return
        channel = self._channel_of.get(name)
        try:
            record = records.decode(data)
        except ValueError:
            self._poisoned += 1
            return
        self._received += 1
        what, node = record.kind, record.node
        if channel is None:
            self._own_affair(link, name, what, node, record.number)
        elif what == "m":
            if record.publication is not None:
                self._following.arrive(channel, record.publication)
        elif what == "k":
            if record.publication is not None:
                self._following.arrive(channel, record.publication)
        elif node == self._node:
            pass
        elif what == "s":
            if record.publication is not None and channel in self._interests:
                try:
                    self._sink.signalled(channel, record.publication.payload)
                except Exception:
                    logger.exception("the sink of the backplane failed to hear a signal, in channel %r", channel)
        elif what == "p":
            self._alive[node] = self._time()
            if not self._roster.change(channel, node, record.previous, record.number, record.joined, record.left):
                self._read_roster(channel)
        elif what == "r":
            self._alive[node] = self._time()
            self._read_roster(channel)
        elif what == "l":
            self._following.lost(channel)

    def _own_affair(self, link: BusLink, name: bytes, what: str, node: str, number: int) -> None:
        if what == "q":
            for shard in self._all_shards:
                if shard.bus is link and name == shard.probe_name and node == self._node:
                    shard.probe_back = max(shard.probe_back, min(number, shard.probe_number))
                    shard.probe_late = False
        elif what == "l" and name == self._global_name and node != self._node:
            for channel in self._following.channels():
                self._following.lost(channel)

    def _bus_confirmed(self, link: BusLink, kind: bytes, name: bytes) -> None:
        shard = next((shard for shard in self._all_shards if shard.bus is link), None)
        if shard is None:
            return
        if kind == b"sunsubscribe" and name is not None:
            channel = self._channel_of.get(name)
            if channel is not None and channel in shard.sent:  # not our doing: the slot has moved
                shard.sent.discard(channel)
                self._interrupt([channel])
                self._topology_changed.set()
            return
        if kind not in (b"subscribe", b"ssubscribe"):
            return
        left = shard.unconfirmed.get(name, 0) - 1
        if left > 0:
            shard.unconfirmed[name] = left
            return
        shard.unconfirmed.pop(name, None)
        if name == shard.probe_name:
            self._probe(shard)
        channel = self._channel_of.get(name)
        interest = None if channel is None else self._interests.get(channel)
        if channel is not None and interest is not None and channel in shard.sent:
            self._confirmed(channel, interest)

    def _bus_said(self, link: BusLink, message: Any) -> None:
        shard = next((shard for shard in self._all_shards if shard.bus is link), None)
        if shard is None:
            return
        if message is None:
            self._dropped += 1
            self._following.interrupted(
                [channel for channel in self._following.channels() if self._shards[partition_of(channel)] is shard]
            )
            return
        if isinstance(message, ResponseError) and _kind_of(message) in ("MOVED", "ASK", "CLUSTERDOWN", "TRYAGAIN"):
            self._topology_changed.set()
        self._lose_bus(shard, f"the bus has ended: {reason_of(message)}")

    def _lose_bus(self, shard: _Shard, why: str) -> None:
        if shard.bus is None:
            return
        logger.warning("street_fast: Redis %s: %s", shard.bus.address, why)
        shard.error = why
        self._end_bus(shard)
        self._interrupt([channel for channel in self._interests if self._shards[partition_of(channel)] is shard])

    def _end_bus(self, shard: _Shard) -> None:
        if shard.bus is not None:
            shard.bus.close()
            shard.bus = None
        shard.sent.clear()
        shard.unconfirmed.clear()
        shard.bus_ended.set()

    def _interrupt(self, channels: Iterable[str]) -> None:
        """The bus does not carry them any more."""
        for channel in channels:
            interest = self._interests.get(channel)
            if interest is not None:
                interest.confirmed = interest.placed = interest.rostered = interest.heard = False
                interest.missed = True
                self._fail_waiting(interest)

    # --- the history ---

    def read(self, channel: str, history: History, *, since: Position | None, limit: int) -> Awaitable[Page]:
        """See `Backplane.read`. Who asks for the same at once is answered by one read."""
        if limit < 0:
            raise ValueError(f"limit={limit!r}: must be 0 or more")
        if self._sink is None:
            raise Unavailable("this RedisBackplane is not started, or is closed")
        self._command_of(channel)
        return self._shared_reads.read((channel, since, limit))

    async def _fetch(self, wanted: tuple[str, Position | None, int]) -> Page:
        channel, since, limit = wanted
        future: asyncio.Future[Page] = self._loop.create_future()
        self._ask_page(channel, since, limit, future)
        return await future

    def _ask_page(self, channel: str, since: Position | None, limit: int, future: asyncio.Future[Page]) -> None:
        shard, command = self._command_of(channel)
        route = self._routes.get(channel) or self._new_route(channel)

        def answered(reply: Any) -> None:
            if future.done():
                return
            if isinstance(reply, Exception):
                if isinstance(reply, ResponseError):
                    self._is_refusal(shard, reply)
                future.set_exception(Unavailable(f"the history cannot be read: {reason_of(reply)}"))
                return
            try:
                future.set_result(_page(reply, since, limit))
            except ValueError as error:
                self._poisoned += 1
                future.set_exception(Unavailable(f"the history has something that is not ours: {error}"))

        command.ask(self._read_command(shard, route, since, limit), answered)

    def _read_command(self, shard: _Shard, route: _Route, since: Position | None, limit: int) -> bytes:
        words = [shard.identity, b"%016x" % self._dice.getrandbits(64), self._shared_ms, b"%d" % limit]
        if since is not None:
            words += [since.epoch.encode(), b"%d" % since.offset]
        return _script(READ, route.keys, words)

    def _catch_up(self, channel: str, since: Position) -> None:
        """`Following` asks for what came after `since`."""
        self._to_read.append((channel, since))
        if self._reads < _READS_AT_ONCE:
            self._read_next()

    def _read_next(self) -> None:
        while self._to_read and self._reads < _READS_AT_ONCE and self._sink is not None:
            channel, since = self._to_read.popleft()
            if self._following.place(channel) != since:
                continue  # closed meanwhile
            future: asyncio.Future[Page] = self._loop.create_future()
            future.add_done_callback(functools.partial(self._have_read, channel, since))
            self._reads += 1
            self._catch_ups += 1
            try:
                self._ask_page(channel, since, self._limits.recovery_messages, future)
            except Unavailable as error:
                future.set_exception(error)

    def _have_read(self, channel: str, since: Position, future: asyncio.Future[Page]) -> None:
        self._reads -= 1
        failed = future.cancelled() or future.exception() is not None
        if self._sink is None:
            return
        if failed:
            self._following.could_not_read(channel, since)
        else:
            page = future.result()
            top = page.top
            has_less = not page.recovered and top.epoch == since.epoch and top.offset <= since.offset
            if not (has_less and self._reset(channel, since, top)):
                self._resetting.discard(channel)
                self._following.caught_up(channel, since, page)
        self._read_next()

    def _check_position(self, channel: str, place: Position) -> None:
        shard = self._shards[partition_of(channel)]
        if shard is None or shard.command is None:
            return
        route = self._routes.get(channel) or self._new_route(channel)
        self._positions_checked += 1

        def answered(reply: Any) -> None:
            if not isinstance(reply, Exception) and self._sink is not None:
                self._compare(channel, place, _top_of(reply))

        _ask(shard.command, self._read_command(shard, route, None, 0), answered)

    def _compare(self, channel: str, place: Position, top: Position) -> None:
        """`top` is what the history had when this node was at `place`."""
        if top.offset == 0 and place.offset == 0:
            return  # nothing was published yet, and the epoch of such channels ends now and then
        self._following.check(channel, place, top)

    def _reset(self, channel: str, since: Position, top: Position) -> bool:
        """The history ends at `top`, and was at `since` before: another epoch, and then it is read again.

        Others, and clients, may know what it has lost, too. Returns False if that was tried already.
        """
        shard = self._shards[partition_of(channel)]
        if shard is None or shard.command is None or channel in self._resetting:
            return False
        self._resets += 1
        words = (
            shard.identity,
            b"%016x" % self._dice.getrandbits(64),
            self._meta_ms,
            top.epoch.encode(),
            b"%d" % top.offset,
            top.tag.encode(),
        )
        route = self._routes.get(channel) or self._new_route(channel)

        def answered(reply: Any) -> None:
            self._to_read.append((channel, since))
            self._read_next()

        if not _ask(shard.command, _script(RESET, route.keys[:2], words), answered):
            return False
        self._resetting.add(channel)
        return True

    # --- members ---

    def join(self, channel: str, member_id: str, info: bytes | None) -> None:
        """See `Backplane.join`."""
        if self._sink is not None:
            self._own.join(channel, member_id, info)
            self._members_changed()

    def leave(self, channel: str, member_id: str) -> None:
        """See `Backplane.leave`."""
        if self._sink is not None:
            self._own.leave(channel, member_id)
            self._members_changed()

    def _members_changed(self) -> None:
        if not self._members_due and self._own.changed:
            self._members_due = True
            self._loop.call_soon(self._tell_members)

    def _tell_members(self) -> None:
        """What has changed in this turn, to the others."""
        self._members_due = False
        for change in self._own.take():
            self._tell_change(change)

    def _tell_change(self, change: Change) -> None:
        channel = change.channel
        shard = self._shards[partition_of(channel)]
        if shard is None or shard.command is None or channel in self._unwritten:
            self._unwritten.add(channel)
            return
        words = [
            self._node.encode(),
            b"%d" % change.previous,
            b"%d" % change.version,
            self._members_ms,
            self._publish_word,
            records.presence_changed(self._node, change.previous, change.version, change.joined, change.left),
            b"%d" % len(change.left),
            *(member.encode() for member in change.left),
        ]
        for member, info in change.joined.items():
            words += [member.encode(), _info_word(info)]

        def answered(reply: Any) -> None:
            if reply != 1:
                self._unwritten.add(channel)
                self._write_unwritten()

        if not _ask(shard.command, _script(MEMBERS_CHANGE, self._member_keys(channel), words), answered):
            self._unwritten.add(channel)

    def _member_keys(self, channel: str) -> tuple[bytes, bytes, bytes]:
        route = self._routes.get(channel) or self._new_route(channel)
        return self._names.members_of(channel, self._node), self._names.of("n", channel), route.bus

    def _write_unwritten(self) -> None:
        """All members of the channels of which not all is written."""
        channels = [
            channel
            for channel in self._unwritten
            if (shard := self._shards[partition_of(channel)]) is not None and shard.command is not None
        ]
        if not channels:
            return
        known = {channel: (version, members) for channel, version, members in self._own.all()}
        for channel in channels:
            version, members = known.get(channel, (0, {}))
            shard = self._shards[partition_of(channel)]
            assert shard is not None
            assert shard.command is not None
            words = [
                self._node.encode(),
                b"%d" % version,
                self._members_ms,
                self._publish_word,
                records.presence_unknown(self._node),
            ]
            for member, info in members.items():
                words += [member.encode(), _info_word(info)]

            def answered(reply: Any, channel: str = channel) -> None:
                if reply != 1:
                    self._unwritten.add(channel)  # _tick tries again

            if _ask(shard.command, _script(MEMBERS_WRITE, self._member_keys(channel), words), answered):
                self._unwritten.discard(channel)

    def _refresh_members(self) -> None:
        """Write again what would end, and read what others have."""
        for channel, version, _ in [*self._own.all()]:
            shard = self._shards[partition_of(channel)]
            if shard is None or shard.command is None:
                continue
            words = (self._node.encode(), b"%d" % version, self._members_ms)

            def answered(reply: Any, channel: str = channel) -> None:
                if reply == 0:
                    self._unwritten.add(channel)
                    self._write_unwritten()

            _ask(shard.command, _script(MEMBERS_REFRESH, self._member_keys(channel)[:2], words), answered)
        for channel in self._interests:
            self._read_roster(channel)

    def members(self, channel: str) -> Awaitable[dict[str, bytes | None]]:
        """See `Backplane.members`. Soon after the server was started anew it is not known, as others come back, too."""
        if self._sink is None:
            raise Unavailable("this RedisBackplane is not started, or is closed")
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

    def _read_roster(self, channel: str) -> None:
        """Who is in a channel of this node on the other nodes."""
        if channel in self._roster_reads:
            self._roster_reads[channel] = True
            return
        if channel not in self._interests:
            return
        mark = self._roster.mark()

        def answered(nodes: _Nodes | Exception) -> None:
            again = self._roster_reads.pop(channel, False)
            if isinstance(nodes, Exception):
                self._doubtful.add(channel)
                return
            self._roster.read(channel, nodes, mark, lambda _: self._time() < self._judge_from)
            if again:  # what is known may be older than what is wanted
                self._read_roster(channel)
                return
            interest = self._interests.get(channel)
            if interest is not None and not interest.rostered and interest.confirmed:
                interest.rostered = True
                self._hear(interest)

        self._roster_reads[channel] = False
        try:
            self._ask_roster(channel, answered)
        except Unavailable:
            del self._roster_reads[channel]

    def _ask_roster(self, channel: str, answered: Callable[[_Nodes | Exception], None]) -> None:
        """`answered` gets the other nodes that live, and have members in a channel. Raises Unavailable."""
        _, command = self._command_of(channel)
        before = self._names.in_partition(partition_of(channel), "p:")
        words = (before, b":" + channel.encode(), self._node.encode())

        def heard(reply: Any) -> None:
            if self._sink is None:
                answered(Unavailable("this RedisBackplane is closed"))
                return
            if isinstance(reply, Exception):
                answered(reply)
                return
            nodes: _Nodes = {}
            try:
                for node, flat in zip(reply[::2], reply[1::2], strict=True):
                    fields = dict(zip(flat[::2], flat[1::2], strict=True))
                    version = int(fields.pop(b""))
                    nodes[node.decode()] = (version, {name.decode(): _info_of(info) for name, info in fields.items()})
            except (ValueError, KeyError) as error:
                self._poisoned += 1
                answered(error)
                return
            self._without_dead(channel, nodes, answered)

        command.ask(_script(ROSTER, (self._names.of("n", channel),), words), heard)

    def _without_dead(self, channel: str, nodes: _Nodes, answered: Callable[[_Nodes | Exception], None]) -> None:
        now = self._time()
        unsure = [node for node in nodes if now - self._alive.get(node, float("-inf")) > self._limits.node_ttl_s / 4]

        def judged(dead: set[str]) -> None:
            if self._sink is None:
                answered(Unavailable("this RedisBackplane is closed"))
                return
            if self._time() < self._judge_from:
                dead = set()
            if dead and channel in self._interests:
                self._doubtful.add(channel)
            answered({node: there for node, there in nodes.items() if node not in dead})

        self._ask_living(unsure, judged)

    # --- who lives ---

    def _ask_living(self, nodes: list[str], judged: Callable[[set[str]], None]) -> None:
        """`judged` gets those whose key has gone; or nothing, if that cannot be known now."""
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
            home = partition_of(node)
            shard = self._shards[home]
            packed = pack((b"EXISTS", self._names.in_partition(home, f"l:{node}")))
            hear = lambda reply, node=node: answered(node, reply)  # noqa: E731
            if shard is None or shard.command is None or not _ask(shard.command, packed, hear):
                answered(node, None)

    def _look_who_lives(self) -> None:
        nodes = self._roster.nodes()
        for node in self._alive.keys() - nodes:
            if self._time() - self._alive[node] > self._limits.node_ttl_s:
                del self._alive[node]
        doubtful, self._doubtful = self._doubtful, set()
        for channel in doubtful:
            self._read_roster(channel)
        if self._time() < self._judge_from:
            return

        def again(dead: set[str]) -> None:
            if dead and self._sink is not None:
                self._loop.call_later(_RECHECK_S, self._look_again, [*dead])

        self._ask_living([*nodes], again)

    def _look_again(self, nodes: list[str]) -> None:
        """Those whose key is gone still are dead."""

        def drop(dead: set[str]) -> None:
            if self._sink is not None and self._time() >= self._judge_from:
                for node in dead:
                    self._roster.drop_node(node)

        if self._sink is not None:
            self._ask_living(nodes, drop)

    def _beat(self) -> None:
        """This node lives."""
        shard = self._shards[self._home]
        if shard is None or shard.command is None:
            return

        def answered(reply: Any) -> None:
            if reply == 0 and self._sink is not None:
                if self._lived:  # it did not run for a while, and the others have dropped it
                    self._unwritten.update(channel for channel, _, _ in self._own.all())
                    self._write_unwritten()
                self._set_alive()

        _ask(shard.command, pack((b"PEXPIRE", self._alive_name, self._node_ms)), answered)

    def _set_alive(self) -> None:
        shard = self._shards[self._home]
        if shard is None or shard.command is None:
            return

        def answered(reply: Any) -> None:
            self._lived = self._lived or not isinstance(reply, Exception)

        _ask(shard.command, pack((b"SET", self._alive_name, b"1", b"PX", self._node_ms)), answered)

    def _say_goodbye(self) -> None:
        for channel, _, members in [*self._own.all()]:
            for member in [*members]:
                self._own.leave(channel, member)
        self._tell_members()
        shard = self._shards[self._home]
        if shard is not None and shard.command is not None:
            _ask(shard.command, pack((b"DEL", self._alive_name)), _ignore)

    # --- what could not be sent ---

    def _leave_unsaid(self, channel: str) -> None:
        if len(self._unsaid) >= _CHANNELS_REMEMBERED:
            self._all_unsaid = True
            self._unsaid.clear()
        if not self._all_unsaid:
            self._unsaid.add(channel)

    def _not_told(self, channel: str, error: Exception) -> None:
        if not channel or self._sink is None:
            return
        self._leave_unsaid(channel)
        if isinstance(error, ResponseError):
            shard = self._shards[partition_of(channel)]
            if shard is not None:
                self._is_refusal(shard, error)

    def _say_what_was_lost(self) -> None:
        record = records.lost(self._node)
        if self._all_unsaid:
            shard = self._shards[0]
            if shard is None or shard.command is None:
                return
            if shard.command.tell("", pack((self._publish_word, self._global_name, record))):
                self._all_unsaid = False
                self._unsaid.clear()
            return
        unsaid, self._unsaid = self._unsaid, set()
        for channel in unsaid:
            shard = self._shards[partition_of(channel)]
            route = self._routes.get(channel) or self._new_route(channel)
            command = None if shard is None else shard.command
            packed = b"%b$%d\r\n%b\r\n" % (route.publish, len(record), record)
            if command is None or not command.tell(channel, packed):
                self._leave_unsaid(channel)

    # --- links ---

    def _new_shard(self, address: Address | None) -> _Shard:
        shard = _Shard(address)
        self._all_shards.append(shard)
        for coroutine in (self._keep_commands(shard), self._keep_bus(shard)):
            task = self._spawn(coroutine)
            shard.tasks.append(task)
        return shard

    async def _keep_commands(self, shard: _Shard) -> None:
        tries = 0
        while True:
            shard.ended.clear()
            try:
                address = shard.fixed or await self._find()
                link, info = await self._connect(shard, address)
            except Unavailable as error:
                self._report(shard, error)
                if not shard.tried.done():
                    shard.tried.set_result(None)
                if self._clustered:
                    self._topology_changed.set()
                tries += 1
                await self._pause(tries)
                continue
            tries = 0
            self._commands_up(shard, address, link, info)
            await shard.ended.wait()
            await self._pause(1)

    async def _pause(self, tries: int) -> None:
        least, most = _BACKOFF_S
        await asyncio.sleep(min(most, least * 2 ** min(tries - 1, 10)) * self._dice.uniform(0.5, 1.0))

    def _report(self, shard: _Shard, error: Exception) -> None:
        """Each reason once, until it changes."""
        shard.error = str(error)
        said = f"{type(error).__name__} {error}"
        if said != self._said:
            self._said = said
            level = logging.ERROR if isinstance(error, WrongCredentials) else logging.WARNING
            logger.log(level, "street_fast: no connection to Redis (%s): %s; it is tried again", self._place, error)

    async def _find(self) -> Address:
        """The primary."""
        if self._place.kind == "single":
            return self._place.seeds[0]
        errors = []
        for seed in self._place.seeds:
            try:
                connection = await self._place.connect(seed, self._limits.backplane_timeout_s, sentinel=True)
            except Unavailable as error:
                errors.append(str(error))
                continue
            link = self._link(connection, lambda *_: None)
            try:
                name = self._place.service.encode()
                found = await link.call(b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", name)
                if found is not None:
                    return Address(found[0].decode(), int(found[1]))
                errors.append(f"{seed} knows no service {self._place.service!r}")
            except (Unavailable, ResponseError) as error:
                errors.append(f"{seed}: {reason_of(error)}")
            finally:
                link.close()
                await link.closed()
        raise Unavailable("no sentinel knows the primary: " + "; ".join(errors))

    def _link(self, connection: Any, ended: Callable[[CommandLink, Exception], None]) -> CommandLink:
        limits = self._limits
        return CommandLink(
            connection, limits.backplane_timeout_s, limits.backplane_pending_bytes, self._time, self._not_told, ended
        )

    async def _connect(self, shard: _Shard, address: Address) -> tuple[CommandLink, dict[str, str]]:
        timeout_s = self._limits.backplane_timeout_s
        connection = await self._place.connect(address, timeout_s)
        link = self._link(connection, lambda link, error: self._commands_ended(shard, link, error))
        try:
            asked = [link.call(b"INFO", section) for section in (b"server", b"replication", b"memory", b"persistence")]
            loaded = [link.call(b"SCRIPT", b"LOAD", script.source) for script in SCRIPTS]
            info: dict[str, str] = {}
            for part in await asyncio.wait_for(asyncio.gather(*asked), timeout_s):
                info |= parse_info(part)
            why = _unfit(info)
            if why:
                raise Unavailable(f"{address} {why}")
            await asyncio.wait_for(asyncio.gather(*loaded), timeout_s)
        except BaseException as error:
            link.close()
            await link.closed()
            if isinstance(error, Unavailable):
                raise
            if isinstance(error, asyncio.TimeoutError | ResponseError | OSError):
                raise Unavailable(f"{address} does not answer as it should: {reason_of(error)}") from None
            raise
        return link, info

    def _load_scripts(self, link: CommandLink) -> None:
        for script in SCRIPTS:
            _ask(link, pack((b"SCRIPT", b"LOAD", script.source)), _ignore)

    def _identity_of(self, info: dict[str, str]) -> bytes:
        if self._durable:
            return b""
        return f"{info.get('run_id', '')}-{info.get('master_replid', '')}".encode()

    def _commands_up(self, shard: _Shard, address: Address, link: CommandLink, info: dict[str, str]) -> None:
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction" and info.get("maxmemory", "0") != "0":
            logger.warning(
                "street_fast: Redis %s forgets keys when its memory is full (maxmemory-policy %s): history may be "
                "lost, also without anybody being told; set it to noeviction", address, policy
            )  # fmt: skip
        again = bool(shard.run_id)
        identity = self._identity_of(info)
        is_other = again and identity != shard.identity
        if again and info.get("run_id", "") != shard.run_id:
            self._complete_from = self._time() + _BACK_S
        shard.identity, shard.run_id = identity, info.get("run_id", "")
        shard.command, shard.command_address = link, address
        if self._replicas:
            link.before_write = lambda: self._wait_for_replicas(shard, link)
        self._said = ""
        self._answered, self._unanswered = [0, 0], [0, 0]
        now = self._time()
        if again or int(info.get("uptime_in_seconds", "0")) < self._limits.node_ttl_s:
            self._judge_from = now + self._limits.node_ttl_s
        if again:
            self._reconnects += 1
            logger.info("street_fast: connected to Redis %s again", address)
        # Members first: who sees that this node lives finds all of them.
        if again or self._lived:
            self._unwritten.update(channel for channel, _, _ in self._own.all())
        self._write_unwritten()
        if self._shards[self._home] is shard:
            self._set_alive()
        self._say_what_was_lost()
        if shard.bus is not None and (shard.bus_run_id != shard.run_id or shard.bus.address != address):
            self._lose_bus(shard, "the primary is another one")
        if is_other:
            self._following.interrupted(
                [channel for channel in self._following.channels() if self._shards[partition_of(channel)] is shard]
            )
        self._following.retry()
        self._begin_all()
        shard.bus_ended.set()  # the bus may be tried at once

    def _commands_ended(self, shard: _Shard, link: CommandLink, error: Exception) -> None:
        if shard.command is not link:
            return
        shard.command = None
        self._report(shard, error)
        shard.ended.set()

    async def _keep_bus(self, shard: _Shard) -> None:
        tries = 0
        while True:
            shard.bus_ended.clear()
            if shard.command is None or shard.command_address is None:
                await shard.bus_ended.wait()
                continue
            link = BusLink(self._thread, self._place, shard.command_address, self._limits.backplane_timeout_s)
            try:
                info = await link.open()
                if info.get("run_id", "") != shard.run_id:
                    raise Unavailable(f"{link.address} is another server than a moment ago")
            except Unavailable as error:
                link.close()
                self._report(shard, error)
                if not shard.tried.done():
                    shard.tried.set_result(None)
                tries += 1
                await self._pause(tries)
                continue
            except BaseException:
                link.close()
                raise
            tries = 0
            self._bus_up(shard, link)
            while shard.bus is link:
                await shard.bus_ended.wait()
                shard.bus_ended.clear()
            await self._pause(1)

    def _bus_up(self, shard: _Shard, link: BusLink) -> None:
        shard.bus, shard.bus_run_id = link, shard.run_id
        self._reconnects += shard.probe_number > 0
        partition = shard.partitions[0] if shard.partitions else 0
        shard.probe_name = self._bus_names.in_partition(partition, f"q:{self._node}")
        shard.probe_back = shard.probe_number
        shard.probe_number += 1  # to come back of the first one, which is sent when the bus is known to carry it
        shard.probe_sent_at = self._time()
        shard.probe_late = False
        link.send(pack((self._subscribe_word, shard.probe_name)))
        if self._shards[0] is shard:
            link.send(pack((self._subscribe_word, self._global_name)))
        by_partition: dict[int, list[str]] = {}
        for channel in self._interests:
            partition = partition_of(channel)
            if self._shards[partition] is shard:
                by_partition.setdefault(partition if self._clustered else 0, []).append(channel)
        for channels in by_partition.values():
            self._subscribe(shard, channels)
        shard.error = ""
        if not shard.tried.done():
            shard.tried.set_result(None)

    def _begin_all(self) -> None:
        """Ask for the channels that the bus carries, and whose place is not known."""
        for channel, interest in [*self._interests.items()]:
            if not interest.confirmed or interest.beginning:
                continue
            if not interest.placed:
                self._begin(channel, interest)
            elif not interest.rostered:
                self._read_roster(channel)

    def _wait_for_replicas(self, shard: _Shard, link: CommandLink) -> None:
        """Before what has gathered is written: WAIT, once for all that is kept in it."""
        if not shard.kept:
            return

        def answered(reply: Any) -> None:
            unwaited, shard.unwaited = shard.unwaited, []
            for hear in unwaited:
                hear(reply)

        timeout_ms = _ms(self._limits.backplane_timeout_s * _WAIT_PART)
        if _ask(link, pack((b"WAIT", b"%d" % self._replicas, timeout_ms)), answered):
            shard.kept = 0

    # --- time ---

    def _tick(self, _: object) -> None:
        if self._sink is None:
            return
        self._timer.reschedule(self._tick_s)
        now, limits = self._time(), self._limits
        for shard in [*self._all_shards]:
            self._look_at_shard(shard, now)
        if self._is_due("beat", limits.node_beat_s):
            self._beat()
        if self._is_due("living", limits.node_ttl_s / 6):
            self._look_who_lives()
        if self._is_due("refresh", limits.presence_refresh_s):
            self._refresh_members()
        turns = max(1, min(25, int(limits.position_check_s / self._tick_s)))
        if self._is_due("positions", limits.position_check_s / turns):
            self._position_turn += 1
            for number, (channel, place) in enumerate(self._following.places()):
                if number % turns == self._position_turn % turns:
                    self._check_position(channel, place)
        if self._is_due("span", 10.0):
            self._answered = [0, self._answered[0]]
            self._unanswered = [0, self._unanswered[0]]
        if self._unsaid or self._all_unsaid:
            self._say_what_was_lost()
        if self._unwritten:
            self._write_unwritten()
        self._following.retry()
        self._begin_all()

    def _is_due(self, what: str, every_s: float) -> bool:
        now = self._time()
        if now < self._due[what]:
            return False
        self._due[what] = now + every_s
        return True

    def _look_at_shard(self, shard: _Shard, now: float) -> None:
        if shard.command is not None and shard.command.is_late(now):
            self._timeouts += 1
            shard.command.fail(NoAnswer(f"no answer within {self._limits.backplane_timeout_s} s"))
        if shard.command is None or shard.bus is None:
            return
        if shard.probe_back < shard.probe_number and now - shard.probe_sent_at > self._limits.backplane_probe_s:
            if shard.probe_late:  # at the second look: what had come already was taken in between
                self._lose_bus(shard, f"a probe did not come back within {self._limits.backplane_probe_s} s")
            shard.probe_late = True
        elif now - shard.probe_sent_at >= self._limits.backplane_probe_s:
            self._probe(shard)

    def _probe(self, shard: _Shard) -> None:
        """Send something through the bus, and ask the server whether it still is what it was."""
        if shard.command is None:
            return
        link = shard.command
        shard.probe_number += 1
        shard.probe_sent_at = self._time()
        record = records.probe(self._node, shard.probe_number)
        link.tell("", pack((self._publish_word, shard.probe_name, record)))

        def answered(reply: Any) -> None:
            if isinstance(reply, Exception) or shard.command is not link or self._sink is None:
                return
            info = parse_info(reply)
            why = _unfit(info)
            if not why and self._identity_of(info | {"run_id": shard.run_id}) != shard.identity:
                why = "was promoted"
            if why:
                self._wrong_role += 1
                self._all_unsaid = True
                link.fail(Unavailable(f"{shard.command_address} {why}"))
                self._lose_bus(shard, "the primary may be another one")

        _ask(link, pack((b"INFO", b"replication")), answered)

    # --- the servers of a Cluster ---

    async def _keep_topology(self, tried: asyncio.Future[None]) -> None:
        tries = 0
        while True:
            self._topology_changed.clear()
            try:
                self._use_topology(await self._ask_topology())
                tries = 0
            except Unavailable as error:
                self._cluster_error = str(error)
                tries += 1
            if not tried.done():
                first = [shard.tried for shard in self._all_shards]
                if first:
                    await asyncio.wait(first, timeout=self._limits.backplane_timeout_s)
                tried.set_result(None)
            await self._pause(tries + 2)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._topology_changed.wait(), 1.0 if tries else _TOPOLOGY_S)

    async def _ask_topology(self) -> list[Address]:
        """The primary of each partition."""
        known = [shard.fixed for shard in self._all_shards if shard.command is not None and shard.fixed is not None]
        errors = []
        for address in dict.fromkeys([*known, *self._place.seeds]):
            try:
                connection = await self._place.connect(address, self._limits.backplane_timeout_s)
            except Unavailable as error:
                errors.append(str(error))
                continue
            link = self._link(connection, lambda *_: None)
            try:
                slots = await asyncio.wait_for(link.call(b"CLUSTER", b"SLOTS"), self._limits.backplane_timeout_s)
                return _partition_addresses(slots, address)
            except (Unavailable, ResponseError, asyncio.TimeoutError, ValueError, LookupError) as error:
                errors.append(f"{address}: {reason_of(error)}")
            finally:
                link.close()
                await link.closed()
        raise Unavailable("no server of the Cluster says who has what: " + "; ".join(errors))

    def _use_topology(self, addresses: list[Address]) -> None:
        shards = {shard.fixed: shard for shard in self._all_shards}
        before = [*self._shards]
        for partition, address in enumerate(addresses):
            shard = shards.get(address)
            if shard is None:
                shard = shards[address] = self._new_shard(address)
            self._shards[partition] = shard
        moved = {partition for partition in range(PARTITIONS) if before[partition] is not self._shards[partition]}
        for shard in [*self._all_shards]:
            shard.partitions = [number for number, owner in enumerate(self._shards) if owner is shard]
            if not shard.partitions:
                self._drop_shard(shard)
            elif shard.bus is not None and partition_outside(shard, self._bus_names, self._node):
                self._lose_bus(shard, "its slots have moved")
        again: dict[int, list[str]] = {}
        for channel, interest in self._interests.items():
            partition = partition_of(channel)
            owner = self._shards[partition]
            if partition in moved:
                old = before[partition]
                if old is not None and channel in old.sent:
                    old.sent.discard(channel)
                if old is not None:
                    self._interrupt([channel])
                else:
                    interest.missed = interest.missed or interest.heard
            if owner is not None and owner.bus is not None and channel not in owner.sent:
                again.setdefault(partition, []).append(channel)
        for partition, channels in again.items():
            owner = self._shards[partition]
            assert owner is not None
            self._subscribe(owner, channels)
        if moved and any(before):
            self._unwritten.update(channel for channel, _, _ in self._own.all() if partition_of(channel) in moved)
            self._judge_from = self._time() + self._limits.node_ttl_s

    def _drop_shard(self, shard: _Shard) -> None:
        self._all_shards.remove(shard)
        for task in shard.tasks:
            task.cancel()
        self._end_bus(shard)
        if shard.command is not None:
            link, shard.command = shard.command, None
            link.close()

    # --- questions ---

    def health(self) -> Health:
        """See `Backplane.health`. The sentence names what is wrong first."""
        if self._sink is None:
            return Health(False, "not started, or closed")
        now = self._time()
        for shard in self._all_shards:
            if not shard.is_up:
                return Health(False, f"not connected to Redis: {shard.error}")
            if shard.probe_back < shard.probe_number and now - shard.probe_sent_at > _OVERDUE_S:
                return Health(False, "what is sent through the bus of Redis does not come back")
        if not self._all_shards or None in self._shards:
            return Health(False, f"not connected to Redis: {self._cluster_error}")
        if self._thread.lag_s > _LAG_S:
            return Health(False, "what Redis has sent waits for longer than a second to be taken in")
        answered, unanswered = sum(self._answered), sum(self._unanswered)
        if unanswered >= _UNANSWERED and unanswered * 100 > answered + unanswered:
            return Health(False, f"{unanswered} of {answered + unanswered} publishes had no sure answer lately")
        if now - self._refused_at < self._limits.backplane_probe_s:
            return Health(False, f"Redis refuses to write: {self._refused_why}")
        return Health(True, f"connected to {self._place}")

    def stats(self) -> dict[str, int]:
        """What happened since `start`, and what there is now."""
        counts = {
            "published": self._published,
            "published_kept": self._published_kept,
            "received": self._received,
            "poisoned": self._poisoned,
            "reconnects": self._reconnects,
            "timeouts": self._timeouts,
            "catch_ups": self._catch_ups,
            "dropped": self._dropped,
            "wrong_role": self._wrong_role,
            "resets": self._resets,
        }
        if self._sink is not None:
            links = [shard.command for shard in self._all_shards if shard.command is not None]
            counts |= {
                "doubles": self._following.doubles,
                "gaps": self._following.gaps,
                "losses": self._following.losses,
                "channels_subscribed": len(self._interests),
                "nodes": len(self._roster.nodes()),
                "pending_out_bytes": sum(link.pending_bytes for link in links),
                "pending_in_bytes": self._thread.pending_bytes,
                "bus_lag_ms": int(self._thread.lag_s * 1_000),
                "worst_bus_lag_ms": int(self._thread.worst_lag_s * 1_000),
                "unsaid_channels": len(self._unsaid),
            }
        return counts


def partition_outside(shard: _Shard, names: Names, node: str) -> bool:
    """Whether the probe of a server goes through a slot that it does not have any more."""
    return all(shard.probe_name != names.in_partition(number, f"q:{node}") for number in shard.partitions)


def _ms(seconds: float) -> bytes:
    return b"%d" % max(1, round(seconds * 1_000))


def _script(script: Script, keys: Iterable[bytes], words: Iterable[bytes]) -> bytes:
    keys = [*keys]
    return pack((b"EVALSHA", script.sha, b"%d" % len(keys), *keys, *words))


def _ask(link: CommandLink, packed: bytes, answered: Callable[[Any], None]) -> bool:
    """Ask, if it can be sent."""
    try:
        link.ask(packed, answered)
    except NotSent:
        return False
    return True


def _ignore(reply: Any) -> None:
    pass


def _look_at(future: asyncio.Future[Any]) -> None:
    """Nobody may be left to hear of the error."""
    if not future.cancelled():
        future.exception()


def _kind_of(error: ResponseError) -> str | None:
    """The word for an error after which nothing was done; None for another error."""
    name = type(error).__name__
    known = {
        "ReadOnlyError": "READONLY", "OutOfMemoryError": "OOM", "NoScriptError": "NOSCRIPT", "MovedError": "MOVED",
        "AskError": "ASK", "TryAgainError": "TRYAGAIN", "ClusterDownError": "CLUSTERDOWN",
        "MasterDownError": "MASTERDOWN", "NoPermissionError": "NOPERM", "ClusterCrossSlotError": "CROSSSLOT",
    }.get(name)  # fmt: skip
    if known is not None:
        return known
    text = str(error)
    return next((kind for kind in _SAY_AGAIN if text.startswith(kind) or f"-{kind} " in text), None)


def _unfit(info: dict[str, str]) -> str:
    """Why a server cannot be used; empty if it can."""
    if info.get("role", "master") != "master":
        return "is a replica, and not the primary"
    if info.get("loading", "0") != "0":
        return "is loading its data"
    return ""


def _top_of(reply: list[Any]) -> Position:
    return Position(reply[0].decode(), int(reply[1]), reply[2].decode())


def _page(reply: list[Any], since: Position | None, limit: int) -> Page:
    """What READ returned."""
    top = _top_of(reply)
    floor = Position.start_of(top.epoch) if int(reply[3]) == top.offset else None
    entries = []
    for data in reply[4:]:
        publication = records.decode(data).publication
        if publication is None:
            raise ValueError("a record in the history has no message")
        entries.append(publication)
    return page_of(entries, top, floor, since, limit)


def _info_word(info: bytes | None) -> bytes:
    return b"" if info is None else b"=" + info


def _info_of(word: bytes) -> bytes | None:
    return word[1:] if word else None


def _partition_addresses(slots: list[Any], asked: Address) -> list[Address]:
    """Who has each partition, from CLUSTER SLOTS. Raises LookupError if somebody is missing."""
    addresses = []
    for partition in range(PARTITIONS):
        slot = binascii.crc_hqx(b"%d" % partition, 0) % 16_384
        for first, last, primary, *_ in slots:
            if first <= slot <= last:
                host = primary[0].decode() if primary[0] else asked.host
                addresses.append(Address(asked.host if host in ("", "?") else host, int(primary[1])))
                break
        else:
            raise LookupError(f"nobody has the slot {slot}")
    return addresses

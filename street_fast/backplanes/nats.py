"""NatsBackplane: nodes meet on a NATS server, or a cluster of them, and JetStream keeps history and keys.

**Subjects.** ``<prefix>.c.<token>`` carries what a channel has: messages as they are published, and what JetStream has
stored, which the server publishes there. A node listens to those of its channels. ``<prefix>.b`` is for all nodes,
``<prefix>.n.<node>.*`` for one, ``<prefix>.w.<token>`` asks who has members in a channel.

**A server that is away.** Messages without history and key are delivered here; the others are told of a loss when it is
back, as they are of what was sent in the last moments before it went and may not have arrived. All else is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
from collections import deque
from typing import TYPE_CHECKING, TypeVar

from street_fast.backplanes import NOT_KEPT, Health, OutcomeUnknown, Publication, Published, Unavailable
from street_fast.backplanes.following import Following
from street_fast.backplanes.nats_history import Histories, Pending, channel_of, epoch_of, publications_in, token
from street_fast.backplanes.nats_link import Link, header
from street_fast.backplanes.nats_nodes import ALL_SID, OWN_SID, Nodes
from street_fast.backplanes.records import decode, lost, message, new_node_id, signal
from street_fast.errors import ConfigurationError, StreetError
from street_fast.limits import Limits, checked_limits
from street_fast.seldom import Seldom

if TYPE_CHECKING:
    from collections.abc import Awaitable, Coroutine
    from typing import Any

    from street_fast._core import LoopContext
    from street_fast.backplanes import BackplaneSink, History, Page, Position

__all__ = ["NatsBackplane"]

Result = TypeVar("Result")

logger = logging.getLogger("street_fast")

_PREFIX = re.compile(r"[A-Za-z0-9_-]{1,32}")
_MOST_REPLICAS = 5
_FIRST_SID = 10
_TICK_S = 0.25
_START_S = 3.0
_RETRY_TICKS = 2
_BATCH_MESSAGES = 64
_AROUND_A_PAYLOAD = 500  # bytes that a publish takes while it waits
_SIGNALS_HELD = 64
_BATCH_BYTES = 262_144
_REMEMBERED = 10_000  # channels that are to be told of a loss; above it all are
_SUBJECTS = 20_000
_READS = 64
_PROBE_OVERDUE_S = 10.0


class _Opening:
    """A channel that is being subscribed to, and who waits for that."""

    __slots__ = ("missed", "waiting")

    def __init__(self) -> None:
        self.missed = False  # something may have been lost until then
        self.waiting: list[asyncio.Future[None]] = []

    def done(self, error: StreetError | None = None) -> None:
        for future in self.waiting:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)
                    future.exception()


class NatsBackplane:
    """A `Backplane` over NATS.

    `url`: ``nats://host:port``, with ``user:password@`` or ``token@`` before the host, several hosts separated by
    commas; ``tls://`` for TLS. `prefix` begins all subjects and the names of all streams: nodes with the same one meet.
    `replicas`: how many servers of a cluster keep the history (1, 3 or 5). Nothing is done before `start`.

    Raises ConfigurationError for what makes no sense.
    """

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "street_fast",
        replicas: int = 1,
        limits: Limits | None = None,
        context: LoopContext | None = None,
    ) -> None:
        self._limits = checked_limits(limits)
        if not isinstance(prefix, str) or not _PREFIX.fullmatch(prefix):
            raise ConfigurationError(f"prefix={prefix!r}: must be 1 to 32 of the characters A-Z a-z 0-9 _ -")
        if isinstance(replicas, bool) or not isinstance(replicas, int) or not 1 <= replicas <= _MOST_REPLICAS:
            raise ConfigurationError(f"replicas={replicas!r}: must be a whole number from 1 to {_MOST_REPLICAS}")
        self._url = url
        self._prefix = prefix
        self._replicas = replicas
        self._context = context
        self._link = self._new_link()
        self._sink: BackplaneSink | None = None
        self.shown = self._link.shown
        """The servers, without passwords."""

    def _new_link(self) -> Link:
        return Link(self._url, self._limits, self._up, self._down, self._take)

    # --- life ---

    async def start(self, sink: BackplaneSink) -> None:
        """Connect, and return when that has worked or failed for the first time; it is tried for ever.

        Raises RuntimeError if it is started already.
        """
        if self._sink is not None:
            raise RuntimeError("this NatsBackplane is started already; it serves one sink, until close()")
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._node = new_node_id()
        self._own_message = b"S1 m " + self._node.encode() + b" "
        self._link = self._new_link()
        self._histories = Histories(self._link, self._prefix, self._replicas, self._limits, self._node)
        self._following = Following(sink, self._catch_up)
        self._sid = _FIRST_SID
        self._nodes = Nodes(
            self._link,
            self._node,
            self._prefix,
            self._limits,
            sink,
            self._new_sid,
            self._confirmed,
            self._on_beat,
            self._on_heard,
        )
        self._subjects: dict[str, bytes] = {}
        self._sids: dict[str, int] = {}
        self._channels: dict[int, str] = {}
        self._opening: dict[str, _Opening] = {}
        self._confirms: dict[int, list[tuple[str, _Opening]]] = {}
        self._confirming: list[tuple[str, _Opening]] = []
        self._unread: dict[str, _Opening] = {}
        self._boxes: dict[str, deque[Pending]] = {}
        self._boxed_bytes = 0  # about
        self._held: dict[str, list[bytes]] = {}  # signals behind a publish with a key that is not kept
        self._once: dict[tuple[str, str], None] = {}
        self._unsent: set[str] = set()
        self._unsent_all = False
        self._sent: set[str] = set()
        self._sent_before: set[str] = set()
        self._number = 0
        self._to_check: deque[tuple[str, Position]] = deque()
        self._check_credit = 0.0
        self._reads = asyncio.Semaphore(_READS)
        self._tasks: set[asyncio.Task[Any]] = set()
        self.poisoned = 0
        self._say_poisoned = Seldom(logger.warning, self._loop.time)
        self.dropped = 0
        self._link.start()
        self._spawn(self._tick())
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._link.tried.wait(), _START_S)

    async def close(self, *, linger: bool = False) -> None:
        """End, see `Backplane.close`; of what was published and not answered nobody knows."""
        if self._sink is None:
            return
        self._sink = None
        self._nodes.close(linger)
        for channel in self._following.channels():
            self._following.close(channel)
            self._nodes.roster.close(channel)
        tasks = [*self._tasks]
        for task in tasks:
            task.cancel()
        self._histories.close()
        await self._link.close()
        await asyncio.gather(*tasks, return_exceptions=True)
        for opening in [*self._opening.values(), *self._unread.values()]:
            opening.done(Unavailable("this NatsBackplane is closed"))
        for box in self._boxes.values():  # of tasks that were ended before they began
            _fail(box, Unavailable("this NatsBackplane is closed"))

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
        """Publish, see `Backplane.publish`. Without history and key it is answered at once."""
        if self._sink is None:
            raise self._not_started()
        box = self._boxes.get(channel)
        if box is None:
            if history is None and key is None:
                self._send(channel, Publication(payload, None, skip))
                return NOT_KEPT
            if not self._link.up:
                raise Unavailable(f"NATS at {self.shown}: {self._link.trouble}")
        if self._boxed_bytes > self._limits.backplane_pending_bytes:
            raise Unavailable(f"NATS at {self.shown}: too much waits for an answer already")
        if box is None:
            box = self._boxes[channel] = deque()
            if history is None:
                self._held[channel] = []
            self._spawn(self._empty(channel, box))
        self._boxed_bytes += _size_of(payload)
        future: asyncio.Future[Published] = self._loop.create_future()
        box.append(Pending(future, payload, history, key, skip))
        return future

    def signal(self, channel: str, payload: bytes) -> None:
        """Tell the others, if that is possible now."""
        if self._sink is None or not self._link.up:
            return
        record, held = signal(self._node, payload), self._held.get(channel)
        if held is None:
            self._link.publish(self._subject(channel), record)
        elif len(held) < _SIGNALS_HELD:
            held.append(record)

    def subscribe(self, channel: str, history: History | None = None) -> Awaitable[None] | None:
        """Hear the channel, see `Backplane.subscribe`."""
        if self._sink is None:
            raise self._not_started()
        if channel not in self._following:
            self._following.open(channel, history)
            self._nodes.roster.open(channel)
            sid = self._sids[channel] = self._new_sid()
            self._channels[sid] = channel
            if self._link.up:
                self._listen(channel)
                self._open(channel)
        if not self._link.up:
            raise Unavailable(f"NATS at {self.shown}: {self._link.trouble}")
        opening = self._opening.get(channel)
        if opening is None:
            if channel in self._unread:
                raise Unavailable(f"NATS at {self.shown}: JetStream: {self._histories.trouble}")
            return None
        future: asyncio.Future[None] = self._loop.create_future()
        opening.waiting.append(future)
        return future

    def unsubscribe(self, channel: str) -> None:
        """Hear it no more."""
        if self._sink is None or channel not in self._following:
            return
        self._following.close(channel)
        self._nodes.roster.close(channel)
        sid = self._sids.pop(channel)
        del self._channels[sid]
        self._unread.pop(channel, None)
        self._histories.unmark(channel)
        opening = self._opening.pop(channel, None)
        if opening is not None:
            opening.done()
        if self._link.up:
            self._link.send(b"UNSUB %d\r\n" % sid)

    def read(self, channel: str, history: History, *, since: Position | None, limit: int) -> Awaitable[Page]:
        """A page, see `Backplane.read`."""
        if self._sink is None:
            raise self._not_started()
        if limit < 0:
            raise ValueError(f"limit={limit!r}: must be 0 or more")
        if not self._link.up:
            raise Unavailable(f"NATS at {self.shown}: {self._link.trouble}")
        return self._answered(self._read(channel, history, since, limit))

    # --- members ---

    def join(self, channel: str, member_id: str, info: bytes | None) -> None:
        """A member has come to this node."""
        if self._sink is not None:
            self._nodes.join(channel, member_id, info)

    def leave(self, channel: str, member_id: str) -> None:
        """A member has left it."""
        if self._sink is not None:
            self._nodes.leave(channel, member_id)

    def members(self, channel: str) -> Awaitable[dict[str, bytes | None]]:
        """Who is there on the other nodes, see `Backplane.members`: each of them is asked."""
        if self._sink is None:
            raise self._not_started()
        if not self._link.up:
            raise Unavailable(f"NATS at {self.shown}: {self._link.trouble}")
        return self._answered(self._nodes.members(channel))

    # --- questions ---

    def health(self) -> Health:
        """Whether the server is there, brings back what is sent, and JetStream did what was asked last."""
        if self._sink is None:
            return Health(False, "not started, or closed")
        if not self._link.up:
            return Health(False, f"NATS at {self.shown}: {self._link.trouble}")
        if self._nodes.overdue_s() > _PROBE_OVERDUE_S:
            return Health(False, f"NATS at {self.shown}: nothing that is sent comes back")
        if self._histories.trouble:
            return Health(False, f"NATS at {self.shown}: JetStream: {self._histories.trouble}")
        return Health(True, f"NATS at {self.shown}")

    def stats(self) -> dict[str, int]:
        """What is held now, and what has happened since `start`."""
        if self._sink is None:
            return {}
        return {
            "channels_subscribed": len(self._following),
            "nodes": len(self._nodes),
            "reconnects": max(0, self._link.connects - 1),
            "timeouts": self._link.timeouts,
            "poisoned": self.poisoned,
            "doubles": self._following.doubles,
            "gaps": self._following.gaps,
            "losses": self._following.losses,
            "delivered": self._following.delivered,
            "conflicts": self._histories.conflicts,
            "pending_publishes": sum(map(len, self._boxes.values())),
            "pending_out_bytes": self._link.pending_bytes + self._boxed_bytes,
        }

    # --- inside: publishing ---

    def _not_started(self) -> Unavailable:
        return Unavailable("this NatsBackplane is not started, or is closed")

    def _subject(self, channel: str) -> bytes:
        subject = self._subjects.get(channel)
        if subject is None:
            if len(self._subjects) >= _SUBJECTS:
                self._subjects.clear()
            subject = self._subjects[channel] = f"{self._prefix}.c.{token(channel)}".encode()
        return subject

    def _send(self, channel: str, publication: Publication) -> None:
        """Publish what is neither kept nor has a key, and deliver it here. Raises Unavailable."""
        link = self._link
        if link.up:
            record = message(self._node, publication)
            if len(record) > link.max_payload:
                raise Unavailable(f"{len(record)} bytes: the NATS server takes {link.max_payload} (max_payload)")
            link.publish(self._subject(channel), record)
            self._sent.add(channel)
        elif len(self._unsent) < _REMEMBERED:
            self._unsent.add(channel)
        else:
            self._unsent_all = True
        self._following.deliver(channel, publication)

    async def _empty(self, channel: str, box: deque[Pending]) -> None:
        """Publish what is in the box, one after the other, until it is empty."""
        batch: list[Pending] = []
        size = 0
        error: StreetError = OutcomeUnknown("this NatsBackplane was closed meanwhile")
        try:
            while box:
                batch = self._next_batch(box)
                size = sum(_size_of(pending.payload) for pending in batch)
                try:
                    await self._publish(channel, batch)
                except StreetError as refused:
                    _fail(batch, refused)
                except Exception as bug:
                    logger.exception("a publish to channel %r failed", channel)
                    _fail(batch, OutcomeUnknown(f"it failed: {bug!r}"))
                self._boxed_bytes -= size
                batch, size = [], 0
        finally:
            if self._boxes.get(channel) is box:
                del self._boxes[channel]
                for record in self._held.pop(channel, ()):
                    if self._link.up:
                        self._link.publish(self._subject(channel), record)
            _fail(batch, error)
            self._boxed_bytes -= size + sum(_size_of(pending.payload) for pending in box)
            _fail(box, Unavailable("this NatsBackplane is closed"))

    def _next_batch(self, box: deque[Pending]) -> list[Pending]:
        first = box.popleft()
        batch = [first]
        if first.history is not None and first.key is None:
            size = len(first.payload)
            while box and len(batch) < _BATCH_MESSAGES:
                pending = box[0]
                size += len(pending.payload)
                if pending.history != first.history or pending.key is not None or size > _BATCH_BYTES:
                    break
                batch.append(box.popleft())
        return batch

    async def _publish(self, channel: str, batch: list[Pending]) -> None:
        first = batch[0]
        if first.history is not None:
            result = await self._histories.keep(channel, first.history, batch)
            if isinstance(result, Published):
                _answer(first, result)
                return
            for pending, publication in zip(batch, result, strict=True):
                self._following.acknowledged(channel, publication)
                _answer(pending, Published(publication.position))
        elif first.key is not None:
            # It comes back over the bus, perhaps before the answer does, or when nobody waits for that any more.
            if len(self._once) >= _REMEMBERED:
                del self._once[next(iter(self._once))]
            self._once[channel, first.key] = None
            new = await self._histories.once(channel, first)
            if self._once.pop((channel, first.key), self) is None and new:
                self._following.deliver(channel, Publication(first.payload, None, first.skip))
            _answer(first, Published(None, not new))
        else:
            self._send(channel, Publication(first.payload, None, first.skip))
            _answer(first, NOT_KEPT)

    # --- inside: subscribing and reading ---

    def _listen(self, channel: str) -> None:
        self._link.send(b"SUB %b %d\r\n" % (self._subject(channel), self._sids[channel]))

    def _open(self, channel: str) -> None:
        """The server has been told; find out where the channel is, and who is there."""
        history = self._following.history(channel)
        if history is not None:
            opening = self._opening[channel] = _Opening()
            self._spawn(self._find_top(channel, history, opening))
        else:
            self._confirm(channel)
        self._nodes.open(channel)

    def _confirm(self, channel: str) -> _Opening:
        """The server has been told; find out when it has read that."""
        opening = self._opening[channel] = _Opening()
        if not self._confirming:
            self._loop.call_soon(self._confirm_all)
        self._confirming.append((channel, opening))
        return opening

    async def _find_top(self, channel: str, history: History, opening: _Opening) -> None:
        error: StreetError | None = None
        top: Position | None = None
        try:
            async with self._reads:
                top = await self._histories.top(channel, history)
        except StreetError as unavailable:
            error = unavailable
        if self._opening.get(channel) is opening:
            del self._opening[channel]
            if error is None:
                self._following.begun(channel, top)
            elif self._link.up:
                self._unread[channel] = opening
        opening.done(error)

    def _confirm_all(self) -> None:
        """What comes back of this shows that the server has read the subscriptions before it."""
        confirming, self._confirming = self._confirming, []
        if self._link.up:
            self._number += 1
            self._confirms[self._number] = confirming
            self._nodes.confirm(self._number)

    def _confirmed(self, number: int) -> None:
        for channel, opening in self._confirms.pop(number, ()):
            if self._opening.get(channel) is opening:
                del self._opening[channel]
                if opening.missed:
                    self._following.interrupted([channel])
                    self._following.begun(channel, None)
                opening.done()

    async def _read(self, channel: str, history: History, since: Position | None, limit: int) -> Page:
        async with self._reads:
            return await self._histories.read(channel, history, since, limit)

    def _catch_up(self, channel: str, since: Position) -> None:
        self._spawn(self._read_missed(channel, since))

    async def _read_missed(self, channel: str, since: Position) -> None:
        history = self._following.history(channel)
        if history is None:
            return
        try:
            page = await self._read(channel, history, since, history.size)
            if not page.recovered and _is_behind(page.top, since):
                await self._histories.reset(channel, history, since)
                page = await self._read(channel, history, since, 0)
        except StreetError:
            self._following.could_not_read(channel, since)
        except Exception:
            logger.exception("the history of channel %r could not be read", channel)
            self._following.could_not_read(channel, since)
        else:
            self._following.caught_up(channel, since, page)

    async def _check(self, channel: str, place: Position) -> None:
        history = self._following.history(channel)
        if history is None:
            return
        with contextlib.suppress(StreetError):
            async with self._reads:
                top = await self._histories.top(channel, history)
            self._following.check(channel, place, top)

    # --- inside: the connection ---

    def _up(self) -> None:
        link = self._link
        for channel in self._sids:
            self._listen(channel)
        # Before the first beat: when that has come back, this has arrived. Until then it counts as sent.
        self._sent, self._unsent = self._unsent, set()
        if self._unsent_all:
            link.publish(f"{self._prefix}.b".encode(), lost(self._node))
        else:
            for channel in self._sent:
                link.publish(self._subject(channel), lost(self._node))
        self._nodes.connected()
        following, kept = self._following, []
        for channel in following.channels():
            if following.history(channel) is not None:
                kept.append((channel, following.place(channel)))
            else:  # it is told of its loss when the bus carries it, so that nothing is lost after that
                following.cut_off([channel])
                self._confirm(channel).missed = True
        following.interrupted([channel for channel, _ in kept])
        for channel, place in kept:
            if place is None and channel in following:
                self._open(channel)

    def _down(self) -> None:
        self._histories.disconnected()
        self._nodes.disconnected()
        self._once.clear()
        self._confirms.clear()
        self._confirming.clear()
        self._unread.clear()
        opening, self._opening = self._opening, {}
        for waiting in opening.values():
            waiting.done(Unavailable(f"NATS at {self.shown}: the connection ended"))
        self._unsent |= self._sent | self._sent_before
        self._sent, self._sent_before = set(), set()
        if len(self._unsent) > _REMEMBERED:
            self._unsent_all = True

    def _new_sid(self) -> int:
        self._sid += 1
        return self._sid

    def _on_beat(self) -> None:
        """What was sent before this has arrived when it comes back."""
        self._sent_before |= self._sent
        self._sent = set()

    def _on_heard(self) -> None:
        if self._link.up:  # else it is the last that a connection has brought which has ended
            self._sent_before.clear()
            self._unsent_all = False

    async def _tick(self) -> None:
        ticks = 0
        beat_s = min(self._limits.node_beat_s, self._limits.backplane_probe_s)
        while True:
            due = self._loop.time() + _TICK_S
            await asyncio.sleep(_TICK_S)
            now = self._loop.time()
            if not self._link.up:
                continue
            ticks += 1
            if now - self._nodes.beat_at >= beat_s:
                self._nodes.beat()
            if now - due > 1.0:
                continue  # the process stood still: what came meanwhile is read first
            if self._nodes.overdue_s() > self._limits.backplane_probe_s:
                self._link.end("the bus brings nothing back")
                continue
            self._nodes.judge()
            if ticks % _RETRY_TICKS == 0:
                self._try_again()
            self._check_some()

    def _try_again(self) -> None:
        self._following.retry()
        unread, self._unread = self._unread, {}
        for channel in unread:
            self._following.interrupted([channel])
            if channel in self._following:
                self._open(channel)
        if self._histories.trouble:
            self._spawn(self._histories.try_again())

    def _check_some(self) -> None:
        """Compare places with the history, each once in ``Limits.position_check_s``, a few at a time."""
        if not self._to_check:
            self._check_credit = 0.0
            self._to_check.extend((channel, place) for channel, place in self._following.places())
            self._per_tick = len(self._to_check) * _TICK_S / self._limits.position_check_s
        self._check_credit += self._per_tick
        while self._to_check and self._check_credit >= 1:
            self._check_credit -= 1
            channel, _ = self._to_check.popleft()
            place = self._following.place(channel)
            if place is not None:
                self._spawn(self._check(channel, place))

    # --- inside: what the bus brings ---

    def _take(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        channel = self._channels.get(sid)
        if channel is not None:
            if headers is not None or not data.startswith(self._own_message):  # its own were delivered at once
                self._take_channel(channel, data, headers)
            return
        try:
            record = decode(data)
            if sid == OWN_SID:
                self._nodes.take_own(subject.rpartition(b".")[2].decode(), reply, record)
            elif sid == ALL_SID:
                if record.kind == "l" and record.node != self._node:
                    for channel in self._following.channels():
                        self._following.lost(channel)
                self._nodes.take_all(record)
            elif sid in self._nodes.who_channels:
                self._nodes.take_who(self._nodes.who_channels[sid], record)
        except ValueError:
            self._poison()

    def _poison(self) -> None:
        self.poisoned += 1
        self._say_poisoned("NATS at %s: what came under %s.> is not ours; skipped", self.shown, self._prefix)

    def _take_channel(self, channel: str, data: bytes, headers: bytes | None) -> None:
        following = self._following
        try:
            if headers is None:
                record = decode(data)
                if record.kind == "k":
                    raise ValueError("a kept message that does not come from JetStream")
            else:
                epoch = epoch_of(data)
                if epoch is not None:
                    following.interrupted([channel])
                    return
                if data.startswith(b"S1 m"):
                    record = decode(data)
                    if record.node == self._node:
                        if self._once.pop((channel, _key_of(headers)), self) is None:
                            assert record.publication is not None
                            following.deliver(channel, record.publication)
                        return
                else:
                    found = publications_in(data)
                    position = found[-1].position
                    assert position is not None
                    sequence = int(header(headers, b"Nats-Sequence") or b"")
                    self._histories.seen(channel, sequence, position)
                    for publication in found:
                        following.arrive(channel, publication)
                    if following.place(channel) == position:
                        self._histories.mark(channel, sequence, position)
                    return
        except ValueError:
            self._poison()
            return
        if record.node == self._node:
            return
        kind = record.kind
        if kind == "m":
            assert record.publication is not None
            following.arrive(channel, record.publication)
        elif kind == "s":
            assert record.publication is not None
            self._signalled(channel, record.publication.payload)
        elif kind in ("p", "r"):
            self._nodes.take_channel(channel, record)
        elif kind == "l":
            following.lost(channel)

    def _signalled(self, channel: str, payload: bytes) -> None:
        if self._sink is not None:
            try:
                self._sink.signalled(channel, payload)
            except Exception:
                logger.exception("the sink of the backplane failed to take a signal, in channel %r", channel)

    # --- inside: tasks ---

    def _spawn(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _answered(self, coroutine: Coroutine[Any, Any, Result]) -> asyncio.Future[Result]:
        """What it returns or raises; who awaits that may be cancelled, and it goes on."""
        future: asyncio.Future[Result] = self._loop.create_future()

        def done(task: asyncio.Task[Result]) -> None:
            if future.done():
                return
            error = Unavailable("this NatsBackplane was closed meanwhile") if task.cancelled() else task.exception()
            if error is None:
                future.set_result(task.result())
            else:
                future.set_exception(error)
                future.exception()

        self._spawn(coroutine).add_done_callback(done)
        return future

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            if error is not None and not isinstance(error, StreetError):
                logger.error("a task of the backplane failed", exc_info=error)


def _size_of(payload: bytes) -> int:
    return len(payload) + _AROUND_A_PAYLOAD


def _answer(pending: Pending, published: Published) -> None:
    if not pending.future.done():
        pending.future.set_result(published)


def _fail(batch: list[Pending] | deque[Pending], error: StreetError) -> None:
    for pending in batch:
        if not pending.future.done():
            pending.future.set_exception(error)
            pending.future.exception()
    batch.clear()


def _is_behind(top: Position, place: Position) -> bool:
    return top.epoch == place.epoch and top.offset <= place.offset and top != place


def _key_of(headers: bytes) -> str:
    """The key of a message without history that comes back."""
    message_id = header(headers, b"Nats-Msg-Id") or b""
    return channel_of(message_id.partition(b":")[2].decode())

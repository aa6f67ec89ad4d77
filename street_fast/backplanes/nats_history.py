"""What NATS keeps: the history of channels and the keys of publishes, in JetStream.

**Streams.** One for each distinct `History`, with a subject for each channel; so the server ends what is too old or too
much. A message lives an hour longer than its `History` says, and is left out when it is read: the newest one tells
where the channel is. What is stored is published by the server on the subject that the nodes listen to.

**Offsets.** A stream numbers all channels together, and offsets have no holes. So the publisher gives the offset, and
the server stores it only if the newest message of the channel is still the one that the publisher thinks it is
(compare and swap). Whoever loses looks where the channel is now, and tries again. Of each channel one publish is on its
way at a time; what comes meanwhile goes together in the next one.

**Epochs.** A channel without messages stands at the start of an epoch that all channels of the stream share. It is a
message of the stream, on a subject of its own. The server drops the oldest message of the stream first; so as long as
this one is there, no channel whose first message came in its epoch has been forgotten.

**Keys.** The server knows the ids of the messages of the last minutes, and answers a double with the number that the
first one got. Where that is, in epoch and offset, is in that message; and, as the message may be gone sooner than its
key, in a stream of its own. A server that was started anew knows the keys of the messages that are still there.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import datetime as dt
import functools
import itertools
import logging
import os
import re
import urllib.parse
from typing import TYPE_CHECKING, Any

import msgspec

from street_fast.backplanes import OutcomeUnknown, Page, Position, Publication, Published, Unavailable
from street_fast.backplanes.nats_link import header, status
from street_fast.backplanes.reading import SharedReads, page_of
from street_fast.backplanes.records import decode, kept_head, message

if TYPE_CHECKING:
    from collections.abc import Sequence

    from street_fast.backplanes import History
    from street_fast.backplanes.nats_link import Link
    from street_fast.limits import Limits

__all__ = ["Histories", "Pending", "channel_of", "epoch_of", "packed", "publications_in", "token", "unpacked"]

logger = logging.getLogger("street_fast")

_POSITION_S = 3_600.0
_EXPECTED = b"Nats-Expected-Last-Subject-Sequence"
_STEPS_BACK = 16  # to go to a message by its number is cheap, to look for the next one of a channel is not
_READ_BATCH = 1_000
_READ_BYTES = 1_048_576  # at once: the server counts what this node has not taken yet
_TAILS = 10_000
_KEY_BUCKET = 64
_KEY_WAITS = (0.05, 0.1, 0.2, 0.4)
_BEHIND_WAITS = (0.01, 0.05, 0.2, 0.5)
_RETRY_S = 0.05
_NOTE_S = 0.02

_WRONG_SEQUENCE = (10071, 10164)
_NAME_IN_USE = 10058
_STREAM_NOT_FOUND = 10059
_SAME_KEY_IN_PROCESS = 10158
_NO_ROOM = (10002, 10023, 10028, 10047)

_PLAIN = re.compile(r"[A-Za-z0-9_-]+")
_BATCH = re.compile(rb"S1 b((?: (?:0|[1-9][0-9]{0,7})){1,512})")
_EPOCH = re.compile(rb"S1 e ([0-9A-Za-z_-]{1,24})\n")


# --- what is in a message of a stream: one record, several, or the start of an epoch ---


def packed(records: Sequence[bytes]) -> bytes:
    """Several records as one message; a single one is written as it is."""
    if len(records) == 1:
        return records[0]
    return b"S1 b %b\n%b" % (b" ".join(b"%d" % len(record) for record in records), b"".join(records))


def unpacked(data: bytes) -> list[bytes]:
    """The records in a message. Raises ValueError for a head that does not fit."""
    if not data.startswith(b"S1 b"):
        return [data]
    head, _, body = data.partition(b"\n")
    match = _BATCH.fullmatch(head)
    sizes = [int(size) for size in match[1].split()] if match is not None else []
    if match is None or sum(sizes) != len(body):
        raise ValueError(f"no batch of records: {data[:40]!r}")
    records, start = [], 0
    for size in sizes:
        records.append(body[start : start + size])
        start += size
    return records


def epoch_of(data: bytes) -> str | None:
    """The epoch that begins with this message; None if it is none of that kind."""
    match = _EPOCH.fullmatch(data)
    return None if match is None else match[1].decode()


def token(name: str) -> str:
    """A name as one token of a subject; no two names give the same. ``=`` alone is none of them."""
    if _PLAIN.fullmatch(name):
        return name
    return "".join(
        chr(byte) if (chr(byte).isalnum() and byte < 128) or byte in b"_-" else f"={byte:02X}"
        for byte in name.encode("utf-8", "surrogatepass")
    )


def channel_of(text: str) -> str:
    """The name that this `token` stands for."""
    return urllib.parse.unquote(text.replace("=", "%"), errors="surrogatepass")


# --- inside ---


class _Ack(msgspec.Struct):
    seq: int = 0
    duplicate: bool = False
    error: _Error | None = None


class _Error(msgspec.Struct):
    code: int = 0
    err_code: int = 0
    description: str = ""


class _Stored(msgspec.Struct):
    subject: str
    seq: int
    time: str
    data: str = ""
    hdrs: str = ""


class _Answer(msgspec.Struct):
    error: _Error | None = None
    ts: str = ""
    message: _Stored | None = None


_ack = msgspec.json.Decoder(_Ack).decode
_answer = msgspec.json.Decoder(_Answer).decode
_json = msgspec.json.Encoder().encode

_Message = tuple[int, bytes, float, int]
"""Sequence, data and time of a stored message, and the sequence of the one before it in its channel (0: unknown)."""
_Kept = tuple[list[Publication], Position, "Position | None"]
"""What is kept of a channel, oldest first; the position of its newest message; and that before the first one here."""


class _Refused(Exception):
    """The server has answered, and has not done it."""

    def __init__(self, error: _Error) -> None:
        super().__init__(error.description)
        self.err_code = error.err_code
        last = error.description.rpartition(" ")[2]
        self.sequence = int(last) if last.isdigit() else 0
        """Of the newest message, if that is what it was about."""


class _NoStream(Exception):
    """Nobody has answered: there is no such stream, or no JetStream."""


class _Stream:
    """One stream. `ready` is None as long as it is not known to exist."""

    __slots__ = ("ahead_s", "config", "name", "ready", "subject")

    def __init__(self, name: str, subject: str, config: dict[str, Any]) -> None:
        self.name = name
        self.subject = subject
        """What stands before the token of the channel."""
        self.config = config
        self.ready: asyncio.Task[None] | None = None
        self.ahead_s = 0.0
        """The clock of the server, minus that of the loop."""


class Pending:
    """A publish that waits for its turn, and who waits for it."""

    __slots__ = ("future", "history", "key", "payload", "skip")

    def __init__(
        self,
        future: asyncio.Future[Published],
        payload: bytes,
        history: History | None,
        key: str | None,
        skip: str | None,
    ) -> None:
        self.future = future
        self.payload = payload
        self.history = history
        self.key = key
        self.skip = skip


class Histories:
    """What one node writes to JetStream, and reads there."""

    def __init__(self, link: Link, prefix: str, replicas: int, limits: Limits, node: str) -> None:
        self._link = link
        self._prefix = prefix
        self._replicas = replicas
        self._limits = limits
        self._node = node
        self._streams: dict[History, _Stream] = {}
        key_ttl_s = limits.publish_key_ttl_s
        bytes_total = limits.history_total_bytes
        self._keys = _Stream(
            f"{prefix}_keys",
            f"{prefix}.y.",
            self._config(f"{prefix}_keys", f"{prefix}.y.>", key_ttl_s + 60, max_bytes=bytes_total),
        )
        self._live = _Stream(
            f"{prefix}_live",
            f"{prefix}.o.",
            self._config(
                f"{prefix}_live",
                f"{prefix}.o.*",
                key_ttl_s,
                max_msgs=limits.publish_keys,
                max_bytes=bytes_total,
                duplicate_window=_ns(key_ttl_s),
                republish={"src": f"{prefix}.o.*", "dest": f"{prefix}.c.{{{{wildcard(1)}}}}"},
            ),
        )
        self._tails: dict[str, tuple[int, Position]] = {}
        self._marks: dict[str, tuple[int, Position]] = {}
        self._pages: SharedReads[tuple[str, History], _Kept] = SharedReads(self._fetch_all)
        self._tops: SharedReads[tuple[str, History], tuple[int, Position]] = SharedReads(self._fetch_top)
        self._key_notes: dict[str, list[bytes]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self.trouble = ""
        """What JetStream said when it refused last; empty if it did what was asked last."""
        self.conflicts = 0
        """Times that another node was faster."""

    def disconnected(self) -> None:
        """The connection has ended: whether the streams are still there has to be seen again."""
        for stream in [*self._streams.values(), self._keys, self._live]:
            if stream.ready is not None:
                stream.ready.cancel()
                stream.ready = None
        self._tails.clear()

    def close(self) -> None:
        """End what runs."""
        self.disconnected()
        self._pages.cancel()
        self._tops.cancel()
        for task in self._tasks:
            task.cancel()

    async def try_again(self) -> None:
        """See whether what was refused works by now."""
        with contextlib.suppress(Unavailable):
            for stream in [*self._streams.values()] or [self._live]:
                stream.ready = None
                await self._ready(stream)
            self._went_well()

    # --- streams ---

    def _config(self, name: str, subject: str, age_s: float, **more: Any) -> dict[str, Any]:
        return {
            "name": name,
            "subjects": [subject],
            "storage": "file",
            "retention": "limits",
            "discard": "old",
            "num_replicas": self._replicas,
            "max_age": _ns(age_s),
            "allow_direct": True,
            **more,
        }

    def _stream(self, history: History) -> _Stream:
        stream = self._streams.get(history)
        if stream is None:
            size, ttl_ms = history.size, max(1, round(history.ttl_s * 1_000))
            name, subject = f"{self._prefix}_h_{size}_{ttl_ms}", f"{self._prefix}.h.{size}-{ttl_ms}."
            config = self._config(
                name,
                f"{subject}*",
                max(history.ttl_s, self._limits.publish_key_ttl_s) + _POSITION_S,
                max_msgs_per_subject=size,
                max_bytes=self._limits.history_total_bytes,
                duplicate_window=_ns(self._limits.publish_key_ttl_s),
                republish={"src": f"{subject}*", "dest": f"{self._prefix}.c.{{{{wildcard(1)}}}}"},
            )
            stream = self._streams[history] = _Stream(name, subject, config)
        return stream

    async def _ready(self, stream: _Stream) -> None:
        task = stream.ready
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            task = stream.ready = asyncio.get_running_loop().create_task(self._make(stream))
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
        if not task.done():
            try:
                await asyncio.shield(task)
            except asyncio.CancelledError:
                if task.cancelled():
                    raise Unavailable("the connection to NATS ended") from None
                raise

    async def _make(self, stream: _Stream) -> None:
        """Make the stream, or see that it is there."""
        answer = _Answer()
        # What a stream may have is reserved for it. Of a small disk it gets what there is.
        unbounded = {name: value for name, value in stream.config.items() if name != "max_bytes"}
        for config in (stream.config, unbounded):
            for verb in ("CREATE", "UPDATE"):
                began = asyncio.get_running_loop().time()
                try:
                    answer = await self._api(f"STREAM.{verb}.{stream.name}", config)
                except OutcomeUnknown as error:
                    raise Unavailable(str(error)) from None
                if answer.error is None:
                    stream.ahead_s = _time(answer.ts) - (began + asyncio.get_running_loop().time()) / 2
                    return
                if answer.error.err_code != _NAME_IN_USE:
                    break
            if answer.error is None or answer.error.err_code not in _NO_ROOM:
                break
        assert answer.error is not None
        raise self._trouble(f"the stream {stream.name}: {answer.error.description}")

    def _trouble(self, text: str) -> Unavailable:
        if text != self.trouble:
            logger.warning("NATS at %s: JetStream: %s", self._link.shown, text)
        self.trouble = text
        return Unavailable(f"NATS at {self._link.shown}: JetStream: {text}")

    def _went_well(self) -> None:
        if self.trouble:
            logger.info("NATS at %s: JetStream serves again", self._link.shown)
            self.trouble = ""

    async def _api(self, subject: str, body: Any) -> _Answer:
        headers, data = await self._link.request(f"$JS.API.{subject}".encode(), _json(body))
        if status(headers):
            raise self._trouble("it does not answer; is it enabled (-js)?")
        try:
            return _answer(data)
        except msgspec.DecodeError as error:
            raise self._trouble(f"its answer cannot be read: {error}") from None

    # --- reading messages ---

    async def _last(self, stream: _Stream, subject: str) -> _Message | None:
        """The newest message of a subject. Raises Unavailable."""
        await self._ready(stream)
        try:
            if self._replicas > 1:  # a replica may be behind: the leader is asked
                answer = await self._api(f"STREAM.MSG.GET.{stream.name}", {"last_by_subj": subject})
                if answer.message is not None:
                    self._went_well()
                    stored = answer.message
                    headers = base64.b64decode(stored.hdrs)
                    return stored.seq, base64.b64decode(stored.data), _time(stored.time), _previous(headers)
                if answer.error is not None and answer.error.code == 404 and answer.error.err_code != _STREAM_NOT_FOUND:
                    return None
                stream.ready = None
                raise self._trouble(answer.error.description if answer.error else "no message")
            headers, data = await self._link.request(f"$JS.API.DIRECT.GET.{stream.name}.{subject}".encode(), b"")
        except OutcomeUnknown as error:
            raise Unavailable(str(error)) from None
        return self._direct(stream, headers, data)

    def _direct(self, stream: _Stream, headers: bytes, data: bytes) -> _Message | None:
        code = status(headers)
        if code == 404:
            self._went_well()
            return None
        if code:
            stream.ready = None
            raise self._trouble("it does not answer; is it enabled (-js)?")
        message = _message(headers, data)
        self._went_well()
        return message

    async def _numbered(self, stream: _Stream, subject: str, sequence: int) -> _Message | None:
        """The message with this number, if it is still there, and of this subject. Raises Unavailable."""
        if not sequence:
            return None
        try:
            body = _json({"seq": sequence})
            headers, data = await self._link.request(f"$JS.API.DIRECT.GET.{stream.name}".encode(), body)
        except OutcomeUnknown as error:
            raise Unavailable(str(error)) from None
        message = self._direct(stream, headers, data)
        return message if header(headers, b"Nats-Subject") == subject.encode() else None

    async def _from(self, stream: _Stream, subject: str, sequence: int) -> list[_Message]:
        """All messages of a subject from `sequence` on. Raises Unavailable."""
        await self._ready(stream)
        messages: list[_Message] = []
        while True:
            body = _json({"seq": sequence, "next_by_subj": subject, "batch": _READ_BATCH, "max_bytes": _READ_BYTES})
            try:
                replies = await self._link.request(f"$JS.API.DIRECT.GET.{stream.name}".encode(), body, last=_has_status)
            except OutcomeUnknown as error:
                raise Unavailable(str(error)) from None
            *found, (headers, _) = replies
            if status(headers) not in (204, 404):
                self._direct(stream, headers, b"")
            messages += [_message(headers, data) for headers, data in found]
            if not found or int(header(headers, b"Nats-Num-Pending") or b"0") == 0:
                return messages
            sequence = messages[-1][0] + 1

    async def _all_of(self, stream: _Stream, subject: str, first: int = 1) -> list[_Message]:
        """All messages of a subject, from this one on. Raises Unavailable."""
        if self._replicas == 1:
            return await self._from(stream, subject, first)
        # Any of the replicas answers, and may be behind; its leader knows what it has to have.
        last = await self._last(stream, subject)
        if last is None:
            return []
        for wait_s in (0.0, *_BEHIND_WAITS):
            await asyncio.sleep(wait_s)
            messages = await self._from(stream, subject, first)
            if messages and messages[-1][0] >= last[0]:
                return messages
        raise Unavailable(f"NATS at {self._link.shown}: JetStream: the replicas are behind")

    # --- where a channel is ---

    def seen(self, channel: str, sequence: int, position: Position) -> None:
        """The bus has brought the message with this sequence; it ends at `position`."""
        tail = self._tails.get(channel)
        if tail is not None and tail[0] < sequence:
            self._tails[channel] = (sequence, position)

    def mark(self, channel: str, sequence: int, position: Position) -> None:
        """This node has delivered up to the message with this sequence, which ends at `position`."""
        self._marks[channel] = (sequence, position)

    def unmark(self, channel: str) -> None:
        """It does not follow the channel any more."""
        self._marks.pop(channel, None)

    def _set_tail(self, channel: str, sequence: int, position: Position) -> None:
        tails = self._tails
        tail = tails.get(channel)
        if tail is None and len(tails) >= _TAILS:
            del tails[next(iter(tails))]
        if tail is None or tail[0] < sequence:
            tails[channel] = (sequence, position)

    async def _fetch_top(self, key: tuple[str, History]) -> tuple[int, Position]:
        channel, history = key
        stream = self._stream(history)
        subject = stream.subject + token(channel)
        last = await self._last(stream, subject)
        if last is None:
            return 0, Position.start_of(await self._epoch(stream))
        try:
            return last[0], _end_of(last[1])
        except ValueError:  # somebody else has written to the stream: what we wrote last is before that
            _, top, _ = await self._fetch_all(key)
            return last[0], top

    async def _epoch(self, stream: _Stream) -> str:
        """The epoch that channels without messages share. Raises Unavailable."""
        subject = f"{stream.subject}="
        for _ in range(3):
            last = await self._last(stream, subject)
            epoch = None if last is None else epoch_of(last[1])
            if epoch is not None:
                return epoch
            epoch = os.urandom(6).hex()
            try:
                await self._store(stream, subject, b"S1 e %b\n" % epoch.encode(), 0 if last is None else last[0])
            except _Refused as refused:
                if refused.err_code not in _WRONG_SEQUENCE:
                    raise self._trouble(str(refused)) from None
                continue  # another node was faster
            except OutcomeUnknown as error:
                raise Unavailable(str(error)) from None
            return epoch
        raise self._trouble(f"the stream {stream.name} does not take an epoch")

    async def top(self, channel: str, history: History) -> Position:
        """The position of the newest message. Raises Unavailable."""
        return (await self._tops.read((channel, history)))[1]

    async def reset(self, channel: str, history: History, since: Position) -> None:
        """The history has less than `since`, which was there: begin a new epoch, so that nobody is told otherwise.

        Raises Unavailable.
        """
        stream = self._stream(history)
        sequence, top = await self._tops.read((channel, history))
        if top.epoch != since.epoch or top.offset > since.offset or top == since:
            return  # another node has done it
        logger.warning(
            "NATS at %s: channel %r is at %s, and was at %s: new epoch", self._link.shown, channel, top, since
        )
        body = b"S1 e %b\n" % os.urandom(6).hex().encode()
        try:
            await self._store(stream, stream.subject + token(channel), body, sequence)
        except _Refused:
            pass
        except OutcomeUnknown as error:
            raise Unavailable(str(error)) from None
        self._tails.pop(channel, None)

    # --- reading a history ---

    async def read(self, channel: str, history: History, since: Position | None, limit: int) -> Page:
        """A page, see `Backplane.read`. Raises Unavailable."""
        if limit == 0 and since is None:
            return Page([], await self.top(channel, history), False)
        if since is not None:
            page = await self._read_back(channel, history, since, limit)
            mark = self._marks.get(channel)
            if page is None and mark is not None and mark[1] == since:
                page = await self._read_on(channel, history, mark[0], since, limit)
            if page is not None:
                return page
        entries, top, floor = await self._pages.read((channel, history))
        return page_of(entries, top, floor, since, limit)

    async def _read_on(self, channel: str, history: History, sequence: int, since: Position, limit: int) -> Page | None:
        """The page after `since`, where the message with this sequence ends; None if it takes more to know."""
        stream = self._stream(history)
        messages = await self._all_of(stream, stream.subject + token(channel), sequence)
        if not messages or messages[0][0] != sequence:
            return None
        return self._page_after(stream, history, since, messages, limit)

    async def _read_back(self, channel: str, history: History, since: Position, limit: int) -> Page | None:
        """The page after `since`, which is looked for from the newest message on; None if it takes more to know."""
        stream = self._stream(history)
        subject = stream.subject + token(channel)
        messages: list[_Message] = []
        message = await self._last(stream, subject)
        while message is not None and len(messages) <= _STEPS_BACK:
            messages.append(message)
            try:
                first, *more = _places_in(message[1])
            except ValueError:
                break
            if since == first or since in more:
                return self._page_after(stream, history, since, messages[::-1], limit)
            if first.epoch != since.epoch or not 0 < first.offset - since.offset <= _STEPS_BACK:
                break
            message = await self._numbered(stream, subject, message[3])
        return None

    def _page_after(
        self, stream: _Stream, history: History, since: Position, messages: list[_Message], limit: int
    ) -> Page | None:
        """The page after `since`, which is in the first of these messages; None if it takes more to know."""
        (_, first, stored, _), *others = messages
        try:
            places = _places_in(first)
            if since not in places:
                return None
            more = len(places) - places.index(since) - 1
            found = publications_in(first)[-more:] if more else []
            if not found and others:
                stored = others[0][2]
            found += [publication for _, data, _, _ in others for publication in publications_in(data)]
        except ValueError:
            return None
        size = sum(len(publication.payload) for publication in found)
        if found and (
            stored <= self._oldest(stream, history) or len(found) > history.size or size > self._limits.history_bytes
        ):
            return None
        positions = [since, *(publication.position for publication in found if publication.position is not None)]
        if any((b.epoch, b.offset) != (a.epoch, a.offset + 1) for a, b in itertools.pairwise(positions)):
            return None
        return Page(found[:limit], positions[-1], True)

    def _oldest(self, stream: _Stream, history: History) -> float:
        """What was stored before this is over, by the clock of the server."""
        return asyncio.get_running_loop().time() + stream.ahead_s - history.ttl_s

    async def _fetch_all(self, key: tuple[str, History]) -> _Kept:
        channel, history = key
        stream = self._stream(history)
        entries: list[tuple[Publication, float]] = []
        top: Position | None = None
        floor: Position | None = None
        messages = await self._all_of(stream, stream.subject + token(channel))
        for _, data, stored, _ in messages:
            try:
                epoch = epoch_of(data)
                found = [] if epoch is not None else publications_in(data)
            except ValueError:
                continue  # not ours
            if epoch is not None:
                entries.clear()
                floor = top = Position.start_of(epoch)
            for publication in found:
                position = publication.position
                assert position is not None
                if top is not None and (top.epoch, top.offset + 1) != (position.epoch, position.offset):
                    entries.clear()  # somebody else has written to it
                    floor = None
                if position.offset == 1:
                    floor = Position.start_of(position.epoch)
                entries.append((publication, stored))
                top = position
        if top is None:
            epoch = await self._epoch(stream)
            if messages:  # nothing of it is ours: what was here before is forgotten
                epoch = f"{epoch[:12]}-{messages[-1][0]:x}"
            top = floor = Position.start_of(epoch)
        oldest = self._oldest(stream, history)
        room = self._limits.history_bytes
        first = len(entries)
        while first > max(0, len(entries) - history.size) and entries[first - 1][1] > oldest:
            room -= len(entries[first - 1][0].payload)
            if room < 0:
                break
            first -= 1
        if first:
            floor = entries[first - 1][0].position
        return [publication for publication, _ in entries[first:]], top, floor

    # --- publishing ---

    async def keep(self, channel: str, history: History, batch: list[Pending]) -> list[Publication] | Published:
        """Store these as the next messages of the channel. With a key it is one, and may be a double: the answer.

        Raises Unavailable and OutcomeUnknown.
        """
        loop = asyncio.get_running_loop()
        stream = self._stream(history)
        subject = stream.subject + token(channel)
        key = batch[0].key
        message_id = None if key is None else f"{token(channel)}:{token(key)}"
        deadline = loop.time() + self._limits.backplane_timeout_s
        behind = -1
        while True:
            tail = self._tails.get(channel)
            if tail is None or tail[0] < behind:
                tail = await self._tops.read((channel, history))
                self._set_tail(channel, *tail)
            sequence, (epoch, offset, _) = tail
            publications, records = [], []
            for number, pending in enumerate(batch, offset + 1):
                position = Position(epoch, number, os.urandom(8).hex())
                publications.append(Publication(pending.payload, position, pending.skip))
                records.append(kept_head(self._node, position, pending.skip) + pending.payload)
            try:
                ack = await self._store(stream, subject, packed(records), sequence, message_id)
            except _Refused as refused:
                if refused.err_code in _WRONG_SEQUENCE:
                    self.conflicts += 1
                    behind = refused.sequence
                    if behind < sequence:
                        self._tails.pop(channel, None)  # the stream is a new one
                elif refused.err_code == _SAME_KEY_IN_PROCESS:
                    await asyncio.sleep(_RETRY_S)
                else:
                    raise self._trouble(str(refused)) from None
            except OutcomeUnknown:
                self._tails.pop(channel, None)
                raise
            except _NoStream:
                self._tails.clear()
                await asyncio.sleep(_RETRY_S)
            else:
                if ack.duplicate:
                    return Published(await self._first(stream, subject, ack.seq), True)
                end = publications[-1].position
                assert end is not None
                self._set_tail(channel, ack.seq, end)
                if key is not None:
                    self._note(stream, ack.seq, end)
                return publications
            if loop.time() > deadline:
                raise Unavailable(f"channel {channel!r}: other nodes were faster for too long; try later")

    async def once(self, channel: str, pending: Pending) -> bool:
        """Publish with a key what is not kept; whether it was the first. Raises Unavailable and OutcomeUnknown."""
        assert pending.key is not None
        name = token(channel)
        subject, message_id = f"{self._live.subject}{name}", f"{name}:{token(pending.key)}"
        body = message(self._node, Publication(pending.payload, None, pending.skip))
        deadline = asyncio.get_running_loop().time() + self._limits.backplane_timeout_s
        while True:
            try:
                return not (await self._store(self._live, subject, body, None, message_id)).duplicate
            except _Refused as refused:
                if refused.err_code != _SAME_KEY_IN_PROCESS:
                    raise self._trouble(str(refused)) from None
            except _NoStream:
                pass  # it was deleted, or the server has lost it: it is made again
            if asyncio.get_running_loop().time() > deadline:
                raise self._trouble(f"the stream {self._live.name} does not answer")
            await asyncio.sleep(_RETRY_S)

    async def _store(
        self, stream: _Stream, subject: str, body: bytes, expected: int | None, message_id: str | None = None
    ) -> _Ack:
        if stream.ready is None or not stream.ready.done() or stream.ready.exception() is not None:
            await self._ready(stream)
        if len(body) + 512 > self._link.max_payload:
            raise Unavailable(f"{len(body)} bytes: the NATS server takes {self._link.max_payload} (max_payload)")
        headers = b"" if message_id is None else b"Nats-Msg-Id: %b\r\n" % message_id.encode()
        if expected is not None:
            headers += b"%b: %d\r\n" % (_EXPECTED, expected)
        headers, data = await self._link.request(subject.encode(), body, headers)
        if status(headers):
            stream.ready = None
            raise _NoStream
        try:
            ack = _ack(data)
        except msgspec.DecodeError as error:
            raise OutcomeUnknown(f"the answer of JetStream cannot be read: {error}") from None
        if ack.error is not None:
            raise _Refused(ack.error)
        self._went_well()
        return ack

    # --- keys ---

    def _note(self, stream: _Stream, sequence: int, position: Position) -> None:
        """Keep where the message of a key is, as the message may go sooner than the key."""
        if not self._key_notes:
            asyncio.get_running_loop().call_later(_NOTE_S, self._write_notes)
        subject = f"{self._keys.subject}{stream.name}.{sequence // _KEY_BUCKET}"
        self._key_notes.setdefault(subject, []).append(b"%d %b" % (sequence, str(position).encode()))

    def _write_notes(self) -> None:
        notes, self._key_notes = self._key_notes, {}
        if not self._link.up:
            return
        if self._keys.ready is None or not self._keys.ready.done():
            task = asyncio.get_running_loop().create_task(self._ready(self._keys))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            task.add_done_callback(functools.partial(self._send_notes, notes))
        else:
            self._send_notes(notes, self._keys.ready)

    def _send_notes(self, notes: dict[str, list[bytes]], ready: asyncio.Task[None]) -> None:
        if not ready.cancelled() and ready.exception() is None and self._link.up:
            for subject, lines in notes.items():
                self._link.publish(subject.encode(), b"\n".join(lines))

    async def _first(self, stream: _Stream, subject: str, sequence: int) -> Position:
        """Where the message with this sequence is, or was."""
        try:
            message = await self._numbered(stream, subject, sequence)
            if message is not None:
                position = publications_in(message[1])[0].position
                assert position is not None
                return position
            for wait_s in (0.0, *_KEY_WAITS):
                await asyncio.sleep(wait_s)
                bucket = f"{self._keys.subject}{stream.name}.{sequence // _KEY_BUCKET}"
                for _, notes, *_ in await self._from(self._keys, bucket, 1):
                    for line in notes.split(b"\n"):
                        number, _, text = line.partition(b" ")
                        if number == b"%d" % sequence:
                            return Position.parse(text.decode())
        except (Unavailable, ValueError) as error:
            raise OutcomeUnknown(f"the key is known, and its answer cannot be read: {error}") from None
        raise OutcomeUnknown("the key is known, and its answer is gone")


def _has_status(headers: bytes, _: bytes) -> bool:
    return bool(status(headers))


def _ns(seconds: float) -> int:
    return round(seconds * 1_000_000_000)


def _time(text: str) -> float:
    """Seconds of the wall clock of the server."""
    return dt.datetime.fromisoformat(text[:19] + "+00:00").timestamp() + float(f"0.{text[20:-1] or 0}")


def _message(headers: bytes, data: bytes) -> _Message:
    sequence, stored = header(headers, b"Nats-Sequence"), header(headers, b"Nats-Time-Stamp")
    if sequence is None or stored is None:
        raise Unavailable("an answer of JetStream cannot be read")
    return int(sequence), data, _time(stored.decode()), _previous(headers)


def _previous(headers: bytes) -> int:
    """The publisher has said behind which message this one goes, and the server keeps that with it."""
    text = header(headers, _EXPECTED) or b""
    return int(text) if text.isdigit() else 0


def publications_in(data: bytes) -> list[Publication]:
    """The kept messages in a message of a stream. Raises ValueError."""
    publications = []
    for record in unpacked(data):
        publication = decode(record).publication
        if publication is None or publication.position is None:
            raise ValueError("no kept message")
        publications.append(publication)
    return publications


def _places_in(data: bytes) -> list[Position]:
    """The positions where one may stand in a message of a stream, at least one, in order. Raises ValueError."""
    epoch = epoch_of(data)
    if epoch is not None:
        return [Position.start_of(epoch)]
    places = [publication.position for publication in publications_in(data) if publication.position is not None]
    return [Position.start_of(places[0].epoch), *places] if places[0].offset == 1 else places


def _end_of(data: bytes) -> Position:
    """The position behind a message of a stream. Raises ValueError."""
    return _places_in(data)[-1]

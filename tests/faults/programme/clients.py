"""Clients of docs/protocol.md, cheap enough for thousands in one process: a bare protocol on sockets, no tasks to read.

A `Client` subscribes, comes back with `since` when its connection is lost, drops what it has had, and writes all of it
into the journal of its `Fleet`. It may publish too: with a key, again with the same key until an answer comes; the
answer goes into the journal of publishers. Nothing of street_fast is used here: what the server promises is judged by
what is on the wire.
"""

from __future__ import annotations

import asyncio
import re
import struct
import time
from typing import TYPE_CHECKING, Any

import orjson

from tests.faults.programme.checker import is_kept

if TYPE_CHECKING:
    import random
    from collections.abc import Sequence

    from tests.faults.programme.journal import Journal

HANDSHAKE_S = 10.0
ANSWER_S = 10.0
"""docs/protocol.md: a request without an answer for so long is lost."""
SILENCE_S = 10.0
"""docs/protocol.md: so much longer than the heartbeat, and the server is gone."""
MOST_DELAY_S = 2.0
"""Between attempts to come back. A client should go up to 30 s; here it would be waiting for nothing."""

_HINT = re.compile(r"retry in ([0-9.]+) s$")
_STAY_AWAY = {1000, 1002, 1003, 1007, 1008, 1009, 1010, 1015, 4001, 4029}
_RETRIED = {"unavailable", "unknown", "rate_limited", "lost", "late"}

Address = tuple[str, int]


def data_of(key: str, channel: str) -> dict[str, str]:
    """What is published under a key; it can be checked without being kept. One in seven is larger."""
    number = int.from_bytes(key.encode()[-3:], "big") * 2_654_435_761 % (1 << 32)
    length = 30_000 + number % 20_000 if channel.startswith("big:") else number % (2_000 if number % 7 == 0 else 60)
    return {"k": key, "p": chr(97 + number % 26) * length}


class Fleet:
    """All clients of a run, and what they have in common.

    `addresses` are the nodes. `seen` and `published` are the journals. Counts: `refused` connections (nobody listened),
    `broken` handshakes (reset, late, or answered with anything but 101), `lost` connections by close code.
    """

    def __init__(self, addresses: Sequence[Address], seen: Journal, published: Journal, rng: random.Random) -> None:
        self.addresses = list(addresses)
        self.seen = seen
        self.published = published
        self.rng = rng
        self.clients: list[Client] = []
        self.refused: list[tuple[float, str]] = []
        self.broken: list[tuple[float, str]] = []
        self.lost: dict[int, int] = {}
        self.attempts_again = 0
        self.closing = False
        self.quiet = False
        """Nobody begins to publish any more."""
        self.tasks: set[asyncio.Task[Any]] = set()
        self.started = time.monotonic()

    def now(self) -> float:
        return time.monotonic() - self.started

    def spawn(self, coroutine: Any) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None and not self.closing:
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a client of the programme failed", "exception": task.exception(), "task": task}
            )

    def add(self, channels: Sequence[str], home: int, *, path: str = "/realtime") -> Client:
        """A new client that is subscribed to `channels`, at `addresses[home]` if it can."""
        client = Client(self, f"c{len(self.clients)}", list(channels), home, path)
        self.clients.append(client)
        return client

    async def connect(self, most_at_once: int = 50) -> None:
        """All are connected and subscribed. Raises TimeoutError."""
        room = asyncio.Semaphore(most_at_once)

        async def one(client: Client) -> None:
            async with room:
                client.begin()
                await asyncio.wait_for(client.ready.wait(), 60)

        await asyncio.gather(*(one(client) for client in self.clients if not client.begun))

    def misled(self) -> list[str]:
        """Who is wrong about who is in a channel, as sentences. For when nothing is under way."""
        truth: dict[str, set[str]] = {}
        for client in self.clients:
            for channel in client.channels:
                if client.ready.is_set():
                    truth.setdefault(channel, set()).add(client.member)
        found = []
        for client in self.clients:
            for channel in client.channels if client.ready.is_set() else ():
                believed, there = client.members[channel], truth[channel]
                if believed != there:
                    found.append(
                        f"{client.name} misses {sorted(there - believed)} in {channel}, "
                        f"and believes in {sorted(believed - there)}"
                    )
        return found

    async def watch(self) -> None:
        """Takes servers that say nothing for gone, as a client should."""
        while True:
            await asyncio.sleep(1.0)
            now = self.now()
            for client in self.clients:
                client.look(now)

    def publishers(self, clients: Sequence[Client], channels: Sequence[str], each_per_s: float) -> None:
        """These clients publish to these channels from now on."""
        for client in clients:
            self.spawn(client.publish_on(channels, 1.0 / each_per_s))

    async def churn(self, every_s: float) -> None:
        """Now and then a client loses its connection, and comes back to any of the nodes."""
        while not self.quiet:
            await asyncio.sleep(self.rng.uniform(0.5, 1.5) * every_s)
            client = self.rng.choice(self.clients)
            client.home = self.rng.randrange(len(self.addresses))
            client.drop()

    async def close(self) -> None:
        """All go, and nobody comes back."""
        self.closing = True
        for client in self.clients:
            client.drop()
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Client:
    """One of them: any number of connections, one after the other."""

    def __init__(self, fleet: Fleet, name: str, channels: list[str], home: int, path: str) -> None:
        self.fleet = fleet
        self.name = name
        self.channels = channels
        self.home = home
        self.path = path
        self.begun = False
        self.ready = asyncio.Event()  # everything is subscribed
        self.opened = asyncio.Event()  # a connection stands
        self.connection: Connection | None = None
        self.connections = 0
        self.presence: list[tuple[float, str, dict[str, Any]]] = []
        self.keeps_presence = False
        self.returns = True
        self.member = ""
        self.waits = False  # for the answer to a publish
        self.position: dict[str, str | None] = dict.fromkeys(channels)
        self.members: dict[str, set[str]] = {channel: set() for channel in channels}
        """Who is in its channels, as far as it has been told."""
        self._loose: set[str] = set()  # after a gap without a position: whatever comes next
        self._was_in: set[str] = set()
        self._unsubscribed: set[str] = set(channels)
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        self._attempt = 0
        self._number = 0
        self._heartbeat_s: float | None = None

    # --- the connection ---

    def begin(self) -> None:
        self.begun = True
        self.fleet.spawn(self._connect(self.home, 0.0))

    async def _connect(self, node: int, delay: float) -> None:
        await asyncio.sleep(delay)
        fleet = self.fleet
        if fleet.closing:
            return
        host, port = fleet.addresses[node]
        loop = asyncio.get_running_loop()
        connection = Connection(self, node)
        try:
            async with _limit(HANDSHAKE_S):
                await loop.create_connection(lambda: connection, host, port)
                await asyncio.shield(connection.answered)
        except ConnectionRefusedError:
            fleet.refused.append((fleet.now(), self.name))
            self._again(None)
            return
        except (OSError, asyncio.TimeoutError) as error:
            fleet.broken.append((fleet.now(), f"{self.name}: {type(error).__name__} {error}"))
            connection.abandon()
            self._again(None)

    def _again(self, hint: float | None) -> None:
        fleet = self.fleet
        if fleet.closing or not self.returns:
            return
        self._attempt += 1
        delay = fleet.rng.uniform(0, min(MOST_DELAY_S, 0.25 * 2**self._attempt)) if hint is None else hint
        node = self.home if self._attempt < 3 else fleet.rng.randrange(len(fleet.addresses))
        fleet.spawn(self._connect(node, delay))

    def on_open(self, connection: Connection) -> None:
        self.connection = connection
        self.connections += 1
        self._attempt = 0
        self._unsubscribed = set(self.channels)
        self.opened.set()
        for channel in self.channels:
            self.subscribe(channel)
        if not self.channels:
            self.ready.set()

    def subscribe(self, channel: str) -> None:
        if self.connection is None:
            return
        message = {"type": "subscribe", "channel": channel, "id": f"s:{channel}"}
        since = self.position[channel]
        if since is not None and is_kept(channel):
            message["since"] = since
        self.connection.send(message)

    def _subscribe_again(self, channel: str, connection: Connection | None) -> None:
        if connection is self.connection:  # on another one it is subscribed to already
            self.subscribe(channel)

    def on_lost(self, connection: Connection, code: int, reason: str) -> None:
        if connection is not self.connection:
            return
        fleet = self.fleet
        fleet.lost[code] = fleet.lost.get(code, 0) + 1
        self.connection = None
        self.opened.clear()
        self.ready.clear()
        waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if not future.done():
                future.set_result({"type": "error", "data": {"code": "lost"}})
        if code in _STAY_AWAY and code != 1000:
            fleet.broken.append((fleet.now(), f"{self.name} was closed with {code} {reason}"))
        if not self.returns:
            for channel in self._was_in:
                self._write("left", channel, self.position[channel])
        hint = _HINT.search(reason)
        self._again(float(hint[1]) if hint else None)

    def drop(self) -> None:
        """The connection breaks."""
        if self.connection is not None:
            self.connection.abort()

    def look(self, now: float) -> None:
        """Takes a server that has been silent for too long for gone."""
        connection, beat = self.connection, self._heartbeat_s
        if connection is not None and beat is not None and now - connection.heard > beat + SILENCE_S:
            connection.abort()

    # --- what the server says ---

    def on_message(self, connection: Connection, message: dict[str, Any]) -> None:
        if connection is not self.connection:
            return
        kind = message["type"]
        if kind == "message":
            self._take(message)
        elif kind == "reply" or kind == "error":
            self._answered(message)
        elif kind == "gap":
            self._gap(message["channel"], message["data"].get("position"), "gap")
        elif kind == "ping":
            connection.send({"type": "pong"})
        elif kind == "presence":
            members, data = self.members[message["channel"]], message["data"]
            members.update(entry["memberId"] for entry in data.get("joined", ()))
            members.difference_update(entry["memberId"] for entry in data.get("left", ()))
            if self.keeps_presence:
                self.presence.append((self.fleet.now(), message["channel"], data))
        elif kind == "welcome":
            beat = message["data"]["heartbeatMs"]
            self._heartbeat_s = None if beat is None else beat / 1_000
            self.member = message["data"]["member"]["id"]

    def _write(self, kind: str, channel: str, position: str | None, key: str | None = None) -> None:
        self.fleet.seen.write(self.fleet.now(), kind, self.name, channel, position, key)

    def _take(self, message: dict[str, Any]) -> None:
        channel = message["channel"]
        position = message.get("position")
        data = message["data"]
        key = data["k"]
        last = self.position[channel]
        if position is not None and last is not None and channel not in self._loose:
            epoch, offset, _ = position.split(":")
            last_epoch, last_offset, _ = last.split(":")
            if epoch == last_epoch and int(offset) <= int(last_offset):
                self._write("dup", channel, position, key)
                return
        self._loose.discard(channel)
        if position is not None:
            self.position[channel] = position
        if data != data_of(key, channel):
            self._write("bad", channel, position, key)
        self._write("got", channel, position, key)

    def _gap(self, channel: str, position: str | None, why: str) -> None:
        self._write("flag", channel, position, why)
        if position is None:
            self._loose.add(channel)
        else:
            self._loose.discard(channel)
            self.position[channel] = position

    def _answered(self, message: dict[str, Any]) -> None:
        number = message.get("id")
        if isinstance(number, str) and number.startswith("s:"):
            self._subscribed(number[2:], message)
            return
        future = self._waiting.pop(number, None) if isinstance(number, str) else None
        if future is not None and not future.done():
            future.set_result(message)

    def _subscribed(self, channel: str, message: dict[str, Any]) -> None:
        data = message["data"]
        if message["type"] == "error":
            if data["code"] in ("unavailable", "rate_limited"):
                pause = self.fleet.rng.uniform(0.1, 0.6)
                asyncio.get_running_loop().call_later(pause, self._subscribe_again, channel, self.connection)
            else:
                raise RuntimeError(f"{self.name} may not subscribe to {channel}: {data}")
            return
        if channel not in self._unsubscribed:
            return
        self._unsubscribed.discard(channel)
        self.members[channel] = {entry["memberId"] for entry in data.get("members", ())}
        position = data.get("position")
        if channel not in self._was_in:
            self._was_in.add(channel)
            self._write("here", channel, position)
            self.position[channel] = position
        elif not is_kept(channel):
            self._write("flag", channel, None, "away")
        elif data.get("recovered") is True:
            self._write("back", channel, self.position[channel])
            for missed in data["messages"]:
                self._take(missed)
        else:
            self._gap(channel, position, "not-recovered")
        if not self._unsubscribed:
            self.ready.set()

    # --- publishing ---

    async def publish_on(self, channels: Sequence[str], interval_s: float) -> None:
        """Publishes to any of the channels again and again, the next when the last is answered."""
        fleet = self.fleet
        await asyncio.sleep(fleet.rng.uniform(0, interval_s))
        due = fleet.now()
        while not fleet.quiet:
            await self.publish(fleet.rng.choice(channels))
            due = max(due + interval_s * fleet.rng.uniform(0.5, 1.5), fleet.now() - interval_s)
            await asyncio.sleep(max(0.0, due - fleet.now()))

    async def publish(self, channel: str) -> bool:
        """Publishes one message; False if nobody knows what became of it."""
        fleet = self.fleet
        self._number += 1
        key = f"{self.name}-{self._number}"
        message = {"type": "publish", "channel": channel, "id": key, "data": data_of(key, channel)}
        if not channel.startswith("live:"):
            message["key"] = key
        await self.opened.wait()
        fleet.published.write(fleet.now(), "send", f"{self.name}.{self.connections}", channel, None, key)
        self.waits = True
        try:
            return await self._publish_until_answered(channel, key, message)
        finally:
            self.waits = False

    async def _publish_until_answered(self, channel: str, key: str, message: dict[str, Any]) -> bool:
        fleet, has_key = self.fleet, "key" in message
        while True:
            answer = await self._ask(key, message)
            if answer["type"] == "reply":
                position = answer["data"].get("position")
                fleet.published.write(fleet.now(), "ack", f"{self.name}.{self.connections}", channel, position, key)
                return True
            code = answer["data"]["code"]
            if code not in _RETRIED:
                raise RuntimeError(f"{self.name} may not publish to {channel}: {answer['data']}")
            if not has_key and code != "rate_limited":
                fleet.published.write(fleet.now(), "open", self.name, channel, None, key)
                return False
            fleet.attempts_again += 1
            await asyncio.sleep(fleet.rng.uniform(0.05, 0.5))
            try:
                await asyncio.wait_for(self.opened.wait(), 60)
            except asyncio.TimeoutError:
                fleet.published.write(fleet.now(), "open", self.name, channel, None, key)
                return False

    async def _ask(self, key: str, message: dict[str, Any]) -> dict[str, Any]:
        if self.connection is None:
            return {"type": "error", "data": {"code": "lost"}}
        future = self._waiting[key] = asyncio.get_running_loop().create_future()
        self.connection.send(message)
        try:
            return await asyncio.wait_for(future, ANSWER_S)
        except asyncio.TimeoutError:
            self._waiting.pop(key, None)
            return {"type": "error", "data": {"code": "late"}}


class _limit:  # noqa: N801 - as asyncio.timeout, which Python 3.10 does not have
    """Raises TimeoutError in the block when it takes longer."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    async def __aenter__(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._late = False

        def end() -> None:
            self._late = True
            task.cancel()

        self._timer = asyncio.get_running_loop().call_later(self._seconds, end)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._timer.cancel()
        if kind is asyncio.CancelledError and self._late:
            raise asyncio.TimeoutError


class Connection(asyncio.Protocol):
    """One WebSocket, from the upgrade on. The mask is zero, which a server cannot tell from any other."""

    def __init__(self, client: Client, node: int) -> None:
        self.client = client
        self.node = node
        self.heard = 0.0
        self.answered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._transport: asyncio.Transport | None = None
        self._buffer = b""
        self._upgraded = False
        self._code = 1006
        self._reason = ""
        self._abandoned = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]
        if self._abandoned:
            self.abort()
            return
        self._transport.write(
            f"GET {self.client.path} HTTP/1.1\r\nHost: test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )

    def data_received(self, data: bytes) -> None:
        self.heard = self.client.fleet.now()
        data = self._buffer + data if self._buffer else data
        if not self._upgraded:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._buffer = data
                return
            if not data.startswith(b"HTTP/1.1 101"):
                self._fail(OSError(data[:80]))
                self.abort()
                return
            self._upgraded = True
            data = data[end + 4 :]
            if not self.answered.done():
                self.answered.set_result(None)
            self.client.on_open(self)
        at, size = 0, len(data)
        while size - at >= 2:
            opcode, length, head = data[at] & 15, data[at + 1], 2
            if length == 126:
                if size - at < 4:
                    break
                length, head = int.from_bytes(data[at + 2 : at + 4], "big"), 4
            elif length == 127:
                if size - at < 10:
                    break
                length, head = int.from_bytes(data[at + 2 : at + 10], "big"), 10
            if size - at < head + length:
                break
            payload = data[at + head : at + head + length]
            at += head + length
            self._frame(opcode, payload)
        self._buffer = data[at:]

    def _frame(self, opcode: int, payload: bytes) -> None:
        if opcode == 1:
            self.client.on_message(self, orjson.loads(payload))
        elif opcode == 8:
            self._code = int.from_bytes(payload[:2], "big") if payload else 1005
            self._reason = payload[2:].decode()
            self._write(8, payload[:2])
            if self._transport is not None:
                self._transport.close()
        elif opcode == 9:
            self._write(10, payload)
        elif opcode != 10:
            raise RuntimeError(f"a frame with opcode {opcode}")

    def connection_lost(self, error: Exception | None) -> None:
        if not self._upgraded:
            self._fail(ConnectionResetError("the connection ended before the answer"))
        else:
            self.client.on_lost(self, self._code, self._reason)

    def send(self, message: dict[str, Any]) -> None:
        self._write(1, orjson.dumps(message))

    def _write(self, opcode: int, payload: bytes) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        length = len(payload)
        if length < 126:
            head = bytes((0x80 | opcode, 0x80 | length, 0, 0, 0, 0))
        elif length < 65_536:
            head = struct.pack("!BBHI", 0x80 | opcode, 0x80 | 126, length, 0)
        else:
            head = struct.pack("!BBQI", 0x80 | opcode, 0x80 | 127, length, 0)
        self._transport.write(head + payload)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def abandon(self) -> None:
        """Nobody waits for it any more."""
        self._abandoned = True
        if self.answered.done() and not self.answered.cancelled():
            self.answered.exception()
        self.abort()

    def _fail(self, error: Exception) -> None:
        if not self.answered.done():
            self.answered.set_exception(error)

    # It may be that nobody waits for the answer of an abandoned connection.
    def __del__(self) -> None:
        if self.answered.done() and not self.answered.cancelled():
            self.answered.exception()

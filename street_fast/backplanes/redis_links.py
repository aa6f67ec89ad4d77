"""Connections to Redis: where the server is, a link for commands, and one for what the bus brings.

**Commands** of one turn of the event loop are written at once, and answered in their order: `CommandLink`. It does not
mend itself. When it ends, everybody who waits is told whether the command was sent.

**The bus** is read in a thread of its own, with a small event loop, which only takes messages apart and puts them into
a queue: `BusThread`. So that a server whose own loop stands still for some seconds is not cut off for not reading. Main
loop and thread share two things: a deque, of which both ends are atomic, and numbers that only one of them writes.

redis-py logs in, speaks TLS and knows the protocol; hiredis, which comes with it, takes it apart. RESP2.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import socket
import ssl
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from redis.asyncio.connection import Connection, SSLConnection
from redis.exceptions import AuthenticationError, RedisError, ResponseError

from street_fast.backplanes import Unavailable
from street_fast.backplanes.reasons import reason_of
from street_fast.errors import ConfigurationError
from street_fast.seldom import Seldom

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = [
    "Address",
    "BusLink",
    "BusThread",
    "CommandLink",
    "NoAnswer",
    "NotSent",
    "Place",
    "Refused",
    "WrongCredentials",
    "ask",
    "pack",
    "parse_info",
    "reason_of",
]

logger = logging.getLogger("street_fast")

_READ_BYTES = 262_144
_TAKE_S = 0.002
"""What one turn of the main loop spends on taking in, before others have theirs."""
_AROUND_A_MESSAGE = 200
"""Bytes that a waiting message takes beside its payload."""
_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs", "ssl_check_hostname", "ssl_password"}


class NotSent(Unavailable):
    """The command did not leave this process."""


class NoAnswer(Unavailable):
    """The command was sent, and the connection has ended without an answer."""


class Refused(Unavailable):
    """The server has answered that it does not do it."""


class WrongCredentials(Unavailable):
    """The server does not let this user in."""


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True)
class Place:
    """What a URL says: `kind` is ``single``, ``sentinel`` or ``cluster``, `seeds` are whom to ask."""

    kind: str
    seeds: tuple[Address, ...]
    service: str
    db: int
    tls: bool
    login: dict[str, Any] = dataclasses.field(repr=False)
    sentinel_login: dict[str, Any] = dataclasses.field(repr=False)

    def __str__(self) -> str:
        scheme = ("rediss" if self.tls else "redis") + ("" if self.kind == "single" else f"+{self.kind}")
        hosts = ",".join(map(str, self.seeds))
        return f"{scheme}://{hosts}" + (f"/{self.service}" if self.service else "") + (f"/{self.db}" if self.db else "")

    @classmethod
    def of(cls, url: str) -> Place:
        """The place that a URL names. Raises ConfigurationError, which does not show the password.

        ``redis://[[user]:password@]host[:port][/db]``, ``rediss://`` for TLS; ``redis+sentinel://host,host/service``
        and ``redis+cluster://host,host``, and the same with ``rediss``. Options behind ``?`` are ``db``, those of
        redis-py that begin with ``ssl_``, and ``sentinel_username`` and ``sentinel_password``.
        """
        if not isinstance(url, str):
            raise ConfigurationError(f"the URL of Redis is a {type(url).__name__}: must be text, such as redis://host")
        parts = urlsplit(url)
        scheme, _, kind = parts.scheme.partition("+")
        if scheme not in ("redis", "rediss") or kind not in ("", "sentinel", "cluster"):
            raise ConfigurationError(
                f"the URL of Redis begins with {parts.scheme!r}: must be redis://, rediss:// (TLS), "
                f"redis+sentinel:// or redis+cluster://"
            )
        credentials, at, hosts = parts.netloc.rpartition("@")
        default_port = 26_379 if kind == "sentinel" else 6_379
        seeds = tuple(_address(host, default_port) for host in hosts.split(","))
        if not kind and len(seeds) > 1:
            raise ConfigurationError(
                "the URL of Redis has several hosts: only redis+sentinel:// and redis+cluster:// take them"
            )
        login: dict[str, Any] = {}
        if at:
            user, _, password = credentials.partition(":")
            login = {"username": unquote(user) or None, "password": unquote(password) or None}
        path = [unquote(part) for part in parts.path.split("/") if part]
        service = ""
        if kind == "sentinel":
            if not path:
                raise ConfigurationError("the URL of Redis lacks the service: redis+sentinel://host,host/service")
            service = path.pop(0)
        options = dict(parse_qsl(parts.query))
        sentinel_login = {
            name: options.pop(f"sentinel_{name}") for name in ("username", "password") if f"sentinel_{name}" in options
        }
        db = _number(options.pop("db", path.pop(0) if path else "0"))
        if path or db is None or (kind == "cluster" and db):
            raise ConfigurationError(
                "the URL of Redis ends with something that is no number of a database (a Cluster has none but 0)"
            )
        unknown = sorted(set(options) - _OPTIONS)
        if unknown or (options and scheme == "redis"):
            raise ConfigurationError(
                f"the URL of Redis has the option {(unknown or sorted(options))[0]!r}: there are db, "
                f"sentinel_username, sentinel_password, and with rediss:// {', '.join(sorted(_OPTIONS))}"
            )
        tls: dict[str, Any] = {**options}
        if "ssl_check_hostname" in options:
            tls["ssl_check_hostname"] = options["ssl_check_hostname"].lower() not in ("0", "no", "false")
        return cls(kind or "single", seeds, service, db, scheme == "rediss", login | tls, sentinel_login)

    async def connect(self, address: Address, timeout_s: float, *, sentinel: bool = False) -> Connection:
        """A connection that is logged in. Raises WrongCredentials, or Unavailable with a sentence that says why."""
        login = dict(self.login)
        if sentinel:
            login = {name: value for name, value in login.items() if name.startswith("ssl_")} | self.sentinel_login
        connection = (SSLConnection if self.tls else Connection)(
            host=address.host,
            port=address.port,
            db=0 if sentinel else self.db,
            socket_timeout=None,
            socket_connect_timeout=timeout_s,
            socket_keepalive=True,
            socket_read_size=_READ_BYTES,
            protocol=2,
            **login,
        )
        try:
            await asyncio.wait_for(connection.connect(), timeout_s)  # type: ignore[no-untyped-call]
        except BaseException as error:
            await _end(connection)
            if isinstance(error, AuthenticationError) or "NOAUTH" in str(error) or "WRONGPASS" in str(error):
                raise WrongCredentials(f"{address} refuses the user or the password: {error}") from None
            if isinstance(error, (OSError, RedisError, asyncio.TimeoutError, ssl.SSLError)):
                raise Unavailable(f"{address} cannot be reached: {reason_of(error)}") from None
            raise
        return connection


def _address(text: str, default_port: int) -> Address:
    try:
        parts = urlsplit(f"//{text}")
        return Address(parts.hostname or "localhost", default_port if parts.port is None else parts.port)
    except ValueError:
        raise ConfigurationError(f"the URL of Redis has {text!r} for a host: must be host or host:port") from None


def _number(text: str) -> int | None:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 6 else None


def pack(words: Iterable[bytes]) -> bytes:
    """A command as it goes over the wire."""
    words = list(words)
    return b"*%d\r\n" % len(words) + b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words])


def ask(link: CommandLink, packed: bytes, answered: Callable[[Any], None]) -> bool:
    """`CommandLink.ask`, for whom it is enough to know whether it could be sent."""
    try:
        link.ask(packed, answered)
    except NotSent:
        return False
    return True


def _drop_unsent(connection: Connection) -> None:
    """What the kernel has not sent yet, it never sends: when the network is back it would overtake what came after."""
    writer = getattr(connection, "_writer", None)
    there = None if writer is None else writer.get_extra_info("socket")
    if there is None:  # it is closed
        return
    with contextlib.suppress(OSError):
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _end(connection: Connection) -> None:
    # Nothing that matters is on its way by now; TLS would take its time to say goodbye to who may not be there.
    writer = getattr(connection, "_writer", None)
    with contextlib.suppress(Exception):
        if writer is not None:
            writer.transport.abort()
        await connection.disconnect(nowait=True)


class CommandLink:
    """A connection for commands. `ended` is called once, with the reason, unless `close` was.

    `not_told(channel, error)` hears of a `tell` that the server has refused, or that was not answered.
    """

    def __init__(
        self,
        connection: Connection,
        timeout_s: float,
        most_bytes: int,
        clock: Callable[[], float],
        not_told: Callable[[str, Exception], None],
        ended: Callable[[CommandLink, Exception], None],
    ) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._most_bytes = most_bytes
        self._clock = clock
        self._say_failed = Seldom(logger.exception, clock)
        self._not_told = not_told
        self._ended = ended
        self._out: list[bytes] = []
        self.pending_bytes = 0
        """Not yet taken by the connection."""
        # By command, in their order: who hears the answer, or for a `tell` the channel.
        self._waiting: deque[Callable[[Any], None] | str] = deque()
        self._commands = 0
        self._answers = 0
        self._written = 0  # commands that the connection has
        self._writes: deque[tuple[int, float]] = deque()  # commands up to there, and when they were written
        self._late_since = 0  # answers at the last look, if it was late
        self._wake = asyncio.Event()
        self.before_write: Callable[[], None] | None = None
        """Called before what has gathered is written; may `ask` for more."""
        self.up = True
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._write()), loop.create_task(self._read())]

    def tell(self, channel: str, packed: bytes) -> bool:
        """Send what nobody waits for. False: too much waits already, or the link has ended, and it was not sent."""
        if self.pending_bytes > self._most_bytes or not self.up:
            return False
        self._waiting.append(channel)
        self._out.append(packed)
        self._commands += 1
        self.pending_bytes += len(packed)
        if len(self._out) == 1:
            self._wake.set()
        return True

    def ask(self, packed: bytes, answered: Callable[[Any], None]) -> None:
        """Send a command; `answered` gets what it returned, or an exception: NotSent, NoAnswer or a ResponseError.

        Raises NotSent if too much waits already, or if the link has ended.
        """
        if self.pending_bytes > self._most_bytes or not self.up:
            raise NotSent("the connection to Redis has ended, or takes nothing")
        self._waiting.append(answered)
        self._out.append(packed)
        self._commands += 1
        self.pending_bytes += len(packed)
        if len(self._out) == 1:
            self._wake.set()

    def call(self, *words: bytes) -> asyncio.Future[Any]:
        """`ask`, for whoever awaits the answer. The awaitable raises Refused if it is an error."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        future.add_done_callback(_look_at)

        def answered(reply: Any) -> None:
            if future.done():
                return
            if isinstance(reply, Exception):
                future.set_exception(Refused(str(reply)) if isinstance(reply, ResponseError) else reply)
            else:
                future.set_result(reply)

        self.ask(pack(words), answered)
        return future

    @property
    def idle(self) -> bool:
        """Whether everything is answered."""
        return not self._waiting

    def is_late(self, now: float) -> bool:
        """Whether an answer is overdue. To be asked now and then: who was late twice without an answer in between is.

        So a process that did not run for a while has read what was there before it judges.
        """
        writes = self._writes
        while writes and writes[0][0] <= self._answers:
            writes.popleft()
        if not writes or now - writes[0][1] < self._timeout_s:
            self._late_since = -1
            return False
        late = self._late_since == self._answers
        self._late_since = self._answers
        return late

    def fail(self, error: Exception) -> None:
        """End it, and tell everybody."""
        if not self.up:
            return
        _drop_unsent(self._connection)
        self.close()
        self._ended(self, error)

    def close(self) -> None:
        """End it; who waits is told."""
        if not self.up:
            return
        self.up = False
        for task in self._tasks:
            task.cancel()
        self._tasks.append(asyncio.get_running_loop().create_task(_end(self._connection)))
        sent = self._written - self._answers
        waiting, self._waiting = self._waiting, deque()
        no_answer, not_sent = NoAnswer("Redis has not answered"), NotSent("the connection to Redis has ended")
        for number, entry in enumerate(waiting):
            error = no_answer if number < sent else not_sent
            self._tell_answer(entry, error)

    def _tell_answer(self, entry: Callable[[Any], None] | str, reply: Any) -> None:
        try:
            if isinstance(entry, str):
                self._not_told(entry, reply)
            else:
                entry(reply)
        except Exception:
            self._say_failed("the answer of Redis to a command was not taken")

    async def closed(self) -> None:
        """Return when nothing of it runs any more."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _write(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                if self.before_write is not None:
                    self.before_write()
                out, self._out = self._out, []
                size = self.pending_bytes
                self._written = self._commands
                self._writes.append((self._written, self._clock()))
                await self._connection.send_packed_command(b"".join(out), check_health=False)
                self.pending_bytes -= size
        except (OSError, RedisError) as error:
            self.fail(error)

    async def _read(self) -> None:
        read, waiting = self._connection.read_response, self._waiting
        try:
            while True:
                try:
                    reply = await read(disable_decoding=True, disconnect_on_error=False)
                except ResponseError as error:
                    reply = error
                if not waiting:
                    raise RedisError("an answer that nobody has asked for")
                entry = waiting.popleft()
                self._answers += 1
                if not isinstance(entry, str) or isinstance(reply, Exception):
                    self._tell_answer(entry, reply)
        except (OSError, RedisError) as error:
            self.fail(error)


class BusThread:
    """The thread that reads all bus links of a node. Their messages come in batches, in the main loop.

    `take(link, message)` is called for each: what Redis has sent, a list; or the exception that has ended the link; or
    None, where messages were dropped because too much waited. Messages that begin with `echo` are the node's own, which
    nobody needs: the main loop is not woken for them.
    """

    def __init__(self, take: Callable[[BusLink, Any], None], most_bytes: int, echo: bytes) -> None:
        self._take = take
        self._say_failed = Seldom(logger.exception, time.monotonic)
        self._most_bytes = most_bytes
        self.echo = echo
        self._main = asyncio.get_running_loop()
        self.loop = type(self._main)()
        self.links: set[BusLink] = set()  # only the thread writes it
        self.inbox: deque[tuple[BusLink, Any, int]] = deque()
        self.read_bytes = 0  # only the thread writes it
        self._taken_bytes = 0
        self._awake = False
        self._awake_at = 0.0
        self._stopping = False
        self.worst_lag_s = 0.0
        """The longest that a message has waited since this was set to 0."""
        self._thread = threading.Thread(target=self.loop.run_forever, name="street_fast bus", daemon=True)
        self._thread.start()

    @property
    def pending_bytes(self) -> int:
        """What waits to be taken in."""
        return self.read_bytes - self._taken_bytes

    @property
    def lag_s(self) -> float:
        """For how long the oldest message has waited."""
        return time.monotonic() - self._awake_at if self._awake and self.inbox else 0.0

    async def stop(self) -> None:
        """End the thread. Its links are closed already."""
        self._stopping = True
        self.inbox.clear()
        ended = self._main.create_future()

        async def end() -> None:
            while True:  # a connection that is made in the moment in which that is cancelled is there at the next turn
                await asyncio.gather(*(link.end() for link in [*self.links]))
                tasks = asyncio.all_tasks() - {asyncio.current_task()}
                if not tasks:
                    break
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
            await asyncio.sleep(0)  # the transports are closed by then
            self.loop.stop()
            self._main.call_soon_threadsafe(ended.set_result, None)

        ending = asyncio.run_coroutine_threadsafe(end(), self.loop)
        await ended
        self._thread.join()
        assert ending is not None
        self.loop.close()

    # --- in the thread ---

    def put(self, link: BusLink, message: Any, size: int) -> None:
        """Something has come. The link drops messages as long as too much waits."""
        self.read_bytes += size
        self.inbox.append((link, message, size))
        if not self._awake:
            self._awake = True
            self._awake_at = time.monotonic()
            with contextlib.suppress(RuntimeError):  # the main loop was closed
                self._main.call_soon_threadsafe(self._take_all)

    def is_full(self, part: float) -> bool:
        """Whether more than this part of what may wait does."""
        return self.read_bytes - self._taken_bytes > part * self._most_bytes

    # --- in the main loop ---

    def _take_all(self) -> None:
        started = time.monotonic()
        self.worst_lag_s = max(self.worst_lag_s, started - self._awake_at)
        self._awake = False  # before it is emptied: what comes after that wakes again
        inbox, take = self.inbox, self._take
        count = 0
        while inbox:
            link, message, size = inbox.popleft()
            self._taken_bytes += size
            if self._stopping:
                return
            try:
                take(link, message)
            except Exception:
                self._say_failed("a message of Redis could not be taken in")
            count += 1
            if count & 63 == 0 and time.monotonic() - started > _TAKE_S:
                if inbox and not self._awake:
                    self._awake = True
                    self._awake_at = time.monotonic()
                    self._main.call_soon(self._take_all)
                return


class BusLink:
    """A connection that has subscribed. All but `_read` and `_write` is called in the main loop."""

    def __init__(self, thread: BusThread, place: Place, address: Address, timeout_s: float) -> None:
        self._thread = thread
        self._place = place
        self.address = address
        self._timeout_s = timeout_s
        self._connection: Connection | None = None
        self._out: deque[bytes] = deque()
        self._wake = asyncio.Event()  # of the thread, which is the first to wait for it
        self._tasks: list[asyncio.Task[None]] = []
        self.up = False

    async def open(self) -> dict[str, str]:
        """Connect, and return what INFO says. Raises Unavailable."""
        future = asyncio.run_coroutine_threadsafe(self._open(), self._thread.loop)
        info = await asyncio.wrap_future(future)
        self.up = True
        return info

    def send(self, packed: bytes) -> None:
        """Send a command. Its answers come as messages."""
        if self.up:
            self._thread.loop.call_soon_threadsafe(self._send, packed)

    def close(self) -> None:
        """End it. Nothing comes of it any more but what waits already."""
        self.up = False
        with contextlib.suppress(RuntimeError):  # the thread has ended
            asyncio.run_coroutine_threadsafe(self.end(), self._thread.loop)

    # --- in the thread ---

    async def _open(self) -> dict[str, str]:
        connection = await self._place.connect(self.address, self._timeout_s)
        self._connection = connection
        self._thread.links.add(self)
        try:
            info = await asyncio.wait_for(_info(connection), self._timeout_s)
        except BaseException as error:
            await self.end()
            if isinstance(error, (OSError, RedisError, asyncio.TimeoutError)):
                raise Unavailable(f"{self.address} does not answer: {reason_of(error)}") from None
            raise
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._read(connection)), loop.create_task(self._write(connection))]
        return info

    def _send(self, packed: bytes) -> None:
        self._out.append(packed)
        self._wake.set()

    async def end(self) -> None:
        """End the connection."""
        self._thread.links.discard(self)
        connection, self._connection = self._connection, None
        for task in self._tasks:
            task.cancel()
        if connection is not None:
            await _end(connection)

    async def _write(self, connection: Connection) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._out:
                    await connection.send_packed_command(self._out.popleft(), check_health=False)
        except (OSError, RedisError) as error:
            self._thread.put(self, error, 0)

    async def _read(self, connection: Connection) -> None:
        read, thread = connection.read_response, self._thread
        put, is_full, echo = thread.put, thread.is_full, thread.echo
        dropping = False
        try:
            while True:
                try:
                    message = await read(disable_decoding=True, disconnect_on_error=False)
                    data = message[2]
                except ResponseError as error:
                    put(self, error, 0)
                    continue
                if type(data) is not bytes:
                    put(self, message, 0)
                    continue
                if data.startswith(echo):
                    continue
                if is_full(0.5 if dropping else 1.0):
                    if not dropping:
                        dropping = True
                        put(self, None, 0)
                    continue
                if dropping:
                    dropping = False
                    put(self, None, 0)
                put(self, message, len(data) + _AROUND_A_MESSAGE)
        except (OSError, RedisError) as error:
            put(self, error, 0)
        except (TypeError, IndexError) as error:  # an answer where messages are expected
            put(self, RedisError(f"unexpected: {error}"), 0)


async def _info(connection: Connection) -> dict[str, str]:
    """Who the server is, as INFO says."""
    found: dict[str, str] = {}
    for section in (b"server", b"replication", b"memory"):
        await connection.send_packed_command(pack((b"INFO", section)), check_health=False)
        found |= parse_info(await connection.read_response(disable_decoding=True, disconnect_on_error=False))
    return found


def parse_info(text: bytes) -> dict[str, str]:
    """The answer to INFO."""
    lines = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in lines if colon}


def _look_at(future: asyncio.Future[Any]) -> None:
    """Nobody may be left to hear of the error."""
    if not future.cancelled():
        future.exception()

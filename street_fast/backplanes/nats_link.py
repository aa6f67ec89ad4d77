"""The connection to NATS, made again for ever; the only module that knows the client library.

nats-py opens the connection, logs in, keeps it alive and parses it. It is not asked to make the connection anew, to
remember subscriptions or to buffer anything: a client that is lost is thrown away, nothing is sent in silence later,
and whoever uses the link hears of each beginning (`on_up`) and end (`on_down`). Messages go from its parser straight to
`on_message`, without a queue and a task for each subscription: what cannot be taken in as fast as it comes waits in the
server, which says so by ending the connection, and the library drops nothing. What is written in one turn of the loop
is one write.

For that, these names of nats-py are used that are not in its documentation: ``Client._process_msg`` (overridden),
``Client._reading_task`` (to know when it has ended) and ``Client._transport._io_writer`` (the transport).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import os
import random
import socket
import ssl
import struct
import urllib.parse
from typing import TYPE_CHECKING, Any

import nats.aio.client

from street_fast.backplanes import OutcomeUnknown, Unavailable
from street_fast.backplanes.reasons import reason_of
from street_fast.errors import ConfigurationError
from street_fast.seldom import Seldom

if TYPE_CHECKING:
    from collections.abc import Callable

    from street_fast.limits import Limits

__all__ = ["Link", "Reply", "header", "status"]

logger = logging.getLogger("street_fast")

_CONNECT_S = 2.0
_PING_S = 5
_PINGS = 2
_FIRST_WAIT_S = 0.05
_MOST_WAIT_S = 1.0
_CLOSE_S = 1.0
_SWEEP_S = 0.2
_DEFAULT_PORT = 4222

Reply = tuple[bytes, bytes]
"""Headers and payload of an answer."""


class _Client(nats.aio.client.Client):
    def __init__(self, on_message: Callable[[int, bytes, bytes, bytes, bytes | None], None]) -> None:
        super().__init__()
        self._on_message = on_message

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        self._on_message(sid, subject, reply, data, headers)


class _Request:
    """One that waits for its answer; `replies` are collected if there are several."""

    __slots__ = ("deadline", "future", "last", "replies")

    def __init__(
        self, future: asyncio.Future[Any], deadline: float, last: Callable[[bytes, bytes], bool] | None
    ) -> None:
        self.future = future
        self.deadline = deadline
        self.last = last
        self.replies: list[Reply] = []


class Link:
    """One connection to one of the servers in `url`.

    Its users write to it with `send` and `publish`, and ask with `request`. Subscription ids are theirs, from 2 on; the
    1 is the inbox of the link. Raises ConfigurationError for a `url` that is none.
    """

    def __init__(
        self,
        url: str,
        limits: Limits,
        on_up: Callable[[], None],
        on_down: Callable[[], None],
        on_message: Callable[[int, bytes, bytes, bytes, bytes | None], None],
    ) -> None:
        self._servers, self._login, self._tls = _parsed(url)
        self.shown = ",".join(urllib.parse.urlsplit(server).netloc for server in self._servers)
        """The servers, without passwords."""
        self._limits = limits
        self._on_up = on_up
        self._on_down = on_down
        self._on_message = on_message
        self._client: _Client | None = None
        self._transport: asyncio.Transport | None = None
        self._out: list[bytes] = []
        self._requests: dict[bytes, _Request] = {}
        self._number = 0
        self._inbox = b""
        self._task: asyncio.Task[None] | None = None
        self._ended: asyncio.Future[str] | None = None
        self._discovered: list[str] = []
        self._sweep_at = 0.0
        self._sweep: asyncio.TimerHandle | None = None
        self.max_payload = 1_048_576
        self._error: Exception | None = None
        self._forbidden = ""
        self.trouble = "not connected yet"
        """Why there is no connection, for people; empty if there is one."""
        self.connects = 0
        """Times that a connection was made."""
        self.timeouts = 0
        """Requests without an answer in time."""

    # --- life ---

    def start(self) -> None:
        """Begin to connect."""
        self._loop = asyncio.get_running_loop()
        self._say_failed = Seldom(logger.exception, self._loop.time)
        self._inbox = b"_INBOX." + os.urandom(12).hex().encode()
        self.tried = asyncio.Event()
        self._task = self._loop.create_task(self._run())

    async def close(self) -> None:
        """End the connection; nothing is called any more, and what waits is told that no answer came."""
        task, self._task = self._task, None
        if task is None:
            return
        self.flush()
        task.cancel()
        await asyncio.wait([task])
        self.tried.set()
        self._drop_requests()
        if self._sweep is not None:
            self._sweep.cancel()
            self._sweep = None
        self.trouble = "closed"

    @property
    def pending_bytes(self) -> int:
        """What waits to go out."""
        return _waiting(self._transport)

    @property
    def up(self) -> bool:
        """Whether there is a connection."""
        return self._transport is not None

    def end(self, reason: str) -> None:
        """Give up this connection, and make another one."""
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(reason)

    # --- what goes out; nothing of it may be called without a connection ---

    def send(self, command: bytes) -> None:
        """Write a command of the protocol, with others of this turn."""
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(command)

    def publish(self, subject: bytes, payload: bytes) -> None:
        """Publish, with nothing to answer."""
        if not self._out:
            self._loop.call_soon(self.flush)
        self._out.append(b"PUB %b %d\r\n%b\r\n" % (subject, len(payload), payload))

    def flush(self) -> None:
        """Hand over what was written in this turn."""
        out, transport = self._out, self._transport
        if not out:
            return
        self._out = []
        if transport is None:
            return
        if transport.is_closing():  # nats-py will say so in a moment
            self.end("the connection ended")
            return
        transport.write(out[0] if len(out) == 1 else b"".join(out))
        if transport.get_write_buffer_size() > self._limits.backplane_pending_bytes:
            self.end(f"it takes nothing: {transport.get_write_buffer_size()} bytes wait to go out")

    def request(
        self,
        subject: bytes,
        payload: bytes,
        headers: bytes = b"",
        *,
        last: Callable[[bytes, bytes], bool] | None = None,
    ) -> asyncio.Future[Any]:
        """Ask, for a `Reply`; with `last` for a list of them, up to the one for which that returns True.

        The future raises OutcomeUnknown if none comes in time, or the connection ends. Raises Unavailable without one.
        """
        if self._transport is None:
            raise Unavailable(f"NATS at {self.shown}: {self.trouble}")
        self._number += 1
        reply = b"%b.%x" % (self._inbox, self._number)
        if headers:
            head = b"NATS/1.0\r\n%b\r\n" % headers
            size = len(head)
            self.send(b"HPUB %b %b %d %d\r\n%b%b\r\n" % (subject, reply, size, size + len(payload), head, payload))
        else:
            self.send(b"PUB %b %b %d\r\n%b\r\n" % (subject, reply, len(payload), payload))
        now = self._loop.time()
        future: asyncio.Future[Any] = self._loop.create_future()
        deadline = now + self._limits.backplane_timeout_s
        self._requests[reply] = _Request(future, deadline, last)
        if self._sweep is None:
            self._sweep_at = now + _SWEEP_S
            self._sweep = self._loop.call_at(self._sweep_at, self._look_at_deadlines)
        return future

    # --- what comes in ---

    def _take(self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None) -> None:
        try:
            if sid == 1:
                self._answered(subject, data, headers or b"")
            else:
                self._on_message(sid, subject, reply, data, headers)
        except Exception:
            self._say_failed("a message of NATS could not be taken in")

    def _answered(self, subject: bytes, data: bytes, headers: bytes) -> None:
        request = self._requests.get(subject)
        if request is None:
            return
        result: Any = (headers, data)
        if request.last is not None:
            request.replies.append(result)
            request.deadline = self._loop.time() + self._limits.backplane_timeout_s
            if not request.last(headers, data):
                return
            result = request.replies
        del self._requests[subject]
        if not request.future.done():
            request.future.set_result(result)

    def _look_at_deadlines(self) -> None:
        self._sweep = None
        now = self._loop.time()
        if now > self._sweep_at + 1.0:
            # The process stood still: what came meanwhile is read first.
            for request in self._requests.values():
                request.deadline = max(request.deadline, now + _SWEEP_S)
        late = [reply for reply, request in self._requests.items() if request.deadline <= now]
        for reply in late:
            future = self._requests.pop(reply).future
            self.timeouts += 1
            if not future.done():
                future.set_exception(
                    OutcomeUnknown(f"NATS at {self.shown}: no answer in {self._limits.backplane_timeout_s:g} s")
                )
                future.exception()
        if self._requests:
            self._sweep_at = now + _SWEEP_S
            self._sweep = self._loop.call_at(self._sweep_at, self._look_at_deadlines)

    # --- the connection ---

    async def _run(self) -> None:
        wait_s = _FIRST_WAIT_S
        while self._task is not None:  # nats-py, and wait_for of old Pythons, may swallow that this is cancelled
            client = _Client(self._take)
            transport: Any = None
            reason = ""
            try:
                self._ended = self._loop.create_future()
                await client.connect(
                    servers=[*self._servers, *self._discovered],
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=_CONNECT_S,  # type: ignore[arg-type]
                    ping_interval=_PING_S,
                    max_outstanding_pings=_PINGS,
                    error_cb=self._on_error,
                    name="street_fast",
                    tls=self._tls,
                    **self._login,
                )
                transport = client._transport._io_writer.transport  # type: ignore[union-attr]
                assert client._reading_task is not None
                client._reading_task.add_done_callback(functools.partial(_end, self._ended))
                wait_s = _FIRST_WAIT_S
                if self._task is not None:
                    self._begin(client, transport)
                    reason = await asyncio.shield(self._ended)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                reason = _reason(
                    self._error if isinstance(error, nats.errors.NoServersError) and self._error else error
                )
            finally:
                await self._finish(client, transport, reason)
            if self._task is None:
                return
            await asyncio.sleep(wait_s * random.uniform(0.5, 1.0))  # noqa: S311 - it spreads reconnects
            wait_s = min(wait_s * 2, _MOST_WAIT_S)

    def _begin(self, client: _Client, transport: asyncio.Transport) -> None:
        if self.trouble:
            logger.info("connected to NATS at %s", self.shown)
        self._client, self._transport = client, transport
        self.trouble = ""
        self.connects += 1
        self.max_payload = client.max_payload
        self._discovered = [server.geturl() for server in client.discovered_servers][:16]
        self.send(b"SUB %b.* 1\r\n" % self._inbox)
        self._on_up()
        self.tried.set()

    async def _finish(self, client: _Client, transport: asyncio.Transport | None, reason: str) -> None:
        was_up, self._transport, self._client = self._transport is not None, None, None
        if self._task is not None:
            self._note(reason)  # at once: whoever is refused now is told why
        self._out.clear()
        if was_up and self._task is not None:
            self._drop_requests()
            self._on_down()
        if transport is not None:
            if self._task is None:  # a goodbye may be on its way
                deadline = self._loop.time() + _CLOSE_S
                while _waiting(transport) and self._loop.time() < deadline:  # noqa: ASYNC110 - nobody tells
                    await asyncio.sleep(0.01)
            else:
                _drop_unsent(transport)
            # nats-py would wait for ever for a server that takes nothing.
            if _waiting(transport):
                transport.abort()
            else:
                transport.close()
        with contextlib.suppress(Exception):
            await asyncio.wait_for(client.close(), _CLOSE_S)

    def _drop_requests(self) -> None:
        requests, self._requests = self._requests, {}
        for request in requests.values():
            if not request.future.done():
                request.future.set_exception(OutcomeUnknown(f"NATS at {self.shown}: the connection ended"))
                request.future.exception()

    def _note(self, reason: str) -> None:
        if reason != self.trouble:
            logger.warning("NATS at %s: %s; trying again", self.shown, reason)
        self.trouble = reason
        self.tried.set()

    async def _on_error(self, error: Exception) -> None:
        """Of nats-py. What ends the connection is seen by its end; of the rest only permissions matter."""
        text = str(error)
        if not self.up:
            if not isinstance(error, nats.errors.NoServersError):
                self._error = error
        elif "permissions violation" in text.lower() and text != self._forbidden:
            self._forbidden = text
            logger.error("NATS at %s does not let this node do what it has to: %s", self.shown, text)


def _waiting(transport: asyncio.Transport | None) -> int:
    """Bytes that wait to go out. A transport of uvloop that is closed may not be asked."""
    return 0 if transport is None or transport.is_closing() else transport.get_write_buffer_size()


def _drop_unsent(transport: asyncio.Transport) -> None:
    """What the kernel has not sent yet, it never sends: when the network is back it would overtake what came after."""
    there = transport.get_extra_info("socket")
    if there is None:  # it is closed
        return
    with contextlib.suppress(OSError):
        there.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _end(ended: asyncio.Future[str], _: object) -> None:
    if not ended.done():
        ended.set_result("the connection ended")


def _reason(error: Exception) -> str:
    text = reason_of(error)
    if "authorization" in text.lower() or "authentication" in text.lower():
        return "the server does not accept the credentials (authorization violation); check user, password or token"
    if isinstance(error, nats.errors.NoServersError):
        return "no server can be reached"
    return text


def _parsed(url: str) -> tuple[list[str], dict[str, Any], ssl.SSLContext | None]:
    """Servers, login and TLS of ``nats://user:password@host:port,host2`` or ``tls://token@host``."""
    scheme, separator, rest = url.partition("://") if isinstance(url, str) else ("", "", "")
    if not separator or scheme not in ("nats", "tls"):
        raise ConfigurationError("the url of a NatsBackplane must be nats://host:port or tls://host:port")
    servers: list[str] = []
    login: dict[str, Any] = {}
    for part in rest.split(","):
        part = part.strip().removeprefix("nats://").removeprefix("tls://").rstrip("/")
        host, port = None, _DEFAULT_PORT
        with contextlib.suppress(ValueError):
            parsed = urllib.parse.urlsplit(f"{scheme}://{part}")
            port = parsed.port or _DEFAULT_PORT
            host = parsed.hostname
        if not host or parsed.path or parsed.query or parsed.fragment or any(c.isspace() for c in part):
            raise ConfigurationError(
                f"the url of a NatsBackplane: {part.rpartition('@')[2]!r} must be host or host:port; "
                f"it is written as nats://user:password@host:port,host:port"
            )
        if parsed.username is not None:
            user = urllib.parse.unquote(parsed.username)
            if parsed.password is None:
                login = {"token": user}
            else:
                login = {"user": user, "password": urllib.parse.unquote(parsed.password)}
        host = f"[{host}]" if ":" in host else host
        servers.append(f"{scheme}://{host}:{port}")
    return servers, login, ssl.create_default_context() if scheme == "tls" else None


# --- headers, as they come ---


def status(headers: bytes) -> int:
    """The status of an answer that is none: 404, 503, 204; 0 if there is no status."""
    return int(headers[9:12]) if headers[8:9] == b" " and headers[9:12].isdigit() else 0


def header(headers: bytes, name: bytes) -> bytes | None:
    """The last header of that name: the server adds its own behind those that a message has."""
    start = headers.rfind(b"\r\n%b:" % name)
    if start < 0:
        return None
    start += len(name) + 3
    return headers[start : headers.find(b"\r\n", start)].strip()

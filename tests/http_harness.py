"""What the tests of the HTTP floors share: request heads, a transport that is a list, real servers on both loops.

`connected` is an HttpConnection on a `Wire` under a clock that the test moves: every byte and every second is the
test's. `exchange` talks to a real server in given pieces and returns all that it says. `parse` splits that into
responses, with h11 as the judge.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from street_fast._core import LoopContext
from street_fast.http_connection import HttpConnection
from street_fast.http_server import HttpServer
from street_fast.limits import DEFAULT_LIMITS, Limits
from street_fast.request import Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable

try:
    import uvloop
except ImportError:  # Windows
    LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {"asyncio": asyncio.new_event_loop}
else:
    LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}

KEY = "dGhlIHNhbXBsZSBub25jZQ=="  # RFC 6455 section 1.3
ACCEPT = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
HANDSHAKE = {
    "Host": "server.example.com",
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": KEY,
    "Sec-WebSocket-Version": "13",
}


def head(
    method: str = "GET", target: str = "/", *lines: str, version: str = "HTTP/1.1", host: str | None = "h"
) -> bytes:
    """A request head; `lines` are whole header lines, as they are."""
    hosts = [] if host is None else [f"Host: {host}"]
    return "\r\n".join([f"{method} {target} {version}", *hosts, *lines, "", ""]).encode("latin-1")


def handshake(target: str = "/ws", *lines: str, **changes: str | None) -> bytes:
    """A good opening handshake with `changes` (underscores for hyphens; None leaves a header out) and extra `lines`."""
    headers: dict[str, str | None] = dict(HANDSHAKE)
    for name, value in changes.items():
        known = next((key for key in headers if key.lower() == name.replace("_", "-").lower()), name.replace("_", "-"))
        headers[known] = value
    fields = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return head("GET", target, *fields, *lines, host=None)


class Answer(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def closes(self) -> bool:
        return "close" in self.headers.get("connection", "").lower()


def parse(data: bytes, methods: Iterable[str] = ()) -> list[Answer]:
    """The responses in `data`; what is no response fails the test. `methods` of the requests, where it matters."""
    answers: list[Answer] = []
    asked = iter(methods)
    while data:
        front, separator, rest = data.partition(b"\r\n\r\n")
        assert separator, f"no response: {data!r}"
        status_line, *lines = front.decode("latin-1").split("\r\n")
        version, status, *_ = status_line.split(" ")
        assert version == "HTTP/1.1", status_line
        pairs = [line.split(": ", 1) for line in lines]
        headers = {name.lower(): value for name, value in pairs}
        assert len(headers) == len(pairs), f"a header came twice: {pairs}"
        bodiless = int(status) < 200 or int(status) in (204, 304) or next(asked, "GET") == "HEAD"
        length = 0 if bodiless else int(headers["content-length"])
        assert len(rest) >= length
        answers.append(Answer(int(status), headers, rest[:length]))
        data = rest[length:]
    return answers


class Clock:
    """Stands still until it is told to move."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Wire(asyncio.Transport):
    """A transport whose other end is the test. `unsent` is what the client has not taken; `taken` what it has."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, tls: bool = False) -> None:
        super().__init__({"peername": ("192.0.2.7", 4711)})
        self._loop = loop
        self._tls = tls
        self.protocol: Any = None
        self.stalled = False
        self.taken = b""
        self.unsent = b""
        self.reading = True
        self.high = 65_536
        self.paused = False
        self.half_closed = False
        self.closing = False
        self.aborted = False
        self.lost = False

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def write(self, data: Any) -> None:
        if self.closing:
            raise RuntimeError("the handler is closed")  # as uvloop does
        assert not self.half_closed, "written after write_eof()"
        self.unsent += bytes(data)
        self.take(0 if self.stalled else len(self.unsent))
        if len(self.unsent) > self.high:
            self.paused = True
            self.protocol.pause_writing()

    def take(self, size: int) -> None:
        self.taken += self.unsent[:size]
        self.unsent = self.unsent[size:]
        if self.paused and not self.unsent:
            self.paused = False
            self.protocol.resume_writing()
        if not self.unsent and self.closing:
            self._lose()

    def get_write_buffer_size(self) -> int:
        return len(self.unsent)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high is not None
        self.high = high

    def can_write_eof(self) -> bool:
        return not self._tls

    def write_eof(self) -> None:
        self.half_closed = True

    def pause_reading(self) -> None:
        assert self.reading
        self.reading = False

    def resume_reading(self) -> None:
        assert not self.reading
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.unsent:
                self._lose()

    def abort(self) -> None:
        self.closing = self.aborted = True
        self._lose()

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            self._loop.call_soon(self._tell_lost)

    def _tell_lost(self) -> None:
        self.protocol.connection_lost(None)


class Connected:
    """A client of `server` whose wire is a `Wire`."""

    def __init__(self, server: HttpServer, clock: Clock, context: LoopContext, *, tls: bool = False) -> None:
        self.server = server
        self.clock = clock
        self.context = context
        self.wire = Wire(asyncio.get_running_loop(), tls=tls)
        self.protocol = HttpConnection(server, context)
        self.wire.protocol = self.protocol

    def open(self) -> Connected:
        self.protocol.connection_made(self.wire)
        return self

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            if self.wire.closing:
                break
            self.wire.protocol.data_received(bytes(piece))

    def end(self) -> None:
        """The client closes its side."""
        if not self.wire.protocol.eof_received():
            self.wire.close()

    def vanish(self) -> None:
        self.wire.abort()

    async def wait(self, seconds: float = 0.0) -> None:
        """Let time pass, in the steps of the wheel, and the loop run."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            self.clock.now = min(self.clock.now + 0.5, end)
            self.context.wheel.advance()
            await settle()
        await settle()

    @property
    def answers(self) -> list[Answer]:
        return parse(self.wire.taken)

    @property
    def answer(self) -> Answer:
        """The one answer that there is."""
        (only,) = self.answers
        return only


async def settle() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


async def until(condition: Callable[[], object]) -> None:
    """Waits for something that is about to happen; fails after twenty seconds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.002)
    raise AssertionError("it did not happen")


class Bench:
    """A server that listens nowhere, and clients for it."""

    def __init__(self, limits: Limits = DEFAULT_LIMITS) -> None:
        self.server = HttpServer(limits=limits)
        self.server.accepting = True
        self.clock = Clock()
        self.context = LoopContext(asyncio.get_running_loop(), self.clock)

    def connect(self, *, tls: bool = False) -> Connected:
        return Connected(self.server, self.clock, self.context, tls=tls).open()

    def assert_clean(self) -> None:
        """Nothing is left of any client."""
        assert self.server.connection_count == 0
        assert not self.server._unfinished
        assert len(self.context.wheel) == 0


@pytest.fixture(params=list(LOOPS))
def on_loop(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[Any]]], Any]:
    """Runs an async function to its end on the event loop of asyncio, and on uvloop's. It must leave no task."""

    def run(main: Callable[[], Awaitable[Any]]) -> Any:
        loop = LOOPS[request.param]()
        problems: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _loop, context: problems.append(context))

        async def whole() -> Any:
            result = await asyncio.wait_for(main(), 30)
            await settle()
            assert asyncio.all_tasks() == {asyncio.current_task()}
            return result

        try:
            return loop.run_until_complete(whole())
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()
            assert not problems, problems

    return run


@contextlib.asynccontextmanager
async def serving(server: HttpServer, **options: Any) -> AsyncIterator[HttpServer]:
    """`server` listens on a free port of the loopback, unless `options` say otherwise."""
    await server.listen(**{"port": 0, **options})
    try:
        yield server
    finally:
        await server.close()


async def exchange(server: HttpServer, *pieces: bytes, pause: bool = False, end: bool = False) -> bytes:
    """Send `pieces` (each in its own segment with `pause`), perhaps close our side, read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        for piece in pieces:
            writer.write(piece)
            if pause:
                await asyncio.sleep(0.001)
        if end:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


def text(body: str) -> Callable[[Any], Response]:
    """A handler that says that."""
    return lambda _request: Response.text(body)

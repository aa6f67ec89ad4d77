"""What it takes to test an application of street_fast without sockets and without waiting.

* `ManualClock`: time that passes when the test says so, for `LoopContext`, `TimerWheel` and `ChannelHub`.
* `FakeConnection`: a peer of a `ChannelHub` that keeps what it was sent.
* `memory_client()`: a client of a `StreetWebSocketServer`, or of a handler, that speaks to it in memory: through the
  origin check, `authenticate` and the handshake, like any other.
* `memory_pair()`: a server's and a client's `WebSocket`, connected through two `MemoryTransport`. They speak the real
  protocol, in one process and one event loop; either reader can be stalled, so that the other side feels backpressure.

Nothing here is used by the library itself.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from street_fast._core import LoopContext, WebSocket
from street_fast.errors import ConnectionClosed, HandshakeRefused
from street_fast.http_server import HttpServer
from street_fast.limits import DEFAULT_LIMITS, Limits
from street_fast.messages import UNSET, encode
from street_fast.request import Request
from street_fast.server import StreetWebSocketServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping

    from street_fast.messages import Message
    from street_fast.request import Response

__all__ = [
    "FakeConnection",
    "ManualClock",
    "MemoryClient",
    "MemoryPair",
    "MemoryTransport",
    "memory_client",
    "memory_pair",
]


class ManualClock:
    """A clock in seconds that stands still until `advance`. Call it to read it."""

    def __init__(self, now: float = 1_000.0) -> None:
        self._now = now

    def __call__(self) -> float:
        return self._now

    def advance(self, seconds: float) -> float:
        """Let `seconds` pass; returns the new time."""
        if seconds < 0:
            raise ValueError(f"advance({seconds!r}): time does not go back")
        self._now += seconds
        return self._now

    def ms(self) -> int:
        """The same time in whole milliseconds, for ``ChannelHub(clock_ms=clock.ms)``."""
        return round(self._now * 1_000)


class FakeConnection:
    """A peer of a hub, without a socket.

    `messages` are those that it was sent, decoded; `take()` returns them and forgets them. With `slow` set, droppable
    messages are dropped and counted in `dropped`. `on_deliver(message)` is called with each message that arrives, and
    may raise.
    """

    _ids = itertools.count(1)

    def __init__(self, id: str | None = None) -> None:  # noqa: A002
        self.id = f"fake-{next(self._ids)}" if id is None else id
        self.closed = False
        self.messages: list[dict[str, Any]] = []
        self.slow = False
        self.dropped = 0
        self.on_deliver: Callable[[Message], object] | None = None
        self._close_callbacks: list[Callable[[Any], object]] = []

    @property
    def sink(self) -> FakeConnection:
        return self

    def deliver(self, message: Message, droppable: bool = False) -> None:
        if self.closed:
            return
        if self.slow and droppable:
            self.dropped += 1
            return
        self.messages.append(json.loads(message.json))
        if self.on_deliver is not None:
            self.on_deliver(message)

    def take(self) -> list[dict[str, Any]]:
        """The messages since the last time."""
        messages, self.messages = self.messages, []
        return messages

    def add_close_callback(self, callback: Callable[[Any], object]) -> None:
        if self.closed:
            callback(self)
        else:
            self._close_callbacks.append(callback)

    def simulate_close(self) -> None:
        """Close, as if the client had gone away: calls the close callbacks, once."""
        self.closed = True
        callbacks, self._close_callbacks = self._close_callbacks, []
        for callback in callbacks:
            callback(self)

    def __repr__(self) -> str:
        return f"<FakeConnection {self.id}{' closed' if self.closed else ''}>"


class MemoryTransport(asyncio.Transport):
    """One end of a connection in memory; `MemoryTransport.pair()` makes both.

    It behaves like asyncio's TCP transports: bytes arrive at the other end in order and in a later turn of the loop;
    what neither reader nor `socket_buffer_bytes` (the kernel's part) takes stays in the write buffer, which pauses the
    protocol above its limit; `close()` sends the rest first, `abort()` does not; `connection_lost()` comes once, in a
    later turn.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        socket_buffer_bytes: int = 65_536,
        read_bytes: int = 65_536,
        extra: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(extra)
        self._loop = loop
        self._socket_buffer_bytes = socket_buffer_bytes
        self._read_bytes = read_bytes
        self._other: MemoryTransport = self
        self._protocol: asyncio.BaseProtocol | None = None
        self._unsent = bytearray()  # our write buffer
        self._arrived = bytearray()  # what the other end sent and we have not read
        self._end_written = False
        self._end_sent = False
        self._end_arrived = False
        self._reading = True
        self._stalled = False
        self._read_scheduled = False
        self._closing = False
        self._lost = False
        self._writing_paused = False
        self.set_write_buffer_limits()

    @classmethod
    def pair(
        cls, *, socket_buffer_bytes: int = 65_536, read_bytes: int = 65_536
    ) -> tuple[MemoryTransport, MemoryTransport]:
        """Two connected ends on the running loop. `read_bytes` is the most that one read returns; 1 is a good test."""
        loop = asyncio.get_running_loop()
        names = (("127.0.0.1", 1), ("127.0.0.1", 2))
        ends = [
            cls(
                loop,
                socket_buffer_bytes=socket_buffer_bytes,
                read_bytes=read_bytes,
                extra={"sockname": names[end], "peername": names[1 - end]},
            )
            for end in (0, 1)
        ]
        ends[0]._other, ends[1]._other = ends[1], ends[0]
        return ends[0], ends[1]

    # --- for tests ---

    def stall(self) -> None:
        """Stop reading, whatever the protocol wants, so that the other end's writes pile up."""
        self._stalled = True

    def unstall(self) -> None:
        """Read again."""
        self._stalled = False
        self._schedule_read()

    def lose(self, error: Exception | None = None) -> None:
        """Lose the connection at this end, as if the network had said so."""
        self._drop(error)

    # --- protocol ---

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = protocol
        self._schedule_read()

    def get_protocol(self) -> asyncio.BaseProtocol:
        assert self._protocol is not None, "no protocol has been set"
        return self._protocol

    # --- reading ---

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def pause_reading(self) -> None:
        self._reading = False

    def resume_reading(self) -> None:
        self._reading = True
        self._schedule_read()

    def _can_read(self) -> bool:
        return self._protocol is not None and self._reading and not (self._stalled or self._closing)

    def _schedule_read(self) -> None:
        if (self._arrived or self._end_arrived) and self._can_read() and not self._read_scheduled:
            self._read_scheduled = True
            self._loop.call_soon(self._read)

    def _read(self) -> None:
        self._read_scheduled = False
        if not self._can_read():
            return
        try:
            if self._arrived:
                self._read_some()
            elif self._end_arrived:
                self._end_arrived = False
                protocol = self.get_protocol()
                assert isinstance(protocol, asyncio.Protocol | asyncio.BufferedProtocol)
                if not protocol.eof_received():
                    self.close()
        except Exception as error:
            self._loop.call_exception_handler(
                {
                    "message": "a protocol failed to read",
                    "exception": error,
                    "transport": self,
                    "protocol": self._protocol,
                }
            )
            self._drop(error)
        self._other._send()
        self._schedule_read()

    def _read_some(self) -> None:
        protocol = self.get_protocol()
        size = min(len(self._arrived), self._read_bytes)
        if isinstance(protocol, asyncio.BufferedProtocol):
            buffer = memoryview(protocol.get_buffer(size))
            size = min(size, len(buffer))
            buffer[:size] = self._arrived[:size]
            del self._arrived[:size]
            protocol.buffer_updated(size)
        else:
            assert isinstance(protocol, asyncio.Protocol)
            data = bytes(self._arrived[:size])
            del self._arrived[:size]
            protocol.data_received(data)

    # --- writing ---

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if not isinstance(data, bytes | bytearray | memoryview):
            raise TypeError(f"write() takes bytes, bytearray or memoryview, not {type(data).__name__}")
        if self._end_written:
            raise RuntimeError("write() after write_eof()")
        if self._closing or self._lost:
            return
        if self._other._lost:
            self._drop(BrokenPipeError("the other end is closed"))
            return
        self._unsent += data
        self._send()
        if len(self._unsent) > self._high and not self._writing_paused:
            self._writing_paused = True
            self.get_protocol().pause_writing()

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._closing:
            self._end_written = True
            self._send()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = 65_536 if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high={high!r} must be at least low={low!r}, and low at least 0")
        self._high = high
        self._low = low

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return len(self._unsent)

    def _send(self) -> None:
        """Move what fits from the write buffer to the other end."""
        other = self._other
        size = min(len(self._unsent), max(0, self._socket_buffer_bytes - len(other._arrived)))
        if size:
            other._arrived += self._unsent[:size]
            del self._unsent[:size]
        if not self._unsent and not self._lost:
            if self._closing:
                self._drop(None)
            elif self._end_written:
                self._send_end()
        other._schedule_read()
        if self._writing_paused and len(self._unsent) <= self._low and not self._lost:
            self._writing_paused = False
            self.get_protocol().resume_writing()

    # --- the end ---

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self._send()

    def abort(self) -> None:
        self._drop(None)

    def _drop(self, error: Exception | None) -> None:
        if self._lost:
            return
        self._lost = self._closing = True
        self._unsent.clear()
        self._send_end()
        self._loop.call_soon(self._tell_lost, error)

    def _send_end(self) -> None:
        if not self._end_sent:
            self._end_sent = self._other._end_arrived = True
            self._other._schedule_read()

    def _tell_lost(self, error: Exception | None) -> None:
        if self._protocol is not None:
            self._protocol.connection_lost(error)


class MemoryPair(NamedTuple):
    """Both sides of one connection, and the transport of each."""

    server: WebSocket
    client: WebSocket
    server_transport: MemoryTransport
    client_transport: MemoryTransport


def memory_pair(
    *,
    context: LoopContext | None = None,
    limits: Limits = DEFAULT_LIMITS,
    client_limits: Limits = DEFAULT_LIMITS,
    subprotocol: str | None = None,
    socket_buffer_bytes: int = 65_536,
    read_bytes: int = 65_536,
) -> MemoryPair:
    """A server's and a client's WebSocket that are open and connected, without an opening handshake.

    Needs a running loop. With ``context=LoopContext(loop, clock)`` and a `ManualClock`, heartbeats and deadlines happen
    when the test advances the clock and then calls ``context.wheel.advance()``.
    """
    context = LoopContext.of() if context is None else context
    server_transport, client_transport = MemoryTransport.pair(
        socket_buffer_bytes=socket_buffer_bytes, read_bytes=read_bytes
    )
    server = WebSocket(context, limits, subprotocol=subprotocol)
    client = WebSocket(context, client_limits, client=True, subprotocol=subprotocol)
    server.start(server_transport)
    client.start(client_transport)
    return MemoryPair(server, client, server_transport, client_transport)


class MemoryClient:
    """A client of a StreetWebSocketServer in memory; `memory_client` makes it.

    `ws` is its WebSocket, for what is no event: `ws.send`, `ws.ping`, `ws.abort`. `transport` can be stalled.
    """

    def __init__(self, ws: WebSocket, transport: MemoryTransport) -> None:
        self.ws = ws
        self.transport = transport
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        ws.on_message = lambda text: self._events.put_nowait(json.loads(text))
        ws.on_close = lambda code, reason: self._events.put_nowait(None)

    def emit(self, type: str, data: object = UNSET, *, id: int | str | None = None) -> None:  # noqa: A002
        """Send ``{"type", "data"?, "id"?}``."""
        event = {"type": type, "data": data, "id": id}
        present = {key: value for key, value in event.items() if value is not UNSET and value is not None}
        self.ws.send(encode(present).decode())

    async def receive(self, timeout_s: float = 5.0) -> dict[str, Any]:
        """The next event. Raises TimeoutError if none comes, ConnectionClosed if the connection ends first."""
        try:
            event = await asyncio.wait_for(self._events.get(), timeout_s)
        except asyncio.TimeoutError:
            raise TimeoutError(f"no event came within {timeout_s:g} s") from None
        if event is None:
            self._events.put_nowait(None)
            raise ConnectionClosed(self.ws.close_code or 1006, self.ws.close_reason)
        return event

    async def expect(self, type: str, timeout_s: float = 5.0) -> dict[str, Any]:  # noqa: A002
        """The next event, which must be a `type`: AssertionError if it is another. Otherwise as `receive`."""
        event = await self.receive(timeout_s)
        if event["type"] != type:
            raise AssertionError(f"expected an event {type!r}, and got {event!r}")
        return event

    async def settle(self) -> list[dict[str, Any]]:
        """The events that are on their way or have come already, and were not received; for "nothing came" too.

        What travels in memory needs a few turns of the loop and no time; a handler that sleeps is not waited for.
        """
        for _ in range(20):
            await asyncio.sleep(0)
        events: list[dict[str, Any]] = []
        while not self._events.empty():
            event = self._events.get_nowait()
            if event is None:
                self._events.put_nowait(None)
                break
            events.append(event)
        return events

    async def close(self, code: int = 1000, reason: str = "") -> None:
        """Close, as a client does, and wait for the end."""
        self.ws.close(code, reason)
        await self.ws.wait_closed()


class _MemoryUpgrade:
    """The opening handshake of a `MemoryClient`, as the server sees it; see `street_fast.handshake.Upgrade`."""

    def __init__(self, request: Request, transport: MemoryTransport) -> None:
        self.request = request
        self.on_abandoned: Callable[[], None] | None = None
        self.answered = asyncio.get_running_loop().create_future()
        self._transport = transport

    def refuse(self, response: Response) -> None:
        if not self.answered.done():
            text = response.body.decode(errors="replace").strip()
            self.answered.set_exception(
                HandshakeRefused(response.status, "refused", f"{response.status}: {text}", tuple(response.headers))
            )

    def take_over(self) -> tuple[asyncio.Transport, bytes]:
        if self.answered.done():
            raise ConnectionClosed(1006, "the client has gone")
        self.answered.set_result(None)
        return self._transport, b""


class _Head(asyncio.Protocol):
    """Reads the 101 response, then makes way for the client's WebSocket."""

    def __init__(self, ws: WebSocket, transport: MemoryTransport) -> None:
        self._ws = ws
        self._transport = transport
        self._head = b""
        transport.set_protocol(self)

    def data_received(self, data: bytes) -> None:
        self._head += data
        head, end, tail = self._head.partition(b"\r\n\r\n")
        if end:
            assert head.startswith(b"HTTP/1.1 101 "), head
            self._ws.start(self._transport, tail=tail)


@contextlib.asynccontextmanager
async def memory_client(
    server: StreetWebSocketServer | Callable[..., object],
    target: str | None = None,
    *,
    headers: Mapping[str, str] | None = None,
    subprotocols: tuple[str, ...] = (),
    timeout_s: float = 5.0,
) -> AsyncIterator[MemoryClient]:
    """Connect to a server, or to a handler, without a socket::

        async with memory_client(rooms, "/?user=ada") as ada:
            ada.emit("join", {"room": "general"})
            members = (await ada.expect("presence:snapshot"))["data"]

    A server that is attached to nothing yet needs a handler first: ``server.attach(HttpServer(), rooms)``. `target` is
    path and query, by default the server's path. Raises HandshakeRefused, with the status, if it is not let in.
    Everything but the HTTP server in front is the real thing.
    """
    if not isinstance(server, StreetWebSocketServer):
        handler, server = server, StreetWebSocketServer()
        server.attach(HttpServer(), handler)
    fields = {
        "Host": "memory",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": base64.b64encode(os.urandom(16)).decode(),
        "Sec-WebSocket-Version": "13",
        **({"Sec-WebSocket-Protocol": ", ".join(subprotocols)} if subprotocols else {}),
        **(headers or {}),
    }
    request = Request.from_pairs(
        "GET",
        server.path if target is None else target,
        [(name.encode(), value.encode()) for name, value in fields.items()],
        client=("127.0.0.1", 1),
    )
    server_end, client_end = MemoryTransport.pair()
    ws = WebSocket(LoopContext.of(), client=True)
    client = MemoryClient(ws, client_end)
    _Head(ws, client_end)
    upgrade = _MemoryUpgrade(request, server_end)
    server.handle_upgrade(cast("Any", upgrade))
    try:
        await asyncio.wait_for(upgrade.answered, timeout_s)
    except BaseException:
        if upgrade.on_abandoned is not None:
            upgrade.on_abandoned()
        raise
    try:
        yield client
    finally:
        if ws.transport is None:
            client_end.abort()  # the 101 has not been read yet
        elif not ws.closed:
            await client.close()

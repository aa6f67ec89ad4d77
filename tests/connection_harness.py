"""What the tests of WebSocket share: both implementations, a loop and a clock that are turned by hand, a transport in
memory whose peer takes as much as the test says, and the other end of a real socket.

``World`` is one context with its connections, fully deterministic: nothing happens until ``turn()`` runs what is ready
or ``advance(seconds)`` lets time pass, timer by timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import socket
from collections import deque
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from tests.frames_harness import MODULES, load, xor

if TYPE_CHECKING:
    from street_fast.limits import Limits


def load_core(name: str) -> Any:
    """The names of one implementation of connection and frames, as street_fast._core gives them."""
    frames = load(name)
    module = MODULES[name].replace("_frames", "_connection")
    try:
        connection = importlib.import_module(module)
    except ImportError as error:
        pytest.fail(f"{module} is not there ({error}): run `python setup.py build_ext --inplace`", pytrace=False)
    names = ("LoopContext", "WebSocket", "broadcast", "fan_out", "unix_time_ms")
    return SimpleNamespace(name=name, Frame=frames.Frame, **{n: getattr(connection, n) for n in names})


def parse(wire: bytes, *, masked: bool = False) -> list[tuple[int, bytes]]:
    """The frames in what one side wrote, as (opcode, payload); they must be whole, final and (not) masked."""
    frames = []
    while wire:
        first, second = wire[0], wire[1]
        assert first & 0xF0 == 0x80, f"FIN and RSV bits are {first:08b}"
        assert bool(second & 0x80) is masked
        length, skip = second & 0x7F, 2
        if length > 125:
            skip = 4 if length == 126 else 10
            length = int.from_bytes(wire[2:skip], "big")
        mask = wire[skip : skip + 4] if masked else None
        skip += 4 if masked else 0
        assert len(wire) >= skip + length, "the last frame is not whole"
        payload = wire[skip : skip + length]
        frames.append((first & 0x0F, xor(payload, mask) if mask else payload))
        wire = wire[skip + length :]
    return frames


class Panic(BaseException):
    """As an extension written in Rust raises it when it crashes: no Exception."""


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class ManualLoop:
    """As much of an event loop as a WebSocket uses."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.ready: deque[tuple[Any, tuple[Any, ...]]] = deque()
        self.timers: list[SimpleNamespace] = []
        self.failures: list[dict[str, Any]] = []

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> None:
        self.ready.append((callback, args))

    def call_later(self, delay: float, callback: Any, *args: Any) -> Any:
        timer = SimpleNamespace(when=self.clock.now + delay, callback=callback, args=args)
        timer.cancel = lambda: self.timers.remove(timer) if timer in self.timers else None
        self.timers.append(timer)
        return timer

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(context)

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def get_debug(self) -> bool:
        return False

    def turn(self) -> None:
        """Runs what is ready, and what becomes ready by that."""
        for _ in range(10_000):
            if not self.ready:
                return
            callback, args = self.ready.popleft()
            callback(*args)
        raise AssertionError("the loop does not come to rest")

    def advance(self, seconds: float) -> None:
        self.turn()
        end = self.clock.now + seconds
        while self.timers:
            timer = min(self.timers, key=lambda timer: timer.when)
            if timer.when > end:
                break
            self.timers.remove(timer)
            self.clock.now = max(self.clock.now, timer.when) + 1e-6  # time passes, also where floats round down
            timer.callback(*timer.args)
            self.turn()
        self.clock.now = max(self.clock.now, end)


class MemoryTransport(asyncio.Transport):
    """A transport whose kernel takes everything at once, or with ``room`` set only that many bytes more.

    ``taken`` is what the peer got. ``arrive()`` and ``hang_up()`` are what the peer does.
    """

    def __init__(self, loop: ManualLoop) -> None:
        super().__init__()
        self.loop = loop
        self.protocol: Any = None
        self.taken = bytearray()
        self.writes = 0
        self.room: int | None = None
        self.backlog = bytearray()
        self.high, self.low = 65_536, 16_384
        self.writing_paused = False
        self.reading = True
        self.waiting = deque()
        self.closing = self.ended = self.aborted = self.lost = False

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 1) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = 65_536 if high is None else high
        self.low = self.high // 4 if low is None else low
        self._pause_if_full()

    def get_write_buffer_size(self) -> int:
        return len(self.backlog)

    def write(self, data: Any) -> None:
        assert not self.ended, "written after write_eof()"
        if self.closing:
            return
        self.writes += 1
        self.backlog += data
        self._drain()
        self._pause_if_full()

    def _pause_if_full(self) -> None:
        if len(self.backlog) > self.high and not self.writing_paused:
            self.writing_paused = True
            if self.protocol is not None:
                self.protocol.pause_writing()

    def _drain(self) -> None:
        count = len(self.backlog) if self.room is None else min(self.room, len(self.backlog))
        self.taken += self.backlog[:count]
        del self.backlog[:count]
        if self.room is not None:
            self.room -= count

    def take(self, count: int | None) -> None:
        """The peer reads: room for so many bytes more, or (None) for everything from now on."""
        self.room = None if count is None else (self.room or 0) + count
        self._drain()
        if self.writing_paused and len(self.backlog) <= self.low:
            self.writing_paused = False
            self.protocol.resume_writing()
        if self.closing and not self.backlog:
            self._lose(None)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.backlog:
                self._lose(None)

    def abort(self) -> None:
        self.aborted = self.closing = True
        self.backlog.clear()
        self._lose(None)

    def break_down(self, error: Exception) -> None:
        self.closing = True
        self._lose(error)

    def _lose(self, error: Exception | None) -> None:
        if not self.lost:
            self.lost = True
            self.loop.call_soon(lambda: self.protocol.connection_lost(error))

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True
        self.loop.call_soon(self._deliver)

    def arrive(self, data: bytes) -> None:
        self.waiting.append(data)
        self._deliver()

    def _deliver(self) -> None:
        while self.reading and self.waiting and not self.closing:
            data = self.waiting.popleft()
            buffer = self.protocol.get_buffer(-1)
            buffer[: len(data)] = data
            self.protocol.buffer_updated(len(data))

    def hang_up(self) -> None:
        if not self.protocol.eof_received():
            self.close()


class Connection:
    """One WebSocket, its transport, and what its application saw."""

    def __init__(self, world: World, limits: Limits | None, **options: Any) -> None:
        self.world = world
        self.messages: list[Any] = []
        self.ends: list[tuple[int, str]] = []
        self.transport = MemoryTransport(world.loop)
        self.ws = world.core.WebSocket(world.context, limits, **options)
        self.ws.on_message = self.messages.append
        self.ws.on_close = lambda code, reason: self.ends.append((code, reason))

    @property
    def sent(self) -> list[tuple[int, bytes]]:
        """The frames that the peer got so far."""
        return parse(bytes(self.transport.taken), masked=self.ws.client)

    def arrive(self, *frames: bytes) -> None:
        self.transport.arrive(b"".join(frames))

    def block(self) -> None:
        """The peer stops reading: the transport says so when one byte above its high mark waits."""
        self.transport.room = 0
        self.ws.send(bytes(self.transport.high))
        self.world.turn()
        assert self.transport.writing_paused


class World:
    def __init__(self, core: Any) -> None:
        self.core = core
        self.clock = Clock()
        self.loop = ManualLoop(self.clock)
        self.context = core.LoopContext(self.loop, self.clock)
        self.turn = self.loop.turn
        self.advance = self.loop.advance

    def connection(self, limits: Limits | None = None, **options: Any) -> Connection:
        """A WebSocket that has not been started."""
        return Connection(self, limits, **options)

    def connect(self, limits: Limits | None = None, **options: Any) -> Connection:
        connection = self.connection(limits, **options)
        connection.ws.start(connection.transport)
        self.turn()
        return connection


# --- real sockets ---


class Peer:
    """The other end of a connection, as a bare socket: it reads and writes frames itself."""

    def __init__(self, sock: socket.socket, *, masks: bool = True) -> None:
        sock.setblocking(False)
        self.socket = sock
        self.masks = masks
        self.unread = bytearray()

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.socket, data)

    async def read(self) -> bool:
        """Reads what is there, or comes within 10 s; False at the end of the stream."""
        data = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.socket, 65_536), 20)
        self.unread += data
        return bool(data)

    async def frame(self) -> tuple[int, bytes]:
        """The next frame that the WebSocket sent."""
        while (size := self._first_frame()) is None:
            assert await self.read(), f"the stream ended after {bytes(self.unread)!r}"
        wire = bytes(self.unread[:size])
        del self.unread[:size]
        return parse(wire, masked=not self.masks)[0]

    def _first_frame(self) -> int | None:
        wire = self.unread
        if len(wire) < 2:
            return None
        length, head = wire[1] & 0x7F, 2 + (4 if wire[1] & 0x80 else 0)
        if length > 125:
            extended = 2 if length == 126 else 8
            head += extended
            length = int.from_bytes(wire[2 : 2 + extended], "big")
        return head + length if len(wire) >= head + length else None

    async def end(self) -> bytes:
        """Everything up to the end of the stream. A reset counts as an end."""
        with contextlib.suppress(ConnectionError):
            while await self.read():
                pass
        return bytes(self.unread)

    def close(self) -> None:
        self.socket.close()


@contextlib.asynccontextmanager
async def connected(core: Any, limits: Limits | None = None, *, tcp: bool = True, **options: Any) -> Any:
    """A started WebSocket on a real transport, its Peer, and what the application saw: `messages` and `ends`.

    An exception that only the loop got to see fails the test too.
    """
    loop = asyncio.get_running_loop()
    failures: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    if tcp:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            far = socket.create_connection(listener.getsockname())
            near, _ = listener.accept()
        near.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    else:
        near, far = socket.socketpair()
    near.setblocking(False)
    ws = core.WebSocket(core.LoopContext.of(loop), limits, **options)
    link = SimpleNamespace(ws=ws, peer=Peer(far, masks=not ws.client), messages=[], ends=[])
    ws.on_message = link.messages.append
    ws.on_close = lambda code, reason: link.ends.append((code, reason))
    link.transport, _ = await loop.create_connection(lambda: ws, sock=near)
    assert ws.transport is link.transport
    try:
        yield link
    finally:
        link.peer.close()
        ws.abort()
        await ws.wait_closed()
        await asyncio.sleep(0)
    assert failures == []


async def until(condition: Any) -> None:
    """Lets the loop turn until `condition()` holds."""
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.001)
    raise AssertionError("it did not happen")


def codes(*payload: int) -> bytes:
    return b"".join(code.to_bytes(2, "big") for code in payload)


def drive(coroutine):
    """Runs a coroutine that has nothing to wait for."""
    with pytest.raises(StopIteration):
        coroutine.send(None)

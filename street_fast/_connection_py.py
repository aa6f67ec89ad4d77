"""One WebSocket connection on an asyncio transport, in pure Python: the twin of ``_connection.pyx``.

Used where the extensions are not built, and as the second opinion that the tests hold the compiled one to: the same
names, states, deadlines, limits and counters. It is written to be read; what makes the compiled one fast (one joined
buffer for equal outboxes, a job list without the GIL) is left out.

Reading. All connections of a loop read into one buffer. What a handler sends to the connection whose bytes are being
handled leaves when they all are handled.

Writing. Sending appends a reference to the outbox of the connection and marks it dirty; the dirty ones are flushed once
per turn of the loop, each with one write on the descriptor, in slices of a millisecond. If the kernel takes no more,
the rest of the frame in flight goes to ``transport.write()``, the others stay in the outbox until ``resume_writing()``.
TLS, and anything whose descriptor is not ours to write to, goes through the transport. A descriptor is forgotten before
the transport closes, so that its number is never used for someone else.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import inspect
import logging
import os
import socket
import sys
import time
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar, cast

from street_fast._frames_py import (
    OP_BINARY,
    OP_CLOSE,
    OP_PING,
    OP_PONG,
    OP_TEXT,
    Frame,
    FrameParser,
    encode_close,
    encode_frame,
)
from street_fast._wheel_py import Timer, TimerWheel
from street_fast.errors import CloseCode, ConnectionClosed, ProtocolError
from street_fast.limits import DEFAULT_LIMITS, Limits
from street_fast.slow_consumers import CONNECTIONS, SlowConsumers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["LoopContext", "WebSocket", "broadcast", "fan_out", "unix_time_ms"]

logger = logging.getLogger("street_fast")

_READ_BUFFER_BYTES = 262_144
_PRIVATE_BUFFER_BYTES = 65_536
_FRAMES_PER_WRITE = 64
_SLICE_S = 0.001  # of a flush, before the loop gets its turn
_LATE_S = 1.0  # a timer this late means that the process was stopped
_BLOCKING_S = 0.1  # handlers that keep the loop this long are named in the log
_NEVER = 1e18
_DIRECT = sys.platform != "win32"  # there, transports own their handles through overlapped I/O


class _Nobody(asyncio.Protocol):
    """Takes the place of the protocol before: uvloop keeps its `data_received` when a BufferedProtocol follows."""

    @staticmethod
    def data_received(data: bytes) -> None:
        pass


_NOBODY = _Nobody()


class _State(enum.IntEnum):
    CONNECTING = 0  # start() has not been called; what is sent waits
    OPEN = 1
    CLOSING = 2  # our close frame is queued or sent; the peer's is awaited (RFC 6455 section 7.1.3)
    FAILING = 3  # the peer broke a rule: a close frame is queued, its bytes are ignored (section 7.1.7)
    DONE = 4  # both close frames are there; the transport closes once the outbox is empty
    LOST = 5  # connection_lost() was called


class LoopContext:
    """What the connections of one event loop share: read buffer, flush, timer wheel, counters.

    `LoopContext.of(loop)` is the one of a loop; a test may make its own with a manual `clock`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, clock: Callable[[], float] | None = None) -> None:
        self.loop = loop
        self.time = clock or time.monotonic
        # asyncio's TLS slices it, and a slice of a bytearray is a copy.
        self._read_buffer = memoryview(bytearray(_READ_BUFFER_BYTES))
        # A proactor loop reads in the background: no sharing.
        self._private_buffers = sys.platform == "win32" and isinstance(loop, asyncio.ProactorEventLoop)
        self._id_prefix = os.urandom(6).hex()
        self._last_id = 0
        self._dirty: deque[WebSocket] = deque()  # in the order in which they got something to send
        self._flush_scheduled = False
        self._reading: WebSocket | None = None  # its bytes are being handled: it flushes itself afterwards
        self._condemned: dict[WebSocket, None] = {}
        self._wake_handle: asyncio.TimerHandle | None = None
        self._wake_time = 0.0
        self._connections_opened = 0
        self._connections_closed = 0
        self._messages_in = 0
        self._bytes_in = 0
        self._messages_out = 0
        self._bytes_out = 0
        self._writes = 0
        self._messages_dropped = 0
        self._slow_consumers = 0
        self._slow_reads = 0
        self._loop_lag = 0.0
        self._worst_loop_lag = 0.0
        self._protocol_errors = 0
        self.wheel = TimerWheel(self.time, wake=self._wake, on_error=self._timer_failed)
        self.slow = SlowConsumers(self.wheel)  # event streams are in it, too

    @staticmethod
    def of(loop: asyncio.AbstractEventLoop | None = None) -> LoopContext:
        """The context of `loop` (default: the running one), made at first use."""
        if loop is None:
            loop = asyncio.get_running_loop()
        context: LoopContext | None = getattr(loop, "_street_fast_pure_context", None)
        if context is None:
            context = LoopContext(loop)
            loop._street_fast_pure_context = context  # type: ignore[attr-defined]
        return context

    def stats(self) -> dict[str, int]:
        """Counters since the start, the open connections and what they have not taken, and how late the loop is.

        ``bytes_waiting`` is what was sent to slow connections and not taken; ``slow_consumers`` were evicted,
        ``outbound_evictions`` of them because all together held more than ``Limits.outbound_total_bytes``.

        ``loop_lag_ms`` is by how much the last timer was late, ``worst_loop_lag_ms`` the most since the start, and
        ``slow_reads`` how often the handlers of one read kept the loop for longer than 100 ms, which is logged.
        """
        return {
            "connections": self._connections_opened - self._connections_closed,
            "connections_opened": self._connections_opened,
            "messages_in": self._messages_in,
            "bytes_in": self._bytes_in,
            "messages_out": self._messages_out,
            "bytes_out": self._bytes_out,
            "bytes_waiting": self.slow.bytes_waiting(CONNECTIONS),
            "writes": self._writes,
            "messages_dropped": self._messages_dropped,
            "slow_consumers": self._slow_consumers,
            "outbound_evictions": self.slow.evicted[CONNECTIONS],
            "protocol_errors": self._protocol_errors,
            "slow_reads": self._slow_reads,
            "loop_lag_ms": round(1_000 * self._loop_lag),
            "worst_loop_lag_ms": round(1_000 * self._worst_loop_lag),
        }

    # --- timers ---

    def _wake(self, when: float) -> None:
        if self._wake_handle is not None:
            self._wake_handle.cancel()
        self._wake_time = when
        self._wake_handle = self.loop.call_later(max(0.0, when - self.time()), self._on_wake)

    def _on_wake(self) -> None:
        self._wake_handle = None
        self._loop_lag = max(0.0, self.time() - self._wake_time)
        self._worst_loop_lag = max(self._worst_loop_lag, self._loop_lag)
        if self._loop_lag > _LATE_S:
            # The process was stopped, or the loop blocked. Bytes that are waiting in the kernel are read before
            # anyone is found silent: the loop polls once before this comes round.
            self._wake_time = _NEVER
            self._wake_handle = self.loop.call_later(0.02, self._on_wake)
            return
        try:
            self.wheel.advance()
        finally:
            when = self.wheel.next_wakeup()
            if when is not None:
                self._wake(when)

    def _timer_failed(self, error: BaseException) -> None:
        self.loop.call_exception_handler({"message": "a street_fast timer failed", "exception": error})

    # --- flushing ---

    def _add_dirty(self, ws: WebSocket) -> None:
        if not ws._is_dirty and self._reading is not ws:
            ws._is_dirty = True
            self._dirty.append(ws)
            self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self.loop.call_soon(self._flush)

    def _condemn(self, ws: WebSocket) -> None:
        # Over its hard limit. Closing may run code of a transport, so it waits until no outbox is looked at.
        self._condemned[ws] = None
        self._schedule_flush()

    def _flush(self) -> None:
        self._flush_scheduled = False
        condemned, self._condemned = self._condemned, {}
        for ws in condemned:
            ws._evict(f"more than {ws._limits.write_hard_bytes} bytes wait for you")
        deadline = self.time() + _SLICE_S
        while self._dirty:
            ws = self._dirty.popleft()
            ws._is_dirty = False
            try:
                ws._flush()
            except Exception as error:
                self._write_failed(ws, error)
            if self.time() >= deadline:
                break
        if self._dirty:
            self._schedule_flush()

    def _write_failed(self, ws: WebSocket, error: Exception) -> None:
        # A transport raised. That ends its connection, and is nothing to the others.
        self.loop.call_exception_handler(
            {"message": f"writing to connection {ws.id} failed", "exception": error, "transport": ws.transport}
        )
        ws._drop_transport(f"connection lost: {error}")


class WebSocket(FrameParser, asyncio.BufferedProtocol):
    """One WebSocket connection, without an opinion on what its messages mean.

    `WebSocket(context, limits, *, client=False, subprotocol=None)`, then `start(transport)`. Set `on_message(data)`
    and `on_close(code, reason)`; the latter is called exactly once, when the connection is gone. Not thread-safe:
    it belongs to its loop.
    """

    subprotocol: str | None = None
    heartbeat: Frame | None = None  # sent every ping_interval_s in place of the ping, for peers that cannot see pings
    listener: Any = None  # its `_on_message` and `_on_close` are called in place of the two functions
    text_as_bytes: bool = False  # for those who decode JSON; binary messages are told apart as bytearrays then

    def __init__(
        self,
        context: LoopContext,
        limits: Limits | None = None,
        *,
        client: bool = False,
        subprotocol: str | None = None,
    ) -> None:
        if not isinstance(context, LoopContext):
            raise TypeError(f"context={context!r}: must be a LoopContext")
        limits = DEFAULT_LIMITS if limits is None else limits
        super().__init__(client=client, max_message_bytes=limits.message_bytes, max_fragments=limits.fragments)
        self.context = context
        self.transport: asyncio.Transport | None = None
        self.subprotocol = subprotocol
        self._on_message: Callable[[Any], object] | None = None
        self._on_close: Callable[[int, str], object] | None = None
        self._limits = limits
        context._last_id += 1
        self._id = context._last_id
        self._state = _State.CONNECTING
        self._close_code = 0
        self._close_reason = ""
        self._waiters: list[tuple[bool, asyncio.Future[None]]] = []  # of drain() (True) and wait_closed()
        self._own_buffer: memoryview | None = None
        # Frames not yet given to the kernel.
        self._outbox: deque[bytes] = deque()
        self._outbox_bytes = 0
        self._handed_over = 0  # bytes given to the transport since it was last empty
        self._in_flight: bytes | None = None  # the frame whose rest the transport holds while it is blocked
        self._pong: bytes | None = None  # the newest one that waits for a slow peer
        self._fd = -1  # -1 unless we may write to it
        self._is_dirty = False
        self._blocked = False  # the transport has a backlog; the outbox waits for resume_writing()
        self._ended = False  # the transport was told that nothing more comes
        # Times on the clock of the context; 0: none.
        self._timer: Timer | None = None
        self._last_received = 0.0
        self._ping_sent = 0.0
        self._next_heartbeat = 0.0
        self._message_began = 0.0
        self._deadline = 0.0  # of closing
        self._progress_time = 0.0  # when the peer last took a byte, while blocked
        self._control_level = 0.0
        self._control_time = 0.0

    # --- the life of the connection ---

    def start(self, transport: asyncio.Transport, head: bytes = b"", tail: bytes = b"") -> None:
        """Becomes the protocol of `transport`. `head` goes out before anything else (the 101 response); `tail` is
        what was read behind the request, and is parsed in the next turn of the loop."""
        context = self.context
        if self.transport is not None or self._state == _State.LOST:
            raise RuntimeError("this WebSocket has been started already")
        self.transport = transport
        transport.set_protocol(_NOBODY)
        transport.set_protocol(self)
        context._connections_opened += 1
        if transport.is_closing():  # the peer left while it was being let in
            context.loop.call_soon(self.connection_lost, None)
            return
        if context._private_buffers:
            self._own_buffer = memoryview(bytearray(_PRIVATE_BUFFER_BYTES))
        self._fd = self._find_descriptor(transport)
        transport.set_write_buffer_limits(high=0 if self._fd >= 0 else self._limits.write_soft_bytes)
        self._last_received = context.time()
        self._next_heartbeat = self._last_received + (self._limits.ping_interval_s or 0.0)
        if self.paused:
            transport.pause_reading()
        if head:  # before what was sent before the start
            self._outbox.appendleft(head)
            self._outbox_bytes += len(head)
        if self._state == _State.CONNECTING:
            self._state = _State.OPEN
            if self._limits.ping_interval_s is not None:
                self._look_again_in(self._limits.ping_interval_s)
        if self._fd >= 0 and transport.get_write_buffer_size():
            # The transport has a backlog, and above its limit of 0 it will call resume_writing().
            self._blocked = True
            self._progress_time = context.time()
            context.slow.note(self, CONNECTIONS)
            if self._outbox:
                self._hand_over(0)
        if self._outbox:
            context._add_dirty(self)
        if tail:
            self._unparsed += tail
            context.loop.call_soon(self._parse_kept)

    def _parse_kept(self) -> None:
        if self._state != _State.LOST and self._unparsed and not self.paused:
            self._receive(b"")

    def _find_descriptor(self, transport: asyncio.Transport) -> int:
        # Only transports whose inner life is known: another one may well encrypt what it is given.
        if not _DIRECT or type(transport).__module__ not in ("uvloop.loop", "asyncio.selector_events"):
            return -1
        if transport.get_extra_info("sslcontext") is not None:
            return -1
        sock = transport.get_extra_info("socket")
        if sock is None:
            return -1
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # how long sent data may stay unacknowledged (RFC 5482)
            patience_s = (self._limits.ping_interval_s or 25.0) + self._limits.pong_timeout_s
            with contextlib.suppress(OSError):  # not TCP
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(int(1_000 * patience_s), 2**31 - 1))
        descriptor: int = sock.fileno()
        return descriptor

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if self.transport is None:
            self.start(cast("asyncio.Transport", transport))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.context._read_buffer if self._own_buffer is None else self._own_buffer

    def buffer_updated(self, nbytes: int) -> None:
        with self.get_buffer(nbytes)[:nbytes] as data:
            self._receive(data)

    def eof_received(self) -> bool:
        self._flush()
        self._fd = -1  # the transport closes now
        if self._state == _State.OPEN:
            self._close_code = int(CloseCode.ABNORMAL)
            self._close_reason = "the peer hung up without a close frame"
        self._state = max(self._state, _State.DONE)
        self.halt()
        self._deadline = self.context.time() + self._limits.abort_timeout_s  # it may have a backlog to write
        self._look_again_in(self._limits.abort_timeout_s)
        return False

    def connection_lost(self, error: Exception | None) -> None:
        if self._state == _State.LOST:
            return
        self._state = _State.LOST
        self._fd = -1
        self.halt()
        self._release_all()
        self._pong = self._in_flight = None
        self.context.slow.forget(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._close_code:
            self._close_code = int(CloseCode.ABNORMAL)
            self._close_reason = "connection lost" if error is None else f"connection lost: {error}"
        self.context._connections_closed += 1
        self.transport = None
        self._own_buffer = None
        on_close = self._on_close if self.listener is None else self.listener._on_close
        self._on_message = self._on_close = self.listener = None
        self._wake_waiters()
        if on_close is not None:
            try:
                on_close(self._close_code, self._close_reason)
            except (KeyboardInterrupt, SystemExit):
                raise
            except BaseException:
                logger.exception("connection %s: on_close failed", self.id)

    # --- what the application sees ---

    @property
    def id(self) -> str:
        """A name that no other connection has, also not on other machines."""
        return f"{self.context._id_prefix}{self._id:x}"

    @property
    def limits(self) -> Limits:
        """The bounds that it has."""
        return self._limits

    @property
    def closed(self) -> bool:
        """True as soon as nothing more can be sent."""
        return self._state > _State.OPEN

    @property
    def close_code(self) -> int | None:
        """How it ended or is ending: the code of whoever closed first, 1006 if nobody did; None while open."""
        return self._close_code or None

    @property
    def close_reason(self) -> str:
        """What was said with the close code; empty if nothing."""
        return self._close_reason

    @property
    def bytes_buffered(self) -> int:
        """Bytes that were sent here and that the kernel has not taken."""
        if self._handed_over and self.transport is not None:
            return self._outbox_bytes + self.transport.get_write_buffer_size()
        return self._outbox_bytes

    @property
    def on_message(self) -> Callable[[Any], object] | None:
        """Called with each message: str for text, bytes for binary. A plain function; it must not block."""
        return self._on_message

    @on_message.setter
    def on_message(self, handler: Callable[[Any], object] | None) -> None:
        self._on_message = _check_handler("on_message", handler)

    @property
    def on_close(self) -> Callable[[int, str], object] | None:
        """Called with code and reason, exactly once, when the connection is gone. A plain function."""
        return self._on_close

    @on_close.setter
    def on_close(self, handler: Callable[[int, str], object] | None) -> None:
        self._on_close = _check_handler("on_close", handler)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        """What the transport knows: 'peername', 'sockname', 'ssl_object' and so on."""
        return default if self.transport is None else self.transport.get_extra_info(name, default)

    def send(self, data: str | bytes | bytearray | memoryview | Frame, *, droppable: bool = False) -> bool:
        """Queues a message: str as text, bytes-like as binary, a Frame as it is. Never blocks.

        False if the connection is closing, if it was evicted as too slow, or if `droppable` and more than
        `Limits.write_soft_bytes` wait already. Raises TypeError for anything else, and UnicodeEncodeError for a
        str with lone surrogates.
        """
        if self._state > _State.OPEN:
            return False
        if isinstance(data, Frame):
            return self._push_frame(data, droppable)
        if isinstance(data, str):
            return self._push(self._encode(OP_TEXT, data.encode()), droppable)
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise TypeError(f"send() takes str, bytes, bytearray, memoryview or Frame, not {type(data).__name__}")
        return self._push(self._encode(OP_BINARY, data), droppable)

    def ping(self, data: bytes = b"") -> bool:
        """Sends a ping (section 5.5.2) of at most 125 bytes. The heartbeat does so by itself."""
        if not isinstance(data, bytes):
            raise TypeError(f"ping() takes bytes, not {type(data).__name__}")
        if len(data) > 125:
            raise ValueError(f"a ping of {len(data)} bytes: at most 125 are allowed (RFC 6455 section 5.5)")
        return self._push(self._encode(OP_PING, data), False)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Sends a close frame behind what is queued and waits for the peer's, at most `Limits.close_timeout_s`.

        Does nothing if the connection is closing already. Raises ValueError for a code that may not be sent.
        """
        encode_close(code, reason)
        if self._state <= _State.OPEN:
            self._begin_close(code, reason, _State.CLOSING, self._limits.close_timeout_s)

    def abort(self) -> None:
        """Ends the connection at once; what is queued is lost."""
        if self._state != _State.LOST:
            self._drop_transport("aborted")

    async def drain(self) -> None:
        """Waits until at most `Limits.write_soft_bytes` are queued. Raises ConnectionClosed if it ends before."""
        if self._state == _State.LOST:
            raise ConnectionClosed(self._close_code, self._close_reason)
        if self._pending > self._limits.write_soft_bytes:
            await self._wait(for_drain=True)

    async def wait_closed(self) -> None:
        """Waits until the connection is gone and `on_close` has been called."""
        if self._state != _State.LOST:
            await self._wait(for_drain=False)

    def _wait(self, *, for_drain: bool) -> asyncio.Future[None]:
        future: asyncio.Future[None] = self.context.loop.create_future()
        self._waiters.append((for_drain, future))
        return future

    def pause_reading(self) -> None:
        """Delivers no more messages until resume_reading(); the peer is slowed down by TCP.

        Does nothing once the connection is closing: no message is delivered then, and the peer's answer must be seen.
        """
        if self._state > _State.OPEN:
            return
        self.paused = True
        if self.transport is not None:
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        """Goes on after pause_reading(), first with what had been read already."""
        if self._state == _State.LOST:
            return
        self._last_received = self.context.time()  # silence that we asked for says nothing about the peer
        self.paused = False
        if self.transport is not None:
            self.transport.resume_reading()
            if self._unparsed:
                self._receive(b"")

    def feed(self, data: object) -> None:
        raise TypeError("a WebSocket reads from its transport; to parse bytes, use FrameParser")

    def __repr__(self) -> str:
        state = "closed" if self._state == _State.LOST else self._state.name.lower()
        return f"<WebSocket {self.id} {state}>"

    # --- reading ---

    def _receive(self, data: bytes | memoryview) -> None:
        context = self.context
        outer, context._reading = context._reading, self
        context._bytes_in += len(data)
        self._last_received = context.time()
        try:
            if self._unparsed and not self.paused:
                self.resume()
            if data:
                with memoryview(data) as view:
                    self._parse(view)
        except ProtocolError as error:
            self._fail(error)
        finally:
            context._reading = outer
        spent = context.time() - self._last_received
        if spent >= _BLOCKING_S:
            context._slow_reads += 1
            logger.warning(
                "connection %s: its handlers kept the event loop from everything else for %.2f s", self.id, spent
            )
        if not self.mid_message:
            self._message_began = 0.0
        elif not self._message_began and self._state == _State.OPEN:
            self._message_began = self._last_received
            self._look_again_in(self._limits.assembly_timeout_s)
        if not self._blocked:
            if self._outbox:
                self._flush()
            elif self._state == _State.DONE:
                self._emptied()

    def _deliver_message(self, opcode: int, data: bytes) -> None:
        self._message_began = 0.0
        handler = self._on_message if self.listener is None else self.listener._on_message
        if handler is None or self._state != _State.OPEN:
            return
        self.context._messages_in += 1
        message: str | bytes | bytearray = data
        if opcode == OP_TEXT and not self.text_as_bytes:
            message = data.decode()
        elif opcode != OP_TEXT and self.text_as_bytes:
            message = bytearray(data)
        try:
            handler(message)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            logger.exception("connection %s: on_message failed", self.id)

    def _deliver_control(self, opcode: int, data: bytes) -> None:
        # A leaky bucket: it lets go of control_frames_per_second, and holds control_frames_burst.
        limits = self._limits
        now = self.context.time()
        leaked = (now - self._control_time) * limits.control_frames_per_second
        self._control_level = max(0.0, self._control_level - leaked) + 1.0
        self._control_time = now
        if self._control_level > limits.control_frames_burst:
            raise ProtocolError(
                CloseCode.POLICY_VIOLATION,
                "control_flood",
                f"more than {limits.control_frames_burst:.0f} control frames at once, "
                f"or {limits.control_frames_per_second:.0f} a second",
            )
        if opcode != OP_PING or self._state != _State.OPEN:
            return
        if self._pending > limits.write_soft_bytes:
            self._pong = data  # section 5.5.3: only the newest ping needs an answer
        else:
            self._push(self._encode(OP_PONG, data), False)

    def _deliver_close(self, code: int, reason: str) -> None:
        if self._state == _State.OPEN:
            # Section 5.5.1: the answer carries the status that came.
            self._close_code = code
            self._close_reason = reason
            self._append(self._encode(OP_CLOSE, b"" if code == CloseCode.NO_STATUS else encode_close(code)))
        elif self._state != _State.CLOSING:
            return
        self._state = _State.DONE
        self._deadline = self.context.time() + self._limits.abort_timeout_s
        self._look_again_in(self._limits.abort_timeout_s)

    # --- closing ---

    def _begin_close(self, code: int, reason: str, state: _State, timeout_s: float) -> None:
        self._append(self._encode(OP_CLOSE, encode_close(code, reason)))
        self._close_code = int(code)
        self._close_reason = reason
        self._state = state
        self._deadline = self.context.time() + timeout_s
        self._look_again_in(timeout_s)
        if self.transport is not None:
            self.context._add_dirty(self)
        if self.paused:  # its close frame must get through
            self.paused = False
            if self.transport is not None:
                self.transport.resume_reading()
                self.context.loop.call_soon(self._parse_kept)

    def _fail(self, error: ProtocolError) -> None:
        # The one place where a peer's error becomes a close frame (section 7.1.7).
        self.context._protocol_errors += 1
        self.halt()
        logger.debug("connection %s: %s (%s)", self.id, error, error.code)
        if self._state == _State.OPEN:
            self._begin_close(error.close_code, str(error), _State.FAILING, self._limits.abort_timeout_s)
        elif self._state == _State.CLOSING:
            self._state = _State.DONE

    def _drop_transport(self, reason: str) -> None:
        self._fd = -1
        self.halt()
        self._release_all()
        if not self._close_code:
            self._close_code = int(CloseCode.ABNORMAL)
            self._close_reason = reason
        self._state = _State.DONE
        if self.transport is not None:
            self.transport.abort()

    # --- writing ---

    def _encode(self, opcode: int, payload: bytes | bytearray | memoryview) -> bytes:
        # Section 10.3: the key of every frame a client sends comes from a strong source.
        return encode_frame(opcode, payload, mask=os.urandom(4) if self.client else None)

    def _push_frame(self, frame: Frame, droppable: bool) -> bool:
        return self._push(self._encode(frame.opcode, frame.payload) if self.client else frame.wire, droppable)

    def _push(self, wire: bytes, droppable: bool) -> bool:
        if self._state > _State.OPEN:
            return False
        if self._pending > self._limits.write_soft_bytes:
            self._flush()
            if self._pending > self._limits.write_soft_bytes:
                if droppable:
                    self.context._messages_dropped += 1
                    return False
                if self._pending > self._limits.write_hard_bytes:
                    self.context._condemn(self)
                    return False
            if self._state > _State.OPEN:
                return False
        self._append(wire)
        self.context._add_dirty(self)
        return True

    @property
    def _pending(self) -> int:
        return self._outbox_bytes + self._handed_over

    def _append(self, wire: bytes) -> None:
        self._outbox.append(wire)
        self._outbox_bytes += len(wire)

    def _release(self) -> bytes:
        wire = self._outbox.popleft()
        self._outbox_bytes -= len(wire)
        return wire

    def _release_all(self) -> None:
        self._outbox.clear()
        self._outbox_bytes = 0

    def _flush(self) -> None:
        while self._outbox and not self._blocked and self.transport is not None:
            if self._fd < 0:
                self._flush_through_transport()
                return
            frames = [self._outbox[i] for i in range(min(len(self._outbox), _FRAMES_PER_WRITE))]
            try:
                taken = os.writev(self._fd, frames)
            except (BlockingIOError, InterruptedError):
                taken = 0
            except OSError as error:
                self._drop_transport(f"connection lost: {os.strerror(error.errno or 0)}")
                return
            self._took(taken, frames)

    def _took(self, taken: int, frames: list[bytes]) -> None:
        # The kernel took this many bytes of these frames.
        context = self.context
        context._writes += 1
        context._bytes_out += taken
        for wire in frames:
            if taken < len(wire):
                self._progress_time = context.time()
                self._hand_over(taken)
                return
            taken -= len(wire)
            context._messages_out += 1
            self._release()
        if not self._outbox:
            self._emptied()

    def _hand_over(self, offset: int) -> None:
        # The first frame, from `offset` on, becomes the transport's: it knows how to wait for the socket.
        wire = self._release()
        rest = memoryview(wire)[offset:]
        self.context._messages_out += 1
        self.context._bytes_out += len(rest)
        self._write(rest)
        if self._blocked:
            self._in_flight = wire

    def _flush_through_transport(self) -> None:
        data = b"".join(self._outbox)
        self.context._writes += 1
        self.context._messages_out += len(self._outbox)
        self.context._bytes_out += len(data)
        self._release_all()
        if self._write(data):
            self._emptied()

    def _write(self, data: bytes | memoryview) -> bool:
        # True if the transport asks for more.
        assert self.transport is not None
        self._handed_over += len(data)
        try:
            self.transport.write(data)
        except Exception as error:
            self._drop_transport(f"connection lost: {error}")
            return False
        if self._blocked:
            return False
        if self._fd < 0 and self.transport is not None and self.transport.get_write_buffer_size():
            self.context.slow.note(self, CONNECTIONS)  # not yet above its mark
        self._handed_over = 0
        return True

    def _emptied(self) -> None:
        # Nothing waits any more: what was to come after that.
        self._wake_waiters()
        if self._pong is not None and self._state == _State.OPEN:
            pong, self._pong = self._pong, None
            self._push(self._encode(OP_PONG, pong), False)
        elif self._state == _State.DONE and not self.client and self.transport is not None:
            self._fd = -1
            self.transport.close()
        elif self._state == _State.FAILING and not self._ended and self.transport is not None:
            # Half-closed, the peer reads our close frame and hangs up. Closing at once would make the kernel throw
            # both away if there is anything unread.
            self._ended = True
            if self.transport.can_write_eof():
                self._fd = -1
                try:
                    self.transport.write_eof()
                except OSError as error:  # asyncio: the peer has reset the connection, and the loop has not seen it yet
                    self._drop_transport(f"connection lost: {error}")
            else:
                self.transport.close()

    def pause_writing(self) -> None:
        self._blocked = True
        self._progress_time = self.context.time()
        self.context.slow.note(self, CONNECTIONS)
        self._look_again_in(self._limits.write_stall_timeout_s / 4)

    def resume_writing(self) -> None:
        self._blocked = False
        self._handed_over = 0
        self._in_flight = None
        if self._state == _State.OPEN:
            self._resume()
        else:
            # It may close the transport now, and within this call asyncio would lose the connection twice.
            self.context.loop.call_soon(self._resume)

    def _resume(self) -> None:
        if self._state == _State.LOST or self._blocked:
            return
        if self._outbox:
            self._flush()
        else:
            self._emptied()
        self._wake_waiters()

    def _wake_waiters(self) -> None:
        lost = self._state == _State.LOST
        drained = self._pending <= self._limits.write_soft_bytes
        waiting = []
        for for_drain, future in self._waiters:
            if future.done():
                continue
            if lost and for_drain:
                future.set_exception(ConnectionClosed(self._close_code, self._close_reason))
            elif lost or (for_drain and drained):
                future.set_result(None)
            else:
                waiting.append((for_drain, future))
        self._waiters = waiting

    # --- for SlowConsumers ---

    def _bytes_waiting(self) -> int:
        # 0 for one that is not slow any more.
        if self.transport is None or (self._fd >= 0 and not self._blocked):
            return 0
        left = self.transport.get_write_buffer_size()
        return left + self._outbox_bytes if left or self._blocked else 0

    def _bytes_held(self) -> float:
        # What would be freed without this connection: of a frame that others hold too, its part.
        if self.transport is None:
            return 0.0
        size: float = self.transport.get_write_buffer_size()
        if self._in_flight is not None:
            size /= max(1, (sys.getrefcount(self._in_flight) - 1) // 2)  # the transport has a reference too
        # Two references are of the loop and the call, one of them from 3.14 on.
        return size + sum(len(wire) / max(1, sys.getrefcount(wire) - 2) for wire in self._outbox)

    def _evict(self, why: str) -> None:
        # References to what it will not get are let go at once; a frame in flight is the transport's already.
        if self._state != _State.OPEN:
            return
        self.context._slow_consumers += 1
        self._release_all()
        self._pong = None
        self._begin_close(CloseCode.SLOW_CONSUMER, why, _State.CLOSING, self._limits.abort_timeout_s)

    # --- deadlines ---

    def _look_again_in(self, delay_s: float) -> None:
        # One timer serves every deadline of the connection: it is set to the nearest, and _on_timer() looks at all.
        if self._timer is None:
            self._timer = self.context.wheel.schedule(delay_s, WebSocket._on_timer, self)
        elif self._timer.deadline > self.context.time() + delay_s:
            self._timer.reschedule(delay_s)

    def _on_timer(self) -> None:
        limits = self._limits
        now = self.context.time()
        wait = _NEVER
        if self._state == _State.LOST:
            return
        if self._deadline and now >= self._deadline:
            self._timer = None
            self._drop_transport("the closing handshake took too long")
            return
        if self._blocked and self._state == _State.OPEN:
            wait = min(wait, self._look_at_progress(now))
        if self._message_began and self._state == _State.OPEN and not self.paused:
            left = self._message_began + limits.assembly_timeout_s - now
            if left > 0:
                wait = min(wait, left)
            else:
                self._fail(
                    ProtocolError(
                        CloseCode.POLICY_VIOLATION,
                        "assembly_timeout",
                        f"a message was not complete after {limits.assembly_timeout_s:g} s",
                    )
                )
        if limits.ping_interval_s is not None and self._state == _State.OPEN:
            left = self._look_at_silence(now, limits.ping_interval_s)
            if left <= 0:
                self._timer = None
                self._drop_transport(f"no answer to a ping within {limits.pong_timeout_s:g} s")
                return
            wait = min(wait, left)
        if self._deadline:
            wait = min(wait, self._deadline - now)
        if wait == _NEVER or self._timer is None:
            self._timer = None
        else:
            self._timer.reschedule(wait)

    def _look_at_progress(self, now: float) -> float:
        # Evicts a peer that takes nothing; otherwise returns when to look again.
        assert self.transport is not None
        stall_s = self._limits.write_stall_timeout_s
        left = self.transport.get_write_buffer_size()
        if left < self._handed_over:
            self._handed_over = left
            self._progress_time = now
        elif now - self._progress_time >= stall_s:
            self._evict(f"nothing was read for {stall_s:g} s")
        return stall_s / 4

    def _look_at_silence(self, now: float, interval_s: float) -> float:
        # Pings a silent peer; returns when to look again, 0 or less if it did not answer in time.
        pong_s = self._limits.pong_timeout_s
        if self._ping_sent and (self.paused or self._last_received >= self._ping_sent):
            self._ping_sent = 0.0
        left = self._ping_sent + pong_s - now if self._ping_sent else _NEVER
        if left <= 0:
            return left
        if self.heartbeat is not None:
            if now >= self._next_heartbeat:
                self._next_heartbeat = now + interval_s
                # A slow peer does not get even more to read. It is judged by what it takes.
                if self._push_frame(self.heartbeat, droppable=True) and not self._ping_sent and not self.paused:
                    self._ping_sent = now
                    left = pong_s
            return min(left, self._next_heartbeat - now)
        if self._ping_sent:
            return left
        if now - self._last_received >= interval_s:
            if self.paused:  # no answer can be seen, but if the peer is gone, the write fails
                self._last_received = now
            else:
                self._ping_sent = now
            self._push(self._encode(OP_PING, b""), False)
            return interval_s if self.paused else pong_s
        return self._last_received + interval_s - now


def unix_time_ms() -> int:
    """Milliseconds since 1970, as an int."""
    return time.time_ns() // 1_000_000


_Handler = TypeVar("_Handler", bound="Callable[..., object] | None")


def _check_handler(name: str, handler: _Handler) -> _Handler:
    if handler is not None and not callable(handler):
        raise TypeError(f"{name}={handler!r}: must be a function, or None")
    if inspect.iscoroutinefunction(handler):
        raise TypeError(
            f"{name}={handler!r}: must be a plain function; for coroutines use StreetSocket.on(), or start a task "
            f"(and call pause_reading() while it runs)"
        )
    return handler


def fan_out(sinks: Iterable[Any], frame: Frame, skip: object = None, droppable: bool = False) -> list[Any]:
    """Queues `frame` on every WebSocket among `sinks` (the keys of a dict, or any iterable).

    Returns the sinks that are no WebSocket, for the caller to serve. `skip` is one sink, or a set of them.
    """
    others: list[Any] = []
    _push_to_all(sinks, frame, skip, droppable, others)
    return others


def broadcast(
    connections: Iterable[WebSocket],
    data: str | bytes | bytearray | memoryview | Frame,
    *,
    skip: WebSocket | None = None,
) -> int:
    """Sends one message to many connections: framed once, the same bytes for all. Returns how many took it.

    `data` is a str, bytes-like or a Frame. Slow connections do not slow down the others; those that exceed
    `Limits.write_hard_bytes` are closed with 4008. Raises TypeError for anything but a WebSocket.
    """
    others: list[Any] = []
    if not isinstance(data, Frame):
        data = Frame.text(data) if isinstance(data, str) else Frame.binary(data)
    queued = _push_to_all(connections, data, skip, False, others)
    if others:
        raise TypeError(f"broadcast() sends to WebSocket connections, not to {others[0]!r}")
    return queued


def _push_to_all(sinks: Iterable[Any], frame: Frame, skip: object, droppable: bool, others: list[Any]) -> int:
    queued = 0
    skipped = skip if isinstance(skip, (set, frozenset)) else ()
    for sink in sinks:
        if sink is skip or sink in skipped:
            continue
        if isinstance(sink, WebSocket):
            queued += sink._push_frame(frame, droppable)
        else:
            others.append(sink)
    return queued

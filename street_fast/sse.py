"""Server-Sent Events: events as bytes, and the stream that brings them to one client, within the limits of a WebSocket.

The format is that of the HTML standard (WHATWG), section 9.2 "Server-sent events". An event is built once, by
`encode_event`, and may go to any number of streams: each holds a reference until its client has taken it.

A stream is made before its response starts; what is sent until then waits. Then it is one of two:

* HttpServer, and what stands for it on uvicorn and aiohttp, gives it the transport (`SseStream.start`). Nothing of
  HTTP stays. What the kernel does not take stays here, except for the rest of the batch in flight.
* Somebody else iterates over it, such as Starlette's StreamingResponse. A chunk is a batch of whole events, and asking
  for the next one says that the client has taken the last.

Too slow is who has more than ``write_hard_bytes`` waiting, or takes nothing for ``write_stall_timeout_s``. The stream
is closed then, as it is when the client hangs up (or half-closes: it has nothing more to say) or `close` is called;
whatever the client does, its end comes within ``abort_timeout_s``. Everything timed hangs in the wheel of the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import enum
import logging
import operator
import re
import secrets
import socket
import sys
from collections import deque
from typing import TYPE_CHECKING, Any, ClassVar, cast

from street_fast.errors import CloseCode, ConnectionClosed
from street_fast.limits import Limits, checked_limits
from street_fast.messages import encode
from street_fast.request import Response
from street_fast.stream_context import StreamContext

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterable

    from street_fast._core import LoopContext, Timer
    from street_fast.messages import Message

__all__ = ["SseStream", "encode_comment", "encode_event"]

logger = logging.getLogger("street_fast")

_BATCH_BYTES = 16_384  # given to the transport, or to the consumer, at once, unless one event is larger
_BATCH_EVENTS = 64
_IS_END = operator.methodcaller("endswith", b"\n\n")  # of an event; otherwise there is only its head
_LINE_END = re.compile(rb"\r\n|\r|\n")


def encode_event(
    data: object,
    *,
    event: str | None = None,
    id: str | None = None,  # noqa: A002
    retry_ms: int | None = None,
) -> bytes:
    """One event. `data` is a str or bytes (UTF-8), sent as it is, or anything else, written as JSON.

    Line ends of any kind in `data` arrive as LF. `event` is its type ("message" without one), `id` what the client
    comes back with as ``Last-Event-ID``, `retry_ms` how long it is to wait before that. Raises ValueError for an
    `event` or `id` with a CR, LF or NUL in it, which would end the line (or void the id: section 9.2.6), and for a
    `retry_ms` that is no whole number from 0; TypeError for what JSON cannot hold.
    """
    head = b""
    if event is not None:
        head += b"event: %b\n" % _one_line("event", event)
    if id is not None:
        head += b"id: %b\n" % _one_line("id", id)
    if retry_ms is not None:
        if isinstance(retry_ms, bool) or not isinstance(retry_ms, int) or retry_ms < 0:
            raise ValueError(f"retry_ms={retry_ms!r}: must be a whole number of milliseconds from 0")
        head += b"retry: %d\n" % retry_ms
    if isinstance(data, str):
        data = data.encode()
    elif not isinstance(data, (bytes, bytearray, memoryview)):
        data = encode(data)
    return b"%bdata: %b\n\n" % (head, _LINE_END.sub(b"\ndata: ", data))


def encode_comment(text: str) -> bytes:
    """A comment, which no client shows; it keeps the connection alive."""
    return b": %b\n\n" % _LINE_END.sub(b"\n: ", text.encode())


def _one_line(name: str, value: object) -> bytes:
    if not isinstance(value, str):
        raise TypeError(f"{name}={value!r}: must be a str")
    if "\r" in value or "\n" in value or "\0" in value:
        raise ValueError(f"{name}={value!r}: must be without CR, LF and NUL, which would end it")
    return value.encode()


class _State(enum.IntEnum):
    OPEN = 0
    CLOSING = 1  # what is queued goes out, and then the end
    ENDED = 2  # the close callbacks have run


_OPEN, _CLOSING, _ENDED = _State


class SseStream:
    """A stream of events to one client: return it from a handler of HttpServer, or iterate over it.

        @app.get("/events")                                     # FastAPI, Starlette
        async def events() -> StreamingResponse:
            stream = SseStream()
            hub.join("news", "somebody", stream)
            return StreamingResponse(stream, headers=SseStream.HEADERS)

    It is a peer as `ChannelHub` wants them, so it can join channels. `headers` are further headers of the response,
    `limits` of the stream. It may be made anywhere; from the start of the response on it belongs to that event loop.
    """

    __slots__ = (
        "__weakref__",
        "_blocked",
        "_callbacks",
        "_close_code",
        "_close_reason",
        "_context",
        "_deadline",
        "_dirty",
        "_progress_time",
        "_queue",
        "_queued",
        "_sent_time",
        "_started",
        "_state",
        "_timer",
        "_transport",
        "_unsent",
        "_waiters",
        "_wakeup",
        "headers",
        "id",
        "limits",
    )

    HEADERS: ClassVar[dict[str, str]] = {
        "Content-Type": "text/event-stream",
        "Cache-Control": "no-store",
        "X-Accel-Buffering": "no",  # nginx would collect events before it passes them on
    }
    """What a response with such a stream says; the last keeps proxies from waiting for more."""

    heartbeat: ClassVar[bytes] = encode_comment("ping")
    """Sent when nothing else was for ``Limits.sse_ping_interval_s``: proxies cut what is silent."""

    farewell: ClassVar[bytes] = b""
    """What a slow consumer gets in place of all that waits for it."""

    def __init__(self, *, headers: Iterable[tuple[str, str]] = (), limits: Limits | None = None) -> None:
        self.id = secrets.token_urlsafe(16)
        self.headers: list[tuple[str, str]] = [*self.HEADERS.items(), *headers]
        self.limits = checked_limits(limits)
        self._context: StreamContext | None = None  # known once it has started
        self._transport: asyncio.Transport | None = None
        self._state = _OPEN
        self._started = False
        self._queue: deque[bytes] = deque()
        self._queued = 0  # bytes in it
        self._unsent = 0  # bytes given away that nobody has taken, as far as known, while blocked
        self._blocked = False  # the transport has a backlog; the consumer is busy
        self._dirty = False
        self._wakeup: asyncio.Future[None] | None = None  # of a consumer that waits for something to send
        self._waiters: list[asyncio.Future[None]] = []  # of drain()
        self._callbacks: tuple[Callable[[Any], object], ...] = ()
        self._close_code = 0
        self._close_reason = ""
        # Times on the clock of the context; 0: none.
        self._timer: Timer | None = None
        self._sent_time = 0.0
        self._progress_time = 0.0
        self._deadline = 0.0

    # --- what it is ---

    @property
    def closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._state is not _OPEN

    @property
    def ended(self) -> bool:
        """Whether the client has got all that it will get; the close callbacks have been called."""
        return self._state is _ENDED

    @property
    def started(self) -> bool:
        """Whether a response has it; there can be no other."""
        return self._started

    @property
    def sink(self) -> SseStream:
        """Itself: a hub asks it to `deliver`."""
        return self

    @property
    def bytes_buffered(self) -> int:
        """Bytes that were sent here and that nobody has taken, as far as is known."""
        return self._queued + self._unsent

    def __repr__(self) -> str:
        # Without the id, which may be a key: who knows that of a client of Realtime can speak for it.
        return f"<{type(self).__name__} {self._state.name.lower()}, {self.bytes_buffered} bytes wait>"

    # --- out ---

    def send(
        self,
        data: object,
        *,
        event: str | None = None,
        id: str | None = None,  # noqa: A002
        retry_ms: int | None = None,
        droppable: bool = False,
    ) -> bool:
        """Queues one event; see `encode_event`. Never blocks, and calls no close callback.

        False if the stream is closed, if that happens now because the client is too slow, or if `droppable` and more
        than ``Limits.write_soft_bytes`` wait already.
        """
        return self.push(encode_event(data, event=event, id=id, retry_ms=retry_ms), droppable)

    def comment(self, text: str) -> bool:
        """Queues a comment. The heartbeat does so by itself."""
        return self.push(encode_comment(text))

    def push(self, event: bytes, droppable: bool = False, *, head: bytes = b"") -> bool:
        """Queues what `encode_event` made; the same bytes for any number of streams. Otherwise as `send`.

        `head` is what the event has in this stream only: whole lines, such as an id, before those that are shared.
        """
        if self._state is not _OPEN:
            return False
        if self._queued + self._unsent > self.limits.write_soft_bytes and not self._has_room(droppable):
            return False
        if head:
            self._append(head)
        self._append(event)
        return True

    def deliver(self, message: Message, droppable: bool = False) -> None:
        """Sends a message that was built elsewhere, as a hub does."""
        self.push(message.event, droppable)

    def close(self) -> None:
        """Ends the stream behind what is queued; a client that does not take it has ``Limits.abort_timeout_s``."""
        self._begin_close(CloseCode.NORMAL, "closed")

    def abort(self) -> None:
        """Ends the stream at once; what is queued is lost."""
        self._lose("aborted")

    async def drain(self) -> None:
        """Waits until at most ``Limits.write_soft_bytes`` wait. Raises ConnectionClosed if the stream ends before."""
        if self._state is _ENDED:
            raise ConnectionClosed(self._close_code, self._close_reason)
        if self._queued + self._unsent > self.limits.write_soft_bytes:
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(future)
            await future

    def add_close_callback(self, callback: Callable[[Any], object]) -> None:
        """Calls ``callback(self)`` once, when the stream has ended; now, if it has."""
        if self._state is _ENDED:
            self._call(callback)
        else:
            self._callbacks += (callback,)

    # --- on a transport ---

    def head(self) -> bytes:
        """The head of its response in HTTP/1.1: the end of the connection is the end of the stream.

        Raises ValueError for headers that cannot be written; see `Response.encode`.
        """
        head = Response(200, b"", self.headers).encode(keep_alive=False, head_only=True)
        return head.replace(b"\r\nContent-Length: 0\r\n", b"\r\n", 1)  # no header of the application's can be that

    def start(self, transport: asyncio.Transport, head: bytes, loop_context: LoopContext | None = None) -> None:
        """Sends `head`, takes the transport over and sends all that is queued, and what will be.

        Raises RuntimeError if it was started before: a stream is for one response.
        """
        self._begin(StreamContext.of(loop_context))
        transport.set_protocol(_Receiver(self))
        if self._state is _ENDED or transport.is_closing():  # then connection_lost() may have told somebody else
            self._lose("the client went away")
            transport.abort()
            return
        self._transport = transport
        _limit_patience(transport, self.limits)
        # TLS takes a limit of 0 for one that is exceeded always.
        tls = transport.get_extra_info("sslcontext") is not None
        transport.set_write_buffer_limits(high=self.limits.write_soft_bytes if tls else 0)
        self._append(head, first=True)
        self.flush()

    def flush(self) -> None:
        """Gives the transport what it takes. For the context."""
        self._dirty = False
        transport = self._transport
        if transport is None:
            return
        while self._queue and not self._blocked:
            if transport.is_closing():
                return  # connection_lost() is on its way
            batch = self._take()
            try:
                if len(batch) == 1:
                    transport.write(batch[0])
                else:
                    transport.writelines(batch)
            except Exception as error:
                logger.debug("an event stream is lost: writing failed", exc_info=error)
                # Not now: whoever sends to many streams may not expect that one of them ends meanwhile.
                asyncio.get_running_loop().call_soon(self._lose, f"writing failed: {error}")
                self._blocked = True
                return
        self._wake_drained()
        if self._state is _CLOSING and not self._queue and not self._blocked:
            transport.close()

    def paused(self) -> None:
        """The transport has a backlog."""
        assert self._transport is not None
        assert self._context is not None
        self._blocked = True
        self._unsent = self._transport.get_write_buffer_size()
        self._context.note_slow(self)
        self._progress_time = self._now()
        self._look_again_in(self.limits.write_stall_timeout_s / 4)

    def resumed(self) -> None:
        """The transport has given everything away."""
        self._blocked = False
        self._unsent = 0
        self._wake_drained()
        self._flush_soon()  # not now: asyncio loses a connection twice if its transport is closed from here

    # --- as an iterator ---

    async def __aiter__(self) -> AsyncGenerator[bytes, None]:
        """The stream in chunks, until it is closed. Whoever leaves the loop has ended the stream.

        Raises RuntimeError if the stream was started before.
        """
        self._begin(StreamContext.of())
        try:
            while self._state is not _ENDED:
                if self._queue:
                    chunk = b"".join(self._take())
                    self._blocked = True
                    self._unsent = len(chunk)
                    yield chunk
                    self._blocked = False
                    self._unsent = 0
                    self._progress_time = self._now()
                    self._wake_drained()
                elif self._state is _CLOSING:
                    self._lose(self._close_reason)
                else:
                    self._wakeup = asyncio.get_running_loop().create_future()
                    await self._wakeup
        finally:
            self._lose("the client went away")

    # --- inside ---

    def _begin(self, context: StreamContext) -> None:
        if self._started:
            raise RuntimeError(f"{self!r} was started already: an SseStream is for one response, make one for each")
        self._started = True
        self._context = context
        context.opened()
        if self._state is _ENDED:
            context.ended(self)
            return
        if self._close_code == CloseCode.SLOW_CONSUMER:
            context.slow()
        self._sent_time = self._progress_time = self._now()
        if self._state is _CLOSING:
            self._set_deadline()
        else:
            self._look_again_in(self.limits.sse_ping_interval_s)

    def _now(self) -> float:
        assert self._context is not None
        return self._context.loop_context.time()

    def _has_room(self, droppable: bool) -> bool:
        """What to do when more than the soft mark waits."""
        if self._transport is not None:
            if self._blocked:
                self._unsent = self._transport.get_write_buffer_size()
            else:
                self.flush()
        waiting = self._queued + self._unsent
        if droppable and waiting > self.limits.write_soft_bytes:
            if self._context is not None:
                self._context.dropped()
            return False
        if waiting > self.limits.write_hard_bytes:
            self._evict(f"more than {self.limits.write_hard_bytes} bytes wait for you")
        return self._state is _OPEN

    def _append(self, event: bytes, *, first: bool = False) -> None:
        if first:
            self._queue.appendleft(event)
        else:
            self._queue.append(event)
        self._queued += len(event)
        if self._context is None:
            return
        self._sent_time = self._now()
        if self._transport is not None:
            if not self._blocked:
                self._flush_soon()
        elif len(self._queue) == 1:  # from now on the consumer keeps somebody waiting
            self._progress_time = self._sent_time
            self._context.note_slow(self)
            self._look_again_in(self.limits.write_stall_timeout_s / 4)
            self._wake_consumer()

    def _take(self) -> list[bytes]:
        """The next batch: whole events."""
        queue = self._queue
        batch = [queue.popleft()]
        size = len(batch[0])
        while queue and (
            (len(batch) < _BATCH_EVENTS and size + len(queue[0]) <= _BATCH_BYTES)
            or not batch[-1].endswith(b"\n\n")  # only the head of an event
        ):
            event = queue.popleft()
            size += len(event)
            batch.append(event)
        self._queued -= size
        context = self._context
        if context is not None:
            context.events_out += 1 if len(batch) == 1 else sum(map(_IS_END, batch))
            context.bytes_out += size
        return batch

    def _wake_consumer(self) -> None:
        wakeup, self._wakeup = self._wakeup, None
        if wakeup is not None and not wakeup.done():
            wakeup.set_result(None)

    def _wake_drained(self) -> None:
        if self._waiters and self._queued + self._unsent <= self.limits.write_soft_bytes:
            waiters, self._waiters = self._waiters, []
            for future in waiters:
                if not future.done():
                    future.set_result(None)

    # --- for SlowConsumers ---

    def _bytes_waiting(self) -> int:
        return self.bytes_buffered

    def _bytes_held(self) -> float:
        # What would be freed without this stream: of an event that others hold too, its part.
        # Two references are of the loop and the call, one of them from Python 3.14 on.
        return self._unsent + sum(len(event) / max(1, sys.getrefcount(event) - 2) for event in self._queue)

    def _evict(self, why: str) -> None:
        # References to what it will not get are let go at once.
        if self._state is not _OPEN:
            return
        logger.debug("an event stream is closed: %s", why)
        if self._context is not None:
            self._context.slow()
        self._queue.clear()
        self._queued = 0
        if self.farewell:
            self._append(self.farewell)
        self._begin_close(CloseCode.SLOW_CONSUMER, why)

    # --- the end ---

    def _begin_close(self, code: int, reason: str) -> None:
        if self._state is not _OPEN:
            return
        self._state = _CLOSING
        self._close_code = int(code)
        self._close_reason = reason
        if self._context is None:
            return
        self._set_deadline()
        if self._transport is None:
            self._wake_consumer()
        else:
            self._flush_soon()

    def _flush_soon(self) -> None:
        if not self._dirty and self._context is not None:
            self._dirty = True
            self._context.add_dirty(self)

    def _set_deadline(self) -> None:
        self._deadline = self._now() + self.limits.abort_timeout_s
        self._look_again_in(self.limits.abort_timeout_s)

    def _lose(self, reason: str) -> None:
        """The end, however it came."""
        if self._state is _ENDED:
            return
        self._state = _ENDED
        if not self._close_code:
            self._close_code = int(CloseCode.ABNORMAL)
            self._close_reason = reason
        self._queue.clear()
        self._queued = self._unsent = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._context is not None:
            self._context.ended(self)
        self._wake_consumer()
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
        for future in self._waiters:
            if not future.done():
                future.set_exception(ConnectionClosed(self._close_code, self._close_reason))
        self._waiters.clear()
        callbacks, self._callbacks = self._callbacks, ()
        for callback in callbacks:
            self._call(callback)

    def _call(self, callback: Callable[[Any], object]) -> None:
        try:
            callback(self)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException:
            logger.exception("a close callback of %r failed", self)

    # --- deadlines ---

    def _look_again_in(self, delay_s: float) -> None:
        """One timer serves every deadline: it is set to the nearest, and on_timer() looks at all."""
        assert self._context is not None
        if self._timer is None:
            self._timer = self._context.loop_context.wheel.schedule(delay_s, _on_timer, self)
        elif self._timer.deadline > self._now() + delay_s:
            self._timer.reschedule(delay_s)

    def on_timer(self) -> None:
        """A deadline may have passed."""
        now = self._now()
        if self._state is _CLOSING and now >= self._deadline:
            self._lose(self._close_reason)
        elif self._state is _OPEN and self._is_waited_for():
            self._look_at_progress(now)
        elif self._state is _OPEN and now - self._sent_time >= self.limits.sse_ping_interval_s:
            self._append(self.heartbeat)
        if self._timer is None:
            return
        if self._state is _CLOSING:
            self._timer.reschedule(self._deadline - now)
        elif self._is_waited_for():
            self._timer.reschedule(self.limits.write_stall_timeout_s / 4)
        else:
            self._timer.reschedule(self._sent_time + self.limits.sse_ping_interval_s - now)

    def _is_waited_for(self) -> bool:
        """Whether the client has to take something before anything else can go out."""
        if self._transport is not None:
            return self._blocked
        return bool(self._queue) and self._wakeup is None

    def _look_at_progress(self, now: float) -> None:
        """Closes the stream of a client that takes nothing."""
        stall_s = self.limits.write_stall_timeout_s
        if self._transport is not None:
            left = self._transport.get_write_buffer_size()
            if left < self._unsent:
                self._progress_time = now
            self._unsent = left
        if now - self._progress_time >= stall_s:
            self._evict(f"nothing was read for {stall_s:g} s")


class _Receiver(asyncio.Protocol):
    """The protocol of a transport that a stream writes to. The client has nothing to say any more."""

    __slots__ = ("_stream",)

    def __init__(self, stream: SseStream) -> None:
        self._stream = stream

    def data_received(self, data: bytes) -> None:
        """Requests behind this one have no answer."""

    def eof_received(self) -> bool:
        self._stream._lose("the client went away")
        return False

    def pause_writing(self) -> None:
        self._stream.paused()

    def resume_writing(self) -> None:
        self._stream.resumed()

    def connection_lost(self, error: Exception | None) -> None:
        self._stream._transport = None
        self._stream._lose("the client went away")


def _limit_patience(transport: asyncio.BaseTransport, limits: Limits) -> None:
    """Makes the kernel give up a client that does not acknowledge what it gets (RFC 5482); TCP alone takes 15 min."""
    sock = transport.get_extra_info("socket")
    if sock is None or not hasattr(socket, "TCP_USER_TIMEOUT"):
        return
    patience_s = limits.sse_ping_interval_s + limits.pong_timeout_s
    with contextlib.suppress(OSError):  # not TCP
        cast("socket.socket", sock).setsockopt(
            socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, min(int(1_000 * patience_s), 2**31 - 1)
        )


def _on_timer(stream: SseStream) -> None:
    stream.on_timer()

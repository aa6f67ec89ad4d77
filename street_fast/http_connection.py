"""One HTTP connection, from accept until it ends or a WebSocket takes it over. Made by `HttpServer` only.

    RECEIVING -> RUNNING -> IDLE -> RECEIVING ...      a request comes in, its handler runs, the next may come
    any of them -> CLOSING                             the last answer is on its way out
    any of them -> GONE                                the client left, or a WebSocket took the connection over

* Requests are answered in order, one at a time. What the client sends meanwhile is kept; beyond the size of a request
  head (plus one read) it is not read any more. A client that does not take its answers gets no more of them.
* There is one deadline, a timer in the wheel of the loop: ``handshake_timeout_s`` from accept (TLS included) or from
  the first byte of a later request, however the bytes come; ``keep_alive_timeout_s`` between requests; and while
  closing, a time without progress, after which the connection is aborted.
* A refusal ends the connection, and nothing that came behind the request is looked at. The client may still be
  sending; it is read and forgotten for a moment, because closing on unread bytes would take the answer away from it.
* Whoever takes the transport over gets it with the bytes that came behind the request. Nothing of HTTP stays. An
  `SseStream` that a handler returns does so too, and nobody looks at what came behind its request.
"""

from __future__ import annotations

import asyncio
import enum
import inspect
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, cast

from street_fast.errors import CloseCode, ConnectionClosed, HandshakeRefused
from street_fast.handshake import Upgrade, refusal
from street_fast.http1 import RequestReader
from street_fast.request import Request, Response
from street_fast.sse import SseStream

if TYPE_CHECKING:
    from street_fast._core import LoopContext, Timer
    from street_fast.http_server import HttpServer

__all__ = ["Handler", "HttpConnection", "Route", "UpgradeHandler", "as_response", "internal_error"]

logger = logging.getLogger("street_fast")

Handler = Callable[[Request], Any]
Route = tuple[str, str, Handler]
"""Method, path, handler."""
UpgradeHandler = Callable[[Upgrade], None]

_REQUESTS_PER_TURN = 32  # pipelined requests that are answered before the loop gets its turn


class _State(enum.Enum):
    RECEIVING = enum.auto()
    RUNNING = enum.auto()
    IDLE = enum.auto()
    CLOSING = enum.auto()
    GONE = enum.auto()


_RECEIVING, _RUNNING, _IDLE, _CLOSING, _GONE = _State


class HttpConnection(asyncio.Protocol):
    """The protocol of one connection; `server` says what to do with a request. `since` is when the request began."""

    __slots__ = (
        "_context",
        "_half_closed",
        "_limits",
        "_reader",
        "_reading_paused",
        "_request",
        "_scheduled",
        "_server",
        "_state",
        "_task",
        "_timer",
        "_transport",
        "_unsent",
        "_upgrade",
        "_writing_paused",
        "since",
    )

    _reader: RequestReader
    _timer: Timer
    _transport: asyncio.Transport

    def __init__(self, server: HttpServer, context: LoopContext) -> None:
        self._server = server
        self._context = context
        self._limits = server.limits
        self._state = _RECEIVING
        self._request: Request | None = None  # the one that is being answered
        self._task: asyncio.Future[Any] | None = None  # its handler, if that is a coroutine
        self._upgrade: _Upgrade | None = None  # or the WebSocket server that has it
        self._half_closed = False  # the client has said all that it will say
        self._reading_paused = False
        self._writing_paused = False
        self._scheduled = False  # the loop has its turn; _advance() is called again
        self._unsent = 0
        self.since = context.time()  # the protocol is made at accept, before the TLS handshake

    # --- what the transport says ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._reader = RequestReader(self._limits, _address(transport))
        spent = self._context.time() - self.since
        self._timer = self._context.wheel.schedule(self._limits.handshake_timeout_s - spent, _on_deadline, self)
        self._server.connection_opened(self)

    def data_received(self, data: bytes) -> None:
        if self._state is _CLOSING or self._state is _GONE:
            return
        self._reader.feed(data)
        if self._busy:
            self._regulate_reading()
        else:
            self._advance()

    def eof_received(self) -> bool:
        """The client may stop sending and still wait for its answers, but not for a WebSocket."""
        if self._upgrade is None and self._busy and self._transport.can_write_eof():
            self._half_closed = True
            return True
        return False  # the transport closes

    def pause_writing(self) -> None:
        self._writing_paused = True

    def resume_writing(self) -> None:
        self._writing_paused = False
        if not self._busy:  # not now: asyncio loses a connection twice if its transport is closed from here
            self._scheduled = True
            self._context.loop.call_soon(self._next_turn)

    def connection_lost(self, error: Exception | None) -> None:
        if self._state is _GONE:
            return
        self._leave()
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._abandon_upgrade()

    # --- what the server says ---

    def run(self, request: Request, handler: Handler) -> None:
        """Answer with what `handler` returns."""
        try:
            result = handler(request)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            self._failed(error)
            return
        if inspect.isawaitable(result):
            self._task = asyncio.ensure_future(_wait(result), loop=self._context.loop)
            self._task.add_done_callback(self._task_done)
        else:
            self._respond_with(result)

    def hand_on(self, request: Request, handler: UpgradeHandler) -> None:
        """Let `handler` answer it as a WebSocket server does."""
        self._upgrade = upgrade = _Upgrade(request, self)
        try:
            handler(upgrade)
        except Exception as error:
            logger.exception("the WebSocket server on %r failed", request.path, exc_info=error)
            upgrade.refuse(internal_error())

    def respond(self, response: Response, *, last: bool = False) -> None:
        """Send the answer to the request; the connection goes on if it may, and not if it is the `last`."""
        reader, request = self._reader, self._request
        keep_alive = (
            not last
            and reader.keep_alive
            and not reader.done
            and self._server.accepting
            and (not self._half_closed or reader.begun)
        )
        head_only = request is not None and request.method == "HEAD"
        try:
            data = response.encode(keep_alive, head_only)
        except ValueError as error:
            logger.exception("the answer to %r cannot be sent", request, exc_info=error)
            data = internal_error().encode(keep_alive, head_only)
        self._request = None
        self._write(data)
        if keep_alive:
            self._state = _IDLE
            self._arm(self._limits.keep_alive_timeout_s)
        else:
            self._close(linger=reader.done or reader.begun)

    def close_if_idle(self, *, receiving: bool = False) -> None:
        """Close a connection that waits for a request; with `receiving`, also one whose request is not all there."""
        if self._state is _IDLE or (self._state is _RECEIVING and (receiving or not self._reader.begun)):
            self._close()

    def abort(self) -> None:
        """Drop it at once."""
        if self._state is not _GONE:
            self._transport.abort()

    # --- requests ---

    @property
    def _busy(self) -> bool:
        """Whether what comes in has to wait."""
        return self._state is _RUNNING or self._writing_paused or self._scheduled

    def _advance(self) -> None:
        """Answer what is there, one request after the other, until one is not complete or has to be waited for."""
        turns = 0
        while (self._state is _RECEIVING or self._state is _IDLE) and not self._writing_paused:
            if self._state is _IDLE:
                if not self._reader.begun:
                    break
                self._state = _RECEIVING
                self.since = self._context.time()
                self._arm(self._limits.handshake_timeout_s)
                self._server.request_begun(self)
            if turns == _REQUESTS_PER_TURN:
                self._scheduled = True
                self._context.loop.call_soon(self._next_turn)
                break
            turns += 1
            try:
                request = self._reader.next_request()
            except HandshakeRefused as error:
                self.respond(refusal(error))
                break
            if request is None:
                self._wait_for_more()
                break
            self._state = _RUNNING
            self._request = request
            self._server.request_complete(self)
            self._server.serve(self, request)
        self._regulate_reading()

    def _next_turn(self) -> None:
        self._scheduled = False
        self._advance()

    def _wait_for_more(self) -> None:
        if self._half_closed:
            self._close()
        elif self._reader.take_continue():
            self._write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def _regulate_reading(self) -> None:
        if self._state is _GONE or self._state is _CLOSING:
            return
        too_much = self._busy and self._reader.buffered > self._limits.request_head_bytes
        if too_much and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()
        elif self._reading_paused and not too_much:
            self._resume_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            if not self._half_closed:
                self._transport.resume_reading()

    # --- answers ---

    def _task_done(self, task: asyncio.Future[Any]) -> None:
        if self._task is not task:  # the client is gone, and the task was cancelled
            if not task.cancelled() and task.exception() is None and isinstance(task.result(), SseStream):
                task.result().abort()
            return
        self._task = None
        error = asyncio.CancelledError("the handler was cancelled") if task.cancelled() else task.exception()
        if error is None:
            self._respond_with(task.result())
        else:
            self._failed(error)
        self._advance()

    def _respond_with(self, result: object) -> None:
        if isinstance(result, SseStream):
            self._stream(result)
            return
        try:
            response = as_response(result)
        except Exception as error:
            self._failed(error)
        else:
            self.respond(response)

    def _stream(self, stream: SseStream) -> None:
        """Let `stream` be the answer: HEAD gets its head; otherwise it takes the connection over."""
        if stream.started:
            self._failed(RuntimeError(f"{stream!r} is the answer to another request; make one for each"))
            return
        try:
            head = stream.head()
        except ValueError as error:
            stream.abort()
            self._failed(error)
            return
        if self._request is not None and self._request.method == "HEAD":
            stream.abort()
            self._request = None
            self._write(head)
            self._close(linger=self._reader.begun)
        elif self._half_closed or self._transport.is_closing():
            stream.abort()
            self._close()
        else:
            self._server.stream_begins(stream)  # before the server may find that nobody is left
            transport, _ = self.release()
            stream.start(transport, head, self._context)

    def _failed(self, error: BaseException) -> None:
        logger.error("the handler of %r failed", self._request, exc_info=error)
        self.respond(internal_error())

    def _write(self, data: bytes) -> None:
        if not self._transport.is_closing():  # uvloop raises, between the failure of a write and connection_lost()
            self._transport.write(data)

    # --- the end ---

    def _close(self, *, linger: bool = False) -> None:
        """Close once everything is sent; with `linger`, go on reading until the client has closed too."""
        self._state = _CLOSING
        self._reader.take_rest()
        self._server.request_complete(self)
        if self._transport.is_closing():
            self._timer.cancel()  # connection_lost() is on its way
        elif linger and not self._half_closed and self._transport.can_write_eof():
            try:
                self._transport.write_eof()
            except OSError:  # asyncio: the client has reset the connection, and the loop has not seen it yet
                self._transport.abort()
                return
            self._resume_reading()
            self._arm(self._limits.abort_timeout_s)
        else:
            self._transport.close()
            self._arm(self._limits.write_stall_timeout_s)

    def _arm(self, delay_s: float) -> None:
        """Set the deadline. Before it is used to end a connection, bytes that the client took since then count."""
        self._unsent = self._transport.get_write_buffer_size()
        if self._timer.active:
            self._timer.reschedule(delay_s)
        else:
            self._timer = self._context.wheel.schedule(delay_s, _on_deadline, self)

    def on_deadline(self) -> None:
        """The deadline has passed."""
        if self._state is _IDLE or self._state is _CLOSING:
            if 0 < self._transport.get_write_buffer_size() < self._unsent:
                self._arm(self._limits.write_stall_timeout_s)
            elif self._state is _IDLE and not self._writing_paused:
                self._close()
            else:
                self._transport.abort()
        elif self._state is _RECEIVING and self._reader.begun:
            self._time_out(Response.text("the request did not come in time\n", 408))
        elif self._state is _RECEIVING:
            self._close()
        elif self._upgrade is not None:
            self._abandon_upgrade()
            self._time_out(Response.text("the handshake took too long\n", 503))

    def _time_out(self, response: Response) -> None:
        """Say so and close; nobody waits for a client that was too slow already."""
        self._write(response.encode(keep_alive=False))
        self._close()

    def _abandon_upgrade(self) -> None:
        upgrade, self._upgrade = self._upgrade, None
        if upgrade is not None:
            upgrade.abandon()

    def release(self) -> tuple[asyncio.Transport, bytes]:
        """Let go of the transport; the rest of `Upgrade.take_over`."""
        self._upgrade = None
        if self._transport.is_closing():
            raise _gone()
        transport, rest = self._transport, self._reader.take_rest()
        self._resume_reading()
        self._leave()
        return transport, rest

    def upgrade_refused(self, response: Response) -> None:
        """The rest of `Upgrade.refuse`."""
        self._upgrade = None
        self.respond(response, last=True)

    def _leave(self) -> None:
        self._state = _GONE
        self._request = None
        self._timer.cancel()
        self._server.connection_gone(self)
        del self._reader, self._timer, self._transport


class _Upgrade:
    """A request that waits for the answer of a WebSocket server. See `handshake.Upgrade`."""

    __slots__ = ("_connection", "on_abandoned", "request")

    def __init__(self, request: Request, connection: HttpConnection) -> None:
        self.request = request
        self.on_abandoned: Callable[[], None] | None = None
        self._connection: HttpConnection | None = connection

    def refuse(self, response: Response) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.upgrade_refused(response)

    def take_over(self) -> tuple[asyncio.Transport, bytes]:
        connection, self._connection = self._connection, None
        if connection is None:
            raise _gone()
        return connection.release()

    def abandon(self) -> None:
        self._connection = None
        callback, self.on_abandoned = self.on_abandoned, None
        if callback is not None:
            try:
                callback()
            except Exception:
                logger.exception("on_abandoned() failed")


def _gone() -> ConnectionClosed:
    return ConnectionClosed(CloseCode.ABNORMAL, "the client went away during the handshake")


def _on_deadline(connection: HttpConnection) -> None:
    connection.on_deadline()


def _address(transport: asyncio.BaseTransport) -> tuple[str, int] | None:
    """(host, port) of the peer; None on a Unix socket."""
    peer = transport.get_extra_info("peername")
    return (peer[0], peer[1]) if isinstance(peer, tuple) and len(peer) >= 2 else None


async def _wait(result: Awaitable[Any]) -> Any:
    return await result


def as_response(result: object) -> Response:
    """What a handler returned, as a Response. Raises TypeError for anything that cannot be one."""
    if isinstance(result, Response):
        return result
    if isinstance(result, str):
        return Response.text(result)
    if isinstance(result, (dict, list)):
        return Response.json(result)
    if isinstance(result, (bytes, bytearray, memoryview)):
        return Response(200, bytes(result), [("Content-Type", "application/octet-stream")])
    kinds = "Response, SseStream, str, bytes, dict or list"
    raise TypeError(f"a handler returned {type(result).__name__}: must be {kinds}")


def internal_error() -> Response:
    """The answer where a handler failed."""
    return Response.text("Internal Server Error\n", 500)

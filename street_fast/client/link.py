"""The connections of one client: it dials, serves the protocol while a connection lasts, waits, and dials again.

One task does that; there is one timer, in the wheel of the loop, for all that the protocol wants to do later. Whatever
is cancelled, and wherever, the socket is closed and the task is gone.

Reading pauses while what is unread is too much, so that TCP slows the server down; but it goes on while an answer is
waited for, for that is behind the unread messages, and a reader may well wait for it. While it pauses the server's
heartbeat is not seen, so the server is pinged, or it would take us for gone.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
import random
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from street_fast._core import LoopContext, Timer, WebSocket
from street_fast.client.connection import CannotConnect, dial
from street_fast.client.messages import RealtimeError
from street_fast.client.protocol import ClientProtocol, State
from street_fast.errors import CloseCode, ConnectionClosed, HandshakeRefused, StreetError

if TYPE_CHECKING:
    import ssl as tls
    from collections.abc import Callable, Coroutine

    from street_fast.client.feed import Feed, TokenSource
    from street_fast.client.handshake import Target
    from street_fast.client.messages import Incoming
    from street_fast.limits import Limits

__all__ = ["Link"]

logger = logging.getLogger("street_fast")

_PAUSED_PING_S = 5.0
"""Well below the time in which a server wants to hear from us (``Limits.pong_timeout_s``)."""


class _Loss(NamedTuple):
    """How a connection ended; `error` is what the application is told if it was the first one."""

    code: int
    reason: str
    error: Exception
    retry_after_s: float | None = None


class Link:
    """The I/O of one client. `start` once, then `close`."""

    def __init__(
        self,
        target: Target,
        *,
        headers: tuple[tuple[str, str], ...],
        ssl: tls.SSLContext | None,
        uds: str | None,
        token: TokenSource | None,
        limits: Limits,
        open_timeout_s: float,
        request_timeout_s: float,
        queue_size: int,
        backoff_s: tuple[float, float],
        reconnect: bool,
        on_event: Callable[[Incoming], object],
        on_state: Callable[[State], object],
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self._context = LoopContext.of(self.loop)
        self._target = target
        self._headers = headers
        self._ssl = ssl
        self._uds = uds
        self._token = token
        self._refused_token: str | None = None
        self._limits = limits
        self._open_timeout_s = open_timeout_s
        self._on_event = on_event
        self._on_state = on_state
        self._ws: WebSocket | None = None
        self._dropped: tuple[int, str] | None = None
        self._welcomed: asyncio.Future[None] = self.loop.create_future()  # of this connection, as the next one
        self._gone: asyncio.Future[_Loss] = self.loop.create_future()
        self._first: asyncio.Future[None] = self.loop.create_future()
        self._timer: Timer | None = None
        self._paused_timer: Timer | None = None
        self._runner: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False
        self._full: set[object] = set()
        self._paused = False
        self.error: StreetError | None = None  # why there is no connection any more
        self.protocol = ClientProtocol(
            self,
            clock=self._context.time,
            wall_clock=time.time,
            stopwatch=time.perf_counter,
            random=random.random,
            token=token,
            request_timeout_s=request_timeout_s,
            queue_size=queue_size,
            backoff_s=backoff_s,
            reconnect=reconnect,
        )

    # --- from start to end ---

    async def start(self) -> None:
        """Returns when the server has let us in the first time; raises why it has not."""
        self._runner = self.loop.create_task(self._run())
        try:
            await self._first
        except BaseException:
            await self._give_up()
            raise

    async def close(self) -> None:
        """Say goodbye and wait for the end, at most ``Limits.close_timeout_s``. Any number of times."""
        self._end(ConnectionClosed(CloseCode.NORMAL, "closed by the application"), wanted=True)
        await asyncio.sleep(0)  # handlers may see the end
        runner = self._runner
        if self._ws is None:
            await self._give_up()
        elif runner is not None:
            self._ws.close()
            try:
                await asyncio.wait({runner})
            finally:
                await self._give_up()

    async def _give_up(self) -> None:
        """End at once. Returns when nothing is left."""
        if self._ws is not None:
            self._ws.abort()
        own = asyncio.current_task()
        left = {task for task in self._tasks if task is not own and not task.done()}
        if self._runner is not None and not self._runner.done():
            left.add(self._runner)
        for task in left:
            task.cancel()
        for timer in (self._timer, self._paused_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._paused_timer = None
        if left:
            await asyncio.wait(left)
        await asyncio.sleep(0)  # a transport that was aborted closes its socket in the next turn of the loop

    def _end(self, error: StreetError, *, wanted: bool) -> None:
        if self.error is None:
            self.error = error
            self.protocol.end(error, wanted=wanted)
            if not self._first.done():
                self._first.set_exception(error)

    def run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that ends with the client at the latest."""
        task = self.loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    # --- the runner ---

    async def _run(self) -> None:
        try:
            await self._connect_again_and_again()
        except Exception as error:  # a mistake of ours; nobody must wait for ever
            logger.exception("%s: the client failed", self._target)
            self._end(ConnectionClosed(CloseCode.INTERNAL_ERROR, f"the client failed: {error!r}"), wanted=False)
        finally:  # cancelled by somebody else, if it has not ended yet
            self._end(ConnectionClosed(CloseCode.INTERNAL_ERROR, "the task of the client was cancelled"), wanted=False)

    async def _connect_again_and_again(self) -> None:
        while True:
            loss = await self._connection()
            delay_s = self.protocol.lost(loss.code, loss.reason, loss.retry_after_s)
            if self.error is not None:
                return
            if not self._first.done() and (delay_s is None or loss.code != CloseCode.UNAUTHORIZED):
                self._first.set_exception(loss.error)
                delay_s = None
            if delay_s is None:
                logger.info("%s: the connection is over: %s", self._target, loss.reason)
                self._end(ConnectionClosed(loss.code, loss.reason), wanted=False)
                return
            logger.info("%s: %s; trying again in %.1f s", self._target, loss.reason, delay_s)
            await asyncio.sleep(delay_s)

    async def _connection(self) -> _Loss:
        """One connection from the dialling to its end."""
        token: str | None = None
        if self._token is not None:
            try:
                token = await self._fetch(self._token)
            except Exception as error:
                return _Loss(CloseCode.ABNORMAL, f"the token function failed: {error!r}", error)
            if self.error is not None:  # asyncio.wait_for() of Python 3.11 may swallow a cancellation
                return _Loss(CloseCode.NORMAL, "", self.error)
            if token == self._refused_token:
                return self._unauthorized("this token was refused already, and there is no other")
        self._dropped = None
        self._welcomed = self.loop.create_future()
        self._gone = self.loop.create_future()
        deadline = self.loop.time() + self._open_timeout_s

        def on_open(transport: asyncio.Transport, tail: bytes) -> None:
            self._take(transport, tail, token)

        dialling = self.loop.create_task(
            dial(self._target, on_open, headers=self._headers, ssl=self._ssl, uds=self._uds)
        )
        try:
            await asyncio.wait({dialling}, timeout=self._open_timeout_s)
            if not dialling.done():
                return self._too_late("did not answer")
            failure = dialling.exception()
            if failure is not None:
                return _loss_of(failure)
            left = max(0.0, deadline - self.loop.time())
            ways: set[asyncio.Future[Any]] = {self._welcomed, self._gone}
            await asyncio.wait(ways, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            if not self._welcomed.done() and not self._gone.done():
                return self._too_late("did not welcome us (is it a Realtime?)")
            loss = await self._gone
            if loss.code == CloseCode.UNAUTHORIZED:
                self._refused_token = token
                return self._unauthorized(loss.reason)
            return loss
        finally:
            if not dialling.done():
                dialling.cancel()
                await asyncio.wait({dialling})
            if not dialling.cancelled():
                dialling.exception()  # it has been seen
            if self._ws is not None:
                self._ws.abort()
                self._ws = None

    def _take(self, transport: asyncio.Transport, tail: bytes, token: str | None) -> None:
        ws = WebSocket(self._context, self._limits, client=True)
        ws.text_as_bytes = True
        ws.on_message = self._received
        ws.on_close = functools.partial(self._closed, ws)
        self._ws = ws
        self._paused = False
        ws.start(transport, tail=tail)
        self.protocol.opened(token)

    def _received(self, data: bytes | bytearray) -> None:
        if isinstance(data, bytes):
            self.protocol.receive(data)
            self.update_reading()
        else:
            logger.warning("%s: the server sent a binary message, it is ignored", self._target)

    def _closed(self, ws: WebSocket, code: int, reason: str) -> None:
        if ws is not self._ws:  # it was given up before
            return
        self._ws = None
        if self._dropped is not None:
            code, reason = self._dropped
        elif not reason:
            reason = CloseCode(code).explanation if code in set(CloseCode) else f"closed with {code}"
        if not self._gone.done():
            self._gone.set_result(_Loss(code, reason, CannotConnect(f"{self._target} did not let us in: {reason}")))

    def _too_late(self, what: str) -> _Loss:
        why = f"{self._target} {what} within {self._open_timeout_s:g} s"
        return _Loss(CloseCode.ABNORMAL, why, CannotConnect(why))

    def _unauthorized(self, reason: str) -> _Loss:
        return _Loss(CloseCode.UNAUTHORIZED, reason, RealtimeError("unauthorized", reason or "the token was refused"))

    # --- tokens ---

    async def _fetch(self, source: TokenSource) -> str:
        if isinstance(source, str):
            return source
        token = source()
        if inspect.isawaitable(token):
            try:
                token = await asyncio.wait_for(token, self._open_timeout_s)
            except asyncio.TimeoutError as error:
                why = f"the token function took longer than {self._open_timeout_s:g} s"
                raise CannotConnect(why) from error
        if not isinstance(token, str) or not token:
            raise RealtimeError("unauthorized", f"the token function returned {type(token).__name__}, and no token")
        return token

    def fetch_token(self, source: TokenSource, then: Callable[[str | None], object]) -> None:
        self.run(self._fetch_then(source, then))

    async def _fetch_then(self, source: TokenSource, then: Callable[[str | None], object]) -> None:
        try:
            token = await self._fetch(source)
        except Exception:
            logger.exception("%s: the token function failed", self._target)
            then(None)
        else:
            then(token)

    # --- what the protocol wants ---

    def send(self, text: bytes) -> None:
        if self._ws is not None:
            self._ws.send(text.decode())

    def writable(self) -> bool:
        ws = self._ws
        if ws is None or ws.closed:
            return False
        if ws.bytes_buffered <= self._limits.write_soft_bytes:
            return True
        if not self._draining:
            self._draining = True
            self.run(self._drain(ws))
        return False

    async def _drain(self, ws: WebSocket) -> None:
        try:
            await ws.drain()
        except ConnectionClosed:
            return
        finally:
            self._draining = False
        self.protocol.requests.pump()

    def quiet(self) -> bool:
        return self._paused or (self._ws is not None and self._ws.mid_message)

    def drop(self, code: int, reason: str) -> None:
        if self._ws is not None:
            self._dropped = (int(code), reason)
            self._ws.abort()

    def set_timer(self, when: float) -> None:
        delay_s = max(0.0, when - self._context.time())
        if self._timer is None:
            self._timer = self._context.wheel.schedule(delay_s, Link._on_timer, self)
        elif self._timer.deadline > when:
            self._timer.reschedule(delay_s)

    def _on_timer(self) -> None:
        self._timer = None
        if self.error is None:
            self.protocol.on_timer()
            self.update_reading()

    def event(self, event: Incoming) -> None:
        self._on_event(event)

    def state_changed(self, state: State) -> None:
        if state == "open":
            if not self._welcomed.done():
                self._welcomed.set_result(None)
            if not self._first.done():
                self._first.set_result(None)
        self._on_state(state)

    def warn(self, text: str) -> None:
        logger.warning("%s: %s", self._target, text)

    # --- backpressure ---

    def set_full(self, reader: object, full: bool) -> None:
        """`reader` has so much unread that reading should pause; or not any more."""
        if full != (reader in self._full):
            if full:
                self._full.add(reader)
            else:
                self._full.discard(reader)
            self.update_reading()

    def update_reading(self) -> None:
        """Pause or go on, as the readers and the requests want it."""
        ws, protocol = self._ws, self.protocol
        pause = bool(self._full) and not len(protocol.requests) and protocol.state == "open"
        if ws is None or pause == self._paused:
            return
        self._paused = pause
        if pause:
            ws.pause_reading()
            if self._paused_timer is None:
                self._paused_timer = self._context.wheel.schedule(_PAUSED_PING_S, Link._ping_while_paused, self)
        else:
            protocol.heard()
            ws.resume_reading()

    def _ping_while_paused(self) -> None:
        self._paused_timer = None
        if self._paused and self._ws is not None and self._ws.ping():
            self._paused_timer = self._context.wheel.schedule(_PAUSED_PING_S, Link._ping_while_paused, self)

    def read_from(self, feed: Feed) -> None:
        """A reader has taken something from a feed."""
        if len(feed.items) <= feed.size // 2:
            self.set_full(feed, False)
            if feed.overfull:
                self.protocol.subscriptions.catch_up(feed)


def _loss_of(failure: BaseException) -> _Loss:
    """What a connection that could not be had means for the next try."""
    if isinstance(failure, HandshakeRefused):
        hint = {name.lower(): value for name, value in failure.headers}.get("retry-after", "")
        retry_after_s = float(hint) if hint.isascii() and hint.isdigit() else None
        code = CloseCode.POLICY_VIOLATION if failure.status in (401, 403) else CloseCode.ABNORMAL
        return _Loss(code, str(failure), failure, retry_after_s)
    if not isinstance(failure, CannotConnect):
        logger.error("connecting failed", exc_info=failure)
    error = failure if isinstance(failure, Exception) else CannotConnect(repr(failure))
    return _Loss(CloseCode.ABNORMAL, str(failure), error)

"""The HTTP side of a Realtime: event streams, what their clients send, and the API for other programs.

    GET  {path}/sse?channel=...      an event stream: the envelopes of docs/protocol.md, one in each event
    POST {path}/send?connection=...  what the client of such a stream sends

What other programs do, with an API key, is in `server_api`.

A stream is a `SsePeer`: to the hub a peer like any other, to its session a connection. Its id is random enough to be a
key: whoever knows it speaks for its client. So a POST need not bring the token again, and another page cannot speak for
a client whose id it does not know, whatever cookies its requests carry.

**Order.** What a client asks for is done one after the other, as it came: the channels of the request first. A POST is
answered when what it brought is queued; what cannot be queued is refused with 429. The response to the GET begins with
the first channel that the client may have; if there is none, or none within ``login_timeout_s``, it is refused. (Until
then not every server can see that its client has gone.)
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from street_fast import server_api
from street_fast._core import LoopContext
from street_fast.auth import TokenRefused
from street_fast.errors import CloseCode, ConnectionClosed, HandshakeRefused
from street_fast.handshake import check_origin
from street_fast.integrations import add_routes
from street_fast.messages import Envelope, MalformedMessage, decode, error_message
from street_fast.node_calls import NodeCalls
from street_fast.rates import ABUSIVE_REASON, DROPPED_MESSAGE, Rates, Verdict
from street_fast.refusals import BEARER, Refused, checked_text, decoded
from street_fast.request import Request, Response
from street_fast.sse import SseStream
from street_fast.sse_peer import Opening, SsePeer, positions_of
from street_fast.stream_context import StreamContext
from street_fast.street_socket import UNHANDLED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from street_fast.auth import Member
    from street_fast.http_connection import Route
    from street_fast.realtime import Realtime
    from street_fast.server import Front
    from street_fast.session import Session

__all__ = ["RealtimeHttp"]

logger = logging.getLogger("street_fast")

_SEND_MESSAGES = 16  # in one POST of a client

Pairs = list[tuple[str, str]]


class RealtimeHttp:
    """The event streams of one Realtime, by connection id, and its handlers of HTTP requests.

    `clock` is that of the rates, monotonic (default: the one of the running loop).
    """

    def __init__(self, realtime: Realtime, clock: Callable[[], float] | None = None) -> None:
        self._realtime = realtime
        self._limits = realtime.limits
        self._rates = Rates(realtime.limits, realtime.hub.limits.channels_per_connection)
        self._clock = clock
        self._context: StreamContext | None = None
        self._peers: dict[str, SsePeer] = {}
        self._calls = NodeCalls(self._signal, self._do, realtime.limits.backplane_timeout_s)
        realtime.exchange.answer(self._calls)
        self._draining = False
        self._all_gone: asyncio.Event | None = None

    @property
    def stream_count(self) -> int:
        """Open event streams."""
        return len(self._peers)

    def stats(self) -> dict[str, int]:
        """What can be measured of the event streams of this loop; see `StreamContext.stats`. Empty before the first."""
        return {} if self._context is None else self._context.stats()

    def routes(self) -> list[Route]:
        """Method, path and handler of each kind of request."""
        path = self._realtime.server.path.rstrip("/")
        return [
            ("GET", f"{path}/sse", self.stream),
            ("POST", f"{path}/send", self.send),
            *server_api.routes(self._realtime, path),
        ]

    def attach(self, http: Front) -> None:
        """Serves the routes on `http`; the Realtime starts with it, and ends when it shuts down."""
        front = add_routes(http, self.routes(), self._limits)
        front.on_startup(self._realtime.start)
        front.on_shutdown(self._realtime.end)

    async def drain(self) -> None:
        """Ends the streams with 1012, in batches, as `StreetWebSocketServer.drain` does with the WebSockets."""
        limits, server = self._limits, self._realtime.server
        self._draining = True
        peers = [*self._peers.values()]
        for start in range(0, len(peers), limits.shutdown_batch):
            if start:
                await asyncio.sleep(limits.shutdown_batch_interval_s)
            for peer in peers[start : start + limits.shutdown_batch]:
                peer.close(CloseCode.SERVICE_RESTART, server.retry_reason("restart"))
        if self._peers:
            self._all_gone = asyncio.Event()
            with contextlib.suppress(asyncio.TimeoutError):  # each has abort_timeout_s, from its start on
                await asyncio.wait_for(self._all_gone.wait(), limits.abort_timeout_s + 1)
        for peer in [*self._peers.values()]:
            peer.abort()

    # --- GET sse ---

    async def stream(self, request: Request) -> SseStream | Response:
        """Handler: an event stream, if the client may have one."""
        cors: Pairs = []
        try:
            cors = self._check_origin(request)
            self._check_open()
            if self._realtime.server.full:
                raise Refused("unavailable", "over capacity", headers=self._retry_after())
            return await self._admit(request, cors)
        except Refused as refused:
            return refused.response(cors)

    async def _admit(self, request: Request, cors: Pairs) -> SseStream:
        channels = self._channels_of(request)
        server = self._realtime.server
        server.other_connections += 1
        try:
            member = await self._identify(request)
        finally:
            server.other_connections -= 1  # from here on it counts as one of `_peers`
        self._check_open()  # nobody would tell a stream that begins now when to come back
        if member is None and channels:
            raise Refused("unauthorized", "a token is needed", headers=BEARER)
        if request.method == "HEAD":
            return SseStream(headers=cors)
        positions = positions_of(request, channels)
        peer = SsePeer(
            self._rates,
            self._time,
            node=self._calls.node,
            positions=positions,
            headers=cors,
            limits=self._limits,
        )
        try:
            session = peer.session = self._realtime.open(peer, member, self._limits.sse_ping_interval_s)
        except ValueError as error:
            logger.error("a member cannot be let in: %s", error)
            raise Refused("forbidden", "this member cannot be let in") from None
        self._context = StreamContext.of()
        self._peers[peer.id] = peer
        server.other_connections += 1
        peer.add_close_callback(self._ended)
        try:
            await self._subscribe(peer, session, positions)
        except BaseException:
            peer.abort()
            raise
        return peer

    def _check_open(self) -> None:
        if self._draining or self._realtime.server.draining:
            raise Refused("unavailable", "restart", headers=self._retry_after())

    def _channels_of(self, request: Request) -> list[str]:
        hub = self._realtime.hub
        channels = list(dict.fromkeys(request.query.get_all("channel")))
        if len(channels) > hub.limits.channels_per_connection:
            raise Refused("bad_request", f"a connection may be in {hub.limits.channels_per_connection} channels")
        for channel in channels:
            try:
                hub.check_name("channel", channel)
            except ValueError as error:
                raise Refused("bad_request", str(error)) from None
        return channels

    async def _identify(self, request: Request) -> Member | None:
        try:
            who = self._realtime.identify(request)
            if inspect.isawaitable(who):
                who = await asyncio.wait_for(who, self._limits.login_timeout_s)
        except TokenRefused as error:
            if error.temporary:
                raise Refused("unavailable", str(error), headers=self._retry_after()) from None
            raise Refused("unauthorized", str(error), headers=BEARER) from None
        except asyncio.TimeoutError:
            text = "the token could not be checked in time"
            raise Refused("unavailable", text, headers=self._retry_after()) from None
        request.member = who
        return who

    def _retry_after(self) -> Pairs:
        return self._realtime.server.retry_after()

    async def _subscribe(self, peer: SsePeer, session: Session, positions: dict[str, str | None]) -> None:
        """Subscribes; returns as soon as the client has a channel. Raises Refused if it gets none of them."""
        opening = peer.opening = Opening(len(positions))
        for channel, since in positions.items():
            peer.inbox.append(functools.partial(opening.subscribe, session, channel, since))
        self._work(peer)
        try:
            await asyncio.wait_for(opening.decided, self._limits.login_timeout_s)
        except asyncio.TimeoutError:
            text = "the channels could not be had in time"
            raise Refused("unavailable", text, headers=self._retry_after()) from None
        peer.opening = None
        if opening.errors and not opening.subscribed:
            code, message = next((error for error in opening.errors if error[0] == "unavailable"), opening.errors[0])
            raise Refused(code, message, headers=self._retry_after() if code == "unavailable" else ())
        if peer.closed:
            raise Refused("unavailable", "the connection was ended while it began", headers=self._retry_after())

    def _ended(self, peer: SsePeer) -> None:
        del self._peers[peer.id]
        self._realtime.server.other_connections -= 1
        if peer.worker is not None:
            peer.worker.get_loop().call_soon(peer.worker.cancel)
        if self._all_gone is not None and not self._peers:
            self._all_gone.set()

    # --- POST send ---

    def send(self, request: Request) -> Response | Awaitable[Response]:
        """Handler: what the client of a stream sends, be the stream here or on another node."""
        cors: Pairs = []
        try:
            cors = self._check_origin(request)
            connection = request.query.get("connection", "")
            node = self._calls.node_of(connection)
            if node is not None and self._realtime.exchange.has_nodes:
                return self._send_on(node, connection, request.body, cors)
            self._do(connection, request.body)
        except Refused as refused:
            return refused.response(cors)
        return _sent(cors)

    async def _send_on(self, node: str, connection: str, body: bytes, cors: Pairs) -> Response:
        try:
            await self._calls.ask(node, connection, body)
        except Refused as refused:
            return refused.response(cors)
        return _sent(cors)

    def _signal(self, channel: str, payload: bytes) -> None:
        self._realtime.exchange.backplane.signal(channel, payload)

    def _do(self, connection: str, body: bytes) -> None:
        """Takes what the client of one of the streams here has sent. Raises Refused."""
        peer = self._peers.get(connection)
        if peer is None or peer.closed:
            raise Refused("bad_request", "there is no such connection here; open another one", 404)
        self._take(peer, self._split(body))

    def _split(self, body: bytes) -> list[tuple[Envelope, int]]:
        """The envelopes of a body, one or several, and the size of each."""
        parts: list[msgspec.Raw] | list[bytes] = [body]
        if checked_text(body).lstrip(" \t\r\n").startswith("["):
            parts = decoded(body, list[msgspec.Raw])
            if len(parts) > _SEND_MESSAGES:
                raise Refused("limit_exceeded", f"at most {_SEND_MESSAGES} messages at once")
        envelopes = []
        for part in parts:
            size = len(bytes(part))
            if size > self._limits.event_bytes:
                raise Refused("limit_exceeded", f"a message may have {self._limits.event_bytes} bytes")
            try:
                envelopes.append((decode(bytes(part), self._limits.json_depth), size))
            except MalformedMessage as error:
                raise Refused("bad_request", str(error)) from None
        return envelopes

    def _take(self, peer: SsePeer, envelopes: list[tuple[Envelope, int]]) -> None:
        """Lets the client's session have them, in order, as far as its rate and its inbox allow."""
        if len(peer.inbox) + len(envelopes) > self._limits.inbox_messages and peer.inbox:
            raise Refused("rate_limited", "too much that you have sent is not done yet", headers=[("Retry-After", "1")])
        taken = 0
        now = self._time()
        for envelope, size in envelopes:
            verdict = peer.rate.take(self._rates, now, size)
            if verdict is Verdict.TAKEN:
                taken += 1
                peer.inbox.append(functools.partial(_handle, peer, envelope))
            elif verdict is Verdict.TELL:
                peer.deliver(error_message("rate_limited", DROPPED_MESSAGE))
            elif verdict is Verdict.ABUSIVE:
                peer.close(CloseCode.RATE_LIMITED, ABUSIVE_REASON)
                break
        self._work(peer)
        if envelopes and not taken:
            raise Refused("rate_limited", DROPPED_MESSAGE)

    # --- the work of a peer ---

    def _work(self, peer: SsePeer) -> None:
        """Does what is in the inbox; what has to wait goes on in a task, and the rest after it."""
        while peer.worker is None:
            step = peer.next_step()
            if step is None:
                return
            left = step()
            if left is not None:
                peer.worker = self._realtime.exchange.spawn(self._work_on(peer, left))

    async def _work_on(self, peer: SsePeer, left: Awaitable[object]) -> None:
        try:
            await left
            while (step := peer.next_step()) is not None:
                more = step()
                if more is not None:
                    await more
        except ConnectionClosed:
            pass
        finally:
            peer.worker = None

    def _time(self) -> float:
        if self._clock is None:
            self._clock = LoopContext.of().time
        return self._clock()

    # --- who may ask ---

    def _check_origin(self, request: Request) -> Pairs:
        """The headers that let a page of another origin read the answer. Raises Refused if it may not."""
        allowed = self._realtime.server.allowed_origins
        try:
            check_origin(request, allowed)
        except HandshakeRefused as error:
            raise Refused("forbidden", str(error)) from None
        origin = request.headers.get("origin")
        if origin is None or allowed is None:
            return []
        headers = [("Access-Control-Allow-Origin", origin), ("Vary", "Origin")]
        if "*" not in allowed:
            headers.append(("Access-Control-Allow-Credentials", "true"))
        return headers


def _sent(cors: Pairs) -> Response:
    return Response(204, headers=[("Cache-Control", "no-store"), *cors])


def _handle(peer: SsePeer, envelope: Envelope) -> Any:
    left = peer.session.handle(envelope)
    if left is not UNHANDLED:
        return left
    # The handlers of an application are those of its WebSockets.
    text = "there is no message of this type on an event stream"
    peer.deliver(error_message("bad_request", text, id=envelope.id, channel=envelope.channel))
    return None

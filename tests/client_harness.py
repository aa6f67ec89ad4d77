"""A server that says what the test tells it to say, on a real socket, for the tests of the client.

`FakeRealtime` listens; each client that comes is a `Peer`, in the order in which they came. It is a real HTTP server
and a real WebSocket; what is fake is that nobody speaks the protocol but the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from street_fast.http_server import HttpServer
from street_fast.limits import Limits
from street_fast.server import StreetWebSocketServer
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from street_fast._core import WebSocket
    from street_fast.request import Request

PATIENCE_S = 10.0
LIMITS = {"messageBytes": 65_536, "channels": 128, "messagesPerSecond": None, "messagesBurst": 40}
_SERVER_LIMITS = Limits(abort_timeout_s=2, shutdown_timeout_s=5, shutdown_batch_interval_s=0.01, retry_hint_s=0.05)


class Peer:
    """One client's connection, at the server's end."""

    def __init__(self, ws: WebSocket, request: Request) -> None:
        self.ws = ws
        self.request = request
        self.closed: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()
        self._came: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        ws.on_message = lambda text: self._came.put_nowait(json.loads(text))
        ws.on_close = lambda code, reason: self.closed.set_result((code, reason))

    def send(self, kind: str, **fields: Any) -> None:
        if "from_" in fields:
            fields["from"] = fields.pop("from_")
        self.ws.send(json.dumps({"type": kind, **fields}))

    def welcome(self, heartbeat_ms: float = 25_000, limits: dict[str, Any] | None = None, **data: Any) -> None:
        self.send(
            "welcome",
            data={"id": "c1", "heartbeatMs": heartbeat_ms, "limits": {**LIMITS, **(limits or {})}, **data},
        )

    async def receive(self) -> dict[str, Any]:
        """The next message that is not about latency."""
        while True:
            message = await asyncio.wait_for(self._came.get(), PATIENCE_S)
            if message["type"] != "ping":
                return message
            self.reply(message, ts=1)

    async def expect(self, kind: str, **fields: Any) -> dict[str, Any]:
        message = await self.receive()
        assert message["type"] == kind, message
        for name, value in fields.items():
            assert message.get(name) == value, (name, message)
        return message

    async def expect_nothing(self) -> None:
        """Nothing more has come, and nothing is on its way."""
        await asyncio.sleep(0.02)
        rest = [self._came.get_nowait() for _ in range(self._came.qsize())]
        assert [message for message in rest if message["type"] != "ping"] == []

    def reply(self, to: dict[str, Any], **data: Any) -> None:
        self.send("reply", id=to["id"], data=data)

    def refuse(self, to: dict[str, Any], code: str, message: str = "because") -> None:
        self.send("error", id=to["id"], data={"code": code, "message": message})

    def message(self, channel: str, data: Any, position: str | None = None, **fields: Any) -> None:
        self.send("message", **written(channel, data, position, **fields))

    async def subscribe(self, channel: str = "chat", **reply: Any) -> dict[str, Any]:
        """Awaits a subscribe and answers it."""
        message = await self.expect("subscribe", channel=channel)
        self.reply(message, **reply)
        return message


def written(channel: str, data: Any, position: str | None = None, **fields: Any) -> dict[str, Any]:
    """The fields of a message event."""
    fields = {"channel": channel, "data": data, "ts": 1_764_000_000_000, **fields}
    return fields if position is None else {**fields, "position": position}


class FakeRealtime:
    """A server on a port of its own. `welcome=False`: the test does that."""

    def __init__(self, *, welcome: bool = True) -> None:
        self.welcome = welcome
        self.peers: list[Peer] = []
        self._http = HttpServer(limits=_SERVER_LIMITS)
        self._server = StreetWebSocketServer(path="/realtime", limits=_SERVER_LIMITS)
        self._server.attach_protocol(self._http, None, self._came)
        self._connections: asyncio.Queue[Peer] = asyncio.Queue()
        self.port = 0

    def _came(self, ws: WebSocket, request: Request) -> None:
        peer = Peer(ws, request)
        if self.welcome:
            peer.welcome()
        self.peers.append(peer)
        self._connections.put_nowait(peer)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/realtime"

    async def listen(self, port: int | None = None, **options: Any) -> None:
        port = (0 if "uds" in options else free_port()) if port is None else port
        await self._http.listen("127.0.0.1", port, **options)
        self.port = self._http.port or port

    async def connection(self) -> Peer:
        """The next client."""
        return await asyncio.wait_for(self._connections.get(), PATIENCE_S)

    async def close(self, *, politely: bool = False) -> None:
        """`politely`: the clients are told, with 1012 and when to come back."""
        for peer in [] if politely else self.peers:
            peer.ws.abort()
        await asyncio.wait_for(self._server.close(), PATIENCE_S)
        await asyncio.wait_for(self._http.close(), PATIENCE_S)


@contextlib.asynccontextmanager
async def fake_realtime(**options: Any) -> AsyncIterator[FakeRealtime]:
    server = FakeRealtime(**options)
    await server.listen()
    try:
        yield server
    finally:
        await server.close()


async def until(condition: Callable[[], object]) -> None:
    """Waits for something that is about to happen."""
    for _ in range(4_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it did not happen")

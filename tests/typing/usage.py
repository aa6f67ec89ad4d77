"""How applications use the public names, as a type checker sees it. Not run: test_typing.py has mypy read it."""

from __future__ import annotations

from typing import Any, assert_type  # mypy reads it as of Python 3.11

import msgspec

from street_fast import (
    ChannelHub,
    CloseCode,
    Frame,
    History,
    HttpServer,
    JwtAuth,
    Limits,
    Member,
    Operations,
    Realtime,
    Request,
    SseStream,
    StreetSocket,
    StreetWebSocketServer,
    WebSocket,
    broadcast,
    connect,
)
from street_fast.client import Received


class ChatMessage(msgspec.Struct):
    text: str


async def authenticate(request: Request) -> Member | None:
    name = request.query.get("user")
    assert_type(name, str | None)
    return None if name is None else Member(name, roles=["reader"])


server = StreetWebSocketServer(
    path="/ws",
    heartbeat_interval_ms=30_000,
    max_connections=10_000,
    authenticate=authenticate,
    allowed_origins=["https://app.example.com"],
    limits=Limits(message_bytes=1 << 20, messages_per_second=None),
)
hub = ChannelHub(typing_ttl_ms=5_000)


def chat(socket: StreetSocket, request: Request) -> None:
    hub.bind(socket)
    assert_type(hub.join("general", "ada", socket), bool)
    assert_type(hub.presence("general"), list[str])
    assert_type(hub.typing_members("general"), list[str])
    assert_type(socket.id, str)
    assert_type(socket.emit("hello", {"you": "ada"}), bool)

    @socket.on("chat")
    def _(message: ChatMessage) -> None:
        assert_type(message.text, str)
        assert_type(hub.publish("general", "chat", message, except_conn_id=socket.id), int)

    @socket.on("slow")
    async def wait(data: dict[str, int]) -> None:
        await socket.drain()

    socket.off("slow", wait)
    socket.close(CloseCode.NORMAL, "bye")


def bare(ws: WebSocket, request: Request) -> None:
    ws.on_message = ws.send
    ws.on_close = print
    assert_type(ws.bytes_buffered, int)
    assert_type(ws.send(Frame.text("hello")), bool)
    assert_type(broadcast([ws], "hello", skip=ws), int)
    ws.send(1)  # type: ignore[arg-type]


async def main() -> None:
    http = HttpServer()
    server.attach(http, chat)
    server.attach_protocol(http, "binary.example", bare)
    await http.listen("127.0.0.1", 0)
    assert_type(http.port, int)
    Operations(realtime).attach(http)
    assert_type(Operations(realtime).snapshot(), dict[str, Any])
    Operations(http)  # type: ignore[arg-type]
    await http.close()


def authorize(member: Member, channel: str, action: str) -> bool:
    return action == "subscribe" or "editor" in member.roles


realtime = Realtime(
    auth=JwtAuth("a secret of at least thirty-two bytes", audience="chat"),
    authorize=authorize,
    history={"room:*": History(size=50, ttl_s=60), "room:quiet": None},
    api_key=["the key of at least 16 characters"],
)


@realtime.on_connect
def connected(socket: StreetSocket, request: Request) -> None:
    assert_type(request.member, Member | None)


async def publish() -> None:
    receipt = await realtime.publish("room:1", {"text": "hello"}, key="once")
    assert_type(receipt.ts, int)
    realtime.notify("ada", ChatMessage("hello"))
    realtime.notify(1, "hello")  # type: ignore[arg-type]
    assert_type(await realtime.history("room:1", limit=10), list[dict[str, Any]])
    assert_type(realtime.disconnect("ada"), int)


async def listen() -> None:
    async with connect("ws://127.0.0.1:3000/realtime", token=lambda: "a token") as rt:
        async for message in rt.subscribe("room:1", type=ChatMessage):
            assert_type(message, Received[ChatMessage])
            assert_type(message.data.text, str)
        published = await rt.publish("room:1", ChatMessage("hello"))
        assert_type(published.duplicate, bool)
        assert_type(rt.latency_ms, float | None)


def ticker(request: Request) -> SseStream:
    stream = SseStream()
    stream.send({"price": 1.5}, event="price", id="1")
    return stream

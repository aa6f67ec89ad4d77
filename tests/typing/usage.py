"""How applications use the public names, as a type checker sees it. Not run: test_typing.py has mypy read it."""

from __future__ import annotations

from typing import assert_type  # mypy reads it as of Python 3.11

import msgspec

from street_fast import (
    ChannelHub,
    CloseCode,
    Frame,
    HttpServer,
    Limits,
    Member,
    Request,
    StreetSocket,
    StreetWebSocketServer,
    WebSocket,
    broadcast,
)


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
    await http.close()

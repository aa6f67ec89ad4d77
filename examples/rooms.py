"""Rooms: who is there, who is typing, and messages to everybody in the room but the one who wrote.

    python examples/rooms.py
    websockets "ws://127.0.0.1:3000/?user=ada"      # the command of `pip install websockets`, in two terminals
    > {"type": "join", "data": {"room": "general"}}
    > {"type": "typing", "data": {"room": "general", "typing": true}}
    > {"type": "chat", "data": {"room": "general", "text": "hello"}}

The hub counts connections: a member with two tabs joins once, and leaves when the second tab is closed.
"""

from __future__ import annotations

import os

import msgspec

from street_fast import ChannelHub, Member, Request, StreetSocket, StreetWebSocketServer


class Room(msgspec.Struct):
    room: str


class Chat(msgspec.Struct):
    room: str
    text: str


class Typing(msgspec.Struct):
    room: str
    typing: bool


def authenticate(request: Request) -> Member | None:
    """Takes everybody at their word. A real application looks at a cookie or a token; None is answered with 401."""
    user = request.query.get("user", "")
    return Member(user) if user.isprintable() and 0 < len(user) <= 40 else None


server = StreetWebSocketServer(authenticate=authenticate)
hub = ChannelHub(typing_ttl_ms=5_000)


def rooms(socket: StreetSocket, request: Request) -> None:
    assert request.member is not None
    member = request.member.id
    hub.bind(socket)  # leaves every room when the socket closes

    @socket.on("join")
    def join(message: Room) -> None:
        try:
            hub.join(message.room, member, socket)
        except ValueError as error:  # a name that is none, or one room too many
            socket.emit("error", {"code": "bad_request", "message": str(error)})
        else:
            socket.emit("members", {"room": message.room, "members": hub.presence(message.room)})

    @socket.on("leave")
    def leave(message: Room) -> None:
        hub.leave(message.room, member, socket)

    @socket.on("chat")
    def chat(message: Chat) -> None:
        if hub.is_present(message.room, member):
            hub.publish(message.room, "chat", {"from": member, "text": message.text}, except_conn_id=socket.id)

    @socket.on("typing")
    def typing(message: Typing) -> None:
        hub.set_typing(message.room, member, message.typing, socket)


if __name__ == "__main__":
    server.run(rooms, host="127.0.0.1", port=int(os.environ.get("PORT", "3000")))

"""The smallest chat: a set of peers, and every message goes to all of them.

python examples/chat_peers.py
websockets "ws://127.0.0.1:3000/?user=ada"      # the command of `pip install websockets`, in two terminals
> {"type": "chat", "data": {"text": "hello"}}
"""

from __future__ import annotations

import os

import msgspec

from street_fast import Request, StreetSocket, StreetWebSocketServer

server = StreetWebSocketServer()
peers: dict[StreetSocket, str] = {}


class Say(msgspec.Struct):
    text: str


def chat(socket: StreetSocket, request: Request) -> None:
    user = request.query.get("user", "somebody")
    for peer in peers:
        peer.emit("joined", {"user": user})
    peers[socket] = user
    socket.emit("welcome", {"users": sorted(peers.values())})

    @socket.on("chat")
    def say(message: Say) -> None:
        server.broadcast("chat", {"from": user, "text": message.text})

    @socket.on("close")
    def left(code: int, reason: str) -> None:
        del peers[socket]
        for peer in peers:
            peer.emit("left", {"user": user})


if __name__ == "__main__":
    server.run(chat, host="127.0.0.1", port=int(os.environ.get("PORT", "3000")))

"""A FastAPI application that stays as it is, and gets street_fast on the same port for its chat.

pip install "street_fast[uvicorn]" fastapi
python examples/fastapi_chat.py

http://127.0.0.1:3000/members         FastAPI, which asks the hub
POST /announce {"text": "..."}        FastAPI, which publishes to the sockets
ws://127.0.0.1:3000/echo              FastAPI's own WebSocket route
ws://127.0.0.1:3000/chat?user=ada     street_fast
"""

from __future__ import annotations

import os
from typing import Any

import msgspec
import uvicorn
from fastapi import FastAPI, WebSocket
from pydantic import BaseModel

from street_fast import ChannelHub, Request, StreetSocket, StreetWebSocketServer

app = FastAPI()
server = StreetWebSocketServer(path="/chat")
hub = ChannelHub()


class Announcement(BaseModel):
    text: str


@app.get("/members")
async def members() -> dict[str, Any]:
    return {"members": hub.presence("general")}


@app.post("/announce")
async def announce(announcement: Announcement) -> dict[str, int]:
    hub.publish("general", "announcement", {"text": announcement.text})
    return {"connections": hub.connection_count("general")}


@app.websocket("/echo")
async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


class Say(msgspec.Struct):
    text: str


def chat(socket: StreetSocket, request: Request) -> None:
    user = request.query.get("user", "")
    member = user if user.isprintable() and 0 < len(user) <= 40 else "somebody"
    hub.join("general", member, socket)  # leaves when the socket closes

    @socket.on("chat")
    def say(message: Say) -> None:
        hub.publish("general", "chat", {"from": member, "text": message.text})


if __name__ == "__main__":
    config = uvicorn.Config(app, host="127.0.0.1", port=int(os.environ.get("PORT", "3000")))
    server.attach(config, chat)
    uvicorn.Server(config).run()

"""python-socketio on aiohttp, as its documentation serves many clients: asyncio, and nothing but WebSocket.

uvloop; handlers run in the order of the messages and without a task for each (``async_handlers=False``); no logging.
Everybody joins one room; what a client says goes to a room by one emit. Prints ``ready PORT``.
"""

from __future__ import annotations

import asyncio

import socketio
import uvloop
from aiohttp import web

server = socketio.AsyncServer(
    async_mode="aiohttp", transports=["websocket"], async_handlers=False, logger=False, engineio_logger=False
)


@server.event
async def join(sid: str, room: str) -> str:
    await server.enter_room(sid, room)
    return room


@server.event
async def say(sid: str, room: str, text: str) -> None:
    await server.emit("say", text, room=room)


async def main() -> None:
    app = web.Application()
    server.attach(app)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print("ready", runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())

"""aiohttp, with its C extensions and as little around a message as its API allows.

uvloop; text left as bytes (``decode_text=False``, ``send_frame``); compression off; no access log.
Prints ``ready PORT``.
"""

from __future__ import annotations

import asyncio
from typing import cast

import uvloop
from aiohttp import WSMsgType, web

members: dict[web.WebSocketResponse, None] = {}


async def echo(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(compress=False, decode_text=False)
    await socket.prepare(request)
    async for message in socket:
        await socket.send_frame(cast("bytes", message.data), WSMsgType.TEXT)
    return socket


async def member(request: web.Request) -> web.WebSocketResponse:
    socket = web.WebSocketResponse(compress=False, decode_text=False)
    await socket.prepare(request)
    members[socket] = None
    try:
        async for message in socket:
            payload = cast("bytes", message.data)
            for recipient in list(members):
                await recipient.send_frame(payload, WSMsgType.TEXT)
    finally:
        del members[socket]
    return socket


async def main() -> None:
    app = web.Application()
    app.router.add_get("/echo", echo)
    app.router.add_get("/fanout", member)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    print("ready", runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())

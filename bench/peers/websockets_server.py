"""websockets, with what its performance page advises.

uvloop; ``broadcast()`` for many recipients; payloads left as bytes (``decode=False``, ``text=True``); compression
off. Prints ``ready PORT``.
"""

from __future__ import annotations

import contextlib

import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

members: dict[ServerConnection, None] = {}


async def echo(connection: ServerConnection) -> None:
    while True:
        await connection.send(await connection.recv(decode=False), text=True)


async def member(connection: ServerConnection) -> None:
    members[connection] = None
    try:
        while True:
            broadcast(members, await connection.recv(decode=False), text=True)
    finally:
        del members[connection]


async def handler(connection: ServerConnection) -> None:
    assert connection.request is not None
    with contextlib.suppress(ConnectionClosed):
        await (echo if connection.request.path == "/echo" else member)(connection)


async def main() -> None:
    async with serve(handler, "127.0.0.1", 0, compression=None, backlog=1024) as server:
        print("ready", next(iter(server.sockets)).getsockname()[1], flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())

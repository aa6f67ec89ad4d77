"""street_fast, StreetSockets: typed JSON events, decoded on the way in and encoded on the way out.

``/idle`` registers two handlers on every socket, closures as in the tutorial. Prints ``ready PORT``.
"""

from __future__ import annotations

from typing import Any

import uvloop

from street_fast import HttpServer, Limits, Request, StreetSocket, StreetWebSocketServer

UNLIMITED = Limits(messages_per_second=None, bytes_per_second=None)
MAX_CONNECTIONS = 20_000


def echo(socket: StreetSocket, _: Request) -> None:
    socket.on("say", lambda data: socket.emit("say", data))


def idle(socket: StreetSocket, _: Request) -> None:
    @socket.on("say")
    def _say(data: Any) -> None:
        socket.emit("say", data)

    @socket.on("typing")
    def _typing(data: Any) -> None:
        socket.emit("typing", data)


async def main() -> None:
    http = HttpServer(limits=UNLIMITED)
    room = StreetWebSocketServer(path="/fanout", max_connections=MAX_CONNECTIONS, limits=UNLIMITED)

    def member(socket: StreetSocket, _: Request) -> None:
        socket.on("say", lambda data: room.broadcast("say", data))

    room.attach(http, member)
    for path, handler in (("/echo", echo), ("/idle", idle)):
        StreetWebSocketServer(path=path, max_connections=MAX_CONNECTIONS, limits=UNLIMITED).attach(http, handler)
    await http.listen("127.0.0.1", 0)
    print("ready", http.port, flush=True)
    await http.wait_closed()


if __name__ == "__main__":
    uvloop.run(main())

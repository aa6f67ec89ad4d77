"""street_fast, ChannelHub: StreetSockets that are all in one channel, a message of one published to it.

All connections belong to one member, so that opening them is not also a presence storm. Prints ``ready PORT``.
"""

from __future__ import annotations

import uvloop

from street_fast import ChannelHub, HttpServer, Limits, Request, StreetSocket, StreetWebSocketServer

UNLIMITED = Limits(messages_per_second=None, bytes_per_second=None)
MAX_CONNECTIONS = 20_000
hub = ChannelHub(limits=UNLIMITED)


def echo(socket: StreetSocket, _: Request) -> None:
    socket.on("say", lambda data: socket.emit("say", data))


def member(socket: StreetSocket, _: Request) -> None:
    hub.bind(socket)
    hub.join("room", "bench", socket)
    socket.on("say", lambda data: hub.publish("room", "say", data))


async def main() -> None:
    http = HttpServer(limits=UNLIMITED)
    for path, handler in (("/echo", echo), ("/fanout", member)):
        StreetWebSocketServer(path=path, max_connections=MAX_CONNECTIONS, limits=UNLIMITED).attach(http, handler)
    await http.listen("127.0.0.1", 0)
    print("ready", http.port, flush=True)
    await http.wait_closed()


if __name__ == "__main__":
    uvloop.run(main())

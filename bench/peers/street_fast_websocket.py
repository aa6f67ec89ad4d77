"""street_fast, bare WebSockets: an application that owns its framing. With STREET_FAST_PURE=1, the pure twin.

Prints ``ready PORT``.
"""

from __future__ import annotations

import uvloop

from street_fast import HttpServer, Limits, Request, StreetWebSocketServer, WebSocket, broadcast

UNLIMITED = Limits(messages_per_second=None, bytes_per_second=None)
MAX_CONNECTIONS = 20_000
members: dict[WebSocket, None] = {}


def echo(ws: WebSocket, _: Request) -> None:
    ws.on_message = ws.send


def member(ws: WebSocket, _: Request) -> None:
    members[ws] = None
    ws.on_message = lambda data: broadcast(members, data)
    ws.on_close = lambda _code, _reason: members.pop(ws, None)


async def main() -> None:
    http = HttpServer(limits=UNLIMITED)
    for path, handler in (("/echo", echo), ("/fanout", member)):
        server = StreetWebSocketServer(path=path, max_connections=MAX_CONNECTIONS, limits=UNLIMITED)
        server.attach_protocol(http, None, handler)
    await http.listen("127.0.0.1", 0)
    print("ready", http.port, flush=True)
    await http.wait_closed()


if __name__ == "__main__":
    uvloop.run(main())

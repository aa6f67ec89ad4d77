"""picows, by its core API, as its documentation says it is fastest.

Listeners without tasks; a broadcast reuses one bytearray with room for the header
(``send_reuse_external_bytearray``: no copy per recipient); the echo sends a memoryview of the frame. aiofastnet,
which picows prefers over the loop's own transports, is left on. Prints ``ready PORT``.
"""

from __future__ import annotations

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

HEADER_ROOM = 14  # what send_reuse_external_bytearray wants in front of a payload


members: dict[WSTransport, None] = {}


class Member(WSListener):
    def on_ws_connected(self, transport: WSTransport) -> None:
        members[transport] = None

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        members.pop(transport, None)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
            return
        kind = frame.msg_type
        buffer = bytearray(HEADER_ROOM)
        buffer += frame.get_payload_as_memoryview()
        for member in members:
            member.send_reuse_external_bytearray(kind, buffer, HEADER_ROOM)


class Echo(WSListener):
    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()
        else:
            transport.send(frame.msg_type, frame.get_payload_as_memoryview())


def route(request: WSUpgradeRequest) -> WSListener:
    return Echo() if request.path == b"/echo" else Member()


async def main() -> None:
    server = await ws_create_server(route, "127.0.0.1", 0, backlog=1024)
    print("ready", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main())

"""Proves an installed street_fast: a real server echoes a message, and the extensions are the compiled ones.

Needs nothing but the installed package. The client is a few lines of RFC 6455 on a plain socket, so that it cannot
share a mistake with the server. Run it as ``python -I tools/smoke.py``: with -I the checkout is not importable.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from importlib import resources
from pathlib import Path

import street_fast
from street_fast import HttpServer, Request, StreetSocket, StreetWebSocketServer, _core

TEXT = 0x81  # FIN and opcode 1


def echo(socket: StreetSocket, request: Request) -> None:
    socket.on("echo", lambda data: socket.emit("echo", data))


async def ask(port: int, message: dict[str, object]) -> dict[str, object]:
    """Opens a WebSocket, sends one masked text frame, returns the first envelope that comes back."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + base64.b64encode(os.urandom(16)) + b"\r\n\r\n"
    )
    status = await reader.readline()
    if status != b"HTTP/1.1 101 Switching Protocols\r\n":
        sys.exit(f"smoke.py: the upgrade was answered with {status!r}")
    while await reader.readline() != b"\r\n":
        pass
    payload, mask = json.dumps(message).encode(), os.urandom(4)
    masked = bytes(byte ^ mask[i & 3] for i, byte in enumerate(payload))
    writer.write(bytes([TEXT, 0x80 | len(payload)]) + mask + masked)
    first, length = await reader.readexactly(2)
    if first != TEXT or length > 125:
        sys.exit(f"smoke.py: no short text frame came back: {first:#x} {length}")
    answer: dict[str, object] = json.loads(await reader.readexactly(length))
    writer.close()
    return answer


async def main() -> None:
    http, server = HttpServer(), StreetWebSocketServer(path="/ws")
    server.attach(http, echo)
    await http.listen("127.0.0.1", 0)
    try:
        answer = await asyncio.wait_for(ask(http.port, {"type": "echo", "data": {"text": "hello"}}), 10)
    finally:
        await server.close()
        await http.close()
    if (answer.get("type"), answer.get("data")) != ("echo", {"text": "hello"}):
        sys.exit(f"smoke.py: not the echo: {answer}")
    if not _core.COMPILED:
        sys.exit("smoke.py: the extensions are missing: street_fast._core.COMPILED is False")
    for name in ("py.typed", "_frames.pyi", "demo/index.html"):
        if not resources.files(street_fast).joinpath(name).is_file():
            sys.exit(f"smoke.py: {name} is missing from {Path(street_fast.__file__).parent}")
    python = sys.version.split()[0]
    print(f"smoke.py: street_fast {street_fast.__version__}, compiled, echoed a message on Python {python}")


asyncio.run(main())

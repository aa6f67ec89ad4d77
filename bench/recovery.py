"""recovery: ten thousand clients of a Realtime with history lose their connections and come back at once.

    python bench/recovery.py --port PORT --server-pid PID [--connections N] [--missed N] [--live N] [--in-flight N]

All are in one channel. While they are away `missed` messages are published; while they come back `live` more, each time
another part of them is there. A client subscribes with the position that it had, and must get all of these messages, in
order, each once. Prints one JSON object: `server_us` is the CPU time of the server's process for one client, from the
first connection to the last message, `load_us` that of this program. `lost` and `twice` count messages, `unordered` and
`unrecovered` clients; `wrong` is their sum.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import socket
import struct
import time
from typing import Any

import msgspec
import uvloop

from street_fast._core import LoopContext, WebSocket

CHANNEL = "recovery"
DATA = "x" * 128
REQUEST = (
    b"GET /realtime HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
STALL_S = 60
LATE_S = 0.5  # what comes twice may come late


class Event(msgspec.Struct):
    type: str
    data: msgspec.Raw = msgspec.Raw(b"null")
    position: str = ""


class Subscribed(msgspec.Struct):
    position: str
    recovered: bool = False
    messages: list[Event] = []


decode_event = msgspec.json.Decoder(Event).decode
decode_subscribed = msgspec.json.Decoder(Subscribed).decode


class Client(asyncio.Protocol):
    """One client, over one connection after the other. `offsets` are those of the messages that it got."""

    def __init__(self, number: int, port: int) -> None:
        self.number = number
        self.port = port
        self.position: str | None = None
        self.recovered = False
        self.offsets: list[int] = []
        self.answered: asyncio.Future[None]

    async def connect(self) -> None:
        """Connects and subscribes; returns when the server has said that it is subscribed."""
        loop = asyncio.get_running_loop()
        self.answered = loop.create_future()
        self.head = b""
        connection = socket.socket()
        connection.setblocking(False)
        # The connection is lost, not closed; and its port is free again for the next run.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        connection.bind((f"127.0.0.{1 + self.number % 16}", 0))
        await loop.sock_connect(connection, ("127.0.0.1", self.port))
        await loop.create_connection(lambda: self, sock=connection)
        await asyncio.wait_for(self.answered, STALL_S)

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.write(REQUEST)

    def data_received(self, data: bytes) -> None:
        self.head += data
        if b"\r\n\r\n" not in self.head:
            return
        if not self.head.startswith(b"HTTP/1.1 101"):
            self.answered.set_exception(ConnectionError(f"refused: {self.head[:200]!r}"))
            return
        self.ws = WebSocket(LoopContext.of(), client=True)
        self.ws.text_as_bytes = True
        self.ws.on_message = self.on_message
        self.ws.on_close = self.on_close
        self.ws.start(self.transport, tail=self.head.partition(b"\r\n\r\n")[2])
        self.introduce()

    def introduce(self) -> None:
        since = "" if self.position is None else f',"since":"{self.position}"'
        self.ws.send(f'{{"type":"subscribe","channel":"{CHANNEL}","id":1{since}}}')

    def on_message(self, text: bytes) -> None:
        event = decode_event(text)
        if event.type == "message":
            self.take(event)
        elif event.type == "reply":
            reply = decode_subscribed(event.data)
            self.position = self.position or reply.position
            self.recovered = reply.recovered
            for message in reply.messages:
                self.take(message)
            self.answered.set_result(None)
        elif event.type == "ping":
            self.ws.send('{"type":"pong"}')

    def take(self, message: Event) -> None:
        self.offsets.append(offset_of(message.position))

    def on_close(self, code: int, reason: str) -> None:
        if not self.answered.done():
            self.answered.set_exception(ConnectionError(f"closed: {code} {reason}"))

    def lose(self) -> None:
        self.ws.abort()


class Publisher(Client):
    """Publishes one message after the other, and is in no channel."""

    def __init__(self, number: int, port: int) -> None:
        super().__init__(number, port)
        self.turn = asyncio.Lock()

    def introduce(self) -> None:
        self.answered.set_result(None)

    def on_message(self, text: bytes) -> None:
        if decode_event(text).type == "reply":
            self.answered.set_result(None)

    async def publish(self) -> None:
        async with self.turn:
            self.answered = asyncio.get_running_loop().create_future()
            self.ws.send(f'{{"type":"publish","channel":"{CHANNEL}","id":1,"data":"{DATA}"}}')
            await asyncio.wait_for(self.answered, STALL_S)


def offset_of(position: str) -> int:
    return int(position.split(":")[1])


def cpu_s(pid: int) -> float:
    """CPU time of a process so far; the same clock as clock_getcpuclockid(3) gives."""
    return time.clock_gettime(~pid << 3 | 2)


async def connect_all(clients: list[Client], in_flight: int, publisher: Publisher, live: int) -> None:
    """Connects all clients, some at once; publishes `live` messages meanwhile, evenly among them."""
    turns = asyncio.Semaphore(in_flight)
    due = [(2 * part + 1) * len(clients) // (2 * live) for part in range(live)]
    publishing = []
    connected = 0

    async def connect(client: Client) -> None:
        nonlocal connected
        async with turns:
            await client.connect()
        connected += 1
        if connected in due:
            publishing.append(asyncio.ensure_future(publisher.publish()))

    await asyncio.gather(*map(connect, clients))
    await asyncio.gather(*publishing)


async def run(args: argparse.Namespace) -> dict[str, float]:
    clients = [Client(number, args.port) for number in range(args.connections)]
    publisher = Publisher(args.connections, args.port)
    await publisher.connect()
    await connect_all(clients, args.in_flight, publisher, 0)
    assert clients[0].position is not None
    first = offset_of(clients[0].position) + 1
    expected = list(range(first, first + args.missed + args.live))
    for client in clients:
        client.lose()
    for _ in range(args.missed):
        await publisher.publish()
    await asyncio.sleep(1)

    server, own, began = cpu_s(args.server_pid), time.process_time(), time.monotonic()
    await connect_all(clients, args.in_flight, publisher, args.live)
    while any(len(c.offsets) < len(expected) for c in clients) and time.monotonic() - began < STALL_S:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    took = time.monotonic() - began
    server, own = cpu_s(args.server_pid) - server, time.process_time() - own
    await asyncio.sleep(LATE_S)

    wrong = {
        "lost": sum(len(set(expected) - set(client.offsets)) for client in clients),
        "twice": sum(len(client.offsets) - len(set(client.offsets)) for client in clients),
        "unordered": sum(client.offsets != sorted(client.offsets) for client in clients),
        "unrecovered": sum(not client.recovered for client in clients),
    }
    return {
        "clients": len(clients),
        "messages": sum(len(client.offsets) for client in clients),
        "server_us": round(server * 1e6 / len(clients), 2),
        "load_us": round(own * 1e6 / len(clients), 2),
        "seconds": round(took, 3),
        "wrong": sum(wrong.values()),
        **wrong,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Clients of a Realtime who all come back at once; see the docstring.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--server-pid", type=int, required=True)
    parser.add_argument("--connections", type=int, default=10_000)
    parser.add_argument("--missed", type=int, default=20, help="messages that are published while they are away")
    parser.add_argument("--live", type=int, default=5, help="messages that are published while they come back")
    parser.add_argument("--in-flight", type=int, default=500, help="handshakes at a time")
    args = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(json.dumps(uvloop.run(run(args))))


if __name__ == "__main__":
    main()

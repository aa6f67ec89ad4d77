"""The conversations of docs/protocol.md, played against a Realtime: it answers as the document says.

What differs from run to run is bound at its first appearance: a time, an id, the epoch and the tag of a position. Where
the document shows the same one again, it must be the same again. Offsets are as they stand there. Events of a type and
channel that a conversation does not show are not looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import jwt

from street_fast import History, JwtAuth, Realtime
from street_fast.sse_peer import SsePeer
from street_fast.testing import MemoryClient, memory_client
from tests.conformance.test_protocol_document import Line, conversations, section

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SECRET = "the secret of the examples, 32 bytes long"
API_KEY = "the key of the examples"
NAMES = {"ada": "Ada"}  # who tells the others a name


def token_of(member: str) -> str:
    claims: dict[str, Any] = {"sub": member}
    if member in NAMES:
        claims["info"] = {"name": NAMES[member]}
    if member == "carl":
        claims["exp"] = int(time.time()) + 3_600
    return jwt.encode(claims, SECRET, "HS256")


class Play:
    """The clients of one Realtime, by name, and what the names of the document stand for in this run."""

    def __init__(self, realtime: Realtime, stack: contextlib.AsyncExitStack) -> None:
        self.realtime = realtime
        self.stack = stack
        self.clients: dict[str, MemoryClient] = {}
        self.bound: dict[tuple[str, object], object] = {}

    async def client(self, name: str) -> MemoryClient:
        if name not in self.clients:
            token = "" if name == "carl" else f"?token={token_of(name)}"  # carl logs in with a message
            client = memory_client(self.realtime.server, f"/realtime{token}")
            self.clients[name] = await self.stack.enter_async_context(client)
        return self.clients[name]

    async def play(self, conversation: list[Line]) -> None:
        received = [(line.who, json.loads(line.text)) for line in conversation if line.direction == "<"]
        shown = {(who, event["type"], event.get("channel")) for who, event in received}
        for line in conversation:
            if not line.who:
                await self.direct(line.text)
                continue
            client = await self.client(line.who)
            message = json.loads(line.text)
            if line.direction == ">":
                client.ws.send(json.dumps(self.in_this_run(message)))
                continue
            event = await self.next_of(client, line, shown)
            self.compare(message, event, f"line {line.number}")
        for name, client in self.clients.items():
            left = [event for event in await client.settle() if (name, event["type"], event.get("channel")) in shown]
            assert left == [], (
                f"{name} got more than the conversation that ends on line {conversation[-1].number} shows"
            )

    async def next_of(self, client: MemoryClient, line: Line, shown: set[tuple[str, str, str | None]]) -> Any:
        passed_over = []
        while True:
            try:
                event = await client.receive()
            except TimeoutError:
                raise AssertionError(f"line {line.number} does not come, only {passed_over}") from None
            if event["type"] == "error" or (line.who, event["type"], event.get("channel")) in shown:
                return event
            passed_over.append(event)

    async def direct(self, direction: str) -> None:
        name, _, what = direction.partition(" ")
        if what == "connects again":
            await self.client(name)
        elif what == "connection breaks":
            client = self.clients.pop(name.removesuffix("'s"))
            client.ws.abort()
            await client.ws.wait_closed()
        elif direction == "a moment later":
            while self.realtime.hub._presence_timer is not None:  # noqa: ASYNC110 - a bound of its own is not needed
                await asyncio.sleep(0.01)
        else:
            assert direction.startswith("the application: "), direction
            eval(direction.removeprefix("the application: "), {"realtime": self.realtime})

    def in_this_run(self, value: Any, key: str = "") -> Any:
        """`value` of the document with the positions and tokens of this run."""
        if isinstance(value, dict):
            return {key: self.in_this_run(field, key) for key, field in value.items()}
        if key == "since":
            epoch, offset, tag = value.split(":")
            return f"{self.bound['epoch', epoch]}:{offset}:{self.bound.get(('tag', tag), tag)}"
        if key == "token":
            return token_of(value.rpartition(".")[2])
        return value

    def compare(self, shown: Any, got: Any, where: str, key: str = "") -> None:
        if isinstance(shown, dict):
            assert isinstance(got, dict), where
            assert got.keys() == shown.keys(), f"{where}: {shown} in the document, {got} in fact"
            for key, field in shown.items():
                self.compare(field, got[key], f"{where}, {key}", key)
        elif isinstance(shown, list):
            assert len(got) == len(shown), f"{where}: {shown} in the document, {got} in fact"
            for number, (one, other) in enumerate(zip(shown, got, strict=True)):
                self.compare(one, other, f"{where}[{number}]")
        elif key == "position":
            parts = list(zip(("epoch", "offset", "tag"), shown.split(":"), got.split(":"), strict=True))
            for kind, one, other in parts:
                self.compare_bound(kind, one, other, where) if kind != "offset" else self.compare(one, other, where)
        elif key in ("ts", "expiresAt"):
            assert abs(got / 1_000 - time.time()) < 7_200, where
            self.compare_bound(key, shown, got, where)
        elif key == "message":
            assert isinstance(got, str), where
        elif key == "id" and where.endswith(", data, id"):
            self.compare_bound(key, shown, got, where)
        else:
            assert got == shown, where

    def compare_bound(self, kind: str, shown: object, got: object, where: str) -> None:
        assert type(got) is type(shown), where
        assert self.bound.setdefault((kind, shown), got) == got, f"{where}: {shown} stood for another before"


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[Play]:
    realtime = Realtime(
        auth=JwtAuth(SECRET, require_expiry=False), guests=False, history={"room:*": History()}, api_key=API_KEY
    )
    await realtime.serve(port=0)
    try:
        async with contextlib.AsyncExitStack() as stack:
            yield Play(realtime, stack)
    finally:
        await realtime.close()


async def test_the_conversations():
    async with running() as play:
        for conversation in conversations():
            await play.play(conversation)


class Exchange(NamedTuple):
    """A request of the document on its way: `head` is that of the answer."""

    head: str
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    async def body(self) -> bytes:
        length = re.search(r"content-length: (\d+)", self.head, re.IGNORECASE)
        body = await self.reader.readexactly(int(length[1]) if length else 0)
        self.writer.close()
        return body


async def ask(port: int, text: str) -> Exchange:
    """Send a request as it stands in the document, with the token and the key of this run."""
    head, _, body = text.replace("TOKEN", token_of("ada")).replace("KEY", API_KEY).partition("\n\n")
    if body:
        head += f"\nContent-Length: {len(body.encode())}"
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n" + body.encode())
    return Exchange((await reader.readuntil(b"\r\n\r\n")).decode(), reader, writer)


def texts(heading: str) -> list[str]:
    """The blocks of a section of the document."""
    return [block[1] for block in re.finditer(r"^```\w*\n(.*?)^```$", section(heading), re.MULTILINE | re.DOTALL)]


async def test_the_event_stream():
    get, answer, post = texts("Server-Sent Events")
    head, _, events = answer.partition("\n\n")
    async with running() as play:
        stream = await ask(play.realtime.port, get)
        for line in head.splitlines():
            assert line.lower() in stream.head.lower()
        for event in events.strip().split("\n\n"):
            shown = dict(line.split(": ", 1) for line in event.splitlines())
            message = json.loads(shown["data"])
            if shown.get("") == "ping":
                assert f"{event}\n\n".encode() == SsePeer.heartbeat
                continue
            if message["type"] == "message":
                connection = re.search(r"connection=(\w+)", post)[1]
                sent = await ask(play.realtime.port, post.replace(connection, play.bound["id", connection]))
                assert (sent.status, await sent.body()) == (204, b"")
            text = await asyncio.wait_for(stream.reader.readuntil(b"\n\n"), 20)
            got = dict(line.split(": ", 1) for line in text.decode().strip().splitlines())
            assert got.keys() == shown.keys()
            play.compare(message, json.loads(got["data"]), message["type"])
            if "id" in shown:
                play.compare(shown["id"], got["id"], message["type"], "position")
        stream.writer.close()


async def test_the_api_for_other_programs():
    blocks = texts("HTTP")
    assert len(blocks) == 12
    async with running() as play:
        ada = await play.client("ada")
        ada.ws.send('{"type":"subscribe","channel":"room:5","id":1}')
        await ada.expect("welcome")
        await ada.expect("reply")
        for request, answer in zip(blocks[::2], blocks[1::2], strict=True):
            exchange = await ask(play.realtime.port, request)
            assert exchange.status == 200
            play.compare(json.loads(answer), json.loads(await exchange.body()), request.splitlines()[0])
        await ada.ws.wait_closed()
        events = [event for event in await ada.settle() if event["type"] != "presence"]
        assert [event["type"] for event in events] == ["message", "message", "unsubscribed"]
        assert events[-1]["data"] == {"code": "forbidden", "message": "you were rude"}
        assert (ada.ws.close_code, ada.ws.close_reason) == (1008, "your account is closed")

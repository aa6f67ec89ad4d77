"""Each file of examples/ as a process of its own, with real clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Client:
    """A `websockets` connection that speaks events."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, kind: str, **data: object) -> None:
        await self.connection.send(json.dumps({"type": kind, "data": data}))

    async def receive(self) -> dict[str, Any]:
        """The next event, without its time stamp."""
        event = json.loads(await asyncio.wait_for(self.connection.recv(), 10))
        event.pop("ts", None)
        return event

    async def nothing_more(self) -> None:
        """That nothing came before what is sent from now on: the server answers this event, which it cannot read."""
        await self.connection.send(json.dumps({"type": 1}))
        assert (await self.receive())["type"] == "error"


@pytest.fixture
async def example(request, start):
    """The example that the test names in its parameter, running."""
    return await start(f"examples/{request.param}")


def running(name: str):
    return pytest.mark.parametrize("example", [name], indirect=True)


@contextlib.asynccontextmanager
async def client(example, path: str = "/") -> AsyncIterator[Client]:
    async with connect(f"ws://127.0.0.1:{example.port}{path}") as connection:
        yield Client(connection)


@running("chat_peers.py")
async def test_chat_peers(example):
    async with client(example, "/?user=ada") as ada:
        assert await ada.receive() == {"type": "welcome", "data": {"users": ["ada"]}}
        async with client(example, "/?user=ben") as ben:
            assert await ben.receive() == {"type": "welcome", "data": {"users": ["ada", "ben"]}}
            assert await ada.receive() == {"type": "joined", "data": {"user": "ben"}}
            await ada.send("chat", text="hello")
            for each in (ada, ben):
                assert await each.receive() == {"type": "chat", "data": {"from": "ada", "text": "hello"}}
            await ben.send("chat", text=7)
            assert (await ben.receive())["data"]["code"] == "bad_request"
        assert await ada.receive() == {"type": "left", "data": {"user": "ben"}}


@running("rooms.py")
async def test_rooms(example):
    for nobody in ("/", "/?user=a%00b", f"/?user={41 * 'x'}"):
        with pytest.raises(InvalidStatus, match="401"):
            async with client(example, nobody):
                pass
    async with client(example, "/?user=eve") as eve:
        await eve.send("join", room="a\nb")
        assert (await eve.receive())["data"]["code"] == "bad_request"
    async with client(example, "/?user=ada") as ada, client(example, "/?user=ben") as ben:
        await ada.send("join", room="general")
        assert await ada.receive() == {"type": "members", "data": {"room": "general", "members": ["ada"]}}
        await ben.send("chat", room="general", text="not in the room")
        await ben.send("join", room="general")
        assert await ben.receive() == {"type": "members", "data": {"room": "general", "members": ["ada", "ben"]}}
        assert await ada.receive() == {"type": "presence:join", "channel": "general", "data": {"memberId": "ben"}}

        await ben.send("typing", room="general", typing=True)
        typing = {"type": "typing", "channel": "general", "data": {"memberId": "ben", "typing": True}}
        assert await ada.receive() == typing
        await ben.send("chat", room="general", text="hello")
        message = {"type": "chat", "channel": "general", "data": {"from": "ben", "text": "hello"}}
        assert await ada.receive() == message
        await ben.nothing_more()

        async with client(example, "/?user=ben") as second_tab:
            await second_tab.send("join", room="general")
            await second_tab.receive()
        await ada.nothing_more()

        await ben.send("leave", room="general")
        assert await ada.receive() == typing | {"data": {"memberId": "ben", "typing": False}}
        assert await ada.receive() == {"type": "presence:leave", "channel": "general", "data": {"memberId": "ben"}}


async def http(example, path: str, body: object = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{example.url}{path}", data, {"Content-Type": "application/json"})

    def fetch() -> Any:
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    return await asyncio.to_thread(fetch)


@running("fastapi_chat.py")
async def test_fastapi_chat(example):
    assert await http(example, "members") == {"members": []}
    async with connect(f"ws://127.0.0.1:{example.port}/echo") as own:
        await own.send("FastAPI's own route")
        assert await own.recv() == "FastAPI's own route"
    async with client(example, "/chat?user=ada") as ada:
        async with client(example, "/chat?user=ben") as ben:
            assert (await ada.receive())["type"] == "presence:join"
            assert await http(example, "members") == {"members": ["ada", "ben"]}
            await ben.send("chat", text="hello")
            message = {"type": "chat", "channel": "general", "data": {"from": "ben", "text": "hello"}}
            for each in (ada, ben):
                assert await each.receive() == message
            assert await http(example, "announce", {"text": "lunch"}) == {"connections": 2}
            for each in (ada, ben):
                assert (await each.receive())["type"] == "announcement"
        assert (await ada.receive())["type"] == "presence:leave"
    assert "Uvicorn running" in example.output


@running("sse_ticker.py")
async def test_sse_ticker(example):
    reader, writer = await asyncio.open_connection("127.0.0.1", example.port)
    writer.write(b"GET /ticks HTTP/1.1\r\nHost: localhost\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
    assert b"content-type: text/event-stream" in head.lower()
    event = await asyncio.wait_for(reader.readuntil(b"\n\n"), 10)
    assert re.search(rb'event: tick\nid: \d+\ndata: \{"price":[\d.]+\}\n\n$', event)
    writer.close()


def test_every_example_is_run_here():
    tests = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'running("{path.name}")' not in tests] == []

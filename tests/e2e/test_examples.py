"""Each file of examples/ as a process of its own, with real clients."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError

import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import InvalidStatus

from street_fast import connect as connect_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


class Client:
    """A `websockets` connection that speaks events."""

    def __init__(self, connection: ClientConnection) -> None:
        self.connection = connection

    async def send(self, kind: str, **data: object) -> None:
        await self.connection.send(json.dumps({"type": kind, "data": data}))

    async def ask(self, kind: str, **fields: object) -> None:
        """A message of Realtime, with an id."""
        await self.connection.send(json.dumps({"type": kind, "id": 1, **fields}))

    async def receive(self) -> dict[str, Any]:
        """The next event, without its time stamp."""
        event = json.loads(await asyncio.wait_for(self.connection.recv(), 20))
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


async def post(example, path: str, body: bytes) -> str:
    def fetch() -> str:
        with urllib.request.urlopen(f"{example.url}{path}", body, timeout=10) as response:
            return response.read().decode()

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
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    assert b"content-type: text/event-stream" in head.lower()
    event = await asyncio.wait_for(reader.readuntil(b"\n\n"), 20)
    assert re.search(rb'event: tick\nid: \d+\ndata: \{"price":[\d.]+\}\n\n$', event)
    writer.close()


@running("notifications.py")
async def test_notifications(example):
    assert await http(example, "orders/ada", {}) == {"order": 1}  # she is not there yet
    tokens = {name: await post(example, "login", name.encode()) for name in ("ada", "ben")}
    with pytest.raises(HTTPError, match="400"):
        await post(example, "login", b"a\nb")
    async with client(example, "/realtime") as nobody:
        assert (await nobody.receive())["type"] == "welcome"
        await nobody.ask("subscribe", channel="user:ada")
        assert (await nobody.receive())["data"]["code"] == "unauthorized"
    async with client(example, f"/realtime?token={tokens['ben']}") as ben:
        assert (await ben.receive())["type"] == "welcome"
        for kind in ("subscribe", "history", "publish"):
            await ben.ask(kind, channel="user:ada", data={})
            assert (await ben.receive())["data"]["code"] == "forbidden"
    async with client(example, f"/realtime?token={tokens['ada']}") as ada:
        assert (await ada.receive())["data"]["member"] == {"id": "ada"}
        await ada.ask("subscribe", channel="user:ada")
        assert (await ada.receive())["type"] == "reply"
        await ada.ask("history", channel="user:ada")
        assert [message["data"]["order"] for message in (await ada.receive())["data"]["messages"]] == [1]
        assert await http(example, "orders/ada", {}) == {"order": 2}
        assert (await ada.receive())["data"] == {"order": 2, "text": "your order has left"}
    with pytest.raises(HTTPError, match="401"):
        await http(example, "realtime/publish", {"user": "ada", "data": 1})


async def test_bot(start):
    server = await start("examples/react_chat/app.py")
    url = f"ws://127.0.0.1:{server.port}/realtime"
    environment = os.environ | {"PYTHONPATH": str(EXAMPLES.parent), "PYTHONUNBUFFERED": "1"}
    bot = await asyncio.create_subprocess_exec(
        sys.executable, EXAMPLES / "bot.py", url, "room:1", env=environment, stdout=subprocess.PIPE
    )
    try:
        assert await asyncio.wait_for(bot.stdout.readline(), 20) == b"in room:1\n"
        async with connect_client(url) as ada:
            said = await ada.subscribe("room:1")
            await ada.publish("room:1", {"name": "ada", "text": "!who"})
            answers = [(await asyncio.wait_for(anext(said), 20)).data for _ in range(2)]
            assert answers[1] == {"name": "bot", "text": "2 here, and I am one of them"}
            await ada.publish("room:1", {"no": "line"})
            await ada.publish("room:1", {"name": "ada", "text": "!time"})
            answers = [(await asyncio.wait_for(anext(said), 20)).data for _ in range(3)]
            assert answers[2]["name"] == "bot"
    finally:
        bot.terminate()
        await bot.communicate()


def test_every_example_is_run_here():
    tests = Path(__file__).read_text()
    assert [path.name for path in EXAMPLES.glob("*.py") if f'"{path.name}"' not in tests] == []

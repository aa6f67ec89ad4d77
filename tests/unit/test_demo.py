"""The server side of the demo, with a real client, and that its page is the one that clients/demo makes.

What the page does is tested in tests/e2e/test_demo.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import urllib.request
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect

from street_fast import Request, demo

PAGE = Path(demo.__file__).parent
SOURCES = Path(__file__).resolve().parents[2] / "clients" / "demo"
FILES = ("index.html", "style.css", "app.js")


def member(name: str, key: str = "k"):
    return demo.authenticate(Request("GET", f"/realtime?user={quote(name)}&key={key}"))


@pytest.mark.parametrize("name", ["Ada", "小林 直樹", "👩‍👩‍👧", "x" * 32, "Żółw", "<b>", "a~b"])
def test_a_name_that_can_be_read_is_taken_and_is_in_the_id(name):
    assert member(name).id.rpartition("~")[0] == name


@pytest.mark.parametrize("name", ["", " ", "\0", "a\nb\x07", "x" * 33, "a\u202eb", "a\u200bb", "\ufeff", "\u2066x"])
def test_a_name_that_cannot_is_refused(name):
    assert member(name) is None


def test_spaces_and_forms_of_a_name_do_not_matter():
    assert member("  Ada   L  ") == member("Ada L")
    assert member("Chloe\u0301") == member("Chlo\u00e9")


def test_who_has_name_and_key_is_that_member():
    assert member("Ada", "one") == member("Ada", "one")
    assert len({member("Ada", "one").id, member("Ada", "two").id, member("Ben", "one").id}) == 3
    assert "one" not in member("Ada", "one").id
    assert member("Ada", "").id != member("Ada", "").id, "without a key, everybody is new"


@pytest_asyncio.fixture
async def url():
    http = demo.build()
    await http.listen("127.0.0.1", 0)
    yield f"127.0.0.1:{http.port}"
    await http.close()


class Client:
    """Sees only what it asks for: `until` drops what comes before."""

    def __init__(self, connection):
        self.connection = connection
        self.asked = 0

    async def until(self, kind, channel=None):
        while True:
            event = json.loads(await self.connection.recv())
            if event["type"] == kind and channel in (None, event.get("channel")):
                return event["data"]

    async def ask(self, kind, channel, **fields):
        """The data of the reply, or the code of the error."""
        self.asked += 1
        await self.connection.send(json.dumps({"type": kind, "channel": channel, "id": self.asked, **fields}))
        while (event := json.loads(await self.connection.recv())).get("id") != self.asked:
            pass
        return event["data"] if event["type"] == "reply" else event["data"]["code"]

    async def rooms(self):
        return [room["name"] for room in (await self.until("message", "rooms"))["rooms"]]


@pytest.fixture
def visit(url):
    @asynccontextmanager
    async def visit(name):
        async with connect(f"ws://{url}/realtime?user={name}&key=k") as connection:
            client = Client(connection)
            client.id = (await client.until("welcome"))["member"]["id"]
            yield client

    return visit


async def test_the_last_messages_of_a_room_are_told_to_who_joins(visit):
    async with visit("Ada") as ada, visit("Ben") as ben:
        await ada.ask("subscribe", "room:general")
        for number in range(3):
            await ada.ask("publish", "room:general", data={"text": str(number), "nonce": f"n{number}"})
        await ben.ask("subscribe", "room:general")
        said = (await ben.ask("history", "room:general"))["messages"]
        assert [message["data"]["text"] for message in said] == ["0", "1", "2"]
        assert {message["from"] for message in said} == {ada.id}


async def test_a_room_is_there_while_somebody_is_in_it(visit):
    async with visit("Ada") as ada:
        await ada.ask("subscribe", "rooms")
        given = list(demo.GIVEN_ROOMS)
        async with visit("Ben") as ben:
            assert (await ben.ask("subscribe", "room:lunch")).keys() >= {"members", "position"}
            assert await ada.rooms() == [*given, "lunch"]
        assert await ada.rooms() == given
        told = (await ada.ask("history", "rooms"))["messages"]
        assert [room["name"] for room in told[-1]["data"]["rooms"]] == given
        assert len(told) == 1


async def test_the_list_counts_who_is_in_a_room(visit):
    async with visit("Ada") as ada, visit("Ben") as ben:
        await ada.ask("subscribe", "rooms")
        for client in (ada, ben):
            await client.ask("subscribe", "room:ideas")
        while {"name": "ideas", "members": 2} not in (await ada.until("message", "rooms"))["rooms"]:
            pass


@pytest.mark.parametrize("room", ["", "two words", "a\x85b", "x" * 33, "a\nb"])
async def test_a_bad_room_is_refused(visit, room):
    async with visit("Ada") as ada:
        assert await ada.ask("subscribe", f"room:{room}") in ("forbidden", "bad_request")
        assert await ada.ask("publish", f"room:{room}", data=1) in ("forbidden", "bad_request")


async def test_rooms_are_not_made_without_end(visit, monkeypatch):
    monkeypatch.setattr(demo, "MOST_ROOMS", len(demo.GIVEN_ROOMS) + 1)
    async with visit("Ada") as ada:
        await ada.ask("subscribe", "room:one-more")
        assert await ada.ask("subscribe", "room:too-many") == "forbidden"
        assert "members" in await ada.ask("subscribe", "room:general")
        assert "members" in await ada.ask("subscribe", "room:one-more")


async def test_who_is_not_in_a_room_says_nothing_there(visit):
    async with visit("Ada") as ada, visit("Eve") as eve:
        await ada.ask("subscribe", "room:general")
        assert await eve.ask("publish", "room:general", data={"text": "let me in"}) == "forbidden"
        assert await eve.ask("typing", "room:general", data={"typing": True}) == "not_subscribed"
        await ada.ask("publish", "room:general", data={"text": "alone"})
        (said,) = (await ada.ask("history", "room:general"))["messages"]
        assert said["data"]["text"] == "alone"


async def test_a_private_note_is_for_one_member_who_is_here(visit):
    async with visit("Ada") as ada, visit("Ben") as ben, visit("Eve") as eve:
        mine = f"user:{ada.id}"
        assert await ben.ask("publish", mine, data={"text": "psst"}) == "forbidden", "nobody would hear it"
        await ada.ask("subscribe", mine)
        for action in ("subscribe", "presence", "history"):
            assert await eve.ask(action, mine) == "forbidden", action
        await ben.connection.send(json.dumps({"type": "publish", "channel": mine, "data": {"text": "psst"}}))
        assert await ada.until("message", mine) == {"text": "psst"}


@pytest.mark.parametrize("channel", ["rooms", "lobby", "user:", "room"])
async def test_only_the_server_publishes_anywhere_else(visit, channel):
    async with visit("Eve") as eve:
        await eve.ask("subscribe", "rooms")
        assert await eve.ask("publish", channel, data={"rooms": []}) == "forbidden"


@pytest.mark.parametrize(("path", "kind"), [("", "html"), ("app.js", "javascript"), ("style.css", "css")])
async def test_the_page_is_served_under_a_strict_policy(url, path, kind):
    def get():
        with urllib.request.urlopen(f"http://{url}/{path}", timeout=10) as response:
            return response.headers, response.read()

    headers, body = await asyncio.to_thread(get)
    assert kind in headers["Content-Type"]
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert body == (PAGE / (path or "index.html")).read_bytes()


@pytest.mark.parametrize("name", FILES)
def test_a_built_file_says_that_it_is_none_to_edit(name):
    assert "built from clients/demo; do not edit" in (PAGE / name).read_text(encoding="utf-8").partition("\n")[0]


def test_the_page_is_what_its_sources_make(tmp_path):
    vite = SOURCES / "node_modules" / "vite" / "bin" / "vite.js"
    node = shutil.which("node")
    if node is None or not vite.is_file():
        pytest.skip("needs Node.js and `npm --prefix clients/demo ci`")
    environment = {name: value for name, value in os.environ.items() if name != "NODE_ENV"}
    subprocess.run(
        [node, vite, "build", "--logLevel", "error", "--outDir", tmp_path], cwd=SOURCES, env=environment, check=True
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    differing = [name for name in FILES if (tmp_path / name).read_bytes() != (PAGE / name).read_bytes()]
    assert differing == [], "run `npm --prefix clients/demo run build` and commit what it makes"

"""The server side of the demo, with a real client; its page is tested in tests/e2e/test_demo.py."""

from __future__ import annotations

import asyncio
import json
import urllib.request
from urllib.parse import quote

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect

from street_fast import Request, demo


def member(name: str, key: str = "k"):
    return demo.authenticate(Request("GET", f"/chat?user={quote(name)}&key={key}"))


@pytest.mark.parametrize("name", ["Ada", "小林 直樹", "👩‍👩‍👧", "x" * 32, "Żółw", "<b>"])
def test_a_name_that_can_be_read_is_taken(name):
    assert member(name).info == {"name": name}


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
    def __init__(self, connection):
        self.connection = connection

    async def send(self, kind, **data):
        await self.connection.send(json.dumps({"type": kind, "data": data}))

    async def until(self, kind):
        while (event := json.loads(await self.connection.recv()))["type"] != kind:
            pass
        return event.get("data")


async def test_the_last_messages_of_a_room_are_told_to_who_joins(url):
    async with connect(f"ws://{url}/chat?user=Ada") as ada:
        ada = Client(ada)
        await ada.send("join", room="general")
        for number in range(3):
            await ada.send("chat", room="general", text=str(number), nonce=f"n{number}")
        async with connect(f"ws://{url}/chat?user=Ben") as ben:
            ben = Client(ben)
            await ada.until("chat")
            await ben.send("join", room="general")
            room = await ben.until("room")
        assert [message["text"] for message in room["recent"]] == ["0", "1", "2"]
        assert [message["nonce"] for message in room["recent"]] == ["n0", "n1", "n2"]
        assert [member["info"]["name"] for member in room["members"]] == ["Ada", "Ben"]


async def test_a_room_is_there_while_somebody_is_in_it(url):
    async with connect(f"ws://{url}/chat?user=Ada") as ada:
        ada = Client(ada)
        given = (await ada.until("hello"))["rooms"]
        async with connect(f"ws://{url}/chat?user=Ben") as ben:
            await Client(ben).send("join", room="lunch")
            assert (await ada.until("rooms"))["rooms"] == [*given, "lunch"]
        assert (await ada.until("rooms"))["rooms"] == given
        await ada.send("join", room="lunch")
        assert (await ada.until("room"))["recent"] == []


@pytest.mark.parametrize("room", ["", "two words", "a\0b", "x" * 33, 7])
async def test_a_bad_room_is_refused(url, room):
    async with connect(f"ws://{url}/chat?user=Ada") as ada:
        await Client(ada).send("join", room=room)
        assert (await Client(ada).until("error"))["code"] == "bad_request"


async def test_rooms_are_not_made_without_end(url, monkeypatch):
    monkeypatch.setattr(demo, "MOST_ROOMS", len(demo.GIVEN_ROOMS) + 1)
    async with connect(f"ws://{url}/chat?user=Ada") as ada:
        ada = Client(ada)
        await ada.send("join", room="one-more")
        await ada.until("room")
        await ada.send("join", room="too-many")
        assert (await ada.until("error"))["code"] == "limit_exceeded"
        await ada.send("join", room="general")
        assert (await ada.until("room"))["room"] == "general"


async def test_who_is_not_in_a_room_says_nothing_there(url):
    async with connect(f"ws://{url}/chat?user=Ada") as ada, connect(f"ws://{url}/chat?user=Eve") as eve:
        ada, eve = Client(ada), Client(eve)
        await ada.send("join", room="general")
        await ada.until("room")
        await eve.send("chat", room="general", text="let me in")
        await eve.send("typing", room="general", typing=True)
        await eve.send("alive")
        await eve.until("alive")
        await ada.send("chat", room="general", text="alone")
        event = json.loads(await ada.connection.recv())
        assert (event["type"], event["data"]["text"]) == ("chat", "alone")


@pytest.mark.parametrize(
    ("path", "kind"), [("", "html"), ("app.js", "javascript"), ("connection.js", "javascript"), ("style.css", "css")]
)
async def test_the_page_is_served_under_a_strict_policy(url, path, kind):
    def get():
        with urllib.request.urlopen(f"http://{url}/{path}", timeout=10) as response:
            return response.headers, response.read().decode()

    headers, body = await asyncio.to_thread(get)
    assert kind in headers["Content-Type"]
    assert headers["Content-Security-Policy"].startswith("default-src 'none'")
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert "$final" not in body
    if kind == "html":
        assert 'data-final-close-codes="1000 1002 1003 ' in body

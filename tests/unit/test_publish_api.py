"""POST publish: keys, one message and many, what is refused, and what an error tells."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from street_fast.backplanes import History, OutcomeUnknown, Unavailable
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.limits import Limits
from street_fast.publish_api import publish
from tests.realtime_harness import world_fixture
from tests.sse_harness import ask

if TYPE_CHECKING:
    from street_fast.realtime import Realtime

make = pytest.fixture(world_fixture)

KEY = "a-key-of-some-length"
OTHER = "another-key-that-fits"
LIMITS = Limits(event_bytes=1_000)


async def post(realtime: Realtime, body: Any, *headers: tuple[str, str]) -> tuple[int, Any]:
    """Status and JSON of the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = ask("POST", "/realtime/publish", *(headers or [("X-API-Key", KEY)]), body=data)
    response = await publish(realtime, request)
    assert ("Content-Type", "application/json") in response.headers
    assert ("Cache-Control", "no-store") in response.headers
    return response.status, json.loads(response.body)


async def code(realtime: Realtime, body: Any, *headers: tuple[str, str]) -> tuple[int, str]:
    """Status and code of the error, which the answer must be."""
    status, answer = await post(realtime, body, *headers)
    assert set(answer) == {"error"}
    assert set(answer["error"]) == {"code", "message"}
    return status, answer["error"]["code"]


# --- keys ---


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ([("X-API-Key", KEY)], 200),
        ([("X-API-Key", OTHER)], 200),
        ([("Authorization", f"Bearer {KEY}")], 200),
        ([("authorization", f"bEARER  {OTHER} ")], 200),
        ([("Authorization", "Basic eA=="), ("X-API-Key", KEY)], 200),
        ([("X-API-Key", KEY[:-1])], 401),
        ([("X-API-Key", KEY + "x")], 401),
        ([("X-API-Key", "")], 401),
        ([("X-API-Key", "é" * 16)], 401),
        ([("Authorization", KEY)], 401),
        ([("Authorization", f"Basic {KEY}")], 401),
        ([("Cookie", f"key={KEY}")], 401),
    ],
)
async def test_a_key_is_needed(make, headers, status):
    world = await make(api_key=[KEY, OTHER])
    client = world.client()
    await client.done("subscribe", channel="a")
    if status == 200:
        assert (await post(world.realtime, {"channel": "a", "data": 1}, *headers))[0] == 200
    else:
        assert await code(world.realtime, {"channel": "a", "data": 1}, *headers) == (401, "unauthorized")
        response = await publish(world.realtime, ask("POST", "/p", *headers))
        assert ("WWW-Authenticate", "Bearer") in response.headers
        assert KEY.encode() not in response.body
    assert len(client.take_type("message")) == (status == 200)


async def test_without_a_key_nobody_publishes(make):
    world = await make()
    status, answer = await post(world.realtime, {"channel": "a", "data": 1})
    assert status == 403
    assert "api_key" in answer["error"]["message"]


async def test_the_key_is_looked_at_before_the_body(make):
    world = await make(api_key=KEY)
    assert await code(world.realtime, b"{", ("X-API-Key", "no")) == (401, "unauthorized")


# --- publishing ---


async def test_one_message(make):
    world = await make(api_key=KEY, history={"kept": History()})
    client = world.client()
    await client.done("subscribe", channel="a")
    await client.done("subscribe", channel="kept")
    data = b'{ "x" :\n[1, "\xc3\xa9"]}'
    assert await post(world.realtime, b'{"channel":"a","data":%b}' % data) == (200, {"ts": world.clock.ms()})
    status, answer = await post(world.realtime, {"channel": "kept", "data": None})
    assert status == 200
    first, second = client.take_type("message")
    assert first == {"type": "message", "channel": "a", "data": {"x": [1, "é"]}, "ts": world.clock.ms()}
    assert answer == {"ts": world.clock.ms(), "position": second["position"]}


async def test_a_user_is_notified(make):
    world = await make(api_key=KEY)
    ada, ben = world.client("ada"), world.client("ben")
    for client, name in ((ada, "ada"), (ben, "ben")):
        await client.done("subscribe", channel=f"user:{name}")
    assert (await post(world.realtime, {"user": "ada", "data": "psst"}))[0] == 200
    assert [message["data"] for message in ada.take_type("message")] == ["psst"]
    assert ben.take_type("message") == []


async def test_a_key_makes_a_retry_harmless(make):
    world = await make(api_key=KEY, history={"*": History()})
    client = world.client()
    await client.done("subscribe", channel="a")
    _, first = await post(world.realtime, {"channel": "a", "data": 1, "key": "k"})
    _, second = await post(world.realtime, {"channel": "a", "data": 1, "key": "k"})
    assert second["position"] == first["position"]
    assert second["duplicate"] is True
    assert "duplicate" not in first
    assert len(client.take_type("message")) == 1


async def test_many_messages_each_with_its_own_result(make):
    world = await make(api_key=KEY, history={"kept": History()}, limits=LIMITS)
    client = world.client()
    await client.done("subscribe", channel="a")
    status, answer = await post(
        world.realtime,
        {
            "messages": [
                {"channel": "a", "data": 1},
                {"channel": "", "data": 2},
                {"channel": "a"},
                {"user": "ada", "channel": "a", "data": 3},
                5,
                {"channel": "a", "data": "x" * 1_000},
                {"channel": "a", "data": 4, "key": "k" * 65},
                {"channel": "kept", "data": 5},
                {"channel": "a", "data": 6},
            ]
        },
    )
    assert status == 200
    results = answer["results"]
    assert ["ok" if "ts" in result else result["error"]["code"] for result in results] == [
        "ok",
        "bad_request",
        "bad_request",
        "bad_request",
        "bad_request",
        "limit_exceeded",
        "bad_request",
        "ok",
        "ok",
    ]
    assert "position" in results[7]
    assert [message["data"] for message in client.take_type("message")] == [1, 6]


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"", (400, "bad_request")),
        (b"[]", (400, "bad_request")),
        (b"{", (400, "bad_request")),
        (b"{}", (400, "bad_request")),
        (b'{"channel":"a","data":"\xff"}', (400, "bad_request")),
        (b'{"channel":"a","data":' + b"[" * 100_000, (400, "bad_request")),
        ({"channel": "a\nb", "data": 1}, (400, "bad_request")),
        ({"channel": "c" * 256, "data": 1}, (400, "bad_request")),
        ({"channel": 5, "data": 1}, (400, "bad_request")),
        ({"user": "", "data": 1}, (400, "bad_request")),
        ({"messages": 5}, (400, "bad_request")),
        ({"messages": [{"channel": "a", "data": 1}] * 101}, (413, "limit_exceeded")),
        ({"channel": "a", "data": "x" * 1_000}, (413, "limit_exceeded")),
    ],
)
async def test_what_is_refused(make, body, answer):
    world = await make(api_key=KEY, limits=LIMITS)
    client = world.client()
    await client.done("subscribe", channel="a")
    assert await code(world.realtime, body) == answer
    assert client.take_type("message") == []


async def test_an_empty_batch(make):
    world = await make(api_key=KEY)
    assert await post(world.realtime, {"messages": []}) == (200, {"results": []})


# --- a backplane in trouble ---


class Troubled(MemoryBackplane):
    """Fails as it is told to, at once or later."""

    error: BaseException | None = None
    later = False

    def publish(self, *args: Any, **options: Any) -> Any:
        if self.error is None:
            return super().publish(*args, **options)
        if not self.later:
            raise self.error
        return self._fail(self.error)

    async def _fail(self, error: BaseException) -> Any:
        raise error


@pytest.mark.parametrize("later", [False, True])
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Unavailable("redis://secret@broker is down"), "unavailable"),
        (OutcomeUnknown("redis://secret@broker is silent"), "unknown"),
        (RuntimeError("redis://secret@broker: a bug"), "unknown"),
    ],
)
async def test_a_backplane_in_trouble(make, later, error, expected):
    backplane = Troubled()
    world = await make(api_key=KEY, backplane=backplane)
    backplane.error, backplane.later = error, later
    status, answer = await post(world.realtime, {"channel": "a", "data": 1})
    assert (status, answer["error"]["code"]) == (503, expected)
    assert "secret" not in answer["error"]["message"]
    _, answer = await post(world.realtime, {"messages": [{"channel": "a", "data": 1}, {"channel": "", "data": 1}]})
    assert [result["error"]["code"] for result in answer["results"]] == [expected, "bad_request"]


class Slow(MemoryBackplane):
    """Answers when the test says so, in reverse order if it wants."""

    def __init__(self) -> None:
        super().__init__()
        self.begun: list[bytes] = []

    def publish(self, channel: str, payload: bytes, **options: Any) -> Any:
        self.begun.append(payload)
        return self._answer(super().publish(channel, payload, **options))

    async def _answer(self, published: Any) -> Any:
        assert len(self.begun) == 3  # all have begun before the first is waited for
        return published


async def test_all_are_on_their_way_before_the_first_is_waited_for(make):
    backplane = Slow()
    world = await make(api_key=KEY, backplane=backplane)
    status, answer = await post(world.realtime, {"messages": [{"channel": "a", "data": n} for n in range(3)]})
    assert status == 200
    assert len(answer["results"]) == 3
    assert [json.loads(payload + b"}")["data"] for payload in backplane.begun] == [0, 1, 2]

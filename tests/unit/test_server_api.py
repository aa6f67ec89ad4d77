"""The API for other programs: keys, what is done, what is refused and what an error tells; many nodes; every front."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from aiohttp import web

from street_fast.auth import Member
from street_fast.backplanes import History, OutcomeUnknown, Unavailable
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.http_server import HttpServer
from street_fast.limits import Limits
from street_fast.realtime import Realtime
from street_fast.server_api import routes
from tests.contract.broker import BrokerBus
from tests.http_harness import head, parse, until
from tests.realtime_harness import make_world, world_fixture
from tests.sse_harness import ask

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

make = pytest.fixture(world_fixture)

KEY = "a-key-of-some-length"
OTHER = "another-key-that-fits"
LIMITS = Limits(event_bytes=1_000)


async def respond(realtime: Realtime, request: Any) -> Any:
    """The response to a request, which is for one of the paths."""
    method = "GET" if request.method == "HEAD" else request.method
    (handler,) = [route[2] for route in routes(realtime, "/realtime") if route[:2] == (method, request.path)]
    return await handler(request)


async def post(
    realtime: Realtime, body: Any, *headers: tuple[str, str], path: str = "publish", method: str = "POST"
) -> tuple[int, Any]:
    """Status and JSON of the answer."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = ask(method, f"/realtime/{path}", *(headers or [("X-API-Key", KEY)]), body=data)
    response = await respond(realtime, request)
    assert ("Content-Type", "application/json") in response.headers
    assert ("Cache-Control", "no-store") in response.headers
    return response.status, json.loads(response.body)


async def get(realtime: Realtime, path: str, *headers: tuple[str, str]) -> tuple[int, Any]:
    return await post(realtime, b"", *headers, path=path, method="GET")


async def code(realtime: Realtime, body: Any, *headers: tuple[str, str], **where: str) -> tuple[int, str]:
    """Status and code of the error, which the answer must be."""
    return error_of(await post(realtime, body, *headers, **where))


def error_of(got: tuple[int, Any]) -> tuple[int, str]:
    status, answer = got
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
        response = await respond(world.realtime, ask("POST", "/realtime/publish", *headers))
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


@pytest.mark.parametrize(
    ("method", "path"), [(method, path.removeprefix("/")) for method, path, _ in routes(Realtime(), "")]
)
async def test_everything_needs_a_key(make, method, path):
    world = await make(api_key=KEY)
    assert await code(world.realtime, b"{}", ("X-API-Key", "no"), path=path, method=method) == (401, "unauthorized")
    assert (await code(world.realtime, b"{}", path=path, method=method))[0] == 400
    world = await make()
    assert await code(world.realtime, b"{}", path=path, method=method) == (403, "forbidden")


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


# --- members ---


async def test_disconnect(make):
    world = await make(api_key=KEY)
    ada, other, ben, cem = [world.client(name) for name in ("ada", "ada", "ben", "cem")]
    assert await post(world.realtime, {"user": "ada"}, path="disconnect") == (200, {"connections": 2})
    assert [client.close_code for client in (ada, other, ben)] == [1008, 1008, None]
    assert ada.close_reason
    body = {"user": "ben", "code": 4_321, "reason": "é" * 61}
    assert await post(world.realtime, body, path="disconnect") == (200, {"connections": 1})
    assert (ben.close_code, ben.close_reason) == (4_321, "é" * 61)
    assert await post(world.realtime, {"user": "nobody"}, path="disconnect") == (200, {"connections": 0})
    assert not cem.closed


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        {},
        {"user": 5},
        {"user": ""},
        {"user": "a\nb"},
        {"user": "cem", "reason": None},
        {"user": "cem", "reason": "é" * 62},
        b'{"user":"cem","reason":"\\ud800"}',
        b'{"user":"cem","reason":"\xff"}',
        {"user": "cem", "code": 1_005},
        {"user": "cem", "code": 1_006},
        {"user": "cem", "code": 999},
        {"user": "cem", "code": 5_000},
        {"user": "cem", "code": 10**30},
        {"user": "cem", "code": "1008"},
        {"user": "cem", "code": 4000.5},
    ],
)
async def test_nobody_is_disconnected(make, body):
    world = await make(api_key=KEY)
    cem = world.client("cem")
    assert await code(world.realtime, body, path="disconnect") == (400, "bad_request")
    assert not cem.closed


async def test_unsubscribe(make):
    world = await make(api_key=KEY)
    ada, ben = world.client("ada"), world.client("ben")
    for client in (ada, ben):
        await client.done("subscribe", channel="room")
        await client.done("subscribe", channel="hall")
    body = {"user": "ada", "channel": "room", "reason": "you were rude"}
    assert await post(world.realtime, body, path="unsubscribe") == (200, {"connections": 1})
    (told,) = ada.take_type("unsubscribed")
    assert (told["channel"], told["data"]) == ("room", {"code": "forbidden", "message": "you were rude"})
    assert await post(world.realtime, body, path="unsubscribe") == (200, {"connections": 0})
    assert (await post(world.realtime, {"user": "ada", "channel": "hall"}, path="unsubscribe"))[1] == {"connections": 1}
    assert ada.take_type("unsubscribed")[0]["data"]["message"]
    assert world.realtime.presence("room") == ["ben"]


@pytest.mark.parametrize(
    "body",
    [
        {"user": "ada"},
        {"channel": "room"},
        {"user": "ada", "channel": ""},
        {"user": "", "channel": "room"},
        {"user": "ada", "channel": "room", "reason": "x" * 124},
        {"user": "ada", "channel": ["room"]},
    ],
)
async def test_nobody_is_unsubscribed(make, body):
    world = await make(api_key=KEY)
    await world.client("ada").done("subscribe", channel="room")
    assert await code(world.realtime, body, path="unsubscribe") == (400, "bad_request")
    assert world.realtime.presence("room") == ["ada"]


async def test_presence(make):
    world = await make(api_key=KEY, limits=Limits(presence_members=2))
    assert await get(world.realtime, "presence?channel=a%20b") == (200, {"members": []})
    await world.client(Member("ada", info={"name": "Ada"})).done("subscribe", channel="a b")
    await world.client("ben").done("subscribe", channel="a b")
    members = [{"memberId": "ada", "info": {"name": "Ada"}}, {"memberId": "ben"}]
    assert await get(world.realtime, "presence?channel=a%20b&more=x") == (200, {"members": members})
    await world.client("cem").done("subscribe", channel="a b")
    assert await get(world.realtime, "presence?channel=a%20b") == (200, {"memberCount": 3})


# --- history ---


async def test_history(make):
    world = await make(api_key=KEY, history={"kept": History()}, limits=Limits(recovery_messages=60))
    (status, empty) = await get(world.realtime, "history?channel=kept")
    assert (status, empty["messages"]) == (200, [])
    client = world.client()
    await client.done("subscribe", channel="kept")
    for number in range(70):
        world.realtime.publish("kept", number)
    messages = client.take_type("message")
    _, answer = await get(world.realtime, "history?channel=kept&limit=2")
    assert answer == {"messages": messages[-2:], "position": messages[-1]["position"]}
    assert empty["position"].partition(":")[0] == answer["position"].partition(":")[0]
    assert (await get(world.realtime, "history?channel=kept"))[1]["messages"] == messages[-50:]
    assert (await get(world.realtime, "history?channel=kept&limit=60"))[1]["messages"] == messages[-60:]


async def test_a_large_history_comes_in_part(make):
    world = await make(api_key=KEY, history={"*": History()}, limits=Limits(write_hard_bytes=65_536))
    for number in range(5):
        world.realtime.publish("a", str(number) * 6_000)
    _, answer = await get(world.realtime, "history?channel=a")
    assert [message["data"][0] for message in answer["messages"]] == ["3", "4"]


@pytest.mark.parametrize(
    "query",
    [
        "history",
        "history?channel=",
        "history?channel=other",  # keeps none
        "history?channel=kept&channel=kept",
        "history?channel=a%0Ab",
        f"history?channel={'k' * 256}",
        *(
            f"history?channel=kept&limit={limit}"
            for limit in ("", "0", "301", "-1", "1.0", "ten", "+5", "%D9%A3", "9" * 5_000)
        ),
        "history?channel=kept&limit=1&limit=2",
        "presence",
        "presence?channel=",
        "presence?channel=a&channel=b",
        "presence?channel=a%7F",
    ],
)
async def test_questions_that_are_none(make, query):
    world = await make(api_key=KEY, history={"kept": History()})
    assert error_of(await get(world.realtime, query)) == (400, "bad_request")


@pytest.mark.parametrize("later", [False, True])
async def test_what_cannot_be_known_is_not_answered(make, later):
    class Away(MemoryBackplane):
        def members(self, *_: Any, **__: Any) -> Any:
            return self._answer() if later else self._refuse()

        read = members

        async def _answer(self) -> Any:
            await asyncio.sleep(0)
            self._refuse()

        def _refuse(self) -> None:
            raise Unavailable("redis://secret@broker is down")

    world = await make(api_key=KEY, backplane=Away(), history={"a": History()})
    for path in ("presence", "history"):
        status, answer = await get(world.realtime, f"{path}?channel=a")
        assert (status, answer["error"]["code"]) == (503, "unavailable")
        assert "secret" not in answer["error"]["message"]


async def test_questions_about_who_is_there_are_limited(make):
    release = asyncio.Event()

    class Slow(MemoryBackplane):
        async def members(self, channel: str) -> Any:
            await release.wait()
            return {}

    world = await make(api_key=KEY, backplane=Slow())
    asked = [asyncio.ensure_future(get(world.realtime, f"presence?channel=c{number}")) for number in range(101)]
    assert error_of(await asked.pop()) == (503, "unavailable")
    asked.pop().cancel()
    await asyncio.sleep(0)
    asked.append(asyncio.ensure_future(get(world.realtime, "presence?channel=c")))
    await asyncio.sleep(0)
    release.set()
    assert await asyncio.gather(*asked) == [(200, {"members": []})] * 100


# --- several nodes ---


@pytest.fixture
async def nodes() -> AsyncIterator[Any]:
    """Two Realtimes on one bus, the bus, and what waits until all has arrived."""
    bus = BrokerBus()
    backplanes = [bus.node() for _ in range(2)]
    worlds = [
        await make_world(backplane=node, api_key=KEY, history={"kept": History()}, limits=Limits(presence_members=3))
        for node in backplanes
    ]

    async def settle() -> None:
        for _ in range(5):
            await bus.settle()
            for world in worlds:
                await world.settle()

    yield (*worlds, bus, settle)
    for world in worlds:
        world.everybody_leaves()
        await world.realtime.close()
    await bus.close()


async def test_who_is_there_is_asked_of_all_nodes(nodes):
    here, there, bus, settle = nodes
    await there.client(Member("ada", info={"name": "Ada"})).done("subscribe", channel="room")
    await settle()
    ada = {"memberId": "ada", "info": {"name": "Ada"}}
    assert await get(here.realtime, "presence?channel=room") == (200, {"members": [ada]})
    assert here.realtime.presence("room") == [], "nothing is left of the question"
    assert await here.client("eve").done("presence", channel="room") == {"members": [ada]}, "so can a client"
    for name in ("ben", "ada"):
        await here.client(name).done("subscribe", channel="room")
    _, told = await get(here.realtime, "presence?channel=room")
    assert sorted(member["memberId"] for member in told["members"]) == ["ada", "ben"]
    for name in ("cem", "dan"):
        await there.client(name).done("subscribe", channel="room")
    await settle()
    for world in (here, there):
        assert await get(world.realtime, "presence?channel=room") == (200, {"memberCount": 4})
    await bus.cut(here.realtime.exchange.backplane)
    assert error_of(await get(here.realtime, "presence?channel=room")) == (503, "unavailable")
    assert (await get(there.realtime, "presence?channel=room"))[0] == 200


async def test_a_member_that_is_none_is_left_out(nodes):
    here, there, _, settle = nodes
    there.realtime.exchange.backplane.join("room", "a\nb", None)
    there.realtime.exchange.backplane.join("room", "ada", b"{")
    there.realtime.exchange.backplane.join("room", "ben", b"5")
    await settle()
    assert await get(here.realtime, "presence?channel=room") == (200, {"members": [{"memberId": "ben", "info": 5}]})


async def test_what_is_ordered_is_done_on_all_nodes(nodes):
    here, there, _, settle = nodes
    ada = there.client("ada")
    await ada.done("subscribe", channel="room")
    await settle()
    body = {"user": "ada", "channel": "room", "reason": "enough"}
    assert await post(here.realtime, body, path="unsubscribe") == (200, {"connections": 0}), "of this process"
    await settle()
    assert ada.take_type("unsubscribed")[0]["data"]["message"] == "enough"
    assert (await post(here.realtime, {"user": "ada", "code": 4_000}, path="disconnect"))[0] == 200
    await settle()
    assert ada.close_code == 4_000


async def test_history_is_that_of_all_nodes(nodes):
    here, there, _, _ = nodes
    receipt = await there.realtime.publish("kept", "hello")
    _, answer = await get(here.realtime, "history?channel=kept")
    assert [message["data"] for message in answer["messages"]] == ["hello"]
    assert answer["position"] == str(receipt.position)


# --- on every front ---


@contextlib.asynccontextmanager
async def served(realtime: Realtime, kind: str) -> AsyncIterator[int]:
    """The Realtime on an HTTP server; its port."""
    if kind == "street_fast":
        http = HttpServer()
        realtime.attach(http)
        await http.listen(port=0)
        yield http.port
        await http.close()
    elif kind == "aiohttp":
        app = web.Application()
        realtime.attach(app)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield runner.addresses[0][1]
        await runner.cleanup()
    else:
        config = uvicorn.Config(web.Application(), port=0, log_config=None, lifespan="off")
        realtime.attach(config)
        server = uvicorn.Server(config)
        running = asyncio.ensure_future(server.serve())
        await until(lambda: server.started or running.done())
        yield server.servers[0].sockets[0].getsockname()[1]
        server.should_exit = True
        await asyncio.wait_for(running, 20)


@pytest.mark.parametrize("kind", ["street_fast", "uvicorn", "aiohttp"])
async def test_over_http(kind):
    async def exchange(port: int, method: str, path: str, body: bytes = b"", key: str = KEY) -> Any:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        lines = [f"Content-Length: {len(body)}"] if body else []
        writer.write(head(method, f"/realtime/{path}", "Connection: close", f"X-API-Key: {key}", *lines) + body)
        try:
            return parse(await asyncio.wait_for(reader.read(), 20), [method])[0]
        finally:
            writer.close()
            await writer.wait_closed()

    realtime = Realtime(history={"*": History()}, api_key=KEY)
    async with served(realtime, kind) as port:
        assert (await exchange(port, "POST", "publish", b'{"channel":"a","data":1}')).status == 200
        for method, path, body, field in (
            ("POST", "disconnect", b'{"user":"ada"}', "connections"),
            ("POST", "unsubscribe", b'{"user":"ada","channel":"a"}', "connections"),
            ("GET", "presence?channel=a", b"", "members"),
            ("GET", "history?channel=a&limit=5", b"", "messages"),
        ):
            answer = await exchange(port, method, path, body)
            assert (answer.status, answer.headers["cache-control"]) == (200, "no-store"), path
            assert answer.headers["content-type"] == "application/json"
            assert field in json.loads(answer.body)
            refused = await exchange(port, method, path, body, key="another")
            assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
            other = await exchange(port, "GET" if method == "POST" else "POST", path)
            assert (other.status, method in other.headers["allow"]) == (405, True)
            if method == "GET":
                asked = await exchange(port, "HEAD", path)
                assert (asked.status, asked.body) == (200, b"")
                assert (await exchange(port, "HEAD", path.partition("?")[0])).status == 400

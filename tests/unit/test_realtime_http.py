"""The HTTP side of a Realtime: who gets a stream, what a client sends, and the end. Sockets only at the end."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from street_fast.auth import Member, TokenRefused
from street_fast.backplanes import History
from street_fast.limits import Limits
from street_fast.realtime import Realtime
from street_fast.request import Response
from street_fast.server import StreetWebSocketServer
from street_fast.sse import SseStream
from tests.contract.broker import BrokerBus
from tests.http_harness import exchange, head, on_loop, parse, settle
from tests.realtime_harness import Tokens, world_fixture
from tests.sse_harness import StreamClient, ask, split

__all__ = ["on_loop"]  # a fixture

make = pytest.fixture(world_fixture)

ADA = Member("ada", info={"name": "Ada"})


class Site:
    """The HTTP side of a world's Realtime."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.realtime: Realtime = world.realtime
        self.http = world.realtime._http_side
        self.http._clock = world.clock
        self.clients: list[StreamClient] = []

    async def get(self, query: str = "", *headers: tuple[str, str]) -> Any:
        return await self.http.stream(ask("GET", f"/realtime/sse?{query}", *headers))

    def open(self, stream: SseStream) -> StreamClient:
        assert isinstance(stream, SseStream), stream.body
        client = StreamClient(stream, self.world.context)
        self.clients.append(client)
        return client

    async def client(self, query: str = "", *headers: tuple[str, str]) -> StreamClient:
        """A client that has read all that there is for it."""
        client = self.open(await self.get(query, *headers))
        await client.take()
        return client

    def post(self, client: StreamClient | str, body: Any, *headers: tuple[str, str]) -> Response:
        connection = client if isinstance(client, str) else client.stream.id
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.http.send(ask("POST", f"/realtime/send?connection={connection}", *headers, body=data))

    def refused(self, response: Any) -> tuple[int, str]:
        """Status and code of what must be a refusal."""
        assert isinstance(response, Response)
        assert ("Cache-Control", "no-store") in response.headers
        answer = json.loads(response.body)
        assert set(answer) == {"error"}
        assert answer["error"]["message"]
        return response.status, answer["error"]["code"]


@pytest.fixture
async def site(make):
    """``site = await make_site(**options of Realtime)``; nothing may be left of its clients."""
    sites: list[Site] = []

    async def make_site(**options: Any) -> Site:
        sites.append(Site(await make(**options)))
        return sites[-1]

    yield make_site
    for site in sites:
        for client in site.clients:
            await client.leave()
        assert site.http.stream_count == 0
        assert site.realtime.server.other_connections == 0
        assert site.realtime.session_count == 0


# --- GET sse ---


async def test_a_stream_begins_with_welcome_and_its_channels(site):
    site = await site(history={"b": History()})
    client = site.open(await site.get("channel=a&channel=b&channel=a"))
    welcome, first, second = await client.take()
    assert welcome["type"] == "welcome"
    assert welcome["data"]["id"] == client.stream.id
    assert welcome["data"]["heartbeatMs"] == 15_000
    member = {"memberId": welcome["data"]["member"]["id"]}
    assert first == {"type": "subscribed", "channel": "a", "data": {"members": [member]}}
    assert second["channel"] == "b"
    assert second["data"]["members"] == [member]
    assert second["data"]["position"].endswith(":0:0")
    await site.realtime.publish("a", 1)
    (message,) = await client.take()
    assert (message["type"], message["channel"], message["data"]) == ("message", "a", 1)
    assert site.http.stream_count == 1


async def test_a_stream_without_a_channel(site):
    site = await site()
    client = site.open(await site.get())
    assert [envelope["type"] for envelope in await client.take()] == ["welcome"]


async def test_ids_of_connections_cannot_be_guessed(site):
    site = await site()
    ids = {(await site.client()).stream.id for _ in range(20)}
    assert len(ids) == 20
    assert min(map(len, ids)) >= 22
    assert len({ident.partition(".")[2][:6] for ident in ids}) == 20


@pytest.mark.parametrize(
    "query",
    [
        "channel=",
        "channel=a%0Ab",
        "channel=a&channel=%00",
        "channel=" + "x" * 256,
        "&".join(f"channel={n}" for n in range(129)),
    ],
)
async def test_channels_that_are_none(site, query):
    site = await site()
    assert site.refused(await site.get(query)) == (400, "bad_request")


async def test_tokens(site):
    site = await site(auth=Tokens(ada=ADA, later=TokenRefused("not now", temporary=True)), guests=False)
    client = site.open(await site.get("channel=a&token=ada"))
    welcome, subscribed = await client.take()
    assert welcome["data"]["member"] == {"id": "ada", "info": {"name": "Ada"}}
    assert subscribed["data"]["members"] == [{"memberId": "ada", "info": {"name": "Ada"}}]
    for query in ("channel=a&token=ben", "channel=a"):
        response = await site.get(query)
        assert site.refused(response) == (401, "unauthorized")
        assert ("WWW-Authenticate", "Bearer") in response.headers
    response = await site.get("token=later")
    assert site.refused(response) == (503, "unavailable")
    assert "Retry-After" in dict(response.headers)
    site.realtime.auth.later = True
    assert site.refused(await site.get("token=ben")) == (401, "unauthorized")
    await site.client("token=ada")


async def test_a_token_that_takes_too_long(site):
    class Never(Tokens):
        async def _answer_later(self, token: str, kind: type) -> Any:
            await asyncio.sleep(3_600)

    tokens = Never()
    tokens.later = True
    site = await site(auth=tokens, limits=Limits(login_timeout_s=0.01))
    assert site.refused(await site.get("token=ada")) == (503, "unavailable")


async def test_a_member_that_channels_cannot_take(site):
    site = await site(auth=Tokens(bad=Member("a\nb")))
    assert site.refused(await site.get("token=bad")) == (403, "forbidden")


async def test_a_login_by_post(site):
    site = await site(auth=Tokens(ada=ADA), guests=False)
    client = await site.client()
    assert site.post(client, {"type": "subscribe", "channel": "a", "id": 1}).status == 204
    assert site.post(client, {"type": "auth", "data": {"token": "ada"}, "id": 2}).status == 204
    assert site.post(client, {"type": "subscribe", "channel": "a", "id": 3}).status == 204
    refused, auth, subscribed = await client.take()
    assert refused["data"]["code"] == "unauthorized"
    assert auth["data"]["member"]["id"] == "ada"
    assert subscribed["data"]["members"][0]["memberId"] == "ada"


async def test_a_login_that_does_not_come(site):
    site = await site(auth=Tokens(), guests=False)
    client = await site.client()
    site.world.advance(10.1)
    (close,) = await client.take()
    assert close["data"]["code"] == 4001
    assert client.stream.ended


async def authorize(member: Member, channel: str, action: str) -> bool:
    await asyncio.sleep(0)
    return channel.startswith("ok")


@pytest.mark.parametrize("later", [False, True])
async def test_a_stream_needs_one_channel_that_is_allowed(site, later):
    site = await site(authorize=authorize if later else lambda _m, channel, _a: channel.startswith("ok"))
    assert site.refused(await site.get("channel=no&channel=no2")) == (403, "forbidden")
    client = site.open(await site.get("channel=no&channel=ok&channel=no2&channel=ok2"))
    envelopes = await client.take()
    assert [(envelope["type"], envelope.get("channel")) for envelope in envelopes] == [
        ("welcome", None),
        ("error", "no"),
        ("subscribed", "ok"),
        ("error", "no2"),
        ("subscribed", "ok2"),
    ]
    assert envelopes[1]["data"]["code"] == "forbidden"


async def test_an_authorize_that_takes_too_long(site):
    async def never(*args: Any) -> bool:
        await asyncio.sleep(3_600)
        return True

    site = await site(authorize=never, limits=Limits(login_timeout_s=0.01))
    response = await asyncio.wait_for(site.get("channel=a&channel=b"), 20)
    assert site.refused(response) == (503, "unavailable")
    await settle()
    assert site.http.stream_count == 0


async def test_a_history_that_cannot_be_read(site):
    site = await site(history={"*": History()})
    await site.realtime.exchange.backplane.close()
    response = await site.get("channel=a")
    assert site.refused(response) == (503, "unavailable")
    assert "Retry-After" in dict(response.headers)


async def test_a_client_that_leaves_while_it_is_let_in(site):
    asked = []

    async def never(*args: Any) -> bool:
        asked.append(args)
        await asyncio.sleep(3_600)
        return True

    site = await site(authorize=never)
    asking = asyncio.ensure_future(site.get("channel=a"))
    await settle()
    assert asked
    asking.cancel()
    await asyncio.wait([asking])
    await settle()
    assert site.realtime.session_count == 0


async def test_many_channels_do_not_wait_for_a_client_that_has_not_begun_to_read(site):
    """What is sent to it before the response begins has its limit, and the response begins with the first channel."""
    site = await site(history={"*": History()})
    big = "x" * 15_000
    names = [f"c{n}" for n in range(100)]
    for name in names:
        await site.realtime.publish(name, 0)
    first = {name: str((await site.realtime.publish(name, big)).position) for name in names}
    for name in names:
        await site.realtime.publish(name, big)
    query = "&".join(f"channel={name}" for name in names)
    since = ";".join(f"{name}={position}" for name, position in first.items())
    client = site.open(await asyncio.wait_for(site.get(query, ("Last-Event-ID", since)), 20))
    for _ in range(40):
        await settle()
    subscribed = await client.take_type("subscribed")
    assert [envelope["channel"] for envelope in subscribed] == names
    assert all(envelope["data"]["recovered"] for envelope in subscribed)
    assert not client.stream.closed


async def test_head(site):
    site = await site()
    stream = await site.http.stream(ask("HEAD", "/realtime/sse?channel=a"))
    assert isinstance(stream, SseStream)
    assert b"text/event-stream" in stream.head()
    assert site.realtime.session_count == 0


# --- who may ask ---


@pytest.fixture
async def origins(site):
    """``site = await origins(allowed_origins)``, with an API key."""

    async def make_site(allowed: list[str] | None) -> Site:
        made = await site()
        made.realtime.server.allowed_origins = None if allowed is None else tuple(allowed)
        return made

    return make_site


APP = "https://app.example.com"


@pytest.mark.parametrize(
    ("allowed", "origin", "cors"),
    [
        (None, "http://h", {}),
        (None, APP, None),
        (None, "null", None),
        ([APP], APP, {"Access-Control-Allow-Origin": APP, "Access-Control-Allow-Credentials": "true"}),
        ([APP], "http://h", None),
        ([APP], None, {}),
        (["*"], APP, {"Access-Control-Allow-Origin": APP}),
        (["*"], "null", {"Access-Control-Allow-Origin": "null"}),
    ],
)
async def test_origins(origins, allowed, origin, cors):
    site = await origins(allowed)
    headers = [] if origin is None else [("Origin", origin)]
    stream = await site.get("channel=a", *headers)
    if cors is None:
        assert site.refused(stream) == (403, "forbidden")
        assert not any(name.startswith("Access") for name, _ in stream.headers)
        client = await site.client("channel=a")
        assert site.refused(site.post(client, {"type": "ping"}, *headers)) == (403, "forbidden")
        return
    client = site.open(stream)
    wanted = {**cors, "Vary": "Origin"} if cors else {}
    for answer in (
        stream.headers,
        site.post(client, {"type": "ping"}, *headers).headers,
        site.post("nobody", {"type": "ping"}, *headers).headers,
        (await site.get("channel=", *headers)).headers,
    ):
        found = {name: value for name, value in answer if name.startswith("Access") or name == "Vary"}
        assert found == wanted


async def test_capacity_is_of_streams_and_websockets_together(site):
    site = await site()
    server = site.realtime.server
    server.max_connections = 2
    first = await site.client("channel=a")
    await site.client("channel=a")
    assert server.full
    response = await site.get("channel=a")
    assert site.refused(response) == (503, "unavailable")
    assert int(dict(response.headers)["Retry-After"]) >= 1
    await first.leave()
    assert not server.full
    await site.client("channel=a")


@pytest.mark.parametrize("waits_for", ["its token", "authorize"])
async def test_clients_that_are_being_let_in_count_once(site, waits_for):
    async def never(*args: Any) -> bool:
        await asyncio.sleep(3_600)
        return True

    class Never(Tokens):
        async def _answer_later(self, token: str, kind: type) -> Any:
            await asyncio.sleep(3_600)

    if waits_for == "authorize":
        site = await site(authorize=never)
    else:
        site = await site(auth=Never())
        site.realtime.auth.later = True
    server = site.realtime.server
    server.max_connections = 2
    asking = [asyncio.ensure_future(site.get("channel=a&token=t"))]
    await settle()
    assert server.other_connections == 1
    asking.append(asyncio.ensure_future(site.get("channel=a&token=t")))
    await settle()
    assert server.other_connections == 2
    assert site.refused(await site.get("channel=a")) == (503, "unavailable")
    for task in asking:
        task.cancel()
    await asyncio.wait(asking)


# --- POST send ---


async def test_what_a_client_sends(site):
    site = await site()
    client, other = await site.client("channel=a"), await site.client("channel=a")
    response = site.post(client, {"type": "publish", "channel": "a", "data": {"x": 1}, "id": 7})
    assert (response.status, response.body) == (204, b"")
    message, reply = await client.take()
    assert (message["data"], message["from"]) == ({"x": 1}, client.stream.session.member.id)
    assert (reply["type"], reply["id"]) == ("reply", 7)
    assert [envelope["type"] for envelope in await other.take()] == ["presence", "message"][-1:]
    assert site.post(client, [{"type": "ping", "id": 1}, {"type": "ping"}]).status == 204
    assert [envelope["type"] for envelope in await client.take()] == ["reply", "pong"]
    assert site.post(client, []).status == 204
    assert await client.take() == []


@pytest.mark.parametrize("connection", ["", "nobody", "a" * 5_000])
async def test_connections_that_are_none(site, connection):
    site = await site()
    assert site.refused(site.post(connection, {"type": "ping"})) == (404, "bad_request")
    assert site.refused(site.http.send(ask("POST", "/realtime/send"))) == (404, "bad_request")


async def test_a_connection_that_has_ended(site):
    site = await site()
    client = await site.client("channel=a")
    client.stream.close()
    assert site.refused(site.post(client, {"type": "ping"})) == (404, "bad_request")
    await client.leave()
    assert site.refused(site.post(client, {"type": "ping"})) == (404, "bad_request")


@pytest.mark.parametrize(
    ("body", "answer"),
    [
        (b"", (400, "bad_request")),
        (b"{", (400, "bad_request")),
        (b"5", (400, "bad_request")),
        (b"{}", (400, "bad_request")),
        (b'[{"type":"ping"},5]', (400, "bad_request")),
        (b'[{"type":"ping"}', (400, "bad_request")),
        (b'{"type":"publish","channel":"a","data":"\xff"}', (400, "bad_request")),
        (b'{"type":"publish","channel":"a","data":' + b"[" * 40 + b"]" * 40 + b"}", (400, "bad_request")),
        (b'{"type":"publish","channel":"a","data":' + b"[" * 50_000, (400, "bad_request")),
        (b"[" * 5_000, (400, "bad_request")),
        ([{"type": "ping"}] * 17, (413, "limit_exceeded")),
        ({"type": "publish", "channel": "a", "data": "x" * 65_536}, (413, "limit_exceeded")),
        ([{"type": "ping"}, {"type": "publish", "channel": "a", "data": "x" * 65_536}], (413, "limit_exceeded")),
    ],
)
async def test_a_body_that_is_refused_does_nothing(site, body, answer):
    site = await site()
    client = await site.client("channel=a")
    assert site.refused(site.post(client, body)) == answer
    assert await client.take() == []
    assert not client.stream.closed


async def test_what_is_sent_is_done_in_order(site):
    """Also if the first waits and the others need not."""
    release = asyncio.Event()

    async def slow(member: Member, channel: str, action: str) -> bool:
        if channel == "slow":
            await release.wait()
        return True

    site = await site(authorize=slow)
    client = await site.client()
    site.post(client, [{"type": "subscribe", "channel": "slow", "id": 1}, {"type": "ping", "id": 2}])
    site.post(client, {"type": "ping", "id": 3})
    assert await client.take() == []
    release.set()
    assert [envelope["id"] for envelope in await client.take()] == [1, 2, 3]
    site.post(client, {"type": "ping", "id": 4})
    assert [envelope["id"] for envelope in await client.take()] == [4]


async def test_too_much_that_is_not_done_yet(site):
    release = asyncio.Event()

    async def slow(*args: Any) -> bool:
        await release.wait()
        return True

    site = await site(authorize=slow, limits=Limits(inbox_messages=4))
    client = await site.client()
    site.post(client, {"type": "subscribe", "channel": "a", "id": 0})
    assert [site.post(client, [{"type": "ping"}] * 2).status for _ in range(3)] == [204, 204, 429]
    release.set()
    assert [envelope["type"] for envelope in await client.take()] == ["reply"] + ["pong"] * 4


async def test_the_rate_is_that_of_a_websocket(site):
    site = await site(limits=Limits(messages_per_second=10, messages_burst=3, channels_per_connection=2))
    client = await site.client()
    statuses = [site.post(client, {"type": "ping"}).status for _ in range(8)]
    assert statuses == [204] * 5 + [429] * 3  # the burst, and once as many as there are channels
    envelopes = await client.take()
    assert [envelope["type"] for envelope in envelopes] == ["pong"] * 5 + ["error"]  # told so once
    assert envelopes[-1]["data"]["code"] == "rate_limited"
    site.world.clock.advance(0.1)
    assert [site.post(client, [{"type": "ping"}] * 3).status] == [204]  # as many as there is room for
    assert [envelope["type"] for envelope in await client.take()] == ["pong"]
    for _ in range(60):
        site.world.clock.advance(0.09)
        site.post(client, [{"type": "ping"}] * 2)
    envelopes = await client.take()
    assert (envelopes[-1]["type"], envelopes[-1]["data"]["code"]) == ("close", 4029)
    assert client.stream.ended


async def test_the_rate_of_a_channel_counts_too(site):
    site = await site(limits=Limits(channel_messages_per_second=1, messages_per_second=12, messages_burst=1_000))
    client = await site.client("channel=a")
    for n in range(120):
        site.post(client, {"type": "publish", "channel": "a", "data": n, "id": n})
        site.world.clock.advance(0.05)
    envelopes = await client.take()
    assert "rate_limited" in [envelope["data"]["code"] for envelope in envelopes if envelope["type"] == "error"]
    assert (envelopes[-1]["type"], envelopes[-1]["data"]["code"]) == ("close", 4029)


async def test_messages_of_other_types(site):
    site = await site()
    client = await site.client()
    site.post(client, {"type": "chat", "id": 1})
    site.realtime.on_connect(lambda socket, request: None)
    site.post(client, {"type": "chat", "channel": "c", "id": 2})
    first, second = await client.take()
    assert (first["id"], first["data"]["code"]) == (1, "bad_request")
    assert (second["id"], second["channel"], second["data"]["code"]) == (2, "c", "bad_request")


async def test_nothing_is_done_for_a_client_that_was_closed(site):
    tokens = Tokens(ada=ADA)
    tokens.later = True
    site = await site(auth=tokens, guests=True)
    client, other = await site.client(), await site.client("channel=a")
    publish = {"type": "publish", "channel": "a", "data": 1}
    site.post(client, [{"type": "auth", "data": {"token": "bad"}}, publish, publish])
    envelopes = await client.take()
    assert [envelope["type"] for envelope in envelopes] == ["error", "close"]
    assert await other.take_type("message") == []


# --- the end ---


async def test_disconnect_ends_the_streams_of_a_member(site):
    site = await site(auth=Tokens(ada=ADA))
    client = await site.client("token=ada&channel=a")
    assert site.realtime.disconnect("ada") == 1
    (close,) = await client.take()
    assert (close["type"], close["data"]["code"]) == ("close", 1008)
    assert client.stream.ended


async def test_drain_tells_everybody_when_to_come_back(site):
    limits = Limits(shutdown_batch=2, shutdown_batch_interval_s=0.001)
    site = await site(limits=limits)
    clients = [await site.client("channel=a") for _ in range(5)]
    await asyncio.wait_for(site.http.drain(), 20)
    for client in clients:
        (close,) = await client.take_type("close")
        assert close["data"]["code"] == 1012
        assert "; retry in " in close["data"]["reason"]
        assert client.stream.ended
    response = await site.get("channel=a")
    assert site.refused(response) == (503, "unavailable")


async def test_drain_does_not_wait_for_who_is_being_let_in(site):
    async def never(*args: Any) -> bool:
        await asyncio.sleep(3_600)
        return True

    site = await site(authorize=never, limits=Limits(abort_timeout_s=0.01))
    asking = asyncio.ensure_future(site.get("channel=a"))
    await settle()
    await asyncio.wait_for(site.http.drain(), 20)
    await settle()
    response = await asyncio.wait_for(asking, 20)
    assert site.refused(response) == (503, "unavailable")


async def test_whose_token_is_checked_while_the_server_drains_is_told_to_come_back(site):
    site = await site(auth=Tokens(ada=ADA))
    site.realtime.auth.later = True
    asking = asyncio.ensure_future(site.get("token=ada&channel=a"))
    draining = asyncio.ensure_future(site.http.drain())
    response = await asyncio.wait_for(asking, 20)
    await draining
    assert site.refused(response) == (503, "unavailable")
    assert "Retry-After" in dict(response.headers)


def test_where_it_is_served():
    def paths(path: str) -> list[tuple[str, str]]:
        realtime = Realtime(StreetWebSocketServer(path=path))
        return [(method, path) for method, path, _ in realtime._http_side.routes()]

    assert paths("/rt") == [
        ("GET", "/rt/sse"),
        ("POST", "/rt/send"),
        ("POST", "/rt/publish"),
        ("POST", "/rt/disconnect"),
        ("POST", "/rt/unsubscribe"),
        ("GET", "/rt/presence"),
        ("GET", "/rt/history"),
    ]
    assert paths("/")[0] == ("GET", "/sse")


def test_over_http(on_loop):
    """All of it, with sockets."""

    async def main() -> tuple[Any, Any]:
        realtime = Realtime(history={"*": History()}, api_key="a-key-of-some-length")
        await realtime.serve(port=0)
        http: Any = realtime._http
        reader, writer = await asyncio.open_connection("127.0.0.1", http.port)
        writer.write(head("GET", "/realtime/sse?channel=a"))
        wire = await reader.readuntil(b'"subscribed"')
        ident = json.loads(wire.partition(b'"data":')[2].partition(b",")[0] + b"}")["id"]

        def post(path: str, body: bytes, *lines: str) -> bytes:
            return head("POST", path, f"Content-Length: {len(body)}", "Connection: close", *lines) + body

        assert realtime.stats()["sse"]["streams"] == 1
        sent = await exchange(http, post(f"/realtime/send?connection={ident}", b'{"type":"ping","id":1}'))
        published = await exchange(
            http, post("/realtime/publish", b'{"channel":"a","data":1}', "X-API-Key: a-key-of-some-length")
        )
        await realtime.close()
        wire += await asyncio.wait_for(reader.read(), 20)
        writer.close()
        return wire, parse(sent + published)

    wire, answers = on_loop(main)
    assert [answer.status for answer in answers] == [204, 200]
    types = [event.json["type"] for event in split(wire)[1].events]
    assert types == ["welcome", "subscribed", "reply", "message", "close"]


async def test_what_a_client_sends_may_come_to_another_node(site):
    bus = BrokerBus()
    here, there = [await site(backplane=bus.node()) for _ in range(2)]
    client = await here.client("channel=room")

    async def post(connection, body):
        asked = there.post(connection, body)
        task = asyncio.ensure_future(asked)
        for _ in range(20):
            await bus.settle()
            await asyncio.sleep(0)
        return await task

    await bus.settle()
    assert (await post(client, {"type": "publish", "channel": "room", "data": 5, "id": 1})).status == 204
    await bus.settle()
    assert {envelope["type"] for envelope in await client.take()} == {"message", "reply"}
    assert there.refused(await post(client, b"{")) == (400, "bad_request")
    gone = f"{client.stream.id}x"
    assert there.refused(await post(gone, {"type": "ping"})) == (404, "bad_request")
    assert here.refused(here.post(gone, {"type": "ping"})) == (404, "bad_request")
    await client.leave()
    for each in (here, there):
        await each.world.realtime.close()
    await bus.close()

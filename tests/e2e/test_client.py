"""The Python client and a real Realtime: conversations, and what they survive."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Any

import jwt
import msgspec
import pytest

from street_fast import (
    ConnectionClosed,
    History,
    JwtAuth,
    Limits,
    Member,
    Realtime,
    RealtimeError,
    StreetWebSocketServer,
    connect,
)
from tests.client_harness import until
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from street_fast.client import Gap, RealtimeClient, Subscription

SECRET = "a secret of thirty-two bytes, no less"
SOON = (0.02, 0.1)
FREE = Limits(
    messages_per_second=None,
    bytes_per_second=None,
    channel_messages_per_second=None,
    shutdown_timeout_s=2,
    shutdown_batch_interval_s=0.01,
    retry_hint_s=0.1,
)
LONG = {"room:*": History(size=2_000, ttl_s=60)}


class Say(msgspec.Struct):
    text: str


@pytest.fixture
async def serve() -> AsyncIterator[Callable[..., Awaitable[Realtime]]]:
    """``await serve(**options)``: a Realtime that listens; `port=` for one that was there before."""
    started: list[Realtime] = []

    async def serve(port: int | None = None, **options: Any) -> Realtime:
        realtime = Realtime(**{"limits": FREE, "history": LONG, **options})
        started.append(realtime)
        await realtime.serve(port=free_port() if port is None else port)
        return realtime

    yield serve
    for realtime in started:
        await asyncio.wait_for(realtime.close(), 20)


def client(realtime: Realtime, **options: Any) -> RealtimeClient:
    return connect(f"ws://127.0.0.1:{realtime.port}/realtime", **{"backoff_s": SOON, **options})


def cut_all(realtime: Realtime) -> None:
    """As if the network had gone."""
    for socket in realtime.server.clients:
        socket.sink.abort()


async def next_of(subscription: Subscription[Any]) -> Any:
    return (await asyncio.wait_for(subscription.__anext__(), 20)).data


def token_of(member: str, lasting_s: float = 60.0) -> str:
    return jwt.encode({"sub": member, "exp": time.time() + lasting_s}, SECRET, algorithm="HS256")


# --- conversations ------------------------------------------------------------------------------------------------


@pytest.mark.both_loops
async def test_a_conversation(serve: Any) -> None:
    def authenticate(request: Any) -> Member:
        return Member(request.query["user"], info={"name": request.query["user"].title()})

    server = StreetWebSocketServer(path="/realtime", authenticate=authenticate, limits=FREE)
    realtime = await serve(server=server, limits=None)
    url = f"ws://127.0.0.1:{realtime.port}/realtime?user="
    events: list[Any] = []
    async with connect(url + "ada") as ada, connect(url + "ben") as ben:
        assert ada.member == Member("ada", info={"name": "Ada"})
        ada.on("presence", lambda event: events.append(event.data))
        ada.on("typing", lambda event: events.append(event.data))
        async with ada.subscribe("room:1", type=Say) as heard:
            async with ben.subscribe("room:1", type=Say):
                await until(lambda: events)
                assert [member["memberId"] for event in events for member in event["joined"]][-1] == "ben"
                presence = await ada.presence("room:1")
                assert [member.id for member in presence.members or ()] == ["ada", "ben"]
                events.clear()
                assert ben.typing("room:1", True)
                await until(lambda: {"memberId": "ben", "typing": True} in events)
                published = await ben.publish("room:1", Say("hello"))
                message = await asyncio.wait_for(heard.__anext__(), 20)
                assert (message.data, message.from_member) == (Say("hello"), "ben")
                assert (message.position, message.ts) == (published.position, published.ts)
                again = await ben.publish("room:1", Say("once"), key="k")
                assert (await ben.publish("room:1", Say("once"), key="k")).duplicate
                assert await next_of(heard) == Say("once")
                await realtime.publish("room:1", {"text": "from the server"})
                message = await asyncio.wait_for(heard.__anext__(), 20)
                assert (message.data, message.from_member) == (Say("from the server"), None)
                page = await ada.history("room:1", limit=2, type=Say)
                assert [message.data.text for message in page.messages] == ["once", "from the server"]
                page = await ada.history("room:1", since=again.position)
                assert ([message.data["text"] for message in page.messages], page.recovered) == (
                    ["from the server"],
                    True,
                )
            events.clear()
            await until(lambda: any(event.get("left") == [{"memberId": "ben"}] for event in events))
    assert realtime.presence("room:1") == []


async def test_a_private_channel_and_what_is_forbidden(serve: Any) -> None:
    def authorize(member: Member, channel: str, action: str) -> bool:
        return (channel, action) != ("room:1", "publish")

    realtime = await serve(auth=JwtAuth(SECRET), authorize=authorize)
    async with client(realtime, token=lambda: token_of("ada")) as rt:
        await realtime.notify("ada", "early")
        subscription = await rt.subscribe("user:ada")
        await realtime.notify("ada", "for you")
        assert await next_of(subscription) == "for you"
        for what in (rt.publish("room:1", 1), rt.subscribe("user:ben"), rt.presence("user:ben")):
            with pytest.raises(RealtimeError) as caught:
                await what
            assert caught.value.code == "forbidden"
        with pytest.raises(RealtimeError, match="keeps no history") as caught:
            await rt.history("elsewhere")
        assert caught.value.code == "bad_request"
        assert realtime.unsubscribe("ada", "user:ada", "that is enough") == 1
        with pytest.raises(RealtimeError, match=r"^that is enough \(forbidden\)$"):
            await next_of(subscription)


async def test_events_of_the_application(serve: Any) -> None:
    realtime = await serve()

    @realtime.on_connect
    def connected(socket: Any, request: Any) -> None:
        socket.on("double", lambda number: socket.emit("doubled", 2 * number))

    seen: list[int] = []
    async with client(realtime) as rt:
        rt.on("doubled", lambda event: seen.append(event.data), type=int)
        assert rt.emit("double", 21)
        await until(lambda: seen == [42])


async def test_a_client_keeps_below_the_rates_of_the_server(serve: Any) -> None:
    limits = Limits(
        messages_per_second=200, messages_burst=20, channels_per_connection=5, channel_messages_per_second=None
    )
    realtime = await serve(limits=limits)
    async with client(realtime, queue_size=500) as rt:
        subscription = await rt.subscribe("room:1")
        await asyncio.gather(*(rt.publish("room:1", number) for number in range(150)))
        assert [await next_of(subscription) for _ in range(150)] == list(range(150))
        assert realtime.stats()["server"]["events_rate_limited"] == 0


async def test_a_client_that_was_above_a_rate_slows_down_and_loses_nothing(serve: Any) -> None:
    """The limit of bytes is not in the welcome: the first burst is too much."""
    realtime = await serve(limits=Limits(bytes_per_second=65_536, messages_burst=100, messages_per_second=100))
    async with client(realtime, request_timeout_s=30) as rt:
        subscription = await rt.subscribe("room:1")
        texts = [f"{number}" * 8_000 for number in range(10)]
        published = await asyncio.gather(*(rt.publish("room:1", text) for text in texts))
        assert realtime.stats()["server"]["events_rate_limited"] > 0
        assert not any(one.duplicate for one in published)
        assert sorted([await next_of(subscription) for _ in texts]) == sorted(texts)
        assert len(realtime.server.clients) == 1


# --- connections that break ---------------------------------------------------------------------------------------


@pytest.mark.both_loops
async def test_each_message_once_whatever_breaks(serve: Any) -> None:
    """A publisher and a reader whose connections are cut again and again, while both go on."""
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    realtime = await serve()
    count = 60
    async with client(realtime) as ada, client(realtime) as ben:
        heard = await ben.subscribe("room:1")

        async def publish() -> None:
            for number in range(count):
                await ada.publish("room:1", number)

        async def disturb() -> None:
            while True:
                await asyncio.sleep(chance.uniform(0, 0.03))
                sockets = realtime.server.clients
                if sockets:
                    chance.choice(sockets).sink.abort()

        disturbing = asyncio.ensure_future(disturb())
        publishing = asyncio.ensure_future(publish())
        try:
            assert [await next_of(heard) for _ in range(count)] == list(range(count))
            await publishing
        finally:
            disturbing.cancel()
        page = await ada.history("room:1", limit=300)
        assert [message.data for message in page.messages] == list(range(count))
        assert heard.gaps == 0


async def test_two_hundred_clients_come_back_at_once(serve: Any) -> None:
    """Nobody misses a message, and nobody gets one twice."""
    realtime = await serve()
    count, clients = 30, 200
    seen: list[list[int]] = [[] for _ in range(clients)]
    gaps: list[Gap] = []
    async with contextlib.AsyncExitStack() as stack:
        for numbers in seen:
            rt = await stack.enter_async_context(client(realtime))
            rt.subscribe("room:1", lambda message, numbers=numbers: numbers.append(message.data), on_gap=gaps.append)
        await until(lambda: realtime.hub.connection_count("room:1") == clients)
        for number in range(count):
            realtime.publish("room:1", number)
            if number % 10 == 5:
                cut_all(realtime)
            await asyncio.sleep(0.01)
        await until(lambda: all(len(numbers) >= count for numbers in seen))
        await asyncio.sleep(0.05)
        assert seen == [list(range(count))] * clients
        assert gaps == []


async def test_what_the_history_has_lost_is_told(serve: Any) -> None:
    realtime = await serve(history={"room:*": History(size=3)})
    gaps: list[Gap] = []
    async with client(realtime) as rt:
        subscription = await rt.subscribe("room:1", on_gap=gaps.append)
        realtime.publish("room:1", 0)
        assert await next_of(subscription) == 0
        cut_all(realtime)
        for number in range(1, 9):
            realtime.publish("room:1", number)
        await until(lambda: realtime.stats()["realtime"]["not_recovered"] == 1)
        realtime.publish("room:1", 9)
        assert await next_of(subscription) == 9
        (gap,) = gaps
        assert (gap.channel, gap.missed) == ("room:1", 8)


@pytest.mark.both_loops
async def test_a_server_that_restarts(serve: Any) -> None:
    """It forgets its history; so the client is told, and goes on."""
    realtime = await serve()
    gaps: list[Gap] = []
    async with client(realtime) as rt:
        subscription = await rt.subscribe("room:1", on_gap=gaps.append)
        await rt.publish("room:1", "before")
        assert await next_of(subscription) == "before"
        port = realtime.port
        closing = asyncio.ensure_future(realtime.close())
        await until(lambda: rt.state == "reconnecting")
        publishing = asyncio.ensure_future(rt.publish("room:1", "meanwhile"))
        await closing
        await serve(port=port)
        assert (await publishing).duplicate is False
        await until(lambda: rt.state == "open")
        assert await next_of(subscription) == "meanwhile"
        await rt.publish("room:1", "after")
        assert await next_of(subscription) == "after"
        (gap,) = gaps
        assert gap.missed is None


async def test_a_reader_who_is_too_slow_is_sent_away_and_misses_nothing(serve: Any) -> None:
    limits = Limits(write_soft_bytes=10_000, write_hard_bytes=40_000, abort_timeout_s=0.2, history_bytes=1 << 24)
    realtime = await serve(limits=limits)
    count, text = 250, "x" * 40_000  # more than the buffers of the kernel hold, so the server sees that nobody reads
    async with client(realtime) as rt:
        subscription = await rt.subscribe("room:1", queue_size=5)
        await until(lambda: not rt._link.protocol.requests)
        for number in range(count):
            realtime.publish("room:1", [number, text])
            await asyncio.sleep(0)
        await until(lambda: realtime.stats()["loop"]["slow_consumers"] == 1)
        assert [(await next_of(subscription))[0] for _ in range(count)] == list(range(count))
        assert subscription.gaps == 0
        assert realtime.stats()["server"]["connections_opened"] == 2


async def test_a_reader_who_takes_his_time_is_not_taken_for_gone(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("street_fast.client.link._PAUSED_PING_S", 0.05)
    realtime = await serve(limits=Limits(ping_interval_s=0.3, pong_timeout_s=0.15))
    async with client(realtime) as rt:
        subscription = await rt.subscribe("room:1", queue_size=1)
        for number in range(3):
            realtime.publish("room:1", number)
        await until(lambda: rt._link._paused)
        await asyncio.sleep(1)
        assert realtime.session_count == 1
        assert [await next_of(subscription) for _ in range(3)] == [0, 1, 2]


# --- tokens -------------------------------------------------------------------------------------------------------


async def test_tokens_are_renewed_in_the_middle_of_everything(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("street_fast.client.protocol._RENEW_LEAST_S", 0.05)
    auth = JwtAuth(SECRET)
    realtime = await serve(auth=auth, guests=False, limits=FREE)
    made: list[str] = []

    def token() -> str:
        made.append(token_of("ada", lasting_s=1.2))
        return made[-1]

    async with client(realtime, token=token) as rt:
        subscription = await rt.subscribe("room:1")
        connections = realtime.server.counters.connections_opened
        number = 0
        while len(made) < 3:
            realtime.publish("room:1", number)
            assert await next_of(subscription) == number
            number += 1
            await asyncio.sleep(0.05)
        assert rt.state == "open"
        assert realtime.server.counters.connections_opened == connections


async def test_a_token_that_ends_with_no_other(serve: Any) -> None:
    limits = Limits(token_grace_s=0.05, token_skew_s=0.05, retry_hint_s=0.1)
    realtime = await serve(auth=JwtAuth(SECRET, limits=limits), guests=False, limits=limits)
    async with client(realtime, token=token_of("ada", lasting_s=1.0)) as rt:
        subscription = await rt.subscribe("room:1")
        with pytest.raises(ConnectionClosed) as caught:
            await next_of(subscription)
        assert (caught.value.close_code, rt.state) == (4001, "closed")


async def test_a_bad_token(serve: Any) -> None:
    realtime = await serve(auth=JwtAuth(SECRET))
    with pytest.raises(RealtimeError) as caught:
        await client(realtime, token="no token")
    assert caught.value.code == "unauthorized"


async def test_a_member_who_is_disconnected_does_not_come_back(serve: Any) -> None:
    realtime = await serve(auth=JwtAuth(SECRET))
    async with client(realtime, token=lambda: token_of("ada")) as rt:
        subscription = await rt.subscribe("room:1")
        assert realtime.disconnect("ada", reason="you are banned") == 1
        with pytest.raises(ConnectionClosed, match="you are banned"):
            await next_of(subscription)
        assert rt.state == "closed"

"""Realtime over WebSockets in memory and on real sockets: its options, logins, and what an application calls."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import logging
import math
import re
import subprocess
import sys
import weakref

import msgspec
import pytest
from websockets.asyncio.client import connect

from street_fast.auth import Member, TokenRefused
from street_fast.backplanes import History, OutcomeUnknown, Position, Published, Unavailable
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.errors import CloseCode, ConfigurationError, ConnectionClosed, HandshakeRefused, ListenError
from street_fast.http_server import HttpServer
from street_fast.hub import ChannelHub
from street_fast.limits import Limits
from street_fast.messages import decode
from street_fast.realtime import Realtime, Receipt
from street_fast.request import Request
from street_fast.server import StreetWebSocketServer
from street_fast.session import Session
from street_fast.testing import memory_client
from tests.realtime_harness import Tokens, is_empty, world_fixture

make = pytest.fixture(world_fixture)

FAST = Limits(shutdown_timeout_s=5, shutdown_batch_interval_s=0.01, abort_timeout_s=2)
ADA = Member("ada", info={"name": "Ada"})


@pytest.fixture
async def begin():
    """``await begin(**options)`` -> a Realtime that is started and attached, without a socket; closed at the end."""
    all_of_them = []

    async def begin(server=None, **options):
        if server is None:
            options.setdefault("limits", FAST)
        realtime = Realtime(server, **options)
        all_of_them.append(realtime)
        realtime.attach(HttpServer())
        await realtime.start()
        return realtime

    yield begin
    for realtime in all_of_them:
        await asyncio.wait_for(realtime.close(), 20)
        assert is_empty(realtime)


def send(client, type_, **fields):
    client.ws.send(json.dumps({"type": type_, **fields}))


async def ask(client, type_, **fields):
    """The reply or error with the id of this message; other events are dropped."""
    send(client, type_, id="the id", **fields)
    while True:
        event = await client.receive()
        if event.get("id") == "the id":
            return event["data"]


async def end_of(client):
    """Close code and reason."""
    try:
        while True:
            await client.receive()
    except ConnectionClosed as error:
        return error.close_code, error.reason


class TestOptions:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"server": "x"}, "server='x': must be a StreetWebSocketServer"),
            ({"server": StreetWebSocketServer(), "path": "/x"}, "path='/x': with server=..., give it to the server"),
            ({"server": StreetWebSocketServer(), "limits": Limits()}, "give it to the server"),
            ({"server": StreetWebSocketServer(), "allowed_origins": ["*"]}, "give it to the server"),
            ({"path": "x"}, "path='x'"),
            ({"hub": {}}, "hub={}: must be a ChannelHub"),
            ({"auth": "secret"}, "auth='secret': must be a JwtAuth"),
            ({"auth": Tokens(), "server": StreetWebSocketServer(authenticate=lambda r: ADA)}, "give one of the two"),
            ({"guests": False}, "guests=False: nobody could log in"),
            ({"guests": None}, "guests=None: must be True or False"),
            ({"authorize": True}, "authorize=True"),
            ({"authorize": lambda member: True}, "must be a function of a member, a channel and an action"),
            ({"history": History()}, "must be a mapping"),
            ({"history": {"room:*": 100}}, "history['room:*']=100: must be a History object, or None"),
            ({"history": {"": History()}}, "history: '' must be the name of a channel or a pattern"),
            ({"history": {5: History()}}, "history: 5 must be"),
            (
                {"backplane": "http://me:secret@localhost"},
                "backplane='http://localhost': must be the address of a Redis",
            ),
            ({"backplane": "localhost"}, "backplane='localhost': must be the address of a Redis"),
            ({"backplane": object()}, "it has no start, close, publish"),
            ({"api_key": "short"}, "api_key: must be a string of at least 16"),
            ({"api_key": ["k" * 16, 5]}, "api_key"),
            ({"api_key": "k" * 16 + "\n"}, "api_key"),
            ({"api_key": 5}, "api_key"),
            ({"limits": 5}, "limits=5"),
        ],
        ids=lambda value: None if isinstance(value, dict) else value[:30],
    )
    def test_wrong(self, options, words):
        with pytest.raises(ConfigurationError, match=re.escape(words)):
            Realtime(**options)

    def test_keys(self):
        assert Realtime().api_keys == ()
        assert Realtime(api_key="k" * 16).api_keys == ("k" * 16,)
        assert Realtime(api_key=["k" * 16, "l" * 20]).api_keys == ("k" * 16, "l" * 20)

    async def test_a_hub_has_one_realtime_at_a_time(self):
        hub = ChannelHub()
        realtime = Realtime(hub=hub)
        with pytest.raises(ConfigurationError, match="belongs to another Realtime"):
            Realtime(hub=hub)
        await realtime.close()
        Realtime(hub=hub)

    def test_one_handler_of_connections(self):
        realtime = Realtime()
        for wrong in (5, lambda socket: None):
            with pytest.raises(ConfigurationError, match="must be a function of a socket and a request"):
                realtime.on_connect(wrong)

        @realtime.on_connect
        def handler(socket, request): ...

        assert handler is not None
        with pytest.raises(ConfigurationError, match="there is a handler already"):
            realtime.on_connect(handler)

    async def test_the_numbers_of_the_server_are_told(self, begin):
        server = StreetWebSocketServer(
            path="/ws", heartbeat_interval_ms=1_500, limits=Limits(event_bytes=1_000, messages_per_second=None)
        )
        realtime = await begin(server, hub=ChannelHub(limits=Limits(channels_per_connection=5, channel_name_bytes=99)))
        assert server.opening_messages == 5
        async with memory_client(server) as client:
            welcome = await client.expect("welcome")
            assert welcome["data"] == {
                "id": server.clients[0].id,
                "member": {"id": welcome["data"]["member"]["id"]},
                "heartbeatMs": 1_500,
                "limits": {
                    "messageBytes": 1_000,
                    "channels": 5,
                    "channelNameBytes": 99,
                    "messagesPerSecond": None,
                    "messagesBurst": 40,
                    "bytesPerSecond": 262_144,
                },
            }
        assert realtime.stats()["server"]["connections_opened"] == 1

    async def test_it_counts_who_is_where(self, begin):
        realtime = await begin()
        async with memory_client(realtime.server) as client, memory_client(realtime.server) as other:
            for one, channel in ((client, "a"), (client, "b"), (other, "a")):
                await ask(one, "subscribe", channel=channel)
            told = realtime.stats()["realtime"]
            assert [told[name] for name in ("sessions", "members", "channels", "subscriptions")] == [2, 2, 2, 3]

    async def test_no_heartbeat(self, begin):
        realtime = await begin(limits=Limits(ping_interval_s=None, shutdown_timeout_s=2))
        async with memory_client(realtime.server) as client:
            assert (await client.expect("welcome"))["data"]["heartbeatMs"] is None

    async def test_the_heartbeat_is_a_message(self, begin):
        realtime = await begin(limits=Limits(ping_interval_s=0.05, shutdown_timeout_s=2))
        async with memory_client(realtime.server) as client:
            await client.expect("welcome")
            assert await client.expect("ping") == {"type": "ping"}
            send(client, "pong")
            assert await client.expect("ping") == {"type": "ping"}


class TestLife:
    async def test_start_and_close_any_number_of_times(self):
        realtime = Realtime(limits=FAST)
        await asyncio.gather(realtime.start(), realtime.start())
        await realtime.start()
        assert realtime.exchange.backplane.health().ok
        await asyncio.gather(realtime.close(), realtime.close())
        await realtime.close()
        await realtime.wait_closed()
        assert not realtime.exchange.backplane.health().ok
        for what in (realtime.start, realtime.serve):
            with pytest.raises(RuntimeError, match="closed; make a new one"):
                await what()

    @pytest.mark.parametrize("turns", range(8))
    async def test_closed_while_it_begins_to_serve(self, turns):
        realtime = Realtime(limits=FAST)
        serving = asyncio.ensure_future(realtime.serve(port=0))
        for _ in range(turns):
            await asyncio.sleep(0)
        await realtime.close()
        with contextlib.suppress(ListenError, RuntimeError):
            await serving
        assert realtime._http is None or realtime._http.sockets == []
        assert not realtime.exchange.backplane.health().ok

    async def test_a_start_that_fails_can_be_tried_again(self):
        class Moody(MemoryBackplane):
            fails = True

            async def start(self, sink):
                if self.fails:
                    raise OSError("no")
                await super().start(sink)

        backplane = Moody()
        realtime = Realtime(backplane=backplane, limits=FAST)
        with pytest.raises(OSError, match="no"):
            await realtime.start()
        backplane.fails = False
        await realtime.start()
        await realtime.close()

    async def test_a_client_before_the_start_is_closed(self, caplog):
        realtime = Realtime(limits=FAST)
        realtime.server.attach(HttpServer(), realtime._serve)
        async with memory_client(realtime.server) as client:
            assert (await end_of(client))[0] == CloseCode.INTERNAL_ERROR
        assert "await start() first" in caplog.text
        await realtime.close()

    async def test_serve(self):
        realtime = Realtime(limits=FAST, history={"*": History()})
        with pytest.raises(RuntimeError, match="listens nowhere"):
            realtime.port  # noqa: B018
        await realtime.serve(port=0)
        assert repr(realtime) == "<Realtime /realtime 0 clients>"
        with pytest.raises(RuntimeError, match="already listening on 127"):
            await realtime.serve(port=0)
        other = Realtime(limits=FAST)
        with pytest.raises(ListenError):
            await other.serve(port=realtime.port)
        await other.serve(port=0)
        async with connect(f"ws://127.0.0.1:{realtime.port}/realtime", compression=None) as ws:
            assert json.loads(await ws.recv())["type"] == "welcome"
            assert repr(realtime) == "<Realtime /realtime 1 clients>"
            await ws.send('{"type":"subscribe","channel":"room","id":1}')
            assert json.loads(await ws.recv())["data"]["position"]
            await realtime.close()
            await ws.wait_closed()
            assert ws.close_code == CloseCode.SERVICE_RESTART
        assert is_empty(realtime)
        await other.close()

    def test_run(self):
        code = "from street_fast import Realtime; Realtime(path='/x').run(port=0)"
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
            try:
                assert process.stdout is not None
                assert re.fullmatch(
                    r"street_fast: ws://127\.0\.0\.1:\d+/x \(Ctrl-C stops\)\n", process.stdout.readline()
                )
            finally:
                process.terminate()
            assert process.wait(10) == 0

    async def test_subprotocol(self, begin):
        realtime = await begin()
        async with memory_client(realtime.server, subprotocols=("street-fast", "bearer.x")):
            assert realtime.server.clients[-1].subprotocol == "street-fast"
        async with memory_client(realtime.server):
            assert realtime.server.clients[-1].subprotocol is None

    async def test_nothing_is_left_of_clients(self, begin):
        def sessions():
            return sum(isinstance(one, Session) for one in gc.get_objects())

        gc.collect()
        before = sessions()
        realtime = await begin(history={"*": History()})
        gone = []
        for number in range(5):
            async with memory_client(realtime.server) as client:
                await ask(client, "subscribe", channel=f"room:{number}", since="e:1:t")
                await ask(client, "typing", channel=f"room:{number}", data={"typing": True})
                gone.append(weakref.ref(realtime.server.clients[0]))
        for _ in range(3):
            await asyncio.sleep(0)
        assert is_empty(realtime)
        assert [socket() for socket in gone] == [None] * len(gone)  # without the help of the collector
        assert sessions() == before


class TestLogin:
    async def test_without_auth_all_are_guests(self, begin):
        realtime = await begin()
        async with memory_client(realtime.server) as one, memory_client(realtime.server) as two:
            members = [(await client.expect("welcome"))["data"]["member"] for client in (one, two)]
            assert all(re.fullmatch("guest-[0-9a-f]{16}", member["id"]) for member in members)
            assert members[0] != members[1]

    async def test_the_servers_authenticate_counts(self, begin, caplog):
        realtime = await begin(StreetWebSocketServer(path="/realtime", authenticate=lambda request: ADA))
        async with memory_client(realtime.server) as client:
            assert (await client.expect("welcome"))["data"]["member"] == {"id": "ada", "info": {"name": "Ada"}}
        request = Request("GET", "/realtime/sse")
        assert await realtime.identify(request) == ADA
        for authenticate in (lambda request: None, lambda request: 1 / 0, lambda request: "ada"):
            realtime.server.authenticate = authenticate
            with pytest.raises(TokenRefused):
                await realtime.identify(request)
        assert "ZeroDivisionError" in caplog.text

    @pytest.mark.parametrize("later", [False, True])
    async def test_a_token_in_the_request(self, begin, later):
        auth = Tokens(good=ADA, soon=TokenRefused("the keys cannot be had", temporary=True))
        auth.later = later
        realtime = await begin(auth=auth, guests=False)
        async with memory_client(realtime.server, "/realtime?token=good") as client:
            send(client, "publish", channel="room", data=1, id=1)
            assert (await client.expect("welcome"))["data"]["member"]["id"] == "ada"
            assert (await client.expect("reply"))["id"] == 1
            (socket,) = realtime.server.clients
            assert socket.request.member == ADA
            assert "token" not in socket.request.query  # nobody will read it, and it is a secret
        async with memory_client(realtime.server, "/realtime?token=bad") as client:
            code, reason = await end_of(client)
            assert (code, reason) == (CloseCode.UNAUTHORIZED, "token 'bad' is not good")
        async with memory_client(realtime.server, "/realtime?token=soon") as client:
            code, reason = await end_of(client)
            assert code == CloseCode.TRY_AGAIN_LATER
            assert re.fullmatch(r"the keys cannot be had; retry in [0-9.]+ s", reason)
        assert realtime.session_count == 0

    async def test_until_a_token_is_checked_nothing_is_done(self, begin):
        checked = asyncio.get_running_loop().create_future()
        auth = Tokens()
        auth.verify = lambda token: checked
        realtime = await begin(auth=auth)
        async with memory_client(realtime.server, "/realtime?token=x") as client:
            for number in range(3):
                send(client, "ping", id=number)
            assert await client.settle() == []
            checked.set_result(ADA)
            assert (await client.expect("welcome"))["data"]["member"]["id"] == "ada"
            assert [(await client.expect("reply"))["id"] for _ in range(3)] == [0, 1, 2]

    async def test_a_client_that_goes_while_its_token_is_checked(self, begin):
        auth = Tokens()
        auth.verify = lambda token: asyncio.sleep(60)
        realtime = await begin(auth=auth)
        async with memory_client(realtime.server, "/realtime?token=x") as client:
            await client.settle()
            client.transport.lose()
        for _ in range(5):
            await asyncio.sleep(0)
        realtime.server.clients[0].sink.abort()  # it is not read, so that is for a deadline to see
        for _ in range(5):
            await asyncio.sleep(0)
        assert realtime.session_count == 0
        assert not realtime.server.clients

    async def test_a_token_that_takes_too_long(self, begin):
        auth = Tokens()
        auth.verify = lambda token: asyncio.sleep(60)
        realtime = await begin(auth=auth, limits=Limits(login_timeout_s=0.05, shutdown_timeout_s=2))
        async with memory_client(realtime.server, "/realtime?token=x") as client:
            code, reason = await end_of(client)
            assert code == CloseCode.TRY_AGAIN_LATER
            assert "in time" in reason

    async def test_an_auth_that_fails(self, begin, caplog):
        auth = Tokens()
        auth.verify = lambda token: 1 / 0
        realtime = await begin(auth=auth)
        async with memory_client(realtime.server, "/realtime?token=x") as client:
            assert (await end_of(client))[0] == CloseCode.INTERNAL_ERROR
        assert "ZeroDivisionError" in caplog.text

    async def test_a_member_that_channels_cannot_take(self, begin, caplog):
        realtime = await begin(auth=Tokens(t=Member("a\nb")))
        async with memory_client(realtime.server, "/realtime?token=t") as client:
            assert (await end_of(client))[0] == CloseCode.UNAUTHORIZED
        assert realtime.session_count == 0
        assert "cannot be let in" in caplog.text

    async def test_without_a_token(self, begin):
        realtime = await begin(auth=Tokens())
        async with memory_client(realtime.server) as client:
            assert (await client.expect("welcome"))["data"]["member"]["id"].startswith("guest-")

    async def test_by_a_message(self, begin):
        met = []
        realtime = await begin(auth=Tokens(good=ADA), guests=False)
        realtime.on_connect(lambda socket, request: met.append((socket, request.member)))
        async with memory_client(realtime.server) as client:
            assert "member" not in (await client.expect("welcome"))["data"]
            assert (await ask(client, "subscribe", channel="room"))["code"] == "unauthorized"
            assert met == []
            assert await ask(client, "auth", data={"token": "good"}) == {
                "member": {"id": "ada", "info": {"name": "Ada"}}
            }
            assert met == [(realtime.server.clients[0], ADA)]
            await ask(client, "auth", data={"token": "good"})
            assert len(met) == 1


class TestApplicationsOwn:
    async def test_events(self, begin):
        realtime = await begin()

        @realtime.on_connect
        def connected(socket, request):
            socket.on("add", lambda numbers: socket.emit("sum", sum(numbers)))
            socket.emit("hello", request.member.id)

        async with memory_client(realtime.server) as client:
            me = (await client.expect("welcome"))["data"]["member"]["id"]
            assert (await client.expect("hello"))["data"] == me
            client.emit("add", [1, 2])
            assert (await client.expect("sum"))["data"] == 3
            send(client, "nobody knows it", id=1)
            assert await client.settle() == []

    @pytest.mark.parametrize("later", [False, True])
    async def test_a_coroutine(self, begin, later):
        auth = Tokens(good=ADA)
        auth.later = later
        realtime = await begin(auth=auth)
        ended = []

        @realtime.on_connect
        async def connected(socket, request):
            try:
                for number in range(3):
                    await asyncio.sleep(0)
                    socket.emit("tick", number)
                await asyncio.sleep(60)
            finally:
                ended.append(request.member)

        async with memory_client(realtime.server, "/realtime?token=good") as client:
            await client.expect("welcome")
            assert [(await client.expect("tick"))["data"] for _ in range(3)] == [0, 1, 2]
            assert (await ask(client, "ping"))["ts"]
        for _ in range(5):
            await asyncio.sleep(0)
        assert ended == [ADA]

    async def test_a_handler_that_fails(self, begin, caplog):
        realtime = await begin(auth=Tokens(good=ADA), guests=False)
        realtime.on_connect(lambda socket, request: 1 / 0)
        async with memory_client(realtime.server) as client:
            send(client, "auth", data={"token": "good"})
            assert (await end_of(client))[0] == CloseCode.INTERNAL_ERROR

    async def test_unknown_types_without_a_handler(self, begin):
        realtime = await begin()
        async with memory_client(realtime.server) as client:
            assert (await ask(client, "nonsense"))["code"] == "bad_request"

    async def test_a_hub_of_its_own(self, begin):
        hub = ChannelHub()
        realtime = await begin(hub=hub)
        async with memory_client(realtime.server) as client:
            await ask(client, "subscribe", channel="room")
            hub.publish("room", "news", {"x": 1})
            assert (await client.expect("news"))["data"] == {"x": 1}
            hub.join("lobby", "bridge", realtime.server.clients[0])  # so it hears what is published there, too
            await realtime.publish("lobby", "hi")
            assert (await client.expect("message"))["data"] == "hi"
        assert hub.channel_names() == []


class Point(msgspec.Struct):
    x: int


class TestPublish:
    async def test_to_subscribers(self, make):
        world = await make(history={"kept": History()})
        ada = world.client("ada")
        for channel in ("room", "kept"):
            await ada.say("subscribe", channel=channel)
        receipt = await world.realtime.publish("room", {"text": "hi"})
        assert receipt == Receipt(world.clock.ms(), None, False)
        receipt = await world.realtime.publish("kept", Point(1), key="k")
        assert receipt.position.offset == 1
        assert await world.realtime.publish("kept", Point(1), key="k") == receipt._replace(duplicate=True)
        first, second = ada.take_type("message")
        assert first == {"type": "message", "channel": "room", "data": {"text": "hi"}, "ts": world.clock.ms()}
        assert second["data"] == {"x": 1}
        assert second["position"] == str(receipt.position)

    async def test_it_need_not_be_awaited(self, make, caplog):
        world = await make()
        ada = world.client("ada")
        await ada.say("subscribe", channel="room")
        for number in range(3):
            world.realtime.publish("room", number)
        assert [message["data"] for message in ada.take_type("message")] == [0, 1, 2]
        gc.collect()
        assert not caplog.records

    @pytest.mark.parametrize(
        ("channel", "options", "words"),
        [
            ("", {}, "channel ''"),
            ("a\nb", {}, "channel"),
            (5, {}, "channel 5"),
            ("room", {"key": ""}, "key=''"),
            ("room", {"key": "x" * 65}, "key="),
            ("room", {"key": 5}, "key=5"),
        ],
    )
    async def test_what_cannot_be_published(self, make, channel, options, words):
        world = await make()
        with pytest.raises(ValueError, match=re.escape(words)):
            world.realtime.publish(channel, 1, **options)

    async def test_what_json_cannot_hold(self, make):
        world = await make()
        with pytest.raises(TypeError, match=r"data for channel 'room' cannot be written as JSON: .*object"):
            world.realtime.publish("room", object())

    async def test_keys_of_the_server_are_no_keys_of_a_client(self, make):
        world = await make()
        await world.realtime.publish("room", 1, key="k")
        assert "duplicate" not in await world.client("ada").done("publish", channel="room", data=1, key="k")

    async def test_notify(self, make):
        world = await make()
        ada, ben = world.client("ada"), world.client("ben")
        await ada.say("subscribe", channel="user:ada")
        await ben.say("subscribe", channel="user:ben")
        await world.realtime.notify("ada", "for you")
        assert [message["channel"] for message in ada.take_type("message")] == ["user:ada"]
        assert ben.take_type("message") == []
        for nobody in ("", None, 5):
            with pytest.raises(ValueError, match="user_id="):
                world.realtime.notify(nobody, 1)

    @pytest.mark.parametrize("at_once", [True, False])
    @pytest.mark.parametrize("error", [Unavailable("down"), OutcomeUnknown("no answer")])
    async def test_a_backplane_that_fails(self, make, caplog, error, at_once):
        class Broken(MemoryBackplane):
            def publish(self, *arguments, **options):
                if at_once:
                    raise error
                return self.fail()

            async def fail(self):
                await asyncio.sleep(0)
                raise error

        world = await make(backplane=Broken())
        with pytest.raises(type(error)):
            await world.realtime.publish("room", 1)
        await world.settle()
        assert not caplog.records
        world.realtime.publish("room", 1)
        await world.settle()
        assert [record.message for record in caplog.records] == [f"publishing to channel 'room' failed: {error}"]
        for _ in range(100):
            world.realtime.publish("room", 1)
        await world.settle()
        assert len(caplog.records) == 1  # a broker that is away does not fill the disk
        told = world.realtime.stats()["realtime"]
        assert (told["unavailable"], told["unknown"]) == ((102, 0) if isinstance(error, Unavailable) else (0, 102))

    async def test_a_backplane_that_answers_later(self, make):
        answers = []

        class Late(MemoryBackplane):
            def publish(self, *arguments, **options):
                answers.append(asyncio.get_running_loop().create_future())
                return answers[-1]

        world = await make(backplane=Late())
        published = world.realtime.publish("room", 1)
        waiting = asyncio.ensure_future(_awaited(published))
        await world.settle()
        waiting.cancel()  # who waits may give up; the publish goes on
        await world.settle()
        assert not answers[0].cancelled()
        answers[0].set_result(Published(Position("e", 1, "t")))
        assert await published == Receipt(world.clock.ms(), Position("e", 1, "t"), False)
        assert await published == await published

    async def test_before_the_start(self):
        with pytest.raises(RuntimeError, match="not started: await its start"):
            Realtime().publish("room", 1)

    async def test_from_another_thread(self, make):
        """There it would be a race that mostly goes well."""
        world = await make()
        ada = world.client("ada")
        await ada.say("subscribe", channel="room")
        ada.take()
        with pytest.raises(RuntimeError, match="call_soon_threadsafe"):
            await asyncio.to_thread(world.realtime.publish, "room", 1)

        def publish_elsewhere():
            async def publish():
                world.realtime.notify("ada", 1)

            asyncio.run(publish())

        with pytest.raises(RuntimeError, match="call_soon_threadsafe"):
            await asyncio.to_thread(publish_elsewhere)
        loop = asyncio.get_running_loop()
        await asyncio.to_thread(loop.call_soon_threadsafe, world.realtime.publish, "room", 2)
        await asyncio.sleep(0)
        assert [message["data"] for message in ada.take()] == [2]


async def _awaited(awaitable):
    return await awaitable


class TestQuestions:
    async def test_who_is_there(self, make):
        world = await make()
        for member in (ADA, Member("ben")):
            await world.client(member).say("subscribe", channel="room")
        assert world.realtime.presence("room") == ["ada", "ben"]
        assert world.realtime.members("room") == [{"memberId": "ada", "info": {"name": "Ada"}}, {"memberId": "ben"}]
        assert world.realtime.presence("elsewhere") == []

    async def test_history(self, make):
        world = await make(history={"kept": History()})
        assert await world.realtime.history("kept") == []
        for number in range(60):
            world.realtime.publish("kept", number)
        await world.client("ada").say("publish", channel="kept", data={"n": 60})
        messages = await world.realtime.history("kept")
        assert len(messages) == 50
        assert messages[-1]["data"] == {"n": 60}
        assert messages[-1]["from"] == "ada"
        assert [message["data"] for message in await world.realtime.history("kept", limit=3)][:2] == [58, 59]
        assert await world.realtime.history("room") == []
        for wrong in (-1, True, "5"):
            with pytest.raises(ValueError, match="limit="):
                await world.realtime.history("kept", wrong)

    async def test_history_with_numbers_that_are_too_large(self, make):
        """One client must not spoil it for all."""
        world = await make(history={"kept": History()})
        ada = world.client("ada")
        for text in (b"1e999", b"[-1e999,1]", b"9" * 5_000, b"1" + b"0" * 30, b"2"):
            assert ada.session.handle(decode(b'{"type":"publish","channel":"kept","data":%b}' % text)) is None
        data = [message["data"] for message in await world.realtime.history("kept")]
        assert data == [math.inf, [-math.inf, 1], math.inf, 10**30, 2]

    async def test_stats(self, make):
        world = await make(history={"*": History()})
        ada = world.client("ada")
        await ada.say("subscribe", channel="room", since="e:1:t")
        await ada.say("publish", channel="room", data=1)
        await ada.say("subscribe", channel="user:ben")
        assert world.realtime.stats()["realtime"] == {
            "sessions": 1,
            "members": 1,
            "channels": 1,
            "subscriptions": 1,
            "catching_up": 0,
            "published": 1,
            "forbidden": 1,
            "rate_limited": 0,
            "unavailable": 0,
            "unknown": 0,
            "foreign": 0,
            "recovered": 0,
            "not_recovered": 1,
        }


class TestEndings:
    async def test_unsubscribe(self, make):
        world = await make()
        clients = [world.client("ada"), world.client("ada"), world.client("ben"), world.client("ada")]
        for client in clients[:3]:
            await client.say("subscribe", channel="room")
        assert world.realtime.unsubscribe("ada", "room", "you were rude") == 2
        told = {"type": "unsubscribed", "channel": "room", "data": {"code": "forbidden", "message": "you were rude"}}
        for client in clients[:2]:
            assert client.take_type("unsubscribed") == [told]
        assert clients[3].take_type("unsubscribed") == []
        assert world.realtime.presence("room") == ["ben"]
        assert world.realtime.unsubscribe("ada", "room") == 0
        assert world.realtime.unsubscribe("nobody", "room") == 0

    async def test_disconnect(self, make):
        world = await make()
        clients = [world.client("ada"), world.client("ada"), world.client("ben")]
        assert world.realtime.disconnect("ada") == 2
        assert [client.close_code for client in clients] == [CloseCode.POLICY_VIOLATION] * 2 + [None]
        assert world.realtime.disconnect("ada") == 0
        assert world.realtime.disconnect("ben", 4_321, "bye") == 1
        assert (clients[2].close_code, clients[2].close_reason) == (4_321, "bye")
        assert world.realtime._members == {}
        for code in (1_005, 5_000):
            with pytest.raises(ValueError, match=f"code={code}"):
                world.realtime.disconnect("nobody here, and perhaps somebody elsewhere", code)

    async def test_a_member_with_many_connections_costs_no_more(self, make):
        world = await make()
        clients = [world.client("bot") for _ in range(300)]
        assert len(world.realtime._members["bot"]) == 300
        for client in clients[:299]:
            client.simulate_close()
        assert world.realtime.disconnect("bot") == 1


async def test_a_client_resubscribes_to_all_its_channels_at_once(begin, caplog):
    caplog.set_level(logging.WARNING)
    realtime = await begin()
    async with memory_client(realtime.server) as client:
        await client.expect("welcome")
        for number in range(128):
            send(client, "subscribe", channel=f"room:{number}", id=number)
        answers = [await client.receive() for _ in range(128)]
        assert [(answer["type"], answer["id"]) for answer in answers] == [("reply", number) for number in range(128)]
        for number in range(41):  # and then it has its burst, and no more
            send(client, "ping", id=number)
        kinds = [event["type"] for event in await client.settle()]
        assert kinds == ["reply"] * 40 + ["error"]


async def test_the_servers_refusals_stay(begin):
    realtime = await begin(StreetWebSocketServer(path="/realtime", authenticate=lambda request: None))
    with pytest.raises(HandshakeRefused, match="401"):
        async with memory_client(realtime.server):
            pass

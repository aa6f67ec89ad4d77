"""Clients of a Realtime that lie, flood, guess and stall: what they get, and what is left of them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import socket
import time

import pytest
from websockets.asyncio.client import connect

from street_fast.auth import Grant, Member
from street_fast.backplanes import History, Position
from street_fast.errors import CloseCode, ConnectionClosed
from street_fast.http_server import HttpServer
from street_fast.hub import ChannelHub
from street_fast.limits import Limits
from street_fast.realtime import Realtime
from street_fast.server import StreetWebSocketServer
from street_fast.session import Guest
from street_fast.testing import memory_client
from tests.realtime_harness import Tokens, is_empty, world_fixture

make = pytest.fixture(world_fixture)

UNLIMITED = Limits(messages_per_second=None, bytes_per_second=None, channel_messages_per_second=None)


@contextlib.asynccontextmanager
async def running(limits=None, *, listen=False, **options):
    limits = limits or Limits(shutdown_timeout_s=2, abort_timeout_s=0.2)
    server = StreetWebSocketServer(path="/realtime", limits=limits)
    realtime = Realtime(server, ChannelHub(limits=limits), **options)
    if listen:
        await realtime.serve(port=0)
    else:
        realtime.attach(HttpServer())
        await realtime.start()
    try:
        yield realtime
        assert is_empty(realtime)
    finally:
        await asyncio.wait_for(realtime.close(), 20)


def send(client, type_, **fields):
    client.ws.send(json.dumps({"type": type_, **fields}))


async def end_of(client):
    try:
        while True:
            await client.receive()
    except ConnectionClosed as error:
        return error.close_code


class TestFloods:
    async def test_subscriptions_without_end(self, make):
        world = await make(limits=UNLIMITED)
        ada = world.client("ada")
        codes = set()
        for number in range(20_000):
            ada.send("subscribe", channel=f"room:{number}", id=number)
            codes.update(message["data"].get("code") for message in ada.take())
        assert codes == {None, "limit_exceeded"}
        assert len(world.realtime.hub.channel_names()) == 128
        assert world.realtime.exchange.backplane.stats()["channels_subscribed"] == 128
        ada.simulate_close()
        assert world.realtime.exchange.backplane.stats()["channels_subscribed"] == 0

    async def test_in_and_out_again_is_told_ten_times_a_second(self, make):
        world = await make(limits=UNLIMITED)
        ada = world.client("ada")
        await ada.say("subscribe", channel="room")
        flappers = [world.client(f"m{number}") for number in range(50)]
        ada.take()
        sent = 0
        ada.on_deliver = lambda message: None
        for _ in range(50):  # one second
            for client in flappers:
                client.send("subscribe", channel="room")
                client.send("unsubscribe", channel="room")
            world.advance(0.02)
            events = ada.take()
            sent += len(events)
            assert all(len(event["data"]["left"]) <= 50 for event in events)
        assert sent <= 11

    async def test_ten_thousand_joins_are_not_squared(self, make):
        world = await make(limits=UNLIMITED)
        clients = [world.client(f"m{number}") for number in range(3_000)]
        size = [0]

        def count(message):
            size[0] += len(message.json)

        for client in clients:
            client.on_deliver = count
            client.send("subscribe", channel="room")
        world.advance(0.2)
        assert size[0] < 200 * len(clients)

    async def test_channel_names_that_nobody_else_knows(self, make):
        world = await make(limits=UNLIMITED, history={"*": History()})
        ada = world.client("ada")
        for number in range(15_000):
            ada.send("publish", channel=f"room:{number}", data=1)
            ada.send("history", channel=f"other:{number}")
            ada.send("subscribe", channel=f"third:{number}", since="e:1:t")
            ada.send("unsubscribe", channel=f"third:{number}")
            ada.take()
        exchange = world.realtime.exchange
        assert exchange.backplane.stats()["history_channels"] <= Limits().history_channels
        assert exchange.backplane.stats()["history_channels"] == 15_000  # only what was published is kept
        assert len(exchange.history_of.__self__._found) <= 10_000

    async def test_keys_without_end(self, make):
        world = await make(limits=Limits(channel_messages_per_second=None, publish_keys=1_000))
        ada = world.client("ada")
        for number in range(5_000):
            ada.send("publish", channel="room", data=1, key=str(number))
        assert world.realtime.exchange.backplane.stats()["publish_keys"] <= 1_000

    async def test_publishing_above_the_rate_of_the_channel_ends_in_a_close(self):
        limits = Limits(
            messages_per_second=1_000, channel_messages_per_second=10, rate_grace_s=0.2, shutdown_timeout_s=2
        )
        async with running(limits) as realtime, memory_client(realtime.server) as client:
            deadline = time.monotonic() + 5
            number = 0
            while not client.ws.closed and time.monotonic() < deadline:
                for _ in range(20):
                    number += 1
                    send(client, "publish", channel="room", data=1, id=number)
                await asyncio.sleep(0.01)
            answered = 0
            with contextlib.suppress(ConnectionClosed):
                while True:
                    event = await client.receive()
                    answered += "id" in event
            assert answered > 10
            assert client.ws.close_code == CloseCode.RATE_LIMITED

    async def test_tokens_that_are_tried_out(self, make):
        world = await make(auth=Tokens(), guests=False)
        client = world.client(None)
        assert await client.refused("auth", data={"token": "guess"}) == "unauthorized"
        assert client.close_code == CloseCode.UNAUTHORIZED  # one guess for each connection


class TestLies:
    async def test_positions_that_never_were(self, make):
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        dice = random.Random(seed)
        world = await make(limits=UNLIMITED, history={"*": History(size=20)})
        ada = world.client("ada")
        true = [(await world.realtime.publish("room", number)).position for number in range(30)]
        other = [(await world.realtime.publish("other", number)).position for number in range(30)]
        known = {str(position) for position in true}
        known.add(str(Position.start_of(true[0].epoch)))
        for _ in range(500):
            epoch, offset, tag = dice.choice([*true, *other])
            lie = Position(
                dice.choice((epoch, epoch, dice.choice(other).epoch, "e")),
                max(1, offset + dice.choice((0, 0, 1, -1, 100, 10**13))),
                dice.choice((tag, tag, dice.choice(true).tag, dice.choice(other).tag, tag[::-1], "0")),
            )
            if str(lie) in known:
                continue
            answer = await ada.done("subscribe", channel="room", since=str(lie))
            assert (answer["recovered"], answer["messages"]) == (False, []), lie
            assert answer["position"] == str(true[-1])
            page = await ada.done("history", channel="room", data={"since": str(lie)})
            assert (page["recovered"], page["messages"]) == (False, []), lie

    @pytest.mark.parametrize(
        "since",
        ["", ":", "::", "e:1", "e:1:t:x", "e:-1:t", "e:01:t", "e:1.0:t", "e:1:", ":1:t", "e:1:t\n", "e:9" * 30, "\x00"],
    )
    async def test_what_is_no_position(self, make, since):
        world = await make(history={"*": History()})
        ada = world.client("ada")
        assert await ada.refused("subscribe", channel="room", since=since) == "bad_request"
        assert await ada.refused("history", channel="room", data={"since": since}) == "bad_request"
        assert ada.session.subscriptions == []

    async def test_nobody_speaks_for_another(self, make):
        """What a client says about itself is not looked at."""
        world = await make()
        ada, ben = world.client("ada"), world.client("ben")
        await ben.say("subscribe", channel="room")
        fields = {"from": "ben", "memberId": "ben", "member": {"id": "ben"}, "ts": 1, "position": "e:1:t"}
        await ada.say("publish", channel="room", data=1, **fields)
        (message,) = ben.take_type("message")
        assert message["from"] == "ada"
        assert message["ts"] == world.clock.ms()
        assert "position" not in message
        await ada.say("subscribe", channel="room", **fields)
        await ada.say("typing", channel="room", data={"typing": True, "memberId": "cem"})
        assert [message["data"]["memberId"] for message in ben.take_type("typing")] == ["ada"]


CHANNELS = ("public", "private", "user:ada", "user:ben", "granted")
ALLOWED = {
    "ada": {(action, "public") for action in ("subscribe", "publish", "presence", "history")}
    | {(action, "user:ada") for action in ("subscribe", "presence", "history")}
    | {("subscribe", "granted"), ("history", "granted")},
    "guest": {("subscribe", "public")},
    "expired": {(action, "user:ada") for action in ("subscribe", "presence", "history")},
}


class TestWhoMayDoWhat:
    """Every action in every channel by everybody: what is not granted is refused, and nothing comes of it."""

    @pytest.mark.parametrize("who", list(ALLOWED))
    @pytest.mark.parametrize("later", [False, True])
    async def test_matrix(self, make, who, later):
        auth = Tokens()
        allowed = ALLOWED[who]

        def authorize(member, channel, action):
            assert member.id == ("ada" if who != "guest" else "guest-1")
            return who != "expired" and channel == "public" and (action, channel) in allowed

        async def authorize_later(*arguments):
            await asyncio.sleep(0)
            return authorize(*arguments)

        world = await make(
            limits=UNLIMITED,
            auth=auth,
            authorize=authorize_later if later else authorize,
            history={"*": History()},
        )
        auth.tokens["t"] = Grant(frozenset(("subscribe", "history")), world.clock() + (50 if who == "expired" else 1e6))
        client = world.client(Guest("guest-1") if who == "guest" else Member("ada"))
        if who != "guest":
            await client.say("subscribe", channel="granted", token="t")
        watcher = world.client("watcher")
        for channel in CHANNELS:
            world.realtime.hub.join(channel, "watcher", watcher)
        world.advance(100)
        watcher.take()
        for channel in CHANNELS:
            for action in ("subscribe", "publish", "presence", "history"):
                answer = await client.ask(action, channel=channel, data={"limit": 1})
                assert (answer["type"] == "reply") is ((action, channel) in allowed), (action, channel, answer)
                if answer["type"] == "error":
                    assert answer["data"]["code"] == "forbidden"
                else:
                    seen = answer["data"].keys() & {"members", "memberCount", "typing"}
                    assert not seen or ("presence", channel) in allowed
        assert set(client.session.subscriptions) == {
            channel for channel in CHANNELS if ("subscribe", channel) in allowed
        }
        got = {message["channel"] for message in watcher.take_type("message")}
        assert got == {channel for channel in CHANNELS if ("publish", channel) in allowed}
        # Nor does it overhear anything.
        client.take()
        for channel in CHANNELS:
            world.realtime.publish(channel, "secret")
        heard = {message["channel"] for message in client.take_type("message")}
        assert heard == {channel for channel in CHANNELS if ("subscribe", channel) in allowed}

    async def test_who_is_taken_out_hears_nothing_more(self, make):
        world = await make()
        ada = world.client("ada")
        await ada.say("subscribe", channel="room")
        world.realtime.unsubscribe("ada", "room")
        ada.take()
        world.realtime.publish("room", 1)
        world.advance(1)
        assert ada.take() == []


class TestMalformed:
    @pytest.mark.parametrize(
        "text",
        [
            b'{"type":"publish","channel":"room","data":%b%b}' % (b"[" * 33, b"]" * 33),
            b'{"type":"publish","channel":"room","data":%b%b}' % (b"[" * 30_000, b"]" * 30_000),
            b'{"type":"publish","channel":"room","data":{"a":1}',
            b'{"type":"publish","channel":"room","data":01}',
            b'{"type":"publish","channel":"room","data":nul}',
            b'{"type":"publish","channel":"room","data":"\\ud800"}',
            b'{"type":"publish","channel":5,"data":1}',
            b'{"type":"subscribe","channel":"room","since":5}',
            b'{"type":"subscribe","channel":"room","id":1.5}',
            b'{"type":"subscribe","channel":"room","id":[1]}',
            b'{"type":5}',
            b'{"channel":"room"}',
            b"[]",
            b"",
            b"\xef\xbb\xbf{}",
        ],
        ids=lambda text: text[:60].decode("latin-1"),
    )
    async def test_it_is_said_and_in_the_end_closed(self, text):
        async with (
            running(dataclasses.replace(UNLIMITED, shutdown_timeout_s=2, abort_timeout_s=0.2)) as realtime,
            memory_client(realtime.server) as client,
            memory_client(realtime.server) as other,
        ):
            send(other, "subscribe", channel="room")
            for _ in range(9):
                client.ws.send(text.decode())
            await client.settle()
            send(client, "ping")  # a good one in between: it begins to count anew
            for _ in range(9):
                client.ws.send(text.decode())
            events = await client.settle()
            assert [event.get("data", {}).get("code") for event in events] == [None] + ["bad_request"] * 9
            client.ws.send(text.decode())
            assert await end_of(client) == CloseCode.POLICY_VIOLATION
            assert "message" not in {event["type"] for event in await other.settle()}

    async def test_bytes_that_are_no_text_reach_nobody(self):
        async with (
            running() as realtime,
            memory_client(realtime.server) as client,
            memory_client(realtime.server) as other,
        ):
            send(other, "subscribe", channel="room")
            await other.settle()
            from street_fast._core import Frame

            frame = Frame.binary(b'{"type":"publish","channel":"room","data":"\xff"}')
            client.ws.send(frame)
            await client.settle()
            assert await other.settle() == []


async def test_a_slow_client_recovers_over_a_real_socket_and_is_not_evicted():
    """What it missed is eight times what a slow client may have waiting; a bystander loses nothing meanwhile."""
    limits = Limits(
        messages_per_second=None,
        bytes_per_second=None,
        write_hard_bytes=262_144,
        history_bytes=8_000_000,
        shutdown_timeout_s=2,
    )
    async with running(limits, listen=True, history={"*": History(size=200)}) as realtime:
        url = f"ws://127.0.0.1:{realtime.port}/realtime"
        start = (await realtime.publish("room", 0)).position
        for number in range(1, 61):
            await realtime.publish("room", [number, "x" * 32_768])
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", realtime.port))
        async with (
            connect(url, compression=None) as bystander,
            connect(url, sock=sock, compression=None, max_queue=1, ping_interval=None) as slow,
        ):
            await bystander.send('{"type":"subscribe","channel":"room","id":1}')
            while json.loads(await bystander.recv())["type"] != "reply":
                pass
            await slow.send(json.dumps({"type": "subscribe", "channel": "room", "since": str(start), "id": 1}))
            await asyncio.sleep(0.2)  # it does not read at all
            for number in range(61, 81):
                await realtime.publish("room", [number, "y" * 1_000])
            got, seen = [], []
            while len(seen) < 20:
                event = json.loads(await asyncio.wait_for(bystander.recv(), 20))
                if event["type"] == "message":
                    seen.append(event["data"][0])
            while len(got) < 80:
                event = json.loads(await asyncio.wait_for(slow.recv(), 20))
                if event["type"] == "reply":
                    assert event["data"]["recovered"] is True
                    got += [message["data"][0] for message in event["data"]["messages"]]
                elif event["type"] == "message":
                    got.append(event["data"][0])
                else:
                    assert event["type"] in ("welcome", "presence"), event
            assert got == list(range(1, 81))
            assert seen == list(range(61, 81))
            for _ in range(100):
                if not realtime.exchange.catching_up:
                    break
                await asyncio.sleep(0.01)
            await realtime.publish("room", ["live"])
            assert json.loads(await asyncio.wait_for(slow.recv(), 20))["data"] == ["live"]
        stats = realtime.stats()
        assert stats["loop"]["slow_consumers"] == 0
        assert stats["realtime"]["recovered"] == 1
        await realtime.close()


async def test_clients_that_come_and_go_at_any_moment_leave_nothing():
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    auth = Tokens(good=Member("ada", expires_at=time.time() + 1_000), channel=Grant(frozenset(("subscribe",)), 1e10))

    async def authorize(member, channel, action):
        for _ in range(dice.randrange(3)):
            await asyncio.sleep(0)
        return dice.random() < 0.9

    limits = Limits(
        messages_per_second=None,
        bytes_per_second=None,
        shutdown_timeout_s=2,
        abort_timeout_s=0.2,
        write_soft_bytes=1_000,
    )

    async def client(realtime):
        auth.later = dice.random() < 0.5
        token = dice.choice(("", "?token=good", "?token=bad"))
        async with memory_client(realtime.server, f"/realtime{token}") as client:
            positions = ["e:1:t", str(realtime.last)]
            for _ in range(dice.randrange(20)):
                channel = f"room:{dice.randrange(3)}"
                fields = {"channel": channel, "id": 1}
                kind = dice.choice(
                    ("subscribe", "unsubscribe", "publish", "typing", "presence", "history", "auth", "x")
                )
                if kind == "subscribe" and dice.random() < 0.5:
                    fields["since"] = dice.choice(positions)
                if kind == "subscribe" and dice.random() < 0.3:
                    fields["token"] = "channel"
                data = {"publish": "x" * 500, "typing": {"typing": True}, "auth": {"token": "good"}}.get(kind, {})
                send(client, kind, **fields, data=data)
                if dice.random() < 0.3:
                    await asyncio.sleep(0)
            stalled = dice.random() < 0.3
            if stalled:
                client.transport.stall()
            if dice.random() < 0.5:
                for _ in range(dice.randrange(30)):
                    await asyncio.sleep(0)
            if stalled or dice.random() < 0.5:
                client.ws.abort()

    async with running(limits, auth=auth, authorize=authorize, history={"*": History(size=5)}) as realtime:
        realtime.last = (await realtime.publish("room:0", 0)).position
        for _ in range(15):
            await asyncio.gather(*(client(realtime) for _ in range(8)))
            realtime.last = (await realtime.publish(f"room:{dice.randrange(3)}", "x" * 500)).position
        for _ in range(300):
            if is_empty(realtime) and not realtime.server.clients:
                break
            await asyncio.sleep(0.01)
        assert realtime.exchange.backplane.stats()["channels_subscribed"] == 0

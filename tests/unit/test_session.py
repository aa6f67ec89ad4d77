"""What one client of a Realtime may ask for, and what it gets: every message, every code, every limit."""

from __future__ import annotations

import asyncio
import json
import logging

import pytest

from street_fast.auth import Grant, Member, TokenRefused
from street_fast.backplanes import History, OutcomeUnknown, Position, Published, Unavailable
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.errors import CloseCode
from street_fast.limits import Limits
from street_fast.messages import Envelope
from street_fast.session import Guest
from street_fast.street_socket import UNHANDLED
from tests.connection_harness import Panic
from tests.realtime_harness import Tokens, is_empty, world_fixture

make = pytest.fixture(world_fixture)


@pytest.fixture
async def world(make):
    return await make(history={"kept:*": History(size=10)})


class TestSubscribe:
    async def test_the_reply_says_who_is_there(self, world):
        ada = world.client(Member("ada", info={"name": "Ada"}))
        assert await ada.done("subscribe", channel="room") == {
            "members": [{"memberId": "ada", "info": {"name": "Ada"}}]
        }
        ben = world.client("ben")
        await ada.say("typing", channel="room", data={"typing": True})
        assert await ben.done("subscribe", channel="room") == {
            "members": [{"memberId": "ada", "info": {"name": "Ada"}}, {"memberId": "ben"}],
            "typing": ["ada"],
        }
        assert ada.session.subscriptions == ["room"]

    async def test_the_others_hear_of_it_in_differences(self, world):
        ada, ben = world.client("ada"), world.client("ben")
        await ada.done("subscribe", channel="room")
        await ben.done("subscribe", channel="room")
        assert ada.take() == []
        world.advance(0.2)
        event = {"joined": [{"memberId": "ada"}, {"memberId": "ben"}], "left": [], "memberCount": 2}
        assert [(m["type"], m["channel"], m["data"]) for m in ada.take()] == [("presence", "room", event)]
        await ben.done("unsubscribe", channel="room")
        world.advance(0.2)
        assert [m["data"] for m in ada.take()] == [{"joined": [], "left": [{"memberId": "ben"}], "memberCount": 1}]

    async def test_again_is_answered_as_the_first_time(self, world):
        ada = world.client("ada")
        assert await ada.done("subscribe", channel="room") == await ada.done("subscribe", channel="room")
        await ada.done("publish", channel="room", data=1)
        assert len(ada.take_type("message")) == 1
        assert ada.session.subscriptions == ["room"]

    async def test_without_an_id_there_is_no_reply(self, world):
        ada = world.client("ada")
        await ada.say("subscribe", channel="room")
        await ada.say("unsubscribe", channel="room")
        await ada.say("publish", channel="room", data=1)
        assert ada.take() == []
        await ada.say("subscribe", channel="")
        (error,) = ada.take()
        assert error["type"] == "error"
        assert "id" not in error

    @pytest.mark.parametrize("channel", [None, "", "x" * 256, "a\nb", "\x00", "ü" * 128, "\x7f"])
    @pytest.mark.parametrize("type_", ["subscribe", "publish", "presence", "history", "typing"])
    async def test_what_is_no_channel_name(self, world, type_, channel):
        ada = world.client("ada")
        assert await ada.refused(type_, channel=channel, data={"typing": True}) == "bad_request"

    async def test_more_channels_than_allowed(self, make):
        world = await make(limits=Limits(channels_per_connection=3))
        ada = world.client("ada")
        for number in range(3):
            await ada.done("subscribe", channel=f"room:{number}")
        for number in range(3, 50):
            assert await ada.refused("subscribe", channel=f"room:{number}") == "limit_exceeded"
        assert await ada.done("subscribe", channel="room:1")
        await ada.done("unsubscribe", channel="room:0")
        await ada.done("subscribe", channel="room:3")
        assert ada.session.subscriptions == ["room:1", "room:2", "room:3"]
        assert world.realtime.exchange.backplane.stats()["channels_subscribed"] == 3

    async def test_above_so_many_members_only_their_number(self, make):
        world = await make(limits=Limits(presence_members=3))
        ada = world.client("ada")
        for name in ("ada", "ben", "cem"):
            answer = await (ada if name == "ada" else world.client(name)).done("subscribe", channel="room")
        assert len(answer["members"]) == 3
        assert await world.client("dan").done("subscribe", channel="room") == {"memberCount": 4}
        assert await ada.done("presence", channel="room") == {"memberCount": 4}
        world.advance(1)
        assert [m["data"] for m in ada.take_type("presence")] == [{"memberCount": 4}]
        world.clients.pop().simulate_close()
        world.advance(1)
        assert [m["data"] for m in ada.take_type("presence")] == [
            {"joined": [], "left": [{"memberId": "dan"}], "memberCount": 3}
        ]
        assert [m["memberId"] for m in (await ada.done("presence", channel="room"))["members"]] == ["ada", "ben", "cem"]

    async def test_members_with_much_info_are_told_by_number_too(self, make):
        world = await make(limits=Limits(write_hard_bytes=65_536, write_soft_bytes=65_536))
        clients = [world.client(Member(f"m{number}", info={"x": "x" * 900})) for number in range(30)]
        for client in clients:
            answer = await client.done("subscribe", channel="room")
        assert answer == {"memberCount": 30}
        world.advance(1)
        assert clients[0].take_type("presence")[0]["data"] == {"memberCount": 30}

    async def test_the_position_is_where_live_begins(self, world):
        ada, ben = world.client("ada"), world.client("ben")
        assert (await ada.done("subscribe", channel="kept:1"))["position"].endswith(":0:0")
        published = await ben.done("publish", channel="kept:1", data=1)
        assert (await ben.done("subscribe", channel="kept:1"))["position"] == published["position"]
        (message,) = ada.take_type("message")
        assert message["position"] == published["position"]
        assert ben.take() == []


class TestUnsubscribe:
    async def test_what_comes_then_does_not_arrive(self, world):
        ada, ben = world.client("ada"), world.client("ben")
        await ada.done("subscribe", channel="room")
        assert await ada.done("unsubscribe", channel="room") == {}
        await ben.done("publish", channel="room", data=1)
        assert ada.take() == []
        assert ada.session.subscriptions == []

    async def test_what_is_not_subscribed_is_not_missed(self, world):
        ada = world.client("ada")
        for channel in ("room", "", "\x00", "x" * 10_000):
            assert await ada.done("unsubscribe", channel=channel) == {}
        assert await ada.refused("unsubscribe") == "bad_request"


class TestPublish:
    async def test_subscribers_get_it_the_publisher_too(self, world):
        ada, ben = world.client("ada"), world.client("ben")
        await ada.done("subscribe", channel="room")
        answer = await ben.done("publish", channel="room", data={"text": "hällo"})
        assert answer == {"ts": world.clock.ms()}
        await ada.say("publish", channel="room", payload=[1])
        first, second = ada.take()
        assert first == {
            "type": "message",
            "channel": "room",
            "data": {"text": "hällo"},
            "ts": world.clock.ms(),
            "from": "ben",
        }
        assert (second["data"], second["from"]) == ([1], "ada")
        assert ben.take() == []

    async def test_data_goes_through_to_the_byte(self, world):
        ada, frames = world.client("ada"), []
        ada.on_deliver = lambda message: frames.append(message.json)
        await ada.say("subscribe", channel='a"b\\c</script>\u2028')
        data = b' {"big" :123456789012345678901234567890, "d":1.50, "d":2,\n\t"\\u00e9":"\xc3\xa9"} '
        channel = json.dumps('a"b\\c</script>\u2028').encode()
        ada.session.handle(_decoded(b'{"type":"publish","channel":%b,"data":%b}' % (channel, data)))
        (frame,) = frames
        assert b'"data":%b,"ts"' % data.strip() in frame
        assert json.loads(frame)["channel"] == 'a"b\\c</script>\u2028'

    @pytest.mark.parametrize("data", [None, 0, "", [], {}, False])
    async def test_any_json_is_data(self, world, data):
        ada = world.client("ada")
        await ada.say("subscribe", channel="room")
        await ada.done("publish", channel="room", data=data)
        assert ada.take_type("message")[0]["data"] == data

    async def test_without_data(self, world):
        assert await world.client("ada").refused("publish", channel="room") == "bad_request"

    async def test_nothing_is_kept_of_channels_that_nobody_is_in(self, world):
        ada = world.client("ada")
        for number in range(1_000):
            world.clock.advance(1)
            await ada.say("publish", channel=f"room:{number}", data=number)
        assert world.realtime.hub.channel_names() == []

    async def test_the_rate_of_a_channel_is_that_of_all_its_publishers(self, make):
        world = await make(limits=Limits(channel_messages_per_second=5))
        ada, ben = world.client("ada"), world.client("ben")
        for _ in range(3):
            await ada.done("publish", channel="room", data=1)
        for _ in range(2):
            await ben.done("publish", channel="room", data=1)
        assert (ada.abuse, ben.abuse) == (0, 0)
        assert await ada.refused("publish", channel="room", data=1) == "rate_limited"
        assert await ben.refused("publish", channel="room", data=1) == "rate_limited"
        assert (ada.abuse, ben.abuse) == (1, 1)
        await ada.done("publish", channel="other", data=1)
        world.advance(0.2)
        await ben.done("publish", channel="room", data=1)
        assert await ben.refused("publish", channel="room", data=1) == "rate_limited"
        world.advance(10)
        for _ in range(5):
            await ada.done("publish", channel="room", data=1)
        assert await ada.refused("publish", channel="room", data=1) == "rate_limited"
        assert world.realtime.stats()["realtime"]["rate_limited"] == 4

    async def test_rates_of_channels_are_not_kept_for_ever(self, world):
        ada = world.client("ada")
        for number in range(20_000):
            world.clock.advance(0.001)
            ada.send("publish", channel=f"room:{number}", data=1)
        assert len(world.realtime.exchange._full_at) <= 1_100

    async def test_no_rate(self, make):
        world = await make(limits=Limits(channel_messages_per_second=None))
        ada = world.client("ada")
        for _ in range(2_000):
            ada.send("publish", channel="room", data=1)
        assert ada.take() == []
        assert world.realtime.exchange._full_at == {}

    async def test_a_key_makes_a_retry_harmless(self, world):
        ada, ben = world.client("ada"), world.client("ben")
        await ada.say("subscribe", channel="kept:1")
        first = await ben.done("publish", channel="kept:1", data=1, key="k")
        again = await ben.done("publish", channel="kept:1", data=1, key="k")
        assert again == {**first, "duplicate": True}
        assert await ada.done("publish", channel="kept:1", data=2, key="k") != again  # a key of another member
        assert [message["data"] for message in ada.take_type("message")] == [1, 2]
        assert "position" not in await ben.done("publish", channel="room", data=1, key="k")
        assert (await ben.done("publish", channel="room", data=1, key="k"))["duplicate"] is True

    async def test_a_guest_that_comes_back_is_known_by_its_key(self, world):
        """It has another id then, so guests have their keys in common; members and the application have their own."""
        ada = world.client("ada")
        await ada.say("subscribe", channel="kept:1")
        first = await world.client(Guest("guest-1")).done("publish", channel="kept:1", data=1, key="k")
        again = await world.client(Guest("guest-2")).done("publish", channel="kept:1", data=1, key="k")
        assert again == {**first, "duplicate": True}
        await ada.done("publish", channel="kept:1", data=2, key="k")
        await world.client("guest").done("publish", channel="kept:1", data=3, key="k")
        await world.realtime.publish("kept:1", 4, key="k")
        assert [message["data"] for message in ada.take_type("message")] == [1, 2, 3, 4]

    @pytest.mark.parametrize("key", ["", "x" * 65, "ü" * 33])
    async def test_keys_that_are_none(self, world, key):
        assert await world.client("ada").refused("publish", channel="room", data=1, key=key) == "bad_request"

    async def test_the_longest_key(self, world):
        assert await world.client("ada").done("publish", channel="room", data=1, key="ü" * 32)

    @pytest.mark.parametrize("later", [False, True])
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (Unavailable("no"), "unavailable"),
            (OutcomeUnknown("?"), "unknown"),
            (Panic(), "unknown"),
            (OSError(), "unknown"),
        ],
        ids=lambda value: type(value).__name__,
    )
    async def test_a_backplane_that_fails(self, make, caplog, error, code, later):
        class Broken(MemoryBackplane):
            def publish(self, *arguments, **options):
                if not later:
                    raise error
                return self.fail()

            async def fail(self):
                await asyncio.sleep(0)
                raise error

        world = await make(backplane=Broken())
        assert await world.client("ada").refused("publish", channel="room", data=1, key="k") == code
        assert bool(caplog.records) is isinstance(error, (Panic, OSError))
        told = world.realtime.stats()["realtime"]
        assert {name: told[name] for name in ("unavailable", "unknown")} == {"unavailable": 0, "unknown": 0, code: 1}

    async def test_a_backplane_that_answers_later(self, make):
        answer = asyncio.get_running_loop().create_future()

        class Late(MemoryBackplane):
            def publish(self, *arguments, **options):
                return answer

        world = await make(backplane=Late())
        ada = world.client("ada")
        left = ada.send("publish", channel="room", data=1, id="p")
        assert ada.take() == []
        answer.set_result(Published(Position("e", 7, "t")))
        await left
        assert [message["data"] for message in ada.take()] == [{"ts": world.clock.ms(), "position": "e:7:t"}]


def _decoded(text):
    from street_fast.messages import decode

    return decode(text)


class TestTyping:
    async def test_the_others_hear_of_it(self, world):
        ada, ben = world.client("ada"), world.client("ben")
        for client in (ada, ben):
            await client.say("subscribe", channel="room")
        assert await ada.done("typing", channel="room", data={"typing": True}) == {}
        await ada.say("typing", channel="room", payload={"typing": True})
        assert ada.take() == []
        assert [m["data"] for m in ben.take()] == [{"memberId": "ada", "typing": True}]
        world.advance(6)
        assert [m["data"] for m in ben.take_type("typing")] == [{"memberId": "ada", "typing": False}]

    async def test_not_more_often_than_messages_are_published(self, make):
        """Each beginning goes to everybody, and so does each end."""
        world = await make(limits=Limits(channel_messages_per_second=5, messages_per_second=None))
        ada, ben, cem = (world.client(name) for name in ("ada", "ben", "cem"))
        for client in (ada, ben, cem):
            await client.say("subscribe", channel="room")
        cem.take()
        for _ in range(20):
            for client in (ada, ben):
                await client.say("typing", channel="room", data={"typing": True})
                await client.say("typing", channel="room", data={"typing": False})
        assert len(cem.take_type("typing")) == 10
        assert ada.abuse + ben.abuse == 35
        assert ada.take_type("error") == []  # who does not ask for an answer gets none
        assert await ada.refused("typing", channel="room", data={"typing": True}) == "rate_limited"
        for _ in range(5):
            await cem.done("publish", channel="room", data=1)  # publishing does not suffer from it
        world.advance(0.2)
        await ada.done("typing", channel="room", data={"typing": True})
        for _ in range(20):
            await ada.done("typing", channel="room", data={"typing": True})  # no news, and no event
        assert len(cem.take_type("typing")) == 1

    async def test_who_is_not_subscribed_does_not_type(self, world):
        ada = world.client("ada")
        await world.client("ada").say("subscribe", channel="room")  # another connection of the same member
        assert await ada.refused("typing", channel="room", data={"typing": True}) == "not_subscribed"
        assert world.realtime.hub.typing_members("room") == []

    @pytest.mark.parametrize("data", [None, {}, {"typing": 1}, {"typing": None}, True, [True]])
    async def test_what_is_no_typing(self, world, data):
        ada = world.client("ada")
        await ada.say("subscribe", channel="room")
        assert await ada.refused("typing", channel="room", data=data) == "bad_request"


class TestHistory:
    async def test_the_newest_oldest_first(self, world):
        ada = world.client("ada")
        positions = [(await ada.done("publish", channel="kept:1", data=n))["position"] for n in range(5)]
        answer = await ada.done("history", channel="kept:1", data={"limit": 2})
        assert answer["position"] == positions[-1]
        assert [(m["data"], m["position"]) for m in answer["messages"]] == [(3, positions[3]), (4, positions[4])]
        assert set(answer["messages"][0]) == {"type", "channel", "data", "ts", "from", "position"}
        assert len((await ada.done("history", channel="kept:1"))["messages"]) == 5

    async def test_since(self, world):
        ada = world.client("ada")
        positions = [(await ada.done("publish", channel="kept:1", data=n))["position"] for n in range(15)]
        answer = await ada.done("history", channel="kept:1", data={"limit": 2, "since": positions[8]})
        assert [m["data"] for m in answer["messages"]] == [9, 10]
        assert answer["recovered"] is True
        assert answer["position"] == positions[-1]
        answer = await ada.done("history", channel="kept:1", data={"since": positions[0]})
        assert answer == {"messages": [], "position": positions[-1], "recovered": False}

    async def test_without_messages(self, world):
        answer = await world.client("ada").done("history", channel="kept:1")
        assert answer["messages"] == []
        assert Position.parse(answer["position"]).offset == 0

    @pytest.mark.parametrize(
        "data", [{"limit": 0}, {"limit": 301}, {"limit": -1}, {"limit": "5"}, {"since": 5}, {"since": "x"}, [], "x"]
    )
    async def test_what_is_no_request(self, world, data):
        assert await world.client("ada").refused("history", channel="kept:1", data=data) == "bad_request"

    async def test_a_channel_without_history(self, world):
        assert await world.client("ada").refused("history", channel="room") == "bad_request"

    async def test_no_reply_is_so_long_that_the_client_is_evicted_for_it(self, make):
        world = await make(limits=Limits(write_hard_bytes=100_000), history={"*": History()})
        ada = world.client("ada")
        positions = [(await ada.done("publish", channel="c", data="x" * 9_000))["position"] for _ in range(10)]
        newest = await ada.done("history", channel="c")
        assert [m["position"] for m in newest["messages"]] == positions[-2:]
        oldest = await ada.done("history", channel="c", data={"since": positions[0]})
        assert [m["position"] for m in oldest["messages"]] == positions[1:3]
        await world.realtime.publish("c", "y" * 30_000)
        assert len((await ada.done("history", channel="c"))["messages"]) == 1  # one, however long

    async def test_it_cannot_be_read_now(self, make, caplog):
        class Broken(MemoryBackplane):
            def read(self, *arguments, **options):
                raise Unavailable("no")

        world = await make(backplane=Broken(), history={"*": History()})
        ada = world.client("ada")
        assert await ada.refused("history", channel="c") == "unavailable"
        assert await ada.refused("subscribe", channel="c") == "unavailable"
        assert await ada.refused("subscribe", channel="c", since="e:1:t") == "unavailable"
        assert ada.session.subscriptions == []
        assert not caplog.records


class TestLogin:
    ADA = Member("ada", info={"name": "Ada"})

    async def test_until_then_nothing_else_is_done(self, make):
        world = await make(auth=Tokens(good=self.ADA), guests=False)
        client = world.client(None)
        for type_ in ("subscribe", "publish", "unsubscribe", "typing", "presence", "history", "of the application"):
            assert await client.refused(type_, channel="room", data={}) == "unauthorized"
        assert "ts" in await client.done("ping")
        await client.say("pong")
        await client.say("ping")
        assert client.take() == [{"type": "pong"}]
        assert await client.done("auth", data={"token": "good"}) == {"member": {"id": "ada", "info": {"name": "Ada"}}}
        await client.done("subscribe", channel="room")
        world.advance(1_000)
        assert not client.closed

    async def test_in_time(self, make):
        world = await make(auth=Tokens(), guests=False)
        client = world.client(None)
        world.advance(9)
        assert not client.closed
        world.advance(1.1)
        assert client.close_code == CloseCode.UNAUTHORIZED

    @pytest.mark.parametrize("later", [False, True])
    async def test_a_bad_token_ends_the_connection(self, make, later):
        auth = Tokens(bad=TokenRefused("x" * 200))
        auth.later = later
        world = await make(auth=auth, guests=False)
        client = world.client(None)
        assert await client.refused("auth", data={"token": "bad"}) == "unauthorized"
        assert client.close_code == CloseCode.UNAUTHORIZED
        assert len(client.close_reason.encode()) <= 123

    async def test_keys_that_cannot_be_had_now(self, make):
        auth = Tokens(good=TokenRefused("keys", temporary=True))
        world = await make(auth=auth, guests=False)
        client = world.client(None)
        assert await client.refused("auth", data={"token": "good"}) == "unavailable"
        auth.tokens["good"] = self.ADA
        await client.done("auth", data={"token": "good"})

    @pytest.mark.parametrize("data", [None, {}, {"token": 1}, "good"])
    async def test_what_is_no_token(self, make, data):
        world = await make(auth=Tokens(good=self.ADA))
        assert await world.client(None).refused("auth", data=data) == "bad_request"

    async def test_a_server_without_tokens(self, world):
        assert await world.client("ada").refused("auth", data={"token": "t"}) == "bad_request"

    @pytest.mark.parametrize("member", [Member("a\nb"), Member("x" * 300), Member("ada", info={"x": "x" * 2_000})])
    async def test_a_member_that_channels_cannot_take(self, make, caplog, member):
        world = await make(auth=Tokens(t=member), guests=False)
        client = world.client(None)
        assert await client.refused("auth", data={"token": "t"}) == "forbidden"
        assert client.session.member is None
        assert "cannot be let in" in caplog.text

    async def test_a_guest_logs_in_before_it_subscribes(self, make):
        world = await make(auth=Tokens(good=self.ADA))
        client = world.client(Guest("guest-1"))
        await client.done("subscribe", channel="room")
        assert await client.refused("auth", data={"token": "good"}) == "bad_request"
        await client.done("unsubscribe", channel="room")
        await client.done("auth", data={"token": "good"})
        assert client.session.member == self.ADA
        assert set(world.realtime._members) == {"ada"}
        assert await client.done("subscribe", channel="user:ada")

    async def test_a_client_that_goes_while_its_token_is_checked(self, make):
        auth = Tokens(good=self.ADA)
        auth.later = True
        world = await make(auth=auth, guests=False)
        client = world.client(None)
        task = asyncio.ensure_future(client.say("auth", data={"token": "good"}))
        await asyncio.sleep(0)
        client.simulate_close()
        await task
        assert is_empty(world.realtime)
        assert len(world.context.wheel) == 0

    async def test_another_member_needs_another_connection(self, make):
        world = await make(auth=Tokens(ben=Member("ben")))
        client = world.client("ada")
        assert await client.refused("auth", data={"token": "ben"}) == "bad_request"
        assert client.session.member == Member("ada")

    async def test_a_token_that_ends_has_to_be_renewed(self, make):
        auth = Tokens()
        world = await make(auth=auth, guests=False)
        now = world.clock()
        auth.tokens = {
            "first": Member("ada", expires_at=now + 100),
            "second": Member("ada", roles=["x"], expires_at=now + 200.5),
        }
        client, other = world.client(None), world.client(None)
        told = await client.done("auth", data={"token": "first"})
        assert told == {"member": {"id": "ada"}, "expiresAt": int((now + 100) * 1_000)}
        await other.done("auth", data={"token": "first"})
        world.advance(110)
        await client.done("subscribe", channel="room")  # there are 20 s to bring a new one
        assert (await client.done("auth", data={"token": "second"}))["expiresAt"] == int((now + 200.5) * 1_000)
        world.advance(11)
        assert other.close_code == CloseCode.UNAUTHORIZED
        assert not client.closed
        assert client.session.subscriptions == ["room"]
        world.advance(98)
        assert not client.closed
        world.advance(2)
        assert client.close_code == CloseCode.UNAUTHORIZED

    @pytest.mark.parametrize("expires_at", [1e10, 1e15, 1e300, -1e300, 0])
    async def test_times_that_are_far_away(self, make, expires_at):
        token = Grant(frozenset(("subscribe",)), expires_at)
        world = await make(auth=Tokens(me=Member("ada", expires_at=expires_at), t=token), guests=False)
        client = world.client(None)
        told = (await client.done("auth", data={"token": "me"}))["expiresAt"]
        assert told == (expires_at * 1_000 if abs(expires_at) < 1e11 else told)
        await client.done("subscribe", channel="room", token="t")
        for _ in range(5):
            world.advance(90_000)
        assert client.closed is (expires_at <= 0)
        assert client.session.subscriptions == ([] if expires_at <= 0 else ["room"])

    async def test_a_clock_that_was_set_back_gives_time(self, make):
        world = await make()
        shift = [0]
        world.realtime.clock_ms = lambda: world.clock.ms() - shift[0]
        client = world.client(Member("ada", expires_at=world.clock() + 10))
        shift[0] = 3_600_000
        world.advance(100)
        assert not client.closed
        shift[0] = 0
        world.advance(3_600)
        assert client.closed


class TestOthers:
    async def test_ping(self, world):
        ada = world.client("ada")
        assert await ada.done("ping") == {"ts": world.clock.ms()}
        await ada.say("ping")
        await ada.say("pong", id=1)
        assert ada.take() == [{"type": "pong"}]

    async def test_unknown_types_are_the_applications(self, make):
        world = await make()
        ada = world.client("ada")
        assert await ada.refused("subscribed", channel="room") == "bad_request"
        assert await ada.refused("nonsense") == "bad_request"
        world.realtime.on_connect(lambda socket, request: None)
        assert ada.send("nonsense") is UNHANDLED

    async def test_a_transport_subscribes_without_an_id(self, world):
        ada = world.client("ada")
        assert ada.session.subscribe("kept:1") is None
        position = (await ada.done("publish", channel="kept:1", data=1))["position"]
        subscribed, message = ada.take()
        assert (subscribed["type"], subscribed["channel"], "id" in subscribed) == ("subscribed", "kept:1", False)
        assert set(subscribed["data"]) == {"members", "position"}
        assert message["data"] == 1
        delivered = []
        ada.on_deliver = delivered.append
        ada.session.subscribe("kept:1", since=position)
        assert (delivered[0].channel, delivered[0].position) == ("kept:1", position)
        ada.take()
        ada.session.subscribe("\n")
        (error,) = ada.take()
        assert (error["type"], error["channel"], error["data"]["code"]) == ("error", "\n", "bad_request")

    async def test_what_fails_inside_is_answered_and_logged(self, world, caplog):
        def fail(channel):
            raise Panic

        ada = world.client("ada")
        world.realtime.hub.roll = fail
        assert await ada.refused("presence", channel="room") == "unavailable"
        assert "presence of <" in caplog.text

    async def test_a_slow_client_is_asked_to_read_before_it_gets_much(self, make):
        world = await make(limits=Limits(write_soft_bytes=1_000), history={"*": History()})
        ada = world.client("ada")
        ada.stalled = True
        ada.bytes_buffered = 1_001
        for type_ in ("subscribe", "presence", "history"):
            left = asyncio.ensure_future(ada.say(type_, channel="room", id=type_))
            await world.settle()
            assert not left.done()
            assert ada.take() == []
            ada.read()
            await left
            assert [m["id"] for m in ada.take()] == [type_]
            ada.bytes_buffered = 1_001

    async def test_repr(self, world):
        assert "nobody" not in repr(world.client("ada").session)
        assert "ada" in repr(world.client("ada").session)


async def test_a_session_that_has_ended_is_forgotten(make, caplog):
    caplog.set_level(logging.ERROR)
    world = await make(auth=Tokens(t=Grant(frozenset(("subscribe",)), 5_000.0)), history={"*": History()})
    ada = world.client(Member("ada", expires_at=5_000))
    await ada.done("subscribe", channel="room", token="t", since="e:1:t")
    waiting = world.client(None)
    assert waiting.session._timer is not None
    for client in (ada, waiting):
        client.simulate_close()
        assert client.session._timer is None
        assert client.session._grants is None
    assert world.realtime.session_count == 0
    world.advance(1)  # the presence of the room was to be told
    assert len(world.context.wheel) == 0
    ada.session.handle(Envelope("ping"))
    assert ada.take_type("pong") == []

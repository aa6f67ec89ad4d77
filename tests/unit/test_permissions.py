"""What a member may do in a channel: who is asked, what is a yes, whose a channel is, what tokens allow."""

from __future__ import annotations

import asyncio

import pytest

from street_fast.auth import Grant, TokenRefused
from street_fast.backplanes import History
from street_fast.limits import Limits
from street_fast.permissions import Grants
from street_fast.session import Guest
from tests.connection_harness import Panic
from tests.realtime_harness import Tokens, world_fixture

make = pytest.fixture(world_fixture)

LATER = "authorize is a coroutine function"


def decide(answers, later):
    """An `authorize` that looks up (member, channel, action) and notes what it was asked."""
    asked = []

    def authorize(member, channel, action):
        asked.append((member.id, channel, action))
        return answers(member.id, channel, action) if callable(answers) else (channel, action) in answers

    async def authorize_later(member, channel, action):
        await asyncio.sleep(0)
        return authorize(member, channel, action)

    chosen = authorize_later if later else authorize
    return chosen, asked


both_ways = pytest.mark.parametrize("later", [False, True], ids=["at once", LATER])


class TestAuthorize:
    @both_ways
    async def test_every_action_is_asked_for_each_time(self, make, later):
        authorize, asked = decide(lambda *_: True, later)
        world = await make(authorize=authorize, history={"*": History()})
        ada = world.client("ada")
        await ada.done("subscribe", channel="room")
        await ada.done("publish", channel="room", data=1)
        await ada.done("typing", channel="room", data={"typing": True})
        await ada.done("typing", channel="room", data={"typing": False})  # to have stopped needs no permission
        await ada.done("presence", channel="room")
        await ada.done("history", channel="room")
        await ada.done("subscribe", channel="room")
        actions = ["subscribe", "presence", "publish", "publish", "presence", "history", "subscribe", "presence"]
        assert asked == [("ada", "room", action) for action in actions]

    @both_ways
    async def test_what_is_not_allowed_is_not_done(self, make, later):
        authorize, _ = decide(set(), later)
        world = await make(authorize=authorize, history={"*": History()})
        ada, ben = world.client("ada"), world.client("ben")
        world.realtime.hub.join("room", "ben", ben)
        for type_ in ("subscribe", "publish", "presence", "history"):
            assert await ada.refused(type_, channel="room", data={}) == "forbidden"
        assert await ada.refused("typing", channel="room", data={"typing": True}) == "not_subscribed"
        world.advance(1)
        assert ben.take() == []
        assert world.realtime.stats()["realtime"]["forbidden"] == 4

    @both_ways
    async def test_who_may_not_see_presence_is_told_nothing_of_it(self, make, later):
        authorize, _ = decide(lambda member, channel, action: action != "presence" or member == "ada", later)
        world = await make(authorize=authorize)
        ada, ben = world.client("ada"), world.client("ben")
        assert "members" in await ada.done("subscribe", channel="room")
        assert await ben.done("subscribe", channel="room") == {}
        await ada.say("typing", channel="room", data={"typing": True})
        world.advance(1)
        assert [m["type"] for m in ada.take()] == ["presence"]
        assert ben.take() == []
        await ben.say("publish", channel="room", data=1)
        assert [m["type"] for m in ben.take()] == ["message"]

    async def test_a_permission_that_is_gone_ends_the_subscription_when_it_is_asked_again(self, make):
        allowed = {("room", "subscribe")}
        world = await make(authorize=lambda member, channel, action: (channel, action) in allowed)
        ada = world.client("ada")
        await ada.done("subscribe", channel="room")
        allowed.clear()
        assert await ada.refused("subscribe", channel="room") == "forbidden"
        assert ada.session.subscriptions == []

    @pytest.mark.parametrize("answer", [None, 1, "yes", object(), [True]])
    @both_ways
    async def test_only_true_allows(self, make, caplog, answer, later):
        authorize, _ = decide(lambda *_: answer, later)
        world = await make(authorize=authorize)
        assert await world.client("ada").refused("publish", channel="room", data=1) == "forbidden"
        assert "neither True nor False" in caplog.text

    @pytest.mark.parametrize("error", [ValueError("x"), Panic(), asyncio.CancelledError()], ids=repr)
    @both_ways
    async def test_one_that_raises_has_refused(self, make, caplog, error, later):
        def fail(*_):
            raise error

        authorize, _ = decide(fail, later)
        world = await make(authorize=authorize)
        ada = world.client("ada")
        assert await ada.refused("subscribe", channel="room") == "forbidden"
        assert ada.session.subscriptions == []
        assert "authorize failed" in caplog.text

    @pytest.mark.parametrize("type_", ["subscribe", "publish", "presence", "history"])
    async def test_a_client_that_goes_while_it_is_asked(self, make, caplog, type_):
        authorize, _ = decide(lambda *_: True, True)
        world = await make(authorize=authorize, history={"*": History()})
        ada = world.client("ada")
        task = asyncio.ensure_future(ada.say(type_, channel="room", data={}, id=1, since="e:1:t"))
        await asyncio.sleep(0)
        ada.simulate_close()
        await task
        assert not caplog.records

    async def test_a_client_that_goes_cancels_what_is_asked(self, make, caplog):
        ended = []

        async def authorize(member, channel, action):
            try:
                await asyncio.sleep(60)
            finally:
                ended.append(action)

        world = await make(authorize=authorize)
        ada = world.client("ada")
        task = asyncio.ensure_future(ada.say("subscribe", channel="room", id=1))
        await asyncio.sleep(0)
        ada.simulate_close()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["subscribe"]
        assert not caplog.records


class TestChannelsOfUsers:
    ACTIONS = ("subscribe", "presence", "history", "publish")

    @pytest.mark.parametrize("authorize", [None, lambda *_: True, lambda *_: False])
    async def test_who_may_do_what(self, make, authorize):
        world = await make(authorize=authorize, history={"*": History()})
        ada = world.client("ada")
        for action in self.ACTIONS[:3]:
            await ada.done(action, channel="user:ada")
        for channel in ("user:ben", "user:", "user:ada ", "user:Ada"):
            for action in self.ACTIONS[:3]:
                assert await ada.refused(action, channel=channel) == "forbidden"
        for channel in ("user:ada", "user:ben"):
            if authorize is not None and authorize():
                await ada.done("publish", channel=channel, data=1)
            else:
                assert await ada.refused("publish", channel=channel, data=1) == "forbidden"

    async def test_guests_have_one_too(self, make):
        world = await make()
        guest = world.client(Guest("guest-1"))
        await guest.done("subscribe", channel="user:guest-1")
        world.realtime.notify("guest-1", "hello")
        assert [m["data"] for m in guest.take_type("message")] == ["hello"]


class TestChannelTokens:
    TOKEN = Grant(frozenset(("subscribe", "presence")), None)

    @pytest.mark.parametrize("later", [False, True])
    async def test_a_token_allows_what_it_says(self, make, later):
        auth = Tokens(t=self.TOKEN)
        auth.later = later
        world = await make(auth=auth, authorize=lambda *_: False)
        ada = world.client("ada")
        assert await ada.refused("subscribe", channel="room") == "forbidden"
        assert await ada.done("subscribe", channel="room", token="t") == {"members": [{"memberId": "ada"}]}
        assert await ada.done("subscribe", channel="room") == {"members": [{"memberId": "ada"}]}  # it still counts
        assert await ada.refused("publish", channel="room", data=1) == "forbidden"
        assert await ada.refused("presence", channel="other") == "forbidden"
        await ada.done("unsubscribe", channel="room")
        assert await ada.refused("subscribe", channel="room") == "forbidden"
        assert ada.session._grants is None

    async def test_a_token_that_is_not_good(self, make):
        auth = Tokens(soon=TokenRefused("keys", temporary=True))
        world = await make(auth=auth)
        ada = world.client("ada")
        assert await ada.refused("subscribe", channel="room", token="bad") == "unauthorized"
        assert await ada.refused("subscribe", channel="room", token="soon") == "unavailable"
        assert ada.close_code is None

    async def test_a_token_for_a_channel_too_many_is_not_kept(self, make):
        world = await make(
            auth=Tokens(t=Grant(frozenset(("subscribe",)), 1e12)), limits=Limits(channels_per_connection=2)
        )
        ada = world.client("ada")
        for number in range(20):
            await ada.say("subscribe", channel=f"room:{number}", token="t")
        assert ada.session._grants.channels() == ada.session.subscriptions == ["room:0", "room:1"]

    async def test_the_channel_of_another_user_stays_closed(self, make):
        world = await make(auth=Tokens(t=Grant(frozenset(("subscribe", "publish", "presence", "history")), None)))
        ada = world.client("ada")
        assert await ada.refused("subscribe", channel="user:ben", token="t") == "forbidden"

    async def test_without_an_auth_tokens_say_nothing(self, make):
        world = await make(authorize=lambda *_: False)
        assert await world.client("ada").refused("subscribe", channel="room", token="t") == "forbidden"

    async def test_its_end_ends_the_subscription(self, make):
        world = await make(auth=Tokens(), authorize=lambda *_: False)
        now = world.clock() + 100
        world.realtime.auth.tokens = {
            "t": self.TOKEN._replace(expires_at=now),
            "newer": self.TOKEN._replace(expires_at=now + 1_000),
        }
        ada, ben = world.client("ada"), world.client("ben")
        for client in (ada, ben):
            await client.done("subscribe", channel="room", token="t")
        await ben.done("subscribe", channel="room", token="newer")
        world.advance(119)
        assert ada.session.subscriptions == ["room"]
        world.advance(2)
        assert [(m["channel"], m["data"]["code"]) for m in ada.take_type("unsubscribed")] == [("room", "unauthorized")]
        assert ada.session.subscriptions == []
        assert ada.session._grants is None
        assert ben.session.subscriptions == ["room"]
        assert await ada.refused("subscribe", channel="room") == "forbidden"
        await ada.done("subscribe", channel="room", token="newer")

    async def test_a_clock_that_was_set_back_gives_time(self, make):
        world = await make(auth=Tokens(), authorize=lambda *_: False)
        world.realtime.auth.tokens["t"] = self.TOKEN._replace(expires_at=world.clock() + 10)
        shift = [0]
        world.realtime.clock_ms = lambda: world.clock.ms() - shift[0]
        ada = world.client("ada")
        await ada.done("subscribe", channel="room", token="t")
        shift[0] = 3_600_000
        world.advance(1_000)
        assert ada.session.subscriptions == ["room"]
        shift[0] = 0
        world.advance(3_600)
        assert ada.session.subscriptions == []


def test_a_token_that_is_over_allows_nothing_more():
    due, over = [], []
    grants = Grants(
        lambda _, callback, arg: due.append((callback, arg)), lambda expires_at: expires_at < 5, over.append
    )
    for channel, expires_at in (("a", 1), ("b", 9), ("c", None)):
        grants.put(channel, Grant(frozenset(("publish",)), expires_at))
    for callback, arg in due[:]:
        callback(arg)
    assert over == ["a"]
    assert grants.channels() == ["b", "c"]
    assert [grants.allow(channel, "publish") for channel in "abc"] == [False, True, True]
    assert len(due) == 3  # it has another look at b

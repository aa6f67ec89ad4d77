"""Between hub and backplane: which channels keep history, who hears what, and what is told when something is lost."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from street_fast import exchange
from street_fast.backplanes import History, Position, Publication, Unavailable
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.errors import ConfigurationError
from street_fast.exchange import HistoryRules
from tests.contract.broker import BrokerBus
from tests.realtime_harness import make_world, world_fixture

make = pytest.fixture(world_fixture)


class TestHistoryRules:
    SHORT, LONG = History(size=1), History(size=1_000)

    def of(self, rules, *channels):
        found = HistoryRules(rules)
        twice = [[found.of(channel) for channel in channels] for _ in range(2)]
        assert twice[0] == twice[1]
        return twice[0]

    def test_names_and_patterns(self):
        rules = {"lobby": self.SHORT, "room:*": self.LONG, "a?c": self.SHORT, "[xy]": self.SHORT}
        assert self.of(rules, "lobby", "lobby2", "Lobby", "room:", "room:a\u2028b", "a.c", "ac", "x", "z") == [
            self.SHORT,
            None,
            None,
            self.LONG,
            self.LONG,
            self.SHORT,
            None,
            self.SHORT,
            None,
        ]

    def test_the_first_that_matches_counts(self):
        rules = {"room:secret": None, "room:*": self.LONG, "*": self.SHORT}
        assert self.of(rules, "room:secret", "room:x", "x") == [None, self.LONG, self.SHORT]

    @pytest.mark.parametrize("rules", [None, {}, {"*": None}])
    def test_none(self, rules):
        assert self.of(rules, "room") == [None]
        assert HistoryRules(rules).any is False

    def test_names_are_not_remembered_for_ever(self):
        rules = HistoryRules({"room:*": self.LONG})
        for number in range(30_000):
            rules.of(f"room:{number}")
        assert len(rules._found) <= 10_000
        assert rules.of("room:5") is self.LONG

    @pytest.mark.parametrize("rules", [[], "x", {"a": 5}, {"": None}, {None: None}])
    def test_what_is_none(self, rules):
        with pytest.raises(ConfigurationError, match="history"):
            HistoryRules(rules)


class Noted(MemoryBackplane):
    """A MemoryBackplane that notes what it is told, and can be asked to fail."""

    def __init__(self):
        super().__init__()
        self.told = []
        self.error = None
        self.pending = None

    def subscribe(self, channel, history=None):
        self.told.append(("subscribe", channel))
        super().subscribe(channel, history)
        if self.error is not None:
            raise self.error
        return self.pending

    def unsubscribe(self, channel):
        self.told.append(("unsubscribe", channel))
        super().unsubscribe(channel)

    def join(self, channel, member_id, info):
        self.told.append(("join", channel, member_id, info))

    def leave(self, channel, member_id):
        self.told.append(("leave", channel, member_id))


class TestInterest:
    async def test_a_channel_is_heard_while_somebody_is_in_it(self, make):
        backplane = Noted()
        world = await make(backplane=backplane)
        assert [channel[:6] for _, channel in backplane.told] == ["\norder", "\nnode:"]
        backplane.told.clear()
        ada, ben = world.client("ada"), world.client("ben")
        for client in (ada, ben):
            await client.say("subscribe", channel="room")
        await world.client("ada").say("subscribe", channel="room")
        await ada.say("unsubscribe", channel="room")
        ben.simulate_close()
        assert backplane.told == [
            ("subscribe", "room"),
            ("join", "room", "ada", None),
            ("join", "room", "ben", None),
            ("leave", "room", "ben"),
        ]
        backplane.told.clear()
        world.everybody_leaves()
        assert backplane.told == [("leave", "room", "ada"), ("unsubscribe", "room")]

    async def test_the_reply_waits_until_the_channel_is_heard(self, make):
        backplane = Noted()
        world = await make(backplane=backplane)
        ada, ben = world.client("ada"), world.client("ben")
        backplane.pending = asyncio.get_running_loop().create_future()
        tasks = [asyncio.ensure_future(client.say("subscribe", channel="room", id=1)) for client in (ada, ben)]
        await world.settle()
        assert ada.take() + ben.take() == []
        assert backplane.told.count(("subscribe", "room")) == 1
        backplane.pending.set_result(None)
        await asyncio.gather(*tasks)
        assert [message["type"] for message in ada.take() + ben.take()] == ["reply", "reply"]

    async def test_a_subscriber_that_gives_up_waiting_is_not_missed(self, make):
        backplane = Noted()
        world = await make(backplane=backplane)
        ada, ben = world.client("ada"), world.client("ben")
        backplane.pending = asyncio.get_running_loop().create_future()
        tasks = [asyncio.ensure_future(client.say("subscribe", channel="room", id=1)) for client in (ada, ben)]
        await world.settle()
        ada.simulate_close()
        tasks[0].cancel()
        await asyncio.wait(tasks[:1])
        backplane.pending.set_result(None)
        await tasks[1]
        assert [message["type"] for message in ben.take()] == ["reply"]

    @pytest.mark.parametrize("later", [False, True])
    @pytest.mark.parametrize("error", [Unavailable("down"), OSError("broken")])
    async def test_this_node_is_heard_all_the_same(self, make, caplog, error, later):
        backplane = Noted()
        world = await make(backplane=backplane)
        if later:
            backplane.pending = asyncio.get_running_loop().create_future()
            backplane.pending.set_exception(error)
        else:
            backplane.error = error
        ada = world.client("ada")
        await ada.done("subscribe", channel="room")
        await ada.say("publish", channel="room", data=1)
        assert [message["data"] for message in ada.take_type("message")] == [1]
        assert bool(caplog.records) is isinstance(error, OSError)

    async def test_a_channel_that_is_left_and_joined_again_meanwhile(self, make):
        backplane = Noted()
        world = await make(backplane=backplane)
        ada = world.client("ada")
        pending = [asyncio.get_running_loop().create_future() for _ in range(2)]
        tasks = []
        for future in pending:
            backplane.pending = future
            world.realtime.hub.join("room", "bridge", ada)
            tasks.append(asyncio.ensure_future(ada.say("subscribe", channel="room", id=1)))
            await world.settle()
            world.realtime.hub.disconnect(ada)
        pending[0].set_result(None)
        await world.settle()
        assert list(world.realtime.exchange._interests) == ["room"]
        pending[1].set_result(None)
        await asyncio.gather(*tasks)
        assert world.realtime.exchange._interests == {}
        assert [message["data"]["code"] for message in ada.take_type("error")] == ["unavailable"] * 2


class TestDeliver:
    async def test_all_but_the_one_to_skip(self, make):
        world = await make()
        clients = [world.client("ada"), world.client("ben")]
        for client in clients:
            await client.say("subscribe", channel="room")
        world.realtime.exchange.deliver("room", Publication(b'{"type":"message","data":1', None, clients[0].id))
        world.realtime.exchange.deliver("room", Publication(b'{"type":"message","data":2', None, "nobody"))
        assert [message["data"] for message in clients[0].take_type("message")] == [2]
        assert [message["data"] for message in clients[1].take_type("message")] == [1, 2]

    async def test_written_once_for_all(self, make):
        world = await make(history={"*": History()})
        jsons = []
        for number in range(3):
            client = world.client(f"m{number}")
            await client.say("subscribe", channel="room")
            client.on_deliver = lambda message: jsons.append(message.json)
        world.realtime.publish("room", 1)
        assert len(jsons) == 3
        assert len(set(map(id, jsons))) == 1

    async def test_what_a_subscriber_publishes_while_it_is_delivered_comes_after(self, make):
        world = await make(history={"*": History()})
        clients = [world.client(f"m{number}") for number in range(3)]
        for client in clients:
            await client.say("subscribe", channel="room")
        once = [2]
        clients[1].on_deliver = lambda message: once and world.realtime.publish("room", once.pop())
        world.realtime.publish("room", 1)
        for client in clients:
            assert [message["data"] for message in client.take_type("message")] == [1, 2]


class TestAHistoryThatIsAhead:
    """A backplane that answers later may give what it delivers only then."""

    async def test_it_comes_once(self, make):
        class Ahead(MemoryBackplane):
            async def read_later(self, *arguments, **options):
                return super().read(*arguments, **options)

            def read(self, *arguments, **options):
                return self.read_later(*arguments, **options)

        world = await make(history={"*": History()}, backplane=Ahead())
        exchange, delivered = world.realtime.exchange, []
        ada, ben = world.client("ada"), world.client("ben")
        await ada.say("subscribe", channel="room")
        start = (await world.realtime.publish("room", 0)).position
        deliver, exchange.deliver = exchange.deliver, lambda *what: delivered.append(what)  # the bus is slow
        world.realtime.publish("room", 1)
        answer = await ben.done("subscribe", channel="room", since=str(start))
        assert [message["data"] for message in answer["messages"]] == [1]
        for what in delivered:
            deliver(*what)
        assert ben.take_type("message") == []
        assert exchange.catching_up == 0
        exchange.deliver = deliver
        world.realtime.publish("room", 2)
        assert exchange._catching_up == {}
        world.realtime.publish("room", 3)
        assert [message["data"] for message in ben.take_type("message")] == [2, 3]
        assert [message["data"] for message in ada.take_type("message")] == [0, 1, 2, 3]


class TestLost:
    async def test_subscribers_are_told(self, make):
        world = await make(history={"kept": History()})
        ada = world.client("ada")
        for channel in ("kept", "room"):
            await ada.say("subscribe", channel=channel)
        position = (await world.realtime.publish("kept", 1)).position
        ada.take()
        world.realtime.exchange.lost("kept")
        assert ada.take() == [{"type": "gap", "channel": "kept", "data": {"position": str(position)}}]
        world.realtime.exchange.lost(None)
        assert {message["channel"]: message["data"] for message in ada.take()} == {
            "kept": {"position": str(position)},
            "room": {},
        }
        world.realtime.exchange.lost("elsewhere")
        assert ada.take() == []
        await ada.say("unsubscribe", channel="kept")
        world.realtime.exchange.lost("kept")
        assert world.realtime.exchange.place_of("kept") is None

    @pytest.mark.parametrize("error", [None, Unavailable("down"), OSError("as never before")])
    @pytest.mark.parametrize("later", [False, True])
    async def test_the_history_is_slow_or_away(self, make, caplog, later, error):
        class Away(MemoryBackplane):
            away = False

            def read(self, *arguments, **options):
                if not self.away:
                    return super().read(*arguments, **options)
                if not later:
                    raise error or Unavailable("down")
                return self.read_later(*arguments, **options)

            async def read_later(self, *arguments, **options):
                await asyncio.sleep(0)
                if error is not None:
                    raise error
                return super().read(*arguments, **options)

        world = await make(history={"*": History()}, backplane=Away())
        ada = world.client("ada")
        await ada.say("subscribe", channel="room")
        position = str((await world.realtime.publish("room", 1)).position)
        ada.take()
        world.realtime.exchange.backplane.away = True
        world.realtime.exchange.lost("room")
        await world.settle()
        told = {"position": position} if later and error is None else {}
        assert ada.take() == [{"type": "gap", "channel": "room", "data": told}]
        assert ("cannot read the history of channel 'room'" in caplog.text) == isinstance(error, OSError)

    async def test_a_gap_is_told_before_what_comes_behind_it(self, make):
        class Late(MemoryBackplane):
            late = False

            def read(self, *arguments, **options):
                page = super().read(*arguments, **options)
                return self.answer(page) if self.late else page

            async def answer(self, page):
                for _ in range(3):
                    await asyncio.sleep(0)
                return page

        world = await make(history={"*": History()}, backplane=Late())
        ada = world.client("ada")
        await ada.say("subscribe", channel="room")
        world.realtime.publish("room", 1)
        ada.take()
        world.realtime.exchange.backplane.late = True
        world.realtime.exchange.lost("room")
        first = str((await world.realtime.publish("room", 2)).position)
        second = str((await world.realtime.publish("room", 3)).position)
        await world.settle()
        told = [(message["type"], message.get("position"), message["data"]) for message in ada.take()]
        assert told == [("gap", None, {}), ("message", first, 2), ("message", second, 3)]
        # Each loss is told; the one before it may have been looked at too early.
        world.realtime.exchange.lost("room")
        world.realtime.exchange.lost("room")
        await world.settle()
        assert [message["data"] for message in ada.take()] == [{"position": second}]
        # Who subscribes again is where it is.
        assert (await ada.done("subscribe", channel="room"))["position"] == second
        world.realtime.exchange.lost("room")
        await ada.say("unsubscribe", channel="room")
        await world.settle()
        assert not world.realtime.exchange._gaps
        assert not world.realtime.exchange._places


async def test_what_cannot_be_cancelled_does_not_hold_up_the_end(make, monkeypatch):
    monkeypatch.setattr(exchange, "_CANCEL_S", 0.01)
    world = await make()
    go_on = asyncio.Event()

    async def stubborn():
        while not go_on.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await go_on.wait()

    task = world.realtime.exchange.spawn(stubborn())
    await asyncio.sleep(0)
    await asyncio.wait_for(world.realtime.close(), 20)
    assert not task.done()
    go_on.set()
    await task


class TestMembersElsewhere:
    async def test_they_are_present(self, make):
        world = await make()
        ada = world.client("ada")
        await ada.say("subscribe", channel="room")
        world.advance(1)
        exchange = world.realtime.exchange
        exchange.members_changed("room", [("ben", b'{"name":"Ben"}'), ("ada", None)], [])
        exchange.members_changed("elsewhere", [("cem", None)], [])
        world.advance(1)
        assert [message["data"] for message in ada.take()] == [
            {"joined": [{"memberId": "ben", "info": {"name": "Ben"}}], "left": [], "memberCount": 2}
        ]
        assert world.realtime.presence("elsewhere") == []
        other = world.client("ada")
        await other.say("subscribe", channel="room")
        await ada.say("unsubscribe", channel="room")
        await ada.say("subscribe", channel="room")
        exchange.members_changed("room", [], ["ben", "nobody"])
        world.advance(1)
        (event,) = [message["data"] for message in ada.take()]
        assert (event["left"], event["memberCount"]) == ([{"memberId": "ben"}], 1)

    async def test_they_are_forgotten_with_the_channel(self, make):
        world = await make()
        ada = world.client("ada")
        await ada.say("subscribe", channel="room")
        world.realtime.exchange.members_changed("room", [("ben", None), ("ada", None)], [])
        await ada.say("unsubscribe", channel="room")
        assert world.realtime.presence("room") == []


async def test_positions_that_differ_by_more_than_one_are_not_ours_to_judge(make):
    """A live subscriber gets what the backplane delivers: it has promised that nothing is missing."""
    world = await make(history={"*": History()})
    ada = world.client("ada")
    await ada.say("subscribe", channel="room")
    ada.take()
    for offset in (5, 9):
        world.realtime.exchange.deliver("room", Publication(b'{"type":"message"', Position("e", offset, "t")))
    assert [message["position"] for message in ada.take_type("message")] == ["e:5:t", "e:9:t"]


class TestSeveralNodes:
    """Two Realtimes on one bus: what a client of the one sees of a client of the other."""

    @pytest.fixture
    async def nodes(self):
        bus = BrokerBus()
        worlds = [await make_world(backplane=bus.node()) for _ in range(2)]

        async def settle():
            for _ in range(5):
                await bus.settle()
                for world in worlds:
                    await world.settle()

        yield worlds, settle
        for world in worlds:
            world.everybody_leaves()
            await world.realtime.close()
        await bus.close()

    async def test_who_types_is_seen_on_the_other_node_until_the_time_is_over(self, nodes):
        (here, there), settle = nodes
        ada, bob = here.client("ada"), there.client("bob")
        for client in (ada, bob):
            await client.done("subscribe", channel="room")
        await settle()
        await ada.done("typing", channel="room", data={"typing": True})
        await settle()
        assert [message["data"] for message in bob.take() if message["type"] == "typing"] == [
            {"memberId": "ada", "typing": True}
        ]
        assert there.realtime.hub.typing_members("room") == ["ada"]
        eve = there.client("eve")
        assert (await eve.done("subscribe", channel="room"))["typing"] == ["ada"]
        there.advance(4)
        await ada.done("typing", channel="room", data={"typing": True})  # it goes on
        await settle()
        there.advance(4)
        assert [message for message in bob.take() if message["type"] == "typing"] == []
        there.advance(2)  # whatever became of the node
        assert [message["data"] for message in bob.take() if message["type"] == "typing"] == [
            {"memberId": "ada", "typing": False}
        ]
        await ada.done("typing", channel="room", data={"typing": True})
        await ada.done("typing", channel="room", data={"typing": False})
        await settle()
        assert [message["data"]["typing"] for message in bob.take() if message["type"] == "typing"] == [True, False]
        assert [message for message in ada.take() if message["type"] == "typing"] == [], "who types need not be told"

    async def test_who_types_and_leaves_has_stopped_everywhere(self, nodes):
        (here, there), settle = nodes
        ada, bob = here.client("ada"), there.client("bob")
        for client in (ada, bob):
            await client.done("subscribe", channel="room")
        await settle()
        await ada.done("typing", channel="room", data={"typing": True})
        await settle()
        ada.simulate_close()
        await settle()
        assert [message["data"]["typing"] for message in bob.take() if message["type"] == "typing"] == [True, False]
        assert there.realtime.presence("room") == ["bob"]

    @pytest.mark.parametrize(
        "payload",
        [
            b"",
            b"\xff",
            b"{}",
            b"[]",
            b'{"type":"message","channel":"room","data":1',
            b'{"type":"message","channel":"other","data":1,"ts":1',
            b'{"type":"message","channel":"room","data":nonsense,"ts":1',
            b'{"type":"message","channel":"room","data":1,"ts":1}',
            b'{"type":5,"channel":"room","data":1,"ts":1',
            b'{"type":"message","channel":"room","data":' + b"[" * 100_000 + b"]" * 100_000 + b',"ts":1',
        ],
    )
    async def test_what_is_not_from_a_realtime_does_not_reach_a_client(self, nodes, payload, caplog):
        (here, there), settle = nodes
        ada = here.client("ada")
        await ada.done("subscribe", channel="room")
        there.realtime.exchange.backplane.publish("room", payload)
        there.realtime.exchange.backplane.signal("room", payload)
        await settle()
        assert ada.take() == []
        for _ in range(100):
            there.realtime.exchange.backplane.publish("room", payload)
        await settle()
        assert here.realtime.exchange.refused == 102
        assert caplog.text.count("channel 'room': what came over the backplane is not from a Realtime") == 1

    async def test_members_that_cannot_be_are_left_out(self, nodes, caplog):
        (here, there), settle = nodes
        ada = here.client("ada")
        await ada.done("subscribe", channel="room")
        backplane = there.realtime.exchange.backplane
        backplane.join("room", "bob", b'{"name":"Bob"}')
        backplane.join("room", "eve", b'{"name":')
        backplane.join("room", "x" * 300, None)
        backplane.join("room", "big", b'"' + b"x" * 2_000 + b'"')
        await settle()
        assert here.realtime.members("room")[1:] == [{"memberId": "bob", "info": {"name": "Bob"}}]
        assert here.realtime.exchange.refused == 3
        for member in ("bob", "eve"):
            backplane.leave("room", member)
        await settle()
        assert here.realtime.presence("room") == ["ada"]

    async def test_who_is_sent_away_by_a_restart_comes_back_and_was_never_gone(self, nodes):
        (here, there), settle = nodes
        ada, eve, bob = here.client("ada"), here.client("eve"), there.client("bob")
        for client in (ada, eve, bob):
            await client.done("subscribe", channel="room")
        await settle()
        eve.simulate_close()
        await settle()
        there.advance(1)
        bob.take()
        ending = asyncio.ensure_future(here.realtime.end())
        await asyncio.sleep(0)
        ada.simulate_close()
        await ending
        again = there.client("ada")
        await again.done("subscribe", channel="room")
        await settle()
        there.advance(1)
        assert bob.take() == []
        assert there.realtime.presence("room") == ["bob", "ada"]

    async def test_what_an_application_does_with_a_member_it_does_on_all_nodes(self, nodes, caplog):
        (here, there), settle = nodes
        ada, again, bob = here.client("ada"), there.client("ada"), there.client("bob")
        for client in (ada, again, bob):
            await client.done("subscribe", channel="room")
        await settle()
        assert here.realtime.unsubscribe("ada", "room", "be gone") == 1
        await settle()
        (told,) = (message for message in again.take() if message["type"] == "unsubscribed")
        assert told["data"] == {"code": "forbidden", "message": "be gone"}
        assert there.realtime.presence("room") == ["bob"]
        assert here.realtime.disconnect("ada", 4001, "out") == 1
        await settle()
        for client in (ada, again):
            assert (client.close_code, client.close_reason) == (4001, "out")
        assert bob.close_code is None
        here.realtime.exchange.backplane.signal("\norders", b'{"memberId":"bob"}')
        here.realtime.exchange.backplane.signal("\norders", b'{"memberId":"bob","reason":"x","code":99}')
        await settle()
        assert bob.close_code is None
        assert there.realtime.exchange.refused == 2

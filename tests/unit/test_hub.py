"""ChannelHub over peers without sockets, and over WebSockets in memory."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import logging
import random
import weakref

import msgspec
import pytest

from street_fast._core import LoopContext, TimerWheel
from street_fast.errors import ConfigurationError, LimitExceeded
from street_fast.hub import ChannelHub
from street_fast.limits import Limits
from street_fast.messages import publication
from street_fast.testing import FakeConnection, ManualClock, memory_pair
from tests.connection_harness import Panic


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def wheel(clock):
    return TimerWheel(clock)


@pytest.fixture
def hub(clock, wheel):
    return ChannelHub(typing_ttl_ms=5_000, wheel=wheel, clock_ms=clock.ms)


def events(conn):
    """What a connection got since the last time, without the envelope's constants."""
    return [(message["type"], message.get("data")) for message in conn.take()]


def is_empty(hub):
    state = (hub._channels, hub._subscribers, hub._typing_timers, hub._presence._members, hub._presence._typing)
    return not any(state) and not (hub._deliveries or hub._changed or hub._unaware or hub._missed)


@pytest.fixture
def room(hub):
    """Ann, Bob and Cem in "room", one connection each."""
    conns = {}
    for name in ("ann", "bob", "cem"):
        conns[name] = FakeConnection(f"conn-{name}")
        hub.join("room", name, conns[name])
    for conn in conns.values():
        conn.take()
    return conns


class TestJoinAndLeave:
    def test_the_others_hear_of_a_join_and_a_leave(self, hub, clock):
        ann, bob = FakeConnection(), FakeConnection()
        assert hub.join("room", "ann", ann) is True
        assert ann.messages == []
        assert hub.join("room", "bob", bob, {"name": "Bob"}) is True
        assert bob.messages == []
        assert ann.take() == [
            {
                "type": "presence:join",
                "channel": "room",
                "data": {"memberId": "bob", "info": {"name": "Bob"}},
                "ts": clock.ms(),
            }
        ]
        assert hub.leave("room", "bob", bob) is True
        assert events(ann) == [("presence:leave", {"memberId": "bob", "info": {"name": "Bob"}})]
        assert bob.messages == []

    def test_a_second_connection_makes_no_flicker(self, hub, room):
        second = FakeConnection()
        assert hub.join("room", "ann", second) is False
        assert hub.leave("room", "ann", room["ann"]) is False
        assert hub.is_present("room", "ann")
        assert hub.connection_count("room") == 3
        assert all(conn.messages == [] for conn in [*room.values(), second])
        assert hub.leave("room", "ann", second) is True
        assert events(room["bob"]) == [("presence:leave", {"memberId": "ann"})]

    def test_joining_twice_counts_once(self, hub, room):
        assert hub.join("room", "ann", room["ann"]) is False
        assert hub.leave("room", "ann", room["ann"]) is True
        assert hub.leave("room", "ann", room["ann"]) is False
        assert not hub.is_present("room", "ann")

    def test_what_was_never_joined_is_left_in_peace(self, hub, room):
        stranger = FakeConnection()
        assert hub.leave("room", "ann", stranger) is False
        assert hub.leave("room", "bob", room["ann"]) is False
        assert hub.leave("elsewhere", "ann", room["ann"]) is False
        hub.disconnect(stranger)
        assert hub.presence("room") == ["ann", "bob", "cem"]

    def test_one_connection_as_two_members(self, hub, room):
        assert hub.join("room", "bridge-1", room["ann"]) is True
        assert hub.connection_count("room") == 3
        assert hub.member_count("room") == 4
        hub.publish("room", "chat", 1)
        assert [kind for kind, _ in events(room["ann"])] == ["chat"]  # once
        assert hub.publish("room", "chat", 2, except_member_id="bridge-1") == 2
        assert hub.leave("room", "ann", room["ann"]) is True
        assert hub.publish("room", "chat", 3) == 3
        room["ann"].simulate_close()
        assert hub.presence("room") == ["bob", "cem"]

    def test_disconnect_leaves_every_channel_once(self, hub, room):
        for channel in ("a", "b"):
            hub.join(channel, "ann", room["ann"])
            hub.join(channel, "bob", room["bob"])
        events(room["bob"])
        hub.disconnect(room["ann"])
        left = [(m["type"], m["channel"], m["data"]["memberId"]) for m in room["bob"].take() if m["type"] != "typing"]
        assert left == [("presence:leave", channel, "ann") for channel in ("room", "a", "b")]
        hub.disconnect(room["ann"])
        assert room["bob"].messages == []
        assert hub.join("room", "ann", room["ann"]) is True  # it is still open

    def test_closing_leaves_every_channel_with_and_without_bind(self, hub):
        bound, unbound, watcher = FakeConnection(), FakeConnection(), FakeConnection()
        hub.bind(bound)
        hub.bind(bound)
        for name, conn in (("watcher", watcher), ("bound", bound), ("unbound", unbound)):
            hub.join("room", name, conn)
        hub.bind(unbound)
        watcher.take()
        bound.simulate_close()
        unbound.simulate_close()
        assert events(watcher) == [
            ("presence:leave", {"memberId": "bound"}),
            ("presence:leave", {"memberId": "unbound"}),
        ]
        watcher.simulate_close()
        assert is_empty(hub)

    def test_one_close_callback_however_often_it_joins(self, hub):
        conn = FakeConnection()
        for _ in range(5):
            hub.bind(conn)
            hub.join("room", "ann", conn)
            hub.leave("room", "ann", conn)
            hub.disconnect(conn)
        assert len(conn._close_callbacks) == 1

    def test_a_closed_connection_leaves_nothing_behind(self, hub):
        conn = FakeConnection()
        conn.simulate_close()
        assert hub.join("room", "ann", conn) is False
        hub.bind(conn)
        hub.disconnect(conn)
        assert is_empty(hub)

    def test_an_empty_channel_leaves_nothing_behind(self, hub, room):
        hub.set_typing("room", "ann", True)
        assert hub.channel_names() == ["room"]
        for name, conn in room.items():
            hub.leave("room", name, conn)
        assert hub.channel_names() == []
        for conn in room.values():
            conn.simulate_close()
        assert is_empty(hub)
        assert len(hub._wheel) == 0

    def test_a_connection_is_forgotten_when_it_closed(self, hub, room):
        conn = FakeConnection()
        hub.join("room", "dan", conn)
        conn.simulate_close()
        gone = weakref.ref(conn)
        del conn
        gc.collect()
        assert gone() is None

    def test_two_connections_with_one_id_are_refused(self, hub, room):
        double = FakeConnection("conn-ann")
        with pytest.raises(ValueError, match="conn-ann"):
            hub.join("room", "dan", double)
        hub.disconnect(double)
        assert hub.presence("room") == ["ann", "bob", "cem"]


class TestRefusals:
    @pytest.mark.parametrize(
        "bad", ["", "a\nb", "nul\0", "\x7f", "\x85", "x" * 256, "é" * 128, "\ud800", 5, None, b"room"]
    )
    def test_bad_names_are_refused_and_leave_no_state(self, hub, bad):
        conn = FakeConnection()
        with pytest.raises(ValueError, match=r"channel name .*must be a str of 1 to 255 bytes"):
            hub.join(bad, "ann", conn)
        with pytest.raises(ValueError, match="channel name"):
            hub.publish(bad, "chat", 1)
        with pytest.raises(ValueError, match="member id"):
            hub.join("room", bad, conn)
        assert is_empty(hub)
        assert conn._close_callbacks == []

    @pytest.mark.parametrize("good", ["a", "room:*", "üñî", "x" * 255, "é" * 127, "🚀" * 63, " ", "user:1/2"])
    def test_good_names(self, hub, good):
        conn = FakeConnection()
        assert hub.join(good, good, conn) is True
        assert hub.channel_names() == [good]

    def test_a_long_name_is_not_repeated_in_the_error(self, hub):
        with pytest.raises(ValueError, match="channel name") as caught:
            hub.join("x" * 1_000_000, "ann", FakeConnection())
        assert len(str(caught.value)) < 250

    def test_channels_per_connection(self, clock, wheel):
        hub = ChannelHub(limits=Limits(channels_per_connection=3), wheel=wheel)
        conn = FakeConnection()
        for n in range(3):
            hub.join(f"room-{n}", "ann", conn)
        with pytest.raises(LimitExceeded, match="channels_per_connection"):
            hub.join("room-3", "ann", conn)
        assert hub.channel_names() == ["room-0", "room-1", "room-2"]
        assert hub.join("room-0", "ann", conn) is False  # no new membership
        with pytest.raises(LimitExceeded):
            hub.join("room-0", "other", conn)
        hub.leave("room-1", "ann", conn)
        assert hub.join("room-3", "ann", conn) is True
        conn.simulate_close()
        assert is_empty(hub)

    @pytest.mark.parametrize("info", [{"x": "y" * 2_000}, {"f": lambda: 1}, object(), {"s": "\ud800"}])
    def test_bad_info_is_refused(self, hub, info):
        with pytest.raises(ValueError, match="info of member 'ann'"):
            hub.join("room", "ann", FakeConnection(), info)
        assert is_empty(hub)

    def test_info_cannot_change_behind_the_hubs_back(self, hub, room):
        info = {"name": "Dan"}
        dan = FakeConnection()
        hub.join("room", "dan", dan, info)
        info["name"] = object()
        hub.members("room")[-1]["info"]["name"] = "Eve"
        dan.simulate_close()
        assert [data["info"] for _, data in events(room["ann"])] == [{"name": "Dan"}, {"name": "Dan"}]

    @pytest.mark.parametrize("ttl", [0, -1, None, "5", float("nan"), float("inf"), True])
    def test_typing_always_ends(self, ttl):
        with pytest.raises(ConfigurationError, match="typing_ttl_ms"):
            ChannelHub(typing_ttl_ms=ttl)


class TestPublish:
    def test_reaches_every_connection_once(self, hub, room, clock):
        second = FakeConnection()
        hub.join("room", "ann", second)
        hub.join("elsewhere", "bob", room["bob"])
        assert hub.publish("room", "chat", {"text": "hi"}) == 4
        expected = {"type": "chat", "channel": "room", "data": {"text": "hi"}, "ts": clock.ms()}
        for conn in [*room.values(), second]:
            assert conn.take() == [expected]

    def test_exceptions(self, hub, room):
        second = FakeConnection("conn-ann-2")
        hub.join("room", "ann", second)
        outsider = FakeConnection("conn-out")
        hub.bind(outsider)
        for exceptions, got in (
            ({"except_conn_id": "conn-ann"}, {"conn-ann-2", "conn-bob", "conn-cem"}),
            ({"except_member_id": "ann"}, {"conn-bob", "conn-cem"}),
            ({"except_member_id": "ann", "except_conn_id": "conn-bob"}, {"conn-cem"}),
            ({"except_member_id": "ann", "except_conn_id": "conn-ann"}, {"conn-bob", "conn-cem"}),
            ({"except_conn_id": "conn-out", "except_member_id": "nobody"}, {*(c.id for c in room.values()), second.id}),
            ({"except_conn_id": "unknown"}, {*(c.id for c in room.values()), second.id}),
        ):
            assert hub.publish("room", "chat", 1, **exceptions) == len(got), exceptions
            assert {conn.id for conn in [*room.values(), second, outsider] if conn.take()} == got, exceptions

    def test_to_nobody(self, hub):
        assert hub.publish("room", "chat", 1) == 0
        conn = FakeConnection()
        hub.join("room", "ann", conn)
        assert hub.publish("room", "chat", 1, except_conn_id=conn.id) == 0
        assert conn.messages == []

    def test_data_is_optional_and_raw_json_goes_through(self, hub, room):
        hub.publish("room", "ping")
        hub.publish("room", "chat", msgspec.Raw(b'{"n":1.0}'))
        first, second = room["ann"].take()
        assert "data" not in first
        assert second["data"] == {"n": 1.0}

    def test_data_that_cannot_be_written_is_the_publishers_error(self, hub, room):
        with pytest.raises(TypeError):
            hub.publish("room", "chat", {"f": object()})
        assert all(conn.messages == [] for conn in room.values())
        hub.publish("room", "chat", 1)
        assert all(len(conn.take()) == 1 for conn in room.values())

    def test_the_time_of_day_by_default(self, room):
        hub = ChannelHub()
        conn = FakeConnection()
        hub.join("room", "ann", conn)
        hub.publish("room", "chat", 1)
        assert conn.messages[0]["ts"] > 1_700_000_000_000


def test_limits_that_are_none():
    with pytest.raises(ConfigurationError, match="limits=5"):
        ChannelHub(limits=5)
    assert ChannelHub(limits=None).join("room", "ann", FakeConnection())


def test_an_event_without_a_name(hub, room):
    with pytest.raises(TypeError, match=r"type=\{'text': 'x'\}: must be a str"):
        hub.publish("room", {"text": "x"})
    with pytest.raises(TypeError, match="event 'chat' of channel 'room' cannot be written as JSON"):
        hub.publish("room", "chat", object())


class TestBadRecipients:
    """E6: whatever one recipient does, everyone else gets each message once, in order."""

    @pytest.mark.parametrize("error", [RuntimeError, asyncio.CancelledError, Panic])
    def test_one_that_raises(self, hub, room, caplog, error):
        def fail(message):
            raise error("broken")

        room["ann"].on_deliver = fail
        with caplog.at_level(logging.ERROR, "street_fast"):
            assert hub.publish("room", "chat", 1) == 3
        assert events(room["bob"]) == events(room["cem"]) == [("chat", 1)]
        assert "conn-ann" in caplog.text
        hub.publish("room", "chat", 2)
        assert events(room["bob"]) == [("chat", 2)]

    def test_one_that_closes_itself_and_others(self, hub, room):
        def close(message):
            room["ann"].simulate_close()
            room["bob"].simulate_close()

        room["ann"].on_deliver = close
        hub.publish("room", "chat", 1)
        assert room["bob"].messages == []
        assert [kind for kind, _ in events(room["cem"])] == ["chat", "presence:leave", "presence:leave"]
        assert hub.presence("room") == ["cem"]

    def test_one_that_leaves_and_joins(self, hub, room):
        late = FakeConnection()

        def shuffle(message):
            room["ann"].on_deliver = None
            hub.leave("room", "ann", room["ann"])
            hub.join("room", "late", late)
            hub.disconnect(room["bob"])

        room["ann"].on_deliver = shuffle
        hub.publish("room", "chat", 1)
        assert [data for kind, data in events(room["bob"]) if kind == "chat"] == [1]  # was there when it was published
        assert [data for kind, data in events(room["cem"]) if kind == "chat"] == [1]
        assert [data for kind, data in events(late) if kind == "chat"] == []
        hub.publish("room", "chat", 2)
        assert [data for kind, data in events(late) if kind == "chat"] == [2]
        assert hub.presence("room") == ["cem", "late"]

    def test_one_that_publishes(self, hub, room):
        def answer(message):
            if message.data < 3:
                hub.publish("room", "chat", message.data + 1)

        room["ann"].on_deliver = answer
        room["cem"].on_deliver = lambda message: message.data == 1 and hub.publish("room", "chat", 10)
        hub.publish("room", "chat", 1)
        got = [events(conn) for conn in room.values()]
        assert got[0] == got[1] == got[2] == [("chat", n) for n in (1, 2, 10, 3)]

    def test_one_that_disconnects_itself_while_it_is_being_disconnected(self, hub, room):
        for channel in ("a", "b"):
            hub.join(channel, "ann", room["ann"])
            hub.join(channel, "bob", room["bob"])
        room["bob"].on_deliver = lambda message: hub.disconnect(room["ann"])
        hub.disconnect(room["ann"])
        assert hub.presence("a") == hub.presence("b") == ["bob"]
        room["bob"].on_deliver = None
        left = [message["channel"] for message in room["bob"].take() if message["type"] == "presence:leave"]
        assert sorted(left) == ["a", "b", "room"]

    def test_interrupted_in_the_middle(self, hub, room):
        def interrupt(message):
            room["ann"].on_deliver = None
            raise KeyboardInterrupt

        room["ann"].on_deliver = interrupt
        with pytest.raises(KeyboardInterrupt):
            hub.publish("room", "chat", 1)
        hub.publish("room", "chat", 2)
        assert events(room["cem"])[-1] == ("chat", 2)

    def test_a_slow_one_misses_presence_and_typing_only(self, hub, room):
        room["ann"].slow = True
        hub.set_typing("room", "bob", True, room["bob"])
        hub.publish("room", "chat", 1)
        hub.leave("room", "bob", room["bob"])
        assert events(room["ann"]) == [("chat", 1)]
        assert room["ann"].dropped == 3
        assert [kind for kind, _ in events(room["cem"])] == ["typing", "chat", "typing", "presence:leave"]


class TestTyping:
    def test_the_others_hear_of_it_once(self, hub, room):
        assert hub.set_typing("room", "ann", True, room["ann"]) is True
        assert hub.set_typing("room", "ann", True, room["ann"]) is False
        assert hub.typing_members("room") == ["ann"]
        assert hub.set_typing("room", "ann", False, room["ann"]) is True
        assert hub.set_typing("room", "ann", False, room["ann"]) is False
        expected = [("typing", {"memberId": "ann", "typing": is_typing}) for is_typing in (True, False)]
        assert room["ann"].messages == []
        assert events(room["bob"]) == events(room["cem"]) == expected

    def test_without_a_connection_everybody_hears_of_it(self, hub, room):
        hub.set_typing("room", "ann", True)
        assert events(room["ann"]) == events(room["bob"]) == [("typing", {"memberId": "ann", "typing": True})]

    def test_it_ends_by_itself(self, hub, room, clock, wheel):
        hub.set_typing("room", "ann", True, room["ann"])
        clock.advance(4.99)
        wheel.advance()
        assert hub.typing_members("room") == ["ann"]
        clock.advance(0.07)
        wheel.advance()
        assert hub.typing_members("room") == []
        assert events(room["bob"])[-1] == ("typing", {"memberId": "ann", "typing": False})
        assert hub.set_typing("room", "ann", True) is True

    def test_a_refresh_prolongs_it_silently(self, hub, room, clock, wheel):
        hub.set_typing("room", "ann", True, room["ann"])
        for _ in range(10):
            clock.advance(3)
            wheel.advance()
            hub.set_typing("room", "ann", True, room["ann"])
        assert events(room["bob"]) == [("typing", {"memberId": "ann", "typing": True})]
        clock.advance(5.1)
        wheel.advance()
        assert events(room["bob"]) == [("typing", {"memberId": "ann", "typing": False})]

    def test_leaving_ends_it_before_the_leave(self, hub, room, clock, wheel):
        hub.set_typing("room", "ann", True, room["ann"])
        room["bob"].take()
        room["ann"].simulate_close()
        assert events(room["bob"]) == [
            ("typing", {"memberId": "ann", "typing": False}),
            ("presence:leave", {"memberId": "ann"}),
        ]
        clock.advance(60)
        wheel.advance()
        assert room["bob"].messages == []
        assert len(wheel) == 0

    def test_a_second_tab_keeps_it(self, hub, room):
        second = FakeConnection()
        hub.join("room", "ann", second)
        hub.set_typing("room", "ann", True, room["ann"])
        hub.leave("room", "ann", room["ann"])
        assert hub.typing_members("room") == ["ann"]
        assert [kind for kind, _ in events(room["bob"])] == ["typing"]

    def test_who_is_not_there_is_ignored(self, hub, room, wheel):
        assert hub.set_typing("room", "nobody", True) is False
        assert hub.set_typing("nowhere", "ann", True) is False
        hub.leave("room", "ann", room["ann"])
        events(room["bob"])
        assert hub.set_typing("room", "ann", True, room["ann"]) is False
        assert hub.set_typing("room", "ann", False, room["ann"]) is False
        assert room["bob"].messages == []
        assert hub.typing_members("room") == []
        assert len(wheel) == 0

    def test_false_cancels_the_timer(self, hub, room, wheel):
        hub.set_typing("room", "ann", True)
        assert len(wheel) == 1
        hub.set_typing("room", "ann", False)
        assert len(wheel) == 0

    def test_needs_a_loop_or_a_wheel(self):
        hub = ChannelHub()
        conn = FakeConnection()
        hub.join("room", "ann", conn)
        with pytest.raises(RuntimeError, match="event loop"):
            hub.set_typing("room", "ann", True)
        assert hub.typing_members("room") == []

    async def test_on_the_wheel_of_the_running_loop(self):
        hub = ChannelHub(typing_ttl_ms=1)
        ann, bob = FakeConnection(), FakeConnection()
        ended = asyncio.Event()
        hub.join("room", "ann", ann)
        hub.join("room", "bob", bob)
        bob.on_deliver = lambda message: message.data["typing"] or ended.set()
        hub.set_typing("room", "ann", True, ann)
        await asyncio.wait_for(ended.wait(), 20)
        assert len(LoopContext.of().wheel) == 0


class TestQuestions:
    def test_of_a_channel_that_is_there(self, hub, room):
        second = FakeConnection()
        hub.join("room", "ann", second)
        hub.join("room", "dan", second, {"age": 7})
        assert hub.presence("room") == ["ann", "bob", "cem", "dan"]
        assert hub.members("room")[2:] == [{"memberId": "cem"}, {"memberId": "dan", "info": {"age": 7}}]
        assert hub.member_count("room") == 4
        assert hub.connection_count("room") == 4
        assert hub.is_present("room", "dan")
        assert not hub.is_present("room", "eve")

    def test_of_a_channel_that_is_not_there(self, hub):
        assert hub.presence("room") == hub.members("room") == hub.typing_members("room") == hub.channel_names() == []
        assert hub.member_count("room") == hub.connection_count("room") == 0
        assert not hub.is_present("room", "ann")
        assert is_empty(hub)

    def test_answers_are_copies(self, hub, room):
        hub.presence("room").clear()
        hub.members("room").clear()
        hub.channel_names().clear()
        assert hub.member_count("room") == 3


class WebSocketPeer:
    """The smallest peer on a WebSocket."""

    def __init__(self, ws):
        self.sink = ws
        self.id = ws.id
        self.callback = None
        ws.on_close = lambda code, reason: self.callback and self.callback(self)

    @property
    def closed(self):
        return self.sink.closed

    def deliver(self, message, droppable=False):
        raise AssertionError("a WebSocket is written to directly")

    def add_close_callback(self, callback):
        self.callback = callback


class TestDifferences:
    """Presence in batches."""

    @pytest.fixture
    def hub(self, clock, wheel):
        return ChannelHub(wheel=wheel, clock_ms=clock.ms, presence_interval_s=0.1, limits=Limits(presence_members=4))

    @pytest.fixture
    def pass_time(self, clock, wheel):
        def pass_time(seconds=0.2):
            clock.advance(seconds)
            wheel.advance()

        return pass_time

    def test_who_came_and_went(self, hub, pass_time):
        ann, bob = FakeConnection(), FakeConnection()
        hub.join("room", "ann", ann, {"name": "Ann"})
        pass_time()
        assert ann.messages == []  # she is alone
        hub.join("room", "bob", bob)
        hub.leave("room", "bob", bob)
        hub.join("room", "cem", bob)
        assert ann.messages == []
        pass_time()
        data = {"joined": [{"memberId": "cem"}], "left": [{"memberId": "bob"}], "memberCount": 2}
        assert ann.take() == bob.take() == [{"type": "presence", "channel": "room", "data": data}]
        hub.leave("room", "ann", ann)
        hub.join("room", "ann", ann, {"name": "Ann"})
        pass_time()
        data = {"joined": [{"memberId": "ann", "info": {"name": "Ann"}}], "left": [], "memberCount": 2}
        assert events(bob) == [("presence", data)]
        pass_time(10)
        assert bob.messages == []

    def test_at_most_so_often(self, hub, clock, wheel):
        ann, bob = FakeConnection(), FakeConnection()
        hub.join("room", "ann", ann)
        times = []
        ann.on_deliver = lambda message: times.append(clock())
        for _ in range(300):
            clock.advance(0.01)
            wheel.advance()
            hub.join("room", "bob", bob)
            hub.leave("room", "bob", bob)
        assert 15 <= len(times) <= 30
        assert min(b - a for a, b in itertools.pairwise(times)) > 0.099

    def test_who_did_not_read_is_told_when_it_does(self, hub, pass_time):
        """Ben came as Ann went: her number of members is right, and would say nothing of it."""
        slow, ann, other = FakeConnection(), FakeConnection(), FakeConnection()
        slow.bytes_buffered = 0
        hub.join("room", "slow", slow)
        hub.join("room", "ann", ann)
        hub.set_typing("room", "ann", True, ann)
        pass_time()
        slow.take()
        slow.slow, slow.bytes_buffered = True, 100_000
        hub.leave("room", "ann", ann)
        hub.join("room", "ben", other)
        hub.set_typing("room", "ben", True, other)
        for _ in range(10):
            pass_time()
        hub.set_typing("room", "ben", False, other)
        hub.set_typing("room", "ben", True, other)
        pass_time()
        assert slow.dropped > 0
        assert slow.take() == []
        slow.slow, slow.bytes_buffered = False, 0
        pass_time()
        data = {"joined": [{"memberId": "ben"}], "left": [{"memberId": "ann"}], "memberCount": 2}
        typing = [("typing", {"memberId": "ann", "typing": False}), ("typing", {"memberId": "ben", "typing": True})]
        assert events(slow) == [*typing, ("presence", data)]
        pass_time()
        assert events(slow) == []
        slow.slow, slow.bytes_buffered = True, 100_000
        for number in range(10):
            hub.join("room", f"m{number}", other)
            hub.leave("room", f"m{number}", other)
            pass_time()
        slow.slow, slow.bytes_buffered = False, 0
        pass_time()
        assert events(slow) == [("presence", {"memberCount": 2})]  # too many to say
        slow.slow, slow.bytes_buffered = True, 100_000
        hub.leave("room", "ben", other)
        pass_time()
        hub.join("room", "slow", slow, presence=False)
        slow.slow, slow.bytes_buffered = False, 0
        pass_time()
        assert slow.take() == []  # it is not to be told any more
        for conn in (slow, ann, other):
            conn.simulate_close()
        assert is_empty(hub)

    def test_a_list_that_is_taken_in_between_is_right_afterwards(self, hub, pass_time):
        """Whatever a client does with the difference on top of any list taken since the last one, it is right."""
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        dice = random.Random(seed)
        conns = {name: FakeConnection() for name in "abcd"}
        watcher = FakeConnection()
        hub.join("room", "watcher", watcher)
        for _ in range(200):
            lists = []
            for _ in range(dice.randrange(6)):
                name = dice.choice("abc")
                (hub.join if dice.random() < 0.6 else hub.leave)("room", name, conns[name])
                lists.append({member["memberId"] for member in hub.members("room")})
            pass_time()
            for message in watcher.take():
                for members in lists:
                    members |= {member["memberId"] for member in message["data"]["joined"]}
                    members -= {member["memberId"] for member in message["data"]["left"]}
            assert all(members == set(hub.presence("room")) for members in lists)

    def test_many_are_only_counted(self, hub, pass_time):
        conns = [FakeConnection() for _ in range(6)]
        for number, conn in enumerate(conns):
            hub.join("room", f"m{number}", conn)
        pass_time()
        assert events(conns[0]) == [("presence", {"memberCount": 6})]
        assert hub.roll("room") == {"memberCount": 6}
        for conn in conns[4:]:
            conn.simulate_close()
        pass_time()
        assert events(conns[0]) == [
            ("presence", {"joined": [], "left": [{"memberId": "m4"}, {"memberId": "m5"}], "memberCount": 4})
        ]
        assert json.loads(bytes(hub.roll("room")["members"])) == [{"memberId": f"m{number}"} for number in range(4)]

    def test_typing_is_told_at_once(self, hub, pass_time):
        ann, bob = FakeConnection(), FakeConnection()
        hub.join("room", "ann", ann)
        hub.join("room", "bob", bob)
        hub.set_typing("room", "ann", True, ann)
        assert [kind for kind, _ in events(bob)] == ["typing"]
        ann.simulate_close()
        assert [kind for kind, _ in events(bob)] == ["typing"]
        pass_time()
        assert [kind for kind, _ in events(bob)] == ["presence"]

    def test_many_channels_are_told_in_turns(self, hub, wheel, pass_time):
        ann, bob = FakeConnection(), FakeConnection()
        big = ChannelHub(wheel=wheel, presence_interval_s=0.1, limits=Limits(channels_per_connection=10_000))
        for number in range(2_500):
            big.join(f"room:{number}", "ann", ann)
            big.join(f"room:{number}", "bob", bob)
        pass_time()
        for expected in (1_000, 2_000, 2_500):
            assert len(ann.messages) == expected
            pass_time()
        assert len({message["channel"] for message in ann.messages}) == 2_500

    def test_a_channel_that_is_empty_again_is_forgotten(self, hub, pass_time, wheel):
        conn = FakeConnection()
        for number in range(100):
            hub.join(f"room:{number}", "ann", conn)
            hub.leave(f"room:{number}", "ann", conn)
        assert hub._changed == {}
        conn.simulate_close()
        pass_time()
        assert is_empty(hub)
        assert len(wheel) == 0

    def test_switched_on_later(self, clock, wheel, pass_time):
        hub = ChannelHub(wheel=wheel)
        ann, bob, cem = (FakeConnection() for _ in range(3))
        hub.join("room", "ann", ann)
        hub.join("room", "bob", bob)
        hub.batch_presence(0.1)
        hub.join("room", "cem", cem)
        pass_time()
        assert [kind for kind, _ in events(ann)] == ["presence:join", "presence"]

    @pytest.mark.parametrize("interval", [0, -1, True, "1", float("nan"), 1e9])
    def test_what_is_no_interval(self, interval):
        with pytest.raises(ConfigurationError, match="presence_interval_s"):
            ChannelHub(presence_interval_s=interval)


class TestUnaware:
    """Connections that are not told who is there."""

    @pytest.mark.parametrize("interval", [None, 0.1])
    def test_they_get_messages_only(self, clock, wheel, interval):
        hub = ChannelHub(wheel=wheel, presence_interval_s=interval)
        ann, spy = FakeConnection(), FakeConnection()
        hub.join("room", "spy", spy, presence=False)
        hub.join("room", "ann", ann)
        hub.set_typing("room", "ann", True, ann)
        hub.publish("room", "chat", 1)
        clock.advance(1)
        wheel.advance()
        assert events(spy) == [("chat", 1)]
        assert hub.presence("room") == ["spy", "ann"]
        hub.join("room", "spy", spy)  # the last word counts
        hub.set_typing("room", "ann", False, ann)
        assert events(spy) == [("typing", {"memberId": "ann", "typing": False})]
        hub.join("room", "spy", spy, presence=False)
        spy.simulate_close()
        ann.simulate_close()
        clock.advance(1)
        wheel.advance()
        assert is_empty(hub)
        assert hub._unaware == {}


class TestForLibraries:
    def test_what_was_built_elsewhere_is_delivered(self, hub, room):
        message = publication("room", b'{"type":"message"', None)
        hub.deliver("room", message)
        hub.deliver("room", message, room["ann"])
        hub.deliver("room", message, {room["ann"], room["bob"], "nobody"})
        hub.deliver("elsewhere", message)
        assert [len(conn.take()) for conn in room.values()] == [1, 2, 3]

    def test_a_watcher_hears_of_channels_and_members(self, hub):
        told = []

        class Watcher:
            def __getattr__(self, name):
                return lambda *arguments: told.append((name, *arguments))

        hub.watcher = Watcher()
        ann, tab = FakeConnection(), FakeConnection()
        hub.join("room", "ann", ann, {"x": 1})
        hub.join("room", "ann", tab, {"x": 2})
        hub.leave("room", "ann", ann)
        hub.join("room", "ann", ann, {"x": 3})
        assert told == [("channel_opened", "room"), ("member_joined", "room", "ann", b'{"x":1}')]
        told.clear()
        ann.simulate_close()
        tab.simulate_close()
        assert told == [("member_left", "room", "ann"), ("channel_closed", "room")]
        assert is_empty(hub)

    def test_members_beyond(self, hub):
        ann, bob = FakeConnection(), FakeConnection()
        hub.members_changed("room", [("cem", None)], [])
        assert hub.presence("room") == []
        hub.join("room", "ann", ann)
        hub.members_changed("room", [("cem", b'{"x":1}'), ("ann", None)], ["nobody"])
        assert events(ann) == [("presence:join", {"memberId": "cem", "info": {"x": 1}})]
        hub.join("room", "cem", bob)
        hub.leave("room", "cem", bob)
        assert events(ann) == []
        hub.members_changed("room", [], ["cem"])
        assert events(ann) == [("presence:leave", {"memberId": "cem", "info": {"x": 1}})]
        hub.members_changed("room", [("cem", None)], [])
        ann.simulate_close()
        bob.simulate_close()
        assert is_empty(hub)

    def test_questions(self, hub, room):
        ann = room["ann"]
        assert hub.is_joined("room", "ann", ann)
        assert not hub.is_joined("room", "bob", ann)
        assert not hub.is_joined("elsewhere", "ann", ann)
        hub.join("other", "ann", ann)
        assert hub.channels_of(ann) == ["room", "other"]
        assert hub.channels_of(FakeConnection()) == []
        assert hub.sink_of(ann.id) is ann
        assert hub.sink_of("nobody") is None
        assert hub.has_channel("room")
        assert not hub.has_channel("elsewhere")
        hub.check_member("dan", {"x": 1})
        for wrong in (("", None), ("a\nb", None), ("dan", {"x": object()}), ("dan", "x" * 2_000)):
            with pytest.raises(ValueError, match="member"):
                hub.check_member(*wrong)

    async def test_the_timers_are_those_of_the_loop(self, hub, wheel):
        assert hub.timers() is wheel
        assert ChannelHub().timers() is LoopContext.of().wheel


class TestWebSockets:
    async def test_all_kinds_of_peers_share_a_channel(self):
        hub = ChannelHub()
        pairs = [memory_pair() for _ in range(3)]
        peers = [WebSocketPeer(pair.server) for pair in pairs]
        inboxes = [[] for _ in pairs]
        for pair, inbox in zip(pairs, inboxes, strict=True):
            pair.client.on_message = lambda text, inbox=inbox: inbox.append(json.loads(text))
        fake = FakeConnection()
        hub.join("room", "fake", fake)
        for n, peer in enumerate(peers):
            hub.join("room", f"ws-{n}", peer)
        assert hub.publish("room", "chat", {"n": 1}, except_conn_id=peers[0].id) == 3
        assert hub.publish("room", "chat", {"n": 2}, except_member_id="ws-1") == 3
        await _turns(5)
        chats = [[m["data"]["n"] for m in inbox if m["type"] == "chat"] for inbox in [*inboxes, fake.messages]]
        assert chats == [[2], [1], [1, 2], [1, 2]]
        pairs[1].client.abort()
        await pairs[1].server.wait_closed()
        assert hub.presence("room") == ["fake", "ws-0", "ws-2"]
        await _turns(5)
        assert inboxes[0][-1]["type"] == "presence:leave"
        for pair in pairs:
            pair.client.abort()
            pair.server.abort()
        await _turns(5)
        fake.simulate_close()
        assert is_empty(hub)

    async def test_a_slow_websocket_misses_typing_and_that_is_counted(self):
        context = LoopContext(asyncio.get_running_loop(), ManualClock())
        hub = ChannelHub(wheel=context.wheel)
        pair = memory_pair(context=context, socket_buffer_bytes=1_000)
        slow, ann = WebSocketPeer(pair.server), FakeConnection()
        hub.join("room", "slow", slow)
        hub.join("room", "ann", ann)
        pair.client_transport.stall()
        hub.publish("room", "chat", "x" * 100_000)
        await _turns(3)
        before = context.stats()["messages_dropped"]
        hub.set_typing("room", "ann", True, ann)
        hub.set_typing("room", "ann", False, ann)
        assert context.stats()["messages_dropped"] == before + 2
        got = []
        pair.client.on_message = lambda text: got.append(json.loads(text)["type"])
        pair.client_transport.unstall()
        await _turns(300)
        hub.publish("room", "chat", 2)
        await _turns(5)
        assert got == ["presence:join", "chat", "chat"]
        pair.client.abort()
        pair.server.abort()
        await _turns(5)

    async def test_a_slow_websocket_hears_later_how_it_is_by_then(self):
        clock = ManualClock()
        context = LoopContext(asyncio.get_running_loop(), clock)
        hub = ChannelHub(wheel=context.wheel, presence_interval_s=0.1)
        pair = memory_pair(context=context, socket_buffer_bytes=1_000)
        slow, ann, ben = WebSocketPeer(pair.server), FakeConnection(), FakeConnection()
        hub.join("room", "slow", slow)
        hub.join("room", "ann", ann)
        pair.client_transport.stall()
        hub.publish("room", "chat", "x" * 100_000)
        await _turns(3)
        got = []
        pair.client.on_message = lambda text: got.append(json.loads(text))

        def pass_time():
            clock.advance(0.2)
            context.wheel.advance()

        pass_time()
        hub.leave("room", "ann", ann)
        hub.join("room", "ben", ben)
        pass_time()
        pair.client_transport.unstall()
        await _turns(300)
        pass_time()
        await _turns(5)
        assert [message["type"] for message in got] == ["chat", "presence"]
        assert [one["memberId"] for one in got[1]["data"]["joined"]] == ["slow", "ben"]
        assert got[1]["data"]["left"] == [{"memberId": "ann"}]
        pair.client.abort()
        pair.server.abort()
        await pair.server.wait_closed()
        ann.simulate_close()
        ben.simulate_close()
        assert is_empty(hub)


async def _turns(count):
    for _ in range(count):
        await asyncio.sleep(0)

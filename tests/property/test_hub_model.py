"""ChannelHub against a model of plain dictionaries, with recipients that misbehave in the middle of a fan-out.

The model knows who is where and what each connection must have received so far, message for message. It holds:
every message reaches every live subscriber exactly once and in order; a member is present as long as it has a
connection; nobody types longer than the TTL; when all have left, nothing is left.
"""

from __future__ import annotations

import logging

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from street_fast._core import TimerWheel
from street_fast.errors import LimitExceeded
from street_fast.hub import ChannelHub
from street_fast.limits import Limits
from street_fast.testing import FakeConnection, ManualClock

CHANNELS = ["a", "ü"]
MEMBERS = ["ann", "bob", "cem"]
TTL_S = 5.0
RESOLUTION_S = 0.05
LIMIT = 3
CONNECTIONS = 5

channels = st.sampled_from(CHANNELS)
members = st.sampled_from(MEMBERS)


class HubMachine(RuleBasedStateMachine):
    """`joined[channel]` lists (connection, member) in the order of their joins; `typing` maps to the last refresh."""

    @initialize()
    def start(self):
        self.clock = ManualClock()
        self.wheel = TimerWheel(self.clock, resolution_s=RESOLUTION_S)
        self.hub = ChannelHub(
            typing_ttl_ms=TTL_S * 1_000,
            wheel=self.wheel,
            clock_ms=self.clock.ms,
            limits=Limits(channels_per_connection=LIMIT),
        )
        self.expired = []
        expire = self.hub._on_typing_expired

        def expire_and_note(key):
            self.expired.append(key)
            expire(key)

        self.hub._on_typing_expired = expire_and_note
        self.conns = []
        self.joined = {channel: [] for channel in CHANNELS}
        self.typing = {}
        self.expected = {}
        self.channels_of = {}  # of each connection, in the order in which it leaves them
        self.number = 0
        for _ in range(CONNECTIONS):
            self.connect()

    def connect(self):
        conn = FakeConnection()
        self.conns.append(conn)
        self.expected[conn.id] = []
        self.channels_of[conn.id] = {}

    def pick(self, data):
        return data.draw(st.sampled_from(self.conns))

    # --- the model ---

    def connections(self, channel):
        return {conn.id: conn for conn, _ in self.joined[channel]}

    def present(self, channel):
        return list(dict.fromkeys(member for _, member in self.joined[channel]))

    def expect(self, kind, channel, data, skip=()):
        for conn in self.connections(channel).values():
            if conn.id not in skip and not conn.closed:
                self.expected[conn.id].append((kind, channel, data))

    def model_join(self, channel, member, conn):
        is_news = member not in self.present(channel)
        self.joined[channel].append((conn, member))
        self.channels_of[conn.id][channel] = None
        if is_news:
            self.expect("presence:join", channel, {"memberId": member}, {conn.id})
        return is_news

    def model_leave(self, channel, member, conn):
        if (conn, member) not in self.joined[channel]:
            return False
        self.joined[channel].remove((conn, member))
        if conn.id not in self.connections(channel):
            del self.channels_of[conn.id][channel]
        if member in self.present(channel):
            return False
        if self.typing.pop((channel, member), None) is not None:
            self.expect("typing", channel, {"memberId": member, "typing": False}, {conn.id})
        self.expect("presence:leave", channel, {"memberId": member}, {conn.id})
        return True

    def model_disconnect(self, conn):
        for channel in list(self.channels_of[conn.id]):
            for _, member in [entry for entry in self.joined[channel] if entry[0] is conn]:
                self.model_leave(channel, member, conn)

    # --- the rules ---

    @rule(joins=st.lists(st.tuples(st.integers(0, CONNECTIONS - 1), channels, members), min_size=1, max_size=6))
    def join(self, joins):
        for place, channel, member in joins:
            conn = self.conns[place]
            memberships = sum(entry[0] is conn for entries in self.joined.values() for entry in entries)
            if (conn, member) in self.joined[channel]:
                assert self.hub.join(channel, member, conn) is False
            elif memberships >= LIMIT:
                with pytest.raises(LimitExceeded):
                    self.hub.join(channel, member, conn)
            else:
                assert self.hub.join(channel, member, conn) is self.model_join(channel, member, conn)

    @rule(data=st.data(), channel=channels, member=members)
    def leave(self, data, channel, member):
        conn = self.pick(data)
        assert self.hub.leave(channel, member, conn) is self.model_leave(channel, member, conn)

    @rule(data=st.data())
    def disconnect(self, data):
        conn = self.pick(data)
        self.model_disconnect(conn)
        self.hub.disconnect(conn)

    @rule(data=st.data())
    def close(self, data):
        self.end(self.pick(data))
        self.connect()

    def end(self, conn):
        if not conn.closed:
            conn.closed = True
            self.model_disconnect(conn)
            conn.simulate_close()
        assert self.hub.join("a", "ann", conn) is False
        self.check_inbox(conn)
        self.conns.remove(conn)

    @rule(data=st.data(), channel=channels, exceptions=st.sampled_from(["nobody", "connection", "member", "both"]))
    def publish(self, data, channel, exceptions):
        self.number += 1
        but_conn, but_member = self.pick(data), data.draw(members)
        skip, options = set(), {}
        if exceptions in ("connection", "both"):
            options["except_conn_id"] = but_conn.id
            skip.add(but_conn.id)
        if exceptions in ("member", "both"):
            options["except_member_id"] = but_member
            skip |= {conn.id for conn, member in self.joined[channel] if member == but_member}
        self.expect("chat", channel, self.number, skip)
        recipients = self.connections(channel).keys() - skip
        assert self.hub.publish(channel, "chat", self.number, **options) == len(recipients)

    @rule(data=st.data(), whom=st.tuples(channels, members), typing=st.sampled_from([True, True, False]))
    def set_typing(self, data, whom, typing):
        conn = self.pick(data) if data.draw(st.booleans()) else None
        present = [(channel, member) for channel, entries in self.joined.items() for _, member in entries]
        if present and data.draw(st.booleans()):
            whom = data.draw(st.sampled_from(sorted(present)))
        channel, member = key = whom
        is_news = member in self.present(channel) and typing != (key in self.typing)
        if typing and member in self.present(channel):
            self.typing[key] = self.clock()
        elif not typing:
            self.typing.pop(key, None)
        if is_news:
            self.expect("typing", channel, {"memberId": member, "typing": typing}, {conn.id} if conn else ())
        assert self.hub.set_typing(channel, member, typing, conn) is is_news

    @rule(seconds=st.sampled_from([0.01, 3.0, 4.9, 5.05, 60.0]))
    def time_passes(self, seconds):
        self.clock.advance(seconds)
        deadlines = self.ended()
        self.expired.clear()
        self.wheel.advance()
        # In the order of their deadlines; among equal ones any order is good.
        assert sorted(self.expired) == sorted(deadlines)
        assert [deadlines[key] for key in self.expired] == sorted(deadlines.values())
        for key in self.expired:
            self.typing.pop(key)
            self.expect("typing", key[0], {"memberId": key[1], "typing": False})

    def ended(self):
        """Whose typing ends now, and its deadline; the wheel fires at the first tick that is not before it."""
        tick = int(self.clock() / RESOLUTION_S) if self.clock() / RESOLUTION_S >= 0 else 0
        deadlines = {key: self.hub._typing_timers[key].deadline for key in self.typing}
        for key, deadline in deadlines.items():
            assert self.typing[key] + TTL_S <= deadline <= self.typing[key] + TTL_S + RESOLUTION_S * 1.001
        return {key: deadline for key, deadline in deadlines.items() if round(deadline / RESOLUTION_S) <= tick}

    @rule(data=st.data(), channel=channels, action=st.sampled_from(["raise", "publish", "leave", "close", "join"]))
    def a_recipient_misbehaves(self, data, channel, action):
        """One connection acts inside deliver(), on a message to a channel that it is in."""
        mine = [conn for conn, _ in self.joined[channel] if not conn.closed]
        if not mine:
            return
        conn = data.draw(st.sampled_from(mine))
        other = data.draw(members)
        self.number += 1
        first = self.number
        self.expect("chat", channel, first)
        if action == "publish":
            self.number += 1
            self.expect("chat", channel, self.number)

        def act(_):
            conn.on_deliver = None
            if action == "raise":
                raise RuntimeError("on purpose")
            if action == "publish":
                self.hub.publish(channel, "chat", first + 1)
            elif action == "leave":
                self.model_disconnect(conn)
                self.hub.disconnect(conn)
            elif action == "close":
                conn.closed = True
                self.model_disconnect(conn)
                conn.simulate_close()
            elif not conn.closed:
                self.join_inside(channel, other, conn)

        conn.on_deliver = act
        self.hub.publish(channel, "chat", first)
        if conn.closed:
            self.end(conn)
            self.connect()

    def join_inside(self, channel, member, conn):
        memberships = sum(entry[0] is conn for entries in self.joined.values() for entry in entries)
        if (conn, member) not in self.joined[channel] and memberships < LIMIT:
            self.model_join(channel, member, conn)
            self.hub.join(channel, member, conn)

    def teardown(self):
        if not hasattr(self, "hub"):
            return
        for conn in list(self.conns):
            self.end(conn)
        hub, presence = self.hub, self.hub._presence
        left = [hub._channels, hub._subscribers, hub._typing_timers, presence._members, presence._typing]
        assert not any(left)
        assert len(self.wheel) == 0

    # --- what must hold ---

    def check_inbox(self, conn):
        got = [(message["type"], message["channel"], message["data"]) for message in conn.take()]
        expected = self.expected[conn.id]
        assert got == expected
        expected.clear()

    @invariant()
    def everybody_got_everything_once_and_in_order(self):
        for conn in getattr(self, "conns", ()):
            self.check_inbox(conn)

    @invariant()
    def the_hub_answers_like_the_model(self):
        if not hasattr(self, "hub"):
            return
        assert sorted(self.hub.channel_names()) == sorted(channel for channel in CHANNELS if self.joined[channel])
        for channel in CHANNELS:
            present = self.present(channel)
            assert sorted(self.hub.presence(channel)) == sorted(present)
            assert self.hub.member_count(channel) == len(present)
            assert self.hub.connection_count(channel) == len(self.connections(channel))
            for member in MEMBERS:
                assert self.hub.is_present(channel, member) is (member in present)
            typing = [member for name, member in self.typing if name == channel]
            assert sorted(self.hub.typing_members(channel)) == sorted(typing)
            for member in typing:
                assert self.clock() < self.typing[channel, member] + TTL_S + 2 * RESOLUTION_S


def test_the_hub_behaves_like_its_model():
    logging.getLogger("street_fast").setLevel(logging.CRITICAL)  # recipients raise on purpose
    try:
        run_state_machine_as_test(
            HubMachine, settings=settings(max_examples=120, stateful_step_count=50, deadline=None)
        )
    finally:
        logging.getLogger("street_fast").setLevel(logging.NOTSET)

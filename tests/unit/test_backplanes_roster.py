"""Roster: who is on other nodes, told as differences; OwnMembers: what the others are told."""

from __future__ import annotations

import random

import pytest

from street_fast.backplanes.roster import Change, OwnMembers, Roster
from tests.contract.bus import Recorder

A, B = "a" * 16, "b" * 16


@pytest.fixture
def sink():
    return Recorder()


@pytest.fixture
def roster(sink):
    roster = Roster(sink)
    roster.open("c")
    return roster


def members(sink):
    return sink.members["c"]


def test_a_read_tells_what_is_different(roster, sink):
    roster.read("c", {A: (3, {"ann": None, "bob": b"1"}), B: (1, {"ann": None})}, roster.mark())
    assert members(sink) == {"ann": None, "bob": b"1"}
    roster.read("c", {A: (4, {"bob": b"2"}), B: (1, {"ann": None})}, roster.mark())
    assert members(sink) == {"ann": None, "bob": b"2"}
    roster.read("c", {A: (4, {"bob": b"2"})}, roster.mark())
    assert members(sink) == {"bob": b"2"}
    before = len(sink.log)
    roster.read("c", {A: (4, {"bob": b"2"})}, roster.mark())
    assert len(sink.log) == before
    assert roster.nodes() == {A}


def test_changes_follow_each_other(roster, sink):
    assert roster.change("c", A, 0, 1, {"ann": None}, [])
    assert roster.change("c", A, 1, 5, {"bob": b"1"}, ["ann"])
    assert members(sink) == {"bob": b"1"}
    assert roster.change("c", A, 1, 5, {"bob": b"1"}, ["ann"]), "twice is once"
    assert not roster.change("c", A, 6, 7, {"eve": None}, []), "one was missed"
    assert members(sink) == {"bob": b"1"}
    roster.read_node("c", A, 7, {"eve": None})
    assert members(sink) == {"eve": None}
    assert roster.change("c", A, 7, 8, {}, ["eve"])
    assert members(sink) == {}
    assert roster.nodes() == set()
    assert roster.change("c", A, 0, 9, {"ann": None}, [])
    assert members(sink) == {"ann": None}


def test_what_was_asked_for_before_a_change_does_not_undo_it(roster, sink):
    mark = roster.mark()
    assert roster.change("c", A, 0, 1, {"ann": None}, [])
    roster.read("c", {}, mark)
    assert members(sink) == {"ann": None}
    roster.read("c", {A: (0, {"old": None})}, mark)
    assert members(sink) == {"ann": None}
    roster.read("c", {}, roster.mark(), keep=lambda node: node == A)
    assert members(sink) == {"ann": None}
    roster.read("c", {}, roster.mark())
    assert members(sink) == {}


def test_a_member_of_two_nodes_leaves_with_the_last(roster, sink):
    roster.read("c", {A: (1, {"ann": None, "bob": None}), B: (1, {"ann": None})}, roster.mark())
    roster.drop_node(A)
    assert members(sink) == {"ann": None}
    roster.drop_node(A)
    roster.drop_node(B)
    assert members(sink) == {}


def test_another_info_on_another_node_is_no_news(roster, sink):
    roster.read("c", {A: (1, {"ann": b"1"}), B: (1, {"ann": b"2"})}, roster.mark())
    first = members(sink)["ann"]
    roster.read("c", {A: (1, {"ann": b"1"}), B: (1, {"ann": b"2"})}, roster.mark())
    assert members(sink)["ann"] == first


def test_a_closed_channel_is_void(roster, sink):
    roster.read("c", {A: (1, {"ann": None})}, roster.mark())
    roster.close("c")
    sink.members.clear()
    roster.drop_node(A)
    roster.read("c", {A: (2, {"bob": None})}, roster.mark())
    assert roster.change("c", A, 5, 6, {"eve": None}, [])
    assert members(sink) == {}
    roster.open("c")
    roster.read("c", {A: (2, {"bob": None})}, roster.mark())
    assert members(sink) == {"bob": None}


class TestOwnMembers:
    def test_changes_are_taken_together(self):
        own = OwnMembers()
        own.join("c", "ann", None)
        own.join("c", "bob", b"1")
        own.join("d", "ann", None)
        assert own.changed
        assert own.take() == [
            Change("c", 0, 1, {"ann": None, "bob": b"1"}, [], {"ann": None, "bob": b"1"}),
            Change("d", 0, 2, {"ann": None}, [], {"ann": None}),
        ]
        assert not own.changed
        own.join("c", "bob", b"2")
        own.leave("c", "ann")
        own.leave("c", "nobody")
        own.leave("e", "nobody")
        assert own.take() == [Change("c", 1, 3, {"bob": b"2"}, ["ann"], {"bob": b"2"})]
        own.leave("c", "bob")
        assert own.take() == [Change("c", 3, 4, {}, ["bob"], {})]
        assert [*own.all()] == [("d", 2, {"ann": None})]
        own.join("c", "eve", None)
        assert own.take() == [Change("c", 0, 5, {"eve": None}, [], {"eve": None})]

    def test_what_comes_to_nothing_is_nothing(self):
        own = OwnMembers()
        own.join("c", "ann", b"1")
        own.leave("c", "ann")
        assert own.take() == []
        own.join("c", "ann", b"1")
        own.take()
        own.leave("c", "ann")
        own.join("c", "ann", b"1")
        assert own.take() == []
        assert len(own) == 1


@pytest.mark.parametrize("seed", range(20))
def test_the_others_know_what_is_there(seed):
    """Three nodes tell each other, over a bus that loses and doubles; whoever missed something reads."""
    print("seed", seed)
    chance = random.Random(seed)
    nodes = [chr(ord("a") + number) * 16 for number in range(3)]
    own = {node: OwnMembers() for node in nodes}
    here = {node: {} for node in nodes}
    sinks = {node: Recorder() for node in nodes}
    rosters = {node: Roster(sinks[node]) for node in nodes}
    store = {}
    for roster in rosters.values():
        roster.open("c")
    for _ in range(300):
        node = chance.choice(nodes)
        for _ in range(chance.randint(1, 3)):
            member = chance.choice("uvwxyz")
            if chance.random() < 0.5:
                here[node][member] = chance.choice([None, b"1", b"2"])
                own[node].join("c", member, here[node][member])
            else:
                here[node].pop(member, None)
                own[node].leave("c", member)
        for change in own[node].take():
            store[node] = (change.version, dict(change.members))
            for other in nodes:
                if other != node and chance.random() < 0.8:
                    for _ in range(chance.randint(1, 2)):
                        if not rosters[other].change(
                            "c", node, change.previous, change.version, change.joined, change.left
                        ):
                            rosters[other].read_node("c", node, *store[node])
    for node in nodes:
        there = {other: state for other, state in store.items() if other != node and state[1]}
        rosters[node].read("c", there, rosters[node].mark())
        everybody = {member for _, state in there.values() for member in state}
        assert set(sinks[node].members["c"]) == everybody
        for member, info in sinks[node].members["c"].items():
            assert info in [state[member] for _, state in there.values() if member in state]


def test_who_is_asked_says_who_is_there_in_any_channel():
    own = OwnMembers()
    assert own.of("c") == (1, {})
    own.join("c", "ann", b"1")
    own.join("d", "bob", None)
    own.take()
    assert own.of("c") == (1, {"ann": b"1"})
    assert own.of("d") == (2, {"bob": None})
    own.leave("c", "ann")
    (change,) = own.take()
    assert own.of("c") == (change.version, {}), "not below what the others know"


def test_the_channels_of_a_node(roster):
    roster.open("d")
    roster.read_node("c", A, 1, {"ann": None})
    roster.read_node("d", B, 1, {"bob": None})
    roster.read_node("d", A, 2, {"ann": None})
    assert roster.channels_of(A) == ["c", "d"]
    assert roster.channels_of(B) == ["d"]
    roster.drop_node(A)
    assert roster.channels_of(A) == []

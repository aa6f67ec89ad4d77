"""Whom a client that reads slowly has not been told about."""

from __future__ import annotations

import pytest

from street_fast.limits import Limits
from street_fast.missed import Missed


class Sink:
    def __init__(self, waiting=0):
        self.bytes_buffered = waiting


SLOW = 2_000


@pytest.fixture
def missed():
    return Missed(Limits(write_soft_bytes=1_000, presence_members=5))


def taken(missed):
    return [
        (channel, sink, about.members if about.members is None else list(about.members), list(about.typists))
        for channel, sink, about in missed.take()
    ]


def test_who_takes_everything_has_missed_nothing(missed):
    missed.note("room", [Sink(), Sink(1_000), object()], None, members=["ann"], typists=["bob"])
    assert len(missed) == 0
    assert taken(missed) == []


def test_it_is_told_when_the_client_reads_again(missed):
    slow, other = Sink(SLOW), Sink(SLOW)
    missed.note("room", {slow: (), other: (), Sink(): ()}, None, members=["ann", "bob"])
    missed.note("room", [slow], None, members=["ann", "cem"], typists=["dan"])
    missed.note("lobby", [slow], None, typists=["ann"])
    assert len(missed) == 2
    assert taken(missed) == []
    slow.bytes_buffered = 1_000
    assert taken(missed) == [("room", slow, ["ann", "bob", "cem"], ["dan"]), ("lobby", slow, [], ["ann"])]
    assert len(missed) == 1
    other.bytes_buffered = 0
    assert taken(missed) == [("room", other, ["ann", "bob"], [])]
    assert len(missed) == 0


@pytest.mark.parametrize("as_set", [False, True])
def test_who_was_left_out_has_missed_nothing(missed, as_set):
    slow, other = Sink(SLOW), Sink(SLOW)
    missed.note("room", [slow, other], {slow} if as_set else slow, members=["ann"])
    slow.bytes_buffered = other.bytes_buffered = 0
    assert taken(missed) == [("room", other, ["ann"], [])]


def test_more_than_can_be_said_is_not_kept(missed):
    slow = Sink(SLOW)
    for number in range(100):
        missed.note("room", [slow], None, members=[f"m{number}"], typists=[f"t{number}"])
    slow.bytes_buffered = 0
    ((_, _, members, typists),) = taken(missed)
    assert members is None
    assert typists == ["t0", "t1", "t2", "t3", "t4"]


def test_who_has_left_is_forgotten(missed):
    slow, other = Sink(SLOW), Sink(SLOW)
    missed.note("room", [slow, other], None, members=["ann"])
    missed.forget("room", slow)
    missed.forget("room", slow)
    missed.forget("lobby", slow)
    assert len(missed) == 1
    missed.forget("room", other)
    assert len(missed) == 0

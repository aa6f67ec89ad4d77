"""Following: what the bus brings, in order and once, and the history where the bus is not enough."""

from __future__ import annotations

import random

import pytest

from street_fast.backplanes import History, Page, Position, Publication
from street_fast.backplanes.following import Following
from street_fast.backplanes.reading import page_of

HISTORY = History(size=20, ttl_s=60)


def at(offset, epoch="e"):
    return Position(epoch, offset, f"t{offset}" if offset else "0")


def kept(offset, epoch="e"):
    return Publication(b"%d" % offset, at(offset, epoch))


def page(first, last, top=None, recovered=True, epoch="e"):
    return Page([kept(offset, epoch) for offset in range(first, last + 1)], at(top or last, epoch), recovered)


class Sink:
    def __init__(self):
        self.log = []
        self.react = None

    def deliver(self, channel, publication):
        self.log.append((channel, publication.payload))
        if self.react is not None:
            self.react(channel, publication)

    def lost(self, channel):
        self.log.append((channel, None))


@pytest.fixture
def sink():
    return Sink()


@pytest.fixture
def asked():
    """What was asked for: (channel, since)."""
    return []


@pytest.fixture
def following(sink, asked):
    following = Following(sink, lambda channel, since: asked.append((channel, since)))
    following.open("c", HISTORY)
    following.begun("c", at(0))
    return following


def payloads(sink):
    return [payload if payload is None else int(payload) for _, payload in sink.log]


def test_what_is_next_is_delivered_and_what_was_is_not(following, sink, asked):
    for offset in (1, 2, 2, 1, 3):
        following.arrive("c", kept(offset))
    assert payloads(sink) == [1, 2, 3]
    assert (following.doubles, following.gaps, asked) == (2, 0, [])
    assert following.place("c") == at(3)


def test_nobody_hears_what_nobody_wants(following, sink):
    following.arrive("d", kept(1))
    following.close("c")
    following.arrive("c", kept(1))
    following.deliver("c", Publication(b"1"))
    following.interrupted()
    assert sink.log == []
    assert "c" not in following


def test_the_first_message_says_where_it_begins_if_nothing_else_does(sink, asked, following):
    following.open("d", HISTORY)
    following.arrive("d", kept(7))
    following.begun("d", at(9))  # that was read later
    following.arrive("d", kept(8))
    assert payloads(sink) == [7, 8]
    assert asked == []


def test_a_gap_is_read(following, sink, asked):
    following.arrive("c", kept(1))
    following.arrive("c", kept(4))
    assert asked == [("c", at(1))]
    following.arrive("c", kept(5))
    following.arrive("c", kept(6))
    assert payloads(sink) == [1]
    following.caught_up("c", at(1), page(2, 5))
    assert payloads(sink) == [1, 2, 3, 4, 5, 6]
    assert not following.reading


def test_a_long_gap_is_read_page_by_page(following, sink, asked):
    following.arrive("c", kept(9))
    following.caught_up("c", at(0), page(1, 4, top=9))
    following.caught_up("c", at(4), page(5, 8, top=9))
    following.caught_up("c", at(8), page(9, 9))
    assert payloads(sink) == [*range(1, 10)]
    assert [since for _, since in asked] == [at(0), at(4), at(8)]


def test_what_is_gone_is_said_before_what_comes(following, sink, asked):
    following.arrive("c", kept(1))
    following.arrive("c", kept(50))
    following.arrive("c", kept(51))
    following.caught_up("c", at(1), Page([], at(50), False))
    assert payloads(sink) == [1, None, 51]
    assert following.losses == 1


def test_another_epoch_is_looked_up(following, sink, asked):
    following.arrive("c", kept(1))
    following.arrive("c", kept(1, "f"))
    assert asked == [("c", at(1))]
    following.caught_up("c", at(1), Page([], at(1, "f"), False))
    following.arrive("c", kept(2, "f"))
    assert payloads(sink) == [1, None, 2]


def test_an_unused_channel_may_begin_in_another_epoch(following, sink, asked):
    following.arrive("c", kept(1, "f"))
    following.arrive("c", kept(2, "f"))
    assert payloads(sink) == [1, 2]
    assert asked == []


@pytest.mark.parametrize("how", ["arrive", "acknowledged"])
def test_unless_it_was_cut_off_and_a_first_message_may_have_come_and_gone(following, sink, asked, how):
    following.cut_off(["c", "unknown"])
    getattr(following, how)("c", kept(1, "f"))
    assert sink.log == []
    assert asked == [("c", at(0))] * (how == "arrive")
    following.interrupted()
    following.caught_up("c", at(0), page(1, 0, top=1, recovered=False, epoch="f"))
    following.caught_up("c", at(1, "f"), page(1, 0, top=1, epoch="f"))
    following.arrive("c", kept(2, "f"))
    assert payloads(sink) == [None, 2]


def test_who_was_cut_off_goes_on_in_its_epoch(following, sink, asked):
    following.cut_off(["c"])
    following.arrive("c", kept(1))
    assert payloads(sink) == [1]


def test_what_is_not_kept_comes_behind_the_word_about_what_was_cut_off(following, sink):
    following.open("d", None)
    following.begun("d", None)
    following.cut_off(["d"])
    following.arrive("d", Publication(b"1", None))
    following.deliver("d", Publication(b"2", None))  # of this node, it needs no bus
    following.interrupted(["d"])
    following.begun("d", None)
    following.arrive("d", Publication(b"3", None))
    assert payloads(sink) == [2, None, 3]


def test_another_message_with_the_same_offset_is_another_history(following, asked):
    following.arrive("c", kept(1))
    following.arrive("c", Publication(b"x", at(1)._replace(tag="other")))
    assert asked == [("c", at(1))]


def test_its_own_answer_is_delivered_only_if_it_is_next(following, sink, asked):
    following.acknowledged("c", kept(1))
    following.arrive("c", kept(1))
    following.acknowledged("c", kept(3))  # the bus has 2 before it
    following.arrive("c", kept(2))
    following.arrive("c", kept(3))
    assert payloads(sink) == [1, 2, 3]
    assert asked == []


def test_an_interruption_reads_what_is_kept_and_tells_of_what_is_not(following, sink, asked):
    following.open("d", None)
    following.begun("d", None)
    following.open("new", HISTORY)  # nobody knows where it is
    following.arrive("c", kept(1))
    following.interrupted()
    assert asked == [("c", at(1))]
    assert sink.log[1:] == [("d", None), ("new", None)]
    following.interrupted(["c", "nothing"])
    following.caught_up("c", at(1), Page([], at(1), True))
    assert asked == [("c", at(1))] * 2, "the second interruption may have come after the read"
    following.caught_up("c", at(1), page(2, 2))
    assert not following.reading


def test_what_cannot_be_read_is_asked_for_again(following, sink, asked):
    following.arrive("c", kept(3))
    following.could_not_read("c", at(0))
    assert following.reading
    following.arrive("c", kept(4))
    following.acknowledged("c", kept(1))
    assert payloads(sink) == []
    assert len(asked) == 1, "a flood of messages is no flood of reads"
    following.retry()
    following.retry()
    assert len(asked) == 2
    following.caught_up("c", at(0), page(1, 4))
    assert payloads(sink) == [1, 2, 3, 4]


def test_what_is_held_is_bounded(following, sink, asked):
    following.arrive("c", kept(2))
    for offset in range(3, 3_000):
        following.arrive("c", kept(offset))
    assert len(following._channels["c"].held) <= 1_000
    following.caught_up("c", at(0), page(1, 2))
    assert len(asked) == 2
    following.caught_up("c", at(2), page(3, 2_999))
    assert payloads(sink) == [*range(1, 3_000)]


def test_a_late_answer_to_a_closed_channel_is_nothing(following, sink, asked):
    following.arrive("c", kept(3))
    following.close("c")
    following.open("c", HISTORY)
    following.begun("c", at(3))
    following.caught_up("c", at(0), page(1, 3))
    following.arrive("c", kept(4))
    assert payloads(sink) == [4]
    following.arrive("c", kept(6))
    following.caught_up("c", at(0), page(1, 3))  # it is another answer that is awaited
    following.could_not_read("c", at(0))
    following.caught_up("c", at(4), page(5, 6))
    assert payloads(sink) == [4, 5, 6]


def test_check_finds_what_the_bus_has_lost_in_silence(following, sink, asked):
    following.arrive("c", kept(1))
    assert following.places() == [("c", at(1))]
    assert following.check("c", at(1), at(1))
    assert following.check("c", at(0), at(1))  # it was asked before
    assert following.check("d", at(0), at(1))
    assert asked == []
    assert following.check("c", at(1), at(4))
    assert asked == [("c", at(1))]


@pytest.mark.parametrize("top", [at(1), at(2)._replace(tag="other"), at(0)])
def test_check_says_that_the_history_is_an_older_one(following, asked, top):
    following.arrive("c", kept(1))
    following.arrive("c", kept(2))
    assert not following.check("c", at(2), top)
    assert asked == [("c", at(2))]


def test_a_loss_that_another_node_tells_of_is_for_what_is_not_kept(following, sink):
    following.open("d", None)
    following.lost("c")
    following.lost("d")
    following.lost("nothing")
    assert sink.log == [("d", None)]


def test_what_is_published_from_within_a_delivery_comes_after_it(following, sink):
    following.open("d", None)

    def react(channel, publication):
        if channel == "c":
            following.deliver("d", publication)
            assert sink.log[-1][0] == "c"
            if publication.position.offset == 2:
                following.close("c")

    sink.react = react
    for offset in (1, 2, 3):
        following.arrive("c", kept(offset))
    assert sink.log == [("c", b"1"), ("d", b"1"), ("c", b"2"), ("d", b"2")]


def test_a_sink_that_raises_harms_nobody(following, sink, caplog):
    sink.react = lambda *_: 1 / 0
    for offset in (1, 2):
        following.arrive("c", kept(offset))
    assert payloads(sink) == [1, 2]
    assert caplog.text.count("the sink of the backplane failed to deliver, in channel 'c'") == 2


class World:
    """A store, and a bus that doubles, reorders, and loses; who is told of it later, or finds out by a check."""

    def __init__(self, seed):
        self.chance = random.Random(seed)
        self.epoch = 0
        self.entries = []
        self.top = at(0, "e0")
        self.bus = []
        self.asked = []
        self.sink = Sink()
        self.following = Following(self.sink, lambda channel, since: self.asked.append(since))
        self.following.open("c", HISTORY)
        self.following.begun("c", self.top)
        self.expected = 0

    def publish(self):
        offset = self.top.offset + 1
        publication = Publication(b"%s:%d" % (self.top.epoch.encode(), offset), at(offset, self.top.epoch))
        self.top = publication.position
        self.entries = [*self.entries, publication][-HISTORY.size :]
        if self.chance.random() < 0.9:
            self.bus.append(publication)
        if self.chance.random() < 0.2:
            self.bus.insert(self.chance.randrange(len(self.bus) + 1), publication)
        if self.chance.random() < 0.2:
            self.following.acknowledged("c", publication)

    def restart_empty(self):
        if self.chance.random() < 0.1:
            self.epoch += 1
            self.entries, self.top = [], at(0, f"e{self.epoch}")
            self.following.interrupted()

    def roll_back(self):
        """The broker has older data: some of the newest are gone, and others will have their offsets."""
        if self.chance.random() < 0.1 and len(self.entries) > 3:
            self.epoch += 1
            self.entries = []
            self.top = at(self.top.offset - 2, self.top.epoch)._replace(tag=f"r{self.epoch}")
            self.following.interrupted()

    def carry(self):
        for _ in range(self.chance.randint(1, 5)):
            if self.bus:
                self.following.arrive("c", self.bus.pop(0))

    def interrupt(self):
        if self.chance.random() < 0.3:
            self.bus.clear()
            self.following.interrupted()

    def check(self):
        place = self.following.place("c")
        self.following.check("c", place, self.top)

    def answer(self):
        if self.asked:
            since = self.asked.pop(0)
            if self.chance.random() < 0.2:
                self.following.could_not_read("c", since)
                return
            floor = None
            if self.entries and self.entries[0].position.offset == 1:
                floor = at(0, self.top.epoch)
            found = page_of(self.entries, self.top, floor, since, self.chance.choice([3, 100]))
            self.following.caught_up("c", since, found)

    def retry(self):
        self.following.retry()

    def settle(self):
        while self.bus:
            self.carry()
        for _ in range(100):
            self.retry()
            while self.asked:
                self.answer()
            self.check()
            if not self.asked:
                return
        raise AssertionError("it reads for ever")


@pytest.mark.parametrize("seed", range(60))
def test_everything_once_and_in_order_or_a_word_about_it(seed):
    print("seed", seed)
    world = World(seed)
    for _ in range(400):
        step = world.chance.choice(
            ["publish"] * 4
            + ["carry"] * 3
            + ["interrupt", "check", "answer", "answer", "retry"]
            + ["restart_empty", "roll_back"]
        )
        getattr(world, step)()
        assert len(world.asked) <= 1
    world.settle()
    place = None
    told = True
    for _, payload in world.sink.log:
        if payload is None:
            told = True
            continue
        epoch, offset = payload.decode().split(":")
        offset = int(offset)
        if not told and place is not None:
            assert (epoch, offset) == (place[0], place[1] + 1), f"{payload} after {place}: nobody told of it"
        place, told = (epoch, offset), False
    assert world.following.place("c") == world.top

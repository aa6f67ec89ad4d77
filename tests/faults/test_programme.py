"""The fault programme itself: its judge sees every kind of planted error, its clients keep to docs/protocol.md."""

from __future__ import annotations

import random

import pytest

from tests.faults.programme.checker import check, is_kept
from tests.faults.programme.faults import FAULTS
from tests.faults.programme.journal import Entry, Journal, read
from tests.faults.programme.report import BEGIN, END, table, terminal, write_between_markers
from tests.faults.programme.run import Outcome, Run


class World:
    """What a run without any fault writes down: `publishers` publish to two channels, all subscribers get it all."""

    def __init__(self, seed: int, channels: tuple[str, ...] = ("room:1", "room:2"), count: int = 30) -> None:
        print(f"seed {seed}")
        rng = random.Random(seed)
        self.published: list[Entry] = []
        self.seen: list[Entry] = []
        self.now = 0.0
        offsets = dict.fromkeys(channels, 0)
        for channel in channels:
            for who in ("s1", "s2"):
                self.saw("here", who, channel, "e1:0:0" if is_kept(channel) else "-")
        for number in range(count):
            channel = rng.choice(channels)
            key = f"k{number}"
            self.tell("send", channel, key=key)
            offsets[channel] += 1
            position = f"e1:{offsets[channel]}:t{number}" if is_kept(channel) else "-"
            if rng.random() < 0.5:
                self.tell("ack", channel, position, key)
            for who in ("s1", "s2"):
                self.saw("got", who, channel, position, key)
            if self.published[-1].kind == "send":
                self.tell("ack", channel, position, key)

    def tell(self, kind: str, channel: str, position: str = "-", key: str = "-") -> None:
        self.now += 0.01
        self.published.append(Entry(self.now, kind, "p1.1", channel, position, key))

    def saw(self, kind: str, who: str, channel: str, position: str = "-", key: str = "-") -> None:
        self.now += 0.01
        self.seen.append(Entry(self.now, kind, who, channel, position, key))

    def places(self, who: str, channel: str, kind: str = "got") -> list[int]:
        """Where in `seen` the entries of one subscriber are."""
        return [i for i, e in enumerate(self.seen) if (e.kind, e.who, e.channel) == (kind, who, channel)]

    def check(self):
        return check(self.published, self.seen)


@pytest.fixture(params=range(5))
def world(request):
    return World(request.param)


def test_a_run_without_faults_is_good(world):
    verdict = world.check()
    assert verdict.good, verdict
    assert (verdict.acknowledged, verdict.owed, verdict.once) == (30, 60, 60)
    assert verdict.examples == []


def test_a_lost_message_is_silent_and_a_jump(world):
    del world.seen[world.places("s1", "room:1")[3]]
    verdict = world.check()
    assert (verdict.silent, verdict.jumps, verdict.once) == (1, 1, 59)
    assert not verdict.good
    assert "s1 never got" in verdict.examples[1]


def test_a_lost_last_message_is_silent(world):
    del world.seen[world.places("s1", "room:1")[-1]]
    verdict = world.check()
    assert (verdict.silent, verdict.jumps) == (1, 0)


def test_everything_lost_is_silent(world):
    for place in reversed(world.places("s2", "room:2")):
        del world.seen[place]
    verdict = world.check()
    assert verdict.silent == 60 - verdict.once > 0


def test_what_is_flagged_is_not_silent(world):
    first, second = world.places("s1", "room:1")[3:5]
    flagged = world.seen[second]._replace(kind="flag", key="gap")
    world.seen[second] = flagged
    del world.seen[first]
    verdict = world.check()
    assert verdict.good, verdict
    assert (verdict.flagged, verdict.once) == (2, 58)


def test_a_flag_without_a_position_reaches_to_the_next_message(world):
    places = world.places("s1", "room:1")
    world.seen[places[3]] = world.seen[places[3]]._replace(kind="flag", position="-", key="gap")
    del world.seen[places[4]]
    verdict = world.check()
    assert verdict.good, verdict
    assert verdict.flagged == 2


def test_a_flag_without_a_position_at_the_end_reaches_to_the_end(world):
    places = world.places("s1", "room:1")
    world.seen[places[-2]] = world.seen[places[-2]]._replace(kind="flag", position="-", key="gap")
    del world.seen[places[-1]]
    verdict = world.check()
    assert verdict.good, verdict
    assert verdict.flagged == 2


def test_a_flag_elsewhere_does_not_excuse_a_loss(world):
    places = world.places("s1", "room:1")
    late = world.seen[places[8]]
    world.seen.insert(places[8] + 1, late._replace(kind="flag", key="gap"))
    del world.seen[places[3]]
    assert world.check().silent == 1
    other = World(7)
    channel_2 = other.places("s1", "room:2")
    other.seen.insert(channel_2[0], other.seen[channel_2[1]]._replace(kind="flag", position="-", key="gap"))
    del other.seen[other.places("s1", "room:1")[2]]
    assert other.check().silent == 1


def test_a_message_that_is_twice(world):
    place = world.places("s1", "room:1")[3]
    world.seen.insert(place + 1, world.seen[place])
    verdict = world.check()
    assert verdict.twice == 1
    assert verdict.disorder == 1
    assert verdict.once == 59


def test_a_double_that_the_client_dropped_counts(world):
    place = world.places("s1", "room:1")[3]
    world.seen.insert(place + 1, world.seen[place]._replace(kind="dup"))
    assert world.check().twice == 1


def test_a_message_that_the_client_dropped_unseen_is_missing(world):
    place = world.places("s1", "room:1")[-1]
    world.seen[place] = world.seen[place]._replace(kind="dup")
    verdict = world.check()
    assert (verdict.twice, verdict.silent) == (0, 1)


def test_nothing_is_owed_to_who_has_left_for_good(world):
    places = world.places("s1", "room:1")
    world.seen[places[-2]] = world.seen[places[-2]]._replace(kind="left")
    del world.seen[places[-1]]
    verdict = world.check()
    assert verdict.good, verdict
    assert verdict.owed == 58
    del world.seen[places[2]]  # but what it had when it left is
    assert world.check().silent == 1


def test_the_same_key_in_another_epoch_is_twice_unless_the_loss_was_told(world):
    place = world.places("s1", "room:1")[-1]
    again = world.seen[place]._replace(position="e2:1:t99")
    world.seen.append(again)
    assert world.check().twice == 1
    world.seen.insert(len(world.seen) - 1, again._replace(kind="flag", position="e2:0:0", key="not-recovered"))
    verdict = world.check()
    assert verdict.good, verdict
    assert verdict.repeated == 1


def test_two_that_change_places(world):
    first, second = world.places("s1", "room:1")[3:5]
    world.seen[first], world.seen[second] = world.seen[second], world.seen[first]
    verdict = world.check()
    assert verdict.disorder >= 1
    assert verdict.jumps >= 1


def test_positions_in_another_order_than_they_were_acknowledged_in(world):
    acks = [i for i, e in enumerate(world.published) if e.kind == "ack" and e.channel == "room:1"]
    one, two = (world.published[i] for i in acks[2:4])
    world.published[acks[2]] = one._replace(position=two.position)
    world.published[acks[3]] = two._replace(position=one.position)
    keys = {one.position: two.key, two.position: one.key}
    world.seen = [e._replace(key=keys.get(e.position, e.key)) if e.channel == "room:1" else e for e in world.seen]
    assert world.check().disorder == 1


def test_a_new_epoch_begins_at_one(world):
    world.saw("got", "s1", "room:1", "e2:2:x", "k0")
    assert world.check().jumps == 1


def test_what_was_acknowledged_in_an_epoch_that_is_gone_has_to_be_flagged():
    world = World(3)
    world.tell("send", "room:1", key="new")
    world.tell("ack", "room:1", "e2:1:x", "new")
    for who in ("s1", "s2"):
        world.saw("got", who, "room:1", "e2:1:x", "new")
    assert world.check().good
    gone = world.places("s1", "room:1")[-2]  # the last of the old epoch
    del world.seen[gone]
    verdict = world.check()
    assert (verdict.silent, verdict.jumps) == (1, 0)
    world.seen.insert(world.places("s1", "room:1")[-1], Entry(1.0, "flag", "s1", "room:1", "e2:0:0", "not-recovered"))
    verdict = world.check()
    assert verdict.good, verdict
    assert verdict.flagged == 1


def test_an_acknowledgement_without_a_message(world):
    world.tell("send", "room:1", key="ghost")
    world.tell("ack", "room:1", "e1:900:t900", "ghost")
    verdict = world.check()
    assert verdict.silent == 2
    world.tell("send", "room:1", key="nowhere")
    world.tell("ack", "room:1", "-", "nowhere")
    assert world.check().silent == 4


def test_a_position_that_was_told_to_two(world):
    position = next(e.position for e in world.published if e.kind == "ack" and e.channel == "room:1")
    world.tell("send", "room:1", key="usurper")
    world.tell("ack", "room:1", position, "usurper")
    verdict = world.check()
    assert verdict.mixed == 1
    assert not verdict.good


def test_another_message_at_the_position_than_was_acknowledged(world):
    first, second = world.places("s1", "room:1")[3:5]
    one, two = world.seen[first], world.seen[second]
    world.seen[first], world.seen[second] = one._replace(key=two.key), two._replace(key=one.key)
    assert world.check().mixed == 2


def test_what_nobody_sent_and_what_was_changed_on_the_way(world):
    place = world.places("s1", "room:1")[3]
    world.saw("got", "s1", "room:2", "e2:1:x", "invented")
    assert world.check().mixed == 1
    world.seen.insert(place, world.seen[place]._replace(kind="bad"))
    assert world.check().mixed == 2


def test_two_messages_with_one_offset(world):
    place = world.places("s1", "room:1")[3]
    epoch, offset, _ = world.seen[place].position.split(":")
    world.tell("send", "room:1", key="rival")
    world.tell("ack", "room:1", f"{epoch}:{offset}:other", "rival")
    verdict = world.check()
    assert verdict.forked == 1
    assert verdict.silent == 2  # a client that goes by offsets never sees the rival
    for who in ("s1", "s2"):
        world.saw("flag", who, "room:1", "e2:0:0", "gap")
    verdict = world.check()
    assert (verdict.forked, verdict.silent, verdict.flagged) == (1, 0, 2)
    assert not verdict.good
    verdict.may_fork = True
    assert verdict.good


def test_what_is_not_acknowledged_may_be_missing_or_there(world):
    world.tell("send", "room:1", key="unknown")
    world.tell("open", "room:1", key="unknown")
    verdict = world.check()
    assert verdict.good, verdict
    assert (verdict.unanswered, verdict.owed) == (1, 60)
    last = world.seen[world.places("s1", "room:1")[-1]].position
    offset = int(last.split(":")[1]) + 1
    world.saw("got", "s1", "room:1", f"e1:{offset}:u", "unknown")
    assert world.check().good


def test_only_what_comes_after_the_subscription_is_owed():
    world = World(4)
    world.saw("here", "late", "room:1", world.seen[world.places("s1", "room:1")[-1]].position)
    verdict = world.check()
    assert verdict.good
    assert verdict.owed == 60


def test_channels_without_history_are_counted_apart():
    world = World(5, ("live:1", "keyed:1"))
    verdict = world.check()
    assert verdict.good
    assert (verdict.owed, verdict.live_owed, verdict.live_once) == (0, 60, 60)
    places = world.places("s1", "live:1")
    world.seen[places[2]] = world.seen[places[2]]._replace(kind="flag", key="gap")
    del world.seen[world.places("s2", "live:1")[4]]
    verdict = world.check()
    assert verdict.good
    assert (verdict.live_once, verdict.live_flagged, verdict.live_unpromised) == (58, 1, 1)


def test_channels_without_history_have_order_and_no_doubles():
    world = World(6, ("live:1", "keyed:1"))
    first, second = world.places("s1", "live:1")[2:4]
    world.seen[first], world.seen[second] = world.seen[second], world.seen[first]
    assert world.check().disorder == 1
    place = world.places("s2", "keyed:1")[2]
    world.seen.insert(place, world.seen[place])
    assert world.check().twice == 1


def test_without_history_nothing_joins_what_comes_before_and_after_a_reconnect():
    world = World(8, ("live:1",))
    old = [world.seen[place] for place in world.places("s1", "live:1")[3:6]]
    world.saw("flag", "s1", "live:1", key="away")
    world.seen += old
    verdict = world.check()
    assert verdict.good, verdict
    assert verdict.live_repeated == 3


def test_a_journal_is_read_as_it_was_written(tmp_path):
    journal = Journal(tmp_path / "x.log")
    journal.write(1.5, "got", "s1", "room:1", "e:1:t", "k")
    journal.write(2.25, "flag", "s1", "live:1", None, None)
    journal.close()
    assert list(read(tmp_path / "x.log")) == journal.entries
    (tmp_path / "y.log").write_text("1\tgot\n")
    with pytest.raises(ValueError, match=r"y\.log:1: 2 fields"):
        list(read(tmp_path / "y.log"))


@pytest.mark.broker
@pytest.mark.parametrize("fault", ["redis-subscribers-killed", "nats-killed"])
async def test_a_short_run_of_the_programme(tmp_path, fault):
    outcome = await Run(fault, 1, tmp_path / fault, quick=True).whole(FAULTS[fault])
    assert outcome.good, (outcome.failures, outcome.verdict.examples)
    assert outcome.verdict.acknowledged > 50
    assert outcome.verdict.once > 50
    assert Outcome.read(tmp_path / fault / "verdict.json") == outcome
    published = list(read(tmp_path / fault / "publishers.log"))
    assert check(published, read(tmp_path / fault / "subscribers.log")).once == outcome.verdict.once
    by_fault = {fault: [outcome]}
    assert fault in terminal(by_fault)
    page = tmp_path / "page.md"
    page.write_text(f"before {BEGIN}\nold\n{END} after")
    write_between_markers(page, table(by_fault))
    assert f"| {fault} | 1 |" in page.read_text()
    assert page.read_text().endswith(f"{END} after")
    assert "old" not in page.read_text()
    page.write_text("nothing")
    with pytest.raises(ValueError, match="has no <!-- faults:begin -->"):
        write_between_markers(page, "")

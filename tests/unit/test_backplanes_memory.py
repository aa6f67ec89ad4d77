"""What is MemoryBackplane's own: bounds, what ends when, and what it costs. What it promises is in tests/contract."""

from __future__ import annotations

import asyncio
import logging
import random

import pytest

from street_fast._core import LoopContext
from street_fast.backplanes import Health, History, Position, Published, Unavailable
from street_fast.backplanes.memory import _AROUND_A_CHANNEL, _AROUND_A_MESSAGE, MemoryBackplane
from street_fast.errors import ConfigurationError
from street_fast.limits import Limits
from street_fast.testing import ManualClock
from tests.connection_harness import Panic
from tests.contract.bus import Recorder

HISTORY = History(size=10, ttl_s=100.0)


class Memory:
    """A MemoryBackplane with its clock, its wheel and its sink."""

    def __init__(self, **limits):
        self.clock = ManualClock()
        self.wheel = (context := LoopContext(asyncio.get_running_loop(), self.clock)).wheel
        self.backplane = MemoryBackplane(limits=Limits(**limits), context=context)
        self.sink = Recorder()

    async def start(self):
        await self.backplane.start(self.sink)
        return self

    def publish(self, channel, payload=b"x", history=HISTORY, **options):
        return self.backplane.publish(channel, payload, history=history, **options)

    def fill(self, channel, count, size=1, history=HISTORY):
        """The positions of `count` messages of `size` bytes."""
        return [self.publish(channel, bytes(size), history).position for _ in range(count)]

    def read(self, channel, since=None, limit=1_000_000, history=HISTORY):
        return self.backplane.read(channel, history, since=since, limit=limit)

    def kept(self, channel):
        return [publication.position.offset for publication in self.read(channel).publications]

    def recovers(self, channel, since):
        return self.read(channel, since).recovered

    def stat(self, name):
        return self.backplane.stats()[name]

    def advance(self, seconds):
        self.clock.advance(seconds)
        self.wheel.advance()


@pytest.fixture
async def memory():
    return await Memory().start()


def cost(count, size=1):
    return _AROUND_A_CHANNEL + count * (_AROUND_A_MESSAGE + size)


class TestAtOnce:
    async def test_nothing_is_awaited_and_a_publish_has_been_delivered_when_it_returns(self, memory):
        assert memory.backplane.subscribe("c") is None
        assert memory.backplane.publish("c", b"1") == Published(None)
        assert memory.sink.payloads("c") == [b"1"]
        published = memory.publish("c", b"2", skip="conn")
        assert memory.sink.log[-1] == ("message", "c", (b"2", published.position, "conn"))
        assert memory.read("c").publications[0] is memory.sink.publications("c")[-1]

    async def test_of_a_message_from_within_a_delivery_the_answer_comes_before_the_delivery(self, memory):
        seen = []

        def react(channel, publication):
            if publication.payload == b"1":
                seen.append(memory.publish("c", b"2").position)
                seen.append(len(memory.sink.log))
                assert memory.kept("c") == [1, 2]

        memory.sink.react = react
        memory.backplane.subscribe("c")
        memory.publish("c", b"1")
        assert seen == [memory.sink.publications("c")[1].position, 1]
        assert memory.sink.payloads("c") == [b"1", b"2"]

    async def test_who_unsubscribes_within_a_delivery_gets_no_more(self, memory):
        def react(channel, publication):
            memory.backplane.publish("d", b"2")
            memory.backplane.publish("c", b"3")
            memory.backplane.unsubscribe("c")

        memory.sink.react = react
        memory.backplane.subscribe("c")
        memory.publish("c", b"1")
        assert memory.sink.payloads("c") == [b"1"]

    async def test_closing_within_a_delivery(self, memory):
        def react(channel, publication):
            memory.publish("c", b"2")
            closing = memory.backplane.close()
            with pytest.raises(StopIteration):
                closing.send(None)

        memory.sink.react = react
        memory.backplane.subscribe("c")
        memory.publish("c", b"1")
        assert memory.sink.payloads("c") == [b"1"]
        with pytest.raises(Unavailable):
            memory.publish("c")

    async def test_a_sink_that_raises_is_logged(self, memory, caplog):
        def react(channel, publication):
            raise ValueError("a bug")

        memory.sink.react = react
        memory.backplane.subscribe("c")
        assert memory.publish("c").position.offset == 1
        (record,) = caplog.records
        assert (record.name, record.levelno) == ("street_fast", logging.ERROR)
        assert "'c'" in record.getMessage()
        assert "a bug" in str(record.exc_info[1])

    async def test_what_ends_the_process_goes_through_and_the_order_stays(self, memory):
        def react(channel, publication):
            if publication.payload == b"1":
                memory.publish("c", b"2")
                raise Panic

        memory.sink.react = react
        memory.backplane.subscribe("c")
        with pytest.raises(Panic):
            memory.publish("c", b"1")
        memory.publish("c", b"3")
        assert memory.sink.payloads("c") == [b"1", b"2", b"3"]
        with pytest.raises(Panic):
            memory.publish("c", b"1")
        await memory.backplane.close()
        await memory.start()
        memory.backplane.subscribe("c")
        memory.publish("c", b"4")
        assert memory.sink.payloads("c") == [b"1", b"2", b"3", b"1", b"4"]

    async def test_health(self, memory):
        assert memory.backplane.health() == Health(True, "in memory")
        await memory.backplane.close()
        assert memory.backplane.health() == Health(False, "not started, or closed")


class TestBounds:
    async def test_bytes_of_one_channel(self):
        memory = await Memory(history_bytes=cost(3, 100)).start()
        positions = memory.fill("c", 5, 100)
        assert memory.kept("c") == [3, 4, 5]
        assert memory.stat("history_bytes") == cost(3, 100)
        assert not memory.recovers("c", positions[0])
        assert memory.recovers("c", positions[1])
        memory.publish("c", bytes(300 + 2 * _AROUND_A_MESSAGE))
        assert memory.kept("c") == [6]

    async def test_the_channel_of_which_one_was_trimmed_is_still_bounded_by_size(self):
        memory = await Memory(history_bytes=cost(5)).start()
        memory.fill("c", 5, history=History(size=3))
        assert memory.kept("c") == [3, 4, 5]
        memory.fill("c", 1, history=History(size=1))
        assert memory.kept("c") == [6]

    async def test_a_message_above_the_limit_is_delivered_and_not_kept(self):
        memory = await Memory(history_bytes=cost(3)).start()
        memory.backplane.subscribe("c")
        positions = [*memory.fill("c", 2), memory.publish("c", bytes(5_000)).position]
        assert memory.stat("history_bytes") == 0
        assert len(memory.wheel) == 0
        assert memory.kept("c") == []
        assert memory.read("c").top == positions[2] == memory.sink.publications("c")[2].position
        assert memory.recovers("c", positions[2])
        assert not memory.recovers("c", positions[1])
        assert memory.publish("c").position.offset == 4
        assert memory.kept("c") == [4]

    async def test_bytes_of_all_channels(self):
        """The channel longest without a publish loses all its messages, and keeps its position."""
        memory = await Memory(history_total_bytes=2 * cost(2) + cost(1)).start()
        a = memory.fill("a", 2)
        memory.fill("b", 2)
        memory.fill("a", 1)
        c = memory.fill("c", 1)
        assert (memory.kept("a"), memory.kept("b"), memory.kept("c")) == ([1, 2, 3], [], [1])
        assert memory.read("b").top.offset == 2
        assert memory.stat("history_channels") == 3
        assert memory.fill("b", 2)[0].offset == 3
        assert memory.kept("a") == []
        assert not memory.recovers("a", a[0])
        assert memory.recovers("c", c[0])
        assert memory.stat("history_bytes") == cost(1) + cost(2)

    async def test_a_total_that_is_less_than_one_channel(self):
        memory = await Memory(history_total_bytes=cost(2)).start()
        memory.fill("c", 6)
        assert memory.kept("c") == [5, 6]
        memory = await Memory(history_total_bytes=1).start()
        (position,) = memory.fill("c", 1)
        assert memory.kept("c") == []
        assert memory.recovers("c", position)
        assert memory.stat("history_bytes") == 0

    async def test_channels(self):
        """Above the number the one longest without a publish is forgotten, and begins a new epoch."""
        memory = await Memory(history_channels=2).start()
        a, b = memory.fill("a", 2), memory.fill("b", 2)
        memory.fill("a", 1)
        (c,) = memory.fill("c", 1)
        assert memory.stat("history_channels") == 2
        assert memory.kept("a") == [1, 2, 3]
        assert memory.kept("c") == [1]
        assert memory.recovers("a", a[0])
        assert not any(memory.recovers("b", position) for position in (*b, Position.start_of(b[0].epoch)))
        (again,) = memory.fill("b", 1)
        assert again.offset == 1
        assert again.epoch not in (b[0].epoch, c.epoch)
        assert memory.stat("history_channels") == 2

    async def test_channels_without_messages_are_forgotten_first(self):
        memory = await Memory(history_channels=3).start()
        kept, ended = memory.fill("kept", 1), memory.fill("ended", 1, history=History(10, 1.0))
        memory.fill("ended too", 1, history=History(10, 2.0))
        memory.advance(3)
        assert memory.recovers("ended", ended[0])
        memory.fill("new", 1)
        assert memory.recovers("kept", kept[0])
        assert memory.kept("kept") == [1]
        assert not memory.recovers("ended", ended[0])
        assert memory.read("ended too").top.offset == 1

    async def test_a_channel_that_comes_back_from_rest_forgets_nobody(self):
        memory = await Memory(history_channels=2).start()
        a = memory.fill("a", 1, history=History(10, 1.0))
        memory.fill("b", 1)
        memory.advance(3)
        memory.fill("a", 1)
        assert memory.stat("history_channels") == 2
        assert memory.recovers("a", a[0])
        assert memory.kept("b") == [1]

    async def test_keys(self):
        memory = await Memory(publish_keys=3).start()
        for key in "abcd":
            assert not memory.publish("c", key=key).duplicate
        assert memory.stat("publish_keys") == 3
        assert [memory.publish("c", key=key).duplicate for key in "bcd"] == [True, True, True]
        assert not memory.publish("c", key="a").duplicate
        assert not memory.publish("c", key="b").duplicate, "the oldest: to be asked for does not make it younger"

    def test_limits_must_be_limits(self):
        with pytest.raises(ConfigurationError, match="limits="):
            MemoryBackplane(limits=1)


class TestUnknownChannels:
    async def test_to_ask_for_them_costs_nothing(self, memory):
        tops = {memory.read(f"c{number}").top for number in range(1_000)}
        assert len(tops) == 1
        assert set(memory.backplane.stats().values()) == {0}
        assert len(memory.wheel) == 0

    async def test_the_first_message_goes_on_from_where_a_subscriber_was_told_that_it_is(self, memory):
        top = memory.read("a").top
        memory.fill("b", 1)
        (position,) = memory.fill("a", 1)
        assert (position.epoch, position.offset) == (top.epoch, 1)
        assert len(memory.read("a", top).publications) == 1

    async def test_whoever_saw_the_beginning_of_a_forgotten_channel_is_not_told_that_nothing_followed(self):
        memory = await Memory(history_channels=1).start()
        start = memory.read("a").top
        memory.fill("a", 3)
        memory.fill("b", 1)
        assert not memory.recovers("a", start)
        memory.fill("a", 1)
        assert not memory.recovers("a", start)

    async def test_the_channel_for_which_another_is_forgotten_goes_on_as_announced(self):
        memory = await Memory(history_channels=1).start()
        memory.fill("a", 1)
        start = memory.read("b").top
        memory.fill("b", 2)
        assert [publication.position.offset for publication in memory.read("b", start).publications] == [1, 2]


class TestTime:
    async def test_messages_end_for_readers_to_the_point(self, memory):
        first = memory.fill("c", 1)
        memory.clock.advance(1)
        memory.fill("c", 1)
        memory.clock.advance(98.75)
        assert memory.kept("c") == [1, 2]
        memory.clock.advance(0.25)
        assert memory.kept("c") == [2], "the wheel was not asked"
        assert memory.recovers("c", first[0])
        memory.clock.advance(1)
        assert memory.kept("c") == []

    async def test_memory_is_freed_without_traffic(self, memory):
        positions = memory.fill("c", 1)
        memory.clock.advance(50)
        positions += memory.fill("c", 2)
        memory.fill("d", 1)
        assert len(memory.wheel) == 2, "one timer for each channel"
        memory.advance(50.1)
        assert memory.stat("history_messages") == 3
        memory.advance(50)
        assert memory.backplane.stats() == {
            "channels_subscribed": 0,
            "history_channels": 2,
            "history_messages": 0,
            "history_bytes": 0,
            "publish_keys": 0,
        }
        assert len(memory.wheel) == 0
        assert memory.recovers("c", positions[-1])
        assert memory.publish("c").position.offset == 4
        assert len(memory.wheel) == 1

    async def test_a_busy_channel_is_looked_at_once_a_second(self, memory):
        looks = 0
        expire = memory.backplane._expire

        def counted(*args):
            nonlocal looks
            looks += 1
            expire(*args)

        memory.backplane._expire = counted
        for _ in range(600):
            memory.fill("c", 1, history=History(size=1_000, ttl_s=5.0))
            memory.advance(0.05)
        assert 20 <= looks <= 30
        assert memory.stat("history_messages") <= 121

    async def test_a_short_life_ends_in_time_too(self, memory):
        for _ in range(10):
            memory.fill("c", 1, history=History(size=10, ttl_s=0.01))
            memory.advance(0.02)
            assert memory.kept("c") == []
        memory.advance(2)
        assert len(memory.wheel) == 0

    async def test_keys_end_and_are_freed_without_traffic(self, memory):
        memory.publish("c", key="a")
        memory.advance(200)
        memory.publish("c", key="b", history=None)
        memory.advance(99)
        assert memory.publish("c", key="a").duplicate
        memory.clock.advance(1)
        assert not memory.publish("c", key="a").duplicate, "the wheel was not asked"
        memory.wheel.advance()
        assert memory.stat("publish_keys") == 2
        memory.advance(200.1)
        assert memory.stat("publish_keys") == 1
        memory.advance(100.1)
        assert memory.stat("publish_keys") == 0
        memory.advance(1_000)
        assert len(memory.wheel) == 0
        memory.publish("c", key="a", history=None)
        assert len(memory.wheel) == 1

    async def test_it_keeps_the_time_of_its_loop_by_default(self):
        backplane = MemoryBackplane()
        await backplane.start(Recorder())
        wheel = LoopContext.of().wheel
        timers = len(wheel)
        backplane.publish("c", b"x", history=History(10, 0.01))
        assert len(wheel) == timers + 1
        while len(wheel) > timers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        assert backplane.stats()["history_messages"] == 0


class TestLives:
    async def test_close_leaves_nothing(self, memory):
        memory.backplane.subscribe("c")
        memory.fill("c", 3)
        memory.publish("d", key="k")
        memory.publish("e", history=History(10, 1.0))
        memory.advance(3)
        assert len(memory.wheel) == 3
        await memory.backplane.close()
        assert set(memory.backplane.stats().values()) == {0}
        assert len(memory.wheel) == 0
        await memory.backplane.close()

    async def test_no_life_takes_up_the_history_of_another(self, memory):
        """A process that was started anew, or a fork of one that had the backplane already."""
        start = memory.read("c").top
        seen = [start, *memory.fill("c", 3)]
        await memory.backplane.close()
        await memory.start()
        other = await Memory().start()
        for later in (memory, other):
            assert not any(later.recovers("c", position) for position in seen)
            again = later.fill("c", 3)
            assert not {position.tag for position in seen} & {position.tag for position in again}
            assert not any(later.recovers("c", position) for position in seen)

    async def test_the_tag_tells_histories_with_the_same_epoch_apart(self, memory):
        """What an older copy of the data would look like."""
        positions = memory.fill("c", 3)
        older = await Memory().start()
        older.backplane._unknown_top = Position.start_of(positions[0].epoch)
        again = older.fill("c", 3)
        assert [position[:2] for position in again] == [position[:2] for position in positions]
        assert not any(older.recovers("c", position) for position in positions)


@pytest.mark.parametrize("seed", range(8))
async def test_whatever_happens_a_page_is_right(seed):
    """Against a log of everything: a recovered page has all that followed; and nothing is held above the limits."""
    print(f"seed {seed}")
    dice = random.Random(seed)
    limits = {"history_bytes": cost(8, 50), "history_total_bytes": cost(8, 50) * 3, "history_channels": 6}
    memory = await Memory(**limits, publish_keys=20, publish_key_ttl_s=30.0).start()
    log = {f"c{number}": [] for number in range(10)}
    seen = {channel: [(Position.start_of(memory.read(channel).top.epoch), 0)] for channel in log}
    histories = {channel: History(dice.choice([1, 5, 100]), dice.choice([1.0, 20.0, 1_000.0])) for channel in log}
    recovered = refused = 0
    for _ in range(1_500):
        channel = dice.choice(list(log)[: dice.choice([2, 10])])
        history = histories[channel]
        action = dice.random()
        if action < 0.5:
            payload = bytes(dice.randrange(100)) + b"%d" % len(log[channel])
            published = memory.publish(channel, payload, history, key=dice.choice([None, str(dice.randrange(200))]))
            if not published.duplicate:
                log[channel].append(payload)
                seen[channel].append((published.position, len(log[channel])))
        elif action < 0.6:
            memory.advance(dice.choice([0.1, 1.5, 10.0]))
        elif action < 0.65:
            seen[channel].append((memory.read(channel).top, len(log[channel])))
        else:
            since, count = dice.choice(seen[channel][dice.choice([0, -6]) :])
            limit = dice.randrange(20)
            page = memory.read(channel, since, limit, history)
            payloads = [publication.payload for publication in page.publications]
            if page.recovered:
                recovered += 1
                assert payloads == log[channel][count:][:limit]
                assert page.top.offset - since.offset == len(log[channel]) - count
            else:
                refused += 1
                assert payloads == []
                kept = [publication.position for publication in memory.read(channel, history=history).publications]
                assert since not in [*kept, page.top]
        channels = memory.backplane._channels.values()
        entries = [entry for channel in channels for entry in channel.entries]
        assert all(channel.entries for channel in channels)
        assert memory.backplane.stats() == {
            "channels_subscribed": 0,
            "history_channels": len(channels) + len(memory.backplane._tops),
            "history_messages": len(entries),
            "history_bytes": sum(cost(0) for _ in channels)
            + sum(cost(1, len(e[0].payload)) - cost(0) for e in entries),
            "publish_keys": len(memory.backplane._keys),
        }
        assert memory.stat("history_bytes") <= limits["history_total_bytes"]
        assert memory.stat("history_channels") <= limits["history_channels"]
        assert memory.stat("publish_keys") <= 20
        assert len(memory.wheel) <= len(channels) + 1
    assert recovered > 50
    assert refused > 50

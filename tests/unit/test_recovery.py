"""Recovery: what was missed and what is new, joined without a gap, a double or a wrong order.

Random histories of whole clients are in tests/property/test_recovery_model.py.
"""

from __future__ import annotations

import asyncio

import pytest

from street_fast import recovery
from street_fast.backplanes import History, Page, Position, Publication, Unavailable
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.limits import Limits
from street_fast.messages import publication
from street_fast.recovery import CatchUp, Room
from tests.realtime_harness import world_fixture

make = pytest.fixture(world_fixture)


def at(offset, epoch="e"):
    return Position(epoch, offset, f"t{offset}" if offset else "0")


def page(first, last, top=None, recovered=True, epoch="e"):
    kept = [Publication(b"%d" % offset, at(offset, epoch)) for offset in range(first, last + 1)]
    return Page(kept, at(last if top is None else top, epoch), recovered)


def hold(catch_up, *offsets, epoch="e"):
    for offset in offsets:
        position = at(offset, epoch)
        assert catch_up.hold(position, publication("c", b'{"n":%d,"x":"%b"' % (offset, b"x" * 100), str(position)))


def positions(messages):
    return [message.position for message in messages]


def texts(*offsets, epoch="e"):
    return [str(at(offset, epoch)) for offset in offsets]


class TestCatchUp:
    @pytest.fixture
    def catch_up(self):
        return CatchUp("c", at(3), 4, Room(1_000_000), lambda channel: None, lambda: None)

    def test_nothing_missed(self, catch_up):
        assert catch_up.wants_page
        assert not catch_up.complete
        assert catch_up.begin_read() == at(3)
        assert catch_up.take(page(4, 3)) is None
        assert catch_up.complete
        assert catch_up.position == at(3)

    def test_missed_then_held_each_once(self, catch_up):
        hold(catch_up, 5, 6, 7, 8)
        catch_up.begin_read()
        assert catch_up.take(page(4, 6)) is None
        assert positions(catch_up.next_batch(1_000)) == texts(4, 5, 6, 7, 8)
        assert catch_up.complete
        assert catch_up.position == at(8)

    def test_what_comes_while_it_is_sent(self, catch_up):
        catch_up.begin_read()
        catch_up.take(page(4, 6))
        assert len(catch_up.missed_within(60)) == 1
        hold(catch_up, 7)
        assert positions(catch_up.next_batch(110)) == texts(5, 6)
        assert not catch_up.complete
        hold(catch_up, 8)
        assert positions(catch_up.next_batch(1)) == texts(7)  # at least one
        assert positions(catch_up.next_batch(1)) == texts(8)
        assert catch_up.complete

    def test_page_by_page(self, catch_up):
        catch_up.begin_read()
        assert catch_up.take(page(4, 5, top=8)) is None
        hold(catch_up, 9)
        assert not catch_up.wants_page
        assert positions(catch_up.next_batch(1_000)) == texts(4, 5)
        assert catch_up.wants_page
        assert catch_up.begin_read() == at(5)
        catch_up.take(page(6, 9))
        assert positions(catch_up.next_batch(1_000)) == texts(6, 7, 8, 9)
        assert catch_up.complete

    def test_more_than_it_holds_is_read_again(self, catch_up):
        catch_up.begin_read()
        catch_up.take(page(4, 4))
        hold(catch_up, 5, 6, 7, 8, 9)
        assert positions(catch_up.next_batch(1_000)) == texts(4)
        assert catch_up.wants_page
        catch_up.begin_read()
        catch_up.take(page(5, 9))
        hold(catch_up, 10)
        assert positions(catch_up.next_batch(1_000)) == texts(5, 6, 7, 8, 9, 10)
        assert catch_up.complete

    def test_more_than_it_holds_while_the_history_is_read(self, catch_up):
        catch_up.begin_read()
        hold(catch_up, 5, 6, 7, 8, 9)
        assert catch_up.take(page(4, 5)) is None  # read before 6 to 8, which are not held any more
        assert positions(catch_up.next_batch(1_000)) == texts(4, 5)
        catch_up.begin_read()
        assert catch_up.take(page(6, 9)) is None
        assert positions(catch_up.next_batch(1_000)) == texts(6, 7, 8, 9)
        assert catch_up.complete

    def test_some_is_gone(self, catch_up):
        hold(catch_up, 8, 9)
        catch_up.begin_read()
        assert catch_up.take(page(9, 8, recovered=False)) == at(8)
        assert positions(catch_up.next_batch(1_000)) == texts(9)
        assert catch_up.complete

    def test_some_is_gone_later(self, catch_up):
        catch_up.begin_read()
        catch_up.take(page(4, 5, top=20))
        catch_up.next_batch(1_000)
        catch_up.begin_read()
        assert catch_up.take(page(10, 9, top=20, recovered=False)) == at(20)
        assert catch_up.complete
        assert catch_up.position == at(20)

    def test_a_new_epoch_follows(self, catch_up):
        hold(catch_up, 4)
        hold(catch_up, 1, 2, epoch="f")
        catch_up.begin_read()
        assert catch_up.take(page(4, 4)) is None
        assert positions(catch_up.next_batch(1_000)) == [*texts(4), *texts(1, 2, epoch="f")]

    def test_what_is_held_of_an_epoch_that_is_over(self, catch_up):
        hold(catch_up, 4, 5)
        catch_up.begin_read()
        assert catch_up.take(page(1, 0, recovered=False, epoch="f")) == at(0, "f")
        assert catch_up.complete
        hold(catch_up, 4, 5)
        assert catch_up.complete

    def test_what_is_delivered_after_it_was_read(self, catch_up):
        catch_up.begin_read()
        catch_up.take(page(4, 6))
        hold(catch_up, 4, 5)
        assert positions(catch_up.next_batch(1_000)) == texts(4, 5, 6)
        assert catch_up.complete
        hold(catch_up, 6)
        assert catch_up.complete
        assert catch_up.hold(at(7), publication("c", b"{", "")) is False
        assert catch_up.hold(at(1, "f"), publication("c", b"{", "")) is False

    def test_a_backplane_that_breaks_its_word_is_a_gap(self, catch_up):
        hold(catch_up, 6, 7)
        catch_up.begin_read()
        assert catch_up.take(page(4, 4)) == at(7)
        assert catch_up.complete
        assert catch_up.position == at(7)

    def test_lost_while_it_holds(self, catch_up):
        catch_up.begin_read()
        catch_up.take(page(4, 4))
        hold(catch_up, 5)
        catch_up.lost()
        hold(catch_up, 9)
        assert positions(catch_up.next_batch(1_000)) == texts(4)
        catch_up.begin_read()
        assert catch_up.take(page(10, 9, recovered=False)) == at(9)
        assert catch_up.complete

    def test_lost_when_it_was_through(self, catch_up):
        """It waits for live to come so far; what comes now may be anything, so the history has to be read."""
        calls = []
        catch_up.read_on = lambda: calls.append("read on")
        catch_up.begin_read()
        catch_up.take(page(4, 6))
        catch_up.next_batch(1_000)
        catch_up.lost()
        assert not calls  # who has not been answered yet reads on by itself
        catch_up.answered = True
        catch_up.begin_read()
        catch_up.take(page(7, 6))
        assert catch_up.complete
        catch_up.lost()
        assert calls
        assert catch_up.wants_page
        hold(catch_up, 8)
        catch_up.begin_read()
        catch_up.take(page(7, 8))
        assert positions(catch_up.next_batch(1_000)) == texts(7, 8)


class TestRoom:
    def catch_up(self, room, since=3):
        return CatchUp("c", at(since), 100, room, lambda channel: None, lambda: None)

    def test_what_is_held_beyond_it_is_read_from_the_history(self):
        room = Room(500)
        catch_up = self.catch_up(room)
        catch_up.begin_read()
        assert catch_up.take(page(4, 4)) is None
        hold(catch_up, 5, 6, 7)
        assert room.left < 500 - 3 * 100
        hold(catch_up, 8, 9)  # the others are dropped for it
        assert catch_up._must_read
        assert positions(catch_up.next_batch(1_000)) == texts(4)
        catch_up.begin_read()
        assert catch_up.take(page(5, 9)) is None
        assert positions(catch_up.next_batch(10_000)) == texts(5, 6, 7, 8, 9)
        assert catch_up.complete
        assert room.left == 500

    def test_a_page_beyond_it_is_read_in_pieces(self):
        room = Room(3)
        catch_up = self.catch_up(room)
        got = []
        while not catch_up.complete:
            since = catch_up.begin_read().offset
            assert catch_up.take(page(since + 1, 9)) is None
            got.append(positions(catch_up.next_batch(1_000)))
        assert got == [texts(4, 5, 6), texts(7, 8, 9)]
        assert room.left == 3

    def test_it_is_one_for_all_channels(self):
        room = Room(400)
        first, second = self.catch_up(room), self.catch_up(room)
        hold(first, 4, 5)
        hold(second, 4, 5, 6)
        assert room.left >= 0
        for catch_up in (first, second):
            catch_up.begin_read()
            assert catch_up.take(page(4, 6)) is None
            assert positions(catch_up.next_batch(10_000)) == texts(4, 5, 6)
            assert catch_up.complete
        assert room.left == 400

    @pytest.mark.parametrize("ending", ["end", "lost", "go_back", "broken"])
    def test_it_is_given_back(self, ending):
        room = Room(10_000)
        catch_up = self.catch_up(room)
        catch_up.begin_read()
        catch_up.take(page(4, 6, top=9))
        hold(catch_up, 20)
        if ending == "end":
            catch_up.end()
        elif ending == "go_back":
            catch_up.go_back(at(2))
        elif ending == "lost":
            catch_up.lost()
            catch_up.next_batch(1_000)
        else:
            catch_up.begin_read()
            assert catch_up.take(page(7, 9)) == at(20)
        assert room.left == 10_000


async def test_what_waits_for_a_client_that_catches_up_is_bounded_over_all_its_channels(make):
    limits = Limits(
        write_soft_bytes=4_096, write_hard_bytes=20_000, recovery_reply_bytes=1_000, channel_messages_per_second=None
    )
    world = await make(limits=limits, history={"*": History(size=50)})
    since, ada = {}, world.client("ada")
    for number in range(10):
        channel = f"c{number}"
        since[channel] = str((await world.realtime.publish(channel, 0)).position)
        world.realtime.publish(channel, "x" * 3_000)
        await ada.say("subscribe", channel=channel, since=since[channel])
    ada.stalled = True
    ada.bytes_buffered = limits.write_soft_bytes + 1
    for number in range(30):
        for channel in since:
            world.realtime.publish(channel, [number, "y" * 3_000])
    catch_ups = ada.session._recovery.catch_ups.values()
    kept = [len(one.payload) for catch_up in catch_ups for one in catch_up._missed]
    kept += [len(message.json) for catch_up in catch_ups for _, message in catch_up._held]
    assert 30_000 < sum(kept) < limits.write_hard_bytes + 10 * 3_200
    got = {channel: [] for channel in since}
    for _ in range(400):
        ada.read()
        await world.settle()
        for message in ada.take_type("message"):
            got[message["channel"]].append(message["position"])
    for channel in since:
        assert got[channel] == [message["position"] for message in await world.realtime.history(channel, 31)]


async def test_a_client_that_reads_slowly_recovers_once_and_is_not_evicted(make):
    limits = Limits(recovery_messages=300, write_soft_bytes=65_536, channel_messages_per_second=None)
    world = await make(limits=limits, history={"*": History(size=1_000)})
    ada = world.client("ada")
    since = (await ada.done("subscribe", channel="c"))["position"]
    ada.simulate_close()
    for number in range(400):
        world.realtime.publish("c", [number, "x" * 2_000])
    ben = world.client("ben")
    ben.stalled = True
    answer = await ben.done("subscribe", channel="c", since=since)
    assert answer["recovered"] is True
    assert 0 < len(answer["messages"]) < 10
    got = [message["data"][0] for message in answer["messages"]]
    for number in range(400, 800):
        world.realtime.publish("c", [number, "x" * 2_000])
        if number % 40 == 0:
            await world.settle()
            got += [message["data"][0] for message in ben.take_type("message")]
            ben.read()
    for _ in range(100):
        await world.settle()
        got += [message["data"][0] for message in ben.take_type("message")]
        ben.read()
    assert got == list(range(800))
    assert ben.most_buffered < limits.write_soft_bytes + 2 * limits.recovery_reply_bytes
    assert world.realtime.exchange.catching_up == 0
    world.realtime.publish("c", "live")
    assert [message["data"] for message in ben.take_type("message")] == ["live"]


async def test_a_client_that_reads_fast_leaves_the_loop_its_turns(make):
    world = await make(limits=Limits(recovery_reply_bytes=1_000, recovery_messages=100), history={"c": History()})
    since = str((await world.realtime.publish("c", 0)).position)
    for number in range(99):
        world.realtime.publish("c", [number, "x" * 300])
    ada = world.client("ada")
    await ada.done("subscribe", channel="c", since=since)
    got = []
    while len(got) < 90:
        await asyncio.sleep(0)
        came = ada.take_type("message")
        assert len(came) < 10
        got += came


async def test_many_channels_at_once_are_recovered_one_after_the_other(make):
    limits = Limits(write_soft_bytes=65_536, messages_per_second=None)
    world = await make(limits=limits, history={"*": History(size=300)})
    ada = world.client("ada")
    since = {}
    for number in range(128):
        since[f"c{number}"] = (await ada.done("subscribe", channel=f"c{number}"))["position"]
    ada.simulate_close()
    for channel in since:
        for number in range(20):
            world.realtime.publish(channel, [number, "x" * 3_000])
    ben = world.client("ben")
    ben.stalled = True

    async def subscribe_to_all():
        for channel, position in since.items():
            await ben.say("subscribe", channel=channel, since=position, id=channel)

    task = asyncio.ensure_future(subscribe_to_all())
    got = {channel: [] for channel in since}
    for _ in range(2_000):
        await world.settle()
        for message in ben.take():
            if message["type"] == "reply":
                got[message["channel"]] += [one["data"][0] for one in message["data"]["messages"]]
            elif message["type"] == "message":
                got[message["channel"]].append(message["data"][0])
        ben.read()
        if task.done() and not world.realtime.exchange.catching_up:
            break
    assert got == {channel: list(range(20)) for channel in since}
    assert ben.most_buffered < 2 * limits.write_soft_bytes


class TestEndings:
    """A catch-up that something ends before it is through."""

    @pytest.fixture
    async def behind(self, make):
        """A world in which ada is in the middle of a recovery, and does not read."""
        world = await make(
            limits=Limits(recovery_reply_bytes=100, write_soft_bytes=100, recovery_messages=30),
            history={"c": History()},
        )
        ada = world.client("ada")
        self.since = (await ada.done("subscribe", channel="c"))["position"]
        for number in range(20):
            world.realtime.publish("c", [number])
        ada.take()
        ada.stalled = True
        answer = await ada.done("subscribe", channel="c", since=self.since)
        assert (answer["recovered"], answer["messages"]) == (True, [])
        await world.settle()
        assert [message["data"] for message in ada.take_type("message")] == []
        assert world.realtime.exchange.catching_up == 1
        return world, ada

    async def test_unsubscribe(self, behind):
        world, ada = behind
        await ada.done("unsubscribe", channel="c")
        ada.read()
        await world.settle()
        assert ada.take() == []
        assert world.realtime.exchange.catching_up == 0

    async def test_close(self, behind):
        world, ada = behind
        ada.simulate_close()
        await world.settle()
        assert world.realtime.exchange.catching_up == 0
        assert not world.realtime.exchange._tasks

    async def test_the_application_takes_the_member_out(self, behind):
        world, ada = behind
        assert world.realtime.unsubscribe("ada", "c") == 1
        ada.read()
        await world.settle()
        assert [message["type"] for message in ada.take()] == ["unsubscribed"]

    async def test_subscribe_again_with_since(self, behind):
        world, ada = behind
        ada.read()
        await world.settle()
        first = ada.take_type("message")
        assert 0 < len(first) < 20
        ada.read()
        await ada.say("subscribe", channel="c", since=first[-1]["position"], id="again")
        for _ in range(20):
            ada.read()
            await world.settle()
        got = ada.take()
        reply = [message["type"] for message in got].index("reply")
        then = [message["data"][0] for message in got[reply:] if message["type"] == "message"]
        assert then == list(range(first[-1]["data"][0] + 1, 20))

    async def test_subscribe_again_without_since(self, behind):
        world, ada = behind
        ada.read()
        await world.settle()
        first = ada.take_type("message")
        ada.read()
        answer = await ada.done("subscribe", channel="c")
        assert answer["position"] == first[-1]["position"]
        got = first
        for _ in range(20):
            ada.read()
            await world.settle()
            got += ada.take_type("message")
        assert [message["data"] for message in got] == [[n] for n in range(20)]

    @pytest.mark.parametrize("asks", ["while behind", "while live"])
    async def test_subscribe_again_when_the_history_cannot_be_read(self, behind, monkeypatch, asks):
        """The error says that nothing was done: it goes on as if it had not asked."""
        monkeypatch.setattr(recovery, "_READ_AGAIN_S", 0)
        world, ada = behind
        got = []
        for _ in range(1 if asks == "while behind" else 30):
            ada.read()
            await world.settle()
            got += ada.take_type("message")
        assert (world.realtime.exchange.catching_up > 0) == (asks == "while behind")
        ada.stalled = False
        ada.read()
        fails = [True] * 3
        world.realtime.publish("c", [20])

        async def read_later(*arguments, **options):
            await asyncio.sleep(0)
            if fails:
                fails.pop()
                raise Unavailable("no")
            return MemoryBackplane.read(world.realtime.exchange.backplane, *arguments, **options)

        world.realtime.exchange.backplane.read = read_later
        asking = asyncio.ensure_future(ada.refused("subscribe", channel="c", since=self.since))
        await asyncio.sleep(0)
        world.realtime.publish("c", [21])
        assert await asking == "unavailable"
        world.realtime.publish("c", [22])
        for _ in range(30):
            await world.settle()
            got += ada.take_type("message")
        assert [message["data"] for message in got] == [[n] for n in range(23)]
        assert not fails

    async def test_what_is_lost_meanwhile_is_read_again(self, behind):
        world, ada = behind
        world.realtime.publish("c", [20])
        world.realtime.exchange.lost("c")
        world.realtime.publish("c", [21])
        got = []
        for _ in range(30):
            ada.read()
            await world.settle()
            got += ada.take()
        assert [message["data"] for message in got if message["type"] == "message"] == [[n] for n in range(22)]
        assert "gap" not in {message["type"] for message in got}

    async def test_what_is_gone_meanwhile_is_told(self, behind):
        world, ada = behind
        for number in range(20, 500):
            world.realtime.publish("c", [number])
        got = []
        for _ in range(200):
            ada.read()
            await world.settle()
            got += ada.take()
        kinds = [message["type"] for message in got]
        assert kinds.count("gap") == 1
        before, after = got[: kinds.index("gap")], got[kinds.index("gap") + 1 :]
        assert [m["data"] for m in before] == [[n] for n in range(20)]
        position = got[kinds.index("gap")]["data"]["position"]
        assert position.split(":")[1] == "500"
        assert after == []
        world.realtime.publish("c", "live")
        assert [message["data"] for message in ada.take()] == ["live"]

    async def test_a_history_that_cannot_be_read_for_a_while(self, behind, monkeypatch):
        monkeypatch.setattr(recovery, "_READ_AGAIN_S", 0)
        world, ada = behind
        fails = [True] * 3

        def read(*arguments, **options):
            if fails:
                fails.pop()
                raise Unavailable("no")
            return MemoryBackplane.read(world.realtime.exchange.backplane, *arguments, **options)

        world.realtime.exchange.backplane.read = read
        world.realtime.exchange.lost("c")  # a read fails here, too: ada alone is subscribed, and behind
        got = []
        for _ in range(40):
            ada.read()
            await world.settle()
            got += ada.take_type("message")
        assert [message["data"] for message in got] == [[n] for n in range(20)]
        assert not fails

    async def test_a_recovery_that_fails_closes_the_client(self, behind, caplog):
        world, ada = behind

        def read(*arguments, **options):
            raise OSError("broken")

        world.realtime.exchange.backplane.read = read
        for catch_up in ada.session._recovery.catch_ups.values():
            catch_up.lost()
        for _ in range(40):
            ada.read()
            await world.settle()
        assert ada.close_code == 1011
        assert "recovery" in caplog.text

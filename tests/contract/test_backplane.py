"""What every Backplane promises; the sentences are those of ``street_fast.backplanes``."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import itertools
import random

import pytest

from street_fast.backplanes import History, OutcomeUnknown, Position, Published, Unavailable
from street_fast.limits import Limits
from tests.contract.bus import Recorder, done, read_on

HISTORY = History(size=10, ttl_s=100.0)
LONG = History(size=1_000, ttl_s=100.0)


async def publish_all(node, channel, payloads, **options):
    """One after the other, without waiting in between; the positions."""
    results = [node.publish(channel, payload, **options) for payload in payloads]
    return [(await done(result)).position for result in results]


def numbered(first, last):
    return [b"%d" % number for number in range(first, last + 1)]


async def turns(number):
    for _ in range(number):
        await asyncio.sleep(0)


def check_contiguous(positions):
    for before, after in itertools.pairwise(positions):
        assert (after.epoch, after.offset) == (before.epoch, before.offset + 1)


class TestDelivery:
    async def test_a_subscribed_channel_gets_what_is_published(self, bus, node, sink):
        await done(node.subscribe("c"))
        assert await done(node.publish("c", b"hello")) == Published(None, False)
        await bus.settle()
        assert sink.log == [("message", "c", (b"hello", None, None))]

    @pytest.mark.parametrize(
        "payload", [b"", b"\0\r\n\xff", bytes(range(256)) * 256], ids=["empty", "binary", "64 KiB"]
    )
    @pytest.mark.parametrize("history", [None, HISTORY], ids=["live", "kept"])
    async def test_a_payload_is_opaque(self, bus, node, sink, payload, history):
        await done(node.subscribe("c", history))
        await done(node.publish("c", payload, history=history))
        await bus.settle()
        assert sink.payloads("c") == [payload]
        if history is not None:
            page = await done(node.read("c", history, since=None, limit=1))
            assert page.publications == sink.publications("c")

    async def test_a_name_is_a_name_and_no_pattern(self, bus, node, sink):
        names = ["*", "a*", "[ab]", "a", "b", "a.b", "a.>", "a:b", "a b", "A", "ä", "{a}", ">", "%61", "/", "ä" * 127]
        for name in names:
            await done(node.subscribe(name))
        for name in [*names, "c", "a.c", "a*c", " a"]:
            await done(node.publish(name, name.encode()))
        await bus.settle()
        assert sink.log == [("message", name, (name.encode(), None, None)) for name in names]

    async def test_the_others_are_not_delivered(self, bus, node, sink):
        await done(node.publish("c", b"before"))
        await done(node.subscribe("d", HISTORY))
        await done(node.publish("c", b"kept", history=HISTORY))
        await bus.settle()
        assert sink.log == []

    async def test_subscribing_twice_is_once(self, bus, node, sink):
        await asyncio.gather(done(node.subscribe("c", HISTORY)), done(node.subscribe("c", HISTORY)))
        await done(node.publish("c", b"1"))
        await done(node.publish("c", b"2", history=HISTORY))
        await bus.settle()
        assert sink.payloads("c") == [b"1", b"2"]
        node.unsubscribe("c")
        await done(node.publish("c", b"3"))
        await bus.settle()
        assert sink.payloads("c") == [b"1", b"2"]

    @pytest.mark.parametrize("history", [None, HISTORY], ids=["live", "kept"])
    async def test_nothing_comes_after_unsubscribe_and_all_after_subscribing_again(self, bus, node, sink, history):
        node.unsubscribe("c")
        await done(node.subscribe("c", history))
        await done(node.publish("c", b"1", history=history))
        await bus.settle()
        node.unsubscribe("c")
        await done(node.publish("c", b"2", history=history))
        await bus.settle()
        node.subscribe("c", history)
        node.unsubscribe("c")
        await done(node.subscribe("c", history))
        await done(node.publish("c", b"3", history=history))
        await bus.settle()
        assert sink.payloads("c") == [b"1", b"3"]
        node.subscribe("d", history)
        node.unsubscribe("d")
        await bus.settle()
        await done(node.publish("d", b"4", history=history))
        await bus.settle()
        assert sink.payloads("d") == []

    async def test_subscribing_again_loses_nothing_that_is_on_its_way(self, bus, node, sink):
        await done(node.subscribe("c", LONG))
        for payload in numbered(1, 50):
            node.publish("c", payload, history=LONG)
            await asyncio.sleep(0)
            node.subscribe("c", LONG)
        await bus.settle()
        assert sink.payloads("c") == numbered(1, 50)

    async def test_nothing_is_called_within_the_turn_that_unsubscribes(self, bus, node, sink):
        await done(node.subscribe("c", HISTORY))
        results = [node.publish("c", payload, history=HISTORY) for payload in numbered(1, 9)]
        node.unsubscribe("c")
        count = len(sink.log)
        for result in results:
            await done(result)
        await bus.settle()
        assert len(sink.log) == count

    @pytest.mark.parametrize("history", [None, LONG], ids=["live", "kept"])
    async def test_the_order_is_that_of_the_calls(self, bus, node, sink, history):
        await done(node.subscribe("c", history))
        await publish_all(node, "c", numbered(1, 100), history=history)
        await bus.settle()
        assert sink.payloads("c") == numbered(1, 100)

    async def test_skip_is_handed_on(self, bus, node, sink):
        await done(node.subscribe("c", HISTORY))
        await done(node.publish("c", b"1", skip="conn-1"))
        await done(node.publish("c", b"2", skip="conn-2", history=HISTORY))
        await bus.settle()
        assert [publication.skip for publication in sink.publications("c")] == ["conn-1", "conn-2"]
        page = await done(node.read("c", HISTORY, since=None, limit=9))
        assert page.publications == sink.publications("c")[1:]

    @pytest.mark.parametrize("history", [None, LONG], ids=["live", "kept"])
    async def test_a_publish_from_within_a_delivery_comes_after_it(self, bus, node, sink, history):
        inside = []

        def react(channel, publication):
            assert not inside, "delivered within a delivery"
            inside.append(publication)
            if channel == "c" and len(publication.payload) < 3:
                node.publish("c", publication.payload + b"x", history=history)
                node.publish("d", publication.payload, history=history)
            inside.pop()

        sink.react = react
        await done(node.subscribe("c", history))
        await done(node.subscribe("d", history))
        await done(node.publish("c", b"1", history=history))
        await bus.settle()
        assert sink.payloads("c") == [b"1", b"1x", b"1xx"]
        assert sink.payloads("d") == [b"1", b"1x"]

    async def test_a_sink_that_raises_harms_nobody(self, bus, node, sink, caplog):
        def react(channel, publication):
            raise ValueError("a bug of the application")

        sink.react = react
        await done(node.subscribe("c", HISTORY))
        positions = await publish_all(node, "c", numbered(1, 5), history=HISTORY)
        await bus.settle()
        assert [publication.position for publication in sink.publications("c")] == positions
        assert sink.losses == []

    async def test_what_nobody_awaits_happens_all_the_same(self, bus, node, sink):
        node.subscribe("c", HISTORY)
        node.publish("c", b"1")
        node.publish("c", b"2", history=HISTORY)
        result = node.publish("c", b"3", history=HISTORY)
        if inspect.isawaitable(result):
            waiting = asyncio.ensure_future(done(result))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await bus.settle()
        assert sink.payloads("c") == [b"1", b"2", b"3"]


class TestHistory:
    async def test_offsets_count_from_one_in_one_epoch_each_with_its_own_tag(self, bus, node, sink):
        await done(node.subscribe("c", HISTORY))
        positions = await publish_all(node, "c", numbered(1, 8), history=HISTORY)
        await bus.settle()
        assert [position.offset for position in positions] == list(range(1, 9))
        assert len({position.epoch for position in positions}) == 1
        assert len({position.tag for position in positions}) == 8
        assert all(Position.parse(str(position)) == position for position in positions)
        assert [publication.position for publication in sink.publications("c")] == positions
        page = await done(node.read("c", HISTORY, since=None, limit=100))
        assert page.publications == sink.publications("c")
        assert page.top == positions[-1]
        assert not page.recovered

    async def test_without_history_nothing_is_kept(self, node):
        await publish_all(node, "c", numbered(1, 3))
        page = await done(node.read("c", HISTORY, since=None, limit=100))
        assert page.publications == []
        assert page.top.offset == 0

    async def test_channels_know_nothing_of_each_other(self, node):
        a = await publish_all(node, "a", numbered(1, 3), history=HISTORY)
        b = await publish_all(node, "b", numbered(4, 5), history=HISTORY)
        assert [position.offset for position in a + b] == [1, 2, 3, 1, 2]
        page = await done(node.read("b", HISTORY, since=None, limit=100))
        assert [publication.payload for publication in page.publications] == numbered(4, 5)
        assert not (await done(node.read("b", HISTORY, since=a[0], limit=100))).recovered

    async def test_the_newest_come_without_since(self, node):
        positions = await publish_all(node, "c", numbered(1, 5), history=HISTORY)
        for limit in range(7):
            page = await done(node.read("c", HISTORY, since=None, limit=limit))
            assert [publication.payload for publication in page.publications] == numbered(1, 5)[max(0, 5 - limit) :]
            assert page.top == positions[-1]

    async def test_exactly_what_came_after_since(self, node):
        positions = await publish_all(node, "c", numbered(1, 5), history=HISTORY)
        start = Position.start_of(positions[0].epoch)
        for missed, since in enumerate(reversed([start, *positions])):
            for limit in range(7):
                page = await done(node.read("c", HISTORY, since=since, limit=limit))
                assert page.recovered
                assert page.top == positions[-1]
                expected = numbered(6 - missed, 5)[:limit]
                assert [publication.payload for publication in page.publications] == expected

    async def test_a_page_belongs_to_the_caller(self, node):
        positions = await publish_all(node, "c", numbered(1, 3), history=HISTORY)
        page = await done(node.read("c", HISTORY, since=positions[0], limit=100))
        page.publications.clear()
        assert len((await done(node.read("c", HISTORY, since=positions[0], limit=100))).publications) == 2

    async def test_a_negative_limit_is_refused(self, node):
        with pytest.raises(ValueError, match="limit"):
            await done(node.read("c", HISTORY, since=None, limit=-1))

    async def test_an_unused_channel_has_a_position_from_which_everything_is_recovered(self, bus, node, sink):
        first = await done(node.read("c", HISTORY, since=None, limit=100))
        again = await done(node.read("c", HISTORY, since=first.top, limit=100))
        assert first == ([], first.top, False)
        assert first.top == Position.start_of(first.top.epoch)
        assert again == ([], first.top, True)
        await publish_all(node, "c", numbered(1, 5), history=HISTORY)
        page = await done(node.read("c", HISTORY, since=first.top, limit=100))
        assert page.recovered
        assert [publication.payload for publication in page.publications] == numbered(1, 5)

    async def test_only_size_messages_are_kept(self, node):
        positions = await publish_all(node, "c", numbered(1, 25), history=HISTORY)
        page = await done(node.read("c", HISTORY, since=None, limit=100))
        assert [publication.payload for publication in page.publications] == numbered(16, 25)
        for offset, since in enumerate([Position.start_of(positions[0].epoch), *positions]):
            page = await done(node.read("c", HISTORY, since=since, limit=100))
            assert page.top == positions[-1]
            if page.recovered:
                assert offset >= 15, "messages are missing, and the page says that they are not"
                assert [publication.payload for publication in page.publications] == numbered(offset + 1, 25)
            else:
                assert offset < 16, "nothing is missing, and the page does not say so"
                assert page.publications == []

    async def test_messages_end_and_the_position_of_the_last_one_stays(self, bus, node, sink):
        brief = History(size=10, ttl_s=2.0)
        await done(node.subscribe("c", brief))
        old = await publish_all(node, "c", numbered(1, 3), history=brief)
        await bus.pass_time(2.2)
        page = await done(node.read("c", brief, since=None, limit=100))
        assert page == ([], old[-1], False)
        assert await done(node.read("c", brief, since=old[-1], limit=100)) == ([], old[-1], True)
        for since in (Position.start_of(old[0].epoch), *old[:-1]):
            assert await done(node.read("c", brief, since=since, limit=100)) == ([], old[-1], False)
        new = await publish_all(node, "c", numbered(4, 5), history=brief)
        check_contiguous([*old, *new])
        page = await done(node.read("c", brief, since=new[0], limit=100))
        assert page.recovered
        assert [publication.payload for publication in page.publications] == numbered(5, 5)
        assert not (await done(node.read("c", brief, since=old[1], limit=100))).recovered
        await bus.settle()
        check_contiguous([publication.position for publication in sink.publications("c")])

    async def test_what_is_not_the_position_of_a_message_is_not_recovered(self, node):
        positions = await publish_all(node, "c", numbered(1, 5), history=HISTORY)
        epoch = positions[0].epoch
        other_epoch = ("x" if epoch[0] != "x" else "y") + epoch[1:]
        forged = [Position(other_epoch, position.offset, position.tag) for position in positions]
        forged += [Position(epoch, position.offset, "0") for position in positions]
        forged += [Position(epoch, before.offset, after.tag) for before, after in itertools.pairwise(positions)]
        forged += [Position(epoch, 6, "0"), Position(epoch, 999_999_999_999_999, positions[-1].tag)]
        forged += [
            Position(epoch, -1, "0"),
            Position(epoch, -5, positions[0].tag),
            Position(epoch, 0, positions[0].tag),
        ]
        forged += [Position.start_of(other_epoch), Position("", 0, ""), Position("0", 0, "0")]
        forged += [Position(epoch, position.offset, position.tag.swapcase() + "0") for position in positions]
        for since in forged:
            page = await done(node.read("c", HISTORY, since=since, limit=100))
            assert page == ([], positions[-1], False), since


class TestReadingWhilePublishing:
    @pytest.mark.parametrize("seed", range(5))
    async def test_history_and_live_join_without_a_gap(self, bus, node, sink, seed):
        """Subscribe, read from a position of the past, merge by offset: everything, once, however it interleaves."""
        print(f"seed {seed}")
        dice = random.Random(seed)
        positions = await publish_all(node, "c", [b"1"], history=LONG)
        going_on = True

        async def publish():
            while going_on and len(positions) < 900:  # LONG has room for them
                results = []
                for _ in range(dice.randrange(4)):
                    number = len(positions) + len(results) + 1
                    results.append(node.publish("c", b"%d" % number, history=LONG))
                    await turns(dice.randrange(2))
                for result in results:
                    positions.append((await done(result)).position)
                await asyncio.sleep(0)

        publisher = asyncio.ensure_future(publish())
        read = live = 0
        for _ in range(20):
            await turns(dice.randrange(20))
            since = dice.choice(positions)
            first = len(sink.log)
            await done(node.subscribe("c", LONG))
            await turns(dice.randrange(5))
            page = await read_on(node, "c", LONG, since, limit=dice.choice([7, 50, 1_000]))
            await turns(dice.randrange(20))
            node.unsubscribe("c")
            delivered = sink.log[first:]
            assert page is not None
            from_live = [publication for _, _, publication in delivered]
            check_contiguous([since, *(publication.position for publication in page.publications)])
            check_contiguous([publication.position for publication in from_live])
            merged = {publication.position.offset: publication for publication in page.publications}
            for publication in from_live:
                offset = publication.position.offset
                assert offset <= since.offset or merged.setdefault(offset, publication) == publication
            assert sorted(merged) == list(range(since.offset + 1, since.offset + 1 + len(merged)))
            assert all(publication.payload == b"%d" % offset for offset, publication in merged.items())
            read += len(page.publications)
            live += len(from_live)
        going_on = False
        await publisher
        assert read
        assert live

    async def test_who_published_reads_it(self, node):
        for number in range(1, 30):
            position = (await done(node.publish("c", b"%d" % number, history=LONG))).position
            page = await done(node.read("c", LONG, since=None, limit=1))
            assert page.top == position
            assert page.publications[0].position == position


class TestKeys:
    @pytest.mark.parametrize("history", [None, HISTORY], ids=["live", "kept"])
    async def test_a_key_that_comes_again_gets_the_answer_of_the_first(self, bus, node, sink, history):
        await done(node.subscribe("c", history))
        first = await done(node.publish("c", b"first", history=history, key="k"))
        assert not first.duplicate
        for _ in range(3):
            again = await done(node.publish("c", b"again", history=history, key="k"))
            assert again == (first.position, True)
        await bus.settle()
        assert sink.payloads("c") == [b"first"]
        if history is not None:
            assert (await done(node.read("c", history, since=None, limit=9))).top == first.position

    async def test_keys_belong_to_their_channel(self, bus, node, sink):
        await done(node.subscribe("a"))
        await done(node.subscribe("b"))
        for channel, key in (("a", "k"), ("b", "k"), ("a", "l"), ("a", "K"), ("a", "k:"), ("a", "")):
            assert not (await done(node.publish(channel, key.encode(), key=key))).duplicate
        assert not (await done(node.publish("a", b"no key"))).duplicate
        assert not (await done(node.publish("a", b"no key"))).duplicate
        await bus.settle()
        assert sink.payloads("a") == [b"k", b"l", b"K", b"k:", b"", b"no key", b"no key"]
        assert sink.payloads("b") == [b"k"]

    @pytest.mark.parametrize("history", [None, HISTORY], ids=["live", "kept"])
    async def test_of_many_at_once_one_is_the_first(self, bus, node, sink, new_node, history):
        nodes = [node]
        if bus.several_nodes:
            nodes += [(await new_node())[0] for _ in range(2)]
        await done(node.subscribe("c", history))
        results = await asyncio.gather(
            *(done(nodes[n % len(nodes)].publish("c", b"%d" % n, history=history, key="k")) for n in range(20))
        )
        (first,) = (n for n, result in enumerate(results) if not result.duplicate)
        assert len({result.position for result in results}) == 1
        await bus.settle()
        assert sink.payloads("c") == [b"%d" % first]

    @pytest.mark.parametrize("limits", [Limits(publish_key_ttl_s=2.0)], ids=["2 s"])
    async def test_a_key_is_forgotten_after_its_time(self, bus, node, sink):
        await done(node.subscribe("c", LONG))
        first = await done(node.publish("c", b"1", history=LONG, key="k"))
        await bus.pass_time(1.0)
        assert (await done(node.publish("c", b"2", history=LONG, key="k"))).duplicate
        await bus.pass_time(1.2)  # from the first publish on, not from the last
        second = await done(node.publish("c", b"3", history=LONG, key="k"))
        assert not second.duplicate
        check_contiguous([first.position, second.position])

    async def test_a_key_outlives_its_message(self, node):
        (position,) = await publish_all(node, "c", [b"0"], history=HISTORY, key="k")
        await publish_all(node, "c", numbered(1, 20), history=HISTORY)
        assert await done(node.publish("c", b"again", history=HISTORY, key="k")) == (position, True)


class TestLife:
    @pytest.mark.parametrize("when", ["before start", "after close"])
    async def test_outside_of_start_and_close_nothing_is_possible(self, bus, when, new_node):
        if when == "before start":
            node = bus.node()
        else:
            node, _ = await new_node()
            await node.close()
        for call in (
            lambda: node.publish("c", b"x"),
            lambda: node.publish("c", b"x", history=HISTORY, key="k"),
            lambda: node.subscribe("c", HISTORY),
            lambda: node.read("c", HISTORY, since=None, limit=1),
            lambda: node.members("c"),
        ):
            with pytest.raises(Unavailable):
                await done(call())
        node.unsubscribe("c")
        node.join("c", "ann", None)
        node.leave("c", "ann")
        assert not node.health().ok
        assert node.health().detail

    async def test_it_is_well_when_started(self, bus, node):
        await bus.settle()
        ok, detail = node.health()
        assert ok
        assert detail

    async def test_it_is_started_once(self, node, sink):
        with pytest.raises(RuntimeError, match="start"):
            await node.start(sink)
        assert node.health().ok

    async def test_after_close_the_sink_is_not_called(self, bus, node, sink, new_node):
        await done(node.subscribe("c", HISTORY))
        results = [node.publish("c", payload, history=HISTORY) for payload in numbered(1, 9)]
        await node.close()
        count = len(sink.log)
        for result in results:
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                await done(result)  # each is answered, one way or the other
        if bus.several_nodes:
            other, _ = await new_node()
            await done(other.publish("c", b"x"))
        await bus.settle()
        assert len(sink.log) == count

    async def test_close_leaves_nothing_running(self, bus):
        tasks = asyncio.all_tasks()
        node = bus.node()
        await node.start(Recorder())
        await done(node.subscribe("c", HISTORY))
        await done(node.publish("d", b"x", history=HISTORY, key="k"))
        await node.close()
        await node.close()
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == tasks

    async def test_it_starts_again_as_if_it_were_new(self, bus, node, sink):
        await done(node.subscribe("c"))
        await node.close()
        await node.start(sink)
        await done(node.publish("c", b"x"))
        await done(node.subscribe("d"))
        await done(node.publish("d", b"y"))
        await bus.settle()
        assert sink.log == [("message", "d", (b"y", None, None))]
        assert node.health().ok


@pytest.mark.usefixtures("several_nodes")
class TestSeveralNodes:
    @pytest.mark.parametrize("history", [None, LONG], ids=["live", "kept"])
    async def test_all_who_subscribed_get_it(self, bus, new_node, history):
        (a, sink_a), (b, sink_b), (_, sink_c) = [await new_node() for _ in range(3)]
        await done(a.subscribe("c", history))
        await done(b.subscribe("c", history))
        await done(a.publish("c", b"1", history=history, skip="conn"))
        await bus.settle()
        assert sink_a.log == sink_b.log
        assert len(sink_a.log) == 1
        assert sink_b.publications("c")[0].skip == "conn"
        a.unsubscribe("c")
        await done(a.publish("c", b"2", history=history))
        await bus.settle()
        assert sink_a.payloads("c") == [b"1"]
        assert sink_b.payloads("c") == [b"1", b"2"]
        assert sink_c.log == []

    async def test_a_signal_reaches_the_others_who_subscribed(self, bus, new_node):
        (a, sink_a), (b, sink_b), (c, sink_c) = [await new_node() for _ in range(3)]
        await done(a.subscribe("c"))
        await done(b.subscribe("c"))
        await done(c.subscribe("d"))
        a.signal("c", b'{"it":"\\n\x00"}')
        await bus.settle()
        assert sink_b.log == [("signal", "c", b'{"it":"\\n\x00"}')]
        assert sink_a.log == sink_c.log == []
        await bus.cut(a)
        a.signal("c", b"nobody hears it")
        await bus.settle()
        await bus.mend(a)
        await bus.settle()
        assert len(sink_b.log) == 1

    async def test_all_see_the_same_order_once(self, bus, new_node):
        nodes = [await new_node() for _ in range(3)]
        for node, _ in nodes:
            await done(node.subscribe("c", LONG))

        async def publish(name, node):
            for number in range(60):
                result = node.publish("c", b"%s%d" % (name, number), history=LONG)
                if number % 3 == 0:
                    await done(result)

        await asyncio.gather(*(publish(b"abc"[n : n + 1], node) for n, (node, _) in enumerate(nodes)))
        await bus.settle()
        first = nodes[0][1].publications("c")
        check_contiguous([Position.start_of(first[0].position.epoch), *(p.position for p in first)])
        for name in (b"a", b"b", b"c"):
            own = [p.payload for p in first if p.payload.startswith(name)]
            assert own == [b"%s%d" % (name, number) for number in range(60)]
        for node, sink in nodes:
            assert sink.losses == []
            assert sink.publications("c") == first
            page = await done(node.read("c", LONG, since=None, limit=1_000))
            assert page.publications == first

    async def test_a_node_is_told_who_is_on_the_others(self, bus, new_node):
        (a, sink_a), (b, sink_b) = await new_node(), await new_node()
        a.join("c", "ann", b'"A"')
        a.join("c", "bob", None)
        await bus.settle()
        assert sink_b.members == {}, "not subscribed"
        await done(b.subscribe("c"))
        await done(a.subscribe("c"))
        await bus.settle()
        assert sink_b.members["c"] == {"ann": b'"A"', "bob": None}
        b.join("c", "cem", None)
        a.leave("c", "bob")
        a.leave("c", "nobody")
        a.join("d", "dan", None)
        await bus.settle()
        assert sink_b.members == {"c": {"ann": b'"A"'}}
        assert sink_a.members == {"c": {"cem": None}}, "and not of its own"
        a.join("c", "ann", b'"B"')
        await bus.settle()
        assert sink_b.members["c"] == {"ann": b'"B"'}
        b.unsubscribe("c")
        sink_b.members.clear()
        a.leave("c", "ann")
        a.join("c", "eve", None)
        await bus.settle()
        assert sink_b.members == {}
        await done(b.subscribe("c"))
        await bus.settle()
        assert sink_b.members == {"c": {"eve": None}}

    async def test_a_node_that_lingers_leaves_its_members_behind(self, bus, new_node):
        (a, _), (b, sink) = await new_node(), await new_node()
        await done(b.subscribe("c"))
        a.join("c", "ann", None)
        a.join("c", "bob", None)
        await bus.settle()
        await a.close(linger=True)
        c, _ = await new_node()
        c.join("c", "ann", None)
        await bus.settle()
        assert sink.left == sink.losses == []
        assert "ann" in await done(b.members("c"))
        assert sink.members["c"] == {"ann": None, "bob": None}

    async def test_who_is_on_the_others_can_be_asked_without_being_there(self, bus, new_node):
        (a, _), (b, _), (c, sink) = [await new_node() for _ in range(3)]
        for node, member, info in ((a, "ann", b'"A"'), (b, "ann", b'"A"'), (b, "bob", None), (c, "cem", None)):
            node.join("c", member, info)
        for number in range(2_000):
            a.join("many", f"m{number}", b"5")
        await bus.settle()
        assert await done(c.members("c")) == {"ann": b'"A"', "bob": None}, "and not of its own"
        assert await done(c.members("nobody")) == {}
        assert await done(c.members("many")) == {f"m{number}": b"5" for number in range(2_000)}
        both = await asyncio.gather(*(done(node.members("c")) for node in (b, c, c)))
        assert both == [{"ann": b'"A"', "cem": None}, *[{"ann": b'"A"', "bob": None}] * 2]
        assert sink.log == [], "it is not subscribed"
        await done(c.subscribe("c"))
        assert await done(c.members("c")) == {"ann": b'"A"', "bob": None}
        b.leave("c", "bob")
        await a.close()
        await bus.settle()
        assert await done(c.members("c")) == {"ann": b'"A"'}
        await b.close()
        await bus.settle()
        assert await done(c.members("c")) == {}
        assert await done(c.members("many")) == {}

    async def test_who_is_on_the_others_cannot_be_known_without_the_broker(self, bus, new_node):
        (a, _), (b, _) = await new_node(), await new_node()
        a.join("c", "ann", None)
        await bus.settle()
        await bus.cut(b)
        with pytest.raises(Unavailable):
            await done(b.members("c"))
        await bus.mend(b)
        await bus.settle()
        assert await done(b.members("c")) == {"ann": None}

    async def test_a_member_of_two_nodes_leaves_with_the_last(self, bus, new_node):
        (a, _), (b, _), (c, sink) = [await new_node() for _ in range(3)]
        await done(c.subscribe("c"))
        for node in (a, b, c):
            node.join("c", "ann", None)
        a.join("c", "bob", None)
        await bus.settle()
        assert sink.members["c"] == {"ann": None, "bob": None}
        b.leave("c", "ann")
        await bus.settle()
        assert sink.members["c"] == {"ann": None, "bob": None}
        await a.close()
        await bus.settle()
        assert sink.members["c"] == {}

    async def test_without_its_broker_a_node_serves_itself(self, bus, new_node):
        (a, sink_a), (b, _) = await new_node(), await new_node()
        await done(a.subscribe("c"))
        await done(b.subscribe("c"))
        await bus.cut(a)
        await done(a.publish("c", b"here"))
        await bus.settle()
        assert not a.health().ok
        assert b.health().ok
        assert sink_a.payloads("c") == [b"here"]
        for call in (
            lambda: a.publish("c", b"x", history=LONG),
            lambda: a.publish("c", b"x", key="k"),
        ):
            with pytest.raises((Unavailable, OutcomeUnknown)):
                await done(call())
        with pytest.raises(Unavailable):
            await done(a.read("c", LONG, since=None, limit=1))
        with pytest.raises(Unavailable):
            await done(a.subscribe("d"))
        await done(a.publish("d", b"there"))
        await bus.settle()
        assert sink_a.payloads("d") == [b"there"]
        await bus.mend(a)
        await bus.settle()
        assert a.health().ok
        assert "d" in sink_a.losses or None in sink_a.losses  # and perhaps "c", of which nobody can know
        await done(b.publish("d", b"again"))
        await bus.settle()
        assert sink_a.payloads("d") == [b"there", b"again"]

    async def test_what_was_missed_meanwhile_is_made_up_for(self, bus, new_node):
        (a, sink_a), (b, sink_b) = await new_node(), await new_node()
        b.join("c", "bob", None)
        b.join("c", "eve", None)
        for node in (a, b):
            await done(node.subscribe("c", LONG))
            await done(node.subscribe("short", HISTORY))
        await publish_all(b, "c", numbered(1, 3), history=LONG)
        await publish_all(b, "short", numbered(1, 3), history=HISTORY)
        await bus.settle()
        await bus.cut(a)
        a.join("c", "ann", None)
        b.leave("c", "bob")
        await publish_all(b, "c", numbered(4, 20), history=LONG)
        await publish_all(b, "short", numbered(4, 20), history=HISTORY)
        await bus.settle()
        await bus.mend(a)
        await bus.settle()
        assert sink_a.payloads("c") == numbered(1, 20)
        check_contiguous([publication.position for publication in sink_a.publications("c")])
        assert sink_a.members["c"] == {"eve": None}
        assert sink_b.members["c"] == {"ann": None}
        # Of the other some are gone, and that is said before what comes next.
        assert sink_a.losses == ["short"]
        at = sink_a.log.index(("lost", "short"))
        before = [entry[2].payload for entry in sink_a.log[:at] if entry[:2] == ("message", "short")]
        assert before == numbered(1, 3)
        await publish_all(b, "short", numbered(21, 22), history=HISTORY)
        await bus.settle()
        after = [entry[2].position for entry in sink_a.log[at:] if entry[:2] == ("message", "short")]
        check_contiguous(after)
        assert after[-1].offset == 22

    async def test_a_lost_answer_is_retried_with_its_key(self, bus, new_node):
        """Cut at every moment of a publish: afterwards the message is there, once."""
        a, _ = await new_node()
        b, sink_b = await new_node()
        await done(b.subscribe("c", LONG))
        for turns in range(40):
            key = f"k{turns}"
            result = asyncio.ensure_future(done(a.publish("c", key.encode(), history=LONG, key=key)))
            for _ in range(turns % 10):
                await asyncio.sleep(0)
            await bus.cut(a)
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                await result
            await bus.mend(a)
            await done(a.publish("c", key.encode(), history=LONG, key=key))
        await bus.settle()
        assert sink_b.payloads("c") == [b"k%d" % turns for turns in range(40)]

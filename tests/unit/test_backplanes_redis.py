"""RedisBackplane when Redis, or the network to it, fails: over real Valkey servers. ``tests/contract`` has the rest."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import random
import sys
import time

import pytest

from street_fast.backplanes import OutcomeUnknown, Position, Unavailable
from street_fast.limits import Limits
from tests.brokers import Proxy, Valkey
from tests.contract.bus import done
from tests.contract.valkey import settle, until
from tests.redis_harness import (  # noqa: F401 - fixtures
    LONG,
    QUICK,
    check_contiguous,
    down,
    new_node_fixture,
    numbers,
    proxied_fixture,
    publish,
    up,
    valkey_fixture,
)

pytestmark = pytest.mark.broker


class TestBroker:
    async def test_killed_and_started_again_empty(self, valkey, new_node):
        (a, sink_a), (b, sink_b) = await new_node(valkey.url), await new_node(valkey.url)
        for node in (a, b):
            await done(node.subscribe("kept", LONG))
            await done(node.subscribe("live"))
            node.join("kept", f"of {node is a}", None)
        old = await publish(a, "kept", 1, 5)
        await settle(a, b)
        valkey.kill()
        await down(a, b)
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await done(a.publish("kept", b"refused", history=LONG))
        await done(a.publish("live", b"here"))
        assert sink_a.payloads("live") == [b"here"]
        valkey.start()
        started = time.monotonic()
        await up(a, b)
        assert time.monotonic() - started < 2
        for sink in (sink_a, sink_b):
            assert {"kept", "live"} <= set(sink.losses)
        new = await publish(a, "kept", 6, 8)
        await done(a.publish("live", b"again"))
        await settle(a, b)
        assert new[0].epoch != old[0].epoch
        assert [position.offset for position in new] == [1, 2, 3]
        assert sink_b.payloads("kept") == [*numbers(1, 5), *numbers(6, 8)]
        assert sink_b.payloads("live") == [b"again"]
        for since in (Position.start_of(old[0].epoch), *old):
            assert not (await done(b.read("kept", LONG, since=since, limit=100))).recovered
        await until(lambda: sink_a.members["kept"] == {"of False": None})
        await until(lambda: sink_b.members["kept"] == {"of True": None})

    @pytest.mark.parametrize("durable", [False, True])
    async def test_started_again_with_older_data(self, valkey, new_node, durable):
        (a, sink_a), (b, _) = [await new_node(valkey.url, durable=durable) for _ in range(2)]
        await done(a.subscribe("c", LONG))
        old = await publish(b, "c", 1, 3)
        valkey.command("SAVE")
        old += await publish(b, "c", 4, 6)
        await settle(a, b)
        assert sink_a.payloads("c") == numbers(1, 6)
        valkey.kill()
        await down(a, b)
        valkey.start()
        await up(a, b)
        if durable:
            await until(lambda: a.stats()["resets"] > 0)
        await until(lambda: sink_a.losses == ["c"] or len(sink_a.losses) > 1)
        new = await publish(b, "c", 7, 9)
        await settle(a, b)
        assert new[0].epoch != old[0].epoch
        assert sink_a.payloads("c") == [*numbers(1, 6), *numbers(7, 9)]
        for since in old:
            assert not (await done(b.read("c", LONG, since=since, limit=100))).recovered
        assert (await done(b.read("c", LONG, since=new[0], limit=100))).recovered

    async def test_durable_data_that_is_all_there_goes_on(self, new_node):
        with Valkey(appendonly="yes", appendfsync="always") as valkey:
            (a, sink_a), (b, _) = [await new_node(valkey.url, durable=True) for _ in range(2)]
            await done(a.subscribe("c", LONG))
            positions = await publish(b, "c", 1, 3)
            valkey.kill()
            await down(a, b)
            valkey.start()
            await up(a, b)
            positions += await publish(b, "c", 4, 6)
            await settle(a, b)
            check_contiguous(positions)
            assert sink_a.payloads("c") == numbers(1, 6)
            assert sink_a.losses == []
            for node in (a, b):
                await node.close()

    async def test_of_an_unused_channel_the_first_message_may_be_lost_with_all_data(self, valkey, proxied, new_node):
        limits = dataclasses.replace(QUICK, position_check_s=60.0)
        (a, sink_a), (b, _) = await new_node(proxied.url, limits=limits), await new_node(valkey.url)
        await done(a.subscribe("c", LONG))
        proxied.cut()
        await down(a)
        await publish(b, "c", 1, 1)
        valkey.command("FLUSHALL")
        begin, a._interests._begin = (
            a._interests._begin,
            lambda *_: None,
        )  # its place is found out a little later than the next one comes
        proxied.resume()
        await until(lambda: a._interests.channels["c"].confirmed)
        await publish(b, "c", 2, 2)
        await until(lambda: a.stats()["received"] > 0)
        a._interests._begin = begin
        await settle(a, b)
        assert sink_a.losses == ["c"]
        assert sink_a.log[0] == ("lost", "c")

    async def test_demoted_and_promoted_again(self, valkey, new_node):
        (a, sink_a), (b, sink_b) = await new_node(valkey.url), await new_node(valkey.url)
        await done(a.subscribe("c", LONG))
        await done(b.subscribe("live"))
        old = await publish(b, "c", 1, 3)
        with Valkey() as other:
            valkey.follow(other)
            await until(lambda: not a.health().ok)
            with pytest.raises(Unavailable):
                await done(b.publish("c", b"refused", history=LONG))
            valkey.promote()
            await up(a, b)
        new = await publish(b, "c", 4, 5)
        await settle(a, b)
        assert sink_a.payloads("c") == [*numbers(1, 3), *numbers(4, 5)]
        assert "c" in sink_a.losses
        assert "live" in sink_b.losses
        assert not (await done(a.read("c", LONG, since=old[-1], limit=9))).recovered
        assert new[0].offset == 1

    async def test_what_waits_behind_a_key_that_a_replica_refuses(self, valkey, new_node):
        node, sink = await new_node(valkey.url)
        await done(node.subscribe("c"))
        valkey.command("REPLICAOF", "127.0.0.1", 1)
        answers = []
        for number in range(3):
            answers.append(node.publish("c", b"keyed", key=f"k{number}"))
            node.publish("c", b"%d" % number)
        for answer in answers:
            with pytest.raises((Unavailable, OutcomeUnknown)):
                await asyncio.wait_for(answer, 5)
        assert sink.payloads("c") == [b"0", b"1", b"2"]
        valkey.promote()
        await up(node)
        node.publish("c", b"3")
        assert sink.payloads("c")[3:] == [b"3"], "it waits for nothing"

    async def test_a_lagging_replica_is_promoted(self, valkey, proxied, new_node):
        (a, sink_a), (b, _) = await new_node(proxied.url), await new_node(proxied.url)
        await done(a.subscribe("c", LONG))
        with Valkey() as replica, Proxy(valkey.port) as replication:
            old = await publish(b, "c", 1, 3)
            replica.command("REPLICAOF", "127.0.0.1", replication.port)
            await until(lambda: replica.info("replication").get("master_link_status") == "up")
            replication.pause()
            old += await publish(b, "c", 4, 6)
            await settle(a, b)
            replica.promote()
            proxied.lead_to(replica.port)
            proxied.cut()
            proxied.resume()
            await up(a, b)
            new = await publish(b, "c", 7, 9)
            await settle(a, b)
            assert sink_a.payloads("c") == [*numbers(1, 6), *numbers(7, 9)]
            assert "c" in sink_a.losses
            for since in old:
                assert not (await done(b.read("c", LONG, since=since, limit=100))).recovered
            check_contiguous(new)
            for node in (a, b):
                await node.close()

    async def test_paused(self, valkey, new_node):
        (a, sink_a), (b, _) = await new_node(valkey.url), await new_node(valkey.url)
        await done(a.subscribe("c", LONG))
        await publish(b, "c", 1, 2)
        valkey.command("CLIENT", "PAUSE", 1_500)
        with pytest.raises((OutcomeUnknown, Unavailable)):
            await done(b.publish("c", b"unknown", history=LONG, key="k"))
        assert not b.health().ok
        await until(lambda: a.health().ok and b.health().ok)
        position = (await done(b.publish("c", b"unknown", history=LONG, key="k"))).position
        assert position.offset == 3
        await settle(a, b)
        assert sink_a.payloads("c") == [b"1", b"2", b"unknown"]
        assert b.stats()["timeouts"] > 0

    async def test_stopped_and_continued(self, valkey, new_node):
        (a, sink_a), (b, _) = await new_node(valkey.url), await new_node(valkey.url)
        await done(a.subscribe("c", LONG))
        valkey.pause()
        with pytest.raises((OutcomeUnknown, Unavailable)):
            await done(b.publish("c", b"unknown", history=LONG, key="k"))
        await down(a, b)
        valkey.resume()
        await up(a, b)
        await done(b.publish("c", b"unknown", history=LONG, key="k"))
        await settle(a, b)
        assert sink_a.payloads("c") == [b"unknown"]
        assert sink_a.losses == []

    async def test_everything_is_flushed(self, valkey, new_node):
        (a, sink_a), (b, _) = await new_node(valkey.url), await new_node(valkey.url)
        await done(a.subscribe("c", LONG))
        old = await publish(b, "c", 1, 5)
        await settle(a, b)
        valkey.command("FLUSHALL")
        await until(lambda: sink_a.losses == ["c"])
        for since in old:
            assert not (await done(b.read("c", LONG, since=since, limit=100))).recovered
        await publish(b, "c", 6, 7)
        await settle(a, b)
        assert sink_a.payloads("c") == numbers(1, 7)

    async def test_full_memory_refuses_what_is_kept_and_nothing_else(self, valkey, new_node):
        (a, sink_a), (b, sink_b) = await new_node(valkey.url), await new_node(valkey.url)
        await done(a.subscribe("c", LONG))
        await done(a.subscribe("live"))
        b.join("live", "bob", None)
        positions = await publish(b, "c", 1, 2)
        await settle(a, b)
        valkey.command("CONFIG", "SET", "maxmemory", 1_000)
        with pytest.raises(Unavailable, match="OOM"):
            await done(b.publish("c", b"refused", history=LONG))
        assert "OOM" in b.health().detail
        await done(b.publish("live", b"goes"))
        assert (await done(b.read("c", LONG, since=positions[0], limit=9))).recovered
        await asyncio.sleep(1.5)  # longer than a node lives without a beat
        assert sink_a.payloads("live") == [b"goes"]
        assert sink_a.members["live"] == {"bob": None}
        valkey.command("CONFIG", "SET", "maxmemory", 0)
        check_contiguous(positions + await publish(b, "c", 3, 4))
        await settle(a, b)
        assert sink_a.payloads("c") == numbers(1, 4)
        assert sink_b.losses == sink_a.losses == []

    async def test_forgotten_scripts_are_loaded_again(self, valkey, new_node):
        node, _ = await new_node(valkey.url)
        valkey.command("SCRIPT", "FLUSH")
        with pytest.raises(Unavailable):
            await done(node.publish("c", b"0", history=LONG))
        check_contiguous(await publish(node, "c", 1, 2))


class TestBus:
    async def test_a_bus_that_is_killed_is_back_and_nothing_is_missing(self, valkey, new_node):
        (a, sink_a), (b, _) = await new_node(valkey.url), await new_node(valkey.url)
        await done(a.subscribe("c", LONG))
        await done(a.subscribe("live"))
        await publish(b, "c", 1, 3)
        valkey.command("CLIENT", "KILL", "TYPE", "pubsub")
        await publish(b, "c", 4, 6)
        await until(lambda: a.health().ok and sink_a.payloads("c") == numbers(1, 6))
        await settle(a, b)
        assert sink_a.losses == ["live"]
        assert sink_a.payloads("c") == numbers(1, 6)

    async def test_a_loop_that_stands_still_is_not_cut_off(self, valkey, new_node):
        valkey.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 4mb 4mb 1")
        node, sink = await new_node(valkey.url, limits=Limits())
        await done(node.subscribe("c"))
        name = node._bus_names.of("b", "c").decode()
        script = (
            f"import redis, time, sys; c = redis.Redis(port={valkey.port}); p = c.pipeline(transaction=False)\n"
            f"for n in range(20_000):\n"
            f"  p.publish({name!r}, b'S1 m 0123456789abcdef -\\n%d ' % n + b'x' * 1_000)\n"
            f"  if n % 100 == 99: p.execute(); time.sleep(0.02)\n"
        )
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
        await until(lambda: bool(sink.log))
        until_then = time.monotonic() + 3.0
        while time.monotonic() < until_then:
            pass
        assert await process.wait() == 0
        await until(lambda: len(sink.log) == 20_000)
        assert node.stats()["reconnects"] == 0
        assert sink.losses == []
        assert [int(payload.split()[0]) for payload in sink.payloads("c")] == list(range(20_000))

    async def test_a_bus_that_overruns_its_buffer_is_made_up_for(self, valkey, proxied, new_node):
        valkey.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 100kb 0 0")
        (a, sink_a), (b, _) = await new_node(proxied.url), await new_node(valkey.url)
        await done(a.subscribe("c", LONG))
        await done(a.subscribe("live"))
        proxied.pause("out")
        results = [b.publish("c", b"%d" % n + b" " * 200_000, history=LONG) for n in range(1, 101)]
        for number in range(100):
            b.publish("live", b"%d" % number + b" " * 200_000)
        for result in results:
            await done(result)
        proxied.resume()
        await until(lambda: a.stats()["reconnects"] > 0)
        await up(a, b)
        await until(lambda: {"live", "c"} <= set(sink_a.losses))  # the history does not have room for all of it
        assert (await done(b.read("c", LONG, since=None, limit=0))).top.offset == 100
        await publish(b, "c", 101, 102)
        await settle(a, b)
        assert sink_a.payloads("c")[-2:] == numbers(101, 102)

    async def test_more_than_may_wait_is_dropped_and_said(self, valkey, new_node):
        limits = Limits(backplane_pending_bytes=200_000)
        (a, sink_a), (b, _) = await new_node(valkey.url, limits=limits), await new_node(valkey.url)
        await done(a.subscribe("c", LONG))
        await done(a.subscribe("live"))
        name = a._bus_names.of("b", "live")
        for number in range(1, 11):
            await done(b.publish("c", b"%d" % number, history=LONG))
        await settle(a, b)

        def flood():
            for _ in range(40):
                valkey.command("PUBLISH", name, b"S1 m 0123456789abcdef -\n" + b"x" * 10_000)

        flood()  # the loop of this node stands still meanwhile, and its thread reads
        await until(lambda: a.stats()["dropped"] > 0)
        await settle(a, b)
        assert "live" in sink_a.losses
        assert "c" not in sink_a.losses
        await publish(b, "c", 11, 12)
        await settle(a, b)
        assert sink_a.payloads("c") == numbers(1, 12)

    async def test_what_is_not_ours_is_counted_and_skipped(self, valkey, new_node):
        seed = random.randrange(2**32)
        print(f"seed {seed}")
        dice = random.Random(seed)
        node, sink = await new_node(valkey.url)
        await done(node.subscribe("c", LONG))
        names = [node._bus_names.of("b", "c"), node._servers.global_name, node._servers.all[0].probe_name]
        rubbish = [
            b"",
            b"\n",
            b"S2 m 0123456789abcdef -\nx",
            b"S1 m",
            b"S1 k 0123456789abcdef e 0 t -\n",
            b"S1 p 0123456789abcdef 0 1\n{",
            b'S1 p 0123456789abcdef 0 1\n{"joined":{"a":"!"}}',
            b"\x80\x04\x95.",
            b"{}" * 1_000,
            b"\xff" * 100,
            b"S1 q 0123456789abcdef 99999999999999\nx",
            *(dice.randbytes(dice.randrange(200)) for _ in range(200)),
        ]
        for name in names:
            for data in rubbish:
                valkey.command("PUBLISH", name, data)
        await settle(node)
        assert node.stats()["poisoned"] == len(rubbish) * len(names)
        await publish(node, "c", 1, 3)
        await settle(node)
        assert sink.payloads("c") == numbers(1, 3)
        assert sink.losses == []
        assert node.health().ok

    async def test_what_others_have_written_in_its_place_is_an_error_and_not_for_ever(self, valkey, new_node, caplog):
        node, sink = await new_node(valkey.url, limits=dataclasses.replace(QUICK, position_check_s=0.1))
        await done(node.subscribe("c", LONG))
        await publish(node, "c", 1, 2)
        route, key = node._routes.of("c"), node._names.key_of("c", "k")
        meta, stream, _ = route.keys
        nested = b'S1 p 0123456789abcdef 0 1\n{"x":' + b"[" * 100_000
        for command in (
            ("SET", key, "x"),
            ("LPUSH", key, "x"),
            ("SET", meta, "x"),
            ("SET", stream, "x"),
            ("HSET", meta, "e", b"\xff"),
            ("HSET", meta, "e", "a b"),
            ("HSET", meta, "e", ""),
            ("HSET", meta, "s", "x"),
            ("HSET", meta, "t", b"\xff"),
            ("XADD", stream, "2-0", "r", nested, "x", 10**14, "c", 0),
        ):
            await publish(node, "c", 1, 1)
            if command[0] != "HSET":
                valkey.command("DEL", command[1])
            valkey.command(*command)
            answers = [
                asyncio.ensure_future(done(node.read("c", LONG, since=None, limit=5))),
                asyncio.ensure_future(done(node.publish("c", b"x", history=LONG, key="k"))),
            ]
            assert not (await asyncio.wait(answers, timeout=3))[1], command
            raised = [answer.exception() for answer in answers if answer.exception() is not None]
            assert all(isinstance(error, (Unavailable, OutcomeUnknown)) for error in raised), command
            assert raised or command[2] in ("t", "2-0"), command
            assert command[:2] != ("SET", meta) or isinstance(raised[1], Unavailable)  # nothing was done
            await asyncio.sleep(0.15)  # its position is checked, too
            valkey.command("DEL", meta, stream, key)
        await settle(node)
        before = len(sink.payloads("c"))
        await publish(node, "c", 3, 4)
        await settle(node)
        assert sink.payloads("c")[before:] == numbers(3, 4)
        assert node.stats()["poisoned"] > 3
        assert 0 < len([record for record in caplog.records if "is not ours" in record.message]) < 3
        assert not [record for record in caplog.records if record.exc_info]

    async def test_records_of_nobody_do_no_harm(self, valkey, new_node):
        node, sink = await new_node(valkey.url)
        await done(node.subscribe("c", LONG))
        await publish(node, "c", 1, 2)
        name = node._bus_names.of("b", "c")
        for data in (
            b"S1 k 0123456789abcdef forged 7 tag -\nforged",
            b'S1 p 0123456789abcdef 5 6\n{"joined":{"ann":null}}',
            b"S1 r 0123456789abcdef\n",
            b"S1 l 0123456789abcdef\n",
            b"S1 q 0123456789abcdef 1\n",
        ):
            valkey.command("PUBLISH", name, data)
        await settle(node)
        await publish(node, "c", 3, 4)
        await settle(node)
        assert sink.payloads("c") == numbers(1, 4)
        assert sink.losses == []

    async def test_what_the_bus_has_swallowed_is_found_by_the_position(self, valkey, new_node):
        (a, sink_a), (b, _) = await new_node(valkey.url), await new_node(valkey.url)
        await done(a.subscribe("c", LONG))
        await publish(b, "c", 1, 1)
        await settle(a, b)
        arrive, a._following.arrive = a._following.arrive, lambda *_: None
        await publish(b, "c", 2, 3)
        await settle(a, b)
        a._following.arrive = arrive
        await until(lambda: sink_a.payloads("c") == numbers(1, 3))
        assert sink_a.losses == []


class TestNetwork:
    async def test_what_could_not_be_sent_is_said_to_the_others(self, valkey, proxied, new_node):
        (a, sink_a), (b, sink_b) = await new_node(proxied.url), await new_node(valkey.url)
        for channel in ("c", "d", "e"):
            await done(b.subscribe(channel))
        await done(a.subscribe("c"))
        proxied.cut()
        await until(lambda: not a.health().ok)
        await done(a.publish("c", b"1"))
        await done(a.publish("d", b"2"))
        assert sink_a.payloads("c") == [b"1"]
        proxied.resume()
        await up(a, b)
        assert sorted(sink_b.losses) == ["c", "d"]
        await done(a.publish("c", b"3"))
        await settle(a, b)
        assert sink_b.payloads("c") == [b"3"]

    async def test_what_was_on_its_way_when_it_was_cut_is_said_too(self, valkey, proxied, new_node):
        (a, _), (b, sink_b) = await new_node(proxied.url), await new_node(valkey.url)
        await done(b.subscribe("c"))
        proxied.drop("in")
        await done(a.publish("c", b"1"))
        await until(lambda: not a.health().ok)
        proxied.resume()
        await up(a, b)
        assert sink_b.losses == ["c"]
        assert sink_b.payloads("c") == []

    @pytest.mark.parametrize("direction", ["in", "out"])
    async def test_silence_in_one_direction_is_noticed(self, valkey, proxied, new_node, direction):
        (a, sink_a), (b, _) = await new_node(proxied.url), await new_node(valkey.url)
        await done(a.subscribe("c", LONG))
        await publish(b, "c", 1, 2)
        await settle(a, b)
        proxied.drop(direction)
        await publish(b, "c", 3, 4)
        await until(lambda: not a.health().ok)
        proxied.resume()
        await until(lambda: sink_a.payloads("c") == numbers(1, 4))
        await up(a, b)
        assert sink_a.losses == []

    async def test_cut_again_and_again(self, valkey, proxied, new_node):
        (a, sink_a), (b, _) = await new_node(proxied.url), await new_node(valkey.url)
        await done(a.subscribe("c", LONG))
        for turn in range(8):
            await publish(b, "c", turn * 3 + 1, turn * 3 + 3)
            proxied.cut()
            await asyncio.sleep(0.02 * turn)
            proxied.resume()
        await up(a, b)
        await until(lambda: sink_a.payloads("c") == numbers(1, 24))
        assert sink_a.losses == []


async def test_close_while_everything_fails(valkey, proxied, new_node):
    node, sink = await new_node(proxied.url)
    await done(node.subscribe("c", LONG))
    node.join("c", "ann", None)
    proxied.drop()
    results = [node.publish("c", b"x", history=LONG) for _ in range(5)]
    started = time.monotonic()
    await node.close()
    assert time.monotonic() - started < 3
    for result in results:
        with contextlib.suppress(Unavailable, OutcomeUnknown):
            await result
    assert sink.payloads("c") == []


async def test_what_needs_no_answer_waits_for_what_does(valkey, new_node):
    (a, sink_a), (b, sink_b) = await new_node(valkey.url), await new_node(valkey.url)
    for node in (a, b):
        await done(node.subscribe("c"))
    results = []
    for number in range(1, 31):
        results.append(a.publish("c", b"%d" % number, key=f"{number}" if number % 3 else None))
        if number % 7 == 0:
            await asyncio.sleep(0)
    for result in results:
        await done(result)
    await settle(a, b)
    assert sink_a.payloads("c") == sink_b.payloads("c") == numbers(1, 30)


async def test_who_reads_when_it_is_closed_is_told(valkey, proxied, new_node):
    node, _ = await new_node(proxied.url)
    proxied.pause()
    reads = [asyncio.ensure_future(done(node.read("c", LONG, since=None, limit=1))) for _ in range(2)]
    await asyncio.sleep(0.05)
    await node.close()
    for read in reads:
        with pytest.raises(Unavailable):
            await read

"""RedisBackplane when Redis, or the network to it, fails: over real Valkey servers. ``tests/contract`` has the rest."""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import itertools
import logging
import os
import random
import sys
import time

import pytest

from street_fast.backplanes import History, OutcomeUnknown, Position, Unavailable
from street_fast.backplanes.redis import RedisBackplane
from street_fast.backplanes.redis_scripts import partition_of
from street_fast.errors import ConfigurationError
from street_fast.limits import Limits
from tests.brokers import Proxy, Valkey, ValkeyCluster, wait_until
from tests.contract.bus import Recorder, done
from tests.contract.valkey import settle, until

pytestmark = pytest.mark.broker

LONG = History(size=10_000, ttl_s=100.0)
QUICK = Limits(
    backplane_timeout_s=0.8,
    backplane_probe_s=0.3,
    position_check_s=0.5,
    node_beat_s=0.1,
    node_ttl_s=0.8,
    presence_refresh_s=0.5,
)


@pytest.fixture
def valkey():
    with Valkey() as valkey:
        yield valkey


@pytest.fixture
async def new_node():
    """Makes a node that is started, and its sink."""
    nodes = []
    prefix = os.urandom(4).hex()

    async def new_node(url, *, start=True, **options):
        node, sink = RedisBackplane(url, **{"prefix": prefix, "limits": QUICK} | options), Recorder()
        nodes.append(node)
        if start:
            await node.start(sink)
        return node, sink

    yield new_node
    for node in nodes:
        await node.close()


@pytest.fixture
async def proxied(valkey):
    with Proxy(valkey.port) as proxy:
        proxy.url = f"redis://127.0.0.1:{proxy.port}"
        yield proxy


async def publish(node, channel, first, last, history=LONG):
    """Numbers, until each is there; the positions."""
    return [
        (await done(node.publish(channel, b"%d" % number, history=history))).position
        for number in range(first, last + 1)
    ]


def numbers(first, last):
    return [b"%d" % number for number in range(first, last + 1)]


def check_contiguous(positions):
    for before, after in itertools.pairwise(positions):
        assert (after.epoch, after.offset) == (before.epoch, before.offset + 1)


async def up(*nodes):
    await until(lambda: all(node.health().ok for node in nodes))
    await settle(*nodes)


class TestConnecting:
    def test_nothing_is_needed_to_make_one(self):
        node = RedisBackplane("redis://nowhere.invalid")
        assert node.health() == (False, "not started, or closed")
        assert node.stats()["published"] == 0

    @pytest.mark.parametrize(
        "options", [{"prefix": ""}, {"prefix": "a{b}"}, {"replicas": -1}, {"replicas": True}, {"limits": 1}], ids=str
    )
    def test_an_option_that_makes_no_sense_is_refused(self, options):
        with pytest.raises(ConfigurationError, match=next(iter(options))):
            RedisBackplane("redis://localhost", **options)

    async def test_a_server_that_is_not_there_yet_is_waited_for(self, new_node, caplog):
        valkey = Valkey()
        node, sink = await new_node(valkey.url)
        assert not node.health().ok
        assert str(valkey.port) in node.health().detail
        with pytest.raises(Unavailable):
            node.subscribe("c", LONG)
        with pytest.raises(Unavailable):
            await done(node.publish("c", b"x", history=LONG))
        await done(node.publish("c", b"here"))
        await asyncio.sleep(0.3)
        assert len([record for record in caplog.records if "no connection" in record.message]) == 1
        valkey.start()
        try:
            started = time.monotonic()
            await up(node)
            assert time.monotonic() - started < 2
            assert sink.log == [("message", "c", (b"here", None, None)), ("lost", "c")]
            await publish(node, "c", 1, 2)
            await settle(node)
            assert sink.payloads("c") == [b"here", b"1", b"2"]
        finally:
            await node.close()
            valkey.close()

    async def test_wrong_credentials_are_said_once_and_tried_again(self, new_node, caplog):
        with Valkey(requirepass="right") as valkey:
            node, _ = await new_node(f"redis://:wrong@127.0.0.1:{valkey.port}")
            await asyncio.sleep(0.4)
            assert not node.health().ok
            assert "password" in node.health().detail
            errors = [record for record in caplog.records if record.levelno == logging.ERROR]
            assert len(errors) == 1
            assert "password" in errors[0].message
            assert ":wrong@" not in caplog.text
            valkey.command("CONFIG", "SET", "requirepass", "wrong")
            await up(node)
            await publish(node, "c", 1, 1)
            await node.close()

    async def test_a_replica_is_not_used(self, valkey, new_node):
        with Valkey() as replica:
            replica.command("REPLICAOF", "127.0.0.1", valkey.port)
            node, _ = await new_node(replica.url)
            assert not node.health().ok
            assert "replica" in node.health().detail
            replica.promote()
            await up(node)
            await node.close()

    async def test_databases_do_not_meet(self, valkey, new_node):
        (a, _), (b, sink_b), (c, sink_c) = [await new_node(f"{valkey.url}/{db}") for db in (1, 2, 1)]
        for node in (b, c):
            await done(node.subscribe("c", LONG))
        await publish(a, "c", 1, 1)
        await done(a.publish("c", b"2"))
        await settle(a, b, c)
        assert sink_b.log == []
        assert sink_c.payloads("c") == [b"1", b"2"]


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
        await until(lambda: not a.health().ok and not b.health().ok)
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
            valkey.start()
            await up(a, b)
            positions += await publish(b, "c", 4, 6)
            await settle(a, b)
            check_contiguous(positions)
            assert sink_a.payloads("c") == numbers(1, 6)
            assert sink_a.losses == []
            for node in (a, b):
                await node.close()

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
        await until(lambda: not a.health().ok and not b.health().ok)
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


class TestReplicas:
    async def test_an_answer_means_that_they_have_it_too(self, valkey, new_node):
        with Valkey() as replica:
            replica.command("REPLICAOF", "127.0.0.1", valkey.port)
            await until(lambda: replica.info("replication").get("master_link_status") == "up")
            node, sink = await new_node(valkey.url, replicas=1)
            await done(node.subscribe("c", LONG))
            results = [node.publish("c", b"%d" % number, history=LONG) for number in range(1, 50)]
            check_contiguous([(await done(result)).position for result in results])
            assert sink.payloads("c") == numbers(1, 49)
            replica.pause()
            with pytest.raises(OutcomeUnknown, match="0 of 1"):
                await done(node.publish("c", b"50", history=LONG, key="k"))
            replica.resume()
            assert (await done(node.publish("c", b"50", history=LONG, key="k"))).duplicate
            await node.close()


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
        valkey.command("CONFIG", "SET", "client-output-buffer-limit", "pubsub 1mb 512kb 1")
        node, sink = await new_node(valkey.url, limits=Limits())
        await done(node.subscribe("c"))
        name = node._bus_names.of("b", "c").decode()
        script = (
            f"import redis, time, sys; c = redis.Redis(port={valkey.port}); p = c.pipeline(transaction=False)\n"
            f"for n in range(20_000):\n"
            f"  p.publish({name!r}, b'S1 m 0123456789abcdef -\\n%d ' % n + b'x' * 1_000)\n"
            f"  if n % 200 == 199: p.execute(); time.sleep(0.01)\n"
        )
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", script)
        await until(lambda: bool(sink.log))
        until_then = time.monotonic() + 2.0
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
        assert "live" in sink_a.losses
        assert "c" in sink_a.losses  # the history does not have room for all of it
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


class TestMembers:
    async def test_a_node_that_is_gone_is_dropped_and_is_back_when_it_is(self, valkey, proxied, new_node):
        (a, _), (b, sink_b), (c, sink_c) = [await new_node(url) for url in (proxied.url, valkey.url, valkey.url)]
        for node in (b, c):
            await done(node.subscribe("c"))
        a.join("c", "ann", b"1")
        c.join("c", "cem", None)
        await settle(a, b, c)
        assert sink_b.members["c"] == {"ann": b"1", "cem": None}
        proxied.cut()
        await until(lambda: sink_b.members["c"] == {"cem": None} and sink_c.members["c"] == {})
        a.join("c", "eve", None)
        late, sink_late = await new_node(valkey.url)
        await done(late.subscribe("c"))
        assert sink_late.members["c"] == {"cem": None}
        proxied.resume()
        await up(a, b, c, late)
        await until(lambda: sink_b.members["c"] == {"ann": b"1", "cem": None, "eve": None})
        await until(lambda: sink_late.members["c"] == sink_b.members["c"])

    async def test_members_are_there_for_as_long_as_their_node(self, valkey, new_node):
        (a, _), (b, sink_b) = await new_node(valkey.url), await new_node(valkey.url)
        a.join("c", "ann", None)
        await settle(a, b)
        await asyncio.sleep(1.6)  # longer than what is written stays by itself
        await done(b.subscribe("c"))
        assert sink_b.members["c"] == {"ann": None}
        await a.close()
        await settle(b)
        assert sink_b.members["c"] == {}
        await b.close()
        left = [key for key in valkey.command("KEYS", "*") if b":e" not in key]
        assert left == []

    async def test_what_was_told_while_nobody_heard_is_read(self, valkey, new_node):
        (a, _), (b, sink_b) = await new_node(valkey.url), await new_node(valkey.url)
        await done(b.subscribe("c"))
        a.join("c", "ann", None)
        await settle(a, b)
        arrived, b._servers.thread._take = b._servers.thread._take, lambda *_: None
        a.join("c", "bob", None)
        await asyncio.sleep(0.05)
        b._servers.thread._take = arrived
        a.leave("c", "ann")
        await until(lambda: sink_b.members["c"] == {"bob": None})


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


class TestSentinel:
    async def test_the_new_primary_is_found_after_a_failover(self, valkey, new_node):
        with Valkey() as replica:
            replica.follow(valkey)
            with Valkey(sentinel_of=("street", valkey.port)) as sentinel:
                wait_until(lambda: sentinel_replicas(sentinel) > 0)
                url = f"redis+sentinel://127.0.0.1:{sentinel.port}/street"
                (a, sink_a), (b, _) = await new_node(url), await new_node(url)
                await done(a.subscribe("c", LONG))
                old = await publish(b, "c", 1, 3)
                await settle(a, b)
                valkey.kill()
                await until(lambda: not a.health().ok)
                await until(lambda: a.health().ok and b.health().ok, 20)
                assert a._servers.all[0].address.port == replica.port
                new = await publish(b, "c", 4, 5)
                await settle(a, b)
                assert sink_a.payloads("c") == numbers(1, 5)
                assert "c" in sink_a.losses
                assert new[0].epoch != old[0].epoch
                for node in (a, b):
                    await node.close()

    async def test_a_service_that_no_sentinel_knows_is_said(self, valkey, new_node):
        with Valkey(sentinel_of=("street", valkey.port)) as sentinel:
            node, _ = await new_node(f"redis+sentinel://127.0.0.1:{sentinel.port}/other")
            assert "'other'" in node.health().detail
            await node.close()


def sentinel_replicas(sentinel):
    return len(sentinel.command("SENTINEL", "REPLICAS", "street"))


@pytest.fixture(scope="module")
def cluster():
    cluster = ValkeyCluster()
    cluster.start()
    yield cluster
    cluster.close()


def cluster_url(cluster):
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster.nodes)


def slot_of(channel):
    return binascii.crc_hqx(b"%d" % partition_of(channel), 0) % 16_384


class TestCluster:
    async def test_channels_are_spread_over_all_servers(self, cluster, new_node):
        url = cluster_url(cluster)
        (a, _), (b, sink) = await new_node(url), await new_node(url)
        channels = [f"c{number}" for number in range(40)]
        assert len({cluster.owner(slot_of(channel)).port for channel in channels}) == 3
        await asyncio.gather(*(done(b.subscribe(channel, LONG)) for channel in channels))
        for channel in channels:
            a.join(channel, "ann", None)
            await publish(a, channel, 1, 2)
            await done(a.publish(channel, b"3"))
            assert (await done(a.publish(channel, b"4", key="k"))) == (None, False)
            assert (await done(a.publish(channel, b"4", key="k"))) == (None, True)
        await settle(a, b)
        for channel in channels:
            assert sorted(sink.payloads(channel)) == numbers(1, 4)
            assert sink.members[channel] == {"ann": None}
        assert sink.losses == []
        await a.close()
        await until(lambda: not any(sink.members.values()))

    async def test_a_slot_that_moves_is_followed(self, cluster, new_node):
        url = cluster_url(cluster)
        (a, sink_a), (b, sink_b) = await new_node(url), await new_node(url)
        channel = "moving"
        for node in (a, b):
            await done(node.subscribe(channel, LONG))
            await done(node.subscribe("still", LONG))
        a.join(channel, "ann", None)
        await publish(a, channel, 1, 3)
        slot = slot_of(channel)
        owner = cluster.owner(slot)
        cluster.move(slot, next(node for node in cluster.nodes if node is not owner))
        deadline = time.monotonic() + 5
        while True:
            try:
                await publish(a, channel, 4, 4)
                break
            except Unavailable:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.02)
        await up(a, b)
        await publish(a, channel, 5, 6)
        await publish(a, "still", 1, 2)
        await settle(a, b)
        for sink in (sink_a, sink_b):
            assert sink.payloads(channel) == numbers(1, 6)
            assert sink.payloads("still") == numbers(1, 2)
            assert "still" not in sink.losses
        await until(lambda: sink_b.members[channel] == {"ann": None})

    async def test_without_one_server_the_others_go_on(self, cluster, new_node):
        url = cluster_url(cluster)
        for server in cluster.nodes:
            server.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
        (a, _), (b, sink) = await new_node(url), await new_node(url)
        here = {cluster.owner(slot_of(name)).port: name for name in (f"d{number}" for number in range(40))}
        for name in here.values():
            await done(b.subscribe(name, LONG))
        server = cluster.nodes[2]
        server.kill()
        try:
            await until(lambda: not a.health().ok and not b.health().ok)
            for port, name in here.items():
                if port == server.port:
                    with pytest.raises((Unavailable, OutcomeUnknown)):
                        await done(a.publish(name, b"x", history=LONG))
                else:
                    await publish(a, name, 1, 2)
            await until(
                lambda: all(sink.payloads(name) == numbers(1, 2) for port, name in here.items() if port != server.port)
            )
        finally:
            server.start()
        await up(a, b)
        name = here[server.port]
        await publish(a, name, 3, 4)
        await settle(a, b)
        assert sink.payloads(name) == numbers(3, 4)
        assert set(sink.losses) == {name}

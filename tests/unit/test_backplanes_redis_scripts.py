"""The names, and the Lua run by a real Valkey."""

from __future__ import annotations

import functools
import itertools
import random
import time

import pytest
import redis

from street_fast.backplanes import records
from street_fast.backplanes.redis_scripts import (
    MEMBERS_CHANGE,
    MEMBERS_REFRESH,
    MEMBERS_WRITE,
    PARTITIONS,
    PUBLISH,
    READ,
    RESET,
    ROSTER,
    SCRIPTS,
    TELL_ONCE,
    Names,
    partition_of,
)
from tests.brokers import Valkey

NODE = b"0123456789abcdef"


class TestNames:
    def test_all_names_of_a_channel_have_its_partition(self):
        names = Names("p")
        for channel in ("a", "room:1", "{x}", "ä"):
            tag = b"p:{%d}:" % partition_of(channel)
            for name in (
                names.of("m", channel),
                names.epoch_of(channel),
                names.key_of(channel, "k"),
                names.members_of(channel, "node"),
            ):
                assert name.startswith(tag)

    def test_no_two_are_the_same(self):
        names = Names("p")
        pairs = itertools.product(["a", "a:1:b", "a:b", "1:a", "", "b:5:x", "a:b:x"], repeat=2)
        assert len({names.key_of(channel, key) for channel, key in pairs}) == 49
        assert names.of("m", "h:x") != names.of("h", "x")

    def test_partitions_are_used_evenly(self):
        counts = [0] * PARTITIONS
        for number in range(12_800):
            counts[partition_of(f"room:{number}")] += 1
        assert min(counts) > 50
        assert max(counts) < 160


@pytest.fixture(scope="module")
def client():
    with Valkey() as valkey:
        client = redis.Redis(port=valkey.port)
        for script in SCRIPTS:
            assert client.script_load(script.source.decode()) == script.sha.decode()
        yield client
        client.close()


@pytest.fixture
def channel(client, request):
    client.flushall()
    return Channel(client)


class Channel:
    """One, and what a backplane would ask for it."""

    def __init__(self, client):
        self.client = client
        self.names = Names("t")
        self.keys = [self.names.of("m", "c"), self.names.of("h", "c"), self.names.epoch_of("c")]
        self.bus = self.names.of("b", "c")
        self.identity = f"{client.info('server')['run_id']}-{client.info('replication')['master_replid']}"
        self.tags = (b"%016x" % number for number in itertools.count(1))

    def run(self, script, keys, *words):
        return self.client.evalsha(script.sha.decode(), len(keys), *keys, *words)

    def publish(self, payload, identity=None, size=100, ttl_ms=100_000, most_bytes=1_000_000, key=None, skip=b"-"):
        tag = next(self.tags)
        keys = [*self.keys, self.bus] + ([] if key is None else [self.names.key_of("c", key)])
        words = [
            self.identity if identity is None else identity,
            tag,
            50_000,
            tag,
            size,
            ttl_ms,
            most_bytes,
            100_000,
            1_000,
            b"PUBLISH",
        ]
        epoch, offset, tag, known = self.run(PUBLISH, keys, *words, b"S1 k %b " % NODE, skip, payload)
        return epoch, int(offset), tag, known

    def read(self, *since, identity=None, limit=1_000):
        words = [self.identity if identity is None else identity, next(self.tags), 50_000, limit]
        epoch, offset, tag, kept, *entries = self.run(READ, self.keys, *words, *since)
        return (epoch, int(offset), tag), kept, [records.decode(entry).publication for entry in entries]

    def payloads(self, *since, **options):
        return [publication.payload for publication in self.read(*since, **options)[2]]


@pytest.mark.broker
class TestHistory:
    def test_a_record_is_what_is_kept_and_what_is_published(self, channel):
        with channel.client.pubsub() as heard:
            heard.subscribe(channel.bus)
            heard.get_message(timeout=1)
            epoch, offset, tag, known = channel.publish(b"a\n\0\xff", skip=b"conn")
            data = heard.get_message(timeout=1)["data"]
        (publication,) = channel.read()[2]
        assert records.decode(data).publication == publication
        assert publication == (b"a\n\0\xff", (epoch.decode(), offset, tag.decode()), "conn")
        assert (offset, known) == (1, 0)

    def test_only_size_messages_stay(self, channel):
        for number in range(10):
            channel.publish(b"%d" % number, size=3)
        assert channel.payloads() == [b"7", b"8", b"9"]
        assert channel.read()[1] == 3

    def test_only_so_many_bytes_stay(self, channel):
        for _ in range(10):
            channel.publish(b"x" * 100, most_bytes=500)
        kept = channel.payloads()
        assert len(kept) == 3  # with some 65 bytes of head each
        channel.publish(b"y" * 600, most_bytes=500)
        top, kept, entries = channel.read()
        assert (top[1], kept, entries) == (11, 0, [])
        channel.publish(b"z", most_bytes=500)
        assert channel.payloads() == [b"z"]

    def test_as_many_as_fit_stay_whatever_their_sizes(self, channel):
        seed = random.randrange(1 << 32)
        print("seed", seed)
        dice = random.Random(seed)
        sizes = []
        for _ in range(400):
            channel.publish(b"x" * dice.choice([0, 10, 100, 500, 900]), size=9, most_bytes=1_000)
            kept = [len(fields[b"r"]) for _, fields in channel.client.xrange(channel.keys[1])]
            sizes.append(kept[-1])
            while len(sizes) > 9 or sum(sizes) > 1_000:
                del sizes[0]
            assert kept == sizes
            if dice.random() < 0.02:
                channel.client.delete(channel.keys[1])
                sizes.clear()

    def test_messages_end_on_time_for_who_reads_and_a_few_with_each_publish(self, channel):
        for number in range(40):
            channel.publish(b"%d" % number, ttl_ms=50)
        channel.client.persist(channel.keys[1])
        time.sleep(0.06)
        channel.publish(b"new", ttl_ms=10_000)
        assert channel.client.xlen(channel.keys[1]) == 37
        assert channel.payloads() == [b"new"]
        assert channel.client.xlen(channel.keys[1]) == 1

    def test_a_channel_that_is_full_of_what_has_ended_is_emptied_in_one_read(self, channel):
        channel.publish(b"keeps the stream", ttl_ms=10_000)
        for number in range(100):
            channel.publish(b"%d" % number, ttl_ms=10)
        channel.client.xdel(channel.keys[1], "1-0")
        channel.client.persist(channel.keys[1])
        time.sleep(0.02)
        assert channel.read()[1:] == (0, [])

    def test_pages(self, channel):
        positions = [channel.publish(b"%d" % number) for number in range(1, 6)]
        epoch = positions[0][0]
        assert channel.payloads(epoch, 2, limit=2) == [b"2", b"3", b"4"], "the one at since comes first"
        assert channel.payloads(epoch, 0, limit=2) == [b"1", b"2", b"3"]
        assert channel.payloads(epoch, 5) == [b"5"]
        assert channel.payloads(epoch, 6) == []
        assert channel.payloads("other", 2) == []
        assert channel.payloads(limit=2) == [b"4", b"5"]
        assert channel.payloads(limit=0) == []

    def test_a_channel_that_is_not_known_costs_nothing_and_begins_where_it_was_said_to(self, channel):
        (epoch, offset, tag), kept, entries = channel.read()
        assert (offset, tag, kept, entries) == (0, b"0", 0, [])
        assert channel.client.keys("*") == [channel.keys[2]]
        assert channel.publish(b"1")[:2] == (epoch, 1)

    def test_what_another_identity_wrote_gets_another_epoch(self, channel):
        old = channel.publish(b"1")
        channel.client.hset(channel.keys[0], "r", "before the restart")
        (epoch, offset, tag), kept, entries = channel.read()
        assert epoch != old[0]
        assert (offset, tag, kept, entries) == (0, b"0", 0, [])
        assert channel.read()[0][0] == epoch
        assert channel.publish(b"2")[:2] == (epoch, 1)
        channel.client.hset(channel.keys[0], "r", "before the next one")
        assert channel.publish(b"3")[0] not in (epoch, old[0])
        assert channel.payloads() == [b"3"]

    def test_who_takes_the_server_for_another_one_changes_nothing(self, channel):
        position = channel.publish(b"1")
        for action in (channel.read, functools.partial(channel.publish, b"2")):
            with pytest.raises(redis.exceptions.ResponseError, match="STALE"):
                action(identity=b"of before")
        assert channel.read()[0] == position[:3]
        assert channel.payloads() == [b"1"]

    def test_an_empty_identity_never_changes(self, channel):
        position = channel.publish(b"1", identity=b"")
        channel.client.hset(channel.keys[0], "r", "")
        assert channel.publish(b"2", identity=b"")[:2] == (position[0], 2)

    def test_a_place_that_was_forgotten_takes_its_messages_along(self, channel):
        channel.publish(b"1")
        channel.client.delete(channel.keys[0])
        assert channel.publish(b"2")[1] == 1
        assert channel.payloads() == [b"2"]

    def test_a_key_gives_the_first_answer(self, channel):
        first = channel.publish(b"1", key="k")
        channel.publish(b"2")
        assert channel.publish(b"3", key="k") == (*first[:3], 1)
        assert channel.payloads() == [b"1", b"2"]
        assert channel.run(TELL_ONCE, [channel.names.key_of("c", "l"), channel.bus], 1_000, b"PUBLISH", b"x") == 0
        assert channel.run(TELL_ONCE, [channel.names.key_of("c", "l"), channel.bus], 1_000, b"PUBLISH", b"x") == 1

    def test_reset_is_done_once(self, channel):
        epoch, offset, tag, _ = channel.publish(b"1")
        words = (channel.identity, b"fresh", 1_000, epoch, offset, tag)
        assert channel.run(RESET, channel.keys[:2], *words) == 1
        assert channel.read()[0] == (b"fresh", 0, b"0")
        assert channel.publish(b"2")[:2] == (b"fresh", 1)
        assert channel.run(RESET, channel.keys[:2], *words) == 0
        assert channel.payloads() == [b"2"]

    def test_large_offsets_stay_whole(self, channel):
        channel.publish(b"1")
        channel.client.hset(channel.keys[0], "s", 123_456_789_012_345)
        channel.client.delete(channel.keys[1])
        assert channel.publish(b"2")[1] == 123_456_789_012_346
        top, _, (publication,) = channel.read()
        assert top[1] == publication.position.offset == 123_456_789_012_346


@pytest.mark.broker
class TestMembers:
    def test_they_are_changed_written_and_read(self, channel):
        keys = [channel.names.members_of("c", "n1"), channel.names.of("n", "c")]
        change = [*keys, channel.bus]

        def roster(own=b"me"):
            before = channel.names.in_partition(partition_of("c"), "p:")
            reply = channel.run(ROSTER, [channel.names.of("n", "c")], before, b":c", own)
            return {
                node: dict(zip(flat[::2], flat[1::2], strict=True))
                for node, flat in zip(reply[::2], reply[1::2], strict=True)
            }

        assert channel.run(MEMBERS_CHANGE, change, "n1", 0, 5, 9_000, b"PUBLISH", b"r", 0, "ann", "=1", "bob", "") == 1
        assert roster() == {b"n1": {b"": b"5", b"ann": b"=1", b"bob": b""}}
        assert roster(b"n1") == {}
        assert channel.run(MEMBERS_CHANGE, change, "n1", 4, 6, 9_000, b"PUBLISH", b"r", 0, "eve", "") == 0
        assert channel.run(MEMBERS_CHANGE, change, "n1", 5, 6, 9_000, b"PUBLISH", b"r", 1, "ann", "eve", "") == 1
        assert roster() == {b"n1": {b"": b"6", b"bob": b"", b"eve": b""}}
        assert channel.run(MEMBERS_REFRESH, keys, "n1", 6, 9_000) == 1
        assert channel.run(MEMBERS_REFRESH, keys, "n1", 5, 9_000) == 0
        assert channel.run(MEMBERS_WRITE, change, "n1", 7, 9_000, b"PUBLISH", b"r", "dan", "=2") == 1
        assert roster() == {b"n1": {b"": b"7", b"dan": b"=2"}}
        assert channel.run(MEMBERS_CHANGE, change, "n1", 7, 8, 9_000, b"PUBLISH", b"r", 1, "dan") == 1
        assert channel.client.keys("*") == []
        channel.run(MEMBERS_WRITE, change, "n1", 9, 9_000, b"PUBLISH", b"r", "dan", "")
        channel.client.delete(keys[0])  # it has ended
        assert channel.run(MEMBERS_REFRESH, keys, "n1", 9, 9_000) == 0
        assert roster() == {}
        assert channel.client.keys("*") == []

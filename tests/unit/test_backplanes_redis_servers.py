"""Connecting to Redis: servers that are not there, replicas, Sentinel and Cluster; over real Valkey servers."""

from __future__ import annotations

import asyncio
import binascii
import contextlib
import logging
import ssl
import time

import pytest

from street_fast.backplanes import OutcomeUnknown, Unavailable
from street_fast.backplanes.redis import RedisBackplane
from street_fast.backplanes.redis_links import CommandLink, Place
from street_fast.backplanes.redis_scripts import SCRIPTS, partition_of
from street_fast.errors import ConfigurationError
from street_fast.limits import Limits
from tests.brokers import Proxy, Valkey, ValkeyCluster, wait_until
from tests.contract.bus import Recorder, done
from tests.contract.valkey import settle, until
from tests.redis_harness import (  # noqa: F401 - fixtures
    LONG,
    check_contiguous,
    new_node_fixture,
    numbers,
    publish,
    up,
    valkey_fixture,
)

pytestmark = pytest.mark.broker


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


def sentinel_replicas(sentinel):
    return len(sentinel.command("SENTINEL", "REPLICAS", "street"))


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

    @pytest.mark.parametrize("kind", ["single", "cluster"])
    async def test_it_can_be_closed_in_the_moment_in_which_the_connection_is_there(self, valkey, monkeypatch, kind):
        """wait_for of Python 3.11 and older does not hear of the cancellation then, and returns the connection."""
        connect, begun = Place.connect, asyncio.Event()

        async def deaf(self, *arguments, **options):
            begun.set()
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(3_600)
            return await connect(self, *arguments, **options)

        monkeypatch.setattr(Place, "connect", deaf)
        node = RedisBackplane(valkey.url.replace("redis:", "redis+cluster:") if kind == "cluster" else valkey.url)
        starting = asyncio.ensure_future(node.start(Recorder()))
        await begun.wait()
        await asyncio.wait_for(node.close(), 20)
        starting.cancel()

    async def test_a_link_that_ends_in_the_moment_in_which_it_is_ready_is_made_again(
        self, valkey, new_node, monkeypatch
    ):
        ended = []
        call = CommandLink.call

        def call_and_end(link, *words):
            answer = call(link, *words)
            if words[-1] == SCRIPTS[-1].source and not ended:
                ended.append(link)
                answer.add_done_callback(lambda _: link.fail(OSError("gone")))
            return answer

        monkeypatch.setattr(CommandLink, "call", call_and_end)
        node, sink = await new_node(valkey.url)
        await up(node)
        await done(node.subscribe("c", LONG))
        await publish(node, "c", 1, 2)
        await settle(node)
        assert ended
        assert sink.payloads("c") == numbers(1, 2)

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


class TestTls:
    async def test_a_certificate_that_is_trusted(self, valkey, new_node, certificate, tmp_path):
        authority = tmp_path / "authority.pem"
        authority.write_text("".join(ssl.DER_cert_to_PEM_cert(der) for der in certificate.client.get_ca_certs(True)))
        with Proxy(valkey.port, certificate.server) as proxy:
            url = f"rediss://127.0.0.1:{proxy.port}?ssl_ca_certs={authority}"
            (a, sink), (b, _) = await new_node(url), await new_node(url)
            await up(a, b)
            await done(a.subscribe("c", LONG))
            await publish(b, "c", 1, 3)
            await settle(a, b)
            assert sink.payloads("c") == numbers(1, 3)
            for node in (a, b):
                await node.close()

    async def test_one_that_is_not(self, valkey, new_node, certificate):
        with Proxy(valkey.port, certificate.server) as proxy:
            node, _ = await new_node(f"rediss://127.0.0.1:{proxy.port}")
            assert not node.health().ok
            assert "certificate" in node.health().detail.lower()
            await node.close()


class TestIdentity:
    async def test_a_server_that_is_another_one_without_anybody_noticing(self, new_node):
        """As after a promotion between two probes, when nobody has written meanwhile."""
        with Valkey(enable_debug_command="yes") as valkey:
            limits = Limits(backplane_probe_s=60.0)
            (a, sink_a), (b, _) = [await new_node(valkey.url, limits=limits) for _ in range(2)]
            await done(a.subscribe("c", LONG))
            old = await publish(b, "c", 1, 2)
            valkey.command("DEBUG", "CHANGE-REPL-ID")
            c, _ = await new_node(valkey.url, limits=limits)  # it knows
            new = await publish(c, "c", 3, 4)
            with pytest.raises(Unavailable, match=r"STALE|may be another one"):  # whichever comes first
                await publish(b, "c", 5, 5)
            await until(lambda: b.health().ok)
            new += await publish(b, "c", 5, 5)
            check_contiguous(new)
            assert new[0].epoch != old[0].epoch
            await until(lambda: "c" in sink_a.losses)
            await up(a, b, c)
            await publish(c, "c", 6, 6)
            await settle(a, b, c)
            assert sink_a.payloads("c")[-1] == b"6"
            for node in (a, b, c):
                await node.close()


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

    async def test_given_up_and_taken_up_again_at_once(self, cluster, new_node):
        url = cluster_url(cluster)
        (a, _), (b, sink) = await new_node(url), await new_node(url)
        for turn in range(5):
            await done(b.subscribe("again", LONG))
            await publish(a, "again", turn + 1, turn + 1)
            await settle(a, b)
            b.unsubscribe("again")
            await asyncio.sleep(0)
        assert sink.payloads("again") == numbers(1, 5)
        assert sink.losses == []
        assert b.stats()["reconnects"] == 0

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
            # To the channel it is another server. What came between the two is told to be lost, if it was not heard.
            assert channel in sink.losses
            assert [payload for payload in sink.payloads(channel) if payload != b"4"] == [
                *numbers(1, 3),
                *numbers(5, 6),
            ]
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

"""Members in Redis, when nodes and the network fail: over a real Valkey server."""

from __future__ import annotations

import asyncio
import dataclasses
import time

import pytest

from tests.brokers import Proxy, Valkey
from tests.contract.bus import done
from tests.contract.valkey import settle, until
from tests.redis_harness import (  # noqa: F401 - fixtures
    QUICK,
    new_node_fixture,
    proxied_fixture,
    up,
    valkey_fixture,
)

pytestmark = pytest.mark.broker


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

    async def test_who_left_before_a_lagging_replica_was_promoted_does_not_come_back(self, valkey, proxied, new_node):
        limits = dataclasses.replace(QUICK, presence_refresh_s=60.0)  # nothing ends by itself
        (a, _), (b, sink_b) = await new_node(proxied.url, limits=limits), await new_node(proxied.url, limits=limits)
        with Valkey() as replica, Proxy(valkey.port) as replication:
            replica.command("REPLICAOF", "127.0.0.1", replication.port)
            await until(lambda: replica.info("replication").get("master_link_status") == "up")
            a.join("c", "ann", None)
            a.join("d", "ann", None)
            await settle(a, b)
            await until(lambda: sorted(replica.command("KEYS", "*")) == sorted(valkey.command("KEYS", "*")))
            replication.pause()
            a.leave("c", "ann")
            await settle(a, b)
            replica.promote()
            proxied.lead_to(replica.port)
            proxied.cut()
            proxied.resume()
            await up(a, b)
            for channel in ("c", "d"):
                await done(b.subscribe(channel))
            await settle(a, b)
            assert (sink_b.members["c"], sink_b.members["d"]) == ({}, {"ann": None})
            for node in (a, b):
                await node.close()

    async def test_a_process_that_stood_still_is_there_when_it_goes_on(self, valkey, new_node):
        (a, sink_a), (b, sink_b) = await new_node(valkey.url), await new_node(valkey.url)
        for node in (a, b):
            await done(node.subscribe("c"))
            node.join("c", f"of {node is a}", None)
        await settle(a, b)
        told = []
        for sink in (sink_a, sink_b):
            sink.members_changed = lambda *args: told.append(args)
        end = time.monotonic() + 1.5  # longer than a node lives without a beat
        while time.monotonic() < end:
            pass
        await asyncio.sleep(1.0)
        await settle(a, b)
        assert told == []
        assert [node.stats()["reconnects"] for node in (a, b)] == [0, 0]
        assert sink_a.losses == sink_b.losses == []
        late, sink_late = await new_node(valkey.url)
        await done(late.subscribe("c"))
        assert sink_late.members["c"] == {"of True": None, "of False": None}

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

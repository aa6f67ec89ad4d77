"""RedisBackplane over real servers: nodes that are quick to notice, and what its tests ask of them. A module of tests
imports the fixtures that it uses."""

from __future__ import annotations

import itertools
import os

import pytest

from street_fast.backplanes import History
from street_fast.backplanes.redis import RedisBackplane
from street_fast.limits import Limits
from tests.brokers import Proxy, Valkey
from tests.contract.bus import Recorder, done
from tests.contract.valkey import settle, until

LONG = History(size=10_000, ttl_s=100.0)
QUICK = Limits(
    backplane_timeout_s=0.8,
    backplane_probe_s=0.3,
    position_check_s=0.5,
    node_beat_s=0.1,
    node_ttl_s=0.8,
    presence_refresh_s=0.5,
)


@pytest.fixture(name="valkey")
def valkey_fixture():
    with Valkey() as valkey:
        yield valkey


@pytest.fixture(name="new_node")
async def new_node_fixture():
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


@pytest.fixture(name="proxied")
async def proxied_fixture(valkey):
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


async def down(*nodes):
    """Until they know that they are cut off."""
    await until(lambda: not any(node.health().ok for node in nodes))


async def up(*nodes):
    """Until they are connected, and all has come that was sent before."""
    while True:
        await until(lambda: all(node.health().ok for node in nodes))
        await settle(*nodes)
        if all(node.health().ok for node in nodes):  # a link may have been about to end
            return

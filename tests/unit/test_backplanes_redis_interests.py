"""What a node hears of Redis while subscriptions come and go: over a real Valkey server."""

from __future__ import annotations

import asyncio

import pytest

from street_fast.backplanes import Unavailable
from tests.contract.bus import done
from tests.contract.valkey import settle, until
from tests.redis_harness import (  # noqa: F401 - fixtures
    new_node_fixture,
    numbers,
    proxied_fixture,
    up,
    valkey_fixture,
)

pytestmark = pytest.mark.broker


def subscribers(valkey, node, channel):
    """How many nodes Redis has heard of that are subscribed to it."""
    return valkey.command("PUBSUB", "NUMSUB", node._bus_names.of("b", channel))[1]


@pytest.mark.parametrize("is_cut_off", [False, True])
async def test_what_was_on_its_way_to_an_earlier_subscription(valkey, proxied, new_node, is_cut_off):
    """It would hide that what came between the two is missing."""
    (a, sink), (b, _) = await new_node(proxied.url), await new_node(valkey.url)
    await done(a.subscribe("c"))
    proxied.pause("out")
    for number, wanted in ((1, 1), (2, 0), (3, 1)):
        if not wanted:
            a.unsubscribe("c")
        elif number == 3 and is_cut_off:  # it has noticed that commands are not answered, and the bus is still there
            a._servers.all[0].command.fail(Unavailable("it is cut off"))
            with pytest.raises(Unavailable):
                a.subscribe("c")
        elif number == 3:
            a.subscribe("c")
        await until(lambda wanted=wanted: subscribers(valkey, a, "c") == wanted)
        await done(b.publish("c", b"%d" % number))
        await settle(b)
    proxied.resume()
    await up(a, b)
    assert sink.payloads("c") == [b"3"]
    assert [entry[0] for entry in sink.log] == ["lost"] * is_cut_off + ["message"]


async def test_who_comes_while_a_key_has_no_answer_gets_what_is_behind_it_too(valkey, proxied, new_node):
    node, sink = await new_node(proxied.url)
    proxied.pause("out")
    keyed = node.publish("c", b"1", key="k")
    node.publish("c", b"2")
    heard = node.subscribe("c")
    proxied.resume()
    await asyncio.gather(keyed, done(heard))
    node.publish("c", b"3")
    assert sink.payloads("c") == numbers(1, 3)

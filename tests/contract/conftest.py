"""The implementations that the suite runs over. For one more, write a `Bus` for it, and add it here."""

from __future__ import annotations

import pytest

from street_fast.limits import Limits
from tests.contract.broker import BrokerBus
from tests.contract.bus import MemoryBus, Recorder
from tests.contract.nats import NatsBus
from tests.contract.valkey import ValkeyBus

BUSES = {"memory": MemoryBus, "broker": BrokerBus, "nats": NatsBus, "valkey": ValkeyBus}


@pytest.fixture
def limits():
    return Limits()


@pytest.fixture(
    params=[pytest.param(name, marks=[pytest.mark.broker] if name in ("nats", "valkey") else []) for name in BUSES]
)
async def bus(request, limits):
    bus = BUSES[request.param](limits)
    yield bus
    await bus.close()


@pytest.fixture
def several_nodes(bus):
    if not bus.several_nodes:
        pytest.skip("its nodes do not meet")


@pytest.fixture
async def new_node(bus):
    """Makes a node that is started, and its sink."""
    nodes = []

    async def new_node():
        node, sink = bus.node(), Recorder()
        nodes.append(node)
        await node.start(sink)
        return node, sink

    yield new_node
    for node in nodes:
        await node.close()


@pytest.fixture
async def node_and_sink(new_node):
    return await new_node()


@pytest.fixture
def node(node_and_sink):
    return node_and_sink[0]


@pytest.fixture
def sink(node_and_sink):
    return node_and_sink[1]

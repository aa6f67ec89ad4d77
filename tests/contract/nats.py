"""Nodes that meet on a real NATS server, each behind a proxy of its own.

There is one server for all tests; each test has a prefix of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import TYPE_CHECKING

from street_fast.backplanes import OutcomeUnknown, Unavailable
from street_fast.backplanes.nats import NatsBackplane
from tests.brokers import Nats, Proxy

if TYPE_CHECKING:
    from street_fast.backplanes import Backplane
    from street_fast.limits import Limits

_servers: list[Nats] = []
_prefixes = (f"test_{number}" for number in itertools.count())


def server() -> Nats:
    """The server of this process; it ends with it."""
    if not _servers:
        _servers.append(Nats())
        _servers[0].start()
    return _servers[0]


class NatsBus:
    """The server, and the way to it."""

    several_nodes = True

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._prefix = next(_prefixes)
        self._nodes: dict[NatsBackplane, Proxy] = {}

    def node(self) -> Backplane:
        proxy = Proxy(server().port)
        node = NatsBackplane(f"nats://127.0.0.1:{proxy.port}", prefix=self._prefix, limits=self._limits)
        self._nodes[node] = proxy
        return node

    async def settle(self) -> None:
        for node, proxy in self._nodes.items():
            while node._sink is None and proxy.connections:  # noqa: ASYNC110 - its last words are on their way
                await asyncio.sleep(0.002)
        await settle(*self._nodes)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def cut(self, node: Backplane) -> None:
        self._nodes[node].cut()
        while node.health().ok:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def mend(self, node: Backplane) -> None:
        self._nodes[node].resume()
        while not node.health().ok:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        for proxy in self._nodes.values():
            proxy.close()


async def settle(*nodes: NatsBackplane) -> None:
    """Return when all that these nodes have published and told has arrived at each of them."""
    quiet = 0
    while quiet < 4:  # a question that is answered takes three
        await asyncio.gather(*(round_trip(node) for node in nodes))
        quiet = 0 if any(busy(node) for node in nodes) else quiet + 1


def busy(node: NatsBackplane) -> bool:
    """Whether something of the node is still on its way."""
    return node.health().ok and bool(node._boxes or node._opening or node._following.reading or node._nodes.telling)


async def round_trip(node: NatsBackplane) -> None:
    """Return when the server has answered something that was sent to it now; at once if it is away."""
    if node.health().ok:
        with contextlib.suppress(OutcomeUnknown, Unavailable):
            await node._link.request(b"$JS.API.INFO", b"")

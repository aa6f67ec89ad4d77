"""The suite over a real Valkey server. Each node reaches it through a proxy of its own, so that it can be cut off."""

from __future__ import annotations

import asyncio
import functools
import os
from typing import TYPE_CHECKING

from street_fast.backplanes.redis import RedisBackplane
from tests.brokers import Proxy, Valkey

if TYPE_CHECKING:
    from collections.abc import Callable

    from street_fast.backplanes import Backplane
    from street_fast.limits import Limits


@functools.cache
def valkey() -> Valkey:
    """One for all tests; it ends with the process."""
    started = Valkey()
    started.start()
    return started


class ValkeyBus:
    """Nodes that share a prefix which nobody else has."""

    several_nodes = True

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._prefix = os.urandom(4).hex()
        self._proxies: dict[RedisBackplane, Proxy] = {}

    def node(self) -> Backplane:
        proxy = Proxy(valkey().port)
        node = RedisBackplane(f"redis://127.0.0.1:{proxy.port}", prefix=self._prefix, limits=self._limits)
        self._proxies[node] = proxy
        return node

    async def settle(self) -> None:
        await settle(*self._proxies)

    async def pass_time(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def cut(self, node: Backplane) -> None:
        assert isinstance(node, RedisBackplane)
        self._proxies[node].cut()
        await until(lambda: not any(server.command or server.bus for server in node._servers.all))

    async def mend(self, node: Backplane) -> None:
        assert isinstance(node, RedisBackplane)
        self._proxies[node].resume()
        await until(lambda: is_quiet(node) and all(server.is_up for server in node._servers.all))

    async def close(self) -> None:
        for proxy in self._proxies.values():
            proxy.close()


async def settle(*nodes: RedisBackplane) -> None:
    """Return when all that these nodes have published and told has arrived at each of them.

    Redis does one thing after the other: what a probe overtakes on its way through the bus does not exist.
    """
    quiet = 0
    while quiet < 2:
        connected = [
            (node, server) for node in nodes if node._sink is not None for server in node._servers.all if server.is_up
        ]
        before = [counts(node) for node, _ in connected]
        try:
            await until(lambda connected=connected: all(is_quiet(node) for node, _ in connected))
        except AssertionError:
            raise AssertionError([waits_for(node) for node, _ in connected]) from None
        for node, server in connected:
            node._servers.probe(server)
        await until(
            lambda connected=connected: all(
                server.probe_back == server.probe_number or not server.is_up for _, server in connected
            )
        )
        unchanged = before == [counts(node) for node, _ in connected] and all(is_quiet(node) for node, _ in connected)
        quiet = quiet + 1 if unchanged else 0


def counts(node: RedisBackplane) -> tuple[int, ...]:
    """What moves when anything does, but for probes."""
    node_stats = node.stats()
    probes = sum(server.probe_back for server in node._servers.all)
    return (
        node_stats["received"] - probes,
        node_stats["published"],
        node_stats["published_kept"],
        node_stats["catch_ups"],
    )


def is_quiet(node: RedisBackplane) -> bool:
    """Whether the node waits for nothing of Redis."""
    return not waits_for(node)


def waits_for(node: RedisBackplane) -> dict[str, object]:
    """For what."""
    waiting = {
        "answers": [server.command for server in node._servers.all if server.command and not server.command.idle],
        "interests": [channel for channel, interest in node._interests.channels.items() if not interest.heard],
        "reads": node._histories.is_catching_up,
        "changes": node._interests._changed or node._members.telling,
        "roster": node._members.reading,
        "following": node._following.reading,
        "inbox": node._servers.thread.inbox,
    }
    return {name: value for name, value in waiting.items() if value}


async def until(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    """Wait for what happens in this process."""
    deadline = asyncio.get_running_loop().time() + timeout_s
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, "it did not come to be"
        await asyncio.sleep(0.002)

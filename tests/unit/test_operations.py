"""What those who run a Realtime ask it: over HTTP, on every front, and as a snapshot."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
from typing import Any

import pytest
import uvicorn
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families

from street_fast import History, Limits, Operations, Realtime
from street_fast.backplanes import Health
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.errors import ConfigurationError
from street_fast.exposition import CONTENT_TYPE
from street_fast.http_server import HttpServer
from street_fast.metric_names import METRICS
from street_fast.operations import render
from street_fast.testing import memory_client
from tests.http_harness import head, parse, serving, until

FAST = Limits(shutdown_timeout_s=2, shutdown_batch_interval_s=0.01, abort_timeout_s=0.2)


class Broken(MemoryBackplane):
    """A backplane whose broker is as the test says."""

    well = Health(True, "fine")

    def health(self) -> Health:
        return self.well

    def stats(self) -> dict[str, int]:
        return {**super().stats(), "reconnects": 3, "bus_lag_ms": 1_500, "pigeons": 2}


@pytest.fixture
async def realtime():
    realtime = Realtime(history={"*": History()}, backplane=Broken(limits=FAST), limits=FAST)
    realtime.attach(HttpServer())
    await realtime.start()
    yield realtime
    await asyncio.wait_for(realtime.close(), 20)


async def ask(port: int, path: str, method: str = "GET") -> Any:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head(method, path, "Connection: close"))
    try:
        return parse(await asyncio.wait_for(reader.read(), 20), [method])[0]
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("kind", ["street_fast", "uvicorn", "aiohttp"])
async def test_the_three_paths_on_every_front(realtime: Realtime, kind: str) -> None:
    async def check(port: int) -> None:
        health, ready, metrics = [await ask(port, path) for path in ("/healthz", "/readyz", "/metrics")]
        assert (health.status, health.body) == (200, b"ok\n")
        assert (ready.status, json.loads(ready.body)) == (200, {"ready": True})
        assert metrics.status == 200
        assert metrics.headers["content-type"] == CONTENT_TYPE
        assert "street_fast_connections" in {family.name for family in families(metrics.body)}
        for answer in (health, ready, metrics):
            assert answer.headers["cache-control"] == "no-store"

    operations = Operations(realtime)
    if kind == "street_fast":
        http = HttpServer()
        operations.attach(http)
        async with serving(http):
            await check(http.port)
    elif kind == "aiohttp":
        app = web.Application()
        operations.attach(app)
        async with TestClient(TestServer(app)) as client:
            assert client.port is not None
            await check(client.port)
    else:
        config = uvicorn.Config(web.Application(), port=0, log_config=None, lifespan="off")
        operations.attach(config)
        server = uvicorn.Server(config)
        running = asyncio.ensure_future(server.serve())
        await until(lambda: server.started or running.done())
        await check(server.servers[0].sockets[0].getsockname()[1])
        server.should_exit = True
        await asyncio.wait_for(running, 20)


def families(text: bytes) -> list[Any]:
    return list(text_string_to_metric_families(text.decode()))


def test_only_for_a_realtime_and_once_for_a_front():
    with pytest.raises(ConfigurationError, match="must be a Realtime"):
        Operations(HttpServer())  # type: ignore[arg-type]
    http = HttpServer()
    Operations(Realtime()).attach(http)
    with pytest.raises(ConfigurationError, match="/healthz"):
        Operations(Realtime()).attach(http)


async def test_it_is_ready_from_its_start_to_its_end():
    realtime = Realtime(backplane=Broken(limits=FAST), limits=FAST)
    operations = Operations(realtime)
    http = HttpServer()
    operations.attach(http)

    async def ready() -> tuple[int, Any, int]:
        answer, alive = await ask(http.port, "/readyz"), await ask(http.port, "/healthz")
        return answer.status, json.loads(answer.body), alive.status

    async with serving(http):
        assert await ready() == (503, {"ready": False, "reason": "it has not started"}, 200)
        await realtime.start()
        assert await ready() == (200, {"ready": True}, 200)
        assert (await ask(http.port, "/readyz", "HEAD")).status == 200
        realtime.exchange.backplane.well = Health(False, "the broker does not answer")  # type: ignore[attr-defined]
        reason = "backplane: the broker does not answer"
        assert await ready() == (503, {"ready": False, "reason": reason}, 200)
        assert operations.snapshot()["ready"] == 0
        realtime.exchange.backplane.well = Health(True, "fine")  # type: ignore[attr-defined]
        assert await ready() == (200, {"ready": True}, 200)
        await realtime.close()
        assert await ready() == (503, {"ready": False, "reason": "it is about to end"}, 200)


async def test_without_the_package_only_the_metrics_are_missing(realtime, monkeypatch):
    http = HttpServer()
    Operations(realtime).attach(http)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    async with serving(http):
        answer = await ask(http.port, "/metrics")
        assert answer.status == 501
        assert b"pip install 'street_fast[metrics]'" in answer.body
        assert answer.body.count(b"\n") == 1
        assert (await ask(http.port, "/readyz")).status == 200


async def test_a_snapshot_is_json_with_every_number_that_has_a_name(realtime):
    told = Operations(realtime).snapshot()
    assert json.loads(json.dumps(told)) == told
    elsewhere = {"supervisor", "backplane"}
    for metric in METRICS:
        for path in metric.sources.values():
            group, _, name = path.partition(".")
            if group not in elsewhere:
                assert group in told, path
                assert not name or name in told[group], path


@pytest.mark.parametrize("address", ["redis://127.0.0.1:{}", "nats://127.0.0.1:{}", "memory"])
async def test_what_a_backplane_counts_has_names(address: str) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and does not listen
        url = address.format(nobody.getsockname()[1])
        realtime = Realtime(backplane=None if url == "memory" else url, limits=FAST)
        await realtime.start()
        try:
            counted = Operations(realtime).snapshot()["backplane"]
            assert len(counted) > 3
            named = {path for metric in METRICS for path in metric.sources.values()}
            assert [name for name in counted if f"backplane.{name}" not in named] == []
            assert counted["up"] == (url == "memory")
        finally:
            await realtime.close()


async def test_what_clients_do_is_in_it(realtime):
    operations = Operations(realtime)
    async with memory_client(realtime.server) as ada, memory_client(realtime.server) as ben:
        for client in (ada, ben):
            say(client, "subscribe", channel="room", id=1)
            await client.settle()
        say(ada, "publish", channel="room", data=1)
        say(ben, "subscribe", channel="other", since="nobody:7:knows", id=2)
        for client in (ada, ben):
            await client.settle()
        told = values(operations.snapshot())
    assert told["street_fast_connections", "websocket"] == 2
    assert told["street_fast_connections", "sse"] == 0
    assert told["street_fast_connections_opened_total", "websocket"] == 2
    assert told["street_fast_members", ""] == told["street_fast_channels", ""] == 2
    assert told["street_fast_subscriptions", ""] == 3
    assert told["street_fast_publications_total", ""] == 1
    # The clients in memory are WebSockets of this loop, too.
    assert told["street_fast_messages_received_total", "websocket"] >= 4
    assert told["street_fast_messages_sent_total", "websocket"] >= 7
    assert told["street_fast_history_messages", ""] == 1
    assert told["street_fast_recoveries_total", "lost"] == 1
    assert told["street_fast_recoveries_total", "recovered"] == 0
    assert told["street_fast_backplane_up", ""] == 1
    assert told["street_fast_backplane_reconnects_total", ""] == 3
    assert told["street_fast_backplane_lag_seconds", ""] == 1.5
    assert told["street_fast_backplane_pigeons", ""] == 2
    assert told["process_resident_memory_bytes", ""] > 1_000_000
    await until(lambda: realtime.server.connection_count == 0)
    told = values(operations.snapshot())
    assert told["street_fast_connections", "websocket"] == 0
    assert sum(value for (name, _), value in told.items() if name == "street_fast_connections_closed_total") == 2


def say(client: Any, type: str, **fields: Any) -> None:  # noqa: A002
    client.ws.send(json.dumps({"type": type, **fields}))


def values(snapshot: dict[str, Any]) -> dict[tuple[str, str], float]:
    """What a rendered snapshot says, by name and the one label."""
    return {
        (sample.name, next(iter(sample.labels.values()), "")): sample.value
        for family in families(render({"": snapshot}))
        for sample in family.samples
    }

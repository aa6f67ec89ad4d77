"""Event streams of a Realtime on real sockets: clients that do not read, that vanish, that lie; and the end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import random
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from websockets.asyncio.client import connect

from street_fast._core import LoopContext
from street_fast.backplanes import History
from street_fast.http_connection import HttpConnection
from street_fast.http_server import HttpServer
from street_fast.limits import Limits
from street_fast.realtime import Realtime
from street_fast.session import Session
from street_fast.sse_peer import Opening, SsePeer
from tests.http_harness import head, parse, until
from tests.sse_harness import EventSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMITS = Limits(
    write_soft_bytes=50_000,
    write_hard_bytes=200_000,
    abort_timeout_s=1,
    shutdown_timeout_s=5,
    shutdown_batch_interval_s=0.01,
    history_bytes=100_000_000,
    messages_per_second=None,
    channel_messages_per_second=None,
)
KEY = "a-key-of-some-length"
FRONTS = ["street_fast", "uvicorn h11", "uvicorn httptools", "aiohttp"]


class Client:
    """An EventSource on a socket. `resume` is a new one where this one was."""

    def __init__(self, port: int, query: str, last_event_id: str = "") -> None:
        self.port = port
        self.query = query
        self.source = EventSource()
        self.last_event_id = last_event_id
        self.chunked = False
        self._decoded: list[Any] = []

    async def __aenter__(self) -> Client:  # noqa: PYI034
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1_000)
        lines = [f"Last-Event-ID: {self.last_event_id}"] if self.last_event_id else []
        self.writer.write(head("GET", f"/realtime/sse?{self.query}", *lines))
        answer = await asyncio.wait_for(self.reader.readuntil(b"\r\n\r\n"), 20)
        assert answer.startswith(b"HTTP/1.1 200"), answer
        self.chunked = b"chunked" in answer.lower()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.writer.transport.abort()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def more(self) -> bool:
        try:
            if self.chunked:
                size = int(await self.reader.readuntil(b"\r\n"), 16)
                data = (await self.reader.readexactly(size + 2))[:-2]
            else:
                data = await self.reader.read(100_000)
        except (ConnectionError, asyncio.IncompleteReadError):
            return False
        self.source.feed(data)
        self.last_event_id = self.source.last_event_id or self.last_event_id
        return bool(data)

    @property
    def envelopes(self) -> list[Any]:
        self._decoded += [event.json for event in self.source.events[len(self._decoded) :]]
        return self._decoded

    @property
    def received(self) -> list[Any]:
        """The data of all messages, also of those that were recovered."""
        found = []
        for envelope in self.envelopes:
            if envelope["type"] == "message":
                found.append(envelope["data"])
            elif envelope["type"] == "subscribed":
                found += [message["data"] for message in envelope["data"].get("messages", [])]
        return found

    async def until(self, condition: Any) -> None:
        while not condition(self):
            assert await asyncio.wait_for(self.more(), 20), self.envelopes[-3:]

    async def rest(self) -> None:
        while await asyncio.wait_for(self.more(), 20):
            pass

    def resume(self) -> Client:
        return Client(self.port, self.query, self.last_event_id)

    async def send(self, *envelopes: Any) -> int:
        ident = self.envelopes[0]["data"]["id"]
        return await post(self.port, f"/realtime/send?connection={ident}", list(envelopes))


async def post(port: int, path: str, body: Any, *lines: str) -> int:
    """The status of the answer."""
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head("POST", path, f"Content-Length: {len(data)}", "Connection: close", *lines) + data)
    answer = await asyncio.wait_for(reader.read(), 20)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return parse(answer)[-1].status


def has(count: int) -> Any:
    return lambda client: len(client.received) >= count


class Site:
    """A Realtime on some server, which starts and ends it."""

    def __init__(self, kind: str = "street_fast", **options: Any) -> None:
        self.kind = kind
        self.realtime = Realtime(limits=LIMITS, history={"*": History(size=10_000)}, api_key=KEY, **options)
        self.port = 0

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Site]:
        async with getattr(self, f"_{self.kind.partition(' ')[0]}")():
            yield self
        realtime = self.realtime
        assert realtime._http_side.stream_count == 0
        assert realtime.session_count == 0
        assert realtime.server.connection_count == realtime.server.other_connections == 0
        assert realtime.hub.channel_names() == []

    @contextlib.asynccontextmanager
    async def _street_fast(self) -> AsyncIterator[None]:
        http = HttpServer(limits=LIMITS)
        self.realtime.attach(http)
        await http.listen(port=0)
        self.port = http.port
        yield
        await asyncio.wait_for(http.close(), 20)

    @contextlib.asynccontextmanager
    async def _aiohttp(self) -> AsyncIterator[None]:
        app = web.Application()
        self.realtime.attach(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=3)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        yield
        await asyncio.wait_for(runner.cleanup(), 20)

    @contextlib.asynccontextmanager
    async def _uvicorn(self) -> AsyncIterator[None]:
        config = uvicorn.Config(FastAPI(), port=0, log_config=None, http=self.kind.split()[1])
        self.realtime.attach(config)
        server = uvicorn.Server(config)
        running = asyncio.ensure_future(server.serve())
        await until(lambda: server.started or running.done())
        self.port = server.servers[0].sockets[0].getsockname()[1]
        yield
        server.should_exit = True
        await asyncio.wait_for(running, 20)

    def client(self, *channels: str) -> Client:
        return Client(self.port, "&".join(f"channel={name}" for name in channels))


@pytest.mark.parametrize("kind", FRONTS)
async def test_every_server_carries_all_of_it(kind: str) -> None:
    """WebSocket, event stream and API on one port; the end of the server is the end of all, and everybody is told."""
    site = Site(kind)
    async with contextlib.AsyncExitStack() as clients:
        async with site.serving():
            stream = await clients.enter_async_context(site.client("a", "b"))
            await stream.until(lambda client: len(client.envelopes) == 3)
            ws = await clients.enter_async_context(connect(f"ws://127.0.0.1:{site.port}/realtime", compression=None))
            await ws.recv()
            await ws.send('{"type":"subscribe","channel":"a","id":1}')
            assert json.loads(await ws.recv())["type"] == "reply"
            assert await stream.send({"type": "publish", "channel": "a", "data": 1}) == 204
            assert await post(site.port, "/realtime/publish", {"channel": "a", "data": 2}, f"X-API-Key: {KEY}") == 200
            assert await post(site.port, "/realtime/publish", {"channel": "a", "data": 3}) == 401
            await ws.send('{"type":"publish","channel":"a","data":4}')
            await stream.until(lambda client: client.received == [1, 2, 4])
            while json.loads(await asyncio.wait_for(ws.recv(), 20)).get("data") != 4:
                pass
        await stream.rest()
        assert stream.envelopes[-1]["type"] == "close"
        assert stream.envelopes[-1]["data"]["code"] == 1012
        await asyncio.wait_for(ws.wait_closed(), 20)
        assert ws.close_code == 1012


@pytest.mark.parametrize("kind", FRONTS)
async def test_who_does_not_read_is_cut_off_and_recovers_and_nobody_else_notices(kind: str) -> None:
    site = Site(kind)
    async with site.serving(), site.client("a") as slow, site.client("a") as bystander:
        for client in (slow, bystander):
            await client.until(lambda client: client.last_event_id)
        slow.writer.transport.pause_reading()
        realtime = site.realtime
        before = realtime.stats()["sse"]["slow_consumers"]
        sent = 0
        while realtime.stats()["sse"]["slow_consumers"] == before:
            for _ in range(10):
                realtime.publish("a", [sent, "x" * 50_000])
                sent += 1
            await bystander.until(has(sent))
            assert sent < 2_000
        assert [data[0] for data in bystander.received] == list(range(sent))
        await until(lambda: realtime._http_side.stream_count == 1)
        slow.writer.transport.resume_reading()
        await slow.rest()
        seen = [data[0] for data in slow.received]
        assert len(seen) < sent
        async with slow.resume() as resumed:
            await resumed.until(has(sent - len(seen)))
            assert resumed.envelopes[1]["data"]["recovered"] is True
            assert seen + [data[0] for data in resumed.received] == list(range(sent))


@pytest.mark.parametrize("kind", FRONTS)
@pytest.mark.parametrize("seed", [1, 2])
async def test_clients_that_vanish_at_any_moment_leave_nothing(kind: str, seed: int) -> None:
    rng = random.Random(seed)
    print("seed", seed)

    async def authorize(*args: Any) -> bool:
        await asyncio.sleep(rng.choice([0, 0, 0.002]))
        return rng.random() < 0.9

    before = alive()  # of other tests, whose loops may not have been collected
    site = Site(kind, authorize=authorize)
    async with site.serving():
        realtime = site.realtime
        request = head("GET", "/realtime/sse?channel=a&channel=b", "Last-Event-ID: a=x;b=" + "y" * 100)

        async def come_and_go() -> None:
            _, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(request[: rng.choice([rng.randrange(len(request)), len(request)])])
            await asyncio.sleep(rng.choice([0, 0, 0.001, 0.005, 0.01]))
            how = rng.choice(["abort", "close", "eof"])
            if how == "abort":
                writer.transport.abort()
            elif how == "eof":
                writer.write_eof()
                await asyncio.sleep(0.01)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        async with site.client("a") as warm:
            await warm.until(lambda client: client.envelopes)
        for _ in range(4):
            coming = [asyncio.ensure_future(come_and_go()) for _ in range(25)]
            realtime.publish("a", "x" * 1_000)
            await asyncio.wait(coming)
        await until(lambda: realtime.session_count == 0 and not realtime.hub.channel_names())
        await until(lambda: realtime._http_side.stream_count == realtime.server.other_connections == 0)
        await until(lambda: not realtime.exchange._tasks)
        await until(lambda: alive() - before == Counter())


def alive() -> Counter[str]:
    """What there is for each client, and should not be without one; also as garbage that nobody has collected."""
    gc.collect()
    kinds = (SsePeer, Session, HttpConnection, Opening)
    return Counter(type(thing).__name__ for thing in gc.get_objects() if isinstance(thing, kinds))


async def test_a_client_that_lies_about_everything() -> None:
    """Requests of all kinds at once: each has an answer, and the server goes on."""
    rng = random.Random(7)
    site = Site()
    async with site.serving(), site.client("a") as bystander:
        await bystander.until(lambda client: client.envelopes)
        words = [
            "channel",
            "since",
            "token",
            "connection",
            "a",
            "=",
            "&",
            ";",
            "%00",
            "%ff",
            "%",
            ":",
            "\u00e9",
            "1",
            "/",
        ]
        bodies = [b"", b"[", b'{"type":', b"\xff\xfe", b'{"type":"publish","channel":"a","data":1}', b"[[[[", b"null"]
        for _ in range(150):
            method, path = rng.choice([("GET", "sse"), ("POST", "send"), ("POST", "publish"), ("HEAD", "sse")])
            query = "".join(rng.choice(words) for _ in range(rng.randrange(8))).encode("ascii", "ignore").decode()
            body = rng.choice(bodies) if method == "POST" else b""
            lines = [f"Content-Length: {len(body)}"] if body else []
            lines += rng.sample(
                ["Last-Event-ID: \xe9;=:", "Origin: null", "X-API-Key: \xff", "Authorization: Bearer", "Accept: a/b"], 2
            )
            reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
            writer.write(head(method, f"/realtime/{path}?{query}", *lines, "Connection: close") + body)
            answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
            assert answer.split()[1] in {b"200", b"400", b"401", b"403", b"404"}, answer
            writer.transport.abort()
        site.realtime.publish("a", "still here")
        await bystander.until(lambda client: client.received == ["still here"])


async def test_many_streams_end_together_and_leave_no_timer() -> None:
    site = Site()
    before = len(LoopContext.of().wheel)
    async with contextlib.AsyncExitStack() as clients:
        async with site.serving():
            streams = [await clients.enter_async_context(site.client("a")) for _ in range(200)]
            await until(lambda: site.realtime.hub.connection_count("a") == 200)
            site.realtime.publish("a", 1)
            for stream in streams:
                await stream.until(lambda client: client.received == [1])
            assert site.realtime.stats()["sse"]["streams"] >= 200
        for stream in streams:
            await stream.rest()
            assert stream.envelopes[-1]["data"]["code"] == 1012
    await until(lambda: len(LoopContext.of().wheel) == before)

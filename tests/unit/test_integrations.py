"""add_routes() on every kind of HTTP server, with real sockets: the same requests have the same answers, an event
stream is the same stream, and the end comes as quickly."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from aiohttp import web
from fastapi import FastAPI
from fastapi.responses import PlainTextResponse, StreamingResponse

from street_fast.errors import ConfigurationError
from street_fast.http_server import HttpServer
from street_fast.integrations import add_routes
from street_fast.limits import Limits
from street_fast.request import Request, Response
from street_fast.sse import SseStream
from street_fast.stream_context import StreamContext
from tests.http_harness import head, parse, until
from tests.sse_harness import EventSource

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

LIMITS = Limits(
    request_body_bytes=1_000, abort_timeout_s=0.3, shutdown_timeout_s=20, write_stall_timeout_s=2, handshake_timeout_s=5
)
FRONTS = ["street_fast", "uvicorn h11", "uvicorn httptools", "aiohttp"]


class Site:
    """Routes on some server: /echo, /stream (whose streams are in `streams`), and, but for our own, the application's
    page. `record` is what the hooks noted."""

    def __init__(self, kind: str, limits: Limits = LIMITS) -> None:
        self.kind = kind
        self.limits = limits
        self.streams: list[SseStream] = []
        self.record: list[str] = []
        self.options: dict[str, Any] = {}
        self.port = 0
        self.asked = asyncio.Event()
        self.release = asyncio.Event()

    def stream(self, request: Request) -> SseStream:
        stream = SseStream(headers=[("X-More", request.query.get("more", ""))], limits=self.limits)
        stream.send("early")
        self.streams.append(stream)
        return stream

    async def later(self, request: Request) -> SseStream:
        self.asked.set()
        await self.release.wait()
        return self.stream(request)

    async def echo(self, request: Request) -> Response:
        await asyncio.sleep(0)
        text = f"{request.method} {request.target} {request.headers['host']} {request.body.decode()}"
        assert request.client is not None
        assert request.client[0] == "127.0.0.1"
        return Response.text(text, 201, [("X-One", "1")] * (2 if "twice" in request.query else 1))

    def add_routes(self, http: Any) -> None:
        routes = [("GET", "/stream", self.stream), ("GET", "/later", self.later)]
        routes += [("POST", "/echo", self.echo), ("GET", "/echo", self.echo)]
        front = add_routes(http, routes, self.limits)

        async def start() -> None:
            self.record.append("startup")

        async def close() -> None:
            self.record.append("shutdown")

        front.on_startup(start)
        front.on_shutdown(close)

    @contextlib.asynccontextmanager
    async def serving(self) -> AsyncIterator[Site]:
        async with getattr(self, f"_{self.kind.partition(' ')[0]}")():
            assert self.record == ["startup"]
            yield self
        assert self.record == ["startup", "shutdown"]

    @contextlib.asynccontextmanager
    async def _street_fast(self) -> AsyncIterator[None]:
        server = HttpServer(limits=self.limits)
        self.add_routes(server)
        await server.listen(port=0)
        self.port = server.port
        yield
        await asyncio.wait_for(server.close(), 20)

    @contextlib.asynccontextmanager
    async def _aiohttp(self) -> AsyncIterator[None]:
        async def page(_request: web.Request) -> web.Response:
            return web.Response(text="a page")

        app = web.Application(**self.options)
        app.router.add_get("/page", page)
        self.add_routes(app)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=3)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        yield
        await asyncio.wait_for(runner.cleanup(), 20)

    @contextlib.asynccontextmanager
    async def _uvicorn(self) -> AsyncIterator[None]:
        app = FastAPI()

        @app.get("/page")
        async def page() -> PlainTextResponse:
            return PlainTextResponse("a page")

        @app.get("/own")
        async def own() -> StreamingResponse:
            stream = SseStream(limits=self.limits)
            stream.send("early")
            self.streams.append(stream)
            return StreamingResponse(stream, headers=SseStream.HEADERS)

        options = {"log_config": None, "port": 0, "http": self.kind.split()[1], **self.options}
        config = uvicorn.Config(options.pop("app", app), **options)
        self.add_routes(config)
        server = uvicorn.Server(config)
        running = asyncio.ensure_future(server.serve())
        await until(lambda: server.started or running.done())
        self.port = server.servers[0].sockets[0].getsockname()[1]
        yield
        server.should_exit = True
        await asyncio.wait_for(running, 20)
        assert server.server_state.connections == set()

    @contextlib.asynccontextmanager
    async def client(self, request: bytes) -> AsyncIterator[Client]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=1_000)
        writer.write(request)
        try:
            yield Client(reader, writer)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def ask(self, request: bytes, *methods: str) -> Any:
        """The answers until the server closes."""
        async with self.client(request) as client:
            return parse(await asyncio.wait_for(client.reader.read(), 20), methods)


class Client:
    """Reads a response as it comes, chunked or not."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.source = EventSource()
        self.headers: dict[str, str] = {}

    async def head(self) -> Client:
        lines = (await self.reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        assert lines[0].split()[1] == "200"
        for line in lines[1:-2]:
            name, _, value = line.partition(": ")
            self.headers[name.lower()] = value
        return self

    async def more(self) -> bool:
        """Reads something; False at the end."""
        if self.headers.get("transfer-encoding") == "chunked":
            size = int(await self.reader.readuntil(b"\r\n") or b"0", 16)
            data = (await self.reader.readexactly(size + 2))[:-2]
        else:
            data = await self.reader.read(10_000)
        self.source.feed(data)
        return bool(data)

    async def events(self, count: int) -> list[str]:
        """All events, once there are so many."""
        while len(self.source.events) < count:
            assert await asyncio.wait_for(self.more(), 20)
        return [event.data for event in self.source.events]

    async def rest(self) -> list[str]:
        while await asyncio.wait_for(self.more(), 20):
            pass
        return await self.events(0)


@pytest.fixture(params=FRONTS)
def site(request: pytest.FixtureRequest) -> Site:
    return Site(request.param)


CLOSE = "Connection: close"


@pytest.mark.both_loops
async def test_requests(site: Site) -> None:
    async with site.serving():
        post = head("POST", "/echo?a=1", "Content-Length: 4") + b"body"
        answers = await site.ask(post + head("GET", "/echo", CLOSE))
        assert [(answer.status, answer.body) for answer in answers[:1]] == [(201, b"POST /echo?a=1 h body")]
        assert answers[-1].body == b"GET /echo h "
        (answer,) = await site.ask(head("HEAD", "/echo", CLOSE), "HEAD")
        assert answer.status == 201
        if site.kind != "street_fast":
            (answer,) = await site.ask(head("GET", "/page", CLOSE))
            assert answer.body == b"a page"


async def test_headers_may_come_twice(site: Site) -> None:
    async with site.serving(), site.client(head("GET", "/echo?twice=1", CLOSE)) as client:
        lines = (await client.reader.read()).lower().split(b"\r\n")
        assert lines.count(b"x-one: 1") == 2


@pytest.mark.parametrize("framing", ["Content-Length: 2000", "Transfer-Encoding: chunked"])
async def test_a_body_that_is_too_big(site: Site, framing: str) -> None:
    async with site.serving():
        body = b"7d0\r\n" + b"x" * 2_000 + b"\r\n0\r\n\r\n" if "chunked" in framing else b"x" * 2_000
        async with site.client(head("POST", "/echo", framing) + body) as client:
            answer = parse(await asyncio.wait_for(client.reader.read(), 20))[0]
        assert answer.status == 413
        assert answer.closes


async def test_methods_that_are_none(site: Site) -> None:
    async with site.serving():
        (answer,) = await site.ask(head("DELETE", "/echo", CLOSE))
        assert answer.status == 405
        assert {"GET", "POST"} <= set(answer.headers["allow"].replace(",", " ").split())
        (answer,) = await site.ask(head("POST", "/stream", "Content-Length: 0", CLOSE))
        assert answer.status == 405


@pytest.mark.both_loops
async def test_a_stream(site: Site) -> None:
    async with site.serving(), site.client(head("GET", "/stream?more=1")) as client:
        await client.head()
        assert client.headers["content-type"] == "text/event-stream"
        assert client.headers["cache-control"] == "no-store"
        assert client.headers["connection"] == "close"
        assert client.headers["x-more"] == "1"
        assert await client.events(1) == ["early"]
        (stream,) = site.streams
        stream.send({"a": 1})
        assert await client.events(2) == ["early", '{"a":1}']
        stream.send("last")
        stream.close()
        assert await client.rest() == ["early", '{"a":1}', "last"]
        await until(lambda: stream.ended)


async def test_a_stream_of_megabytes(site: Site) -> None:
    async with site.serving(), site.client(head("GET", "/stream")) as client:
        await client.head()
        await client.events(1)
        (stream,) = site.streams

        async def feed() -> None:
            for n in range(2_000):
                stream.send(f"{n} {'x' * 2_000}")
                await stream.drain()
            stream.close()

        _, data = await asyncio.gather(feed(), client.rest())
        assert [int(text.split()[0]) for text in data[1:]] == list(range(2_000))


async def test_head_of_a_stream(site: Site) -> None:
    async with site.serving():
        async with site.client(head("HEAD", "/stream", CLOSE)) as client:
            data = await asyncio.wait_for(client.reader.read(), 20)
        assert b"text/event-stream" in data
        assert data.endswith(b"\r\n\r\n")
        assert site.streams[0].ended


@pytest.mark.parametrize("how", ["abort", "close", "half-close"])
async def test_a_client_that_leaves(site: Site, how: str) -> None:
    async with site.serving(), site.client(head("GET", "/stream")) as client:
        await client.head()
        await client.events(1)
        (stream,) = site.streams
        if how == "abort":
            client.writer.transport.abort()
        elif how == "close":
            client.writer.close()
        else:
            client.writer.write_eof()
        await until(lambda: stream.ended)
        if how == "half-close":
            assert await asyncio.wait_for(client.reader.read(), 20) in (b"", b"0\r\n\r\n")


async def test_a_client_that_does_not_read_is_cut_off(site: Site) -> None:
    """The server closes the stream, and, as the client does not take that, the connection."""
    async with site.serving(), site.client(head("GET", "/stream")) as client:
        await client.head()
        await client.events(1)
        (stream,) = site.streams
        before = StreamContext.of().stats()["slow_consumers"]
        client.writer.transport.pause_reading()
        for _ in range(2_000):
            if not stream.send("x" * 50_000):
                break
            await asyncio.sleep(0)
        assert stream.closed
        assert StreamContext.of().stats()["slow_consumers"] == before + 1
        await until(lambda: stream.ended)
        # The connection is gone too, although the client still reads nothing: a write finds nobody.
        await until(lambda: client.writer.write(b"x") or client.writer.transport.is_closing())


@pytest.mark.parametrize("by", ["server", "client"])
async def test_a_request_behind_a_stream_has_no_answer(site: Site, by: str) -> None:
    async with site.serving(), site.client(head("GET", "/stream") + head("GET", "/echo")) as client:
        await client.head()
        await client.events(1)
        (stream,) = site.streams
        if by == "server":
            stream.close()
            data = await asyncio.wait_for(client.reader.read(), 20)
            assert b"HTTP/1.1" not in data
        else:
            client.writer.close()
        await until(lambda: stream.ended)


async def test_a_request_behind_one_that_waits_does_not_hide_the_end(site: Site) -> None:
    async with site.serving(), site.client(head("GET", "/later")) as client:
        await site.asked.wait()
        client.writer.write(head("GET", "/echo"))
        await asyncio.sleep(0.01)  # it is read, and no more
        site.release.set()
        await client.head()
        await client.events(1)
        client.writer.close()
        await until(lambda: site.streams[0].ended)


async def test_a_shutdown_does_not_wait_for_streams(site: Site) -> None:
    async with contextlib.AsyncExitStack() as clients:
        async with site.serving():  # which waits for the end, for at most five seconds
            deaf = await clients.enter_async_context(site.client(head("GET", "/stream")))
            await (await deaf.head()).events(1)
            deaf.writer.transport.pause_reading()
            await until(lambda: not site.streams[0].send("x" * 100_000) or site.streams[0].bytes_buffered > 200_000)
            client = await clients.enter_async_context(site.client(head("GET", "/stream")))
            await (await client.head()).events(1)
            site.streams[1].send("last")
            rest = asyncio.ensure_future(client.rest())
        assert await rest == ["early", "last"]
        assert all(stream.ended for stream in site.streams)


@pytest.mark.parametrize("kind", FRONTS[1:3])
async def test_streams_end_when_uvicorn_begins_to_shut_down(kind: str) -> None:
    """And not only when it has waited for requests."""
    site = Site(kind)
    release = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await release.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    site.options = {"app": slow}
    async with contextlib.AsyncExitStack() as clients:
        async with site.serving():
            await clients.enter_async_context(site.client(head("GET", "/slow")))
            client = await clients.enter_async_context(site.client(head("GET", "/stream")))
            await (await client.head()).events(1)
            ended = asyncio.ensure_future(client.rest())
            ended.add_done_callback(lambda _: release.set())
        await ended


@pytest.mark.parametrize("lifespan", ["on", "auto", "off"])
@pytest.mark.parametrize("loaded", [False, True])
async def test_every_lifespan_of_uvicorn(lifespan: str, loaded: bool) -> None:
    site = Site("uvicorn httptools")
    site.options = {"lifespan": lifespan}
    if loaded:
        add = site.add_routes

        def add_when_loaded(config: uvicorn.Config) -> None:
            config.load()
            add(config)

        site.add_routes = add_when_loaded  # type: ignore[method-assign]
    async with site.serving():
        (answer,) = await site.ask(head("GET", "/echo", CLOSE))
        assert answer.status == 201


async def test_an_asgi_application_without_lifespan() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 202, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body"})

    site = Site("uvicorn httptools")
    site.options = {"app": app}
    async with site.serving():
        assert [answer.status for answer in await site.ask(head("GET", "/echo", CLOSE))] == [201]
        assert [answer.status for answer in await site.ask(head("GET", "/else", CLOSE))] == [202]


async def test_a_root_path_is_no_part_of_the_route() -> None:
    site = Site("uvicorn httptools")
    site.options = {"root_path": "/api"}
    async with site.serving():
        (answer,) = await site.ask(head("GET", "/echo?x=1", CLOSE))
        assert answer.body == b"GET /echo?x=1 h "


@pytest.mark.parametrize("kind", FRONTS[1:3])
async def test_a_streaming_response_of_the_application(kind: str) -> None:
    """What FastAPI and Starlette make of an SseStream."""
    site = Site(kind)
    async with site.serving(), site.client(head("GET", "/own")) as client:
        await client.head()
        assert client.headers["content-type"].startswith("text/event-stream")
        await client.events(1)
        site.streams[0].send("more")
        assert await client.events(2) == ["early", "more"]
        client.writer.close()
        await until(lambda: site.streams[0].ended)


def test_paths_that_are_taken() -> None:
    for http in (HttpServer(), uvicorn.Config(FastAPI(), log_config=None), web.Application()):
        site = Site("")
        site.add_routes(http)
        with pytest.raises(ConfigurationError, match=r"path='/stream'.* already"):
            site.add_routes(http)


def test_what_is_no_http_server() -> None:
    with pytest.raises(ConfigurationError, match=r"FastAPI.*must be a street_fast.HttpServer"):
        add_routes(FastAPI(), [], LIMITS)  # type: ignore[arg-type]


async def test_an_aiohttp_application_that_has_started() -> None:
    app = web.Application()
    app.freeze()
    with pytest.raises(ConfigurationError, match="has started already"):
        add_routes(app, [("GET", "/stream", lambda _: "")], LIMITS)

"""Routes in front of an ASGI application, and its lifespan, with a server that the test plays."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from street_fast.errors import ConfigurationError
from street_fast.integrations.asgi import AsgiRoutes
from street_fast.limits import Limits
from street_fast.request import Request, Response
from street_fast.sse import SseStream
from tests.http_harness import settle
from tests.sse_harness import EventSource

if TYPE_CHECKING:
    from street_fast.http_connection import Route

LIMITS = Limits(request_body_bytes=100, handshake_timeout_s=0.05, abort_timeout_s=0.05)


class Front(AsgiRoutes):
    def __init__(self, routes: list[Route], limits: Limits = LIMITS, lifespan: str = "auto") -> None:
        super().__init__(routes, limits, lifespan)


class Exchange:
    """One request through `app`: what the server gives, and what it gets."""

    def __init__(self, app: Any, method: str = "GET", path: str = "/route", **scope: Any) -> None:
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.sent: list[dict[str, Any]] = []
        self.stalled = False
        self.broken = asyncio.Event()
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(b"host", b"h")],
            "http_version": "1.1",
            "client": ("192.0.2.7", 4711),
            **scope,
        }
        self.running = asyncio.ensure_future(app(self.scope, self.inbox.get, self.send))

    async def send(self, message: dict[str, Any]) -> None:
        if self.stalled:
            await self.broken.wait()
        self.sent.append(message)

    def body(self, *parts: bytes, more: bool = False) -> Exchange:
        for i, part in enumerate(parts):
            self.inbox.put_nowait({"type": "http.request", "body": part, "more_body": more or i + 1 < len(parts)})
        return self

    def disconnect(self) -> None:
        self.inbox.put_nowait({"type": "http.disconnect"})

    async def answer(self) -> Response:
        await asyncio.wait_for(self.running, 20)
        start, *bodies = self.sent
        assert start["type"] == "http.response.start"
        assert [message["type"] for message in bodies] == ["http.response.body"] * len(bodies)
        headers = [(name.decode(), value.decode()) for name, value in start["headers"]]
        return Response(start["status"], b"".join(message.get("body", b"") for message in bodies), headers)

    @property
    def source(self) -> EventSource:
        return EventSource().feed(b"".join(message.get("body", b"") for message in self.sent))


async def application(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"the application"})


def echo(request: Request) -> dict[str, Any]:
    return {
        "target": request.target,
        "headers": request.headers.pairs(),
        "body": request.body.decode(),
        "client": request.client,
        "version": request.http_version,
    }


# --- requests ---


async def test_only_these_paths_are_answered():
    app = Front([("GET", "/route", echo)]).wrap(application)
    assert b"target" in (await Exchange(app).body(b"").answer()).body
    for path in ("/", "/route/", "/route2"):
        assert (await Exchange(app, path=path).body(b"").answer()).body == b"the application"
    websocket = Exchange(app, type="websocket")
    assert (await websocket.answer()).body == b"the application"


async def test_a_request_comes_as_it_was():
    app = Front([("POST", "/ro ute", echo)]).wrap(application)
    exchange = Exchange(
        app,
        "POST",
        "/root/ro ute",
        raw_path=b"/root/ro%20ute",
        root_path="/root",
        query_string=b"a=1&a=%20",
        headers=[(b"host", b"h"), (b"x-a", b"1"), (b"x-a", b"\xff")],
        http_version="1.0",
    )
    answer = await exchange.body(b"ab", b"", b"c").answer()
    assert answer.status == 200
    assert (
        answer.body
        == (
            '{"target":"/ro%20ute?a=1&a=%20","headers":[["host","h"],["x-a","1"],["x-a","ÿ"]],"body":"abc",'
            '"client":["192.0.2.7",4711],"version":"1.0"}'
        ).encode()
    )
    assert ("content-length", str(len(answer.body))) in answer.headers


async def test_a_server_that_does_not_tell_everything():
    app = Front([("GET", "/ro ute", echo)]).wrap(application)
    answer = await Exchange(app, "GET", "/ro ute", raw_path=None, client=None).body(b"").answer()
    assert b'"target":"/ro%20ute"' in answer.body
    assert b'"client":null' in answer.body


@pytest.mark.parametrize(
    ("parts", "status"), [([b"x" * 100], 200), ([b"x" * 101], 413), ([b"x" * 60, b"x" * 60, b"x"], 413)]
)
async def test_a_body_has_its_limit(parts, status):
    app = Front([("POST", "/route", echo)]).wrap(application)
    answer = await Exchange(app, "POST").body(*parts).answer()
    assert answer.status == status
    assert (("connection", "close") in answer.headers) == (status != 200)


async def test_a_body_has_its_time():
    app = Front([("POST", "/route", echo)]).wrap(application)
    answer = await Exchange(app, "POST").body(b"x", more=True).answer()
    assert answer.status == 408
    assert ("connection", "close") in answer.headers


async def test_a_client_that_leaves_within_its_body():
    app = Front([("POST", "/route", echo)]).wrap(application)
    exchange = Exchange(app, "POST").body(b"x", more=True)
    exchange.disconnect()
    await asyncio.wait_for(exchange.running, 20)
    assert exchange.sent == []


async def test_other_methods():
    app = Front([("GET", "/route", echo), ("POST", "/route", echo)]).wrap(application)
    answer = await Exchange(app, "DELETE").answer()
    assert answer.status == 405
    assert ("allow", "GET, HEAD, POST") in answer.headers


async def test_a_header_that_breaks_a_message():
    app = Front([("GET", "/route", echo)]).wrap(application)
    answer = await Exchange(app, headers=[(b"x", b"a\nb")]).body(b"").answer()
    assert answer.status == 400


@pytest.mark.parametrize("result", [object(), Response(headers=[("X", "a\r\nb")]), Response(99)])
async def test_an_answer_that_cannot_be_sent(result, caplog):
    app = Front([("GET", "/route", lambda _: result)]).wrap(application)
    assert (await Exchange(app).body(b"").answer()).status == 500
    assert "the handler of <Request GET '/route'> failed" in caplog.text


async def test_coroutines_and_their_failures(caplog):
    async def later(request: Request) -> Response:
        await asyncio.sleep(0)
        if request.query:
            raise RuntimeError("of the application")
        return Response(204)

    app = Front([("GET", "/route", later)]).wrap(application)
    answer = await Exchange(app).body(b"").answer()
    assert (answer.status, answer.body) == (204, b"")
    assert not any(name == "content-length" for name, _ in answer.headers)
    assert (await Exchange(app, query_string=b"x=1").body(b"").answer()).status == 500
    assert "of the application" in caplog.text


def test_a_path_that_is_none():
    with pytest.raises(ConfigurationError, match="path="):
        Front([("GET", "route", echo)])


# --- streams ---


@pytest.fixture
def streaming():
    """A front with a stream on /route, and the streams that were made."""

    def stream(_request: Request) -> SseStream:
        front.made.append(SseStream(headers=[("X-More", "1")], limits=limits))
        front.made[-1].send("early")
        return front.made[-1]

    limits = Limits(write_hard_bytes=100_000, abort_timeout_s=0.05)
    front = Front([("GET", "/route", stream)])
    front.made = []
    return front


async def test_a_stream(streaming):
    exchange = Exchange(streaming.wrap(application)).body(b"")
    await settle()
    (stream,) = streaming.made
    stream.send("one")
    await settle()
    assert exchange.sent[-1] == {"type": "http.response.body", "body": b"data: one\n\n", "more_body": True}
    stream.send("two")
    stream.close()
    answer = await exchange.answer()
    assert {
        ("content-type", "text/event-stream"),
        ("cache-control", "no-store"),
        ("connection", "close"),
        ("x-more", "1"),
    } <= set(answer.headers)
    assert exchange.sent[-1] == {"type": "http.response.body"}
    assert [event.data for event in exchange.source.events] == ["early", "one", "two"]
    assert stream.ended
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_head_of_a_stream(streaming):
    answer = await Exchange(streaming.wrap(application), "HEAD").body(b"").answer()
    assert ("content-type", "text/event-stream") in answer.headers
    assert answer.body == b""
    assert streaming.made[0].ended


async def test_a_client_that_leaves(streaming):
    exchange = Exchange(streaming.wrap(application)).body(b"")
    await settle()
    exchange.disconnect()
    await asyncio.wait_for(exchange.running, 20)
    assert streaming.made[0].ended


async def test_a_client_that_leaves_while_a_chunk_is_sent(streaming):
    exchange = Exchange(streaming.wrap(application)).body(b"")
    await settle()
    exchange.stalled = True
    streaming.made[0].send("x")
    await settle()
    exchange.disconnect()
    await settle()
    exchange.broken.set()  # as servers do then
    await asyncio.wait_for(exchange.running, 20)
    assert streaming.made[0].ended


async def test_the_connection_of_a_client_that_takes_nothing_is_cut(streaming):
    exchange = Exchange(streaming.wrap(application)).body(b"")
    await settle()
    exchange.stalled = True
    (stream,) = streaming.made
    stream.send("x")
    await settle()
    while stream.send("x" * 10_000):
        pass
    await asyncio.wait([exchange.running], timeout=5)
    assert isinstance(exchange.running.exception(), ConnectionAbortedError)
    assert stream.ended


async def test_the_connection_of_a_client_that_does_not_take_the_end_is_cut(streaming):
    exchange = Exchange(streaming.wrap(application)).body(b"")
    await settle()
    exchange.stalled = True
    streaming.made[0].close()
    await asyncio.wait([exchange.running], timeout=5)
    assert isinstance(exchange.running.exception(), ConnectionAbortedError)


@pytest.mark.parametrize("where", ["waiting", "sending"])
async def test_a_server_that_cancels_a_stream(streaming, where):
    exchange = Exchange(streaming.wrap(application)).body(b"")
    await settle()
    if where == "sending":
        exchange.stalled = True
        streaming.made[0].send("x")
        await settle()
    exchange.running.cancel()
    await asyncio.wait([exchange.running])
    assert streaming.made[0].ended
    await settle()
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_stream_that_another_response_has(streaming):
    app = streaming.wrap(application)
    first = Exchange(app).body(b"")
    await settle()
    streaming.add_route("GET", "/again", lambda _: streaming.made[0])
    assert (await Exchange(app, path="/again").body(b"").answer()).status == 500
    assert not streaming.made[0].ended
    first.disconnect()
    await first.running


async def test_close_ends_the_streams(streaming):
    exchange = Exchange(streaming.wrap(application)).body(b"")
    await settle()
    await asyncio.wait_for(streaming.close(), 20)
    await exchange.answer()
    assert [event.data for event in exchange.source.events] == ["early"]


# --- lifespan ---


class Lifespan:
    """uvicorn's side of a lifespan, and hooks of the front, in one record."""

    def __init__(self, app: Any, lifespan: str = "auto") -> None:
        self.record: list[str] = []
        self.inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.front = Front([], lifespan=lifespan)
        self.front.on_startup(self._start)
        self.front.on_shutdown(self._close)
        wrapped = self.front.wrap(lambda *args: app(self.record, *args))
        self.running = asyncio.ensure_future(wrapped({"type": "lifespan"}, self.inbox.get, self._send))

    async def _start(self) -> None:
        self.record.append("hook: startup")

    async def _close(self) -> None:
        self.record.append("hook: shutdown")

    async def _send(self, message: dict[str, Any]) -> None:
        self.record.append(f"server: {message['type'].removeprefix('lifespan.')}")

    async def tell(self, what: str) -> None:
        self.inbox.put_nowait({"type": f"lifespan.{what}"})
        await settle()


async def good(record: list[str], scope: Any, receive: Any, send: Any) -> None:
    for what in ("startup", "shutdown"):
        assert (await receive())["type"] == f"lifespan.{what}"
        record.append(f"app: {what}")
        await send({"type": f"lifespan.{what}.complete"})


async def without(record: list[str], scope: Any, receive: Any, send: Any) -> None:
    raise RuntimeError("only http")


async def failing(record: list[str], scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.failed", "message": "no"})
    raise RuntimeError("as Starlette does")


async def ending_early(record: list[str], scope: Any, receive: Any, send: Any) -> None:
    await receive()
    await send({"type": "lifespan.startup.complete"})


async def crashing(record: list[str], scope: Any, receive: Any, send: Any) -> None:
    await ending_early(record, scope, receive, send)
    raise RuntimeError("in its life")


async def crashing_late(record: list[str], scope: Any, receive: Any, send: Any) -> None:
    await ending_early(record, scope, receive, send)
    await receive()
    raise RuntimeError("at its end")


BOTH = ["hook: startup", "server: startup.complete", "hook: shutdown", "server: shutdown.complete"]


@pytest.mark.parametrize(
    ("app", "lifespan", "record"),
    [
        (
            good,
            "auto",
            ["hook: startup", "app: startup", "server: startup.complete", "app: shutdown", *BOTH[2:]],
        ),
        (good, "off", BOTH),
        (without, "auto", BOTH),
        (without, "off", BOTH),
        (ending_early, "on", BOTH),
        (failing, "on", ["hook: startup", "hook: shutdown", "server: startup.failed"]),
        (without, "on", ["hook: startup", "hook: shutdown"]),
        (crashing, "auto", BOTH[:3]),
        (crashing_late, "auto", BOTH[:3]),
    ],
)
async def test_hooks_run_once_around_the_application_s_own(app, lifespan, record):
    server = Lifespan(app, lifespan)
    await server.tell("startup")
    if not server.running.done():
        assert "hook: shutdown" not in server.record
        await server.tell("shutdown")
    await asyncio.wait([server.running])
    assert server.record == record
    fails = app in {failing, crashing, crashing_late} or (app, lifespan) == (without, "on")
    assert (server.running.exception() is not None) == fails


async def test_a_startup_hook_that_fails():
    server = Lifespan(good)

    async def broken() -> None:
        raise ConnectionError("no broker")

    server.front.on_startup(broken)
    await server.tell("startup")
    assert server.record == ["hook: startup", "server: startup.failed"]
    assert server.running.done()

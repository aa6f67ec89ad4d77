"""One HTTP connection on a wire and a clock that the test moves: order, deadlines, upgrades, and nothing left."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import logging
from typing import TYPE_CHECKING

import pytest

from street_fast.errors import ConnectionClosed
from street_fast.http_connection import HttpConnection
from street_fast.limits import Limits
from street_fast.request import Request, Response
from street_fast.sse import SseStream
from tests.connection_harness import Panic
from tests.http_harness import Bench, Connected, handshake, head, parse, settle, text

if TYPE_CHECKING:
    from street_fast.handshake import Upgrade

LIMITS = Limits(
    handshake_timeout_s=10.0,
    keep_alive_timeout_s=15.0,
    abort_timeout_s=2.0,
    write_stall_timeout_s=4.0,
    request_head_bytes=1_000,
    request_line_bytes=1_000,
    request_body_bytes=100_000,
)


class Upgrades:
    """A WebSocket server that keeps what it is handed."""

    def __init__(self) -> None:
        self.all: list[Upgrade] = []
        self.abandoned = 0

    def __call__(self, upgrade: Upgrade) -> None:
        def on_abandoned() -> None:
            self.abandoned += 1

        upgrade.on_abandoned = on_abandoned
        self.all.append(upgrade)


@pytest.fixture
async def bench():
    bench = Bench(LIMITS)
    bench.upgrades = Upgrades()
    bench.server.upgrade("/ws", bench.upgrades)
    bench.server.get("/", text("hello"))
    yield bench
    await settle()
    bench.assert_clean()


async def leave(client: Connected) -> None:
    client.vanish()
    await settle()


# --- requests and answers ---


async def test_a_request_is_answered_and_the_connection_stays(bench):
    client = bench.connect()
    client.send(head())
    assert client.answer == (200, {"content-type": "text/plain; charset=utf-8", "content-length": "5"}, b"hello")
    client.send(head(), head())
    assert [answer.body for answer in client.answers] == [b"hello"] * 3
    assert not client.wire.closing
    await leave(client)


async def test_connection_close_is_done(bench):
    client = bench.connect()
    client.send(head("GET", "/", "Connection: close"))
    assert client.answer.closes
    assert client.wire.closing
    assert not client.wire.aborted


async def test_pipelined_requests_are_answered_in_order_also_by_coroutines(bench):
    gates = {name: asyncio.Event() for name in "abc"}
    begun = []

    async def wait(request: Request) -> str:
        begun.append(request.path[1:])
        await gates[request.path[1:]].wait()
        return request.path

    for name in gates:
        bench.server.get(f"/{name}", wait)
    client = bench.connect()
    client.send(head("GET", "/a") + head("GET", "/b") + head() + head("GET", "/c"))
    await settle()
    assert begun == ["a"]
    gates["c"].set()
    gates["b"].set()
    await settle()
    assert client.answers == []
    gates["a"].set()
    await settle()
    assert [answer.body for answer in client.answers] == [b"/a", b"/b", b"hello", b"/c"]
    await leave(client)


async def test_what_comes_while_a_handler_runs_is_bounded_and_then_not_read(bench):
    gate = asyncio.Event()

    async def wait(_request: Request) -> str:
        await gate.wait()
        return "late"

    bench.server.get("/slow", wait)
    client = bench.connect()
    client.send(head("GET", "/slow"))
    sent = 0
    while client.wire.reading:
        client.send(head())
        sent += 1
    assert len(head()) * sent <= LIMITS.request_head_bytes + len(head())
    gate.set()
    await settle()
    assert client.wire.reading
    assert [answer.body for answer in client.answers] == [b"late"] + [b"hello"] * sent
    await leave(client)


async def test_a_client_that_does_not_take_its_answers_gets_no_more(bench):
    served = 0

    def large(_request: Request) -> bytes:
        nonlocal served
        served += 1
        return bytes(50_000)

    bench.server.get("/large", large)
    client = bench.connect()
    client.wire.stalled = True
    for _ in range(100):
        if client.wire.reading:
            client.send(head("GET", "/large"))
    assert served == 2
    assert not client.wire.reading
    client.wire.stalled = False
    client.wire.take(200_000)
    await settle()
    assert client.wire.reading
    assert served == len(client.answers) > 10
    await leave(client)


async def test_nor_if_it_has_asked_for_all_at_once(bench):
    bench.server.get("/large", lambda _request: bytes(50_000))
    client = bench.connect()
    client.wire.stalled = True
    client.send(head("GET", "/large") * 20)
    assert len(client.wire.unsent) < 150_000
    client.wire.stalled = False
    client.wire.take(200_000)
    await settle()
    assert len(client.answers) == 20
    await leave(client)


async def test_many_pipelined_requests_let_others_have_their_turn(bench):
    other = bench.connect()
    seen = []
    bench.server.get("/n", lambda _request: seen.append(1) or "x")
    client = bench.connect()
    client.send(head("GET", "/n") * 1_000)
    assert 0 < len(seen) < 100
    client.send(head("GET", "/n"))
    assert not client.wire.reading
    other.send(head())
    assert other.answer.status == 200
    for _ in range(100):
        await settle()
    assert len(seen) == 1_001
    assert client.wire.reading
    await leave(client)
    await leave(other)


async def test_a_connection_that_vanishes_between_two_turns(bench):
    client = bench.connect()
    client.send(head() * 100)
    client.vanish()
    await settle()
    assert len(client.answers) < 100


async def test_head_is_answered_without_a_body(bench):
    client = bench.connect()
    client.send(head("HEAD") + head())
    first, second = parse(client.wire.taken, ["HEAD", "GET"])
    assert (first.headers["content-length"], first.body) == ("5", b"")
    assert second.body == b"hello"
    await leave(client)


async def test_100_continue(bench):
    bench.server.post("/", lambda request: request.body)
    client = bench.connect()
    client.send(head("POST", "/", "Content-Length: 4", "Expect: 100-continue"))
    assert client.wire.taken == b"HTTP/1.1 100 Continue\r\n\r\n"
    client.send(b"ab")
    client.send(b"cd")
    assert [answer.status for answer in client.answers] == [100, 200]
    assert client.answers[1].body == b"abcd"
    await leave(client)


async def test_a_body_in_pieces(bench):
    bench.server.post("/", lambda request: {"length": len(request.body)})
    client = bench.connect()
    client.send(head("POST", "/", "Content-Length: 90000"), *[b"x" * 1_000] * 90)
    client.send(head("POST", "/", "Transfer-Encoding: chunked"), b"3\r\nabc\r\n0\r\n\r\n" + head("GET", "/smuggled"))
    assert [answer.body for answer in client.answers] == [b'{"length":90000}', b'{"length":3}']
    assert client.answers[1].closes
    await leave(client)


@pytest.mark.parametrize(
    ("result", "kind", "body"),
    [
        ("é", "text/plain; charset=utf-8", "é".encode()),
        (b"\0", "application/octet-stream", b"\0"),
        (bytearray(b"a"), "application/octet-stream", b"a"),
        ({"a": 1}, "application/json", b'{"a":1}'),
        ([1], "application/json", b"[1]"),
        (Response.html("<p>"), "text/html; charset=utf-8", b"<p>"),
    ],
)
@pytest.mark.parametrize("later", [False, True])
async def test_what_a_handler_returns(bench, result, kind, body, later):
    async def handle_later(_request: Request):
        return result

    bench.server.get("/x", handle_later if later else lambda _request: result)
    client = bench.connect()
    client.send(head("GET", "/x"))
    await settle()
    assert (client.answer.headers["content-type"], client.answer.body) == (kind, body)
    await leave(client)


async def test_any_awaitable_will_do(bench):
    future = asyncio.get_running_loop().create_future()
    bench.server.get("/x", lambda _request: future)
    client = bench.connect()
    client.send(head("GET", "/x"))
    future.set_result("done")
    await settle()
    assert client.answer.body == b"done"
    await leave(client)


def fails(_request: Request) -> str:
    raise RuntimeError("secret")


async def fails_later(_request: Request) -> str:
    await asyncio.sleep(0)
    raise RuntimeError("secret")


async def cancels(_request: Request) -> str:
    raise asyncio.CancelledError


def cancelled(_request: Request) -> str:
    raise asyncio.CancelledError


def panics(_request: Request) -> str:
    raise Panic("secret")


async def panics_later(_request: Request) -> str:
    raise Panic("secret")


@pytest.mark.parametrize(
    "handler",
    [
        fails,
        fails_later,
        cancels,
        cancelled,
        panics,
        panics_later,
        lambda _request: None,
        lambda _request: 5,
        lambda _request: {"a": object()},
        lambda _request: Response(200, b"", [("X", "a\r\nY: b")]),
        lambda _request: Response(101),
    ],
)
async def test_a_handler_that_fails_is_logged_once_and_answered_with_500(bench, handler, caplog):
    bench.server.get("/bad", handler)
    client = bench.connect()
    client.send(head("GET", "/bad%0Apath") + head("GET", "/bad"))
    await settle()
    assert [answer.status for answer in client.answers] == [404, 500]
    assert client.answers[1].body == b"Internal Server Error\n"
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.exc_info is not None
    assert "/bad" in record.getMessage()
    client.send(head())  # it goes on
    assert client.answers[2].status == 200
    await leave(client)


# --- refusals ---


@pytest.mark.parametrize(
    ("wire", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"\x16\x03\x01", 400),
        (head("FOO"), 501),
        (head(version="HTTP/2.0"), 505),
        (head("GET", "/", "X: " + "x" * 1_000), 431),
        (head("GET", "/" + "x" * 1_000), 414),
        (head("POST", "/", "Content-Length: 100001"), 413),
    ],
)
async def test_a_refusal_closes_and_routes_nothing_behind_it(bench, wire, status):
    client = bench.connect()
    client.send(wire + head() + handshake())
    assert client.answer.status == status
    assert client.answer.closes
    assert client.wire.half_closed  # the client can read the answer before anything is reset
    client.send(head())
    client.end()
    await settle()
    assert client.answer.status == status
    assert bench.upgrades.all == []


async def test_a_refused_client_that_goes_on_sending_is_dropped(bench):
    client = bench.connect()
    client.send(b"\0")
    for _ in range(3):
        client.send(b"x" * 100_000)
        await client.wait(0.5)
    assert not client.wire.closing
    await client.wait(1.0)
    assert client.wire.aborted


async def test_a_refusal_over_tls_closes_at_once(bench):
    client = bench.connect(tls=True)
    client.send(b"\0")
    assert client.answer.status == 400
    assert client.wire.closing
    await settle()


async def test_404_and_405_keep_the_connection(bench):
    bench.server.post("/p", text("p"))
    client = bench.connect()
    client.send(head("GET", "/nothing") + head("POST", "/") + head("GET", "/p") + head("HEAD", "/p") + head())
    answers = parse(client.wire.taken, ["GET", "POST", "GET", "HEAD", "GET"])
    assert [answer.status for answer in answers] == [404, 405, 405, 405, 200]
    assert [answer.headers.get("allow") for answer in answers] == [None, "GET, HEAD", "POST", "POST", None]
    await leave(client)


# --- deadlines ---


async def test_a_connection_that_says_nothing_is_closed_in_time(bench):
    client = bench.connect()
    await client.wait(9.9)
    assert not client.wire.closing
    await client.wait(0.2)
    assert client.wire.closing
    assert client.wire.taken == b""


@pytest.mark.parametrize("wire", [head(), head("POST", "/", "Content-Length: 50") + b"x" * 50])
async def test_bytes_do_not_extend_the_deadline(bench, wire):
    client = bench.connect()
    for i in range(20):
        client.send(wire[i : i + 1])
        await client.wait(0.49)
    assert not client.wire.closing
    await client.wait(0.3)
    assert client.answer.status == 408
    assert client.answer.closes
    assert client.wire.closing


async def test_the_tls_handshake_counts(bench):
    client = Connected(bench.server, bench.clock, bench.context, tls=True)
    bench.clock.now += 7.0
    client.open()
    await client.wait(2.9)
    assert not client.wire.closing
    await client.wait(0.2)
    assert client.wire.closing


async def test_keep_alive_ends(bench):
    client = bench.connect()
    await client.wait(9.0)
    client.send(head())
    await client.wait(14.9)
    client.send(head())
    await client.wait(14.9)
    assert not client.wire.closing
    await client.wait(0.2)
    assert client.wire.closing
    assert len(client.answers) == 2


async def test_a_later_request_has_a_deadline_of_its_own(bench):
    client = bench.connect()
    client.send(head())
    await client.wait(14.0)
    client.send(head()[:5])
    await client.wait(9.9)
    assert not client.wire.closing
    await client.wait(0.2)
    assert client.answers[1].status == 408
    assert client.wire.closing


async def test_a_handler_may_take_longer_than_a_client(bench):
    gate = asyncio.Event()

    async def wait(_request: Request) -> str:
        await gate.wait()
        return "late"

    bench.server.get("/slow", wait)
    client = bench.connect()
    client.send(head("GET", "/slow"))
    await client.wait(60.0)
    gate.set()
    await settle()
    assert client.answer.body == b"late"
    await client.wait(15.1)  # and then it is idle like any other
    assert client.wire.closing


@pytest.mark.parametrize("lines", [[], ["Connection: close"]])
async def test_an_answer_that_is_taken_slowly_is_sent_to_its_end(bench, lines):
    bench.server.get("/large", lambda _request: bytes(60_000))
    client = bench.connect()
    client.wire.stalled = True
    client.send(head("GET", "/large", *lines))
    for _ in range(60):
        await client.wait(1.0)
        client.wire.take(900)
        assert not client.wire.aborted
    client.wire.take(60_000)
    assert len(client.answer.body) == 60_000
    await leave(client)


@pytest.mark.parametrize("size", [100, 60_000, 100_000])
@pytest.mark.parametrize("lines", [[], ["Connection: close"]])
async def test_an_answer_that_is_not_taken_ends_in_an_abort(bench, lines, size):
    bench.server.get("/large", lambda _request: bytes(size))
    client = bench.connect()
    client.wire.stalled = True
    client.send(head("GET", "/large", *lines))
    await client.wait(20.0)
    assert client.wire.aborted


# --- the client closes ---


async def test_half_close_before_a_request(bench):
    client = bench.connect()
    client.end()
    await settle()
    assert client.wire.lost


async def test_half_close_in_a_request(bench):
    client = bench.connect()
    client.send(head()[:-1])
    client.end()
    await settle()
    assert client.wire.taken == b""


async def test_a_client_that_has_said_all_gets_all_its_answers(bench):
    async def later(_request: Request) -> str:
        await asyncio.sleep(0)
        return "later"

    bench.server.get("/later", later)
    client = bench.connect()
    client.send(head("GET", "/later") + head() + head("GET", "/later") + head()[:-1])
    client.end()
    for _ in range(4):
        await settle()
    assert [answer.body for answer in client.answers] == [b"later", b"hello", b"later"]
    assert client.wire.lost
    assert not client.wire.aborted


async def test_and_the_connection_ends_with_the_last_of_them(bench):
    gate = asyncio.Event()

    async def later(_request: Request) -> str:
        await gate.wait()
        return "later"

    bench.server.get("/later", later)
    client = bench.connect()
    client.send(head("GET", "/later") + head())
    client.end()
    gate.set()
    await settle()
    assert [(answer.body, answer.closes) for answer in client.answers] == [(b"later", False), (b"hello", True)]
    assert client.wire.lost


async def test_a_handler_is_cancelled_when_its_client_goes(bench):
    ended = []

    async def wait(_request: Request) -> str:
        try:
            await asyncio.sleep(1_000)
        finally:
            ended.append(True)
        return ""

    bench.server.get("/slow", wait)
    client = bench.connect()
    client.send(head("GET", "/slow"))
    await settle()
    client.vanish()
    await settle()
    assert ended == [True]


async def test_a_write_that_failed_is_nobody_s_problem(bench, caplog):
    """Between the failure and connection_lost() the transport is closing, and uvloop's write() raises."""
    gate = asyncio.Event()

    async def wait(_request: Request) -> str:
        await gate.wait()
        return "late"

    bench.server.get("/slow", wait)
    client = bench.connect()
    client.send(head("GET", "/slow") + head())
    await settle()
    client.wire.closing = True
    gate.set()
    await settle()
    assert client.wire.taken == b""
    assert caplog.records == []
    client.vanish()


async def test_a_refusal_to_a_client_that_has_reset_the_connection(bench, monkeypatch):
    def not_connected() -> None:
        raise OSError(errno.ENOTCONN, "not connected")

    client = bench.connect()
    monkeypatch.setattr(client.wire, "write_eof", not_connected)
    client.send(b"\0")
    assert client.wire.aborted


# --- event streams ---


@pytest.fixture
def streams(bench):
    """The streams of GET /stream, at once, and of GET /later, when the test says so."""
    made = []
    made_later = asyncio.Event()

    def stream(_request: Request) -> SseStream:
        made.append(SseStream(limits=LIMITS))
        made[-1].send("x")
        return made[-1]

    async def later(request: Request) -> SseStream:
        with contextlib.suppress(asyncio.CancelledError):  # it does not let itself be stopped
            await made_later.wait()
        return stream(request)

    bench.server.get("/stream", stream)
    bench.server.get("/later", later)
    bench.made_later = made_later
    return made


async def test_a_stream_takes_the_connection_over(bench, streams):
    client = bench.connect()
    client.send(head() + head("GET", "/stream") + head())
    await settle()
    assert client.wire.taken.count(b"HTTP/1.1 200 OK") == 2
    assert client.wire.taken.endswith(b"data: x\n\n")
    assert bench.server.connection_count == 0
    assert isinstance(client.wire.protocol, asyncio.Protocol)
    assert not isinstance(client.wire.protocol, HttpConnection)
    client.send(head())
    await client.wait(60)
    assert client.wire.taken.count(b": ping") == 4
    assert not streams[0].closed
    await leave(client)
    assert streams[0].ended


async def test_the_deadline_of_the_request_does_not_end_the_stream_of_a_coroutine(bench, streams):
    client = bench.connect()
    client.send(head("GET", "/later") + head())
    await settle()
    bench.made_later.set()
    await client.wait(LIMITS.handshake_timeout_s + 1)
    assert client.wire.taken.count(b"HTTP/1.1") == 1
    assert not streams[0].closed
    await leave(client)


@pytest.mark.parametrize("how", ["vanish", "end"])
async def test_a_stream_for_a_client_that_has_gone_is_ended(bench, streams, how):
    client = bench.connect()
    client.send(head("GET", "/later"))
    await settle()
    getattr(client, how)()
    await settle()
    bench.made_later.set()
    await settle()
    assert streams[0].ended
    assert client.wire.taken == b""
    assert client.wire.lost


async def test_head_of_a_stream(bench, streams):
    client = bench.connect()
    client.send(head("HEAD", "/stream"))
    await settle()
    assert client.wire.taken.endswith(b"Connection: close\r\n\r\n")
    assert client.wire.closing
    assert streams[0].ended


async def test_a_stream_that_another_response_has(bench, streams):
    bench.server.get("/again", lambda _request: streams[0])
    client, second = bench.connect(), bench.connect()
    client.send(head("GET", "/stream"))
    second.send(head("GET", "/again"))
    await settle()
    assert second.answer.status == 500
    assert not streams[0].closed
    await leave(client)
    await leave(second)


async def test_a_stream_with_a_bad_header(bench, caplog):
    made = []

    def bad(_request: Request) -> SseStream:
        made.append(SseStream(headers=[("X", "a\nb")]))
        return made[-1]

    bench.server.get("/bad", bad)
    client = bench.connect()
    client.send(head("GET", "/bad"))
    assert client.answer.status == 500
    assert made[0].ended
    assert "CR, LF or NUL" in caplog.text
    await leave(client)


# --- upgrades ---


async def test_an_upgrade_leaves_nothing_of_http(bench):
    client = bench.connect()
    client.send(handshake("/ws?a=b") + b"frames")
    (upgrade,) = bench.upgrades.all
    assert upgrade.request.query["a"] == "b"
    assert upgrade.request.client == ("192.0.2.7", 4711)
    transport, tail = upgrade.take_over()
    assert (transport, tail) == (client.wire, b"frames")
    bench.assert_clean()
    transport.set_protocol(asyncio.Protocol())
    del client.protocol
    assert connections_in_memory() == []
    assert bench.upgrades.abandoned == 0
    assert not client.wire.closing


async def test_an_upgrade_is_answered_once(bench):
    client = bench.connect()
    client.send(handshake())
    (upgrade,) = bench.upgrades.all
    upgrade.take_over()
    upgrade.refuse(Response.text("no", 401))
    assert client.wire.taken == b""
    with pytest.raises(ConnectionClosed):
        upgrade.take_over()
    assert bench.upgrades.abandoned == 0


async def test_a_refused_upgrade_closes_and_routes_nothing_behind_it(bench):
    client = bench.connect()
    client.send(handshake() + head() + handshake())
    (upgrade,) = bench.upgrades.all
    upgrade.refuse(Response.text("no", 401))
    client.send(head())
    assert client.answer.status == 401
    assert client.answer.closes
    assert client.wire.half_closed
    assert len(bench.upgrades.all) == 1
    client.end()
    await settle()
    assert client.answer.body == b"no"
    assert bench.upgrades.abandoned == 0


async def test_a_refused_upgrade_without_anything_behind_it_just_closes(bench):
    client = bench.connect()
    client.send(handshake())
    bench.upgrades.all[0].refuse(Response.text("no", 403))
    assert client.wire.closing
    assert client.answer.closes
    await settle()


async def test_a_plain_request_on_the_path_of_a_websocket_is_handed_on_and_closes(bench):
    client = bench.connect()
    client.send(head("GET", "/ws") + head())
    bench.upgrades.all[0].refuse(Response.text("", 426, [("Upgrade", "websocket")]))
    assert client.answer.headers["connection"] == "Upgrade, close"
    client.end()
    await settle()


async def test_a_route_and_a_websocket_may_share_a_path(bench):
    bench.server.upgrade("/", bench.upgrades)
    client = bench.connect()
    client.send(head())
    assert client.answer.body == b"hello"
    client.send(handshake("/"))
    assert len(bench.upgrades.all) == 1
    await leave(client)


@pytest.mark.parametrize(("target", "status"), [("/", 200), ("/nothing", 404)])
async def test_a_websocket_request_elsewhere_is_an_ordinary_one_and_the_last(bench, target, status):
    client = bench.connect()
    client.send(handshake(target) + head())
    assert client.answer.status == status
    assert client.answer.closes
    client.end()
    await settle()


async def test_frames_pile_up_behind_an_upgrade_only_so_far(bench):
    client = bench.connect()
    client.send(handshake())
    sent = b""
    while client.wire.reading:
        client.send(b"frame" * 10)
        sent += b"frame" * 10
    assert len(sent) <= LIMITS.request_head_bytes + 50
    _, tail = bench.upgrades.all[0].take_over()
    assert tail == sent
    assert client.wire.reading


@pytest.mark.parametrize("how", ["vanish", "end"])
async def test_a_client_that_goes_during_authentication_is_told_of(bench, how):
    client = bench.connect()
    client.send(handshake())
    getattr(client, how)()
    await settle()
    assert bench.upgrades.abandoned == 1
    (upgrade,) = bench.upgrades.all
    upgrade.refuse(Response.text("late", 401))
    with pytest.raises(ConnectionClosed):
        upgrade.take_over()
    assert client.wire.taken == b""


async def test_a_client_whose_connection_has_just_failed_cannot_be_taken_over(bench):
    client = bench.connect()
    client.send(handshake())
    client.wire.closing = True
    with pytest.raises(ConnectionClosed):
        bench.upgrades.all[0].take_over()
    client.vanish()


async def test_an_authentication_that_takes_too_long(bench):
    client = bench.connect()
    await client.wait(5.0)
    client.send(handshake())
    await client.wait(4.9)
    assert bench.upgrades.abandoned == 0
    await client.wait(0.2)
    assert bench.upgrades.abandoned == 1
    assert client.answer.status == 503
    assert client.wire.closing
    with pytest.raises(ConnectionClosed):
        bench.upgrades.all[0].take_over()


async def test_once_it_has_timed_out_an_upgrade_is_nobody_s(bench):
    client = bench.connect()
    client.send(handshake())
    client.wire.stalled = True  # the 503 is not taken, so the connection is not lost yet
    await client.wait(10.1)
    assert not client.wire.lost
    assert bench.upgrades.abandoned == 1
    with pytest.raises(ConnectionClosed):
        bench.upgrades.all[0].take_over()
    await leave(client)


async def test_an_upgrade_after_other_requests_has_ten_seconds(bench):
    client = bench.connect()
    client.send(head())
    await client.wait(12.0)
    client.send(handshake())
    await client.wait(9.9)
    assert bench.upgrades.abandoned == 0
    await client.wait(0.2)
    assert bench.upgrades.abandoned == 1


async def test_a_websocket_server_that_fails_is_logged_and_answered_with_500(bench, caplog):
    def broken(_upgrade: Upgrade) -> None:
        raise RuntimeError("secret")

    bench.server.upgrade("/broken", broken)
    client = bench.connect()
    client.send(handshake("/broken"))
    assert client.answer == (
        500,
        {"content-type": "text/plain; charset=utf-8", "connection": "close", "content-length": "22"},
        b"Internal Server Error\n",
    )
    assert len(caplog.records) == 1
    await settle()


async def test_on_abandoned_that_fails_is_logged(bench, caplog):
    client = bench.connect()
    client.send(handshake())

    def broken() -> None:
        raise RuntimeError("secret")

    bench.upgrades.all[0].on_abandoned = broken
    client.vanish()
    await settle()
    assert len(caplog.records) == 1


def connections_in_memory() -> list[HttpConnection]:
    """Those that exist, also as garbage in a cycle."""
    return [thing for thing in gc.get_objects() if type(thing) is HttpConnection]


@pytest.fixture(autouse=True)
def without_collector():
    """What a cycle holds stays, so that a test can see it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        head()[:9],
        head(),
        head("POST", "/", "Transfer-Encoding: chunked") + b"3\r\nab",
        head("GET", "/later"),
        head("FOO"),
        handshake(),
        head("GET", "/stream"),
    ],
)
async def test_a_connection_that_ends_leaves_no_cycle(bench, wire):
    async def later(_request: Request) -> str:
        await asyncio.sleep(1_000)
        return ""

    bench.server.get("/later", later)
    bench.server.get("/stream", lambda _request: SseStream())
    client = bench.connect()
    client.send(wire)
    await settle()
    await leave(client)
    bench.upgrades.all.clear()
    del client
    assert connections_in_memory() == []

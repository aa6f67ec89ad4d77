"""The `websockets` library, which shares no code with street_fast, as the client of both kinds of socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random

import pytest
import pytest_asyncio
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosedError, ConnectionClosedOK, InvalidStatus
from websockets.typing import Subprotocol

from street_fast import CloseCode, Event, HttpServer, Limits, Request, StreetSocket, StreetWebSocketServer, WebSocket

LIMITS = Limits(message_bytes=1_000_000, event_bytes=65_536, close_timeout_s=5.0)


def echo(ws: WebSocket, request: Request) -> None:
    """Sends back what comes; "close 4002 why" closes with that."""

    def on_message(data: str | bytes) -> None:
        if isinstance(data, str) and data.startswith("close "):
            _, code, reason = data.split(" ", 2)
            ws.close(int(code), reason)
        else:
            ws.send(data)

    ws.on_message = on_message


def events(socket: StreetSocket, request: Request) -> None:
    socket.emit("welcome", {"path": request.path, "user": request.query.get("user")})

    def answer(event: Event) -> None:
        socket.emit(f"re:{event.type}", event.data, id=event.id)
        if event.type == "leave":
            socket.close(CloseCode.GOING_AWAY, "as you wish")

    socket.on("*", answer)


@pytest_asyncio.fixture
async def server():
    """One port: bare WebSockets on /echo (also as "echo.v1" and "echo.v2"), StreetSockets on /events."""
    http = HttpServer(limits=LIMITS)
    bare = StreetWebSocketServer(path="/echo", limits=LIMITS)
    for subprotocol in ("echo.v2", "echo.v1", None):
        bare.attach_protocol(http, subprotocol, echo)
    StreetWebSocketServer(path="/events", limits=LIMITS).attach(http, events)
    await http.listen("127.0.0.1", 0)
    yield f"ws://127.0.0.1:{http.port}"
    await http.close()


@pytest.mark.parametrize("text", ["", "hello", "żółw 🐢 \N{ZERO WIDTH JOINER} \0"])
async def test_text(server, text):
    async with connect(f"{server}/echo") as client:
        await client.send(text)
        assert await client.recv() == text


async def test_binary(server):
    async with connect(f"{server}/echo") as client:
        for data in (b"", bytes(range(256)), b"\xff\xfe not UTF-8"):
            await client.send(data)
            assert await client.recv() == data


@pytest.mark.parametrize("size", [125, 126, 65_535, 65_536, 1_000_000])
async def test_every_length_encoding(server, size):
    data = random.Random(size).randbytes(size)
    async with connect(f"{server}/echo") as client:
        await client.send(data)
        assert await client.recv() == data


async def test_fragments_become_one_message(server):
    parts = ["one ", "", "zwei ", "три 🐢"]
    async with connect(f"{server}/echo") as client:
        await client.send(parts)
        assert await client.recv() == "".join(parts)
        await client.send([b"a" * 70_000, b"b", b""])
        assert await client.recv() == b"a" * 70_000 + b"b"


async def test_a_ping_between_fragments_is_answered_at_once(server):
    async with connect(f"{server}/echo") as client:
        pinged = asyncio.Event()

        async def parts():
            yield "first "
            await (await client.ping(b"in between"))
            pinged.set()
            yield "last"

        await client.send(parts())
        assert pinged.is_set()
        assert await client.recv() == "first last"


async def test_ping_and_pong(server):
    async with connect(f"{server}/echo") as client:
        for payload in (b"", b"x" * 125):
            assert await (await client.ping(payload)) >= 0
        await client.pong(b"nobody asked")
        await client.send("still there")
        assert await client.recv() == "still there"


async def test_many_messages_keep_their_order(server):
    async with connect(f"{server}/echo") as client:
        for number in range(1_000):
            await client.send(str(number))
        assert [await client.recv() for _ in range(1_000)] == [str(number) for number in range(1_000)]


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (1001, ""), (1011, "ż" * 61), (4999, "own")])
async def test_the_server_closes_with_code_and_reason(server, code, reason):
    async with connect(f"{server}/echo") as client:
        await client.send(f"close {code} {reason}")
        with pytest.raises((ConnectionClosedOK, ConnectionClosedError)):
            await client.recv()
        assert (client.close_code, client.close_reason) == (code, reason)


@pytest.mark.parametrize("code", [1000, 1001, 3000, 4000])
async def test_the_client_closes_and_the_server_answers(server, code):
    client = await connect(f"{server}/echo")
    await client.close(code, "bye")
    assert client.close_code == code
    assert client.protocol.close_rcvd is not None
    assert client.protocol.close_rcvd.code == code


async def test_a_message_that_is_too_big_is_refused_before_it_is_read(server):
    async with connect(f"{server}/echo") as client:
        with contextlib.suppress(ConnectionClosedError):  # it may be over before all is sent
            await client.send(b"x" * (LIMITS.message_bytes + 1))
        with pytest.raises(ConnectionClosedError):
            await client.recv()
        assert client.close_code == CloseCode.MESSAGE_TOO_BIG


async def test_an_event_has_a_limit_of_its_own(server):
    async with connect(f"{server}/events") as client:
        await client.recv()
        with contextlib.suppress(ConnectionClosedError):  # it may be over before all is sent
            await client.send("x" * (LIMITS.event_bytes + 1))
        with pytest.raises(ConnectionClosedError):
            await client.recv()
        assert client.close_code == CloseCode.MESSAGE_TOO_BIG


@pytest.mark.parametrize(
    ("offered", "agreed"),
    [(["echo.v1"], "echo.v1"), (["echo.v1", "echo.v2"], "echo.v2"), (["unknown", "echo.v1"], "echo.v1"), (None, None)],
)
async def test_the_subprotocol_that_the_server_likes_best(server, offered, agreed):
    subprotocols = None if offered is None else [Subprotocol(name) for name in offered]
    async with connect(f"{server}/echo", subprotocols=subprotocols) as client:
        assert client.subprotocol == agreed
        await client.send("hello")
        assert await client.recv() == "hello"


async def test_compression_is_offered_and_not_taken(server):
    async with connect(f"{server}/echo", compression="deflate") as client:
        assert client.protocol.extensions == []
        await client.send("a" * 10_000)
        assert await client.recv() == "a" * 10_000


async def test_typed_events(server):
    async with connect(f"{server}/events?user=%C5%BC%C3%B3%C5%82w") as client:
        assert json.loads(await client.recv()) == {"type": "welcome", "data": {"path": "/events", "user": "żółw"}}
        await client.send(json.dumps({"type": "greet", "id": 7, "data": {"deep": [1, 2.5, None]}}))
        assert json.loads(await client.recv()) == {"type": "re:greet", "id": 7, "data": {"deep": [1, 2.5, None]}}
        await client.send("no JSON")
        error = json.loads(await client.recv())
        assert (error["type"], error["data"]["code"]) == ("error", "bad_request")
        await client.send(json.dumps({"type": "leave"}))
        assert json.loads(await client.recv())["type"] == "re:leave"
        with pytest.raises(ConnectionClosedOK):
            await client.recv()
        assert (client.close_code, client.close_reason) == (1001, "as you wish")


async def test_a_client_need_not_wait_for_the_welcome(server):
    async with connect(f"{server}/events") as client:
        await client.send(json.dumps({"type": "hi"}))
        assert [json.loads(await client.recv())["type"] for _ in range(2)] == ["welcome", "re:hi"]


@pytest.mark.parametrize(
    ("path", "origin", "status"), [("/nowhere", None, 404), ("/echo", "https://evil.example", 403)]
)
async def test_refusals(server, path, origin, status):
    with pytest.raises(InvalidStatus) as refused:
        await connect(f"{server}{path}", origin=origin)
    assert refused.value.response.status_code == status


async def test_a_closing_server_tells_everybody_when_to_come_back():
    server = StreetWebSocketServer()
    await server.serve(events, port=0)
    clients = [await connect(f"ws://127.0.0.1:{server.port}/") for _ in range(20)]
    await server.close()
    for client in clients:
        await client.wait_closed()
        assert client.close_code == CloseCode.SERVICE_RESTART
        assert "retry in " in client.close_reason

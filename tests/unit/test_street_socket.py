"""StreetSocket over a WebSocket whose transport is a list: every byte and every second is the test's."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import sys
import weakref
from typing import Any

import msgspec
import pytest

from street_fast._core import FrameParser, LoopContext, WebSocket, encode_close, encode_frame
from street_fast.errors import ConfigurationError, LimitExceeded
from street_fast.limits import Limits
from street_fast.messages import Envelope, Message
from street_fast.request import Request
from street_fast.street_socket import UNHANDLED, Event, SocketContext, StreetSocket, socket_limits
from tests.connection_harness import Panic

MASK = b"\x01\x02\x03\x04"


class Wire(asyncio.Transport):
    """A transport that keeps what is written; `peer` has parsed it as the client would."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.loop = loop
        self.protocol: Any = None
        self.reading = True
        self.closing = False
        self.sent: list[Any] = []
        self.close_frame: tuple[int, str] | None = None
        self.pongs: list[bytes] = []
        self.parser = FrameParser(self, client=True)

    def on_message(self, _opcode: int, data: bytes) -> None:
        self.sent.append(json.loads(data))

    def on_ping(self, _data: bytes) -> None: ...

    def on_pong(self, data: bytes) -> None:
        self.pongs.append(data)

    def on_close(self, code: int, reason: str) -> None:
        self.close_frame = (code, reason)

    def write(self, data: Any) -> None:
        self.parser.feed(bytes(data))

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def can_write_eof(self) -> bool:
        return False

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self.loop.call_soon(self.protocol.connection_lost, None)

    abort = close


class Client:
    """The other end of a StreetSocket."""

    def __init__(self, limits: Limits | None = None, **shared: Any) -> None:
        self.limits = Limits(ping_interval_s=None) if limits is None else limits
        self.now = 1_000.0
        loop = asyncio.get_running_loop()
        self.context = SocketContext(LoopContext(loop, lambda: self.now), self.limits, **shared)
        self.wire = Wire(loop)
        self.ws = WebSocket(self.context.loop_context, socket_limits(self.limits))
        self.socket = StreetSocket(self.ws, Request("GET", "/?user=ann"), self.context)
        self.ws.start(self.wire)

    def feed(self, data: bytes) -> None:
        buffer = self.ws.get_buffer(len(data))
        buffer[: len(data)] = data
        self.ws.buffer_updated(len(data))

    def send(self, event: str, data: Any = None, **more: Any) -> None:
        self.feed(self.frame(event, data, **more))

    @staticmethod
    def frame(event: str, data: Any = None, **more: Any) -> bytes:
        return encode_frame(1, json.dumps({"type": event, "data": data, **more}).encode(), mask=MASK)

    def send_text(self, text: bytes) -> None:
        self.feed(encode_frame(1, text, mask=MASK))

    def send_close(self, code: int = 1000) -> None:
        self.feed(encode_frame(8, encode_close(code), mask=MASK))

    async def hang_up(self) -> None:
        self.wire.close()
        await settle()

    @property
    def errors(self) -> list[str]:
        return [message["data"]["code"] for message in self.wire.sent if message["type"] == "error"]


async def settle() -> None:
    """Lets everything run that can run."""
    for _ in range(10):
        await asyncio.sleep(0)


class Chat(msgspec.Struct):
    text: str


# --- events to handlers -----------------------------------------------------------------------------------------


async def test_plain_handler_runs_at_once() -> None:
    client = Client()
    got: list[Any] = []
    client.socket.on("chat", got.append)
    client.send("chat", {"text": "hi"})
    client.send("other", 1)
    assert got == [{"text": "hi"}]
    assert client.context.counters.events_received == 2


async def test_absent_data_is_none_and_payload_is_data() -> None:
    client = Client()
    got: list[Any] = []
    client.socket.on("x", got.append)
    client.send_text(b'{"type":"x"}')
    client.send_text(b'{"type":"x","payload":{"a":1}}')
    assert got == [None, {"a": 1}]


async def test_on_is_a_decorator_too() -> None:
    client = Client()
    got: list[Any] = []

    @client.socket.on("a")
    def first(data: Any) -> None:
        got.append(data)

    @client.socket.on("b", type=int)
    def second(data: int) -> None:
        got.append(data)

    client.send("a", 1)
    client.send("b", 2)
    assert got == [1, 2]
    assert callable(first)
    assert callable(second)


async def test_annotated_handler_gets_its_type() -> None:
    client = Client()
    got: list[Any] = []

    @client.socket.on("chat")
    def _(message: Chat) -> None:
        got.append(message)

    client.send("chat", {"text": "hi"})
    assert got == [Chat("hi")]


async def test_data_that_does_not_fit_is_answered_and_reaches_no_handler() -> None:
    client = Client()
    got: list[Any] = []
    client.socket.on("chat", got.append, type=Chat)
    client.send("chat", {"text": 1}, id=7)
    client.send("chat", {"text": "fine"})
    await settle()
    assert got == [Chat("fine")]
    assert client.wire.sent == [
        {
            "type": "error",
            "id": 7,
            "data": {"code": "bad_request", "message": "data does not fit: Expected `str`, got `int` - at `$.text`"},
        }
    ]
    assert client.context.counters.events_malformed == 1
    assert not client.socket.closed


async def test_data_that_is_no_number_python_holds_is_answered() -> None:
    client = Client()
    client.socket.on("x", print)
    client.send_text(b'{"type":"x","data":1e999}')
    await settle()
    assert client.errors == ["bad_request"]


async def test_raw_data_is_not_decoded() -> None:
    client = Client()
    got: list[Any] = []
    client.socket.on("x", lambda raw: got.append(bytes(raw)), type=msgspec.Raw)
    client.send_text(b'{"type":"x","data":[1.50 ]}')
    assert got == [b"[1.50 ]"]


async def test_star_gets_every_event_after_its_own_handlers() -> None:
    client = Client()
    got: list[Any] = []
    client.socket.on("*", got.append)
    client.socket.on("a", got.append)
    client.send("a", 1, id="i", channel="c")
    client.send("b", 2)
    assert got == [1, Event("a", 1, "i", "c"), Event("b", 2, None, None)]


async def test_message_is_an_event_like_others() -> None:
    client = Client()
    got: list[Any] = []
    client.socket.on("message", got.append)
    client.send("message", "m")
    client.send("chat", "c")
    assert got == ["m"]


@pytest.mark.parametrize("name", ["close", "*"])
async def test_a_client_cannot_reach_the_sockets_own_events(name: str) -> None:
    client = Client()
    got: list[Any] = []
    client.socket.on(name, lambda *args: got.append(args))
    client.send(name, 1)
    assert got == ([] if name == "close" else [(Event("*", 1, None, None),)])


async def test_several_handlers_run_in_order_and_off_takes_them_back() -> None:
    client = Client()
    got: list[str] = []
    first, second, third = (lambda _, name=name: got.append(name) for name in "abc")
    for handler in (first, second, third):
        client.socket.on("x", handler)
    client.send("x")
    client.socket.off("x", second)
    client.socket.off("x", second)
    client.send("x")
    client.socket.off("x")
    client.socket.off("x")
    client.send("x")
    assert got == ["a", "b", "c", "a", "c"]


async def test_off_within_a_handler() -> None:
    client = Client()
    got: list[str] = []

    def once(_: object) -> None:
        got.append("once")
        client.socket.off("x", once)

    client.socket.on("x", once)
    client.socket.on("x", lambda _: got.append("always"))
    client.send("x")
    client.send("x")
    assert got == ["once", "always", "always"]


async def test_listener_limit() -> None:
    client = Client()
    for _ in range(64):
        client.socket.on("x", lambda _: None)
    with pytest.raises(LimitExceeded, match="listeners_per_event=64"):
        client.socket.on("x", lambda _: None)
    client.socket.on("y", lambda _: None)


@pytest.mark.parametrize(
    ("handler", "kind", "what"),
    [
        (None, None, None),
        (3, None, "callable"),
        (lambda: None, None, "must take one argument, the data"),
        (lambda one, two: None, None, "must take one argument, the data"),
        (print, object, "object"),
    ],
)
async def test_handlers_that_cannot_work(handler: Any, kind: Any, what: str | None) -> None:
    client = Client()
    if what is None:
        assert callable(client.socket.on("x"))
        return
    with pytest.raises(ConfigurationError, match=what):
        client.socket.on("x", handler, type=kind)


async def test_handlers_of_its_own_events_that_cannot_work() -> None:
    socket = Client().socket
    for handler in (lambda: None, lambda code: None, lambda code, reason, more: None):
        with pytest.raises(ConfigurationError, match="must take two arguments, code and reason"):
            socket.on("close", handler)
    for handler in (lambda: None, lambda kind, data: None):
        with pytest.raises(ConfigurationError, match="must take one argument, an Event"):
            socket.on("*", handler)
    socket.on("close", print)
    socket.on("close", lambda *end: None)
    socket.on("*", lambda event, more=None: None)


async def test_a_decorator_without_an_event() -> None:
    socket = Client().socket
    with pytest.raises(ConfigurationError, match=r"must be a str, .* @socket\.on\('event'\)"):

        @socket.on  # type: ignore[arg-type]
        def chat(data: object) -> None: ...

    with pytest.raises(ConfigurationError, match=r"on\(5\): must be a str, the name of the event$"):
        socket.on(5, print)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="type=5"):
        socket.emit(5)  # type: ignore[arg-type]


async def test_the_subprotocol() -> None:
    assert Client().socket.subprotocol is None
    client = Client()
    ws = WebSocket(client.context.loop_context, socket_limits(client.limits), subprotocol="chat.v2")
    assert StreetSocket(ws, Request("GET", "/"), client.context).subprotocol == "chat.v2"


# --- a protocol over the socket -----------------------------------------------------------------------------------


class Protocol:
    """Takes the events that begin with "p", coroutines for "pc"; fails at "pf"."""

    def __init__(self) -> None:
        self.got: list[Any] = []
        self.gate = asyncio.Event()

    def handle(self, envelope: Envelope) -> Any:
        if not envelope.type.startswith("p"):
            return UNHANDLED
        if envelope.type == "pf":
            raise Panic("boom")
        if envelope.type == "pc":
            return self.later(envelope)
        self.got.append((envelope.type, envelope.id))
        return None

    async def later(self, envelope: Envelope) -> None:
        await self.gate.wait()
        self.got.append((envelope.type, envelope.id))
        if envelope.id == "fail":
            raise RuntimeError("boom")


async def test_a_protocol_sees_events_first_and_leaves_others_to_the_handlers() -> None:
    client = Client()
    protocol = client.socket.protocol = Protocol()
    client.send("x")
    for name in ("p", "x", "*"):
        client.socket.on(name, protocol.got.append)
    client.send("p", 1, id=1)
    client.send("x", 2)
    assert protocol.got == [("p", 1), 2, Event("x", 2, None, None)]
    client.socket.protocol = None
    client.socket.off("*")
    client.send("p", 3)
    assert protocol.got[3:] == [3]


async def test_a_coroutine_of_the_protocol_makes_later_events_wait(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    protocol = client.socket.protocol = Protocol()
    client.socket.on("x", protocol.got.append)
    for event in ("pc", "p", "x"):
        client.send(event, 1, id="fail")
    await settle()
    assert protocol.got == []
    protocol.gate.set()
    await settle()
    assert protocol.got == [("pc", "fail"), ("p", "fail"), 1]
    assert not client.context.tasks
    assert [record.getMessage().partition(": ")[2] for record in caplog.records] == ["a handler of event 'pc' failed"]


async def test_a_protocol_that_fails_takes_nothing_down(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    protocol = client.socket.protocol = Protocol()
    client.socket.on("pf", protocol.got.append)
    client.send("pf")
    client.send("p")
    assert protocol.got == [("p", None)]
    assert client.context.counters.handler_errors == len(caplog.records) == 1
    assert not client.socket.closed


async def test_what_a_protocol_holds_of_its_socket_is_freed_with_it() -> None:
    client = Client()
    protocol = client.socket.protocol = Protocol()
    protocol.got.append(client.socket)
    gone = weakref.ref(client.socket)
    del protocol
    gc.disable()
    try:
        await client.hang_up()
        del client.socket
        assert gone() is None
    finally:
        gc.enable()


# --- handlers that fail -----------------------------------------------------------------------------------------


async def test_a_handler_that_raises_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    got: list[Any] = []

    def bad(_: object) -> None:
        raise RuntimeError("boom")

    async def bad_later(_: object) -> None:
        await asyncio.sleep(0)
        raise RuntimeError("boom")

    async def cancelled_inside(_: object) -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    client.socket.on("x", bad)
    client.socket.on("x", bad_later)
    if sys.version_info >= (3, 11):
        client.socket.on("x", cancelled_inside)
    client.socket.on("x", got.append)
    client.send("x", 1)
    await settle()
    client.send("x", 2)
    await settle()
    assert got == [1, 2]
    per_event = 3 if sys.version_info >= (3, 11) else 2
    assert len(caplog.records) == 2 * per_event == client.context.counters.handler_errors
    assert all(client.socket.id in record.getMessage() and "'x'" in record.getMessage() for record in caplog.records)
    assert not client.socket.closed


@pytest.mark.parametrize("error", [asyncio.CancelledError, Panic])
async def test_what_is_no_exception_fails_a_handler_all_the_same(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    client = Client()
    got: list[Any] = []

    def bad(*_: object) -> None:
        raise error("boom")

    async def bad_later(*_: object) -> None:
        await asyncio.sleep(0)
        raise Panic("boom")

    for name, handler in {"a": bad, "b": bad_later, "c": got.append}.items():
        client.socket.on(name, handler)
    for handler in (bad, bad_later, lambda code, reason: got.append("close")):
        client.socket.on("close", handler)
    client.socket.add_close_callback(bad)
    client.socket.add_close_callback(lambda _: got.append("callback"))
    for name in ("a", "b", "c"):
        client.send(name, name)
    await settle()
    assert got == ["c"]
    assert not client.socket.closed
    await client.hang_up()
    assert got == ["c", "callback", "close"]
    assert client.context.counters.handler_errors == len(caplog.records) == 5
    assert not client.context.tasks


@pytest.mark.parametrize("as_coroutine", [False, True])
async def test_a_connection_handler_that_fails_so_closes(as_coroutine: bool) -> None:
    client = Client()

    async def later(*_: object) -> None:
        raise Panic("boom")

    def now(*_: object) -> None:
        raise Panic("boom")

    client.socket.serve(later if as_coroutine else now)
    await settle()
    assert client.wire.close_frame == (1011, "internal error")


# --- order ------------------------------------------------------------------------------------------------------


async def test_a_coroutine_handler_makes_later_events_wait() -> None:
    client = Client()
    got: list[str] = []
    gate = asyncio.Event()

    async def slow(data: str) -> None:
        got.append(f"{data} begins")
        await gate.wait()
        got.append(f"{data} ends")

    client.socket.on("slow", slow)
    client.socket.on("fast", got.append)
    client.send("fast", "0")
    assert not client.context.tasks
    client.send("slow", "1")
    client.send("fast", "2")
    client.send("slow", "3")
    client.send("fast", "4")
    await settle()
    assert got == ["0", "1 begins"]
    gate.set()
    await settle()
    assert got == ["0", "1 begins", "1 ends", "2", "3 begins", "3 ends", "4"]
    assert not client.context.tasks
    client.send("fast", "5")
    assert got[-1] == "5"


async def test_handlers_of_one_event_run_one_after_the_other() -> None:
    client = Client()
    got: list[Any] = []

    async def slow(_: object) -> None:
        await asyncio.sleep(0)
        got.append("slow")

    client.socket.on("x", slow)
    client.socket.on("x", lambda _: got.append("fast"))
    client.socket.on("x", slow)
    client.socket.on("*", lambda event: got.append(event.type))
    client.send("x")
    await settle()
    assert got == ["slow", "fast", "slow", "x"]


async def test_a_full_inbox_pauses_reading_until_it_is_drained() -> None:
    client = Client(Limits(inbox_messages=3, messages_per_second=None))
    got: list[int] = []
    gates = [asyncio.Event() for _ in range(10)]

    async def slow(number: int) -> None:
        await gates[number].wait()
        got.append(number)

    client.socket.on("x", slow)
    frames = [client.frame("x", number) for number in range(10)]
    client.feed(b"".join(frames[:3]))
    assert client.wire.reading
    client.feed(encode_frame(9, b"p", mask=MASK))
    await settle()
    assert client.wire.pongs == [b"p"]  # pings are answered while there is room
    client.feed(b"".join(frames[3:]))  # one read; the inbox stays bounded all the same
    assert not client.wire.reading
    assert client.ws.buffered > 0
    gates[0].set()
    await settle()
    assert got == [0]
    assert not client.wire.reading
    for gate in gates:
        gate.set()
    await settle()
    assert got == list(range(10))
    assert client.wire.reading
    assert client.ws.buffered == 0


async def test_an_inbox_is_full_of_few_large_events_too() -> None:
    limits = Limits(event_bytes=10_000, messages_per_second=None, bytes_per_second=None)
    client = Client(limits)
    gate = asyncio.Event()
    got: list[str] = []

    async def slow(text: str) -> None:
        await gate.wait()
        got.append(text)

    client.socket.on("x", slow)
    for _ in range(5):
        assert client.wire.reading
        client.feed(client.frame("x", "x" * 9_900))
    client.feed(client.frame("x", "y"))
    assert client.wire.reading
    client.feed(client.frame("x", "x" * 9_900))
    assert not client.wire.reading
    gate.set()
    await settle()
    assert len(got) == 7
    assert client.wire.reading


async def test_close_is_seen_behind_a_slow_handler_and_cancels_it() -> None:
    client = Client()
    seen: list[Any] = []

    async def slow(_: object) -> None:
        seen.append("begins")
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    client.socket.on("slow", slow)
    client.socket.on("close", lambda code, reason: seen.append((code, reason)))
    client.feed(client.frame("slow") + client.frame("slow") + encode_frame(8, encode_close(4000, "bye"), mask=MASK))
    await settle()
    assert seen == ["begins", (4000, "bye"), "cancelled"]
    assert not client.context.tasks


async def test_a_handler_that_somebody_cancels_ends_the_socket() -> None:
    client = Client()

    async def slow(_: object) -> None:
        await asyncio.sleep(3600)

    client.socket.on("slow", slow)
    client.send("slow")
    client.send("slow")
    await settle()
    (task,) = client.context.tasks
    task.cancel()
    await settle()
    assert client.wire.close_frame == (1011, "internal error")


async def test_close_within_a_coroutine_handler() -> None:
    client = Client()
    seen: list[Any] = []

    async def leave(_: object) -> None:
        client.socket.close(4001, "out")
        client.send_close(4001)  # the client answers at once
        seen.append(client.socket.closed)

    client.socket.on("leave", leave)
    client.socket.on("close", lambda code, reason: seen.append((code, reason)))
    client.send("leave")
    client.send("leave")
    await settle()
    assert seen == [True, (4001, "out")]


# --- the end ----------------------------------------------------------------------------------------------------


async def test_close_handlers_run_once() -> None:
    client = Client()
    seen: list[Any] = []
    client.socket.add_close_callback(lambda socket: seen.append(socket.id))
    client.socket.add_close_callback(lambda socket: seen.append(socket.closed))
    client.socket.on("close", lambda code, reason: seen.append((code, reason)))

    async def later(code: int, reason: str) -> None:
        await asyncio.sleep(0)
        seen.append("later")

    client.socket.on("close", later)
    client.send_close(1001)
    await settle()
    await client.hang_up()
    assert seen == [client.socket.id, True, (1001, ""), "later"]


async def test_a_lost_connection_is_1006() -> None:
    client = Client()
    seen: list[int] = []
    client.socket.on("close", lambda code, reason: seen.append(code))
    await client.hang_up()
    assert seen == [1006]


async def test_close_handlers_that_raise_do_not_stop_the_others(caplog: pytest.LogCaptureFixture) -> None:
    client = Client()
    seen: list[str] = []

    def bad(*_: object) -> None:
        raise RuntimeError("boom")

    client.socket.add_close_callback(bad)
    client.socket.add_close_callback(lambda _: seen.append("callback"))
    client.socket.on("close", bad)
    client.socket.on("close", lambda code, reason: seen.append("handler"))
    await client.hang_up()
    assert seen == ["callback", "handler"]
    assert len(caplog.records) == 2


async def test_after_the_end() -> None:
    client = Client()
    seen: list[Any] = []
    await client.hang_up()
    client.socket.on("close", lambda code, reason: seen.append("never"))
    client.socket.add_close_callback(lambda socket: seen.append("now"))
    client.socket.off("x")
    client.socket.close(1000)
    assert client.socket.emit("x") is False
    assert client.socket.closed
    assert seen == ["now"]


async def test_a_closed_socket_is_freed_without_the_collector() -> None:
    client = Client()
    gone = weakref.ref(client.socket)

    def register(socket: StreetSocket) -> None:
        async def slow(_: object) -> None:
            await asyncio.sleep(0)
            socket.emit("y")

        socket.on("slow", slow)

    register(client.socket)
    client.send("slow")
    await settle()
    gc.disable()
    try:
        await client.hang_up()
        del client.socket
        assert gone() is None
    finally:
        gc.enable()


# --- the connection handler -------------------------------------------------------------------------------------


async def test_connection_handler() -> None:
    client = Client()
    seen: list[Any] = []
    client.socket.serve(lambda socket, request: seen.append((socket, request.query["user"])))
    assert seen == [(client.socket, "ann")]


async def test_coroutine_connection_handler_is_cancelled_at_the_end() -> None:
    client = Client()
    seen: list[Any] = []

    async def handler(socket: StreetSocket, request: Request) -> None:
        socket.on("x", seen.append)
        try:
            await asyncio.sleep(3600)
        finally:
            seen.append("cancelled")

    client.socket.serve(handler)
    await settle()
    client.send("x", 1)  # events do not wait for it
    assert seen == [1]
    await client.hang_up()
    assert seen == [1, "cancelled"]
    assert not client.context.tasks


@pytest.mark.parametrize("as_coroutine", [False, True])
async def test_connection_handler_that_raises_closes(as_coroutine: bool, caplog: pytest.LogCaptureFixture) -> None:
    client = Client()

    async def coroutine(socket: StreetSocket, request: Request) -> None:
        request.query["missing"]

    def plain(socket: StreetSocket, request: Request) -> None:
        request.query["missing"]

    client.socket.serve(coroutine if as_coroutine else plain)
    await settle()
    assert client.wire.close_frame == (1011, "internal error")
    assert len(caplog.records) == 1


# --- bad peers --------------------------------------------------------------------------------------------------


async def test_malformed_messages_in_a_row_close() -> None:
    client = Client(Limits(malformed_messages=3, messages_per_second=None))
    client.send_text(b"x")
    client.send_text(b"[]")
    client.send("fine")
    client.send_text(b"{}")
    client.send_text(b"[" * 100)
    await settle()
    assert client.errors == ["bad_request"] * 4
    assert client.wire.close_frame is None
    client.send_text(b"")
    await settle()
    assert client.wire.close_frame == (1008, "3 malformed messages in a row")
    assert client.context.counters.events_malformed == 5


async def test_binary_messages_are_malformed() -> None:
    client = Client()
    got: list[Any] = []
    client.socket.on("x", got.append)
    client.feed(encode_frame(2, b'{"type":"x","data":"\xff"}', mask=MASK))
    await settle()
    assert got == []
    assert client.errors == ["bad_request"]


async def test_an_event_that_is_too_big() -> None:
    client = Client(Limits(event_bytes=1_000))
    client.send("x", "a" * 1_000)
    await settle()
    assert client.wire.close_frame is not None
    assert client.wire.close_frame[0] == 1009


async def test_rate_of_messages() -> None:
    client = Client(Limits(messages_per_second=10, messages_burst=20, rate_grace_s=5))
    got: list[int] = []
    client.socket.on("x", got.append)
    for number in range(50):
        client.send("x", number)
    await settle()
    assert got == list(range(20))
    assert client.errors == ["rate_limited"]  # not one for each
    assert client.context.counters.events_rate_limited == 30
    client.now += 0.5
    for number in range(50):
        client.send("x", number)
    assert len(got) == 25


async def test_rate_of_bytes() -> None:
    client = Client(Limits(messages_per_second=None, bytes_per_second=100_000))
    got: list[int] = []
    client.socket.on("x", lambda data: got.append(len(data)))
    for _ in range(10):
        client.send("x", "a" * 19_900)
    await settle()
    assert len(got) == 5
    assert client.errors == ["rate_limited"]


async def test_one_event_of_any_allowed_size_is_within_the_rate() -> None:
    client = Client(Limits(event_bytes=50_000, bytes_per_second=10_000))
    got: list[Any] = []
    client.socket.on("x", got.append)
    client.send("x", "a" * 49_000)
    assert len(got) == 1


async def test_sustained_abuse_closes() -> None:
    client = Client(Limits(messages_per_second=10, messages_burst=10, rate_grace_s=5))
    for _ in range(40):  # 5 s at eight times the rate
        for _ in range(10):
            client.send("x")
        client.now += 0.125
    await settle()
    assert client.wire.close_frame is None
    assert client.errors == ["rate_limited"] * 5
    client.now += 0.125
    for _ in range(20):
        client.send("x")
    await settle()
    assert client.wire.close_frame == (4029, "too many messages for too long")


async def test_bursts_with_pauses_are_no_sustained_abuse() -> None:
    client = Client(Limits(messages_per_second=10, messages_burst=10, rate_grace_s=5))
    for _ in range(10):
        for _ in range(30):
            client.send("x")
        client.now += 1.5  # long enough for the bucket to be full again
    await settle()
    assert client.wire.close_frame is None
    assert client.errors == ["rate_limited"] * 10


async def test_opening_messages_are_above_the_bucket() -> None:
    client = Client(Limits(messages_per_second=10, messages_burst=20), opening_messages=8)
    got: list[int] = []
    client.socket.on("x", got.append)
    for number in range(50):
        client.send("x", number)
    assert got == list(range(28))
    client.now += 10
    for number in range(50):
        client.send("x", number)
    assert len(got) == 28 + 20


async def test_abuse_that_others_note() -> None:
    client = Client(Limits(rate_grace_s=5))
    for _ in range(6):
        client.socket.note_abuse()
        client.now += 1
    await settle()
    assert client.wire.sent == []
    assert client.wire.close_frame == (4029, "too many messages for too long")
    assert client.context.counters.events_rate_limited == 6


async def test_rates_can_be_off() -> None:
    client = Client(Limits(messages_per_second=None, bytes_per_second=None))
    got: list[int] = []
    client.socket.on("x", got.append)
    for number in range(2_000):
        client.send("x", number)
    assert len(got) == 2_000


# --- out --------------------------------------------------------------------------------------------------------


async def test_emit() -> None:
    client = Client()
    assert client.socket.emit("a", {"n": 1}) is True
    assert client.socket.emit("b", None, id=2) is True
    assert client.socket.emit("c") is True
    client.socket.deliver(Message("d", channel="room", data=[]))
    with pytest.raises(TypeError):
        client.socket.emit("e", object())
    await settle()
    assert client.wire.sent == [
        {"type": "a", "data": {"n": 1}},
        {"type": "b", "data": None, "id": 2},
        {"type": "c"},
        {"type": "d", "channel": "room", "data": []},
    ]


async def test_close() -> None:
    client = Client()
    client.socket.close(4000, "bye")
    client.socket.close(4001, "again")
    await settle()
    assert client.wire.close_frame == (4000, "bye")
    assert client.socket.closed
    with pytest.raises(ValueError, match="1005"):
        client.socket.close(1005)


async def test_no_event_after_close() -> None:
    client = Client()
    got: list[Any] = []
    client.socket.on("x", got.append)
    client.socket.close()
    client.send("x", 1)
    assert got == []


async def test_what_a_socket_is() -> None:
    client = Client()
    assert client.socket.id == client.ws.id
    assert client.socket.sink is client.ws
    assert client.socket.state == {}
    client.socket.state["a"] = 1
    assert client.socket.state == {"a": 1}
    assert client.socket.id in repr(client.socket)


async def test_annotations_are_looked_at_once_per_code(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    for _ in range(3):
        client = Client()

        def handler(data: NoSuchName) -> None:  # type: ignore[name-defined]  # noqa: F821
            pass

        client.socket.on("x", handler)
    assert len(caplog.records) == 1
    assert "NoSuchName" in caplog.text

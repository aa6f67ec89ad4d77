"""The client on real sockets: getting in, being used, coming back, and leaving nothing behind.

What it says on the wire is tested in test_client_protocol.py, without sockets.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import socket
import ssl
import time
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from street_fast._core import LoopContext
from street_fast.client import CannotConnect, Gap, Present, Published, RealtimeError, Received, connect
from street_fast.client import link as client_link
from street_fast.errors import ConfigurationError, ConnectionClosed, HandshakeRefused
from street_fast.limits import Limits
from tests.client_harness import FakeRealtime, fake_realtime, until, written

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from street_fast.client import RealtimeClient, Subscription
    from tests.client_harness import Peer
    from tests.conftest import Certificate

pytestmark = pytest.mark.both_loops

SOON = (0.01, 0.02)
EMPTY_ROOM = {"members": []}


class Chat(msgspec.Struct):
    text: str


@pytest.fixture(autouse=True)
async def nothing_is_left() -> AsyncIterator[None]:
    """No task, no connection, no timer."""
    before = asyncio.all_tasks()
    yield
    own = {asyncio.current_task()}
    await until(lambda: asyncio.all_tasks() - own <= before)
    context = LoopContext.of()
    await until(lambda: context.stats()["connections"] == 0)
    await until(lambda: len(context.wheel) == 0)


@pytest.fixture
async def server() -> AsyncIterator[FakeRealtime]:
    async with fake_realtime() as server:
        yield server


@contextlib.asynccontextmanager
async def connected(server: FakeRealtime, **options: Any) -> AsyncIterator[tuple[RealtimeClient, Peer]]:
    async with connect(server.url, backoff_s=SOON, **options) as rt:
        yield rt, await server.connection()


@contextlib.asynccontextmanager
async def http_server(answer: bytes | None) -> AsyncIterator[str]:
    """Something that answers every connection with these bytes, or with nothing; gives its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            if answer is not None:
                writer.write(answer)
                await writer.drain()
                if b"101" not in answer:
                    writer.close()
                    return
            await reader.read()
        finally:
            with contextlib.suppress(OSError):
                writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/realtime?token=secret"


async def refused(url: str, **options: Any) -> Exception:
    """Why there is no getting in."""
    with pytest.raises((ConnectionError, HandshakeRefused, RealtimeError)) as caught:
        async with connect(url, **options):
            pytest.fail("it got in")
    assert "secret" not in str(caught.value)
    return caught.value


# --- getting in ---------------------------------------------------------------------------------------------------


async def test_in_and_out_again(server: FakeRealtime) -> None:
    client = connect(server.url)
    assert (client.state, client.member, client.latency_ms) == ("connecting", None, None)
    with pytest.raises(RuntimeError, match="async with"):
        client.subscribe("chat")
    async with client as rt:
        peer = await server.connection()
        assert rt is client
        assert (rt.state, repr(rt)) == ("open", f"<RealtimeClient {server.url} open>")
        peer.send("ping")
        await peer.expect("pong")
        await until(lambda: rt.latency_ms is not None)
        assert 0 < rt.latency_ms < 5_000
        with pytest.raises(RuntimeError, match="already"):
            await rt
    assert await peer.closed == (1000, "")
    assert rt.state == "closed"
    with pytest.raises(ConnectionClosed, match="closed by the application"):
        await rt.publish("chat", 1)
    with pytest.raises(ConnectionClosed):
        rt.subscribe("chat")
    with pytest.raises(ConnectionClosed):
        rt.typing("chat", True)
    await rt.close()


async def test_it_can_be_awaited(server: FakeRealtime) -> None:
    rt = await connect(server.url)
    assert rt.state == "open"
    await rt.close()
    await rt.close()


async def test_the_member(server: FakeRealtime) -> None:
    server.welcome = False
    opening = asyncio.ensure_future(connect(server.url).__aenter__())
    peer = await server.connection()
    peer.welcome(member={"id": "ada", "info": {"name": "Ada"}})
    rt = await opening
    assert rt.member is not None
    assert (rt.member.id, rt.member.info) == ("ada", {"name": "Ada"})
    await rt.close()


async def test_what_the_handshake_says(server: FakeRealtime) -> None:
    url = server.url.replace("ws://", "http://") + "?a=1"
    async with connect(url, headers={"Cookie": "session=1", "host": "example.com"}):
        request = (await server.connection()).request
        assert request.target == "/realtime?a=1"
        assert request.headers["host"] == "example.com"
        assert request.headers["cookie"] == "session=1"
        assert request.headers["user-agent"] == "street_fast"


async def test_nobody_listens() -> None:
    async with http_server(None) as url:
        pass
    error = await refused(url)
    assert isinstance(error, CannotConnect)
    assert str(error).startswith(f"cannot connect to {url.partition('?')[0]}: nothing listens there; ")


async def test_tls_where_there_is_none(server: FakeRealtime) -> None:
    error = await refused(server.url.replace("ws://", "wss://"))
    assert isinstance(error, CannotConnect)
    assert "should the URL begin with ws://" in str(error)


async def test_no_such_host() -> None:
    assert isinstance(await refused("ws://" + "x" * 70 + ".example/"), CannotConnect)  # no label is so long


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (
            b"HTTP/1.1 403 Forbidden\r\nContent-Length: 13\r\n\r\nnot from here",
            r"answered 403 Forbidden: not from here$",
        ),
        (b"HTTP/1.1 503 Busy\r\n\r\nno length, so until the end", r"answered 503 Service Unavailable: no length, so"),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", r"404 Not Found; is the path right\?"),
        (b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n", r"another protocol than WebSocket$"),
        (b"+PONG\r\n", r"does not speak HTTP there"),
    ],
)
async def test_a_refusal_says_what_the_server_said(answer: bytes, sentence: str) -> None:
    async with http_server(answer) as url:
        error = await refused(url)
    assert isinstance(error, HandshakeRefused)
    assert pytest.approx(error.status) in (403, 503, 404, 101, 0)
    with pytest.raises(HandshakeRefused, match=sentence):
        raise error


async def test_a_server_that_hangs_up() -> None:
    async with http_server(b"") as url:
        error = await refused(url)
    assert isinstance(error, CannotConnect)
    assert "before there was an answer" in str(error)


async def test_a_server_that_says_nothing() -> None:
    async with http_server(None) as url:
        error = await refused(url, open_timeout_s=0.05)
    assert isinstance(error, CannotConnect)
    assert str(error).endswith("did not answer within 0.05 s")


async def test_a_server_that_does_not_welcome(server: FakeRealtime) -> None:
    server.welcome = False
    error = await refused(server.url, open_timeout_s=0.1)
    assert isinstance(error, CannotConnect)
    assert "did not welcome us (is it a Realtime?) within 0.1 s" in str(error)
    await asyncio.wait_for((await server.connection()).closed, 20)


@pytest.mark.parametrize(
    ("code", "reason", "sentence"),
    [
        (1013, "over capacity, retry in 3.4 s", "did not let us in: over capacity, retry in 3.4 s"),
        (1011, "", "did not let us in: internal error"),
        (4001, "who are you?", "who are you? (unauthorized)"),
    ],
)
async def test_closed_before_the_welcome(server: FakeRealtime, code: int, reason: str, sentence: str) -> None:
    server.welcome = False
    opening = asyncio.ensure_future(refused(server.url))
    (await server.connection()).ws.close(code, reason)
    error = await opening
    assert isinstance(error, RealtimeError if code == 4001 else CannotConnect)
    assert str(error).endswith(sentence)


async def test_tls(certificate: Certificate) -> None:
    server = FakeRealtime()
    await server.listen(ssl=certificate.server)
    url = f"wss://localhost:{server.port}/realtime"
    async with connect(url, ssl=certificate.client) as rt:
        peer = await server.connection()
        peer.send("ping")
        await peer.expect("pong")
        assert rt.state == "open"
    error = await refused(url)  # nobody vouches for that certificate
    assert isinstance(error, CannotConnect)
    assert "certificate" in str(error).lower()
    await server.close()


async def test_a_unix_socket(tmp_path: Path) -> None:
    server = FakeRealtime()
    path = str(tmp_path / "realtime.sock")
    await server.listen(uds=path)
    async with connect("ws://localhost/realtime", uds=path) as rt:
        assert (await server.connection()).request.headers["host"] == "localhost"
        assert rt.state == "open"
    await server.close()
    error = await refused("ws://localhost/realtime", uds=path + "x")
    assert path in str(error)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"url": "localhost/realtime"}, "must begin with ws://"),
        ({"url": "ftp://localhost"}, "must begin with ws://"),
        ({"url": "ws://"}, "has no host"),
        ({"url": "ws://u:secret@localhost/"}, "user name or password"),
        ({"url": "ws://localhost/#top"}, "fragment"),
        ({"url": "ws://localhost:99999/"}, "[Pp]ort"),
        ({"url": "ws://localhost/a b"}, "percent-encoded"),
        ({"url": "ws://localhost/ä"}, "percent-encoded"),
        ({"url": b"ws://localhost/"}, "must be a string"),
        ({"token": ""}, "token: must be"),
        ({"token": 3}, "token: must be"),
        ({"headers": {"X: y": "z"}}, "no name of a header"),
        ({"headers": {"Upgrade": "h2c"}}, "belongs to the handshake"),
        ({"headers": {"X": "a\r\nY: secret"}}, "the value of 'X'"),
        ({"headers": {"X": "☃"}}, "the value of 'X'"),
        ({"ssl": True}, "SSLContext"),
        ({"ssl": ssl.create_default_context()}, "wss://"),
        ({"uds": ""}, "Unix socket"),
        ({"open_timeout_s": 0}, "open_timeout_s=0"),
        ({"request_timeout_s": "5"}, "request_timeout_s='5'"),
        ({"queue_size": 0}, "queue_size=0"),
        ({"backoff_s": 3}, "backoff_s=3"),
        ({"backoff_s": (3, 2)}, r"backoff_s=\(3, 2\)"),
        ({"limits": 3}, "limits=3"),
    ],
)
async def test_options_that_make_no_sense(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigurationError, match=sentence) as caught:
        connect(**{"url": "ws://localhost/", **options})
    assert "secret" not in str(caught.value)


# --- tokens -------------------------------------------------------------------------------------------------------


async def let_in(peer: Peer, token: str) -> None:
    login = await peer.expect("auth", data={"token": token})
    peer.reply(login, member={"id": "ada"})


@pytest.mark.parametrize("kind", ["string", "function", "coroutine"])
async def test_a_token(server: FakeRealtime, kind: str) -> None:
    async def coroutine() -> str:
        await asyncio.sleep(0)
        return "one"

    tokens: dict[str, Any] = {"string": "one", "function": lambda: "one", "coroutine": coroutine}
    opening = asyncio.ensure_future(connect(server.url, token=tokens[kind]).__aenter__())
    await let_in(await server.connection(), "one")
    rt = await opening
    assert rt.member is not None
    assert rt.member.id == "ada"
    await rt.close()


async def test_a_token_that_is_refused(server: FakeRealtime) -> None:
    opening = asyncio.ensure_future(refused(server.url, token="one"))
    (await server.connection()).ws.close(4001, "the token has expired")
    error = await opening
    assert isinstance(error, RealtimeError)
    assert (error.code, error.message) == ("unauthorized", "the token has expired")
    assert len(server.peers) == 1


async def test_a_server_that_takes_no_tokens(server: FakeRealtime) -> None:
    opening = asyncio.ensure_future(refused(server.url, token="one"))
    peer = await server.connection()
    peer.refuse(await peer.expect("auth"), "bad_request", "this server takes no tokens")
    assert str(await opening) == f"{server.url} did not let us in: the login failed: this server takes no tokens"


async def test_a_second_token_may_be_better(server: FakeRealtime) -> None:
    tokens = iter(["old", "new"])
    opening = asyncio.ensure_future(connect(server.url, token=lambda: next(tokens), backoff_s=SOON).__aenter__())
    peer = await server.connection()
    peer.refuse(await peer.expect("auth"), "unauthorized")
    await let_in(await server.connection(), "new")
    rt = await opening
    assert rt.state == "open"
    await rt.close()


async def test_the_same_token_is_not_shown_twice(server: FakeRealtime) -> None:
    opening = asyncio.ensure_future(refused(server.url, token=lambda: "old", backoff_s=SOON))
    (await server.connection()).ws.close(4001, "the token has expired")
    error = await opening
    assert isinstance(error, RealtimeError)
    assert len(server.peers) == 1


async def test_a_token_function_that_fails(server: FakeRealtime) -> None:
    def fail() -> str:
        raise ZeroDivisionError("no token today")

    with pytest.raises(ZeroDivisionError, match="no token today"):
        await connect(server.url, token=fail)
    with pytest.raises(RealtimeError, match="returned NoneType, and no token"):
        await connect(server.url, token=lambda: None)  # type: ignore[arg-type, return-value]
    assert server.peers == []


async def test_a_token_function_that_fails_later_is_called_again(server: FakeRealtime) -> None:
    calls = 0

    async def token() -> str:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError("the issuer is down")
        return f"token {calls}"

    opening = asyncio.ensure_future(connect(server.url, token=token, backoff_s=SOON).__aenter__())
    peer = await server.connection()
    await let_in(peer, "token 1")
    rt = await opening
    peer.ws.abort()
    await let_in(await server.connection(), "token 3")
    await until(lambda: rt.state == "open")
    await rt.close()


async def test_the_token_is_renewed_while_connected(server: FakeRealtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("street_fast.client.protocol._RENEW_LEAST_S", 0.01)
    tokens = iter(["one", "two"])
    opening = asyncio.ensure_future(connect(server.url, token=lambda: next(tokens)).__aenter__())
    peer = await server.connection()
    login = await peer.expect("auth")
    peer.reply(login, member={"id": "ada"}, expiresAt=1000 * time.time() + 100)
    rt = await opening
    renewal = await peer.expect("auth", data={"token": "two"})
    peer.reply(renewal, member={"id": "ada"})
    assert rt.state == "open"
    await rt.close()


# --- asking -------------------------------------------------------------------------------------------------------


async def test_publish(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        publishing = asyncio.ensure_future(rt.publish("chat", Chat("hello")))
        message = await peer.expect("publish", channel="chat", data={"text": "hello"})
        assert len(message["key"]) >= 16
        peer.reply(message, ts=5, position="e:1:t", duplicate=True)
        assert await publishing == Published(5, "e:1:t", True)
        publishing = asyncio.ensure_future(rt.publish("chat", None, key="mine"))
        message = await peer.expect("publish", channel="chat", data=None, key="mine")
        peer.refuse(message, "forbidden", "only readers here")
        with pytest.raises(RealtimeError, match=r"^only readers here \(forbidden\)$") as caught:
            await publishing
        assert (caught.value.code, caught.value.message) == ("forbidden", "only readers here")
        with pytest.raises(TypeError):
            await rt.publish("chat", object())
        for wrong in ("", None, 3):
            with pytest.raises(ConfigurationError, match="channel="):
                await rt.publish(wrong, 1)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="key=''"):
            await rt.publish("chat", 1, key="")
        await peer.expect_nothing()


async def test_presence(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        asking = asyncio.ensure_future(rt.presence("chat"))
        peer.reply(await peer.expect("presence"), members=[{"memberId": "ada", "info": {"x": 1}}, {"memberId": "ben"}])
        presence = await asking
        assert (presence.count, presence.members) == (2, (Present("ada", {"x": 1}), Present("ben")))
        asking = asyncio.ensure_future(rt.presence("chat"))
        peer.reply(await peer.expect("presence"), memberCount=5_000)
        presence = await asking
        assert (presence.count, presence.members) == (5_000, None)


async def test_history(server: FakeRealtime, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(server) as (rt, peer):
        asking = asyncio.ensure_future(rt.history("chat", limit=2, since="e:1:t", type=Chat))
        message = await peer.expect("history", data={"limit": 2, "since": "e:1:t"})
        kept = [
            {"type": "message", **written("chat", data, f"e:{offset}:t")}
            for offset, data in ((2, {"text": "hello"}), (3, "not this"))
        ]
        peer.reply(message, messages=kept, position="e:3:t", recovered=True)
        history = await asking
        assert [message.data for message in history.messages] == [Chat("hello")]
        assert (history.messages[0].position, history.position, history.recovered) == ("e:2:t", "e:3:t", True)
        assert "left out" in caplog.text
        with pytest.raises(ConfigurationError, match="since"):
            await rt.history("chat", since="yesterday")
        with pytest.raises(ConfigurationError, match="limit"):
            await rt.history("chat", limit=0)


async def test_an_answer_that_cannot_be_read(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        asking = asyncio.ensure_future(rt.presence("chat"))
        peer.reply(await peer.expect("presence"), members=3)
        with pytest.raises(RealtimeError, match="cannot be read") as caught:
            await asking
        assert caught.value.code == "unknown"


async def test_no_answer_in_time(server: FakeRealtime) -> None:
    async with connected(server, request_timeout_s=0.05) as (rt, peer):
        with pytest.raises(RealtimeError, match="it may have been published or not") as caught:
            await rt.publish("chat", 1)
        assert caught.value.code == "unknown"
        message = await peer.expect("publish")
        peer.reply(message, ts=1)


async def test_typing_and_events_of_the_application(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        assert rt.typing("chat", True) is True
        assert rt.emit("move", {"x": 1}) is True
        assert rt.emit("nudge", channel="chat") is True
        assert await peer.receive() == {"type": "typing", "channel": "chat", "data": {"typing": True}}
        assert await peer.receive() == {"type": "move", "data": {"x": 1}}
        assert await peer.receive() == {"type": "nudge", "channel": "chat"}
        with pytest.raises(ConfigurationError, match="event='publish'"):
            rt.emit("publish")


async def test_a_request_that_is_cancelled(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        publishing = asyncio.ensure_future(rt.publish("chat", 1))
        message = await peer.expect("publish")
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        peer.reply(message, ts=1)
        peer.ws.abort()
        await (await server.connection()).expect_nothing()


async def test_much_at_once_waits_for_the_transport(server: FakeRealtime) -> None:
    """It is not the server that is too slow for us, although it does not read and takes only so much."""
    async with connected(server, limits=Limits(write_soft_bytes=4_000, write_hard_bytes=50_000)) as (rt, peer):
        rt._link._ws.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 32_768)
        peer.ws.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32_768)
        peer.ws.pause_reading()
        publishing = [asyncio.ensure_future(rt.publish("chat", "x" * 8_000)) for _ in range(40)]
        await asyncio.sleep(0.05)
        peer.ws.resume_reading()
        for number in range(40):
            peer.reply(await peer.expect("publish"), ts=number)
        assert [published.ts for published in await asyncio.gather(*publishing)] == list(range(40))
        assert len(server.peers) == 1


# --- subscriptions ------------------------------------------------------------------------------------------------


async def subscribed(rt: RealtimeClient, peer: Peer, channel: str = "chat", **options: Any) -> Subscription[Any]:
    subscription = rt.subscribe(channel, **options)
    await peer.subscribe(channel, position="e:0:0", recovered=True, messages=[])
    return await subscription


async def next_of(subscription: Subscription[Any]) -> Received[Any]:
    return await asyncio.wait_for(subscription.__anext__(), 20)


async def test_messages_have_the_type_that_was_asked_for(
    server: FakeRealtime, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(server) as (rt, peer):
        subscription = await subscribed(rt, peer, type=Chat)
        assert (subscription.channel, subscription.position) == ("chat", None)
        peer.message("chat", {"text": "hello"}, "e:1:t", from_="ada")
        peer.message("chat", {"txt": "what?"}, "e:2:t")
        peer.message("chat", {"text": "bye"}, "e:3:t")
        assert await next_of(subscription) == Received(Chat("hello"), "chat", 1_764_000_000_000, "ada", "e:1:t")
        assert subscription.position == "e:1:t"
        assert await next_of(subscription) == Received(Chat("bye"), "chat", 1_764_000_000_000, None, "e:3:t")
        assert (subscription.misfits, subscription.gaps) == (1, 0)
        assert "a message of channel 'chat' is left out: data does not fit" in caplog.text
        with pytest.raises(ConfigurationError, match="type="):
            rt.subscribe("chat", type=object)


async def test_the_end_of_the_with_is_the_end_of_the_subscription(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        answering = asyncio.ensure_future(peer.subscribe(position="e:0:0"))
        async with rt.subscribe("chat") as subscription:
            await answering
            peer.message("chat", 1)
            assert (await next_of(subscription)).data == 1
            peer.message("chat", 2)
            peer.send("ping")
            await peer.expect("pong")
        await peer.expect("unsubscribe", channel="chat")
        assert [message async for message in subscription] == []
        assert repr(subscription) == "<Subscription 'chat' ended>"


async def test_a_break_leaves_the_channel_when_nobody_can_read_on(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):

        async def serve() -> None:
            await peer.subscribe()
            for number in range(3):
                peer.message("chat", number)

        serving = asyncio.ensure_future(serve())
        async for message in rt.subscribe("chat"):
            assert message.data == 0
            break
        await serving
        gc.collect()
        await peer.expect("unsubscribe", channel="chat")


async def subscribe(rt: RealtimeClient, way: str) -> None:
    if way == "with":
        async with rt.subscribe("chat"):
            pytest.fail("it was refused")
    elif way == "await":
        await rt.subscribe("chat")
    else:
        async for _ in rt.subscribe("chat"):
            pytest.fail("it was refused")


async def test_a_subscription_that_is_refused(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):

        async def refuse() -> None:
            peer.refuse(await peer.expect("subscribe"), "forbidden", "not you")

        for way in ("with", "await", "for"):
            refusing = asyncio.ensure_future(refuse())
            with pytest.raises(RealtimeError, match=r"^not you \(forbidden\)$"):
                await subscribe(rt, way)
            await refusing
        await peer.expect_nothing()


async def test_a_subscription_that_is_not_answered(server: FakeRealtime) -> None:
    async with connected(server, request_timeout_s=0.05) as (rt, peer):
        with pytest.raises(RealtimeError, match="could not be subscribed to within") as caught:
            await rt.subscribe("chat")
        assert caught.value.code == "unavailable"
        await peer.expect("subscribe")
        await peer.expect("unsubscribe")


async def test_waiting_for_a_subscription_may_be_cancelled(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):

        async def enter() -> None:
            async with rt.subscribe("chat"):
                pytest.fail("nobody has answered")

        entering = asyncio.ensure_future(enter())
        await peer.expect("subscribe")
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        await peer.expect("unsubscribe")


async def test_a_cancelled_read_loses_nothing(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        subscription = await subscribed(rt, peer)
        for number in range(20):
            reading = asyncio.ensure_future(subscription.__anext__())
            await asyncio.sleep(0)
            peer.message("chat", number)
            if number % 2:
                await asyncio.sleep(0)
                reading.cancel()
            else:
                await until(lambda: len(subscription._reader.feed.items) > 0 or reading.done())  # noqa: B023
                reading.cancel()
            try:
                received = await reading
            except asyncio.CancelledError:
                received = await next_of(subscription)
            assert received.data == number


async def test_two_tasks_cannot_read_one_subscription(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        subscription = await subscribed(rt, peer)
        reading = asyncio.ensure_future(next_of(subscription))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="two tasks read the subscription to 'chat'"):
            await subscription.__anext__()
        peer.message("chat", 1)
        assert (await reading).data == 1


async def test_handlers(server: FakeRealtime, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    def plain(message: Received[int]) -> None:
        seen.append(("plain", message.data))
        if message.data == 1:
            raise ZeroDivisionError

    async def slow(message: Received[int]) -> None:
        await asyncio.sleep(0.01 if message.data == 0 else 0)
        seen.append(("slow", message.data))

    async with connected(server) as (rt, peer):
        rt.subscribe("chat", plain, type=int)  # nobody holds it, and it stays
        gc.collect()
        await peer.subscribe()
        subscription = rt.subscribe("chat", slow, type=int)
        with pytest.raises(RuntimeError, match="go to its handler"):
            aiter(subscription)
        for number in range(3):
            peer.message("chat", number)
        await until(lambda: len(seen) == 6)
        for name in ("plain", "slow"):
            assert [number for who, number in seen if who == name] == [0, 1, 2]
        assert caplog.text.count("the handler of channel 'chat' failed") == 1
        subscription.unsubscribe()
        peer.message("chat", 3)
        await until(lambda: ("plain", 3) in seen)
        peer.send("unsubscribed", channel="chat", data={"code": "forbidden", "message": "out"})
        await until(lambda: "the subscription to 'chat' is over: out (forbidden)" in caplog.text)
        assert ("slow", 3) not in seen
        with pytest.raises(ConfigurationError, match="handler=3"):
            rt.subscribe("chat", 3)  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", ["plain", "coroutine", "failing"])
async def test_gaps_are_told_in_order(server: FakeRealtime, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []

    def plain(gap: Gap) -> None:
        seen.append(gap)
        if kind == "failing":
            raise ZeroDivisionError

    async def coroutine(gap: Gap) -> None:
        await asyncio.sleep(0.01)
        seen.append(gap)

    async with connected(server) as (rt, peer):
        subscription = await subscribed(rt, peer, on_gap=coroutine if kind == "coroutine" else plain)
        peer.message("chat", 1, "e:1:t")
        peer.send("gap", channel="chat", data={"position": "e:4:t"})
        peer.message("chat", 5, "e:5:t")
        seen.append((await next_of(subscription)).data)
        seen.append((await next_of(subscription)).data)
        assert seen == [1, Gap("chat", "e:4:t", 3), 5]
        assert subscription.gaps == 1
        assert ("on_gap of channel 'chat' failed" in caplog.text) == (kind == "failing")
        with pytest.raises(ConfigurationError, match="on_gap=3"):
            rt.subscribe("chat", on_gap=3)  # type: ignore[call-overload]


async def test_a_gap_that_nobody_asks_about_is_logged(server: FakeRealtime, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(server) as (rt, peer):
        subscription = await subscribed(rt, peer)
        peer.send("gap", channel="chat", data={"position": "e:4:t"})
        peer.send("gap", channel="chat", data={"position": "f:1:t"})
        peer.message("chat", 2, "f:2:t")
        assert (await next_of(subscription)).data == 2
        assert "4 messages are missing in channel 'chat'" in caplog.text
        assert "messages may be missing in channel 'chat'" in caplog.text


async def test_unsubscribing_while_a_gap_is_told(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        subscription = await subscribed(rt, peer, on_gap=lambda gap: subscription.unsubscribe())
        peer.message("chat", 1, "e:2:t")
        assert [message async for message in subscription] == []


async def test_a_position_of_an_earlier_run(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        subscription = rt.subscribe("chat", since="e:7:t")
        assert subscription.position == "e:7:t"
        message = await peer.subscribe(
            position="e:8:t", recovered=True, messages=[{"type": "message", **written("chat", 8, "e:8:t")}]
        )
        assert message["since"] == "e:7:t"
        assert (await next_of(subscription)).data == 8
        with pytest.raises(ConfigurationError, match="since: position 'e:8'"):
            rt.subscribe("chat", since="e:8")


async def test_a_token_for_a_channel(server: FakeRealtime, caplog: pytest.LogCaptureFixture) -> None:
    tokens = iter(["one", ZeroDivisionError(), "two"])

    async def token() -> str:
        token = next(tokens)
        if isinstance(token, Exception):
            raise token
        return token

    async with connected(server) as (rt, peer):
        subscription = rt.subscribe("chat", token=token)
        await peer.expect("subscribe", token="one")
        peer.ws.abort()
        peer = await server.connection()
        await until(lambda: "the token function failed" in caplog.text)
        assert rt.state == "open"
        assert not subscription._reader.feed.ended


async def test_other_events(server: FakeRealtime, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Any] = []
    client = connect(server.url, backoff_s=SOON)
    client.on("state", lambda event: seen.append(event.data))

    @client.on("presence")
    async def presence(event: Received[Any]) -> None:
        await asyncio.sleep(0.01)
        seen.append((event.type, event.channel, event.data))

    @client.on("score", type=int)
    def score(event: Received[int]) -> None:
        seen.append(event.data)
        if event.data == 1:
            raise ZeroDivisionError

    def everything(event: Received[Any]) -> None:
        seen.append(f"* {event.type}")

    async with client as rt:
        peer = await server.connection()
        await until(lambda: "open" in seen)
        rt.on("*", everything)
        seen.clear()
        peer.send("presence", channel="chat", data={"memberCount": 1})
        peer.send("score", data=1)
        peer.send("score", data="many")
        await until(lambda: "left out" in caplog.text and seen[-1] == "* score")
        assert seen == [("presence", "chat", {"memberCount": 1}), "* presence", 1, "* score", "* score"]
        assert caplog.text.count("a handler of 'score' failed") == 1
        rt.off("*", everything)
        rt.off("*", everything)
        rt.off("score", score)
        rt.off("presence", presence)
        peer.send("score", data=2)
        peer.ws.abort()
        await server.connection()
        await until(lambda: rt.state == "open")
        with pytest.raises(ConfigurationError, match="messages go to subscribe"):
            rt.on("message", everything)
        with pytest.raises(ConfigurationError, match="event=''"):
            rt.on("", everything)
        with pytest.raises(ConfigurationError, match="handler=3"):
            rt.on("score", 3)  # type: ignore[call-overload]
    assert seen[5:] == ["reconnecting", "open", "closed"]


# --- coming back --------------------------------------------------------------------------------------------------


async def test_a_lost_connection_loses_nothing(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        subscription = await subscribed(rt, peer)
        peer.message("chat", 1, "e:1:t")
        assert (await next_of(subscription)).data == 1
        publishing = asyncio.ensure_future(rt.publish("chat", 3))
        sent = await peer.expect("publish")
        peer.ws.abort()
        peer = await server.connection()
        missed = [{"type": "message", **written("chat", 2, "e:2:t")}]
        message = await peer.subscribe(position="e:2:t", recovered=True, messages=missed)
        assert message["since"] == "e:1:t"
        assert await peer.receive() == sent
        peer.reply(sent, ts=3, position="e:3:t")
        peer.message("chat", 3, "e:3:t")
        assert (await publishing).position == "e:3:t"
        assert [(await next_of(subscription)).data for _ in range(2)] == [2, 3]


async def test_a_server_that_falls_silent_is_left(server: FakeRealtime) -> None:
    server.welcome = False
    opening = asyncio.ensure_future(connect(server.url, backoff_s=SOON).__aenter__())
    peer = await server.connection()
    peer.welcome(heartbeat_ms=-9_900)  # ten seconds of grace are added
    rt = await opening
    again = await server.connection()
    again.welcome()
    assert (await peer.closed)[0] == 1006
    await until(lambda: rt.state == "open")
    await rt.close()


async def test_a_connection_that_leads_to_nothing_is_given_up(server: FakeRealtime) -> None:
    async with connected(server, open_timeout_s=1) as (rt, peer):
        server.welcome = False
        peer.ws.abort()
        silent = await server.connection()
        server.welcome = True
        await asyncio.wait_for(silent.closed, 20)
        await server.connection()
        await until(lambda: rt.state == "open")


@pytest.mark.parametrize(("code", "reason"), [(1000, "done"), (4001, "expired"), (4029, "too fast"), (1008, "")])
async def test_a_close_for_good(server: FakeRealtime, code: int, reason: str) -> None:
    async with connected(server) as (rt, peer):
        rt.on("state", print)
        subscription = await subscribed(rt, peer)
        publishing = asyncio.ensure_future(rt.publish("chat", 1))
        reading = asyncio.ensure_future(next_of(subscription))
        await peer.expect("publish")
        peer.ws.close(code, reason)
        for waiting in (publishing, reading):
            with pytest.raises(ConnectionClosed) as caught:
                await waiting
            assert caught.value.close_code == code
        assert rt.state == "closed"
        with pytest.raises(ConnectionClosed):
            await next_of(subscription)
        with pytest.raises(ConnectionClosed):
            await rt.history("chat")
        await until(lambda: not rt._link._tasks and rt._link._runner.done())


async def test_without_reconnect(server: FakeRealtime) -> None:
    async with connected(server, reconnect=False) as (rt, peer):
        subscription = await subscribed(rt, peer)
        peer.ws.abort()
        with pytest.raises(ConnectionClosed):
            await next_of(subscription)
        assert rt.state == "closed"


async def test_a_server_that_is_away_for_a_while(server: FakeRealtime, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with connected(server) as (rt, peer):
        subscription = await subscribed(rt, peer)
        port = server.port
        await server.close(politely=True)
        assert (await peer.closed)[0] == 1012
        await until(lambda: caplog.text.count("cannot connect") >= 2)
        assert rt.state == "reconnecting"
        publishing = asyncio.ensure_future(rt.publish("chat", 1))
        assert rt.typing("chat", True) is False
        again = FakeRealtime()
        await again.listen(port)
        peer = await again.connection()
        await peer.subscribe(position="f:3:t", recovered=False, messages=[])
        peer.reply(await peer.expect("publish"), ts=1)
        assert (await publishing).ts == 1
        peer.message("chat", 4, "f:4:t")
        assert (await next_of(subscription)).data == 4
        assert subscription.gaps == 1
        await rt.close()
        await again.close()


async def test_a_server_that_forbids_to_come_back(server: FakeRealtime) -> None:
    answer = b"HTTP/1.1 403 Forbidden\r\nContent-Length: 2\r\n\r\nno"
    async with http_server(answer) as url, connected(server) as (rt, peer):
        rt._link._target = rt._link._target._replace(port=int(url.rpartition(":")[2].partition("/")[0]))
        subscription = await subscribed(rt, peer)
        peer.ws.abort()
        with pytest.raises(ConnectionClosed, match="answered 403 Forbidden: no"):
            await next_of(subscription)


async def test_a_mistake_of_ours_ends_the_client(server: FakeRealtime, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(failure: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(client_link, "_loss_of", fail)
    async with http_server(b"") as url:
        with pytest.raises(ConnectionClosed, match="ZeroDivisionError"):
            await connect(url)


async def test_binary_messages_and_garbage_are_ignored(server: FakeRealtime, caplog: pytest.LogCaptureFixture) -> None:
    async with connected(server) as (rt, peer):
        peer.ws.send(b"\x00")
        peer.ws.send("garbage")
        peer.send("ping")
        await peer.expect("pong")
        assert rt.state == "open"
        assert "a binary message" in caplog.text
        assert "cannot be read" in caplog.text


# --- readers that are slow ----------------------------------------------------------------------------------------


async def test_reading_pauses_while_nobody_reads(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        subscription = await subscribed(rt, peer, queue_size=10)
        for number in range(100):
            peer.message("chat", number, f"e:{number + 1}:t")
        await until(lambda: rt._link._paused)
        held = len(subscription._reader.feed.items)
        assert held == 10
        assert [(await next_of(subscription)).data for _ in range(100)] == list(range(100))
        assert not rt._link._paused
        assert subscription.gaps == 0


async def test_a_subscription_that_has_ended_holds_nobody_up(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        subscription = await subscribed(rt, peer, queue_size=1)
        publishing = asyncio.ensure_future(rt.publish("elsewhere", 1))  # so reading goes on
        message = await peer.expect("publish")
        peer.message("chat", 1, "e:1:t")
        peer.message("chat", 2, "e:2:t")
        peer.send("unsubscribed", channel="chat", data={"code": "forbidden", "message": "out"})
        peer.reply(message, ts=1)
        await publishing
        assert not rt._link._paused
        assert [(await next_of(subscription)).data for _ in range(2)] == [1, 2]
        with pytest.raises(RealtimeError, match="out"):
            await next_of(subscription)


async def test_a_reader_that_publishes_gets_its_answer(server: FakeRealtime) -> None:
    """It comes behind the messages that are not read yet."""
    async with connected(server) as (rt, peer):
        subscription = await subscribed(rt, peer, queue_size=5)
        for number in range(20):
            peer.message("chat", number, f"e:{number + 1}:t")

        async def answer() -> None:
            for number in range(20):
                peer.reply(await peer.expect("publish"), ts=number)

        answering = asyncio.ensure_future(answer())
        for number in range(20):
            assert (await next_of(subscription)).data == number
            assert (await rt.publish("elsewhere", number)).ts == number
        await answering


async def test_far_too_much_is_left_to_the_history(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        subscription = await subscribed(rt, peer, queue_size=2)
        publishing = asyncio.ensure_future(rt.publish("elsewhere", 1))  # so reading goes on
        message = await peer.expect("publish")
        for number in range(1, 31):
            peer.message("chat", number, f"e:{number}:t")
        peer.reply(message, ts=1)
        await publishing
        seen = [(await next_of(subscription)).data for _ in range(16)]
        kept = [{"type": "message", **written("chat", number, f"e:{number}:t")} for number in range(17, 31)]
        message = await peer.subscribe(position="e:30:t", recovered=True, messages=kept)
        assert message["since"] == "e:16:t"
        seen += [(await next_of(subscription)).data for _ in range(14)]
        assert seen == list(range(1, 31))
        assert subscription.gaps == 0


async def test_slow_handlers_of_events_pause_the_reading(server: FakeRealtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("street_fast.client.client._UNREAD_EVENTS", 4)
    go_on = asyncio.Event()
    seen: list[int] = []

    async def handler(event: Received[int]) -> None:
        await go_on.wait()
        seen.append(event.data)

    async with connected(server) as (rt, peer):
        rt.on("score", handler)
        peer.send("ping")
        await peer.expect("pong")
        for number in range(50):
            peer.send("score", data=number)
        await until(lambda: rt._link._paused)
        assert len(rt._events) <= 5
        go_on.set()
        await until(lambda: len(seen) == 50)
        assert seen == list(range(50))


# --- leaving ------------------------------------------------------------------------------------------------------


async def test_close_ends_the_iterations_and_the_requests(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):
        subscription = await subscribed(rt, peer)
        peer.message("chat", 1)
        await until(lambda: subscription._reader.feed.items)
        publishing = asyncio.ensure_future(rt.publish("chat", 1))
        await peer.expect("publish")
        await asyncio.gather(rt.close(), rt.close())
        assert [message.data async for message in subscription] == [1]
        with pytest.raises(ConnectionClosed, match="closed by the application"):
            await publishing
        assert await peer.closed == (1000, "")
        subscription.unsubscribe()
        with pytest.raises(ConnectionClosed):
            await rt.subscribe("chat")


async def test_close_while_there_is_no_connection(server: FakeRealtime) -> None:
    states: list[str] = []
    rt = await connect(server.url, backoff_s=(60, 60))
    rt.on("state", lambda event: states.append(event.data))
    peer = await server.connection()
    subscription = await subscribed(rt, peer)
    peer.ws.abort()
    await until(lambda: rt.state == "reconnecting")
    await rt.close()
    assert states == ["reconnecting", "closed"]
    assert [message async for message in subscription] == []


async def test_close_while_it_connects(server: FakeRealtime) -> None:
    server.welcome = False
    client = connect(server.url)
    opening = asyncio.ensure_future(client.__aenter__())
    peer = await server.connection()
    await client.close()
    with pytest.raises(ConnectionClosed):
        await opening
    await asyncio.wait_for(peer.closed, 20)


async def test_close_from_a_handler(server: FakeRealtime) -> None:
    async with connected(server) as (rt, peer):

        async def handler(message: Received[Any]) -> None:
            await rt.close()

        rt.subscribe("chat", handler)
        await peer.subscribe()
        peer.message("chat", 1)
        assert await asyncio.wait_for(peer.closed, 20) == (1000, "")


async def test_a_server_that_does_not_answer_the_close(server: FakeRealtime) -> None:
    rt = await connect(server.url, limits=Limits(close_timeout_s=0.1))
    peer = await server.connection()
    peer.ws.pause_reading()
    await asyncio.wait_for(rt.close(), 20)
    peer.ws.resume_reading()
    await peer.closed


async def test_a_close_that_is_cancelled_closes_at_once(server: FakeRealtime) -> None:
    rt = await connect(server.url)
    peer = await server.connection()
    peer.ws.pause_reading()
    closing = asyncio.ensure_future(rt.close())
    await asyncio.sleep(0.01)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(closing, 20)
    peer.ws.resume_reading()
    await asyncio.wait_for(peer.closed, 20)


@pytest.mark.parametrize("turns", range(0, 40, 3))
async def test_cancelled_at_any_moment(server: FakeRealtime, turns: int) -> None:
    """After so many turns of the loop: while dialling, shaking hands, logging in, subscribing, or in use."""

    async def use() -> None:
        async with connect(server.url, token=lambda: "one") as rt, rt.subscribe("chat") as subscription:
            async for _ in subscription:
                await rt.publish("chat", 1)

    async def serve() -> None:
        peer = await server.connection()
        await let_in(peer, "one")
        await peer.subscribe()
        peer.message("chat", 1)
        peer.reply(await peer.expect("publish"), ts=1)

    serving = asyncio.ensure_future(serve())
    using = asyncio.ensure_future(use())
    for _ in range(turns):
        await asyncio.sleep(0)
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(using, 20)
    serving.cancel()
    await asyncio.wait({serving})
    await until(lambda: all(peer.closed.done() for peer in server.peers))


async def test_a_token_function_may_be_cancelled() -> None:
    started = asyncio.Event()

    async def token() -> str:
        started.set()
        await asyncio.sleep(60)
        return "never"

    opening = asyncio.ensure_future(connect("ws://127.0.0.1:1/", token=token).__aenter__())
    await started.wait()
    opening.cancel()
    with pytest.raises(asyncio.CancelledError):
        await opening


async def test_a_slow_token_function_is_not_waited_for() -> None:
    async def token() -> str:
        await asyncio.sleep(60)
        return "never"

    with pytest.raises(CannotConnect, match="the token function took longer than"):
        await connect("ws://127.0.0.1:1/", token=token, open_timeout_s=0.02)


async def test_a_token_function_that_is_cancelled_from_within() -> None:
    def token() -> str:
        raise asyncio.CancelledError

    with pytest.raises(ConnectionClosed, match="was cancelled"):
        await connect("ws://127.0.0.1:1/", token=token)

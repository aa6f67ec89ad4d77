"""HttpServer on real sockets, over asyncio and uvloop: listening, routes, floods, and the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys

import pytest

from street_fast.errors import ConfigurationError, ListenError
from street_fast.handshake import Upgrade, accept
from street_fast.http_server import HttpServer
from street_fast.limits import DEFAULT_LIMITS, Limits
from street_fast.request import Request, Response
from tests.http_harness import (
    Bench,
    exchange,
    handshake,
    head,
    on_loop,
    parse,
    serving,
    settle,
    text,
    until,
)

__all__ = ["on_loop"]  # a fixture

CLOSE = "Connection: close"


# --- options ---


@pytest.mark.parametrize(
    "path",
    ["", "a", "*", "/a?b", "/a#b", "/a/{id}", "/a}", "/a/*", "/a%20b", "/a\nb", "/a\x7f", None, 5],
)
def test_a_path_that_is_none(path):
    server = HttpServer()
    for add in (server.get, server.post, server.upgrade):
        with pytest.raises(ConfigurationError, match="path="):
            add(path, text("x"))
    for decorator in (server.get, server.post):
        with pytest.raises(ConfigurationError, match="path="):
            decorator(path)


def test_a_decorator_without_parentheses():
    with pytest.raises(ConfigurationError, match=r"@http\.post\('/path'\)"):
        HttpServer().post(text("x"))


def test_limits_that_are_none():
    with pytest.raises(ConfigurationError, match=r"limits=\{\}"):
        HttpServer(limits={})
    assert HttpServer(limits=None).limits is DEFAULT_LIMITS


def test_a_handler_that_is_none():
    server = HttpServer()
    for add in (server.get, server.post, server.upgrade):
        with pytest.raises(ConfigurationError, match="must be callable"):
            add("/", 5)


def test_a_path_twice():
    server = HttpServer()
    for add in (server.get, server.post, server.upgrade):
        add("/", text("x"))
        with pytest.raises(ConfigurationError, match="already"):
            add("/", text("y"))


def test_routes_as_decorators():
    server = HttpServer()

    @server.get("/a")
    @server.post("/a")
    def handler(_request: Request) -> str:
        return "a"

    assert handler.__name__ == "handler"
    assert server.get("/b", handler) is handler


@pytest.mark.parametrize("port", [-1, 65_536, "80", None, True, 80.0])
async def test_a_port_that_is_none(port):
    server = HttpServer()
    with pytest.raises(ConfigurationError, match=r"listen\(port="):
        await server.listen(port=port)
    await server.close()


@pytest.mark.parametrize(
    "option", [{"host": 5}, {"host": ["::"]}, {"ssl": True}, {"ssl": "cert.pem"}, {"uds": 5}, {"uds": b"/x"}]
)
async def test_addresses_that_are_none(option):
    server = HttpServer()
    [name] = option
    with pytest.raises(ConfigurationError, match=rf"listen\({name}=.*must be"):
        await server.listen(**{"port": 0, **option})
    assert not server.sockets
    await server.close()


async def test_addresses_are_for_people(tmp_path):
    server = HttpServer()
    assert server.addresses == ""
    await server.listen(port=0)
    await server.listen(uds=tmp_path / "s")
    assert server.addresses == f"127.0.0.1:{server.port}, {str(tmp_path / 's')!r}"
    await server.close()


# --- startup ---


async def test_startup_hooks_run_once_and_before_anybody_can_connect():
    server = HttpServer()
    seen = []

    async def first() -> None:
        seen.append(("first", len(server.sockets)))
        await asyncio.sleep(0)

    async def second() -> None:
        seen.append(("second", len(server.sockets)))

    server.on_startup(first)
    server.on_startup(second)
    await asyncio.gather(server.listen(port=0), server.listen(port=0))
    assert seen == [("first", 0), ("second", 0)]
    await server.close()


async def test_a_startup_hook_that_fails_is_tried_again():
    server = HttpServer()
    broken = [ConnectionError("no broker"), None]
    seen = []

    async def before() -> None:
        seen.append("before")

    async def hook() -> None:
        seen.append("hook")
        error = broken.pop(0)
        if error is not None:
            raise error

    server.on_startup(before)
    server.on_startup(hook)
    with pytest.raises(ConnectionError, match="no broker"):
        await server.listen(port=0)
    assert not server.sockets
    assert not server.accepting
    await server.listen(port=0)
    assert seen == ["before", "hook", "hook"]
    await server.close()


async def test_a_bad_address_starts_nothing():
    server = HttpServer()
    seen = []
    server.on_startup(lambda: seen.append("hook"))
    with pytest.raises(ConfigurationError):
        await server.listen(port=-1)
    assert seen == []
    await server.close()


# --- serving ---


def test_requests_and_answers(on_loop):
    server = HttpServer()
    server.get("/", text("hello"))

    @server.post("/echo")
    async def echo(request: Request) -> bytes:
        await asyncio.sleep(0)
        return request.body

    async def main():
        async with serving(server):
            data = await exchange(
                server,
                head() + head("HEAD") + head("POST", "/echo", "Content-Length: 200000"),
                b"x" * 200_000 + head("GET", "/nothing") + head("GET", "/", CLOSE),
            )
        return parse(data, ["GET", "HEAD", "POST", "GET", "GET"])

    answers = on_loop(main)
    assert [answer.status for answer in answers] == [200, 200, 200, 404, 200]
    assert answers[2].body == b"x" * 200_000
    assert answers[4].closes


def test_a_large_answer_is_sent_whole(on_loop):
    server = HttpServer()
    server.get("/", lambda _request: bytes(5_000_000))

    async def main():
        async with serving(server):
            return await exchange(server, head("GET", "/", CLOSE), end=True)

    (answer,) = parse(on_loop(main))
    assert len(answer.body) == 5_000_000


def test_the_last_answer_behind_a_large_one(on_loop):
    """It is sent, and the connection closed, when the transport says that it is empty again."""
    server = HttpServer()
    server.get("/", lambda _request: bytes(10_000_000))
    server.get("/last", text("last"))

    async def main():
        async with serving(server):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1_000)
            writer.write(head() + head("GET", "/last", CLOSE))
            await asyncio.sleep(0.01)  # the kernels are full
            data = await reader.read()
            writer.close()
            return data

    answers = parse(on_loop(main))
    assert [len(answer.body) for answer in answers] == [10_000_000, 4]


def test_a_refusal_is_read_even_by_a_client_that_goes_on_sending(on_loop):
    """Closing on unread bytes would reset the connection, and the answer with it."""
    server = HttpServer()

    async def main():
        async with serving(server):
            return [parse(await exchange(server, b"GET /" + b"x" * 2_000_000)) for _ in range(5)]

    for (answer,) in on_loop(main):
        assert answer.status == 414


def test_the_request_knows_its_client(on_loop):
    server = HttpServer()
    server.get("/", lambda request: list(request.client))

    async def main():
        async with serving(server):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head("GET", "/", CLOSE))
            (answer,) = parse(await reader.read())
            address = writer.get_extra_info("sockname")
            writer.close()
            return answer, address

    answer, (host, port) = on_loop(main)
    assert answer.body == f'["{host}",{port}]'.encode()


class Echo(asyncio.Protocol):
    """What a WebSocket server puts on the transport that it takes over."""

    def __init__(self, transport: asyncio.Transport, first: bytes) -> None:
        self.transport = transport
        transport.set_protocol(self)
        transport.write(first)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    def eof_received(self) -> None:
        self.transport.close()


@pytest.mark.parametrize("later", [False, True])
def test_an_upgrade_takes_the_connection(on_loop, later):
    server = HttpServer()
    server.get("/", text("hello"))

    def take(upgrade: Upgrade) -> None:
        transport, tail = upgrade.take_over()
        Echo(transport, accept(upgrade.request).head + tail)
        assert server.connection_count == 0

    def handler(upgrade: Upgrade) -> None:
        if later:
            asyncio.get_running_loop().call_later(0.01, take, upgrade)
        else:
            take(upgrade)

    server.upgrade("/ws", handler)

    async def main():
        async with serving(server):
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head() + handshake("/ws") + b"first")
            data = await reader.readuntil(b"first")
            writer.write(b"second")
            assert await reader.readexactly(6) == b"second"
            writer.write_eof()
            assert await reader.read() == b""
            writer.close()
            return data

    first, second = on_loop(main).split(b"HTTP/1.1 101 ")
    assert first.endswith(b"hello")
    assert second.endswith(b"\r\n\r\nfirst")


# --- floods ---


async def test_a_flood_of_silent_connections_does_not_keep_others_out():
    bench = Bench(Limits(unfinished_handshakes=10))
    bench.server.get("/", text("hello"))
    silent = [bench.connect() for _ in range(30)]
    assert not any(client.wire.aborted for client in silent)  # all younger than a second: the room may get tight
    bench.clock.now += 1.5
    late = bench.connect()
    assert [client.wire.aborted for client in silent] == [True] * 21 + [False] * 9
    late.send(head())
    assert late.answer.status == 200
    for client in [*silent, late]:
        client.vanish()
    await settle()
    bench.assert_clean()


async def test_the_oldest_goes_first_and_a_complete_request_is_no_part_of_a_flood():
    bench = Bench(Limits(unfinished_handshakes=3))
    gate = asyncio.Event()

    async def wait(_request: Request) -> str:
        await gate.wait()
        return "x"

    upgrades: list[Upgrade] = []
    bench.server.get("/slow", wait)
    bench.server.upgrade("/ws", upgrades.append)
    running, upgrading, idle, *silent = [bench.connect() for _ in range(6)]
    running.send(head("GET", "/slow"))
    upgrading.send(handshake("/ws"))
    idle.send(head("GET", "/nothing"))
    bench.clock.now += 5
    bench.connect()
    bench.clock.now += 0.5
    idle.send(head()[:5])  # its second request, half a second old when the next comes
    assert [client.wire.aborted for client in silent] == [True, True, False]
    bench.clock.now += 1.5
    bench.connect()
    assert [client.wire.aborted for client in silent] == [True, True, True]
    assert not any(client.wire.aborted for client in (running, upgrading, idle))
    bench.connect()
    bench.connect()
    assert idle.wire.aborted
    for connection in list(bench.server._connections):
        connection.abort()
    await settle()
    bench.assert_clean()


# --- where it listens ---


def test_a_port_in_use_is_one_clear_line(on_loop):
    async def main():
        first, second = HttpServer(), HttpServer()
        async with serving(first):
            with pytest.raises(ListenError) as caught:
                await second.listen(port=first.port)
            assert not second.accepting
            return str(caught.value), first.port

    sentence, port = on_loop(main)
    assert sentence == f"127.0.0.1:{port} is already in use; stop what listens there, or choose another port"


def test_an_address_of_somebody_else(on_loop):
    async def main():
        with pytest.raises(ListenError, match=r"192\.0\.2\.1:3000: this machine has no such address"):
            await HttpServer().listen("192.0.2.1", 3000)

    on_loop(main)


@pytest.mark.skipif(not hasattr(socket, "SO_REUSEPORT"), reason="not on this system")
def test_reuse_port(on_loop):
    async def main():
        first, second = HttpServer(), HttpServer()
        first.get("/", text("x"))
        second.get("/", text("x"))
        async with serving(first, reuse_port=True), serving(second, port=first.port, reuse_port=True):
            assert first.port == second.port
            return parse(await exchange(first, head("GET", "/", CLOSE)))

    (answer,) = on_loop(main)
    assert answer.body == b"x"


@pytest.mark.skipif(sys.platform == "win32", reason="sockets are not shared there")
def test_a_socket_that_is_there_already_is_one_of_many(on_loop):
    """It is another one's too: what is not accepted here waits for the next who listens on it."""

    async def main():
        with socket.socket() as shared:
            shared.bind(("127.0.0.1", 0))
            bodies = []
            for body in ("first", "second"):
                server = HttpServer()
                server.get("/", text(body))
                await server.listen(sock=shared.dup())
                bodies += [answer.body for answer in parse(await exchange(server, head("GET", "/", CLOSE)))]
                assert server.port == shared.getsockname()[1]
                server.stop_accepting()
                await asyncio.sleep(0)
                with socket.create_connection(shared.getsockname()):  # not refused
                    pass
                await server.close()
            return bodies

    assert on_loop(main) == [b"first", b"second"]


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_the_file_of_a_unix_socket_that_was_there_already_stays(on_loop, tmp_path):
    async def main():
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX) as shared:
            shared.bind(path)
            server = HttpServer()
            server.get("/", text("x"))
            await server.listen(sock=shared.dup())
            reader, writer = await asyncio.open_unix_connection(path)
            writer.write(head("GET", "/", CLOSE))
            (answer,) = parse(await reader.read())
            writer.close()
            await server.close()
        return answer.body

    assert on_loop(main) == b"x"
    assert (tmp_path / "s").is_socket()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the second cannot even be bound")
def test_a_socket_on_whose_address_another_one_listens(on_loop):
    async def main():
        with socket.socket() as ours, socket.socket() as other:
            for sock in (ours, other):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            ours.bind(("127.0.0.1", 0))
            other.bind(ours.getsockname())
            other.listen()
            with pytest.raises(ListenError, match=f"^127.0.0.1:{ours.getsockname()[1]} is already in use"):
                await HttpServer().listen(sock=ours)

    on_loop(main)


async def test_a_socket_that_is_none():
    with socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        for sock in ("x", 5, datagrams):
            with pytest.raises(ConfigurationError, match=r"listen\(sock=.*: must be a bound stream socket, or None"):
                await HttpServer().listen(sock=sock)


def test_several_addresses(on_loop, tmp_path):
    server = HttpServer()
    server.get("/", text("x"))

    async def main():
        async with serving(server):
            port = server.port
            await server.listen(port=0)
            assert server.port == port
            assert len(server.sockets) == 2
            return [
                parse(await exchange(server, head("GET", "/", CLOSE)))[0].status,
                await ask_port(server.sockets[1].getsockname()[1]),
            ]

    async def ask_port(port: int) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(head("GET", "/", CLOSE))
        (answer,) = parse(await reader.read())
        writer.close()
        return answer.status

    assert on_loop(main) == [200, 200]


@pytest.mark.skipif(not hasattr(socket, "AF_UNIX"), reason="no Unix sockets here")
def test_a_unix_socket(on_loop, tmp_path):
    path = tmp_path / "s"
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(path))
    stale.close()

    async def main():
        server = HttpServer()
        server.get("/", lambda request: {"client": request.client})
        async with serving(server, uds=path):
            assert server.port == 0
            second = HttpServer()
            with pytest.raises(ListenError, match="already in use"):
                await second.listen(uds=path)
            await second.close()
            assert path.exists()
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(head("GET", "/", CLOSE))
            (answer,) = parse(await reader.read())
            writer.close()
        assert not path.exists()
        return answer

    assert on_loop(main).body == b'{"client":null}'


def test_a_unix_socket_that_cannot_be(on_loop, tmp_path):
    async def main():
        for path in (tmp_path / "nowhere" / "s", tmp_path / ("x" * 200), tmp_path):
            with pytest.raises(ListenError):
                await HttpServer().listen(uds=path)

    on_loop(main)


# asyncio of Python 3.10 forgets the transport of a TLS handshake that failed.
@pytest.mark.filterwarnings("ignore:unclosed transport:ResourceWarning")
def test_tls(on_loop, certificate):
    server = HttpServer(limits=Limits(handshake_timeout_s=1, abort_timeout_s=1))
    server.get("/", text("hello"))
    server.upgrade("/ws", lambda upgrade: Echo(upgrade.take_over()[0], b"taken") and None)

    async def ask(wire: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, ssl=certificate.client)
        writer.write(wire)
        data = await (reader.readexactly(5) if b"/ws" in wire else reader.read())
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        return data

    async def main():
        async with serving(server, ssl=certificate.server):
            hello = await ask(head() + head("GET", "/", CLOSE))
            refused = await ask(b"GET / HTTP/2.0\r\n\r\n")
            taken = await ask(handshake("/ws"))
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)  # never begins with TLS
            assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()
            return hello, refused, taken

    hello, refused, taken = on_loop(main)
    assert [answer.body for answer in parse(hello)] == [b"hello", b"hello"]
    assert [answer.status for answer in parse(refused)] == [505]
    assert taken == b"taken"


# --- the end ---


def test_close_lets_requests_finish_and_runs_the_hooks(on_loop):
    order = []

    async def main():
        begun, gate = asyncio.Event(), asyncio.Event()
        server = HttpServer()

        @server.get("/slow")
        async def slow(_request: Request) -> str:
            begun.set()
            await gate.wait()
            return "done"

        async def hook(name: str) -> None:
            order.append(name)
            gate.set()
            if name == "broken":
                raise RuntimeError(name)

        for name in ("first", "broken", "last"):
            server.on_shutdown(lambda name=name: hook(name))
        await server.listen(port=0)
        port = server.port
        waiting = asyncio.ensure_future(server.wait_closed())
        idle = await asyncio.open_connection("127.0.0.1", port)
        half = await asyncio.open_connection("127.0.0.1", port)
        half[1].write(head()[:9])
        busy = asyncio.ensure_future(exchange(server, head("GET", "/slow")))
        await begun.wait()
        assert not waiting.done()
        await asyncio.gather(server.close(), server.close())
        await waiting
        assert server.connection_count == 0
        assert await idle[0].read() == b""
        assert await half[0].read() == b""
        idle[1].close()
        half[1].close()
        with pytest.raises(OSError):  # noqa: PT011
            await asyncio.open_connection("127.0.0.1", port)
        with pytest.raises(ListenError, match="was closed"):
            await server.listen(port=0)
        again = HttpServer()
        await again.listen(port=port)
        await again.close()
        return parse(await busy)

    (answer,) = on_loop(main)
    assert answer.body == b"done"
    assert answer.closes
    assert order == ["first", "broken", "last"]


def test_close_does_not_wait_for_ever(on_loop):
    cancelled = []

    async def main():
        begun = asyncio.Event()
        server = HttpServer(limits=Limits(shutdown_timeout_s=0.05))

        @server.get("/stuck")
        async def stuck(_request: Request) -> str:
            begun.set()
            try:
                await asyncio.sleep(1_000)
            finally:
                cancelled.append(True)
            return ""

        await server.listen(port=0)
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head("GET", "/stuck"))
        await begun.wait()
        await server.close()
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()

    on_loop(main)
    assert cancelled == [True]


async def test_stop_accepting_answers_what_has_begun():
    bench = Bench()
    bench.server.get("/", text("hello"))
    idle, half, fresh = bench.connect(), bench.connect(), bench.connect()
    idle.send(head())
    half.send(head()[:9])
    bench.server.stop_accepting()
    assert idle.wire.closing
    assert fresh.wire.closing
    assert not half.wire.closing
    half.send(head()[9:])
    assert half.answer.status == 200
    assert half.answer.closes
    late = bench.connect()  # its TLS handshake took until now
    await settle()
    assert late.wire.aborted
    bench.assert_clean()


def test_hand_over_lets_in_who_was_accepted(on_loop):
    async def main():
        server = HttpServer()
        server.get("/", text("x"))
        await server.listen(port=0)
        port = server.port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await until(lambda: server.connection_count)
        handing_over = asyncio.ensure_future(server.hand_over(5.0))
        await asyncio.sleep(0.05)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)
        assert not handing_over.done()
        writer.write(head())
        answer = await reader.read()
        writer.close()
        await asyncio.wait_for(handing_over, 20)
        await server.close()
        return parse(answer)

    (answer,) = on_loop(main)
    assert (answer.status, answer.closes) == (200, True)


async def test_hand_over_does_not_wait_for_who_says_nothing():
    bench = Bench()
    silent = bench.connect()
    await bench.server.listen(port=0)
    handing_over = asyncio.ensure_future(bench.server.hand_over(0.05))
    await asyncio.sleep(0)
    late = bench.connect()  # it was accepted before, and its TLS handshake took until now
    await asyncio.wait_for(handing_over, 20)
    assert not silent.wire.closing
    assert not late.wire.aborted
    await bench.server.close()
    assert silent.wire.closing


async def test_hand_over_without_listening_is_at_once():
    server = HttpServer()
    await asyncio.wait_for(server.hand_over(3_600), 20)
    await server.close()


async def test_a_server_that_never_listened_can_be_closed():
    server = HttpServer()
    await server.close()
    await server.wait_closed()


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("where", ["tcp", "uds"])
async def test_one_that_is_closed_while_it_begins_to_listen_does_not(tmp_path, turns, where):
    server = HttpServer()
    address = {"port": 0} if where == "tcp" else {"uds": str(tmp_path / "s")}
    listening = asyncio.ensure_future(server.listen(**address))
    for _ in range(turns):
        await asyncio.sleep(0)
    await server.close()
    with contextlib.suppress(ListenError):
        await listening
    assert (server.sockets, server.accepting) == ([], False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_NOFILE")
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="no /proc")
def test_connections_come_and_go_and_leave_no_descriptor(on_loop):
    server = HttpServer()
    server.get("/", lambda _request: Response.text("x"))

    async def main():
        async with serving(server):
            await exchange(server, head("GET", "/", CLOSE))
            before = len(os.listdir("/proc/self/fd"))
            for wire in (head("GET", "/", CLOSE), b"\0", head()):
                await asyncio.gather(*(exchange(server, wire, end=True) for _ in range(20)))
            await until(lambda: not server.connection_count)
            await until(lambda: len(os.listdir("/proc/self/fd")) <= before + 1)

    on_loop(main)

"""URLs, links and the thread of the bus, without a server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from street_fast.backplanes import Unavailable
from street_fast.backplanes.redis_links import (
    Address,
    BusThread,
    CommandLink,
    NoAnswer,
    NotSent,
    Place,
    Refused,
    pack,
    parse_info,
)
from street_fast.errors import ConfigurationError
from tests.contract.valkey import until

ECHO = b"S1 m 0123456789abcdef "


class TestPlace:
    @pytest.mark.parametrize(
        ("url", "kind", "seeds", "shown"),
        [
            ("redis://h", "single", [("h", 6379)], "redis://h:6379"),
            ("redis://", "single", [("localhost", 6379)], "redis://localhost:6379"),
            ("redis://u:p@h:1/5", "single", [("h", 1)], "redis://h:1/5"),
            ("rediss://:p%40@h?db=3", "single", [("h", 6379)], "rediss://h:6379/3"),
            ("redis://[::1]:7", "single", [("::1", 7)], "redis://[::1]:7"),
            (
                "redis+sentinel://a,b:1/main/2",
                "sentinel",
                [("a", 26379), ("b", 1)],
                "redis+sentinel://a:26379,b:1/main/2",
            ),
            ("rediss+cluster://u:p@a,b:1", "cluster", [("a", 6379), ("b", 1)], "rediss+cluster://a:6379,b:1"),
        ],
    )
    def test_what_a_url_says(self, url, kind, seeds, shown):
        place = Place.of(url)
        assert (place.kind, list(place.seeds), str(place)) == (kind, seeds, shown)

    def test_the_login(self):
        assert Place.of("redis://u:p%40%3A@h").login == {"username": "u", "password": "p@:"}
        assert Place.of("redis://:p@h").login == {"username": None, "password": "p"}
        assert Place.of("redis://h").login == {}
        place = Place.of("rediss+sentinel://u:p@h/s?sentinel_password=q&ssl_ca_certs=/c&ssl_check_hostname=no")
        assert place.login == {"username": "u", "password": "p", "ssl_ca_certs": "/c", "ssl_check_hostname": False}
        assert place.sentinel_login == {"password": "q"}
        assert "'p'" not in repr(place)
        assert "'q'" not in repr(place)

    @pytest.mark.parametrize(
        "url",
        [
            None,
            b"redis://h",
            "",
            "http://h",
            "redis+other://h",
            "redis://a,b",
            "redis://h:x",
            "redis://h:99999",
            "redis://h/x",
            "redis://h/1/2",
            "redis://h?colour=red",
            "redis://h?ssl_ca_certs=x",
            "rediss://h?ssl_colour=red",
            "redis+sentinel://h",
            "redis+cluster://h/1",
        ],
        ids=str,
    )
    def test_what_makes_no_sense_is_refused(self, url):
        with pytest.raises(ConfigurationError, match="URL of Redis"):
            Place.of(url)

    @pytest.mark.parametrize("url", ["redis://u:secret@h:x", "redis+sentinel://u:secret@h", "redis://:secret@a,b"])
    def test_the_password_is_not_shown(self, url):
        with pytest.raises(ConfigurationError) as raised:
            Place.of(url)
        assert "secret" not in str(raised.value)

    async def test_nobody_there(self):
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # and does not listen
            port = taken.getsockname()[1]
            with pytest.raises(Unavailable, match=f"127.0.0.1:{port} cannot be reached"):
                await Place.of(f"redis://127.0.0.1:{port}").connect(Address("127.0.0.1", port), 1.0)

    async def test_one_who_says_nothing(self):
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            port = silent.getsockname()[1]
            with pytest.raises(Unavailable, match="no answer in time"):
                await Place.of(f"redis://:p@127.0.0.1:{port}").connect(Address("127.0.0.1", port), 0.1)


def test_a_command_as_it_goes_over_the_wire():
    assert pack((b"SET", b"", b"\r\n")) == b"*3\r\n$3\r\nSET\r\n$0\r\n\r\n$2\r\n\r\n\r\n"


def test_info():
    assert parse_info(b"# Server\r\nrun_id:ab\r\nos:a:b\r\n\r\nrubbish\r\n") == {"run_id": "ab", "os": "a:b"}


class FakeConnection:
    """Takes what is sent, and answers when told."""

    def __init__(self):
        self.sent = b""
        self.writes = 0
        self.answers = asyncio.Queue()
        self.taking = asyncio.Event()
        self.taking.set()

    async def send_packed_command(self, data, check_health):
        await self.taking.wait()
        self.sent += data
        self.writes += 1

    async def read_response(self, **_):
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def disconnect(self, nowait):
        pass


@pytest.fixture
async def linked():
    connection = FakeConnection()
    connection.now = 0.0
    connection.not_told = []
    connection.ended = []
    link = CommandLink(
        connection,
        1.0,
        100,
        lambda: connection.now,
        lambda channel, error: connection.not_told.append((channel, type(error))),
        lambda link, error: connection.ended.append(error),
    )
    yield link, connection
    link.close()
    await link.closed()


async def turns():
    for _ in range(5):
        await asyncio.sleep(0)


class TestCommandLink:
    async def test_one_turn_is_one_write_and_answers_come_in_order(self, linked):
        link, connection = linked
        heard = []
        link.ask(b"1", lambda reply: heard.append((1, reply)))
        link.tell("c", b"2")
        link.ask(b"3", lambda reply: heard.append((3, reply)))
        assert link.pending_bytes == 3
        await turns()
        assert (connection.sent, connection.writes) == (b"123", 1)
        assert not link.idle
        for answer in (b"a", 7, ResponseError("no")):
            connection.answers.put_nowait(answer)
        await turns()
        assert heard[0] == (1, b"a")
        assert heard[1][0] == 3
        assert isinstance(heard[1][1], ResponseError)
        assert connection.not_told == []
        assert link.idle
        assert link.pending_bytes == 0

    async def test_what_is_not_told_is_known(self, linked):
        link, connection = linked
        link.tell("refused", b"1")
        await turns()
        connection.answers.put_nowait(ResponseError("no"))
        link.tell("unanswered", b"2")
        await turns()
        link.tell("unsent", b"3")
        link.fail(Unavailable("cut"))
        assert connection.not_told == [("refused", ResponseError), ("unanswered", NoAnswer), ("unsent", NotSent)]
        assert [str(error) for error in connection.ended] == ["cut"]
        assert not link.tell("late", b"4")
        with pytest.raises(NotSent):
            link.ask(b"5", print)
        link.fail(Unavailable("again"))
        assert len(connection.ended) == 1

    async def test_whether_it_was_sent_is_told_to_who_asks(self, linked):
        link, connection = linked
        heard = []
        link.ask(b"1", heard.append)
        await turns()
        link.ask(b"2", heard.append)
        connection.answers.put_nowait(RedisConnectionError("closed"))
        # The write of the second comes before the read that ends it, as in one turn both are ready.
        await turns()
        assert [type(reply) for reply in heard] == [NoAnswer, NoAnswer]
        link, connection = linked
        assert not link.up

    async def test_more_than_may_wait_is_refused(self, linked):
        link, connection = linked
        connection.taking.clear()
        assert link.tell("c", b"x" * 101)
        assert not link.tell("c", b"x")
        with pytest.raises(NotSent):
            link.ask(b"x", print)
        connection.taking.set()
        await turns()
        assert link.tell("c", b"x")

    async def test_late_is_who_was_late_at_two_looks(self, linked):
        link, connection = linked
        assert not link.is_late(100.0)
        link.ask(b"1", lambda _: None)
        link.ask(b"2", lambda _: None)
        await turns()
        assert not link.is_late(0.9)
        assert not link.is_late(60.0), "the process may have stood still"
        connection.answers.put_nowait(1)
        await turns()
        assert not link.is_late(60.0), "an answer has come in between"
        assert link.is_late(60.0)
        connection.answers.put_nowait(2)
        await turns()
        assert not link.is_late(61.0)

    async def test_what_is_not_sent_when_it_fails_is_never_sent(self, linked):
        link, connection = linked
        with socket.create_server(("127.0.0.1", 0)) as listener:
            _, connection._writer = await asyncio.open_connection(*listener.getsockname())
            server, _ = listener.accept()
        connection._writer.write(b"x" * 30_000_000)  # more than the kernel takes
        link.fail(OSError("it does not answer"))
        connection._writer.close()

        def read_all():
            while server.recv(1 << 20):
                pass

        with server, pytest.raises(ConnectionResetError):
            await asyncio.to_thread(read_all)
        link.fail(OSError("once is enough"))

    async def test_who_hears_an_answer_and_raises_harms_nobody(self, linked, caplog):
        link, connection = linked
        heard = []

        def fail(_):
            raise ValueError("a bug")

        link.ask(b"1", fail)
        link.ask(b"2", heard.append)
        await turns()
        connection.answers.put_nowait(1)
        connection.answers.put_nowait(2)
        await turns()
        assert heard == [2]
        assert "a bug" in caplog.text

    async def test_an_answer_that_nobody_has_asked_for_ends_it(self, linked):
        link, connection = linked
        connection.answers.put_nowait(1)
        await turns()
        assert not link.up
        assert len(connection.ended) == 1

    async def test_call(self, linked):
        link, connection = linked
        result, failed = link.call(b"A"), link.call(b"B")
        await turns()
        connection.answers.put_nowait(b"x")
        connection.answers.put_nowait(ResponseError("no"))
        assert await result == b"x"
        with pytest.raises(Refused, match="no"):
            await failed

    async def test_something_to_send_before_the_write(self, linked):
        link, connection = linked
        link.before_write = lambda: link.ask(b"w", lambda _: None)
        link.tell("c", b"1")
        await turns()
        assert connection.sent == b"1w"


def stand_still(thread):
    """Until something has come, and for a while then."""
    while not thread.inbox:
        time.sleep(0.001)
    time.sleep(0.05)


@pytest.mark.both_loops
class TestBusThread:
    async def test_what_the_thread_puts_comes_in_the_loop_in_order(self):
        taken = []
        thread = BusThread(lambda link, message: taken.append((threading.current_thread(), message)), 1_000, ECHO)

        def put():
            for number in range(1_000):
                thread.put(None, number, 1)

        thread.loop.call_soon_threadsafe(put)
        await until(lambda: len(taken) == 1_000)
        assert [message for _, message in taken] == list(range(1_000))
        assert {who for who, _ in taken} == {threading.current_thread()}
        assert thread.pending_bytes == 0
        assert thread.read_bytes == 1_000
        await thread.stop()
        assert thread.loop.is_closed()

    async def test_a_loop_that_stands_still_is_seen(self):
        taken = []
        thread = BusThread(lambda link, message: taken.append(message), 1_000, ECHO)
        thread.loop.call_soon_threadsafe(thread.put, None, "first", 900)
        stand_still(thread)
        assert thread.is_full(0.5)
        assert not thread.is_full(1.0)
        assert thread.pending_bytes == 900
        assert thread.lag_s > 0.04
        await until(lambda: taken == ["first"])
        assert thread.lag_s == 0
        assert thread.worst_lag_s > 0.04
        await thread.stop()

    async def test_much_is_taken_in_parts(self):
        """Others have their turn in between."""
        taken, ticks = [], 0

        def take(_, message):
            taken.append(message)
            time.sleep(0.0001)

        thread = BusThread(take, 10**9, ECHO)
        done = threading.Event()

        def put():
            for number in range(500):
                thread.put(None, number, 1)
            done.set()

        thread.loop.call_soon_threadsafe(put)
        done.wait()
        while len(taken) < 500:
            await asyncio.sleep(0)
            ticks += 1
        assert ticks > 5
        assert taken == list(range(500))
        await thread.stop()

    async def test_after_stop_nothing_comes(self):
        taken = []
        thread = BusThread(lambda link, message: taken.append(message), 1_000, ECHO)
        thread.loop.call_soon_threadsafe(thread.put, None, 1, 1)
        stand_still(thread)
        await thread.stop()
        await asyncio.sleep(0.01)
        assert taken == []
        with contextlib.suppress(RuntimeError):
            thread.put(None, 2, 1)
        assert taken == []

"""RequestReader: heads, bodies, limits, and the same outcome however the bytes are cut."""

from __future__ import annotations

import pytest

from street_fast.errors import HandshakeRefused
from street_fast.http1 import RequestReader
from street_fast.limits import DEFAULT_LIMITS, Limits
from tests.frames_harness import SEGMENTATIONS, byte_by_byte, whole
from tests.http_harness import handshake, head

SMALL = Limits(request_head_bytes=600, request_line_bytes=200, request_headers=10, request_body_bytes=100)


def read(pieces: list[bytes], limits: Limits = DEFAULT_LIMITS) -> list[tuple]:
    """What comes of it: requests as (method, target, body, keep_alive), and at last perhaps (status, code)."""
    reader = RequestReader(limits)
    outcome: list[tuple] = []
    for piece in pieces:
        reader.feed(bytes(piece))
        try:
            while (request := reader.next_request()) is not None:
                outcome.append((request.method, request.target, request.body, reader.keep_alive))
        except HandshakeRefused as error:
            outcome.append((error.status, error.code))
            break
    return outcome


@pytest.fixture(params=SEGMENTATIONS)
def cut(request):
    return request.param


def chunked(*chunks: bytes, end: bytes = b"0\r\n\r\n") -> bytes:
    front = head("POST", "/", "Transfer-Encoding: chunked")
    return front + b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + end


# --- good requests ---


def test_requests_come_one_after_the_other(cut):
    wire = (
        head("GET", "/a?b")
        + head("POST", "/c", "Content-Length: 5") + b"hello"
        + head("HEAD", "/d", "Content-Length: 0")
        + b"\r\n\r\n" + head("POST", "/e", "Content-Length: 4") + b"\r\n\r\n"
        + head("GET", "/f", "Connection: close")
    )  # fmt: skip
    assert read(cut(wire)) == [
        ("GET", "/a?b", b"", True),
        ("POST", "/c", b"hello", True),
        ("HEAD", "/d", b"", True),
        ("POST", "/e", b"\r\n\r\n", True),
        ("GET", "/f", b"", False),
    ]


@pytest.mark.parametrize(
    ("wire", "keep_alive"),
    [
        (head(), True),
        (head("GET", "/", "Connection: keep-alive"), True),
        (head("GET", "/", "Connection: Close"), False),
        (head("GET", "/", "Connection: x, close"), False),
        (head(version="HTTP/1.0"), False),
        (head("GET", "/", "Connection: keep-alive", version="HTTP/1.0"), False),
        (head("GET", "/", version="HTTP/1.0", host=None), False),
        (handshake(), False),
        (head("GET", "/", "Connection: Upgrade", "Upgrade: h2c"), False),
        (head("GET", "/", "Upgrade: websocket"), True),
        (head("OPTIONS", "*"), True),
        (head("GET", "http://h/"), True),
        (head("PUT", "/"), True),
    ],
)
def test_whether_another_may_follow(wire, keep_alive, cut):
    ((*_, outcome),) = read(cut(wire))
    assert outcome is keep_alive


def test_the_request_has_what_came():
    reader = RequestReader(DEFAULT_LIMITS, ("192.0.2.1", 5))
    reader.feed(head("GET", "/a%20b?c", "X: 1", "x:\t2 ", "Y:"))
    request = reader.next_request()
    assert request is not None
    assert request.raw_headers == b"\r\nHost: h\r\nX: 1\r\nx:\t2 \r\nY:\r\n"
    assert request.headers.get_all("x") == ["1", "2"]
    assert (request.path, request.http_version, request.client) == ("/a b", "1.1", ("192.0.2.1", 5))


def test_what_comes_behind_an_upgrade_is_kept(cut):
    reader = RequestReader(DEFAULT_LIMITS)
    request = None
    for piece in cut(handshake() + b"\x81\x80frames\r\n\r\n"):
        reader.feed(bytes(piece))
        request = request or reader.next_request()
    assert request is not None
    assert reader.take_rest() == b"\x81\x80frames\r\n\r\n"
    assert reader.next_request() is None


def test_a_chunked_body_is_joined_and_is_the_last(cut):
    wire = chunked(b"hel", b"lo\r\n\r\n", b"!", end=b"0\r\nTrailer: x\r\n\r\n")
    assert read(cut(wire)) == [("POST", "/", b"hello\r\n\r\n!", False)]


@pytest.mark.parametrize("behind", [head("GET", "/smuggled"), b"\0\xff", b"0\r\n\r\n", chunked(b"x")])
def test_nothing_behind_a_chunked_body_is_a_request(behind):
    reader = RequestReader(DEFAULT_LIMITS)
    reader.feed(chunked(b"hello") + behind)
    request = reader.next_request()
    assert request is not None
    assert request.body == b"hello"
    assert not reader.keep_alive


@pytest.mark.parametrize("expect", ["100-continue", "100-Continue"])
@pytest.mark.parametrize("framing", ["Content-Length: 3", "Transfer-Encoding: chunked"])
def test_a_client_that_waits_for_100_continue_is_told_once(expect, framing):
    reader = RequestReader(DEFAULT_LIMITS)
    reader.feed(head("POST", "/", framing, f"Expect: {expect}"))
    assert reader.next_request() is None
    assert reader.take_continue()
    assert not reader.take_continue()


@pytest.mark.parametrize(
    "wire",
    [
        head("POST", "/", "Content-Length: 3", "Expect: 100-continue") + b"a",
        head("POST", "/", "Content-Length: 3", "Expect: 100-continue", version="HTTP/1.0"),
        head("POST", "/", "Content-Length: 3"),
        head("POST", "/", "Content-Length: 3", "Expect: 200-ok"),
    ],
)
def test_nobody_else_is_told_to_continue(wire):
    reader = RequestReader(DEFAULT_LIMITS)
    reader.feed(wire)
    assert reader.next_request() is None
    assert not reader.take_continue()


# --- refusals (those that h11 has an opinion on are in tests/conformance/test_http_heads.py) ---


@pytest.mark.parametrize(
    ("wire", "status", "code"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, "request_line"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", None, None),
        (b"get / HTTP/1.1\r\nHost: h\r\n\r\n", 400, "request_line"),
        (b"GET / HTTP/1.1\nHost: h\n\n", 400, "head"),
        (b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", 400, "head"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", None, None),
        (head(version="HTTP/2.0"), 505, "http_version"),
        (head(version="HTTP/0.9"), 505, "http_version"),
        (head("FOO"), 501, "method"),
        (head("CONNECT", "h:80"), 501, "method"),
        (head("SOURCE"), 501, "method"),
        (head("GET", "/#f"), 400, "target"),
        (head("GET", "ftp://h/"), 400, "target"),
        (head("GET", "*"), 400, "target"),
        (head(host="a b"), 400, "host"),
        (head(host="user@h"), 400, "host"),
        (head(host="h/path"), 400, "host"),
        (head("GET", "http://user@h/"), 400, "host"),
        (head("POST", "/", "Transfer-Encoding: gzip, chunked"), 501, "framing"),
        (head("POST", "/", "Transfer-Encoding: chunked", version="HTTP/1.0"), 400, "framing"),
        (head("POST", "/", f"Content-Length: {DEFAULT_LIMITS.request_body_bytes + 1}"), 413, "body"),
        (head("POST", "/", "Content-Length: 999999999999999999"), 413, "body"),
        (head("POST", "/", "Expect: 100-continue", "Content-Length: 99999999"), 413, "body"),
    ],
)
def test_refusals(wire, status, code, cut):
    (outcome,) = read(cut(wire + head("GET", "/smuggled")))
    assert status is None or outcome[0] == status
    assert code is None or outcome[1] == code
    assert outcome[0] >= 400


def test_nothing_comes_after_a_refusal():
    reader = RequestReader(DEFAULT_LIMITS)
    reader.feed(head("FOO") + head())
    with pytest.raises(HandshakeRefused):
        reader.next_request()
    assert reader.done
    reader.feed(head())
    assert reader.next_request() is None


# --- limits ---


def padded(size: int, *, lines: int) -> bytes:
    """A head of exactly `size` bytes."""
    names = [f"X{i}: " for i in range(lines)]
    spare = size - len(head("GET", "/", *names))
    each = spare // lines
    names = [name + "x" * (each + (spare - each * lines if i == 0 else 0)) for i, name in enumerate(names)]
    result = head("GET", "/", *names)
    assert len(result) == size
    return result


@pytest.mark.parametrize(
    ("wire", "outcome"),
    [
        (padded(600, lines=4), ("GET", "/", b"", True)),
        (padded(601, lines=4), (431, "headers")),
        (head("GET", "/", "X: " + "x" * 197), ("GET", "/", b"", True)),
        (head("GET", "/", "X: " + "x" * 198), (431, "headers")),
        (head("GET", "/" + "x" * 186), ("GET", "/" + "x" * 186, b"", True)),
        (head("GET", "/" + "x" * 187), (414, "target")),
        (head("GET", "/" + "x" * 5_000), (414, "target")),
        (head("GET", "/", *(f"X{i}: 1" for i in range(9))), ("GET", "/", b"", True)),
        (head("GET", "/", *(f"X{i}: 1" for i in range(10))), (431, "headers")),
        (head("POST", "/", "Content-Length: 100") + b"x" * 100, ("POST", "/", b"x" * 100, True)),
        (head("POST", "/", "Content-Length: 101"), (413, "body")),
        (chunked(b"x" * 50, b"x" * 50), ("POST", "/", b"x" * 100, False)),
        (chunked(b"x" * 50, b"x" * 51), (413, "body")),
        (chunked(*[b"x"] * 90), ("POST", "/", b"x" * 90, False)),
        (chunked(b"x", end=b"0;" + b"x" * 1_000), (413, "body")),
        (chunked(b"x", end=b"0\r\n" + b"X: y\r\n" * 200), (413, "body")),
    ],
)
def test_limits(wire, outcome, cut):
    assert read(cut(wire), SMALL) == [outcome]


def test_what_is_behind_a_chunked_body_counts_for_no_limit():
    reader = RequestReader(SMALL)
    reader.feed(chunked(b"x") + b"y" * 5_000)
    request = reader.next_request()
    assert request is not None
    assert (request.body, reader.keep_alive) == (b"x", False)


@pytest.mark.parametrize("size", [1, 7, 1_000, 65_536])
@pytest.mark.parametrize(
    "flood",
    [
        b"GET /" + b"x" * 100_000,
        b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000,
        b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_no_more_is_held_than_the_limit_and_one_read(flood, size):
    reader = RequestReader(DEFAULT_LIMITS)

    def swallow() -> None:
        for at in range(0, len(flood), size):
            reader.feed(flood[at : at + size])
            assert reader.buffered <= DEFAULT_LIMITS.request_head_bytes + size
            assert reader.next_request() is None

    with pytest.raises(HandshakeRefused) as refused:
        swallow()
    assert refused.value.status in (414, 431)


def test_a_line_that_ends_in_lf_alone_is_refused_before_the_head_is_complete(cut):
    for wire in (b"GET / HTTP/1.1\n", b"GET / HTTP/1.1\r\nHost: h\n", b"GET / HTTP/1.0\n\n"):
        assert read(cut(wire)) == [(400, "head")]


def test_the_limits_of_a_second_request_are_those_of_the_first():
    reader = RequestReader(SMALL)
    for byte in byte_by_byte(head("GET", "/", "X: " + "x" * 150, "Y: " + "y" * 150)):
        reader.feed(byte)
        request = reader.next_request()
    assert request is not None

    def send_a_long_line() -> None:
        for byte in byte_by_byte(b"GET /" + b"x" * 400):
            reader.feed(byte)
            assert reader.next_request() is None

    with pytest.raises(HandshakeRefused):
        send_a_long_line()
    assert reader.buffered == SMALL.request_line_bytes + 2


def test_a_body_that_is_declared_too_long_is_refused_before_it_comes():
    reader = RequestReader(SMALL)
    reader.feed(head("POST", "/", "Content-Length: 101"))
    with pytest.raises(HandshakeRefused):
        reader.next_request()


def test_empty_lines_before_a_request_are_held_nowhere():
    reader = RequestReader(DEFAULT_LIMITS)
    for _ in range(1_000):
        reader.feed(b"\r\n\r\n\r")
        assert reader.next_request() is None
        reader.feed(b"\n")
        assert reader.next_request() is None
    assert reader.buffered == 0
    assert not reader.begun


class CountingBuffer(bytearray):
    """Counts the bytes that are looked at."""

    looked_at = 0

    def find(self, sub, start=0):
        self.looked_at += len(self) - start
        return super().find(sub, start)

    def rfind(self, sub, start=0):
        self.looked_at += len(self) - start
        return super().rfind(sub, start)


@pytest.mark.parametrize("line", [20, 1_000, 8_000])
def test_a_byte_is_looked_at_a_few_times_however_it_comes(line):
    reader = RequestReader(DEFAULT_LIMITS)
    buffer = reader._buffer = CountingBuffer()
    wire = head("GET", "/", *["X: " + "x" * (line - 3)] * min(14_000 // line, 90))
    for piece in byte_by_byte(wire):
        assert reader.next_request() is None
        reader.feed(piece)
    assert reader.next_request() is not None
    assert buffer.looked_at > len(wire)
    assert buffer.looked_at < 10 * len(wire)


def test_whole_is_what_most_clients_send():
    assert read(whole(handshake("/ws"))) == [("GET", "/ws", b"", False)]

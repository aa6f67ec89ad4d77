"""The client's side of the opening handshake: RFC 6455 section 4.1."""

from __future__ import annotations

import pytest

from street_fast.client.handshake import Opening, Target, checked_headers
from street_fast.errors import HandshakeRefused
from street_fast.handshake import accept
from street_fast.http1 import RequestReader
from street_fast.limits import DEFAULT_LIMITS
from tests.http_harness import ACCEPT, KEY

TARGET = Target.parse("ws://example.com/realtime")
GOOD = (
    b"HTTP/1.1 101 Switching Protocols\r\nupgrade: WebSocket\r\nConnection: keep-alive, Upgrade\r\n"
    b"Sec-WebSocket-Accept: " + ACCEPT.encode() + b"\r\n\r\n"
)


def opening(*headers: tuple[str, str]) -> Opening:
    return Opening(TARGET, headers, KEY)


def refusal(answer: bytes) -> HandshakeRefused:
    with pytest.raises(HandshakeRefused) as caught:
        opening().feed(answer)
    return caught.value


@pytest.mark.parametrize(
    ("url", "target", "text"),
    [
        ("ws://h", Target(False, "h", 80, "h", "/"), "ws://h/"),
        ("http://H:80/a?b=c", Target(False, "h", 80, "h", "/a?b=c"), "ws://h/a"),
        ("wss://h:8443/a/", Target(True, "h", 8443, "h:8443", "/a/"), "wss://h:8443/a/"),
        ("https://h:443", Target(True, "h", 443, "h", "/"), "wss://h/"),
        ("ws://[::1]:81/", Target(False, "::1", 81, "[::1]:81", "/"), "ws://[::1]:81/"),
        ("ws://bücher.example/", Target(False, "xn--bcher-kva.example", 80, "xn--bcher-kva.example", "/"), None),
        ("ws://h?a", Target(False, "h", 80, "h", "/?a"), "ws://h/"),
    ],
)
def test_targets(url: str, target: Target, text: str | None) -> None:
    assert Target.parse(url) == target
    if text is not None:
        assert str(target) == text


def test_the_request_is_one_that_our_server_takes() -> None:
    handshake = opening(("Cookie", "a=b"))
    reader = RequestReader(DEFAULT_LIMITS)
    reader.feed(handshake.request)
    request = reader.next_request()
    assert request is not None
    assert (request.target, request.headers["host"], request.cookies) == ("/realtime", "example.com", {"a": "b"})
    assert handshake.feed(accept(request).head + b"tail") == b"tail"


def test_the_key_is_new_each_time() -> None:
    assert Opening(TARGET).request != Opening(TARGET).request


def test_the_answer_may_be_cut_anywhere() -> None:
    data = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n" + GOOD + b"tail"
    for cut in range(len(data) + 1):
        handshake = opening()
        first = handshake.feed(data[:cut]) if cut else None
        second = handshake.feed(data[cut:]) if first is None else data[cut:]
        assert (first or b"") + (second or b"") == b"tail"
    handshake = opening()
    got = [handshake.feed(data[i : i + 1]) for i in range(len(data) - len(b"tail"))]
    assert got == [None] * (len(got) - 1) + [b""]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        (GOOD.replace(b"upgrade: WebSocket", b"Upgrade: h2c"), "another protocol than WebSocket"),
        (GOOD.replace(b"keep-alive, Upgrade", b"close"), "another protocol than WebSocket"),
        (GOOD.replace(b"Sec-WebSocket-Accept", b"X-Accept"), "Sec-WebSocket-Accept is wrong"),
        (GOOD.replace(b"s3pP", b"s3pQ"), "Sec-WebSocket-Accept is wrong"),
        (GOOD[:-2] + b"Sec-WebSocket-Protocol: chat\r\n\r\n", "was not offered"),
        (GOOD[:-2] + b"Sec-WebSocket-Extensions: permessage-deflate\r\n\r\n", "was not offered"),
        (b"SSH-2.0-OpenSSH_9.6\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 101 S\r\n" + b"X: " + 17_000 * b"x", "bytes of headers"),
    ],
)
def test_an_answer_that_breaks_the_rules(changed: bytes, sentence: str) -> None:
    error = refusal(changed)
    assert error.code == "no_websocket"
    assert sentence in str(error)
    assert str(error).startswith("ws://example.com/realtime ")


@pytest.mark.parametrize(
    ("answer", "status", "sentence"),
    [
        (b"HTTP/1.1 403 F\r\nContent-Length: 3\r\n\r\nno\n", 403, "answered 403 Forbidden: no"),
        (
            b"HTTP/1.1 403 F\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nno\r\n0\r\n\r\n",
            403,
            "answered 403 Forbidden: no",
        ),
        (b"HTTP/1.1 799 Odd\r\nContent-Length: 0\r\n\r\n", 799, "answered 799 Odd"),
        (
            b"HTTP/1.1 502 B\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\n<html>",
            502,
            "answered 502 Bad Gateway",
        ),
        (b"HTTP/1.1 500 I\r\n\r\n" + b"word " * 1_000, 500, "500 Internal Server Error: word word"),
        (b"HTTP/1.1 301 M\r\nLocation: wss://b/?token=x\r\nContent-Length: 0\r\n\r\n", 301, "points to 'wss://b/'"),
        (b"HTTP/1.1 426 U\r\nContent-Length: 0\r\n\r\n", 426, "is the path right?"),
        (b"HTTP/1.1 200 O\r\nContent-Type: text/event-stream\r\n\r\ndata: x\n\n", 200, "is the path right?"),
    ],
)
def test_a_refusal(answer: bytes, status: int, sentence: str) -> None:
    error = refusal(answer)
    assert (error.status, error.code) == (status, "refused")
    assert sentence in str(error)
    assert len(str(error)) < 400


def test_a_refusal_that_ends_with_the_connection() -> None:
    handshake = opening()
    assert handshake.end() is None
    assert handshake.feed(b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\n\r\ncome ") is None
    assert handshake.feed(b"again") is None
    error = handshake.end()
    assert error is not None
    assert str(error).endswith("answered 503 Service Unavailable: come again")
    assert ("Retry-After", "7") in error.headers


def test_headers_of_the_application() -> None:
    assert checked_headers(None) == ()
    assert checked_headers({"Cookie": "a=b", "X-Ä".replace("Ä", "A"): "ä"}) == (("Cookie", "a=b"), ("X-A", "ä"))
    request = Opening(TARGET, (("Host", "other"), ("X", "ä"))).request
    assert b"\r\nHost: other\r\n" in request
    assert request.count(b"Host:") == 1
    assert "\r\nX: ä\r\n".encode("latin-1") in request

"""Request heads, good and bad, in front of this server and in front of h11, a strict parser by other people.

What h11 refuses is refused here. What h11 lets pass is let pass here, unless `STRICTER` names the reason: a proxy in
front, or a parser behind, may read such a head in another way. Every head runs whole, byte by byte and cut at random.
No head that is refused may let a request behind it through.
"""

from __future__ import annotations

import h11
import pytest

from street_fast.errors import HandshakeRefused
from street_fast.http1 import RequestReader
from street_fast.limits import DEFAULT_LIMITS
from tests.frames_harness import SEGMENTATIONS
from tests.http_harness import head

STRICTER = {
    "bare LF": "h11 ends a line at LF alone; where a line ends must not be a matter of taste (RFC 9112 section 2.2)",
    "obs-fold": "h11 unfolds; RFC 9112 section 5.2 lets a server refuse, and proxies disagree about what it means",
    "method": "h11 takes any token; a server answers a method that it does not know with 501 (RFC 9110 section 9.1)",
    "version": "h11 takes any HTTP/<digit>.<digit>; HTTP/2.0 and HTTP/1.2 are not spoken here",
    "target": "h11 takes any visible characters; a target is a path, an http URI or * (RFC 9112 section 3.2)",
    "host": "h11 looks at the number of Host headers, not at their value (RFC 9112 section 3.2)",
    "value": "h11 takes control characters in a value; RFC 9110 section 5.5 calls them invalid",
    "length": "h11 takes equal Content-Lengths; RFC 9112 section 6.3 lets a server refuse them",
    "two framings": "h11 lets chunks override Content-Length; RFC 9112 section 6.1 lets a server refuse both at once",
    "chunk extension": "h11 skips it unseen, a NUL in it too",
    "old chunks": "h11 takes chunks from HTTP/1.0; RFC 9112 section 6.1 calls that faulty framing",
}

GET = b"GET / HTTP/1.1\r\n"
HOST = b"Host: h\r\n"
POST = b"POST / HTTP/1.1\r\n" + HOST
UPGRADE = b"Upgrade: h2c\r\nConnection: Upgrade\r\n"
END = b"\r\n"


def line(field: bytes) -> bytes:
    """A head with one more line, as it is."""
    return GET + HOST + field + b"\r\n" + END


def names() -> list[bytes]:
    """A header name with each character that no token has."""
    bad = [c for c in range(256) if not (chr(c).isascii() and chr(c).isalnum()) and c not in b"!#$%&'*+-.^_`|~:"]
    return [line(b"X" + bytes([c]) + b"Y: z") for c in bad if c not in b"\r\n"]


def values() -> list[tuple[str | None, bytes]]:
    """A header value with each control character."""
    controls = [c for c in [*range(32), 127] if c not in b"\t\r\n"]
    return [(None if c in b"\0" else "value", line(b"X: a" + bytes([c]) + b"b")) for c in controls]


# (what we are stricter about or None, head)
HEADS: list[tuple[str | None, bytes]] = [
    # --- good ones ---
    (None, head()),
    (None, head("GET", "/a?b=c&d=%20")),
    (None, head("POST", "/", "Content-Length: 0")),
    (None, head("OPTIONS", "*")),
    (None, head("GET", "http://h/x")),
    (None, head("DELETE", "/")),
    (None, head("GET", "/", "X:")),
    (None, head("GET", "/", "X: ")),
    (None, head("GET", "/", "X:a")),
    (None, head("GET", "/", "X: \t a \t ")),
    (None, head("GET", "/", "X: a\tb")),
    (None, head("GET", "/", "X: \xe9\xff\x80")),
    (None, head("GET", "/", "!#$%&'*+-.^_`|~09azAZ: x")),
    (None, head("GET", "/", "Cookie: a", "Cookie: b")),
    (None, head(host="")),
    (None, head(host="[::1]:3000")),
    (None, head(host="xn--bcher-kva.example:8080")),
    (None, head(version="HTTP/1.0")),
    (None, head(version="HTTP/1.0", host=None)),
    (None, head("GET", "/;a=b/@:!$&'()*+,")),
    (None, head("GET", "//x")),
    (None, head("GET", "/%00")),
    # --- request line ---
    (None, b"GET  / HTTP/1.1\r\n" + HOST + END),
    (None, b"GET /  HTTP/1.1\r\n" + HOST + END),
    (None, b"GET / HTTP/1.1 \r\n" + HOST + END),
    (None, b" GET / HTTP/1.1\r\n" + HOST + END),
    (None, b"GET\t/ HTTP/1.1\r\n" + HOST + END),
    (None, b"GET /\tHTTP/1.1\r\n" + HOST + END),
    (None, b"GET / a HTTP/1.1\r\n" + HOST + END),
    (None, b"GET /\r\n" + HOST + END),
    (None, b"GET /\r\n" + END),
    (None, b"GET HTTP/1.1\r\n" + HOST + END),
    (None, b"GET\r\n" + HOST + END),
    (None, b"/ HTTP/1.1\r\n" + HOST + END),
    (None, b"GET / http/1.1\r\n" + HOST + END),
    (None, b"GET / HTTP/1\r\n" + HOST + END),
    (None, b"GET / HTTP/11\r\n" + HOST + END),
    (None, b"GET / HTTP/1.\r\n" + HOST + END),
    (None, b"GET / HTTP/.1\r\n" + HOST + END),
    (None, b"GET / HTTP/1,1\r\n" + HOST + END),
    (None, b"GET / HTTP/01.1\r\n" + HOST + END),
    (None, b"GET / HTTP/1.01\r\n" + HOST + END),
    (None, b"GET / HTTP/1.1x\r\n" + HOST + END),
    (None, b"GET / HTTP 1.1\r\n" + HOST + END),
    (None, b"GET / XHTTP/1.1\r\n" + HOST + END),
    (None, b"GET / HTTP/-1.1\r\n" + HOST + END),
    (None, b"GET / HTTP/a.b\r\n" + HOST + END),
    (None, b"GET / RTSP/1.0\r\n" + HOST + END),
    (None, b"GET / ICE/1.0\r\n" + HOST + END),
    ("version", head(version="HTTP/2.0")),
    ("version", head(version="HTTP/0.9")),
    ("version", head(version="HTTP/1.2")),
    ("version", head(version="HTTP/3.0")),
    (None, b"G\0T / HTTP/1.1\r\n" + HOST + END),
    (None, b"G(T / HTTP/1.1\r\n" + HOST + END),
    (None, b"G\xe9T / HTTP/1.1\r\n" + HOST + END),
    (None, b'"GET" / HTTP/1.1\r\n' + HOST + END),
    ("method", b"get / HTTP/1.1\r\n" + HOST + END),
    ("method", b"FOO / HTTP/1.1\r\n" + HOST + END),
    ("method", b"GETT / HTTP/1.1\r\n" + HOST + END),
    ("method", b"GE / HTTP/1.1\r\n" + HOST + END),
    ("method", b"!#$ / HTTP/1.1\r\n" + HOST + END),
    ("method", b"CONNECT h:80 HTTP/1.1\r\n" + HOST + END),
    ("method", b"PRI * HTTP/1.1\r\n" + HOST + END),
    ("method", b"SOURCE / HTTP/1.1\r\n" + HOST + END),
    (None, b"GET /\0 HTTP/1.1\r\n" + HOST + END),
    (None, b"GET /\x01 HTTP/1.1\r\n" + HOST + END),
    (None, b"GET /\x7f HTTP/1.1\r\n" + HOST + END),
    (None, b"GET /\x80 HTTP/1.1\r\n" + HOST + END),
    (None, b"GET /\xc3\xa9 HTTP/1.1\r\n" + HOST + END),
    (None, b"GET /\x0b HTTP/1.1\r\n" + HOST + END),
    (None, b"GET /\r HTTP/1.1\r\n" + HOST + END),
    ("target", head("GET", "/#fragment")),
    ("target", head("GET", "a")),
    ("target", head("GET", "?a")),
    ("target", head("GET", "*")),
    ("target", head("GET", "h:80")),
    ("target", head("GET", "ftp://h/")),
    ("target", head("GET", "javascript:alert(1)")),
    ("target", head("GET", "http:/h")),
    # --- Host ---
    (None, GET + END),
    (None, GET + b"X: y\r\n" + END),
    (None, GET + HOST + HOST + END),
    (None, GET + HOST + b"host: other\r\n" + END),
    (None, GET + b"HOST: h\r\nHost: h\r\n" + END),
    (None, b"GET / HTTP/1.0\r\n" + HOST + HOST + END),
    ("host", head(host="a b")),
    ("host", head(host="a/b")),
    ("host", head(host="user@h")),
    ("host", head(host="h?x")),
    ("host", head(host="h#x")),
    ("host", head(host="h\\x")),
    ("host", head(host="<h>")),
    ("host", head(host="h\xe9")),
    ("host", head(host="h\tx")),
    ("host", head("GET", "http://user@h/")),
    # --- lines ---
    (None, GET + HOST + b"X y\r\n" + END),
    (None, GET + HOST + b"X\r\n" + END),
    (None, GET + HOST + b": y\r\n" + END),
    ("obs-fold", GET + HOST + b" : y\r\n" + END),
    (None, GET + b"Host : h\r\n" + END),
    (None, GET + b"Host\t: h\r\n" + END),
    (None, GET + b" Host: h\r\n" + END),
    (None, GET + b"\tHost: h\r\n" + END),
    (None, GET + b" X: y\r\n" + HOST + END),
    (None, GET + b"Ho st: h\r\n" + END),
    (None, GET + HOST + b"X: a\rb\r\n" + END),
    (None, GET + HOST + b"X: a\r\r\n" + END),
    (None, GET + HOST + b"X: a\r\n\r" + b"X: b\r\n" + END),
    (None, GET + HOST + b"\rX: a\r\n" + END),
    (None, GET + HOST + b"X\r: a\r\n" + END),
    ("bare LF", b"GET / HTTP/1.1\n" + HOST + END),
    ("bare LF", b"GET / HTTP/1.1\nHost: h\n\n"),
    ("bare LF", GET + b"Host: h\n" + END),
    ("bare LF", GET + HOST + b"X: y\n" + END),
    ("bare LF", GET + HOST + b"X: y\nContent-Length: 5\r\n" + END),
    ("bare LF", GET + HOST + b"\n"),
    ("bare LF", b"\n" + head()),
    ("obs-fold", GET + HOST + b"X: a\r\n b\r\n" + END),
    ("obs-fold", GET + HOST + b"X: a\r\n\tb\r\n" + END),
    ("obs-fold", GET + HOST + b"X:\r\n a\r\n" + END),
    ("obs-fold", GET + HOST + b"X: a\r\n \r\n" + END),
    ("obs-fold", GET + b"Host: h\r\n evil\r\n" + END),
    ("obs-fold", POST + b"Transfer-Encoding:\r\n chunked\r\n" + END + b"0\r\n\r\n"),
    # --- framing ---
    (None, POST + b"Content-Length: 3\r\n" + END + b"abc"),
    (None, POST + b"Content-Length: 003\r\n" + END + b"abc"),
    (None, POST + b"Transfer-Encoding: chunked\r\n" + END + b"3\r\nabc\r\n0\r\n\r\n"),
    (None, POST + b"Transfer-Encoding: CHUNKED\r\n" + END + b"3\r\nabc\r\n0\r\n\r\n"),
    (None, POST + b"Transfer-Encoding: chunked\r\n" + END + b"3;x=y\r\nabc\r\n0\r\nTrailer: x\r\n\r\n"),
    (None, POST + b"Transfer-Encoding: chunked\r\n" + END + b"A\r\n0123456789\r\n0\r\n\r\n"),
    (None, POST + UPGRADE + b"Transfer-Encoding: chunked\r\n" + END + b"3\r\nabc\r\n0\r\n\r\n"),
    (None, POST + UPGRADE + b"Content-Length: 3\r\n" + END + b"abc"),
    ("length", POST + b"Content-Length: 3\r\nContent-Length: 3\r\n" + END + b"abc"),
    ("length", POST + b"Content-Length: 3, 3\r\n" + END + b"abc"),
    (None, POST + b"Content-Length: 3\r\nContent-Length: 4\r\n" + END + b"abcd"),
    (None, POST + b"Content-Length: 3, 4\r\n" + END + b"abcd"),
    (None, POST + b"Content-Length: +3\r\n" + END + b"abc"),
    (None, POST + b"Content-Length: -3\r\n" + END + b"abc"),
    (None, POST + b"Content-Length: 0x3\r\n" + END + b"abc"),
    (None, POST + b"Content-Length: 3.0\r\n" + END + b"abc"),
    (None, POST + b"Content-Length: 3 0\r\n" + END + b"abc"),
    (None, POST + b"Content-Length: 1_0\r\n" + END + b"0123456789"),
    (None, POST + b"Content-Length: \xb2\r\n" + END + b"ab"),
    (None, POST + b"Content-Length: a\r\n" + END + b"abc"),
    (None, POST + b"Content-Length:\r\n" + END + b"abc"),
    (None, POST + b"Content-Length: 1e1\r\n" + END + b"0123456789"),
    (None, POST + b"Content-Length : 3\r\n" + END + b"abc"),
    ("two framings", POST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n" + END + b"0\r\n\r\n"),
    ("two framings", POST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n" + END + b"0\r\n\r\n"),
    (None, POST + b"Transfer-Encoding: gzip\r\n" + END + b"abc"),
    (None, POST + b"Transfer-Encoding: identity\r\n" + END + b"abc"),
    (None, POST + b"Transfer-Encoding: gzip, chunked\r\n" + END + b"0\r\n\r\n"),
    (None, POST + b"Transfer-Encoding: chunked, gzip\r\n" + END + b"0\r\n\r\n"),
    (None, POST + b"Transfer-Encoding: chunked, chunked\r\n" + END + b"0\r\n\r\n"),
    (None, POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n" + END + b"0\r\n\r\n"),
    (None, POST + b"Transfer-Encoding: xchunked\r\n" + END + b"0\r\n\r\n"),
    (None, POST + b"Transfer-Encoding: \x0bchunked\r\n" + END + b"0\r\n\r\n"),
    (None, POST + b"Transfer-Encoding: chunked;q=1\r\n" + END + b"0\r\n\r\n"),
    (None, POST + b'Transfer-Encoding: "chunked"\r\n' + END + b"0\r\n\r\n"),
    (None, POST + b"Transfer-Encoding : chunked\r\n" + END + b"0\r\n\r\n"),
    ("old chunks", b"POST / HTTP/1.0\r\n" + HOST + b"Transfer-Encoding: chunked\r\n" + END + b"0\r\n\r\n"),
    # --- chunks ---
    *(
        (reason, POST + b"Transfer-Encoding: chunked\r\n" + END + body)
        for reason, body in [
            (None, b"-3\r\nabc\r\n0\r\n\r\n"),
            (None, b"+3\r\nabc\r\n0\r\n\r\n"),
            (None, b"0x3\r\nabc\r\n0\r\n\r\n"),
            (None, b" 3\r\nabc\r\n0\r\n\r\n"),
            (None, b"3_0\r\nabc\r\n0\r\n\r\n"),
            (None, b"\r\nabc\r\n0\r\n\r\n"),
            (None, b"g\r\nabc\r\n0\r\n\r\n"),
            (None, b"3\r\nabcd\r\n0\r\n\r\n"),
            (None, b"3\r\nabc0\r\n\r\n\r\n"),
            (None, b"3\rabc\r\n0\r\n\r\n"),
            (None, b"ffffffffffffffffffffff\r\nabc\r\n0\r\n\r\n"),
            ("chunk extension", b"3;x\0=y\r\nabc\r\n0\r\n\r\n"),
        ]
    ),
    *((None, wire) for wire in names()),
    *values(),
]  # fmt: skip


def by_h11(wire: bytes) -> tuple[str, str, bytes] | None:
    """(method, target, body) of the first request, or None if h11 refuses it or waits for more."""
    server = h11.Connection(h11.SERVER)
    server.receive_data(wire)
    body = b""
    try:
        request = server.next_event()
        if not isinstance(request, h11.Request):
            return None
        while not isinstance(event := server.next_event(), h11.EndOfMessage):
            if not isinstance(event, h11.Data):
                return None
            body += bytes(event.data)
    except h11.RemoteProtocolError:
        return None
    return request.method.decode(), request.target.decode(), body


def by_us(pieces: list[bytes]) -> tuple[list[tuple[str, str, bytes]], int | None]:
    """The requests, and the status if there was a refusal."""
    reader = RequestReader(DEFAULT_LIMITS)
    requests: list[tuple[str, str, bytes]] = []
    for piece in pieces:
        reader.feed(bytes(piece))
        try:
            while (request := reader.next_request()) is not None:
                requests.append((request.method, request.target, request.body))
                if not reader.keep_alive:
                    return requests, None
        except HandshakeRefused as error:
            return requests, error.status
    return requests, None


def test_there_are_enough_heads_and_every_reason_is_used():
    assert len(HEADS) >= 200
    assert len({wire for _, wire in HEADS}) == len(HEADS)
    assert {reason for reason, _ in HEADS} - {None} == set(STRICTER)


@pytest.mark.parametrize("cut", SEGMENTATIONS)
def test_disagreements(cut):
    """Zero."""
    disagreements = []
    for reason, wire in HEADS:
        theirs = by_h11(wire)
        ours, status = by_us(cut(wire + head("GET", "/smuggled")))
        if theirs is None or reason is not None:
            agree = ours == [] and status in (400, 501, 505)
        else:
            agree = ours[:1] == [theirs] and status is None and ours[1:] in ([], [("GET", "/smuggled", b"")])
        if not agree:
            disagreements.append((reason, wire, theirs, ours, status))
    assert disagreements == []


@pytest.mark.parametrize("reason", STRICTER)
def test_we_are_stricter_only_where_h11_is_not(reason):
    """A reason that h11 has come round to, in all its cases, is no reason any more."""
    assert any(by_h11(wire) is not None for other, wire in HEADS if other == reason)

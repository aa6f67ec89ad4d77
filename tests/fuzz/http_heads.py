"""Fuzzes RequestReader: mutated requests, cut anywhere, beside h11.

What h11 refuses or waits for must not come out here as a request: that is what smuggling is made of. What h11 takes
must come out the same (method, target, headers, body, one request after the other), or be refused for one of the
reasons in `stricter()`. Cuts must not matter.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

import h11

from street_fast.errors import HandshakeRefused
from street_fast.http1 import RequestReader
from street_fast.limits import DEFAULT_LIMITS
from tests.conformance.test_http_heads import HEADS
from tests.http_harness import handshake, head

if TYPE_CHECKING:
    import random

ODD_LINES = re.compile(rb"(?<!\r)\n|\r\n[ \t]|[\0-\x08\x0b\x0c\x0e-\x1f\x7f]")
METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
HOST = r"[\w\-.~!$&'()*+,;=%:\[\]]*"
TARGET = re.compile(rf"/[^#]*|https?://{HOST}([/?][^#]*)?", re.ASCII)
LENGTHS = re.compile(rb"\r\ncontent-length:[^\r\n]*(,|\r\n(.*\r\n)?content-length:)", re.IGNORECASE | re.DOTALL)
EMPTY_LINES = re.compile(rb"\A(\r\n)+")  # RFC 9112 section 2.2: ignored before a request; not by h11
CHUNK_EXTENSION = re.compile(rb"\r\n[0-9a-f]{1,20}[ \t]*;", re.IGNORECASE)


class Seen(NamedTuple):
    method: str
    target: str
    version: str
    headers: list[tuple[str, str]]
    body: bytes


def corpus() -> list[bytes]:
    pipelined = head("POST", "/", "Content-Length: 3") + b"abc" + head("GET", "/smuggled")
    chunked = (
        head("POST", "/", "Transfer-Encoding: chunked") + b"3;x=y\r\nabc\r\n0\r\nT: x\r\n\r\n" + head("GET", "/next")
    )
    return [*(wire for _, wire in HEADS), handshake(), pipelined, chunked, pipelined + pipelined]


LINES = [
    b"Content-Length: 3\r\n",
    b"Content-Length: 0\r\n",
    b"Transfer-Encoding: chunked\r\n",
    b"Transfer-Encoding: identity\r\n",
    b"Connection: close\r\n",
    b"Connection: upgrade\r\n",
    b"Upgrade: websocket\r\n",
    b"Expect: 100-continue\r\n",
    b"Host: h\r\n",
    b"X:\t y \r\n",
    b" folded\r\n",
    b"\r\n",
    b"\r",
    b"\n",
    b"0\r\n\r\n",
    b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n",
]


def generate(rng: random.Random, _masked: bool) -> bytes:
    wire = rng.choice([b"GET / HTTP/1.1\r\n", b"POST /a?b HTTP/1.1\r\n", b"POST / HTTP/1.0\r\n"]) + b"Host: h\r\n"
    return (
        wire
        + b"".join(rng.choices(LINES, k=rng.randrange(6)))
        + b"\r\n"
        + rng.choice([b"", b"abc", b"3\r\nabc\r\n0\r\n\r\n"])
    )


def by_h11(wire: bytes) -> list[Seen]:
    """The requests that h11 sees whole before it waits, refuses or will read no more."""
    found: list[Seen] = []
    try:
        while wire := EMPTY_LINES.sub(b"", wire):
            server = h11.Connection(h11.SERVER)  # a new one for each, which needs no answers in between
            server.receive_data(wire)
            request = server.next_event()
            if not isinstance(request, h11.Request):
                return found
            body = b""
            while not isinstance(event := server.next_event(), h11.EndOfMessage):
                if not isinstance(event, h11.Data):
                    return found
                body += bytes(event.data)
            headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in request.headers]
            found.append(
                Seen(request.method.decode(), request.target.decode(), request.http_version.decode(), headers, body)
            )
            if server.their_state is h11.MUST_CLOSE:
                return found
            wire = server.trailing_data[0]
    except h11.RemoteProtocolError:
        pass
    return found


def by_us(pieces: list[bytes]) -> tuple[list[Seen], str | None]:
    """The requests, and the code of the refusal if there was one."""
    reader = RequestReader(DEFAULT_LIMITS)
    found: list[Seen] = []
    try:
        for piece in pieces:
            reader.feed(piece)
            while (request := reader.next_request()) is not None:
                headers = [(name.lower(), value) for name in request.headers for value in request.headers.get_all(name)]
                found.append(Seen(request.method, request.target, request.http_version, headers, request.body))
                if not reader.keep_alive:
                    return found, None
    except HandshakeRefused as error:
        return found, error.code
    return found, None


def comparable(requests: list[Seen]) -> list[Seen]:
    """Headers in the order of their names, since ours is a mapping; and h11 puts some values in lower case."""
    return [
        request._replace(headers=sorted((name, value.lower()) for name, value in request.headers))
        for request in requests
    ]


def stricter(wire: bytes, request: Seen) -> bool:
    """Whether `request`, as h11 sees it, is refused on purpose: tests/conformance/test_http_heads.py says why."""
    hosts = [value for name, value in request.headers if name == "host"]
    chunked = any(name == "transfer-encoding" for name, _ in request.headers)
    return bool(
        (chunked and CHUNK_EXTENSION.search(wire))
        or ODD_LINES.search(wire)
        or request.method not in METHODS
        or not (TARGET.fullmatch(request.target) or (request.method, request.target) == ("OPTIONS", "*"))
        or not all(re.fullmatch(HOST, host, re.ASCII) for host in hosts)
        or request.version not in ("1.1", "1.0")
        or LENGTHS.search(wire)
        or (chunked and (request.version == "1.0" or b"content-length" in wire.lower()))
    )


def check(rng: random.Random, wire: bytes) -> tuple[object, str | None]:
    """What the bytes led to, and what the judges disagree about."""
    whole = by_us([wire])
    cuts = sorted(rng.randrange(len(wire) + 1) for _ in range(rng.choice([1, 2, 5, 12])))
    if rng.random() < 0.1:
        cuts = list(range(len(wire)))
    pieces = [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]
    in_pieces = by_us(pieces)
    if whole[0] != in_pieces[0] or bool(whole[1]) != bool(in_pieces[1]):  # of several faults any may be named
        return None, f"cuts: {wire!r}\n  whole  {whole}\n  pieces {in_pieces} {cuts}"

    ours, refusal = comparable(whole[0]), whole[1]
    theirs = comparable(by_h11(wire))
    common = theirs[: len(ours)]
    if ours != common:
        return None, f"h11: {wire!r}\n  ours {ours} {refusal}\n  h11  {theirs}"
    if refusal is not None and len(theirs) > len(ours) and not stricter(wire, theirs[len(ours)]):
        return None, f"h11, which is laxer: {wire!r}\n  ours {ours} {refusal}\n  h11  {theirs}"
    if theirs and not ours and refusal is None:
        return None, f"h11, which does not wait: {wire!r}\n  h11  {theirs}"
    return (len(ours), len(theirs), refusal, len(wire).bit_length()), None

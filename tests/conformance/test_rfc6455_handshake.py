"""RFC 6455 section 4, the opening handshake: every MUST that a server can break, named by its section.

A case is what a client sends and what must come of it, through the whole way from the bytes on the wire to the answer:
HTTP reader, server, `handshake.accept`. Each runs whole, byte by byte and cut at random places. Behind every request
that must be refused comes a second one, which must get no answer; behind every good one come frames, which must be
handed on whole.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from street_fast.errors import HandshakeRefused
from street_fast.handshake import Upgrade, accept, refusal
from street_fast.limits import Limits
from tests.frames_harness import SEGMENTATIONS, text
from tests.http_harness import ACCEPT, HANDSHAKE, KEY, Answer, Bench, handshake, head, parse, settle

if TYPE_CHECKING:
    from collections.abc import Mapping

NOTHING: Mapping[str, Any] = MappingProxyType({})
FRAMES = text("hello") + text("\r\n\r\nGET / HTTP/1.1\r\nHost: h\r\n\r\n")


class Case(NamedTuple):
    name: str  # begins with the section
    request: bytes
    status: int  # 101, or what refuses it
    headers: Mapping[str, str | None] = NOTHING  # what the answer must have; None: must not have
    options: Mapping[str, Any] = NOTHING  # of accept()

    def __str__(self) -> str:
        return self.name


def without(name: str) -> bytes:
    return handshake(**{name.replace("-", "_"): None})


def twice(name: str, value: str | None = None) -> bytes:
    return handshake("/ws", f"{name}: {HANDSHAKE[name] if value is None else value}")


def lines(*fields: str, request_line: str = "GET /ws HTTP/1.1") -> bytes:
    return "\r\n".join([request_line, *fields, "", ""]).encode()


def accepted(key: str) -> dict[str, str]:
    digest = hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
    return {"sec-websocket-accept": base64.b64encode(digest).decode()}


OWN = "http://server.example.com"
ACCEPTED = {"sec-websocket-accept": ACCEPT}
OTHER_KEYS = [base64.b64encode(bytes([i] * 16)).decode() for i in (0, 1, 127, 128, 255)]
SHUFFLED = list(itertools.permutations(f"{name}: {value}" for name, value in HANDSHAKE.items()))[::17]

GOOD = [
    Case("1.3 the example", handshake(), 101, ACCEPTED),
    Case("4.1 the order of the headers is not significant", lines(*SHUFFLED[-1]), 101),
    *(Case(f"4.1 order {i}", lines(*fields), 101, ACCEPTED) for i, fields in enumerate(SHUFFLED)),
    Case("4.2.1 names of headers in any case", lines(*(f"{n.swapcase()}: {v}" for n, v in HANDSHAKE.items())), 101),
    Case("4.2.1 no space behind the colon", lines(*(f"{n}:{v}" for n, v in HANDSHAKE.items())), 101),
    Case("4.2.1 white space around values", lines(*(f"{n}: \t {v} \t" for n, v in HANDSHAKE.items())), 101),
    Case("4.2.1 other headers are ignored", handshake("/ws", "X: y", "Cookie: a=b", "Authorization: Bearer x"), 101),
    Case("4.2.1 item 1: a resource name with a query", handshake("/ws?a=b&c=%20"), 101),
    Case("4.2.1 item 1: an absolute URI", handshake("http://server.example.com/ws"), 101),
    Case("4.2.1 item 2: a host with a port", handshake(Host="server.example.com:8080"), 101),
    Case("4.2.1 item 3: Upgrade in any case", handshake(Upgrade="WebSocket"), 101),
    Case("4.2.1 item 3: websocket among others", handshake(Upgrade="h2c, websocket"), 101),
    Case("4.2.1 item 3: websocket in a second header", handshake("/ws", "Upgrade: websocket", Upgrade="h2c"), 101),
    Case("4.2.1 item 4: Connection in any case", handshake(Connection="upgrade"), 101),
    Case("4.2.1 item 4: upgrade among others", handshake(Connection="keep-alive, Upgrade"), 101),
    Case("4.2.1 item 4: in a second header", handshake("/ws", "Connection: Upgrade", Connection="keep-alive"), 101),
    *(
        Case(f"4.2.2 item 5.4: key {key}", handshake(Sec_WebSocket_Key=key), 101, accepted(key))
        for key in OTHER_KEYS
    ),
    Case("4.2.2 item 5.4: white space around the key", handshake(Sec_WebSocket_Key=f"  {KEY}\t"), 101,
         ACCEPTED),
    Case("4.2.1 item 7: no Origin", handshake(), 101),
    Case("4.2.1 item 7: the same origin", handshake(Origin=OWN), 101),
    Case("4.2.2 item 4: no subprotocol where none is asked for", handshake(), 101, {"sec-websocket-protocol": None},
         {"subprotocols": ["chat"]}),
    Case("4.2.2 item 4: none where none is known", handshake(Sec_WebSocket_Protocol="chat"), 101,
         {"sec-websocket-protocol": None}),
    Case("4.2.2 item 4: none that the client did not offer", handshake(Sec_WebSocket_Protocol="superchat"), 101,
         {"sec-websocket-protocol": None}, {"subprotocols": ["chat"]}),
    Case("4.2.2 item 4: one of those offered", handshake(Sec_WebSocket_Protocol="superchat, chat"), 101,
         {"sec-websocket-protocol": "chat"}, {"subprotocols": ["chat"]}),
    Case("4.2.2 item 4: one only", handshake(Sec_WebSocket_Protocol="superchat, chat"), 101,
         {"sec-websocket-protocol": "chat"}, {"subprotocols": ["chat", "superchat"]}),
    Case("4.3 offered in several headers",
         handshake("/ws", "Sec-WebSocket-Protocol: superchat", "Sec-WebSocket-Protocol: chat"), 101,
         {"sec-websocket-protocol": "chat"}, {"subprotocols": ["chat"]}),
    Case("4.2.2 item 4: names of subprotocols are compared with their case", handshake(Sec_WebSocket_Protocol="Chat"),
         101, {"sec-websocket-protocol": None}, {"subprotocols": ["chat"]}),
    Case("4.2.2 item 5.5, 9.1: no extension that nobody asked for", handshake(), 101,
         {"sec-websocket-extensions": None}),
    Case("9.1: no extension that the server does not know", handshake(Sec_WebSocket_Extensions="foo, bar; baz=2"), 101,
         {"sec-websocket-extensions": None}),
    Case("4.3, 9.1: in several headers, quoted", handshake(
        "/ws", 'Sec-WebSocket-Extensions: a; b="10"', "Sec-WebSocket-Extensions: c"), 101),
    Case("10.2 an allowed origin", handshake(Origin="https://app.example.com"), 101, {},
         {"allowed_origins": ["https://app.example.com"]}),
]  # fmt: skip

VERSION = {"sec-websocket-version": "13"}

BAD = [
    Case("4.2.1 item 1: POST", handshake().replace(b"GET", b"POST", 1), 405, {"allow": "GET"}),
    Case("4.2.1 item 1: HEAD", handshake().replace(b"GET", b"HEAD", 1), 405),
    Case("4.2.1 item 1: OPTIONS", handshake().replace(b"GET", b"OPTIONS", 1), 405),
    Case("4.2.1 item 1: CONNECT", lines("Host: h", request_line="CONNECT h:80 HTTP/1.1"), 501),
    Case("4.2.1 item 1: HTTP/1.0", handshake().replace(b"HTTP/1.1", b"HTTP/1.0", 1), 400),
    Case("4.2.1 item 1: HTTP/0.9", handshake().replace(b"HTTP/1.1", b"HTTP/0.9", 1), 505),
    Case("4.2.1 item 1: HTTP/2.0", handshake().replace(b"HTTP/1.1", b"HTTP/2.0", 1), 505),
    Case("4.2.1 item 1: no version", handshake().replace(b" HTTP/1.1", b"", 1), 400),
    Case("3 a fragment in the resource name", handshake("/ws#fragment"), 400),
    Case("4.2.1 item 2: no Host", without("Host"), 400),
    Case("4.2.1 item 2: two Hosts", twice("Host"), 400),
    Case("4.2.1 item 2: two different Hosts", twice("Host", "other"), 400),
    Case("4.2.1 item 2: a Host that is none", handshake(Host="a b"), 400),
    Case("4.2.1 item 3: no Upgrade", without("Upgrade"), 426, {"upgrade": "websocket", **VERSION}),
    Case("4.2.1 item 3: another Upgrade", handshake(Upgrade="h2c"), 426),
    Case("4.2.1 item 3: notupgrade", handshake(Upgrade="notwebsocket"), 426),
    Case("4.2.1 item 3: a version", handshake(Upgrade="websocket/13"), 426),
    Case("4.2.1 item 3: an empty one", handshake(Upgrade=""), 426),
    Case("4.2.1 item 4: no Connection", without("Connection"), 400),
    Case("4.2.1 item 4: keep-alive", handshake(Connection="keep-alive"), 400),
    Case("4.2.1 item 4: notupgrade", handshake(Connection="notupgrade"), 400),
    Case("4.2.1 item 4: close", handshake(Connection="close"), 400),
    Case("4.2.1 item 5: no key", without("Sec-WebSocket-Key"), 400),
    Case("4.2.1 item 5: an empty key", handshake(Sec_WebSocket_Key=""), 400),
    Case("4.2.1 item 5: not base64", handshake(Sec_WebSocket_Key="!" * 22 + "=="), 400),
    Case("4.2.1 item 5: base64 for URLs", handshake(Sec_WebSocket_Key="-_" * 11 + "=="), 400),
    Case("4.2.1 item 5: 15 bytes", handshake(Sec_WebSocket_Key=base64.b64encode(bytes(15)).decode()), 400),
    Case("4.2.1 item 5: 17 bytes", handshake(Sec_WebSocket_Key=base64.b64encode(bytes(17)).decode()), 400),
    Case("4.2.1 item 5: 32 bytes", handshake(Sec_WebSocket_Key=base64.b64encode(bytes(32)).decode()), 400),
    Case("4.2.1 item 5: no padding", handshake(Sec_WebSocket_Key=KEY.rstrip("=")), 400),
    Case("4.2.1 item 5: a space inside", handshake(Sec_WebSocket_Key=KEY[:8] + " " + KEY[8:]), 400),
    Case("11.3.1 the key MUST NOT appear twice", twice("Sec-WebSocket-Key"), 400),
    Case("11.3.1 two different keys", twice("Sec-WebSocket-Key", OTHER_KEYS[0]), 400),
    Case("4.2.1 item 6: no version", without("Sec-WebSocket-Version"), 400, VERSION),
    *(
        Case(f"4.2.2 item 2, 4.4: version {version!r}", handshake(Sec_WebSocket_Version=version), 426, VERSION)
        for version in ("0", "7", "8", "12", "14", "256", "-13", "+13", "013", "13.0", "1 3", "13, 8", "thirteen", "")
    ),
    Case("11.3.5 the version MUST NOT appear twice", twice("Sec-WebSocket-Version"), 400, VERSION),
    Case("11.3.5 two different versions", twice("Sec-WebSocket-Version", "8"), 400, VERSION),
    Case("4.1 item 10: an empty subprotocol", handshake(Sec_WebSocket_Protocol=""), 400),
    Case("4.1 item 10: a separator in a subprotocol", handshake(Sec_WebSocket_Protocol="a/b"), 400),
    Case("4.1 item 10: a space in a subprotocol", handshake(Sec_WebSocket_Protocol="a b"), 400),
    Case("9.1 malformed extensions: nothing", handshake(Sec_WebSocket_Extensions=""), 400),
    Case("9.1 malformed extensions: no name", handshake(Sec_WebSocket_Extensions=";a"), 400),
    Case("9.1 malformed extensions: no parameter", handshake(Sec_WebSocket_Extensions="a;"), 400),
    Case("9.1 malformed extensions: no value", handshake(Sec_WebSocket_Extensions="a;b="), 400),
    Case("9.1 malformed extensions: an open quote", handshake(Sec_WebSocket_Extensions='a;b="1'), 400),
    Case("9.1 a quoted value MUST be a token", handshake(Sec_WebSocket_Extensions='a;b="1 2"'), 400),
    Case("4.2.2 item 1, 10.2: a foreign origin", handshake(Origin="http://evil.example"), 403),
    Case("10.2 null", handshake(Origin="null"), 403),
    Case("10.2 two origins", handshake("/ws", f"Origin: {OWN}", Origin=OWN), 403),
    Case("10.2 not in the list", handshake(Origin=OWN), 403, {},
         {"allowed_origins": ["https://app.example.com"]}),
    Case("10.2 the origin is looked at first", handshake(Origin="http://evil.example", Sec_WebSocket_Version="8"), 403),
    Case("4.1 a body", handshake("/ws", "Content-Length: 5") + b"hello", 400),
    Case("4.1 a chunked body", handshake("/ws", "Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
    Case("4.1 a header without a colon", handshake("/ws", "Nonsense"), 400),
    Case("4.1 a folded header", handshake("/ws", "X: a\r\n b"), 400),
    Case("4.1 a space before the colon", handshake("/ws", "Sec-WebSocket-Protocol : a"), 400),
    Case("4.1 a NUL", handshake("/ws", "X: \0"), 400),
    Case("4.1 line ends of LF alone", handshake().replace(b"\r\n", b"\n"), 400),
    Case("a plain request", head("GET", "/ws"), 426, {"upgrade": "websocket", **VERSION}),
    Case("a plain POST", head("POST", "/ws", "Content-Length: 2") + b"{}", 405, {"allow": "GET"}),
]  # fmt: skip


class Outcome(NamedTuple):
    answers: list[Answer]
    tail: bytes | None  # None: no upgrade
    requests: int  # that reached the WebSocket server
    half_closed: bool


async def outcome(case: Case, pieces: list[bytes]) -> Outcome:
    bench = Bench(Limits())
    reached: list[Upgrade] = []
    tail: list[bytes] = []

    def server(upgrade: Upgrade) -> None:
        reached.append(upgrade)
        try:
            acceptance = accept(upgrade.request, **case.options)
        except HandshakeRefused as error:
            upgrade.refuse(refusal(error))
            return
        transport, behind = upgrade.take_over()
        transport.write(acceptance.head)
        tail.append(behind)
        transport.set_protocol(Tail(tail))

    bench.server.upgrade("/ws", server)
    bench.server.get("/", lambda _request: "smuggled")
    client = bench.connect()
    client.send(*pieces)
    ended = client.wire.half_closed or client.wire.closing
    client.end()
    await settle()
    bench.assert_clean()
    method = case.request.partition(b" ")[0].decode()
    return Outcome(parse(client.wire.taken, [method]), b"".join(tail) if tail else None, len(reached), ended)


class Tail:
    """The protocol of a WebSocket that only keeps what comes."""

    def __init__(self, data: list[bytes]) -> None:
        self.data_received = data.append

    def eof_received(self) -> None: ...

    def connection_lost(self, error: Exception | None) -> None: ...


@pytest.mark.parametrize("cut", SEGMENTATIONS)
@pytest.mark.parametrize("case", GOOD, ids=str)
async def test_a_good_handshake_is_accepted_and_its_frames_are_kept(case, cut):
    result = await outcome(case, cut(case.request + FRAMES))
    (answer,) = result.answers
    assert answer.status == 101
    assert answer.headers["upgrade"].lower() == "websocket"  # 4.2.2 item 5.2
    assert answer.headers["connection"].lower() == "upgrade"  # 4.2.2 item 5.3
    assert len(answer.headers["sec-websocket-accept"]) == 28  # 4.2.2 item 5.4
    for name, value in case.headers.items():
        assert answer.headers.get(name) == value
    assert result.tail == FRAMES
    assert result.requests == 1


@pytest.mark.parametrize("cut", SEGMENTATIONS)
@pytest.mark.parametrize("case", BAD, ids=str)
async def test_a_bad_handshake_is_refused_closed_and_nothing_behind_it_is_routed(case, cut):
    """Section 4.2.1: "the server MUST stop processing the client's handshake and return an HTTP response"."""
    result = await outcome(case, cut(case.request + head() + handshake()))
    (answer,) = result.answers
    assert answer.status == case.status
    assert answer.closes
    assert "sec-websocket-accept" not in answer.headers
    for name, value in case.headers.items():
        assert answer.headers.get(name) == value
    assert result.tail is None
    assert result.requests <= 1
    assert result.half_closed  # by us, not only by the client that went away


def test_the_cases_have_names_of_their_own():
    names = [case.name for case in (*GOOD, *BAD)]
    assert len(set(names)) == len(names)

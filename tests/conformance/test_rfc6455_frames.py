"""RFC 6455 sections 5 to 8 and Autobahn groups 1 to 7 and 9, as far as a parser can keep or break them.

A case is a stream of bytes from the peer and what must come of it: the events, and perhaps an error, the close code
that the peer is told, and the byte that shows the error. Each case runs whole, byte by byte and cut at random places
(STREET_FAST_TEST_SEED repeats the cuts), over both implementations. The handshakes of section 7, which need a
connection, are in test_rfc6455_connection.py.
"""

from __future__ import annotations

import itertools
from typing import Any, NamedTuple

import pytest

from street_fast.errors import is_sendable_close_code
from tests.frames_harness import (
    BINARY,
    CLOSE,
    CONTINUATION,
    IMPLEMENTATIONS,
    MASK,
    PING,
    PONG,
    SEGMENTATIONS,
    TEXT,
    byte_by_byte,
    close,
    frame,
    head,
    load,
    run,
    text,
    vectors,
    whole,
    xor,
)

CLOSE_CODES = {"message_too_big": 1009, "too_many_fragments": 1008, "utf8": 1007}

KOSME = "κ\u1f79σμε".encode()  # 11 bytes
SURROGATE = KOSME + b"\xed\xa0\x80" + b"edited"
TOO_HIGH = KOSME + b"\xf4\x90\x80\x80" + b"edited"


class Case(NamedTuple):
    rule: str
    wire: bytes
    events: list[tuple[Any, ...]]
    error: str | None = None
    shown_at: int | None = None  # the error is raised when this many bytes are there, not later
    options: dict[str, Any] | None = None


CASES: list[Case] = []


def good(rule: str, wire: bytes, *events: tuple[Any, ...], **options: Any) -> None:
    CASES.append(Case(rule, wire, list(events), options=options))


def bad(
    rule: str,
    error: str,
    wire: bytes,
    *events: tuple[Any, ...],
    at: int | None = None,
    rest: bytes = b"",
    **options: Any,
) -> None:
    """The first `at` bytes of `wire` (or all) show the error. `rest` is what a peer without shame sends after it."""
    CASES.append(Case(rule, wire + rest, list(events), error, len(wire) if at is None else at, options))


def message(data: str | bytes, opcode: int = TEXT) -> tuple[Any, ...]:
    return ("message", opcode, data.encode() if isinstance(data, str) else data)


def fragments(opcode: int, *payloads: bytes, last: bool = True) -> list[bytes]:
    """The frames of one message; without `last` it is not finished."""
    opcodes = itertools.chain([opcode], itertools.repeat(CONTINUATION))
    final = len(payloads) - 1
    return [frame(next(opcodes), payload, fin=last and i == final) for i, payload in enumerate(payloads)]


def part(opcode: int, payload: bytes) -> bytes:
    return frame(opcode, payload, fin=False)


def fragmented(opcode: int, *payloads: bytes, last: bool = True) -> bytes:
    return b"".join(fragments(opcode, *payloads, last=last))


def octets(data: bytes) -> list[bytes]:
    return [data[i : i + 1] for i in range(len(data))]


# --- Section 5.1: masking is the client's duty, and only the client's ---

bad("5.1 server closes on an unmasked frame", "mask_required", b"\x81\x05", rest=b"Hello")
bad("5.1 server closes on an unmasked control frame", "mask_required", b"\x89\x00")
bad("5.1 server closes on an unmasked close frame", "mask_required", b"\x88\x02", rest=b"\x03\xe8")
bad("5.1 unmasked frame after good ones", "mask_required", text("a") + b"\x82\x7e", message("a"), rest=b"\x01\x00")
bad("5.1 client closes on a masked frame", "mask_forbidden", b"\x81\x85", rest=MASK + b"Hello", client=True)
good("5.1 client takes an unmasked frame", text("Hello", mask=None), message("Hello"), client=True)

# --- Section 5.2: the base framing protocol ---

for rsv in range(1, 8):
    for opcode in (TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG):
        bad(f"5.2 RSV {rsv:03b} on opcode {opcode:x} without an extension", "rsv", head(opcode, 0, rsv=rsv)[:2])
for opcode in (3, 4, 5, 6, 7, 0xB, 0xC, 0xD, 0xE, 0xF):
    bad(f"5.2 unknown opcode {opcode:x}", "opcode", head(opcode, 3)[:2], rest=MASK + b"abc")
for length, extended in ((0, 2), (1, 2), (125, 2), (0, 8), (125, 8), (126, 8), (65_535, 8)):
    shown = head(BINARY, length, mask=MASK, extended=extended)[:-4]
    bad(f"5.2 length {length} in {extended} extra bytes is not minimal", "length_encoding", shown, rest=MASK)
for first in (0x80, 0xFF):
    shown = b"\x82\xff" + bytes((first,)) + bytes(7)
    bad(f"5.2 most significant bit of a 64-bit length set ({first:x})", "length_encoding", shown)
for length in (0, 1, 124, 125, 126, 127, 128, 65_535, 65_536):
    good(f"5.2 length {length}", frame(BINARY, bytes(length)), message(bytes(length), BINARY))
good("5.2 payload length 0 of a text frame", text(""), message(""))
EVERY_BYTE = bytes(range(256))
good("5.2 a binary payload may be any bytes", frame(BINARY, EVERY_BYTE), message(EVERY_BYTE, BINARY))
bad("5.2 the first of several errors counts: RSV, then opcode", "rsv", b"\xf3\x7f")
bad("5.2 the first of several errors counts: opcode, then mask", "opcode", b"\x03\x7f")
bad("5.2 the first of several errors counts: control fragmented, then length", "control_fragmented", b"\x09\x7e")
bad("5.2 the first of several errors counts: control length, then mask", "control_length", b"\x89\x7e")
bad("5.2 the first of several errors counts: mask, then order", "mask_required", b"\x80\x01")

# --- Section 5.3: client-to-server masking ---

for name, mask in (("zero", bytes(4)), ("high", b"\xff\xfe\xfd\xfc"), ("mixed", b"\x00\xff\x01\x80")):
    good(f"5.3 {name} masking key", frame(TEXT, b"mask me, please", mask=mask), message("mask me, please"))
good("5.3 a key per frame", text("1", mask=b"abcd") + text("2", mask=b"wxyz"), message("1"), message("2"))
good(
    "5.3 the key starts anew in every fragment",
    frame(TEXT, b"abcde", fin=False, mask=b"1234") + frame(CONTINUATION, b"fgh", mask=b"5678"),
    message("abcdefgh"),
)

# --- Section 5.4: fragmentation ---

good("5.4 unfragmented and fragmented", text("a") + fragmented(TEXT, b"b", b"c"), message("a"), message("bc"))
good("5.4 fragments keep their order", fragmented(BINARY, *octets(b"0123456789")), message(b"0123456789", BINARY))
good("5.4 a message of one fragment and an empty last one", fragmented(TEXT, b"a", b""), message("a"))
good("5.4 a message of empty fragments", fragmented(BINARY, b"", b"", b""), message(b"", BINARY))
good(
    "5.4 control frames in the middle of a fragmented message",
    part(TEXT, b"a") + frame(PING, b"p") + part(CONTINUATION, b"b") + frame(PONG, b"q") + frame(CONTINUATION, b"c"),
    ("ping", b"p"),
    ("pong", b"q"),
    message("abc"),
)
good(
    "5.4 a close frame in the middle of a fragmented message",
    part(TEXT, b"a") + close(1001, "bye") + frame(CONTINUATION, b"b"),
    ("close", 1001, "bye"),
)
bad("5.4 continuation without a message", "continuation_unexpected", head(CONTINUATION, 1)[:2], rest=MASK + b"a")
bad(
    "5.4 continuation after a finished message",
    "continuation_unexpected",
    fragmented(TEXT, b"a", b"b") + head(CONTINUATION, 1)[:2],
    message("ab"),
)
bad(
    "5.4 continuation after a control frame, and no message",
    "continuation_unexpected",
    frame(PING) + head(CONTINUATION, 0)[:2],
    ("ping", b""),
)
for opcode, fin in itertools.product((TEXT, BINARY), (True, False)):
    bad(
        f"5.4 fragments of two messages interleaved (opcode {opcode}, fin {fin})",
        "continuation_expected",
        part(TEXT, b"a") + head(opcode, 1, fin=fin)[:2],
        rest=MASK + b"b",
    )
bad(
    "5.4 a new message after empty fragments",
    "continuation_expected",
    part(BINARY, b"") + part(CONTINUATION, b"") + head(TEXT, 1)[:2],
)

# --- Section 5.5: control frames ---

for name, opcode in (("close", CLOSE), ("ping", PING), ("pong", PONG)):
    bad(f"5.5 {name} of 126 bytes", "control_length", head(opcode, 126)[:2], rest=bytes(200))
    bad(f"5.5 {name} with a 64-bit length", "control_length", head(opcode, 65_536)[:2])
    bad(f"5.5 {name} fragmented", "control_fragmented", head(opcode, 0, fin=False)[:2])
    bad(f"5.5 {name} fragmented in a message", "control_fragmented", part(TEXT, b"a") + head(opcode, 0, fin=False)[:2])
good("5.5 control payload of 125 bytes", frame(PING, bytes(125)), ("ping", bytes(125)))
good("5.5.2 ping without data", frame(PING), ("ping", b""))
good("5.5.2 ping data is binary", frame(PING, b"\x00\xff\xfe\xfd"), ("ping", b"\x00\xff\xfe\xfd"))
good("5.5.3 unsolicited pong", frame(PONG, b"x") + text("a"), ("pong", b"x"), message("a"))

# --- Sections 5.5.1 and 7.4: the close frame ---

good("5.5.1 close without a body", frame(CLOSE), ("close", 1005, ""))
good("5.5.1 close with a code", close(1000), ("close", 1000, ""))
good("5.5.1 close with a reason", close(1000, "à bientôt"), ("close", 1000, "à bientôt"))
good("5.5.1 longest reason", close(1000, "*" * 123), ("close", 1000, "*" * 123))
bad("5.5.1 close of one byte cannot hold the 2-byte code", "close_length", frame(CLOSE, b"\x03"))
good("5.5.1 nothing after a close frame counts", close(1000) + text("late") + b"\xff", ("close", 1000, ""))
good("5.5.1 a second close frame does not count", close(1000) + close(1001), ("close", 1000, ""))
bad("5.5.1 reason must be UTF-8", "utf8", close(1000, SURROGATE), at=6 + 2 + 13)
bad("5.5.1 reason must not end inside a character", "utf8", close(1000, KOSME[:-1]))
bad("5.5.1 reason of one bad byte", "utf8", close(1000, b"\xff"))
for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014, 3000, 3999, 4000, 4999):
    good(f"7.4 close code {code}", close(code), ("close", code, ""))
for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 32_768, 65_535):
    bad(f"7.4 close code {code} may not be sent", "close_code", close(code))
    bad(f"7.4 close code {code} shows before the reason", "close_code", close(code, "why"), at=8)
bad("7.1.7 nothing after an error counts", "opcode", text("a") + b"\x83\x80", message("a"), rest=text("b"))

# --- Sections 5.6 and 8.1: text is UTF-8 ---

good("5.6 a character split over two fragments", fragmented(TEXT, "é".encode()[:1], "é".encode()[1:]), message("é"))
good("5.6 binary is not looked at", frame(BINARY, b"\xff\xfe\x80"), message(b"\xff\xfe\x80", BINARY))
good("5.6 fragmented binary is not looked at", fragmented(BINARY, b"\xff", b"\x80"), message(b"\xff\x80", BINARY))
bad("8.1 text must be UTF-8", "utf8", text(b"\xff"))
bad("8.1 text must not end inside a character", "utf8", text(KOSME[:-1]))
bad("8.1 fragmented text must not end inside a character", "utf8", fragmented(TEXT, KOSME[:-1], b""))
bad("8.1 fails before the frame is complete", "utf8", text(SURROGATE), at=6 + 13)
bad(
    "8.1 fails before the message is complete",
    "utf8",
    part(TEXT, b"\xe2\x82") + frame(PING) + part(CONTINUATION, b"a"),
    ("ping", b""),
    rest=frame(CONTINUATION, b"b"),
)
good(
    "8.1 a control frame inside of a character",
    part(TEXT, b"\xe2\x82") + frame(PING, b"\xff") + frame(CONTINUATION, b"\xac"),
    ("ping", b"\xff"),
    message("€"),
)
bad("8.1 a good message does not cover for the next", "utf8", text("abc") + text(b"\xff"), message("abc"))
good("8.1 a message does not inherit half a character", text("é") + text("a"), message("é"), message("a"))

# --- Sections 5.8 and 9: extensions (the seam for RFC 7692) ---

good("5.8 RSV1 where it is negotiated", text(b"\xff\xfe", rsv=4), ("compressed", TEXT, b"\xff\xfe"), allow_rsv1=True)
good(
    "5.8 RSV1 counts for the whole message",
    frame(TEXT, b"\xff", fin=False, rsv=4) + frame(PING) + frame(CONTINUATION, b"\xfe") + text("a"),
    ("ping", b""),
    ("compressed", TEXT, b"\xff\xfe"),
    message("a"),
    allow_rsv1=True,
)
good("5.8 without RSV1 a message is plain", frame(BINARY, b"a"), message(b"a", BINARY), allow_rsv1=True)
bad("5.8 text without RSV1 is still checked", "utf8", text(b"\xff"), allow_rsv1=True)
for opcode in (CONTINUATION, CLOSE, PING, PONG):
    shown = part(TEXT, b"a") + head(opcode, 0, rsv=4)[:2]
    bad(f"RFC 7692 6.1 RSV1 on opcode {opcode:x}", "rsv", shown, allow_rsv1=True)
for rsv in (1, 2, 3, 5, 6, 7):
    bad(f"5.8 RSV {rsv:03b} where only RSV1 is negotiated", "rsv", head(TEXT, 0, rsv=rsv)[:2], allow_rsv1=True)

# --- Section 10.4: limits, on what is declared ---

LIMIT = {"max_message_bytes": 300}
good("10.4 a message of the limit", frame(BINARY, bytes(300)), message(bytes(300), BINARY), **LIMIT)
bad("10.4 one byte above the limit", "message_too_big", head(BINARY, 301)[:-4], rest=MASK, **LIMIT)
bad("10.4 2^62 bytes declared", "message_too_big", head(BINARY, 1 << 62)[:-4], **LIMIT)
bad("10.4 2^63-1 bytes declared", "message_too_big", head(BINARY, (1 << 63) - 1)[:-4], **LIMIT)
bad("10.4 limit below 126", "message_too_big", head(TEXT, 11)[:2], max_message_bytes=10)
bad(
    "10.4 sum of the fragments above the limit",
    "message_too_big",
    fragmented(BINARY, bytes(100), bytes(200), last=False) + head(CONTINUATION, 1)[:2],
    **LIMIT,
)
bad(
    "10.4 sum of the fragments above the limit, compressed",
    "message_too_big",
    frame(TEXT, bytes(300), fin=False, rsv=4) + head(CONTINUATION, 1)[:2],
    allow_rsv1=True,
    **LIMIT,
)
good(
    "10.4 control frames do not count",
    fragmented(BINARY, bytes(300), last=False) + frame(PING, bytes(125)) + frame(CONTINUATION),
    ("ping", bytes(125)),
    message(bytes(300), BINARY),
    **LIMIT,
)
good("10.4 the next message starts at zero", frame(BINARY, bytes(300)) * 2, *[message(bytes(300), BINARY)] * 2, **LIMIT)
good("10.4 fragments up to their limit", fragmented(TEXT, b"a", b"b", b"c"), message("abc"), max_fragments=3)
good(
    "10.4 fragments are counted by message",
    fragmented(TEXT, b"a", b"b", b"c") * 2,
    message("abc"),
    message("abc"),
    max_fragments=3,
)
bad(
    "10.4 fragments above their limit",
    "too_many_fragments",
    fragmented(TEXT, b"a", b"b", b"c", last=False) + head(CONTINUATION, 0)[:2],
    max_fragments=3,
)
bad(
    "10.4 empty fragments count",
    "too_many_fragments",
    fragmented(TEXT, b"", b"", b"", last=False) + head(CONTINUATION, 0, fin=False)[:2],
    max_fragments=3,
)
good(
    "10.4 control frames are no fragments",
    part(TEXT, b"a") + frame(PING) * 5 + frame(CONTINUATION, b"b"),
    *[("ping", b"")] * 5,
    message("ab"),
    max_fragments=2,
)

# --- Autobahn group 1: framing ---

for group, opcode, fill in ((1, TEXT, b"*"), (2, BINARY, b"\xfe")):
    for number, length in enumerate((0, 125, 126, 127, 128, 65_535, 65_536), 1):
        good(f"Autobahn 1.{group}.{number}", frame(opcode, fill * length), message(fill * length, opcode))

# --- Autobahn group 2: pings and pongs (the answers are the connection's) ---

good("Autobahn 2.1", frame(PING), ("ping", b""))
good("Autobahn 2.2", frame(PING, b"Hello, world!"), ("ping", b"Hello, world!"))
good("Autobahn 2.3", frame(PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"), ("ping", b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"))
good("Autobahn 2.4", frame(PING, b"\xfe" * 125), ("ping", b"\xfe" * 125))
bad("Autobahn 2.5", "control_length", frame(PING, b"\xfe" * 126), at=2)
good("Autobahn 2.6", frame(PING, b"\xfe" * 125), ("ping", b"\xfe" * 125))
good("Autobahn 2.7", frame(PONG), ("pong", b""))
good("Autobahn 2.8", frame(PONG, b"unsolicited pong payload"), ("pong", b"unsolicited pong payload"))
good(
    "Autobahn 2.9",
    frame(PONG, b"unsolicited pong payload") + frame(PING, b"ping payload"),
    ("pong", b"unsolicited pong payload"),
    ("ping", b"ping payload"),
)
TEN = [b"payload-%d" % i for i in range(10)]
for name in ("2.10", "2.11"):  # 2.11 is 2.10 byte by byte
    good(f"Autobahn {name}", b"".join(frame(PING, data) for data in TEN), *[("ping", data) for data in TEN])

# --- Autobahn group 3: reserved bits (RSV as the number that Autobahn gives) ---

HELLO = b"Hello, world!"
for name, rsv, opcode, before, after in (
    ("3.1", 1, TEXT, b"", b""),
    ("3.2", 2, TEXT, text(HELLO), frame(PING)),
    ("3.3", 3, TEXT, text(HELLO), frame(PING)),
    ("3.4", 4, TEXT, text(HELLO), frame(PING)),
    ("3.5", 5, BINARY, b"", b""),
    ("3.6", 6, PING, b"", b""),
    ("3.7", 7, CLOSE, b"", b""),
):
    wrong = frame(opcode, HELLO, rsv=rsv)
    at = len(before) + 2
    bad(f"Autobahn {name}", "rsv", before + wrong + after, *[message(HELLO)] * bool(before), at=at)

# --- Autobahn group 4: opcodes ---

for name, opcode, payload, before in (
    ("4.1.1", 3, b"", b""),
    ("4.1.2", 4, b"reserved opcode payload", b""),
    ("4.1.3", 5, b"", text(HELLO)),
    ("4.1.4", 6, HELLO, text(HELLO)),
    ("4.1.5", 7, HELLO, text(HELLO)),
    ("4.2.1", 11, b"", b""),
    ("4.2.2", 12, b"reserved opcode payload", b""),
    ("4.2.3", 13, b"", text(HELLO)),
    ("4.2.4", 14, HELLO, text(HELLO)),
    ("4.2.5", 15, HELLO, text(HELLO)),
):
    wrong = frame(opcode, payload)
    at = len(before) + 2
    bad(f"Autobahn {name}", "opcode", before + wrong + frame(PING), *[message(HELLO)] * bool(before), at=at)

# --- Autobahn group 5: fragmentation ---

F1, F2, F3, F4, F5 = (b"fragment%d" % i for i in range(1, 6))
for name, opcode in (("5.1", PING), ("5.2", PONG)):
    bad(f"Autobahn {name}", "control_fragmented", part(opcode, F1) + frame(CONTINUATION, F2), at=2)
for name in ("5.3", "5.4", "5.5"):  # sent at once, frame by frame, byte by byte
    good(f"Autobahn {name}", fragmented(TEXT, F1, F2), message(F1 + F2))
for name in ("5.6", "5.7", "5.8"):
    wire = part(TEXT, F1) + frame(PING, b"ping payload") + frame(CONTINUATION, F2)
    good(f"Autobahn {name}", wire, ("ping", b"ping payload"), message(F1 + F2))
for names, fin in ((("5.9", "5.10", "5.11"), True), (("5.12", "5.13", "5.14"), False)):
    for name in names:
        wrong = frame(CONTINUATION, b"non-continuation payload", fin=fin)
        bad(f"Autobahn {name}", "continuation_unexpected", wrong + text(HELLO), at=2)
bad(
    "Autobahn 5.15",
    "continuation_unexpected",
    fragmented(TEXT, F1, F2) + part(CONTINUATION, F3) + text(F4),
    message(F1 + F2),
    at=len(fragmented(TEXT, F1, F2)) + 2,
)
for name, fin in (("5.16", False), ("5.17", True)):
    wire = 2 * (frame(CONTINUATION, F1, fin=fin) + fragmented(TEXT, F2, F3))
    bad(f"Autobahn {name}", "continuation_unexpected", wire, at=2)
bad("Autobahn 5.18", "continuation_expected", part(TEXT, F1) + text(F2), at=len(part(TEXT, F1)) + 2)
for name in ("5.19", "5.20"):
    first, second, third, fourth, last = fragments(TEXT, F1, F2, F3, F4, F5)
    wire = first + second + frame(PING, b"pongme 1!") + third + fourth + frame(PING, b"pongme 2!") + last
    good(f"Autobahn {name}", wire, ("ping", b"pongme 1!"), ("ping", b"pongme 2!"), message(F1 + F2 + F3 + F4 + F5))

# --- Autobahn group 6: UTF-8 ---

VALID = "Hello-µ@ßöäüàá-UTF-8!!".encode()
good("Autobahn 6.1.1", text(""), message(""))
good("Autobahn 6.1.2", fragmented(TEXT, b"", b"", b""), message(""))
good("Autobahn 6.1.3", fragmented(TEXT, b"", b"middle frame payload", b""), message("middle frame payload"))
good("Autobahn 6.2.1", text(VALID), message(VALID))
good("Autobahn 6.2.2", fragmented(TEXT, VALID[:12], VALID[12:]), message(VALID))
good("Autobahn 6.2.3", fragmented(TEXT, *octets(VALID)), message(VALID))
good("Autobahn 6.2.4", fragmented(TEXT, *octets(KOSME)), message(KOSME))
bad("Autobahn 6.3.1", "utf8", text(SURROGATE), at=6 + 13)
bad(
    "Autobahn 6.3.2",
    "utf8",
    fragmented(TEXT, *octets(SURROGATE[:13]), last=False),
    rest=b"".join(fragments(TEXT, *octets(SURROGATE))[13:]),
)
# The invalid byte is the second of the second part: nothing later may pass (the strict result of Autobahn).
wire = fragmented(TEXT, KOSME, TOO_HIGH[11:15], b"edited")
bad("Autobahn 6.4.1", "utf8", wire, at=len(part(TEXT, KOSME)) + 6 + 2)
bad(
    "Autobahn 6.4.2",
    "utf8",
    part(TEXT, TOO_HIGH[:12]) + part(CONTINUATION, TOO_HIGH[12:13]),
    rest=frame(CONTINUATION, TOO_HIGH[13:]),
)
for name in ("6.4.3", "6.4.4"):  # one frame, sent in three pieces that are cut at two places
    bad(f"Autobahn {name}", "utf8", text(TOO_HIGH), at=6 + 13)
for vector in vectors("utf8"):
    data = bytes.fromhex(vector["hex"])
    name = f"Autobahn {vector['id']}" if vector["id"].startswith("6.") else f"8.1 {vector['id']}"
    if vector["bad_at"] is None:
        good(name, text(data), message(data))
    else:
        bad(name, "utf8", text(data), at=6 + min(vector["bad_at"] + 1, len(data)))

# --- Autobahn group 7: close handling (the closing handshake is the connection's) ---

good("Autobahn 7.1.1", text(HELLO) + close(1000), message(HELLO), ("close", 1000, ""))
good("Autobahn 7.1.2", close(1000) * 2, ("close", 1000, ""))
good("Autobahn 7.1.3", close(1000) + frame(PING), ("close", 1000, ""))
good("Autobahn 7.1.4", close(1000) + text(HELLO), ("close", 1000, ""))
good("Autobahn 7.1.5", part(TEXT, F1) + close(1000) + frame(CONTINUATION, F2), ("close", 1000, ""))
BIG = b"BAsd7&jh23" * 26_214 + b"BAsd"  # 256 KiB
good("Autobahn 7.1.6", text(BIG) + close(1000) + frame(PING), message(BIG), ("close", 1000, ""))
good("Autobahn 7.3.1", frame(CLOSE), ("close", 1005, ""))
bad("Autobahn 7.3.2", "close_length", frame(CLOSE, b"a"))
good("Autobahn 7.3.3", close(1000), ("close", 1000, ""))
good("Autobahn 7.3.4", close(1000, HELLO), ("close", 1000, "Hello, world!"))
good("Autobahn 7.3.5", close(1000, b"*" * 123), ("close", 1000, "*" * 123))
bad("Autobahn 7.3.6", "control_length", close(1000, b"*" * 124), at=2)
bad("Autobahn 7.5.1", "utf8", close(1000, SURROGATE), at=6 + 2 + 13)
for number, code in enumerate((1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999), 1):
    good(f"Autobahn 7.7.{number}", close(code), ("close", code, ""))
for number, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1):
    bad(f"Autobahn 7.9.{number}", "close_code", close(code))
bad("Autobahn 7.13.1", "close_code", close(5000))
bad("Autobahn 7.13.2", "close_code", close(65_535))


@pytest.fixture(params=IMPLEMENTATIONS)
def frames(request):
    return load(request.param)


@pytest.mark.parametrize("cut", SEGMENTATIONS)
@pytest.mark.parametrize("case", [pytest.param(case, id=case.rule.replace(" ", "_")) for case in CASES])
def test_rule(frames, case, cut):
    if cut is byte_by_byte and len(case.wire) > 100_000:
        cut = whole  # a quarter of a million calls show nothing that a thousand do not
    outcome = run(frames, cut(case.wire), **case.options or {})
    assert outcome.events == case.events
    assert outcome.error == case.error
    if case.error is None:
        assert outcome.consumed == len(case.wire) or case.events[-1][0] == "close"
        return
    assert outcome.close_code == CLOSE_CODES.get(case.error, 1002)
    assert outcome.consumed >= case.shown_at
    if cut is byte_by_byte:
        assert outcome.consumed == case.shown_at, "the error came later than the byte that shows it"


def test_every_autobahn_case_of_the_parser_is_here():
    ids = [f"1.{group}.{number}" for group in (1, 2) for number in range(1, 8)]
    ids += [f"2.{n}" for n in range(1, 12)] + [f"3.{n}" for n in range(1, 8)]
    ids += [f"4.{group}.{number}" for group in (1, 2) for number in range(1, 6)] + [f"5.{n}" for n in range(1, 21)]
    counts = {1: 3, 2: 4, 3: 2, 4: 4, 5: 5, 6: 11, 7: 4, 8: 2, 9: 4, 10: 3, 11: 5, 12: 8, 13: 5, 14: 10, 15: 1}
    counts |= {16: 3, 17: 5, 18: 5, 19: 5, 20: 7, 21: 8, 22: 34, 23: 7}
    ids += [f"6.{group}.{number}" for group, count in counts.items() for number in range(1, count + 1)]
    ids += [f"7.1.{n}" for n in range(1, 7)] + [f"7.3.{n}" for n in range(1, 7)] + ["7.5.1"]
    ids += [f"7.7.{n}" for n in range(1, 14)] + [f"7.9.{n}" for n in range(1, 10)] + ["7.13.1", "7.13.2"]
    covered = [case.rule.removeprefix("Autobahn ") for case in CASES if case.rule.startswith("Autobahn ")]
    assert covered == ids


def test_every_first_two_bytes_in_every_state(frames):
    """All 65,536 headers, between messages and inside of one, against the rules written down a second time."""
    for inside in (False, True):
        opening = part(BINARY, b"") if inside else b""
        for first in range(256):
            for second in range(256):
                expected = first_two_bytes_rule(first, second, inside)
                if expected is None and second not in (0x80, 0xFD, 0xFE, 0xFF):
                    continue  # the lengths between behave like their neighbours, and there are many of them
                outcome = run(frames, [opening + bytes((first, second))])
                assert outcome.error == expected, f"{first:02x} {second:02x} inside={inside}"


def first_two_bytes_rule(first: int, second: int, inside: bool) -> str | None:
    fin, rsv, opcode, masked, length = first >> 7, first >> 4 & 7, first & 15, second >> 7, second & 127
    for broken, code in (
        (rsv, "rsv"),
        (opcode not in (0, 1, 2, 8, 9, 10), "opcode"),
        (opcode >= 8 and not fin, "control_fragmented"),
        (opcode >= 8 and length > 125, "control_length"),
        (not masked, "mask_required"),
        (opcode == 0 and not inside, "continuation_unexpected"),
        (opcode in (1, 2) and inside, "continuation_expected"),
    ):
        if broken:
            return code
    return None


def test_7_4_every_close_code(frames):
    for code in range(0x10000):
        outcome = run(frames, [close(code)])
        if is_sendable_close_code(code):
            assert outcome.events == [("close", code, "")]
        else:
            assert (outcome.error, outcome.close_code) == ("close_code", 1002)


@pytest.mark.parametrize("vector", [pytest.param(v, id=v["name"].replace(" ", "_")) for v in vectors("frames")])
def test_5_7_examples_and_edges_of_the_header(frames, vector):
    """The encoder writes exactly these bytes; the parser of the other role reads them back."""
    payload = bytes.fromhex(vector["payload"]) * vector["times"]
    mask = bytes.fromhex(vector["mask"]) if vector["mask"] else None
    wire = bytes.fromhex(vector["head"]) + (mask + xor(payload, mask) if mask else payload)
    assert vector.get("wire") in (None, wire.hex())
    opcode, fin, rsv1 = vector["opcode"], vector["fin"], vector["rsv1"]
    assert frames.encode_frame(opcode, payload, fin=fin, rsv1=rsv1, mask=mask) == wire

    opening = frame(BINARY, b"", fin=False, mask=mask) if opcode == CONTINUATION else b""
    ending = b"" if fin else frame(CONTINUATION, b"", mask=mask)
    outcome = run(frames, [opening + wire + ending], client=mask is None, allow_rsv1=True)
    assert outcome.error is None
    assert [event[-1] for event in outcome.events] == [payload if opcode != CLOSE else payload[2:].decode()]


# --- Autobahn 1.1.8, 1.2.8 and group 9: big messages, in the pieces that Autobahn sends ---

KIB = 1_024
BIG_CASES: list[tuple[str, int, int, int, int, int]] = []  # id, opcode, message, fragment and chop size, messages


def big(group: str, opcode: int, sizes: list[tuple[int, int, int]], count: int = 1) -> None:
    BIG_CASES.extend((f"{group}.{number}", opcode, *size, count) for number, size in enumerate(sizes, 1))


# The sizes of group 9 are those of Autobahn divided by 16, to be quick; so are the 1,000 messages of 9.7 and 9.8.
WHOLE = 1 << 30
POWERS_OF_4 = (4, 16, 64, 256, KIB, 4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB)
for offset, opcode in enumerate((TEXT, BINARY)):
    BIG_CASES.append((f"1.{1 + offset}.8", opcode, 64 * KIB, WHOLE, 997, 1))
    big(f"9.{1 + offset}", opcode, [(size * KIB, WHOLE, WHOLE) for size in (4, 16, 64, 256, 512, 1_024)])
    big(f"9.{3 + offset}", opcode, [(256 * KIB, max(size, 64), WHOLE) for size in POWERS_OF_4])
    big(f"9.{5 + offset}", opcode, [(64 * KIB, WHOLE, size) for size in (64, 128, 256, 512, KIB, 2 * KIB)])
    big(f"9.{7 + offset}", opcode, [(size, WHOLE, WHOLE) for size in (0, 16, 64, 256, KIB, 4 * KIB)], count=62)


def chopped(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("case", [pytest.param(case, id=f"Autobahn_{case[0]}") for case in BIG_CASES])
def test_autobahn_big_messages(frames, case):
    _, opcode, size, fragment, chop, count = case
    data = (b"BAsd7&jh23" * (size // 10 + 1))[:size]
    wire = fragmented(opcode, *chopped(data, fragment) or [b""])
    outcome = run(frames, chopped(wire * count, chop), max_message_bytes=KIB * KIB, max_fragments=4 * KIB)
    assert outcome.events == [message(data, opcode)] * count

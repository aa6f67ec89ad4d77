"""The compiled frame codec and its pure twin on random input: same events, same errors at the same byte, same output.

Streams are mostly legal frames with some field wrong, then damaged as bytes, then cut anywhere. The sinks of both
parsers act the same way: pause, resume or halt after some event. Where there is a third judge (CPython's UTF-8 decoder,
XOR byte by byte) both are held to it. With STREET_FAST_PURE=1 only those tests remain.
"""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from street_fast.errors import ProtocolError
from tests.frames_harness import (
    BINARY,
    CLOSE,
    CONTINUATION,
    IMPLEMENTATIONS,
    PING,
    PONG,
    TEXT,
    Recorder,
    frame,
    head,
    load,
    run,
    text,
    xor,
)

both = pytest.mark.skipif(IMPLEMENTATIONS == ["pure"], reason="STREET_FAST_PURE=1: there is nothing to compare with")


@pytest.fixture(params=IMPLEMENTATIONS, scope="module")
def frames(request):
    return load(request.param)


class Actor(Recorder):
    """Records, and does to its parser what the script says after the nth event."""

    def __init__(self, script: dict[int, str]) -> None:
        super().__init__()
        self.script = script
        self.parser: Any = None

    def act(self) -> None:
        action = self.script.get(len(self.events))
        if action == "raise":
            raise ZeroDivisionError
        if action == "blink":
            self.parser.pause()
            self.parser.resume()
        elif action:
            getattr(self.parser, action)()

    def on_message(self, opcode: int, data: bytes) -> None:
        super().on_message(opcode, data)
        self.act()

    def on_compressed(self, opcode: int, data: bytes) -> None:
        super().on_compressed(opcode, data)
        self.act()

    def on_ping(self, data: bytes) -> None:
        super().on_ping(data)
        self.act()

    def on_pong(self, data: bytes) -> None:
        super().on_pong(data)
        self.act()

    def on_close(self, code: int, reason: str) -> None:
        super().on_close(code, reason)
        self.act()


def trace(name: str, pieces: list[bytes], script: dict[int, str], options: dict[str, Any]) -> list[Any]:
    """What an observer sees after every piece: events so far, what was raised, and the state of the parser."""
    sink = Actor(script)
    sink.parser = parser = load(name).FrameParser(sink, **options)
    seen: list[Any] = []
    for number, piece in enumerate(pieces):
        raised = None
        try:
            parser.feed(piece)
            if parser.paused and number % 3 == 2:
                parser.resume()
        except ProtocolError as error:
            raised = (error.code, error.close_code, str(error))
        except ZeroDivisionError:
            raised = "ZeroDivisionError"
        seen.append((len(sink.events), raised, parser.halted, parser.paused, parser.buffered, parser.mid_message))
    return [seen, sink.events]


payloads = st.one_of(
    st.binary(max_size=20),
    st.text(max_size=12).map(str.encode),
    st.sampled_from([b"", b"\xed\xa0\x80", b"\xf4\x90", b"\xe2\x82", b"\xac", "κ\u1f79σμε".encode()]),
    st.integers(100, 400).map(lambda size: (bytes(range(256)) * 2)[:size]),
    st.integers(0, 300).map(lambda size: b"a" * size),
)
masks = st.one_of(st.binary(min_size=4, max_size=4), st.just(bytes(4)))


@st.composite
def legal_frames(draw: st.DrawFn, inside: bool) -> tuple[bytes, bool]:
    """One legal frame, and whether a message is unfinished after it."""
    mask = draw(masks)
    opcode = draw(st.sampled_from([TEXT, BINARY, CONTINUATION, CONTINUATION, PING, PONG]))
    if opcode in (PING, PONG):
        return frame(opcode, draw(payloads)[:125], mask=mask), inside
    opcode = CONTINUATION if inside else (opcode or TEXT)
    fin = draw(st.booleans())
    return frame(opcode, draw(payloads), fin=fin, mask=mask), not fin


@st.composite
def odd_frames(draw: st.DrawFn) -> bytes:
    """A frame whose fields may be anything."""
    payload = draw(payloads)
    mask = draw(st.one_of(masks, st.none()))
    fields = {
        "fin": draw(st.booleans()),
        "rsv": draw(st.sampled_from([0, 0, 0, 4, 4, 1, 7])),
        "extended": draw(st.sampled_from([None, None, 2, 8])),
    }
    length = draw(st.sampled_from([len(payload), len(payload), len(payload) + 1, 126, 65_536, 1 << 40, 1 << 63]))
    if fields["extended"] is None or length >= 1 << 8 * fields["extended"]:
        fields["extended"] = 0 if length < 126 else 2 if length < 1 << 16 else 8
    opcode = draw(st.sampled_from([0, 1, 2, 8, 8, 9, 10, 3, 15]))
    return head(opcode, length, mask=mask, **fields) + (payload if mask is None else xor(payload, mask))


@st.composite
def closes(draw: st.DrawFn) -> bytes:
    code = draw(st.one_of(st.sampled_from([1000, 1001, 1005, 1006, 1015, 4999, 5000]), st.integers(0, 0xFFFF)))
    payload = code.to_bytes(2, "big") + draw(payloads)
    return frame(CLOSE, payload[: draw(st.sampled_from([0, 1, 2, 3, 125]))], mask=draw(masks))


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    wire = bytearray()
    inside = False
    for _ in range(draw(st.integers(0, 8))):
        octets, inside = draw(legal_frames(inside))
        wire += octets
    if draw(st.booleans()):
        wire += draw(st.one_of(odd_frames(), closes()))
    for _ in range(draw(st.integers(0, 2))):
        octets, inside = draw(legal_frames(inside))
        wire += octets
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        position = draw(st.integers(0, len(wire)))
        damage = draw(st.sampled_from(["flip", "insert", "delete", "truncate"]))
        if damage == "flip" and position < len(wire):
            wire[position] ^= 1 << draw(st.integers(0, 7))
        elif damage == "insert":
            wire[position:position] = draw(st.binary(min_size=1, max_size=3))
        elif damage == "delete":
            del wire[position : position + draw(st.integers(1, 3))]
        elif damage == "truncate":
            del wire[position:]
    return bytes(wire)


@st.composite
def cut_up(draw: st.DrawFn, wires: st.SearchStrategy[bytes]) -> list[bytes]:
    wire = draw(wires)
    cuts = sorted(draw(st.lists(st.integers(0, len(wire)), max_size=10)))
    return [wire[a:b] for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]


scripts = st.dictionaries(st.integers(1, 6), st.sampled_from(["pause", "pause", "blink", "halt", "raise"]), max_size=3)
options = st.fixed_dictionaries(
    {},
    optional={
        "client": st.booleans(),
        "max_message_bytes": st.sampled_from([1, 100, 125, 126, 300, 1 << 62, (1 << 63) - 1]),
        "max_fragments": st.sampled_from([1, 2, 3, 1 << 31 - 1]),
        "allow_rsv1": st.booleans(),
    },
)


@both
@settings(max_examples=1_500, deadline=None)
@given(pieces=cut_up(streams()), script=scripts, options=options)
def test_same_trace_at_random_cuts(pieces, script, options):
    assert trace("compiled", pieces, script, options) == trace("pure", pieces, script, options)


@both
@settings(max_examples=400, deadline=None)
@given(wire=streams(), options=options)
def test_same_trace_byte_by_byte(wire, options):
    pieces = [wire[i : i + 1] for i in range(len(wire))]
    assert trace("compiled", pieces, {}, options) == trace("pure", pieces, {}, options)


@both
@settings(max_examples=500, deadline=None)
@given(pieces=cut_up(st.binary(max_size=60)), options=options)
def test_same_trace_on_noise(pieces, options):
    assert trace("compiled", pieces, {}, options) == trace("pure", pieces, {}, options)


@settings(max_examples=300, deadline=None)
@given(pieces=cut_up(streams()), options=options)
def test_cuts_do_not_matter(frames, pieces, options):
    def outcome(pieces: list[bytes]) -> Any:
        sink = Recorder()
        parser = frames.FrameParser(sink, **options)
        for piece in pieces:
            try:
                parser.feed(piece)
            except ProtocolError as error:
                return sink.events, error.code, error.close_code
        return sink.events, parser.buffered, parser.mid_message

    wire = b"".join(pieces)
    assert outcome(pieces) == outcome([wire]) == outcome([wire[i : i + 1] for i in range(len(wire))])


@both
@settings(max_examples=300, deadline=None)
@given(
    opcode=st.integers(0, 15),
    payload=st.one_of(payloads, st.sampled_from([bytes(size) for size in (125, 126, 65_535, 65_536)])),
    fin=st.booleans(),
    rsv1=st.booleans(),
    mask=st.one_of(masks, st.none()),
)
def test_same_frames_encoded(opcode, payload, fin, rsv1, mask):
    wires = [load(name).encode_frame(opcode, payload, fin=fin, rsv1=rsv1, mask=mask) for name in IMPLEMENTATIONS]
    assert wires[0] == wires[1] == frame(opcode, payload, fin=fin, rsv=4 if rsv1 else 0, mask=mask)


@both
@settings(max_examples=300, deadline=None)
@given(code=st.integers(0, 6_000), reason=st.one_of(st.text(max_size=200), st.text(alphabet="a€é𝄞", max_size=200)))
def test_same_close_payloads(code, reason):
    def attempt(name: str) -> Any:
        try:
            return load(name).encode_close(code, reason)
        except ValueError as error:
            return type(error)

    assert attempt("compiled") == attempt("pure")


# The next two hold each implementation to a third judge. They count cases, not seconds, so they are not random.


def test_mask_of_every_length_phase_and_alignment(frames):
    block = bytes(i * 37 & 0xFF for i in range(600))
    key = b"\x01\x82\xff\x00"
    expected = [xor(block, key[phase:] + key[:phase]) for phase in range(4)]
    for alignment, phase in itertools.product(range(32), range(4)):
        for length in [*range(300), 511, 512, 513]:
            data = bytearray(block[:1] * alignment + block[:length] + b"\xbb")
            with memoryview(data) as view:
                frames.apply_mask(view[alignment : alignment + length], key, phase)
            assert data[alignment:-1] == expected[phase][:length], (alignment, phase, length)
            assert data[-1] == 0xBB


@functools.cache
def can_become_utf8(tail: bytes) -> bool:
    """Whether some continuation makes `tail` valid, by trying: CPython's decoder is the judge."""
    continuations = [bytes((octet,)) for octet in (0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF)]
    for count in range(4):
        for suffix in itertools.product(continuations, repeat=count):
            try:
                (tail + b"".join(suffix)).decode()
            except UnicodeDecodeError:
                continue
            return True
    return False


def earliest_bad_byte(data: bytes) -> int | None:
    """The index of the first byte after which nothing helps; len(data) if only the end is missing."""
    start = 0  # of the character that is unfinished
    for i in range(len(data)):
        tail = data[start : i + 1]
        if not can_become_utf8(tail):
            return i
        try:
            tail.decode()
        except UnicodeDecodeError:
            continue
        start = i + 1
    return None if start == len(data) else len(data)


def assert_fails_at_the_earliest_byte(frames: Any, data: bytes, sizes: list[int]) -> None:
    """Feeds `data` as a text message in fragments of `sizes` (the last takes what is left), byte by byte."""
    wire = bytearray()
    where: list[int] = []  # the index in `wire` of every byte of `data`
    rest = data
    for number, size in enumerate(sizes):
        fin = number == len(sizes) - 1
        payload, rest = (rest, b"") if fin else (rest[:size], rest[size:])
        wire += head(CONTINUATION if number else TEXT, len(payload), fin=fin, mask=bytes(4))
        where += range(len(wire), len(wire) + len(payload))
        wire += payload
    where.append(len(wire) - 1)  # where a missing end shows

    sink = Recorder()
    parser = frames.FrameParser(sink)
    failed_at = error = None
    for failed_at, octet in enumerate(wire):  # noqa: B007
        try:
            parser.feed(bytes((octet,)))
        except ProtocolError as violation:
            error = violation.code
            break
    expected = earliest_bad_byte(data)
    if expected is None:
        assert (error, sink.events) == (None, [("message", TEXT, data)])
    else:
        assert (error, failed_at, sink.events) == ("utf8", where[expected], []), data.hex()


INTERESTING = bytes.fromhex("00 61 7f 80 8f 90 9f a0 bf c0 c1 c2 df e0 e1 ec ed ee ef f0 f1 f3 f4 f5 ff")


def test_utf8_fails_at_the_earliest_byte(frames):
    """Every three of the bytes where something changes, and all fourth bytes behind what may need one."""
    for data in map(bytes, itertools.product(INTERESTING, repeat=3)):
        expected = earliest_bad_byte(data)
        assert frames.validate_utf8(data) is (expected is None), data.hex()
        assert_fails_at_the_earliest_byte(frames, data, [3])
        if expected == 3 and data[0] >= 0xF0:
            for last in INTERESTING:
                assert_fails_at_the_earliest_byte(frames, data + bytes((last,)), [4])


suspicious = st.lists(st.sampled_from(INTERESTING), max_size=8).map(bytes)


@settings(max_examples=500, deadline=None)
@given(
    data=st.one_of(
        st.binary(max_size=40), suspicious, st.builds(lambda t, b: t.encode() + b, st.text(max_size=20), suspicious)
    ),
    sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6),
)
def test_utf8_fails_at_the_earliest_byte_across_fragments(frames, data, sizes):
    assert_fails_at_the_earliest_byte(frames, data, sizes)


@settings(max_examples=300, deadline=None)
@given(data=st.one_of(st.binary(max_size=100), st.text(max_size=100).map(str.encode)), prefix=st.integers(0, 40))
def test_utf8_as_cpython_decodes(frames, data, prefix):
    data = b"a" * prefix + data
    try:
        data.decode()
    except UnicodeDecodeError:
        valid = False
    else:
        valid = True
    assert frames.validate_utf8(data) is valid
    outcome = run(frames, [text(data)])
    assert outcome.error == (None if valid else "utf8")
    assert outcome.events == ([("message", TEXT, data)] if valid else [])

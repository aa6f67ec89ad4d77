"""Fuzzes the frame parser: mutated streams, cut anywhere, in front of three judges.

The compiled parser and its pure twin must show the same after every read: events, errors with their sentence, state.
wsproto, a parser by other people, must see the same events and then the same close code. It differs in two ways,
which `Judge` and `by_wsproto` allow for:

- It does not know close code 1014 (bad gateway), which was registered after RFC 6455.
- It looks at some things later than at the byte that shows them: at headers, control frames and the first half of a
  surrogate when they are whole. So it gets the stream up to the byte at which ours failed, and then more bytes, until
  it fails too, or accepts what ours refused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from wsproto.frame_protocol import FrameProtocol, Opcode, ParseFailed

from street_fast.errors import ProtocolError
from tests.frames_harness import (
    BINARY,
    CLOSE,
    CONTINUATION,
    IMPLEMENTATIONS,
    MASK,
    PING,
    PONG,
    TEXT,
    Recorder,
    close,
    frame,
    head,
    load,
    text,
    vectors,
    xor,
)

if TYPE_CHECKING:
    import random

ENDLESS = {"max_message_bytes": (1 << 63) - 1, "max_fragments": (1 << 31) - 1}  # wsproto knows no such limits

GATEWAY = (1014).to_bytes(2, "big")

Outcome = tuple[list[tuple[Any, ...]], "int | None"]


class Judge(FrameProtocol):
    """wsproto, which takes 1014 as it takes 1013."""

    def _process_close(self, frame: Any) -> Any:
        data = bytes(frame.payload)
        if data[:2] != GATEWAY:
            return super()._process_close(frame)
        whole = super()._process_close(frame._replace(payload=b"\x03\xf5" + data[2:]))
        return whole._replace(payload=(1014, whole.payload[1]))


def corpus() -> list[bytes]:
    found = [
        bytes.fromhex(vector["wire"]) for vector in vectors("frames") if len(vector.get("wire", "")) in range(1, 800)
    ]
    found += [text(bytes.fromhex(vector["hex"])) for vector in vectors("utf8")]
    found += [
        frame(PING) + text("κόσμε 𝄞") + close(1000, "bye"),
        frame(TEXT, b"\xf0\x9d", fin=False) + frame(PONG, b"x" * 125) + frame(CONTINUATION, b"\x84\x9e"),
        frame(BINARY, b"a" * 300, fin=False) + frame(CONTINUATION, fin=False) + frame(CONTINUATION, b"b" * 126),
        frame(TEXT, b"a" * 65_536),
        b"".join(close(code) for code in (3000, 4999)),
        text("unmasked", mask=None) + frame(PING, b"p", mask=None) + close(1001, "é", mask=None),
    ]
    return found


# --- making streams ---

PAYLOADS = [
    b"",
    b"a",
    b"Hello",
    "κόσμε".encode(),
    "𝄞".encode(),
    b"\xed\xa0\x80",
    b"\xf4\x90",
    b"\xe2\x82",
    b"\xac",
    b"\x03\xe8",
    b"\x03\xf6",
    b"\x03\xed\xff",
]
SIZES = [0, 1, 7, 8, 31, 32, 33, 63, 64, 65, 124, 125, 126, 127, 128, 255, 300]
LENGTHS = [0, 1, 2, 125, 126, 127, 65_535, 65_536, 1 << 31, 1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]


def payload(rng: random.Random) -> bytes:
    kind = rng.randrange(4)
    if kind == 0:
        return rng.choice(PAYLOADS)
    if kind == 1:
        return b"".join(rng.choices(PAYLOADS, k=rng.randrange(1, 5)))
    if kind == 2:
        return rng.randbytes(rng.choice(SIZES))
    return b"a" * rng.choice(SIZES)


def legal_frames(rng: random.Random, masked: bool) -> bytes:
    """A message in up to four frames, with control frames between them; some end in the middle."""
    wire = b""
    data = payload(rng)
    count = rng.choice([1, 1, 1, 2, 3, 4])
    opcode = rng.choice([TEXT, TEXT, BINARY])
    for number in range(count):
        mask = rng.randbytes(4) if masked else None
        if rng.random() < 0.3:
            wire += frame(rng.choice([PING, PONG]), payload(rng)[:125], mask=mask)
        size = len(data) if number == count - 1 else rng.randrange(len(data) + 1)
        wire += frame(CONTINUATION if number else opcode, data[:size], fin=number == count - 1, mask=mask)
        data = data[size:]
    return wire


def odd_frame(rng: random.Random, masked: bool) -> bytes:
    """One frame with anything in its fields."""
    data = payload(rng)
    mask = rng.randbytes(4) if masked != (rng.random() < 0.1) else None
    length = rng.choice(LENGTHS) if rng.random() < 0.3 else len(data)
    shortest = 0 if length < 126 else 2 if length < 1 << 16 else 8
    extended = rng.choice([size for size in (0, 2, 8) if size >= shortest])
    rsv = rng.choice([0, 0, 0, 0, 4, 1, 7])
    opcode = rng.choice([CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG, 3, 11, 15])
    return head(opcode, length, fin=rng.random() < 0.7, rsv=rsv, mask=mask, extended=extended) + (
        xor(data, mask) if mask else data
    )


def end(rng: random.Random, masked: bool) -> bytes:
    code = rng.choice(
        [1000, 1001, 1004, 1005, 1006, 1007, 1014, 1015, 1016, 2999, 3000, 4999, 5000, rng.randrange(1 << 16)]
    )
    data = (code.to_bytes(2, "big") + payload(rng))[: rng.choice([0, 1, 2, 3, 125])]
    return frame(CLOSE, data, mask=rng.randbytes(4) if masked else None)


def generate(rng: random.Random, masked: bool) -> bytes:
    makers = rng.choices([legal_frames, odd_frame, end], weights=[6, 2, 1], k=rng.randrange(1, 6))
    return b"".join(maker(rng, masked) for maker in makers)


# --- judging ---


def cut(rng: random.Random, wire: bytes) -> list[Any]:
    """Pieces of the kinds of buffer that there are; made anew for each parser, since writable ones are unmasked."""
    cuts = sorted(rng.randrange(len(wire) + 1) for _ in range(rng.choice([0, 1, 2, 5, 12])))
    if rng.random() < 0.1:
        cuts = list(range(min(len(wire), 400)))
    kinds = [bytes, bytearray, memoryview, lambda data: memoryview(bytearray(data))]
    return [(rng.choice(kinds), wire[a:b]) for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]


def trace(frames: Any, pieces: list[Any], options: dict[str, Any], pause_at: int) -> list[Any]:
    """What can be seen after every read."""
    sink = Recorder()
    parser = frames.FrameParser(sink, **options)
    seen: list[Any] = []
    for number, (kind, piece) in enumerate(pieces):
        raised = None
        try:
            if number == pause_at:
                parser.pause()
            parser.feed(kind(piece))
            if number == pause_at + 2:
                parser.resume()
        except ProtocolError as error:
            raised = (error.code, error.close_code, str(error))
        seen.append((len(sink.events), raised, parser.halted, parser.paused, parser.buffered, parser.mid_message))
    return [*seen, sink.events]


def by_us(frames: Any, wire: bytes, client: bool) -> tuple[Outcome, bytes]:
    """With what it read until it failed."""
    sink = Recorder()
    parser = frames.FrameParser(sink, client=client, **ENDLESS)
    try:
        parser.feed(wire)
    except ProtocolError as error:
        code = error.close_code
    else:
        return (sink.events, None), wire
    # At which byte? In the frame that is behind the last event, or further on.
    sink.events.clear()
    parser = frames.FrameParser(sink, client=client, **ENDLESS)
    for count in range(len(wire)):
        try:
            parser.feed(wire[count : count + 1])
        except ProtocolError as error:
            if error.close_code == code:
                return (sink.events, code), wire[: count + 1]
            break
    raise AssertionError(f"cut into bytes, this does not end with {code}: client={client} {wire.hex()}")


def by_wsproto(wire: bytes, client: bool, refused: int | None) -> Outcome:
    """`refused` is the close code with which ours failed at the last byte."""
    judge = Judge(client=client, extensions=[])
    events: list[tuple[Any, ...]] = []
    message: list[bytes] = []
    try:
        judge.receive_bytes(wire)
        for event in judge.received_frames():
            data: Any = event.payload
            if event.opcode is Opcode.CLOSE:
                events.append(("close", int(data[0]), data[1]))
            elif event.opcode is Opcode.PING or event.opcode is Opcode.PONG:
                events.append((event.opcode.name.lower(), data))
            else:
                message.append(data.encode() if isinstance(data, str) else data)
                if event.message_finished:
                    events.append(("message", int(event.opcode), b"".join(message)))
                    message.clear()
        if refused is not None:
            decoder = judge._frame_decoder
            if refused == 1007 and decoder.header is None and not len(decoder.buffer):
                judge.receive_bytes(frame(CONTINUATION, mask=None if client else MASK))
            for _ in range(200):
                if any(judge.received_frames()):
                    break
                judge.receive_bytes(b"\0")
    except ParseFailed as error:
        return events, int(error.code)
    return events, None


def check(rng: random.Random, wire: bytes) -> tuple[object, str | None]:
    """What the stream led to, for the fuzzer to see what is new; and what the judges disagree about."""
    client = len(wire) > 1 and not wire[1] & 0x80
    if rng.random() < 0.02:
        client = not client
    options: dict[str, Any] = {"client": client, "allow_rsv1": rng.random() < 0.1}
    if rng.random() < 0.4:
        options["max_message_bytes"] = rng.choice([1, 5, 100, 125, 126, 300, (1 << 63) - 1])
        options["max_fragments"] = rng.choice([1, 2, 3, 1_024])
    pieces = cut(rng, wire)
    pause_at = rng.randrange(len(pieces)) if rng.random() < 0.2 else len(pieces)
    traces = [trace(load(name), pieces, options, pause_at) for name in IMPLEMENTATIONS]
    if traces[0] != traces[-1]:
        return (
            None,
            f"the twins: {options} {pieces} pause_at={pause_at}\n  compiled {traces[0]}\n  pure     {traces[1]}",
        )

    ours, read = by_us(load(IMPLEMENTATIONS[0]), wire, client)
    judged = by_wsproto(read, client, refused=ours[1])
    if ours != judged:
        return None, f"wsproto: client={client} {read.hex()}\n  ours    {ours}\n  wsproto {judged}"
    errors = tuple(seen[1][0] for seen in traces[0][:-1] if seen[1])
    return (errors, tuple(event[0] for event in ours[0])[:6], ours[1], traces[0][-2][5], len(wire).bit_length()), None

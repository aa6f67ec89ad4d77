"""What the tests of the frame codec share: both implementations, a sink that records, frames as a peer builds them,
and ways to cut a stream.

``load(name)`` gives a module with the names of ``street_fast/_frames.pyi``. A missing extension fails the test; only
STREET_FAST_PURE=1 leaves it out. ``frame()`` builds what the wire should carry without the code under test, and can
build what it should not.
"""

from __future__ import annotations

import importlib
import json
import os
import random
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from street_fast.errors import ProtocolError

MODULES = {"compiled": "street_fast._frames", "pure": "street_fast._frames_py"}
IMPLEMENTATIONS = ["pure"] if os.environ.get("STREET_FAST_PURE") == "1" else ["compiled", "pure"]
VECTORS = Path(__file__).parent / "vectors"

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0x0, 0x1, 0x2, 0x8, 0x9, 0xA
MASK = bytes.fromhex("37fa213d")

SEED = int(os.environ.get("STREET_FAST_TEST_SEED") or random.randrange(1 << 32))


def load(name: str) -> Any:
    try:
        return importlib.import_module(MODULES[name])
    except ImportError as error:
        pytest.fail(
            f"{MODULES[name]} is not there ({error}): run `python setup.py build_ext --inplace`, "
            "or set STREET_FAST_PURE=1 to test the pure twin alone",
            pytrace=False,
        )


def vectors(name: str) -> list[dict[str, Any]]:
    return json.loads((VECTORS / f"{name}.json").read_text())


def xor(data: bytes, mask: bytes) -> bytes:
    """Section 5.3 to the letter."""
    return bytes(octet ^ mask[i % 4] for i, octet in enumerate(data))


def head(
    opcode: int,
    length: int,
    *,
    fin: bool = True,
    rsv: int = 0,
    mask: bytes | None = MASK,
    extended: int | None = None,
) -> bytes:
    """A frame header that declares `length`, in `extended` bytes (0, 2 or 8) if that is given, else in the fewest."""
    if extended is None:
        extended = 0 if length < 126 else 2 if length < 1 << 16 else 8
    short = {0: length, 2: 126, 8: 127}[extended]
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    second = (0x80 if mask is not None else 0) | short
    return bytes((first, second)) + (length.to_bytes(extended, "big") if extended else b"") + (mask or b"")


def frame(opcode: int, payload: bytes = b"", *, mask: bytes | None = MASK, **fields: Any) -> bytes:
    """A frame as a client sends it, or as a server does with mask=None."""
    return head(opcode, len(payload), mask=mask, **fields) + (payload if mask is None else xor(payload, mask))


def text(payload: str | bytes, **fields: Any) -> bytes:
    return frame(TEXT, payload.encode() if isinstance(payload, str) else payload, **fields)


def close(code: int, reason: str | bytes = b"", **fields: Any) -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + (reason.encode() if isinstance(reason, str) else reason), **fields)


class Recorder:
    """A sink that keeps what it gets as tuples."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def on_message(self, opcode: int, data: bytes) -> None:
        self.events.append(("message", opcode, data))

    def on_compressed(self, opcode: int, data: bytes) -> None:
        self.events.append(("compressed", opcode, data))

    def on_ping(self, data: bytes) -> None:
        self.events.append(("ping", data))

    def on_pong(self, data: bytes) -> None:
        self.events.append(("pong", data))

    def on_close(self, code: int, reason: str) -> None:
        self.events.append(("close", code, reason))


class Outcome(NamedTuple):
    events: list[tuple[Any, ...]]
    error: str | None  # ProtocolError.code
    close_code: int | None
    consumed: int  # bytes fed when the error was raised, or all


def run(frames: Any, pieces: list[bytes], **options: Any) -> Outcome:
    """Feeds `pieces` to a new parser until one raises. Whatever comes after an error or a close must be ignored."""
    sink = Recorder()
    parser = frames.FrameParser(sink, **options)
    consumed = 0
    error = close_code = None
    for piece in pieces:
        consumed += len(piece)
        try:
            parser.feed(piece)
        except ProtocolError as violation:
            error, close_code = violation.code, violation.close_code
            break
    if error is not None or (sink.events and sink.events[-1][0] == "close"):
        before = len(sink.events)
        mask = None if options.get("client") else MASK
        parser.feed(text("ignored", mask=mask) + frame(PING, mask=mask) + b"\xff" * 20)
        assert sink.events[before:] == [], "the parser went on after the end"
        assert parser.halted
    return Outcome(sink.events, error, close_code, consumed)


def whole(wire: bytes) -> list[bytes]:
    return [wire]


def byte_by_byte(wire: bytes) -> list[bytes]:
    return [wire[i : i + 1] for i in range(len(wire))]


def random_cuts(wire: bytes) -> list[bytes]:
    """Cut at up to eight random places; as writable buffers, which the compiled parser unmasks in place."""
    print(f"STREET_FAST_TEST_SEED={SEED}")
    rng = random.Random(f"{SEED} {wire[:1_000].hex()}")
    cuts = sorted(rng.randrange(len(wire) + 1) for _ in range(rng.randrange(1, 9)))
    return [bytearray(wire[a:b]) for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True)]


SEGMENTATIONS = [whole, byte_by_byte, random_cuts]

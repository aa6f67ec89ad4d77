"""Masking beside memcpy, parsing, encoding and UTF-8."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from types import ModuleType

    from pytest_benchmark.fixture import BenchmarkFixture

MASK = b"\x37\xfa\x21\x3d"
SIZES = [128, 16_384]
FRAMES = 64


@pytest.mark.parametrize("size", SIZES)
def bench_memcpy(benchmark: BenchmarkFixture, size: int) -> None:
    """A block of memory copied into another: what masking in place is held against."""
    source, target = bytearray(size), bytearray(size)  # a bytes source would be copied twice
    calls = range(100)

    def copy() -> None:
        for _ in calls:
            target[:] = source

    benchmark.extra_info["operations"] = len(calls)
    benchmark(copy)


@pytest.mark.parametrize("size", SIZES)
def bench_mask(benchmark: BenchmarkFixture, frames: ModuleType, size: int) -> None:
    block = bytearray(size)
    apply_mask = frames.apply_mask
    calls = range(100)

    def mask() -> None:
        for _ in calls:
            apply_mask(block, MASK)

    benchmark.extra_info["operations"] = len(calls)
    benchmark(mask)


class Counter:
    """A sink that does nothing."""

    def on_message(self, opcode: int, data: bytes) -> None: ...
    def on_ping(self, data: bytes) -> None: ...
    def on_pong(self, data: bytes) -> None: ...
    def on_close(self, code: int, reason: str) -> None: ...


@pytest.mark.parametrize("size", SIZES)
def bench_parse(benchmark: BenchmarkFixture, frames: ModuleType, size: int) -> None:
    """Masked text messages of one frame each, FRAMES of them in one read."""
    parser = frames.FrameParser(Counter())
    wire = frames.encode_frame(frames.OP_TEXT, b"x" * size, mask=MASK) * FRAMES

    def parse() -> None:
        parser.feed(bytearray(wire))

    benchmark.extra_info["operations"] = FRAMES
    benchmark(parse)


@pytest.mark.parametrize("size", SIZES)
def bench_encode(benchmark: BenchmarkFixture, frames: ModuleType, size: int) -> None:
    """A server's text frame."""
    payload = b"x" * size
    encode_frame, text = frames.encode_frame, frames.OP_TEXT
    calls = range(100)

    def encode() -> None:
        for _ in calls:
            encode_frame(text, payload)

    benchmark.extra_info["operations"] = len(calls)
    benchmark(encode)


TEXTS = {"ascii": "x" * 16_384, "mixed": "Grüße, 世界 🙂 " * 700}


@pytest.mark.parametrize("kind", TEXTS)
def bench_utf8(benchmark: BenchmarkFixture, frames: ModuleType, kind: str) -> None:
    """About 16 KiB, valid to the end."""
    data: Any = TEXTS[kind].encode()
    assert benchmark(frames.validate_utf8, data)

"""The fuzzer of `make fuzz`, for a moment: its judges agree, and a parser with a mistake does not get past them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from street_fast.http1 import RequestReader
from tests.frames_harness import IMPLEMENTATIONS, SEED, load
from tests.fuzz import frames, http_heads
from tests.fuzz.__main__ import fuzz


@pytest.mark.parametrize("target", [frames, http_heads], ids=["frames", "http_heads"])
def test_the_judges_agree(target):
    print(f"STREET_FAST_TEST_SEED={SEED}")
    count, outcomes, disagreements = fuzz(target, SEED, executions=3_000)
    assert disagreements == []
    assert count == 3_000
    assert outcomes > 50


def lax(name: str) -> Any:
    real = load(name)
    return SimpleNamespace(
        FrameParser=lambda sink, **options: real.FrameParser(sink, **{**options, "allow_rsv1": True})
    )


@pytest.mark.skipif(IMPLEMENTATIONS == ["pure"], reason="STREET_FAST_PURE=1: there is nothing to compare with")
def test_one_lax_parser_is_found_by_its_twin(monkeypatch):
    monkeypatch.setattr(frames, "load", lambda name: lax(name) if name == "pure" else load(name))
    assert "the twins" in fuzz(frames, SEED, executions=3_000)[2][0]


def test_lax_parsers_are_found_by_wsproto(monkeypatch):
    monkeypatch.setattr(frames, "load", lax)
    assert "wsproto" in fuzz(frames, SEED, executions=3_000)[2][0]


def test_a_lax_reader_is_found_by_h11(monkeypatch):
    class Lax(RequestReader):
        def feed(self, data: bytes) -> None:
            super().feed(data.replace(b": xchunked", b": chunked"))

    monkeypatch.setattr(http_heads, "RequestReader", Lax)
    assert fuzz(http_heads, SEED, executions=600)[2]

"""The JSON envelope, in and out, beside the standard library's reading of the same bytes."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from street_fast.messages import decode

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

ENVELOPE = b'{"type":"chat","channel":"general","data":{"text":"Hello, everybody!","tags":["a","b"],"n":17},"id":42}'


def bench_envelope_decode(benchmark: BenchmarkFixture) -> None:
    benchmark(decode, ENVELOPE)


def bench_envelope_json_loads(benchmark: BenchmarkFixture) -> None:
    benchmark(json.loads, ENVELOPE)

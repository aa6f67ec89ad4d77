"""The buckets of one client, by a clock that is a variable; over the source as it runs and as it is compiled.

What a socket makes of the verdicts: test_street_socket.py.
"""

from __future__ import annotations

import importlib
import random
from typing import Any

import pytest

from street_fast import _core, rates
from street_fast.limits import Limits
from tests.frames_harness import IMPLEMENTATIONS

TAKEN, TELL, DROPPED, ABUSIVE = "TAKEN", "TELL", "DROPPED", "ABUSIVE"


class Buckets:
    """Those of one client."""

    def __init__(self, module: Any, opening_messages: int = 0, **limits: Any) -> None:
        self.rates = module.Rates(Limits(**limits), opening_messages)
        self.rate = module.Rate(self.rates)

    def take(self, now: float, size: int = 1) -> str:
        return str(self.rate.take(self.rates, now, size).name)

    def take_many(self, now: float, count: int, size: int = 1) -> list[str]:
        return [self.take(now, size) for _ in range(count)]

    def refuse(self, now: float) -> str:
        return str(self.rate.refuse(self.rates, now).name)


@pytest.fixture(params=IMPLEMENTATIONS)
def module(request: pytest.FixtureRequest) -> Any:
    return importlib.import_module(f"street_fast._intake{'' if request.param == 'compiled' else '_py'}")


def test_they_come_from_behind_the_switch() -> None:
    assert (rates.Rate, rates.Rates, rates.Verdict) == (_core.Rate, _core.Rates, _core.Verdict)


def test_a_bucket_is_full_at_first_and_fills_with_time(module: Any) -> None:
    buckets = Buckets(module, messages_per_second=10, messages_burst=20)
    assert buckets.take_many(5.0, 21) == [TAKEN] * 20 + [TELL]
    assert buckets.take_many(5.5, 6) == [TAKEN] * 5 + [DROPPED]
    assert buckets.take_many(100.0, 21) == [TAKEN] * 20 + [TELL]


def test_a_refused_event_takes_from_neither_bucket(module: Any) -> None:
    buckets = Buckets(module, messages_per_second=1, messages_burst=2, event_bytes=1_000, bytes_per_second=1_000)
    assert buckets.take(1.0, 900) == TAKEN
    assert buckets.take(1.0, 200) == TELL
    assert buckets.take(1.0, 100) == TAKEN
    assert buckets.take(1.0, 0) == DROPPED


def test_an_event_of_any_allowed_size_is_taken(module: Any) -> None:
    buckets = Buckets(module, event_bytes=50_000, bytes_per_second=10_000)
    assert buckets.take_many(1.0, 2, 50_000) == [TAKEN, TELL]
    assert buckets.take(6.0, 50_000) == TAKEN


def test_opening_messages_are_had_once_and_cost_bytes(module: Any) -> None:
    buckets = Buckets(module, 3, messages_per_second=10, messages_burst=5)
    assert buckets.take_many(1.0, 9) == [TAKEN] * 8 + [TELL]
    assert buckets.take_many(2.0, 6) == [TAKEN] * 5 + [TELL]
    buckets = Buckets(module, 3, messages_per_second=10, messages_burst=5, event_bytes=100, bytes_per_second=100)
    assert buckets.take_many(1.0, 8, 16) == [TAKEN] * 6 + [TELL, DROPPED]


def test_who_stays_above_its_rate_is_abusive_and_a_pause_forgives(module: Any) -> None:
    buckets = Buckets(module, messages_per_second=10, messages_burst=10, rate_grace_s=5)
    verdicts = [buckets.take_many(1.0 + 0.5 * i, 20)[-1] for i in range(11)]
    assert verdicts == [DROPPED, DROPPED] * 5 + [ABUSIVE]
    buckets = Buckets(module, messages_per_second=10, messages_burst=10, rate_grace_s=5)
    verdicts = [buckets.take_many(1.0 + 1.5 * i, 20)[10] for i in range(11)]
    assert verdicts == [TELL] * 11


def test_a_refusal_from_elsewhere_runs_the_same_clock(module: Any) -> None:
    buckets = Buckets(module, messages_per_second=10, messages_burst=10, rate_grace_s=5)
    assert [buckets.refuse(now) for now in (1.0, 1.5, 2.0, 5.9, 6.0)] == [TELL, DROPPED, TELL, TELL, ABUSIVE]
    assert buckets.take(6.0, 1) == TAKEN
    assert buckets.refuse(6.0) == TELL


def test_over_any_time_no_more_than_burst_and_rate_are_taken(module: Any) -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    buckets = Buckets(module, messages_per_second=7, messages_burst=13)
    now, began, taken = 3.0, 3.0, 0
    for _ in range(3_000):
        now += chance.choice((0, 0, 0.001, 0.05, 0.3))
        taken += buckets.take(now, 10) == TAKEN
        assert taken <= 13 + 7 * (now - began) + 1e-3
    assert taken >= 0.9 * 7 * (now - began)


def test_no_rate_no_bucket(module: Any) -> None:
    buckets = Buckets(module, messages_per_second=None, bytes_per_second=None)
    assert set(buckets.take_many(1.0, 2_000, 60_000)) == {TAKEN}

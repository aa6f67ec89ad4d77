"""The buckets of one client, by a clock that is a variable. What a socket makes of the verdicts: test_street_socket."""

from __future__ import annotations

import random
from typing import Any

from street_fast.limits import Limits
from street_fast.rates import Rate, Rates, Verdict

TAKEN, TELL, DROPPED, ABUSIVE = Verdict.TAKEN, Verdict.TELL, Verdict.DROPPED, Verdict.ABUSIVE


def take(rate: Rate, rates: Rates, now: float, count: int, size: int = 1) -> list[Verdict]:
    return [rate.take(rates, now, size) for _ in range(count)]


def rates_of(opening_messages: int = 0, **limits: Any) -> Rates:
    return Rates(Limits(**limits), opening_messages)


def test_a_bucket_is_full_at_first_and_fills_with_time() -> None:
    rates = rates_of(messages_per_second=10, messages_burst=20)
    rate = Rate(rates)
    assert take(rate, rates, 5.0, 21) == [TAKEN] * 20 + [TELL]
    assert take(rate, rates, 5.5, 6) == [TAKEN] * 5 + [DROPPED]
    assert take(rate, rates, 100.0, 21) == [TAKEN] * 20 + [TELL]


def test_a_refused_event_takes_from_neither_bucket() -> None:
    rates = rates_of(messages_per_second=1, messages_burst=2, event_bytes=1_000, bytes_per_second=1_000)
    rate = Rate(rates)
    assert rate.take(rates, 1.0, 900) is TAKEN
    assert rate.take(rates, 1.0, 200) is TELL
    assert rate.take(rates, 1.0, 100) is TAKEN
    assert rate.take(rates, 1.0, 0) is DROPPED


def test_an_event_of_any_allowed_size_is_taken() -> None:
    rates = rates_of(event_bytes=50_000, bytes_per_second=10_000)
    rate = Rate(rates)
    assert take(rate, rates, 1.0, 2, 50_000) == [TAKEN, TELL]
    assert rate.take(rates, 6.0, 50_000) is TAKEN


def test_opening_messages_are_had_once_and_cost_bytes() -> None:
    rates = rates_of(3, messages_per_second=10, messages_burst=5)
    rate = Rate(rates)
    assert take(rate, rates, 1.0, 9) == [TAKEN] * 8 + [TELL]
    assert take(rate, rates, 2.0, 6) == [TAKEN] * 5 + [TELL]
    rates = rates_of(3, messages_per_second=10, messages_burst=5, event_bytes=100, bytes_per_second=100)
    rate = Rate(rates)
    assert take(rate, rates, 1.0, 8, 16) == [TAKEN] * 6 + [TELL, DROPPED]


def test_who_stays_above_its_rate_is_abusive_and_a_pause_forgives() -> None:
    rates = rates_of(messages_per_second=10, messages_burst=10, rate_grace_s=5)
    rate = Rate(rates)
    verdicts = [take(rate, rates, 1.0 + 0.5 * i, 20)[-1] for i in range(11)]
    assert verdicts == [DROPPED, DROPPED] * 5 + [ABUSIVE]
    rate = Rate(rates)
    verdicts = [take(rate, rates, 1.0 + 1.5 * i, 20)[10] for i in range(11)]
    assert verdicts == [TELL] * 11


def test_a_refusal_from_elsewhere_runs_the_same_clock() -> None:
    rates = rates_of(messages_per_second=10, messages_burst=10, rate_grace_s=5)
    rate = Rate(rates)
    assert [rate.refuse(rates, now) for now in (1.0, 1.5, 2.0, 5.9, 6.0)] == [TELL, DROPPED, TELL, TELL, ABUSIVE]
    assert rate.take(rates, 6.0, 1) is TAKEN
    assert rate.refuse(rates, 6.0) is TELL


def test_over_any_time_no_more_than_burst_and_rate_are_taken() -> None:
    seed = random.randrange(2**32)
    print("seed", seed)
    chance = random.Random(seed)
    rates = rates_of(messages_per_second=7, messages_burst=13)
    rate = Rate(rates)
    now, began, taken = 3.0, 3.0, 0
    for _ in range(3_000):
        now += chance.choice((0, 0, 0.001, 0.05, 0.3))
        taken += rate.take(rates, now, 10) is TAKEN
        assert taken <= 13 + 7 * (now - began) + 1e-3
    assert taken >= 0.9 * 7 * (now - began)


def test_no_rate_no_bucket() -> None:
    rates = rates_of(messages_per_second=None, bytes_per_second=None)
    rate = Rate(rates)
    assert set(take(rate, rates, 1.0, 2_000, 60_000)) == {TAKEN}

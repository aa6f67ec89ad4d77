"""The counters of a server, and histograms."""

from __future__ import annotations

import pytest

from street_fast.metrics import Counters, Histogram


def test_counters_begin_at_zero_and_are_all_told() -> None:
    counters = Counters()
    counters.events_received += 2
    told = counters.as_dict()
    assert set(told) == set(Counters.__slots__)
    assert told.pop("events_received") == 2
    assert set(told.values()) == {0}


def test_a_counter_that_does_not_exist_cannot_be_counted() -> None:
    with pytest.raises(AttributeError):
        Counters().events_recieved += 1  # type: ignore[attr-defined]


def test_a_histogram_counts_each_value_in_the_first_bucket_that_takes_it() -> None:
    histogram = Histogram((0.001, 0.01))
    for value in (0.0, 0.001, 0.0011, 0.01, 5.0):
        histogram.add(value)
    told = histogram.as_dict()
    assert told == {"bounds": [0.001, 0.01], "counts": [2, 2, 1], "sum": pytest.approx(5.0121)}
    histogram.add(1.0)
    assert told["counts"] == [2, 2, 1]  # a copy

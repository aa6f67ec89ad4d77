"""The counters of a server."""

from __future__ import annotations

import pytest

from street_fast.metrics import Counters


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

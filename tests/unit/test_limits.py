"""Limits: defaults, what is refused, and what the sentence says."""

from __future__ import annotations

import dataclasses
import math

import pytest

from street_fast.errors import ConfigurationError
from street_fast.limits import DEFAULT_LIMITS, MOST_SECONDS, Limits, checked_limits

FIELDS = {field.name: str(field.type) for field in dataclasses.fields(Limits)}
OPTIONAL = sorted(name for name, kind in FIELDS.items() if "None" in kind)


def test_the_defaults_are_valid_and_frozen() -> None:
    assert Limits() == DEFAULT_LIMITS
    with pytest.raises(dataclasses.FrozenInstanceError):
        DEFAULT_LIMITS.message_bytes = 1  # type: ignore[misc]


def test_only_keywords_are_taken() -> None:
    with pytest.raises(TypeError):
        Limits(10.0)  # type: ignore[misc]


@pytest.mark.parametrize("name", sorted(FIELDS))
@pytest.mark.parametrize("value", [0, -1, 2**31, 2**70, math.inf, math.nan, True, "1"])
def test_a_value_without_sense_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ConfigurationError, match=rf"Limits\.{name}={value!r}: must be "):
        Limits(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_the_largest_value_is_taken(name: str) -> None:
    parts = {"write_soft_bytes": 1, "request_line_bytes": 1, "event_bytes": 1, "node_beat_s": 1}
    most = MOST_SECONDS if name.endswith("_s") else 2**31 - 1
    wholes = {"write_hard_bytes": most, "request_head_bytes": most, "message_bytes": most, "node_ttl_s": MOST_SECONDS}
    assert getattr(Limits(**{**parts, **wholes, name: most}), name) == most  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match=rf"Limits\.{name}={most + 1}: must be above 0 and at most {most}"):
        Limits(**{**parts, **wholes, name: most + 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_none_switches_off_what_may_be_off(name: str) -> None:
    if name in OPTIONAL:
        assert getattr(Limits(**{name: None}), name) is None  # type: ignore[arg-type]
    else:
        with pytest.raises(ConfigurationError, match=name):
            Limits(**{name: None})  # type: ignore[arg-type]


def test_what_is_counted_is_a_whole_number() -> None:
    with pytest.raises(ConfigurationError, match=r"Limits\.fragments=1\.5: must be a whole number"):
        Limits(fragments=1.5)  # type: ignore[arg-type]
    assert Limits(close_timeout_s=3).close_timeout_s == 3


@pytest.mark.parametrize(
    ("low", "high"),
    [
        ("write_soft_bytes", "write_hard_bytes"),
        ("request_line_bytes", "request_head_bytes"),
        ("event_bytes", "message_bytes"),
        ("node_beat_s", "node_ttl_s"),
    ],
)
def test_a_part_is_not_larger_than_the_whole(low: str, high: str) -> None:
    with pytest.raises(ConfigurationError, match=rf"Limits\.{low}=1001 is above Limits\.{high}=1000"):
        Limits(**{low: 1_001, high: 1_000})  # type: ignore[arg-type]
    Limits(**{low: 1_000, high: 1_000})  # type: ignore[arg-type]


def test_limits_as_an_option() -> None:
    limits = Limits(fragments=3)
    assert checked_limits(limits) is limits
    assert checked_limits(None) is DEFAULT_LIMITS
    for wrong in ({"fragments": 3}, 5, Limits):
        with pytest.raises(ConfigurationError, match=r"limits=.*: must be a Limits object, or None"):
            checked_limits(wrong)

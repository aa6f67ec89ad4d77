"""The values of the contract of backplanes: what can be written, read and refused."""

from __future__ import annotations

import pickle

import pytest

from street_fast.backplanes import History, OutcomeUnknown, Page, Position, Publication, Published, Unavailable
from street_fast.errors import ConfigurationError, StreetError

# --- values ---


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("e:0:0", Position("e", 0, "0")),
        ("9f3a1c:1:00ff00ff00ff00ff", Position("9f3a1c", 1, "00ff00ff00ff00ff")),
        ("A_z-0:999999999999999:x", Position("A_z-0", 999_999_999_999_999, "x")),
        (f"{'e' * 24}:1:{'t' * 16}", Position("e" * 24, 1, "t" * 16)),
    ],
)
def test_a_position_is_read_as_it_is_written(text, position):
    assert Position.parse(text) == position
    assert str(position) == text
    assert len(text) <= 64


@pytest.mark.parametrize(
    "text",
    [
        "",
        "::",
        "e",
        "e:1",
        "e:1:",
        ":1:t",
        "e::t",
        "e:1:t:",
        "e:-1:t",
        "e:+1:t",
        "e:01:t",
        "e:1.0:t",
        "e:1e3:t",
        "e: 1:t",
        "e:1:t ",
        " e:1:t",
        "e:1:t\n",
        "e:0:0\n",
        "e:0:t",  # the start of an epoch has one spelling
        "e:0:00",
        "e:٣:t",
        "e:1:té",
        "e:1:t\0",
        "e/f:1:t",
        "e:1000000000000000:t",
        f"{'e' * 25}:1:t",
        f"e:1:{'t' * 17}",
        f"e:{'1' * 1_000_000}:t",
        b"e:1:t",
        None,
        1,
    ],
)
def test_anything_else_is_no_position(text):
    with pytest.raises(ValueError, match=r"^position .*: must be epoch:offset:tag") as caught:
        Position.parse(text)
    assert len(str(caught.value)) < 200


def test_the_start_of_an_epoch():
    assert Position.start_of("e") == Position("e", 0, "0") == Position.parse("e:0:0")


def test_history_has_defaults_and_is_a_value():
    assert History() == History(size=100, ttl_s=300.0)
    assert hash(History(5, 1)) == hash(History(5, 1))
    with pytest.raises(AttributeError):
        History().size = 1


@pytest.mark.parametrize(
    "options",
    [
        {"size": 0},
        {"size": -1},
        {"size": 1_000_001},
        {"size": 1.5},
        {"size": True},
        {"size": "100"},
        {"size": None},
        {"ttl_s": 0},
        {"ttl_s": -1},
        {"ttl_s": 1_000_001},
        {"ttl_s": float("nan")},
        {"ttl_s": float("inf")},
        {"ttl_s": True},
        {"ttl_s": "1"},
        {"ttl_s": None},
    ],
)
def test_history_that_makes_no_sense_is_refused(options):
    (name,) = options
    with pytest.raises(ConfigurationError, match=rf"History\.{name}="):
        History(**options)


def test_publications_and_answers_are_plain_values():
    position = Position("e", 1, "t")
    assert Publication(b"x") == (b"x", None, None)
    assert Published(position) == (position, False)
    assert Page([], position, True).top is position
    assert pickle.loads(pickle.dumps(position)) == position


def test_the_exceptions_carry_the_codes_of_the_wire():
    assert issubclass(Unavailable, StreetError)
    assert issubclass(OutcomeUnknown, StreetError)
    assert (Unavailable.code, OutcomeUnknown.code) == ("unavailable", "unknown")

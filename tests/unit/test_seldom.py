"""Seldom: a flood becomes a few lines, and its size is in them."""

from __future__ import annotations

from street_fast.seldom import Seldom


def test_the_first_at_once_and_then_one_in_ten_seconds_with_the_number_of_the_others():
    now, lines = 0.0, []
    say = Seldom(lambda message, *values: lines.append(message % values), lambda: now)
    for number in range(1_000):
        say("channel %r: bad", f"c{number}")
    assert lines == ["channel 'c0': bad"]
    now = 10.0
    say("channel %r: bad", "again")
    say("channel %r: bad", "and again")
    assert lines[1:] == ["channel 'again': bad (and 999 more like it before)"]
    now = 100.0
    say("nothing to fill in")
    assert lines[2:] == ["nothing to fill in (and 1 more like it before)"]

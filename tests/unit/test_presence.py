"""Presence and typing as state and differences."""

from __future__ import annotations

import pytest

from street_fast.presence import Difference, Presence


@pytest.fixture
def presence():
    return Presence()


def joined(member_id, **info):
    return Difference("presence:join", {"memberId": member_id, **info})


def left(member_id, **info):
    return Difference("presence:leave", {"memberId": member_id, **info})


def typing(member_id, is_typing):
    return Difference("typing", {"memberId": member_id, "typing": is_typing})


def test_only_the_first_connection_joins_and_only_the_last_leaves(presence):
    assert presence.join("c", "ann") == joined("ann")
    assert presence.join("c", "ann") is None
    assert presence.join("c", "ann") is None
    assert presence.leave("c", "ann") == []
    assert presence.leave("c", "ann") == []
    assert presence.is_present("c", "ann")
    assert presence.leave("c", "ann") == [left("ann")]
    assert not presence.is_present("c", "ann")
    assert presence.join("c", "ann") == joined("ann")


def test_channels_know_nothing_of_each_other(presence):
    presence.join("a", "ann")
    presence.join("b", "bob")
    presence.set_typing("a", "ann", True)
    assert presence.ids("a") == ["ann"]
    assert presence.ids("b") == ["bob"]
    assert not presence.is_present("b", "ann")
    assert presence.typing_ids("b") == []
    assert presence.set_typing("b", "ann", True) is None


def test_members_are_told_in_the_order_in_which_they_came(presence):
    for member_id in ("zoe", "ann", "mia"):
        presence.join("c", member_id)
    presence.join("c", "ann")
    assert presence.ids("c") == ["zoe", "ann", "mia"]
    assert presence.count("c") == 3


def test_info_is_what_the_first_join_said(presence):
    assert presence.join("c", "ann", {"name": "Ann"}) == joined("ann", info={"name": "Ann"})
    presence.join("c", "ann", {"name": "Annabel"})
    presence.join("c", "bob")
    assert presence.describe("c") == [{"memberId": "ann", "info": {"name": "Ann"}}, {"memberId": "bob"}]
    presence.leave("c", "ann")
    assert presence.leave("c", "ann") == [left("ann", info={"name": "Ann"})]
    assert presence.join("c", "ann", {"name": "Annabel"}) == joined("ann", info={"name": "Annabel"})


def test_typing_is_news_when_it_changes(presence):
    presence.join("c", "ann")
    assert presence.set_typing("c", "ann", False) is None
    assert presence.set_typing("c", "ann", True) == typing("ann", True)
    assert presence.set_typing("c", "ann", True) is None
    assert presence.typing_ids("c") == ["ann"]
    assert presence.is_typing("c", "ann")
    assert presence.set_typing("c", "ann", False) == typing("ann", False)
    assert presence.set_typing("c", "ann", False) is None
    assert presence.typing_ids("c") == []


def test_who_is_absent_cannot_type(presence):
    assert presence.set_typing("c", "ann", True) is None
    presence.join("c", "bob")
    assert presence.set_typing("c", "ann", True) is None
    assert presence.typing_ids("c") == []


def test_the_last_leave_ends_typing_first(presence):
    presence.join("c", "ann")
    presence.join("c", "ann")
    presence.set_typing("c", "ann", True)
    assert presence.leave("c", "ann") == []
    assert presence.typing_ids("c") == ["ann"]
    assert presence.leave("c", "ann") == [typing("ann", False), left("ann")]
    assert presence.typing_ids("c") == []


def test_a_leave_without_a_join_is_an_error_of_the_caller(presence):
    with pytest.raises(KeyError):
        presence.leave("c", "ann")
    presence.join("c", "bob")
    with pytest.raises(KeyError):
        presence.leave("c", "ann")
    assert presence.ids("c") == ["bob"]


def test_nothing_is_left_behind(presence):
    for member_id in ("ann", "bob"):
        presence.join("c", member_id)
        presence.set_typing("c", member_id, True)
    for member_id in ("ann", "bob"):
        presence.leave("c", member_id)
    assert presence._members == {}
    assert presence._typing == {}
    presence.is_present("x", "ann")
    presence.ids("x")
    presence.set_typing("x", "ann", True)
    assert presence._members == {}
    assert presence._typing == {}


def test_elsewhere_counts_once(presence):
    assert presence.appear("c", "ann", "info") == joined("ann", info="info")
    assert presence.appear("c", "ann") is None
    assert presence.connections("c", "ann") == 0
    assert presence.join("c", "ann", "other") is None
    assert presence.connections("c", "ann") == 1
    assert presence.info("c", "ann") == "info"
    assert presence.leave("c", "ann") == []
    assert presence.ids("c") == ["ann"]
    assert presence.disappear("c", "ann") == [left("ann", info="info")]
    assert presence.disappear("c", "ann") == []
    assert presence._members == {}


def test_who_is_here_does_not_disappear(presence):
    presence.join("c", "ann")
    assert presence.appear("c", "ann") is None
    assert presence.disappear("c", "ann") == []
    assert presence.ids("c") == ["ann"]
    assert presence.disappear("x", "ann") == []


def test_the_last_one_to_disappear_ends_typing(presence):
    presence.join("c", "ann")
    presence.appear("c", "ann")
    presence.set_typing("c", "ann", True)
    presence.leave("c", "ann")
    assert presence.disappear("c", "ann") == [typing("ann", False), left("ann")]
    assert presence._typing == {}


def test_all_who_are_elsewhere_disappear(presence):
    presence.join("c", "ann")
    for member_id in ("ann", "bob", "cem"):
        presence.appear("c", member_id)
    presence.disappear_all("c")
    assert presence.ids("c") == ["ann"]
    presence.leave("c", "ann")
    presence.disappear_all("c")
    assert presence._members == {}


def test_questions_about_nobody(presence):
    assert presence.connections("c", "ann") == 0
    with pytest.raises(KeyError):
        presence.info("c", "ann")

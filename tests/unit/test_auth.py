"""Member is a value."""

from __future__ import annotations

import dataclasses

import pytest

from street_fast.auth import Member
from street_fast.errors import ConfigurationError


def test_a_member_is_its_fields():
    member = Member("ada", ["admin", "admin", "user"], {"name": "Ada"})
    assert (member.id, member.roles, member.info) == ("ada", frozenset(("admin", "user")), {"name": "Ada"})
    assert member == Member("ada", ("user", "admin"), {"name": "Ada"})
    assert hash(member) == hash(Member("ada", ("user", "admin")))
    assert member != Member("ada")
    assert Member("ada").roles == frozenset()
    assert Member("ada").info is None


def test_nothing_about_it_changes():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Member("ada").id = "bob"  # type: ignore[misc]
    assert not hasattr(Member("ada"), "__dict__")


@pytest.mark.parametrize("identity", ["", None, 5, b"ada", ["ada"]])
def test_an_id_that_is_none(identity):
    with pytest.raises(ConfigurationError, match=r"Member\(id="):
        Member(identity)


@pytest.mark.parametrize("roles", ["admin", [5], [None], [["admin"]], 5, None])
def test_roles_that_are_none(roles):
    with pytest.raises(ConfigurationError, match=r"Member\(roles="):
        Member("ada", roles)


@pytest.mark.parametrize("moment", [True, "1", float("nan"), float("inf"), [1]])
def test_a_time_that_is_none(moment):
    with pytest.raises(ConfigurationError, match=r"Member\(expires_at="):
        Member("ada", expires_at=moment)


def test_when_its_token_ends_is_no_part_of_who_it_is():
    renewed = Member("ada", expires_at=1_700_000_000.5)
    assert renewed.expires_at == 1_700_000_000.5
    assert Member("ada").expires_at is None
    assert renewed == Member("ada")
    assert hash(renewed) == hash(Member("ada"))
    assert dataclasses.replace(renewed, expires_at=None).expires_at is None

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

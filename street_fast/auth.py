"""Who a connection belongs to: the Member that `authenticate` names.

A Member is a value: two with the same fields are equal, and nothing about it changes while the connection lasts.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from street_fast.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Member"]


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class Member:
    """One person or program, on any number of connections.

    `id` is what channels count and other members see; `roles` what it may do; `info` what it tells the others about
    itself (a dict that can be written as JSON), or None. Raises ConfigurationError for an id that is empty or no
    string, and for roles that are not a collection of strings.
    """

    id: str
    roles: frozenset[str]
    info: dict[str, Any] | None = dataclasses.field(hash=False)

    def __init__(self, id: str, roles: Iterable[str] = (), info: dict[str, Any] | None = None) -> None:  # noqa: A002
        if not isinstance(id, str) or not id:
            raise ConfigurationError(f"Member(id={id!r}): must be a string that is not empty")
        try:
            names = frozenset(roles)
        except TypeError:
            names = None
        if names is None or isinstance(roles, str) or not all(isinstance(role, str) for role in names):
            raise ConfigurationError(f"Member(roles={roles!r}): must be a collection of strings")
        object.__setattr__(self, "id", id)
        object.__setattr__(self, "roles", names)
        object.__setattr__(self, "info", info)

"""Who a connection belongs to: the Member that `authenticate` names.

A Member is a value: two with the same fields are equal, and nothing about it changes while the connection lasts. When
its token ends is no part of who it is, and does not count.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any, NamedTuple

from street_fast.errors import ConfigurationError, StreetError

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Grant", "Member", "TokenRefused"]


class TokenRefused(StreetError):
    """A token is not good; the sentence says why, and holds nothing of the token.

    `temporary` is true if the same token may be good later: the keys cannot be had at the moment.
    """

    code = "unauthorized"

    def __init__(self, message: str, *, temporary: bool = False) -> None:
        self.temporary = temporary
        super().__init__(message)


@dataclasses.dataclass(frozen=True, slots=True, init=False)
class Member:
    """One person or program, on any number of connections.

    `id` is what channels count and other members see; `roles` what it may do; `info` what it tells the others about
    itself (a dict that can be written as JSON), or None. `expires_at`, in Unix seconds, is when the token that it came
    with ends, or None for never. Raises ConfigurationError for an id that is empty or no string, for roles that are not
    a collection of strings, and for a time that is no number.
    """

    id: str
    roles: frozenset[str]
    info: dict[str, Any] | None = dataclasses.field(hash=False)
    expires_at: float | None = dataclasses.field(compare=False)

    def __init__(
        self,
        id: str,  # noqa: A002
        roles: Iterable[str] = (),
        info: dict[str, Any] | None = None,
        *,
        expires_at: float | None = None,
    ) -> None:
        if not isinstance(id, str) or not id:
            raise ConfigurationError(f"Member(id={id!r}): must be a string that is not empty")
        try:
            names = frozenset(roles)
        except TypeError:
            names = None
        if names is None or isinstance(roles, str) or not all(isinstance(role, str) for role in names):
            raise ConfigurationError(f"Member(roles={roles!r}): must be a collection of strings")
        if expires_at is not None and (
            isinstance(expires_at, bool) or not isinstance(expires_at, int | float) or not math.isfinite(expires_at)
        ):
            raise ConfigurationError(f"Member(expires_at={expires_at!r}): must be a number of Unix seconds, or None")
        object.__setattr__(self, "id", id)
        object.__setattr__(self, "roles", names)
        object.__setattr__(self, "info", info)
        object.__setattr__(self, "expires_at", expires_at)


class Grant(NamedTuple):
    """What a channel token allows in its channel: `actions`, until `expires_at` (Unix seconds; None: for ever)."""

    actions: frozenset[str]
    expires_at: float | None

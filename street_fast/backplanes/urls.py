"""A backplane by its address: ``redis://``, ``rediss://``, ``redis+sentinel://``, ``redis+cluster://``, ``nats://``, ``tls://``.

The libraries are optional; they are imported when such an address is given.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from street_fast.errors import ConfigurationError

if TYPE_CHECKING:
    from street_fast.backplanes import Backplane
    from street_fast.limits import Limits

__all__ = ["backplane_at", "without_password"]

_REDIS = ("redis", "street_fast.backplanes.redis", "RedisBackplane")
_NATS = ("nats", "street_fast.backplanes.nats", "NatsBackplane")
_KINDS = {
    "redis": _REDIS,
    "rediss": _REDIS,
    "redis+sentinel": _REDIS,
    "rediss+sentinel": _REDIS,
    "redis+cluster": _REDIS,
    "rediss+cluster": _REDIS,
    "unix": _REDIS,
    "nats": _NATS,
    "tls": _NATS,
}


def backplane_at(url: str, limits: Limits | None = None) -> Backplane:
    """The backplane at `url`, not started. Raises ConfigurationError for an address that is none."""
    scheme, separator, _ = url.partition("://")
    if not separator or scheme not in _KINDS:
        raise ConfigurationError(
            f"backplane={without_password(url)!r}: must be the address of a Redis (redis://host:6379/0, rediss://, "
            f"redis+sentinel://, redis+cluster://) or of a NATS server (nats://host:4222, tls://)"
        )
    extra, module, name = _KINDS[scheme]
    try:
        backplane = getattr(importlib.import_module(module), name)
    except ImportError as error:
        library = (error.name or "").partition(".")[0]
        if library not in ("redis", "hiredis", "nats"):
            raise
        raise ConfigurationError(
            f"backplane={without_password(url)!r}: {library} is not installed; pip install 'street_fast[{extra}]'"
        ) from None
    return cast("Backplane", backplane(url, limits=limits))


def without_password(url: str) -> str:
    """The address as it may be shown: what stands before the @ of each host is left out."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return url if "@" not in url else "..."
    hosts = [host.rpartition("@")[2] for host in rest.split(",")]
    return f"{scheme}://{','.join(hosts)}"

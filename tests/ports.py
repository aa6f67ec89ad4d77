"""Ports for servers that are told where to listen, or come back where they were.

They are not of those that the system gives to whoever asks for any port: such a one can be given to somebody else while
its server is not there, and a client that dials it then can even meet itself.
"""

from __future__ import annotations

import itertools
import os
import random
import socket

__all__ = ["free_port"]

# Below what Linux (32768 and up) and the others give out, and for each process of a parallel run others.
_EACH = 1_000
_FIRST = 16_000 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 16 * _EACH
_numbers = itertools.count(random.randrange(_EACH))


def free_port() -> int:
    """A port of loopback that nobody listens on, and that is given out to nobody else for long."""
    for _ in range(_EACH):
        port = _FIRST + next(_numbers) % _EACH
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no port from {_FIRST} to {_FIRST + _EACH - 1} is free")

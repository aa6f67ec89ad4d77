"""How much memory this process may have: the least of what its control group, those above it and the machine allow.

A container's limit is in the files of its control group: ``memory.max`` in version 2, ``memory.limit_in_bytes`` in
version 1. Which group it is, ``/proc/self/cgroup`` says.
"""

from __future__ import annotations

import contextlib
import functools
import os
from pathlib import Path

__all__ = ["memory_limit", "process_memory_limit", "share_memory"]

_UNKNOWN = 2 * 1024**3
"""What is assumed of a machine that does not say how much memory it has."""


_processes = 1


@functools.cache
def process_memory_limit() -> int:
    """The bytes that this process may have, read when it is first asked for."""
    return memory_limit(Path("/")) // _processes


def share_memory(processes: int) -> None:
    """From now on this process may have only its share: there are so many like it."""
    global _processes  # noqa: PLW0603 - a fact of the process
    _processes = processes
    process_memory_limit.cache_clear()


def memory_limit(root: Path) -> int:
    """The same, read now from the files below `root`."""
    return min([*_group_limits(root), _physical_memory()])


def _group_limits(root: Path) -> list[int]:
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return []
    limits = []
    for group in groups:  # hierarchy:controllers:path
        _, controllers, path = (*group.split(":", 2), "", "")[:3]
        if not controllers:
            top, name = root / "sys/fs/cgroup", "memory.max"
        elif "memory" in controllers.split(","):
            top, name = root / "sys/fs/cgroup/memory", "memory.limit_in_bytes"
        else:
            continue
        folder = top / path.strip("/")  # in a container it may not exist: then the group itself is mounted at the top
        for place in (folder, *folder.parents):
            with contextlib.suppress(OSError, ValueError):  # not there, or "max"
                limits.append(int((place / name).read_text()))
            if place == top:
                break
    return [limit for limit in limits if limit > 0]


def _physical_memory() -> int:
    try:
        size = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return _UNKNOWN
    return size if size > 0 else _UNKNOWN

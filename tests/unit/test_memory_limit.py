"""The memory limit, read from trees of files like those that Linux shows."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from street_fast import memory_limit as module
from street_fast.memory_limit import memory_limit, process_memory_limit, share_memory

if TYPE_CHECKING:
    from pathlib import Path

MIB = 1024**2
PHYSICAL = 4_096 * MIB


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    pages = {"SC_PAGE_SIZE": 4_096, "SC_PHYS_PAGES": PHYSICAL // 4_096}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__, raising=False)


def tree(root: Path, files: dict[str, object]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(f"{text}\n")
    return root


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, PHYSICAL),
        ({"proc/self/cgroup": "nonsense"}, PHYSICAL),
        # Version 2: a service, its slice, no limit at all.
        ({"proc/self/cgroup": "0::/app.slice/chat", "sys/fs/cgroup/app.slice/chat/memory.max": 64 * MIB}, 64 * MIB),
        (
            {
                "proc/self/cgroup": "0::/app.slice/chat",
                "sys/fs/cgroup/app.slice/chat/memory.max": "max",
                "sys/fs/cgroup/app.slice/memory.max": 96 * MIB,
            },
            96 * MIB,
        ),
        ({"proc/self/cgroup": "0::/chat", "sys/fs/cgroup/chat/memory.max": "max"}, PHYSICAL),
        ({"proc/self/cgroup": "0::/chat", "sys/fs/cgroup/chat/memory.max": 2 * PHYSICAL}, PHYSICAL),
        # A container with a namespace of its own.
        ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": 128 * MIB}, 128 * MIB),
        # Nothing above the top is looked at.
        ({"proc/self/cgroup": "0::/", "sys/fs/memory.max": 1 * MIB}, PHYSICAL),
        # Version 1, whose "no limit" is a huge number; and in a container that sees the path of the host.
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/chat\n3:memory:/chat\n0::/",
                "sys/fs/cgroup/memory/chat/memory.limit_in_bytes": 9_223_372_036_854_771_712,
            },
            PHYSICAL,
        ),
        (
            {
                "proc/self/cgroup": "3:memory:/docker/0123abc",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": 256 * MIB,
            },
            256 * MIB,
        ),
    ],
)
def test_the_least_of_all_limits(tmp_path: Path, files: dict[str, object], expected: int) -> None:
    assert memory_limit(tree(tmp_path, files)) == expected


@pytest.mark.parametrize("error", [AttributeError, OSError, ValueError])
def test_a_machine_that_does_not_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Any) -> None:
    def sysconf(_name: str) -> int:
        raise error

    monkeypatch.setattr(os, "sysconf", sysconf, raising=False)
    assert memory_limit(tmp_path) == module._UNKNOWN


def test_of_this_process_it_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    process_memory_limit.cache_clear()
    limit = process_memory_limit()
    assert 0 < limit <= PHYSICAL
    monkeypatch.setattr(module, "memory_limit", lambda root: 1)
    assert process_memory_limit() == limit
    process_memory_limit.cache_clear()


def test_one_of_several_has_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "memory_limit", lambda root: 1_000)
    monkeypatch.setattr(module, "_processes", 1)
    share_memory(4)
    assert process_memory_limit() == 250
    share_memory(1)
    assert process_memory_limit() == 1_000
    process_memory_limit.cache_clear()

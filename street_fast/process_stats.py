"""What the system and Python tell about this process, as plain numbers, under the names that Prometheus clients use.

On Linux from ``/proc/self``; elsewhere what `os` and `resource` know, and the rest is left out. Nothing is measured
here: a call reads what the kernel counts anyway.
"""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path

__all__ = ["gc_stats", "process_stats"]


def process_stats(proc: Path = Path("/proc")) -> dict[str, float]:
    """CPU time, memory, file descriptors and when it began; below `proc` is what the kernel tells."""
    times = os.times()
    told: dict[str, float] = {"cpu_seconds": times.user + times.system}
    with contextlib.suppress(OSError, ValueError, IndexError):
        told |= _memory_and_start(proc)
    with contextlib.suppress(OSError):
        # A modern kernel says how many there are. To list them takes milliseconds when they are thousands.
        fds = proc / "self/fd"
        told["open_fds"] = os.stat(fds).st_size or len(os.listdir(fds))
    with contextlib.suppress(ImportError, OSError):
        import resource  # not on Windows

        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        if most != resource.RLIM_INFINITY:
            told["max_fds"] = most
    return told


def _memory_and_start(proc: Path) -> dict[str, float]:
    # proc(5): after the name in parentheses, which may have anything in it, come the fields from the third on.
    fields = (proc / "self/stat").read_text().rpartition(")")[2].split()
    (boot,) = (line for line in (proc / "stat").read_text().splitlines() if line.startswith("btime "))
    return {
        "virtual_memory_bytes": int(fields[20]),
        "resident_memory_bytes": int(fields[21]) * os.sysconf("SC_PAGE_SIZE"),
        "start_time_seconds": int(boot.split()[1]) + int(fields[19]) / os.sysconf("SC_CLK_TCK"),
    }


def gc_stats() -> dict[str, list[int]]:
    """What the garbage collector has done, by generation: ``collections``, ``collected``, ``uncollectable``."""
    generations = gc.get_stats()
    return {name: [stats[name] for stats in generations] for name in ("collections", "collected", "uncollectable")}

"""What the figures were measured on, and how busy it was."""

from __future__ import annotations

import datetime as dt
import os
import platform
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection

LIBRARIES = ("street_fast", "uvloop", "picows", "aiofastnet", "aiohttp", "websockets", "orjson", "msgspec")

now_s = time.monotonic


def facts() -> dict[str, str]:
    """Processor, kernel, interpreter, libraries, load average at the start, and the date."""
    found = {
        "processor": f"{processor()}, {os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "date": dt.datetime.now(dt.timezone.utc).date().isoformat(),
        "load average": f"{os.getloadavg()[0]:.2f}",
    }
    for library in LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def wait_calm(cores: Collection[int], part: float, limit_s: float) -> None:
    """Returns once nobody used more than this part of the cores for a fifth of a second, or after the limit."""
    deadline = now_s() + limit_s
    while now_s() < deadline:
        before = busy_s(cores)
        time.sleep(0.2)
        if busy_s(cores) - before <= part * 0.2 * len(cores):
            return


def busy_s(cores: Collection[int]) -> float:
    """CPU time that anybody has used on these cores since boot, time stolen by a hypervisor included."""
    wanted = {f"cpu{core}" for core in cores}
    ticks = 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, _, fields = line.partition(" ")
        if name in wanted:
            user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields.split()[:8])
            ticks += user + nice + system + irq + softirq + steal
    return ticks / os.sysconf("SC_CLK_TCK")

"""What the figures were measured on, and how busy it was."""

from __future__ import annotations

import datetime as dt
import json
import os
import platform
import shutil
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

import brokers

if TYPE_CHECKING:
    from collections.abc import Collection

LIBRARIES = (
    "street_fast",
    "uvloop",
    "picows",
    "aiofastnet",
    "aiohttp",
    "websockets",
    "python-socketio",
    "orjson",
    "msgspec",
    "redis",
    "hiredis",
    "nats-py",
)
NODE_LIBRARIES = ("socket.io", "ws", "bufferutil")
NODE_LOCK = Path(__file__).parent / "peers" / "socketio_node" / "package-lock.json"

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
    if shutil.which("node"):
        packages = json.loads(NODE_LOCK.read_text())["packages"]
        found["Node.js"] = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout[
            1:-1
        ]
        found |= {name: packages[f"node_modules/{name}"]["version"] for name in NODE_LIBRARIES}
    return found | brokers.versions()


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

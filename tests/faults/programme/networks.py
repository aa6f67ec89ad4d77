"""A second machine: a network namespace with two cables to the first, one to its broker and one to its clients.

It needs no rights where `unshare -Urn` works: the run is then root in a namespace of its own. What is made here goes
with the processes.
"""

from __future__ import annotations

import shutil
import subprocess

BROKER_SIDE = "10.77.1.1"
"""Where the first machine is reached by the second, over the cable `broker`."""
HOST = "10.77.2.2"
"""Where the second machine is reached by its clients, over the cable `clients`."""

_CABLES = {"broker": "10.77.1", "clients": "10.77.2"}

UNSHARED = ["unshare", "-Urn"]


def why_not() -> str | None:
    """Why there can be no second machine here; None if there can."""
    for program in ("unshare", "nsenter", "ip"):
        if shutil.which(program) is None:
            return f"there is no {program} here"
    tried = subprocess.run(
        [*UNSHARED, "ip", "link", "add", "x0", "type", "veth", "peer", "name", "x1"], check=False, capture_output=True
    )
    return None if tried.returncode == 0 else f"unshare -Urn: {tried.stderr.decode().strip()}"


class Machine:
    """The second machine. To be made within ``unshare -Urn``."""

    def __init__(self) -> None:
        _run("ip", "link", "set", "lo", "up")
        self._holder = subprocess.Popen(["unshare", "-n", "sleep", "3600"])
        self.inside = ["nsenter", "-t", str(self._holder.pid), "-n"]
        """In front of a command line."""
        while _run(*self.inside, "readlink", "/proc/self/ns/net") == _run("readlink", "/proc/self/ns/net"):
            pass
        for name, prefix in _CABLES.items():
            _run("ip", "link", "add", f"{name}0", "type", "veth", "peer", "name", f"{name}1")
            _run("ip", "link", "set", f"{name}1", "netns", str(self._holder.pid))
            _run("ip", "addr", "add", f"{prefix}.1/24", "dev", f"{name}0")
            _run("ip", "link", "set", f"{name}0", "up")
            _run(*self.inside, "ip", "addr", "add", f"{prefix}.2/24", "dev", f"{name}1")
            _run(*self.inside, "ip", "link", "set", f"{name}1", "up")
        _run(*self.inside, "ip", "link", "set", "lo", "up")

    def unplug(self, far_end: bool) -> None:
        """The cable to the broker is out, at this end or at the other."""
        self._set("down", far_end)

    def plug(self, far_end: bool) -> None:
        """Take back `unplug`."""
        self._set("up", far_end)

    def _set(self, state: str, far_end: bool) -> None:
        if far_end:
            _run(*self.inside, "ip", "link", "set", "broker1", state)
        else:
            _run("ip", "link", "set", "broker0", state)

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


def _run(*words: str) -> bytes:
    done = subprocess.run(words, check=False, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.decode().strip()}")
    return done.stdout

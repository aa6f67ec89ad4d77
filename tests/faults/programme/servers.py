"""Nodes: `street-fast serve` in processes of their own, that can be killed and stopped.

Linux: the workers of a supervisor are found in /proc.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tests.brokers import Proxy
from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Sequence

START_S = 30.0
ROOT = Path(__file__).parents[3]


class Node:
    """One `street-fast serve`: a single process, or a supervisor with `workers`.

    `backplane` is a URL, or None for the server's own. `application` is the name of one in applications.py; it gets the
    URL. `inside` is put in front of the command line.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        backplane: str | None,
        history: Sequence[str],
        workers: int = 1,
        host: str = "127.0.0.1",
        inside: Sequence[str] = (),
        application: str | None = None,
    ) -> None:
        self.name = name
        self.host = host
        self.port = free_port()
        self.backplane = backplane
        self.history = list(history)
        self.worker_count = workers
        self.inside = list(inside)
        self.application = application
        self._log = folder / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port

    def command_line(self) -> list[str]:
        words = [*self.inside, sys.executable, "-m", "street_fast", "serve", "--host", self.host]
        words += ["--port", str(self.port), "--workers", str(self.worker_count)]
        if self.application is not None:
            return [*words, f"tests.faults.programme.applications:{self.application}"]
        if self.backplane is not None:
            words += ["--backplane", self.backplane]
        for rule in self.history:
            words += ["--history", rule]
        return words

    async def start(self) -> None:
        """Start it, again perhaps, and wait until clients can connect."""
        environment = os.environ | {"FAULTS_BACKPLANE": self.backplane or ""}
        with self._log.open("ab") as log:
            log.write(f"--- {' '.join(self.command_line())}\n".encode())
            log.flush()
            self._process = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
                self.command_line(), cwd=ROOT, env=environment, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        deadline = time.monotonic() + START_S
        while not await asyncio.to_thread(self._answers):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not come up:\n{self.log[-3_000:]}")
            await asyncio.sleep(0.05)

    def _answers(self) -> bool:
        with contextlib.suppress(OSError), socket.create_connection(self.address, 0.5) as probe:
            probe.settimeout(2)
            probe.sendall(b"GET /nothing HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return probe.recv(4) == b"HTTP"
        return False

    @property
    def log(self) -> str:
        return self._log.read_text("utf-8", "replace")

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def workers(self) -> list[int]:
        """The process ids of the workers of a supervisor."""
        return [pid for pid, line in children_of(self.pid) if b"street_fast.worker" in line]

    def brokers(self) -> list[int]:
        """The process ids of the NATS server of a supervisor."""
        family = [child for child, _ in children_of(self.pid)]
        family += [grandchild for child in family for grandchild, _ in children_of(child)]
        return [pid for pid in family if _name_of(pid) == "nats-server"]

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def send(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def end(self) -> None:
        """SIGTERM, and what it takes when that does not do it."""
        if self._process is None or self._process.poll() is not None:
            return
        for pid in [*self.workers(), self.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        left = children_of(self.pid)
        # All clients are gone by now; a second one does not wait.
        self._process.send_signal(signal.SIGTERM)
        try:
            await asyncio.to_thread(self._process.wait, 15)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            for pid, _ in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


def children_of(parent: int) -> list[tuple[int, bytes]]:
    """The processes that `parent` has started, and their command lines."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            # The name, in parentheses, may have anything in it.
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[1]) == parent and fields[0] != "Z":
                found.append((int(entry.name), (entry / "cmdline").read_bytes()))
    return found


def _name_of(pid: int) -> str:
    with contextlib.suppress(OSError):
        return (Path("/proc") / str(pid) / "comm").read_text().strip()
    return ""


class Switch(Proxy):
    """A Proxy whose next connections go to another server."""

    def aim(self, port: int) -> None:
        self._target_port = port

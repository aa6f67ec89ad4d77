"""The servers that are measured, and how one is started, watched and stopped.

Every server is a process of its own that listens on a free port of 127.0.0.1 and prints ``ready PORT``. On
``/fanout`` a message from any connection goes to all connections of that path, on ``/echo`` back to its sender;
``/idle``, where a server has it, is what the memory of idle connections is measured on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from programs import compile_program

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PEERS = Path(__file__).parent / "peers"
ROOT = Path(__file__).parent.parent
MESSAGE_BYTES = 128
PRIORITY = -15
PR_SET_PDEATHSIG = 1

EVENT = '{"type":"say","data":""}'
PUBLISHED = '{"type":"say","channel":"room","data":"","ts":1700000000000}'


def event_for(delivered: str) -> str:
    """The event of a client that is MESSAGE_BYTES long when it is delivered in this form."""
    return EVENT.replace('""', f'"{"x" * (MESSAGE_BYTES - len(delivered))}"')


@dataclass(frozen=True)
class Server:
    """One row of the tables."""

    name: str
    label: str
    runner: str  # a file of peers/, or the floor
    message: str | None = None  # what a client sends; None: MESSAGE_BYTES bytes of text
    idle_path: str = "/echo"
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self) -> list[str]:
        if self.runner == "floor":
            return [str(compile_program("floor"))]
        return [sys.executable, str(PEERS / self.runner)]


SERVERS = {
    server.name: server
    for server in (
        Server("floor", "bare C, one send() each", "floor"),
        Server("street_fast", "street_fast WebSocket", "street_fast_websocket.py"),
        Server("hub", "street_fast ChannelHub", "street_fast_hub.py", message=event_for(PUBLISHED)),
        Server(
            "socket", "street_fast StreetSocket", "street_fast_socket.py", message=event_for(EVENT), idle_path="/idle"
        ),
        Server("picows", "picows", "picows_server.py"),
        Server("aiohttp", "aiohttp", "aiohttp_server.py"),
        Server("websockets", "websockets", "websockets_server.py"),
        Server("pure", "street_fast, pure Python", "street_fast_websocket.py", environment={"STREET_FAST_PURE": "1"}),
    )
}


class ServerFailedError(Exception):
    """A server did not start, or died."""


@dataclass
class RunningServer:
    server: Server
    pid: int
    port: int

    def cpu_s(self) -> float:
        """CPU time of the process so far, all threads."""
        utime, stime = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        return (int(utime) + int(stime)) / os.sysconf("SC_CLK_TCK")

    def wait_quiet(self, timeout_s: float = 20.0) -> None:
        """Returns once the server has done nothing for a tenth of a second, its closed connections forgotten."""
        deadline = time.monotonic() + timeout_s
        before = self.cpu_s()
        while time.monotonic() < deadline:
            time.sleep(0.1)
            now = self.cpu_s()
            if now == before:
                return
            before = now


def prepare(core: int) -> None:
    """For a new process: its core, a priority above everybody else's where that is allowed, and our end as its end."""
    os.sched_setaffinity(0, {core})
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, PRIORITY)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


@contextlib.contextmanager
def running(server: Server, core: int) -> Iterator[RunningServer]:
    """The server in a process of its own, pinned to one core. Raises ServerFailedError with what it last said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **server.environment}
    if not server.environment:
        environment.pop("STREET_FAST_PURE", None)
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            server.command(),
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            preexec_fn=lambda: prepare(core),  # noqa: PLW1509 (no threads here)
        )
        try:
            assert process.stdout is not None
            word, _, port = process.stdout.readline().strip().partition(" ")
            if word != "ready":
                process.wait(5)
                errors.seek(0)
                raise ServerFailedError(f"{server.name} did not start: {errors.read()[-2000:]}")
            yield RunningServer(server, process.pid, int(port))
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

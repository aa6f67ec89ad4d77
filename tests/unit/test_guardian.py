"""The guardian: what it runs does not outlive whoever started it, however that ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from street_fast import guardian

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is none")

PATIENCE_S = 20
PROGRAM = "import signal, time; {setup}; open('{there}', 'w').close(); {rest}"
GUARDIAN = (sys.executable, "-I", "-S", guardian.__file__)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    return folder


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Iterator[Callable[..., tuple[subprocess.Popen[bytes], int]]]:
    """`start(rest, setup)`: a guardian over a program that has begun, and the id of that."""
    started: list[subprocess.Popen[bytes]] = []

    def start(rest: str = "time.sleep(3600)", setup: str = "pass") -> tuple[subprocess.Popen[bytes], int]:
        there = tmp_path / "there"
        process = subprocess.Popen(
            [*GUARDIAN, str(folder), sys.executable, "-S", "-c", PROGRAM.format(setup=setup, there=there, rest=rest)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        wait_until(there.exists)
        return process, pid

    yield start
    for process in started:
        for pipe in (process.stdin, process.stdout):
            assert pipe is not None
            pipe.close()
        process.wait(PATIENCE_S)  # and what it runs is gone


def wait_until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.01)


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_end_of_the_pipe_ends_the_program_and_removes_the_folder(
    start: Callable[..., tuple[subprocess.Popen[bytes], int]], folder: Path
) -> None:
    process, pid = start()
    (folder / "file").write_text("x")
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(PATIENCE_S) == 0
    assert not is_there(pid)
    assert not folder.exists()


def test_signals_are_not_for_it(start: Callable[..., tuple[subprocess.Popen[bytes], int]], folder: Path) -> None:
    process, pid = start()
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        process.send_signal(number)
    time.sleep(0.1)
    assert process.poll() is None
    assert is_there(pid)


@pytest.mark.parametrize(
    ("rest", "status"), [("raise SystemExit(3)", 3), ("signal.raise_signal(signal.SIGTERM)", 128 + signal.SIGTERM)]
)
def test_a_program_that_ends_leaves_the_folder(
    start: Callable[..., tuple[subprocess.Popen[bytes], int]], folder: Path, rest: str, status: int
) -> None:
    process, _ = start(rest)  # and the signals of the program are the usual ones
    assert process.wait(PATIENCE_S) == status
    assert folder.exists()


def test_a_program_that_does_not_end_is_killed(folder: Path, tmp_path: Path) -> None:
    there = tmp_path / "there"
    setup = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    program = PROGRAM.format(setup=setup, there=there, rest="time.sleep(3600)")
    source = f"import guardian, sys; guardian._TERM_S = 0.1; sys.exit(guardian.main(*{[str(folder)]!r}, *sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-S", "-c", source, sys.executable, "-S", "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(Path(guardian.__file__).parent)},
    )
    assert process.stdout is not None
    pid = int(process.stdout.readline())
    wait_until(there.exists)
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0
    assert not is_there(pid)
    assert not folder.exists()


def test_a_program_that_cannot_be_run_is_said(folder: Path) -> None:
    ran = subprocess.run(
        [*GUARDIAN, str(folder), "/no/such/program"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert (ran.returncode, ran.stdout, ran.stderr) == (127, "/no/such/program: No such file or directory\n", "")


def test_it_is_small() -> None:
    """It is imported by nobody, and imports nothing of street_fast."""
    assert "street_fast" not in Path(guardian.__file__).read_text(encoding="utf-8")

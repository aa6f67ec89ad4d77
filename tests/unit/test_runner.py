"""Running until a signal, in processes of their own."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import warnings

import pytest

from street_fast.errors import ListenError
from street_fast.runner import Server, run, run_until_stopped

CLOSING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
IGNORES = """
import atexit, signal
signal.signal(signal.SIGHUP, signal.SIG_IGN)
atexit.register(lambda: print("ignored still:", signal.getsignal(signal.SIGHUP) is signal.SIG_IGN))
"""
PROGRAM = """
import asyncio, sys
from street_fast.errors import ListenError
from street_fast.runner import run_until_stopped

class Server:
    def __init__(self): self.ended = asyncio.Event()
    async def wait_closed(self): await self.ended.wait()
    async def close(self):
        print("closing", flush=True)
        if mode == "hangs": await asyncio.sleep(3600)
        self.ended.set()
        print("closed", flush=True)

async def start():
    if mode == "taken": raise ListenError("port 1 is taken")
    if mode == "broken": raise RuntimeError("boom")
    server = Server()
    if mode == "ends": asyncio.get_running_loop().call_soon(server.ended.set)
    print(type(asyncio.get_running_loop()).__module__, flush=True)
    return server

mode = sys.argv[1]
if "no-uvloop" in sys.argv: sys.modules["uvloop"] = None
run_until_stopped(start)
"""


# Who runs the tests may ignore it, as under nohup.
HEARS_ALL = "import signal; hasattr(signal, 'SIGHUP') and signal.signal(signal.SIGHUP, signal.SIG_DFL)"


def start(*arguments: str, before: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", f"{HEARS_ALL}\n{before}\n{PROGRAM}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", CLOSING)
@pytest.mark.parametrize("arguments", [["normal"], ["normal", "no-uvloop"]])
def test_a_signal_closes(number: signal.Signals, arguments: list[str]) -> None:
    with start(*arguments) as process:
        assert process.stdout is not None
        loop = process.stdout.readline()
        assert ("uvloop" in loop) == ("no-uvloop" not in arguments)
        process.send_signal(number)
        assert process.communicate(timeout=20) == ("closing\nclosed\n", "")
    assert process.returncode == 0


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_the_hard_way(number: signal.Signals) -> None:
    with start("hangs") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(number)
        assert process.stdout.readline() == "closing\n"
        process.send_signal(number)
        _, err = process.communicate(timeout=20)
    assert process.returncode == (0 if number is signal.SIGINT else -signal.SIGTERM)
    assert err == ""


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_closed_terminal_is_nothing_to_who_ignores_it() -> None:
    with start("normal", before=IGNORES) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=20) == ("closing\nclosed\nignored still: True\n", "")


def test_the_server_ends_by_itself() -> None:
    with start("ends") as process:
        out, err = process.communicate(timeout=20)
    assert (out.splitlines()[1:], err, process.returncode) == (["closing", "closed"], "", 0)


def test_an_address_that_cannot_be_had_is_one_line() -> None:
    with start("taken") as process:
        assert process.communicate(timeout=20) == ("", "street_fast: port 1 is taken\n")
    assert process.returncode == 1


def test_other_errors_are_not_hidden() -> None:
    with start("broken") as process:
        _, err = process.communicate(timeout=20)
    assert "RuntimeError: boom" in err
    assert process.returncode == 1


async def test_a_loop_that_runs_already_is_one_clear_error() -> None:
    async def start() -> Server:
        raise AssertionError("it was started")

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # "was never awaited"
        with pytest.raises(RuntimeError, match=r"one is running here: use `await serve"):
            run_until_stopped(start)
        gc.collect()


def test_who_has_something_to_do_when_it_does_not_start_hears_why() -> None:
    async def taken() -> Server:
        raise ListenError("port 1 is taken")

    with pytest.raises(ListenError, match="port 1 is taken"):
        run(taken)

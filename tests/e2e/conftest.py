"""What the end-to-end tests share: servers as processes of their own, and a headless Chromium."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from tests.ports import free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_S = 20

CHROMIUM_ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


class Program:
    """A server in a process of its own, on one port for as long as the object lives, whatever happens to it."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self.arguments = [argument.replace("{port}", str(self.port)) for argument in arguments]
        self.process: subprocess.Popen[bytes] | None = None
        self.written = tempfile.TemporaryFile()  # noqa: SIM115

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/"

    @property
    def output(self) -> str:
        """All that it wrote so far, over all its lives."""
        self.written.seek(0)
        return self.written.read().decode(errors="replace")

    async def start(self) -> None:
        """Starts it, and returns when it accepts connections."""
        self.process = subprocess.Popen(  # noqa: ASYNC220 - bound to no loop
            [sys.executable, *self.arguments],
            cwd=ROOT,
            env=os.environ | {"PORT": str(self.port), "PYTHONPATH": str(ROOT)},
            stdout=self.written,
            stderr=subprocess.STDOUT,
        )
        deadline = time.monotonic() + PATIENCE_S
        while self.process.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.02)
        await self.stop(signal.SIGKILL)
        pytest.fail(f"{self.arguments} does not listen on {self.port}:\n{self.output}")

    async def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Ends it and waits until it has ended."""
        process, self.process = self.process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            await asyncio.to_thread(process.wait, PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            pytest.fail(f"{self.arguments} does not end after {how.name}:\n{self.output}")


@pytest_asyncio.fixture
async def start() -> AsyncIterator[Callable[..., Awaitable[Program]]]:
    """`await start("examples/rooms.py")`: a running Program, which the end of the test ends and looks over."""
    programs: list[Program] = []

    async def start(*arguments: str) -> Program:
        program = Program(*arguments)
        programs.append(program)
        await program.start()
        return program

    yield start
    for program in programs:
        await program.stop()
        output = program.output
        program.written.close()
        assert "Traceback" not in output, output


@pytest_asyncio.fixture
async def demo(start: Callable[..., Awaitable[Program]]) -> Program:
    """`street-fast demo`, started anew for each test."""
    return await start("-m", "street_fast", "demo", "--port", "{port}")


def chromium() -> str:
    """Path of the browser. `make test` sets STREET_FAST_CHROMIUM, to nothing if there can be none."""
    chosen = os.environ.get("STREET_FAST_CHROMIUM")
    if chosen == "":
        pytest.skip("no Chromium on this machine")
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    path = chosen or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.fail("the browser tests need a Chromium: apt-get install chromium chromium-driver", pytrace=False)
    return path


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    executable = chromium()
    async with async_playwright() as playwright:
        started = await playwright.chromium.launch(executable_path=executable, args=CHROMIUM_ARGUMENTS)
        yield started
        await started.close()

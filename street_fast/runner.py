"""Runs a server until it is told to stop: the event loop (uvloop where it is installed), signals, a clean end.

SIGINT, SIGTERM, and the SIGHUP of a terminal that is closed start `close()`; a second one ends the process the hard
way. A SIGHUP that is ignored, or handled by others, stays so.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from typing import TYPE_CHECKING, Protocol

from street_fast.errors import ListenError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

__all__ = ["Server", "run", "run_until_stopped"]


class Server(Protocol):
    """What can be run: HttpServer, StreetWebSocketServer."""

    async def close(self) -> None:
        """Ends it cleanly."""

    async def wait_closed(self) -> None:
        """Returns when it has ended, whoever ended it."""


def run_until_stopped(start: Callable[[], Awaitable[Server]]) -> None:
    """Awaits `start()` in a new event loop and runs the server that it returns until a signal or its own end.

    An address that cannot be listened on is one line on stderr and exit status 1 (SystemExit), not a traceback.
    Raises RuntimeError if an event loop is running already.
    """
    try:
        run(start)
    except ListenError as error:
        raise SystemExit(f"street_fast: {error}") from None


def run(start: Callable[[], Awaitable[Server]]) -> None:
    """The same, for who has something to do when it does not start: what `start()` raises, this raises."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise RuntimeError("run() makes an event loop of its own, but one is running here: use `await serve(...)`")
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        run_loop = asyncio.run
    else:
        run_loop = uvloop.run
    with contextlib.suppress(KeyboardInterrupt):
        run_loop(_main(start))


async def _main(start: Callable[[], Awaitable[Server]]) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    with _signals(stopped):
        server = await start()
        ended = loop.create_task(server.wait_closed())
        ended.add_done_callback(lambda _: stopped.set())
        try:
            await stopped.wait()
        except asyncio.CancelledError:  # Ctrl-C on Windows; close() all the same
            await server.close()
            raise
    await server.close()
    await ended


@contextlib.contextmanager
def _signals(stopped: asyncio.Event) -> Iterator[None]:
    """Sets `stopped` at the signals. Windows has no add_signal_handler(): there Ctrl-C cancels the task."""
    loop = asyncio.get_running_loop()
    numbers: list[int] = []
    if sys.platform != "win32":
        numbers += [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not under nohup, and not in a worker
            numbers.append(signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, stopped.set)
    try:
        yield
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)

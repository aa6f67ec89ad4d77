"""One process of ``street-fast serve --workers N``: the supervisor starts it with ``main(DESCRIPTOR, NUMBER)``.

The descriptor is the channel to the supervisor (see `control`), the number is for those who look at a list of
processes. It serves on the sockets that it has inherited, beats while its event loop turns, and answers what the
supervisor asks. SIGTERM drains it, and so does the end of the channel: without a supervisor there is nobody who would
replace it, and the port has to become free. What is still there long after that is ended by a thread, which does not
need the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import select
import signal
import socket
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any

from street_fast import control, logs
from street_fast.application import import_application
from street_fast.control import Beat, Begin, Channel, Failed, NeedBackplane, NeedMetrics, Ready
from street_fast.errors import ConfigurationError, ListenError
from street_fast.memory_limit import share_memory
from street_fast.options import CannotServe
from street_fast.runner import run
from street_fast.serving import Fellows, serve

if TYPE_CHECKING:
    from collections.abc import Mapping

    from street_fast.control import FromSupervisor
    from street_fast.serving import Serving

__all__ = ["main"]

logger = logging.getLogger("street_fast")

_BEAT_S = 2.0
_ANSWER_S = 5.0  # what the supervisor gets to collect the snapshots of all
_BACKPLANE_S = 60.0
_ALONE_S = 10.0  # beyond the time to drain, for a worker without a supervisor


class Worker:
    """What is between the supervisor and what is served here."""

    def __init__(self, begin: Begin, sock: socket.socket) -> None:
        self._begin = begin
        self._sock = sock
        self._channel: Channel[FromSupervisor]
        self._serving: Serving | None = None
        self._backplane: asyncio.Future[control.Backplane] | None = None
        self._asked: dict[int, asyncio.Future[Mapping[str, Any]]] = {}
        self._questions = 0
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, found: object) -> Serving:
        """Serves what `import_application` has found; returns when clients can connect."""
        self._channel = await Channel.over(self._sock, control.FromSupervisor)
        self._tasks.append(asyncio.create_task(self._listen()))
        sockets = [_inherited(descriptor) for descriptor in self._begin.descriptors]
        fellows = Fellows(sockets, self._need_backplane, self._need_snapshots)
        serving = self._serving = await serve(self._begin.options, found, fellows)
        self._tasks.append(asyncio.create_task(self._beat()))
        self._channel.send(Ready(serving.facts))
        return serving

    async def _beat(self) -> None:
        while True:
            self._channel.send(Beat())
            await asyncio.sleep(_BEAT_S)

    async def _listen(self) -> None:
        async for message in self._channel.messages():
            if isinstance(message, control.Backplane):
                if self._backplane is not None and not self._backplane.done():
                    self._backplane.set_result(message)
            elif isinstance(message, control.NeedSnapshot):
                self._answer(message.number)
            elif isinstance(message, control.Metrics):
                waiting = self._asked.pop(message.number, None)
                if waiting is not None and not waiting.done():
                    waiting.set_result(message.snapshots)
        if self._serving is None:
            os._exit(1)  # nobody waits for it any more
        logger.error("the supervisor is gone; this worker ends, too")
        await self._serving.close()

    def _answer(self, number: int) -> None:
        data: dict[str, Any] = {}
        if self._serving is not None:
            try:
                data = self._serving.snapshot()
            except Exception:
                logger.exception("the numbers of this worker cannot be told")
        self._channel.send(control.Snapshot(number, data))

    async def _need_backplane(self) -> str:
        self._backplane = asyncio.get_running_loop().create_future()
        self._channel.send(NeedBackplane())
        answer = await asyncio.wait_for(self._backplane, _BACKPLANE_S)
        if answer.url is None:
            raise CannotServe(answer.problem)
        return answer.url

    async def _need_snapshots(self) -> Mapping[str, Any]:
        self._questions += 1
        number = self._questions
        self._asked[number] = answer = asyncio.get_running_loop().create_future()
        self._channel.send(NeedMetrics(number))
        try:
            return await asyncio.wait_for(answer, _ANSWER_S)
        finally:
            self._asked.pop(number, None)


def main(descriptor: str, number: str) -> None:
    """Serves until it is told to end. The exit status is 0 then, and otherwise that of what went wrong."""
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # it is for the supervisor
    sock = _inherited(int(descriptor))
    begin = control.decode_begin(_first_line(sock))
    options = begin.options
    logs.set_up(options.log_format, options.log_level, begin.worker)
    share_memory(options.workers)
    watched = sock.dup()
    threading.Thread(target=_end_alone, args=(watched, options.drain_timeout), daemon=True).start()
    try:
        found = import_application(options)
        worker = Worker(begin, sock)
        run(lambda: worker.start(found))
    except CannotServe as error:
        failed = Failed(str(error), error.traceback, error.status)
    except ConfigurationError as error:
        failed = Failed(str(error), status=2)
    except ListenError as error:
        failed = Failed(str(error))
    except Exception as error:
        failed = Failed(f"{type(error).__name__}: {error}", traceback.format_exc())
    else:
        return
    with contextlib.suppress(OSError):
        watched.setblocking(True)
        watched.sendall(control.encode(failed))
    raise SystemExit(failed.status)


def _inherited(descriptor: int) -> socket.socket:
    """The socket, which nobody inherits from us."""
    sock = socket.socket(fileno=descriptor)
    sock.set_inheritable(False)
    return sock


def _first_line(sock: socket.socket) -> bytes:
    """What the supervisor says first, and nothing of what follows."""
    line = bytearray()
    while not line.endswith(b"\n"):
        byte = sock.recv(1)
        if not byte:
            raise SystemExit(1)  # the supervisor is gone already
        line += byte
    return bytes(line)


def _end_alone(sock: socket.socket, drain_timeout_s: float) -> None:
    """In a thread: when the supervisor is gone, nothing here may last for much longer than the time to drain."""
    gone = select.poll()
    gone.register(sock, 0)  # hang-ups are always told
    gone.poll()
    time.sleep(drain_timeout_s + _ALONE_S)
    os._exit(1)

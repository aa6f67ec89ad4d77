"""The process above the workers of ``street-fast serve --workers N``: it starts them, and nothing else passes it.

**Sockets.** They are the supervisor's. On Linux each worker has its own for the same address (SO_REUSEPORT), so that
the kernel shares out the connections; elsewhere all have the same. It never accepts on them, and keeps them open: what
arrives while a worker is being replaced waits in the queue of its socket, and its successor takes it. So nobody is
refused when a worker ends, however it ends.

**Workers** are fresh processes (`worker`), not forks: they have the code as it is now, from where the supervisor has
its own, and no descriptor but the channel and their sockets. One that dies is started again, at once and then with
growing delays. One whose event loop has not turned for a minute is killed. If the first start fails, all of it fails,
with the reason.

**Signals.** SIGTERM and SIGINT: the workers drain, within the time for that, and it ends with 0; a second one kills
them. SIGHUP: one after the other is replaced; the new one is there before the old one is told to drain.

If the supervisor itself is killed, its ends of the channels are closed, and the workers drain and end by themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

import msgspec

from street_fast import control
from street_fast.banner import tell
from street_fast.control import Begin, Channel, Failed, NeedBackplane, NeedMetrics, NeedSnapshot, Ready, Snapshot
from street_fast.http_server import HttpServer
from street_fast.listening import bind_tcp, bind_unix, listen_error, remove_unix
from street_fast.local_nats import LocalNats, find_nats_server
from street_fast.operations import metrics_response, ready_response
from street_fast.options import CannotServe, Options
from street_fast.process_stats import process_stats
from street_fast.request import Request, Response
from street_fast.serving import tls_context

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from street_fast.control import FromWorker

__all__ = ["Supervisor", "supervise"]

logger = logging.getLogger("street_fast")

# Not with -m, which would look in the current folder first, and take another street_fast there for this one.
_WORKER = ("-c", "import sys; sys.path[:] = sys.argv[3:]; from street_fast.worker import main; main(*sys.argv[1:3])")
_BACKOFF_S = (0.0, 1.0, 2.0, 4.0, 8.0, 10.0)
_STEADY_S = 60.0  # who has served for so long begins with the first delay again
_START_S = 300.0  # an application may load a lot
_HANGS_S = 60.0  # without a beat; fault programmes stop a worker for half of that
_GLANCE_S = 1.0
_KILL_S = 8.0  # beyond the time to drain
_SNAPSHOT_S = 2.0
_LAST_WORDS_S = 1.0
_NOT_STORED = [("Cache-Control", "no-store")]


def supervise(options: Options) -> int:
    """Serve with ``options.workers`` processes until a signal; returns the exit status.

    Raises CannotServe and ListenError if it cannot start.
    """
    if sys.platform == "win32":
        raise CannotServe("--workers: this system has no way to share a port among processes; run one", status=2)
    tls_context(options)  # before anything is started
    sockets = _Sockets(options)
    try:
        return asyncio.run(Supervisor(options, sockets.of_workers).run())
    finally:
        sockets.close()


class _Sockets:
    """The listening sockets, and the file of a Unix socket, for as long as the supervisor lives."""

    def __init__(self, options: Options) -> None:
        self._made: tuple[str, os.stat_result] | None = None
        self.of_workers: list[list[socket.socket]]
        path = options.uds
        try:
            if path is not None:
                sock = bind_unix(path)
                if not path.startswith("\0"):
                    self._made = (path, os.stat(path))
                self.of_workers = [[sock]] * options.workers
            elif sys.platform == "linux":
                self.of_workers = self._bind_each(options.host, options.port, options.workers)
            else:  # there SO_REUSEPORT does not share out connections
                self.of_workers = [bind_tcp(options.host, options.port)] * options.workers
        except OSError as error:
            raise listen_error(error, options.host, options.port, path) from error

    def _bind_each(self, host: str, port: int, count: int) -> list[list[socket.socket]]:
        for sock in bind_tcp(host, port):  # with SO_REUSEPORT it would not be seen that another program listens there
            port = sock.getsockname()[1]
            sock.close()
        return [bind_tcp(host, port, reuse_port=True) for _ in range(count)]

    def close(self) -> None:
        for sock in itertools.chain.from_iterable(self.of_workers):
            sock.close()
        if self._made is not None:
            remove_unix(*self._made)


class _Process:
    """One worker process, from its start to its end."""

    def __init__(self, number: int, process: asyncio.subprocess.Process, channel: Channel[FromWorker]) -> None:
        self.number = number
        self.process = process
        self.channel = channel
        loop = asyncio.get_running_loop()
        self.beat = loop.time()
        self.became_ready: float | None = None
        self.ready: asyncio.Future[Ready | Failed | None] = loop.create_future()
        """What it said; None if it ended before."""
        self.gone = asyncio.Event()
        self.listening: asyncio.Task[None]
        self.waiting: asyncio.Task[None]
        self.answers: dict[int, asyncio.Future[dict[str, Any]]] = {}

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is still there."""
        with contextlib.suppress(ProcessLookupError):
            self.process.send_signal(number)

    @property
    def end(self) -> str:
        """How it ended, for people."""
        status = self.process.returncode
        if status is None:
            return "it runs"
        if status < 0:
            with contextlib.suppress(ValueError):
                return f"killed by {signal.Signals(-status).name}"
        return f"exit status {status}"


class _Slot:
    """The place of a worker: its number, its sockets, and who has it at the moment."""

    def __init__(self, number: int, sockets: Sequence[socket.socket]) -> None:
        self.number = number
        self.sockets = sockets
        self.current: _Process | None = None
        self.changing = asyncio.Lock()


class Supervisor:
    """See above. `sockets` are those of each worker, bound to what clients connect to."""

    def __init__(self, options: Options, sockets: Sequence[Sequence[socket.socket]]) -> None:
        self._options = options
        self._sockets = sockets
        self._slots: list[_Slot] = []
        self._processes: set[_Process] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._nats: LocalNats | None = None
        self._nats_starting: asyncio.Lock
        self._terminal = _terminal()
        self._ops_http: HttpServer | None = None
        self._questions = itertools.count(1)
        self._stop: asyncio.Event
        self._roll: asyncio.Event
        self._stopping = False
        self._status = 0
        self._restarts = 0

    async def run(self) -> int:
        """The whole life of it; returns the exit status."""
        self._stop, self._roll, self._nats_starting = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        self._slots = [_Slot(number, sockets) for number, sockets in enumerate(self._sockets, 1)]
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._on_stop)
        loop.add_signal_handler(signal.SIGINT, self._on_stop)
        loop.add_signal_handler(signal.SIGHUP, self._on_hang_up)
        try:
            await self._start()
            if not self._stopping:
                for slot in self._slots:
                    self._spawn(self._keep(slot))
                self._spawn(self._roll_when_asked())
                self._spawn(self._watch())
            await self._stop.wait()
        finally:
            self._stopping = True
            await self._end()
        return self._status

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_done)

    def _task_done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            logger.error("the supervisor has failed, and ends", exc_info=task.exception())
            self._status = 1
            self._stop.set()

    # --- signals ---

    def _on_stop(self) -> None:
        if self._stopping:
            for process in self._processes:
                process.signal(signal.SIGKILL)
            return
        logger.info("the workers end, within %g s; a second signal does not wait", self._options.drain_timeout)
        self._stopping = True
        self._stop.set()

    def _on_hang_up(self) -> None:
        if _is_gone(self._terminal):
            self._on_stop()
        else:
            self._roll.set()

    # --- the first start ---

    async def _start(self) -> None:
        """Start all workers. Raises CannotServe, with what the first said that could not."""
        await self._serve_operations()
        stopped = asyncio.ensure_future(self._stop.wait())
        started = [asyncio.ensure_future(self._started(slot)) for slot in self._slots]
        try:
            pending: set[asyncio.Future[Any]] = {stopped, *started}
            while not pending.isdisjoint(started) and not stopped.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for future in done:
                    future.result()
            if not stopped.done():
                self._tell(started[0].result())
        finally:
            for future in (stopped, *started):
                future.cancel()
            await asyncio.gather(stopped, *started, return_exceptions=True)

    async def _started(self, slot: _Slot) -> Ready:
        slot.current = process = await self._launch(slot)
        answer = await self._answer_of(process)
        if isinstance(answer, Failed):
            raise CannotServe(answer.problem, answer.traceback, status=answer.status)
        return answer

    async def _answer_of(self, process: _Process) -> Ready | Failed:
        """What it says when it has started. Who has not is gone then."""
        try:
            answer = await asyncio.wait_for(asyncio.shield(process.ready), _START_S)
        except asyncio.TimeoutError:
            answer = Failed(f"worker {process.number} was not ready within {_START_S:g} s")
            process.signal(signal.SIGKILL)
        if isinstance(answer, Ready):
            return answer
        try:
            await asyncio.wait_for(process.gone.wait(), _LAST_WORDS_S)
        except asyncio.TimeoutError:  # a thread of the application keeps it
            process.signal(signal.SIGKILL)
            await process.gone.wait()
        return answer or Failed(f"worker {process.number} ended before it was ready ({process.end})")

    def _tell(self, ready: Ready) -> None:
        facts = dict(ready.facts)
        facts["Workers"] = f"{len(self._slots)}, of the supervisor {os.getpid()}"
        if self._nats is not None:
            facts["Backplane"] = "a NATS server of their own; history lasts until the supervisor ends"
        tell(self._options, list(facts.items()))

    # --- a worker ---

    async def _launch(self, slot: _Slot) -> _Process:
        ours, theirs = socket.socketpair()
        channel: Channel[FromWorker] = await Channel.over(ours, control.FromWorker)
        descriptors = [sock.fileno() for sock in slot.sockets]
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                *_WORKER,
                str(theirs.fileno()),
                str(slot.number),
                *sys.path,
                stdin=asyncio.subprocess.DEVNULL,
                pass_fds=[theirs.fileno(), *descriptors],
                start_new_session=True,  # Ctrl-C is for the supervisor, which tells them
            )
        except BaseException:
            channel.close()
            raise
        finally:
            theirs.close()
        worker = _Process(slot.number, process, channel)
        self._processes.add(worker)
        worker.listening = asyncio.create_task(self._listen(worker))
        worker.waiting = asyncio.create_task(self._wait(worker))
        channel.send(Begin(self._options, slot.number, descriptors))
        return worker

    async def _launch_at_last(self, slot: _Slot) -> _Process:
        """The same, when the system has the memory, the process and the descriptors for it."""
        while True:
            try:
                return await self._launch(slot)
            except OSError as error:
                delay_s = _BACKOFF_S[-1]
                logger.error("worker %s cannot be started: %s; trying again in %g s", slot.number, error, delay_s)
                await asyncio.sleep(delay_s)

    async def _listen(self, worker: _Process) -> None:
        """Takes in what a worker says, until it has ended."""
        try:
            async for message in worker.channel.messages():
                self._take(worker, message)
        except Exception:
            logger.exception("worker %s says what nobody understands; it is killed", worker.number)
            worker.signal(signal.SIGKILL)
        if not worker.ready.done():
            worker.ready.set_result(None)

    async def _wait(self, worker: _Process) -> None:
        """Until its process has ended, and what it said has been heard."""
        await worker.process.wait()
        await asyncio.wait([worker.listening], timeout=_LAST_WORDS_S)  # a child of its may have the channel, too
        worker.channel.close()
        await worker.listening
        self._processes.discard(worker)
        worker.gone.set()

    def _take(self, worker: _Process, message: FromWorker) -> None:
        worker.beat = asyncio.get_running_loop().time()
        if isinstance(message, Ready | Failed):
            if isinstance(message, Ready):
                worker.became_ready = worker.beat
            if not worker.ready.done():
                worker.ready.set_result(message)
        elif isinstance(message, NeedBackplane):
            self._spawn(self._tell_backplane(worker))
        elif isinstance(message, NeedMetrics):
            self._spawn(self._tell_metrics(worker, message.number))
        elif isinstance(message, Snapshot):
            answer = worker.answers.pop(message.number, None)
            if answer is not None and not answer.done():
                answer.set_result(message.data)

    async def _keep(self, slot: _Slot) -> None:
        """Puts another in the place of a worker that dies."""
        loop = asyncio.get_running_loop()
        failures = 0
        while not self._stopping:
            worker = slot.current
            assert worker is not None
            await worker.gone.wait()
            async with slot.changing:
                if self._stopping or slot.current is not worker:
                    continue  # it was replaced
                if worker.became_ready is not None and loop.time() - worker.became_ready > _STEADY_S:
                    failures = 0
                delay_s = _BACKOFF_S[min(failures, len(_BACKOFF_S) - 1)]
                failures += 1
                when = f"in {delay_s:g} s" if delay_s else "now"
                logger.error("worker %s has ended (%s); it is started again %s", slot.number, worker.end, when)
                await asyncio.sleep(delay_s)
                self._restarts += 1
                slot.current = await self._launch_at_last(slot)
            answer = await self._answer_of(slot.current)
            if self._stopping:
                return
            if isinstance(answer, Failed):
                logger.error("worker %s cannot start: %s%s", slot.number, answer.problem, _below(answer.traceback))
            else:
                logger.info("worker %s is ready again", slot.number)

    async def _watch(self) -> None:
        """Kills who hangs."""
        loop = asyncio.get_running_loop()
        while True:
            before = loop.time()
            await asyncio.sleep(_GLANCE_S)
            if loop.time() - before > 5 * _GLANCE_S:  # we were stopped ourselves, and have not read what they said
                for worker in self._processes:
                    worker.beat = loop.time()
            for worker in self._processes:
                if worker.became_ready is not None and loop.time() - worker.beat > _HANGS_S:
                    logger.error("worker %s hangs: no beat for %g s; it is killed", worker.number, _HANGS_S)
                    worker.signal(signal.SIGKILL)

    # --- replacing all ---

    async def _roll_when_asked(self) -> None:
        while True:
            await self._roll.wait()
            self._roll.clear()
            logger.info("SIGHUP: the workers are replaced one by one")
            for slot in self._slots:
                if not await self._replace(slot):
                    logger.error("the other workers stay as they are")
                    break
            else:
                logger.info("all workers are replaced")

    async def _replace(self, slot: _Slot) -> bool:
        async with slot.changing:
            old = slot.current
            try:
                new = await self._launch(slot)
            except OSError as error:
                logger.error("worker %s is not replaced: %s", slot.number, error)
                return False
            answer = await self._answer_of(new)
            if isinstance(answer, Failed):
                logger.error(
                    "worker %s is not replaced, because its successor cannot start: %s%s",
                    slot.number,
                    answer.problem,
                    _below(answer.traceback),
                )
                return False
            slot.current = new
        assert old is not None
        await self._drain(old)
        return True

    async def _drain(self, worker: _Process) -> None:
        """Tells it to end; returns when it has ended."""
        worker.signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(worker.gone.wait(), self._options.drain_timeout + _KILL_S)
        except asyncio.TimeoutError:
            logger.error("worker %s has not ended in time; it is killed", worker.number)
            worker.signal(signal.SIGKILL)
            await worker.gone.wait()

    # --- the end ---

    async def _end(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        processes = list(self._processes)
        await asyncio.gather(*(self._drain(worker) for worker in processes))
        if self._nats is not None:  # not before the workers, who say good-bye over it
            await self._nats.close()
        if self._ops_http is not None:
            await self._ops_http.close()

    # --- what connects the workers ---

    async def _tell_backplane(self, worker: _Process) -> None:
        try:
            async with self._nats_starting:
                if self._nats is None:
                    nats = LocalNats(find_nats_server())
                    await nats.start()
                    self._nats = nats
            worker.channel.send(control.Backplane(self._nats.url))
        except CannotServe as error:
            worker.channel.send(control.Backplane(problem=str(error)))

    # --- operations ---

    async def _serve_operations(self) -> None:
        port = self._options.ops_port
        if port is None:
            return
        self._ops_http = http = HttpServer()
        http.get("/healthz", lambda _: Response.text("ok\n", headers=_NOT_STORED))
        http.get("/readyz", self._readyz)
        http.get("/metrics", self._metrics)
        await http.listen(self._options.ops_host, port)
        self._options = msgspec.structs.replace(self._options, ops_port=http.port)  # the workers tell where it is

    async def _readyz(self, request: Request) -> Response:
        return ready_response(await self._why_not_ready())

    async def _why_not_ready(self) -> str:
        """Empty while at least one worker takes new clients."""
        if self._stopping:
            return "it is about to end"
        snapshots = await self._snapshots()
        if any(snapshot.get("ready") for snapshot in snapshots.values()):
            return ""
        reasons = [f"worker {number}: {snapshot.get('reason')}" for number, snapshot in snapshots.items()]
        return "; ".join(reasons) or "no worker answers"

    async def _metrics(self, request: Request) -> Response:
        return metrics_response(await self._told())

    async def _tell_metrics(self, worker: _Process, number: int) -> None:
        worker.channel.send(control.Metrics(number, await self._told()))

    async def _told(self) -> dict[str, Any]:
        """The snapshots of those who have something to tell, as an application may have no Realtime; and our own."""
        snapshots = await self._snapshots()
        counts = {
            "workers": len(self._slots),
            "workers_ready": sum(bool(snapshot.get("ready")) for snapshot in snapshots.values()),
            "restarts": self._restarts,
        }
        told: dict[str, Any] = {"": {"supervisor": counts, "process": process_stats()}}
        return told | {number: snapshot for number, snapshot in snapshots.items() if "realtime" in snapshot}

    async def _snapshots(self) -> dict[str, dict[str, Any]]:
        """What the workers say that answer soon, by number."""
        asked: dict[str, asyncio.Future[dict[str, Any]]] = {}
        for slot in self._slots:
            worker = slot.current
            if worker is not None and worker.became_ready is not None and worker.process.returncode is None:
                question = next(self._questions)
                worker.answers[question] = asked[str(slot.number)] = asyncio.get_running_loop().create_future()
                worker.channel.send(NeedSnapshot(question))
        if asked:
            await asyncio.wait(asked.values(), timeout=_SNAPSHOT_S)
        return {number: answer.result() for number, answer in asked.items() if answer.done()}


def _below(text: str) -> str:
    return f"\n{text.rstrip()}" if text else ""


def _terminal() -> int | None:
    """The descriptor of the terminal that this was started from."""
    return next((stream for stream in (0, 1, 2) if os.isatty(stream)), None)


def _is_gone(terminal: int | None) -> bool:
    """Whether that terminal was closed, which is told with the same signal that asks for new workers."""
    if terminal is None:
        return False
    import termios

    try:
        termios.tcgetattr(terminal)
    except termios.error:
        return True
    return False

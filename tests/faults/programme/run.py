"""One run: brokers, nodes and clients, a fault in the middle, and the verdict in the end.

A fault (faults.py) is a coroutine function of a `Run`. It makes its brokers and nodes, calls `drive`, does its worst,
and waits for what it wants to see; `Run` closes everything, whatever happens. All that is random comes from the seed:
the moments, the victims, the sizes.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import random
import shutil
import time
from typing import TYPE_CHECKING, Any

from tests.brokers import Nats, Server, Valkey
from tests.faults.programme.checker import Verdict, check
from tests.faults.programme.clients import Client, Fleet
from tests.faults.programme.journal import Journal
from tests.faults.programme.networks import Machine
from tests.faults.programme.servers import Node, Switch

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from pathlib import Path

SETTLE_S = 45.0
"""The longest that anybody may be in the dark: a position check (25 s), and what comes before and after it."""
ROOMS = [f"room:{number}" for number in range(8)]
SHORT_ROOMS = ["short:0", "short:1"]
LIVE = ["live:0", "live:1", "keyed:0", "keyed:1"]
HISTORY = ["room:*=2000/300", "short:*=20/300", "big:*=50/300"]


@dataclasses.dataclass
class Outcome:
    """What a run came to, as it is kept in ``verdict.json``."""

    fault: str
    seed: int
    verdict: Verdict
    figures: dict[str, float]
    failures: list[str]
    seconds: float

    @property
    def good(self) -> bool:
        return self.verdict.good and not self.failures

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    @classmethod
    def of_nothing(cls, fault: str, seed: int, why: str) -> Outcome:
        """Of a run that came to no end."""
        return cls(fault, seed, Verdict(), {}, [why], 0.0)

    @classmethod
    def read(cls, path: Path) -> Outcome:
        data = json.loads(path.read_text())
        return cls(**(data | {"verdict": Verdict(**data["verdict"])}))


class Run:
    """One run; see above. `quick` asks for the shortest that still shows something.

    With `two_machines` there is a second one, `machine`.
    """

    def __init__(self, fault: str, seed: int, folder: Path, *, quick: bool = False, two_machines: bool = False) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        self.fault = fault
        self.seed = seed
        self.folder = folder
        self.quick = quick
        self.rng = random.Random(f"{fault} {seed}")
        self.brokers: list[Server] = []
        self.proxies: list[Switch] = []
        self.nodes: list[Node] = []
        self.may_lose = True
        """Whether what was acknowledged may be missing if that is told."""
        self.may_fork = False
        """Whether two messages may have one offset; see checker.py."""
        self.failures: list[str] = []
        self.figures: dict[str, float] = {}
        self.seen = Journal(folder / "subscribers.log")
        self.published = Journal(folder / "publishers.log")
        self.fleet = Fleet([], self.seen, self.published, self.rng)
        self.machine: Machine | None = Machine() if two_machines else None
        self._diary = (folder / "run.log").open("w", encoding="utf-8", buffering=1)

    # --- what faults use ---

    def say(self, sentence: str) -> None:
        """Into the diary of the run."""
        self._diary.write(f"{self.fleet.now():9.3f} {sentence}\n")

    def fail(self, sentence: str) -> None:
        """A bound was not held."""
        self.failures.append(sentence)
        self.say(f"FAILED {sentence}")

    def measure(self, name: str, value: float, *, most: float | None = None) -> None:
        """A figure of this run; the largest counts. With `most` it is a bound."""
        value = round(value, 3)
        self.figures[name] = max(value, self.figures.get(name, value))
        self.say(f"{name} = {value}")
        if most is not None and value > most:
            self.fail(f"{name} is {value}, must be at most {most}")

    async def valkey(self, **options: Any) -> Valkey:
        """A Valkey server that writes down what it has."""
        broker = Valkey(**({"appendonly": "yes", "appendfsync": "everysec"} | options))
        return await self._broker(broker)

    async def nats(self, *arguments: str) -> Nats:
        return await self._broker(Nats(arguments=list(arguments)))

    async def _broker(self, broker: Any) -> Any:
        self.brokers.append(broker)
        await asyncio.to_thread(broker.start)
        self.say(f"{type(broker).__name__} {len(self.brokers)} is up")
        return broker

    def proxy(self, broker: Server) -> Switch:
        """A network between a node and a broker, in a bad state if wanted."""
        switch = Switch(broker.port)
        self.proxies.append(switch)
        return switch

    async def serve(
        self,
        *backplanes: str | None,
        workers: int = 1,
        history: Sequence[str] = HISTORY,
        host: str = "127.0.0.1",
        within: Sequence[str] = (),
        application: str | None = None,
    ) -> list[Node]:
        """A node for each of the backplanes; returns all nodes there are.

        `within` is for another machine, `application` one of applications.py.
        """
        new = [
            Node(
                self.folder,
                f"node{len(self.nodes) + number}",
                backplane=url,
                history=history,
                workers=workers,
                host=host,
                inside=within,
                application=application,
            )
            for number, url in enumerate(backplanes)
        ]
        self.nodes += new
        await asyncio.gather(*(node.start() for node in new))
        self.fleet.addresses = [node.address for node in self.nodes]
        self.say(f"{len(self.nodes)} nodes are up")
        return self.nodes

    async def drive(
        self,
        *,
        subscribers: int = 6,
        publishers: int = 6,
        each_per_s: float = 12.0,
        churn_s: float | None = 1.0,
        short: Sequence[str] = SHORT_ROOMS,
    ) -> None:
        """For each node so many clients that subscribe, and so many that publish; returns when all goes well.

        Each subscriber is in four channels with history, in one of `short` (what is kept there is soon gone), and in
        two without.
        """
        fleet, rng = self.fleet, self.rng
        for home in range(len(fleet.addresses)):
            for _ in range(subscribers):
                fleet.add(
                    [
                        *rng.sample(ROOMS, 4),
                        *rng.sample(short, min(1, len(short))),
                        LIVE[rng.randrange(2)],
                        rng.choice(LIVE[2:]),
                    ],
                    home,
                )
            talkers = [fleet.add([rng.choice(ROOMS)], home) for _ in range(publishers)]
            self._talkers = [*getattr(self, "_talkers", []), *talkers]
        await fleet.connect()
        fleet.spawn(fleet.watch())
        fleet.publishers(self._talkers, [*ROOMS, *short, *LIVE], each_per_s)
        if churn_s is not None:
            fleet.spawn(fleet.churn(churn_s))
        self.say(f"{len(fleet.clients)} clients are connected")
        await self.sleep(0.7, 1.2)

    async def sleep(self, least: float, most: float | None = None) -> None:
        """A moment that the seed chooses. `quick` takes the shortest."""
        await asyncio.sleep(least if self.quick or most is None else self.rng.uniform(least, most))

    def seconds(self, least: float, most: float) -> float:
        """A length of time that the seed chooses."""
        return least if self.quick else self.rng.uniform(least, most)

    async def do(self, sentence: str, work: Callable[..., Any], *arguments: Any) -> None:
        """Something that blocks; the diary has when it was."""
        self.say(sentence)
        await asyncio.to_thread(work, *arguments)

    async def crossed(self, since: float, most_s: float, channels: Sequence[str]) -> float | None:
        """When, after `since`, each node first got what a publisher on another node had sent after `since`.

        The time of the last node, or None if it did not happen within `most_s`.
        """
        homes = {client.name: client.home for client in self.fleet.clients}
        names = range(len(self.nodes))
        wanted = {(a, b) for a in names for b in names if a != b}
        deadline = since + most_s
        at = 0
        sent: set[str] = set()
        while True:
            published, seen = self.published.entries, self.seen.entries
            sent |= {e.key for e in published if e.kind == "send" and e.time >= since}
            for entry in seen[at:]:
                if entry.kind == "got" and entry.time >= since and entry.key in sent and entry.channel in channels:
                    pair = homes[entry.key.split("-")[0]], homes[entry.who]
                    wanted.discard(pair)
                    if not wanted:
                        return entry.time
            at = len(seen)
            if self.fleet.now() > deadline:
                self.say(f"nothing has gone from node to node: {sorted(wanted)}")
                return None
            await asyncio.sleep(0.02)

    # --- the whole ---

    async def whole(self, fault: Callable[[Run], Awaitable[None]]) -> Outcome:
        """Everything, and the outcome; it is in the folder, too."""
        began = time.monotonic()
        verdict = Verdict()
        try:
            await fault(self)
            verdict = await self._settle()
        except Exception as error:
            self.fail(f"{type(error).__name__}: {error}")
            verdict = check(self.published.entries, self.seen.entries)
        finally:
            await self._close()
        verdict.may_fork = self.may_fork
        for example in verdict.examples:
            self.say(example)
        outcome = Outcome(
            self.fault, self.seed, verdict, self.figures, self.failures, round(time.monotonic() - began, 1)
        )
        outcome.write(self.folder / "verdict.json")
        self._diary.close()
        return outcome

    async def _settle(self) -> Verdict:
        """Publishing ends; then everybody is told everything, or it is too late."""
        self.fleet.quiet = True
        ended = self.fleet.now()
        self.say("publishing ends")
        pause = 0.5
        while True:
            await asyncio.sleep(pause)
            waited = self.fleet.now() - ended
            publishing = any(client.waits for client in self.fleet.clients)
            verdict = check(self.published.entries, self.seen.entries)
            connected = all(client.ready.is_set() for client in self.fleet.clients if client.returns)
            misled = self.fleet.misled()
            if not verdict.silent and not misled and not publishing and connected:
                break
            if waited > SETTLE_S:
                if not connected:
                    away = [client.name for client in self.fleet.clients if not client.ready.is_set()]
                    self.fail(f"not connected {waited:.0f} s after the end: {', '.join(away[:9])}")
                if misled:
                    self.fail(f"{len(misled)} times somebody is wrong about who is in a channel; {misled[0]}")
                break
            pause = min(3.0, pause * 1.5)
        self.measure("settled_s", waited)
        if not self.may_lose and verdict.flagged:
            self.fail(f"{verdict.flagged} acknowledged messages were lost, and told to be; none may be")
        for at, what in self.fleet.broken[:20]:
            self.say(f"a broken handshake at {at:.3f}: {what}")
        self.say(
            f"refused {len(self.fleet.refused)}, broken {len(self.fleet.broken)}, lost {self.fleet.lost}, "
            f"published again {self.fleet.attempts_again}"
        )
        return verdict

    async def _close(self) -> None:
        await self.fleet.close()
        self.seen.close()
        self.published.close()
        await asyncio.gather(*(node.end() for node in self.nodes), return_exceptions=True)
        if self.machine is not None:
            self.machine.close()
        for proxy in self.proxies:
            with contextlib.suppress(Exception):
                await asyncio.to_thread(proxy.close)
        for number, broker in enumerate(self.brokers, 1):
            with contextlib.suppress(OSError):
                shutil.copy(broker.folder / "log", self.folder / f"broker{number}.log")
            with contextlib.suppress(Exception):
                broker.resume()
            await asyncio.to_thread(broker.close)
        for node in self.nodes:
            with contextlib.suppress(OSError):
                if "Traceback" in node.log:
                    self.say(f"there is a traceback in the log of {node.name}")
                    self.figures["tracebacks"] = self.figures.get("tracebacks", 0) + node.log.count("Traceback")


__all__ = ["Client", "Outcome", "Run"]

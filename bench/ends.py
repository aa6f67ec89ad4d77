"""ends: one end of a way between two nodes: what publishes, or what receives. `between.py` runs them.

    python bench/ends.py receive KIND --url URL --board FILE [--history N]
    python bench/ends.py paced|flood|keyed KIND --url URL --board FILE [--pid PID ...] [--history N] [...]

Kinds: ``street_fast``, a backplane by itself, from its `publish` to the `deliver` of its sink; ``redis-py`` and
``nats-py``, the bare clients as their documentation shows them; ``websocket``, a client of the Realtime at URL.

An end says ``ready`` and begins with the first line that it reads. A receiver counts on the board, eight bytes of
shared memory, and says how long the messages took when its input ends. A publisher runs for the warm-up and the
seconds, waits until everything has arrived, and says what it did in those seconds. What goes wrong ends it with a
status.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import mmap
import os
import sys
import time
from collections import deque
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import uvloop
from recovery import Client, cpu_s, decode_event
from redis.asyncio import Redis

from street_fast import Limits
from street_fast.backplanes import History, Publication, Published
from street_fast.backplanes.urls import backplane_at

CHANNEL = "recovery"  # as recovery.Client has it
STAMP_BYTES = 20
WARM_UP_S = 0.5
STALL_S = 20.0
BATCH = 50  # publishes in one turn of the loop; as many as redis-benchmark has clients
WINDOW = 4_096  # published and not yet received
CHANNELS = 64  # of a keyed load

Take = Callable[[bytes], object]
Publish = Callable[[bytes], object]


class Board:
    """How many messages were received, for both ends to see."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._map = mmap.mmap(file.fileno(), 8)
        self.cells = memoryview(self._map).cast("Q")


def stamped(padding: bytes) -> bytes:
    return b"%020d%b" % (time.monotonic_ns(), padding)


# --- the kinds ---


class Sink:
    """Of a node that has one channel and may not miss anything of it."""

    def __init__(self, take: Take) -> None:
        self._take = take

    def deliver(self, channel: str, publication: Publication) -> None:
        self._take(publication.payload)

    def lost(self, channel: str | None) -> None:
        fail(f"something of {channel} was lost")

    def signalled(self, channel: str, payload: bytes) -> None:
        pass

    def members_changed(self, channel: str, joined: list[tuple[str, bytes | None]], left: list[str]) -> None:
        pass


def fail(what: str) -> None:
    print(f"ends: {what}", file=sys.stderr, flush=True)
    os._exit(1)


def history_of(args: argparse.Namespace) -> History | None:
    return History(size=args.history) if args.history else None


opened: list[Any] = []


async def started(args: argparse.Namespace, take: Take) -> Any:
    backplane = backplane_at(args.url, Limits())
    await backplane.start(Sink(take))
    opened.append(backplane)
    for _ in range(200):
        if backplane.health().ok:
            return backplane
        await asyncio.sleep(0.05)
    raise SystemExit(f"ends: {backplane.health().detail}")


async def receive_street_fast(args: argparse.Namespace, take: Take) -> None:
    await (await started(args, take)).subscribe(CHANNEL, history_of(args))


async def publish_street_fast(args: argparse.Namespace) -> Publish:
    backplane, history = await started(args, lambda _: None), history_of(args)
    return lambda payload: backplane.publish(CHANNEL, payload, history=history)


async def receive_redis_py(args: argparse.Namespace, take: Take) -> asyncio.Task[None]:
    pubsub = Redis.from_url(args.url).pubsub(ignore_subscribe_messages=True)
    await pubsub.subscribe(CHANNEL)

    async def listen() -> None:
        async for message in pubsub.listen():
            take(message["data"])

    return asyncio.get_running_loop().create_task(listen())


async def publish_redis_py(args: argparse.Namespace) -> Publish:
    client = Redis.from_url(args.url)
    await client.ping()
    return lambda payload: client.publish(CHANNEL, payload)


async def receive_nats_py(args: argparse.Namespace, take: Take) -> None:
    client = await nats.connect(args.url)

    async def receive(message: Any) -> None:
        take(message.data)

    await client.subscribe(CHANNEL, cb=receive)
    await client.flush()


async def publish_nats_py(args: argparse.Namespace) -> Publish:
    client = await nats.connect(args.url)
    return lambda payload: client.publish(CHANNEL, payload)


class Listener(Client):
    def __init__(self, number: int, port: int, take: Take) -> None:
        super().__init__(number, port)
        self._take = take

    def on_message(self, text: bytes) -> None:
        event = decode_event(text)
        if event.type == "message":
            self._take(bytes(event.data)[1:])  # behind the quote
        elif event.type == "reply":
            self.answered.set_result(None)
        elif event.type == "ping":
            self.ws.send('{"type":"pong"}')


async def receive_websocket(args: argparse.Namespace, take: Take) -> None:
    await Listener(0, int(args.url), take).connect()


async def publish_websocket(args: argparse.Namespace) -> Publish:
    client = Listener(1, int(args.url), lambda _: None)
    await client.connect()
    head, tail = f'{{"type":"publish","channel":"{CHANNEL}","data":"', '"}'
    return lambda payload: client.ws.send(f"{head}{payload.decode()}{tail}")


RECEIVE = {
    "street_fast": receive_street_fast,
    "redis-py": receive_redis_py,
    "nats-py": receive_nats_py,
    "websocket": receive_websocket,
}
PUBLISH = {
    "street_fast": publish_street_fast,
    "redis-py": publish_redis_py,
    "nats-py": publish_nats_py,
    "websocket": publish_websocket,
}


# --- the ends ---


async def told() -> None:
    """Says that this end is ready, and returns with the next line of its input."""
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)


async def receive(args: argparse.Namespace) -> dict[str, float]:
    cells, took = Board(args.board).cells, []

    def take(payload: bytes) -> None:
        cells[0] += 1
        stamp = int(payload[:STAMP_BYTES])
        if stamp:
            took.append(time.monotonic_ns() - stamp)

    _kept = await RECEIVE[args.kind](args, take)
    await told()
    return quantiles(took)


def quantiles(took: list[int]) -> dict[str, float]:
    """Of nanoseconds, in microseconds; nothing of nothing."""
    took.sort()
    if not took:
        return {}
    return {f"p{part}_us": round(took[len(took) * part // 100] / 1e3, 1) for part in (50, 90, 99)} | {
        "worst_us": round(took[-1] / 1e3, 1)
    }


class Meters:
    """What was published and received since it was made, and the processor time for each."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._pids = dict(zip(("receiver", "broker"), args.pid, strict=False))
        self._began = time.monotonic()
        self._cpu_s = self._read()

    def _read(self) -> dict[str, float]:
        return {"publisher": time.process_time()} | {name: cpu_s(pid) for name, pid in self._pids.items()}

    def figures(self, messages: int) -> dict[str, float]:
        took = time.monotonic() - self._began
        now = self._read()
        costs = {f"{name}_us": round((now[name] - was) * 1e6 / messages, 2) for name, was in self._cpu_s.items()}
        return {"messages": messages, "seconds": round(took, 3), "per_second": round(messages / took), **costs}


async def arrival(cells: memoryview, sent: int) -> None:
    """Returns when the receiver has everything, once."""
    end = time.monotonic() + STALL_S
    while cells[0] < sent:
        if time.monotonic() > end:
            raise SystemExit(f"ends: {sent - cells[0]} of {sent} messages did not arrive")
        await asyncio.sleep(0.01)
    if cells[0] > sent:
        raise SystemExit(f"ends: {cells[0] - sent} messages more than were published")


async def paced(args: argparse.Namespace) -> dict[str, float]:
    """So many messages per second, one at a time, and how long each is on its way."""
    publish, cells = await PUBLISH[args.kind](args), Board(args.board).cells
    await told()
    padding = b"x" * (args.size - STAMP_BYTES)
    unstamped = b"0" * STAMP_BYTES + padding
    sent, sent_before, meters = 0, 0, None
    due = time.monotonic()
    begin, end = due + WARM_UP_S, due + WARM_UP_S + args.seconds
    while due < end:
        now = time.monotonic()
        if due > now:
            await asyncio.sleep(due - now)
        if meters is None and due >= begin:
            meters, sent_before = Meters(args), sent
        result = publish(unstamped if meters is None else stamped(padding))
        if isinstance(result, Awaitable):
            await result
        sent += 1
        due += 1 / args.rate
    assert meters is not None
    figures = meters.figures(sent - sent_before)
    await arrival(cells, sent)
    return figures


async def flood(args: argparse.Namespace) -> dict[str, float]:
    """As many as go through: a batch in every turn of the loop, as long as the receiver is not too far behind."""
    publish, cells = await PUBLISH[args.kind](args), Board(args.board).cells
    await told()
    payload = b"0" * STAMP_BYTES + b"x" * (args.size - STAMP_BYTES)
    pending: deque[asyncio.Future[Any]] = deque()
    sent = 0

    async def run_for(seconds: float) -> int:
        nonlocal sent
        before, end = cells[0], time.monotonic() + seconds
        while time.monotonic() < end:
            while pending and pending[0].done():
                pending.popleft().result()
            if sent - cells[0] > WINDOW - BATCH or len(pending) > WINDOW - BATCH:
                await asyncio.sleep(0.001)
                continue
            for _ in range(BATCH):
                result = publish(payload)
                if not isinstance(result, Published):
                    pending.append(asyncio.ensure_future(result))
            sent += BATCH
            await asyncio.sleep(0)
        return int(cells[0]) - before

    await run_for(WARM_UP_S)
    meters = Meters(args)
    figures = meters.figures(await run_for(args.seconds))
    await arrival(cells, sent)
    await asyncio.gather(*pending)
    return figures


async def keyed(args: argparse.Namespace) -> dict[str, float]:
    """Publishes with a key, so many in flight, each after the answer to the one before; this node listens, too."""
    backplane, history, took = await started(args, lambda _: None), history_of(args), []
    channels = [f"room{number}" for number in range(CHANNELS)]
    for channel in channels:
        await backplane.subscribe(channel, history)
    await told()
    payload = b"x" * args.size
    end = time.monotonic() + WARM_UP_S + args.seconds
    answered, numbers = 0, iter(range(1 << 62))

    async def publish_on() -> None:
        nonlocal answered
        while time.monotonic() < end:
            number = next(numbers)
            began = time.monotonic_ns()
            await backplane.publish(
                channels[number % CHANNELS], payload, history=history, key=f"{os.getpid()}-{number}"
            )
            took.append(time.monotonic_ns() - began)
            answered += 1

    publishing = [asyncio.ensure_future(publish_on()) for _ in range(args.in_flight)]
    await asyncio.sleep(WARM_UP_S)
    before, meters = answered, Meters(args)
    took.clear()
    await asyncio.sleep(end - time.monotonic())
    figures = meters.figures(answered - before) | quantiles(took[:])
    await asyncio.gather(*publishing)
    return figures


async def run(args: argparse.Namespace) -> dict[str, float]:
    try:
        return await MODES[args.mode](args)
    finally:
        for backplane in opened:
            await backplane.close()


MODES = {"receive": receive, "paced": paced, "flood": flood, "keyed": keyed}


def main() -> None:
    parser = argparse.ArgumentParser(description="One end of a way between nodes; see the docstring.")
    parser.add_argument("mode", choices=MODES)
    parser.add_argument("kind", choices=RECEIVE)
    parser.add_argument("--url", required=True, help="of the broker; for a websocket the port of the server")
    parser.add_argument("--board", type=Path, required=True)
    parser.add_argument("--pid", type=int, action="append", default=[], help="of the receiver, and of the broker")
    parser.add_argument("--core", type=int, required=True)
    parser.add_argument("--history", type=int, default=0)
    parser.add_argument("--size", type=int, default=300)
    parser.add_argument("--rate", type=float, default=1_000)
    parser.add_argument("--in-flight", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=1.5)
    args = parser.parse_args()
    os.sched_setaffinity(0, {args.core})
    print(json.dumps(uvloop.run(run(args))))


if __name__ == "__main__":
    main()

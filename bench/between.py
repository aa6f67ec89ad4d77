"""between: what a broker and a pair of nodes make of messages that one node publishes and the other one receives.

    python bench/between.py paced|flood|keyed --kind KIND --url URL [--url URL2] --broker-pid PID [...]

* ``paced``: so many messages per second. From the publish to the receiver: `p50_us`, `p99_us`.
* ``flood``: as many as go through: `per_second`. The kind ``redis-benchmark`` is that program; it publishes to nobody.
* ``keyed``: publishes with a key over several nodes, each of which hears all of them: `per_second` that were answered.

The ends are processes of their own (`ends.py`, kinds there) on the core that is named. Prints one JSON object;
``publisher_us``, ``receiver_us`` and ``broker_us`` are processor time per message.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from recovery import cpu_s

ENDS = str(Path(__file__).parent / "ends.py")
REQUESTS_PER_S = 60_000  # of redis-benchmark, roughly: how many to ask it for


def start(mode: str, args: argparse.Namespace, url: str, board: str, *pids: int) -> subprocess.Popen[str]:
    """An end, when it is ready."""
    command = [sys.executable, ENDS, mode, args.kind, "--url", url, "--board", board, "--core", str(args.core)]
    for name in ("history", "size", "rate", "in_flight", "seconds"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    for pid in pids:
        command += ["--pid", str(pid)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"between: an end did not start: {' '.join(command)}")
    return process


def result(process: subprocess.Popen[str]) -> dict[str, float]:
    """What an end says, after its input has ended."""
    told, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"between: an end failed: {process.args!r}")
    found: dict[str, float] = json.loads(told)
    return found


def one_way(args: argparse.Namespace, board: str) -> dict[str, float]:
    receiver = start("receive", args, args.url[-1], board)
    publisher = start(args.mode, args, args.url[0], board, receiver.pid, args.broker_pid)
    try:
        return result(publisher) | result(receiver)
    finally:
        receiver.kill()


def keyed(args: argparse.Namespace, board: str) -> dict[str, float]:
    workers = [start("keyed", args, args.url[0], board) for _ in range(args.workers)]
    broker = cpu_s(args.broker_pid)
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    told = [result(worker) for worker in workers]
    broker = cpu_s(args.broker_pid) - broker
    messages = sum(one["messages"] for one in told)
    return {
        "messages": messages,
        "per_second": sum(one["per_second"] for one in told),
        "publisher_us": round(sum(one["publisher_us"] * one["messages"] for one in told) / messages, 2),
        **{name: max(one[name] for one in told) for name in ("p50_us", "p99_us")},
    }


def redis_benchmark(args: argparse.Namespace) -> dict[str, float]:
    """PUBLISH with its 50 clients, each of which waits for its answer."""
    port = args.url[0].rpartition(":")[2]
    requests = int(REQUESTS_PER_S * args.seconds)
    command = ["redis-benchmark", "-p", port, "-n", str(requests), "--csv", "PUBLISH", "bench", "x" * args.size]
    broker = cpu_s(args.broker_pid)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=lambda: pin(args.core))
    broker = cpu_s(args.broker_pid) - broker
    row = next(csv.DictReader(io.StringIO(done.stdout)))
    return {
        "messages": requests,
        "per_second": round(float(row["rps"])),
        "broker_us": round(broker * 1e6 / requests, 2),
    }


def pin(core: int) -> None:
    os.sched_setaffinity(0, {core})


def run(args: argparse.Namespace) -> dict[str, Any]:
    if args.kind == "redis-benchmark":
        return redis_benchmark(args)
    with tempfile.NamedTemporaryFile() as board:
        board.write(bytes(8))
        board.flush()
        return keyed(args, board.name) if args.mode == "keyed" else one_way(args, board.name)


def main() -> None:
    parser = argparse.ArgumentParser(description="Messages between nodes; see the docstring.")
    parser.add_argument("mode", choices=("paced", "flood", "keyed"))
    parser.add_argument("--kind", required=True)
    parser.add_argument("--url", action="append", required=True, help="of the broker; or of both ends")
    parser.add_argument("--broker-pid", type=int, required=True)
    parser.add_argument("--core", type=int, default=0, help="of the ends")
    parser.add_argument("--history", type=int, default=0, help="messages that the channel keeps")
    parser.add_argument("--size", type=int, default=300, help="bytes of a message")
    parser.add_argument("--rate", type=float, default=1_000, help="messages per second, paced")
    parser.add_argument("--workers", type=int, default=4, help="nodes that publish with keys")
    parser.add_argument("--in-flight", type=int, default=16, help="publishes with keys of each of them")
    parser.add_argument("--seconds", type=float, default=1.5)
    print(json.dumps(run(parser.parse_args())))


if __name__ == "__main__":
    main()

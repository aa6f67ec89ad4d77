"""Runs the whole bench, or a part of it, and writes results/ and the tables of docs/performance.md.

    python bench/run.py [--quick] [--rounds N] [--seconds S] [--only LOAD,...] [--servers NAME,...] [--no-micro]

All servers are up at once, pinned to core 0; the load generator runs on core 1. A round measures every server once
under every load, so that what drifts on the machine drifts under all of them; ratios are taken within a round. A run
of part of the programme prints its tables and writes nothing. See README.md for the method.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import report
from programme import LOADS, Load
from programs import compile_program, install_node_peer
from servers import SERVERS, RunningServer, environment, prepare, running

if TYPE_CHECKING:
    from collections.abc import Sequence

HERE = Path(__file__).parent
SERVER_CORE, LOAD_CORE = 0, 1
PATHS = {"fanout": "/fanout", "fairness": "/fanout", "echo": "/echo", "connect": "/echo"}
RECOVERY = [sys.executable, str(HERE / "recovery.py")]
NOISY = 0.05  # part of the two cores that others may take before a measurement is done again
TRIES = 2
PATIENCE_S = 2.0  # to wait for a calm machine before each try


def load_command(load: Load, target: RunningServer, seconds: float, *, quick: bool) -> list[str]:
    """The program that makes the load; it prints its figures as JSON."""
    server = target.server
    program = RECOVERY if load.mode == "recover" else [str(compile_program("loadgen")), load.mode]
    command = [*program, "--port", str(target.port), "--server-pid", str(target.pid)]
    for name, value in {**load.options, **(load.quick if quick else {})}.items():
        command += [f"--{name}", str(value)]
    if load.timed:
        command += ["--seconds", str(seconds)]
    if load.mode == "recover":
        return command
    if server.dialect is not None:
        command += server.dialect.options(request=load.request)
    else:
        command += ["--path", server.idle_path if load.mode == "idle" else PATHS[load.mode]]
        command += ["--size", str(load.size)] if server.message is None else ["--message", server.message]
    return command


def load_once(load: Load, target: RunningServer, seconds: float, *, quick: bool) -> dict[str, Any]:
    """One run of the load; its figures, and how busy others kept the two cores meanwhile."""
    command = load_command(load, target, seconds, quick=quick)
    busy, server, own = machine.busy_s((SERVER_CORE, LOAD_CORE)), target.cpu_s(), children_cpu_s()
    began = machine.now_s()
    done = subprocess.run(
        command, capture_output=True, text=True, preexec_fn=lambda: prepare(LOAD_CORE), env=environment(), check=False
    )
    if done.returncode:
        raise SystemExit(f"{load.name} on {target.server.name}: {done.stderr.strip()}")
    took = machine.now_s() - began
    ours = target.cpu_s() - server + children_cpu_s() - own
    figures: dict[str, Any] = json.loads(done.stdout)
    figures["foreign"] = round(max(0.0, machine.busy_s((SERVER_CORE, LOAD_CORE)) - busy - ours) / (2 * took), 4)
    return figures


def children_cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(load: Load, target: RunningServer, seconds: float, *, quick: bool) -> dict[str, Any]:
    """The quieter of two tries; only one if little else was running."""
    tries = []
    for _ in range(TRIES):
        target.wait_quiet()
        machine.wait_calm((SERVER_CORE, LOAD_CORE), NOISY, PATIENCE_S)
        tries.append(load_once(load, target, seconds, quick=quick))
        if tries[-1]["foreign"] <= NOISY or load.fresh:
            break
    return min(tries, key=lambda figures: figures["foreign"])


def run_loads(loads: Sequence[Load], names: Sequence[str], args: argparse.Namespace) -> report.Loads:
    """Load -> server -> figure -> its value in every round."""
    results: report.Loads = {load.name: {} for load in loads}

    def take(load: Load, target: RunningServer, number: int) -> None:
        figures = measure(load, target, args.seconds, quick=args.quick)
        columns = results[load.name].setdefault(target.server.name, {})
        for figure, value in figures.items():
            columns.setdefault(figure, []).append(value)
        told = f"{figures[load.metric]:,.3f} {load.unit}".rstrip()
        print(f"{number + 1}/{args.rounds} {load.name:10} {target.server.name:12} {told}", file=sys.stderr, flush=True)

    wanted = {name for load in loads if not load.fresh for name in load.servers if name in names}
    with contextlib.ExitStack() as stack:
        up = {name: stack.enter_context(running(SERVERS[name], SERVER_CORE)) for name in names if name in wanted}
        for number in range(args.rounds):
            for load in loads:
                if not load.fresh:
                    for name in load.servers:
                        if name in up:
                            take(load, up[name], number)
    for number in range(args.rounds):
        for load in loads:
            for name in load.servers:
                if load.fresh and name in names:
                    with running(SERVERS[name], SERVER_CORE) as target:
                        take(load, target, number)
    return results


def run_micro() -> dict[str, dict[str, float]]:
    """Name of the benchmark -> median, quartiles and rounds; what depends on the build in use, for both builds."""
    return run_pytest(HERE / "micro") | run_pytest(HERE / "micro" / "bench_hub.py", STREET_FAST_PURE="1")


def run_pytest(where: Path, **environment: str) -> dict[str, dict[str, float]]:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "micro.json"
        subprocess.run(
            [sys.executable, "-m", "pytest", "-q", str(where), f"--benchmark-json={out}"],
            check=True,
            stdout=sys.stderr,
            env=os.environ | environment,
            preexec_fn=lambda: prepare(LOAD_CORE),
        )
        found = json.loads(out.read_text())["benchmarks"]
    keys = ("median", "q1", "q3", "rounds")
    return {bench["name"]: {key: bench["stats"][key] for key in keys} | bench["extra_info"] for bench in found}


def names_in(known: Sequence[str], given: str | None, what: str) -> list[str]:
    if given is None:
        return list(known)
    wrong = set(given.split(",")) - set(known)
    if wrong:
        raise SystemExit(f"{what} {', '.join(sorted(wrong))}: not among {', '.join(known)}")
    return [name for name in known if name in given.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description="The bench of street_fast; see bench/README.md.")
    parser.add_argument("--quick", action="store_true", help="a look, not a result: short, and fewer idle connections")
    parser.add_argument("--rounds", type=int, help="how often every server is measured under every load (5; quick: 3)")
    parser.add_argument("--seconds", type=float, help="of one measurement (1.5; quick: 0.5)")
    parser.add_argument("--only", metavar="LOAD,...", help="these loads only; writes nothing")
    parser.add_argument("--servers", metavar="NAME,...", help="these servers only; writes nothing")
    parser.add_argument("--no-micro", action="store_true", help="without bench/micro; writes nothing")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 5)
    args.seconds = args.seconds or (0.5 if args.quick else 1.5)
    if (os.cpu_count() or 1) < 2 or not hasattr(os, "sched_setaffinity"):
        raise SystemExit("the bench needs Linux and two cores: one for the server, one for the load")

    chosen = names_in([load.name for load in LOADS], args.only, "--only")
    names = names_in(list(SERVERS), args.servers, "--servers")
    wanted = {name for load in LOADS if load.name in chosen for name in load.servers if name in names}
    for name in wanted:
        if SERVERS[name].on_node and install_node_peer(SERVERS[name].runner) is None:
            print(
                f"without Node.js there is no {SERVERS[name].label}: its rows and goals are left out", file=sys.stderr
            )
            names.remove(name)
    facts = machine.facts()
    results = {
        "machine": facts,
        "rounds": args.rounds,
        "seconds": args.seconds,
        "quick": args.quick,
        "loads": run_loads([load for load in LOADS if load.name in chosen], names, args),
        "micro": {} if args.no_micro or args.only or args.servers else run_micro(),
    }
    print(report.markdown(results))
    if not (args.quick or args.only or args.servers or args.no_micro):
        report.write(results)


if __name__ == "__main__":
    main()

"""Runs the whole bench, or a part of it, and writes results/ and the tables of docs/performance.md.

    python bench/run.py [--quick] [--rounds N] [--seconds S] [--only LOAD,...] [--servers NAME,...] [--no-micro]

All servers are up at once, pinned to core 0; the load generator runs on core 1, and so do brokers. A round measures
every server once under every load, so that what drifts on the machine drifts under all of them; ratios are taken within
a round. A run of part of the programme prints its tables and writes nothing; but ``--only nodes``, which is everything
about several nodes, keeps the rest as it was. See README.md for the method.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import shutil
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
    from collections.abc import Collection, Mapping, Sequence

HERE = Path(__file__).parent
SERVER_CORE, LOAD_CORE = 0, 1
BETWEEN = ("paced", "flood", "keyed")  # modes of between.py
PATHS = {"fanout": "/fanout", "fairness": "/fanout", "echo": "/echo", "connect": "/echo"}
RECOVERY = [sys.executable, str(HERE / "recovery.py")]
BETWEEN_NODES = [sys.executable, str(HERE / "between.py")]
NOISY = 0.05  # part of the two cores that others may take before a measurement is done again
TRIES = 2
PATIENCE_S = 2.0  # to wait for a calm machine before each try


def load_command(load: Load, target: RunningServer, seconds: float, *, quick: bool) -> list[str]:
    """The program that makes the load; it prints its figures as JSON."""
    server = target.server
    options = {**load.options, **(load.quick if quick else {})}
    if load.mode == "recover":
        command = [*RECOVERY]
    elif load.mode in BETWEEN:
        command = [*BETWEEN_NODES, load.mode]
    else:
        command = [str(compile_program("loadgen")), load.mode]
        options["connections"] *= len(target.pids)
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    if load.timed:
        command += ["--seconds", str(seconds)]
    if load.mode in BETWEEN:
        return command + between_options(target)
    if target.broker is None and len(target.pids) > 1:
        command += ["--senders", str(len(target.pids))]
    for port in target.ports:
        command += ["--port", str(port)]
    command += ["--server-pid", str(target.pids[0])]
    if load.mode == "recover":
        return command
    if server.dialect is not None:
        command += server.dialect.options(request=load.request)
    else:
        command += ["--path", server.idle_path if load.mode == "idle" else PATHS[load.mode]]
        command += ["--size", str(load.size)] if server.message is None else ["--message", server.message]
    return command


def between_options(target: RunningServer) -> list[str]:
    """For between.py."""
    server, broker = target.server, target.broker
    assert server.ends is not None
    assert broker is not None
    options = ["--kind", server.ends, "--broker-pid", str(broker.pid), "--core", str(SERVER_CORE)]
    for end in map(str, target.ports or [broker.url]):
        options += ["--url", end]
    return [*options, "--history", server.environment.get("HISTORY", "0")]


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
        print(f"{number + 1}/{args.rounds} {load.name:13} {target.server.name:19} {told}", file=sys.stderr, flush=True)

    def start(name: str) -> contextlib.AbstractContextManager[RunningServer]:
        return running(SERVERS[name], SERVER_CORE, LOAD_CORE)

    wanted = {name for load in loads if not load.fresh for name in load.servers if name in names}
    with contextlib.ExitStack() as stack:
        up = {name: stack.enter_context(start(name)) for name in names if name in wanted}
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
                    with start(name) as target:
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


def names_in(known: Mapping[str, Sequence[str]], given: str | None, what: str) -> list[str]:
    """Those of the names that are given, in the order in which they are known; some stand for several."""
    if given is None:
        return [name for name, names in known.items() if name in names]
    wrong = set(given.split(",")) - set(known)
    if wrong:
        raise SystemExit(f"{what} {', '.join(sorted(wrong))}: not among {', '.join(known)}")
    wanted = {name for word in given.split(",") for name in known[word]}
    return [name for name in known if name in wanted]


def available(wanted: Collection[str]) -> set[str]:
    """The servers among these whose programs are there; of the others it says that they are left out."""
    missing = set()
    for name in wanted:
        server = SERVERS[name]
        if server.on_node and install_node_peer(server.runner) is None:
            missing.add((name, "Node.js"))
        elif server.ends == "redis-benchmark" and shutil.which(server.ends) is None:
            missing.add((name, "redis-benchmark (redis-tools of Debian)"))
    for name, program in sorted(missing):
        print(f"without {program} there is no {SERVERS[name].label}: its rows and goals are left out", file=sys.stderr)
    return set(wanted) - {name for name, _ in missing}


def main() -> None:
    parser = argparse.ArgumentParser(description="The bench of street_fast; see bench/README.md.")
    parser.add_argument("--quick", action="store_true", help="a look, not a result: short, and fewer idle connections")
    parser.add_argument("--rounds", type=int, help="how often every server is measured under every load (5; quick: 3)")
    parser.add_argument("--seconds", type=float, help="of one measurement (1.5; quick: 0.5)")
    parser.add_argument(
        "--only",
        metavar="LOAD,...",
        help="these loads only, or those of servers, realtime or nodes; only `--only nodes` writes, its own tables",
    )
    parser.add_argument("--servers", metavar="NAME,...", help="these servers only; writes nothing")
    parser.add_argument("--no-micro", action="store_true", help="without bench/micro; writes nothing")
    args = parser.parse_args()
    args.rounds = args.rounds or (3 if args.quick else 5)
    args.seconds = args.seconds or (0.5 if args.quick else 1.5)
    if (os.cpu_count() or 1) < 2 or not hasattr(os, "sched_setaffinity"):
        raise SystemExit("the bench needs Linux and two cores: one for the server, one for the load")

    sections = {section: [load.name for load in LOADS if load.section == section] for section in report.SECTIONS}
    chosen = names_in({load.name: [load.name] for load in LOADS} | sections, args.only, "--only")
    names = names_in({name: [name] for name in SERVERS}, args.servers, "--servers")
    wanted = {name for load in LOADS if load.name in chosen for name in load.servers if name in names}
    there = available(wanted)
    names = [name for name in names if name in there]

    def measured(loads: list[Load]) -> dict[str, Any]:
        head = {"machine": machine.facts(), "rounds": args.rounds, "seconds": args.seconds}
        return {**head, "loads": run_loads(loads, names, args)}

    # Nodes and brokers that others run beside are never quite idle: they come by themselves.
    of_nodes = [load for load in LOADS if load.name in chosen and load.section == "nodes"]
    others = [load for load in LOADS if load.name in chosen and load.section != "nodes"]
    results: dict[str, Any] = {"quick": args.quick}
    if others:
        results |= measured(others)
        results["micro"] = {} if args.no_micro or args.only or args.servers else run_micro()
    if of_nodes:
        results["nodes"] = measured(of_nodes)
    print(report.markdown(results))
    if not (args.quick or args.servers or args.no_micro) and args.only in (None, "nodes"):
        report.write(results)


if __name__ == "__main__":
    main()

"""``python -m tests.faults.programme``: all faults, five seeds each; ends with 1 if anything was lost in silence,
delivered twice or later than promised."""

from __future__ import annotations

import argparse
import asyncio
import collections
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from tests.faults.programme.faults import ALONE, FAULTS, ON_TWO_MACHINES
from tests.faults.programme.networks import UNSHARED, why_not
from tests.faults.programme.report import table, terminal, write_between_markers
from tests.faults.programme.run import Outcome, Run

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_S = 300.0
"""One run; those that take so long hang."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.faults.programme",
        description="Kills, stops and cuts real servers and brokers, and judges what their clients saw.",
        epilog="faults: " + ", ".join(FAULTS),
    )
    parser.add_argument(
        "--fault", action="append", choices=sorted(FAULTS), metavar="NAME", help="only this; repeatable"
    )
    parser.add_argument("--seeds", type=int, default=5, help="runs of each fault (default: 5)")
    parser.add_argument("--first-seed", type=int, default=1, help="the seeds go up from here (default: 1)")
    parser.add_argument("--keep", type=Path, default=Path("build/faults"), help="where logs go (default: build/faults)")
    parser.add_argument("--quick", action="store_true", help="one short run of each fault")
    parser.add_argument("--jobs", type=int, default=3, help="runs at once (default: 3)")
    parser.add_argument("--table", type=Path, help="a file that gets the table, between its markers")
    parser.add_argument("--report", action="store_true", help="run nothing: what the runs that are kept came to")
    parser.add_argument("--one", type=int, metavar="SEED", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    names = options.fault or list(FAULTS)
    if options.one is not None:
        return one(names[0], options.one, options.keep, options.quick)
    seeds = range(options.first_seed, options.first_seed + (1 if options.quick else options.seeds))
    if ON_TWO_MACHINES & set(names) and (reason := why_not()) is not None:
        print(f"without a second machine: {reason}; skipped: {', '.join(sorted(ON_TWO_MACHINES & set(names)))}")
        names = [name for name in names if name not in ON_TWO_MACHINES]
    jobs = [(name, seed) for name in names for seed in seeds]
    began = time.monotonic()
    if options.report:
        kept = (Outcome.read(path) for path in options.keep.glob("*/verdict.json"))
        outcomes = [outcome for outcome in kept if outcome.fault in names]
    else:
        try:
            outcomes = asyncio.run(_all(jobs, options.keep, options.quick, options.jobs))
        except KeyboardInterrupt:
            print(f"interrupted; what has ended is in {options.keep}, and --report shows it")
            return 130
    by_fault: dict[str, list[Outcome]] = collections.defaultdict(list)
    for outcome in sorted(outcomes, key=lambda outcome: (names.index(outcome.fault), outcome.seed)):
        by_fault[outcome.fault].append(outcome)
    print()
    print(terminal(by_fault))
    if options.table is not None:
        write_between_markers(options.table, table(by_fault))
        print(f"\nthe table is in {options.table}")
    bad = [outcome for outcome in outcomes if not outcome.good]
    minutes = "" if options.report else f" in {(time.monotonic() - began) / 60:.0f} min"
    print(f"\n{len(outcomes)} runs{minutes}, {len(bad)} failed; logs in {options.keep}")
    for outcome in bad:
        print(f"\n{outcome.fault}, seed {outcome.seed}:")
        for sentence in [*outcome.failures, *outcome.verdict.examples][:6]:
            print(f"  {sentence}")
        print(
            f"  again: python -m tests.faults.programme --fault {outcome.fault} --first-seed {outcome.seed} --seeds 1"
        )
    return int(bool(bad))


def one(name: str, seed: int, keep: Path, quick: bool) -> int:
    """One run, in this process."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65_536), hard))
    run = Run(name, seed, keep / f"{name}-{seed}", quick=quick, two_machines=name in ON_TWO_MACHINES)
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    outcome = loop.run_until_complete(run.whole(FAULTS[name]))
    return int(not outcome.good)


async def _all(jobs: list[tuple[str, int]], keep: Path, quick: bool, at_once: int) -> list[Outcome]:
    """Runs them, `at_once` beside each other but those that measure alone."""
    outcomes: list[Outcome] = []
    beside = [job for job in jobs if job[0] not in ALONE]
    alone = [job for job in jobs if job[0] in ALONE]

    async def worker() -> None:
        while beside:
            outcomes.append(await _start(*beside.pop(0), keep, quick))

    await asyncio.gather(*(worker() for _ in range(at_once)))
    return outcomes + [await _start(*job, keep, quick) for job in alone]


async def _start(name: str, seed: int, keep: Path, quick: bool) -> Outcome:
    words = [sys.executable, "-m", "tests.faults.programme", "--fault", name, "--one", str(seed), "--keep", str(keep)]
    if quick:
        words.append("--quick")
    if name in ON_TWO_MACHINES:
        words = [*UNSHARED, *words]
    folder = keep / f"{name}-{seed}"
    shutil.rmtree(folder, ignore_errors=True)
    process = await asyncio.create_subprocess_exec(
        *words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    said = b""
    try:
        said, _ = await asyncio.wait_for(process.communicate(), MOST_S)
    except asyncio.TimeoutError:
        pass
    finally:
        if process.returncode is None:  # it hangs, or Ctrl-C: its servers and brokers go with it
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    try:
        outcome = Outcome.read(folder / "verdict.json")
    except OSError:
        outcome = Outcome.of_nothing(name, seed, f"it came to no end: {said.decode()[-1_500:]}")
    if said.strip():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "programme.log").write_bytes(said)
    verdict = outcome.verdict
    print(
        f"{name:26} seed {seed:<4} {'good' if outcome.good else 'FAILED':6} {verdict.acknowledged:7,} acknowledged, "
        f"{verdict.owed:8,} owed: {verdict.once:,} once, {verdict.flagged:,} flagged, {verdict.silent} silent, "
        f"{verdict.twice} twice  ({outcome.seconds:.0f} s)",
        flush=True,
    )
    return outcome


if __name__ == "__main__":
    sys.exit(main())

"""`make fuzz`, or ``python -m tests.fuzz --seconds 60 --seed 7``: judges over random input, for as long as wanted.

Half of the time goes to the frame parser (frames.py), half to HTTP requests (http_heads.py). Streams are generated, or
mutated from a corpus; what leads to something new joins the corpus for the rest of the run. A seed gives the same run
again, as far as it gets in its time. Prints one line per target, and ends with 1 if judges disagree: the input is
printed, for a test to be made of it.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from typing import TYPE_CHECKING

from tests.fuzz import frames, http_heads
from tests.fuzz.mutation import mutated

if TYPE_CHECKING:
    from types import ModuleType

MOST_INPUTS = 3_000
MOST_REPORTS = 5


def fuzz(
    target: ModuleType, seed: int, *, seconds: float = 1e9, executions: int = 1 << 62
) -> tuple[int, int, list[str]]:
    """Runs one target. Returns the number of executions, of inputs that led to something new, and the disagreements."""
    rng = random.Random(seed)
    inputs: list[bytes] = target.corpus()
    seeds = len(inputs)
    known: set[object] = set()
    disagreements: list[str] = []
    end = time.monotonic() + seconds
    count = 0
    while count < executions and (count % 64 or time.monotonic() < end):
        if count < seeds:
            data = inputs[count]
        elif rng.random() < 0.3:
            data = target.generate(rng, rng.random() < 0.8)
        else:
            data = mutated(rng, rng.choice(inputs), rng.choice(inputs))
        count += 1
        outcome, disagreement = target.check(rng, data)
        if disagreement is not None:
            disagreements.append(disagreement)
            if len(disagreements) == MOST_REPORTS:
                break
        elif outcome not in known:
            known.add(outcome)
            if len(inputs) < MOST_INPUTS:
                inputs.append(data)
    return count, len(known), disagreements


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description="Differential fuzzing of the parsers.")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long, in all (default: 60)")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    options = parser.parse_args()
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"seed {seed}", flush=True)
    failed = False
    for target in (frames, http_heads):
        began = time.monotonic()
        count, outcomes, disagreements = fuzz(target, seed, seconds=options.seconds / 2)
        took = time.monotonic() - began
        name = target.__name__.rsplit(".", 1)[1]
        print(
            f"{name}: {count:,} executions in {took:.0f} s, {outcomes:,} different outcomes, "
            f"{len(disagreements)} disagreements",
            flush=True,
        )
        for disagreement in disagreements:
            print(f"\n{disagreement}", file=sys.stderr)
        failed |= bool(disagreements)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())

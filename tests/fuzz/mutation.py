"""Changes bytes at random: the part of the fuzzer that knows nothing of what it fuzzes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import random

INTERESTING = bytes.fromhex("00 01 02 03 7d 7e 7f 80 81 82 88 89 8a fe ff 0a 0d 20 2c 3a")
LONGEST = 70_000


def mutated(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """`data` after one to six changes; parts of `other` may get in."""
    wire = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 3, 6])):
        at = rng.randrange(len(wire) + 1)
        size = rng.choice([1, 1, 2, 4, 8, 40])
        change = rng.randrange(8)
        if change == 0 and at < len(wire):
            wire[at] ^= 1 << rng.randrange(8)
        elif change == 1 and at < len(wire):
            wire[at] = rng.choice(INTERESTING)
        elif change == 2:
            wire[at:at] = rng.randbytes(min(size, 4))
        elif change == 3:
            del wire[at : at + size]
        elif change == 4:
            wire[at:at] = wire[at : at + size]
        elif change == 5:
            start = rng.randrange(len(other) + 1)
            wire[at:at] = other[start : start + rng.choice([size, 200])]
        elif change == 6:
            wire += other
        elif change == 7 and len(wire) > 2:
            del wire[at:]
    return bytes(wire[:LONGEST])

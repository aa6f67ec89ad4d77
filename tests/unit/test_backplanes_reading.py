"""Pages of a history, and one fetch for all who ask at once."""

from __future__ import annotations

import asyncio
import random

import pytest

from street_fast.backplanes import History, Page, Position, Publication
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.backplanes.reading import SharedReads, page_of


class TestPageOf:
    @pytest.mark.parametrize("seed", range(3))
    async def test_it_says_what_memory_says(self, seed):
        print("seed", seed)
        chance = random.Random(seed)
        memory = MemoryBackplane()
        history = History(size=10, ttl_s=100)
        await memory.start(object())
        start = memory.read("c", history, since=None, limit=0).top
        positions = [start]
        for number in range(25):
            positions.append(memory.publish("c", b"%d" % number, history=history).position)
            entries = memory.read("c", history, since=None, limit=100).publications
            floor = positions[-len(entries) - 1]
            for _ in range(10):
                since = chance.choice(
                    [None, *positions, Position("other", 3, "t"), positions[-1]._replace(tag="x"), floor]
                )
                limit = chance.randint(0, 12)
                assert page_of(entries, positions[-1], floor, since, limit) == memory.read(
                    "c", history, since=since, limit=limit
                )
        await memory.close()

    def test_without_a_floor_what_is_before_the_first_is_not_recovered(self):
        entries = [Publication(b"5", Position("e", 5, "t5"))]
        top = entries[0].position
        assert page_of(entries, top, None, Position("e", 4, "t4"), 10) == Page([], top, False)
        assert page_of([], top, None, Position("e", 5, "t5"), 10) == Page([], top, True)
        assert page_of([], top, None, Position("e", 4, "t4"), 10) == Page([], top, False)


class TestSharedReads:
    async def test_who_asks_gets_what_is_fetched_after_that(self):
        fetched = []
        gates = [asyncio.Event() for _ in range(3)]

        async def fetch(key):
            number = len(fetched)
            fetched.append(key)
            await gates[number].wait()
            return number

        reads = SharedReads(fetch)
        first = [asyncio.ensure_future(reads.read("c")) for _ in range(3)]
        await asyncio.sleep(0.001)
        late = [asyncio.ensure_future(reads.read("c")) for _ in range(3)]
        await asyncio.sleep(0.001)
        assert fetched == ["c"]
        gates[0].set()
        assert await asyncio.gather(*first) == [0, 0, 0]
        await asyncio.sleep(0.001)
        assert fetched == ["c", "c"]
        gates[1].set()
        assert await asyncio.gather(*late) == [1, 1, 1]
        gates[2].set()
        assert await reads.read("c") == 2

    async def test_keys_do_not_wait_for_each_other_and_errors_go_to_all(self):
        async def fetch(key):
            raise OSError(key)

        reads = SharedReads(fetch)
        results = await asyncio.gather(*(reads.read(key) for key in "aab"), return_exceptions=True)
        assert [str(error) for error in results] == ["a", "a", "b"]
        assert not reads._next
        assert not reads._running

    async def test_one_who_goes_away_harms_nobody(self):
        gate = asyncio.Event()

        async def fetch(key):
            await gate.wait()
            return key

        reads = SharedReads(fetch)
        one, other = [asyncio.ensure_future(reads.read("c")) for _ in range(2)]
        await asyncio.sleep(0.001)
        one.cancel()
        gate.set()
        assert await other == "c"

    async def test_one_that_is_cancelled_before_its_first_step_is_forgotten(self):
        async def fetch(key):
            return key

        reads = SharedReads(fetch)
        one = asyncio.ensure_future(reads.read("c"))
        await asyncio.sleep(0)
        assert reads._next
        reads.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        assert await reads.read("c") == "c"

    async def test_cancel_ends_all(self):
        async def fetch(key):
            await asyncio.Event().wait()

        reads = SharedReads(fetch)
        one = asyncio.ensure_future(reads.read("c"))
        await asyncio.sleep(0.001)
        other = asyncio.ensure_future(reads.read("c"))
        await asyncio.sleep(0.001)
        reads.cancel()
        for task in (one, other):
            with pytest.raises(asyncio.CancelledError):
                await task
        assert not reads._next
        assert not reads._running

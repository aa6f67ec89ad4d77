"""Reading a history from a broker: one page for each who asks, and one fetch for all who ask at once."""

from __future__ import annotations

import asyncio
import functools
from typing import TYPE_CHECKING, Generic, TypeVar

from street_fast.backplanes import Page

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable, Sequence

    from street_fast.backplanes import Position, Publication

__all__ = ["SharedReads", "page_of"]

Key = TypeVar("Key", bound="Hashable")
Value = TypeVar("Value")


def page_of(
    entries: Sequence[Publication], top: Position, floor: Position | None, since: Position | None, limit: int
) -> Page:
    """The page of a history that keeps `entries`, oldest first, with consecutive offsets, the last of them at `top`.

    `floor` is the position right before the first entry, if it is known: the start of the epoch if nothing has gone,
    or the newest of what has. See `Backplane.read`.
    """
    if since is None:
        return Page(list(entries[max(0, len(entries) - limit) :]), top, False)
    if since == top:
        return Page([], top, True)
    if since == floor:
        return Page(list(entries[:limit]), top, True)
    if entries:
        first = entries[0].position
        assert first is not None  # it comes from a history
        index = since.offset - first.offset
        if 0 <= index < len(entries) and entries[index].position == since:
            return Page(list(entries[index + 1 : index + 1 + limit]), top, True)
    return Page([], top, False)


class SharedReads(Generic[Key, Value]):
    """Runs `fetch(key)` once for all who want the same key at the same time.

    Who asks gets what was fetched after that: a fetch that has begun already is not enough, and another one follows it.
    """

    def __init__(self, fetch: Callable[[Key], Awaitable[Value]]) -> None:
        self._fetch = fetch
        self._next: dict[Key, asyncio.Task[Value]] = {}  # not begun
        self._running: dict[Key, asyncio.Task[Value]] = {}

    async def read(self, key: Key) -> Value:
        """What `fetch(key)` returns or raises."""
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.get_running_loop().create_task(self._run(key))
            task.add_done_callback(functools.partial(self._ended, key))
        return await asyncio.shield(task)

    def cancel(self) -> None:
        """End all fetches; who waits for one is cancelled."""
        for task in [*self._next.values(), *self._running.values()]:
            task.cancel()

    async def _run(self, key: Key) -> Value:
        before = self._running.get(key)
        if before is not None:
            await asyncio.wait([before])
        self._running[key] = self._next.pop(key)
        return await self._fetch(key)

    def _ended(self, key: Key, task: asyncio.Task[Value]) -> None:
        """Also of a task that was cancelled before its first step, of which it knows nothing itself."""
        for tasks in (self._next, self._running):
            if tasks.get(key) is task:
                del tasks[key]
        if not task.cancelled():
            task.exception()  # nobody may be left to hear of it

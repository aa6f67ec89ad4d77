"""The history of channels in Redis, as a node reads it.

PUBLISH is a hint and the stream is the truth: what the bus has lost is read, and the place of each channel is compared
with its history now and then. A history that has less than this node has delivered gets another epoch, so that no
client goes on in it as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from typing import TYPE_CHECKING

from street_fast.backplanes import Page, Position, Unavailable, records
from street_fast.backplanes.reading import SharedReads, page_of
from street_fast.backplanes.reasons import reason_of
from street_fast.backplanes.redis_links import ask
from street_fast.backplanes.redis_scripts import READ, RESET, milliseconds

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from typing import Any

    from street_fast.backplanes.following import Following
    from street_fast.backplanes.redis_scripts import Routes
    from street_fast.backplanes.redis_servers import Server, Servers
    from street_fast.limits import Limits

__all__ = ["RedisHistories", "top_of"]

_READS_AT_ONCE = 100
_MOST_SHARED_EPOCH_S = 43_200.0


class RedisHistories:
    """What one node reads. `following` is set by who makes it.

    `random()` gives a word that nobody else has. `poisoned(channel)` is called for what others have written.
    """

    following: Following

    def __init__(
        self,
        limits: Limits,
        servers: Servers,
        routes: Routes,
        random: Callable[[], bytes],
        poisoned: Callable[[str], None],
    ) -> None:
        self._servers = servers
        self._routes = routes
        self._random = random
        self._poisoned = poisoned
        self.shared_ms = milliseconds(min(_MOST_SHARED_EPOCH_S, limits.position_ttl_s / 3))
        """How long channels that are not known share an epoch."""
        self.meta_ms = milliseconds(limits.position_ttl_s)
        """How long it is known where a channel is that nobody publishes to."""
        self._most_messages = limits.recovery_messages
        self._to_read: deque[tuple[str, Position]] = deque()
        self._reads = 0
        self._resetting: set[str] = set()
        self._shared = SharedReads(self._fetch)
        self._closed = False
        self.catch_ups = self.resets = 0

    @property
    def is_catching_up(self) -> bool:
        """Whether something that was missed is being read, or waits for that."""
        return bool(self._reads or self._to_read)

    def close(self) -> None:
        """Nothing is told from now on."""
        self._closed = True

    def cancel(self) -> None:
        """Who waits for a page is cancelled."""
        self._shared.cancel()

    # --- pages ---

    def read(self, channel: str, since: Position | None, limit: int) -> Awaitable[Page]:
        """See `Backplane.read`. Who asks for the same at once is answered by one read."""
        self._servers.reach(channel)
        return self._shared.read((channel, since, limit))

    async def _fetch(self, wanted: tuple[str, Position | None, int]) -> Page:
        future: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
        self._ask_page(*wanted, future)
        return await future

    def _ask_page(self, channel: str, since: Position | None, limit: int, future: asyncio.Future[Page]) -> None:
        server, command = self._servers.reach(channel)

        def answered(reply: Any) -> None:
            if isinstance(reply, Exception):
                self._servers.refused(server, reply)
                if not future.done():
                    future.set_exception(Unavailable(f"the history cannot be read: {reason_of(reply)}"))
                return
            try:
                page = self._page(channel, reply, since, limit)
            except ValueError as error:
                self._poisoned(channel)
                if not future.done():
                    future.set_exception(Unavailable(f"the history cannot be read: {error}"))
            else:
                if not future.done():
                    future.set_result(page)

        command.ask(self._command(server, channel, since, limit), answered)

    def _command(self, server: Server, channel: str, since: Position | None, limit: int) -> bytes:
        words = [server.identity, self._random(), self.shared_ms, b"%d" % limit]
        if since is not None:
            words += [since.epoch.encode(), b"%d" % since.offset]
        return READ.call(self._routes.of(channel).keys, words)

    def _page(self, channel: str, reply: list[Any], since: Position | None, limit: int) -> Page:
        """What READ has returned. Of a history with something that is not ours nothing can be said but its top.

        Raises ValueError if that is not ours either.
        """
        top = top_of(reply)
        floor = Position.start_of(top.epoch) if int(reply[3]) == top.offset else None
        entries = []
        try:
            for data in reply[4:]:
                publication = records.decode(data).publication
                if publication is None or publication.position is None:
                    raise ValueError("no message that is kept")
                entries.append(publication)
        except ValueError:
            self._poisoned(channel)
            return Page([], top, False)
        return page_of(entries, top, floor, since, limit)

    # --- the newest message ---

    def ask_top(self, server: Server, channel: str, answered: Callable[[Any], None]) -> bool:
        """Ask where a channel is. `answered` gets what is for `top_in`, or an error. False if it cannot be asked."""
        return server.command is not None and ask(server.command, self._command(server, channel, None, 0), answered)

    def top_in(self, channel: str, reply: list[Any]) -> Position | None:
        """The position in the answer; None if somebody else has written there."""
        try:
            return top_of(reply)
        except ValueError:
            self._poisoned(channel)
            return None

    def check(self, channel: str, place: Position) -> None:
        """See whether the history has more, or less, than this node at `place`."""
        server = self._servers.of(channel)
        if server is None:
            return

        def answered(reply: Any) -> None:
            top = None if isinstance(reply, Exception) else self.top_in(channel, reply)
            if top is not None and not self._closed:
                self.compare(channel, place, top)

        self.ask_top(server, channel, answered)

    def compare(self, channel: str, place: Position, top: Position) -> None:
        """`top` is what the history had when this node was at `place`."""
        if top.offset or place.offset:  # else nothing was published yet, and the epoch of such channels ends
            self.following.check(channel, place, top)

    # --- what was missed ---

    def catch_up(self, channel: str, since: Position) -> None:
        """`Following` asks for what came after `since`."""
        self._to_read.append((channel, since))
        self._read_next()

    def _read_next(self) -> None:
        while self._to_read and self._reads < _READS_AT_ONCE and not self._closed:
            channel, since = self._to_read.popleft()
            if self.following.place(channel) != since:
                continue  # it was given up meanwhile
            future: asyncio.Future[Page] = asyncio.get_running_loop().create_future()
            future.add_done_callback(functools.partial(self._have_read, channel, since))
            self._reads += 1
            self.catch_ups += 1
            try:
                self._ask_page(channel, since, self._most_messages, future)
            except Unavailable as error:
                future.set_exception(error)

    def _have_read(self, channel: str, since: Position, future: asyncio.Future[Page]) -> None:
        self._reads -= 1
        failed = future.cancelled() or future.exception() is not None
        if self._closed:
            return
        if failed:
            self._resetting.discard(channel)
            self.following.could_not_read(channel, since)
        else:
            page = future.result()
            top = page.top
            has_less = not page.recovered and top.epoch == since.epoch and top.offset <= since.offset
            if not (has_less and self._reset(channel, since, top)):
                self._resetting.discard(channel)
                self.following.caught_up(channel, since, page)
        self._read_next()

    def _reset(self, channel: str, since: Position, top: Position) -> bool:
        """The history ends at `top`, and was at `since` before: another epoch, and then it is read again.

        Others, and clients, may know what it has lost, too. Returns False if that was tried already.
        """
        server = self._servers.of(channel)
        if server is None or server.command is None or channel in self._resetting:
            return False
        words = (
            server.identity,
            self._random(),
            self.meta_ms,
            top.epoch.encode(),
            b"%d" % top.offset,
            top.tag.encode(),
        )

        def answered(reply: Any) -> None:
            self._to_read.append((channel, since))
            self._read_next()

        if not ask(server.command, RESET.call(self._routes.of(channel).keys[:2], words), answered):
            return False
        self.resets += 1
        self._resetting.add(channel)
        return True


def top_of(reply: list[Any]) -> Position:
    """The position in what one of our scripts has returned. Raises ValueError if it found what others have written."""
    if len(reply) < 4:
        raise ValueError("what is in Redis is no position of ours")
    return Position.parse(f"{reply[0].decode()}:{int(reply[1])}:{reply[2].decode()}")

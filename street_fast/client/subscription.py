"""A subscription as the application sees it: messages by `async for`, typed, in order, with the gaps told in between.

`Reader` does the reading of a Feed. `Subscription` is what the application holds; when it lets go of one that it reads
itself, nobody can ever read it again, and the channel is left. So the client knows readers only.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from street_fast.client.messages import Gap, Incoming, RealtimeError, Received
from street_fast.errors import StreetError
from street_fast.messages import MalformedMessage, decode_data

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from types import TracebackType

    from street_fast.client.feed import Feed
    from street_fast.client.link import Link

__all__ = ["Reader", "Subscription", "received_of"]

logger = logging.getLogger("street_fast")

T = TypeVar("T")


def received_of(message: Incoming, kind: Any) -> Received[Any]:
    """A message with its data as a `kind`. Raises MalformedMessage if it does not fit."""
    data = decode_data(message.data, kind)
    return Received(data, message.channel, message.ts, message.sender, message.position, message.type)


class Reader:
    """Takes the messages of one feed, one after the other, for one subscription."""

    def __init__(self, link: Link, feed: Feed, kind: Any, on_gap: Callable[[Gap], object] | None) -> None:
        self.feed = feed
        self.gaps = 0
        self.misfits = 0
        self.position = None if feed.position is None else str(feed.position)
        self._link = link
        self._kind = kind
        self._on_gap = on_gap
        self._reading = False
        self._waiters: list[asyncio.Future[None]] = []
        feed.on_change = self._changed

    def _changed(self, feed: Feed) -> None:
        if feed.full and not feed.ended:
            self._link.set_full(feed, True)
        elif feed.ended:
            self._link.set_full(feed, False)
        waiters, self._waiters = self._waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)

    def _change(self) -> asyncio.Future[None]:
        waiter: asyncio.Future[None] = self._link.loop.create_future()
        self._waiters.append(waiter)
        return waiter

    async def subscribed(self, timeout_s: float) -> None:
        """Returns when the server has subscribed us. Raises why it has not."""
        feed = self.feed
        late = self._link.loop.create_future()
        timer = self._link.loop.call_later(timeout_s, late.cancel)
        try:
            while not feed.begun and not feed.ended and not late.done():
                await asyncio.wait({self._change(), late}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            timer.cancel()
        if feed.error is not None:
            raise feed.error.with_traceback(None)
        if not feed.begun:
            why = f"{feed.channel!r} could not be subscribed to within {timeout_s:g} s"
            raise self._link.error or RealtimeError("unavailable", why)

    async def next(self) -> Received[Any] | None:
        """The next message; None after the last. Raises why there is none, if the application did not want that."""
        if self._reading:
            raise RuntimeError(f"two tasks read the subscription to {self.feed.channel!r}; make one for each")
        self._reading = True
        try:
            while True:
                items = self.feed.items
                while items:
                    item = items[0]
                    if isinstance(item, Gap):
                        await self._tell(item)
                    if items:  # unless the application has unsubscribed meanwhile
                        items.popleft()
                        self._link.read_from(self.feed)
                    if isinstance(item, Incoming):
                        self.position = item.position or self.position
                        received = self._received(item)
                        if received is not None:
                            return received
                if self.feed.ended:
                    if self.feed.error is not None:
                        raise self.feed.error.with_traceback(None)
                    return None
                await self._change()
        finally:
            self._reading = False

    def _received(self, message: Incoming) -> Received[Any] | None:
        try:
            return received_of(message, self._kind)
        except MalformedMessage as error:
            self.misfits += 1
            logger.warning("a message of channel %r is left out: %s", message.channel, error)
            return None

    async def _tell(self, gap: Gap) -> None:
        if self._on_gap is None:
            missed = "messages may be" if gap.missed is None else f"{gap.missed} messages are"
            logger.warning("%s missing in channel %r", missed, gap.channel)
        else:
            try:
                done = self._on_gap(gap)
                if inspect.isawaitable(done):
                    await done
            except Exception:
                logger.exception("on_gap of channel %r failed", gap.channel)
        self.gaps += 1
        self.position = gap.position or self.position

    async def hand_to(self, handler: Callable[[Received[Any]], object]) -> None:
        """Call `handler` with each message, one after the other."""
        try:
            while (received := await self.next()) is not None:
                try:
                    done = handler(received)
                    if inspect.isawaitable(done):
                        await done
                except Exception:
                    logger.exception("the handler of channel %r failed", self.feed.channel)
        except StreetError as error:
            logger.error("the subscription to %r is over: %s", self.feed.channel, error)

    def unsubscribe(self) -> None:
        """The application wants no more of it."""
        self.feed.items.clear()
        self._link.set_full(self.feed, False)
        self._link.protocol.subscriptions.detach(self.feed)


class Subscription(Generic[T]):
    """What `RealtimeClient.subscribe` returns.

    ``async for message in subscription`` gives each message once and in order, across reconnects, until it is
    unsubscribed or the client closed; if the server ends either, it raises RealtimeError or ConnectionClosed.

    ``async with rt.subscribe(...) as subscription`` and ``subscription = await rt.subscribe(...)`` wait until the
    server has subscribed us, and raise RealtimeError if it does not; the former unsubscribes in the end. A subscription
    without a handler that nobody holds any more is unsubscribed, so to ``break`` out of
    ``async for ... in rt.subscribe(...)`` is enough.
    """

    __slots__ = ("__weakref__", "_link", "_of_handler", "_reader", "_timeout_s")

    def __init__(self, link: Link, reader: Reader, *, of_handler: bool, timeout_s: float) -> None:
        self._link = link
        self._reader = reader
        self._of_handler = of_handler
        self._timeout_s = timeout_s

    @property
    def channel(self) -> str:
        """The name of the channel."""
        return self._reader.feed.channel

    @property
    def position(self) -> str | None:
        """Where the last message stands that was read: the `since` of a later subscription, also of another process.

        None before the first one, and where the channel keeps no history.
        """
        return self._reader.position

    @property
    def gaps(self) -> int:
        """How often messages were missing, or may have been."""
        return self._reader.gaps

    @property
    def misfits(self) -> int:
        """Messages left out because their data was not of the type."""
        return self._reader.misfits

    def unsubscribe(self) -> None:
        """Leave the channel, if no other subscription of the client wants it. Unread messages are dropped."""
        self._reader.unsubscribe()

    def __aiter__(self) -> Subscription[T]:
        if self._of_handler:
            raise RuntimeError(
                f"the messages of {self.channel!r} go to its handler; subscribe without one to read them"
            )
        return self

    async def __anext__(self) -> Received[T]:
        received = await self._reader.next()
        if received is None:
            raise StopAsyncIteration
        return received

    def __await__(self) -> Generator[Any, None, Subscription[T]]:
        return self.__aenter__().__await__()

    async def __aenter__(self) -> Subscription[T]:
        try:
            await self._reader.subscribed(self._timeout_s)
        except BaseException:
            self.unsubscribe()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.unsubscribe()

    def __del__(self) -> None:
        reader = self._reader
        if not self._of_handler and not reader.feed.ended and not self._link.loop.is_closed():
            # From wherever the collector runs.
            self._link.loop.call_soon_threadsafe(reader.unsubscribe)

    def __repr__(self) -> str:
        return f"<Subscription {self.channel!r}{' ended' if self._reader.feed.ended else ''}>"

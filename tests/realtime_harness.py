"""A Realtime without sockets and with a clock that is moved by hand, and clients that read as fast as the test says."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
from typing import TYPE_CHECKING, Any

from street_fast._core import LoopContext
from street_fast.auth import Grant, Member, TokenRefused
from street_fast.backplanes.memory import MemoryBackplane
from street_fast.errors import ConnectionClosed
from street_fast.hub import ChannelHub
from street_fast.limits import Limits
from street_fast.messages import decode
from street_fast.realtime import Realtime
from street_fast.testing import FakeConnection, ManualClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from street_fast.messages import Message
    from street_fast.session import Session


class Client(FakeConnection):
    """A client of a Realtime, and its connection. What it was sent waits in it while it is `stalled`, until `read`."""

    def __init__(self, world: World, member: Member | str | None) -> None:
        super().__init__()
        self.limits = world.realtime.limits
        self.stalled = False
        self.bytes_buffered = 0
        self.most_buffered = 0
        self.abuse = 0
        self.close_code: int | None = None
        self.close_reason = ""
        self._drained = asyncio.Event()
        self._ids = itertools.count(1)
        who = Member(member) if isinstance(member, str) else member
        self.session: Session = world.realtime.open(self, who)  # type: ignore[arg-type]

    def deliver(self, message: Message, droppable: bool = False) -> None:
        if self.closed:
            return
        if self.stalled:
            if droppable and self.bytes_buffered > self.limits.write_soft_bytes:
                return
            self.bytes_buffered += len(message.json)
            self.most_buffered = max(self.most_buffered, self.bytes_buffered)
        super().deliver(message, droppable)

    def read(self) -> None:
        """Take all that was sent."""
        self.bytes_buffered = 0
        self._drained.set()
        self._drained = asyncio.Event()

    async def drain(self) -> None:
        while self.bytes_buffered > self.limits.write_soft_bytes and not self.closed:
            await self._drained.wait()
        if self.closed:
            raise ConnectionClosed(1006)

    def note_abuse(self) -> None:
        self.abuse += 1

    def close(self, code: int = 1000, reason: str = "") -> None:
        if not self.closed:
            self.close_code, self.close_reason = int(code), reason
            self.simulate_close()

    def simulate_close(self) -> None:
        super().simulate_close()
        self._drained.set()

    # --- what the client does ---

    def send(self, type: str, **fields: Any) -> Any:  # noqa: A002
        """Send an envelope; returns what the session leaves to await."""
        return self.session.handle(decode(json.dumps({"type": type, **fields}).encode()))

    async def say(self, type: str, **fields: Any) -> None:  # noqa: A002
        """Send an envelope, and wait until it has been dealt with."""
        left = self.send(type, **fields)
        if inspect.iscoroutine(left):
            await left

    async def ask(self, type: str, **fields: Any) -> dict[str, Any]:  # noqa: A002
        """Send an envelope with an id; returns the one reply or error to it. All other messages can still be taken."""
        ident = next(self._ids)
        await self.say(type, id=ident, **fields)
        (answer,) = [message for message in self.messages if message.get("id") == ident]
        self.messages.remove(answer)
        return answer

    async def done(self, type: str, **fields: Any) -> dict[str, Any]:  # noqa: A002
        """The data of the reply, which must be one."""
        answer = await self.ask(type, **fields)
        assert answer["type"] == "reply", answer
        assert answer.get("channel") == fields.get("channel")
        data: dict[str, Any] = answer["data"]
        return data

    async def refused(self, type: str, **fields: Any) -> str:  # noqa: A002
        """The code of the error, which the reply must be."""
        answer = await self.ask(type, **fields)
        assert answer["type"] == "error", answer
        assert answer["data"]["message"]
        code: str = answer["data"]["code"]
        return code

    def take_type(self, type: str) -> list[dict[str, Any]]:  # noqa: A002
        """The messages of a type since the last time; others stay."""
        found = [message for message in self.messages if message["type"] == type]
        self.messages = [message for message in self.messages if message["type"] != type]
        return found


class World:
    """A Realtime on a clock that stands still. `members` are the tokens that its auth knows, if it has one."""

    def __init__(self, realtime: Realtime, clock: ManualClock, context: LoopContext) -> None:
        self.realtime = realtime
        self.clock = clock
        self.context = context
        self.clients: list[Client] = []

    def client(self, member: Member | str | None = "ada") -> Client:
        """A client that has read its welcome."""
        client = Client(self, member)
        self.clients.append(client)
        client.take()
        return client

    def advance(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.context.wheel.advance()

    async def settle(self) -> None:
        for _ in range(30):
            await asyncio.sleep(0)

    def everybody_leaves(self) -> None:
        for client in self.clients:
            if not client.closed:
                client.simulate_close()
        self.clients.clear()


def is_empty(realtime: Realtime) -> bool:
    """Whether nothing is left of any client."""
    hub, exchange = realtime.hub, realtime.exchange
    state: list[Any] = [hub._channels, hub._subscribers, hub._unaware, hub._changed, hub._missed]
    state += [hub._presence._members]
    state += [hub._presence._typing, hub._typing_timers, hub._deliveries]
    state += [exchange._catching_up, exchange._interests, exchange._tasks, exchange._places, exchange._gaps]
    state += [realtime._members]
    return not any(state) and not realtime.session_count


class Tokens:
    """An auth whose tokens are what the test has put in: a Member, a Grant, or an error. `later` makes it wait."""

    def __init__(self, **tokens: Any) -> None:
        self.tokens: dict[str, Any] = tokens
        self.later = False

    def token_of(self, request: Any) -> str | None:
        token: str | None = request.query.get("token")
        return token

    def verify(self, token: str) -> Any:
        return self._answer(token, Member)

    def grant(self, token: str, member: Member, channel: str) -> Any:
        return self._answer(token, Grant)

    def _answer(self, token: str, kind: type) -> Any:
        if self.later:
            return self._answer_later(token, kind)
        answer = self.tokens.get(token)
        if isinstance(answer, Exception):
            raise answer
        if not isinstance(answer, kind):
            raise TokenRefused(f"token {token!r} is not good")
        return answer

    async def _answer_later(self, token: str, kind: type) -> Any:
        await asyncio.sleep(0)
        self.later = False
        try:
            return self._answer(token, kind)
        finally:
            self.later = True


async def make_world(*, limits: Limits | None = None, backplane: Any = None, **options: Any) -> World:
    """Options are those of Realtime; limits are those of its server and its hub."""
    from street_fast.server import StreetWebSocketServer

    clock = ManualClock()
    context = LoopContext(asyncio.get_running_loop(), clock)
    limits = Limits() if limits is None else limits
    hub = ChannelHub(wheel=context.wheel, clock_ms=clock.ms, limits=limits)
    if backplane is None:
        backplane = MemoryBackplane(limits=limits, context=context)
    server = StreetWebSocketServer(limits=limits, path="/realtime")
    realtime = Realtime(server, hub, backplane=backplane, **options)
    await realtime.start()
    realtime.exchange.monotonic = clock
    return World(realtime, clock, context)


async def world_fixture() -> AsyncIterator[Any]:
    """``world = await make(**options)``; what the test has left behind must be gone when its clients are."""
    worlds: list[World] = []

    async def make(**options: Any) -> World:
        worlds.append(await make_world(**options))
        return worlds[-1]

    yield make
    for world in worlds:
        world.everybody_leaves()
        world.advance(1_000)
        await world.settle()
        assert is_empty(world.realtime)
        await world.realtime.close()

"""Nothing is left of connections that are gone, however they went: no object, block of memory, descriptor, task, timer.

One round uses every way to begin, use and lose a connection a few times, over real sockets. After rounds to get warm,
which fill caches and free lists, more rounds must end where they began. What leaks once per use is found: objects that
the garbage collector knows by type, what it does not know (bytes, C arrays) by the number of allocated blocks.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import gc
import heapq
import itertools
import logging
import os
import socket
import statistics
import struct
import sys
import warnings
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from street_fast import ChannelHub, Limits, Member, Request, StreetSocket, StreetWebSocketServer
from street_fast._core import LoopContext
from street_fast.errors import ConnectionClosed
from tests.connection_harness import Peer, connected, load_core, until
from tests.frames_harness import BINARY, CLOSE, IMPLEMENTATIONS, PING, TEXT, close, frame, text
from tests.http_harness import head

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

pytestmark = pytest.mark.both_loops

AT_ONCE = 6  # uses of each way in one round
ROUNDS = 4
MOST_ROUNDS = 60
USES = AT_ONCE * ROUNDS
PATIENT = Limits(write_soft_bytes=16_384, write_hard_bytes=65_536, ping_interval_s=None)
BRISK = dataclasses.replace(PATIENT, close_timeout_s=0.05, abort_timeout_s=0.05, assembly_timeout_s=0.05)
PINGING = dataclasses.replace(BRISK, ping_interval_s=0.05, pong_timeout_s=0.05)


class Count(NamedTuple):
    types: collections.Counter[type]
    descriptors: int
    tasks: int
    timers: int


def count(context: Any) -> Count:
    forget_cancelled_timers()
    types = collections.Counter(map(type, gc.get_objects()))
    descriptors = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0
    return Count(types, descriptors, len(asyncio.all_tasks()), len(context.wheel))


def blocks() -> int:
    forget_cancelled_timers()
    for _ in range(3):
        gc.collect()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of Python 3.13
        sys._clear_type_cache()  # it fills up with copies of the names that C code asks for
    return sys.getallocatedblocks()


def forget_cancelled_timers() -> None:
    """Asyncio's own loop keeps up to a hundred of them until their time has come."""
    scheduled = getattr(asyncio.get_running_loop(), "_scheduled", None)
    if scheduled is not None:
        for timer in [timer for timer in scheduled if timer.cancelled()]:
            scheduled.remove(timer)
            timer._scheduled = False
        heapq.heapify(scheduled)
        asyncio.get_running_loop()._timer_cancelled_count = 0  # type: ignore[attr-defined]


async def assert_nothing_is_left(context: Any, one_round: Callable[[], Awaitable[None]]) -> None:
    gc.freeze()  # what is there already need not be looked through after each round
    try:
        await _assert_nothing_is_left(context, one_round)
    finally:
        gc.unfreeze()


async def _assert_nothing_is_left(context: Any, one_round: Callable[[], Awaitable[None]]) -> None:
    for _ in range(2):
        await one_round()
        blocks(), count(context)
    before = count(context)
    for _ in range(ROUNDS):
        await one_round()
    held = [blocks()]
    after = count(context)
    assert after[1:] == before[1:], "descriptors, tasks, timers"
    more = after.types - before.types
    assert {kind: number for kind, number in more.items() if kind.__module__.startswith("street_fast")} == {}
    # What leaks at one way leaks at each use of it. Less than that is noise: caches and free lists of others.
    assert {kind: number for kind, number in more.items() if number >= USES - AT_ONCE} == {}
    # Such a leak shows in each round. The caches of the interpreter and of uvloop are full after some, and what other
    # threads take or give back shows in few.
    while len(held) < 8 or _usual_growth(held[-8:]) > AT_ONCE / 2:
        assert len(held) < MOST_ROUNDS, f"blocks after each round: {held}"
        await one_round()
        held.append(blocks())


def _usual_growth(held: list[int]) -> float:
    return statistics.median(later - earlier for earlier, later in itertools.pairwise(held))


# --- a bare connection ------------------------------------------------------------------------------------------


async def echo(core: Any) -> None:
    async with connected(core, PATIENT) as link:
        link.ws.on_message = link.ws.send
        for data in (text("x"), text("é" * 1_000), frame(BINARY, b"x" * 300), frame(PING, b"p")):
            await link.peer.send(data)
            await link.peer.frame()
        await link.peer.send(frame(TEXT, b"in ", fin=False) + frame(0, b"parts"))
        await link.peer.frame()
        await link.peer.send(close(1000, "bye"))
        await link.peer.end()


async def as_client(core: Any) -> None:
    async with connected(core, PATIENT, client=True) as link:
        link.ws.send("x")
        link.ws.send(core.Frame.binary(b"x" * 100))
        assert len(await link.peer.frame()) == 2
        link.ws.close(1001, "bye")
        await link.peer.frame()
        assert (await link.peer.frame())[0] == CLOSE
        await link.peer.send(close(1001, mask=None))
        link.peer.close()
        await link.ws.wait_closed()
        assert link.ends == [(1001, "bye")]


async def broadcast(core: Any) -> None:
    async with contextlib.AsyncExitStack() as stack:
        links = [await stack.enter_async_context(connected(core, PATIENT)) for _ in range(3)]
        sinks = {link.ws: None for link in links}
        assert core.broadcast(sinks, "to all") == 3
        assert core.broadcast(sinks, core.Frame.text("to two"), skip=links[0].ws) == 2
        core.fan_out(sinks, core.Frame.text("droppable"), links[1].ws, True)
        for link in links:
            await link.peer.frame()


def narrow(link: Any) -> None:
    """The kernel takes little, and no more after a while."""
    link.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8_192)
    link.peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8_192)


async def evicted(core: Any) -> None:
    async with connected(core, BRISK) as link:
        narrow(link)
        piece = core.Frame.binary(bytes(8_192))
        while link.ws.send(piece):
            pass
        await link.ws.wait_closed()
        assert link.ends[0][0] == 4008


async def failed(core: Any) -> None:
    async with connected(core, PATIENT) as link:
        link.ws.send("before")
        await link.peer.send(text("not masked", mask=None) + text("ignored") * 100)
        await link.peer.end()
    assert link.ends[0][0] == 1002


async def not_utf8(core: Any) -> None:
    async with connected(core, PATIENT) as link:
        await link.peer.send(frame(TEXT, b"x" * 500, fin=False) + frame(0, b"\xff" * 500))
        await link.peer.end()
    assert link.ends[0][0] == 1007


async def aborted(core: Any) -> None:
    async with connected(core, PATIENT) as link:
        narrow(link)
        while link.ws.bytes_buffered <= 50_000:
            link.ws.send(bytes(5_000))
        waiting = asyncio.ensure_future(link.ws.drain())
        await asyncio.sleep(0)
        link.ws.send("x")
        link.ws.abort()
        with pytest.raises(ConnectionClosed):
            await waiting
        await link.ws.wait_closed()
        assert not link.ws.send("too late")


async def reset(core: Any) -> None:
    async with connected(core, PATIENT) as link:
        link.ws.send(bytes(30_000))
        link.peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        link.peer.close()
        link.ws.send("to nobody")
        await link.ws.wait_closed()


async def hung_up_inside_a_message(core: Any) -> None:
    async with connected(core, PATIENT) as link:
        await link.peer.send(frame(BINARY, bytes(20_000), fin=False) + frame(0, bytes(20_000))[:10_000])
        await asyncio.sleep(0.01)
        link.peer.close()
        await link.ws.wait_closed()


async def too_slow_a_message(core: Any) -> None:
    async with connected(core, BRISK) as link:
        await link.peer.send(text("never whole")[:8])
        await link.peer.end()
    assert link.ends[0][0] == 1008


async def silent(core: Any) -> None:
    async with connected(core, PINGING) as link:
        assert await link.peer.frame() == (PING, b"")
        await link.peer.end()
    assert link.ends[0][0] == 1006


async def close_without_answer(core: Any) -> None:
    async with connected(core, BRISK) as link:
        link.ws.close(4000, "you do not answer")
        await link.ws.wait_closed()


async def paused(core: Any) -> None:
    async with connected(core, PATIENT) as link:
        link.ws.on_message = lambda message: link.ws.pause_reading()
        await link.peer.send(text("a") + text("b") * 50)
        await asyncio.sleep(0.01)
        link.ws.on_message = link.messages.append
        link.ws.resume_reading()
        await until(lambda: len(link.messages) == 50)
        link.ws.pause_reading()


async def handlers_that_raise(core: Any) -> None:
    async with connected(core, PATIENT) as link:

        def fail(*_: object) -> None:
            raise RuntimeError("on purpose")

        link.ws.on_message = link.ws.on_close = fail
        await link.peer.send(text("x") + close(1000))
        await link.peer.end()


async def never_started(core: Any) -> None:
    ws = core.WebSocket(core.LoopContext.of(), PATIENT)
    ws.on_message = ws.on_close = lambda *_: ws
    ws.send("waits for start()")
    ws.on_message = ws.on_close = None


WAYS = [
    echo,
    as_client,
    broadcast,
    evicted,
    failed,
    not_utf8,
    aborted,
    reset,
    hung_up_inside_a_message,
    too_slow_a_message,
    silent,
    close_without_answer,
    paused,
    handlers_that_raise,
    never_started,
]


@pytest.fixture(autouse=True)
def no_log(caplog: pytest.LogCaptureFixture) -> None:
    """Its records would be kept."""
    caplog.set_level(logging.CRITICAL + 1, "street_fast")


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
async def test_of_connections(implementation: str) -> None:
    core = load_core(implementation)
    context = core.LoopContext.of()

    async def one_round() -> None:
        await asyncio.gather(*(way(core) for way in WAYS for _ in range(AT_ONCE)))

    await assert_nothing_is_left(context, one_round)
    assert context.stats()["connections"] == 0


@pytest.mark.parametrize(
    ("kind", "found"),
    [
        (list, "list"),
        pytest.param(
            object,
            "blocks",
            marks=pytest.mark.skipif(
                not sys.getallocatedblocks(), reason="PYTHONMALLOC=malloc: blocks are not counted"
            ),
        ),
    ],
)
async def test_a_leak_would_be_found(kind: type, found: str) -> None:
    core = load_core(IMPLEMENTATIONS[0])
    kept: list[Any] = []

    async def one_round() -> None:
        await asyncio.gather(*(aborted(core) for _ in range(AT_ONCE)))
        kept.extend(kind() for _ in range(AT_ONCE))

    with pytest.raises(AssertionError, match=found):
        await assert_nothing_is_left(core.LoopContext.of(), one_round)


# --- a server with a hub ----------------------------------------------------------------------------------------

KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", KEY)


async def test_of_a_server() -> None:
    hub = ChannelHub()

    def authenticate(request: Request) -> Member | None:
        return None if "stranger" in request.query else Member("ann")

    def serve(peer: StreetSocket, request: Request) -> None:
        async def slow(data: Any) -> None:
            peer.emit("begun")
            await asyncio.sleep(30)

        hub.join("room", "ann", peer, {"name": "Ann"})
        peer.on("say", lambda data: hub.publish("room", "said", data))
        peer.on("type", lambda data: hub.set_typing("room", "ann", True))
        peer.on("fail", lambda data: 1 / 0)
        peer.on("slow", slow)

    server = StreetWebSocketServer(limits=BRISK, authenticate=authenticate)
    await server.serve(serve, port=0)
    context = LoopContext.of()

    async def talk(*pieces: bytes, answers: int = 0) -> None:
        peer = Peer(socket.create_connection(("127.0.0.1", server.port)))
        for piece in pieces:
            await peer.send(piece)
        while b"\r\n\r\n" not in peer.unread and answers:
            assert await peer.read()
        del peer.unread[: peer.unread.find(b"\r\n\r\n") + 4]
        for _ in range(answers):
            await peer.frame()
        peer.close()

    opening = head("GET", "/", *UPGRADE)

    async def one_round() -> None:
        ways = [
            talk(opening, text('{"type":"say","data":[1]}'), answers=1),
            talk(opening, text('{"type":"type"}'), answers=1),
            talk(opening, text('{"type":"fail"}') + text("no JSON"), answers=1),
            talk(opening, text('{"type":"slow"}'), answers=1),
            talk(opening),
            talk(opening[:50]),
            talk(opening, b"\xff\xff", answers=1),
            talk(opening, close(1000), answers=1),
            talk(head("GET", "/?stranger=1", *UPGRADE)),
            talk(head("GET", "/", "Origin: http://evil.example", *UPGRADE)),
            talk(head("GET", "/", *UPGRADE[:2])),
            talk(b"\0\xff no HTTP\r\n\r\n"),
        ]
        await asyncio.gather(*(ways + [talk(opening, answers=0) for _ in range(AT_ONCE)]))
        await talk(
            opening, text('{"type":"say","data":[1]}'), answers=1
        )  # who came before it has been accepted by then
        await until(lambda: server.connection_count == server.other_connections == 0 and not hub.channel_names())
        await until(lambda: len(asyncio.all_tasks()) == 1 and not len(context.wheel))

    try:
        await assert_nothing_is_left(context, one_round)
    finally:
        await server.close()

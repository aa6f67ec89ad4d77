"""The compiled connection and its pure twin under the same random life: same bytes out, same events, same state.

A script of what peers, applications, kernels and clocks do is played in two worlds (tests/connection_harness.py), one
per implementation, and what can be seen from outside is compared after every step.
"""

from __future__ import annotations

import logging
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from street_fast.limits import Limits
from tests.connection_harness import Connection, World, load_core
from tests.frames_harness import (
    BINARY,
    CLOSE,
    CONTINUATION,
    IMPLEMENTATIONS,
    PING,
    PONG,
    TEXT,
    close,
    frame,
    head,
    text,
)

pytestmark = pytest.mark.skipif(
    IMPLEMENTATIONS == ["pure"], reason="STREET_FAST_PURE=1: there is nothing to compare with"
)

LIMITS = {
    "default": Limits(),
    "small": Limits(write_soft_bytes=300, write_hard_bytes=1_500, message_bytes=2_000, event_bytes=2_000, fragments=3),
    "strict": Limits(
        control_frames_burst=3, control_frames_per_second=1.0, assembly_timeout_s=4.0, ping_interval_s=None
    ),
}

arriving = st.one_of(
    st.sampled_from(
        [
            text("hello"),
            text("κόσμε"),
            text(""),
            frame(BINARY, b"\xff\x00"),
            frame(BINARY, bytes(1_000)),
            frame(PING, b"ping"),
            frame(PONG),
            frame(TEXT, b"frag", fin=False),
            frame(CONTINUATION, b"ment", fin=False),
            frame(CONTINUATION, b"end"),
            close(1000),
            close(1001, "bye"),
            frame(CLOSE),
        ]
    ),
    st.sampled_from([text(b"\xff"), b"\x83\x80", b"\x81\x05", head(BINARY, 1 << 40), close(1005), frame(CLOSE, b"x")]),
)
sizes = st.sampled_from([0, 1, 100, 125, 126, 299, 301, 700, 2_000, 70_000])

steps = st.one_of(
    st.tuples(st.just("arrive"), st.lists(arriving, min_size=1, max_size=3), st.integers(0, 30)),
    st.tuples(st.just("arrive"), st.lists(arriving, min_size=1, max_size=3), st.just(0)),
    st.tuples(st.just("send"), sizes, st.sampled_from(["text", "binary", "frame"]), st.booleans()),
    st.tuples(st.just("send"), sizes, st.sampled_from(["text", "binary", "frame"]), st.booleans()),
    st.tuples(st.just("broadcast"), sizes),
    st.tuples(st.just("fan_out"), sizes, st.booleans(), st.booleans()),
    st.tuples(st.just("ping")),
    st.tuples(st.just("close"), st.sampled_from([1000, 1001, 4000]), st.sampled_from(["", "reason"])),
    st.tuples(st.just("abort")),
    st.tuples(st.just("pause")),
    st.tuples(st.just("resume")),
    st.tuples(
        st.just("handler"), st.sampled_from(["record", "echo", "twice", "raise", "pause", "close", "abort", "none"])
    ),
    st.tuples(st.just("turn")),
    st.tuples(st.just("turn")),
    st.tuples(st.just("advance"), st.sampled_from([0.01, 1.0, 2.5, 9.0, 12.0, 26.0, 61.0])),
    st.tuples(st.just("take"), st.sampled_from([1, 50, 300, 1_000, None])),
    st.tuples(st.just("stop taking")),
    st.tuples(st.just("hang up")),
    st.tuples(st.just("break down")),
)
scripts = st.lists(st.tuples(st.integers(0, 1), steps), max_size=25)
beginnings = st.tuples(
    st.sampled_from(["", "early"]),  # sent before the start
    st.sampled_from([b"", b"HTTP/1.1 101\r\n\r\n"]),
    st.sampled_from([b"", text("tail"), text("tail")[:3], close(1000)]),
    st.sampled_from([b"", b"backlog", bytes(400), bytes(70_000)]),  # what the transport still has to write
)


def handler(connection: Connection, kind: str) -> Any:
    ws = connection.ws

    def on_message(message: Any) -> None:
        connection.messages.append(message)
        if kind == "raise":
            raise ZeroDivisionError
        if kind in ("echo", "twice"):
            ws.send(message)
        if kind == "twice":
            ws.send("again")
        if kind == "pause":
            ws.pause_reading()
        if kind == "close":
            ws.close(1000, "from a handler")
        if kind == "abort":
            ws.abort()

    return None if kind == "none" else on_message


def begin(world: World, limits: str, beginning: tuple[str, bytes, bytes, bytes]) -> Connection:
    early, first, tail, backlog = beginning
    connection = world.connection(LIMITS[limits])
    if early:
        connection.ws.send(early)
    if backlog:
        connection.transport.room = 0
        connection.transport.write(backlog)
    connection.ws.start(connection.transport, first, tail)
    return connection


def play(world: World, both: list[Connection], which: int, step: tuple[Any, ...]) -> Any:
    connection = both[which]
    ws, transport, core = connection.ws, connection.transport, world.core
    match step:
        case ("arrive", frames, cut):
            wire = b"".join(frames)
            connection.arrive(wire[: len(wire) - cut] if cut else wire)
        case ("send", size, "text", droppable):
            return ws.send("x" * size, droppable=droppable)
        case ("send", size, "binary", droppable):
            return ws.send(bytes(size), droppable=droppable)
        case ("send", size, "frame", droppable):
            return ws.send(core.Frame.binary(bytes(size)), droppable=droppable)
        case ("broadcast", size):
            return core.broadcast([c.ws for c in both], bytes(size))
        case ("fan_out", size, skip, droppable):
            sinks = {c.ws: None for c in both} | {"sse": None}
            return core.fan_out(sinks, core.Frame.binary(bytes(size)), ws if skip else None, droppable)
        case ("ping",):
            return ws.ping(b"ours")
        case ("close", code, reason):
            ws.close(code, reason)
        case ("abort",):
            ws.abort()
        case ("pause",):
            ws.pause_reading()
        case ("resume",):
            ws.resume_reading()
        case ("handler", kind):
            if not transport.lost:
                ws.on_message = handler(connection, kind)
        case ("turn",):
            world.turn()
        case ("advance", seconds):
            world.advance(seconds)
        case ("take", count):
            transport.take(count)
        case ("stop taking",):
            transport.room = 0
        case ("hang up",):
            if not transport.closing:
                transport.hang_up()
        case ("break down",):
            transport.break_down(OSError("cable"))
    return None


def seen(world: World, both: list[Connection]) -> Any:
    return [
        [
            (
                bytes(c.transport.taken),
                len(c.transport.backlog),
                (c.transport.closing, c.transport.aborted, c.transport.ended, c.transport.reading),
                list(c.messages),
                list(c.ends),
                (c.ws.closed, c.ws.close_code, c.ws.close_reason, c.ws.bytes_buffered, c.ws.paused, c.ws.halted),
                repr(c.ws).rpartition(" ")[2],
            )
            for c in both
        ],
        world.context.stats(),
        len(world.context.wheel),
    ]


@pytest.fixture(autouse=True)
def no_log():
    logger = logging.getLogger("street_fast")
    logger.disabled = True
    yield
    logger.disabled = False


@settings(max_examples=600, deadline=None)
@given(
    limits=st.tuples(st.sampled_from(list(LIMITS)), st.sampled_from(list(LIMITS))),
    beginning=st.tuples(beginnings, beginnings),
    script=scripts,
)
def test_same_life(limits, beginning, script):
    worlds = [World(load_core(name)) for name in ("compiled", "pure")]
    pairs = [[begin(world, *how) for how in zip(limits, beginning, strict=True)] for world in worlds]
    for which, step in script:
        results = [play(world, pair, which, step) for world, pair in zip(worlds, pairs, strict=True)]
        assert results[0] == results[1], step
        compiled, pure = (seen(world, pair) for world, pair in zip(worlds, pairs, strict=True))
        assert compiled == pure, step
    for world, pair in zip(worlds, pairs, strict=True):
        world.turn()
        for connection in pair:
            connection.transport.take(None)
            connection.ws.close()
        world.advance(200.0)
        # Whatever happened: everybody has gone, once, and left nothing.
        assert [len(c.ends) for c in pair] == [1, 1]
        assert (world.context.stats()["connections"], len(world.context.wheel)) == (0, 0)
        assert world.loop.failures == []

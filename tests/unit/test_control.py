"""What supervisor and worker say to each other: what is said arrives, and an end is an end."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import msgspec
import pytest

from street_fast import control
from street_fast.control import Backplane, Beat, Begin, Channel, Failed, Metrics, NeedSnapshot, Ready, Snapshot
from street_fast.options import Options

if TYPE_CHECKING:
    from street_fast.control import FromSupervisor, FromWorker


async def pair() -> tuple[Channel[FromWorker], Channel[FromSupervisor]]:
    above, below = socket.socketpair()
    return await Channel.over(above, control.FromWorker), await Channel.over(below, control.FromSupervisor)


async def test_both_sides_hear_what_is_said() -> None:
    above, below = await pair()
    told = [
        Begin(Options(port=1), 2, [3]),
        Backplane("nats://t@h"),
        NeedSnapshot(1),
        Metrics(1, {"1": {"a": {"b": 1}}}),
    ]
    answered = [Ready([("SSE", "x\ny")]), Failed("no", "trace\nback", 2), Beat(), Snapshot(1, {"a": {"b": 1.5}})]
    for message in told:
        above.send(message)
    for answer in answered:
        below.send(answer)
    above_hears, below_hears = above.messages(), below.messages()
    assert [await anext(below_hears) for _ in told] == told
    assert [await anext(above_hears) for _ in answered] == answered
    above.close()
    assert [message async for message in below_hears] == []
    below.send(Beat())  # nobody hears it, and nothing happens
    below.close()
    below.close()


async def test_a_large_answer_arrives() -> None:
    above, below = await pair()
    told = Metrics(1, {"1": {"a": "x" * 2**20}})
    above.send(told)
    messages = below.messages()
    assert await anext(messages) == told
    above.close()
    below.close()


async def test_half_a_line_is_an_end() -> None:
    above, below = socket.socketpair()
    channel: Channel[FromSupervisor] = await Channel.over(below, control.FromSupervisor)
    above.sendall(b'{"type":"Ne')
    above.close()
    assert [message async for message in channel.messages()] == []
    channel.close()


async def test_nonsense_is_an_error() -> None:
    above, below = socket.socketpair()
    channel: Channel[FromSupervisor] = await Channel.over(below, control.FromSupervisor)
    above.sendall(b'{"type":"Beat"}\n')  # supervisors do not say that
    with pytest.raises(msgspec.ValidationError):
        await anext(channel.messages())
    above.close()
    channel.close()


def test_the_beginning_is_read_without_an_event_loop() -> None:
    begin = Begin(Options(application="a:b", api_key=["k"]), 1, [5, 6])
    assert control.decode_begin(control.encode(begin)) == begin

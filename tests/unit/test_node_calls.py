"""What one node asks another to do, and what becomes of it."""

from __future__ import annotations

import asyncio

import pytest

from street_fast.node_calls import NodeCalls
from street_fast.refusals import Refused


class Nodes:
    """Two of them. `carry` brings what they have signalled."""

    def __init__(self, timeout_s=10.0):
        self.signals = []
        self.done = []
        self.error = None
        self.a = NodeCalls(self.signal, self.do, timeout_s)
        self.b = NodeCalls(self.signal, self.do, timeout_s)

    def signal(self, channel, payload):
        self.signals.append((channel, payload))

    def do(self, connection, body):
        self.done.append((connection, body))
        if self.error is not None:
            raise self.error

    def carry(self):
        signals, self.signals = self.signals, []
        for channel, payload in signals:
            {calls.channel: calls for calls in (self.a, self.b)}[channel].arrive(payload)

    async def ask(self, body=b"[]"):
        task = asyncio.ensure_future(self.a.ask(self.b.node, f"{self.b.node}.x", body))
        for _ in range(2):
            await asyncio.sleep(0)
            self.carry()
        return await task


async def test_it_is_done_there():
    nodes = Nodes()
    assert await nodes.ask('{"ä":1}'.encode()) is None
    assert nodes.done == [(f"{nodes.b.node}.x", '{"ä":1}'.encode())]
    assert not nodes.a._waiting


async def test_a_refusal_comes_back_as_it_was():
    nodes = Nodes()
    nodes.error = Refused("rate_limited", "too much", headers=[("Retry-After", "1")])
    with pytest.raises(Refused) as caught:
        await nodes.ask()
    refused = caught.value
    assert (refused.code, refused.message, refused.status) == ("rate_limited", "too much", 429)
    assert refused.headers == [("Retry-After", "1")]


async def test_without_an_answer_nobody_knows():
    nodes = Nodes(timeout_s=0.01)
    with pytest.raises(Refused, match="does not answer") as caught:
        await nodes.a.ask(nodes.b.node, f"{nodes.b.node}.x", b"[]")
    assert (caught.value.code, caught.value.status) == ("unknown", 503)
    assert not nodes.a._waiting
    nodes.carry()
    nodes.carry()  # it comes all the same, later


async def test_what_is_asked_at_once_is_bounded(monkeypatch):
    nodes = Nodes()
    with pytest.raises(Refused, match="at most 262144 bytes") as caught:
        await nodes.ask(b"x" * 262_145)
    assert caught.value.status == 413
    with pytest.raises(Refused, match="UTF-8"):
        await nodes.ask(b"\xff")
    monkeypatch.setattr("street_fast.node_calls._CALLS", 2)
    tasks = [asyncio.ensure_future(nodes.a.ask(nodes.b.node, "x", b"[]")) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Refused, match="too much waits"):
        await tasks.pop()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert not nodes.a._waiting


async def test_what_cannot_even_be_asked_is_not_waited_for():
    def broken(channel, payload):
        raise OSError("as never before")

    calls = NodeCalls(broken, lambda connection, body: None, 10.0)
    with pytest.raises(OSError, match="as never before"):
        await calls.ask("01234567", "01234567.x", b"[]")
    assert not calls._waiting


def test_whose_a_connection_is():
    nodes = Nodes()
    assert nodes.a.node_of(f"{nodes.b.node}.x") == nodes.b.node
    for mine in (f"{nodes.a.node}.x", "x", "", ".x", f"{nodes.b.node}x", "a.b", "x" * 8 + "\n.x", "\n" * 8 + ".x"):
        assert nodes.a.node_of(mine) is None, mine


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"{}",
        b'{"type":"call","number":1,"sender":"*","connection":"x","body":""}',
        b'{"type":"call","number":1,"sender":"0123abcd","connection":"x"}',
        b'{"type":"answer","number":"1"}',
        b"\xff",
    ],
)
def test_what_is_neither_is_refused(payload):
    nodes = Nodes()
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        nodes.a.arrive(payload)
    nodes.a.arrive(b'{"type":"answer","number":77}')  # nobody has asked
    assert nodes.signals == nodes.done == []

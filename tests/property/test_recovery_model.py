"""Recovery against a model: clients that come, go, stall and come back while others publish, in random order.

Each client does what docs/protocol.md tells it to do, and looks at every message: it must follow the one before, unless
the server has said that something is gone, and none may come twice. At the end everybody who is subscribed must have
what was published last. Once over the backplane in memory, whose channels are forgotten now and then; once over a slow
one of two nodes that doubles and reorders, where every answer takes a few turns of the loop; and once more over that,
with a broker that is away now and then.

A failure names its seed: ``SEEDS`` of it alone plays it again.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import random
from collections import deque

import pytest

from street_fast import recovery
from street_fast.backplanes import History, OutcomeUnknown, Position, Unavailable
from street_fast.limits import Limits
from tests.contract.broker import BrokerBus
from tests.realtime_harness import is_empty, make_world

SEEDS = range(40)
STEPS = 150
CHANNELS = ("a", "b", "c")


class Reader:
    """One channel of a client: `place` is the position that it keeps, `subscribed` whether it is to get messages."""

    def __init__(self):
        self.place = None
        self.told = False  # that something is missing, but not from where it goes on
        self.subscribed = False
        self.seen = set()  # on this connection, since the last subscribe
        self.log = []  # (position, data) of all that was handed on
        self.told_of_gaps = 0

    def arrived(self, message):
        assert self.subscribed
        position = Position.parse(message["position"])
        assert position not in self.seen, f"{position} came twice"
        self.seen.add(position)
        place = self.place
        if position.epoch == place.epoch:
            if position.offset <= place.offset:
                return
            assert self.told or position.offset == place.offset + 1, f"{position} after {place}: nobody told of a gap"
        else:
            assert self.told or position.offset == 1, f"{position} after {place}: nobody told of a gap"
        self.place = position
        self.told = False
        self.log.append((position, message["data"]))

    def goes_on_from(self, position):
        place = self.place
        self.told = False
        if place is None or place.epoch != position.epoch or place.offset < position.offset:
            self.place = position

    def answered(self, data, since):
        was_subscribed, self.subscribed = self.subscribed, True
        position = Position.parse(data["position"])
        if since is None:
            if was_subscribed and not self.told and position.epoch == self.place.epoch:
                assert position.offset <= self.place.offset, f"{position} after {self.place}: nobody told of a gap"
            self.goes_on_from(position)
            return
        self.seen.clear()
        if data["recovered"]:
            for message in data["messages"]:
                self.arrived(message)
            assert str(self.place) == data["position"] or self.place.offset > position.offset
        else:
            assert data["messages"] == []
            self.told_of_gaps += 1
            self.goes_on_from(position)


class Machine:
    def __init__(self, seed, world, other_node, bus):
        self.random = random.Random(seed)
        self.world = world
        self.other_node = other_node
        self.bus = bus  # if it is away now and then
        self.away = False
        self.clients = []
        self.receipts = []  # (channel, data, what publish returned)
        self.count = 0
        self.told_of_gaps = self.handed_on = self.recovered = 0

    # --- clients ---

    def connect(self, readers):
        client = self.world.client(f"m{self.random.randrange(3)}")
        client.readers = readers
        client.asked = {}
        client.inbox = deque()
        client.worker = None
        self.clients.append(client)

    def ask(self, client, type_, channel, since=None):
        number = self.count = self.count + 1
        client.asked[number] = (type_, since)
        fields = {"channel": channel, "id": number} | ({} if since is None else {"since": str(since)})
        client.inbox.append((type_, fields))
        if client.worker is None:
            self.work(client)

    def work(self, client):
        """What a transport does: one envelope after the other, and a task only if there is something to await."""
        while client.inbox and not client.closed:
            type_, fields = client.inbox.popleft()
            left = client.send(type_, **fields)
            if inspect.iscoroutine(left):
                client.worker = asyncio.ensure_future(self.wait(client, left))
                return

    async def wait(self, client, left):
        await left
        client.worker = None
        self.work(client)

    def look(self, client):
        for message in client.take():
            type_, channel = message["type"], message.get("channel")
            reader = client.readers[channel]
            if type_ == "reply":
                asked, since = client.asked.pop(message["id"])
                if asked == "subscribe":
                    self.recovered += message["data"].get("recovered", False)
                    reader.answered(message["data"], since)
                else:
                    reader.subscribed = False
            elif type_ == "message":
                if not reader.subscribed:  # it was subscribed just now, and the reply is on its way
                    assert any(asked == "subscribe" and since is None for asked, since in client.asked.values())
                    continue
                reader.arrived(message)
            elif type_ == "gap":
                reader.told_of_gaps += 1
                position = message["data"].get("position")
                reader.told = position is None
                if position is not None:
                    reader.place = Position.parse(position)
            elif type_ == "error":  # nothing was done
                assert message["data"]["code"] == "unavailable", message
                assert self.bus is not None
                client.asked.pop(message["id"])
            else:
                assert type_ == "presence", message

    # --- what happens ---

    async def step(self):
        channel = self.random.choice(CHANNELS)
        client = self.random.choice(self.clients)
        await getattr(self, self.random.choices(*zip(*self.EVENTS, strict=True))[0])(client, channel)
        if self.random.random() < 0.5:
            await asyncio.sleep(0)
        for client in self.clients:
            self.look(client)

    async def publish(self, client, channel):
        for _ in range(self.random.choice((1, 1, 2, 5))):
            self.count += 1
            data = [self.count, "x" * self.random.randrange(150)]
            if self.other_node is not None and self.random.random() < 0.5:
                payload = b'{"type":"message","channel":"%b","data":[%d,"%b"],"ts":1' % (
                    channel.encode(),
                    data[0],
                    data[1].encode(),
                )
                published = self.other_node.publish(channel, payload, history=HISTORY)
                self.receipts.append((channel, data, asyncio.ensure_future(published)))
            else:
                self.receipts.append((channel, data, self.world.realtime.publish(channel, data)))

    async def subscribe(self, client, channel):
        reader = client.readers[channel]
        self.ask(client, "subscribe", channel, reader.place if self.random.random() < 0.8 else None)

    async def unsubscribe(self, client, channel):
        self.ask(client, "unsubscribe", channel)

    async def stall(self, client, channel):
        client.stalled = True

    async def read(self, client, channel):
        client.stalled = self.random.random() < 0.5
        client.read()

    async def reconnect(self, client, channel):
        client.simulate_close()
        self.forget(client)
        self.clients.remove(client)
        if self.random.random() < 0.5:
            await self.publish(client, channel)
        for reader in client.readers.values():
            reader.subscribed = False
            reader.seen.clear()
            if reader.log and self.random.random() < 0.2:  # it had handed on less than we thought
                del reader.log[self.random.randrange(len(reader.log)) + 1 :]
                reader.place = reader.log[-1][0]
        self.connect(client.readers)
        self.clients[-1].stalled = self.random.random() < 0.5
        for name in CHANNELS:
            if self.random.random() < 0.8:
                self.ask(self.clients[-1], "subscribe", name, client.readers[name].place)

    def forget(self, client):
        if client.worker is not None:  # as a transport does it: what has begun can come to its end
            asyncio.get_running_loop().call_soon(client.worker.cancel)

    async def settle(self, client, channel):
        await self.world.settle()

    async def lose(self, client, channel):
        self.world.realtime.exchange.lost(self.random.choice((channel, None)))

    async def go_away(self, client, channel):
        if self.bus is not None:
            change = self.bus.mend if self.away else self.bus.cut
            await change(self.world.realtime.exchange.backplane)
            self.away = not self.away

    async def take_out(self, client, channel):
        if client.worker is None and not client.inbox:
            self.look(client)
            client.session.take_out(channel, "forbidden", "for the test")
            client.take_type("unsubscribed")
            client.readers[channel].subscribed = False

    EVENTS = (
        ("publish", "subscribe", "unsubscribe", "stall", "read", "reconnect", "settle", "lose", "take_out", "go_away"),
        (30, 12, 2, 4, 12, 6, 12, 1, 1, 3),
    )
    EVENTS = tuple(zip(*EVENTS, strict=True))

    # --- the end ---

    async def finish(self):
        if self.away:
            await self.go_away(None, None)
        for _ in range(60):
            for client in self.clients:
                client.stalled = False
                client.read()
            await self.world.settle()
            for client in self.clients:
                self.look(client)
        published, newest = {}, {}
        for channel, data, receipt in self.receipts:
            with contextlib.suppress(Unavailable, OutcomeUnknown):
                newest[channel] = (await receipt).position
                published[channel, newest[channel]] = data
        for behind in self.world.realtime.exchange._catching_up.values():
            assert all(catch_up.complete for catch_up in behind.values())  # it waits for the live ones to come so far
            assert self.other_node is not None
        for client in self.clients:
            assert not client.inbox
            assert client.worker is None
            for channel, reader in client.readers.items():
                for position, data in reader.log:
                    assert published.get((channel, position), data) == data
                self.told_of_gaps += reader.told_of_gaps
                self.handed_on += len(reader.log)
                if reader.subscribed:
                    page = self.world.realtime.exchange.backplane.read(channel, HISTORY, since=None, limit=0)
                    top = (await page if inspect.isawaitable(page) else page).top
                    # A channel that was forgotten since has another top.
                    assert reader.place in (top, newest.get(channel)), f"{channel} stands at {reader.place}"


HISTORY = History(size=8)
LIMITS = Limits(
    recovery_messages=4,
    recovery_reply_bytes=250,
    write_soft_bytes=400,
    write_hard_bytes=900,
    history_channels=2,
    messages_per_second=None,
)


class NoSink:
    def deliver(self, channel, publication): ...
    def lost(self, channel): ...
    def members_changed(self, channel, joined, left): ...


async def play(seed, kind):
    other_node = bus = None
    if kind != "memory":
        bus = BrokerBus(seed=seed)
        other_node = bus.node()
        await other_node.start(NoSink())
    world = await make_world(limits=LIMITS, history={"*": HISTORY}, backplane=None if bus is None else bus.node())
    machine = Machine(seed, world, other_node, bus if kind == "away" else None)
    try:
        for _ in range(3):
            machine.connect({channel: Reader() for channel in CHANNELS})
        for _ in range(STEPS):
            await machine.step()
        await machine.finish()
        world.everybody_leaves()
        await world.settle()
        world.advance(10)
        assert is_empty(world.realtime)
    finally:
        for client in machine.clients:
            machine.forget(client)
        await world.settle()
        await world.realtime.close()
        if other_node is not None:
            await bus.settle()
            await other_node.close()
            await bus.close()
    return machine


@pytest.mark.parametrize("kind", ["memory", "slow", "away"])
async def test_every_message_once_and_in_order_or_a_word_about_it(kind, monkeypatch):
    monkeypatch.setattr(recovery, "_READ_AGAIN_S", 0)
    told = handed_on = recovered = 0
    for seed in SEEDS:
        try:
            machine = await play(seed, kind)
        except BaseException:
            print(f"seed {seed}")
            raise
        told += machine.told_of_gaps
        handed_on += machine.handed_on
        recovered += machine.recovered
    print(f"{handed_on} messages, {recovered} recoveries, {told} gaps")
    assert min(told, handed_on, recovered) > len(SEEDS)  # it did happen

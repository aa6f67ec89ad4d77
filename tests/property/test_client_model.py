"""The client against a model of the server, on a connection that breaks at any moment: each feed gets every message
once and in order, or is told of the gap.

The model does what docs/protocol.md promises and no more: it answers late, gives the first messages of a recovery in
the reply and the rest behind it, gives up a recovery when it is subscribed again, trims its history, loses it (another
epoch), and says so. What is on its way when the connection breaks is lost, in both directions.
"""

from __future__ import annotations

import random
from collections import deque
from typing import TYPE_CHECKING, Any

import pytest

from street_fast.backplanes import Position
from street_fast.client.messages import Gap
from tests.unit.test_client_protocol import World, at, page, read

if TYPE_CHECKING:
    from street_fast.client.feed import Feed

CHANNEL = "chat"
IN_REPLY = 2
KEPT = 12


class Server:
    """One channel with history, and the one connection of the client."""

    def __init__(self, world: World, chance: random.Random) -> None:
        self.world = world
        self.chance = chance
        self.epoch = 0
        self.top = 0
        self.subscribed = False
        self.missed: deque[int] | None = None  # what is left of a recovery
        self.to_client: deque[tuple[str, dict[str, Any]]] = deque()
        self.to_server: deque[dict[str, Any]] = deque()

    @property
    def name(self) -> str:
        return f"e{self.epoch}"

    def publish(self) -> None:
        self.top += 1
        if self.subscribed and self.missed is None:
            self.send("message", page(self.top, epoch=self.name)[0])
        elif self.missed is not None:
            self.missed.append(self.top)

    def lose_history(self) -> None:
        """As after a broker that came back empty: continuity is broken, and everybody is told."""
        self.epoch += 1
        self.top = self.chance.choice([0, 0, 3])
        self.missed = None
        if self.subscribed:
            self.send("gap", {"channel": CHANNEL, "data": {"position": at(self.top, self.name)}})

    def recover_some(self) -> None:
        if self.missed is None:
            return
        for _ in range(self.chance.randint(1, 3)):
            if self.missed:
                self.send("message", page(self.missed.popleft(), epoch=self.name)[0])
        if not self.missed:
            self.missed = None

    def send(self, kind: str, fields: dict[str, Any]) -> None:
        self.to_client.append((kind, {name: value for name, value in fields.items() if name != "type"}))

    def serve_one(self) -> None:
        if not self.to_server:
            return
        message = self.to_server.popleft()
        if message["type"] == "unsubscribe":
            self.subscribed, self.missed = False, None
        elif message["type"] == "subscribe":
            if self.chance.random() < 0.1:
                self.send("error", {"id": message["id"], "data": {"code": "unavailable", "message": "not now"}})
                return
            self.subscribed, self.missed = True, None
            self.send("reply", {"id": message["id"], "data": self.answer(message.get("since"))})

    def answer(self, since: str | None) -> dict[str, Any]:
        if since is None:
            return {"position": at(self.top, self.name)}
        position = Position.parse(since)
        if position.epoch != self.name or position.offset < self.top - KEPT or position.offset > self.top:
            return {"position": at(self.top, self.name), "recovered": False, "messages": []}
        offsets = list(range(position.offset + 1, self.top + 1))
        first, rest = offsets[:IN_REPLY], offsets[IN_REPLY:]
        if rest:
            self.missed = deque(rest)
        last = first[-1] if first else position.offset
        return {"position": at(last, self.name), "recovered": True, "messages": page(*first, epoch=self.name)}


class Reader:
    """What a feed was given, and what it should have been."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.last = feed.position
        self.count = 0

    def read(self) -> None:
        items = list(self.feed.items)
        self.feed.items.clear()
        for item in items:
            self.count += 1
            if isinstance(item, Gap):
                self.take_gap(item)
                continue
            position = Position.parse(item.position or "")
            if self.last is not None:
                assert position.epoch == self.last.epoch, "another epoch without a gap"
                assert position.offset == self.last.offset + 1, f"{position} after {self.last}"
            self.last = position

    def take_gap(self, gap: Gap) -> None:
        position = None if gap.position is None else Position.parse(gap.position)
        if gap.missed is not None and position is not None and self.last is not None:
            assert (position.epoch, position.offset - self.last.offset) == (self.last.epoch, gap.missed)
        assert position is not None, "the model always knows where it goes on"
        self.last = position


def play(seed: int, steps: int = 400) -> int:
    chance = random.Random(seed)
    world = World(request_timeout_s=20)
    server = Server(world, chance)
    readers: list[Reader] = []
    connected = False
    read_in_all = 0

    def connect() -> None:
        nonlocal connected
        server.to_client.clear()
        server.to_server.clear()
        server.subscribed, server.missed = False, None
        world.sent.clear()
        world.protocol.opened(None)
        world.welcome(heartbeat_ms=1e9)
        connected = True

    def to_server() -> None:
        server.to_server.extend(world.sent_now())

    def to_client() -> None:
        if connected and server.to_client:
            kind, fields = server.to_client.popleft()
            world.receive(kind, **fields)

    for _ in range(steps):
        action = chance.choices(
            ["publish", "to_server", "serve", "to_client", "recover", "cut", "connect", "attach", "detach", "read",
             "time", "lose"],
            [20, 15, 15, 30, 8, 2, 6, 4, 3, 10, 3, 0.5],
        )[0]  # fmt: skip
        if action == "publish":
            server.publish()
        elif action == "to_server" and connected:
            to_server()
        elif action == "serve" and connected:
            server.serve_one()
        elif action == "to_client":
            to_client()
        elif action == "recover" and connected:
            server.recover_some()
        elif action == "cut" and connected:
            connected = False
            server.subscribed, server.missed = False, None
            world.lose()
        elif action == "connect" and not connected:
            connect()
        elif action == "attach" and len(readers) < 4:
            since = None
            if chance.random() < 0.4 and server.top:
                since = Position.parse(at(chance.randint(1, server.top), server.name))
            readers.append(Reader(world.subscribe(CHANNEL, since=since, size=chance.choice([1, 1_000]))))
        elif action == "detach" and readers:
            reader = readers.pop(chance.randrange(len(readers)))
            reader.read()
            read_in_all += reader.count
            world.protocol.subscriptions.detach(reader.feed)
        elif action == "read" and readers:
            reader = chance.choice(readers)
            reader.read()
            world.protocol.subscriptions.catch_up(reader.feed)
        elif action == "time":
            world.advance(chance.choice([0.1, 3.0]))
        elif action == "lose":
            server.lose_history()
        for reader in [reader for reader in readers if reader.feed.ended]:  # refused, "not now"
            readers.remove(reader)

    # In the end everybody is up to date.
    if not connected:
        connect()
    for _ in range(200):
        to_server()
        while server.to_server:
            server.serve_one()
        server.recover_some()
        while server.to_client:
            to_client()
        for reader in readers:
            reader.read()
            world.protocol.subscriptions.catch_up(reader.feed)
        world.advance(1.0)
    for reader in readers:
        if reader.feed.ended:
            continue
        assert reader.feed.live
        assert reader.last == Position.parse(at(server.top, server.name)) or reader.last is None
        read_in_all += reader.count
    assert world.warnings == []
    return read_in_all


@pytest.mark.parametrize("part", range(4))
def test_every_message_once_or_a_gap(part: int) -> None:
    base = random.randrange(2**32)
    given = 0
    for seed in range(base, base + 25):
        print("seed", seed)
        given += play(seed)
    assert given > 500


def test_the_model_gives_what_it_should() -> None:
    """Without trouble: everything, and no gap."""
    world = World()
    server = Server(world, random.Random(1))
    for _ in range(10):
        server.publish()
    feed = world.subscribe(CHANNEL, since=Position.parse(at(3, "e0")))
    world.open()
    server.to_server.extend(world.sent_now())
    while server.to_server:
        server.serve_one()
    for _ in range(10):
        server.recover_some()
    server.publish()
    while server.to_client:
        kind, fields = server.to_client.popleft()
        world.receive(kind, **fields)
    assert read(feed) == list(range(4, 12))

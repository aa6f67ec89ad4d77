"""Where a client with an event stream is: what its ids say, and what is made of what it comes back with."""

from __future__ import annotations

import random
from urllib.parse import quote

import pytest

from street_fast.backplanes import History
from street_fast.limits import Limits
from street_fast.messages import Message
from street_fast.sse_peer import positions_of
from tests.realtime_harness import world_fixture
from tests.sse_harness import EventSource, StreamClient, ask, split

make = pytest.fixture(world_fixture)

UNKNOWN = "-:0:0"
HISTORY = {"kept*": History(size=1_000)}
SEEDS = range(12)


class Streams:
    """Opens streams of a world's Realtime, and forgets none of them."""

    def __init__(self, world) -> None:
        self.world = world
        self.clients: list[StreamClient] = []

    async def open(self, *channels: str, headers=(), query: str = "") -> StreamClient:
        target = "/realtime/sse?" + "&".join([f"channel={quote(name, safe='')}" for name in channels] + [query])
        stream = await self.world.realtime._http_side.stream(ask("GET", target, *headers))
        client = StreamClient(stream, self.world.context)
        self.clients.append(client)
        return client


@pytest.fixture
async def streams(make):
    streams = Streams(await make(history=HISTORY))
    yield streams
    for client in streams.clients:
        await client.leave()


# --- ids ---


async def test_with_one_channel_the_id_is_its_position(streams):
    realtime = streams.world.realtime
    client = await streams.open("kept")
    _, subscribed = await client.take()
    assert subscribed["type"] == "subscribed"
    assert client.last_event_id == subscribed["data"]["position"]
    await realtime.publish("kept", 1)
    (message,) = await client.take()
    assert client.last_event_id == message["position"]


async def test_with_one_channel_all_clients_get_the_same_bytes(streams, monkeypatch):
    clients = [await streams.open("kept") for _ in range(3)]
    pushed = []
    for client in clients:
        await client.take()
        client.wire.stalled = True
        client.stream.push(b": fills the pipe\n\n")
        await client.take()
    await streams.world.realtime.publish("kept", 1)
    pushed = [client.stream._queue[0] for client in clients]
    assert b'"data":1' in pushed[0]
    assert pushed[0] is pushed[1] is pushed[2]


async def test_with_several_channels_the_id_is_the_state_of_all(streams):
    realtime = streams.world.realtime
    names = ["kept;=%&", "kept é", "fleeting", "kept3"]
    client = await streams.open(*names)
    subscribed = await client.take_type("subscribed")
    state = {message["channel"]: message["data"].get("position") for message in subscribed}
    for n in range(20):
        channel = names[n % 3]
        await realtime.publish(channel, n)
        (message,) = await client.take()
        assert message["data"] == n
        state[channel] = message.get("position")
        told = positions_of(ask("GET", "/", ("Last-Event-ID", client.last_event_id)), names)
        assert told == {**{name: position or UNKNOWN for name, position in state.items()}}


async def test_with_several_channels_all_but_the_id_is_shared(streams):
    clients = [await streams.open(*names) for names in (("kept", "kept2"), ("kept2", "kept", "kept3"))]
    for client in clients:
        await client.take()
        client.wire.stalled = True
        client.stream.push(b": fills the pipe\n\n")
        await client.take()
    await streams.world.realtime.publish("kept", 1)
    (first_id, first), (second_id, second) = [client.stream._queue for client in clients]
    assert first is second
    assert b'"data":1' in first
    assert b"id:" not in first
    assert first_id != second_id


async def test_an_event_of_a_channel_without_history_leaves_the_id(streams):
    client = await streams.open("fleeting")
    await streams.world.realtime.publish("fleeting", 1)
    assert len(await client.take()) == 3
    assert client.last_event_id == ""
    assert b"id:" not in client.wire.taken


async def test_channels_that_come_and_go_while_the_stream_is_open(streams):
    client = await streams.open("kept")
    await client.take()
    session = client.stream.session
    for n in range(300):
        session.subscribe(f"kept{n}")
        await client.take()
        assert session.take_out(f"kept{n}", "forbidden", "out")
    await client.take()
    assert len(client.stream._ids) <= 3
    session.subscribe("kept-last")
    await client.take()
    assert set(positions_of(ask("GET", "/", ("Last-Event-ID", client.last_event_id)), ["kept", "kept-last"])) == {
        "kept",
        "kept-last",
    }
    assert UNKNOWN not in client.last_event_id
    assert client.last_event_id.count("=") == 2


async def test_no_more_is_noted_of_channels_that_were_left_than_a_client_may_have(streams):
    """Also while it is always busy: then it cannot be said which channels it is still to get."""
    client = await streams.open("kept")
    await client.take()
    peer, session = client.stream, client.stream.session
    peer.inbox.append(lambda: None)
    for n in range(400):
        session.subscribe(f"kept{n}")
        await client.take()
        assert session.take_out(f"kept{n}", "forbidden", "out")
    assert len(peer._ids) <= Limits().channels_per_connection
    await streams.world.realtime.publish("kept", 1)
    await client.take()
    assert "kept=" in client.last_event_id
    peer.inbox.clear()


async def test_a_gap_moves_the_client_on(streams):
    client = await streams.open("kept")
    await streams.world.realtime.publish("kept", 1)
    await client.take()
    before = client.last_event_id
    message = Message("gap", "kept", {"position": "x:7:y"})
    message.position = "x:7:y"
    client.stream.deliver(message)
    await client.take()
    assert client.last_event_id == "x:7:y" != before


async def test_an_id_fits_into_a_header(make):
    limits = Limits()
    world = await make(history={"*": History()}, limits=limits)
    streams = Streams(world)
    names = [f"{n:03}{'é' * 40}" for n in range(128)]
    client = await streams.open(*names)
    while world.realtime.hub.connection_count(names[-1]) == 0:
        await client.take()
    for name in names:
        await world.realtime.publish(name, 0)
    await client.take()
    assert 3_500 < len(client.last_event_id) <= 4_096
    assert len(f"Last-Event-ID: {client.last_event_id}") < limits.request_line_bytes
    positions = positions_of(ask("GET", "/", ("Last-Event-ID", client.last_event_id)), names)
    known = [name for name in names if positions[name] != UNKNOWN]
    assert known == names[-len(known) :]  # those that moved last
    await client.leave()


# --- coming back ---


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_stream_that_breaks_anywhere_loses_nothing_and_doubles_nothing(streams, seed):
    """Whatever part of the stream a client has seen, what it comes back with gets it exactly the rest."""
    rng = random.Random(seed)
    print("seed", seed)
    realtime = streams.world.realtime
    names = [f"kept {n}" for n in range(rng.randrange(1, 4))]
    got: dict[str, list[int]] = {name: [] for name in names}
    sent = dict.fromkeys(names, 0)
    last_event_id = ""

    async def publish(times: int) -> None:
        for _ in range(times):
            name = rng.choice(names)
            await realtime.publish(name, [sent[name], "x" * rng.choice([0, 0, 7_000])])  # not all fits into the reply
            sent[name] += 1

    for attempt in range(10):
        client = await streams.open(*names, headers=[("Last-Event-ID", last_event_id)] if attempt else [])
        await client.take()
        start = len(client.wire.taken) if attempt == 0 else client.wire.taken.index(b"\r\n\r\n") + 4
        await publish(rng.randrange(12))
        await client.take()
        cut = rng.randint(start, len(client.wire.taken)) if attempt < 9 else len(client.wire.taken)
        source = split(client.wire.taken[:cut])[1]
        for envelope in [event.json for event in source.events]:
            if envelope["type"] == "subscribed" and attempt:
                assert envelope["data"]["recovered"] is True
            for message in [envelope] if envelope["type"] == "message" else envelope["data"].get("messages", []):
                got[message["channel"]].append(message["data"][0])
        last_event_id = source.last_event_id or last_event_id  # as a browser keeps it
        await client.leave()
        if attempt < 9:
            await publish(rng.randrange(4))
    assert got == {name: list(range(sent[name])) for name in names}


async def test_last_event_id_goes_before_since(streams):
    realtime = streams.world.realtime
    positions = [str((await realtime.publish("kept", n)).position) for n in range(4)]
    for headers, query, missed in (
        ((), "", None),
        ((), f"since={positions[0]}", [1, 2, 3]),
        ((("Last-Event-ID", positions[2]),), f"since={positions[0]}", [3]),
        ((("Last-Event-ID", ""),), f"since={positions[0]}", [1, 2, 3]),
        ((), f"since=kept%3D{positions[1]}", [2, 3]),
        ((("Last-Event-ID", f"other={positions[2]}"),), f"since={positions[0]}", [1, 2, 3]),
    ):
        client = await streams.open("kept", headers=headers, query=query)
        (subscribed,) = await client.take_type("subscribed")
        messages = subscribed["data"].get("messages")
        assert (messages and [message["data"] for message in messages]) == missed


POSITION = "e:1:t"


@pytest.mark.parametrize(
    ("text", "positions"),
    [
        (POSITION, {"a": POSITION}),
        (f"a={POSITION}", {"a": POSITION}),
        ("x", {"a": UNKNOWN}),
        ("a=x", {"a": UNKNOWN}),
        ("=", {"a": UNKNOWN}),
        (";;;", {"a": UNKNOWN}),
        (POSITION, {"a": UNKNOWN, "b": UNKNOWN}),
        (f"a={POSITION};b=e:2:t", {"a": POSITION, "b": "e:2:t"}),
        (f"a={POSITION}", {"a": POSITION, "b": UNKNOWN}),
        (f"c={POSITION};a={POSITION}", {"a": POSITION, "b": UNKNOWN}),
        (f"a={POSITION};a=e:2:t", {"a": "e:2:t"}),
        (f"%61={POSITION};%ff={POSITION};b=e:1:t=", {"a": POSITION, "b": UNKNOWN}),
    ],
)
def test_what_a_last_event_id_says(text, positions):
    assert positions_of(ask("GET", "/", ("Last-Event-ID", text)), list(positions)) == positions


def test_what_since_does_not_say_is_not_known_and_need_not_be():
    assert positions_of(ask("GET", f"/?since=a={POSITION}"), ["a", "b"]) == {"a": POSITION, "b": None}
    assert positions_of(ask("GET", f"/?since=a={POSITION}&since=b={POSITION}"), ["a", "b"]) == {
        "a": POSITION,
        "b": POSITION,
    }
    assert positions_of(ask("GET", "/"), ["a", "b"]) == {"a": None, "b": None}
    assert positions_of(ask("GET", "/?since=nonsense"), ["a"]) == {"a": UNKNOWN}


@pytest.mark.parametrize("seed", SEEDS)
async def test_a_forged_id_recovers_nothing_and_breaks_nothing(streams, seed):
    rng = random.Random(seed)
    print("seed", seed)
    realtime = streams.world.realtime
    receipts = [await realtime.publish("kept", n) for n in range(5)]
    pieces = [
        "kept",
        "kept2",
        "=",
        ";",
        ":",
        "%",
        "%00",
        "%ff",
        "1",
        "9" * 30,
        "-1",
        "é",
        "'",
        "\t",
        *map(str, receipts[2].position),
    ]
    for _ in range(40):
        forged = "".join(rng.choice(pieces) for _ in range(rng.randrange(1, 12))).strip()
        if not forged or str(receipts[2].position) in forged:
            continue
        client = await streams.open("kept", "kept2", headers=[("Last-Event-ID", forged)])
        events = await client.take_type("subscribed")
        assert [event["data"]["recovered"] for event in events] == [False, False], forged
        assert [event["data"]["messages"] for event in events] == [[], []]
        await client.leave()


async def test_a_huge_id_is_read_quickly(streams):
    for huge in ("kept=" + "1" * 8_000, ";" * 8_000, "=" * 8_000, "kept;" * 1_600, "%41" * 2_600, "a:" * 4_000):
        client = await streams.open("kept", headers=[("Last-Event-ID", huge)])
        (event,) = await client.take_type("subscribed")
        assert event["data"]["recovered"] is False


# --- the stream itself ---


async def test_the_heartbeat_is_a_comment_and_an_envelope(streams):
    client = await streams.open("kept")
    await client.take()
    streams.world.advance(15.1)
    assert await client.take() == [{"type": "ping"}]
    assert client.source.comments == [" ping"]


@pytest.mark.parametrize("code", [1000, 1012, 4999])
async def test_close_says_why(streams, code):
    client = await streams.open("kept")
    await client.take()
    client.stream.close(code, "because")
    client.stream.close(1011, "again")
    assert await client.take() == [{"type": "close", "data": {"code": code, "reason": "because"}}]
    assert client.wire.lost
    assert client.stream.ended


async def test_a_slow_client_is_told_that_it_is_one(make):
    world = await make(limits=Limits(write_soft_bytes=1_000, write_hard_bytes=10_000))
    streams = Streams(world)
    client = await streams.open("a")
    await client.take()
    client.wire.stalled = True
    for _ in range(40):
        await world.realtime.publish("a", "x" * 500)
        await client.take()
    assert client.stream.closed
    client.wire.stalled = False
    client.wire.take(100_000)
    last = (await client.take())[-1]
    assert (last["type"], last["data"]["code"]) == ("close", 4008)
    assert world.realtime.hub.connection_count("a") == 0


def test_an_event_source_is_one():
    """The judge itself: the examples of the standard."""
    source = EventSource().feed(
        b"\xef\xbb\xbfdata: a\n\n: c\n\ndata:b\ndata\nid: 1\nid\n\nid: 2\n\ndata\rdata\r\n\nretry: 5\nretry: x\n"
    )
    assert source.events == [("message", "a", ""), ("message", "b\n", ""), ("message", "\n", "2")]
    assert source.last_event_id == "2"
    assert source.retry_ms == 5

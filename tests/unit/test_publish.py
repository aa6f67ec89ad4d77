"""The hot half of a publish, as it runs and as it is compiled: what it does, and what it leaves to the other half.

What the other half makes of it is in test_session.py and test_exchange.py.
"""

from __future__ import annotations

import importlib
import json
import random
from types import SimpleNamespace

import pytest

from street_fast.auth import Member
from street_fast.backplanes import History, Published
from street_fast.hub import ChannelHub
from street_fast.messages import decode, publication, publication_payload
from street_fast.testing import FakeConnection, ManualClock
from tests.frames_harness import IMPLEMENTATIONS

MODULES = {"compiled": "street_fast._publish", "pure": "street_fast._publish_py"}


@pytest.fixture(params=IMPLEMENTATIONS)
def module(request):
    return importlib.import_module(MODULES[request.param])


class Backplane:
    """Writes down what it is asked to publish, and delivers it to the hub as an exchange would."""

    def __init__(self, hub):
        self.hub = hub
        self.asked = []
        self.answer = Published(None)
        self.error = None

    def publish(self, channel, payload, *, history=None, key=None):
        if self.error is not None:
            raise self.error
        self.asked.append((channel, payload, history, key))
        self.hub.deliver(channel, publication(channel, payload, None))
        return self.answer


class Client:
    """A publisher, whose other half writes down what it is asked to do."""

    def __init__(self, module, *, is_alone=True, history_of=None, rate=None, authorize=None, member="ada"):
        self.clock = ManualClock()
        self.hub = ChannelHub(clock_ms=self.clock.ms)
        self.backplane = Backplane(self.hub)
        self.outlet = module.Outlet(self.hub, self.backplane, history_of, rate)
        self.outlet.begin(self.clock, is_alone)
        self.reader = FakeConnection()
        calls = self.calls = []

        class Other(module.Publisher):
            def _operate(self, envelope):
                calls.append(("operate", envelope.type))
                return "operated"

            def _ask_and_publish(self, envelope):
                calls.append(("ask", envelope.channel))
                return "asked"

            def _refuse(self, envelope, code, message):
                calls.append(("refuse", code, envelope.id))

            def _own_key(self, envelope, key):
                calls.append(("key", key))
                return None if key == "bad" else f"own {key}"

            def _is_name(self, envelope, channel):
                calls.append(("name", channel))
                return channel != "bad"

            def _too_many(self, envelope):
                calls.append(("too many", envelope.channel))

            def _publish_failed(self, envelope, error):
                calls.append(("failed", error))
                if isinstance(error, KeyboardInterrupt):
                    raise error

            def _published(self, envelope, ts, published):
                calls.append(("published", ts, published, envelope.id))
                return "later"

        self.publisher = Other(SimpleNamespace(authorize=authorize), FakeConnection(), self.outlet)
        self.publisher.member = None if member is None else Member(member)

    def join(self, *channels):
        for channel in channels:
            self.hub.join(channel, "reader", self.reader)
        self.reader.messages.clear()

    def say(self, type="publish", **fields):  # noqa: A002
        return self.publisher.handle(decode(json.dumps({"type": type, **fields}).encode()))


def test_what_is_no_publish_or_comes_from_nobody_is_for_the_other_half(module):
    client = Client(module)
    assert client.say("subscribe", channel="c") == "operated"
    client.publisher.member = None
    assert client.say("publish", channel="c", data=1) == "operated"
    assert client.calls == [("operate", "subscribe"), ("operate", "publish")]


def test_where_not_everybody_may_publish_the_other_half_asks(module):
    client = Client(module)
    assert [client.say(channel=channel, data=1) for channel in (None, "user:ada", "user:")] == ["asked"] * 3
    strict = Client(module, authorize=lambda *_: True)
    assert strict.say(channel="c", data=1) == "asked"
    assert client.calls == [("ask", None), ("ask", "user:ada"), ("ask", "user:")]
    assert client.outlet.delivered == strict.outlet.delivered == 0


def test_a_publish_goes_to_the_channel(module):
    client = Client(module)
    client.join("c")
    assert client.say(channel="c", data={"a": 1}) is None
    assert client.say(channel="c", payload=[2]) is None  # its StreetJS name
    assert client.reader.messages == [
        {"type": "message", "channel": "c", "data": data, "ts": client.clock.ms(), "from": "ada"}
        for data in ({"a": 1}, [2])
    ]
    assert (client.calls, client.backplane.asked, client.outlet.delivered) == ([], [], 2)


def test_without_data_it_is_refused(module):
    client = Client(module)
    assert client.say(channel="c", id=7) is None
    assert client.calls == [("refuse", "bad_request", 7)]


def test_names_of_channels_that_nobody_is_in_are_looked_at(module):
    client = Client(module)
    client.join("c")
    for channel in ("bad", "c", "d"):
        assert client.say(channel=channel, data=1) is None
    assert client.calls == [("name", "bad"), ("name", "d")]
    assert client.outlet.delivered == 2


def test_keys(module):
    client = Client(module)
    client.join("c")
    for key in ("bad", "k"):
        client.say(channel="c", data=1, key=key)
    assert client.calls[:2] == [("key", "bad"), ("key", "k")]
    ((channel, payload, history, key),) = client.backplane.asked
    assert (channel, history, key) == ("c", None, "own k")
    assert json.loads(payload + b"}") == client.reader.messages[0]


def test_who_asks_for_an_answer_gets_one(module):
    client = Client(module)
    client.join("c")
    assert client.say(channel="c", data=1, id="i") == "later"
    assert client.calls == [("published", client.clock.ms(), Published(None), "i")]


def test_what_the_backplane_answers_is_for_the_other_half(module):
    client = Client(module, is_alone=False)
    client.join("c")
    client.backplane.answer = answer = object()
    assert client.say(channel="c", data=1) == "later"
    assert client.calls == [("published", client.clock.ms(), answer, None)]


def test_history_is_kept_by_the_backplane(module):
    history = History()
    client = Client(module, history_of={"kept": history}.get)
    client.join("kept", "c")
    for channel in ("kept", "c"):
        client.say(channel=channel, data=1)
    assert [(channel, kept) for channel, _, kept, _ in client.backplane.asked] == [("kept", history)]
    assert [message["channel"] for message in client.reader.messages] == ["kept", "c"]


def test_at_the_end_the_backplane_is_asked_again(module):
    client = Client(module)
    client.join("c")
    client.outlet.end()
    client.backplane.error = error = RuntimeError("closed")
    assert client.say(channel="c", data=1) is None
    client.backplane.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        client.say(channel="c", data=1)
    assert client.calls == [("failed", error), ("failed", client.backplane.error)]


def test_the_rate_of_a_channel(module):
    client = Client(module, rate=5)
    client.join("c", "d")
    for _ in range(6):
        client.say(channel="c", data=1)
    client.say(channel="d", data=1)
    client.clock.advance(0.2)
    for _ in range(2):
        client.say(channel="c", data=1)
    assert client.calls == [("too many", "c")] * 2
    assert (client.outlet.delivered, client.outlet.rate_limited) == (7, 2)


@pytest.mark.parametrize("seed", range(5))
def test_both_ways_say_the_same(module, seed):
    """Straight to the hub, and through a backplane that brings it back."""
    rng = random.Random(seed)
    straight, around = (
        Client(module, member='a "\u00e9\u2028\\'),
        Client(module, member='a "\u00e9\u2028\\', is_alone=False),
    )
    channels = ["c", 'quoted "\\', "\u00e9\U0001f600", " ", "nobody is here"]
    for client in (straight, around):
        client.join(*channels[:-1])
    for _ in range(200):
        fields = {
            "channel": rng.choice(channels),
            rng.choice(["data", "payload"]): rng.choice(
                [None, 0, -1.5e300, "", '\n\u2028"}', [], {}, {"a": [1, {"b": None}]}, "x" * rng.randrange(70_000)]
            ),
        }
        if rng.random() < 0.3:
            fields["id"] = rng.choice([1, "i"])
        for client in (straight, around):
            client.say(**fields)
            client.clock.advance(0.001)
    assert straight.reader.messages == around.reader.messages
    assert len(around.backplane.asked) == straight.outlet.delivered == 200
    asked = [call for call in straight.calls if call[0] == "published"]
    assert asked == [call for call in around.calls if call[0] == "published" and call[3] is not None]


def test_it_has_no_dict(module):
    assert not hasattr(module.Publisher(None, None, Client(module).outlet), "__dict__")


def test_one_of_seventeen_deliveries_is_measured_whichever_way_it_takes(module):
    client = Client(module)
    outlet = client.outlet
    client.join("c")
    for _ in range(2 * 17 + 16):
        client.say(channel="c", data=1)
    assert sum(outlet.fan_out_s.counts) == 2
    json = b'{"type":"message","channel":"c","data":1}'
    for _ in range(17):
        outlet.delivered += 1
        outlet.send("c", publication("c", publication_payload(json), None), None)
    assert sum(outlet.fan_out_s.counts) == 3
    assert outlet.fan_out_s.sum > 0
    assert len(client.reader.messages) == 2 * 17 + 16 + 17

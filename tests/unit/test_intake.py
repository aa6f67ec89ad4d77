"""Intake, as it runs and as it is compiled: which of the other half's methods a message ends up in.

What the other half makes of it is in test_street_socket.py, and the buckets in test_rates.py.
"""

from __future__ import annotations

import importlib
import json
from types import SimpleNamespace

import msgspec
import pytest

from street_fast.limits import Limits
from street_fast.metrics import Counters
from tests.connection_harness import Panic, World, load_core
from tests.frames_harness import BINARY, IMPLEMENTATIONS, frame, text

MODULES = {"compiled": "street_fast._intake", "pure": "street_fast._intake_py"}


@pytest.fixture(params=IMPLEMENTATIONS)
def module(request):
    return importlib.import_module(MODULES[request.param])


@pytest.fixture
def world(request, module):
    core = load_core("pure" if module.__name__.endswith("_py") else "compiled")
    world = World(core)
    yield world
    assert world.loop.failures == []


def decode_envelope(text):
    envelope = json.loads(text)
    if not isinstance(envelope, dict):
        raise msgspec.DecodeError("no envelope")
    return SimpleNamespace(**envelope)


class Client:
    """An intake, whose other half writes down what it is asked to do."""

    def __init__(self, module, world, limits=None, **options):
        limits = Limits() if limits is None else limits
        calls = self.calls = []

        class Other(module.Intake):
            def _decode(self, text):
                calls.append(("decode", bytes(text)))
                return decode_envelope(text) if b"again" in text else None

            def _above_rate(self, verdict):
                calls.append(("above_rate", verdict.name))

            def _malformed(self, why):
                calls.append(("malformed", why))

            def _wait_in_line(self, text):
                calls.append(("wait", text))

            def _work_on(self, left):
                calls.append(("work_on", left))

            def _dispatch(self, envelope):
                calls.append(("dispatch", envelope.type))
                return getattr(envelope, "left", None)

            def _handler_failed(self, event, error):
                calls.append(("failed", event, error))

            def _await(self, event, coroutine):
                return ("await", event, coroutine)

            def _on_close(self, code, reason):
                calls.append(("close", code))

        self.counters = Counters()
        self.context = module.IntakeContext(world.context, limits, self.counters, decode_envelope, **options)
        self.connection = world.connection(limits)
        self.connection.ws.on_message = self.connection.ws.on_close = None
        self.intake = Other(self.connection.ws, self.context)
        self.connection.ws.start(self.connection.transport)
        self.arrive = self.connection.arrive

    def send(self, **envelope):
        self.arrive(text(json.dumps(envelope)))


@pytest.fixture
def client(module, world):
    return Client(module, world)


def test_an_event_is_dispatched_and_counted(client):
    client.send(type="a")
    client.send(type="b")
    assert client.calls == [("dispatch", "a"), ("dispatch", "b")]
    assert client.counters.events_received == 2


def test_what_is_left_is_worked_on_and_later_messages_wait(client):
    client.send(type="a", left="something")
    assert client.calls == [("dispatch", "a"), ("work_on", "something")]
    client.intake._worker = "a task"
    client.send(type="b")
    client.arrive(frame(BINARY, b"c"))
    assert client.calls[2:] == [
        ("wait", b'{"type": "b"}'),
        ("malformed", "an event is a text message, not a binary one"),
    ]
    client.intake._worker = None
    client.send(type="d")
    assert client.calls[4:] == [("dispatch", "d")]


def test_a_protocol_has_the_first_look(client, module):
    seen = []
    answers = {"mine": None, "later": "a coroutine", "other": module.UNHANDLED}

    class Protocol:
        def handle(self, envelope):
            seen.append(envelope.type)
            if envelope.type == "fail":
                raise Panic("boom")
            return answers[envelope.type]

    client.intake.protocol = Protocol()
    for event in ("mine", "later", "other", "fail"):
        client.send(type=event)
    assert seen == ["mine", "later", "other", "fail"]
    later, other, failed = client.calls
    assert later == ("work_on", ("await", "later", "a coroutine"))
    assert other == ("dispatch", "other")
    assert failed[:2] == ("failed", "fail")
    assert isinstance(failed[2], Panic)


def test_what_cannot_be_decoded_is_decoded_again_with_care(client):
    client.intake._malformed_in_a_row = 3
    client.arrive(text("[]"))
    client.arrive(text("{"))
    assert client.calls == [("decode", b"[]"), ("decode", b"{")]
    assert client.intake._malformed_in_a_row == 3
    client.send(type="fine")
    assert client.intake._malformed_in_a_row == 0


@pytest.mark.parametrize("brackets", ["[", "{", "[{{["])
@pytest.mark.parametrize("where", [0, 1, 30, 63, 64, 200])
def test_only_texts_with_more_brackets_than_levels_are_looked_at_with_care(module, world, brackets, where):
    for depth in (1, 2, 31, 32, 33, 100):
        client = Client(module, world, Limits(json_depth=depth, messages_per_second=None))
        for extra in (-1, 0, 1):
            many = (brackets * 100)[: max(0, depth + extra - 1)]  # one is the envelope's own
            client.send(type="again", data="x" * where + many + "y" * (200 - where) + "]})(\x5a\x7a")
        cared = [call for call, *_ in client.calls if call == "decode"]
        assert len(cared) == 1, (depth, client.calls)
        assert [event for call, event in client.calls if call == "dispatch"] == ["again"] * 3


def test_above_its_rate(module, world):
    client = Client(module, world, Limits(messages_per_second=1, messages_burst=2, rate_grace_s=3), opening_messages=1)
    for _ in range(5):
        client.send(type="a")
    client.arrive(frame(BINARY, b"b"))
    assert client.calls == [("dispatch", "a")] * 3 + [("above_rate", "TELL")] + [("above_rate", "DROPPED")] * 2
    world.clock.now += 3.0
    for _ in range(3):
        client.send(type="a")
    assert client.calls[6:] == [("dispatch", "a")] * 2 + [("above_rate", "TELL")]
    assert client.counters.events_received == 9


def test_the_end(client, world):
    client.connection.ws.abort()
    world.turn()
    assert client.calls == [("close", 1006)]
    assert client.connection.ws.listener is None


def test_the_types_are_what_they_say(module, world):
    assert [verdict.value for verdict in module.Verdict] == [0, 1, 2, 3]
    assert module.UNHANDLED is module.Unhandled.UNHANDLED
    if module.__name__ == "street_fast._intake":
        with pytest.raises(TypeError):
            module.IntakeContext(object(), Limits(), Counters(), decode_envelope)

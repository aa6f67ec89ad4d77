"""ClientProtocol without a socket: what it sends, when, and what it makes of the answers. The clock is the test's."""

from __future__ import annotations

import json
from typing import Any

import pytest

from street_fast.backplanes import Position
from street_fast.client.feed import Feed
from street_fast.client.messages import Gap, Incoming, RealtimeError
from street_fast.client.protocol import ClientProtocol
from street_fast.errors import CloseCode, ConnectionClosed
from tests.client_harness import LIMITS, written


class World:
    """A client whose network, clock and application are the test."""

    def __init__(self, **options: Any) -> None:
        self.now = 1_000.0
        self.wall = 1_700_000_000.0
        self.chance = 1.0
        self.sent: list[dict[str, Any]] = []
        self.dropped: list[tuple[int, str]] = []
        self.events: list[Incoming] = []
        self.states: list[str] = []
        self.warnings: list[str] = []
        self.tokens: list[Any] = []  # what tokens were asked for, with whom to tell
        self.takes = True
        self.is_quiet = False
        self.alarm: float | None = None
        self.protocol = ClientProtocol(
            self,
            clock=lambda: self.now,
            wall_clock=lambda: self.wall,
            stopwatch=lambda: self.now,
            random=lambda: self.chance,
            **options,
        )
        self.requests = self.protocol.requests

    # what the protocol calls

    def send(self, text: bytes) -> None:
        self.sent.append(json.loads(text))

    def writable(self) -> bool:
        return self.takes

    def quiet(self) -> bool:
        return self.is_quiet

    def drop(self, code: int, reason: str) -> None:
        self.dropped.append((code, reason))

    def set_timer(self, when: float) -> None:
        self.alarm = when if self.alarm is None else min(self.alarm, when)

    def fetch_token(self, source: Any, then: Any) -> None:
        self.tokens.append(then)

    def event(self, event: Incoming) -> None:
        self.events.append(event)

    def state_changed(self, state: str) -> None:
        self.states.append(state)

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    # what the test does

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while self.alarm is not None and self.alarm <= end:
            self.now, self.alarm = max(self.now, self.alarm), None
            self.protocol.on_timer()
        self.now = end
        self.wall += seconds

    def receive(self, kind: str, **fields: Any) -> None:
        self.protocol.receive(json.dumps({"type": kind, **fields}).encode())

    def welcome(self, heartbeat_ms: float = 25_000, limits: dict[str, Any] | None = None, **data: Any) -> None:
        limits = {**LIMITS, **(limits or {})}
        self.receive("welcome", data={"id": "c", "heartbeatMs": heartbeat_ms, "limits": limits, **data})

    def open(self, token: str | None = None, **welcome: Any) -> World:
        self.protocol.opened(token)
        self.welcome(**welcome)
        if token is not None:
            self.reply(self.take("auth"), member={"id": "ada"})
        return self

    def lose(self, code: int = 1006, reason: str = "") -> float | None:
        return self.protocol.lost(code, reason)

    def sent_now(self, *, pings: bool = False) -> list[dict[str, Any]]:
        """What was sent since the last time; without what measures the latency, which is answered."""
        sent, self.sent = self.sent, []
        for message in sent:
            if message["type"] == "ping":
                self.reply(message, ts=1)
        return [message for message in sent if pings or message["type"] != "ping"]

    def take(self, kind: str, **fields: Any) -> dict[str, Any]:
        """The one message that was sent since the last time."""
        (message,) = self.sent_now()
        assert message["type"] == kind, message
        for name, value in fields.items():
            assert message.get(name) == value, message
        return message

    def reply(self, to: dict[str, Any], **data: Any) -> None:
        self.receive("reply", id=to["id"], data=data)

    def refuse(self, to: dict[str, Any], code: str, message: str = "because") -> None:
        self.receive("error", id=to["id"], data={"code": code, "message": message})

    def message(self, channel: str, data: Any, position: str | None = None) -> None:
        self.receive("message", **written(channel, data, position))

    def ask(self, kind: str = "publish", **fields: Any) -> Answer:
        answer = Answer()
        answer.request = self.requests.ask(kind, fields, answer)
        return answer

    def subscribe(self, channel: str = "chat", **options: Any) -> Feed:
        feed = Feed(channel, **options)
        self.protocol.subscriptions.attach(feed)
        return feed

    def live_feed(self, channel: str = "chat", **reply: Any) -> Feed:
        feed = self.subscribe(channel)
        self.reply(self.take("subscribe", channel=channel), **reply)
        return feed


class Answer:
    """What becomes of a request."""

    def __init__(self) -> None:
        self.times = 0
        self.data: Any = None
        self.error: Any = None
        self.request: Any = None

    def __call__(self, data: Any, error: Any) -> None:
        self.times += 1
        self.data = None if data is None else json.loads(bytes(data))
        self.error = error

    @property
    def code(self) -> str | None:
        return None if self.error is None else self.error.code


def read(feed: Feed) -> list[Any]:
    """What a feed holds: the data of messages, and gaps."""
    items = [item if isinstance(item, Gap) else json.loads(bytes(item.data)) for item in feed.items]
    feed.items.clear()
    return items


def at(offset: int, epoch: str = "e") -> str:
    return f"{epoch}:{offset}:{'0' if offset == 0 else 't'}"


def page(*offsets: int, epoch: str = "e", channel: str = "chat") -> list[dict[str, Any]]:
    return [{"type": "message", **written(channel, offset, at(offset, epoch))} for offset in offsets]


# --- opening ------------------------------------------------------------------------------------------------------


def test_a_client_is_open_with_the_welcome() -> None:
    world = World()
    assert world.protocol.state == "connecting"
    world.protocol.opened(None)
    assert (world.sent, world.states) == ([], [])
    world.welcome(member={"id": "ada", "info": {"name": "Ada"}})
    assert world.states == ["open"]
    member = world.protocol.member
    assert member is not None
    assert (member.id, member.info) == ("ada", {"name": "Ada"})


def test_a_token_goes_first_and_is_waited_for() -> None:
    world = World(token="secret")
    feed = world.subscribe()
    world.protocol.opened("secret")
    login = world.take("auth", data={"token": "secret"})
    world.welcome()
    assert world.states == []
    assert world.sent_now() == []
    world.reply(login, member={"id": "ada"})
    assert world.states == ["open"]
    world.take("subscribe", channel="chat")
    assert not feed.live


def test_a_login_may_be_answered_before_the_welcome() -> None:
    world = World(token="secret")
    world.protocol.opened("secret")
    world.reply(world.take("auth"), member={"id": "ada"})
    assert world.states == []
    world.welcome()
    assert world.states == ["open"]


@pytest.mark.parametrize(("code", "close_code"), [("unauthorized", 4001), ("unavailable", 1006), ("bad_request", 1008)])
def test_a_login_that_fails_ends_the_connection(code: str, close_code: int) -> None:
    world = World(token="secret")
    world.protocol.opened("secret")
    world.welcome()
    world.refuse(world.take("auth"), code, "no")
    assert world.dropped == [(close_code, "the login failed: no")]
    assert world.states == []


def test_a_login_without_an_answer_ends_the_connection() -> None:
    world = World(token="secret", request_timeout_s=5)
    world.protocol.opened("secret")
    world.welcome()
    world.advance(5)
    assert world.dropped[0][0] == 1006


def test_a_login_of_a_connection_before_is_nothing_to_this_one() -> None:
    world = World(token=lambda: "secret", request_timeout_s=5)
    world.protocol.opened("one")
    world.take("auth")
    world.lose()
    world.open(token="two")
    world.advance(6)
    assert (world.protocol.state, world.dropped) == ("open", [])


def test_events_go_to_the_driver_and_answers_do_not() -> None:
    world = World().open()
    world.receive("presence", channel="chat", data={"memberCount": 1})
    world.receive("score", data=[1])
    world.receive("pong")
    world.receive("reply", id=99, data={})
    world.receive("error", id=99, data={"code": "forbidden", "message": "no"})
    world.message("chat", 1)
    world.receive("error", data={"code": "bad_request", "message": "what?"})
    assert [event.type for event in world.events] == ["welcome", "presence", "score", "error"]
    assert world.warnings == ["the server says: what? (bad_request)"]


@pytest.mark.parametrize("text", [b"", b"[]", b"\xff", b'{"type":1}', b'{"type":"welcome","data":3}', b'{"type":"gap"'])
def test_what_cannot_be_read_is_logged_and_nothing_else(text: bytes) -> None:
    world = World().open()
    world.protocol.receive(text)
    assert len(world.warnings) == 1
    assert world.protocol.state == "open"


# --- losing a connection ------------------------------------------------------------------------------------------


def test_delays_are_random_and_grow_up_to_the_longest() -> None:
    world = World().open()
    assert [world.lose() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]
    world.chance = 0.25
    assert world.lose() == 7.5
    assert world.states == ["open", "reconnecting"]


def test_delays_begin_anew_after_a_healthy_connection_only() -> None:
    world = World().open()
    for _ in range(4):
        world.lose()
    world.open()
    world.advance(9)
    assert world.lose() == 8
    world.open()
    world.advance(10)
    assert world.lose() == 0.5


def test_the_server_may_say_how_long_to_wait() -> None:
    world = World().open()
    assert world.lose(1012, "service restart, retry in 3.4 s") == 3.4
    assert world.lose(1012, "retry in 99999 s") == 300
    assert world.lose(1012, "retry in 3.4 s or so") == 2
    assert world.protocol.lost(1006, "503", retry_after_s=7) == 7


@pytest.mark.parametrize("code", [*CloseCode, 3000, 4123])
def test_the_close_code_says_whether_to_come_back(code: int) -> None:
    world = World().open()
    delay = world.lose(code)
    if isinstance(code, CloseCode):
        assert (delay is not None) == code.may_reconnect
    else:
        assert delay is not None  # an application's own


def test_without_reconnect_the_first_loss_is_the_last() -> None:
    assert World(reconnect=False).open().lose(1012) is None


def test_after_4001_another_token_is_asked_for_once() -> None:
    world = World(token=lambda: "secret")
    world.protocol.opened("old")
    assert world.lose(4001) is not None
    world.protocol.opened("new")
    assert world.lose(4001) is None
    world = World(token=lambda: "secret").open(token="one")
    assert world.lose(4001) is not None
    world.open(token="two")  # it was good, so this is another story
    assert world.lose(4001) is not None
    assert World(token="a string").open(token="a string").lose(4001) is None


def test_the_end_ends_everything() -> None:
    world = World().open()
    feed, answer = world.live_feed(), world.ask(channel="chat", data=1)
    error = ConnectionClosed(4001, "no")
    world.protocol.end(error, wanted=False)
    assert (feed.ended, feed.error, answer.error) == (True, error, error)
    assert world.states[-1] == "closed"
    assert world.lose() is None
    wanted = World().open()
    feed = wanted.live_feed()
    wanted.protocol.end(error, wanted=True)
    assert (feed.ended, feed.error) == (True, None)


# --- heartbeat ----------------------------------------------------------------------------------------------------


def test_pings_are_answered() -> None:
    world = World().open()
    world.sent_now()
    world.receive("ping")
    assert [message["type"] for message in world.sent_now(pings=True)] == ["pong", "ping"]


def test_a_silent_server_is_gone_after_its_heartbeat_and_ten_seconds() -> None:
    world = World().open(heartbeat_ms=20_000)
    world.advance(29)
    world.receive("ping")
    world.advance(29.9)
    assert world.dropped == []
    world.advance(0.2)
    assert world.dropped == [(1006, "nothing came from the server for 30 s")]


def test_a_server_without_a_heartbeat_may_be_silent() -> None:
    world = World()
    world.protocol.opened(None)
    world.receive("welcome", data={"id": "c", "heartbeatMs": None, "limits": {}})
    world.advance(10_000)
    assert (world.protocol.state, world.dropped) == ("open", [])


def test_silence_that_we_asked_for_does_not_count() -> None:
    world = World().open(heartbeat_ms=20_000)
    world.is_quiet = True
    world.advance(100)
    world.is_quiet = False
    world.protocol.heard()
    world.advance(29)
    assert world.dropped == []
    world.advance(2)
    assert len(world.dropped) == 1


def test_a_lost_connection_is_not_watched() -> None:
    world = World().open()
    world.lose()
    world.advance(1_000)
    assert world.dropped == []


def test_the_latency_is_measured_with_each_heartbeat() -> None:
    world = World().open()
    (ping,) = world.sent
    world.advance(0.03)
    world.reply(ping, ts=1)
    assert world.protocol.latency_s == pytest.approx(0.03)
    world.sent.clear()
    world.receive("ping")
    world.receive("ping")
    assert [message["type"] for message in world.sent] == ["pong", "ping", "pong"]


# --- tokens -------------------------------------------------------------------------------------------------------


def expiry(world: World, left: float) -> float:
    return 1000 * (world.wall + left)


def test_a_new_token_is_brought_before_the_old_one_expires() -> None:
    world = World(token=lambda: "secret")
    world.protocol.opened("one")
    world.welcome()
    world.reply(world.take("auth"), member={"id": "ada"}, expiresAt=expiry(world, 3600))
    world.receive("ping")
    for _ in range(353):
        world.advance(10)
        world.receive("ping")
    assert world.tokens == []
    world.advance(11)
    world.sent_now()
    world.tokens.pop()("two")
    renewal = world.take("auth", data={"token": "two"})
    assert world.protocol.state == "open"
    world.reply(renewal, member={"id": "ada"}, expiresAt=expiry(world, 8))
    world.advance(5.9)
    assert world.tokens == []
    world.advance(0.2)  # a quarter of eight seconds ahead
    assert len(world.tokens) == 1


def test_the_newest_expiry_counts() -> None:
    world = World(token=lambda: "secret")
    world.protocol.opened("one")
    world.welcome(expiresAt=expiry(world, 20))
    world.reply(world.take("auth"), member={"id": "ada"}, expiresAt=expiry(world, 24))
    world.advance(17.9)
    assert world.tokens == []
    world.advance(6)
    assert len(world.tokens) == 1


def test_the_same_token_again_does_not_turn_in_circles() -> None:
    world = World(token=lambda: "secret")
    world.protocol.opened("one")
    world.welcome()
    expires_at = expiry(world, 4)
    message = world.take("auth")
    renewals = 0
    while world.wall < 1_700_000_020:
        world.reply(message, member={"id": "ada"}, expiresAt=expires_at)
        while not world.tokens:
            world.advance(0.5)
        world.sent_now()
        world.tokens.pop()("one")
        message = world.take("auth")
        renewals += 1
    assert renewals <= 5


def test_a_renewal_that_fails_is_tried_again() -> None:
    world = World(token=lambda: "secret")
    world.protocol.opened("one")
    world.welcome(expiresAt=expiry(world, 40))
    world.reply(world.take("auth"), member={"id": "ada"})
    world.advance(30)
    world.tokens.pop()(None)
    world.receive("ping")
    world.advance(9)
    assert world.tokens == []
    world.advance(2)
    world.sent_now()
    world.tokens.pop()("two")
    world.refuse(world.take("auth"), "unavailable")
    world.receive("ping")
    world.advance(11)
    assert len(world.tokens) == 1
    assert world.dropped == []


def test_a_token_that_comes_after_its_connection_is_not_used() -> None:
    world = World(token=lambda: "secret").open(token="one", expiresAt=1000 * 1_700_000_040)
    world.advance(30)
    (then,) = world.tokens
    world.sent_now()
    world.lose()
    then("two")
    world.open(token="three")
    then("two")
    assert world.sent_now() == []


def test_a_string_cannot_be_renewed() -> None:
    world = World(token="one").open(token="one", expiresAt=1000 * 1_700_000_040)
    world.advance(34)
    assert world.tokens == []


# --- requests -----------------------------------------------------------------------------------------------------


def test_a_request_and_its_answer() -> None:
    world = World().open()
    world.sent_now()
    answer = world.ask(channel="chat", data=None, key="k")
    sent = world.take("publish", channel="chat", data=None, key="k")
    assert "data" in sent
    world.reply(sent, ts=5)
    world.reply(sent, ts=6)
    assert (answer.times, answer.data, answer.error) == (1, {"ts": 5}, None)
    refused = world.ask(channel="chat", data=1)
    world.refuse(world.take("publish"), "forbidden", "you may not")
    assert (refused.code, str(refused.error)) == ("forbidden", "you may not (forbidden)")
    assert len(world.requests) == 0


def test_answers_come_in_any_order() -> None:
    world = World().open()
    world.sent_now()
    one, two = world.ask(data=1), world.ask(data=2)
    first, second = world.sent_now()
    world.reply(second, ts=2)
    world.reply(first, ts=1)
    assert (one.data, two.data) == ({"ts": 1}, {"ts": 2})


def test_unanswered_requests_are_sent_again_in_order_and_the_same() -> None:
    world = World().open()
    world.sent_now()
    answers = [world.ask(data=number, key=str(number)) for number in range(3)]
    sent = world.sent_now()
    world.reply(sent[1], ts=1)
    world.lose()
    answers.append(world.ask(data=3, key="3"))
    assert world.sent_now() == []
    world.open()
    again = world.sent_now()
    assert [message["key"] for message in again] == ["0", "2", "3"]
    assert again[:2] == [sent[0], sent[2]]
    for message in again:
        world.reply(message, ts=2)
    assert [answer.data["ts"] for answer in answers] == [2, 1, 2, 2]


def test_subscribes_come_before_what_waited() -> None:
    world = World().open()
    world.sent_now()
    world.live_feed("a")
    world.ask(data=1)
    world.lose()
    world.subscribe("b")
    world.ask(data=2)
    world.sent_now()
    world.open()
    assert [(m["type"], m.get("channel", m.get("data"))) for m in world.sent_now()] == [
        ("subscribe", "a"),
        ("subscribe", "b"),
        ("publish", 1),
        ("publish", 2),
    ]


def test_a_request_without_an_answer_fails_in_time() -> None:
    world = World(request_timeout_s=4).open()
    world.sent_now()
    publish, history = world.ask("publish", data=1), world.ask("history")
    assert len(world.sent_now()) == 2
    world.advance(2)
    world.lose()
    never_sent = world.ask("publish", data=2)
    world.advance(2)
    assert (publish.code, history.code, never_sent.times) == ("unknown", "unavailable", 0)
    world.advance(2)
    assert never_sent.code == "unavailable"
    assert len(world.requests) == 0
    world.open()
    assert world.sent_now() == []


def test_so_many_requests_may_wait_and_no_more() -> None:
    world = World(queue_size=3)
    answers = [world.ask(data=number) for number in range(3)]
    with pytest.raises(RealtimeError, match="3 requests wait") as caught:
        world.ask(data=3)
    assert caught.value.code == "limit_exceeded"
    world.open()
    assert [message["data"] for message in world.sent_now()] == [0, 1, 2]
    world.ask(data=4)
    assert [answer.times for answer in answers] == [0, 0, 0]


def test_a_message_that_the_server_does_not_take_is_not_sent() -> None:
    world = World().open(limits={"messageBytes": 200})
    world.sent_now()
    with pytest.raises(RealtimeError, match="the server takes 200") as caught:
        world.ask(data="x" * 200)
    assert caught.value.code == "limit_exceeded"
    assert (world.sent_now(), len(world.requests)) == ([], 0)


def test_a_cancelled_request_is_forgotten() -> None:
    world = World()
    waiting = world.ask(data=1)
    assert world.requests.cancel(waiting.request) is False
    world.open()
    assert world.sent_now() == []
    sent = world.ask(data=2)
    message = world.take("publish")
    assert world.requests.cancel(sent.request) is True
    world.reply(message, ts=1)
    assert sent.times == 0


def test_what_is_not_answered_is_sent_only_while_there_is_a_connection() -> None:
    world = World()
    assert world.requests.tell("typing", {"channel": "chat"}) is False
    world.open()
    world.sent_now()
    assert world.requests.tell("typing", {"channel": "chat"}) is True
    assert world.take("typing") == {"type": "typing", "channel": "chat"}


def test_what_the_transport_does_not_take_waits() -> None:
    world = World().open()
    world.sent_now()
    world.takes = False
    world.ask(data=1)
    world.ask(data=2)
    assert world.sent_now() == []
    world.takes = True
    world.requests.pump()
    assert [message["data"] for message in world.sent_now()] == [1, 2]


# --- pacing -------------------------------------------------------------------------------------------------------


def busy_world(count: int, channels: int = 10) -> World:
    """Twenty messages a second, forty at once, and ten more after the opening; and `count` to send."""
    world = World(queue_size=1_000, request_timeout_s=1_000)
    for number in range(count):
        world.ask(data=number)
    world.open(limits={"messagesPerSecond": 20, "messagesBurst": 40, "channels": channels})
    return world


def test_the_burst_goes_out_and_the_rest_at_the_rate() -> None:
    world = busy_world(200)
    sent = world.sent_now()
    assert 30 <= len(sent) <= 40 + 10
    seen = len(sent)
    for _ in range(50):
        before = seen
        world.advance(0.1)
        sent += world.sent_now()
        seen = len(sent)
        assert seen - before <= 3
    assert 80 <= seen - 40 <= 100  # in five seconds
    assert [message["data"] for message in sent] == list(range(seen))


def test_a_quiet_client_has_its_burst_again_but_not_the_opening() -> None:
    world = busy_world(40)
    world.advance(60)
    world.sent_now()
    for number in range(100):
        world.ask(data=number)
    assert 25 <= len(world.sent_now()) <= 40


def test_a_server_without_a_rate_gets_all_at_once() -> None:
    world = World(queue_size=500)
    for number in range(300):
        world.ask(data=number)
    world.open(limits={"messagesPerSecond": None})
    assert len(world.sent_now()) == 300


def test_a_pong_does_not_wait() -> None:
    world = busy_world(100)
    world.sent_now()
    world.receive("ping")
    assert world.sent[0]["type"] == "pong"


def test_what_the_server_dropped_is_sent_again_after_a_pause() -> None:
    world = World().open(limits={"messagesPerSecond": 20, "messagesBurst": 40})
    world.sent_now()
    answers = [world.ask(data=number) for number in range(6)]
    sent = world.sent_now()
    world.reply(sent[0], ts=1)
    world.receive("error", data={"code": "rate_limited", "message": "too fast"})
    world.ask(data=6)
    world.advance(2.0)  # what it takes to fill the server's bucket
    assert world.sent_now() == []
    world.advance(3.0)
    again = world.sent_now()
    assert [message["data"] for message in again] == [1, 2, 3, 4, 5, 6]
    for message in again:
        world.reply(message, ts=1)
    assert [answer.times for answer in answers] == [1] * 6


def test_a_client_that_is_told_off_becomes_slower_and_faster_again() -> None:
    def sent_in_a_second(world: World) -> int:
        world.sent_now()
        world.advance(1)
        return len(world.sent_now())

    world = busy_world(1_000)
    world.advance(2)
    usual = sent_in_a_second(world)
    world.receive("error", data={"code": "rate_limited", "message": "too fast"})
    world.receive("error", data={"code": "rate_limited", "message": "too fast"})  # in the pause: not twice
    world.advance(4)
    slower = sent_in_a_second(world)
    assert usual / 3 < slower < usual * 2 / 3
    for _ in range(3):
        world.receive("ping")
        world.advance(10)
    assert sent_in_a_second(world) == pytest.approx(usual, abs=2)


def test_a_client_that_is_told_off_again_and_again_still_sends() -> None:
    world = busy_world(20)
    for _ in range(20):
        world.receive("error", data={"code": "rate_limited", "message": "too fast"})
        world.advance(5)
    world.sent_now()
    world.receive("ping")
    world.advance(20)
    assert any(message["type"] == "publish" for message in world.sent_now())


# --- channels -----------------------------------------------------------------------------------------------------


def test_a_channel_is_subscribed_once_and_left_with_its_last_feed() -> None:
    world = World().open()
    world.sent_now()
    one = world.subscribe()
    two = world.subscribe()  # before the answer
    world.reply(world.take("subscribe", channel="chat"), members=[])
    three = world.subscribe()
    assert world.sent_now() == []
    assert one.live
    assert two.live
    assert three.live
    world.message("chat", 1)
    world.message("elsewhere", 2)
    assert [read(feed) for feed in (one, two, three)] == [[1], [1], [1]]
    for feed in (one, two):
        world.protocol.subscriptions.detach(feed)
    world.message("chat", 3)
    assert (read(one), read(three)) == ([], [3])
    assert world.sent_now() == []
    world.protocol.subscriptions.detach(three)
    world.protocol.subscriptions.detach(three)
    world.take("unsubscribe", channel="chat")


def test_leaving_before_the_answer() -> None:
    world = World(queue_size=5)
    feed = world.subscribe()
    world.protocol.subscriptions.detach(feed)
    world.open()
    assert world.sent_now() == []
    feed = world.subscribe()
    message = world.take("subscribe")
    world.protocol.subscriptions.detach(feed)
    world.take("unsubscribe")
    world.reply(message, members=[])
    world.message("chat", 1)
    assert read(feed) == []
    world.takes = False
    world.protocol.subscriptions.detach(world.subscribe())
    world.takes = True
    world.requests.pump()
    assert world.sent_now() == []


def test_messages_before_the_answer_are_of_the_subscription_before() -> None:
    world = World().open()
    world.sent_now()
    feed = world.subscribe()
    world.message("chat", 1)
    world.reply(world.take("subscribe"), position=at(1))
    world.message("chat", 2, at(2))
    assert read(feed) == [2]


def test_a_feed_goes_on_where_it_stopped() -> None:
    world = World().open()
    world.sent_now()
    feed = world.live_feed(position=at(5))
    world.message("chat", 6, at(6))
    world.lose()
    world.open()
    message = world.take("subscribe", since=at(6))
    world.reply(message, position=at(8), recovered=True, messages=page(7, 8))
    world.message("chat", 9, at(9))
    assert read(feed) == [6, 7, 8, 9]


def test_messages_that_come_twice_are_given_once() -> None:
    world = World().open()
    world.sent_now()
    feed = world.live_feed(position=at(5))
    for offset in (6, 6, 5, 7, 6, 8):
        world.message("chat", offset, at(offset))
    assert read(feed) == [6, 7, 8]


def test_the_rest_of_a_recovery_comes_as_messages() -> None:
    world = World().open()
    world.sent_now()
    feed = world.live_feed(position=at(5))
    world.lose()
    world.open()
    world.reply(world.take("subscribe"), position=at(7), recovered=True, messages=page(6, 7))
    for offset in (8, 9):
        world.message("chat", offset, at(offset))
    assert read(feed) == [6, 7, 8, 9]


def test_what_cannot_be_recovered_is_told() -> None:
    world = World().open()
    world.sent_now()
    feed = world.live_feed(position=at(5))
    world.lose()
    world.open()
    world.reply(world.take("subscribe", since=at(5)), position=at(9), recovered=False, messages=[])
    world.message("chat", 10, at(10))
    world.lose()
    world.open()
    world.reply(world.take("subscribe", since=at(10)), position=at(3, "f"), recovered=False, messages=[])
    world.message("chat", 4, at(4, "f"))
    assert read(feed) == [Gap("chat", at(9), 4), 10, Gap("chat", at(3, "f"), None), 4]


def test_a_gap_in_the_middle_is_told() -> None:
    world = World().open()
    world.sent_now()
    feed = world.live_feed(position=at(5))
    world.receive("gap", channel="chat", data={"position": at(8)})
    world.message("chat", 9, at(9))
    world.receive("gap", channel="chat", data={"position": at(2, "f")})
    world.receive("gap", channel="elsewhere", data={})
    world.message("chat", 3, at(3, "f"))
    world.message("chat", 5, at(5, "f"))  # without a word of the server's
    assert read(feed) == [Gap("chat", at(8), 3), 9, Gap("chat", at(2, "f"), None), 3, Gap("chat", None, 1), 5]
    assert world.events[-1].type == "gap"


def test_a_new_epoch_without_a_break_is_no_gap() -> None:
    world = World().open()
    world.sent_now()
    feed = world.live_feed(position=at(5))
    world.message("chat", "new", at(1, "f"))  # the history was evicted
    world.message("chat", "newer", at(2, "f"))
    assert read(feed) == ["new", "newer"]


def test_without_history_a_reconnect_may_have_missed_something() -> None:
    world = World().open()
    world.sent_now()
    feed = world.live_feed()
    world.message("chat", 1)
    world.lose()
    world.open()
    message = world.take("subscribe")
    assert "since" not in message
    world.reply(message, members=[])
    world.message("chat", 2)
    assert read(feed) == [1, Gap("chat", None, None), 2]


def test_a_history_that_ended_or_began_meanwhile() -> None:
    world = World().open()
    world.sent_now()
    feed = world.live_feed(position=at(5))
    world.lose()
    world.open()
    world.reply(world.take("subscribe", since=at(5)), recovered=False, messages=[])
    assert (read(feed), feed.position) == ([Gap("chat", None, None)], None)
    world.lose()
    world.open()
    world.reply(world.take("subscribe"), position=at(9))
    assert read(feed) == [Gap("chat", at(9), None)]
    world.message("chat", 10, at(10))
    assert read(feed) == [10]


def test_a_feed_with_a_position_of_its_own_gets_what_is_new_to_it() -> None:
    world = World().open()
    world.sent_now()
    old = world.live_feed(position=at(5))
    world.message("chat", 6, at(6))
    new = world.subscribe(since=Position.parse(at(3)))
    message = world.take("subscribe", since=at(3))
    world.message("chat", 7, at(7))
    world.reply(message, position=at(5), recovered=True, messages=page(4, 5))
    for offset in (6, 7, 8):
        world.message("chat", offset, at(offset))
    assert (read(old), read(new)) == ([6, 7, 8], [4, 5, 6, 7, 8])


def test_a_subscribe_is_for_all_feeds_of_the_channel() -> None:
    """The server ends a recovery when it is subscribed again; so the next one must be good for both."""
    world = World().open()
    world.sent_now()
    first = world.subscribe(since=Position.parse(at(2)))
    second = world.subscribe(since=Position.parse(at(6)))
    one, two = world.sent_now()
    assert (one["since"], two["since"]) == (at(2), at(2))
    world.reply(one, position=at(4), recovered=True, messages=page(3, 4))
    world.reply(two, position=at(4), recovered=True, messages=page(3, 4))
    for offset in (5, 6, 7):
        world.message("chat", offset, at(offset))
    assert (read(first), read(second)) == ([3, 4, 5, 6, 7], [7])


def test_a_gap_of_one_feed_is_none_of_the_others() -> None:
    world = World().open()
    world.sent_now()
    old = world.live_feed(position=at(50))
    new = world.subscribe(since=Position.parse(at(3)))
    world.reply(world.take("subscribe", since=at(3)), position=at(50), recovered=False, messages=[])
    world.message("chat", 51, at(51))
    assert (read(old), read(new)) == ([51], [Gap("chat", at(50), 47), 51])


def test_a_position_too_old_harms_nobody_else() -> None:
    world = World().open()
    world.sent_now()
    one = world.live_feed(position=at(5))
    world.lose()
    world.open()
    world.reply(world.take("subscribe", since=at(5)), position=at(6), recovered=True, messages=page(6))
    two = world.subscribe(since=Position.parse(at(1)))  # while the server is still sending what follows 6
    world.reply(world.take("subscribe", since=at(1)), position=at(8), recovered=False, messages=[])
    message = world.take("subscribe", since=at(6))
    world.message("chat", 9, at(9))
    world.reply(message, position=at(9), recovered=True, messages=page(7, 8, 9))
    world.message("chat", 10, at(10))
    assert read(one) == [6, 7, 8, 9, 10]
    assert read(two) == [Gap("chat", at(8), 7), 9, 10]


def test_subscribing_again_is_no_gap_without_history() -> None:
    world = World().open()
    world.sent_now()
    one = world.live_feed()
    world.message("chat", 1)
    two = world.subscribe(token="for a")
    message = world.take("subscribe")
    world.message("chat", 2)
    world.reply(message, members=[])
    world.message("chat", 3)
    assert (read(one), read(two)) == ([1, 2, 3], [3])


def test_a_refusal_ends_the_feed() -> None:
    world = World().open()
    world.sent_now()
    feed = world.subscribe()
    world.refuse(world.take("subscribe"), "forbidden", "not you")
    assert (feed.ended, feed.error.code) == (True, "forbidden")
    world.lose()
    world.open()
    assert world.sent_now() == []


def test_not_now_ends_a_new_feed_and_is_tried_again_for_an_old_one() -> None:
    world = World().open()
    world.sent_now()
    new = world.subscribe("new")
    world.refuse(world.take("subscribe"), "unavailable")
    assert (new.ended, new.error.code) == (True, "unavailable")
    old = world.live_feed(position=at(5))
    world.lose()
    world.open()
    world.refuse(world.take("subscribe"), "unavailable")
    assert not old.ended
    world.advance(0.9)
    assert world.sent_now() == []
    world.advance(4.2)
    world.reply(world.take("subscribe", since=at(5)), position=at(6), recovered=True, messages=page(6))
    assert read(old) == [6]


def test_an_old_feed_that_is_not_allowed_any_more() -> None:
    world = World().open()
    world.sent_now()
    feed = world.live_feed()
    world.lose()
    world.open()
    world.refuse(world.take("subscribe"), "forbidden")
    assert (feed.ended, feed.error.code) == (True, "forbidden")


def test_a_subscribe_without_an_answer_is_tried_again() -> None:
    world = World(request_timeout_s=4).open()
    world.sent_now()
    feed = world.subscribe()
    world.take("subscribe")
    world.advance(9.1)
    world.reply(world.take("subscribe"), members=[])
    assert feed.live


def test_leaving_when_it_is_not_known_whether_one_is_in() -> None:
    world = World(request_timeout_s=4).open()
    world.sent_now()
    feed = world.subscribe()
    world.take("subscribe")
    world.advance(4.1)
    world.protocol.subscriptions.detach(feed)
    world.take("unsubscribe")


def test_taken_out_by_the_server() -> None:
    world = World().open()
    world.sent_now()
    feed = world.live_feed()
    world.receive("unsubscribed", channel="chat", data={"code": "unauthorized", "message": "it has expired"})
    world.receive("unsubscribed", channel="elsewhere", data={"code": "unauthorized", "message": "it has expired"})
    assert str(feed.error) == "it has expired (unauthorized)"
    assert world.sent_now() == []
    world.subscribe()
    world.take("subscribe")


def test_a_token_of_the_channel_that_has_come_to_its_end_makes_place_for_another() -> None:
    world = World().open()
    world.sent_now()
    feed = world.subscribe("chat", token=lambda: "unused")
    ended = {"code": "unauthorized", "message": "it has expired"}
    world.tokens.pop()("first")
    world.reply(world.take("subscribe", token="first"), position=at(0))
    world.message("chat", 1, at(1))
    world.receive("unsubscribed", channel="chat", data=ended)
    assert (feed.live, feed.ended) == (False, False)
    world.tokens.pop()("second")
    world.reply(world.take("subscribe", token="second", since=at(1)), position=at(2), recovered=True, messages=page(2))
    world.message("chat", 3, at(3))
    assert read(feed) == [1, 2, 3]
    world.receive("unsubscribed", channel="chat", data=ended)  # at once: the function gives the same one, perhaps
    assert world.tokens == []
    world.advance(10)
    world.tokens.pop()("third")
    world.refuse(world.take("subscribe", token="third"), "unauthorized")
    assert (feed.ended, feed.error.code) == (True, "unauthorized")
    feed = world.subscribe("chat", token=lambda: "unused")
    world.tokens.pop()("fourth")
    world.reply(world.take("subscribe", token="fourth"), position=at(3))
    world.receive("unsubscribed", channel="chat", data={"code": "forbidden", "message": "out"})
    assert (feed.ended, world.tokens) == (True, [])


def test_a_token_of_the_channel() -> None:
    world = World().open()
    world.sent_now()
    world.subscribe("a", token="for a")
    world.take("subscribe", token="for a")
    feed = world.subscribe("b", token=lambda: "for b")
    assert world.sent_now() == []
    world.tokens.pop()("for b")
    world.reply(world.take("subscribe", token="for b"), members=[])
    assert feed.live
    world.lose()
    world.open()
    world.take("subscribe", channel="a")
    world.tokens.pop()(None)  # it could not be had
    world.advance(5.1)
    late = world.tokens.pop()
    world.lose()
    late("too late")
    world.open()
    world.take("subscribe", channel="a")


# --- feeds that are not read --------------------------------------------------------------------------------------


def test_an_overfull_feed_takes_no_more_and_goes_on_when_it_is_read() -> None:
    world = World().open()
    world.sent_now()
    feed = world.subscribe(size=2)
    world.reply(world.take("subscribe"), position=at(0))
    for offset in range(1, 30):
        world.message("chat", offset, at(offset))
        assert feed.full == (offset >= 2)
    assert feed.overfull
    assert read(feed) == list(range(1, 17))
    world.protocol.subscriptions.catch_up(feed)
    world.protocol.subscriptions.catch_up(feed)
    message = world.take("subscribe", since=at(16))
    world.reply(message, position=at(29), recovered=True, messages=page(*range(17, 30)))
    world.message("chat", 30, at(30))
    assert read(feed) == list(range(17, 31))


def test_an_overfull_feed_without_history_has_a_gap() -> None:
    world = World().open()
    world.sent_now()
    feed = world.subscribe(size=1)
    world.reply(world.take("subscribe"))
    for number in range(20):
        world.message("chat", number)
    assert read(feed) == list(range(8))
    world.protocol.subscriptions.catch_up(feed)
    world.message("chat", 20)
    assert read(feed) == [Gap("chat", None, None), 20]
    assert world.sent_now() == []


def test_an_overfull_feed_is_not_subscribed_anew_before_it_is_read() -> None:
    world = World().open()
    world.sent_now()
    feed = world.subscribe(size=1)
    world.reply(world.take("subscribe"), position=at(0))
    for offset in range(1, 20):
        world.message("chat", offset, at(offset))
    world.lose()
    world.open()
    assert world.sent_now() == []
    world.lose()
    assert read(feed) == list(range(1, 9))
    world.protocol.subscriptions.catch_up(feed)
    world.open()
    world.take("subscribe", since=at(8))

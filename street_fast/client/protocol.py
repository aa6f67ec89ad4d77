"""What a client of Realtime says, and what it makes of the answers: docs/protocol.md without a socket.

A `ClientProtocol` lives as long as its client, over any number of connections. It is told what happens (`opened`,
`receive`, `lost`, `on_timer`), and tells its `Driver` what to do. What the application wants of it goes to `requests`
and `subscriptions`. Time and chance are handed in.

A connection is open when the server has welcomed us and, where there is a token, answered the login. It is lost when
the transport says so, or when nothing came for longer than the server's heartbeat and a grace. The close code says
whether there should be another, and a growing random delay when, unless the server has said that itself.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Literal, Protocol, TypeAlias

import msgspec

from street_fast.client.alarms import Alarm, Alarms
from street_fast.client.messages import Incoming, RealtimeError, Refusal, Session, Welcome, decode_incoming
from street_fast.client.requests import Request, Requests
from street_fast.client.subscriptions import Subscriptions
from street_fast.errors import CloseCode, StreetError
from street_fast.messages import UNSET

if TYPE_CHECKING:
    from collections.abc import Callable

    from street_fast.client.feed import TokenSource

__all__ = ["ClientProtocol", "Driver", "State"]

State: TypeAlias = Literal["connecting", "open", "reconnecting", "closed"]

_SILENCE_GRACE_S: Final = 10.0
"""Beyond the server's heartbeat, until it counts as gone."""
_HEALTHY_S: Final = 10.0
"""A connection that was open so long lets the delays begin anew."""
_MOST_HINT_S: Final = 300.0
"""The longest time that a server can make a client wait."""
_RENEW_AHEAD_S: Final = 60.0
"""Before the expiry of a token; a quarter of what is left of it, if that is less."""
_RENEW_LEAST_S: Final = 1.0
"""A token function that gives the same token again must not make this turn in circles."""
_RENEW_AGAIN_S: Final = 10.0
"""After a renewal that failed, and where the clocks cannot be right."""
_CODES_OF_A_FAILED_LOGIN: Final = {
    "unauthorized": CloseCode.UNAUTHORIZED,
    "forbidden": CloseCode.POLICY_VIOLATION,
    "bad_request": CloseCode.POLICY_VIOLATION,
}
"""Any other may pass."""
_RETRY_HINT = re.compile(r"retry in (\d+(?:\.\d+)?) s$")
_NULL = msgspec.Raw(b"null")


class Driver(Protocol):
    """Who has the socket, the timer, and the application."""

    def send(self, text: bytes) -> None:
        """Send a text message; only called from `opened` to `lost`."""

    def writable(self) -> bool:
        """Whether the transport takes more now; if not, `requests.pump` is called when it does."""

    def quiet(self) -> bool:
        """Whether silence says nothing of the server: reading is paused, or a message is half there."""

    def drop(self, code: int, reason: str) -> None:
        """End the connection at once; `lost` is called with these, soon but not from within."""

    def set_timer(self, when: float) -> None:
        """Call `on_timer` then, or earlier if an earlier time was asked for."""

    def fetch_token(self, source: TokenSource, then: Callable[[str | None], object]) -> None:
        """Get a token and call `then` with it, later; with None if it could not be had."""

    def event(self, event: Incoming) -> None:
        """Something that is no answer and no message of a channel."""

    def state_changed(self, state: State) -> None:
        """The state is another."""

    def warn(self, text: str) -> None:
        """Something for the log."""


class ClientProtocol:
    """One client. `token` is None for one that does not log in.

    `clock` may be coarse; `stopwatch` is not, and measures the latency.
    """

    def __init__(
        self,
        driver: Driver,
        *,
        clock: Callable[[], float],
        wall_clock: Callable[[], float],
        stopwatch: Callable[[], float],
        random: Callable[[], float],
        token: TokenSource | None = None,
        request_timeout_s: float = 10.0,
        queue_size: int = 100,
        backoff_s: tuple[float, float] = (0.5, 30.0),
        reconnect: bool = True,
    ) -> None:
        self._driver = driver
        self._clock = clock
        self._wall_clock = wall_clock
        self._stopwatch = stopwatch
        self._random = random
        self._token = token
        self._backoff_s = backoff_s
        self._reconnect = reconnect
        self.state: State = "connecting"
        self.welcome: Welcome | None = None  # the newest
        self.member: Session.Member | None = None
        self.latency_s: float | None = None
        self._alarms = Alarms(clock, driver.set_timer)
        self._connection_alarms = Alarms(clock, driver.set_timer)
        self.requests = Requests(
            clock=clock,
            alarms=self._alarms,
            connection_alarms=self._connection_alarms,
            send=driver.send,
            writable=driver.writable,
            timeout_s=request_timeout_s,
            queue_size=queue_size,
        )
        self.subscriptions = Subscriptions(self.requests, self._connection_alarms, driver.fetch_token, random)
        self._connected = False
        self._welcomed = False  # on this connection
        self._login: Request | None = None  # while it is not answered
        self._heard_at = 0.0
        self._opened_at: float | None = None
        self._attempts = 0
        self._another_token_asked = False
        self._renewal: Alarm | None = None
        self._measuring: Request | None = None

    # --- the life of a connection ---

    def opened(self, token: str | None) -> None:
        """The handshake is done; nothing was sent or read yet."""
        self._connected = True
        self._welcomed = False
        self._heard_at = self._clock()
        if token is not None:
            self._login = self._bring(token, self._logged_in)

    def lost(self, code: int, reason: str, retry_after_s: float | None = None) -> float | None:
        """The connection is gone, or could not be had. Seconds until the next try; None: there should be none."""
        healthy = self._opened_at is not None and self._clock() - self._opened_at >= _HEALTHY_S
        self._connected = False
        self._login = self._opened_at = self._measuring = None
        self._connection_alarms.clear()
        self.requests.lost()
        self.subscriptions.lost()
        if self.state == "closed":
            return None
        if not self._reconnect and self.state != "connecting":
            return None
        if code == CloseCode.UNAUTHORIZED and callable(self._token) and not self._another_token_asked:
            self._another_token_asked = True
        elif not _may_reconnect(code):
            return None
        if self.state == "open":
            self._change_state("reconnecting")
        self._attempts = 0 if healthy else self._attempts
        return self._delay(reason, retry_after_s)

    def end(self, error: StreetError, *, wanted: bool) -> None:
        """The client is closed: the application `wanted` it, or there is no way on."""
        if self.state != "closed":
            self._change_state("closed")
            self.subscriptions.end(None if wanted else error)
            self.requests.end(error)
            self._alarms.clear()
            self._connection_alarms.clear()

    def on_timer(self) -> None:
        """The time has come that `set_timer` was called with, or any other."""
        self._alarms.run()
        self._connection_alarms.run()

    def heard(self) -> None:
        """Silence until now does not count: nothing was read."""
        self._heard_at = self._clock()

    def _begin(self) -> None:
        """The server has let us in: ask for everything that is wanted of it."""
        self._opened_at = self._clock()
        self._another_token_asked = False
        self.subscriptions.opened()
        self.requests.open()
        self._measure()
        self._change_state("open")

    def _change_state(self, state: State) -> None:
        self.state = state
        self._driver.state_changed(state)

    def _delay(self, reason: str, retry_after_s: float | None) -> float:
        """Full jitter, unless the server has said how long."""
        first, most = self._backoff_s
        delay = self._random() * min(most, first * 2 ** min(self._attempts, 30))
        self._attempts += 1
        hint = _RETRY_HINT.search(reason)
        if hint is not None:
            retry_after_s = float(hint[1])
        return min(retry_after_s, _MOST_HINT_S) if retry_after_s else delay

    # --- what comes in ---

    def receive(self, data: bytes) -> None:
        """A text message of the server. One that cannot be read is logged, and is nothing."""
        self._heard_at = self._clock()
        try:
            message = decode_incoming(data)
            kind = message.type
            if kind == "message":
                self.subscriptions.message(message)
            elif kind == "reply":
                self.requests.answer(message.id, _data(message), None)
            elif kind == "ping":
                self.requests.tell_now(b'{"type":"pong"}')
                self._measure()
            elif kind != "pong":
                self._receive_event(message)
        except msgspec.DecodeError as error:
            self._driver.warn(f"the server sent something that cannot be read, it is ignored: {error}")

    def _receive_event(self, message: Incoming) -> None:
        kind = message.type
        if kind == "error":
            self._failed(message.id, msgspec.json.decode(_data(message), type=Refusal))
            if message.id is not None:
                return
        elif kind == "welcome":
            self._welcome(msgspec.json.decode(_data(message), type=Welcome))
        elif kind == "gap":
            self.subscriptions.gap(message.channel, _data(message))
        elif kind == "unsubscribed":
            self.subscriptions.unsubscribed(message.channel, msgspec.json.decode(_data(message), type=Refusal))
        self._driver.event(message)

    def _failed(self, id: int | str | None, refusal: Refusal) -> None:  # noqa: A002
        if refusal.code == "rate_limited":
            self.requests.pacing.slow_down()
        if id is not None:
            self.requests.answer(id, None, RealtimeError(refusal.code, refusal.message))
            return
        self._driver.warn(f"the server says: {refusal.message} ({refusal.code})")
        if refusal.code == "rate_limited":  # it does not say what it dropped
            self.requests.send_again()

    def _welcome(self, welcome: Welcome) -> None:
        if self._welcomed:
            return
        self._welcomed = True
        self.welcome = welcome
        self._learn(welcome)
        limits = welcome.limits
        self.requests.message_bytes = limits.message_bytes
        self.requests.pacing.begin(limits.messages_per_second, limits.messages_burst, limits.channels)
        if welcome.heartbeat_ms is not None:
            self._look_for_silence(welcome.heartbeat_ms / 1000 + _SILENCE_GRACE_S)
        if self._login is None:
            self._begin()

    def _look_for_silence(self, patience_s: float) -> None:
        if self._driver.quiet():
            self._heard_at = self._clock()
        left = self._heard_at + patience_s - self._clock()
        if left > 0:
            self._connection_alarms.after(left, lambda: self._look_for_silence(patience_s))
        else:
            self._driver.drop(CloseCode.ABNORMAL, f"nothing came from the server for {patience_s:g} s")

    # --- login ---

    def _bring(self, token: str, on_done: Callable[[msgspec.Raw | None, Exception | None], object]) -> Request:
        return self.requests.ask("auth", {"data": {"token": token}}, on_done, lasting=False, first=True)

    def _logged_in(self, data: msgspec.Raw | None, error: Exception | None) -> None:
        self._login = None
        if data is not None:
            self._learn(msgspec.json.decode(data, type=Session))
            if self._welcomed:
                self._begin()
        elif isinstance(error, RealtimeError) and self._connected:
            code = _CODES_OF_A_FAILED_LOGIN.get(error.code, CloseCode.ABNORMAL)
            self._driver.drop(code, f"the login failed: {error.message}")

    def _learn(self, session: Session) -> None:
        if session.member is not None:
            self.member = session.member
        if session.expires_at is not None and callable(self._token):
            left = session.expires_at / 1000 - self._wall_clock()
            ahead_s = min(_RENEW_AHEAD_S, left / 4)
            delay_s = max(_RENEW_LEAST_S, left - ahead_s) if left > 0 else _RENEW_AGAIN_S
            self._renew_in(delay_s)

    def _renew_in(self, delay_s: float) -> None:
        if self._renewal is not None:
            self._renewal.cancel()
        self._renewal = self._connection_alarms.after(delay_s, self._renew)

    def _renew(self) -> None:
        assert self._token is not None
        opened_at = self._opened_at

        def with_token(token: str | None) -> None:
            if self._opened_at is None or self._opened_at != opened_at:
                return
            if token is None:
                self._renew_in(_RENEW_AGAIN_S)
            else:
                self._bring(token, self._renewed)

        self._driver.fetch_token(self._token, with_token)

    def _renewed(self, data: msgspec.Raw | None, error: Exception | None) -> None:
        if data is not None:
            self._learn(msgspec.json.decode(data, type=Session))
        elif isinstance(error, RealtimeError) and self._connected:
            self._driver.warn(f"the new token was not taken: {error}")
            self._renew_in(_RENEW_AGAIN_S)

    # --- latency ---

    def _measure(self) -> None:
        if self._measuring is not None or self._opened_at is None:
            return
        sent_at = self._stopwatch()

        def measured(data: msgspec.Raw | None, error: Exception | None) -> None:
            self._measuring = None
            if data is not None:
                self.latency_s = self._stopwatch() - sent_at

        self._measuring = self.requests.ask("ping", {}, measured, lasting=False, first=True)


def _data(message: Incoming) -> msgspec.Raw:
    return _NULL if message.data is UNSET else message.data


def _may_reconnect(code: int) -> bool:
    try:
        return CloseCode(code).may_reconnect
    except ValueError:
        return True  # an application's own

"""The hot half of Realtime: what is done for every publish of a client.

A `Publisher` is the half of a `Session` that takes the envelope; an `Outlet` the half of an `Exchange` that sends the
message to the connections of the channel. What is rare is the other half's, which has a method for each; so is
everything that is awaited.

This file is both twins: it runs as it is, and is compiled as ``_publish`` with the C types of ``_publish.pxd``. Hence
the style: no construct that would need the ``cython`` module to run.
"""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Any

from street_fast._core import Frame, fan_out
from street_fast.backplanes import NOT_KEPT, Published
from street_fast.messages import UNSET, NewPublication, publication_payload, publish_message, write
from street_fast.metrics import Histogram

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from street_fast.backplanes import Backplane, History
    from street_fast.hub import ChannelHub
    from street_fast.messages import Envelope, Message

__all__ = ["Outlet", "Publisher"]

_RATES_KEPT = 1_024  # of channels whose bucket is full again
_ROUNDING_S = 1e-6
_MEASURED_EACH = 17
"""Of how many deliveries one is measured. A prime: who publishes to sixteen channels in turn is not measured in one."""
_FAN_OUT_BOUNDS_S = (0.000_01, 0.000_1, 0.001, 0.01, 0.1, 1.0)


class Outlet:
    """Sends to the connections of `hub`, and publishes through `backplane`.

    `history_of` says what a channel keeps; None: no channel keeps anything. `rate` is how many messages a channel takes
    per second from clients.
    """

    __slots__ = (
        "_full_at",
        "_history_of",
        "_is_alone",
        "_prune_at",
        "_rate_cost_s",
        "_rate_span_s",
        "_sinks",
        "backplane",
        "clock_ms",
        "delivered",
        "fan_out_s",
        "hub",
        "monotonic",
        "rate_limited",
    )

    _full_at: dict[str, float]  # by channel; as in `Rate`, a bucket is kept as the time when it will be full again
    _history_of: Callable[[str], History | None] | None
    _is_alone: bool
    _prune_at: int
    _rate_cost_s: float
    _rate_span_s: float
    _sinks: dict[str, Any]
    backplane: Backplane
    clock_ms: Callable[[], int]
    delivered: int  # publications that were delivered here, to however many
    fan_out_s: Histogram  # how long one of `_MEASURED_EACH` of them took
    hub: ChannelHub
    monotonic: Callable[[], float] | None  # the clock of the rates
    rate_limited: int

    def __init__(
        self,
        hub: ChannelHub,
        backplane: Backplane,
        history_of: Callable[[str], History | None] | None,
        rate: float | None,
    ) -> None:
        self.hub = hub
        self.backplane = backplane
        self.delivered = 0
        self.fan_out_s = Histogram(_FAN_OUT_BOUNDS_S)
        self.rate_limited = 0
        self.clock_ms = hub.clock_ms
        self.monotonic = None
        self._sinks = hub.sinks
        self._history_of = history_of
        self._is_alone = False
        self._rate_cost_s = 1 / rate if rate else 0.0
        self._rate_span_s = max(1.0, self._rate_cost_s) + _ROUNDING_S
        self._full_at = {}
        self._prune_at = _RATES_KEPT

    def begin(self, monotonic: Callable[[], float], is_alone: bool) -> None:
        """The backplane has started. `is_alone`: it has nobody to tell what is not kept."""
        self.monotonic = monotonic
        self._is_alone = is_alone

    def end(self) -> None:
        """The backplane is about to end, and may refuse what comes now."""
        self._is_alone = False

    def take_from_rate(self, channel: str) -> bool:
        """Takes one message from the bucket of the channel; False if it has none."""
        cost_s = self._rate_cost_s
        if cost_s == 0 or self.monotonic is None:
            return True
        now = self.monotonic()
        full_at = self._full_at.get(channel, now)
        if full_at < now:
            full_at = now
        full_at += cost_s
        if full_at - now > self._rate_span_s:
            self.rate_limited += 1
            return False
        self._full_at[channel] = full_at
        if len(self._full_at) > self._prune_at:
            self._full_at = {name: time for name, time in self._full_at.items() if time > now}
            self._prune_at = max(_RATES_KEPT, 2 * len(self._full_at))
        return True

    def publish(self, channel: str, json: bytes, key: str | None) -> Published | Awaitable[Published]:
        """Publishes a `publish_json`, through the backplane. Raises Unavailable or OutcomeUnknown, now or when awaited.

        Where there are no other nodes, and nothing to keep, the backplane would only hand it back: it is not asked.
        """
        history = None if self._history_of is None else self._history_of(channel)
        if history is not None or key is not None or not self._is_alone:
            return self.backplane.publish(channel, publication_payload(json), history=history, key=key)
        self.delivered += 1
        sinks = self._sinks.get(channel)
        if sinks is not None:
            begun = perf_counter() if self.delivered % _MEASURED_EACH == 0 else 0.0
            others = fan_out(sinks, Frame.text(json))
            if others:
                self.hub.deliver_to(others, publish_message(channel, json))
            if begun:
                self.fan_out_s.add(perf_counter() - begun)
        return NOT_KEPT

    def send(self, channel: str, message: Message, skip: object) -> None:
        """Sends what has just been counted in `delivered`; `skip` as `ChannelHub.deliver` has it."""
        begun = perf_counter() if self.delivered % _MEASURED_EACH == 0 else 0.0
        self.hub.deliver(channel, message, skip)
        if begun:
            self.fan_out_s.add(perf_counter() - begun)


class Publisher:
    """Gives what a client publishes to `outlet`. The subclass has the methods that end in an ellipsis here.

    `member` is who the client is; None until it has logged in. `peer` is its connection.
    """

    __slots__ = ("_outlet", "_realtime", "member", "peer")

    _outlet: Outlet
    _realtime: Any
    member: Any
    peer: Any

    def __init__(self, realtime: Any, peer: Any, outlet: Outlet) -> None:
        self._realtime = realtime
        self._outlet = outlet
        self.member = None
        self.peer = peer

    def handle(self, envelope: Envelope) -> Any:
        """Does what the client asks for: at once (None), or in a coroutine; UNHANDLED if it is not for a session."""
        if self.member is None or envelope.type != "publish":
            return self._operate(envelope)
        channel = envelope.channel
        if channel is None or channel.startswith("user:") or self._realtime.authorize is not None:
            return self._ask_and_publish(envelope)
        return self._publish(envelope, channel)

    def _publish(self, envelope: Envelope, channel: str) -> Any:
        """Publishes what the member may publish; what is left to await, as `handle`."""
        outlet = self._outlet
        data = envelope.data
        if data is UNSET:
            data = envelope.payload
            if data is UNSET:
                self._refuse(envelope, "bad_request", "publish needs data; it may be null")
                return None
        key = envelope.key
        if key is not None:
            key = self._own_key(envelope, key)
            if key is None:
                return None
        if channel not in outlet._sinks and not self._is_name(envelope, channel):
            return None
        if not outlet.take_from_rate(channel):
            self._too_many(envelope)
            return None
        ts = outlet.clock_ms()
        try:
            published = outlet.publish(channel, write(NewPublication(channel, data, ts, self.member.id)), key)
        except BaseException as error:
            self._publish_failed(envelope, error)
            return None
        if published is NOT_KEPT and envelope.id is None:
            return None
        return self._published(envelope, ts, published)

    def _operate(self, envelope: Envelope) -> Any: ...
    def _ask_and_publish(self, envelope: Envelope) -> Any: ...
    def _refuse(self, envelope: Envelope, code: Any, message: str) -> None: ...
    def _own_key(self, envelope: Envelope, key: str) -> str | None: ...
    def _is_name(self, envelope: Envelope, channel: str) -> Any: ...
    def _too_many(self, envelope: Envelope) -> None: ...
    def _publish_failed(self, envelope: Envelope, error: BaseException) -> None: ...
    def _published(self, envelope: Envelope, ts: int, published: Any) -> Any: ...

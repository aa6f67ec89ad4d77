"""Session: one client of a Realtime, whatever its transport: what it may ask for, and what it gets.

The transport decodes envelopes and gives them to `handle`, one after the other: what `handle` leaves to await is
awaited before the next. An envelope with an id gets exactly one ``reply`` or ``error``; one that fails always gets an
``error``. What all of them mean is in docs/protocol.md.

Operations are generators that yield what they have to wait for. Mostly that is nothing: `authorize` is a plain function
and the backplane in memory; then an operation is done when `handle` returns, without a coroutine and a task. Publishing
where everybody may is the hot path, and not even a generator. The code of the application (`authorize`, a token's
`member`) is only ever awaited in the task of the transport. What a member may do is for `permissions` to say.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import msgspec

from street_fast.auth import Member, TokenRefused
from street_fast.backplanes import OutcomeUnknown, Position, Published, Unavailable
from street_fast.errors import CloseCode, LimitExceeded
from street_fast.messages import (
    UNSET,
    Envelope,
    ErrorCode,
    MalformedMessage,
    Message,
    decode_data,
    error_message,
    publication_json,
    publish_reply,
)
from street_fast.permissions import Grants, ask, judge
from street_fast.publishing import Publisher
from street_fast.recovery import CatchUp, Recovery
from street_fast.street_socket import STOPPING, UNHANDLED

if TYPE_CHECKING:
    from street_fast._core import Timer
    from street_fast.auth import Grant
    from street_fast.backplanes import Page, Publication
    from street_fast.hub import Peer
    from street_fast.realtime import Realtime

__all__ = ["Guest", "Session", "SessionPeer", "some_of"]

logger = logging.getLogger("street_fast")

T = TypeVar("T")
Steps: TypeAlias = Generator[Awaitable[Any], Any, T]
"""What an operation still has to do: it yields what is to be awaited, and is sent the result."""

Left: TypeAlias = Coroutine[Any, Any, object] | None


if TYPE_CHECKING:

    class SessionPeer(Peer, Protocol):
        """What a session needs of a connection: a StreetSocket, or an event stream.

        Its `sink` has ``bytes_buffered``: how much is on its way to the client.
        """

        @property
        def sink(self) -> Any: ...

        def close(self, code: int = CloseCode.NORMAL, reason: str = "") -> None:
            """Ends the connection, and tells the client why."""

        async def drain(self) -> None:
            """Waits until at most ``Limits.write_soft_bytes`` are unsent. Raises ConnectionClosed if it ends before."""

        def note_abuse(self) -> None:
            """An event was refused for the rate of a channel; see `StreetSocket.note_abuse`."""


class _Refused(Exception):
    """Ends an operation with an ``error``."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(message)


class _TypingData(msgspec.Struct):
    typing: bool


class _AuthData(msgspec.Struct):
    token: str


class _HistoryData(msgspec.Struct):
    limit: int = 50
    since: str | None = None


class Guest(Member):
    """Somebody who has not logged in, and need not. The id is the connection's own."""

    __slots__ = ()


class Session(Publisher):
    """One client. `member` is who it is; None until it has logged in. `peer` is its connection.

    Made by `Realtime.open`. Not to be used from other threads.
    """

    __slots__ = ("_grants", "_recovery", "_timer")

    _realtime: Realtime
    member: Member | None
    peer: SessionPeer

    def __init__(self, realtime: Realtime, peer: SessionPeer) -> None:
        super().__init__(realtime, peer, realtime.exchange)
        self._timer: Timer | None = None  # until it must have logged in, or brought a new token
        self._grants: Grants | None = None
        self._recovery: Recovery | None = None

    @property
    def subscriptions(self) -> list[str]:
        """The names of the channels that the client is in."""
        return self._realtime.hub.channels_of(self.peer)

    def __repr__(self) -> str:
        return f"<Session {'nobody' if self.member is None else self.member.id!r} on {self.peer!r}>"

    # --- for the transport ---

    def _operate(self, envelope: Envelope) -> Any:
        if self.member is None and envelope.type not in _BEFORE_LOGIN:
            self._refuse(envelope, "unauthorized", 'log in first: {"type":"auth","data":{"token":...}}')
            return None
        operation = _OPERATIONS.get(envelope.type)
        if operation is not None:
            return operation(self, envelope)
        if self._realtime.has_handlers:
            return UNHANDLED
        self._refuse(envelope, "bad_request", "there is no message of this type")
        return None

    def subscribe(self, channel: str, *, since: str | None = None, token: str | None = None) -> Left:
        """As if the client had sent ``subscribe``; the reply is an event ``subscribed`` of the channel, without an id.

        For transports whose clients name channels in the request. What it leaves to await may wait until the client
        has read (`SessionPeer.drain`).
        """
        envelope = Envelope("subscribed", channel, since=since, token=token)
        return self._run(envelope, self._subscribing(envelope))

    def await_login(self) -> None:
        """The client must log in, in time."""
        self._timer = self._realtime.timers.schedule(self._realtime.limits.login_timeout_s, self._on_login_due)

    def end(self, _: object = None) -> None:
        """The connection has ended. The hub sees to the channels."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._grants is not None:
            for channel in self._grants.channels():
                self._drop_grant(channel)
        if self._recovery is not None:
            for channel in list(self._recovery.catch_ups):
                self._end_catch_up(channel)
        self._realtime.ended(self)

    def log_in(self, member: Member) -> None:
        """The client is `member` from now on. Raises ValueError for an id or info that channels cannot take."""
        realtime = self._realtime
        realtime.hub.check_member(member.id, member.info)
        if self.member is None or member.id != self.member.id:
            realtime.forget(self)
            self.member = member
            realtime.remember(self)
        self.member = member
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if member.expires_at is not None:
            self._timer = self._schedule(member.expires_at, self._on_token_due)

    def take_out(self, channel: str, code: ErrorCode, message: str) -> bool:
        """Ends a subscription and tells the client; False if there is none."""
        if not self._leave(channel):
            return False
        self.peer.deliver(Message("unsubscribed", channel, {"code": code, "message": message}))
        return True

    # --- publish ---

    def _ask_and_publish(self, envelope: Envelope) -> Left:
        channel = envelope.channel
        if channel is None:
            self._refuse(envelope, "bad_request", "channel is missing")
            return None
        if not self._is_name(envelope, channel):
            return None
        answer = self._ask(channel, "publish")
        if answer is True:
            left: Left = self._publish(envelope, channel)
            return left
        return self._run(envelope, self._publishing(envelope, channel, answer))

    def _publishing(self, envelope: Envelope, channel: str, answer: object) -> Steps[None]:
        allowed = yield from judge(answer, channel, "publish", self.peer)
        if not allowed:
            raise self._forbidden("publish")
        left = self._publish(envelope, channel)
        if left is not None:
            yield left

    def _own_key(self, envelope: Envelope, key: str) -> str | None:
        """The key among those of all members; None for what is no key, which is answered."""
        member = self.member
        assert member is not None
        most = self._realtime.limits.publish_key_bytes
        if not 0 < len(key.encode()) <= most:
            self._refuse(envelope, "bad_request", f"key: 1 to {most} bytes")
            return None
        # Nobody can use up the keys of another: no id has a line end in it. A guest comes back as another one.
        return f"{_ALL_GUESTS if isinstance(member, Guest) else member.id}\n{key}"

    def _too_many(self, envelope: Envelope) -> None:
        self._refuse(envelope, "rate_limited", "too many messages to this channel per second")
        self.peer.note_abuse()

    def _published(self, envelope: Envelope, ts: int, published: Published | Awaitable[Published]) -> Left:
        if type(published) is Published:
            self._reply_published(envelope, ts, published)
            return None
        assert inspect.isawaitable(published)
        return self._publish_later(envelope, ts, published)

    async def _publish_later(self, envelope: Envelope, ts: int, published: Awaitable[Published]) -> None:
        try:
            result = await published
        except STOPPING:
            raise
        except BaseException as error:
            if self.peer.closed:
                self._realtime.exchange.note_failed(error)
                raise
            self._publish_failed(envelope, error)
            return
        self._reply_published(envelope, ts, result)

    def _publish_failed(self, envelope: Envelope, error: BaseException) -> None:
        if isinstance(error, STOPPING):
            raise error
        self._realtime.exchange.note_failed(error)
        if isinstance(error, Unavailable):
            self._refuse(envelope, "unavailable", "it was not published; try again later")
            return
        if not isinstance(error, OutcomeUnknown):
            logger.error("publishing to channel %r failed", envelope.channel, exc_info=error)
        self._refuse(envelope, "unknown", "it may have been published or not; to try again use the same key")

    def _reply_published(self, envelope: Envelope, ts: int, published: Published) -> None:
        if envelope.id is not None:
            assert envelope.channel is not None
            position = None if published.position is None else str(published.position)
            self.peer.deliver(publish_reply(envelope.channel, envelope.id, ts, position, published.duplicate))

    # --- subscribe and unsubscribe ---

    def _subscribe(self, envelope: Envelope) -> Left:
        return self._run(envelope, self._subscribing(envelope))

    def _subscribing(self, envelope: Envelope) -> Steps[None]:
        realtime, peer = self._realtime, self.peer
        channel = self._channel_of(envelope)
        since = self._position("since", envelope.since)
        yield from self._catch_breath()
        if envelope.token is not None and realtime.auth is not None:
            yield from self._take_grant(channel, envelope.token)
        try:
            yield from self._may(channel, "subscribe")
        except _Refused:
            self._leave(channel)  # it was allowed before, and is not any more
            raise
        sees_presence = yield from self._is_allowed(channel, "presence")
        member = self.member
        if member is None or peer.closed:
            return
        was_joined = realtime.hub.is_joined(channel, member.id, peer)
        place = self._place_in(channel) if was_joined else None
        try:
            realtime.hub.join(channel, member.id, peer, member.info, presence=sees_presence)
        except LimitExceeded:
            self._drop_grant(channel)
            most = realtime.hub.limits.channels_per_connection
            raise _Refused("limit_exceeded", f"a connection may be in {most} channels") from None
        try:
            data, position, catch_up = yield from self._joined(channel, since, place, envelope.since is not None)
        except BaseException:
            if place is None:
                self._end_catch_up(channel)
            elif self._recovery is not None and channel in self._recovery.catch_ups:
                self._recovery.catch_ups[channel].go_back(place)  # as if it had not asked
            if not was_joined:
                self._leave(channel)
            raise
        if not realtime.hub.is_joined(channel, member.id, peer):
            raise _Refused("unavailable", "the subscription was ended while it began")
        if sees_presence:
            data = {**realtime.hub.roll(channel), **data}
            typing = realtime.hub.typing_members(channel)
            if typing and len(typing) <= realtime.hub.limits.presence_members:
                data["typing"] = typing
        self._answer(envelope, data, position)
        if catch_up is not None:
            catch_up.answered = True
            if not catch_up.complete:
                self._recover()
            elif not catch_up.live_may_lag:
                self._end_catch_up(channel)

    def _joined(
        self, channel: str, since: Position | None, place: Position | None, asked: bool
    ) -> Steps[tuple[dict[str, Any], str | None, CatchUp | None]]:
        """What the reply says of the history, the position of the client after it, and what follows it."""
        exchange = self._realtime.exchange
        catch_up = None
        if exchange.history_of(channel) is not None:
            if since is None and place is not None:  # it goes on
                return {"position": str(place)}, str(place), None
            self._end_catch_up(channel)
            catch_up = self._begin_catch_up(channel, since)
        pending = exchange.interest_in(channel)
        if pending is not None:
            yield pending
        if catch_up is None:
            return {"recovered": False, "messages": []} if asked else {}, None, None
        start = catch_up.begin_read()
        answer = exchange.read_top(channel) if since is None else exchange.read_missed(channel, start)
        catch_up.live_may_lag = inspect.isawaitable(answer)
        page: Page = yield from self._read(answer)
        recovered = catch_up.take(page) is None
        missed = catch_up.missed_within(self._realtime.limits.recovery_reply_bytes) if recovered else []
        position = str(catch_up.position)
        if since is None:
            return {"position": position}, position, catch_up
        self._realtime.note_recovery(recovered)
        return {"position": position, "recovered": recovered, "messages": _array(missed)}, position, catch_up

    def _read(self, page: Page | Awaitable[Page]) -> Steps[Page]:
        return (yield page) if inspect.isawaitable(page) else page

    def _unsubscribe(self, envelope: Envelope) -> None:
        channel = envelope.channel
        if channel is None:
            self._refuse(envelope, "bad_request", "unsubscribe needs a channel")
            return
        self._leave(channel)
        self._answer(envelope, {})

    def _leave(self, channel: str) -> bool:
        """Leaves the channel; False if the client was not in it."""
        self._end_catch_up(channel)
        self._drop_grant(channel)
        hub, member = self._realtime.hub, self.member
        if member is None or not hub.is_joined(channel, member.id, self.peer):
            return False
        hub.leave(channel, member.id, self.peer)
        return True

    # --- recovery ---

    def _place_in(self, channel: str) -> Position | None:
        """Where the client is in a channel that it is in, if there is a history and that is known."""
        if self._recovery is not None and channel in self._recovery.catch_ups:
            return self._recovery.catch_ups[channel].position
        return self._realtime.exchange.place_of(channel)

    def _begin_catch_up(self, channel: str, since: Position | None) -> CatchUp:
        """From now on, what is published to the channel is held."""
        limits, exchange = self._realtime.limits, self._realtime.exchange
        if self._recovery is None:
            self._recovery = Recovery(
                self.peer, exchange.read_missed, limits.recovery_reply_bytes, limits.write_hard_bytes
            )
        recovery, most_held = self._recovery, limits.recovery_messages
        catch_up = CatchUp(channel, since or _NOWHERE, most_held, recovery.room, self._end_catch_up, self._recover)
        recovery.catch_ups[channel] = catch_up
        exchange.hold(channel, self.peer.sink, catch_up)
        return catch_up

    def _recover(self) -> None:
        if self._recovery is not None:
            self._recovery.start(self._realtime.exchange.spawn)

    def _end_catch_up(self, channel: str) -> None:
        """From now on, what is published to the channel is sent at once."""
        recovery = self._recovery
        catch_up = None if recovery is None else recovery.catch_ups.pop(channel, None)
        if recovery is not None and catch_up is not None:
            catch_up.end()
            self._realtime.exchange.release(channel, self.peer.sink)
            if not recovery.catch_ups:
                self._recovery = None

    # --- the other operations ---

    def _typing(self, envelope: Envelope) -> Left:
        return self._run(envelope, self._set_typing(envelope))

    def _set_typing(self, envelope: Envelope) -> Steps[None]:
        channel = self._channel_of(envelope)
        typing = decode_data(envelope.raw_data, _TypingData).typing
        hub = self._realtime.hub
        if self.member is None or not hub.is_joined(channel, self.member.id, self.peer):
            raise _Refused("not_subscribed", "subscribe to the channel first")
        if typing:  # who may not publish does not type; to have stopped is always true
            yield from self._may(channel, "publish")
            if not hub.is_typing(channel, self.member.id) and not self._outlet.take_from_rate(f"{channel}\n"):
                self._too_much_typing(envelope)
                return
        if hub.is_joined(channel, self.member.id, self.peer):
            hub.set_typing(channel, self.member.id, typing, self.peer)
        self._answer(envelope, {})

    def _too_much_typing(self, envelope: Envelope) -> None:
        """All clients together begin to type as often as they may publish: each time goes to everybody, too.

        Who does not ask for an answer is not told, as nobody is of a ``typing`` event that is dropped.
        """
        self.peer.note_abuse()
        if envelope.id is not None:
            self._refuse(envelope, "rate_limited", "too much typing in this channel")

    def _presence(self, envelope: Envelope) -> Left:
        return self._run(envelope, self._tell_presence(envelope))

    def _tell_presence(self, envelope: Envelope) -> Steps[None]:
        channel = self._channel_of(envelope)
        yield from self._catch_breath()
        yield from self._may(channel, "presence")
        exchange = self._realtime.exchange
        followed = exchange.is_followed(channel)
        self._answer(envelope, exchange.hub.roll(channel) if followed else (yield exchange.roll(channel)))

    def _history(self, envelope: Envelope) -> Left:
        return self._run(envelope, self._tell_history(envelope))

    def _tell_history(self, envelope: Envelope) -> Steps[None]:
        realtime = self._realtime
        channel = self._channel_of(envelope)
        wanted = _HistoryData() if envelope.raw_data is UNSET else decode_data(envelope.raw_data, _HistoryData)
        most = realtime.limits.recovery_messages
        if not 1 <= wanted.limit <= most:
            raise _Refused("bad_request", f"limit: must be from 1 to {most}")
        since = self._position("data.since", wanted.since)
        yield from self._catch_breath()
        yield from self._may(channel, "history")
        history = realtime.exchange.history_of(channel)
        if history is None:
            raise _Refused("bad_request", "the channel keeps no history")
        read = realtime.exchange.backplane.read
        page: Page = yield from self._read(read(channel, history, since=since, limit=wanted.limit))
        messages = some_of(page.publications, realtime.limits.write_hard_bytes // 4, newest=since is None)
        data: dict[str, Any] = {"messages": _array(messages), "position": str(page.top)}
        if since is not None:
            data["recovered"] = page.recovered
        self._answer(envelope, data)

    def _auth(self, envelope: Envelope) -> Left:
        return self._run(envelope, self._authenticate(envelope))

    def _authenticate(self, envelope: Envelope) -> Steps[None]:
        auth = self._realtime.auth
        if auth is None:
            raise _Refused("bad_request", "this server takes no tokens")
        token = decode_data(envelope.raw_data, _AuthData).token
        try:
            answer = auth.verify(token)
            member: Member = (yield answer) if inspect.isawaitable(answer) else answer
        except TokenRefused as error:
            if error.temporary:
                raise _Refused("unavailable", str(error)) from None
            self._refuse(envelope, "unauthorized", str(error))
            self.peer.close(CloseCode.UNAUTHORIZED, _short(str(error)))
            return
        if self.peer.closed:
            return
        first = self.member is None
        if self.member is not None and member.id != self.member.id:
            if not isinstance(self.member, Guest):
                raise _Refused("bad_request", "the token is of another member; open another connection for it")
            if self.subscriptions:
                raise _Refused("bad_request", "log in before you subscribe, or open another connection for it")
        try:
            self.log_in(member)
        except ValueError as error:
            logger.error("a member cannot be let in: %s", error)
            raise _Refused("forbidden", "this member cannot be let in") from None
        self._realtime.logged_in(self, first)
        self._answer(envelope, self.who())

    def _ping(self, envelope: Envelope) -> None:
        if envelope.id is None:
            self.peer.deliver(_PONG)
        else:
            self._answer(envelope, {"ts": self._realtime.clock_ms()})

    def _pong(self, envelope: Envelope) -> None:
        """The heartbeat has seen that bytes came."""

    # --- what is allowed ---

    def _may(self, channel: str, action: str) -> Steps[None]:
        """Ends the operation unless the member may do that."""
        allowed = yield from self._is_allowed(channel, action)
        if not allowed:
            raise self._forbidden(action)

    def _forbidden(self, action: str) -> _Refused:
        self._realtime.forbidden += 1
        return _Refused("forbidden", f"{action} is not allowed in this channel")

    def _is_allowed(self, channel: str, action: str) -> Steps[bool]:
        allowed = yield from judge(self._ask(channel, action), channel, action, self.peer)
        return allowed

    def _ask(self, channel: str, action: str) -> object:
        assert self.member is not None
        return ask(self._realtime.authorize, self._grants, self.member, channel, action)

    def _take_grant(self, channel: str, token: str) -> Steps[None]:
        """Notes what a token allows in the channel, in place of what one allowed before."""
        realtime, member = self._realtime, self.member
        assert realtime.auth is not None
        assert member is not None
        try:
            answer = realtime.auth.grant(token, member, channel)
            grant: Grant = (yield answer) if inspect.isawaitable(answer) else answer
        except TokenRefused as error:
            raise _Refused("unavailable" if error.temporary else "unauthorized", str(error)) from None
        if self.peer.closed:
            return
        if self._grants is None:
            self._grants = Grants(self._schedule, self._is_over, self._on_grant_over)
        self._grants.put(channel, grant)

    def _drop_grant(self, channel: str) -> None:
        if self._grants is not None:
            self._grants.drop(channel)
            if not self._grants:
                self._grants = None

    # --- time ---

    def _is_over(self, expires_at: float) -> bool:
        """Whether a token has ended, and the time to bring a new one too."""
        return expires_at + self._realtime.limits.token_grace_s <= self._realtime.clock_ms() / 1_000

    def _schedule(self, expires_at: float, callback: Callable[[Any], object], arg: Any = None) -> Timer:
        """Has a look when a token should be over by the time of day, which may be set meanwhile; at least daily."""
        left = expires_at + self._realtime.limits.token_grace_s - self._realtime.clock_ms() / 1_000
        return self._realtime.timers.schedule(min(max(left, 0.0), _DAY_S), callback, arg)

    def _on_login_due(self, _: object) -> None:
        self._timer = None
        self.peer.close(CloseCode.UNAUTHORIZED, "no token came in time")

    def _on_token_due(self, _: object) -> None:
        self._timer = None
        member = self.member
        if member is None or member.expires_at is None:
            return
        if self._is_over(member.expires_at):
            self.peer.close(CloseCode.UNAUTHORIZED, "the token has expired")
        else:
            self._timer = self._schedule(member.expires_at, self._on_token_due)

    def _on_grant_over(self, channel: str) -> None:
        self.take_out(channel, "unauthorized", "the token for this channel has expired")

    # --- answers ---

    def who(self) -> dict[str, Any]:
        """``{"member"?, "expiresAt"?}``, as ``welcome`` and the reply to ``auth`` tell it."""
        member = self.member
        if member is None:
            return {}
        told: dict[str, Any] = {"id": member.id}
        if member.info is not None:
            told["info"] = member.info
        if member.expires_at is None:
            return {"member": told}
        return {"member": told, "expiresAt": int(min(max(member.expires_at, 0), _LAST_S) * 1_000)}

    def _answer(self, envelope: Envelope, data: dict[str, Any], position: str | None = None) -> None:
        """The reply, if one is wanted."""
        if envelope.type == "subscribed":
            message = Message("subscribed", envelope.channel, data)
        elif envelope.id is not None:
            message = Message("reply", envelope.channel, data, None, envelope.id)
        else:
            return
        message.position = position
        self.peer.deliver(message)

    def _refuse(self, envelope: Envelope, code: ErrorCode, message: str) -> None:
        self.peer.deliver(error_message(code, message, id=envelope.id, channel=envelope.channel))

    def _channel_of(self, envelope: Envelope) -> str:
        """The channel that a message is about. Ends the operation if that is no name."""
        channel = envelope.channel
        if channel is None:
            raise _Refused("bad_request", "channel is missing")
        self._check_name(channel)
        return channel

    def _check_name(self, channel: str) -> None:
        try:
            self._realtime.hub.check_name("channel", channel)
        except ValueError as error:
            raise _Refused("bad_request", str(error)) from None

    def _is_name(self, envelope: Envelope, channel: str) -> bool:
        """The same, outside of an operation."""
        if self._realtime.hub.has_channel(channel):
            return True
        try:
            self._check_name(channel)
        except _Refused as refused:
            self._refuse(envelope, refused.code, refused.message)
            return False
        return True

    def _position(self, what: str, text: str | None) -> Position | None:
        try:
            return None if text is None else Position.parse(text)
        except ValueError as error:
            raise _Refused("bad_request", f"{what}: {error}") from None

    def _catch_breath(self) -> Steps[None]:
        """Before much is sent: waits until the client has read, so that it is not evicted for what it asked for."""
        if self.peer.sink.bytes_buffered > self._realtime.limits.write_soft_bytes:
            yield self.peer.drain()

    # --- running an operation ---

    def _run(self, envelope: Envelope, steps: Steps[None]) -> Left:
        """Goes through an operation until it has to wait, and returns what is left to await."""
        try:
            awaitable = next(steps)
        except StopIteration:
            return None
        except STOPPING:
            raise
        except BaseException as error:
            self._failed(envelope, error)
            return None
        return self._go_on(envelope, steps, awaitable)

    async def _go_on(self, envelope: Envelope, steps: Steps[None], awaitable: Awaitable[Any]) -> None:
        try:
            while True:
                try:
                    result = await awaitable
                except BaseException as error:
                    awaitable = steps.throw(error)
                else:
                    awaitable = steps.send(result)
        except StopIteration:
            return
        except STOPPING:
            raise
        except BaseException as error:
            if not self.peer.closed:
                self._failed(envelope, error)
            elif isinstance(error, asyncio.CancelledError):
                raise

    def _failed(self, envelope: Envelope, error: BaseException) -> None:
        if isinstance(error, _Refused):
            self._refuse(envelope, error.code, error.message)
        elif isinstance(error, MalformedMessage):
            self._refuse(envelope, "bad_request", str(error))
        else:
            if not isinstance(error, Unavailable):
                logger.error("%s of %r failed", envelope.type, self.peer, exc_info=error)
            self._refuse(envelope, "unavailable", "it cannot be done at the moment; try again later")


def _array(items: list[bytes]) -> msgspec.Raw:
    """A JSON array."""
    return msgspec.Raw(b"[%b]" % b",".join(items))


def some_of(publications: list[Publication], most_bytes: int, *, newest: bool) -> list[bytes]:
    """The oldest, or the `newest`, of the messages that `most_bytes` hold; at least one."""
    found: list[bytes] = []
    for payload, position, _ in reversed(publications) if newest else publications:
        most_bytes -= len(payload)
        if most_bytes < 0 and found:
            break
        found.append(publication_json(payload, None if position is None else str(position)))
    return found[::-1] if newest else found


def _short(reason: str) -> str:
    """A close reason has at most 123 bytes (RFC 6455 section 5.5)."""
    return reason.encode()[:123].decode(errors="ignore")


_ALL_GUESTS = "\0"
_DAY_S = 86_400.0
_LAST_S = 2**53 // 1_000
"""The last second that JavaScript can tell from the next in milliseconds."""
_NOWHERE = Position.start_of("")
_PONG = Message("pong")
_BEFORE_LOGIN = frozenset(("auth", "ping", "pong"))
_OPERATIONS: dict[str, Callable[[Session, Envelope], Left]] = {
    "subscribe": Session._subscribe,
    "unsubscribe": Session._unsubscribe,
    "typing": Session._typing,
    "presence": Session._presence,
    "history": Session._history,
    "auth": Session._auth,
    "ping": Session._ping,
    "pong": Session._pong,
}

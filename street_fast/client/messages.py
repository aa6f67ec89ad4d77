"""What the client reads and what it gives to the application: the wire of docs/protocol.md as msgspec Structs.

`Incoming` is every message of the server, its ``data`` undecoded. The others are what the application sees; they are
frozen, and `RealtimeError` is how the server says no.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec

from street_fast.errors import StreetError

__all__ = [
    "Gap",
    "HistoryPage",
    "Incoming",
    "PageData",
    "Presence",
    "PresenceData",
    "Present",
    "Published",
    "RealtimeError",
    "Received",
    "Refusal",
    "Session",
    "Welcome",
    "decode_incoming",
]

T = TypeVar("T")


class RealtimeError(StreetError):
    """What was asked for was not done. `code` is one of those of the wire, and `message` a sentence for people.

    ``forbidden``, ``unauthorized``, ``rate_limited``, ``not_subscribed``, ``bad_request``: the server said no.
    ``limit_exceeded``: more than the server takes, or more requests than the client's queue. ``unavailable``: it was
    not done. ``unknown``: no answer came, so a publish may have gone through or not; to try again without doubling it,
    use the same key.
    """

    def __init__(self, code: str, message: str) -> None:
        self.code = code
        self.message = message
        super().__init__(f"{message} ({code})")


# --- for the application ---


class Received(msgspec.Struct, Generic[T], frozen=True):
    """A message of a channel, or another event of the server.

    `data` is of the type that was asked for. `ts` is when the server took it, in milliseconds since the epoch (0 if it
    did not say), `from_member` the id of who published (None: the server), `position` where it stands in the history
    (None: the channel keeps none), `channel` empty for an event of no channel, `type` "message" or the event's.
    """

    data: T
    channel: str = ""
    ts: int = 0
    from_member: str | None = None
    position: str | None = None
    type: str = "message"


class Gap(msgspec.Struct, frozen=True):
    """Messages of `channel` are missing, or may be.

    What comes next comes after `position`, if that is known. `missed` is how many; None if that cannot be known: the
    history was lost, or the channel keeps none and the connection was away.
    """

    channel: str
    position: str | None = None
    missed: int | None = None


class Published(msgspec.Struct, frozen=True):
    """A publish that was accepted; `position` where the channel keeps history.

    `duplicate`: a publish with that key had got through before, and this is its answer.
    """

    ts: int
    position: str | None = None
    duplicate: bool = False


class Present(msgspec.Struct, frozen=True, rename={"id": "memberId"}):
    """A member that is subscribed to a channel, with what it tells about itself."""

    id: str
    info: dict[str, Any] | None = None


class Presence(msgspec.Struct, frozen=True):
    """Who is in a channel. `members` is None in a channel too big for a list; `count` is always there."""

    count: int
    members: tuple[Present, ...] | None = None


class HistoryPage(msgspec.Struct, Generic[T], frozen=True):
    """A piece of the history of a channel, oldest message first.

    `position` is that of the newest message there is. `recovered` says, if `since` was given, whether nothing is
    missing between it and the first message.
    """

    messages: tuple[Received[T], ...]
    position: str | None = None
    recovered: bool | None = None


# --- from the server ---


class Incoming(msgspec.Struct, gc=False, rename={"sender": "from"}):
    """One message of the server. Fields that are not named here are ignored."""

    type: str
    channel: str = ""
    data: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    id: int | str | None = None
    ts: int = 0
    sender: str | None = None
    position: str | None = None


class Session(msgspec.Struct):
    """Who one is for the server, as a welcome says and the reply to `auth`."""

    class Member(msgspec.Struct):
        id: str
        info: dict[str, Any] | None = None

    member: Member | None = None
    expires_at: float | None = msgspec.field(default=None, name="expiresAt")


class Welcome(Session, rename="camel"):
    """The first message."""

    class Limits(msgspec.Struct, rename="camel"):
        message_bytes: int | None = None
        channels: int = 0
        messages_per_second: float | None = None
        messages_burst: float = 1

    id: str = ""
    heartbeat_ms: float | None = None
    limits: Limits = msgspec.field(default_factory=Limits)


class Refusal(msgspec.Struct):
    """The data of ``error`` and ``unsubscribed``."""

    code: str = "unknown"
    message: str = "the server gave no reason"


class PresenceData(msgspec.Struct, rename="camel"):
    """The reply to ``presence``."""

    members: tuple[Present, ...] | None = None
    member_count: int = 0


class PageData(msgspec.Struct):
    """The reply to ``history``, and what counts of the reply to ``subscribe``."""

    messages: list[Incoming] = []
    position: str | None = None
    recovered: bool | None = None


decode_incoming = msgspec.json.Decoder(Incoming).decode

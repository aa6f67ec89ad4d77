"""Every limit of the server in one frozen object: its value, its unit, its reason, and who else uses it.

A name ends in its unit: ``_s`` seconds, ``_bytes`` bytes, ``_per_second`` a rate; anything else is a count.
``None``, where the annotation allows it, switches a limit off, if nothing else is said.
Times end at a million seconds and all else at 2^31 - 1:
beyond that they are mistakes, and what is made of them (an option of a socket, an int in C) would overflow.
"""

from __future__ import annotations

import dataclasses

from street_fast.errors import ConfigurationError

__all__ = ["DEFAULT_LIMITS", "MOST_SECONDS", "Limits", "checked_limits"]

MOST_SECONDS = 1_000_000
"""The longest time that a limit may be: eleven days."""

_MOST = 2**31 - 1


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """All limits of a server. Raises ConfigurationError for a value that makes no sense."""

    # --- HTTP and the opening handshake ---
    handshake_timeout_s: float = 10.0
    """From accept to the answer, TLS and authenticate() included; bytes do not extend it. websockets, uWS: 10."""
    unfinished_handshakes: int = 1_000
    """Above it, handshakes older than a second are dropped, oldest first, so that new ones get through."""
    request_head_bytes: int = 16_384
    """Request line and headers together: room for a cookie and a JWT. uWS 4,096; h11 16 KiB."""
    request_line_bytes: int = 8_192
    """One header line, or the request target. websockets 8,192; aiohttp 8,190."""
    request_headers: int = 100
    """uWS 100; websockets and aiohttp 128."""
    request_body_bytes: int = 1_048_576
    """Body of a POST. aiohttp 1 MiB."""
    keep_alive_timeout_s: float = 15.0
    """An HTTP connection without a request. uvicorn 5; nginx 75."""

    # --- messages in ---
    message_bytes: int = 524_288
    """One message, refused on the declared length. StreetJS 512 KiB; websockets 1 MiB; uWS 16 KiB."""
    event_bytes: int = 65_536
    """One typed event of a StreetSocket. Centrifugo 64 KiB."""
    json_depth: int = 32
    """Nesting of a JSON event."""
    fragments: int = 1_024
    """Frames of one message. aiohttp 1,024; the 131,072 of ws proved too high (ws#2331)."""
    assembly_timeout_s: float = 60.0
    """From the first byte of a message to its last."""
    control_frames_per_second: float = 50.0
    """Sustained pings and pongs of a peer."""
    control_frames_burst: int = 100
    """Pings and pongs at once; keeps Autobahn 2.10 and 2.11 working."""
    messages_per_second: float | None = 20.0
    """Events of one StreetSocket. StreetJS 20."""
    messages_burst: int = 40
    """Events of one StreetSocket at once."""
    channel_messages_per_second: float | None = 200.0
    """What clients publish to one channel of a Realtime, all together. StreetJS 200."""
    bytes_per_second: int | None = 262_144
    """Event bytes of one StreetSocket."""
    rate_grace_s: float = 5.0
    """A StreetSocket above its rate gets errors; one that stays above it this long is closed with 4029."""
    inbox_messages: int = 32
    """Events that wait behind a slow handler before reading pauses. uvicorn 32; websockets 16."""
    malformed_messages: int = 10
    """Events that cannot be decoded, in a row, before the socket is closed with 1008."""

    # --- life of a connection ---
    ping_interval_s: float | None = 25.0
    """A ping goes out after this silence. socket.io and Centrifugo 25; websockets 20."""
    pong_timeout_s: float = 20.0
    """Silence after a ping that ends the connection. socket.io and websockets 20."""
    close_timeout_s: float = 10.0
    """From our close frame to the end, whatever the peer sends. websockets, aiohttp 10; ws 30."""
    abort_timeout_s: float = 2.0
    """The same after a violation or an eviction; and for a client that is refused while it still sends."""

    # --- messages out ---
    write_soft_bytes: int = 65_536
    """Bytes not yet taken: above it drain() waits, droppable messages are dropped. asyncio, uWS 64 KiB."""
    write_hard_bytes: int = 1_048_576
    """Bytes not yet taken that evict a slow consumer (4008). Centrifugo 1 MiB."""
    write_stall_timeout_s: float = 10.0
    """Time without a byte taken that evicts a slow consumer. NATS write deadline 10."""
    outbound_total_bytes: int | None = None
    """Memory that all slow consumers of an event loop together may keep from being freed; above it the largest are
    evicted. None: a quarter of what the process may have (its control group's limit, or the machine's memory)."""

    # --- channels ---
    channel_name_bytes: int = 255
    """Centrifugo 255."""
    channels_per_connection: int = 128
    """Centrifugo 128; Phoenix 100 (after CVE-2026-56811)."""
    presence_info_bytes: int = 1_024
    """What a member tells about itself, as JSON."""
    listeners_per_event: int = 64
    """Handlers of one event on one StreetSocket; more is a leak."""
    presence_members: int = 1_000
    """Members that a channel lists one by one; above it a Realtime tells their number only."""
    presence_interval_s: float = 0.1
    """Least time between two presence events of a channel of a Realtime. Phoenix 1.5."""

    # --- login ---
    login_timeout_s: float = 10.0
    """From the opening to the token, for a client that sends it as its first message. Centrifugo 10."""
    token_bytes: int = 8_192
    """One JWT: what fits into a header line."""
    token_skew_s: float = 30.0
    """How far the clocks of the issuer and of this machine may differ."""
    token_grace_s: float = 20.0
    """From the expiry of a token to the close with 4001: time to bring a new one. Centrifugo 25."""

    # --- history ---
    history_bytes: int = 1_048_576
    """Messages kept for one channel, whatever their number."""
    history_total_bytes: int = 268_435_456
    """Messages kept for all channels of a process; the channel longest without a publish loses its own first."""
    history_channels: int = 100_000
    """Channels with history in one process."""
    recovery_messages: int = 300
    """Missed messages that one read of the history gives. Centrifugo 300."""
    recovery_reply_bytes: int = 16_384
    """Missed messages in the reply to a subscribe; the rest follow as the client reads."""
    publish_key_bytes: int = 64
    """The key that makes a publish idempotent."""
    publish_key_ttl_s: float = 300.0
    """How long a key is known. Centrifugo 5 min; JetStream 2 min."""
    publish_keys: int = 100_000
    """Keys known in one process; the oldest go first."""

    # --- backplane ---
    backplane_timeout_s: float = 5.0
    """From a command to the answer of the broker; then the outcome is unknown, and the connection is made anew."""
    backplane_probe_s: float = 5.0
    """A probe goes through the bus after this silence; the bus is dead when it has not come back after as long again.
    Centrifuge 30."""
    backplane_pending_bytes: int = 67_108_864
    """What may wait to go to the broker, and what may wait to be taken in from it: bytes each. NATS 64 MB."""
    position_check_s: float = 25.0
    """A node compares where it is in each subscribed channel with the history of the broker. Centrifugo 40."""
    position_ttl_s: float = 604_800.0
    """How long a broker remembers where a channel is that nobody publishes to. Centrifugo 30 days."""
    node_beat_s: float = 4.0
    """A node says that it lives. socket.io 5; Centrifuge 3."""
    node_ttl_s: float = 12.0
    """A node that has not said so for this long is dead, and its members have left. socket.io 10; Centrifuge 7."""
    presence_refresh_s: float = 25.0
    """A node writes the members that it has again, and reads those of others. Centrifugo 27."""

    # --- Server-Sent Events ---
    sse_ping_interval_s: float = 15.0
    """A comment on a stream that says nothing; proxies cut at 30 to 60 s. StreetJS 30."""

    # --- shutdown ---
    shutdown_timeout_s: float = 30.0
    """close() to the last connection. Phoenix, Centrifugo 30."""
    shutdown_batch: int = 500
    """Connections told to go at once, so that they do not all come back at once."""
    shutdown_batch_interval_s: float = 0.1
    """Pause between two batches."""
    retry_hint_s: float = 10.0
    """Upper end of the random delay in a close with 1012 or 1013, and of Retry-After with 503."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            optional = "None" in str(field.type)
            if value is None and optional:
                continue
            kinds = (int,) if str(field.type).startswith("int") else (int, float)
            if isinstance(value, bool) or not isinstance(value, kinds):
                kind = "a whole number" if kinds == (int,) else "a number"
                raise ConfigurationError(
                    f"Limits.{field.name}={value!r}: must be {kind}{' or None' if optional else ''}"
                )
            most = MOST_SECONDS if field.name.endswith("_s") else _MOST
            if not 0 < value <= most:
                off = " (None switches it off)" if optional else ""
                raise ConfigurationError(f"Limits.{field.name}={value!r}: must be above 0 and at most {most}{off}")
        for low, high in (
            ("write_soft_bytes", "write_hard_bytes"),
            ("request_line_bytes", "request_head_bytes"),
            ("event_bytes", "message_bytes"),
            ("node_beat_s", "node_ttl_s"),
        ):
            if getattr(self, low) > getattr(self, high):
                raise ConfigurationError(
                    f"Limits.{low}={getattr(self, low)} is above Limits.{high}={getattr(self, high)}; "
                    f"it must be at most that"
                )


DEFAULT_LIMITS = Limits()


def checked_limits(limits: object) -> Limits:
    """What the option `limits` of a constructor stands for: None for the defaults. Raises ConfigurationError."""
    if limits is None:
        return DEFAULT_LIMITS
    if not isinstance(limits, Limits):
        raise ConfigurationError(f"limits={limits!r}: must be a Limits object, or None")
    return limits

"""Exceptions and close codes: what can go wrong, whose fault it is, and what the peer is told.

Two kinds of exception, so that a caller knows whom to blame:

* ``ConfigurationError``, ``LimitExceeded``, ``ListenError`` and ``ConnectionClosed`` are ours: raised to the
  application.
* ``ProtocolError`` and ``HandshakeRefused`` are the peer's: the server answers them and goes on.

Every exception has a stable string in ``code`` for logs, metrics and tests; the sentence may change.
"""

from __future__ import annotations

import enum
from typing import NamedTuple

__all__ = [
    "CloseCode",
    "ConfigurationError",
    "ConnectionClosed",
    "HandshakeRefused",
    "LimitExceeded",
    "ListenError",
    "ProtocolError",
    "StreetError",
    "is_sendable_close_code",
]


class CloseCode(enum.IntEnum):
    """WebSocket close codes: RFC 6455 section 7.4.1, the IANA registry, and our own in 4000-4999."""

    NORMAL = 1000
    GOING_AWAY = 1001
    PROTOCOL_ERROR = 1002
    UNSUPPORTED_DATA = 1003
    NO_STATUS = 1005
    ABNORMAL = 1006
    INVALID_PAYLOAD = 1007
    POLICY_VIOLATION = 1008
    MESSAGE_TOO_BIG = 1009
    MANDATORY_EXTENSION = 1010
    INTERNAL_ERROR = 1011
    SERVICE_RESTART = 1012
    TRY_AGAIN_LATER = 1013
    BAD_GATEWAY = 1014
    TLS_HANDSHAKE = 1015
    UNAUTHORIZED = 4001
    SLOW_CONSUMER = 4008
    RATE_LIMITED = 4029

    __str__ = int.__repr__  # this and the next as in Python 3.11

    def __format__(self, format_spec: str) -> str:
        return int.__format__(self, format_spec)

    @property
    def explanation(self) -> str:
        """One phrase for people, used where the application gave no reason."""
        return _CLOSE_CODES[self].explanation

    @property
    def may_reconnect(self) -> bool:
        """Whether a client does right to connect again by itself (with backoff)."""
        return _CLOSE_CODES[self].may_reconnect

    @property
    def sendable(self) -> bool:
        """Whether the code may stand in a close frame; 1005, 1006 and 1015 may not (section 7.4.1)."""
        return _CLOSE_CODES[self].sendable


class _CloseFacts(NamedTuple):
    explanation: str
    may_reconnect: bool
    sendable: bool


_CLOSE_CODES: dict[CloseCode, _CloseFacts] = {
    CloseCode.NORMAL: _CloseFacts("done", False, True),
    CloseCode.GOING_AWAY: _CloseFacts("going away", True, True),
    CloseCode.PROTOCOL_ERROR: _CloseFacts("protocol error", False, True),
    CloseCode.UNSUPPORTED_DATA: _CloseFacts("unsupported kind of data", False, True),
    CloseCode.NO_STATUS: _CloseFacts("closed without a status", True, False),
    CloseCode.ABNORMAL: _CloseFacts("connection lost", True, False),
    CloseCode.INVALID_PAYLOAD: _CloseFacts("text is not UTF-8", False, True),
    CloseCode.POLICY_VIOLATION: _CloseFacts("policy violation", False, True),
    CloseCode.MESSAGE_TOO_BIG: _CloseFacts("message too big", False, True),
    CloseCode.MANDATORY_EXTENSION: _CloseFacts("extension missing", False, True),
    CloseCode.INTERNAL_ERROR: _CloseFacts("internal error", True, True),
    CloseCode.SERVICE_RESTART: _CloseFacts("service restart", True, True),
    CloseCode.TRY_AGAIN_LATER: _CloseFacts("over capacity", True, True),
    CloseCode.BAD_GATEWAY: _CloseFacts("bad gateway", True, True),
    CloseCode.TLS_HANDSHAKE: _CloseFacts("TLS handshake failed", False, False),
    CloseCode.UNAUTHORIZED: _CloseFacts("unauthorized", False, True),
    CloseCode.SLOW_CONSUMER: _CloseFacts("slow consumer", True, True),
    CloseCode.RATE_LIMITED: _CloseFacts("rate limited", False, True),
}


def is_sendable_close_code(code: int) -> bool:
    """True if `code` may travel in a close frame: 1000-1003, 1007-1014, 3000-4999 (RFC 6455 section 7.4)."""
    return 1000 <= code <= 1003 or 1007 <= code <= 1014 or 3000 <= code <= 4999


class StreetError(Exception):
    """Base of every exception that street_fast raises on purpose."""

    code = "error"


class ConfigurationError(StreetError, ValueError):
    """An option is wrong; the sentence names the option, its value, and what is allowed."""

    code = "configuration"


class ListenError(StreetError, OSError):
    """The server cannot listen there (address in use, no permission, no such directory)."""

    code = "listen"


class ConnectionClosed(StreetError):
    """The connection ended before the awaited thing happened."""

    code = "connection_closed"

    def __init__(self, close_code: int, reason: str = "") -> None:
        self.close_code = close_code
        self.reason = reason
        super().__init__(f"the connection is closed ({close_code}{': ' + reason if reason else ''})")


class LimitExceeded(StreetError, ValueError):
    """More than `Limits` allows of something; the sentence names the limit."""

    code = "limit_exceeded"


class ProtocolError(StreetError):
    """The peer broke RFC 6455 or a limit; `close_code` is what it is told."""

    def __init__(self, close_code: CloseCode, code: str, message: str) -> None:
        self.close_code = close_code
        self.code = code
        super().__init__(message)


class HandshakeRefused(StreetError):
    """The opening handshake is refused; `status` and `headers` are the HTTP answer."""

    def __init__(self, status: int, code: str, message: str, headers: tuple[tuple[str, str], ...] = ()) -> None:
        self.status = status
        self.code = code
        self.headers = headers
        super().__init__(message)

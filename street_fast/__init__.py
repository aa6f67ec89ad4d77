"""Real-time for Python: WebSocket servers, channels with presence and history for browsers, and clients for them.

The names below are the public ones; the guide tells what they are for.
"""

from __future__ import annotations

from street_fast._core import Frame, WebSocket, broadcast
from street_fast.auth import JwtAuth, Member, TokenRefused
from street_fast.backplanes import History, OutcomeUnknown, Unavailable
from street_fast.client import CannotConnect, RealtimeClient, RealtimeError, connect
from street_fast.errors import (
    CloseCode,
    ConfigurationError,
    ConnectionClosed,
    HandshakeRefused,
    LimitExceeded,
    ListenError,
    ProtocolError,
    StreetError,
)
from street_fast.http_server import HttpServer
from street_fast.hub import ChannelHub
from street_fast.limits import Limits
from street_fast.operations import Operations
from street_fast.realtime import Realtime
from street_fast.request import Request, Response
from street_fast.server import StreetWebSocketServer
from street_fast.sse import SseStream
from street_fast.street_socket import Event, StreetSocket

__all__ = [
    "CannotConnect",
    "ChannelHub",
    "CloseCode",
    "ConfigurationError",
    "ConnectionClosed",
    "Event",
    "Frame",
    "HandshakeRefused",
    "History",
    "HttpServer",
    "JwtAuth",
    "LimitExceeded",
    "Limits",
    "ListenError",
    "Member",
    "Operations",
    "OutcomeUnknown",
    "ProtocolError",
    "Realtime",
    "RealtimeClient",
    "RealtimeError",
    "Request",
    "Response",
    "SseStream",
    "StreetError",
    "StreetSocket",
    "StreetWebSocketServer",
    "TokenRefused",
    "Unavailable",
    "WebSocket",
    "__version__",
    "broadcast",
    "connect",
]

__version__ = "0.2.0"

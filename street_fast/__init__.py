"""Real-time for Python: WebSocket servers with typed events, channels, presence and typing indicators.

The names below are the public ones; the guide tells what they are for.
"""

from __future__ import annotations

from street_fast._core import Frame, WebSocket, broadcast
from street_fast.auth import Member
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
from street_fast.request import Request, Response
from street_fast.server import StreetWebSocketServer
from street_fast.street_socket import Event, StreetSocket

__all__ = [
    "ChannelHub",
    "CloseCode",
    "ConfigurationError",
    "ConnectionClosed",
    "Event",
    "Frame",
    "HandshakeRefused",
    "HttpServer",
    "LimitExceeded",
    "Limits",
    "ListenError",
    "Member",
    "ProtocolError",
    "Request",
    "Response",
    "StreetError",
    "StreetSocket",
    "StreetWebSocketServer",
    "WebSocket",
    "__version__",
    "broadcast",
]

__version__ = "0.1.0"

"""The public names: adding one is a decision, and so is taking one away."""

from __future__ import annotations

import importlib.resources
import subprocess
import sys

import street_fast

PUBLIC = [
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

WEBSOCKET = [
    "abort",
    "bytes_buffered",
    "close",
    "close_code",
    "close_reason",
    "closed",
    "drain",
    "id",
    "on_close",
    "on_message",
    "ping",
    "send",
    "subprotocol",
    "wait_closed",
]


def test_public_names() -> None:
    assert sorted(street_fast.__all__) == sorted(PUBLIC)
    for name in PUBLIC:
        assert getattr(street_fast, name) is not None


def test_star_import() -> None:
    namespace: dict[str, object] = {}
    exec("from street_fast import *", namespace)
    assert set(PUBLIC) <= set(namespace)


def test_what_a_websocket_offers() -> None:
    assert set(WEBSOCKET) <= set(dir(street_fast.WebSocket))


def test_the_package_is_typed() -> None:
    assert importlib.resources.files("street_fast").joinpath("py.typed").is_file()


def test_optional_libraries_are_not_imported_with_the_package() -> None:
    optional = {"aiohttp", "uvicorn", "fastapi", "jwt", "websockets", "uvloop"}
    program = f"import sys, street_fast; print(*{optional} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=20, check=True)
    assert ran.stdout.split() == []

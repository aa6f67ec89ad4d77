"""The asyncio client of a Realtime; `connect` is the way in.

From the wire to the application: `handshake`, `connection` (URL to open WebSocket); `pacing`, `alarms`, `requests`,
`feed`, `subscriptions`, `protocol` (docs/protocol.md, without a socket); `link` (the I/O of one client);
`subscription`, `client` (what the application holds).
"""

from __future__ import annotations

from street_fast.client.client import RealtimeClient, connect
from street_fast.client.connection import CannotConnect
from street_fast.client.messages import Gap, HistoryPage, Presence, Present, Published, RealtimeError, Received
from street_fast.client.subscription import Subscription

__all__ = [
    "CannotConnect",
    "Gap",
    "HistoryPage",
    "Presence",
    "Present",
    "Published",
    "RealtimeClient",
    "RealtimeError",
    "Received",
    "Subscription",
    "connect",
]

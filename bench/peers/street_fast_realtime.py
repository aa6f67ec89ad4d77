"""street_fast, Realtime: channels for browsers, everybody a guest of its own.

``/realtime`` speaks docs/protocol.md. With HISTORY=100 in the environment every channel keeps so many messages; with
BACKPLANE=redis://... it is one of several nodes. Rate limits are off; all else is the default. Prints ``ready PORT``.
"""

from __future__ import annotations

import os

import uvloop

from street_fast import Limits, StreetWebSocketServer
from street_fast.backplanes import History
from street_fast.realtime import Realtime

UNLIMITED = Limits(messages_per_second=None, bytes_per_second=None, channel_messages_per_second=None)
MAX_CONNECTIONS = 20_000


async def main() -> None:
    size = int(os.environ.get("HISTORY", "0"))
    history = {"*": History(size=size)} if size else None
    server = StreetWebSocketServer(path="/realtime", max_connections=MAX_CONNECTIONS, limits=UNLIMITED)
    realtime = Realtime(server, history=history, backplane=os.environ.get("BACKPLANE"))
    await realtime.serve("127.0.0.1", 0)
    print("ready", realtime.port, flush=True)
    await realtime.wait_closed()


if __name__ == "__main__":
    uvloop.run(main())

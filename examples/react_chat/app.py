"""The server of the React chat: everything that the page needs, and nothing of its own.

In the root of the repository, with Python 3.10 and Node.js 20 or newer:

    pip install .
    python examples/react_chat/app.py

and in another terminal:

    (cd clients/js && npm ci && npm run build)
    cd examples/react_chat && npm install && npm run dev       # http://localhost:5173, in two windows
"""

from __future__ import annotations

import os

from street_fast import History, Member, Realtime


def authorize(member: Member, channel: str, action: str) -> bool:
    return channel.startswith("room:")


realtime = Realtime(authorize=authorize, history={"room:*": History(size=100, ttl_s=3_600)})

if __name__ == "__main__":
    realtime.run(host="127.0.0.1", port=int(os.environ.get("PORT", "3000")))

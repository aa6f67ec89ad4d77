"""The server that the client is tested against: one Realtime with history, tokens and guests.

python server.py PORT       # 0: a free one; the address is printed
"""

from __future__ import annotations

import sys

from street_fast import History, JwtAuth, Limits, Member, Realtime

SECRET = "only for tests, and long enough for HS256"


def authorize(member: Member, channel: str, action: str) -> bool:
    return channel != "secret"


Realtime(
    auth=JwtAuth(SECRET),
    authorize=authorize,
    history={"room:*": History(size=1_000, ttl_s=60)},
    limits=Limits(token_grace_s=1, token_skew_s=0.1, retry_hint_s=1),
).run(port=int(sys.argv[1]))

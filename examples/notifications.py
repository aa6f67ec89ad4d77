"""Notifications: somebody hears of her own things, on every page and device, and what came while she was away.

    pip install "street_fast[aiohttp,jwt]"
    export API_KEY="16 characters or more, of your own"             # for other programs; in both terminals
    python examples/notifications.py
    curl -d ada http://127.0.0.1:3000/login                         # a token, good for ten minutes
    websockets "ws://127.0.0.1:3000/realtime?token=TOKEN"           # the command of `pip install websockets`
    > {"type": "subscribe", "channel": "user:ada", "id": 1}
    > {"type": "history", "channel": "user:ada", "id": 2}           # what came before

    curl -X POST http://127.0.0.1:3000/orders/ada                   # the application notifies; and another program:
    curl -H "X-API-Key: $API_KEY" -d '{"user": "ada", "data": "hi"}' http://127.0.0.1:3000/realtime/publish

In a page: realtime.subscribe("user:ada", (message) => show(message.data))
"""

from __future__ import annotations

import itertools
import os
import secrets
import time

import jwt
from aiohttp import web

from street_fast import History, JwtAuth, Realtime

SECRET = os.environ.get("SECRET") or secrets.token_urlsafe(32)
API_KEY = os.environ.get("API_KEY") or secrets.token_urlsafe(32)

# Nobody but the member may subscribe to user:<id>, and without an authorize no client may publish there.
realtime = Realtime(
    auth=JwtAuth(SECRET), guests=False, api_key=API_KEY, history={"user:*": History(size=50, ttl_s=86_400)}
)
orders = itertools.count(1)


async def login(request: web.Request) -> web.Response:
    """Takes everybody at their word. A real application asks for a password first."""
    user = (await request.text()).strip()
    if not user.isprintable() or not 0 < len(user) <= 40:
        raise web.HTTPBadRequest(text="a name of 1 to 40 characters\n")
    return web.Response(text=jwt.encode({"sub": user, "exp": int(time.time()) + 600}, SECRET, "HS256"))


async def order(request: web.Request) -> web.Response:
    number = next(orders)
    realtime.notify(request.match_info["user"], {"order": number, "text": "your order has left"})
    return web.json_response({"order": number})


application = web.Application()
application.router.add_post("/login", login)
application.router.add_post("/orders/{user}", order)
realtime.attach(application)

if __name__ == "__main__":
    web.run_app(application, host="127.0.0.1", port=int(os.environ.get("PORT", "3000")))

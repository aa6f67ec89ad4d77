"""The demo: a chat in rooms, for a browser. ``street-fast demo`` serves it.

It is an example too: rooms, messages with history, presence, typing and private notes are channels of a Realtime, so
that what is left to write is who somebody is (`authenticate`), who may do what (`authorize`) and the list of rooms. The
page is in clients/demo; what is built of it lies beside this file.

Channels: ``room:<name>``, in which a message is ``{"text", "nonce"}``; ``user:<id>`` for private notes, which are the
same; and ``rooms``, where the server publishes ``{"rooms": [{"name", "members"}]}``. The id of a member is
``<name>~<digest>``, so that the name of whoever wrote is known also when they are gone, and nobody can forge it.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import secrets
import unicodedata
from importlib import resources
from typing import Any

from street_fast.auth import Member
from street_fast.backplanes import History
from street_fast.http_server import HttpServer
from street_fast.limits import Limits
from street_fast.listening import host_and_port
from street_fast.realtime import Realtime
from street_fast.request import Request, Response
from street_fast.runner import run_until_stopped
from street_fast.server import StreetWebSocketServer

__all__ = ["build", "run"]

GIVEN_ROOMS = ("general", "ideas", "random")
MOST_ROOMS = 100  # below what one connection may join
NAME_LENGTH = 32
# Control characters, those that turn the direction of a line, and spaces of no width. The page has the same rule.
UNREADABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
ROOM = re.compile(r"room:[^\s\x00-\x1f\x7f-\x9f]{1,32}")

DAY_S = 86_400
HISTORY = {
    "rooms": History(size=1, ttl_s=10 * DAY_S),
    "room:*": History(size=200, ttl_s=DAY_S),
    "user:*": History(size=20, ttl_s=300),
}
LIMITS = Limits(
    event_bytes=16_384,
    retry_hint_s=1.0,  # a few people at most: they may all come back within a second of a restart
)


def authenticate(request: Request) -> Member | None:
    """The person behind ``?user=name&key=secret``; None for a name that nobody can read.

    Who has name and key is that member, in any number of tabs; the id gives nothing of the key away.
    """
    name = " ".join(unicodedata.normalize("NFC", request.query.get("user", "")).split())
    if not 1 <= len(name) <= NAME_LENGTH or UNREADABLE.search(name):
        return None
    key = request.query.get("key") or secrets.token_hex()
    digest = hashlib.blake2b(f"{key}\n{name}".encode(errors="replace"), digest_size=9).hexdigest()
    return Member(f"{name}~{digest}")


class Chat:
    """The rules of one chat, and its Realtime."""

    def __init__(self) -> None:
        server = StreetWebSocketServer(path="/realtime", authenticate=authenticate, limits=LIMITS)
        self.realtime = Realtime(server, authorize=self.authorize, history=HISTORY)
        self.hub = self.realtime.hub

    def authorize(self, member: Member, channel: str, action: str) -> bool:
        """What a member may do in a channel, besides reading their own ``user:`` channel."""
        if channel == "rooms":
            return action in ("subscribe", "history")
        if channel.startswith("user:"):
            return action == "publish" and self.hub.has_channel(channel)  # a note is for somebody who is here
        if not ROOM.fullmatch(channel):
            return False
        if action == "publish":
            return self.hub.is_present(channel, member.id)
        names = [room["name"] for room in self.rooms()]
        return action != "subscribe" or channel.removeprefix("room:") in names or len(names) < MOST_ROOMS

    def rooms(self) -> list[dict[str, Any]]:
        """All rooms: those that are always there, and those with somebody in them."""
        open_rooms = (name.removeprefix("room:") for name in self.hub.channel_names() if name.startswith("room:"))
        names = dict.fromkeys([*GIVEN_ROOMS, *open_rooms])
        return [{"name": name, "members": self.hub.member_count(f"room:{name}")} for name in names]

    async def start(self) -> None:
        self.telling = asyncio.create_task(self.tell_rooms())

    async def stop(self) -> None:
        self.telling.cancel()

    async def tell_rooms(self) -> None:
        """Publishes the list when it has changed: a hundred who come at once are one message."""
        told = None
        while True:
            rooms = self.rooms()
            if rooms != told:
                self.realtime.publish("rooms", {"rooms": rooms})
                told = rooms
            await asyncio.sleep(0.25)


SECURITY_HEADERS = (
    (
        "Content-Security-Policy",
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-cache"),
)


def build() -> HttpServer:
    """The demo as a server that does not listen yet; closing it closes the chat."""
    http = HttpServer(limits=LIMITS)
    for path, name, kind in (
        ("/", "index.html", "text/html"),
        ("/style.css", "style.css", "text/css"),
        ("/app.js", "app.js", "text/javascript"),
    ):
        headers = [("Content-Type", f"{kind}; charset=utf-8"), *SECURITY_HEADERS]
        response = Response(200, resources.files(__package__).joinpath(name).read_bytes(), headers)
        http.get(path, lambda _, response=response: response)
    chat = Chat()
    http.on_shutdown(chat.stop)  # before the Realtime closes, and started after it
    chat.realtime.attach(http)
    http.on_startup(chat.start)
    return http


def run(host: str = "127.0.0.1", port: int = 3000) -> None:
    """Serves the demo until SIGINT or SIGTERM. Exits with one line if it cannot listen there."""

    async def start() -> HttpServer:
        http = build()
        await http.listen(host, port)
        print(f"street_fast demo: http://{host_and_port(host, http.port)} (Ctrl-C stops)", flush=True)  # noqa: T201
        return http

    run_until_stopped(start)

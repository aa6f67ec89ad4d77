"""The demo: a chat in rooms, for a browser. ``street-fast demo`` serves it.

It is an example too: a StreetWebSocketServer beside three static files on one HttpServer, and a ChannelHub that knows
who is in which room and who is typing. Everybody is who they say they are, and messages are kept in memory, the last
few of each room, so that who joins or comes back sees what was said.

Events of the page: ``join``, ``leave``, ``chat``, ``typing`` (their data below), ``alive``. Events to the page: those
of the hub, with the room as their channel, and ``hello``, ``rooms``, ``room``, ``alive``, ``error``.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import time
import unicodedata
from collections import deque
from importlib import resources
from string import Template
from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from street_fast.auth import Member
from street_fast.errors import CloseCode
from street_fast.http_server import HttpServer
from street_fast.hub import ChannelHub
from street_fast.limits import Limits
from street_fast.listening import host_and_port
from street_fast.request import Request, Response
from street_fast.runner import run_until_stopped
from street_fast.server import StreetWebSocketServer

if TYPE_CHECKING:
    from street_fast.street_socket import StreetSocket

__all__ = ["build", "run"]

GIVEN_ROOMS = ("general", "ideas", "random")
MOST_ROOMS = 100  # below what one connection may join
RECENT_MESSAGES = 50
NAME_LENGTH = 32
# Control characters, those that turn the direction of a line, and spaces of no width. The page has the same rule.
UNREADABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\xad\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")

Room = Annotated[str, msgspec.Meta(pattern=r"\A[^\s\x00-\x1f\x7f-\x9f]{1,32}\Z")]


class InRoom(msgspec.Struct):
    room: Room


class Typing(InRoom):
    typing: bool


class Say(InRoom):
    text: Annotated[str, msgspec.Meta(min_length=1, max_length=2000)]
    nonce: Annotated[str, msgspec.Meta(max_length=32)] = ""  # by which the page knows its own message again


def authenticate(request: Request) -> Member | None:
    """The person behind ``?user=name&key=secret``; None for a name that nobody can read.

    Who has name and key is that member, in any number of tabs; the id gives nothing of the key away.
    """
    name = " ".join(unicodedata.normalize("NFC", request.query.get("user", "")).split())
    if not 1 <= len(name) <= NAME_LENGTH or UNREADABLE.search(name):
        return None
    key = request.query.get("key") or secrets.token_hex()
    member_id = hashlib.blake2b(f"{key}\n{name}".encode(errors="replace"), digest_size=9).hexdigest()
    return Member(member_id, info={"name": name})


class Chat:
    """The rooms of one server."""

    def __init__(self, server: StreetWebSocketServer) -> None:
        self.server = server
        self.hub = ChannelHub()
        self.recent: dict[str, deque[dict[str, Any]]] = {}  # of every room that is open
        for room in GIVEN_ROOMS:
            self.open(room)

    def connected(self, socket: StreetSocket, request: Request) -> None:
        member = request.member
        assert member is not None
        assert member.info is not None
        hub, me, name = self.hub, member.id, member.info["name"]
        rooms: set[str] = set()
        socket.emit("hello", {"memberId": me, "rooms": list(self.recent)})

        @socket.on("join")
        def join(message: InRoom) -> None:
            room = message.room
            if room not in self.recent and len(self.recent) >= MOST_ROOMS:
                socket.emit("error", {"code": "limit_exceeded", "message": f"there are {MOST_ROOMS} rooms already"})
                return
            hub.join(room, me, socket, member.info)
            rooms.add(room)
            self.open(room)
            socket.emit("room", {"room": room, "members": hub.members(room), "recent": list(self.recent[room])})

        @socket.on("leave")
        def leave(message: InRoom) -> None:
            hub.leave(message.room, me, socket)
            rooms.discard(message.room)
            self.close_if_empty(message.room)

        @socket.on("chat")
        def say(message: Say) -> None:
            if message.room not in rooms:
                return
            said = {"id": secrets.token_hex(8), "from": me, "name": name, "text": message.text, "nonce": message.nonce}
            self.recent[message.room].append({**said, "ts": time.time_ns() // 1_000_000})
            hub.set_typing(message.room, me, False, socket)
            hub.publish(message.room, "chat", said)

        @socket.on("typing")
        def typing(message: Typing) -> None:
            hub.set_typing(message.room, me, message.typing, socket)

        @socket.on("alive")
        def alive(_: object) -> None:
            socket.emit("alive")  # a page that slept asks whether its connection is still there

        @socket.on("close")
        def closed(code: int, reason: str) -> None:
            for room in rooms:  # which the hub has left by now
                self.close_if_empty(room)

    def open(self, room: str) -> None:
        if room not in self.recent:
            self.recent[room] = deque(maxlen=RECENT_MESSAGES)
            self.tell_rooms()

    def close_if_empty(self, room: str) -> None:
        if room in self.recent and room not in GIVEN_ROOMS and not self.hub.member_count(room):
            del self.recent[room]
            self.tell_rooms()

    def tell_rooms(self) -> None:
        self.server.broadcast("rooms", {"rooms": list(self.recent)})


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
    http = HttpServer()
    final = " ".join(str(int(code)) for code in CloseCode if not code.may_reconnect)
    for path, name, kind in (
        ("/", "index.html", "text/html"),
        ("/style.css", "style.css", "text/css"),
        ("/app.js", "app.js", "text/javascript"),
        ("/connection.js", "connection.js", "text/javascript"),
    ):
        text = resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        if name == "index.html":
            text = Template(text).substitute(final_close_codes=final)
        headers = [("Content-Type", f"{kind}; charset=utf-8"), *SECURITY_HEADERS]
        response = Response(200, text.encode(), headers)
        http.get(path, lambda _, response=response: response)
    # A few people at most: they may all come back within a second of a restart.
    server = StreetWebSocketServer(path="/chat", authenticate=authenticate, limits=Limits(retry_hint_s=1.0))
    server.attach(http, Chat(server).connected)
    return http


def run(host: str = "127.0.0.1", port: int = 3000) -> None:
    """Serves the demo until SIGINT or SIGTERM. Exits with one line if it cannot listen there."""

    async def start() -> HttpServer:
        http = build()
        await http.listen(host, port)
        print(f"street_fast demo: http://{host_and_port(host, http.port)} (Ctrl-C stops)", flush=True)  # noqa: T201
        return http

    run_until_stopped(start)

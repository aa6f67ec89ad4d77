"""The opening handshake of RFC 6455 section 4, server side and sans-IO: a Request in, the 101 or a refusal out.

`accept` is the whole of it: the Origin first (section 10.2; a foreign page must not learn more than that it is
foreign), then whether the request is a good handshake (section 4.2.1), then the answer (section 4.2.2). What is wrong
raises HandshakeRefused, which carries its HTTP status; `refusal` makes the Response of it. Whoever sends it closes the
connection behind it and routes nothing that was pipelined: a proxy may believe that it is talking WebSocket.

`Upgrade` is what an HTTP front (HttpServer, uvicorn, aiohttp) hands to a WebSocket server.

Header values come from the peer, up to 16 KiB of them. They are read by tokenizers that look at each character a
bounded number of times; there is no pattern to backtrack in.
"""

from __future__ import annotations

import functools
import hashlib
import re
from binascii import b2a_base64
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple, Protocol

from street_fast.errors import ConfigurationError, HandshakeRefused
from street_fast.request import TOKEN_CHARS, Headers, Request, Response

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterable, Sequence

__all__ = [
    "Acceptance",
    "Upgrade",
    "accept",
    "accept_key",
    "check_allowed_origins",
    "check_origin",
    "is_websocket_request",
    "parse_extensions",
    "parse_tokens",
    "refusal",
]

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # section 1.3
_BASE64_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/")
_VERSION = (("Sec-WebSocket-Version", "13"),)
_UPGRADE = (("Upgrade", "websocket"), *_VERSION)


class Acceptance(NamedTuple):
    """`head` is the complete 101 response, `subprotocol` what was chosen of the client's offers."""

    head: bytes
    subprotocol: str | None


class Upgrade(Protocol):
    """A request for a WebSocket that waits for its answer: `refuse` or `take_over`, once, now or later.

    If the client goes away first, or the handshake deadline passes, the front calls `on_abandoned()`; `refuse` then
    does nothing and `take_over` raises ConnectionClosed.
    """

    request: Request
    on_abandoned: Callable[[], None] | None

    def refuse(self, response: Response) -> None:
        """Send `response` with ``Connection: close``, then close. Nothing pipelined behind the request is routed."""

    def take_over(self) -> tuple[asyncio.Transport, bytes]:
        """Let go of the connection: its transport, and the bytes that came behind the request.

        The caller sends the 101 and sets its own protocol before it returns to the event loop.
        """


def is_websocket_request(request: Request) -> bool:
    """Whether the client asks for a WebSocket, well or badly: ``Connection: upgrade``, ``Upgrade: websocket``."""
    headers = request.headers
    return "websocket" in headers.tokens("upgrade") and "upgrade" in headers.tokens("connection")


def accept(
    request: Request, *, subprotocols: Sequence[str] = (), allowed_origins: Sequence[str] | None = None
) -> Acceptance:
    """Answer an opening handshake.

    `subprotocols` are the server's, best first; the first that the client offers is chosen, or none. Raises
    HandshakeRefused: 403 for the origin (see `check_origin`), 405 for another method than GET, 426 for a request that
    is no WebSocket handshake or not version 13, 400 for one that is malformed. RFC 6455 sections 4.2.1, 4.2.2, 4.4.
    """
    check_origin(request, allowed_origins)
    headers = request.headers
    _check_request(request, headers)
    key = _check_key(headers)
    _check_version(headers)
    offers = headers.get_all("sec-websocket-protocol")
    subprotocol = _choose(subprotocols, offers) if offers else None
    _check_extensions(tuple(headers.get_all("sec-websocket-extensions")))
    chosen = b"\r\nSec-WebSocket-Protocol: %b" % subprotocol.encode() if subprotocol is not None else b""
    head = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: %b%b\r\n\r\n" % (accept_key(key), chosen)
    )
    return Acceptance(head, subprotocol)


def accept_key(key: str) -> bytes:
    """Sec-WebSocket-Accept for a Sec-WebSocket-Key. RFC 6455 section 4.2.2, item 5.4."""
    digest = hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()
    return b2a_base64(digest, newline=False)


def refusal(error: HandshakeRefused) -> Response:
    """The HTTP answer that an error stands for."""
    return Response.text(f"{error}\n", error.status, error.headers)


def _check_request(request: Request, headers: Headers) -> None:
    if request.method != "GET":
        raise HandshakeRefused(405, "method", "a WebSocket handshake is a GET request", (("Allow", "GET"),))
    if "websocket" not in headers.tokens("upgrade"):
        raise HandshakeRefused(
            426, "not_websocket", "this address speaks WebSocket; connect to it with a WebSocket client", _UPGRADE
        )
    if "upgrade" not in headers.tokens("connection"):
        raise HandshakeRefused(400, "connection", "Upgrade needs the option 'upgrade' in the Connection header")
    if request.http_version != "1.1":
        raise HandshakeRefused(400, "http_version", "a WebSocket handshake needs HTTP/1.1")
    if len(headers.get_all("host")) != 1:
        raise HandshakeRefused(400, "host", "exactly one Host header is needed")
    if headers.get("content-length", "0") != "0" or "transfer-encoding" in headers or request.body:
        raise HandshakeRefused(400, "body", "a WebSocket handshake has no body")


def _check_key(headers: Headers) -> str:
    """Section 4.2.1 item 5: base64 of 16 bytes."""
    keys = headers.get_all("sec-websocket-key")
    if len(keys) != 1:
        raise HandshakeRefused(400, "key", "exactly one Sec-WebSocket-Key header is needed")
    key = keys[0]
    if len(key) != 24 or key[22:] != "==" or not _BASE64_CHARS.issuperset(key[:22]):
        raise HandshakeRefused(400, "key", "Sec-WebSocket-Key is not 16 bytes in base64")
    return key


def _check_version(headers: Headers) -> None:
    """Section 4.2.1 item 6, section 4.4."""
    versions = headers.get_all("sec-websocket-version")
    if versions == ["13"]:
        return
    if len(versions) == 1:
        raise HandshakeRefused(426, "version", "only version 13 of the WebSocket protocol is spoken here", _UPGRADE)
    message = "exactly one Sec-WebSocket-Version header is needed, and it must be 13"
    raise HandshakeRefused(400, "version", message, _VERSION)


@functools.lru_cache(maxsize=16)  # browsers send one of a few
def _check_extensions(offers: tuple[str, ...]) -> None:
    """Section 9.1: a malformed offer ends the handshake. No extension is negotiated yet."""
    try:
        if offers:
            parse_extensions(offers)
    except ValueError as error:
        raise HandshakeRefused(400, "extensions", f"Sec-WebSocket-Extensions is malformed: {error}") from None


def _choose(ours: Sequence[str], offers: Iterable[str]) -> str | None:
    try:
        theirs = frozenset(parse_tokens(offers))
    except ValueError as error:
        raise HandshakeRefused(400, "subprotocol", f"Sec-WebSocket-Protocol is malformed: {error}") from None
    for subprotocol in ours:
        if subprotocol in theirs:  # case-sensitive: the tokens are names (section 4.2.2 item 4)
            return subprotocol
    return None


# --- Origin (RFC 6454, RFC 6455 section 10.2) ---


class _Origin(NamedTuple):
    scheme: str
    host: str
    port: int | None  # None: the scheme has no default port, and none was given


class _AllowedOrigins(NamedTuple):
    anyone: bool
    exact: frozenset[_Origin]
    subdomains: tuple[_Origin, ...]  # host is ".example.com"


_DEFAULT_PORTS = {"http": 80, "https": 443}
_SCHEME_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789+-.")
_HOST_CHARS = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-_")
_IPV6_CHARS = frozenset("0123456789abcdef:.")


def check_origin(request: Request, allowed_origins: Sequence[str] | None = None) -> None:
    """Refuse (403) a browser page that may not connect. Cookies travel with every WebSocket; this is what stops CSWSH.

    `allowed_origins` None: the page must come from the host and port that the request went to, as Host names them
    (proxy headers are not looked at: anyone can send them). Otherwise the origin must be one of the list, see
    `check_allowed_origins`. A request without an Origin comes from no browser and passes. Two origins are refused
    always; ``null`` and whatever else is no origin only pass where the list has ``*``.
    """
    origins = request.headers.get_all("origin")
    if not origins:
        return
    allowed = None if allowed_origins is None else check_allowed_origins(allowed_origins)
    if len(origins) == 1 and allowed is not None and allowed.anyone:
        return
    origin = _parse_origin(origins[0]) if len(origins) == 1 else None
    if origin is None:
        raise HandshakeRefused(403, "origin", "the Origin header is not one origin")
    if allowed is None:
        if origin.scheme in _DEFAULT_PORTS and _names(request.host, origin, origins[0]):
            return
    elif origin in allowed.exact or any(
        origin.host.endswith(parent.host) and origin[::2] == parent[::2] for parent in allowed.subdomains
    ):
        return
    raise HandshakeRefused(403, "origin", "pages from this origin may not connect here")


def _names(host: str, origin: _Origin, text: str) -> bool:
    """Whether `host`, a Host header, names the host and port of `origin`, which was parsed from `text`."""
    if text.endswith(host) and len(text) == len(origin.scheme) + 3 + len(host):
        return True  # letter for letter, as browsers send them
    return _parse_authority(host.lower(), _DEFAULT_PORTS[origin.scheme]) == (origin.host, origin.port)


def check_allowed_origins(entries: Sequence[str]) -> _AllowedOrigins:
    """The list in the form that `check_origin` works with; also the check of the option, at construction.

    An entry is an origin as a browser sends it (``https://app.example.com``, ``http://localhost:5173``), all the
    subdomains of one (``https://*.example.com``, not example.com itself), or ``*`` for every page there is. Raises
    ConfigurationError for anything else.
    """
    if isinstance(entries, str):
        raise ConfigurationError(f"allowed_origins={entries!r}: must be a list of origins, such as [{entries!r}]")
    try:
        if isinstance(entries, Collection):
            return _compile_origins(tuple(entries))
    except TypeError:  # an entry is a list itself
        pass
    raise ConfigurationError(
        f"allowed_origins={entries!r}: must be a list of origins, such as ['https://app.example.com']"
    )


@functools.lru_cache(maxsize=64)
def _compile_origins(entries: tuple[str, ...]) -> _AllowedOrigins:
    exact: set[_Origin] = set()
    subdomains: list[_Origin] = []
    for entry in entries:
        if entry == "*":
            continue
        origin = None
        if isinstance(entry, str):
            scheme, _, rest = entry.partition("://")
            wildcard = rest.startswith("*.")
            origin = _parse_origin(f"{scheme}://{rest[2:] if wildcard else rest}")
        if origin is None:
            raise ConfigurationError(
                f"allowed_origins entry {entry!r}: must be scheme://host[:port] without a path (non-ASCII hosts as "
                f"xn--...), scheme://*.domain for its subdomains, or '*'"
            )
        if wildcard:
            subdomains.append(origin._replace(host=f".{origin.host}"))
        else:
            exact.add(origin)
    return _AllowedOrigins("*" in entries, frozenset(exact), tuple(subdomains))


def _parse_origin(text: str) -> _Origin | None:
    """An origin in its ASCII serialization (RFC 6454 section 6.2), any case; None if it is anything else."""
    scheme, separator, authority = text.lower().partition("://")
    if not separator or not scheme[:1].isalpha() or not _SCHEME_CHARS.issuperset(scheme):
        return None
    parsed = _parse_authority(authority, _DEFAULT_PORTS.get(scheme))
    return _Origin(scheme, *parsed) if parsed else None


def _parse_authority(authority: str, default_port: int | None) -> tuple[str, int | None] | None:
    """host[:port], in lower case; None if it is anything else, such as user@host."""
    if authority.startswith("["):
        host, bracket, rest = authority.partition("]")
        colon, port = rest[:1], rest[1:]
        if not bracket or len(host) < 3 or not _IPV6_CHARS.issuperset(host[1:]):
            return None
    else:
        host, colon, port = authority.partition(":")
        if not host or not _HOST_CHARS.issuperset(host):
            return None
    if not colon:
        return host, default_port
    if colon != ":" or not (port.isascii() and port.isdigit()) or len(port) > 5 or int(port) > 65535:
        return None
    return host, int(port)


# --- lists in headers (RFC 9110 section 5.6.1) ---

# Runs of characters of one kind, perhaps none: nothing in them can be matched in two ways.
_SPACE = re.compile(r"[ \t]*")
_EMPTY_ELEMENTS = re.compile(r"[ \t,]*")
_TOKEN = re.compile(rf"[{re.escape(''.join(sorted(TOKEN_CHARS)))}]*")


def parse_tokens(values: Iterable[str]) -> list[str]:
    """The tokens of a comma-separated list, which may come in several headers. Empty elements do not count.

    Raises ValueError for an element that is no token, and for a list without any.
    """
    tokens = [item.strip(" \t") for value in values for item in value.split(",")]
    tokens = [token for token in tokens if token]
    for token in tokens:
        if not TOKEN_CHARS.issuperset(token):
            raise ValueError("an element is not a token")
    if not tokens:
        raise ValueError("it is empty")
    return tokens


def parse_extensions(values: Iterable[str]) -> list[tuple[str, list[tuple[str, str | None]]]]:
    """The offers of Sec-WebSocket-Extensions as [(name, [(parameter, value or None), ...]), ...], in order.

    Raises ValueError for what the grammar of RFC 6455 section 9.1 does not make. A quoted value must be a token too.
    """
    offers: list[tuple[str, list[tuple[str, str | None]]]] = []
    for value in values:
        scanner = _Scanner(value)
        while scanner.skip_empty_elements():
            name = scanner.token()
            parameters: list[tuple[str, str | None]] = []
            while scanner.take(";"):
                parameter = scanner.token()
                parameters.append((parameter, scanner.token_or_quoted() if scanner.take("=") else None))
            scanner.end_of_element()
            offers.append((name, parameters))
    if not offers:
        raise ValueError("it is empty")
    return offers


class _Scanner:
    """A header value and a position in it, which only ever moves on."""

    __slots__ = ("_position", "_text")

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0

    def take(self, character: str) -> bool:
        """Step over `character` and the white space before it, if it is next."""
        self._skip(_SPACE)
        if not self._text.startswith(character, self._position):
            return False
        self._position += 1
        return True

    def token(self) -> str:
        self._skip(_SPACE)
        start = self._position
        self._skip(_TOKEN)
        if start == self._position:
            raise ValueError("a name is missing" if self._done() else "a character is out of place")
        return self._text[start : self._position]

    def token_or_quoted(self) -> str:
        if not self.take('"'):
            return self.token()
        unquoted: list[str] = []
        while not self._done():
            character = self._text[self._position]
            self._position += 1
            if character == '"':
                value = "".join(unquoted)
                if not value or not TOKEN_CHARS.issuperset(value):
                    raise ValueError("a quoted value is not a token")
                return value
            if character == "\\":
                character = self._text[self._position : self._position + 1]
                self._position += 1
            unquoted.append(character)
        raise ValueError("a quote is not closed")

    def skip_empty_elements(self) -> bool:
        """Go to the next element; False at the end."""
        self._skip(_EMPTY_ELEMENTS)
        return not self._done()

    def end_of_element(self) -> None:
        if not self.take(",") and not self._done():
            raise ValueError("a character is out of place")

    def _skip(self, run: re.Pattern[str]) -> None:
        match = run.match(self._text, self._position)
        assert match is not None
        self._position = match.end()

    def _done(self) -> bool:
        return self._position >= len(self._text)

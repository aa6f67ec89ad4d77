"""The opening handshake of RFC 6455 section 4.1, client side and sans-IO: a URL in, the request and its answer out.

`Target` is where a URL leads. `Opening` is one handshake: its `request` goes out, what comes in is fed to it, and it
either is `accepted` with the bytes that came behind the 101, or raises HandshakeRefused with the status and the
sentence that the server gave. Redirects are not followed: a token is for one host.
"""

from __future__ import annotations

import base64
import http
import os
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

from street_fast.errors import ConfigurationError, HandshakeRefused
from street_fast.handshake import accept_key
from street_fast.request import TOKEN_CHARS, Headers

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Opening", "Target", "checked_headers"]

_SCHEMES = {"ws": (False, 80), "http": (False, 80), "wss": (True, 443), "https": (True, 443)}
_HEAD_BYTES = 16_384
_BODY_BYTES = 1_024  # of a refusal: enough for a sentence
_RESERVED = frozenset(
    (
        "connection",
        "content-length",
        "sec-websocket-accept",
        "sec-websocket-extensions",
        "sec-websocket-key",
        "sec-websocket-protocol",
        "sec-websocket-version",
        "transfer-encoding",
        "upgrade",
    )
)


class Target(NamedTuple):
    """Where a URL leads: `resource` is path and query, `authority` what Host says."""

    secure: bool
    host: str
    port: int
    authority: str
    resource: str

    @classmethod
    def parse(cls, url: str) -> Target:
        """The target of a ws://, wss://, http:// or https:// URL (RFC 6455 section 3). Raises ConfigurationError."""
        if not isinstance(url, str):
            raise ConfigurationError(f"url={url!r}: must be a string, such as 'wss://example.com/realtime'")
        shown = url.partition("?")[0]  # a query may hold a token
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise ConfigurationError(f"url {shown!r}: {error}") from None
        if parts.scheme not in _SCHEMES:
            raise ConfigurationError(f"url {shown!r}: must begin with ws://, wss://, http:// or https://")
        if not parts.hostname:
            raise ConfigurationError(f"url {shown!r}: has no host")
        if parts.username is not None or parts.password is not None:
            raise ConfigurationError("url: must not hold a user name or password; give a token, or headers=")
        if "#" in url:
            raise ConfigurationError(f"url {shown!r}: must not have a fragment (#...)")
        secure, default_port = _SCHEMES[parts.scheme]
        host = _ascii_host(parts.hostname, shown)
        name = f"[{host}]" if ":" in host else host
        resource = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        if not resource.isascii() or any(character <= " " or character == "\x7f" for character in resource):
            raise ConfigurationError(f"url {shown!r}: has characters that must be percent-encoded")
        port = default_port if port is None else port
        return cls(secure, host, port, name if port == default_port else f"{name}:{port}", resource)

    @property
    def path(self) -> str:
        """Without the query, which may hold secrets."""
        return self.resource.partition("?")[0]

    def __str__(self) -> str:
        return f"{'wss' if self.secure else 'ws'}://{self.authority}{self.path}"


def _ascii_host(host: str, shown: str) -> str:
    try:
        return host if host.isascii() else host.encode("idna").decode("ascii")
    except UnicodeError:
        raise ConfigurationError(f"url {shown!r}: the host is no host name") from None


def checked_headers(headers: Mapping[str, str] | None) -> tuple[tuple[str, str], ...]:
    """The application's headers of the handshake. Raises ConfigurationError for one that cannot be sent."""
    checked = []
    for name, value in (headers or {}).items():
        if not isinstance(name, str) or not name or not TOKEN_CHARS.issuperset(name):
            raise ConfigurationError(f"headers: {name!r} is no name of a header")
        if name.lower() in _RESERVED:
            raise ConfigurationError(f"headers: {name!r} belongs to the handshake itself")
        try:
            bad = not isinstance(value, str) or any(character in value for character in "\r\n\0")
            checked.append((name, value if bad else value.encode("latin-1").decode("latin-1")))
        except UnicodeEncodeError:
            bad = True
        if bad:  # not shown: it may be a secret
            raise ConfigurationError(f"headers: the value of {name!r} must be a string of one line in Latin-1")
    return tuple(checked)


class Opening:
    """One opening handshake. Send `request`, then `feed` what comes in, and `end` when nothing more comes."""

    def __init__(self, target: Target, headers: tuple[tuple[str, str], ...] = (), key: str | None = None) -> None:
        self._key = base64.b64encode(os.urandom(16)).decode() if key is None else key
        self._target = target
        self._parser = HttpResponseParser(self)
        self._head_bytes = 0
        self._head_complete = self._complete = False
        self._reason = b""
        self._raw = bytearray()  # the header lines
        self._body = bytearray()
        names = {name.lower() for name, _ in headers}
        lines = [
            f"GET {target.resource} HTTP/1.1",
            *([] if "host" in names else [f"Host: {target.authority}"]),
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {self._key}",
            *([] if "user-agent" in names else ["User-Agent: street_fast"]),
            *(f"{name}: {value}" for name, value in headers),
        ]
        self.request = "\r\n".join([*lines, "", ""]).encode("latin-1")

    def feed(self, data: bytes) -> bytes | None:
        """None while the answer is not there; then what came behind the 101, already WebSocket.

        Raises HandshakeRefused for any other answer, and for a 101 that breaks RFC 6455 section 4.1.
        """
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._judge()
            return data[upgrade.args[0] :]
        except HttpParserError as error:
            if self._head_complete and self._parser.get_status_code() == 101:
                self._judge()
            raise self._broken(f"does not speak HTTP there ({error})") from None
        if self._complete or len(self._body) >= _BODY_BYTES or self._is_another_answer:
            raise self._refused()
        if not self._head_complete:
            self._head_bytes += len(data)
            if self._head_bytes > _HEAD_BYTES:
                raise self._broken(f"sent more than {_HEAD_BYTES} bytes of headers")
        return None

    def end(self) -> HandshakeRefused | None:
        """The refusal, if the answer was one whose end is the connection's; None if no answer came."""
        return self._refused() if self._head_complete else None

    # --- what the parser calls ---

    def on_status(self, reason: bytes) -> None:
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        self._raw += b"\r\n%b: %b" % (name, value)

    def on_headers_complete(self) -> None:
        self._head_complete = True

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        status = self._parser.get_status_code()
        self._complete = status >= 200
        if status < 200 and status != 101:  # 100, 103: the answer follows (RFC 9110 section 15.2)
            self._head_complete = False
            self._raw.clear()
            self._reason = b""

    # --- judging ---

    @property
    def _is_another_answer(self) -> bool:
        """Whether it is no refusal but what somebody else has asked for; its body may have no end (an event stream)."""
        return self._head_complete and self._parser.get_status_code() < 400

    @property
    def _headers(self) -> Headers:
        return Headers(bytes(self._raw) + b"\r\n")

    def _judge(self) -> None:
        """Section 4.1, what a client must check, items 1 to 6."""
        headers = self._headers
        if self._parser.get_status_code() != 101:
            raise self._refused()
        if "websocket" not in headers.tokens("upgrade") or "upgrade" not in headers.tokens("connection"):
            raise self._broken("switched to another protocol than WebSocket")
        if headers.get_all("sec-websocket-accept") != [accept_key(self._key).decode()]:
            raise self._broken("is no WebSocket server: its Sec-WebSocket-Accept is wrong")
        for name in ("sec-websocket-extensions", "sec-websocket-protocol"):
            if name in headers:
                raise self._broken(f"chose something that was not offered ({name})")

    def _refused(self) -> HandshakeRefused:
        status = self._parser.get_status_code()
        headers = self._headers
        try:
            phrase = http.HTTPStatus(status).phrase
        except ValueError:
            phrase = self._reason.decode("latin-1")
        said = _one_line(self._body, headers)
        sentence = f"{self._target} answered {status} {phrase}{': ' + said if said else ''}"
        if 300 <= status < 400 and "location" in headers:
            sentence += f" (it points to {headers['location'].partition('?')[0]!r}; redirects are not followed)"
        elif status in (200, 404, 405, 426):
            sentence += "; is the path right? Realtime is at /realtime unless it was given another"
        return HandshakeRefused(status, "refused", sentence, tuple(headers.pairs()))

    def _broken(self, what: str) -> HandshakeRefused:
        status = self._parser.get_status_code() if self._head_complete else 0
        return HandshakeRefused(status, "no_websocket", f"{self._target} {what}")


def _one_line(body: bytes | bytearray, headers: Headers) -> str:
    """What a refusal says, for people: a text of one line. A page of HTML says nothing."""
    if "html" in headers.get("content-type", ""):
        return ""
    text = " ".join(bytes(body[:_BODY_BYTES]).decode("utf-8", "replace").split())
    return text if len(text) <= 200 else f"{text[:200]}..."

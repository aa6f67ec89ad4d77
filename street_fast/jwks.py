"""Where an issuer's public keys come from: a JSON Web Key Set (RFC 7517) in a file or at a URL, and when it is read.

There is one address, and the application has given it. What a token says gets no further than to the question whether
a newer set may be had, so these rules hold whatever the tokens say and however many ask:

* From the beginning of one look at the address to the beginning of the next there are `PAUSE_S`, however it ended; who
  asks while it lasts waits for the same one.
* The keys of the last good look stay in use until a better one. They are looked at again after `FRESH_S`, while those
  that are there go on being used.
* A URL is https, or http on the loopback interface. No redirect is followed and no proxy is asked. The answer is there
  within `FETCH_TIMEOUT_S` and has at most `MOST_BYTES`.

What the bytes mean is the business of `parse`, which raises ValueError if there is no key in them to use. A KeyUrl
belongs to the event loop that it is first asked in.
"""

from __future__ import annotations

import asyncio
import io
import ipaddress
import logging
import math
import os
import time
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast
from urllib.parse import SplitResult, urlsplit

from street_fast.errors import ConfigurationError

if TYPE_CHECKING:
    import ssl
    from collections.abc import Awaitable, Callable, Sequence

__all__ = ["KeyFile", "KeyUrl", "check_url", "fetch"]

logger = logging.getLogger("street_fast")

PAUSE_S = 30.0
FRESH_S = 300.0
FETCH_TIMEOUT_S = 10.0
MOST_BYTES = 262_144
MOST_HEAD_BYTES = 65_536

Key = TypeVar("Key")


class KeyFile(Generic[Key]):
    """The keys in a file. It is read at once, which raises OSError or ValueError, and when its time has changed."""

    def __init__(self, path: str, parse: Callable[[bytes], Sequence[Key]]) -> None:
        self.clock = time.monotonic
        self._path = path
        self._parse = parse
        self._stamp: tuple[int, ...] = ()
        self._keys: Sequence[Key] = ()
        self._read()
        self._looked_at = self._good_at = self.clock()

    def keys(self) -> Sequence[Key]:
        """The keys as they are now."""
        now = self.clock()
        if now - self._looked_at >= PAUSE_S:
            self._looked_at = now
            try:
                self._read()
                self._good_at = now
            except (OSError, ValueError) as error:
                logger.warning("keys are not to be had from %s, the former stay in use: %s", self._path, error)
        return self._keys

    def newer(self) -> None:
        """There is nothing to wait for: `keys` reads the file."""

    def known_since(self, moment: float) -> bool:
        """Whether the keys are those of `moment`, a time of `clock`, or newer."""
        return self._good_at >= moment

    def _read(self) -> None:
        status = os.stat(self._path)
        stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        if stamp == self._stamp:
            return
        with open(self._path, "rb") as file:
            document = file.read(MOST_BYTES + 1)
        if len(document) > MOST_BYTES:
            raise ValueError(f"it has more than {MOST_BYTES} bytes")
        self._keys = self._parse(document)
        self._stamp = stamp  # not before: what was half written is read again


class KeyUrl(Generic[Key]):
    """The keys at a URL. Nothing is fetched before somebody asks."""

    def __init__(self, url: str, parse: Callable[[bytes], Sequence[Key]]) -> None:
        parts = check_url(url)
        context = None
        if parts.scheme == "https":
            import ssl

            context = ssl.create_default_context()  # here, because it takes tens of milliseconds
        self.clock = time.monotonic
        self.fetch: Callable[[], Awaitable[bytes]] = lambda: fetch(parts, context)
        self._url = url
        self._parse = parse
        self._keys: Sequence[Key] = ()
        self._began_at = self._good_at = -math.inf
        self._fetching: asyncio.Task[None] | None = None

    def keys(self) -> Sequence[Key]:
        """The keys as far as they are known. Begins to fetch newer ones if they are old."""
        if self._keys and self.clock() - self._good_at >= FRESH_S:
            self._begin()
        return self._keys

    def newer(self) -> Awaitable[None] | None:
        """What to wait for before looking at `keys` again; None if it is too early to fetch them again."""
        self._begin()
        # Shielded: one who waits may go away, the others still wait.
        return None if self._fetching is None else asyncio.shield(self._fetching)

    def known_since(self, moment: float) -> bool:
        """Whether the keys are those of `moment`, a time of `clock`, or newer."""
        return self._good_at >= moment

    def _begin(self) -> None:
        now = self.clock()
        if self._fetching is None and now - self._began_at >= PAUSE_S:
            self._began_at = now
            self._fetching = asyncio.get_running_loop().create_task(self._refresh(now))
            self._fetching.add_done_callback(self._ended)

    async def _refresh(self, now: float) -> None:
        try:
            self._keys = self._parse(await asyncio.wait_for(self.fetch(), FETCH_TIMEOUT_S))
            self._good_at = now
        except Exception as error:
            kept = "the former stay in use" if self._keys else "no token can be checked"
            reason = str(error) or type(error).__name__
            logger.warning("keys are not to be had from %s, %s: %s", self._url, kept, reason)

    def _ended(self, _: asyncio.Task[None]) -> None:
        self._fetching = None


def check_url(url: str) -> SplitResult:
    """The parts of the URL of a key set. Raises ConfigurationError for one that is not to be trusted."""
    try:
        parts = urlsplit(url)
        good = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise ConfigurationError(f"jwks={url!r}: is no URL") from None
    if not good or not url.isascii() or not url.isprintable() or " " in url or parts.fragment:
        raise ConfigurationError(f"jwks={url!r}: must be a URL in ASCII with a host, without spaces and #fragment")
    if "@" in parts.netloc:
        raise ConfigurationError("jwks: the URL must not have a user or a password in it")
    if parts.scheme != "https" and not (parts.scheme == "http" and _is_loopback(parts.hostname or "")):
        raise ConfigurationError(
            f"jwks={url!r}: must begin with https://, because whoever can change the answer can log in as anybody; "
            f"http:// is for this machine only (localhost, 127.0.0.1, [::1])"
        )
    return parts


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


async def fetch(url: SplitResult, context: ssl.SSLContext | None) -> bytes:
    """The body at `url`. Raises OSError if there is no answer, ValueError for one that is not 200, or too long."""
    port = url.port or (443 if url.scheme == "https" else 80)
    target = (url.path or "/") + (f"?{url.query}" if url.query else "")
    head = (
        f"GET {target} HTTP/1.1\r\nHost: {url.netloc}\r\nUser-Agent: street_fast\r\n"
        f"Accept: application/json\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n"
    )
    reader, writer = await asyncio.open_connection(url.hostname, port, ssl=context)
    answer = bytearray()
    try:
        writer.write(head.encode())
        while chunk := await reader.read(65_536):
            answer += chunk
            if len(answer) > MOST_HEAD_BYTES + MOST_BYTES:
                raise ValueError(f"the answer has more than {MOST_BYTES} bytes")
    finally:
        writer.transport.abort()
    return _body(bytes(answer))


def _body(answer: bytes) -> bytes:
    """The body of a complete answer, read by the standard library's client."""
    from http.client import HTTPException, HTTPResponse

    response = HTTPResponse(cast("Any", _Answer(answer)), method="GET")
    try:
        response.begin()
        if response.status != 200:
            moved = "; a redirect is not followed" if 300 <= response.status < 400 else ""
            raise ValueError(f"the answer has the status {response.status}{moved}")
        body = response.read()
    except HTTPException as error:
        raise ValueError(f"the answer is broken: {type(error).__name__}") from error
    if len(body) > MOST_BYTES:
        raise ValueError(f"the answer has more than {MOST_BYTES} bytes")
    return body


class _Answer:
    """Bytes in the place of a socket: all that HTTPResponse wants of one is a file."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, mode: str) -> io.BytesIO:
        assert mode == "rb"
        return io.BytesIO(self._data)

"""Reading HTTP/1.1: the bytes of one connection in, one Request at a time out. Sans-IO.

httptools (llhttp) judges every head, all at once when its last byte is there; then what it let pass is looked at again,
because a proxy in front may read it differently: exactly one Host, one space between the parts of the request line,
no method, version or transfer coding that is not spoken here, no message framed in two ways. After that there is one
way left to read the head, and it is simply split.

A head costs what its bytes cost, however they were cut: each byte is stored once and searched once. Limits hold while
it comes in: what is held never exceeds ``request_head_bytes`` (``request_body_bytes`` for a body) by more than one
read. What is wrong raises HandshakeRefused; the reader is done then, and what came behind is nobody's request.

`keep_alive` says after each request whether another may follow. A chunked body, HTTP/1.0 and an Upgrade make a request
the last one on its connection: where the next one would start is what request smuggling plays with.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from httptools import HttpParserError, HttpParserInvalidMethodError, HttpParserUpgrade, HttpRequestParser

from street_fast.errors import HandshakeRefused
from street_fast.request import Headers, Request

if TYPE_CHECKING:
    from street_fast.limits import Limits

__all__ = ["RequestReader"]

_METHODS = frozenset(("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"))
_HOST_CHARS = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-._~!$&'()*+,;=%:[]")
# What the parser of a chunked body gets for a head: with an Upgrade in it, it would not look for a body.
_CHUNKED_HEAD = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
_STEP = 256  # bytes of it that are parsed at once: what is behind its end must not count
_BARE_LF = re.compile(rb"(?<!\r)\n")


class RequestReader:
    """One connection's worth of requests: `feed`, then `next_request` until it returns None.

    `client` is the address that the requests get. `next_request` raises HandshakeRefused; the reader is `done` then.
    """

    __slots__ = (
        "_buffer",
        "_chunks",
        "_client",
        "_expects_continue",
        "_length",
        "_limits",
        "_line",
        "_parser",
        "_request",
        "_searched",
        "done",
        "keep_alive",
    )

    def __init__(self, limits: Limits, client: tuple[str, int] | None = None) -> None:
        self._limits = limits
        self._client = client
        self._buffer = bytearray()
        self._searched = 0  # no head ends before this index
        self._line = 0  # where the unfinished line starts
        self._request: Request | None = None  # its head is there, its body is not
        self._length = 0  # of its body, unless that is chunked:
        self._chunks: _Chunks | None = None
        self._parser: HttpRequestParser | None = None  # knows the chunks; they do not know it, to make no cycle
        self._expects_continue = False
        self.keep_alive = True
        self.done = False

    @property
    def buffered(self) -> int:
        """Bytes held that are part of no finished request."""
        return len(self._buffer) + (len(self._chunks.data) if self._chunks is not None else 0)

    @property
    def begun(self) -> bool:
        """Whether a request has begun and is not finished."""
        return self._request is not None or bool(self._buffer)

    def feed(self, data: bytes) -> None:
        """Take what came from the client."""
        self._buffer += data

    def next_request(self) -> Request | None:
        """The next request with its whole body, or None if it is not all there. Raises HandshakeRefused."""
        if self.done:
            return None
        try:
            if self._request is None and not self._read_head():
                return None
            return self._read_body()
        except HandshakeRefused:
            self.done = True
            raise

    def take_continue(self) -> bool:
        """Whether the client waits for ``100 Continue`` with its body (RFC 9110 section 10.1.1). True once."""
        expected, self._expects_continue = self._expects_continue, False
        return expected and self._request is not None and self.buffered == 0

    def take_rest(self) -> bytes:
        """What came behind the last request; the reader is done."""
        rest = bytes(self._buffer)
        self._buffer.clear()
        self.done = True
        return rest

    def _read_head(self) -> bool:
        buffer = self._buffer
        if self._searched == 0 and not self._starts():
            return False
        end = buffer.find(b"\r\n\r\n", max(self._searched - 3, 0)) + 4
        if end < 4 or end > self._limits.request_head_bytes:
            self._check_unfinished_head()
            return False
        head = bytes(buffer[:end])
        del buffer[:end]
        self._searched = self._line = 0
        self._parse_head(head)
        return True

    def _starts(self) -> bool:
        """Whether the buffer holds the start of a request line; drops the empty lines before it (RFC 9112 2.2)."""
        buffer = self._buffer
        while buffer.startswith(b"\r\n"):
            del buffer[:2]
        if not buffer or buffer == b"\r":
            return False
        if not 0x41 <= buffer[0] <= 0x5A:  # no method starts like that; TLS on a plain port does
            raise HandshakeRefused(400, "request_line", "this is not an HTTP request")
        return True

    def _check_unfinished_head(self) -> None:
        buffer, limits = self._buffer, self._limits
        if _BARE_LF.search(buffer, self._searched):
            raise HandshakeRefused(400, "head", "the lines of a request end in CR LF")
        last = buffer.rfind(b"\n", self._searched)
        if last >= 0:
            self._line = last + 1
        self._searched = len(buffer)
        unfinished = len(buffer) - self._line  # perhaps with the CR of its end
        if unfinished > limits.request_line_bytes + 1 or len(buffer) > limits.request_head_bytes:
            raise self._too_long(buffer)

    def _too_long(self, head: bytes | bytearray) -> HandshakeRefused:
        limits = self._limits
        if not -1 < head.find(b"\r\n") <= limits.request_line_bytes:
            return HandshakeRefused(414, "target", f"the request line is over {limits.request_line_bytes} bytes")
        message = (
            f"the request has more than {limits.request_headers} headers, {limits.request_head_bytes} bytes of head, "
            f"or {limits.request_line_bytes} bytes in one line"
        )
        return HandshakeRefused(431, "headers", message)

    def _parse_head(self, head: bytes) -> None:
        limits = self._limits
        lines = head.split(b"\r\n")  # the last two are empty
        if len(lines) - 3 > limits.request_headers:
            raise self._too_long(head)
        if len(head) > limits.request_line_bytes and len(max(lines, key=len)) > limits.request_line_bytes:
            raise self._too_long(head)
        _judge(HttpRequestParser(None), head)
        request = self._make_request(lines, head)
        headers = request.headers
        _check_host(request, headers)
        options = headers.tokens("connection")
        upgrade = "upgrade" in options and "upgrade" in headers
        self.keep_alive = request.http_version == "1.1" and "close" not in options and not upgrade
        self._request = request
        if "transfer-encoding" in headers:
            self._start_chunks(request, headers)
        elif "content-length" in headers:
            self._length = _body_length(headers)
            if self._length > limits.request_body_bytes:
                raise self._body_too_big()
        else:
            return
        self._expects_continue = "100-continue" in headers.tokens("expect") and request.http_version == "1.1"

    def _make_request(self, lines: list[bytes], head: bytes) -> Request:
        try:
            method, target, version = lines[0].decode("ascii").split(" ")
        except ValueError:
            raise HandshakeRefused(400, "request_line", "the request line must be 'METHOD target HTTP/1.1'") from None
        if version not in {"HTTP/1.1", "HTTP/1.0"}:
            raise HandshakeRefused(505, "http_version", "the versions spoken here are HTTP/1.1 and HTTP/1.0")
        if method not in _METHODS:
            raise _unknown_method()
        if not target.isprintable() or "#" in target:
            raise HandshakeRefused(400, "target", "the request target has a character that it must not have")
        if not target.startswith(("/", "http://", "https://")) and (method, target) != ("OPTIONS", "*"):
            raise HandshakeRefused(400, "target", "the request target must be a path or an http URI")
        return Request(method, target, head[len(lines[0]) : -2], http_version=version[5:], client=self._client)

    def _start_chunks(self, request: Request, headers: Headers) -> None:
        if request.http_version == "1.0":
            raise HandshakeRefused(400, "framing", "the length of the body is not clear")
        if [coding.lower() for coding in headers.get_all("transfer-encoding")] != ["chunked"]:
            raise HandshakeRefused(501, "framing", "the only transfer coding spoken here is 'chunked'")
        self.keep_alive = False
        self._chunks = _Chunks()
        self._parser = HttpRequestParser(self._chunks)
        _judge(self._parser, _CHUNKED_HEAD)

    def _read_body(self) -> Request | None:
        request, buffer = self._request, self._buffer
        assert request is not None
        if self._chunks is not None:
            if not self._read_chunks(self._chunks):
                return None
            request.body = bytes(self._chunks.data)
            self._chunks = self._parser = None
        elif self._length:
            if len(buffer) < self._length:
                return None
            request.body = bytes(buffer[: self._length])
            del buffer[: self._length]
            self._length = 0
        self._request = None
        return request

    def _read_chunks(self, chunks: _Chunks) -> bool:
        """Whether the last chunk is there. What came behind it is lost: the connection ends with this request."""
        assert self._parser is not None
        data = bytes(self._buffer)
        self._buffer.clear()
        for start in range(0, len(data), _STEP):
            step = data[start : start + _STEP]
            try:
                _judge(self._parser, step)
            except HandshakeRefused:
                if not chunks.complete:
                    raise
            else:
                chunks.fed += len(step)
            # Chunk sizes, extensions and trailers may cost as much as the body and a head: chunks of six bytes.
            if len(chunks.data) > self._limits.request_body_bytes or (
                chunks.fed - 2 * len(chunks.data) > self._limits.request_head_bytes
            ):
                raise self._body_too_big()
            if chunks.complete:
                return True
        return False

    def _body_too_big(self) -> HandshakeRefused:
        return HandshakeRefused(413, "body", f"the body is over {self._limits.request_body_bytes} bytes")


class _Chunks:
    """What the parser of a chunked body has found."""

    __slots__ = ("complete", "data", "fed")

    def __init__(self) -> None:
        self.data = bytearray()
        self.fed = 0
        self.complete = False

    def on_body(self, data: bytes) -> None:
        self.data += data

    def on_message_complete(self) -> None:
        self.complete = True
        raise _EndOfBody  # the parser must not go on to what is behind it


class _EndOfBody(Exception):
    """Stops a parser; never leaves this file."""


def _judge(parser: HttpRequestParser, data: bytes) -> None:
    try:
        parser.feed_data(data)
    except HttpParserUpgrade:
        pass
    except HttpParserInvalidMethodError:
        raise _unknown_method() from None
    except HttpParserError as error:
        raise HandshakeRefused(400, "head", f"the request is malformed: {error}") from None


def _check_host(request: Request, headers: Headers) -> None:
    """RFC 9112 section 3.2: exactly one, and valid; HTTP/1.0 may go without."""
    hosts = headers.get_all("host")
    if len(hosts) > 1 or (not hosts and request.http_version == "1.1"):
        raise HandshakeRefused(400, "host", "exactly one Host header is needed")
    if not request.target.startswith("/"):
        hosts.append(request.host)  # of an absolute target
    if not _HOST_CHARS.issuperset("".join(hosts)):
        raise HandshakeRefused(400, "host", "the host must be host[:port]")


def _body_length(headers: Headers) -> int:
    lengths = headers.get_all("content-length")
    if len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
        raise HandshakeRefused(400, "framing", "Content-Length must be one number")
    return int(lengths[0]) if len(lengths[0]) < 19 else 1 << 62


def _unknown_method() -> HandshakeRefused:
    return HandshakeRefused(501, "method", f"the methods known here are {', '.join(sorted(_METHODS))}")

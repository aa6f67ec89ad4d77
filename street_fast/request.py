"""The values of HTTP: a Request as it came, a Response as it goes.

A `Request` keeps the request target and the header block as the bytes that came, and parses them each time somebody
looks: a WebSocket server holds ten thousand requests for hours and reads each of them once. `headers`, `query` and
`cookies` are therefore views that cost nothing to keep and a few microseconds to read; who reads one often keeps the
view, not the Request's property.

Whoever makes a Request has checked the syntax already: header lines end in CRLF and nothing else holds a CR, LF or
NUL (`Request.from_pairs` checks it for other HTTP servers). Bytes above 127 are read as Latin-1 (RFC 9110 section 5.5).

A `Response` cannot be written with a header that would break the message in two.
"""

from __future__ import annotations

import functools
import http
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote

import orjson

if TYPE_CHECKING:
    from street_fast.auth import Member

__all__ = ["TOKEN_CHARS", "Headers", "Query", "Request", "Response"]

TOKEN_CHARS = frozenset("!#$%&'*+-.^_`|~0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz")
"""What a token is made of (RFC 9110 section 5.6.2)."""


class Headers(Mapping[str, str]):
    """The header fields of a request: names in any case, the first value of a name, `get_all` for every value.

    `raw` is the header block with a CRLF before the first line and after the last.
    """

    __slots__ = ("_folded", "_raw")

    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._folded = raw.lower()

    def __getitem__(self, name: str) -> str:
        key = _key(name)
        start = self._folded.find(key) if key else -1
        if start < 0:
            raise KeyError(name)
        return self._value(start + len(key))

    def get_all(self, name: str) -> list[str]:
        """Every value of that name, in the order in which they came; empty if there is none."""
        key = _key(name)
        values: list[str] = []
        start = self._folded.find(key) if key else -1
        while start >= 0:
            start += len(key)
            values.append(self._value(start))
            start = self._folded.find(key, start)
        return values

    def tokens(self, name: str) -> list[str]:
        """The elements of the comma-separated list of that name, in lower case (RFC 9110 section 5.6.1)."""
        values = self.get_all(name)
        if len(values) == 1 and "," not in values[0]:
            return [values[0].lower()]
        return [element.strip(" \t") for value in values for element in value.lower().split(",")]

    def __contains__(self, name: object) -> bool:
        key = _key(name) if isinstance(name, str) else b""
        return bool(key) and key in self._folded

    def __iter__(self) -> Iterator[str]:
        """The names in lower case, each once."""
        names = (line.partition(b":")[0].decode("latin-1") for line in self._folded.split(b"\r\n")[1:-1])
        return iter(dict.fromkeys(names))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def pairs(self) -> list[tuple[str, str]]:
        """Every line as (name, value), as it came."""
        lines = (line.partition(b":") for line in self._raw.split(b"\r\n")[1:-1])
        return [(name.decode("latin-1"), value.strip(b" \t").decode("latin-1")) for name, _, value in lines]

    def __repr__(self) -> str:
        return f"Headers({sorted(self)})"  # the names only: values are secrets

    def _value(self, start: int) -> str:
        return self._raw[start : self._raw.find(b"\r\n", start)].strip(b" \t").decode("latin-1")


class Query(Mapping[str, str]):
    """The query of a request target: the first value of a name, `get_all` for every value. Percent-decoded UTF-8."""

    __slots__ = ("_values",)

    def __init__(self, raw: str) -> None:
        self._values: dict[str, list[str]] = {}
        for name, value in parse_qsl(raw, keep_blank_values=True) if raw else ():
            self._values.setdefault(name, []).append(value)

    def __getitem__(self, name: str) -> str:
        return self._values[name][0]

    def get_all(self, name: str) -> list[str]:
        """Every value of that name, in the order in which they came; empty if there is none."""
        return list(self._values.get(name, ()))

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Query({sorted(self)})"


class Request:
    """One HTTP request: what the client asked for, who it is, and its body.

    `target` is the request target as it came, `raw_headers` the header block with a CRLF before the first line and
    after the last, `http_version` "1.0" or "1.1", `client` (address, port) of the peer or None on a Unix socket.
    `member` is None until `authenticate` has named one.
    """

    __slots__ = ("body", "client", "http_version", "member", "method", "raw_headers", "target")

    def __init__(
        self,
        method: str,
        target: str,
        raw_headers: bytes = b"\r\n",
        *,
        http_version: str = "1.1",
        client: tuple[str, int] | None = None,
        body: bytes = b"",
    ) -> None:
        # Words that nearly all requests have in common are in memory once.
        self.method = sys.intern(method)
        self.target = target if "?" in target else sys.intern(target)
        self.raw_headers = raw_headers
        self.http_version = sys.intern(http_version)
        self.client = client
        self.body = body
        self.member: Member | None = None

    @classmethod
    def from_pairs(
        cls,
        method: str,
        target: str,
        headers: Iterable[tuple[bytes, bytes]],
        *,
        http_version: str = "1.1",
        client: tuple[str, int] | None = None,
        body: bytes = b"",
    ) -> Request:
        """A Request from headers that another server has parsed. Raises ValueError for a CR, LF or NUL in one."""
        lines = [b"%b: %b" % pair for pair in headers]
        for line in lines:
            if b"\r" in line or b"\n" in line or b"\0" in line:
                raise ValueError(f"the header {line.partition(b':')[0]!r} has a CR, LF or NUL in it")
        raw = b"\r\n".join([b"", *lines, b""]) if lines else b"\r\n"
        return cls(method, target, raw, http_version=http_version, client=client, body=body)

    def stripped(self) -> Request:
        """The same without query, headers and body: who asked for what, for those who keep many and want no secrets."""
        request = Request(
            self.method, self.target.partition("?")[0], http_version=self.http_version, client=self.client
        )
        request.member = self.member
        return request

    @property
    def headers(self) -> Headers:
        """The header fields."""
        return Headers(self.raw_headers)

    @property
    def path(self) -> str:
        """The path, percent-decoded (bad UTF-8 becomes U+FFFD), without the query. "*" for ``OPTIONS *``."""
        path = self._resource.partition("?")[0]
        return unquote(path) if "%" in path else path

    @property
    def query(self) -> Query:
        """The fields of the query."""
        return Query(self._resource.partition("?")[2])

    @property
    def cookies(self) -> Mapping[str, str]:
        """The cookies; of two with one name the first, which is the more specific one (RFC 6265 section 5.4)."""
        cookies: dict[str, str] = {}
        for header in self.headers.get_all("cookie"):
            for pair in header.split(";"):
                name, equals, value = pair.strip(" \t").partition("=")
                if equals and name not in cookies:
                    cookies[name] = value[1:-1] if len(value) > 1 and value[0] == value[-1] == '"' else value
        return cookies

    @property
    def host(self) -> str:
        """Host and port that the client asked for, as it wrote them: Host, or the authority of an absolute target.

        Empty if there is none. RFC 9112 section 3.2.2.
        """
        if self.target.startswith("/"):
            return self.headers.get("host", "")
        _, absolute, rest = self.target.partition("://")
        return rest.partition("/")[0].partition("?")[0] if absolute else self.headers.get("host", "")

    @property
    def _resource(self) -> str:
        """Path and query, also of an absolute target such as http://host/path?query."""
        target = self.target
        if target.startswith("/"):
            return target
        _, absolute, rest = target.partition("://")
        if not absolute:
            return target
        start = min((i for i in (rest.find("/"), rest.find("?")) if i >= 0), default=len(rest))
        resource = rest[start:]
        return resource if resource.startswith("/") else f"/{resource}"

    def __repr__(self) -> str:
        return f"<Request {self.method} {self.path!r}>"  # no query, no headers: they hold secrets


class Response:
    """One HTTP response. `headers` are (name, value) pairs without those that `encode` writes itself."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, status: int = 200, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()) -> None:
        self.status = status
        self.body = body
        self.headers: list[tuple[str, str]] = list(headers)

    @classmethod
    def text(cls, text: str, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Response:
        """Plain text."""
        return cls(status, text.encode(), [("Content-Type", "text/plain; charset=utf-8"), *headers])

    @classmethod
    def html(cls, text: str, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Response:
        """A page."""
        return cls(status, text.encode(), [("Content-Type", "text/html; charset=utf-8"), *headers])

    @classmethod
    def json(cls, data: Any, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> Response:
        """JSON. Raises TypeError (orjson.JSONEncodeError) for what is none."""
        return cls(status, orjson.dumps(data), [("Content-Type", "application/json"), *headers])

    def encode(self, keep_alive: bool, head_only: bool = False) -> bytes:
        """The bytes on the wire, with Content-Length, and with ``Connection: close`` unless `keep_alive`.

        `head_only` leaves the body out: the answer to HEAD. Raises ValueError for a header that cannot be written:
        a name that is no token, a CR, LF or NUL in a value, a character above U+00FF, or a header of the connection,
        which is not the application's.
        """
        status = self.status
        if not 200 <= status <= 599:
            raise ValueError(f"status={status!r}: must be from 200 to 599")
        lines = [f"HTTP/1.1 {status} {_PHRASES.get(status, '')}"]
        options = [] if keep_alive else ["close"]
        for name, value in self.headers:
            lowered = name.lower()
            if lowered in _WRITTEN_BY_ENCODE:
                raise ValueError(f"the header {name!r} is not for the application to set")
            if lowered == "upgrade":
                options.insert(0, "Upgrade")  # RFC 9110 section 7.8
            if not name or not TOKEN_CHARS.issuperset(name):
                raise ValueError(f"the header name {name!r} is not a token")
            if "\r" in value or "\n" in value or "\0" in value:
                raise ValueError(f"the header {name!r} has a CR, LF or NUL in its value")
            lines.append(f"{name}: {value}")
        if options:
            lines.append(f"Connection: {', '.join(options)}")
        bodiless = status in {204, 304}
        if not bodiless:
            lines.append(f"Content-Length: {len(self.body)}")
        head = "\r\n".join([*lines, "\r\n"]).encode("latin-1")
        return head if head_only or bodiless else head + self.body

    def __repr__(self) -> str:
        return f"<Response {self.status}, {len(self.body)} bytes>"


_PHRASES = {status.value: status.phrase for status in http.HTTPStatus}
_WRITTEN_BY_ENCODE = frozenset(("connection", "content-length", "keep-alive", "transfer-encoding"))


@functools.lru_cache(maxsize=256)
def _key(name: str) -> bytes:
    """What stands before the value of `name` in a folded header block; empty if no header can have that name."""
    try:
        return b"\r\n%b:" % name.lower().encode("ascii") if ":" not in name else b""
    except UnicodeEncodeError:
        return b""

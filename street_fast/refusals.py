"""Requests of programs that are refused: the answer is ``{"error": {"code", "message"}}`` with a status that fits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from street_fast.messages import decoder_for
from street_fast.request import Response

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["BEARER", "Refused", "checked_text", "decoded"]

BEARER = [("WWW-Authenticate", "Bearer")]
"""Goes with 401: what is wanted."""

_STATUS = {
    "bad_request": 400,
    "unauthorized": 401,
    "forbidden": 403,
    "rate_limited": 429,
    "limit_exceeded": 413,
    "not_subscribed": 400,
    "unavailable": 503,
    "unknown": 503,
}
"""The HTTP status of an error."""


class Refused(Exception):
    """Ends a request with ``{"error": {"code", "message"}}``."""

    def __init__(
        self, code: str, message: str, status: int | None = None, headers: Iterable[tuple[str, str]] = ()
    ) -> None:
        self.code = code
        self.message = message
        self.status = _STATUS[code] if status is None else status
        self.headers = list(headers)
        super().__init__(message)

    def response(self, headers: Iterable[tuple[str, str]] = ()) -> Response:
        """The answer, with further `headers`."""
        return Response.json(
            {"error": self.told()}, self.status, [("Cache-Control", "no-store"), *self.headers, *headers]
        )

    def told(self) -> dict[str, str]:
        """The error as JSON has it."""
        return {"code": self.code, "message": self.message}


def checked_text(body: bytes) -> str:
    """The body as text. Raises Refused for what is not UTF-8: that must not get into what others are sent."""
    try:
        return body.decode()
    except UnicodeDecodeError:
        raise Refused("bad_request", "the body is not UTF-8") from None


def decoded(body: bytes, kind: Any) -> Any:
    """The body as a `kind`. Raises Refused for what is no JSON, or does not fit."""
    try:
        return decoder_for(kind).decode(body)
    except msgspec.DecodeError as error:
        raise Refused("bad_request", f"the JSON cannot be read: {error}") from None
    except RecursionError:
        raise Refused("bad_request", "the JSON is nested too deeply") from None

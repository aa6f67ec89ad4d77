"""POST publish: other programs publish to the channels of a Realtime, with an API key.

    {"channel", "data", "key"?} or {"user", "data", "key"?}     ->  {"ts", "position"?, "duplicate"?}
    {"messages": [the same, at most 100]}                       ->  {"results": [the same, or {"error"}]}

All messages of a request are on their way, in their order, before the first is waited for.
"""

from __future__ import annotations

import functools
import hmac
import logging
from typing import TYPE_CHECKING, Any

import msgspec

from street_fast.backplanes import OutcomeUnknown, Unavailable
from street_fast.errors import LimitExceeded
from street_fast.messages import UNSET
from street_fast.refusals import BEARER, Refused, checked_text, decoded
from street_fast.request import Response

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from street_fast.realtime import Realtime, Receipt
    from street_fast.request import Request

__all__ = ["publish"]

logger = logging.getLogger("street_fast")

_MESSAGES = 100  # in one request


class _Publish(msgspec.Struct):
    channel: str | None = None
    user: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = UNSET
    key: str | None = None


class _Batch(msgspec.Struct):
    messages: list[msgspec.Raw] | msgspec.UnsetType = UNSET


async def publish(realtime: Realtime, request: Request) -> Response:
    """The answer to a POST."""
    try:
        _check_key(realtime, request)
        checked_text(request.body)
        batch = decoded(request.body, _Batch).messages
        if batch is UNSET:
            result: object = await _begin(realtime, request.body)()
        else:
            assert isinstance(batch, list)
            if len(batch) > _MESSAGES:
                raise Refused("limit_exceeded", f"at most {_MESSAGES} messages at once")
            # All are on their way, in this order, before the first is waited for.
            under_way = [_begin_one(realtime, bytes(item)) for item in batch]
            result = {"results": [await _or_error(one) for one in under_way]}
    except Refused as refused:
        return refused.response()
    return Response.json(result, headers=[("Cache-Control", "no-store")])


def _begin_one(realtime: Realtime, item: bytes) -> Callable[[], Awaitable[dict[str, Any]]]:
    try:
        return _begin(realtime, item)
    except Refused as refused:
        return functools.partial(_raise, refused)


def _begin(realtime: Realtime, item: bytes) -> Callable[[], Awaitable[dict[str, Any]]]:
    """Publishes; what is returned gives the answer, or raises Refused."""
    asked = decoded(item, _Publish)
    if (asked.channel is None) == (asked.user is None):
        raise Refused("bad_request", "either channel or user is needed")
    if asked.data is UNSET:
        raise Refused("bad_request", "data is needed; it may be null")
    if len(bytes(asked.data)) > realtime.limits.event_bytes:
        raise Refused("limit_exceeded", f"data may have {realtime.limits.event_bytes} bytes")
    data = msgspec.Raw(bytes(asked.data))
    try:
        if asked.channel is not None:
            return functools.partial(_published, realtime.publish(asked.channel, data, key=asked.key))
        return functools.partial(_published, realtime.notify(asked.user, data, key=asked.key))
    except LimitExceeded as error:
        raise Refused("limit_exceeded", str(error)) from None
    except ValueError as error:
        raise Refused("bad_request", str(error)) from None


def _check_key(realtime: Realtime, request: Request) -> None:
    keys = realtime.api_keys
    if not keys:
        raise Refused("forbidden", "no API key is set, so nobody can publish here: give the Realtime an api_key")
    headers = request.headers
    given = headers.get_all("x-api-key")
    for credentials in headers.get_all("authorization"):
        scheme, _, key = credentials.partition(" ")
        if scheme.lower() == "bearer":
            given.append(key.strip(" \t"))
    # Every key is compared, in constant time each: how long it takes says nothing about any of them.
    same = [hmac.compare_digest(one.encode(), key.encode()) for one in given for key in keys]
    if not any(same):
        what = "the API key is not good" if given else "an API key is needed: Authorization: Bearer, or X-API-Key"
        raise Refused("unauthorized", what, headers=BEARER)


async def _published(published: Awaitable[Receipt]) -> dict[str, Any]:
    """The answer to a publish."""
    try:
        ts, position, duplicate = await published
    except Unavailable:
        raise Refused("unavailable", "it was not published; try again later") from None
    except Exception as error:
        if not isinstance(error, OutcomeUnknown):
            logger.exception("a publish over HTTP failed")
        text = "it may have been published or not; to try again use the same key"
        raise Refused("unknown", text) from None
    answer: dict[str, Any] = {"ts": ts}
    if position is not None:
        answer["position"] = str(position)
    if duplicate:
        answer["duplicate"] = True
    return answer


async def _raise(refused: Refused) -> dict[str, Any]:
    raise refused


async def _or_error(answer: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    try:
        return await answer()
    except Refused as refused:
        return {"error": refused.told()}

"""The HTTP API for other programs: what an application calls on a Realtime, for back ends in any language.

    POST {path}/publish      {"channel", "data", "key"?} or {"user", "data", "key"?}   {"ts", "position"?, "duplicate"?}
                             {"messages": [the same, at most 100]}                {"results": [the same, or {"error"}]}
    POST {path}/disconnect   {"user", "reason"?, "code"?}                               {"connections"}
    POST {path}/unsubscribe  {"user", "channel", "reason"?}                             {"connections"}
    GET  {path}/presence     ?channel=C                                                 {"members"} or {"memberCount"}
    GET  {path}/history      ?channel=C&limit=N                                         {"messages", "position"}

Each request needs an API key, which is looked at before anything else. All messages of a request are on their way, in
their order, before the first is waited for.
"""

from __future__ import annotations

import functools
import hmac
import inspect
import logging
import re
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

import msgspec

from street_fast.backplanes import OutcomeUnknown, Unavailable
from street_fast.errors import CloseCode, LimitExceeded
from street_fast.messages import UNSET, write
from street_fast.refusals import BEARER, Refused, checked_text, decoded
from street_fast.request import Response
from street_fast.session import some_of

if TYPE_CHECKING:
    from street_fast.http_connection import Route
    from street_fast.realtime import Realtime, Receipt
    from street_fast.request import Request

__all__ = ["routes"]

logger = logging.getLogger("street_fast")

_MESSAGES = 100  # in one request
_REASON_BYTES = 123  # what fits into a close frame (RFC 6455 section 5.5)
_HISTORY_LIMIT = 50  # as that of a client

_Answer = Callable[["Realtime", "Request"], Awaitable[object]]


class _Publish(msgspec.Struct):
    channel: str | None = None
    user: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = UNSET
    key: str | None = None


class _Batch(msgspec.Struct):
    messages: list[msgspec.Raw] | msgspec.UnsetType = UNSET


class _Disconnect(msgspec.Struct):
    user: str
    reason: str = "disconnected by the application"
    code: int = int(CloseCode.POLICY_VIOLATION)


class _Unsubscribe(msgspec.Struct):
    user: str
    channel: str
    reason: str = "the application ended the subscription"


def routes(realtime: Realtime, path: str) -> list[Route]:
    """Method, path below `path`, and handler of each kind of request."""
    answers: list[tuple[str, str, _Answer]] = [
        ("POST", "publish", _publish),
        ("POST", "disconnect", _disconnect),
        ("POST", "unsubscribe", _unsubscribe),
        ("GET", "presence", _presence),
        ("GET", "history", _history),
    ]
    return [
        (method, f"{path}/{name}", functools.partial(_respond, realtime, answer)) for method, name, answer in answers
    ]


async def _respond(realtime: Realtime, answer: _Answer, request: Request) -> Response:
    try:
        _check_key(realtime, request)
        result = await answer(realtime, request)
    except Refused as refused:
        return refused.response()
    return Response(200, write(result), [("Content-Type", "application/json"), ("Cache-Control", "no-store")])


def _check_key(realtime: Realtime, request: Request) -> None:
    keys = realtime.api_keys
    if not keys:
        raise Refused("forbidden", "no API key is set, so this is for nobody: give the Realtime an api_key")
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


# --- publish ---


async def _publish(realtime: Realtime, request: Request) -> object:
    checked_text(request.body)
    batch = decoded(request.body, _Batch).messages
    if batch is UNSET:
        return await _begin(realtime, request.body)()
    assert isinstance(batch, list)
    if len(batch) > _MESSAGES:
        raise Refused("limit_exceeded", f"at most {_MESSAGES} messages at once")
    # All are on their way, in this order, before the first is waited for.
    under_way = [_begin_one(realtime, bytes(item)) for item in batch]
    return {"results": [await _or_error(one) for one in under_way]}


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


# --- members ---


async def _disconnect(realtime: Realtime, request: Request) -> object:
    checked_text(request.body)
    asked = decoded(request.body, _Disconnect)
    _check_name(realtime, "user", asked.user)
    _check_reason(asked.reason)
    try:
        return {"connections": realtime.disconnect(asked.user, asked.code, asked.reason)}
    except ValueError as error:
        raise Refused("bad_request", str(error)) from None


async def _unsubscribe(realtime: Realtime, request: Request) -> object:
    checked_text(request.body)
    asked = decoded(request.body, _Unsubscribe)
    _check_name(realtime, "user", asked.user)
    _check_name(realtime, "channel", asked.channel)
    _check_reason(asked.reason)
    return {"connections": realtime.unsubscribe(asked.user, asked.channel, asked.reason)}


async def _presence(realtime: Realtime, request: Request) -> object:
    channel = _channel_of(realtime, request)
    try:
        return await realtime.exchange.roll(channel)
    except Unavailable as error:
        logger.warning("a question over HTTP cannot be answered: %s", error)
        raise Refused("unavailable", "who is on the other nodes is not known at the moment; try again later") from None


def _check_reason(reason: str) -> None:
    if len(reason.encode()) > _REASON_BYTES:
        raise Refused("bad_request", f"reason: may have {_REASON_BYTES} bytes in UTF-8")


def _check_name(realtime: Realtime, what: str, name: str) -> None:
    try:
        realtime.hub.check_name(what, name)
    except ValueError as error:
        raise Refused("bad_request", str(error)) from None


# --- history ---


async def _history(realtime: Realtime, request: Request) -> object:
    channel = _channel_of(realtime, request)
    limit = _limit_of(realtime, request)
    history = realtime.exchange.history_of(channel)
    if history is None:
        raise Refused("bad_request", "the channel keeps no history")
    try:
        page = realtime.exchange.backplane.read(channel, history, since=None, limit=limit)
        if inspect.isawaitable(page):
            page = await page
    except Unavailable:
        raise Refused("unavailable", "the history cannot be read at the moment; try again later") from None
    messages = some_of(page.publications, realtime.limits.write_hard_bytes // 4, newest=True)
    return {"messages": [msgspec.Raw(message) for message in messages], "position": str(page.top)}


def _limit_of(realtime: Realtime, request: Request) -> int:
    most = realtime.limits.recovery_messages
    given = request.query.get_all("limit") or [str(min(_HISTORY_LIMIT, most))]
    if len(given) > 1 or not re.fullmatch("[0-9]{1,9}", given[0]) or not 1 <= int(given[0]) <= most:
        raise Refused("bad_request", f"limit: must be one number from 1 to {most}")
    return int(given[0])


def _channel_of(realtime: Realtime, request: Request) -> str:
    channels = request.query.get_all("channel")
    if len(channels) != 1:
        raise Refused("bad_request", f"the query must name one channel, as ?channel=...; it names {len(channels)}")
    _check_name(realtime, "channel", channels[0])
    return channels[0]

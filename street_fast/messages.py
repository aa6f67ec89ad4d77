"""The wire: the JSON envelope ``{"type", "channel"?, "data"?, "ts"?, "id"?}``, and nothing else knows the JSON.

In: `decode` reads the envelope with one msgspec decoder; ``data`` stays raw until somebody wants it, and is then
decoded to the type that is wanted (`decode_data`). ``payload`` is accepted for ``data``: StreetJS sockets send it.

Out: a `Message` is written once by orjson and framed once, whatever the number of its readers. ``data`` may be
anything orjson writes (str, int, dict, list, dataclass, datetime, UUID, ...), a msgspec Struct or whatever else
msgspec writes, or a `msgspec.Raw`, which is spliced in as it is. The message of a publish is written by the node that
takes it (`publish_json`). Through a backplane it goes without its closing brace (`publication_payload`), and each node
that delivers it writes the end (`publication`). So what a client publishes is never parsed and written anew.

`decode` wants valid UTF-8, which is what a WebSocket text message is; it does not look for bad bytes inside
``data``. A Raw keeps the whole message that it was cut from alive.
"""

from __future__ import annotations

import functools
import json as python_json
import re
from typing import Annotated, Any, Final, Literal, TypeAlias, TypeVar

import msgspec
import orjson

from street_fast._core import Frame
from street_fast.errors import ConfigurationError, StreetError
from street_fast.limits import DEFAULT_LIMITS

__all__ = [
    "UNSET",
    "Envelope",
    "ErrorCode",
    "MalformedMessage",
    "Message",
    "NewPublication",
    "NodeAnswer",
    "NodeCall",
    "Order",
    "Typist",
    "decode",
    "decode_data",
    "decode_envelope",
    "decode_node_call",
    "decode_node_message",
    "decode_whole",
    "decoder_for",
    "encode",
    "error_message",
    "gap_message",
    "is_publication",
    "message_json",
    "publication",
    "publication_json",
    "publication_payload",
    "publish_json",
    "publish_message",
    "publish_reply",
    "write",
]

UNSET: Final = msgspec.UNSET

ErrorCode: TypeAlias = Literal[
    "bad_request",
    "unauthorized",
    "forbidden",
    "rate_limited",
    "limit_exceeded",
    "not_subscribed",
    "unavailable",
    "unknown",
]
"""What an ``error`` event may say; a closed set."""

# Ids are echoed in replies. 2**53 - 1 is what JavaScript counts to; anything longer is no id.
_Id: TypeAlias = (
    Annotated[int, msgspec.Meta(ge=-(2**53) + 1, le=2**53 - 1)] | Annotated[str, msgspec.Meta(max_length=64)] | None
)


class MalformedMessage(StreetError, ValueError):
    """The peer sent something that is not JSON, not an envelope, or not the data that a handler declared."""

    code = "bad_request"


class Envelope(msgspec.Struct, gc=False):
    """One message of a client. Fields that are not named here are ignored."""

    type: str
    channel: str | None = None
    data: msgspec.Raw | msgspec.UnsetType = UNSET
    payload: msgspec.Raw | msgspec.UnsetType = UNSET
    id: _Id = None
    token: str | None = None
    since: str | None = None
    key: str | None = None

    @property
    def raw_data(self) -> msgspec.Raw | msgspec.UnsetType:
        """``data``, or else its StreetJS name ``payload``; UNSET when there is neither."""
        return self.payload if self.data is UNSET else self.data


decode_envelope = msgspec.json.Decoder(Envelope).decode
"""`decode` without the look at the depth, and with the errors of msgspec."""


def decode(data: bytes, max_depth: int = DEFAULT_LIMITS.json_depth) -> Envelope:
    """The envelope in `data`, a whole text message.

    Raises:
        MalformedMessage: not JSON, not an envelope, or nested deeper than `max_depth` arrays and objects.
    """
    try:
        envelope = decode_envelope(data)
    except msgspec.DecodeError as error:
        raise MalformedMessage(str(error)) from None
    except RecursionError:
        raise MalformedMessage(f"JSON is nested deeper than {max_depth} levels") from None
    # A text with few brackets cannot be deep; that is nearly every text.
    if data.count(b"[") + data.count(b"{") > max_depth and not _fits_depth(data, max_depth):
        raise MalformedMessage(f"JSON is nested deeper than {max_depth} levels")
    return envelope


_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"')
_BRACES_TO_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKET = bytes(byte for byte in range(256) if byte not in b"[]{}")


def _fits_depth(data: bytes, max_depth: int) -> bool:
    """Whether `data`, which is valid JSON, nests at most `max_depth` deep. Each round peels the innermost level."""
    brackets = _STRING.sub(b"", data).translate(_BRACES_TO_BRACKETS, _NO_BRACKET)
    for _ in range(max_depth):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return True
    return False


@functools.lru_cache(maxsize=1024)
def decoder_for(kind: Any) -> msgspec.json.Decoder[Any]:
    """The decoder of data of type `kind`: a Struct, dataclass, TypedDict, builtin, or Any.

    Raises:
        ConfigurationError: msgspec cannot decode JSON to `kind`.
    """
    try:
        fits = not isinstance(msgspec.inspect.type_info(kind), msgspec.inspect.CustomType)
        if fits:
            return msgspec.json.Decoder(kind)
        why = "it is no Struct, dataclass, TypedDict or builtin type"
    except (TypeError, NameError) as error:
        why = str(error)
    raise ConfigurationError(f"type={kind!r}: msgspec cannot decode JSON to it ({why})")


_NULL = b"null"


def decode_data(raw: msgspec.Raw | msgspec.UnsetType, kind: Any = Any) -> Any:
    """`raw` as a `kind`; data that is absent counts as null.

    Raises:
        MalformedMessage: the data does not fit; the sentence says where.
    """
    try:
        return decoder_for(kind).decode(_NULL if raw is UNSET else raw)
    except msgspec.DecodeError as error:
        raise MalformedMessage(f"data does not fit: {error}") from None
    except RecursionError:
        raise MalformedMessage("data does not fit: nested too deeply") from None


def decode_whole(text: bytes) -> Any:
    """`text`, valid JSON that a client may have written. Numbers that are too large are infinite, as in JavaScript."""
    try:
        return decoder_for(Any).decode(text)
    except msgspec.DecodeError:
        return python_json.loads(text, parse_int=_parse_int)


def _parse_int(digits: str) -> float:
    return int(digits) if len(digits) <= 308 else float(digits)


def _encode_other(value: object) -> orjson.Fragment:
    if type(value) is msgspec.Raw:
        return orjson.Fragment(bytes(value))
    return orjson.Fragment(msgspec.json.encode(value))


def encode(value: object) -> bytes:
    """`value` as JSON. Raises TypeError for what neither orjson nor msgspec writes."""
    return orjson.dumps(value, default=_encode_other)


def message_json(
    type: str,  # noqa: A002
    data: object,
    id: int | str | None,  # noqa: A002
    channel: str | None = None,
    ts: int | None = None,
) -> bytes:
    """``{"type", "channel"?, "data"?, "ts"?, "id"?}``; `data` is UNSET if there is none.

    Raises TypeError for a `type` that is no str, and for data that JSON cannot hold.
    """
    if not isinstance(type, str):
        raise TypeError(f"type={type!r}: must be a str, the name of the event")
    envelope: dict[str, object] = {"type": type}
    if channel is not None:
        envelope["channel"] = channel
    if data is not UNSET:
        envelope["data"] = data
    if ts is not None:
        envelope["ts"] = ts
    if id is not None:
        envelope["id"] = id
    try:
        return orjson.dumps(envelope, default=_encode_other)
    except TypeError as error:
        where = "" if channel is None else f" of channel {channel!r}"
        raise TypeError(f"event {type!r}{where} cannot be written as JSON: {error}") from error


class Message(msgspec.Struct, eq=False):
    """One message to clients, for any number of them. Treat it as frozen, and its data too.

    `ts` is milliseconds since the epoch; `data` is UNSET when the message has none. `position` is where a client that
    has seen the message stands in the history of its channel, as text, or None. A message that is made with its JSON
    has its data there and nowhere else. A Struct, because nothing else in Python is made as fast.
    """

    type: str
    channel: str | None = None
    data: Any = UNSET
    ts: int | None = None
    id: int | str | None = None
    position: str | None = None
    _json: bytes | None = None
    _frame: Frame | None = None
    _event: bytes | None = None

    @property
    def json(self) -> bytes:
        """The JSON, built at the first call. Raises what `message_json` raises."""
        json = self._json
        if json is None:
            json = self._json = message_json(self.type, self.data, self.id, self.channel, self.ts)
        return json

    @property
    def frame(self) -> Frame:
        """The text frame around `json`, built at the first call and shared by all who get it."""
        frame = self._frame
        if frame is None:
            frame = self._frame = Frame.text(self.json)
        return frame

    @property
    def event(self) -> bytes:
        """The Server-Sent Event: the JSON as ``data:``, and the position, if there is one, as ``id:``."""
        event = self._event
        if event is None:
            json = self.json
            if b"\n" in json or b"\r" in json:  # between tokens of what a client wrote, where a space says the same
                json = json.translate(_LINE_ENDS_TO_SPACES)
            head = b"" if self.position is None else b"id: %b\n" % self.position.encode()
            event = self._event = b"%bdata: %b\n\n" % (head, json)
        return event

    def __repr__(self) -> str:
        return f"<Message {self.type!r}{'' if self.channel is None else f' channel={self.channel!r}'}>"


_LINE_ENDS_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")


class NewPublication(msgspec.Struct, tag="message", rename={"sender": "from"}, gc=False):
    """What a `publish_json` says; `sender` is the id of a member."""

    channel: str
    data: msgspec.Raw
    ts: int
    sender: str | msgspec.UnsetType


class _Accepted(msgspec.Struct, gc=False):
    ts: int
    position: str | msgspec.UnsetType
    duplicate: bool | msgspec.UnsetType


class _PublishReply(msgspec.Struct, tag="reply", gc=False):
    channel: str
    id: int | str
    data: _Accepted


write = msgspec.json.Encoder().encode
"""`encode` for what msgspec writes best: a `NewPublication`."""


def publish_json(channel: str, data: bytes | msgspec.Raw, ts: int, sender: str | None) -> bytes:
    """``{"type":"message","channel","data","ts","from"?}``; `data` is JSON."""
    raw = data if isinstance(data, msgspec.Raw) else msgspec.Raw(data)
    return write(NewPublication(channel, raw, ts, UNSET if sender is None else sender))


def publication_payload(json: bytes) -> bytes:
    """A `publish_json` that can be gone on with."""
    return json[:-1]


def publication_json(payload: bytes, position: str | None) -> bytes:
    """The JSON of the ``message`` event of a `publication_payload`."""
    return payload + b"}" if position is None else b'%b,"position":"%b"}' % (payload, position.encode())


def publication(channel: str, payload: bytes, position: str | None) -> Message:
    """The ``message`` event of a `publication_payload`."""
    return publish_message(channel, publication_json(payload, position), position)


class _NodePublication(msgspec.Struct, gc=False):
    type: str
    channel: str
    data: msgspec.Raw
    ts: int


_decode_publication = msgspec.json.Decoder(_NodePublication).decode


def is_publication(payload: bytes, channel: str) -> bool:
    """Whether `payload` is a `publication_payload` for `channel`: what another node has sent may be anything."""
    try:
        return _decode_publication(payload + b"}").channel == channel
    except (msgspec.DecodeError, RecursionError, ValueError):
        return False


_NodeMessage = TypeVar("_NodeMessage", bound=msgspec.Struct)


class Typist(msgspec.Struct, gc=False, rename="camel"):
    """What nodes tell each other of a member that types, or has stopped."""

    member_id: str
    typing: bool


class Order(msgspec.Struct, gc=False, rename="camel"):
    """What nodes tell each other to do with the clients of a member: take them out of `channel`, or close them."""

    member_id: str
    reason: str
    channel: str | None = None
    code: Annotated[int, msgspec.Meta(ge=1_000, le=4_999)] = 1_008


class NodeCall(msgspec.Struct, gc=False, tag="call"):
    """What a node asks another one to do, for a connection that is there: what its client has sent."""

    number: int
    sender: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{8}$")]
    connection: str
    body: str


class NodeAnswer(msgspec.Struct, tag="answer"):
    """What became of a NodeCall: done, or the error as HTTP has it."""

    number: int
    status: int = 204
    error: tuple[str, str] | None = None
    headers: list[tuple[str, str]] = []


_node_call_decoder: msgspec.json.Decoder[NodeCall | NodeAnswer] = msgspec.json.Decoder(NodeCall | NodeAnswer)


def decode_node_call(data: bytes) -> NodeCall | NodeAnswer:
    """One of the two that came as JSON. Raises MalformedMessage."""
    try:
        return _node_call_decoder.decode(data)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise MalformedMessage(str(error)) from None


def decode_node_message(data: bytes, kind: type[_NodeMessage]) -> _NodeMessage:
    """A Typist or an Order that came as JSON. Raises MalformedMessage."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, RecursionError, ValueError) as error:
        raise MalformedMessage(str(error)) from None


def publish_message(channel: str, json: bytes, position: str | None = None) -> Message:
    """The ``message`` event whose JSON is there already."""
    # With its frame: there are few channels without a WebSocket.
    return Message("message", channel, UNSET, None, None, position, json, Frame.text(json))


def publish_reply(
    channel: str,
    id: int | str,  # noqa: A002
    ts: int,
    position: str | None,
    duplicate: bool,
) -> Message:
    """``{"type":"reply","channel","id","data":{"ts","position"?,"duplicate"?}}``."""
    accepted = _Accepted(ts, UNSET if position is None else position, duplicate or UNSET)
    json = write(_PublishReply(channel, id, accepted))
    return Message("reply", channel, UNSET, None, None, None, json, Frame.text(json))


def gap_message(channel: str, position: str | None) -> Message:
    """``{"type":"gap","channel","data":{"position"?}}``: messages up to `position` are gone."""
    message = Message("gap", channel, {} if position is None else {"position": position})
    message.position = position
    return message


def error_message(
    code: ErrorCode,
    message: str,
    *,
    id: int | str | None = None,  # noqa: A002
    channel: str | None = None,
) -> Message:
    """``{"type":"error","id"?,"channel"?,"data":{"code","message"}}``."""
    return Message("error", channel, {"code": code, "message": message}, None, id)

"""The JSON envelope: what is accepted, what is refused, and what goes out."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import random
import uuid
from typing import Any, TypedDict

import msgspec
import pytest

from street_fast.errors import ConfigurationError
from street_fast.messages import (
    UNSET,
    MalformedMessage,
    Message,
    decode,
    decode_data,
    decoder_for,
    encode,
    error_message,
    gap_message,
    publication,
    publication_payload,
    publish_json,
    publish_message,
    publish_reply,
)

SOME_TIME = dt.datetime(2024, 1, 2, 3, 4, 5, tzinfo=dt.timezone.utc)


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Cursor(TypedDict):
    line: int


@dataclasses.dataclass
class Move:
    by: int


# --- in ---------------------------------------------------------------------------------------------------------


def test_envelope_fields() -> None:
    envelope = decode(b'{"type":"chat","channel":"room","data":{"text":"hi"},"id":7,"extra":[1]}')
    assert (envelope.type, envelope.channel, envelope.id) == ("chat", "room", 7)
    assert decode_data(envelope.raw_data) == {"text": "hi"}


def test_only_type_is_required() -> None:
    envelope = decode(b'{"type":"pong"}')
    assert envelope.channel is None
    assert envelope.id is None
    assert envelope.raw_data is UNSET


def test_data_stays_raw_to_the_byte() -> None:
    raw = decode(b'{"type":"x","data": {"a" : 1.50e0} }').raw_data
    assert bytes(raw) == b'{"a" : 1.50e0}'  # type: ignore[arg-type]


def test_payload_is_the_streetjs_name_of_data() -> None:
    assert decode_data(decode(b'{"type":"x","payload":1}').raw_data) == 1
    assert decode_data(decode(b'{"type":"x","payload":1,"data":2}').raw_data) == 2
    assert decode_data(decode(b'{"type":"x","payload":1,"data":null}').raw_data) is None


@pytest.mark.parametrize("id_", [0, -1, 2**53 - 1, "a", "", "x" * 64, None])
def test_ids(id_: object) -> None:
    assert decode(json.dumps({"type": "x", "id": id_}).encode()).id == id_


@pytest.mark.parametrize("id_", [2**53, -(2**53), 10**40, "x" * 65, 1.5, True, [], {}])
def test_ids_that_could_not_be_echoed_are_refused(id_: object) -> None:
    with pytest.raises(MalformedMessage, match=r"\$\.id"):
        decode(json.dumps({"type": "x", "id": id_}).encode())


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b" ",
        b"x",
        b"[]",
        b"null",
        b'"type"',
        b"{}",
        b'{"type":1}',
        b'{"type":null}',
        b'{"type":"x"',
        b'{"type":"x"} {}',
        b'{"type":"x","channel":1}',
        b'{"type":"x","data":}',
        b'{"type":"x","data":[1,]}',
        b'{"type":"x","data":01}',
        b'{"type":"x","data":NaN}',
        b'{"type":"x","data":"\\q"}',
        b'{"type":"x","data":"a\nb"}',
        b'{"type":"x","data":"\\ud800"}',
        b'{"type":"x","data":[1}}',
        b"{'type':'x'}",
        b'\xef\xbb\xbf{"type":"x"}',
    ],
)
def test_malformed(text: bytes) -> None:
    with pytest.raises(MalformedMessage) as caught:
        decode(text)
    assert str(caught.value)
    assert caught.value.code == "bad_request"


def nested(depth: int, opening: str = "[") -> bytes:
    """An envelope that nests `depth` deep, itself included."""
    inner = "1"
    for _ in range(depth - 1):
        inner = f"[{inner}]" if opening == "[" else f'{{"k":{inner}}}'
    return f'{{"type":"x","data":{inner}}}'.encode()


@pytest.mark.parametrize("opening", ["[", "{"])
def test_depth(opening: str) -> None:
    assert decode(nested(32, opening)).type == "x"
    with pytest.raises(MalformedMessage, match="deeper than 32"):
        decode(nested(33, opening))


def test_depth_is_counted_in_what_is_ignored_too() -> None:
    with pytest.raises(MalformedMessage, match="deeper than 3"):
        decode(b'{"type":"x","ignored":[[[1]]]}', 3)


@pytest.mark.parametrize("depth", [1_000, 30_000])
def test_depth_that_would_exhaust_the_stack(depth: int) -> None:
    with pytest.raises(MalformedMessage, match="deeper than 32"):
        decode(nested(depth))
    with pytest.raises(MalformedMessage):
        decode(b'{"type":"x","data":' + b"[" * depth)


def test_brackets_in_strings_do_not_nest() -> None:
    assert decode(json.dumps({"type": "x", "data": '[{"\\' * 100 + '"'}).encode(), 2).type == "x"


def test_many_brackets_side_by_side_do_not_nest() -> None:
    assert decode(json.dumps({"type": "x", "data": [{"a": []}] * 1_000}).encode(), 4).type == "x"
    with pytest.raises(MalformedMessage):
        decode(json.dumps({"type": "x", "data": [{"a": []}] * 1_000}).encode(), 3)


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max((depth_of(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((depth_of(item) for item in value), default=0)
    return 0


def test_depth_against_a_model() -> None:
    seed = random.randrange(2**32)
    print(f"seed={seed}")
    rand = random.Random(seed)

    def value(budget: int) -> object:
        kind = rand.randrange(4) if budget else 0
        if kind == 1:
            return [value(budget - 1) for _ in range(rand.randrange(4))]
        if kind == 2:
            keys = [rand.choice(["a", "[", '"', "\\", "{}"]) + str(i) for i in range(rand.randrange(4))]
            return {key: value(budget - 1) for key in keys}
        return rand.choice([1, None, "", '"[', "\\", '\\"{', "]]]", "ä[["])

    for _ in range(300):
        document = {"type": "x", "data": value(6)}
        text = json.dumps(document, ensure_ascii=rand.random() < 0.5).encode()
        depth = depth_of(document)
        decode(text, depth)
        if depth > 1:
            with pytest.raises(MalformedMessage):
                decode(text, depth - 1)


# --- data to a type ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Point, b'{"x":1}', Point(1, 0)),
        (Move, b'{"by":2}', Move(2)),
        (Cursor, b'{"line":3}', {"line": 3}),
        (dict, b'{"a":[1]}', {"a": [1]}),
        (list[int], b"[1,2]", [1, 2]),
        (str, b'"s"', "s"),
        (dt.datetime, b'"2024-01-02T03:04:05Z"', SOME_TIME),
        (Any, b"[null]", [None]),
    ],
)
def test_decode_data(kind: Any, text: bytes, value: object) -> None:
    assert decode_data(msgspec.Raw(text), kind) == value


def test_absent_data_is_null() -> None:
    assert decode_data(UNSET) is None
    assert decode_data(UNSET, Point | None) is None
    with pytest.raises(MalformedMessage, match="data does not fit: Expected `object`, got `null`"):
        decode_data(UNSET, Point)


def test_data_that_does_not_fit_says_where() -> None:
    with pytest.raises(MalformedMessage, match=r"Expected `int`, got `str` - at `\$\.x`"):
        decode_data(msgspec.Raw(b'{"x":"1"}'), Point)


def test_decoders_are_cached() -> None:
    assert decoder_for(Point) is decoder_for(Point)


class NotData:
    pass


class Unresolvable(msgspec.Struct):
    x: Nowhere  # type: ignore[name-defined]  # noqa: F821


@pytest.mark.parametrize("kind", [NotData, Unresolvable])
def test_types_that_json_cannot_become(kind: Any) -> None:
    with pytest.raises(ConfigurationError, match=kind.__name__):
        decoder_for(kind)


# --- out --------------------------------------------------------------------------------------------------------


def test_message_json() -> None:
    message = Message("chat", channel="room", data={"text": "ä"}, ts=5, id=1)
    assert message.json == '{"type":"chat","channel":"room","data":{"text":"ä"},"ts":5,"id":1}'.encode()


@pytest.mark.parametrize("kind", [5, None, b"chat", {"text": "x"}])
def test_a_message_has_a_name(kind: Any) -> None:
    with pytest.raises(TypeError, match=r"type=.*: must be a str, the name of the event"):
        Message(kind).frame  # noqa: B018


@pytest.mark.parametrize(
    ("data", "wrong"),
    [(object(), "not JSON serializable: object"), (2**70, "64-bit range"), ({1: 2}, "key must be str")],
)
@pytest.mark.parametrize("channel", [None, "room"])
def test_what_json_cannot_hold_is_said_with_the_event(data: Any, wrong: str, channel: str | None) -> None:
    where = "event 'chat'" if channel is None else "event 'chat' of channel 'room'"
    for _ in range(2):
        with pytest.raises(TypeError, match=rf"{where} cannot be written as JSON: .*{wrong}"):
            Message("chat", channel, data).frame  # noqa: B018


def test_message_leaves_out_what_it_has_not() -> None:
    assert Message("ping").json == b'{"type":"ping"}'
    assert Message("x", data=None).json == b'{"type":"x","data":null}'
    assert Message("x", ts=0, id=0).json == b'{"type":"x","ts":0,"id":0}'


def test_message_is_built_once() -> None:
    message = Message("x", data=[1])
    assert message.json is message.json
    assert message.frame is message.frame
    assert message.frame.payload == message.json
    assert message.frame.opcode == 1


def test_raw_data_is_spliced_in_as_it_is() -> None:
    raw = decode(b'{"type":"x","data":{ "a":1.0 }}').raw_data
    assert Message("y", data=raw).json == b'{"type":"y","data":{ "a":1.0 }}'
    assert Message("y", data={"inner": [raw]}).json == b'{"type":"y","data":{"inner":[{ "a":1.0 }]}}'


def test_everything_that_applications_send() -> None:
    day = dt.date(2024, 1, 2)
    key = uuid.UUID(int=1)
    value = {"struct": Point(1), "move": Move(2), "day": day, "key": key, "set": {3}, "raw": msgspec.Raw(b"[4]")}
    assert json.loads(encode(value)) == {
        "struct": {"x": 1, "y": 0},
        "move": {"by": 2},
        "day": "2024-01-02",
        "key": str(key),
        "set": [3],
        "raw": [4],
    }


def test_data_that_cannot_be_written() -> None:
    with pytest.raises(TypeError, match="NotData"):
        Message("x", data={"a": NotData()}).json  # noqa: B018


def test_error_message() -> None:
    assert json.loads(error_message("bad_request", "no", id="7").json) == {
        "type": "error",
        "id": "7",
        "data": {"code": "bad_request", "message": "no"},
    }
    assert json.loads(error_message("forbidden", "no", channel="c").json)["channel"] == "c"


# --- of a Realtime ----------------------------------------------------------------------------------------------


def test_the_fields_of_realtime() -> None:
    envelope = decode(b'{"type":"subscribe","channel":"c","token":"t","since":"e:1:x","key":"k","more":[1]}')
    assert (envelope.token, envelope.since, envelope.key) == ("t", "e:1:x", "k")
    assert decode(b'{"type":"x","token":null}').token is None
    for field in ("token", "since", "key"):
        with pytest.raises(MalformedMessage, match=rf"Expected `str . null`.*\$\.{field}"):
            decode(b'{"type":"x","%b":5}' % field.encode())


@pytest.mark.parametrize("sender", [None, 'a"\u2028'])
@pytest.mark.parametrize("position", [None, "e:1:t"])
@pytest.mark.parametrize("channel", ["room", 'r\\"ö\u2029'])
def test_a_publication_is_written_in_two_steps(channel: str, position: str | None, sender: str | None) -> None:
    raw = decode(b'{"type":"publish","data":{"a" : [1.50, 123456789012345678901]}}').raw_data
    assert isinstance(raw, msgspec.Raw)
    message = publication(channel, publication_payload(publish_json(channel, raw, 5, sender)), position)
    assert b'"data":{"a" : [1.50, 123456789012345678901]},"ts":5' in message.json
    expected = {"type": "message", "channel": channel, "data": {"a": [1.5, 123456789012345678901]}, "ts": 5}
    expected |= {} if sender is None else {"from": sender}
    assert json.loads(message.json) == expected | ({} if position is None else {"position": position})
    assert (message.type, message.channel, message.position) == ("message", channel, position)
    assert message.frame.payload == message.json
    assert repr(message) == f"<Message 'message' channel={channel!r}>"


def test_raw_bytes_may_be_data_of_a_publication() -> None:
    json = publish_json("c", b"null", 0, "m")
    assert json == b'{"type":"message","channel":"c","data":null,"ts":0,"from":"m"}'
    one, other = publish_message("c", json), publication("c", publication_payload(json), None)
    assert (one.json, one.frame.wire, one.position) == (other.json, other.frame.wire, None)


def test_replies_to_a_publish() -> None:
    assert json.loads(publish_reply("c", 1, 5, None, False).json) == {
        "type": "reply",
        "channel": "c",
        "id": 1,
        "data": {"ts": 5},
    }
    assert json.loads(publish_reply('"', 'a"', 5, "e:1:t", True).json) == {
        "type": "reply",
        "channel": '"',
        "id": 'a"',
        "data": {"ts": 5, "position": "e:1:t", "duplicate": True},
    }


def test_gap() -> None:
    assert json.loads(gap_message("c", "e:1:t").json) == {"type": "gap", "channel": "c", "data": {"position": "e:1:t"}}
    assert gap_message("c", "e:1:t").position == "e:1:t"
    assert json.loads(gap_message("c", None).json)["data"] == {}


# --- as Server-Sent Events --------------------------------------------------------------------------------------


def test_an_event_has_the_position_as_its_id() -> None:
    payload = publication_payload(publish_json("c", b"1", 5, None))
    assert publication("c", payload, "e:1:t").event == b"id: e:1:t\ndata: " + payload + b',"position":"e:1:t"}\n\n'
    message = publication("c", payload, None)
    assert message.event == b"data: " + payload + b"}\n\n"
    assert message.event is message.event


@pytest.mark.parametrize("space", [b"\n", b"\r", b"\r\n", b"\n\n", b" \r\r \n"])
def test_line_ends_of_a_client_do_not_end_the_line(space: bytes) -> None:
    data = b'{%b"a"%b:%b[1,%b"x\\ny"]%b}' % ((space,) * 5)
    raw = decode(b'{"type":"publish","data":%b}' % data).raw_data
    assert isinstance(raw, msgspec.Raw)
    message = publication("c", publication_payload(publish_json("c", raw, 5, None)), "e:1:t")
    assert data in message.json  # as it came
    head, line, *rest = message.event.split(b"\n")
    assert (head, rest) == (b"id: e:1:t", [b"", b""])
    assert b"\r" not in line
    assert json.loads(line.removeprefix(b"data: ")) == json.loads(message.json)


def test_no_text_can_forge_an_event() -> None:
    """What is between the quotes of JSON cannot be a line end: such a text is refused when it comes in."""
    for byte in range(32):
        with pytest.raises(MalformedMessage):
            decode(b'{"type":"publish","data":"\\n%b"}' % bytes([byte]))
    message = Message("x", channel="a\r\nid: b", data={"c\nd": "\r\n\r\ndata: e"})
    assert message.event.count(b"\n") == 2
    assert b"\r" not in message.event

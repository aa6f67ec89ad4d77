"""An EventSource as the HTML standard (WHATWG) writes it down, section 9.2.6, to judge streams with; for any chunks.

`StreamClient` is one that reads a stream of a Realtime, and `ask` makes the requests for its handlers.
"""

from __future__ import annotations

import asyncio
import codecs
import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from street_fast.request import Request
from tests.http_harness import Wire, settle

if TYPE_CHECKING:
    from street_fast._core import LoopContext
    from street_fast.sse import SseStream


_LINE_END = re.compile("\r\n|\r|\n")


class Event(NamedTuple):
    type: str
    data: str
    last_event_id: str

    @property
    def json(self) -> Any:
        return json.loads(self.data)


class EventSource:
    """Feed it bytes, and it has `events`, `comments` and what it would come back with: `last_event_id`, `retry_ms`."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.comments: list[str] = []
        self.retry_ms: int | None = None
        self.last_event_id = ""
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._begun = False
        self._after_cr = False
        self._line = ""
        self._data = ""
        self._type = ""
        self._id = ""

    def feed(self, data: bytes) -> EventSource:
        text = self._decoder.decode(data)
        if text and not self._begun:
            self._begun = True
            text = text.removeprefix("\ufeff")
        if text and self._after_cr:
            text = text.removeprefix("\n")
            self._after_cr = False
        if text:
            self._after_cr = text.endswith("\r")
            *lines, self._line = _LINE_END.split(self._line + text)
            for line in lines:
                self._take_line(line)
        return self

    def _take_line(self, line: str) -> None:
        if not line:
            self._dispatch()
        elif line.startswith(":"):
            self.comments.append(line[1:])
        else:
            field, colon, value = line.partition(":")
            self._take_field(field, value.removeprefix(" ") if colon else "")

    def _take_field(self, field: str, value: str) -> None:
        if field == "event":
            self._type = value
        elif field == "data":
            self._data += value + "\n"
        elif field == "id" and "\0" not in value:
            self._id = value
        elif field == "retry" and value.isascii() and value.isdigit():
            self.retry_ms = int(value)

    def _dispatch(self) -> None:
        self.last_event_id = self._id
        data, type_ = self._data, self._type
        self._data = self._type = ""
        if data:
            self.events.append(Event(type_ or "message", data[:-1], self._id))


def split(wire: bytes) -> tuple[str, EventSource]:
    """The head of a response, and its events."""
    head, separator, body = wire.partition(b"\r\n\r\n")
    assert separator, wire
    return head.decode("latin-1"), EventSource().feed(body)


class StreamClient:
    """The client of a stream that is on a `Wire`, under the clock of a `World`."""

    def __init__(self, stream: SseStream, context: LoopContext) -> None:
        self.stream = stream
        self.wire = Wire(asyncio.get_running_loop())
        stream.start(self.wire, stream.head(), context)
        self._seen = 0

    @property
    def source(self) -> EventSource:
        return split(self.wire.taken)[1]

    async def take(self) -> list[Any]:
        """The envelopes that have come since the last time."""
        await settle()
        await settle()
        events = self.source.events
        new, self._seen = events[self._seen :], len(events)
        return [event.json for event in new]

    async def take_type(self, type_: str) -> list[Any]:
        return [envelope for envelope in await self.take() if envelope["type"] == type_]

    @property
    def last_event_id(self) -> str:
        return self.source.last_event_id

    async def leave(self) -> None:
        self.wire.abort()
        await settle()


def ask(method: str, target: str, *headers: tuple[str, str], body: bytes | str = b"") -> Request:
    """A request as a handler gets it."""
    pairs = [(b"Host", b"h"), *((name.encode(), value.encode("latin-1")) for name, value in headers)]
    return Request.from_pairs(method, target, pairs, body=body if isinstance(body, bytes) else body.encode())

"""What a supervisor and its workers say to each other, over a pair of sockets: one JSON object a line.

The supervisor begins with `Begin`, which has everything that a worker needs to know; secrets among it, which is why it
does not stand in the arguments of the process. A worker answers with `Ready` or `Failed`. When the other side is gone,
the channel is at its end: a worker without a supervisor closes, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import msgspec

from street_fast.options import Options

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator

__all__ = [
    "Backplane",
    "Beat",
    "Begin",
    "Channel",
    "Failed",
    "FromSupervisor",
    "FromWorker",
    "Metrics",
    "NeedBackplane",
    "NeedMetrics",
    "NeedSnapshot",
    "Ready",
    "Snapshot",
    "decode_begin",
    "encode",
]

logger = logging.getLogger("street_fast")

_LINE_BYTES = 16 * 2**20


# --- from the supervisor ---


class Begin(msgspec.Struct, tag=True, frozen=True):
    """The first of all: serve this, on these sockets, whose descriptors are inherited."""

    options: Options
    worker: int
    descriptors: list[int]


class Backplane(msgspec.Struct, tag=True, frozen=True):
    """The answer to `NeedBackplane`: the address of what connects the workers, or why there is none."""

    url: str | None = None
    problem: str = ""


class NeedSnapshot(msgspec.Struct, tag=True, frozen=True):
    """Say in a `Snapshot` of this number what can be measured."""

    number: int


class Metrics(msgspec.Struct, tag=True, frozen=True):
    """The answer to `NeedMetrics` of this number: the snapshots of all workers, by the worker's number."""

    number: int
    snapshots: dict[str, Any]


# --- from a worker ---


class Ready(msgspec.Struct, tag=True, frozen=True):
    """It serves; `facts` are what there is to tell about it."""

    facts: list[tuple[str, str]]


class Failed(msgspec.Struct, tag=True, frozen=True):
    """It cannot serve: the sentence, the traceback of an application if that is why, and the exit status."""

    problem: str
    traceback: str = ""
    status: int = 1


class Beat(msgspec.Struct, tag=True, frozen=True):
    """The event loop of the worker turns."""


class NeedBackplane(msgspec.Struct, tag=True, frozen=True):
    """The application has a Realtime, and brings nothing that connects the workers."""


class Snapshot(msgspec.Struct, tag=True, frozen=True):
    """The answer to `NeedSnapshot`."""

    number: int
    data: dict[str, Any]


class NeedMetrics(msgspec.Struct, tag=True, frozen=True):
    """Somebody asks this worker for the metrics of all."""

    number: int


FromSupervisor: TypeAlias = Begin | Backplane | NeedSnapshot | Metrics
FromWorker: TypeAlias = Ready | Failed | Beat | NeedBackplane | Snapshot | NeedMetrics

Incoming = TypeVar("Incoming")

_encoder = msgspec.json.Encoder()
_begin = msgspec.json.Decoder(Begin)


def encode(message: msgspec.Struct) -> bytes:
    """The line."""
    return _encoder.encode(message) + b"\n"


def decode_begin(line: bytes) -> Begin:
    """The first line that a worker gets."""
    return _begin.decode(line)


class Channel(Generic[Incoming]):
    """One side of the pair, in an event loop. `kinds` is what comes from the other side."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, kinds: Any) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder: msgspec.json.Decoder[Incoming] = msgspec.json.Decoder(kinds)

    @classmethod
    async def over(cls, sock: socket.socket, kinds: Any) -> Channel[Incoming]:
        """A channel over a connected socket, which belongs to it from then on."""
        reader, writer = await asyncio.open_unix_connection(sock=sock, limit=_LINE_BYTES)
        return cls(reader, writer, kinds)

    def send(self, message: msgspec.Struct) -> None:
        """Say it; if nobody is there any more, nothing happens."""
        if not self._writer.is_closing():
            self._writer.write(encode(message))

    async def messages(self) -> AsyncIterator[Incoming]:
        """What comes, until the other side is gone."""
        while True:
            try:
                line = await self._reader.readuntil()
            except (asyncio.IncompleteReadError, OSError):
                return
            except asyncio.LimitOverrunError:
                logger.error("a process of ours said too much at once; it is left alone")
                return
            yield self._decoder.decode(line)

    def close(self) -> None:
        """Nothing more is said, and the other side notices."""
        with contextlib.suppress(OSError, RuntimeError):
            self._writer.close()

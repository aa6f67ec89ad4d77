"""What publishers and subscribers write down, one line for each thing, and how it is read again.

A line is ``time kind who channel position key``, separated by tabs, ``-`` for what there is not. Times are seconds of
one monotonic clock. A publisher writes ``ack`` only when the answer is there, so what the file has is acknowledged.

Publishers (`who` is ``p3.2``: the second connection of publisher p3):
    send    about to publish this key for the first time
    ack     the answer came, with the position
    open    the programme ends, and the answer has not come: nobody knows
Subscribers:
    here    subscribed for the first time, at this position
    back    subscribed again, "recovered": true
    flag    told that something is missing, and goes on behind this position (-: behind whatever comes). `key` is why:
            gap, not-recovered, or away: the connection was lost, of a channel that keeps no history
    got     a message, handed on
    dup     a message that the client dropped, as docs/protocol.md says: it has had this offset
    left    the connection was lost, and this client does not come back: nothing more is owed to it
    bad     a message with other data than was published
"""

from __future__ import annotations

import contextlib
from typing import IO, TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

NOTHING = "-"


class Entry(NamedTuple):
    """One line."""

    time: float
    kind: str
    who: str
    channel: str
    position: str = NOTHING
    key: str = NOTHING


class Journal:
    """Writes entries to a file and keeps them, for the programme to look at while it runs."""

    def __init__(self, path: Path) -> None:
        self.entries: list[Entry] = []
        self._file: IO[str] = path.open("w", encoding="utf-8", buffering=1 << 16)

    def write(self, time: float, kind: str, who: str, channel: str, position: str | None, key: str | None) -> None:
        entry = Entry(time, kind, who, channel, position or NOTHING, key or NOTHING)
        self.entries.append(entry)
        self._file.write("{:.6f}\t{}\t{}\t{}\t{}\t{}\n".format(*entry))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        with contextlib.suppress(ValueError):
            self._file.close()


def read(path: Path) -> Iterator[Entry]:
    """The entries of a file. Raises ValueError for a line that is none."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            fields = line.rstrip("\n").split("\t")
            if len(fields) != len(Entry._fields):
                raise ValueError(f"{path}:{number}: {len(fields)} fields, must be {len(Entry._fields)}")
            yield Entry(float(fields[0]), *fields[1:])

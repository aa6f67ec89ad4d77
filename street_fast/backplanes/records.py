"""What nodes tell each other on a bus: one line of text, and behind it bytes that are nobody's business here.

    S1 m <node> <skip>\\n<payload>                                  a message that is not kept
    S1 k <node> <epoch> <offset> <tag> <skip>\\n<payload>           one that is, and where
    S1 s <node>\n<payload>                                         a signal: what may be missed
    S1 p <node> <previous> <version>\\n{"joined":..., "left":...}   members of this channel on that node have changed
    S1 r <node>\\n                                                  ... have to be read again
    S1 l <node>\\n                                                  messages of this channel did not reach the bus
    S1 q <node> <number>\\n                                         a probe

`skip` is the id of a connection, or ``-``. Whoever can write to the broker can write anything: what is not exactly one
of these raises ValueError, and is to be counted and skipped. The 1 is the version; a node skips what it does not know.
"""

from __future__ import annotations

import base64
import os
import re
from typing import NamedTuple

import msgspec

from street_fast.backplanes import Position, Publication

__all__ = [
    "MOST_BYTES",
    "Record",
    "decode",
    "kept",
    "kept_head",
    "lost",
    "message",
    "new_node_id",
    "presence_changed",
    "presence_unknown",
    "probe",
    "signal",
]

MOST_BYTES = 16_777_216
"""A record may have; what is larger is no message of ours."""

_NODE = rb"[0-9a-f]{16}"
_MESSAGE = re.compile(rb"S1 m (" + _NODE + rb") ([!-~]{1,64})")
_KEPT = re.compile(
    rb"S1 k (" + _NODE + rb") ([0-9A-Za-z_-]{1,24}) ([1-9][0-9]{0,14}) ([0-9A-Za-z_-]{1,16}) ([!-~]{1,64})"
)
_PRESENCE = re.compile(rb"S1 p (" + _NODE + rb") (0|[1-9][0-9]{0,14}) ([1-9][0-9]{0,14})")
_PROBE = re.compile(rb"S1 q (" + _NODE + rb") (0|[1-9][0-9]{0,14})")
_SIGNAL = re.compile(rb"S1 s (" + _NODE + rb")")
_BARE = re.compile(rb"S1 ([rl]) (" + _NODE + rb")")


class Record(NamedTuple):
    """One record; what is not of its kind is None, 0 or empty."""

    kind: str
    """``m``, ``k``, ``s``, ``p``, ``r``, ``l`` or ``q``."""
    node: str
    """Who sent it."""
    publication: Publication | None = None
    """Of `m` and `k`; of `s` its payload."""
    previous: int = 0
    """The version of the members of this channel before a `p`; 0: there were none."""
    number: int = 0
    """The version after a `p`; the number of a `q`."""
    joined: dict[str, bytes | None] = {}  # noqa: RUF012 - nobody writes to it
    """Of `p`: members who came, or whose info changed."""
    left: list[str] = []  # noqa: RUF012 - nobody writes to it
    """Of `p`."""


class _Changes(msgspec.Struct):
    joined: dict[str, str | None] = {}
    left: list[str] = []


_decode = msgspec.json.Decoder(_Changes).decode
_encode_changes = msgspec.json.Encoder().encode


def new_node_id() -> str:
    """A node is one start of a backplane: 64 random bits, in hexadecimal."""
    return os.urandom(8).hex()


def message(node: str, publication: Publication) -> bytes:
    """An `m` record."""
    return b"S1 m %b %b\n%b" % (node.encode(), _skip(publication.skip), publication.payload)


def kept(node: str, publication: Publication) -> bytes:
    """A `k` record."""
    assert publication.position is not None
    return kept_head(node, publication.position, publication.skip) + publication.payload


def kept_head(node: str, position: Position, skip: str | None) -> bytes:
    """What stands before the payload in a `k` record."""
    epoch, offset, tag = position
    return b"S1 k %b %b %d %b %b\n" % (node.encode(), epoch.encode(), offset, tag.encode(), _skip(skip))


def signal(node: str, payload: bytes) -> bytes:
    """An `s` record."""
    return b"S1 s %b\n%b" % (node.encode(), payload)


def presence_changed(node: str, previous: int, version: int, joined: dict[str, bytes | None], left: list[str]) -> bytes:
    """A `p` record."""
    infos = {member: None if info is None else base64.b64encode(info).decode() for member, info in joined.items()}
    return b"S1 p %b %d %d\n%b" % (node.encode(), previous, version, _encode_changes(_Changes(infos, left)))


def presence_unknown(node: str) -> bytes:
    """An `r` record."""
    return b"S1 r %b\n" % node.encode()


def lost(node: str) -> bytes:
    """An `l` record."""
    return b"S1 l %b\n" % node.encode()


def probe(node: str, number: int) -> bytes:
    """A `q` record."""
    return b"S1 q %b %d\n" % (node.encode(), number)


def decode(data: bytes) -> Record:
    """The record that `data` is. Raises ValueError for anything else."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"{len(data)} bytes: a record has at most {MOST_BYTES}")
    head, newline, body = data.partition(b"\n")
    if newline:
        kind = head[3:4]
        if kind == b"k":
            match = _KEPT.fullmatch(head)
            if match is not None:
                node, epoch, offset, tag, skip = match.groups()
                position = Position(epoch.decode(), int(offset), tag.decode())
                return Record("k", node.decode(), Publication(body, position, _skipped(skip)))
        elif kind == b"m":
            match = _MESSAGE.fullmatch(head)
            if match is not None:
                node, skip = match.groups()
                return Record("m", node.decode(), Publication(body, None, _skipped(skip)))
        else:
            record = _other(head, body)
            if record is not None:
                return record
    raise ValueError(f"no record of this version: {data[:40]!r}")


def _other(head: bytes, body: bytes) -> Record | None:
    match = _PRESENCE.fullmatch(head)
    if match is not None:
        node, previous, version = match.groups()
        try:
            changes = _decode(body)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ValueError(str(error)) from None
        joined = {
            member: None if info is None else base64.b64decode(info, validate=True)
            for member, info in changes.joined.items()
        }
        return Record("p", node.decode(), None, int(previous), int(version), joined, changes.left)
    match = _SIGNAL.fullmatch(head)
    if match is not None:
        return Record("s", match[1].decode(), Publication(body))
    if body:
        return None
    match = _PROBE.fullmatch(head)
    if match is not None:
        node, number = match.groups()
        return Record("q", node.decode(), number=int(number))
    match = _BARE.fullmatch(head)
    if match is not None:
        kind, node = match.groups()
        return Record(kind.decode(), node.decode())
    return None


def _skip(skip: str | None) -> bytes:
    return b"-" if skip is None else skip.encode()


def _skipped(skip: bytes) -> str | None:
    return None if skip == b"-" else skip.decode()

"""What nodes tell each other: there and back, and everything else refused."""

from __future__ import annotations

import random

import pytest

from street_fast.backplanes import Position, Publication, records
from street_fast.backplanes.records import MOST_BYTES, Record, decode

NODE = "0123456789abcdef"
POSITION = Position("e-1_", 7, "Tag9")


@pytest.mark.parametrize("payload", [b"", b"x", b"\n", b"a\nb\x00\xff", b"S1 m " + NODE.encode() + b" -\n"])
@pytest.mark.parametrize("skip", [None, "c0ffee", "x" * 64])
def test_messages_come_back(payload, skip):
    for publication, kind, encode in (
        (Publication(payload, None, skip), "m", records.message),
        (Publication(payload, POSITION, skip), "k", records.kept),
    ):
        data = encode(NODE, publication)
        assert decode(data) == Record(kind, NODE, publication)
    assert records.kept_head(NODE, POSITION, skip) + payload == records.kept(NODE, Publication(payload, POSITION, skip))
    assert decode(records.signal(NODE, payload)) == Record("s", NODE, Publication(payload))


def test_the_rest_comes_back():
    joined = {"ann": None, "bob\n": b'{"x":"\xc3\xa4"}', "eve": b""}
    assert decode(records.presence_changed(NODE, 0, 3, joined, ["z"])) == Record("p", NODE, None, 0, 3, joined, ["z"])
    assert decode(records.presence_unknown(NODE)) == Record("r", NODE)
    assert decode(records.lost(NODE)) == Record("l", NODE)
    assert decode(records.probe(NODE, 0)) == Record("q", NODE)
    assert decode(records.probe(NODE, 12)).number == 12


def test_node_ids_are_ids_and_all_different():
    ids = {records.new_node_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(decode(records.lost(node)).node == node for node in ids)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\n",
        b"S1",
        b"S1 m 0123456789abcdef -",  # no newline
        b"S2 m 0123456789abcdef -\nx",  # another version
        b"S1 x 0123456789abcdef -\nx",
        b"S1 m 0123456789abcde -\nx",
        b"S1 m 0123456789ABCDEF -\nx",
        b"S1 m 0123456789abcdef\nx",
        b"S1 m 0123456789abcdef - -\nx",
        b"S1 m 0123456789abcdef " + b"s" * 65 + b"\nx",
        b"S1 k 0123456789abcdef e 0 t -\nx",  # the offset 0 is before the first message
        b"S1 k 0123456789abcdef e -1 t -\nx",
        b"S1 k 0123456789abcdef e 01 t -\nx",
        b"S1 k 0123456789abcdef e 9999999999999999 t -\nx",
        b"S1 k 0123456789abcdef e:e 1 t -\nx",
        b"S1 k 0123456789abcdef e 1 t\nx",
        b"S1 p 0123456789abcdef 0 0\n{}",
        b"S1 p 0123456789abcdef 0 1\n{",
        b"S1 p 0123456789abcdef 0 1\n[]",
        b'S1 p 0123456789abcdef 0 1\n{"joined":{"a":"no base64!"}}',
        b'S1 p 0123456789abcdef 0 1\n{"joined":{"a":5}}',
        b'S1 p 0123456789abcdef 0 1\n{"left":[1]}',
        b'S1 p 0123456789abcdef 0 1\n{"other":' + b"[" * 100_000,
        b"S1 r 0123456789abcdef\nmore",
        b"S1 q 0123456789abcdef x\n",
        b"\x80\x04\x95cposix\nsystem\n",
    ],
)
def test_anything_else_is_refused(data):
    with pytest.raises(ValueError):  # noqa: PT011 - whatever it says
        decode(data)


def test_what_is_huge_is_refused_by_its_size():
    with pytest.raises(ValueError, match="bytes: a record has at most"):
        decode(records.message(NODE, Publication(bytes(MOST_BYTES))))


@pytest.mark.parametrize("seed", range(3))
def test_random_damage_is_refused_or_another_record(seed):
    print("seed", seed)
    chance = random.Random(seed)
    whole = [
        records.kept(NODE, Publication(b'{"x":1', POSITION, "c1")),
        records.presence_changed(NODE, 1, 2, {"ann": b"{}"}, ["bob"]),
        records.probe(NODE, 3),
    ]
    refused = 0
    for _ in range(3_000):
        data = bytearray(chance.choice(whole))
        for _ in range(chance.randint(1, 4)):
            at = chance.randrange(len(data))
            data[at : at + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
            if not data:
                break
        try:
            assert isinstance(decode(bytes(data)), Record)
        except ValueError:
            refused += 1
    assert refused > 1_000

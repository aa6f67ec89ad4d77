"""The options travel to the workers."""

from __future__ import annotations

import json

import msgspec

from street_fast.options import Allowed, Kept, Options


def test_options_travel_as_json() -> None:
    options = Options(application="a:b", history=[Kept("*", 1, 2.0)], allow=[Allowed("*", ["publish"])], guests=False)
    assert msgspec.json.decode(msgspec.json.encode(options), type=Options) == options
    assert json.loads(msgspec.json.encode(Options()))["workers"] == 1

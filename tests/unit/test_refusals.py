"""Refused requests: every error code has a status, and what cannot be read is refused."""

from __future__ import annotations

import json
from typing import get_args

import pytest

from street_fast.messages import ErrorCode
from street_fast.refusals import Refused, checked_text, decoded


@pytest.mark.parametrize("code", get_args(ErrorCode))
def test_every_code_has_a_status(code):
    response = Refused(code, "because", headers=[("Retry-After", "1")]).response([("Vary", "Origin")])
    assert 400 <= response.status <= 503
    assert json.loads(response.body) == {"error": {"code": code, "message": "because"}}
    assert {("Retry-After", "1"), ("Vary", "Origin"), ("Cache-Control", "no-store")} <= set(response.headers)


def test_a_status_of_its_own():
    assert Refused("bad_request", "no such connection", 404).response().status == 404


@pytest.mark.parametrize("body", [b"", b"{", b"[1", b'"\xff"', b'"text"', b"[" * 100_000])
def test_a_body_that_is_none(body):
    with pytest.raises(Refused) as caught:
        decoded(body, list[int])
    assert caught.value.status == 400
    assert "JSON" in caught.value.message


def test_text_is_utf_8():
    assert checked_text("é".encode()) == "é"
    with pytest.raises(Refused, match="not UTF-8"):
        checked_text(b"\xff")

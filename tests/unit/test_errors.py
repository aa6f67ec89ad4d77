"""Close codes as data, and the faces of the exceptions: sentence, stable code, close code or status."""

from __future__ import annotations

import pytest

from street_fast import errors
from street_fast.errors import CloseCode, is_sendable_close_code


@pytest.mark.parametrize("code", CloseCode)
def test_every_close_code_knows_its_facts(code: CloseCode) -> None:
    assert code.explanation
    assert code.may_reconnect in (True, False)
    assert code.sendable == is_sendable_close_code(code)
    assert str(code) == f"{code}" == f"{code:d}" == str(code.value)


def test_what_may_travel_is_what_the_rfc_allows() -> None:
    """RFC 6455 section 7.4: not 1004-1006, 1015, or anything unassigned below 3000."""
    allowed = {code for code in range(6_000) if is_sendable_close_code(code)}
    assert allowed == {*range(1000, 1004), *range(1007, 1015), *range(3000, 5000)}


def test_a_client_comes_back_when_it_was_not_its_fault() -> None:
    back = {code for code in CloseCode if code.may_reconnect}
    assert {CloseCode.GOING_AWAY, CloseCode.SERVICE_RESTART, CloseCode.SLOW_CONSUMER, CloseCode.ABNORMAL} <= back
    assert back.isdisjoint({CloseCode.NORMAL, CloseCode.PROTOCOL_ERROR, CloseCode.UNAUTHORIZED, CloseCode.RATE_LIMITED})


def test_every_exception_is_ours_and_has_a_stable_code() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.StreetError)]
    assert len(kinds) >= 6
    assert all(isinstance(kind.code, str) for kind in kinds)


def test_the_exceptions_say_what_they_know() -> None:
    closed = errors.ConnectionClosed(4008, "slow consumer")
    assert (closed.close_code, closed.reason) == (4008, "slow consumer")
    assert str(closed) == "the connection is closed (4008: slow consumer)"
    assert str(errors.ConnectionClosed(1006)) == "the connection is closed (1006)"
    broken = errors.ProtocolError(CloseCode.PROTOCOL_ERROR, "rsv", "reserved bits")
    assert (broken.close_code, broken.code, str(broken)) == (1002, "rsv", "reserved bits")
    refused = errors.HandshakeRefused(426, "version", "version 13 only", (("Sec-WebSocket-Version", "13"),))
    assert (refused.status, refused.headers, str(refused)) == (
        426,
        (("Sec-WebSocket-Version", "13"),),
        "version 13 only",
    )
    assert issubclass(errors.ConfigurationError, ValueError)
    assert issubclass(errors.ListenError, OSError)

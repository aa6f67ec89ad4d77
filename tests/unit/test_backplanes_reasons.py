import asyncio
import socket

import pytest

from street_fast.backplanes.reasons import reason_of


def replaced(error: Exception) -> Exception:
    try:
        try:
            raise error
        except OSError:
            raise RuntimeError("host:1 cannot be reached") from None
    except RuntimeError as outer:
        return outer


def wrapped(error: Exception) -> Exception:
    try:
        try:
            raise error
        except OSError as cause:
            raise RuntimeError("Error 111 connecting.") from cause
    except RuntimeError as outer:
        return outer


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ConnectionRefusedError(111, "Connect call failed"), "connection refused"),
        (wrapped(ConnectionRefusedError(111, "Connect call failed")), "connection refused"),
        (wrapped(socket.gaierror(-2, "Name or service not known")), "Name or service not known"),
        (wrapped(OSError(113, "No route to host")), "Error 111 connecting"),
        (replaced(ConnectionRefusedError(111, "Connect call failed")), "host:1 cannot be reached"),
        (asyncio.TimeoutError(), "no answer in time"),
        (TimeoutError("after 3 s"), "after 3 s"),
        (ValueError(), "ValueError"),
    ],
)
def test_an_error_in_the_words_of_a_log(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason

"""Why a broker cannot be had, in the words of a log."""

from __future__ import annotations

import asyncio
import socket

__all__ = ["reason_of"]


def reason_of(error: BaseException) -> str:
    """What went wrong, without a full stop. The libraries wrap errors of the system; those say it best."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, socket.gaierror):
            return cause.strerror or "its name is not known"
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    if isinstance(error, (asyncio.TimeoutError, TimeoutError)) and not str(error):
        return "no answer in time"
    return str(error).rstrip(".") or type(error).__name__

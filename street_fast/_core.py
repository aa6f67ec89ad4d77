"""The one switch between the compiled hot path and its pure-Python twin: all of it or none.

``STREET_FAST_PURE=1`` in the environment chooses the twin; so does an installation without the extensions.
Everything above this floor imports from here.
"""

from __future__ import annotations

import importlib.util
import os
from typing import TYPE_CHECKING

__all__ = [
    "COMPILED",
    "OP_BINARY",
    "OP_CLOSE",
    "OP_CONTINUATION",
    "OP_PING",
    "OP_PONG",
    "OP_TEXT",
    "UNHANDLED",
    "Frame",
    "FrameParser",
    "Intake",
    "IntakeContext",
    "LoopContext",
    "Rate",
    "Rates",
    "Timer",
    "TimerWheel",
    "Unhandled",
    "Verdict",
    "WebSocket",
    "apply_mask",
    "broadcast",
    "encode_close",
    "encode_frame",
    "fan_out",
    "unix_time_ms",
    "validate_utf8",
]


def _wants_pure() -> bool:
    value = os.environ.get("STREET_FAST_PURE", "0")
    if value not in ("", "0", "1"):
        raise ImportError(f"STREET_FAST_PURE={value!r}: must be 0 or 1")
    return value == "1"


def _compiled_is_there() -> bool:
    names = ("_frames", "_wheel", "_connection", "_intake", "_publish")
    missing = [name for name in names if importlib.util.find_spec(f"street_fast.{name}") is None]
    if missing and len(missing) < len(names):
        raise ImportError(
            f"the extension modules of street_fast are there in part only, {', '.join(missing)} missing: install it "
            f"anew, or set STREET_FAST_PURE=1"
        )
    return not missing


COMPILED: bool = not _wants_pure() and _compiled_is_there()

if TYPE_CHECKING or COMPILED:
    from street_fast._connection import LoopContext, WebSocket, broadcast, fan_out, unix_time_ms
    from street_fast._frames import (
        OP_BINARY,
        OP_CLOSE,
        OP_CONTINUATION,
        OP_PING,
        OP_PONG,
        OP_TEXT,
        Frame,
        FrameParser,
        apply_mask,
        encode_close,
        encode_frame,
        validate_utf8,
    )
    from street_fast._intake import UNHANDLED, Intake, IntakeContext, Rate, Rates, Unhandled, Verdict
    from street_fast._wheel import Timer, TimerWheel
else:
    from street_fast._connection_py import LoopContext, WebSocket, broadcast, fan_out, unix_time_ms
    from street_fast._frames_py import (
        OP_BINARY,
        OP_CLOSE,
        OP_CONTINUATION,
        OP_PING,
        OP_PONG,
        OP_TEXT,
        Frame,
        FrameParser,
        apply_mask,
        encode_close,
        encode_frame,
        validate_utf8,
    )
    from street_fast._intake_py import UNHANDLED, Intake, IntakeContext, Rate, Rates, Unhandled, Verdict
    from street_fast._wheel_py import Timer, TimerWheel

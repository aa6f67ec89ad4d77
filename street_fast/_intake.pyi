import asyncio
import enum
from collections import deque
from collections.abc import Callable
from typing import Any, Final, final

from street_fast._connection import LoopContext, WebSocket
from street_fast.limits import Limits
from street_fast.messages import Envelope
from street_fast.metrics import Counters

__all__ = ["UNHANDLED", "Intake", "IntakeContext", "Rate", "Rates", "Unhandled", "Verdict"]

class Unhandled(enum.Enum):
    UNHANDLED = 1

UNHANDLED: Final = Unhandled.UNHANDLED

class Verdict(enum.Enum):
    TAKEN = 0
    TELL = 1
    DROPPED = 2
    ABUSIVE = 3

@final
class Rates:
    def __init__(self, limits: Limits, opening_messages: int = 0) -> None: ...

@final
class Rate:
    def __init__(self, rates: Rates) -> None: ...
    def take(self, rates: Rates, now: float, size: int) -> Verdict: ...
    def refuse(self, rates: Rates, now: float) -> Verdict: ...

class IntakeContext:
    def __init__(
        self,
        loop_context: LoopContext,
        limits: Limits,
        counters: Counters,
        decode_envelope: Callable[[bytes], Envelope],
        opening_messages: int = 0,
    ) -> None: ...
    @property
    def counters(self) -> Counters: ...
    @property
    def limits(self) -> Limits: ...
    @property
    def loop_context(self) -> LoopContext: ...
    @property
    def rates(self) -> Rates: ...

class Intake:
    protocol: Any
    _full: bool
    _inbox: deque[bytes] | None
    _main: asyncio.Task[None] | None
    _malformed_in_a_row: int
    _rate: Rate | None
    _worker: asyncio.Task[None] | None
    def __init__(self, ws: WebSocket, context: IntakeContext) -> None: ...
    @property
    def _context(self) -> IntakeContext: ...
    @property
    def _ws(self) -> WebSocket: ...
    def _on_message(self, data: bytes | bytearray) -> None: ...
    def _handle(self, text: bytes) -> Any: ...

"""The requests of a client: what waits to be sent, and what waits for its answer.

A request is kept until it is answered or its time is over. It is sent again on the next connection, and when the server
says that it dropped something without saying what; each of them may be sent twice, a publish because it has a key. What
belongs to one connection (a subscribe, a login) ends with it.

What is sent is paced by the limits of the welcome, and waits while the transport does. Order is kept.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import TYPE_CHECKING

from street_fast.client.messages import RealtimeError
from street_fast.client.pacing import Pacing
from street_fast.messages import UNSET, encode

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    import msgspec

    from street_fast.client.alarms import Alarm, Alarms

    OnDone: TypeAlias = Callable[[msgspec.Raw | None, Exception | None], object]

__all__ = ["NoAnswer", "Request", "Requests"]


class NoAnswer(RealtimeError):
    """The time of a request is over."""


class Request:
    """One request. `on_done(data, error)` is called once, unless it is cancelled or ends with its connection."""

    __slots__ = ("deadline", "id", "lasting", "on_done", "queued", "sent", "text", "type")

    def __init__(
        self,
        type: str,  # noqa: A002
        id: int | None,  # noqa: A002
        text: bytes,
        on_done: OnDone | None,
        deadline: float,
        lasting: bool,
    ) -> None:
        self.type = type
        self.id = id
        self.text = text
        self.on_done = on_done
        self.deadline = deadline
        self.lasting = lasting  # beyond its connection
        self.queued = False
        self.sent = False  # on any connection


class Requests:
    """All of them.

    `send(text)` sends; `writable()` says whether the transport takes more, and if not, `pump` is to be called when it
    does. `alarms` are those of the client, `connection_alarms` those that end with a connection. `message_bytes` is the
    most that the server takes, once that is known.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float],
        alarms: Alarms,
        connection_alarms: Alarms,
        send: Callable[[bytes], object],
        writable: Callable[[], bool],
        timeout_s: float,
        queue_size: int,
    ) -> None:
        self.pacing = Pacing(clock)
        self.message_bytes: int | None = None
        self._clock = clock
        self._alarms = alarms
        self._connection_alarms = connection_alarms
        self._send = send
        self._writable = writable
        self._timeout_s = timeout_s
        self._queue_size = queue_size
        self._ids = itertools.count(1)
        self._unanswered: dict[int, Request] = {}  # oldest first, queued or sent
        self._queue: deque[Request] = deque()  # not sent on this connection
        self._open = False
        self._pump_alarm: Alarm | None = None
        self._deadline_alarm: Alarm | None = None

    def __len__(self) -> int:
        """How many are unanswered."""
        return len(self._unanswered)

    # --- asking ---

    def ask(
        self,
        type: str,  # noqa: A002
        fields: dict[str, object],
        on_done: OnDone,
        *,
        lasting: bool = True,
        first: bool = False,
    ) -> Request:
        """A request with these fields; UNSET leaves one out.

        `first` sends it at once, before the connection is open, and ahead of what waits. Raises TypeError for what
        cannot be written as JSON, RealtimeError ``limit_exceeded`` for too many bytes, or if too many wait already.
        """
        if lasting and len(self._queue) >= self._queue_size:
            raise RealtimeError("limit_exceeded", f"{len(self._queue)} requests wait to be sent already (queue_size)")
        number = next(self._ids)
        text = self._write(type, number, fields)
        request = Request(type, number, text, on_done, self._clock() + self._timeout_s, lasting)
        self._unanswered[number] = request
        if self._deadline_alarm is None:
            self._deadline_alarm = self._alarms.after(self._timeout_s, self._look_at_deadlines)
        if first:
            self._send_now(request)
        else:
            self._enqueue(request)
        return request

    def tell(self, type: str, fields: dict[str, object]) -> bool:  # noqa: A002
        """Send something that is not answered. False if it cannot be, now or soon."""
        if not self._open or len(self._queue) >= self._queue_size:
            return False
        self._enqueue(Request(type, None, self._write(type, None, fields), None, 0.0, False))
        return True

    def tell_now(self, text: bytes) -> None:
        """Send what cannot wait for its turn."""
        self.pacing.take()
        self._send(text)

    def cancel(self, request: Request) -> bool:
        """Nobody waits for it any more. Whether it may have been sent."""
        if request.id is not None:
            self._unanswered.pop(request.id, None)
        if request.queued:
            request.queued = False
            self._queue.remove(request)
        return request.sent

    def answer(self, id: int | str | None, data: msgspec.Raw | None, error: RealtimeError | None) -> None:  # noqa: A002
        """An answer came. One that nobody waits for (it was given twice, or came too late) is nothing."""
        request = self._unanswered.get(id) if isinstance(id, int) else None
        if request is not None:
            self.cancel(request)
            assert request.on_done is not None
            request.on_done(data, error)

    # --- connections ---

    def open(self) -> None:
        """The server has let us in. First comes what this connection needs, then all that lasts, oldest first."""
        self._open = True
        self._queue = deque(request for request in self._queue if not request.lasting)
        self._queue.extend(request for request in self._unanswered.values() if request.lasting)
        for request in self._queue:
            request.queued = True
        self.pump()

    def send_again(self) -> None:
        """Send again what was sent and not answered."""
        lost = [request for request in self._unanswered.values() if not request.queued]
        for request in lost:
            request.queued = True
        self._queue.extendleft(reversed(lost))
        self.pump()

    def lost(self) -> None:
        """The connection is gone."""
        self._open = False
        self._pump_alarm = None
        self._queue.clear()
        for number, request in list(self._unanswered.items()):
            request.queued = False
            if not request.lasting:
                del self._unanswered[number]

    def end(self, error: Exception) -> None:
        """Nothing is sent any more."""
        self.lost()
        unanswered, self._unanswered = self._unanswered, {}
        for request in unanswered.values():
            assert request.on_done is not None
            request.on_done(None, error)

    # --- sending ---

    def _write(self, type: str, id: int | None, fields: dict[str, object]) -> bytes:  # noqa: A002
        envelope: dict[str, object] = {"type": type}
        envelope.update((name, value) for name, value in fields.items() if value is not UNSET)
        if id is not None:
            envelope["id"] = id
        text = encode(envelope)
        if self.message_bytes is not None and len(text) > self.message_bytes:
            raise RealtimeError(
                "limit_exceeded",
                f"the message has {len(text)} bytes as JSON, and the server takes {self.message_bytes}",
            )
        return text

    def _enqueue(self, request: Request) -> None:
        request.queued = True
        self._queue.append(request)
        self.pump()

    def pump(self) -> None:
        """Send what may be sent now."""
        while self._open and self._queue and self._pump_alarm is None:
            if not self._writable():
                return
            wait_s = self.pacing.wait()
            if wait_s > 0:
                self._pump_alarm = self._connection_alarms.after(wait_s, self._pump_again)
                return
            request = self._queue.popleft()
            request.queued = False
            self._send_now(request)

    def _pump_again(self) -> None:
        self._pump_alarm = None
        self.pump()

    def _send_now(self, request: Request) -> None:
        request.sent = True
        self.tell_now(request.text)

    # --- time ---

    def _look_at_deadlines(self) -> None:
        self._deadline_alarm = None
        now = self._clock()
        while self._unanswered:
            request = next(iter(self._unanswered.values()))
            if request.deadline > now:
                self._deadline_alarm = self._alarms.after(request.deadline - now, self._look_at_deadlines)
                return
            self.cancel(request)
            assert request.on_done is not None
            request.on_done(None, self._no_answer(request))

    def _no_answer(self, request: Request) -> NoAnswer:
        if request.sent and request.type == "publish":
            why = f"no answer came within {self._timeout_s:g} s: it may have been published or not"
            return NoAnswer("unknown", f"{why}; the same key makes it safe to try again")
        if request.sent:
            return NoAnswer("unavailable", f"no answer to {request.type!r} came within {self._timeout_s:g} s")
        return NoAnswer("unavailable", f"there was no way to send it within {self._timeout_s:g} s; nothing was done")

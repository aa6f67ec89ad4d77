# cython: annotation_typing=False, auto_pickle=False, cdivision=True, nonecheck=True
"""Timer wheel: every deadline of an event loop in one place, at a cost that does not grow with their number.

A hashed wheel. Time is counted in ticks of ``resolution_s``; a timer hangs in slot ``tick % slots``, in a doubly linked
ring through the timers themselves, so that `schedule`, `cancel` and `reschedule` are O(1) and `cancel` leaves nothing
behind. A deadline that moves later is only written down: the wheel finds out when the slot comes round, and hangs the
timer where it belongs. Refreshing an idle timeout on every message therefore costs a clock call and two stores. The
same look lets a deadline beyond one turn of the wheel wait for its round.

The wheel has no clock, thread or loop of its own. Whoever drives it hands in a clock and calls `advance()`; after that
`next_wakeup()` says when to come next (ask in a ``finally``: `advance()` may raise), and `wake(when)` is called if that
turns out to be too late. A driver that comes too early finds nothing due, and is told the same time again.

This file is both twins: it runs as it is, and is compiled as ``_wheel`` with the C types of ``_wheel.pxd``. Hence the
style: no construct that would need the ``cython`` module to run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Timer", "TimerWheel"]

_LONGEST_DELAY_S = 1e9  # 31 years; keeps ticks far inside 64 bits
_NEVER = 2**62  # the tick of a wakeup that nobody needs


class Timer:
    """A callback that waits for its deadline. Made by `TimerWheel.schedule()`; one fires at most once per (re)schedule.

    From C, call `TimerWheel.cancel` and `TimerWheel.reschedule` instead of the methods here: without C methods of its
    own a timer needs no vtable pointer, and 80 bytes are enough.
    """

    __slots__ = ("_arg", "_callback", "_next", "_prev", "_tick", "_wheel")

    _wheel: TimerWheel
    _prev: Timer  # None, as _next, while it hangs in no ring
    _next: Timer
    _tick: int
    _callback: Callable[[Any], object] | None  # None once it has fired or was cancelled
    _arg: Any

    def __init__(self) -> None:
        raise TypeError("a Timer is made by TimerWheel.schedule()")

    def cancel(self) -> None:
        """Make sure that it does not fire. Lets go of the callback and its argument at once. Any number of times."""
        if self._callback is not None:
            self._wheel.cancel(self)

    def reschedule(self, delay_s: float) -> None:
        """Fire `delay_s` seconds from now instead; also allowed inside its own callback, to go on.

        Raises RuntimeError if it was cancelled, or has fired and its callback is over: schedule a new one.
        """
        if self._callback is None:
            raise RuntimeError("this timer has fired or was cancelled; schedule a new one")
        self._wheel.reschedule(self, delay_s)

    @property
    def active(self) -> bool:
        """Whether it will fire."""
        return self._next is not None

    @property
    def deadline(self) -> float:
        """The time on the wheel's clock at which it fires (or fired), rounded up to the resolution."""
        return self._wheel._time_of(self._tick)


class TimerWheel:
    """All timers that share one clock.

    `clock` returns seconds and never goes back; `wake(when)` is called when an earlier wakeup is needed than the last
    one announced, but not from inside `advance()`; `on_error(exception)` gets what a callback raised. `slots` must be
    a power of two. Callbacks may schedule, cancel and reschedule any timer, themselves included.
    """

    __slots__ = (
        "_advancing",
        "_announced",
        "_clock",
        "_count",
        "_due",
        "_mask",
        "_on_error",
        "_resolution",
        "_slots",
        "_tick",
        "_wake",
    )

    _clock: Callable[[], float]
    _wake: Callable[[float], None] | None
    _on_error: Callable[[BaseException], None] | None
    _resolution: float
    _slots: list[Timer]
    _due: Timer
    _mask: int
    _tick: int  # everything up to this tick has been looked at
    _announced: int
    _count: int
    _advancing: bool

    def __init__(
        self,
        clock: Callable[[], float],
        *,
        resolution_s: float = 0.05,
        slots: int = 512,
        wake: Callable[[float], None] | None = None,
        on_error: Callable[[BaseException], None] | None = None,
    ) -> None:
        if not 1e-6 <= resolution_s <= 3600.0:
            raise ValueError(f"resolution_s={resolution_s!r}: must be from 0.000001 to 3600 seconds")
        if slots < 1 or slots & (slots - 1):
            raise ValueError(f"slots={slots!r}: must be a power of two")
        self._clock = clock
        self._wake = wake
        self._on_error = on_error
        self._resolution = resolution_s
        self._slots = [_ring() for _ in range(slots)]
        self._due = _ring()
        self._mask = slots - 1
        self._count = 0
        self._announced = _NEVER
        self._advancing = False
        self._tick = self._tick_before(clock())

    def __len__(self) -> int:
        """How many timers are active."""
        return self._count

    def schedule(self, delay_s: float, callback: Callable[[Any], object], arg: Any = None) -> Timer:
        """Call `callback(arg)` in `delay_s` seconds (at the next tick if that is in the past), or one tick later.

        A module-level function with the object as `arg` is the cheapest form: a bound method is one more object.
        """
        if callback is None:
            raise TypeError("the callback of a timer cannot be None")
        now = self._clock()
        tick = self._tick_after(now, delay_s)
        if self._count == 0:
            # Skip the time that nobody waited in, so that the next advance() does not walk through it.
            self._tick = max(self._tick, self._tick_before(now))
        timer = Timer.__new__(Timer)
        timer._wheel = self
        timer._callback = callback
        timer._arg = arg
        self._hang(timer, tick)
        return timer

    def cancel(self, timer: Timer) -> None:
        """`timer.cancel()`, as a C call. The timer must be one of this wheel."""
        self._check(timer)
        if timer._next is not None:
            _unlink(timer)
            self._count -= 1
        timer._callback = None
        timer._arg = None

    def reschedule(self, timer: Timer, delay_s: float) -> None:
        """`timer.reschedule(delay_s)`, as a C call. The timer must be one of this wheel."""
        self._check(timer)
        if timer._callback is None:
            raise RuntimeError("this timer has fired or was cancelled; schedule a new one")
        tick = self._tick_after(self._clock(), delay_s)
        if timer._next is None:
            self._hang(timer, tick)
        elif tick >= timer._tick:
            timer._tick = tick
        else:
            _unlink(timer)
            self._count -= 1
            self._hang(timer, tick)

    def advance(self) -> int:
        """Fire what is due, in the order of the deadlines, and return the number. Never early.

        A callback that raises does not keep the others from their turn: its exception goes to `on_error`; without
        one, and for a KeyboardInterrupt and the like, the first is raised again at the end. Takes O(due + slots) at
        most, however long nobody called. Inside a callback it does nothing.
        """
        if self._advancing:
            return 0
        now = self._tick_before(self._clock())
        if now <= self._tick:
            return 0
        self._advancing = True
        self._announced = _NEVER
        try:
            self._collect(now)
            return self._fire(now)
        finally:
            self._advancing = False

    def next_wakeup(self) -> float | None:
        """The clock time of the next slot in use, which is when `advance()` has something to do; None when empty."""
        if self._count == 0:
            self._announced = _NEVER
            return None
        tick = self._tick
        for _ in range(self._mask + 1):
            tick += 1
            ring = self._slots[tick & self._mask]
            if ring._next is not ring:
                break
        else:
            tick = self._tick  # inside advance(), and what is left is due
        self._announced = tick
        return self._time_of(tick)

    def _check(self, timer: Timer | None) -> None:
        if timer is None or timer._wheel is not self:
            raise ValueError("not a timer of this wheel")

    def _tick_after(self, now: float, delay_s: float) -> int:
        """The first tick that is not before now + delay_s."""
        if not -_LONGEST_DELAY_S <= delay_s <= _LONGEST_DELAY_S:
            raise ValueError(f"delay_s={delay_s!r}: must be a number of seconds within 1e9")
        position = (now + delay_s) / self._resolution
        tick = int(position)
        return tick + 1 if tick < position else tick

    def _tick_before(self, now: float) -> int:
        """The last tick that is not after now."""
        position = now / self._resolution
        tick = int(position)
        return tick - 1 if tick > position else tick

    def _time_of(self, tick: int) -> float:
        return tick * self._resolution

    def _hang(self, timer: Timer, tick: int) -> None:
        if tick <= self._tick:
            tick = self._tick + 1
        timer._tick = tick
        _link(self._slots[tick & self._mask], timer)
        self._count += 1
        if tick < self._announced and self._wake is not None and not self._advancing:
            self._announced = tick
            self._wake(self._time_of(tick))

    def _collect(self, now: int) -> None:
        """Move what is due by tick `now` from its slots to the due ring, in order."""
        due = self._due
        in_order = True
        last = self._tick
        tick = self._tick
        for _ in range(min(now - tick, self._mask + 1)):
            tick += 1
            ring = self._slots[tick & self._mask]
            timer = ring._next
            while timer is not ring:
                following = timer._next
                if timer._tick <= now:
                    if timer._tick < last:
                        in_order = False
                    last = timer._tick
                    _unlink(timer)
                    _link(due, timer)
                else:
                    home = self._slots[timer._tick & self._mask]
                    if home is not ring:
                        _unlink(timer)
                        _link(home, timer)
                timer = following
        self._tick = now
        if not in_order:
            _sort(due)

    def _fire(self, now: int) -> int:
        due = self._due
        fired = 0
        error: BaseException | None = None
        while due._next is not due:
            timer = due._next
            _unlink(timer)
            self._count -= 1
            if timer._tick > now:  # an earlier callback gave it more time
                self._hang(timer, timer._tick)
                continue
            callback = timer._callback
            assert callback is not None
            fired += 1
            try:
                callback(timer._arg)
            except BaseException as raised:
                error = self._handle(raised, error)
            if timer._next is None:
                timer._callback = None
                timer._arg = None
        if error is not None:
            raise error
        return fired

    def _handle(self, raised: BaseException, earlier: BaseException | None) -> BaseException | None:
        """Give `raised` to on_error; what is to be raised in the end comes back."""
        if self._on_error is None or not isinstance(raised, Exception):
            return earlier if earlier is not None else raised
        try:
            self._on_error(raised)
        except BaseException as error:
            return earlier if earlier is not None else error
        return earlier


def _ring() -> Timer:
    """The head of an empty ring."""
    head = Timer.__new__(Timer)
    head._prev = head
    head._next = head
    return head


def _link(ring: Timer, timer: Timer) -> None:
    """Hang `timer` at the end of `ring`."""
    last = ring._prev
    timer._prev = last
    timer._next = ring
    last._next = timer
    ring._prev = timer


def _unlink(timer: Timer) -> None:
    before = timer._prev
    after = timer._next
    before._next = after
    after._prev = before
    timer._prev = None  # type: ignore[assignment]
    timer._next = None  # type: ignore[assignment]


def _sort(ring: Timer) -> None:
    """Order a ring by deadline; equal ones keep their order."""
    timers: list[Timer] = []
    while ring._next is not ring:
        timer = ring._next
        _unlink(timer)
        timers.append(timer)
    timers.sort(key=_tick_of)
    for timer in timers:
        _link(ring, timer)


def _tick_of(timer: Timer) -> int:
    return timer._tick

"""The timer wheel; one test class over the source as it runs and as it is compiled."""

from __future__ import annotations

import copy
import gc
import importlib
import random
import sys
import time
import weakref

import pytest

RESOLUTION = 0.0625  # exact in binary, so that the tests can speak of exact times


class Clock:
    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture(params=["_wheel_py", "_wheel"])
def module(request):
    if request.param == "_wheel":
        return pytest.importorskip("street_fast._wheel", reason="the extensions are not built")
    return importlib.import_module(f"street_fast.{request.param}")


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def wheel(module, clock):
    return module.TimerWheel(clock, resolution_s=RESOLUTION, slots=8)


def run(wheel, clock, until: float) -> None:
    """Do what a driver does: come when the wheel says so, until the time `until`."""
    while (when := wheel.next_wakeup()) is not None and when <= until:
        clock.now = max(clock.now, when)
        wheel.advance()
    clock.now = until
    wheel.advance()


class TestWheel:
    def test_fires_once_with_its_argument_and_not_early(self, wheel, clock):
        fired = []
        timer = wheel.schedule(0.25, fired.append, "a")
        assert timer.active
        assert timer.deadline == 1000.25
        assert len(wheel) == 1
        clock.now = 1000.2499
        assert wheel.advance() == 0
        assert fired == []
        clock.now = 1000.25
        assert wheel.advance() == 1
        assert fired == ["a"]
        assert not timer.active
        assert len(wheel) == 0
        clock.now = 2000.0
        assert wheel.advance() == 0
        assert fired == ["a"]

    @pytest.mark.parametrize("delay", [0.0, -5.0, 0.001, RESOLUTION, 0.3, 0.4999, 0.5, 0.5001, 3.0, 77.7])
    @pytest.mark.parametrize("start", [0.0, 1000.0, 1000.03, -7.51])
    def test_is_at_most_one_resolution_late(self, module, start, delay):
        clock = Clock(start)
        wheel = module.TimerWheel(clock, resolution_s=RESOLUTION, slots=8)
        fired = []
        wheel.schedule(delay, lambda _: fired.append(clock.now))
        step = RESOLUTION / 16
        clock.now = round(start / step) * step
        while not fired and clock.now < start + 100:
            clock.now += step
            wheel.advance()
        (at,) = fired
        assert start + delay <= at or delay <= 0
        assert at <= max(start, start + delay) + RESOLUTION

    def test_order_is_that_of_the_deadlines_even_after_a_long_sleep(self, wheel, clock):
        for sleep in (0.5, 3.0, 100_000.0):
            fired = []
            delays = [k * RESOLUTION for k in range(1, 49)]
            random.Random(7).shuffle(delays)
            start = clock.now
            for delay in delays:
                wheel.schedule(delay, fired.append, delay)
            clock.now = start + sleep
            wheel.advance()
            assert fired == sorted(delay for delay in delays if delay <= sleep)
            clock.now += 3.0
            wheel.advance()
            assert fired == sorted(delays)

    def test_refreshed_timers_keep_the_order_too(self, wheel, clock):
        fired = []
        refreshed = wheel.schedule(RESOLUTION, fired.append, "refreshed")
        wheel.schedule(2 * RESOLUTION, fired.append, "plain")
        refreshed.reschedule(3 * RESOLUTION)
        clock.now += 4 * RESOLUTION
        assert wheel.advance() == 2
        assert fired == ["plain", "refreshed"]

    def test_a_deadline_beyond_one_turn_waits_for_its_round(self, wheel, clock):
        fired = []
        wheel.schedule(5.0, fired.append, 1)  # ten turns of eight slots
        for _ in range(79):
            clock.now += RESOLUTION
            assert wheel.advance() == 0
        clock.now += RESOLUTION
        assert wheel.advance() == 1

    def test_a_sleep_costs_one_turn_and_not_its_length(self, wheel, clock):
        wheel.schedule(1e9, print)
        clock.now += 9e8  # 14,400,000,000 ticks: would take minutes one by one
        assert wheel.advance() == 0
        assert len(wheel) == 1

    def test_cancel(self, wheel, clock):
        fired = []
        first = wheel.schedule(0.25, fired.append, 1)
        second = wheel.schedule(0.25, fired.append, 2)
        third = wheel.schedule(0.25, fired.append, 3)
        second.cancel()
        second.cancel()
        assert not second.active
        assert len(wheel) == 2
        wheel.cancel(third)
        clock.now += 1
        wheel.advance()
        assert fired == [1]
        first.cancel()  # has fired: nothing to do
        assert len(wheel) == 0
        assert wheel.next_wakeup() is None

    def test_reschedule_later_and_earlier(self, wheel, clock):
        fired = []
        timer = wheel.schedule(1.0, lambda _: fired.append(clock.now))
        timer.reschedule(2.0)
        assert timer.deadline == 1002.0
        clock.now = 1001.5
        assert wheel.advance() == 0
        timer.reschedule(0.25)
        assert timer.deadline == 1001.75
        timer.reschedule(0.125)
        wheel.reschedule(timer, 0.1875)
        assert len(wheel) == 1
        run(wheel, clock, 1010.0)
        assert fired == [1001.6875]

    def test_a_refresh_to_a_later_deadline_does_not_wake_the_driver(self, module, clock):
        woken = []
        wheel = module.TimerWheel(clock, resolution_s=RESOLUTION, slots=8, wake=woken.append)
        timer = wheel.schedule(1.0, print)
        for _ in range(100):
            clock.now += 0.5
            timer.reschedule(1.0)
        assert woken == [1001.0]

    def test_a_finished_timer_says_so(self, wheel, clock):
        fired = wheel.schedule(0.1, lambda _: None)
        clock.now += 1
        wheel.advance()
        cancelled = wheel.schedule(0.1, print)
        cancelled.cancel()
        for timer in (fired, cancelled):
            with pytest.raises(RuntimeError, match="has fired or was cancelled"):
                timer.reschedule(1.0)
            with pytest.raises(RuntimeError, match="has fired or was cancelled"):
                wheel.reschedule(timer, 1.0)
        assert len(wheel) == 0

    def test_a_callback_may_go_on_or_start_another(self, wheel, clock):
        times = []

        def tick(_):
            times.append(clock.now)
            if len(times) < 3:
                timer.reschedule(0.5)
            else:
                wheel.schedule(0.5, lambda _: times.append(-clock.now))

        timer = wheel.schedule(0.5, tick)
        run(wheel, clock, 1010.0)
        assert times == [1000.5, 1001.0, 1001.5, -1002.0]

    def test_a_callback_that_schedules_without_delay_does_not_hold_the_wheel(self, wheel, clock):
        fired = []

        def again(_):
            fired.append(clock.now)
            wheel.schedule(0, again)

        wheel.schedule(0, again)
        clock.now += RESOLUTION
        assert wheel.advance() == 1
        clock.now += RESOLUTION
        assert wheel.advance() == 1

    def test_a_callback_may_cancel_or_delay_others_that_are_due(self, wheel, clock):
        fired = []

        def first(_):
            fired.append("first")
            cancelled.cancel()
            delayed.reschedule(1.0)
            own.cancel()

        own = wheel.schedule(0.25, first)
        cancelled = wheel.schedule(0.25, fired.append, "cancelled")
        delayed = wheel.schedule(0.25, fired.append, "delayed")
        wheel.schedule(0.25, fired.append, "last")
        clock.now += 0.25
        assert wheel.advance() == 2
        assert fired == ["first", "last"]
        assert len(wheel) == 1
        run(wheel, clock, 1010.0)
        assert fired == ["first", "last", "delayed"]

    def test_advance_inside_a_callback_does_nothing(self, wheel, clock):
        log = []

        def first(_):
            clock.now += 1.0
            log.append(wheel.advance())

        wheel.schedule(0.25, first)
        wheel.schedule(0.25, log.append, "second")
        wheel.schedule(1.0, log.append, "third")
        clock.now += 0.25
        assert wheel.advance() == 2
        assert log == [0, "second"]
        assert wheel.advance() == 1

    def test_a_callback_that_raises_does_not_stop_the_others(self, module, clock):
        fired, errors = [], []
        wheel = module.TimerWheel(clock, resolution_s=RESOLUTION, on_error=errors.append)
        wheel.schedule(0.1, fired.append, 1)
        wheel.schedule(0.1, lambda _: 1 / 0)
        wheel.schedule(0.1, fired.append, 2)
        clock.now += 1
        assert wheel.advance() == 3
        assert fired == [1, 2]
        assert [type(error) for error in errors] == [ZeroDivisionError]

    def test_without_on_error_the_first_is_raised_when_all_have_run(self, wheel, clock):
        fired = []
        wheel.schedule(0.1, lambda _: 1 / 0)
        wheel.schedule(0.1, lambda _: int("?"))
        wheel.schedule(0.1, fired.append, 2)
        clock.now += 1
        with pytest.raises(ZeroDivisionError):
            wheel.advance()
        assert fired == [2]
        assert len(wheel) == 0
        wheel.schedule(0.1, fired.append, 3)  # the wheel goes on
        clock.now += 1
        wheel.advance()
        assert fired == [2, 3]

    def test_keyboard_interrupt_is_nobodys_error(self, module, clock):
        errors, fired = [], []
        wheel = module.TimerWheel(clock, on_error=errors.append)

        def interrupt(_):
            raise KeyboardInterrupt

        wheel.schedule(0.1, interrupt)
        wheel.schedule(0.1, fired.append, 1)
        clock.now += 1
        with pytest.raises(KeyboardInterrupt):
            wheel.advance()
        assert errors == []
        assert fired == [1]

    def test_an_on_error_that_raises(self, module, clock):
        fired = []

        def on_error(error):
            raise LookupError from error

        wheel = module.TimerWheel(clock, on_error=on_error)
        wheel.schedule(0.1, lambda _: 1 / 0)
        wheel.schedule(0.1, fired.append, 1)
        clock.now += 1
        with pytest.raises(LookupError):
            wheel.advance()
        assert fired == [1]

    def test_wake_is_called_when_an_earlier_wakeup_is_needed(self, module, clock):
        woken = []
        wheel = module.TimerWheel(clock, resolution_s=RESOLUTION, slots=8, wake=woken.append)
        wheel.schedule(10.0, lambda _: wheel.schedule(0.0, print))
        wheel.schedule(20.0, print)
        assert woken == [1010.0]
        early = wheel.schedule(1.0, print)
        assert woken == [1010.0, 1001.0]
        early.cancel()
        wheel.schedule(5.0, lambda _: wheel.schedule(0.25, print))
        assert woken == [1010.0, 1001.0]  # it comes at 1001 anyhow, and is then told of 1005
        clock.now = 1005.0
        wheel.advance()
        assert woken == [1010.0, 1001.0]  # never from inside advance()
        assert wheel.next_wakeup() == 1005.25
        wheel.schedule(0.5, print)
        assert woken == [1010.0, 1001.0]
        wheel.schedule(0.125, print)
        assert woken == [1010.0, 1001.0, 1005.125]

    def test_an_empty_wheel_wakes_anew(self, module, clock):
        woken = []
        wheel = module.TimerWheel(clock, resolution_s=RESOLUTION, slots=8, wake=woken.append)
        assert wheel.next_wakeup() is None
        for round_ in range(3):
            wheel.schedule(1.0, lambda _: None)
            assert len(woken) == round_ + 1
            clock.now += 1.0
            assert wheel.advance() == 1
            assert wheel.next_wakeup() is None
            clock.now += 1000.0

    def test_a_driver_that_did_not_ask_again_is_woken_by_the_next_timer(self, module, clock):
        woken = []
        wheel = module.TimerWheel(clock, resolution_s=RESOLUTION, slots=8, wake=woken.append)
        wheel.schedule(1.0, lambda _: None)
        clock.now += 1.0
        wheel.advance()
        wheel.schedule(1.0, print)
        assert woken == [1001.0, 1002.0]

    def test_the_driver_sleeps_until_the_next_slot_in_use(self, wheel, clock):
        clock.now = 2000.1  # the wheel was empty all the time
        wheel.schedule(0.25, lambda _: None)
        wheel.schedule(0.4375, lambda _: None)
        assert wheel.next_wakeup() == 2000.375
        clock.now = 2000.375
        wheel.advance()
        assert wheel.next_wakeup() == 2000.5625

    def test_next_wakeup_inside_a_callback(self, wheel, clock):
        seen = []
        wheel.schedule(0.25, lambda _: seen.append(wheel.next_wakeup()))
        wheel.schedule(0.25, lambda _: None)
        clock.now += 0.25
        wheel.advance()
        assert seen == [1000.25]  # at once: another one is due

    def test_a_clock_that_goes_back_fires_nothing_early(self, wheel, clock):
        fired = []
        wheel.schedule(1.0, fired.append, 1)
        clock.now = 1000.5
        wheel.advance()
        clock.now = 900.0
        assert wheel.advance() == 0
        wheel.schedule(0.5, fired.append, 2)
        assert fired == []
        clock.now = 1001.0
        assert wheel.advance() == 2

    def test_cancelled_and_fired_timers_let_go_of_everything(self, wheel, clock):
        class Connection:
            pass

        gc.collect()
        gc.disable()  # what dies here dies by its reference count: no cycle, no garbage
        try:
            for end in ("cancel", "fire", "reschedule and cancel"):
                connection = Connection()
                connection.timer = wheel.schedule(1.0, lambda connection: None, connection)
                neighbours = [wheel.schedule(1.0, lambda _: None) for _ in range(2)]
                gone = weakref.ref(connection)
                if end == "reschedule and cancel":
                    connection.timer.reschedule(2.0)
                    connection.timer.reschedule(0.5)
                if end == "fire":
                    clock.now += 1.0
                    wheel.advance()
                else:
                    connection.timer.cancel()
                assert (connection.timer.active, len(wheel)) == (False, 0 if end == "fire" else 2)
                del connection
                assert gone() is None, end
                for timer in neighbours:
                    timer.cancel()
        finally:
            gc.enable()

    def test_a_wheel_with_many_timers_can_be_collected(self, module, clock):
        wheel = module.TimerWheel(clock)
        marker = weakref.WeakSet()

        class Thing:
            pass

        for k in range(10_000):  # a chain that a careless destructor would recurse along
            thing = Thing()
            marker.add(thing)
            wheel.schedule(1.0 if k % 2 else k, print, thing)
        del wheel, thing
        gc.collect()
        assert len(marker) == 0

    def test_a_timer_is_small(self, module, wheel):
        timer = wheel.schedule(1.0, print)
        assert not hasattr(timer, "__dict__")
        with pytest.raises(TypeError):
            weakref.ref(timer)
        assert sys.getsizeof(timer) <= 80

    def test_wrong_arguments(self, module, wheel, clock):
        for delay in (float("nan"), float("inf"), float("-inf"), 1e10):
            with pytest.raises(ValueError, match="delay_s"):
                wheel.schedule(delay, print)
        with pytest.raises(TypeError):
            wheel.schedule("1", print)
        with pytest.raises(TypeError):
            wheel.schedule(1.0, None)
        with pytest.raises(TypeError, match="schedule"):
            module.Timer()
        stranger = module.TimerWheel(clock).schedule(1.0, print)
        for wrong in (stranger, None):
            with pytest.raises(ValueError, match="not a timer of this wheel"):
                wheel.cancel(wrong)
            with pytest.raises(ValueError, match="not a timer of this wheel"):
                wheel.reschedule(wrong, 1.0)
        for slots in (0, -8, 3, 100):
            with pytest.raises(ValueError, match="power of two"):
                module.TimerWheel(clock, slots=slots)
        for resolution in (0.0, -1.0, float("nan"), float("inf")):
            with pytest.raises(ValueError, match="resolution_s"):
                module.TimerWheel(clock, resolution_s=resolution)
        assert len(wheel) == 0

    def test_works_with_the_real_clock(self, module):
        wheel = module.TimerWheel(time.monotonic, resolution_s=0.001)
        fired = []
        wheel.schedule(0.002, fired.append, 1)
        while not fired:
            wheel.advance()
        assert fired == [1]


def test_the_compiled_one_is_final_and_a_blank_timer_does_no_harm():
    compiled = pytest.importorskip("street_fast._wheel", reason="the extensions are not built")
    with pytest.raises(TypeError, match="not an acceptable base type"):
        type("MyTimer", (compiled.Timer,), {})
    wheel = compiled.TimerWheel(Clock())
    original = wheel.schedule(1.0, print)
    for blank in (compiled.Timer.__new__(compiled.Timer), copy.copy(original)):
        assert not blank.active
        blank.cancel()
        with pytest.raises(AttributeError):
            _ = blank.deadline
        with pytest.raises(RuntimeError):
            blank.reschedule(1.0)
        with pytest.raises(ValueError, match="not a timer of this wheel"):
            wheel.cancel(blank)
    assert original.active
    assert len(wheel) == 1

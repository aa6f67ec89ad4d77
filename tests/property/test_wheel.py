"""The timer wheel against the simplest thing that is right: a table of deadlines, looked through and sorted."""

from __future__ import annotations

import importlib
import math

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

RESOLUTION = 0.25
DELAYS = st.one_of(
    st.integers(-4, 80).map(lambda quarters: quarters * RESOLUTION),
    st.floats(-1.0, 40.0, allow_nan=False),
)
STEPS = st.one_of(st.floats(0.0, 5.0, allow_nan=False), st.sampled_from([0.0, RESOLUTION, 1.0, 60.0, 10_000.0]))


class WheelMachine(RuleBasedStateMachine):
    """`model` maps a number to its timer and to the earliest and the latest time at which it may fire."""

    wheel = None

    @initialize(start=st.sampled_from([0.0, 12345.678]), slots=st.sampled_from([1, 2, 8, 64]))
    def start(self, start, slots):
        self.now = start
        self.number = 0
        self.model = {}
        self.fired = []
        self.actions = []  # what the next callbacks do
        self.advancing = False
        self.asleep_until = math.inf
        self.wheel = self.module.TimerWheel(lambda: self.now, resolution_s=RESOLUTION, slots=slots, wake=self.wake)

    def wake(self, when):
        assert not self.advancing
        assert when < self.asleep_until
        self.asleep_until = when

    def window(self, delay):
        return self.now + delay, max(self.now, self.now + delay) + RESOLUTION

    def add(self, delay):
        self.number += 1
        self.model[self.number] = (self.wheel.schedule(delay, self.callback, self.number), *self.window(delay))

    def move(self, number, delay):
        timer = self.model[number][0]
        timer.reschedule(delay)
        self.model[number] = (timer, *self.window(delay))

    def callback(self, number):
        timer, earliest, latest = self.model[number]
        assert earliest <= self.now, "early"
        self.fired.append((timer.deadline, latest))
        action, delay = self.actions.pop() if self.actions else ("nothing", 0.0)
        if action == "go on":
            self.move(number, delay)
            return
        del self.model[number]
        others = [other for other, (timer, _, _) in self.model.items() if timer.active]
        if action == "schedule":
            self.add(delay)
        elif others and action == "cancel another":
            self.model.pop(max(others))[0].cancel()
        elif others and action == "move another":
            self.move(max(others), abs(delay) + 2 * RESOLUTION)

    @rule(delay=DELAYS)
    def schedule(self, delay):
        self.add(delay)

    @rule(data=st.data())
    def cancel(self, data):
        if self.model:
            self.model.pop(data.draw(st.sampled_from(sorted(self.model))))[0].cancel()

    @rule(data=st.data(), delay=DELAYS)
    def reschedule(self, data, delay):
        if self.model:
            self.move(data.draw(st.sampled_from(sorted(self.model))), delay)

    @rule(delay=DELAYS, action=st.sampled_from(["go on", "schedule", "cancel another", "move another"]))
    def the_next_callback_acts(self, action, delay):
        self.actions.append((action, delay))

    @rule(step=STEPS)
    def sleep_and_advance(self, step):
        self.now += step
        self.fired.clear()
        self.advancing = True
        assert self.wheel.advance() == len(self.fired)
        self.advancing = False
        assert [deadline for deadline, _ in self.fired] == sorted(deadline for deadline, _ in self.fired)
        for number, (_, _, latest) in self.model.items():
            assert self.now < latest, f"{number} is late"
        when = self.wheel.next_wakeup()
        assert when is None or when > self.now
        self.asleep_until = math.inf if when is None else when

    @invariant()
    def nobody_is_lost(self):
        if self.wheel is not None:
            assert len(self.wheel) == len(self.model)
            for timer, earliest, latest in self.model.values():
                assert timer.active
                assert earliest <= timer.deadline <= latest
                assert self.asleep_until <= timer.deadline, "the driver would sleep too long"


@pytest.mark.parametrize("name", ["_wheel_py", "_wheel"])
def test_the_wheel_behaves_like_a_table(name):
    if name == "_wheel":
        pytest.importorskip("street_fast._wheel", reason="the extensions are not built")
    machine = type("Machine", (WheelMachine,), {"module": importlib.import_module(f"street_fast.{name}")})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))

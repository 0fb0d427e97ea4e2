"""How often the meter looks: seldom enough to cost nothing, often enough that little goes unseen."""

from __future__ import annotations

import time

import pytest

from negawatt.hardware.host import this_host
from negawatt.metering.select import open_best
from negawatt.metering.session import Meter
from negawatt.testing import ManualClock, ScriptedSensor


class Looked(ScriptedSensor):
    """A sensor that wants to be looked at after every hundredth of a window."""

    look_fraction = 0.01
    running = True


def polled(sensor: ScriptedSensor, clock: ManualClock) -> Meter:
    """A meter that nobody polls."""
    return Meter(open_best({"scripted": sensor}, this_host()), clock, background=False)


def test_the_time_between_looks_grows_with_the_window() -> None:
    """A window is looked at every hundredth of its age, between 10 ms and a second; a younger one resets that."""
    clock = ManualClock()
    with polled(Looked(script=[(0.0, 10.0)], clock=clock), clock) as meter:
        outer = meter.start()
        seen = []
        for seconds in (0.5, 4.5, 45.0, 450.0):
            seen.append(meter.poll_s)
            clock.advance(seconds)
        assert [*seen, meter.poll_s] == pytest.approx([0.01, 0.01, 0.05, 0.5, 1.0])
        with meter.start():
            assert meter.poll_s == 0.01
        assert meter.poll_s == 1.0
        outer.stop()


def test_a_sensor_that_does_not_ask_is_read_at_its_period() -> None:
    """Without the wish to be looked at, the age of the window does not matter."""
    clock = ManualClock()
    with polled(ScriptedSensor(script=[(0.0, 10.0)], clock=clock, period_s=0.5), clock) as meter, meter.start():
        assert meter.poll_s == 0.5


def test_looks_have_to_be_saved_up() -> None:
    """Windows of 20 ms, one after another, are looked at every 10 ms for some seconds, then ten times a second."""
    clock = ManualClock()
    with polled(Looked(script=[(0.0, 10.0)], clock=clock), clock) as meter:
        polls = 0
        while clock() < 60.0:
            with meter.start():
                for _ in range(2):
                    clock.advance(meter.poll_s)
                    meter.poll()
                    polls += 1
    assert 900 < polls < 1100


def test_a_slow_sensor_is_polled_less() -> None:
    """Where a look takes 2 ms, the next comes after 100 ms: polling takes at most 2 % of the time."""
    clock = ManualClock()

    class Slow(Looked):
        def snapshot(self) -> float:
            clock.advance(2e-3)
            return super().snapshot()

    with polled(Slow(script=[(0.0, 10.0)], clock=clock), clock) as meter, meter.start():
        meter.poll()
        assert meter.poll_s == pytest.approx(0.1)


def test_a_running_total_is_not_folded_and_its_start_is_settled() -> None:
    """A probe that keeps a total is read from the start of the window, from the better start state that it gives."""
    clock = ManualClock()

    class Settling(Looked):
        def settled(self, start: float, later: float) -> float:
            return start if later < 1.0 else 0.25

    sensor = Settling(script=[(0.0, 10.0)], clock=clock, period_s=0.5)
    with polled(sensor, clock) as meter, meter.start() as window:
        for _ in range(8):
            clock.advance(0.5)
            meter.poll()
    assert window.readings()[0].energy_j == pytest.approx(10.0 * 3.75)


def test_many_short_windows_do_not_keep_the_poller_from_polling() -> None:
    """Windows that begin every few milliseconds wake the poller, and it goes on polling the long one around them."""
    sensor = Looked(script=[(0.0, 10.0)], clock=time.perf_counter)
    with Meter.of([sensor]) as meter:
        outer = meter.start()
        end_s = time.perf_counter() + 0.3
        while time.perf_counter() < end_s:
            with meter.start():
                time.sleep(2e-3)
        assert len(outer.power_curve) >= 2
        outer.stop()

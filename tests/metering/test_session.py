"""Meter and windows: additive, nested, concurrent, honest about failures, and without leftovers."""

from __future__ import annotations

import gc
import math
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import negawatt
from negawatt.core import registry
from negawatt.core.errors import NoMeterError, SensorError, UsageError
from negawatt.core.measurement import PowerPoint
from negawatt.core.reading import Source, total
from negawatt.hardware.host import this_host
from negawatt.metering import session
from negawatt.metering.recording import CURVE_POINTS, Recording, halved
from negawatt.metering.run import shared_meter
from negawatt.metering.select import open_best
from negawatt.metering.sensors.rapl import RaplSensor
from negawatt.metering.session import Meter
from negawatt.testing import ManualClock, ScriptedSensor, SimulatedPowercap

STEPS = ((0.0, 50.0), (10.0, 200.0), (20.0, 5.0))


def meter_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "negawatt-meter"]


@pytest.fixture(autouse=True)
def no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever a test did, no background thread outlives its windows for long."""
    until(lambda: not meter_threads())  # those of other tests
    monkeypatch.setattr(session, "LINGER_S", 0.01)
    yield
    gc.collect()
    until(lambda: not meter_threads())


def test_one_thread_serves_windows_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread is not started anew for each of many short windows, and `close` ends it at once."""
    monkeypatch.setattr(session, "LINGER_S", 60.0)
    with Meter.of([ScriptedSensor(script=STEPS, clock=time.perf_counter, period_s=0.02)]) as meter:
        seen = set()
        for _ in range(3):
            with meter.start():
                seen |= {thread.ident for thread in meter_threads()}
        assert len(seen) == 1
        time.sleep(0.05)  # it waits
        with meter.start() as window:
            until(lambda: len(window.power_curve) >= 2)  # and goes on
    assert not meter_threads()


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> dict[str, ScriptedSensor]:
    """Sensors that stand in the registry; the shared meters of the process are set aside."""
    members: dict[str, ScriptedSensor] = {}
    broken = (registry.Broken(name="bad", distribution="bad-dist", reason="ImportError: no"),)
    monkeypatch.setattr(registry, "sensors", lambda: registry.Found(members=members, broken=broken))
    shared_meter.cache_clear()
    yield members  # type: ignore[misc]
    shared_meter.cache_clear()


def until(condition: object, limit_s: float = 5.0) -> None:
    """Wait for a condition that a background thread brings about."""
    end = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


@given(cuts=st.lists(st.floats(0.01, 7.0), min_size=1, max_size=8))
def test_energy_is_additive_over_split_windows(cuts: list[float]) -> None:
    """Adjacent windows have the joules of the window around them, which are the script's."""
    clock = ManualClock()
    sensor = ScriptedSensor(script=STEPS, clock=clock)
    with Meter.of([sensor], clock=clock) as meter:
        whole = meter.start()
        parts_j = 0.0
        for cut in cuts:
            with meter.start() as part:
                clock.advance(cut)
            parts_j += part.readings()[0].energy_j
        energy_j = whole.stop()[0].energy_j
    assert math.isclose(energy_j, sensor.energy_j(0.0, clock()), rel_tol=1e-9)
    assert math.isclose(parts_j, energy_j, rel_tol=1e-9)


@given(cuts=st.lists(st.floats(0.05, 3.0), min_size=1, max_size=30), period_s=st.floats(0.1, 5.0))
def test_polling_changes_no_joule(cuts: list[float], period_s: float) -> None:
    """However often the background reads, the window's joules are the script's, and so is the area of its curve."""
    clock = ManualClock()
    sensor = ScriptedSensor(script=STEPS, clock=clock, period_s=period_s)
    recording = Recording([sensor], clock)
    for cut in cuts:
        clock.advance(cut)
        recording.advance([sensor.snapshot()], 0.1)
    recording.end()
    truth_j = sensor.energy_j(0.0, clock())
    assert math.isclose(recording.readings()[0].energy_j, truth_j, rel_tol=1e-9)
    times = [0.0, *(point.time_s for point in recording.points)]
    area_j = sum(p.power_w * (p.time_s - begin) for p, begin in zip(recording.points, times, strict=False))
    assert math.isclose(area_j, truth_j, rel_tol=1e-6)


def test_errors_grow_only_when_a_probe_is_due() -> None:
    """Between two folds of a probe, reads for the curve and live readings add no error."""
    clock = ManualClock()
    sensor = ScriptedSensor(script=STEPS, clock=clock, period_s=10.0)
    folds: list[float] = []
    recording = Recording([sensor], clock)
    for _ in range(25):
        clock.advance(1.0)
        recording.advance([sensor.snapshot()], 1.0)
        folds.append(recording._tracks[0]._since_s)
        recording.readings()
    assert sorted(set(folds)) == [0.0, 10.0, 20.0]


def test_a_wrap_between_polls_changes_nothing(tmp_path: Path) -> None:
    """A counter that wraps several times during one window gives the true joules."""
    powercap = SimulatedPowercap(root=tmp_path / "powercap", range_uj=1_000_000_000)
    (probe,) = RaplSensor(powercap.root, read=powercap.read, clock=powercap.clock).open()
    recording = Recording([probe], powercap.clock)
    for _ in range(100):
        powercap.advance(0.2, 400.0)
        recording.advance([probe.snapshot()], 0.2)
    recording.end()
    assert recording.readings()[0].energy_j == pytest.approx(8000.0)
    assert powercap.package_j > 7 * 1000.0


def test_windows_nest_and_stop_is_idempotent() -> None:
    """An inner window measures its own span, the outer one all of it, and stopping twice gives the same."""
    clock = ManualClock()
    with Meter.of([ScriptedSensor(script=[(0.0, 10.0)], clock=clock)], clock=clock) as meter:
        outer = meter.start()
        clock.advance(1.0)
        inner = meter.start()
        clock.advance(2.0)
        assert inner.readings()[0].energy_j == pytest.approx(20.0)
        first = inner.stop()
        clock.advance(4.0)
        assert inner.stop() == first == inner.readings()
        assert (inner.time_s, outer.time_s) == (2.0, 7.0)
        assert outer.stop()[0].energy_j == pytest.approx(70.0)
        assert inner.power_curve == (PowerPoint(time_s=2.0, power_w=10.0),)


def test_concurrent_windows_share_one_thread() -> None:
    """Windows of several threads are read by one background thread, which ends soon after the last of them."""
    sensor = ScriptedSensor(script=[(0.0, 10.0)], clock=time.perf_counter, period_s=0.02)
    meter = Meter.of([sensor])
    seen: list[int] = []
    energies: list[tuple[float, float]] = []

    def work() -> None:
        with meter.start() as window:
            until(lambda: len(window.power_curve) >= 3)
            seen.append(len(meter_threads()))
        energies.append((window.readings()[0].energy_j, window.time_s))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [1, 1, 1, 1]
    assert all(energy_j == pytest.approx(10.0 * time_s, rel=0.2, abs=0.05) for energy_j, time_s in energies)
    until(lambda: not meter_threads())


def test_no_thread_without_a_period() -> None:
    """Probes that can wait are read at the edges only."""
    clock = ManualClock()
    with Meter.of([ScriptedSensor(script=STEPS, clock=clock)], clock=clock) as meter, meter.start():
        assert not meter_threads()


def test_ctrl_c_in_a_window_leaves_no_thread() -> None:
    """KeyboardInterrupt inside a window, or inside a meter with an open window, ends the thread and comes out."""
    sensor = ScriptedSensor(script=STEPS, clock=time.perf_counter, period_s=0.02)
    meter = Meter.of([sensor])

    def interrupted() -> None:
        with meter.start():
            assert meter_threads()
            raise KeyboardInterrupt("by hand")

    def left_open() -> None:
        with meter:
            meter.start()
            raise KeyboardInterrupt("by hand")

    for block in (interrupted, left_open):
        with pytest.raises(KeyboardInterrupt, match="by hand"):
            block()
        until(lambda: not meter_threads())


def test_a_closed_meter_starts_no_window() -> None:
    """After `close`, `start` is refused, open windows are over, and closing again is fine."""
    clock = ManualClock()
    meter = Meter.of([ScriptedSensor(script=[(0.0, 10.0)], clock=clock)], clock=clock)
    window = meter.start()
    clock.advance(3.0)
    meter.close()
    meter.close()
    clock.advance(3.0)
    assert window.readings()[0].energy_j == pytest.approx(30.0)
    with pytest.raises(UsageError, match="closed"):
        meter.start()


def test_a_sensor_that_vanishes_raises_at_stop() -> None:
    """A sensor lost mid-window raises SensorError with three parts, each time, and the window is over."""
    clock = ManualClock()
    meter = Meter.of([ScriptedSensor(script=STEPS, clock=clock, fails_at_s=2.0)], clock=clock)
    window = meter.start()
    clock.advance(3.0)
    for _ in range(2):
        with pytest.raises(SensorError, match=r"fails from 2\.0 s on") as caught:
            window.stop()
        assert all((caught.value.got, caught.value.why, caught.value.fix))
    assert window.time_s == 3.0
    assert not meter._recordings


def test_a_sensor_that_fails_at_the_start_raises_there() -> None:
    """A window never begins with a reading missing."""
    clock = ManualClock()
    meter = Meter.of([ScriptedSensor(script=STEPS, clock=clock, fails_at_s=1.0)], clock=clock)
    clock.advance(1.0)
    with pytest.raises(SensorError, match="fails from"):
        meter.start()


class Unruly(ScriptedSensor):
    """A sensor whose reading raises what it should not."""

    def reading(self, start: float, end: float) -> object:  # type: ignore[override]
        raise ZeroDivisionError("float division by zero")


def test_an_error_in_the_background_is_kept_and_raised() -> None:
    """States that the poller cannot subtract are not swallowed: stop raises it, whatever a plug-in raised."""
    unruly = Meter.of([Unruly(script=STEPS, clock=time.perf_counter, period_s=0.02)])
    window = unruly.start()
    until(lambda: window._recording._error is not None)
    with pytest.raises(SensorError, match="ZeroDivisionError: float division by zero"):
        window.stop()


def test_a_read_that_fails_in_between_leaves_a_flag() -> None:
    """What is counted goes on from the last good state; the window says that it was blind, unless it need not look."""
    clock = ManualClock()
    failing = ScriptedSensor(script=[(0.0, 10.0)], clock=clock, period_s=1.0)
    patient = ScriptedSensor(script=[(0.0, 10.0)], clock=clock, name="patient", scope="gpu:0")
    meter = Meter(open_best({"scripted": failing, "patient": patient}, this_host()), clock, background=False)
    window = meter.start()
    clock.advance(0.5)
    meter.poll()
    object.__setattr__(failing, "fails_at_s", 0.0)
    clock.advance(0.5)
    meter.poll()
    with pytest.raises(SensorError, match="fails from"):
        window.readings()
    object.__setattr__(failing, "fails_at_s", math.inf)
    for end in (meter.poll, window.stop):
        clock.advance(0.5)
        end()
        readings = {reading.scope: reading for reading in window.readings()}
        assert all(reading.energy_j == pytest.approx(10 * clock()) for reading in readings.values())
        (flag,) = readings["cpu:0/package"].flags
        assert "could not be read for a while (sensor 'scripted' fails from 0.0 s on" in flag
        assert readings["gpu:0"].flags == ()
    meter.close()


def test_the_user_s_error_comes_before_the_sensor_s() -> None:
    """An exception in the block is not hidden by a sensor that failed as well."""
    clock = ManualClock()
    meter = Meter.of([ScriptedSensor(script=STEPS, clock=clock, fails_at_s=1.0)], clock=clock)

    def block() -> None:
        with meter.start():
            clock.advance(2.0)
            raise ValueError("the user's own")

    with pytest.raises(ValueError, match="the user's own"):
        block()


def test_a_long_curve_is_halved_and_keeps_its_area() -> None:
    """A curve stays bounded, and merging neighbours keeps the energy under it."""
    clock = ManualClock()
    sensor = ScriptedSensor(script=STEPS, clock=clock, period_s=0.01)
    recording = Recording([sensor], clock)
    for _ in range(3 * CURVE_POINTS):
        clock.advance(0.01)
        recording.advance([sensor.snapshot()], 0.01)
    assert CURVE_POINTS / 2 <= len(recording.points) <= CURVE_POINTS
    times = [0.0, *(p.time_s for p in recording.points)]
    area_j = sum(p.power_w * (p.time_s - begin) for p, begin in zip(recording.points, times, strict=False))
    assert area_j == pytest.approx(sensor.energy_j(0.0, clock()))
    odd = [
        PowerPoint(time_s=1.0, power_w=2.0),
        PowerPoint(time_s=3.0, power_w=5.0),
        PowerPoint(time_s=4.0, power_w=1.0),
    ]
    assert halved(odd) == [PowerPoint(time_s=3.0, power_w=4.0), odd[2]]


def test_the_public_meter_gives_joules_with_error_and_source(registered: dict[str, ScriptedSensor]) -> None:
    """`negawatt.meter` is live inside the block and final behind it."""
    clock = ManualClock()
    registered["scripted"] = ScriptedSensor(script=[(0.0, 10.0)], clock=clock)
    with negawatt.meter("training") as m:
        clock.advance(5.0)
        live_j = m.energy_j
        clock.advance(5.0)
    clock.advance(5.0)
    assert (m.name, live_j, m.energy_j, m.source) == ("training", 50.0, 100.0, Source.COUNTER)
    assert m.energy_sd_j == pytest.approx(1.0)
    assert total(m.readings, m.time_s) == (m.energy_j, m.energy_sd_j)
    assert m.time_s == m.time_s > 0


def test_the_public_meter_looks_again_after_a_failure(registered: dict[str, ScriptedSensor]) -> None:
    """A sensor that went away is looked for anew with the next block."""
    clock = ManualClock()
    registered["scripted"] = ScriptedSensor(script=STEPS, clock=clock, fails_at_s=1.0)
    with negawatt.meter("before"):
        pass
    clock.advance(1.0)

    def block() -> None:
        with negawatt.meter("without"):
            pass

    with pytest.raises(SensorError, match="fails from"):
        block()
    registered["scripted"] = replace(registered["scripted"], fails_at_s=math.inf)
    block()


def test_open_reports_everything_left_out(registered: dict[str, ScriptedSensor]) -> None:
    """Unavailable, unneeded, broken and unasked sensors are all listed with their reason."""
    clock = ManualClock()
    registered["rapl"] = ScriptedSensor(script=STEPS, clock=clock, name="rapl")
    registered["gpu"] = ScriptedSensor(script=STEPS, clock=clock, name="gpu", missing="no GPU here; buy one")
    registered["model"] = ScriptedSensor(script=STEPS, clock=clock, name="model", scope="cpu", fallback=True)
    meter = Meter.open(this_host())
    assert [info.name for info in meter.sensors] == ["rapl"]
    assert meter.scopes == ("cpu:0/package",)
    reasons = {item.what: item.why for item in meter.unavailable}
    assert reasons["gpu"] == "no GPU here; buy one"
    assert reasons["model"] == "not needed: cpu:0/package is measured"
    assert "bad-dist" in reasons["bad"]
    named = Meter.open(this_host(), ("model",))
    assert named.scopes == ("cpu",)
    assert {item.what for item in named.unavailable} == {"rapl", "gpu", "bad"}


def test_unknown_and_broken_names_are_refused(registered: dict[str, ScriptedSensor]) -> None:
    """A sensor that was asked for by name and cannot be loaded is never replaced by another."""
    registered["scripted"] = ScriptedSensor(script=STEPS, clock=ManualClock())
    with pytest.raises(UsageError, match="did you mean 'scripted'"):
        Meter.open(names=("scriptd",))
    with pytest.raises(UsageError, match="cannot be loaded: ImportError"):
        Meter.open(names=("bad",))


def test_a_host_without_sensors_has_no_meter(registered: dict[str, ScriptedSensor]) -> None:
    """Without any sensor there is an error that lists why, never a 0."""
    with pytest.raises(NoMeterError, match="none is registered"):
        Meter.open()
    registered["gpu"] = ScriptedSensor(script=STEPS, clock=ManualClock(), name="gpu", missing="no GPU; buy one")
    with pytest.raises(NoMeterError, match="gpu: no GPU; buy one"):
        Meter.open()


def test_the_built_in_sensors_meter_this_machine() -> None:
    """On any machine that runs the tests, the built-ins give joules above 0 with a source."""
    with negawatt.meter("here") as m:
        time.sleep(0.2)
    assert m.energy_j > 0
    assert m.energy_sd_j > 0
    assert m.power_curve

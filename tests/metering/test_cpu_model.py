"""CPU model: an estimate that is monotone, never 0, and carries the error it has on held-out processors."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import SensorError
from negawatt.core.host import Host
from negawatt.core.reading import Reading, Source
from negawatt.hardware.host import this_host
from negawatt.metering.processor import FAMILIES
from negawatt.metering.sensors.cpu_model import (
    CORNERS,
    FULL_FRACTION,
    GAIN_SD_FRACTION,
    IDLE_FRACTION,
    CpuModelSensor,
    Load,
)
from negawatt.testing import SensorContract

CPUS = 4
HOST = Host(
    name="guest",
    machine_id="m",
    boot_id="b",
    system="Linux 6",
    cpu="AMD EPYC 7763 64-Core Processor",
    logical_cpus=CPUS,
    memory_bytes=1,
    virtual="qemu",
)
RATED_W = 280.0 * CPUS / 128
START = Load(time_s=0.0, busy_s=0.0)
loads = st.floats(0.0, 1.0)
times = st.floats(1e-3, 3600.0)


def estimate(load: float, time_s: float, host: Host = HOST) -> Reading:
    (probe,) = CpuModelSensor(cpus=CPUS, host=host, read=lambda: START).open()
    return probe.reading(START, Load(time_s=time_s, busy_s=load * CPUS * time_s))


class TestCpuModelHere(SensorContract):
    """On the machine that runs the tests the model keeps the sensor contract."""

    def make(self) -> CpuModelSensor:
        return CpuModelSensor()


class TestCpuModelSimulated(SensorContract):
    """So it does on a simulated load."""

    now = START

    def make(self) -> CpuModelSensor:
        return CpuModelSensor(cpus=CPUS, host=HOST, read=lambda: self.now)

    def advance(self, seconds: float) -> None:
        self.now = Load(time_s=self.now.time_s + seconds, busy_s=self.now.busy_s + seconds)


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    """The benchmark that fits the model."""
    path = Path(__file__).parents[2] / "benchmarks" / "cpu_model.py"
    spec = importlib.util.spec_from_file_location("cpu_model_benchmark", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_what_is_shipped_is_what_the_profiles_give(bench: ModuleType) -> None:
    """Idle, full power and gain error are the fit to the load profiles and its error on held-out processors."""
    cpus = bench.profiles("cpu")
    idle, full = bench.fit("linear", cpus)
    assert (idle, full) == pytest.approx((IDLE_FRACTION, FULL_FRACTION), abs=0.001)
    held_out_sd = bench.gain_sd(bench.held_out("linear", cpus, "cpu"))
    assert held_out_sd <= GAIN_SD_FRACTION < held_out_sd + 0.01


def test_held_out_error_is_below_that_of_the_usual_formulas(bench: ModuleType) -> None:
    """On processors it has not seen the line errs less, point by point, than formulas of rated power alone."""
    cpus = bench.profiles("cpu")
    ours = bench.errors(bench.held_out("linear", cpus, "cpu"))["mape_fraction"]
    for name, formula in bench.FORMULAS.items():
        theirs = bench.errors([(p, formula(p.load) * p.rated_w) for p in cpus])["mape_fraction"]
        assert ours < theirs - 0.05, name


def test_corners_enclose_every_profile(bench: ModuleType) -> None:
    """Idle over full power of each host that was profiled lies between the corners' values."""
    idle = [p.power_w[p.load.argmin()] / p.power_w[p.load.argmax()] for p in bench.profiles("cpu")]
    assert min(i for i, _ in CORNERS) < min(idle)
    assert max(idle) < max(i for i, _ in CORNERS)


@given(a=loads, b=loads, time_s=times)
def test_energy_grows_with_the_load(a: float, b: float, time_s: float) -> None:
    """A higher load never costs less, at the centre and at every corner."""
    low, high = (estimate(load, time_s) for load in sorted((a, b)))
    slack = 1 + 1e-9
    assert low.energy_j <= high.energy_j * slack
    assert all(x <= y * slack for x, y in zip(low.corners_j, high.corners_j, strict=True))


@given(load=loads, time_s=times)
def test_idle_is_charged_and_doubt_is_stated(load: float, time_s: float) -> None:
    """Energy lies between idle and full power, inside its ten corners, estimated, with the held-out gain error."""
    reading = estimate(load, time_s)
    idle_w, full_w = RATED_W * IDLE_FRACTION, RATED_W * FULL_FRACTION
    assert idle_w * time_s * (1 - 1e-9) <= reading.energy_j <= full_w * time_s * (1 + 1e-9)
    assert min(reading.corners_j) * (1 - 1e-9) <= reading.energy_j <= max(reading.corners_j) * (1 + 1e-9)
    assert len(reading.corners_j) == 10
    assert (reading.source, reading.gain_sd_fraction) == (Source.ESTIMATED, GAIN_SD_FRACTION)
    assert reading.random_sd_j > 0
    assert reading.flags == ()


def test_a_hidden_model_is_flagged_and_widens_the_error() -> None:
    """Where the processor is not recognised, its family's spread joins the error and every reading says so."""
    reading = estimate(0.5, 10.0, replace(HOST, cpu="AMD EPYC"))
    spread = math.sqrt(math.expm1(FAMILIES["EPYC"][2] ** 2))
    assert reading.gain_sd_fraction == pytest.approx(math.hypot(GAIN_SD_FRACTION, spread))
    assert "hidden or not known (AMD EPYC)" in reading.flags[0]


def test_busy_time_beyond_all_cpus_is_full_load() -> None:
    """Ticks that arrive late cannot give more than full power."""
    assert estimate(1.5, 1.0).energy_j == pytest.approx(RATED_W * FULL_FRACTION)


def test_busy_time_that_goes_back_is_an_error() -> None:
    """A negative load raises and is not taken for idle."""
    with pytest.raises(SensorError, match="went back"):
        estimate(-0.5, 10.0)


def broken_read() -> Load:
    raise OSError("no /proc")


def test_a_system_without_cpu_times_is_a_reason() -> None:
    """Where the times cannot be read, `available` gives the reason and the probe raises."""
    sensor = CpuModelSensor(read=broken_read)
    assert "no /proc" in (sensor.available(this_host()) or "")
    with pytest.raises(SensorError, match="no /proc"):
        sensor.open()


def test_a_snapshot_is_cheap() -> None:
    """A look at the load takes less than 0.2 ms of processor time."""
    (probe,) = CpuModelSensor().open()
    begin_s = time.process_time()
    for _ in range(200):
        probe.snapshot()
    assert (time.process_time() - begin_s) / 200 < 2e-4

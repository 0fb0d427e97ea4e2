"""CPU model: an estimate that is monotone, never 0, and carries its doubt."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import SensorError
from negawatt.core.reading import Reading, Source
from negawatt.hardware.host import this_host
from negawatt.metering.sensors.cpu_model import FULL_W, IDLE_W, TABLE_W, CpuModelSensor, Load
from negawatt.testing import SensorContract

CPUS = 4
loads = st.floats(0.0, 1.0)
times = st.floats(1e-3, 3600.0)


def estimate(load: float, time_s: float) -> Reading:
    (probe,) = CpuModelSensor(cpus=CPUS, read=lambda: Load(time_s=0.0, busy_s=0.0)).open()
    return probe.reading(Load(time_s=0.0, busy_s=0.0), Load(time_s=time_s, busy_s=load * CPUS * time_s))


class TestCpuModelHere(SensorContract):
    """On the machine that runs the tests the model keeps the sensor contract."""

    def make(self) -> CpuModelSensor:
        return CpuModelSensor()


class TestCpuModelSimulated(SensorContract):
    """So it does on a simulated load."""

    now = Load(time_s=0.0, busy_s=0.0)

    def make(self) -> CpuModelSensor:
        return CpuModelSensor(cpus=CPUS, read=lambda: self.now)

    def advance(self, seconds: float) -> None:
        self.now = Load(time_s=self.now.time_s + seconds, busy_s=self.now.busy_s + seconds)


def test_the_central_values_are_the_table_s_medians() -> None:
    """Idle and full power are 0.64 W and 3.54 W per logical CPU, and the corners enclose the table."""
    assert (IDLE_W, FULL_W) == (0.64, 3.54)
    assert all(0.05 < idle / full < 0.7 for idle, full in TABLE_W.values())


@given(a=loads, b=loads, time_s=times)
def test_energy_grows_with_the_load(a: float, b: float, time_s: float) -> None:
    """A higher load never costs less, at the centre and at every corner."""
    low, high = (estimate(load, time_s) for load in sorted((a, b)))
    slack = 1 + 1e-9
    assert low.energy_j <= high.energy_j * slack
    assert all(x <= y * slack for x, y in zip(low.corners_j, high.corners_j, strict=True))


@given(load=loads, time_s=times)
def test_idle_is_charged_and_doubt_is_stated(load: float, time_s: float) -> None:
    """Energy lies between idle and full power, inside its corners, estimated, with a gain error of one half."""
    reading = estimate(load, time_s)
    assert CPUS * IDLE_W * time_s * (1 - 1e-9) <= reading.energy_j <= CPUS * FULL_W * time_s * (1 + 1e-9)
    assert min(reading.corners_j) * (1 - 1e-9) <= reading.energy_j <= max(reading.corners_j) * (1 + 1e-9)
    assert len(reading.corners_j) == 10
    assert (reading.source, reading.gain_sd_fraction) == (Source.ESTIMATED, 0.5)
    assert reading.random_sd_j > 0


def test_busy_time_beyond_all_cpus_is_full_load() -> None:
    """Ticks that arrive late cannot give more than full power."""
    assert estimate(1.5, 1.0).energy_j == pytest.approx(CPUS * FULL_W)


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

"""The shipped simulators move true joules and show the pathologies they claim."""

from __future__ import annotations

from pathlib import Path

import pytest

from negawatt.core.errors import SensorError
from negawatt.core.reading import Source
from negawatt.hardware.host import this_host
from negawatt.testing import (
    FakeGpu,
    FakeNvml,
    ManualClock,
    PlainContext,
    ScriptedSensor,
    SensorContract,
    SimulatedPowercap,
)


def count(powercap: SimulatedPowercap, zone: str) -> int:
    return int((powercap.root / zone / "energy_uj").read_text())


class TestScripted(SensorContract):
    """A scripted sensor keeps the sensor contract."""

    @pytest.fixture(autouse=True)
    def clock(self) -> None:
        self.time = ManualClock()

    def make(self) -> ScriptedSensor:
        return ScriptedSensor(script=[(0.0, 20.0)], clock=self.time)

    def advance(self, seconds: float) -> None:
        self.time.advance(seconds)


class TestScriptedModel(TestScripted):
    """So does one that scripts a model."""

    def make(self) -> ScriptedSensor:
        return ScriptedSensor(script=[(0.0, 20.0)], clock=self.time, source=Source.MODELLED)


class TestScriptedMissing(TestScripted):
    """So does one that is scripted as missing."""

    def make(self) -> ScriptedSensor:
        return ScriptedSensor(script=[(0.0, 20.0)], clock=self.time, missing="no device; plug one in")


def test_a_script_has_exact_joules() -> None:
    """A step function is integrated exactly, also before its first step and across steps."""
    sensor = ScriptedSensor(script=[(1.0, 10.0), (3.0, 100.0)], clock=ManualClock())
    assert sensor.energy_j(0.0, 1.0) == 0.0
    assert sensor.energy_j(0.0, 4.0) == 120.0
    assert sensor.energy_j(2.5, 3.5) == 55.0


def test_a_scripted_failure_raises() -> None:
    """From its failure time on, the sensor gives nothing."""
    clock = ManualClock()
    sensor = ScriptedSensor(script=[(0.0, 1.0)], clock=clock, fails_at_s=1.0)
    sensor.snapshot()
    clock.advance(1.0)
    with pytest.raises(SensorError, match="fails from"):
        sensor.snapshot()


def test_powercap_counters_move_with_the_load(tmp_path: Path) -> None:
    """Package, core, dram and psys move by their shares, and the sum of packages is known."""
    powercap = SimulatedPowercap(root=tmp_path, packages=2, dram=True, psys=True)
    before = {zone: count(powercap, zone) for zone in powercap._zones}
    powercap.advance(10.0, 50.0, 4.0)
    moved_j = {zone: (count(powercap, zone) - before[zone]) * 1e-6 for zone in before}
    assert moved_j["intel-rapl:0"] == moved_j["intel-rapl:1"] == pytest.approx(500.0)
    assert moved_j["intel-rapl:0:0"] == pytest.approx(400.0)
    assert moved_j["intel-rapl:0:1"] == pytest.approx(40.0)
    assert moved_j["intel-rapl:2"] == pytest.approx(1180.0)
    assert (powercap.package_j, powercap.dram_j, powercap.clock()) == (1000.0, 80.0, 10.0)


def test_powercap_counters_wrap(tmp_path: Path) -> None:
    """A counter passes its range once and goes on from 0."""
    powercap = SimulatedPowercap(root=tmp_path, range_uj=10_000_000, start_uj=9_000_000)
    powercap.advance(1.0, 3.0)
    assert count(powercap, "intel-rapl:0") == 2_000_000


def test_powercap_permission_is_withdrawn_even_from_root(tmp_path: Path) -> None:
    """While it is not permitted, `read` refuses the counters and nothing else."""
    powercap = SimulatedPowercap(root=tmp_path)
    powercap.permit(allowed=False)
    with pytest.raises(PermissionError, match="Permission denied"):
        powercap.read(tmp_path / "intel-rapl:0" / "energy_uj")
    assert powercap.read(tmp_path / "intel-rapl:0" / "name") == "package-0\n"
    powercap.advance(1.0, 1.0)


def test_nvml_counter_lags_by_its_refresh() -> None:
    """The counter shows the joules up to its last refresh, the truth goes on."""
    nvml = FakeNvml([FakeGpu()], refresh_s=0.1)
    nvml.advance(0.25, 100.0)
    (gpu,) = nvml.gpus
    assert (gpu.energy_j, gpu.counter_j) == (25.0, pytest.approx(20.0))
    nvml.advance(0.04, 100.0)
    assert gpu.counter_j == pytest.approx(20.0)
    nvml.advance(0.02, 300.0)
    assert gpu.counter_j == pytest.approx(25.0 + 4.0 + 300.0 * 0.01)


def test_a_plain_context_keeps_what_is_recorded() -> None:
    """A lever's own readings come back from the context that it was given."""
    clock = ManualClock()
    context = PlainContext(this_host(), clock)
    assert context.readings() == ()
    reading = ScriptedSensor(script=[(0.0, 1.0)], clock=clock).reading(0.0, 1.0)
    context.record(reading)
    assert context.readings() == (reading,)
    assert context.time_s() == 0.0

"""Which sensors are opened: what is there, and no joule twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from negawatt.core.errors import NeedsPrivilegeError, NoMeterError, ScopeMismatchError
from negawatt.core.reading import Source
from negawatt.hardware.host import this_host
from negawatt.metering.select import open_best, open_named
from negawatt.metering.sensors.cpu_model import CpuModelSensor
from negawatt.metering.sensors.rapl import RaplSensor
from negawatt.testing import ManualClock, ScriptedSensor, SimulatedPowercap

HOST = this_host()


def scripted(name: str, scope: str, **more: Any) -> ScriptedSensor:
    return ScriptedSensor(script=[(0.0, 1.0)], clock=ManualClock(), name=name, scope=scope, **more)


def rapl(tmp_path: Path) -> tuple[SimulatedPowercap, RaplSensor]:
    powercap = SimulatedPowercap(root=tmp_path / "powercap")
    return powercap, RaplSensor(powercap.root, read=powercap.read, clock=powercap.clock)


def test_no_cpu_model_beside_rapl(tmp_path: Path) -> None:
    """Where RAPL counts the processor, the model is left out; where it may not be read, the model stands in."""
    powercap, counters = rapl(tmp_path)
    sensors = {"cpu-model": CpuModelSensor(), "rapl": counters}
    assert [probe.scope for probe in open_best(sensors, HOST).probes] == ["cpu:0/package"]
    powercap.permit(allowed=False)
    opened = open_best(sensors, HOST)
    assert [probe.scope for probe in opened.probes] == ["cpu"]
    assert [item.what for item in opened.left_out] == ["rapl"]
    assert "sudo chmod" in opened.left_out[0].why


def test_a_gpu_counter_does_not_replace_the_cpu_model() -> None:
    """An estimate is left out only where its own kind of hardware is measured."""
    sensors = {"gpu": scripted("gpu", "gpu:GPU-1"), "model": scripted("model", "cpu", fallback=True)}
    assert [probe.scope for probe in open_best(sensors, HOST).probes] == ["gpu:GPU-1", "cpu"]


@pytest.mark.parametrize("opener", [open_best, open_named])
def test_two_sensors_of_one_scope_are_refused(opener: Any) -> None:
    """Two sensors that measure the same joules are an error, not a sum."""
    sensors = {"one": scripted("one", "cpu:0"), "two": scripted("two", "cpu:0/dram")}
    with pytest.raises(ScopeMismatchError, match="overlap"):
        opener(sensors, HOST)


def test_an_estimate_beside_its_measurement_is_refused_by_name() -> None:
    """Asking for RAPL and the model at once is an error, because it counts the processor twice."""
    sensors = {
        "rapl": scripted("rapl", "cpu:0/package"),
        "model": scripted("model", "cpu", fallback=True, source=Source.ESTIMATED),
    }
    with pytest.raises(ScopeMismatchError, match="'model' covers 'cpu', and 'cpu:0/package'"):
        open_named(sensors, HOST)


def test_a_named_sensor_that_is_missing_is_an_error(tmp_path: Path) -> None:
    """By name: no hardware is NoMeterError, no permission NeedsPrivilegeError; neither is replaced."""
    with pytest.raises(NoMeterError, match="'gpu' cannot be used here: no GPU"):
        open_named({"gpu": scripted("gpu", "gpu:1", missing="no GPU; buy one")}, HOST)
    powercap, counters = rapl(tmp_path)
    powercap.permit(allowed=False)
    with pytest.raises(NeedsPrivilegeError, match="root only"):
        open_named({"rapl": counters}, HOST)

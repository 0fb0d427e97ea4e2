"""AMD: every package once, and a counter that is believed only where the power agrees."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from negawatt.core.codec import from_json, to_json
from negawatt.core.errors import SensorError
from negawatt.core.reading import Reading, Source
from negawatt.hardware.host import this_host
from negawatt.metering.sensors.amd import AmdSensor
from negawatt.testing import SensorContract
from negawatt.testing.amdsmi import FakeAmdGpu, FakeAmdsmi

A, B, C, D = (f"0000:{bus}:00.0" for bus in ("03", "26", "43", "c3"))


def sensor_of(*gpus: FakeAmdGpu, environ: dict[str, str] | None = None, **how: Any) -> tuple[FakeAmdsmi, AmdSensor]:
    smi = FakeAmdsmi(gpus, **how)
    return smi, AmdSensor(smi, environ=environ or {}, clock=smi.clock, wait=smi.idle)


def four() -> list[FakeAmdGpu]:
    """Four GPUs that HIP counts the other way round."""
    return [FakeAmdGpu(bdf=bdf, uuid=f"GPU-{n:016x}", hip_id=3 - n) for n, bdf in enumerate((A, B, C, D))]


def mi250() -> list[FakeAmdGpu]:
    """Two packages of two dies; the second ones report 0."""
    return [
        FakeAmdGpu(bdf=bdf, uuid=f"GPU-{n:016x}", hip_id=n, model="AMD Instinct MI250X", power="average",
                   second_die=n % 2 == 1, power_w=0.0 if n % 2 else 90.0)
        for n, bdf in enumerate((A, B, C, D))
    ]  # fmt: skip


def run(smi: FakeAmdsmi, sensor: AmdSensor, load: list[tuple[float, float]], tick_s: float = 0.1) -> list[Reading]:
    """Readings of a window under these powers, each for some seconds, that is looked at every tick."""
    probes = sensor.open()
    smi.advance(0.0, load[0][1])
    starts = [probe.snapshot() for probe in probes]
    for seconds, power_w in load:
        for _ in range(round(seconds / tick_s)):
            smi.advance(tick_s, power_w)
            ends = [probe.snapshot() for probe in probes]
    return [probe.reading(start, end) for probe, start, end in zip(probes, starts, ends, strict=True)]


class TestAmdCounter(SensorContract):
    """GPUs with a sound counter keep the sensor contract."""

    counter_factor: float | None = 1.0
    power = "current"

    @pytest.fixture(autouse=True)
    def simulation(self) -> None:
        how: dict[str, Any] = {"counter_factor": self.counter_factor, "power": self.power}
        self.fake, self.sensor = sensor_of(FakeAmdGpu(bdf=A, **how), FakeAmdGpu(bdf=B, **how))

    def make(self) -> AmdSensor:
        return self.sensor

    def advance(self, seconds: float) -> None:
        self.fake.advance(seconds, 300.0)


class TestAmdPower(TestAmdCounter):
    """GPUs whose power is integrated keep the sensor contract."""

    counter_factor = None
    power = "average"


def test_a_step_is_within_the_stated_error() -> None:
    """Counter and integrated power are within their 95 % intervals; that of a mean over a second is wide, and said."""
    for counter, source in ((1.0, Source.COUNTER), (None, Source.SAMPLED)):
        smi, sensor = sensor_of(FakeAmdGpu(counter_factor=counter))
        sensor.open()
        before_j = smi.gpus[0].energy_j
        (reading,) = run(smi, sensor, [(7.0, 90.0), (20.0, 400.0), (5.0, 90.0)])
        truth_j = smi.gpus[0].energy_j - before_j
        assert reading.source is source
        assert ["up to 1 s late" in flag for flag in reading.flags] == [True] * (source is Source.SAMPLED)
        assert abs(reading.energy_j - truth_j) <= 1.96 * reading.random_sd_j + 0.01


@pytest.mark.parametrize(("factor", "says"), [(0.0, "stood still"), (0.01, "counted 1 W while the GPU reported 100 W")])
def test_a_broken_counter_is_replaced_by_power_and_said(factor: float, says: str) -> None:
    """A counter that is frozen, or a hundredth of the truth, is not used, and every reading says why."""
    smi, sensor = sensor_of(FakeAmdGpu(counter_factor=factor))
    (reading,) = run(smi, sensor, [(40.0, 250.0)])
    assert reading.source is Source.SAMPLED
    assert [says in flag for flag in reading.flags] == [True]
    assert reading.energy_j == pytest.approx(10_000.0, rel=0.05)


def test_a_counter_that_goes_wrong_later_is_noticed() -> None:
    """Frozen inside a window is an error, and a hundredth of the truth is a flag."""
    smi, sensor = sensor_of(FakeAmdGpu())
    (probe,) = sensor.open()
    smi.gpus[0].counter_factor = 0.0
    start = probe.snapshot()
    smi.advance(5.0, 200.0)
    with pytest.raises(SensorError, match="stood still"):
        probe.reading(start, probe.snapshot())
    smi.gpus[0].counter_factor = 0.01
    (reading,) = run(smi, sensor, [(20.0, 200.0)])
    assert any(flag.startswith("its counter says 40 J") for flag in reading.flags), reading.flags


def test_states_of_two_probes_are_not_compared_by_power() -> None:
    """A state that another process wrote down still gives the counter's joules, without a check that it cannot bear."""
    smi, sensor = sensor_of(FakeAmdGpu())
    (one,), (other,) = sensor.open(), sensor.open()
    smi.advance(0.0, 150.0)
    start = one.snapshot()
    for _ in range(8):
        smi.advance(1.0, 150.0)
        other.snapshot()
    reading = other.reading(start, other.snapshot())
    assert (round(reading.energy_j), reading.flags) == (1200, ())


def test_states_can_be_written_down() -> None:
    """Another process can go on from a state that was written as JSON."""
    _, sensor = sensor_of(FakeAmdGpu(bdf=A), FakeAmdGpu(bdf=B, counter_factor=None))
    for state in (probe.snapshot() for probe in sensor.open()):
        assert from_json(type(state), json.loads(json.dumps(to_json(state)))) == state


def test_the_second_die_is_in_the_first_one_s_joules() -> None:
    """Two dies of one package are one probe, and none is called broken."""
    smi, sensor = sensor_of(*mi250())
    assert sensor.available(this_host()) is None
    readings = run(smi, sensor, [(10.0, 500.0)])
    assert [r.scope for r in readings] == [f"gpu:pci-{A}", f"gpu:pci-{C}"]
    assert readings[0].energy_j == pytest.approx(5000.0, rel=1e-3)
    assert readings[0].flags == readings[1].flags == ()


def test_work_on_the_second_die_alone_is_metered_and_said() -> None:
    """The package is metered whole, with a flag that names the die the work cannot use."""
    smi, sensor = sensor_of(*mi250(), environ={"ROCR_VISIBLE_DEVICES": "3"})
    (reading,) = run(smi, sensor, [(10.0, 500.0)])
    assert reading.scope == f"gpu:pci-{C}"
    assert reading.flags == (f"its package holds {C} too, which this work cannot use",)


def test_partitions_of_one_gpu_are_read_once() -> None:
    """Functions of one PCI device share a counter."""
    parts = [FakeAmdGpu(bdf=f"0000:03:00.{n}", hip_id=n) for n in range(4)]
    smi, sensor = sensor_of(*parts)
    assert [r.scope for r in run(smi, sensor, [(5.0, 300.0)])] == ["gpu:pci-0000:03:00.0"]


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, [D, C, B, A]),
        ({"HIP_VISIBLE_DEVICES": "0,2"}, [D, B]),
        ({"CUDA_VISIBLE_DEVICES": "1"}, [C]),
        ({"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}, [C]),
        ({"ROCR_VISIBLE_DEVICES": f"GPU-{0:016X},2"}, [A, B]),
        ({"ROCR_VISIBLE_DEVICES": "2,3", "HIP_VISIBLE_DEVICES": "1"}, [A]),
        ({"ROCR_VISIBLE_DEVICES": "1,-1,0"}, [C]),
    ],
)
def test_visible_devices_are_respected(environ: dict[str, str], expected: list[str]) -> None:
    """ROCR's list is applied first, HIP's (or CUDA's) picks from what is left, and HIP's indexes are HIP's."""
    _, sensor = sensor_of(*four(), environ=environ)
    assert [probe.scope for probe in sensor.open()] == [f"gpu:pci-{bdf}" for bdf in expected]


def test_hidden_gpus_are_a_reason() -> None:
    """An environment that hides everything says so, with what to type."""
    _, sensor = sensor_of(*four(), environ={"HIP_VISIBLE_DEVICES": "-1"})
    assert "unset HIP_VISIBLE_DEVICES" in (sensor.available(this_host()) or "")


def test_old_versions_are_understood() -> None:
    """Before 6.4 the counter has another name, HIP's index is missing and absent powers are all ones."""
    smi, sensor = sensor_of(*four(), old=True, environ={"HIP_VISIBLE_DEVICES": "0"})
    (reading,) = run(smi, sensor, [(10.0, 200.0)])
    assert (reading.scope, round(reading.energy_j)) == (f"gpu:pci-{A}", 2000)


def test_a_mute_gpu_is_not_left_out() -> None:
    """A GPU without energy and power is an error that names it, unless it is a second die."""
    _, sensor = sensor_of(FakeAmdGpu(bdf=A), FakeAmdGpu(bdf=B, counter_factor=None, power=""))
    with pytest.raises(SensorError, match=f"{B}.*neither energy nor power"):
        sensor.open()


def test_a_counter_without_a_power_beside_it_is_used_and_said() -> None:
    """It moves, so it is used; that it could not be checked is a flag."""
    smi, sensor = sensor_of(FakeAmdGpu(power=""))
    (reading,) = run(smi, sensor, [(10.0, 200.0)])
    assert (reading.source, round(reading.energy_j)) == (Source.COUNTER, 2000)
    assert "no power was reported" in reading.flags[0]


@pytest.mark.parametrize("counter", [1.0, None])
def test_a_lost_gpu_has_three_parts(counter: float | None) -> None:
    """A GPU that falls off the bus raises with got, why and fix."""
    smi, sensor = sensor_of(FakeAmdGpu(counter_factor=counter))
    (probe,) = sensor.open()
    smi.gpus[0].lost = True
    with pytest.raises(SensorError, match="gives no more readings") as caught:
        probe.snapshot()
    assert all((caught.value.got, caught.value.why, caught.value.fix))


def test_no_driver_no_gpu_and_no_package_are_reasons(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each absence is a sentence that ends with what to type."""
    assert "amd-smi list" in (sensor_of(FakeAmdGpu(), driver=False)[1].available(this_host()) or "")
    assert "lists no GPU" in (sensor_of()[1].available(this_host()) or "")
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert "pip install" in (AmdSensor().available(this_host()) or "")

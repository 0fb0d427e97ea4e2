"""Hwmon: what kernel drivers show, no joule twice, and an error that covers late and averaged power."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from negawatt.core.codec import from_json, to_json
from negawatt.core.errors import NeedsPrivilegeError, SensorError
from negawatt.core.host import Host
from negawatt.core.reading import Reading, Source
from negawatt.hardware.host import this_host
from negawatt.metering.select import open_best
from negawatt.metering.sensors.hwmon import HwmonSensor
from negawatt.metering.session import Meter
from negawatt.testing import SensorContract
from negawatt.testing.hwmon import SimulatedHwmon
from negawatt.testing.load import KINDS, random_load

LINUX = replace(this_host(), system="Linux 6.8")
GPU = "0000:c1:00.0"
ORIN_NX = ("VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC")
AGX_ORIN = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0", "NC", "VDDQ_VDD2_1V8AO", "NC")


def simulate(
    tmp_path: Path, environ: dict[str, str] | None = None, **layout: Any
) -> tuple[SimulatedHwmon, HwmonSensor]:
    simulation = SimulatedHwmon(root=tmp_path / "hwmon", **layout)
    return simulation, HwmonSensor(simulation.root, environ=environ or {}, read=simulation.read, clock=simulation.clock)


def metered(simulation: SimulatedHwmon, sensor: HwmonSensor, seconds: float) -> list[Reading]:
    """Readings of a window, polled as the background thread of a meter polls it."""
    with Meter(open_best({"hwmon": sensor}, LINUX), simulation.clock, background=False) as meter:
        window, end_s = meter.start(), simulation.clock() + seconds
        while (left_s := end_s - simulation.clock()) > 1e-9:
            wait_s = meter.poll_s
            simulation.advance(min(wait_s, left_s))
            if wait_s < left_s:
                meter.poll()
        return list(window.stop())


def run(simulation: SimulatedHwmon, sensor: HwmonSensor, load: list[tuple[float, float]]) -> list[Reading]:
    """Readings of a window under these powers, each for some seconds."""
    at_s = simulation.clock()
    for seconds, power_w in load:
        simulation.load.extend([(at_s, power_w), (at_s + seconds, power_w)])
        at_s += seconds
    return metered(simulation, sensor, at_s - simulation.clock())


class TestSimulatedHwmon(SensorContract):
    """A server's chips keep the sensor contract."""

    @pytest.fixture(autouse=True)
    def tree(self, tmp_path: Path) -> None:
        self.simulation, self.sensor = simulate(tmp_path, sockets=2, gpus=(GPU,), meter_mean_s=1.0)
        self.simulation.advance(5.0, 150.0)

    def make(self) -> HwmonSensor:
        return self.sensor

    def host(self) -> Host:
        return LINUX

    def advance(self, seconds: float) -> None:
        self.simulation.advance(seconds, 150.0)


@pytest.mark.parametrize(
    ("layout", "scopes"),
    [
        ({"rails": ORIN_NX}, ["host"]),
        ({"rails": AGX_ORIN}, ["gpu", "cpu"]),
        ({"rails": ("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU")}, ["host"]),
        ({"rails": ("POM_5V_IN", "POM_5V_GPU", "POM_5V_CPU"), "meter_mean_s": 1.0}, ["host"]),
        ({"sockets": 2}, ["cpu:0/package", "cpu:1/package"]),
        ({"gpus": (GPU,)}, [f"gpu:pci-{GPU}"]),
        ({"gpus": (GPU,), "apu": True}, ["cpu"]),
        ({"meter_mean_s": 1.0}, ["host"]),
        ({"meter_mean_s": 1.0, "sockets": 1}, ["cpu:0/package"]),
    ],
)
def test_no_joule_is_taken_twice(tmp_path: Path, layout: dict[str, Any], scopes: list[str]) -> None:
    """The root rail alone, or the parts, or the whole machine's meter; cores and shared rails are left out."""
    simulation, sensor = simulate(tmp_path, **layout)
    readings = run(simulation, sensor, [(20.0, 60.0)])
    assert [r.scope for r in readings] == scopes
    assert all(r.energy_j == pytest.approx(1200.0, rel=0.05) for r in readings)


@pytest.mark.parametrize(
    "layout",
    [
        {"rails": ORIN_NX},
        {"rails": ORIN_NX, "refresh_s": 0.07},
        {"sockets": 1},
        {"gpus": (GPU,)},
        {"gpus": (GPU,), "refresh_s": 0.4},
        {"meter_mean_s": 1.0},
        {"meter_mean_s": 5.0, "refresh_s": 1.0},
    ],
)
@pytest.mark.parametrize("begin_s", [0.0, 0.35, 2.5])
def test_a_step_is_within_the_stated_error(tmp_path: Path, layout: dict[str, Any], begin_s: float) -> None:
    """However late a chip shows it, the joules of a step are in the 95 % interval, and flagged if that is wide."""
    simulation, sensor = simulate(tmp_path, **layout)
    simulation.advance(20.0 + begin_s, 40.0)
    before_j = simulation.energy_j
    (reading,) = run(simulation, sensor, [(12.0, 40.0), (30.0, 340.0)])
    assert abs(reading.energy_j - (simulation.energy_j - before_j)) <= 1.96 * reading.random_sd_j + 0.5
    slow = "gpus" in layout or "meter_mean_s" in layout
    assert ["missed at its edges" in flag for flag in reading.flags] == [True] * slow


@pytest.mark.parametrize("kind", KINDS)
def test_the_interval_covers_random_loads(tmp_path: Path, kind: str) -> None:
    """Over windows of 2 to 30 s of a GPU's work, shown late and averaged, 93 % of the truths or more are inside."""
    random, inside = Random(kind), 0
    for scenario in range(40):
        simulation, sensor = simulate(
            tmp_path / str(scenario),
            gpus=(GPU,),
            others=(),
            load=random_load(random, 60.0, 20.0, 300.0, kind),
            time_s=random.uniform(12.0, 20.0),
            refresh_s=random.uniform(0.001, 0.4),
        )
        before_j = simulation.energy_j
        (reading,) = metered(simulation, sensor, random.uniform(2.0, 30.0))
        truth_j = simulation.energy_j - before_j
        inside += abs(reading.energy_j - truth_j) <= 1.96 * reading.random_sd_j + 1e-6 * truth_j
    assert inside >= 37


def test_sources_are_those_of_the_chip(tmp_path: Path) -> None:
    """Sockets are counted and GPUs sampled, and the sensor states the weaker."""
    simulation, sensor = simulate(tmp_path, sockets=1, gpus=(GPU,))
    assert [r.source for r in run(simulation, sensor, [(5.0, 60.0)])] == [Source.COUNTER, Source.SAMPLED]
    assert sensor.info.source is Source.SAMPLED
    assert sensor.info.fallback


def test_an_acpi_meter_states_its_own_error(tmp_path: Path) -> None:
    """Accuracy becomes the gain, the averaging time the delay; without accuracy the assumption stays."""
    simulation, sensor = simulate(tmp_path / "a", meter_mean_s=4.0, accuracy="97.0%")
    assert run(simulation, sensor, [(20.0, 90.0)])[0].gain_sd_fraction == pytest.approx(0.015)
    unsure, sensor = simulate(tmp_path / "b", meter_mean_s=1.0, accuracy="0.0%")
    assert run(unsure, sensor, [(20.0, 90.0)])[0].gain_sd_fraction == 0.05


def test_a_counter_that_stands_still_is_an_error(tmp_path: Path) -> None:
    """A socket's frozen counter raises, and a frozen power is flagged."""
    simulation, sensor = simulate(tmp_path / "a", sockets=1)
    simulation.freeze()
    with pytest.raises(SensorError, match="stood still"):
        run(simulation, sensor, [(5.0, 80.0)])
    simulation, sensor = simulate(tmp_path / "b", gpus=(GPU,))
    simulation.advance(5.0, 80.0)
    simulation.freeze()
    assert "may be stuck" in run(simulation, sensor, [(700.0, 300.0)])[0].flags[0]


def test_a_rail_that_is_off_is_0_w_and_other_zeros_are_errors(tmp_path: Path) -> None:
    """The rail of an idle GPU is switched off; a machine or GPU that draws nothing is not believed."""
    simulation, sensor = simulate(tmp_path / "a", rails=AGX_ORIN)
    assert [r.energy_j for r in run(simulation, sensor, [(1.0, 0.0)])] == [pytest.approx(0.0, abs=1.5)] * 2
    simulation, sensor = simulate(tmp_path / "b", rails=ORIN_NX)
    with pytest.raises(SensorError, match="shows 0 uW"):
        run(simulation, sensor, [(1.0, 0.0)])


@pytest.mark.parametrize("layout", [{"rails": ORIN_NX}, {"sockets": 1}, {"gpus": (GPU,)}])
def test_losing_a_chip_has_three_parts(tmp_path: Path, layout: dict[str, Any]) -> None:
    """A driver that is unloaded while open: got, why and fix are all said."""
    simulation, sensor = simulate(tmp_path, **layout)
    (probe,) = sensor.open()
    simulation.vanish()
    with pytest.raises(SensorError, match="cannot be read any more") as caught:
        probe.snapshot()
    assert all((caught.value.got, caught.value.why, caught.value.fix))


def test_unreadable_counters_say_what_to_type(tmp_path: Path) -> None:
    """Without permission, `available` ends with the command and `open` raises NeedsPrivilegeError."""
    simulation, sensor = simulate(tmp_path, sockets=1)
    simulation.permit(allowed=False)
    assert "sudo chmod a+r" in (sensor.available(LINUX) or "")
    with pytest.raises(NeedsPrivilegeError, match="CVE-2020-12912"):
        sensor.open()
    simulation.permit(allowed=True)
    assert sensor.available(LINUX) is None


def test_chips_that_are_not_understood_are_listed(tmp_path: Path) -> None:
    """No tree, chips without power, two meters and another system each give a reason."""
    _, sensor = simulate(tmp_path / "a", others=("nvme", "k10temp"))
    assert "(chips: k10temp, nvme)" in (sensor.available(LINUX) or "")
    assert "chips: none" in (HwmonSensor(tmp_path / "none").available(LINUX) or "")
    assert "belongs to Linux" in (sensor.available(replace(LINUX, system="Darwin 24")) or "")
    _, twice = simulate(tmp_path / "b", rails=("VDD_IN", "VDD_IN"))
    with pytest.raises(SensorError, match="several chips measure 'host'"):
        twice.open()


def test_a_second_die_is_no_gpu_of_its_own(tmp_path: Path) -> None:
    """A GPU that shows 0 at opening is left out, because an MI250's second die does."""
    simulation, sensor = simulate(tmp_path, gpus=(GPU, "0000:c6:00.0"))
    dead = simulation.root / "hwmon2" / "power1_average"
    sensor._text = lambda path: "0\n" if path == dead else simulation.read(path)
    assert [probe.scope for probe in sensor.open()] == [f"gpu:pci-{GPU}"]


def test_hidden_gpus_are_not_metered(tmp_path: Path) -> None:
    """Where the environment hides some GPUs, none is read here, and the reason says so."""
    _, sensor = simulate(tmp_path, environ={"HIP_VISIBLE_DEVICES": "0"}, gpus=(GPU,))
    assert "the environment hides some" in (sensor.available(LINUX) or "")


def test_states_can_be_written_down(tmp_path: Path) -> None:
    """Another process can go on from a state that was written as JSON."""
    _, sensor = simulate(tmp_path, sockets=1, gpus=(GPU,))
    for state in (probe.snapshot() for probe in sensor.open()):
        assert from_json(type(state), json.loads(json.dumps(to_json(state)))) == state


def test_the_real_tree_gives_a_reason_or_probes() -> None:
    """On whatever machine this runs, the real tree gives None or a reason."""
    reason = HwmonSensor().available(this_host())
    assert reason is None or len(reason) > 10

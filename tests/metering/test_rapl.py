"""RAPL: every joule once, wraps corrected, and an error where a number would be wrong."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from negawatt.core.errors import NeedsPrivilegeError, SensorError
from negawatt.core.host import Host
from negawatt.core.reading import Source
from negawatt.hardware.host import this_host
from negawatt.metering.probes import CounterProbe
from negawatt.metering.sensors.rapl import RaplSensor
from negawatt.metering.session import Meter
from negawatt.testing import Load, SensorContract, SimulatedPowercap, true_joules

LINUX = replace(this_host(), system="Linux 6.8")


def simulate(tmp_path: Path, **layout: Any) -> tuple[SimulatedPowercap, RaplSensor]:
    simulation = SimulatedPowercap(root=tmp_path / "powercap", **layout)
    return simulation, RaplSensor(simulation.root, read=simulation.read, clock=simulation.clock)


def measured_j(simulation: SimulatedPowercap, sensor: RaplSensor, **load: float) -> dict[str, float]:
    probes = sensor.open()
    before = [probe.snapshot() for probe in probes]
    simulation.advance(**load)
    return {p.scope: p.reading(b, p.snapshot()).energy_j for p, b in zip(probes, before, strict=True)}


class TestSimulatedRapl(SensorContract):
    """RAPL on a simulated tree keeps the sensor contract."""

    @pytest.fixture(autouse=True)
    def tree(self, tmp_path: Path) -> None:
        self.simulation, self.sensor = simulate(tmp_path, dram=True, psys=True)

    def make(self) -> RaplSensor:
        return self.sensor

    def host(self) -> Host:
        return LINUX

    def advance(self, seconds: float) -> None:
        self.simulation.advance(seconds, 60.0, 5.0)


@pytest.mark.parametrize(
    "layout",
    [
        {},
        {"packages": 2},
        {"dram": True},
        {"psys": True},
        {"mmio": True},
        {"dies": 2},
        {"dies": 2, "one_counter": True},
        {"packages": 2, "dies": 2, "one_counter": True, "dram": True, "psys": True, "mmio": True},
    ],
)
def test_every_joule_is_counted_once(tmp_path: Path, layout: dict[str, Any]) -> None:
    """The sum over scopes is the true energy under every pathology of the tree."""
    simulation, sensor = simulate(tmp_path, **layout)
    energy_j = measured_j(simulation, sensor, seconds=10.0, power_w=70.0, dram_w=4.0)
    truth_j = simulation.package_j + (simulation.dram_j if layout.get("dram") else 0.0)
    assert sum(energy_j.values()) == pytest.approx(truth_j)


def test_scopes_name_package_and_dram(tmp_path: Path) -> None:
    """Scopes are cpu:N/package and cpu:N/dram; core and psys are left out."""
    _, sensor = simulate(tmp_path, packages=2, dram=True, psys=True)
    assert [p.scope for p in sensor.open()] == ["cpu:0/package", "cpu:0/dram", "cpu:1/package", "cpu:1/dram"]


def test_dies_have_scopes_of_their_own(tmp_path: Path) -> None:
    """Dies with counters of their own are told apart; one counter under two names is the package."""
    _, own = simulate(tmp_path / "own", dies=2)
    assert [p.scope for p in own.open()] == ["cpu:0/die-0/package", "cpu:0/die-1/package"]
    _, one = simulate(tmp_path / "one", dies=2, one_counter=True)
    assert [p.scope for p in one.open()] == ["cpu:0/package"]


def test_an_mmio_zone_alone_is_read(tmp_path: Path) -> None:
    """A machine that has only the MMIO zone is measured through it."""
    simulation, sensor = simulate(tmp_path, packages=0, mmio=True)
    assert measured_j(simulation, sensor, seconds=1.0, power_w=9.0) == {"cpu:0/package": pytest.approx(9.0)}


def test_a_wrap_inside_the_window_changes_nothing(tmp_path: Path) -> None:
    """A counter that wraps between two snapshots gives the true energy."""
    simulation, sensor = simulate(tmp_path, start_uj=262_143_328_850 - 5_000_000)
    assert measured_j(simulation, sensor, seconds=2.0, power_w=50.0) == {"cpu:0/package": pytest.approx(100.0)}


def test_the_error_shrinks_with_the_window(tmp_path: Path) -> None:
    """The random error is one millisecond at each edge, also for a window too short to see a count."""
    simulation, sensor = simulate(tmp_path)
    (probe,) = sensor.open()
    state = probe.snapshot()
    empty = probe.reading(state, state)
    assert (empty.energy_j, empty.source) == (0.0, Source.COUNTER)
    assert empty.random_sd_j == pytest.approx(simulation.design_w * 1e-3 / 6**0.5)
    simulation.advance(10.0, 50.0)
    assert probe.reading(state, probe.snapshot()).random_sd_j == pytest.approx(50.0 * 1e-3 / 6**0.5)


def test_unreadable_counters_say_what_to_type(tmp_path: Path) -> None:
    """Without permission, `available` ends with the command and `open` raises NeedsPrivilegeError."""
    simulation, sensor = simulate(tmp_path)
    simulation.permit(allowed=False)
    assert "sudo chmod a+r" in (sensor.available(LINUX) or "")
    with pytest.raises(NeedsPrivilegeError, match="CVE-2020-8694"):
        sensor.open()
    simulation.permit(allowed=True)
    assert sensor.available(LINUX) is None


def test_a_host_without_a_tree_is_told_why(tmp_path: Path) -> None:
    """No tree, a tree of dead zones, and another system each give a reason."""
    missing = RaplSensor(tmp_path / "none")
    assert "no live RAPL package counter" in (missing.available(LINUX) or "")
    assert "this is docker" in (missing.available(replace(LINUX, virtual="docker")) or "")
    assert "through Linux" in (missing.available(replace(LINUX, system="Darwin 24")) or "")
    _, dead = simulate(tmp_path, start_uj=0)
    with pytest.raises(SensorError, match="no live RAPL package counter"):
        dead.open()


def test_a_garbled_tree_is_refused(tmp_path: Path) -> None:
    """A counter that is not a number is an error, not a guess."""
    simulation, _ = simulate(tmp_path)
    (simulation.root / "intel-rapl:0" / "energy_uj").write_text("many\n")
    with pytest.raises(SensorError, match="cannot be understood"):
        RaplSensor(simulation.root).open()


def snapshot_after(probe: CounterProbe, change: Any) -> None:
    change()
    probe.snapshot()


def test_losing_the_counter_has_three_parts(tmp_path: Path) -> None:
    """Permission withdrawn or module unloaded while open: got, why and fix are all said."""
    simulation, sensor = simulate(tmp_path)
    (probe,) = sensor.open()
    for change in (lambda: simulation.permit(allowed=False), simulation.vanish):
        with pytest.raises(SensorError, match="cannot be read any more") as caught:
            snapshot_after(probe, change)
        assert all((caught.value.got, caught.value.why, caught.value.fix))


def test_a_reset_while_open_is_an_error(tmp_path: Path) -> None:
    """Counters that fall to 0 (suspend) raise, also once they have grown past their old value."""
    simulation, sensor = simulate(tmp_path)
    (probe,) = sensor.open()
    before = probe.snapshot()
    simulation.advance(60.0, 100.0)
    probe.snapshot()
    simulation.reset()
    simulation.advance(0.1, 100.0)
    probe.snapshot()
    simulation.advance(120.0, 100.0)
    with pytest.raises(SensorError, match="reset"):
        probe.reading(before, probe.snapshot())


def test_a_frozen_counter_is_flagged_before_it_is_an_error(tmp_path: Path) -> None:
    """A counter that stops inside the window makes the reading doubtful; one that never moved in it is refused."""
    simulation, sensor = simulate(tmp_path, refresh_s=1e-3, frozen_s=3.0)
    (probe,) = sensor.open()
    start = probe.snapshot()
    simulation.advance(2.9, 50.0)
    assert probe.reading(start, probe.snapshot()).flags == ()
    for _ in range(3):
        simulation.advance(0.5, 50.0)
        late = probe.snapshot()
    (flag,) = probe.reading(start, late).flags
    assert "stood still" in flag
    simulation.advance(2.0, 50.0)
    with pytest.raises(SensorError, match="stood still"):
        probe.reading(late, probe.snapshot())


def test_a_double_die_is_named_in_the_reading(tmp_path: Path) -> None:
    """Which zone was taken for the same counter is said with every reading."""
    simulation, sensor = simulate(tmp_path, dies=2, one_counter=True)
    (probe,) = sensor.open()
    start = probe.snapshot()
    simulation.advance(1.0, 50.0)
    assert probe.reading(start, probe.snapshot()).flags == (
        "intel-rapl:1 shows the same joules as intel-rapl:0 and is left out",
    )


def test_the_files_are_read_without_opening_them_again(tmp_path: Path) -> None:
    """The sensor keeps the counters open: permission withdrawn on the path does no harm, an unloaded module does."""
    simulation = SimulatedPowercap(root=tmp_path / "powercap")
    (probe,) = RaplSensor(simulation.root, clock=simulation.clock).open()
    start = probe.snapshot()
    simulation.permit(allowed=False)
    simulation.advance(1.0, 50.0)
    assert probe.reading(start, probe.snapshot()).energy_j == pytest.approx(50.0)


def test_the_wall_clock_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock that is set back by a day inside the window changes no joule."""
    simulation, sensor = simulate(tmp_path)
    now_s = time.time()
    with Meter.of([sensor], host=LINUX, clock=simulation.clock) as meter:
        window = meter.start()
        simulation.advance(1.0, 50.0)
        monkeypatch.setattr(time, "time", lambda: now_s - 86400.0)
        simulation.advance(1.0, 50.0)
        (reading,) = window.stop()
    assert (reading.energy_j, window.time_s) == (pytest.approx(100.0), 2.0)


def test_a_poll_of_two_zones_is_cheap(tmp_path: Path) -> None:
    """Ten polls of package and DRAM take less than 1 ms of CPU time; a window's edge, far less."""
    simulation = SimulatedPowercap(root=tmp_path / "powercap", dram=True)
    probes = RaplSensor(simulation.root).open()

    def ten_polls_s() -> float:
        begin_s = time.process_time()
        for _ in range(10):
            for probe in probes:
                probe.snapshot()
        return time.process_time() - begin_s

    assert min(ten_polls_s() for _ in range(20)) < 1e-3


def test_live_files_give_the_true_joules(tmp_path: Path) -> None:
    """In real time, over files that another thread moves every millisecond, the meter is right to 10 % within 0.3 s."""
    load = Load([(0.0, 20.0), (0.2, 20.0), (0.2, 200.0)])
    simulation = SimulatedPowercap(root=tmp_path / "powercap", load=load)
    with simulation.live(), Meter.of([RaplSensor(simulation.root)], host=LINUX) as meter:
        begin_s, window = simulation.clock(), meter.start()
        time.sleep(0.3)
        (reading,) = window.stop()
        end_s = simulation.clock()
    assert reading.energy_j == pytest.approx(true_joules(load.points, begin_s, end_s), rel=0.1)

"""Limits of a job's devices: two simulated packages, their real kernel files and a real lease on them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

from negawatt.core.errors import HardwareError, SensorError
from negawatt.core.lever import Choice
from negawatt.core.reading import Reading, Source
from negawatt.core.tuned import Tuned
from negawatt.core.workload import Phase, Progress, Workload
from negawatt.hardware.control import ControlInfo, Knob
from negawatt.hardware.controls import nvidia, rapl
from negawatt.hardware.host import this_host
from negawatt.hardware.lease import Lease
from negawatt.levers import clock_limit, device_limit, power_limit
from negawatt.levers.device_limit import AS_FOUND
from negawatt.levers.devices import Devices, of_job
from negawatt.levers.limiting import Limiting, Numbers, Ranks
from negawatt.metering.sensors.rapl import RaplSensor
from negawatt.metering.session import Meter
from negawatt.testing.contracts import LeverContract
from negawatt.testing.powercap import SimulatedPowercap
from negawatt.testing.scripted import PlainContext
from negawatt.tuning.objective import Objective

WITHIN_10 = Objective(max_slowdown_fraction=0.1)


@dataclass
class Machine:
    """Two packages that draw 120 W each, found limited to 125 W each; steps take longer under a lower limit."""

    folder: Path
    found_w: float = 125.0
    tree: SimulatedPowercap = field(init=False)
    steps: int = 0

    def __post_init__(self) -> None:
        self.tree = SimulatedPowercap(root=self.folder / "powercap", packages=2, limit_w=self.found_w)
        self.tree.advance(0.0, power_w=120.0)
        sensor = RaplSensor(self.tree.root, read=self.tree.read, clock=self.tree.clock)
        self.meter = Meter.of([sensor], clock=self.tree.clock)
        self.window = self.meter.start()

    @property
    def files(self) -> list[Path]:
        return sorted(self.tree.root.glob("intel-rapl:?/constraint_0_power_limit_uw"))

    @property
    def addresses(self) -> list[str]:
        return [f"rapl:{file}" for file in self.files]

    @property
    def limits_w(self) -> list[float]:
        return [int(file.read_text()) * 1e-6 for file in self.files]

    def lease(self) -> Lease:
        return Lease.take(self.addresses, owner="test", folder=self.folder / "state")

    def limiting(self, objective: Objective = WITHIN_10, ranks: Ranks | None = None) -> Limiting:
        return Limiting(self.lease(), objective, readings=self.window.readings, clock=self.tree.clock, ranks=ranks)

    def step(self, slow: float = 2.0) -> float:
        lack = max(0.0, 1 - self.limits_w[0] / 120.0)
        self.tree.advance(0.25 * (1 + 0.2 * lack + slow * lack**2))
        self.steps += 1
        return self.steps


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    made.meter.close()


def test_two_packages_are_tuned_as_one_and_put_back(machine: Machine) -> None:
    """The limit is their sum, each gets its part, and the job pays less energy within the bound."""
    limiting = machine.limiting()
    for _ in range(400):
        limiting.step(machine.step())
    lowered = machine.limits_w
    tuned = limiting.close()
    assert tuned.found == 250.0
    assert lowered[0] == lowered[1] == tuned.held / 2 < 125.0
    assert machine.limits_w == [125.0, 125.0]
    assert tuned.changes is not None
    assert tuned.changes[0] < 1.1
    assert tuned.changes[1] < 0.95
    assert tuned.saved_j is not None
    assert tuned.saved_j > 0
    assert limiting.close() is tuned


def test_energy_that_a_limit_does_not_save_is_left_alone(machine: Machine) -> None:
    """Where steps get slower by more than the draw falls, everything stays as found, and no saving is claimed."""
    limiting = machine.limiting(Objective())
    for _ in range(500):
        limiting.step(machine.step(slow=60.0))
    tuned = limiting.close()
    assert tuned.held >= 230.0  # where the limit does not bind yet
    assert tuned.saved_j is None or abs(tuned.saved_j) < 0.02 * machine.tree.package_j


def test_a_sensor_that_fails_ends_the_tuning_and_not_the_job(machine: Machine) -> None:
    """The limits are put back, and the record says why."""
    limiting = machine.limiting()
    for _ in range(120):
        limiting.step(machine.step())
    machine.tree.permit(allowed=False)
    for _ in range(100):
        limiting.step(machine.step())
    assert machine.limits_w == [125.0, 125.0]
    assert any("meter failed" in note for note in limiting.close().notes)


def test_a_job_that_ends_at_once_is_said_to_be_too_short(machine: Machine) -> None:
    """Nothing was measured, so nothing is claimed."""
    limiting = machine.limiting()
    limiting.step(machine.step())
    tuned = limiting.close()
    assert tuned.changes is None
    assert "nothing was tuned" in tuned.notes[-1]


class Exchange:
    """Numbers between ranks that are threads: each waits for all."""

    def __init__(self, ranks: int) -> None:
        self._barrier = threading.Barrier(ranks, timeout=60)
        self._told: dict[int, Numbers] = {}

    def share(self, rank: int, numbers: Numbers) -> list[Numbers]:
        self._told[rank] = numbers
        self._barrier.wait()
        every = [self._told[rank] for rank in sorted(self._told)]
        self._barrier.wait()
        return every


def ranks_run(
    tmp_path: Path, withdraw_at: int = -1, found_w: float = 125.0
) -> tuple[list[Machine], list[Tuned], list[list[list[float]]]]:
    """Two ranks, each with a machine of its own; what they were limited to after every step."""
    machines = [Machine(tmp_path / str(rank), limit_w) for rank, limit_w in enumerate((125.0, found_w))]
    exchange, seen = Exchange(2), [[], []]
    tuned: list[Tuned] = [None, None]

    def work(rank: int) -> None:
        machine = machines[rank]
        limiting = machine.limiting(ranks=Ranks(rank=rank, share=partial(exchange.share, rank)))
        for step in range(400):
            if rank == 1 and step == withdraw_at:
                machine.tree.permit(allowed=False)
            limiting.step(machine.step(slow=2.0 + rank))
            seen[rank].append(machine.limits_w)
        tuned[rank] = limiting.close()

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for machine in machines:
        machine.meter.close()
    return machines, tuned, seen


def test_all_ranks_follow_one_decision(tmp_path: Path) -> None:
    """After every step all ranks have the same limits, though their own curves differ."""
    machines, tuned, seen = ranks_run(tmp_path)
    assert seen[0] == seen[1]
    assert seen[0][-1][0] < 125.0
    assert tuned[0].held < 250.0
    assert "first rank" in tuned[1].notes[-1]
    assert [machine.limits_w for machine in machines] == [[125.0, 125.0]] * 2


def test_one_rank_whose_meter_fails_takes_all_back(tmp_path: Path) -> None:
    """No rank goes on alone, none waits for ever, and all are as found."""
    machines, tuned, _ = ranks_run(tmp_path, withdraw_at=150)
    assert [machine.limits_w for machine in machines] == [[125.0, 125.0]] * 2
    assert all(any("meter failed" in note for note in one.notes) for one in tuned)


def test_ranks_that_were_found_apart_move_by_the_same_part(tmp_path: Path) -> None:
    """A rank found at 150 W beside one at 125 W: neither waits for the other, and both are put back."""
    machines, tuned, seen = ranks_run(tmp_path, found_w=150.0)
    assert [one[0] / 125.0 for one in seen[0]] == pytest.approx([one[0] / 150.0 for one in seen[1]])
    assert machines[0].limits_w == [125.0, 125.0]
    assert machines[1].limits_w == [150.0, 150.0]
    assert tuned[0].holds


class BrokenHand:
    """A hand on hardware whose driver raises something of its own."""

    def __init__(self, lease: Lease) -> None:
        self.infos, self.found, self.release = lease.infos, lease.found, lease.release

    def set(self, address, value):
        raise KeyError("driver bug")


def test_no_error_of_any_kind_reaches_the_job(machine: Machine) -> None:
    """What is not a refusal but a bug ends the tuning, is in the record, and the job goes on."""
    limiting = Limiting(
        BrokenHand(machine.lease()), WITHIN_10, readings=machine.window.readings, clock=machine.tree.clock
    )
    for _ in range(200):
        limiting.step(machine.step())
    assert any("KeyError" in note for note in limiting.close().notes)
    assert machine.limits_w == [125.0, 125.0]


def test_a_hand_that_was_taken_away_is_noticed_while_holding(machine: Machine) -> None:
    """After the limit was put back behind its back, no step more counts as limited."""
    limiting = machine.limiting()
    for _ in range(150):
        limiting.step(machine.step())
    for file in machine.files:  # as an administrator
        file.write_text("120000000")
    for _ in range(400):
        limiting.step(machine.step())
    tuned = limiting.close()
    assert any("could not be set" in note for note in tuned.notes), tuned
    assert tuned.held_steps < 300


def info(**changes: object) -> ControlInfo:
    fields = {
        "address": "rapl:a", "scope": "gpu:A", "knob": Knob.POWER_LIMIT, "unit": "W", "lowest": 100.0, "highest": 700.0,
        "step": 0.5,
    }  # fmt: skip
    return ControlInfo(**{**fields, **changes})


def test_limits_worth_trying_are_round_and_few() -> None:
    """A GPU of 700 W is tried at whole tens of watts, some ten of them, never below its range."""
    limits = Devices([info(lowest=200.0)], {"rapl:a": 700.0}).limits
    assert limits[0] == 700.0
    assert 8 <= len(limits) <= 17
    assert all(limit % 10 == 0 and limit >= 200 for limit in limits)


def test_unlike_devices_move_by_the_same_fraction() -> None:
    """Each keeps to its own range."""
    devices = Devices([info(), info(address="rapl:b", lowest=80.0)], {"rapl:a": 400.0, "rapl:b": 100.0})
    assert devices.found == 500.0
    assert devices.values(0.9) == {"rapl:a": 360.0, "rapl:b": 90.0}
    assert devices.values(0.6)["rapl:b"] == 80.0


def test_clocks_are_tried_from_the_values_that_a_device_takes() -> None:
    """Unlocked clocks start at the highest; steps between are those of the driver."""
    clocks = tuple(float(mhz) for mhz in range(210, 1411, 15))
    gpu = info(knob=Knob.CLOCK_LIMIT, unit="MHz", lowest=210.0, highest=1410.0, values=clocks)
    devices = Devices([gpu], {"rapl:a": None})
    assert devices.found == 1410.0
    assert set(devices.limits) <= set(clocks)
    assert len(devices.limits) <= 18
    assert devices.values(1000.0 / 1410.0) == {"rapl:a": 990.0}
    assert devices.values(1.0) == {"rapl:a": None}  # as found is not a lock at the highest clock


def test_a_limit_found_above_what_the_device_does_now_starts_at_that() -> None:
    """A limit set past the driver holds: nothing above it is tried, and as found stays as found."""
    devices = Devices([info(highest=250.0)], {"rapl:a": 300.0})
    assert devices.found == 250.0
    assert max(devices.limits) == 250.0
    assert devices.values(1.0) == {"rapl:a": 300.0}


def test_a_limit_of_nothing_is_refused() -> None:
    """A package that says 0 W has no part to try."""
    with pytest.raises(HardwareError, match="found at 0 W"):
        Devices([info()], {"rapl:a": 0.0})


def read(scope: str, energy_j: float, source: Source = Source.COUNTER) -> Reading:
    return Reading(
        scope=scope,
        energy_j=energy_j,
        source=source,
        sensor="test",
        random_sd_j=1.0,
        gain_sd_fraction=0.0,
        offset_sd_w=0.0,
    )


def test_memory_and_other_gpus_are_not_the_devices() -> None:
    """Of a package's readings, its DRAM is the rest of the host; another job's GPU is neither."""
    package = Devices([info(scope="cpu:0")], {"rapl:a": 125.0})
    energy = package.energy([read("cpu:0/package", 10.0), read("cpu:0/dram", 2.0)])
    assert (energy.own_j, energy.rest_j, energy.alone) == (10.0, 2.0, True)
    energy = Devices([info()], {"rapl:a": 400.0}).energy([read("gpu:A", 9.0), read("gpu:B", 5.0), read("cpu:0", 1.0)])
    assert (energy.own_j, energy.rest_j) == (9.0, 1.0)
    assert not Devices([info(scope="cpu:0")], {"rapl:a": 125.0}).energy([read("host", 30.0)]).alone


def test_a_limit_is_not_judged_by_an_estimate() -> None:
    """Joules guessed from how busy the processors are do not fall with a limit."""
    with pytest.raises(SensorError, match="not measured here"):
        Devices([info(scope="cpu:0")], {"rapl:a": 125.0}).energy([read("cpu", 10.0, Source.ESTIMATED)])


class Job:
    """Training in steps."""

    name, unit, quality, knobs = "job", "sample", "accuracy", ()

    def start(self, params, seed):
        return {}

    def steps(self, params, state):
        yield Progress(step=1, work=1.0)

    def evaluate(self, state, split):
        return 0.5


@pytest.fixture
def here(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> Machine:
    """A machine whose tree is the one that levers find."""
    monkeypatch.setattr(nvidia, "look", lambda: ((), ()))  # another test may have loaded a simulated one
    monkeypatch.setattr(rapl, "look", partial(rapl.look, machine.tree.root))
    return machine


def test_a_job_without_gpus_has_its_packages_limited(here: Machine) -> None:
    """Both packages; what is not measured is left out."""
    assert [control.info.address for control in of_job(Knob.POWER_LIMIT)] == here.addresses
    assert len(of_job(Knob.POWER_LIMIT, ["cpu:1"])) == 1
    with pytest.raises(HardwareError, match="no power limit of gpu:GPU-1"):
        of_job(Knob.POWER_LIMIT, ["gpu:GPU-1"])


def test_a_fixed_part_is_set_for_the_block(here: Machine) -> None:
    """The choice 0.7x sets 70 % of what was found, and it is put back."""
    choice = Choice(lever="power-limit", phase=Phase.TRAIN, value="0.8x")
    with power_limit.lever.applied(Workload.of(Job()), choice, PlainContext(host=this_host(), clock=time.monotonic)):
        assert here.limits_w == [100.0, 100.0]
    assert here.limits_w == [125.0, 125.0]


def test_tuned_watches_steps_and_keeps_the_stop_rule(here: Machine) -> None:
    """The workload's own stop rule still ends training."""
    workload = Workload.of(Job())
    stops = []
    choice = Choice(lever="power-limit", phase=Phase.TRAIN, value=f"{device_limit.TUNED}-0.05")
    context = PlainContext(host=this_host(), clock=time.monotonic)
    with (  # noqa: PT012 -- the error comes at the block's end: a trial of one step says nothing
        pytest.raises(HardwareError, match="nothing was tuned"),
        power_limit.lever.applied(workload, choice, context) as changed,
    ):
        rule = changed.stop()
        stops.append(rule(Progress(step=1, work=1.0)))
    assert stops == [False]
    assert here.limits_w == [125.0, 125.0]


def test_the_clock_lever_says_why_it_is_not_available() -> None:
    """A machine without clocks to limit gets a reason with what to type, not an error."""
    reason = clock_limit.lever.available(this_host())
    assert reason is None or "negawatt" in reason


class TestPowerLimit(LeverContract):
    """On a machine with two packages."""

    @pytest.fixture(autouse=True)
    def _here(self, here: Machine) -> None:
        self.machine = here

    def make(self):
        return power_limit.lever

    def workload(self):
        return Job()

    def host_state(self):
        return self.machine.limits_w


def test_as_found_is_the_naive_choice() -> None:
    """And a competent engineer's: nobody limits power for speed."""
    (naive,) = [choice for choice in power_limit.lever.choices(Workload.of(Job())) if choice.naive]
    assert naive.value == AS_FOUND
    assert [c.value for c in power_limit.lever.choices(Workload.of(Job())) if c.competent] == [AS_FOUND]


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="takes root to become somebody else")
def test_without_the_privilege_the_reason_names_the_command(here: Machine) -> None:
    """An ordinary user is told what an administrator types."""
    program = (
        "import os, sys; from functools import partial; from pathlib import Path\n"
        "from negawatt.hardware.controls import rapl; from negawatt.hardware.control import Knob\n"
        "from negawatt.hardware.guard import client; from negawatt.levers.devices import why_not\n"
        "rapl.look = partial(rapl.look, Path(sys.argv[1]))\n"
        "why_not(Knob.POWER_LIMIT); os.setuid(65534)  # what it imports may be out of that user's reach\n"
        "print(why_not(Knob.POWER_LIMIT))"
    )
    for folder in (here.tree.root, *here.tree.root.parents[:3]):
        folder.chmod(0o755)
    done = subprocess.run(
        [sys.executable, "-c", program, str(here.tree.root)], capture_output=True, text=True, check=False
    )
    assert "sudo tee" in done.stdout, done.stderr
    assert "negawatt guard" in done.stdout

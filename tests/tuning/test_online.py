"""OnlineTuner: on simulated jobs whose step time and power follow the limit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

import pytest

from negawatt.tuning.limits import LimitSearch
from negawatt.tuning.objective import Objective
from negawatt.tuning.online import OnlineTuner, Pace
from negawatt.tuning.plain import Bisection, Sweep
from negawatt.tuning.windows import Mark, Part

LIMITS = (250.0, 225.0, 200.0, 175.0, 150.0, 125.0, 100.0)


@dataclass
class Job:
    """Steps that take longer under a lower limit; every `pause_every` it pauses; its counter ticks every `tick_s`."""

    demand_w: float = 240.0
    step_s: float = 0.05
    noise_fraction: float = 0.01
    rest_w: float = 0.0
    pause_every: int = 0
    pause_s: float = 0.0
    limit_w: float = 250.0
    random: Random = field(default_factory=lambda: Random(1))
    steps: int = 0
    time_s: float = 0.0
    energy_j: float = 0.0
    rest_j: float = 0.0
    tick_s: float = 0.0
    shown_s: float = 0.0
    shown_j: float = 0.0

    def slowdown(self) -> float:
        lack = max(0.0, 1.0 - self.limit_w / self.demand_w)
        return 1.0 + 0.2 * lack + 2.0 * lack**3

    def step(self) -> None:
        took_s = self.step_s * self.slowdown() * math.exp(self.random.gauss(0, self.noise_fraction))
        watts = min(self.limit_w, self.demand_w) * math.exp(self.random.gauss(0, self.noise_fraction))
        self.energy_j += watts * took_s
        self.steps += 1
        if self.pause_every and self.steps % self.pause_every == 0:
            took_s += self.pause_s
            self.energy_j += 60.0 * self.pause_s
        self.time_s += took_s
        self.rest_j += self.rest_w * took_s

    def mark(self) -> Mark:
        if self.tick_s and self.time_s >= self.shown_s + self.tick_s:
            self.shown_s, self.shown_j = self.time_s - self.time_s % self.tick_s, self.energy_j
        energy_j, sd_j = (self.shown_j, 240.0 * self.tick_s / 3) if self.tick_s else (self.energy_j, 0.0)
        return Mark(steps=self.steps, time_s=self.time_s, energy_j=energy_j, rest_j=self.rest_j, edge_sd_j=sd_j)


def tuner(objective: Objective, search: Callable[..., LimitSearch] = Sweep, pace: Pace | None = None) -> OnlineTuner:
    return OnlineTuner(lambda wanted: search(LIMITS, wanted), objective, LIMITS[0], pace)


def run(job: Job, tuned: OnlineTuner, steps: int) -> list[float]:
    """Let a job do steps; the limits it was given."""
    limits = []
    for _ in range(steps):
        job.step()
        if job.steps >= tuned.next_step and (limit := tuned.mark(job.mark())) is not None:
            job.limit_w = limit
            limits.append(limit)
    tuned.end()
    return limits


def test_it_holds_the_least_energy_within_the_bound() -> None:
    """A sweep during the run ends at the limit that costs least among those that keep the bound."""
    job, tuned = Job(), tuner(Objective(max_slowdown_fraction=0.1))
    run(job, tuned, 4000)
    assert tuned.holding
    assert tuned.limit == 175.0  # 150 W: 1.18 times as long
    assert tuned.probes[0].limit == 250.0
    assert sum(hold.steps for hold in tuned.holds) > 2500


def test_least_energy_without_a_bound() -> None:
    """Without a bound it goes on to where energy is least, and no further."""
    job, tuned = Job(), tuner(Objective())
    run(job, tuned, 5000)
    energies = {watts: min(watts, 240.0) * Job(limit_w=watts).slowdown() for watts in LIMITS}
    assert tuned.limit == min(energies, key=lambda watts: energies[watts])


def test_the_rest_of_the_host_counts_by_time() -> None:
    """Where the rest of the host draws much, slowing a GPU down wastes energy, and nothing that slows is chosen."""
    job, tuned = Job(rest_w=2000.0), tuner(Objective())
    run(job, tuned, 5000)
    assert tuned.limit >= 225.0


def test_pauses_for_evaluation_do_not_count_as_slowness() -> None:
    """A pause every few seconds, as between short epochs, leaves the choice as it is."""
    job = Job(pause_every=97, pause_s=1.5)
    tuned = tuner(Objective(max_slowdown_fraction=0.1))
    run(job, tuned, 6000)
    assert tuned.limit == 175.0
    assert not tuned.retuned


def test_a_bisection_takes_fewer_windows() -> None:
    """The number of windows is that of the search, and one to look again at what is held."""
    job, tuned = Job(), tuner(Objective(max_slowdown_fraction=0.1), Bisection)
    run(job, tuned, 4000)
    assert tuned.limit == 175.0
    assert len(tuned.probes) <= 5


def test_drift_of_the_work_is_tuned_anew() -> None:
    """When steps become another kind of work, it starts again from the limit as found."""
    pace = Pace(rest_s=10.0, hold_part_s=2.0)
    job, tuned = Job(), tuner(Objective(max_slowdown_fraction=0.1), pace=pace)
    run(job, tuned, 3000)
    assert tuned.limit == 175.0
    job.demand_w, job.step_s = 160.0, 0.08
    limits = run(job, tuned, 6000)
    assert limits[0] == 250.0
    assert tuned.retuned == 1
    assert "tuned anew" in tuned.notes[-1]
    assert tuned.limit == 125.0


def test_steady_work_is_not_tuned_again() -> None:
    """Noise of 3 % a step for a long time raises no alarm."""
    pace = Pace(rest_s=1.0, hold_part_s=1.0)
    job, tuned = Job(noise_fraction=0.03), tuner(Objective(max_slowdown_fraction=0.1), pace=pace)
    run(job, tuned, 20000)
    assert tuned.retuned == 0


def test_a_job_shorter_than_one_window_changes_nothing() -> None:
    """Nothing is set, nothing is claimed."""
    job, tuned = Job(), tuner(Objective())
    assert run(job, tuned, 150) == []
    assert tuned.probes == []
    assert tuned.holds == []


def test_a_clock_that_goes_backwards_makes_a_part_void() -> None:
    """The part is left out and noted, and the choice is the same."""
    job, tuned = Job(), tuner(Objective(max_slowdown_fraction=0.1))
    run(job, tuned, 260)
    job.time_s -= 30.0
    run(job, tuned, 4000)
    assert tuned.limit == 175.0
    assert any("went backwards" in note for note in tuned.notes)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_meter_that_gives_no_number_makes_a_part_void(bad: float) -> None:
    """A reading that is no number is no reading."""
    job, tuned = Job(), tuner(Objective(max_slowdown_fraction=0.1))
    run(job, tuned, 200)
    tuned.mark(Mark(steps=job.steps + 1, time_s=job.time_s + 1, energy_j=bad))
    run(job, tuned, 4000)
    assert tuned.limit == 175.0


def test_a_limit_that_is_refused_ends_the_tuning() -> None:
    """It goes back to the limit as found, asks for no more marks, and says why."""
    job, tuned = Job(), tuner(Objective())
    run(job, tuned, 400)
    assert tuned.refused("permission withdrawn") == 250.0
    assert tuned.next_step == math.inf
    assert tuned.notes == ["permission withdrawn"]
    assert tuned.mark(job.mark()) is None


def test_a_hopeless_limit_costs_two_parts() -> None:
    """Steps far beyond the bound end their window early."""
    job, tuned = Job(), tuner(Objective(max_slowdown_fraction=0.03))
    run(job, tuned, 6000)
    slow = next(probe for probe in tuned.probes if probe.limit == 100.0)
    full = next(probe for probe in tuned.probes if probe.limit == 225.0)
    assert slow.steps * slow.time_s < 0.6 * full.steps * full.time_s


def test_what_was_picked_by_luck_is_given_up() -> None:
    """A limit that breaks the bound in its second, longer look gives way to the next best."""
    job, tuned = Job(noise_fraction=0.002), tuner(Objective(max_slowdown_fraction=0.1))
    for _ in range(6000):
        job.step()
        if job.steps >= tuned.next_step and (limit := tuned.mark(job.mark())) is not None:
            job.limit_w = limit
        if tuned.holding and job.limit_w == 175.0:
            job.step_s = 0.06  # it throttles there in the long run
        elif job.limit_w != 175.0:
            job.step_s = 0.05
    assert tuned.limit == 200.0
    assert any("given up" in note for note in tuned.notes)


@pytest.mark.parametrize("step_s", [0.002, 0.02])
def test_a_counter_that_ticks_every_tenth_of_a_second_is_enough(step_s: float) -> None:
    """Fast steps and a slow counter need no more than twice the shortest window, and nothing is noted."""
    job, tuned = Job(step_s=step_s, tick_s=0.1), tuner(Objective(max_slowdown_fraction=0.1))
    run(job, tuned, round(130 / step_s))
    assert tuned.limit == 175.0
    assert tuned.notes == []
    windows_s = [probe.steps * probe.time_s for probe in tuned.probes]
    assert statistics.median(windows_s) <= 10.0


def test_few_marks_are_asked_for() -> None:
    """A minute of steps of a millisecond has some hundred marks, warm-up and settling included."""
    job, tuned = Job(step_s=0.001), tuner(Objective(max_slowdown_fraction=0.1))
    marks = 0
    for _ in range(60000):
        job.step()
        if job.steps >= tuned.next_step:
            marks += 1
            job.limit_w = tuned.mark(job.mark()) or job.limit_w
    assert marks < 300


def test_a_dead_meter_is_given_up() -> None:
    """Ten parts without a joule end the tuning, with one note."""
    job, tuned = Job(), tuner(Objective())
    run(job, tuned, 300)
    job.tick_s, job.shown_s = 1e9, 1e9  # the counter stands still from now on
    job.shown_j = job.energy_j
    run(job, tuned, 3000)
    assert tuned.next_step == math.inf
    assert tuned.limit == 250.0
    assert len(tuned.notes) == 1


def test_what_was_saved_is_counted_for_each_kind_of_work() -> None:
    """When the work changes, steps before and after are counted by their own windows."""
    job, tuned = Job(), tuner(Objective(max_slowdown_fraction=0.1), pace=Pace(rest_s=10.0, hold_part_s=2.0))
    run(job, tuned, 4000)
    job.demand_w, job.step_s = 180.0, 0.01
    run(job, tuned, 12000)
    assert tuned.retuned == 1
    first, second = tuned.holds
    assert first.base.time_s == pytest.approx(0.05, rel=0.02)
    assert second.base.time_s == pytest.approx(0.01, rel=0.02)
    assert first.base.energy_j > 4 * second.base.energy_j
    assert first.steps + second.steps < job.steps


def test_error_of_sampled_power_is_that_of_the_window() -> None:
    """What sampling added up before a window is not the window's."""
    old = Mark(steps=1000, time_s=3000.0, energy_j=6e5, walk_sd_j=100.0)
    new = Mark(steps=1010, time_s=3030.0, energy_j=6.06e5, walk_sd_j=math.sqrt(100.0**2 + 10.0**2))
    part = Part.between(old, new)
    assert part is not None
    assert part.energy_sd_j == pytest.approx(10.0)

"""Digest: the trials of a plan averaged per setting, the front, the failures and the waterfall, for both reports."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from operator import add

from negawatt.core.errors import ScopeMismatchError
from negawatt.core.front import pareto_front
from negawatt.core.lever import Setting
from negawatt.core.measurement import Latency, Measurement
from negawatt.core.plan import Keep, PhasePlan, Plan
from negawatt.core.reading import Reading
from negawatt.core.trial import Role, Trial
from negawatt.core.workload import Split


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One setting with its repeated runs put together.

    Attributes:
        setting: the setting.
        names: what it is called: "plan", "competent default", "naive default", "candidate"; mostly none.
        role: why the runs behind the numbers were made: proof runs where there are any, else search runs.
        split: the data split of `measurement.quality`.
        n: number of these runs.
        measurement: their readings, times and work added up, so that energy per work is weighted by work.
        time_s: the time that counts [s]: per work, or of a server the p99.
        late: whether that is longer than the p99 that was promised.
        energy_sd_j: standard deviation over the runs of the energy per work [J]; None for a single run.
        keeps: whether the quality promise was kept on that split; None if it cannot be told.
        on_front: whether no other setting is better in energy, time and quality at once.
    """

    setting: Setting
    names: tuple[str, ...]
    role: Role
    split: Split
    n: int
    measurement: Measurement
    time_s: float
    late: bool
    energy_sd_j: float | None
    keeps: bool | None
    on_front: bool

    @property
    def energy_j(self) -> float:
        """Energy per work [J]."""
        return self.measurement.energy_per_work_j

    @property
    def meter_fraction(self) -> float:
        """Standard deviation of the meter's error as a fraction of the energy."""
        m = self.measurement
        return m.energy_sd_j / m.energy_j if m.energy_j > 0 else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Runs that gave no measurement for one reason."""

    setting: Setting
    kind: str
    message: str
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One bar of the waterfall: what one lever did, by single runs of the search.

    Attributes:
        change: what was turned, "precision: fp32 → int8"; the first step is the baseline.
        measurement: the search runs of the setting put together; None if none succeeded.
        change_fraction: change of energy per work against the step before.
    """

    change: str
    measurement: Measurement | None
    change_fraction: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseDigest:
    """Everything a report shows of one phase.

    Attributes:
        plan: the phase's plan.
        rows: every setting that was measured, least energy first.
        front_fault: why there is no front, or "".
        failures: failed runs, grouped.
        steps: the waterfall; empty if the candidate is the competent default.
    """

    plan: PhasePlan
    rows: tuple[Row, ...]
    front_fault: str
    failures: tuple[Failure, ...]
    steps: tuple[Step, ...]

    def row(self, setting: Setting) -> Row | None:
        """The row of a setting, if it was measured."""
        return next((row for row in self.rows if row.setting == setting), None)

    @property
    def main_rows(self) -> tuple[Row, ...]:
        """The rows with a name and those on the front."""
        return tuple(row for row in self.rows if row.names or row.on_front)


def digest(plan: Plan) -> tuple[PhaseDigest, ...]:
    """The phases of a plan, digested. Warm-up runs are left out everywhere."""
    return tuple(_phase(plan, phase) for phase in plan.phases)


def pooled(measurements: Sequence[Measurement]) -> Measurement:
    """Repeated runs of one setting as one longer run; quality and latency are their means.

    Raises:
        ScopeMismatchError: if a sensor changed its source between the runs.
    """
    by_scope: dict[str, list[Reading]] = {}
    for m in measurements:
        for reading in m.readings:
            by_scope.setdefault(reading.scope, []).append(reading)
    partial = sorted(scope for scope, readings in by_scope.items() if len(readings) != len(measurements))
    if partial:
        raise ScopeMismatchError(
            f"scope {partial[0]!r} was measured in only some runs of a setting",
            "the runs without it would look cheaper",
            "make the plan anew with sensors that stay available (`negawatt doctor` lists them)",
        )
    known = [m.quality for m in measurements if m.quality is not None]
    latencies = [m.latency for m in measurements if m.latency is not None]
    return Measurement(
        readings=tuple(reduce(add, readings) for readings in by_scope.values()),
        time_s=sum(m.time_s for m in measurements),
        work_units=sum(m.work_units for m in measurements),
        quality=statistics.fmean(known) if known else None,
        samples=sum(m.samples for m in measurements),
        latency=_mean(latencies) if len(latencies) == len(measurements) else None,
        peak_memory_bytes=max(m.peak_memory_bytes for m in measurements),
        transform_j=statistics.fmean(m.transform_j for m in measurements),
    )


def _mean(latencies: Sequence[Latency]) -> Latency:
    return Latency(
        p50_s=statistics.fmean(latency.p50_s for latency in latencies),
        p95_s=statistics.fmean(latency.p95_s for latency in latencies),
        p99_s=statistics.fmean(latency.p99_s for latency in latencies),
    )


def names(phase: PhasePlan, setting: Setting) -> tuple[str, ...]:
    """What a setting is called in this phase: the plan first."""
    called = [("plan", phase.setting), ("competent default", phase.competent), ("naive default", phase.naive)]
    if phase.candidate != phase.setting:
        called.append(("candidate", phase.candidate))
    return tuple(name for name, named in called if named == setting)


def keeps_promise(keep: Keep, quality: float | None, baseline: float | None) -> bool | None:
    """Whether a quality keeps the promise; None if it, or the baseline it is held against, is not known."""
    if quality is None:
        return None
    least = keep.least(baseline)
    return None if least is None else quality >= least - 1e-12


def _phase(plan: Plan, phase: PhasePlan) -> PhaseDigest:
    trials = [t for t in plan.trials if t.phase == phase.phase and t.role in (Role.SEARCH, Role.PROOF)]
    groups: dict[Setting, list[Trial]] = {}
    for trial in trials:
        if trial.measurement is not None:
            groups.setdefault(trial.setting, []).append(trial)
    rows = [_row(plan.keep, phase, group, groups.get(phase.competent, [])) for group in groups.values()]
    front, fault = _front(phase, groups, rows)
    return PhaseDigest(
        plan=phase,
        rows=tuple(sorted((replace(r, on_front=r.setting in front) for r in rows), key=lambda row: row.energy_j)),
        front_fault=fault,
        failures=_failures(trials),
        steps=_steps(phase, groups),
    )


def _row(keep: Keep, phase: PhasePlan, group: list[Trial], baseline: list[Trial]) -> Row:
    proof = [trial for trial in group if trial.role is Role.PROOF]
    used = proof or group
    runs = [trial.measurement for trial in used if trial.measurement is not None]
    measurement, split = pooled(runs), used[-1].split
    time_s, promise_s = phase.pace.time_s(measurement), phase.pace.p99_s
    return Row(
        setting=used[0].setting,
        names=names(phase, used[0].setting),
        role=used[0].role,
        split=split,
        n=len(runs),
        measurement=measurement,
        time_s=time_s,
        late=promise_s is not None and time_s > promise_s,
        energy_sd_j=statistics.stdev(m.energy_per_work_j for m in runs) if len(runs) > 1 else None,
        keeps=keeps_promise(keep, measurement.quality, _quality(baseline, split)),
        on_front=False,
    )


def _quality(trials: Iterable[Trial], split: Split) -> float | None:
    found = [t.measurement.quality for t in trials if t.measurement is not None and t.split == split]
    known = [quality for quality in found if quality is not None]
    return statistics.fmean(known) if known else None


def _front(phase: PhasePlan, groups: dict[Setting, list[Trial]], rows: Sequence[Row]) -> tuple[frozenset[Setting], str]:
    """Settings on the front, or why there is none.

    Energy and time are those of the rows. Quality is that of the selection split where every setting has one: a proof
    run reports another split, and qualities of two splits do not compare.
    """
    selection = {s: _quality(trials, Split.SELECTION) for s, trials in groups.items()}
    one_split = all(quality is not None for quality in selection.values())
    trials = [
        replace(
            groups[row.setting][0],
            measurement=replace(row.measurement, quality=selection[row.setting]) if one_split else row.measurement,
        )
        for row in rows
    ]
    try:
        return frozenset(trial.setting for trial in pareto_front(trials, time_s=phase.pace.time_s)), ""
    except ScopeMismatchError as error:
        return frozenset(), f"{error.got}: {error.why}"


def _failures(trials: Iterable[Trial]) -> tuple[Failure, ...]:
    counted = Counter((t.setting, t.error.kind, t.error.message) for t in trials if t.error is not None)
    return tuple(
        Failure(setting=setting, kind=kind, message=message, n=n) for (setting, kind, message), n in counted.items()
    )


def _steps(phase: PhasePlan, groups: dict[Setting, list[Trial]]) -> tuple[Step, ...]:
    if len(phase.steps) < 2:
        return ()
    steps: list[Step] = []
    before: Setting | None = None
    last: Measurement | None = None
    for setting in phase.steps:
        runs = [t.measurement for t in groups.get(setting, []) if t.role is Role.SEARCH and t.measurement is not None]
        now = pooled(runs) if runs else None
        steps.append(
            Step(
                change=_turned(before, setting),
                measurement=now,
                change_fraction=now.energy_per_work_j / last.energy_per_work_j - 1 if now and last else None,
            )
        )
        before, last = setting, now
    return tuple(steps)


def _turned(before: Setting | None, after: Setting) -> str:
    if before is None:
        return "competent default"
    levers = sorted({choice.lever for choice in (*before.choices, *after.choices)})
    turned = []
    for lever in levers:
        old, new = before.get(lever), after.get(lever)
        if old != new:
            turned.append(f"{lever}: {old.value if old else 'as is'} → {new.value if new else 'as is'}")
    return ", ".join(turned) or "nothing turned"

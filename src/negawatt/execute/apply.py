"""Apply: run a workload under its plan, and say whether the saving held."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from negawatt.core.codec import to_json
from negawatt.core.errors import UsageError, WorkloadError
from negawatt.core.host import Host
from negawatt.core.lever import Choice, Setting
from negawatt.core.measurement import Measurement
from negawatt.core.plan import PhasePlan, Plan
from negawatt.core.saving import Baseline, Interval
from negawatt.core.trial import Role, Trial, measurements
from negawatt.core.workload import Phase, Split
from negawatt.hardware.host import this_host
from negawatt.ledger.store import Ledger
from negawatt.search.bench import Bench, Event
from negawatt.search.serving import OPTIONS
from negawatt.search.worker import Setup
from negawatt.verify.student import t_quantile

_LEVEL_FRACTION = 0.95


class Held(StrEnum):
    """What became of a saving."""

    HELD = "held"
    """less energy than the baseline's runs, beyond their scatter, at the promised quality"""
    NOT_HELD = "not held"
    """within or above the scatter of the baseline's runs, or the quality was missed"""
    NOT_COMPARABLE = "not comparable"
    """another host or other sensors than the plan's: its saving is stale until it is planned again"""
    NOTHING_CLAIMED = "nothing claimed"
    """the plan claims no saving for this phase"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """One phase run under the plan.

    Attributes:
        phase: the phase.
        trial: the run.
        against: the baseline compared with, or None.
        saving: energy saved against the baseline's runs in the plan, with the interval for this single run; or None.
        held: what became of the plan's saving.
        reason: why, as a sentence.
        gateway: file with the options of the gateway that the plan has before a server; "": it has none.
    """

    phase: Phase
    trial: Trial
    against: Baseline | None
    saving: Interval | None
    held: Held
    reason: str
    gateway: str = ""


def apply_plan(plan: Plan, out: Path, ledger: Ledger, watch: Callable[[Event], None]) -> tuple[Applied, ...]:
    """Run every phase of the plan's workload once under the plan's setting; record each in the ledger.

    Of a server that is one replay of its calls: it is started under the plan, asked, and stopped. What the plan has
    before it stays as a file, for `negawatt gateway --options FILE` before the server that goes on.

    Args:
        plan: what `negawatt plan` found.
        out: folder for the trained model and the workload's output.
        ledger: where the runs are recorded.
        watch: called with every event.

    Raises:
        UsageError: if the workload no longer offers what the plan sets.
        WorkloadError: if the workload fails under the plan.
    """
    _check_plan(plan, out)
    sensors = {reading.sensor for t in plan.trials if t.measurement for reading in t.measurement.readings}
    promise_s = next((phase.pace.p99_s for phase in plan.phases if phase.pace.served), None)
    setup = Setup(
        path=Path(plan.path), quality_bound=plan.keep.bound, levers=_levers(plan), sensors=tuple(sorted(sensors)),
        p99_s=promise_s,
    )  # fmt: skip
    campaign = f"apply-{plan.created_utc}"
    with Bench(
        setup=setup, ledger=ledger, campaign=campaign, log=out / "workload.log", watch=watch,
        trial_limit_s=None, first_limit_s=_limit_s(plan),
    ) as bench:  # fmt: skip
        ready = bench.ready()
        offered = {choice for choices in ready.choices.values() for choice in choices}
        applied: list[Applied] = []
        state: Path | None = None
        for phase in plan.phases:
            _check_offered(phase.setting, offered, plan)
            options = out / "serving" / OPTIONS
            if phase.phase is Phase.INFER:
                options.unlink(missing_ok=True)  # of another plan
                save_to = options.parent if ready.served else None
            else:
                save_to = out / "model" if ready.persistent else None
            trial = bench.trial(
                phase.setting, split=Split.REPORT, seed=0, role=Role.APPLY, load_from=state, save_to=save_to
            )
            if trial.measurement is None:
                raise WorkloadError(
                    f"the {phase.phase} phase failed under the plan: {trial.error.message if trial.error else ''}",
                    "the plan cannot be carried out as it is",
                    f"see {out / 'workload.log'}, or plan again: `negawatt plan {plan.path}`",
                )
            state = save_to if phase.phase is Phase.TRAIN else state
            kept = str(options) if phase.phase is Phase.INFER and options.exists() else ""
            applied.append(replace(_judged(plan, phase, trial, trial.measurement, this_host()), gateway=kept))
            body = {"plan_created_utc": plan.created_utc, **to_json(applied[-1])}
            # The joules are in the bench's record of the trial, and must not be counted twice.
            ledger.append("apply", body, workload=plan.workload, phase=phase.phase, campaign=campaign)
    return tuple(applied)


def _check_plan(plan: Plan, out: Path) -> None:
    again = f"plan again: `negawatt plan {shlex.quote(plan.path)}`"
    if fault := _fault(plan):
        raise UsageError(fault, "a plan that does not hang together cannot be carried out", again)
    try:
        moved = not Path(plan.path).exists()
    except OSError:  # it cannot be looked at: loading it says why
        moved = False
    if moved:
        raise UsageError(
            f"no file {plan.path}",
            "the workload has moved since the plan was made, and the plan is of no use without it",
            "move it back, or plan again where it is now",
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "workload.log").touch()
    except OSError as error:
        raise UsageError(
            f"--out {out}: {error.strerror}", "the model and the workload's output go there", "name another folder"
        ) from None


def _fault(plan: Plan) -> str:
    """What cannot be in a plan that `negawatt plan` wrote; "" if nothing."""
    phases = [phase.phase for phase in plan.phases]
    if not phases:
        return "a plan without phases"
    if len(set(phases)) < len(phases):
        return f"the phases of a plan are distinct, got {', '.join(phases)}"
    for phase in plan.phases:
        settings = (phase.naive, phase.competent, phase.setting, phase.candidate, *phase.steps)
        if any(setting.phase != phase.phase for setting in settings):
            return f"the settings of the {phase.phase} phase are of that phase"
    for name, value in (("search_j", plan.search_j), ("search_time_s", plan.search_time_s)):
        if not (math.isfinite(value) and value >= 0):
            return f"{name} is finite and not negative, got {value}"
    for name, life in plan.lifetimes.items():
        parts = (life.train_j or 0.0, life.transform_j, life.infer_per_work_j or 0.0, life.requests)
        if not all(math.isfinite(part) for part in parts):
            return f"the lifetime {name!r} is of finite numbers, got {life}"
    return ""


def _levers(plan: Plan) -> tuple[str, ...]:
    return tuple(sorted({choice.lever for phase in plan.phases for choice in phase.setting.choices}))


def _limit_s(plan: Plan) -> float:
    """Ten times the slowest run of the plan, and at least ten minutes [s]."""
    return max(600.0, 10 * max((t.measurement.time_s for t in plan.trials if t.measurement), default=0.0))


def _check_offered(setting: Setting, offered: set[Choice], plan: Plan) -> None:
    gone = [str(choice) for choice in setting.choices if choice not in offered]
    if gone:
        raise UsageError(
            f"{plan.path} no longer offers {', '.join(gone)}",
            "the plan was made for another version of the workload",
            f"plan again: `negawatt plan {plan.path}`",
        )


def _judged(plan: Plan, phase: PhasePlan, trial: Trial, now: Measurement, host: Host) -> Applied:
    """Compare one run with the baseline's proof runs: a prediction interval for the log ratio of single runs."""
    best = next((s for s in phase.savings if s.shown), None)
    if best is None and (missed := _missed(plan, phase, phase.setting, now)):
        return Applied(phase=phase.phase, trial=trial, against=None, saving=None, held=Held.NOT_HELD, reason=missed)
    if best is None:
        reason = "the plan found nothing that saves energy in this phase"
        held = Held.NOTHING_CLAIMED
        return Applied(phase=phase.phase, trial=trial, against=None, saving=None, held=held, reason=reason)
    setting = phase.competent if best.against is Baseline.COMPETENT else phase.naive
    base = _proof_runs(plan, setting)
    if host.fingerprint() != plan.host.fingerprint():
        held, reason = Held.NOT_COMPARABLE, f"the plan was made on another host ({plan.host.name})"
    elif len(base) < 2 or min(m.energy_j for m in (*base, now)) <= 0:
        held, reason = Held.NOT_COMPARABLE, f"the plan holds {len(base)} usable runs of the {best.against} default"
    elif base[0].scopes != now.scopes or base[0].source != now.source:
        held, reason = Held.NOT_COMPARABLE, "other sensors are at work than when the plan was made"
    else:
        return _compared(plan, phase, trial, now, base, best.against)
    return Applied(phase=phase.phase, trial=trial, against=best.against, saving=None, held=held, reason=reason)


def _proof_runs(plan: Plan, setting: Setting) -> list[Measurement]:
    return measurements(plan.trials, setting, Role.PROOF)


def _missed(plan: Plan, phase: PhasePlan, baseline: Setting, now: Measurement) -> str:
    """Why a promise is not kept; "" if all are."""
    promise_s = phase.pace.p99_s
    if promise_s is not None and phase.pace.time_s(now) > promise_s:
        return f"p99 is {1e3 * phase.pace.time_s(now):.4g} ms, and {1e3 * promise_s:.4g} ms was promised"
    return _missed_quality(plan, baseline, now)


def _missed_quality(plan: Plan, baseline: Setting, now: Measurement) -> str:
    """Why the quality promise is not kept: below the bound, or by more than the margin below the baseline's runs."""
    known = [m.quality for m in _proof_runs(plan, baseline) if m.quality is not None]
    floor = plan.keep.least(math.fsum(known) / len(known) if known else None)
    if floor is None:  # the plan has nothing to hold the run against
        return ""
    if now.quality is None:
        return f"no {plan.keep.metric} was reported, and at least {floor:.4g} was promised"
    return "" if now.quality >= floor else f"{plan.keep.metric} is {now.quality}, below {floor:.4g}"


def _compared(
    plan: Plan, phase: PhasePlan, trial: Trial, now: Measurement, base: list[Measurement], against: Baseline
) -> Applied:
    # Each block holds two runs of the baseline, which are not independent: the degrees of freedom are those of blocks.
    logs = [math.log(m.energy_per_work_j) for m in base]
    n, mean = len(logs), math.fsum(logs) / len(logs)
    sd = math.sqrt(math.fsum((x - mean) ** 2 for x in logs) / (n - 1))
    ratio = mean - math.log(now.energy_per_work_j)
    half = t_quantile(1 - (1 - _LEVEL_FRACTION) / 2, n // 2 - 1 or 1) * sd * math.sqrt(1 + 1 / n)
    saving = Interval(value=-math.expm1(-ratio), low=-math.expm1(-ratio + half), high=-math.expm1(-ratio - half))
    if missed := _missed(plan, phase, phase.competent if against is Baseline.COMPETENT else phase.naive, now):
        held, reason = Held.NOT_HELD, missed
    elif saving.low > 0:
        held, reason = Held.HELD, f"less than the {against} default's {n} runs, beyond their scatter"
    else:
        held, reason = Held.NOT_HELD, f"not below the scatter of the {against} default's {n} runs"
    return Applied(phase=phase.phase, trial=trial, against=against, saving=saving, held=held, reason=reason)

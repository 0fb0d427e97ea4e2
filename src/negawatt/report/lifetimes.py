"""The table of lifetimes: what limiting training, inference and both saves over a model's life."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from negawatt.core.plan import Lifetime, PhasePlan, Plan
from negawatt.core.reading import weakest
from negawatt.core.saving import Baseline
from negawatt.core.workload import Phase
from negawatt.report import numbers, words

NO_CHANGE = "none"
ONE_MODEL = (
    "All settings of inference answered with the model of the plan's training; where that is a smaller one, what it "
    "saves in each answer is in no saving here."
)
FIELD = (
    "For comparison, the field: about 12 to 15 % less energy in training for about 3 % more time, by limiting the "
    "power of GPUs (MIT Lincoln Laboratory, in MIT News of 5 October 2023; 15 % for a transformer: arXiv 2205.09646). "
    "This is one phase against no limit, not a life against a competent default."
)
"""Addresses, and what measured GPUs say to it: docs/claims.md."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table of lifetimes.

    Attributes:
        name: "competent default", "training limited", "plan".
        lifetime: its energy.
        saved: over the competent default, with its interval where it was proven; "" for the defaults.
        verdict: of that saving; "" for the defaults.
    """

    name: str
    lifetime: Lifetime
    saved: str = ""
    verdict: str = ""


def rows(plan: Plan) -> tuple[Row, ...]:
    """The naive default, the competent default, each phase limited alone where there are two, and the plan last."""
    found = [
        Row(name=words.BASELINES[baseline], lifetime=plan.lifetimes[str(baseline)])
        for baseline in (Baseline.NAIVE, Baseline.COMPETENT)
        if str(baseline) in plan.lifetimes
    ]
    if len(plan.phases) > 1 and any(phase.setting != phase.competent for phase in plan.phases):
        for phase in plan.phases:
            life = plan.limited(Baseline.COMPETENT, (phase.phase,))
            if life is not None:
                saved, verdict = saving(plan, Baseline.COMPETENT, (phase.phase,))
                name = f"{words.PHASES[phase.phase].lower()} limited"
                found.append(Row(name=name, lifetime=life, saved=saved, verdict=verdict))
    if "plan" in plan.lifetimes:
        saved, verdict = saving(plan, Baseline.COMPETENT)
        found.append(Row(name="plan", lifetime=plan.lifetimes["plan"], saved=saved, verdict=verdict))
    return tuple(found)


def saving(plan: Plan, baseline: Baseline, phases: Collection[Phase] = tuple(Phase)) -> tuple[str, str]:
    """The saving over a baseline's life with some phases limited, its interval where it was proven, and its verdict."""
    proven = plan.proven_lifetime_saving(baseline, phases)
    if proven is not None:
        return words.saving_interval(proven), proven.label()
    mine = [phase for phase in plan.phases if phase.phase in phases]
    if all(phase.setting == phase.baseline(baseline) for phase in mine):
        return NO_CHANGE, f"the {words.BASELINES[baseline]} is kept" + _fate(mine)
    base, life = plan.lifetimes.get(str(baseline)), plan.limited(baseline, phases)
    point = None if base is None or life is None or base.total_j <= 0 else 1 - life.total_j / base.total_j
    where = "" if len(mine) == 1 else " in every phase"
    return ("–" if point is None else numbers.percent(point, 1)), f"not proven{where}"


def _fate(phases: Collection[PhasePlan]) -> str:
    """What became of candidates that are not the plan, or ""."""
    others = [phase for phase in phases if phase.candidate != phase.setting]
    if not others:
        return ""
    refused = any(phase.saving(Baseline.COMPETENT) for phase in others)
    return f"; its candidate was {'refused' if refused else 'not put to the proof'}"


def sentences(plan: Plan) -> tuple[str, ...]:
    """What each phase and the plan save over a default's life, what no figure holds, and what the field reports."""
    told = [
        f"{row.name.capitalize()}: {row.verdict}."
        if row.saved == NO_CHANGE
        else f"{row.name.capitalize()} alone saves {row.saved} over the competent default: {row.verdict}."
        for row in rows(plan)
        if row.saved and row.name != "plan"
    ]
    for baseline, label in ((b, words.BASELINES[b]) for b in (Baseline.NAIVE, Baseline.COMPETENT)):
        if str(baseline) in plan.lifetimes and "plan" in plan.lifetimes:
            saved, verdict = saving(plan, baseline)
            kept = saved == NO_CHANGE
            told.append(
                f"The plan is the {label}." if kept else f"Against the {label} the plan saves {saved}: {verdict}."
            )
    train = next((phase for phase in plan.phases if phase.phase is Phase.TRAIN), None)
    if train is not None and len(plan.phases) > 1 and train.setting != train.competent:
        told.append(ONE_MODEL)
    return (*told, FIELD)


def note(plan: Plan) -> str:
    """What the lifetime figures rest on."""
    measured = [t.measurement.source for t in plan.trials if t.measurement is not None]
    evidence = f"{weakest(measured)} energy; " if measured else ""
    return (
        f"Energies are means of the runs above ({evidence}search not included); the interval of a saving combines "
        "those of the phases by their share."
    )


def payback(plan: Plan, baseline: Baseline) -> str:
    """After how much work, and how many lifetimes, the search has paid for itself."""
    label = words.BASELINES[baseline]
    if str(baseline) not in plan.lifetimes:
        return ""
    requests, lives = plan.payback_requests(baseline), plan.payback_lifetimes(baseline)
    if lives is None and requests is None:
        return f"Against the {label} the search never pays for itself."
    parts = []
    if requests == 0:
        parts.append("before the first request, by the training alone")
    elif requests is not None:
        parts.append(f"after {numbers.count(requests)} {numbers.several(plan.unit)}, one training run included")
    if lives is not None:
        parts.append(f"after {numbers.significant(lives, 2)} lifetimes")
    return f"Against the {label} the search pays for itself {', or '.join(parts)}."


def cells(lifetime: Lifetime) -> tuple[str, str, str, str]:
    """Energy of training, transformation, inference and all together."""
    infer_j = None if lifetime.infer_per_work_j is None else lifetime.requests * lifetime.infer_per_work_j
    parts_j = (lifetime.train_j, lifetime.transform_j, infer_j, lifetime.total_j)
    train, transform, infer, everything = ("–" if part_j is None else numbers.energy(part_j) for part_j in parts_j)
    return train, transform, infer, everything

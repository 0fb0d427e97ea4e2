"""Sentences of a report, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from negawatt.core.measurement import Measurement
from negawatt.core.placement import Outcome
from negawatt.core.plan import Keep, Lifetime, PhasePlan, Plan
from negawatt.core.reading import Reading, weakest
from negawatt.core.saving import Baseline, Interval, Saving, Verdict
from negawatt.core.trial import Role
from negawatt.core.workload import Phase
from negawatt.report import numbers
from negawatt.report.digest import PhaseDigest, Row

PHASES = {Phase.TRAIN: "Training", Phase.INFER: "Inference"}
BASELINES = {Baseline.COMPETENT: "competent default", Baseline.NAIVE: "naive default"}
"""The two baselines, the headline first."""

LEGEND = (
    ("naive default", "What the framework's tutorial does."),
    ("competent default", "The fastest setting an engineer would use without touching the model's arithmetic."),
    ("front", "Settings that nothing measured beats in energy, time and quality at once; one search run may be luck."),
    ("± after an energy", "Standard deviation over its runs."),
    ("± after a source", "Standard deviation of the meter's own error, most of which is common to all rows."),
    ("quality", "Of search runs on the selection split, of proof runs on the report split: compare within one only."),
    ("energy", "Of the scopes that the sensors cover, their idle power included."),
)
"""How to read the tables: term and meaning."""

WATERFALL_NOTE = "From the search, single runs, not confirmed."
SITES_NOTE = "Site energy, carbon and money are kept apart and never added. Unknown stays unknown."


def work(plan: Plan, phase: Phase) -> str:
    """What energy is stated per: "training run", "image"."""
    return "training run" if phase is Phase.TRAIN else plan.unit


NO_CHANGE = "none"
ONE_MODEL = (
    "All settings of inference answered with the model of the plan's training; where that model is a smaller one, what it "
    "saves in each answer is in no saving here."
)
FIELD = (
    "For comparison, the field: about 12 to 15 % less energy in training for about 3 % more time, by limiting the power "
    "of GPUs (MIT Lincoln Laboratory, in MIT News of 5 October 2023; 15 % for a transformer: arXiv 2205.09646). That is of "
    "one phase against no limit, not of a life against a competent default."
)
"""The page in MIT News is cited with its address in `data/forecast.toml`; docs/claims.md checks the figures."""


def headlines(plan: Plan) -> tuple[str, ...]:
    """One sentence per phase; before them, if it is so, that nothing saves energy."""
    if not any(trial.measurement for trial in plan.trials):
        return ("Nothing could be measured: every run failed.",)
    savings = [phase.saving(Baseline.COMPETENT) for phase in plan.phases]
    nothing = () if any(s and s.shown for s in savings) else (_nothing(plan),)
    return (*nothing, *(headline(plan, phase) for phase in plan.phases))


def _nothing(plan: Plan) -> str:
    savings = [phase.saving(Baseline.COMPETENT) for phase in plan.phases]
    word = "saves" if all(s and s.verdict is Verdict.WORSE for s in savings) else "was shown to save"
    return f"Nothing tried {word} energy over the competent default at this {plan.keep.metric}: the plan is to keep it."


def headline(plan: Plan, phase: PhasePlan) -> str:
    """The result of one phase in one sentence, interval and verdict included."""
    name, saving = PHASES[phase.phase], phase.saving(Baseline.COMPETENT)
    if saving is None:
        return f"{name}: {unproven(phase)}."
    interval = f"({numbers.span(saving.ci_low, saving.ci_high)})"
    decimals = numbers.decimals_for(saving.ci_low, saving.ci_high)
    if saving.shown:
        amount = numbers.percent(saving.fraction, decimals)
        kept = quality_clause(plan.keep, saving.quality_change)
        return f"{name}: {amount} less energy {interval} than the competent default, {kept}: {saving.label()}."
    if saving.verdict is Verdict.WORSE:
        amount = numbers.percent(-saving.fraction, decimals)
        between = f"({numbers.span(-saving.ci_high, -saving.ci_low)})"
        return f"{name}: the candidate takes {amount} more energy {between} than the competent default: worse."
    amount = numbers.percent(saving.fraction, decimals)
    return f"{name}: a saving of {amount} {interval} over the competent default is not shown ({saving.evidence})."


def unproven(phase: PhasePlan) -> str:
    """Why there is no saving against the competent default, and what that default itself saves."""
    if phase.candidate != phase.competent:
        return "not compared with the competent default"
    found, naive = "nothing tried looked better than the competent default", phase.saving(Baseline.NAIVE)
    if naive is None or not naive.shown:
        return found
    decimals = numbers.decimals_for(naive.ci_low, naive.ci_high)
    amount = f"{numbers.percent(naive.fraction, decimals)} less energy ({numbers.span(naive.ci_low, naive.ci_high)})"
    return f"{found}, which takes {amount} than the naive default: {naive.label()}"


def compared(phase: PhasePlan, baseline: Baseline) -> str:
    """What a saving is against, and whose it is where a refused candidate and the plan differ."""
    if phase.candidate == phase.setting:
        return BASELINES[baseline]
    return f"{'candidate' if baseline is Baseline.COMPETENT else 'plan'} against {BASELINES[baseline]}"


def quality_clause(keep: Keep, change: Interval | None) -> str:
    """What became of the quality, for the end of a headline."""
    if change is None:
        return f"no {keep.metric} reported"
    if abs(change.value) < 1e-9:
        return f"same {keep.metric}"
    return f"{keep.metric} {numbers.change(change.value)}, within the promise"


def change_pair(change: Interval | None) -> tuple[str, str]:
    """A change of quality and its interval, in the unit of the metric."""
    if change is None:
        return "not reported", ""
    if change.low == change.high:  # a fixed model on fixed data: there is no scatter to make an interval of
        return numbers.change(change.value), "in every run"
    return numbers.change_interval(change.value, change.low, change.high)


def slowdown_pair(change: Interval | None) -> tuple[str, str]:
    """A change of time per work and its interval in percent; positive is slower."""
    if change is None:
        return "not compared", ""
    decimals = numbers.decimals_for(change.low, change.high)
    return numbers.percent(change.value, decimals, signed=True), numbers.span(change.low, change.high)


def saving_pair(saving: Saving) -> tuple[str, str]:
    """The saving and its interval."""
    decimals = numbers.decimals_for(saving.ci_low, saving.ci_high)
    return numbers.percent(saving.fraction, decimals), numbers.span(saving.ci_low, saving.ci_high)


def saving_interval(saving: Saving) -> str:
    """The saving with its interval, on one line."""
    return numbers.percent_interval(saving.fraction, saving.ci_low, saving.ci_high)


def level(saving: Saving) -> str:
    """The confidence level of a saving's interval: "95 %"."""
    return numbers.percent(saving.level_fraction)


def corners(saving: Saving) -> str:
    """What the range of the power model leaves of the saving, or "" for measured energy."""
    if not saving.corners:
        return ""
    values = [corner.value for corner in saving.corners]
    low, high = min(c.low for c in saving.corners), max(c.high for c in saving.corners)
    return (
        f"over the range of the power model ({len(values)} corners) the saving is "
        f"{numbers.span(min(values), max(values))}, with intervals {numbers.span(low, high)}"
    )


def notes(phase: PhasePlan) -> tuple[str, ...]:
    """Why each verdict is not better, and what the power model's range makes of it; one sentence each."""
    told: dict[str, list[str]] = {}
    savings = [(label, phase.saving(baseline)) for baseline, label in BASELINES.items()]
    for label, saving in savings:
        for note in (*saving.reasons, corners(saving)) if saving else ():
            if note:
                told.setdefault(note.rstrip("."), []).append(label)
    found = [f"Against the {' and the '.join(labels)}: {note}." for note, labels in told.items()]
    if phase.candidate != phase.setting:
        found.append(
            f"The candidate put to the proof ({phase.candidate}) was refused, so the plan is the competent default; "
            "a saving against the naive default is the plan's."
        )
    return tuple(found)


def promise(keep: Keep) -> str:
    """The quality promise as a sentence."""
    if keep.bound is not None:
        return f"{keep.metric} stays at {numbers.plain(keep.bound)} or above"
    if keep.margin == 0:
        return f"{keep.metric} is not below that of the competent default"
    return f"{keep.metric} falls at most {numbers.plain(keep.margin)} below that of the competent default"


def speed_promise(plan: Plan) -> str:
    """The limit on slowdown as a sentence."""
    if plan.max_slowdown is None:
        return "any time per work is accepted"
    return f"time per work grows at most {numbers.percent(plan.max_slowdown)} over the competent default"


def runs(row: Row) -> str:
    """How many runs stand behind a row, and why they were made: "24 proof", "1 search"."""
    return f"{numbers.count(row.n)} {row.role}"


def source(measurement: Measurement) -> str:
    """The source of an energy and the meter's error: "estimated ±25 %"."""
    total = measurement.energy_j
    error = measurement.energy_sd_j / total if total > 0 else 0.0
    decimals = 0 if error >= 0.095 else 1 if error >= 0.00095 else 2
    return f"{measurement.source} ±{numbers.percent(error, decimals)}"


def row_label(row: Row) -> str:
    """The names of a row, the plan with its star: "* plan = competent default"."""
    star = "* " if "plan" in row.names else ""
    return star + " = ".join(row.names)


def row_quality(row: Row) -> str:
    """The quality of a row, with a mark if it breaks the promise."""
    return numbers.quality(row.measurement.quality) + (" ✗" if row.keeps is False else "")


def others(phase: PhaseDigest) -> str:
    """How many settings a short table leaves out, or ""."""
    left = len(phase.rows) - len(phase.main_rows)
    if not left:
        return ""
    return f"{numbers.plural(left, 'other setting')} measured, each beaten by one above in energy, time and quality."


def failures(phase: PhaseDigest) -> tuple[str, ...]:
    """One sentence per reason for failed runs."""
    return tuple(f"{numbers.plural(f.n, 'run')} of {f.setting} failed ({f.kind}): {f.message}" for f in phase.failures)


def payback(plan: Plan, baseline: Baseline) -> str:
    """After how much work, and how many lifetimes, the search has paid for itself."""
    label = BASELINES[baseline]
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


def lifetime_cells(lifetime: Lifetime) -> tuple[str, str, str, str]:
    """Energy of training, transformation, inference and all together."""
    infer_j = None if lifetime.infer_per_work_j is None else lifetime.requests * lifetime.infer_per_work_j
    parts_j = (lifetime.train_j, lifetime.transform_j, infer_j, lifetime.total_j)
    train, transform, infer, everything = ("–" if part_j is None else numbers.energy(part_j) for part_j in parts_j)
    return train, transform, infer, everything


@dataclass(frozen=True, slots=True, kw_only=True)
class LifetimeRow:
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


def lifetime_rows(plan: Plan) -> tuple[LifetimeRow, ...]:
    """The naive default, the competent default, each phase limited alone where there are two, and the plan last."""
    rows = [
        LifetimeRow(name=BASELINES[baseline], lifetime=plan.lifetimes[str(baseline)])
        for baseline in (Baseline.NAIVE, Baseline.COMPETENT)
        if str(baseline) in plan.lifetimes
    ]
    if len(plan.phases) > 1 and any(phase.setting != phase.competent for phase in plan.phases):
        for phase in plan.phases:
            life = plan.limited(Baseline.COMPETENT, (phase.phase,))
            if life is not None:
                saved, verdict = lifetime_saving(plan, Baseline.COMPETENT, (phase.phase,))
                name = f"{PHASES[phase.phase].lower()} limited"
                rows.append(LifetimeRow(name=name, lifetime=life, saved=saved, verdict=verdict))
    if "plan" in plan.lifetimes:
        saved, verdict = lifetime_saving(plan, Baseline.COMPETENT)
        rows.append(LifetimeRow(name="plan", lifetime=plan.lifetimes["plan"], saved=saved, verdict=verdict))
    return tuple(rows)


def lifetime_saving(plan: Plan, baseline: Baseline, phases: Collection[Phase] = tuple(Phase)) -> tuple[str, str]:
    """The saving over a baseline's life with some phases limited, its interval where it was proven, and its verdict."""
    saving = plan.proven_lifetime_saving(baseline, phases)
    if saving is not None:
        return numbers.percent_interval(saving.fraction, saving.ci_low, saving.ci_high), saving.label()
    mine = [phase for phase in plan.phases if phase.phase in phases]
    if all(phase.setting == phase.baseline(baseline) for phase in mine):
        return NO_CHANGE, f"the {BASELINES[baseline]} is kept" + _refused(mine)
    base, life = plan.lifetimes.get(str(baseline)), plan.limited(baseline, phases)
    point = None if base is None or life is None or base.total_j <= 0 else 1 - life.total_j / base.total_j
    where = "" if len(mine) == 1 else " in every phase"
    return ("–" if point is None else numbers.percent(point, 1)), f"not proven{where}"


def _refused(phases: Collection[PhasePlan]) -> str:
    """That something was put to the proof and refused, or ""."""
    return "; its candidate was refused" if any(phase.candidate != phase.setting for phase in phases) else ""


def lifetime_sentences(plan: Plan) -> tuple[str, ...]:
    """What the plan saves over either default's life, what the figures do not hold, and what the field reports."""
    told = []
    for baseline, label in ((b, BASELINES[b]) for b in (Baseline.NAIVE, Baseline.COMPETENT)):
        if str(baseline) in plan.lifetimes and "plan" in plan.lifetimes:
            saved, verdict = lifetime_saving(plan, baseline)
            kept = saved == NO_CHANGE
            told.append(
                f"The plan is the {label}." if kept else f"Against the {label} the plan saves {saved}: {verdict}."
            )
    train = next((phase for phase in plan.phases if phase.phase is Phase.TRAIN), None)
    if train is not None and len(plan.phases) > 1 and train.setting != train.competent:
        told.append(ONE_MODEL)
    return (*told, FIELD)


def lifetime_note(plan: Plan) -> str:
    """What the lifetime figures rest on."""
    measured = [t.measurement.source for t in plan.trials if t.measurement is not None]
    evidence = f"{weakest(measured)} energy; " if measured else ""
    return (
        f"Energies are means of the runs above ({evidence}search not included); the interval of a saving combines "
        "those of the phases by their share."
    )


def outcome_cells(outcome: Outcome) -> tuple[str, str, str, str]:
    """Site energy, carbon, money and delay of one outcome."""
    grams = outcome.carbon_g
    return (
        "unknown" if outcome.site_energy_j is None else numbers.energy(outcome.site_energy_j),
        "unknown" if grams is None else numbers.carbon(grams),
        "unknown" if outcome.cost is None else f"{numbers.money(outcome.cost)}{numbers.NBSP}{outcome.currency}",
        numbers.duration(outcome.delay_s) if outcome.delay_s else "0",
    )


def search_cost(plan: Plan) -> str:
    """What finding and proving the plan cost."""
    warm = sum(1 for t in plan.trials if t.role is Role.WARMUP)
    kinds = [
        numbers.plural(sum(1 for t in plan.trials if t.role is role), f"{role} run")
        for role in (Role.SEARCH, Role.PROOF)
    ]
    if warm:
        kinds.append(numbers.plural(warm, "warm-up"))
    measured = [t.measurement.source for t in plan.trials if t.measurement is not None]
    evidence = f" ({weakest(measured)})" if measured else ""
    return (
        f"Search and proof took {numbers.energy(plan.search_j)}{evidence} and {numbers.duration(plan.search_time_s)}: "
        f"{', '.join(kinds)}."
    )


def sensors(plan: Plan) -> tuple[tuple[str, str, str, str], ...]:
    """What measured the plan: sensor, scope, source, and the size of each part of its error."""
    seen: dict[tuple[str, str, str], Reading] = {}
    for trial in plan.trials:
        for reading in trial.measurement.readings if trial.measurement else ():
            seen.setdefault((reading.sensor, reading.scope, str(reading.source)), reading)
    return tuple(
        (sensor, scope, found, f"gain ±{numbers.percent(r.gain_sd_fraction, 1)}, offset ±{_watts(r.offset_sd_w)}")
        for (sensor, scope, found), r in sorted(seen.items())
    )


def _watts(power_w: float) -> str:
    return f"{numbers.significant(power_w, 2)}{numbers.NBSP}W"


def measured_on(plan: Plan) -> tuple[str, ...]:
    """The machine, the promises and the version behind a plan."""
    host = plan.host
    virtual = f", virtual ({host.virtual}): a guest sees only its share of the machine" if host.virtual else ""
    memory = f"{numbers.significant(host.memory_bytes / 2**30)}{numbers.NBSP}GiB"
    return (
        f"Host {host.name}: {host.cpu}, {numbers.plural(host.logical_cpus, 'CPU')}, {memory}, {host.system}{virtual}.",
        f"Promised before the first run: {promise(plan.keep)}; {speed_promise(plan)}.",
        f"Workload {plan.workload} ({plan.path}), negawatt {plan.version}, {plan.created_utc}.",
    )


def proof(plan: Plan) -> tuple[str, ...]:
    """How each saving was proven: blocks, level, evidence."""
    return tuple(
        f"{PHASES[phase.phase]} against the {BASELINES[saving.against]}: {numbers.plural(saving.n, 'block')}, "
        f"{level(saving)} interval, {saving.evidence} energy."
        for phase in plan.phases
        for baseline in BASELINES
        if (saving := phase.saving(baseline))
    )

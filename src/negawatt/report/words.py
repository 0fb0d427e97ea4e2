"""Sentences of a report, the same in the terminal and on the page."""

from __future__ import annotations

from collections.abc import Sequence

from negawatt.core.measurement import Measurement
from negawatt.core.placement import Outcome
from negawatt.core.plan import Keep, PhasePlan, Plan
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
    (
        "competent default",
        (
            "The fastest setting an engineer would use without touching the model's arithmetic; if a p99 is promised, "
            "the one of least energy that keeps it."
        ),
    ),
    ("p99", "What 99 of 100 requests to a server end within, from their arrival to the last byte; means over runs."),
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
    waiting = [phase for phase in plan.phases if not phase.pace.served]
    served = [phase.pace for phase in plan.phases if phase.pace.served]
    promises = [_time_promise("time per work", None, plan.max_slowdown)] if waiting or not served else []
    return "; ".join(promises + [_time_promise("p99 of requests", p.p99_s, p.max_slowdown) for p in served])


def _time_promise(what: str, promise_s: float | None, most: float | None) -> str:
    limits = [] if promise_s is None else [f"stays within {numbers.duration(promise_s)}"]
    if most is not None:
        limits.append(f"grows at most {numbers.percent(most)} over the competent default")
    return f"{what} {' and '.join(limits)}" if limits else f"any {what} is accepted"


def time_name(phase: PhasePlan) -> str:
    """What its time is called at the head of a column."""
    return "p99" if phase.pace.served else "time"


def time_head(plan: Plan) -> str:
    """The same for a column about all phases."""
    served = {phase.pace.served for phase in plan.phases}
    return "p99" if served == {True} else "Time per work" if True not in served else "Time per work, or p99"


def time_per(plan: Plan, phase: PhasePlan) -> str:
    """What its time is, in full."""
    return f"p99 of a {plan.unit}" if phase.pace.served else f"time per {work(plan, phase.phase)}"


def row_time(row: Row, clock: numbers.Unit) -> str:
    """The time of a row, with a mark if it is longer than promised."""
    return clock.show(row.time_s) + (" ✗" if row.late else "")


def broken(plan: Plan, phase: PhasePlan, rows: Sequence[Row]) -> tuple[str, ...]:
    """What the marks in a table of some rows say, a sentence for each promise that one of them breaks."""
    told = []
    if any(row.keeps is False for row in rows):
        told.append(f"✗ breaks the promise that {promise(plan.keep)}.")
    if phase.pace.p99_s is not None and any(row.late for row in rows):
        told.append(f"✗ at a p99: longer than the promised {numbers.duration(phase.pace.p99_s)}.")
    return tuple(told)


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

"""A plan as one page: no script, nothing loaded from anywhere, light and dark, readable on a phone and on paper."""

from __future__ import annotations

from typing import Any

from negawatt.core.plan import PhasePlan, Plan
from negawatt.core.saving import Baseline, Saving, Verdict
from negawatt.core.trial import Role, Trial
from negawatt.report import charts, lifetimes, numbers, words
from negawatt.report.digest import PhaseDigest, Row, digest

_SYMBOL = {Verdict.VERIFIED: "✓", Verdict.INDICATIVE: "≈", Verdict.NOT_SHOWN: "?", Verdict.WORSE: "✗"}


def render(plan: Plan) -> str:
    """The page as a string, to be written as UTF-8. Every name from outside is escaped."""
    from importlib.resources import files

    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    def finalize(value: Any) -> Any:  # noqa: ANN401 -- whatever a template prints
        # A Markup is what the charts made of text that was cleaned there.
        return numbers.clean(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=finalize
    )
    source = (files("negawatt.report") / "report.html.j2").read_text(encoding="utf-8")
    page: str = environment.from_string(source).render(_context(plan))
    return page


def _context(plan: Plan) -> dict[str, Any]:
    from markupsafe import Markup

    phases = digest(plan)
    return {
        "plan": plan,
        "headlines": words.headlines(plan),
        "phases": [_phase(plan, phase) for phase in phases],
        "savings_chart": Markup(charts.savings(plan.phases)),  # noqa: S704 -- escaped by svg.el
        "lifetime_chart": Markup(charts.lifetime(plan)),  # noqa: S704 -- escaped by svg.el
        "lifetime": _lifetime(plan),
        "paybacks": [p for b in (Baseline.COMPETENT, Baseline.NAIVE) if (p := lifetimes.payback(plan, b))],
        "outcomes": [(o.choice, words.outcome_cells(o), o.basis) for o in plan.outcomes],
        "sensors": words.sensors(plan),
        "proof": words.proof(plan),
        "facts": words.measured_on(plan),
        "words": words,
        "time_head": words.time_head(plan),
        "units": numbers.several(plan.unit),
        "trials": [_trial(i, trial) for i, trial in enumerate(plan.trials, 1)],
    }


def _phase(plan: Plan, phase: PhaseDigest) -> dict[str, Any]:
    from markupsafe import Markup

    rows = phase.rows
    unit = numbers.energy_unit(rows[0].energy_j if rows else 0.0)
    clock = numbers.time_unit(min((row.time_s for row in rows), default=1.0))
    known = [step.measurement.energy_per_work_j for step in phase.steps if step.measurement]
    step_unit = numbers.energy_unit(min(known, default=0.0))
    return {
        "id": str(phase.plan.phase),
        "name": words.PHASES[phase.plan.phase],
        "setting": str(phase.plan.setting),
        "kept": phase.plan.setting == phase.plan.competent,
        "savings": [_saving(phase.plan, b, s) for b in words.BASELINES if (s := phase.plan.saving(b))],
        "unproven": "" if phase.plan.saving(Baseline.COMPETENT) else words.unproven(phase.plan),
        "notes": words.notes(phase.plan),
        "per": words.work(plan, phase.plan.phase),
        "unit": unit.symbol,
        "clock": clock.symbol,
        "time_head": "p99" if phase.plan.pace.served else "Time",
        "rows": [
            {
                "label": words.row_label(row),
                "names": row.names,
                "setting": str(row.setting),
                "energy": unit.show(row.energy_j, row.energy_sd_j),
                "time": words.row_time(row, clock),
                "quality": words.row_quality(row),
                "row": row,
                "runs": words.runs(row),
                "source": words.source(row.measurement),
                "corners": _corners(row, unit),
            }
            for row in rows
        ],
        "front_fault": phase.front_fault,
        "failures": words.failures(phase),
        "broken": words.broken(plan, phase.plan, rows),
        "front_chart": Markup(charts.front(plan, phase)),  # noqa: S704 -- escaped by svg.el
        "waterfall_chart": Markup(charts.waterfall(plan, phase)),  # noqa: S704 -- escaped by svg.el
        "step_unit": step_unit.symbol,
        "steps": [
            {
                "change": step.change,
                "energy": step_unit.show(step.measurement.energy_per_work_j) if step.measurement else "not run",
                "fraction": ""
                if step.change_fraction is None
                else numbers.percent(step.change_fraction, 1, signed=True),
                "source": words.source(step.measurement) if step.measurement else "",
            }
            for step in phase.steps
        ],
    }


def _saving(phase: PhasePlan, baseline: Baseline, saving: Saving) -> dict[str, Any]:
    value, interval = words.saving_pair(saving)
    return {
        "against": words.BASELINES[baseline],
        "compared": words.compared(phase, baseline),
        "value": value,
        "interval": interval,
        "less": saving.fraction >= 0,
        "size": value.removeprefix(numbers.MINUS),
        "shown": saving.shown,
        "label": saving.label(),
        "kind": str(saving.verdict).replace(" ", "-"),
        "symbol": _SYMBOL[saving.verdict],
        "evidence": str(saving.evidence),
        "n": saving.n,
        "level": words.level(saving),
        "time": words.slowdown_pair(saving.slowdown),
        "quality": words.change_pair(saving.quality_change),
        "corners": words.corners(saving),
    }


def _corners(row: Row, unit: numbers.Unit) -> str:
    """The energy at the ends of the power model's range, or ""."""
    ends = row.measurement.corner_energies_j()
    if not ends:
        return ""
    low, high = (end / row.measurement.work_units for end in (min(ends), max(ends)))
    return f"{unit.show(low)} to {unit.show(high)}"


def _lifetime(plan: Plan) -> dict[str, Any]:
    rows = lifetimes.rows(plan)
    return {
        "requests": numbers.count(max((row.lifetime.requests for row in rows), default=0.0)),
        "rows": [(row.name, *lifetimes.cells(row.lifetime), row.saved, row.verdict) for row in rows],
        "sentences": lifetimes.sentences(plan),
        "note": lifetimes.note(plan),
    }


def _trial(number: int, trial: Trial) -> dict[str, Any]:
    role = str(trial.role) if trial.block < 0 else f"{trial.role}, block {trial.block}"
    shared = {"number": number, "phase": words.PHASES[trial.phase], "role": role, "setting": str(trial.setting)}
    shared |= {"unused": trial.role is Role.WARMUP, "started": trial.started_utc, "split": str(trial.split)}
    m = trial.measurement
    if m is None:
        return {**shared, "error": trial.error}
    return {
        **shared,
        "error": None,
        "energy": numbers.energy(m.energy_j),
        "source": words.source(m),
        "time": numbers.duration(m.time_s),
        "work": numbers.count(m.work_units),
        "quality": numbers.quality(m.quality),
        "p99": "–" if m.latency is None else numbers.duration(m.latency.p99_s),
        "memory": "–" if not m.peak_memory_bytes else f"{m.peak_memory_bytes / 2**20:.0f}{numbers.NBSP}MiB",
    }

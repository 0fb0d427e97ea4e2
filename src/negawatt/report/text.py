"""A plan in the terminal: plain sentences and tables that need no colour and fit 80 columns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from negawatt.core.plan import Plan
from negawatt.core.saving import Baseline, Verdict
from negawatt.report import lifetimes, numbers, words
from negawatt.report.digest import PhaseDigest, Row, digest

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_COLOUR = {Verdict.VERIFIED: "green", Verdict.INDICATIVE: "yellow", Verdict.NOT_SHOWN: "dim", Verdict.WORSE: "red"}


_WIDEST = 120


def render(plan: Plan, *, width: int = 80) -> RenderableType:
    """What `negawatt plan` prints, for `rich.console.Console.print`.

    Names from outside are shown literally: neither markup nor control characters in them have an effect.

    Args:
        plan: the plan.
        width: columns of the terminal; beyond 120 the rest is left free, because long lines are hard to read.
    """
    from rich.console import Group
    from rich.constrain import Constrain

    parts = _headline(plan)
    for phase in digest(plan):
        parts += [_heading(words.PHASES[phase.plan.phase]), *_settings(plan, phase), *_waterfall(plan, phase)]
        parts += _savings(phase)
    parts += _lifetime(plan)
    parts += _sites(plan)
    parts += _not_measured(plan)
    parts += [_heading("How it was measured"), *_bullets((*words.measured_on(plan), *_sensors(plan)))]
    parts += [_heading("Words"), *_bullets(f"{term}: {meaning}" for term, meaning in words.LEGEND)]
    return Constrain(Group(*parts), min(width, _WIDEST))


def _text(text: str, style: str = "") -> Text:
    from rich.text import Text

    return Text(numbers.clean(text), style=style)


def _heading(text: str) -> Text:
    return _text(f"\n{text}", "bold underline")


def _bullets(sentences: Iterable[str], style: str = "") -> list[RenderableType]:
    """Sentences with a hanging indent."""
    from rich.padding import Padding
    from rich.table import Table

    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column()
    for sentence in sentences:
        grid.add_row("-", _text(sentence, style))
    return [Padding(grid, (0, 0, 0, 2))] if grid.row_count else []


def _table(title: str, *columns: str, left: int = 1) -> Table:
    """A table without colour or box; all but the first `left` columns are aligned to the right."""
    from rich import box
    from rich.table import Table

    table = Table(
        title=_text(title, "bold"),
        title_justify="left",
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    for i, column in enumerate(columns):
        table.add_column(_text(column), justify="left" if i < left else "right", overflow="fold")
    return table


def _headline(plan: Plan) -> list[RenderableType]:
    sentences = words.headlines(plan)
    return [_text(sentence, "bold") for sentence in sentences]


def _settings(plan: Plan, phase: PhaseDigest) -> list[RenderableType]:
    if not phase.rows:
        return [_text("No setting could be measured."), *_bullets(words.failures(phase))]
    least = phase.rows[0].energy_j
    unit = numbers.energy_unit(least)
    clock = numbers.time_unit(min(row.time_s for row in phase.rows))
    per = words.work(plan, phase.plan.phase)
    title = f"Energy per {per} and its p99" if phase.plan.pace.served else f"Energy and time per {per}"
    table = _table(
        title, "setting", f"energy {unit.symbol}", f"{words.time_name(phase.plan)} {clock.symbol}", plan.keep.metric,
        "runs", "source",
    )  # fmt: skip
    for row in phase.main_rows:
        m = row.measurement
        table.add_row(
            _setting_cell(row),
            unit.show(row.energy_j, row.energy_sd_j),
            _text(words.row_time(row, clock), "red" if row.late else ""),
            _text(words.row_quality(row), "red" if row.keeps is False else ""),
            words.runs(row),
            words.source(m),
        )
    more = [words.others(phase), *words.failures(phase)]
    if phase.front_fault:
        more.append(f"No front: {phase.front_fault}.")
    more += words.broken(plan, phase.plan, phase.main_rows)
    return [table, *_bullets(sentence for sentence in more if sentence)]


def _setting_cell(row: Row) -> Text:
    label = ", ".join(part for part in (words.row_label(row), "front" if row.on_front else "") if part)
    cell = _text(label, "bold green" if "plan" in row.names else "bold")
    return cell.append("\n").append_text(_text(str(row.setting), "dim"))


def _waterfall(plan: Plan, phase: PhaseDigest) -> list[RenderableType]:
    known = [step.measurement.energy_per_work_j for step in phase.steps if step.measurement is not None]
    if not known:
        return []
    unit = numbers.energy_unit(min(known))
    table = _table(
        f"\nLever by lever, to the candidate, per {words.work(plan, phase.plan.phase)}",
        "after",
        f"energy {unit.symbol}",
        "change",
        "source",
    )
    for step in phase.steps:
        m = step.measurement
        table.add_row(
            _text(step.change),
            unit.show(m.energy_per_work_j) if m else "not run",
            "" if step.change_fraction is None else numbers.percent(step.change_fraction, 1, signed=True),
            words.source(m) if m else "",
        )
    return [table, *_bullets([words.WATERFALL_NOTE])]


def _savings(phase: PhaseDigest) -> list[RenderableType]:
    clock = words.time_name(phase.plan)
    table = _table("\nSavings", "against", "verdict", "saving", "blocks", clock, "quality", left=2)
    for baseline in words.BASELINES:
        saving = phase.plan.saving(baseline)
        if saving is not None:
            table.add_row(
                words.compared(phase.plan, baseline),
                _text(saving.label(), _COLOUR[saving.verdict]),
                "\n".join(words.saving_pair(saving)),
                numbers.count(saving.n),
                "\n".join(words.slowdown_pair(saving.slowdown)),
                "\n".join(words.change_pair(saving.quality_change)),
            )
    if not table.row_count:
        return [_text("\nNo saving was put to the proof.")]
    levels = sorted({words.level(saving) for saving in phase.plan.savings})
    below = f"Below each value: its {' and '.join(levels)} interval."
    changes = f"{'p99' if phase.plan.pace.served else 'Time'} and quality: the change against the baseline."
    return [table, *_bullets([f"{below} {changes}", *words.notes(phase.plan)])]


def _lifetime(plan: Plan) -> list[RenderableType]:
    rows = lifetimes.rows(plan)
    if not rows:
        return []
    requests = max(row.lifetime.requests for row in rows)
    work = f"{numbers.count(requests)} {numbers.several(plan.unit)}"
    table = _table("Energy", "setting", "train", "transform", work, "total")
    for row in rows:
        table.add_row(row.name, *lifetimes.cells(row.lifetime))
    pay = [lifetimes.payback(plan, baseline) for baseline in (Baseline.COMPETENT, Baseline.NAIVE)]
    told = [*lifetimes.sentences(plan), lifetimes.note(plan), words.search_cost(plan)]
    said = [*told, *(sentence for sentence in pay if sentence)]
    return [_heading("Lifetime"), table, *_bullets(said)]


def _sites(plan: Plan) -> list[RenderableType]:
    if not plan.outcomes:
        return []
    table = _table("The plan's lifetime at each site", "site", "site energy", "carbon", "money", "later by")
    basis: list[str] = []
    for outcome in plan.outcomes:
        table.add_row(_text(outcome.choice.site), *words.outcome_cells(outcome))
        basis += [f"{outcome.choice.site}: {line}" for line in outcome.basis]
    return [_heading("Sites"), table, *_bullets([words.SITES_NOTE, *dict.fromkeys(basis)])]


def _sensors(plan: Plan) -> list[str]:
    return [f"Sensor {sensor}: {scope}, {source}, {error}." for sensor, scope, source, error in words.sensors(plan)]


def _not_measured(plan: Plan) -> list[RenderableType]:
    if not plan.not_measured:
        return []
    return [_heading("Not measured"), *_bullets(f"{gap.what}: {gap.why}" for gap in plan.not_measured)]

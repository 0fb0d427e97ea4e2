"""Charts of a plan as inline SVG, drawn on the server: no script, no font, nothing to load.

Each says in its description what it shows; the numbers are also in a table of the page.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from negawatt.core.plan import PhasePlan, Plan
from negawatt.core.saving import Saving
from negawatt.report import lifetimes, numbers, words
from negawatt.report.digest import PhaseDigest, Row
from negawatt.report.numbers import Unit
from negawatt.report.svg import FONT, Axis, around, bar, el, line, picture, place_labels, shorten, text, width_of

WIDTH = 420.0


def front(plan: Plan, phase: PhaseDigest) -> str:
    """Energy against the time that counts of every setting, with the front; "" if nothing was measured."""
    rows = phase.rows
    if not rows:
        return ""
    unit = numbers.energy_unit(rows[0].energy_j)
    clock = numbers.time_unit(min(row.time_s for row in rows))
    height, left, right, top, bottom = 350.0, 52.0, WIDTH - 12, 40.0, 300.0
    x_axis = Axis.of([row.time_s / clock.size for row in rows], left, right)
    y_axis = Axis.of([row.energy_j / unit.size for row in rows], bottom, top)
    at = {row.setting: _place(row, x_axis, y_axis, unit, clock) for row in rows}
    stair = _stair([at[row.setting] for row in rows if row.on_front and row.keeps is not False], (right, top))
    per = words.work(plan, phase.plan.phase)
    content = [
        *_grid(x_axis, y_axis),
        text(f"energy per {per} [{unit.symbol}]" + (", log" if y_axis.log else ""), 0, 14, class_="axis-name"),
        text(
            f"{words.time_per(plan, phase.plan)} [{clock.symbol}]" + (", log" if x_axis.log else ""),
            right,
            334,
            "end",
            "axis-name",
        ),
        el("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in stair), class_="stair") if stair else "",
    ]
    named = [row for row in rows if row.names]
    drawn = sorted(rows, key=lambda r: ("plan" in r.names, bool(r.names)))  # the plan last, on top
    content += [_marker(row, at[row.setting], y_axis, unit, clock) for row in drawn]
    labels = [(*at[row.setting], " = ".join(row.names)) for row in sorted(named, key=lambda r: "plan" not in r.names)]
    obstacles = [around(x, y, 6) for x, y in at.values()] + [_corner_box(a, b) for a, b in pairwise(stair)]
    content += place_labels(labels, obstacles, (left, top - 10, right, bottom))
    measured = [row for row in rows if row.measurement.source.measured]
    kind = "measured" if len(measured) == len(rows) else "not measured by hardware" if not measured else "mixed"
    return picture(
        f"{words.PHASES[phase.plan.phase]}: energy against time",
        f"{len(rows)} settings, {kind}; lower and further left is better. {_extremes(named, unit, clock)}",
        (WIDTH, height),
        content,
    )


def _extremes(named: Sequence[Row], unit: Unit, clock: Unit) -> str:
    return " ".join(
        f"{' = '.join(row.names)}: {unit.show(row.energy_j)} {unit.symbol}, {clock.show(row.time_s)} {clock.symbol}."
        for row in named
    )


def _place(row: Row, x_axis: Axis, y_axis: Axis, unit: Unit, clock: Unit) -> tuple[float, float]:
    return x_axis.at(row.time_s / clock.size), y_axis.at(row.energy_j / unit.size)


def _grid(x_axis: Axis, y_axis: Axis) -> list[str]:
    parts = []
    for tick in y_axis.ticks():
        y = y_axis.at(tick)
        parts += [
            line(x_axis.start, y, x_axis.stop, y, "grid"),
            text(f"{tick:g}", x_axis.start - 6, y + 4, "end", "tick"),
        ]
    for tick in x_axis.ticks():
        x = x_axis.at(tick)
        parts += [
            line(x, y_axis.start, x, y_axis.stop, "grid"),
            text(f"{tick:g}", x, y_axis.start + 16, "middle", "tick"),
        ]
    return [*parts, line(x_axis.start, y_axis.start, x_axis.stop, y_axis.start, "base")]


Point = tuple[float, float]


def _stair(points: Sequence[Point], corner: Point) -> list[Point]:
    """The border of what can be had in energy and time: those points that no other beats in both, as a staircase."""
    best = sorted(p for p in points if not any(o[0] <= p[0] and o[1] >= p[1] and o != p for o in points))
    if not best:
        return []
    path = [(best[0][0], corner[1]), best[0]]
    for before, after in pairwise(best):
        path += [(after[0], before[1]), after]
    return [*path, (corner[0], best[-1][1])]


def _corner_box(a: Point, b: Point) -> tuple[float, float, float, float]:
    """The box around a level or upright line, as an obstacle to labels."""
    return (min(a[0], b[0]) - 1, min(a[1], b[1]) - 1, max(a[0], b[0]) + 1, max(a[1], b[1]) + 1)


def _marker(row: Row, at: tuple[float, float], y_axis: Axis, unit: Unit, clock: Unit) -> str:
    x, y = at
    sd = f", sd {unit.show(row.energy_sd_j)} {unit.symbol} over {row.n} runs" if row.energy_sd_j else ", 1 run"
    told = (
        f"{row.setting}: {unit.show(row.energy_j)} {unit.symbol}{sd}; "
        f"{clock.show(row.time_s)} {clock.symbol}; {words.source(row.measurement)}"
    )
    classes = ["point", "filled" if row.measurement.source.measured else "hollow"]
    classes += ["on-front"] if row.on_front else []
    classes += ["is-plan"] if "plan" in row.names else []
    parts = [el("title", escape(numbers.clean(told)))]
    if row.energy_sd_j:
        low, high = (y_axis.at((row.energy_j + s * row.energy_sd_j) / unit.size) for s in (-1, 1))
        parts.append(line(x, low, x, high, "whisker"))
    if row.keeps is False:
        parts.append(el("path", d=f"M{x - 4:.1f} {y - 4:.1f}l8 8m0 -8l-8 8", class_="broken"))
    elif "plan" in row.names:
        parts.append(el("path", d=f"M{x:.1f} {y - 8:.1f}l8 8l-8 8l-8 -8z", class_=" ".join(classes)))
    else:
        parts.append(el("circle", cx=x, cy=y, r=5.0 if row.on_front else 3.5, class_=" ".join(classes)))
    return el("g", *parts)


def waterfall(plan: Plan, phase: PhaseDigest) -> str:
    """Energy per work after each lever; "" if there are no steps."""
    known = [(step, step.measurement.energy_per_work_j) for step in phase.steps if step.measurement is not None]
    if len(known) < 2:
        return ""
    unit = numbers.energy_unit(min(energy for _, energy in known))
    axis = Axis(low=0.0, high=max(energy for _, energy in known), start=0.0, stop=WIDTH - 110)
    content, y = [], 0.0
    before: float | None = None
    for i, (step, energy_j) in enumerate(known):
        x, last = axis.at(energy_j), i == len(known) - 1
        content.append(text(shorten(step.change, WIDTH), 0, y + FONT, class_="label"))
        if before is None:
            content.append(bar(0, x, y + 18, 18, "bar-base"))
        else:
            content.append(bar(0, x, y + 18, 18, "bar-plan" if last else "bar-base"))
            content.append(bar(x, axis.at(before), y + 18, 18, "bar-saved" if energy_j < before else "bar-lost"))
        figure = f"{unit.show(energy_j)} {unit.symbol}"
        # Of the step before in the chart, which is not the step before in the plan if one could not be run.
        if before is not None and step.change_fraction is not None:
            figure = f"{figure} ({numbers.percent(step.change_fraction, signed=True)})"
        end = max(x, axis.at(before) if before is not None else 0.0)
        content.append(text(figure, end + 6, y + 31, class_="tick"))
        before, y = energy_j, y + 48
    per = words.work(plan, phase.plan.phase)
    first, final = known[0][1], known[-1][1]
    return picture(
        f"{words.PHASES[phase.plan.phase]}: energy per {per} after each lever",
        f"From {unit.show(first)} to {unit.show(final)} {unit.symbol}, {len(known) - 1} steps. {words.WATERFALL_NOTE}",
        (WIDTH, y),
        content,
    )


def savings(phases: Sequence[PhasePlan]) -> str:
    """Every saving with its interval and, thinner behind it, what the power model's range makes of it; "" if none."""
    found = [(f"{words.PHASES[p.phase]}, {label}", s) for p in phases for label, s in _ordered(p)]
    if not found:
        return ""
    ends = [end for _, s in found for end in (s.ci_low, s.ci_high, *(e for c in s.corners for e in (c.low, c.high)))]
    low, high = min(0.0, *ends), max(0.0, *ends)
    pad = 0.03 * (high - low)
    axis = Axis(low=low - pad, high=high + pad, start=0.0, stop=WIDTH - 20)
    height = 52.0 * len(found)
    decimals = 0 if high - low > 0.06 else 1
    content = [text(numbers.percent(t, decimals), axis.at(t), height + 12, "middle", "tick") for t in axis.ticks()]
    for i, (label, saving) in enumerate(found):
        content += _whiskers(saving, label, 52.0 * i, axis)
    told = " ".join(f"{label}: {words.saving_interval(s)}, {s.label()}." for label, s in found)
    return picture("Savings with their intervals", told, (WIDTH, height + 20), content)


def _ordered(phase: PhasePlan) -> list[tuple[str, Saving]]:
    pairs = [(label, phase.saving(baseline)) for baseline, label in words.BASELINES.items()]
    return [(label, saving) for label, saving in pairs if saving is not None]


def _whiskers(saving: Saving, label: str, top: float, axis: Axis) -> list[str]:
    y = top + 34
    kind = str(saving.verdict).replace(" ", "-")
    figures = words.saving_interval(saving)
    parts = [
        text(shorten(f"{label}: {saving.verdict}", WIDTH - width_of(figures)), 0, top + 14),
        text(figures, WIDTH - 4, top + 14, "end"),
    ]
    for tick in axis.ticks():
        x = axis.at(tick)
        parts.append(line(x, top + 22, x, top + 46, "zero" if abs(tick) < 1e-12 else "grid"))
    for i, corner in enumerate(saving.corners):
        offset = y + 3.0 * (i - (len(saving.corners) - 1) / 2)
        parts.append(line(axis.at(corner.low), offset, axis.at(corner.high), offset, f"corner v-{kind}"))
    low, high = axis.at(saving.ci_low), axis.at(saving.ci_high)
    parts += [line(low, y, high, y, f"interval v-{kind}"), line(low, y - 5, low, y + 5, f"interval v-{kind}")]
    parts += [line(high, y - 5, high, y + 5, f"interval v-{kind}")]
    marker = "filled" if saving.evidence.measured else "hollow"
    return [*parts, el("circle", cx=axis.at(saving.fraction), cy=y, r=4.5, class_=f"estimate {marker} v-{kind}")]


def lifetime(plan: Plan) -> str:
    """Energy over the model's life per setting, stacked, the search hatched on top of the plan; "" if unknown."""
    rows = lifetimes.rows(plan)
    if not rows:
        return ""
    search = {"plan": plan.search_j}
    longest = max(row.lifetime.total_j + search.get(row.name, 0.0) for row in rows)
    unit = numbers.energy_unit(max(row.lifetime.total_j for row in rows))
    axis = Axis(low=0.0, high=longest or 1.0, start=0.0, stop=WIDTH - 4)
    hatch = el(
        "pattern", line(0, 0, 0, 6, "hatch"), id="hatch", width=6, height=6, patternUnits="userSpaceOnUse",
        patternTransform="rotate(45)",
    )  # fmt: skip
    content, y = [el("defs", hatch)], 0.0
    for name, life in ((row.name, row.lifetime) for row in rows):
        total = f"{name}: {unit.show(life.total_j)} {unit.symbol}"
        if name in search:
            total += f" + search {numbers.energy(plan.search_j)}"
        content.append(text(total, 0, y + FONT, class_="label"))
        x_j = 0.0
        infer_j = life.requests * (life.infer_per_work_j or 0.0)
        parts = ((life.train_j or 0.0, "seg-train"), (life.transform_j, "seg-transform"), (infer_j, "seg-infer"))
        for part_j, class_ in (*parts, (search.get(name, 0.0), "seg-search")):
            if part_j > 0:
                content.append(bar(axis.at(x_j), axis.at(x_j + part_j), y + 18, 20, class_))
                x_j += part_j
        y += 50
    told = " ".join(f"{row.name}: {unit.show(row.lifetime.total_j)} {unit.symbol}." for row in rows)
    requests = numbers.count(max(row.lifetime.requests for row in rows))
    return picture(
        "Energy over the model's life",
        f"Training, transformation and {requests} {numbers.several(plan.unit)}. {told} {words.search_cost(plan)}",
        (WIDTH, y),
        content,
    )

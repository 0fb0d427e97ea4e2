"""The picture of a forecast: two bands over the years, and what each lever takes off the last of them."""

from __future__ import annotations

from collections.abc import Sequence

from negawatt.report import numbers
from negawatt.report.forecast import Bend, Country, Forecast, Range
from negawatt.report.svg import FONT, Axis, bar, el, line, picture, text

WIDTH, _EDGE, _LEFT, _RIGHT = 600.0, 10.0, 56.0, 420.0
_TOP, _BOTTOM = 44.0, 300.0
_BAR_TOP, _BAR_STEP = 372.0, 40.0

# The colours of the plan's report, so that both look alike; a picture by itself has no page to take them from.
_STYLE = """
svg { font: 12px system-ui, sans-serif; background: var(--paper); }
svg { --paper: #fcfcfa; --ink: #17201b; --soft: #57625c; --rule: #d9dedb; --good: #0b6b48; --base: #8b9891; }
@media (prefers-color-scheme: dark) {
  svg { --paper: #121614; --ink: #e6ebe8; --soft: #a3aea8; --rule: #333b37; --good: #6fd0a3; --base: #75827b; }
}
text { fill: var(--ink); } .tick, .axis-name { fill: var(--soft); } .title { font-weight: 600; }
.label { paint-order: stroke; stroke: var(--paper); stroke-width: 3px; stroke-linejoin: round; }
.grid { stroke: var(--rule); } .base { stroke: var(--soft); stroke-width: 1.25; }
.country { stroke: var(--soft); stroke-dasharray: 4 3; }
.band-without { fill: var(--base); fill-opacity: .35; } .edge-without { fill: none; stroke: var(--base); }
.band-with { fill: var(--good); fill-opacity: .3; } .edge-with { fill: none; stroke: var(--good); stroke-width: 1.5; }
.with { fill: var(--good); font-weight: 600; } .bar-least { fill: var(--good); }
.bar-most { fill: var(--good); fill-opacity: .35; }
"""


def draw(found: Forecast, countries: Sequence[Country] = ()) -> str:
    """The forecast as one self-contained SVG file.

    Args:
        found: the forecast.
        countries: drawn as level lines, for scale.
    """
    first, last = found.years[0], found.years[-1]
    bends = (*found.bends, found.together)
    size = (WIDTH, _BAR_TOP + _BAR_STEP * len(bends) + 26)
    told = (
        f"Without levers {twh(last.without_twh)} TWh in {last.year}, with all of them {twh(last.all_twh)} TWh. "
        + " ".join(f"{bend.name}: {percent(bend.saved)} less." for bend in bends)
    )
    drawing = picture(
        f"Electricity of AI, {first.year} to {last.year}",
        told,
        size,
        [el("style", _STYLE), *_years(found, countries), *_bars(bends, last.year)],
    )
    return drawing.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1) + "\n"


def twh(span: Range) -> str:
    """A range of TWh as printed: "249 to 394", "62"; whole where it reaches ten."""
    decimals = 0 if span.high >= 10 else 1 if span.high >= 1 else 3
    low, high = (numbers.fixed(value, decimals) for value in (span.low, span.high))
    return low if low == high else f"{low} to {high}"


def percent(span: Range) -> str:
    """A range of fractions as printed: "26 to 36 %", "30 %"."""
    if span.low == span.high:
        return f"{numbers.plain(100 * span.low)}{numbers.NBSP}%"
    return numbers.span(span.low, span.high)


def _years(found: Forecast, countries: Sequence[Country]) -> list[str]:
    years = found.years
    x_axis = Axis(low=float(years[0].year), high=float(years[-1].year), start=_LEFT, stop=_RIGHT)
    y_axis = Axis(low=0.0, high=1.05 * max(y.without_twh.high for y in years), start=_BOTTOM, stop=_TOP)
    content = [text("TWh a year", _EDGE, 24, class_="axis-name")]
    for tick in y_axis.ticks():
        y = y_axis.at(tick)
        content += [line(_LEFT, y, _RIGHT, y, "grid"), text(f"{tick:g}", _LEFT - 6, y + 4, "end", "tick")]
    for year in _labelled([y.year for y in years]):
        content.append(text(str(year), x_axis.at(year), _BOTTOM + 18, "middle", "tick"))
    content.append(line(_LEFT, _BOTTOM, _RIGHT, _BOTTOM, "base"))
    content += _band([(y.year, y.without_twh) for y in years], x_axis, y_axis, "without")
    content += _band([(y.year, y.all_twh) for y in years], x_axis, y_axis, "with")
    for country in countries:
        y = y_axis.at(country.used_twh)
        if y > _BOTTOM - 0.7 * FONT:  # too near the ground to be told from it
            continue
        content.append(line(_LEFT, y, _RIGHT, y, "country"))
        content.append(text(f"{country.name}, {country.year}", _RIGHT - 4, y - 4, "end", "label tick"))
    x, y = _RIGHT + 10, y_axis.at(years[-1].without_twh.high) + 4
    for label, span, class_ in (
        ("without levers", years[-1].without_twh, None),
        ("with all", years[-1].all_twh, "with"),
    ):
        content += [text(label, x, y, class_=class_), text(f"{twh(span)} TWh", x, y + 1.3 * FONT, class_=class_)]
        y += 3 * FONT
    return content


def _labelled(years: Sequence[int]) -> list[int]:
    """The years that get a number: at most nine, the last among them."""
    step = 1 + (len(years) - 1) // 8
    return [year for year in years if (years[-1] - year) % step == 0]


def _band(points: Sequence[tuple[int, Range]], x_axis: Axis, y_axis: Axis, kind: str) -> list[str]:
    """The area between the low and the high ends, with its edges."""
    low = [f"{x_axis.at(year):.1f},{y_axis.at(span.low):.1f}" for year, span in points]
    high = [f"{x_axis.at(year):.1f},{y_axis.at(span.high):.1f}" for year, span in points]
    return [
        el("polygon", points=" ".join(low + high[::-1]), class_=f"band-{kind}"),
        el("polyline", points=" ".join(low), class_=f"edge-{kind}"),
        el("polyline", points=" ".join(high), class_=f"edge-{kind}"),
    ]


def _bars(bends: Sequence[Bend], year: int) -> list[str]:
    """What each lever takes off: solid up to the low end, pale up to the high one."""
    axis = Axis(low=0.0, high=max(bend.saved.high for bend in bends) or 1.0, start=_LEFT, stop=_RIGHT)
    content = [
        text(f"taken off in {year}, at least (dark) and at most (pale)", _EDGE, _BAR_TOP - 16, class_="axis-name")
    ]
    for i, bend in enumerate(bends):
        y = _BAR_TOP + _BAR_STEP * i
        content += [
            text(bend.name, _LEFT, y + FONT),
            bar(axis.start, axis.at(bend.saved.high), y + 18, 12, "bar-most"),
            bar(axis.start, axis.at(bend.saved.low), y + 18, 12, "bar-least"),
            text(
                f"{percent(bend.saved)}, {twh(bend.saved_twh)} TWh",
                axis.at(bend.saved.high) + 6,
                y + 28,
                class_="tick",
            ),
        ]
    return content

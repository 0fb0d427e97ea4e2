"""The little SVG that the charts need: escaped elements, axes with round ticks, labels that avoid each other.

Colours are classes and custom properties of the page, so that a chart follows its light and dark themes and prints.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from negawatt.report.numbers import clean

FONT = 12.0
"""Font size of a chart's text, in its own units; the style sheet sets the same."""
_CHAR = 0.56 * FONT  # mean advance of a sans-serif character; generous for digits


def el(tag: str, *children: str, **attributes: object) -> str:
    """An element. Children are markup already; attributes are escaped, and `class_`, `a_b` become `class`, `a-b`."""
    given = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{escape(clean(_number(value)))}"'
        for name, value in attributes.items()
        if value is not None
    )
    return f"<{tag}{given}>{''.join(children)}</{tag}>"


def text(content: str, x: float, y: float, anchor: str = "start", class_: str | None = None) -> str:
    """A line of text at a baseline point."""
    return el("text", escape(clean(content)), x=x, y=y, text_anchor=anchor, class_=class_)


def line(x1: float, y1: float, x2: float, y2: float, class_: str) -> str:
    """A straight line."""
    return el("line", x1=x1, y1=y1, x2=x2, y2=y2, class_=class_)


def bar(x1: float, x2: float, y: float, height: float, class_: str) -> str:
    """A bar between two x positions in any order, at least visible."""
    return el("rect", x=min(x1, x2), y=y, width=max(abs(x2 - x1), 1.0), height=height, class_=class_)


def picture(title: str, description: str, size: tuple[float, float], content: Iterable[str]) -> str:
    """A whole drawing with its accessible name and description."""
    width, height = size
    return el(
        "svg",
        el("title", escape(clean(title))),
        el("desc", escape(clean(description))),
        *content,
        viewBox=f"0 0 {_number(width)} {_number(height)}",
        role="img",
        aria_label=f"{title}. {description}",
        class_="chart",
    )


def _number(value: object) -> str:
    return f"{value:.1f}".removesuffix(".0") if isinstance(value, float) else str(value)


def width_of(content: str) -> float:
    """Approximate width of a line of text."""
    return _CHAR * len(content)


def shorten(content: str, width: float) -> str:
    """A line of text cut to fit, with an ellipsis; the whole of it is in the table beside the chart."""
    room = max(1, int(width / _CHAR))
    return content if len(content) <= room else content[: room - 1] + "…"


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """A linear or logarithmic axis from the data to the drawing.

    Attributes:
        low, high: ends in data units.
        start, stop: the same ends in the drawing.
        log: whether it is logarithmic.
    """

    low: float  # in the unit of the data
    high: float  # in the unit of the data
    start: float  # in the drawing's units
    stop: float  # in the drawing's units
    log: bool = False

    @classmethod
    def of(cls, values: Sequence[float], start: float, stop: float) -> Axis:
        """An axis around some positive values: logarithmic if they span more than a factor of eight, else from zero."""
        low, high = min(values), max(values)
        if low > 0 and high / low > 8:
            return cls(low=low / 1.35, high=high * 1.35, start=start, stop=stop, log=True)
        return cls(low=0.0, high=(high or 1.0) * 1.12, start=start, stop=stop)

    def at(self, value: float) -> float:
        """Where a value lies in the drawing."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> tuple[float, ...]:
        """Round values inside the axis: four to eight of them."""
        if not self.log:
            step = _round_step((self.high - self.low) / 5)
            first = math.ceil(self.low / step - 1e-9)
            return tuple(i * step for i in range(first, math.floor(self.high / step + 1e-9) + 1))
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        steps = (1, 2, 5) if self.high / self.low < 60 else (1, 3) if self.high / self.low < 900 else (1,)
        return tuple(v for d in decades for v in (s * 10.0**d for s in steps) if self.low <= v <= self.high)


def _round_step(rough: float) -> float:
    base = 10.0 ** math.floor(math.log10(rough))
    return next((m * base for m in (1, 2, 5) if m * base >= rough), 10 * base)


Box = tuple[float, float, float, float]


def around(x: float, y: float, reach: float) -> Box:
    """A square box around a point."""
    return (x - reach, y - reach, x + reach, y + reach)


def place_labels(points: Sequence[tuple[float, float, str]], obstacles: Sequence[Box], frame: Box) -> list[str]:
    """Labels beside some points, as markup, with a thin leader where one had to move away.

    Greedy: each label takes the first of its surrounding places that stays in the frame and clear of all obstacles and
    of the labels before it; else the least crowded. A label that begins with "plan" is set off.
    """
    taken = list(obstacles)
    markup = []
    for x, y, label in points:
        _, reach, (dx, dy), box = min(_candidates(x, y, label, taken, frame))
        taken.append(box)
        anchor = {1: "start", -1: "end", 0: "middle"}[dx]
        at_x, middle = x + dx * reach, (box[1] + box[3]) / 2
        if reach > _REACHES[0]:
            markup.append(line(x + dx * 5, y + dy * 5, at_x - dx * 2, middle - dy * FONT / 2, "leader"))
        class_ = "label plan-label" if label.startswith("plan") else "label"
        markup.append(text(label, at_x, middle + 0.35 * FONT, anchor, class_))
    return markup


_REACHES = (9.0, 24.0, 40.0)
_SIDES = ((1, 0), (1, -1), (1, 1), (-1, 0), (-1, -1), (-1, 1), (0, -1), (0, 1))


def _candidates(
    x: float, y: float, label: str, taken: Sequence[Box], frame: Box
) -> Iterable[tuple[float, float, tuple[int, int], Box]]:
    width = width_of(label)
    for rank, (reach, (dx, dy)) in enumerate((r, side) for r in _REACHES for side in _SIDES):
        left = x + dx * reach - (0 if dx > 0 else width if dx < 0 else width / 2)
        middle = y + dy * (reach + 3)
        box = (left, middle - FONT / 2, left + width, middle + FONT / 2)
        crowd = sum(_overlap(box, other) for other in taken)
        yield crowd + 20 * _outside(box, frame) + rank / 4, reach, (dx, dy), box


def _overlap(a: Box, b: Box) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _outside(box: Box, frame: Box) -> float:
    return (
        max(0.0, frame[0] - box[0])
        + max(0.0, frame[1] - box[1])
        + max(0.0, box[2] - frame[2])
        + max(0.0, box[3] - frame[3])
    )

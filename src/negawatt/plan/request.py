"""Request: what the user asked of `negawatt plan`, parsed from what they typed."""

from __future__ import annotations

import math
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negawatt.core.codec import from_json
from negawatt.core.errors import UsageError
from negawatt.core.placement import Site

DEFAULT_MARGIN = 0.01
"""Loss of quality against the baseline that is accepted if the user promises nothing else [unit of the metric]."""

SAME_P99_FRACTION = 0.05
"""By so much the p99 of a server that promises none may lie above the competent default's: single p99s scatter."""

_UNITS_S = {"": 1.0, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_KEEP = re.compile(r"\s*([A-Za-z_][\w.-]*?)\s*>=\s*(baseline\s*-\s*)?([0-9.eE+-]+)\s*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Promise:
    """The quality promise as typed: a bound, or a margin below the baseline. `metric` None: whatever it is called."""

    metric: str | None = None
    bound: float | None = None  # in the unit of the metric
    margin: float = DEFAULT_MARGIN  # in the unit of the metric


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What to plan.

    Attributes:
        path: the workload's file.
        out: folder for `plan.json`, `report.html`, logs and trained models.
        promise: the quality to keep.
        max_slowdown: largest accepted increase of time per work over the competent default, as a fraction, for a server
            of its p99; None: any, but for a server that promises none `SAME_P99_FRACTION`.
        requests: units of inference over the model's life.
        budget_s: wall time for the whole search and proof [s].
        levers, sensors: names; () means all.
        sites: where the work could run.
        fresh: ignore the trials of an interrupted plan.
        trial_limit_s: limit per trial [s]; None: learnt from the trials.
        p99_s: the latency that a server promises [s]; None: what the workload says.
        seed: of the experiment design and the workload.
    """

    path: Path
    out: Path
    promise: Promise
    max_slowdown: float | None  # fraction
    requests: float  # units of work
    budget_s: float
    levers: tuple[str, ...] = ()
    sensors: tuple[str, ...] = ()
    sites: tuple[Site, ...] = ()
    fresh: bool = False
    trial_limit_s: float | None = None
    p99_s: float | None = None
    seed: int = 0


def parse_promise(text: str | None) -> Promise:
    """Parse `accuracy>=0.93` or `accuracy>=baseline-0.01`. Raises UsageError."""
    if text is None:
        return Promise()
    match = _KEEP.fullmatch(text)
    number = _number(match[3]) if match else None
    if match is None or number is None or (match[2] and number < 0):
        raise UsageError(
            f"--keep {text!r}",
            "a saving counts only while a quality that is fixed beforehand is kept",
            'write --keep "accuracy>=0.93" or --keep "accuracy>=baseline-0.01"',
        )
    if match[2]:
        return Promise(metric=match[1], margin=number)
    return Promise(metric=match[1], bound=number)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def parse_duration_s(text: str) -> float:
    """Parse `50ms`, `90`, `90s`, `10m`, `2h`, `1.5d` to seconds. Raises UsageError."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(ms|[smhd]?)\s*", text)
    if match is None or float(match[1]) <= 0:
        raise UsageError(f"duration {text!r}", "a limit of time must be a time", "write e.g. 50ms, 90s, 10m or 2h")
    return float(match[1]) * _UNITS_S[match[2]]


def read_sites(path: Path) -> tuple[Site, ...]:
    """Sites of a TOML file, one `[[site]]` each, every figure with its source.

    Raises:
        UsageError: on a missing or malformed file, or a figure that cannot be.
    """
    fix = 'write [[site]] name = "..." and e.g. pue = { value = 1.3, source = "operator, 2025" }'
    try:
        data: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"--site {path}: {error}", "carbon and money follow from its figures", fix) from None
    tables = data.get("site")
    if set(data) != {"site"} or not isinstance(tables, list) or not tables:
        raise UsageError(f"--site {path} holds {sorted(data)}", "each site is one [[site]] table", fix)
    sites = tuple(from_json(Site, table, f"{path}: site {i + 1}") for i, table in enumerate(tables))
    for site in sites:
        if site.pue and not (math.isfinite(site.pue.value) and site.pue.value >= 1):
            raise UsageError(
                f"site {site.name!r} has PUE {site.pue.value}", "a site cannot use less than its computers", fix
            )
        if site.intensity_gpkwh and not (math.isfinite(site.intensity_gpkwh.value) and site.intensity_gpkwh.value >= 0):
            raise UsageError(f"site {site.name!r} has {site.intensity_gpkwh.value} gCO2e/kWh", "it cannot be", fix)
        if site.price_per_kwh and not site.currency:
            raise UsageError(f"site {site.name!r} has a price without a currency", "money needs its unit", fix)
    return sites

"""Logs: what this host's meter and a wall meter wrote down, brought to one clock."""

from __future__ import annotations

import csv
import json
import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path
from statistics import fmean, median

from negawatt.core.errors import UsageError
from negawatt.metering.calibration import Point

MAX_LAG_S = 300.0
"""Clocks that nobody sets drift by minutes; by hours only if the zone is wrong, and that is asked for."""
CORRELATION = 0.8
"""Below it, two logs of the same machine were not taken at the same time."""
SETTLING_FRACTION = 0.25
"""The beginning of a load step that is left out: fans, clocks and the wall meter's own averaging settle."""
WINDOW_S = 30.0
"""Length of the windows into which a log without load steps is cut [s]."""
_GRID = 400
_EPOCH_S = (1e9, 1e10)  # 2001 to 2286: counts of s, ms, us and ns do not overlap
_MARK = "# negawatt calibrate "


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Energy over time.

    Attributes:
        times_s: seconds since 1970, rising [s].
        energy_j: joules since some moment, not falling [J].
    """

    times_s: tuple[float, ...]
    energy_j: tuple[float, ...]

    def mean_w(self, begin_s: float, end_s: float) -> float | None:
        """Mean power between two moments [W]; None if the log does not reach that far."""
        if begin_s < self.times_s[0] or end_s > self.times_s[-1]:
            return None
        return (self._at(end_s) - self._at(begin_s)) / (end_s - begin_s)

    def _at(self, time_s: float) -> float:
        i = min(bisect_right(self.times_s, time_s), len(self.times_s) - 1)
        (t0, t1), (e0, e1) = self.times_s[i - 1 : i + 1], self.energy_j[i - 1 : i + 1]
        return e0 + (e1 - e0) * (time_s - t0) / (t1 - t0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """A log of this host's meter.

    Attributes:
        trace: energy of all scopes.
        spans: load steps: name, begin and end [s]; empty if nobody made any.
        fingerprint: of the host.
        scopes, sensors: what was metered.
    """

    trace: Trace
    spans: tuple[tuple[str, float, float], ...]
    fingerprint: str
    scopes: tuple[str, ...]
    sensors: tuple[str, ...]


def write_metered(
    path: Path,
    fingerprint: str,
    scopes: Sequence[str],
    sensors: Sequence[str],
    rows: Iterable[tuple[float, float, str]],
) -> int:
    """Write a log of this host's meter while it is made.

    Args:
        path: the file.
        fingerprint: of the host.
        scopes: what is metered.
        sensors: by what.
        rows: seconds since 1970, joules so far, and the load step that is under way or "".

    Returns:
        How many rows were written.
    """
    n = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        head = {"fingerprint": fingerprint, "scopes": list(scopes), "sensors": list(sensors)}
        file.write(f"{_MARK}{json.dumps(head)}\ntime_utc,energy_j,step\n")
        for time_s, energy_j, step in rows:
            stamp = datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")
            file.write(f"{stamp},{energy_j:.6f},{step}\n")
            file.flush()  # what was measured outlives Ctrl-C
            n += 1
    return n


def read_metered(path: Path) -> Metered:
    """Read what `write_metered` wrote. Raises UsageError if it is something else."""
    lines = read_text(path).splitlines()
    try:
        if not lines[0].startswith(_MARK):
            raise ValueError("its first line is missing")
        head = json.loads(lines[0].removeprefix(_MARK))
        rows = [(moment(r["time_utc"], None), float(r["energy_j"]), r["step"]) for r in csv.DictReader(lines[1:])]
        return Metered(
            trace=trace([(t, e) for t, e, _ in rows]),
            spans=tuple(_spans(rows)),
            fingerprint=head["fingerprint"],
            scopes=tuple(head["scopes"]),
            sensors=tuple(head["sensors"]),
        )
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, csv.Error) as error:
        raise UsageError(
            f"{path} is no log of this meter ({error})",
            "the wall meter has to be set against what these sensors showed",
            "make one: `negawatt calibrate load --out metered.csv`, or `record` beside your own load",
        ) from error


def align(metered: Trace, wall: Trace) -> tuple[float, float]:
    """How far the wall meter's clock is ahead, by the lag at which the two powers rise and fall together best.

    Returns:
        Lag [s] and correlation at it.

    Raises:
        UsageError: if they do not go together at any lag up to `MAX_LAG_S`.
    """
    length_s = metered.times_s[-1] - metered.times_s[0]
    step_s = max(1.0, length_s / _GRID, *(median(b - a for a, b in pairwise(t.times_s)) for t in (metered, wall)))
    lag_s, best = 0.0, -math.inf
    for lags in (_lags(0.0, MAX_LAG_S, step_s), None):
        for lag in lags or _lags(lag_s, step_s, step_s / 8):
            found = _correlation(metered, wall, lag, step_s)
            if found is not None and found > best + 1e-9:
                lag_s, best = lag, found
    if math.isinf(best):
        ours, theirs = (f"{iso(t.times_s[0])} to {iso(t.times_s[-1])}" for t in (metered, wall))
        raise UsageError(
            f"the wall meter's log, {theirs}, covers less than half of this host's, {ours}",
            "points from two different times would make a line that means nothing",
            "let both run at once, and give the zone of the wall meter if its times name none: --utc-offset HOURS",
        )
    if best < CORRELATION:
        raise UsageError(
            f"at no lag up to {MAX_LAG_S:.0f} s do the two logs go together (best correlation {best:.2f})",
            "points from two different times would make a line that means nothing",
            "check the column, and that both ran at once over idle and load",
        )
    return lag_s, best


def points(metered: Metered, wall: Trace, lag_s: float) -> tuple[Point, ...]:
    """Mean powers over every load step, without its beginning; over windows of 30 s where there are no steps.

    Raises:
        UsageError: if the wall meter's log holds less than half of a step.
    """
    first, last = wall.times_s[0] - lag_s, wall.times_s[-1] - lag_s
    found = []
    for name, begin_s, end_s in _windows(metered):
        begin, end = max(begin_s, first), min(end_s, last)
        covered = end - begin >= (0.5 if name else 1.0) * (end_s - begin_s) - 1e-3
        if name and not covered:
            raise UsageError(
                f"the wall meter's log does not reach over the step {name!r}",
                "the line would rest on fewer loads than were made",
                "let it log from before the first step until after the last one",
            )
        metered_w = metered.trace.mean_w(begin, end) if covered else None
        wall_w = wall.mean_w(begin + lag_s, end + lag_s) if covered else None
        if metered_w is not None and wall_w is not None:
            found.append(Point(metered_w=metered_w, wall_w=wall_w, level=name))
    return tuple(found)


def _windows(metered: Metered) -> list[tuple[str, float, float]]:
    if metered.spans:
        return [(name, begin + SETTLING_FRACTION * (end - begin), end) for name, begin, end in metered.spans]
    first, last = metered.trace.times_s[0], metered.trace.times_s[-1]
    return [("", first + i * WINDOW_S, first + (i + 1) * WINDOW_S) for i in range(int((last - first) / WINDOW_S))]


def _lags(centre_s: float, reach_s: float, step_s: float) -> list[float]:
    """Lags around a centre, the nearest first, so that of equal ones the smallest counts."""
    n = int(reach_s / step_s)
    return sorted((centre_s + i * step_s for i in range(-n, n + 1)), key=lambda lag: abs(lag - centre_s))


def _correlation(metered: Trace, wall: Trace, lag_s: float, step_s: float) -> float | None:
    """Correlation of mean powers at one lag; None if the logs share less than half of the metered one."""
    n = int((metered.times_s[-1] - metered.times_s[0]) / step_s)
    pairs = []
    for i in range(n):
        begin_s = metered.times_s[0] + i * step_s
        x, y = metered.mean_w(begin_s, begin_s + step_s), wall.mean_w(begin_s + lag_s, begin_s + lag_s + step_s)
        if x is not None and y is not None:
            pairs.append((x, y))
    if len(pairs) < max(3, n / 2):
        return None
    mean_x, mean_y = fmean(x for x, _ in pairs), fmean(y for _, y in pairs)
    spread = math.sqrt(sum((x - mean_x) ** 2 for x, _ in pairs) * sum((y - mean_y) ** 2 for _, y in pairs))
    return sum((x - mean_x) * (y - mean_y) for x, y in pairs) / spread if spread > 0 else 0.0


def trace(points: Sequence[tuple[float, float]]) -> Trace:
    """Energy over time from moments [s] and joules so far [J]. Raises UsageError if they are too few or fall."""
    if len(points) < 2:
        raise UsageError(
            f"{len(points)} usable rows in a log",
            "power needs two moments",
            "log for some minutes, over several loads",
        )
    for (t0, e0), (t1, e1) in pairwise(points):
        if t1 <= t0 or not e1 >= e0 - 1e-6:
            raise UsageError(
                f"at {iso(t1)} the {'time stands still' if t1 <= t0 else 'energy falls'}",
                "a clock that was set or a counter that was cleared breaks the log in two",
                "cut the log so that it holds one unbroken part",
            )
    return Trace(times_s=tuple(t for t, _ in points), energy_j=tuple(e for _, e in points))


def _spans(rows: Sequence[tuple[float, float, str]]) -> Iterator[tuple[str, float, float]]:
    """Load steps as a log names them, each from its first row to its last."""
    begin = 0
    for i in range(1, len(rows) + 1):
        if i == len(rows) or rows[i][2] != rows[begin][2]:
            if rows[begin][2] and i - 1 > begin:
                yield rows[begin][2], rows[begin][0], rows[i - 1][0]
            begin = i


def moment(text: str, utc_offset_h: float | None) -> float:
    """Seconds since 1970 of an ISO 8601 time, a date such as 31.12.2025, or a count of s, ms, us or ns since 1970.

    Raises:
        ValueError: if it is none of them, or names no zone and none is given.
    """
    text = text.strip()
    try:
        number = float(text.replace(",", "."))
    except ValueError:
        dotted = re.fullmatch(r"(\d{1,2})\.(\d{1,2})\.(\d{4})[ ,T]+(\d{1,2})(:.*)", text)
        if dotted:  # the day is first wherever dots are used
            day, month, year, hour, rest = dotted.groups()
            found = datetime.fromisoformat(f"{year}-{month:0>2}-{day:0>2} {hour:0>2}{rest}")
        else:
            found = datetime.fromisoformat(text)
        if found.tzinfo is None:
            if utc_offset_h is None:
                raise ValueError(f"time {text!r} names no zone") from None
            found = found.replace(tzinfo=timezone(timedelta(hours=utc_offset_h)))
        number = found.timestamp()
    else:
        number /= next((per_s for per_s in (1e9, 1e6, 1e3) if number >= _EPOCH_S[0] * per_s), 1.0)
    if not _EPOCH_S[0] <= number < _EPOCH_S[1]:
        raise ValueError(f"time {text!r} lies outside of 2001 to 2286; seconds since a start are no time of day")
    return number


def iso(time_s: float) -> str:
    """A moment in ISO 8601, for messages."""
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="seconds")


def read_text(path: Path) -> str:
    """The text of a file in UTF-8. Raises UsageError if it is not there, or something else."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} cannot be read ({error})",
            "there is nothing to calibrate with",
            "name a CSV file in UTF-8 that you may read",
        ) from error

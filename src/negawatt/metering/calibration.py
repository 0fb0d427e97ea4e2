"""Calibration: what a wall meter would show, from what this host's own sensors show.

    wall_w = offset_w + gain * metered_w

One line per host and set of sensors, fitted by least squares on mean powers at several loads. The offset stands for
what no sensor sees and no load changes (fans, disks, board), the gain for what grows with the load (power supply,
regulators). The error that is stated is that at a load the line has not seen: every level is predicted from the others.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from statistics import fmean

from negawatt.core.codec import from_json, to_json
from negawatt.core.errors import NegawattError, ScopeMismatchError, UsageError
from negawatt.core.host import Host
from negawatt.core.reading import Reading, total
from negawatt.hardware.host import this_host

LEVELS = 3
"""Fewer levels say nothing of the error: two always lie on a line."""
RANGE_FRACTION = 0.2
"""The lowest level has to be this much below the highest one, or noise makes the slope."""
SAME_LEVEL_FRACTION = 0.1
"""Unlabelled points closer than this part of the range are one level."""
DOUBTFUL_FRACTION, REFUSED_FRACTION = 0.1, 0.5
"""Left-out errors above which a line is doubted, and not kept. The public runs of arXiv 2509.22092 leave 3 to 6 %."""
LOWEST_GAIN = 0.5  # W per W
"""A power supply adds to what it feeds: a wall meter that rises by less than half of it is read in a wrong unit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """Mean powers over one window.

    Attributes:
        metered_w: by this host's sensors [W].
        wall_w: by the wall meter [W].
        level: name of the load step, or "" where it is told from the power.
    """

    metered_w: float
    wall_w: float
    level: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """The line of one host and set of sensors.

    Attributes:
        fingerprint: of the host (`Host.fingerprint`).
        scopes, sensors: what was metered, sorted.
        offset_w: wall power at no metered power [W].
        gain: watts at the wall per metered watt.
        error_fraction: mean absolute error of wall power at a level left out of the fit.
        error_sd_fraction: root mean square of the same.
        n: points.
        levels: load levels among them.
        metered_mean_w, metered_sd_w: mean and standard deviation of the levels' metered power [W].
        lag_s: the wall meter's clock less this host's, where two logs were aligned [s].
        created_utc: when it was fitted, ISO 8601.
    """

    fingerprint: str
    scopes: tuple[str, ...]
    sensors: tuple[str, ...]
    offset_w: float
    gain: float  # W per W
    error_fraction: float
    error_sd_fraction: float
    n: int
    levels: int
    metered_mean_w: float
    metered_sd_w: float
    lag_s: float | None = None
    created_utc: str

    def wall_w(self, metered_w: float) -> float:
        """Power at the wall [W]."""
        return max(0.0, self.offset_w + self.gain * metered_w)

    def wall_energy_j(
        self, readings: Sequence[Reading], time_s: float, host: Host | None = None
    ) -> tuple[float, float]:
        """Energy at the wall over one window.

        Args:
            readings: of exactly the scopes and sensors that were calibrated.
            time_s: length of the window [s].
            host: where they were taken; None: this host.

        Returns:
            Energy and its standard deviation [J]: that of a level left out of the fit, growing with the distance from
            the levels that were fitted as the error of any fitted line does, and the readings' random error.

        Raises:
            ScopeMismatchError: if they are of other scopes, sensors, or of another host.
        """
        scopes, sensors = _names(reading.scope for reading in readings), _names(r.sensor for r in readings)
        fingerprint = (host or this_host()).fingerprint()
        if (fingerprint, scopes, sensors) != (self.fingerprint, self.scopes, self.sensors):
            raise ScopeMismatchError(
                f"readings of {', '.join(scopes)} by {', '.join(sensors)} on {fingerprint}, but the calibration is of "
                f"{', '.join(self.scopes)} by {', '.join(self.sensors)} on {self.fingerprint}",
                "the offset is what these very sensors do not see on this very host",
                "calibrate this host with these sensors: `negawatt calibrate --help`",
            )
        metered_j, _ = total(readings, time_s)
        energy_j = self.wall_w(metered_j / time_s) * time_s if time_s > 0 else 0.0
        distance = (metered_j / time_s - self.metered_mean_w) / self.metered_sd_w if time_s > 0 else 0.0
        line_sd_j = self.error_sd_fraction * energy_j * math.sqrt(1 + distance**2 / self.levels)
        return energy_j, math.hypot(line_sd_j, *(self.gain * reading.random_sd_j for reading in readings))


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One load level of a fit.

    Attributes:
        name: as it was called, or its metered power.
        metered_w, wall_w: mean powers [W].
        predicted_w: wall power by a line through the other levels [W].
    """

    name: str
    metered_w: float
    wall_w: float
    predicted_w: float


def fit(
    points: Sequence[Point],
    host: Host,
    scopes: Sequence[str],
    sensors: Sequence[str],
    *,
    lag_s: float | None = None,
    below: bool = False,
) -> tuple[Calibration, tuple[Level, ...]]:
    """Fit the line, and say what error it leaves.

    Args:
        points: mean powers over windows.
        host: where.
        scopes: what was metered.
        sensors: by what.
        lag_s: the wall meter's clock less the host's, if they were aligned [s].
        below: whether the wall meter may show less than was metered, as where the sensors only estimate.

    Returns:
        The calibration, and what it comes to at every level.

    Raises:
        UsageError: if the points are too few, too close, or the wall meter does not rise with them, or
            shows less than its parts.
    """
    _check(points)
    groups = grouped(points)
    means = [fmean(p.metered_w for p in group) for group in groups.values()]
    lowest, highest = min(means, default=0.0), max(means, default=0.0)
    if len(groups) < LEVELS or highest - lowest < RANGE_FRACTION * highest:
        raise UsageError(
            f"{len(points)} points at {len(groups)} levels from {lowest:.4g} to {highest:.4g} W metered",
            f"a line with a stated error needs {LEVELS} levels over at least {100 * RANGE_FRACTION:.0f} % of the top",
            "add idle, half and full load: `negawatt calibrate load --out metered.csv` makes the steps",
        )
    offset_w, gain = _line(points)
    _check_rising(gain)
    if not below:
        _check_above(groups, gain)
    levels, absolute, squares = _left_out(groups)
    mean_w = fmean(means)
    calibration = Calibration(
        fingerprint=host.fingerprint(),
        scopes=_names(scopes),
        sensors=_names(sensors),
        offset_w=offset_w,
        gain=gain,
        error_fraction=fmean(absolute),
        error_sd_fraction=math.sqrt(fmean(squares)),
        n=len(points),
        levels=len(groups),
        metered_mean_w=mean_w,
        metered_sd_w=math.sqrt(fmean((m - mean_w) ** 2 for m in means)),
        lag_s=lag_s,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    return calibration, tuple(levels)


def _check_rising(gain: float) -> None:
    if gain <= 0:
        raise UsageError(
            f"the wall meter falls where the metered power rises ({gain:.3g} W per W)",
            "these two do not measure the same machine at the same time",
            "check the columns and the clocks: `--power-column`, `--energy-column`, `--utc-offset`",
        )


def _left_out(groups: Mapping[str, list[Point]]) -> tuple[list[Level], list[float], list[float]]:
    """Every level by a line through the others, with mean absolute and mean squared error of its points, relative."""
    levels, absolute, squares = [], [], []
    for name, group in groups.items():
        offset_w, gain = _line([point for other, others in groups.items() if other != name for point in others])
        off = [(offset_w + gain * p.metered_w) / p.wall_w - 1 for p in group]
        absolute.append(fmean(abs(error) for error in off))
        squares.append(fmean(error**2 for error in off))
        metered_w, wall_w = fmean(p.metered_w for p in group), fmean(p.wall_w for p in group)
        levels.append(Level(name=name, metered_w=metered_w, wall_w=wall_w, predicted_w=offset_w + gain * metered_w))
    return levels, absolute, squares


def grouped(points: Sequence[Point]) -> Mapping[str, list[Point]]:
    """Points by level: by its name, else those that lie close together by their metered power."""
    if not points:
        return {}
    powers = [p.metered_w for p in points]
    gap_w = SAME_LEVEL_FRACTION * (max(powers) - min(powers))
    groups: dict[str, list[Point]] = {}
    first_w, name = -math.inf, ""
    for point in sorted(points, key=lambda p: p.metered_w):
        if point.level:
            groups.setdefault(point.level, []).append(point)
            continue
        if point.metered_w - first_w > gap_w:
            first_w, name = point.metered_w, f"{point.metered_w:.4g} W"
        groups.setdefault(name, []).append(point)
    return groups


def _check(points: Sequence[Point]) -> None:
    for point in points:
        if not (math.isfinite(point.metered_w) and point.metered_w >= 0 and 0 < point.wall_w < math.inf):
            raise UsageError(
                f"{point.metered_w:.4g} W metered and {point.wall_w:.4g} W at the wall",
                "powers are finite, and a wall meter in front of a running machine shows more than nothing",
                "check the columns, or leave that point out",
            )


def _check_above(groups: Mapping[str, list[Point]], gain: float) -> None:
    """Raise UsageError if the wall meter shows less than the sensors, or hardly rises with them."""
    metered, wall = max((fmean(p.metered_w for p in g), fmean(p.wall_w for p in g)) for g in groups.values())
    lower = all(fmean(p.wall_w for p in group) < fmean(p.metered_w for p in group) for group in groups.values())
    if lower or gain < LOWEST_GAIN:
        raise UsageError(
            f"the wall meter shows {wall:.4g} W where {metered:.4g} W were metered, and rises by {gain:.3g} W per W",
            "it cannot show less than the parts behind it; most often kW were read as W, or kWh as Wh",
            "say its unit: `--power-unit kW`, `--energy-unit kWh`; if right, and the sensors only estimate: `--below`",
        )


def _line(points: Sequence[Point]) -> tuple[float, float]:
    """Offset and slope by least squares."""
    x, y = [p.metered_w for p in points], [p.wall_w for p in points]
    mean_x, mean_y = fmean(x), fmean(y)
    spread = sum((one - mean_x) ** 2 for one in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread if spread > 0 else 0.0
    return mean_y - slope * mean_x, slope


def _names(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(set(names)))


def default_path() -> Path:
    """Where calibrations are kept: $NEGAWATT_CALIBRATION, else `calibration.json` in the user's state folder.

    Raises:
        UsageError: if the user has no home.
    """
    named = os.environ.get("NEGAWATT_CALIBRATION")
    try:
        if named:
            return Path(named).expanduser()
        return _state_folder() / "calibration.json"
    except RuntimeError as error:
        raise UsageError(
            f"no place for calibrations: {error}",
            "joules at the wall rest on one",
            "name one: NEGAWATT_CALIBRATION=PATH",
        ) from error


@cache
def _state_folder() -> Path:
    """The user's state folder, looked for once: it is asked for at the end of every run."""
    from platformdirs import user_state_path

    return user_state_path("negawatt", appauthor=False)


def kept(path: Path | None = None) -> tuple[Calibration, ...]:
    """All calibrations in a file; none if there is no file. Raises UsageError if it cannot be read or understood."""
    chosen = path is not None or "NEGAWATT_CALIBRATION" in os.environ
    try:
        path = path or default_path()
    except UsageError:
        if chosen:
            raise
        return ()
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return tuple(from_json(Calibration, one, f"{path}: calibration") for one in found["calibrations"])
    except FileNotFoundError:
        return ()
    except OSError as error:
        if isinstance(error, PermissionError) and not chosen and not os.access(path.parent, os.X_OK):
            return ()  # HOME is another user's, as in many a container: nothing can have been kept there by this one
        raise UsageError(
            f"{path} cannot be read ({error.strerror})",
            "what is kept there would be lost or left out unseen",
            "name another file: `NEGAWATT_CALIBRATION=PATH`",
        ) from error
    except (ValueError, TypeError, KeyError) as error:
        raise UsageError(
            f"{path} holds no calibrations ({type(error).__name__}: {error})",
            "joules at the wall would rest on a file that is half understood",
            f"remove it (`rm {path}`) and calibrate again",
        ) from error


def fault(calibration: Calibration) -> NegawattError | None:
    """Why a calibration is not worth keeping; None if it is."""
    if calibration.error_fraction <= REFUSED_FRACTION:
        return None
    return NegawattError(
        f"the line errs by {100 * calibration.error_fraction:.0f} % at a load left out",
        f"over {100 * REFUSED_FRACTION:.0f} % it would spoil figures rather than correct them; nothing was kept",
        "measure again: longer steps (`--seconds 300`), nothing else running, the machine alone on the wall meter",
    )


def load(host: Host, scopes: Sequence[str], sensors: Sequence[str], path: Path | None = None) -> Calibration | None:
    """The calibration of a host and exactly these scopes and sensors; None if there is none.

    Args:
        host: where.
        scopes: what is metered, in any order.
        sensors: by what, in any order.
        path: the file; None: `default_path`.

    Raises:
        UsageError: if the file cannot be understood.
    """
    key = (host.fingerprint(), _names(scopes), _names(sensors))
    return next((one for one in kept(path) if _key(one) == key), None)


def save(calibration: Calibration, path: Path | None = None) -> Path:
    """Keep a calibration in place of an earlier one of the same host, scopes and sensors.

    Returns:
        The file.

    Raises:
        NegawattError: if it cannot be written, or errs too much (`fault`).
        UsageError: if the file is there and cannot be understood.
    """
    wild = fault(calibration)
    if wild:
        raise wild
    path = path or default_path()
    others = [one for one in kept(path) if _key(one) != _key(calibration)]
    text = json.dumps({"calibrations": [to_json(one) for one in [*others, calibration]]}, indent=1, allow_nan=False)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        raise NegawattError(
            f"{path} cannot be written ({error.strerror})",
            "the calibration would be lost with this terminal",
            "name another file: `NEGAWATT_CALIBRATION=PATH negawatt calibrate ...`",
        ) from error
    return path


def _key(calibration: Calibration) -> tuple[str, tuple[str, ...], tuple[str, ...]]:
    return calibration.fingerprint, calibration.scopes, calibration.sensors

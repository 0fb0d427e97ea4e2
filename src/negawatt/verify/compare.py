"""Compare: two arms over their blocks, as intervals of the log ratio of what they used per unit of work.

One block gives one number, because the runs in it share the state of the machine: n counts blocks, never runs or
samples. For a block, r = mean ln(e_base) - mean ln(e_arm). Over blocks the interval of r is mean ± t(n - 1) s / sqrt(n)
(Student, Biometrika 6 (1908) 1), and the saving is F = 1 - exp(-r).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from negawatt.core.measurement import Measurement
from negawatt.core.pace import Pace
from negawatt.core.reading import Source, weakest
from negawatt.core.saving import Interval
from negawatt.verify.student import t_quantile

Runs = tuple[Measurement, ...]
_LOG_LIMIT = 700.0  # exp() of more overflows; a ratio of e^700 is "unknown" in every unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The runs of two arms, block by block, all of the same scopes and with equally many corners.

    Attributes:
        arm: runs of the setting that is judged, one tuple per block.
        base: runs of the baseline, one tuple per block.
        alpha_fraction: probability with which an interval may miss, both sides together.
        pace: what counts as time.
    """

    arm: tuple[Runs, ...]
    base: tuple[Runs, ...]
    alpha_fraction: float
    pace: Pace = field(default_factory=Pace)

    def __post_init__(self) -> None:
        if not len(self.arm) == len(self.base) >= 2:
            raise ValueError(f"two blocks or more on both sides, got {len(self.arm)} and {len(self.base)}")

    @property
    def n(self) -> int:
        """Blocks."""
        return len(self.arm)

    @property
    def evidence(self) -> Source:
        """The weakest source on either side."""
        return weakest(m.source for m in self._runs())

    def energy(self) -> Interval:
        """The saving of energy per unit of work, as a fraction, meter error included."""
        return self._saving(lambda m: m.energy_per_work_j)

    def corners(self) -> tuple[Interval, ...]:
        """The saving at each corner of the power model's parameter range; empty if all energy was measured."""
        return tuple(self._saving(_corner(i)) for i in range(len(self.arm[0][0].corner_energies_j())))

    def has_range(self) -> bool:
        """Whether every energy that was not measured is priced over a range."""
        return all(r.source.measured or r.corners_j for m in self._runs() for r in m.readings)

    def slowdown(self) -> Interval:
        """Change of the time that counts, as a fraction; positive is slower."""
        r = _interval(self._log_ratios(self.pace.time_s), self.alpha_fraction)
        return Interval(value=math.expm1(-r.value), low=math.expm1(-r.high), high=math.expm1(-r.low))

    def slowest_s(self, alpha_fraction: float) -> float:
        """The one-sided upper limit of the arm's time [s], which misses with probability `alpha_fraction`.

        Of the geometric mean over the blocks: times scatter by factors.
        """
        return math.exp(-lower_limit([-_mean_log(block, self.pace.time_s) for block in self.arm], alpha_fraction))

    def quality_change(self) -> Interval | None:
        """Quality of the arm minus that of the baseline; None unless every run reports it."""
        arm, base = block_quality(self.arm), block_quality(self.base)
        if arm is None or base is None:
            return None
        return _interval([a - b for a, b in zip(arm, base, strict=True)], self.alpha_fraction)

    def meter_sd(self) -> float:
        """Standard deviation that the meter's own error puts on the mean log ratio of energies.

        A sensor's unknown constant power o changes ln(E_base / E_arm) by o (T_base / E_base - T_arm / E_arm), and its
        unknown factor g by g times the difference of the shares that it has in the two totals: nothing, if one sensor
        measured all. Errors that differ from window to window are in the scatter of the blocks already.
        """
        arm, base = (_exposure([m for block in side for m in block]) for side in (self.arm, self.base))
        return math.hypot(*(base.get(key, 0.0) - arm.get(key, 0.0) for key in sorted({*arm, *base})))

    def _runs(self) -> list[Measurement]:
        return [m for side in (self.arm, self.base) for block in side for m in block]

    def _log_ratios(self, value: Callable[[Measurement], float]) -> list[float]:
        return [_mean_log(b, value) - _mean_log(a, value) for a, b in zip(self.arm, self.base, strict=True)]

    def _saving(self, value: Callable[[Measurement], float]) -> Interval:
        r = _interval(self._log_ratios(value), self.alpha_fraction, self.meter_sd())
        f = [-math.expm1(-min(max(x, -_LOG_LIMIT), _LOG_LIMIT)) for x in (r.value, r.low, r.high)]
        return Interval(value=f[0], low=f[1], high=f[2])


def block_quality(side: Sequence[Runs]) -> list[float] | None:
    """Mean quality per block; None unless every run reports one."""
    means = []
    for block in side:
        found = [m.quality for m in block if m.quality is not None]
        if len(found) < len(block):
            return None
        means.append(math.fsum(found) / len(found))
    return means


def lower_limit(values: Sequence[float], alpha_fraction: float) -> float:
    """The one-sided lower limit of the mean, which misses with probability `alpha_fraction`."""
    return _interval(values, 2 * alpha_fraction).low


def _interval(values: Sequence[float], alpha_fraction: float, systematic_sd: float = 0.0) -> Interval:
    """Mean ± t s / sqrt(n), with an error common to all values added in quadrature at the same level."""
    n = len(values)
    mean = math.fsum(values) / n
    standard_error = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1) / n)
    cumulative = 1 - alpha_fraction / 2
    half = math.hypot(t_quantile(cumulative, n - 1) * standard_error, NormalDist().inv_cdf(cumulative) * systematic_sd)
    return Interval(value=mean, low=mean - half, high=mean + half)


def _mean_log(block: Runs, value: Callable[[Measurement], float]) -> float:
    return math.fsum(math.log(value(m)) for m in block) / len(block)


def _corner(index: int) -> Callable[[Measurement], float]:
    return lambda m: m.corner_energies_j()[index] / m.work_units


def _exposure(runs: Sequence[Measurement]) -> dict[tuple[str, str], float]:
    """By sensor and kind of error: change of the mean ln(E) of some runs if that error is one standard deviation."""
    parts: dict[tuple[str, str], float] = {}
    for m in runs:
        for reading in m.readings:
            offset = reading.offset_sd_w * m.time_s / m.energy_j
            gain = reading.gain_sd_fraction * reading.energy_j / m.energy_j
            for kind, part in (("offset", offset), ("gain", gain)):
                key = (reading.sensor, kind)
                parts[key] = parts.get(key, 0.0) + part / len(runs)
    return parts

"""Judge: from a comparison to a Saving with its verdict, and the reasons when nothing may be claimed."""

from __future__ import annotations

from dataclasses import dataclass, field

from negawatt.core.pace import Pace
from negawatt.core.plan import Keep
from negawatt.core.reading import Source
from negawatt.core.saving import Baseline, Interval, Saving, Verdict
from negawatt.core.workload import Phase
from negawatt.verify.compare import Comparison, block_quality, lower_limit

MIN_BLOCKS = 3
"""Fewer blocks show nothing: with two, one degree of freedom carries the whole scatter."""
CONFIDENCE_FRACTION = 0.95
"""Probability that the interval of a finished proof covers the truth, its looks together."""
_ROUNDING = 1e-9  # of a bound: a loss of 0.98 - 0.97 is not above a margin of 0.01 because of its last digit


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What was promised before the runs.

    Attributes:
        phase: the phase.
        against: the baseline.
        keep: the quality to keep.
        limit_alpha_fraction: probability with which a one-sided limit, of the quality or of the p99, may miss at this
            look.
        pace: what counts as time, and how much of it is accepted.
    """

    phase: Phase
    against: Baseline
    keep: Keep
    limit_alpha_fraction: float
    pace: Pace = field(default_factory=Pace)


def judge(compared: Comparison, terms: Terms, timed: Comparison | None) -> Saving:
    """The saving and its verdict.

    Args:
        compared: the arm beside the baseline of `terms`.
        terms: what was promised.
        timed: the arm beside the baseline that `pace.max_slowdown` refers to; None: the arm is that baseline.
    """
    energy, corners = compared.energy(), compared.corners()
    measured = compared.evidence.measured
    enough = compared.n >= MIN_BLOCKS
    if enough and all(i.high < 0 for i in (energy, *corners)) and (measured or corners):
        verdict = Verdict.WORSE
        span = f"{-energy.high:.1%} to {-energy.low:.1%}"
        reasons = [f"It used {-energy.value:.1%} more energy per unit of work ({span}, {compared.n} blocks)."]
    else:
        reasons = [
            *([] if enough else [f"Only {compared.n} blocks were run; at least {MIN_BLOCKS} are needed."]),
            *_energy_reasons(energy, corners, compared),
            *_quality_reasons(compared, terms),
            *_promise_reasons(compared, terms),
            *_slowdown_reasons(timed, terms),
        ]
        shown = Verdict.VERIFIED if measured else Verdict.INDICATIVE
        verdict = Verdict.NOT_SHOWN if reasons else shown
    return Saving(
        phase=terms.phase,
        against=terms.against,
        fraction=energy.value,
        ci_low=min(i.low for i in (energy, *corners)),
        ci_high=max(i.high for i in (energy, *corners)),
        level_fraction=CONFIDENCE_FRACTION,
        n=compared.n,
        evidence=compared.evidence,
        verdict=verdict,
        reasons=tuple(reasons),
        corners=corners,
        slowdown=compared.slowdown(),
        quality_change=compared.quality_change(),
    )


def _span(interval: Interval) -> str:
    return f"interval {interval.low:.1%} to {interval.high:.1%}"


def _energy_reasons(energy: Interval, corners: tuple[Interval, ...], compared: Comparison) -> list[str]:
    reasons = []
    if energy.low <= 0 <= energy.high:
        reasons.append(
            f"The saving of {energy.value:.1%} may be chance: its {_span(energy)} includes zero after "
            f"{compared.n} blocks."
        )
    if compared.evidence is Source.DECLARED:
        reasons.append("The energy was declared by somebody, so nothing was observed.")
    elif not compared.has_range():
        reasons.append(
            f"The energy is {compared.evidence} without a range of its model's parameters, so the sign may depend on "
            "the model."
        )
    if energy.low > 0 and corners:
        i, worst = min(enumerate(corners), key=lambda pair: pair[1].low)
        if worst.low <= 0:
            reasons.append(
                f"The saving depends on the power model: at corner {i + 1} of {len(corners)} of its parameter range it "
                f"is {worst.value:.1%} ({_span(worst)})."
            )
    elif energy.high < 0 and corners:
        i, best = max(enumerate(corners), key=lambda pair: pair[1].high)
        if best.high >= 0:
            corner = f"corner {i + 1} of {len(corners)} of the power model's parameter range ({_span(best)})"
            reasons.append(f"It seems to cost {-energy.value:.1%} more energy, but not at {corner}.")
    return reasons


def _quality_reasons(compared: Comparison, terms: Terms) -> list[str]:
    """Non-inferiority on blocks: the one-sided limit must keep the promise, which was made before the runs."""
    keep = terms.keep
    arm, base = block_quality(compared.arm), block_quality(compared.base)
    if arm is None or base is None:
        side = "the setting" if arm is None else f"the {terms.against} baseline"
        return [f"No {keep.metric} was reported by every run of {side}, so nothing says that it was kept."]
    if keep.bound is not None:
        limit, least = lower_limit(arm, terms.limit_alpha_fraction), keep.bound
        if limit >= least - _ROUNDING * abs(least):
            return []
        return [
            f"The {keep.metric} could be as low as {limit:.4g}, below the {least:.4g} to keep ({compared.n} blocks)."
        ]
    changes = [a - b for a, b in zip(arm, base, strict=True)]
    limit = lower_limit(changes, terms.limit_alpha_fraction)
    if limit >= -keep.margin - _ROUNDING * max(abs(x) for x in (*arm, *base)):
        return []
    lost = f"The {keep.metric} could be {-limit:.4g} lower than with the {terms.against} baseline"
    return [f"{lost}; {keep.margin:.4g} was allowed ({compared.n} blocks)."]


def _promise_reasons(compared: Comparison, terms: Terms) -> list[str]:
    """As a quality that is promised: the one-sided limit must keep it."""
    if terms.pace.p99_s is None:
        return []
    slowest_s = compared.slowest_s(terms.limit_alpha_fraction)
    if slowest_s <= terms.pace.p99_s:
        return []
    promised = f"beyond the promised {1e3 * terms.pace.p99_s:.4g} ms ({compared.n} blocks)"
    return [f"The p99 could be as long as {1e3 * slowest_s:.4g} ms, {promised}."]


def _slowdown_reasons(timed: Comparison | None, terms: Terms) -> list[str]:
    most = terms.pace.max_slowdown
    if timed is None or most is None:
        return []
    slower = timed.slowdown().value
    if slower <= most:
        return []
    if terms.pace.served:
        return [f"Its p99 was {slower:.1%} longer; {most:.1%} was allowed."]
    return [f"It took {slower:.1%} more time per unit of work; {most:.1%} was allowed."]

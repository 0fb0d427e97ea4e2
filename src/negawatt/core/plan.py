"""Plan: the settings to use, what they save, what finding them cost, and what was not measured."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field, replace

from negawatt.core.host import Host
from negawatt.core.lever import Setting
from negawatt.core.pace import Pace
from negawatt.core.placement import Outcome
from negawatt.core.reading import NotMeasured, Source, weakest
from negawatt.core.saving import Baseline, Saving, Verdict
from negawatt.core.trial import Trial
from negawatt.core.workload import Phase

SCHEMA = 1
"""Version of the `plan.json` format. 1: first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """The quality promise, fixed before anything is run.

    Attributes:
        metric: name of the workload's quality metric.
        bound: least acceptable value, or None: then the plan may lose at most `margin` against the baseline.
        margin: largest acceptable loss against the baseline, in the unit of the metric.
    """

    metric: str
    bound: float | None  # in the unit of the metric
    margin: float  # in the unit of the metric

    def least(self, baseline: float | None) -> float | None:
        """The least acceptable quality; None if it hangs on a baseline whose quality is not known.

        Args:
            baseline: quality of the baseline, in the unit of the metric.
        """
        if self.bound is not None:
            return self.bound
        return None if baseline is None else baseline - self.margin


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetime:
    """Energy over a model's life under one setting: E_train + E_transform + N * e_infer.

    Attributes:
        train_j: one training run; None if the workload is not trained here.
        transform_j: one transformation of the model (export, quantise).
        infer_per_work_j: inference, per unit of work; None if the workload does not infer here.
        requests: units of inference work over the life.
    """

    train_j: float | None
    transform_j: float
    infer_per_work_j: float | None
    requests: float  # units of work

    @property
    def total_j(self) -> float:
        """Joules of the whole life, the search not included."""
        return (self.train_j or 0.0) + self.transform_j + self.requests * (self.infer_per_work_j or 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class PhasePlan:
    """What was found for one phase.

    Attributes:
        phase: the phase.
        naive, competent, setting: the two baselines and the plan. The plan equals the competent baseline if nothing
            better was shown.
        savings: one per baseline.
        candidate: the setting that was put to the proof, when it is not the plan.
        steps: settings from the competent baseline to the candidate, one lever at a time: the waterfall.
        pace: what counts as its time, and how much of it was accepted.
    """

    phase: Phase
    naive: Setting
    competent: Setting
    setting: Setting
    savings: tuple[Saving, ...]
    candidate: Setting
    steps: tuple[Setting, ...]
    pace: Pace = field(default_factory=Pace)

    def baseline(self, against: Baseline) -> Setting:
        """The setting of a baseline."""
        return self.naive if against is Baseline.NAIVE else self.competent

    def saving(self, against: Baseline) -> Saving | None:
        """The saving against one baseline, if it was proven or refused."""
        return next((saving for saving in self.savings if saving.against == against), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The result of `negawatt plan`, written to `plan.json`.

    Attributes:
        schema: version of this format.
        version: version of negawatt.
        created_utc: ISO 8601.
        workload: name; `path`: what the user pointed at; `unit`: unit of work.
        keep: the quality promise.
        max_slowdown: largest accepted increase of time over the competent default; None: any was, or what `pace` says.
        host: where it was measured.
        phases: one entry per phase.
        lifetimes: per baseline name and "plan".
        search_j: joules of everything that was run to find and prove the plan.
        search_time_s: its wall time.
        outcomes: the lifetime energy of the plan at the sites the user named.
        not_measured: scopes, levers and comparisons left out, with reasons.
        trials: every trial, in order.
    """

    schema: int
    version: str
    created_utc: str
    workload: str
    path: str
    unit: str
    keep: Keep
    max_slowdown: float | None  # fraction
    host: Host
    phases: tuple[PhasePlan, ...]
    lifetimes: dict[str, Lifetime]
    search_j: float
    search_time_s: float
    outcomes: tuple[Outcome, ...]
    not_measured: tuple[NotMeasured, ...]
    trials: tuple[Trial, ...]

    def lifetime_saving(self, against: Baseline) -> float | None:
        """Point estimate of the fraction of lifetime energy saved, search not included; None if nothing to compare."""
        base = self.lifetimes.get(str(against))
        if base is None or base.total_j <= 0:
            return None
        return 1 - self.lifetimes["plan"].total_j / base.total_j

    def limited(self, against: Baseline, phases: Collection[Phase]) -> Lifetime | None:
        """A baseline's life with only some phases as planned; None if either life is not known.

        The plan's inference was measured with the model of the plan's training, whichever phases are asked for.
        """
        base, plan = self.lifetimes.get(str(against)), self.lifetimes.get("plan")
        if base is None or plan is None:
            return None
        train_j = plan.train_j if Phase.TRAIN in phases else base.train_j
        infer = plan if Phase.INFER in phases else base
        return replace(infer, train_j=train_j, requests=base.requests)

    def proven_lifetime_saving(self, against: Baseline, phases: Collection[Phase] = tuple(Phase)) -> Saving | None:
        """The lifetime saving with its interval, from the proofs of the phases; None if a phase was not proven.

        Each phase's interval counts by its share of the baseline's lifetime energy. The phases share the meter and its
        model, so their errors are added as if they were one. A phase in which the plan equals the baseline adds none.

        Args:
            against: the baseline.
            phases: what is limited; the others stay as in the baseline.
        """
        base, life = self.lifetimes.get(str(against)), self.limited(against, phases)
        if base is None or life is None or base.total_j <= 0:
            return None
        fraction = 1 - life.total_j / base.total_j
        infer_j = base.requests * (base.infer_per_work_j or 0.0)
        shares = {Phase.TRAIN: (base.train_j or 0.0) / base.total_j, Phase.INFER: infer_j / base.total_j}
        savings: list[Saving] = []
        for phase in self.phases:
            saving = phase.saving(against)
            if phase.phase not in phases or phase.setting == phase.baseline(against):
                continue
            if saving is None or not saving.shown:
                return None
            savings.append(saving)
        if not savings:
            return None
        parts = [(shares[saving.phase], saving) for saving in savings if saving.phase is not None]
        low = fraction - math.fsum(share * (saving.fraction - saving.ci_low) for share, saving in parts)
        high = fraction + math.fsum(share * (saving.ci_high - saving.fraction) for share, saving in parts)
        evidence = weakest(saving.evidence for saving in savings)
        shown = Verdict.VERIFIED if evidence.measured else Verdict.INDICATIVE
        return Saving(
            phase=None,
            against=against,
            fraction=fraction,
            ci_low=low,
            ci_high=high,
            level_fraction=min(saving.level_fraction for saving in savings),
            n=min(saving.n for saving in savings),
            evidence=evidence,
            verdict=shown if low > 0 else Verdict.NOT_SHOWN,
        )

    def payback_lifetimes(self, against: Baseline) -> float | None:
        """Lifetimes after which the search has paid for itself: E_search / (E_baseline - E_plan); None: never."""
        base = self.lifetimes.get(str(against))
        if base is None:
            return None
        gain_j = base.total_j - self.lifetimes["plan"].total_j
        return self.search_j / gain_j if gain_j > 0 else None

    def payback_requests(self, against: Baseline) -> float | None:
        """Units of inference work after which the search has paid for itself, training included once; None: never."""
        base, plan = self.lifetimes.get(str(against)), self.lifetimes["plan"]
        if base is None or base.infer_per_work_j is None or plan.infer_per_work_j is None:
            return None
        once_j = (base.train_j or 0.0) + base.transform_j - (plan.train_j or 0.0) - plan.transform_j
        left_j = self.search_j - once_j
        if left_j <= 0:
            return 0.0
        per_work_j = base.infer_per_work_j - plan.infer_per_work_j
        return float(math.ceil(left_j / per_work_j)) if per_work_j > 0 else None

    @property
    def evidence(self) -> Source | None:
        """The weakest source of any saving in the plan."""
        sources = [saving.evidence for phase in self.phases for saving in phase.savings]
        return weakest(sources) if sources else None

"""Serving settings: which batch on how many GPUs keeps a latency promise at least joules per token, in a few probes.

A larger batch shares each reading of the weights among more requests: it takes fewer joules per token, and each token
takes longer. So the best setting is nearly always the largest batch that the promise allows, and it is found from
above: try the largest; if it is too slow, its excess says how far down to go; never ask what an answer has ruled out.

    search = ServingSearch(settings, latency_s=0.05)
    while (setting := search.ask()) is not None:
        search.tell(run_for_a_minute(setting))  # a ServingProbe
    search.best  # measured, and within 50 ms; None if nothing was
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import final

from negawatt.core.errors import UsageError

SLOPE = 0.5
"""Latency goes as the batch per device to this power where only one point is known: between 0, when reading the weights
is all the time, and 1, when each request adds as much as the one before."""
SPREAD = 0.5
"""So much of the gain of a larger batch is lost to further devices, as a power of their number: a batch on four of them
is worth half that batch on one."""
STEPS = 3
"""Probes that trust `SLOPE`; from then on each one halves what is left, so that no table takes long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingChoice:
    """What a user can set before a model is served.

    Attributes:
        batch: most requests that are decoded together (vLLM's max_num_seqs).
        devices: how many GPUs share the model.
        parallel: how they share it, in any words ("tensor", "expert"); settings that differ here alone are not
            expected to be like one another.
    """

    batch: int
    devices: int = 1
    parallel: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingProbe:
    """What a setting gave.

    Attributes:
        choice: the setting.
        latency_s: what the promise is about, say the median time between two tokens [s]; infinite if the setting does
            not run at all (out of memory).
        energy_j: per token [J]; of no account if the latency is infinite.
    """

    choice: ServingChoice
    latency_s: float
    energy_j: float = math.inf


@final
class ServingSearch:
    """Finds the setting with the least joules per token that keeps a latency promise, by ask and tell.

    It assumes that a setting is no faster than one with a smaller batch on as many devices or more, and leaves out what
    this rules out. It picks among measured settings by what was measured, so a wrong assumption costs joules or a
    probe, never the promise. It knows nothing of the model and learnt nothing from others.
    `benchmarks/serving_table.py` says how it does, also with other powers: these two were chosen with its data in view.

    It decides from what it was told alone, in whatever order that came, so it can go on after an interruption. A
    setting told again counts with the mean.

    Args:
        choices: the settings, in any order.
        latency_s: the promise [s].
        guard_fraction: how far below the promise a measured latency has to be, because it is noisy: about three
            standard deviations.
        slope, spread: see `SLOPE` and `SPREAD`.

    Raises:
        UsageError: if there is no setting, one twice or one without meaning, or on numbers that mean nothing.
    """

    def __init__(
        self,
        choices: Iterable[ServingChoice],
        *,
        latency_s: float,
        guard_fraction: float = 0.0,
        slope: float = SLOPE,
        spread: float = SPREAD,
    ) -> None:
        found = list(choices)
        if not found or len(set(found)) < len(found) or min(min(c.batch, c.devices) for c in found) < 1:
            raise UsageError(
                f"the serving settings {found}",
                "the search could not tell what it measured",
                "give at least one setting, each once, with batch and devices of at least 1",
            )
        if not (0 < latency_s < math.inf and 0 <= guard_fraction < 1 and 0 < slope < math.inf and 0 <= spread <= 1):
            raise UsageError(
                f"latency_s {latency_s}, guard_fraction {guard_fraction}, slope {slope}, spread {spread}",
                "no setting could be held against it",
                "give latency_s and slope above 0, guard_fraction from 0 to below 1, spread from 0 to 1",
            )
        self._limit_s = latency_s * (1 - guard_fraction)
        self._slope = slope
        self._spread = spread
        self._choices = sorted(found, key=lambda c: (-self._worth(c), c.devices, c.parallel))
        self._told: dict[ServingChoice, list[ServingProbe]] = {}

    def ask(self) -> ServingChoice | None:
        """The setting to measure next, the same until it is told; None when nothing left could be better."""
        left = self._left()
        if not left or not self._told:
            return left[0] if left else None
        known = [choice for choice in self._told if math.isfinite(self._latency_s(choice))]
        if len(self._told) >= STEPS or not known:
            return left[len(left) // 2]
        return next((choice for choice in left if self._expected_s(choice, known) <= self._limit_s), left[-1])

    def tell(self, probe: ServingProbe) -> None:
        """What a setting gave, asked for or not.

        Raises:
            UsageError: if it is none of the settings, or if its latency is not above zero, or its energy is not finite
                and above zero although it ran.
        """
        if probe.choice not in self._choices:
            raise UsageError(
                f"{probe.choice}, which is none of the settings",
                "its figures would be taken for those of another",
                "tell the figures of a setting that was given to the search",
            )
        if not (probe.latency_s > 0 and (probe.latency_s == math.inf or 0 < probe.energy_j < math.inf)):
            raise UsageError(
                f"a latency of {probe.latency_s} s and {probe.energy_j} J per token from {probe.choice}",
                "the pick would be chance",
                "measure it again; if it does not run at all, tell latency_s=math.inf",
            )
        self._told.setdefault(probe.choice, []).append(probe)

    @property
    def best(self) -> ServingChoice | None:
        """The measured setting with the least joules per token that keeps the promise; None: none of them does."""
        kept = [choice for choice in self._choices if self._keeps(choice)]
        return min(kept, key=self._energy_j, default=None)

    def _left(self) -> list[ServingChoice]:
        """What may be better than all that keeps the promise, and is not ruled out; most worth first."""
        kept = [choice for choice in self._told if self._keeps(choice)]
        broken = [choice for choice in self._told if not self._keeps(choice)]
        return [
            choice
            for choice in self._choices
            if choice not in self._told
            and all(self._may_save(choice, good) for good in kept)
            and not any(_no_faster(choice, slow) for slow in broken)
        ]

    def _may_save(self, choice: ServingChoice, good: ServingChoice) -> bool:
        """Whether a setting may take fewer joules than one that keeps the promise.

        How much further devices lose differs from model to model; fewer of them get the benefit of the doubt: that
        they lose everything.
        """
        if choice.devices < good.devices:
            return choice.batch / choice.devices > good.batch / good.devices
        return self._worth(choice) > self._worth(good)

    def _worth(self, choice: ServingChoice) -> float:
        return choice.batch / math.pow(choice.devices, self._spread)

    def _expected_s(self, choice: ServingChoice, known: list[ServingChoice]) -> float:
        """By the nearest setting that is known, of the same devices if there is one."""

        def load(one: ServingChoice) -> float:
            return math.log(one.batch / one.devices)

        def distance(one: ServingChoice) -> tuple[bool, float, int]:
            shared = (one.devices, one.parallel) == (choice.devices, choice.parallel)
            return not shared, abs(load(one) - load(choice)), self._choices.index(one)

        near = min(known, key=distance)
        return self._latency_s(near) * math.exp(self._slope * (load(choice) - load(near)))

    def _keeps(self, choice: ServingChoice) -> bool:
        return choice in self._told and self._latency_s(choice) <= self._limit_s

    def _latency_s(self, choice: ServingChoice) -> float:
        told = self._told[choice]
        return math.fsum(probe.latency_s for probe in told) / len(told)

    def _energy_j(self, choice: ServingChoice) -> float:
        told = self._told[choice]
        return math.fsum(probe.energy_j for probe in told) / len(told)


def _no_faster(choice: ServingChoice, slow: ServingChoice) -> bool:
    """Whether a setting is expected to take at least as long as one that is too slow."""
    comparable = choice.devices < slow.devices or (choice.devices, choice.parallel) == (slow.devices, slow.parallel)
    return comparable and choice.batch >= slow.batch

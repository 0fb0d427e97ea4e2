"""Which of many training runs gets its next epochs, by ask and tell, and the plain rules to compare with.

A loss here is what the run is judged by, lower is better, and a run is worth the lowest it has reached: the weights of
that epoch can be kept. An epoch is the time from one validation to the next.

Two protocols. In a `Race` all runs are there from the beginning and can be suspended and resumed. A sequential rule
sees one run after the other, and can only end the one that is running: `median_rule`, `patience_rule`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import fmean, median
from typing import final

from negawatt.core.errors import UsageError


class Fate(StrEnum):
    """How a run stands."""

    SUSPENDED = "suspended"
    """waits; it may be asked for again, so its state is to be kept"""
    FINISHED = "finished"
    """has had all its epochs"""
    HOPELESS = "hopeless"
    """gave a loss that is no finite number"""
    ENDED = "ended"
    """stopped early: the race is over"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """Epochs for a run: train it until it has had `epoch` of them, and tell the loss of each."""

    run: int
    epoch: int


@final
class Curve:
    """The losses of one run so far, and the lowest up to each epoch."""

    __slots__ = ("broken", "losses", "lows", "shape")

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self.losses: list[float] = []
        self.lows: list[float] = []
        self.broken = False
        """Whether a loss was not finite; nothing is added from there on."""
        self.shape: object = None
        """What a forecast has seen of it, kept until it grows."""
        for loss in losses:
            self.add(loss)

    def add(self, loss: float) -> None:
        """One epoch more."""
        self.broken = self.broken or not math.isfinite(loss)
        if not self.broken:
            self.losses.append(loss)
            self.lows.append(min(loss, self.lows[-1]) if self.lows else loss)

    def __len__(self) -> int:
        return len(self.losses)

    @property
    def low(self) -> float:
        """The lowest loss; infinite without any."""
        return self.lows[-1] if self.lows else math.inf


class Race(ABC):
    """Runs that are trained in turns until the rest is not worth its epochs.

    It is deterministic: what it asks for depends on the losses alone.

    Args:
        runs: how many there are; they are numbered from 0.
        epochs: what a run has if nobody stops it.

    Raises:
        UsageError: if there is no run or no epoch.
    """

    def __init__(self, *, runs: int, epochs: int) -> None:
        if runs < 1 or epochs < 1:
            raise UsageError(
                f"{runs} runs of {epochs} epochs", "there is nothing to choose from", "give at least one of each"
            )
        self.epochs = epochs
        self.curves = tuple(Curve() for _ in range(runs))
        self.spent_epochs = 0
        self._grant: Grant | None = None
        self._over = False

    def ask(self) -> Grant | None:
        """What to train next, the same until it has been told; None when the race is over."""
        grant = self._grant
        if grant and self._open(grant.run) and len(self.curves[grant.run]) < grant.epoch:
            return grant
        self._grant = None if self._over else self._next()
        self._over = self._grant is None
        return self._grant

    def tell(self, run: int, loss: float) -> None:
        """The loss of a run's next epoch. One that is not finite ends the run as hopeless.

        Raises:
            UsageError: for a run that is not in the race, or has no epoch left.
        """
        if not 0 <= run < len(self.curves) or not self._open(run):
            raise UsageError(
                f"a loss of run {run}, of {len(self.curves)} runs" if not 0 <= run < len(self.curves) else
                f"another loss of run {run}, which is {self.fate(run)}",
                "it would be taken for another epoch",
                "tell the losses of the run that was asked for, one per epoch, counted from 0",
            )  # fmt: skip
        self.curves[run].add(loss)
        self.spent_epochs += 1

    def fate(self, run: int) -> Fate:
        """How a run stands."""
        curve = self.curves[run]
        if curve.broken:
            return Fate.HOPELESS
        if len(curve) >= self.epochs:
            return Fate.FINISHED
        return Fate.ENDED if self._over else Fate.SUSPENDED

    @property
    def best(self) -> int | None:
        """The run with the lowest loss so far; None while there is no finite one."""
        run = min(range(len(self.curves)), key=lambda run: self.curves[run].low)
        return run if self.curves[run].lows else None

    @property
    def unspent_epochs(self) -> int:
        """Epochs that were not trained. What they would have used is a modelled saving, not a measured one."""
        return len(self.curves) * self.epochs - self.spent_epochs

    def _open(self, run: int) -> bool:
        return not self.curves[run].broken and len(self.curves[run]) < self.epochs

    def _up_to(self, epoch: int, runs: Sequence[int]) -> Grant | None:
        """The first of some runs that has had fewer epochs."""
        behind = (run for run in runs if self._open(run) and len(self.curves[run]) < epoch)
        return next((Grant(run=run, epoch=epoch) for run in behind), None)

    def _lowest(self, runs: Sequence[int], keep: int) -> list[int]:
        return sorted(runs, key=lambda run: self.curves[run].low)[:keep]

    @abstractmethod
    def _next(self) -> Grant | None:
        """The next grant, when the last one is used up."""


@final
class KeepBest(Race):
    """All runs for the `first` epochs, then the `keep` lowest to their end."""

    def __init__(self, *, runs: int, epochs: int, first: int = 5, keep: int = 3) -> None:
        super().__init__(runs=runs, epochs=epochs)
        self._first = min(first, epochs)
        self._keep = keep
        self._kept: list[int] = []

    def _next(self) -> Grant | None:
        everyone = range(len(self.curves))
        if grant := self._up_to(self._first, everyone):
            return grant
        self._kept = self._kept or self._lowest(everyone, self._keep)
        return self._up_to(self.epochs, self._kept)


@final
class Halving(Race):
    """Successive halving: on rungs that are `eta` times as far each, the lowest 1/eta of the runs go on.

    With `brackets`, as in Hyperband, the runs are dealt out to as many races, each of which begins one rung later than
    the one before: dearer, and kinder to runs that start slowly.
    Sources: K. Jamieson, A. Talwalkar, AISTATS 2016 (arXiv:1502.07943); L. Li et al., JMLR 18, 2018 (arXiv:1603.06560).
    """

    def __init__(self, *, runs: int, epochs: int, eta: int = 3, brackets: int = 1) -> None:
        super().__init__(runs=runs, epochs=epochs)
        if eta < 2 or brackets < 1:
            raise UsageError(
                f"eta {eta}, {brackets} brackets",
                "each rung keeps 1/eta of the runs",
                "use eta from 2, brackets from 1",
            )
        self._eta = eta
        halvings = 0
        while eta ** (halvings + 1) <= runs:
            halvings += 1
        self._rungs = [max(1, round(epochs / eta**k)) for k in range(halvings, -1, -1)]
        self._alive = [list(range(first, runs, brackets)) for first in range(brackets)]
        self._rung = [min(bracket, halvings) for bracket in range(brackets)]

    def _next(self) -> Grant | None:
        for bracket, alive in enumerate(self._alive):
            while True:
                if grant := self._up_to(self._rungs[self._rung[bracket]], alive):
                    return grant
                if self._rung[bracket] + 1 == len(self._rungs):
                    break
                self._rung[bracket] += 1
                alive[:] = self._lowest(alive, math.ceil(len(alive) / self._eta))
        return None


def median_rule(curve: Curve, earlier: Sequence[Curve], *, grace: int = 5, least: int = 3) -> bool:
    """Whether to end a run: its lowest loss is above the median of what earlier runs had on average by this epoch.

    Source: D. Golovin et al., Google Vizier, KDD 2017 (research.google.com/pubs/pub46180.html).

    Args:
        curve: the run.
        earlier: those before it, ended early or not.
        grace: epochs that every run has.
        least: earlier runs that must have come this far.
    """
    epoch = len(curve)
    means = [fmean(other.losses[:epoch]) for other in earlier if len(other) >= epoch]
    return curve.broken or (epoch >= grace and len(means) >= least and curve.low > median(means))


def patience_rule(curve: Curve, *, patience: int = 5, least_gain: float = 0.0) -> bool:
    """Whether to end a run: the last `patience` epochs have not lowered its lowest loss by more than `least_gain`."""
    if curve.broken or len(curve) <= patience:
        return curve.broken
    return curve.lows[-1 - patience] - curve.low <= least_gain

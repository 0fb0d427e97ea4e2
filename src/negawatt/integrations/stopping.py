"""HopelessStop: ends a training run, in any loop, that cannot keep its promise or is no longer worth its joules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from negawatt.core.errors import UsageError
from negawatt.core.reading import Source
from negawatt.tuning.reach import OPTIMISM, lowest_in_reach
from negawatt.tuning.stopping import Curve


@dataclass(frozen=True, slots=True, kw_only=True)
class Unspent:
    """Epochs that were not trained, and what they would have used: a model, never a measured saving.

    Attributes:
        epochs: how many.
        energy_j: as many times the mean joules per epoch so far; None where no joules are known [J].
        source: always `modelled`.
    """

    epochs: int
    energy_j: float | None
    source: Source = Source.MODELLED

    def __str__(self) -> str:
        joules = "joules not known" if self.energy_j is None else f"{self.energy_j:.3g} J"
        return f"{self.epochs} epochs not trained, {joules} ({self.source})"


@final
class HopelessStop:
    """Says after each epoch whether to stop.

        stop = HopelessStop(50, target=0.25)
        for epoch in range(50):
            loss = train_and_validate()
            if stop.update(epoch, loss):
                break
        print(stop.reason, stop.unspent())

    A run is ended when a loss is not finite; when `target` is reached, or out of reach; and when what it may still gain
    is worth less than the energy of the epochs to come. A plateau before a late fall looks like the end: the docs say
    how often that misleads it.

    Args:
        total_epochs: of the full run.
        target: what the run is for, in the unit of the loss; None: no such promise.
        worth_j: energy that one unit less of loss is worth to you; None: never ended for that [J].
        maximise: whether higher is better, as for an accuracy.
        optimism: how many times the gain of the last doubling of epochs each further one may bring.

    Raises:
        UsageError: if a number is not finite, or not positive where it must be.
    """

    def __init__(
        self,
        total_epochs: int,
        *,
        target: float | None = None,
        worth_j: float | None = None,
        maximise: bool = False,
        optimism: float = OPTIMISM,
    ) -> None:
        lowest_in_reach(Curve(), total_epochs, optimism=optimism)
        if (target is not None and not math.isfinite(target)) or (
            worth_j is not None and not (math.isfinite(worth_j) and worth_j > 0)
        ):
            raise UsageError(
                f"target {target}, worth_j {worth_j}",
                "the run would be ended for a promise that nobody can keep",
                "give finite numbers, worth_j above 0, or leave them out",
            )
        self.reason: str | None = None
        """Why the run was ended; None while it goes on."""
        self._total = total_epochs
        self._target = target
        self._worth_j = worth_j
        self._maximise = maximise
        self._optimism = optimism
        self._sign = -1.0 if maximise else 1.0
        self._curve = Curve()
        self._last: int | None = None
        self._energy_j: float | None = None

    def update(self, epoch: int, loss: float, *, energy_j: float | None = None) -> bool:
        """Whether to stop, after an epoch. Once it has said so, it does not change its mind.

        Args:
            epoch: its number, rising; gaps count as one epoch. One that was told before is ignored, so a loop that is
                resumed from a checkpoint may tell it again.
            loss: on validation data.
            energy_j: joules since the beginning of the run, such as those of `meter_training` [J].

        Raises:
            UsageError: if the joules are negative or not finite.
        """
        if energy_j is not None and not (math.isfinite(energy_j) and energy_j >= 0):
            raise UsageError(
                f"energy_j {energy_j}", "what is not spent is priced by it", "give the joules since the run began"
            )
        if self.reason is None and (self._last is None or epoch > self._last):
            self._last = epoch
            self._energy_j = energy_j if energy_j is not None else self._energy_j
            self._curve.add(self._sign * float(loss))
            self.reason = self._verdict(loss)
        return self.reason is not None

    @property
    def best(self) -> float | None:
        """The best loss so far; None before the first finite one."""
        return self._sign * self._curve.low if self._curve.lows else None

    def unspent(self) -> Unspent:
        """What is not trained if the run ends now."""
        epochs = max(self._total - self._told(), 0)
        each = self._epoch_j()
        return Unspent(epochs=epochs, energy_j=None if each is None else epochs * each)

    def state_dict(self) -> dict[str, Any]:
        """All that a checkpoint needs, as plain values."""
        return {
            "losses": list(self._curve.losses),
            "broken": self._curve.broken,
            "last": self._last,
            "energy_j": self._energy_j,
            "reason": self.reason,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            UsageError: if it is not what `state_dict` gave.
        """
        missing = {"losses", "broken", "last", "energy_j", "reason"} - set(state)
        if missing:
            raise UsageError(
                f"a state without {', '.join(sorted(missing))}",
                "the curve so far is what the rule judges by",
                "give what `state_dict()` returned",
            )
        self._curve = Curve([float(loss) for loss in state["losses"]])
        self._curve.broken = bool(state["broken"])
        self._last, self._energy_j, self.reason = state["last"], state["energy_j"], state["reason"]

    def _told(self) -> int:
        return len(self._curve) + self._curve.broken

    def _epoch_j(self) -> float | None:
        told = self._told()
        return None if self._energy_j is None or not told else self._energy_j / told

    def _verdict(self, loss: float) -> str | None:
        """Why to stop, or None."""
        low, left = self._curve.low, self._total - len(self._curve)
        if self._curve.broken:
            return f"the loss of epoch {self._last} is {loss}"
        if left <= 0:
            return None
        reach = lowest_in_reach(self._curve, self._total, optimism=self._optimism)
        if self._target is not None:
            target = self._sign * self._target
            if low <= target:
                return f"the target {self._target:g} is reached"
            if reach > target:
                return f"the target {self._target:g} is out of reach: at best {self._sign * reach:.4g}"
        each = self._epoch_j()
        if self._worth_j is not None and each is not None and (low - reach) * self._worth_j < left * each:
            return (
                f"{left} more epochs would use {left * each:.3g} J, and gain at most {low - reach:.3g}, "
                f"worth {(low - reach) * self._worth_j:.3g} J"
            )
        return None

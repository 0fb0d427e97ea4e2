"""EnergyCallback for Lightning: every fit is a run, and its epochs and validations are logged."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from negawatt.core.run import Run
from negawatt.integrations.training import BEGIN, Mark, Training, figures


def _bases() -> tuple[Any, ...]:
    """The Callback of `lightning` or of its twin `pytorch_lightning`, whichever the program uses; perhaps both.

    Raises:
        ModuleNotFoundError: if neither is installed.
    """
    twins = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
    used = [name for name in twins if name in sys.modules] or [name for name in twins if find_spec(name)][:1]
    return tuple(import_module(twins[name]).Callback for name in used or twins)


class EnergyCallback(*_bases()):  # type: ignore[misc]  # classes all the same
    """Meter every `fit`, each process of a distributed one for itself: `Trainer(callbacks=[EnergyCallback()])`.

    Loggers get, every `log_every_n_steps` and at the end of every epoch:

    - "energy/total_j": of the fit so far and, if it was resumed from a checkpoint, of the fits before it [J];
    - "energy/per_step_j": per optimizer step since they got it before, without validations in between [J];
    - "power/mean_w": in the same time [W];
    - "energy/epoch_j" and "energy/validation_j", at the end of each; an epoch holds its validations [J].

    These are what this process answers for; loggers get those of rank 0. An exception, Ctrl-C or sys.exit ends the run,
    and is kept with it. Once begun, a meter that fails is logged and ends nothing.

    Args:
        name: what to call the run; None: the model's class.
        sensors: names of sensors; none: every available one, estimates only where nothing measures.
        record: whether it is kept in the ledger, also if it ends by an exception or is killed.
        required: whether a missing meter is an error at the beginning of a fit.
    """

    def __init__(
        self, name: str | None = None, *, sensors: Sequence[str] = (), record: bool = True, required: bool = True
    ) -> None:
        super().__init__()
        self._name = name
        self._sensors = tuple(sensors)
        self._record = record
        self._required = required
        self._training: Training | None = None
        self._forget()

    def _forget(self) -> None:
        """Start with nothing counted."""
        self._before_j = 0.0
        self._edge = self._logged = BEGIN
        self._validation: Mark | None = None
        self._step = 0
        self.parts_j: dict[str, float] = {}
        """Joules of "setup", then of "epoch 0", "epoch 1", ..., each up to the end of that epoch, and, when the fit is
        over, of the "rest": together the run's."""

    @property
    def run(self) -> Run | None:
        """The last fit, when it is over; None also where nothing was metered."""
        return self._training.run if self._training else None

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ANN401 -- of either Lightning
        """Begin with a fit. Raises what Training raises."""
        if stage == "fit":
            self._end(None)
            self._forget()
            self._step = trainer.global_step
            self._training = Training(
                self._name or type(pl_module).__name__,
                sensors=self._sensors,
                record=self._record,
                required=self._required,
            )

    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401, ARG002
        """Set apart what came before the first epoch."""
        if not self.parts_j and (now := self._part("setup")):
            self._step, self._logged = trainer.global_step, now

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *batch: Any) -> None:  # noqa: ANN401, ARG002
        """Count steps, and now and then log."""
        steps, self._step = trainer.global_step - self._step, trainer.global_step
        if self._training is None or steps <= 0:  # gradients are being accumulated
            return
        self._training.did(steps, "step")
        every = trainer.log_every_n_steps
        if trainer.loggers and every and self._step % every < steps and (now := self._training.mark()):
            for logger in trainer.loggers:
                # Lightning counts from 0, so this is where it puts what a model logs in this step.
                logger.log_metrics(figures(now, self._logged, self._before_j), step=self._step - 1)
            self._logged = now

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401
        """Log the epoch."""
        name = f"epoch {trainer.current_epoch}"
        if now := self._part(name):
            _log(pl_module, {**figures(now, self._logged, self._before_j), "energy/epoch_j": self.parts_j[name]})
            self._logged = now

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401, ARG002
        """Begin a window inside the fit's; the check of the validation loop before training is part of the setup."""
        inside = self._training and not self._training.run and not trainer.sanity_checking
        self._validation = self._training.mark(wait=True) if self._training and inside else None

    def on_validation_epoch_end(self, trainer: Any, pl_module: Any) -> None:  # noqa: ANN401, ARG002
        """Log the validation, and leave it out of what training steps took."""
        begin, self._validation = self._validation, None
        now = self._training.mark(wait=True) if self._training and begin else None
        if begin and now:
            energy_j, time_s = now.energy_j - begin.energy_j, now.time_s - begin.time_s
            _log(pl_module, {"energy/validation_j": energy_j})
            logged = self._logged
            self._logged = replace(logged, energy_j=logged.energy_j + energy_j, time_s=logged.time_s + time_s)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:  # noqa: ANN401, ARG002
        """End with what ended the fit."""
        self._end(exception)

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ANN401, ARG002
        """End with the fit."""
        self._end(None)

    def state_dict(self) -> dict[str, Any]:
        """For a checkpoint: joules so far, those of fits before this one included."""
        now = self._training.mark() if self._training else None
        energy_j = self._before_j + (now or self._edge).energy_j
        return {"energy_j": energy_j, "key": self._training.key if self._training else ""}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint's joules; not from one of this same fit, as a learning-rate finder loads."""
        if self._training is None or state_dict["key"] != self._training.key:
            self._before_j = state_dict["energy_j"]

    def _part(self, name: str) -> Mark | None:
        """End a part of the fit now; None if its joules are unknown, and then they are in the next part."""
        now = self._training.mark(wait=True) if self._training else None
        if now:
            self.parts_j[name] = now.energy_j - self._edge.energy_j
            self._edge = now
        return now

    def _end(self, error: BaseException | None) -> None:
        if self._training is None or self._training.run:
            return
        run = self._training.stop(error)
        if run and run.energy_j is not None:
            self.parts_j["rest"] = run.energy_j - self._edge.energy_j


def _log(pl_module: Any, values: dict[str, float]) -> None:  # noqa: ANN401
    # With rank_zero_only, sync_dist exchanges nothing between ranks, but keeps Lightning from warning that it does not.
    pl_module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, sync_dist=True, rank_zero_only=True)

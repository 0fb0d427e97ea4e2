"""EnergyCallback for the Trainer of Hugging Face transformers: every training is a run, and its joules are logged."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

from transformers import Trainer, TrainerCallback

from negawatt.core.run import Run
from negawatt.integrations.training import BEGIN, Training, figures, rank_of_job

TOTAL = "energy/total_j"


class EnergyCallback(TrainerCallback):  # type: ignore[misc]  # a class all the same
    """Meter every `train()`, each process of a distributed one for itself: `Trainer(callbacks=[EnergyCallback()])`.

    What the trainer logs has in it, so that every logger gets it:

    - "energy/total_j": of the training so far and, if it was resumed from a checkpoint, of those before it [J];
    - "energy/per_step_j": per optimizer step since the log before; in the last log of a training, over all of it [J];
    - "energy/per_token_j": the same per input token, where `include_num_input_tokens_seen` counts them [J];
    - "power/mean_w": in the same time [W].

    These are what this process answers for; loggers get those of rank 0. An exception, Ctrl-C or sys.exit ends the run,
    and is kept with it. The trainer does not tell callbacks of these, and tells its loggers first of what is logged, so
    the first EnergyCallback that is made wraps `Trainer.train`: it puts these callbacks first, and ends them.
    Once begun, a meter that fails is logged and ends nothing.

    Args:
        name: what to call the run; None: the model's class.
        sensors: names of sensors; none: every available one, estimates only where nothing measures.
        record: whether it is kept in the ledger, also if it ends by an exception or is killed.
        required: whether a missing meter is an error at the beginning of a training.
    """

    def __init__(
        self, name: str | None = None, *, sensors: Sequence[str] = (), record: bool = True, required: bool = True
    ) -> None:
        self._name = name
        self._sensors = tuple(sensors)
        self._record = record
        self._required = required
        self._training: Training | None = None
        self._on = False
        if not hasattr(Trainer.train, "ends_energy_callbacks"):
            Trainer.train = _ending(Trainer.train)

    @property
    def run(self) -> Run | None:
        """The last training, when it is over; None also where nothing was metered."""
        return self._training.run if self._training else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Begin. Raises what Training raises."""
        if self._on:  # the trainer tries again with a smaller batch: one training
            return
        self._training = Training(
            self._name or type(kwargs["model"]).__name__,
            sensors=self._sensors,
            record=self._record,
            required=self._required,
        )
        self._on = True
        self._logged = BEGIN
        self._tokens = self._tokens_began = self._tokens_logged = state.num_input_tokens_seen
        self._before_j = next((entry[TOTAL] for entry in reversed(state.log_history) if TOTAL in entry), 0.0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Count a step and, where the trainer counts them, tokens."""
        if self._training is None:
            return
        self._training.did(1, "step")
        tokens, self._tokens = state.num_input_tokens_seen - self._tokens, state.num_input_tokens_seen
        if tokens > 0:
            self._training.did(tokens / rank_of_job()[1], "token")  # the trainer counts those of all ranks

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any], **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """Put the joules into what is logged."""
        now = self._training.mark() if self._training and self._on else None
        if now is None:
            return
        last = "train_loss" in logs  # the trainer's summary
        since, tokens_since = (BEGIN, self._tokens_began) if last else (self._logged, self._tokens_logged)
        tokens = (self._tokens - tokens_since) / rank_of_job()[1]
        values = figures(now, since, self._before_j)
        if any(name.startswith("eval_") for name in logs):  # no training step took these joules
            values = {TOTAL: values[TOTAL]}
        elif tokens > 0:
            values["energy/per_token_j"] = (now.energy_j - since.energy_j) / tokens
        logs |= values
        if state.log_history:
            state.log_history[-1] |= values
        self._logged, self._tokens_logged = now, self._tokens

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ANN401, ARG002
        """End with the training."""
        self.end()

    def end(self, error: BaseException | None = None) -> None:
        """End the run under way, if there is one.

        Args:
            error: what ended it, if it was an exception.
        """
        if self._training and self._on:
            self._on = False
            self._training.stop(error)

    def __getstate__(self) -> dict[str, Any]:
        """For searches that start processes with a copy of the trainer: each meters itself."""
        return {**self.__dict__, "_training": None, "_on": False}


def _ending(train: Callable[..., Any]) -> Callable[..., Any]:
    """`Trainer.train`, so that it puts energy callbacks before loggers and ends them with whatever ends it."""

    @functools.wraps(train)
    def train_and_end(trainer: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- as `train`
        handler = trainer.callback_handler
        handler.callbacks.sort(key=lambda callback: not isinstance(callback, EnergyCallback))
        failed = None
        try:
            return train(trainer, *args, **kwargs)
        except BaseException as error:
            failed = error
            raise
        finally:
            for callback in handler.callbacks:
                if isinstance(callback, EnergyCallback):
                    callback.end(failed)

    train_and_end.ends_energy_callbacks = True  # type: ignore[attr-defined]
    return train_and_end

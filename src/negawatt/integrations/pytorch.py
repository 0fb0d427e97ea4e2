"""`meter_training`: any PyTorch training loop as a run, its optimizer steps counted by a hook."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from negawatt.core.errors import UsageError
from negawatt.integrations.training import Training

if TYPE_CHECKING:
    from torch.nn import Module
    from torch.optim import Optimizer


@contextmanager
def meter_training(
    optimizer: Optimizer | Sequence[Optimizer],
    name: str = "training",
    *,
    model: Module | None = None,
    count: Callable[..., Mapping[str, float]] | None = None,
    sensors: Sequence[str] = (),
    record: bool = True,
    required: bool = True,
) -> Iterator[Training]:
    """Meter a training loop.

        with meter_training(optimizer, model=model, count=lambda x: {"sample": len(x)}) as training:
            for x, y in loader:
                ...
        print(training.run)

    An optimizer step is work of the unit "step"; worker processes of a DataLoader count as parts of this process.
    An exception ends the run, is kept with it, and goes on. Once begun, a meter that fails is logged and ends nothing.

    Args:
        optimizer: the one, or all, whose steps to count; also as Accelerate or Fabric prepared it.
        name: what to call it.
        model: whose inputs `count` gets.
        count: called with what the model is called with, in training mode: units of work in it. What it raises ends the
            loop, as an error in the model would.
        sensors: names of sensors; none: every available one, estimates only where nothing measures.
        record: whether it is kept in the ledger, also if it ends by an exception or is killed.
        required: whether a missing meter is an error; without it, that is logged, and nothing is metered.

    Yields:
        The run under way; its `run` is there behind the block.

    Raises:
        UsageError: for a `count` without a model, or an unknown sensor.
        NoMeterError, NeedsPrivilegeError, ScopeMismatchError, SensorError: at the beginning, if required.
    """
    if count is not None and model is None:
        raise UsageError(
            "meter_training(count=...) without a model",
            "work is counted in what the model is called with",
            "add model=MODEL, or leave out `count` and call `training.did(quantity, unit)` in the loop",
        )
    training = Training(name, sensors=sensors, record=record, required=required)
    with ExitStack() as hooks:
        try:
            for one in optimizer if isinstance(optimizer, Sequence) else (optimizer,):
                inner: Any = getattr(one, "optimizer", one)  # Accelerate, Fabric and others wrap it under this name
                hooks.callback(inner.register_step_post_hook(lambda *_: training.did(1, "step")).remove)
            if model is not None and count is not None:
                hook = _counting(training, count)
                hooks.callback(model.register_forward_pre_hook(hook, with_kwargs=True).remove)
            yield training
        except BaseException as error:
            training.stop(error)
            raise
        finally:
            training.stop()


def _counting(training: Training, count: Callable[..., Mapping[str, float]]) -> Callable[..., None]:
    """A hook that adds up the work in a model's inputs."""

    def hook(model: Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if model.training:
            for unit, quantity in count(*args, **kwargs).items():
                training.did(quantity, unit)

    return hook

"""`tune_limits`: tune the power limit of a PyTorch job's devices while it trains, one decision for all its ranks."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, final

from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.tuned import Tuned
from negawatt.hardware.control import Knob
from negawatt.hardware.hand import Hand, take
from negawatt.integrations.training import rank_of_job
from negawatt.levers.devices import of_job
from negawatt.levers.limiting import Limiting, Numbers, Ranks
from negawatt.metering.run import current_run, shared_meter
from negawatt.tuning.objective import Objective
from negawatt.tuning.online import Pace

if TYPE_CHECKING:
    from torch.optim import Optimizer

_log = logging.getLogger("negawatt")


@final
class Limits:
    """How it went, behind the block. Attributes: `tuned`; `reason`, why nothing was tuned, or ""."""

    def __init__(self) -> None:
        self.tuned: Tuned | None = None
        self.reason = ""


@contextmanager
def tune_limits(
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    max_slowdown: float | None = 0.03,
    objective: Objective | None = None,
    knob: Knob = Knob.POWER_LIMIT,
    hand: Callable[..., Hand] = take,
    pace: Pace | None = None,
) -> Iterator[Limits]:
    """Tune the limit of the devices that this job trains on, and put them back as found on any exit.

        with meter_training(optimizer), tune_limits(optimizer, max_slowdown=0.03) as limits:
            ...
        print(limits.tuned or limits.reason)

    Every rank of a torch.distributed job enters the block with its own optimizer; the first one decides for all. Inside
    a metered run, what was tuned is kept with that run. Nothing that fails here ends the training; it is logged.

    Args:
        optimizer: the one, or all, whose steps are counted.
        max_slowdown: steps may take longer by this part; None: any.
        objective: what is wanted, instead of least energy within `max_slowdown`.
        knob: what is limited.
        hand: gets the right to change controls; a test with hardware of its own brings another.
        pace: how long things take; None: as for real devices.

    Yields:
        How it went, filled at the end.

    Raises:
        UsageError: on a slow-down that is none.
    """
    objective = objective or Objective(max_slowdown_fraction=max_slowdown)
    done = Limits()
    with ExitStack() as stack:
        ranks = _ranks()
        limiting: Limiting | None = None
        try:
            limiting = _limiting(stack, objective, knob, ranks, hand, pace)
            _hooked(stack, optimizer, _Steps(limiting))
        except Exception as error:  # noqa: BLE001 -- training goes on without it, and the other ranks must be told
            done.reason = error.reason if isinstance(error, NegawattError) else f"{type(error).__name__}: {error}"
        others = ranks.share((float(limiting is not None),))
        if limiting is not None and not all(told[0] for told in others):
            limiting.close()
            limiting, done.reason = None, "another rank of this job cannot limit its devices"
        if limiting is None:
            _log.warning("limits are left as found: %s", done.reason)
            yield done
            return
        try:
            yield done
        finally:
            done.tuned = limiting.close()
            if (run := current_run()) is not None:
                run.tuned(done.tuned)


def _hooked(stack: ExitStack, optimizer: Optimizer | Sequence[Optimizer], steps: _Steps) -> None:
    """Count the first optimizer's steps until the stack ends. Raises UsageError if it has no hooks."""
    first = optimizer[0] if isinstance(optimizer, Sequence) else optimizer
    inner: Any = getattr(first, "optimizer", first)  # Accelerate, Fabric and others wrap it under this name
    if not hasattr(inner, "register_step_post_hook"):
        raise UsageError(
            f"{type(inner).__name__} has no step hooks",
            "its steps cannot be counted",
            "give the torch.optim.Optimizer in it",
        )
    stack.callback(inner.register_step_post_hook(steps).remove)


@final
class _Steps:
    """Counts steps for the tuning."""

    def __init__(self, limiting: Limiting) -> None:
        self._limiting = limiting
        self._steps = 0

    def __call__(self, *_: object) -> None:
        self._steps += 1
        self._limiting.step(self._steps)


def _limiting(
    stack: ExitStack, objective: Objective, knob: Knob, ranks: Ranks, hand: Callable[..., Hand], pace: Pace | None
) -> Limiting:
    meter = shared_meter(())
    scopes = _own_gpu() or meter.scopes
    held = hand([c.info.address for c in of_job(knob, scopes)], owner=f"training, rank {ranks.rank}")
    stack.callback(_quietly, held.release)
    window = meter.start()
    stack.callback(_quietly, window.stop)
    return Limiting(held, objective, readings=window.readings, clock=time.monotonic, ranks=ranks, pace=pace)


def _quietly(call: Callable[[], object]) -> None:
    """Training goes on; what failed is in the notes of what was tuned, or logged here."""
    try:
        call()
    except NegawattError as error:
        _log.warning("%s", error)


def _own_gpu() -> tuple[str, ...]:
    """The scope of the GPU that this process trains on; none without CUDA, or before the process has chosen one."""
    torch: Any = sys.modules["torch"]
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return ()
    uuid = getattr(torch.cuda.get_device_properties(torch.cuda.current_device()), "uuid", None)
    return (f"gpu:GPU-{uuid}",) if uuid else ()


def _ranks() -> Ranks:
    rank, world = rank_of_job()
    if world == 1:
        return Ranks()
    from torch import distributed

    def share(numbers: Numbers) -> list[Numbers]:
        every: list[Any] = [None] * world
        distributed.all_gather_object(every, numbers)
        return every

    return Ranks(rank=rank, on_host=int(os.environ.get("LOCAL_WORLD_SIZE", world)), share=share)

"""Training: a run of a training loop under the meter, which may fail without the training noticing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar, final

from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.run import Run
from negawatt.metering.run import LiveRun

T = TypeVar("T")
_log = logging.getLogger("negawatt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """How a training run stands at a moment.

    Attributes:
        energy_j: joules that it answers for since its beginning.
        time_s: since its beginning [s].
        steps: since its beginning.
    """

    energy_j: float
    time_s: float
    steps: float  # optimizer steps


BEGIN = Mark(energy_j=0.0, time_s=0.0, steps=0.0)


def figures(now: Mark, since: Mark, before_j: float = 0.0) -> dict[str, float]:
    """What loggers are given, under the names they are given.

    Args:
        now: how the run stands.
        since: an earlier mark: power and joules per step are means since then, and left out if there was no step.
        before_j: joules of the runs that this one resumes [J].
    """
    energy_j, time_s, steps = now.energy_j - since.energy_j, now.time_s - since.time_s, now.steps - since.steps
    values = {"energy/total_j": before_j + now.energy_j}
    if steps > 0 and time_s > 0:
        values |= {"energy/per_step_j": energy_j / steps, "power/mean_w": energy_j / time_s}
    return values


@final
class Training:
    """A training run from its creation until `stop`. Once it has begun, nothing here raises: what fails is logged.

    GPUs that this process uses are waited for at the edges, so that work still in their queues is counted.
    In a job of torch.distributed each process has a run of its own, named with its rank, and answers for its share.

    Args:
        name: what the user calls it.
        sensors: names of sensors; none: every available one, estimates only where nothing measures.
        record: whether it is kept in the ledger, also if it ends by an exception or is killed.
        required: whether a missing meter is an error; without it, that is logged, and nothing is metered.

    Raises:
        UsageError: on an unknown sensor.
        NoMeterError, NeedsPrivilegeError, ScopeMismatchError, SensorError: as LiveRun, if required.
    """

    def __init__(self, name: str, *, sensors: Sequence[str] = (), record: bool = True, required: bool = True) -> None:
        rank, world = rank_of_job()
        self.name = name if world == 1 else f"{name}, rank {rank} of {world}"
        self.run: Run | None = None
        """The run, when it is over; None also where nothing is metered."""
        self._steps = 0.0
        self._said = False
        self._live: LiveRun | None = None
        self._guarded(wait_for_gpus)
        try:
            self._live = LiveRun(self.name, sensors=sensors, record=record)
        except NegawattError as error:
            if required or isinstance(error, UsageError):
                raise
            self._say(error)

    @property
    def key(self) -> str:
        """Names the run on this host, and in the ledger; "" where nothing is metered."""
        return self._live.key if self._live else ""

    def did(self, quantity: float, unit: str) -> None:
        """Count useful work; of the unit "step", optimizer steps. Raises ValueError if it is negative or not finite."""
        if self._live:
            self._live.did(quantity, unit)
        if unit == "step":
            self._steps += quantity

    def mark(self, *, wait: bool = False) -> Mark | None:
        """How it stands; None where nothing is metered, or the joules are unknown.

        Args:
            wait: whether to wait for GPUs first.
        """
        if wait:
            self._guarded(wait_for_gpus)
        return self._guarded(self._mark)

    def stop(self, error: BaseException | None = None) -> Run | None:
        """End it. Idempotent.

        Args:
            error: what ended it, if it was an exception.

        Returns:
            The run; None where nothing is metered, and in a forked child.
        """
        live = self._live
        if live is None or self.run or not live.here:
            return self.run
        self._guarded(wait_for_gpus)
        self.run = self._guarded(lambda: live.stop(error=error))
        if self.run and self.run.energy_j is None:
            self._say(self.run.fault)
        elif self.run and self.run.fault:  # the joules are a part only, or those at the wall are missing
            _log.warning("%s; %s", self.run, self.run.fault)
        elif self.run:
            _log.info("%s", self.run)
        return self.run

    def _mark(self) -> Mark | None:
        live = self._live
        if live is None or not live.here:
            return None
        return Mark(energy_j=live.energy_j, time_s=live.time_s, steps=self._steps)

    def _guarded(self, call: Callable[[], T]) -> T | None:
        try:
            return call()
        except Exception as error:  # noqa: BLE001 -- hours of training are worth more than a number; the reason is logged
            self._say(error)
            return None

    def _say(self, error: Exception | str) -> None:
        if not self._said:
            self._said = True
            _log.warning("the energy of %s is not known: %s", self.name, error)


def rank_of_job() -> tuple[int, int]:
    """This process's rank and how many there are, by torch.distributed; 0 and 1 where that is not in use."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is None or not distributed.is_available() or not distributed.is_initialized():
        return 0, 1
    return distributed.get_rank(), distributed.get_world_size()


def wait_for_gpus() -> None:
    """Wait until the GPUs have done what this process gave them through PyTorch (CUDA or ROCm).

    Devices where it holds no memory are left alone: to ask them would cost each some hundred megabytes.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    for device in range(torch.cuda.device_count()):
        if torch.cuda.memory_reserved(device):
            torch.cuda.synchronize(device)

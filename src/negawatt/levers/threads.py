"""Threads: how many CPUs share the arithmetic. More is faster up to a point, and seldom cheaper."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import final

from negawatt.core.host import Host
from negawatt.core.lever import Choice, Context, LeverInfo, Order
from negawatt.core.workload import Phase, Workload
from negawatt.levers.knob import knob_choices


@final
class Threads:
    """Turns the knob "threads" where the workload has one; else limits the BLAS and OpenMP pools of this process."""

    info = LeverInfo(
        name="threads",
        summary="CPU threads that share the arithmetic",
        phases=(Phase.TRAIN, Phase.INFER),
        order=Order.HOST,
        requires='a knob "threads" of the workload, or a workload in this process, no server, and threadpoolctl',
        evidence="no rule: on the MNIST example with 2 CPUs, two threads took 1.3 times the CPU seconds of one for "
        "1.45 times the speed (float32, batches of 200)",
    )

    def __init__(self, cpus: int | None = None) -> None:
        self._cpus = cpus

    def available(self, host: Host) -> str | None:
        """Only where there is more than one CPU to choose from."""
        return None if host.logical_cpus > 1 else "this host has one CPU, so there is no number of threads to choose"

    def choices(self, workload: Workload) -> Sequence[Choice]:
        """The knob's values; without a knob 1, 2, 4, ... and all CPUs, all being the libraries' default."""
        chosen: list[Choice] = []
        for phase in workload.phases():
            knob = workload.knob(phase, "threads")
            if knob is not None:
                chosen += knob_choices(self.info.name, knob)
            elif self._in_process(workload, phase) and _pools_can_be_limited():
                chosen += self._pool_choices(phase)
        return chosen

    def _in_process(self, workload: Workload, phase: Phase) -> bool:
        """Whether the phase's arithmetic is done here: a server may be anywhere."""
        return workload.in_process and not (workload.served and phase is Phase.INFER)

    def _pool_choices(self, phase: Phase) -> list[Choice]:
        cpus = self._cpus or _usable_cpus()
        counts = sorted({2**k for k in range(cpus.bit_length()) if 2**k <= cpus} | {cpus})
        return [Choice(lever=self.info.name, phase=phase, value=n, naive=n == cpus) for n in counts]

    @contextmanager
    def applied(self, workload: Workload, choice: Choice, context: Context) -> Iterator[Workload]:  # noqa: ARG002
        """Limit the threads and give the pools their former size back on any exit."""
        if workload.knob(choice.phase, "threads") is not None:
            yield workload.with_param(choice.phase, "threads", choice.value)
            return
        from threadpoolctl import threadpool_limits

        with threadpool_limits(limits=int(choice.value)), _torch_threads(int(choice.value)):
            yield workload


@contextmanager
def _torch_threads(count: int) -> Iterator[None]:
    """Torch has a pool of its own, which threadpoolctl does not reach; touched only if the workload imported torch."""
    import sys

    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _pools_can_be_limited() -> bool:
    """Whether threadpoolctl is there; its import, which sets environment variables, is done before any trial."""
    try:
        import threadpoolctl  # noqa: F401
    except ImportError:
        return False
    return True


def _usable_cpus() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


lever = Threads()

"""Runner: one phase of one workload under one setting, metered. Runs inside the worker process."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from negawatt.core.codec import to_json
from negawatt.core.errors import WorkloadError
from negawatt.core.host import Host
from negawatt.core.lever import Lever, Setting
from negawatt.core.measurement import Latency, Measurement, PowerPoint
from negawatt.core.reading import Reading, total
from negawatt.core.workload import (
    Inferable,
    Persistent,
    Phase,
    Progress,
    Replayable,
    Servable,
    Split,
    State,
    Trainable,
    Workload,
)
from negawatt.metering.session import Meter, Window
from negawatt.search import serving

MIN_WINDOW_S = 1.0
"""Inference is repeated in whole passes until the window is this long [s], so that the meter resolves it."""

Watch = Callable[[Progress], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One trial to run.

    Attributes:
        setting: what to apply.
        split: data split to judge the quality on.
        seed: for the workload.
        load_from: folder of the trained model that inference uses; None: none.
        save_to: folder to save the trained model in, or of a server the options of the gateway before it; None: forget.
    """

    setting: Setting
    split: Split
    seed: int
    load_from: Path | None = None
    save_to: Path | None = None


@final
class RunContext:
    """What levers see while a task runs."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.window: Window | None = None
        self._own: list[Reading] = []

    def time_s(self) -> float:
        """A monotonic clock [s]."""
        return time.monotonic()

    def readings(self) -> tuple[Reading, ...]:
        """Energy since the window began, per scope."""
        return self.window.readings() if self.window else ()

    def record(self, reading: Reading) -> None:
        """Use this reading in place of the host's meter."""
        self._own.append(reading)

    @contextmanager
    def metered(self, meter: Meter) -> Iterator[list[Any]]:
        """A window; the yielded list is filled with (readings, time_s, power_curve) at its end."""
        result: list[Any] = []
        self._own.clear()
        _wait_for_accelerator()
        self.window = meter.start()
        try:
            yield result
            _wait_for_accelerator()
        finally:
            readings = self.window.stop()
            result[:] = [tuple(self._own) or readings, self.window.time_s, self.window.power_curve]
            self.window = None


def run(
    workload: Workload, levers: Mapping[str, Lever], task: Task, meter: Meter, watch: Watch, host: Host
) -> Measurement:
    """Apply the setting, run the phase, restore everything.

    Raises:
        WorkloadError, ValueError: if the workload gives no usable result; and whatever the workload itself raises.
    """
    context = RunContext(host)
    with ExitStack() as stack:
        for choice in sorted(task.setting.choices, key=lambda c: levers[c.lever].info.order):
            workload = stack.enter_context(levers[choice.lever].applied(workload, choice, context))
        _reset_peak_memory()
        if task.setting.phase is Phase.TRAIN:
            return _train(workload, task, meter, context, watch)
        state = _load(workload, task)
        if workload.served:
            return _serve(workload, state, task, meter, context)
        if isinstance(workload.target, Replayable):
            return _replay(workload, state, task, meter, context, watch)
        return _infer(workload, state, task, meter, context, watch)


def _load(workload: Workload, task: Task) -> State | None:
    if task.load_from is None:
        return None
    target = workload.target
    assert isinstance(target, Persistent), "the planner saves only what is Persistent"  # noqa: S101 -- narrows the type
    return target.load(task.load_from)


def _train(workload: Workload, task: Task, meter: Meter, context: RunContext, watch: Watch) -> Measurement:
    target, params = workload.target, workload.params(Phase.TRAIN)
    assert isinstance(target, Trainable)  # noqa: S101 -- narrows the type
    rule = workload.stop() if workload.stop else None
    samples = 0.0
    with context.metered(meter) as window:
        state = target.start(params, task.seed)
        steps = target.steps(params, state)
        for progress in map(_plain, steps):
            samples += progress.work
            watch(progress)
            if rule is not None and rule(progress):
                break
        if hasattr(steps, "close"):
            steps.close()  # a shell command saves its model here, inside the window
    if samples <= 0:
        raise _no_work("trained on 0 samples")
    quality = _quality(workload, target.evaluate(state, task.split))
    if task.save_to is not None and isinstance(target, Persistent):
        task.save_to.mkdir(parents=True, exist_ok=True)
        target.save(state, task.save_to)
    return _measurement(window, work=1.0, quality=quality, samples=samples)


def _infer(
    workload: Workload, state: State | None, task: Task, meter: Meter, context: RunContext, watch: Watch
) -> Measurement:
    target, params = workload.target, workload.params(Phase.INFER)
    assert isinstance(target, Inferable)  # noqa: S101 -- narrows the type
    with context.metered(meter) as made:
        predict = target.predictor(params, state)
    requests = target.requests(task.split)
    if not hasattr(requests, "__len__") or not hasattr(requests, "__getitem__"):
        raise WorkloadError(
            f"requests() gave a {type(requests).__name__}",
            "batches are slices of it, and it is gone through more than once",
            "return a list or an array",
        )
    count, size = len(requests), int(params.get("batch_size", 1))
    batches = [slice(i, min(i + size, count)) for i in range(0, count, size)]
    if not batches:
        raise _no_work("has no requests")
    predict(requests[batches[0]])  # warm-up, outside the window
    answers: list[Any] = []
    times: list[float] = []
    passes = 0
    with context.metered(meter) as window:
        began = time.perf_counter()
        while passes == 0 or time.perf_counter() - began < MIN_WINDOW_S:
            for batch in batches:
                asked = time.perf_counter()
                answer = predict(requests[batch])
                times.append(time.perf_counter() - asked)
                if passes == 0:
                    answers.append(answer)
            passes += 1
            watch(Progress(step=passes, work=float(count)))
    quality = _quality(workload, target.score(task.split, answers))
    transform_j = total(made[0], made[1])[0]
    work = float(count * passes)
    return _measurement(window, work=work, quality=quality, samples=work, times=times, transform_j=transform_j)


def _serve(workload: Workload, state: State | None, task: Task, meter: Meter, context: RunContext) -> Measurement:
    target = workload.target
    assert isinstance(target, Servable)  # noqa: S101 -- narrows the type
    calls = serving.calls_of(target, task.split)
    if task.save_to is not None and (options := serving.gateway_options(workload)) is not None:
        task.save_to.mkdir(parents=True, exist_ok=True)
        (task.save_to / serving.OPTIONS).write_text(json.dumps(to_json(options), indent=1), encoding="utf-8")
    with ExitStack() as stack:
        with context.metered(meter) as made:
            service = stack.enter_context(serving.service(workload, state))
        serving.warm_up(service, target)
        with context.metered(meter) as window:
            replies = serving.ask(service, calls)
    quality = _quality(workload, target.judge(task.split, [reply.body for reply in replies]))
    work, transform_j = float(len(calls)), total(made[0], made[1])[0]
    times = [reply.time_s for reply in replies]
    return _measurement(window, work=work, quality=quality, samples=work, times=times, transform_j=transform_j)


def _replay(
    workload: Workload, state: State | None, task: Task, meter: Meter, context: RunContext, watch: Watch
) -> Measurement:
    target, params = workload.target, workload.params(Phase.INFER)
    assert isinstance(target, Replayable)  # noqa: S101 -- narrows the type
    work, quality = 0.0, None
    with context.metered(meter) as window:
        for progress in map(_plain, target.replay(params, state, task.split)):
            work += progress.work
            quality = quality if progress.quality is None else progress.quality
            watch(progress)
    if work <= 0:
        raise _no_work("reported no work")
    return _measurement(window, work=work, quality=_quality(workload, quality), samples=work)


def _plain(progress: object) -> Progress:
    """The user's progress with plain numbers, which every process can read."""
    try:
        step, work, quality = progress.step, progress.work, progress.quality  # type: ignore[attr-defined]
        plain = Progress(step=int(step), work=float(work), quality=None if quality is None else float(quality))
    except (AttributeError, TypeError, ValueError):
        plain = None
    if plain is None or not math.isfinite(plain.work):
        raise WorkloadError(
            f"a training step gave {progress!r}",
            "work and quality are read from it, and guessing would make numbers up",
            "yield Progress(step=1, work=100.0, quality=0.9), all plain numbers",
        )
    return plain


def _no_work(what: str) -> WorkloadError:
    return WorkloadError(
        f"the workload {what}", "energy per unit of work cannot be computed", "report the work done with each step"
    )


def _quality(workload: Workload, value: object) -> float:
    """The quality as a finite float."""
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        number = float("nan")
    if not math.isfinite(number):
        raise WorkloadError(
            f"{workload.quality} is {value!r}",
            "a saving counts only while the quality is kept, and this one cannot be compared",
            "return a finite number from evaluate/score (or print it as a JSON line)",
        )
    return number


def _measurement(
    window: list[Any], *, work: float, quality: float, samples: float,
    times: list[float] | None = None, transform_j: float = 0.0,
) -> Measurement:  # fmt: skip
    readings, time_s, curve = window
    points: tuple[PowerPoint, ...] = curve
    return Measurement(
        readings=readings, time_s=time_s, work_units=work, quality=quality, samples=samples,
        latency=_latency(times) if times else None, peak_memory_bytes=_peak_memory(), transform_j=transform_j,
        power_curve=points,
    )  # fmt: skip


def _wait_for_accelerator() -> None:
    """CUDA work is queued: a window that ends before it is done would leave its joules to the next one."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _latency(times: list[float]) -> Latency:
    ordered = sorted(times)

    def at(fraction: float) -> float:
        return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]

    return Latency(p50_s=at(0.5), p95_s=at(0.95), p99_s=at(0.99))


def _reset_peak_memory() -> None:
    """Make VmHWM start again (proc(5), clear_refs 5), since the worker lives through many trials."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not permitted: the peak is then reported as unknown
        return


def _peak_memory() -> int:
    """Highest resident memory since the last reset [bytes]; 0 where the system does not tell."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)

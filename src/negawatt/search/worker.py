"""Worker: the process that holds the user's workload, so that a trial that hangs, dies or leaks takes nothing with it.

`python -m negawatt.search FD` talks over an inherited socket in pickled core values: it sends one Ready (or a
NegawattError or TrialError), then for each Task any number of Progress and one Measurement or TrialError.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import time
import traceback
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType

from negawatt.core import registry
from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.lever import Choice
from negawatt.core.reading import NotMeasured
from negawatt.core.trial import TrialError
from negawatt.core.workload import Persistent, Phase, Progress, Workload
from negawatt.hardware.host import this_host
from negawatt.metering.session import Meter
from negawatt.search.load import load
from negawatt.search.runner import Task, run

_PROGRESS_EVERY_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """What the worker is to hold.

    Attributes:
        path: the workload's file.
        levers: names of the levers to offer; () means all.
        sensors: names of the sensors to use; () means all that work.
        quality_bound: the absolute quality to keep, if one was promised.
        p99_s: the latency that its server promises [s]; None: what the workload says.
    """

    path: Path
    levers: tuple[str, ...] = ()
    sensors: tuple[str, ...] = ()
    quality_bound: float | None = None  # in the unit of the metric
    p99_s: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """What the workload turned out to be, and what can be done with it here.

    `served`: its infer phase is requests to a server; `p99_s`: the latency that this promises [s].
    """

    name: str
    unit: str
    quality: str
    phases: tuple[Phase, ...]
    persistent: bool
    choices: dict[str, tuple[Choice, ...]]
    conflicts: tuple[tuple[str, str], ...]
    not_measured: tuple[NotMeasured, ...]
    served: bool = False
    p99_s: float | None = None


def serve(link: Connection, setup: Setup) -> None:
    """Load, report what was found, then run tasks until the other side hangs up."""
    host = this_host()
    found = registry.levers()
    wanted = registry.pick(found, setup.levers, "lever")
    workload = promised(load(setup.path), setup)
    missing = {name: reason for name, lever in wanted.items() if (reason := lever.available(host))}
    usable = {name: lever for name, lever in wanted.items() if name not in missing}
    choices = {name: tuple(lever.choices(workload)) for name, lever in usable.items()}
    idle = {name: f"this workload gives it nothing to turn; it requires {wanted[name].info.requires}"
            for name, offered in choices.items() if not offered}  # fmt: skip
    broken = {plugin.name: f"cannot be loaded: {plugin.reason}" for plugin in found.broken}
    with Meter.open(host, setup.sensors) as meter:
        link.send(
            Ready(
                name=workload.name,
                unit=workload.unit,
                quality=workload.quality,
                phases=workload.phases(),
                served=workload.served,
                p99_s=workload.p99_s,
                persistent=isinstance(workload.target, Persistent),
                choices={name: offered for name, offered in choices.items() if offered},
                conflicts=tuple((name, other) for name in usable for other in usable[name].info.conflicts),
                not_measured=(
                    *meter.unavailable,
                    *(NotMeasured(what=f"lever {n}", why=why) for n, why in {**missing, **idle, **broken}.items()),
                ),
            )
        )
        while True:
            try:
                task: Task = link.recv()
            except EOFError:
                return
            try:
                link.send(run(workload, usable, task, meter, _Reporter(link), host))
            except (Exception, SystemExit) as error:  # noqa: BLE001 -- the user's code: the reason becomes the trial's error
                link.send(_trial_error(error))


def promised(workload: Workload, setup: Setup) -> Workload:
    """The workload with what the user promised. Raises UsageError on a latency of something that serves nothing."""
    if setup.p99_s is not None and not workload.served:
        raise UsageError(
            f"--p99 {1e3 * setup.p99_s:.4g}ms for {workload.name!r}, which serves no requests",
            "nothing would be held to it",
            "leave it out (--max-slowdown limits the time of other work), or give the workload served/calls/judge",
        )
    return replace(
        workload,
        quality_bound=setup.quality_bound,
        p99_s=workload.p99_s if setup.p99_s is None else setup.p99_s,
    )


class _Reporter:
    """Sends progress to the parent, at most a few times a second."""

    def __init__(self, link: Connection) -> None:
        self._link = link
        self._last_s = 0.0

    def __call__(self, progress: Progress) -> None:
        now = time.monotonic()
        if now - self._last_s >= _PROGRESS_EVERY_S:
            self._last_s = now
            self._link.send(progress)


class _Terminated(BaseException):
    """SIGTERM: unwinds every context manager, so that levers restore the host."""


def _trial_error(error: BaseException) -> TrialError:
    if isinstance(error, NegawattError):
        return TrialError(kind="bad-result", message=error.got, detail=error.fix)
    if isinstance(error, ValueError) and error.__traceback__ and _raised_in_core(error):
        return TrialError(kind="bad-result", message=str(error))
    ours = str(Path(__file__).parents[1])
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith(ours)]
    detail = "".join([*traceback.format_list(frames), *traceback.format_exception_only(error)])[-4000:]
    return TrialError(kind="raised", message=f"{type(error).__name__}: {error}", detail=detail)


def _raised_in_core(error: BaseException) -> bool:
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and frames[-1].filename.endswith("core/measurement.py")


def _on_terminate(_signum: int, _frame: FrameType | None) -> None:
    raise _Terminated


def _die_with_parent() -> None:
    """Ask Linux for SIGTERM when the parent dies, and to be given orphans, so that they are found (prctl(2)).

    Elsewhere the end of the link ends the worker later.
    """
    if sys.platform == "linux":
        import ctypes

        libc = ctypes.CDLL(None)
        libc.prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        libc.prctl(36, 1)  # PR_SET_CHILD_SUBREAPER


def main() -> None:
    """Entry point of the worker process."""
    signal.signal(signal.SIGTERM, _on_terminate)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what Ctrl-C means
    _die_with_parent()
    link = Connection(int(sys.argv[1]))
    # The parent hung up or asked us to go: nobody is left to tell.
    with contextlib.suppress(_Terminated, BrokenPipeError, EOFError):
        try:
            serve(link, link.recv())
        except NegawattError as error:
            link.send(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 -- importing the user's file; sent to the parent
            link.send(_trial_error(error))

"""Bench: runs trials one at a time in a worker, keeps the time, records every trial at once, and resumes.

Trials run one after another by default because two at a time would disturb each other's measurement.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, final

from negawatt.core.codec import from_json, to_json
from negawatt.core.errors import NegawattError, WorkloadError
from negawatt.core.lever import Setting
from negawatt.core.measurement import Measurement
from negawatt.core.trial import Role, Trial, TrialError
from negawatt.core.workload import Progress, Split
from negawatt.ledger.store import Ledger
from negawatt.search.runner import Task
from negawatt.search.worker import Ready, Setup

if TYPE_CHECKING:
    import psutil

_GRACE_S = 5.0
_CHECK_S = 0.5
_LOAD_LIMIT_S = 600.0
_SLOWEST_TIMES = 5.0
"""A trial may take this many times the slowest good one of its phase, plus `_SLACK_S`, before it counts as hung."""
_SLACK_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something worth showing: a trial that began (`trial` None), a step of it, or its end."""

    setting: Setting
    role: Role
    trial: Trial | None = None
    progress: Progress | None = None


@final
class Bench:
    """Runs trials of one campaign.

    Args:
        setup: the workload to hold.
        ledger: where every trial is recorded as soon as it is over.
        campaign: identity of this campaign in the ledger.
        log: file that receives what the workload prints.
        watch: called with every Event.
        trial_limit_s: fixed limit per trial [s]; None: five times the slowest so far, and `first_limit_s` before that.
        first_limit_s: limit of the first trial of each phase [s].
    """

    def __init__(
        self,
        *,
        setup: Setup,
        ledger: Ledger,
        campaign: str,
        log: Path,
        watch: Callable[[Event], None],
        trial_limit_s: float | None,
        first_limit_s: float,
    ) -> None:
        self._setup = setup
        self._ledger = ledger
        self._campaign = campaign
        self._log = log
        self._watch = watch
        self._trial_limit_s = trial_limit_s
        self._first_limit_s = first_limit_s
        self._slowest_s: dict[str, float] = {}
        self._recorded: list[Trial] = []
        self._worker: _Worker | None = None
        self._name = ""
        self.trials: list[Trial] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        if self._worker:
            self._worker.close()

    def ready(self) -> Ready:
        """Start the worker and learn what the workload is.

        Raises:
            NegawattError: why the workload cannot be loaded here.
        """
        if self._worker is None:
            self._worker = _Worker(self._setup, self._log)
        self._name = self._worker.ready.name
        return self._worker.ready

    def resume(self, trials: Iterable[Trial]) -> None:
        """Trials of an interrupted campaign, used instead of running the same again; each once, in order."""
        self._recorded = list(trials)

    def trial(
        self,
        setting: Setting,
        *,
        split: Split,
        seed: int,
        role: Role,
        block: int = -1,
        load_from: Path | None = None,
        save_to: Path | None = None,
    ) -> Trial:
        """Run one trial and record it, or take it from the interrupted campaign. A failing workload gives a failed
        trial; only trouble of our own (a full disk, an interrupt) raises.
        """  # noqa: D205 -- one thought
        for old in self._recorded:
            same = (old.setting, old.split, old.seed, old.role, old.block) == (setting, split, seed, role, block)
            if same and (save_to is None or save_to.exists()):
                self._recorded.remove(old)
                self._keep(old)
                return old
        self._watch(Event(setting=setting, role=role))
        began = datetime.now(UTC).isoformat(timespec="seconds")
        task = Task(setting=setting, split=split, seed=seed, load_from=load_from, save_to=save_to)
        started_s = time.monotonic()
        result = self._run(task, role)
        took_s = time.monotonic() - started_s
        trial = Trial(
            setting=setting,
            split=split,
            seed=seed,
            role=role,
            block=block,
            started_utc=began,
            measurement=result if isinstance(result, Measurement) else None,
            error=result if isinstance(result, TrialError) else None,
        )
        self._ledger.append(
            "trial",
            to_json(trial),
            workload=self._name,
            phase=setting.phase,
            campaign=self._campaign,
            energy_j=trial.measurement.energy_j if trial.measurement else None,
            source=trial.measurement.source if trial.measurement else "",
        )
        self._keep(trial)
        if trial.measurement:  # loading, export and evaluation included, which the measured window leaves out
            self._slowest_s[trial.phase] = max(self._slowest_s.get(trial.phase, 0.0), took_s)
        self._watch(Event(setting=setting, role=role, trial=trial))
        return trial

    def _keep(self, trial: Trial) -> None:
        self.trials.append(trial)

    def _limit_s(self, setting: Setting) -> float:
        if self._trial_limit_s is not None:
            return self._trial_limit_s
        slowest_s = self._slowest_s.get(setting.phase)
        return self._first_limit_s if slowest_s is None else _SLOWEST_TIMES * slowest_s + _SLACK_S

    def _run(self, task: Task, role: Role) -> Measurement | TrialError:
        limit_s = self._limit_s(task.setting)
        try:
            self.ready()
        except NegawattError as error:  # it loaded before, so this is the trial's misfortune, not the user's mistake
            return TrialError(kind="died", message="the worker could not be started again", detail=str(error))
        assert self._worker is not None  # noqa: S101 -- ready() started it
        try:
            result = self._worker.run(
                task, limit_s, lambda p: self._watch(Event(setting=task.setting, role=role, progress=p))
            )
        except BaseException:
            self._stop_worker()
            raise
        if isinstance(result, TrialError) and result.kind in ("hung", "died"):
            self._stop_worker()
        return result

    def _stop_worker(self) -> None:
        if self._worker:
            self._worker.close()
            self._worker = None


def recorded_trials(ledger: Ledger, campaign: str) -> list[Trial]:
    """Good search trials since the campaign last ran to its end.

    A proof is made anew: its blocks cancel drift only between runs that were made next to each other.
    """
    records = ledger.records(campaign=campaign)
    closed = [i for i, r in enumerate(records) if r.kind == "campaign" and r.body["state"] == "closed"]
    trials = [from_json(Trial, r.body) for r in records[closed[-1] + 1 if closed else 0 :] if r.kind == "trial"]
    return [t for t in trials if t.measurement and t.role is Role.SEARCH]


@final
class _Worker:
    """The parent's end of one worker process."""

    def __init__(self, setup: Setup, log: Path) -> None:
        ours, theirs = socket.socketpair()
        with theirs, log.open("ab") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "negawatt.search", str(theirs.fileno())],
                pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        self._link = Connection(ours.detach())
        self._log = log
        try:
            self._link.send(setup)
            first = self._receive(time.monotonic() + _LOAD_LIMIT_S)
        except BaseException:  # Ctrl-C while it loads
            self.close()
            raise
        if not isinstance(first, Ready):
            self.close()
            raise _not_loaded(first, setup, log)
        self.ready = first

    def run(self, task: Task, limit_s: float, watch: Callable[[Progress], None]) -> Measurement | TrialError:
        """Run one task; a hang or a death becomes a TrialError."""
        deadline = time.monotonic() + limit_s
        try:
            self._link.send(task)
        except BrokenPipeError:
            return self._died()
        while True:
            message = self._receive(deadline)
            if isinstance(message, Progress):
                watch(message)
            elif message is None:
                what = (
                    f"the trial did not end within {limit_s:.0f} s and was stopped (--trial-timeout changes the limit)"
                )
                return TrialError(kind="hung", message=what, detail=_tail(self._log))
            elif isinstance(message, Measurement | TrialError):
                return message
            else:
                return self._died()

    def _receive(self, deadline: float) -> object:
        """The next message; None when the deadline passes; EOFError (as a value) when the worker is gone."""
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                if self._link.poll(min(left_s, _CHECK_S)):
                    return self._link.recv()
            except (EOFError, ConnectionResetError) as gone:
                return gone
            if self._process.poll() is not None and not self._link.poll(0):
                return EOFError()  # a process it forked may still hold the other end of the link
        return None

    def _died(self) -> TrialError:
        try:
            code = self._process.wait(timeout=_GRACE_S)
            how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        except subprocess.TimeoutExpired:
            how = "its link closed, though it runs on"
        return TrialError(
            kind="died", message=f"the worker process ended in the middle ({how})", detail=_tail(self._log)
        )

    def close(self) -> None:
        """Hang up, let the worker restore what its levers changed, and make sure that nothing of it is left."""
        import psutil

        self._link.close()
        try:
            family = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            family = []
        if self._process.poll() is None:
            self._process.terminate()
        try:
            self._process.wait(timeout=_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for process in [*family, *_session(self._process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _session(leader: int) -> list[psutil.Process]:
    """Processes that are still in the worker's session, orphans included."""
    import psutil

    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if os.getsid(process.pid) == leader:
                found.append(process)
    return found


def _not_loaded(first: object, setup: Setup, log: Path) -> NegawattError:
    if isinstance(first, NegawattError):
        return first
    detail = first.detail if isinstance(first, TrialError) else _tail(log)
    cause = first.message if isinstance(first, TrialError) else "its process ended" if first else "it took too long"
    return WorkloadError(
        f"{setup.path} could not be loaded: {cause}\n{detail.rstrip()}",
        "there is nothing to measure",
        f"make `{os.path.basename(sys.executable)} {setup.path}` run by itself first",  # noqa: PTH119 -- a name, not a path
    )


def _tail(log: Path, size: int = 2000) -> str:
    """The end of what the workload printed."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read().decode(errors="replace")

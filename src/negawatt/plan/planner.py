"""Planner: from a request to a Plan. It asks, the bench runs, verify judges."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import negawatt
from negawatt.core import registry
from negawatt.core.codec import to_json
from negawatt.core.errors import UsageError, WorkloadError
from negawatt.core.host import Host
from negawatt.core.lever import Setting
from negawatt.core.measurement import Measurement
from negawatt.core.pace import Pace
from negawatt.core.placement import Job, Outcome
from negawatt.core.plan import SCHEMA, Keep, Lifetime, PhasePlan, Plan
from negawatt.core.reading import NotMeasured, total, weakest
from negawatt.core.saving import Baseline
from negawatt.core.trial import Role, Trial, measurements
from negawatt.core.workload import Phase
from negawatt.hardware.host import this_host
from negawatt.ledger.store import Ledger
from negawatt.metering.session import Meter
from negawatt.plan.phase import PhasePlanner, PhaseResult
from negawatt.plan.request import SAME_P99_FRACTION, Request
from negawatt.search.bench import Bench, Event, recorded_trials
from negawatt.search.worker import Ready, Setup

_PROGRAM = {".py", ".toml", ".sh"}
"""Files beside the workload whose change makes it another one."""
_TRAIN_SHARE = 0.72
"""Part of the time budget for training where both phases are planned; what it leaves goes to inference."""


def make_plan(request: Request, ledger: Ledger, watch: Callable[[Event], None], note: Callable[[str], None]) -> Plan:
    """Find and prove the settings that do the workload's work for the least energy.

    Every trial is in the ledger as soon as it is over; if this is interrupted, the same request goes on from there.

    Args:
        request: what to plan.
        ledger: where trials and the plan are recorded.
        watch: called with every event of the bench.
        note: called with a sentence whenever something new begins.

    Raises:
        UsageError: if the request does not fit the workload.
        NoMeterError: if nothing can meter this host.
        WorkloadError: if the workload cannot be loaded, or fails as it is.
        LedgerError: if a trial cannot be recorded.
    """
    host = this_host()
    began = time.monotonic()
    deadline = began + request.budget_s
    campaign = _campaign(request, host)
    _make_folder(request.out)
    setup = Setup(
        path=request.path, levers=request.levers, sensors=request.sensors, quality_bound=request.promise.bound,
        p99_s=request.p99_s,
    )  # fmt: skip
    with (
        _alone(request.out),
        Meter.open(host, request.sensors) as meter,
        Bench(
            setup=setup, ledger=ledger, campaign=campaign, log=request.out / "workload.log", watch=watch,
            trial_limit_s=request.trial_limit_s, first_limit_s=max(60.0, request.budget_s),
        ) as bench,
    ):  # fmt: skip
        window = meter.start()
        note(f"loading {request.path}")
        ready = bench.ready()
        keep = _keep(request, ready)
        old = [] if request.fresh else recorded_trials(ledger, campaign)
        if old:
            note(f"going on with {len(old)} trials of an interrupted plan (--fresh would ignore them)")
        bench.resume(old)
        earlier_j = sum(t.measurement.energy_j for t in old if t.measurement)
        ledger.append("campaign", {"state": "open", "resumed": bool(old)}, workload=ready.name, campaign=campaign)
        models = request.out / "models" / campaign
        shutil.rmtree(models, ignore_errors=True)  # of an earlier run, trained under other settings
        results = _phases(request, ready, keep, bench, models, deadline, note)
        search_time_s = window.time_s
        search_j = total(window.stop(), window.time_s)[0] + earlier_j
    plan = _assemble(request, ready, keep, host, results, bench.trials, search_j, search_time_s)
    ledger.append("plan", to_json(plan), workload=ready.name, campaign=campaign, energy_j=search_j, source="")
    ledger.append("campaign", {"state": "closed"}, workload=ready.name, campaign=campaign)  # no longer resumed
    return plan


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "workload.log").touch()
    except OSError as error:
        raise UsageError(
            f"--out {out}: {error.strerror}", "plan.json, the report and the workload's output go there",
            "name a folder that you may write to",
        ) from None  # fmt: skip


def _campaign(request: Request, host: Host) -> str:
    """Identity of a plan: the same file, promise and choices on the same host."""
    path = request.path / "negawatt.toml" if request.path.is_dir() else request.path
    asked = [
        negawatt.__version__, str(path.resolve()), _digest(path.resolve()),
        to_json(request.promise), request.max_slowdown, request.p99_s, list(request.levers), list(request.sensors),
        request.seed, host.fingerprint(), str(request.out.resolve()),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _digest(workload: Path) -> str:
    """Hash of the program text beside the workload, so that trials of another version are never taken for its own."""
    digest = hashlib.sha256()
    beside = sorted(workload.parent.iterdir()) if workload.is_file() else []
    for file in beside:
        if file.suffix in _PROGRAM and file.is_file():
            digest.update(f"{file.name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Hold the folder: two plans at once would take each other's trials and disturb each other's meter."""
    import fcntl

    with (out / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another plan is writing to {out}",
                "two at once would take each other's trials and disturb each other's measurement",
                "wait for it, or end it; another --out does not help while both use this host's meter",
            ) from None
        yield


def _keep(request: Request, ready: Ready) -> Keep:
    promise = request.promise
    if promise.metric is not None and promise.metric != ready.quality:
        raise UsageError(
            f"--keep names {promise.metric!r}, but the workload reports {ready.quality!r}",
            "another metric than the promised one would be held",
            f'write --keep "{ready.quality}>=..."',
        )
    return Keep(metric=ready.quality, bound=promise.bound, margin=promise.margin)


def _pace(request: Request, ready: Ready, phase: Phase) -> Pace:
    if phase is Phase.TRAIN or not ready.served:
        return Pace(max_slowdown=request.max_slowdown)
    free = request.max_slowdown is None and ready.p99_s is None
    return Pace(served=True, p99_s=ready.p99_s, max_slowdown=SAME_P99_FRACTION if free else request.max_slowdown)


def _phases(
    request: Request, ready: Ready, keep: Keep, bench: Bench, models: Path, deadline: float, note: Callable[[str], None]
) -> list[PhaseResult]:
    both = len(ready.phases) > 1
    if both and not ready.persistent:
        raise WorkloadError(
            f"{ready.name!r} trains and infers, but cannot save and load its model",
            "inference is measured with the model that the plan trains",
            "give it save(state, path) and load(path)",
        )
    results: list[PhaseResult] = []
    state: Path | None = None
    for phase in ready.phases:
        now = time.monotonic()
        share = _TRAIN_SHARE if both and phase is Phase.TRAIN else 1.0
        choices = {
            lever: mine
            for lever, offered in ready.choices.items()
            if (mine := tuple(c for c in offered if c.phase == phase))
        }
        planner = PhasePlanner(
            bench,
            phase=phase,
            choices=choices,
            conflicts=ready.conflicts,
            keep=keep,
            pace=_pace(request, ready, phase),
            seed=request.seed,
            state_in=state,
            state_out=models if both and phase is Phase.TRAIN else None,
            note=note,
        )
        results.append(planner.plan(now + share * (deadline - now)))
        state = results[-1].state
    return results


def _assemble(  # noqa: PLR0913 -- everything a plan is made of
    request: Request, ready: Ready, keep: Keep, host: Host, results: list[PhaseResult],
    trials: list[Trial], search_j: float, search_time_s: float,
) -> Plan:  # fmt: skip
    phases = tuple(result.plan for result in results)
    lifetimes = {
        name: _lifetime(phases, name, trials, request.requests) for name in (*(str(b) for b in Baseline), "plan")
    }
    outcomes, unplaced = _place(request, ready.name, lifetimes["plan"], phases, trials)
    return Plan(
        schema=SCHEMA,
        version=negawatt.__version__,
        created_utc=datetime.now(UTC).isoformat(timespec="seconds"),
        workload=ready.name,
        path=str(request.path.resolve()),
        unit=ready.unit,
        keep=keep,
        max_slowdown=request.max_slowdown,
        host=host,
        phases=phases,
        lifetimes=lifetimes,
        search_j=search_j,
        search_time_s=search_time_s,
        outcomes=outcomes,
        not_measured=tuple(
            dict.fromkeys((*ready.not_measured, *(n for r in results for n in r.not_measured), *unplaced))
        ),
        trials=tuple(trials),
    )


def _setting(phase: PhasePlan, name: str) -> Setting:
    return {"naive": phase.naive, "competent": phase.competent, "plan": phase.setting}[name]


def _mean(trials: list[Trial], setting: Setting, value: Callable[[Measurement], float]) -> float | None:
    """Mean over the proof runs of a setting; over its other runs where it was not in the proof."""
    for roles in ((Role.PROOF,), (Role.SEARCH, Role.APPLY)):
        if runs := measurements(trials, setting, *roles):
            return sum(map(value, runs)) / len(runs)
    return None


def _lifetime(phases: tuple[PhasePlan, ...], name: str, trials: list[Trial], requests: float) -> Lifetime:
    settings = {phase.phase: _setting(phase, name) for phase in phases}
    train, infer = settings.get(Phase.TRAIN), settings.get(Phase.INFER)
    return Lifetime(
        train_j=_mean(trials, train, lambda m: m.energy_per_work_j) if train else None,
        transform_j=(_mean(trials, infer, lambda m: m.transform_j) or 0.0) if infer else 0.0,
        infer_per_work_j=_mean(trials, infer, lambda m: m.energy_per_work_j) if infer else None,
        requests=requests if infer else 0.0,
    )


def _place(
    request: Request, name: str, lifetime: Lifetime, phases: tuple[PhasePlan, ...], trials: list[Trial]
) -> tuple[tuple[Outcome, ...], tuple[NotMeasured, ...]]:
    """Site energy, carbon and money of the plan's lifetime, at the sites the user named."""
    found = registry.placements()
    broken = tuple(NotMeasured(what=f"placement {b.name}", why=b.reason) for b in found.broken)
    if not request.sites:
        why = "no site was named, and none is guessed; describe yours in a file and give --site FILE"
        return (), (*broken, NotMeasured(what="facility overhead, carbon, money", why=why))
    train_s = sum(
        _mean(trials, p.setting, lambda m: m.time_per_work_s) or 0.0 for p in phases if p.phase is Phase.TRAIN
    )
    infer_s = sum(
        _mean(trials, p.setting, lambda m: m.time_per_work_s) or 0.0 for p in phases if p.phase is Phase.INFER
    )
    sources = [t.measurement.source for t in trials if t.measurement]
    job = Job(
        name=name,
        energy_j=lifetime.total_j,
        time_s=train_s + infer_s * request.requests,
        source=weakest(sources),
        sites=request.sites,
    )
    return tuple(p.outcome(job, c) for p in found.members.values() for c in p.choices(job)), broken

"""Plans as real campaigns would give them, for the tests of both reports."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, replace

from negawatt.core.host import Host
from negawatt.core.lever import Choice, Setting
from negawatt.core.measurement import Latency, Measurement
from negawatt.core.placement import Outcome, PlacementChoice
from negawatt.core.plan import SCHEMA, Keep, Lifetime, NotMeasured, PhasePlan, Plan
from negawatt.core.reading import Reading, Source
from negawatt.core.saving import Baseline, Interval, Saving, Verdict
from negawatt.core.trial import Role, Trial, TrialError
from negawatt.core.workload import Phase, Split

HOST = Host(
    name="bench-07",
    machine_id="5b1f",
    boot_id="9a2c",
    system="Linux 6.8.0",
    cpu="AMD EPYC 7313 16-Core Processor",
    logical_cpus=16,
    memory_bytes=64 * 2**30,
)
HOSTILE = "<script>alert(1)</script>&\"' [red]x[/red] \x1b[31m\u202e"


@dataclass(frozen=True, kw_only=True)
class Meter:
    """How the readings of a fixture come about."""

    source: Source
    sensor: str
    scopes: tuple[str, ...]
    gain: float
    offset: float
    corner: float = 0.0


RAPL = Meter(source=Source.COUNTER, sensor="rapl", scopes=("cpu:0/package", "cpu:0/dram"), gain=0.02, offset=0.3)
MODEL = Meter(source=Source.ESTIMATED, sensor="cpu-model", scopes=("cpu",), gain=0.25, offset=2.0, corner=0.3)


def infer(batch: int = 1, runtime: str = "sklearn", precision: str = "fp32", threads: int = 16) -> Setting:
    """An inference setting."""
    return Setting.of(
        Phase.INFER,
        [
            Choice(lever="batch-size", phase=Phase.INFER, value=batch, naive=batch == 1),
            Choice(lever="runtime", phase=Phase.INFER, value=runtime, naive=runtime == "sklearn"),
            Choice(
                lever="precision",
                phase=Phase.INFER,
                value=precision,
                naive=precision == "fp32",
                competent=precision == "fp32",
            ),
            Choice(lever="threads", phase=Phase.INFER, value=threads, naive=threads == 16),
        ],
    )


def train(batch: int = 32, patience: int = 0, threads: int = 16) -> Setting:
    """A training setting."""
    return Setting.of(
        Phase.TRAIN,
        [
            Choice(lever="batch-size", phase=Phase.TRAIN, value=batch, naive=batch == 32),
            Choice(lever="early-stopping", phase=Phase.TRAIN, value=patience, naive=patience == 0),
            Choice(lever="threads", phase=Phase.TRAIN, value=threads, naive=threads == 16),
        ],
    )


def measured(meter: Meter, work: float, per_work: tuple[float, float, float], rng: random.Random) -> Measurement:
    """A run of `work` units: joules per unit, seconds per unit, quality."""
    energy_j, time_s = (value * work * rng.gauss(1, 0.01) for value in per_work[:2])
    shares = (0.85, 0.15) if len(meter.scopes) == 2 else (1.0,)
    return Measurement(
        readings=tuple(
            Reading(
                scope=scope,
                energy_j=energy_j * share,
                source=meter.source,
                sensor=meter.sensor,
                random_sd_j=0.001 * energy_j,
                gain_sd_fraction=meter.gain,
                offset_sd_w=meter.offset,
                corners_j=(energy_j * (1 - meter.corner), energy_j, energy_j * (1 + meter.corner))
                if meter.corner
                else (),
            )
            for scope, share in zip(meter.scopes, shares, strict=True)
        ),
        time_s=time_s,
        work_units=work,
        quality=per_work[2] + rng.gauss(0, 0.0003),
        samples=work,
        latency=Latency(p50_s=per_work[1], p95_s=1.3 * per_work[1], p99_s=1.9 * per_work[1]) if work > 1 else None,
        peak_memory_bytes=310 * 2**20,
    )


def campaign(
    meter: Meter, facts: dict[Setting, tuple[float, float, float]], proven: tuple[Setting, ...]
) -> list[Trial]:
    """One search run per setting, and warm-up and 8 proof blocks for some."""
    rng = random.Random(7)
    trials = []

    def add(setting: Setting, role: Role, block: int = -1) -> None:
        work = 1.0 if setting.phase is Phase.TRAIN else 10_000.0
        trials.append(
            Trial(
                setting=setting,
                split=Split.REPORT if role is Role.PROOF else Split.SELECTION,
                seed=len(trials),
                role=role,
                block=block,
                started_utc=f"2026-11-24T10:{len(trials) // 60:02d}:{len(trials) % 60:02d}Z",
                measurement=measured(meter, work, facts[setting], rng),
            )
        )

    for setting in facts:
        add(setting, Role.SEARCH)
    for setting in proven:
        add(setting, Role.WARMUP)
    for block in range(8):
        for setting in proven if block % 2 else reversed(proven):
            add(setting, Role.PROOF, block)
    return trials


def saving(
    phase: Phase,
    against: Baseline,
    values: tuple[float, float, float],
    source: Source,
    verdict: Verdict,
    **more: object,
) -> Saving:
    """A saving with a 95 % interval on 8 blocks."""
    base = Saving(
        phase=phase,
        against=against,
        fraction=values[0],
        ci_low=values[1],
        ci_high=values[2],
        level_fraction=0.95,
        n=8,
        evidence=source,
        verdict=verdict,
        slowdown=Interval(value=-0.31, low=-0.34, high=-0.28),
        quality_change=Interval(value=-0.0012, low=-0.0031, high=0.0007),
    )
    return replace(base, **more)  # type: ignore[arg-type]


def failed(setting: Setting, message: str, detail: str = "") -> Trial:
    """A search run that raised."""
    return Trial(
        setting=setting,
        split=Split.SELECTION,
        seed=0,
        role=Role.SEARCH,
        started_utc="2026-11-24T10:59:00Z",
        error=TrialError(kind="raised", message=message, detail=detail),
    )


INFER_FACTS = {
    infer(): (41e-3, 1.2e-3, 0.9712),
    infer(batch=32): (6.2e-3, 0.16e-3, 0.9712),
    infer(batch=256): (3.1e-3, 0.071e-3, 0.9712),
    infer(batch=32, runtime="onnx"): (2.4e-3, 0.058e-3, 0.9712),
    infer(batch=256, runtime="onnx"): (1.55e-3, 0.034e-3, 0.9712),
    infer(batch=1024, runtime="onnx"): (1.58e-3, 0.036e-3, 0.9712),
    infer(batch=256, runtime="onnx", threads=4): (1.02e-3, 0.041e-3, 0.9712),
    infer(batch=256, runtime="onnx", threads=1): (0.93e-3, 0.092e-3, 0.9712),
    infer(batch=256, runtime="onnx", precision="int8"): (0.97e-3, 0.026e-3, 0.9700),
    infer(batch=256, runtime="onnx", precision="int8", threads=4): (0.61e-3, 0.031e-3, 0.9700),
    infer(batch=1024, runtime="onnx", precision="int4", threads=4): (0.44e-3, 0.022e-3, 0.9310),
}
TRAIN_FACTS = {
    train(): (5400.0, 94.0, 0.9712),
    train(batch=128): (2900.0, 48.0, 0.9709),
    train(batch=512): (2300.0, 36.0, 0.9691),
    train(batch=128, threads=8): (2250.0, 52.0, 0.9709),
    train(batch=128, patience=3, threads=8): (1180.0, 27.0, 0.9701),
    train(batch=512, patience=3): (1010.0, 15.0, 0.9580),
}
BEST_INFER = infer(batch=256, runtime="onnx", precision="int8", threads=4)
COMPETENT_INFER = infer(batch=256, runtime="onnx")
BEST_TRAIN = train(batch=128, patience=3, threads=8)
COMPETENT_TRAIN = train(batch=128)


def verified() -> Plan:
    """Training and inference on a counter, both shown, with sites."""
    phases = (
        PhasePlan(
            phase=Phase.TRAIN,
            naive=train(),
            competent=COMPETENT_TRAIN,
            setting=BEST_TRAIN,
            candidate=BEST_TRAIN,
            savings=(
                saving(Phase.TRAIN, Baseline.NAIVE, (0.782, 0.774, 0.789), Source.COUNTER, Verdict.VERIFIED),
                saving(Phase.TRAIN, Baseline.COMPETENT, (0.593, 0.571, 0.612), Source.COUNTER, Verdict.VERIFIED),
            ),
            steps=(COMPETENT_TRAIN, train(batch=128, threads=8), BEST_TRAIN),
        ),
        PhasePlan(
            phase=Phase.INFER,
            naive=infer(),
            competent=COMPETENT_INFER,
            setting=BEST_INFER,
            candidate=BEST_INFER,
            savings=(
                saving(Phase.INFER, Baseline.NAIVE, (0.985, 0.9846, 0.9854), Source.COUNTER, Verdict.VERIFIED),
                saving(Phase.INFER, Baseline.COMPETENT, (0.606, 0.588, 0.623), Source.COUNTER, Verdict.VERIFIED),
            ),
            steps=(COMPETENT_INFER, infer(batch=256, runtime="onnx", threads=4), BEST_INFER),
        ),
    )
    trials = [
        *campaign(RAPL, TRAIN_FACTS, (train(), COMPETENT_TRAIN, BEST_TRAIN)),
        *campaign(RAPL, INFER_FACTS, (infer(), COMPETENT_INFER, BEST_INFER)),
    ]
    return Plan(
        schema=SCHEMA,
        version="0.1.0",
        created_utc="2026-11-24T12:00:00Z",
        workload="mnist",
        path="examples/mnist/workload.py",
        unit="image",
        keep=Keep(metric="accuracy", bound=None, margin=0.005),
        max_slowdown=0.1,
        host=HOST,
        phases=phases,
        lifetimes={
            "naive": Lifetime(train_j=5400, transform_j=0.0, infer_per_work_j=41e-3, requests=1e6),
            "competent": Lifetime(train_j=2900, transform_j=12.0, infer_per_work_j=1.55e-3, requests=1e6),
            "plan": Lifetime(train_j=1180, transform_j=19.0, infer_per_work_j=0.61e-3, requests=1e6),
        },
        search_j=math.fsum(t.measurement.energy_j for t in trials if t.measurement),
        search_time_s=1820.0,
        outcomes=(
            Outcome(
                choice=PlacementChoice(placement="here", site="Zürich", start_s=0.0),
                site_energy_j=2161.0,
                carbon_g=0.0276,
                cost=0.000162,
                currency="CHF",
                delay_s=0.0,
                basis=("PUE 1.2: operator's report 2025", "46 gCO2e/kWh: Electricity Maps 2025, mean", "0.27 CHF/kWh"),
            ),
            Outcome(
                choice=PlacementChoice(placement="here", site="Katowice", start_s=0.0),
                site_energy_j=None,
                carbon_g=None,
                cost=None,
                currency="",
                delay_s=0.0,
                basis=("PUE not given",),
            ),
        ),
        not_measured=(
            NotMeasured(what="gpu", why="no NVIDIA driver on this host; install it to measure a GPU"),
            NotMeasured(what="power limit", why="needs root: run with sudo to try it"),
            NotMeasured(what="power supply, fans, disks", why="no sensor of this host covers them"),
        ),
        trials=tuple(trials),
    )


def indicative() -> Plan:
    """The same on estimated energy, with the corners of the power model."""
    plan = verified()

    def weaker(s: Saving) -> Saving:
        wide = tuple(
            Interval(value=min(0.995, s.fraction + d), low=s.ci_low + d - 0.01, high=min(0.999, s.ci_high + d + 0.01))
            for d in (-0.09, -0.02, 0.03)
        )
        reason = "the energy is estimated by a power model, not read from hardware"
        return replace(s, evidence=Source.ESTIMATED, verdict=Verdict.INDICATIVE, corners=wide, reasons=(reason,))

    phases = tuple(replace(p, savings=tuple(weaker(s) for s in p.savings)) for p in plan.phases)
    trials = (
        *campaign(MODEL, TRAIN_FACTS, (train(), COMPETENT_TRAIN, BEST_TRAIN)),
        *campaign(MODEL, INFER_FACTS, (infer(), COMPETENT_INFER, BEST_INFER)),
    )
    return replace(plan, phases=phases, trials=trials, outcomes=(), host=replace(HOST, virtual="kvm"))


def nothing() -> Plan:
    """Two candidates refused: one not shown, one worse. The plan is the competent default."""
    plan = verified()
    train_phase, infer_phase = plan.phases
    refused = (
        replace(
            train_phase,
            setting=train_phase.competent,
            savings=(
                saving(Phase.TRAIN, Baseline.NAIVE, (0.463, 0.451, 0.475), Source.SAMPLED, Verdict.VERIFIED),
                saving(
                    Phase.TRAIN,
                    Baseline.COMPETENT,
                    (0.021, -0.013, 0.054),
                    Source.SAMPLED,
                    Verdict.NOT_SHOWN,
                    reasons=("the interval spans zero", "accuracy fell by 0.0110, more than the margin of 0.005"),
                    quality_change=Interval(value=-0.011, low=-0.014, high=-0.008),
                ),
            ),
        ),
        replace(
            infer_phase,
            setting=infer_phase.competent,
            savings=(
                saving(
                    Phase.INFER,
                    Baseline.COMPETENT,
                    (-0.043, -0.071, -0.012),
                    Source.SAMPLED,
                    Verdict.WORSE,
                    reasons=("the interval is below zero",),
                    slowdown=Interval(value=0.09, low=0.06, high=0.12),
                ),
            ),
        ),
    )
    lifetimes = {**plan.lifetimes, "plan": plan.lifetimes["competent"]}
    return replace(plan, phases=refused, lifetimes=lifetimes, outcomes=())


def only_infer() -> Plan:
    """Inference alone; failures; nothing looked better, so nothing was proven; names from a hostile hand."""
    plan = verified()
    bad = Setting.of(Phase.INFER, [Choice(lever="runtime", phase=Phase.INFER, value=HOSTILE)])
    competent = infer(batch=256)
    facts = {infer(): INFER_FACTS[infer()], competent: INFER_FACTS[competent], bad: (9e-3, 2e-4, 0.96)}
    trials = (
        *campaign(MODEL, facts, ()),
        failed(infer(batch=4096), "MemoryError: cannot allocate 9.1 GiB", "Traceback ...\nMemoryError"),
        failed(infer(batch=4096), "MemoryError: cannot allocate 9.1 GiB", "Traceback ...\nMemoryError"),
        failed(bad, HOSTILE, HOSTILE),
    )
    phase = PhasePlan(
        phase=Phase.INFER,
        naive=infer(),
        competent=competent,
        setting=competent,
        candidate=competent,
        savings=(),
        steps=(competent,),
    )
    return replace(
        plan,
        workload=HOSTILE,
        path=HOSTILE,
        unit="request",
        host=replace(HOST, name=HOSTILE, cpu=HOSTILE),
        keep=Keep(metric="accuracy", bound=0.96, margin=0.0),
        max_slowdown=None,
        phases=(phase,),
        lifetimes={
            "competent": Lifetime(train_j=None, transform_j=0.0, infer_per_work_j=3.1e-3, requests=2.5e9),
            "plan": Lifetime(train_j=None, transform_j=0.0, infer_per_work_j=3.1e-3, requests=2.5e9),
        },
        outcomes=(replace(plan.outcomes[0], choice=PlacementChoice(placement="here", site=HOSTILE, start_s=0.0)),),
        not_measured=(NotMeasured(what=HOSTILE, why=HOSTILE),),
        trials=trials,
    )


def unmeasured() -> Plan:
    """Every run failed: the report still says so."""
    plan = only_infer()
    return replace(plan, trials=tuple(t for t in plan.trials if t.error), lifetimes={}, outcomes=(), not_measured=())


ALL = (verified, indicative, nothing, only_infer, unmeasured)

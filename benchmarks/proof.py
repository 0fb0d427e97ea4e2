"""Proof: how often negawatt claims a saving that is not there, covers the true one, and sees one of 5 %.

Each campaign is played out with the real classes: a sweep over 30 settings picks the smallest of 30 single runs, then
`Proof` asks for blocks of fresh runs and says what may be claimed. The 30 settings are truly alike in a scenario (they
save nothing, or 5 % each against the baseline), so that the smallest run of the sweep is smallest by chance: the
winner's curse in full. Energies are simulated, in logarithms:

- no saving, drift: AR(1) drift (0.9 from run to run, stationary sd 5 %) plus 5 % white noise per run. A claim is false.
- saving 5 %, white: 5 % white noise per run.
- saving 5 %, drift: both.

Beside it, on runs of the same kind and number, what is often done instead:

- best of sweep: the smallest run of the sweep against one run of the baseline, as it is;
- sequence, Welch: 20 runs of one, then 20 of the other, unpaired t test at 5 % (Welch, Biometrika 34 (1947) 28);
- blocks, peeking: the same blocks, but stopped at the first 95 % interval that excludes zero, from the third on.

At most 10 ABBA blocks are run, which is 20 pairs or 40 runs; the t interval over 10 blocks shows a true 5 % (1.03
standard deviations of a block) with power 0.82, and the three interim looks cost 0.4 points of it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import numpy as np

import negawatt
from negawatt.core.measurement import Measurement
from negawatt.core.plan import Keep
from negawatt.core.reading import Reading, Source
from negawatt.core.saving import Baseline, Verdict
from negawatt.core.workload import Phase
from negawatt.verify.blocks import block_order
from negawatt.verify.proof import PLAN, Proof
from negawatt.verify.student import t_quantile

SWEPT = 30
BLOCKS = 10
CAMPAIGNS = 2000
PHI, DRIFT_SD, WHITE_SD = 0.9, 0.05, 0.05
ARMS = (PLAN, str(Baseline.COMPETENT))
SCENARIOS = {  # name: (true saving, sd of the drift)
    "no saving, drift": (0.0, DRIFT_SD),
    "saving 5 %, white": (0.05, 0.0),
    "saving 5 %, drift": (0.05, DRIFT_SD),
}


class Lab:
    """A machine on which every run costs one joule, but for the setting, drift and noise."""

    def __init__(self, saving_fraction: float, drift_sd: float, rng: np.random.Generator) -> None:
        self._saving = saving_fraction
        self._rng = rng
        self._drift_sd = drift_sd
        self._drift = rng.normal(0, drift_sd)

    def energy_j(self, arm: str) -> float:
        """One run."""
        step = self._drift_sd * math.sqrt(1 - PHI**2)
        self._drift = PHI * self._drift + self._rng.normal(0, step)
        level = math.log1p(-self._saving) if arm == PLAN else 0.0
        return math.exp(level + self._drift + self._rng.normal(0, WHITE_SD))

    def sweep(self) -> float:
        """Energy of the best single run of all settings [J]."""
        return min(self.energy_j(PLAN) for _ in range(SWEPT))


def measured(energy_j: float) -> Measurement:
    """A run as the meter would give it."""
    reading = Reading(
        scope="cpu:0/package",
        energy_j=energy_j,
        source=Source.COUNTER,
        sensor="rapl",
        random_sd_j=0.0,
        gain_sd_fraction=0.05,
        offset_sd_w=0.0,
    )
    return Measurement(readings=(reading,), time_s=1.0, work_units=1.0, quality=0.98)


Result = tuple[bool, bool, float, int]
"""Claimed a saving; interval covers the truth; claimed fraction; runs."""


def negawatt_proof(lab: Lab, truth: float, seed: int) -> Result:
    """A campaign of negawatt: the sweep chooses, fresh runs in blocks prove."""
    lab.sweep()
    keep = Keep(metric="accuracy", bound=None, margin=0.0)
    proof = Proof(phase=Phase.INFER, arms=ARMS, keep=keep, max_blocks=BLOCKS, seed=seed)
    while (order := proof.next_block()) is not None:
        proof.tell([(arm, measured(lab.energy_j(arm))) for arm in order])
    saving = proof.saving(Baseline.COMPETENT)
    if saving.shown and saving.verdict is not Verdict.VERIFIED:
        raise AssertionError(f"counter joules gave {saving.label()}")
    return saving.shown, saving.ci_low <= truth <= saving.ci_high, saving.fraction, 2 * len(ARMS) * saving.n


def best_of_sweep(lab: Lab, truth: float, seed: int) -> Result:
    """The smallest run of the sweep against one run of the baseline."""
    del seed
    base_j = lab.energy_j(ARMS[1])
    fraction = 1 - lab.sweep() / base_j
    return fraction > 0, fraction == truth, fraction, 1 + SWEPT


def sequence_welch(lab: Lab, truth: float, seed: int) -> Result:
    """All runs of the baseline, then all of the plan; Welch's unpaired interval."""
    del seed
    lab.sweep()
    base, plan = (np.log([lab.energy_j(arm) for _ in range(2 * BLOCKS)]) for arm in reversed(ARMS))
    parts = [np.var(x, ddof=1) / len(x) for x in (base, plan)]
    df = sum(parts) ** 2 / sum(part**2 / (2 * BLOCKS - 1) for part in parts)
    r, half = float(np.mean(base) - np.mean(plan)), t_quantile(0.975, float(df)) * math.sqrt(sum(parts))
    return r > half, covers(r, half, truth), -math.expm1(-r), 4 * BLOCKS


def blocks_peeking(lab: Lab, truth: float, seed: int) -> Result:
    """Mirrored blocks, looked at after each, stopped as soon as a 95 % interval excludes zero."""
    import random

    lab.sweep()
    rng, ratios = random.Random(seed), []
    while True:
        logs: dict[str, list[float]] = {arm: [] for arm in ARMS}
        for arm in block_order(ARMS, rng):
            logs[arm].append(math.log(lab.energy_j(arm)))
        ratios.append(float(np.mean(logs[ARMS[1]]) - np.mean(logs[PLAN])))
        n = len(ratios)
        if n < 3:
            continue
        r, half = float(np.mean(ratios)), t_quantile(0.975, n - 1) * float(np.std(ratios, ddof=1)) / math.sqrt(n)
        if abs(r) > half or n == BLOCKS:
            return r > half, covers(r, half, truth), -math.expm1(-r), 4 * n


def covers(r: float, half: float, truth: float) -> bool:
    """Whether the interval of a log ratio covers a true saving."""
    return r - half <= -math.log1p(-truth) <= r + half


METHODS: dict[str, Callable[[Lab, float, int], Result]] = {
    "negawatt": negawatt_proof,
    "best of sweep": best_of_sweep,
    "sequence, Welch": sequence_welch,
    "blocks, peeking": blocks_peeking,
}


def rows(campaigns: int, methods: dict[str, Callable[[Lab, float, int], Result]], seed: int) -> Iterator[dict]:
    """One row per scenario and method, the methods taking turns campaign by campaign."""
    for scenario, (truth, drift_sd) in SCENARIOS.items():
        results: dict[str, list[Result]] = {name: [] for name in methods}
        for campaign in range(campaigns):
            for name, method in methods.items():
                rng = np.random.default_rng([seed, campaign, list(METHODS).index(name)])
                results[name].append(method(Lab(truth, drift_sd, rng), truth, campaign))
        for name, found in results.items():
            shown, covered, fractions, runs = (np.array(column) for column in zip(*found, strict=True))
            claims = fractions[shown]
            yield {
                "scenario": scenario,
                "method": name,
                "campaigns": campaigns,
                "shown_fraction": round(float(shown.mean()), 4),
                "coverage_fraction": None if name == "best of sweep" else round(float(covered.mean()), 4),
                "claimed_mean_fraction": round(float(claims.mean()), 4) if len(claims) else None,
                "true_fraction": truth,
                "runs_mean": round(float(runs.mean()), 1),
            }


def report(campaigns: int, *, quick: bool, seed: int = 20261124) -> dict:
    """The JSON object of this benchmark. `quick` leaves the other methods out."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    methods = {"negawatt": negawatt_proof} if quick else METHODS
    table = list(rows(campaigns, methods, seed))

    def of(scenario: str, method: str = "negawatt") -> dict:
        return next(row for row in table if (row["scenario"], row["method"]) == (scenario, method))

    null, white, drift = SCENARIOS
    metrics = {
        "false_shown_fraction": of(null)["shown_fraction"],
        "coverage_fraction": of(white)["coverage_fraction"],
        "power_fraction": of(white)["shown_fraction"],
        "null_coverage_fraction": of(null)["coverage_fraction"],
        "drift_coverage_fraction": of(drift)["coverage_fraction"],
        "drift_power_fraction": of(drift)["shown_fraction"],
    }
    for name in methods:
        if name != "negawatt":
            metrics[f"{name.replace(', ', '_').replace(' ', '_').lower()}_false_shown_fraction"] = of(null, name)[
                "shown_fraction"
            ]
    return {
        "benchmark": "proof",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "load": load,
        "versions": {"negawatt": negawatt.__version__, "python": platform.python_version(), "numpy": np.__version__},
        "metrics": metrics,
        "table": table,
    }


def main() -> None:
    """Print the result: JSON with --json, else a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="leave the other methods out")
    parser.add_argument("--campaigns", type=int, default=CAMPAIGNS, help=f"per scenario and method ({CAMPAIGNS})")
    options = parser.parse_args()
    result = report(options.campaigns, quick=options.quick)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(f"{'scenario':<19} {'method':<16} {'shown':>6} {'covered':>8} {'claimed':>8} {'true':>5} {'runs':>5}")
    for row in result["table"]:
        covered, claimed = (
            "-" if row[key] is None else f"{row[key]:.1%}" for key in ("coverage_fraction", "claimed_mean_fraction")
        )
        print(
            f"{row['scenario']:<19} {row['method']:<16} {row['shown_fraction']:>6.1%} {covered:>8} {claimed:>8} "
            f"{row['true_fraction']:>5.0%} {row['runs_mean']:>5.1f}"
        )


if __name__ == "__main__":
    main()

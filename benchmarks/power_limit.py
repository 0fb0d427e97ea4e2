"""Power limit: probes and regret of the searches for the best limit, replayed on measured curves.

Curves: every `summary_power_GPU.csv` under --data (dataset, network, batch_size, optimizer, power_limit [W],
time_per_epoch [s], average_power [W]), one for each GPU, data set, network, optimizer and batch size; as shared, the
traces of Zeus (NSDI'23, Apache-2.0). A probe is a window under a limit, the one as found (the highest) included; its
time and its energy each carry 1 % of normal noise, the same for all searches. Each curve is played 5 times.

The learnt prior is `negawatt.tuning.curves.CurvePrior` as users run it, but for its prior, which is learnt for each
curve from those of other GPUs *and* other networks. What this cannot test is the choice of a few constants of its
learning and of its prices (`tuning/learning.py`, `tuning/curves.py`), which were chosen with these curves in view. Two
more rows show it with another draw of the noise, and with 2 % of noise of which it does not know.

Regret: true energy of the limit picked over the least true energy of the limits whose true slow-down keeps the bound,
less 1, and at least 0 (a pick that breaks the bound is not paid for it). Violation: true slow-down above the bound by
more than 0.5 points. Curves were measured once at each limit: chance in them counts as truth, for all searches alike.

Zeus's selector is its `MaxSlowdownConstraint` as rewritten here: after the full sweep, the lowest limit that keeps the
bound, whatever its energy.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import negawatt
from negawatt.tuning.curves import CurvePrior
from negawatt.tuning.learning import Curve, fit
from negawatt.tuning.limits import Probed
from negawatt.tuning.objective import Objective
from negawatt.tuning.plain import Bisection, RatioSearch, Sweep, Ternary
from negawatt.tuning.prior import Prior

DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "power_limit"
REPEATS = 5
NOISE = 0.01
GOALS = {
    "10": Objective(max_slowdown_fraction=0.10),
    "5": Objective(max_slowdown_fraction=0.05),
    "min": Objective(),
}
TOLERANCE, SLOW = 0.005, 1.25
SEARCHES: dict[str, type[RatioSearch]] = {"sweep": Sweep, "bisection": Bisection, "ternary": Ternary}
Make = Callable[["Measured", Objective], RatioSearch]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Measured:
    """A measured curve: what each limit truly gives, highest first."""

    gpu: str
    network: str
    limits_w: np.ndarray
    times_s: np.ndarray
    powers_w: np.ndarray

    @property
    def curve(self) -> Curve:
        """For learning."""
        return Curve(
            group=f"{self.gpu}/{self.network}",
            limits_w=tuple(self.limits_w.tolist()),
            times_s=tuple(self.times_s.tolist()),
            powers_w=tuple(self.powers_w.tolist()),
        )


def read(folder: Path) -> list[Measured]:
    """All curves; rows without a positive time and power are left out, and said."""
    folder = folder if any(folder.glob("summary_power_*.csv")) else folder / "power_limit"
    result: list[Measured] = []
    for path in sorted(folder.glob("summary_power_*.csv")):
        groups: dict[tuple[str, ...], dict[float, list[tuple[float, float]]]] = defaultdict(lambda: defaultdict(list))
        with path.open(encoding="utf-8", newline="") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                values = float(row["time_per_epoch"]), float(row["average_power"])
                if not all(math.isfinite(value) and value > 0 for value in values):
                    print(f"{path.name}, line {number}: no time or power, left out", file=sys.stderr)
                    continue
                key = tuple(row[name] for name in ("network", "dataset", "optimizer", "batch_size"))
                groups[key][float(row["power_limit"])].append(values)
        for key, found in groups.items():
            limits = sorted(found, reverse=True)
            times_s, powers_w = np.array([np.mean(found[limit], axis=0) for limit in limits]).T
            gpu = path.stem.removeprefix("summary_power_")
            limits_w = np.array(limits)
            result.append(Measured(gpu=gpu, network=key[0], limits_w=limits_w, times_s=times_s, powers_w=powers_w))
    if not result:
        raise SystemExit(
            f"no summary_power_*.csv in {folder}: their columns are told at the top of {Path(__file__).name}"
        )
    return result


def priors(measured: Sequence[Measured]) -> dict[tuple[str, str], Prior]:
    """For each GPU and network, what the curves of other GPUs and networks teach."""
    result = {}
    for gpu, network in sorted({(one.gpu, one.network) for one in measured}):
        others = [one.curve for one in measured if one.gpu != gpu and one.network != network]
        if len({curve.group for curve in others}) < 2:
            raise SystemExit(f"without {gpu} and {network} too few curves are left to learn from: add GPUs or networks")
        result[gpu, network] = fit(others, "a benchmark's")
    return result


@dataclass(slots=True, kw_only=True)
class Played:
    """What one replay gave."""

    probes: int
    regret: float
    violation: bool
    saving: float
    slowdown: float
    slow_windows: int
    decision_s: float


def play(one: Measured, goal: str, make: Make, noise: tuple[np.ndarray, np.ndarray], *, lowest: bool = False) -> Played:
    """Play a search on a curve.

    Args:
        one: the curve.
        goal: which objective.
        make: the search.
        noise: factors on the times and on the energies of the limits.
        lowest: pick as Zeus does: the lowest limit that keeps the bound.
    """
    objective = GOALS[goal]
    energies = one.times_s * one.powers_w
    seen_s, seen_j = one.times_s * noise[0], energies * noise[1]
    limits, probed = one.limits_w.tolist(), []
    begin = time.process_time()
    search = make(one, objective)
    while (limit := search.ask()) is not None:
        index = limits.index(limit)
        probed.append(index)
        search.tell(Probed(limit=limit, time_s=float(seen_s[index]), energy_j=float(seen_j[index])))
    picked = limits.index(search.best)
    spent_s = time.process_time() - begin
    if lowest:
        picked = max(index for index in probed if objective.allows(float(seen_s[index] / seen_s[0])))
    times, energies = one.times_s / one.times_s[0], energies / energies[0]
    bound = objective.max_slowdown_fraction
    kept = times <= 1 + (math.inf if bound is None else bound + 1e-9)
    return Played(
        probes=len(probed),
        regret=max(0.0, float(energies[picked] / energies[kept].min()) - 1),
        violation=bound is not None and bool(times[picked] > 1 + bound + TOLERANCE),
        saving=1 - float(energies[picked]),
        slowdown=float(times[picked]) - 1,
        slow_windows=int((times[probed] > SLOW).sum()),
        decision_s=spent_s / (len(probed) + 1),
    )


def scored(name: str, played: Sequence[Played], **setting: str | float) -> dict[str, object]:
    """A row of the table."""
    regrets = np.array([p.regret for p in played])
    figures = {
        "probes": np.mean([p.probes for p in played]),
        "regret_fraction": regrets.mean(),
        "regret_p95_fraction": np.quantile(regrets, 0.95),
        "violations_fraction": np.mean([p.violation for p in played]),
        "saving_fraction": np.mean([p.saving for p in played]),
        "slowdown_fraction": np.mean([p.slowdown for p in played]),
        "slow_windows": np.mean([p.slow_windows for p in played]),
        "decision_ms": 1e3 * np.mean([p.decision_s for p in played]),
    }
    return {"search": name, **setting} | {key: round(float(value), 5) for key, value in figures.items()}


def rows(measured: Sequence[Measured], *, quick: bool) -> list[dict[str, object]]:
    """All searches and goals."""
    learnt = priors(measured)

    def prior(one: Measured, objective: Objective) -> RatioSearch:
        return CurvePrior(one.limits_w.tolist(), objective, prior=learnt[one.gpu, one.network])

    def replays(goal: str, make: Make, seed: int = 0, noise: float = NOISE, *, lowest: bool = False) -> list[Played]:
        result = []
        for number, one in enumerate(measured):
            normal = np.random.default_rng((seed, number)).standard_normal((REPEATS, 2, len(one.limits_w)))
            result += [play(one, goal, make, tuple(np.exp(noise * z)), lowest=lowest) for z in normal]
        return result

    table = []
    for goal, objective in GOALS.items():
        same = {"goal": goal, "noise_fraction": NOISE}
        table.append(scored("prior", replays(goal, prior), **same))
        for name, kind in SEARCHES.items():
            if kind is Bisection and objective.max_slowdown_fraction is None:
                continue
            table.append(scored(name, replays(goal, lambda one, o, k=kind: k(one.limits_w.tolist(), o)), **same))
        if quick:
            continue
        table.append(scored("prior, other noise", replays(goal, prior, seed=1), **same))
        double = {"goal": goal, "noise_fraction": 2 * NOISE}
        table.append(scored("prior, twice the noise", replays(goal, prior, noise=2 * NOISE), **double))
        sweep = replays(goal, lambda one, o: Sweep(one.limits_w.tolist(), o), noise=2 * NOISE)
        table.append(scored("sweep, twice the noise", sweep, **double))
        if objective.max_slowdown_fraction is not None:
            zeus = replays(goal, lambda one, o: Sweep(one.limits_w.tolist(), o), lowest=True)
            table.append(scored("Zeus's selector", zeus, **same))
    return table


def report(data: Path, *, quick: bool) -> dict[str, object]:
    """The result, as all benchmarks give it."""
    measured = read(data)
    table = rows(measured, quick=quick)
    prefix = {
        "prior": "",
        "prior, other noise": "other_noise_",
        "prior, twice the noise": "twice_noise_",
        **{name: f"{name}_" for name in SEARCHES},
    }
    metrics = {}
    for row in table:
        if row["search"] in prefix:
            start, goal = prefix[str(row["search"])], row["goal"]
            metrics[f"{start}probes_{goal}"] = row["probes"]
            metrics[f"{start}regret_{goal}_fraction"] = row["regret_fraction"]
            metrics[f"{start}violations_{goal}_fraction"] = row["violations_fraction"]
    metrics["decision_ms"] = max(row["decision_ms"] for row in table if row["search"] == "prior")
    return {
        "benchmark": "power_limit",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "versions": {
            "negawatt": negawatt.__version__,
            "python": platform.python_version(),
            "numpy": np.__version__,
        },
        "data": {
            "curves": len(measured),
            "gpus": sorted({one.gpu for one in measured}),
            "networks": sorted({one.network for one in measured}),
            "repeats": REPEATS,
        },
        "metrics": metrics,
        "table": table,
    }


def main() -> None:
    """Print the result: JSON with --json, else a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=DATA, help="folder that holds summary_power_*.csv (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="leave out other noise, and Zeus's selector")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    result = report(options.data, quick=options.quick)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(f"{result['data']}")
    print(
        f"{'goal':5}{'search':24}{'probes':>7}{'regret':>8}{'p95':>7}{'broken':>8}{'saves':>7}{'slower':>8}{'>25 %':>7}"
    )
    for row in result["table"]:
        shares = (
            "regret_fraction",
            "regret_p95_fraction",
            "violations_fraction",
            "saving_fraction",
            "slowdown_fraction",
        )
        a, b, c, d, e = (100 * row[name] for name in shares)
        line = f"{row['goal']:5}{row['search']:24}{row['probes']:7.2f}{a:7.2f}%{b:6.1f}%{c:7.1f}%{d:6.1f}%{e:7.1f}%"
        print(f"{line}{row['slow_windows']:7.2f}")


if __name__ == "__main__":
    main()

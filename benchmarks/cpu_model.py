"""CPU model: held-out error of processor power from utilisation, beside the formulas that other tools use.

Two kinds of load profiles, in cpu_profiles.csv:

- cpu: RAPL package power of 10 hosts with 8 processors under stepped load. From codecarbon's repository, folder
  cpu_load_profiling (MIT): energy of each step over its length, because the column rapl_power there is that of the step
  before (compare the two columns row by row), and without the run whose power is twice that of the same processor in
  another run. From the turbostress reports of B. Davy and P. Hecht on bare-metal cloud hosts, 2021 to 2022; those
  repositories state no licence, and only the watts are quoted here. Model names of m5, r5 and c5n follow from the
  flags and clock in their reports.
- server: wall power of 34 whole servers, from published SPECpower_ssj2008 results as collected in
  green-coding-solutions/cloud-energy (MIT), five pages of its table taken blindly; retrieved 2026-11-24. SPEC and
  SPECpower_ssj are trademarks of the Standard Performance Evaluation Corporation; see www.spec.org/power_ssj2008.

The models are fitted to the cpu profiles, every processor with the same weight, and tested on the processor, and then
on the family, that was left out. The servers are a second test, of the shape alone: their wall power between their own
idle and full power, again with the family left out. They cannot give processor power, because power supply, fans and
memory are in them.

The straight line is shipped: the best bent one is one point better on held-out processors and worse on the servers.

Beside it: TDP * (0.1 + 0.9 u^3), as codecarbon 3.3 has it where it knows the processor; TDP * u; and half of TDP, as
carbontracker 2.4 has it. Theirs is not fitted, so nothing is held out from it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares

import negawatt
from negawatt.metering.sensors import cpu_model

Curve = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Power over rated power, by parameters (the first two: at idle, at full) and load."""
CANDIDATES: dict[str, tuple[Curve, list[float]]] = {
    "linear": (lambda p, u: p[0] + (p[1] - p[0]) * u, [0.15, 0.8]),
    "power": (lambda p, u: p[0] + (p[1] - p[0]) * u ** p[2], [0.15, 0.8, 0.8]),
    "power and linear": (
        lambda p, u: p[0] + (p[1] - p[0]) * (p[3] * u ** p[2] + (1 - p[3]) * u),
        [0.15, 0.8, 0.5, 0.5],
    ),
    "2u - u^r": (lambda p, u: p[0] + (p[1] - p[0]) * (2 * u - u ** p[2]), [0.15, 0.8, 1.4]),
    "cubic": (lambda p, u: p[0] + (p[1] - p[0]) * u**3, [0.15, 0.8]),
}
FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "codecarbon": lambda u: 0.1 + 0.9 * u**3,
    "tdp times load": lambda u: u,
    "half of tdp": lambda u: 0.5 + 0 * u,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One host's power under stepped load.

    Attributes:
        scope: "cpu" or "server".
        cpu, family: what its processors are.
        rated_w: rated power of all of them [W].
        load: utilisation.
        power_w: as many watts.
    """

    scope: str
    cpu: str
    family: str
    rated_w: float
    load: np.ndarray
    power_w: np.ndarray


def profiles(scope: str) -> list[Profile]:
    """All profiles of one kind."""
    with (Path(__file__).parent / "cpu_profiles.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["scope"] == scope]
    found = []
    for row in rows:
        points = np.array([[float(x) for x in point.split(":")] for point in row["profile"].split()])
        rated_w = float(row["rated_w"]) * int(row["packages"])
        found.append(
            Profile(
                scope=scope,
                cpu=row["cpu"],
                family=row["family"],
                rated_w=rated_w,
                load=points[:, 0] / 100,
                power_w=points[:, 1],
            )
        )
    return found


def fit(name: str, train: Sequence[Profile]) -> np.ndarray:
    """Parameters by least squares of the logarithm, every processor with the same weight."""
    curve, start = CANDIDATES[name]
    cpus = [profile.cpu for profile in train]
    weights = [1 / (cpus.count(p.cpu) * len(p.load)) ** 0.5 for p in train]

    def residuals(parameters: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [
                weight * np.log(np.maximum(curve(parameters, p.load), 1e-3) * p.rated_w / p.power_w)
                for p, weight in zip(train, weights, strict=True)
            ]
        )

    return least_squares(residuals, start, bounds=(1e-3, 3.0)).x


def held_out(name: str, all_profiles: Sequence[Profile], key: str) -> list[tuple[Profile, np.ndarray]]:
    """Every profile with the power that a fit without its processor, or its family, gives it [W]."""
    predicted = []
    for group in sorted({getattr(p, key) for p in all_profiles}):
        parameters = fit(name, [p for p in all_profiles if getattr(p, key) != group])
        predicted += [
            (p, CANDIDATES[name][0](parameters, p.load) * p.rated_w) for p in all_profiles if getattr(p, key) == group
        ]
    return predicted


def errors(predicted: Sequence[tuple[Profile, np.ndarray]]) -> dict[str, float]:
    """Mean absolute error over points and over whole profiles (a day that sees each load as long), processors alike."""
    by_cpu: dict[str, list[float]] = {}
    whole = []
    for profile, power_w in predicted:
        by_cpu.setdefault(profile.cpu, []).extend(abs(power_w / profile.power_w - 1))
        whole.append(abs(power_w.mean() / profile.power_w.mean() - 1))
    middle = [
        error
        for profile, power_w in predicted
        for error in (power_w / profile.power_w - 1)[(profile.load >= 0.25) & (profile.load <= 0.75)]
    ]
    return {
        "mape_fraction": float(np.mean([np.mean(found) for found in by_cpu.values()])),
        "energy_error_fraction": float(np.mean(whole)),
        "bias_25_75_fraction": float(np.mean(middle)),
    }


def gain_sd(predicted: Sequence[tuple[Profile, np.ndarray]]) -> float:
    """Root mean square of true over estimated power, less one, processors alike."""
    by_cpu: dict[str, list[float]] = {}
    for profile, power_w in predicted:
        by_cpu.setdefault(profile.cpu, []).extend((profile.power_w / power_w - 1) ** 2)
    return float(np.mean([np.mean(found) for found in by_cpu.values()]) ** 0.5)


def coverage(all_profiles: Sequence[Profile]) -> float:
    """How many points of a processor lie in the 95 % interval, fit and width both made without it."""
    inside = []
    for cpu in sorted({p.cpu for p in all_profiles}):
        train = [p for p in all_profiles if p.cpu != cpu]
        sd = gain_sd(held_out("linear", train, "cpu"))
        parameters = fit("linear", train)
        for p in all_profiles:
            if p.cpu == cpu:
                ratio = p.power_w / (CANDIDATES["linear"][0](parameters, p.load) * p.rated_w)
                inside += list(abs(ratio - 1) <= 1.96 * sd)
    return float(np.mean(inside))


def shape_error(name: str, servers: Sequence[Profile]) -> float:
    """Mean absolute error of wall power between a server's own idle and full power, its family left out."""
    curve, start = CANDIDATES[name]

    def shape(free: Sequence[float], load: np.ndarray) -> np.ndarray:
        return curve(np.array([0.0, 1.0, *free]), load)

    found = []
    for family in sorted({p.family for p in servers}):
        train = [p for p in servers if p.family != family]

        def residuals(free: np.ndarray, train: Sequence[Profile] = train) -> np.ndarray:
            spans = [(p.power_w - p.power_w[0]) / (p.power_w[-1] - p.power_w[0]) for p in train]
            return np.concatenate([shape(free, p.load) - span for p, span in zip(train, spans, strict=True)])

        free = least_squares(residuals, start[2:], bounds=(1e-3, 4.0)).x if start[2:] else []
        for p in servers:
            if p.family == family:
                power_w = p.power_w[0] + (p.power_w[-1] - p.power_w[0]) * shape(free, p.load)
                found.append(np.mean(abs(power_w / p.power_w - 1)[1:-1]))
    return float(np.mean(found))


def report() -> dict:
    """The JSON object of this benchmark."""
    cpus, servers = profiles("cpu"), profiles("server")
    table: list[dict] = [
        {
            "model": name,
            "held_out": "processor",
            **errors(held_out(name, cpus, "cpu")),
            "family_mape_fraction": errors(held_out(name, cpus, "family"))["mape_fraction"],
            "server_shape_mape_fraction": shape_error(name, servers),
            "parameters": [round(float(x), 3) for x in fit(name, cpus)],
        }
        for name in CANDIDATES
    ]
    for name, formula in FORMULAS.items():
        found = errors([(p, formula(p.load) * p.rated_w) for p in cpus])
        table.append({"model": name, "held_out": "nothing to fit", **found})
    chosen = table[0]
    dynamic = [(p.power_w[-1] - p.power_w[0]) / p.rated_w for p in servers]
    idle, full = fit("linear", cpus)
    metrics = {
        "mape_fraction": chosen["mape_fraction"],
        "family_mape_fraction": chosen["family_mape_fraction"],
        "energy_error_fraction": chosen["energy_error_fraction"],
        "gain_sd_fraction": gain_sd(held_out("linear", cpus, "cpu")),
        "coverage_fraction": coverage(cpus),
        "idle_fraction": float(idle),
        "full_fraction": float(full),
        "shipped_idle_fraction": cpu_model.IDLE_FRACTION,
        "shipped_full_fraction": cpu_model.FULL_FRACTION,
        "shipped_gain_sd_fraction": cpu_model.GAIN_SD_FRACTION,
        "server_shape_mape_fraction": chosen["server_shape_mape_fraction"],
        "server_dynamic_over_rated_median": float(np.median(dynamic)),
        **{f"{r['model'].replace(' ', '_')}_mape_fraction": r["mape_fraction"] for r in table[len(CANDIDATES) :]},
        **{
            f"{r['model'].replace(' ', '_')}_energy_error_fraction": r["energy_error_fraction"]
            for r in table[len(CANDIDATES) :]
        },
    }
    return {
        "benchmark": "cpu_model",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "versions": {"negawatt": negawatt.__version__, "python": platform.python_version(), "numpy": np.__version__},
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
        "table": [{k: round(v, 4) if isinstance(v, float) else v for k, v in row.items()} for row in table],
    }


def main() -> None:
    """Print the result: JSON with --json, else a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    result = report()
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(f"{'model':<18} {'MAPE':>6} {'family':>6} {'energy':>6} {'bias':>6} {'servers':>7}  parameters")
    for row in result["table"]:
        family, shape = row.get("family_mape_fraction"), row.get("server_shape_mape_fraction")
        print(
            f"{row['model']:<18} {row['mape_fraction']:>6.1%} {'' if family is None else f'{family:.1%}':>6} "
            f"{row['energy_error_fraction']:>6.1%} {row['bias_25_75_fraction']:>+6.1%} "
            f"{'' if shape is None else f'{shape:.1%}':>7}  {row.get('parameters', '')}"
        )
    for name, value in result["metrics"].items():
        print(f"{name} {value}")


if __name__ == "__main__":
    main()

"""Estimate: how far the predicted energy of serving is from what was measured, beside EcoLogits.

Measured: the ML.ENERGY leaderboard v3 for H100 (`serving/mlenergy_v3_h100.csv` under --data): GPU joules per token
given out, by model, task, number of GPUs and batch limit. Predicted from what a user would know: parameters, bits,
GPUs, the batch as it was on average, and the mean length of the replies. The table does not say how long the prompts
are; they are assumed per task (PROMPT_TOKENS), not fitted.

Rows of text tasks are judged: 16 families (maker and size). What is shipped in `report/estimate.py` comes from all of
them: the constants from a fit to all rows, the range from the errors of predicting each family by a fit to the others.
The range is a 95 % prediction interval for a row of a new family: Student's t over families, on the logarithm, each
family with the same weight. (A conformal range needs no normal errors, but puts 1/(families + 1) of its weight at
infinity, arXiv:2306.06342: below 19 families its 95 % range has no end.)

How good that is, is told by nested cross-validation: constants and range are made in the same way without some
families, which are then predicted. Left out are each family in turn ("held_out"), 20 seeded random halves ("halves"),
and each maker in turn ("makers": siblings share a design). No split was chosen. "shipped" looks at its own rows: no
test. Most rows out of range are of Qwen3 235B in 8 bits, which takes up to 2.5 times its prediction.

What this cannot test is the form of the model and what it assumes without a fit: they were written with all rows in
view. Rows with images and video are shown apart, predicted by what is shipped: the model knows nothing of the encoder
and of how many tokens a picture is.

Beside it, EcoLogits' own function (MPL-2.0, called, not copied) on the same rows, at the same batch and at its default
of 64, times the GPUs in use, as it says. At batch limit 64 both can be compared at the batch that it was made for.

Hours of training: what `6 N D` and the range of utilisation give, beside the GPU-hours that the makers published.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
from scipy.optimize import least_squares
from scipy.stats import t as student

import negawatt
from negawatt.hardware.catalogue import find
from negawatt.report.assumed import UTILISATION
from negawatt.report.estimate import CALIBRATED_ON, FLOP_PER_TRAINED, Model, Serving, Step, decode

H100 = find(CALIBRATED_ON)
DATA = "serving/mlenergy_v3_h100.csv"
BITS = {"bfloat16": 16.0, "fp8": 8.0, "mxfp4": 4.25}
# Experts that a token is sent to, of how many: the makers' model cards. Active parameters are in the table itself.
ROUTED = {
    ("Qwen", "30"): 8 / 128,  # huggingface.co/Qwen/Qwen3-30B-A3B
    ("Qwen", "235"): 8 / 128,  # huggingface.co/Qwen/Qwen3-235B-A22B
    ("openai", "21"): 4 / 32,  # huggingface.co/openai/gpt-oss-20b
    ("openai", "117"): 4 / 128,  # huggingface.co/openai/gpt-oss-120b
    ("meta-llama", "109"): 1 / 16,  # huggingface.co/meta-llama/Llama-4-Scout-17B-16E
    ("meta-llama", "400"): 1 / 128,  # huggingface.co/meta-llama/Llama-4-Maverick-17B-128E
}
PROMPT_TOKENS = {"lm-arena-chat": 150, "gpqa": 200, "sourcegraph-fim": 1500, "image-chat": 2000, "video-chat": 4000}
TEXT = ("lm-arena-chat", "gpqa", "sourcegraph-fim")
TRAINED = (  # name, parameters, tokens, device, published GPU-hours
    ("BLOOM, arXiv:2211.02001", 176e9, 366e9, "A100 SXM 80GB", 1_082_990),
    ("Llama 3.1 405B, its model card", 405e9, 15.6e12, "H100 SXM", 30.84e6),
)
PEER_VERSION = "0.11.3"
PEER = """
import json, sys
from ecologits.impacts.llm import BATCH_SIZE, compute_llm_impacts_dag
def joules(row, batch):
    dag = compute_llm_impacts_dag(
        model_active_parameter_count=row["active"], model_total_parameter_count=row["total"], output_token_count=1,
        request_latency=float("inf"), if_electricity_mix_adpe=0, if_electricity_mix_pe=0, if_electricity_mix_gwp=0,
        if_electricity_mix_wue=0, datacenter_pue=1, datacenter_wue=0, batch_size=batch)
    return dag["gpu_energy"] * 3.6e6 * row["gpus"]
rows = json.load(sys.stdin)
json.dump([[joules(row, row["batch"]), joules(row, BATCH_SIZE)] for row in rows], sys.stdout)
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measured configuration."""

    maker: str
    size: str
    task: str
    gpus: int
    limit: int
    model: Model
    batch: float
    reply_tokens: float
    token_j: float
    power_w: float
    time_s: float

    @property
    def family(self) -> str:
        """Maker and size."""
        return f"{self.maker} {self.size}"

    def predicted(self, constants: Serving | None = None) -> Step:
        """The step that the model predicts; by default with the constants that are shipped."""
        return decode(
            H100,
            self.gpus,
            self.model,
            batch=self.batch,
            prompt_ratio=PROMPT_TOKENS[self.task] / self.reply_tokens,
            reply_tokens=self.reply_tokens,
            constants=constants,
        )


def rows(path: Path) -> list[Row]:
    """All rows with energy per token."""
    with path.open(encoding="utf-8", newline="") as file:
        return [_row(raw) for raw in csv.DictReader(file) if raw["energy_per_token_joules"]]


def _row(raw: dict[str, str]) -> Row:
    maker, size = raw["model_id"].split("/")[0], raw["total_params_billions"]
    return Row(
        maker=maker,
        size=size,
        task=raw["task"],
        gpus=int(float(raw["num_gpus"])),
        limit=int(float(raw["max_num_seqs"])),
        model=Model(
            params=float(size) * 1e9,
            active_params=float(raw["activated_params_billions"]) * 1e9,
            bits=BITS[raw["weight_precision"]],
            routed_fraction=ROUTED.get((maker, size)),
        ),
        batch=float(raw["avg_batch_size"]),
        reply_tokens=float(raw["avg_output_len"]),
        token_j=float(raw["energy_per_token_joules"]),
        power_w=float(raw["avg_power_watts"]),
        time_s=float(raw["avg_batch_size"]) / float(raw["output_throughput_tokens_per_sec"]),
    )


Families = frozenset[str]
NAMES = [f.name for f in fields(Serving) if f.name != "error"]
START = (5e-5, 2e-5, 5e-5, 0.4, 0.4)  # where the fit begins, in the order of NAMES
PROBE = dict.fromkeys(NAMES, 0.0) | {"waiting_fraction": 1.0}


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Table:
    """Rows as arrays, for fitting: a step's time is linear in the three waits, so it needs no call of `decode`."""

    rows: list[Row]
    family: np.ndarray
    measured: np.ndarray  # (rows, 3): time [s], power [W], energy per token [J]
    batch: np.ndarray
    steps: np.ndarray  # (rows, 4): time without waits [s], and what multiplies each wait
    full_w: np.ndarray

    def predicted(self, constants: np.ndarray) -> np.ndarray:
        """What `decode` gives for constants in the order of NAMES, shaped as `measured`."""
        time_s = self.steps @ [1.0, *constants[:3]]
        power_w = self.full_w * np.minimum(1.0, constants[3] + constants[4] * self.steps[:, 0] / time_s)
        return np.array([time_s, power_w, power_w * time_s / self.batch]).T


def tabulate(found: list[Row]) -> Table:
    """The text rows as arrays; `decode` is asked for what multiplies each wait."""
    text = [row for row in found if row.task in TEXT]

    def steps(**probe: float) -> np.ndarray:
        return np.array([row.predicted(Serving(**PROBE | probe)).time_s for row in text])

    bare = steps()
    return Table(
        rows=text,
        family=np.array([row.family for row in text]),
        measured=np.array([(row.time_s, row.power_w, row.token_j) for row in text]),
        batch=np.array([row.batch for row in text]),
        steps=np.array([bare, *(steps(**{name: 1.0}) - bare for name in NAMES[:3])]).T,
        full_w=np.array([row.predicted(Serving(**PROBE)).power_w for row in text]),
    )


@cache
def fit(table: Table, without: Families = frozenset()) -> np.ndarray:
    """Constants that fit time, power and (counted twice) energy, in logarithms; outliers count less."""
    kept = ~np.isin(table.family, list(without))
    weight = np.array([1.0, 1.0, 2.0])

    def misses(logs: np.ndarray) -> np.ndarray:
        return (weight * np.log(table.predicted(np.exp(logs)) / table.measured)[kept]).ravel()

    return np.exp(least_squares(misses, np.log(START), loss="soft_l1", f_scale=0.3).x)


def band(table: Table, without: Families = frozenset()) -> tuple[float, float]:
    """95 % prediction interval of measured over predicted energy, for a row of a family that is not in the fit.

    Each family is predicted by a fit to the others and has the same weight, split over its rows. The variance between
    families and within them is taken in one, with the degrees of freedom of the families alone, which are few.
    """
    errors = []
    for family in sorted(set(table.family) - without):
        ratio = table.measured[:, 2] / table.predicted(fit(table, without | {family}))[:, 2]
        errors.append(np.log(ratio[table.family == family]))
    n, centre = len(errors), np.mean([np.mean(e) for e in errors])
    variance = np.mean([np.mean((e - centre) ** 2) for e in errors]) * n / (n - 1)
    half = student.ppf(0.975, n - 1) * math.sqrt(variance * (1 + 1 / n))
    return math.exp(centre - half), math.exp(centre + half)


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """A prediction of one row [J per token], its range as factors, and the split in which the row was left out."""

    row: Row
    token_j: float
    range: tuple[float, float] | None = None
    split: int = 0

    @property
    def inside(self) -> bool:
        """Whether the measured energy is in the range."""
        return self.range is not None and self.range[0] <= self.row.token_j / self.token_j <= self.range[1]

    @property
    def at_64(self) -> bool:
        """Whether it is of at most 64 sequences in a batch, of conversations or questions."""
        return self.row.limit == 64 and self.row.task in ("lm-arena-chat", "gpqa")


def held_out(table: Table, left_out: Iterable[Families]) -> list[Predicted]:
    """The rows of each set of families, predicted by constants and range that were made without them."""
    result = []
    for split, without in enumerate(left_out):
        factors, token_j = band(table, without), table.predicted(fit(table, without))[:, 2].tolist()
        result += [
            Predicted(row=row, token_j=j, range=factors, split=split)
            for row, j in zip(table.rows, token_j, strict=True)
            if row.family in without
        ]
    return result


def splits(table: Table) -> dict[str, list[Families]]:
    """Ways to leave families out: one at a time, 20 random halves, all of a maker."""
    families = sorted({row.family for row in table.rows})
    rng = np.random.default_rng(0)
    makers = sorted({row.maker for row in table.rows})
    return {
        "held_out": [frozenset({family}) for family in families],
        "halves": [frozenset(rng.permutation(families)[: len(families) // 2].tolist()) for _ in range(20)],
        "makers": [frozenset(row.family for row in table.rows if row.maker == maker) for maker in makers],
    }


def peer(found: list[Row], python: Path) -> list[list[float]]:
    """EcoLogits' joules per token: at the batch of the row, and at its default batch."""
    asked = [
        {"active": r.model.active_params / 1e9, "total": r.model.params / 1e9, "gpus": r.gpus, "batch": r.batch}
        for r in found
    ]
    run = subprocess.run([python, "-c", PEER], input=json.dumps(asked), capture_output=True, text=True, check=True)
    answer: list[list[float]] = json.loads(run.stdout)
    return answer


def score(found: Sequence[Predicted]) -> dict[str, float]:
    """Agreement of predictions with what was measured; coverage is the share of rows in their range."""
    ratio = np.array([p.token_j / p.row.token_j for p in found])
    result = {
        "n": len(found),
        "ratio_median": np.median(ratio),
        "error_mean_fraction": np.mean(np.abs(ratio - 1)),
        "within_25_fraction": np.mean((ratio > 0.8) & (ratio < 1.25)),
    }
    if found[0].range:
        result["coverage_fraction"] = np.mean([p.inside for p in found])
        result["low_ratio"], result["high_ratio"] = np.exp(np.mean(np.log([p.range for p in found]), axis=0))
    return {key: round(float(value), 3) if key != "n" else value for key, value in result.items()}


def coverages(found: Sequence[Predicted]) -> dict[str, float]:
    """Coverage as the mean of families, in the worst family, and in the worst split."""

    def by(keys: list) -> list[float]:
        return [float(np.mean([p.inside for p, k in zip(found, keys, strict=True) if k == key])) for key in set(keys)]

    families, parts = by([p.row.family for p in found]), by([p.split for p in found])
    result = {"mean_family": sum(families) / len(families), "worst_family": min(families), "worst_split": min(parts)}
    return {f"{key}_coverage_fraction": round(value, 3) for key, value in result.items()}


def training_table() -> list[dict]:
    """Predicted and published GPU-hours of training runs."""
    table = []
    for name, params, tokens, device, published_h in TRAINED:
        ideal_h = FLOP_PER_TRAINED * params * tokens / find(device).half_flop_per_s / 3600
        low_h, high_h = ideal_h / UTILISATION.high, ideal_h / UTILISATION.low
        table.append(
            {
                "set": f"training hours: {name}",
                "published_h": published_h,
                "central_h": round(ideal_h / UTILISATION.value),
                "low_h": round(low_h),
                "high_h": round(high_h),
                "inside": low_h <= published_h <= high_h,
            }
        )
    return table


def scores(found: list[Row], python: Path | None) -> list[dict]:
    """All sets of rows, by negawatt and, with a Python that has it, by EcoLogits."""
    table, media = tabulate(found), [row for row in found if row.task not in TEXT]
    result = []
    for name, left_out in splits(table).items():
        predicted = held_out(table, left_out)
        result.append({"set": name, "tool": "negawatt", **score(predicted), **coverages(predicted)})
    one_by_one = held_out(table, splits(table)["held_out"])
    sets = {"text_batch_64": [p for p in one_by_one if p.at_64]}
    for name, part in (("shipped", table.rows), ("media", media)):
        sets[name] = [Predicted(row=row, token_j=row.predicted().token_j, range=Serving().error) for row in part]
    sets |= {family: [p for p in one_by_one if p.row.family == family] for family in sorted(set(table.family))}
    result += [{"set": name, "tool": "negawatt", **score(predicted)} for name, predicted in sets.items()]
    if python:
        asked = [*table.rows, *media]
        joules = zip(*peer(asked, python), strict=True)
        for tool, answers in zip(("ecologits", "ecologits, batch 64"), joules, strict=True):
            theirs = [Predicted(row=row, token_j=token_j) for row, token_j in zip(asked, answers, strict=True)]
            text = theirs[: len(table.rows)]
            sets = {"held_out": text, "text_batch_64": [p for p in text if p.at_64], "media": theirs[len(text) :]}
            result += [{"set": name, "tool": tool, **score(part)} for name, part in sets.items()]
    constants = dict(zip(NAMES, fit(table).tolist(), strict=True))
    low, high = band(table)
    return [*result, {"set": "to be shipped", "tool": "negawatt", **constants, "low_ratio": low, "high_ratio": high}]


TOLD = ("coverage_fraction", "ratio_median", "error_mean_fraction")
SETS = ("held_out", "halves", "makers", "text_batch_64", "media")


def report(data: Path, python: Path | None) -> dict:
    """The JSON object of this benchmark."""
    table, hours = scores(rows(data / DATA), python), training_table()
    prefix = {"negawatt": "", "ecologits": "ecologits_", "ecologits, batch 64": "ecologits_batch_64_"}
    metrics = {
        f"{prefix[row['tool']]}{row['set']}_{key}": row[key]
        for row in table
        if row["set"] in SETS
        for key in TOLD
        if key in row
    }
    metrics["mean_family_coverage_fraction"] = table[0]["mean_family_coverage_fraction"]
    for name, row in zip(("family", "half", "maker"), table, strict=False):
        metrics[f"worst_{name}_coverage_fraction"] = row["worst_split_coverage_fraction"]
    metrics["range_low_ratio"], metrics["range_high_ratio"] = Serving().error
    metrics["training_hours_inside_fraction"] = sum(row["inside"] for row in hours) / len(hours)
    return {
        "benchmark": "estimate",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "versions": {"negawatt": negawatt.__version__, "python": platform.python_version(), "numpy": np.__version__}
        | ({"ecologits": PEER_VERSION} if python else {}),
        "metrics": metrics,
        "table": [*table, *hours],
    }


def main() -> None:
    """Print the result: JSON with --json, else a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder that holds {DATA}")
    parser.add_argument("--quick", action="store_true", help="leave the peer out")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    python = None
    if not options.quick:
        import peers

        python = peers.python_of("ecologits", f"ecologits=={PEER_VERSION}")
    result = report(options.data, python)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    for row in result["table"]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()

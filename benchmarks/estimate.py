"""Estimate: how far the predicted energy of serving is from what was measured, beside EcoLogits.

Measured: the ML.ENERGY leaderboard v3 for H100 (`serving/mlenergy_v3_h100.csv` under --data): GPU joules per token
given out, by model, task, number of GPUs and batch limit. Predicted from what a user would know: parameters, bits,
GPUs, the batch as it was on average, and the mean length of the replies. The table does not say how long the prompts
are; they are assumed per task (PROMPT_TOKENS), not fitted.

Rows of text tasks are judged. Families (maker and size) are sorted, mixtures of experts after dense ones, each by size;
every other one, from the first on, is the calibration half: 8 families. The constants in `report/estimate.py` come from
it alone; its range comes from predicting each of its families by a fit to the others. The other half, 8 families, is
held out. `--fit` fits again, and also with the halves exchanged, which shows how much the split matters: the second
half alone is more uniform, and a range drawn from it would be too narrow. Rows with images and video are shown apart:
the model knows nothing of the encoder and of how many tokens a picture is.

Beside it, EcoLogits' own function (MPL-2.0, called, not copied) at the same batch and at its default of 64, times the
GPUs in use, as it says: give the Python of an environment that has it, `--peer-python PATH`.

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
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

import negawatt
from negawatt.hardware.catalogue import find
from negawatt.report.assumed import UTILISATION
from negawatt.report.estimate import CALIBRATED_ON, FLOP_PER_TRAINED, Model, Serving, Step, decode

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
PROMPT_TOKENS = {  # assumed
    "lm-arena-chat": 150,
    "gpqa": 200,
    "sourcegraph-fim": 1500,
    "image-chat": 2000,
    "video-chat": 4000,
}
TEXT = ("lm-arena-chat", "gpqa", "sourcegraph-fim")
TRAINED = (  # name, parameters, tokens, device, published GPU-hours
    ("BLOOM, arXiv:2211.02001", 176e9, 366e9, "A100 SXM 80GB", 1_082_990),
    ("Llama 3.1 405B, its model card", 405e9, 15.6e12, "H100 SXM", 30.84e6),
)
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

    name: str
    family: tuple[str, str]
    task: str
    gpus: int
    limit: int
    model: Model
    batch: float
    reply_tokens: float
    token_j: float
    power_w: float
    time_s: float

    def predicted(self, constants: Serving | None = None) -> Step:
        """The step that the model predicts."""
        return decode(
            find(CALIBRATED_ON),
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
    maker, name = raw["model_id"].split("/")
    family = (maker, raw["total_params_billions"])
    return Row(
        name=name,
        family=family,
        task=raw["task"],
        gpus=int(float(raw["num_gpus"])),
        limit=int(float(raw["max_num_seqs"])),
        model=Model(
            params=float(raw["total_params_billions"]) * 1e9,
            active_params=float(raw["activated_params_billions"]) * 1e9,
            bits=BITS[raw["weight_precision"]],
            routed_fraction=ROUTED.get(family),
        ),
        batch=float(raw["avg_batch_size"]),
        reply_tokens=float(raw["avg_output_len"]),
        token_j=float(raw["energy_per_token_joules"]),
        power_w=float(raw["avg_power_watts"]),
        time_s=float(raw["avg_batch_size"]) / float(raw["output_throughput_tokens_per_sec"]),
    )


def halves(found: list[Row]) -> tuple[list[Row], list[Row]]:
    """Calibration and held-out rows of text tasks: every other family."""
    text = [row for row in found if row.task in TEXT]
    families = sorted({row.family for row in found}, key=lambda f: (f in ROUTED, float(f[1]), f[0]))
    first = set(families[::2])
    return [row for row in text if row.family in first], [row for row in text if row.family not in first]


FITTED = [field.name for field in fields(Serving) if field.name != "error"]


def fit(found: list[Row]) -> Serving:
    """Constants that fit time, power and (counted twice) energy, in logarithms; outliers count less."""
    from scipy.optimize import least_squares

    def misses(logs: np.ndarray) -> list[float]:
        constants = replace(Serving(), **dict(zip(FITTED, np.exp(logs).tolist(), strict=True)))
        out = []
        for row in found:
            step = row.predicted(constants)
            out += [math.log(step.time_s / row.time_s), math.log(step.power_w / row.power_w)]
            out.append(2 * math.log(step.token_j / row.token_j))
        return out

    logs = least_squares(misses, np.log([5e-5, 2e-5, 5e-5, 0.4, 0.4]), loss="soft_l1", f_scale=0.3).x
    return replace(Serving(), **{name: float(f"{math.exp(x):.3g}") for name, x in zip(FITTED, logs, strict=True)})


def error(found: list[Row]) -> tuple[float, float]:
    """5 and 95 % quantiles of measured over predicted, each family predicted by a fit to the others."""
    logs = []
    for family in sorted({row.family for row in found}):
        constants = fit([row for row in found if row.family != family])
        logs += [math.log(r.token_j / r.predicted(constants).token_j) for r in found if r.family == family]
    low, high = np.exp(np.quantile(logs, [0.05, 0.95])).round(3)
    return float(low), float(high)


def peer(found: list[Row], python: Path) -> list[list[float]]:
    """EcoLogits' joules per token: at the batch of the row, and at its default batch."""
    asked = [
        {
            "active": row.model.active_params / 1e9,
            "total": row.model.params / 1e9,
            "gpus": row.gpus,
            "batch": row.batch,
        }
        for row in found
    ]
    run = subprocess.run([python, "-c", PEER], input=json.dumps(asked), capture_output=True, text=True, check=True)
    answer: list[list[float]] = json.loads(run.stdout)
    return answer


def score(predicted: list[float], found: list[Row], band: tuple[float, float] | None = None) -> dict[str, float]:
    """Agreement of predictions with what was measured; with a band, the share of rows inside it."""
    ratio = np.array([p / row.token_j for p, row in zip(predicted, found, strict=True)])
    result = {
        "n": len(found),
        "ratio_median": float(np.median(ratio)),
        "error_mean_fraction": float(np.mean(np.abs(ratio - 1))),
        "within_25_fraction": float(np.mean((ratio > 0.8) & (ratio < 1.25))),
    }
    if band:
        result["coverage_fraction"] = float(np.mean((1 / ratio >= band[0]) & (1 / ratio <= band[1])))
    return {key: round(value, 3) for key, value in result.items()}


def ours(found: list[Row], constants: Serving | None = None) -> list[float]:
    """Predicted joules per token."""
    return [row.predicted(constants).token_j for row in found]


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


def report(data: Path, python: Path | None, *, refit: bool) -> dict:
    """The JSON object of this benchmark."""
    found = rows(data / DATA)
    first, second = halves(found)
    media = [row for row in found if row.task not in TEXT]
    at_64 = [row for row in (*first, *second) if row.limit == 64 and row.task != "sourcegraph-fim"]
    band = Serving().error
    sets = {"calibration": first, "held_out": second, "text": [*first, *second], "text_batch_64": at_64, "media": media}
    table = [{"set": name, "tool": "negawatt", **score(ours(part), part, band)} for name, part in sets.items()]
    table += [
        {"set": " ".join(family), "tool": "negawatt", **score(ours(part), part, band)}
        for family in sorted({row.family for row in second})
        if (part := [row for row in second if row.family == family])
    ]
    if python:
        for name, part in sets.items():
            answers = peer(part, python)
            for tool, column in (("ecologits", 0), ("ecologits, batch 64", 1)):
                table.append({"set": name, "tool": tool, **score([a[column] for a in answers], part)})
    if refit:
        for name, calibration, test in (("fit again", first, second), ("halves exchanged", second, first)):
            constants, exchanged = fit(calibration), error(calibration)
            table.append({"set": name, "tool": "negawatt", **score(ours(test, constants), test, exchanged)})
            table[-1] |= {"low_ratio": exchanged[0], "high_ratio": exchanged[1]}
            table[-1] |= {key: getattr(constants, key) for key in FITTED}
    metrics = {
        f"{'' if row['tool'] == 'negawatt' else row['tool'].replace(', ', '_').replace(' ', '_') + '_'}"
        f"{row['set'].replace(' ', '_')}_{key}": value
        for row in table
        if row["set"] in (*sets, "halves exchanged")
        for key, value in row.items()
        if key.endswith(("coverage_fraction", "ratio_median", "error_mean_fraction"))
    }
    hours = training_table()
    metrics |= {"range_low_ratio": band[0], "range_high_ratio": band[1]}
    metrics["training_hours_inside_fraction"] = sum(row["inside"] for row in hours) / len(hours)
    return {
        "benchmark": "estimate",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "load": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "versions": {"negawatt": negawatt.__version__, "python": platform.python_version(), "numpy": np.__version__},
        "metrics": metrics,
        "table": [*table, *hours],
    }


def main() -> None:
    """Print the result: JSON with --json, else a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help=f"folder that holds {DATA}")
    parser.add_argument("--peer-python", type=Path, help="Python of an environment with ecologits; else it is left out")
    parser.add_argument("--fit", action="store_true", help="fit the constants again, and with the halves exchanged")
    parser.add_argument("--quick", action="store_true", help="leave the peer out")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    result = report(options.data, None if options.quick else options.peer_python, refit=options.fit)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    for row in result["table"]:
        print("  ".join(f"{key} {value}" for key, value in row.items()))


if __name__ == "__main__":
    main()

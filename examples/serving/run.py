"""Joules per request of the embeddings server, without a gateway and behind one, under one bounded load.

    python run.py --trace AzureLLMInferenceTrace_conv.csv.gz
    python run.py --per-s 20 --time 60 -- --cache 64MB --window 5ms --max-batch 8

What follows `--` are options of `negawatt gateway`. Runs alternate (without, with, with, without), so that a drift of
the machine falls on both alike. The joules are those of the whole host, so other programs disturb them. That is a look,
not a proof: `benchmarks/serving.py` makes one.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import nullcontext
from itertools import islice
from pathlib import Path

from services import Serving, answered, gateway, metered, server
from texts import Load, call, load, sentences

from negawatt.core.workload import Call
from negawatt.search.arrivals import replay

GATEWAY = ("--control", "--p99=200ms", "--max-batch=16", "--cache=64MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-s", type=float, default=15.0, help="mean requests a second (15)")
    parser.add_argument("--time", type=float, default=20.0, help="seconds of each of the four runs (20)")
    parser.add_argument("--exponent", type=float, default=0.8, help="of Zipf's law, by which texts repeat (0.8)")
    parser.add_argument("--trace", type=Path, help="Azure's conversation trace; without it arrivals are Poisson")
    parser.add_argument("--threads", type=int, default=2, help="that run the model (2)")
    parser.add_argument("--max-batch", type=int, default=8, help="texts that the server runs together (8)")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    parser.add_argument("gateway", nargs="*", default=GATEWAY, help=f"its options ({' '.join(GATEWAY)})")
    args = parser.parse_args()

    given = load(per_s=args.per_s, time_s=args.time, exponent=args.exponent, trace=args.trace)
    how = Serving(precision=args.precision, threads=args.threads, max_batch=args.max_batch)
    print(f"{len(given.calls)} requests in {given.time_s:.0f} s, {given.repeat_fraction:.0%} repeats; {given.note}")
    energies, warm = {"without": [], "with": []}, warm_up(given)
    with server(how) as upstream:
        for arm in ("without", "with", "with", "without"):
            print(f"{arm} gateway ...", end=" ", flush=True)
            with gateway([upstream], args.gateway) if arm == "with" else nullcontext(upstream) as url:
                answered(replay(url, warm))  # the first ones are slower
                measured, replied = metered(url, given.calls)
            energies[arm].append(measured.energy_per_work_j)
            cached = sum(reply.headers.get("negawatt-outcome") == "cached" for reply in replied)
            p50_ms, p99_ms = 1e3 * measured.latency.p50_s, 1e3 * measured.latency.p99_s
            print(
                f"{measured.energy_per_work_j:.3f} J per request ({measured.source}), p50 {p50_ms:.0f} ms, "
                f"p99 {p99_ms:.0f} ms, {cached / len(replied):.0%} from the cache"
            )
    without, behind = (sum(energies[arm]) / 2 for arm in ("without", "with"))
    rounds = ", ".join(compared(*pair) for pair in zip(energies["without"], energies["with"], strict=True))
    print(f"{without:.3f} J per request without the gateway, {behind:.3f} J with it")
    print(f"behind the gateway a request needs {compared(without, behind)} (round by round: {rounds})")
    print("These are the joules of the whole host: what else ran on it can hide or feign what is saved. Look twice.")


def warm_up(given: Load, number: int = 10) -> list[Call]:
    """Calls with texts that the load does not ask, so that no cache knows any of it before."""
    asked = set(given.texts)
    spare = (text for text in sentences() if text not in asked)
    return [call(0.1 * i, text) for i, text in enumerate(islice(spare, number))]


def compared(without_j: float, with_j: float) -> str:
    """What the one needs beside the other, in words."""
    more = with_j / without_j - 1
    return f"{abs(more):.0%} {'more' if more > 0 else 'less'}".replace("%", " %")


if __name__ == "__main__":
    sys.exit(main())

"""Simulator: how right the meter is about joules that are known, on simulated sensors with the faults of real ones.

Each scenario is a random load (idle, steps, bursts, sawtooth, or training, half of it in beat with a sensor that is
brought up to date every 100 ms), a window of random length (a quarter of them 20 ms to 2 s, the others 2 s to 10 min,
both evenly in the logarithm) and, in every second one, a fault. The real `Meter`, its windows and sensors run on a
simulated clock that wakes the poller late, as an operating system does; GPUs are read through the real nvidia-ml-py and
the fake libnvidia-ml.so.1 of negawatt.testing. What is true comes from `true_joules`, which shares no code with them.

The unknown factor and constant of each sensor (gain, offset) are drawn from the standard deviations that its readings
state. So there are two errors:

- error: against what an unbiased sensor would have counted, gain and offset taken out; the bar of 1 % is for it, on
  windows of 2 s and more, unless the reading is flagged or refused;
- coverage: how often the stated 95 % interval, gain and offset included, holds the true joules. `random_coverage` is
  the same for the random error alone, gain and offset taken out.

Without a fault, the counter of a processor moves every millisecond, that of a GPU every 10, 20 or 100 ms, and the power
of a GPU is brought up to date every 20 ms, is the mean over that time and flickers by 0.2 %. A100 and H100 look a
quarter of the time: here that is a fault ("part-time sensor"), and the sensor flags every reading of theirs.

The socket that hwmon reads has a counter that moves every millisecond; its chips that show means over 0.1 to 1 s are
faults. A BMC shows means over a second, up to two seconds late, so its short windows are flagged without a fault, too,
and do not count in `flagged_fraction`.

Four runs that overlap on one host are metered, too: their parts over the host's joules is `host_sum_ratio`. And a few
windows run live in real time: RAPL's files, and GPUs in a process of their own that finds the fake library as it
would find the driver's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from random import Random
from statistics import median

from simulator_backends import BACKENDS, Backend, Scenario, Stage, new_folder, prepare

import negawatt
from negawatt.core.errors import NegawattError
from negawatt.core.reading import Probe, Reading, total
from negawatt.hardware.host import this_host
from negawatt.metering.board import Board
from negawatt.metering.select import open_best
from negawatt.metering.sensors import rapl
from negawatt.metering.session import Meter
from negawatt.testing import Load, SimulatedGpu, SimulatedNvml, SimulatedPowercap, random_load, true_joules

SCENARIOS = 1000
BAR_FROM_S = 2.0
HOST = replace(this_host(), system="Linux 6.8")
Z95 = 1.959964


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How one scenario went."""

    fault: str
    length_s: float
    flagged: bool
    error_fraction: float = math.nan
    covered: bool = False
    random_covered: bool = False


# ---- the play -------------------------------------------------------------------------------------------------------


def metered(stage: Stage, scenario: Scenario) -> tuple[Reading, ...]:
    """Readings of the window. Raises NegawattError where the meter refuses."""
    stage.advance(scenario.begin_s)
    with Meter(open_best({stage.sensor.info.name: stage.sensor}, HOST), stage.clock, background=False) as meter:
        window = meter.start()
        strikes = sorted(stage.strikes, key=lambda strike: strike[0])
        while (now_s := stage.clock()) < scenario.end_s:
            wake_s = now_s + meter.poll_s + scenario.rng.expovariate(1 / 3e-4)
            next_s = min(wake_s, scenario.end_s, *(at_s for at_s, _ in strikes))
            stage.advance(max(0.0, next_s - now_s))
            if strikes and next_s >= strikes[0][0]:
                strikes.pop(0)[1]()
            elif next_s == wake_s:
                meter.poll()
        return window.stop()


def play(backend: Backend, seed: int) -> Outcome:
    """One scenario."""
    rng = Random(seed)
    short = rng.random() < 0.25
    low_s, high_s = (0.02, BAR_FROM_S) if short else (BAR_FROM_S, 600.0)
    length_s = math.exp(rng.uniform(math.log(low_s), math.log(high_s)))
    fault = rng.choice(backend.faults) if seed % 2 else ""
    begin_s = rng.uniform(1.0, 3.0)
    scenario = Scenario(rng=rng, begin_s=begin_s, end_s=begin_s + length_s, fault=fault)
    stage = backend.stage(scenario)
    try:
        readings = metered(stage, scenario)
    except NegawattError:
        return Outcome(fault=fault, length_s=length_s, flagged=True)
    energy_j, sd_j = total(readings, length_s)
    random_sd_j = math.sqrt(sum(reading.random_sd_j**2 for reading in readings))
    return Outcome(
        fault=fault,
        length_s=length_s,
        flagged=any(reading.flags for reading in readings),
        error_fraction=abs(energy_j / stage.unbiased_j - 1),
        covered=abs(energy_j - stage.truth_j) <= Z95 * sd_j,
        random_covered=abs(energy_j - stage.unbiased_j) <= Z95 * random_sd_j,
    )


def rows(backend: Backend, outcomes: Sequence[Outcome]) -> Iterator[dict]:
    """The table of one backend: all, those without a fault, and each fault."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups["all"].append(outcome)
        groups[outcome.fault or "none"].append(outcome)
    for fault in ("all", "none", *backend.faults):
        group = groups[fault]
        plain = [outcome for outcome in group if not outcome.flagged]
        errors = [outcome.error_fraction for outcome in plain if outcome.length_s >= BAR_FROM_S]
        yield {
            "backend": backend.name,
            "fault": fault,
            "n": len(group),
            "flagged_fraction": mean(outcome.flagged for outcome in group),
            "error_p50_fraction": median(errors) if errors else None,
            "error_max_fraction": max(errors, default=None),
            "over_bar": sum(error > 0.01 for error in errors),
            "coverage_fraction": mean(outcome.covered for outcome in plain),
            "random_coverage_fraction": mean(outcome.random_covered for outcome in plain),
        }


def mean(values: Iterable[bool]) -> float | None:
    """Mean of some values; None if there are none."""
    found = list(values)
    return sum(found) / len(found) if found else None


# ---- four runs on one host -------------------------------------------------------------------------------------------


def host_sum_ratio(runs: int = 4) -> float:
    """Parts of runs that overlap and use the processors unequally, summed, over the joules of the host meanwhile."""
    powercap = SimulatedPowercap(
        root=new_folder() / "powercap",
        packages=2,
        dram=True,
        load=Load([(0.0, 40.0), (100.0, 160.0)]),
        dram_load=Load([(0.0, 6.0)]),
    )

    def probes() -> Sequence[Probe]:
        return rapl.RaplSensor(powercap.root, read=powercap.read, clock=powercap.clock).open()

    sleepers = [subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]) for _ in range(runs)]
    cpus = {sleeper.pid: 1.0 + index for index, sleeper in enumerate(sleepers)}
    board = Board(
        new_folder() / "board",
        clock=powercap.clock,
        cpu_s=lambda pid: cpus[pid] * powercap.clock(),
        above=lambda _: (),
    )
    try:
        own = {f"run-{pid}": probes() for pid in cpus}
        starts = {}
        begun = [probe.snapshot() for probe in own["run-" + str(sleepers[0].pid)]]
        for pid in cpus:
            key = f"run-{pid}"
            board.join(key, own[key], pid=pid)
            starts[key] = [probe.snapshot() for probe in own[key]]
            powercap.advance(7.3)
        parts_j = 0.0
        for key in reversed(own):
            powercap.advance(11.9)
            shares = board.shares(key, own[key], leave=True)
            if shares is None:
                raise RuntimeError("the board was lost")
            for probe, start in zip(own[key], starts[key], strict=True):
                parts_j += probe.reading(start, probe.snapshot()).energy_j * shares.fractions[probe.scope]
        first = own[f"run-{sleepers[0].pid}"]
        host_j = sum(p.reading(b, p.snapshot()).energy_j for p, b in zip(first, begun, strict=True))
    finally:
        for sleeper in sleepers:
            sleeper.kill()
            sleeper.wait()
    return parts_j / host_j


# ---- live ------------------------------------------------------------------------------------------------------------

LIVE_S = 2.5
LIVE_CHILD = f"""
import json, time
from negawatt.metering.sensors.nvidia import NvidiaSensor
from negawatt.metering.session import Meter
with Meter.of([NvidiaSensor()]) as meter:
    begin_s = time.perf_counter()
    window = meter.start()
    time.sleep({LIVE_S})
    readings, end_s = window.stop(), time.perf_counter()
print(json.dumps([begin_s, end_s, readings[0].energy_j, readings[0].flags, str(readings[0].source)]))
"""


def live_rapl(seed: int) -> float:
    """Error of a window over files that move in real time, read as /sys is."""
    load = random_load(Random(seed), 10.0, 20.0, 250.0)
    powercap = SimulatedPowercap(root=new_folder() / "powercap", load=load)
    with powercap.live(), Meter.of([rapl.RaplSensor(powercap.root)], host=HOST) as meter:
        begin_s, window = powercap.clock(), meter.start()
        time.sleep(LIVE_S)
        (reading,) = window.stop()
        end_s = powercap.clock()
    return abs(reading.energy_j / true_joules(load.points, begin_s, end_s) - 1)


def live_nvidia(seed: int) -> float:
    """Error of a window in a process that loads nvidia-ml-py and finds the fake library by itself."""
    load = random_load(Random(seed), 30.0, 60.0, 400.0)
    with SimulatedNvml([SimulatedGpu(load=load, noise_fraction=0.002)], live=True) as nvml:
        origin_s = time.perf_counter() - nvml.clock()
        done = subprocess.run(
            [sys.executable, "-c", LIVE_CHILD],
            env={**os.environ, **nvml.environ, "CUDA_VISIBLE_DEVICES": "0"},
            capture_output=True,
            text=True,
            check=True,
        )
    begin_s, end_s, energy_j, *_ = json.loads(done.stdout)
    return abs(energy_j / true_joules(load.points, begin_s - origin_s, end_s - origin_s) - 1)


# ---- report ----------------------------------------------------------------------------------------------------------


def report(scenarios: int, seed: int, jobs: int, *, quick: bool) -> dict:
    """The JSON object of this benchmark. `quick` leaves the live windows out."""
    load = os.getloadavg() if hasattr(os, "getloadavg") else None
    prepare()
    table: list[dict] = []
    metrics: dict[str, float | None] = {"scenarios": scenarios, "seed": seed}
    with ProcessPoolExecutor(jobs, initializer=prepare) as pool:
        for index, backend in enumerate(BACKENDS):
            seeds = range(seed, seed + scenarios)
            mine = list(rows(backend, list(pool.map(partial(play_numbered, index), seeds, chunksize=20))))
            table += mine
            for name in ("error_max_fraction", "coverage_fraction", "random_coverage_fraction"):
                metrics[f"{backend.name}_{name}"] = mine[0][name]
            metrics[f"{backend.name}_flagged_fraction"] = mine[1]["flagged_fraction"]
    metrics["error_max_fraction"] = max(metrics[f"{backend.name}_error_max_fraction"] for backend in BACKENDS)
    fast = [backend for backend in BACKENDS if not backend.slow]
    metrics["flagged_fraction"] = max(metrics[f"{backend.name}_flagged_fraction"] for backend in fast)
    coverages = [metrics[f"{backend.name}_coverage_fraction"] for backend in BACKENDS]
    metrics["coverage_fraction"] = max(coverages, key=lambda coverage: abs(coverage - 0.95))
    metrics["host_sum_ratio"] = host_sum_ratio()
    if not quick:
        metrics["live_rapl_error_max_fraction"] = max(live_rapl(s) for s in range(seed, seed + 5))
        metrics["live_nvidia_error_max_fraction"] = max(live_nvidia(s) for s in range(seed, seed + 5))
    return {
        "benchmark": "simulator",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": {"system": platform.platform(), "machine": platform.machine(), "cpus": os.cpu_count()},
        "load": load,
        "versions": {
            "negawatt": negawatt.__version__,
            "python": platform.python_version(),
            "nvidia-ml-py": version("nvidia-ml-py"),
        },
        "metrics": metrics,
        "table": table,
    }


def play_numbered(index: int, seed: int) -> Outcome:
    """One scenario of a backend by its place, so that it can be sent to another process."""
    return play(BACKENDS[index], seed)


def main() -> None:
    """Print the result: JSON with --json, else a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="leave the live windows out")
    parser.add_argument("--scenarios", type=int, default=SCENARIOS, help=f"per backend ({SCENARIOS})")
    parser.add_argument("--seed", type=int, default=20261124)
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    options = parser.parse_args()
    result = report(options.scenarios, options.seed, options.jobs, quick=options.quick)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    print(
        f"{'sensor':<15} {'fault':<17} {'n':>5} {'flagged':>8} {'error p50':>9} {'max':>7} {'cover':>7} {'random':>7}"
    )
    for row in result["table"]:
        shares = ("flagged", "error_p50", "error_max", "coverage", "random_coverage")
        numbers = ["-" if row[f"{x}_fraction"] is None else f"{row[f'{x}_fraction']:.2%}" for x in shares]
        print(
            f"{row['backend']:<15} {row['fault']:<17} {row['n']:>5} {numbers[0]:>8} {numbers[1]:>9} {numbers[2]:>7} "
            f"{numbers[3]:>7} {numbers[4]:>7}"
        )
    for name, value in result["metrics"].items():
        print(f"{name} {value:.6g}")


if __name__ == "__main__":
    main()

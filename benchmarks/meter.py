"""What metering itself costs: import, start, one window, the background, memory, beside the trackers in use today.

Every case runs in fresh interpreters, in an environment of its own, cases taking turns. CPU seconds include those of
helper processes. Without RAPL and GPU the peers have little to read here, so their figures are lower bounds; negawatt
is also measured on simulated powercap trees with one and two packages and their DRAM, polled ten times a second, and
inside another run, where a window is not put on the board.

    .venv/bin/python benchmarks/meter.py [--json] [--quick] [--rounds N] [--seconds S]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

PEERS = {
    "codecarbon": ("codecarbon==3.3.2",),
    "zeus": ("zeus==0.16.0",),
    "carbontracker": ("carbontracker==2.4.7",),
}
CASES = {
    "bare": "bare",
    "negawatt": "negawatt",
    "negawatt_inside": "negawatt",
    "negawatt_rapl": "negawatt",
    "negawatt_rapl_2": "negawatt",
    "codecarbon": "codecarbon",
    "codecarbon_10hz": "codecarbon",
    "zeus": "zeus",
    "carbontracker": "carbontracker",
}
"""Case -> environment."""
WINDOWS = 40
YOUNG_S = 10.0
"""negawatt looks at a window more often while it is young: the first seconds are told apart."""


# ------------------------------------------------------------------------------------------------ in the child


def cpu_s() -> float:
    """CPU seconds of this process, and of its children, dead or alive."""
    times = os.times()
    total, tick_s = sum(times[:4]), 1 / os.sysconf("SC_CLK_TCK")
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            fields = (process / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
            if int(fields[1]) == os.getpid():
                total += (int(fields[11]) + int(fields[12])) * tick_s
    return total


def rss_mb() -> float:
    """Resident memory now."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


@dataclass(frozen=True)
class Case:
    """What a tracker does: make it ready, begin and end a window, and work in the background."""

    start: Callable[[], object]
    begin: Callable[[], object]
    end: Callable[[], object]
    background: Callable[[], object]


def nothing() -> None:
    """Nothing."""


def bare(_folder: str) -> Case:
    """What Python and this program cost."""
    return Case(nothing, nothing, nothing, nothing)


def negawatt(_folder: str) -> Case:
    """As a user has it: every sensor of this host."""
    from negawatt import meter

    runs: list = []

    def begin() -> None:
        runs.append(meter("window"))
        runs[-1].__enter__()

    def end() -> None:
        runs.pop().__exit__(None, None, None)

    return Case(lambda: (begin(), end()), begin, end, begin)


def negawatt_inside(folder: str) -> Case:
    """Windows inside another run."""
    case = negawatt(folder)
    return Case(case.begin, case.begin, case.end, nothing)


def negawatt_rapl(folder: str) -> Case:
    """RAPL counters of a package and its DRAM in a powercap tree, polled at 10 Hz."""
    return rapl(f"{folder}-1")


def negawatt_rapl_2(folder: str) -> Case:
    """The same with two packages."""
    return rapl(f"{folder}-2")


def rapl(folder: str) -> Case:
    """A powercap tree, polled at 10 Hz."""
    from negawatt.hardware.host import this_host
    from negawatt.metering.run import LiveRun
    from negawatt.metering.select import open_best
    from negawatt.metering.sensors.rapl import RaplSensor
    from negawatt.metering.session import Meter

    meter = Meter(open_best({"rapl": RaplSensor(Path(folder))}, this_host()), tick_s=0.1)
    runs: list = []

    def begin() -> None:
        runs.append(LiveRun("window", meter=meter))

    return Case(nothing, begin, lambda: runs.pop().stop(), begin)


def codecarbon(_folder: str, **options: object) -> Case:
    """OfflineEmissionsTracker with tasks."""
    from codecarbon import OfflineEmissionsTracker

    tracker: list = []

    def start() -> None:
        tracker.append(
            OfflineEmissionsTracker(country_iso_code="FRA", save_to_file=False, log_level="critical", **options)
        )
        tracker[0].start()

    return Case(start, lambda: tracker[0].start_task("t"), lambda: tracker[0].stop_task("t"), nothing)


def codecarbon_10hz(folder: str) -> Case:
    """The same, measuring ten times a second."""
    return codecarbon(folder, measure_power_secs=0.1)


def zeus(_folder: str) -> Case:
    """ZeusMonitor with windows."""
    import logging

    from zeus.monitor import ZeusMonitor

    logging.disable(logging.CRITICAL)
    monitor: list = []

    def start() -> None:
        monitor.append(ZeusMonitor(gpu_indices=[], approx_instant_energy=False))

    def begin() -> None:
        monitor[0].begin_window("w")

    return Case(start, begin, lambda: monitor[0].end_window("w"), begin)


def carbontracker(folder: str) -> Case:
    """CarbonTracker with a simulated CPU, its epoch as the window."""
    from carbontracker.tracker import CarbonTracker

    tracker: list = []

    def start() -> None:
        tracker.append(
            CarbonTracker(
                epochs=10**6, log_dir=folder, verbose=0, monitor_epochs=-1, epochs_before_pred=0, sim_cpu="x",
                sim_cpu_tdp=100, sim_cpu_util=0.5, components="cpu",
            )
        )  # fmt: skip

    def begin() -> None:
        tracker[0].epoch_start()

    def end() -> None:
        tracker[0].epoch_end()

    return Case(start, begin, end, begin)


def watched(seconds: float) -> float:
    """CPU seconds per second while the main thread sleeps."""
    begin_s, wall_s = cpu_s(), time.perf_counter()
    time.sleep(seconds)
    return (cpu_s() - begin_s) / (time.perf_counter() - wall_s)


def child(case: str, folder: str, seconds: float) -> dict[str, float]:
    """Everything about one case, in this process."""
    begin_s = cpu_s()
    made: Case = globals()[case](folder)
    imported_s = cpu_s()
    made.start()
    started_s, begins, ends = cpu_s(), [], []
    for _ in range(WINDOWS):
        a = time.perf_counter()
        made.begin()
        b = time.perf_counter()
        time.sleep(0.002)
        c = time.perf_counter()
        made.end()
        begins.append(b - a)
        ends.append(time.perf_counter() - c)
    made.background()
    young, steady = watched(YOUNG_S), watched(seconds)
    return {
        "import_cpu_s": imported_s - begin_s,
        "start_cpu_s": started_s - imported_s,
        "begin_ms": statistics.median(begins) * 1e3,
        "end_ms": statistics.median(ends) * 1e3,
        "young_background_cpu_s_per_s": young,
        "background_cpu_s_per_s": steady,
        "rss_mb": rss_mb(),
    }


# ------------------------------------------------------------------------------------------------ in the parent


def powercap(folder: Path, stop: threading.Event) -> None:
    """Powercap trees of one and of two packages that count until told to stop."""
    from negawatt.testing import SimulatedPowercap

    trees = [SimulatedPowercap(root=Path(f"{folder}-{n}"), packages=n, dram=True) for n in (1, 2)]

    def count() -> None:
        while not stop.wait(0.05):
            for tree in trees:
                tree.advance(0.05, 80.0, 5.0)

    threading.Thread(target=count, daemon=True).start()


def run(case: str, python: Path, folder: Path, seconds: float) -> dict[str, float] | str:
    """One fresh interpreter; what it printed, or why it failed."""
    environ = {**os.environ, "NEGAWATT_BOARD": str(folder / "board"), "PYTHONWARNINGS": "ignore"}
    ended = subprocess.run(
        [str(python), __file__, "--child", case, "--folder", str(folder / "powercap"), "--seconds", str(seconds)],
        capture_output=True, text=True, env=environ, cwd=folder, check=False,
    )  # fmt: skip
    if ended.returncode:
        return ended.stderr.strip().splitlines()[-1] if ended.stderr.strip() else f"exit code {ended.returncode}"
    return json.loads(ended.stdout.strip().splitlines()[-1])


def report(rounds: int, seconds: float, *, quick: bool) -> dict:
    """The whole benchmark."""
    import peers

    pythons = {"bare": Path(sys.executable), "negawatt": Path(sys.executable)}
    if not quick:
        pythons |= {name: peers.python_of(name, *packages) for name, packages in PEERS.items()}
    cases = [case for case, environment in CASES.items() if environment in pythons]
    load = os.getloadavg()[0]
    results: dict[str, list[dict[str, float]]] = {case: [] for case in cases}
    faults: dict[str, str] = {}
    stop = threading.Event()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        powercap(folder / "powercap", stop)
        for turn in range(rounds):
            for case in cases if turn % 2 == 0 else cases[::-1]:
                result = run(case, pythons[CASES[case]], folder, seconds)
                if isinstance(result, str):
                    faults[case] = result
                else:
                    results[case].append(result)
        stop.set()
    table = [summary(case, results[case], faults.get(case, "")) for case in cases]
    rows = {row["case"]: row for row in table}
    metrics = {}
    for case, row in rows.items():
        prefix = "" if case == "negawatt" else f"{case}_"
        metrics |= {f"{prefix}{key}": value for key, value in row.items() if isinstance(value, float)}
    return {
        "benchmark": "meter",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": f"{platform.node()}, {platform.machine()}, {os.cpu_count()} CPUs",
        "load": {"before": load, "after": os.getloadavg()[0]},
        "versions": {"python": platform.python_version(), **{n: p[0] for n, p in PEERS.items() if n in pythons}},
        "metrics": metrics,
        "table": table,
    }


def summary(case: str, results: list[dict[str, float]], fault: str) -> dict:
    """Medians over the rounds; a window is its begin and its end together."""
    row: dict = {"case": case, "rounds": len(results), "fault": fault}
    if results:
        row |= {key: float(statistics.median(result[key] for result in results)) for key in results[0]}
        row["window_ms"] = row["begin_ms"] + row["end_ms"]
    return row


def main() -> None:
    """Print the result: JSON with --json, else a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    parser.add_argument("--quick", action="store_true", help="leave the peers out")
    parser.add_argument("--rounds", type=int, default=5, help="fresh interpreters per case")
    parser.add_argument("--seconds", type=float, default=20.0, help="how long the background is watched")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        print(json.dumps(child(options.child, options.folder, options.seconds)))
        os._exit(0)  # some peers wait for the network on their way out
    result = report(options.rounds, options.seconds, quick=options.quick)
    if options.json:
        json.dump(result, sys.stdout, indent=2)
        print()
        return
    names = {
        "import_cpu_s": "import CPU-s", "start_cpu_s": "start CPU-s", "begin_ms": "begin ms", "end_ms": "end ms",
        "young_background_cpu_s_per_s": "first 10 s CPU-s/s", "background_cpu_s_per_s": "then CPU-s/s",
        "rss_mb": "RSS MB",
    }  # fmt: skip
    print(f"{'case':<16}" + "".join(f"{title:>20}" for title in names.values()))
    for row in result["table"]:
        cells = (f"{row[name]:>20.4f}" if name in row else f"{'-':>20}" for name in names)
        print(f"{row['case']:<16}" + "".join(cells) + (f"  {row['fault']}" if row["fault"] else ""))


if __name__ == "__main__":
    main()

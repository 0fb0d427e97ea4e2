"""Board: how metered runs that overlap on one host share its joules, so that their parts add up to the whole.

Every run reads the same counters, so four ranks of a job would each report the whole host, and their sum four times
too much (codecarbon pull request 1390). The board is a small file that all metered runs of one user on one host keep
together. Whenever a run begins or ends, whoever does it splits the joules since the last such moment among the
runs that were there:

- processors, memory, the host: by the CPU time of each run's process and its descendants; where all runs are confined
  to some of the CPUs (a container, a Slurm job), the others keep their part for whoever they belong to;
- a GPU: in equal parts among the runs that see it, and between MIG slices by their size, where slices nobody meters
  keep their part;
- a run inside another (`negawatt run -- torchrun ...` around ranks that meter themselves) takes its part of the
  outer run's, not of the host's.

CPU times are read at most every `READ_S`, and more seldom where many runs make it dear; in between, a run is taken to
go on as it did. So an edge costs a fraction of a millisecond, and the parts add up all the same.

The file lies in shared memory. Containers with process numbers of their own do not see one another, nor do users.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from negawatt.core.codec import from_json, to_json
from negawatt.core.errors import NegawattError
from negawatt.core.reading import Probe, contains
from negawatt.hardware.limits import CpuLimits, this_process_limits
from negawatt.hardware.processes import ancestors, born, tree_cpu_s
from negawatt.metering.boardfile import BoardFile
from negawatt.metering.recording import snapshot

IDLE_WEIGHT_FRACTION = 1e-3
"""A run that used no CPU time weighs as much as a thousandth of a busy CPU, so that idle joules are split, too."""
READ_S = 0.05
"""CPU times count in ticks of 10 ms: read more often, they say nothing [s]."""
READ_FRACTION = 0.02
"""Nor are all of them read so often that it takes more than this part of the time."""
UNKNOWN_CPUS = 1.0
"""What a run is taken to use until its CPU time was read twice."""

_Doc = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """What one run answers for since it joined.

    Attributes:
        fractions: part of the joules of each scope, 0 to 1.
        runs: the most runs that shared at once, this one included: those of the whole host, or of the outer run.
        cpus_fraction: part of the host's CPUs that the metered runs may use now.
        beyond: as `fractions`, of the joules since the recorded run around it ended; 0 while it goes on.
    """

    fractions: Mapping[str, float]
    runs: int
    cpus_fraction: float
    beyond: Mapping[str, float]


class Board:
    """The runs of one host. Every call reads the probes once.

    Args:
        folder: where the file lies; None: `boardfile.default_folder()`.
        clock: monotonic seconds that all processes of the host share.
        cpu_s: CPU time of a process and its descendants [s].
        above: the processes above a process, the nearest first.
        limits: what this process may use of the host's CPUs; None asks the system.

    Raises:
        OSError: in every method, if the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        cpu_s: Callable[[int], float] = tree_cpu_s,
        above: Callable[[int], Sequence[int]] = ancestors,
        limits: CpuLimits | None = None,
    ) -> None:
        self._file = BoardFile(folder)
        self._clock = clock
        self._cpu_s = cpu_s
        self._ancestors = above
        self._limits = limits or this_process_limits()

    def join(self, key: str, probes: Sequence[Probe], *, recorded: bool = False, pid: int | None = None) -> str:
        """Begin to share.

        Args:
            key: names the run, on this host, for good.
            probes: what it reads.
            recorded: whether it is kept in the ledger.
            pid: process whose CPU time counts; None: this one.

        Returns:
            Key of the nearest recorded run that it is inside of, through the processes above this one; else "".
        """
        pid = os.getpid() if pid is None else pid
        with self._file.locked() as doc:
            self._split(doc, probes)
            runs, scopes = doc["runs"], doc["scopes"]
            parent = _above(runs, self._ancestors(pid)) if runs else ""
            runs[key] = {
                "pid": pid,
                "born": born(pid),
                "parent": parent,
                "recorded": recorded,
                "cpus": sorted(self._limits.cpus),
                "quota": self._limits.quota,
                "cpu_s": None,
                "read_s": 0.0,
                "uses": UNKNOWN_CPUS,
                "weights": {probe.scope: getattr(probe, "slice_fraction", 1.0) for probe in probes},
                "since_j": {probe.scope: scopes[probe.scope]["energy_j"] for probe in probes},
                "energy_j": {probe.scope: 0.0 for probe in probes},
                "alone_since_j": {},
                "most": 1,
            }
            self._read(runs, [key for key, run in runs.items() if run["cpu_s"] is None], doc["time_s"])
            _count(runs)
            return _recorded_around(key, runs)

    def shares(self, key: str, probes: Sequence[Probe], *, leave: bool = False) -> Shares | None:
        """What a run answers for up to now; None if it is not on the board (any more): somebody deleted that.

        Args:
            key: as it joined.
            probes: as it joined.
            leave: whether it ends now.
        """
        with self._file.locked() as doc:
            self._split(doc, probes, own=key)
            runs = doc["runs"]
            cpus_fraction = self._cpus_fraction(runs)
            run = runs.get(key)
            if run is None:
                return None
            if leave:
                _remove(runs, key)
            fractions, beyond = {}, {}
            for scope, energy_j in run["energy_j"].items():
                whole_j = doc["scopes"][scope]["energy_j"] - run["since_j"][scope]
                fractions[scope] = min(1.0, energy_j / whole_j) if whole_j > 0 else 1 / run["most"]
                alone_j = energy_j - run["alone_since_j"].get(scope, energy_j)
                beyond[scope] = min(1.0, alone_j / whole_j) if whole_j > 0 else 0.0
            return Shares(fractions=fractions, runs=run["most"], cpus_fraction=cpus_fraction, beyond=beyond)

    def _split(self, doc: _Doc, probes: Sequence[Probe], own: str = "") -> None:
        """Give the joules since the last time to the runs that were there."""
        now_s = self._clock()
        if not doc:
            doc |= {"time_s": now_s, "all_read_s": now_s, "pause_s": READ_S, "scopes": {}, "runs": {}}
        runs = doc["runs"]
        if 0 <= now_s - doc["all_read_s"] < doc["pause_s"]:
            self._read(runs, [own] if own in runs else [], now_s)
        else:
            for key in [key for key, run in runs.items() if born(run["pid"]) != run["born"]]:
                _remove(runs, key)  # killed: what it answers for is in its last checkpoint
            self._read(runs, list(runs), now_s)
            doc["pause_s"] = max(READ_S, (self._clock() - now_s) / READ_FRACTION)
            doc["all_read_s"] = now_s
        slice_s = max(1e-6, now_s - doc["time_s"])
        doc["time_s"] = now_s
        worked_s = {key: run["uses"] * slice_s for key, run in runs.items()}
        for probe in probes:
            energy_j = _advance(doc["scopes"], probe, fresh=not runs)
            pool_j = energy_j if contains("gpu", probe.scope) else energy_j * self._cpus_fraction(runs)
            _give(runs, probe.scope, pool_j, worked_s, IDLE_WEIGHT_FRACTION * slice_s)

    def _read(self, runs: _Doc, keys: Sequence[str], now_s: float) -> None:
        """Note how many CPUs some runs used since they were last read. A run alone needs not be told from others."""
        for key in keys if len(runs) > 1 else ():
            run = runs[key]
            past_s = now_s - run["read_s"]
            if run["cpu_s"] is not None and past_s < READ_S:
                continue
            cpu_s = self._cpu_s(run["pid"])
            if run["cpu_s"] is not None:
                run["uses"] = max(0.0, cpu_s - run["cpu_s"]) / past_s
            run["cpu_s"], run["read_s"] = cpu_s, now_s

    def _cpus_fraction(self, runs: _Doc) -> float:
        """The part of the host's CPUs that the runs may use, all together."""
        if not runs:
            return 1.0
        whole = self._limits.host_cpus
        sets = [run["cpus"] or range(whole) for run in runs.values()]
        # Runs that see each other's board are in one container, so they share one quota.
        quotas = [run["quota"] or whole for run in runs.values()]
        return min(len(set().union(*sets)), max(quotas), whole) / whole


def _advance(scopes: _Doc, probe: Probe, *, fresh: bool) -> float:
    """Bring a scope up to date and return its joules since the last time."""
    state = snapshot(probe)
    old = scopes.get(probe.scope)
    energy_j = 0.0
    if old is not None and not fresh:
        try:
            energy_j = probe.reading(from_json(type(state), old["state"]), state).energy_j
        except NegawattError:
            # A counter that was reset: these joules are lost here, and the run's own window says so if it met the same.
            energy_j = 0.0
    before_j = old["energy_j"] if old else 0.0
    scopes[probe.scope] = {"state": to_json(state), "energy_j": before_j + energy_j}
    return energy_j


def _give(runs: _Doc, scope: str, energy_j: float, worked_s: Mapping[str, float], idle_s: float) -> None:
    """Split one scope's joules among the outermost runs, and the part of each among the runs inside it."""
    gpu = contains("gpu", scope)
    among = {key: run for key, run in runs.items() if scope in run["energy_j"]}
    inside_of: dict[str, list[str]] = {}
    for key in among:
        inside_of.setdefault(_outer(key, runs, among), []).append(key)

    def weight(key: str) -> float:
        return float(among[key]["weights"][scope]) if gpu else worked_s[key] + idle_s

    def descend(parent: str, share_j: float) -> None:
        inside = inside_of.get(parent)
        if not inside:
            return
        weights = {key: weight(key) for key in inside}
        whole = sum(weights.values())
        if gpu and not parent:
            whole = max(1.0, whole)  # slices that nobody meters keep their part
        elif parent and not gpu:
            whole += max(0.0, worked_s[parent] - sum(worked_s[key] for key in inside))  # the outer run's own work
        for key in inside:
            part_j = share_j * (weights[key] / whole)
            among[key]["energy_j"][scope] += part_j
            descend(key, part_j)

    descend("", energy_j)


def _above(runs: _Doc, ancestors: Sequence[int]) -> str:
    """The innermost run of the nearest of some processes that has one, or ""."""
    for pid in ancestors:
        mine = [key for key, run in runs.items() if run["pid"] == pid and run["born"] == born(pid)]
        if mine:
            return mine[-1]
    return ""


def _remove(runs: _Doc, key: str) -> None:
    """Take a run off; runs inside it are now inside of the one that it was inside of."""
    kept = [inner for inner in runs if _recorded_around(inner, runs) == key]
    gone = runs.pop(key)
    for run in runs.values():
        if run["parent"] == key:
            run["parent"] = gone["parent"]
    for inner in kept:
        if not _recorded_around(inner, runs):  # from now on nobody else's record holds its joules
            runs[inner]["alone_since_j"] = dict(runs[inner]["energy_j"])
    _count(runs)


def _recorded_around(key: str, runs: _Doc) -> str:
    """The nearest recorded run that this one is inside of, or ""."""
    outer = runs[key]["parent"]
    while outer and not runs[outer]["recorded"]:
        outer = runs[outer]["parent"]
    return str(outer)


def _outer(key: str, runs: _Doc, among: Mapping[str, _Doc]) -> str:
    """The nearest run that this one is inside of and that is among some, or ""."""
    outer = runs[key]["parent"]
    while outer and outer not in among:
        outer = runs[outer]["parent"]
    return str(outer)


def _count(runs: _Doc) -> None:
    """Note for every run how many it shares with."""
    beside = Counter(run["parent"] for run in runs.values())
    for run in runs.values():
        run["most"] = max(run["most"], beside[run["parent"]])

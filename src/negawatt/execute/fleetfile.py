"""The fleet's file: jobs of a cluster share one mean slow-down through a file that each locks for a moment."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from negawatt.core.codec import from_json, to_json
from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.tuned import Tuned
from negawatt.tuning.fleet import Fleet, FleetState
from negawatt.tuning.limits import Probed
from negawatt.tuning.objective import Objective

_LEASE_LENGTHS = 3.0
"""A job of which nothing was heard for so many times its expected length is given up; after a day at the soonest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A job as its fleet knows it.

    Attributes:
        path: the fleet's file.
        name: of the job, different from all that run.
        length_s: how long it is expected to take with untouched devices [s].
        budget_fraction: mean slow-down that the fleet may spend; None: as the file says.
    """

    path: Path
    name: str
    length_s: float
    budget_fraction: float | None = None

    def admit(self) -> Objective:
        """Join the fleet; what to tune for. Raises UsageError if the file is no fleet's, or is of another budget."""
        lease_s = max(86_400.0, _LEASE_LENGTHS * self.length_s)
        with _fleet(self.path, self.budget_fraction) as fleet:
            return fleet.admit(self.name, length_s=self.length_s, now_s=time.time(), lease_s=lease_s)

    def finish(self, tuned: Tuned | None, time_s: float) -> str:
        """Leave the fleet with what was lost; how the fleet stands, as a line.

        Args:
            tuned: what was tuned; None: nothing, and nothing was lost.
            time_s: how long the job took [s].
        """
        lost_s = _lost_s(tuned) if tuned else 0.0
        length_s = max(time_s - lost_s, 1e-3)
        with _fleet(self.path, None) as fleet:
            if tuned and tuned.probes:
                last = {probe.limit: probe for probe in tuned.probes}
                probed = [Probed(limit=limit, time_s=p.time_s, energy_j=p.energy_j) for limit, p in last.items()]
                fleet.choose(self.name, probed, now_s=time.time())
            fleet.finish(self.name, lost_s / length_s, now_s=time.time(), length_s=length_s)
            mean = fleet.slowdown_fraction or 0.0
            jobs, budget = fleet.state.jobs, fleet.state.budget_fraction
        return f"fleet {self.path}: {mean * 100:.2f} % slower over {jobs} jobs, of {budget * 100:g} %"


def _lost_s(tuned: Tuned) -> float:
    """How much longer the job took than under the limit as found, by its own windows [s]."""
    last = {probe.limit: probe for probe in tuned.probes}
    base = last.get(tuned.found)
    if base is None:
        return 0.0
    probing_s = sum(probe.steps * (probe.time_s - base.time_s) for probe in tuned.probes)
    holding_s = sum(hold.steps * (hold.own.time_s - hold.base.time_s) for hold in tuned.holds)
    return max(0.0, probing_s + holding_s)


@contextmanager
def _fleet(path: Path, budget_fraction: float | None) -> Iterator[Fleet]:
    """The fleet, for this process alone until the end of the block; kept then, whole or not at all."""
    import fcntl

    try:
        with path.with_name(path.name + ".lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            fleet = Fleet(_read(path, budget_fraction))
            yield fleet
            part = path.with_name(path.name + ".part")
            with part.open("w", encoding="utf-8") as file:
                json.dump(to_json(fleet.state), file)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
    except OSError as error:
        raise NegawattError(
            f"{path}: {error.strerror or error}",
            "the fleet's slow-down cannot be shared without its file",
            "name a file in a folder that all jobs of the fleet can write to",
        ) from error


def _read(path: Path, budget_fraction: float | None) -> FleetState:
    try:
        state = from_json(FleetState, json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        if budget_fraction is None:
            raise UsageError(
                f"there is no fleet {path} yet",
                "a new one needs the mean slow-down that it may spend",
                "give it with the first job: --fleet-budget 0.05",
            ) from None
        return FleetState(budget_fraction=budget_fraction)
    except (ValueError, UsageError) as error:
        reason = error.got if isinstance(error, NegawattError) else str(error)
        raise UsageError(
            f"{path} is no fleet's file: {reason}", "nothing is limited by a guess", "name another file with --fleet"
        ) from error
    if budget_fraction not in (None, state.budget_fraction):
        raise UsageError(
            f"--fleet-budget {budget_fraction:g}, but {path} shares {state.budget_fraction:g}",
            "jobs that began under one budget would be held to another",
            "leave the option out, or name a new file",
        )
    return state

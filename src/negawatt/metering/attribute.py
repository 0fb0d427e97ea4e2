"""Attribute: what of the host's joules one run answers for, by the board, and what its processes caused by CPU time."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Sequence

from negawatt.core.reading import Probe, Reading, contains
from negawatt.core.run import Attribution
from negawatt.hardware.processes import busy_s, tree_cpu_s
from negawatt.metering.board import Board, Shares

BOARD_RULE = "by CPU time for processors, in equal parts or by MIG slice for GPUs"
ALONE_RULE = "all to this run: no other run could be asked"


class Attributor:
    """Follows one run of this process from its creation.

    Args:
        key: names the run on this host.
        probes: what it reads.
        recorded: whether it is kept in the ledger.
        board: where the runs of this host share; None: the default one.
    """

    def __init__(
        self, key: str, probes: Sequence[Probe], *, recorded: bool = False, board: Board | None = None
    ) -> None:
        self._key = key
        self._probes = probes
        self._board = board or Board()
        self._pid = os.getpid()
        self._began = self._worked()
        self._shares: Shares | None = None
        self._left, self._updated_s = False, -math.inf
        self._unshared = ""
        self.parent = ""
        """Key of the nearest recorded run of a process above that this one is a part of, or ""."""
        try:
            self.parent = self._board.join(key, probes, recorded=recorded)
        except OSError as error:
            self._unshared = f"{ALONE_RULE} ({error})"

    def update(self, *, leave: bool = False, older_than_s: float = 0.0) -> None:
        """Bring the shares up to date. Raises SensorError.

        Args:
            leave: whether the run ends now; without it the run stays on the board for as long as its process lives.
            older_than_s: leave shares that are not older as they are [s].
        """
        if self._left or ((self._unshared or time.monotonic() - self._updated_s < older_than_s) and not leave):
            return
        self._left, self._updated_s = leave, time.monotonic()
        try:
            shares = self._board.shares(self._key, self._probes, leave=leave)
        except OSError as error:
            self._unshared = self._unshared or f"{ALONE_RULE} ({error})"
            return
        if shares is None:
            self._unshared = self._unshared or f"{ALONE_RULE} (the board was deleted)"
        self._shares = shares

    def attribution(self, readings: Sequence[Reading], *, inside: bool = False) -> Attribution:
        """The part of some readings, as of the last `update`.

        Args:
            readings: of this run's window or, with `inside`, of a window inside it.
            inside: whether it is for a run inside this one, in this process: it gets the same part.
        """
        shares = None if self._unshared else self._shares
        rule = self._unshared or self._rule()
        return Attribution(
            energy_j=sum(r.energy_j * (shares.fractions.get(r.scope, 1.0) if shares else 1.0) for r in readings),
            process_j=None if inside else self._process_j(readings),
            runs=self._shares.runs if self._shares else 1,
            rule=f"the same part as of the run around it: {rule}" if inside else rule,
            beyond_j=0.0
            if inside or not shares
            else sum(r.energy_j * shares.beyond.get(r.scope, 0.0) for r in readings),
        )

    def _rule(self) -> str:
        confined = self._shares.cpus_fraction if self._shares else 1.0
        if confined < 1:
            return (
                f"{BOARD_RULE}; the runs here are confined to {confined:.1%} of the host's CPUs and answer for no more"
            )
        return BOARD_RULE

    def _process_j(self, readings: Sequence[Reading]) -> float | None:
        """Processor joules by this process's part of the host's CPU time."""
        processors = [reading.energy_j for reading in readings if contains("cpu", reading.scope)]
        now = self._worked()
        if not processors or now is None or self._began is None:
            return None
        worked_s = max(0.0, now[0] - self._began[0])
        all_s = max(now[1] - self._began[1], worked_s)
        return sum(processors) * worked_s / all_s if all_s > 0 else 0.0

    def _worked(self) -> tuple[float, float] | None:
        """CPU time so far of this process with its children, and of the host [s]; None where that is hidden."""
        try:
            return tree_cpu_s(self._pid), busy_s()
        except (OSError, LookupError, ValueError):  # a container that masks /proc/stat
            return None

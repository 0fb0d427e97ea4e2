"""Kept: the place of a run in the ledger."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from negawatt.core.errors import NegawattError
from negawatt.core.measurement import PowerPoint
from negawatt.core.run import Run


class Kept:
    """A run's place in the ledger. A ledger that cannot be written is logged: the user's work goes on."""

    def __init__(self, name: str) -> None:
        from negawatt.ledger.spool import shared_spool

        self._spool = shared_spool()
        self.key = self._spool.open_run("run", {"name": name}, workload=name)

    def checkpoint(self, run: Run) -> None:
        """Note how it stands."""
        self._tell(lambda: self._spool.checkpoint(self.key, run.summary(), energy_j=run.energy_j, source=_source(run)))

    def finish(self, run: Run, curve: Sequence[PowerPoint]) -> None:
        """Note how it ended."""
        points = [(point.time_s, point.power_w) for point in curve]
        self._tell(
            lambda: self._spool.finish(
                self.key, run.summary(), energy_j=run.energy_j, source=_source(run), power_curve=points
            )
        )

    def drop(self) -> None:
        """Forget it."""
        self._tell(lambda: self._spool.drop(self.key))

    def _tell(self, call: Callable[[], None]) -> None:
        try:
            call()
        except NegawattError as error:
            log_error("run %s is not kept: %s", self.key, error)


def _source(run: Run) -> str:
    return str(run.source or "")


def log_error(text: str, *values: object) -> None:
    """Say what went wrong beside the user's work."""
    import logging  # only where there is something to say

    logging.getLogger("negawatt").error(text, *values)

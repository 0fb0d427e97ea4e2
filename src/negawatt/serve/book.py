"""Book: served requests as records of the ledger, some hundreds to a record, and back.

A record of kind "requests" is a part of the gateway's run: its body names the run as "parent", so that the run's joules
are not counted twice, and its column `campaign` is the run's key, by which it is found. In the body, "columns" has a
list per field of `Served`; where all values are the same, the value itself. No body, header or query string is kept.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from negawatt.core.errors import LedgerError, NegawattError
from negawatt.core.reading import Source, weakest
from negawatt.core.serving import Cost, Outcome, Served
from negawatt.ledger.spool import Spool, shared_spool

KIND = "requests"
FORMAT = 1
ROWS, WAIT_S = 250, 5.0
"""A record has at most so many rows, and a row waits at most so long for others [s]."""
WAITING = 20_000
"""Past so many rows that the spool does not take, the oldest are lost."""

_PLAIN = ("id", "at_s", "time_s", "path", "model", "status", "outcome", "tokens_in", "tokens_out", "shared")
_COST = ("energy_j", "energy_sd_j", "source", "carbon_g")


class Book:
    """Writes rows into the ledger from a background thread, through a spool. A sink of `feed.Feed`.

    A process that is killed loses the rows of the last `WAIT_S` and of the spool's `FLUSH_S`. Memory is bounded: of
    rows here by `WAITING`, and of records by the spool's backlog.

    Args:
        run: key of the gateway's run.
        workload: its name.
        spool: None: the one of this process.
    """

    def __init__(self, run: str, workload: str, *, spool: Spool | None = None) -> None:
        self._run = run
        self._workload = workload
        self._spool = spool or shared_spool()
        self._waiting: deque[Served] = deque()
        self._lost = 0
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._some, self._full, self._closed = threading.Event(), threading.Event(), False
        self._thread = threading.Thread(target=self._write_behind, name="negawatt-book", daemon=True)
        self._thread.start()

    def __call__(self, rows: Sequence[Served]) -> None:
        """Take rows; returns at once."""
        with self._lock:
            self._waiting.extend(rows)
            while len(self._waiting) > WAITING:
                self._waiting.popleft()
                self._lost += 1
            full = len(self._waiting) >= ROWS
        self._some.set()
        if full:
            self._full.set()

    def flush(self) -> None:
        """Hand all rows over to the spool, now. Rows that the ledger refuses are lost, and that is logged."""
        with self._writing:
            while rows := self._next():
                try:
                    self._spool.put(KIND, body_of(rows, self._run), **self._columns(rows))
                except NegawattError as error:
                    _log.error("%d requests are not in the ledger: %s", len(rows), error)
            with self._lock:
                lost, self._lost = self._lost, 0
        if lost:
            _log.error("%d requests are not in the ledger: they came faster than it took them", lost)

    def close(self) -> None:
        """Hand all rows over, and end the thread. Idempotent."""
        self._closed = True
        self._some.set()
        self._full.set()
        self._thread.join()
        self.flush()

    def _next(self) -> list[Served]:
        with self._lock:
            return [self._waiting.popleft() for _ in range(min(ROWS, len(self._waiting)))]

    def _columns(self, rows: Sequence[Served]) -> dict[str, Any]:
        return {
            "workload": self._workload,
            "phase": "infer",
            "campaign": self._run,
            "energy_j": math.fsum(row.cost.energy_j for row in rows),
            "source": str(weakest(row.cost.source for row in rows)),
        }

    def _write_behind(self) -> None:
        while not self._closed:
            self._some.wait()
            self._full.wait(WAIT_S)
            self._some.clear()
            self._full.clear()
            try:
                self.flush()
            except Exception as error:  # noqa: BLE001 -- logged; later rows are written all the same
                _log.error("requests are not in the ledger: %s: %s", type(error).__name__, error)


_log = logging.getLogger("negawatt")


def body_of(rows: Sequence[Served], run: str) -> dict[str, Any]:
    """The body of a record of some rows, at least one.

    Args:
        rows: in any order.
        run: key of the gateway's run.
    """
    columns: dict[str, list[Any]] = {name: [getattr(row, name) for row in rows] for name in _PLAIN}
    columns |= {name: [getattr(row.cost, name) for row in rows] for name in _COST}
    return {
        "format": FORMAT,
        "parent": run,
        "rows": len(rows),
        "energy_sd_j": math.fsum(columns["energy_sd_j"]),  # the most: as if all erred the same way
        "columns": {name: _short(values) for name, values in columns.items()},
    }


def rows_of(body: Mapping[str, Any]) -> list[Served]:
    """The rows of such a record. Raises LedgerError if they are not understood."""
    try:
        if body["format"] != FORMAT:
            raise ValueError(f"format {body['format']}")
        columns = {name: _long(body["columns"][name], body["rows"]) for name in (*_PLAIN, *_COST)}
        lines = zip(*columns.values(), strict=True)
        return [_row(dict(zip(columns, line, strict=True))) for line in lines]
    except (KeyError, TypeError, ValueError) as error:
        raise LedgerError(
            f"a record of requests that is not understood: {type(error).__name__}: {error}",
            "totals without it would be too low",
            "read it with the version of negawatt that wrote it, or a newer one",
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedTotal:
    """Sums over the requests of one path and model.

    Attributes:
        path: of the URL; "(other)" for those beyond the limit.
        model: that clients asked for, or "".
        requests: how many.
        failed: how many of them failed, were cancelled or refused.
        tokens_in, tokens_out: as upstream counted them.
        energy_j: joules of all of them [J].
        energy_sd_j: the most that its standard deviation can be: the sum of theirs [J].
        source: the weakest.
        time_s: mean time [s].
    """

    path: str
    model: str
    requests: int
    failed: int
    tokens_in: int
    tokens_out: int
    energy_j: float
    energy_sd_j: float
    source: Source
    time_s: float


def totals(rows: Iterable[Served], limit: int = 50) -> list[ServedTotal]:
    """Sums by path and model, those of the most joules first.

    Args:
        rows: any number, taken one at a time.
        limit: how many pairs of path and model get a sum of their own, in the order in which they come.
    """
    found: dict[tuple[str, str], _Sum] = {}
    for row in rows:
        pair = (row.path, row.model)
        if pair not in found and len(found) >= limit:
            pair = ("(other)", "")
        found.setdefault(pair, _Sum()).add(row)
    sums = [one.total(path, model) for (path, model), one in found.items()]
    return sorted(sums, key=lambda one: -one.energy_j)


@dataclass(slots=True)
class _Sum:
    requests: int = 0
    failed: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    energy_j: float = 0.0
    energy_sd_j: float = 0.0
    time_s: float = 0.0
    source: Source = Source.COUNTER

    def add(self, row: Served) -> None:
        self.requests += 1
        self.failed += row.outcome.came_to_nothing
        self.tokens_in += row.tokens_in or 0
        self.tokens_out += row.tokens_out or 0
        self.energy_j += row.cost.energy_j
        self.energy_sd_j += row.cost.energy_sd_j
        self.time_s += row.time_s
        self.source = weakest((self.source, row.cost.source))

    def total(self, path: str, model: str) -> ServedTotal:
        return ServedTotal(
            path=path,
            model=model,
            requests=self.requests,
            failed=self.failed,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            energy_j=self.energy_j,
            energy_sd_j=self.energy_sd_j,
            source=self.source,
            time_s=self.time_s / self.requests,
        )


def _short(values: list[Any]) -> Any:  # noqa: ANN401 -- a list, or the one value of all
    plain = [str(value) if isinstance(value, Outcome | Source) else value for value in values]
    first = plain[0]
    same = all(type(value) is type(first) and repr(value) == repr(first) for value in plain[1:])
    return first if same else plain


def _long(column: Any, rows: int) -> list[Any]:  # noqa: ANN401 -- as `_short` gives
    return column if isinstance(column, list) else [column] * rows


def _row(values: dict[str, Any]) -> Served:
    cost = Cost(
        energy_j=values.pop("energy_j"),
        energy_sd_j=values.pop("energy_sd_j"),
        source=Source(values.pop("source")),
        carbon_g=values.pop("carbon_g"),
    )
    return Served(**{**values, "outcome": Outcome(values["outcome"])}, cost=cost)

"""Retention: power curves are kept in full for a while, then as means over a minute. Records are kept for ever."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from negawatt.ledger.checks import checked_curve

KEEP_DAYS = 14
"""How long power curves are kept in full."""

_MINUTE_S = 60
_DAY_S = 86400.0

# The minute in which the middle of the interval lies. The means of a minute lie in it too, so nothing is merged twice.
_MINUTE = f"CAST((time_s - span_s / 2) / {_MINUTE_S} AS INTEGER)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One piece of a power curve.

    Attributes:
        run: sequence of the record of the run.
        scope: what was measured; "" for all scopes together.
        time_s: end of the interval, from the start of the run [s].
        power_w: mean power over the interval [W].
        span_s: length of the interval [s].
    """

    run: str
    scope: str
    time_s: float
    power_w: float
    span_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RolledUp:
    """What became of old power curves.

    Attributes:
        points: points that were merged.
        means: one-minute means that took their place.
    """

    points: int
    means: int


def add(db: sqlite3.Connection, run: str, points: Sequence[tuple[float, float]], scope: str, added_s: float) -> int:
    """Add points behind those that are there, within a transaction.

    Args:
        db: the ledger.
        run: sequence of the run's record.
        points: (time_s, power_w): mean power since the point before, or the start of the run.
        scope: what was measured.
        added_s: by what time their age counts, in seconds since 1970.

    Returns:
        How many. Raises LedgerError for a curve that is not one, sqlite3.Error.
    """
    last_s = db.execute("SELECT max(time_s) FROM samples WHERE run = ? AND scope = ?", (run, scope)).fetchone()[0]
    start_s = 0.0 if last_s is None else float(last_s)
    rows = []
    for time_s, power_w in checked_curve(points, start_s):
        rows.append((run, scope, time_s, power_w, time_s - start_s, added_s))
        start_s = time_s
    db.executemany("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?)", rows)
    return len(rows)


def read(db: sqlite3.Connection, run: str) -> list[Sample]:
    """The power curves of a run, by scope and time. Raises sqlite3.Error."""
    rows = db.execute(
        "SELECT scope, time_s, power_w, span_s FROM samples WHERE run = ? ORDER BY scope, time_s", (run,)
    ).fetchall()
    return [Sample(run=run, scope=s, time_s=t, power_w=p, span_s=span) for s, t, p, span in rows]


def roll_up(db: sqlite3.Connection, now_s: float, keep_days: float, *, dry_run: bool) -> RolledUp:
    """Merge the points of a minute, where they are older than `keep_days`, within a transaction.

    The mean is sum(power * span) / sum(span) over the sum of the spans, so the energy under the curve stays.
    Idempotent. Raises sqlite3.Error.
    """
    before_s = now_s - keep_days * _DAY_S
    minutes = db.execute(
        f"SELECT run, scope, min(time_s), max(time_s), sum(power_w * span_s) / sum(span_s), sum(span_s), "  # noqa: S608
        f"max(added_s), count(*) FROM samples WHERE added_s < ? GROUP BY run, scope, {_MINUTE} HAVING count(*) > 1",
        (before_s,),
    ).fetchall()
    for run, scope, first_s, last_s, power_w, span_s, added_s, _ in () if dry_run else minutes:
        db.execute(
            "DELETE FROM samples WHERE run = ? AND scope = ? AND time_s BETWEEN ? AND ? AND added_s < ?",
            (run, scope, first_s, last_s, before_s),
        )
        db.execute("INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?)", (run, scope, last_s, power_w, span_s, added_s))
    return RolledUp(points=sum(minute[-1] for minute in minutes), means=len(minutes))

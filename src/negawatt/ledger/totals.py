"""Totals: sums of energy over records, each joule once."""

from __future__ import annotations

from dataclasses import dataclass

# What each record adds: all of its joules, or those that its parent does not hold. The same share of its error.
TOTALS = """
WITH own AS (
    SELECT workload, kind, source, energy_j, json_extract(body, '$.energy_sd_j') AS sd_j,
        CASE WHEN json_type(body, '$.beyond_j') IN ('real', 'integer') THEN json_extract(body, '$.beyond_j') ELSE 0 END
            AS beyond_j,
        EXISTS (SELECT 1 FROM records p WHERE p.machine_id = r.machine_id AND p.boot_id = r.boot_id
            AND p.sequence = json_extract(r.body, '$.parent')) AS inside
    FROM records r WHERE {where}
), adds AS (
    SELECT workload, kind, source, CASE WHEN inside THEN beyond_j ELSE energy_j END AS energy_j,
        CASE WHEN inside AND energy_j > 0 THEN sd_j * beyond_j / energy_j ELSE sd_j END AS sd_j
    FROM own WHERE NOT inside OR beyond_j > 0
)
SELECT workload, kind, source, count(*), count(*) - count(energy_j), sum(energy_j),
    CASE WHEN count(energy_j) = count(sd_j) FILTER (WHERE energy_j IS NOT NULL) THEN sum(sd_j) END
FROM adds GROUP BY workload, kind, source ORDER BY workload, kind, source
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """Sum over the records of one workload, kind and source.

    Attributes:
        workload: name of the workload or run.
        kind: one of `checks.KINDS`.
        source: evidence of the joules, or "".
        records: how many were added, those without an energy included.
        unknown: how many of them have no energy: the sum is too low by theirs.
        energy_j: sum of the others; None if there are none [J].
        energy_sd_j: the most that its standard deviation can be: the sum of theirs, as if all erred the same way; None
            if one of them states none [J].
    """

    workload: str
    kind: str
    source: str
    records: int
    unknown: int
    energy_j: float | None
    energy_sd_j: float | None

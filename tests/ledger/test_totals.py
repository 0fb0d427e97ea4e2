"""Totals add what may be added, and nothing else."""

from __future__ import annotations

import pytest

from negawatt.ledger.store import Ledger, Total


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


def test_sources_are_never_added(ledger):
    """Joules of one workload and kind stay apart by source."""
    for energy_j, source in ((1.0, "counter"), (2.0, "counter"), (4.0, "estimated")):
        ledger.append("run", {}, workload="w", energy_j=energy_j, source=source)
    assert [(t.source, t.energy_j, t.records) for t in ledger.totals()] == [("counter", 3.0, 2), ("estimated", 4.0, 1)]


def test_a_run_inside_another_is_not_added(ledger):
    """A record whose parent is here is left out, because the parent's joules hold its own; a lost parent is none."""
    ledger.append("run", {"parent": ""}, workload="outer", energy_j=10.0, source="counter")
    ledger.append("run", {"parent": None}, workload="outer", energy_j=10.0, source="counter")
    outer = ledger.records()[0].sequence
    ledger.append("run", {"parent": outer}, workload="outer", energy_j=4.0, source="counter")
    ledger.append("run", {"parent": outer}, workload="inner", energy_j=4.0, source="counter")
    ledger.append("run", {"parent": "never recorded"}, workload="orphan", energy_j=3.0, source="counter")
    assert ledger.totals() == [
        Total(workload="orphan", kind="run", source="counter", records=1, unknown=0, energy_j=3.0),
        Total(workload="outer", kind="run", source="counter", records=2, unknown=0, energy_j=20.0),
    ]


def test_unknown_energies_are_counted_not_guessed(ledger):
    """Records without joules are said to be missing from the sum; a sum of nothing is unknown, not zero."""
    ledger.append("run", {}, workload="a", energy_j=1.0, source="counter")
    ledger.append("run", {}, workload="a", source="counter")
    ledger.append("run", {}, workload="b")
    first, second = ledger.totals()
    assert (first.records, first.unknown, first.energy_j) == (2, 1, 1.0)
    assert (second.records, second.unknown, second.energy_j) == (1, 1, None)


def test_totals_are_filtered_and_sorted(ledger):
    """Kind and workload filter; rows come by workload, kind and source."""
    for workload in ("b", "a"):
        for kind in ("trial", "run"):
            ledger.append(kind, {}, workload=workload, energy_j=1.0)
    assert [(t.workload, t.kind) for t in ledger.totals()] == [
        ("a", "run"),
        ("a", "trial"),
        ("b", "run"),
        ("b", "trial"),
    ]
    assert [(t.workload, t.kind) for t in ledger.totals(kind="run", workload="b")] == [("b", "run")]

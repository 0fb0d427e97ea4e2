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
        Total(workload="orphan", kind="run", source="counter", records=1, unknown=0, energy_j=3.0, energy_sd_j=None),
        Total(workload="outer", kind="run", source="counter", records=2, unknown=0, energy_j=20.0, energy_sd_j=None),
    ]


def test_what_a_run_used_after_its_parent_is_added(ledger):
    """Joules from after the parent's end are in no other record: they count under the run's own name and source."""
    ledger.append("run", {"energy_sd_j": 1.0}, workload="outer", energy_j=10.0, source="counter")
    outer = ledger.records()[0].sequence
    for beyond_j in (6.0, None, 0.0, "6"):
        body = {"parent": outer, "beyond_j": beyond_j, "energy_sd_j": 0.8}
        ledger.append("run", body, workload="daemon", energy_j=8.0, source="sampled")
    body = {"parent": "never recorded", "beyond_j": 1.0, "energy_sd_j": 0.5}
    ledger.append("run", body, workload="orphan", energy_j=3.0, source="counter")
    assert [(t.workload, t.source, t.records, t.unknown, t.energy_j) for t in ledger.totals()] == [
        ("daemon", "sampled", 1, 0, 6.0),
        ("orphan", "counter", 1, 0, 3.0),
        ("outer", "counter", 1, 0, 10.0),
    ]
    assert [t.energy_sd_j for t in ledger.totals()] == pytest.approx([0.6, 0.5, 1.0])


def test_errors_add_as_if_all_went_the_same_way(ledger):
    """The error of a sum is the most that it can be; it is unknown if a record with joules states none."""
    for energy_j, body in ((1.0, {"energy_sd_j": 0.1}), (2.0, {"energy_sd_j": 0.3}), (None, {"energy_sd_j": None})):
        ledger.append("run", body, workload="a", energy_j=energy_j)
        ledger.append("run", body if energy_j != 2.0 else {}, workload="b", energy_j=energy_j)
    first, second = ledger.totals()
    assert first.energy_sd_j == pytest.approx(0.4)
    assert (first.records, first.unknown, second.energy_j, second.energy_sd_j) == (3, 1, 3.0, None)


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

"""Another ledger, as another machine has it, is taken into this one: each record once, and nothing that was changed."""

from __future__ import annotations

import sqlite3

import pytest

from negawatt.core.errors import LedgerError, UsageError
from negawatt.ledger import lines
from negawatt.ledger.origin import this_process
from negawatt.ledger.store import Ledger


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


@pytest.fixture
def other(tmp_path):
    with Ledger.open(tmp_path / "other.sqlite") as other:
        yield other


def text(i, sequence):
    return lines.line(sequence, "run", {"i": i})


def test_another_ledger_is_taken_once(ledger, other, tmp_path):
    """All records of another ledger come in its order, with their identity, time and curves; again, nothing."""
    ledger.append("run", {"who": "here"})
    for i in range(3):
        other.append("run", {"i": i}, workload="w", energy_j=float(i), source="counter")
    theirs = other.records()
    other.add_samples(theirs[1].sequence, [(1.0, 5.0), (2.0, 6.0)], scope="cpu")
    curve = other.samples(theirs[1].sequence)
    other.close()
    merged = ledger.merge_ledger(other.path)
    assert (merged.added, merged.known, merged.faults) == (3, 0, ())
    ours = ledger.records()[1:]
    assert [(r.sequence, r.created_utc, r.body, r.energy_j) for r in ours] == [
        (r.sequence, r.created_utc, r.body, r.energy_j) for r in theirs
    ]
    assert ledger.samples(theirs[1].sequence) == curve
    assert (ledger.merge_ledger(other.path).added, ledger.merge_ledger(other.path).known) == (0, 3)
    assert ledger.verify().fault is None
    assert sorted(file.name for file in tmp_path.iterdir() if "other" in file.name) == ["other.sqlite"]


def test_a_damaged_ledger_is_not_taken(ledger, other):
    """Of a ledger with a changed record nothing is taken, nor is a ledger merged into itself."""
    for _ in range(3):
        other.append("run", {}, energy_j=1.0)
    db = sqlite3.connect(other.path)
    db.executescript("DROP TRIGGER records_no_update; UPDATE records SET energy_j = 2 WHERE id = 3;")
    db.close()
    with pytest.raises(LedgerError, match=r"other.sqlite is damaged: record 3 was changed(.|\n)*nothing was taken"):
        ledger.merge_ledger(other.path)
    assert ledger.records() == []
    with pytest.raises(UsageError, match="is this ledger"):
        ledger.merge_ledger(ledger.path)


def test_another_ledgers_contradiction_is_reported(ledger, other, tmp_path):
    """A record of another ledger that contradicts this one is named, and the others are taken."""
    for there, texts in ((ledger, [text(1, "same")]), (other, [text(2, "same"), text(3, "fresh")])):
        (tmp_path / "a.jsonl").write_text("".join([lines.header(this_process()), *texts, lines.END]))
        there.merge(tmp_path)
    merged = ledger.merge_ledger(other.path)
    assert (merged.added, len(merged.faults)) == (1, 1)
    assert "another record same" in merged.faults[0]

"""Book: rows go into the ledger and come back as they were."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import LedgerError
from negawatt.core.reading import Source
from negawatt.core.serving import Cost, Outcome, Served
from negawatt.ledger.spool import Spool
from negawatt.ledger.store import Ledger
from negawatt.serve import book as module
from negawatt.serve.book import KIND, Book, body_of, rows_of, totals

JOULES = st.floats(0, 1e9)
COSTS = st.builds(
    Cost,
    energy_j=JOULES,
    energy_sd_j=JOULES,
    source=st.sampled_from(Source),
    carbon_g=st.none() | JOULES,
)
ROWS = st.lists(
    st.builds(
        Served,
        id=st.text(),
        at_s=st.floats(-1, 1e8),
        time_s=JOULES,
        path=st.text(),
        model=st.text(st.characters()),
        status=st.integers(0, 599),
        outcome=st.sampled_from(Outcome),
        tokens_in=st.none() | st.integers(0, 10**9),
        tokens_out=st.none() | st.integers(0, 10**9),
        shared=st.integers(0, 64),
        cost=COSTS,
    ),
    min_size=1,
    max_size=8,
)


def row(i: int = 0, **more: object) -> Served:
    values = {
        "id": f"{i:032x}", "at_s": float(i), "time_s": 0.5, "path": "/v1/embeddings", "model": "m", "status": 200,
        "outcome": Outcome.ANSWERED, "tokens_in": 3, "tokens_out": None, "shared": 1,
        "cost": Cost(energy_j=2.0, energy_sd_j=0.5, source=Source.COUNTER),
    } | more  # fmt: skip
    return Served(**values)


@given(ROWS)
def test_rows_come_back_exactly(rows):
    """Through JSON, whatever is in them; a value that all share is written once."""
    assert repr(rows_of(json.loads(json.dumps(body_of(rows, "run"))))) == repr(rows)


def test_a_column_of_one_value_is_that_value():
    """250 rows of the same path and model take about a hundred bytes each."""
    body = body_of([row(i) for i in range(250)], "run")
    assert (body["columns"]["path"], body["columns"]["tokens_out"]) == ("/v1/embeddings", None)
    assert len(json.dumps(body, separators=(",", ":"))) < 100 * 250


@pytest.mark.parametrize("spoil", [{"format": 2}, {"columns": {}}, {"rows": None}, {"rows": 3}])
def test_what_is_not_understood_is_an_error(spoil):
    """Half a record would make totals too low."""
    body = body_of([row(0), row(1)], "run") | spoil
    with pytest.raises(LedgerError, match="not understood"):
        rows_of(body)


def test_totals_by_path_and_model():
    """Those of the most joules first, the rest beyond the limit as one; the weakest source and the largest error."""
    weak = Cost(energy_j=30.0, energy_sd_j=1.0, source=Source.ESTIMATED)
    rows = [
        row(0),
        row(1, outcome=Outcome.FAILED),
        row(2, model="big", cost=weak),
        row(3, path="/x"),
        row(4, path="/y"),
    ]
    big, small, other = totals(rows, limit=2)
    assert (big.model, big.energy_j, big.source) == ("big", 30.0, Source.ESTIMATED)
    assert (small.requests, small.failed, small.energy_j, small.energy_sd_j, small.tokens_in) == (2, 1, 4.0, 1.0, 6)
    assert (other.path, other.requests) == ("(other)", 2)


def test_the_rows_are_found_by_the_run():
    """In batches, in the order in which they came."""
    spool = Spool()
    book = Book("run-1", "gateway", spool=spool)
    book([row(i) for i in range(600)])
    book.close()
    spool.close()
    with Ledger.open() as ledger:
        parts = list(ledger.parts("run-1", KIND))
        assert list(ledger.parts("run-2", KIND)) == []
    assert [part.body["rows"] for part in parts] == [250, 250, 100]
    assert [served.at_s for part in parts for served in rows_of(part.body)] == [float(i) for i in range(600)]
    assert parts[0].energy_j == 500.0


def test_a_full_batch_does_not_wait(monkeypatch: pytest.MonkeyPatch):
    """The thread hands it over at once, and a smaller one after the time that it may wait."""
    monkeypatch.setattr(module, "WAIT_S", 0.3)
    spool = Spool()
    book = Book("run", "gateway", spool=spool)

    def wait_s() -> float:
        begin_s = time.monotonic()
        while book._waiting and time.monotonic() < begin_s + 5:
            time.sleep(0.002)
        return time.monotonic() - begin_s

    book([row(i) for i in range(module.ROWS)])
    assert wait_s() < 0.25
    with book._writing:  # it has done with the batch
        pass
    book([row(0)])
    assert 0.1 < wait_s() < 2
    book.close()
    spool.close()
    with Ledger.open() as ledger:
        assert [part.body["rows"] for part in ledger.parts("run", KIND)] == [module.ROWS, 1]


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Rows that come faster than they are taken push the oldest out, and that is logged."""
    monkeypatch.setattr(module, "WAITING", 100)
    spool = Spool()
    book = Book("run", "gateway", spool=spool)
    with book._writing, caplog.at_level(logging.ERROR, "negawatt"):
        for i in range(0, 300, 10):
            book([row(j) for j in range(i, i + 10)])
        assert len(book._waiting) <= 100
    book.close()
    spool.close()
    with Ledger.open() as ledger:
        (part,) = ledger.parts("run", KIND)
    assert [served.at_s for served in rows_of(part.body)] == [float(i) for i in range(200, 300)]
    assert "200 requests are not in the ledger" in caplog.text


def test_a_refused_record_is_logged(caplog: pytest.LogCaptureFixture):
    """A number that is not finite has no place in the ledger, and takes no other row with it."""
    spool = Spool()
    book = Book("run", "gateway", spool=spool)
    book([row(0, time_s=float("inf"))])
    book.flush()
    book([row(1)])
    book.close()
    spool.close()
    with Ledger.open() as ledger:
        assert [part.body["rows"] for part in ledger.parts("run", KIND)] == [1]
    assert "1 requests are not in the ledger" in caplog.text


@pytest.mark.slow
def test_a_killed_gateway_loses_seconds_at_most(tmp_path: Path):
    """What was served longer ago than the waits of book and spool is in the ledger after a SIGKILL."""
    script = """
        import sys, time
        sys.path.insert(0, sys.argv[1])
        from test_book import row
        from negawatt.serve import book
        kept = book.Book("run", "gateway")
        for i in range(10_000):
            kept([row(i)])
            if i == 700:
                print("some", flush=True)
            time.sleep(0.01)
    """
    child = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(Path(__file__).parent)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    child.stdout.readline()
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    with Ledger.open() as ledger:
        ledger.merge()
        rows = [served for part in ledger.parts("run", KIND) for served in rows_of(part.body)]
    assert [served.at_s for served in rows] == [float(i) for i in range(len(rows))]
    assert len(rows) >= 250

"""Lines get to the disk in the background, once, through disks that are full and files that grow long."""

from __future__ import annotations

import os
import stat

import pytest

from negawatt.core.errors import LedgerError
from negawatt.ledger.spool import Spool
from negawatt.ledger.store import Ledger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


@pytest.fixture
def spool(path):
    spool = Spool(path)
    yield spool
    spool.close()


def merged(path):
    """All records of the ledger, with what is spooled."""
    with Ledger.open(path) as ledger:
        assert ledger.merge().faults == ()
        assert ledger.verify().fault is None
        return ledger.records()


def test_a_disk_that_is_full_only_when_it_is_waited_for_loses_nothing(path, spool, monkeypatch):
    """Some file systems refuse only at the fsync what they took before: it is written again, into a whole file."""
    spool.put("run", {"i": 0})
    real, refuse = os.fsync, {"left": 2}

    def fsync(fd):
        if refuse["left"] and stat.S_ISREG(os.fstat(fd).st_mode):
            refuse["left"] -= 1
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    for number in (1, 2):
        with pytest.raises(LedgerError, match="No space left"):
            spool.flush()
        spool.put("run", {"i": number})
    spool.flush()
    refuse["left"] = 1
    spool.put("run", {"i": 3})
    with pytest.raises(LedgerError, match="No space left"):
        spool.flush()
    spool.close()
    assert [r.body["i"] for r in merged(path)] == [0, 1, 2, 3]


def test_what_waits_in_memory_is_bounded(path, spool, monkeypatch, caplog):
    """While nothing can be written, the oldest records go past the bound, which is said once, and again at the end."""
    monkeypatch.setattr("negawatt.ledger.backlog.BACKLOG_BYTES", 10_000)

    def refuse(folder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("negawatt.ledger.spoolfile.SpoolFile.make", refuse)
        for number in range(100):
            spool.put("run", {"i": number, "pad": "x" * 800})
        with pytest.raises(LedgerError, match=r"No space left(.|\n)*; \d\d records are lost already"):
            spool.flush()
    spool.flush()
    kept = [r.body["i"] for r in merged(path)]
    assert 5 < len(kept) < 12
    assert kept == list(range(100))[-len(kept) :]
    assert caplog.text.count("from now on, the oldest records are lost") == 1
    assert f"can be written again; {100 - len(kept)} records are lost" in caplog.text


def test_a_long_file_is_ended_and_another_begun(path, spool, monkeypatch):
    """What a server spools for months is in files of a bounded length; merged, they go while it lives."""
    monkeypatch.setattr("negawatt.ledger.behind.FILE_BYTES", 1000)
    key = spool.open_run("run", {"n": "open"})
    for number in range(20):
        spool.put("run", {"n": number, "filling": "x" * 200})
        spool.flush()
    assert len(list(spool.folder.glob("*.jsonl"))) > 3
    assert len(list(spool.folder.glob("*.open"))) == 1
    assert [record.body["n"] for record in merged(path)] == list(range(20))
    assert len(list(spool.folder.glob("*.jsonl"))) == 1
    spool.finish(key, {"n": "done"})
    spool.close()
    assert [record.body["n"] for record in merged(path)] == [*range(20), "done"]


def test_a_file_that_cannot_be_followed_by_another_goes_on(path, spool, monkeypatch, caplog):
    """Where no second file can be made, the first one grows, and nothing is written twice or lost."""
    spool.open_run("run", {"n": "open"})
    spool.flush()
    monkeypatch.setattr("negawatt.ledger.behind.FILE_BYTES", 1)
    (first,) = spool.folder.glob("*.jsonl")

    def refuse(folder):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("negawatt.ledger.spoolfile.SpoolFile.make", refuse)
        for number in range(3):
            spool.put("run", {"n": number})
            spool.flush()
    assert len(first.read_text().splitlines()) == 4
    assert "grows long: No space left" in caplog.text
    assert [record.body["n"] for record in merged(path)] == [0, 1, 2]

"""A merge takes each record once, takes nothing it does not understand, and removes only what is finished."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from contextlib import ExitStack

import pytest

from negawatt.core.errors import LedgerError
from negawatt.ledger import lines
from negawatt.ledger.locks import BusyError, only_merger
from negawatt.ledger.origin import Origin, next_sequence, running, this_process
from negawatt.ledger.spool import Spool
from negawatt.ledger.store import Ledger


@pytest.fixture
def ledger(tmp_path):
    with Ledger.open(tmp_path / "ledger.sqlite") as ledger:
        yield ledger


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "ledger.sqlite.spool"
    folder.mkdir()
    return folder


HERE = this_process()


def writer(*, machine_id=HERE.machine_id, boot_id=HERE.boot_id):
    return Origin(host="h", machine_id=machine_id, boot_id=boot_id, pid=1, start="1", token="t")


def spooled(folder, *texts, name="a.jsonl", origin=None):
    """A spool file as a process that is no longer there left it."""
    path = folder / name
    path.write_text(lines.header(origin or writer()) + "".join(texts))
    return path


def text(i, sequence=None):
    return lines.line(sequence or f"1-1-t-{i}", "run", {"i": i})


def test_a_dead_writers_file_is_taken_and_removed(ledger, folder):
    """What a dead process left is merged, and its files are gone."""
    path = spooled(folder, text(1), text(2))
    merged = ledger.merge()
    assert (merged.added, merged.known, merged.interrupted, merged.torn, merged.faults) == (2, 0, 0, 0, ())
    assert not path.exists()
    assert [r.body["i"] for r in ledger.records()] == [1, 2]


def test_a_torn_last_line_is_dropped_and_counted(ledger, folder):
    """Half a line at the end, as a killed writer leaves it, costs nothing but itself."""
    path = spooled(folder, text(1), text(2)[:-20])
    assert (ledger.merge().torn, path.exists()) == (1, False)
    assert [r.body["i"] for r in ledger.records()] == [1]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "there is none"),
        ("my thesis\n", "line 1"),
        ("{}\n", "line 1: 'negawatt_spool'"),
        (lines.header(writer()).replace('"negawatt_spool":1', '"negawatt_spool":2') + text(1), "format 2; .* format 1"),
        (lines.header(writer()).replace('"pid":1', '"pid":"1"') + text(1), "line 1: pid is '1'"),
        (lines.header(writer()) + text(1) + text(2)[:-20] + "\n" + text(3), "line 3"),
        (lines.header(writer()) + text(1).replace('"run"', '"dream"'), "line 2: .*'dream'"),
        (lines.header(writer()) + text(1).replace('"workload"', '"joules"'), "line 2: 'workload'"),
        (lines.header(writer()) + text(1).replace('"body":{', '"odd":0,"body":{'), "line 2: fields"),
        (lines.header(writer()) + text(1).replace('"i":1', '"i":NaN'), "line 2"),
        (lines.header(writer()) + "[]\n", "line 2"),
        (lines.header(writer()) + lines.END + text(1), "line 3: something follows the end"),
    ],
)
def test_what_is_not_understood_is_kept(ledger, folder, content, said):
    """A file of another program, a newer negawatt or with a damaged line is reported and left; others are merged."""
    path = folder / "odd.jsonl"
    path.write_text(content)
    spooled(folder, text(7, "other"))
    merged = ledger.merge()
    assert merged.added == 1
    (fault,) = merged.faults
    assert re.search(said, fault)
    assert path.read_text() == content
    assert [r.body["i"] for r in ledger.records()] == [7]


def test_an_odd_state_keeps_both_files(ledger, folder):
    """If the state of the unfinished runs is not understood, the spool is left whole."""
    path = spooled(folder, text(1))
    path.with_suffix(".open").write_text("?\n")
    assert len(ledger.merge().faults) == 1
    assert path.exists()
    assert ledger.records() == []


def test_unfinished_runs_of_the_dead_are_interrupted(ledger, folder):
    """The last state becomes a record, unless the final record was written before the process died."""
    path = spooled(folder, text(1, "finished"))
    spooled(folder, text(0, "finished"), text(2, "cut"), name="a.open")
    merged = ledger.merge()
    assert (merged.added, merged.interrupted) == (2, 1)
    assert [r.body for r in ledger.records()] == [{"i": 1}, {"i": 2, "interrupted": True}]
    assert not path.with_suffix(".open").exists()


def test_a_run_that_went_on_in_another_file_is_not_interrupted(ledger, folder):
    """A state that a killed writer left in two files says nothing new once the run is recorded."""
    spooled(folder, text(1, "moved"))
    ledger.merge()
    path = spooled(folder, name="b.jsonl")
    spooled(folder, text(0, "moved"), name="b.open")
    merged = ledger.merge()
    assert (merged.added, merged.known, merged.faults, path.exists()) == (0, 1, (), False)
    assert [r.body for r in ledger.records()] == [{"i": 1}]


def test_a_copy_is_merged_once(ledger, folder, tmp_path):
    """The same spool under another name or in another folder, as a backup restores it, adds nothing."""
    spooled(folder, text(1))
    shutil.copytree(folder, tmp_path / "copy")
    shutil.copy(folder / "a.jsonl", folder / "b.jsonl")
    assert (ledger.merge().added, ledger.merge(tmp_path / "copy").known) == (1, 1)
    assert len(ledger.records()) == 1


def test_one_identity_with_two_contents_is_reported(ledger, folder):
    """A record that contradicts the ledger is not added, not lost, and named."""
    spooled(folder, text(1, "same"))
    ledger.merge()
    path = spooled(folder, text(2, "same"), text(3, "fresh"))
    merged = ledger.merge()
    assert merged.added == 1
    assert "another record same" in merged.faults[0]
    assert path.exists()
    assert [r.body["i"] for r in ledger.records()] == [1, 3]


def test_an_earlier_boot_is_dead(ledger, folder):
    """What was left before the machine was started again is taken over."""
    path = spooled(folder, origin=writer(boot_id="before"))
    spooled(folder, text(2), name="a.open", origin=writer(boot_id="before"))
    assert (ledger.merge().interrupted, path.exists()) == (1, False)


def test_another_hosts_process_may_be_alive(ledger, folder):
    """Its records are taken; its file and open runs are left until it ends or has been quiet for a week."""
    other = writer(machine_id="other", boot_id="other")
    path = spooled(folder, text(1), origin=other)
    spooled(folder, text(2), name="a.open", origin=other)
    assert (ledger.merge().added, ledger.merge().known, path.exists()) == (1, 1, True)
    week_ago = time.time() - 8 * 86400
    os.utime(path, (week_ago, week_ago))
    assert (ledger.merge().interrupted, path.exists()) == (1, False)
    path = spooled(folder, text(3), lines.END, origin=other)
    assert (ledger.merge().added, path.exists()) == (1, False)


def test_a_living_process_keeps_its_file(ledger, folder):
    """A merge in the same process, or another, reads the spool of a living one and leaves it."""
    spool = Spool(ledger.path)
    spool.put("run", {})
    spool.flush()
    assert ledger.merge().added == 1
    assert len(list(folder.glob("*.jsonl"))) == 1
    spool.close()
    assert list(folder.glob("*.jsonl")) == []


def test_half_made_files_are_swept(ledger, folder):
    """What a process left that was killed while it made a file goes after a while."""
    old, new = folder / "old.part", folder / "new.part"
    old.write_text("")
    new.write_text("")
    os.utime(old, (0, 0))
    ledger.merge()
    assert (old.exists(), new.exists()) == (False, True)


def test_one_process_merges_at_a_time(ledger, folder):
    """While another process merges, a merge waits, and past the time says so; nothing is lost."""
    spooled(folder, text(1))
    with only_merger(folder, 0.0), pytest.raises(BusyError, match=r"another process is merging(.|\n)*nothing is lost"):
        ledger.merge(wait_s=0.05)
    assert ledger.merge(wait_s=0.0).added == 1


def test_a_ledger_that_cannot_be_written_keeps_the_spool(ledger, folder):
    """If the ledger is held too long, the merge raises and the spool stays for the next."""
    path = spooled(folder, text(1))
    with Ledger.open(ledger.path, timeout_s=0.1) as impatient:
        with ledger.writing(), pytest.raises(LedgerError, match="locked"):
            impatient.merge()
        assert path.exists()
        assert impatient.merge().added == 1


def test_no_folder_is_nothing_to_merge(ledger, tmp_path):
    """A ledger that nobody spools to merges nothing."""
    assert ledger.merge(tmp_path / "none").added == 0


def test_odd_text_in_a_spool_can_be_stored(ledger, folder):
    """Text that UTF-8 cannot hold does not stop a merge."""
    spooled(folder, text(1).replace('"workload":""', '"workload":"a\\udcffb"'))
    assert ledger.merge().added == 1
    assert ledger.records()[0].workload == "a\\udcffb"


def test_processes_are_told_apart():
    """Sequences never repeat within a process or over two; a process that is gone, or an earlier one, is not alive."""
    assert len({next_sequence() for _ in range(100)}) == 100
    code = "from negawatt.ledger.origin import next_sequence; print(next_sequence())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert other.rpartition("-")[0] != next_sequence().rpartition("-")[0]
    assert running(HERE.pid, HERE.start)
    assert not running(HERE.pid, "1")
    assert not running(2**22 + 1, HERE.start)


def test_records_name_their_origin(ledger, folder):
    """A record that is appended and one that is spooled name the same machine and boot."""
    ledger.append("run", {})
    with ExitStack() as stack:
        spool = Spool(ledger.path)
        stack.callback(spool.close)
        spool.put("run", {})
    first, second = ledger.records()
    assert (first.machine_id, first.boot_id) == (second.machine_id, second.boot_id) == (HERE.machine_id, HERE.boot_id)
    assert first.sequence.rpartition("-")[0] == second.sequence.rpartition("-")[0] == HERE.process
    assert json.loads(lines.header(HERE))["pid"] == os.getpid()

"""`negawatt ledger`: sums, checks and housekeeping, for people and for programs."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import tempfile
from pathlib import Path

import pytest

from negawatt.cli import main
from negawatt.core.reading import Source
from negawatt.core.serving import Cost, Outcome, Served
from negawatt.ledger.spool import Spool
from negawatt.ledger.store import Ledger
from negawatt.serve.book import Book


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch):
    path = tmp_path / "ledger.sqlite"
    monkeypatch.setenv("NEGAWATT_LEDGER", str(path))
    monkeypatch.delenv("NEGAWATT_SPOOL", raising=False)
    return path


def answer(capsys, *words, code=0):
    """What a command prints; it has to end with `code`."""
    assert leaves(words) == code
    return capsys.readouterr()


def leaves(words):
    try:
        return main(["ledger", *words])
    except SystemExit as ended:
        return ended.code


def spooled(path):
    """A spool of a living process with one record."""
    spool = Spool(path)
    spool.put(
        "run", {"i": 1}, workload="w", energy_j=1000.0, source="counter", power_curve=[(1.0, 500.0), (2.0, 500.0)]
    )
    spool.flush()
    return spool


@pytest.mark.parametrize("words", [["list"], ["show", "1"], ["export"], ["total"], ["verify"], ["merge"], ["rollup"]])
def test_every_command_takes_in_what_is_spooled(capsys, path, words):
    """A record that a running process has put is in the ledger after any command, and shown by those that show."""
    spool = spooled(path)
    out = answer(capsys, *words).out
    with Ledger.open(path) as ledger:
        assert len(ledger.records()) == 1
    if words[0] in ("list", "show", "export", "total"):
        assert "counter" in out
    spool.close()


def test_total_keeps_sources_apart(capsys, path):
    """One line per workload, kind and source, with joules, records, and how many have no energy."""
    with Ledger.open(path) as ledger:
        for energy_j, source in ((1000.0, "counter"), (2000.0, "counter"), (500.0, "estimated"), (None, "estimated")):
            ledger.append("run", {}, workload="[red]w\x1b", energy_j=energy_j, source=source)
    header, first, second = answer(capsys, "total").out.splitlines()
    assert header.split()[:4] == ["workload", "kind", "source", "energy"]
    assert re.search(r"\[red\]w\S* +run +counter +3\.00\u00a0kJ +2", first)
    assert re.search(r"estimated +500\u00a0J +2 +1$", second)
    totals = json.loads(answer(capsys, "total", "--json", "--kind", "run").out)
    assert [(t["source"], t["energy_j"], t["records"], t["unknown"]) for t in totals] == [
        ("counter", 3000.0, 2, 0),
        ("estimated", 500.0, 2, 1),
    ]
    assert "run, trial" in answer(capsys, "total", "--kind", "runs", code=2).err


def test_list_shows_errors_and_what_became_of_runs(capsys, path, monkeypatch):
    """Joules come with their error; what was interrupted, crashed, killed or is a part of another run is marked."""
    bodies = (
        {"energy_sd_j": 40.0},
        {"interrupted": True},
        {"error": "RuntimeError: out of\nmemory", "exit_code": None, "signal": ""},
        {"exit_code": 3},
        {"signal": "SIGKILL", "exit_code": None},
        {"exit_code": 0, "error": "", "parent": ""},
        {"parent": "gone"},
    )
    with Ledger.open(path) as ledger:
        for body in bodies:
            ledger.append("run", body, workload="w", energy_j=2130.0, source="counter")
        ledger.append("run", {"parent": ledger.get(1).sequence, "interrupted": True}, workload="w")
    monkeypatch.setenv("COLUMNS", "120")
    header, *rows = answer(capsys, "list").out.splitlines()
    assert header.split()[-1] == "note"
    assert "2.13 ± 0.04\u00a0kJ" in rows[0]
    assert [row.partition("counter")[2].strip() for row in rows[:7]] == [
        "", "interrupted", "RuntimeError", "exit code 3", "SIGKILL", "", "part of a run that is not here",
    ]  # fmt: skip
    assert rows[7].rstrip().endswith("interrupted, part of #1")


def test_total_shows_the_most_that_the_error_can_be(capsys, path):
    """The errors of the records add up as they are."""
    with Ledger.open(path) as ledger:
        for _ in range(2):
            ledger.append("run", {"energy_sd_j": 20.0}, workload="w", energy_j=1000.0, source="counter")
    assert "2.00 ± 0.04\u00a0kJ" in answer(capsys, "total").out
    assert json.loads(answer(capsys, "total", "--json").out)[0]["energy_sd_j"] == 40.0


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs root, to become another user")
def test_an_archive_is_looked_at_and_left_alone(capsys, monkeypatch):
    """What cannot be written is shown all the same, with a word that spools are not taken in; nothing is made."""
    folder = Path(tempfile.mkdtemp())
    path = folder / "ledger.sqlite"
    with Ledger.open(path) as ledger:
        ledger.append("run", {}, workload="w", energy_j=1.0, source="counter")
    spooled(path).close()
    path.chmod(0o444)
    folder.chmod(0o555)
    monkeypatch.setenv("NEGAWATT_LEDGER", str(path))
    before = sorted(folder.rglob("*"))
    os.seteuid(65534)
    try:
        for words in (["list"], ["total"], ["verify"], ["show", "1"], ["export"], ["rollup", "--dry-run"]):
            captured = answer(capsys, *words)
            assert "not taken in" in captured.err
            assert captured.out
        assert "readonly" in answer(capsys, "rollup", code=1).err
    finally:
        os.seteuid(0)
        folder.chmod(0o755)
    assert sorted(folder.rglob("*")) == before
    shutil.rmtree(folder)


def test_merge_takes_another_ledger(capsys, path, tmp_path):
    """A ledger file is taken once; records that are still spooled beside it are pointed out, damage is refused."""
    other = tmp_path / "b.sqlite"
    spooled(other)
    with Ledger.open(other) as ledger:
        ledger.append("run", {}, energy_j=1.0)
    captured = answer(capsys, "merge", str(other))
    assert captured.out == "1 added, 0 of them interrupted; 0 known before\n"
    assert "b.sqlite.spool has records" in captured.err
    assert json.loads(answer(capsys, "merge", "--json", str(other)).out)["known"] == 1
    db = sqlite3.connect(other)
    db.executescript("DROP TRIGGER records_no_update; UPDATE records SET energy_j = 2;")
    db.close()
    assert "record 1 was changed" in answer(capsys, "merge", str(other), code=1).err
    assert "is this ledger" in answer(capsys, "merge", str(path), code=2).err


def test_merge_says_where_there_is_nothing(capsys, path, tmp_path):
    """A folder without spools says what a spool is and stays as it was; garbage and devices are refused."""
    empty = tmp_path / "empty"
    empty.mkdir()
    captured = answer(capsys, "merge", str(empty))
    assert captured.out.startswith("0 added")
    assert "no spool in" in captured.err
    assert "NAME.jsonl" in captured.err
    assert list(empty.iterdir()) == []
    for name, content in (("thesis.txt", "my thesis"), ("none.sqlite", "")):
        (tmp_path / name).write_text(content)
        assert f"{name} is not a ledger" in answer(capsys, "merge", str(tmp_path / name), code=1).err
    assert "neither a file nor a folder" in answer(capsys, "merge", "/dev/null", code=2).err


def test_verify_tells_the_head(capsys, path):
    """An intact ledger exits with 0 and prints its head, which is accepted later, in capitals too."""
    with Ledger.open(path) as ledger:
        ledger.append("run", {})
        head = ledger.get(1).hash
        ledger.append("run", {})
    assert answer(capsys, "verify").out.startswith("intact: 2\u00a0records, head ")
    assert json.loads(answer(capsys, "verify", "--json").out)["fault"] is None
    assert "intact" in answer(capsys, "verify", "--head", head.upper()).out


def test_verify_fails_on_damage(capsys, path):
    """A changed record exits with 1 and is named, on stdout and as JSON."""
    with Ledger.open(path) as ledger:
        for _ in range(3):
            ledger.append("run", {}, energy_j=1.0)
    db = sqlite3.connect(path)
    db.executescript("DROP TRIGGER records_no_update; UPDATE records SET energy_j = 2 WHERE id = 2;")
    db.close()
    out = answer(capsys, "verify", code=1).out
    assert "damaged: record 2 was changed" in out
    assert "intact before it: 1\u00a0record\n" in out
    found = json.loads(answer(capsys, "verify", "--json", code=1).out)
    assert (found["records"], found["fault"]["record_id"]) == (1, 2)


def test_verify_knows_a_missing_head(capsys, path):
    """A head that is not in the chain exits with 1, in a ledger and without one; a mistyped one is a usage error."""
    gone = "0" * 64
    assert "that record is gone" in answer(capsys, "verify", "--head", gone, code=1).err
    assert not path.exists()
    with Ledger.open(path) as ledger:
        ledger.append("run", {})
    assert "cut off" in answer(capsys, "verify", "--head", gone, code=1).out
    assert "64 hexadecimal digits" in answer(capsys, "verify", "--head", "0123", code=2).err


def test_looking_makes_no_ledger(capsys, path):
    """Without a ledger, the commands that look say so on stderr, answer in JSON all the same, and make none."""
    for words, nothing in (
        (("total",), []),
        (("verify",), {"records": 0, "head": "", "fault": None}),
        (("rollup",), {"points": 0, "means": 0}),
    ):
        captured = answer(capsys, *words, "--json")
        assert json.loads(captured.out) == nothing
        assert "no ledger at" in captured.err
    assert not path.exists()


def test_merge_takes_other_folders(capsys, path, tmp_path, monkeypatch):
    """Folders that other hosts spooled to are merged once; what is not understood exits with 1 and is left."""
    for name in ("a", "b"):
        spool = Spool(path, folder=tmp_path / name)
        spool.put("run", {})
        spool.close()
    folders = [str(tmp_path / "a"), str(tmp_path / "b")]
    assert answer(capsys, "merge", *folders).out == "2 added, 0 of them interrupted; 0 known before\n"
    assert json.loads(answer(capsys, "merge", "--json", *folders).out)["added"] == 0
    (tmp_path / "a" / "odd.jsonl").write_text("?\n")
    assert "odd.jsonl: line 1" in answer(capsys, "merge", folders[0], code=1).err
    assert (tmp_path / "a" / "odd.jsonl").exists()
    assert "does not exist" in answer(capsys, "merge", str(tmp_path / "none"), code=2).err


def test_a_spool_that_is_not_understood_does_not_stop_looking(capsys, path):
    """`list` shows what it has, and says on stderr what it could not take in."""
    spooled(path).close()
    (path.with_name("ledger.sqlite.spool") / "odd.jsonl").write_text("?\n")
    captured = answer(capsys, "list", "--json")
    assert len(json.loads(captured.out)) == 1
    assert "not merged, and left as it is" in captured.err


def test_rollup_counts_first(capsys, path):
    """A dry run changes nothing; then points of a minute become one, and again nothing."""
    spooled(path).close()
    with Ledger.open(path) as ledger:
        (run,) = ledger.records()
        assert answer(capsys, "rollup").out == "0\u00a0points became 0\u00a0means\n"  # younger than 14 days
        words = ("rollup", "--keep-days", "0")
        assert answer(capsys, *words, "--dry-run").out == "2\u00a0points would become 1\u00a0mean\n"
        assert len(ledger.samples(run.sequence)) == 2
        assert json.loads(answer(capsys, *words, "--json").out) == {"points": 2, "means": 1}
        assert [(s.power_w, s.span_s) for s in ledger.samples(run.sequence)] == [(500.0, 2.0)]
        assert answer(capsys, *words).out == "0\u00a0points became 0\u00a0means\n"


def test_what_a_gateway_served_is_a_part_of_its_run(capsys, path):
    """It is listed only when asked for, adds nothing to the total, and is summed up where the run is shown."""
    cost = Cost(energy_j=4.0, energy_sd_j=1.0, source=Source.COUNTER)
    rows = [
        Served(
            id=str(i), at_s=0.0, time_s=0.5, path="/v1/embeddings", model="m", status=200, outcome=Outcome.ANSWERED,
            tokens_in=3, tokens_out=None, shared=1, cost=cost,
        )
        for i in range(5)
    ]  # fmt: skip
    spool = Spool(path)
    run = spool.open_run("run", {}, workload="gateway")
    book = Book(run, "gateway", spool=spool)
    book(rows)
    book.close()
    spool.finish(run, {"energy_sd_j": 1.0}, energy_j=30.0, source="counter")
    spool.close()
    assert [record["kind"] for record in json.loads(answer(capsys, "list", "--json").out)] == ["run"]
    (part,) = json.loads(answer(capsys, "list", "--kind", "requests", "--json").out)
    assert part["energy_j"] == 20.0
    (total,) = json.loads(answer(capsys, "total", "--json").out)
    assert (total["kind"], total["energy_j"]) == ("run", 30.0)
    with Ledger.open(path) as ledger:
        (record,) = ledger.records(kind="run")
    (served,) = json.loads(answer(capsys, "show", str(record.id)).out)["served"]
    assert (served["path"], served["model"], served["requests"]) == ("/v1/embeddings", "m", 5)
    assert (served["energy_j"], served["tokens_in"], served["time_s"]) == (20.0, 15, 0.5)
    assert "served" not in json.loads(answer(capsys, "show", str(part["id"])).out)
    assert answer(capsys, "export").out.count("/v1/embeddings") == 1

"""The ledger keeps every record, whole and unchanged, whatever happens to the processes and the disk around it."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import LedgerError, UsageError
from negawatt.ledger.store import KINDS, SCHEMA, Ledger, default_path, fault

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)

WRITER = """
import sys
from pathlib import Path
from negawatt.ledger.store import Ledger
path, name, count = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
with Ledger.open(path) as ledger:
    for i in range(count):
        ledger.append("trial", {"i": i, "pad": "x" * 300}, workload=name, energy_j=float(i))
"""


REPLACE = (
    "INSERT OR REPLACE INTO records SELECT {id}, '', host, kind, workload, '', campaign, 0, source, machine_id,"
    " boot_id, {sequence}, hash, '' FROM records"
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "ledger.sqlite"


def writer(path, name, count, *more):
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name, str(count), *more], stderr=subprocess.PIPE)


def parts(error):
    """The three parts of an error, none of them empty."""
    assert error.got
    assert error.why
    assert error.fix
    return error


def test_what_is_appended_is_read_back(path):
    """Every column and the body come back as given, from a later connection too."""
    with Ledger.open(path) as ledger:
        number = ledger.append(
            "trial", {"a": [1, 2.5, None]}, workload="w", phase="train", campaign="c", energy_j=3.5, source="estimated"
        )
    with Ledger.open(path) as ledger:
        record = ledger.get(number)
    assert (record.kind, record.workload, record.phase, record.campaign) == ("trial", "w", "train", "c")
    assert (record.energy_j, record.source, record.body) == (3.5, "estimated", {"a": [1, 2.5, None]})
    assert record.host
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", record.created_utc)


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    with Ledger.open(tmp_path_factory.mktemp("shared") / "ledger.sqlite") as ledger:
        ledger._db.execute("PRAGMA synchronous = OFF")
        yield ledger


@given(body=st.dictionaries(st.text(), JSON, max_size=4))
def test_any_json_body_round_trips(shared, body):
    """A body of any JSON types is read back equal."""
    assert shared.get(shared.append("run", body)).body == json.loads(json.dumps(body))


def test_records_come_oldest_first_and_filtered(path):
    """Filters combine, and a limit keeps the newest records in the order of writing."""
    with Ledger.open(path) as ledger:
        for i in range(6):
            ledger.append("trial" if i % 2 else "run", {"i": i}, workload=f"w{i // 3}", campaign="c" if i > 3 else "")
        assert [r.body["i"] for r in ledger.records()] == [0, 1, 2, 3, 4, 5]
        assert [r.body["i"] for r in ledger.records(limit=2)] == [4, 5]
        assert [r.body["i"] for r in ledger.records(kind="trial")] == [1, 3, 5]
        assert [r.body["i"] for r in ledger.records(kind="trial", workload="w1")] == [3, 5]
        assert [r.body["i"] for r in ledger.records(campaign="c")] == [4, 5]
        assert ledger.records(limit=0) == []


def test_an_unknown_id_is_a_usage_error(path):
    """Asking for a record that is not there says what to type, for ids beyond SQLite's integers too."""
    with Ledger.open(path) as ledger:
        ledger.append("run", {})
        for number in (2, -1, 10**30):
            with pytest.raises(UsageError, match=f"no record {number} in .*\n.*\n.*ledger list"):
                ledger.get(number)


@pytest.mark.parametrize(
    ("kind", "body", "energy_j", "message"),
    [
        ("nonsense", {}, None, "kind 'nonsense'"),
        ("run", {"x": float("nan")}, None, "not JSON"),
        ("run", {"x": float("inf")}, None, "not JSON"),
        ("run", {"x": object()}, None, "not JSON"),
        ("run", {}, float("nan"), "nan J"),
    ],
)
def test_what_could_not_be_read_back_is_refused(path, kind, body, energy_j, message):
    """A record that would not survive the round trip raises, and leaves no row."""
    with Ledger.open(path) as ledger:
        with pytest.raises(LedgerError, match=message):
            ledger.append(kind, body, energy_j=energy_j)
        assert ledger.records() == []


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE records SET energy_j = 0",
        "DELETE FROM records",
        REPLACE.format(id="id", sequence="'another'"),
        REPLACE.format(id="id + 1", sequence="sequence"),
    ],
)
def test_records_are_append_only(path, statement):
    """SQL from outside negawatt cannot change, delete or replace a record either."""
    with Ledger.open(path) as ledger:
        ledger.append("run", {"x": 1}, energy_j=1.0)
        before = ledger.records()
        db = sqlite3.connect(path)
        with pytest.raises(sqlite3.IntegrityError, match="records are never"):
            db.execute(statement)
        db.close()
        assert ledger.records() == before


def test_only_the_owner_reads_it(path):
    """Recorded command lines can hold secrets: folder and files are closed to others."""
    with Ledger.open(path) as ledger:
        ledger.append("run", {})
        files = list(path.parent.iterdir())
        assert len(files) == 3  # with the log and its index
        assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_writes_reach_the_disk(path):
    """The write-ahead log is used, and a commit waits for the disk."""
    with Ledger.open(path) as ledger:
        assert ledger._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert ledger._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


def test_default_path_follows_the_environment(monkeypatch):
    """NEGAWATT_LEDGER names the file; without it, the file is in the user's state folder."""
    monkeypatch.setenv("NEGAWATT_LEDGER", "~/x.sqlite")
    assert default_path() == Path.home() / "x.sqlite"
    monkeypatch.setenv("NEGAWATT_LEDGER", "")
    assert default_path().parts[-2:] == ("negawatt", "ledger.sqlite")


def test_concurrent_writers_lose_nothing(path):
    """Eight processes that make the ledger together and write 50 records each end with 400 records."""
    writers = [writer(path, f"w{i}", 50) for i in range(8)]
    for process in writers:
        _, err = process.communicate(timeout=120)
        assert (process.returncode, err) == (0, b"")
    with Ledger.open(path) as ledger:
        for i in range(8):
            assert [r.body["i"] for r in ledger.records(workload=f"w{i}")] == list(range(50))
        assert [r.id for r in ledger.records()] == list(range(1, 401))


def test_killed_writers_leave_it_intact(path):
    """SIGKILL in the middle of writing leaves whole records without gaps, and a ledger that can be written."""
    Ledger.open(path).close()
    writers = [writer(path, f"w{i}", 10**6) for i in range(4)]
    deadline_s = time.monotonic() + 60
    with Ledger.open(path) as ledger:
        while not all(ledger.records(workload=f"w{i}", limit=1) for i in range(4)):
            assert time.monotonic() < deadline_s
            time.sleep(0.05)
    for process in writers:
        process.send_signal(signal.SIGKILL)
    for process in writers:
        process.communicate(timeout=60)
    with Ledger.open(path) as ledger:
        assert ledger._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        for i in range(4):
            numbers = [r.body["i"] for r in ledger.records(workload=f"w{i}")]
            assert numbers == list(range(len(numbers)))
        assert ledger.append("run", {}) == len(ledger.records())


def fill(ledger, acknowledged):
    for i in range(10_000):
        ledger.append("trial", {"i": i, "pad": "x" * 2000})
        acknowledged.append(i)


def test_a_full_disk_keeps_what_was_recorded(path):
    """When SQLite may not grow the file, append raises, earlier records stay, and room makes it work again."""
    with Ledger.open(path) as ledger:
        ledger._db.execute("PRAGMA max_page_count = 40")
        acknowledged = []
        with pytest.raises(LedgerError, match=r"full(.|\n)*NEGAWATT_LEDGER=PATH") as caught:
            fill(ledger, acknowledged)
        parts(caught.value)
        assert len(acknowledged) > 10
        assert [r.body["i"] for r in ledger.records()] == acknowledged
        ledger._db.execute("PRAGMA max_page_count = 1000000")
        ledger.append("run", {})
    with Ledger.open(path) as ledger:
        assert len(ledger.records()) == len(acknowledged) + 1


LIMITED = """
import resource, sys
from pathlib import Path
from negawatt.core.errors import LedgerError
from negawatt.ledger.store import Ledger
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
with Ledger.open(Path(sys.argv[1])) as ledger:
    for i in range(10_000):
        try:
            ledger.append("trial", {"i": i, "pad": "x" * 2000})
        except LedgerError as error:
            print(i, error.fix)
            break
"""


def test_a_file_size_limit_keeps_what_was_recorded(path):
    """A write that the kernel refuses raises with advice, and every acknowledged record is there afterwards."""
    ended = subprocess.run([sys.executable, "-c", LIMITED, str(path)], capture_output=True, text=True, check=True)
    count, _, advice = ended.stdout.partition(" ")
    assert "ulimit -f" in advice
    with Ledger.open(path) as ledger:
        assert [r.body["i"] for r in ledger.records()] == list(range(int(count)))
        ledger.append("run", {})


def test_a_held_ledger_is_waited_for(path):
    """An append waits for another writer to finish, and then succeeds."""
    with Ledger.open(path) as ledger, Ledger.open(path) as other:
        release = threading.Event()
        held = threading.Event()

        def hold():
            with Ledger.open(path) as holder, holder.writing():
                held.set()
                release.wait(10)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait(10)
        threading.Timer(0.3, release.set).start()
        ledger.append("run", {})
        thread.join()
        assert len(other.records()) == 1


def test_a_ledger_held_too_long_raises(path):
    """Past the waiting time, append says who to look for; nothing is half written."""
    with Ledger.open(path) as holder, Ledger.open(path, timeout_s=0.1) as ledger:
        with holder.writing(), pytest.raises(LedgerError, match=r"locked.*\n.*\n.*fuser"):
            ledger.append("run", {})
        assert ledger.records() == []
        ledger.append("run", {})


def test_a_newer_ledger_is_not_touched(path):
    """A ledger of a later version is refused with the way out, and stays byte for byte as it was."""
    with Ledger.open(path) as ledger:
        ledger.append("run", {})
        ledger._db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    before = path.read_bytes()
    with pytest.raises(
        LedgerError, match=rf"format {SCHEMA + 1}(.|\n)*not touched(.|\n)*upgrade.*NEGAWATT_LEDGER=PATH"
    ):
        Ledger.open(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [0, SCHEMA])
def test_another_programs_database_is_not_touched(path, version):
    """A database that negawatt did not make is refused and stays as it was."""
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (x)")
    db.execute(f"PRAGMA user_version = {version}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(LedgerError, match="another program"):
        Ledger.open(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_not_touched(path):
    """Any other file is refused and stays as it was."""
    path.parent.mkdir()
    path.write_text("my thesis " * 200)
    with pytest.raises(LedgerError, match="not a database") as caught:
        Ledger.open(path)
    assert ".damaged" in parts(caught.value).fix
    assert path.read_text() == "my thesis " * 200


def test_a_damaged_ledger_says_how_to_recover(path):
    """Overwritten pages raise an error that names the recovery command."""
    with Ledger.open(path) as ledger:
        for i in range(200):
            ledger.append("trial", {"i": i, "pad": "x" * 500})
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(size - 8192))
    with pytest.raises(LedgerError, match=r"malformed(.|\n)*\.recover"), Ledger.open(path) as ledger:
        ledger.records()


def test_a_folder_in_the_way_raises(tmp_path):
    """A path that is a folder, or lies below a file, raises with the way out."""
    (tmp_path / "file").write_text("")
    for wrong in (tmp_path, tmp_path / "file" / "ledger.sqlite"):
        with pytest.raises(LedgerError, match=r"(.|\n)*NEGAWATT_LEDGER=PATH"):
            Ledger.open(wrong)
        assert parts(fault(wrong)).fix


def test_a_folder_without_write_permission_raises(as_nobody):
    """Where this user may not write, both opening and the check say so."""
    with pytest.raises(LedgerError, match=r"cannot make.*Permission denied(.|\n)*writable"):
        Ledger.open(as_nobody / "ledger.sqlite")
    assert "not writable" in parts(fault(as_nobody / "ledger.sqlite")).got


def test_the_check_makes_nothing(path):
    """`fault` finds no fault where a ledger could be made or exists, and makes no file."""
    assert fault(path) is None
    assert not path.parent.exists()
    with Ledger.open(path) as ledger:
        ledger.append("run", {})
        assert fault(path) is None
        assert len(ledger.records()) == 1


def test_an_empty_file_becomes_a_ledger(path):
    """A file without content, as a killed first start leaves it, is used."""
    path.parent.mkdir()
    path.touch()
    with Ledger.open(path) as ledger:
        assert [ledger.append(kind, {}) for kind in KINDS] == list(range(1, len(KINDS) + 1))

"""Whatever is changed, removed or moved in a ledger is found, and an older ledger is chained as it stands."""

from __future__ import annotations

import hashlib
import json
import random
import resource
import sqlite3
import subprocess
import sys

import pytest

from negawatt.core.errors import LedgerError
from negawatt.ledger.schema import SCHEMA
from negawatt.ledger.store import Ledger

FORMAT_1 = """
CREATE TABLE records (
    id INTEGER PRIMARY KEY,
    created_utc TEXT NOT NULL,
    host TEXT NOT NULL,
    kind TEXT NOT NULL,
    workload TEXT NOT NULL,
    phase TEXT NOT NULL,
    campaign TEXT NOT NULL,
    energy_j REAL,
    source TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE INDEX records_by_campaign ON records (campaign, id);
CREATE TRIGGER records_no_update BEFORE UPDATE ON records
    BEGIN SELECT RAISE(ABORT, 'records are never changed'); END;
CREATE TRIGGER records_no_delete BEFORE DELETE ON records
    BEGIN SELECT RAISE(ABORT, 'records are never deleted'); END;
CREATE TRIGGER records_no_replace BEFORE INSERT ON records WHEN EXISTS (SELECT 1 FROM records WHERE id = NEW.id)
    BEGIN SELECT RAISE(ABORT, 'records are never replaced'); END;
PRAGMA application_id = 0x6E776174;
PRAGMA user_version = 1;
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def filled(path, count=12):
    """A closed ledger with records of several shapes and sizes."""
    with Ledger.open(path) as ledger:
        for i in range(count):
            body = {"i": i, "text": "größe" if i % 3 else "x" * 40 * i, "numbers": [i / 3, None, True]}
            energy_j = None if i % 4 == 0 else i * 1.5
            ledger.append("trial" if i % 2 else "run", body, workload=f"w{i}", energy_j=energy_j, source="counter")
    return path


def rows(path):
    """All records as SQLite reads them; None where it cannot."""
    db = sqlite3.connect(path)
    try:
        return db.execute("SELECT * FROM records ORDER BY id").fetchall()
    except (sqlite3.Error, UnicodeDecodeError):
        return None
    finally:
        db.close()


def fault(path, head=None):
    """What `verify` finds, or why the ledger cannot even be opened."""
    try:
        with Ledger.open(path) as ledger:
            found = ledger.verify(head).fault
    except LedgerError as error:
        return error.got
    return found and found.what


def tamper(path, *statements):
    """Run SQL past the triggers, and put these back."""
    db = sqlite3.connect(path)
    triggers = db.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for name, _ in triggers:
        db.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        db.execute(statement)
    for _, sql in triggers:
        db.execute(sql)
    db.commit()
    db.close()


def test_the_hash_is_what_the_documentation_says(path):
    """Each hash is SHA-256 of the JSON array of the hash before, the id and the columns: anybody can check it."""
    filled(path, 3)
    db = sqlite3.connect(path)
    columns = (
        "created_utc, host, kind, workload, phase, campaign, energy_j, source, machine_id, boot_id, sequence, body"
    )
    previous = ""
    for number, stated, *content in db.execute(f"SELECT id, hash, {columns} FROM records ORDER BY id"):
        text = json.dumps([previous, number, *content], separators=(",", ":"))
        assert hashlib.sha256(text.encode()).hexdigest() == stated
        previous = stated
    db.close()


def test_an_untouched_ledger_is_intact(path):
    """Every record checks, the head is the last record's hash, and every record's hash is accepted as a head."""
    with Ledger.open(path) as ledger:
        assert ledger.verify() == ledger.verify()
        assert (ledger.verify().records, ledger.verify().head, ledger.verify().fault) == (0, "", None)
    with Ledger.open(filled(path)) as ledger:
        found = ledger.verify()
        assert (found.records, found.head, found.fault) == (12, ledger.get(12).hash, None)
        for record in ledger.records():
            assert ledger.verify(record.hash).fault is None


@pytest.mark.parametrize("energy_j", [0.0, -0.0, 5, 1e300, 5e-324, 0.1])
def test_energies_are_hashed_as_they_are_stored(path, energy_j):
    """Numbers that SQLite stores in another form (whole, negative zero) do not look changed."""
    with Ledger.open(path) as ledger:
        ledger.append("run", {}, energy_j=energy_j)
        assert ledger.verify().fault is None


def test_odd_names_are_kept_readably(path):
    """A name with bytes that are no text, NUL and all scripts is stored, read back and intact."""
    with Ledger.open(path) as ledger:
        ledger.append("run", {}, workload="a\udcffb\0c 水 😀")
        assert ledger.get(1).workload == "a\\udcffb\0c 水 😀"
        assert ledger.verify().fault is None


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE records SET energy_j = energy_j + 1e-9 WHERE id = 6", "record 6 was changed"),
        ("UPDATE records SET energy_j = NULL WHERE id = 6", "record 6 was changed"),
        ("UPDATE records SET workload = CAST(workload AS BLOB) WHERE id = 6", "record 6 was changed"),
        ("UPDATE records SET created_utc = '' WHERE id = 12", "record 12 was changed"),
        ("UPDATE records SET hash = 'x' WHERE id = 1", "record 1 was changed"),
        ("UPDATE records SET boot_id = '' WHERE id = 3", "record 3 was changed"),
        ("DELETE FROM records WHERE id = 1", "record 1 is missing"),
        ("DELETE FROM records WHERE id BETWEEN 4 AND 6", "records 4 to 6 are missing: after 3 comes 7"),
        ("UPDATE records SET id = 0 WHERE id = 5", "out of order"),
        ("DROP INDEX records_by_origin", "records_by_origin was removed"),
        ("CREATE TRIGGER x AFTER INSERT ON records BEGIN SELECT 1; END", "x was removed, changed or added"),
    ],
)
def test_tampering_is_found_and_named(path, statement, found):
    """An edit past the triggers is found, and the first damaged record is named."""
    tamper(filled(path), statement)
    assert found in fault(path)


def test_swapped_records_are_called_out_of_order(path):
    """Two records that changed places are told from changed ones."""
    tamper(
        filled(path),
        "UPDATE records SET id = 100 WHERE id = 4",
        "UPDATE records SET id = 4 WHERE id = 7",
        "UPDATE records SET id = 7 WHERE id = 100",
    )
    assert fault(path) == "records are out of order: record 4 stands in the place of 7"


def test_a_removed_trigger_is_found(path):
    """A ledger that no longer keeps its records from change is not intact."""
    db = sqlite3.connect(filled(path))
    db.execute("DROP TRIGGER records_no_update")
    db.close()
    assert "records_no_update was removed" in fault(path)


def test_cut_off_records_show_against_a_noted_head(path):
    """The last records can be removed without trace in the file; a head noted before shows it."""
    with Ledger.open(filled(path)) as ledger:
        head, earlier = ledger.verify().head, ledger.get(9).hash
    tamper(path, "DELETE FROM records WHERE id > 10")
    assert fault(path) is None
    assert fault(path, earlier) is None
    assert "cut off" in fault(path, head)


def flips(path, positions, bits):
    """Flip one bit at each position in turn; how often it was found, touched no record, or went unseen."""
    whole, before = path.read_bytes(), rows(path)
    seen = {"found": 0, "no record touched": 0, "unseen": []}
    for position, bit in zip(positions, bits, strict=True):
        changed = bytearray(whole)
        changed[position] ^= 1 << bit
        path.write_bytes(changed)
        if fault(path):
            seen["found"] += 1
        elif rows(path) == before:
            seen["no record touched"] += 1
        else:
            seen["unseen"].append((position, bit))
        for log in path.parent.glob("ledger.sqlite-*"):
            log.unlink()
    path.write_bytes(whole)
    return seen


def test_a_flipped_bit_is_found(path):
    """Of bits flipped all over the file, each one is found or changed no record."""
    size = filled(path).stat().st_size
    dice = random.Random(1)
    seen = flips(path, [dice.randrange(size) for _ in range(300)], [dice.randrange(8) for _ in range(300)])
    assert seen["unseen"] == []
    assert seen["found"] > 30


def test_a_flipped_bit_in_a_record_is_found(path):
    """Every byte of a stored body is guarded: none can be flipped without a fault."""
    start = filled(path).read_bytes().index(b'{"i":7,')
    length = len('{"i":7,"text":"gr\\u00f6\\u00dfe","numbers":[2.3333333333333335,null,true]}')
    seen = flips(path, range(start, start + length), [i % 8 for i in range(length)])
    assert seen == {"found": length, "no record touched": 0, "unseen": []}


@pytest.mark.slow
def test_every_flipped_byte_is_found(path):
    """One bit of each byte that is not zero, and of many that are: found, or no record was touched."""
    whole = filled(path).read_bytes()
    positions = [i for i, byte in enumerate(whole) if byte or i % 50 == 0]
    dice = random.Random(2)
    seen = flips(path, positions, [dice.randrange(8) for _ in positions])
    assert seen["unseen"] == []
    assert seen["found"] > 3000


def format_1(path, count=40):
    """A ledger of format 1, as the first version of negawatt made it."""
    db = sqlite3.connect(path)
    db.execute("PRAGMA journal_mode = WAL")
    db.executescript(FORMAT_1)
    for i in range(count):
        row = (f"2026-11-24T08:00:{i:02}.000+00:00", "host", "run", f"w{i}", "train", "c", i * 0.5, "estimated")
        db.execute(f"INSERT INTO records VALUES (NULL{', ?' * 9})", (*row, json.dumps({"i": i, "pad": "x" * 2000})))
    db.commit()
    db.close()
    return path


def test_an_older_ledger_is_chained_as_it_stands(path):
    """Opening a ledger of format 1 keeps every record, gives each a hash and an identity, and goes on behind them."""
    with Ledger.open(format_1(path)) as ledger:
        records = ledger.records()
        assert [(r.id, r.body["i"], r.energy_j, r.workload) for r in records] == [
            (i + 1, i, i * 0.5, f"w{i}") for i in range(40)
        ]
        assert {r.machine_id for r in records} == {""}
        assert records[3].created_utc == "2026-11-24T08:00:03.000+00:00"
        assert ledger.append("run", {}) == 41
        found = ledger.verify()
        assert (found.records, found.fault) == (41, None)
        assert ledger._db.execute("PRAGMA user_version").fetchone() == (SCHEMA,)
    db = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="never changed"):
        db.execute("UPDATE records SET energy_j = 0")
    db.close()


OPEN = "import sys; from pathlib import Path; from negawatt.ledger.store import Ledger; Ledger.open(Path(sys.argv[1]))"


def test_a_migration_that_fails_changes_nothing(path):
    """When there is no room for the new format, the old ledger stays whole, and room makes it work."""
    format_1(path, 300)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size // 2, path.stat().st_size))

    limited = [sys.executable, "-c", OPEN, str(path)]
    ended = subprocess.run(limited, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    assert "LedgerError" in ended.stderr
    db = sqlite3.connect(path)
    assert db.execute("PRAGMA user_version").fetchone() == (1,)
    assert db.execute("SELECT count(*) FROM records").fetchone() == (300,)
    db.close()
    with Ledger.open(path) as ledger:
        assert (ledger.verify().records, ledger.verify().fault) == (300, None)


def test_processes_may_migrate_at_once(path):
    """Several processes that open a ledger of format 1 together chain it once."""
    format_1(path)
    openers = [subprocess.Popen([sys.executable, "-c", OPEN, str(path)], stderr=subprocess.PIPE) for _ in range(4)]
    for process in openers:
        _, err = process.communicate(timeout=60)
        assert (process.returncode, err) == (0, b"")
    with Ledger.open(path) as ledger:
        assert (ledger.verify().records, ledger.verify().fault) == (40, None)

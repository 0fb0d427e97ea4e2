"""A ledger that this user may only read is shown whole, or not at all, and is left as it is."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys

import pytest

from negawatt.core.errors import LedgerError
from negawatt.ledger.store import Ledger


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "ledger.sqlite"


TOGETHER = """
import os, sys, time
from pathlib import Path
from negawatt.ledger.store import Ledger
for number in range(40):
    path, at_s, children = Path(sys.argv[1]) / f"{number}.sqlite", time.time() + 0.01, []
    for _ in range(4):
        child = os.fork()
        if not child:
            while time.time() < at_s: pass
            Ledger.open(path).close()
            os._exit(0)
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]: sys.exit(1)
"""


def test_processes_may_make_it_at_once(tmp_path):
    """A ledger that another process is just making is not taken for another program's database."""
    ended = subprocess.run([sys.executable, "-c", TOGETHER, str(tmp_path)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")


def read_only(folder, *, log=False):
    """A ledger with two records that this user may only read; with `log`, as copied while it was written."""
    live = folder.parent / f"{folder.name}.sqlite"
    try:
        with Ledger.open(live) as ledger:
            ledger.append("run", {"i": 1})
            ledger.append("run", {"i": 2})
            folder.chmod(0o755)
            for end in ("", "-wal") if log else ():
                shutil.copy(f"{live}{end}", f"{folder / 'ledger.sqlite'}{end}")
        if not log:
            shutil.copy(live, folder / "ledger.sqlite")
        for file in folder.iterdir():
            file.chmod(0o444)
        folder.chmod(0o555)
    finally:
        live.unlink()
    return folder / "ledger.sqlite"


@pytest.fixture
def archive(as_nobody):
    """`read_only` in the folder, made by its owner."""

    def make(**how):
        mine = os.geteuid()
        os.seteuid(os.getuid())
        try:
            return read_only(as_nobody, **how)
        finally:
            os.seteuid(mine)

    return make


def test_an_archive_can_be_read(archive):
    """A ledger in a folder that cannot be written is listed, added up and verified, and refuses to be written."""
    path = archive()
    with Ledger.open_read_only(path) as ledger:
        assert [r.body["i"] for r in ledger.records()] == [1, 2]
        assert (ledger.totals()[0].records, ledger.verify().fault, ledger.verify().records) == (2, None, 2)
        with pytest.raises(LedgerError, match="readonly"):
            ledger.append("run", {})
    assert [file.name for file in path.parent.iterdir()] == ["ledger.sqlite"]


def test_an_archive_with_a_log_says_what_is_missing(archive):
    """A file that was copied with its log but cannot have an index would lack records: it is not shown without them."""
    with pytest.raises(LedgerError, match=r"newest records are in ledger.sqlite-wal(.|\n)*cp .*NEGAWATT_LEDGER="):
        Ledger.open_read_only(archive(log=True))


def test_looking_at_a_live_ledger_changes_nothing(path):
    """Opened to look at only, a ledger that others write shows what they wrote and refuses to be written."""
    with Ledger.open(path) as ledger:
        ledger.append("run", {})
        with Ledger.open_read_only(path) as looked:
            ledger.append("run", {})
            assert len(looked.records()) == 2
            with pytest.raises(LedgerError, match="readonly"):
                looked.append("run", {})


def test_what_is_no_ledger_cannot_be_looked_at(path):
    """A missing, an empty and a foreign file, and a ledger of an older format, say what to do."""
    path.parent.mkdir()
    with pytest.raises(LedgerError, match=r"No such file"):
        Ledger.open_read_only(path)
    path.touch()
    with pytest.raises(LedgerError, match=r"is empty"):
        Ledger.open_read_only(path)
    path.write_text("my thesis " * 200)
    with pytest.raises(LedgerError, match=r"not a database"):
        Ledger.open_read_only(path)
    path.unlink()
    db = sqlite3.connect(path)
    db.executescript("PRAGMA application_id = 0x6E776174; PRAGMA user_version = 1; CREATE TABLE records (id)")
    db.close()
    with pytest.raises(LedgerError, match=r"format 1(.|\n)*copy it"):
        Ledger.open_read_only(path)

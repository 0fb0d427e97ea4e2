"""The ledger under load and violence: many processes at once, and processes killed at any moment."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter

import pytest

from negawatt.ledger.store import Ledger

WRITER = """
import sys
from pathlib import Path
from negawatt.ledger.spool import shared_spool
from negawatt.ledger.store import Ledger
path, name = Path(sys.argv[1]), sys.argv[2]
spool = shared_spool(path)
with Ledger.open(path) as ledger:
    for i in range(40):
        key = spool.open_run("run", {}, workload=name + " spooled")
        spool.finish(key, {"i": i}, energy_j=float(i), source="counter", power_curve=[(1.0, float(i))])
        if i % 4 == 0:
            ledger.append("trial", {"i": i // 4}, workload=name + " appended")
"""

# Keeps eight children going until so many have been killed. A child notes what it was promised in a file of its own:
# what `append` returned for and what `flush` returned for has to be in the ledger.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
from negawatt.ledger.spool import Spool
from negawatt.ledger.store import Ledger

path, kills, dice = Path(sys.argv[1]), int(sys.argv[2]), random.Random(int(sys.argv[3]))
notes = path.parent / "notes"
notes.mkdir()

def write(name):
    note = os.open(notes / name, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    spool, i = Spool(path), 0
    def promise(**what):
        os.write(note, (json.dumps({"name": name, **what}) + "\\n").encode())
    while True:
        i += 1
        spool.put("run", {"i": i}, workload=name)
        key = spool.open_run("run", {"state": 0}, workload=name)
        spool.checkpoint(key, {"state": i}, energy_j=float(i))
        spool.flush()
        promise(i=i, key=key, state=i)
        if i % 3 == 0:
            with Ledger.open(path) as ledger:
                ledger.append("trial", {"i": -i}, workload=name)
            promise(i=-i)
        if i % 2:
            spool.finish(key, {"final": i})
        if i % 20 == 0:
            spool.close()

def merge():
    while True:
        with Ledger.open(path) as ledger:
            ledger.merge()

def start(number):
    child = os.fork()
    if child:
        return child
    try:
        merge() if number % 5 == 0 else write(f"w{number}")
    finally:
        os._exit(9)

alive = {}
for number in range(kills + 8):
    if number < kills:
        alive[start(number)] = time.monotonic() + dice.uniform(0.0, 0.8)
    while alive and (len(alive) == 8 or number >= kills):
        time.sleep(0.002)
        for child, until_s in list(alive.items()):
            if time.monotonic() > until_s:
                os.kill(child, signal.SIGKILL)
                _, status = os.waitpid(child, 0)
                assert os.WIFSIGNALED(status), status
                del alive[child]
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "ledger.sqlite"


def intact(ledger):
    """Nothing is left in the spools, and the chain and SQLite's structure are whole."""
    merged = ledger.merge()
    assert merged.faults == ()
    found = ledger.verify()
    assert (found.fault, found.records) == (None, len(ledger.records()))
    assert ledger._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    folder = ledger.path.with_name("ledger.sqlite.spool")
    assert [file.name for file in folder.iterdir() if file.suffix != ".part"] == ["merge.lock"]
    return merged


@pytest.mark.slow
def test_64_processes_lose_nothing(path):
    """64 processes that spool and append at once end with every record, once, in the order of each."""
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(path), f"w{i}"], stderr=subprocess.PIPE) for i in range(64)
    ]
    for process in writers:
        _, err = process.communicate(timeout=300)
        assert (process.returncode, err) == (0, b"")
    with Ledger.open(path) as ledger:
        assert intact(ledger).interrupted == 0
        assert len(ledger.records()) == 64 * 50
        for i in range(64):
            runs = ledger.records(workload=f"w{i} spooled")
            assert [r.body["i"] for r in runs] == list(range(40))
            assert [r.body["i"] for r in ledger.records(workload=f"w{i} appended")] == list(range(10))
            assert [s.power_w for s in ledger.samples(runs[7].sequence)] == [7.0]


def kill(path, kills, seed):
    """Kill writers and mergers, and hold the ledger to what the writers were promised."""
    subprocess.run([sys.executable, "-c", KILLER, str(path), str(kills), str(seed)], check=True, timeout=300)
    promises = [
        json.loads(line) for file in (path.parent / "notes").iterdir() for line in file.read_text().splitlines()
    ]
    with Ledger.open(path) as ledger:
        intact(ledger)
        records = ledger.records()
    assert max(Counter(r.sequence for r in records).values()) == 1
    numbers = Counter((r.workload, r.body["i"]) for r in records if "i" in r.body)
    runs = {r.sequence: r.body for r in records}
    for promise in promises:
        assert numbers[promise["name"], promise["i"]] == 1
        if "key" in promise:
            body = runs[promise["key"]]
            assert body in ({"final": promise["state"]}, {"state": promise["state"], "interrupted": True})
    assert max(numbers.values()) == 1
    return len(promises), len(records)


def test_killed_writers_and_mergers_leave_it_intact(path):
    """After 12 kills, the ledger is intact and holds all that was promised, once."""
    promises, _ = kill(path, 12, seed=3)
    assert promises > 12


@pytest.mark.slow
def test_200_kills_leave_it_intact(path):
    """After 200 SIGKILLs at random moments, the ledger is intact and holds all that was promised, once."""
    promises, _ = kill(path, 200, seed=4)
    assert promises > 200

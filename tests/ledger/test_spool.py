"""What is put into a spool reaches the ledger once, however its process ends, and putting never waits."""

from __future__ import annotations

import signal
import stat
import subprocess
import sys
import threading
import time

import pytest

from negawatt.core.errors import LedgerError
from negawatt.ledger.spool import FLUSH_S, Spool, shared_spool
from negawatt.ledger.store import Ledger

PROGRAM = """
import os, sys, time
from pathlib import Path
from negawatt.ledger.spool import Spool, shared_spool
path = Path(sys.argv[1])
{code}
"""


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


def python(path, code, **more):
    """A Python process with a spool at hand."""
    quiet = ["-W", "error", "-W", "ignore:This process:DeprecationWarning"]  # of forking with threads: tested here
    words = [sys.executable, *quiet, "-c", PROGRAM.format(code=code), str(path)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


def ended(process):
    """Its output; it has to end well."""
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")
    return out


def test_what_is_put_is_read_back(path, spool):
    """All columns, the body, the curve and the time of the put reach the ledger, under the sequence that put gave."""
    before = time.time()
    key = spool.put(
        "run", {"a": [1, 2.5, None, "ü"]}, workload="w", phase="train", campaign="c", energy_j=3.5, source="counter",
        power_curve=((1.0, 2.0), (2.0, 1.5)),
    )  # fmt: skip
    after = time.time()
    spool.flush()
    time.sleep(0.05)
    with Ledger.open(path) as ledger:
        assert ledger.find(key) is None
        assert ledger.merge().added == 1
        record = ledger.find(key)
        assert [(s.time_s, s.power_w, s.span_s) for s in ledger.samples(key)] == [(1.0, 2.0, 1.0), (2.0, 1.5, 1.0)]
    assert (record.kind, record.workload, record.phase, record.campaign) == ("run", "w", "train", "c")
    assert (record.energy_j, record.source, record.body) == (3.5, "counter", {"a": [1, 2.5, None, "ü"]})
    assert stamp(before) <= record.created_utc <= stamp(after)


def stamp(time_s):
    from datetime import UTC, datetime

    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")


def test_merging_again_adds_nothing(path, spool):
    """A live spool is merged as often as anybody looks, and each record is there once, in the order of the puts."""
    for i in range(5):
        spool.put("trial", {"i": i})
        spool.flush()
        assert [r.body["i"] for r in merged(path)] == list(range(i + 1))
    with Ledger.open(path) as ledger:
        assert (ledger.merge().added, ledger.merge().known) == (0, 5)


def test_put_does_not_wait_for_the_disk(spool):
    """While the disk is stuck, put and checkpoint return at once."""
    spool.put("run", {})
    key = spool.open_run("run", {})
    with spool._behind.io:
        start_s = time.monotonic()
        for i in range(100):
            spool.put("run", {"i": i})
            spool.checkpoint(key, {"i": i})
        assert time.monotonic() - start_s < 0.5


def test_the_background_writes_in_time(path, spool):
    """Without any flush, what was put is on the disk within FLUSH_S."""
    spool.put("run", {})
    until_s = time.monotonic() + FLUSH_S
    while not merged(path):
        assert time.monotonic() < until_s
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("kind", "body", "more", "message"),
    [
        ("nonsense", {}, {}, "kind 'nonsense'"),
        ("run", {"x": float("nan")}, {}, "not JSON"),
        ("run", {"x": object()}, {}, "not JSON"),
        ("run", {}, {"energy_j": float("inf")}, "inf J"),
        ("run", {}, {"power_curve": [(2.0, 1.0), (1.0, 1.0)]}, "power curve"),
    ],
)
def test_what_the_ledger_would_refuse_is_refused_at_once(path, spool, kind, body, more, message):
    """The caller hears of a record that could not be kept, and nothing of it is written."""
    with pytest.raises(LedgerError, match=message):
        spool.put(kind, body, **more)
    assert spool.close() is None
    assert not spool.folder.exists()


def test_only_the_owner_reads_a_spool(spool):
    """Bodies can hold secrets: the folder and its files are closed to others."""
    spool.open_run("run", {})
    spool.flush()
    files = list(spool.folder.iterdir())
    assert sorted(file.suffix for file in files) == [".jsonl", ".open"]
    assert all(stat.S_IMODE(file.stat().st_mode) == 0o600 for file in files)
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700


def test_a_finished_run_is_recorded_once(path, spool):
    """Checkpoints of a live run are not in the ledger; its final record is, under the key and the first columns."""
    key = spool.open_run("run", {"step": 0}, workload="w", phase="train")
    for step in range(1, 4):
        spool.checkpoint(key, {"step": step}, energy_j=float(step), source="counter")
        spool.flush()
        assert merged(path) == []
    spool.finish(key, {"step": 9}, energy_j=9.0, source="counter", power_curve=[(1.0, 9.0)])
    assert spool.close().added == 1
    (record,) = merged(path)
    assert (record.sequence, record.workload, record.phase) == (key, "w", "train")
    assert (record.body, record.energy_j, record.source) == ({"step": 9}, 9.0, "counter")
    assert [file.name for file in spool.folder.iterdir()] == ["merge.lock"]


def test_a_run_ends_once(spool):
    """A run that is finished, dropped or unknown can be neither checkpointed nor finished."""
    finished, dropped = spool.open_run("run", {}), spool.open_run("run", {})
    spool.finish(finished, {})
    spool.drop(dropped)
    for key in (finished, dropped, "unknown"):
        for call in (lambda key: spool.checkpoint(key, {}), lambda key: spool.finish(key, {}), spool.drop):
            with pytest.raises(LedgerError, match=f"run {key} is not open"):
                call(key)


def test_a_dropped_run_leaves_nothing(path, spool):
    """A run that came to nothing is not recorded, whether its state had been written or not."""
    spool.drop(spool.open_run("run", {}))
    spool.close()
    assert list(spool.folder.iterdir()) == []
    assert not path.exists()
    key = spool.open_run("run", {})
    spool.flush()
    spool.drop(key)
    spool.close()
    assert merged(path) == []


def test_runs_that_are_open_at_the_close_are_interrupted(path, spool):
    """Closing with an open run records its latest state, marked as interrupted."""
    key = spool.open_run("run", {"step": 1}, workload="w", energy_j=5.0, source="counter")
    assert spool.close().interrupted == 1
    (record,) = merged(path)
    assert (record.sequence, record.body, record.energy_j) == (key, {"step": 1, "interrupted": True}, 5.0)


def test_a_killed_run_leaves_its_last_checkpoint(path):
    """SIGKILL in the middle of a run: its record is what it had used at the last checkpoint, marked as interrupted."""
    process = python(
        path,
        "spool = shared_spool(path)\n"
        "done, key = spool.put('run', {'done': 1}), spool.open_run('run', {'step': 0}, workload='w')\n"
        "spool.checkpoint(key, {'step': 7}, energy_j=70.0, source='counter')\n"
        "spool.flush(); print(key, flush=True); time.sleep(60)",
    )
    key = process.stdout.readline().strip()
    assert [r.body for r in merged(path)] == [{"done": 1}]  # it lives: nothing is taken for its end
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with Ledger.open(path) as ledger:
        assert ledger.merge().interrupted == 1
        record = ledger.find(key)
        assert (record.workload, record.energy_j, record.body) == ("w", 70.0, {"step": 7, "interrupted": True})
        assert ledger.merge() == ledger.merge()
        assert len(ledger.records()) == 2


def test_a_process_that_ends_has_merged(path):
    """A program that never closes its spool leaves all in the ledger, and nothing in the folder."""
    ended(python(path, "for i in range(20): shared_spool(path).put('run', {'i': i})"))
    with Ledger.open(path) as ledger:
        assert [r.body["i"] for r in ledger.records()] == list(range(20))
    assert [file.name for file in path.with_name("ledger.sqlite.spool").iterdir()] == ["merge.lock"]


def test_an_exception_ends_it_well_too(path):
    """A program that dies of an exception has recorded what it put."""
    process = python(path, "shared_spool(path).put('run', {}); raise SystemExit(3)")
    process.communicate(timeout=60)
    assert process.returncode == 3
    assert len(merged(path)) == 1


@pytest.mark.parametrize("end", ["os._exit(0)", "os.kill(os.getpid(), 9)", "os.kill(os.getpid(), 15)"])
def test_a_finished_run_outlives_its_process_at_once(path, end):
    """What finish and put returned for is kept when the process ends that moment; no run is taken for interrupted."""
    process = python(
        path,
        "spool = shared_spool(path)\n"
        "first, second = spool.open_run('run', {}), spool.open_run('run', {'open': 1})\n"
        "spool.flush(); spool.finish(first, {'i': 1}, energy_j=1.0)\n"
        f"spool.put('trial', {{'i': 2}}); {end}",
    )
    process.communicate(timeout=60)
    assert [r.body for r in merged(path)] == [{"i": 1}, {"i": 2}, {"open": 1, "interrupted": True}]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_pool_that_is_terminated_loses_nothing(path, tmp_path, method):
    """Workers of a pool, which SIGTERM ends as soon as the last result is there, keep every run that they finished."""
    (tmp_path / "work.py").write_text(
        "import os\nfrom negawatt.ledger.spool import shared_spool\n"
        "def job(path, i):\n"
        "    spool = shared_spool(path)\n"
        "    key = spool.open_run('run', {}, workload='job')\n"
        "    spool.finish(key, {'i': i}, energy_j=1.0, source='counter')\n"
    )
    code = (
        "import multiprocessing; import work\n"
        "before = shared_spool(path).put('run', {'i': -1})\n"
        f"with multiprocessing.get_context({method!r}).Pool(4) as pool:\n"
        "    pool.starmap(work.job, [(path, i) for i in range(40)], chunksize=1)"
    )
    ended(python(path, code, cwd=tmp_path))
    records = merged(path)
    assert sorted(r.body["i"] for r in records) == list(range(-1, 40))
    assert not any("interrupted" in r.body for r in records)


def test_exit_handlers_may_put(path):
    """What is put by an exit handler that runs after the spool's own is kept."""
    code = "import atexit; s = shared_spool(path); atexit.register(lambda: s.put('run', {'late': 1})); s.put('run', {})"
    ended(python(path, code))
    assert [r.body for r in merged(path)] == [{}, {"late": 1}]


def test_a_fork_writes_a_file_of_its_own(path):
    """Parent and child of a fork both record what they put, once, and the child does not finish the parent's runs."""
    out = ended(
        python(
            path,
            "s = shared_spool(path); s.put('run', {'who': 'parent before'}); key = s.open_run('run', {})\n"
            "child = os.fork()\n"
            "if not child:\n"
            "    try: s.finish(key, {})\n"
            "    except Exception as error: print(type(error).__name__, flush=True)\n"
            "    s.put('run', {'who': 'child'}); sys.exit()\n"
            "s.put('run', {'who': 'parent after'}); os.waitpid(child, 0); s.finish(key, {'who': 'run'})",
        )
    )
    assert out == "LedgerError\n"
    assert sorted(r.body["who"] for r in merged(path)) == ["child", "parent after", "parent before", "run"]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_children_of_multiprocessing_lose_nothing(path, tmp_path, method):
    """Workers, which leave without exit handlers, have written what they put when they are joined."""
    (tmp_path / "work.py").write_text(
        "from negawatt.ledger.spool import shared_spool\n"
        "def put(path, i):\n    shared_spool(path).put('run', {'i': i})\n"
    )
    code = (
        "import multiprocessing; import work\n"
        f"context = multiprocessing.get_context({method!r})\n"
        "workers = [context.Process(target=work.put, args=(path, i)) for i in range(3)]\n"
        "for worker in workers: worker.start()\n"
        "for worker in workers: worker.join()"
    )
    ended(python(path, code, cwd=tmp_path))
    assert sorted(r.body["i"] for r in merged(path)) == [0, 1, 2]


def test_threads_share_a_spool(path, spool):
    """Eight threads that put at once lose nothing."""

    def work(name):
        for i in range(50):
            spool.put("trial", {"i": i}, workload=name)

    threads = [threading.Thread(target=work, args=(f"w{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    spool.close()
    with Ledger.open(path) as ledger:
        for n in range(8):
            assert [r.body["i"] for r in ledger.records(workload=f"w{n}")] == list(range(50))


def test_a_closed_spool_begins_anew(path, spool):
    """Closing is idempotent, and a later put is recorded too."""
    spool.put("run", {"i": 0})
    assert spool.close().added == 1
    assert spool.close() is None
    spool.put("run", {"i": 1})
    assert spool.close().added == 1
    assert [r.body["i"] for r in merged(path)] == [0, 1]


def test_a_removed_file_is_made_anew(path, spool):
    """If somebody removes the spool of a living process, what is put later and the state of its runs are not lost."""
    key = spool.open_run("run", {})
    spool.flush()
    for file in spool.folder.iterdir():
        file.unlink()
    spool.put("run", {"later": 1})
    spool.close()
    assert sorted(r.sequence == key for r in merged(path)) == [False, True]


def test_a_full_disk_is_told_and_waited_for(path):
    """A write that the kernel refuses raises with advice, leaves no half line, and is made up for later."""
    out = ended(
        python(
            path,
            "import resource\n"
            "from negawatt.core.errors import LedgerError\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, resource.RLIM_INFINITY))\n"
            "s = shared_spool(path)\n"
            "for i in range(100):\n"
            "    s.put('run', {'i': i, 'pad': 'x' * 1000})\n"
            "    try: s.flush()\n"
            "    except LedgerError as error: print(error.fix); break\n"
            "(file,) = s.folder.glob('*.jsonl')\n"
            "assert file.read_bytes().endswith(b'}\\n')\n"
            "resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))\n"
            "print(i)",
        )
    )
    advice, last = out.splitlines()
    assert "make room" in advice
    assert [r.body["i"] for r in merged(path)] == list(range(int(last) + 1))


def test_a_failure_that_was_raised_is_not_logged_again(path, tmp_path):
    """What close has told its caller is not said once more when the process ends."""
    (tmp_path / "ledger.sqlite.spool").write_text("in the way")
    code = (
        "from negawatt.core.errors import LedgerError\n"
        "spool = shared_spool(path); spool.put('run', {})\n"
        "try: spool.close()\n"
        "except LedgerError as error: print(error.got)"
    )
    assert "cannot write to the spool" in ended(python(path, code))


def test_a_folder_on_a_share_is_left_to_another_host(tmp_path, path, monkeypatch):
    """With NEGAWATT_SPOOL, closing merges nothing; whoever merges that folder gets each record once."""
    monkeypatch.setenv("NEGAWATT_SPOOL", str(tmp_path / "share"))
    spool = Spool(path)
    spool.put("run", {"i": 1})
    assert spool.close() is None
    assert not path.exists()
    with Ledger.open(tmp_path / "other" / "ledger.sqlite") as ledger:
        assert ledger.merge(tmp_path / "share").added == 1
        assert ledger.merge(tmp_path / "share").added == 0
        assert [r.body for r in ledger.records()] == [{"i": 1}]


def test_one_spool_per_process_and_ledger(path, tmp_path, monkeypatch):
    """`shared_spool` gives the same spool for the same ledger, and follows NEGAWATT_LEDGER."""
    monkeypatch.setenv("NEGAWATT_LEDGER", str(path))
    assert shared_spool() is shared_spool(path)
    assert shared_spool(tmp_path / "other.sqlite") is not shared_spool()


def test_importing_it_opens_no_database():
    """A program that only meters does not pay for SQLite until it ends."""
    code = "import sys, negawatt.ledger.spool; assert not {'sqlite3', 'psutil', 'logging'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_ledger_that_cannot_be_merged_into_is_told(path, spool):
    """If the ledger is no ledger, closing says where the records wait, and they are there."""
    path.write_text("my thesis " * 200)
    spool.put("run", {})
    with pytest.raises(LedgerError, match=r"waits in .*not a database(.|\n)*negawatt ledger merge"):
        spool.close()
    path.unlink()
    assert len(merged(path)) == 1

"""The board: runs that overlap share the host's joules, and the parts add up to the whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.core.reading import Probe
from negawatt.hardware.limits import CpuLimits
from negawatt.hardware.processes import ancestors, born, host_cpus, tree_cpu_s
from negawatt.metering import attribute, boardfile
from negawatt.metering.attribute import Attributor
from negawatt.metering.board import Board
from negawatt.metering.boardfile import BoardFile
from negawatt.metering.session import Meter
from negawatt.testing import ManualClock, ScriptedSensor

FREE = CpuLimits(cpus=frozenset(), quota=None, host_cpus=64)


@dataclass
class Slice:
    """A probe of a part of a GPU."""

    probe: Probe
    slice_fraction: float

    def __getattr__(self, name: str) -> Any:
        return getattr(self.probe, name)


@dataclass
class Bench:
    """A board with known power, known CPU times and processes that are said to be each other's children."""

    folder: Path
    power_w: float = 100.0
    scope: str = "cpu:0/package"
    clock: ManualClock = field(default_factory=ManualClock)
    cpu_s: dict[int, float] = field(default_factory=dict)
    above: dict[int, list[int]] = field(default_factory=dict)
    limits: CpuLimits = FREE

    def __post_init__(self) -> None:
        self.board = Board(
            self.folder,
            clock=self.clock,
            cpu_s=lambda pid: self.cpu_s.get(pid, 0.0),
            above=lambda pid: self.above.get(pid, []),
            limits=self.limits,
        )
        self.probes = list(ScriptedSensor(script=[(0.0, self.power_w)], clock=self.clock, scope=self.scope).open())

    def join(self, key: str, pid: int, probes: list[Any] | None = None, *, recorded: bool = True) -> str:
        return self.board.join(key, probes or self.probes, pid=pid, recorded=recorded)

    def fraction(self, key: str, *, leave: bool = False) -> float:
        shares = self.board.shares(key, self.probes, leave=leave)
        assert shares is not None
        return shares.fractions[self.scope]


@pytest.fixture
def pids() -> Any:
    """Four living processes to stand for runs."""
    children = [subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) for _ in range(4)]
    yield [child.pid for child in children]
    for child in children:
        child.kill()
        child.wait()
        child.stdin.close()  # type: ignore[union-attr]


def test_one_run_answers_for_the_whole_host(tmp_path: Path) -> None:
    """Nobody else is metering: all joules are this run's."""
    bench = Bench(tmp_path / "board")
    bench.join("a", os.getpid())
    bench.clock.advance(10.0)
    assert bench.fraction("a", leave=True) == pytest.approx(1.0)


def test_two_runs_share_by_cpu_time(tmp_path: Path, pids: list[int]) -> None:
    """Three times the CPU time is three times the joules, while both are there; alone, a run has all."""
    bench = Bench(tmp_path / "board")
    bench.join("a", pids[0])
    bench.clock.advance(10.0)
    bench.join("b", pids[1])
    bench.cpu_s |= {pids[0]: 3.0, pids[1]: 1.0}
    bench.clock.advance(10.0)
    assert bench.fraction("b", leave=True) == pytest.approx(0.25, abs=0.01)
    bench.clock.advance(20.0)
    assert bench.fraction("a", leave=True) == pytest.approx((10 + 7.5 + 20) / 40, abs=0.01)


def test_a_run_inside_another_takes_its_part_of_it(tmp_path: Path, pids: list[int]) -> None:
    """The ranks under `negawatt run` share its joules with the work it does itself, and take none from others."""
    outer, rank0, rank1, other = pids
    bench = Bench(tmp_path / "board", above={rank0: [outer, 1], rank1: [outer, 1]})
    assert bench.join("outer", outer) == ""
    assert bench.join("other", other) == ""
    assert bench.join("rank0", rank0) == "outer"
    assert bench.join("rank1", rank1) == "outer"
    bench.clock.advance(10.0)
    bench.cpu_s |= {outer: 4.0, rank0: 1.0, rank1: 2.0, other: 4.0}  # the outer tree's time holds the ranks'
    fractions = {key: bench.fraction(key) for key in ("outer", "other", "rank0", "rank1")}
    assert fractions == pytest.approx({"outer": 0.5, "other": 0.5, "rank0": 0.125, "rank1": 0.25}, abs=0.01)


def test_joules_beyond_the_run_around_are_told_apart(tmp_path: Path, pids: list[int]) -> None:
    """A daemon that goes on after `negawatt run` has ended knows which of its joules no other record holds."""
    outer, middle, inner, _ = pids
    bench = Bench(tmp_path / "board", above={middle: [outer], inner: [middle, outer]})
    bench.join("outer", outer)
    assert bench.join("middle", middle, recorded=False) == "outer"
    assert bench.join("inner", inner) == "outer"
    bench.cpu_s |= {outer: 10.0, middle: 10.0, inner: 10.0}
    bench.clock.advance(10.0)
    bench.fraction("outer", leave=True)
    before = bench.board.shares("inner", bench.probes)
    assert before is not None
    assert before.beyond[bench.scope] == 0.0
    bench.fraction("middle", leave=True)
    bench.clock.advance(30.0)
    after = bench.board.shares("inner", bench.probes, leave=True)
    assert after is not None
    assert after.fractions[bench.scope] == pytest.approx(1.0, abs=0.01)
    assert after.beyond[bench.scope] == pytest.approx(0.75, abs=0.01)


def test_gpus_are_shared_in_equal_parts(tmp_path: Path, pids: list[int]) -> None:
    """Four ranks that see one GPU answer for a quarter of it each, whatever their CPU time."""
    bench = Bench(tmp_path / "board", scope="gpu:GPU-1", cpu_s={pids[0]: 100.0})
    for pid in pids:
        bench.join(str(pid), pid)
    bench.clock.advance(10.0)
    assert [bench.fraction(str(pid)) for pid in pids] == pytest.approx([0.25] * 4)


def test_mig_slices_share_by_size_and_unmetered_ones_keep_theirs(tmp_path: Path, pids: list[int]) -> None:
    """Slices of 3/7 and 2/7 answer for 3/7 and 2/7 of the GPU; the other 2/7 belong to nobody here."""
    bench = Bench(tmp_path / "board", scope="gpu:GPU-1")
    bench.join("a", pids[0], [Slice(bench.probes[0], 3 / 7)])
    bench.join("b", pids[1], [Slice(bench.probes[0], 2 / 7)])
    bench.clock.advance(10.0)
    assert (bench.fraction("a"), bench.fraction("b")) == pytest.approx((3 / 7, 2 / 7))


def test_a_confined_job_answers_for_its_cpus_only(tmp_path: Path, pids: list[int]) -> None:
    """Two ranks bound to 2 of 64 CPUs each answer for 4/64 of the host together; a quota of 1 CPU for 1/64."""
    bound = [CpuLimits(cpus=frozenset({n, n + 1}), quota=None, host_cpus=64) for n in (8, 10)]
    one, two = (Bench(tmp_path / "board", limits=limits) for limits in bound)
    two.clock = one.clock
    two.__post_init__()
    one.join("one", pids[0])
    two.join("two", pids[1])
    one.clock.advance(10.0)
    assert (one.fraction("one"), two.fraction("two")) == pytest.approx((1 / 32, 1 / 32))
    limited = Bench(tmp_path / "quota", limits=CpuLimits(cpus=frozenset(), quota=1.0, host_cpus=64))
    limited.join("a", pids[0])
    limited.clock.advance(10.0)
    assert limited.fraction("a") == pytest.approx(1 / 64)


def test_a_killed_run_stops_sharing(tmp_path: Path, pids: list[int]) -> None:
    """A process that is gone takes no part of what is used after it, and of the time in which it died neither."""
    bench = Bench(tmp_path / "board")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    bench.join("a", pids[0])
    bench.join("killed", child.pid)
    child.kill()
    child.wait()
    child.stdin.close()  # type: ignore[union-attr]
    bench.clock.advance(10.0)
    assert bench.fraction("a") == pytest.approx(1.0)


def test_a_deleted_board_is_noticed(tmp_path: Path) -> None:
    """A run that is not on the board any more is told so instead of getting a share of nothing."""
    bench = Bench(tmp_path / "board")
    bench.join("a", os.getpid())
    BoardFile(tmp_path / "board").path.unlink()
    assert bench.board.shares("a", bench.probes) is None


def test_a_reset_counter_costs_the_board_only_its_slice(tmp_path: Path) -> None:
    """A state that cannot be continued from starts afresh."""
    bench = Bench(tmp_path / "board")
    bench.join("a", os.getpid())
    path = BoardFile(tmp_path / "board").path
    doc = json.loads(path.read_text())
    doc["scopes"][bench.scope]["state"] = "from another version"
    path.write_text(json.dumps(doc))
    bench.clock.advance(10.0)
    assert bench.fraction("a") == 1.0
    bench.clock.advance(10.0)
    assert bench.fraction("a") == pytest.approx(1.0)


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 3), st.floats(0.1, 10), st.lists(st.floats(0, 20), min_size=4, max_size=4))))
def test_parts_add_up_to_the_whole(steps: list[tuple[int, float, list[float]]]) -> None:
    """Whoever joins and leaves when: the shares of all runs are the joules of the host while any run was there."""
    import tempfile

    pid = os.getpid()  # alive; CPU times are told per run through distinct weights of time
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder) / "board")
        metered_j, answered_j, there = 0.0, 0.0, dict[str, float]()
        for number, (who, seconds, work) in enumerate([*steps, (9, 1.0, [0.0] * 4)]):
            bench.cpu_s[pid] = bench.cpu_s.get(pid, 0.0) + work[0]
            bench.clock.advance(seconds)
            if there:
                metered_j += bench.power_w * seconds
            leaving = [key for key in there if key.startswith(f"{who}-") or who == 9]
            for key in leaving:
                answered_j += bench.fraction(key, leave=True) * bench.power_w * (bench.clock() - there.pop(key))
            if not leaving and who != 9:
                key = f"{who}-{number}"
                bench.join(key, pid)
                there[key] = bench.clock()
        assert answered_j == pytest.approx(metered_j, rel=1e-9, abs=1e-6)


def test_processes_are_known_by_their_birth() -> None:
    """A child has its parent above it, its CPU time is in the parent's tree, and a dead process was never born."""
    code = "import os; [None for _ in range(3_000_000)]; print(os.getpid(), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    before_s = tree_cpu_s(os.getpid())
    assert child.stdout is not None
    assert child.stdin is not None
    child.stdout.readline()
    assert ancestors(child.pid)[0] == os.getpid()
    assert tree_cpu_s(child.pid) > 0
    assert tree_cpu_s(os.getpid()) > before_s
    assert born(child.pid) is not None
    child.communicate(b"\n")
    assert born(child.pid) is None
    assert tree_cpu_s(child.pid) == 0


def test_busy_time_survives_a_program_that_closes_all_files() -> None:
    """A daemon closes every file it inherited, and the numbers are used again for others."""
    code = """
        import os
        from negawatt.hardware.processes import busy_s
        first = busy_s()
        os.closerange(3, 64)
        assert busy_s() >= first
        os.closerange(3, 64)
        others = [os.open("/etc/hostname", os.O_RDONLY) for _ in range(8)]
        assert busy_s() >= first
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


def test_four_processes_answer_for_the_host_once(tmp_path: Path) -> None:
    """Four real ranks that meter themselves at the same time sum to 1.00 times the host, and not to 4."""
    code = """
        import json, sys, threading
        from negawatt.metering.run import LiveRun
        print("ready", flush=True); sys.stdin.readline()
        run = LiveRun("rank", sensors=["cpu-model"])
        print("begun", flush=True)
        threading.Thread(target=lambda: all(sum(range(1000)) for _ in iter(int, 1)), daemon=True).start()
        sys.stdin.readline()
        ended = run.stop()
        part = ended.attribution
        print(json.dumps([ended.host_energy_j, part.energy_j, part.runs, part.process_j]), flush=True)
    """
    environ = {**os.environ, "NEGAWATT_BOARD": str(tmp_path / "board")}
    with ExitStack() as stack:
        ranks = [
            stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", textwrap.dedent(code)],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environ, text=True, bufsize=1,
                )
            )
            for _ in range(4)
        ]  # fmt: skip
        assert [rank.stdout.readline() for rank in ranks] == ["ready\n"] * 4  # type: ignore[union-attr]
        with Meter.open(names=("cpu-model",)).start() as whole:
            for rank in ranks:
                rank.stdin.write("go\n")  # type: ignore[union-attr]
            assert [rank.stdout.readline() for rank in ranks] == ["begun\n"] * 4  # type: ignore[union-attr]
            time.sleep(2.0)
            for rank in ranks:
                rank.stdin.write("stop\n")  # type: ignore[union-attr]
            results = [json.loads(rank.stdout.readline()) for rank in ranks]  # type: ignore[union-attr]
    (host,) = whole.readings()
    parts_j = sum(mine for _, mine, *_ in results)
    assert 0.8 * host.energy_j < parts_j < 1.02 * host.energy_j  # they begin and end a little inside the whole
    assert sum(host_j for host_j, *_ in results) > 2.5 * parts_j  # what adding up their readings would give
    assert all(runs == 4 for *_, runs, _ in results)
    assert sum(process_j for *_, process_j in results) < 1.02 * host.energy_j


def test_runs_inside_a_run_that_ended_are_inside_of_the_next_one(tmp_path: Path, pids: list[int]) -> None:
    """When the run in the middle ends, what is inside it stays a part of the outermost, and takes none from others."""
    outer, middle, inner, other = pids
    bench = Bench(tmp_path / "board", above={middle: [outer], inner: [middle, outer]})
    for key, pid in (("outer", outer), ("other", other), ("middle", middle), ("inner", inner)):
        bench.join(key, pid)
    assert bench.fraction("middle", leave=True) >= 0
    before = bench.fraction("other")
    bench.clock.advance(10.0)
    bench.cpu_s |= {outer: 4.0, inner: 4.0, other: 4.0}  # the outer tree's time holds the inner one's
    assert (bench.fraction("outer"), bench.fraction("other")) == pytest.approx((0.5, 0.5), abs=0.01)
    assert before == pytest.approx(0.5, abs=0.01)


def test_edges_close_together_read_no_cpu_times(tmp_path: Path, pids: list[int]) -> None:
    """A hundred edges within a tick of each other cost no more reads than one, and the parts still add up."""
    bench = Bench(tmp_path / "board")
    reads: list[int] = []
    bench.board._cpu_s = lambda pid: reads.append(pid) or bench.cpu_s.get(pid, 0.0)  # type: ignore[func-returns-value]
    for pid in pids:
        bench.join(str(pid), pid)
    bench.clock.advance(1.0)
    bench.cpu_s |= {pids[0]: 1.0}
    bench.fraction(str(pids[0]))
    reads.clear()
    for _ in range(100):
        bench.clock.advance(1e-4)
        bench.fraction(str(pids[1]))
    assert reads == []
    assert sum(bench.fraction(str(pid)) for pid in pids) == pytest.approx(1.0)
    assert bench.fraction(str(pids[0])) > 0.99


@pytest.mark.parametrize("text", ['{"v": 2}', "[]", "null", '{"tim', '{"format": 1, "runs": {}}', "\xff"])
def test_a_damaged_board_is_begun_anew(tmp_path: Path, text: str) -> None:
    """Half a file, or one of another kind, keeps no run from starting, and the next ones share again."""
    bench = Bench(tmp_path / "board")
    bench.join("lost", os.getpid())
    BoardFile(tmp_path / "board").path.write_text(text, encoding="latin-1")
    bench.join("a", os.getpid())
    bench.join("b", os.getpid())
    bench.clock.advance(10.0)
    assert (bench.fraction("a"), bench.fraction("b")) == pytest.approx((0.5, 0.5))
    assert bench.board.shares("lost", bench.probes) is None


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_child_forked_at_a_bad_moment_holds_no_lock(tmp_path: Path) -> None:
    """A fork in the middle of a change gives the child a copy of the lock, which must not keep others waiting."""
    board = BoardFile(tmp_path / "board")
    with board.locked():
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with BoardFile(tmp_path / "board").locked():
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_stopped_process_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever was stopped with the board in its hands costs the others their shares, not their time."""
    monkeypatch.setattr(boardfile, "WAIT_S", 0.05)
    attributor = Attributor("a", [], board=Board(tmp_path / "board"))
    with BoardFile(tmp_path / "board").locked():
        attributor.update()
        assert "another process holds" in attributor.attribution([]).rule
        attributor.update(leave=True)


def test_a_full_disk_leaves_the_board_as_it_was(tmp_path: Path) -> None:
    """What could not be written whole is not put in the place of what was there."""
    board = BoardFile(tmp_path / "board")
    with board.locked() as doc:
        doc["kept"] = 1
    code = f"""
        import resource
        from pathlib import Path
        from negawatt.metering.boardfile import BoardFile
        import signal
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
        try:
            with BoardFile(Path({str(tmp_path / "board")!r})).locked() as doc:
                doc["more"] = "x" * 1000
        except OSError:
            print("said")
    """
    said = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True)
    assert said.stdout == "said\n"
    with board.locked() as doc:
        assert doc == {"kept": 1}


def test_cpu_times_that_are_hidden_leave_the_rest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the host's CPU time cannot be read, what the process caused is unknown, and nothing else."""

    def masked() -> float:
        raise PermissionError("masked")

    monkeypatch.setattr(attribute, "busy_s", masked)
    bench = Bench(tmp_path / "board")
    attributor = Attributor("a", bench.probes, board=bench.board)
    state = bench.probes[0].snapshot()
    bench.clock.advance(10.0)
    attributor.update(leave=True)
    part = attributor.attribution([bench.probes[0].reading(state, bench.probes[0].snapshot())])
    assert (part.energy_j, part.process_j) == (pytest.approx(1000.0), None)


def test_cpus_are_those_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python is told to believe of the number of CPUs (PYTHON_CPU_COUNT) changes no joules."""
    before = host_cpus()
    monkeypatch.setattr(os, "cpu_count", lambda: 1000)
    assert host_cpus() == before


def test_many_who_wait_for_their_turn_all_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the queue is, nobody gives up while it moves: whoever did would answer for the whole host."""
    monkeypatch.setattr(boardfile, "WAIT_S", 0.2)
    failed: list[OSError] = []

    def take_turns() -> None:
        try:
            for _ in range(4):
                with BoardFile(tmp_path / "board").locked() as doc:
                    time.sleep(0.02)
                    doc["turns"] = doc.get("turns", 0) + 1
        except OSError as error:
            failed.append(error)

    threads = [threading.Thread(target=take_turns) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    with BoardFile(tmp_path / "board").locked() as doc:
        assert doc == {"turns": 32}

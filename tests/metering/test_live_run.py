"""LiveRun and `negawatt.meter`: what a run measures, answers for and keeps."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextvars import copy_context
from pathlib import Path

import pytest

import negawatt
from negawatt.core import registry
from negawatt.core.errors import LedgerError, SensorError, UsageError
from negawatt.core.run import Run
from negawatt.hardware.host import this_host
from negawatt.ledger.store import Ledger
from negawatt.metering import run as run_module
from negawatt.metering.calibration import Point, fit, save
from negawatt.metering.run import LiveRun, shared_meter
from negawatt.testing import ManualClock, ScriptedSensor


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[ManualClock]:
    """The only registered sensor draws 10 W on this clock; from 1000 s on it fails."""
    clock = ManualClock()
    sensor = ScriptedSensor(script=[(0.0, 10.0)], clock=clock, fails_at_s=1000.0)
    monkeypatch.setattr(registry, "sensors", lambda: registry.Found(members={"scripted": sensor}, broken=()))
    shared_meter.cache_clear()
    yield clock
    shared_meter.cache_clear()


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A ledger of this test's own."""
    monkeypatch.setenv("NEGAWATT_LEDGER", str(tmp_path / "ledger.sqlite"))
    return tmp_path / "ledger.sqlite"


def recorded(path: Path) -> list[dict]:
    from negawatt.ledger.spool import shared_spool

    shared_spool().flush()
    with Ledger.open(path) as ledger:
        ledger.merge()
        return [{**record.body, "key": record.sequence} for record in ledger.records()]


def test_a_run_alone_answers_for_all_joules(clock: ManualClock) -> None:
    """Without another run, attributed and measured joules are the same."""
    with negawatt.meter("alone") as m:
        clock.advance(10.0)
    assert m.attribution is not None
    assert (m.attribution.energy_j, m.attribution.runs) == (100.0, 1)


def test_threads_share_and_blocks_inside_blocks_take_the_same_part(clock: ManualClock) -> None:
    """Two runs side by side answer for half each, and a run inside one of them for half, too."""
    runs: list[Run] = []
    inside: list[float] = []
    ready, done = threading.Barrier(3), threading.Barrier(3)

    def work() -> None:
        with negawatt.meter("side", then=runs.append):
            with negawatt.meter("inner") as inner:
                ready.wait()
                done.wait()
            assert inner.host_energy_j == 100.0
            inside.append(inner.energy_j)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    ready.wait()
    clock.advance(10.0)
    done.wait()
    for thread in threads:
        thread.join()
    assert [run.host_energy_j for run in runs] == [100.0, 100.0]
    assert sum(run.energy_j or 0.0 for run in runs) == pytest.approx(100.0)
    assert sum(inside) == pytest.approx(100.0)


def test_a_decorator_meters_every_call(clock: ManualClock) -> None:
    """Each call is a run of its own under the function's name, and the function stays itself."""
    runs: list[Run] = []

    @negawatt.meter(then=runs.append)
    def work(seconds: float) -> str:
        """Works."""
        clock.advance(seconds)
        return "done" if seconds < 3 else work(1.0)

    assert (work(2.0), work.__doc__, work.__name__) == ("done", "Works.", "work")
    assert work(3.0) == "done"  # recursion
    assert [run.host_energy_j for run in runs] == [20.0, 10.0, 40.0]
    assert runs[0].name.endswith("work")


def test_a_coroutine_is_metered_until_it_ends(clock: ManualClock) -> None:
    """An async function's run ends with its last step, not with its first await."""
    runs: list[Run] = []

    @negawatt.meter("async", then=runs.append)
    async def work() -> int:
        await asyncio.sleep(0)
        clock.advance(5.0)
        return 7

    assert asyncio.run(work()) == 7
    assert [run.host_energy_j for run in runs] == [50.0]


def test_misuse_is_explained(clock: ManualClock) -> None:
    """A generator, a bare decorator and one object for two blocks are refused with what to type."""
    with pytest.raises(UsageError, match="is a generator"):
        negawatt.meter("x")(lambda_generator)
    with pytest.raises(UsageError, match=r"@negawatt\.meter\(\)"):
        negawatt.meter(lambda_generator)  # type: ignore[arg-type]
    one = negawatt.meter("x")
    with one, pytest.raises(UsageError, match="running already"):
        one.__enter__()


def lambda_generator() -> Iterator[int]:
    yield 1


def test_a_calibrated_host_gives_joules_at_the_wall(
    clock: ManualClock, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a calibration of this host and sensor, a run has joules at the wall; without, none; broken, it says so."""
    path = ledger.parent / "calibration.json"
    monkeypatch.setenv("NEGAWATT_CALIBRATION", str(path))
    runs: list[Run] = []
    points = [Point(metered_w=x, wall_w=20 + 1.5 * x) for x in (5.0, 10.0, 20.0)]
    with negawatt.meter("before", then=runs.append) as m:
        clock.advance(1.0)
        assert m.wall_j is None
    save(fit(points, this_host(), ["cpu:0/package"], ["scripted"])[0], path)
    with negawatt.meter("after", then=runs.append):
        time.sleep(0.01)
    path.write_text("{")
    with negawatt.meter("broken", then=runs.append, record=True):
        clock.advance(1.0)
    before, after, broken = runs
    assert (before.wall_j, broken.wall_j) == (None, None)
    assert after.wall_j == pytest.approx(20 * after.time_s)  # no time passed on the sensor's clock
    assert "half understood" in broken.fault
    assert broken.energy_j == 10.0


def test_a_run_is_logged(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever asks for the log sees one line per run."""
    with caplog.at_level(logging.INFO, logger="negawatt"), negawatt.meter("training"):
        clock.advance(2.0)
    assert "training: 20 J (sd 0.2 J), counter" in caplog.text


def test_recorded_runs_are_in_the_ledger_with_their_work(clock: ManualClock, ledger: Path) -> None:
    """A finished run has its joules, its work and joules per unit; a run inside it names it as its parent."""
    with negawatt.meter("train", record=True) as m:
        clock.advance(10.0)
        m.did(40, "step")
        with negawatt.meter("not recorded"), negawatt.meter("epoch", record=True):
            clock.advance(1.0)
    epoch, train = sorted(recorded(ledger), key=lambda body: body["name"])
    assert (train["energy_j"], train["parent"], train["error"]) == (pytest.approx(110.0), "", "")
    assert train["energy_per_work_j"]["step"] == pytest.approx(110 / 40)
    assert (epoch["energy_j"], epoch["parent"]) == (10.0, train["key"])
    with Ledger.open(ledger) as opened:
        assert [total.energy_j for total in opened.totals()] == pytest.approx([110.0])


def test_an_exception_is_recorded_and_passes(clock: ManualClock, ledger: Path) -> None:
    """A crash leaves the run with its joules and its error, and the error comes out as it was."""

    def crash() -> None:
        with negawatt.meter("crash", record=True):
            clock.advance(3.0)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        crash()
    (body,) = recorded(ledger)
    assert (body["energy_j"], body["error"]) == (pytest.approx(30.0), "RuntimeError: out of memory")


def test_a_failed_sensor_is_recorded_and_raised_behind_the_block(clock: ManualClock, ledger: Path) -> None:
    """A sensor that went away costs the joules of this run and not its record."""

    def fail() -> None:
        with negawatt.meter("blind", record=True):
            clock.advance(2000.0)

    with pytest.raises(SensorError, match="fails from"):
        fail()
    (body,) = recorded(ledger)
    assert (body["energy_j"], body["readings"]) == (None, [])
    assert "fails from" in body["fault"]


def test_a_sensor_that_fails_late_leaves_what_was_seen(
    clock: ManualClock, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The joules of the last checkpoint before a sensor failed are kept, and said to be a part only."""
    run = LiveRun("late", record=True)
    clock.advance(50.0)
    monkeypatch.setattr(run, "_pulse_at_s", 0.0)
    run.pulse()
    clock.advance(2000.0)
    run.stop()
    (body,) = recorded(ledger)
    assert body["energy_j"] == pytest.approx(500.0)
    assert body["readings"][0]["flags"] == ["a part only: a sensor failed"]
    assert "fails from" in body["fault"]


def test_an_unwritable_ledger_does_not_end_the_work(
    clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the ledger cannot be made, the block still runs and gives its joules."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEGAWATT_LEDGER", str(tmp_path / "file" / "ledger.sqlite"))
    with negawatt.meter("work", record=True) as m:
        clock.advance(1.0)
    assert m.energy_j == 10.0
    (tmp_path / "file").unlink()  # so that the spool of this process can end in peace


def test_a_discarded_run_leaves_nothing(clock: ManualClock, ledger: Path) -> None:
    """A run that came to nothing is in no ledger."""
    LiveRun("nothing", record=True).discard()
    assert recorded(ledger) == []


def test_the_pulse_keeps_a_run_that_is_killed(tmp_path: Path) -> None:
    """SIGKILL in the middle of a recorded run leaves a record of what it had used, marked as interrupted."""
    code = """
        import time, negawatt
        with negawatt.meter("killed", record=True, sensors=["cpu-model"]) as m:
            m.did(5, "step")
            time.sleep(3.0)
            print("ready", flush=True)
            time.sleep(60)
    """
    path = tmp_path / "ledger.sqlite"
    environ = {**os.environ, "NEGAWATT_LEDGER": str(path)}
    with subprocess.Popen([sys.executable, "-c", textwrap.dedent(code)], stdout=subprocess.PIPE, env=environ) as child:
        assert child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGKILL)
    with Ledger.open(path) as ledger:
        ledger.merge()
        (record,) = ledger.records()
    assert record.body["interrupted"] is True
    assert record.energy_j is not None
    assert record.energy_j > 0
    assert record.body["work"] == [{"unit": "step", "quantity": 5.0}]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_child_is_not_the_run(ledger: Path) -> None:
    """A child that leaves its parent's block records nothing; its own run is inside the parent's."""
    read, write = os.pipe()
    with negawatt.meter("parent", record=True, sensors=["cpu-model"]) as m:
        child = os.fork()
        if child == 0:
            try:
                with negawatt.meter("child", sensors=["cpu-model"]) as inner:
                    time.sleep(0.1)
                try:
                    told = str(m.energy_j)
                except UsageError as error:
                    told = error.got
                os.write(write, json.dumps([inner.parent, told]).encode())
            finally:
                m.stop()
                os._exit(0)
        os.waitpid(child, 0)
    assert json.loads(os.read(read, 1000)) == [m.key, "run 'parent' is read in a forked child"]
    assert [body["name"] for body in recorded(ledger)] == ["parent"]
    os.close(read)
    os.close(write)


def test_one_thread_follows_all_runs_and_ends(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs there are, one background thread brings them up to date, and none is left behind them."""
    monkeypatch.setattr(run_module, "FIRST_PULSE_S", 0.01)
    runs = [LiveRun(f"run {number}") for number in range(5)]
    assert sum(thread.name == "negawatt-runs" for thread in threading.enumerate()) == 1
    for run in reversed(runs):
        run.stop()
    deadline = time.monotonic() + 20
    while any(t.name == "negawatt-runs" for t in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not any(thread.name == "negawatt-runs" for thread in threading.enumerate())


def test_work_is_counted_from_many_threads(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """No unit of work is lost when threads count at the same time, while the run is brought up to date."""
    run = LiveRun("server")
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)

    def work(name: int) -> None:
        for number in range(2000):
            run.did(1, "request")
            run.did(1, f"{name}-{number % 50}")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            monkeypatch.setattr(run, "_pulse_at_s", 0.0)
            run.pulse()
    finally:
        sys.setswitchinterval(switch_s)
    ended = run.stop()
    assert ended is not None
    assert {work.unit: work.quantity for work in ended.work}["request"] == 8000


def test_a_run_is_inside_the_nearest_one_that_goes_on(clock: ManualClock) -> None:
    """A run that was ended by another thread does not hide the one around it from the next."""
    outer, inner = LiveRun("outer"), LiveRun("inner")
    thread = threading.Thread(target=inner.stop)
    thread.start()
    thread.join()
    following = LiveRun("next")
    clock.advance(1.0)
    following.stop()
    ended = outer.stop()
    assert following.attribution is not None
    assert following.attribution.process_j is None
    assert ended is not None
    assert ended.attribution is not None
    assert ended.attribution.runs == 1


def test_a_run_that_could_not_begin_leaves_nothing(
    clock: ManualClock, ledger: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sensor that fails at the start leaves no ghost that takes joules from others, and no record."""

    def fails() -> None:  # after the run has joined the board
        raise SensorError("gone", "why", "fix")

    monkeypatch.setattr(shared_meter(()), "start", fails)
    with pytest.raises(SensorError, match="gone"):
        LiveRun("never", record=True)
    with negawatt.meter("alone") as m:
        clock.advance(10.0)
    assert m.attribution is not None
    assert m.attribution.runs == 1
    assert recorded(ledger) == []


def test_ctrl_c_while_a_run_ends_leaves_no_ghost(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Interrupted in the middle of its end, a run stops sharing all the same."""
    run = LiveRun("interrupted")

    def interrupt() -> None:
        raise KeyboardInterrupt("now")

    monkeypatch.setattr(run._window, "stop", interrupt)
    with pytest.raises(KeyboardInterrupt, match="now"):
        run.stop()
    with negawatt.meter("alone") as m:
        clock.advance(10.0)
    assert m.attribution is not None
    assert m.attribution.runs == 1


def test_a_signal_handler_may_stop_the_run_that_is_being_stopped(
    clock: ManualClock, ledger: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """SIGTERM in the middle of `stop`, with a handler that stops as well: one record, no deadlock, no complaint."""
    run = LiveRun("terminated", record=True)
    stop = run._window.stop

    def signalled() -> object:
        monkeypatch.setattr(run._window, "stop", stop)
        run.stop()
        return stop()

    monkeypatch.setattr(run._window, "stop", signalled)
    run.stop()
    assert [body["name"] for body in recorded(ledger)] == ["terminated"]
    assert not caplog.records


def test_one_run_that_fails_does_not_keep_the_others_from_being_kept(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The background thread outlives whatever one run raises, and says so."""
    monkeypatch.setattr(run_module, "FIRST_PULSE_S", 0.01)
    pulsed = threading.Event()

    def broken() -> None:
        raise RuntimeError("odd")

    one, other = (copy_context().run(LiveRun, name) for name in ("one", "other"))  # side by side
    monkeypatch.setattr(one, "pulse", broken)
    monkeypatch.setattr(other, "pulse", pulsed.set)
    assert pulsed.wait(20)
    one.stop()
    other.stop()
    assert "one was not brought up to date: RuntimeError: odd" in caplog.text


def test_a_run_goes_on_where_no_thread_can_be_started(
    clock: ManualClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """At the limit of threads, or when the interpreter is on its way out, a run still gives its joules."""
    monkeypatch.setattr(run_module, "_PULSE", run_module._Pulse())

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        run = LiveRun("tight")
    clock.advance(1.0)
    ended = run.stop()
    assert ended is not None
    assert ended.energy_j == 10.0
    assert "tight is not brought up to date" in caplog.text


def test_a_user_without_a_home_can_meter(clock: ManualClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no home nothing can be kept, and that is said only to whoever asks to keep something."""

    def homeless(*_: object, **__: object) -> Path:
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("NEGAWATT_LEDGER", raising=False)
    monkeypatch.delenv("NEGAWATT_CALIBRATION", raising=False)
    monkeypatch.setattr("platformdirs.user_state_path", homeless)
    runs: list[Run] = []
    with negawatt.meter("bare", then=runs.append):
        clock.advance(1.0)
    assert (runs[0].energy_j, runs[0].fault) == (10.0, "")
    with pytest.raises(LedgerError, match="no place for the ledger"):
        LiveRun("kept", record=True)


def test_another_users_home_is_no_fault(clock: ManualClock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's user whose HOME is closed to it has no calibration; a file that is named has to be readable."""
    path = tmp_path / "closed" / "calibration.json"

    def closed(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", closed)
    monkeypatch.setattr("platformdirs.user_state_path", lambda *_, **__: path.parent)
    monkeypatch.delenv("NEGAWATT_CALIBRATION", raising=False)
    runs: list[Run] = []
    with negawatt.meter("default", then=runs.append):
        clock.advance(1.0)
    monkeypatch.setenv("NEGAWATT_CALIBRATION", str(path))
    with negawatt.meter("named", then=runs.append):
        clock.advance(1.0)
    assert runs[0].fault == ""
    assert "cannot be read (Permission denied)" in runs[1].fault

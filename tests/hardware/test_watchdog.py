"""A watchdog puts back what its holder set, however that ends. With real processes that are killed and stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from leased import BAR_S, Machine, within

from negawatt.core.errors import HardwareError
from negawatt.hardware.lease import held, repair
from negawatt.hardware.restoring import Outcome

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are no controls on this system")

SET = """
lease = take()
lease.set(addresses[0], 90.0)
say("set")
"""
QUICK_S = 0.02
"""Seconds between signs of life, where a holder that hangs is waited for."""


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGHUP, signal.SIGABRT])
def test_a_holder_that_is_killed(machine: Machine, number: int) -> None:
    """Whatever the signal, everything is as found at once, and the device is free."""
    with machine.holder(SET + "heard()") as holder:
        assert holder.says() == "set"
        assert machine.limit_w() == 90.0
        holder.kill(number)
        within(BAR_S, machine.free)


def test_the_end_of_a_process_group_is_survived(machine: Machine) -> None:
    """A terminal's Ctrl-C, its end, and a kill of the whole group do not reach the watchdog."""
    with machine.holder(SET + "heard()") as holder:
        assert holder.says() == "set"
        os.killpg(holder.pid, signal.SIGKILL)
        within(BAR_S, machine.free)


def test_a_program_that_ends_without_releasing(machine: Machine) -> None:
    """Leaving the interpreter releases, with nothing on stderr."""
    with machine.holder(SET) as holder:
        assert holder.says() == "set"
        assert holder.process.wait(30) == 0
        assert machine.free()


def test_an_exit_in_a_signal_handler_releases(machine: Machine) -> None:
    """A program that turns SIGTERM into an exit may be within a `set` just then."""
    script = """
signal.signal(signal.SIGTERM, lambda *_: sys.exit(5))
with take() as lease:
    say("set")
    while True:
        lease.set(addresses[0], random.uniform(50.0, 120.0))
"""
    with machine.holder(script) as holder:
        assert holder.says() == "set"
        time.sleep(0.05)
        holder.kill(signal.SIGTERM)
        assert holder.process.wait(30) == 5
        assert machine.free()


def test_an_interrupted_release_goes_on(machine: Machine) -> None:
    """Ctrl-C while the machine is put back does not stop that."""
    script = """
signal.signal(signal.SIGALRM, signal.default_int_handler)
for delay_s in (1e-4, 3e-4, 1e-3, 3e-3, 1e-2):
    lease = take()
    lease.set(addresses[0], 90.0)
    try:
        signal.setitimer(signal.ITIMER_REAL, delay_s)
        lease.release()
        time.sleep(1.0)
    except KeyboardInterrupt:
        say("interrupted")
    lease.release()
    heard()
"""
    with machine.holder(script) as holder:
        for _ in range(5):
            assert holder.says() == "interrupted"
            within(BAR_S, machine.free)
            holder.tell()
        assert holder.process.wait(30) == 0


def test_a_watchdog_ignores_what_can_be_ignored(machine: Machine) -> None:
    """It goes on after the signals that end or stop other programs."""
    with machine.take() as lease:
        lease.set(machine.address(), 90.0)
        watchdog = machine.record().watchdog
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM, signal.SIGQUIT, signal.SIGTSTP):
            os.kill(watchdog, number)
        time.sleep(0.05)
        assert lease.set(machine.address(), 80.0) == 80.0
        assert machine.record().watchdog == watchdog
    assert machine.free()


def test_a_holder_that_is_stopped_loses_its_lease(machine: Machine) -> None:
    """It is put back; when it wakes up, it cannot set anything, is told why, and its end raises nothing."""
    script = """
with take() as lease:
    lease.set(addresses[0], 90.0)
    say("set")
    heard()
    try:
        lease.set(addresses[0], 80.0)
    except HeldError as error:
        say(error.got)
say("done")
"""
    with machine.holder(script, beat_s=QUICK_S) as holder:
        assert holder.says() == "set"
        holder.kill(signal.SIGSTOP)
        within(BAR_S, machine.free)
        with machine.take() as other:  # the device is free for others
            other.set(machine.address(), 70.0)
            holder.kill(signal.SIGCONT)
            holder.tell()
            assert holder.says() == "the lease was revoked: it gave no sign of life for 0.2 s"
            assert holder.says() == "done"
            assert holder.process.wait(30) == 0
            assert machine.limit_w() == 70.0
    assert machine.free()


def test_a_holder_that_is_stopped_while_it_sets_writes_nothing_more(machine: Machine) -> None:
    """Whatever it was about to write when it was stopped, nothing of it is written after it was put back."""
    script = """
lease = take()
say("set")
try:
    while True:
        lease.set(addresses[0], random.uniform(50.0, 120.0))
except HeldError:
    say("revoked")
"""
    for pause_s in (0.0, 0.0113, 0.0271):
        with machine.holder(script, beat_s=QUICK_S) as holder:
            assert holder.says() == "set"
            time.sleep(pause_s)
            holder.kill(signal.SIGSTOP)
            within(BAR_S, machine.free)
            holder.kill(signal.SIGCONT)
            assert holder.says() == "revoked"
            time.sleep(0.05)
            assert machine.free()


def test_a_watchdog_that_is_killed_is_replaced(machine: Machine) -> None:
    """The holder starts another, which knows how things were found, and puts them back."""
    with machine.take() as lease:
        lease.set(machine.address(), 90.0)
        first = machine.record().watchdog
        os.kill(first, signal.SIGKILL)
        within(10.0, lambda: machine.record().watchdog != first and machine.record().watched)
        os.kill(machine.record().watchdog, signal.SIGKILL)
        assert lease.set(machine.address(), 80.0) == 80.0  # at once, without waiting for the next sign of life
        assert machine.record().watched
        os.kill(machine.record().watchdog, signal.SIGKILL)
    assert machine.free()


def test_a_watchdog_that_is_stopped_is_replaced(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does not answer: the caller is told that the outcome is unknown, and the next one is served by another."""
    monkeypatch.setattr("negawatt.hardware.keeper.ANSWER_S", 0.2)
    with machine.take() as lease:
        first = machine.record().watchdog
        os.kill(first, signal.SIGSTOP)
        with pytest.raises(HardwareError, match=rf"the watchdog \(process {first}\) does not answer"):
            lease.set(machine.address(), 90.0)
        monkeypatch.undo()
        assert lease.set(machine.address(), 80.0) == 80.0
        assert machine.record().watchdog != first
    assert machine.free()


def test_if_no_other_watchdog_can_be_started_the_holder_puts_back(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing stays set that nobody watches, and setting says why."""
    with machine.take() as lease:
        lease.set(machine.address(), 90.0)
        monkeypatch.setattr(sys, "executable", "/does/not/exist")
        os.kill(machine.record().watchdog, signal.SIGKILL)
        within(BAR_S, machine.free)
        with pytest.raises(HardwareError, match="the watchdog cannot be started: /does/not/exist"):
            lease.set(machine.address(), 80.0)
    assert machine.free()


def test_if_both_are_killed_the_next_who_comes_puts_back(machine: Machine) -> None:
    """The record remains, `held` names nobody, and `repair` puts things back."""
    with machine.holder(SET + "heard()") as holder:
        assert holder.says() == "set"
        watchdog = machine.record().watchdog
        holder.kill(signal.SIGSTOP)
        os.kill(watchdog, signal.SIGKILL)
        holder.kill(signal.SIGKILL)
        holder.process.wait()
        within(10.0, lambda: not machine.record().watched)  # the kernel kills in its own time
    assert machine.limit_w() == 90.0
    assert held(machine.state) == ()
    (repaired,) = repair(machine.state)
    assert (repaired.outcome, repaired.owner) == (Outcome.RESTORED, "child")
    assert machine.free()


def test_a_forked_child_keeps_nothing_alive(machine: Machine) -> None:
    """Data loader workers may outlive their parent: neither the watchdog nor the lock wait for them."""
    script = SET + "os.fork() or time.sleep(60)\nheard()"
    with machine.holder(script) as holder:
        assert holder.says() == "set"
        time.sleep(0.05)
        holder.kill(signal.SIGKILL)
        within(BAR_S, machine.free)
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_child_that_knows_nothing_of_python_keeps_no_watchdog_waiting(machine: Machine) -> None:
    """A C library's own fork does not close what is ours; the kernel tells of the holder's death all the same."""
    script = SET + "import ctypes\nctypes.CDLL(None).fork() or time.sleep(60)\nheard()"
    with machine.holder(script) as holder:
        assert holder.says() == "set"
        time.sleep(0.05)
        holder.kill(signal.SIGKILL)
        within(BAR_S, machine.free)
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_program_started_by_the_holder_keeps_nothing_alive(machine: Machine) -> None:
    """Nor do programs that it starts, whatever they inherit."""
    script = SET + "subprocess.Popen(['sleep', '60'], close_fds=False)\nsay('started')\nheard()"
    with machine.holder(script) as holder:
        assert (holder.says(), holder.says()) == ("set", "started")
        holder.kill(signal.SIGKILL)
        within(BAR_S, machine.free)
        os.killpg(holder.pid, signal.SIGKILL)


def test_a_holder_that_closes_every_file_gives_up_its_lease(machine: Machine) -> None:
    """Programs that become daemons do so: everything is put back, and the next `set` says that the lease is lost."""
    script = (
        SET + "os.closerange(3, 1000)\ntry:\n    lease.set(addresses[0], 80.0)\nexcept HardwareError:\n    say('lost')"
    )
    with machine.holder(script) as holder:
        assert (holder.says(), holder.says()) == ("set", "lost")
        within(BAR_S, machine.free)
        assert holder.process.wait(30) == 0


def test_threads_may_set_at_once(machine: Machine) -> None:
    """Each gets the answer to its own question."""
    script = """
def work(address, low):
    for limit in range(low, low + 30):
        assert lease.set(address, float(limit)) == limit
with take() as lease:
    threads = [threading.Thread(target=work, args=pair) for pair in zip(addresses, (50, 90))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    say("done")
"""
    with machine.holder(script, 0, 1) as holder:
        assert holder.says() == "done"
        assert holder.process.wait(30) == 0
        assert machine.free(0)
        assert machine.free(1)


def test_a_watchdog_starts_quickly() -> None:
    """It imports none of the heavy packages, and no module that knows how to start watchdogs."""
    code = "import sys, negawatt.hardware.watchdog, negawatt.hardware.controls.rapl; print(*sys.modules)"
    loaded = subprocess.check_output([sys.executable, "-P", "-c", code], text=True).split()
    heavy = {"asyncio", "click", "numpy", "platformdirs", "psutil", "pynvml", "rich", "subprocess", "tempfile", "torch"}
    assert heavy & set(loaded) == set()

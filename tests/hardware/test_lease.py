"""A lease: what may be set, who holds what, and that everything ends as it was found. With real watchdogs."""

from __future__ import annotations

import json
import os
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from leased import FOUND_W, Holder, Machine

from negawatt.core.errors import HardwareError, HeldError, NeedsPrivilegeError, UsageError
from negawatt.hardware import records
from negawatt.hardware.hand import Hand, take
from negawatt.hardware.lease import Lease, held, repair
from negawatt.hardware.restoring import Outcome
from negawatt.testing.nvml import NO_PERMISSION, SimulatedGpu, SimulatedNvml

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there are no controls on this system")


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_lease_is_a_hand(machine: Machine) -> None:
    """It knows what it holds and how that was found, sets it, and puts it back when it is over."""
    with machine.take(0, 1) as lease:
        assert isinstance(lease, Hand)
        assert lease.found == {machine.address(0): FOUND_W, machine.address(1): FOUND_W}
        assert lease.infos[machine.address(1)].scope == "cpu:1"
        assert lease.set(machine.address(0), 90.0) == 90.0
        assert lease.set(machine.address(1), 80.0) == 80.0
        assert lease.set(machine.address(0), FOUND_W) == FOUND_W
        assert (machine.limit_w(0), machine.limit_w(1)) == (FOUND_W, 80.0)
    assert (machine.limit_w(0), machine.limit_w(1)) == (FOUND_W, FOUND_W)
    assert held(machine.state) == repair(machine.state) == ()


def test_what_was_found_is_kept_and_watched_before_anything_is_written(machine: Machine) -> None:
    """As soon as there is a lease its record is on the disk, and a process watches that is not in our session."""
    with machine.take():
        (record,) = held(machine.state)
        assert (record.owner, record.pid, record.scope) == ("test", os.getpid(), "cpu:0")
        assert record.controls[0].found == FOUND_W
        assert record.controls[0].touched is records.Touched.NO
        assert record.watched
        assert os.getsid(record.watchdog) == record.watchdog
        assert stat.S_IMODE((machine.state / "cpu%3A0.json").stat().st_mode) == 0o600


def test_every_write_is_in_the_record(machine: Machine) -> None:
    """Whoever repairs knows what was written last."""
    with machine.take() as lease:
        lease.set(machine.address(), 100.0)
        kept = machine.record().controls[0]
        assert (kept.value, kept.touched) == (100.0, records.Touched.WRITTEN)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (FOUND_W + 0.5, "above 125.0"),
        (151.0, "outside the device's range"),
        (10.0, "outside the device's range"),
        (-90.0, "outside the device's range"),
        (float("nan"), "no finite number"),
        (float("-inf"), "no finite number"),
        (True, "no finite number"),
        ("90", "no finite number"),
        (None, "found limited to 125.0"),
    ],
)
def test_what_may_not_be_set_is_refused(machine: Machine, value: float | None, reason: str) -> None:
    """Never above what an administrator set, never outside the range, never something that is no number."""
    with machine.take() as lease:
        with pytest.raises(UsageError, match=reason):
            lease.set(machine.address(), value)
        assert machine.limit_w() == FOUND_W


def test_above_what_was_found_only_if_asked_for(machine: Machine) -> None:
    """An administrator's own tool may raise a limit within the device's range, and it is put back all the same."""
    with Lease.take([machine.address()], owner="test", folder=machine.state, above_found=True) as lease:
        assert lease.set(machine.address(), 140.0) == 140.0
        with pytest.raises(UsageError, match="outside the device's range"):
            lease.set(machine.address(), 151.0)
    assert machine.limit_w() == FOUND_W


def test_only_what_is_held_can_be_set(machine: Machine) -> None:
    """Another control of the machine is refused, and a lease needs addresses, each once, that exist."""
    with machine.take() as lease, pytest.raises(UsageError, match="is not held"):
        lease.set(machine.address(1), 90.0)
    for addresses, error in (
        ([], "controls to take"),
        ([machine.address()] * 2, "controls to take"),
        (["toaster:1"], "no control has the address"),
    ):
        with pytest.raises(UsageError, match=error):
            Lease.take(addresses, owner="test", folder=machine.state)
    with pytest.raises(HardwareError, match="intel-rapl:7"):
        Lease.take([machine.address(7)], owner="test", folder=machine.state)
    assert held(machine.state) == ()


def test_one_lease_per_device(machine: Machine) -> None:
    """The second taker is told who has the device; another device is free, and so is this one afterwards."""
    with machine.take(owner="negawatt cap"):
        with pytest.raises(HeldError, match=rf"cpu:0 is held by negawatt cap \(process {os.getpid()}, since 20"):
            machine.take()
        with pytest.raises(HeldError, match="cpu:0 is held"):
            machine.take(1, 0)
        with machine.take(1) as other:
            other.set(machine.address(1), 90.0)
    with machine.take(0, 1):
        assert {record.scope for record in held(machine.state)} == {"cpu:0", "cpu:1"}


def test_a_lease_that_is_over_sets_nothing(machine: Machine) -> None:
    """Releasing again does nothing, and setting says that it is over."""
    lease = machine.take()
    lease.set(machine.address(), 90.0)
    lease.release()
    lease.release()
    with pytest.raises(HardwareError, match="the lease was released"):
        lease.set(machine.address(), 80.0)
    assert machine.limit_w() == FOUND_W


def test_an_error_in_the_work_puts_back(machine: Machine) -> None:
    """The context manager releases on any exception and hands it on."""

    def work() -> None:
        with machine.take() as lease:
            lease.set(machine.address(), 90.0)
            raise ZeroDivisionError("in the work")

    with pytest.raises(ZeroDivisionError, match="in the work"):
        work()
    assert machine.limit_w() == FOUND_W


def test_what_an_administrator_changes_meanwhile_is_theirs(machine: Machine) -> None:
    """A limit that somebody else set during the lease is neither overwritten nor put back, and the lease says so."""
    lease = machine.take()
    lease.set(machine.address(), 100.0)
    machine.administrator_sets(70.0)
    with pytest.raises(HeldError, match=r"is 70\.0, and not 100\.0 as it was left"):
        lease.set(machine.address(), 90.0)
    lease.release()
    assert machine.limit_w() == 70.0
    assert [(one.outcome, one.found) for one in lease.left] == [(Outcome.LEFT, FOUND_W)]
    assert "somebody changed it" in lease.left[0].note


def test_permission_withdrawn(machine: Machine) -> None:
    """What can be put back is; for the rest the error has the administrator's command, and repair does it later."""
    lease = machine.take(0, 1)
    lease.set(machine.address(0), 100.0)
    lease.set(machine.address(1), 100.0)
    machine.file(0).chmod(0o444)
    with pytest.raises(NeedsPrivilegeError, match="may not be written"):
        lease.set(machine.address(0), 90.0)
    assert machine.limit_w(0) == 100.0
    with pytest.raises(HardwareError, match=rf"could not be put back.*\n.*\n.*echo 125000000 .*{machine.file(0)}"):
        lease.release()
    assert (machine.limit_w(0), machine.limit_w(1)) == (100.0, FOUND_W)
    assert held(machine.state) == ()
    with pytest.raises(HardwareError, match="could not be put back as found"):
        machine.take(0)
    assert [one.outcome for one in repair(machine.state)] == [Outcome.FAILED]
    machine.file(0).chmod(0o644)
    assert [one.outcome for one in repair(machine.state)] == [Outcome.RESTORED]
    assert machine.limit_w(0) == FOUND_W


def test_a_device_that_is_lost(machine: Machine, tmp_path: Path) -> None:
    """Setting and releasing say so; its record is kept, and is no obstacle to other devices."""
    lease = machine.take(1)
    lease.set(machine.address(1), 100.0)
    (machine.powercap.root / "intel-rapl:1").rename(tmp_path / "gone")
    with pytest.raises(HardwareError, match="intel-rapl:1"):
        lease.set(machine.address(1), 90.0)
    with pytest.raises(HardwareError, match="could not be put back as found"):
        lease.release()
    machine.take(0).release()
    (tmp_path / "gone").rename(machine.powercap.root / "intel-rapl:1")
    machine.take(0).release()  # every take repairs
    assert machine.limit_w(1) == FOUND_W


def test_a_forked_copy_is_inert(machine: Machine) -> None:
    """A child has no say: it sets nothing, releases nothing, and the parent's lease goes on."""
    with machine.take() as lease:
        lease.set(machine.address(), 100.0)
        child = os.fork()
        if not child:
            try:
                lease.set(machine.address(), 90.0)
            except HardwareError as error:
                lease.release()
                os._exit("this lease is of process" in str(error))
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1
        assert machine.limit_w() == 100.0
        assert lease.set(machine.address(), 80.0) == 80.0
    assert machine.limit_w() == FOUND_W


def orphan(machine: Machine, limit_w: float = 100.0) -> None:
    """Leave a record as a holder and a watchdog do that were both killed."""
    with machine.take() as lease:
        lease.set(machine.address(), limit_w)
        record = machine.record()
    machine.administrator_sets(limit_w)
    records.save(machine.state, replace(record, pid=2**22 + 1, watchdog=2**22 + 2))


def test_orphans_are_repaired(machine: Machine) -> None:
    """What nobody holds any more is put back, and it is said whose it was."""
    orphan(machine)
    (repaired,) = repair(machine.state)
    assert (repaired.outcome, repaired.owner, repaired.found) == (Outcome.RESTORED, "test", FOUND_W)
    assert machine.limit_w() == FOUND_W
    assert repair(machine.state) == ()


def test_taking_repairs_first(machine: Machine) -> None:
    """What the next lease finds is what the first one found."""
    orphan(machine)
    with machine.take() as lease:
        assert lease.found[machine.address()] == FOUND_W


def test_repair_leaves_what_somebody_changed_since(machine: Machine) -> None:
    """A value that no lease wrote is somebody's wish."""
    orphan(machine)
    machine.administrator_sets(70.0)
    (repaired,) = repair(machine.state)
    assert (repaired.outcome, machine.limit_w()) == (Outcome.LEFT, 70.0)
    assert "somebody changed it" in repaired.note
    assert repair(machine.state) == ()


def test_repair_of_a_write_that_was_cut_short(machine: Machine) -> None:
    """If it is not known whether a write was done, what is there is taken for its trace."""
    orphan(machine)
    record = machine.record()
    kept = replace(record.controls[0], touched=records.Touched.WRITING, value=60.0)
    records.save(machine.state, replace(record, controls=(kept,)))
    (repaired,) = repair(machine.state)
    assert (repaired.outcome, machine.limit_w()) == (Outcome.RESTORED, FOUND_W)


def test_records_of_an_earlier_start_are_dropped(machine: Machine) -> None:
    """Devices forget their limits when the machine starts anew, so nothing is written."""
    orphan(machine)
    records.save(machine.state, replace(machine.record(), boot_id="an earlier one"))
    (repaired,) = repair(machine.state)
    assert (repaired.outcome, machine.limit_w()) == (Outcome.DROPPED, 100.0)
    assert repair(machine.state) == ()


def test_a_damaged_record_is_told_and_kept(machine: Machine) -> None:
    """Nobody guesses what it said: its device is refused, with what to type, and others are not."""
    machine.take().release()
    path = machine.state / "cpu%3A0.json"
    path.write_text(json.dumps({"format": 99}))
    (repaired,) = repair(machine.state)
    assert (repaired.outcome, repaired.scope) == (Outcome.FAILED, "cpu:0")
    with pytest.raises(HardwareError, match=rf"cannot be understood[\s\S]*rm {path}"):
        machine.take()
    machine.take(1).release()
    assert held(machine.state) == ()
    assert path.exists()


def test_without_a_state_folder_nothing_is_held(tmp_path: Path) -> None:
    """Looking makes no folder."""
    assert held(tmp_path / "none") == repair(tmp_path / "none") == ()
    assert not (tmp_path / "none").exists()


def test_a_state_folder_that_others_can_write_is_refused(machine: Machine, tmp_path: Path) -> None:
    """A forged record would steer what is written: the folder, and those around it, are this user's alone."""
    machine.take().release()
    machine.state.chmod(0o777)
    with pytest.raises(UsageError, match="others may write to it"):
        machine.take()
    with pytest.raises(UsageError, match="others may write to it"):
        repair(machine.state)
    machine.state.chmod(0o755)
    (tmp_path / "link").symlink_to(machine.state)
    with pytest.raises(UsageError, match="it is no folder"):
        held(tmp_path / "link")
    (tmp_path / "open/state").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(UsageError, match="and so replace it"):
        repair(tmp_path / "open/state")
    with pytest.raises(UsageError, match="cannot keep what the hardware was like"):
        Lease.take([machine.address()], owner="test", folder=machine.file())
    if os.geteuid() == 0:
        os.chown(machine.state, 12345, 12345)
        with pytest.raises(UsageError, match="belongs to user 12345"):
            repair(machine.state)


def test_the_folder_is_named_in_the_environment(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """$NEGAWATT_STATE is used, else a folder for root or one for this user."""
    monkeypatch.setenv("NEGAWATT_STATE", str(machine.state))
    with Lease.take([machine.address()], owner="test"):
        assert [record.scope for record in held()] == ["cpu:0"]
    monkeypatch.delenv("NEGAWATT_STATE")
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    assert records.state_folder(make=False) == Path("/var/tmp/negawatt-1234")


def test_without_a_watchdog_nothing_is_changed(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """If it cannot be started there is no lease, and no trace of one."""
    for program, reason in (("/does/not/exist", "No such file"), ("/bin/false", "it ended at once")):
        monkeypatch.setattr(sys, "executable", program)
        with pytest.raises(HardwareError, match=f"the watchdog cannot be started: .*{reason}"):
            machine.take()
    monkeypatch.undo()
    assert [path.suffix for path in machine.state.iterdir()] == [".lock"]
    machine.take().release()


@settings(max_examples=8)
@given(
    sets=st.lists(st.tuples(st.integers(0, 1), st.one_of(st.floats(45.0, FOUND_W), st.floats())), max_size=12),
)
def test_any_sets_and_then_as_found(sets: list[tuple[int, float]], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Whatever is set, allowed or not, a release leaves the machine as found."""
    machine = Machine(tmp_path_factory.mktemp("law"))
    with machine.take(0, 1) as lease:
        for package, value in sets:
            try:
                lease.set(machine.address(package), value)
            except UsageError:
                assert not 45.0 <= value <= FOUND_W
            else:
                assert machine.limit_w(package) == pytest.approx(value, abs=0.5)
    assert (machine.limit_w(0), machine.limit_w(1)) == (FOUND_W, FOUND_W)
    assert repair(machine.state) == ()


def on_gpus(script: str, tmp_path: Path, *gpus: SimulatedGpu) -> list[str]:
    """What a process says that runs a script on simulated GPUs, whose limits are as found after that."""
    with SimulatedNvml(gpus) as nvml:
        found = nvml.settings
        addresses = [f"nvidia:{gpu.uuid}:{knob}" for gpu in gpus for knob in ("power-limit", "clock-limit")]
        with Holder(script, tmp_path / "state", addresses, environ=nvml.environ) as holder:
            said = holder.process.communicate(timeout=60)[0].splitlines()
        assert holder.process.returncode == 0
        assert nvml.settings == found
    assert repair(tmp_path / "state") == ()
    return said


def test_two_controls_of_a_gpu_are_one_lease(tmp_path: Path) -> None:
    """Clocks that were found unlocked may be locked to a supported clock, and unlocked; a second taker gets neither."""
    script = """
power, clock = addresses
with take() as lease:
    say(lease.found[power], lease.found[clock], len(held(home)))
    say(lease.set(power, 200.0), lease.set(clock, 1200.0), lease.set(clock, None), lease.set(clock, 900.0))
    for value in (905.0, 5000.0):
        try:
            lease.set(clock, value)
        except UsageError as error:
            say(error.got.partition(": ")[2])
    try:
        Lease.take([clock], owner="other", folder=home)
    except HeldError as error:
        say(error.got[:29])
    os.kill(held(home)[0].watchdog, signal.SIGKILL)
    say(lease.set(clock, 1050.0))  # another watchdog does not know of the lock from NVML
"""
    assert on_gpus(script, tmp_path, SimulatedGpu(uuid="GPU-7", limit_w=250.0)) == [
        "250.0 None 1",
        "200.0 1200.0 None 900.0",
        "the device takes only some values",
        "it is outside the device's range",
        "gpu:GPU-7 is held by child (p",
        "1050.0",
    ]


def test_clocks_are_unlocked_after_a_crash(tmp_path: Path) -> None:
    """A process that opens the GPU anew cannot see the lock that a killed one made, and takes it off all the same."""
    script = """
child = os.fork()
if not child:
    lease = take()
    lease.set(addresses[1], 900.0)
    os.kill(os.getpid(), signal.SIGSTOP)
os.waitpid(child, os.WUNTRACED)
os.kill(held(home)[0].watchdog, signal.SIGKILL)
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
say(*[one.outcome for one in repair(home)])
"""
    assert on_gpus(script, tmp_path, SimulatedGpu(uuid="GPU-7")) == ["restored untouched"]


def test_a_limit_that_does_not_take(tmp_path: Path) -> None:
    """A device that says yes and does nothing, or refuses, is told, and stays as found."""
    script = """
with take() as lease:
    for address in (addresses[0], addresses[2]):
        try:
            lease.set(address, 200.0)
        except NegawattError as error:
            say(type(error).__name__, error.got)
"""
    gpus = (SimulatedGpu(uuid="GPU-1", limit_ignored=True), SimulatedGpu(uuid="GPU-2", limit_error=NO_PERMISSION))
    assert on_gpus(script, tmp_path, *gpus) == [
        "HardwareError nvidia:GPU-1:power-limit was set to 200.0 and reads 400.0",
        "NeedsPrivilegeError this user may not change the power-limit of gpu:GPU-2",
    ]


def test_taking_a_hand(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who may write gets a lease; who may not, and has no guard, is told what an administrator types."""
    monkeypatch.setenv("NEGAWATT_STATE", str(machine.state))
    monkeypatch.setenv("NEGAWATT_GUARD", str(machine.state / "none.sock"))
    hand = take([machine.address()], owner="test")
    assert isinstance(hand, Lease)
    assert hand.set(machine.address(), 90.0) == 90.0
    hand.release()
    machine.file().chmod(0o444)
    with pytest.raises(NeedsPrivilegeError, match="negawatt guard"):
        take([machine.address()], owner="test")
    machine.file().chmod(0o644)
    assert machine.free()

"""Controls of AMD GPUs and processors set simulated hardware as they say, and refuse what they must."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from negawatt.core.errors import HardwareError, NeedsPrivilegeError, UsageError
from negawatt.hardware import controls
from negawatt.hardware.control import Control
from negawatt.hardware.controls import amd, cpufreq, found_controls, kernelfile, open_control, open_controls, rapl
from negawatt.testing.amdsmi import NO_PERMISSION, FakeAmdGpu, FakeAmdsmi
from negawatt.testing.control_contract import ControlContract
from negawatt.testing.cpufreq import SimulatedCpufreq
from negawatt.testing.load import Load
from negawatt.testing.powercap import SimulatedPowercap


class TestAmdPowerCap(ControlContract):
    """The power cap of an AMD GPU keeps the contract."""

    @pytest.fixture(autouse=True)
    def simulated(self) -> None:
        self.smi = FakeAmdsmi([FakeAmdGpu()])

    def make(self) -> Control:
        return amd.found(self.smi)[0]

    def reopen(self, address: str) -> Control:
        return amd.opened(address, self.smi)


class TestRaplLimit(ControlContract):
    """The limit of a processor package keeps the contract."""

    @pytest.fixture(autouse=True)
    def simulated(self, tmp_path: Path) -> None:
        self.powercap = SimulatedPowercap(root=tmp_path, packages=2, dram=True, psys=True, mmio=True)

    def make(self) -> Control:
        return rapl.found(self.powercap.root)[1]

    def reopen(self, address: str) -> Control:
        return open_control(address)


class TestCpuClockLimit(ControlContract):
    """The clock limit of the processors keeps the contract."""

    @pytest.fixture(autouse=True)
    def simulated(self, tmp_path: Path) -> None:
        self.cpufreq = SimulatedCpufreq(root=tmp_path / "cpufreq")

    def make(self) -> Control:
        return cpufreq.found(self.cpufreq.root)[0]

    def reopen(self, address: str) -> Control:
        return open_control(address)


# ---- AMD ----


def test_an_amd_gpu_draws_no_more_than_its_cap() -> None:
    """Watts are watts, whole ones; without a lowest cap of its own a third of the highest is the lowest on offer."""
    smi = FakeAmdsmi([FakeAmdGpu()])
    (cap,) = amd.found(smi)
    assert (cap.info.lowest, cap.info.highest, cap.info.scope) == (225.0, 750.0, "gpu:pci-0000:03:00.0")
    cap.write(300.0)
    smi.advance(10.0, 500.0)
    assert smi.gpus[0].energy_j == 3000.0
    assert cap.command(300.0) == "sudo amd-smi set --gpu 0000:03:00.0 --power-cap 300"


def test_amd_says_why_it_refuses() -> None:
    """No permission, a value out of range, a cap that is ignored, a lost GPU."""
    gpu = FakeAmdGpu(limit_error=NO_PERMISSION)
    smi = FakeAmdsmi([gpu])
    (cap,) = amd.found(smi)
    with pytest.raises(NeedsPrivilegeError, match=r"may not change.*\n.*\n.*sudo amd-smi"):
        cap.write(300.0)
    gpu.limit_error = ""
    with pytest.raises(HardwareError, match=r"refuses 800\.0 W"):
        cap.write(800.0)
    with pytest.raises(HardwareError, match="without a power cap"):
        cap.write(None)
    gpu.limit_ignored = True
    cap.write(300.0)
    assert cap.read() == 750.0
    gpu.lost = True
    with pytest.raises(HardwareError, match="cannot be asked"):
        cap.read()


def test_amd_gpus_with_several_users_or_unknown_units_are_left_alone() -> None:
    """Partitions share one cap, a second die has none, and a cap in other units is not guessed at."""
    partitions = [FakeAmdGpu(bdf=f"0000:03:00.{part}") for part in range(2)]
    odd = [FakeAmdGpu(bdf="0000:04:00.0", highest_w=0.0), FakeAmdGpu(bdf="0000:05:00.0", highest_w=750e-6)]
    here, refused = amd.look(FakeAmdsmi([*partitions, *odd, FakeAmdGpu(bdf="0000:06:00.0")]))
    assert [cap.info.address for cap in here] == ["amd:0000:06:00.0:power-limit"]
    assert [one.what for one in refused] == [f"amd {gpu.bdf}" for gpu in (*partitions, *odd)]
    reasons = ["2 partitions", "2 partitions", "cannot be asked", "gives 750 as the highest cap"]
    assert [reason in one.why for one, reason in zip(refused, reasons, strict=True)] == [True] * 4
    with pytest.raises(HardwareError, match="2 partitions"):
        amd.opened("amd:0000:03:00.1:power-limit", FakeAmdsmi(partitions))


def test_amd_addresses_are_checked() -> None:
    """What names no GPU is refused, and so is a GPU that is not there, or a machine without any."""
    smi = FakeAmdsmi([FakeAmdGpu()])
    with pytest.raises(HardwareError, match="names no power cap"):
        amd.opened("amd:0000:03:00.0:clock-limit", smi)
    with pytest.raises(HardwareError, match=r"there is no AMD GPU 0000:09:00\.0"):
        amd.opened("amd:0000:09:00.0:power-limit", smi)
    with pytest.raises(HardwareError, match="lists no GPU"):
        amd.look(FakeAmdsmi([]))
    with pytest.raises(HardwareError, match="AMD SMI cannot be used"):
        amd.look(FakeAmdsmi([], driver=False))


# ---- RAPL ----


def test_only_the_long_term_limit_of_packages_is_set(tmp_path: Path) -> None:
    """Sub-zones, the platform and the second listing of a package are left alone."""
    powercap = SimulatedPowercap(root=tmp_path, packages=2, dram=True, psys=True, mmio=True)
    infos = [control.info for control in rapl.found(powercap.root)]
    files = [tmp_path / f"intel-rapl:{n}" / "constraint_0_power_limit_uw" for n in range(2)]
    assert [info.address for info in infos] == [f"rapl:{file}" for file in files]
    assert [info.scope for info in infos] == ["cpu:0", "cpu:1"]
    assert (infos[0].lowest, infos[0].highest) == (45.0, 150.0)
    limit = rapl.found(powercap.root)[0]
    assert limit.command(95.0) == f"echo 95000000 | sudo tee {files[0]}"
    with pytest.raises(HardwareError, match="a power limit is a number"):
        limit.write(None)


def test_a_package_draws_no_more_than_its_limit(tmp_path: Path) -> None:
    """A limit in the tree holds from the moment it is written."""
    powercap = SimulatedPowercap(root=tmp_path, packages=2, psys=True, load=Load([(0.0, 120.0)]))
    limit = rapl.found(powercap.root)[0]
    powercap.advance(1.0)
    limit.write(80.0)
    powercap.advance(2.0)
    limit.write(125.0)
    powercap.advance(1.0)
    assert powercap.package_j == pytest.approx(2 * 480.0 - 2 * 40.0)
    powercap.write()
    counted = [int((tmp_path / f"intel-rapl:{n}" / "energy_uj").read_text()) * 1e-6 - 1 for n in range(3)]
    assert counted == pytest.approx([400.0, 480.0, 880.0 + 40.0])


def test_a_lowered_limit_cuts_a_slope_where_it_crosses(tmp_path: Path) -> None:
    """A load that rises from 50 to 100 W in 10 s, under 75 W, draws 50..75 for 5 s and 75 for the rest."""
    powercap = SimulatedPowercap(root=tmp_path, load=Load([(0.0, 50.0), (10.0, 100.0), (10.0, 60.0)]))
    rapl.found(powercap.root)[0].write(75.0)
    powercap.advance(12.0)
    assert powercap.package_j == pytest.approx(5 * 62.5 + 5 * 75.0 + 2 * 60.0)


def test_a_limit_that_is_switched_off_is_not_offered(tmp_path: Path) -> None:
    """The kernel shows a zone that the firmware has locked as not enabled."""
    powercap = SimulatedPowercap(root=tmp_path, packages=2)
    (tmp_path / "intel-rapl:1" / "enabled").write_text("0\n")
    here, off = rapl.look(powercap.root)
    assert [limit.info.scope for limit in here] == ["cpu:0"]
    assert [(one.what, "locked by the firmware" in one.why) for one in off] == [(f"rapl {tmp_path}/intel-rapl:1", True)]
    with pytest.raises(HardwareError, match="no power limit of a processor package"):
        rapl.found(tmp_path / "nothing")


def test_a_rapl_limit_that_may_not_be_written_or_does_not_take(tmp_path: Path) -> None:
    """No permission is said with the command; what the firmware ignores is read back as it is; what is gone is gone."""
    powercap = SimulatedPowercap(root=tmp_path / "tree", limit_ignored=True)
    (limit,) = rapl.found(powercap.root, read=powercap.read)
    limit.write(80.0)
    assert limit.read() == 125.0
    powercap.permit_limits(False)
    with pytest.raises(NeedsPrivilegeError, match=r"may not be written.*\n.*\n.*sudo tee"):
        limit.write(80.0)
    powercap.permit_limits(True)
    limit.write(90.0)
    address = limit.info.address
    powercap.vanish()
    with pytest.raises(HardwareError, match="No such file"):
        limit.write(80.0)
    with pytest.raises(HardwareError, match="no number in it"):
        rapl.opened(address)


# ---- cpufreq ----


def test_cores_of_one_kind_are_one_control(tmp_path: Path) -> None:
    """Fast and slow cores are set apart, each within the range of its kind; alike, all are "cpu"."""
    fast, slow = (800.0, 5000.0), (800.0, 3800.0)
    hybrid = SimulatedCpufreq(root=tmp_path / "cpufreq", ranges_mhz=[fast, fast, slow, slow, fast])
    first, second = cpufreq.found(hybrid.root)
    assert (first.info.scope, second.info.scope) == ("cpu/policy2-3", "cpu/policy0-1,4")
    second.write(2500.0)
    assert hybrid.limits == (2500.0, 2500.0, 3800.0, 3800.0, 2500.0)
    assert open_control(second.info.address).read() == 2500.0
    assert first.command(2000.0).count("scaling_max_freq") == 2
    alike = SimulatedCpufreq(root=tmp_path / "alike" / "cpufreq", available_mhz=(3600.0, 400.0, 800.0))
    (one,) = cpufreq.found(alike.root)
    assert (one.info.scope, one.info.values) == ("cpu", (800.0, 3600.0))
    assert one.command(2000.0) == f"echo 2000000 | sudo tee {alike.root}/policy*/scaling_max_freq"


def test_clocks_that_are_set_apart_are_left_alone(tmp_path: Path) -> None:
    """One number could not put them back."""
    apart = SimulatedCpufreq(root=tmp_path / "cpufreq", limits_mhz=[3600.0, 3600.0, 2000.0, 3600.0])
    with pytest.raises(HardwareError, match=r"set apart already \(2000, 3600 MHz\)"):
        cpufreq.found(apart.root)
    with pytest.raises(HardwareError, match="has no policies"):
        cpufreq.found(tmp_path)


def test_a_clock_limit_that_may_not_be_written(tmp_path: Path) -> None:
    """The error holds the command, and a half-written one reads as the highest of its policies."""
    tree = SimulatedCpufreq(root=tmp_path / "cpufreq")
    (limit,) = cpufreq.found(tree.root)
    tree.permit(False)
    with pytest.raises(NeedsPrivilegeError, match=r"may not be written.*\n.*\n.*sudo tee"):
        limit.write(2000.0)
    with pytest.raises(HardwareError, match="a highest clock is a number"):
        limit.write(None)
    tree.permit(True)
    (tree.root / "policy0" / "scaling_max_freq").write_text("1000000\n")
    assert limit.read() == 3600.0
    (tree.root / "policy0" / "scaling_max_freq").unlink()
    with pytest.raises(HardwareError, match="no number in it"):
        limit.read()


# ---- addresses ----


@pytest.mark.parametrize(
    "address",
    [
        "rapl:/etc/passwd",
        "rapl:/tmp/intel-rapl:0/../../etc/intel-rapl:0/constraint_0_power_limit_uw",
        "rapl:/sys/class/powercap/intel-rapl:0:0/constraint_0_power_limit_uw",
        "rapl:intel-rapl:0/constraint_0_power_limit_uw",
        "rapl:/x/intel-rapl:0/constraint_0_power_limit_uw\n",
        "cpufreq:/etc/passwd",
        "cpufreq:/x/cpufreq/policy0/../../etc",
        "cpufreq:/../cpufreq/policy0",
        "cpufreq:/x/cpufreq/policy5-3",
        "cpufreq:/x/cpufreq/policy0-99999999999",
    ],
)
def test_a_record_leads_to_no_other_file(address: str) -> None:
    """Only a well-formed path to a file of the right name is opened."""
    with pytest.raises(HardwareError, match="names no"):
        open_control(address)


def test_links_are_not_written_through(tmp_path: Path) -> None:
    """Root that restores from a forged record writes neither through a symbolic link nor to a second name of a file."""
    precious = tmp_path / "precious"
    precious.write_text("125000000\n")
    zone = tmp_path / "intel-rapl:0"
    zone.mkdir()
    file = zone / "constraint_0_power_limit_uw"
    for link, reason in ((file.symlink_to, "symbolic links"), (file.hardlink_to, "not a file of the kernel")):
        link(precious)
        with pytest.raises(HardwareError, match=reason):
            rapl.opened(f"rapl:{file}").write(80.0)
        file.unlink()
    assert precious.read_text() == "125000000\n"


def test_a_number_that_the_kernel_refuses_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that opens and then refuses is locked by the firmware; any other refusal is passed on."""
    powercap = SimulatedPowercap(root=tmp_path)
    (limit,) = rapl.found(powercap.root)
    for number, reason in ((13, "the firmware has locked it"), (22, "Invalid argument")):

        def refuse(*_: Any, number: int = number) -> int:
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(kernelfile.os, "write", refuse)
            with pytest.raises(HardwareError, match=reason):
                limit.write(80.0)
    assert limit.read() == 125.0


def test_addresses_of_no_kind_are_refused(tmp_path: Path) -> None:
    """The first word says which kind it is; several are opened at once."""
    with pytest.raises(UsageError, match="no control has the address"):
        open_control("fan:0")
    tree = SimulatedCpufreq(root=tmp_path / "cpufreq")
    address = cpufreq.found(tree.root)[0].info.address
    assert [control.info.address for control in open_controls([address, address])] == [address] * 2


def test_looking_for_everything_says_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each kind gives its controls or the reason why it has none, and what is there and cannot be set."""
    tree = SimulatedCpufreq(
        root=tmp_path / "cpufreq", ranges_mhz=[(1.0, 9.0), (1.0, 9.0), (1.0, 8.0)], limits_mhz=[9.0, 8.0, 8.0]
    )
    monkeypatch.setattr(controls, "_KINDS", ("rapl", "cpufreq"))
    monkeypatch.setattr(rapl.look, "__defaults__", (tmp_path / "none",))
    monkeypatch.setattr(cpufreq.look, "__defaults__", (tree.root,))
    here, absent = found_controls()
    assert [control.info.scope for control in here] == ["cpu/policy2"]
    assert [one.what for one in absent] == ["rapl", f"cpufreq {tree.root}/policy0-1"]

"""Host identity is read from files and never invented."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from negawatt.hardware.host import read_host, this_host


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_host_is_cached_and_usable() -> None:
    """The running host has a name, at least one CPU, and is read once."""
    host = this_host()
    assert host is this_host()
    assert host.name
    assert host.logical_cpus >= 1
    assert host.fingerprint()


def test_facts_come_from_the_system_files(tmp_path: Path) -> None:
    """Identity and processor name are what the system files say, stripped."""
    root = write(
        tmp_path,
        {
            "etc/machine-id": "abc123\n",
            "proc/sys/kernel/random/boot_id": "boot-1\n",
            "proc/cpuinfo": "processor : 0\nmodel : 85\nmodel name : Xeon 6248\n\nprocessor : 1\nmodel name : b\n",
        },
    )
    host = read_host(root, {})
    assert (host.machine_id, host.boot_id, host.cpu, host.virtual) == ("abc123", "boot-1", "Xeon 6248", "")


def test_missing_files_give_blanks(tmp_path: Path) -> None:
    """A system without /proc and /etc (macOS) gives blanks, not errors, and still names a processor."""
    host = read_host(tmp_path, {})
    assert (host.machine_id, host.boot_id, host.virtual) == ("", "", "")
    assert host.cpu


def test_arm_board_is_named(tmp_path: Path) -> None:
    """An ARM board's name is used, and a numeric x86 model is not."""
    root = write(tmp_path, {"proc/cpuinfo": "processor : 0\nCPU implementer : 0x41\n\nModel : Raspberry Pi 5\n"})
    assert read_host(root, {}).cpu == "Raspberry Pi 5"


def test_arm_server_is_described_by_its_numbers(tmp_path: Path) -> None:
    """A processor without a name is told apart by implementer and part."""
    root = write(tmp_path, {"proc/cpuinfo": "processor : 0\nCPU implementer : 0x41\nCPU part : 0xd0c\n"})
    assert read_host(root, {}).cpu.endswith("implementer 0x41 part 0xd0c")


@pytest.mark.parametrize(
    ("files", "environ", "virtual"),
    [
        ({".dockerenv": ""}, {}, "docker"),
        ({"run/.containerenv": ""}, {}, "podman"),
        ({}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({}, {"container": "lxc"}, "lxc"),
        ({"sys/class/dmi/id/sys_vendor": "QEMU\n"}, {}, "qemu"),
        ({"sys/class/dmi/id/sys_vendor": "Amazon EC2"}, {}, "amazon"),
        ({"sys/class/dmi/id/product_name": "Virtual Machine"}, {}, "hyper-v"),
        ({"sys/hypervisor/type": "xen\n"}, {}, "xen"),
        ({"proc/cpuinfo": "flags : fpu hypervisor sse\n"}, {}, "virtual machine"),
        ({".dockerenv": "", "sys/class/dmi/id/sys_vendor": "QEMU"}, {}, "docker in qemu"),
        ({"sys/class/dmi/id/sys_vendor": "Dell Inc."}, {}, ""),
    ],
)
def test_virtualisation_is_noticed(
    tmp_path: Path, files: dict[str, str], environ: dict[str, str], virtual: str
) -> None:
    """Containers and hypervisors are named, and a physical machine is not called virtual."""
    assert read_host(write(tmp_path, files), environ).virtual == virtual


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no CPU affinity on this system")
def test_cpus_are_those_this_process_may_use(tmp_path: Path) -> None:
    """A process pinned to one CPU counts one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert read_host(tmp_path, {}).logical_cpus == 1
    finally:
        os.sched_setaffinity(0, before)

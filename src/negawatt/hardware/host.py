"""Host identity: the facts that make two measurements comparable, read from files, without network or subprocess."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from negawatt.core.host import Host

_HYPERVISORS = {
    # Beginnings of /sys/class/dmi/id/{sys_vendor,product_name} of virtual machines, as systemd-detect-virt knows them.
    "qemu": "qemu",
    "kvm": "kvm",
    "rhev": "kvm",
    "openstack": "kvm",
    "amazon ec2": "amazon",
    "google compute engine": "google",
    "vmware": "vmware",
    "innotek": "virtualbox",
    "oracle corporation virtualbox": "virtualbox",
    "virtual machine": "hyper-v",
    "xen": "xen",
    "parallels": "parallels",
    "apple virtualization": "apple",
}


@cache
def this_host() -> Host:
    """The machine this process runs on; read once per process. Facts that the system does not give are ""."""
    return read_host(Path("/"), os.environ)


def read_host(root: Path, environ: Mapping[str, str]) -> Host:
    """The host described by the files under `root`, read anew.

    Args:
        root: the file system's root; another folder in tests.
        environ: environment variables, which give containers away.
    """
    cpuinfo = _cpuinfo(root)
    return Host(
        name=platform.node(),
        machine_id=_text(root / "etc/machine-id"),
        boot_id=_text(root / "proc/sys/kernel/random/boot_id"),
        system=f"{platform.system()} {platform.release()}",
        cpu=cpuinfo.get("model name") or cpuinfo.get("cpu model") or cpuinfo.get("model") or _processor(cpuinfo),
        logical_cpus=_logical_cpus(),
        memory_bytes=_memory_bytes(),
        virtual=" in ".join(part for part in (_container(root, environ), _hypervisor(root, cpuinfo)) if part),
    )


def _text(path: Path) -> str:
    """The stripped text of a small system file; "" where it does not exist or may not be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return ""


def _cpuinfo(root: Path) -> dict[str, str]:
    """The fields of /proc/cpuinfo, keys in lower case; of several processors the first counts."""
    fields: dict[str, str] = {}
    for line in _text(root / "proc/cpuinfo").splitlines():
        key, colon, value = line.partition(":")
        # "model" is a bare number on x86 and the board's name on ARM.
        if colon and not (key.strip() == "model" and value.strip().isdigit()):
            fields.setdefault(key.strip().lower(), value.strip())
    return fields


def _processor(cpuinfo: Mapping[str, str]) -> str:
    """A name for processors that /proc/cpuinfo describes by numbers only (ARM servers), or has no such file (macOS)."""
    implementer, part = cpuinfo.get("cpu implementer"), cpuinfo.get("cpu part")
    if implementer and part:
        return f"{platform.machine()} implementer {implementer} part {part}"
    return platform.processor() or platform.machine()


def _logical_cpus() -> int:
    """CPUs that this process may be scheduled on; all of them where the system has no affinity."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    """Physical memory [bytes]; 0 where the system does not say."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 0


def _container(root: Path, environ: Mapping[str, str]) -> str:
    """The container that was noticed, or ""."""
    if "KUBERNETES_SERVICE_HOST" in environ:
        return "kubernetes"
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    return environ.get("container", "") or _text(root / "run/systemd/container")


def _hypervisor(root: Path, cpuinfo: Mapping[str, str]) -> str:
    """The hypervisor that was noticed, or ""; "virtual machine" where only the processor flag gives it away."""
    vendor, product = (_text(root / "sys/class/dmi/id" / name).lower() for name in ("sys_vendor", "product_name"))
    for text in (vendor, product, f"{vendor} {product}"):
        for beginning, name in _HYPERVISORS.items():
            if text.startswith(beginning):
                return name
    if kind := _text(root / "sys/hypervisor/type"):
        return kind
    if "microsoft" in _text(root / "proc/sys/kernel/osrelease").lower():
        return "wsl"
    return "virtual machine" if "hypervisor" in cpuinfo.get("flags", "").split() else ""

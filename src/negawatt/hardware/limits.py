"""Limits: the part of the processors that a container, a control group or a Slurm job leaves to this process."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from negawatt.hardware.processes import host_cpus


@dataclass(frozen=True, slots=True, kw_only=True)
class CpuLimits:
    """What this process may use of the host's logical CPUs.

    Attributes:
        cpus: numbers of the CPUs it is confined to; empty: all.
        quota: CPU seconds per second; None: no limit.
        host_cpus: logical CPUs of the host.
    """

    cpus: frozenset[int]
    quota: float | None  # CPUs
    host_cpus: int


@cache
def this_process_limits() -> CpuLimits:
    """`cpu_limits()`, read once per process."""
    return cpu_limits()


def cpu_limits(root: Path = Path("/"), environ: Mapping[str, str] | None = None) -> CpuLimits:
    """The limits that others have set: those of control groups, and inside a Slurm job also the CPUs it is bound to.

    CPUs that the user chose (`taskset`) do not count: the rest of the machine is still theirs.

    Args:
        root: the file system's root; another folder in tests.
        environ: environment variables; None: those of this process.
    """
    environ = os.environ if environ is None else environ
    whole = host_cpus()
    cpus = _cpuset(root)
    if "SLURM_JOB_ID" in environ and hasattr(os, "sched_getaffinity"):
        cpus = frozenset(os.sched_getaffinity(0)) & (cpus or frozenset(range(whole)))
    return CpuLimits(
        cpus=cpus if len(cpus) < whole else frozenset(), quota=min(_quotas(root), default=None), host_cpus=whole
    )


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """The folder of this process's control group and of those around it, of version 2 and of version 1."""
    mount = root / "sys/fs/cgroup"
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            top = mount
        elif controller in controllers.split(","):
            top = mount / controllers if (mount / controllers).is_dir() else mount / controller
        else:
            continue
        group = top / path.lstrip("/")
        while group.is_relative_to(top):
            yield group
            group = group.parent


def _cpuset(root: Path) -> frozenset[int]:
    for group in _groups(root, "cpuset"):
        for name in ("cpuset.cpus.effective", "cpuset.effective_cpus"):
            if text := _text(group / name):
                return _numbers(text)
    return frozenset()


def _quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, "cpu"):
        quota, _, period = _text(group / "cpu.max").partition(" ")
        if not quota:
            quota, period = _text(group / "cpu.cfs_quota_us"), _text(group / "cpu.cfs_period_us")
        with suppress(ValueError, ZeroDivisionError):  # "max", or no such file
            if int(quota) > 0:
                yield int(quota) / int(period)


def _numbers(text: str) -> frozenset[int]:
    """The CPUs of a list like "0-3,8"."""
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return frozenset(found)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""

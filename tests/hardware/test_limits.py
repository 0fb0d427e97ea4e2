"""What containers, control groups and Slurm leave of a host's processors to a process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from negawatt.hardware import limits as limits_module
from negawatt.hardware.limits import cpu_limits


def tree(root: Path, **files: str) -> Path:
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


@pytest.fixture(autouse=True)
def _big_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "host_cpus", lambda: 64)


def test_no_limits_where_nothing_sets_any(tmp_path: Path) -> None:
    """Without control groups all CPUs are free to use."""
    limits = cpu_limits(tmp_path, {})
    assert (limits.cpus, limits.quota, limits.host_cpus) == (frozenset(), None, 64)


def test_version_2_limits_are_the_tightest_on_the_way_up(tmp_path: Path) -> None:
    """A pod's quota holds for its containers, too."""
    root = tree(tmp_path, proc__self__cgroup="0::/pod/box")
    group = root / "sys/fs/cgroup"
    (group / "pod/box").mkdir(parents=True)
    (group / "pod/box/cpu.max").write_text("max 100000\n")
    (group / "pod/cpu.max").write_text("250000 100000\n")
    (group / "pod/box/cpuset.cpus.effective").write_text("0-3,8\n")
    limits = cpu_limits(root, {})
    assert (limits.cpus, limits.quota) == (frozenset({0, 1, 2, 3, 8}), 2.5)


def test_version_1_limits_are_read(tmp_path: Path) -> None:
    """The older control groups have a folder per controller."""
    root = tree(tmp_path, proc__self__cgroup="4:cpuset:/job\n3:cpu,cpuacct:/job")
    for folder in ("cpuset/job", "cpu,cpuacct/job"):
        (root / "sys/fs/cgroup" / folder).mkdir(parents=True)
    (root / "sys/fs/cgroup/cpuset/job/cpuset.effective_cpus").write_text("4-7\n")
    (root / "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_quota_us").write_text("-1\n")
    (root / "sys/fs/cgroup/cpu,cpuacct/job/cpu.cfs_period_us").write_text("100000\n")
    limits = cpu_limits(root, {})
    assert (limits.cpus, limits.quota) == (frozenset({4, 5, 6, 7}), None)


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="this system has no CPU affinity")
def test_slurm_binds_and_the_user_does_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a Slurm job the CPUs it is bound to are its limit; the same binding by `taskset` is none."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {5, 6})
    assert cpu_limits(tmp_path, {"SLURM_JOB_ID": "1"}).cpus == frozenset({5, 6})
    assert cpu_limits(tmp_path, {}).cpus == frozenset()


def test_a_cpuset_of_all_cpus_is_no_limit(tmp_path: Path) -> None:
    """The root group lists every CPU of the host."""
    root = tree(tmp_path, proc__self__cgroup="0::/", **{"sys__fs__cgroup__cpuset.cpus.effective": "0-63"})
    assert cpu_limits(root, {}).cpus == frozenset()

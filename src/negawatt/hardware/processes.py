"""Processes: CPU time of the host and of one process with its descendants, and whether a process still lives."""

from __future__ import annotations

import os
import sys
from functools import cache
from pathlib import Path

_LINUX = sys.platform == "linux"


@cache
def _tick_s() -> float:
    return 1 / os.sysconf("SC_CLK_TCK")


@cache
def _proc_stat() -> int:
    """/proc/stat, kept open: it is read at every edge of every window."""
    return os.open("/proc/stat", os.O_RDONLY | os.O_CLOEXEC)


def busy_s() -> float:
    """CPU time that the host's processors have worked since boot, all logical CPUs together [s].

    Time stolen by a hypervisor is not ours, and waiting for disks is no work. Raises OSError if it is not told.
    """
    if _LINUX:
        try:
            fields = os.pread(_proc_stat(), 512, 0).split(maxsplit=9)
        except OSError:
            fields = [b""]
        if fields[:1] != [b"cpu"]:  # a program that became a daemon closed it, and its number may be another file's now
            _proc_stat.cache_clear()
            fields = os.pread(_proc_stat(), 512, 0).split(maxsplit=9)
        # cpu user nice system idle iowait irq softirq: guest time is inside user and nice.
        return (int(fields[1]) + int(fields[2]) + int(fields[3]) + int(fields[6]) + int(fields[7])) * _tick_s()
    import psutil

    times = psutil.cpu_times()
    return float(sum(getattr(times, name, 0.0) for name in ("user", "nice", "system", "irq", "softirq")))


def host_cpus() -> int:
    """Logical CPUs that `busy_s` counts. Not `os.cpu_count()`, which PYTHON_CPU_COUNT or musl's affinity may lower."""
    if _LINUX:
        try:
            lines = Path("/proc/stat").read_bytes().splitlines()
            return sum(line.startswith(b"cpu") for line in lines) - 1 or 1
        except OSError:
            pass
    return os.cpu_count() or 1


def born(pid: int) -> float | None:
    """When a process began, on a clock of the system's own; with the pid it names a process for good. None: gone."""
    if _LINUX:
        fields = _stat(pid)
        return None if fields is None or fields[0] in (b"Z", b"X") else float(fields[19])
    import psutil

    try:
        return float(psutil.Process(pid).create_time())
    except psutil.Error:
        return None


def ancestors(pid: int) -> list[int]:
    """The process that started a process, the one that started that, and so on."""
    found: list[int] = []
    if not _LINUX:
        import psutil

        try:
            return [parent.pid for parent in psutil.Process(pid).parents()]
        except psutil.Error:
            return found
    while (fields := _stat(pid)) is not None and (pid := int(fields[1])) > 0:
        found.append(pid)
    return found


def tree_cpu_s(pid: int) -> float:
    """CPU time of a process, its descendants, and those of them that ended and were waited for [s]; 0.0 if it is gone.

    May fall when a descendant outlives the process between them: callers clamp differences at 0.
    """
    if _LINUX:
        return _linux_tree_cpu_s(pid)
    import psutil

    total_s = 0.0
    try:
        family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0.0
    for process in family:
        try:
            times = process.cpu_times()
        except psutil.Error:  # it ended a moment ago; its parent has its time now
            continue
        total_s += sum(getattr(times, name, 0.0) for name in ("user", "system", "children_user", "children_system"))
    return total_s


def _linux_tree_cpu_s(pid: int) -> float:
    ticks, pending = 0, [pid]
    while pending:
        one = pending.pop()
        fields = _stat(one)
        if fields is None:
            continue
        ticks += sum(int(field) for field in fields[11:15])  # utime stime cutime cstime
        pending += _children(one)
    return ticks * _tick_s()


def _stat(pid: int) -> list[bytes] | None:
    """The fields of /proc/PID/stat behind the name (the third is the first here); None if the process is gone."""
    try:
        return _head(f"/proc/{pid}/stat").rpartition(b")")[2].split()
    except OSError:
        return None


def _children(pid: int) -> list[int]:
    found: list[int] = []
    try:
        threads = os.listdir(f"/proc/{pid}/task")  # noqa: PTH208 -- three times as fast as Path.iterdir
        for thread in threads:
            found += map(int, _head(f"/proc/{pid}/task/{thread}/children").split())
    except OSError:  # it ended, or a kernel without CONFIG_PROC_CHILDREN: its own time still counts
        return found
    return found


def _head(path: str) -> bytes:
    """A small file of the kernel's; a process may have hundreds, and `open` takes twice as long. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(fd, 65536)
    finally:
        os.close(fd)

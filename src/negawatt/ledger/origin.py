"""Origin: which process of which boot of which machine wrote a record, and the numbers it gives to its records.

(machine, boot, sequence) is the identity of a record. A spool that is merged twice, or copied and merged in two places,
gives the same identities, so no joule is counted twice.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """A process as the writer of records.

    Attributes:
        host: name of the machine.
        machine_id: identity of the operating-system installation; the host's name where the system gives none.
        boot_id: identity of the boot.
        pid: number of the process.
        start: when it started, in the system's own unit: tells it from a later process of the same number.
        token: a random word: tells it from a process of the same number and start in another container.
    """

    host: str
    machine_id: str
    boot_id: str
    pid: int
    start: str
    token: str

    @property
    def process(self) -> str:
        """Its identity within the boot."""
        return f"{self.pid}-{self.start}-{self.token}"


_own: tuple[Origin, itertools.count[int]] | None = None


def this_process() -> Origin:
    """The process that asks; found out once per process, and anew after a fork."""
    return _current()[0]


def next_sequence() -> str:
    """An identity for one more record of this process."""
    origin, numbers = _current()
    return f"{origin.process}-{next(numbers)}"


def running(pid: int, start: str) -> bool:
    """Whether the process of that number and start is alive, as far as can be seen from here."""
    return _start(pid) == start


def _current() -> tuple[Origin, itertools.count[int]]:
    global _own  # noqa: PLW0603 -- one per process
    if _own is None or _own[0].pid != os.getpid():
        import platform

        host = platform.node()
        pid = os.getpid()
        origin = Origin(
            host=host,
            machine_id=_text("/etc/machine-id") or host,
            boot_id=_text("/proc/sys/kernel/random/boot_id") or _boot_time(),
            pid=pid,
            start=_start(pid),
            token=os.urandom(4).hex(),
        )
        _own = origin, itertools.count(1)
    return _own


def _text(path: str) -> str:
    """The text of a small system file; "" where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip("\0 \n\t")
    except OSError:
        return ""


def _boot_time() -> str:
    """A substitute for the boot's identity where the system has none (macOS): when it was, in whole seconds."""
    import psutil

    return str(int(psutil.boot_time()))


def _start(pid: int) -> str:
    """When a process started: clock ticks since boot, field 22 of /proc/PID/stat (proc(5)); "" if there is none.

    Where there is no /proc, seconds of the system's clock.
    """
    if Path("/proc/self/stat").exists():
        _, _, fields = _text(f"/proc/{pid}/stat").rpartition(")")  # the name before it may hold spaces and brackets
        return fields.split()[19] if fields else ""
    import psutil

    try:
        return str(int(psutil.Process(pid).create_time()))
    except psutil.Error:
        return ""

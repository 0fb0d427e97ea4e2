"""Records: what the controls of a device were like before somebody changed them, so that anybody can put them back.

One file and one lock per device, in a folder of this user's own. Whoever has the lock may change the device and its
record; the kernel takes the lock back when the last process that has it ends. A record without anybody who has the
lock is an orphan, which `repair` puts right.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from urllib.parse import quote

from negawatt.core.codec import from_json, to_json
from negawatt.core.errors import HardwareError, NegawattError, UsageError
from negawatt.hardware.control import Value
from negawatt.hardware.processes import born

FORMAT = 1

_locks: set[int] = set()
"""Open files of locks, which a forked child must not keep."""


class Touched(StrEnum):
    """How far a control was changed under a lease."""

    NO = "no"
    WRITING = "writing"
    """a write was begun, and it is not known what came of it"""
    WRITTEN = "written"


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One control of a record.

    Attributes:
        address: of the control.
        found: how it was found.
        value: what it was set to last, as read back; while `touched` is "writing", what it is being set to.
        step: two values this close are the same.
        touched: how far it was changed.
        command: what an administrator types to put it back as found.
    """

    address: str
    found: Value
    value: Value
    step: float  # in the unit of the control
    command: str
    touched: Touched = Touched.NO


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """Who has changed a device, and what it was like before.

    Attributes:
        scope: of the device.
        owner: what the holder calls itself.
        pid: of the holder.
        born: of the holder, as `processes.born` tells it; with the pid it names the process for good.
        watchdog: pid of its watchdog; 0: not up yet.
        watchdog_born: as `born`.
        boot_id: of the system when it was taken: a device forgets its limits when the machine starts anew.
        since_utc: when it was taken, ISO 8601; for people only.
        controls: those of the device that are held.
        format: of the file.
    """

    scope: str
    owner: str
    pid: int
    born: float  # in ticks since boot
    boot_id: str
    since_utc: str
    controls: tuple[Kept, ...]
    watchdog: int = 0
    watchdog_born: float = 0.0  # in ticks since boot
    format: int = FORMAT

    @property
    def held(self) -> bool:
        """Whether its holder lives."""
        return born(self.pid) == self.born

    @property
    def watched(self) -> bool:
        """Whether its watchdog lives."""
        return self.watchdog != 0 and born(self.watchdog) == self.watchdog_born

    @property
    def holder(self) -> str:
        """Who has it, in words."""
        return f"{self.owner} (process {self.pid}, since {self.since_utc})"


def same(one: Value, other: Value, step: float) -> bool:
    """Whether two values of a control are equal, up to what it rounds."""
    if one is None or other is None:
        return one is other
    return abs(one - other) <= step + 1e-9 * max(1.0, abs(one))


def orphaned(record: Record) -> Record:
    """A record of a lease that is over, with something left to put back."""
    return replace(record, born=0.0, watchdog=0)


def boot_id() -> str:
    """Names the system's present run, from one start to the next; "" where it does not tell."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""


def state_folder(folder: Path | None = None, *, make: bool = True) -> Path:
    """The folder of records: the one given, else $NEGAWATT_STATE, /run/negawatt for root, one in /var/tmp for others.

    Args:
        folder: the caller's choice.
        make: whether to make it where there is none.

    Raises:
        UsageError: if others can write it: a forged record would steer what is written to the hardware.
    """
    home = folder or _default_folder()
    try:
        home = home.absolute()
        if make:
            # The guard's socket is in root's, so that others must get there.
            home.mkdir(mode=0o755 if os.geteuid() == 0 else 0o700, parents=True, exist_ok=True)
        elif not home.exists():
            return home
        _check(home)
    except OSError as error:
        raise _unusable(home, error.strerror or str(error)) from error
    return home


def _default_folder() -> Path:
    named = os.environ.get("NEGAWATT_STATE")
    if named:
        return Path(named)
    # Not in a home, which several hosts may share, nor in shared memory, which is emptied when the user logs out.
    return Path("/run/negawatt") if os.geteuid() == 0 else Path(f"/var/tmp/negawatt-{os.geteuid()}")  # noqa: S108


def _check(home: Path) -> None:
    """Refuse a folder that is a link, somebody else's, or open to others, here or on the way to it."""
    found = home.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise _unusable(home, "it is no folder")
    if found.st_uid != os.geteuid():
        raise _unusable(home, f"it belongs to user {found.st_uid}")
    if found.st_mode & 0o022:
        raise _unusable(home, "others may write to it")
    for above in home.resolve().parents:
        found = above.stat()
        if found.st_uid not in (0, os.geteuid()):
            raise _unusable(home, f"{above} belongs to user {found.st_uid}, who could replace it")
        if found.st_mode & 0o022 and not found.st_mode & stat.S_ISVTX:
            raise _unusable(home, f"others may write to {above}, and so replace it")


def _unusable(home: Path, reason: str) -> UsageError:
    return UsageError(
        f"{home} cannot keep what the hardware was like: {reason}",
        "after a crash its settings are put back from there, so nobody else may write to it",
        "name a folder that is yours alone: NEGAWATT_STATE=PATH",
    )


def lock(home: Path, scope: str) -> int | None:
    """Take the lock of a device: an open file that has it, or None if somebody else has it.

    Raises:
        HardwareError: if the folder cannot be used.
    """
    import fcntl

    try:
        fd = os.open(_file(home, scope, "lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise _failed(home, error) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError as error:
        os.close(fd)
        raise _failed(home, error) from error
    _locks.add(fd)
    return fd


def holds(home: Path, scope: str, fd: int) -> bool:
    """Whether an open file has the lock of a device, or can have it anew; False if it was closed or lost to others."""
    import fcntl

    try:
        if not os.path.samestat(os.fstat(fd), _file(home, scope, "lock").stat()):
            return False
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # closed by somebody who closes every file, or taken by another process
        return False
    return True


def unlock(fd: int) -> None:
    """Give a lock back, also if other processes have copies of the open file."""
    import fcntl

    fcntl.flock(fd, fcntl.LOCK_UN)
    let_go(fd)


def let_go(fd: int) -> None:
    """Close the open file of a lock, which others that have a copy of it keep."""
    _locks.discard(fd)
    with suppress(OSError):  # closed by somebody who closes every file
        os.close(fd)


def _close_in_child() -> None:
    while _locks:
        os.close(_locks.pop())  # not unlocked, which would be for the parent, too


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_in_child)


def save(home: Path, record: Record) -> None:
    """Keep a record, whole or not at all, on the disk when this returns. Raises HardwareError if that fails."""
    path, part = _file(home, record.scope, "json"), _file(home, record.scope, "part")
    try:
        fd = os.open(part, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            data = json.dumps(to_json(record)).encode()
            if os.write(fd, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(fd)
        finally:
            os.close(fd)
        part.replace(path)
        _sync(home)
    except OSError as error:
        raise _failed(home, error) from error


def load(home: Path, scope: str) -> Record | None:
    """The record of a device; None if there is none. Raises HardwareError if it cannot be understood."""
    path = _file(home, scope, "json")
    try:
        return from_json(Record, json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, NegawattError) as error:
        reason = error.got if isinstance(error, NegawattError) else str(error)
        raise HardwareError(
            f"{path} cannot be understood: {reason}",
            "it says what the hardware was like before it was changed",
            f"see that {scope} is set as it should be, then `rm {path}`",
        ) from error


def remove(home: Path, scope: str) -> None:
    """Drop the record of a device. Raises HardwareError if that fails."""
    try:
        _file(home, scope, "json").unlink(missing_ok=True)
        _sync(home)
    except OSError as error:
        raise _failed(home, error) from error


def scopes(home: Path) -> Iterator[str]:
    """The devices that have a record, by their files' names."""
    from urllib.parse import unquote

    for path in sorted(home.glob("*.json")):
        yield unquote(path.stem)


def _file(home: Path, scope: str, kind: str) -> Path:
    return home / f"{quote(scope, safe='')}.{kind}"


def _sync(home: Path) -> None:
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _failed(home: Path, error: OSError) -> HardwareError:
    return HardwareError(
        f"{home}: {error.strerror or error}",
        "what the hardware was like cannot be kept there, so it is not changed",
        "free space there, or name another folder: NEGAWATT_STATE=PATH",
    )

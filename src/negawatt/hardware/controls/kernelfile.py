"""Files of the kernel that hold one number: how controls read and write them, and which ones they refuse to write."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from negawatt.core.errors import HardwareError, NeedsPrivilegeError

_PAGE = 4096
"""The kernel shows its files with this length."""


def text_of(file: Path) -> str:
    """The text of a file without white space around it; "" if it cannot be read."""
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def number_of(text: str) -> int | None:
    """The whole number that a text is; None if it is none."""
    return int(text) if text.isascii() and text.isdigit() else None


def write_number(file: Path, number: int, command: str) -> None:
    """Write a number into an existing file.

    The path may come from the record of another process, and be written by root. So it is never made, and neither
    followed if it is a symbolic link nor written if it has a second name: then it is no file of the kernel.

    Args:
        file: its path.
        number: what to write.
        command: what an administrator types instead.

    Raises:
        NeedsPrivilegeError: if this user may not write it.
        HardwareError: if it is no such file, is gone, or the kernel refuses the number.
    """
    try:
        handle = os.open(file, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except PermissionError as error:
        raise _not_permitted(file, command) from error
    except OSError as error:
        raise refused(file, error.strerror or str(error)) from error
    try:
        before = os.fstat(handle)
        if not stat.S_ISREG(before.st_mode) or before.st_nlink != 1:
            raise refused(file, "it is not a file of the kernel")
        if not before.st_mode & 0o222:  # which the kernel refuses to root, too
            raise _not_permitted(file, command)
        written = os.write(handle, f"{number}\n".encode())
        if written < before.st_size < _PAGE:  # only a simulator's file keeps what it held before
            os.ftruncate(handle, written)
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno == errno.EACCES:  # it could be opened, so it is not this user who is refused
            reason = "the firmware has locked it"
        raise refused(file, reason) from error
    finally:
        os.close(handle)


def refused(file: Path, reason: str) -> HardwareError:
    """The error of a file that cannot be read or written."""
    return HardwareError(
        f"{file}: {reason}",
        "what is set there is unknown or cannot be changed",
        f"look at it with `cat {file}`; where the firmware locks it, its setup has a switch",
    )


def _not_permitted(file: Path, command: str) -> NeedsPrivilegeError:
    return NeedsPrivilegeError(f"{file} may not be written by this user", "it stays as it is", f"type `{command}`")

"""Unit: the systemd service that runs the guard, made to fit this host."""

from __future__ import annotations

import os
import stat
import sys
from importlib.resources import files
from pathlib import Path

AMDGPU = Path("/sys/bus/pci/drivers/amdgpu")


def unit_text(python: str | None = None, amdgpu: Path = AMDGPU) -> str:
    """The unit file.

    Args:
        python: the interpreter that has negawatt; None: this one.
        amdgpu: the driver's folder, whose links lead to its GPUs: their power caps are files in there.
    """
    gpus = sorted(str(link.resolve()) for link in amdgpu.glob("*:*:*.*"))
    text = files(__package__).joinpath("negawatt-guard.service").read_text(encoding="utf-8")
    return text.format(python=python or sys.executable, gpus="".join(f" -{gpu}" for gpu in gpus))


def unsafe_paths(python: str | None = None) -> tuple[str, ...]:
    """What root would run code from though somebody else may write it, or could not see from inside the service."""
    faults = []
    for start in (Path(python or sys.executable), Path(str(files("negawatt")))):
        for path in (start, *start.parents, start.resolve(), *start.resolve().parents):
            found = path.stat()
            others = stat.S_IWGRP | stat.S_IWOTH if not found.st_mode & stat.S_ISVTX else 0
            if found.st_uid != 0 or found.st_mode & others:
                faults.append(f"{path} may be written by others than root")
        if any(start.resolve().is_relative_to(home) for home in ("/home", "/root", f"/run/user/{os.getuid()}")):
            faults.append(f"{start} is in a home folder, which the service cannot see")
    return tuple(dict.fromkeys(faults))

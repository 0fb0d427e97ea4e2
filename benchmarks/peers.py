"""Environments of the peers: their pins clash with each other's, so each has its own, made when it is first needed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-peers"


def python_of(name: str, *requirements: str, no_deps: tuple[str, ...] = ()) -> Path:
    """The interpreter of an environment that holds some packages.

    Args:
        name: of the environment.
        requirements: what pip installs; "-e ROOT" installs negawatt itself.
        no_deps: what pip installs without dependencies.

    Raises:
        subprocess.CalledProcessError: if pip fails; its output is on stderr.
    """
    wanted = hashlib.sha256(repr((requirements, no_deps, sys.version)).encode()).hexdigest()
    folder, stamp = FOLDER / name, FOLDER / name / ".wanted"
    python = folder / "bin" / "python"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == wanted:
        return python
    venv.create(folder, with_pip=True, clear=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in ([*pip, *requirements], [*pip, "--no-deps", *no_deps]):
        if command[-1] not in ("--no-deps", pip[-1]):
            subprocess.run(command, check=True, stdout=sys.stderr)
    stamp.write_text(wanted, encoding="utf-8")
    return python

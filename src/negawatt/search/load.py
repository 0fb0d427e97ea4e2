"""Load: from what the user points at, a Python file or a `negawatt.toml`, to a Workload."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

from negawatt.core.errors import UsageError
from negawatt.core.workload import Workload


def load(path: Path) -> Workload:
    """The workload of a Python file (its module-level `workload`) or of a TOML file with shell commands.

    Raises:
        UsageError: if the file is not there, is neither, or holds no workload.
    """
    if path.is_dir():
        path = path / "negawatt.toml"
    if not path.is_file():
        raise UsageError(
            f"no file {path}",
            "a workload is a Python file or a negawatt.toml",
            "give the path of one; `examples/` of the repository has three",
        )
    if path.suffix == ".toml":
        from negawatt.search.command import read_toml

        return Workload.of(read_toml(path))
    if path.suffix == ".py":
        return Workload.of(_python_target(path))
    raise UsageError(
        f"{path} ends in {path.suffix!r}",
        "a workload is a Python file (.py) or shell commands in a TOML file (.toml)",
        "for a program in another language, write a negawatt.toml with its command",
    )


def _python_target(path: Path) -> object:
    """The object `workload` of a Python file, which is run as a module of its own with its folder importable."""
    name = f"negawatt_workload_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported", "it is no Python source file", "give a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    spec.loader.exec_module(module)
    if not hasattr(module, "workload"):
        raise UsageError(
            f"{path} has no name `workload`",
            "negawatt looks for the object that says what to run there",
            "end the file with e.g. `workload = MyWorkload()`; CONTRIBUTING.md shows a whole one",
        )
    return module.workload

"""AMD SMI, the AMD driver's library, loaded."""

from __future__ import annotations

import contextlib
import importlib
import io
from typing import Any

from negawatt.core.errors import NegawattError


def import_amdsmi(failure: type[NegawattError]) -> Any:  # noqa: ANN401 -- a module
    """The module `amdsmi`. Raises `failure` if it cannot be imported."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):  # it prints where it looked for its library
            return importlib.import_module("amdsmi")
    except Exception as error:  # without its library it raises whatever comes next: KeyError, OSError, AttributeError
        raise failure(
            f"the package amdsmi cannot be imported ({type(error).__name__}: {one_line(error)})",
            "it is how AMD GPUs are read and set, and its version has to fit the installed ROCm",
            "on a machine with an AMD GPU and ROCm 7.0, type `pip install 'amdsmi==7.0.*'`",
        ) from error


def one_line(error: object) -> str:
    """AMD SMI's messages hold line breaks."""
    return " ".join(str(error).split())

"""Importing negawatt is cheap: nothing heavy, nothing of the network."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {"torch", "numba", "pandas", "numpy", "scipy", "sklearn", "onnxruntime"}
NETWORK = {"socket", "ssl", "http", "urllib.request", "asyncio", "requests"}
PROGRAM = """
import json, sys
before = set(sys.modules)
{code}
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def modules_after(code: str) -> set[str]:
    """Modules that a fresh interpreter has loaded on account of some code."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(code=code)], capture_output=True, text=True, timeout=60, check=True
    )
    return set(json.loads(done.stdout))


def test_import_loads_nothing_heavy() -> None:
    """`import negawatt` loads no numerical library, no network module and none of its own packages."""
    loaded = modules_after("import negawatt")
    assert not loaded & (HEAVY | NETWORK | {"psutil", "pynvml", "click", "rich"})
    assert {name for name in loaded if name.startswith("negawatt.")} == set()


@pytest.mark.parametrize(
    "code",
    [
        "import negawatt\nfor name in negawatt.__all__: getattr(negawatt, name)",
        "import negawatt.testing",
    ],
)
def test_public_names_load_nothing_heavy(code: str) -> None:
    """Neither the public names nor the test kit load a numerical library, a driver binding or pytest."""
    assert not modules_after(code) & (HEAVY | {"pynvml", "pytest", "psutil"})


def test_metering_loads_nothing_heavy() -> None:
    """Metering a block loads only what its sensors need."""
    assert not modules_after("import negawatt\nwith negawatt.meter('x') as m: pass\nm.energy_j") & HEAVY


def test_an_unknown_name_is_an_attribute_error() -> None:
    """A name that negawatt does not have is refused as Python does."""
    import negawatt

    with pytest.raises(AttributeError, match="no attribute 'gigawatt'"):
        _ = negawatt.gigawatt

"""The programs in docs/integrations.md that need a library run as they stand: blocks marked `py`, not `python`."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "integrations.md"
BLOCKS = re.findall(r"^```py\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.mark.slow
@pytest.mark.parametrize("text", BLOCKS, ids=["pytorch", "lightning", "transformers"])
def test_the_block_runs_and_is_recorded(script, records, text: str) -> None:
    """A block copied into a file works, and leaves one run with joules in the ledger."""
    missing = [name for name in re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE) if not find_spec(name)]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: see the extra `integrations`")
    done = script(text)
    assert done.returncode == 0, done.stderr
    (record,) = records()
    assert record["energy_j"] > 0
    assert record["work"]

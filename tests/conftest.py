"""Puts this folder on the path, for `strategies`, sets hypothesis up, and keeps tests apart from this host's runs."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

# No deadline: machines that run tests are shared. The same examples every time: a failure can be repeated.
settings.register_profile(
    "negawatt", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("negawatt")


@pytest.fixture(autouse=True)
def _board_of_its_own(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs metered by a test share no joules with whatever else is metered on this host."""
    monkeypatch.setenv("NEGAWATT_BOARD", str(tmp_path_factory.mktemp("board")))

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
def _apart_from_this_host(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test meters shares no joules with other runs on this host, and is in no ledger of its user."""
    folder = tmp_path_factory.mktemp("apart")
    monkeypatch.setenv("NEGAWATT_BOARD", str(folder / "board"))
    monkeypatch.setenv("NEGAWATT_LEDGER", str(folder / "ledger.sqlite"))
    monkeypatch.setenv("NEGAWATT_STATE", str(folder / "state"))
    monkeypatch.setenv("NEGAWATT_GUARD", str(folder / "guard.sock"))
    monkeypatch.setenv("NEGAWATT_CALIBRATION", str(folder / "calibration.json"))

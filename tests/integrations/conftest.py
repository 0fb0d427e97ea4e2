"""A sensor with known joules, a ledger of each test's own, and scripts that die."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from negawatt.core import registry
from negawatt.ledger.spool import shared_spool
from negawatt.ledger.store import Ledger
from negawatt.metering.run import shared_meter
from negawatt.testing import ManualClock, ScriptedSensor

FAILS_AT_S = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[ManualClock]:
    """The only registered sensor draws 10 W on this clock; from 1000 s on it fails."""
    clock = ManualClock()
    sensor = ScriptedSensor(script=[(0.0, 10.0)], clock=clock, fails_at_s=FAILS_AT_S)
    monkeypatch.setattr(registry, "sensors", lambda: registry.Found(members={"scripted": sensor}, broken=()))
    shared_meter.cache_clear()
    yield clock
    shared_meter.cache_clear()


@pytest.fixture
def no_sensor(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host without any sensor."""
    monkeypatch.setattr(registry, "sensors", lambda: registry.Found(members={}, broken=()))
    shared_meter.cache_clear()
    yield
    shared_meter.cache_clear()


@pytest.fixture(autouse=True)
def records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[dict[str, Any]]]:
    """The bodies of this test's ledger."""
    path = tmp_path / "ledger.sqlite"
    monkeypatch.setenv("NEGAWATT_LEDGER", str(path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))

    def read() -> list[dict[str, Any]]:
        shared_spool().flush()
        with Ledger.open(path) as ledger:
            ledger.merge()
            return [{**record.body, "energy_j": record.energy_j} for record in ledger.records(kind="run")]

    return read


HASTE = """
import negawatt.ledger.spool, negawatt.metering.run
negawatt.ledger.spool.FLUSH_S = negawatt.metering.run.FIRST_PULSE_S = 0.1
"""


@pytest.fixture
def script(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a program that writes into this test's ledger, with little time between checkpoints."""

    def run(text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", HASTE + textwrap.dedent(text)],
            cwd=tmp_path,
            env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run

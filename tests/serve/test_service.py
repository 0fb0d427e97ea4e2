"""Service: what it counts, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from negawatt.core.errors import SensorError
from negawatt.core.reading import Source
from negawatt.core.serving import AUDIT, Cost, Outcome, Served, ServingOptions
from negawatt.metering.run import LiveRun
from negawatt.metering.session import Meter
from negawatt.serve import service
from negawatt.testing import ManualClock, ScriptedSensor


def row(path: str, outcome: Outcome) -> Served:
    return Served(
        id="a", at_s=0.0, time_s=0.1, path=path, model="", status=200, outcome=outcome, tokens_in=3, tokens_out=4,
        shared=1, cost=Cost(energy_j=1.0, energy_sd_j=0.1, source=Source.COUNTER, carbon_g=None),
    )  # fmt: skip


def test_an_audit_is_not_in_the_summary():
    """Nobody asked for it; of the others, tokens and times of those that were answered count."""
    tally = service._Tally()
    tally([row("/x", Outcome.ANSWERED), row("/x", Outcome.FAILED), row(AUDIT, Outcome.ANSWERED)])
    assert tally.outcomes == {Outcome.ANSWERED: 1, Outcome.FAILED: 1}
    assert (tally.tokens_in, tally.tokens_out, tally.out_j) == (3, 4, 1.0)


def test_a_meter_that_fails_at_once_leaves_nothing_behind():
    """The run is ended, and no thread goes on."""
    clock = ManualClock()
    meter = Meter.of([ScriptedSensor(script=[(0.0, 1.0)], clock=clock, fails_at_s=1.0)], clock=clock)
    live = LiveRun("gateway", meter=meter)
    clock.advance(2.0)
    options = ServingOptions(upstreams=("http://127.0.0.1:9",))
    with socket.socket() as sock, pytest.raises(SensorError, match="fails from"):
        asyncio.run(service.run(options, service.How(), live, sock, print))
    clock.advance(2.0)
    assert live.time_s == 2.0
    assert not [thread.name for thread in threading.enumerate() if thread.name in ("negawatt-book", "negawatt-feed")]


def test_all_is_closed_in_order_even_if_one_fails():
    """What comes after the one that fails still keeps what it has."""
    closed: list[str] = []

    def fails() -> None:
        closed.append("feed")
        raise OSError("disk")

    with pytest.raises(OSError, match="disk"):
        service._close([fails, lambda: closed.append("book")])
    assert closed == ["feed", "book"]

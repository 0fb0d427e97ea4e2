"""Traffic: what counts as load, and how late it was."""

from __future__ import annotations

import pytest

from negawatt.core.serving import Outcome
from negawatt.serve import traffic as traffic_module
from negawatt.serve.traffic import Traffic
from serve.servers import Payer, request


def test_traffic_counts_what_had_work_done_and_passes_all_on() -> None:
    """Cached and refused requests do not count, a failed one does, and one that was given up late was late."""
    payer, now = Payer(), [100.0]
    traffic = Traffic(payer, p99_s=0.5, clock=lambda: now[0])
    ends = [
        (Outcome.ANSWERED, 200, 0.1),
        (Outcome.ANSWERED, 404, 0.6),
        (Outcome.ANSWERED, 503, 0.1),
        (Outcome.CACHED, 200, 0.0),
        (Outcome.REFUSED, 413, 0.0),
        (Outcome.FAILED, 502, 0.1),
        (Outcome.CANCELLED, 0, 0.2),
        (Outcome.CANCELLED, 0, 0.7),
    ]
    asked = [request() for _ in range(len(ends) + 1)]
    for exchange in asked:
        exchange.received_s = now[0]
        traffic.begin(exchange)
    for exchange, (outcome, status, time_s) in zip(asked, ends, strict=False):
        now[0] = 100.0 + time_s
        exchange.outcome = outcome
        traffic.end(exchange, status)
    window = traffic.cut(2)
    assert (window.arrived, window.finished, window.late, window.failed, window.in_flight) == (7, 5, 2, 2, 1)
    assert (traffic.arrived, traffic.p99_s) == (7, pytest.approx(0.7, rel=0.01))
    assert traffic.so_far(asked[-1]).energy_j == 1.0
    assert payer.begun == [exchange.id for exchange in asked]
    assert payer.ended == [(exchange.id, status) for exchange, (_, status, _) in zip(asked, ends, strict=False)]
    assert window.times.quantile(0.99) == traffic.p99_s
    now[0] += 61.0
    assert traffic.p99_s is None
    assert traffic.cut(2).level == 2


def test_the_last_minute_forgets_in_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is older than a minute, or beyond the most times that are kept, counts no longer."""
    monkeypatch.setattr(traffic_module, "_MOST_TIMES", 3)
    now = [100.0]
    traffic = Traffic(Payer(), p99_s=9.0, clock=lambda: now[0])

    def ask(time_s: float) -> None:
        exchange = request()
        exchange.received_s = now[0] - time_s
        traffic.begin(exchange)
        traffic.end(exchange, 200)

    for time_s in (8.0, 4.0, 2.0, 1.0):
        ask(time_s)
    assert traffic.p99_s == pytest.approx(4.0, rel=0.01)
    now[0] += 61.0
    ask(0.5)
    assert traffic.p99_s == pytest.approx(0.5, rel=0.01)

"""A server in both reports: its time is the p99, promised or not."""

from __future__ import annotations

import io
from dataclasses import replace

import plans
import pytest
from rich.console import Console

from negawatt.core.measurement import Latency
from negawatt.core.pace import Pace
from negawatt.core.plan import Plan
from negawatt.core.workload import Phase
from negawatt.report import html, text
from negawatt.report.digest import digest


def served(pace: Pace) -> Plan:
    """Inference of a plan as that of a server, whose p99s are a million times its times per work."""
    plan = plans.verified()
    trials = []
    for trial in (trial for trial in plan.trials if trial.phase is Phase.INFER):
        m = trial.measurement
        p99_s = 1e6 * m.time_per_work_s if m else 0.0
        latency = Latency(p50_s=p99_s / 2, p95_s=p99_s / 1.5, p99_s=p99_s)
        trials.append(replace(trial, measurement=replace(m, time_s=10.0, latency=latency)) if m else trial)
    phases = tuple(replace(phase, pace=pace) for phase in plan.phases if phase.phase is Phase.INFER)
    return replace(plan, unit="request", phases=phases, trials=tuple(trials))


def shown(plan: Plan) -> str:
    """The text in one line."""
    out = io.StringIO()
    Console(file=out, width=120).print(text.render(plan, width=120))
    return " ".join(out.getvalue().replace("\u00a0", " ").split())


def test_the_time_of_a_server_is_its_p99():
    """Heads of columns, the axis of the chart and the promise speak of the p99, not of time per work."""
    plan = served(Pace(served=True, max_slowdown=0.05))
    told, page = shown(plan), html.render(plan)
    assert "Energy per request and its p99" in told
    assert "p99 and quality: the change against the baseline." in told
    assert "p99 of requests grows at most 5 % over the competent default" in told
    assert "time per work" not in told.split("Words")[0]
    assert '<th scope="col">p99 [s]</th>' in page
    assert '<th scope="col">p99</th>' in page
    assert "p99 of a request [s]" in page


def test_a_p99_beyond_the_promise_is_marked():
    """Rows that are late have a mark, which the table explains; the front is one of energy, p99 and quality."""
    rows = digest(served(Pace(served=True)))[0].rows
    times_s = sorted(row.time_s for row in rows)
    promise_s = (times_s[0] + times_s[-1]) / 2
    plan = served(Pace(served=True, p99_s=promise_s))
    (phase,) = digest(plan)
    assert {row.late for row in phase.rows} == {True, False}
    assert all(row.late == (row.time_s > promise_s) for row in phase.rows)
    quickest = min(phase.rows, key=lambda row: row.time_s)
    assert quickest.on_front
    assert quickest.measurement.latency.p99_s == pytest.approx(times_s[0])
    for told in (shown(plan), html.render(plan).replace("\u00a0", " ")):
        assert "✗ at a p99: longer than the promised" in told
        assert "p99 of requests stays within" in told

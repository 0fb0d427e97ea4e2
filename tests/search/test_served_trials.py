"""Trials of a server: it is started, asked at the times of its calls, judged by all answers, and stopped."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

pytest.importorskip("aiohttp")
pytest.importorskip("uvicorn")

from negawatt.core.codec import from_json
from negawatt.core.errors import UsageError, WorkloadError
from negawatt.core.lever import Choice, Setting
from negawatt.core.serving import ServingOptions, ServingSetting
from negawatt.core.trial import Role
from negawatt.core.workload import Call, Phase, Split, Workload
from negawatt.hardware.host import this_host
from negawatt.levers import batching, cascade, replicas, response_cache, runtime
from negawatt.metering.session import Meter
from negawatt.search.load import load
from negawatt.search.runner import Task, run
from negawatt.search.serving import OPTIONS, gateway_options
from negawatt.search.worker import Setup, promised

SERVED = Path(__file__).parents[1] / "e2e" / "served.py"
LEVERS = {lever.lever.info.name: lever.lever for lever in (batching, cascade, replicas, response_cache, runtime)}


@pytest.fixture
def workload():
    """The tiny server."""
    return load(SERVED)


@pytest.fixture
def trial(workload):
    """Run one trial under some values of levers, and look that nothing is left of it."""

    def trial(changed: dict[str, str | int] | None = None, on: Workload | None = None, save_to: Path | None = None):
        bound = on or workload
        chosen = [Choice(lever=name, phase=Phase.INFER, value=value) for name, value in (changed or {}).items()]
        task = Task(setting=Setting.of(Phase.INFER, chosen), split=Split.REPORT, seed=0, save_to=save_to)
        host = this_host()
        with Meter.open(host, ("cpu-model",)) as meter:
            try:
                return run(bound, LEVERS, task, meter, lambda _: None, host)
            finally:
                assert not psutil.Process().children(recursive=True), "a process of the trial is left"

    return trial


def test_a_trial_of_a_server_is_its_calls_in_real_time(trial, workload):
    """Work is the requests, the window as long as their arrivals, the latency per request, the quality that of all."""
    m = trial()
    calls = workload.target.calls(Split.REPORT)
    assert (m.work_units, m.samples, m.quality) == (len(calls), len(calls), 1.0)
    assert m.time_s >= calls[-1].at_s
    assert 0.008 < m.latency.p50_s <= m.latency.p95_s <= m.latency.p99_s < m.time_s
    assert m.energy_j > 0
    assert m.transform_j > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "changed",
    [
        {"batching": "20ms/64"},
        {"response-cache": "64MB"},
        {"replicas": 2},
        {"replicas": 1, "batching": "5ms/32", "response-cache": "64MB"},
    ],
    ids=str,
)
def test_the_gateway_answers_as_the_server_does(trial, changed):
    """Behind the gateway every request has the answer that it has without."""
    assert trial(changed).quality == 1.0


@pytest.mark.slow
def test_what_is_cached_is_not_asked_again(trial, tmp_path, capsys):
    """Two of three requests are answered from the cache, which knows nothing yet; the gateway's options are kept."""
    trial({"response-cache": "64MB"}, save_to=tmp_path)
    assert "16 answered, 30 cached" in capsys.readouterr().err  # of them 6 and 10 to warm up
    kept = from_json(ServingOptions, json.loads((tmp_path / OPTIONS).read_text()))
    assert kept.cache_bytes == 64_000_000


@pytest.mark.slow
def test_a_small_sibling_is_started_and_asked_first(trial):
    """What it is sure of it answers, if wrongly; where it is not sure enough the large one does."""
    assert trial({"cascade": "sure>=0.95"}).quality == 0.0
    assert trial({"cascade": "sure>=0.99"}).quality == 1.0


def test_without_need_there_is_no_gateway(workload):
    """One replica, no window and no cache are a server without a gateway; a promise alone asks nothing of it."""
    assert gateway_options(replace(workload, p99_s=0.1)) is None
    alone = ServingOptions(setting=ServingSetting(replicas=1))
    assert gateway_options(replace(workload, serving=alone, p99_s=0.1)) is None
    two = replace(workload, serving=ServingOptions(setting=ServingSetting(replicas=2)), p99_s=0.1)
    assert gateway_options(two).p99_s == 0.1


@pytest.mark.parametrize(
    ("member", "value", "says"),
    [
        ("calls", lambda split: [], "no calls in its report split"),
        ("calls", lambda split: ["/v1"], "holds '/v1'"),
        (
            "calls",
            lambda split: [Call(at_s=0, path="/v1/embeddings", body=b'{"input": "fail"}')] * 3,
            r"3 of 3 requests failed: status 500 \(3\)",
        ),
    ],
)
def test_a_server_that_gives_no_result(trial, workload, member, value, says):
    """No calls, calls that are none, and requests that fail make a failed trial that says why."""
    setattr(workload.target, member, value)
    with pytest.raises(WorkloadError, match=says):
        trial()


def test_no_quality_is_no_result(trial, workload):
    """Answers that nobody can judge prove nothing."""
    workload.target.judge = lambda split, bodies: None
    with pytest.raises(WorkloadError, match="exactness is None"):
        trial()


@pytest.mark.slow
@pytest.mark.parametrize("limit_s", [1.5, 3.0])
def test_a_trial_that_is_stopped_leaves_nothing(bench, as_is, limit_s, monkeypatch):
    """Whether servers start or requests are under way when its time is over, no process of it is left."""
    monkeypatch.setenv("SERVED_CALLS", "1000")
    on = bench(SERVED, limit_s)
    ready = on.ready()
    trial = on.trial(as_is(ready, Phase.INFER), split=Split.SELECTION, seed=0, role=Role.SEARCH)
    assert trial.error.kind == "hung"
    on.__exit__(None, None, None)
    marks = (str(SERVED), "gateway")
    left = [p for p in psutil.process_iter(["cmdline"]) if any(mark in (p.info["cmdline"] or []) for mark in marks)]
    assert not left


def test_an_address_that_is_none(trial, workload):
    """What is yielded must be a URL."""
    from contextlib import nullcontext

    workload.target.served = lambda params, state: nullcontext(8001)
    with pytest.raises(WorkloadError, match=r"served\(\) yields 8001"):
        trial()


def test_a_gateway_that_does_not_start(trial, workload, monkeypatch):
    """Its own words are the reason, and the server is stopped all the same."""
    monkeypatch.setattr(sys, "executable", "/bin/false")  # only the gateway is started with it: the server has its own
    workload.target.served = _elsewhere
    with pytest.raises(WorkloadError, match="the gateway did not start: it said nothing"):
        trial({"response-cache": "64MB"})


def _elsewhere(params, state):
    from contextlib import nullcontext

    return nullcontext("http://127.0.0.1:9")


def test_a_promise_of_something_that_serves_nothing(workload):
    """A p99 is a promise of servers; given on the command line it goes before the workload's own."""
    setup = Setup(path=SERVED, p99_s=0.2)
    assert promised(replace(workload, p99_s=0.1), setup).p99_s == 0.2
    assert promised(replace(workload, p99_s=0.1), replace(setup, p99_s=None)).p99_s == 0.1

    class Batch:
        name, unit, quality, knobs = "batch", "image", "accuracy", ()

        def predictor(self, params, state): ...

        def requests(self, split): ...

        def score(self, split, answers): ...

    with pytest.raises(UsageError, match=r"--p99 200ms for 'batch', which serves no requests"):
        promised(Workload.of(Batch()), setup)

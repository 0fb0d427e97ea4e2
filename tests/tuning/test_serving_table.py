"""The few-probe search over serving settings: its laws, and its figures on the measured table."""

from __future__ import annotations

import importlib
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import UsageError
from negawatt.tuning.serving_table import ServingChoice, ServingProbe, ServingSearch

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("NEGAWATT_DATA", ROOT.parent / "shared" / "data")) / "serving"
needs_data = pytest.mark.skipif(
    not (DATA / "mlenergy_v3_h100.csv").exists(), reason="the table of ML.ENERGY is not beside the checkout"
)
BATCHES = (8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
CHOICES = [ServingChoice(batch=batch, devices=n, parallel=f"tensor {n}") for n in (1, 2, 4) for batch in BATCHES]


def physical(choice: ServingChoice) -> ServingProbe:
    """A server that reads its weights once per step and adds a little for each request."""
    latency_s = (0.010 + 0.00015 * choice.batch) / choice.devices**0.7
    power_w = choice.devices * 400.0
    return ServingProbe(choice=choice, latency_s=latency_s, energy_j=power_w * latency_s / choice.batch)


def ended(search: ServingSearch, table: dict[ServingChoice, ServingProbe]) -> list[ServingChoice]:
    """Run a search to its end; what it asked."""
    asked: list[ServingChoice] = []
    while (choice := search.ask()) is not None:
        assert search.ask() == choice
        asked.append(choice)
        assert len(asked) <= len(table)
        search.tell(table[choice])
    return asked


@st.composite
def tables(draw):
    """Any settings with any figures, out of memory included."""
    choice = st.builds(
        ServingChoice,
        batch=st.integers(1, 2048),
        devices=st.sampled_from([1, 2, 4, 8]),
        parallel=st.sampled_from(["tensor", "expert"]),
    )
    latency = st.one_of(st.floats(1e-3, 1.0), st.just(math.inf))
    found = draw(st.lists(choice, min_size=1, max_size=20, unique=True))
    return {c: ServingProbe(choice=c, latency_s=draw(latency), energy_j=draw(st.floats(0.01, 10))) for c in found}


@given(tables(), st.floats(1e-3, 1.0), st.sampled_from([0.0, 0.03]))
def test_any_table_ends_with_the_best_of_what_was_measured(table, latency_s, guard):
    """Nothing is asked twice, the search ends, and its pick was measured, is allowed, and is the best of those."""
    search = ServingSearch(table, latency_s=latency_s, guard_fraction=guard)
    assert search.best is None
    asked = ended(search, table)
    assert len(set(asked)) == len(asked)
    kept = [table[choice] for choice in asked if table[choice].latency_s <= latency_s * (1 - guard)]
    if kept:
        assert search.best in asked
        assert table[search.best].energy_j == min(probe.energy_j for probe in kept)
    else:
        assert search.best is None


@given(tables(), st.floats(1e-3, 1.0), st.randoms(use_true_random=False))
def test_the_order_of_settings_and_answers_is_irrelevant(table, latency_s, rng):
    """Settings given in another order are asked for in the same order, and answers told anew lead to the same end."""
    search = ServingSearch(table, latency_s=latency_s)
    asked = ended(search, table)
    shuffled = rng.sample(list(table), len(table))
    other = ServingSearch(shuffled, latency_s=latency_s)
    assert ended(other, table) == asked
    resumed = ServingSearch(shuffled, latency_s=latency_s)
    for choice in rng.sample(asked, len(asked)):
        resumed.tell(table[choice])
    assert resumed.ask() is None
    assert resumed.best == search.best


@given(tables(), st.sampled_from([0.25, 8.0, 1024.0]))
def test_the_units_are_irrelevant(table, factor):
    """Latency and promise in another unit, and energy in another, change nothing."""
    larger = {
        c: ServingProbe(choice=c, latency_s=factor * p.latency_s, energy_j=factor * p.energy_j)
        for c, p in table.items()
    }
    one, other = ServingSearch(table, latency_s=0.125), ServingSearch(table, latency_s=0.125 * factor)
    assert ended(one, table) == ended(other, larger)
    assert one.best == other.best


@pytest.mark.parametrize("latency_s", [0.005, 0.01, 0.02, 0.05, 0.1, 0.5])
def test_a_physical_server_takes_few_probes(latency_s):
    """Of 36 settings of a server that behaves, ten at most are run, and the pick is within 2.5 % of the best."""
    table = {choice: physical(choice) for choice in CHOICES}
    search = ServingSearch(CHOICES, latency_s=latency_s)
    asked = ended(search, table)
    least_j = min(probe.energy_j for probe in table.values() if probe.latency_s <= latency_s)
    assert len(asked) <= 10
    assert table[search.best].energy_j <= 1.025 * least_j


def test_if_nothing_keeps_the_promise_it_says_so():
    """A promise below what the fastest setting gives ends without a pick, after a look at the fastest."""
    table = {choice: physical(choice) for choice in CHOICES}
    search = ServingSearch(CHOICES, latency_s=0.001)
    asked = ended(search, table)
    assert search.best is None
    assert ServingChoice(batch=8, devices=4, parallel="tensor 4") in asked
    assert len(asked) <= 6


def test_the_largest_batch_is_enough_if_it_keeps_the_promise():
    """One probe, where the promise is loose and there is one number of GPUs."""
    table = {choice: physical(choice) for choice in CHOICES[: len(BATCHES)]}
    search = ServingSearch(table, latency_s=1.0)
    assert ended(search, table) == [ServingChoice(batch=1024, parallel="tensor 1")]


def test_what_does_not_fit_into_memory_is_no_answer():
    """Settings that do not run rule out larger ones on as few devices, and are never picked."""
    table = {c: physical(c) for c in CHOICES} | {
        c: ServingProbe(choice=c, latency_s=math.inf) for c in CHOICES if c.batch > 100 * c.devices
    }
    search = ServingSearch(table, latency_s=0.5)
    asked = ended(search, table)
    assert search.best == min((c for c in CHOICES if c.batch <= 100 * c.devices), key=lambda c: table[c].energy_j)
    assert len(asked) <= 12


def test_a_setting_told_twice_counts_with_the_mean():
    """A second look that is much slower takes a setting out again, and the search goes on."""
    small, large = ServingChoice(batch=8), ServingChoice(batch=16)
    search = ServingSearch([small, large], latency_s=0.05)
    search.tell(ServingProbe(choice=large, latency_s=0.049, energy_j=1.0))
    assert (search.best, search.ask()) == (large, None)
    search.tell(ServingProbe(choice=large, latency_s=0.055, energy_j=1.0))
    assert (search.best, search.ask()) == (None, small)


def test_the_guard_keeps_away_from_the_promise():
    """What is measured within the guard is not picked."""
    choice = ServingChoice(batch=8)
    search = ServingSearch([choice], latency_s=0.05, guard_fraction=0.03)
    search.tell(ServingProbe(choice=choice, latency_s=0.049, energy_j=1.0))
    assert search.best is None


@pytest.mark.parametrize(
    ("choices", "more"),
    [
        ([], {}),
        ([ServingChoice(batch=8), ServingChoice(batch=8)], {}),
        ([ServingChoice(batch=0)], {}),
        ([ServingChoice(batch=8)], {"latency_s": 0.0}),
        ([ServingChoice(batch=8)], {"latency_s": math.nan}),
        ([ServingChoice(batch=8)], {"guard_fraction": 1.0}),
        ([ServingChoice(batch=8)], {"slope": -1.0}),
        ([ServingChoice(batch=8)], {"spread": 2.0}),
    ],
)
def test_settings_and_promises_without_meaning_are_refused(choices, more):
    """No setting, one twice, one without a batch, and numbers that mean nothing are errors."""
    with pytest.raises(UsageError, match=r"serving settings|latency_s"):
        ServingSearch(choices, **{"latency_s": 0.05} | more)


def test_answers_without_meaning_are_refused():
    """What another setting gave, and figures that are no numbers, are errors."""
    choice = ServingChoice(batch=8)
    search = ServingSearch([choice], latency_s=0.05)
    with pytest.raises(UsageError, match="none of the settings"):
        search.tell(ServingProbe(choice=ServingChoice(batch=9), latency_s=0.01, energy_j=1.0))
    for latency_s, energy_j in ((0.0, 1.0), (math.nan, 1.0), (0.01, math.inf), (0.01, 0.0), (0.01, math.nan)):
        with pytest.raises(UsageError, match="J per token"):
            search.tell(ServingProbe(choice=choice, latency_s=latency_s, energy_j=energy_j))
    assert search.ask() == choice


@pytest.fixture
def benchmark(monkeypatch):
    """benchmarks/serving_table.py as a module."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("serving_table")


@pytest.fixture
def written(tmp_path):
    """A table of one model, a setting of which was measured twice, and an image model, which has no tokens."""
    columns = "model_id,task,gpu_model,num_gpus,max_num_seqs,energy_per_token_joules,median_itl_ms,p99_itl_ms"
    sharing = "parallelization.tensor_parallel,parallelization.expert_parallel,parallelization.data_parallel"
    rows = [
        "m,chat,H100,1,8,2.0,20,30,1,1,1",
        "m,chat,H100,1,64,0.5,40,60,1,1,1",
        "m,chat,H100,1,64,0.7,56,80,1,1,1",
        "m,chat,H100,1,512,0.2,200,300,1,1,1",
        "pictures,image,H100,1,8,,,,1,1,1",
    ]
    (tmp_path / "mlenergy_v3_h100.csv").write_text("\n".join([f"{columns},{sharing}", *rows]), encoding="utf-8")
    return tmp_path


def test_the_benchmark_reads_and_judges_a_table(benchmark, written):
    """A setting measured twice counts with its means, and every search is judged by what is true."""
    (group,) = benchmark.read(written)
    choice = ServingChoice(batch=64)
    assert group.energies_j[choice] == pytest.approx(0.6)
    assert group.latencies_s["median"][choice] == pytest.approx(0.048)
    metrics = benchmark.report(written, noise=0.0, quick=True)["metrics"]
    assert (metrics["probes_mean"], metrics["gap_mean_fraction"], metrics["violations_fraction"]) == (2.5, 0.0, 0.0)
    assert metrics["sweep_probes_mean"] == 3
    assert metrics["largest_violations_fraction"] == 1
    assert metrics["p99_gap_mean_50_fraction"] == 0


def test_without_its_table_the_benchmark_says_what_to_give(benchmark, tmp_path):
    """A folder without the table ends the benchmark with what is missing."""
    with pytest.raises(SystemExit, match=r"no mlenergy_v3_h100\.csv"):
        benchmark.read(tmp_path)


@needs_data
def test_the_bars_are_met(benchmark):
    """At most 4 probes, within 2 % of the best, and no promise broken, on H100 as ML.ENERGY measured it."""
    metrics = benchmark.report(DATA, noise=0.01, quick=True)["metrics"]
    for bound in ("", "_50", "_100"):
        assert metrics[f"probes_mean{bound}"] <= 2
        assert metrics[f"gap_mean{bound}_fraction"] <= 0.012
        assert metrics[f"violations{bound}_fraction"] == 0
        assert metrics[f"missed{bound}_fraction"] == 0
        assert metrics[f"p99_probes_mean{bound}"] <= 4
        assert metrics[f"p99_gap_mean{bound}_fraction"] <= 0.02
        assert metrics[f"p99_violations{bound}_fraction"] == 0

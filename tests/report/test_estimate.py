"""Estimates are ranges whose width is explained, and which hold what was measured on families left out of the fit."""

from __future__ import annotations

import importlib.util
import math
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import UsageError
from negawatt.core.placement import Declared, Site
from negawatt.core.saving import Interval
from negawatt.hardware.catalogue import find
from negawatt.report import assumed
from negawatt.report.estimate import (
    Assumption,
    Model,
    Serving,
    between,
    decode,
    estimate,
    running,
    serving,
    spread,
    training,
)

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("NEGAWATT_DATA", ROOT.parent / "shared" / "data"))
H100 = find("H100 SXM")
LLAMA = Model(params=70e9, active_params=70e9)
HOURS = (assumed.load(between(0.5, 0.5)), assumed.host(H100, 1, between(100, 100)))


def unknown(name, low, high):
    return Assumption(name=name, range=between(low, high), unit="", source="a test")


def at(batch, *, gpus=4, model=LLAMA, prompt_ratio=0.2):
    return decode(H100, gpus, model, batch=batch, prompt_ratio=prompt_ratio, reply_tokens=500)


def test_independent_factors_add_in_quadrature():
    """Of a product, the logarithms of the widths add in quadrature, also for a divisor."""
    found, widths = spread(lambda v: v["a"] / v["b"], (unknown("a", 1, 4), unknown("b", 1, math.exp(1))))
    assert found.value == pytest.approx(2 / math.exp(0.5))
    half = math.hypot(math.log(2), 0.5)
    assert found.high / found.value == pytest.approx(math.exp(half))
    assert found.low / found.value == pytest.approx(math.exp(-half))
    assert [width.name for width in widths] == ["a", "b"]
    assert sum(width.fraction for width in widths) == pytest.approx(1)


def test_what_is_known_has_no_width():
    """With every factor given as one number, the range is a point and nothing dominates it."""
    found = estimate(running(3600, H100, 1, HOURS), assumed.pue(between(1.2, 1.2), ""), None)
    assert found.machine_j == Interval(value=450 * 3600, low=450 * 3600, high=450 * 3600)
    assert found.site_j.value == pytest.approx(1.2 * 450 * 3600)
    assert found.widths == ()


@given(st.floats(1.001, 5), st.floats(1.001, 5), st.floats(1.0, 3.0))
def test_a_wider_assumption_never_narrows_the_result(first, second, more):
    """Widening one factor widens the range on both sides, and the centre lies inside."""
    wide, _ = spread(
        lambda v: v["a"] * v["b"] + 1, (unknown("a", 1 / (first * more), first * more), unknown("b", 1, second))
    )
    narrow, _ = spread(lambda v: v["a"] * v["b"] + 1, (unknown("a", 1 / first, first), unknown("b", 1, second)))
    assert wide.low <= narrow.low * (1 + 1e-9)
    assert wide.high >= narrow.high * (1 - 1e-9)
    assert narrow.low <= narrow.value <= narrow.high


def test_training_is_arithmetic_over_what_the_device_reaches():
    """A peak of 989 Tflop/s reached to 40 % does 3.956e14 flop in a second of 0.8 x 700 W and 100 W of host."""
    known = (
        assumed.utilisation(between(0.4, 0.4)),
        assumed.load(between(0.8, 0.8)),
        assumed.host(H100, 8, between(800, 800)),
    )
    found = estimate(training(3.956e14 * 3600, H100, 8, 16, known), assumed.pue(between(1, 1), ""), None)
    assert found.machine_j.value == pytest.approx(3600 * 660)
    assert found.time_s.value == pytest.approx(3600 / 8)


def test_published_hours_of_training_lie_in_the_range():
    """BLOOM's 1,082,990 A100-hours (arXiv:2211.02001) are inside what 6 N D and the utilisation give."""
    a100 = find("A100 SXM 80GB")
    work = training(6 * 176e9 * 366e9, a100, 384, 16, (assumed.utilisation(None),))
    hours, _ = spread(lambda v: work.time_s(v) * 384 / 3600, work.assumptions)
    assert hours.low < 1_082_990 < hours.high


def test_a_larger_batch_takes_less_energy_per_token():
    """The weights are read once per step, whatever the batch: energy per token falls with it."""
    tokens = [at(batch).token_j for batch in (1, 8, 64, 512)]
    assert tokens == sorted(tokens, reverse=True)
    assert tokens[0] > 20 * tokens[3]


def test_more_prompt_more_parameters_and_more_gpus_cost_more():
    """Each token given out pays for its prompt, the size of the model, and waiting of GPUs for one another."""
    base = at(32).token_j
    assert at(32, prompt_ratio=10).token_j > base
    assert at(32, gpus=8).token_j > base
    assert at(32, model=Model(params=140e9, active_params=140e9)).token_j > base
    assert at(32, model=replace(LLAMA, bits=8)).token_j < base


def test_a_batch_of_experts_reads_between_the_active_and_all():
    """One token reads the active parameters; a large batch reads all of them."""
    model = Model(params=235e9, active_params=22e9, routed_fraction=8 / 128)
    assert model.read_params(1) == pytest.approx(22e9)
    assert 22e9 < model.read_params(8) < 235e9
    assert model.read_params(1000) == pytest.approx(235e9)
    assert LLAMA.read_params(1) == 70e9


def test_a_model_that_does_not_fit_is_refused():
    """Weights larger than the memory are an error that says how many devices hold them."""
    with pytest.raises(UsageError, match="--gpus 2"):
        serving(1e6, H100, 1, LLAMA, ())


def test_a_device_without_a_peak_is_refused():
    """Where the maker gives no peak, the time would be made up."""
    with pytest.raises(UsageError, match="no published peak"):
        training(1e15, find("Jetson AGX Orin 64GB"), 1, 16, ())
    with pytest.raises(UsageError, match="no published peak of 32-bit"):
        training(1e15, find("TPU v4"), 1, 32, ())


def test_without_a_zone_there_is_energy_only():
    """No zone, no carbon and no money, and a sentence on how to give it."""
    found = estimate(running(3600, H100, 1, HOURS), assumed.pue(None, ""), None)
    assert (found.carbon_g, found.cost, found.currency) == (None, None, "")
    assert "--zone FR" in found.basis[0]


def test_carbon_and_money_follow_the_site_energy():
    """1 kWh at the site is 50 g and 0.2 EUR, with the year and source of both."""
    site = Site(
        name="here",
        intensity_gpkwh=Declared(value=50, source="S 2024"),
        price_per_kwh=Declared(value=0.2, source="P 2023"),
        currency="EUR",
    )
    found = estimate(running(3600 / 0.45, H100, 1, HOURS), assumed.pue(between(1, 1), ""), site)
    assert found.carbon_g.value == pytest.approx(50)
    assert found.cost.value == pytest.approx(0.2)
    assert [line.split(":")[0] for line in found.basis] == ["Carbon", "Price"]
    assert "S 2024" in found.basis[0]
    assert "P 2023" in found.basis[1]
    without = estimate(running(1, H100, 1, HOURS), assumed.pue(None, ""), replace(site, price_per_kwh=None))
    assert without.cost is None
    assert "no price for here" in without.basis[1]
    money_only = estimate(running(1, H100, 1, HOURS), assumed.pue(None, ""), replace(site, intensity_gpkwh=None))
    assert money_only.carbon_g is None
    assert "No carbon" in money_only.basis[0]


def test_every_assumption_has_a_source():
    """Each range that is taken by default says where it comes from, and is told apart from a given one."""
    everything = [
        assumed.utilisation(None),
        assumed.load(None),
        *(assumed.host(find(name), 2, None) for name in ("H100 SXM", "EPYC 9654", "GH200")),
        assumed.pue(None, ""),
        assumed.batch(None),
        assumed.prompt_ratio(None),
        assumed.reply_length(None),
        assumed.model_error(H100),
    ]
    for assumption in everything:
        assert assumption.range.low < assumption.range.value < assumption.range.high
        assert len(assumption.source) > 20
        assert not assumption.given
    assert assumed.batch(between(3, 3)).given


def test_the_serving_model_is_trusted_less_elsewhere():
    """On a device that it was not fitted to, its error is wider and says so."""
    here, there = assumed.model_error(H100), assumed.model_error(find("A100 SXM 80GB"))
    assert there.range.low < here.range.low < 1 < here.range.high < there.range.high
    assert "nothing was measured on A100" in there.source


@pytest.mark.parametrize("text", ["", "0.5..0.3", "-1..2", "a..b", "0", "nan", "1..inf", "1.."])
def test_a_range_that_cannot_be_is_refused(text):
    """A range is one or two positive numbers in order."""
    with pytest.raises(UsageError, match=r"LOW\.\.HIGH"):
        assumed.interval(text, "--pue")


@pytest.fixture(scope="module")
def benchmark():
    """benchmarks/estimate.py as a module; skips where the measured table is not there."""
    if not (DATA / "serving" / "mlenergy_v3_h100.csv").exists():
        pytest.skip(f"the measured H100 table is not in {DATA}; set NEGAWATT_DATA to the folder that holds serving/")
    spec = importlib.util.spec_from_file_location("estimate_benchmark", ROOT / "benchmarks" / "estimate.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


@pytest.fixture(scope="module")
def table(benchmark):
    """The measured rows of text tasks."""
    return benchmark.tabulate(benchmark.rows(DATA / benchmark.DATA))


def test_the_shipped_constants_and_range_are_the_fit_to_all_families(benchmark, table):
    """What the package holds is the fit and its leave-one-family-out range, to the digits given."""
    shipped = Serving()
    constants = [getattr(shipped, name) for name in benchmark.NAMES]
    assert constants == pytest.approx(benchmark.fit(table), rel=2e-3)
    low, high = benchmark.band(table)
    assert low - 0.01 < shipped.error[0] <= low
    assert high <= shipped.error[1] < high + 0.01
    from_decode = [(step.time_s, step.power_w, step.token_j) for step in (row.predicted() for row in table.rows)]
    assert table.predicted(np.array(constants)) == pytest.approx(np.array(from_decode))


def test_families_left_out_of_fit_and_range_lie_in_the_range(benchmark, table):
    """Nested by family, at least 90 % of rows lie in the range, and the centre errs by less than EcoLogits' 31 %."""
    found = benchmark.held_out(table, benchmark.splits(table)["held_out"])
    assert len(found) == len(table.rows)
    whole = benchmark.score(found)
    assert whole["coverage_fraction"] >= 0.9
    assert whole["error_mean_fraction"] < 0.22
    assert 0.95 < whole["ratio_median"] < 1.05
    assert benchmark.score([p for p in found if p.at_64])["error_mean_fraction"] < 0.31


@pytest.mark.slow
def test_no_way_of_leaving_families_out_changes_the_verdict(benchmark):
    """Random halves and whole makers, left out, are held as well as single families; no split does it alone."""
    metrics = benchmark.report(DATA, None)["metrics"]
    for name in ("held_out", "halves", "makers"):
        assert metrics[f"{name}_coverage_fraction"] >= 0.9
        assert metrics[f"{name}_error_mean_fraction"] < 0.31
    assert metrics["worst_half_coverage_fraction"] > 0.7
    assert metrics["training_hours_inside_fraction"] == 1

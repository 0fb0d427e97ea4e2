"""The forecast: its formula against a plain loop, its laws, its shipped table, and its picture."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from datetime import UTC, datetime

import plans
import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import UsageError
from negawatt.core.saving import Baseline
from negawatt.core.workload import Phase
from negawatt.report.citations import citations, table
from negawatt.report.forecast import (
    LAST_YEAR,
    Lever,
    Range,
    beside_countries,
    defaults,
    forecast,
    known_levers,
    levers_of,
    scenario_2027,
)
from negawatt.report.forecast_chart import draw, percent, twh

PART = st.floats(min_value=0, max_value=0.95)


PHASES = st.sampled_from([(Phase.TRAIN,), (Phase.INFER,), tuple(Phase)])


@st.composite
def ranges(draw_from, values=PART):
    low, high = sorted((draw_from(values), draw_from(values)))
    return Range(low=low, high=high)


@st.composite
def levers(draw_from):
    number = draw_from(st.integers(min_value=1, max_value=4))
    return tuple(
        Lever(
            name=f"lever {i}",
            savings={phase: draw_from(ranges()) for phase in draw_from(PHASES)},
            acts_on=draw_from(st.sampled_from(["a", "b", "c"])),
            adoption_fraction=draw_from(st.floats(min_value=0, max_value=1)),
            grade="declared",
        )
        for i in range(number)
    )


def point(span: Range, part: float) -> Range:
    """A single value so far between the ends of a range."""
    value = span.low + part * (span.high - span.low)
    return Range(low=value, high=value)


def one(name: str, saving: float, acts_on: str = "", adoption: float = 1.0, phases: tuple[Phase, ...] = tuple(Phase)):
    """A lever with one saving in some phases."""
    span = Range(low=saving, high=saving)
    return Lever(
        name=name,
        savings=dict.fromkeys(phases, span),
        acts_on=acts_on or name,
        adoption_fraction=adoption,
        grade="declared",
    )


def test_growth_compounds_from_the_base_year():
    """The base is untouched, and each year multiplies by the low and the high growth."""
    years = forecast(defaults()).years
    assert (years[0].year, years[-1].year) == (2024, 2030)
    assert (years[0].without_twh.low, years[0].without_twh.high) == (62.25, 62.25)
    assert years[-1].without_twh.low == pytest.approx(62.25 * 1.26**6)
    assert years[-1].without_twh.high == pytest.approx(62.25 * 1.36**6)


def test_levers_multiply_what_the_others_left():
    """Two levers of 50 and 40 % leave 30 %, not 10 %."""
    found = forecast(replace(defaults(), levers=(one("a", 0.5), one("b", 0.4))))
    assert found.together.saved.low == pytest.approx(0.7)
    assert found.together.saved.high == pytest.approx(0.7)


def test_levers_on_the_same_thing_do_not_stack():
    """Of two levers that act on one thing, the larger counts, phase by phase."""
    same = (one("a", 0.5, "clock", phases=(Phase.TRAIN,)), one("b", 0.4, "clock"))
    given = replace(defaults(), train_share=Range(low=0.25, high=0.25), levers=same)
    assert forecast(given).together.saved.low == pytest.approx(0.25 * 0.5 + 0.75 * 0.4)


def test_a_phase_counts_by_its_share():
    """A lever of training alone saves its part of training's share, at both ends of it."""
    given = replace(defaults(), train_share=Range(low=0.2, high=0.4), levers=(one("a", 0.5, phases=(Phase.TRAIN,)),))
    saved = forecast(given).together.saved
    assert (saved.low, saved.high) == (pytest.approx(0.1), pytest.approx(0.2))


def test_adoption_rises_in_equal_steps():
    """No work uses a lever until the ramp year, all of its adoption in the last, half of it halfway."""
    flat = replace(defaults(), growth=Range(low=0, high=0), levers=(one("a", 0.5, adoption=0.8),))
    by_year = {y.year: y.all_twh.low / 62.25 for y in forecast(flat).years}
    assert by_year[2024] == by_year[2026] == 1
    assert by_year[2028] == pytest.approx(1 - 0.5 * 0.8 / 2)
    assert by_year[2030] == pytest.approx(1 - 0.5 * 0.8)


@given(levers(), ranges(), ranges(st.floats(min_value=-0.5, max_value=1)))
def test_no_point_inside_the_ranges_lies_outside_the_result(chosen, share, growth):
    """Corners bound the whole box: any growth, share and savings within their ranges give a year within its range."""
    given = replace(defaults(), levers=chosen, train_share=share, growth=growth)
    found = forecast(given)
    for part in (0.0, 0.3, 0.5, 0.9, 1.0):
        inner = forecast(
            replace(
                given,
                levers=tuple(
                    replace(lever, savings={p: point(r, part) for p, r in lever.savings.items()}) for lever in chosen
                ),
                train_share=point(share, part),
                growth=point(growth, part),
            )
        )
        for year, inside in zip(found.years, inner.years, strict=True):
            assert year.all_twh.low <= inside.all_twh.low * (1 + 1e-9)
            assert inside.all_twh.high <= year.all_twh.high * (1 + 1e-9)


@given(levers())
def test_levers_never_add_and_their_order_is_nothing(chosen):
    """All levers together save at least as much as any alone, at most their sum, and the same in any order."""
    found = forecast(replace(defaults(), levers=chosen))
    back = forecast(replace(defaults(), levers=chosen[::-1]))
    assert found.together.saved.low == pytest.approx(back.together.saved.low, abs=1e-12)
    for end in ("low", "high"):
        alone = [getattr(bend.saved, end) for bend in found.bends]
        together = getattr(found.together.saved, end)
        assert together >= max(alone) - 1e-12
        if end == "high":
            assert together <= sum(alone) + 1e-12
    assert [b.saved.low + b.saved.high for b in found.bends] == sorted(
        (b.saved.low + b.saved.high for b in found.bends), reverse=True
    )


@pytest.mark.parametrize("year", [2024, 2026, LAST_YEAR + 1])
def test_a_year_without_meaning_is_refused(year):
    """A last year before any adoption, or too far away, is a usage error."""
    with pytest.raises(UsageError, match=f"a forecast from 2024 to {year}"):
        replace(defaults(), to_year=year)


def test_a_range_has_its_ends_in_order():
    """A range from high to low, or to infinity, is no value."""
    with pytest.raises(ValueError, match="from a finite low to a finite high end"):
        Range(low=2, high=1)
    with pytest.raises(ValueError, match="from a finite low to a finite high end"):
        Range(low=0, high=float("inf"))


def test_every_default_has_its_source():
    """Each figure of the table rests on something published, or says that it is an assumption."""
    rows = table("forecast")
    sourced = [rows[key] for key in ("base", "growth", "train_share", "accelerator_share", "scenario_2027")]
    for row in (*sourced, *rows["lever"], *rows["other"], *rows["country"]):
        assert citations(row)
        for source in citations(row):
            assert re.match(r"https://\S+$", source.url)
            assert 2009 <= source.year <= datetime.now(UTC).year
    assert "assumption" in rows["adoption"]["basis"]


def test_savings_at_the_accelerator_are_scaled_to_the_site():
    """A figure of GPU energy counts by the accelerators' part; one of whole runs counts fully."""
    known = known_levers()
    assert known["power-limit"].savings[Phase.TRAIN] == Range(low=0.08 * 0.55, high=0.15 * 0.64)
    assert known["early-stopping"].savings[Phase.TRAIN] == Range(low=0.15, high=0.27)
    assert set(known["serving"].savings) == {Phase.INFER}
    assert known["serving"].acts_on == known["power-limit"].acts_on


def test_a_plan_becomes_a_lever():
    """What a plan has shown over the competent default is a lever with its interval and verdict."""
    plan = plans.verified()
    (lever,) = levers_of(plan)
    shown = {p.phase: s for p in plan.phases if (s := p.saving(Baseline.COMPETENT)) and s.shown}
    assert set(lever.savings) == set(shown)
    for phase, saving in shown.items():
        assert lever.savings[phase] == Range(low=saving.ci_low, high=saving.ci_high)
    assert "verified" in lever.grade


def test_a_plan_that_shows_nothing_is_refused():
    """A plan without a shown saving cannot bend anything."""
    with pytest.raises(UsageError, match="has shown no saving over the competent default"):
        levers_of(plans.nothing())


def test_2027_is_computed():
    """The scenario is its product, and it is like the Netherlands, not like Iceland."""
    scenario = scenario_2027()
    assert (scenario.low, scenario.high) == (pytest.approx(85.41), pytest.approx(134.028))
    assert {country.name: country.alike for country in beside_countries(scenario)} == {
        "Iceland": False,
        "the Netherlands": True,
    }


@pytest.mark.parametrize("to_year", [2027, 2030, LAST_YEAR])
def test_the_picture_is_whole_and_says_what_it_shows(to_year):
    """A self-contained drawing with a title, a description with the figures, two bands and a bar per lever."""
    found = forecast(replace(defaults(), to_year=to_year))
    source = draw(found, beside_countries(found.years[-1].without_twh))
    root = ET.fromstring(source)
    name = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{name}svg"
    assert str(to_year) in root.find(f"{name}title").text
    assert twh(found.years[-1].all_twh) in root.find(f"{name}desc").text
    assert len(root.findall(f"{name}polygon")) == 2
    assert len([r for r in root.iter(f"{name}rect") if r.get("class") == "bar-least"]) == len(found.bends) + 1
    assert not re.search(r"(href|src)=|url\(|@import", source)


def test_hostile_names_are_text_in_the_picture():
    """A lever's name cannot end an element or forge one."""
    found = forecast(replace(defaults(), levers=(one(plans.HOSTILE, 0.1),)))
    root = ET.fromstring(draw(found))
    assert not [e for e in root.iter() if e.tag.endswith("script")]


@pytest.mark.parametrize(
    ("low", "high", "shown"),
    [(62.25, 62.25, "62"), (249.1, 393.9, "249 to 394"), (7.12, 26.4, "7 to 26"), (1.23, 2.34, "1.2 to 2.3")],
)
def test_twh_are_rounded_to_what_is_known(low, high, shown):
    """Whole TWh where a range reaches ten."""
    assert twh(Range(low=low, high=high)) == shown


def test_one_percentage_is_printed_once():
    """A range of one value is one number."""
    assert percent(Range(low=0.3, high=0.3)).split() == ["30", "%"]
    assert percent(Range(low=0.26, high=0.36)).split() == ["26", "to", "36", "%"]

"""The plan in the terminal."""

from __future__ import annotations

import io
from dataclasses import replace

import plans
import pytest
from rich.console import Console

from negawatt.report import html, text


def shown(plan, width, **options):
    out = io.StringIO()
    Console(file=out, width=width, **options).print(text.render(plan, width=width))
    return out.getvalue().replace("\u00a0", " ")


def flat(plan, width=80):
    return " ".join(shown(plan, width).split())


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize("make", plans.ALL)
def test_fits_the_terminal_without_colour(make, width):
    """No line is wider than the terminal, and without a terminal there is no escape sequence."""
    out = shown(make(), width)
    assert max(len(line) for line in out.splitlines()) <= width
    assert "\x1b" not in out


def test_headlines_say_how_much_how_sure_and_in_which_word():
    """The first lines are the result of each phase with its interval and verdict."""
    out = flat(plans.indicative())
    assert out.startswith("Training: 59 % less energy (57 to 61 %) than the competent default, accuracy −0.0012")
    assert "Inference: 61 % less energy (59 to 62 %)" in out
    assert "indicative (estimated)." in out


def test_reasons_and_corners_are_told():
    """Why a verdict is not better is said, once if it is the same against both baselines."""
    out = flat(plans.indicative())
    reason = "Against the competent default and the naive default: the energy is estimated by a power model, not read"
    assert out.count(reason) == 2  # once per phase
    assert "over the range of the power model (3 corners) the saving is 50 to 62 %" in out


def test_nothing_saves_is_an_answer():
    """If no candidate was shown to save, the first sentence says so, and the refusals follow with reasons."""
    out = flat(plans.nothing(), 120)
    assert out.startswith("Nothing tried was shown to save energy over the competent default at this accuracy")
    assert "a saving of 2 % (−1 to 5 %) over the competent default is not shown (sampled)" in out
    assert "takes 4 % more energy (1 to 7 %) than the competent default: worse" in out
    assert "accuracy fell by 0.0110, more than the margin of 0.005" in out
    assert "* plan = competent default" in out
    assert "the search never pays for itself" in out


def test_a_plan_beside_a_refused_candidate():
    """When the candidate is refused, the saving against the naive default is said to be the plan's."""
    out = flat(plans.nothing(), 120)
    assert "candidate against competent default not shown" in out
    assert "plan against naive default verified" in out


def test_only_the_baseline_saves():
    """If nothing looked better than the competent default, what that default saves is still told."""
    plan = plans.verified()
    infer = replace(plan.phases[1], setting=plans.COMPETENT_INFER, candidate=plans.COMPETENT_INFER, steps=())
    infer = replace(infer, savings=infer.savings[:1])
    out = flat(replace(plan, phases=(infer,)), 120)
    assert "nothing tried looked better than the competent default, which takes 98.50 % less energy" in out
    page = html.render(replace(plan, phases=(infer,)))
    assert "Nothing tried looked better than the competent default, which takes" in page


def test_long_lines_are_not_used():
    """A very wide terminal gets lines of at most 120 columns."""
    assert max(len(line.rstrip()) for line in shown(plans.verified(), 300).splitlines()) <= 120


def test_all_runs_failed():
    """A plan without a single measurement says that, and why."""
    out = flat(plans.unmeasured())
    assert out.startswith("Nothing could be measured: every run failed.")
    assert "2 runs of batch-size=4096 failed (raised): MemoryError" in out


def test_lifetime_sites_and_gaps():
    """Search cost, payback, sites and what was not measured are all there; unknown figures stay unknown."""
    out = flat(plans.verified(), 120)
    assert (
        "the search pays for itself after 110 million images, one training run included, or after 39 lifetimes" in out
    )
    assert "17 search runs, 48 proof runs, 6 warm-ups" in out
    assert "Katowice unknown unknown unknown" in out
    assert "gpu: no NVIDIA driver on this host" in out
    assert "From the search, single runs, not confirmed" in out


def test_broken_promises_are_marked():
    """A setting on the front that loses too much quality is marked as such."""
    assert "0.9309 ✗" in flat(plans.verified())


def test_hostile_names_are_literal():
    """Markup in a name is printed, not obeyed, and control characters are gone even on a colour terminal."""
    out = shown(plans.only_infer(), 200, force_terminal=True, color_system="truecolor")
    assert "[red]x[/red]" in out
    assert "\x1b[31m\u202e" not in out
    assert "\u202e" not in out

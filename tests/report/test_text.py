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


def test_each_phase_is_limited_alone_and_both_together():
    """Between the competent default and the plan stand both phases by themselves, with what each saves in total."""
    out = flat(plans.verified(), 120)
    assert "training limited 1.18 kJ 12.0 J 1.55 kJ 2.74 kJ inference limited 2.90 kJ 19.0 J 610 J 3.53 kJ" in out
    assert "Training limited alone saves 39 % (37 to 40 %) over the competent default: verified." in out
    assert "Inference limited alone saves 20.9 % (20.3 to 21.5 %) over the competent default: verified." in out
    assert "Against the competent default the plan saves 59 % (57 to 61 %): verified." in out
    assert "what it saves in each answer is in no saving here" in out
    assert "the field: about 12 to 15 % less energy in training for about 3 % more time" in out


def test_a_phase_without_a_saving_says_so_in_the_lifetime():
    """A refused phase keeps the default, and an unproven one is called that; the other phase keeps its claim."""
    plan = plans.verified()
    train, infer = plan.phases
    refused = replace(infer, setting=infer.competent)
    best, competent = plan.lifetimes["plan"], plan.lifetimes["competent"]
    kept = replace(competent, train_j=best.train_j)
    out = flat(replace(plan, phases=(train, refused), lifetimes={**plan.lifetimes, "plan": kept}), 120)
    assert "Training limited alone saves 39 % (37 to 40 %) over the competent default: verified." in out
    assert "Inference limited: the competent default is kept; its candidate was refused." in out
    untried = replace(refused, savings=())
    out = flat(replace(plan, phases=(train, untried), lifetimes={**plan.lifetimes, "plan": kept}), 120)
    assert "Inference limited: the competent default is kept; its candidate was not put to the proof." in out
    out = flat(replace(plan, phases=(train, replace(infer, savings=()))), 120)
    assert "Inference limited alone saves 20.9 % over the competent default: not proven." in out
    assert "Against the competent default the plan saves 59.5 %: not proven in every phase." in out


def test_one_phase_is_not_limited_alone():
    """With a single phase, or a plan that is the competent default, there is nothing between that and the plan."""
    for plan in (plans.only_infer(), plans.nothing()):
        assert "limited" not in flat(plan, 120).split("For comparison")[0]


def test_broken_promises_are_marked():
    """A setting on the front that loses too much quality is marked as such."""
    assert "0.9309 ✗" in flat(plans.verified())


def test_hostile_names_are_literal():
    """Markup in a name is printed, not obeyed, and control characters are gone even on a colour terminal."""
    out = shown(plans.only_infer(), 200, force_terminal=True, color_system="truecolor")
    assert "[red]x[/red]" in out
    assert "\x1b[31m\u202e" not in out
    assert "\u202e" not in out

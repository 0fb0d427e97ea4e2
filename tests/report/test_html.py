"""The plan as a page."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from itertools import pairwise

import plans
import pytest

from negawatt.core.reading import Source
from negawatt.report import html

VOID = {"meta", "br", "link", "img", "input", "hr"}


class Page(HTMLParser):
    """A page taken apart: tags are closed in order, and tables keep their rows."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.faults: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.tables: list[list[list[str]]] = []
        self.text = ""
        self.feed(source)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()}")

    def handle_data(self, data):
        if "style" not in self.stack:
            self.text += data
        if {"td", "th"} & set(self.stack):
            self.tables[-1][-1][-1] += data

    def all(self, tag):
        return [attrs for name, attrs in self.tags if name == tag]


@pytest.fixture(scope="module", params=plans.ALL, ids=lambda make: make.__name__)
def rendered(request):
    plan = request.param()
    source = html.render(plan)
    return plan, source, Page(source)


def test_well_formed(rendered):
    """Every tag is closed in order, ids are unique, and links inside the page lead somewhere."""
    _, _, page = rendered
    assert page.faults == []
    assert page.stack == []
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert {attrs["href"] for attrs in page.all("a")} <= {f"#{i}" for i in ids}


def test_loads_nothing_and_runs_nothing(rendered):
    """No script, no handler, no address: the page is whole by itself, and its policy says so."""
    _, source, page = rendered
    names = {tag for tag, _ in page.tags}
    assert not names & {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "use"}
    attributes = {(key, value) for _, attrs in page.tags for key, value in attrs.items()}
    assert not [key for key, _ in attributes if key.startswith("on") or key in ("src", "srcset", "xlink:href")]
    assert not re.search(r"https?://|@import|url\((?!#hatch\))", source)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in attributes


def test_accessible(rendered):
    """It names its language, has one first heading and no gaps below it, and tables and charts can be read aloud."""
    _, _, page = rendered
    assert page.all("html") == [{"lang": "en"}]
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels.count(1) == 1
    assert all(b - a <= 1 for a, b in pairwise(levels))
    assert len(page.all("caption")) == len(page.all("table"))
    assert all("scope" in attrs for attrs in page.all("th"))
    assert all(attrs["role"] == "img" and attrs["aria-label"] for attrs in page.all("svg"))
    children = [(a[0], b[0], c[0]) for a, b, c in zip(page.tags, page.tags[1:], page.tags[2:], strict=False)]
    assert all(b == "title" and c == "desc" for a, b, c in children if a == "svg")


def test_every_setting_has_its_source_and_every_trial_its_row(rendered):
    """No energy of a setting or of a run stands without its source."""
    plan, _, page = rendered
    kinds = "|".join(Source)
    for table in page.tables:
        if "Runs" in table[0] or table[0][0] == "After":
            assert all(re.search(rf"({kinds}) ±[\d.]+\s%$", row[-1]) for row in table[1:])
        if table[0][0] == "Against":
            assert all(row[-1] in set(Source) for row in table[1:])
    trials = page.tables[-1][1:]
    assert len(trials) == len(plan.trials)
    assert all(re.match(f"({kinds}) ±|failed", row[5] if len(row) > 6 else row[4]) for row in trials)


def test_every_saving_has_interval_verdict_and_reasons(rendered):
    """The page carries each verdict in words, and each reason."""
    plan, _, page = rendered
    for phase in plan.phases:
        for saving in phase.savings:
            assert saving.label() in page.text
            assert all(reason in page.text for reason in saving.reasons)
    rows = [row for table in page.tables if table[0][0] == "Against" for row in table[1:]]
    assert len(rows) == sum(len(phase.savings) for phase in plan.phases)
    assert all(" to " in row[2] for row in rows)


def test_lifetimes_are_told_by_phase():
    """The table has a row for each phase limited alone, with its saving over the competent default and its verdict."""
    page = Page(html.render(plans.indicative()))
    (table,) = (table for table in page.tables if table[0][0] == "Setting" and "Total" in table[0])
    assert [row[0] for row in table[1:]] == [
        "naive default", "competent default", "training limited", "inference limited", "plan",
    ]  # fmt: skip
    assert [bool(row[-2]) for row in table[1:]] == [False, False, True, True, True]
    assert {row[-1] for row in table[3:]} == {"indicative (estimated)"}
    assert "about 12 to 15 % less energy in training" in page.text


def test_gaps_are_listed(rendered):
    """What was not measured is on the page, with the reason."""
    plan, _, page = rendered
    assert all(gap.why.startswith("<script>") or gap.why in page.text for gap in plan.not_measured)


def test_hostile_names_are_text():
    """A script in a name is shown as text everywhere, charts included, and control characters are gone."""
    source = html.render(plans.only_infer())
    page = Page(source)
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script>" in page.text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", source)
    source.encode("utf-8")


def test_estimated_points_are_hollow_and_measured_ones_filled():
    """Markers show whether joules were read from hardware."""
    measured, estimated = html.render(plans.verified()), html.render(plans.indicative())
    assert 'class="point filled' in measured
    assert 'class="point hollow' not in measured
    assert 'class="point hollow' in estimated
    assert 'class="point filled' not in estimated
    assert 'class="corner' in estimated
    assert 'class="corner' not in measured


def test_a_refused_candidate_is_not_praised():
    """A saving that is not shown is not printed large, and one that is worse is called more energy."""
    page = Page(html.render(plans.nothing()))
    text = " ".join(page.text.split())
    assert "Not shown to save energy over the competent default" in text
    assert "4 % more energy than the competent default" in text

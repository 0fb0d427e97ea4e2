"""Axes and labels of the charts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.report import svg


@given(st.lists(st.floats(min_value=1e-6, max_value=1e6), min_size=1, max_size=20))
def test_axis_holds_its_values(values):
    """Every value lies between the ends of the axis, in order."""
    axis = svg.Axis.of(values, 50.0, 470.0)
    places = [axis.at(v) for v in sorted(values)]
    assert places == sorted(places)
    assert all(50 <= place <= 470 for place in places)


@pytest.mark.parametrize("values", [[3.0, 5.0], [0.2, 90.0], [1.0, 5000.0], [1e-3, 1e5], [7.0]])
def test_ticks_are_few_and_inside(values):
    """An axis has two to ten ticks, all on it."""
    axis = svg.Axis.of(values, 0.0, 100.0)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 10
    assert all(-1e-9 <= axis.at(tick) <= 100 + 1e-9 for tick in ticks)


def test_labels_avoid_each_other():
    """Two labels at one place are written at two."""
    a, b = (m for m in svg.place_labels([(100, 100, "one"), (102, 100, "two")], [], (0, 0, 400, 400)) if "<text" in m)
    assert a.split(">")[0] != b.split(">")[0]


def test_elements_escape_their_attributes():
    """A quote in a value does not end the attribute."""
    assert svg.el("g", class_='"><script>') == '<g class="&quot;&gt;&lt;script&gt;"></g>'

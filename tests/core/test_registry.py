"""Picking plug-ins by name. How they are found is tested in tests/plugins."""

from __future__ import annotations

import pytest

from negawatt.core.errors import UsageError
from negawatt.core.registry import Broken, Found, pick

FOUND = Found(
    members={"batch-size": 1, "early-stopping": 2, "threads": 3},
    broken=(Broken(name="power-cap", distribution="somebody", reason="ImportError: no module named foo"),),
)


def test_no_name_picks_all() -> None:
    """Without names everything that works is picked."""
    assert pick(FOUND, (), "lever") == FOUND.members


def test_names_pick_in_their_order() -> None:
    """With names exactly those are picked, in the order typed."""
    assert list(pick(FOUND, ("threads", "batch-size"), "lever")) == ["threads", "batch-size"]


@pytest.mark.parametrize(("typed", "meant"), [("batchsize", "batch-size"), ("early-stoping", "early-stopping")])
def test_a_slip_is_answered_with_the_nearest_name(typed: str, meant: str) -> None:
    """An unknown name near a known one is corrected."""
    with pytest.raises(UsageError, match=f"lever '{typed}' is not known[^?]*did you mean '{meant}'?"):
        pick(FOUND, (typed,), "lever")


def test_a_strange_name_is_answered_with_where_to_look() -> None:
    """A name near none leads to the list of names."""
    with pytest.raises(UsageError, match="what to do: `negawatt doctor` lists them"):
        pick(FOUND, ("xyz",), "lever")
    with pytest.raises(UsageError, match="what to do: `negawatt plan --levers` lists them"):
        pick(FOUND, ("xyz",), "lever", lambda: "`negawatt plan --levers`")


def test_a_broken_plug_in_says_why() -> None:
    """A plug-in that did not load is not called unknown."""
    with pytest.raises(UsageError, match="lever 'power-cap' cannot be loaded: ImportError: no module named foo"):
        pick(FOUND, ("power-cap",), "lever")

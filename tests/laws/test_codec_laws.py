"""Every core value survives JSON, and nothing else is let in."""

from __future__ import annotations

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.core.codec import from_json, to_json
from negawatt.core.errors import UsageError
from negawatt.core.plan import Plan
from negawatt.core.reading import Reading
from negawatt.core.trial import Trial
from strategies import core_values, of

FILED = core_values()
PLAN = of(Plan).filter(lambda plan: plan.trials)


def test_the_list_of_values_is_not_empty() -> None:
    """The walk over negawatt.core finds the values that reach a file."""
    assert {Plan, Reading, Trial} <= set(FILED)


@pytest.mark.parametrize("cls", FILED, ids=lambda cls: cls.__name__)
@given(data=st.data())
@settings(max_examples=20)
def test_json_round_trip(cls: type, data: st.DataObject) -> None:
    """A value read back from JSON text equals the one that was written."""
    value = data.draw(of(cls))
    assert from_json(cls, json.loads(json.dumps(to_json(value)))) == value


@pytest.mark.parametrize("cls", FILED, ids=lambda cls: cls.__name__)
@given(data=st.data())
@settings(max_examples=5)
def test_unknown_fields_are_refused(cls: type, data: st.DataObject) -> None:
    """A field that this version does not know is an error that names it."""
    written = to_json(data.draw(of(cls)))
    with pytest.raises(UsageError, match=rf"{cls.__name__}\.colour: expected no such field"):
        from_json(cls, {**written, "colour": "green"})


@pytest.mark.parametrize("cls", FILED, ids=lambda cls: cls.__name__)
@given(data=st.data())
@settings(max_examples=5)
def test_missing_fields_are_refused(cls: type, data: st.DataObject) -> None:
    """A field without a default must be there."""
    written = to_json(data.draw(of(cls)))
    for field in dataclasses.fields(cls):
        if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            without = {key: value for key, value in written.items() if key != field.name}
            with pytest.raises(UsageError, match=rf"{cls.__name__}\.{field.name}: expected this field"):
                from_json(cls, without)


@given(PLAN)
@settings(max_examples=10)
def test_an_error_deep_inside_names_its_place(plan: Plan) -> None:
    """The message leads to the offending field."""
    written = to_json(plan)
    written["trials"][0]["seed"] = "seven"
    with pytest.raises(UsageError, match=r"Plan\.trials\[0\]\.seed: expected int, got 'seven'"):
        from_json(Plan, written)


@given(of(Reading))
def test_impossible_values_are_refused(reading: Reading) -> None:
    """A file cannot bring in a value that could not be made."""
    written = {**to_json(reading), "energy_j": -1.0}
    with pytest.raises(UsageError, match="finite and not negative"):
        from_json(Reading, written)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("energy_j", "12", "expected float"),
        ("energy_j", True, "expected float"),
        ("source", "guessed", "expected one of"),
        ("corners_j", 3, "expected a list"),
        ("scope", None, "expected str"),
    ],
)
def test_wrong_types_are_refused(field: str, value: object, expected: str) -> None:
    """Nothing is converted silently."""
    written = {
        "scope": "wall",
        "energy_j": 1.0,
        "source": "counter",
        "sensor": "plug",
        "random_sd_j": 0.0,
        "gain_sd_fraction": 0.0,
        "offset_sd_w": 0.0,
        "corners_j": [],
    }
    assert from_json(Reading, written).energy_j == 1.0
    with pytest.raises(UsageError, match=expected):
        from_json(Reading, {**written, field: value})


def test_only_core_values_are_written() -> None:
    """An object that would not come back is refused when it is written."""
    with pytest.raises(TypeError, match="complex is not a core value"):
        to_json({"z": 1j})

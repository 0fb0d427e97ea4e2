"""Rungs: few, each expected to draw less than the one before it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from negawatt.core.errors import UsageError
from negawatt.core.serving import ServingOptions, ServingSetting
from negawatt.serve.rungs import MOST, MOST_WAIT, rungs
from serve.servers import URLS


@settings(max_examples=50)
@given(
    replicas=st.integers(1, 6),
    safe=st.builds(
        ServingSetting,
        window_s=st.sampled_from([0.0, 0.01, 0.1]),
        max_batch=st.sampled_from([1, 16, 64]),
        replicas=st.integers(0, 6),
        limit_fraction=st.sampled_from([0.6, 1.0]),
    ),
    lowest=st.one_of(st.none(), st.floats(0.1, 0.95)),
)
def test_levels_are_few_and_each_is_expected_to_draw_less(
    replicas: int, safe: ServingSetting, lowest: float | None
) -> None:
    """The safe setting is the first, untouched; none turns more than it may, nor can break the promise by itself."""
    found = rungs(ServingOptions(upstreams=URLS[:replicas], setting=safe, p99_s=0.5), lowest_fraction=lowest)
    assert 1 <= len(found) <= MOST
    assert found[0].setting == safe
    efforts = [rung.level.effort for rung in found]
    assert efforts == sorted(efforts, reverse=True)
    assert len({rung.setting for rung in found}) == len({rung.level.name for rung in found}) == len(found)
    for rung in found:
        assert safe.window_s <= rung.setting.window_s <= MOST_WAIT * 0.5
        assert 1 <= rung.level.awake <= min(safe.replicas or replicas, replicas)
        assert rung.setting.limit_fraction <= safe.limit_fraction
        assert lowest is not None or rung.setting.limit_fraction == safe.limit_fraction
        assert rung.setting.replicas or rung.level.awake == replicas
    assert found[-1].level.awake == 1


@pytest.mark.parametrize(("p99_s", "window_s"), [(None, 0.0), (0.0, 0.0), (0.1, 0.06)])
def test_control_takes_a_promise_that_can_be_kept(p99_s: float | None, window_s: float) -> None:
    """Without one, or with a window that uses it up, there is nothing to hold on to."""
    with pytest.raises(UsageError, match="p99"):
        rungs(ServingOptions(upstreams=URLS[:1], setting=ServingSetting(window_s=window_s), p99_s=p99_s))

"""What the user typed is understood, or refused with what to type instead."""

from __future__ import annotations

import pytest

from negawatt.core.errors import UsageError
from negawatt.plan.request import Promise, parse_duration_s, parse_promise, read_sites


@pytest.mark.parametrize(
    ("text", "promise"),
    [
        (None, Promise()),
        ("accuracy>=0.93", Promise(metric="accuracy", bound=0.93)),
        (" f1-score >= 1e-1 ", Promise(metric="f1-score", bound=0.1)),
        ("accuracy>=baseline-0.02", Promise(metric="accuracy", margin=0.02)),
    ],
)
def test_promises(text, promise):
    """A bound, a margin below the baseline, or the default margin."""
    assert parse_promise(text) == promise


@pytest.mark.parametrize(
    "text", ["accuracy", "accuracy>0.9", "accuracy>=high", ">=0.9", "accuracy>=1e999", "a>=0.9 b", "a>=baseline--0.1"]
)
def test_promises_that_are_none(text):
    """Anything else is refused."""
    with pytest.raises(UsageError, match="--keep"):
        parse_promise(text)


@pytest.mark.parametrize(("text", "time_s"), [("90", 90), ("90s", 90), ("50ms", 0.05), ("10m", 600), ("2d", 172800)])
def test_durations(text, time_s):
    """Seconds by default; ms, s, m, h and d otherwise."""
    assert parse_duration_s(text) == time_s


@pytest.mark.parametrize("text", ["", "soon", "-5m", "0", "5 weeks", "nan"])
def test_durations_that_are_none(text):
    """Anything else is refused."""
    with pytest.raises(UsageError, match="duration"):
        parse_duration_s(text)


GOOD = """
[[site]]
name = "Here"
pue = { value = 1.3, source = "meter" }
intensity_gpkwh = { value = 350, source = "operator" }
price_per_kwh = { value = 0.25, source = "contract" }
currency = "EUR"
[[site]]
name = "There"
"""


def test_sites(tmp_path):
    """Every figure carries its source; what is not given stays unknown."""
    path = tmp_path / "site.toml"
    path.write_text(GOOD)
    here, there = read_sites(path)
    assert here.pue is not None
    assert (here.pue.value, here.pue.source, there.pue) == (1.3, "meter", None)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("1.3", "0.9", "PUE 0.9"),
        ("1.3", "nan", "PUE nan"),
        ("350", "-1", "gCO2e"),
        ('currency = "EUR"', "", "without a currency"),
        (', source = "meter"', "", "source"),
        ("[[site]]", "[site", "--site"),
        ('name = "There"', 'nom = "There"', "nom"),
    ],
)
def test_sites_that_cannot_be(tmp_path, old, new, says):
    """Impossible figures, figures without a source and malformed files are refused."""
    path = tmp_path / "site.toml"
    path.write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=says):
        read_sites(path)


def test_no_site_file(tmp_path):
    """A missing file is a usage error."""
    with pytest.raises(UsageError, match="No such file"):
        read_sites(tmp_path / "none.toml")

"""The placement that does nothing is arithmetic on declared figures, and invents none."""

from __future__ import annotations

import pytest

from negawatt.core.errors import UsageError
from negawatt.core.placement import Declared, Job, PlacementChoice, Site
from negawatt.core.reading import Source
from negawatt.schedule.here import placement
from negawatt.testing.contracts import PlacementContract

KNOWN = Site(
    name="known",
    pue=Declared(value=1.5, source="meter, 2025"),
    intensity_gpkwh=Declared(value=400.0, source="yearly average, 2024"),
    price_per_kwh=Declared(value=0.2, source="contract"),
    currency="EUR",
)
JOB = Job(name="j", energy_j=3.6e6, time_s=60.0, source=Source.COUNTER, sites=(KNOWN, Site(name="unknown")))


class TestHere(PlacementContract):
    def make(self):
        return placement


def test_one_kwh_at_pue_1_5():
    """1 kWh of IT energy at PUE 1.5, 400 g/kWh and 0.20 EUR/kWh is 1.5 kWh, 600 g and 0.30 EUR."""
    outcome = placement.outcome(JOB, placement.choices(JOB)[0])
    assert outcome.site_energy_j == pytest.approx(5.4e6)
    assert outcome.carbon_g == pytest.approx(600)
    assert outcome.cost == pytest.approx(0.3)
    assert any("meter, 2025" in line for line in outcome.basis)


def test_unknown_stays_unknown():
    """A site without figures has no site energy, carbon or cost, and the basis says unknown."""
    outcome = placement.outcome(JOB, placement.choices(JOB)[1])
    assert (outcome.site_energy_j, outcome.carbon_g, outcome.cost) == (None, None, None)
    assert any("unknown" in line for line in outcome.basis)


def test_foreign_choice_is_refused():
    """A choice that the job does not offer is a usage error."""
    with pytest.raises(UsageError, match="none of the choices"):
        placement.outcome(JOB, PlacementChoice(placement="here", site="elsewhere", start_s=0.0))

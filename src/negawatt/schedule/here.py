"""The placement that does nothing: run now, at one of the sites the user named, with the figures the user gave."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

from negawatt.core.errors import UsageError
from negawatt.core.placement import Declared, Job, Outcome, PlacementChoice, PlacementInfo

_J_PER_KWH = 3.6e6


@final
class Here:
    """Start at once. Site energy = IT energy x PUE (ISO/IEC 30134-2); carbon and money follow from site energy."""

    info = PlacementInfo(
        name="here",
        summary="start at once at each named site: the baseline of every other placement",
        evidence="arithmetic on the site's declared PUE, carbon intensity and price",
    )

    def choices(self, job: Job) -> Sequence[PlacementChoice]:
        """One per site, without delay."""
        return [PlacementChoice(placement=self.info.name, site=site.name, start_s=0.0) for site in job.sites]

    def outcome(self, job: Job, choice: PlacementChoice) -> Outcome:
        """Energy, carbon and money at that site; None wherever the site's figure is unknown."""
        if choice not in self.choices(job):
            raise UsageError(
                f"placement choice {choice}",
                f"it is none of the choices for the job {job.name!r}",
                f"use one of the sites {[site.name for site in job.sites]} with start_s=0",
            )
        site = next(site for site in job.sites if site.name == choice.site)
        energy_j = job.energy_j * site.pue.value if site.pue else None
        kwh = None if energy_j is None else energy_j / _J_PER_KWH
        figures = {"PUE": site.pue, "carbon intensity": site.intensity_gpkwh, "price": site.price_per_kwh}
        return Outcome(
            choice=choice,
            site_energy_j=energy_j,
            carbon_g=_times(kwh, site.intensity_gpkwh),
            cost=_times(kwh, site.price_per_kwh),
            currency=site.currency,
            delay_s=0.0,
            basis=(
                f"IT energy: {job.source}",
                *(f"{name}: {f'{d.value:g} ({d.source})' if d else 'unknown'}" for name, d in figures.items()),
            ),
        )


def _times(kwh: float | None, factor: Declared | None) -> float | None:
    return None if kwh is None or factor is None else kwh * factor.value


placement = Here()

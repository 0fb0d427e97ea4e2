"""Look: what the meter shows at one moment. Errors: what its looks tell of the error of a part of its joules."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from negawatt.core.reading import Reading, Source, disjoint, weakest
from negawatt.core.serving import Cost
from negawatt.serve.account import NANO, Bill


@dataclass(frozen=True, slots=True, kw_only=True)
class Look:
    """The sum of a window's readings and its error in three parts (`negawatt.core.reading`).

    Attributes:
        energy_j: joules of all scopes since the window began.
        random_variance_j2: variance of the error that differs from window to window [J^2].
        gain_sd_fraction: standard deviation of the factor on the sum; sensors are independent.
        offset_sd_w: standard deviation of the constant [W].
        source: the weakest.
    """

    energy_j: float
    random_variance_j2: float  # in J^2
    gain_sd_fraction: float
    offset_sd_w: float
    source: Source

    @classmethod
    def of(cls, readings: Sequence[Reading]) -> Look:
        """The look of some readings, at least one. Raises ScopeMismatchError if two scopes overlap."""
        disjoint([reading.scope for reading in readings])
        gains_j: dict[str, float] = {}
        offsets_w: dict[str, float] = {}
        for reading in readings:
            gain_j = reading.gain_sd_fraction * reading.energy_j
            gains_j[reading.sensor] = gains_j.get(reading.sensor, 0.0) + gain_j
            offsets_w[reading.sensor] = offsets_w.get(reading.sensor, 0.0) + reading.offset_sd_w
        energy_j = math.fsum(reading.energy_j for reading in readings)
        widest = max(reading.gain_sd_fraction for reading in readings)
        return cls(
            energy_j=energy_j,
            random_variance_j2=sum(reading.random_sd_j**2 for reading in readings),
            gain_sd_fraction=math.hypot(*gains_j.values()) / energy_j if energy_j > 0 else widest,
            offset_sd_w=math.hypot(*offsets_w.values()),
            source=weakest(reading.source for reading in readings),
        )


class Errors:
    """The meter's error of what one request pays, from the looks so far.

    A window's random error has a part that every window has, from its two edges, and in sensors that sample power a
    part that grows with its length. The first is the same for the short life of a request as for the long window that
    is looked at; the second goes by time. It is told from how the variance has grown since the window was half as old.

    Args:
        now_s: when the window began [s].
    """

    def __init__(self, now_s: float) -> None:
        self._began_s = now_s
        self._marks: list[tuple[float, float]] = []
        self._growth_w2s = 0.0
        self._edges_j2 = 0.0
        self.latest: Look | None = None

    def see(self, now_s: float, look: Look) -> None:
        """Take note of a look."""
        self.latest = look
        age_s, variance_j2 = now_s - self._began_s, look.random_variance_j2
        if age_s <= 0:
            return
        if not self._marks or age_s >= 2 * self._marks[-1][0]:
            self._marks = [*self._marks[-1:], (age_s, variance_j2)]
        old_s, old_j2 = self._marks[0]
        grown_j2 = max(0.0, variance_j2 - old_j2)
        self._growth_w2s = grown_j2 / (age_s - old_s) if age_s > old_s else 0.0
        self._edges_j2 = max(0.0, variance_j2 - self._growth_w2s * age_s)

    def cost(self, bill: Bill, carbon_gpj: float | None) -> Cost:
        """A bill with its error and grams.

        Args:
            bill: from the account.
            carbon_gpj: grams of CO2 equivalent of a joule; None: unknown.

        Returns:
            The cost. Of joules that were presumed it is estimated, with a standard deviation at least as large.

        Raises:
            ValueError: before the first look.
        """
        if self.latest is None:
            raise ValueError("no look at the meter yet")
        look, energy_j = self.latest, bill.energy_nj / NANO
        share = bill.own_s / bill.time_s if bill.time_s > 0 else 1.0
        random_sd_j = share * math.sqrt(self._edges_j2 + self._growth_w2s * bill.time_s)
        sd_j = math.hypot(random_sd_j, look.gain_sd_fraction * energy_j, look.offset_sd_w * bill.own_s)
        return Cost(
            energy_j=energy_j,
            energy_sd_j=max(sd_j, bill.doubt_nj / NANO),
            source=weakest((look.source, Source.ESTIMATED)) if bill.presumed else look.source,
            carbon_g=None if carbon_gpj is None else energy_j * carbon_gpj,
        )

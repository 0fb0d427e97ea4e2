"""Tuned: what a limit of a device was set to during a run, why, and what the windows of that run gave."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeResult:
    """What a window of steps under one limit gave: means per step, with the standard deviations of these means.

    Attributes:
        limit: what was set, all devices together [in the unit of the `Tuned`].
        steps: in the window.
        time_s, time_sd_s: per step [s].
        energy_j, energy_sd_j: per step, the devices', and the rest of the host's at constant power [J].
    """

    limit: float  # in the unit of the Tuned
    steps: float  # counted
    time_s: float
    time_sd_s: float
    energy_j: float
    energy_sd_j: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """How a limit was tuned while a run went on.

    Attributes:
        knob: "power-limit" or "clock-limit".
        unit: "W" or "MHz".
        scopes: the devices, as readings name them.
        objective: what was wanted, in words.
        found: the limit as found, all devices together.
        held: the limit in the end, before everything was put back.
        probes: every window that was measured, in order; the first is under the limit as found.
        held_steps: steps under the limit that was chosen.
        retuned: how often it was tuned anew because the work had changed.
        notes: what happened, in order: refusals, failures, drift.
    """

    knob: str
    unit: str
    scopes: tuple[str, ...]
    objective: str
    found: float  # in `unit`
    held: float  # in `unit`
    probes: tuple[ProbeResult, ...] = ()
    held_steps: float = 0.0  # counted
    retuned: int = 0
    notes: tuple[str, ...] = ()

    @property
    def changes(self) -> tuple[float, float] | None:
        """Time and energy per step under the limit held, relative to the one as found; from the last window of each.

        One run's own windows: measured, but neither randomised nor repeated, so no verdict follows. None without both.
        """
        last = {probe.limit: probe for probe in self.probes}
        base, held = last.get(self.found), last.get(self.held)
        if base is None or held is None or base is held:
            return None
        return held.time_s / base.time_s, held.energy_j / base.energy_j

    @property
    def saved_j(self) -> float | None:
        """Joules that the steps under the limit held took less, by the windows of this run; None without them [J]."""
        if self.changes is None:
            return None
        last = {probe.limit: probe for probe in self.probes}
        return (last[self.found].energy_j - last[self.held].energy_j) * self.held_steps

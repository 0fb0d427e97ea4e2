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
class Hold:
    """A limit that was held, and the windows that it was chosen by.

    Attributes:
        steps: done under it, as far as it is known to have been in force.
        base: the window under the limit as found that it was compared with.
        own: the latest window under it.
    """

    steps: float  # counted
    base: ProbeResult
    own: ProbeResult


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuned:
    """How a limit was tuned while a run went on. In a job of many ranks, energies are those of one rank's devices.

    Attributes:
        knob: "power-limit" or "clock-limit".
        unit: "W" or "MHz".
        scopes: the devices, as readings name them.
        objective: what was wanted, in words.
        found: the limit as found, all devices together.
        probes: every window that was measured, in order; the first is under the limit as found.
        holds: the limits that were held one after another; that of the last one is `held`.
        retuned: how often it was tuned anew because the work had changed.
        notes: what happened, in order: refusals, failures, drift.
        fixed: a limit that the user gave instead; None: it was tuned.
    """

    knob: str
    unit: str
    scopes: tuple[str, ...]
    objective: str
    found: float  # in `unit`
    probes: tuple[ProbeResult, ...] = ()
    holds: tuple[Hold, ...] = ()
    retuned: int = 0
    notes: tuple[str, ...] = ()
    fixed: float | None = None  # in `unit`

    @property
    def held(self) -> float:
        """The limit chosen last, or given; the one as found if none was."""
        if self.fixed is not None:
            return self.fixed
        return self.holds[-1].own.limit if self.holds else self.found

    @property
    def changes(self) -> tuple[float, float] | None:
        """Time and energy per step under the limit held last, relative to the one as found; None without both.

        One run's own windows: measured, but neither randomised nor repeated, so no verdict follows.
        """
        if not self.holds or self.holds[-1].own.limit == self.found:
            return None
        last = self.holds[-1]
        return last.own.time_s / last.base.time_s, last.own.energy_j / last.base.energy_j

    @property
    def held_steps(self) -> float:
        """Steps under limits other than the one as found, once chosen."""
        return sum(hold.steps for hold in self.holds if hold.own.limit != self.found)

    @property
    def saved_j(self) -> float | None:
        """Joules that the steps under the limits held took less, by the windows of this run; None without any [J]."""
        held = [hold for hold in self.holds if hold.own.limit != self.found]
        return sum(hold.steps * (hold.base.energy_j - hold.own.energy_j) for hold in held) if held else None

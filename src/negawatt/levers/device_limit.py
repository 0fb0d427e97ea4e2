"""DeviceLimit: a lever that limits a job's devices, at a fixed part of what was found or tuned while the job goes on.

Power limits and clocks are such levers. What was found is put back on any exit, also after SIGKILL (hardware.lease).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import final

from negawatt.core.errors import HardwareError
from negawatt.core.host import Host
from negawatt.core.lever import Choice, Context, LeverInfo
from negawatt.core.workload import Phase, Progress, StopRule, Workload
from negawatt.hardware.control import Knob
from negawatt.hardware.hand import Hand, take
from negawatt.levers.devices import Devices, of_job, why_not
from negawatt.levers.limiting import Limiting
from negawatt.tuning.objective import Objective
from negawatt.tuning.online import Pace

AS_FOUND = "as-found"
TUNED = "tuned"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceLimit:
    """Limits what a job's GPUs, or else the processors, may draw or how fast they may be clocked.

    Attributes:
        info: what the lever is.
        knob: the kind of limit.
        fractions: fixed choices, as parts of the limit as found.
        bounds: slow-downs within which it is tuned for least energy.
        hand: gets the right to change controls; a test with hardware of its own brings another.
        pace: how long tuning takes; None: as for real devices.
    """

    info: LeverInfo
    knob: Knob
    fractions: tuple[float, ...] = (0.85, 0.7, 0.6)  # parts of the limit as found
    bounds: tuple[float, ...] = (0.05,)  # slow-downs, as fractions
    hand: Callable[..., Hand] = take
    pace: Pace | None = None

    def available(self, host: Host) -> str | None:  # noqa: ARG002 -- the machine this runs on is asked
        """None if this user can change such a limit here; else why not and what to type."""
        return why_not(self.knob)

    def choices(self, workload: Workload) -> Sequence[Choice]:
        """As found (naive and competent), fixed parts of it, and tuned while training steps go on."""
        found = []
        for phase in workload.phases():
            if phase not in self.info.phases:
                continue
            values = [AS_FOUND, *(f"{fraction:g}x" for fraction in self.fractions)]
            if phase is Phase.TRAIN:
                values += [f"{TUNED}-{bound:g}" for bound in self.bounds]
            found += [self._choice(phase, value) for value in values]
        return found

    def _choice(self, phase: Phase, value: str) -> Choice:
        untouched = value == AS_FOUND
        return Choice(lever=self.info.name, phase=phase, value=value, naive=untouched, competent=untouched)

    @contextmanager
    def applied(self, workload: Workload, choice: Choice, context: Context) -> Iterator[Workload]:
        """Limit the devices, yield the workload (with its steps watched, where it tunes), and put all back as found.

        Raises:
            HardwareError, NeedsPrivilegeError, HeldError: if the devices cannot be limited.
        """
        value = str(choice.value)
        if value == AS_FOUND:
            yield workload
            return
        with ExitStack() as stack:
            controls = [control.info.address for control in of_job(self.knob)]
            hand = self.hand(controls, owner=f"lever {self.info.name}")
            stack.callback(hand.release)
            if not value.startswith(TUNED):
                for address, limit in Devices.of(hand).values(float(value.rstrip("x"))).items():
                    hand.set(address, limit)
                yield workload
                return
            objective = Objective(max_slowdown_fraction=float(value.removeprefix(f"{TUNED}-")))
            limiting = Limiting(hand, objective, readings=context.readings, clock=context.time_s, pace=self.pace)
            stack.callback(limiting.close)
            yield replace(workload, stop=_watching(workload.stop, limiting))
            tuned = limiting.close()
            if limiting.steps and not tuned.holds:
                raise HardwareError(
                    f"nothing was tuned: {'; '.join(tuned.notes)}",
                    "this trial would be taken for one under a limit that was tuned",
                    "train for longer, or leave the choice out",
                )


def _watching(stop: Callable[[], StopRule] | None, limiting: Limiting) -> Callable[[], StopRule]:
    """A stop rule that sees every training step pass, and stops where the one before it does."""

    def make() -> StopRule:
        rule = stop() if stop else None
        done = 0

        def watch(progress: Progress) -> bool:
            nonlocal done
            done += 1
            limiting.step(done)
            return rule is not None and rule(progress)

        return watch

    return make

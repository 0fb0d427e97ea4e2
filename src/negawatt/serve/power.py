"""PowerHand: the power limit of the devices that a service runs on, as one number from 0 to 1."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import final

from negawatt.core.errors import HardwareError
from negawatt.hardware.control import Knob
from negawatt.hardware.hand import Hand, put_back, take
from negawatt.levers.devices import Devices, of_job


@final
class PowerHand:
    """The right to limit these devices. Whatever happens to this process, they end up as found (`hardware.hand`).

    Its calls wait for devices, so they do not belong on an event loop's thread.

    Args:
        hand: on the power limits; `close` releases it.

    Raises:
        HardwareError: if there is no room below the limit as found; the hand is released.
    """

    def __init__(self, hand: Hand) -> None:
        self._hand = hand
        try:
            self._devices = Devices.of(hand)
            self.lowest_fraction = self._devices.lowest / self._devices.found
            if self.lowest_fraction >= 1.0:
                raise HardwareError(
                    f"the power limit of {', '.join(self._devices.scopes)} was found at {self._devices.found:g} W, "
                    "which is the lowest that they take",
                    "there is nothing to turn",
                    "leave out --limit-power, or raise the limit first",
                )
        except BaseException:
            put_back(hand)
            raise

    @classmethod
    def take(cls, scopes: Sequence[str], *, owner: str, hand: Callable[..., Hand] = take) -> PowerHand:
        """A hand on the GPUs that are metered, or else on the processors.

        Args:
            scopes: of what is metered.
            owner: what others are told who ask for the same device.
            hand: gets the right to change controls.

        Raises:
            HardwareError: if nothing can be limited here.
            NeedsPrivilegeError: if this user may not, with what an administrator types.
            HeldError: if somebody else holds one of the devices.
        """
        return cls(hand([control.info.address for control in of_job(Knob.POWER_LIMIT, scopes)], owner=owner))

    @property
    def scopes(self) -> tuple[str, ...]:
        """The devices."""
        return self._devices.scopes

    def watts(self, fraction: float) -> float:
        """The limit of all of them together that a fraction stands for [W]."""
        return self._devices.found * self._part(fraction)

    def set(self, fraction: float) -> None:
        """Set the limit: 0 the lowest that they take, 1 as found.

        Raises:
            NegawattError: as `hardware.hand.Hand.set`.
        """
        for address, value in self._devices.values(self._part(fraction)).items():
            self._hand.set(address, value)

    def close(self) -> list[str]:
        """Put everything back as found; what is not, a sentence each. Idempotent; raises nothing."""
        return put_back(self._hand)

    def _part(self, fraction: float) -> float:
        return self.lowest_fraction + (1.0 - self.lowest_fraction) * fraction

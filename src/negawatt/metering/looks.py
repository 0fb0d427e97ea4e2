"""Looks: what a probe may tell the meter beyond its contract, so that it is read at the right moments."""

from __future__ import annotations

import math
from typing import Any, Protocol


class Looks(Protocol):
    """Optional members of a probe, each with what the meter takes for granted where it is missing.

    Inherit this for the defaults, or just write down the members that differ.

    Attributes:
        running: whether its states carry a running total, so that any two of them can be subtracted however far apart
            they are. Then a window is one subtraction; else it is added up from pieces of `period_s`, each of which
            adds the error of two edges.
        look_fraction: it wants to be read again after this part of a window's age, so that what happens unseen
            between two looks is a small part of the window, however short that is.
        slice_fraction: the part of its joules that the work can use at most, as of a GPU that is cut into MIG slices.
    """

    running: bool = False
    look_fraction: float = math.inf
    slice_fraction: float = 1.0

    def settled(self, start: Any, later: Any) -> Any:  # noqa: ANN401 -- opaque to everybody but the probe itself
        """A better state for the start of a window, where a later one tells more about that moment; else `start`."""
        del later
        return start

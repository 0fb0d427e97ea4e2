"""Controls: what of the hardware can be set. One file per maker or kernel interface.

Each of them has `look()`, which gives the controls that are here and what is here but cannot be set, with the reason;
`found()`, the controls alone; and `opened(address)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TypeVar

from negawatt.core.errors import HardwareError, NegawattError, UsageError
from negawatt.core.reading import NotMeasured
from negawatt.hardware.control import Control

_KINDS = ("nvidia", "amd", "rapl", "cpufreq")
"""Modules of this package, and the first word of their addresses."""

C = TypeVar("C", bound=Control)


def found_controls() -> tuple[tuple[Control, ...], tuple[NotMeasured, ...]]:
    """Every control of this host, and what is not here or cannot be set, with the reason."""
    controls: list[Control] = []
    absent: list[NotMeasured] = []
    for kind in _KINDS:
        try:
            here, refused = import_module(f"{__name__}.{kind}").look()
        except NegawattError as error:
            absent.append(NotMeasured(what=kind, why=error.reason))
        else:
            controls += here
            absent += refused
    return tuple(controls), tuple(absent)


def open_control(address: str) -> Control:
    """The control of an address, as its `info` gave it, possibly to another process or before a crash.

    Raises:
        UsageError: if no kind of control has such addresses.
        HardwareError: if it is no longer there.
    """
    kind = address.partition(":")[0]
    if kind not in _KINDS:
        raise UsageError(
            f"no control has the address {address!r}",
            "nothing was changed",
            f"addresses begin with one of {', '.join(_KINDS)} and a colon; `negawatt doctor` lists those of this host",
        )
    control: Control = import_module(f"{__name__}.{kind}").opened(address)
    return control


def open_controls(addresses: Sequence[str]) -> tuple[Control, ...]:
    """The controls of some addresses. Raises as `open_control`."""
    return tuple(map(open_control, addresses))


def usable(controls: Sequence[C], refused: Sequence[NotMeasured]) -> Sequence[C]:
    """What `look` found that can be set. Raises HardwareError, with the reasons, if that is nothing."""
    if not controls:
        reasons = "; ".join(f"{one.what}: {one.why}" for one in refused)
        raise HardwareError(
            f"nothing here can be set ({reasons})", "the work runs as the machine is set", "see the reason"
        )
    return controls

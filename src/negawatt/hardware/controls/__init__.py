"""Controls: what of the hardware can be set. One file per maker or kernel interface, each with `found` and `opened`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module

from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.reading import NotMeasured
from negawatt.hardware.control import Control

_KINDS = ("nvidia", "amd", "rapl", "cpufreq")
"""Modules of this package. `found() -> Sequence[Control]` looks for what is here, `opened(address)` opens one."""


def found_controls() -> tuple[tuple[Control, ...], tuple[NotMeasured, ...]]:
    """Every control of this host, and the kinds that are not here, with the reason."""
    controls: list[Control] = []
    absent: list[NotMeasured] = []
    for kind in _KINDS:
        try:
            controls += import_module(f"{__name__}.{kind}").found()
        except NegawattError as error:
            absent.append(NotMeasured(what=kind, why=error.reason))
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

"""Power caps of AMD GPUs through AMD SMI, which gives and takes microwatts (amdsmi.h, amdsmi_power_cap_info_t).

Clocks are not limited here: AMD SMI first sets the GPU's performance level to manual (rocm_smi.cc,
rsmi_dev_clk_extremum_set), and one number cannot put the level back. A GPU in several partitions has several users and
one cap: it is not set.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, final

from negawatt.core.errors import HardwareError, NeedsPrivilegeError
from negawatt.core.reading import NotMeasured
from negawatt.hardware.amdsmi import import_amdsmi, one_line
from negawatt.hardware.control import ControlInfo, Knob, Value
from negawatt.hardware.controls import usable

LOWEST_FRACTION = 0.3
"""Of the highest cap, where AMD SMI tells no lowest one, or 0, which the driver takes for something else than a cap. An
assumption: further below a GPU hardly works."""
STEP_W = 1.0
"""The driver counts in whole watts."""
_PLAUSIBLE_W = (10.0, 5000.0)
"""Of a highest cap. Builds for hypervisors give watts in place of microwatts: nothing is set by a guess."""
_ADDRESS = re.compile(r"amd:(?P<bdf>[0-9a-f]{4}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]):power-limit")


@final
class AmdPowerCap:
    """The power cap of one GPU. Raises HardwareError if it cannot be read, or in no known unit."""

    def __init__(self, smi: Any, bdf: str, handle: Any) -> None:  # noqa: ANN401
        self._smi = smi
        self._bdf = bdf
        self._handle = handle
        told = self._told()
        lowest_w, highest_w = (float(told.get(name, 0)) * 1e-6 for name in ("min_power_cap", "max_power_cap"))
        if not _PLAUSIBLE_W[0] <= highest_w <= _PLAUSIBLE_W[1]:
            raise self._failed(f"gives {told.get('max_power_cap')!r} as the highest cap in microwatts")
        self.info = ControlInfo(
            address=f"amd:{bdf}:{Knob.POWER_LIMIT}",
            scope=f"gpu:pci-{bdf}",
            knob=Knob.POWER_LIMIT,
            unit="W",
            lowest=lowest_w or LOWEST_FRACTION * highest_w,
            highest=highest_w,
            step=STEP_W,
        )

    def read(self) -> float:
        """The cap [W]."""
        return float(self._told()["power_cap"]) * 1e-6

    def write(self, value: Value) -> None:
        """Set the cap [W]."""
        if value is None:
            raise self._failed("cannot be without a power cap")
        try:
            self._smi.amdsmi_set_power_cap(self._handle, 0, round(value * 1e6))
        except self._smi.AmdSmiException as error:
            if "NO_PERM" in str(error):
                raise NeedsPrivilegeError(
                    f"this user may not change the power cap of {self._bdf}",
                    "AMD's driver lets only root do so",
                    f"type `{self.command(value)}`",
                ) from error
            raise self._failed(f"refuses {value} W ({one_line(error)})") from error

    def command(self, value: Value) -> str:
        """What an administrator types."""
        return f"sudo amd-smi set --gpu {self._bdf} --power-cap {value or 0.0:.0f}"

    def _told(self) -> dict[str, Any]:
        try:
            return dict(self._smi.amdsmi_get_power_cap_info(self._handle))
        except self._smi.AmdSmiException as error:
            raise self._failed(f"cannot be asked for its power cap ({one_line(error)})") from error

    def _failed(self, what: str) -> HardwareError:
        return HardwareError(
            f"the AMD GPU {self._bdf} {what}",
            "its cap is unknown or was not changed",
            "check the GPU with `amd-smi static --limit`",
        )


def look(smi: Any | None = None) -> tuple[tuple[AmdPowerCap, ...], tuple[NotMeasured, ...]]:  # noqa: ANN401
    """The cap of every GPU, and those that are not set, with the reason.

    Args:
        smi: a module with the interface of `amdsmi`; None imports it.

    Raises:
        HardwareError: if there is no GPU, driver or package.
    """
    smi, handles = _handles(smi)
    caps: list[AmdPowerCap] = []
    refused: list[NotMeasured] = []
    for bdf in sorted(handles):
        try:
            caps.append(_cap(smi, handles, bdf))
        except HardwareError as error:
            refused.append(NotMeasured(what=f"amd {bdf}", why=error.reason))
    return tuple(caps), tuple(refused)


def found(smi: Any | None = None) -> Sequence[AmdPowerCap]:  # noqa: ANN401
    """The caps that can be set. Raises as `look`, and HardwareError if there is none."""
    return usable(*look(smi))


def opened(address: str, smi: Any | None = None) -> AmdPowerCap:  # noqa: ANN401
    """The control of an address. Raises HardwareError if it names none or the GPU is gone or has several users."""
    match = _ADDRESS.fullmatch(address)
    if match is None:
        raise HardwareError(
            f"{address!r} names no power cap of an AMD GPU",
            "nothing was changed",
            "take an address from `negawatt doctor`",
        )
    smi, handles = _handles(smi)
    if match["bdf"] not in handles:
        raise HardwareError(
            f"there is no AMD GPU {match['bdf']}", "nothing was changed", "see which there are with `amd-smi list`"
        )
    return _cap(smi, handles, match["bdf"])


def _cap(smi: Any, handles: dict[str, Any], bdf: str) -> AmdPowerCap:  # noqa: ANN401
    """The cap of one GPU. Raises HardwareError if it is in partitions, or has none, as the second die of a package."""
    partitions = Counter(name.rpartition(".")[0] for name in handles)[bdf.rpartition(".")[0]]
    if partitions > 1:
        raise HardwareError(
            f"it is in {partitions} partitions, which have one power cap together",
            "they may have several users",
            "limit the whole GPU when nobody else is on it: `sudo amd-smi set --power-cap`",
        )
    return AmdPowerCap(smi, bdf, handles[bdf])


def _handles(smi: Any | None) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
    """AMD SMI and its GPUs by PCI address. Raises HardwareError if there is none."""
    smi = smi or import_amdsmi(HardwareError)
    try:
        smi.amdsmi_init(smi.AmdSmiInitFlags.INIT_AMD_GPUS)
        handles = {str(smi.amdsmi_get_gpu_device_bdf(h)).lower(): h for h in smi.amdsmi_get_processor_handles()}
    except smi.AmdSmiException as error:
        raise HardwareError(
            f"AMD SMI cannot be used ({one_line(error)})",
            "without AMD's GPU driver no GPU's power can be limited",
            "on a machine with an AMD GPU, check its driver with `amd-smi list`",
        ) from error
    if not handles:
        raise HardwareError("AMD SMI lists no GPU", "there is nothing to set", "check with `amd-smi list`")
    return smi, handles

"""Catalogue: rated power, speed and memory of GPUs, TPUs and processors, each row with its source."""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from negawatt.core.errors import UsageError

# Idle over rated power where the maker gives none: an assumption by kind. For scale: public `nvidia-smi` logs of idle
# cards show 69 to 76 W of 700 W (H100 SXM) and 58 to 63 W of 400 W (A100 SXM); Google's 90 of 192 W (TPU v4).
IDLE_FRACTION = {"gpu": (0.05, 0.20), "tpu": (0.30, 0.50), "cpu": (0.10, 0.40)}

# What people and drivers write beside the name of a device, and what says the same.
_NOISE = {"nvidia", "amd", "intel", "google", "geforce", "tesla", "instinct", "cloud", "processor", "cpu", "gpu"}
_OTHER = {"d", "laptop", "max", "mobile", "nvl", "q", "super", "ti"}  # the name goes on: another device
_SAME = (
    (r"\((r|tm)\)|[®™]", " "),
    (r"\bsxm\d\b", "sxm"),
    (r"\btpuv", "tpu v"),
    (r"\b([a-z]+\d+)(sxm|pcie)\b", r"\1 \2"),
    (r"\b(\d+) +gb\b", r"\1gb"),
    (r"\bh100 80gb hbm3\b", "h100 sxm"),  # as the driver calls the SXM module
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One accelerator or processor, as its maker rates it. None: not published.

    Attributes:
        name: short name.
        kind: "gpu", "tpu" or "cpu".
        vendor: who makes it.
        year: of release.
        full_w: rated power: TDP, board power, or the highest measured by the maker [W].
        idle_w: idle power, only where the maker gives it [W].
        half_flop_per_s: peak of dense bf16, or of fp16 where there is no bf16, without sparsity [flop/s].
        single_flop_per_s: peak of fp32 [flop/s].
        memory_bytes_per_s: bandwidth of its memory.
        memory_bytes: size of its own memory; None for processors.
        source: title of the document that states the figures.
        url: its address.
        read: "vendor": read there; "quoted": the maker's figures as others quote them, not read again at the maker.
        derived: which of `single` and `memory` were computed, by the arithmetic in `note`; all else is published.
        note: what else to know.
    """

    name: str
    kind: str
    vendor: str
    year: int
    full_w: float
    idle_w: float | None
    half_flop_per_s: float | None
    single_flop_per_s: float | None
    memory_bytes_per_s: float | None
    memory_bytes: float | None
    source: str
    url: str
    read: str
    derived: tuple[str, ...]
    note: str

    def idle_range_w(self) -> tuple[float, float]:
        """Lowest and highest idle power: the maker's, or the assumed share of rated power of its kind [W]."""
        if self.idle_w is not None:
            return self.idle_w, self.idle_w
        low, high = IDLE_FRACTION[self.kind]
        return low * self.full_w, high * self.full_w


@cache
def devices() -> dict[str, Device]:
    """All devices by name, in the order of the table."""
    text = (files("negawatt.hardware") / "data" / "devices.csv").read_text(encoding="utf-8")
    return {row["name"]: _device(row) for row in csv.DictReader(text.splitlines())}


def find(name: str) -> Device:
    """The device of a name, forgiving case, spaces, the maker's name and the driver's decorations.

    Raises:
        UsageError: if no device, or more than one, goes by that name.
    """
    wanted = _words(name)
    known = {device.name: _words(device.name) for device in devices().values()}
    decorated = sorted((key for key in known if known[key] <= wanted), key=lambda key: len(known[key]))
    if decorated and not wanted & _OTHER:
        return devices()[decorated[-1]]
    shortened = [key for key in known if wanted and wanted <= known[key]]
    if len(shortened) == 1:
        return devices()[shortened[0]]
    if shortened:
        raise UsageError(
            f"{name!r} can be {' or '.join(repr(key) for key in shortened)}",
            "they differ in power and speed",
            f"say which, as in --gpu {shortened[-1]!r}",
        )
    from difflib import get_close_matches

    near = get_close_matches(name.lower(), {key.lower(): key for key in known}, n=1)
    original = next((key for key in known if near and key.lower() == near[0]), None)
    raise UsageError(
        f"no device {name!r} in the table",
        "an estimate rests on its rated power, and a guessed one would be made up",
        f"did you mean {original!r}?" if original else "`negawatt estimate --list-gpus` lists them",
    )


def _words(name: str) -> frozenset[str]:
    """The words of a name that tell devices apart."""
    text = name.lower()
    for pattern, plain in _SAME:
        text = re.sub(pattern, plain, text)
    return frozenset(re.findall(r"[a-z0-9.+]+", text)) - _NOISE


def _device(row: dict[str, str]) -> Device:
    def number(field: str, scale: float = 1.0) -> float | None:
        return float(row[field]) * scale if row[field] else None

    return Device(
        name=row["name"],
        kind=row["kind"],
        vendor=row["vendor"],
        year=int(row["year"]),
        full_w=float(row["full_w"]),
        idle_w=number("idle_w"),
        half_flop_per_s=number("half_tflops", 1e12),
        single_flop_per_s=number("single_tflops", 1e12),
        memory_bytes_per_s=number("memory_gb_per_s", 1e9),
        memory_bytes=number("memory_gb", 1e9),
        source=row["source"],
        url=row["url"],
        read=row["read"],
        derived=tuple(row["derived"].split()),
        note=row["note"],
    )

"""Processor: rated power of the CPUs that this system shows, from their name, and how far that is a guess."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from negawatt.core.host import Host

FAMILIES = {
    "EPYC": (r"\bepyc\b", 2.30, 0.45),
    "Xeon": (r"\bxeon\b", 3.66, 0.28),
    "unknown": ("", 4.13, 0.56),
}
"""Pattern, rated power per hardware thread [W] and standard deviation of its logarithm, where the model is hidden.

Geometric means over the rows of data/processors.csv whose threads are known: 24 EPYC; 30 Xeon of the kinds that still
serve (Scalable, Xeon 6, E5 v3 and v4); and all 87 for anything else."""
CONTAINERS = frozenset({"kubernetes", "docker", "podman", "lxc", "oci", "systemd-nspawn"})
"""Kinds of `Host.virtual` that show the host's own CPUs."""
_NOISE = (
    (r"\((r|tm|c)\)|[®™]", " "),
    (r"@.*$|\bwith\b.*$|\bw/.*$|\b\w+-core\b.*$", " "),
    (r"\b(\d+(st|nd|rd|th) gen|intel|amd|cpu|processor)\b", " "),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Processor:
    """The CPUs that a system shows.

    Attributes:
        rated_w: their rated power: that of whole processors, or in a virtual machine its part of one [W].
        rated_sd_fraction: standard deviation of its error; 0.0 where it follows from the name.
        basis: how it was found, as a sentence.
        flags: what makes it doubtful.
    """

    rated_w: float
    rated_sd_fraction: float
    basis: str
    flags: tuple[str, ...] = ()


def recognise(host: Host, cpus: int, root: Path = Path("/")) -> Processor:
    """The rated power of a host's CPUs.

    Args:
        host: where; its `cpu` is the name.
        cpus: logical CPUs that the system shows.
        root: the file system's root, for the number of sockets; another folder in tests.
    """
    rated_w, threads = rating(host.cpu)
    guest = any(part not in CONTAINERS for part in host.virtual.split(" in ") if part)
    if rated_w is not None and not guest:
        sockets = _sockets(root)
        times = f"{sockets} x " if sockets > 1 else ""
        return Processor(
            rated_w=sockets * rated_w, rated_sd_fraction=0.0, basis=f"{times}{host.cpu}, rated {rated_w:g} W"
        )
    if rated_w is not None and threads is not None:
        share = f"{cpus} of {threads} threads of {host.cpu}, rated {rated_w:g} W"
        return Processor(rated_w=cpus * rated_w / threads, rated_sd_fraction=0.0, basis=share)
    family = next(name for name, (pattern, _, _) in FAMILIES.items() if re.search(pattern, host.cpu.lower()))
    _, thread_w, log_sd = FAMILIES[family]
    kind = "a processor that is not in the table" if family == "unknown" else f"some {family}"
    basis = f"{cpus} logical CPUs of {kind} at {thread_w:g} W each"
    return Processor(
        rated_w=cpus * thread_w,
        rated_sd_fraction=math.sqrt(math.expm1(log_sd**2)),  # of the log-normal distribution
        basis=basis,
        flags=(f"the processor's model is hidden or not known ({host.cpu or 'no name'}): taken for {basis}",),
    )


def rating(name: str) -> tuple[float | None, int | None]:
    """Rated power [W] and hardware threads of one processor, by its name as the system reports it; None: not known."""
    key = shortened(name)
    table = _table()
    at = table.find(f"\n{key},") if key else -1
    if at < 0:
        return None, None
    _, rated_w, threads = table[at + 1 : table.index("\n", at + 1)].split(",")
    # These names end in "64-Core Processor", and all of them run two threads per core.
    cores = re.search(r"\b(?:epyc|threadripper)\b.*\b(\d+)-core\b", name.lower())
    return float(rated_w), int(threads) if threads else 2 * int(cores[1]) if cores else None


def shortened(name: str) -> str:
    """A processor's name as the table has it: "AMD EPYC 7763 64-Core Processor" is "epyc 7763"."""
    text = name.lower()
    for pattern, plain in _NOISE:
        text = re.sub(pattern, plain, text)
    return " ".join(text.split())


@cache
def _table() -> str:
    """The table as text: one search of it is quicker than reading its 3,000 rows."""
    return Path(__file__).with_name("data").joinpath("processors.csv").read_text(encoding="utf-8")


def _sockets(root: Path) -> int:
    """Physical packages; 1 where the system does not tell."""
    found = root.glob("sys/devices/system/cpu/cpu[0-9]*/topology/physical_package_id")
    return len({path.read_text(encoding="ascii").strip() for path in found}) or 1

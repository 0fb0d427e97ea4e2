"""SimulatedPowercap: a powercap tree in a folder, with known joules and the pathologies of real ones."""

from __future__ import annotations

import errno
import math
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from negawatt.hardware.controls.kernelfile import number_of, text_of
from negawatt.testing.limited import LimitedLoad
from negawatt.testing.load import Load

_CORE_FRACTION = 0.8
_PLATFORM_W = 10.0
"""What psys counts beside the packages and their DRAM."""


@dataclass(frozen=True, slots=True)
class _Zone:
    """What a zone counts: a part of what some package zones draw, a part of the DRAM's load, and a constant power."""

    packages: tuple[str, ...]
    fraction: float = 1.0
    dram_fraction: float = 0.0
    constant_w: float = 0.0
    head_start_j: float = 0.0


@dataclass(kw_only=True)
class SimulatedPowercap:
    """A powercap tree whose counters follow the loads of its packages on a simulated clock.

    Give its `root`, `read` and `clock` to a sensor: `RaplSensor(sim.root, read=sim.read, clock=sim.clock)`. To run it
    in real time, with files that anybody can read, use `live`.

    The loads are what is drawn under the limits as found. Under a lower one, which anybody may write into the tree, a
    package draws no more than that; it is looked at whenever time passes.

    Attributes:
        root: folder that is filled; it stands for /sys/class/powercap.
        packages: number of processor packages, each with a `core` sub-zone inside it.
        dies: zones per package; more than one are named package-N-die-M.
        one_counter: whether all die zones of a package show the package's one counter, as some kernels do.
        dram: whether each package has a `dram` sub-zone beside it.
        psys: whether there is a zone for the platform, which contains all the others.
        mmio: whether package 0 is listed a second time as intel-rapl-mmio:0.
        range_uj: the value at which counters wrap to 0 [uJ].
        start_uj: value of the counters at the start [uJ].
        load: what each package draws.
        dram_load: what each package's DRAM draws.
        refresh_s: the counters are brought up to date this often; 0: always [s].
        phase_s: when they are brought up to date [s].
        limit_w: power limit of every zone of a package as found, its long-term constraint [W].
        design_w: the highest limit that it is made for [W].
        limit_ignored: whether a limit that is written is not taken: `read` shows the one as found.
        frozen_s: from then on the counters stand still [s].
        time_s: simulated time [s]; `clock` returns it.
    """

    root: Path
    packages: int = 1
    dies: int = 1
    one_counter: bool = False
    dram: bool = False
    psys: bool = False
    mmio: bool = False
    range_uj: int = 262_143_328_850
    start_uj: int = 1_000_000
    load: Load = field(default_factory=lambda: Load([(0.0, 0.0)]))
    dram_load: Load = field(default_factory=lambda: Load([(0.0, 0.0)]))
    refresh_s: float = 0.0
    phase_s: float = 0.0
    frozen_s: float = math.inf
    limit_w: float = 125.0
    design_w: float = 150.0
    limit_ignored: bool = False
    time_s: float = 0.0
    _zones: dict[str, _Zone] = field(default_factory=dict, init=False, repr=False)
    _drawn: dict[str, LimitedLoad] = field(default_factory=dict, init=False, repr=False)
    _lost_j: dict[str, float] = field(default_factory=dict, init=False, repr=False)
    _permitted: bool = field(default=True, init=False, repr=False)
    _gone: bool = field(default=False, init=False, repr=False)
    _origin_s: float | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        for number, (package, die) in enumerate((p, d) for p in range(self.packages) for d in range(self.dies)):
            zone = f"intel-rapl:{number}"
            self._drawn[zone] = LimitedLoad(self.load)
            # Dies with counters of their own have drawn different amounts since boot.
            head_start_j = 0.0 if self.one_counter else 1234.5 * die
            name = f"package-{package}" + (f"-die-{die}" if self.dies > 1 else "")
            self._add(zone, name, _Zone((zone,), self._share, head_start_j=head_start_j))
            self._add(f"{zone}:0", "core", _Zone((zone,), self._share * _CORE_FRACTION, head_start_j=head_start_j))
            if self.dram:
                self._add(f"{zone}:1", "dram", _Zone((), 0.0, self._share, head_start_j=head_start_j))
        if self.psys:
            whole = _Zone(self._counted, self._share, float(self.packages), _PLATFORM_W)
            self._add(f"intel-rapl:{self.packages * self.dies}", "psys", whole)
        if self.mmio:
            self._add("intel-rapl-mmio:0", "package-0", _Zone(("intel-rapl:0",)))
        (self.root / "intel-rapl").mkdir(parents=True, exist_ok=True)

    @property
    def package_j(self) -> float:
        """Joules that the packages have drawn, all together."""
        drawn = (self._drawn[zone] for zone in self._counted)
        return self._share * sum(load.joules_to(self.time_s) - load.joules_to(0.0) for load in drawn)

    @property
    def _share(self) -> float:
        """The part of a package that each of its zones shows."""
        return 1.0 if self.one_counter else 1.0 / self.dies

    @property
    def _counted(self) -> tuple[str, ...]:
        """The package zones which together show every joule once."""
        return tuple(self._drawn)[:: self.dies if self.one_counter else 1]

    @property
    def dram_j(self) -> float:
        """Joules that their DRAM has drawn, all together."""
        return self.packages * (self.dram_load.joules_to(self.time_s) - self.dram_load.joules_to(0.0))

    def advance(self, seconds: float, power_w: float | None = None, dram_w: float = 0.0) -> None:
        """Let time pass.

        Args:
            seconds: how long [s].
            power_w: what each package draws from now on; its dies share it evenly. None: both loads go on as they are.
            dram_w: what each package's DRAM draws from now on.
        """
        self._notice()
        if power_w is not None:
            for load, watts in ((self.load, power_w), (self.dram_load, dram_w)):
                load.extend([(self.time_s, load.powers_w[-1]), (self.time_s, watts)])
        self.time_s += seconds
        if power_w is not None:
            self.write()

    def clock(self) -> float:
        """Seconds since the start: simulated, or real ones inside `live`."""
        return self.time_s if self._origin_s is None else time.perf_counter() - self._origin_s

    def read(self, path: Path) -> str:
        """The text of a file of the tree now; refuses energy counters while they are not permitted, even to root."""
        if path.name.endswith("_power_limit_uw") and self.limit_ignored and not self._gone:
            return f"{round(self.limit_w * 1e6)}\n"
        if path.name != "energy_uj" or self._gone:
            return path.read_text(encoding="ascii")
        if not self._permitted:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return f"{self._count(path.parent.name)}\n"

    def write(self) -> None:
        """Bring the files of the tree up to date, as `read` shows them."""
        for zone in self._zones:
            self._write(zone)

    @contextmanager
    def live(self, step_s: float = 1e-3) -> Iterator[None]:
        """Let the tree live in real time inside a block: `time_s` follows it, and the files every `step_s` [s]."""
        end = threading.Event()
        self._origin_s = time.perf_counter() - self.time_s

        def run() -> None:
            while not (end.wait(step_s) or self._gone):
                self.time_s = self.clock()
                self._notice()
                self.write()

        writer = threading.Thread(target=run, name="simulated-powercap", daemon=True)
        writer.start()
        try:
            yield
        finally:
            end.set()
            writer.join()
            self.time_s, self._origin_s = self.clock(), None

    def permit(self, allowed: bool) -> None:  # noqa: FBT001 -- reads as what it does
        """Grant or withdraw the permission to read the energy counters."""
        self._permitted = allowed
        for zone in self._zones:
            (self.root / zone / "energy_uj").chmod(0o644 if allowed else 0o200)

    def permit_limits(self, allowed: bool) -> None:  # noqa: FBT001 -- reads as what it does
        """Grant or withdraw the permission to write the power limits, which the kernel can refuse to root, too."""
        for file in self._limits():
            file.chmod(0o644 if allowed else 0o444)

    def reset(self) -> None:
        """Set all counters to 0, as a reboot or a suspend does."""
        for zone in self._zones:
            self._lost_j[zone] = self._joules(zone) + self.start_uj * 1e-6
            self._write(zone)

    def vanish(self) -> None:
        """Remove the tree, as unloading the kernel module does."""
        self._gone = True
        shutil.rmtree(self.root)

    def _add(self, zone: str, name: str, counts: _Zone) -> None:
        folder = self.root / zone
        folder.mkdir(parents=True)
        (folder / "name").write_text(f"{name}\n", encoding="ascii")
        (folder / "max_energy_range_uj").write_text(f"{self.range_uj}\n", encoding="ascii")
        (folder / "energy_uj").touch()
        if name.startswith("package-") and not zone.startswith("intel-rapl-mmio"):
            (folder / "enabled").write_text("1\n", encoding="ascii")
            constraint = {"name": "long_term", "time_window_us": 999_424, "max_power_uw": round(self.design_w * 1e6)}
            for field_, value in {**constraint, "power_limit_uw": round(self.limit_w * 1e6)}.items():
                (folder / f"constraint_0_{field_}").write_text(f"{value}\n", encoding="ascii")
        self._zones[zone] = counts
        self._write(zone)

    def _limits(self) -> list[Path]:
        """The files of the power limits, one for each package zone."""
        return [self.root / zone / "constraint_0_power_limit_uw" for zone in self._drawn]

    def _notice(self) -> None:
        """Take note of the limits that are in the tree now."""
        for file in () if self.limit_ignored or self._gone else self._limits():
            microwatts = number_of(text_of(file))
            if microwatts is not None:  # None: it is being written, or the tree is just vanishing
                lowered = microwatts < round(self.limit_w * 1e6)
                limit_w = microwatts * 1e-6 / self._share if lowered else math.inf
                self._drawn[file.parent.name].limit(self.time_s, limit_w)

    def _joules(self, zone: str) -> float:
        """What a zone has counted up to its last refresh."""
        counts, at_s = self._zones[zone], min(self.time_s, self.frozen_s)
        if self.refresh_s > 0:
            # Zones are not brought up to date in step: by the golden ratio, no two are.
            phase_s = self.phase_s + list(self._zones).index(zone) * 0.618034 * self.refresh_s
            at_s = math.floor((at_s - phase_s) / self.refresh_s + 1e-9) * self.refresh_s + phase_s
        drawn_j = counts.constant_w * at_s
        drawn_j += counts.fraction * sum(self._drawn.get(name, self.load).joules_to(at_s) for name in counts.packages)
        if counts.dram_fraction:
            drawn_j += counts.dram_fraction * self.dram_load.joules_to(at_s)
        return counts.head_start_j + drawn_j

    def _count(self, zone: str) -> int:
        return (self.start_uj + round((self._joules(zone) - self._lost_j.get(zone, 0.0)) * 1e6)) % self.range_uj

    def _write(self, zone: str) -> None:
        """In place, in one call and at a fixed length, so that a reader in another process sees a whole number."""
        file = os.open(self.root / zone / "energy_uj", os.O_WRONLY)
        try:
            os.pwrite(file, f"{self._count(zone):<15}\n".encode(), 0)
        finally:
            os.close(file)

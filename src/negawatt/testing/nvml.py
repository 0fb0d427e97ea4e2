"""SimulatedNvml: a fake libnvidia-ml.so.1 over GPUs with known joules, driven through the real `nvidia-ml-py`.

    with SimulatedNvml([SimulatedGpu(load=Load([(0.0, 300.0)]))]) as nvml:
        sensor = NvidiaSensor(nvml.pynvml(), environ={}, clock=nvml.clock)

The library is compiled on demand from `fake_nvml/*.c`, which needs Linux and a C compiler. A program that loads NVML by
itself gets it with the environment that `environ` gives. Power limits, locked clocks and profiles can be set by every
process that has it, and are one truth for all of them; a GPU draws what its load asks for, at most its limit.
"""

from __future__ import annotations

import ctypes
import importlib.util
import math
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from negawatt.core.errors import UsageError
from negawatt.testing.load import Load

_GPUS, _SLICES, _PIDS, _POINTS, _CHANGES = 8, 8, 16, 65536, 4096
_CLOCKS, _MEMORY_CLOCKS, _PROFILES = 256, 8, 32
_NEVER_S = 1e300
_SOURCES = ("fake_nvml/nvml.c", "fake_nvml/settings.c")

NOT_SUPPORTED, NO_PERMISSION, DRIVER_NOT_LOADED, GPU_IS_LOST = 3, 4, 9, 15
"""NVML's error numbers, for the fields of `SimulatedGpu` and `SimulatedNvml` that end in `_error`."""
PASCAL, VOLTA, AMPERE, HOPPER = 4, 5, 7, 9
"""NVML's numbers of GPU architectures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulatedSlice:
    """A MIG slice: its UUID and its compute slices out of the GPU's 7."""

    uuid: str
    compute_slices: int = 1


@dataclass(kw_only=True, eq=False)
class SimulatedGpu:
    """One GPU. Fields may be changed while it is simulated; call `SimulatedNvml.update` to show it.

    Attributes:
        uuid: as NVML gives it.
        name: product name.
        architecture: NVML's number.
        load: what it draws.
        slices: its MIG slices; with any, MIG mode is on.
        pids: processes that compute on it.
        counter_refresh_s: the energy counter is brought up to date this often; 0: always [s].
        counter_scale: shown joules per true joule.
        counter_offset_j: joules shown at time 0; a driver that is loaded anew sets it back [J].
        counter_window_s: the counter sees only this much of each refresh; 0: all of it [s].
        frozen_s: from then on the counter stands still; power_frozen_s: the power [s].
        power_refresh_s: power is brought up to date this often; 0: always [s].
        power_window_s: what is shown is the mean over this long before the refresh; 0: instantaneous [s].
        power_scale: shown watts per true watt.
        noise_fraction: shown power flickers evenly by up to this.
        average_window_s: averaging of nvmlDeviceGetPowerUsage; 0: as the instant power [s].
        phase_s: when the refreshes happen [s].
        handle_error: NVML's error number for asking for it; 0: none. So the others, for energy, power and the field of
            instant power; limit_error for all that sets something; device_error is that of all calls.
        limit_w: power limit as found; `SimulatedNvml.set_limit` changes it later [W].
        lowest_w: the lowest one that can be set [W].
        highest_w: the highest one that can be set; 0: power limits are not supported [W].
        default_w: the one after a restart [W].
        elsewhere_w: one that was set past NVML, as through a server's management controller [W].
        limit_ignored: whether what is set is answered with success, and not taken.
        persistence: whether persistence mode is on.
        clocks_mhz: supported graphics clocks, rising; empty: they cannot be locked [MHz]. So the memory's.
        profiles: numbers of the workload power profiles; empty: none are supported.
    """

    uuid: str = "GPU-00000000-0000-0000-0000-000000000000"
    name: str = "NVIDIA Simulated"
    architecture: int = VOLTA
    load: Load = field(default_factory=lambda: Load([(0.0, 50.0)]))
    slices: Sequence[SimulatedSlice] = ()
    pids: Sequence[int] = ()
    counter_refresh_s: float = 0.1
    counter_scale: float = 1.0  # shown joules per true joule
    counter_offset_j: float = 0.0
    counter_window_s: float = 0.0
    frozen_s: float = _NEVER_S
    power_frozen_s: float = _NEVER_S
    power_refresh_s: float = 0.02
    power_window_s: float = 0.02
    power_scale: float = 1.0  # shown watts per true watt
    noise_fraction: float = 0.0
    average_window_s: float = 0.0
    phase_s: float = 0.0
    handle_error: int = 0
    energy_error: int = 0
    power_error: int = 0
    instant_error: int = 0
    limit_error: int = 0
    device_error: int = 0
    limit_w: float = 400.0
    lowest_w: float = 100.0
    highest_w: float = 400.0
    default_w: float = 400.0
    elsewhere_w: float = math.inf
    limit_ignored: bool = False
    persistence: bool = True
    clocks_mhz: Sequence[int] = range(210, 1411, 15)
    memory_clocks_mhz: Sequence[int] = (1215,)
    profiles: Sequence[int] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuSettings:
    """What is set of a simulated GPU now, by whatever process.

    Attributes:
        limit_w: power limit [W].
        clocks_mhz: lowest and highest locked graphics clock; None: not locked [MHz]. So the memory's.
        profiles: numbers of the requested workload power profiles.
    """

    limit_w: float
    clocks_mhz: tuple[int, int] | None = None
    memory_clocks_mhz: tuple[int, int] | None = None
    profiles: tuple[int, ...] = ()


class _Slice(ctypes.Structure):
    _fields_ = (("uuid", ctypes.c_char * 96), ("gpu_slices", ctypes.c_uint32), ("compute_slices", ctypes.c_uint32))


_ERRORS = ("handle_error", "energy_error", "power_error", "instant_error", "device_error", "limit_error")
_FLOATS = (
    *("counter_refresh_s", "counter_scale", "counter_offset_j", "frozen_s", "power_frozen_s"),
    *("power_refresh_s", "power_window_s", "power_scale", "noise_fraction"),
    *("average_window_s", "phase_s", "counter_window_s"),
    *("lowest_w", "highest_w", "default_w", "elsewhere_w"),
)
_FLAGS = ("limit_ignored", "persistence")
_LISTS = (
    ("pids", "pid"),
    ("clocks_mhz", "clock_mhz"),
    ("memory_clocks_mhz", "memory_clock_mhz"),
    ("profiles", "profile"),
)


class _Change(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_double) for name in ("time_s", "joules_j", "limit_w", "effective_w"))


class _Gpu(ctypes.Structure):
    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
        *((name, ctypes.c_int32) for name in _ERRORS),
        *((name, ctypes.c_uint32) for name in _FLAGS),
        *((name, ctypes.c_uint32) for name in ("architecture", "max_slices", "slices")),
        *((name, ctypes.c_uint32) for name in ("pids", "clocks", "memory_clocks", "profiles")),
        ("pid", ctypes.c_uint32 * _PIDS),
        ("clock_mhz", ctypes.c_uint32 * _CLOCKS),
        ("memory_clock_mhz", ctypes.c_uint32 * _MEMORY_CLOCKS),
        ("profile", ctypes.c_uint32 * _PROFILES),
        *((name, ctypes.c_double) for name in (*_FLOATS, "peak_w")),
        ("locked_mhz", ctypes.c_uint32 * 2),
        ("memory_locked_mhz", ctypes.c_uint32 * 2),
        ("requested", ctypes.c_uint32 * 8),
        ("changes", ctypes.c_uint64),
        ("change", _Change * _CHANGES),
        ("points", ctypes.c_uint64),
        ("slice", _Slice * _SLICES),
        *((name, ctypes.c_double * _POINTS) for name in ("time_s", "power_w", "joules_j")),
    )


class _State(ctypes.Structure):
    _fields_ = (
        ("now_s", ctypes.c_double),
        ("origin_s", ctypes.c_double),
        ("init_error", ctypes.c_int32),
        ("gpus", ctypes.c_uint32),
        ("gpu", _Gpu * _GPUS),
    )


class SimulatedNvml:
    """A machine with simulated NVIDIA GPUs, until `close`.

    Args:
        gpus: in PCI order, at most 8.
        init_error: NVML's error number for nvmlInit, such as DRIVER_NOT_LOADED; 0: none.
        live: whether the GPUs live in real time, from now on; else only `advance` lets time pass.

    Raises:
        UsageError: where the library cannot be built.
    """

    def __init__(self, gpus: Sequence[SimulatedGpu], *, init_error: int = 0, live: bool = False) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="negawatt-nvml-"))
        try:
            self._library = _build(self._folder)
        except UsageError:
            self.close()
            raise
        with (self._folder / "state").open("w+b") as file:
            file.truncate(ctypes.sizeof(_State))
            self._memory = mmap.mmap(file.fileno(), ctypes.sizeof(_State))
        self._state = _State.from_buffer(self._memory)
        self._state.origin_s = time.perf_counter()
        self._code = ctypes.CDLL(str(self._library))
        self._code.simulated_limit_w.restype = self._code.simulated_joules.restype = ctypes.c_double
        self._code.nvmlInitWithFlags(0)  # maps the state
        self._module: Any = None
        self.live = live
        self.reset(gpus, init_error=init_error)

    def reset(self, gpus: Sequence[SimulatedGpu], *, init_error: int = 0) -> None:
        """Another machine at time 0, in place of this one. Sensors have to be opened again."""
        if len(gpus) > _GPUS:
            raise ValueError(f"at most {_GPUS} GPUs can be simulated, got {len(gpus)}")
        self.gpus = tuple(gpus)
        self._drawn = [0] * len(gpus)
        self._state.init_error = init_error
        self._state.gpus = len(gpus)
        self._state.now_s = -1.0 if self.live else 0.0
        self._state.origin_s = time.perf_counter()
        for shown in self._state.gpu:
            shown.changes = shown.peak_w = shown.points = 0
            for settings in (shown.locked_mhz, shown.memory_locked_mhz, shown.requested):
                ctypes.memset(settings, 0, ctypes.sizeof(settings))
        self.update()

    def update(self) -> None:
        """Show what was changed in the GPUs. What was set meanwhile stays as it is set."""
        for index, (gpu, shown) in enumerate(zip(self.gpus, self._state.gpu, strict=False)):
            elsewhere_w = shown.elsewhere_w
            for name in (*_ERRORS, *_FLOATS, *_FLAGS, "architecture"):
                setattr(shown, name, getattr(gpu, name))
            shown.uuid, shown.name = gpu.uuid.encode(), gpu.name.encode()
            shown.slices, shown.max_slices = len(gpu.slices), 7 if gpu.slices else 0
            for at, piece in enumerate(gpu.slices):
                shown.slice[at] = _Slice(piece.uuid.encode(), piece.compute_slices, piece.compute_slices)
            for values, place in _LISTS:
                numbers = getattr(gpu, values)
                getattr(shown, place)[: len(numbers)] = numbers
                setattr(shown, values.removesuffix("_mhz"), len(numbers))
            self._show_load(index, gpu.load, shown)
            if not shown.changes:
                self.set_limit(index, gpu.limit_w)
            elif gpu.elsewhere_w != elsewhere_w:
                self.set_limit(index, self.settings[index].limit_w)

    def _show_load(self, index: int, load: Load, shown: _Gpu) -> None:
        """What a load has got since the last time."""
        if len(load.times_s) > _POINTS:
            raise ValueError(f"a load of a simulated GPU has at most {_POINTS} points")
        old = slice(self._drawn[index], self._drawn[index] + 1)  # loads only grow
        new = slice(old.start, len(load.times_s))
        shown.peak_w = max([shown.peak_w, *load.powers_w[new]])
        for name, values in (("time_s", load.times_s), ("power_w", load.powers_w), ("joules_j", load.joules_j)):
            getattr(shown, name)[new] = values[new]
        self._drawn[index] = shown.points = new.stop

    @property
    def settings(self) -> tuple[GpuSettings, ...]:
        """What is set of every GPU now."""
        return tuple(
            GpuSettings(
                limit_w=self._code.simulated_limit_w(index),
                clocks_mhz=_locked(shown.locked_mhz),
                memory_clocks_mhz=_locked(shown.memory_locked_mhz),
                profiles=tuple(bit for bit in range(256) if shown.requested[bit // 32] >> bit % 32 & 1),
            )
            for index, shown in enumerate(self._state.gpu[: len(self.gpus)])
        )

    def set_limit(self, index: int, limit_w: float) -> None:
        """Set a GPU's power limit as an administrator: neither permission nor range is asked for."""
        if self._code.simulated_set_limit(index, ctypes.c_double(limit_w)):
            raise OSError("the simulated NVML's state cannot be locked")

    def energy_j(self, index: int, time_s: float | None = None) -> float:
        """Joules that a GPU truly drew from time 0 to a time, or to now [J]."""
        return float(self._code.simulated_joules(index, ctypes.c_double(self.clock() if time_s is None else time_s)))

    def advance(self, seconds: float, power_w: float | None = None) -> None:
        """Let simulated time pass [s], along the loads or, from now on, at one power of all GPUs [W]."""
        begin_s, end_s = self._state.now_s, self._state.now_s + seconds
        if power_w is not None:
            for load in {id(gpu.load): gpu.load for gpu in self.gpus}.values():
                load.extend([(begin_s, load.powers_w[-1]), (begin_s, power_w)])
            self.update()
        self._state.now_s = end_s

    def clock(self) -> float:
        """Seconds since the start: simulated, or real ones if live."""
        return time.perf_counter() - float(self._state.origin_s) if self.live else float(self._state.now_s)

    def pynvml(self) -> Any:  # noqa: ANN401 -- a module
        """The real `pynvml` module, an instance of its own, that has loaded this library."""
        if self._module is None:
            self._module = _own_pynvml()
            self._module.nvmlLib = ctypes.CDLL(str(self._library))
        return self._module

    @property
    def environ(self) -> dict[str, str]:
        """Environment variables with which another program finds this NVML."""
        return {"LD_LIBRARY_PATH": str(self._folder)}

    def close(self) -> None:
        """Remove its files. Sensors that have it open go on as they are."""
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exit_: object) -> None:
        self.close()


def _locked(clocks: ctypes.Array[ctypes.c_uint32]) -> tuple[int, int] | None:
    return (int(clocks[0]), int(clocks[1])) if clocks[1] else None


def _own_pynvml() -> Any:  # noqa: ANN401 -- a module
    """The module pynvml once more: the program's own may have loaded the machine's NVML."""
    found = importlib.util.find_spec("pynvml")
    if found is None or found.loader is None:
        raise UsageError(
            "nvidia-ml-py is not installed",
            "the simulated NVML is driven through it",
            "pip install nvidia-ml-py",
        )
    found.name = "negawatt_simulated_pynvml"
    vars(found.loader)["name"] = found.name  # a file loader checks it
    module = importlib.util.module_from_spec(found)
    sys.modules[found.name] = module  # it looks itself up there to make its error classes
    try:
        found.loader.exec_module(module)
    finally:
        del sys.modules[found.name]
    return module


def _build(folder: Path) -> Path:
    """Put the compiled library into a folder. Raises UsageError if that is not possible."""
    library = folder / "libnvidia-ml.so.1"
    library.write_bytes(_compiled(os.environ.get("CC", "cc")))
    return library


@cache
def _compiled(cc: str) -> bytes:
    """The library, compiled once in a process. Raises UsageError if that is not possible."""
    compiler = shutil.which(cc) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.name != "posix":
        raise UsageError(
            "no C compiler was found",
            "the simulated NVML is a small library that is compiled on demand",
            "on Linux, install one (`sudo apt install gcc`), or name it in the environment variable CC",
        )
    source = b"".join(files("negawatt.testing").joinpath(name).read_bytes() for name in _SOURCES)
    flags = ["-O2", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-x", "c", "-"]
    with tempfile.TemporaryDirectory(prefix="negawatt-nvml-") as made:
        command = [compiler, *flags, "-o", f"{made}/library", "-lm"]
        done = subprocess.run(command, input=source, capture_output=True, check=False)
        if done.returncode:
            raise UsageError(
                f"{compiler} cannot compile the simulated NVML: {done.stderr.decode(errors='replace').strip()[-400:]}",
                "the library is compiled on demand",
                "install another C compiler and name it in the environment variable CC",
            )
        return Path(made, "library").read_bytes()

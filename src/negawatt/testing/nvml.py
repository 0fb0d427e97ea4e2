"""SimulatedNvml: a fake libnvidia-ml.so.1 over GPUs with known joules, driven through the real `nvidia-ml-py`.

    with SimulatedNvml([SimulatedGpu(load=Load([(0.0, 300.0)]))]) as nvml:
        sensor = NvidiaSensor(nvml.pynvml(), environ={}, clock=nvml.clock)

The library is compiled on demand from `fake_nvml/nvml.c`, which needs Linux and a C compiler. A program that loads
NVML by itself gets it with the environment that `environ` gives.
"""

from __future__ import annotations

import ctypes
import importlib.util
import mmap
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

from negawatt.core.errors import UsageError
from negawatt.testing.load import Load

_GPUS, _SLICES, _PIDS, _POINTS = 8, 8, 16, 65536
_NEVER_S = 1e300

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
            instant power; device_error is that of all calls.
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
    device_error: int = 0


class _Slice(ctypes.Structure):
    _fields_ = (("uuid", ctypes.c_char * 96), ("gpu_slices", ctypes.c_uint32), ("compute_slices", ctypes.c_uint32))


_ERRORS = ("handle_error", "energy_error", "power_error", "instant_error", "device_error")
_FLOATS = (
    *("counter_refresh_s", "counter_scale", "counter_offset_j", "frozen_s", "power_frozen_s"),
    *("power_refresh_s", "power_window_s", "power_scale", "noise_fraction"),
    *("average_window_s", "phase_s", "counter_window_s"),
)


class _Gpu(ctypes.Structure):
    _fields_ = (
        ("uuid", ctypes.c_char * 96),
        ("name", ctypes.c_char * 96),
        *((name, ctypes.c_int32) for name in _ERRORS),
        *((name, ctypes.c_uint32) for name in ("architecture", "max_slices", "slices", "pids")),
        ("pid", ctypes.c_uint32 * _PIDS),
        *((name, ctypes.c_double) for name in _FLOATS),
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
        self.update()

    def update(self) -> None:
        """Show what was changed in the GPUs."""
        for index, (gpu, shown) in enumerate(zip(self.gpus, self._state.gpu, strict=False)):
            for name in (*_ERRORS, *_FLOATS, "architecture"):
                setattr(shown, name, getattr(gpu, name))
            shown.uuid, shown.name = gpu.uuid.encode(), gpu.name.encode()
            shown.slices, shown.max_slices, shown.pids = len(gpu.slices), 7 if gpu.slices else 0, len(gpu.pids)
            shown.pid[: len(gpu.pids)] = gpu.pids
            for at, piece in enumerate(gpu.slices):
                shown.slice[at] = _Slice(piece.uuid.encode(), piece.compute_slices, piece.compute_slices)
            if len(gpu.load.times_s) > _POINTS:
                raise ValueError(f"a load of a simulated GPU has at most {_POINTS} points")
            old = slice(self._drawn[index], self._drawn[index] + 1)  # loads only grow
            new = slice(old.start, len(gpu.load.times_s))
            for name, values in (("time_s", gpu.load.times_s), ("power_w", gpu.load.powers_w)):
                getattr(shown, name)[new] = values[new]
            shown.joules_j[new] = gpu.load.joules_j[new]
            self._drawn[index] = shown.points = new.stop

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
    """Compile the library into a folder. Raises UsageError if that is not possible."""
    library = folder / "libnvidia-ml.so.1"
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc") or shutil.which("clang")
    if compiler is None or os.name != "posix":
        raise UsageError(
            "no C compiler was found",
            "the simulated NVML is a small library that is compiled on demand",
            "on Linux, install one (`sudo apt install gcc`), or name it in the environment variable CC",
        )
    source = files("negawatt.testing").joinpath("fake_nvml/nvml.c").read_bytes()
    command = [compiler, "-O2", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-x", "c", "-", "-o", str(library)]
    done = subprocess.run([*command, "-lm"], input=source, capture_output=True, check=False)
    if done.returncode:
        raise UsageError(
            f"{compiler} cannot compile the simulated NVML: {done.stderr.decode(errors='replace').strip()[-400:]}",
            "the library is compiled on demand",
            "install another C compiler and name it in the environment variable CC",
        )
    return library

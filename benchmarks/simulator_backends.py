"""The sensors that benchmarks/simulator.py tries, each on simulated hardware with its faults.

To add one, write a function that sets its stage for a scenario and name it in BACKENDS with the faults that it can set.
"""

from __future__ import annotations

import atexit
import math
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

from negawatt.core.host import Host
from negawatt.core.reading import Probe, Sensor, SensorInfo
from negawatt.hardware.bmc import Answer
from negawatt.metering.sensors import hwmon, nvidia, rapl, redfish
from negawatt.testing import (
    Load,
    ManualClock,
    SimulatedGpu,
    SimulatedNvml,
    SimulatedPowercap,
    SimulatedSlice,
    random_load,
    true_joules,
)
from negawatt.testing.hwmon import SimulatedHwmon
from negawatt.testing.nvml import AMPERE, GPU_IS_LOST, HOPPER, NO_PERMISSION, NOT_SUPPORTED, PASCAL, VOLTA


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What happens: a window from `begin_s` to `end_s` under some loads, with or without a fault."""

    rng: Random
    begin_s: float
    end_s: float
    fault: str

    @property
    def middle_s(self) -> float:
        """When faults strike that strike in the window."""
        return self.begin_s + (self.end_s - self.begin_s) * self.rng.uniform(0.05, 0.95)

    def load(self, idle_w: float, full_w: float) -> Load:
        """A random load, long enough."""
        return random_load(self.rng, self.end_s + 1.0, idle_w, full_w)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A simulated machine, ready for one scenario."""

    sensor: Sensor
    clock: Callable[[], float]
    advance: Callable[[float], None]
    truth_j: float
    """True joules of the window."""
    unbiased_j: float
    """What a sensor with this gain and offset, and no other error, would have counted."""
    strikes: tuple[tuple[float, Callable[[], None]], ...] = ()
    """Times of faults, and what does them."""


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A sensor to be tried: to add one, write a function that sets its stage and name the faults it can set."""

    name: str
    faults: tuple[str, ...]
    stage: Callable[[Scenario], Stage]
    slow: bool = False
    """Whether it shows a load seconds late, so that a flag on a window of seconds is right without a fault, too."""


def scaled(load: Load, gain: float, offset_w: float = 0.0) -> Load:
    """What a sensor with a gain and an offset makes of a load."""
    return Load([(time_s, max(0.0, power_w * gain + offset_w)) for time_s, power_w in load.points])


# ---- RAPL -----------------------------------------------------------------------------------------------------------

RAPL_FAULTS = ("wrap", "double die", "psys and mmio", "frozen", "late", "reset", "no permission", "vanished")


def rapl_stage(scenario: Scenario) -> Stage:
    """One or two packages, with or without DRAM."""
    rng, fault = scenario.rng, scenario.fault
    gain = rng.gauss(1.0, rapl.GAIN_SD_FRACTION)
    packages, dram = rng.choice((1, 2)), rng.random() < 0.5 or fault == "psys and mmio"
    offset_w = rng.gauss(0.0, rapl.DRAM_OFFSET_SD_W) if dram else 0.0
    load, dram_load = scenario.load(20.0, 250.0), scenario.load(5.0, 20.0)
    truths = [packages * true_joules(x.points, scenario.begin_s, scenario.end_s) for x in (load, dram_load)]
    seen = scaled(load, gain), scaled(dram_load, gain, offset_w)
    unbiased = [packages * true_joules(x.points, scenario.begin_s, scenario.end_s) for x in seen]
    powercap = SimulatedPowercap(
        root=new_folder() / "powercap",
        packages=packages,
        dies=2 if fault == "double die" else 1,
        one_counter=True,
        dram=dram,
        psys=fault == "psys and mmio",
        mmio=fault == "psys and mmio",
        load=seen[0],
        dram_load=seen[1],
        range_uj=rng.choice((20_000_000_000, 65_532_610_987)) if fault == "wrap" else 262_143_328_850,
        start_uj=rng.randrange(1, 10**10),
        refresh_s=rng.uniform(0.05, 0.5) if fault == "late" else 1e-3,
        phase_s=rng.uniform(-0.5, 0.0),
        frozen_s=scenario.middle_s if fault == "frozen" else math.inf,
    )
    if fault == "wrap":  # just ahead, so that it happens in the window
        before_j = seen[0].joules_to(scenario.middle_s)
        powercap.start_uj = powercap.range_uj - round(before_j * 1e6) % powercap.range_uj
    strikes = {
        "reset": powercap.reset,
        "no permission": lambda: powercap.permit(allowed=False),
        "vanished": powercap.vanish,
    }
    return Stage(
        sensor=rapl.RaplSensor(powercap.root, read=powercap.read, clock=powercap.clock),
        clock=powercap.clock,
        advance=powercap.advance,
        truth_j=truths[0] + dram * truths[1],
        unbiased_j=unbiased[0] + dram * unbiased[1],
        strikes=((scenario.middle_s, strikes[fault]),) if fault in strikes else (),
    )


# ---- NVIDIA ---------------------------------------------------------------------------------------------------------

COUNTER_FAULTS = (
    *("frozen", "late", "reset", "counter 43 % off", "counter x100", "counter /100", "part-time sensor", "slow power"),
    *("lost", "no permission", "MIG"),
)
SAMPLED_FAULTS = ("frozen", "part-time sensor", "slow power", "mean over 1 s", "lost", "no permission", "MIG")


def faulty_gpu(scenario: Scenario, gpu: SimulatedGpu) -> None:
    """Build the fault into a GPU, as far as it is there from the start."""
    rng = scenario.rng
    changes: dict[str, dict[str, object]] = {
        "frozen": {"power_frozen_s" if gpu.energy_error else "frozen_s": scenario.middle_s},
        "late": {"counter_refresh_s": rng.uniform(0.5, 1.5)},
        "counter 43 % off": {"counter_scale": gpu.counter_scale * rng.choice((0.57, 1.43))},
        "counter x100": {"counter_scale": gpu.counter_scale * 100},
        "counter /100": {"counter_scale": gpu.counter_scale / 100},
        "part-time sensor": {
            "name": "NVIDIA H100 80GB HBM3",
            "architecture": HOPPER,
            "power_refresh_s": 0.1,
            "power_window_s": 0.025,
            "counter_window_s": 0.025,
        },
        "slow power": {"power_refresh_s": 0.1, "power_window_s": 0.1},
        "mean over 1 s": {"architecture": AMPERE, "instant_error": NOT_SUPPORTED, "average_window_s": 1.0},
        "MIG": {"slices": (SimulatedSlice(uuid="MIG-1", compute_slices=3), SimulatedSlice(uuid="MIG-2"))},
    }
    for name, value in changes.get(scenario.fault, {}).items():
        setattr(gpu, name, value)


def nvidia_stage(scenario: Scenario, *, counter: bool) -> Stage:
    """One GPU, with an energy counter or without."""
    rng = scenario.rng
    gain = rng.gauss(1.0, nvidia.GAIN_SD_FRACTION)
    load = scenario.load(60.0, 400.0)
    gpu = SimulatedGpu(
        architecture=VOLTA if counter else PASCAL,
        load=load,
        counter_scale=gain,
        counter_offset_j=rng.uniform(10.0, 1e6),
        counter_refresh_s=rng.choice((0.01, 0.02, 0.1, 0.1)),
        power_scale=gain,
        noise_fraction=0.002,
        phase_s=rng.uniform(-0.5, 0.0),
        energy_error=0 if counter else NOT_SUPPORTED,
        instant_error=0 if counter else NOT_SUPPORTED,
    )
    faulty_gpu(scenario, gpu)
    NVML.reset([gpu])

    def strike(name: str, value: float) -> None:
        setattr(gpu, name, value)
        NVML.update()

    strikes: dict[str, Callable[[], None]] = {
        "reset": lambda: strike("counter_offset_j", -gain * load.joules_to(NVML.clock())),
        "lost": lambda: strike("device_error", GPU_IS_LOST),
        "no permission": lambda: strike("device_error", NO_PERMISSION),
    }
    environ = {"CUDA_VISIBLE_DEVICES": "MIG-1,MIG-2"} if gpu.slices else {}
    truth_j = true_joules(load.points, scenario.begin_s, scenario.end_s)
    return Stage(
        sensor=nvidia.NvidiaSensor(NVML.pynvml(), environ=environ, clock=NVML.clock),
        clock=NVML.clock,
        advance=NVML.advance,
        truth_j=truth_j,
        unbiased_j=truth_j * gain,
        strikes=((scenario.middle_s, strikes[scenario.fault]),) if scenario.fault in strikes else (),
    )


# ---- hwmon ----------------------------------------------------------------------------------------------------------

HWMON_FAULTS = ("Jetson rail", "GPU mean", "ACPI meter", "frozen socket", "frozen rail", "no permission", "vanished")


def hwmon_stage(scenario: Scenario) -> Stage:
    """A processor socket with an energy counter; as faults, chips that show a mean over 0.1 to 1 s."""
    rng, fault = scenario.rng, scenario.fault
    gain = rng.gauss(1.0, hwmon.GAIN_SD_FRACTION)
    load = scenario.load(20.0, 250.0)
    layouts: dict[str, dict[str, object]] = {
        "Jetson rail": {"rails": ("VDD_IN",), "refresh_s": rng.uniform(0.01, 0.1)},
        "frozen rail": {"rails": ("VDD_IN",), "refresh_s": rng.uniform(0.01, 0.1)},
        "GPU mean": {"gpus": ("0000:03:00.0",), "refresh_s": rng.uniform(0.001, 0.1)},
        "ACPI meter": {"meter_mean_s": 1.0, "refresh_s": rng.uniform(0.1, 1.0), "accuracy": "0.0%"},
    }
    layout = layouts.get(fault, {"sockets": 1, "refresh_s": 1e-3})
    chips = SimulatedHwmon(
        root=new_folder() / "hwmon", others=(), load=load, scale=gain, noise_fraction=0.002, **layout
    )
    truth_j = true_joules(load.points, scenario.begin_s, scenario.end_s)
    strikes = {
        "frozen socket": chips.freeze,
        "frozen rail": chips.freeze,
        "no permission": lambda: chips.permit(allowed=False),
        "vanished": chips.vanish,
    }
    return Stage(
        sensor=hwmon.HwmonSensor(chips.root, environ={}, read=chips.read, clock=chips.clock),
        clock=chips.clock,
        advance=chips.advance,
        truth_j=truth_j,
        unbiased_j=truth_j * gain,
        strikes=((scenario.middle_s, strikes[fault]),) if fault in strikes else (),
    )


# ---- Redfish --------------------------------------------------------------------------------------------------------

BMC_FAULTS = ("power only", "frozen", "restarted")


@dataclass(frozen=True, kw_only=True)
class SimulatedBmc:
    """A sensor over the answers of a BMC, without the network and the thread that asks."""

    info: SensorInfo
    probe: Probe

    def available(self, host: Host) -> None:
        """It is."""

    def open(self) -> tuple[Probe]:
        """The machine's probe."""
        return (self.probe,)


def bmc_stage(scenario: Scenario) -> Stage:
    """A machine whose BMC has new numbers every second: of energy and power or, as a fault, of power only."""
    rng, clock, load = scenario.rng, ManualClock(), scenario.load(200.0, 900.0)
    gain, late_s, faults = rng.gauss(1.0, redfish.GAIN_SD_FRACTION), rng.uniform(0.0, 1.0), set[str]()

    def answer() -> Answer:
        now_s = math.floor(clock() if "frozen" not in faults else scenario.begin_s) - late_s
        before_j, now_j = (gain * load.joules_to(time_s) for time_s in (now_s - 1.0, now_s))
        count_j = None if scenario.fault == "power only" else now_j if "restarted" in faults else 1e6 + now_j
        return Answer(power_w=round(now_j - before_j), energy_j=count_j)

    truth_j = true_joules(load.points, scenario.begin_s, scenario.end_s)
    struck = scenario.fault in ("frozen", "restarted")
    return Stage(
        sensor=SimulatedBmc(info=redfish.sensor.info, probe=redfish.probe_of(answer, answer(), clock, 1.0)),
        clock=clock,
        advance=clock.advance,
        truth_j=truth_j,
        unbiased_j=truth_j * gain,
        strikes=((scenario.middle_s, lambda: faults.add(scenario.fault)),) if struck else (),
    )


BACKENDS = (
    Backend(name="rapl", faults=RAPL_FAULTS, stage=rapl_stage),
    Backend(name="nvidia_counter", faults=COUNTER_FAULTS, stage=partial(nvidia_stage, counter=True)),
    Backend(name="nvidia_sampled", faults=SAMPLED_FAULTS, stage=partial(nvidia_stage, counter=False)),
    Backend(name="hwmon", faults=HWMON_FAULTS, stage=hwmon_stage),
    Backend(name="redfish", faults=BMC_FAULTS, stage=bmc_stage, slow=True),
)
ROOT: str
NVML: SimulatedNvml
"""The folder and the machine that all scenarios of this process use in turn."""


def new_folder() -> Path:
    """An empty folder."""
    return Path(tempfile.mkdtemp(dir=ROOT))


def prepare() -> None:
    """Make them."""
    global ROOT, NVML  # noqa: PLW0603 -- one per process of the pool
    ROOT = tempfile.mkdtemp(prefix="negawatt-simulator-")
    NVML = SimulatedNvml([])
    atexit.register(shutil.rmtree, ROOT, ignore_errors=True)
    atexit.register(NVML.close)

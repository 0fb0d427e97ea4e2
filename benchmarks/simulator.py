"""Simulator: how right the meter is about joules that are known, on simulated sensors with the faults of real ones.

Each scenario is a random load (idle, steps, bursts, sawtooth, or training, half of it in beat with a sensor that is
brought up to date every 100 ms), a window of random length (a quarter of them 20 ms to 2 s, the others 2 s to 10 min,
both evenly in the logarithm) and, in every second one, a fault. The real `Meter`, its windows and sensors run on a
simulated clock that wakes the poller late, as an operating system does; GPUs are read through the real nvidia-ml-py and
the fake libnvidia-ml.so.1 of negawatt.testing. What is true comes from `true_joules`, which shares no code with them.

The unknown factor and constant of each sensor (gain, offset) are drawn from the standard deviations that its readings
state. So there are two errors:

- error: against what an unbiased sensor would have counted, gain and offset taken out; the bar of 1 % is for it, on
  windows of 2 s and more, unless the reading is flagged or refused;
- coverage: how often the stated 95 % interval, gain and offset included, holds the true joules. `random_coverage` is
  the same for the random error alone, gain and offset taken out.

Four runs that overlap on one host are metered, too: their parts over the host's joules is `host_sum_ratio`. And a few
windows run live in real time: RAPL's files, and GPUs in a process of their own that finds the fake library as it
would find the driver's.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from statistics import median

import negawatt
from negawatt.core.errors import NegawattError
from negawatt.core.reading import Reading, Sensor, total
from negawatt.hardware.host import this_host
from negawatt.metering.board import Board
from negawatt.metering.select import open_best
from negawatt.metering.sensors import nvidia, rapl
from negawatt.metering.session import Meter
from negawatt.testing import (
    Load,
    SimulatedGpu,
    SimulatedNvml,
    SimulatedPowercap,
    SimulatedSlice,
    random_load,
    true_joules,
)
from negawatt.testing.nvml import AMPERE, GPU_IS_LOST, HOPPER, NO_PERMISSION, NOT_SUPPORTED, PASCAL

SCENARIOS = 1000
BAR_FROM_S = 2.0
HOST = replace(this_host(), system="Linux 6.8")
Z95 = 1.959964


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
class Outcome:
    """How one scenario went."""

    fault: str
    length_s: float
    flagged: bool
    error_fraction: float = math.nan
    covered: bool = False
    random_covered: bool = False


@dataclass(frozen=True, kw_only=True)
class Backend:
    """A sensor to be tried: to add one, write a function that sets its stage and name the faults it can set."""

    name: str
    faults: tuple[str, ...]
    stage: Callable[[Scenario], Stage]


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
        root=Path(tempfile.mkdtemp(dir=ROOT)) / "powercap",
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
            **{"name": "NVIDIA H100 80GB HBM3", "architecture": HOPPER, "power_refresh_s": 0.1},
            **{"power_window_s": 0.025, "counter_window_s": 0.025},
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
        architecture=5 if counter else PASCAL,
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

    drawn_j = load.joules_to(scenario.end_s) * gain
    strikes: dict[str, Callable[[], None]] = {
        "reset": lambda: strike("counter_offset_j", -gain * load.joules_to(NVML.clock())),
        "lost": lambda: strike("device_error", GPU_IS_LOST),
        "no permission": lambda: strike("device_error", NO_PERMISSION),
    }
    gpu.counter_offset_j = max(gpu.counter_offset_j, drawn_j * 0.0)
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


BACKENDS = (
    Backend(name="rapl", faults=RAPL_FAULTS, stage=rapl_stage),
    Backend(name="nvidia_counter", faults=COUNTER_FAULTS, stage=lambda s: nvidia_stage(s, counter=True)),
    Backend(name="nvidia_sampled", faults=SAMPLED_FAULTS, stage=lambda s: nvidia_stage(s, counter=False)),
)
ROOT: str
NVML: SimulatedNvml


# ---- the play -------------------------------------------------------------------------------------------------------


def metered(stage: Stage, scenario: Scenario) -> tuple[Reading, ...]:
    """Readings of the window. Raises NegawattError where the meter refuses."""
    stage.advance(scenario.begin_s)
    with Meter(open_best({stage.sensor.info.name: stage.sensor}, HOST), stage.clock, background=False) as meter:
        window = meter.start()
        strikes = sorted(stage.strikes, key=lambda strike: strike[0])
        while (now_s := stage.clock()) < scenario.end_s:
            wake_s = now_s + meter.poll_s + scenario.rng.expovariate(1 / 3e-4)
            next_s = min(wake_s, scenario.end_s, *(at_s for at_s, _ in strikes))
            stage.advance(max(0.0, next_s - now_s))
            if strikes and next_s >= strikes[0][0]:
                strikes.pop(0)[1]()
            elif next_s == wake_s:
                meter.poll()
        return window.stop()


def play(backend: Backend, seed: int) -> Outcome:
    """One scenario."""
    rng = Random(seed)
    short = rng.random() < 0.25
    low_s, high_s = (0.02, BAR_FROM_S) if short else (BAR_FROM_S, 600.0)
    length_s = math.exp(rng.uniform(math.log(low_s), math.log(high_s)))
    fault = rng.choice(backend.faults) if seed % 2 else ""
    begin_s = rng.uniform(1.0, 3.0)
    scenario = Scenario(rng=rng, begin_s=begin_s, end_s=begin_s + length_s, fault=fault)
    stage = backend.stage(scenario)
    try:
        readings = metered(stage, scenario)
    except NegawattError:
        return Outcome(fault=fault, length_s=length_s, flagged=True)
    energy_j, sd_j = total(readings, length_s)
    random_sd_j = math.sqrt(sum(reading.random_sd_j**2 for reading in readings))
    return Outcome(
        fault=fault,
        length_s=length_s,
        flagged=any(reading.flags for reading in readings),
        error_fraction=abs(energy_j / stage.unbiased_j - 1),
        covered=abs(energy_j - stage.truth_j) <= Z95 * sd_j,
        random_covered=abs(energy_j - stage.unbiased_j) <= Z95 * random_sd_j,
    )


def rows(backend: Backend, outcomes: Sequence[Outcome]) -> Iterator[dict]:
    """The table of one backend: all, those without a fault, and each fault."""
    groups: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        groups["all"].append(outcome)
        groups[outcome.fault or "none"].append(outcome)
    for fault in ("all", "none", *backend.faults):
        group = groups[fault]
        plain = [outcome for outcome in group if not outcome.flagged]
        errors = [outcome.error_fraction for outcome in plain if outcome.length_s >= BAR_FROM_S]
        yield {
            "backend": backend.name,
            "fault": fault,
            "n": len(group),
            "flagged_fraction": mean(outcome.flagged for outcome in group),
            "error_p50_fraction": median(errors) if errors else None,
            "error_max_fraction": max(errors, default=None),
            "over_bar": sum(error > 0.01 for error in errors),
            "coverage_fraction": mean(outcome.covered for outcome in plain),
            "random_coverage_fraction": mean(outcome.random_covered for outcome in plain),
        }


def mean(values: Iterator[bool]) -> float | None:
    """Mean of some values; None if there are none."""
    found = list(values)
    return sum(found) / len(found) if found else None

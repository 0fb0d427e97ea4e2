"""Test kit for users and plug-in authors: simulated hardware with known joules, and contract tests to inherit.

    from negawatt.testing import SensorContract

    class TestMySensor(SensorContract):
        def make(self):
            return my_package.sensor

Nothing in negawatt imports this package, and it imports pytest only inside the contract tests.
"""

from negawatt.testing.contracts import LeverContract, PlacementContract, SensorContract, WorkloadContract
from negawatt.testing.control_contract import ControlContract
from negawatt.testing.cpufreq import SimulatedCpufreq
from negawatt.testing.load import Load, random_load
from negawatt.testing.nvml import GpuSettings, SimulatedGpu, SimulatedNvml, SimulatedSlice
from negawatt.testing.powercap import SimulatedPowercap
from negawatt.testing.reference import true_joules
from negawatt.testing.scripted import ManualClock, PlainContext, ScriptedSensor

__all__ = [
    "ControlContract",
    "GpuSettings",
    "LeverContract",
    "Load",
    "ManualClock",
    "PlacementContract",
    "PlainContext",
    "ScriptedSensor",
    "SensorContract",
    "SimulatedCpufreq",
    "SimulatedGpu",
    "SimulatedNvml",
    "SimulatedPowercap",
    "SimulatedSlice",
    "WorkloadContract",
    "random_load",
    "true_joules",
]

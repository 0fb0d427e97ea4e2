"""Test kit for users and plug-in authors: simulated hardware with known joules, and contract tests to inherit.

    from negawatt.testing import SensorContract

    class TestMySensor(SensorContract):
        def make(self):
            return my_package.sensor

Nothing in negawatt imports this package, and it imports pytest only inside the contract tests.
"""

from negawatt.testing.contracts import LeverContract, PlacementContract, SensorContract, WorkloadContract
from negawatt.testing.nvml import FakeGpu, FakeNvml
from negawatt.testing.powercap import SimulatedPowercap
from negawatt.testing.scripted import ManualClock, PlainContext, ScriptedSensor

__all__ = [
    "FakeGpu",
    "FakeNvml",
    "LeverContract",
    "ManualClock",
    "PlacementContract",
    "PlainContext",
    "ScriptedSensor",
    "SensorContract",
    "SimulatedPowercap",
    "WorkloadContract",
]

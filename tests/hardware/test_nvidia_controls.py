"""What is set of NVIDIA GPUs through the real nvidia-ml-py over the simulated library."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from negawatt.core.errors import HardwareError, NeedsPrivilegeError
from negawatt.hardware.control import Control, Knob
from negawatt.hardware.controls import nvidia
from negawatt.testing.control_contract import ControlContract
from negawatt.testing.load import Load
from negawatt.testing.nvml import (
    AMPERE,
    DRIVER_NOT_LOADED,
    GPU_IS_LOST,
    NO_PERMISSION,
    PASCAL,
    SimulatedGpu,
    SimulatedNvml,
    SimulatedSlice,
)

A, B = "GPU-aaaa1111", "GPU-bbbb2222"
NEW = {"architecture": AMPERE, "memory_clocks_mhz": (810, 1215), "profiles": (0, 1, 6, 7, 40)}


@pytest.fixture(scope="module")
def library() -> Iterator[SimulatedNvml]:
    with SimulatedNvml([]) as simulated:
        yield simulated


@pytest.fixture
def nvml(library: SimulatedNvml) -> SimulatedNvml:
    """Two GPUs, the first of which supports everything."""
    library.reset([SimulatedGpu(uuid=A, load=Load([(0.0, 300.0)]), **NEW), SimulatedGpu(uuid=B, architecture=PASCAL)])
    return library


def of(nvml: SimulatedNvml, knob: Knob) -> Control:
    return nvidia.opened(f"nvidia:{A}:{knob}", nvml.pynvml())


class NvidiaContract(ControlContract):
    """A control of a simulated NVIDIA GPU."""

    knob = Knob.POWER_LIMIT

    @pytest.fixture(autouse=True)
    def simulated(self, nvml: SimulatedNvml) -> None:
        self.nvml = nvml

    def make(self) -> Control:
        return of(self.nvml, self.knob)

    def reopen(self, address: str) -> Control:
        return nvidia.opened(address, self.nvml.pynvml())


class TestPowerLimit(NvidiaContract):
    """The power limit keeps the contract."""


class TestClockLimit(NvidiaContract):
    """So do locked clocks, which only the one who locked them knows of."""

    knob = Knob.CLOCK_LIMIT
    remembers = False


class TestMemoryClockLimit(TestClockLimit):
    """So do those of the memory."""

    knob = Knob.MEMORY_CLOCK_LIMIT


class TestProfile(NvidiaContract):
    """So do workload power profiles."""

    knob = Knob.PROFILE


def test_every_gpu_has_what_it_supports(nvml: SimulatedNvml) -> None:
    """A Pascal GPU has no locked clocks; memory with one clock has nothing to lock."""
    knobs = {control.info.address: control.info.knob for control in nvidia.found(nvml.pynvml())}
    assert list(knobs) == [*(f"nvidia:{A}:{knob}" for knob in Knob), f"nvidia:{B}:power-limit"]
    clock = of(nvml, Knob.CLOCK_LIMIT).info
    assert (clock.lowest, clock.highest, clock.step, len(clock.values)) == (210.0, 1410.0, 15.0, 81)


def test_a_limit_takes_effect_and_the_gpu_draws_no_more(nvml: SimulatedNvml) -> None:
    """Watts are watts."""
    of(nvml, Knob.POWER_LIMIT).write(150.5)
    assert nvml.settings[0].limit_w == pytest.approx(150.5)
    nvml.advance(10.0)
    assert nvml.energy_j(0) == pytest.approx(1505.0)


def test_locked_clocks_and_profiles_arrive(nvml: SimulatedNvml) -> None:
    """The lock reaches from the lowest clock to the value; of profiles, only one is requested at a time."""
    for knob, value in ((Knob.CLOCK_LIMIT, 1005.0), (Knob.MEMORY_CLOCK_LIMIT, 810.0)):
        of(nvml, knob).write(value)
    profile = of(nvml, Knob.PROFILE)
    profile.write(40.0)
    profile.write(6.0)
    now = nvml.settings[0]
    assert (now.clocks_mhz, now.memory_clocks_mhz, now.profiles) == ((210, 1005), (810, 810), (6,))
    for knob in (Knob.CLOCK_LIMIT, Knob.MEMORY_CLOCK_LIMIT, Knob.PROFILE):
        of(nvml, knob).write(None)
    now = nvml.settings[0]
    assert (now.clocks_mhz, now.memory_clocks_mhz, now.profiles) == (None, None, ())


@pytest.mark.parametrize("name", ["c_nvmlWorkloadPowerProfileUpdateProfiles_v1_t", None])
def test_profiles_are_set_through_older_drivers(
    nvml: SimulatedNvml, monkeypatch: pytest.MonkeyPatch, name: str | None
) -> None:
    """Without the call that replaces requests, in the binding or the driver, they are cleared and set."""
    module = nvml.pynvml()
    if name:
        monkeypatch.delattr(module, name)
    else:

        def missing(*_: Any) -> None:
            raise module.NVMLError(module.NVML_ERROR_FUNCTION_NOT_FOUND)

        monkeypatch.setattr(module, "nvmlDeviceWorkloadPowerProfileUpdateProfiles_v1", missing)
    profile = of(nvml, Knob.PROFILE)
    for value in (7.0, 40.0, None):
        profile.write(value)
        assert profile.read() == value


def test_several_profiles_are_left_to_who_requested_them(nvml: SimulatedNvml) -> None:
    """One number cannot put two requests back."""
    module = nvml.pynvml()
    profile = of(nvml, Knob.PROFILE)
    request = module.c_nvmlWorkloadPowerProfileRequestedProfiles_v1_t()
    request.requestedProfilesMask.mask[0] = 0b11
    handle = module.nvmlDeviceGetHandleByIndex(0)
    module.nvmlDeviceWorkloadPowerProfileSetRequestedProfiles(handle, nvidia.byref(request))
    with pytest.raises(HardwareError, match="more than one profile requested"):
        profile.read()


def test_a_lower_limit_set_elsewhere_is_the_highest_on_offer(nvml: SimulatedNvml) -> None:
    """Where the server's controller allows 250 W, nothing above is offered, and what NVML holds is still read."""
    nvml.gpus[0].elsewhere_w = 250.0
    nvml.update()
    limit = of(nvml, Knob.POWER_LIMIT)
    assert (limit.info.highest, limit.read()) == (250.0, 400.0)


def test_commands_are_those_of_nvidia_smi(nvml: SimulatedNvml) -> None:
    """They name the GPU; without persistence mode they turn it on, as the driver would forget the setting."""
    smi = f"sudo nvidia-smi -i {A}"
    assert of(nvml, Knob.POWER_LIMIT).command(212.5) == f"{smi} -pl 212.5"
    assert of(nvml, Knob.CLOCK_LIMIT).command(1005.0) == f"{smi} -lgc 210,1005"
    assert of(nvml, Knob.CLOCK_LIMIT).command(None) == f"{smi} -rgc"
    assert of(nvml, Knob.MEMORY_CLOCK_LIMIT).command(810.0) == f"{smi} -lmc 810,810"
    profile = of(nvml, Knob.PROFILE)
    profile.write(1.0)
    smi_profiles = f"sudo nvidia-smi power-profiles -i {A}"
    assert profile.command(6.0) == f"{smi_profiles} -cr 1 && {smi_profiles} -sr 6"
    assert profile.command(None) == f"{smi_profiles} -cr 1"
    nvml.gpus[0].persistence = False
    nvml.update()
    assert of(nvml, Knob.POWER_LIMIT).command(200.0) == f"{smi} -pm 1 && {smi} -pl 200"
    assert of(nvml, Knob.CLOCK_LIMIT).command(None) == f"{smi} -rgc"


def test_who_may_not_set_is_told_what_to_type(nvml: SimulatedNvml) -> None:
    """Without permission nothing is changed, and the error holds the command."""
    nvml.gpus[0].limit_error = NO_PERMISSION
    nvml.update()
    for knob, value in ((Knob.POWER_LIMIT, 200.0), (Knob.CLOCK_LIMIT, 1005.0), (Knob.PROFILE, 1.0)):
        with pytest.raises(NeedsPrivilegeError, match=f"may not change the {knob}.*\n.*\n.*sudo nvidia-smi"):
            of(nvml, knob).write(value)
    assert nvml.settings[0].limit_w == 400.0


def test_what_does_not_take_is_read_back_as_it_is(nvml: SimulatedNvml, monkeypatch: pytest.MonkeyPatch) -> None:
    """A driver that says success and ignores the write is found out, also by a clock above its lock."""
    monkeypatch.setattr(nvidia, "SETTLE_S", 0.01)
    nvml.gpus[0].limit_ignored = True
    nvml.update()
    limit, clock = of(nvml, Knob.POWER_LIMIT), of(nvml, Knob.CLOCK_LIMIT)
    limit.write(200.0)
    clock.write(1005.0)
    assert (limit.read(), clock.read()) == (400.0, 1410.0)


def test_a_lost_gpu_is_an_error(nvml: SimulatedNvml) -> None:
    """Reading, writing and looking say that it is lost; a limit outside the range or none is refused."""
    limit = of(nvml, Knob.POWER_LIMIT)
    with pytest.raises(HardwareError, match=r"refuses 99\.0 W.*Invalid Argument"):
        limit.write(99.0)
    with pytest.raises(HardwareError, match="without a power limit"):
        limit.write(None)
    nvml.gpus[0].device_error = GPU_IS_LOST
    nvml.update()
    for call in (limit.read, lambda: limit.write(200.0), lambda: nvidia.look(nvml.pynvml())):
        with pytest.raises(HardwareError, match="GPU is lost"):
            call()


def test_a_gpu_cut_into_slices_is_left_alone(nvml: SimulatedNvml) -> None:
    """Slices have one limit together and may have several users; one slice alone has one."""
    slices = [SimulatedSlice(uuid="MIG-1"), SimulatedSlice(uuid="MIG-2")]
    nvml.reset([SimulatedGpu(uuid=A, slices=slices), SimulatedGpu(uuid=B)])
    here, refused = nvidia.look(nvml.pynvml())
    assert {control.info.scope for control in here} == {f"gpu:{B}"}
    assert [(one.what, "2 MIG slices" in one.why) for one in refused] == [(f"nvidia {A}", True)]
    with pytest.raises(HardwareError, match="2 MIG slices"):
        of(nvml, Knob.POWER_LIMIT)
    nvml.reset([SimulatedGpu(uuid=A, slices=slices)])
    with pytest.raises(HardwareError, match=r"nothing here can be set.*2 MIG slices"):
        nvidia.found(nvml.pynvml())
    nvml.reset([SimulatedGpu(uuid=A, slices=slices[:1])])
    assert of(nvml, Knob.POWER_LIMIT).read() == 400.0


def test_a_gpu_that_supports_nothing_says_so(nvml: SimulatedNvml) -> None:
    """Its address cannot be opened, and looking gives the reason."""
    nvml.reset([SimulatedGpu(uuid=A, highest_w=0.0, clocks_mhz=())])
    with pytest.raises(HardwareError, match="lets nothing be set"):
        nvidia.found(nvml.pynvml())
    with pytest.raises(HardwareError, match="does not support it"):
        of(nvml, Knob.POWER_LIMIT)
    nvml.reset([], init_error=DRIVER_NOT_LOADED)
    with pytest.raises(HardwareError, match="NVML cannot be used"):
        nvidia.found(nvml.pynvml())
    nvml.reset([])
    with pytest.raises(HardwareError, match="lists no GPU"):
        nvidia.found(nvml.pynvml())


@pytest.mark.parametrize(
    "address", ["nvidia:", f"nvidia:{A}:fan", f"nvidia:{A}/../x:power-limit", "nvidia:0:power-limit"]
)
def test_addresses_of_no_gpu_are_refused(nvml: SimulatedNvml, address: str) -> None:
    """Only UUID and knob make an address."""
    with pytest.raises(HardwareError, match="names nothing of an NVIDIA GPU"):
        nvidia.opened(address, nvml.pynvml())


def test_a_gpu_that_is_not_there_is_refused(nvml: SimulatedNvml) -> None:
    """An address of another machine opens nothing."""
    with pytest.raises(HardwareError, match="there is no GPU GPU-ffff"):
        nvidia.opened("nvidia:GPU-ffff:power-limit", nvml.pynvml())


def test_another_process_sets_the_same_gpu(nvml: SimulatedNvml) -> None:
    """What a child sets by the address is seen here, and the child sees what was set here."""
    limit = of(nvml, Knob.POWER_LIMIT)
    limit.write(333.0)
    program = (
        "import sys; from negawatt.hardware.controls import open_control; control = open_control(sys.argv[1]);"
        "print(control.read()); control.write(222.0)"
    )
    command = [sys.executable, "-c", program, limit.info.address]
    done = subprocess.run(command, env={**os.environ, **nvml.environ}, capture_output=True, text=True, check=True)
    assert (done.stdout, limit.read()) == ("333.0\n", 222.0)

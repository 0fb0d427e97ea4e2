"""The shipped simulators move true joules and show the pathologies they claim."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import SensorError, UsageError
from negawatt.core.reading import Source
from negawatt.hardware.host import this_host
from negawatt.testing import (
    Load,
    ManualClock,
    PlainContext,
    ScriptedSensor,
    SensorContract,
    SimulatedGpu,
    SimulatedNvml,
    SimulatedPowercap,
    SimulatedSlice,
    random_load,
    true_joules,
)
from negawatt.testing import nvml as nvml_module
from negawatt.testing.limited import LimitedLoad
from negawatt.testing.load import KINDS
from negawatt.testing.nvml import DRIVER_NOT_LOADED, GPU_IS_LOST, HOPPER, NO_PERMISSION, NOT_SUPPORTED, GpuSettings


def count(powercap: SimulatedPowercap, zone: str) -> int:
    return int((powercap.root / zone / "energy_uj").read_text())


class TestScripted(SensorContract):
    """A scripted sensor keeps the sensor contract."""

    @pytest.fixture(autouse=True)
    def clock(self) -> None:
        self.time = ManualClock()

    def make(self) -> ScriptedSensor:
        return ScriptedSensor(script=[(0.0, 20.0)], clock=self.time)

    def advance(self, seconds: float) -> None:
        self.time.advance(seconds)


class TestScriptedModel(TestScripted):
    """So does one that scripts a model."""

    def make(self) -> ScriptedSensor:
        return ScriptedSensor(script=[(0.0, 20.0)], clock=self.time, source=Source.MODELLED)


class TestScriptedMissing(TestScripted):
    """So does one that is scripted as missing."""

    def make(self) -> ScriptedSensor:
        return ScriptedSensor(script=[(0.0, 20.0)], clock=self.time, missing="no device; plug one in")


def test_a_script_has_exact_joules() -> None:
    """A step function is integrated exactly, also before its first step and across steps."""
    sensor = ScriptedSensor(script=[(1.0, 10.0), (3.0, 100.0)], clock=ManualClock())
    assert sensor.energy_j(0.0, 1.0) == 0.0
    assert sensor.energy_j(0.0, 4.0) == 120.0
    assert sensor.energy_j(2.5, 3.5) == 55.0


def test_a_scripted_failure_raises() -> None:
    """From its failure time on, the sensor gives nothing."""
    clock = ManualClock()
    sensor = ScriptedSensor(script=[(0.0, 1.0)], clock=clock, fails_at_s=1.0)
    sensor.snapshot()
    clock.advance(1.0)
    with pytest.raises(SensorError, match="fails from"):
        sensor.snapshot()


def test_a_load_is_linear_between_points_and_steps_where_two_coincide() -> None:
    """Power and joules of a ramp and a step are exact, before, between and behind the points."""
    load = Load([(1.0, 10.0), (3.0, 30.0), (3.0, 100.0)])
    assert [load.power_w(t) for t in (0.0, 2.0, 3.0, 9.0)] == [10.0, 20.0, 100.0, 100.0]
    assert [load.joules_to(t) for t in (0.0, 1.0, 2.0, 3.0, 4.0)] == [-10.0, 0.0, 15.0, 40.0, 140.0]
    with pytest.raises(ValueError, match="times ascend"):
        load.extend([(2.0, 1.0)])
    with pytest.raises(ValueError, match="at least one point"):
        Load([])


@given(
    seed=st.integers(0, 10_000), kind=st.sampled_from(KINDS), begin_s=st.floats(0.0, 20.0), span_s=st.floats(0.0, 30.0)
)
def test_the_reference_integrates_as_the_load_does(seed: int, kind: str, begin_s: float, span_s: float) -> None:
    """Two integrators that share no code give the same joules for every kind of load."""
    load = random_load(Random(seed), 40.0, 20.0, 250.0, kind)
    summed_j = load.joules_to(begin_s + span_s) - load.joules_to(begin_s)
    assert true_joules(load.points, begin_s, begin_s + span_s) == pytest.approx(summed_j, rel=1e-9, abs=1e-6)
    assert all(20.0 <= power_w <= 250.0 for power_w in load.powers_w)


def test_powercap_counters_move_with_the_load(tmp_path: Path) -> None:
    """Package, core, dram and psys move by their shares, and the sum of packages is known."""
    powercap = SimulatedPowercap(root=tmp_path, packages=2, dram=True, psys=True)
    zones = [folder.name for folder in tmp_path.iterdir() if ":" in folder.name]
    before = {zone: count(powercap, zone) for zone in zones}
    powercap.advance(10.0, 50.0, 4.0)
    moved_j = {zone: (count(powercap, zone) - before[zone]) * 1e-6 for zone in before}
    assert moved_j["intel-rapl:0"] == moved_j["intel-rapl:1"] == pytest.approx(500.0)
    assert moved_j["intel-rapl:0:0"] == pytest.approx(400.0)
    assert moved_j["intel-rapl:0:1"] == pytest.approx(40.0)
    assert moved_j["intel-rapl:2"] == pytest.approx(1180.0)
    assert (powercap.package_j, powercap.dram_j, powercap.clock()) == (1000.0, 80.0, 10.0)


def test_powercap_counters_wrap(tmp_path: Path) -> None:
    """A counter passes its range once and goes on from 0."""
    powercap = SimulatedPowercap(root=tmp_path, range_uj=10_000_000, start_uj=9_000_000)
    powercap.advance(1.0, 3.0)
    assert count(powercap, "intel-rapl:0") == 2_000_000


def test_powercap_counters_lag_and_freeze(tmp_path: Path) -> None:
    """Between refreshes, and from the freeze on, the counters stand still while the load goes on."""
    powercap = SimulatedPowercap(root=tmp_path, load=Load([(0.0, 10.0)]), start_uj=0, refresh_s=0.5, frozen_s=2.2)

    def shown_j() -> float:
        return int(powercap.read(tmp_path / "intel-rapl:0" / "energy_uj")) * 1e-6

    seen = []
    for _ in range(6):
        powercap.advance(0.7)
        seen.append(shown_j())
    assert seen == [5.0, 10.0, 20.0, 20.0, 20.0, 20.0]
    assert powercap.package_j == pytest.approx(42.0)


def test_powercap_permission_is_withdrawn_even_from_root(tmp_path: Path) -> None:
    """While it is not permitted, `read` refuses the counters and nothing else."""
    powercap = SimulatedPowercap(root=tmp_path)
    powercap.permit(allowed=False)
    with pytest.raises(PermissionError, match="Permission denied"):
        powercap.read(tmp_path / "intel-rapl:0" / "energy_uj")
    assert powercap.read(tmp_path / "intel-rapl:0" / "name") == "package-0\n"


def test_a_live_tree_moves_by_itself(tmp_path: Path) -> None:
    """Inside `live` the files follow real time; behind it they stand."""
    powercap = SimulatedPowercap(root=tmp_path, load=Load([(0.0, 100.0)]))
    with powercap.live():
        time.sleep(0.1)
        assert powercap.clock() >= 0.1
    first = count(powercap, "intel-rapl:0")
    assert first > 1_000_000 + 5_000_000
    time.sleep(0.02)
    assert count(powercap, "intel-rapl:0") == first


@pytest.fixture(scope="module")
def library() -> Any:
    """One simulated NVML, compiled once; every test gives it other GPUs."""
    with SimulatedNvml([]) as nvml:
        yield nvml


def opened(library: SimulatedNvml, *gpus: SimulatedGpu, init_error: int = 0) -> Any:
    """The real pynvml over these GPUs."""
    library.reset(gpus, init_error=init_error)
    library.pynvml().nvmlInit()
    return library.pynvml()


def test_nvml_counter_lags_by_its_refresh(library: SimulatedNvml) -> None:
    """The real pynvml shows the joules up to the counter's last refresh, while the truth goes on."""
    nvml = opened(library, SimulatedGpu())
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    library.advance(0.25, 100.0)
    assert nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) == 20_000
    library.advance(0.04, 100.0)
    assert nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) == 20_000
    library.advance(0.02, 300.0)
    assert nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) == 32_000


def test_nvml_power_is_a_mean_over_its_window(library: SimulatedNvml) -> None:
    """Instant power sees 25 ms of each 100 ms; usage and the average field see a second."""
    load = Load([(0.0, 100.0), (0.97, 100.0), (0.97, 300.0)])
    part_time = {"power_refresh_s": 0.1, "power_window_s": 0.025, "average_window_s": 1.0}
    nvml = opened(library, SimulatedGpu(load=load, architecture=HOPPER, **part_time))
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    library.advance(1.05)
    fields = [nvml.NVML_FI_DEV_POWER_INSTANT, nvml.NVML_FI_DEV_POWER_AVERAGE, nvml.NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION]
    instant, average, energy = nvml.nvmlDeviceGetFieldValues(gpu, fields)
    assert instant.value.uiVal == 300_000
    assert average.value.uiVal == nvml.nvmlDeviceGetPowerUsage(gpu) == 106_000
    assert energy.value.ullVal == 106_000
    assert nvml.nvmlDeviceGetArchitecture(gpu) == HOPPER


def test_a_part_time_counter_misses_what_it_does_not_look_at(library: SimulatedNvml) -> None:
    """A load that is high only while the counter does not look is not counted at all."""
    points: list[tuple[float, float]] = []
    for step in range(10):
        points += [
            (step * 0.1, 300.0),
            (step * 0.1 + 0.07, 300.0),
            (step * 0.1 + 0.07, 100.0),
            (step * 0.1 + 0.1, 100.0),
        ]
    nvml = opened(library, SimulatedGpu(load=Load(points), counter_window_s=0.025))
    library.advance(1.0)
    assert nvml.nvmlDeviceGetTotalEnergyConsumption(nvml.nvmlDeviceGetHandleByIndex(0)) == pytest.approx(100_000, abs=1)
    assert true_joules(points, 0.0, 1.0) == pytest.approx(240.0)


def test_nvml_errors_are_those_asked_for(library: SimulatedNvml) -> None:
    """Every call answers with the error that it was told, live, and the real binding raises its class."""
    gpu = SimulatedGpu(energy_error=NOT_SUPPORTED)
    nvml = opened(library, gpu, SimulatedGpu(uuid="GPU-2", handle_error=NO_PERMISSION))
    handle = nvml.nvmlDeviceGetHandleByIndex(0)
    with pytest.raises(nvml.NVMLError_NotSupported, match="Not Supported"):
        nvml.nvmlDeviceGetTotalEnergyConsumption(handle)
    with pytest.raises(nvml.NVMLError_NoPermission, match="Insufficient Permissions"):
        nvml.nvmlDeviceGetHandleByIndex(1)
    gpu.device_error = GPU_IS_LOST
    library.update()
    with pytest.raises(nvml.NVMLError_GpuIsLost, match="GPU is lost"):
        nvml.nvmlDeviceGetPowerUsage(handle)
    with pytest.raises(nvml.NVMLError_DriverNotLoaded, match="Driver Not Loaded"):
        opened(library, init_error=DRIVER_NOT_LOADED)


def test_nvml_has_slices_and_processes(library: SimulatedNvml) -> None:
    """MIG mode, slices with their sizes and parents, and the processes of a GPU come through the real binding."""
    slices = (SimulatedSlice(uuid="MIG-a", compute_slices=4), SimulatedSlice(uuid="MIG-b", compute_slices=3))
    nvml = opened(library, SimulatedGpu(slices=slices, pids=(11, 12)), SimulatedGpu(uuid="GPU-2"))
    whole = nvml.nvmlDeviceGetHandleByIndex(0)
    assert nvml.nvmlDeviceGetMigMode(whole) == [1, 1]
    assert nvml.nvmlDeviceGetMaxMigDeviceCount(whole) == 7
    piece = nvml.nvmlDeviceGetHandleByUUID("MIG-b")
    assert nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(whole, 1)) == "MIG-b"
    assert nvml.nvmlDeviceGetAttributes(piece).computeInstanceSliceCount == 3
    parent = nvml.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(piece)
    assert nvml.nvmlDeviceGetUUID(parent) == library.gpus[0].uuid
    assert [process.pid for process in nvml.nvmlDeviceGetComputeRunningProcesses(whole)] == [11, 12]
    assert nvml.nvmlDeviceGetComputeRunningProcesses(nvml.nvmlDeviceGetHandleByIndex(1)) == []


def test_another_program_finds_the_fake_library_by_itself() -> None:
    """With the given environment, a program that imports pynvml talks to the simulated GPUs, in real time."""
    program = (
        "import json, pynvml, time; pynvml.nvmlInit(); gpu = pynvml.nvmlDeviceGetHandleByIndex(0);"
        "a = pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu); time.sleep(0.3);"
        "print(json.dumps([pynvml.nvmlDeviceGetName(gpu), pynvml.nvmlDeviceGetTotalEnergyConsumption(gpu) - a]))"
    )
    with SimulatedNvml([SimulatedGpu(load=Load([(0.0, 200.0)]))], live=True) as nvml:
        environ = {**os.environ, **nvml.environ}
        done = subprocess.run([sys.executable, "-c", program], env=environ, capture_output=True, text=True, check=True)
    name, energy_mj = json.loads(done.stdout)
    assert name == "NVIDIA Simulated"
    assert energy_mj >= 200 * 200


def test_the_simulated_nvml_needs_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without one, or with one that cannot, the error says what to install, and no folder is left."""
    nvml_module._compiled.cache_clear()  # it is compiled once in a process
    monkeypatch.setattr(nvml_module.shutil, "which", lambda _: None)
    with pytest.raises(UsageError, match="no C compiler"):
        SimulatedNvml([])
    monkeypatch.setattr(nvml_module.shutil, "which", lambda _: "/bin/false")
    with pytest.raises(UsageError, match="/bin/false cannot compile"):
        SimulatedNvml([])


def test_the_simulated_nvml_has_limits(library: SimulatedNvml) -> None:
    """More GPUs or points than the shared file holds are refused."""
    with pytest.raises(ValueError, match="at most 8 GPUs"):
        library.reset([SimulatedGpu()] * 9)
    with pytest.raises(ValueError, match="65536 points"):
        library.reset([SimulatedGpu(load=Load([(float(i), 1.0) for i in range(65_537)]))])


@given(
    seed=st.integers(0, 10_000),
    kind=st.sampled_from(KINDS),
    steps=st.lists(st.tuples(st.floats(0.0, 20.0), st.floats(100.0, 400.0)), max_size=8),
)
def test_a_gpu_draws_its_load_up_to_its_limit(
    library: SimulatedNvml, seed: int, kind: str, steps: list[tuple[float, float]]
) -> None:
    """Joules under changing limits are those of a fine sum of min(load, limit), and of the other simulators' load."""
    load = random_load(Random(seed), 60.0, 60.0, 400.0, kind)
    nvml = opened(library, SimulatedGpu(load=load, counter_refresh_s=0.0))
    gpu, limited, limit_w, summed_j = nvml.nvmlDeviceGetHandleByIndex(0), LimitedLoad(load), 400.0, 0.0
    for span_s, next_w in [*steps, (5.0, 400.0)]:
        begin_s = library.clock()
        library.advance(span_s)
        grid = [begin_s + span_s * (i + 0.5) / 2000 for i in range(2000)]
        summed_j += sum(min(load.power_w(t), limit_w) for t in grid) * span_s / 2000
        nvml.nvmlDeviceSetPowerManagementLimit(gpu, round(next_w * 1e3))
        limit_w = round(next_w * 1e3) * 1e-3
        limited.limit(library.clock(), limit_w)
    end_s, drawn_j = library.clock(), library.energy_j(0)
    assert drawn_j == pytest.approx(limited.joules_to(end_s) - limited.joules_to(0.0), rel=1e-9)
    assert drawn_j == pytest.approx(summed_j, rel=0.02)
    assert nvml.nvmlDeviceGetTotalEnergyConsumption(gpu) * 1e-3 == pytest.approx(drawn_j, abs=2e-3)


def test_a_live_gpu_obeys_the_limits_of_other_processes() -> None:
    """Processes that set one GPU at once are killed while they do: what is set is whole, and the joules are right."""
    program = (
        "import pynvml, sys; pynvml.nvmlInit(); gpu = pynvml.nvmlDeviceGetHandleByIndex(0); print(flush=True);"
        "[pynvml.nvmlDeviceSetPowerManagementLimit(gpu, 100_000 + i % 3 * 1000) for i in range(10**9)]"
    )
    gpu = SimulatedGpu(load=Load([(0.0, 300.0)]), counter_refresh_s=0.0)
    with SimulatedNvml([gpu], live=True) as nvml:
        environ = {**os.environ, **nvml.environ}
        command = [sys.executable, "-c", program]
        others = [subprocess.Popen(command, env=environ, stdout=subprocess.PIPE) for _ in range(2)]
        for other in others:
            assert other.stdout is not None
            other.stdout.readline()
        start_s, start_j = nvml.clock(), nvml.energy_j(0)
        time.sleep(0.1)
        for other in others:
            other.kill()
            other.communicate()
        assert nvml.settings[0].limit_w in (100.0, 101.0, 102.0)
        end_s = nvml.clock()
        nvml.set_limit(0, 400.0)
        assert 99.0 < (nvml.energy_j(0, end_s) - start_j) / (end_s - start_s) < 103.0
        begin_s = nvml.clock()
        time.sleep(0.02)
        assert nvml.energy_j(0, begin_s + 0.02) - nvml.energy_j(0, begin_s) == pytest.approx(6.0)


def test_nvml_settings_stay_when_the_gpus_are_shown_again(library: SimulatedNvml) -> None:
    """`update` shows fields and leaves what is set; a new machine has its own settings as found."""
    nvml = opened(library, SimulatedGpu(profiles=(1, 33)), SimulatedGpu(uuid="GPU-2", limit_w=300.0))
    gpu = nvml.nvmlDeviceGetHandleByIndex(0)
    found = library.settings
    assert [one.limit_w for one in found] == [400.0, 300.0]
    nvml.nvmlDeviceSetPowerManagementLimit(gpu, 200_000)
    nvml.nvmlDeviceSetGpuLockedClocks(gpu, 210, 1000)
    library.gpus[0].elsewhere_w = 150.0
    library.update()
    assert library.settings[0] == GpuSettings(limit_w=200.0, clocks_mhz=(210, 1000))
    assert nvml.nvmlDeviceGetEnforcedPowerLimit(gpu) == 150_000
    assert nvml.nvmlDeviceGetPowerManagementDefaultLimit(gpu) == 400_000
    assert nvml.nvmlDeviceGetClockInfo(gpu, nvml.NVML_CLOCK_SM) == 990
    assert nvml.nvmlDeviceGetMaxClockInfo(gpu, nvml.NVML_CLOCK_SM) == 1410
    library.advance(1.0, 380.0)
    assert nvml.nvmlDeviceGetCurrentClocksEventReasons(gpu) == nvml.nvmlClocksEventReasonSwPowerCap
    assert library.energy_j(0) == pytest.approx(150.0)
    library.reset(library.gpus[1:])
    assert library.settings == found[1:]


def test_a_plain_context_keeps_what_is_recorded() -> None:
    """A lever's own readings come back from the context that it was given."""
    clock = ManualClock()
    context = PlainContext(this_host(), clock)
    assert context.readings() == ()
    reading = ScriptedSensor(script=[(0.0, 1.0)], clock=clock).reading(0.0, 1.0)
    context.record(reading)
    assert context.readings() == (reading,)
    assert context.time_s() == 0.0

"""NVIDIA through the real nvidia-ml-py over a fake library with known joules: counter, power, faults, visible GPUs."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from negawatt.core.codec import from_json, to_json
from negawatt.core.errors import NeedsPrivilegeError, SensorError
from negawatt.core.reading import Reading, Source
from negawatt.hardware.host import this_host
from negawatt.metering.select import open_best
from negawatt.metering.sensors.nvidia import NvidiaSensor
from negawatt.metering.session import Meter
from negawatt.testing import Load, SensorContract, SimulatedGpu, SimulatedNvml, SimulatedSlice
from negawatt.testing.nvml import AMPERE, DRIVER_NOT_LOADED, GPU_IS_LOST, HOPPER, NO_PERMISSION, NOT_SUPPORTED, PASCAL

A, B, C = "GPU-aaaa1111", "GPU-aaaa2222", "GPU-cccc3333"
SLICES = (SimulatedSlice(uuid="MIG-5555", compute_slices=3), SimulatedSlice(uuid="MIG-6666", compute_slices=2))
BURSTS = Load([point for t in range(60) for point in ((t, 60.0), (t + 0.73, 60.0), (t + 0.73, 350.0), (t + 1, 350.0))])


@pytest.fixture(scope="module")
def nvml() -> Iterator[SimulatedNvml]:
    """One simulated NVML, compiled once; every test gives it other GPUs."""
    with SimulatedNvml([]) as simulated:
        yield simulated


def sensor_of(nvml: SimulatedNvml, *gpus: SimulatedGpu, visible: str | None = None, **more: Any) -> NvidiaSensor:
    nvml.reset(gpus, **more)
    environ = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    return NvidiaSensor(nvml.pynvml(), environ=environ, clock=nvml.clock)


def three(nvml: SimulatedNvml, visible: str | None) -> NvidiaSensor:
    gpus = [SimulatedGpu(uuid=A), SimulatedGpu(uuid=B, slices=SLICES), SimulatedGpu(uuid=C)]
    return sensor_of(nvml, *gpus, visible=visible)


def metered(nvml: SimulatedNvml, sensor: NvidiaSensor, seconds: float) -> Reading:
    """The reading of the first GPU over a window, polled as the background thread polls it."""
    with Meter(open_best({"nvidia": sensor}, this_host()), nvml.clock, background=False) as meter:
        window, end_s = meter.start(), nvml.clock() + seconds
        while (left_s := end_s - nvml.clock()) > 1e-9:
            wait_s = meter.poll_s
            nvml.advance(min(wait_s, left_s))
            if wait_s < left_s:
                meter.poll()
        return window.stop()[0]


class TestNvidiaCounter(SensorContract):
    """A GPU with an energy counter keeps the sensor contract."""

    old = SimulatedGpu(uuid=A)

    @pytest.fixture(autouse=True)
    def simulated(self, nvml: SimulatedNvml) -> None:
        self.nvml = nvml
        nvml.reset([replace(self.old, load=Load([(0.0, 300.0)])), SimulatedGpu(uuid=B)])

    def make(self) -> NvidiaSensor:
        return NvidiaSensor(self.nvml.pynvml(), environ={}, clock=self.nvml.clock)

    def advance(self, seconds: float) -> None:
        self.nvml.advance(seconds)


class TestNvidiaPower(TestNvidiaCounter):
    """So does one whose power is integrated."""

    old = SimulatedGpu(uuid=A, energy_error=NOT_SUPPORTED)


def test_counter_gives_the_true_joules(nvml: SimulatedNvml) -> None:
    """Where nobody looked in between, both edges are uncertain by a refresh, and a window of 5 s is flagged for it."""
    sensor = sensor_of(nvml, SimulatedGpu(uuid=A, load=Load([(0.0, 200.0)])))
    (probe,) = sensor.open()
    nvml.advance(1.0)
    start = probe.snapshot()
    nvml.advance(5.0)
    reading = probe.reading(start, probe.snapshot())
    assert reading.energy_j == pytest.approx(1000.0)
    assert (reading.source, reading.scope, sensor.info.source) == (Source.COUNTER, f"gpu:{A}", Source.COUNTER)
    assert reading.random_sd_j == pytest.approx(200.0 * 0.1 / 6**0.5)
    assert any("may have been missed at its edges" in flag for flag in reading.flags)


@pytest.mark.parametrize("length_s", [0.05, 0.3, 2.0, 10.0])
def test_power_fills_in_what_the_counter_lags(nvml: SimulatedNvml, length_s: float) -> None:
    """Under a load that jumps, and between refreshes, the reading is within 1 % plus two samples of the truth."""
    gpu = SimulatedGpu(load=BURSTS, counter_offset_j=5e3, phase_s=0.037, noise_fraction=0.002)
    sensor = sensor_of(nvml, gpu)
    nvml.advance(1.58)
    reading = metered(nvml, sensor, length_s)
    truth_j = BURSTS.joules_to(nvml.clock()) - BURSTS.joules_to(nvml.clock() - length_s)
    assert abs(reading.energy_j - truth_j) <= 0.01 * truth_j + 2 * 0.01 * 350.0
    assert abs(reading.energy_j - truth_j) <= 3 * reading.random_sd_j
    assert reading.source is Source.COUNTER


def test_a_window_shorter_than_a_refresh_has_a_large_error(nvml: SimulatedNvml) -> None:
    """Without a look in between, what lies inside one refresh is power times time, and its error the refresh's."""
    (probe,) = sensor_of(nvml, SimulatedGpu(load=Load([(0.0, 200.0)]))).open()
    nvml.advance(1.0)
    start = probe.snapshot()
    nvml.advance(0.03)
    reading = probe.reading(start, probe.snapshot())
    assert reading.energy_j == pytest.approx(6.0)
    assert reading.random_sd_j > 6.0


def test_power_is_integrated_by_trapezoids(nvml: SimulatedNvml) -> None:
    """Without a counter, power is sampled, and both the reading and the sensor say so."""
    load = Load([(0.0, 100.0), (1.0, 100.0), (2.0, 300.0)])
    sensor = sensor_of(nvml, SimulatedGpu(architecture=PASCAL, energy_error=NOT_SUPPORTED, load=load))
    reading = metered(nvml, sensor, 4.0)
    assert reading.energy_j == pytest.approx(100.0 + 200.0 + 600.0, rel=0.005)
    assert abs(reading.energy_j - 900.0) <= 3 * reading.random_sd_j
    assert (reading.source, sensor.info.source) == (Source.SAMPLED, Source.SAMPLED)
    assert sensor.open()[0].period_s == 0.02


def test_samples_of_two_processes_make_a_doubtful_reading(nvml: SimulatedNvml) -> None:
    """A state that another process wrote down can be gone on from, but nobody sampled in between."""
    sensor = sensor_of(nvml, SimulatedGpu(energy_error=NOT_SUPPORTED, load=Load([(0.0, 100.0)])))
    start, (probe,) = sensor.open()[0].snapshot(), sensor.open()
    nvml.advance(3.0)
    reading = probe.reading(start, probe.snapshot())
    assert reading.energy_j == pytest.approx(300.0)
    assert reading.flags == ("nobody sampled the power in between",)


@pytest.mark.parametrize("energy_error", [0, NOT_SUPPORTED])
def test_states_survive_being_written_down(nvml: SimulatedNvml, energy_error: int) -> None:
    """A state goes through JSON unchanged, so that another process can go on from it."""
    sensor = sensor_of(nvml, SimulatedGpu(energy_error=energy_error, load=Load([(0.0, 100.0)])))
    (probe,) = sensor.open()
    nvml.advance(0.5)
    state = probe.snapshot()
    assert from_json(type(state), to_json(state)) == state


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ({"frozen_s": 16.0}, "stood still"),
        ({"counter_refresh_s": 1.7}, "stood still"),
        ({"counter_scale": 1.43}, "its counter says"),
        ({"counter_scale": 0.01}, "its counter says"),
        ({"name": "NVIDIA H100 80GB HBM3", "architecture": HOPPER}, "25 % of the time"),
        ({"name": "NVIDIA GH200 480GB", "architecture": HOPPER}, "whole module"),
        ({"energy_error": NOT_SUPPORTED, "power_frozen_s": 16.0}, "may be stuck"),
        ({"energy_error": NOT_SUPPORTED, "power_refresh_s": 0.5, "power_window_s": 0.5}, "up to 0.1 s late"),
    ],
)
def test_a_doubtful_gpu_is_flagged(nvml: SimulatedNvml, fault: dict[str, Any], said: str) -> None:
    """Each fault of counter or power is said in a sentence; the same window without it has none."""
    healthy = SimulatedGpu(load=BURSTS, noise_fraction=0.002, phase_s=0.037)
    assert metered(nvml, sensor_of(nvml, healthy), 20.0).flags == ()
    reading = metered(nvml, sensor_of(nvml, replace(healthy, **fault)), 20.0)
    assert any(said in flag for flag in reading.flags), reading.flags


def test_a_frozen_counter_is_an_error(nvml: SimulatedNvml) -> None:
    """A counter that never moved in a window of seconds is refused."""
    sensor = sensor_of(nvml, SimulatedGpu(frozen_s=0.0, counter_offset_j=77.0))
    with pytest.raises(SensorError, match="stood still at 77000"):
        metered(nvml, sensor, 5.0)


def test_a_counter_far_too_fast_is_an_error(nvml: SimulatedNvml) -> None:
    """Joules that no load draws are refused."""
    sensor = sensor_of(nvml, SimulatedGpu(counter_scale=100.0, load=Load([(0.0, 300.0)])))
    with pytest.raises(SensorError, match="no load below 5000 W"):
        metered(nvml, sensor, 5.0)


def test_power_averaged_over_a_second_is_known_to_be(nvml: SimulatedNvml) -> None:
    """On Ampere without the instant field, the mean over 1 s is taken as late as it is; on GA100 it is instant."""
    load = Load([(0.0, 50.0), (3.0, 50.0), (3.0, 300.0)])
    averaged = {"energy_error": NOT_SUPPORTED, "instant_error": NOT_SUPPORTED, "average_window_s": 1.0}
    gpu = SimulatedGpu(architecture=AMPERE, load=load, noise_fraction=0.002, **averaged)
    reading = metered(nvml, sensor_of(nvml, gpu), 6.0)
    assert reading.energy_j == pytest.approx(1050.0, rel=0.01)
    assert any("up to 1 s late" in flag for flag in reading.flags)
    instant = replace(gpu, name="NVIDIA A30", average_window_s=0.0)
    assert metered(nvml, sensor_of(nvml, instant), 6.0).flags == ()


@pytest.mark.parametrize(
    ("visible", "uuids"),
    [
        (None, [A, B, C]),
        ("0", [A]),
        ("2,0", [C, A]),
        ("1,1", [B]),
        (C, [C]),
        ("GPU-cc", [C]),
        ("GPU-aaaa2", [B]),
        ("0,7,1", [A]),
        ("0,-1,1", [A]),
        ("MIG-5555", [B]),
        (f"MIG-{C}/1/0", [C]),
    ],
)
def test_visible_gpus_are_those_cuda_would_use(nvml: SimulatedNvml, visible: str | None, uuids: list[str]) -> None:
    """CUDA_VISIBLE_DEVICES is read as CUDA reads it; a MIG slice stands for its whole GPU."""
    assert [probe.scope for probe in three(nvml, visible).open()] == [f"gpu:{uuid}" for uuid in uuids]


@pytest.mark.parametrize(
    ("visible", "fractions"),
    [
        (None, [1.0, 5 / 7, 1.0]),
        ("0", [1.0]),
        ("1", [5 / 7]),
        ("MIG-5555", [3 / 7]),
        ("MIG-6666,MIG-5555", [5 / 7]),
        ("MIG-6666,MIG-6666,0", [2 / 7, 1.0]),
    ],
)
def test_slices_meter_their_gpu_once(nvml: SimulatedNvml, visible: str | None, fractions: list[float]) -> None:
    """However many slices are visible, their GPU has one probe, and it says how much of it they are."""
    probes: Any = three(nvml, visible).open()
    assert [probe.slice_fraction for probe in probes] == pytest.approx(fractions)


def test_two_slices_read_the_same_joules(nvml: SimulatedNvml) -> None:
    """Each of two slices shows the whole GPU's energy: what is theirs is a matter of shares."""
    for visible in ("MIG-5555", "MIG-6666"):
        sensor = sensor_of(nvml, SimulatedGpu(slices=SLICES, load=Load([(0.0, 210.0)])), visible=visible)
        assert metered(nvml, sensor, 4.0).energy_j == pytest.approx(840.0, rel=0.01)


@pytest.mark.parametrize("visible", ["", "-1", "9", "GPU-aaaa", "MIG-none"])
def test_hidden_gpus_are_not_metered(nvml: SimulatedNvml, visible: str) -> None:
    """Where CUDA would see no GPU (an ambiguous prefix included), the sensor says so."""
    assert "hides every GPU" in (three(nvml, visible).available(this_host()) or "")


def test_gpus_of_others_are_left_out(nvml: SimulatedNvml) -> None:
    """GPUs that a container or Slurm keeps back do not count, neither as GPUs nor in the numbering."""
    gpus = [SimulatedGpu(uuid=A, handle_error=NO_PERMISSION), SimulatedGpu(uuid=B), SimulatedGpu(uuid=C)]
    assert [probe.scope for probe in sensor_of(nvml, *gpus).open()] == [f"gpu:{B}", f"gpu:{C}"]
    assert [probe.scope for probe in sensor_of(nvml, *gpus, visible="0").open()] == [f"gpu:{B}"]
    with pytest.raises(NeedsPrivilegeError, match="may use none of 1"):
        sensor_of(nvml, gpus[0]).open()


def test_without_a_driver_it_says_what_is_missing(nvml: SimulatedNvml) -> None:
    """No driver, a GPU lost before, and no GPU each give a reason that ends with what to type."""
    lost = SimulatedGpu(handle_error=GPU_IS_LOST)
    assert "check its driver with `nvidia-smi`" in (sensor_of(nvml, lost).available(this_host()) or "")
    unloaded = sensor_of(nvml, init_error=DRIVER_NOT_LOADED)
    assert "check its driver with `nvidia-smi`" in (unloaded.available(this_host()) or "")
    assert "lists no GPU" in (sensor_of(nvml).available(this_host()) or "")


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing nvidia-ml-py is a reason, not a crash."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in (NvidiaSensor().available(this_host()) or "")


def test_a_gpu_that_cannot_be_read_is_not_left_out(nvml: SimulatedNvml) -> None:
    """One mute GPU among others is an error: leaving it out would understate the energy."""
    mute = SimulatedGpu(uuid=B, energy_error=NOT_SUPPORTED, power_error=NOT_SUPPORTED)
    with pytest.raises(SensorError, match=f"{B}.*neither energy nor power"):
        sensor_of(nvml, SimulatedGpu(uuid=A), mute).open()


@pytest.mark.parametrize("energy_error", [0, NOT_SUPPORTED])
@pytest.mark.parametrize("error", [GPU_IS_LOST, NO_PERMISSION])
def test_a_lost_gpu_has_three_parts(nvml: SimulatedNvml, energy_error: int, error: int) -> None:
    """A GPU that falls off the bus, or is taken away, raises with got, why and fix."""
    gpu = SimulatedGpu(uuid=A, energy_error=energy_error)
    (probe,) = sensor_of(nvml, gpu).open()
    gpu.device_error = error
    nvml.update()
    with pytest.raises(SensorError, match=r"GPU is lost|Insufficient Permissions") as caught:
        probe.snapshot()
    assert all((caught.value.got, caught.value.why, caught.value.fix))


def test_a_driver_reload_is_an_error(nvml: SimulatedNvml) -> None:
    """A counter that went back raises, also once it has grown past its old value."""
    gpu = SimulatedGpu(uuid=A, load=Load([(0.0, 200.0)]))
    (probe,) = sensor_of(nvml, gpu).open()
    nvml.advance(1.0)
    start = probe.snapshot()
    nvml.advance(10.0)
    probe.snapshot()
    gpu.counter_offset_j = -2200.0
    nvml.update()
    nvml.advance(1.0)
    probe.snapshot()
    nvml.advance(60.0)
    with pytest.raises(SensorError, match="reset"):
        probe.reading(start, probe.snapshot())


def test_an_edge_is_cheap(nvml: SimulatedNvml) -> None:
    """A snapshot of one GPU through the real binding takes far less than 1 ms."""
    (probe,) = sensor_of(nvml, SimulatedGpu()).open()
    spans_s = []
    for _ in range(200):
        begin_s = time.perf_counter()
        probe.snapshot()
        spans_s.append(time.perf_counter() - begin_s)
    assert sorted(spans_s)[100] < 3e-4


def test_real_nvml_never_raises_from_available() -> None:
    """On whatever machine this runs, the real library gives None or a reason."""
    reason = NvidiaSensor().available(this_host())
    assert reason is None or len(reason) > 10

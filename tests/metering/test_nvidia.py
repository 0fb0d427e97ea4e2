"""NVIDIA: counters and sampled power of a fake NVML with known joules, and the choice of GPUs."""

from __future__ import annotations

import sys

import pytest

from negawatt.core.errors import SensorError
from negawatt.core.reading import Source
from negawatt.hardware.host import this_host
from negawatt.metering.sensors.nvidia import NvidiaSensor
from negawatt.testing import FakeGpu, FakeNvml, SensorContract

A, B, C = "GPU-aaaa1111", "GPU-aaaa2222", "GPU-cccc3333"


def three(environ: dict[str, str]) -> tuple[FakeNvml, NvidiaSensor]:
    gpus = [FakeGpu(uuid=A), FakeGpu(uuid=B, slices=("MIG-5555",)), FakeGpu(uuid=C)]
    nvml = FakeNvml(gpus)
    return nvml, NvidiaSensor(nvml, environ=environ, clock=nvml.clock)


class TestNvidiaCounter(SensorContract):
    """A GPU with an energy counter keeps the sensor contract."""

    gpus = (FakeGpu(uuid=A), FakeGpu(uuid=B))

    @pytest.fixture(autouse=True)
    def nvml(self) -> None:
        self.fake = FakeNvml(self.gpus)

    def make(self) -> NvidiaSensor:
        return NvidiaSensor(self.fake, environ={}, clock=self.fake.clock)

    def advance(self, seconds: float) -> None:
        self.fake.advance(seconds, 300.0)


class TestNvidiaPower(TestNvidiaCounter):
    """So does one whose power is integrated."""

    gpus = (FakeGpu(uuid=A, counter=False),)


def test_counter_gives_the_true_joules() -> None:
    """Over whole refreshes the reading is exact, a counter reading, with the refresh at both edges as error."""
    nvml, sensor = three({})
    probe = sensor.open()[0]
    nvml.advance(1.0, 200.0)
    start = probe.snapshot()
    nvml.advance(5.0, 200.0)
    reading = probe.reading(start, probe.snapshot())
    assert reading.energy_j == pytest.approx(1000.0)
    assert (reading.source, reading.scope, probe.period_s) == (Source.COUNTER, f"gpu:{A}", None)
    assert reading.random_sd_j == pytest.approx(200.0 * 0.1 / 6**0.5)


def test_a_window_shorter_than_a_refresh_has_a_large_error() -> None:
    """Where the counter has not moved, the error is larger than the energy that was missed."""
    nvml, sensor = three({})
    probe = sensor.open()[0]
    nvml.advance(1.0, 200.0)
    start = probe.snapshot()
    nvml.advance(0.03, 200.0)
    reading = probe.reading(start, probe.snapshot())
    assert reading.energy_j == 0.0
    assert reading.random_sd_j > 200.0 * 0.03


def test_power_is_integrated_by_trapezoids() -> None:
    """Between samples of 100 W and 300 W lie 200 W on average, with an error, and the source says sampled."""
    nvml = FakeNvml([FakeGpu(counter=False, power_w=100.0)])
    probe = NvidiaSensor(nvml, environ={}, clock=nvml.clock).open()[0]
    start = probe.snapshot()
    nvml.advance(0.1, 300.0)
    reading = probe.reading(start, probe.snapshot())
    assert reading.energy_j == pytest.approx(20.0)
    assert (reading.source, probe.period_s) == (Source.SAMPLED, 0.1)
    assert reading.random_sd_j == pytest.approx(200.0 * 0.1 / 12**0.5)


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
def test_visible_gpus_are_those_cuda_would_use(visible: str | None, uuids: list[str]) -> None:
    """CUDA_VISIBLE_DEVICES is read as CUDA reads it; a MIG slice stands for its whole GPU."""
    _, sensor = three({} if visible is None else {"CUDA_VISIBLE_DEVICES": visible})
    assert [probe.scope for probe in sensor.open()] == [f"gpu:{uuid}" for uuid in uuids]


@pytest.mark.parametrize("visible", ["", "-1", "9", "GPU-aaaa", "MIG-none"])
def test_hidden_gpus_are_not_metered(visible: str) -> None:
    """Where CUDA would see no GPU (an ambiguous prefix included), the sensor says so."""
    _, sensor = three({"CUDA_VISIBLE_DEVICES": visible})
    assert "hides every GPU" in (sensor.available(this_host()) or "")


def test_without_a_driver_it_says_what_is_missing() -> None:
    """No driver and no GPU each give a reason that ends with what to type."""
    assert "nvidia-smi" in (NvidiaSensor(FakeNvml([], driver=False)).available(this_host()) or "")
    assert "lists no GPU" in (NvidiaSensor(FakeNvml([])).available(this_host()) or "")


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing nvidia-ml-py is a reason, not a crash."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in (NvidiaSensor().available(this_host()) or "")


def test_a_gpu_that_cannot_be_read_is_not_left_out() -> None:
    """One mute GPU among others is an error: leaving it out would understate the energy."""
    nvml = FakeNvml([FakeGpu(uuid=A), FakeGpu(uuid=B, counter=False, power=False)])
    with pytest.raises(SensorError, match=f"{B}.*neither energy nor power"):
        NvidiaSensor(nvml, environ={}).open()


@pytest.mark.parametrize("counter", [True, False])
def test_a_lost_gpu_has_three_parts(counter: bool) -> None:
    """A GPU that falls off the bus raises with got, why and fix."""
    nvml = FakeNvml([FakeGpu(uuid=A, counter=counter)])
    (probe,) = NvidiaSensor(nvml, environ={}, clock=nvml.clock).open()
    nvml.gpus[0].lost = True
    with pytest.raises(SensorError, match="GPU is lost") as caught:
        probe.snapshot()
    assert all((caught.value.got, caught.value.why, caught.value.fix))


def test_a_driver_reload_is_an_error() -> None:
    """A counter that went back raises instead of giving negative energy."""
    nvml, sensor = three({})
    probe = sensor.open()[0]
    nvml.advance(10.0, 200.0)
    start = probe.snapshot()
    nvml.gpus[0].counter_j = 1.0
    with pytest.raises(SensorError, match="reset"):
        probe.reading(start, probe.snapshot())


def test_real_nvml_never_raises_from_available() -> None:
    """On whatever machine this runs, the real library gives None or a reason."""
    reason = NvidiaSensor().available(this_host())
    assert reason is None or len(reason) > 10

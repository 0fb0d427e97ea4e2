"""Apple: the chip's parts, each once, and a standstill that is a fault only for the processor."""

from __future__ import annotations

import platform
import sys

import pytest

from negawatt.core.errors import SensorError
from negawatt.core.reading import Source
from negawatt.hardware.host import this_host
from negawatt.metering.sensors.apple import AppleSensor
from negawatt.testing import SensorContract
from negawatt.testing.apple import FakeAppleMonitor


class TestApple(SensorContract):
    """A chip with all counters keeps the sensor contract."""

    @pytest.fixture(autouse=True)
    def monitor(self) -> None:
        self.fake = FakeAppleMonitor()

    def make(self) -> AppleSensor:
        return AppleSensor(self.fake, clock=self.fake.clock)

    def advance(self, seconds: float) -> None:
        self.fake.advance(seconds, 30.0)


def test_the_parts_sum_to_the_chip() -> None:
    """Processor, GPU, memory and neural engine give the joules of a step load, within a millijoule each."""
    fake = FakeAppleMonitor()
    probes = AppleSensor(fake, clock=fake.clock).open()
    before = [probe.snapshot() for probe in probes]
    for seconds, power_w in ((3.0, 4.0), (10.0, 40.0), (2.0, 4.0)):
        fake.advance(seconds, power_w)
    readings = [probe.reading(state, probe.snapshot()) for probe, state in zip(probes, before, strict=True)]
    assert [r.scope for r in readings] == ["cpu", "gpu", "dram", "ane"]
    assert {r.source for r in readings} == {Source.COUNTER}
    assert sum(r.energy_j for r in readings) == pytest.approx(fake.energy_j, abs=4e-3)


def test_all_parts_are_read_at_once() -> None:
    """Four scopes cost one question to macOS."""
    fake = FakeAppleMonitor()
    probes = AppleSensor(fake, clock=fake.clock).open()
    fake.advance(1.0, 10.0)
    asked = fake.reads
    assert len({probe.snapshot().time_s for probe in probes}) == 1
    assert fake.reads == asked + 1


def test_what_is_not_counted_is_not_offered() -> None:
    """A chip without DRAM counter has no such probe, and without the processor's there is no sensor."""
    fake = FakeAppleMonitor(missing=("dram_mj",))
    assert [probe.scope for probe in AppleSensor(fake, clock=fake.clock).open()] == ["cpu", "gpu", "ane"]
    reason = AppleSensor(FakeAppleMonitor(missing=("cpu_total_mj",))).available(this_host())
    assert "pip install --upgrade zeus-apple-silicon" in (reason or "")


def test_a_neural_engine_may_rest_and_a_processor_may_not() -> None:
    """0 J of a part that is switched off is an answer; a processor's counter that stands still is an error."""
    fake = FakeAppleMonitor(shares={"gpu_mj": 1.0})
    probes = {probe.scope: probe for probe in AppleSensor(fake, clock=fake.clock).open()}
    before = {scope: probe.snapshot() for scope, probe in probes.items()}
    fake.advance(5.0, 10.0)
    ane = probes["ane"].reading(before["ane"], probes["ane"].snapshot())
    assert ane.energy_j == 0.0 < ane.random_sd_j
    with pytest.raises(SensorError, match="stood still"):
        probes["cpu"].reading(before["cpu"], probes["cpu"].snapshot())


def test_losing_the_counters_has_three_parts() -> None:
    """A macOS that gives no more counters, or drops one, raises with got, why and fix."""
    fake = FakeAppleMonitor()
    probe = AppleSensor(fake, clock=fake.clock).open()[0]
    fake.advance(1.0, 10.0)
    fake.missing = ("cpu_total_mj",)
    with pytest.raises(SensorError, match="not counted any more"):
        probe.snapshot()
    fake.advance(1.0, 10.0)
    fake.broken = True
    with pytest.raises(SensorError, match="gives no energy counters") as caught:
        probe.snapshot()
    assert all((caught.value.got, caught.value.why, caught.value.fix))


@pytest.mark.parametrize(
    ("system", "machine", "says"),
    [
        ("Linux", "aarch64", "not on an Apple chip"),
        ("Darwin", "x86_64", "Python for arm64"),
        ("Darwin", "arm64", "pip"),
    ],
)
def test_other_machines_are_told_why(monkeypatch: pytest.MonkeyPatch, system: str, machine: str, says: str) -> None:
    """Elsewhere, under Rosetta and without the package there is a reason with what to type."""
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setitem(sys.modules, "zeus_apple_silicon", None)
    assert says in (AppleSensor().available(this_host()) or "")

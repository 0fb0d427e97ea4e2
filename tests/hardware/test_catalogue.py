"""The table of devices has a source for every row, and names are found as people and drivers write them."""

from __future__ import annotations

import pytest

from negawatt.core.errors import UsageError
from negawatt.hardware.catalogue import IDLE_FRACTION, devices, find


def test_every_row_has_a_source_and_sane_figures():
    """Each device names its document and address, and its power, speed and year are of the right size."""
    assert len(devices()) >= 35
    for device in devices().values():
        assert device.source
        assert device.url.startswith("https://")
        assert device.read in ("vendor", "quoted")
        assert device.kind in IDLE_FRACTION
        assert 2010 < device.year < 2030
        assert 10 <= device.full_w <= 1500
        for rate, low, high in (
            (device.half_flop_per_s, 1e12, 1e16),
            (device.single_flop_per_s, 5e11, 5e14),
            (device.memory_bytes_per_s, 4e10, 2e13),
        ):
            assert rate is None or low < rate < high
        low_w, high_w = device.idle_range_w()
        assert 0 < low_w <= high_w < device.full_w


def test_derived_values_are_told():
    """What was computed and not read is named, with its arithmetic beside it."""
    cpus = [device for device in devices().values() if device.kind == "cpu"]
    for cpu in cpus:
        assert cpu.derived == ("single", "memory")
        assert "flop per cycle" in cpu.note
        assert cpu.half_flop_per_s is None


def test_idle_power_is_the_makers_or_an_assumed_range():
    """A TPU's idle power is what Google measured; a GPU's is a range, as no maker gives it."""
    assert find("TPU v4").idle_range_w() == (90, 90)
    assert find("H100 SXM").idle_range_w() == (35, 140)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("h100 sxm", "H100 SXM"),
        ("H100SXM", "H100 SXM"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
        ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
        ("a100 sxm4 40 gb", "A100 SXM 40GB"),
        ("Tesla V100-SXM2-32GB", "V100 SXM2"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("A6000", "RTX A6000"),
        ("nvidia a10", "A10"),
        ("AMD Instinct MI300X", "MI300X"),
        ("TPUv4", "TPU v4"),
        ("Jetson Orin", "Jetson AGX Orin 64GB"),
        ("AMD EPYC 9654 96-Core Processor", "EPYC 9654"),
        ("Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", "Xeon E5-2690 v4"),
    ],
)
def test_names_are_forgiven(name, found):
    """Case, spaces, the maker's name and the driver's decorations do not matter."""
    assert find(name).name == found


@pytest.mark.parametrize(
    "name", ["RTX 3090 Ti", "NVIDIA GeForce RTX 4090 Laptop GPU", "RTX 4090 D", "H100 NVL", "A10G"]
)
def test_a_longer_name_is_another_device(name):
    """A name that goes on is not taken for the device that it begins with."""
    with pytest.raises(UsageError, match="no device"):
        find(name)


def test_an_unclear_name_lists_what_it_can_be():
    """A100 is four devices that differ in power, so it is asked which."""
    with pytest.raises(UsageError, match=r"(?s)'A100 PCIe 40GB' or .*say which, as in --gpu 'A100 SXM 80GB'") as caught:
        find("A100")
    assert "differ in power" in caught.value.why


def test_an_unknown_name_gets_a_suggestion():
    """A slip of the keyboard is answered with the nearest name."""
    with pytest.raises(UsageError, match="did you mean 'H200 SXM'"):
        find("H20 SXM")
    with pytest.raises(UsageError, match="--list-gpus"):
        find("")

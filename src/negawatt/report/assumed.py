"""Assumed: the unknowns of an estimate, each with the range that is taken where the user gives none, and its source."""

from __future__ import annotations

from negawatt.core.errors import UsageError
from negawatt.core.saving import Interval
from negawatt.hardware.catalogue import Device
from negawatt.report.estimate import CALIBRATED_ON, Assumption, Serving, between

UTILISATION = between(0.213, 0.462)
PUE = between(1.1, 1.56)
_ELSEWHERE = 1.5  # widening, in the logarithm, of the serving model on devices it was not fitted to: assumed
_WITH_HOST = ("cpu",)


def interval(text: str, option: str) -> Interval:
    """A range typed as LOW..HIGH, or one number, which has no width.

    Raises:
        UsageError: if it is neither, or not positive.
    """
    low, dots, high = text.partition("..")
    try:
        ends = (float(low), float(high if dots else low))
    except ValueError:
        ends = (0.0, 0.0)
    if not 0 < ends[0] <= ends[1] < float("inf"):
        raise UsageError(
            f"{option} {text}",
            "an estimate multiplies by it",
            f"give a positive number, or two as LOW..HIGH: {option} 0.3..0.5",
        )
    return between(*ends)


def utilisation(given: Interval | None) -> Assumption:
    """Share of the peak arithmetic that training reaches."""
    if given is not None and given.high > 1:
        raise UsageError(f"--utilisation {given.high:g}", "no run is faster than the peak", "--utilisation 0.3..0.5")
    return _assumption(
        "utilisation",
        given,
        UTILISATION,
        "of the peak: 21.3 % (GPT-3) to 46.2 % (PaLM), Chowdhery et al. 2022, arXiv:2204.02311, table 3; "
        "38 to 43 % for Llama 3, arXiv:2407.21783",
    )


def load(given: Interval | None) -> Assumption:
    """Mean power of a busy accelerator, over its rated power."""
    if given is not None and given.high > 1:
        raise UsageError(f"--load {given.high:g}", "no device draws more than its rating for long", "--load 0.6..0.9")
    return _assumption(
        "load",
        given,
        between(0.57, 1.0),
        "of rated power: 0.57 to 0.92 training BERT and ResNet-50 on P100, V100 and A40 (Zeus, NSDI'23, its traces); "
        "up to 0.99 for diffusion on H100 (ML.ENERGY leaderboard v3)",
    )


def host(device: Device, gpus: int, given: Interval | None) -> Assumption:
    """Power of the rest of the machines, per accelerator [W]; `given` is for all of them together."""
    if given is not None:
        each = Interval(value=given.value / gpus, low=given.low / gpus, high=given.high / gpus)
        return _assumption("host", each, each, f"{given.low:g} to {given.high:g} W for all {gpus}", "W")
    if device.kind in _WITH_HOST or "with its CPU" in device.note:
        low, high, source = 0.1, 0.5, "memory, disks, fans: 0.1 to 0.5 of its rated power; an assumption without source"
    else:
        low, high = 0.2, 0.8
        source = (
            "per accelerator, 0.2 to 0.8 of its rated power: EcoLogits takes 1.2 kW for 8 H100, "
            "the plate of a DGX H100 says 10.2 kW with 5.6 kW of GPUs"
        )
    return _assumption("host", None, between(low * device.full_w, high * device.full_w), source, "W")


def pue(given: Interval | None, source: str) -> Assumption:
    """Energy of the site over energy of its machines."""
    if given is not None and given.low < 1:
        raise UsageError(f"--pue {given.low:g}", "a site takes at least what its machines take", "--pue 1.1..1.5")
    mean = "1.1 (Google's fleet) to 1.56 (mean of the operators asked by Uptime Institute in 2024)"
    return _assumption("PUE", given, PUE, source if given is not None and source else mean)


def batch(given: Interval | None) -> Assumption:
    """Sequences that are decoded at the same time."""
    return _assumption(
        "batch", given, between(8, 128), "sequences at the same time: an assumption, as it depends on the traffic"
    )


def prompt_ratio(given: Interval | None) -> Assumption:
    """Prompt tokens per token given out."""
    return _assumption(
        "prompt tokens per token",
        given,
        between(0.25, 5.5),
        "0.25: short questions, an assumption; 5.5: mean of the Azure conversation trace of 2023 (CC BY 4.0)",
    )


def reply_length(given: Interval | None) -> Assumption:
    """Tokens given out per request."""
    return _assumption(
        "reply length",
        given,
        between(200, 900),
        "211: mean of the Azure conversation trace of 2023; 349 to 927: chat in the ML.ENERGY leaderboard v3",
        "tokens",
    )


def model_error(device: Device) -> Assumption:
    """What the serving model misses: a factor on its energy, wider on devices that it was not fitted to."""
    low, high = Serving().error
    source = (
        "measured over predicted GPU energy on H100: 95 % range over 16 model families, each predicted by the others; "
        "it held 90 % of the rows of families left out of fit and range, fewer for large mixtures of experts"
    )
    if device.name != CALIBRATED_ON:
        low, high = low**_ELSEWHERE, high**_ELSEWHERE
        source += f"; widened by half, as nothing was measured on {device.name}"
    return Assumption(name="model error", range=Interval(value=1.0, low=low, high=high), unit="", source=source)


def _assumption(name: str, given: Interval | None, default: Interval, source: str, unit: str = "") -> Assumption:
    if given is None:
        return Assumption(name=name, range=default, unit=unit, source=source)
    told = source if name in ("host", "PUE") else "given on the command line"
    return Assumption(name=name, range=given, unit=unit, source=told, given=True)

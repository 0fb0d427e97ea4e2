"""Estimate: energy, carbon and money of work before it is run, as ranges, with every assumption listed.

Unknowns are factors, each with a low, central and high value. They are taken as independent: moving one to its ends
moves the logarithm of the result, and these moves add in quadrature (first order propagation, JCGM 100:2008, 5.1.2).
The unknown with the largest square dominates the width.

Training: 6 flop per parameter and token (Kaplan et al. 2020, arXiv:2001.08361, table 1; Hoffmann et al. 2022,
arXiv:2203.15556, appendix F), over the peak of the device times the share of it that is reached.

Serving: a decoding step of a batch reads the weights once and the keys and values of each sequence, computes 2 flop per
active parameter and token, and waits: for each layer, for the link between GPUs, and for each sequence's bookkeeping.
`Serving` holds the five constants of that wait and of the power, fitted to the 16 model families of text tasks in the
ML.ENERGY v3 table for H100. benchmarks/estimate.py makes fit and range again without each family, and predicts it:
90 % of the rows lie in the range, and the centre errs by 20 % on average.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from negawatt.core.errors import UsageError
from negawatt.core.placement import Site
from negawatt.core.saving import Interval
from negawatt.hardware.catalogue import Device
from negawatt.report.numbers import count

Values = Mapping[str, float]
KWH_J = 3.6e6
FLOP_PER_TRAINED, FLOP_PER_SERVED = 6.0, 2.0  # per parameter and token; sources above
CALIBRATED_ON = "H100 SXM"  # the only device that `Serving` was fitted to and tested on


@dataclass(frozen=True, slots=True, kw_only=True)
class Assumption:
    """One unknown of an estimate.

    Attributes:
        name: what it is.
        range: central, lowest and highest value, in `unit`.
        unit: "" for a ratio.
        source: where the range comes from.
        given: whether the user gave it.
    """

    name: str
    range: Interval
    unit: str
    source: str
    given: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Width:
    """How much of the width of an estimate is due to one assumption."""

    name: str
    fraction: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What some work will take.

    Attributes:
        work: what is done, in words.
        machine_j: energy of the accelerators and their hosts [J].
        site_j: the same with cooling and losses of the site: times PUE [J].
        time_s: how long it takes [s].
        carbon_g: emissions [gCO2e]; None without a zone.
        cost: money in `currency`; None where no price is known.
        currency: of the cost, or "".
        basis: year and source of carbon and price, or why there is none, a sentence each.
        assumptions: everything that was not given, and the ranges of what was.
        widths: what the width of `site_j` is due to, the largest first.
    """

    work: str
    machine_j: Interval
    site_j: Interval
    time_s: Interval
    carbon_g: Interval | None
    cost: Interval | None
    currency: str
    basis: tuple[str, ...]
    assumptions: tuple[Assumption, ...]
    widths: tuple[Width, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Something to be run: what it takes as a function of its unknowns.

    Attributes:
        name: in words.
        time_s: from the values of the assumptions to seconds.
        machine_j: from the values of the assumptions to joules of accelerators and hosts.
        assumptions: the unknowns.
    """

    name: str
    time_s: Callable[[Values], float]
    machine_j: Callable[[Values], float]
    assumptions: tuple[Assumption, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A language model as far as its energy goes.

    Attributes:
        params: all parameters.
        active_params: parameters that one token passes through; equal to `params` unless it is a mixture of experts.
        bits: of one stored weight.
        routed_fraction: of the experts, the share that one token is sent to (8 of 128: 0.0625); None: not known.
    """

    params: float  # a count
    active_params: float  # a count
    bits: float = 16.0  # per weight
    routed_fraction: float | None = None

    def read_params(self, batch: float) -> float:
        """Parameters that a step of `batch` tokens reads: an expert is read if any of them is sent to it."""
        share = self.routed_fraction or self.active_params / self.params
        if self.active_params >= self.params or share >= 1:
            return self.params
        # What all tokens share is found from active = shared + share * routed; a tenth of it at least is shared.
        routed = min((self.params - self.active_params) / (1 - share), self.params - 0.1 * self.active_params)
        unread: float = (1 - share) ** batch
        return self.params - routed * unread


@dataclass(frozen=True, slots=True, kw_only=True)
class Serving:
    """Constants of a decoding step, fitted to measured H100 rows (see the module's text).

    Attributes:
        layer_s: wait per layer [s].
        link_s: wait per layer for each doubling of the number of GPUs [s].
        sequence_s: wait per sequence of the batch [s].
        waiting_fraction: power while it waits, over rated power.
        working_fraction: what is added to it while memory and arithmetic are busy.
        error: factors from the prediction to the measured energy: 95 % prediction interval for a family that was not
            in the fit (Student's t over the 16 families, each predicted by a fit to the others).
    """

    layer_s: float = 46.7e-6
    link_s: float = 38.7e-6
    sequence_s: float = 70.7e-6
    waiting_fraction: float = 0.612
    working_fraction: float = 0.198
    error: tuple[float, float] = (0.52, 1.85)  # ratios


MEMORY_EFFICIENCY, COMPUTE_EFFICIENCY = 0.9, 0.6  # of the peaks, in a decoding step: assumed, the fit hardly sees them


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One decoding step of a batch.

    Attributes:
        time_s: its length, with its share of reading prompts [s].
        power_w: of all GPUs [W].
        token_j: GPU energy per token that it gives out [J].
    """

    time_s: float
    power_w: float
    token_j: float


def decode(
    device: Device,
    gpus: int,
    model: Model,
    *,
    batch: float,
    prompt_ratio: float,
    reply_tokens: float,
    constants: Serving | None = None,
) -> Step:
    """Time and energy of one decoding step.

    Args:
        device: must state peak and memory bandwidth.
        gpus: that hold one copy of the model.
        model: the model.
        batch: sequences decoded at the same time.
        prompt_ratio: prompt tokens per token given out.
        reply_tokens: tokens given out per request, on average.
        constants: of the step; default: those fitted.

    Raises:
        UsageError: if the device states no peak or bandwidth.
    """
    c, peak, bandwidth = constants or Serving(), _peak(device, model.bits), device.memory_bytes_per_s
    if bandwidth is None:
        raise _unknown(device, "memory bandwidth")
    # Layers, and bytes of keys and values per token, of the models' published configurations as powers of their size:
    # 8 to 405 thousand million parameters, grouped-query attention, 16 bits; within a factor of 1.6 for most.
    layers = 17.0 * (math.sqrt(model.params * model.active_params) / 1e9) ** (1 / 3)
    token_bytes = 65e3 * (model.active_params / 1e9) ** 0.36
    kept = batch * reply_tokens * (prompt_ratio + 0.5)
    read_bytes = model.read_params(batch) * model.bits / 8 + kept * token_bytes
    flop = FLOP_PER_SERVED * model.active_params * batch * (1 + prompt_ratio)
    working_s = read_bytes / (gpus * bandwidth * MEMORY_EFFICIENCY) + flop / (gpus * peak * COMPUTE_EFFICIENCY)
    time_s = working_s + layers * (c.layer_s + c.link_s * math.log2(gpus)) + batch * c.sequence_s
    share = min(1.0, c.waiting_fraction + c.working_fraction * working_s / time_s)
    power_w = gpus * device.full_w * share
    return Step(time_s=time_s, power_w=power_w, token_j=power_w * time_s / batch)


def training(flop: float, device: Device, gpus: int, bits: float, assumptions: Sequence[Assumption]) -> Work:
    """Arithmetic of a known amount, as training is. Raises UsageError if the device states no peak.

    Args:
        flop: floating-point operations.
        device: the accelerator.
        gpus: how many, which sets only the time.
        bits: of the arithmetic: 32, or 16 and below.
        assumptions: "utilisation" of the peak, "load" of the accelerators, "host" power per accelerator [W].
    """
    peak = _peak(device, bits)

    def device_s(v: Values) -> float:
        return flop / (peak * v["utilisation"])

    return Work(
        name=f"{_short(flop)} flop on {gpus} × {device.name}",
        time_s=lambda v: device_s(v) / gpus,
        machine_j=lambda v: device_s(v) * (device.full_w * v["load"] + v["host"]),
        assumptions=tuple(assumptions),
    )


def serving(tokens: float, device: Device, gpus: int, model: Model, assumptions: Sequence[Assumption]) -> Work:
    """Tokens given out by a language model.

    Args:
        tokens: given out, in all.
        device: the accelerator.
        gpus: that hold one copy of the model and give out all of the tokens.
        model: the model.
        assumptions: "batch", "prompt tokens per token", "reply length", "model error", "host" per accelerator [W].

    Raises:
        UsageError: if the weights do not fit, or the device states no peak or bandwidth.
    """
    weights = model.params * model.bits / 8
    if device.memory_bytes is not None and weights > gpus * device.memory_bytes:
        need = math.ceil(weights / device.memory_bytes)
        raise UsageError(
            f"{weights / 1e9:.4g} GB of weights on {gpus} × {device.memory_bytes / 1e9:.4g} GB",
            "the model does not fit, so this energy can never be measured",
            f"--gpus {2 ** math.ceil(math.log2(need))}, or fewer --bits",
        )

    def step(v: Values) -> Step:
        ratio, length = v["prompt tokens per token"], v["reply length"]
        return decode(device, gpus, model, batch=v["batch"], prompt_ratio=ratio, reply_tokens=length)

    def time_s(v: Values) -> float:
        return tokens * step(v).time_s / v["batch"]

    return Work(
        name=f"{count(tokens)} tokens of a model of {count(model.params)} parameters on {gpus} × {device.name}",
        time_s=time_s,
        machine_j=lambda v: tokens * step(v).token_j * v["model error"] + gpus * v["host"] * time_s(v),
        assumptions=tuple(assumptions),
    )


def running(time_s: float, device: Device, gpus: int, assumptions: Sequence[Assumption]) -> Work:
    """Machines kept busy for a known time, whatever they do.

    Args:
        time_s: how long [s].
        device: the accelerator.
        gpus: how many.
        assumptions: "load" of the accelerators, "host" power per accelerator [W].
    """
    return Work(
        name=f"{time_s / 3600:.4g} h on {gpus} × {device.name}",
        time_s=lambda _: time_s,
        machine_j=lambda v: gpus * time_s * (device.full_w * v["load"] + v["host"]),
        assumptions=tuple(assumptions),
    )


def estimate(work: Work, pue: Assumption, site: Site | None) -> Estimate:
    """What the work takes at a site. Without a zone or price, carbon or cost stay None and `basis` says why."""
    machine_j, _ = spread(work.machine_j, work.assumptions)
    site_j, widths = spread(lambda v: work.machine_j(v) * v[pue.name], (*work.assumptions, pue))
    time_s, _ = spread(work.time_s, work.assumptions)
    intensity, price = (site.intensity_gpkwh, site.price_per_kwh) if site else (None, None)
    basis = []
    if intensity is None and price is None:
        basis.append(
            "No carbon and no money: no zone is known. Give --zone FR, or keep it with `negawatt config set zone FR`."
        )
    elif intensity is None:
        basis.append("No carbon: no zone is known. Give --zone FR, or keep it with `negawatt config set zone FR`.")
    else:
        basis.append(f"Carbon: {intensity.value:g} gCO2e/kWh, {intensity.source}.")
    if price is not None and site is not None:
        basis.append(f"Price: {price.value:g} {site.currency}/kWh, {price.source}.")
    elif intensity is not None and site is not None:
        basis.append(f"No money: no price for {site.name} has a source here. Give --price and --currency.")
    return Estimate(
        work=work.name,
        machine_j=machine_j,
        site_j=site_j,
        time_s=time_s,
        carbon_g=None if intensity is None else times(site_j, intensity.value / KWH_J),
        cost=None if price is None else times(site_j, price.value / KWH_J),
        currency=site.currency if site and price else "",
        basis=tuple(basis),
        assumptions=(*work.assumptions, pue),
        widths=widths,
    )


def spread(
    function: Callable[[Values], float], assumptions: Sequence[Assumption]
) -> tuple[Interval, tuple[Width, ...]]:
    """A positive function of unknowns as a range, and what its width is due to, the largest first."""
    centre = {a.name: a.range.value for a in assumptions}
    value = function(centre)
    down = up = 0.0
    squares = {}
    for a in assumptions:
        moves = [0.0] + [math.log(function({**centre, a.name: end}) / value) for end in (a.range.low, a.range.high)]
        down, up = down + min(moves) ** 2, up + max(moves) ** 2
        squares[a.name] = (max(moves) - min(moves)) ** 2
    total = math.fsum(squares.values())
    widths = (Width(name=n, fraction=s / total) for n, s in sorted(squares.items(), key=lambda i: -i[1]) if s > 0)
    return times(Interval(value=1.0, low=math.exp(-math.sqrt(down)), high=math.exp(math.sqrt(up))), value), tuple(
        widths
    )


def between(low: float, high: float) -> Interval:
    """A range of a factor, its centre the geometric mean."""
    return Interval(value=math.sqrt(low * high), low=low, high=high)


def times(interval: Interval, factor: float) -> Interval:
    """A range in another unit."""
    return Interval(value=interval.value * factor, low=interval.low * factor, high=interval.high * factor)


def _short(number: float) -> str:
    """A large number as people type it: 3e21."""
    return f"{number:.3g}".replace("e+", "e")


def _peak(device: Device, bits: float) -> float:
    """Peak of arithmetic with so many bits: fp32 above 16, else bf16, which fp8 counts as too [flop/s]."""
    if bits <= 16 and device.half_flop_per_s is not None:
        return device.half_flop_per_s
    if device.single_flop_per_s is None:
        raise _unknown(device, "peak of 32-bit arithmetic" if bits > 16 else "peak")
    return device.single_flop_per_s


def _unknown(device: Device, what: str) -> UsageError:
    return UsageError(
        f"{device.name} has no published {what} in the table",
        "without it the time, and so the energy, would be made up",
        "give --hours instead of the work, or another --gpu",
    )

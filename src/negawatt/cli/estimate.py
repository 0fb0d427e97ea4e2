"""`negawatt estimate`: energy, carbon and money of work before it is run."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import click

from negawatt.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from negawatt.core.saving import Interval
    from negawatt.hardware.catalogue import Device
    from negawatt.report.estimate import Assumption, Estimate, Model, Work

_SIZES = {"": 1.0, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}

_MOST = 1e40
"""Sizes and figures beyond it are slips of the keyboard, and would leave the numbers that can be reckoned with."""
_LEAST_PARAMS = 1000
_BITS = 16.0

# Options that only some kinds of work use: elsewhere they would be ignored, and the user would not know.
_ARITHMETIC = ("utilisation", "load")
_BITS_OF = ("bits",)
_MODEL = ("params", "active_params")
_SERVED = ("experts", "batch", "prompt_tokens", "reply_tokens")
_USES = {
    "flops": (*_ARITHMETIC, *_BITS_OF),
    "train_tokens": (*_ARITHMETIC, *_BITS_OF, *_MODEL),
    "tokens": (*_BITS_OF, *_MODEL, *_SERVED),
    "hours": ("load",),
}

# What to type to narrow an assumption.
_NARROW = {
    "utilisation": "--utilisation LOW..HIGH",
    "load": "--load LOW..HIGH",
    "host": "--host-w WATTS",
    "PUE": "--pue LOW..HIGH",
    "batch": "--batch LOW..HIGH",
    "prompt tokens per token": "--prompt-tokens N",
    "reply length": "--reply-tokens N",
    "model error": "a measurement of a part of it: `negawatt run -- CMD`",
}


@click.command(
    epilog="Numbers may be written 3e21 or 70B; LOW..HIGH is a range, and one number is a range without width."
)
@click.option("--flops", metavar="N", help="Floating-point operations of the work.")
@click.option("--train-tokens", metavar="N", help="Tokens to train on; needs --params.")
@click.option("--tokens", metavar="N", help="Tokens that a language model gives out; needs --params.")
@click.option("--hours", metavar="N", help="Hours that the GPUs are busy, whatever they do.")
@click.option("--params", metavar="N", help="Parameters of the model.")
@click.option("--active-params", metavar="N", help="Parameters that one token passes through, if not all.")
@click.option("--experts", metavar="K/N", help="Experts that a token is sent to, of how many: 8/128.")
@click.option(
    "--bits", type=click.FloatRange(1, 32), help="Of a weight or operation; below 16, as fast as 16.  [default: 16]"
)
@click.option("--batch", metavar="LOW..HIGH", help="Sequences decoded at the same time.")
@click.option("--prompt-tokens", metavar="N", help="Prompt tokens in all, beside --tokens.")
@click.option("--reply-tokens", metavar="LOW..HIGH", help="Tokens given out per request.")
@click.option("--gpu", metavar="NAME", help="The device, as in 'H100 SXM'; processors and TPUs too.")
@click.option("--gpus", type=click.IntRange(1, 10**9), default=1, show_default=True, help="How many of them.")
@click.option("--utilisation", metavar="LOW..HIGH", help="Share of the peak arithmetic that is reached.")
@click.option("--load", metavar="LOW..HIGH", help="Mean power of the devices, over rated power.")
@click.option("--host-w", metavar="LOW..HIGH", help="Power of the rest of the machines, all together.")
@click.option("--pue", metavar="LOW..HIGH", help="Energy of the site over that of its machines.")
@click.option("--zone", metavar="CODE", help="Country where it runs, as in FR; never guessed.")
@click.option("--price", metavar="N", help="Price of a kWh, in --currency.")
@click.option("--currency", metavar="CODE", help="Of --price: EUR, USD, ...")
@click.option("--intensity", metavar="N", help="Carbon intensity of the electricity, in gCO2e per kWh.")
@click.option("--list-gpus", is_flag=True, help="List the devices with their figures and sources.")
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON.")
def command(**options: Any) -> None:  # noqa: ANN401 -- click's
    """Estimate energy, carbon and money of work before it is run, as ranges with all that they assume.

    Say the work with one of --flops, --train-tokens, --tokens and --hours, and the machine with --gpu.
    """
    from negawatt.core.codec import to_json

    if options["list_gpus"]:
        _list(as_json=options["as_json"])
        return
    found = estimated(options)
    if options["as_json"]:
        click.echo(json.dumps(to_json(found), indent=1, allow_nan=False))
    else:
        _print(found)


def estimated(options: dict[str, Any]) -> Estimate:
    """The estimate that the options ask for. Raises UsageError if they cannot be understood together."""
    from negawatt.hardware import site
    from negawatt.hardware.catalogue import find
    from negawatt.report import assumed
    from negawatt.report.estimate import estimate

    if not options["gpu"]:
        raise UsageError(
            "no --gpu", "power and speed are those of a device", "--gpu 'H100 SXM'; --list-gpus shows the table"
        )
    if options["currency"] is not None and options["price"] is None:
        raise UsageError("--currency without --price", "no price is converted between currencies", "give both or none")
    place = site.chosen(
        {
            "zone": options["zone"],
            "price_per_kwh": options["price"],
            "currency": options["currency"],
            "intensity_gpkwh": options["intensity"],
        }
    )
    pue, source = _range(options, "pue"), "given on the command line"
    if pue is None and place is not None and place.pue is not None:
        pue, source = assumed.interval(f"{place.pue.value}", "pue"), place.pue.source
    return estimate(_work(options, find(options["gpu"])), assumed.pue(pue, source), place)


def _work(options: dict[str, Any], device: Device) -> Work:
    from negawatt.report import assumed
    from negawatt.report.estimate import FLOP_PER_TRAINED, running, serving, training

    said = [name for name in ("flops", "train_tokens", "tokens", "hours") if options[name] is not None]
    if len(said) != 1:
        raise UsageError(
            f"{' and '.join(map(_flag, said)) or 'no work'} given",
            "one kind of work is estimated at a time",
            "give one of --flops, --train-tokens, --tokens and --hours",
        )
    kind, gpus = said[0], options["gpus"]
    for name in (*_ARITHMETIC, *_BITS_OF, *_MODEL, *_SERVED):
        if options[name] is not None and name not in _USES[kind]:
            raise UsageError(
                f"{_flag(name)} with {_flag(kind)}",
                "it would be ignored, as this work does not depend on it",
                "drop it",
            )
    amount, host = _number(options[kind], kind), assumed.host(device, gpus, _range(options, "host_w"))
    if kind == "hours":
        return running(amount * 3600, device, gpus, (assumed.load(_range(options, "load")), host))
    if kind == "tokens":
        prompt, model = options["prompt_tokens"], _model(options)
        ratio = None if prompt is None else assumed.interval(f"{_number(prompt, 'prompt_tokens') / amount}", "ratio")
        unknowns = (
            assumed.batch(_range(options, "batch")),
            assumed.prompt_ratio(ratio),
            assumed.reply_length(_range(options, "reply_tokens")),
            assumed.model_error(device),
            host,
        )
        return serving(amount, device, gpus, model, unknowns)
    if kind == "train_tokens":
        amount *= FLOP_PER_TRAINED * _model(options).active_params
    loads = (assumed.utilisation(_range(options, "utilisation")), assumed.load(_range(options, "load")), host)
    return training(amount, device, gpus, _bits(options), loads)


def _model(options: dict[str, Any]) -> Model:
    from negawatt.report.estimate import Model

    if options["params"] is None:
        raise UsageError("no --params", "the work of a token grows with the parameters", "--params 70B")
    params = _number(options["params"], "params")
    active = params if options["active_params"] is None else _number(options["active_params"], "active_params")
    if params < _LEAST_PARAMS:
        raise UsageError(f"--params {params:g}", "no language model is so small", f"did you mean --params {params:g}B?")
    if active > params:
        raise UsageError(
            f"{active:g} active of {params:g} parameters", "a part is not more than the whole", "swap them"
        )
    return Model(params=params, active_params=active, bits=_bits(options), routed_fraction=_routed(options["experts"]))


def _bits(options: dict[str, Any]) -> float:
    return _BITS if options["bits"] is None else float(options["bits"])


def _routed(text: str | None) -> float | None:
    """The text "8/128" as the share of the experts that a token is sent to."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not match or not 0 < int(match[1]) <= int(match[2]):
        raise UsageError(f"--experts {text}", "it says how many weights a batch reads", "--experts 8/128")
    return int(match[1]) / int(match[2])


def _number(text: str, option: str) -> float:
    """A positive number, as 3e21, 1_000_000 or 70B."""
    match = re.fullmatch(r"([\d_.]+(?:e[+-]?\d+)?)([kmbt]?)", text.strip(), re.IGNORECASE)
    try:
        number = float(match[1]) * _SIZES[match[2].upper()] if match else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number < _MOST:
        raise UsageError(
            f"{_flag(option)} {text}", "it is the size of the work", "a positive number: 3e21, 1.5T or 70B"
        )
    return number


def _range(options: dict[str, Any], option: str) -> Interval | None:
    from negawatt.report.assumed import interval

    if options[option] is None:
        return None
    found = interval(options[option], _flag(option))
    if not 1 / _MOST < found.low <= found.high < _MOST:
        raise UsageError(f"{_flag(option)} {options[option]}", "it is beyond any machine", "check its exponent")
    return found


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _list(*, as_json: bool) -> None:
    from negawatt.core.codec import to_json
    from negawatt.hardware.catalogue import devices

    if as_json:
        click.echo(json.dumps([to_json(device) for device in devices().values()], indent=1))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("device", "idle W", "rated W", "Tflop/s (16 bit)", "GB/s"):
        table.add_column(title, justify="left" if title == "device" else "right")
    table.add_column("source", overflow="fold")
    for device in devices().values():
        low, high = device.idle_range_w()
        cells = (
            device.name,
            f"{low:g}" if device.idle_w is not None else f"{low:.0f}–{high:.0f}?",
            f"{device.full_w:g}",
            f"{device.half_flop_per_s / 1e12:g}" if device.half_flop_per_s else "",
            f"{device.memory_bytes_per_s / 1e9:g}" if device.memory_bytes_per_s else "",
            device.source,
        )
        table.add_row(*cells)
    console = _console()
    console.print(table)
    console.print(
        "? assumed from the kind of device, as the maker gives none. --json has the addresses and what was derived.",
        soft_wrap=True,
    )


def _print(found: Estimate) -> None:
    from rich.table import Table

    from negawatt.report.numbers import NBSP, carbon, duration, energy, percent, plain, significant

    console = _console()
    console.print(f"{found.work}, before it is run\n", style="bold", soft_wrap=True)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("", "low", "central", "high"):
        table.add_column(title, justify="left" if not title else "right")

    def add(name: str, interval: Interval | None, show: Any) -> None:  # noqa: ANN401 -- a function of a number
        if interval is not None:
            table.add_row(name, *(show(end) for end in (interval.low, interval.value, interval.high)))

    add("machines", found.machine_j, energy)
    add("site", found.site_j, energy)
    add("carbon (CO2e)", found.carbon_g, carbon)
    add("money", found.cost, lambda amount: f"{significant(amount)}{NBSP}{found.currency}")
    add("time", found.time_s, duration)
    console.print(table)
    console.print()
    for line in found.basis:
        console.print(line, soft_wrap=True)
    console.print("\nAssumed", style="bold")
    grid = Table.grid(padding=(0, 2, 0, 0))
    for a in found.assumptions:
        ends = [plain(float(f"{end:.3g}")) for end in (a.range.low, a.range.high)]
        value = ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"
        grid.add_row(f"  {a.name}", f"{value} {a.unit}".strip(), a.source)
    console.print(grid)
    console.print()
    for widest in found.widths[:1]:
        share, how = percent(widest.fraction), _narrower(widest.name, found.assumptions)
        console.print(f"{share} of the width is due to {widest.name}{how}", soft_wrap=True)


def _narrower(name: str, assumptions: tuple[Assumption, ...]) -> str:
    given = any(a.given for a in assumptions if a.name == name)
    return "." if given or name not in _NARROW else f": narrow it with {_NARROW[name]}."


def _console() -> Console:
    from rich.console import Console

    return Console(markup=False, highlight=False, emoji=False)

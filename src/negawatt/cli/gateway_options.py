"""What is typed after `negawatt gateway`, as serving options. `gateway_checks` says what of them cannot be served."""

from __future__ import annotations

import re
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negawatt.core.errors import UsageError

if TYPE_CHECKING:
    from negawatt.core.serving import Cascade, ServingOptions, ServingSetting
    from negawatt.serve.service import How

WINDOW_S, MAX_BATCH = 0.005, 8
"""What goes with a maximum batch, or with a window, that is given alone."""
LEAST_BYTES = 1000
"""A size below it is a forgotten unit."""

_TIMES_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SIZES = {"": 1, "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TYPES = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "a text", "tuple": "a list"}


def _quantity(text: str, option: str, units: dict[str, Any], example: str) -> float:
    """A number with one of some units. Raises UsageError."""
    from math import isfinite

    number = text.strip().rstrip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ ")
    unit = text.strip()[len(number) :].strip()
    sizes = {name.lower(): size for name, size in units.items()}
    try:
        value = float(number)
    except ValueError:
        value = -1.0
    if not isfinite(value) or value < 0:
        raise UsageError(f"{option} {text!r}", "it is no quantity", f"write e.g. {option} {example}")
    if value == 0 and not unit:
        return 0.0
    if not unit and "" not in sizes:
        raise UsageError(
            f"{option} {text!r} has no unit",
            "seconds and milliseconds are far apart",
            f"write {option} {number}ms or {option} {number}s",
        )
    if unit.lower() not in sizes:
        known = ", ".join(name for name in units if name)
        raise UsageError(f"{option} {text!r}", f"{unit!r} is not known", f"units are {known}: {option} {example}")
    return value * float(sizes[unit.lower()])


def time_s(text: str, option: str, example: str = "200ms") -> float:
    """Seconds of "200ms", "1.5 s", "10m". Raises UsageError."""
    return _quantity(text, option, _TIMES_S, example)


def size(text: str, option: str, example: str = "64MB") -> int:
    """Bytes of "64MB", "1 KiB"; 0 is none. Raises UsageError, below 1 kB as well."""
    value = int(_quantity(text, option, _SIZES, example))
    if 0 < value < LEAST_BYTES:
        raise UsageError(f"{option} {text!r} is {value} bytes", "nothing of use fits", f"write e.g. {option} {example}")
    return value


def how_of(given: dict[str, Any]) -> How:
    """How the gateway is run. Raises UsageError."""
    from negawatt.hardware.site import chosen
    from negawatt.serve.chain import Hands
    from negawatt.serve.limits import Limits
    from negawatt.serve.service import How

    body, answer_s = size(given["max_body"], "--max-body", "16MiB"), time_s(given["timeout"], "--timeout", "10m")
    if not answer_s:
        raise UsageError("--timeout 0", "no answer comes at once", "write e.g. --timeout 10m")
    if not body:
        raise UsageError("--max-body 0", "no request with a body could be passed on", "write e.g. --max-body 16MiB")
    limits = Limits(body_bytes=body, held_bytes=max(256 << 20, body), answer_s=answer_s)
    wake_s = time_s(given["wake_time"], "--wake-time", "20s")
    hands = Hands(limit_power=given["limit_power"], wake=given["wake"], sleep=given["sleep"], wake_s=wake_s)
    return How(limits=limits, site=chosen({}), otlp=given["otlp"], hands=hands)


def serving_options(given: dict[str, Any]) -> ServingOptions:
    """The serving options of a file, and over them those of the command line. Raises UsageError."""
    from negawatt.core.serving import ServingOptions

    options = ServingOptions() if given["file"] is None else _read(given["file"])
    control = given["control"] or options.control
    setting = _setting(given, options.setting, control=control)
    changed: dict[str, Any] = {"setting": setting, "cascade": _cascade(given, options)}
    if given["upstreams"]:
        changed["upstreams"] = given["upstreams"]
    if given["p99"] is not None:
        changed["p99_s"] = time_s(given["p99"], "--p99")
        if not changed["p99_s"]:
            raise UsageError("--p99 0", "no answer comes at once", "write e.g. --p99 200ms")
    if given["cache"] is not None:
        changed["cache_bytes"] = size(given["cache"], "--cache")
    changed |= {name: given[name] for name in ("semantic", "semantic_url", "semantic_model") if given[name] is not None}
    return replace(options, **changed, control=control)


def _setting(given: dict[str, Any], setting: ServingSetting, *, control: bool) -> ServingSetting:
    """What is typed over a setting. A window takes a batch and the other way round, so one of them brings the other."""
    typed = {name: given[name] for name in ("max_batch", "concurrency", "replicas") if given[name] is not None}
    window_s = setting.window_s
    if given["window"] is not None:
        window_s = time_s(given["window"], "--window", "5ms")
        if window_s >= 60:
            raise UsageError(
                f"--window {given['window']}", "a request would wait so long for others", "give less than 60s, e.g. 5ms"
            )
    batch = typed.get("max_batch", setting.max_batch)
    if given["window"] is not None and window_s and given["max_batch"] == 1:
        raise UsageError(
            f"--window {given['window']} --max-batch 1", "no others would go with the one that waits", "leave out one"
        )
    if given["window"] is not None and not window_s and batch > 1 and not control:
        raise UsageError(
            f"--window 0 with a maximum batch of {batch}",
            "none waits for others, so none go together",
            "write e.g. --window 5ms, or --max-batch 1 to join none",
        )
    if window_s and batch == 1 and given["max_batch"] is None:
        typed["max_batch"] = MAX_BATCH
    elif batch > 1 and not window_s and not control:  # a controller turns the window by itself
        window_s = WINDOW_S
    return replace(setting, window_s=window_s, **typed)


def _cascade(given: dict[str, Any], options: ServingOptions) -> Cascade | None:
    from negawatt.core.serving import Cascade

    named = {"upstream": "cascade", "model": "cascade_model", "confidence": "confidence", "field": "confidence_field"}
    changed = {field: given[option] for field, option in named.items() if given[option] is not None}
    if options.cascade is not None:
        return replace(options.cascade, **changed)
    if not changed:
        return None
    if "upstream" not in changed:
        raise UsageError("a cascade without --cascade", "nobody could be asked first", "add --cascade URL")
    return Cascade(**changed)


def _read(path: Path) -> ServingOptions:
    import json

    from negawatt.core.codec import from_json
    from negawatt.core.serving import Cascade, ServingOptions, ServingSetting

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for name, _ in pairs:
            if sum(name == other for other, _ in pairs) > 1:
                raise ValueError(f"{name!r} is there twice")
        return dict(pairs)

    def no_number(text: str) -> float:
        raise ValueError(f"{text} is no number of JSON")

    try:
        text = path.read_text(encoding="utf-8")
        data = json.loads(text, object_pairs_hook=unique, parse_constant=no_number)
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"--options {path}: {error}", "it says how to serve", "name a file that holds serving options as JSON"
        ) from None
    parts: list[tuple[type, Any, str]] = [(ServingOptions, data, "")]
    if isinstance(data, dict):
        parts += [(ServingSetting, data.get("setting"), "setting."), (Cascade, data.get("cascade"), "cascade.")]
    for kind, part, where in parts:
        known = [field.name for field in fields(kind)]
        unknown = [name for name in part if name not in known] if isinstance(part, dict) else []
        if unknown:
            raise UsageError(
                f"--options {path}: {where}{unknown[0]} is no such field",
                "a file that is half understood would serve something else",
                f"known fields{' of ' + where[:-1] if where else ''}: {', '.join(known)}",
            )
    try:
        return from_json(ServingOptions, data, str(path))
    except UsageError as error:
        got = re.sub(r"expected (\w+),", lambda found: f"expected {_TYPES.get(found[1], found[1])},", error.got)
        got = re.sub(r"expected an object \(\w+\)", "expected an object", got)
        fix = "correct it; docs/gateway.md lists the fields" if got.startswith(str(path)) else error.fix
        raise UsageError(f"--options {got}", error.why, fix) from None

"""`negawatt gateway --upstream URL`: what each request to an inference server costs, and fewer joules for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negawatt.core.errors import UsageError

if TYPE_CHECKING:
    from negawatt.core.serving import Cascade, ServingOptions
    from negawatt.serve.service import How, Summary

_TIMES_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "": 1.0}
_SIZES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def _quantity(text: str, option: str, units: dict[str, Any], example: str) -> float:
    """A number with one of some units. Raises UsageError."""
    from math import isfinite

    body = text.strip().lower()
    number = body.rstrip("abcdefghijklmnopqrstuvwxyz ")
    try:
        value = float(number) * float(units[body[len(number) :].strip()])
    except (ValueError, KeyError):
        value = -1.0
    if not isfinite(value) or value < 0:
        raise UsageError(f"{option} {text!r}", "it is not understood", f"write e.g. {option} {example}")
    return value


def _time_s(text: str, option: str) -> float:
    return _quantity(text, option, _TIMES_S, "200ms")


def _size(text: str, option: str) -> int:
    return int(_quantity(text, option, _SIZES, "64MB"))


@click.command()
@click.option(
    "--upstream",
    "upstreams",
    multiple=True,
    metavar="URL",
    help="The inference server, or one of its replicas (repeatable).",
)
@click.option(
    "--listen",
    default="127.0.0.1:8080",
    show_default=True,
    metavar="HOST:PORT",
    help="Where clients connect; port 0: a free one.",
)
@click.option("--p99", metavar="TIME", help="The promise: 99 of 100 requests end within it, as 200ms.")
@click.option("--control", is_flag=True, help="Let a controller turn the setting while the promise holds; needs --p99.")
@click.option("--window", metavar="TIME", help="Longest time that a request waits to go upstream together with others.")
@click.option("--max-batch", type=click.IntRange(1), metavar="N", help="Most requests that go upstream as one.")
@click.option(
    "--concurrency", type=click.IntRange(0), metavar="N", help="Most calls at a time to one replica; 0: no limit."
)
@click.option("--replicas", type=click.IntRange(0), metavar="N", help="How many replicas are awake; 0: all.")
@click.option("--cache", metavar="SIZE", help="Keep answers to equal requests in so much memory, as 64MB.")
@click.option(
    "--semantic",
    type=click.FloatRange(0, 1),
    metavar="F",
    help="Also answer texts alike by so much (cosine) from the cache.",
)
@click.option("--semantic-url", metavar="URL", help="The embeddings endpoint that judges this.")
@click.option("--semantic-model", metavar="M", help="Name to ask it for; default: none.")
@click.option("--cascade", metavar="URL", help="Ask this server's small model first.")
@click.option("--cascade-model", metavar="M", help="Name to ask it for; default: as the client asked.")
@click.option("--confidence", type=click.FloatRange(0, 1), metavar="F", help="Least confidence that counts.")
@click.option(
    "--confidence-field", metavar="PATH", help="Where the confidence is in its answer; default: from the tokens."
)
@click.option(
    "--options", "file", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
    help="Serving options as JSON; what is given on the command line comes first.",
)  # fmt: skip
@click.option("--sensor", "sensors", multiple=True, metavar="NAME", help="Meter only with this sensor (repeatable).")
@click.option("--otlp", metavar="URL", default="", help="Send metrics to this OpenTelemetry collector.")
@click.option(
    "--name", metavar="NAME", default="gateway", show_default=True, help="What to call the run in the ledger."
)
@click.option("--max-body", metavar="SIZE", default="16MiB", show_default=True, help="Largest body of a request.")
@click.option(
    "--timeout", metavar="TIME", default="600s", show_default=True, help="Longest wait for upstream's next byte."
)
@click.option("--limit-power", is_flag=True, help="Let the controller turn the power limit of the devices, too.")
@click.option(
    "--wake", metavar="CMD", default="", help="Command that wakes a replica; {url} and {index} are filled in."
)
@click.option(
    "--sleep", metavar="CMD", default="", help="Command that puts a replica to sleep. 'vllm' for both: its own."
)
@click.option("--wake-time", metavar="TIME", default="0s", show_default=True, help="How long a replica takes to wake.")
def command(
    *,
    listen: str,
    sensors: tuple[str, ...],
    name: str,
    **given: Any,  # noqa: ANN401 -- click's
) -> None:
    """Pass requests on to an inference server, and tell what each costs in joules.

    Clients are unchanged but for the URL. Answers carry their joules in headers, the ledger has every request, and
    /metrics is for Prometheus. With --p99 and --control, the setting that holds the promise at least energy is learnt
    from the traffic.
    """
    try:
        from negawatt.serve import server, service
    except ModuleNotFoundError as error:
        raise UsageError(
            f"the gateway needs the package {error.name!r}",
            "negawatt installs it only for those who serve",
            "pip install 'negawatt[serve]'",
        ) from error
    options, how = serving_options(given), _how(given)
    _check(options, how)
    host, port = _address(listen)
    sock = server.listen(host, port)
    with sock:
        from ipaddress import ip_address

        if not ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback:
            _say(
                f"WARNING: {listen} can be reached from other machines. The gateway asks nobody who they are: whoever "
                "reaches it can use the inference server, and read /metrics and /negawatt/."
            )
        _run(options, how, service, sock, name, sensors)


def _run(options: ServingOptions, how: How, service: Any, sock: Any, name: str, sensors: tuple[str, ...]) -> None:  # noqa: ANN401
    import asyncio
    import logging

    from negawatt.metering.run import LiveRun
    from negawatt.report.numbers import clean

    logging.basicConfig(format="negawatt: %(message)s", level=logging.WARNING)
    live = LiveRun(clean(name), sensors=sensors, record=True)
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ModuleNotFoundError:  # Windows
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        summary = runner.run(service.run(options, how, live, sock, _say))
    for line in _lines(summary):
        _say(line)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _lines(summary: Summary) -> list[str]:
    """What the gateway did, for people."""
    from negawatt.report.numbers import count, duration, energy

    ended = ", ".join(f"{count(n)} {outcome}" for outcome, n in summary.outcomes) or "no requests"
    lines = [
        f"gateway: {duration(summary.time_s)}, {ended}",
        f"  {energy(summary.total_j)} ({summary.source})",
        f"  requests {energy(summary.requests_j)}, idle {energy(summary.idle_j)}, failed {energy(summary.failed_j)}",
    ]
    if summary.answered:
        each = f"  {energy(summary.requests_j / summary.answered)} per request"
        if summary.tokens:
            each += f", {energy(summary.requests_j / summary.tokens)} per token"
        lines.append(each + (f"; p99 {duration(summary.p99_s)}" if summary.p99_s else ""))
    return lines + ([f"  the meter failed: {summary.fault}"] if summary.fault else [])


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen {listen!r}", "it is no address", "write e.g. --listen 127.0.0.1:8080")
    return host, int(port)


def _how(given: dict[str, Any]) -> How:
    from negawatt.hardware.site import chosen
    from negawatt.serve.chain import Hands
    from negawatt.serve.limits import Limits
    from negawatt.serve.service import How

    body, answer_s = _size(given["max_body"], "--max-body"), _time_s(given["timeout"], "--timeout")
    if not answer_s:
        raise UsageError("--timeout 0", "no answer comes at once", "write e.g. --timeout 10m")
    limits = Limits(body_bytes=body, held_bytes=max(256 << 20, body), answer_s=answer_s)
    wake_s = _time_s(given["wake_time"], "--wake-time")
    hands = Hands(limit_power=given["limit_power"], wake=given["wake"], sleep=given["sleep"], wake_s=wake_s)
    return How(limits=limits, site=chosen({}), otlp=given["otlp"], hands=hands)


def serving_options(given: dict[str, Any]) -> ServingOptions:
    """The serving options of a file, and over them those of the command line. Raises UsageError."""
    from negawatt.core.serving import ServingOptions

    options = ServingOptions() if given["file"] is None else _read(given["file"])
    setting: dict[str, Any] = {
        name: given[name] for name in ("max_batch", "concurrency", "replicas") if given[name] is not None
    }
    if given["window"] is not None:
        setting["window_s"] = _time_s(given["window"], "--window")
    changed: dict[str, Any] = {"setting": replace(options.setting, **setting), "cascade": _cascade(given, options)}
    if given["upstreams"]:
        changed["upstreams"] = given["upstreams"]
    if given["p99"] is not None:
        changed["p99_s"] = _time_s(given["p99"], "--p99")
    if given["cache"] is not None:
        changed["cache_bytes"] = _size(given["cache"], "--cache")
    changed |= {name: given[name] for name in ("semantic", "semantic_url", "semantic_model") if given[name] is not None}
    return replace(options, **changed, control=given["control"] or options.control)


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
    from negawatt.core.serving import ServingOptions

    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(
            f"--options {path}: {error}", "it says how to serve", "name a file that holds serving options as JSON"
        ) from None
    return from_json(ServingOptions, data, str(path))


def _check(options: ServingOptions, how: How) -> None:
    """Raise UsageError if the options cannot be served."""
    if not options.upstreams:
        raise UsageError("no --upstream", "requests have to go somewhere", "add --upstream http://127.0.0.1:8000")
    if options.control and options.p99_s is None:
        raise UsageError(
            "--control without --p99", "a controller saves as much as a promise leaves it", "add e.g. --p99 200ms"
        )
    if options.semantic is not None and not (options.semantic_url and options.cache_bytes):
        raise UsageError(
            "--semantic without --semantic-url or without --cache",
            "texts are compared by their embeddings, and answers are kept in the cache",
            "add --semantic-url http://127.0.0.1:8002/v1/embeddings --cache 64MB",
        )
    if options.p99_s == 0:
        raise UsageError("--p99 0", "no answer comes at once", "write e.g. --p99 200ms")
    if how.hands.limit_power and not options.control:
        raise UsageError("--limit-power without --control", "nobody would turn it", "add --control --p99 TIME")
    if bool(how.hands.wake) != bool(how.hands.sleep):
        raise UsageError("--wake without --sleep, or the other way", "what sleeps has to wake again", "give both")
    from negawatt.serve.upstream import Upstream

    for url in (*options.upstreams, *((options.cascade.upstream,) if options.cascade else ())):
        Upstream(url)

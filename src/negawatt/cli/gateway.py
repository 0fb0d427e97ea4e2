"""`negawatt gateway --upstream URL`: what each request to an inference server costs, and fewer joules for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from negawatt.core.errors import UsageError

if TYPE_CHECKING:
    from negawatt.core.serving import ServingOptions
    from negawatt.serve.service import How, Summary


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
    from negawatt.cli import gateway_checks as checks
    from negawatt.cli.gateway_options import how_of, serving_options

    options, how = serving_options(given), how_of(given)
    checks.check(options, how)
    checks.check_sensors(sensors)
    if not name.strip() or not name.isprintable():
        raise UsageError(f"--name {name!r}", "the ledger finds a run by it", "write e.g. --name chat")
    host, port = _address(listen)
    checks.check_loop(options, host, port)
    sock = server.listen(host, port)
    with sock:
        if not port:
            checks.check_loop(options, host, sock.getsockname()[1])
        from ipaddress import ip_address

        if not ip_address(sock.getsockname()[0].partition("%")[0]).is_loopback:
            _say(
                f"warning: {listen} can be reached from other machines. The gateway asks nobody who they are: whoever "
                "reaches it can use the inference server, and read /metrics and /negawatt/."
            )
        for line in checks.hints(options, how.hands):
            _say(line)
        _run(options, how, service, sock, name, sensors)


def _run(options: ServingOptions, how: How, service: Any, sock: Any, name: str, sensors: tuple[str, ...]) -> None:  # noqa: ANN401
    import asyncio
    import logging

    from negawatt.metering.run import LiveRun

    logging.basicConfig(format="warning: %(message)s", level=logging.WARNING)
    live = LiveRun(name, sensors=sensors, record=True)
    try:
        import uvloop

        factory: Callable[[], asyncio.AbstractEventLoop] | None = uvloop.new_event_loop
    except ModuleNotFoundError:  # Windows
        factory = None
    with asyncio.Runner(loop_factory=factory) as runner:
        summary = runner.run(service.run(options, how, live, sock, _say))
    for line in _lines(summary, options.p99_s):
        _say(line)


def _say(text: str) -> None:
    click.echo(text, err=True)


def _lines(summary: Summary, promise_s: float | None) -> Iterator[str]:
    """What the gateway did, for people."""
    from negawatt.report.numbers import count, duration, energy

    ended = ", ".join(f"{count(n)} {outcome}" for outcome, n in summary.outcomes) or "no requests"
    yield f"gateway: {duration(summary.time_s)}, {ended}"
    yield f"  {energy(summary.total_j)} ({summary.source})"
    yield f"  requests {energy(summary.requests_j)}, idle {energy(summary.idle_j)}, failed {energy(summary.failed_j)}"
    if summary.answered:
        own_j, with_idle_j = summary.requests_j, summary.requests_j + summary.idle_j
        each = f"{energy(own_j / summary.answered)} while it was under way"
        yield f"  per request: {each}, {energy(with_idle_j / summary.answered)} with its part of idle"
        if tokens := summary.tokens_out or summary.tokens_in:  # of those requests whose server told
            kind = "out, what came in included" if summary.tokens_out else "in"
            yield f"  per token {kind}: {energy(summary.told_j / tokens)} without idle"
    if summary.p99_s is not None:
        kept = "" if promise_s is None else f", {'within' if summary.p99_s <= promise_s else 'beyond'} the promise"
        yield f"  p99 {duration(summary.p99_s)}" + (kept and f"{kept} of {duration(promise_s or 0.0)}")
    if summary.held:
        yield f"  held in the end: {summary.held}"
    if summary.fault:
        yield f"  the meter failed: {summary.fault}"


def _address(listen: str) -> tuple[str, int]:
    host, _, port = listen.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen {listen!r}", "it is no address", "write e.g. --listen 127.0.0.1:8080")
    return host, int(port)

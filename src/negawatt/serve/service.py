"""Service: the gateway as a whole, from its options to the summary of what it did."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from negawatt.core.codec import to_json
from negawatt.core.serving import Outcome, Served, ServingOptions
from negawatt.serve.app import Gateway, Own
from negawatt.serve.book import Book
from negawatt.serve.chain import Chain, Hands
from negawatt.serve.feed import Feed
from negawatt.serve.limits import Limits
from negawatt.serve.metrics import Metrics
from negawatt.serve.server import STOP_S, Signals, serve, uvicorn_of
from negawatt.serve.times import Times

if TYPE_CHECKING:
    from negawatt.core.placement import Site
    from negawatt.metering.run import LiveRun
    from negawatt.serve.telemetry import Telemetry

Say = Callable[[str], None]
"""Tells people a line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How a gateway is run, beside what it serves.

    Attributes:
        limits: how much it takes at once.
        site: whose carbon intensity prices joules in grams; None: no grams.
        otlp: URL of an OpenTelemetry collector, or "".
        hands: what may be turned beside the stages.
        stop_s: how long calls may go on after the gateway was told to stop [s].
    """

    limits: Limits = field(default_factory=Limits)
    site: Site | None = None
    otlp: str = ""
    hands: Hands = field(default_factory=Hands)
    stop_s: float = STOP_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What a gateway did.

    Attributes:
        time_s: how long it ran [s].
        outcomes: how many requests ended how.
        tokens_in, tokens_out: as upstream told.
        told_j: joules of the requests that told tokens out; of those that told any, if none did [J].
        requests_j: joules of requests that were answered.
        idle_j: joules of the time without requests.
        failed_j: joules of requests that came to nothing.
        total_j: the meter's joules.
        p99_s: 99 of 100 answered requests ended within it; None without any [s].
        source: evidence of the joules.
        fault: how the meter failed, or "".
        held: what the controller set last, and why; "" without one.
    """

    time_s: float
    outcomes: tuple[tuple[Outcome, int], ...]
    tokens_in: int
    tokens_out: int
    told_j: float
    requests_j: float
    idle_j: float
    failed_j: float
    total_j: float
    p99_s: float | None
    source: str
    fault: str
    held: str = ""

    @property
    def answered(self) -> int:
        """Requests that got their answer, from upstream or from the cache."""
        return sum(count for outcome, count in self.outcomes if not outcome.came_to_nothing)


@final
class _Tally:
    """Counts what was settled."""

    def __init__(self) -> None:
        self.outcomes: dict[Outcome, int] = {}
        self.tokens_in = self.tokens_out = 0
        self.in_j = self.out_j = 0.0
        self.times = Times()

    def __call__(self, rows: Sequence[Served]) -> None:
        for row in rows:
            if row.audit:
                continue
            self.outcomes[row.outcome] = self.outcomes.get(row.outcome, 0) + 1
            if not row.outcome.came_to_nothing:
                self.times.add(row.time_s)
                self.tokens_in += row.tokens_in or 0
                self.tokens_out += row.tokens_out or 0
                self.in_j += row.cost.energy_j if row.tokens_in else 0.0
                self.out_j += row.cost.energy_j if row.tokens_out else 0.0


async def run(options: ServingOptions, how: How, live: LiveRun, sock: socket.socket, say: Say) -> Summary:
    """Serve until SIGTERM or SIGINT.

    Args:
        options: what is served, and by which levers.
        how: the rest.
        live: the run whose joules are divided; it is ended.
        sock: that listens.
        say: told the line `listening on URL` when requests are taken, and what goes wrong.
    """
    with Signals(say) as signals:
        return await _run(options, how, live, sock, say, signals)


async def _run(
    options: ServingOptions, how: How, live: LiveRun, sock: socket.socket, say: Say, signals: Signals
) -> Summary:
    tally, held = _Tally(), ""
    closes: list[Callable[[], object]] = [live.stop]
    try:
        feed = Feed(live, site=how.site, sinks=(tally,))
        closes = [feed.close]
        book = Book(live.key, live.name)
        closes.append(book.close)
        feed.add_sink(book)
        if how.otlp:
            telemetry = _telemetry(how.otlp, feed)
            closes.append(telemetry.close)
            feed.add_sink(telemetry)
        async with Chain(options, how.limits, feed, live, how.hands) as chain:
            metrics = Metrics(lambda: feed.state, chain.setting)
            feed.add_sink(metrics)
            own: dict[str, Own] = {
                "/metrics": _metrics(metrics),
                "/negawatt/health": chain.health,
                "/negawatt/settings": chain.settings,
                "/negawatt/requests/": _requests(feed),
            }
            gateway = Gateway(chain.first, chain.accounts, how.limits, own=own)

            async def ready() -> None:
                say(f"listening on {url_of(sock)}")
                for fault in await chain.faults():
                    say(fault)

            gc.collect()
            gc.freeze()  # modules stay: looking through them again would hold requests up for milliseconds
            await serve(uvicorn_of(gateway, how.limits, how.stop_s), sock, ready, signals)
            held = chain.held
    finally:
        await asyncio.to_thread(_close, closes)
    sums = feed.state.sums
    return Summary(
        time_s=live.time_s,
        outcomes=tuple(sorted(tally.outcomes.items())),
        tokens_in=tally.tokens_in,
        tokens_out=tally.tokens_out,
        told_j=tally.out_j if tally.tokens_out else tally.in_j,
        requests_j=sums.requests_nj / 1e9,
        idle_j=sums.idle_nj / 1e9,
        failed_j=(sums.failed_nj + sums.open_nj) / 1e9,
        total_j=sums.total_nj / 1e9,
        p99_s=tally.times.quantile(0.99),
        source=feed.state.source.value,
        fault=feed.state.fault,
        held=held,
    )


def url_of(sock: socket.socket) -> str:
    """Where a socket listens, as a URL."""
    host, port = sock.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _close(closes: Sequence[Callable[[], object]]) -> None:
    """Settle everything and see it into the ledger: all of them, in this order, even if one fails."""
    with contextlib.ExitStack() as stack:
        for close in reversed(closes):
            stack.callback(close)


def _telemetry(url: str, feed: Feed) -> Telemetry:
    from negawatt.serve.telemetry import Telemetry

    return Telemetry(url, lambda: feed.state, began_s=feed.began_s)


def _metrics(metrics: Metrics) -> Own:
    async def page(_rest: str) -> tuple[int, str, bytes]:
        """For Prometheus."""
        body, kind = metrics.page()
        return 200, kind, body

    return page


def _requests(feed: Feed) -> Own:
    async def requests(rest: str) -> tuple[int, str, bytes]:
        """A settled request by its id."""
        row = feed.served(rest)
        if row is None:
            error = {"message": "no such request, or it is not settled yet, or long ago", "code": "not_found"}
            return 404, "application/json", json.dumps({"error": error}).encode()
        low_j, high_j = row.cost.interval_j
        found = {**to_json(row), "low_j": low_j, "high_j": high_j}
        return 200, "application/json", json.dumps(found).encode()

    return requests

"""Metrics: the gateway's numbers for Prometheus, in base units.

`negawatt_energy_joules_total` by kind (request, idle, failed) holds what is settled, and only grows. With
`negawatt_energy_open_joules`, of requests still in flight, it adds up to `negawatt_meter_joules_total` at every scrape.
"""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from negawatt.core.serving import Served, ServingSetting
from negawatt.serve.account import NANO
from negawatt.serve.labels import Labels

if TYPE_CHECKING:
    from negawatt.serve.feed import State

BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
"""Upper bounds of the duration histogram; one more holds the rest [s]."""


class Metrics(Collector):
    """Counts what was served, and tells it with the state of a feed. A sink of `feed.Feed`, and a registry of its own.

    Args:
        state: of the feed, now.
        setting: what the gateway is set to, now.
    """

    def __init__(self, state: Callable[[], State], setting: Callable[[], ServingSetting]) -> None:
        self._state = state
        self._setting = setting
        self._lock = threading.Lock()
        self._labels = Labels()
        self._requests: dict[tuple[str, str], int] = {}
        self._tokens: dict[tuple[str, str], int] = {}
        self._energies_j: dict[str, float] = {}
        self._buckets = [0] * (len(BUCKETS_S) + 1)
        self._time_s = 0.0
        self._carbon_g: float | None = None
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def __call__(self, rows: Sequence[Served]) -> None:
        """Count rows."""
        with self._lock:
            for row in rows:
                self._count(row)

    def page(self) -> tuple[bytes, str]:
        """The page for a scrape and its content type."""
        encode, content_type = choose_encoder("")
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Metric]:
        """All families, of one moment."""
        state = self._state()
        with self._lock:
            counted = list(self._counted())
        yield from _energies(state)
        yield from counted
        setting = self._setting()
        gauge = GaugeMetricFamily("negawatt_setting", "What the gateway is set to.", labels=["name"])
        for field in fields(setting):
            gauge.add_metric([field.name], float(getattr(setting, field.name)))
        yield gauge

    def _count(self, row: Served) -> None:
        model = self._labels.of(row.model)
        self._energies_j[model] = self._energies_j.get(model, 0.0) + row.cost.energy_j
        if row.cost.carbon_g is not None:
            self._carbon_g = (self._carbon_g or 0.0) + row.cost.carbon_g
        if row.audit:
            return
        key = (row.outcome.value, model)
        self._requests[key] = self._requests.get(key, 0) + 1
        for direction, tokens in (("input", row.tokens_in), ("output", row.tokens_out)):
            if tokens:
                self._tokens[direction, model] = self._tokens.get((direction, model), 0) + tokens
        self._buckets[bisect_left(BUCKETS_S, row.time_s)] += 1
        self._time_s += row.time_s

    def _counted(self) -> Iterator[Metric]:
        requests = CounterMetricFamily(
            "negawatt_requests", "Requests that are over, by outcome and model.", labels=["outcome", "model"]
        )
        for (kind, model), count in self._requests.items():
            requests.add_metric([kind, model], count)
        yield requests
        tokens = CounterMetricFamily(
            "negawatt_tokens",
            "Tokens of requests that are over, as upstream counted them.",
            labels=["direction", "model"],
        )
        for (direction, model), count in self._tokens.items():
            tokens.add_metric([direction, model], count)
        yield tokens
        energies = CounterMetricFamily(
            "negawatt_request_energy_joules",
            "Joules of requests that are over, failed ones included, by model.",
            labels=["model"],
        )
        for model, energy_j in self._energies_j.items():
            energies.add_metric([model], energy_j)
        yield energies
        yield self._histogram()
        if self._carbon_g is not None:
            text = "Grams of CO2 equivalent of requests that are over, by the configured site."
            yield CounterMetricFamily("negawatt_carbon_grams", text, value=self._carbon_g)

    def _histogram(self) -> Metric:
        total, buckets = 0, []
        for bound, count in zip((*map(str, BUCKETS_S), "+Inf"), self._buckets, strict=True):
            total += count
            buckets.append((bound, float(total)))
        text = "Time from a request's head until its last byte was handed over."
        return HistogramMetricFamily("negawatt_request_duration_seconds", text, buckets=buckets, sum_value=self._time_s)


def _energies(state: State) -> Iterator[Metric]:
    sums = state.sums
    energy = CounterMetricFamily(
        "negawatt_energy_joules",
        "Joules of the host's sensors: of requests, of nobody, and of requests that failed, were cancelled or refused.",
        labels=["kind"],
    )
    for kind, nj in (("request", sums.requests_nj), ("idle", sums.idle_nj), ("failed", sums.failed_nj)):
        energy.add_metric([kind], nj / NANO)
    yield energy
    text = "Joules of requests still in flight, in no kind of negawatt_energy_joules_total yet."
    yield GaugeMetricFamily("negawatt_energy_open_joules", text, value=sums.open_nj / NANO)
    text = "Joules that the meter has shown since the gateway began."
    yield CounterMetricFamily("negawatt_meter_joules", text, value=sums.total_nj / NANO)
    if state.power_w is not None:
        text = "Mean power between the last two looks at the meter."
        yield GaugeMetricFamily("negawatt_power_watts", text, value=state.power_w)
    yield GaugeMetricFamily("negawatt_requests_in_flight", "Requests in flight.", value=state.in_flight)
    text = "1 while the meter gives readings; 0: joules are presumed."
    yield GaugeMetricFamily("negawatt_meter_up", text, value=0 if state.fault else 1)
    about = {
        "source": str(state.source),
        "scopes": ",".join(sorted(reading.scope for reading in state.readings)),
        "sensors": ",".join(sorted({reading.sensor for reading in state.readings})),
    }
    yield InfoMetricFamily("negawatt_meter", "Where the joules come from.", value=about)

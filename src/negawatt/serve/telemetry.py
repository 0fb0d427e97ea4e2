"""Telemetry: the gateway's numbers for an OpenTelemetry collector, over OTLP/HTTP.

Names are those of the semantic conventions, both in development in 2026: hardware (opentelemetry.io/docs/specs/semconv/
hardware: hw.energy and hw.power per device, hw.host.energy and hw.host.power for a whole host and nothing else) and
generative AI (github.com/open-telemetry/semantic-conventions-genai: gen_ai.client.token.usage). Neither
knows the energy of a request, which therefore stands under negawatt.*.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.serving import Served
from negawatt.serve.account import NANO
from negawatt.serve.labels import Labels

if TYPE_CHECKING:
    from opentelemetry.metrics import CallbackOptions, Histogram, Meter, Observation
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.resources import Resource

    from negawatt.serve.feed import State

INTERVAL_S = 15.0
"""How often metrics are sent [s]."""
TIMEOUT_S = 5.0
"""How long the collector may take [s]."""
TOKEN_BUCKETS = tuple(4**power for power in range(14))
"""Bounds that the conventions advise for gen_ai.client.token.usage."""
_OPERATIONS = (
    ("/chat/completions", "chat"),
    ("/completions", "text_completion"),
    ("/embeddings", "embeddings"),
)


class Telemetry:
    """Sends metrics. A sink of `feed.Feed`. A collector that is down costs nothing but a log line.

    Args:
        url: of the collector, "http://127.0.0.1:4318"; the path v1/metrics is appended.
        state: of the feed, now.
        began_s: when the feed's run began, on `time.monotonic` [s].
        interval_s: how often metrics are sent [s].

    Raises:
        NegawattError: if the extra `otel` is not installed.
        UsageError: for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        state: Callable[[], State],
        *,
        began_s: float,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._state = state
        self._first_s = began_s
        self._labels = Labels()
        self._shown: dict[str, tuple[float, float]] = {}
        self._metrics = _meter_provider(_base(url), _resource(), interval_s)
        self._tokens = self._instruments(self._metrics.get_meter("negawatt"))

    def __call__(self, rows: Sequence[Served]) -> None:
        """Take rows."""
        for row in rows:
            if operation := operation_of(row.path):
                self._count(row, operation)

    def close(self) -> None:
        """Send what is left, and end."""
        self._metrics.shutdown(timeout_millis=TIMEOUT_S * 1e3)

    def _count(self, row: Served, operation: str) -> None:
        shared = {
            "gen_ai.operation.name": operation,
            "gen_ai.provider.name": "openai",  # whose API the paths are, as the conventions want it
            "gen_ai.request.model": self._labels.of(row.model),
        }
        for kind, tokens in (("input", row.tokens_in), ("output", row.tokens_out)):
            if tokens is not None:
                self._tokens.record(tokens, {**shared, "gen_ai.token.type": kind})

    def _instruments(self, meter: Meter) -> Histogram:
        meter.create_observable_counter("hw.energy", [self._energies(host=False)], "J", "Energy used by a component.")
        meter.create_observable_gauge("hw.power", [self._powers(host=False)], "W", "Power of a component.")
        meter.create_observable_counter("hw.host.energy", [self._energies(host=True)], "J", "Energy of the whole host.")
        meter.create_observable_gauge("hw.host.power", [self._powers(host=True)], "W", "Power of the whole host.")
        text = "Energy of requests that are over, of nobody, of failed requests, and of requests in flight."
        meter.create_observable_up_down_counter("negawatt.energy", [self._divided], "J", text)
        return meter.create_histogram(
            "gen_ai.client.token.usage",
            "{token}",
            "Tokens read and written per request.",
            explicit_bucket_boundaries_advisory=TOKEN_BUCKETS,
        )

    def _divided(self, _: CallbackOptions) -> Iterable[Observation]:
        from opentelemetry.metrics import Observation

        sums = self._state().sums
        kinds = (
            ("request", sums.requests_nj),
            ("idle", sums.idle_nj),
            ("failed", sums.failed_nj),
            ("open", sums.open_nj),
        )
        return [Observation(nj / NANO, {"negawatt.kind": kind}) for kind, nj in kinds]

    def _energies(self, *, host: bool) -> Callable[[CallbackOptions], Iterable[Observation]]:
        def observe(_: CallbackOptions) -> Iterable[Observation]:
            from opentelemetry.metrics import Observation

            readings = [reading for reading in self._state().readings if (reading.scope == "host") == host]
            return [
                Observation(reading.energy_j, {**device_of(reading.scope), "negawatt.source": str(reading.source)})
                for reading in readings
            ]

        return observe

    def _powers(self, *, host: bool) -> Callable[[CallbackOptions], Iterable[Observation]]:
        """Mean powers since the last time that they were sent."""

        def observe(_: CallbackOptions) -> Iterable[Observation]:
            from opentelemetry.metrics import Observation

            now_s, seen = time.monotonic(), []
            for reading in self._state().readings:
                if (reading.scope == "host") != host:
                    continue
                before_s, before_j = self._shown.get(reading.scope, (self._first_s, 0.0))
                self._shown[reading.scope] = (now_s, reading.energy_j)
                if now_s > before_s:
                    power_w = max(0.0, reading.energy_j - before_j) / (now_s - before_s)
                    seen.append(Observation(power_w, device_of(reading.scope)))
            return seen

        return observe


def operation_of(path: str) -> str:
    """What a path of the OpenAI API asks for, in the words of the conventions; "" for any other path."""
    return next((name for end, name in _OPERATIONS if path.endswith(end)), "")


def device_of(scope: str) -> dict[str, str]:
    """The attributes hw.id and hw.type of a scope; none for the whole host."""
    if scope == "host":
        return {}
    kind = "memory" if re.search(r"\b(dram|memory)\b", scope) else re.split(r"[:/]", scope)[0]
    return {"hw.id": scope, "hw.type": kind}


def _base(url: str) -> str:
    if not re.fullmatch(r"https?://[^\s/?#]+[^\s?#]*", url):
        raise UsageError(f"--otlp {url}", "nothing could be sent there", "give a URL: --otlp http://127.0.0.1:4318")
    return url.rstrip("/").removesuffix("/v1/metrics")


def _resource() -> Resource:
    try:
        from opentelemetry.sdk.resources import Resource
    except ImportError as error:
        raise NegawattError(
            f"--otlp without OpenTelemetry: {error}", "nothing can be sent", "pip install 'negawatt[otel]'"
        ) from error
    import socket

    return Resource.create({"service.name": "negawatt-gateway", "host.name": socket.gethostname()})


def _meter_provider(base: str, resource: Resource, interval_s: float) -> MeterProvider:
    from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

    exporter = OTLPMetricExporter(endpoint=f"{base}/v1/metrics", timeout=TIMEOUT_S)
    reader = PeriodicExportingMetricReader(exporter, export_interval_millis=interval_s * 1e3)
    return MeterProvider([reader], resource=resource, shutdown_on_exit=False)

"""Telemetry: what a real OTLP/HTTP collector receives."""

from __future__ import annotations

import gzip
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

from negawatt.core.errors import UsageError
from negawatt.core.serving import Outcome
from negawatt.metering.run import LiveRun
from negawatt.metering.session import Meter
from negawatt.serve import telemetry
from negawatt.serve.exchange import Exchange
from negawatt.serve.feed import Feed
from negawatt.serve.telemetry import Telemetry, device_of, operation_of
from negawatt.testing import ManualClock, ScriptedSensor


class Collector(ThreadingHTTPServer):
    """An OTLP/HTTP collector that keeps what it is sent."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.metrics: list[Any] = []
        self.resources: list[dict[str, Any]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def points(self, name: str) -> list[tuple[dict[str, Any], Any]]:
        """Attributes and latest data points of one metric."""
        latest = [metric for metric in self.metrics if metric.name == name][-1:]
        return [
            (plain(point.attributes), point)
            for metric in latest
            for point in getattr(metric, metric.WhichOneof("data")).data_points
        ]


class _Handler(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.path == "/v1/metrics":
            for resource in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                self.server.resources.append(plain(resource.resource.attributes))
                self.server.metrics += [metric for scope in resource.scope_metrics for metric in scope.metrics]
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Keep quiet."""


def plain(attributes: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in attributes}


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    thread = threading.Thread(target=collector.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield collector
    collector.shutdown()
    thread.join()
    collector.server_close()


def serve(url: str) -> None:
    """A gateway's feed on a GPU of 30 W and a host of 100 W, with one request answered and one failed."""
    clock = ManualClock()
    meters = [
        ScriptedSensor(script=[(0.0, 30.0)], clock=clock, name="gpu", scope="gpu:GPU-1"),
        ScriptedSensor(script=[(0.0, 20.0)], clock=clock, name="cpu", scope="cpu:0/package"),
    ]
    run = LiveRun("gateway", meter=Meter.of(meters, clock=clock))
    sent = Telemetry(url, lambda: feed.state, began_s=0.0, interval_s=60.0)
    feed = Feed(run, sinks=[sent], clock=clock, background=False)
    for name, outcome in (("a", Outcome.ANSWERED), ("b", Outcome.FAILED)):
        one = Exchange(
            id=name, method="POST", target=b"/v1/chat/completions?key=secret", headers=(), body=b"secret",
            received_s=clock(), model="small", outcome=outcome, tokens_in=10, tokens_out=20,
        )  # fmt: skip
        feed.begin(one)
        clock.advance(1.0)
        feed.end(one, 200 if outcome is Outcome.ANSWERED else 502)
        feed.look()
    sent.close()
    feed.close()


def test_joules_of_devices_and_of_requests(collector: Collector):
    """hw.energy per device with its required attributes; what requests took stands under negawatt.*."""
    serve(collector.url)
    energies = {attributes["hw.id"]: (attributes, point) for attributes, point in collector.points("hw.energy")}
    assert {name: point.as_double for name, (_, point) in energies.items()} == {
        "gpu:GPU-1": pytest.approx(60.0), "cpu:0/package": pytest.approx(40.0),
    }  # fmt: skip
    assert energies["gpu:GPU-1"][0]["hw.type"] == "gpu"
    assert energies["cpu:0/package"][0]["hw.type"] == "cpu"
    (unit,) = {metric.unit for metric in collector.metrics if metric.name == "hw.energy"}
    assert unit == "J"
    divided = {
        attributes["negawatt.kind"]: point.as_double for attributes, point in collector.points("negawatt.energy")
    }
    assert divided == pytest.approx({"request": 50.0, "failed": 50.0, "idle": 0.0, "open": 0.0})
    assert {attributes["hw.type"] for attributes, _ in collector.points("hw.power")} == {"gpu", "cpu"}
    assert collector.points("hw.host.energy") == []  # no sensor sees the whole host
    assert collector.resources[0]["service.name"] == "negawatt-gateway"


def test_the_whole_host_has_metrics_of_its_own(collector: Collector):
    """As the conventions demand: never hw.energy, so that sums do not count it twice."""
    clock = ManualClock()
    sensor = ScriptedSensor(script=[(0.0, 100.0)], clock=clock, scope="host")
    run = LiveRun("gateway", meter=Meter.of([sensor], clock=clock))
    feed = Feed(run, clock=clock, background=False)
    sent = Telemetry(f"{collector.url}/v1/metrics", lambda: feed.state, began_s=0.0, interval_s=60.0)
    clock.advance(2.0)
    feed.look()
    sent.close()
    feed.close()
    ((attributes, point),) = collector.points("hw.host.energy")
    assert point.as_double == pytest.approx(200.0)
    assert attributes == {"negawatt.source": "counter"}
    assert len(collector.points("hw.host.power")) == 1
    assert collector.points("hw.energy") == collector.points("hw.power") == []


def test_tokens_as_the_conventions_have_them(collector: Collector):
    """A histogram by operation, model and kind of token, with the bounds that they advise."""
    serve(collector.url)
    points = {
        attributes["gen_ai.token.type"]: (attributes, p)
        for attributes, p in collector.points("gen_ai.client.token.usage")
    }
    attributes, point = points["output"]
    assert (point.count, point.sum) == (2, 40)
    assert list(point.explicit_bounds)[:4] == [1, 4, 16, 64]
    assert attributes == {
        "gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "small",
        "gen_ai.token.type": "output",
    }  # fmt: skip


def test_a_collector_that_is_down_does_no_harm(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """Requests go on, and it ends within its time."""
    monkeypatch.setattr(telemetry, "TIMEOUT_S", 0.5)
    begin_s = time.monotonic()
    serve("http://127.0.0.1:9")
    assert time.monotonic() - begin_s < 4
    assert "negawatt" not in {record.name for record in caplog.records}


def test_an_address_that_is_none_is_an_error():
    """It says what to type."""
    with pytest.raises(UsageError, match="--otlp http://"):
        Telemetry("localhost:4318", lambda: None, began_s=0.0)


@pytest.mark.parametrize(
    ("path", "operation"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "text_completion"),
        ("/v1/embeddings", "embeddings"),
        ("/x", ""),
    ],
)
def test_paths_of_the_openai_api_have_operations(path: str, operation: str):
    """Other paths have none, and no GenAI metrics."""
    assert operation_of(path) == operation


@pytest.mark.parametrize(
    ("scope", "kind"), [("cpu:0/dram", "memory"), ("cpu", "cpu"), ("gpu:GPU-1", "gpu"), ("cpu:0/package", "cpu")]
)
def test_scopes_have_types(scope: str, kind: str):
    """hw.id and hw.type are required."""
    assert device_of(scope) == {"hw.id": scope, "hw.type": kind}

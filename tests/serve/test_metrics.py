"""Metrics: what Prometheus reads."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from negawatt.core.reading import Source
from negawatt.core.serving import AUDIT, Cost, Outcome, Served, ServingSetting
from negawatt.metering.run import LiveRun
from negawatt.metering.session import Meter
from negawatt.serve.exchange import Exchange
from negawatt.serve.feed import Feed
from negawatt.serve.labels import MODELS, OTHER
from negawatt.serve.metrics import Metrics
from negawatt.testing import ManualClock, ScriptedSensor

SETTING = ServingSetting(window_s=0.01, max_batch=8)


class Served3:
    """A gateway's feed and metrics on 10 W, with one request answered, one failed and one in flight."""

    def __init__(self, fails_at_s: float = float("inf")) -> None:
        self.clock = ManualClock()
        sensor = ScriptedSensor(script=[(0.0, 10.0)], clock=self.clock, fails_at_s=fails_at_s)
        run = LiveRun("gateway", meter=Meter.of([sensor], clock=self.clock))
        self.metrics = Metrics(lambda: self.feed.state, lambda: SETTING)
        self.feed = Feed(run, sinks=[self.metrics], clock=self.clock, background=False)
        self.clock.advance(1.0)
        self.feed.look()
        for name, outcome in (("a", Outcome.ANSWERED), ("b", Outcome.FAILED), ("c", None)):
            one = Exchange(
                id=name, method="POST", target=b"/x", headers=(), body=b"", received_s=self.clock(), model="m"
            )
            one.tokens_in, one.tokens_out = 3, 4
            self.feed.begin(one)
            self.clock.advance(0.3)
            if outcome:
                one.outcome = outcome
                self.feed.end(one, 200)
            self.feed.look()

    def values(self) -> dict[tuple[str, str], float]:
        """Samples by name and the values of their labels, in the order of the labels' names."""
        text, _ = self.metrics.page()
        return {
            (sample.name, "/".join(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in parse(text.decode())
            for sample in family.samples
        }


def test_kinds_and_what_is_open_are_the_meters_total():
    """At a scrape in the middle of things as at the end, when nothing is open."""
    served = Served3()
    values = served.values()
    kinds = {kind: values["negawatt_energy_joules_total", kind] for kind in ("request", "idle", "failed")}
    assert kinds == pytest.approx({"request": 3.0, "idle": 10.0, "failed": 3.0})
    assert values["negawatt_energy_open_joules", ""] == pytest.approx(3.0)
    assert sum(kinds.values()) + values["negawatt_energy_open_joules", ""] == pytest.approx(
        values["negawatt_meter_joules_total", ""], rel=1e-12
    )
    assert values["negawatt_meter_joules_total", ""] == pytest.approx(19.0)
    served.feed.close()


def test_an_audit_costs_joules_and_is_no_request():
    """What a cascade asks for itself is in the model's joules, and in no count."""
    served = Served3()
    cost = Cost(energy_j=5.0, energy_sd_j=0.1, source=Source.COUNTER, carbon_g=None)
    served.metrics([replace(row_of(served), path=AUDIT, cost=cost)])
    values = served.values()
    assert values["negawatt_requests_total", "m/answered"] == 1
    assert values["negawatt_tokens_total", "input/m"] == 6
    assert values["negawatt_request_duration_seconds_count", ""] == 2
    assert values["negawatt_request_energy_joules_total", "m"] == pytest.approx(11.0)
    served.feed.close()


def row_of(served: Served3) -> Served:
    row = served.feed.served("a")
    assert row is not None
    return row


def test_requests_tokens_durations_and_settings():
    """Each in its base unit, under the names that the documentation gives."""
    served = Served3()
    values = served.values()
    assert values["negawatt_requests_total", "m/answered"] == values["negawatt_requests_total", "m/failed"] == 1
    assert values["negawatt_tokens_total", "input/m"] == 6
    assert values["negawatt_request_energy_joules_total", "m"] == pytest.approx(6.0)
    assert values["negawatt_request_duration_seconds_count", ""] == 2
    assert values["negawatt_request_duration_seconds_sum", ""] == pytest.approx(0.6)
    assert values["negawatt_request_duration_seconds_bucket", "0.25"] == 0
    assert values["negawatt_request_duration_seconds_bucket", "0.5"] == 2
    assert values["negawatt_power_watts", ""] == pytest.approx(10.0)
    assert values["negawatt_requests_in_flight", ""] == 1
    assert values["negawatt_setting", "window_s"] == 0.01
    assert values["negawatt_setting", "max_batch"] == 8
    assert values["negawatt_meter_info", "cpu:0/package/scripted/counter"] == 1
    assert not any(name == "negawatt_carbon_grams_total" for name, _ in values)
    served.feed.close()


def test_a_meter_that_fails_is_told():
    """Presumed joules have another source, and the meter is not up."""
    served = Served3(fails_at_s=1.5)
    values = served.values()
    assert values["negawatt_meter_up", ""] == 0
    assert values["negawatt_meter_info", "cpu:0/package/scripted/estimated"] == 1
    served.feed.close()


def row(model: str, carbon_g: float | None = None) -> Served:
    cost = Cost(energy_j=1.0, energy_sd_j=0.1, source=Source.COUNTER, carbon_g=carbon_g)
    return Served(
        id="", at_s=0.0, time_s=0.1, path="/x", model=model, status=200, outcome=Outcome.ANSWERED, tokens_in=1,
        tokens_out=1, shared=1, cost=cost,
    )  # fmt: skip


def test_models_that_clients_make_up_are_bounded():
    """The first ones have a label each; the others share one, and odd names do no harm."""
    served = Served3()
    odd = ['"\n\\{}', "\ud800", "x" * 10_000]
    served.metrics([row(model) for model in (*odd, *(f"model-{i}" for i in range(1000)))])
    values = served.values()
    labels = {label for name, label in values if name == "negawatt_request_energy_joules_total"}
    assert len(labels) == MODELS + 1
    assert values["negawatt_request_energy_joules_total", OTHER] == 1000 - (MODELS - 1 - len(odd))
    served.feed.close()


def test_grams_are_those_of_the_costs():
    """They appear with the first cost that has some."""
    served = Served3()
    served.metrics([row("m", 0.5), row("m", 0.25)])
    assert served.values()["negawatt_carbon_grams_total", ""] == 0.75
    served.feed.close()


def test_counting_a_request_takes_microseconds():
    """Much less than the request itself, on any machine."""
    served = Served3()
    rows = [replace(row("m"), time_s=i / 1000) for i in range(1000)]
    costs_s = []
    for _ in range(5):
        begin_s = time.perf_counter()
        served.metrics(rows)
        costs_s.append(time.perf_counter() - begin_s)
    assert min(costs_s) / len(rows) < 50e-6
    served.feed.close()

"""Feed: what requests cost under a meter with known joules."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from negawatt.core.placement import Declared, Site
from negawatt.core.reading import Source
from negawatt.core.serving import AUDIT, Outcome, Served
from negawatt.ledger.spool import shared_spool
from negawatt.ledger.store import Ledger
from negawatt.metering.run import LiveRun
from negawatt.metering.sensors.rapl import RaplSensor
from negawatt.metering.session import Meter
from negawatt.serve import feed as module
from negawatt.serve.book import KIND, Book, rows_of
from negawatt.serve.exchange import Exchange
from negawatt.serve.feed import Feed
from negawatt.testing import ManualClock, ScriptedSensor, SimulatedPowercap

SITE = Site(
    name="here",
    pue=Declared(value=1.5, source="test"),
    intensity_gpkwh=Declared(value=360.0, source="test"),
)


def exchange(name: str, clock: Callable[[], float], **more: object) -> Exchange:
    values = {"method": "POST", "target": b"/v1/embeddings?secret=1", "headers": (), "body": b"secret"} | more
    return Exchange(id=name, received_s=clock(), **values)


def scripted(clock: ManualClock, watts: list[tuple[float, float]], **more: object) -> LiveRun:
    """A run whose only sensor follows a script on a manual clock."""
    return LiveRun("gateway", meter=Meter.of([ScriptedSensor(script=watts, clock=clock, **more)], clock=clock))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


def test_requests_idle_and_failed_are_the_meters_total(tmp_path: Path):
    """On a simulated RAPL of known load, each request pays its part, and the sums are the run's joules."""
    sim = SimulatedPowercap(root=tmp_path / "powercap")
    sensor = RaplSensor(sim.root, read=sim.read, clock=sim.clock)
    feed = Feed(LiveRun("gateway", meter=Meter.of([sensor], clock=sim.clock)), clock=sim.clock, background=False)
    sim.advance(10.0, 5.0)
    feed.look()
    good, bad = exchange("a", sim.clock), exchange("b", sim.clock)
    feed.begin(good)
    sim.advance(1.0, 50.0)
    feed.begin(bad)
    sim.advance(1.0, 80.0)
    bad.outcome = Outcome.FAILED
    feed.end(bad, 502)
    feed.end(good, 200)
    feed.look()
    sim.advance(4.0, 5.0)
    run = feed.close()
    sums = feed.state.sums
    assert run is not None
    assert run.host_energy_j == pytest.approx(sim.package_j)
    assert sums.total_nj == round(run.host_energy_j * 1e9)
    # Within one interval the power is taken to be even: 130 J in 2 s, of which the second one was shared.
    assert good.cost.energy_j == pytest.approx(65 + 32.5, abs=1e-3)
    assert bad.cost.energy_j == pytest.approx(32.5, abs=1e-3)
    assert (sums.failed_nj, sums.open_nj) == (round(bad.cost.energy_j * 1e9), 0)
    assert sums.idle_nj / 1e9 == pytest.approx(70, abs=1e-3)


def test_a_settled_request_is_a_row_without_secrets(clock: ManualClock):
    """What is kept of it is its path without the query, its tokens and cost; grams by the site, overhead included."""
    rows: list[Served] = []
    feed = Feed(scripted(clock, [(0.0, 10.0)]), site=SITE, sinks=[rows.extend], clock=clock, background=False)
    clock.advance(1.0)
    one = exchange("a", clock, model="m" * 10_000)
    feed.begin(one)
    clock.advance(2.0)
    assert feed.so_far(one).energy_j == pytest.approx(0.0)  # no look yet, and no power known
    feed.look()
    assert feed.so_far(one).energy_j == pytest.approx(20.0)
    one.tokens_in, one.tokens_out = 5, 7
    feed.end(one, 200)
    feed.end(one, 200)  # once is enough
    feed.look()
    (row,) = rows
    assert feed.served("a") == row
    assert feed.served("b") is None
    assert (row.at_s, row.time_s, row.path, row.status) == (1.0, 2.0, "/v1/embeddings", 200)
    assert len(row.model) == module.CHARACTERS
    assert row.cost.carbon_g == pytest.approx(row.cost.energy_j * 1e-4 * 1.5)
    assert "secret" not in repr(row)
    run = feed.close()
    assert {work.unit: work.quantity for work in run.work} == {"request": 1, "token": 12}


def test_no_site_no_grams(clock: ManualClock):
    """Without a configured intensity grams are unknown, not zero."""
    feed = Feed(scripted(clock, [(0.0, 10.0)]), clock=clock, background=False)
    assert feed.so_far(exchange("a", clock)).carbon_g is None
    feed.close()


def test_a_failing_sensor_is_told_and_survived(clock: ManualClock, caplog: pytest.LogCaptureFixture):
    """Costs go on by the power that was known, marked as estimated, with an error as large as they are."""
    feed = Feed(scripted(clock, [(0.0, 10.0)], fails_at_s=2.5), clock=clock, background=False)
    one = exchange("a", clock)
    feed.begin(one)
    clock.advance(2.0)
    feed.look()
    clock.advance(2.0)
    with caplog.at_level(logging.ERROR, "negawatt"):
        feed.end(one, 200)
        feed.look()
        feed.look()
    assert one.cost.energy_j == pytest.approx(40.0)
    assert (one.cost.energy_sd_j, one.cost.source) == (one.cost.energy_j, Source.ESTIMATED)
    assert (feed.state.source, "fails from" in feed.state.fault) == (Source.ESTIMATED, True)
    assert len(caplog.records) == 1
    assert "presumed" in caplog.text
    assert feed.close().fault


class Stuck(ScriptedSensor):
    """A sensor whose reads do not come back while a gate is closed."""

    gate = threading.Event()

    def snapshot(self) -> float:
        self.gate.wait()
        return super().snapshot()


def test_a_read_that_hangs_holds_no_request(clock: ManualClock):
    """Requests are settled by what is presumed, bodies go at once, and the gateway can be closed."""
    Stuck.gate.set()
    sensor = Stuck(script=[(0.0, 10.0)], clock=clock)
    feed = Feed(LiveRun("gateway", meter=Meter.of([sensor], clock=clock)), clock=clock, background=False)
    feed._read._patience_s = 0.02
    clock.advance(1.0)
    feed.look()
    Stuck.gate.clear()
    one = exchange("a", clock)
    feed.begin(one)
    clock.advance(2.0)
    feed.end(one, 200)
    assert one.body == b""
    feed.look()
    assert (one.cost.energy_j, one.cost.source) == (pytest.approx(20.0), Source.ESTIMATED)
    assert "has not come back" in feed.state.fault
    assert feed.close() is None
    Stuck.gate.set()
    feed.run.stop()


def test_audits_are_no_work(clock: ManualClock):
    """A cascade's audit costs joules, and nobody was served."""
    rows: list[Served] = []
    feed = Feed(scripted(clock, [(0.0, 10.0)]), sinks=[rows.extend], clock=clock, background=False)
    one = exchange("a", clock, target=AUDIT.encode())
    one.tokens_out = 7
    feed.begin(one)
    clock.advance(1.0)
    feed.end(one, 200)
    run = feed.close()
    assert (rows[0].audit, rows[0].cost.energy_j) == (True, pytest.approx(10.0))
    assert run is not None
    assert run.work == ()


def test_one_failed_look_of_the_meter_s_own_passes():
    """A gateway runs for weeks: metering goes on after it."""
    sensor = ScriptedSensor(script=[(0.0, 10.0)], clock=time.perf_counter, period_s=0.02)
    run = LiveRun("gateway", meter=Meter.of([sensor]))
    feed = Feed(run, background=False)
    object.__setattr__(sensor, "fails_at_s", 0.0)
    time.sleep(0.1)
    feed.look()
    assert "fails from" in feed.state.fault
    object.__setattr__(sensor, "fails_at_s", float("inf"))
    feed.look()
    assert feed.state.fault == ""
    assert any("could not be read for a while" in flag for flag in feed.state.readings[0].flags)
    assert feed.close().host_energy_j is not None


def test_a_broken_sink_does_not_stop_the_others(clock: ManualClock, caplog: pytest.LogCaptureFixture):
    """Its error is logged, and the others get their rows."""

    def broken(rows: object) -> None:
        raise OSError("disk")

    rows: list[Served] = []
    feed = Feed(scripted(clock, [(0.0, 10.0)]), sinks=[broken], clock=clock, background=False)
    feed.add_sink(rows.extend)
    one = exchange("a", clock)
    feed.begin(one)
    clock.advance(1.0)
    feed.end(one, 200)
    feed.look()
    assert len(rows) == 1
    assert "OSError: disk" in caplog.text
    feed.close()


def test_memory_of_settled_requests_is_bounded(clock: ManualClock, monkeypatch: pytest.MonkeyPatch):
    """Only the latest can be asked for."""
    monkeypatch.setattr(module, "RECENT", 3)
    feed = Feed(scripted(clock, [(0.0, 10.0)]), clock=clock, background=False)
    for name in "abcde":
        one = exchange(name, clock)
        feed.begin(one)
        clock.advance(0.1)
        feed.end(one, 200)
        feed.look()
    assert [bool(feed.served(name)) for name in "abcde"] == [False, False, True, True, True]
    assert feed._open == feed._by_ticket == {}
    feed.close()


def test_the_thread_settles_soon_and_ends(monkeypatch: pytest.MonkeyPatch):
    """In real time, from many threads: a request is settled within some looks of its end, and sums stay exact."""
    sensor = ScriptedSensor(script=[(0.0, 10.0)], clock=time.perf_counter)
    feed = Feed(LiveRun("gateway", meter=Meter.of([sensor])))
    done: list[Exchange] = []

    def client(name: str) -> None:
        for i in range(20):
            one = exchange(f"{name}{i}", time.monotonic)
            feed.begin(one)
            time.sleep(0.002)
            feed.so_far(one)
            feed.end(one, 200)
            done.append(one)

    threads = [threading.Thread(target=client, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    last_s = time.monotonic()
    while done[-1].cost is None and time.monotonic() < last_s + 5:
        time.sleep(0.005)
    assert time.monotonic() - last_s < 1.0
    run = feed.close()
    sums = feed.state.sums
    assert sums.total_nj == round(run.host_energy_j * 1e9)
    assert sum(round(one.cost.energy_j * 1e9) for one in done) == sums.requests_nj
    assert not any(thread.name == "negawatt-feed" for thread in threading.enumerate())


def test_the_ledger_has_each_joule_once():
    """The run's record has them; its requests are parts of it and add nothing to `totals`, and are found by it."""
    clock = ManualClock()
    sensor = ScriptedSensor(script=[(0.0, 10.0)], clock=clock)
    run = LiveRun("gateway", record=True, meter=Meter.of([sensor], clock=clock))
    book = Book(run.key, run.name)
    feed = Feed(run, sinks=[book], clock=clock, background=False)
    for name in "ab":
        one = exchange(name, clock)
        feed.begin(one)
        clock.advance(1.0)
        feed.end(one, 200)
        feed.look()
    book.close()
    feed.close()
    shared_spool().flush()
    with Ledger.open() as ledger:
        ledger.merge()
        (total,) = ledger.totals()
        rows = [row for part in ledger.parts(run.key, KIND) for row in rows_of(part.body)]
        assert [record.kind for record in ledger.records(leave_out=KIND)] == ["run"]
    assert (total.kind, total.energy_j) == ("run", pytest.approx(20.0))
    assert rows == [feed.served("a"), feed.served("b")]

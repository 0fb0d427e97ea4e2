"""Feed: the accounts of a gateway, on top of a metered run. It looks at the meter from a background thread.

The joules are those of all scopes of the run's window: the host's, whoever caused them. What the sensors do not see (a
power supply's loss, often disks and fans) is not in them.

When a sensor fails, or a read does not come back, requests go on. From then on their joules are presumed: the idle and
busy power that were known last, times time. Their cost says so by its source, estimated, and by a standard deviation at
least as large as the joules. If the sensor comes back, what it has counted meanwhile takes the place of what was
presumed: the next interval gets the difference, or the next ones get nothing until it has caught up, and they are
marked as well.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from negawatt.core.errors import NegawattError
from negawatt.core.placement import Site
from negawatt.core.reading import Reading, Source, weakest
from negawatt.core.run import Run
from negawatt.core.serving import Cost, Served
from negawatt.metering.run import LiveRun
from negawatt.serve.account import NANO, Account, Bill, Sums, Ticket
from negawatt.serve.exchange import Exchange
from negawatt.serve.look import Errors, Look
from negawatt.serve.reader import Reader

BUSY_S, IDLE_S = 0.05, 1.0
"""How often the meter is looked at while requests are in flight, and while none is [s]."""
FIRST_S = 0.02
"""The first look comes so long after the start, so that a power is known before the first request [s]."""
RECENT = 10_000
"""So many requests can be asked for by their id after they have ended."""
CHARACTERS = 200
"""A path and a model's name, which clients may make up, are cut to so many."""
KWH_J = 3.6e6

Sink = Callable[[Sequence[Served]], None]
"""Takes what was settled at one look, on the feed's thread."""


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """How a feed stands, as of its last look.

    Attributes:
        sums: where the joules went; their total is what the meter has shown.
        power_w: mean power between the last two looks; None before there are [W].
        idle_w: power without any request; None before it was seen [W].
        in_flight: how many requests are.
        source: evidence of the joules.
        fault: why the meter gives no reading, or "".
        readings: the meter's, one per scope, since the run began.
    """

    sums: Sums
    power_w: float | None
    idle_w: float | None
    in_flight: int
    source: Source
    fault: str
    readings: tuple[Reading, ...]


@dataclass(slots=True, eq=False)
class _Open:
    """A request that is not settled."""

    exchange: Exchange
    ticket: Ticket
    status: int = 0


class Feed:
    """Accounts (`exchange.Accounts`) of a run that goes on. `begin`, `so_far` and `end` may come from any thread.

    Args:
        run: it has just begun; `close` ends it.
        site: whose carbon intensity prices joules in grams, times its PUE where it has one; None: no grams.
        sinks: each is given what was settled, look by look. An error of one is logged.
        clock: monotonic seconds, the clock of `Exchange.received_s`.
        background: whether a thread looks; without it, the caller calls `look`.

    Raises:
        SensorError: if the meter gives no reading.
    """

    def __init__(
        self,
        run: LiveRun,
        *,
        site: Site | None = None,
        sinks: Sequence[Sink] = (),
        clock: Callable[[], float] = time.monotonic,
        background: bool = True,
    ) -> None:
        self._run = run
        self._sinks = tuple(sinks)
        self._clock = clock
        self._carbon_gpj = _carbon_gpj(site)
        self._began_s = clock() - run.time_s
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._account = Account(self._began_s)
        self._errors = Errors(self._began_s)
        self._open: dict[str, _Open] = {}
        self._by_ticket: dict[Ticket, _Open] = {}
        self._recent: OrderedDict[str, Served] = OrderedDict()
        self._fault = ""
        self._readings: tuple[Reading, ...] = run.readings
        self._read = Reader(lambda: run.readings)
        self._errors.see(clock(), Look.of(self._readings))
        self._wake = threading.Event()
        self._closed = False
        self._thread: threading.Thread | None = None
        if background:
            self._thread = threading.Thread(target=self._beat, name="negawatt-feed", daemon=True)
            self._thread.start()

    @property
    def run(self) -> LiveRun:
        """The run whose joules are divided."""
        return self._run

    @property
    def began_s(self) -> float:
        """When the run began, on the feed's clock [s]."""
        return self._began_s

    def begin(self, exchange: Exchange) -> None:
        """From now on the exchange is in flight."""
        with self._lock:
            was_idle = not self._account.unsettled
            one = _Open(exchange, self._account.begin(self._clock()))
            self._open[exchange.id] = self._by_ticket[one.ticket] = one
        if was_idle:
            self._wake.set()

    def so_far(self, exchange: Exchange) -> Cost:
        """What it has cost by now: up to the latest look, and by the power since. Zero for one that never began."""
        with self._lock:
            one = self._open.get(exchange.id)
            if one is None:
                return exchange.cost or self._errors.cost(_NOTHING, self._carbon_gpj)
            return self._errors.cost(self._account.so_far(one.ticket, self._clock()), self._carbon_gpj)

    def end(self, exchange: Exchange, status: int) -> None:
        """It is over; settled at the next look. Its body is dropped. Nothing happens for one that is over already."""
        with self._lock:
            one = self._open.get(exchange.id)
            if one is None or one.ticket.end_ns is not None:
                return
            one.status = status
            self._account.end(one.ticket, self._clock(), failed=exchange.outcome.came_to_nothing)
        exchange.body = b""  # it may wait for a meter that hangs

    def add_sink(self, sink: Sink) -> None:
        """Give what is settled from now on to one more."""
        self._sinks = (*self._sinks, sink)

    def served(self, exchange_id: str) -> Served | None:
        """One of the last requests that were settled; None if it is not among them."""
        with self._lock:
            return self._recent.get(exchange_id)

    @property
    def state(self) -> State:
        """How it stands. One moment's: its sums add up to the meter's total."""
        with self._lock:
            known = weakest(reading.source for reading in self._readings)
            return State(
                sums=self._account.sums,
                power_w=self._account.power_w,
                idle_w=self._account.idle_w,
                in_flight=self._account.in_flight,
                source=weakest((known, Source.ESTIMATED)) if self._fault else known,
                fault=self._fault,
                readings=self._readings,
            )

    def look(self) -> None:
        """Look at the meter, settle what has ended, and tell the sinks; what the background thread does."""
        with self._looking:
            self._tell(self._settle())

    def close(self) -> Run | None:
        """End the run and divide all of its joules; requests still in flight keep theirs open. Idempotent.

        Close the sinks after it: the last requests are told to them here.

        Returns:
            The run; None in a forked child, and where a read of the meter hangs: then the ledger has its last
            checkpoint. Its host's joules are the sum of the account, to the nanojoule, unless a sensor failed or its
            readings have gone back.
        """
        self._closed = True
        self._wake.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
            self._thread = None
        self.look()
        try:
            if self._read.hangs:
                return None
            run = self._run.stop()
            self.look()
            return run
        finally:
            self._read.close()

    def _beat(self) -> None:
        wait_s = FIRST_S
        while not self._closed:
            looked_s = time.monotonic()
            if self._wake.wait(wait_s):  # a first request: what was idle ends here, but looks stay apart
                time.sleep(max(0.0, looked_s + BUSY_S - time.monotonic()))
                self._wake.clear()
            try:
                self.look()
            except Exception as error:  # noqa: BLE001 -- logged; requests and later looks go on
                _log.error("a look at the meter failed: %s: %s", type(error).__name__, error)
            wait_s = BUSY_S if self._account.unsettled else IDLE_S

    def _settle(self) -> list[Served]:
        fault, readings = "", self._readings
        try:
            readings = self._read()
        except NegawattError as error:
            fault = str(error)
        with self._lock:
            now_s = self._clock()
            if fault:
                bills = self._account.presume(now_s)
            else:
                look = Look.of(readings)
                self._errors.see(now_s, look)
                bills = self._account.look(now_s, look.energy_j)
            told, self._fault, self._readings = self._fault, fault, readings
            settled = [(self._by_ticket[bill.ticket], bill) for bill in bills]
        _say(fault, told)
        rows = [self._row(one, bill) for one, bill in settled]  # unlocked: `begin` must not wait for many of them
        with self._lock:
            for one, row in zip((one for one, _ in settled), rows, strict=True):
                del self._by_ticket[one.ticket], self._open[row.id]
                self._recent[row.id] = row
            while len(self._recent) > RECENT:
                self._recent.popitem(last=False)
        return rows

    def _row(self, one: _Open, bill: Bill) -> Served:
        exchange = one.exchange
        exchange.cost = cost = self._errors.cost(bill, self._carbon_gpj)
        end_s = (one.ticket.end_ns or 0) / NANO
        return Served(
            id=exchange.id,
            at_s=round(exchange.received_s - self._began_s, 6),
            time_s=round(max(0.0, end_s - exchange.received_s), 6),
            path=exchange.path[:CHARACTERS],
            model=exchange.model[:CHARACTERS],
            status=one.status,
            outcome=exchange.outcome,
            tokens_in=exchange.tokens_in,
            tokens_out=exchange.tokens_out,
            shared=exchange.shared,
            cost=cost,
        )

    def _tell(self, rows: Sequence[Served]) -> None:
        done = [row for row in rows if not row.outcome.came_to_nothing and not row.audit]
        if done:
            self._run.did(len(done), "request")
        if tokens := sum((row.tokens_in or 0) + (row.tokens_out or 0) for row in done):
            self._run.did(tokens, "token")
        for sink in self._sinks if rows else ():
            try:
                sink(rows)
            except Exception as error:  # noqa: BLE001 -- logged; the other sinks get theirs
                _log.error("%d requests are not told to %r: %s: %s", len(rows), sink, type(error).__name__, error)


_log = logging.getLogger("negawatt")
_NOTHING = Bill(ticket=Ticket(0, 0), energy_nj=0, time_s=0.0, own_s=0.0, presumed=False, doubt_nj=0)


def _say(fault: str, told: str) -> None:
    """Log that the meter fails, or is back."""
    if fault and not told:
        _log.error("joules are presumed from now on, by the power that was known last: %s", fault)
    elif told and not fault:
        _log.warning("the meter gives readings again")


def _carbon_gpj(site: Site | None) -> float | None:
    """Grams of CO2 equivalent of a joule of the host's, its part of the site's overhead included if that is known."""
    if site is None or site.intensity_gpkwh is None:
        return None
    return site.intensity_gpkwh.value * (site.pue.value if site.pue else 1.0) / KWH_J

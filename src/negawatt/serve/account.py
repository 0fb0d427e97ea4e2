"""Account: who pays for the meter's joules. Pure: times and energies are handed in.

The rule. Between two looks at the meter:

- while no request is in flight, joules are idle;
- while some are, all joules, those of an idle machine included, are shared equally at every moment by those in flight;
- in an interval that is partly without requests, the idle part is the idle power times that time, and never more than
  the interval has. The idle power is the median of the last intervals without any request; before there was one, the
  interval's joules are divided by time.

So that a look does not have to go over all that are in flight, two integrals run: a request's own time (of each
moment, the part 1/n where n are in flight), and the joules of whoever is in flight throughout. A request pays the
difference of the second between its end and its begin. All sums are integers [nJ], and what a request pays is taken
out of what was taken in: requests + failed + idle + open is the meter's total after every look, exactly. The fraction
of a nanojoule that a division leaves goes to the request that ends next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from statistics import median
from typing import final

from negawatt.core.errors import UsageError

NANO = 1_000_000_000
_FRACTION_BITS = 20
"""Integrals have so many bits behind a nanosecond or nanojoule."""
_FRACTION = (1 << _FRACTION_BITS) - 1
IDLE_STRETCHES, BUSY_STRETCHES = 31, 5
"""How many stretches without any request, and with some, tell the power."""
STRETCH_NS = 100_000_000
"""Shorter stretches are put together before they tell a power: many counters move ten times a second [ns]."""
BACK_NJ = 1_000
"""A meter that goes back by no more than that is rounded [nJ]."""


@dataclass(slots=True, eq=False)
class Ticket:
    """A request's place in the account.

    Attributes:
        begin_ns, end_ns: when it began and ended, on the caller's clock; the end is None while it is in flight [ns].
        begin_own, end_own: the integral of own time there.
        begin_open: the integral of joules at its begin; None before the first look after it.
        failed: whether it ended as a failed one.
    """

    begin_ns: int
    begin_own: int
    begin_open: int | None = None
    end_ns: int | None = None
    end_own: int = 0
    failed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """What a request pays.

    Attributes:
        ticket: whose it is.
        energy_nj: its joules [nJ].
        time_s: how long it was in flight [s].
        own_s: its own time: the integral of 1/n over that, where n were in flight [s].
        presumed: whether the meter did not tell some of it.
        doubt_nj: standard deviation from that: as large as the joules, or as those that its own time would take by the
            power that is known, if these are more; 0 where the meter told all [nJ].
    """

    ticket: Ticket
    energy_nj: int
    time_s: float
    own_s: float
    presumed: bool
    doubt_nj: int


@final
class _Power:
    """A power, learnt from stretches of time. One over which the meter stands still goes on until it moves."""

    def __init__(self, stretches: int) -> None:
        self._latest: deque[tuple[int, int]] = deque(maxlen=stretches)
        self._nj = self._ns = 0

    def learn(self, nj: int, ns: int) -> None:
        """Some joules and their time."""
        self._nj, self._ns = self._nj + nj, self._ns + ns
        if self._nj > 0 and self._ns >= STRETCH_NS:
            self._latest.append((self._nj, self._ns))
            self._nj = self._ns = 0

    @property
    def mean_w(self) -> float | None:
        """Over the latest stretches; None before there are [W]."""
        return sum(nj for nj, _ in self._latest) / sum(ns for _, ns in self._latest) if self._latest else None

    @property
    def median_w(self) -> float | None:
        """Of them: bursts of other programs do not count; None before there are [W]."""
        return median(nj / ns for nj, ns in self._latest) if self._latest else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sums:
    """Where the meter's joules went until a look.

    Attributes:
        requests_nj: to requests that are over [nJ].
        failed_nj: to those of them that came to nothing, which are not in `requests_nj` [nJ].
        idle_nj: to nobody [nJ].
        open_nj: to requests that are in flight, who pays how much of it is not settled [nJ].
    """

    requests_nj: int
    failed_nj: int
    idle_nj: int
    open_nj: int

    @property
    def total_nj(self) -> int:
        """All of them: the most that the meter has shown [nJ]."""
        return self.requests_nj + self.failed_nj + self.idle_nj + self.open_nj


class Account:
    """Divides the meter's joules. For one thread at a time. Times go forward: an earlier one counts as the latest.

    Args:
        now_s: when the meter was at 0 J, on any monotonic clock [s].
    """

    def __init__(self, now_s: float) -> None:
        self._began_ns = self._now_ns = self._looked_ns = round(now_s * NANO)
        self._busy_ns = 0
        self._own = self._looked_own = 0
        self._open = 0
        self._left = 0
        self._flying = 0
        self._fresh: list[Ticket] = []
        self._over: list[Ticket] = []
        self._requests_nj = self._failed_nj = self._idle_nj = self._open_nj = 0
        self._idle, self._busy, self._latest = _Power(IDLE_STRETCHES), _Power(BUSY_STRETCHES), _Power(1)
        self._was_busy = False
        self._presuming = False
        self._presumed_ns = self._now_ns

    @property
    def in_flight(self) -> int:
        """How many requests are."""
        return self._flying

    @property
    def unsettled(self) -> bool:
        """Whether a request waits for the next look: it is in flight, or has ended since the last one."""
        return bool(self._flying or self._over)

    @property
    def sums(self) -> Sums:
        """Where the joules went, as of the last look."""
        return Sums(
            requests_nj=self._requests_nj,
            failed_nj=self._failed_nj,
            idle_nj=self._idle_nj,
            open_nj=self._open_nj,
        )

    @property
    def power_w(self) -> float | None:
        """Mean power lately, over a tenth of a second or more; None before that [W]."""
        return self._latest.mean_w

    @property
    def idle_w(self) -> float | None:
        """Power without any request; None before there was such a stretch [W]."""
        return self._idle.median_w

    def begin(self, now_s: float) -> Ticket:
        """A request is in flight from now on."""
        self._advance(now_s)
        ticket = Ticket(self._now_ns, self._own)
        self._flying += 1
        self._fresh.append(ticket)
        return ticket

    def end(self, ticket: Ticket, now_s: float, *, failed: bool = False) -> None:
        """It is over, and pays at the next look. Raises UsageError for one that was over."""
        if ticket.end_ns is not None:
            raise UsageError("a request ended twice", "it would pay twice", "end each ticket once")
        self._advance(now_s)
        ticket.end_ns, ticket.end_own, ticket.failed = self._now_ns, self._own, failed
        self._flying -= 1
        self._over.append(ticket)

    def look(self, now_s: float, energy_j: float) -> list[Bill]:
        """Divide what the meter has counted since the last look.

        Args:
            now_s: the time.
            energy_j: what the meter shows, from the start [J]. Where it goes back (readings get revised), or is behind
                what was presumed, nobody pays or gets anything until it has caught up; until then, and for the interval
                in which it does, bills count as presumed.

        Returns:
            The bills of those that have ended.
        """
        return self._look(now_s, round(energy_j * NANO), presumed=False)

    def presume(self, now_s: float) -> list[Bill]:
        """As `look` where the meter gives no reading: the powers are taken to be what they were before."""
        self._advance(now_s)
        idle_w = self._mean_w if self.idle_w is None else self.idle_w
        new_nj = round(idle_w * self._idle_ns + self._busy_w * self._busy_ns)
        return self._look(now_s, self.sums.total_nj + new_nj, presumed=True)

    def so_far(self, ticket: Ticket, now_s: float) -> Bill:
        """What a request would pay if it ended now: up to the last look, and by the latest power since then."""
        self._advance(now_s)
        over = ticket.end_ns is not None
        own = ticket.end_own if over else self._own
        since = max(0, own - max(ticket.begin_own, self._looked_own))
        energy_nj = 0 if ticket.begin_open is None else (self._open - ticket.begin_open) >> _FRACTION_BITS
        return self._bill(
            ticket,
            energy_nj + round(self._busy_w * (since >> _FRACTION_BITS)),
            end_ns=ticket.end_ns if ticket.end_ns is not None else self._now_ns,
            own=own - ticket.begin_own,
            presumed=self._presuming or ticket.begin_ns < self._presumed_ns,
        )

    def _bill(self, ticket: Ticket, energy_nj: int, *, end_ns: int, own: int, presumed: bool) -> Bill:
        return Bill(
            ticket=ticket,
            energy_nj=energy_nj,
            time_s=(end_ns - ticket.begin_ns) / NANO,
            own_s=_seconds(own),
            presumed=presumed,
            doubt_nj=max(energy_nj, round(self._busy_w * (own >> _FRACTION_BITS))) if presumed else 0,
        )

    @property
    def _mean_w(self) -> float:
        """Power lately, or before that is known since the start; 0 before the first look that saw joules [W]."""
        lately_w = self.power_w
        return self.sums.total_nj / max(1, self._looked_ns - self._began_ns) if lately_w is None else lately_w

    @property
    def _busy_w(self) -> float:
        """Power with requests in flight, as far as it is known [W]."""
        busy_w = self._busy.mean_w
        return self._mean_w if busy_w is None else busy_w

    @property
    def _idle_ns(self) -> int:
        """Time without any request since the last look."""
        return self._now_ns - self._looked_ns - self._busy_ns

    def _advance(self, now_s: float) -> None:
        """Let time pass until now."""
        now_ns = round(now_s * NANO)
        passed_ns = now_ns - self._now_ns
        if passed_ns <= 0:
            return
        self._now_ns = now_ns
        if self._flying:
            self._busy_ns += passed_ns
            self._own += (passed_ns << _FRACTION_BITS) // self._flying

    def _look(self, now_s: float, total_nj: int, *, presumed: bool) -> list[Bill]:
        self._advance(now_s)
        presumed = presumed or total_nj < self.sums.total_nj - BACK_NJ
        # What was presumed before is made up for in the next interval, whose joules are as doubtful.
        known = not (presumed or self._presuming)
        self._presuming = presumed
        if not known:
            self._presumed_ns = self._now_ns
        busy_nj = self._divide(max(0, total_nj - self.sums.total_nj), known=known)
        own, busy_ns, before = self._looked_own, max(1, self._busy_ns), self._open
        for ticket in self._fresh:
            ticket.begin_open = before + busy_nj * (ticket.begin_own - own) // busy_ns
        self._open += busy_nj * (self._own - own) // busy_ns
        bills = [self._settle(ticket, before + busy_nj * (ticket.end_own - own) // busy_ns) for ticket in self._over]
        if bills and not self._flying:
            bills[-1] = self._rest(bills[-1])
        self._fresh, self._over = [], []
        self._looked_ns, self._looked_own, self._busy_ns = self._now_ns, self._own, 0
        return bills

    def _divide(self, new_nj: int, *, known: bool) -> int:
        """Book the idle part of some new joules, learn the powers where they are known, and return the busy part."""
        idle_ns, busy_ns = self._idle_ns, self._busy_ns
        if busy_ns == 0:
            idle_nj = new_nj
        elif self.idle_w is None or idle_ns == 0:
            idle_nj = new_nj * idle_ns // (idle_ns + busy_ns)
        else:
            idle_nj = min(new_nj, round(self.idle_w * idle_ns))
        if known:
            self._latest.learn(new_nj, idle_ns + busy_ns)
            if busy_ns:
                self._busy.learn(new_nj - idle_nj, busy_ns)
            elif self.idle_w is None or not self._was_busy:  # a meter that lags shows joules of requests at first
                self._idle.learn(new_nj, idle_ns)
        self._was_busy = busy_ns > 0
        self._idle_nj += idle_nj
        self._open_nj += new_nj - idle_nj
        return new_nj - idle_nj

    def _settle(self, ticket: Ticket, end_open: int) -> Bill:
        """Take what a request pays out of what is open."""
        owed = end_open - (ticket.begin_open or 0) + self._left
        energy_nj = min(owed >> _FRACTION_BITS, self._open_nj)
        self._left = owed & _FRACTION
        self._pay(ticket, energy_nj)
        return self._bill(
            ticket,
            energy_nj,
            end_ns=ticket.end_ns or 0,
            own=ticket.end_own - ticket.begin_own,
            presumed=ticket.begin_ns < self._presumed_ns,
        )

    def _rest(self, last: Bill) -> Bill:
        """With nobody in flight, the last one pays the rest: what divisions have left over, of a nanojoule or two."""
        rest_nj, self._left = self._open_nj, 0
        self._pay(last.ticket, rest_nj)
        return replace(last, energy_nj=last.energy_nj + rest_nj)

    def _pay(self, ticket: Ticket, energy_nj: int) -> None:
        self._open_nj -= energy_nj
        if ticket.failed:
            self._failed_nj += energy_nj
        else:
            self._requests_nj += energy_nj


def _seconds(own: int) -> float:
    return (own >> _FRACTION_BITS) / NANO

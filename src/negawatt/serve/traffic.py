"""Traffic: what the controller sees of the requests: how many come, how many end, how long they take."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import final

from negawatt.core.serving import Cost, Outcome
from negawatt.serve.exchange import Accounts, Exchange
from negawatt.serve.times import Times

_MOST_TIMES = 20_000
"""So many times are kept of the last minute."""
MINUTE_S = 60.0


@dataclass(slots=True, kw_only=True)
class Window:
    """What a length of time saw.

    Attributes:
        begin_s, end_s: when [s].
        level: that was in force.
        arrived: requests that arrived and went upstream.
        finished: requests that ended.
        late: of those, how many took longer than the promise.
        failed: of those, how many got no answer, or an answer that the server failed.
        in_flight: requests under way at its end.
        times: of the finished.
    """

    begin_s: float
    level: int
    end_s: float = math.nan
    arrived: int = 0
    finished: int = 0
    late: int = 0
    failed: int = 0
    in_flight: int = 0
    times: Times = field(default_factory=Times)


@final
class Traffic:
    """Accounts that count, around the accounts that pay (`exchange.Accounts`).

    Requests that were answered from the cache or refused do not count: no replica had work from them. A client that
    went away counts if it had waited for longer than the promise: then its request was late.

    Args:
        accounts: that pay; every call is passed on.
        p99_s: the promise [s].
        clock: of `Exchange.received_s` [s].
    """

    def __init__(self, accounts: Accounts, *, p99_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._accounts = accounts
        self._p99_s = p99_s
        self._clock = clock
        self.arrived = 0  # ever
        self.in_flight = 0
        self._window = Window(begin_s=clock(), level=0)
        self._lately: deque[tuple[float, float]] = deque()  # when they ended, how long they took
        self._minute = Times()  # of those

    def begin(self, exchange: Exchange) -> None:
        """It has arrived."""
        self._accounts.begin(exchange)
        self.arrived += 1
        self.in_flight += 1
        self._window.arrived += 1

    def so_far(self, exchange: Exchange) -> Cost:
        """What it has cost by now."""
        return self._accounts.so_far(exchange)

    def end(self, exchange: Exchange, status: int) -> None:
        """It is over."""
        self._accounts.end(exchange, status)
        now_s, window = self._clock(), self._window
        self.in_flight -= 1
        time_s = now_s - exchange.received_s
        late = time_s > self._p99_s
        failed = exchange.outcome is Outcome.FAILED or status >= 500
        if exchange.outcome is Outcome.CACHED or (exchange.outcome is Outcome.REFUSED and not failed):
            self.arrived -= 1
            window.arrived = max(0, window.arrived - 1)
            return
        if exchange.outcome is Outcome.CANCELLED and not late:
            return
        window.finished += 1
        window.late += late
        window.failed += failed
        window.times.add(time_s)
        self._minute.add(time_s)
        self._lately.append((now_s, time_s))
        self._forget(now_s)

    @property
    def window_s(self) -> float:
        """How long the window that goes on has lasted [s]."""
        return self._clock() - self._window.begin_s

    def cut(self, level: int) -> Window:
        """End the window that goes on, and begin one under a level."""
        window, now_s = self._window, self._clock()
        window.end_s, window.in_flight = now_s, self.in_flight
        self._window = Window(begin_s=now_s, level=level)
        return window

    @property
    def p99_s(self) -> float | None:
        """Of the requests that ended in the last minute (the last 20,000 at most), to a hundredth [s]; None without."""
        self._forget(self._clock())
        return self._minute.quantile(0.99)

    def _forget(self, now_s: float) -> None:
        while self._lately and (self._lately[0][0] < now_s - MINUTE_S or len(self._lately) > _MOST_TIMES):
            self._minute.remove(self._lately.popleft()[1])

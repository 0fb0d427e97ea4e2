"""Turning: the controller's hands. It looks at the traffic and the meter, and sets what the controller chooses.

Whatever fails here, the gateway serves on: the safe setting holds, the reason is logged once and told.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar, final

from negawatt.core.codec import to_json
from negawatt.core.errors import HardwareError, NegawattError, SensorError
from negawatt.core.serving import ServingOptions, ServingSetting
from negawatt.serve.exchange import Accounts
from negawatt.serve.power import PowerHand
from negawatt.serve.rungs import Rung, rungs
from negawatt.serve.traffic import Traffic, Window
from negawatt.tuning.serving import Seen, ServingController

_LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

RENEW_S = 10.0
"""A limit that is held is set again after this long [s]: the hand of a process that was stopped is taken away."""
_STILL_S = 5.0
"""A meter that counts nothing for so long stands still: no host draws nothing [s]."""
_WRITE_S = 5.0
"""A device that takes longer to be set is not turned any more [s]."""
_HISTORY = 200
_REASONS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """How long things take.

    Attributes:
        look_s: between looks at arrivals and the meter [s].
        window_s: length of a window [s]; None: the promise, from 1 to 2 s.
        settle_s: the joules of a window are looked up so long after its end: sensors lag [s].
        up_s: until a replica that was woken can serve [s].
    """

    look_s: float = 0.25
    window_s: float | None = None
    settle_s: float = 0.2
    up_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A level that was gone to.

    Attributes:
        at_s: when, since the beginning [s].
        level: its number, 0 for the safe one.
        name: what it is.
        note: why.
    """

    at_s: float
    level: int
    name: str
    note: str


@final
class Turning:
    """Turns the setting of a gateway so that it keeps its promise with the least energy.

    The stages read `setting`; the gateway's accounts are `traffic`. Call `start` on the event loop, `close` in the end.
    Devices are written to and the meter is read in other threads: the event loop waits for neither.

    Args:
        options: of the gateway, with a promise; its setting is the safe one.
        accounts: of the gateway.
        joules: the meter's, since the beginning [J]; raises NegawattError if it fails.
        power: the devices' power limit; None: it is left alone. It is put back by `close`.
        notes: what to tell beside, such as why the power limit is left alone.
        pace: how long things take.
        clock: monotonic seconds.

    Raises:
        UsageError: without a promise, or if the safe setting cannot keep it.
    """

    def __init__(
        self,
        options: ServingOptions,
        accounts: Accounts,
        *,
        joules: Callable[[], float],
        power: PowerHand | None = None,
        notes: Sequence[str] = (),
        pace: Pace | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options = options
        self._joules = joules
        self._power = self._hand = power  # the first while it is turned
        self._pace = pace or Pace()
        self._clock = clock
        self._rungs: tuple[Rung, ...] = ()
        self._level = 0
        self.promise_s = options.p99_s or 0.0
        self._controller = self._learn_anew()
        self.traffic = Traffic(accounts, p99_s=self.promise_s, clock=clock)
        self._window_s = self._pace.window_s or min(2.0, max(1.0, self.promise_s))
        self._begun_s = clock()
        self._unsettled: deque[Window] = deque()
        self._looks: deque[tuple[float, float]] = deque()  # when, and the meter's joules
        self._arrivals: deque[tuple[float, int]] = deque([(self._begun_s, 0)], maxlen=3)
        self._reading: asyncio.Task[float] | None = None  # of the meter, in a thread of its own
        self._writing: asyncio.Task[Any] | None = None  # to the devices, likewise
        self._asked_s = self._moved_s = self._begun_s
        self._fraction, self._set_s = 1.0, self._begun_s
        self._history: deque[Change] = deque(maxlen=_HISTORY)
        self._notes: deque[str] = deque(notes, maxlen=_REASONS)
        self._doubted: deque[str] = deque(maxlen=_REASONS)
        self._task: asyncio.Task[None] | None = None

    def setting(self) -> ServingSetting:
        """What is in force now."""
        return self._rungs[self._level].setting

    def start(self) -> None:
        """Begin to turn. Call it on the event loop."""
        self._task = asyncio.create_task(self._run(), name="negawatt-turning")

    async def close(self) -> None:
        """Go back to the safe setting, and put the devices back as found. Idempotent."""
        tasks = [task for task in (self._task, self._reading) if task is not None]
        self._task = self._reading = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._level = 0
        await self._put_back()

    def told(self) -> dict[str, Any]:
        """What is in force and why, for /negawatt/settings: JSON."""
        return {
            "setting": to_json(self.setting()),
            "level": self._level,
            "name": self._rungs[self._level].level.name,
            "note": self._controller.note,
            "promise_p99_s": self.promise_s,
            "p99_s": self.traffic.p99_s,
            "levels": [rung.level.name for rung in self._rungs],
            "power_limit": None
            if self._power is None
            else {"scopes": list(self._power.scopes), "limit_w": self._power.watts(self._fraction)},
            "history": [to_json(change) for change in self._history],
            "notes": list(self._notes),
        }

    async def _run(self) -> None:
        await self._limit(self.setting().limit_fraction)
        while True:
            await asyncio.sleep(self._pace.look_s)
            try:
                await self._look()
            except Exception as error:  # noqa: BLE001 -- the service goes on; the reason is logged and told
                await self._doubt(_reason(error))

    async def _look(self) -> None:
        """Read the meter, look at what has arrived, tell what is settled, end a window that is long enough."""
        try:
            await self._read()
        except NegawattError as error:
            self._looks.clear()
            await self._doubt(f"the meter fails: {error.reason}")
        now_s = self._clock()
        before_s, before = self._arrivals[0]
        self._arrivals.append((now_s, self.traffic.arrived))
        over_s = now_s - before_s
        rate_per_s = max(0, self.traffic.arrived - before) / over_s if over_s > 0 else 0.0
        await self._apply(self._controller.arrived(rate_per_s, over_s=max(over_s, 1e-3)))
        while self._unsettled and now_s >= self._unsettled[0].end_s + self._pace.settle_s:
            await self._apply(self._controller.tell(self._seen(self._unsettled.popleft())))
        if self.traffic.window_s >= self._window_s:
            self._unsettled.append(self.traffic.cut(self._level))
        await self._renew()

    async def _read(self) -> None:
        if self._reading is None:
            self._reading, self._asked_s = asyncio.create_task(asyncio.to_thread(self._joules)), self._clock()
        await asyncio.wait((self._reading,), timeout=self._pace.look_s)
        if not self._reading.done():
            if self._clock() - self._asked_s > _STILL_S:
                raise _no_meter(f"it has given no answer for more than {_STILL_S:g} s")
            return
        reading, self._reading = self._reading, None
        energy_j, at_s = reading.result(), 0.5 * (self._asked_s + self._clock())
        if not self._looks or energy_j != self._looks[-1][1]:
            self._moved_s = at_s
        elif at_s - self._moved_s > _STILL_S:
            raise _no_meter(f"it has stood at {energy_j:g} J for more than {_STILL_S:g} s")
        self._looks.append((at_s, energy_j))
        oldest_s = at_s - 4.0 * self._window_s - self._pace.settle_s
        while len(self._looks) > 2 and self._looks[1][0] < oldest_s:
            self._looks.popleft()

    def _seen(self, window: Window) -> Seen:
        begin_j, end_j = self._energy_at(window.begin_s), self._energy_at(window.end_s)
        return Seen(
            level=window.level,
            time_s=max(window.end_s - window.begin_s, 1e-6),
            arrived=window.arrived,
            finished=window.finished,
            in_flight=window.in_flight,
            late=window.late,
            p99_s=window.times.quantile(0.99),
            # A short window may lie between two counts of a slow sensor; that it stands still is seen elsewhere.
            energy_j=None if begin_j is None or end_j is None or end_j <= begin_j else end_j - begin_j,
            failed=window.failed,
        )

    def _energy_at(self, at_s: float) -> float | None:
        """The meter's joules at a moment, between two looks; None: it was not looked at around then."""
        after = next((i for i, (look_s, _) in enumerate(self._looks) if look_s >= at_s), 0)
        if not after:
            return None
        (one_s, one_j), (two_s, two_j) = self._looks[after - 1], self._looks[after]
        return one_j + (two_j - one_j) * (at_s - one_s) / (two_s - one_s)

    async def _apply(self, level: int) -> None:
        """Bring a level into force, if it is another one than that which is."""
        if level == self._level:
            return
        self.traffic.cut(level)  # what is cut short speaks of neither level
        self._level = level
        rung = self._rungs[level]
        change = Change(
            at_s=round(self._clock() - self._begun_s, 3),
            level=level,
            name=rung.level.name,
            note=self._controller.note,
        )
        self._history.append(change)
        _LOG.info("level %d (%s): %s", level, change.name, change.note)
        await self._limit(rung.setting.limit_fraction)

    async def _renew(self) -> None:
        if self._fraction < 1.0 and self._clock() - self._set_s >= RENEW_S:
            await self._limit(self._fraction)

    async def _limit(self, fraction: float) -> None:
        """Set the power limit; if that fails there is none to turn any more, and what was learnt with it is void."""
        if self._power is None or (fraction == self._fraction == 1.0):
            return
        try:
            await self._write(partial(self._power.set, fraction))
        except Exception as error:  # noqa: BLE001 -- the service goes on; the reason is logged and told
            reason = f"the power limit could not be set: {_reason(error)}"
            self._power, self._fraction = None, 1.0
            self._begin_anew()
            await self._doubt(reason)
            await self._put_back()
        else:
            self._fraction, self._set_s = fraction, self._clock()

    async def _put_back(self) -> None:
        self._power, self._fraction = None, 1.0
        if self._hand is None:
            return
        try:
            notes = await self._write(self._hand.close)
        except HardwareError as error:
            notes = [f"not put back yet: {error.reason}"]
        for note in notes:
            if note not in self._notes:
                self._notes.append(note)
                _LOG.error("power limit: %s", note)

    async def _write(self, work: Callable[[], _T]) -> _T:
        """Do something to the devices in another thread, after what was begun before. HardwareError if it lasts."""

        async def alone(before: asyncio.Task[Any] | None) -> _T:
            if before is not None:
                await asyncio.gather(before, return_exceptions=True)
            return await asyncio.to_thread(work)

        self._writing = writing = asyncio.create_task(alone(self._writing))
        await asyncio.wait((writing,), timeout=_WRITE_S)
        if not writing.done():
            raise HardwareError(
                f"a device has not answered for {_WRITE_S:g} s",
                "what its power limit is now cannot be told",
                "it is put back when it answers, or when the gateway has ended: `negawatt doctor` shows the devices",
            )
        return writing.result()

    async def _doubt(self, reason: str) -> None:
        """The safe setting, for a while."""
        if reason not in self._doubted:
            self._doubted.append(reason)
            self._notes.append(reason)
            _LOG.warning("the safe setting holds for a while: %s", reason)
        try:
            level = self._controller.doubt(reason)
        except Exception as error:  # noqa: BLE001 -- the service goes on; the reason is logged and told
            level = 0
            _LOG.error("the controller fails: %s", _reason(error))
            self._begin_anew()
        await self._apply(level)

    def _begin_anew(self) -> None:
        """Forget all that was learnt, and the windows that are not told yet."""
        self._controller = self._learn_anew()
        self._unsettled.clear()
        self.traffic.cut(0)

    def _learn_anew(self) -> ServingController:
        lowest = None if self._power is None else self._power.lowest_fraction
        self._rungs = rungs(self._options, lowest_fraction=lowest, up_s=self._pace.up_s)
        self._level = 0
        return ServingController([rung.level for rung in self._rungs], p99_s=self.promise_s)


def _no_meter(got: str) -> SensorError:
    return SensorError(got, "what a setting draws cannot be told", "`negawatt doctor` shows the sensors")


def _reason(error: Exception) -> str:
    return error.reason if isinstance(error, NegawattError) else f"{type(error).__name__}: {error}"

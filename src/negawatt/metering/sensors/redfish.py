"""Redfish: power of the whole machine from its management controller (BMC), over HTTPS.

    NEGAWATT_REDFISH_URL       https://bmc.example, or the address of one chassis or power resource on it
    NEGAWATT_REDFISH_USER      with NEGAWATT_REDFISH_PASSWORD; else ~/.netrc is asked for the host
    NEGAWATT_REDFISH_INSECURE  1: do not check the certificate

A BMC takes tenths of seconds to seconds to answer, so a thread asks it about once a second and sums up; the edges of a
window take the sum so far, in microseconds. Only the first window waits, for one answer. The thread begins with the
first window and ends when nobody has asked for half a minute.

Which number: an energy counter (EnergyJoules) before power (PowerWatts), both of the chassis's EnvironmentMetrics,
before PowerControl[0] of its older Power resource. EnergykWh is not used: a thousandth of it is 3,600 J.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from negawatt.core.errors import NegawattError, SensorError
from negawatt.core.host import Host
from negawatt.core.reading import Reading, SensorInfo, Source
from negawatt.metering.counters import Count, Counter
from negawatt.metering.sampled import UNSEEN_FRACTION, Steady

if TYPE_CHECKING:
    from negawatt.hardware.bmc import Answer, BmcAddress

PACE_S = 1.0
"""BMCs seldom have a new number more often than every second (docs.green-coding.io, "PSU Energy AC - IPMI machine")."""
DELAY_S = 2.0
"""How late a BMC may show a change: it samples every second and averages over another. Assumption, see there."""
GAIN_SD_FRACTION = 0.05
"""Assumption: the accuracy of the power supplies' own meters is seldom published."""
OFFSET_SD_W = 1 / math.sqrt(12)
"""Most BMCs give whole watts."""
LIMIT_W = 50_000.0
"""Above any single chassis sold today."""
STALE_PACES = 10
"""Without an answer for so many paces, what the machine draws is not known any more."""
IDLE_PACES = 30
"""The thread ends when nobody has asked for so many."""
STUCK_COUNTER_S = 60.0
"""A counter of joules that stands still for longer is broken."""
STUCK_POWER_S = 600.0
"""A whole number of watts that stays the same for longer may be stuck."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BmcState:
    """The sum of a BMC's answers up to a moment.

    Attributes:
        time_s: monotonic time [s].
        power_w: the latest power [W].
        power_j: power integrated since the thread began, each number held until the next [J].
        variance_j2: variance of that from not knowing what the power did between two answers [J^2].
        late_s: how late a change of power may be in `power_w` [s].
        count_mj: the energy counter, 0 without one [mJ].
        refresh_s: how old the counter may be [s].
        steady_s: for how long the counter, or without one the power, has been the same [s].
        began_s: when the thread began; sums of two threads cannot be subtracted [s].
    """

    time_s: float
    power_w: float
    power_j: float
    variance_j2: float  # J^2
    late_s: float
    count_mj: int
    refresh_s: float
    steady_s: float
    began_s: float


class Follower:
    """Asks again and again in a thread, and sums up.

    Args:
        ask: gives an answer; raises NegawattError.
        done: called at the end of the thread.
        clock: monotonic seconds.
        pace_s: time between two questions [s].
    """

    def __init__(
        self, ask: Callable[[], Answer], done: Callable[[], None], clock: Callable[[], float], pace_s: float
    ) -> None:
        self._ask = ask
        self._done = done
        self._clock = clock
        self._pace_s = pace_s
        self._answered = threading.Condition()
        self._thread: threading.Thread | None = None
        self._state: BmcState | None = None
        self._error: NegawattError | None = None
        self._sent_s = self._wanted_s = 0.0
        self._steady = Steady()

    def state(self, timeout_s: float) -> BmcState:
        """The sum up to now; waits for the first answer only.

        Raises:
            NegawattError: what went wrong, if there was no answer for STALE_PACES, or for `timeout_s` at the beginning.
        """
        with self._answered:
            self._wanted_s = self._clock()
            if self._thread is None or not self._thread.is_alive():
                self._state = self._error = None
                self._steady = Steady()
                self._thread = threading.Thread(target=self._run, name="negawatt-bmc", daemon=True)
                self._thread.start()
            self._answered.wait_for(lambda: self._state or self._error, timeout_s)
            now_s, state = self._clock(), self._state
            if state is None or now_s - state.time_s > STALE_PACES * self._pace_s:
                raise self._error or SensorError(
                    f"the BMC has not answered for {timeout_s if state is None else now_s - state.time_s:.0f} s",
                    "what the machine draws is not known any more",
                    "see whether the BMC's own web page still answers",
                )
            return _held(state, now_s)

    def advance(self) -> None:
        """Ask once and add the answer."""
        sent_s = self._clock()
        try:
            answer = self._ask()
        except Exception as error:  # noqa: BLE001 -- raised by state(), whatever a BMC's strange answer led to
            with self._answered:
                self._error = error if isinstance(error, NegawattError) else _strange(error)
                self._answered.notify_all()
            return
        with self._answered:
            self._state = self._added(answer, sent_s, self._clock())
            self._error, self._sent_s = None, sent_s
            self._answered.notify_all()

    def _added(self, answer: Answer, sent_s: float, now_s: float) -> BmcState:
        last = self._state
        power_w = answer.power_w or 0.0
        count_mj = round((answer.energy_j or 0.0) * 1e3)
        # A change just after the last question was sent is seen only now.
        late_s = DELAY_S + answer.mean_s + now_s - (self._sent_s if last else sent_s)
        steady_s = self._steady.seconds(now_s, power_w if answer.energy_j is None else count_mj)
        if last is None:
            return BmcState(
                time_s=now_s,
                power_w=power_w,
                power_j=0.0,
                variance_j2=0.0,
                late_s=late_s,
                count_mj=count_mj,
                refresh_s=late_s,
                steady_s=steady_s,
                began_s=now_s,
            )
        lasted_s = now_s - last.time_s + last.steady_s if steady_s == 0 else 0.0
        held = _held(last, now_s)
        unseen_j = UNSEEN_FRACTION * (held.power_j - last.power_j)
        return replace(
            held,
            power_w=power_w,
            variance_j2=last.variance_j2 + ((power_w - last.power_w) * late_s) ** 2 / 12 + unseen_j**2,
            late_s=late_s,
            count_mj=count_mj,
            refresh_s=min(STUCK_COUNTER_S, max(late_s, lasted_s, last.refresh_s)),
            steady_s=steady_s,
        )

    def _run(self) -> None:
        while True:
            begin_s = self._clock()
            self.advance()
            time.sleep(max(0.0, self._pace_s - (self._clock() - begin_s)))
            with self._answered:
                if self._clock() - self._wanted_s > IDLE_PACES * self._pace_s:
                    self._thread = None
                    self._done()
                    return


def _strange(error: Exception) -> SensorError:
    return SensorError(
        f"the BMC's answer cannot be understood ({type(error).__name__}: {error})",
        "what the machine draws is not known any more",
        "name another resource in NEGAWATT_REDFISH_URL, or keep this sensor out with `--sensor NAME` for another one",
    )


def _held(state: BmcState, now_s: float) -> BmcState:
    """The state if the power has not changed until now."""
    return replace(state, time_s=now_s, power_j=state.power_j + state.power_w * (now_s - state.time_s))


class RedfishProbe:
    """The whole machine, by what the follower has summed up."""

    scope = "host"

    def __init__(
        self, follower: Follower, *, counts: bool, flags: tuple[str, ...], period_s: float, timeout_s: float
    ) -> None:
        self.period_s = period_s  # not to add up anything, but to keep the thread alive
        self._follower = follower
        self._counts = counts
        self._flags = flags
        self._timeout_s = timeout_s

    def snapshot(self) -> BmcState:
        """The sum so far. The first one waits for the BMC's answer. Raises SensorError or NeedsPrivilegeError."""
        return self._follower.state(self._timeout_s)

    def reading(self, start: BmcState, end: BmcState) -> Reading:
        """Energy between two states. Raises SensorError if a counter was reset or stands still."""
        energy_j, random_sd_j, flags = (_counted if self._counts else _integrated)(start, end)
        return Reading(
            scope=self.scope,
            energy_j=energy_j,
            source=Source.COUNTER if self._counts else Source.SAMPLED,
            sensor="redfish",
            random_sd_j=random_sd_j,
            gain_sd_fraction=GAIN_SD_FRACTION,
            offset_sd_w=0.0 if self._counts else OFFSET_SD_W,
            flags=self._flags + flags,
        )


def _integrated(start: BmcState, end: BmcState) -> tuple[float, float, tuple[str, ...]]:
    """Joules by integrating the power, their error, and what is doubtful.

    Every number is late by something between 0 and `late_s`. The mean of that moves the curve as a whole, which matters
    by the difference of power between the edges; the rest differs from change to change.
    """
    step_w, time_s = end.power_w - start.power_w, end.time_s - start.time_s
    if start.began_s != end.began_s:
        mean_w = (start.power_w + end.power_w) / 2
        return mean_w * time_s, abs(step_w) * time_s / math.sqrt(12), ("the BMC was not asked all the time",)
    edge_j = step_w * max(start.late_s, end.late_s) / 2
    flags: tuple[str, ...] = ()
    if end.steady_s > STUCK_POWER_S:
        flags = (f"the BMC has shown exactly {end.power_w:g} W for {end.steady_s:.0f} s: it may be stuck",)
    random_sd_j = math.sqrt(edge_j**2 + max(0.0, end.variance_j2 - start.variance_j2))
    return end.power_j - start.power_j, random_sd_j, flags


def _counted(start: BmcState, end: BmcState) -> tuple[float, float, tuple[str, ...]]:
    """Joules by the counter, their error, and what is doubtful."""
    if end.steady_s > STUCK_COUNTER_S:
        raise SensorError(
            f"the BMC's energy counter has stood still for {end.steady_s:.0f} s",
            "a machine that is on draws power, so a counter that stands still is broken",
            "keep this sensor out with `--sensor NAME` for another one, and update the BMC",
        )
    refresh_s = max(start.refresh_s, end.refresh_s)
    counter = Counter(name="the BMC's energy counter", unit_j=1e-3, refresh_s=refresh_s, limit_w=LIMIT_W)
    edges = [Count(time_s=state.time_s, count=state.count_mj) for state in (start, end)]
    energy_j, time_s = counter.energy_j(*edges), end.time_s - start.time_s
    if energy_j == 0 and time_s > 0:
        return 0.0, end.power_w * refresh_s, (f"the BMC's energy counter did not move in these {time_s:.1f} s",)
    powers_w = [state.power_w or energy_j / max(time_s, refresh_s) for state in (start, end)]
    return energy_j, counter.edge_sd_j(*powers_w), ()


class RedfishSensor:
    """The machine's BMC, where the environment names one.

    Args:
        environ: environment variables; None: those of this process.
        clock: monotonic seconds.
        pace_s: time between two questions [s].
        timeout_s: longest time for an answer [s].
    """

    def __init__(
        self,
        *,
        environ: Mapping[str, str] | None = None,
        clock: Callable[[], float] = time.perf_counter,
        pace_s: float = PACE_S,
        timeout_s: float = 5.0,
    ) -> None:
        self._environ = environ
        self._clock = clock
        self._pace_s = pace_s
        self._timeout_s = timeout_s
        self._known: tuple[BmcAddress, str] | None = None

    @property
    def info(self) -> SensorInfo:
        """What it is."""
        return SensorInfo(
            name="redfish",
            source=Source.SAMPLED,
            measures="the whole machine, power supplies and fans included, by its management controller; an energy "
            "counter where that has one, else power about once a second",
            evidence="gain sd 5 % and a delay of 2 s are assumptions: BMCs differ and seldom say",
            fallback=True,
        )

    def available(self, host: Host) -> str | None:  # noqa: ARG002 -- the environment knows
        """None if a BMC is named and gives power; else why not and what to type."""
        try:
            self.open()
        except NegawattError as error:
            return f"{error.got}; {error.fix}"
        return None

    def open(self) -> Sequence[RedfishProbe]:
        """One probe.

        Raises:
            UsageError: if the environment makes no sense, or several machines answer.
            NeedsPrivilegeError: if the BMC refuses the login.
            SensorError: if none is named, it cannot be reached or gives no power.
        """
        from negawatt.hardware.bmc import URL, Bmc, BmcAddress, answer, power_resource

        address = BmcAddress.of(os.environ if self._environ is None else self._environ)
        if address is None:
            raise SensorError(
                f"{URL} is not set",
                "a BMC is found by its address only",
                f"type `export {URL}=https://<address of the BMC>` if this machine has one",
            )
        bmc = Bmc(address, self._timeout_s)
        try:
            if self._known is None or self._known[0] != address:
                self._known = (address, power_resource(bmc, address))
            path = self._known[1]
            first = answer(bmc.get(path), path)
        finally:
            bmc.close()
        flags = (f"the BMC gives the mean power of {first.mean_s:.0f} s only",) if first.mean_s else ()
        counts = first.energy_j is not None

        def ask() -> Answer:
            now = answer(bmc.get(path), path)
            if (now.energy_j if counts else now.power_w) is None:
                raise SensorError(
                    f"{path} of the BMC gives no {'energy' if counts else 'power'} any more",
                    "what the machine draws is not known any more",
                    "see whether the BMC's own web page still shows it",
                )
            return now

        follower = Follower(ask, bmc.close, self._clock, self._pace_s)
        period_s = IDLE_PACES / 3 * self._pace_s
        return [RedfishProbe(follower, counts=counts, flags=flags, period_s=period_s, timeout_s=2 * self._timeout_s)]


sensor = RedfishSensor()

"""Redfish: power of the whole machine from its management controller (BMC), over HTTPS.

    NEGAWATT_REDFISH_URL       https://bmc.example, or the address of one chassis or power resource on it
    NEGAWATT_REDFISH_USER      with NEGAWATT_REDFISH_PASSWORD; else ~/.netrc is asked for the host
    NEGAWATT_REDFISH_INSECURE  1: do not check the certificate

A BMC takes tenths of seconds to seconds to answer, so a thread asks it about once a second, and the meter looks at the
latest answer, in microseconds. Only the first window waits, for one answer. The thread begins with the first window and
ends when nobody has asked for half a minute.

Which number: an energy counter (EnergyJoules) before power (PowerWatts), both of the chassis's EnvironmentMetrics,
before PowerControl[0] of its older Power resource. EnergykWh is not used: a thousandth of it is 3,600 J.
"""

from __future__ import annotations

import math
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from negawatt.core.errors import NegawattError, SensorError, refusal
from negawatt.core.host import Host
from negawatt.core.reading import Probe, SensorInfo, Source
from negawatt.metering.counters import Counter
from negawatt.metering.probes import CheckedCounterProbe, CounterProbe, PowerProbe, Quantity
from negawatt.metering.sampled import Shown

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


class Follower:
    """Asks again and again in a thread, and keeps the latest answer.

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
        self._latest: tuple[float, Answer] | None = None
        self._error: NegawattError | None = None
        self._wanted_s = 0.0

    def latest(self, timeout_s: float) -> Answer:
        """The latest answer; waits for the first one only.

        Raises:
            NegawattError: what went wrong, if there was no answer for STALE_PACES, or for `timeout_s` at the beginning.
        """
        with self._answered:
            self._wanted_s = self._clock()
            if self._thread is None or not self._thread.is_alive():
                self._latest = self._error = None
                self._thread = threading.Thread(target=self._run, name="negawatt-bmc", daemon=True)
                self._thread.start()
            self._answered.wait_for(lambda: self._latest or self._error, timeout_s)
            silent_s = timeout_s if self._latest is None else self._clock() - self._latest[0]
            if self._latest is None or silent_s > STALE_PACES * self._pace_s:
                raise self._error or SensorError(
                    f"the BMC has not answered for {silent_s:.0f} s",
                    "what the machine draws is not known any more",
                    "see whether the BMC's own web page still answers",
                )
            return self._latest[1]

    def advance(self) -> None:
        """Ask once and keep the answer."""
        try:
            answer = self._ask()
        except Exception as error:  # noqa: BLE001 -- raised by latest(), whatever a BMC's strange answer led to
            with self._answered:
                self._error = error if isinstance(error, NegawattError) else _strange(error)
                self._answered.notify_all()
            return
        with self._answered:
            self._latest, self._error = (self._clock(), answer), None
            self._answered.notify_all()

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


def probe_of(latest: Callable[[], Answer], first: Answer, clock: Callable[[], float], pace_s: float) -> Probe:
    """The whole machine, by the latest answer of its BMC.

    Args:
        latest: gives it.
        first: an answer that tells what kind of numbers this BMC has.
        clock: monotonic seconds.
        pace_s: longest time between two answers [s].
    """
    quantity = Quantity(
        scope="host",
        sensor="redfish",
        clock=clock,
        power=lambda: latest().power_w or 0.0,  # asked only where the first answer has it
        shown=Shown(pace_s=pace_s, mean_s=DELAY_S + first.mean_s, rest_s=STUCK_POWER_S),
        gain_sd_fraction=GAIN_SD_FRACTION,
        flags=(f"the BMC gives the mean power of {first.mean_s:.0f} s only",) if first.mean_s else (),
    )
    period_s = IDLE_PACES / 3 * pace_s  # not more seldom, to keep the thread alive
    if first.energy_j is None:
        return PowerProbe(replace(quantity, offset_sd_w=OFFSET_SD_W), min(period_s, pace_s))
    counter = Counter(
        name="the BMC's energy counter",
        unit_j=1e-3,
        refresh_s=pace_s,
        delay_s=DELAY_S,
        limit_w=LIMIT_W,
        late_s=STUCK_COUNTER_S,
    )
    quantity = replace(quantity, counter=counter, energy=lambda: round((latest().energy_j or 0.0) * 1e3))
    return CounterProbe(quantity) if first.power_w is None else CheckedCounterProbe(quantity, period_s)


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
        return refusal(self.open)

    def open(self) -> Sequence[Probe]:
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
            path, begin_s = self._known[1], self._clock()
            first = answer(bmc.get(path), path)
            took_s = self._clock() - begin_s
        finally:
            bmc.close()

        def ask() -> Answer:
            now = answer(bmc.get(path), path)
            numbers = {"energy": (first.energy_j, now.energy_j), "power": (first.power_w, now.power_w)}
            gone = " and ".join(name for name, (was, is_) in numbers.items() if was is not None and is_ is None)
            if gone:
                raise SensorError(
                    f"{path} of the BMC gives no {gone} any more",
                    "what the machine draws is not known any more",
                    "see whether the BMC's own web page still shows it",
                )
            return now

        follower = Follower(ask, bmc.close, self._clock, self._pace_s)
        # A change just after a question was sent is seen with the next answer.
        pace_s = max(self._pace_s, took_s) + took_s
        return [probe_of(lambda: follower.latest(2 * self._timeout_s), first, self._clock, pace_s)]


sensor = RedfishSensor()

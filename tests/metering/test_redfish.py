"""Redfish: a BMC on a real local web server, its power summed up in a thread, and every way in which it can fail."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from negawatt.core.codec import from_json, to_json
from negawatt.core.errors import NeedsPrivilegeError, NegawattError, SensorError, UsageError
from negawatt.core.reading import Source
from negawatt.hardware.bmc import Answer, BmcAddress
from negawatt.hardware.host import this_host
from negawatt.metering.sensors import redfish
from negawatt.metering.sensors.redfish import Follower, RedfishSensor, probe_of
from negawatt.testing import ManualClock, SensorContract
from negawatt.testing.load import Load
from negawatt.testing.redfish import FakeBmc

PACE_S = 0.02


@pytest.fixture
def bmc() -> Iterator[FakeBmc]:
    with FakeBmc() as running:
        yield running


def sensor_of(bmc: FakeBmc, **environ: str) -> RedfishSensor:
    return RedfishSensor(environ={**bmc.environ, **environ}, pace_s=PACE_S, timeout_s=1.0)


def until(done: Callable[[], object]) -> None:
    deadline_s = time.perf_counter() + 5
    while not done():
        assert time.perf_counter() < deadline_s
        time.sleep(0.005)


class TestRedfishPower(SensorContract):
    """A BMC that gives power keeps the sensor contract."""

    style = "metrics"

    @pytest.fixture(autouse=True)
    def server(self) -> Iterator[None]:
        with FakeBmc(self.style) as self.bmc:
            yield

    def make(self) -> RedfishSensor:
        return sensor_of(self.bmc)


class TestRedfishCounter(TestRedfishPower):
    """A BMC that counts energy keeps the sensor contract."""

    style = "counter"


@pytest.mark.parametrize(
    ("style", "source", "path"),
    [
        ("metrics", Source.SAMPLED, "EnvironmentMetrics"),
        ("counter", Source.COUNTER, "EnvironmentMetrics"),
        ("power", Source.SAMPLED, "Power"),
        ("mean", Source.SAMPLED, "Power"),
    ],
)
def test_a_step_is_within_the_stated_error(style: str, source: Source, path: str) -> None:
    """Every kind of BMC is found by itself, and gives the true joules of a step within its error."""
    with FakeBmc(style) as bmc:
        (probe,) = sensor_of(bmc).open()
        start, before_j = probe.snapshot(), bmc.energy_j
        time.sleep(0.2)
        bmc.draw(500.0)
        time.sleep(0.3)
        reading, truth_j = probe.reading(start, probe.snapshot()), bmc.energy_j - before_j
    assert (reading.source, reading.scope) == (source, "host")
    assert bmc.asked[-1].endswith(f"/Chassis/1/{path}")
    assert abs(reading.energy_j - truth_j) <= 1.96 * reading.random_sd_j
    assert bool(reading.flags) == (style == "mean")


def test_states_can_be_written_down(bmc: FakeBmc) -> None:
    """Another process can go on from a state that was written as JSON."""
    state = sensor_of(bmc).open()[0].snapshot()
    assert from_json(type(state), json.loads(json.dumps(to_json(state)))) == state


def test_a_strange_answer_is_an_error() -> None:
    """Whatever a BMC's answer leads to comes out as SensorError with got, why and fix."""

    def ask() -> Answer:
        raise TypeError("'int' object is not iterable")

    follower = Follower(ask, lambda: None, time.perf_counter, PACE_S)
    with pytest.raises(SensorError, match=r"cannot be understood \(TypeError") as caught:
        follower.latest(1.0)
    assert all((caught.value.got, caught.value.why, caught.value.fix))


def test_a_window_does_not_wait_for_a_slow_bmc(bmc: FakeBmc) -> None:
    """Once the thread has an answer, a snapshot takes a small part of the time that the BMC takes."""
    (probe,) = sensor_of(bmc).open()
    bmc.delay_s = 0.1
    probe.snapshot()
    begin_s = time.perf_counter()
    for _ in range(20):
        probe.snapshot()
    assert (time.perf_counter() - begin_s) / 20 < 0.01


def test_one_thread_and_it_ends(bmc: FakeBmc) -> None:
    """Opening starts no thread, windows share one, and when nobody asks any more it ends and begins anew."""
    (probe,) = sensor_of(bmc).open()

    before = set(threading.enumerate())

    def threads() -> list[threading.Thread]:
        return [t for t in threading.enumerate() if t.name == "negawatt-bmc" and t not in before]

    assert not threads()
    first = probe.snapshot()
    probe.snapshot()
    (thread,) = threads()
    thread.join(5.0)
    assert not thread.is_alive()
    time.sleep(0.05)
    assert probe.reading(first, probe.snapshot()).energy_j > 0
    assert len(threads()) == 1


class Shown:
    """A BMC's latest answer, as a script of the time gives it."""

    def __init__(self, answer: Callable[[float], Answer], pace_s: float = 1.0) -> None:
        self.clock = ManualClock()
        self.answer = answer
        self.probe: Any = probe_of(lambda: answer(self.clock()), answer(0.0), self.clock, pace_s)

    def after(self, seconds: float, step_s: float = 0.5) -> Any:
        """The state after some time in which it was looked at every step."""
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)
            state = self.probe.snapshot()
        return state


def test_late_averaged_power_is_covered() -> None:
    """Over loads of random steps, shown late as a mean over a second, 95 % of the truths are inside the interval."""
    random, inside = Random(3), 0
    for _ in range(200):
        load = Load([(0.0, 100.0)])
        while load.times_s[-1] < 60:
            at_s = load.times_s[-1]
            power_w = random.uniform(80.0, 600.0)
            load.extend([(at_s, power_w), (at_s + random.expovariate(1 / 8), power_w)])
        late_s = random.uniform(0.0, 1.0)

        def answer(now_s: float, load: Load = load, late_s: float = late_s) -> Answer:
            shown_s = int(now_s - late_s)  # a new number every second
            return Answer(power_w=load.joules_to(shown_s) - load.joules_to(shown_s - 1), energy_j=None)

        bmc = Shown(answer)
        start = bmc.after(5.0)
        end = bmc.after(random.uniform(5.0, 50.0))
        reading = bmc.probe.reading(start, end)
        truth_j = load.joules_to(end.time_s) - load.joules_to(start.time_s)
        inside += abs(reading.energy_j - truth_j) <= 1.96 * reading.random_sd_j
    assert inside >= 190


def test_a_counter_that_moves_seldom_is_completed_by_power() -> None:
    """A counter that moves every 20 s gives the joules between its moves, too, by the power beside it."""
    bmc = Shown(lambda now_s: Answer(power_w=100.0, energy_j=5.0 + now_s // 20 * 2000))
    begin = bmc.after(30.0)
    quiet = bmc.probe.reading(begin, bmc.after(6.0))
    assert quiet.source is Source.COUNTER
    assert quiet.energy_j == pytest.approx(600.0)
    whole = bmc.probe.reading(begin, bmc.after(33.0))
    assert abs(whole.energy_j - 3900.0) <= 1.96 * whole.random_sd_j


def test_a_counter_without_power_beside_it_is_used() -> None:
    """A BMC that gives joules and no watts is read by its counter alone."""
    bmc = Shown(lambda now_s: Answer(power_w=None, energy_j=5.0 + 200.0 * now_s))
    begin = bmc.after(10.0)
    reading = bmc.probe.reading(begin, bmc.after(60.0))
    assert (reading.energy_j, reading.source) == (pytest.approx(12_000.0), Source.COUNTER)


def test_what_is_stuck_is_said() -> None:
    """A counter that stands still for minutes is an error, a power that never changes is flagged."""
    bmc = Shown(lambda _: Answer(power_w=100.0, energy_j=7.0))
    begin = bmc.after(1.0)
    with pytest.raises(SensorError, match="stood still at 7000"):
        bmc.probe.reading(begin, bmc.after(120.0))
    bmc = Shown(lambda _: Answer(power_w=100.0, energy_j=None))
    begin = bmc.after(1.0)
    assert "may be stuck" in bmc.probe.reading(begin, bmc.after(700.0)).flags[0]


def test_a_restarted_counter_is_an_error() -> None:
    """A BMC that begins to count anew raises instead of giving negative energy."""
    bmc = Shown(lambda now_s: Answer(power_w=100.0, energy_j=900.0 if now_s < 10 else 20.0))
    begin = bmc.after(5.0)
    with pytest.raises(SensorError, match="reset"):
        bmc.probe.reading(begin, bmc.after(10.0))


def test_a_bmc_that_falls_silent_is_an_error(bmc: FakeBmc) -> None:
    """A missed answer is borne; ten are an error, with got, why and fix."""
    (probe,) = sensor_of(bmc).open()
    probe.snapshot()
    bmc.stop()

    def fails() -> NegawattError | None:
        try:
            probe.snapshot()
        except NegawattError as error:
            return error
        return None

    until(fails)
    error = fails()
    assert error is not None
    assert all((error.got, error.why, error.fix))
    assert "cannot be reached" in error.got


def test_a_number_that_disappears_is_an_error() -> None:
    """A BMC that stops to give the number it was chosen for is an error, never 0 W."""
    with FakeBmc("counter") as bmc:
        (probe,) = sensor_of(bmc).open()
        bmc.style = "metrics"
        with pytest.raises(SensorError, match="gives no energy any more"):
            probe.snapshot()


def test_a_withdrawn_login_is_an_error(bmc: FakeBmc) -> None:
    """A login that is refused at once, or later, is NeedsPrivilegeError and says what to type."""
    with pytest.raises(NeedsPrivilegeError, match=r"refuses user 'nobody' \(HTTP 401\)"):
        sensor_of(bmc, NEGAWATT_REDFISH_USER="nobody").open()
    (probe,) = sensor_of(bmc).open()
    bmc.locked = True
    with pytest.raises(NeedsPrivilegeError, match="NEGAWATT_REDFISH_PASSWORD"):
        probe.snapshot()


def test_a_machine_is_never_guessed() -> None:
    """Of several machines the user names one; racks are left out; a named chassis or resource is taken."""
    with FakeBmc(machines=2) as bmc:
        url = bmc.environ["NEGAWATT_REDFISH_URL"]
        with pytest.raises(UsageError, match=r"gives the power of 2 machines: .*Chassis/1.*Chassis/2"):
            sensor_of(bmc).open()
        for path in ("/redfish/v1/Chassis/2", "/redfish/v1/Chassis/2/EnvironmentMetrics/"):
            (probe,) = sensor_of(bmc, NEGAWATT_REDFISH_URL=url + path).open()
            probe.snapshot()
            assert bmc.asked[-1] == "/redfish/v1/Chassis/2/EnvironmentMetrics"


def test_what_is_missing_is_a_reason(bmc: FakeBmc) -> None:
    """No address, no answer, no power and no such resource each end with what to type."""
    host = this_host()
    assert "export NEGAWATT_REDFISH_URL=" in (RedfishSensor(environ={}).available(host) or "")
    with FakeBmc("none") as mute:
        assert "gives no power" in (sensor_of(mute).available(host) or "")
    url = bmc.environ["NEGAWATT_REDFISH_URL"]
    reason = sensor_of(bmc, NEGAWATT_REDFISH_URL=f"{url}/redfish/v1/Chassis/9").available(host)
    assert "answers HTTP 404" in (reason or "")
    bmc.stop()
    assert "cannot be reached" in (sensor_of(bmc).available(host) or "")


@pytest.mark.parametrize("url", ["ftp://bmc", "https://user:word@bmc", "bmc.example", "http://bmc.example"])
def test_an_address_that_makes_no_sense_is_refused(url: str) -> None:
    """Other protocols, passwords in the address and unencrypted connections are usage errors."""
    with pytest.raises(UsageError, match="NEGAWATT_REDFISH_URL"):
        BmcAddress.of({"NEGAWATT_REDFISH_URL": url})


def test_the_login_may_come_from_netrc(tmp_path: Path, bmc: FakeBmc) -> None:
    """Without a user in the environment, ~/.netrc is asked, and the password is in no text of the address."""
    netrc = tmp_path / "netrc"
    netrc.write_text(f'machine 127.0.0.1 login {bmc.user} password "{bmc.password}"\n')
    environ = {"NEGAWATT_REDFISH_URL": bmc.environ["NEGAWATT_REDFISH_URL"], "NETRC": str(netrc)}
    address = BmcAddress.of(environ)
    assert address == replace(address, user=bmc.user, password=bmc.password)
    assert bmc.password not in repr(address)
    assert RedfishSensor(environ=environ, pace_s=PACE_S).available(this_host()) is None
    netrc.write_text("machine\n")
    with pytest.raises(UsageError, match="netrc cannot be read"):
        BmcAddress.of(environ)


def test_a_user_without_a_home_has_no_netrc(bmc: FakeBmc, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a home there is no ~/.netrc to look for; that is said when it is what the login hangs on."""

    def homeless(path: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", homeless)
    url = bmc.environ["NEGAWATT_REDFISH_URL"]
    with pytest.raises(UsageError, match=r"netrc cannot be read \(Could not determine home"):
        BmcAddress.of({"NEGAWATT_REDFISH_URL": url})
    assert BmcAddress.of(dict(bmc.environ)) is not None


def test_the_certificate_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unknown certificate is refused, one that was named is taken, and checking can be switched off."""
    pem = tmp_path / "bmc.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=bmc", "-days", "2"]
    try:
        alternative = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(pem), "-out", str(tmp_path / "cert")]
        subprocess.run([*command, *alternative], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("needs openssl to make a certificate")
    pem.write_text(pem.read_text() + (tmp_path / "cert").read_text())
    with FakeBmc(tls=pem) as bmc:
        assert "NEGAWATT_REDFISH_INSECURE=1" in (sensor_of(bmc).available(this_host()) or "")
        assert sensor_of(bmc, NEGAWATT_REDFISH_INSECURE="1").available(this_host()) is None
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert"))
        assert sensor_of(bmc).available(this_host()) is None


def test_a_slow_bmc_is_asked_as_often_as_it_answers(bmc: FakeBmc) -> None:
    """The registered sensor asks once a second; a BMC slower than the pace sets its own."""
    assert redfish.sensor._pace_s == 1.0
    bmc.delay_s = 0.1
    (probe,) = sensor_of(bmc).open()
    probe.snapshot()
    asked = len(bmc.asked)
    time.sleep(0.5)
    assert 1 <= len(bmc.asked) - asked <= 6

"""The guard as a real process, with clients of several users, on a simulated powercap tree."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from guard_host import FOUND_W, GROUPED, LISTED, UNLISTED, GuardHost, heard, wait_for

from negawatt.cli import main
from negawatt.core.errors import HardwareError, HeldError, NeedsPrivilegeError, UsageError
from negawatt.hardware.guard import wire
from negawatt.hardware.guard.client import Connection, GuardHand, GuardLostError, guard_available
from negawatt.hardware.guard.server import CLIENTS_PER_USER
from negawatt.testing.nvml import SimulatedGpu, SimulatedNvml

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become the users that these tests are about"
)

HOLD = """
hand = GuardHand.take([zone], owner="hold.py", socket=path)
say(hand.set(zone, 90.0))
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that other users can get to, unlike pytest's own."""
    folder = Path(tempfile.mkdtemp(prefix="guard-"))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def host(home: Path) -> Iterator[GuardHost]:
    host = GuardHost(home)
    yield host
    host.close()


@pytest.mark.parametrize("uid", [LISTED, GROUPED])
def test_a_listed_user_changes_a_limit_and_gives_it_back(host, uid):
    """A user whom the policy lists, or whose group it lists, sets a limit; on release it is as found."""
    user = host.user(uid, HOLD + "input(); hand.release(); say(hand.found[zone], hand.infos[zone].lowest)")
    assert heard(user) == "90.0"
    assert host.limits_w() == [90.0, FOUND_W, FOUND_W]
    user.stdin.write("\n")
    user.stdin.flush()
    assert heard(user) == "125.0 80.0"
    assert set(host.limits_w()) == {FOUND_W}


GREEDY = """
say(guard_available(path).partition(chr(10))[0])
for op, more in (("list", {}), ("status", {}), ("take", {"addresses": [zone], "owner": "x"}),
                 ("set", {"address": zone, "value": 90.0}), ("release", {})):
    with socket.socket(socket.AF_UNIX) as talk:
        talk.connect(str(path))
        try:
            talk.sendall(b'{"op": "hello", "version": 1}\\n' + json.dumps({"op": op, **more}).encode() + b"\\n")
        except OSError:
            pass
        answers = b""
        try:
            while chunk := talk.recv(9999):
                answers += chunk
        except ConnectionResetError:
            pass
        say(answers.decode().strip())
"""


def test_an_unlisted_user_gets_nothing(host):
    """Whatever a user asks for whom no permission names: one refusal, no name of a device, and no limit changes."""
    user = host.user(UNLISTED, GREEDY)
    assert f"uid {UNLISTED} may not change anything" in heard(user)
    answers = [json.loads(heard(user)) for _ in range(5)]
    assert [answer["error"] for answer in answers] == ["privilege"] * 5
    assert not any("rapl" in json.dumps(answer) for answer in answers)
    assert set(host.limits_w()) == {FOUND_W}
    assert {json.loads(line)["event"] for line in host.audit.read_text().splitlines()} == {"connect"}


@pytest.mark.parametrize(("package", "value"), [(0, 79.9), (0, 125.6), (0, 1e9), (0, -90.0), (0, None), (2, 100.0)])
def test_what_the_policy_does_not_allow_is_refused(host, package, value):
    """Below the policy's lowest value, above what was found, without a limit, or of another device: refused."""
    code = f"""
from negawatt.core.errors import NegawattError
try:
    GuardHand.take([zone], owner="x", socket=path).set(zone, {value})
except NegawattError as error:
    say(type(error).__name__)
"""
    assert heard(host.user(LISTED, code, package)) == ("UsageError" if package == 0 else "NeedsPrivilegeError")
    assert set(host.limits_w()) == {FOUND_W}


@pytest.mark.parametrize("how", ["kill", "exit", "raise"])
def test_the_end_of_a_client_restores(host, how):
    """However a client ends, its limits are as found within two seconds."""
    end = {"kill": "time.sleep(60)", "exit": "os._exit(0)", "raise": "raise SystemExit(3)"}[how]
    user = host.user(LISTED, HOLD + end)
    assert heard(user) == "90.0"
    if how == "kill":
        user.kill()
    assert host.as_found_within(2.0) < 2.0


def test_a_child_of_a_killed_client_keeps_nothing(host):
    """A forked child cannot change anything, and does not keep its parent's limits when that is killed."""
    child = """
if os.fork() == 0:
    try:
        hand.set(zone, 100.0)
    except Exception as error:
        say(error.got)
    hand.release()
    time.sleep(60)
time.sleep(60)
"""
    user = host.user(LISTED, HOLD + child)
    assert heard(user) == "90.0"
    assert "another process took" in heard(user)
    assert host.limit_w() == 90.0
    user.kill()
    assert host.as_found_within(2.0) < 2.0


def test_a_client_that_hangs_loses_its_lease(home):
    """A client that is stopped is silent for too long and loses its lease; when it goes on it is told."""
    host = GuardHost(home, silence_s=0.5)
    try:
        code = "input()\ntry:\n    hand.set(zone, 100.0)\nexcept Exception as error:\n    say(type(error).__name__)"
        user = host.user(LISTED, HOLD + code)
        assert heard(user) == "90.0"
        time.sleep(1.0)
        assert host.limit_w() == 90.0  # its thread says that it lives
        user.send_signal(signal.SIGSTOP)
        host.as_found_within(3.0)
        user.send_signal(signal.SIGCONT)
        user.stdin.write("\n")
        user.stdin.flush()
        assert heard(user) == "GuardLostError"
        assert set(host.limits_w()) == {FOUND_W}
    finally:
        host.close()


def test_two_users_at_once(host):
    """The second user of a device is told who has it; once it is free they get it."""
    first = host.user(LISTED, HOLD + "input()")
    assert heard(first) == "90.0"
    code = (
        "from negawatt.core.errors import HeldError\ntry:\n    hand = GuardHand.take([zone], owner='b', socket=path)\n"
    )
    second = host.user(GROUPED, code + "except HeldError as error:\n    say(error.got)")
    told = heard(second)
    assert f"uid {LISTED} (pid {first.pid})" in told
    assert "hold.py" in told
    first.kill()
    host.as_found_within(2.0)
    assert heard(host.user(GROUPED, HOLD + "input()")) == "90.0"


def test_the_guard_killed(host):
    """SIGKILL of the guard: limits as found within two seconds, `set` says that it is gone, `release` says nothing."""
    hand = GuardHand.take([host.address()], owner="test", socket=host.socket)
    assert hand.set(host.address(), 90.0) == 90.0
    host.server.kill()
    assert host.as_found_within(2.0) < 2.0
    with pytest.raises(GuardLostError, match="does not answer"):
        hand.set(host.address(), 95.0)
    hand.release()
    host.server.wait()
    host.server = host.start()
    with GuardHand.take([host.address()], owner="test", socket=host.socket) as again:
        assert again.found == {host.address(): FOUND_W}


def test_the_guard_ended(host):
    """SIGTERM: the guard restores, ends well, and its socket is gone."""
    hand = GuardHand.take([host.address()], owner="test", socket=host.socket)
    hand.set(host.address(), 90.0)
    host.server.terminate()
    assert host.server.wait(10) == 0
    assert set(host.limits_w()) == {FOUND_W}
    assert not host.socket.exists()
    hand.release()
    assert "no guard" in str(guard_available(host.socket))


def test_one_hand_on_several_devices(host):
    """A client may hold several devices, and all of them are put back together."""
    addresses = [host.address(package) for package in range(3)]
    with GuardHand.take(addresses, owner="test", socket=host.socket) as hand:
        for address, value in zip(addresses, (90.0, 100.0, 110.0), strict=True):
            hand.set(address, value)
        assert host.limits_w() == [90.0, 100.0, 110.0]
        with pytest.raises(UsageError, match="nan"):
            hand.set(addresses[0], float("nan"))
        with pytest.raises(HeldError, match="test"):
            GuardHand.take(addresses[2:], owner="other", socket=host.socket)
    assert set(host.limits_w()) == {FOUND_W}
    with pytest.raises(HardwareError, match="was released"):
        hand.set(addresses[0], 90.0)


def test_a_permission_that_is_withdrawn(host):
    """A change of the policy acts at once: who is no longer listed sets nothing more and loses what they hold."""
    code = (
        "input()\ntry:\n    hand.set(zone, 100.0)\nexcept Exception as error:\n    say(type(error).__name__)\ninput()"
    )
    user = host.user(LISTED, HOLD + code)
    assert heard(user) == "90.0"
    host.policy.write_text("")
    user.stdin.write("\n")
    user.stdin.flush()
    assert heard(user) == "NeedsPrivilegeError"
    host.as_found_within(2.0)


def test_a_broken_policy_closes_the_guard(host):
    """A policy file that cannot be read allows nothing, to nobody, and the guard goes on."""
    host.policy.write_text("[[allow]")
    assert "guard.toml" in str(guard_available(host.socket))
    with pytest.raises(UsageError, match=r"guard\.toml"):
        GuardHand.take([host.address()], owner="test", socket=host.socket)
    host.policy.write_text("")
    assert guard_available(host.socket) is None


def test_only_so_many_clients_of_one_user(host):
    """One user cannot use up the guard: further connections are told so, and others are answered."""
    talks = [Connection(host.socket) for _ in range(CLIENTS_PER_USER)]
    assert "too many clients" in str(guard_available(host.socket))
    assert heard(host.user(LISTED, "say(guard_available(path))")) == "None"
    for talk in talks:
        talk.close()
    wait_for(lambda: guard_available(host.socket) is None, 5.0)


def test_a_second_guard_is_refused(host):
    """Two guards cannot have one socket."""
    code = "from negawatt.cli import main; import sys; sys.exit(main(sys.argv[1:]))"
    line = [sys.executable, "-c", code, "guard", "serve", "--socket", host.socket, "--policy", host.policy]
    done = subprocess.run([*line, "--audit", host.audit], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "another guard listens" in done.stderr


def test_a_guard_of_somebody_else_is_not_believed(home):
    """A client trusts a guard of root's or its own, and tells another one nothing."""
    home.chmod(0o777)
    code = """
talk = socket.socket(socket.AF_UNIX)
talk.bind(str(path)); talk.listen(); path.chmod(0o777); say("ready")
connection, _ = talk.accept()
say(connection.recv(99))
"""
    host = object.__new__(GuardHost)
    host.home, host.socket, host.children, host.server = home, home / "guard.sock", [], None
    try:
        liar = host.user(UNLISTED, code)
        assert heard(liar) == "ready"
        with pytest.raises(NeedsPrivilegeError, match=f"belongs to user {UNLISTED}"):
            Connection(host.socket)
        assert heard(liar) == "b''"
    finally:
        host.close()


def set_often(hand, address):
    for count in range(100):
        hand.set(address, 90.0 + count % 10)


def test_a_full_log_stops_changes_but_not_restoring(home):
    """When the audit log cannot be written nothing more is changed, and what was changed is still put back."""
    host = GuardHost(home, file_bytes=6000)
    try:
        hand = GuardHand.take([host.address()], owner="test", socket=host.socket)
        with pytest.raises(HardwareError, match=r"audit log .* cannot be written"):
            set_often(hand, host.address())
        kept_w = host.limit_w()
        with pytest.raises(HardwareError, match=r"audit log .* cannot be written"):
            hand.set(host.address(), 101.0)
        assert host.limit_w() == kept_w < FOUND_W
        hand.release()
        assert set(host.limits_w()) == {FOUND_W}
    finally:
        host.close()


def test_the_log_tells_who_did_what(host):
    """Every change is in the log before and after it was made, with who asked, from what and to what."""
    user = host.user(LISTED, HOLD + "hand.release()")
    user.wait(10)
    wait_for(lambda: '"release"' in host.audit.read_text(), 2.0)
    lines = [json.loads(line) for line in host.audit.read_text().splitlines()]
    told = [("take", "begins"), ("take", "done"), ("set", "begins"), ("set", "done"), ("release", "done")]
    assert [(line["event"], line["result"]) for line in lines] == told
    assert {(line["uid"], line["pid"]) for line in lines} == {(LISTED, user.pid)}
    assert (lines[3]["address"], lines[3]["from"], lines[3]["to"], lines[3]["read"]) == (
        host.address(), FOUND_W, 90.0, 90.0,
    )  # fmt: skip
    assert lines[4]["found"] == {host.address(): FOUND_W}


@pytest.mark.parametrize(
    "lines",
    [
        b'{"op": "list"}\n',
        b'{"op": "hello", "version": 2}\n',
        b'{"op": "hello", "version": 1}\nrubbish\n',
        b"x" * (wire.LINE_BYTES + 2),
    ],
)
def test_another_language_ends_the_talk(host, lines):
    """A client that does not speak the guard's language hears so once, and the connection is closed."""
    with socket.socket(socket.AF_UNIX) as talk:
        talk.connect(str(host.socket))
        talk.settimeout(5.0)
        talk.sendall(lines)
        answers = b""
        while chunk := talk.recv(9999):
            answers += chunk
    assert json.loads(answers.splitlines()[-1])["error"] == "wire"


def test_the_status_tells_who_holds_what(host, capsys):
    """`negawatt guard status` lists what this user may change and what is held now."""
    user = host.user(LISTED, HOLD + "input()")
    assert heard(user) == "90.0"
    assert main(["guard", "status", "--socket", str(host.socket), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert len(told["controls"]) == 3
    assert [(h["owner"], h["pid"], h["scopes"]) for h in told["holders"]] == [("hold.py", user.pid, ["cpu:0"])]
    assert told["holders"][0]["values"] == {host.address(): 90.0}
    assert main(["guard", "status", "--socket", str(host.socket)]) == 0
    assert "hold.py" in capsys.readouterr().out


def test_the_command_serves_a_gpu(home, monkeypatch):
    """`negawatt guard serve`, as the service runs it, limits a simulated GPU and restores it when it is killed."""
    (home / "guard.toml").write_text("")
    monkeypatch.setenv("NEGAWATT_STATE", str(home / "state"))
    line = ["guard", "serve", "--socket", "guard.sock", "--policy", "guard.toml", "--audit", "guard.jsonl"]
    with SimulatedNvml([SimulatedGpu(limit_w=350.0, lowest_w=100.0, highest_w=400.0)]) as nvml:
        server = subprocess.Popen(
            [sys.executable, "-P", "-m", "negawatt", *line],
            cwd=home,
            env={**os.environ, **nvml.environ},
            stderr=subprocess.DEVNULL,
        )
        try:
            wait_for(lambda: guard_available(home / "guard.sock") is None, 10.0)
            address = f"nvidia:{SimulatedGpu.uuid}:power-limit"
            hand = GuardHand.take([address], owner="test", socket=home / "guard.sock")
            assert (hand.found[address], hand.infos[address].lowest) == (350.0, 100.0)
            assert hand.set(address, 250.0) == 250.0
            assert nvml.settings[0].limit_w == 250.0
        finally:
            server.kill()
            server.wait()
        wait_for(lambda: nvml.settings[0].limit_w == 350.0, 2.0)
        hand.release()

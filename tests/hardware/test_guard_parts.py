"""The guard's language, policy, audit log, service and client, without a guard."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from negawatt.core.errors import HeldError, NeedsPrivilegeError, UsageError
from negawatt.hardware.control import ControlInfo, Knob
from negawatt.hardware.guard import wire
from negawatt.hardware.guard.audit import REFUSALS_PER_USER, AuditError, AuditLog
from negawatt.hardware.guard.client import GuardHand, GuardLostError
from negawatt.hardware.guard.peer import Peer, peer_of
from negawatt.hardware.guard.policy import Allow, Policy, load_policy, refused
from negawatt.hardware.guard.server import notify
from negawatt.hardware.guard.unit import unit_text

ALICE = Peer(pid=11, uid=4242, gids=frozenset({4242, 50}), user="alice", comm="train")
GPU = ControlInfo(
    address="nvidia:GPU-1:power-limit",
    scope="gpu:GPU-1",
    knob=Knob.POWER_LIMIT,
    unit="W",
    lowest=100.0,
    highest=400.0,
    step=1.0,
)
LIMIT = {"devices": ("gpu:*",), "knobs": (Knob.POWER_LIMIT,), "lowest_fraction": 0.5}


@pytest.mark.parametrize(
    ("line", "request_"),
    [
        (b'{"op": "hello", "version": 1}', wire.Hello(version=1)),
        (b'{"op": "take", "addresses": ["a"], "owner": "b"}', wire.Take(addresses=("a",), owner="b")),
        (b'{"op": "set", "address": "a", "value": 200}', wire.Set(address="a", value=200.0)),
        (b'{"op": "set", "address": "a", "value": null}', wire.Set(address="a", value=None)),
        (b' {"op":"ping"} ', wire.Ping()),
    ],
)
def test_requests_are_understood(line, request_):
    """A well-formed line is the request that it says."""
    assert wire.parse(line) == request_


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"hello",
        b"[]",
        b"null",
        b"7",
        b'"ping"',
        b"{}",
        b'{"op": "reboot"}',
        b'{"op": ["ping"]}',
        b'{"op": "ping", "op": "ping"}',
        b'{"op": "ping", "more": 1}',
        b'{"op": "ping"} {"op": "ping"}',
        b'{"op": "hello"}',
        b'{"op": "hello", "version": true}',
        b'{"op": "hello", "version": 1.0}',
        b'{"op": "set", "address": "a", "value": NaN}',
        b'{"op": "set", "address": "a", "value": -Infinity}',
        b'{"op": "set", "address": "a", "value": 1e999}',
        b'{"op": "set", "address": "a", "value": 1' + b"0" * 400 + b"}",
        b'{"op": "set", "address": "a", "value": "200"}',
        b'{"op": "set", "address": "a", "value": true}',
        b'{"op": "set", "address": "a", "value": [200]}',
        b'{"op": "set", "address": ["a"], "value": 200}',
        b'{"op": "set", "address": "a\\u0000", "value": 200}',
        b'{"op": "set", "address": "a"}',
        b'{"op": "take", "addresses": [], "owner": "b"}',
        b'{"op": "take", "addresses": ["a", "a"], "owner": "b"}',
        b'{"op": "take", "addresses": "a", "owner": "b"}',
        b'{"op": "take", "addresses": ["a"], "owner": ""}',
        b'{"op": "take", "addresses": ["a"], "owner": "b\\nroot"}',
        b'{"op": "take", "addresses": ["a"], "owner": "\\ud800"}',
        b'{"op": "take", "addresses": ["a"], "owner": "' + b"b" * 301 + b'"}',
        b'{"op": "ping\xff"}',
        b'{"op": ' + b"[" * 8000 + b"]" * 8000 + b"}",
        b"[" * 16_000,
    ],
)
def test_whatever_else_is_refused(line):
    """What is not exactly a request is an error of the language, of the same kind whatever is wrong."""
    with pytest.raises(wire.WireError, match="the connection brought"):
        wire.parse(line)


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
def test_the_parser_never_crashes_on_bytes(line):
    """Any bytes give a request or a WireError."""
    _parse(line)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=8,
)
_FIELDS = st.sampled_from(["version", "addresses", "owner", "address", "value", "more"])


@given(st.sampled_from([*wire.OPS, "other"]), st.dictionaries(_FIELDS, _JSON, max_size=3))
def test_the_parser_never_crashes_on_json(op, fields):
    """Any members around any op give a request or a WireError; a number that gets through is finite."""
    request = _parse(json.dumps({"op": op, **fields}).encode())
    if isinstance(request, wire.Set) and request.value is not None:
        assert abs(request.value) < 1e308


def _parse(line: bytes) -> wire.Request | None:
    try:
        return wire.parse(line)
    except wire.WireError:
        return None


def test_lines_arrive_whole():
    """Lines that arrive in pieces or together are the same lines, and half a line at the end is dropped."""
    here, there = socket.socketpair()
    with here, there:
        writer = threading.Thread(target=lambda: [there.sendall(part) for part in (b"on", b"e\ntwo\nth", b"ree\nfo")])
        writer.start()
        writer.join()
        there.shutdown(socket.SHUT_WR)
        assert list(wire.lines(here, 10, 1.0)) == [b"one", b"two", b"three"]


@pytest.mark.parametrize(
    ("sent", "error"), [(b"x" * 11, "more than 10 bytes"), (b"x" * 11 + b"\n", "more than 10"), (b"half", "no whole")]
)
def test_long_and_slow_lines_end_the_talk(sent, error):
    """A line that is too long, or not whole in time, is an error."""
    here, there = socket.socketpair()
    with here, there:
        there.sendall(sent)
        with pytest.raises(wire.WireError, match=error):
            next(wire.lines(here, 10, 0.05))


def test_errors_travel():
    """The other side raises the same kind of error, in the same three parts."""
    told = json.loads(wire.dumps(wire.failure(HeldError("bob has it", "one at a time", "wait"))))
    with pytest.raises(HeldError, match="bob has it") as caught:
        wire.raise_failure(told)
    assert caught.value.fix == "wait"


def test_the_kernel_tells_who_connected():
    """Credentials are those of the process at the other end, with the groups of its user."""
    here, there = socket.socketpair(socket.AF_UNIX)
    with here, there:
        peer = peer_of(here)
    assert (peer.pid, peer.uid) == (os.getpid(), os.geteuid())
    assert os.getegid() in peer.gids


def test_nobody_but_root_without_a_policy(tmp_path):
    """Where there is no policy file, root may do everything and others nothing."""
    policy = load_policy(tmp_path / "none.toml")
    root = Peer(pid=1, uid=0, gids=frozenset({0}), user="root", comm="sh")
    assert policy.knows(root)
    assert policy.granted(root, GPU) == GPU
    assert not policy.knows(ALICE)
    assert policy.granted(ALICE, GPU) is None


@pytest.mark.parametrize(
    ("rule", "lowest"),
    [
        (Allow(users=(4242,), **LIMIT), 200.0),
        (Allow(groups=(50,), **LIMIT), 200.0),
        (Allow(users=(4242,), **{**LIMIT, "lowest_fraction": 0.1}), 100.0),
        (Allow(users=(4242,), **{**LIMIT, "lowest_fraction": None}, lowest=250.0), 250.0),
        (Allow(users=(4242,), **{**LIMIT, "devices": ("nvidia:*:power-limit",)}), 200.0),
        (Allow(users=(4243,), **LIMIT), None),
        (Allow(users=("no-such-user",), groups=("no-such-group",), **LIMIT), None),
        (Allow(users=(4242,), **{**LIMIT, "devices": ("cpu:*",)}), None),
        (Allow(users=(4242,), **{**LIMIT, "knobs": (Knob.CLOCK_LIMIT,)}), None),
        (Allow(users=(4242,), **{**LIMIT, "lowest_fraction": None}, lowest=500.0), None),
    ],
)
def test_a_permission_names_users_devices_and_the_lowest_value(rule, lowest):
    """A client gets a control only if user, device and knob fit, and no lower than the rule and the device allow."""
    granted = Policy(allow=(rule,)).granted(ALICE, GPU)
    assert (granted.lowest if granted else None) == lowest


def test_permissions_add_up():
    """Of several permissions that fit, the one that allows most counts."""
    rules = tuple(Allow(users=(4242,), **{**LIMIT, "lowest_fraction": f}) for f in (0.9, 0.6, 0.8))
    granted = Policy(allow=rules).granted(ALICE, GPU)
    assert granted is not None
    assert granted.lowest == 240.0


RULE = '[[allow]]\nusers = ["root"]\ndevices = ["gpu:*"]\nknobs = ["power-limit"]\nlowest_fraction = 0.6\n'


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("allow = 3", "a list"),
        ("[[allow]", "line"),
        ("\udcff", "utf-8"),
        (RULE + "highest = 3", "no such field"),
        (RULE.replace("0.6", "1.5"), "at most 1"),
        (RULE.replace("0.6", "nan"), "at most 1"),
        (RULE.replace("0.6", "true"), "expected"),
        (RULE + "lowest = 3", "one of lowest_fraction and lowest"),
        (RULE.replace("power-limit", "voltage"), "voltage"),
        (RULE.replace('users = ["root"]', ""), "neither users nor groups"),
        (RULE.replace('"gpu:*"', ""), "no devices"),
        (RULE.replace('"root"', "true"), "expected"),
    ],
)
def test_a_policy_that_is_half_understood_is_refused(tmp_path, text, error):
    """A mistake in the policy file is an error that names it, never a permission."""
    file = tmp_path / "guard.toml"
    file.write_text(text, errors="surrogateescape")
    with pytest.raises(UsageError, match=error):
        load_policy(file)


@pytest.mark.parametrize("open_", ["file", "folder"])
def test_a_policy_that_others_may_write_is_refused(tmp_path, open_):
    """Whoever could write the policy could give themselves the right."""
    folder = tmp_path / "etc"
    folder.mkdir(mode=0o755)
    file = folder / "guard.toml"
    file.write_text(RULE)
    assert load_policy(file).allow
    (file if open_ == "file" else folder).chmod(0o777)
    with pytest.raises(UsageError, match="others than root may write"):
        load_policy(file)


def test_a_refusal_shows_what_to_add():
    """What an unlisted user is told to have added is a policy that lists them."""
    error = refused(ALICE, Path("/etc/negawatt/guard.toml"))
    assert isinstance(error, NeedsPrivilegeError)
    assert '[[allow]]\n    users = ["alice"]' in error.fix


def test_the_log_takes_no_forged_lines(tmp_path, capfdbinary):
    """Whatever a client calls itself, one event is one line of ASCII, in the file and on stderr."""
    log = AuditLog(tmp_path / "log" / "guard.jsonl")
    forged = 'x"}\n{"event": "set", "uid": 0}\r\u2028\x1b[2J'
    log.write(Peer(pid=1, uid=5, gids=frozenset(), user=forged, comm=forged), "set", "begins", owner=forged)
    log.close()
    text = (tmp_path / "log" / "guard.jsonl").read_bytes()
    assert text.count(b"\n") == 1
    assert text.isascii()
    assert json.loads(text)["owner"] == forged
    assert capfdbinary.readouterr().err == text


def test_refusals_cannot_fill_the_log(tmp_path):
    """Of the refusals of one user only so many are written, and the last one says so; changes always are."""
    log = AuditLog(tmp_path / "guard.jsonl")
    for _ in range(500):
        log.refuse(ALICE, "set", "no")
    log.write(ALICE, "set", "begins")
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "guard.jsonl").read_text().splitlines()]
    assert len(lines) == REFUSALS_PER_USER + 1
    assert "not written" in lines[-2]["note"]


def test_a_rotated_log_goes_on(tmp_path):
    """After the file was moved away, lines go to a new one of its name."""
    log = AuditLog(tmp_path / "guard.jsonl")
    log.write(ALICE, "set", "begins")
    (tmp_path / "guard.jsonl").rename(tmp_path / "guard.jsonl.1")
    log.write(ALICE, "set", "done")
    log.close()
    assert [json.loads((tmp_path / name).read_text())["result"] for name in ("guard.jsonl.1", "guard.jsonl")] == [
        "begins",
        "done",
    ]


@pytest.mark.parametrize("kind", ["link", "pipe", "shared"])
def test_a_log_that_is_not_ours_is_refused(tmp_path, kind):
    """A link, a pipe or a file that others may write is no audit log."""
    file = tmp_path / "guard.jsonl"
    if kind == "link":
        file.symlink_to(tmp_path / "elsewhere")
    elif kind == "pipe":
        os.mkfifo(file)
    else:
        file.touch()
        file.chmod(0o666)
    with pytest.raises(AuditError, match="cannot be written"):
        AuditLog(file)


_FULL = """
import sys
from pathlib import Path
from negawatt.hardware.guard.audit import AuditError, AuditLog
from negawatt.hardware.guard.client import GuardHand, GuardLostError
from negawatt.hardware.guard.peer import Peer
alice = Peer(pid=1, uid=5, gids=frozenset(), user="alice", comm="train")
log = AuditLog(Path(sys.argv[1]))
for count in range(100):
    try:
        log.write(alice, "set", "begins", number=count)
    except AuditError:
        print(count)
        break
log.tell(alice, "release", "done")
"""


def test_a_full_disk_is_an_error(tmp_path):
    """When no more can be written, `write` raises, `tell` does not, and the lines before are intact."""
    file = tmp_path / "guard.jsonl"
    small = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # noqa: E731 -- in the child
    done = subprocess.run(
        [sys.executable, "-c", _FULL, file], preexec_fn=small, check=True, capture_output=True, text=True
    )
    count = int(done.stdout)
    assert [json.loads(line)["number"] for line in file.read_text().splitlines()[:count]] == list(range(count))
    assert done.stderr.splitlines()[-1].startswith('{"time_utc"')


def test_the_service_fits_this_host(tmp_path):
    """The unit runs the interpreter it was asked for, and may write to the AMD GPUs that are there."""
    (tmp_path / "devices" / "gpu").mkdir(parents=True)
    (tmp_path / "amdgpu").mkdir()
    (tmp_path / "amdgpu" / "0000:03:00.0").symlink_to(tmp_path / "devices" / "gpu")
    text = unit_text("/opt/negawatt/bin/python", tmp_path / "amdgpu")
    assert "ExecStart=/opt/negawatt/bin/python -P -m negawatt guard serve\n" in text
    assert f" -{tmp_path}/devices/gpu\n" in text
    assert "{" not in text


def test_systemd_is_told(tmp_path, monkeypatch):
    """The guard tells systemd when clients can connect, where systemd asked for it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        notify("READY=1")
        assert systemd.recv(99) == b"READY=1"


def test_a_signal_handler_may_release(tmp_path):
    """A signal that comes while the guard is asked may end the program: `release` does not wait for itself."""

    def answer_hello_and_take_only() -> None:
        connection, _ = listener.accept()
        with connection:
            requests = wire.lines(connection, wire.LINE_BYTES, 10.0)
            for answer in ({"version": 1, "silence_s": 60.0}, {"infos": {}, "found": {}}):
                next(requests)
                connection.sendall(wire.dumps({"ok": True, **answer}))
            for _ in requests:
                pass

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "guard.sock"))
        listener.listen()
        slow = threading.Thread(target=answer_hello_and_take_only)
        slow.start()
        hand = GuardHand.take(["a"], owner="x" * 999 + "\n", socket=tmp_path / "guard.sock")
        before = signal.signal(signal.SIGALRM, lambda *_: hand.release())
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        begun_s = time.monotonic()
        try:
            with pytest.raises(GuardLostError, match="does not answer"):
                hand.set("a", 1.0)
        finally:
            signal.signal(signal.SIGALRM, before)
        assert time.monotonic() - begun_s < 5.0
        slow.join()

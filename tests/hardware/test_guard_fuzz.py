"""The guard under a rain of messages that are nearly right, from a user whom it listens to and one whom it does not."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest
from guard_host import FOUND_W, LISTED, UNLISTED, GuardHost, heard

from negawatt.hardware.guard.client import GuardHand, guard_available

pytestmark = pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become the users that these tests are about"
)

# Listed for package 1 alone, and for no other value than the one it has: so no message at all, however well-formed,
# may change a limit, and yet taking and setting are reached.
POLICY = f"""
[[allow]]
users = [{LISTED}]
devices = ["cpu:1"]
knobs = ["power-limit"]
lowest = {FOUND_W}
"""
# Prints how many messages were answered. Several connections are written to in turn, in pieces.
FUZZ = """
rng, wanted, answered = random.Random(int(sys.argv[1])), COUNT, 0
HELLO = b'{"op": "hello", "version": 1}'
TAKE = json.dumps({"op": "take", "addresses": [zone], "owner": "fuzz"}).encode()
def set_(value):
    return json.dumps({"op": "set", "address": zone, "value": value}).encode()
SETS = [set_(125.0), set_(124.9), set_(0), set_(-1), set_(150), set_(1e300), set_(None)]
TALK = [HELLO, b'{"op": "list"}', b'{"op": "status"}', b'{"op": "ping"}', b'{"op": "release"}', *SETS]
OTHER = zone.replace("intel-rapl:1", "intel-rapl:0").encode()
ODD = [b"NaN", b"-Infinity", b"1e999", b"9" * 300, b"true", b"null", b"[]", b"{}", b'""', b"[" * 9000, b"\\\\ud800",
       b"\\x00", b"\\xff\\xfe", b"125.0", b"90", b"../..", OTHER, b'"op"', b"\\n", b"\\r", b"x" * 20000]
def mutated(line):
    line = bytearray(line)
    for _ in range(rng.randint(1, 3)):
        at, end = sorted((rng.randint(0, len(line)), rng.randint(0, len(line))))
        how = rng.randrange(7)
        if how == 0:
            line[at:at + 1] = bytes([rng.randrange(256)])
        elif how == 1:
            del line[at:min(end, at + 5)]
        elif how == 2:
            line[at:at] = rng.choice(ODD)
        elif how == 3:
            line[at:at] = line[at:end]
        elif how == 4:
            del line[at:]
        elif how == 5:
            line = line[:at] + rng.choice(TALK)[rng.randrange(9):]
        else:
            colon = line.rfind(b":") + 1
            line[colon:] = rng.choice(ODD) + b"}"
    return bytes(line)
def burst():
    if rng.random() < 0.003:
        lines = [HELLO, TAKE, *rng.choices(SETS, k=9), mutated(rng.choice(SETS))]
    elif rng.random() < 0.1:
        lines = [bytes(rng.randrange(256) for _ in range(rng.randrange(200)))]
    elif rng.random() < 0.1:
        lines = [mutated(HELLO)]
    else:
        lines = [HELLO, *rng.choices(TALK, k=rng.randrange(40)), mutated(rng.choice([*TALK, TAKE]))]
    return b"\\n".join(lines) + rng.choice([b"\\n", b"\\n", b"\\n", b""])
def send(talk, data):
    try:
        talk.sendall(data)
    except OSError:
        pass  # the guard has closed it: there is an answer
while answered < wanted:
    talks = []
    for _ in range(6):
        talk = socket.socket(socket.AF_UNIX)
        talk.settimeout(30)
        talk.connect(str(path))
        data = burst()
        cut = rng.randint(0, len(data))
        send(talk, data[:cut])
        talks.append((talk, data[cut:]))
    rng.shuffle(talks)
    for talk, rest in talks:
        send(talk, rest)
        if rng.random() < 0.05:
            talk.close()
            continue
        answers = b""
        try:
            talk.shutdown(socket.SHUT_WR)
            while chunk := talk.recv(65536):
                answers += chunk
        except (ConnectionResetError, OSError) as error:
            assert not isinstance(error, TimeoutError), "no answer"
        talk.close()
        for answer in answers.splitlines():
            assert isinstance(json.loads(answer)["ok"], bool)
            answered += 1
say(answered)
"""


@pytest.mark.parametrize(
    ("messages", "unlisted"),
    [pytest.param(2500, 100, id="fast"), pytest.param(95_000, 5000, id="all", marks=pytest.mark.slow)],
)
def test_no_message_crashes_the_guard_or_changes_a_limit(messages, unlisted):
    """Mutated, random and cut messages over interleaved connections: every limit stays, and the guard answers on."""
    home = Path(tempfile.mkdtemp(prefix="guard-"))
    host = GuardHost(home)
    host.policy.write_text(POLICY)
    seen: set[tuple[float, ...]] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            seen.add(tuple(host.limits_w()))

    try:
        with GuardHand.take([host.address(0)], owner="test", socket=host.socket) as hand:
            hand.set(host.address(0), 90.0)
            watcher = threading.Thread(target=watch)
            watcher.start()
            try:
                users = [
                    host.user(LISTED, FUZZ.replace("COUNT", str(messages)), 1),
                    host.user(UNLISTED, FUZZ.replace("COUNT", str(unlisted)), 1),
                ]
                answered = [int(heard(user) or -1) for user in users]
            finally:
                over.set()
                watcher.join()
            assert answered[0] >= messages
            assert answered[1] >= unlisted
            assert seen == {(90.0, FOUND_W, FOUND_W)}
            assert guard_available(host.socket) is None
            assert hand.set(host.address(0), 100.0) == 100.0
        assert set(host.limits_w()) == {FOUND_W}
        assert host.server.poll() is None
        assert "Traceback" not in (home / "stderr").read_text()
        assert '"event": "set", "result": "done"' in host.audit.read_text()  # some of it was understood
    finally:
        host.close()
        shutil.rmtree(home)

"""`negawatt run`: the command behaves as if it had been run alone, and its joules are kept."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import termios
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from negawatt.cli import main
from negawatt.core import registry
from negawatt.core.codec import from_json
from negawatt.core.errors import SensorError
from negawatt.core.reading import Reading, SensorInfo, Source
from negawatt.ledger.store import Ledger

ENTRY = [sys.executable, "-c", "import sys; from negawatt.cli import main; sys.exit(main())"]
RUN = [*ENTRY, "run", "--"]
SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2]

COUNT_SIGNALS = """
import signal, sys, time
seen = []
for number in (1, 2, 3, 10, 12, 15, 28):
    signal.signal(number, lambda number, frame: seen.append(number))
print("ready", flush=True)
until = time.monotonic() + 30
while time.monotonic() < until:
    time.sleep(0.02)
    if seen and until > time.monotonic() + 1:
        until = time.monotonic() + 0.2
print("seen", *seen, flush=True)
sys.exit(40 + len(seen))
"""


@pytest.fixture(autouse=True)
def ledger_path(tmp_path, monkeypatch):
    monkeypatch.setenv("NEGAWATT_LEDGER", str(tmp_path / "state" / "ledger.sqlite"))
    return tmp_path / "state" / "ledger.sqlite"


@pytest.fixture
def started():
    """Start a program and wait for its first line; one that a failed test leaves behind is killed."""
    with ExitStack() as stack:

        def start(argv, **options):
            options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **options}
            process = stack.enter_context(subprocess.Popen(argv, **options))
            stack.callback(process.kill)  # no effect on a process that was waited for
            assert process.stdout.readline() == "ready\n"
            return process

        yield start


def records(path):
    with Ledger.open(path) as ledger:
        return ledger.records(kind="run")


def run(*argv, **options):
    return subprocess.run([*RUN, *argv], capture_output=True, check=False, timeout=60, **options)


def test_stdout_and_stdin_pass_byte_for_byte(tmp_path):
    """A megabyte of random bytes goes through stdin and stdout unchanged."""
    data = os.urandom(1_000_000)
    ended = run("cat", input=data)
    assert ended.returncode == 0
    assert ended.stdout == data


def test_stderr_of_the_command_comes_first():
    """What the command writes to stderr is untouched; the summary follows it."""
    ended = run("sh", "-c", "printf 'one\\ntwo' >&2; sleep 0.1")
    assert ended.stdout == b""
    assert ended.stderr.startswith(b"one\ntwonegawatt: sh: ")


@pytest.mark.parametrize("code", [0, 1, 42, 255])
def test_the_exit_code_passes(code, ledger_path):
    """The command's exit code is negawatt's, and is recorded."""
    assert run("sh", "-c", f"exit {code}").returncode == code
    assert records(ledger_path)[0].body["exit_code"] == code


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSEGV", "SIGTERM", "SIGINT", "SIGABRT", "SIGPIPE"])
def test_death_by_signal_passes(name, ledger_path, tmp_path):
    """Whoever waits for negawatt sees the signal that killed the command; negawatt itself dumps no core."""
    number = signal.Signals[name]
    ended = run("sh", "-c", f"ulimit -c 0; kill -{number} $$", cwd=tmp_path)
    assert ended.returncode == -number
    assert f"killed by {name}".encode() in ended.stderr
    assert (records(ledger_path)[0].body["signal"], records(ledger_path)[0].body["exit_code"]) == (name, None)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]


@pytest.mark.parametrize("signum", [*SIGNALS, signal.SIGWINCH])
def test_signals_are_handed_on_once(started, signum):
    """A signal sent to negawatt reaches the command's handler exactly once, and the handler's exit code passes."""
    process = started([*RUN, sys.executable, "-c", COUNT_SIGNALS])
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert out == f"seen {int(signum)}\n"
    assert process.returncode == 41
    assert "exit code 41" in err


@pytest.mark.parametrize("signum", SIGNALS)
def test_signals_without_a_handler_kill_both(started, signum):
    """A signal that the command does not handle ends it and negawatt alike, after the summary."""
    process = started([*RUN, "sh", "-c", "echo ready; exec sleep 30"])
    process.send_signal(signum)
    _, err = process.communicate(timeout=30)
    assert process.returncode == -signum
    assert f"killed by {signum.name}" in err


def test_a_stopped_command_is_waited_for(started):
    """A command that is stopped and continued goes on to its own end."""
    process = started([*RUN, "sh", "-c", "echo ready; echo $$; kill -STOP $$; exit 7"])
    child = int(process.stdout.readline())
    while " T " not in Path(f"/proc/{child}/stat").read_text():
        time.sleep(0.01)
    assert process.poll() is None
    os.kill(child, signal.SIGCONT)
    process.communicate(timeout=30)
    assert process.returncode == 7


def test_a_background_process_does_not_hold_it_up(tmp_path):
    """A process that the command leaves behind is not waited for."""
    out = tmp_path / "out"
    with out.open("w") as file:
        began_s = time.monotonic()
        ended = subprocess.run([*RUN, "sh", "-c", "sleep 30 & echo $!; exit 5"], stdout=file, stderr=file, check=False)
        took_s = time.monotonic() - began_s
    os.kill(int(out.read_text().split()[0]), signal.SIGKILL)
    assert ended.returncode == 5
    assert took_s < 15


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize("ignored", [(), (signal.SIGHUP, signal.SIGINT), (signal.SIGCHLD,)])
def test_the_command_inherits_the_same_state(ignored):
    """Signal mask, ignored signals, process group, environment and open files are those of a command run alone."""
    signals = "grep -E '^Sig(Blk|Ign|Cgt)' /proc/self/status"
    # glibc sets its own two internal signals as it likes; nobody can send or handle them.
    internal = 1 << 31 | 1 << 32

    def shown(line, group):
        if line.startswith("Sig"):
            name, value = line.split()
            return f"{name} {int(value, 16) & ~internal:x}"
        return "GROUP" if line == str(group) else line

    script = ["sh", "-c", f"{signals}; cut -d' ' -f5 /proc/self/stat; ls /proc/self/fd; env | grep -v ^_= | sort"]

    def prepare():
        for signum in ignored:
            signal.signal(signum, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})

    def lines(argv):
        process = subprocess.Popen(
            argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, process_group=0,
            preexec_fn=prepare,  # noqa: PLW1509 -- no threads here
        )  # fmt: skip
        out, _ = process.communicate(timeout=60)
        assert process.returncode == 0
        return [shown(line, process.pid) for line in out.splitlines()]

    alone = lines(script)
    assert "GROUP" in alone
    assert lines([*RUN, *script]) == alone


@pytest.mark.parametrize(("argv", "code"), [(["no-such-command"], 127), (["/etc/passwd"], 126), ([""], 127)])
def test_a_command_that_cannot_be_run_exits_as_in_a_shell(argv, code, ledger_path):
    """Not found is 127, not executable 126, with three parts on stderr and no record."""
    ended = run(*argv)
    assert ended.returncode == code
    assert b"why it matters: nothing was run" in ended.stderr
    assert b"what to do: " in ended.stderr
    assert not ledger_path.exists()


def test_options_behind_the_command_are_its_own():
    """`--name` behind the command's name belongs to the command, with or without `--`."""
    for words in (["--"], []):
        ended = subprocess.run([*ENTRY, "run", *words, "echo", "--name", "x"], capture_output=True, check=True)
        assert ended.stdout == b"--name x\n"


def test_the_run_is_recorded(tmp_path, ledger_path):
    """Ledger and --record file hold the same: argv, name, readings with source and error, time and host."""
    file = tmp_path / "run.json"
    options = ["--name", "nap", "--sensor", "cpu-model", "--record", str(file), "--"]
    ended = subprocess.run([*ENTRY, "run", *options, "sleep", "0.3"], capture_output=True, text=True, check=True)
    (record,) = records(ledger_path)
    body = record.body
    assert json.loads(file.read_text()) == body
    assert (body["name"], body["argv"], body["exit_code"]) == ("nap", ["sleep", "0.3"], 0)
    (reading,) = (from_json(Reading, data) for data in body["readings"])
    assert (reading.scope, reading.source, reading.sensor) == ("cpu", Source.ESTIMATED, "cpu-model")
    assert 0.3 <= body["time_s"] < 10
    assert record.energy_j == body["energy_j"] == reading.energy_j > 0
    assert body["power_w"] == pytest.approx(reading.energy_j / body["time_s"])
    assert (record.workload, record.source) == ("nap", "estimated")
    assert {left["what"] for left in body["not_measured"]} >= {"rapl", "nvidia"}
    assert "nap: " in ended.stderr
    assert " ± " in ended.stderr
    assert "cpu: " in ended.stderr
    assert re.search(r"not measured: .*\brapl\b.*`negawatt doctor` says why", ended.stderr)
    assert "negawatt ledger show 1" in ended.stderr


def test_bytes_that_are_no_text_pass(ledger_path):
    """An argument that is not valid in any encoding reaches the command unchanged and does not break the record."""
    ended = run("printf", "%s", b"a\xff\xfe")
    assert ended.stdout == b"a\xff\xfe"
    assert len(records(ledger_path)) == 1


def test_a_ledger_that_cannot_be_written_loses_nothing(tmp_path, monkeypatch):
    """Without a ledger, the number is still printed and written to --record, and the exit code is the command's."""
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("NEGAWATT_LEDGER", str(tmp_path / "file" / "ledger.sqlite"))
    record = tmp_path / "run.json"
    ended = subprocess.run(
        [*ENTRY, "run", "--record", str(record), "--", "sh", "-c", "echo done; exit 9"],
        capture_output=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (9, b"done\n")
    assert b"negawatt: sh: " in ended.stderr
    assert b"cannot write to the spool" in ended.stderr
    assert b"what to do: make room and the folder writable" in ended.stderr
    assert json.loads(record.read_text())["energy_j"] >= 0


def test_a_record_file_in_no_folder_is_refused_first(tmp_path):
    """A --record file that could never be written is refused before anything is run."""
    record = str(tmp_path / "none" / "run.json")
    ended = subprocess.run([*ENTRY, "run", "--record", record, "--", "echo", "hi"], capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, b"")
    assert b"nothing was run" in ended.stderr


def test_nobody_reading_stderr_keeps_the_exit_code(ledger_path):
    """A full or closed stderr costs neither the record nor the exit code."""
    for redirection in ("2>/dev/full", "2>&-", "2> >(:)"):
        ended = subprocess.run(
            ["bash", "-c", f'"$@" {redirection}', "bash", *RUN, "sh", "-c", "sleep 0.1; exit 6"], check=False
        )
        assert ended.returncode == 6
    assert len(records(ledger_path)) == 3


def test_no_meter_runs_nothing(tmp_path):
    """A sensor that is not here exits with 3, and the command is not run."""
    mark = tmp_path / "mark"
    ended = subprocess.run(
        [*ENTRY, "run", "--sensor", "nvidia", "--", "touch", str(mark)], capture_output=True, check=False
    )
    assert ended.returncode == 3
    assert b"what to do" in ended.stderr
    assert not mark.exists()


class FakeSensor:
    """A counter that gives the board and the window one snapshot each, and then vanishes; or is not there."""

    info = SensorInfo(name="fake", source=Source.COUNTER, measures="nothing", evidence="a test")
    scope = "cpu:0/package"
    period_s = None

    def __init__(self, reason=None):
        self.reason = reason
        self.snapshots = 0

    def available(self, host):
        return self.reason

    def open(self):
        return [self]

    def snapshot(self):
        self.snapshots += 1
        if self.snapshots > 2:
            raise SensorError("the counter vanished", "no joules", "plug it in")
        return 0

    def reading(self, start, end):
        raise AssertionError("never reached")


@pytest.fixture
def hardware(monkeypatch):
    """Replace the sensors of this machine by a fake."""

    def install(sensor):
        monkeypatch.setattr(registry, "sensors", lambda: registry.Found(members={"fake": sensor}, broken=()))

    return install


def test_without_any_sensor_nothing_is_run(hardware, tmp_path, capfd):
    """Where no sensor is available, the exit code is 3 and the command is not started."""
    hardware(FakeSensor(reason="no counter; type `modprobe counter`"))
    assert main(["run", "--", "touch", str(tmp_path / "mark")]) == 3
    assert "modprobe counter" in capfd.readouterr().err
    assert not (tmp_path / "mark").exists()


def test_a_sensor_that_fails_on_the_way_keeps_the_exit_code(hardware, capfd, ledger_path):
    """The command's exit code stands; that its energy is unknown, and why, is printed and recorded."""
    hardware(FakeSensor())
    with pytest.raises(SystemExit, match="4"):
        main(["run", "--", "sh", "-c", "exit 4"])
    assert "energy unknown, exit code 4" in capfd.readouterr().err
    (record,) = records(ledger_path)
    assert (record.energy_j, record.source, record.body["readings"]) == (None, "", [])
    assert "the counter vanished" in record.body["fault"]


def test_a_signal_before_the_start_prevents_it(tmp_path):
    """A signal that arrives while sensors are opened ends negawatt, and the command is never started."""
    code = (
        "import os, signal, sys\n"
        "from negawatt.execute.passthrough import held_signals, run_child\n"
        "with held_signals() as mask:\n"
        "    os.kill(os.getpid(), signal.SIGTERM)\n"
        "    run_child(['touch', sys.argv[1]], mask)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path / "mark")], check=False)
    assert ended.returncode == -signal.SIGTERM
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signals_are_handed_on_without_sigwaitinfo(started, signum):
    """Where the system does not tell who sent a signal (macOS), signals from other processes are handed on as well."""
    code = "import signal; del signal.sigwaitinfo; " + ENTRY[2]
    argv = [sys.executable, "-c", code, "run", "--", sys.executable, "-c", COUNT_SIGNALS]
    process = started(argv, stderr=subprocess.DEVNULL, start_new_session=True)
    process.send_signal(signum)
    assert process.communicate(timeout=30)[0] == f"seen {int(signum)}\n"
    assert process.returncode == 41


TAKE_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


class Terminal:
    """A pseudo-terminal with a program in its foreground."""

    def __init__(self, argv):
        self.master, slave = os.openpty()
        command = [sys.executable, "-c", TAKE_TERMINAL, *argv]
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True)
        os.close(slave)
        self.text = ""

    def type(self, key):
        os.write(self.master, key)

    def wait_for(self, word):
        """Read until the terminal shows a word."""
        deadline_s = time.monotonic() + 30
        while word not in self.text:
            assert time.monotonic() < deadline_s, self.text
            self.text += os.read(self.master, 4096).decode()

    def close(self):
        code = self.process.wait(30)
        os.close(self.master)
        return code


@pytest.mark.parametrize("entry", [ENTRY[2], "import signal; del signal.sigwaitinfo; " + ENTRY[2]])
@pytest.mark.parametrize(("key", "signum"), [(b"\x03", signal.SIGINT), (b"\x1c", signal.SIGQUIT)])
def test_a_key_of_the_terminal_reaches_the_command_once(entry, key, signum):
    """Ctrl-C and Ctrl-backslash at a terminal give the command exactly one signal; its exit code passes."""
    command = [sys.executable, "-c", COUNT_SIGNALS]
    terminal = Terminal([sys.executable, "-c", entry, "run", "--", *command])
    terminal.wait_for("ready")
    terminal.type(key)
    terminal.wait_for("ledger show")
    assert f"seen {int(signum)}\r\n" in terminal.text
    assert terminal.close() == 41


def test_resizing_the_terminal_reaches_the_command_once():
    """A new window size gives the command exactly one SIGWINCH."""
    terminal = Terminal([*RUN, sys.executable, "-c", COUNT_SIGNALS])
    terminal.wait_for("ready")
    fcntl.ioctl(terminal.master, termios.TIOCSWINSZ, b"\x30\x00\x60\x00\x00\x00\x00\x00")
    terminal.wait_for("ledger show")
    assert "seen 28\r\n" in terminal.text
    assert terminal.close() == 41


def test_hanging_up_the_terminal_ends_the_command(ledger_path):
    """When the terminal goes away, the command gets SIGHUP, and the run is still recorded."""
    terminal = Terminal([*RUN, "sh", "-c", "echo ready; exec sleep 30"])
    terminal.wait_for("ready")
    os.close(terminal.master)
    assert terminal.process.wait(30) == -signal.SIGHUP
    assert [record.body["signal"] for record in records(ledger_path)] == ["SIGHUP"]


SHELL = """
import os, signal, subprocess, sys
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
job = subprocess.Popen(sys.argv[1:], process_group=0)
os.tcsetpgrp(0, job.pid)
_, status = os.waitpid(job.pid, os.WUNTRACED)
os.tcsetpgrp(0, os.getpgrp())
print("stopped" if os.WIFSTOPPED(status) else "ended", flush=True)
os.tcsetpgrp(0, job.pid)
os.kill(-job.pid, signal.SIGCONT)
_, status = os.waitpid(job.pid, 0)
os.tcsetpgrp(0, os.getpgrp())
print("code", os.waitstatus_to_exitcode(status), flush=True)
"""


def test_ctrl_z_and_fg_work():
    """Ctrl-Z in a shell with job control stops command and negawatt; continued, both go on to the command's end."""
    terminal = Terminal([sys.executable, "-c", SHELL, *RUN, "sh", "-c", "echo ready; sleep 0.5; exit 8"])
    terminal.wait_for("ready")
    terminal.type(b"\x1a")
    terminal.wait_for("stopped")
    terminal.wait_for("code 8")
    assert terminal.close() == 0

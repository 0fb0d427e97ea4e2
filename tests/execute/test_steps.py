"""The feed of steps, with real processes, sockets and files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from negawatt.execute import steps
from negawatt.execute.steps import StepFeed, _Ranks

STAND_IN = """
hooks = []
def register_optimizer_step_post_hook(hook):
    hooks.append(hook)
def step():
    for hook in hooks:
        hook(None, (), {})
"""
"""What of torch.optim.optimizer the hook touches: importing the real one takes seconds."""

RANK = """
import os, socket, sys
telling = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
telling.connect(os.environ["NEGAWATT_STEPS"])
for line in sys.stdin:
    telling.send(b"%d %d" % (os.getpid(), int(line)))
    print(flush=True)
"""


class Rank:
    """A process that tells its steps when it is asked to."""

    def __init__(self, feed: StepFeed) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-S", "-c", RANK],
            env=feed.environ,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        )

    def tell(self, count: int) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(f"{count}\n")
        self.process.stdout.readline()

    def end(self) -> None:
        self.process.communicate()


@contextmanager
def ranks(feed: StepFeed, count: int = 2) -> Iterator[list[Rank]]:
    started = [Rank(feed) for _ in range(count)]
    try:
        yield started
    finally:
        for rank in started:
            rank.process.communicate() if rank.process.poll() is None else None


def wait_for(what: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 10
    while not what() and time.monotonic() < deadline_s:
        time.sleep(0.005)
    assert what()


@pytest.fixture
def torch(tmp_path: Path) -> dict[str, str]:
    """An environment in which `import torch` finds the stand-in."""
    folder = tmp_path / "site" / "torch" / "optim"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text(
        "def _disable_dynamo(function):\n"
        "    def inner(*args): return function(*args)\n"
        "    inner.disabled = True\n"
        "    return inner\n"
        "from torch import optim\n"
    )
    (folder / "__init__.py").write_text("from torch.optim import optimizer\n")
    (folder / "optimizer.py").write_text(STAND_IN)
    return {**os.environ, "PYTHONPATH": str(tmp_path / "site")}


def run(feed: StepFeed, program: str, *options: str) -> None:
    argv = [sys.executable, *options, "-c", program]
    done = subprocess.run(argv, env=feed.environ, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")


STEPS = "import torch\nfor _ in range(5): torch.optim.optimizer.step()"


def long_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / ("long" * 30)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))


@pytest.mark.parametrize("way", ["as it is", "long TMPDIR", "abstract name"])
def test_optimizers_are_heard(way: str, torch: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program's optimizer steps arrive over any kind of socket, however long $TMPDIR is; nothing is left behind."""
    if way != "as it is":
        long_tmpdir(tmp_path, monkeypatch)
    if way == "abstract name":
        if sys.platform != "linux":
            pytest.skip("abstract names are Linux's")
        monkeypatch.setattr(steps, "_SHORT", ())
    told: list[float] = []
    with StepFeed(told.append, torch) as feed:
        address = feed.environ["NEGAWATT_STEPS"]
        assert address.startswith("@") == (way == "abstract name")
        run(feed, STEPS, "-X", "dev", "-W", "error")
        wait_for(lambda: told[-1:] == [5.0])
    assert (feed.unit, feed.fault) == ("optimizer step", "")
    assert not Path(address).exists()
    assert not Path(feed.environ["NEGAWATT_PROGRESS"]).parent.exists()


def test_a_command_runs_where_nothing_can_be_listened_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any place for a socket or file the environment is left as it was, and the fault is named."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    monkeypatch.setattr(steps, "_SHORT", ())
    given = {"PATH": os.environ["PATH"]}
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))  # no socket either
    try:
        feed = StepFeed(lambda _: None, given)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with feed:
        time.sleep(0.05)
    assert feed.environ == given
    assert feed.unit == ""
    assert "missing" in feed.fault


def test_without_sockets_the_progress_file_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """A sandbox that forbids sockets keeps only the optimizers from being heard, which is named."""
    monkeypatch.delattr("socket.AF_UNIX")
    told: list[float] = []
    with StepFeed(told.append, {}) as feed:
        Path(feed.environ["NEGAWATT_PROGRESS"]).write_text('{"work": 8}\n')
        wait_for(lambda: told == [1.0])
    assert "NEGAWATT_STEPS" not in feed.environ
    assert "no such sockets" in feed.fault


def test_ranks_that_step_together_count_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With steps longer than a leader may be silent and another rank first each time, 5 steps of two ranks are 5."""
    monkeypatch.setattr(_Ranks, "_SILENT_S", 0.25)
    monkeypatch.setattr(_Ranks, "_SILENT_GAPS", 0)
    told: list[float] = [0.0]
    with StepFeed(told.append, {}) as feed, ranks(feed) as both:
        for count in range(1, 6):
            both.reverse()
            for rank in both:
                rank.tell(count)
            time.sleep(0.3)
    assert told == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_a_rank_that_takes_over_brings_only_its_own_new_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the leader falls silent after 7 steps of both, the other's eighth step is one more, not eight."""
    monkeypatch.setattr(_Ranks, "_SILENT_S", 60.0)
    told: list[float] = [0.0]
    with StepFeed(told.append, {}) as feed, ranks(feed) as both:
        for count in range(1, 8):
            for rank in both:
                rank.tell(count)
        wait_for(lambda: told[-1] == 7.0)
        time.sleep(0.05)
        monkeypatch.setattr(_Ranks, "_SILENT_S", 0.0)
        monkeypatch.setattr(_Ranks, "_SILENT_GAPS", 0)
        both[1].tell(8)
        wait_for(lambda: told[-1] == 8.0)


def test_a_pause_of_the_feed_is_no_silence_of_the_leader(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a callback took longer than a leader may be silent, the leader still leads."""
    monkeypatch.setattr(_Ranks, "_SILENT_S", 0.3)
    told: list[float] = [0.0]

    def slow(count: float) -> None:
        time.sleep(0.5 if count == 1.0 else 0.0)
        told.append(count)

    with StepFeed(slow, {}) as feed, ranks(feed) as both:
        both[0].tell(1)
        time.sleep(0.1)
        both[1].tell(1)  # waits for the callback to end
        for count in (2, 3):
            both[0].tell(count)
            both[1].tell(count)
        wait_for(lambda: told[-1] >= 3.0)
        time.sleep(0.1)
    assert told[-1] == 3.0


def test_slow_steps_are_no_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """What counts as silence grows with the leader's longest step."""
    monkeypatch.setattr(_Ranks, "_SILENT_S", 0.05)
    told: list[float] = [0.0]
    with StepFeed(told.append, {}) as feed, ranks(feed) as both:
        both[0].tell(1)
        time.sleep(0.2)
        both[0].tell(2)
        wait_for(lambda: told[-1] == 2.0)
        time.sleep(0.3)
        both[1].tell(40)
        time.sleep(0.1)
    assert told[-1] == 2.0


def test_a_leader_that_ended_gives_way_at_once() -> None:
    """Two trainings one after the other are both counted, without a wait between them."""
    told: list[float] = [0.0]
    with StepFeed(told.append, {}) as feed, ranks(feed) as (first, second):
        first.tell(4)
        wait_for(lambda: told[-1] == 4.0)
        first.end()
        second.tell(1)
        second.tell(2)
        wait_for(lambda: told[-1] == 6.0)


@pytest.mark.parametrize("work", [0.001, 1, 3000])
def test_a_step_is_the_work_of_the_first_line(work: float) -> None:
    """However large a line's unit is, it is one step, and a line of twice the work is two; others are ignored."""
    told: list[float] = [0.0]
    with StepFeed(told.append, {}) as feed:
        path = Path(feed.environ["NEGAWATT_PROGRESS"])
        bad = ["{}", "[]", "nonsense", '{"work": -1}', '{"work": true}', '{"work": NaN}', f'{{"work": 1{"0" * 400}}}']
        path.write_text("\n".join([*bad, "[" * 100_000]) + "\n")
        with path.open("a") as file:
            file.write(f'{{"work": {work}}}\n{{"work": {2 * work}}}\n{{"work": {work}')
            file.flush()
            wait_for(lambda: told[-1] == pytest.approx(3.0))
            file.write("}\n")
        wait_for(lambda: told[-1] == pytest.approx(4.0))
    assert (feed.unit, feed.fault) == ("unit of work", "")


def test_a_file_written_anew_is_read_from_its_beginning(tmp_path: Path) -> None:
    """A program that truncates its progress file goes on being counted; what was there before it ran is not counted."""
    path = tmp_path / "progress"
    path.write_text('{"work": 5}\n' * 10)
    told: list[float] = [0.0]
    with StepFeed(told.append, {"NEGAWATT_PROGRESS": str(path)}):
        with path.open("a") as file:
            file.write('{"work": 5}\n')
        wait_for(lambda: told[-1] == 1.0)
        path.write_text('{"work": 5}\n{"work": 5}\n')
        wait_for(lambda: told[-1] == 3.0)


def test_a_callback_that_fails_is_remembered_and_the_command_is_not_held_up() -> None:
    """After an error the thread goes on draining the socket, does not call again, and names the fault."""
    calls: list[float] = []

    def failing(count: float) -> None:
        calls.append(count)
        raise RuntimeError("no more")

    with StepFeed(failing, {}) as feed, ranks(feed, 1) as (rank,):
        for count in range(1, 50):  # more than a socket holds unread
            rank.tell(count)
        wait_for(lambda: bool(feed.fault))
    assert feed.fault == "steps were not followed: RuntimeError: no more"
    assert calls == [1.0]


def test_the_hook_is_not_looked_into_by_compilers_and_is_there_once(torch: dict[str, str]) -> None:
    """It is registered once, as not to be compiled, also when others look for the module in other threads before."""
    program = """
import importlib.util, sys, threading, torch.optim
class Other:  # like a tracing tool that wraps loaders
    busy = False
    def find_spec(self, name, path=None, target=None):
        if self.busy or not name.endswith("optimizer"): return None
        self.busy = True
        try: return importlib.util.find_spec(name)
        finally: self.busy = False
for name in [name for name in sys.modules if name.startswith("torch")]: del sys.modules[name]
sys.meta_path.append(Other())
sys.meta_path.insert(0, Other())
threads = [threading.Thread(target=importlib.import_module, args=["torch.optim.optimizer"]) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
(hook,) = sys.modules["torch.optim.optimizer"].hooks
assert hook.disabled
"""
    with StepFeed(lambda _: None, torch) as feed:
        run(feed, program)


@pytest.mark.slow
def test_a_compiled_optimizer_is_counted_without_a_warning() -> None:
    """torch.compile of an optimizer's step says nothing of the hook, and its steps are counted."""
    pytest.importorskip("torch")
    program = """
import warnings, torch
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
step = torch.compile(optimizer.step, backend="eager")
for _ in range(3):
    model(torch.ones(2, 4)).sum().backward()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Dynamo")
        step()
"""
    told: list[float] = []
    with StepFeed(told.append, os.environ) as feed:
        argv = [sys.executable, "-c", program]
        done = subprocess.run(argv, env=feed.environ, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        wait_for(lambda: told[-1:] == [3.0])

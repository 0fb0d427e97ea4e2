"""Steps: how far a command has come, from the command itself while it runs.

Two ways, of which the first that says something counts: a PyTorch program's optimizer steps, counted by a hook that
needs no change of it; and lines of JSON with the `work` done, appended to the file named in $NEGAWATT_PROGRESS.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, final

_HOOK = Path(__file__).with_name("hook")
_POLL_S = 0.02
_SILENT_S = 5.0
"""A process that made no step for so long gives way to another one."""


@final
class StepFeed:
    """Listens while a command runs, in a thread that calls `step` with all steps done so far.

    Args:
        step: called from the thread at every step, or with several at once when they come fast.
        environ: the environment that the command is to have besides.
    """

    def __init__(self, step: Callable[[float], None], environ: Mapping[str, str]) -> None:
        self._step = step
        self._folder = Path(tempfile.mkdtemp(prefix="negawatt-steps-"))
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self._folder / "steps"))
        self._socket.settimeout(_POLL_S)
        # A command of `negawatt plan` has a file already, which its reader goes on reading.
        self._progress = Path(environ.get("NEGAWATT_PROGRESS") or self._folder / "progress")
        self._read = self._progress.stat().st_size if self._progress.exists() else 0
        self._done = 0.0
        self._leader = b""
        self._leader_steps = 0
        self._leader_s = -math.inf
        self.unit = ""
        """What is counted: "optimizer step", "unit of work", or "" as long as nothing was told."""
        path = environ.get("PYTHONPATH")
        self.environ = {
            **environ,
            "NEGAWATT_STEPS": str(self._folder / "steps"),
            "NEGAWATT_PROGRESS": str(self._progress),
            "PYTHONPATH": f"{_HOOK}{os.pathsep}{path}" if path else str(_HOOK),
        }
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="negawatt-steps", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()
        self._socket.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _listen(self) -> None:
        while not self._ended.is_set():
            told = self._from_optimizers()
            if not told and self.unit != "optimizer step":
                told = self._from_file()
            if told:
                self._step(self._done)

    def _from_optimizers(self) -> bool:
        """Wait a moment for optimizers' steps. Ranks of a job step together: one process is listened to at a time."""
        try:
            message = self._socket.recv(64)
        except TimeoutError:
            return False
        pid, _, steps = message.partition(b" ")
        if self.unit == "unit of work" or not steps.isdigit():
            return False
        self.unit = "optimizer step"
        now_s = time.monotonic()
        if pid != self._leader and now_s - self._leader_s < _SILENT_S:
            return False
        before = self._leader_steps if pid == self._leader else 0
        self._done += max(0, int(steps) - before)
        self._leader, self._leader_steps, self._leader_s = pid, int(steps), now_s
        return True

    def _from_file(self) -> bool:
        """Look for whole new lines in the progress file; a line that is no progress is not counted."""
        with contextlib.suppress(OSError), self._progress.open("rb") as file:
            file.seek(self._read)
            lines, newline, _ = file.read().rpartition(b"\n")
            self._read += len(lines) + len(newline)
            work = sum(map(_work, lines.splitlines()))
            if work > 0:
                self._done += work
                self.unit = "unit of work"
                return True
        return False


def _work(line: bytes) -> float:
    """The work that a line of progress tells; 0 if it tells none."""
    try:
        work = json.loads(line)["work"]
    except (ValueError, TypeError, KeyError):
        return 0.0
    good = isinstance(work, int | float) and not isinstance(work, bool) and 0 < work < float("inf")
    return float(work) if good else 0.0

"""Steps: how far a command has come, from the command itself while it runs.

Two ways, of which the first that says something counts: a PyTorch program's optimizer steps, counted by a hook that
needs no change of it; and lines of JSON with the `work` done, appended to the file named in $NEGAWATT_PROGRESS.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import secrets
import shutil
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self, final

from negawatt.hardware.processes import born

_HOOK = Path(__file__).with_name("hook")
_POLL_S = 0.02
_SHORT = ("/tmp", "/dev/shm")  # noqa: S108 -- folders are made in it by mkdtemp, for their user alone
"""Where a socket's path fits into the 108 bytes (macOS: 104) that it may have, if $TMPDIR is longer."""


@final
class StepFeed:
    """Listens while a command runs, in a thread that calls `step` with all steps done so far.

    It never raises: what could not be listened to, or went wrong on the way, is in `fault`, and the command runs.

    Args:
        step: called from the thread at every step, or with several at once when they come fast. With the progress
            file, a step is the work that its first line tells. After it raised it is not called again.
        environ: the environment that the command is to have besides.
    """

    def __init__(self, step: Callable[[float], None], environ: Mapping[str, str]) -> None:
        self._step: Callable[[float], None] | None = step
        self.unit = ""
        """What is counted: "optimizer step", "unit of work", or "" as long as nothing was told."""
        self.fault = ""
        """Why steps are not followed, or not in every way; "" if nothing is wrong."""
        self.environ = dict(environ)
        self._kept = contextlib.ExitStack()
        self._ranks = _Ranks()
        self._socket: socket.socket | None = None
        self._file: _ProgressFile | None = None
        folder = self._listen_somewhere()
        if progress := environ.get("NEGAWATT_PROGRESS") or (folder and str(folder / "progress")):
            # A command of `negawatt plan` has a file already, which its reader goes on reading.
            self._file = _ProgressFile(Path(progress))
            self.environ["NEGAWATT_PROGRESS"] = progress
        self._done = 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._listen, name="negawatt-steps", daemon=True)

    def __enter__(self) -> Self:
        try:
            self._thread.start()
        except RuntimeError as error:  # no more threads are allowed
            self._blame(error)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join()
        self._kept.close()

    def _listen_somewhere(self) -> Path | None:
        """Open the socket and tell the command of it. Returns a folder of our own, None if there can be none."""
        folder, address = None, ""
        for base in (None, *_SHORT):
            try:
                folder = Path(tempfile.mkdtemp(prefix="negawatt-steps-", dir=base))
                self._kept.callback(shutil.rmtree, folder, ignore_errors=True)
                address = str(folder / "steps")
                self._socket = self._kept.enter_context(_bound(address))
                break
            except OSError as error:
                failure = error
        else:
            # A name without a file, where the kernel has such; written with "@" since no environment can hold its NUL.
            address = f"@negawatt-steps-{secrets.token_hex(8)}"
            try:
                self._socket = self._kept.enter_context(_bound(address))
            except OSError:
                self._blame(failure)
        if self._socket is not None:
            path = self.environ.get("PYTHONPATH")
            self.environ["NEGAWATT_STEPS"] = address
            self.environ["PYTHONPATH"] = f"{_HOOK}{os.pathsep}{path}" if path else str(_HOOK)
        return folder

    def _listen(self) -> None:
        while not self._ended.is_set():
            try:
                self._hear()
            except Exception as error:  # noqa: BLE001 -- kept in `fault`; who ends the feed tells the user
                self._blame(error)
                self._ended.wait(_POLL_S)

    def _hear(self) -> None:
        """Wait a moment for news, and pass it on."""
        steps: float = self._from_optimizers()
        if not steps and self.unit != "optimizer step" and self._file:
            steps = self._file.news()
            self.unit = "unit of work" if steps else self.unit
        self._done += steps
        if steps and self._step:
            step, self._step = self._step, None
            step(self._done)
            self._step = step
            self._ranks.pause_ended()

    def _from_optimizers(self) -> int:
        if self._socket is None:
            self._ended.wait(_POLL_S)
            return 0
        try:
            pid, _, steps = self._socket.recv(64).partition(b" ")
        except TimeoutError:
            return 0
        if self.unit == "unit of work" or not (pid.isdigit() and steps.isdigit()):
            return 0
        self.unit = "optimizer step"
        return self._ranks.news(int(pid), int(steps))

    def _blame(self, error: Exception) -> None:
        self.fault = self.fault or f"steps were not followed: {type(error).__name__}: {error}"


class _Ranks:
    """Processes that tell their steps. Those of one job step together, so only one of them, the leader, is counted."""

    _SILENT_S = 5.0
    """A leader that made no step for so long gives way to another process."""
    _SILENT_GAPS = 10
    """Or for so many times its longest step, if that is longer: where all steps are slow, silence means nothing."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._born: dict[int, float | None] = {}
        self._leader = 0
        self._heard_s = -math.inf
        self._gap_s = 0.0

    def news(self, pid: int, steps: int) -> int:
        """Steps that count, when a process tells all those it made."""
        more = max(0, steps - self._counts.get(pid, 0))
        self._counts[pid] = steps  # of every process: one that takes over brings nothing that was counted already
        self._born.setdefault(pid, born(pid))
        now_s = time.monotonic()
        if pid == self._leader:
            self._gap_s = max(self._gap_s, now_s - self._heard_s)
        elif self._leader and not self._gone() and now_s - self._heard_s < self._patience_s():
            return 0
        self._leader, self._heard_s = pid, now_s
        return more

    def pause_ended(self) -> None:
        """Nobody was listened to until now, so nobody was silent."""
        self._heard_s = time.monotonic()

    def _patience_s(self) -> float:
        return max(self._SILENT_S, self._SILENT_GAPS * self._gap_s)

    def _gone(self) -> bool:
        """Whether the leader has ended. One whose birth is unknown may have its pid from another PID namespace."""
        birth = self._born[self._leader]
        return birth is not None and born(self._leader) != birth


class _ProgressFile:
    """Lines of JSON with the `work` done, appended by the command."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read = 0
        with contextlib.suppress(OSError):
            self._read = path.stat().st_size
        self._first = 0.0

    def news(self) -> float:
        """The work that whole new lines tell, in that of the first line; a line that is no progress counts nothing."""
        with contextlib.suppress(OSError):
            if not self._path.is_file():  # opening a pipe would wait for its writer
                return 0.0
            with self._path.open("rb") as file:
                if os.fstat(file.fileno()).st_size < self._read:  # written anew
                    self._read = 0
                file.seek(self._read)
                lines, newline, _ = file.read().rpartition(b"\n")
            self._read += len(lines) + len(newline)
            works = [work for work in map(_work, lines.splitlines()) if work > 0]
            if works:
                self._first = self._first or works[0]
                steps = math.fsum(work / self._first for work in works)
                return steps if math.isfinite(steps) else 0.0
        return 0.0


def _bound(address: str) -> socket.socket:
    """A socket that listens at a path or, on Linux, at an abstract name ("@..."). Raises OSError."""
    if not hasattr(socket, "AF_UNIX") or (address.startswith("@") and sys.platform != "linux"):
        raise OSError("no such sockets on this system")
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        listening.bind("\0" + address[1:] if address.startswith("@") else address)
        listening.settimeout(_POLL_S)
    except BaseException:
        listening.close()
        raise
    return listening


def _work(line: bytes) -> float:
    """The work that a line of progress tells; 0 if it tells none."""
    try:
        work = json.loads(line)["work"]
        good = isinstance(work, int | float) and not isinstance(work, bool) and 0 < work < math.inf
        return float(work) if good else 0.0
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):
        return 0.0

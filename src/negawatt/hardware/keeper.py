"""Keeper: the holder's end of a watchdog, which it starts, asks, and gives signs of life."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, final

from negawatt.core import errors
from negawatt.core.errors import HardwareError, HeldError, NegawattError
from negawatt.hardware.watchdog import BEAT, MESSAGE_BYTES

BEAT_S = 1.0
"""How often the holder gives a sign of life [s]."""
START_S = 60.0
"""How long a watchdog may take to start on a busy machine [s]; on an idle one it takes a tenth of a second."""
ANSWER_S = 30.0
"""How long a device may take to be set [s]."""
END_S = 5.0
"""How long a watchdog that was killed may take to end [s]."""


class GoneError(HardwareError):
    """The watchdog ended without a word: it was killed."""


class RevokedError(HeldError):
    """The watchdog has put everything back, since the holder gave no sign of life."""


@final
class Keeper:
    """A watchdog that runs.

    Args:
        home: folder of the records, where those of the lease are already.
        locks: of its devices, as open files, by scope.

    Raises:
        HardwareError: if it cannot be started, or a device is gone.
    """

    def __init__(self, home: Path, locks: Mapping[str, int]) -> None:
        self.beat_s = BEAT_S
        self._asked = 0
        self._open = threading.Lock()  # a sign of life must not go to whatever has the number of a closed file
        try:
            self._link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            raise _no_start(str(error)) from error
        _keepers.add(self)
        told = {"home": str(home), "link": theirs.fileno(), "locks": dict(locks), "beat_s": self.beat_s}
        try:
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "negawatt.hardware.watchdog", json.dumps(told)],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    pass_fds=(theirs.fileno(), *locks.values()),
                    start_new_session=True,
                )
        except OSError as error:
            self._close()
            raise _no_start(f"{sys.executable}: {error.strerror or error}") from error
        try:
            self._await_start()
        except BaseException:
            self.end()
            raise

    def ask(self, op: str, **more: object) -> dict[str, Any]:
        """Have something done and return the answer.

        Raises:
            GoneError: if the watchdog was killed.
            RevokedError: if it has revoked the lease.
            NegawattError: as the watchdog met it.
        """
        self._asked += 1
        with suppress(OSError):  # it has ended, but what it said last is still to be heard
            self._link.send(json.dumps({"n": self._asked, "op": op, **more}).encode())
        deadline_s = time.monotonic() + ANSWER_S
        while True:
            answer = self._hear(deadline_s)
            if answer.get("n") == self._asked:  # else it is of a question that was interrupted
                return _without_error(answer)

    def last_words(self) -> GoneError | RevokedError:
        """Why a watchdog has ended, from what it said last."""
        deadline_s = time.monotonic() + ANSWER_S
        while True:
            try:
                self._hear(deadline_s)
            except (GoneError, RevokedError) as error:
                return error

    def beat(self) -> None:
        """Give a sign of life. A watchdog that takes no more of them is killed, so that another can be started."""
        try:
            with self._open:
                self._link.send(BEAT, socket.MSG_DONTWAIT)
        except BlockingIOError:
            self._process.kill()
        except OSError:  # it has ended, which `ended` tells
            return

    def ended(self, wait_s: float) -> bool:
        """Whether the watchdog has ended or `hang_up` was called, waiting for that so long [s]."""
        poll = select.poll()
        try:
            poll.register(self._link, 0)  # told are POLLHUP and POLLERR only
        except ValueError:  # closed
            return True
        return bool(poll.poll(wait_s * 1e3))

    def hang_up(self) -> None:
        """Wake whoever waits in `ended`."""
        with suppress(OSError):
            self._link.shutdown(socket.SHUT_RDWR)

    def end(self, *, kill: bool = True) -> None:
        """See that the watchdog is no more.

        Args:
            kill: False: it is about to end by itself, and is given time.

        Raises:
            HardwareError: if it does not end: it waits for a device.
        """
        if kill:
            self._process.kill()
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired as error:
            raise HardwareError(
                f"the watchdog (process {self._process.pid}) does not end",
                "it waits for a device that does not answer, and nobody else may write to that meanwhile",
                "look for errors of the driver: `dmesg | tail`",
            ) from error
        finally:
            self._close()

    def forget_in_child(self) -> None:
        """In a forked child: let go of what is the parent's."""
        with suppress(OSError):
            os.close(self._link.detach())
        if hasattr(self, "_process"):
            self._process.returncode = 0  # not this process's child

    def _close(self) -> None:
        with self._open, suppress(OSError):  # closed by somebody who closes every file
            self._link.close()

    def _await_start(self) -> None:
        assert self._process.stderr is not None  # noqa: S101 -- a pipe was asked for
        with self._process.stderr as stderr:
            try:
                _without_error(self._hear(time.monotonic() + START_S))
            except GoneError as error:
                lines = stderr.read().decode(errors="replace").split("\n")
                reason = next((line for line in reversed(lines) if line), "")
                if not reason and self._process.wait(END_S) < 0:
                    raise
                raise _no_start(reason or "it ended at once") from error

    def _hear(self, deadline_s: float) -> dict[str, Any]:
        """The next message. Kills a watchdog that says nothing."""
        poll = select.poll()
        try:
            poll.register(self._link, select.POLLIN)
        except ValueError:
            raise _gone("it was closed") from None
        if not poll.poll(max(0.0, deadline_s - time.monotonic()) * 1e3):
            self._process.kill()
            raise HardwareError(
                f"the watchdog (process {self._process.pid}) does not answer",
                "it is not known whether the device was set",
                "look for errors of the driver: `dmesg | tail`",
            )
        try:
            message = self._link.recv(MESSAGE_BYTES)
        except ConnectionResetError:  # it ended with something unread; what it said before is told next
            return self._hear(deadline_s)
        except OSError:
            message = b""
        if not message:
            raise _gone("it was killed")
        answer: dict[str, Any] = json.loads(message)
        if "revoked" in answer:
            raise RevokedError(
                f"the lease was revoked: {answer['revoked']}",
                "the device was put back as found, and somebody else may have it now",
                "take the lease anew",
            )
        return answer


def _without_error(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer, or the error in it raised."""
    if "error" in answer:
        name, *parts = answer["error"]
        kind: type[NegawattError] = getattr(errors, name, HardwareError)
        raise kind(*parts)
    return answer


def _gone(reason: str) -> GoneError:
    return GoneError(f"the watchdog is gone: {reason}", "nobody would put the device back", "take the lease anew")


def _no_start(reason: str) -> HardwareError:
    return HardwareError(
        f"the watchdog cannot be started: {reason}",
        "nobody would put the device back if this process is killed, so it is not changed",
        f"see that this works: `{sys.executable or 'python'} -P -c 'import negawatt.hardware.watchdog'`",
    )


_keepers: weakref.WeakSet[Keeper] = weakref.WeakSet()


def _forget_in_child() -> None:
    for keeper in list(_keepers):
        keeper.forget_in_child()
    _keepers.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)

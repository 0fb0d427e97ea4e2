"""Passthrough: run a user's command so that nobody can tell negawatt from the command itself.

The command inherits stdin, stdout, stderr, environment, process group, signal mask and ignored signals (but SIGCHLD).
Signals sent to negawatt are handed on, and negawatt ends as the command ended.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import ClassVar, Never

from negawatt.core.errors import NegawattError

_FROM_TERMINAL = {signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH}
"""Sent by a terminal to its whole foreground group: the command has got them already."""

_LOOK_S = 1.0
"""A child is looked at this often, too: a thread of an embedding program may have got its SIGCHLD [s]."""

_FORWARDED = {*_FROM_TERMINAL, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}
_HELD = {*_FORWARDED, signal.SIGCHLD}

# Python itself ignores these at start-up; the command is to find them as the system's default.
_IGNORED_BY_PYTHON = {getattr(signal, name) for name in ("SIGPIPE", "SIGXFSZ", "SIGXFZ") if hasattr(signal, name)}


class CommandNotFoundError(NegawattError):
    """There is no such command; the exit code is the shell's."""

    exit_code: ClassVar[int] = 127


class CannotExecuteError(NegawattError):
    """The command is there and cannot be executed; the exit code is the shell's."""

    exit_code: ClassVar[int] = 126


@contextmanager
def held_signals() -> Iterator[set[int]]:
    """Hold back the signals that `run_child` hands on, and yield the signal mask that the command is to get.

    Enter it before any thread is started: a thread that does not hold them back would get them instead. Signals that
    arrive after the command's end are dropped: they were meant for it.
    """
    # SIGCHLD may be inherited as ignored, and then children vanish without a status.
    old_child = signal.signal(signal.SIGCHLD, _noted)
    before: set[int] = {int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)}
    try:
        yield before
    finally:
        while _HELD & signal.sigpending():
            signal.sigwait(_HELD & signal.sigpending())
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        signal.signal(signal.SIGCHLD, old_child)


def _noted(_signum: int, _frame: object) -> None:
    """A handler makes the system keep SIGCHLD pending; it is fetched by waiting, not by this."""


def run_child(argv: Sequence[str], mask: set[int], environ: Mapping[str, str] | None = None) -> int:
    """Run a command to its end, inside `held_signals`.

    Args:
        argv: the command, looked up in PATH, and its arguments.
        mask: what `held_signals` yielded.
        environ: its environment; None: this process's.

    Returns:
        Its status in the form of os.waitpid.

    Raises:
        CommandNotFoundError, CannotExecuteError: if it could not be started.
    """
    ignored = {s for s in _HELD if signal.getsignal(s) is signal.SIG_IGN}  # nohup, `&` in scripts
    default = (_HELD - ignored) | _IGNORED_BY_PYTHON
    for early in (_FORWARDED - {signal.SIGWINCH} - ignored) & signal.sigpending():
        end_like(early)  # before there is anybody to hand it to
    try:
        pid = os.posix_spawnp(
            argv[0], list(argv), os.environ if environ is None else environ, setsigmask=mask, setsigdef=default
        )
    except (FileNotFoundError, NotADirectoryError, ValueError) as error:  # ValueError: an empty name
        raise CommandNotFoundError(
            f"{argv[0] or repr(argv[0])}: command not found",
            "nothing was run and nothing measured",
            f"check the spelling and PATH, or a script's first line (`#!...`): `command -v {argv[0]}`",
        ) from error
    except OSError as error:
        raise CannotExecuteError(
            f"{argv[0]}: {error.strerror}",
            "nothing was run and nothing measured",
            "make it executable (`chmod +x`), give a script a first line `#!/bin/sh`, or name its interpreter",
        ) from error
    return _wait(pid)


def _wait(pid: int) -> int:
    """Wait for a child to end, handing on signals. A child that is only stopped is waited for."""
    while True:
        signum, from_terminal = _next_signal()
        if signum == signal.SIGCHLD:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return status
        elif not (from_terminal and signum in _FROM_TERMINAL):
            os.kill(pid, signum)  # not yet waited for, so the number is still its own


def _next_signal() -> tuple[int, bool]:
    """The next signal held back, and whether the terminal sent it."""
    if hasattr(signal, "sigtimedwait"):
        info = signal.sigtimedwait(_HELD, _LOOK_S)
        if info is None:
            return signal.SIGCHLD, False
        return info.si_signo, info.si_code > 0  # SI_KERNEL; what processes send has codes up to 0
    return signal.sigwait(_HELD), _in_foreground()


def _in_foreground() -> bool:
    """Whether this process is in the foreground of its terminal: the best guess where senders are not told (macOS)."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    finally:
        os.close(terminal)


def end_like(status: int) -> Never:
    """End this process as a child ended: with the same exit code, or killed by the same signal.

    Args:
        status: of the child, in the form of os.waitpid; the number of a signal is that of a child killed by it.
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BrokenPipeError, AttributeError):  # nobody reads it any more, or it was closed
            stream.flush()
    if os.WIFSIGNALED(status):
        signum = os.WTERMSIG(status)
        _no_core_dump()
        with contextlib.suppress(OSError):  # SIGKILL has no handler to reset
            signal.signal(signum, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signum})
        os.kill(os.getpid(), signum)
        os._exit(128 + signum)  # a container's first process is not killed by it: say what a shell would
    raise SystemExit(os.waitstatus_to_exitcode(status))


def _no_core_dump() -> None:
    """A core of negawatt would overwrite the command's. 1 byte keeps Linux from piping one to a crash reporter, too."""
    _, hard = resource.getrlimit(resource.RLIMIT_CORE)
    soft = 1 if hard == resource.RLIM_INFINITY or hard >= 1 else 0
    resource.setrlimit(resource.RLIMIT_CORE, (soft, hard))

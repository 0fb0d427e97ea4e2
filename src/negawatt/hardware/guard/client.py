"""Client: holds controls through the guard, for a process that may not change them itself."""

from __future__ import annotations

import math
import os
import socket
import threading
import weakref
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self, final

from negawatt.core.codec import from_json
from negawatt.core.errors import HardwareError, NeedsPrivilegeError, NegawattError, UsageError, refusal
from negawatt.hardware.control import ControlInfo, Value
from negawatt.hardware.guard import default_socket, wire
from negawatt.hardware.guard.peer import uid_of

_ANSWER_S = 30.0
"""How long an answer may take; a device that hangs takes as long [s]."""
_PINGS_PER_SILENCE = 4


class GuardLostError(HardwareError):
    """The guard does not answer any more; its watchdogs put back what it had changed."""


@final
class Connection:
    """One talk with the guard. Thread-safe; a forked child's copy is closed, so that it keeps nothing alive.

    Args:
        path: of the socket; None: `default_socket()`.

    Raises:
        NeedsPrivilegeError: if there is no guard, its policy does not name this user, or it is neither root's nor ours.
        HardwareError: if it does not answer.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path or default_socket()
        self._lock = threading.RLock()
        self._asking = False
        self._socket = _connected(self._path)
        self._lines = wire.lines(self._socket, wire.ANSWER_BYTES, _ANSWER_S)
        _connections.add(self)
        try:
            hello = self.ask("hello", version=wire.VERSION)
            self.silence_s = _number(hello.get("silence_s"))
        except BaseException:
            self.close()
            raise

    def ask(self, op: str, **fields: object) -> wire.Json:
        """The answer to a request.

        Raises:
            NegawattError: of the kind that the guard tells; HardwareError if it does not answer any more.
        """
        with self._lock:
            if self._asking:  # by a signal handler, while this very thread waits for another answer
                self.close()
                raise self._lost("it was asked twice at once")
            self._asking = True
            try:
                answer = self._exchange({"op": op, **fields})
            except (OSError, wire.WireError) as error:
                self.close()
                raise self._lost(str(error) if isinstance(error, OSError) else error.got) from error
            finally:
                self._asking = False
        if answer is None:
            self.close()
            raise self._lost("it closed the connection")
        if answer.get("error") == "wire" and op != "hello":  # it ended the talk: of a silence, it says so unasked
            self.close()
            raise self._lost(str(answer.get("got")))
        wire.raise_failure(answer)
        return answer

    def close(self) -> None:
        """End the talk; the guard undoes what was changed."""
        with suppress(OSError):  # so that another thread that waits for an answer is woken
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def drop(self) -> None:
        """Close a forked child's copy; the parent talks on."""
        self._socket.close()

    def _exchange(self, request: wire.Json) -> wire.Json | None:
        self._socket.settimeout(_ANSWER_S)
        with suppress(BrokenPipeError, ConnectionResetError):  # it may have said why before it closed
            self._socket.sendall(wire.dumps(request))
        line = next(self._lines, None)
        return None if line is None else wire.loads(line)

    def _lost(self, reason: str) -> GuardLostError:
        return GuardLostError(
            f"negawatt's guard at {self._path} does not answer: {reason}",
            "what it had changed for this process was put back as found",
            "look at `systemctl status negawatt-guard`",
        )


@final
class GuardHand:
    """Some controls, held through the guard: members as of a `Lease`. Use `take`, and `release` or a with block.

    A thread tells the guard that this process is alive. If the process ends or hangs, the guard puts all back as found.
    """

    def __init__(self, connection: Connection, infos: Mapping[str, ControlInfo], found: Mapping[str, Value]) -> None:
        self.infos = infos
        self.found = found
        self._connection = connection
        self._pid = os.getpid()
        self._released = threading.Event()
        self._pulse = threading.Thread(target=self._ping, name="negawatt-guard-ping", daemon=True)
        self._pulse.start()

    @classmethod
    def take(cls, addresses: Sequence[str], *, owner: str, socket: Path | None = None) -> Self:
        """Hold some controls.

        Args:
            addresses: of the controls.
            owner: what the user would recognise this work by; who wants the same device is told.
            socket: where the guard listens; None: `default_socket()`.

        Raises:
            HeldError: if somebody holds one of them.
            NeedsPrivilegeError: if there is no guard, or its policy does not allow it.
            HardwareError: if the guard does not answer, or a device is gone.
        """
        connection = Connection(socket)
        try:
            answer = connection.ask("take", addresses=list(addresses), owner=_printable(owner))
            infos = {address: from_json(ControlInfo, info) for address, info in answer["infos"].items()}
            return cls(connection, infos, dict(answer["found"]))
        except BaseException:
            connection.close()
            raise

    def set(self, address: str, value: Value) -> Value:
        """Set a control, and return what is read back.

        Raises:
            UsageError: if the value is outside of what the policy and the device allow, or above what was found.
            HardwareError: if the device did not take it, the guard is gone, or this is a forked child.
        """
        if self._released.is_set() or os.getpid() != self._pid:
            raise HardwareError(
                "a hand that was released, or that another process took",
                "nothing was changed",
                "take the controls in the process that changes them",
            )
        if value is not None and not math.isfinite(value):
            raise UsageError(f"{value} for {address}", "nothing was changed", "give a number, or None for no limit")
        read: Value = self._connection.ask("set", address=address, value=None if value is None else float(value))[
            "value"
        ]
        return read

    def release(self) -> None:
        """Put all back as found. Nothing happens if that was done, if the guard is gone, or in a forked child.

        Raises:
            HardwareError: if the guard says that a device could not be restored.
        """
        if self._released.is_set() or os.getpid() != self._pid:
            return
        self._released.set()
        try:
            with suppress(GuardLostError):
                self._connection.ask("release")
        finally:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _ping(self) -> None:
        while not self._released.wait(self._connection.silence_s / _PINGS_PER_SILENCE):
            try:
                self._connection.ask("ping")
            except NegawattError:  # the next `set` tells
                return


def guard_available(socket: Path | None = None) -> str | None:
    """None if a guard lets this user change something, else the reason."""
    return refusal(lambda: Connection(socket).close())


_connections: weakref.WeakSet[Connection] = weakref.WeakSet()


def _let_go() -> None:
    for connection in list(_connections):
        connection.drop()


os.register_at_fork(after_in_child=_let_go)


def _connected(path: Path) -> socket.socket:
    """A socket to the guard at a path, if it is root's or ours."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    connection.settimeout(_ANSWER_S)
    try:
        connection.connect(str(path))
        owner = uid_of(connection)
    except (OSError, NegawattError) as error:
        connection.close()
        if isinstance(error, NegawattError):
            raise
        raise NeedsPrivilegeError(
            f"no guard at {path}: {error.strerror or error}",
            "without one, only root can change limits",
            "an administrator can start one: `negawatt guard unit` prints the service",
        ) from error
    if owner not in (0, os.geteuid()):
        connection.close()
        raise NeedsPrivilegeError(
            f"the guard at {path} belongs to user {owner}",
            "only root's, or your own, is believed",
            "unset NEGAWATT_GUARD, or tell your administrator",
        )
    return connection


def _printable(owner: str) -> str:
    """What somebody calls their work, as the guard takes it: a command line may be long, or hold anything."""
    return "".join(c if c.isprintable() else "?" for c in owner)[: wire.TEXT_CHARS] or "?"


def _number(value: object) -> float:
    if not isinstance(value, int | float) or not value > 0:
        raise HardwareError(f"a guard that answers {value!r:.40}", "it is none of ours", "update negawatt on this host")
    return float(value)

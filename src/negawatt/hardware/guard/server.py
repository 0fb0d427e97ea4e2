"""Server: listens on a Unix socket, one thread per client, and undoes what a client changed when its connection ends.

A thread each keeps the talk in one straight line, and a device that hangs hangs only its own client. SIGKILL of the
whole guard is covered by the watchdogs of its leases.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import final

from negawatt.core.errors import HardwareError, NegawattError, UsageError
from negawatt.hardware.guard import wire
from negawatt.hardware.guard.peer import peer_of, supported, uid_of
from negawatt.hardware.guard.policy import check_owner
from negawatt.hardware.guard.session import Holder, Session, Terms

CLIENTS_PER_USER = 16
CLIENTS = 64
_STOP_S = 10.0
"""How long the guard waits for its clients' limits to be restored when it ends; the watchdogs go on [s]."""


@final
class Guard:
    """The server.

    Args:
        path: of the socket. Everybody may connect; the policy decides.
        terms: policy, audit log and controls.
    """

    def __init__(self, path: Path, terms: Terms) -> None:
        self._path = path
        self._terms = terms
        self._lock = threading.Lock()
        self._clients: Counter[int] = Counter()
        self._sessions: dict[socket.socket, Session] = {}
        self._threads: set[threading.Thread] = set()
        self._wake_out, self._wake_in = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Answer clients until `stop`; then restore what they changed.

        Args:
            ready: called once clients can connect.

        Raises:
            UsageError: if another guard listens there, or others may write that folder.
            HardwareError: if the socket cannot be made.
        """
        with _only_one(self._path), _listening(self._path) as listener:
            self._repair()
            ready()
            notify("READY=1")
            polled = select.poll()
            polled.register(listener, select.POLLIN)
            polled.register(self._wake_out, select.POLLIN)
            while not any(file == self._wake_out for file, _ in polled.poll()):
                self._accept(listener)
            notify("STOPPING=1")
        self._end()

    def stop(self) -> None:
        """Let `serve` return; may be called by a signal handler or another thread, more than once."""
        with suppress(BlockingIOError):  # the pipe is full of such calls
            os.write(self._wake_in, b".")

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError as error:  # the client is gone again, or too many files are open
            _say(f"a client could not be let in: {error}")
            time.sleep(0.05)
            return
        uid = uid_of(connection)
        with self._lock:
            full = self._clients[uid] >= CLIENTS_PER_USER or self._clients.total() >= CLIENTS
            self._clients[uid] += not full
        if full:
            _refuse(connection)
            return
        thread = threading.Thread(target=self._talk, args=(connection, uid), name=f"guard-{uid}", daemon=True)
        with self._lock:
            self._threads.add(thread)
        try:
            thread.start()
        except RuntimeError as error:  # there can be no more threads
            _say(f"a client could not be let in: {error}")
            connection.close()
            self._forget(thread, connection, uid)

    def _talk(self, connection: socket.socket, uid: int) -> None:
        try:
            with connection:
                session = Session(peer_of(connection), self._terms, self._holders)
                with self._lock:
                    self._sessions[connection] = session
                try:
                    for answer in self._answers(connection, session):
                        connection.settimeout(self._terms.silence_s)
                        connection.sendall(wire.dumps(answer))
                except OSError:
                    pass  # the client is gone: that is what `end` is for
                finally:
                    session.end()
        finally:
            self._forget(threading.current_thread(), connection, uid)

    def _forget(self, thread: threading.Thread, connection: socket.socket, uid: int) -> None:
        with self._lock:
            self._sessions.pop(connection, None)
            self._threads.discard(thread)
            self._clients[uid] -= 1
            self._clients += Counter()  # forgets users that are gone

    def _answers(self, connection: socket.socket, session: Session) -> Iterator[wire.Json]:
        try:
            session.admit()
            for line in wire.lines(connection, wire.LINE_BYTES, self._terms.silence_s):
                yield session.answer(line)
                if session.over:
                    return
        except NegawattError as error:
            yield session.fail(error)

    def _holders(self) -> list[Holder]:
        with self._lock:
            sessions = list(self._sessions.values())
        return [holder for holder in (session.holder() for session in sessions) if holder]

    def _repair(self) -> None:
        from negawatt.hardware.lease import repair

        try:
            for repaired in repair(self._terms.folder):
                _say(f"repaired what a former process left: {repaired}")
        except NegawattError as error:  # one broken device does not close the guard to the others
            _say(str(error))

    def _end(self) -> None:
        with self._lock:
            threads = list(self._threads)
            for connection in self._sessions:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        until_s = time.monotonic() + _STOP_S
        for thread in threads:
            thread.join(max(0.0, until_s - time.monotonic()))
        self._terms.audit.close()


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Raise UsageError if another guard has the socket; hold a lock beside it until the end."""
    if not supported():
        raise HardwareError("this system does not tell who is at a socket", "nobody can be trusted", "use Linux")
    try:
        if not path.parent.exists():
            path.parent.mkdir()
            path.parent.chmod(0o755)  # whatever the umask: clients have to get there
        check_owner(path.parent, path.parent.stat())
        lock = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _no_socket(path, error) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise UsageError(
            f"another guard listens on {path}", "two could not both answer", "systemctl status negawatt-guard"
        ) from error
    finally:
        os.close(lock)


@contextmanager
def _listening(path: Path) -> Iterator[socket.socket]:
    """A socket that everybody may connect to; its file is gone at the end."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            path.unlink(missing_ok=True)  # of a guard that was killed: no other one has the lock
            listener.bind(str(path))
            path.chmod(0o666)
            listener.listen(CLIENTS)
        except OSError as error:
            raise _no_socket(path, error) from error
        listener.settimeout(0.0)
        try:
            yield listener
        finally:
            path.unlink(missing_ok=True)


def notify(state: str) -> None:
    """Tell systemd a state, if it started this process and asked for it: sd_notify(3), by hand."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as messenger, suppress(OSError):
        messenger.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)


def _refuse(connection: socket.socket) -> None:
    busy = NegawattError("too many clients at once", "the guard answers only so many", "try again in a moment")
    with connection, suppress(OSError):
        connection.settimeout(0.0)
        connection.send(wire.dumps(wire.failure(busy)))


def _no_socket(path: Path, error: OSError) -> HardwareError:
    return HardwareError(
        f"no socket at {path}: {error.strerror}", "no client could connect", "run it as root, or name another --socket"
    )


def _say(text: str) -> None:
    with suppress(OSError):
        print(f"negawatt guard: {text}", file=sys.stderr, flush=True)  # noqa: T201 -- journald reads it

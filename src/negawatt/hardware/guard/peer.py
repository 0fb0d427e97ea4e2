"""Peer: who is at the other end of a Unix socket, as the kernel tells it."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

from negawatt.core.errors import HardwareError

_UCRED = struct.Struct("3i")  # pid, uid, gid: `struct ucred` of unix(7)


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """Who connected.

    Attributes:
        pid: the process that connected, 0 if it is outside of this process's namespace.
        uid: its effective user.
        gids: its effective group and all groups that its user is in.
        user: the user's name, or "uid N" where there is none.
        comm: what the process calls itself; it can call itself anything.
    """

    pid: int
    uid: int
    gids: frozenset[int]
    user: str
    comm: str

    def __str__(self) -> str:
        return f"{self.user} (pid {self.pid})"


def peer_of(connection: socket.socket) -> Peer:
    """Who connected, from SO_PEERCRED (unix(7)) and the databases of users and groups.

    These are the credentials at the time of connecting: they hold for whoever the connection is handed on to.
    """
    pid, uid, gid = _credentials(connection)
    try:
        entry = pwd.getpwuid(uid)
    except KeyError:
        user, gids = f"uid {uid}", [gid]
    else:
        user, gids = entry.pw_name, [gid, *os.getgrouplist(entry.pw_name, entry.pw_gid)]
    return Peer(pid=pid, uid=uid, gids=frozenset(gids), user=user, comm=_comm(pid))


def uid_of(connection: socket.socket) -> int:
    """The user at the other end: of a client's socket, the one who listens."""
    return _credentials(connection)[1]


def user_id(name: str) -> int | None:
    """The number of a user; None if there is no such user."""
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def group_id(name: str) -> int | None:
    """The number of a group; None if there is no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        return None


def supported() -> bool:
    """Whether this system tells who is at the other end."""
    return hasattr(socket, "SO_PEERCRED")


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    if not supported():
        raise HardwareError("this system does not tell who is at a socket", "nobody can be trusted", "use Linux")
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return pid, uid, gid


def _comm(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(encoding="utf-8", errors="replace").strip()
    except OSError:  # it is gone already, or hidden
        return ""

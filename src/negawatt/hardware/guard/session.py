"""Session: what one client asks for, and the answers. It knows no sockets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from negawatt.core.codec import to_json
from negawatt.core.errors import NegawattError, UsageError
from negawatt.hardware.control import Control, ControlInfo, Value
from negawatt.hardware.guard import wire
from negawatt.hardware.guard.audit import AuditLog
from negawatt.hardware.guard.peer import Peer
from negawatt.hardware.guard.policy import Policy, load_policy, not_granted, refused

if TYPE_CHECKING:
    from negawatt.hardware.lease import Lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What all sessions of a guard share.

    Attributes:
        policy: its file.
        audit: where requests are written down.
        find: looks for the controls of this host.
        folder: of the leases; None: the default one.
        silence_s: how long a client may say nothing [s].
    """

    policy: Path
    audit: AuditLog
    find: Callable[[], Sequence[Control]]
    folder: Path | None = None
    silence_s: float = wire.SILENCE_S


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """Who holds what through the guard, for `negawatt guard status`.

    Attributes:
        user: who connected.
        pid: the process that did.
        owner: what it calls its work.
        scopes: the devices.
        held_s: for how long [s].
        values: what each control was last set to through this lease, by address, in its unit.
    """

    user: str
    pid: int
    owner: str
    scopes: tuple[str, ...]
    held_s: float
    values: dict[str, float | None]


class Session:
    """One client's talk. `over` says that it has to end; `end` undoes all that it changed.

    Args:
        peer: the client.
        terms: of this guard.
        holders: who holds what through it now.
    """

    def __init__(self, peer: Peer, terms: Terms, holders: Callable[[], Sequence[Holder]]) -> None:
        self.over = False
        self._peer = peer
        self._terms = terms
        self._holders = holders
        self._greeted = False
        self._lease: Lease | None = None
        self._owner = ""
        self._since_s = 0.0
        self._values: dict[str, Value] = {}
        self._told: NegawattError | None = None

    def admit(self) -> None:
        """Raise NeedsPrivilegeError for a client that the policy does not name: before it says a word."""
        self._policy()

    def answer(self, line: bytes) -> wire.Json:
        """The answer to a line. An error is an answer, too; after one that is not our language the talk is over."""
        name = "request"
        try:
            request = wire.parse(line)
            name = type(request).__name__.lower()
            return {"ok": True, **self._answer(request)}
        except NegawattError as error:
            self.over = self.over or isinstance(error, wire.WireError)
            if error is not self._told:
                self._terms.audit.refuse(self._peer, name, error.got)
            return wire.failure(error)

    def fail(self, error: NegawattError) -> wire.Json:
        """The answer to a client that is not let in, or of whom no line could be read."""
        self.over = True
        self._terms.audit.refuse(self._peer, "connect", error.got)
        return wire.failure(error)

    def holder(self) -> Holder | None:
        """What this client holds; None: nothing."""
        lease = self._lease
        if lease is None:
            return None
        return Holder(
            user=self._peer.user,
            pid=self._peer.pid,
            owner=self._owner,
            scopes=tuple(dict.fromkeys(info.scope for info in lease.infos.values())),
            held_s=time.monotonic() - self._since_s,
            values=dict(self._values),
        )

    def end(self) -> None:
        """Put back what this client changed, whatever happens; what cannot be is in the log and left to repair."""
        try:
            self._release()
        except NegawattError as error:
            self._told = error  # and so is the log

    def _answer(self, request: wire.Request) -> wire.Json:
        if not self._greeted and not isinstance(request, wire.Hello):
            raise wire.WireError("a request before hello", "the two may not speak the same language", "say hello first")
        match request:
            case wire.Hello(version=version):
                return self._hello(version)
            case wire.ListControls():
                return {"controls": to_json(list(self._granted().values()))}
            case wire.Take():
                return self._take(request)
            case wire.Set(address=address, value=value):
                return {"value": self._set(address, value)}
            case wire.Status():
                self._policy()
                return {"holders": to_json(list(self._holders()))}
            case wire.Release():
                self._release()
            case wire.Ping():
                pass  # it was heard
        return {}

    def _hello(self, version: int) -> wire.Json:
        if version != wire.VERSION:
            raise wire.WireError(
                f"a client that speaks version {version}",
                f"this guard speaks version {wire.VERSION}",
                "install the same version of negawatt for both",
            )
        self._greeted = True
        return {"version": wire.VERSION, "silence_s": self._terms.silence_s}

    def _policy(self) -> Policy:
        """The policy of this moment. Raises NeedsPrivilegeError if it does not name this client (any more)."""
        policy = load_policy(self._terms.policy)
        if not policy.knows(self._peer):
            self.over = True
            raise refused(self._peer, self._terms.policy)
        return policy

    def _granted(self) -> dict[str, ControlInfo]:
        policy = self._policy()
        infos = (policy.granted(self._peer, control.info) for control in self._terms.find())
        return {info.address: info for info in infos if info}

    def _take(self, request: wire.Take) -> wire.Json:
        from negawatt.hardware.lease import Lease

        if self._lease is not None:
            raise UsageError("a second lease on one connection", "one is ended as a whole", "take all at once, or anew")
        granted = self._granted()
        for address in request.addresses:
            if address not in granted:
                raise not_granted(self._peer, address, self._terms.policy)
        with self._written("take", addresses=list(request.addresses), owner=request.owner) as outcome:
            owner = f"{self._peer}, through the guard: {request.owner}"
            self._lease = lease = Lease.take(request.addresses, owner=owner, folder=self._terms.folder)
            self._owner, self._since_s, self._values = request.owner, time.monotonic(), dict(lease.found)
            outcome["found"] = dict(lease.found)
        infos = {address: granted[address] for address in request.addresses}
        return {"infos": to_json(infos), "found": dict(lease.found)}

    def _set(self, address: str, value: Value) -> Value:
        if self._lease is None or address not in self._lease.infos:
            raise UsageError(f"{address} is not held", "only what is held is changed", "take it first")
        info = self._policy().granted(self._peer, self._lease.infos[address])
        if info is None:
            raise not_granted(self._peer, address, self._terms.policy)
        if value is not None and not info.lowest <= value <= info.highest:
            raise UsageError(
                f"{value:g} {info.unit} for {address}".replace("  ", " "),
                f"{self._peer.user} may set {info.lowest:g} to {info.highest:g} {info.unit}".rstrip(),
                "set a value in that range",
            )
        change = {"address": address, "from": self._values[address], "to": value}
        with self._written("set", **change) as outcome:
            outcome["read"] = self._values[address] = self._lease.set(address, value)
        return self._values[address]

    @contextmanager
    def _written(self, event: str, **details: Any) -> Iterator[dict[str, Any]]:  # noqa: ANN401 -- JSON
        """A change: in the log before it is made, or it is not made, and after it, with what is added to the dict."""
        self._terms.audit.write(self._peer, event, "begins", **details)
        outcome: dict[str, Any] = {}
        try:
            yield outcome
        except NegawattError as error:
            self._told = error
            self._terms.audit.tell(self._peer, event, error.got, **details)
            raise
        self._terms.audit.tell(self._peer, event, "done", **details, **outcome)

    def _release(self) -> None:
        lease = self._lease
        if lease is None:
            return
        found = dict(lease.found)
        try:
            lease.release()
        except NegawattError as error:
            self._told = error
            self._terms.audit.tell(self._peer, "release", error.got, found=found)
            raise
        finally:
            self._lease = None
        self._terms.audit.tell(self._peer, "release", "done", found=found)

"""Policy: who may change which controls through the guard, and how low. Without a policy file: only root.

```toml
[[allow]]
users = ["alice"]            # names or numbers
groups = ["ml"]
devices = ["gpu:*"]          # patterns of scopes or addresses
knobs = ["power-limit"]
lowest_fraction = 0.6        # of the highest of the device's own range; or lowest = 200, in the control's unit
```
"""

from __future__ import annotations

import math
import os
import stat
import tomllib
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path

from negawatt.core.codec import from_json
from negawatt.core.errors import NeedsPrivilegeError, UsageError
from negawatt.hardware.control import ControlInfo, Knob
from negawatt.hardware.guard.peer import Peer, group_id, user_id


@dataclass(frozen=True, slots=True, kw_only=True)
class Allow:
    """One permission. Where several fit, a client may do what any of them allows.

    Attributes:
        devices: patterns (`*`, `?`, `[...]`) of scopes or addresses, such as "gpu:*".
        knobs: what may be changed of them.
        users: names or numbers.
        groups: names or numbers; all whose user is a member, and processes that run as that group.
        lowest_fraction: the lowest value, as a part of the highest of the device's own range.
        lowest: the lowest value, in the control's unit. A profile has none.
    """

    devices: tuple[str, ...]
    knobs: tuple[Knob, ...]
    users: tuple[str | int, ...] = ()
    groups: tuple[str | int, ...] = ()
    lowest_fraction: float | None = None
    lowest: float | None = None  # in the control's unit

    def __post_init__(self) -> None:
        if not self.users and not self.groups:
            raise ValueError("it names neither users nor groups")
        if not self.devices or not self.knobs:
            raise ValueError("it names no devices or no knobs")
        if set(self.knobs) - {Knob.PROFILE} and (self.lowest is None) == (self.lowest_fraction is None):
            raise ValueError("it needs one of lowest_fraction and lowest")
        if self.lowest_fraction is not None and not 0 < self.lowest_fraction <= 1:
            raise ValueError("lowest_fraction is above 0 and at most 1")
        if self.lowest is not None and not 0 < self.lowest < math.inf:
            raise ValueError("lowest is a number above 0")

    def names(self, peer: Peer) -> bool:
        """Whether it is for this client."""
        users = {user_id(user) if isinstance(user, str) else user for user in self.users}
        groups = {group_id(group) if isinstance(group, str) else group for group in self.groups}
        return peer.uid in users or not peer.gids.isdisjoint(groups)

    def covers(self, info: ControlInfo) -> bool:
        """Whether it is for this control."""
        names = (info.scope, info.address)
        return info.knob in self.knobs and any(fnmatchcase(n, pattern) for n in names for pattern in self.devices)

    def floor(self, info: ControlInfo) -> float:
        """The lowest value of a control, in its unit."""
        if info.knob is Knob.PROFILE:
            return info.lowest
        if self.lowest_fraction is not None:
            return max(self.lowest_fraction * info.highest, info.lowest)
        return max(self.lowest or math.inf, info.lowest)


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All permissions. Root, and the user that the guard runs as, may change everything within the device's range."""

    allow: tuple[Allow, ...] = ()

    def knows(self, peer: Peer) -> bool:
        """Whether a client may do anything at all."""
        return _is_self(peer) or any(rule.names(peer) for rule in self.allow)

    def granted(self, peer: Peer, info: ControlInfo) -> ControlInfo | None:
        """A control with the range that a client may use; None: it may not change it."""
        if _is_self(peer):
            return info
        floors = [rule.floor(info) for rule in self.allow if rule.covers(info) and rule.names(peer)]
        if not floors or min(floors) > info.highest:
            return None
        lowest = min(floors)
        return replace(info, lowest=lowest, values=tuple(value for value in info.values if value >= lowest))

    def unknown(self) -> tuple[str, ...]:
        """Names of users and groups that this host does not know: misspelt, or a directory that does not answer."""
        users = [f"user {u}" for r in self.allow for u in r.users if isinstance(u, str) and user_id(u) is None]
        groups = [f"group {g}" for r in self.allow for g in r.groups if isinstance(g, str) and group_id(g) is None]
        return tuple(dict.fromkeys([*users, *groups]))


def load_policy(file: Path) -> Policy:
    """The policy of a file; the empty one if there is none. Read anew for every request, so a change acts at once.

    Raises:
        UsageError: if it cannot be read or understood, or if others could have written it.
    """
    try:
        with file.open("rb") as stream:
            check_owner(file, os.fstat(stream.fileno()))
            check_owner(file.resolve().parent, file.resolve().parent.stat())
            return from_json(Policy, tomllib.load(stream), file.name)
    except FileNotFoundError:
        return Policy()
    except (OSError, ValueError) as error:  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        raise UsageError(f"{file}: {error}", "nobody may change anything until it is right", _CHECK) from error
    except UsageError as error:
        raise UsageError(f"{file}: {error.got}", "nobody may change anything until it is right", _CHECK) from error


def check_owner(path: Path, found: os.stat_result) -> None:
    """Raise UsageError if others than root and this user may write a file or folder."""
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise UsageError(
            f"others than root may write {path}",
            "whoever can decides what is changed on this machine",
            f"sudo chown root:root {path} && sudo chmod go-w {path}",
        )


def refused(peer: Peer, file: Path) -> NeedsPrivilegeError:
    """What a client hears that no permission names."""
    return NeedsPrivilegeError(
        f"{peer.user} may not change anything through negawatt's guard",
        "no limit was changed, and none is told",
        f"an administrator can add to {file}:\n{_example(peer)}",
    )


def not_granted(peer: Peer, address: str, file: Path) -> NeedsPrivilegeError:
    """What a client hears that asks for a control outside of its permissions, be it there or not."""
    return NeedsPrivilegeError(
        f"{peer.user} may not change {address}",
        "no limit was changed",
        f"an administrator can allow it in {file}; `negawatt guard status` lists what is allowed",
    )


_CHECK = "correct it, then `negawatt guard check`"


def _example(peer: Peer) -> str:
    user = peer.uid if peer.user.startswith("uid ") else f'"{peer.user}"'
    return (
        f'    [[allow]]\n    users = [{user}]\n    devices = ["gpu:*"]\n    knobs = ["power-limit"]\n'
        "    lowest_fraction = 0.6"
    )


def _is_self(peer: Peer) -> bool:
    return peer.uid in (0, os.geteuid())

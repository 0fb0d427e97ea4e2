"""Registry: sensors, levers and placements, found by entry point. Built-ins register the way plug-ins do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from negawatt.core.errors import UsageError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from negawatt.core.lever import Lever
    from negawatt.core.placement import Placement
    from negawatt.core.reading import Sensor

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Broken:
    """A plug-in that could not be loaded: listed by `negawatt doctor`, never in the way of a run."""

    name: str
    distribution: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Found(Generic[T]):
    """Everything registered in one group."""

    members: dict[str, T]
    broken: tuple[Broken, ...]


def _load(group: str, contract: Any) -> Found[Any]:  # noqa: ANN401 -- a Protocol is not a type
    from importlib.metadata import entry_points

    members: dict[str, Any] = {}
    origin: dict[str, str] = {}
    broken: list[Broken] = []
    # One distribution can be on the path twice (editable and built): equal entries are one.
    entries = {(e.name, e.value, _distribution(e)): e for e in entry_points(group=group)}
    for (name, _, distribution), entry in sorted(entries.items()):
        if name in origin:
            raise UsageError(
                f"two distributions register {name!r} in {group}: {origin[name]} and {distribution}",
                "a result would not say which of them made it",
                f"pip uninstall one of them ({origin[name]} or {distribution})",
            )
        origin[name] = distribution
        try:
            member = entry.load()
        except Exception as error:  # noqa: BLE001 -- foreign code; the reason is recorded and shown by doctor
            broken.append(Broken(name=name, distribution=distribution, reason=f"{type(error).__name__}: {error}"))
            continue
        fault = _fault(name, member, contract)
        if fault:
            broken.append(Broken(name=name, distribution=distribution, reason=fault))
        else:
            members[name] = member
    return Found(members=members, broken=tuple(broken))


def _distribution(entry: EntryPoint) -> str:
    return entry.dist.name if entry.dist else "unknown"


def _fault(name: str, member: object, contract: Any) -> str | None:  # noqa: ANN401
    if isinstance(member, type) or not isinstance(member, contract):
        return f"{member!r} is not a {contract.__name__} object; run the contract test in negawatt.testing"
    stated = member.info.name  # type: ignore[attr-defined]
    return None if stated == name else f"entry point {name!r} but info.name is {stated!r}; make them equal"


def sensors() -> Found[Sensor]:
    """Registered sensors by name. Raises UsageError if two have one name."""
    from negawatt.core.reading import Sensor

    return _load("negawatt.sensors", Sensor)


def levers() -> Found[Lever]:
    """Registered levers by name. Raises UsageError if two have one name."""
    from negawatt.core.lever import Lever

    return _load("negawatt.levers", Lever)


def placements() -> Found[Placement]:
    """Registered placements by name. Raises UsageError if two have one name."""
    from negawatt.core.placement import Placement

    return _load("negawatt.placements", Placement)


def pick(found: Found[T], names: tuple[str, ...], kind: str, listing: Callable[[], str] | None = None) -> dict[str, T]:
    """The members of some names; all if no name is given.

    Args:
        found: what is registered.
        names: as typed by the user.
        kind: "lever", "sensor" or "placement", for the error.
        listing: what to type to see the names; default `negawatt doctor`.

    Raises:
        UsageError: on an unknown or broken name, with the nearest known one.
    """
    import difflib

    for name in names:
        if name in found.members:
            continue
        cause = next((b.reason for b in found.broken if b.name == name), None)
        near = difflib.get_close_matches(name, found.members, n=1)
        raise UsageError(
            f"{kind} {name!r} {'cannot be loaded: ' + cause if cause else 'is not known'}",
            f"a plan without a {kind} that you asked for would answer another question",
            f"did you mean {near[0]!r}?" if near else f"{listing() if listing else '`negawatt doctor`'} lists them",
        )
    return {name: found.members[name] for name in (names or found.members)}

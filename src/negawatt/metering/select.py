"""Which sensors to open: everything that is there, and no joule twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from negawatt.core.errors import NeedsPrivilegeError, NegawattError, NoMeterError, ScopeMismatchError
from negawatt.core.host import Host
from negawatt.core.reading import NotMeasured, Probe, Sensor, SensorInfo, disjoint, overlap


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """Sensors that were opened.

    Attributes:
        sensors: what they are.
        probes: all their probes; scopes are disjoint.
        left_out: what was not opened, and why.
    """

    sensors: tuple[SensorInfo, ...]
    probes: tuple[Probe, ...]
    left_out: tuple[NotMeasured, ...]


def open_named(sensors: Mapping[str, Sensor], host: Host) -> Opened:
    """Open exactly these sensors.

    Raises:
        NoMeterError: if one is not available here.
        NeedsPrivilegeError: if it is there and may not be read.
        ScopeMismatchError: if two of them measure the same joules.
    """
    probes: list[Probe] = []
    for name, sensor in sensors.items():
        reason = sensor.available(host)
        try:
            mine = sensor.open()
        except NeedsPrivilegeError:
            raise
        except NegawattError as error:
            raise _unusable(name, reason or error.got) from error
        if reason or not mine:
            raise _unusable(name, reason or "it found nothing to read")
        for probe in mine:
            if sensor.info.fallback and (better := _covering(probe, probes)):
                raise ScopeMismatchError(
                    f"sensor {name!r} covers {probe.scope!r}, and {better!r} was asked for too",
                    "a substitute beside a measurement of the same thing would count the same joules twice",
                    f"leave out `--sensor {name}`",
                )
        probes += mine
    disjoint(probe.scope for probe in probes)
    return Opened(sensors=tuple(s.info for s in sensors.values()), probes=tuple(probes), left_out=())


def open_best(sensors: Mapping[str, Sensor], host: Host) -> Opened:
    """Open every available sensor; fallback sensors only for what no other measures.

    Raises:
        NoMeterError: if nothing can be opened.
        ScopeMismatchError: if two sensors measure the same joules.
    """
    infos: list[SensorInfo] = []
    probes: list[Probe] = []
    left_out: list[NotMeasured] = []
    for name, sensor in fallback_last(sensors).items():
        mine, reason = _try_open(sensor, host)
        wanted = [p for p in mine if not (sensor.info.fallback and _covering(p, probes))]
        if mine and not wanted:
            reason = f"not needed: {_covering(mine[0], probes)} is measured"
        if reason:
            left_out.append(NotMeasured(what=name, why=reason))
        elif wanted:
            infos.append(sensor.info)
            probes += wanted
    if not probes:
        reasons = "; ".join(f"{n.what}: {n.why}" for n in left_out) or "none is registered"
        raise NoMeterError(
            f"no sensor can be used on this host ({reasons})",
            "a saving without joules cannot be shown",
            "`negawatt doctor` says what each sensor needs",
        )
    disjoint(probe.scope for probe in probes)
    return Opened(sensors=tuple(infos), probes=tuple(probes), left_out=tuple(left_out))


def fallback_last(sensors: Mapping[str, Sensor]) -> dict[str, Sensor]:
    """The same sensors with the fallbacks behind the others, the stronger source first."""
    return dict(sorted(sensors.items(), key=lambda item: item[1].info.fallback * (1 + item[1].info.source.weakness)))


def _try_open(sensor: Sensor, host: Host) -> tuple[Sequence[Probe], str | None]:
    """Probes, or none and the reason."""
    reason = sensor.available(host)
    if reason:
        return (), reason
    try:
        probes = sensor.open()
    except NegawattError as error:
        return (), error.reason
    return probes, None if probes else "it found nothing to read"


def _unusable(name: str, reason: str) -> NoMeterError:
    return NoMeterError(
        f"sensor {name!r} cannot be used here: {reason}",
        "it was asked for by name, so another one would answer another question",
        "do what the reason says, or leave out `--sensor` to use what this host has",
    )


def _covering(fallback: Probe, probes: Sequence[Probe]) -> str | None:
    """The scope that already measures some of what a fallback would: "cpu" is covered by "cpu:0/package"."""
    return next((probe.scope for probe in probes if overlap(probe.scope, fallback.scope)), None)

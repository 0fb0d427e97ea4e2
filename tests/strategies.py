"""Hypothesis strategies for the values of `negawatt.core`."""

from __future__ import annotations

import dataclasses
import enum
import importlib
import pkgutil
import types
import typing
from collections.abc import Mapping

from hypothesis import strategies as st

import negawatt.core
from negawatt.core.lever import Choice, Setting
from negawatt.core.measurement import Measurement
from negawatt.core.reading import Reading, Source
from negawatt.core.run import Work
from negawatt.core.serving import Cascade, ServingOptions, ServingSetting
from negawatt.core.trial import Role, Trial, TrialError
from negawatt.core.workload import Knob, Phase, Split

SCOPES = ("cpu:0/package", "cpu:0/dram", "gpu:GPU-1", "host/fans")
NOT_VALUES = {"Workload", "Found", "Call"}  # they hold the user's object, plug-ins, and bytes


def core_values() -> list[type]:
    """Every dataclass of negawatt.core that is written to files."""
    found = set()
    for info in pkgutil.iter_modules(negawatt.core.__path__):
        module = importlib.import_module(f"negawatt.core.{info.name}")
        found |= {c for c in vars(module).values() if isinstance(c, type) and dataclasses.is_dataclass(c)}
    return sorted((c for c in found if c.__name__ not in NOT_VALUES), key=lambda c: c.__name__)


def positive(high: float = 1e6) -> st.SearchStrategy[float]:
    """Floats that a meter or a clock may give."""
    return st.floats(1e-3, high)


def readings(
    scope: str = SCOPES[0], sensor: str = "rapl", source: Source = Source.COUNTER
) -> st.SearchStrategy[Reading]:
    """Readings of one scope."""
    error = st.floats(0, 100)
    return st.builds(
        Reading,
        scope=st.just(scope),
        energy_j=positive(),
        source=st.just(source),
        sensor=st.just(sensor),
        random_sd_j=error,
        gain_sd_fraction=st.floats(0, 0.5),
        offset_sd_w=error,
        corners_j=st.just(()) if source.measured else st.tuples(positive(), positive()),
    )


@st.composite
def measurements(draw: st.DrawFn, scopes: tuple[str, ...] = SCOPES[:2]) -> Measurement:
    """Measurements of the same scopes, some without quality."""
    return Measurement(
        readings=tuple(draw(readings(scope)) for scope in scopes),
        time_s=draw(positive()),
        work_units=draw(st.floats(0.5, 1e4)),
        quality=draw(st.none() | st.sampled_from((0.5, 0.9, 0.97)) | st.floats(-1, 1)),
    )


@st.composite
def settings_of(draw: st.DrawFn, phase: Phase = Phase.INFER) -> Setting:
    """Settings of a few levers."""
    levers = draw(st.lists(st.sampled_from(("threads", "runtime", "batch-size")), unique=True))
    value = st.integers(1, 64) | st.sampled_from(("sklearn", "onnx", True, 0.5))
    return Setting.of(
        phase, [Choice(lever=lever, phase=phase, value=draw(value), naive=draw(st.booleans())) for lever in levers]
    )


@st.composite
def trials(draw: st.DrawFn, *, failures: bool = True) -> Trial:
    """Trials of one session: all of the same scopes."""
    failed = failures and draw(st.integers(0, 4)) == 0
    return Trial(
        setting=draw(settings_of()),
        split=draw(st.sampled_from(Split)),
        seed=draw(st.integers(0, 9)),
        role=draw(st.sampled_from(Role)),
        started_utc="2026-11-24T08:00:00+00:00",
        measurement=None if failed else draw(measurements()),
        error=draw(of(TrialError)) if failed else None,
    )


@st.composite
def knobs(draw: st.DrawFn) -> Knob:
    """Knobs whose default is among their choices."""
    choices = draw(st.lists(st.integers(1, 512), min_size=1, max_size=4, unique=True).map(tuple))
    competent = draw(st.none() | st.just(choices[:1]))
    return Knob(name="n", phase=draw(st.sampled_from(Phase)), default=choices[-1], choices=choices, competent=competent)


SETTINGS = st.builds(
    ServingSetting,
    window_s=st.floats(0, 59),
    max_batch=st.integers(1, 1000),
    concurrency=st.integers(0, 1000),
    replicas=st.integers(0, 1000),
    limit_fraction=st.floats(0, 1),
)
CASCADES = st.builds(
    Cascade,
    upstream=st.text(max_size=8),
    confidence=st.floats(0, 1),
    audit_fraction=st.floats(0, 1),
    margin=st.floats(0, 1),
)

SPECIAL: dict[type, st.SearchStrategy] = {
    Cascade: CASCADES,
    Knob: knobs(),
    Measurement: measurements(),
    Reading: readings(source=Source.ESTIMATED, sensor="cpu-model"),
    ServingOptions: st.builds(
        ServingOptions,
        upstreams=st.lists(st.text(max_size=8), max_size=2).map(tuple),
        setting=SETTINGS,
        p99_s=st.none() | positive(),
        control=st.booleans(),
        cache_bytes=st.integers(0, 1 << 40),
        semantic=st.none() | st.floats(1e-6, 1),
        semantic_url=st.text(max_size=8),
        cascade=st.none() | CASCADES,
    ),
    ServingSetting: SETTINGS,
    Setting: settings_of(),
    Trial: trials(),
    Work: st.builds(Work, unit=st.text(max_size=5), quantity=positive()),
}


def of(hint: typing.Any) -> st.SearchStrategy:  # noqa: PLR0911 -- one return per kind of type
    """Any value of a type hint that `core` uses. Values with rules of their own come from SPECIAL."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in SPECIAL:
        return SPECIAL[hint]
    if origin in (typing.Union, types.UnionType):
        return st.one_of([of(arg) for arg in args])
    if origin is tuple:
        return st.lists(of(args[0]), max_size=2).map(tuple)
    if origin in (dict, Mapping):
        return st.dictionaries(st.text(max_size=5), of(args[1]), max_size=2)
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        return st.builds(hint, **{f.name: of(hints[f.name]) for f in dataclasses.fields(hint)})
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    simple = {
        float: st.floats(allow_nan=False, allow_infinity=False),
        int: st.integers(),
        str: st.text(max_size=8),
        bool: st.booleans(),
        type(None): st.none(),
    }
    return simple[hint]

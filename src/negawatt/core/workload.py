"""Workload: what the user runs, as small optional capabilities that each lever asks for by name.

A user's object has the attributes `name`, `unit`, `quality`, `knobs` and the methods of the capabilities it offers;
`Workload.of(object)` binds it. The bound Workload is a value: a lever returns a changed copy and never touches the
user's object.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from negawatt.core.errors import UsageError
from negawatt.core.serving import ServingOptions

ParamValue = str | int | float | bool
Params = Mapping[str, ParamValue]
State = Any
"""A trained model as the workload keeps it; negawatt only hands it around."""


class Phase(StrEnum):
    """The two phases of a model's life that use energy."""

    TRAIN = "train"
    INFER = "infer"


class Split(StrEnum):
    """The three parts of the evaluation data, so that no number is judged on the data that chose it."""

    CALIBRATION = "calibration"
    """seen while a run is going on: early stopping, calibration of a quantiser"""
    SELECTION = "selection"
    """chooses between settings"""
    REPORT = "report"
    """used once, for the final comparison"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """A parameter that the workload lets levers change.

    Attributes:
        name: key in `params`: the built-in levers turn "batch_size", "threads", "runtime", "precision" and "size".
        phase: the phase it belongs to.
        default: what the framework's tutorial does: the naive default.
        choices: values to try, the default among them.
        competent: the values a competent engineer would try for speed alone without touching the model's arithmetic;
            None means all of them. `runtime` would leave out int8 here.
    """

    name: str
    phase: Phase
    default: ParamValue
    choices: tuple[ParamValue, ...]
    competent: tuple[ParamValue, ...] | None = None

    def __post_init__(self) -> None:
        set_plain = object.__setattr__  # NumPy scalars become Python's, which JSON and other processes can read
        set_plain(self, "phase", self._phase(self.phase))
        set_plain(self, "default", self._plain(self.default))
        set_plain(self, "choices", tuple(map(self._plain, self.choices)))
        if self.competent is not None:
            set_plain(self, "competent", tuple(map(self._plain, self.competent)))
        for value in (self.default, *(self.competent or ())):
            if value not in self.choices:
                raise UsageError(
                    f"knob {self.name!r} of the {self.phase} phase has {value!r}, not among {list(self.choices)}",
                    "the default and the competent values are the baselines of every saving, so they must be tried",
                    f"add {value!r} to the choices of {self.name!r}",
                )

    def _phase(self, phase: str) -> Phase:
        if phase not in tuple(Phase):
            raise UsageError(
                f"knob {self.name!r} is of phase {phase!r}", "no lever would turn it", "use train or infer"
            )
        return Phase(phase)

    def _plain(self, value: Any) -> ParamValue:  # noqa: ANN401 -- whatever the user wrote
        value = value.item() if hasattr(value, "item") else value
        if type(value) in (str, int, bool) or (type(value) is float and math.isfinite(value)):
            return value  # type: ignore[no-any-return]
        raise UsageError(
            f"knob {self.name!r} has the value {value!r}",
            "settings are written to files and compared",
            "use text, finite numbers and true/false",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One step of a phase as it goes on.

    Attributes:
        step: running number, from 1.
        work: work done in this step, in the workload's unit (samples in training).
        quality: quality on the calibration split at this point, where it was evaluated.
    """

    step: int
    work: float
    quality: float | None = None


@runtime_checkable
class Trainable(Protocol):
    """Can be trained step by step, so a run can be capped or stopped early."""

    def start(self, params: Params, seed: int) -> State:
        """A fresh, untrained state."""

    def steps(self, params: Params, state: State) -> Iterator[Progress]:
        """Train `state` in place; yield after every step (an epoch, or a few batches)."""

    def evaluate(self, state: State, split: Split) -> float:
        """Quality of `state` on one split."""


@runtime_checkable
class Persistent(Protocol):
    """Can put its state on disk, so that it survives a process and can be suspended, moved and served."""

    def save(self, state: State, path: Path) -> None:
        """Write `state` under `path`, a directory that exists."""

    def load(self, path: Path) -> State:
        """The state that `save` wrote there."""


@runtime_checkable
class Inferable(Protocol):
    """Answers batches of requests in this process."""

    def predictor(self, params: Params, state: State | None) -> Callable[[Any], Any]:
        """A function from a batch (a slice of `requests`) to answers. Export and compilation happen here."""

    def requests(self, split: Split) -> Sequence[Any]:
        """The requests of one split; slices of it are batches."""

    def score(self, split: Split, answers: Sequence[Any]) -> float:
        """Quality of the answers to all requests of a split, a list of what the predictor returned per batch."""


@runtime_checkable
class Replayable(Protocol):
    """Answers its own recorded requests by itself, as a shell command does."""

    def replay(self, params: Params, state: State | None, split: Split) -> Iterator[Progress]:
        """Answer all requests of a split once; yield work done, and the quality on that split with the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A recorded request to a server, as it is replayed.

    Attributes:
        at_s: when it arrives, after the beginning [s].
        path: of the URL, with its query: "/v1/embeddings".
        body: that is posted; b"": a GET request.
        content_type: of the body.
    """

    at_s: float
    path: str
    body: bytes = b""
    content_type: str = "application/json"


@runtime_checkable
class Servable(Protocol):
    """Starts an inference server that clients talk to over HTTP."""

    def served(self, params: Params, state: State | None) -> AbstractContextManager[str]:
        """Start it, yield its base URL ("http://127.0.0.1:8001") once it answers, and stop it."""

    def calls(self, split: Split) -> Sequence[Call]:
        """The requests of one split in the order of their arrival: a trace to replay, in real time."""

    def judge(self, split: Split, bodies: Sequence[bytes]) -> float:
        """Quality of the answers to all calls of a split, their bodies in the order of the calls."""


@runtime_checkable
class Modelled(Protocol):
    """Gives out the model itself, so that it can be made smaller."""

    def model(self, state: State) -> Any:  # noqa: ANN401
        """The model object."""

    def example_inputs(self) -> Any:  # noqa: ANN401
        """Inputs the model accepts, for tracing and export."""


StopRule = Callable[[Progress], bool]
"""Called after every training step; True ends the run. Made afresh for each run, so it may keep state."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """A user's workload bound to parameter values.

    Attributes:
        name: short name.
        unit: one unit of useful inference work: "image", "token", "request".
        quality: name of the quality metric, higher is better ("accuracy").
        knobs: parameters that levers may change.
        target: the user's object with its capabilities.
        changed: parameter values that differ from the knobs' defaults.
        stop: makes the rule that ends training before its last step, or None.
        in_process: whether it runs in the process that applies the levers (a shell command does not).
        quality_bound: the quality to keep, if the user gave an absolute one.
        p99_s: the promise of its server: 99 of 100 requests end within it [s]; None: none is made.
        serving: how the gateway in front of its server serves; None: clients talk to the server itself.
    """

    name: str
    unit: str
    quality: str
    knobs: tuple[Knob, ...]
    target: object
    changed: Mapping[tuple[Phase, str], ParamValue] = field(default_factory=dict)
    stop: Callable[[], StopRule] | None = None
    in_process: bool = True
    quality_bound: float | None = None  # in the unit of the user's own metric
    p99_s: float | None = None
    serving: ServingOptions | None = None

    @classmethod
    def of(cls, target: object) -> Workload:
        """Bind a user's object.

        Raises:
            UsageError: if an attribute is missing or malformed, or no phase can be run.
        """
        missing = [a for a in ("name", "unit", "quality", "knobs") if not hasattr(target, a)]
        if missing:
            raise UsageError(
                f"{type(target).__name__} has no {', '.join(missing)}",
                "negawatt names the workload, its unit of work and its quality metric in every number it prints",
                'give the class e.g. name = "mnist", unit = "image", quality = "accuracy", knobs = (Knob(...), ...)',
            )
        name, unit, quality, knobs = (getattr(target, a) for a in ("name", "unit", "quality", "knobs"))
        if isinstance(target, type) or not all(isinstance(knob, Knob) for knob in tuple(knobs)):
            raise UsageError(
                f"{target!r} is a class" if isinstance(target, type) else f"knobs are {knobs!r}",
                "negawatt calls methods of an object and turns its Knobs",
                "write e.g. `workload = MyWorkload()` and knobs = (Knob(...),)",
            )
        if not all(isinstance(text, str) and re.fullmatch(r"[\w.+-]+", text) for text in (name, unit, quality)):
            raise UsageError(
                f"name {name!r}, unit {unit!r}, quality {quality!r}",
                "they name files, columns and records",
                "use letters, digits, '-', '_', '.'",
            )
        workload = cls(name=name, unit=unit, quality=quality, knobs=tuple(knobs), target=target)
        workload = replace(workload, in_process=getattr(target, "in_process", True), p99_s=_p99_s(target))
        keys = [(knob.phase, knob.name) for knob in workload.knobs]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            phase, knob = min(twice)
            raise UsageError(
                f"knob {knob!r} of the {phase} phase is declared twice",
                "a choice would set only one of them",
                "remove one",
            )
        if not workload.phases():
            raise UsageError(
                f"workload {name!r} can neither be trained nor answer requests",
                "there is nothing to measure",
                "give it start/steps/evaluate (training), predictor/requests/score or served/calls/judge (inference)",
            )
        if workload.served and unit != "request":
            raise UsageError(
                f"workload {name!r} is a server, and its unit is {unit!r}",
                "what a server does is counted in requests, and joules per something else would be wrong",
                'write unit = "request"',
            )
        if workload.p99_s is not None and not workload.served:
            raise UsageError(
                f"workload {name!r} promises a p99 and serves no requests",
                "nothing would be held to it",
                "give it served/calls/judge, or remove p99_s",
            )
        return workload

    def phases(self) -> tuple[Phase, ...]:
        """The phases it can run, in order."""
        train = isinstance(self.target, Trainable)
        infer = isinstance(self.target, Servable | Inferable | Replayable)
        offered = getattr(self.target, "phases", (Phase.TRAIN, Phase.INFER))
        return tuple(p for p, can in ((Phase.TRAIN, train), (Phase.INFER, infer)) if can and p in offered)

    @property
    def served(self) -> bool:
        """Whether its infer phase is requests to a server; a target that can be asked in other ways too is served."""
        return isinstance(self.target, Servable) and Phase.INFER in self.phases()

    def knob(self, phase: Phase, name: str) -> Knob | None:
        """The knob of that name and phase, or None."""
        return next((k for k in self.knobs if k.phase == phase and k.name == name), None)

    def params(self, phase: Phase) -> dict[str, ParamValue]:
        """Values of all knobs of a phase."""
        return {k.name: self.changed.get((phase, k.name), k.default) for k in self.knobs if k.phase == phase}

    def with_param(self, phase: Phase, name: str, value: ParamValue) -> Workload:
        """A copy with one parameter changed."""
        return replace(self, changed={**self.changed, (phase, name): value})


def _p99_s(target: object) -> float | None:
    """The latency that a user's object promises. Raises UsageError if it is no time."""
    promise: Any = getattr(target, "p99_s", None)
    if promise is None:
        return None
    if isinstance(promise, bool) or not isinstance(promise, int | float) or not 0 < promise < math.inf:
        raise UsageError(
            f"p99_s is {promise!r}", "99 of 100 requests are to end within it", "write seconds, e.g. p99_s = 0.05"
        )
    return float(promise)

"""`negawatt.meter`: a run as a `with` block or a decorator."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, TypeVar, cast

from negawatt.core.errors import UsageError
from negawatt.core.run import Run
from negawatt.metering.run import LiveRun

F = TypeVar("F", bound=Callable[..., Any])


class meter:  # noqa: N801 -- used as a function
    """Meter a block or a function.

        with negawatt.meter("training") as m:
            train()
        print(m.energy_j, m.energy_sd_j, m.source)

        @negawatt.meter("evaluation", record=True)
        def evaluate(): ...

    The joules are the host's (or the GPUs'), other programs included; where other runs are metered at the same time,
    they are this run's part of them (`m.host_energy_j` is the whole, `m.attribution` how it was shared). A run is
    logged at level INFO by the logger "negawatt".

    Args:
        name: what it is; None: the function's name.
        sensors: names of sensors; none: every available one, estimates only where nothing measures.
        record: whether it is kept in the ledger, also if it ends by an exception or is killed.
        then: called with every finished run.

    Raises:
        NoMeterError, NeedsPrivilegeError, UsageError, ScopeMismatchError: at the beginning, as `Meter.open`.
        SensorError: behind the block, if a sensor failed inside it.
    """

    def __init__(
        self,
        name: str | None = None,
        *,
        sensors: Sequence[str] = (),
        record: bool = False,
        then: Callable[[Run], object] | None = None,
    ) -> None:
        if name is not None and not isinstance(name, str):
            raise UsageError(
                f"meter({name!r})",
                "a run is found by its name",
                'type `@negawatt.meter()` or `@negawatt.meter("name")`',
            )
        self._name = name
        self._sensors = tuple(sensors)
        self._record = record
        self._then = then
        self._live: LiveRun | None = None

    def __enter__(self) -> LiveRun:
        if self._live:
            raise UsageError(
                f"this meter({self._name!r}) is running already",
                "one object follows one run at a time",
                "write `with negawatt.meter(...)` anew for each block",
            )
        self._live = LiveRun(self._name or "run", sensors=self._sensors, record=self._record)
        return self._live

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        live, self._live = self._live, None
        run = live.stop(error=error) if live else None
        if live is None or run is None:  # a forked child leaves its parent's block
            return
        if "logging" in sys.modules:  # else nobody has asked for any log
            sys.modules["logging"].getLogger("negawatt").info("%s", run)
        if self._then:
            self._then(run)
        if error is None:  # else the error under way says more than the sensor's
            live.readings  # noqa: B018 -- raises if a sensor failed

    def __call__(self, function: F) -> F:
        """Meter every call of a function or coroutine. Raises UsageError for a generator."""
        import inspect

        again = functools.partial(
            meter, self._name or function.__qualname__, sensors=self._sensors, record=self._record, then=self._then
        )
        if inspect.iscoroutinefunction(function):

            async def metered_coroutine(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401 -- as the function
                with again():
                    return await function(*args, **kwargs)

            return cast("F", functools.wraps(function)(metered_coroutine))
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise UsageError(
                f"{function.__qualname__} is a generator",
                "the code between two of its values is not its own, and its joules neither",
                "write `with negawatt.meter(...)` around the part that works",
            )

        def metered(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            with again():
                return function(*args, **kwargs)

        return cast("F", functools.wraps(function)(metered))

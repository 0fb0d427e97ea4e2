"""GatewayLever: a lever that turns an option of the gateway before a server. Batching and the cache are such levers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import final

from negawatt.core.host import Host
from negawatt.core.lever import Choice, Context, LeverInfo
from negawatt.core.serving import ServingOptions
from negawatt.core.workload import ParamValue, Phase, Workload

OFF: ParamValue = "off"


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayLever:
    """Turns one option of the gateway before a workload's server.

    Attributes:
        info: what the lever is.
        values: what a workload's server gives it to turn, the naive value first; empty: nothing.
        turned: the options of a workload with the option turned to one of these values. It is not asked about `OFF`.
        competent: whether a competent engineer would turn it for speed alone.
    """

    info: LeverInfo
    values: Callable[[Workload], Sequence[ParamValue]]
    turned: Callable[[Workload, ServingOptions, ParamValue], ServingOptions]
    competent: bool

    def available(self, host: Host) -> str | None:  # noqa: ARG002 -- the gateway runs wherever its packages are
        """None if the gateway can be started here."""
        missing = [name for name in ("aiohttp", "uvicorn") if find_spec(name) is None]
        if not missing:
            return None
        return f"the gateway needs the package {missing[0]}, which is not installed; pip install 'negawatt[serve]'"

    def choices(self, workload: Workload) -> Sequence[Choice]:
        """The values, where the workload is a server."""
        values = self.values(workload) if workload.served else ()
        return [
            Choice(
                lever=self.info.name, phase=Phase.INFER, value=value, naive=i == 0, competent=i == 0 or self.competent
            )
            for i, value in enumerate(values)
        ]

    @contextmanager
    def applied(self, workload: Workload, choice: Choice, context: Context) -> Iterator[Workload]:  # noqa: ARG002
        """Yield the workload with the option turned; nothing outside it changes."""
        if choice.value == OFF:
            yield workload
            return
        yield replace(workload, serving=self.turned(workload, workload.serving or ServingOptions(), choice.value))

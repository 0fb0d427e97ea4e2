"""`negawatt plan WORKLOAD`: find and prove the settings that do the same work for fewer joules."""

from __future__ import annotations

import json
import math
import shlex
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, final

import click

if TYPE_CHECKING:
    from negawatt.core.plan import PhasePlan, Plan
    from negawatt.search.bench import Event


def _finite(_context: click.Context, option: click.Parameter, value: float | None) -> float | None:
    if value is not None and not math.isfinite(value):
        raise click.BadParameter(f"{value} is not a finite number", param=option)
    return value


@click.command()
@click.argument("workload", type=click.Path(path_type=Path))
@click.option("--lever", "levers", multiple=True, metavar="NAME", help="Try only this lever (repeatable).")
@click.option("--sensor", "sensors", multiple=True, metavar="NAME", help="Meter only with this sensor (repeatable).")
@click.option(
    "--keep", metavar="TEXT", help="Quality to keep: 'accuracy>=0.93', or 'accuracy>=baseline-0.01' (the default)."
)
@click.option(
    "--max-slowdown", type=click.FloatRange(min=0), callback=_finite, metavar="F", help="Accept F more time, e.g. 0.03."
)
@click.option(
    "--p99", metavar="TIME", help="Latency that a server promises: 99 of 100 requests end within it, e.g. 50ms."
)
@click.option(
    "--requests", type=click.FloatRange(min=0, min_open=True), callback=_finite, default=1e6, show_default=True,
    metavar="N",
    help="Units of inference over the model's life.",
)  # fmt: skip
@click.option("--budget", default="10m", show_default=True, metavar="TIME", help="Time for search and proof.")
@click.option("--site", type=click.Path(path_type=Path), metavar="FILE", help="TOML file with [[site]] tables.")
@click.option("--out", type=click.Path(path_type=Path), default="negawatt-plan", show_default=True, metavar="DIR")
@click.option("--trial-timeout", metavar="TIME", help="Stop a trial after this long; default: learnt from the others.")
@click.option("--seed", type=int, default=0, show_default=True, help="Seed of the workload and of the block order.")
@click.option("--fresh", is_flag=True, help="Ignore the trials of an interrupted plan.")
@click.option("--json", "as_json", is_flag=True, help="Print the plan as JSON.")
def command(  # noqa: PLR0913 -- one parameter per option
    workload: Path, levers: tuple[str, ...], sensors: tuple[str, ...], keep: str | None, max_slowdown: float | None,
    p99: str | None, requests: float, budget: str, site: Path | None, out: Path, trial_timeout: str | None, seed: int,
    fresh: bool, as_json: bool,  # noqa: FBT001
) -> None:  # fmt: skip
    """Find and prove the settings that do the same work for fewer joules.

    WORKLOAD is a Python file with a `workload` object, or a negawatt.toml with shell commands.
    Writes plan.json and report.html to --out. Exit code 0: a saving over the competent default was shown in at least
    one phase (over the naive default where the two are the same); 1: none was.
    """
    from negawatt.ledger.store import Ledger
    from negawatt.plan.planner import make_plan
    from negawatt.plan.request import Request, parse_duration_s, parse_promise, read_sites

    request = Request(
        path=workload,
        out=out,
        promise=parse_promise(keep),
        max_slowdown=max_slowdown,
        requests=requests,
        budget_s=parse_duration_s(budget),
        levers=levers,
        sensors=sensors,
        sites=read_sites(site) if site else (),
        fresh=fresh,
        trial_limit_s=parse_duration_s(trial_timeout) if trial_timeout else None,
        p99_s=parse_duration_s(p99) if p99 else None,
        seed=seed,
    )
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the host is restored, every trial kept
    with Ledger.open() as ledger, _Progress(request.budget_s) as progress:
        plan = make_plan(request, ledger, progress.watch, progress.note)
    _write(plan, out)
    if as_json:
        from negawatt.core.codec import to_json

        click.echo(json.dumps(to_json(plan), indent=1, allow_nan=False))
    else:
        _print(plan, out)
    sys.exit(0 if any(_headline_shown(phase) for phase in plan.phases) else 1)


def _headline_shown(phase: PhasePlan) -> bool:
    """Whether the phase counts for the exit code. Over the naive default alone it does not: that is no news."""
    from negawatt.core.saving import Baseline

    counting = list(Baseline) if phase.competent == phase.naive else [Baseline.COMPETENT]
    return any(saving.shown and saving.against in counting for saving in phase.savings)


def _write(plan: Plan, out: Path) -> None:
    """Write plan.json and report.html, each whole or not at all."""
    from negawatt.core.codec import to_json
    from negawatt.core.errors import NegawattError
    from negawatt.report.html import render

    files = {"plan.json": json.dumps(to_json(plan), indent=1, allow_nan=False), "report.html": render(plan)}
    for name, text in files.items():
        part = out / f".{name}.part"
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(out / name)
        except OSError as error:
            raise NegawattError(
                f"cannot write {out / name}: {error.strerror}",
                "the plan itself is safe: it is in the ledger",
                "make room, then `negawatt ledger list --kind plan` and `negawatt ledger show ID`",
            ) from error
        finally:
            with suppress(OSError):
                part.unlink(missing_ok=True)


def _print(plan: Plan, out: Path) -> None:
    from rich.console import Console

    from negawatt.report.text import render

    console = Console(highlight=False)
    console.print(render(plan, width=console.width))
    console.print(f"\nWritten: {out / 'plan.json'}, {out / 'report.html'}", soft_wrap=True)
    console.print(f"Use it:  negawatt apply {shlex.quote(str(out / 'plan.json'))}", soft_wrap=True)


@final
class _Progress:
    """What is going on, on stderr: one live line with the time left on a terminal, a line per trial elsewhere."""

    def __init__(self, budget_s: float) -> None:
        from rich.console import Console

        self._console = Console(stderr=True, highlight=False)
        self._end_s = time.monotonic() + budget_s
        self._live = self._console.is_terminal
        self._text = ""
        self._heard = True
        self._status = self._console.status("starting") if self._live else None

    def __enter__(self) -> _Progress:
        if self._status:
            with suppress(OSError, ValueError):  # a terminal that is gone
                self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._status:
            with suppress(OSError, ValueError):
                self._status.stop()

    def note(self, text: str) -> None:
        """Say what begins now."""
        self._text = text
        self._show("")

    def watch(self, event: Event) -> None:
        """Show a step of a trial, and the result of one that is over."""
        if event.progress is not None:
            quality = "" if event.progress.quality is None else f", quality {event.progress.quality:.4g}"
            self._show(f" (step {event.progress.step}{quality})")
        if event.trial is None:
            return
        m, error = event.trial.measurement, event.trial.error
        if m is not None:
            from negawatt.report.numbers import duration, energy

            p99 = f", p99 {duration(m.latency.p99_s)}" if m.latency else ""
            line = f"{energy(m.energy_per_work_j)}, {duration(m.time_per_work_s)}{p99}, quality {m.quality:.4g}"
        else:
            line = f"failed ({error.kind}): {error.message.splitlines()[0]}" if error else ""
        what = f"  {event.trial.phase} {event.trial.role}: {event.setting}"
        self._print(f"{what}: {line}")

    def _show(self, step: str) -> None:
        minutes, seconds = divmod(round(max(0.0, self._end_s - time.monotonic())), 60)
        text = f"{self._text}{step}; at most {minutes}:{seconds:02} left"
        if self._status:
            from rich.text import Text

            self._status.update(Text(text))
        elif not step:
            self._print(text)

    def _print(self, line: str) -> None:
        """Print a line; once nobody reads any more, the plan goes on in silence."""
        if not self._heard:
            return
        try:
            if self._live:
                self._console.print(line, markup=False, soft_wrap=True)
            else:  # not through rich: at a broken pipe it would silence stdout as well
                click.echo(line, err=True)
        except (OSError, ValueError):
            self._heard = False

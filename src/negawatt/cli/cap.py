"""`negawatt cap -- CMD`: run a command with its devices limited as far as that pays, and put them back as found."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from negawatt.core.errors import UsageError

if TYPE_CHECKING:
    from negawatt.execute.fleetfile import Member


@click.command(context_settings={"allow_interspersed_args": False})
@click.option(
    "--max-slowdown", metavar="F", type=float, default=0.03, show_default=True,
    help="Steps may take longer by this part; with a goal other than energy, say `--max-slowdown inf` for any.",
)  # fmt: skip
@click.option(
    "--goal", type=click.Choice(["energy", "edp", "weighted"]), default="energy", show_default=True,
    help="What is made small: energy, energy times time, or energy plus --time-weight of it per doubling of time.",
)  # fmt: skip
@click.option("--time-weight", metavar="W", type=float, help="Only for --goal weighted: what a doubled time is worth.")
@click.option("--clocks", is_flag=True, help="Limit clocks instead of power.")
@click.option("--limit", metavar="X", type=float, help="Do not tune: this limit for each device, in W (or MHz).")
@click.option(
    "--advise", "--dry-run", "advise", is_flag=True, help="Change nothing; say what would pay and what to type."
)
@click.option(
    "--fleet", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path),
    help="Share one mean slow-down with all jobs that name this file, in place of --max-slowdown; needs --length.",
)  # fmt: skip
@click.option("--fleet-budget", metavar="F", type=float, help="That mean slow-down; with the fleet's first job.")
@click.option("--length", metavar="TIME", help="How long CMD is expected to take, as 90m or 2h; for --fleet.")
@click.option("--name", metavar="NAME", help="What to call it in the ledger; default: the command's name.")
@click.option("--sensor", "sensors", multiple=True, metavar="NAME", help="Meter only with this sensor (repeatable).")
@click.option(
    "--record", metavar="FILE", type=click.Path(dir_okay=False, path_type=Path), help="Write the summary as JSON, too."
)
@click.argument("argv", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] CMD...")
def command(  # noqa: PLR0913 -- one per option
    *,
    max_slowdown: float,
    goal: str,
    time_weight: float | None,
    clocks: bool,
    limit: float | None,
    advise: bool,
    fleet: Path | None,
    fleet_budget: float | None,
    length: str | None,
    name: str | None,
    sensors: tuple[str, ...],
    record: Path | None,
    argv: tuple[str, ...],
) -> None:
    """Run CMD with the limit of its GPUs (without GPUs: of the processors) that costs least energy.

    It is found while CMD runs, from windows of its steps, and everything is put back as found whatever happens, also to
    negawatt. Steps of PyTorch optimizers are counted by themselves; any other program appends {"work": 1} as a line per
    step to the file named in $NEGAWATT_PROGRESS. Without the privilege to set limits, CMD runs as it is, and what would
    pay is said at the end. CMD keeps stdin, stdout, stderr, signals and exit code.
    """
    from functools import partial
    from math import inf

    from negawatt.cli.run import meter_command
    from negawatt.execute.cap import Wish, capped
    from negawatt.hardware.control import Knob
    from negawatt.tuning.objective import Goal, Objective

    if (time_weight is not None) != (goal == "weighted"):
        raise UsageError(
            f"--goal {goal} {'with' if time_weight is not None else 'without'} --time-weight",
            "the weight belongs to that goal, and no weight is assumed",
            "write e.g. --goal weighted --time-weight 1",
        )
    if limit is not None and not 0 < limit < inf:
        raise UsageError(f"--limit {limit:g}", "no device runs on that", "give watts (or with --clocks MHz) above 0")
    if limit is not None and (advise or fleet or goal != "energy"):
        raise UsageError(
            "--limit with --advise, --fleet or --goal",
            "a limit that is given is not searched for",
            "leave out one of them",
        )
    if 1 < max_slowdown < inf:
        raise UsageError(
            f"--max-slowdown {max_slowdown:g}",
            f"that allows steps {1 + max_slowdown:g} times as long",
            f"write {max_slowdown / 100:g} for {max_slowdown:g} %, or inf for any",
        )
    objective = Objective(
        goal=Goal(goal),
        max_slowdown_fraction=None if max_slowdown == inf else max_slowdown,
        time_weight=time_weight or 0.0,
    )
    knob = Knob.CLOCK_LIMIT if clocks else Knob.POWER_LIMIT
    wish = Wish(objective=objective, knob=knob, limit=limit, advise=advise, fleet=_member(fleet, fleet_budget, length))
    meter_command(argv, name, sensors, record, partial(capped, wish))


def _member(path: Path | None, budget: float | None, length: str | None) -> Member | None:
    """The job as a member of a fleet; None without one."""
    import os
    import platform

    from negawatt.execute.fleetfile import Member
    from negawatt.plan.request import parse_duration_s

    if path is None and budget is None and length is None:
        return None
    if path is None or length is None:
        raise UsageError(
            "a fleet without --fleet or without --length",
            "a mean slow-down is weighted by the jobs' lengths, and kept in a file",
            "write e.g. --fleet /shared/fleet.json --length 2h, and --fleet-budget 0.05 with the first job",
        )
    job = os.environ.get("SLURM_JOB_ID", str(os.getpid()))
    return Member(
        path=path.absolute(),
        name=f"{platform.node()} {job} {os.urandom(3).hex()}",
        length_s=parse_duration_s(length),
        budget_fraction=budget,
    )

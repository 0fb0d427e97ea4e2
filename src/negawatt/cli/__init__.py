"""The command line. A command's module is imported only when the command is invoked, so that help is quick."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING, Any, final

import click

from negawatt import __version__
from negawatt.core.errors import NegawattError, UsageError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

_COMMANDS = {
    "plan": "Find and prove the settings that do the same work for fewer joules.",
    "apply": "Run a workload under its plan and record whether the saving held.",
    "run": "Run a command under the meter and record its joules.",
    "cap": "Run a command with its devices limited, tuned while it runs, and put back.",
    "gateway": "Serve in front of an inference server: joules per request, and fewer of them.",
    "guard": "Let users limit devices without being root: a small helper.",
    "doctor": "Show what this host can measure and change, and what to type for the rest.",
    "ledger": "Look up what was measured, and check that it is intact.",
    "footprint": "Show what an energy is the same as, with ranges and sources.",
    "estimate": "Estimate energy, carbon and cost before running, as ranges.",
    "forecast": "Forecast AI's electricity and which levers bend it.",
    "calibrate": "Correct this host's meter by a wall meter.",
    "config": "Show and set where this host is and what its power costs.",
}


@final
class Commands(click.Group):
    """A group whose unknown commands get a suggestion, and whose lazy commands are imported when invoked.

    Args:
        lazy: name of each lazy command -> its help in one line. Command `x` is `negawatt.cli.x.command`.
        attributes: as for click.Group.
    """

    def __init__(self, *, lazy: Mapping[str, str] | None = None, **attributes: Any) -> None:  # noqa: ANN401 -- click's
        super().__init__(**attributes)
        self._lazy = dict(lazy or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, the lazy ones in the order of the map."""
        return [*self._lazy, *super().list_commands(ctx)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now if it is lazy; None if there is none of that name."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        command: click.Command = import_module(f"negawatt.cli.{cmd_name}").command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that `args` begin with. Raises UsageError with the nearest name if there is none."""
        name, names = args[0], self.list_commands(ctx)
        if name not in names and not name.startswith("-") and not ctx.resilient_parsing:
            from difflib import get_close_matches

            near = get_close_matches(name, names, n=1)
            raise UsageError(
                f"no command {name!r}",
                "nothing was done",
                f"did you mean `{ctx.command_path} {near[0]}`?" if near else f"`{ctx.command_path} --help` lists them",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, self._short_help(name)) for name in self.list_commands(ctx)])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Completions of a command's name or an option, without importing any command."""
        from click.shell_completion import CompletionItem

        names = [name for name in self.list_commands(ctx) if name.startswith(incomplete)]
        commands = [CompletionItem(name, help=self._short_help(name)) for name in names]
        return [*commands, *click.Command.shell_complete(self, ctx, incomplete)]

    def _short_help(self, name: str) -> str:
        return self._lazy[name] if name in self._lazy else self.commands[name].get_short_help_str(limit=100)


_group = Commands(
    name="negawatt",
    lazy=_COMMANDS,
    help="Find, prove and keep the settings that do the same AI work for fewer joules.\n\n"
    "Exit codes: 0 ok, 1 claim not shown, 2 usage, 3 no meter, 4 needs privilege; `run` passes its command's on.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
)
click.version_option(__version__, prog_name="negawatt")(_group)


def main(args: Sequence[str] | None = None) -> int:
    """Run a command line.

    Args:
        args: words after the program's name; None: those of this process.

    Returns:
        The exit code. A command that calls sys.exit raises SystemExit instead.
    """
    try:
        _open_streams()
        status = _run(args)
    except NegawattError as error:
        _say(f"negawatt: {error}")
        return error.exit_code
    except click.ClickException as error:
        with suppress(OSError):
            error.show()
        return error.exit_code
    except BrokenPipeError:  # the reader left, as `| head` does
        _silence()
        return 1
    except OSError as error:
        _silence()
        told = NegawattError(str(error), "not all of the answer was given", "if the disk is full, make room; try again")
        _say(f"negawatt: {told}")
        return 1
    except (click.Abort, KeyboardInterrupt):  # Ctrl-C, within click and outside of it
        _say(f"negawatt: interrupted; {_kept()}")
        return 130
    return status if isinstance(status, int) else 0


def _run(args: Sequence[str] | None) -> object:
    """Run the command, and write out what it printed while an error can still be told."""
    try:
        status = _group.main(args, prog_name="negawatt", standalone_mode=False)
    except SystemExit:
        sys.stdout.flush()
        raise
    sys.stdout.flush()
    return status


def _open_streams() -> None:
    """See to it that whatever is printed can be: streams that are closed, as after `>&-`, or know few characters."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115, PTH123 -- open to the end
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="negawatt")


_PLAIN = {"\u00a0": " ", "\u2212": "-", "\u2013": "-", "µ": "u", "±": "+-", "×": "x", "…": "..."}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    """Characters that a terminal's encoding lacks, in others."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    return "".join(_PLAIN.get(c, "?") for c in error.object[error.start : error.end]), error.end


codecs.register_error("negawatt", _plainly)


def _say(text: str) -> None:
    """Write to stderr; where that fails too, the exit code has to do."""
    with suppress(OSError):
        click.echo(text, err=True)


def _silence() -> None:
    """Point stdout at nothing, so that Python's own last flush does not fail again."""
    with suppress(OSError), open(os.devnull, "wb") as nothing:  # noqa: PTH123
        os.dup2(nothing.fileno(), sys.stdout.fileno())


def _kept() -> str:
    from negawatt.ledger.store import default_path

    path = default_path()
    return f"what was finished is kept in {path} (`negawatt ledger list`)" if path.exists() else "nothing was recorded"

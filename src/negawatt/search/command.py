"""Command: a workload made of shell commands in `negawatt.toml`.

A command gets its choices through `{name}` in its text or environment, and `{state}` (a folder for the trained model)
and `{seed}` the same way. It reports by appending JSON lines to the file named in $NEGAWATT_PROGRESS:

    {"work": 3000, "quality": 0.91, "split": "calibration"}

`work` is the work done since the last line, `quality` the metric on `split` (calibration, selection or report; without
a split it stands for all). Training reports the selection and the report split when it ends; inference answers the
requests of the split named in $NEGAWATT_SPLIT (or `{split}`).
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import string
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from negawatt.core.errors import UsageError, WorkloadError
from negawatt.core.workload import Knob, Params, ParamValue, Phase, Progress, Split

_POLL_S = 0.02
_GRACE_S = 30.0
_FIELDS = {"state", "seed", "split", "python"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCommand:
    """One phase of a command workload.

    Attributes:
        command: text for `/bin/sh -c`, with `{name}` templates.
        env: environment variables with the same templates.
        stop_signal: signal that makes the training command save its model and end well, or None.
    """

    command: str
    env: Mapping[str, str]
    stop_signal: signal.Signals | None = None


@final
@dataclass(slots=True, kw_only=True)
class CommandState:
    """A trained model as a folder, with what its command reported about it."""

    folder: Path
    seed: int
    qualities: dict[Split | None, float] = field(default_factory=dict)
    owner: tempfile.TemporaryDirectory[str] | None = None  # removes the folder when the state is forgotten


@final
class Command:
    """Offers training, saving and replaying through shell commands."""

    in_process = False

    def __init__(
        self, names: tuple[str, str, str], knobs: tuple[Knob, ...], commands: Mapping[Phase, PhaseCommand], root: Path
    ) -> None:
        self.name, self.unit, self.quality = names
        self.knobs = knobs
        self.phases = tuple(commands)
        self.stoppable = Phase.TRAIN in commands and commands[Phase.TRAIN].stop_signal is not None
        self._commands = commands
        self._root = root

    def start(self, params: Params, seed: int) -> CommandState:  # noqa: ARG002 -- the contract
        """An empty folder for the model."""
        owner = tempfile.TemporaryDirectory(prefix="negawatt-state-")
        return CommandState(folder=Path(owner.name), seed=seed, owner=owner)

    def steps(self, params: Params, state: CommandState) -> Iterator[Progress]:
        """Run the training command; closing the iterator early sends its stop signal and waits for it to save."""
        yield from self._run(Phase.TRAIN, params, state, None)

    def evaluate(self, state: CommandState, split: Split) -> float:
        """What the command last reported for this split, or for no split in particular."""
        return self._reported(state, split)

    def save(self, state: CommandState, path: Path) -> None:
        """Copy the model's folder."""
        shutil.copytree(state.folder, path, dirs_exist_ok=True)

    def load(self, path: Path) -> CommandState:
        """A model folder on disk."""
        return CommandState(folder=path.resolve(), seed=0)  # commands run in another folder

    def replay(self, params: Params, state: CommandState | None, split: Split) -> Iterator[Progress]:
        """Run the inference command once; its last progress carries the quality on `split`."""
        state = state or self.start(params, 0)
        state.qualities.clear()
        step = 0
        for progress in self._run(Phase.INFER, params, state, split):
            step = progress.step
            yield Progress(step=step, work=progress.work)
        yield Progress(step=step + 1, work=0.0, quality=self._reported(state, split))

    def _reported(self, state: CommandState, split: Split) -> float:
        quality = state.qualities.get(split, state.qualities.get(None))
        if quality is None:
            had = ", ".join(str(known) for known in state.qualities if known) or "none"
            raise WorkloadError(
                f"the command reported no quality for the {split} split (it did for: {had})",
                "a saving counts only while the quality is kept",
                f'append {{"quality": 0.9, "split": "{split}"}} as a line to the file in $NEGAWATT_PROGRESS',
            )
        return quality

    def _run(self, phase: Phase, params: Params, state: CommandState, split: Split | None) -> Iterator[Progress]:
        spec = self._commands[phase]
        values: dict[str, ParamValue] = {
            **params,
            "state": str(state.folder),
            "seed": state.seed,
            "split": str(split or ""),
            "python": sys.executable,
        }
        with tempfile.TemporaryDirectory(prefix="negawatt-progress-") as folder:
            report = Path(folder) / "progress.jsonl"
            report.touch()
            text = spec.command.format_map({name: shlex.quote(str(value)) for name, value in values.items()})
            env = {name: template.format_map(values) for name, template in spec.env.items()}
            env |= {"NEGAWATT_PROGRESS": str(report), "NEGAWATT_SPLIT": str(split or "")}
            # The shell outlives the stop signal, to wait for its program and pass its exit code on.
            guard = f"trap : {spec.stop_signal.name[3:]}; " if spec.stop_signal else ""
            process = subprocess.Popen(
                ["/bin/sh", "-c", guard + text], cwd=self._root, env={**os.environ, **env},
                stdin=subprocess.DEVNULL, stdout=2, process_group=0,
            )  # fmt: skip
            try:
                yield from _follow(process, report, state)
            except GeneratorExit:  # stopped early: the command saves its model, and may report on it, before it ends
                if spec.stop_signal is not None:
                    _ask_to_end(process, spec.stop_signal)
                for step, line in enumerate(filter(bytes.strip, _lines(report, 0))):
                    _progress(line, state, step)
                if process.returncode:
                    raise _failed(text, process.returncode) from None
                raise
            finally:
                _kill(process)
            if process.returncode:
                raise _failed(text, process.returncode)


def _follow(process: subprocess.Popen[bytes], report: Path, state: CommandState) -> Iterator[Progress]:
    """Progress lines as they are appended, until the process has ended and all are read."""
    offset = step = 0
    while True:
        over = process.poll() is not None
        for line in _lines(report, offset):
            offset += len(line)
            if line.strip():
                step += 1
                yield _progress(line, state, step)
        if over:
            return
        time.sleep(_POLL_S)


def _lines(report: Path, offset: int) -> list[bytes]:
    """The complete lines after `offset` bytes."""
    with report.open("rb") as file:
        file.seek(offset)
        return [line for line in file if line.endswith(b"\n")]


def _progress(raw: bytes, state: CommandState, step: int) -> Progress:
    try:
        line: Any = json.loads(raw)
        quality = line.get("quality")
        split = Split(line["split"]) if "split" in line else None
        progress = Progress(
            step=step,
            work=float(line.get("work", 0.0)),
            quality=float(quality) if quality is not None and split in (None, Split.CALIBRATION) else None,
        )
    except (ValueError, TypeError, AttributeError) as error:
        raise WorkloadError(
            f"progress line {raw[:120]!r} ({error})",
            "work and quality are read from it, and guessing would make numbers up",
            'write one JSON object a line, e.g. {"work": 100, "quality": 0.9, "split": "selection"}',
        ) from error
    if quality is not None:
        state.qualities[split] = float(quality)
    return progress


def _ask_to_end(process: subprocess.Popen[bytes], sent: signal.Signals) -> None:
    """Signal the whole process group, as a terminal would, and wait for the command to save and end."""
    with contextlib.suppress(ProcessLookupError):  # it ended by itself in this moment
        os.killpg(process.pid, sent)
    with contextlib.suppress(subprocess.TimeoutExpired):  # then it is killed
        process.wait(timeout=_GRACE_S)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """Make sure that nothing of the command's process group is left."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _failed(text: str, code: int) -> WorkloadError:
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return WorkloadError(
        f"the command {how}: {text}", "a failed run did not do the work", "run that line by hand to see what it says"
    )


def read_toml(path: Path) -> Command:
    """Read a `negawatt.toml`.

    Raises:
        UsageError: on malformed TOML, missing or unknown keys, and templates that name no knob.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{path} is not valid TOML: {error}", "nothing in it can be trusted", "fix that line"
        ) from None
    head = _table(path, data, "workload", {"name", "unit", "quality"}, required={"name", "unit", "quality"})
    extra = sorted(set(data) - {"workload", "train", "infer"})
    if extra:
        raise _malformed(path, f"unknown table [{extra[0]}]", "use [workload], [train] and [infer]")
    commands: dict[Phase, PhaseCommand] = {}
    knobs: list[Knob] = []
    for phase in Phase:
        if phase in data:
            if not isinstance(data[phase], dict):
                raise _malformed(path, f"{phase} = {data[phase]!r}", f"write it as a table: [{phase}]")
            mine = _knobs(path, phase, data[phase].get("knobs", {}))
            commands[phase] = _phase_command(path, phase, data[phase], {knob.name for knob in mine})
            knobs += mine
    if not commands:
        raise _malformed(path, "neither [train] nor [infer]", 'add e.g. [train] with command = "python train.py"')
    return Command((head["name"], head["unit"], head["quality"]), tuple(knobs), commands, path.resolve().parent)


def _malformed(path: Path, got: str, fix: str) -> UsageError:
    return UsageError(f"{path}: {got}", "a workload that is half understood would be measured wrongly", fix)


def _table(path: Path, data: Any, name: str, known: set[str], required: set[str]) -> dict[str, Any]:  # noqa: ANN401
    table = data.get(name)
    if not isinstance(table, dict):
        raise _malformed(path, f"no table [{name}]", f"add [{name}] with {', '.join(sorted(required))}")
    for key in sorted(required - set(table)):
        raise _malformed(path, f"[{name}] has no {key!r}", f'add {key} = "..." under [{name}]')
    for key in sorted(set(table) - known):
        raise _malformed(path, f"[{name}] has an unknown key {key!r}", f"known keys: {', '.join(sorted(known))}")
    wrong = [key for key in required if not isinstance(table[key], str)]
    if wrong:
        raise _malformed(path, f"[{name}] {wrong[0]} is not text", f'write {wrong[0]} = "..."')
    return table


def _phase_command(path: Path, phase: Phase, data: Any, knobs: set[str]) -> PhaseCommand:  # noqa: ANN401
    known = {"command", "env", "knobs"} | ({"stop_signal"} if phase is Phase.TRAIN else set())
    table = _table(path, {phase: data}, phase, known, required={"command"})
    env = table.get("env", {})
    if not isinstance(env, dict) or any("=" in name or not isinstance(value, str) for name, value in env.items()):
        raise _malformed(path, f"[{phase}] env = {env!r}", 'write env = { NAME = "text" }')
    used: set[str] = set()
    for text in (table["command"], *env.values()):
        try:
            for _, name, spec, conversion in string.Formatter().parse(text):
                if spec or conversion:
                    raise ValueError(f"{{{name}}} is formatted; templates are plain names")
                used |= {name} if name is not None else set()
        except ValueError as error:
            raise _malformed(path, f"[{phase}] {text!r}: {error}", "write literal braces twice: {{ and }}") from None
    for name in sorted(used - knobs - _FIELDS):
        raise _malformed(
            path,
            f"[{phase}] uses {{{name}}}, which is no knob",
            f"declare [{phase}.knobs.{name}] or write {{{{{name}}}}}",
        )
    for name in sorted(knobs - used):
        raise _malformed(path, f"[{phase}] never uses its knob {name!r}", f"put {{{name}}} into command or env")
    sent = table.get("stop_signal")
    if sent is not None and (f"SIG{sent}" not in signal.Signals.__members__ or sent in ("KILL", "STOP")):
        raise _malformed(path, f"[train] stop_signal = {sent!r}", 'use the name without SIG, e.g. "TERM" or "INT"')
    return PhaseCommand(command=table["command"], env=env, stop_signal=signal.Signals[f"SIG{sent}"] if sent else None)


def _knobs(path: Path, phase: Phase, tables: Any) -> list[Knob]:  # noqa: ANN401
    if not isinstance(tables, dict):
        raise _malformed(path, f"[{phase}] knobs is not a table", f"write [{phase}.knobs.NAME]")
    knobs = []
    for name, table in tables.items():
        if name in _FIELDS:
            raise _malformed(path, f"[{phase}.knobs.{name}]", f"{{{name}}} is negawatt's own; call the knob otherwise")
        if not isinstance(table, dict) or not {"default", "choices"} <= set(table) <= {
            "default",
            "choices",
            "competent",
        }:
            raise _malformed(
                path,
                f"[{phase}.knobs.{name}] has {table}",
                "give default = ..., choices = [...], and perhaps competent",
            )
        competent = table.get("competent")
        if not isinstance(table["choices"], list) or not isinstance(competent, list | None):
            raise _malformed(
                path, f"[{phase}.knobs.{name}] has {table}", "write choices (and competent) as lists: [1, 2]"
            )
        values = [table["default"], *table["choices"], *(competent or ())]
        if not all(isinstance(value, str | int | float | bool) for value in values):
            raise _malformed(path, f"[{phase}.knobs.{name}] has {table}", "use text, numbers and true/false as values")
        knobs.append(
            Knob(
                name=name,
                phase=phase,
                default=table["default"],
                choices=tuple(table["choices"]),
                competent=None if competent is None else tuple(competent),
            )
        )
    return knobs

"""The conventions of the design, held against the source itself."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import negawatt

SOURCE = Path(negawatt.__file__).parent
FILES = sorted(SOURCE.rglob("*.py"))
UNITS = re.compile(
    r"_(j|w|s|mj|kwh|c|hz|mhz|bytes|gpkwh|g|fraction|ratio|utc"  # SI, and what the standards of the field print
    r"|per_kwh|per_mwh|per_work_j|per_work_s|per_s)$"
)
# Without a unit of their own: counts of work, and numbers in the unit of the user's own metric or currency. The class
# says which. Any other needs a comment behind it.
DIMENSIONLESS = {
    "bound",
    "ci_high",
    "ci_low",
    "cost",
    "fraction",
    "high",
    "low",
    "margin",
    "max_slowdown",
    "pue",
    "quality",
    "quality_bound",
    "requests",
    "samples",
    "slowdown",
    "step",
    "value",
    "work",
    "work_units",
}


def parsed(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def dataclasses_of(tree: ast.Module) -> Iterator[tuple[ast.ClassDef, ast.expr]]:
    """Dataclasses with their decorator."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for decorator in node.decorator_list:
                if "dataclass" in ast.unparse(decorator):
                    yield node, decorator


def is_float(annotation: ast.expr) -> bool:
    """Whether a field holds a float, several, or perhaps none."""
    kinds = {"float", "float | None", "tuple[float, ...]", "tuple[float | None, ...]", "list[float]"}
    return ast.unparse(annotation) in kinds


def test_every_float_field_has_its_unit_in_its_name() -> None:
    """A public float field of any value names its unit, is one of the few that have none, or says it on its line."""
    nameless = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        for cls, _ in dataclasses_of(ast.parse(text)):
            for field in cls.body:
                if not (isinstance(field, ast.AnnAssign) and is_float(field.annotation)):
                    continue
                name = ast.unparse(field.target)
                said = (
                    name in DIMENSIONLESS or UNITS.search(f"_{name}") or "  # " in text.splitlines()[field.lineno - 1]
                )
                if not (said or name.startswith("_")):
                    nameless.append(f"{path.relative_to(SOURCE)}:{field.lineno}: {cls.name}.{name}")
    assert nameless == []


def test_values_are_frozen_slotted_and_by_keyword() -> None:
    """Every dataclass of the core is frozen, slotted and keyword-only."""
    loose = [
        f"{path.name}: {cls.name}"
        for path in (SOURCE / "core").glob("*.py")
        for cls, decorator in dataclasses_of(parsed(path))
        if not {"frozen=True", "slots=True", "kw_only=True"} <= set(re.split(r"[(), ]+", ast.unparse(decorator)))
    ]
    assert loose == []


def test_contracts_are_small() -> None:
    """A Protocol has at most four members."""
    large = [
        f"{path.name}: {cls.name}"
        for path in FILES
        for cls in ast.walk(parsed(path))
        if isinstance(cls, ast.ClassDef) and any(ast.unparse(base).startswith("Protocol") for base in cls.bases)
        if sum(isinstance(member, ast.FunctionDef | ast.AnnAssign) for member in cls.body) > 4
    ]
    assert large == []


def test_files_and_functions_are_short() -> None:
    """Files have at most 400 lines, functions 60 lines and, without a stated reason, 7 parameters."""
    long = []
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        lines = text.splitlines()
        if len(lines) > 400:
            long.append(f"{path.relative_to(SOURCE)}: {len(lines)} lines")
        for node in ast.walk(ast.parse(text)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            where = f"{path.relative_to(SOURCE)}:{node.lineno}: {node.name}"
            if node.end_lineno - node.lineno + 1 > 60:
                long.append(f"{where}: {node.end_lineno - node.lineno + 1} lines")
            parameters = [a.arg for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)]
            many = len([name for name in parameters if name not in ("self", "cls")]) > 7
            if many and "# noqa: PLR0913 -- " not in lines[node.lineno - 1]:
                long.append(f"{where}: {len(parameters)} parameters")
    assert long == []


def test_core_is_plain() -> None:
    """The core, and the arithmetic of tuning and verify, import the standard library and negawatt only.

    Learnt searches of tuning may import NumPy inside their functions: without it the plain ones do their work.
    """
    import sys

    foreign = [
        f"{path.relative_to(SOURCE)}: {name}"
        for package in ("core", "tuning", "verify")
        for path in (SOURCE / package).rglob("*.py")
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.Import | ast.ImportFrom)
        if not (
            package == "tuning" and node.col_offset and ast.unparse(node).startswith(("import numpy", "from numpy"))
        )
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
        if name.split(".")[0] not in {*sys.stdlib_module_names, "negawatt"}
    ]
    assert foreign == []


def test_nothing_is_swallowed() -> None:
    """No handler catches everything and then does nothing."""
    silent = [
        f"{path.relative_to(SOURCE)}:{node.lineno}"
        for path in FILES
        for node in ast.walk(parsed(path))
        if isinstance(node, ast.ExceptHandler)
        if node.type is None or ast.unparse(node.type) in ("Exception", "BaseException")
        if all(isinstance(statement, ast.Pass | ast.Continue) for statement in node.body)
    ]
    assert silent == []


def test_every_expected_error_names_its_message() -> None:
    """Every `pytest.raises` in the tests has a `match`."""
    bare = [
        f"{path.name}:{call.lineno}"
        for path in Path(__file__).parents[1].rglob("*.py")
        for call in ast.walk(parsed(path))
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "pytest.raises"
        if "match" not in {keyword.arg for keyword in call.keywords}
    ]
    assert bare == []

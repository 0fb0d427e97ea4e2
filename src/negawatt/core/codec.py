"""Codec: any core value to JSON and back. Unknown fields are refused, so a file is never half understood."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from enum import Enum
from functools import cache
from typing import Any, TypeVar

from negawatt.core.errors import UsageError

T = TypeVar("T")


def to_json(value: object) -> Any:  # noqa: ANN401 -- JSON
    """A value made of dataclasses, enums, tuples, mappings with string keys and scalars, as plain JSON types."""
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_json(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, tuple | list):
        return [to_json(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): to_json(item) for key, item in value.items()}
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} is not a core value")


def from_json(cls: type[T], data: Any, where: str = "") -> T:  # noqa: ANN401
    """Rebuild a value of type `cls`.

    Args:
        cls: a dataclass of `negawatt.core`.
        data: what `to_json` gave.
        where: path in the file, for the error.

    Raises:
        UsageError: naming the place and what was expected there.
    """
    return typing.cast("T", _decode(cls, data, where or cls.__name__))


@cache
def _hints(cls: type) -> dict[str, Any]:
    return typing.get_type_hints(cls)


def _bad(where: str, expected: str, data: object) -> UsageError:
    return UsageError(
        f"{where}: expected {expected}, got {str(data)[:80]!r}",
        "a file that is half understood would give wrong numbers",
        "make the file anew with this version of negawatt",
    )


def _decode(hint: Any, data: Any, where: str) -> Any:  # noqa: ANN401, C901, PLR0911 -- one return per kind of type
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _decode_union(args, data, where)
    if origin is tuple:
        if not isinstance(data, list):
            raise _bad(where, "a list", data)
        return tuple(_decode(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if origin in (dict, Mapping):
        if not isinstance(data, dict):
            raise _bad(where, "an object", data)
        return {key: _decode(args[1], item, f"{where}.{key}") for key, item in data.items()}
    if dataclasses.is_dataclass(hint):
        return _decode_dataclass(typing.cast("type", hint), data, where)
    if isinstance(hint, type) and issubclass(hint, Enum):
        if data not in [member.value for member in hint]:
            raise _bad(where, f"one of {[member.value for member in hint]}", data)
        return hint(data)
    if hint is float and isinstance(data, int | float) and not isinstance(data, bool):
        return float(data)
    if isinstance(hint, type) and type(data) is hint:
        return data
    raise _bad(where, getattr(hint, "__name__", str(hint)), data)


def _decode_union(args: tuple[Any, ...], data: Any, where: str) -> Any:  # noqa: ANN401
    if data is None and type(None) in args:
        return None
    exact = [a for a in args if isinstance(a, type) and type(data) is a]
    for hint in exact or [a for a in args if a is not type(None)]:
        try:
            return _decode(hint, data, where)
        except UsageError:
            if hint is args[-1] or len(args) <= 2:  # of X | None, the error below X is the useful one
                raise
    raise _bad(where, " or ".join(getattr(a, "__name__", str(a)) for a in args), data)


def _decode_dataclass(cls: type, data: Any, where: str) -> Any:  # noqa: ANN401
    if not isinstance(data, dict):
        raise _bad(where, f"an object ({cls.__name__})", data)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise _bad(f"{where}.{unknown[0]}", "no such field", data[unknown[0]])
    values = {}
    for name, f in fields.items():
        if name in data:
            values[name] = _decode(_hints(cls)[name], data[name], f"{where}.{name}")
        elif f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise _bad(f"{where}.{name}", "this field", "nothing")
    try:
        return cls(**values)
    except ValueError as error:
        raise _bad(where, f"a valid {cls.__name__} ({error})", data) from error

"""Where the parts of a JSON text lie, without reading its numbers.

An answer to 32 embeddings is 12,000 numbers. To read and write them takes twenty times as long as to find where each
embedding ends; and what is cut out comes to the client to the last digit as upstream wrote it.
"""

from __future__ import annotations

import json
import re

Cut = tuple[int, int]

_STRING = rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"'
_SPACE = re.compile(rb"[ \t\r\n]*+")
_KEY = re.compile(rb"[ \t\r\n]*+(" + _STRING + rb")[ \t\r\n]*+:[ \t\r\n]*+", re.DOTALL)
_SCALAR = re.compile(_STRING + rb'|[^\s,\[\]{}":]++', re.DOTALL)


def elements(text: bytes) -> list[Cut]:
    """Where the elements of an array lie, one after another.

    Raises:
        ValueError: if the text is not an array from its beginning to its end. What is inside its elements is not
            checked.
    """
    return [cut for _, cut in _parts(text, b"[", b"]")]


def members(text: bytes) -> dict[str, Cut]:
    """Where the values of an object's members lie, by name, in their order.

    Raises:
        ValueError: if the text is not an object from its beginning to its end, or a name is there twice.
    """
    parts = _parts(text, b"{", b"}")
    found = {_name(name): cut for name, cut in parts}
    if len(found) != len(parts):
        raise ValueError("a member is there twice")
    return found


def _name(text: bytes) -> str:
    return json.loads(text) if b"\\" in text else text[1:-1].decode()


def _parts(text: bytes, opening: bytes, closing: bytes) -> list[tuple[bytes, Cut]]:
    at = _after_space(text, 0)
    if text[at : at + 1] != opening:
        raise ValueError(f"the text does not begin with {opening.decode()}")
    try:
        found, at = _walk(text, at + 1, closing)
    except RecursionError:
        raise ValueError("the text is nested too deeply") from None
    if _after_space(text, at) != len(text):
        raise ValueError("something follows the end")
    return found


def _walk(text: bytes, at: int, closing: bytes) -> tuple[list[tuple[bytes, Cut]], int]:
    """The parts of what was opened just before `at`, with their names in an object, and where it ends."""
    found: list[tuple[bytes, Cut]] = []
    named = closing == b"}"
    name = b""
    at = _after_space(text, at)
    if text[at : at + 1] == closing:
        return found, at + 1
    while True:
        if named:
            key = _KEY.match(text, at)
            if key is None:
                raise ValueError(f"no name of a member at byte {at}")
            name, at = key[1], key.end()
        else:
            at = _after_space(text, at)
        end = _end(text, at)
        found.append((name, (at, end)))
        at = _after_space(text, end)
        mark = text[at : at + 1]
        at += 1
        if mark == closing:
            return found, at
        if mark != b",":
            raise ValueError(f"neither a comma nor the end at byte {at - 1}")


def _end(text: bytes, at: int) -> int:
    """Where the value that begins at `at` ends."""
    mark = text[at : at + 1]
    if mark == b"[":
        end = text.find(b"]", at)
        if (
            end > 0
            and text.find(b'"', at, end) < 0
            and text.rfind(b"[", at, end) == at
            and text.find(b"{", at, end) < 0
        ):
            return end + 1  # an array of numbers, which nobody looks at
        return _walk(text, at + 1, b"]")[1]
    if mark == b"{":
        return _walk(text, at + 1, b"}")[1]
    scalar = _SCALAR.match(text, at)
    if scalar is None:
        raise ValueError(f"no value at byte {at}")
    return scalar.end()


def _after_space(text: bytes, at: int) -> int:
    return at if text[at : at + 1] > b" " else _SPACE.match(text, at).end()  # type: ignore[union-attr] # empty too

"""The tables of published figures that the package ships: each row with its sources and how good its evidence is."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.resources import files
from typing import Any


class Grade(StrEnum):
    """What a published figure rests on, strongest first."""

    MEASURED = "measured"
    OFFICIAL = "official statistic"
    ESTIMATE = "published estimate"


@dataclass(frozen=True, slots=True, kw_only=True)
class Citation:
    """A source of a figure.

    Attributes:
        title: author and title, with the place in it.
        url: address.
        year: of publication, or when the page was read if it has no date.
        via: through what it was read; "" if at the source itself.
    """

    title: str
    url: str
    year: int
    via: str = ""

    def __str__(self) -> str:
        read = f"; read through {self.via}" if self.via else ""
        return f"{self.title} ({self.year}{read}) {self.url}"


@cache
def table(name: str) -> Mapping[str, Any]:
    """A shipped table by the name of its file, without ".toml"."""
    return tomllib.loads((files("negawatt.report") / "data" / f"{name}.toml").read_text(encoding="utf-8"))


def citations(row: Mapping[str, Any]) -> tuple[Citation, ...]:
    """The sources of one row of a table."""
    return tuple(Citation(**source) for source in row.get("sources", [row["source"]] if "source" in row else []))

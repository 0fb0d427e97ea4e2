"""Site: carbon, price and overhead of the place where work runs. The zone is asked for or configured, never guessed.

A flag comes before the environment (NEGAWATT_ZONE), and that before the file `config.toml` in the user's folder:

    [site]
    zone = "FR"
    pue = 1.2
    price_per_kwh = 0.14
    currency = "EUR"

The table of countries holds yearly means. Carbon: life-cycle intensity of the electricity generated, Ember through Our
World in Data (CC BY 4.0), as collected in carbontracker 2.4.7 (MIT). Price: Eurostat nrg_pc_205, non-household
consumers of 500 to 2,000 MWh a year, without VAT and other recoverable taxes, mean of the two halves of the year (reuse
with acknowledgement, Decision 2011/833/EU); United States: EIA, industrial sector (public domain). A country without
a price in these has none here.
"""

from __future__ import annotations

import csv
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.placement import Declared, Site

_PRICE_SOURCES = {
    "eurostat": "Eurostat nrg_pc_205, 500 to 2,000 MWh a year, without recoverable taxes",
    "eia": "U.S. Energy Information Administration, industrial sector",
}
_SAME_CODE = {"UK": "GB", "EL": "GR", "USA": "US"}
KEYS: Mapping[str, type] = {
    "zone": str,
    "pue": float,
    "intensity_gpkwh": float,
    "price_per_kwh": float,
    "currency": str,
}
"""What [site] may hold, and of what kind."""
_BOUNDS = {
    "pue": (1, 10, "the energy of the site over that of its machines, so at least 1", "1.2"),
    "intensity_gpkwh": (0, 10_000, "grams of CO2 equivalent per kWh, and not negative", "44"),
    "price_per_kwh": (0, 1e6, "the price of one kWh, and not negative", "0.18"),
}
"""Least and most of each number, what it is, and an example."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Country:
    """Yearly means of one country.

    Attributes:
        code: ISO 3166-1 alpha-2.
        name: in English.
        intensity_gpkwh: life-cycle carbon intensity, with year and source [gCO2e/kWh].
        price_per_kwh: electricity price, with year and source, in `currency`; None: no source at hand.
        currency: of the price, or "".
    """

    code: str
    name: str
    intensity_gpkwh: Declared
    price_per_kwh: Declared | None
    currency: str


@cache
def countries() -> dict[str, Country]:
    """All countries by code."""
    text = (files("negawatt.hardware") / "data" / "countries.csv").read_text(encoding="utf-8")
    return {row["code"]: _country(row) for row in csv.DictReader(text.splitlines())}


def _country(row: Mapping[str, str]) -> Country:
    intensity = Declared(
        value=float(row["intensity_gpkwh"]),
        source=f"{row['name']} {row['intensity_year']}, life-cycle, Ember through Our World in Data, CC BY 4.0",
    )
    price = None
    if row["price_per_kwh"]:
        source = f"{row['name']} {row['price_year']}, {_PRICE_SOURCES[row['price_source']]}"
        price = Declared(value=float(row["price_per_kwh"]), source=source)
    return Country(
        code=row["code"], name=row["name"], intensity_gpkwh=intensity, price_per_kwh=price, currency=row["currency"]
    )


def country(zone: str) -> Country:
    """The country of a code or an English name. Raises UsageError, with the nearest name, if there is none."""
    from difflib import get_close_matches

    wanted = zone.strip()
    code = _SAME_CODE.get(wanted.upper(), wanted.upper())
    if code in countries():
        return countries()[code]
    names = {known.name.lower(): known.code for known in countries().values()}
    if wanted.lower() in names:
        return countries()[names[wanted.lower()]]
    near = get_close_matches(wanted.lower(), names, n=1) if len(wanted) > 2 else []  # two letters are like anything
    raise UsageError(
        f"no zone {zone!r} in the table of countries",
        "carbon and price of a guessed place would be wrong by up to 30 times",
        f"did you mean {names[near[0]]!r} ({countries()[names[near[0]]].name})?"
        if near
        else "give the two-letter code of the country, as in --zone FR",
    )


def config_path() -> Path:
    """The user's configuration file; it need not exist."""
    from platformdirs import user_config_path

    return user_config_path("negawatt") / "config.toml"


def configured(path: Path | None = None) -> dict[str, Any]:
    """What the user configured under [site], by key; empty without a file.

    Raises:
        UsageError: if the file is not TOML, or holds a key or value that [site] does not know.
    """
    path = path or config_path()
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(
            f"{path}: {error}", "what you configured cannot be read", f"mend {path}, or delete it"
        ) from error
    misplaced = next((key for key in document if key in KEYS), None)
    if misplaced:
        raise UsageError(
            f"{path}: {misplaced} stands outside of [site]", "it would be ignored", "write [site] on a line above it"
        )
    site = document.get("site", {})
    if not isinstance(site, dict):
        raise UsageError(f"{path}: site is not a table", "nothing in it is understood", "write [site] on its own line")
    return {key: checked(key, value) for key, value in site.items()}


def checked(key: str, value: object) -> Any:  # noqa: ANN401 -- a string or a float, as KEYS says
    """A value of [site] in its kind. Raises UsageError if the key is unknown or the value cannot be."""
    from difflib import get_close_matches

    if key not in KEYS:
        near = get_close_matches(key, KEYS, n=1)
        raise UsageError(
            f"no setting {key!r}",
            "it would be ignored",
            f"did you mean {near[0]}?" if near else f"use {', '.join(KEYS)}",
        )
    if KEYS[key] is str:
        text = str(value).strip()
        return country(text).code if key == "zone" else _currency(text)
    try:
        number = float(str(value))
    except ValueError:
        number = float("nan")
    least, most, what, example = _BOUNDS[key]
    if not least <= number <= most:
        raise UsageError(f"{key} = {value}", f"it is {what}", f"give a number from {least:g} to {most:g}: {example}")
    return number


def _currency(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z]{3}", text):
        raise UsageError(f"currency = {text!r}", "money without its currency says nothing", "use a code: EUR, USD, JPY")
    return text.upper()


def configure(key: str, value: str, path: Path | None = None) -> Path:
    """Set one key of [site] in the user's file, keeping all else in it; returns the file.

    Raises:
        UsageError: on an unknown key, a value that cannot be, or a file that cannot be edited safely.
        NegawattError: if the file cannot be written.
    """
    path = path or config_path()
    known = checked(key, value)
    configured(path)  # a broken file is told before it is edited
    line = f'{key} = "{known}"' if isinstance(known, str) else f"{key} = {known!r}"
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    head, body, rest = _split(text)
    body, found = re.subn(rf"(?m)^\s*{key}\s*=.*$", line, body)
    new = head + (body if found else f"{line}\n{body}") + rest
    if _site_of(new) != {**(_site_of(text) or {}), key: known}:
        raise UsageError(f"{path} is written in a way not foreseen", "an edit could spoil it", f"add to it: {line}")
    return _write(path, new)


def forget(key: str, path: Path | None = None) -> Path:
    """Take one key of [site] out of the user's file, keeping all else in it; returns the file.

    Raises:
        UsageError: on a key that is not kept, or a file that cannot be edited safely.
        NegawattError: if the file cannot be written.
    """
    path = path or config_path()
    kept = configured(path)
    if key not in kept:
        raise UsageError(f"{key} is not kept", "there is nothing to forget", "`negawatt config show` shows what is")
    text = path.read_text(encoding="utf-8")
    head, body, rest = _split(text)
    new = head + re.sub(rf"(?m)^\s*{key}\s*=.*\n?", "", body) + rest
    if _site_of(new) != {name: value for name, value in (_site_of(text) or {}).items() if name != key}:
        raise UsageError(
            f"{path} is written in a way not foreseen", "an edit could spoil it", f"take {key} out by hand"
        )
    return _write(path, new)


def _split(text: str) -> tuple[str, str, str]:
    """A document as what ends with the line [site], the lines of that table, and what follows it."""
    head, header, site = text.partition("[site]\n")
    if not header:
        head, header, site = text + ("\n" if text and not text.endswith("\n") else ""), "[site]\n", ""
    body, rest = re.split(r"(?m)^(?=\s*\[)", site, maxsplit=1) if re.search(r"(?m)^\s*\[", site) else (site, "")
    return head + header, body, rest


def _write(path: Path, text: str) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise NegawattError(f"cannot write {path}: {error}", "the setting is not kept", "use the flags") from error
    return path


def _site_of(text: str) -> dict[str, Any] | None:
    """The table [site] of a TOML document, as it is written; None if the document cannot be read."""
    try:
        site: dict[str, Any] = tomllib.loads(text).get("site", {})
    except tomllib.TOMLDecodeError:
        return None
    return site


def chosen(flags: Mapping[str, Any], environ: Mapping[str, str] | None = None, path: Path | None = None) -> Site | None:
    """The site that the user named, or None if nothing was said of it.

    Args:
        flags: values of the command line by key of [site]; None: not given.
        environ: the environment, for NEGAWATT_ZONE; default: that of this process.
        path: the configuration file; default: the user's.

    Returns:
        Figures given by hand come before those of the zone's country, but what is configured for one zone is not used
        for another. A zone without a price leaves it None.

    Raises:
        UsageError: if a zone or a value is not understood, or a price has no currency.
    """
    environ = os.environ if environ is None else environ
    kept = configured(path)
    told = {key: ("the command line", checked(key, value)) for key, value in flags.items() if value is not None}
    if environ.get("NEGAWATT_ZONE"):
        told.setdefault("zone", ("NEGAWATT_ZONE", checked("zone", environ["NEGAWATT_ZONE"])))
    if "zone" not in kept or "zone" not in told or told["zone"][1] == kept["zone"]:
        told = {key: ("the configuration file", value) for key, value in kept.items()} | told

    def given(key: str) -> Declared | None:
        return Declared(value=told[key][1], source=f"given by {told[key][0]}") if key in told else None

    place = country(told["zone"][1]) if "zone" in told else None
    intensity, price = given("intensity_gpkwh"), given("price_per_kwh")
    currency = told["currency"][1] if "currency" in told else ""
    if price is None and place is not None:
        price, currency = place.price_per_kwh, place.currency
    elif price is not None and not currency:
        raise UsageError(
            f"a price of {price.value:g} per kWh without its currency",
            "money says nothing without it",
            "--currency EUR",
        )
    if intensity is None and place is not None:
        intensity = place.intensity_gpkwh
    pue = given("pue")
    if place is None and intensity is None and price is None and pue is None:
        return None
    return Site(
        name=place.name if place else "unnamed site",
        pue=pue,
        intensity_gpkwh=intensity,
        price_per_kwh=price,
        currency=currency if price else "",
    )

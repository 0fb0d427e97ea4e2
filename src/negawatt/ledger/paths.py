"""Paths: where the ledger of this user and the spools beside it are."""

from __future__ import annotations

import os
from pathlib import Path

from negawatt.core.errors import LedgerError


def default_path() -> Path:
    """The ledger of this user: $NEGAWATT_LEDGER, else `ledger.sqlite` in the user's state folder.

    Raises:
        LedgerError: if the user has no home.
    """
    named = os.environ.get("NEGAWATT_LEDGER")
    try:
        if named:
            return Path(named).expanduser()
        from platformdirs import user_state_path

        return user_state_path("negawatt", appauthor=False) / "ledger.sqlite"
    except RuntimeError as error:
        raise LedgerError(
            f"no place for the ledger: {error}",
            "what is measured would not be kept",
            "name one: NEGAWATT_LEDGER=PATH",
        ) from error


def spool_folder(path: Path) -> Path:
    """The folder of the spools that belong to the ledger at `path`."""
    return path.with_name(f"{path.name}.spool")


def shared_folder() -> Path | None:
    """$NEGAWATT_SPOOL: a folder, perhaps on a network share, that this host only spools to; None if it is not set."""
    named = os.environ.get("NEGAWATT_SPOOL")
    return Path(named).expanduser() if named else None

"""Guard: the one privileged process. It changes controls for clients that its policy lists, and undoes it when they go.

`wire` is what is said, `policy` who may, `session` one client's talk, `server` the sockets, `client` the other end.
"""

from __future__ import annotations

import os
from pathlib import Path

SOCKET = Path("/run/negawatt/guard.sock")
POLICY = Path("/etc/negawatt/guard.toml")
AUDIT = Path("/var/log/negawatt/guard.jsonl")


def default_socket() -> Path:
    """Where the guard listens: NEGAWATT_GUARD, else /run/negawatt/guard.sock."""
    return Path(os.environ.get("NEGAWATT_GUARD") or SOCKET)

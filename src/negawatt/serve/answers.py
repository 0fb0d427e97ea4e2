"""Answers: what the gateway itself adds to an answer, and what it says when there is none."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from negawatt.serve.exchange import Exchange


def ours(exchange: Exchange) -> list[tuple[bytes, bytes]]:
    """The headers that every answer to an accounted request gets."""
    return [
        (b"negawatt-request-id", exchange.id.encode("ascii")),
        (b"negawatt-outcome", exchange.outcome.value.encode("ascii")),
    ]


def error_body(message: str, code: str) -> bytes:
    """An error as OpenAI's API gives them, so that its clients can show it."""
    return json.dumps({"error": {"message": message, "type": "negawatt_gateway", "code": code}}).encode("utf-8")

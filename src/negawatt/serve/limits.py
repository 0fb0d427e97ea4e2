"""Limits: how much of anything the gateway takes at once, and how long it waits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What keeps the gateway's memory and patience bounded.

    Attributes:
        body_bytes: largest body of a request.
        held_bytes: most bytes of requests' bodies held at once; what their heads announce counts from then on.
        requests: most requests at a time, those being read included.
        head_bytes: largest head, of a request and of an answer.
        head_s: longest time that the head of a request may take to arrive, once it has begun [s].
        body_s: longest time that the body of a request may take to arrive [s].
        connect_s: longest time to connect to upstream [s].
        answer_s: longest time to wait for upstream's first byte, and between two of its bytes; also how long a client
            may take none of a stream's [s].
        whole_bytes: answers up to this length are read whole before the client gets the first byte of them.
    """

    body_bytes: int = 16 << 20
    held_bytes: int = 256 << 20
    requests: int = 1024
    head_bytes: int = 64 << 10
    head_s: float = 20.0
    body_s: float = 60.0
    connect_s: float = 5.0
    answer_s: float = 600.0
    whole_bytes: int = 64 << 10

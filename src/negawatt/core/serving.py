"""Serving: what an inference service can be set to, what it promises, and what came of one request."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum

from negawatt.core.errors import UsageError
from negawatt.core.reading import Source


class Outcome(StrEnum):
    """How a request ended."""

    ANSWERED = "answered"
    """upstream answered it, whatever it answered"""
    CACHED = "cached"
    """it was answered from the response cache"""
    CANCELLED = "cancelled"
    """the client went away before it had its answer"""
    FAILED = "failed"
    """upstream gave no whole answer"""
    REFUSED = "refused"
    """the gateway did not pass it on: too large, too many, malformed"""

    @property
    def came_to_nothing(self) -> bool:
        """Whether the client got no answer from it."""
        return self in (Outcome.CANCELLED, Outcome.FAILED, Outcome.REFUSED)


AUDIT = "/negawatt/audit"
"""Path of a cascade's audits: they cost joules, and no client asked for them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingSetting:
    """What a controller may turn while a service runs. The defaults leave everything as it is without a gateway.

    Attributes:
        window_s: longest time that a request waits for others to go upstream with it [s].
        max_batch: most requests that go upstream as one; 1: each by itself.
        concurrency: most calls at a time to one replica; 0: no limit.
        replicas: how many replicas are awake; 0: all.
        limit_fraction: power limit of the devices, from 0 for the lowest that they take to 1 for as found.
    """

    window_s: float = 0.0
    max_batch: int = 1
    concurrency: int = 0
    replicas: int = 0
    limit_fraction: float = 1.0

    def __post_init__(self) -> None:
        good = (
            0 <= self.window_s < 60
            and self.max_batch >= 1
            and min(self.concurrency, self.replicas) >= 0
            and 0 <= self.limit_fraction <= 1
        )
        if not good:
            raise UsageError(
                f"a serving setting of {self}",
                "it cannot be set",
                "window_s from 0 to below 60, max_batch at least 1, concurrency and replicas at least 0, "
                "limit_fraction from 0 to 1",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cascade:
    """A small model that is asked first; its answer counts if it is sure enough.

    Attributes:
        upstream: base URL of the small model's server; it speaks the same API.
        model: name to ask it for; "": as the client asked.
        confidence: least confidence that counts, from 0 to 1.
        field: dotted path of the confidence in its JSON answer ("confidence", "data.0.score"); "": the mean
            probability of its tokens, which the gateway asks for (`logprobs`) and takes out again.
        audit_fraction: part of the answers that count that the large model is asked for as well, to see whether the two
            agree.
        margin: largest part of answers that may differ; beyond it the small model is not believed any more.
    """

    upstream: str
    model: str = ""
    confidence: float = 0.9  # probability
    field: str = ""
    audit_fraction: float = 0.02
    margin: float = 0.05  # fraction of answers

    def __post_init__(self) -> None:
        if not all(0 <= part <= 1 for part in (self.confidence, self.audit_fraction, self.margin)):
            raise UsageError(
                f"a cascade with confidence {self.confidence}, audit_fraction {self.audit_fraction}, "
                f"margin {self.margin}",
                "each is a part of 1: beyond it the small model would be believed always, or never",
                "give each from 0 to 1, such as confidence 0.9",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ServingOptions:
    """How a gateway serves.

    Attributes:
        upstreams: base URLs of the replicas of one inference server.
        setting: what holds from the beginning: the safe setting of the controller, if it has one.
        p99_s: the promise: 99 of 100 requests end within it [s]; None: none is made.
        control: whether a controller turns the setting, which takes a promise.
        cache_bytes: memory of the response cache; 0: no cache.
        semantic: least cosine of the embeddings of two texts that get the same answer; None: only the same text does.
        semantic_url: of the embeddings endpoint that judges this ("http://127.0.0.1:8002/v1/embeddings").
        semantic_model: name to ask it for; "": none is sent.
        cascade: a small model that is asked first; None: none.
    """

    upstreams: tuple[str, ...] = ()
    setting: ServingSetting = ServingSetting()
    p99_s: float | None = None
    control: bool = False
    cache_bytes: int = 0
    semantic: float | None = None  # cosine
    semantic_url: str = ""
    semantic_model: str = ""
    cascade: Cascade | None = None

    def __post_init__(self) -> None:
        if self.semantic is not None and not 0 < self.semantic <= 1:
            raise UsageError(
                f"a semantic cache at a cosine of {self.semantic}",
                "it is the least cosine of two texts that get the same answer",
                "give one above 0 and up to 1, such as 0.95",
            )
        if self.cache_bytes < 0:
            raise UsageError(
                f"a response cache of {self.cache_bytes} bytes", "nothing fits into it", "give at least 0; 0: no cache"
            )
        if self.p99_s is not None and not 0 < self.p99_s < math.inf:
            raise UsageError(
                f"a promise (p99) of {self.p99_s} s",
                "99 of 100 requests are to end within it, and none ends at once",
                "give more than 0, such as 0.2 (--p99 200ms)",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a request cost.

    Attributes:
        energy_j: its joules.
        energy_sd_j: standard deviation of the meter's error of them, its gain included [J].
        source: evidence of the joules: the weakest of the meter's.
        carbon_g: grams of CO2 equivalent of these joules, by the configured site; None: no site is configured.
    """

    energy_j: float
    energy_sd_j: float
    source: Source
    carbon_g: float | None = None

    @property
    def interval_j(self) -> tuple[float, float]:
        """95 % interval of the meter's error [J]; not below zero."""
        half_j = 1.96 * self.energy_sd_j
        return max(0.0, self.energy_j - half_j), self.energy_j + half_j


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One request that is over: a row of the ledger.

    Attributes:
        id: names it; the client was told.
        at_s: when it arrived, after the beginning of the gateway's run [s].
        time_s: until its last byte was handed over, or it ended otherwise [s].
        path: of the URL, without what follows "?".
        model: that the client asked for, or "".
        status: HTTP status that the client got; 0: it was gone.
        outcome: how it ended.
        tokens_in, tokens_out: as upstream counted them; None: it told none.
        shared: how many requests went upstream as one with it; 1: it went alone; 0: it did not go.
        cost: what it cost.
    """

    id: str
    at_s: float
    time_s: float
    path: str
    model: str
    status: int
    outcome: Outcome
    tokens_in: int | None
    tokens_out: int | None
    shared: int
    cost: Cost

    @property
    def audit(self) -> bool:
        """Whether it is a cascade's audit, which no client asked for."""
        return self.path == AUDIT

"""Agreement: whether two models gave the same answer, and for how long a small one is to be believed.

The watch over the small model looks at the audits after each one, for ever; an interval made for one look (such as
Clopper and Pearson's) would sooner or later accuse a good model. So the bound here holds at all times at once: for n
audits of which k differed, and a true part m,

    E(m) = B(k + 1, n - k + 1) / (m^k (1 - m)^(n - k)),  B the beta function,

is a martingale that begins at 1 (prior over posterior at the truth: I. Waudby-Smith and A. Ramdas, Confidence sequences
for sampling without replacement, NeurIPS 2020, here with replacement and a uniform prior); by Ville's inequality it
ever reaches 1 / alpha with a chance of at most alpha. All m with E(m) < 1 / alpha are the interval.
"""

from __future__ import annotations

import math
from bisect import insort
from dataclasses import dataclass
from typing import Any, final

_COSINE = 0.99
"""Embeddings this near are the same answer."""
_ASIDE = frozenset(
    ("id", "created", "model", "usage", "system_fingerprint", "logprobs", "confidence", "score", "scores")
)
"""Members that differ between models that agree."""
_MOST_AUDITS = 1000
"""After so many without doubt the watch begins anew, so that it sees what changes later."""
_LEAST_ABOVE = 5
"""Audits that a higher threshold must rest on; what it is worth, those after it show."""
_MOST_RAISES = 5


def agree(small: Any, large: Any) -> bool:  # noqa: ANN401 -- JSON is anything
    """Whether two JSON answers say the same.

    Chats and completions: the same text but for case and white space, and the same calls of tools. Embeddings: as many,
    each with a cosine of at least 0.99. Answers with a "label", or a list of them: the same labels. Anything else: the
    same JSON, but for fractional numbers and for members such as "id", "model", "usage", "confidence", "score".
    """
    for reading in (_said, _labels):
        one, other = reading(small), reading(large)
        if one is not None or other is not None:
            return bool(one == other)
    one, other = _vectors(small), _vectors(large)
    if one is not None and other is not None:
        return len(one) == len(other) and all(_cosine(a, b) >= _COSINE for a, b in zip(one, other, strict=True))
    return bool(_bare(small) == _bare(large))


def _said(answer: Any) -> list[Any] | None:  # noqa: ANN401
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        return None
    said: list[Any] = []
    for choice in choices:
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        text = message.get("content", choice.get("text"))
        calls = message.get("tool_calls") or []
        functions = [call.get("function") for call in calls if isinstance(call, dict)]
        said.append((" ".join(text.casefold().split()) if isinstance(text, str) else text, functions))
    return said


def _labels(answer: Any) -> Any:  # noqa: ANN401
    if isinstance(answer, dict):
        return answer.get("label")
    if isinstance(answer, list) and answer:
        found = [_labels(part) for part in answer]
        return None if None in found else found
    return None


def _vectors(answer: Any) -> list[list[float]] | None:  # noqa: ANN401
    found = answer.get("data") if isinstance(answer, dict) else answer
    if not isinstance(found, list) or not found:
        return None
    vectors: list[Any] = [part.get("embedding") if isinstance(part, dict) else part for part in found]
    fine = all(isinstance(v, list) and v and all(type(x) in (int, float) for x in v) for v in vectors)
    return vectors if fine else None


def _cosine(a: list[float], b: list[float]) -> float:
    if len(a) != len(b):
        return -1.0
    lengths = math.hypot(*a) * math.hypot(*b)
    return sum(x * y for x, y in zip(a, b, strict=True)) / lengths if lengths else -1.0


def _bare(answer: Any) -> Any:  # noqa: ANN401
    if isinstance(answer, dict):
        return {name: _bare(value) for name, value in answer.items() if name not in _ASIDE}
    if isinstance(answer, list):
        return [_bare(value) for value in answer]
    return "a number" if isinstance(answer, float) else answer


def evidence(n: int, k: int, m: float) -> float:
    """The logarithm of E(m): how much k of n speak against a true part of m, from 0 < m < 1."""
    log_beta = math.lgamma(k + 1) + math.lgamma(n - k + 1) - math.lgamma(n + 2)
    return log_beta - k * math.log(m) - (n - k) * math.log1p(-m)


def interval(n: int, k: int, alpha: float = 0.01) -> tuple[float, float]:
    """Least and largest part that k of n leave possible, whenever one looks, with an error of at most alpha."""
    bound = -math.log(alpha)

    def edge(inside: float, outside: float) -> float:
        for _ in range(60):
            middle = (inside + outside) / 2
            if evidence(n, k, middle) < bound:
                inside = middle
            else:
                outside = middle
        return inside

    seen = k / n if n else 0.5
    seen = min(max(seen, 1e-12), 1 - 1e-12)
    low = edge(seen, 1e-15) if k else 0.0
    high = edge(seen, 1 - 1e-15) if k < n else 1.0
    return low, high


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchStats:
    """What the audits say.

    Attributes:
        audited: answers that both models gave, all in all.
        differed: how many of them differed.
        low_fraction, high_fraction: 99 % interval of the part that differs under the threshold in force, from the
            audits since it is; it holds whenever one looks.
        threshold_fraction: confidence that counts now.
        believed: whether the small model is asked at all.
    """

    audited: int
    differed: int
    low_fraction: float
    high_fraction: float
    threshold_fraction: float
    believed: bool


@final
class Watch:
    """Decides from audits which confidence counts.

    Once it is shown that more answers differ than may, the threshold rises to the least confidence above which no more
    did among those audited; the audits that led to that do not count any more, so what comes is judged afresh. If
    there is no such confidence, or it has risen five times already, the small model is not believed any more.

    Args:
        threshold: confidence that counts at first.
        margin: largest part of answers that may differ.
        alpha: chance that a small model that keeps the margin is accused, for each 1,000 audits.
    """

    def __init__(self, threshold: float, margin: float, *, alpha: float = 0.01) -> None:
        self.threshold = threshold
        self.believed = True
        self._margin = margin
        self._alpha = alpha
        self._audited = self._differed = self._raises = 0
        self._seen: list[tuple[float, bool]] = []

    def counts(self, confidence: float | None) -> bool:
        """Whether an answer of that confidence is given."""
        return self.believed and confidence is not None and confidence >= self.threshold

    def audited(self, confidence: float, *, same: bool) -> None:
        """Both models have answered."""
        self._audited += 1
        self._differed += not same
        if confidence < self.threshold:
            return  # it was accepted under a threshold of before
        insort(self._seen, (confidence, not same))
        n, k = len(self._seen), sum(differs for _, differs in self._seen)
        if k > n * self._margin and self._accused(n, k):
            self._raise_threshold()
        elif n >= _MOST_AUDITS:
            self._seen.clear()

    def _accused(self, n: int, k: int) -> bool:
        if not 0 < self._margin < 1:
            return self._margin <= 0  # one that differs is one too many
        return evidence(n, k, self._margin) >= -math.log(self._alpha)

    def _raise_threshold(self) -> None:
        n, k = 0, 0
        best = None
        for confidence, differs in reversed(self._seen):
            n, k = n + 1, k + differs
            if n >= _LEAST_ABOVE and k <= n * self._margin and confidence > self.threshold:
                best = confidence
        self._seen.clear()
        self._raises += 1
        if best is None or self._raises > _MOST_RAISES:
            self.believed = False
        else:
            self.threshold = best

    @property
    def stats(self) -> WatchStats:
        """What the audits say."""
        low, high = interval(len(self._seen), sum(differs for _, differs in self._seen), self._alpha)
        return WatchStats(
            audited=self._audited,
            differed=self._differed,
            low_fraction=low,
            high_fraction=high,
            threshold_fraction=self.threshold,
            believed=self.believed,
        )

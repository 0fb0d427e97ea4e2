"""Front: the settings that nothing else beats in energy, time and quality at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from negawatt.core.errors import ScopeMismatchError
from negawatt.core.measurement import Measurement
from negawatt.core.trial import Trial


def _per_work(m: Measurement) -> float:
    return m.time_per_work_s


def dominates(a: Measurement, b: Measurement, *, time_s: Callable[[Measurement], float] = _per_work) -> bool:
    """Whether `a` is at least as good as `b` in energy per work, in time and in quality, and better in one.

    A missing quality counts as worse than any number.

    Args:
        a: one.
        b: the other.
        time_s: the time that counts: per unit of work, or what `Pace.time_s` says.
    """

    def costs(m: Measurement) -> tuple[float, float, float]:
        return m.energy_per_work_j, time_s(m), float("inf") if m.quality is None else -m.quality

    pairs = list(zip(costs(a), costs(b), strict=True))
    return all(x <= y for x, y in pairs) and any(x < y for x, y in pairs)


def comparable(measurements: Sequence[Measurement], *, mixed_sources: bool = False) -> None:
    """Raise ScopeMismatchError unless all measure the same scopes, and all are metered or none is.

    Args:
        measurements: what is about to be compared.
        mixed_sources: allow modelled or declared numbers beside metered or estimated ones.
    """
    scopes = sorted({m.scopes for m in measurements})
    if len(scopes) > 1:
        raise ScopeMismatchError(
            f"trials measure different scopes: {' against '.join(', '.join(s) for s in scopes)}",
            "the one that measures less would look better",
            "measure all trials in one session with the same sensors (`negawatt doctor` lists them)",
        )
    device_model = {m.source.value in ("modelled", "declared") for m in measurements}
    if len(device_model) > 1 and not mixed_sources:
        raise ScopeMismatchError(
            "modelled and metered trials on one front",
            "a simulated device would beat a real one on paper",
            "pass mixed_sources=True and draw the modelled points differently",
        )


def pareto_front(
    trials: Sequence[Trial], *, mixed_sources: bool = False, time_s: Callable[[Measurement], float] = _per_work
) -> tuple[Trial, ...]:
    """The trials that no other dominates, in the given order. Failed trials are left out.

    Args:
        trials: of one phase.
        mixed_sources: see `comparable`.
        time_s: see `dominates`.

    Raises:
        ScopeMismatchError: see `comparable`.
    """
    good = [(t, t.measurement) for t in trials if t.measurement is not None]
    comparable([m for _, m in good], mixed_sources=mixed_sources)
    return tuple(t for t, m in good if not any(dominates(other, m, time_s=time_s) for _, other in good))

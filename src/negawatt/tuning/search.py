"""CoordinateSearch: one dimension after the other, then a race between the best.

Levers act in sequence on one workload, so most of the best setting is found one lever at a time; a second pass over
the dimensions finds what an earlier choice made worth while. Single runs are noisy and the smallest of many is
flattered by chance (the winner's curse), so the last word has the mean of repeated runs.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import product

from negawatt.core.errors import UsageError

Point = tuple[int, ...]
"""An option index per dimension."""
Score = float | None
"""Lower is better; None: failed or not allowed."""


class CoordinateSearch:
    """Search over the points of a grid, from a start point.

    A pass goes through the dimensions in order, scores every option with the others at the incumbent, and adopts the
    best. Passes repeat until one changes nothing; then the best few are scored again and the best mean wins. What is
    asked next depends on the scores alone, not on when they came, so a search that is resumed with the scores it had
    ends like one that was never interrupted.

    Args:
        sizes: number of options per dimension.
        start: the first incumbent.
        known: first scores of points that were tried before.
        finalists: points that race.
        repeats: scores each of them gets, the first one included.

    Raises:
        UsageError: if `start` or a known point is outside the grid.
    """

    def __init__(
        self,
        *,
        sizes: Sequence[int],
        start: Point,
        known: Mapping[Point, Score] | None = None,
        finalists: int = 3,
        repeats: int = 2,
    ) -> None:
        self._sizes = tuple(sizes)
        self._start = self._inside(start)
        self._finalists = finalists
        self._repeats = repeats
        self._scores: dict[Point, list[float]] = {}
        for point, score in (known or {}).items():
            self.tell(point, score)

    def ask(self) -> Point | None:
        """The point to score next; the same until it is told. None when the search is over."""
        _, missing = self._walk()
        return missing if missing is not None else next(self._race(), None)

    def tell(self, point: Point, score: Score) -> None:
        """Add a score of any point, asked for or not; NaN counts as failed.

        Raises:
            UsageError: if the point is outside the grid.
        """
        cost = math.inf if score is None or math.isnan(score) else score
        self._scores.setdefault(self._inside(point), []).append(cost)

    @property
    def best(self) -> Point:
        """The incumbent, or the winner of the race once that is over; the start if nothing has succeeded."""
        return self.path[-1]

    @property
    def path(self) -> tuple[Point, ...]:
        """The incumbents in the order in which they were adopted, from the start to `best`."""
        path, missing = self._walk()
        racing = self._racing()
        if missing is None and racing and next(self._race(), None) is None:
            winner = min(racing, key=lambda p: (math.fsum(self._scores[p]) / len(self._scores[p]), p))
            if winner != path[-1] and math.isfinite(max(self._scores[winner])):
                path.append(winner)
        return tuple(path)

    def remaining(self) -> int:
        """How many more times it may ask: this pass, one more, and the race.

        For the time left. It grows when a later pass still changes something, and is exact once the race has begun.
        """
        path, missing = self._walk()
        if missing is None:
            return sum(1 for _ in self._race())
        lines = {point for dimension in range(len(self._sizes)) for point in self._line(path[-1], dimension)}
        this_pass = len((lines | {path[-1]}) - set(self._scores))
        next_pass = sum(size - 1 for size in self._sizes)
        untried = math.prod(self._sizes) - len(self._scores)
        return min(untried, this_pass + next_pass) + self._finalists * (self._repeats - 1)

    def _inside(self, point: Point) -> Point:
        if len(point) != len(self._sizes) or not all(0 <= i < n for i, n in zip(point, self._sizes, strict=True)):
            raise UsageError(
                f"point {tuple(point)}, in a grid of {' x '.join(map(str, self._sizes)) or 'no'} options",
                "its score would be that of another setting",
                "give one option index per dimension, counted from 0",
            )
        return tuple(point)

    def _walk(self) -> tuple[list[Point], Point | None]:
        """The incumbents as far as the scores reach, and the first point whose score is missing."""
        path = [self._start]
        if self._start not in self._scores:
            return path, self._start
        changed = True
        while changed:
            changed = False
            for dimension in range(len(self._sizes)):
                line = self._line(path[-1], dimension)
                missing = next((point for point in line if point not in self._scores), None)
                if missing is not None:
                    return path, missing
                best = min(line, key=self._first)
                if self._first(best) < self._first(path[-1]):
                    path.append(best)
                    changed = True
        return path, None

    def _line(self, point: Point, dimension: int) -> list[Point]:
        """The points that differ from one in a single dimension, itself among them."""
        return [(*point[:dimension], i, *point[dimension + 1 :]) for i in range(self._sizes[dimension])]

    def _first(self, point: Point) -> float:
        # Only first scores guide the walk: a repeat in the race must not change how the finalists were chosen.
        return self._scores[point][0]

    def _racing(self) -> list[Point]:
        good = sorted((p for p, s in self._scores.items() if math.isfinite(s[0])), key=lambda p: (self._first(p), p))
        return good[: self._finalists] if len(good) > 1 else []

    def _race(self) -> Iterator[Point]:
        """The scores that are still to be had, in turn, so that drift meets all alike."""
        for turn, point in product(range(1, self._repeats), self._racing()):
            if len(self._scores[point]) <= turn:
                yield point

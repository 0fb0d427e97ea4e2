"""Backlog: lines that cannot be written yet, and wait in memory for a disk that has room again, up to a bound."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

BACKLOG_BYTES = 64_000_000
"""Past so much, the oldest lines are lost: a disk that stays full must not take the memory of the user's work too."""


class Backlog:
    """Lines in the order in which they came. Not for several threads at once."""

    def __init__(self) -> None:
        self._lines: deque[str] = deque()
        self._bytes = 0
        self._lost = 0

    def __bool__(self) -> bool:
        return bool(self._lines)

    @property
    def lost(self) -> int:
        """How many lines were given up since the last `take` that was not put back."""
        return self._lost

    def add(self, line: str) -> bool:
        """Add a line, of ASCII.

        Returns:
            Whether this is the first time that a line had to be given up for it.
        """
        self._lines.append(line)
        self._bytes += len(line)
        return self._shorten()

    def take(self) -> list[str]:
        """All lines, out of the backlog."""
        taken = list(self._lines)
        self._lines.clear()
        self._bytes = 0
        return taken

    def put_back(self, taken: Sequence[str]) -> None:
        """Undo a `take`: its lines come before those that were added since."""
        self._lines.extendleft(reversed(taken))
        self._bytes += sum(map(len, taken))
        self._shorten()

    def forget_losses(self) -> int:
        """How many lines were given up, to be told once."""
        lost, self._lost = self._lost, 0
        return lost

    def _shorten(self) -> bool:
        before = self._lost
        while self._bytes > BACKLOG_BYTES and len(self._lines) > 1:
            self._bytes -= len(self._lines.popleft())
            self._lost += 1
        return before == 0 < self._lost

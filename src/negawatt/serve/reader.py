"""Reader: calls something that may hang, such as a sensor's driver, without hanging with it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Generic, TypeVar

from negawatt.core.errors import SensorError

PATIENCE_S = 5.0
"""A read that takes longer is not waited for [s]. The slowest sensors, behind a network, answer within it."""

_T = TypeVar("_T")


class Reader(Generic[_T]):
    """Reads on a thread of its own, begun with the first read. For one caller at a time.

    Args:
        read: what may hang.
        patience_s: how long a read is waited for [s].
    """

    def __init__(self, read: Callable[[], _T], patience_s: float = PATIENCE_S) -> None:
        self._read = read
        self._patience_s = patience_s
        self._asked: queue.SimpleQueue[Future[_T] | None] = queue.SimpleQueue()
        self._late: Future[_T] | None = None
        self._thread: threading.Thread | None = None

    def __call__(self) -> _T:
        """What was read, or its error. Raises SensorError if it does not come, at once while an earlier read hangs."""
        if self.hangs:
            raise self._error()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="negawatt-reader", daemon=True)
            self._thread.start()
        future: Future[_T] = Future()
        self._asked.put(future)
        wait((future,), self._patience_s)
        # What comes later is not taken: nobody knows of which moment it is.
        self._late = None if future.done() else future
        if self._late is not None:
            raise self._error()
        return future.result()

    @property
    def hangs(self) -> bool:
        """Whether a read that was given up has not come back."""
        return self._late is not None and not self._late.done()

    def close(self) -> None:
        """End the thread, once it comes back."""
        self._asked.put(None)

    def _work(self) -> None:
        while (future := self._asked.get()) is not None:
            try:
                future.set_result(self._read())
            except BaseException as error:  # noqa: BLE001 -- raised where it is read
                future.set_exception(error)

    def _error(self) -> SensorError:
        return SensorError(
            f"a read of the meter that has not come back for {self._patience_s:g} s",
            "nobody knows what is drawn meanwhile",
            "look at the sensor with `negawatt doctor`, or choose others with `--sensor NAME`",
        )

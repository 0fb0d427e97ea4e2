"""Reader: what hangs is given up, and read again when it is back."""

from __future__ import annotations

import threading
import time

import pytest

from negawatt.core.errors import SensorError
from negawatt.serve.reader import Reader


def test_a_read_gives_what_it_reads_or_its_error():
    """As if it were called."""
    values = iter([1, 2])
    read = Reader(lambda: next(values))
    assert [read(), read()] == [1, 2]
    with pytest.raises(RuntimeError, match="no more"):
        Reader(lambda: (_ for _ in ()).throw(RuntimeError("no more")))()
    read.close()


def test_a_read_that_hangs_is_given_up():
    """It is waited for once; what it gives too late is of another moment, and is not taken."""
    gate, values = threading.Event(), iter([1, 2])

    def slow() -> int:
        gate.wait()
        return next(values)

    read = Reader(slow, patience_s=0.05)
    for most_s in (1.0, 0.04):
        begin_s = time.monotonic()
        with pytest.raises(SensorError, match="not come back for"):
            read()
        assert time.monotonic() - begin_s < most_s
    assert read.hangs
    gate.set()
    while read.hangs:
        time.sleep(0.001)
    assert read() == 2
    read.close()

"""`negawatt cap` as it is, but at a pace for tests. Usage: cap_quickly.py RECORD [advise | LIMIT_W] -- CMD..."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from negawatt.cli import run
from negawatt.execute.cap import Wish, capped
from negawatt.tuning.objective import Objective
from negawatt.tuning.online import Pace

PACE = Pace(
    warmup_s=0.3, settle_s=0.3, part_s=0.3, parts=4, most_parts=6, precision_fraction=0.02, hold_part_s=0.5, rest_s=1.0
)

if __name__ == "__main__":
    end = sys.argv.index("--")
    record, *how = sys.argv[1:end]
    wish = Wish(
        objective=Objective(max_slowdown_fraction=0.1),
        limit=next((float(word) for word in how if word != "advise"), None),
        advise="advise" in how,
        pace=PACE,
    )
    run.meter_command(tuple(sys.argv[end + 1 :]), None, (), Path(record), partial(capped, wish))

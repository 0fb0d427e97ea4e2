"""Proof: which runs to make next, when to stop, and what may then be claimed. Ask and tell; it runs nothing itself.

Looking at the data often and stopping when they please turns a 5 % error into 20 % and more, so the looks are fixed
beforehand and share the 5 % out: at each interim look an interval may miss with 0.05 %, at the final one with what is
left (4.85 % after three looks). Whatever made the proof stop, the interval printed misses the truth with at most the
sum, 5 %, by Bonferroni's inequality: it needs no model of how the looks depend on each other. The scheme is that of
Haybittle (Br. J. Radiol. 44 (1971) 793) and Peto et al. (Br. J. Cancer 34 (1976) 585), who use 0.1 % per look; 0.05 %
costs the final look less and still stops at once for the savings that negawatt looks for. The interval has the level
of the look at which the proof stopped, so verdict and interval never disagree. That the quality is kept is a claim of
its own: its 5 % are shared equally among the looks; so is that a server keeps the p99 that was promised.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from negawatt.core.errors import NegawattError, ScopeMismatchError, SensorError, UsageError
from negawatt.core.front import comparable
from negawatt.core.measurement import Measurement
from negawatt.core.pace import Pace
from negawatt.core.plan import Keep
from negawatt.core.saving import Baseline, Saving, Verdict
from negawatt.core.workload import Phase
from negawatt.verify.blocks import block_order
from negawatt.verify.compare import Comparison, Runs
from negawatt.verify.judge import CONFIDENCE_FRACTION, MIN_BLOCKS, Terms, judge

PLAN = "plan"
"""The arm that is put to the proof; the others are named by `Baseline`."""
LOOKS = (4, 6, 8)
"""Blocks after which the proof may stop early."""
INTERIM_ALPHA = 0.0005
"""Probability with which the interval of one interim look may miss."""
MAX_LOOKS = 20
"""More would leave the final look less than 4 %."""

Block = Sequence[tuple[str, Measurement]]


class Proof:
    """A comparison of "plan" with one or two baselines, in randomised mirrored blocks of fresh runs.

    Args:
        phase: the phase that is run.
        arms: "plan" and the names of the baselines. The competent one, if there, decides when to stop.
        keep: the quality to keep, fixed now.
        max_blocks: blocks after which the final analysis is made.
        looks: numbers of blocks after which to look before that.
        seed: of the order of the runs.
        pace: what counts as time, and how much of it is accepted, fixed now.

    Raises:
        UsageError: on arms or looks that are not such.
    """

    def __init__(
        self,
        *,
        phase: Phase,
        arms: Sequence[str],
        keep: Keep,
        max_blocks: int = 10,
        looks: Sequence[int] = LOOKS,
        seed: int,
        pace: Pace | None = None,
    ) -> None:
        baselines = [baseline for baseline in Baseline if baseline in arms]
        if sorted(arms) != sorted([PLAN, *baselines]) or not baselines:
            raise UsageError(
                f"arms {', '.join(arms) or '(none)'}",
                "a saving is that of the plan against a baseline",
                f"give {PLAN!r} and one or both of {', '.join(repr(str(b)) for b in Baseline)}, each once",
            )
        in_order = list(looks) == sorted(set(looks)) and min(looks, default=MIN_BLOCKS) >= MIN_BLOCKS
        if max_blocks < 1 or not in_order or len(looks) > MAX_LOOKS:
            raise UsageError(
                f"looks after {', '.join(map(str, looks))} of {max_blocks} blocks",
                "looks are fixed before the first run and share out one error probability",
                f"give at most {MAX_LOOKS} increasing numbers of blocks, from {MIN_BLOCKS} on",
            )
        self._phase = phase
        self._arms = tuple(arms)
        self._keep = keep
        self._max_blocks = max_blocks
        self._looks = tuple(n for n in looks if n < max_blocks)
        self._seed = seed
        self._pace = pace or Pace()
        self._headline = Baseline.COMPETENT if Baseline.COMPETENT in baselines else Baseline.NAIVE
        self._blocks: list[dict[str, Runs]] = []
        self._first: Measurement | None = None
        self._alpha: float | None = None  # of the analysis made on the present blocks
        self._decided = False
        self._final = False

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms of every block."""
        return self._arms

    @property
    def blocks(self) -> int:
        """Blocks told so far."""
        return len(self._blocks)

    def next_block(self) -> tuple[str, ...] | None:
        """The arms to run next, in this order; None when the proof is over. The same until the block is told.

        A block in which a run failed is not told; it may be run again.
        """
        if self._final or self._decided:
            return None
        return block_order(self._arms, random.Random(f"{self._seed}/{len(self._blocks)}"))

    def tell(self, block: Block) -> None:
        """Add the block that `next_block` gave, its runs in that order.

        Raises:
            UsageError: if it is another block, or the proof is over.
            ScopeMismatchError: if it measured something else than the runs before, or at other corners.
            SensorError: if a run has no energy.
        """
        self._check(block)
        self._first = self._first or block[0][1]
        self._blocks.append({arm: tuple(m for name, m in block if name == arm) for arm in self._arms})
        n, self._alpha = len(self._blocks), None
        if n == self._max_blocks:
            self.stop_now()
        elif n in self._looks:
            self._alpha = INTERIM_ALPHA
            saving = self.saving(self._headline)
            self._decided = saving.shown or saving.verdict is Verdict.WORSE

    def stop_now(self) -> None:
        """Make the final analysis on the blocks at hand, with the error probability that the looks left.

        For a budget that ends, not for a result that pleases. Does nothing if the proof is over.
        """
        if self._final or self._decided:
            return
        made = sum(n <= len(self._blocks) for n in self._looks)
        self._alpha = 1 - CONFIDENCE_FRACTION - made * INTERIM_ALPHA
        self._final = True

    def saving(self, against: Baseline, *, of: str = PLAN) -> Saving:
        """The saving at the analysis that was made last.

        Args:
            against: a baseline among the arms.
            of: the arm that saves: "plan", or "competent" to state what that saves against the naive default.

        Raises:
            UsageError: if an arm was not run, or no analysis is due after this many blocks.
            NegawattError: if there are fewer than two blocks, which give no interval.
        """
        if str(against) not in self._arms or of not in self._arms or of == str(against):
            raise UsageError(
                f"the saving of {of!r} against {str(against)!r}, of the arms {', '.join(self._arms)}",
                "only arms that were run in the same blocks can be compared",
                "name two different arms of this proof",
            )
        if self._alpha is None:
            raise UsageError(
                f"a look after {len(self._blocks)} blocks, which is none of the looks agreed on",
                "every look beyond those makes a chance result more likely",
                "go on until next_block() gives None, or call stop_now()",
            )
        if len(self._blocks) < 2:
            raise NegawattError(
                f"{len(self._blocks)} complete block(s) of the {self._phase} phase",
                "a scatter takes two, and a claim takes three",
                "give more time with --budget",
            )
        limit = Baseline.COMPETENT if Baseline.COMPETENT in self._arms else against
        terms = Terms(
            phase=self._phase,
            against=against,
            keep=self._keep,
            limit_alpha_fraction=(1 - CONFIDENCE_FRACTION) / (len(self._looks) + 1),
            pace=self._pace,
        )
        return judge(self._pair(of, against), terms, None if of == limit else self._pair(of, limit))

    def _pair(self, arm: str, base: str) -> Comparison:
        return Comparison(
            arm=tuple(block[arm] for block in self._blocks),
            base=tuple(block[str(base)] for block in self._blocks),
            alpha_fraction=self._alpha or 0.0,
            pace=self._pace,
        )

    def _check(self, block: Block) -> None:
        order, asked = tuple(arm for arm, _ in block), self.next_block()
        if order != asked:
            raise UsageError(
                f"a block {' '.join(order) or '(empty)'}",
                "drift cancels in complete mirrored blocks only, and blocks beyond the last look would be a new look",
                f"tell the runs of {' '.join(asked)}, in that order"
                if asked
                else "the proof is over: ask for saving()",
            )
        runs = [*([self._first] if self._first else []), *(m for _, m in block)]
        comparable(runs)
        corners = sorted({len(m.corner_energies_j()) for m in runs})
        if len(corners) > 1:
            raise ScopeMismatchError(
                f"runs priced at {' and '.join(map(str, corners))} corners of a power model",
                "the saving at one corner needs both sides at that corner",
                "measure both sides in one session with the same sensors (`negawatt doctor` lists them)",
            )
        for arm, m in block:
            least_j = min((m.energy_j, *m.corner_energies_j()))
            if least_j <= 0:
                raise SensorError(
                    f"a run of the {arm} arm with {least_j:g} J in {m.time_s:.3g} s",
                    "a ratio to no energy means nothing",
                    "make each run longer, so that its sensor counts something",
                )

"""One phase: find the baselines and the least-energy setting, then put it to the proof.

1. The naive default runs as it is.
2. The competent default is the best setting among those a competent engineer would consider: the fastest, or for a
   server with a promised p99 the one of least energy that keeps it.
3. The candidate is the least-energy setting among all, from there on.
4. Proof: fresh runs of candidate and baselines in randomised mirrored blocks, on data that chose nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

from negawatt.core import registry
from negawatt.core.errors import WorkloadError
from negawatt.core.lever import Choice, Setting
from negawatt.core.measurement import Measurement
from negawatt.core.pace import Pace
from negawatt.core.plan import Keep, PhasePlan
from negawatt.core.reading import NotMeasured
from negawatt.core.saving import Baseline, Saving, Verdict
from negawatt.core.trial import Role, Trial, TrialError, measurements
from negawatt.core.workload import Phase, Split
from negawatt.plan.goal import Goal
from negawatt.search.bench import Bench
from negawatt.tuning.search import CoordinateSearch
from negawatt.verify.judge import MIN_BLOCKS
from negawatt.verify.proof import PLAN, Proof

_SEARCH_SHARE = 0.45
"""Part of a phase's time that the search may use; the proof has the rest."""
_MIN_BLOCKS_WITH_NAIVE = 4
"""The slow naive default is only proven against if this many blocks fit with it; else it stays unproven."""
_OVERHEAD_S = 0.3
"""Time around a trial's window: evaluation, export, restoring [s]; only for predicting what fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseResult:
    """A phase's plan with what was left out, and where the plan's trained model was saved."""

    plan: PhasePlan
    not_measured: tuple[NotMeasured, ...]
    state: Path | None


@final
class PhasePlanner:
    """Plans one phase on a bench.

    Args:
        bench: runs the trials.
        phase: the phase.
        choices: lever -> its choices in this phase.
        conflicts: pairs of levers that must not both leave their naive choice.
        keep: the quality promise.
        pace: what counts as time, and how much of it is accepted.
        seed: of the design and the workload.
        state_in: folder of the model that inference uses.
        state_out: folder under which models trained in the proof are kept.
        note: called with a sentence about what is going on.
    """

    def __init__(  # noqa: PLR0913 -- all keyword, one call site
        self,
        bench: Bench,
        *,
        phase: Phase,
        choices: Mapping[str, tuple[Choice, ...]],
        conflicts: Sequence[tuple[str, str]],
        keep: Keep,
        pace: Pace,
        seed: int,
        state_in: Path | None,
        state_out: Path | None,
        note: Callable[[str], None],
    ) -> None:
        order = {name: lever.info.order for name, lever in registry.levers().members.items()}
        self._choices = dict(sorted(choices.items(), key=lambda item: (order[item[0]], item[0])))
        self._bench, self._phase, self._keep, self._seed = bench, phase, keep, seed
        self._conflicts, self._goal = conflicts, Goal(pace=pace, least_quality=keep.bound)
        self._state_in, self._state_out, self._note = state_in, state_out, note
        self._left_out: list[NotMeasured] = []
        self._failed = ""

    def plan(self, deadline: float) -> PhaseResult:
        """Search, then prove, until `deadline` on the monotonic clock [s].

        Raises:
            WorkloadError: if the naive default fails or misses the promised quality, or if nothing keeps the p99.
        """
        began = time.monotonic()
        naive = Setting.of(self._phase, [next(c for c in cs if c.naive) for cs in self._choices.values()])
        self._note(f"{self._phase}: the naive default")
        first = self._search_trial(naive, 0)
        base = self._checked(first)
        self._goal = replace(self._goal, least_quality=self._keep.least(base.quality))
        search_until = began + _SEARCH_SHARE * (deadline - began)
        half = time.monotonic() + 0.5 * (search_until - time.monotonic())
        self._note(f"{self._phase}: the competent default")
        competent, _ = self._explore(naive, half, self._goal.competence, competent_only=True)
        self._goal = self._goal.against(self._mean(competent, self._goal.pace.time_s))
        self._note(f"{self._phase}: the least energy")
        candidate, steps = self._explore(competent, search_until, self._goal.energy, competent_only=False)
        self._check_pace(candidate)
        competent = self._best_competent(competent)
        arms = {PLAN: candidate, str(Baseline.COMPETENT): competent, str(Baseline.NAIVE): naive}
        return self._proven(arms, steps, deadline)

    # -- search ----------------------------------------------------------------------------------------------------

    def _search_trial(self, setting: Setting, repeat: int) -> Trial:
        return self._bench.trial(
            setting, split=Split.SELECTION, seed=self._seed + repeat, role=Role.SEARCH, load_from=self._state_in
        )

    def _checked(self, trial: Trial) -> Measurement:
        """The naive default's measurement, or the reason why nothing can be compared with it."""
        if trial.measurement is None:
            error = trial.error or TrialError(kind="", message="")
            told = error.kind == "bad-result" and error.detail  # then the detail says what to do
            detail = f"\n{error.detail.rstrip()}" if error.detail and not told else ""
            raise WorkloadError(
                f"the {self._phase} phase failed as it is: {error.message}{detail}",
                "without the naive default there is nothing to compare with",
                error.detail if told else "make the workload run by itself first; `negawatt run -- ...` meters one run",
            )
        quality = trial.measurement.quality
        if self._keep.bound is not None and (quality is None or quality < self._keep.bound):
            raise WorkloadError(
                f"the {self._phase} phase as it is reaches {self._keep.metric} {quality:.4g}, "
                f"not the promised {self._keep.bound:g}",
                "a saving is for the same work at the promised quality, and the workload does not deliver it",
                f'promise less (--keep "{self._keep.metric}>={(quality or 0) - 0.01:.2f}") or improve the workload',
            )
        return trial.measurement

    def _check_pace(self, candidate: Setting) -> None:
        """Raise WorkloadError if not even the best that was found keeps the promised latency."""
        promise_s = self._goal.pace.p99_s
        runs = measurements(self._bench.trials, candidate, Role.SEARCH)
        best_s = min(map(self._goal.pace.time_s, runs))
        if promise_s is None or best_s <= promise_s:
            return
        raise WorkloadError(
            f"no setting that was tried keeps a p99 of {1e3 * promise_s:.4g} ms, best was {1e3 * best_s:.4g} ms",
            "a saving is for the same requests answered in time, and this server does not answer them in time",
            f"promise less (--p99 {1e3 * 1.1 * best_s:.0f}ms), send fewer requests, or give the server more to run on",
        )

    def _clash(self, setting: Setting) -> bool:
        used = {choice.lever for choice in setting.choices if not choice.naive}
        return any(a in used and b in used for a, b in self._conflicts)

    def _explore(
        self, start: Setting, until: float, cost: Callable[[Measurement], float | None], *, competent_only: bool
    ) -> tuple[Setting, tuple[Setting, ...]]:
        """The setting of least cost found before `until`, and the incumbents on the way to it."""
        space = {
            lever: tuple(c for c in choices if c.competent or not competent_only)
            for lever, choices in self._choices.items()
        }

        def setting(point: Sequence[int]) -> Setting:
            return Setting.of(self._phase, [space[lever][i] for lever, i in zip(space, point, strict=True)])

        def point(of: Setting) -> tuple[int, ...]:
            return tuple(space[lever].index(choice) for lever in space if (choice := of.get(lever)))

        def score(trial: Trial) -> float | None:
            m = trial.measurement
            return None if m is None else cost(m)

        known: dict[tuple[int, ...], float | None] = {}
        for trial in self._bench.trials:
            if trial.phase == self._phase and trial.role is Role.SEARCH and trial.seed == self._seed:
                in_space = all(c in space[c.lever] for c in trial.setting.choices)
                if in_space:
                    known[point(trial.setting)] = score(trial)
        tuner = CoordinateSearch(
            sizes=tuple(len(c) for c in space.values()),
            start=point(start),
            known=known,
            finalists=2 if competent_only else 3,
        )
        asked: dict[tuple[int, ...], int] = dict.fromkeys(known, 1)
        while time.monotonic() < until and (ask := tuner.ask()) is not None:
            repeat = asked.get(ask, 0)
            asked[ask] = repeat + 1
            if self._clash(setting(ask)):
                tuner.tell(ask, None)
                continue
            self._note(f"{self._phase}: trying {setting(ask)} (at most {tuner.remaining()} more)")
            tuner.tell(ask, score(self._search_trial(setting(ask), repeat)))
        if time.monotonic() >= until and tuner.ask() is not None:
            self._left_out.append(
                NotMeasured(
                    what=f"{self._phase}: up to {tuner.remaining()} more settings",
                    why="the time budget ended; give more with --budget",
                )
            )
        best = setting(tuner.best)
        path = [setting(p) for p in tuner.path]
        steps = path[: path.index(best) + 1] if best in path else [*path, best]
        return best, tuple(steps)

    def _mean(self, setting: Setting, value: Callable[[Measurement], float]) -> float:
        runs = measurements(self._bench.trials, setting, Role.SEARCH)
        return sum(map(value, runs)) / len(runs)

    def _best_competent(self, known: Setting) -> Setting:
        """The best setting of competent choices among all that were tried, whatever stage tried it."""
        goal = Goal(pace=replace(self._goal.pace, max_slowdown=None), least_quality=self._goal.least_quality)
        tried = dict.fromkeys(t.setting for t in self._bench.trials if t.phase == self._phase)
        costs: dict[Setting, float] = {}
        for setting in tried:
            runs = measurements(self._bench.trials, setting, Role.SEARCH)
            kept = [cost for m in runs if (cost := goal.competence(m)) is not None]
            if kept and all(choice.competent for choice in setting.choices):
                costs[setting] = sum(kept) / len(kept)
        return min(costs, key=lambda setting: costs[setting], default=known)

    # -- proof -----------------------------------------------------------------------------------------------------

    def _proven(self, arms: dict[str, Setting], steps: tuple[Setting, ...], deadline: float) -> PhaseResult:
        candidate, competent, naive = arms[PLAN], arms[str(Baseline.COMPETENT)], arms[str(Baseline.NAIVE)]
        distinct = self._distinct(arms, deadline)
        savings: list[Saving] = []
        setting = candidate
        if len(distinct) > 1:
            savings, setting = self._savings(self._run_blocks(distinct, deadline), arms)
        if naive == competent:
            savings += [replace(s, against=Baseline.NAIVE) for s in savings if s.against is Baseline.COMPETENT]
        plan = PhasePlan(
            phase=self._phase,
            naive=naive,
            competent=competent,
            setting=setting,
            savings=tuple(savings),
            candidate=candidate,
            steps=steps,
            pace=self._goal.pace,
        )
        return PhaseResult(plan=plan, not_measured=tuple(self._left_out), state=self._state(setting, distinct))

    def _distinct(self, arms: dict[str, Setting], deadline: float) -> dict[str, Setting]:
        """The arms to run: those that differ, without the naive default if it would eat up the time."""
        distinct: dict[str, Setting] = {}
        for name, setting in arms.items():
            if setting not in distinct.values():
                distinct[name] = setting
        naive = str(Baseline.NAIVE)
        if len(distinct) > 2 and self._block_s(distinct) * _MIN_BLOCKS_WITH_NAIVE > deadline - time.monotonic():
            del distinct[naive]
            self._left_out.append(
                NotMeasured(
                    what=f"{self._phase}: proof against the naive default",
                    why="too slow for the time budget; give more with --budget",
                )
            )
        return distinct

    def _block_s(self, arms: Mapping[str, Setting]) -> float:
        def run_s(setting: Setting) -> float:
            return self._mean(setting, lambda m: m.time_s) + _OVERHEAD_S

        return 2 * sum(run_s(setting) for setting in arms.values())

    def _run_blocks(self, arms: Mapping[str, Setting], deadline: float) -> Proof:
        """Complete blocks until the proof or the time is over; the very first run is a warm-up and dropped."""
        proof = Proof(phase=self._phase, arms=tuple(arms), keep=self._keep, pace=self._goal.pace, seed=self._seed)
        block_s = self._block_s(arms)
        while (order := proof.next_block()) is not None:
            number = proof.blocks
            why = "the time budget ended; give more with --budget"
            least = block_s if number else MIN_BLOCKS * block_s  # fewer blocks show nothing, so none is begun
            if time.monotonic() + least > deadline:
                return self._cut_short(proof, why)
            began = time.monotonic()
            if number == 0:
                self._proof_trial(arms, order[0], Role.WARMUP, -1)
            self._note(f"{self._phase}: proof, block {number + 1}")
            runs = [(arm, self._proof_trial(arms, arm, Role.PROOF, number)) for arm in order]
            for arm, trial in runs:
                if trial.error is not None:
                    self._failed = f"A run of the {arm} setting failed in block {number + 1}: {trial.error.message}"
                    return self._cut_short(proof, self._failed)
            proof.tell([(arm, trial.measurement) for arm, trial in runs if trial.measurement is not None])
            block_s = time.monotonic() - began if number else block_s
        return proof

    def _cut_short(self, proof: Proof, why: str) -> Proof:
        self._left_out.append(NotMeasured(what=f"{self._phase}: proof blocks after {proof.blocks}", why=why))
        return proof

    def _proof_trial(self, arms: Mapping[str, Setting], arm: str, role: Role, block: int) -> Trial:
        save_to = self._state_out / arm if self._state_out and role is Role.PROOF else None
        return self._bench.trial(
            arms[arm],
            split=Split.REPORT,
            seed=self._seed + 1000 + max(block, 0),
            role=role,
            block=block,
            load_from=self._state_in,
            save_to=save_to,
        )

    def _savings(self, proof: Proof, arms: dict[str, Setting]) -> tuple[list[Saving], Setting]:
        """A saving per baseline that was run, and the setting to use.

        That is the candidate if it was shown to be better than the competent default. Else it is the competent default,
        and its own saving against the naive one is stated.
        """
        proof.stop_now()
        if proof.blocks < 2:
            return [], arms[str(Baseline.COMPETENT)]
        if self._failed:  # the blocks before it would be those that happened to survive
            refused = [
                replace(s, verdict=Verdict.NOT_SHOWN, reasons=(*s.reasons, self._failed)) for s in self._all(proof)
            ]
            return refused, arms[str(Baseline.COMPETENT)]
        against = [baseline for baseline in (Baseline.COMPETENT, Baseline.NAIVE) if baseline in proof.arms]
        headline = proof.saving(against[0])
        if against[0] is Baseline.NAIVE or headline.shown:
            return [headline, *(proof.saving(baseline) for baseline in against[1:])], arms[PLAN]
        fallback = [proof.saving(baseline, of=str(Baseline.COMPETENT)) for baseline in against[1:]]
        return [headline, *fallback], arms[str(Baseline.COMPETENT)]

    def _all(self, proof: Proof) -> list[Saving]:
        return [proof.saving(baseline) for baseline in (Baseline.COMPETENT, Baseline.NAIVE) if baseline in proof.arms]

    def _state(self, setting: Setting, distinct: Mapping[str, Setting]) -> Path | None:
        """A model trained under the plan's setting; one more run if the proof left none."""
        if self._state_out is None:
            return None
        for arm, tried in distinct.items():
            if tried == setting and (self._state_out / arm).exists():
                return self._state_out / arm
        path = self._state_out / PLAN
        trial = self._bench.trial(
            setting, split=Split.REPORT, seed=self._seed, role=Role.APPLY, load_from=self._state_in, save_to=path
        )
        if trial.measurement is None:
            self._checked(trial)
        return path

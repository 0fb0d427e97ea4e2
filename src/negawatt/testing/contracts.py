"""Contract tests: inherit one, override `make`, and pytest checks that a plug-in keeps what its Protocol promises."""

from __future__ import annotations

import math
import os
import re
import tempfile
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from negawatt.core.errors import NegawattError, UsageError
from negawatt.core.host import Host
from negawatt.core.lever import Choice, Context, Lever
from negawatt.core.placement import Declared, Job, Placement, PlacementChoice, Site
from negawatt.core.reading import Probe, Reading, Sensor, Source, disjoint
from negawatt.core.workload import Inferable, Persistent, Phase, Progress, Replayable, Split, Trainable, Workload
from negawatt.hardware.host import this_host
from negawatt.testing.scripted import PlainContext

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def _check_reason(reason: str | None) -> None:
    if reason is not None:
        assert isinstance(reason, str), f"available() gives None or a sentence, got {reason!r}"
        assert len(reason.split()) >= 3, f"the reason is a sentence that ends with what to type, got {reason!r}"


def _refusal(call: Any) -> Exception | None:  # noqa: ANN401 -- any callable
    """The NegawattError that a call raises, or None."""
    try:
        call()
    except NegawattError as error:
        return error
    return None


def _skip(reason: str) -> None:
    import pytest

    pytest.skip(reason)


class SensorContract:
    """What every sensor keeps. Override `make`; with simulated hardware also `advance` and `host`."""

    def make(self) -> Sensor:
        """A sensor."""
        raise NotImplementedError

    def host(self) -> Host:
        """The machine that `available` is asked about."""
        return this_host()

    def advance(self, seconds: float) -> None:
        """Let time pass under some load; a simulator moves its clock instead of sleeping."""
        time.sleep(seconds)

    def opened(self) -> tuple[Sensor, list[Probe]]:
        """The sensor with its probes; the test is skipped where it is not available."""
        sensor = self.make()
        reason = sensor.available(self.host())
        if reason is not None:
            _skip(reason)
        return sensor, list(sensor.open())

    def test_info_says_what_it_is(self) -> None:
        """The sensor has a usable name and says what it measures and where its error figures come from."""
        sensor = self.make()
        assert isinstance(sensor, Sensor), "a sensor has info, available(host) and open()"
        assert _NAME.fullmatch(sensor.info.name), f"names are lower-case words with hyphens, got {sensor.info.name!r}"
        assert sensor.info.measures, "info.measures is empty"
        assert sensor.info.evidence, "info.evidence is empty: an error figure without a source"
        assert isinstance(sensor.info.source, Source), f"info.source is a Source, got {sensor.info.source!r}"

    def test_available_and_open_agree(self) -> None:
        """Where the sensor says it is available it opens; elsewhere it gives a reason and refuses to open."""
        sensor = self.make()
        reason = sensor.available(self.host())
        _check_reason(reason)
        error = _refusal(sensor.open)
        assert (reason is None) == (error is None), f"available() says {reason!r}, but open() raised {error!r}"

    def test_probes_are_disjoint(self) -> None:
        """No joule is in two probes."""
        _, probes = self.opened()
        assert probes, "an available sensor has at least one probe"
        disjoint(probe.scope for probe in probes)
        for probe in probes:
            assert isinstance(probe, Probe), "a probe has scope, period_s, snapshot() and reading(start, end)"
            assert probe.period_s is None or probe.period_s > 0, f"{probe.scope}: period_s is None or positive"

    def test_readings_carry_source_and_error(self) -> None:
        """A reading names its probe's scope and the sensor, has a source and an error, and some energy."""
        sensor, probes = self.opened()
        for probe in probes:
            reading = self._reading(probe, 0.2)
            assert reading.scope == probe.scope, f"reading of {reading.scope!r} from the probe of {probe.scope!r}"
            assert reading.sensor == sensor.info.name, f"{reading.sensor!r} is not the sensor's name"
            assert reading.energy_j > 0, f"{probe.scope}: hardware that is on draws power, got 0 J in 0.2 s"
            error = reading.random_sd_j + reading.gain_sd_fraction + reading.offset_sd_w
            assert error > 0, f"{probe.scope}: a reading without an error does not exist"
            priced = reading.source in (Source.ESTIMATED, Source.MODELLED)
            assert bool(reading.corners_j) == priced, f"{probe.scope}: corners_j belong to models, and all models"

    def test_energy_is_additive_over_split_windows(self) -> None:
        """Two adjacent windows have the energy of the whole, within the error that the sensor states."""
        _, probes = self.opened()
        for probe in probes:
            states = [probe.snapshot()]
            for _ in range(2):
                self.advance(0.1)
                states.append(probe.snapshot())
            first, second = (probe.reading(a, b) for a, b in pairwise(states))
            parts, whole = first + second, probe.reading(states[0], states[2])
            slack_j = 1e-6 + 1e-9 * whole.energy_j
            if whole.source is not Source.COUNTER:
                slack_j += 4 * math.hypot(parts.random_sd_j, whole.random_sd_j)
            assert abs(parts.energy_j - whole.energy_j) <= slack_j, f"{parts.energy_j} J + is not {whole.energy_j} J"
            assert len(parts.corners_j) == len(whole.corners_j), "the corners are fixed in number and order"

    def _reading(self, probe: Probe, seconds: float) -> Reading:
        start = probe.snapshot()
        self.advance(seconds)
        return probe.reading(start, probe.snapshot())


class LeverContract:
    """What every lever keeps. Override `make` and `workload`; `host_state` too if the lever changes the host."""

    def make(self) -> Lever:
        """A lever."""
        raise NotImplementedError

    def workload(self) -> object:
        """A user's object that gives the lever something to turn. Made anew for each test."""
        raise NotImplementedError

    def context(self) -> Context:
        """What the lever is applied in."""
        return PlainContext(this_host(), time.perf_counter)

    def host_state(self) -> Any:  # noqa: ANN401 -- anything that compares
        """Everything outside the workload that the lever may change: by default environment, folder and affinity."""
        affinity = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        return dict(os.environ), Path.cwd(), affinity

    def bound(self) -> tuple[Lever, Workload, list[Choice]]:
        """The lever with its choices for the workload."""
        lever, workload = self.make(), Workload.of(self.workload())
        return lever, workload, list(lever.choices(workload))

    def appliable(self) -> tuple[Lever, Workload, list[Choice]]:
        """The same; the test is skipped where the lever is not available."""
        lever, workload, choices = self.bound()
        reason = lever.available(this_host())
        if reason is not None:
            _skip(reason)
        return lever, workload, choices

    def test_info_says_what_it_is(self) -> None:
        """The lever has a usable name, phases, and says what it does and why it should help."""
        lever = self.make()
        assert isinstance(lever, Lever), "a lever has info, available(host), choices(workload) and applied(...)"
        info = lever.info
        assert _NAME.fullmatch(info.name), f"names are lower-case words with hyphens, got {info.name!r}"
        assert info.phases, "a lever acts on at least one phase"
        assert all((info.summary, info.requires, info.evidence)), "summary, requires and evidence are not empty"
        assert info.name not in info.conflicts, "a lever does not conflict with itself"

    def test_available_gives_a_reason(self) -> None:
        """`available` is None or a sentence."""
        _check_reason(self.make().available(this_host()))

    def test_choices_belong_to_the_lever(self) -> None:
        """Choices carry the lever's name, lie in phases that lever and workload share, and no two are equal."""
        lever, workload, choices = self.bound()
        assert choices, "the contract test needs a workload that gives the lever something to turn"
        for choice in choices:
            assert choice.lever == lever.info.name, f"{choice} does not name the lever {lever.info.name!r}"
            assert choice.phase in lever.info.phases, f"{choice} is of a phase that info does not list"
            assert choice.phase in workload.phases(), f"{choice} is of a phase that the workload does not have"
        keys = [(choice.phase, type(choice.value), choice.value) for choice in choices]
        assert len(set(keys)) == len(keys), f"two choices of one phase are the same: {keys}"

    def test_one_choice_per_phase_is_naive(self) -> None:
        """Exactly one choice of each phase is what the framework's tutorial does."""
        _, _, choices = self.bound()
        for phase in {choice.phase for choice in choices}:
            naive = [choice for choice in choices if choice.phase == phase and choice.naive]
            assert len(naive) == 1, f"{len(naive)} naive choices in the {phase} phase"

    def test_choices_are_deterministic(self) -> None:
        """Asked twice, and made twice, the lever offers the same choices in the same order."""
        lever, workload, choices = self.bound()
        assert list(lever.choices(workload)) == choices, "asked twice, the lever offers other choices"
        assert self.bound()[2] == choices, "made anew, the lever offers other choices"

    def test_applying_restores_on_normal_exit(self) -> None:
        """After the block, the host and the user's object are as found; inside it, a Workload of the same kind."""
        lever, workload, choices = self.appliable()
        for choice in choices:
            found = self._state(workload)
            with lever.applied(workload, choice, self.context()) as changed:
                assert isinstance(changed, Workload), f"applied() yields a Workload, got {changed!r}"
                assert changed.target is workload.target, "the changed workload runs the user's own object"
                same = (changed.name, changed.unit, changed.quality) == (workload.name, workload.unit, workload.quality)
                assert same, "name, unit of work and quality metric are not the lever's to change"
            assert self._state(workload) == found, f"{choice} left something changed"

    def test_applying_restores_on_an_exception(self) -> None:
        """An exception inside the block comes out, and the host and the user's object are as found."""
        lever, workload, choices = self.appliable()
        for choice in choices:
            found = self._state(workload)
            thrown = KeyboardInterrupt("contract test")  # the hardest case: not an Exception
            try:
                with lever.applied(workload, choice, self.context()):
                    raise thrown
            except KeyboardInterrupt as caught:
                assert caught is thrown, f"{choice} replaced the exception"  # noqa: PT017 -- works without pytest
            else:
                raise AssertionError(f"{choice} swallowed the exception")
            assert self._state(workload) == found, f"{choice} left something changed after an exception"

    def test_naive_choice_changes_no_parameter(self) -> None:
        """Under the naive choice the workload's parameters are its own defaults."""
        lever, workload, choices = self.appliable()
        for choice in (choice for choice in choices if choice.naive):
            with lever.applied(workload, choice, self.context()) as changed:
                assert changed.params(choice.phase) == workload.params(choice.phase), f"{choice} is not the default"

    def _state(self, workload: Workload) -> Any:  # noqa: ANN401 -- anything that compares
        fields = {name: (id(value), repr(value)) for name, value in getattr(workload.target, "__dict__", {}).items()}
        return fields, dict(workload.changed), self.host_state()


class PlacementContract:
    """What every placement keeps. Override `make`; `job` too if the default gives it nothing to place."""

    def make(self) -> Placement:
        """A placement."""
        raise NotImplementedError

    def job(self) -> Job:
        """A job with at least one site, all figures known."""
        here = Site(
            name="here",
            pue=Declared(value=1.3, source="contract test"),
            intensity_gpkwh=Declared(value=400.0, source="contract test"),
            price_per_kwh=Declared(value=0.25, source="contract test"),
            currency="EUR",
        )
        north = replace(here, name="north", intensity_gpkwh=Declared(value=30.0, source="contract test"))
        return Job(name="job", energy_j=3.6e6, time_s=3600.0, source=Source.COUNTER, sites=(here, north))

    def test_info_says_what_it_is(self) -> None:
        """The placement has a usable name and says what it does and on what evidence."""
        placement = self.make()
        assert isinstance(placement, Placement), "a placement has info, choices(job) and outcome(job, choice)"
        info = placement.info
        assert _NAME.fullmatch(info.name), f"names are lower-case words with hyphens, got {info.name!r}"
        assert all((info.summary, info.evidence)), "summary and evidence are not empty"

    def test_here_and_now_is_among_the_choices(self) -> None:
        """Starting at once on the present site is a choice, without delay, and all sites are the job's."""
        placement, job = self.make(), self.job()
        choices = list(placement.choices(job))
        now = PlacementChoice(placement=placement.info.name, site=job.sites[0].name, start_s=0.0)
        assert now in choices, "without 'here and now' there is nothing to compare with"
        assert len(set(choices)) == len(choices), "two choices are the same"
        assert {choice.site for choice in choices} <= {site.name for site in job.sites}, "a site nobody named"
        assert all(choice.placement == placement.info.name and choice.start_s >= 0 for choice in choices)
        assert placement.outcome(job, now).delay_s == 0, "here and now has no delay"

    def test_site_energy_contains_it_energy(self) -> None:
        """Where the PUE is known the site draws at least the job's own energy, and every figure has a basis."""
        placement, job = self.make(), self.job()
        for choice in placement.choices(job):
            outcome = placement.outcome(job, choice)
            assert outcome.choice == choice, "an outcome names its choice"
            assert outcome.site_energy_j is not None, f"{choice}: the PUE is known, the site's energy is not"
            assert outcome.site_energy_j >= job.energy_j, f"{choice}: the site draws less than its IT equipment"
            assert outcome.basis, f"{choice}: figures without a basis"
            assert outcome.cost is None or outcome.currency, f"{choice}: money without a currency"

    def test_unknown_stays_unknown(self) -> None:
        """Without a site's figures there are no site energy, carbon and cost: nothing is filled in."""
        placement, job = self.make(), self.job()
        bare = replace(job, sites=tuple(Site(name=site.name) for site in job.sites))
        for choice in placement.choices(bare):
            outcome = placement.outcome(bare, choice)
            invented = (outcome.site_energy_j, outcome.carbon_g, outcome.cost)
            assert invented == (None, None, None), f"{choice}: figures from nowhere: {invented}"

    def test_unknown_choice_is_refused(self) -> None:
        """A choice that the placement did not offer raises UsageError."""
        placement, job = self.make(), self.job()
        strange = PlacementChoice(placement=placement.info.name, site="no-such-site", start_s=0.0)
        error = _refusal(lambda: placement.outcome(job, strange))
        assert isinstance(error, UsageError), f"an unknown choice raises UsageError, got {error!r}"


class WorkloadContract:
    """What every user's workload keeps. Override `make`; tests of capabilities that it lacks are skipped."""

    steps = 3
    """Training steps to run in a test."""

    def make(self) -> object:
        """A user's object, made anew for each test."""
        raise NotImplementedError

    def test_it_can_be_bound(self) -> None:
        """The object names itself, its unit of work and its metric, and can run a phase."""
        workload = Workload.of(self.make())
        assert workload.phases(), "at least one phase can be run"
        assert all((workload.unit, workload.quality)), "unit and quality are named"

    def test_training_reports_progress_and_quality(self) -> None:
        """Training counts its steps from 1, does work in each, and its state has a quality on every split."""
        target, workload = self._trainable()
        state = self._trained(target, workload)
        for split in Split:
            assert math.isfinite(target.evaluate(state, split)), f"quality on {split} is not a finite number"

    def test_saved_state_keeps_its_quality(self) -> None:
        """A state that was saved and loaded has the quality it had."""
        target, workload = self._trainable()
        if not isinstance(target, Persistent):
            _skip("the workload has no save and load")
        state = self._trained(target, workload)
        with tempfile.TemporaryDirectory() as folder:
            target.save(state, Path(folder))
            loaded = target.evaluate(target.load(Path(folder)), Split.SELECTION)
        saved = target.evaluate(state, Split.SELECTION)
        assert math.isclose(loaded, saved, rel_tol=1e-6, abs_tol=1e-9), f"saved at {saved}, loaded at {loaded}"

    def test_inference_answers_and_scores(self) -> None:
        """Requests of the selection and report splits are answered in batches and scored with a finite number."""
        target = self.make()
        workload = Workload.of(target)
        if Phase.INFER not in workload.phases() or not isinstance(target, Inferable):
            _skip("the workload does not answer requests in this process")
        assert isinstance(target, Inferable)
        train = isinstance(target, Trainable) and Phase.TRAIN in workload.phases()
        state = self._trained(target, workload) if train else None
        predict = target.predictor(workload.params(Phase.INFER), state)
        for split in (Split.SELECTION, Split.REPORT):
            requests = target.requests(split)
            assert len(requests) > 0, f"no requests in {split}"
            half = max(1, len(requests) // 2)
            answers = [predict(requests[i : i + half]) for i in range(0, len(requests), half)]
            assert math.isfinite(target.score(split, answers)), f"score on {split} is not a finite number"

    def test_replay_reports_work_and_quality(self) -> None:
        """A workload that replays its own requests reports work, and the quality with the last step."""
        target = self.make()
        workload = Workload.of(target)
        if Phase.INFER not in workload.phases() or not isinstance(target, Replayable):
            _skip("the workload does not replay requests by itself")
        assert isinstance(target, Replayable)
        progress = list(target.replay(workload.params(Phase.INFER), None, Split.SELECTION))
        assert progress, "a replay does something"
        assert sum(step.work for step in progress) > 0, "a replay does work"
        assert progress[-1].quality is not None, "the quality comes with the last step"

    def _trainable(self) -> tuple[Any, Workload]:
        target = self.make()
        workload = Workload.of(target)
        if Phase.TRAIN not in workload.phases():
            _skip("the workload is not trained")
        return target, workload

    def _trained(self, target: Any, workload: Workload) -> Any:  # noqa: ANN401 -- the workload's own
        params = workload.params(Phase.TRAIN)
        state = target.start(params, 0)
        done: list[Progress] = []
        for progress in target.steps(params, state):
            done.append(progress)
            if len(done) == self.steps:
                break
        assert done, "training has at least one step"
        assert [p.step for p in done] == list(range(1, len(done) + 1)), "steps are numbered from 1"
        assert all(p.work > 0 for p in done), "every step does work"
        return state

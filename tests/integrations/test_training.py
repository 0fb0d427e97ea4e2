"""Training: a run that may fail without the training noticing."""

from __future__ import annotations

import logging
import sys
from types import SimpleNamespace

import pytest

from negawatt.core.errors import NoMeterError, UsageError
from negawatt.integrations.training import Mark, Training, figures, wait_for_gpus
from negawatt.testing import ManualClock


def test_figures_are_means_since_a_mark() -> None:
    """Joules per step and power are of the time between two marks; the total has the runs before in it."""
    then = Mark(energy_j=100.0, time_s=10.0, steps=5)
    now = Mark(energy_j=160.0, time_s=30.0, steps=9)
    assert figures(now, then, 40.0) == {"energy/total_j": 200.0, "energy/per_step_j": 15.0, "power/mean_w": 3.0}
    assert figures(now, now) == {"energy/total_j": 160.0}


def test_joules_and_work_are_kept(clock: ManualClock, records) -> None:
    """A training is recorded with its joules per unit of work."""
    training = Training("train")
    clock.advance(30.0)
    training.did(2, "step")
    training.did(5, "step")
    mark = training.mark()
    assert mark is not None
    assert (mark.energy_j, mark.steps) == (pytest.approx(300.0), 7)
    clock.advance(40.0)
    run = training.stop(KeyboardInterrupt())
    assert run is training.stop()
    (record,) = records()
    assert (record["name"], record["energy_j"], record["error"]) == ("train", pytest.approx(700.0), "KeyboardInterrupt")
    assert record["energy_per_work_j"] == pytest.approx({"step": 100.0})


def test_a_missing_meter_is_an_error_at_the_beginning(no_sensor: None) -> None:
    """Before hours of work, a host without sensors is told of."""
    with pytest.raises(NoMeterError, match="no sensor can be used"):
        Training("train")


def test_a_meter_that_is_not_required_may_be_missing(
    no_sensor: None, caplog: pytest.LogCaptureFixture, records
) -> None:
    """With required=False a training without a meter goes on, and the log says so once."""
    training = Training("train", required=False)
    training.did(1, "step")
    assert training.mark() is training.stop() is training.run is None
    assert [r.getMessage().split("\n")[0] for r in caplog.records] == [
        "the energy of train is not known: no sensor can be used on this host (none is registered)"
    ]
    assert records() == []


def test_an_unknown_sensor_is_always_an_error(clock: ManualClock) -> None:
    """A name that was typed wrongly is not a missing meter."""
    with pytest.raises(UsageError, match="did you mean 'scripted'"):
        Training("train", sensors=["scriptet"], required=False)


def test_a_sensor_that_fails_ends_nothing(clock: ManualClock, caplog: pytest.LogCaptureFixture, records) -> None:
    """A sensor that fails on the way is logged once; the run is kept with the fault and without joules."""
    training = Training("train")
    training.did(3, "step")
    clock.advance(2000.0)
    assert training.mark() is training.mark() is None
    run = training.stop()
    assert run is not None
    assert "sensor 'scripted' fails" in run.fault
    assert len([r for r in caplog.records if "the energy of train is not known" in r.getMessage()]) == 1
    (record,) = records()
    assert (record["energy_j"], record["work"]) == (None, [{"unit": "step", "quantity": 3.0}])


def test_a_ledger_that_cannot_be_written_ends_nothing(script) -> None:
    """A training goes on without a ledger and still knows its joules; the log says what is lost."""
    done = script("""
        import os, pathlib, time
        pathlib.Path("file").write_text("")
        os.environ["NEGAWATT_LEDGER"] = "file/ledger.sqlite"
        from negawatt.integrations.training import Training
        training = Training("train")
        time.sleep(0.5)
        print(training.stop().energy_j)
    """)
    assert done.returncode == 0
    assert float(done.stdout) > 0
    assert "cannot write to the spool" in done.stderr
    assert "Traceback" not in done.stderr


def test_only_gpus_in_use_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU where this process holds no memory is not asked, and none is before CUDA is in use."""
    asked: list[int] = []
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 3,
        memory_reserved=lambda device: 1024 * (device == 1),
        synchronize=asked.append,
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    wait_for_gpus()
    cuda.is_initialized = lambda: False
    wait_for_gpus()
    assert asked == [1]


def test_a_gpu_that_has_failed_ends_nothing(
    clock: ManualClock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After an error on the GPU, waiting for it raises: the run is kept all the same, and the log says why."""

    def synchronize(device: int) -> None:
        raise RuntimeError("CUDA error: device-side assert triggered")

    cuda = SimpleNamespace(is_initialized=lambda: True, device_count=lambda: 1, memory_reserved=lambda device: 1)
    training = Training("train")
    clock.advance(1.0)
    monkeypatch.setitem(
        sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(**vars(cuda), synchronize=synchronize))
    )
    run = training.stop(RuntimeError("device-side assert"))
    assert run is not None
    assert run.energy_j == pytest.approx(10.0)
    assert "device-side assert triggered" in caplog.text


def test_a_finished_run_is_logged(clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """At level INFO the log has the run in one line."""
    caplog.set_level(logging.INFO, logger="negawatt")
    Training("train", record=False).stop()
    assert "train: 0 J" in caplog.text

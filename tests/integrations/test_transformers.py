"""EnergyCallback in trainings of the real Trainer: what is logged, checkpoints, and every way for one to end."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from negawatt.core.errors import NoMeterError
from negawatt.testing import ManualClock

torch = pytest.importorskip("torch", reason="needs PyTorch")
transformers = pytest.importorskip("transformers", reason="needs transformers: see the extra `integrations`")
pytest.importorskip("accelerate", reason="needs accelerate: see the extra `integrations`")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # the libraries below warn of many things

TOKENS = 8
ENDS = {"bos_token_id": 0, "eos_token_id": 0}


@pytest.fixture
def model(clock: ManualClock) -> Any:
    """A language model whose training steps take 1 s of the sensor's clock, and evaluation steps 0.5 s."""
    config = transformers.GPT2Config(vocab_size=16, n_positions=TOKENS, n_embd=8, n_layer=1, n_head=1, **ENDS)
    model = transformers.GPT2LMHeadModel(config)
    model.register_forward_pre_hook(lambda module, _: clock.advance(1.0 if module.training else 0.5))
    return model


class Seen(transformers.TrainerCallback):
    """A logger: keeps what it is given at the moment that it is given it. May end the training at step 3."""

    def __init__(self, end: Any = None) -> None:
        self.logs: list[dict[str, Any]] = []
        self.end = end

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        self.logs.append(dict(logs))

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.end and state.global_step == 3:
            self.end()


@pytest.fixture
def callback() -> Any:
    from negawatt.integrations.transformers import EnergyCallback

    return EnergyCallback("fine-tune")


def trainer(tmp_path: Path, model: Any, *callbacks: Any, **options: Any) -> Any:
    samples = [{"input_ids": torch.arange(TOKENS), "labels": torch.arange(TOKENS)}] * 10
    arguments = {
        "output_dir": str(tmp_path / "out"),
        "num_train_epochs": 2,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 5,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": [],
        "use_cpu": True,
        "disable_tqdm": True,
        "include_num_input_tokens_seen": "all",
        **options,
    }
    return transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(**arguments),
        train_dataset=samples,
        eval_dataset=samples,
        callbacks=list(callbacks),
    )


def test_loggers_get_joules(tmp_path: Path, model: Any, callback: Any, records) -> None:
    """A logger before the callback in the list has joules in every log, priced without evaluations."""
    seen = Seen()
    training = trainer(tmp_path, model, seen, callback, eval_strategy="epoch")
    result = training.train()
    steps = [log for log in seen.logs if "loss" in log]
    assert [log["energy/per_step_j"] for log in steps] == pytest.approx([10.0] * len(steps))
    assert [log["energy/per_token_j"] for log in steps] == pytest.approx([10.0 / (2 * TOKENS)] * len(steps))
    evaluations = [log for log in seen.logs if "eval_loss" in log]
    assert [log["energy/total_j"] for log in evaluations] == pytest.approx([60.0, 120.0])  # 5 steps and 2 evaluations
    assert not any("energy/per_step_j" in log for log in evaluations)
    assert result.metrics["energy/total_j"] == pytest.approx(120.0)
    assert result.metrics["energy/per_step_j"] == pytest.approx(12.0)  # evaluations included
    assert all(log["power/mean_w"] > 0 for log in steps)
    assert [entry.get("energy/total_j") for entry in training.state.log_history] == [
        log["energy/total_j"] for log in seen.logs
    ]
    (record,) = records()
    assert (record["name"], record["energy_j"], record["error"]) == ("fine-tune", pytest.approx(120.0), "")
    work = {work["unit"]: work["quantity"] for work in record["work"]}
    assert work == {"step": 10.0, "token": 20.0 * TOKENS}


def test_epochs_add_up_to_the_run(tmp_path: Path, model: Any, callback: Any) -> None:
    """Logged once per epoch, the joules of the epochs are those of the run."""
    seen = Seen()
    trainer(tmp_path, model, seen, callback, logging_strategy="epoch").train()
    epochs_j = [5 * log["energy/per_step_j"] for log in seen.logs if "loss" in log]
    assert len(epochs_j) == 2
    assert sum(epochs_j) == pytest.approx(callback.run.energy_j)


def test_energy_goes_on_after_a_resume(tmp_path: Path, model: Any, callback: Any, records) -> None:
    """A training that goes on from a checkpoint logs all joules since the first; its own record has its own."""
    from negawatt.integrations.transformers import EnergyCallback

    options = {"save_strategy": "epoch", "logging_steps": 1}
    trainer(tmp_path, model, callback, num_train_epochs=1, **options).train()
    seen = Seen()
    trainer(tmp_path, model, seen, EnergyCallback(), **options).train(resume_from_checkpoint=True)
    assert seen.logs[-1]["energy/total_j"] == pytest.approx(100.0)
    assert [(r["name"], r["energy_j"]) for r in records()] == [
        ("fine-tune", pytest.approx(50.0)),
        ("GPT2LMHeadModel", pytest.approx(50.0)),
    ]


def test_training_twice_is_two_runs(tmp_path: Path, model: Any, callback: Any, records) -> None:
    """A second train() begins anew."""
    seen = Seen()
    twice = trainer(tmp_path, model, seen, callback)
    twice.train()
    twice.train()
    assert seen.logs[-1]["energy/total_j"] == pytest.approx(100.0)
    assert len(records()) == 2


def crash() -> None:
    raise RuntimeError("out of memory")


def interrupt() -> None:
    raise KeyboardInterrupt


def leave() -> None:
    raise SystemExit(3)


@pytest.mark.parametrize(
    ("end", "raised", "error"),
    [
        (crash, RuntimeError, "RuntimeError: out of memory"),
        (interrupt, KeyboardInterrupt, "KeyboardInterrupt"),
        (leave, SystemExit, "SystemExit: 3"),
    ],
)
def test_a_training_that_ends_early_is_recorded(
    tmp_path: Path, model: Any, callback: Any, clock: ManualClock, records, end: Any, raised: Any, error: str
) -> None:
    """An exception, Ctrl-C and sys.exit end the run there and then, with its joules and what ended it."""
    with pytest.raises(raised, match=r"out of memory|3|^$"):
        trainer(tmp_path, model, Seen(end), callback).train()
    clock.advance(50.0)  # what the program does after it caught the exception
    assert callback.run.error == error
    (record,) = records()
    assert (record["error"], record["energy_j"]) == (error, pytest.approx(30.0))
    assert {work["unit"]: work["quantity"] for work in record["work"]}["step"] == 3.0


def test_trying_a_smaller_batch_is_the_same_run(tmp_path: Path, model: Any, callback: Any, records) -> None:
    """What auto_find_batch_size tried in vain is part of the training's joules."""
    failed = []

    def once() -> None:
        if not failed:
            failed.append(1)
            raise RuntimeError("CUDA out of memory.")

    trainer(tmp_path, model, Seen(once), callback, auto_find_batch_size=True, num_train_epochs=1).train()
    (record,) = records()
    assert failed
    assert record["error"] == ""
    assert record["energy_j"] > 30.0


def test_a_killed_training_leaves_its_run(script, records) -> None:
    """SIGKILL in the middle of a training: the run is in the ledger, marked as interrupted, with joules and steps."""
    done = script("""
        import os, time, torch, transformers
        from negawatt.integrations.transformers import EnergyCallback

        class Killer(transformers.TrainerCallback):
            def on_step_end(self, args, state, control, **kwargs):
                if state.global_step == 3:
                    time.sleep(0.8)
                    os.kill(os.getpid(), 9)

        config = transformers.GPT2Config(vocab_size=16, n_positions=8, n_embd=8, n_layer=1, n_head=1)
        samples = [{"input_ids": torch.arange(8), "labels": torch.arange(8)}] * 100
        arguments = transformers.TrainingArguments(output_dir="out", use_cpu=True, report_to=[])
        callbacks = [EnergyCallback(), Killer()]
        model = transformers.GPT2LMHeadModel(config)
        transformers.Trainer(model=model, args=arguments, train_dataset=samples, callbacks=callbacks).train()
    """)
    assert done.returncode == -9, done.stderr
    (record,) = records()
    assert (record["name"], record["interrupted"]) == ("GPT2LMHeadModel", True)
    assert record["energy_j"] > 0
    assert record["work"] == [{"unit": "step", "quantity": 3.0}]


def test_a_sensor_that_fails_ends_nothing(
    tmp_path: Path, model: Any, callback: Any, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The training goes on to its end without joules, and the log says why, once."""
    training = trainer(tmp_path, model, Seen(lambda: clock.advance(2000.0)), callback)
    training.train()
    assert training.state.global_step == 10
    assert "energy/total_j" not in training.state.log_history[-1]
    assert callback.run.energy_j is None
    assert len([record for record in caplog.records if record.name == "negawatt"]) == 1


def test_a_missing_meter_is_told_before_the_first_step(
    tmp_path: Path, model: Any, callback: Any, no_sensor: None
) -> None:
    """A training without a meter does not begin, unless it may."""
    from negawatt.integrations.transformers import EnergyCallback

    training = trainer(tmp_path, model, callback)
    with pytest.raises(NoMeterError, match="no sensor can be used"):
        training.train()
    assert training.state.global_step == 0
    optional = EnergyCallback(required=False)
    trainer(tmp_path, model, optional, num_train_epochs=1).train()
    assert optional.run is None


def test_the_trainer_is_wrapped_once(callback: Any) -> None:
    """However many callbacks are made, Trainer.train has one wrapper, and keeps its name and signature."""
    from negawatt.integrations.transformers import EnergyCallback

    wrapped = transformers.Trainer.train
    EnergyCallback()
    assert transformers.Trainer.train is wrapped
    assert wrapped.__name__ == "train"


def test_evaluation_alone_is_no_run(tmp_path: Path, model: Any, callback: Any, records) -> None:
    """evaluate() outside a training neither fails nor is metered."""
    assert "eval_loss" in trainer(tmp_path, model, callback).evaluate()
    assert (callback.run, records()) == (None, [])


def test_a_copy_for_another_process_meters_itself(tmp_path: Path, model: Any, callback: Any) -> None:
    """A callback can be sent to another process, also when it has a run behind it, which stays behind."""
    trainer(tmp_path, model, callback, num_train_epochs=1).train()
    assert callback.run is not None
    assert pickle.loads(pickle.dumps(callback)).run is None

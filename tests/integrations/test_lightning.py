"""EnergyCallback in real Lightning fits: epochs, validations, checkpoints, and every way for a fit to end."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from negawatt.core.errors import NoMeterError
from negawatt.testing import ManualClock

torch = pytest.importorskip("torch", reason="needs PyTorch")
pl = pytest.importorskip("lightning.pytorch", reason="needs Lightning: see the extra `integrations`")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Lightning warns of many things


@pytest.fixture
def module(clock: ManualClock) -> Any:
    """A model whose training steps take 1 s of the sensor's clock, and validation steps 0.5 s; `end` may end it."""
    from torch import nn

    class Module(pl.LightningModule):
        end: Any = None

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 1)

        def training_step(self, batch: Any, index: int) -> Any:
            clock.advance(1.0)
            if self.end and self.global_step == 3:
                self.end()
            return self.layer(batch).sum()

        def validation_step(self, batch: Any, index: int) -> None:
            clock.advance(0.5)

        def on_fit_start(self) -> None:
            clock.advance(7.0)

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.01)

    return Module()


def loader(batches: int) -> Any:
    return torch.utils.data.DataLoader(torch.ones(2 * batches, 4), batch_size=2)


def trainer(tmp_path: Path, *callbacks: Any, **options: Any) -> Any:
    from lightning.pytorch.loggers import CSVLogger

    return pl.Trainer(
        **{
            "callbacks": [*callbacks],
            "logger": CSVLogger(tmp_path, name="", version="log"),
            "accelerator": "cpu",
            "max_epochs": 3,
            "log_every_n_steps": 2,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": tmp_path,
            **options,
        }
    )


def logged(tmp_path: Path, name: str) -> dict[int, float]:
    with (tmp_path / "log" / "metrics.csv").open() as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


@pytest.fixture
def callback() -> Any:
    from negawatt.integrations.lightning import EnergyCallback

    return EnergyCallback("fit")


def test_epochs_add_up_to_the_run(tmp_path: Path, module: Any, callback: Any, records) -> None:
    """Setup, epochs and rest are all of the run, and an epoch holds its steps and its validation."""
    trainer(tmp_path, callback).fit(module, loader(5), loader(2))
    assert callback.run.energy_j == pytest.approx(sum(callback.parts_j.values()))
    assert callback.parts_j == pytest.approx(
        {"setup": 80.0, "epoch 0": 60.0, "epoch 1": 60.0, "epoch 2": 60.0, "rest": 0.0}
    )  # setup: 7 s and two sanity checks; an epoch: 5 steps and 2 validation steps
    (record,) = records()
    assert (record["name"], record["energy_j"], record["error"]) == ("fit", pytest.approx(260.0), "")
    assert record["work"] == [{"unit": "step", "quantity": 15.0}]


def test_loggers_get_joules(tmp_path: Path, module: Any, callback: Any) -> None:
    """Totals grow, steps are priced without validations, and epochs and validations have figures of their own."""
    trainer(tmp_path, callback).fit(module, loader(5), loader(2))
    per_step_j = logged(tmp_path, "energy/per_step_j")
    assert list(per_step_j) == [1, 3, 4, 5, 7, 9, 11, 13, 14]  # every second step, and the ends of epochs
    assert list(per_step_j.values()) == pytest.approx([10.0] * 9)
    totals = logged(tmp_path, "energy/total_j")
    assert list(totals.values()) == sorted(totals.values())
    assert max(totals.values()) == pytest.approx(260.0)
    assert list(logged(tmp_path, "energy/epoch_j").values()) == pytest.approx([60.0] * 3)
    assert list(logged(tmp_path, "energy/validation_j").values()) == pytest.approx([10.0] * 3)
    assert all(power_w > 0 for power_w in logged(tmp_path, "power/mean_w").values())


def test_accumulated_gradients_count_once(tmp_path: Path, module: Any, callback: Any) -> None:
    """A step is an optimizer step, however many batches it takes."""
    trainer(tmp_path, callback, accumulate_grad_batches=2, max_epochs=1).fit(module, loader(6))
    assert [(work.unit, work.quantity) for work in callback.run.work] == [("step", 3.0)]


def test_energy_goes_on_after_a_resume(tmp_path: Path, module: Any, callback: Any, records) -> None:
    """A fit that goes on from a checkpoint logs all joules since the first; its own record has its own."""
    from negawatt.integrations.lightning import EnergyCallback

    first = trainer(tmp_path / "first", callback, max_epochs=2)
    first.fit(module, loader(5))
    first.save_checkpoint(tmp_path / "state.ckpt")
    resumed = EnergyCallback("fit")
    trainer(tmp_path / "second", resumed, max_epochs=3).fit(module, loader(5), ckpt_path=tmp_path / "state.ckpt")
    assert resumed.run.energy_j == pytest.approx(120.0)
    assert max(logged(tmp_path / "second", "energy/total_j").values()) == pytest.approx(170.0 + 120.0)
    assert [record["energy_j"] for record in records()] == pytest.approx([170.0, 120.0])


def test_a_checkpoint_of_the_same_fit_adds_nothing(tmp_path: Path, module: Any, callback: Any) -> None:
    """A learning-rate finder trains, loads its own checkpoint and goes on: no joule is counted twice."""
    from lightning.pytorch.callbacks import LearningRateFinder

    module.lr = 0.1
    options = {"max_epochs": 1, "default_root_dir": tmp_path}
    trainer(tmp_path, callback, LearningRateFinder(num_training_steps=3), **options).fit(module, loader(5))
    assert max(logged(tmp_path, "energy/total_j").values()) <= callback.run.energy_j * (1 + 1e-9)


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
        (interrupt, SystemExit, "KeyboardInterrupt"),
        (leave, SystemExit, "SystemExit: 3"),
    ],
)
def test_a_fit_that_ends_early_is_recorded(
    tmp_path: Path, module: Any, callback: Any, records, end: Any, raised: type[BaseException], error: str
) -> None:
    """An exception, Ctrl-C and sys.exit end the run with its joules and what ended it, and its parts add up."""
    module.end = end
    with pytest.raises(raised, match=r"out of memory|1|3"):
        trainer(tmp_path, callback).fit(module, loader(5))
    (record,) = records()
    assert (record["error"], record["energy_j"]) == (error, pytest.approx(110.0))
    assert sum(callback.parts_j.values()) == pytest.approx(110.0)


def test_a_killed_fit_leaves_its_run(script, records) -> None:
    """SIGKILL in the middle of a fit: the run is in the ledger, marked as interrupted, with joules and steps."""
    done = script("""
        import os, time, torch, lightning.pytorch as pl
        from negawatt.integrations.lightning import EnergyCallback

        class Module(pl.LightningModule):
            def __init__(self):
                super().__init__()
                self.layer = torch.nn.Linear(4, 1)
            def training_step(self, batch, index):
                if self.global_step == 3:
                    time.sleep(0.8)
                    os.kill(os.getpid(), 9)
                return self.layer(batch).sum()
            def configure_optimizers(self):
                return torch.optim.SGD(self.parameters(), lr=0.01)

        loader = torch.utils.data.DataLoader(torch.ones(20, 4))
        pl.Trainer(callbacks=[EnergyCallback()], accelerator="cpu", logger=False).fit(Module(), loader)
    """)
    assert done.returncode == -9, done.stderr
    (record,) = records()
    assert (record["name"], record["interrupted"]) == ("Module", True)
    assert record["energy_j"] > 0
    assert record["work"] == [{"unit": "step", "quantity": 3.0}]


def test_a_sensor_that_fails_ends_nothing(
    tmp_path: Path, module: Any, callback: Any, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    """The fit goes on to its end without joules, and the log says why, once."""
    module.end = lambda: clock.advance(2000.0)
    fit = trainer(tmp_path, callback)
    fit.fit(module, loader(5), loader(2))
    assert fit.global_step == 15
    assert callback.run.energy_j is None
    assert len([record for record in caplog.records if record.name == "negawatt"]) == 1


def test_a_missing_meter_is_told_before_the_first_step(
    tmp_path: Path, module: Any, callback: Any, no_sensor: None
) -> None:
    """A fit without a meter does not begin, unless it may."""
    from negawatt.integrations.lightning import EnergyCallback

    fit = trainer(tmp_path, callback)
    with pytest.raises(NoMeterError, match="no sensor can be used"):
        fit.fit(module, loader(5))
    assert fit.global_step == 0
    optional = EnergyCallback(required=False)
    trainer(tmp_path, optional, max_epochs=1).fit(module, loader(5))
    assert optional.run is None


def test_only_a_fit_is_metered(tmp_path: Path, module: Any, callback: Any, records) -> None:
    """validate() is not a run, and leaves that of the fit alone."""
    fit = trainer(tmp_path, callback, max_epochs=1)
    fit.fit(module, loader(5), loader(2))
    run = callback.run
    fit.validate(module, loader(2), verbose=False)
    assert callback.run is run
    assert len(records()) == 1


def test_ranks_answer_for_their_shares(script, records) -> None:
    """In a distributed fit every process has its run and its steps, and their joules add up to the host's."""
    done = script("""
        import torch, lightning.pytorch as pl
        from lightning.pytorch.demos.boring_classes import BoringModel
        from negawatt.integrations.lightning import EnergyCallback

        if __name__ == "__main__":
            callback = EnergyCallback("fit")
            options = {"accelerator": "cpu", "strategy": "ddp_fork", "devices": 2, "max_epochs": 2, "logger": False}
            pl.Trainer(callbacks=[callback], limit_train_batches=20, **options).fit(BoringModel())
    """)
    assert done.returncode == 0, done.stderr
    assert "sync_dist" not in done.stderr
    one, two = sorted(records(), key=lambda record: record["name"])
    assert [one["name"], two["name"]] == ["fit, rank 0 of 2", "fit, rank 1 of 2"]
    assert one["work"] == two["work"] == [{"unit": "step", "quantity": 40.0}]
    assert one["energy_j"] + two["energy_j"] == pytest.approx(max(one["host_energy_j"], two["host_energy_j"]), rel=0.1)


def test_the_twin_package_works(script, records) -> None:
    """A program that uses pytorch_lightning gets a callback of its Callback class."""
    pytest.importorskip("pytorch_lightning", reason="needs pytorch_lightning")
    done = script("""
        import torch, pytorch_lightning as pl
        from pytorch_lightning.demos.boring_classes import BoringModel
        from negawatt.integrations.lightning import EnergyCallback
        import sys
        assert issubclass(EnergyCallback, pl.Callback) and "lightning.pytorch" not in sys.modules
        pl.Trainer(callbacks=EnergyCallback(), accelerator="cpu", max_steps=4, logger=False).fit(BoringModel())
    """)
    assert done.returncode == 0, done.stderr
    assert [(record["name"], record["work"]) for record in records()] == [
        ("BoringModel", [{"unit": "step", "quantity": 4.0}])
    ]

"""meter_training, with real PyTorch: models, optimizers, worker processes and a job of two ranks."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import negawatt
from negawatt.core.errors import UsageError
from negawatt.integrations.pytorch import meter_training
from negawatt.testing import ManualClock

torch = pytest.importorskip("torch", reason="needs PyTorch")
pytestmark = pytest.mark.slow


@pytest.fixture
def model() -> Any:
    return torch.nn.Linear(4, 1)


def step(model: Any, optimizer: Any, samples: int) -> None:
    optimizer.zero_grad()
    model(torch.ones(samples, 4)).sum().backward()
    optimizer.step()


def sgd(model: Any) -> Any:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def test_steps_and_samples_are_counted(model: Any, clock: ManualClock, records) -> None:
    """Optimizer steps and what `count` finds in the inputs are the run's work; evaluation is not."""
    optimizer = sgd(model)
    with meter_training(optimizer, "fit", model=model, count=lambda x: {"sample": len(x)}) as training:
        for _ in range(5):
            clock.advance(2.0)
            step(model, optimizer, samples=8)
        model.eval()
        model(torch.ones(100, 4))
        model.train()
    step(model, optimizer, samples=8)  # behind the block nothing is counted
    assert training.run is not None
    assert training.run.energy_per_work_j == pytest.approx({"step": 20.0, "sample": 2.5})
    assert [(record["name"], record["energy_per_work_j"]) for record in records()] == [
        ("fit", pytest.approx({"step": 20.0, "sample": 2.5}))
    ]


def test_something_else_than_an_optimizer_leaves_no_run_behind(clock: ManualClock) -> None:
    """What cannot be followed is an error at once, and the run that was begun for it is over."""
    with pytest.raises(AttributeError, match="register_step_post_hook"), meter_training(object()):  # type: ignore[arg-type]
        pass
    with negawatt.meter("alone") as m:
        clock.advance(1.0)
    assert m.attribution is not None
    assert m.attribution.runs == 1


def test_all_optimizers_count(model: Any, clock: ManualClock) -> None:
    """Several optimizers, as of a generator and its critic, are counted together."""
    first, second = sgd(model), sgd(model)
    with meter_training([first, second]) as training:
        step(model, first, 1)
        step(model, second, 1)
    assert [(work.unit, work.quantity) for work in training.run.work] == [("step", 2.0)]


def test_prepared_optimizers_count(model: Any, clock: ManualClock) -> None:
    """An optimizer that Accelerate wrapped is counted when it steps, not while gradients accumulate."""
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    prepared, optimizer = accelerator.prepare(model, sgd(model))
    with meter_training(optimizer) as training:
        for _ in range(4):
            with accelerator.accumulate(prepared):
                step(prepared, optimizer, 1)
    assert [(work.unit, work.quantity) for work in training.run.work] == [("step", 2.0)]


def test_an_exception_is_recorded_and_goes_on(model: Any, clock: ManualClock, records) -> None:
    """A crash ends the run with its joules, and leaves no hooks behind."""
    optimizer = sgd(model)

    def crash() -> None:
        with meter_training(optimizer, "fit"):
            clock.advance(3.0)
            step(model, optimizer, 1)
            model(torch.ones(2, 3))

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        crash()
    step(model, optimizer, 1)
    (record,) = records()
    assert record["error"].startswith("RuntimeError: mat1 and mat2 shapes cannot be multiplied")
    assert (record["energy_j"], record["work"]) == (pytest.approx(30.0), [{"unit": "step", "quantity": 1.0}])
    assert not optimizer._optimizer_step_post_hooks


def test_a_sensor_that_fails_ends_nothing(model: Any, clock: ManualClock, caplog: pytest.LogCaptureFixture) -> None:
    """The training goes on to its end; what is not known is logged once."""
    optimizer = sgd(model)
    with meter_training(optimizer) as training:
        clock.advance(2000.0)
        step(model, optimizer, 1)
    assert training.run.energy_j is None
    assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1


def test_count_needs_a_model(model: Any) -> None:
    """`count` alone would never be called, so it is an error."""
    with (
        pytest.raises(UsageError, match=r"meter_training\(count=...\) without a model"),
        meter_training(sgd(model), count=lambda x: {"sample": len(x)}),
    ):
        pass


def test_worker_processes_are_parts_of_the_process(script, records) -> None:
    """The CPU time of DataLoader workers is that of the training; ending them does not end its run."""
    done = script("""
        import time, torch
        from torch.utils.data import DataLoader, Dataset
        from negawatt.integrations.pytorch import meter_training

        class Slow(Dataset):
            def __len__(self):
                return 4
            def __getitem__(self, index):
                end = time.process_time() + 0.5
                while time.process_time() < end:
                    pass
                return torch.ones(4)

        model = torch.nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with meter_training(optimizer, model=model, count=lambda x: {"sample": len(x)}) as training:
            for x in DataLoader(Slow(), num_workers=2, multiprocessing_context="fork"):
                model(x).sum().backward()
                optimizer.step()
    """)
    assert done.returncode == 0, done.stderr
    (record,) = records()
    assert {work["unit"]: work["quantity"] for work in record["work"]} == {"step": 4.0, "sample": 4.0}
    share = record["attribution"]["process_j"] / record["energy_j"]
    most_cpu_s = (os.cpu_count() or 1) * record["time_s"]  # of all programs of the host
    assert share * most_cpu_s > 1.9  # the workers' 2 s


RANK = """
import sys, time, torch, torch.distributed as dist
from negawatt.integrations.pytorch import meter_training
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=int(sys.argv[1]), world_size=2)
model = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(64, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
with meter_training(optimizer, "job", model=model, count=lambda x: {"sample": len(x)}):
    dist.barrier()
    for _ in range(500):
        model(torch.ones(256, 64)).sum().backward()
        optimizer.step()
    time.sleep(0.5)
    dist.barrier()
dist.destroy_process_group()
"""


def test_ranks_answer_for_their_shares(tmp_path: Path, records) -> None:
    """Two ranks of one job are two runs, named with their ranks, whose joules add up to the host's."""
    command = [sys.executable, "-c", RANK]
    ranks = [subprocess.Popen([*command, str(i), str(tmp_path / "store")]) for i in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    one, two = sorted(records(), key=lambda record: record["name"])
    assert [one["name"], two["name"]] == ["job, rank 0 of 2", "job, rank 1 of 2"]
    assert {work["unit"]: work["quantity"] for work in one["work"]} == {"step": 500.0, "sample": 128000.0}
    assert one["attribution"]["runs"] == two["attribution"]["runs"] == 2
    assert one["energy_j"] + two["energy_j"] == pytest.approx(max(one["host_energy_j"], two["host_energy_j"]), rel=0.05)

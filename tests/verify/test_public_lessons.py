"""What watching other people's programs taught: false alarms, crashes and empty records, each as a few lines."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.verify.trace.runs import PLAIN, TRAIN, watched
from verify.report import Finding
from verify.rules.data_inputs import normalisation_off
from verify.rules.evaluation import eval_in_train_mode, metric_wrong
from verify.rules.schedule import schedule_never_steps
from verify.trace.record import Record

WARMUP_AROUND_COSINE = """
class Warmup(torch.optim.lr_scheduler.LRScheduler):
    def __init__(self, optimizer, epochs, after):
        self.epochs, self.after = epochs, after
        super().__init__(optimizer)

    def get_lr(self):
        if self.last_epoch >= self.epochs:
            return self.after.get_last_lr()
        return [base * (self.last_epoch + 1) / self.epochs for base in self.base_lrs]

    def step(self, epoch=None):
        if getattr(self, "last_epoch", -1) >= self.epochs:
            self.after.step()
        super().step(epoch)


cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
schedule = Warmup(optimizer, 8, cosine)
for _ in range(3):
    train(1)
    schedule.step()
"""

FORGOTTEN_COSINE = """
cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)
train(3)
"""

# Half a second for each pass in train mode, as of a model that is too large for the time there is.
HEAVY = """
import pytest
import time


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 2))

    def forward(self, x):
        time.sleep(0.5 if torch.is_grad_enabled() else 0.05)
        return self.net(x)


model = Slow()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
held_out = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x[:40], y[:40]), batch_size=16)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 30)
for epoch in range(30):
    model.train()
    train(1)
    {mode}
    correct = 0
    with torch.no_grad():
        for a, b in held_out:
            correct += (model(a).argmax(1) == b).sum().item()
    val_accuracy = correct / 40
    schedule.step()
    torch.save(model.state_dict(), "last.pt")
"""
SHORT = replace(PLAIN, compute_seconds=0.8, soft_seconds=30.0)


def heavy(folder: Path, mode: str) -> Record:
    return watched(folder, TRAIN + HEAVY.replace("{mode}", mode), cut=SHORT)


def test_a_schedule_that_another_schedule_holds_is_not_forgotten(tmp_path: Path) -> None:
    record = watched(tmp_path, TRAIN + WARMUP_AROUND_COSINE)
    assert not list(schedule_never_steps(record))


def test_a_schedule_that_nobody_holds_is_forgotten(tmp_path: Path) -> None:
    record = watched(tmp_path, TRAIN + FORGOTTEN_COSINE)
    assert list(schedule_never_steps(record))


@pytest.mark.slow
def test_a_heavy_model_is_fast_forwarded_within_its_first_epoch_and_evaluated_once(tmp_path: Path) -> None:
    record = heavy(tmp_path, "model.eval()")
    assert record.of("fast")[0]["epoch"] == 0
    assert 2 <= len(record.steps) <= 4
    assert [len(e.passes) for e in record.evaluations] == [3]
    assert record.ran_to_the_end
    assert len(record.of("sched")) == 30
    assert not list(eval_in_train_mode(record))
    assert not list(metric_wrong(record))
    assert any("heavy model" in note for note in record.notes)


@pytest.mark.slow
def test_the_one_evaluation_of_a_heavy_model_shows_its_mode(tmp_path: Path) -> None:
    assert list(eval_in_train_mode(heavy(tmp_path, "pass")))


def test_a_crash_inside_a_package_is_placed_in_the_project(tmp_path: Path) -> None:
    package = tmp_path / "elsewhere"
    package.mkdir()
    (package / "helper_of_others.py").write_text("def fail():\n    raise ValueError('no')\n", encoding="utf-8")
    project = tmp_path / "project"
    project.mkdir()
    lines = ["import sys", f"sys.path.insert(0, {str(package)!r})", "import torch", "import helper_of_others"]
    record = watched(project, "\n".join([*lines, "helper_of_others.fail()", ""]))
    assert record.of("crash")[0]["loc"] == "train.py:5"


def scaled(train: float, evaluation: float | None, varying: int) -> list[Finding]:
    """What is said of a mean of the training pictures, and of the evaluation pictures under the same constants."""
    std = [1.4, 1.4, 1.4]

    def stats(mean: float) -> dict[str, Any]:
        return {
            "n": 256,
            "shape": [3, 32, 32],
            "non_finite": 0,
            "min": -2.43,
            "max": 2.75,
            "mean": [mean] * 3,
            "std": std,
        }

    result = {
        "image_like": True,
        "train": {"name": "loader 0", "loc": "train.py:9", "dataset": "Pictures"},
        "stats": {
            "train": stats(train),
            "evals": [] if evaluation is None else [stats(evaluation)],
            "model_input": {"skipped": "not measured"},
            "first_layer": {"min": -2.43, "max": 2.75},
            "normalize": "unknown",
        },
        "augmentation": {"train": {"n": 50, "varying": varying}},
    }
    run = {"kind": "run", "command": [], "code": 0, "notes": [], "timed_out": False, "i": 0}
    return list(normalisation_off(Record([run, {"kind": "probe", "name": "data", "result": result, "i": 1}])))


def test_pictures_that_augmentation_darkens_have_the_right_constants() -> None:
    assert not scaled(-1.1, 0.0, varying=50)
    assert not scaled(-1.1, None, varying=50)


def test_constants_that_fit_neither_split_are_off() -> None:
    assert scaled(-1.1, -1.2, varying=50)
    assert scaled(-1.1, None, varying=0)
    assert scaled(-2.3, None, varying=50)

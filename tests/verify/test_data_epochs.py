"""Data sets and samplers that are never told the epoch: planted bugs, and what looks like them."""

from __future__ import annotations

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge

SHIFTED = """
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

class Shifted(Dataset):
    def __init__(self, x):
        self.x, self.epoch = x, 0

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __getitem__(self, i):
        return np.roll(self.x[i], self._rng(i).integers(3))

    def _rng(self, i):
        return np.random.default_rng((self.epoch, i))

loader = DataLoader(Shifted(x))
"""
SAMPLER = """
import torch
from torch.utils.data import DataLoader, Sampler

class Shuffled(Sampler):
    def set_epoch(self, epoch: int) -> None:
        self.seed = 100 + epoch

    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed)
        return iter(torch.randperm(self.n, generator=g).tolist())

loader = DataLoader(data, sampler=Shuffled(data))
"""
LOOP = """
for epoch in range(epochs):
    TOLD
    train(loader)
"""
PARALLEL = """
import torch
from torch.utils.data.distributed import DistributedSampler
sampler = DistributedSampler(train_set, shuffle=True) if distributed else None
"""


def found(code: str, rule: str, epochs: int = 4) -> bool:
    run = Run(epochs).more("source", path="train.py", text=code)
    return bool(judge(run.record(), [rule]).of(Status.FAIL, Status.WARN))


@pytest.mark.parametrize("code", [SHIFTED, SAMPLER])
def test_an_epoch_that_is_never_told(code: str) -> None:
    assert found(code + LOOP.replace("TOLD", "pass"), "DAT246")


@pytest.mark.parametrize(
    "code",
    [
        SHIFTED + LOOP.replace("TOLD", "loader.dataset.set_epoch(epoch)"),
        SHIFTED + LOOP.replace("TOLD", "loader.dataset.epoch = epoch"),
        SHIFTED + LOOP.replace("TOLD", "getattr(loader.dataset, 'set_epoch', print)(epoch)"),
        SHIFTED.replace("loader = DataLoader(Shifted(x))", "") + LOOP.replace("TOLD", "pass"),
        SHIFTED.replace("(self.epoch, i)", "(0, i)") + LOOP.replace("TOLD", "pass"),
        SAMPLER.replace("g = torch", "self.seed += 1\n        g = torch") + LOOP.replace("TOLD", "pass"),
        SAMPLER.replace("import torch\n", "import torch\nimport lightning\n") + LOOP.replace("TOLD", "pass"),
    ],
)
def test_an_epoch_that_is_told_or_not_used(code: str) -> None:
    assert not found(code, "DAT246")


def test_one_epoch_needs_no_telling() -> None:
    assert not found(SHIFTED, "DAT246", epochs=1)


@pytest.mark.parametrize(
    ("code", "bad"),
    [
        (PARALLEL, True),
        (PARALLEL + "sampler.set_epoch(epoch)", False),
        (PARALLEL.replace("shuffle=True", "shuffle=False"), False),
        (PARALLEL.replace("train_set", "val_set"), False),
        (PARALLEL + "import accelerate", False),
    ],
)
def test_a_distributed_sampler_in_a_run_of_one_process(code: str, bad: bool) -> None:
    assert found(code, "DST051") is bad

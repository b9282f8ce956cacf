"""Generators that begin again at every call: planted bugs, and what looks like them."""

from __future__ import annotations

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge

MIXUP = """
import numpy as np
import torch

class Mixup:
    def __init__(self, seed):
        self.seed, self.calls = seed, 0
        self.rng = np.random.default_rng(seed)

    def _draw(self):
        {draw}
        return self.rng.beta(0.2, 0.2)

    def __call__(self, x, y):
        {call}
        lam = self._draw()
        return lam * x + (1 - lam) * x.flip(0)
"""
AGAIN = "self.rng = np.random.default_rng({})"
CROP = """
import torch

class Crop(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.g = torch.Generator()

    def forward(self, x):
        {line}
        return x.roll(int(torch.{draw}(0, 5, (1,), generator=self.g)))
"""


def found(code: str) -> bool:
    run = Run().more("source", path="train.py", text=code)
    return bool(judge(run.record(), ["SRC095"]).of(Status.FAIL, Status.WARN))


@pytest.mark.parametrize(
    "code",
    [
        MIXUP.format(draw=AGAIN.format("self.seed"), call="pass"),
        MIXUP.format(draw="pass", call=AGAIN.format(0)),
        CROP.format(line="self.g.manual_seed(0)", draw="randint"),
        CROP.format(line="self.g = torch.Generator().manual_seed(0)", draw="randint"),
    ],
)
def test_a_generator_that_begins_again(code: str) -> None:
    assert found(code)


@pytest.mark.parametrize(
    "code",
    [
        MIXUP.format(draw="pass", call="pass"),
        MIXUP.format(draw="self.calls += 1", call=AGAIN.format("self.calls")),
        MIXUP.format(draw="pass", call=AGAIN.format("self.seed + self.calls")),
        MIXUP.format(draw="pass", call="self.seed += 1\n        " + AGAIN.format("self.seed")),
        MIXUP.format(draw="pass", call="if self.fixed:\n            " + AGAIN.format("self.seed")),
        CROP.format(line="pass", draw="randint"),
        CROP.format(line="self.g.manual_seed(0)", draw="randperm"),
        MIXUP.format(draw="pass", call="pass") + "\n    def reset(self):\n        " + AGAIN.format("self.seed"),
    ],
)
def test_a_generator_that_goes_on(code: str) -> None:
    assert not found(code)

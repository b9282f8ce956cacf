"""Dropped branches and units that the others do not make up for: planted bugs, and what looks like them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tests.verify.planted import Base
from tests.verify.test_dataflow import check
from verify.report import Status
from verify.rules import all_rules


class DropPath(nn.Module):
    """Drops samples, and leaves the others as they are unless `scaled`."""

    scaled = False

    def __init__(self, p: float = 0.3) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not self.p:
            return x
        kept = x.new_empty(len(x), *[1] * (x.ndim - 1)).bernoulli_(1 - self.p)
        return x * kept / (1 - self.p) if self.scaled else x * kept


class ScaledDropPath(DropPath):
    scaled = True


class OwnDropout(nn.Module):
    def __init__(self, p: float = 0.5) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        return x * (torch.rand_like(x) > self.p) if self.training else x


class DropoutScaledInEval(OwnDropout):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.training else x * (1 - self.p)


class TokenDropout(OwnDropout):
    """Hides inputs, as masked words are hidden."""


class Negative(OwnDropout):
    """Called something else."""


class WithDrop(Base):
    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.drop = drop

    def features(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return x + self.drop(self.block(x))


@pytest.mark.parametrize("drop", [DropPath, OwnDropout])
def test_what_is_kept_is_not_scaled_up(drop: type[nn.Module]) -> None:
    (found,) = check(WithDrop, [all_rules()["MOD147"]], lambda: WithDrop(drop()))
    assert found.status is Status.FAIL
    assert found.location.startswith("drop (")


@pytest.mark.parametrize(
    "drop",
    [ScaledDropPath(), DropPath(0.0), DropoutScaledInEval(), TokenDropout(), Negative(), nn.Dropout(), nn.Dropout2d()],
    ids=lambda drop: type(drop).__name__,
)
def test_what_makes_up_for_it_is_silent(drop: nn.Module) -> None:
    (found,) = check(WithDrop, [all_rules()["MOD147"]], lambda: WithDrop(drop))
    assert found.status is Status.PASS

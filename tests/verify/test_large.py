"""Large models get the fewest passes that answer a question; bugs are found, and healthy models pass, all the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.verify import planted, planted_behaviour, planted_dataflow, planted_layers, test_dataflow, test_rules
from tests.verify.test_dataflow import problems
from tests.verify.test_healthy import JUDGED
from verify.probe import ModelProbe
from verify.report import Check
from verify.rules import select_rules
from verify.spec import Spec
from verify.targets import Target

# They need many passes, and say that they were not tried.
NOT_TRIED = {"GRD304", "TRN402"}
SOURCES = (planted, planted_behaviour, planted_dataflow, planted_layers)
PLANTED = [(model, code) for source in SOURCES for model, code in source.PLANTED if code not in NOT_TRIED]
HEALTHY = dict.fromkeys(model for source in SOURCES for model in source.HEALTHY)


def check(model: type[nn.Module]) -> list[Check]:
    if model in planted.HEALTHY or any(model is bad for bad, _ in planted.PLANTED):
        return test_rules.check(model)
    return test_dataflow.check(model, select_rules([], []))


@pytest.fixture
def taken_for_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ModelProbe, "is_large", True)


@pytest.mark.slow
@pytest.mark.usefixtures("taken_for_large")
@pytest.mark.parametrize(("model", "code"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_planted_bug_is_found(model: type[nn.Module], code: str) -> None:
    assert code in problems(check(model))


@pytest.mark.slow
@pytest.mark.usefixtures("taken_for_large")
@pytest.mark.parametrize("model", HEALTHY, ids=lambda model: model.__name__)
def test_healthy_model_is_silent(model: type[nn.Module]) -> None:
    judged = {code: status for code, status in JUDGED.get(model.__name__, {}).items() if code not in NOT_TRIED}
    assert problems(check(model)) == judged


class OnlyWithoutGradient(planted_dataflow.vit(planted_dataflow.SoftmaxOverHeads)):  # type: ignore[misc]
    """In eval mode it cannot be followed together with its tokens, whose pass needs gradients."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert self.training or not torch.is_grad_enabled()
        return super().forward(x)


@pytest.mark.usefixtures("taken_for_large")
def test_tensors_are_followed_where_tokens_cannot_be() -> None:
    assert "MOD116" in problems(check(OnlyWithoutGradient))


class Wide(nn.Module):
    """Two thousand million multiply-adds an image and some."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 512, 3, padding=1)
        self.head = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.features(x).mean((2, 3)))


@pytest.mark.parametrize(
    ("side", "steps", "seconds", "large"),
    [(400, None, 15.0, True), (100, None, 15.0, False), (400, 5, 15.0, False), (400, None, 75.0, False)],
)
def test_size_decides_unless_more_is_asked_for(side: int, steps: int | None, seconds: float, large: bool) -> None:
    spec = Spec(model="wide", input_size=[3, side, side], train_steps=steps)
    assert ModelProbe(Target("wide", Wide), spec, torch.device("cpu"), seconds).is_large is large

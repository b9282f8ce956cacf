"""The rules about layers in a row, codes of places and norms: each finds its bug and lets look-alikes pass."""

from __future__ import annotations

import pytest
from torch import nn

from tests.verify import planted, planted_behaviour, planted_dataflow
from tests.verify.planted_layers import FAILURES, HEALTHY, PLANTED
from tests.verify.test_dataflow import check, problems
from verify.report import Status
from verify.rules import Rule, all_rules, layers

# Old rules that have learned something from the same measurements.
SHARED = ("MOD116", "MOD118")


def rules() -> list[Rule]:
    return [rule for rule in all_rules().values() if rule.function.__module__ == layers.__name__ or rule.code in SHARED]


@pytest.mark.parametrize(("model", "code"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_planted_bug_is_found(model: type[nn.Module], code: str) -> None:
    assert problems(check(model, rules())) == {code: Status.FAIL if code in FAILURES else Status.WARN}


@pytest.mark.parametrize("model", HEALTHY, ids=lambda model: model.__name__)
def test_healthy_model_is_silent(model: type[nn.Module]) -> None:
    assert not problems(check(model, rules()))


@pytest.mark.slow
@pytest.mark.parametrize(
    "model",
    [*planted.HEALTHY, *planted_behaviour.HEALTHY, *planted_dataflow.HEALTHY],
    ids=lambda model: model.__name__,
)
def test_other_healthy_models_are_silent(model: type[nn.Module]) -> None:
    assert not problems(check(model, rules()))


def test_every_rule_has_a_planted_bug() -> None:
    assert {code for _, code in PLANTED} == {rule.code for rule in rules()}


def test_findings_say_where() -> None:
    (collapsing,) = [c for c in check(PLANTED[0][0], rules()) if c.status is Status.WARN]
    assert collapsing.location == "head.0 and head.3"
    assert "128 -> 32 -> 5" in collapsing.measured

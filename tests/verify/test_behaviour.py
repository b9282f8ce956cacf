"""The rules about what is read, thrown away and left behind: each finds its bug and lets healthy look-alikes pass."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.verify import planted, planted_behaviour, planted_dataflow
from tests.verify.planted_behaviour import FAILURES, HEALTHY, PLANTED
from tests.verify.test_dataflow import check, problems
from verify.report import Status
from verify.rules import Rule, all_rules, behaviour
from verify.tokens import Pass

# Old rules that have learned something from the same measurements.
SHARED = ("MOD105", "MOD119", "GRD301")
# A plain table that is alike in every build, and causal attention with a mean: healthy for the rules of attention only.
JUDGED_HERE = {"Sinusoid": "MOD134", "ViTWithCausal": "MOD130", "ViTWithCausalSdpa": "MOD130"}


def rules() -> list[Rule]:
    return [
        rule for rule in all_rules().values() if rule.function.__module__ == behaviour.__name__ or rule.code in SHARED
    ]


@pytest.mark.parametrize(("model", "code"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_planted_bug_is_found(model: type[nn.Module], code: str) -> None:
    found = problems(check(model, rules()))
    assert found == {code: Status.FAIL if code in FAILURES else Status.WARN}


@pytest.mark.parametrize("model", HEALTHY, ids=lambda model: model.__name__)
def test_healthy_model_is_silent(model: type[nn.Module]) -> None:
    assert not problems(check(model, rules()))


@pytest.mark.slow
@pytest.mark.parametrize("model", planted_dataflow.HEALTHY, ids=lambda model: model.__name__)
def test_healthy_attention_is_silent(model: type[nn.Module]) -> None:
    expected = JUDGED_HERE.get(model.__name__)
    assert problems(check(model, rules())) == ({expected: Status.WARN} if expected else {})


def test_every_rule_has_a_planted_bug() -> None:
    assert {code for _, code in PLANTED} == {rule.code for rule in rules()}


def test_token_of_zeros_is_said_not_to_be_judged() -> None:
    (check_of_gradients,) = check(planted_behaviour.OptionalMetadata, [all_rules()["GRD301"]])
    assert check_of_gradients.status is Status.SKIP
    assert "metadata.weight" in check_of_gradients.message


def test_a_pass_leaves_no_trace_on_the_model() -> None:
    model = planted.Base().eval()
    Pass(model, torch.randn(2, 3, 16, 16), lambda output: output)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_findings_say_where() -> None:
    (found,) = [c for c in check(planted_behaviour.ReadsAPatch, rules()) if c.status is Status.WARN]
    assert "token 16 of 17" in found.measured
    assert found.location.startswith("norm")

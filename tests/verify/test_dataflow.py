"""The rules about attention, skips, tables and stems: each finds its bug and lets the healthy look-alikes pass."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable

import pytest
import torch
from torch import nn

from tests.verify import planted_dataflow
from tests.verify.planted_dataflow import (
    CLASSES,
    HEALTHY,
    ODD_BUT_LEGAL,
    PLANTED,
    WARNED,
    WARNINGS,
    DropoutMadeInForward,
    LibraryAttentionOverBatch,
)
from verify.dataflow import follow_forward
from verify.probe import ModelProbe
from verify.report import Check, Status
from verify.rules import Rule, all_rules, dataflow, select_rules
from verify.spec import Spec
from verify.targets import Target
from verify.worker import CountingOutput, apply


def own_rules() -> list[Rule]:
    return [rule for rule in all_rules().values() if rule.function.__module__ == dataflow.__name__]


def check(
    model: type[nn.Module], rules: list[Rule] | None = None, build: Callable[[], nn.Module] | None = None
) -> list[Check]:
    """The checks of these rules on a model class, in this process."""
    torch.manual_seed(0)
    side = getattr(model, "side", 16)
    settings = Spec(model=model.__name__, num_classes=CLASSES, input_size=[3, side, side])
    output = CountingOutput()
    probe = ModelProbe(Target(model.__name__, build or model), settings, torch.device("cpu"), 10.0, output.summary)
    with contextlib.redirect_stdout(output):
        return [made for rule in rules or own_rules() for made in apply(rule, probe, {})]


def problems(checks: list[Check]) -> dict[str, Status]:
    return {c.code: c.status for c in checks if c.status not in (Status.PASS, Status.SKIP, Status.NOTE)}


@pytest.mark.parametrize(("model", "code"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_planted_bug_is_found(model: type[nn.Module], code: str) -> None:
    found = problems(check(model))
    expected = Status.WARN if code in WARNINGS or model.__name__ in WARNED else Status.FAIL
    assert found.get(code) is expected
    assert set(found) == {code}


@pytest.mark.parametrize("model", HEALTHY, ids=lambda model: model.__name__)
def test_healthy_model_is_silent(model: type[nn.Module]) -> None:
    assert not problems(check(model))


@pytest.mark.parametrize("model", ODD_BUT_LEGAL, ids=lambda model: model.__name__)
def test_odd_scale_is_a_warning(model: type[nn.Module]) -> None:
    assert problems(check(model)) == {"MOD117": Status.WARN}


@pytest.mark.parametrize(("module", "code"), [(LibraryAttentionOverBatch, "MOD104"), (DropoutMadeInForward, "MOD105")])
def test_other_rules_find_their_bug_in_attention(module: type[nn.Module], code: str) -> None:
    found = problems(check(planted_dataflow.vit(module), select_rules(["MOD104", "MOD105"], [])))
    assert found[code] is Status.FAIL


def test_every_rule_has_a_planted_bug() -> None:
    assert {code for _, code in PLANTED} == {rule.code for rule in own_rules()}


def test_random_tensor_of_a_model_that_cannot_be_built_anew_is_a_warning() -> None:
    """Two copies of one trained model are alike, so only the look of its numbers tells what was drawn."""

    def copies(model: type[nn.Module]) -> dict[str, Status]:
        torch.manual_seed(0)
        one = model()
        return problems(check(model, build=lambda: copy.deepcopy(one)))

    assert copies(planted_dataflow.PlainPosition) == {"MOD121": Status.WARN}
    assert copies(planted_dataflow.Sinusoid) == {}
    assert copies(planted_dataflow.RandomBufferPosition) == {}


def test_slow_model_is_skipped_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verify.probe.SLOWEST_FOLLOWED", 0.0)
    checks = check(planted_dataflow.PlainPosition)
    assert {c.status for c in checks} <= {Status.SKIP, Status.PASS}
    assert all(c.message for c in checks if c.status is Status.SKIP)


def test_following_leaves_no_trace_on_the_model() -> None:
    model = planted_dataflow.ViT()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    follow_forward(model, torch.randn(2, 3, 16, 16))
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert torch.backends.mha.get_fastpath_enabled() is fast_path


def test_findings_say_where() -> None:
    (wrong,) = [c for c in check(planted_dataflow.vit(planted_dataflow.NotScaled)) if c.status is Status.FAIL]
    assert "blocks.0.attention" in wrong.location
    assert "planted_dataflow.py" in wrong.location
    assert wrong.measured.startswith("scale 1 in 2 of 2 attentions")

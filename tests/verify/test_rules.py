"""Every rule finds the bug that is planted for it, and lets the healthy look-alikes pass."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.verify import planted, planted_behaviour, planted_dataflow, planted_layers
from tests.verify.planted import (
    CLASSES,
    FROZEN_ON_PURPOSE,
    HEALTHY,
    PLANTED,
    WARNINGS,
    AuxiliaryOffByOption,
)
from verify.probe import ModelProbe
from verify.report import Check, Status
from verify.rules import Subject, all_rules, select_rules
from verify.spec import Spec
from verify.targets import Target
from verify.worker import CountingOutput, apply

# They need an expectation: see test_parameter_count, test_parity.py and test_expectations.py; and see test_drops.py.
NOT_PLANTED_HERE = {"MOD103", "MOD147"} | {rule.code for rule in all_rules().values() if rule.asked}
MODELS = Path(planted.__file__)


def check(model: type[nn.Module], **spec: object) -> list[Check]:
    """Every check of the catalogue on a model class, in this process."""
    torch.manual_seed(0)
    output = CountingOutput()
    settings = Spec(**({"num_classes": CLASSES, "input_size": [3, 16, 16]} | spec), model=model.__name__)
    probe = ModelProbe(Target(model.__name__, model), settings, torch.device("cpu"), 10.0, output.summary)
    reported: dict[str, str] = {}
    with contextlib.redirect_stdout(output):
        return [made for rule in select_rules([], []) for made in apply(rule, probe, reported)]


def codes(checks: list[Check], *statuses: Status) -> set[str]:
    return {made.code for made in checks if made.status in statuses}


@pytest.mark.parametrize(("model", "code"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_planted_bug_is_found(model: type[nn.Module], code: str) -> None:
    checks = check(model)
    expected = Status.WARN if model.__name__ in WARNINGS else Status.FAIL
    assert code in codes(checks, expected), [c for c in checks if c.status not in (Status.PASS, Status.SKIP)]
    assert not codes(checks, Status.ERROR)


@pytest.mark.parametrize(
    ("model", "code"), [(planted_behaviour.PlainMean, "MOD134"), (planted.ParameterInList, "MOD107")]
)
def test_what_fails_on_another_device_is_explained_on_the_cpu(model: type[nn.Module], code: str) -> None:
    """The meta device takes the place of a GPU: it does not mix with the CPU either."""
    settings = Spec(model=model.__name__, num_classes=CLASSES, input_size=[3, 16, 16])
    probe = ModelProbe(Target(model.__name__, model), settings, torch.device("meta"))
    probe.settle_device()
    checks = [made for rule in select_rules([], []) for made in apply(rule, probe, {})]
    assert probe.device.type == "cpu"
    assert {"MOD102", code} <= codes(checks, Status.FAIL, Status.WARN)


def test_a_head_of_zeros_with_too_few_logits_sees_its_input() -> None:
    """It cannot be trained with labels that it has no logits for; only the number of classes is wrong."""
    assert codes(check(planted.ZeroHead, num_classes=100), Status.FAIL, Status.ERROR) == {"MOD102"}


def test_parts_of_a_count_hold_what_the_model_itself_holds() -> None:
    class WithTable(planted.Base):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Parameter(torch.zeros(7))

    (count,) = [made for made in check(WithTable, expect_params="5") if made.code == "MOD103"]
    parts = [int(part.rpartition(" ")[2].replace(",", "")) for part in count.hint.removeprefix("by part: ").split(", ")]
    assert "table 7, " in count.hint
    assert f"{sum(parts):,}" == count.measured


class Exploded(planted.Base):
    """As a run leaves a model that has diverged."""

    def __init__(self) -> None:
        super().__init__()
        self.head.weight.data.fill_(math.nan)
        self.block[0].weight.data.fill_(math.inf)


def test_numbers_that_are_not_finite_are_no_change_of_state() -> None:
    assert "MOD111" not in codes(check(Exploded), Status.FAIL)


class Encoder(nn.Module):
    """Tokens of the batch, or of the batch in the wrong place."""

    order = (0, 1, 2)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x).flatten(2).transpose(1, 2).permute(self.order)


class TokensFirst(Encoder):
    order = (1, 0, 2)


@pytest.mark.parametrize(("model", "passes"), [(Encoder, True), (TokensFirst, False)])
def test_of_an_encoder_only_the_batch_is_judged(model: type[nn.Module], passes: bool) -> None:
    target = Target(model.__name__, model, num_classes=0)
    probe = ModelProbe(target, Spec(model=model.__name__, input_size=[3, 16, 16]), torch.device("cpu"))
    (made,) = apply(all_rules()["MOD102"], probe, {})
    assert (made.status is Status.PASS) is passes


def test_a_model_that_runs_on_the_device_stays_there() -> None:
    settings = Spec(model="healthy", num_classes=CLASSES, input_size=[3, 16, 16])
    probe = ModelProbe(Target("healthy", planted.Base), settings, torch.device("meta"))
    probe.settle_device()
    assert probe.device.type == "meta"
    assert probe.device_error is None


@pytest.mark.parametrize("model", HEALTHY, ids=lambda model: model.__name__)
def test_healthy_model_is_silent(model: type[nn.Module]) -> None:
    problems = [c for c in check(model) if c.status not in (Status.PASS, Status.SKIP, Status.NOTE)]
    assert not problems


@pytest.mark.parametrize(
    ("model", "pattern"), FROZEN_ON_PURPOSE.items(), ids=lambda value: getattr(value, "__name__", value)
)
def test_frozen_on_purpose_is_at_most_a_warning(model: type[nn.Module], pattern: str) -> None:
    checks = check(model)
    assert codes(checks, Status.FAIL, Status.ERROR) == set()
    assert codes(checks, Status.WARN) == {"GRD303"}
    assert codes(check(model, frozen=[pattern]), Status.WARN, Status.FAIL) == set()


def test_every_rule_has_a_planted_bug() -> None:
    about_models = {code for code, rule in all_rules().items() if rule.subject is Subject.MODEL}
    elsewhere = {code for _, code in (*planted_dataflow.PLANTED, *planted_behaviour.PLANTED, *planted_layers.PLANTED)}
    assert {code for _, code in PLANTED} | NOT_PLANTED_HERE | elsewhere == about_models


@pytest.mark.parametrize(
    ("expected", "status"),
    [
        ("1485", Status.PASS),
        ("1,485", Status.PASS),
        ("1.5k", Status.PASS),
        ("1486", Status.FAIL),
        ("1.6k", Status.FAIL),
    ],
)
def test_parameter_count(expected: str, status: Status) -> None:
    (count,) = [c for c in check(planted.Base, expect_params=expected) if c.code == "MOD103"]
    assert count.status is status
    assert "1,485" in count.measured


def test_one_mistake_is_reported_once() -> None:
    """A forward that raises stands in the way of every rule, and is not a failure of each of them."""

    class Broken(planted.Base):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise KeyError("missing")

    checks = check(Broken)
    assert codes(checks, Status.FAIL) == {"MOD102"}
    (failed,) = [c for c in checks if c.status is Status.FAIL]
    assert "KeyError" in failed.measured
    assert "test_rules.py" in failed.location
    assert len(codes(checks, Status.SKIP)) > 10


def test_layer_that_an_option_switches_off_is_said() -> None:
    found = [c for c in check(AuxiliaryOffByOption) if c.code == "GRD301"]
    assert [c.status for c in found] == [Status.NOTE, Status.PASS]
    assert "self.deep_supervision" in found[0].message
    tensors = len(list(AuxiliaryOffByOption().parameters()))
    assert found[1].measured == f"{tensors - 2} of {tensors} tensors have a gradient"

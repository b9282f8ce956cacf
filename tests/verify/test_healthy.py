"""Every healthy look-alike, of whichever rule, through all rules: none of them is for the others' rules only."""

from __future__ import annotations

import pytest
from torch import nn

from tests.verify import planted_behaviour, planted_dataflow, planted_layers
from tests.verify.test_dataflow import check, problems
from verify.report import Status
from verify.rules import select_rules

# What another rule says of them, and rightly.
JUDGED = {
    "Sinusoid": {"MOD134": Status.WARN},
    "ViTWithCausal": {"MOD130": Status.WARN},
    "ViTWithCausalSdpa": {"MOD130": Status.WARN},
    "ReadsTheMaximum": {"TRN401": Status.WARN},
    "WarmsUpWithoutGradient": {"GRD304": Status.FAIL},
    "NoCode": {"GRD301": Status.FAIL},
}
MODELS = dict.fromkeys([*planted_behaviour.HEALTHY, *planted_dataflow.HEALTHY, *planted_layers.HEALTHY])


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.__name__)
def test_healthy_look_alike_is_silent(model: type[nn.Module]) -> None:
    assert problems(check(model, select_rules([], []))) == JUDGED.get(model.__name__, {})

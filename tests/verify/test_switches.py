"""Which layers only an option of the model switches on."""

from __future__ import annotations

import ast
import textwrap

import pytest

from verify.rules.switches import optional_layers, switched_off


def found(forward: str) -> dict[str, str]:
    constructor = "class Net:\n    def __init__(self):\n        self.aux = 1\n    def forward(self, x):\n"
    return optional_layers([ast.parse(constructor + textwrap.indent(forward, " " * 8))])


@pytest.mark.parametrize(
    ("forward", "test"),
    [
        ("if self.use_aux:\n    x = self.aux(x)\nreturn x", "self.use_aux"),
        (
            "return self.aux(x) if self.config.aux and not self.exporting else x",
            "self.config.aux and (not self.exporting)",
        ),
        ("if self.mode == 'deep':\n    for i in range(3):\n        x = self.aux(x)\nreturn x", "self.mode == 'deep'"),
        ("if self.plain:\n    return x\nelse:\n    x = self.aux(x)\nreturn x", "self.plain"),
    ],
)
def test_behind_an_option(forward: str, test: str) -> None:
    assert found(forward)["aux"] == test


@pytest.mark.parametrize(
    "forward",
    [
        "return self.aux(x)",
        "if self.training:\n    x = self.aux(x)\nreturn x",
        "if x.mean() > 0:\n    x = self.aux(x)\nreturn x",
        "if self.use_aux:\n    x = self.aux(x)\nreturn self.aux(x)",
        "if self.frozen:\n    with no_grad():\n        x = self.aux(x)\nelse:\n    x = self.aux(x)\nreturn x",
    ],
)
def test_not_behind_an_option(forward: str) -> None:
    assert "aux" not in found(forward)


def test_parameters_of_a_layer_that_is_off() -> None:
    optional = {"aux": "self.use_aux"}
    assert switched_off(["net.aux.0.weight", "head.aux"], optional) == {"net.aux.0.weight": "self.use_aux"}

"""A whole run of the rules does without torch's compiler, and a compiled model is checked like another one."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from verify.operations import Operations

ALL_RULES = """
import sys
import torch
from verify.probe import ModelProbe
from verify.rules import planned_rules
from verify.spec import Spec
from verify.targets import resolve
from verify.worker import apply
from pathlib import Path

spec = Spec(model="cnn", input_size=[3, 32, 32])
probe = ModelProbe(resolve("cnn", {}, None, Path.cwd()), spec, torch.device("cpu"))
checks = [check for rule in planned_rules(spec) for check in apply(rule, probe, {})]
assert len(checks) > 40 and all(check.status in ("pass", "skip") for check in checks)
assert "torch._dynamo" not in sys.modules
"""


def test_the_compiler_is_not_imported() -> None:
    result = subprocess.run([sys.executable, "-c", ALL_RULES], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


def test_operations_of_a_compiled_model_are_seen() -> None:
    plain = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
    compiled = torch.compile(plain, backend="aot_eager")
    for model in (plain, compiled, plain):
        operations = Operations()
        with torch.no_grad(), operations:
            model(torch.ones(2, 3))
        assert {"aten.addmm.default", "aten.relu.default"} <= operations.names

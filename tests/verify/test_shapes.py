"""Shapes on the meta device: right, cheap, and without a trace left in torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import nn

from tests.verify.planted import HEALTHY, NumpyInside
from verify.outputs import main_logits
from verify.shapes import meta_forward

IN_A_NEW_PROCESS = """
import sys
import torch
from torch import nn
from verify.shapes import meta_forward, plain_sizes

def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.GELU(), nn.Flatten(2),
        nn.LayerNorm(49), nn.TransformerEncoderLayer(49, 7, 16, batch_first=True), nn.Linear(49, 5),
    ).eval()

with torch.device("meta"), plain_sizes():
    model = network()
assert meta_forward(model, (2, 3, 16, 16)).shape == (2, 8, 5)
heavy = [name for name in ("sympy", "torch._dynamo", "torch.fx.experimental.symbolic_shapes") if name in sys.modules]
assert not heavy, heavy
assert "_dynamo" not in vars(torch)

# What was held off still works: optimizers, symbolic shapes, the compiler.
model = network().train()
optimizer = torch.optim.Adam(model.parameters())
model(torch.randn(2, 3, 16, 16)).sum().backward()
optimizer.step()
import torch._dynamo
import torch.fx.experimental.symbolic_shapes
assert torch._dynamo.__file__ and hasattr(torch._dynamo, "reset")
assert torch.compile(nn.Linear(3, 2), backend="eager")(torch.ones(1, 3)).shape == (1, 2)
"""


def test_nothing_heavy_is_imported_and_torch_is_left_as_it_was() -> None:
    result = subprocess.run([sys.executable, "-c", IN_A_NEW_PROCESS], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("model_class", [m for m in HEALTHY if m is not NumpyInside], ids=lambda m: m.__name__)
def test_shapes_are_those_of_real_tensors(model_class: type[nn.Module]) -> None:
    real = model_class().eval()
    real(torch.randn(2, 3, 16, 16))  # lazy layers
    expected = [tuple(main_logits(real(torch.randn(batch, 3, 16, 16))).shape) for batch in (1, 3)]
    model = real.to("meta")
    for name, value in vars(model).items():
        if isinstance(value, torch.Tensor):
            setattr(model, name, value.to("meta"))
    assert [tuple(main_logits(meta_forward(model, (batch, 3, 16, 16))).shape) for batch in (1, 3)] == expected

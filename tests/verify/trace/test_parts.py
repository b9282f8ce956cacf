"""Which parts of a fused weight are trained, as the recorder sees it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.verify.trace.runs import watched
from verify.watch import judge

SCRIPT = """
import torch
from torch import nn

torch.manual_seed(0)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.table = nn.Linear(8, 24), nn.Embedding(64, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        q, k, v = self.qkv(self.table(x)).chunk(3, dim=-1)
        weights = (q @ k.transpose(1, 2) / 8**0.5).softmax(dim=-1)
        return self.head((weights @ VALUES).mean(dim=1))


x = torch.randint(0, 30, (48, 5))
y = (x[:, 0] > 15).long()
model = Attention()
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16, shuffle=True)
for epoch in range(3):
    for a, b in loader:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(a), b).backward()
        optimizer.step()
"""


@pytest.mark.parametrize(("values", "caught"), [("k", True), ("v", False)])
def test_values_that_are_never_used(tmp_path: Path, values: str, caught: bool) -> None:
    checks = judge(watched(tmp_path, SCRIPT.replace("VALUES", values)), ["GRD306"]).checks
    assert [check.status.value for check in checks] == (["fail"] if caught else ["pass"])

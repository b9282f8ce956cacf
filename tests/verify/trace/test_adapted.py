"""The live model where it is no classifier of one tensor: segmentation, language models, models that draw a sample."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.verify.trace.runs import PLAIN, watched
from verify.report import Status
from verify.watch import judge

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
"""
TAIL = """
optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=8, shuffle=True)
for epoch in range(3):
    for a, b in loader:
        loss = loss_of(a, b)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
"""
SEGMENTATION = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.deep = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, stride=2)
        self.up, self.out = nn.ConvTranspose2d(8, 8, 2, 2), nn.Conv2d(16, 2, 1)

    def forward(self, x):
        skip = self.stem(x).tanh()
        deep = self.up(self.deep(skip).tanh())
        return self.out(torch.cat([SKIP, deep], dim=1))


x = torch.randn(32, 3, 8, 8)
y = (x.mean(dim=1) > 0).long()
model = Net()
loss_of = lambda a, b: F.cross_entropy(model(a), b)
"""
LANGUAGE = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(12, 16), nn.Linear(16, 12)

    def forward(self, tokens, targets=None):
        hidden = F.dropout(self.table(tokens), 0.3, TRAINING).tanh()
        logits = self.head(hidden)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())


x = torch.randint(0, 12, (32, 6))
y = x.roll(1, dims=1)
model = Net()
loss_of = lambda a, b: model(a, b)[1]
"""
AUTOENCODER = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.code, self.spread, self.out = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(3, 6)

    def forward(self, x):
        mean, spread = self.code(x), self.spread(x)
        drawn = mean + DRAWN * spread.exp()
        return self.out(drawn), mean, spread


x = y = torch.randn(32, 6)
model = Net()
loss_of = lambda a, b: F.mse_loss(model(a)[0], b)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "code", "status"),
    [
        (SEGMENTATION.replace("SKIP", "skip.detach()"), "GRD304", Status.FAIL),
        (SEGMENTATION.replace("SKIP", "skip"), "GRD304", Status.PASS),
        (LANGUAGE.replace("TRAINING", "True"), "MOD105", Status.FAIL),
        (LANGUAGE.replace("TRAINING", "self.training"), "MOD105", Status.PASS),
        (AUTOENCODER.replace("DRAWN", "torch.randn_like(spread)"), "MOD105", Status.NOTE),
        (AUTOENCODER.replace("DRAWN", "F.dropout(torch.ones_like(spread))"), "MOD105", Status.FAIL),
    ],
)
def test_models_that_are_no_classifiers(tmp_path: Path, script: str, code: str, status: Status) -> None:
    record = watched(tmp_path, HEAD + script + TAIL, cut=replace(PLAIN, probe_seconds=60.0))
    (check,) = [check for check in judge(record, [code]).checks if check.code == code]
    assert check.status is status, check
    if status is Status.FAIL and code == "MOD105":
        assert check.location.startswith("train.py:")

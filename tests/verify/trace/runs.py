"""What the tests of watching share: a quick cut, and a small script that trains."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from tests.zoo.forked import forked
from verify.trace.launch import DEFAULT, Cut, watch
from verify.trace.record import Record

# Neither probes nor a second start: what is tested is the first run.
PLAIN: Cut = replace(DEFAULT, probe_seconds=0.0, resume=False, timeout=90.0)

TRAIN = """
import torch
from torch import nn

torch.manual_seed(0)
x = torch.randn(64, 4)
y = (x[:, 0] > 0).long()
model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16, shuffle=True)


def train(epochs=2):
    for epoch in range(epochs):
        for a, b in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(a), b)
            loss.backward()
            optimizer.step()

"""


def write(folder: Path, text: str, name: str = "train.py") -> Path:
    """A file of a project."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def watched(folder: Path, text: str, *arguments: str, cut: Cut = PLAIN, own_process: bool = False) -> Record:
    """The record of a script, which is written into a folder and watched there.

    Args:
        own_process: start it as `kit watch` does, and not as a fork of this process, which has imported torch.
    """
    write(folder, text)
    with nullcontext() if own_process else forked():
        return watch(["python", "train.py", *arguments], folder=folder, cut=cut)

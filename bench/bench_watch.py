"""What recording costs: the median training step with the recorder against the same step without it, in turns.

python bench/bench_watch.py [--quick]

A watched run lets idle OpenMP threads sleep (`OMP_WAIT_POLICY=PASSIVE`): threads that spin make a step several times
slower as soon as another process wants a core. What that setting costs by itself on a quiet machine is the second line.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median

from verify.trace.launch import DEFAULT, watch

SCRIPT = """
import sys, time, torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
torch.manual_seed(0)
class ViT(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 192, 4, 4)
        self.positions = nn.Parameter(0.02 * torch.randn(1, 64, 192))
        layer = nn.TransformerEncoderLayer(192, 3, 768, batch_first=True, norm_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 4, enable_nested_tensor=False), nn.Linear(192, 10)
    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.encoder(x).mean(dim=1))
def block(i, o):
    return [nn.Conv2d(i, o, 3, padding=1), nn.BatchNorm2d(o), nn.ReLU(), nn.MaxPool2d(2)]
cnn = nn.Sequential(*block(3, 32), *block(32, 64), *block(64, 128), nn.Flatten(), nn.Linear(2048, 10))
model, batch = (cnn, 128) if sys.argv[1] == "cnn" else (ViT(), 32)
steps = int(sys.argv[2])
data = TensorDataset(torch.randn(batch * steps, 3, 32, 32), torch.randint(0, 10, (batch * steps,)))
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
seconds, last = [], time.perf_counter()
for x, y in DataLoader(data, batch, shuffle=True):
    loss = F.cross_entropy(model(x), y)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    now = time.perf_counter()
    seconds.append(now - last)
    last = now
print("median", sorted(seconds[3:])[len(seconds[3:]) // 2])
"""


def plain(folder: Path, model: str, steps: int, **environment: str) -> float:
    """Seconds of a step without the recorder, with further variables in the environment."""
    run = subprocess.run(
        [sys.executable, "train.py", model, str(steps)],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    return _median_of(run.stdout)


def recorded(folder: Path, model: str, steps: int) -> float:
    """Seconds of a step with it."""
    cut = replace(
        DEFAULT, train_batches=steps, probe_seconds=0, resume=False, compute_seconds=1e9, soft_seconds=1e9, timeout=600
    )
    record = watch([sys.executable, "train.py", model, str(steps)], folder=folder, cut=cut)
    return _median_of(record.run["log"])


def _median_of(text: str) -> float:
    found = re.search(r"median ([\d.e-]+)", text)
    assert found, text
    return float(found[1])


def main() -> None:
    steps, turns = (15, 3) if "--quick" in sys.argv else (40, 7)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "train.py").write_text(SCRIPT)
        for model in ("cnn", "vit"):
            ratios, waiting = [], []
            for turn in range(turns):
                measure = [partial(plain, OMP_WAIT_POLICY="PASSIVE"), recorded, plain]
                order = measure if turn % 2 else measure[::-1]
                seconds = {one: one(folder, model, steps) for one in order}
                passive, with_recorder, spinning = (seconds[one] for one in measure)
                ratios.append(with_recorder / passive)
                waiting.append(passive / spinning)
            print(f"{model}: a recorded step takes {_spread(ratios)} times a plain one under the same settings")
            print(
                f"{model}: idle threads that sleep, as in a watched run, instead of spinning: {_spread(waiting)} times"
            )


def _spread(ratios: list[float]) -> str:
    return f"{median(ratios):.3f} (median of {len(ratios)} turns, {min(ratios):.3f} to {max(ratios):.3f})"


if __name__ == "__main__":
    main()

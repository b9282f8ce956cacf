"""A training step of the templates' models against others of the same size: forward, loss, backward, SGD, in turns.

python bench/bench_train_step.py [--quick]

The ViT against timm's, with the same numbers of everything. ResNet-20 against one that is put together from
torchvision's BasicBlock, as a user of torchvision would write it. Both sides in the same memory format.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "templates/pytorch_project/template"))

from models.model import build_model

TARGET = 1.05
WIDTHS = (16, 32, 64)


class TorchvisionResNet20(nn.Module):
    """ResNet-20 of torchvision's blocks; shortcuts by 1x1 convolution (option B)."""

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        self.stages = nn.Sequential(*(self.stage(i) for i in range(3)))
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(64, num_classes)

    def stage(self, index: int) -> nn.Sequential:
        """Three blocks; the first changes the width and halves the map."""
        width, before, stride = WIDTHS[index], WIDTHS[max(index - 1, 0)], 1 if index == 0 else 2
        shortcut = None
        if stride != 1:
            conv = nn.Conv2d(before, width, 1, stride=stride, bias=False)
            shortcut = nn.Sequential(conv, nn.BatchNorm2d(width))
        first = BasicBlock(before, width, stride, shortcut)
        return nn.Sequential(first, BasicBlock(width, width), BasicBlock(width, width))

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.pool(self.stages(self.stem(x))).flatten(1))


def step_of(model: nn.Module, images: Tensor, classes: int) -> Callable[[], float]:
    """A function that makes one training step and returns its seconds."""
    model = model.train().to(memory_format=torch.channels_last)
    images = images.to(memory_format=torch.channels_last)
    labels = torch.arange(len(images)) % classes
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)

    def step() -> float:
        started = time.perf_counter()
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return time.perf_counter() - started

    return step


def compare(name: str, ours: Callable[[], float], peer: Callable[[], float], turns: int) -> bool:
    """Step in turns and print the median of the ratios; whether it is at most the target."""
    for step in (ours, peer, ours, peer):
        step()
    pairs = [(ours(), peer()) for _ in range(turns)]
    ratio = statistics.median(a / b for a, b in pairs)
    mine, theirs = (1e3 * statistics.median(column) for column in zip(*pairs, strict=True))
    verdict = "holds" if ratio <= TARGET else "MISSED"
    print(f"{name}: {mine:.0f} against {theirs:.0f} ms, ratio {ratio:.3f} (target {TARGET}: {verdict})", flush=True)
    return ratio <= TARGET


def main() -> None:
    turns = 7 if "--quick" in sys.argv else 31
    held = True
    for variant, name, batch in (("Ti", "vit_tiny_patch16_224", 8), ("S", "vit_small_patch16_224", 4)):
        images = torch.randn(batch, 3, 224, 224)
        own = build_model("vit", 1000, variant=variant, image_size=224, patch_size=16)
        held &= compare(
            f"ViT-{variant}/16 against timm's",
            step_of(own, images, 1000),
            step_of(timm.create_model(name, num_classes=1000), images, 1000),
            turns,
        )
    images = torch.randn(128, 3, 32, 32)
    own = build_model("resnet", 10, blocks_per_stage=3, shortcut="B")
    held &= compare(
        "ResNet-20 against torchvision's blocks",
        step_of(own, images, 10),
        step_of(TorchvisionResNet20(), images, 10),
        turns,
    )
    sys.exit(not held)


if __name__ == "__main__":
    main()

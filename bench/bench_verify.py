"""`kit verify` on the CPU: the whole default run of the CNN and of ViT-B/16 against a bare script that imports torch,
builds the model and runs one forward and backward pass; shapes and counts alone against `import torch`, in CPU time and
in peak memory.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import compare, compare_memory, kit, repeats_from_arguments

PROJECT = Path(__file__).resolve().parent.parent / "templates" / "pytorch_project" / "template"
BARE_SCRIPT = f"""
import sys
sys.path.insert(0, {str(PROJECT)!r})
import torch
from models.model import build_model
model = build_model(%r, %d, **%r)
logits = model(torch.randn(%d, 3, %d, %d))
torch.nn.functional.cross_entropy(logits, torch.arange(%d)).backward()
"""
VIT_B = {"variant": "B", "image_size": 224, "patch_size": 16}
SHAPES = ("--device", "cpu", "--select", "MOD101,MOD102,MOD103")


def bare(name: str, classes: int, options: dict[str, object], batch: int, side: int) -> list[str]:
    """The command of a script that makes one forward and one backward pass."""
    return [sys.executable, "-c", BARE_SCRIPT % (name, classes, options, batch, side, side, batch)]


if __name__ == "__main__":
    repeats = repeats_from_arguments(9)
    importing = [sys.executable, "-c", "import torch"]
    shapes = kit("verify", "--model", "cnn", *SHAPES)
    vit = kit("verify", "--model", "vit", "--expect-params", "86M", *SHAPES)
    held = [
        compare(
            "kit verify --model cnn",
            kit("verify", "--model", "cnn", "--device", "cpu"),
            bare("cnn", 10, {}, 8, 32),
            repeats=repeats,
            target=1.5,
        ),
        compare("  shape and count only", shapes, importing, repeats=repeats, target=1.3),
        compare("  the same of ViT-B/16", vit, importing, repeats=repeats, target=1.3),
        compare_memory("  its peak memory", vit, importing, target=1.2),
        compare(
            "kit verify --model vit (ViT-B/16)",
            kit("verify", "--model", "vit", "--device", "cpu"),
            bare("vit", 1000, VIT_B, 2, 224),
            repeats=min(repeats, 5),
            target=2.0,
        ),
    ]
    sys.exit(not all(held))

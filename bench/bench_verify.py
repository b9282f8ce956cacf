"""`kit verify --model cnn` on the CPU against a bare script that imports torch, builds the model, and runs one
forward and backward pass: at most 1.5 times the CPU time.
"""

from __future__ import annotations

import sys
from pathlib import Path

from common import compare, kit, repeats_from_arguments

MODELS = Path(__file__).resolve().parent.parent / "templates" / "pytorch_project" / "template" / "models"
BARE_SCRIPT = f"""
import sys
sys.path.insert(0, {str(MODELS)!r})
import torch
from cnn import SimpleCNN
model = SimpleCNN()
logits = model(torch.randn(8, 3, 32, 32))
torch.nn.functional.cross_entropy(logits, torch.arange(8)).backward()
"""

if __name__ == "__main__":
    repeats = repeats_from_arguments(9)
    bare = [sys.executable, "-c", BARE_SCRIPT]
    whole = kit("verify", "--model", "cnn", "--device", "cpu")
    shapes = kit("verify", "--model", "cnn", "--device", "cpu", "--select", "MOD101,MOD102,MOD103")
    held = compare("kit verify --model cnn", whole, bare, repeats=repeats, target=1.5)
    held &= compare(
        "  shape and count only", shapes, [sys.executable, "-c", "import torch"], repeats=repeats, target=1.3
    )
    vit = kit(
        "verify", "--model", "vit", "--device", "cpu", "--expect-params", "86M", "--select", "MOD101,MOD102,MOD103"
    )
    held &= compare("  the same of ViT-B/16", vit, [sys.executable, "-c", "import torch"], repeats=repeats, target=1.3)
    sys.exit(not held)

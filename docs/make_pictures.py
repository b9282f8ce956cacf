"""Draw docs/images/verify.svg: what `kit verify` really prints about a network with three planted bugs."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from rich.console import Console

from verify.render import render_text
from verify.runner import verify_model
from verify.spec import Spec

IMAGES = Path(__file__).with_name("images")
NETWORK = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU())
        self.blocks = [nn.Conv2d(32, 32, 3, padding=1) for _ in range(2)]
        self.head = nn.Linear(32, num_classes)

    def forward(self, x):
        x = self.stem(x - x.mean(dim=0))
        for block in self.blocks:
            x = x + torch.relu(block(x))
        return self.head(x.mean(dim=(2, 3))).softmax(dim=1)
"""


def main() -> None:
    """Verify the network and export the terminal's picture."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "net.py").write_text(NETWORK)
        spec = Spec(model="net.py:Net", input_size=[3, 32, 32], num_classes=10)
        report = verify_model(spec, folder=Path(folder), device="cpu")
    with Path("/dev/null").open("w") as nowhere:
        console = Console(record=True, width=118, highlight=False, file=nowhere, force_terminal=True)
        render_text(report, "kit verify --model net.py:Net", console.print, console.width)
    picture = console.export_svg(title="kit verify")
    # The picture must not fetch a font from anywhere; the viewer's own monospaced one will do.
    picture = re.sub(r"@font-face\s*{.*?}", "", picture, flags=re.DOTALL)
    IMAGES.mkdir(exist_ok=True)
    (IMAGES / "verify.svg").write_text(picture)


if __name__ == "__main__":
    main()

"""`--summary`: counts agree with torch's own counter, nothing real is computed, and the table says what it counts."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tests.verify.parity_models import ViT, timm_style
from verify.probe import ModelProbe
from verify.spec import Spec
from verify.summary import BATCH, costs_of, human, summary_table
from verify.targets import Target, resolve


class Grouped(nn.Module):
    """What is easy to count wrongly: groups, strides, transposed convolutions, a product with several axes."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1, groups=4)
        self.up = nn.ConvTranspose2d(8, 6, 4, stride=2, padding=1, groups=2)
        self.head = nn.Linear(16, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.up(self.down(x))).mean((1, 2))


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def torchvision(name: str) -> Callable[[], nn.Module]:
    return resolve(f"torchvision:{name}", {}, None, Path.cwd()).build


@pytest.mark.parametrize(
    ("build", "size"),
    [
        (Grouped, (4, 16, 16)),
        (ViT, (3, 32, 32)),
        (timm_style, (3, 32, 32)),
        (torchvision("resnet18"), (3, 224, 224)),
        (torchvision("mobilenet_v3_small"), (3, 224, 224)),
        (torchvision("vit_b_32"), (3, 224, 224)),
    ],
    ids=["grouped", "vit", "timm", "resnet18", "mobilenet", "vit_b_32"],
)
def test_work_agrees_with_the_counter_of_torch(build: Callable[[], nn.Module], size: tuple[int, ...]) -> None:
    counter = FlopCounterMode(display=False)
    with counter, torch.device("meta"):
        on_meta(build).train()(torch.empty(BATCH, *size))
    costs = costs_of(on_meta(build), size)
    assert costs.problem == ""
    assert 2 * sum(costs.macs.values()) == counter.get_total_flops() > 0


def test_memory_is_what_autograd_keeps() -> None:
    """By hand: the input of a linear layer, the mask of a ReLU (its result), and nothing twice."""
    model = on_meta(lambda: nn.Sequential(nn.Linear(10, 20), nn.ReLU(), nn.Linear(20, 30)))
    costs = costs_of(model, (10,))
    assert sum(costs.kept.values()) == BATCH * (10 + 20) * 4
    assert costs.shapes["2"] == (BATCH, 30)


def test_rows_add_up_and_depth_limits_them() -> None:
    probe = ModelProbe(Target("vit", ViT), Spec(model="vit", input_size=[3, 32, 32]), torch.device("cpu"))
    count = sum(p.numel() for p in ViT().parameters())
    tables = {depth: summary_table(probe, depth) for depth in (1, 2, 4)}
    assert [len(table.rows) for table in tables.values()] == sorted({len(table.rows) for table in tables.values()})
    for table in tables.values():
        assert int(table.rows[0][3].replace(",", "")) == count
        top = [row for row in table.rows if row[0].startswith("  ") and not row[0].startswith("   ")]
        own = sum(p.numel() for name, p in ViT().named_parameters() if "." not in name)
        assert sum(int(row[3].replace(",", "")) for row in top) + own == count


def test_shared_parameters_count_once() -> None:
    def build() -> nn.Module:
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        model[1].weight = model[0].weight
        return model

    probe = ModelProbe(Target("tied", build), Spec(model="tied", input_size=[8]), torch.device("cpu"))
    assert [row[3] for row in summary_table(probe).rows] == ["80", "72", "8"]


class ReadsNumbers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x) if x.sum().item() > 0 else self.head(-x)


def test_a_forward_that_needs_numbers_says_so() -> None:
    probe = ModelProbe(Target("net", ReadsNumbers), Spec(model="net", input_size=[8]), torch.device("cpu"))
    table = summary_table(probe)
    assert table.rows[0][3:] == ["18", "", ""]
    assert any("does not run on the meta device" in note for note in table.notes)


def test_a_model_that_does_not_fit_in_memory(tmp_path: Path) -> None:
    """A hundred thousand million parameters: 400 GB."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\n\ndef build():\n"
        "    return nn.Sequential(*(nn.Linear(100_000, 100_000) for _ in range(10)), nn.Linear(100_000, 10))\n"
    )
    command = [sys.executable, "-m", "kit", "verify", "--model", "net.py:build", "--input-size", "100000", "--summary"]
    page = tmp_path / "report.html"
    result = subprocess.run(
        [*command, "--format", "json", "--html", str(page)], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout + result.stderr
    (table,) = json.loads(result.stdout)["tables"]
    assert table["rows"][0][3] == "100,002,000,010"
    assert "100 G multiply-adds (200 G FLOPs)" in table["notes"][0]
    assert "net.py:build by module" in page.read_text()
    assert "100,002,000,010" in page.read_text()


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 "), (999, "999 "), (1000, "1.00 k"), (17_563_000_000, "17.6 G"), (999_600, "1.00 M")]
)
def test_numbers_are_short(number: int, text: str) -> None:
    assert human(number) == text

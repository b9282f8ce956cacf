"""Blocks and other parts, which have no logits: `--output-size`."""

from __future__ import annotations

from pathlib import Path

import pytest

from verify.report import Report, Status
from verify.runner import verify_model
from verify.spec import Spec

MODELS = Path(__file__).resolve().parents[2] / "templates" / "pytorch_project" / "template" / "models"
PLANTED = """
import torch
import torch.nn.functional as F
from torch import nn

class StrideForgotten(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
    def forward(self, x):
        return F.relu(self.conv(x))

class BranchDropped(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
    def forward(self, x):
        self.conv2(F.relu(self.conv1(x)))
        return F.relu(self.conv1(x) + x)

class SamplesMixed(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.linear = nn.LayerNorm(16), nn.Linear(16, 16)
    def forward(self, x):
        x = self.norm(x)
        return x + self.linear(x - x.mean(dim=0))
"""


def check(model: str, folder: Path, inputs: list[int], outputs: list[int], **more: object) -> Report:
    return verify_model(Spec(model=model, input_size=inputs, output_size=outputs, **more), folder=folder, device="cpu")


def found(report: Report) -> set[str]:
    return {check.code for check in report.checks if check.status in (Status.FAIL, Status.WARN, Status.ERROR)}


@pytest.mark.parametrize(
    ("model", "kwargs", "inputs", "outputs"),
    [
        ("resnet.py:BasicBlock", {"in_channels": 3, "out_channels": 16}, [3, 32, 32], [16, 32, 32]),
        ("resnet.py:BasicBlock", {"in_channels": 8, "out_channels": 16, "stride": 2}, [8, 16, 16], [16, 8, 8]),
        ("vit.py:PatchEmbedding", {"in_channels": 3, "patch_size": 8, "dim": 64}, [3, 32, 32], [16, 64]),
        ("vit.py:EncoderBlock", {"dim": 48, "heads": 4, "mlp_dim": 96}, [17, 48], [17, 48]),
    ],
    ids=["block", "block with stride", "patches", "encoder block"],
)
def test_healthy_part_passes(model: str, kwargs: dict, inputs: list[int], outputs: list[int]) -> None:
    report = check(model, MODELS, inputs, outputs, kwargs=kwargs)
    assert report.exit_code == 0
    assert found(report) == set()
    checked = {check.code: check for check in report.checks if check.status is Status.PASS}
    assert {"MOD102", "MOD104", "GRD301", "GRD302"} <= set(checked)
    assert checked["MOD102"].measured == f"{(2, *inputs)} -> {(2, *outputs)}"
    skipped = {check.code for check in report.checks if check.message == "a part of a model has no logits"}
    assert skipped == {"MOD110", "TRN401", "TRN402"}


@pytest.mark.parametrize(
    ("name", "inputs", "outputs", "codes"),
    [
        ("StrideForgotten", [4, 16, 16], [8, 8, 8], {"MOD102"}),
        ("BranchDropped", [4, 16, 16], [4, 16, 16], {"GRD301"}),
        ("SamplesMixed", [5, 16], [5, 16], {"MOD104"}),
    ],
)
def test_planted_bug_is_found(name: str, inputs: list[int], outputs: list[int], codes: set[str], tmp_path) -> None:
    (tmp_path / "net.py").write_text(PLANTED)
    report = check(f"net.py:{name}", tmp_path, inputs, outputs)
    assert report.exit_code == 1
    assert codes <= found(report)


def test_wrong_shape_is_named_with_the_right_one(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(PLANTED)
    report = check("net.py:StrideForgotten", tmp_path, [4, 16, 16], [8, 8, 8], select=["MOD102"])
    (only,) = report.checks
    assert (only.measured, only.expected) == ("(1, 8, 16, 16)", "(1, 8, 8, 8)")
    assert only.location == "net.py:10 StrideForgotten.forward"

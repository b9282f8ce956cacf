"""`expect:` in verify.yaml: each rule finds its bug and lets the healthy look-alike pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.verify import parity_models
from tests.verify.parity_models import (
    DIM,
    HEADS,
    Attention,
    FunctionalRelu,
    LibraryAttention,
    NoSkipBlock,
    PostNormBlock,
    SoftmaxOverQueries,
    ViT,
    vit,
)
from verify.expectations import fits, shape_fits
from verify.probe import ModelProbe
from verify.report import Check, Status
from verify.rules import MODULES_ABOUT_MODELS, Subject, all_rules, select_rules, structure
from verify.runner import verify_model
from verify.spec import ExpectSpec, Spec, SpecError, load_spec
from verify.targets import Target
from verify.worker import apply


class Residual(nn.Module):
    """A basic block with a projection where the shape changes; `shortcut` is what goes wrong."""

    def __init__(self, inputs: int, width: int, stride: int, bias: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=bias)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=bias)
        self.norm2 = nn.BatchNorm2d(width)
        self.projection = nn.Sequential()
        if inputs != width:
            self.projection = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def shortcut(self, x: Tensor) -> Tensor:
        return self.projection(x)

    def branch(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x) + self.shortcut(x))


class NoShortcut(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.branch(x))


class NoProjectedShortcut(Residual):
    """Identity blocks keep their skip; those that change the shape have none."""

    def forward(self, x: Tensor) -> Tensor:
        made = self.branch(x)
        return F.relu(made + x) if made.shape == x.shape else F.relu(made)


class HalvedShortcut(Residual):
    def shortcut(self, x: Tensor) -> Tensor:
        return 0.5 * self.projection(x)


class SkipsFromBranch(Residual):
    """Adds the branch to itself: the sum is there, the skip is not."""

    def forward(self, x: Tensor) -> Tensor:
        x = self.branch(x)
        return F.relu(x + x)


class PaddedShortcut(Residual):
    """Option A of He et al. 2015: every second pixel, and zeros for the new channels."""

    def shortcut(self, x: Tensor) -> Tensor:
        if not len(self.projection):
            return x
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.conv2.out_channels - x.shape[1]))


class PreActivation(Residual):
    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


class ResNet(nn.Module):
    block: type[Residual] = Residual
    bias = False
    stem_stride = 1
    widths = (4, 8, 16)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, self.widths[0], 3, self.stem_stride, 1, bias=self.bias)
        self.norm = nn.BatchNorm2d(self.widths[0])
        sizes = zip((self.widths[0], *self.widths), self.widths, strict=False)
        self.blocks = nn.ModuleList(self.block(a, b, 1 if a == b else 2, self.bias) for a, b in sizes)
        self.head = nn.Linear(self.widths[-1], 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean((2, 3)))


def resnet(**attributes: object) -> type[nn.Module]:
    return type("Net", (ResNet,), attributes)


class SkipsLastBlock(ViT):
    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for block in self.blocks[:-1]:
            x = block(x)
        return self.head(self.pool(x))


class TwoHeads(Attention):
    def split(self, x: Tensor) -> Tensor:
        return x.unflatten(2, (2, -1)).transpose(1, 2)


BLOCKS = {"blocks": "blocks.*"}
SKIPS = {**BLOCKS, "skips": True}
TOKENS = {"shapes": {"blocks.*": ["B", 17, DIM], "embed": ["B", DIM, 4, 4], "head": ["B", 10]}}
HEADS_ASKED = {"attention": ["B", HEADS, 17, 17]}
HEALTHY: list[tuple[type[nn.Module], dict[str, Any], str]] = [
    (ViT, TOKENS, "SPC091"),
    (ViT, {"shapes": {"blocks.**": ["B", "*", "*"]}}, "SPC091"),
    (ViT, HEADS_ASKED, "SPC092"),
    (vit("Library", attention=LibraryAttention), HEADS_ASKED, "SPC092"),
    (ViT, SKIPS, "SPC093"),
    (vit("Relu", mlp=FunctionalRelu), SKIPS, "SPC093"),
    (vit("PostNorm", block=PostNormBlock), SKIPS, "SPC093"),
    (ResNet, SKIPS, "SPC093"),
    (resnet(block=PaddedShortcut), SKIPS, "SPC093"),
    (resnet(block=PreActivation, bias=True), SKIPS, "SPC093"),
    (ResNet, {"feature_map": 8}, "SPC094"),
    (ResNet, {"bias_before_norm": False}, "SPC095"),
    (ResNet, {}, "SPC095"),
    (resnet(bias=True), {"bias_before_norm": True}, "SPC095"),
    (ViT, {"bias_before_norm": False}, "SPC095"),
    (ViT, {**BLOCKS, "depth": 2}, "SPC096"),
    (ViT, {**BLOCKS, "width": DIM}, "SPC097"),
    (ResNet, {**BLOCKS, "width": [4, 8, 16]}, "SPC097"),
]
PLANTED: list[tuple[type[nn.Module], dict[str, Any], str]] = [
    (ViT, {"shapes": {"blocks.*": ["B", 16, DIM]}}, "SPC091"),
    (ViT, {"shapes": {"layers.*": ["B", 17, DIM]}}, "SPC091"),
    (SkipsLastBlock, {"shapes": {"blocks.1": ["B", 17, DIM]}}, "SPC091"),
    (vit("TwoHeads", attention=TwoHeads), HEADS_ASKED, "SPC092"),
    (vit("Queries", attention=SoftmaxOverQueries), HEADS_ASKED, "SPC092"),
    (ResNet, HEADS_ASKED, "SPC092"),
    (vit("NoSkip", block=NoSkipBlock), SKIPS, "SPC093"),
    (resnet(block=NoShortcut), SKIPS, "SPC093"),
    (resnet(block=NoProjectedShortcut), SKIPS, "SPC093"),
    (resnet(block=HalvedShortcut), SKIPS, "SPC093"),
    (resnet(block=SkipsFromBranch), SKIPS, "SPC093"),
    (ViT, {"blocks": "layers.*", "skips": True}, "SPC093"),
    (resnet(stem_stride=4), {"feature_map": 8}, "SPC094"),
    (resnet(bias=True), {"bias_before_norm": False}, "SPC095"),
    (ResNet, {"bias_before_norm": True}, "SPC095"),
    (SkipsLastBlock, {**BLOCKS, "depth": 2}, "SPC096"),
    (resnet(widths=(4, 8, 8)), {**BLOCKS, "width": [4, 8, 16]}, "SPC097"),
]


def check(model: type[nn.Module], expect: dict[str, Any], code: str) -> list[Check]:
    torch.manual_seed(0)
    spec = Spec(model="net", input_size=[3, 32, 32], expect=ExpectSpec(**expect))
    probe = ModelProbe(Target("net", model), spec, torch.device("cpu"))
    return [made for rule in select_rules([code], []) for made in apply(rule, probe, {})]


@pytest.mark.parametrize(("model", "expect", "code"), HEALTHY)
def test_healthy_look_alike_passes(model: type[nn.Module], expect: dict[str, Any], code: str) -> None:
    assert {made.status for made in check(model, expect, code)} == {Status.PASS}


@pytest.mark.parametrize(("model", "expect", "code"), PLANTED)
def test_planted_bug_is_found(model: type[nn.Module], expect: dict[str, Any], code: str) -> None:
    failed = [made for made in check(model, expect, code) if made.status is Status.FAIL]
    assert failed
    assert failed[0].measured
    assert failed[0].expected


def test_a_bias_before_a_norm_is_a_note_unless_the_spec_speaks_of_it() -> None:
    (made,) = check(resnet(bias=True), {"feature_map": 1}, "SPC095")
    assert made.status is Status.NOTE
    assert made.measured == "7 biases"


def test_every_rule_has_a_planted_bug() -> None:
    own = {rule.code for rule in all_rules().values() if rule.function.__module__ == structure.__name__}
    assert own == {code for *_, code in PLANTED} == {code for *_, code in HEALTHY}


def test_rules_about_models_lie_where_they_are_looked_for() -> None:
    modules = {r.function.__module__.rpartition(".")[2] for r in all_rules().values() if r.subject is Subject.MODEL}
    assert modules == set(MODULES_ABOUT_MODELS)


def test_what_was_asked_and_cannot_be_checked_is_no_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("verify.probe.SLOWEST_FOLLOWED", 0.0)
    (made,) = check(ViT, HEADS_ASKED, "SPC092")
    assert made.status is Status.ERROR


def test_patterns() -> None:
    assert fits("blocks.0", "blocks.*")
    assert not fits("blocks.0.attention", "blocks.*")
    assert fits("blocks.0.attention", "blocks.**")
    assert fits("layer1.0", "layer*.*")
    assert shape_fits((2, 17, 48), ["B", "*", 48])
    assert not shape_fits((2, 17, 48), ["B", 48])
    assert not shape_fits((2, 17, 48), ["B", 16, 48])


def test_from_the_spec_of_a_project(tmp_path: Path) -> None:
    text = Path(parity_models.__file__).read_text()
    (tmp_path / "net.py").write_text(text)
    head = "model: net.py:ViT\ninput_size: [3, 32, 32]\nselect: [SPC]\nexpect:\n  blocks: blocks.*\n"
    (tmp_path / "verify.yaml").write_text(
        head + "  depth: 2\n  skips: true\n  attention: [B, 4, 17, 17]\n  shapes: {norm: [B, 17, 48]}\n"
    )
    report = verify_model(Spec(**load_spec(tmp_path / "verify.yaml")), folder=tmp_path, device="cpu")
    assert report.passed
    # What nothing was asked of is not in the report.
    assert {made.code for made in report.checks} == {"SPC091", "SPC092", "SPC093", "SPC095", "SPC096"}


@pytest.mark.parametrize(
    ("text", "phrase"),
    [
        ("expect: {depht: 12}", "expect.depht"),
        ("expect: {depth: 12}", "needs the names of the blocks"),
        ("expect: {attention: [12, 197, 197]}", r"must be \[B, heads, queries, keys\]"),
    ],
)
def test_broken_spec_is_one_sentence(tmp_path: Path, text: str, phrase: str) -> None:
    (tmp_path / "verify.yaml").write_text(f"model: cnn\n{text}\n")
    with pytest.raises(SpecError, match=phrase):
        load_spec(tmp_path / "verify.yaml")

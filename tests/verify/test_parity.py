"""`--like`: equal functions under other names and layouts pass; equal counts with another function fail, by name."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.verify import forked, parity_models
from tests.verify.parity_models import BUGS, DEPTH, EPSILON, HEALTHY, OTHER_STRUCTURE, timm_style
from verify.probe import ModelProbe
from verify.report import Check, Status
from verify.rules import all_rules, select_rules
from verify.rules import parity as parity_rules
from verify.spec import Spec
from verify.targets import Target, resolve
from verify.worker import apply

HERE = Path(parity_models.__file__)
SMALL_TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 4}
SMALL_TORCHVISION = {
    "image_size": 32,
    "patch_size": 8,
    "hidden_dim": 48,
    "num_layers": 2,
    "num_heads": 4,
    "mlp_dim": 192,
}


def compare(model: Target, reference: Target, size: tuple[int, ...] = (3, 32, 32)) -> dict[str, Check]:
    """The checks of the family PAR, by code."""
    probe = ModelProbe(model, Spec(model=model.name, like=reference.name, input_size=list(size)), torch.device("cpu"))
    probe.reference = reference
    return {made.code: made for rule in select_rules(["PAR"], []) for made in apply(rule, probe, {})}


def like_timm(model: Callable[[], nn.Module]) -> dict[str, Check]:
    return compare(Target("own", model), Target("timm", timm_style))


@pytest.mark.parametrize("name", HEALTHY)
def test_equal_function_passes_in_both_directions(name: str) -> None:
    for checks in (like_timm(HEALTHY[name]), compare(Target("timm", timm_style), Target("own", HEALTHY[name]))):
        assert {check.status for check in checks.values()} == {Status.PASS}
        assert "standard deviation" in checks["PAR132"].measured


@pytest.mark.parametrize("name", BUGS)
def test_other_function_fails_and_names_the_module(name: str) -> None:
    model, module = BUGS[name]
    checks = like_timm(model)
    assert checks["PAR131"].status is Status.PASS  # same parameters: nothing but the numbers tells
    assert checks["PAR132"].status is Status.FAIL
    assert checks["PAR132"].message.startswith(f"{module or 'the model'} " if module else "the model's own forward")
    assert "parity_models.py:" in checks["PAR132"].location or module.endswith("act")


def test_finding_says_counterpart_difference_and_place() -> None:
    found = like_timm(BUGS["scaled by all heads"][0])["PAR132"]
    assert "unlike blocks.0.attn of timm" in found.message
    assert "ScaledByAllHeads" in found.location
    assert "blocks.0.attention.out already gets another input" in found.hint
    assert "output of this module by" in found.measured
    assert "approximate='tanh'" in like_timm(BUGS["tanh GELU"][0])["PAR132"].hint
    assert "norm still agrees; head" in like_timm(BUGS["mean pooling"][0])["PAR132"].hint


def test_a_reference_that_does_not_run_is_no_difference() -> None:
    """Nothing was compared then, which is neither a pass nor a failure of the model."""

    class TakesNothing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            raise ValueError("another size, please")

    checks = compare(Target("own", timm_style), Target("reference", TakesNothing))
    assert {check.status for check in checks.values()} == {Status.ERROR}
    assert "the reference raises ValueError: another size, please" in checks["PAR131"].message


@pytest.mark.parametrize("name", OTHER_STRUCTURE)
def test_other_structure_names_the_first_difference_and_shows_both(name: str) -> None:
    model, first = OTHER_STRUCTURE[name]
    probe = ModelProbe(
        Target("own", model), Spec(model="own", like="timm", input_size=[3, 32, 32]), torch.device("cpu")
    )
    probe.reference = Target("timm", timm_style)
    checks = [made for rule in select_rules(["PAR"], []) for made in apply(rule, probe, {})]
    assert [check.status for check in checks] == [Status.FAIL, Status.SKIP, Status.SKIP]
    assert first in checks[0].message
    (table,) = probe.tables
    assert any(row[2] == "differs" and first in row[0] for row in table.rows)
    assert any(row[2] == "" and row[0] and row[1] for row in table.rows)


def test_depth_and_width_are_structure() -> None:
    assert like_timm(lambda: timm_style(depth=DEPTH + 1))["PAR131"].status is Status.FAIL
    assert like_timm(lambda: timm_style(embed_dim=24))["PAR131"].status is Status.FAIL
    assert like_timm(lambda: timm_style(qkv_bias=False))["PAR131"].status is Status.FAIL


def test_another_epsilon_is_a_note() -> None:
    checks = like_timm(EPSILON)
    assert checks["PAR132"].status is Status.PASS
    assert checks["PAR133"].status is Status.NOTE
    assert "1e-05 in 5" in checks["PAR133"].measured


def test_every_rule_has_a_planted_bug() -> None:
    own = {rule.code for rule in all_rules().values() if rule.function.__module__ == parity_rules.__name__}
    assert own == {"PAR131", "PAR132", "PAR133"}  # OTHER_STRUCTURE, BUGS, EPSILON


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (("timm:vit_base_patch16_224", SMALL_TIMM), ("torchvision:vit_b_16", SMALL_TORCHVISION)),
        (("timm:resnet18", {}), ("torchvision:resnet18", {})),
        (("timm:resnet26d", {}), ("timm:resnet26d", {})),
    ],
    ids=["vit", "resnet", "itself"],
)
def test_libraries_agree(one: tuple[str, dict], two: tuple[str, dict]) -> None:
    for (name, kwargs), (like, like_kwargs) in ((one, two), (two, one)):
        if "vit_b_16" in name + like:
            # torchvision's function fixes what its class takes
            targets = [
                small_vit(n) if n.startswith("torchvision") else resolve(n, k, 10, HERE.parent)
                for n, k in ((name, kwargs), (like, like_kwargs))
            ]
        else:
            targets = [resolve(n, k, 10, HERE.parent) for n, k in ((name, kwargs), (like, like_kwargs))]
        checks = compare(*targets)
        assert {check.status for check in checks.values()} == {Status.PASS}


def small_vit(name: str) -> Target:
    from torchvision.models.vision_transformer import VisionTransformer

    return Target(name, lambda: VisionTransformer(num_classes=10, **SMALL_TORCHVISION))


class Bottleneck(nn.Module):
    """Two 3x3 convolutions with a shortcut; `late` runs the shortcut last, which must not change the pairing."""

    def __init__(self, late: bool, stride: tuple[int, int] = (2, 1)) -> None:
        super().__init__()
        self.late = late
        self.a, self.norm_a = nn.Conv2d(8, 16, 3, stride[0], 1, bias=False), nn.BatchNorm2d(16)
        self.b, self.norm_b = nn.Conv2d(16, 16, 3, stride[1], 1, bias=False), nn.BatchNorm2d(16)
        self.short, self.norm_short = nn.Conv2d(8, 16, 1, 2, bias=False), nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        first = None if self.late else self.norm_short(self.short(x))
        made = self.norm_b(self.b(self.norm_a(self.a(x)).relu()))
        return (made + (self.norm_short(self.short(x)) if first is None else first)).relu()


def small_resnet(late: bool, stride: tuple[int, int] = (2, 1)) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        block, pool = Bottleneck(late, stride), nn.AdaptiveAvgPool2d(1)
        return nn.Sequential(nn.Conv2d(3, 8, 3), block, pool, nn.Flatten(), nn.Linear(16, 5))

    return build


def test_norms_go_with_their_convolution_whatever_runs_first() -> None:
    checks = compare(Target("late", small_resnet(True)), Target("early", small_resnet(False)))
    assert {check.status for check in checks.values()} == {Status.PASS}


def test_a_stride_in_another_place_is_found() -> None:
    checks = compare(Target("own", small_resnet(True, (1, 2))), Target("reference", small_resnet(True)))
    assert checks["PAR132"].status is Status.FAIL
    assert checks["PAR132"].message.startswith("1.a is the first")


def test_following_leaves_no_trace_on_the_model() -> None:
    from verify.locate import follow_modules
    from verify.uses import uses_of

    model, x = timm_style(), torch.randn(2, 3, 32, 32)
    before = {name: p.clone() for name, p in model.named_parameters()}
    uses_of(model, x)
    follow_modules(model, x)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


def kit(*arguments: str) -> subprocess.CompletedProcess[str]:
    return forked.kit(HERE.parent, "verify", *arguments)


@pytest.mark.slow
def test_command_line() -> None:
    """Healthy: 0; another function: 1, and a reader learns where."""
    target = ("--model", "parity_models.py:ViT", "--input-size", "3,32,32", "--select", "PAR")
    reference = ("--like", "timm:vit_base_patch16_224", "--like-kwargs")
    small = "img_size=32,patch_size=8,embed_dim=48,depth=2,num_heads=4"
    healthy = kit(*target, *reference, small, "--format", "json")
    assert healthy.returncode == 0, healthy.stdout
    assert {check["status"] for check in json.loads(healthy.stdout)["checks"]} == {"pass"}
    other = kit(*target, *reference, small.replace("depth=2", "depth=3"))
    assert other.returncode == 1
    assert "Parameters side by side" in other.stdout


@pytest.mark.parametrize(
    ("arguments", "phrase"),
    [
        (["--like", "timm:vit_base_patch16_225"], "did you mean 'vit_base_patch16_224'"),
        (["--like", "torchvision:vit_b_17"], "did you mean 'vit_b_16'"),
        (["--like", "cnn", "--like-kwargs", "wdth=3"], "does not fit"),
        (["--like-kwargs", "depth=3"], "which `like` must name"),
        (["--select", "PAR"], "needs like"),
    ],
)
def test_wrong_use_is_one_line(arguments: list[str], phrase: str) -> None:
    result = kit("--model", "cnn", *arguments)
    assert result.returncode == 2
    assert phrase in result.stderr
    assert result.stderr.count("\n") == 1

"""Groups of parameters that have each other's learning rate: planted bugs, and what looks like them."""

from __future__ import annotations

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge

GROUPS = """
import torch
optimizer = torch.optim.AdamW([
    {"params": FIRST, "lr": RATE},
    {"params": SECOND, "lr": OTHER},
])
"""
GAN = """
import torch
def build(generator, disc, args):
    opt_g = torch.optim.Adam(generator.parameters(), lr=RATE, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(disc.parameters(), lr=OTHER, betas=(0.5, 0.999))
    return opt_g, opt_d
"""


def found(code: str, **names: str) -> bool:
    for name, text in names.items():
        code = code.replace(name, text)
    return bool(judge(Run().more("source", path="train.py", text=code).record(), ["OPT721"]).of(Status.FAIL))


BODY = {"FIRST": "model.backbone.parameters()", "SECOND": "model.head.parameters()"}


@pytest.mark.parametrize(
    ("rate", "other"),
    [
        ("opts['head_lr']", "opts['backbone_lr']"),
        ("args.lr_head", "args.lr_backbone"),
        ("cfg.head.lr", "cfg.backbone.lr"),
    ],
)
def test_rates_that_are_swapped(rate: str, other: str) -> None:
    assert found(GROUPS, **BODY, RATE=rate, OTHER=other)
    assert not found(GROUPS, **BODY, RATE=other, OTHER=rate)


@pytest.mark.parametrize(
    ("rate", "other"),
    [
        ("lr", "lr * 10"),
        ("head_lr", "head_lr"),
        ("0.1 * head_lr", "head_lr"),
        ("backbone_lr", "lr"),
        ("lrs[0]", "lrs[1]"),
        ("new_lr", "old_lr"),
    ],
)
def test_rates_that_are_not(rate: str, other: str) -> None:
    assert not found(GROUPS, **BODY, RATE=rate, OTHER=other)


def test_lists_of_parameters() -> None:
    names = {"FIRST": "backbone_params", "SECOND": "head_params"}
    assert found(GROUPS, **names, RATE="head_lr", OTHER="backbone_lr")
    assert not found(GROUPS, **names, RATE="backbone_lr", OTHER="head_lr")


def test_two_optimizers() -> None:
    assert found(GAN, RATE="args.disc_lr", OTHER="args.generator_lr")
    assert not found(GAN, RATE="args.generator_lr", OTHER="args.disc_lr")
    assert not found(GAN, RATE="args.lr", OTHER="args.lr")

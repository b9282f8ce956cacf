"""Gradients that are looked at in a way that shows nothing, and look-alikes that do."""

from __future__ import annotations

import textwrap
from collections.abc import Callable

import pytest

from verify.report import Finding
from verify.rules.source_gradients import gradient_norm_of_last_batch, gradient_test_passes_for_zeros
from verify.trace.record import Record


def findings(rule: Callable, code: str, path: str = "train.py", kind: str = "source") -> list[Finding]:
    return list(rule(Record([{"kind": kind, "path": path, "text": textwrap.dedent(code)}])))


LOOP = """
    for epoch in range(9):
        model.train()
        for x, y in loader:
            loss(model(x), y).backward()
            {inside}
            optimizer.step()
        {after}
"""
SUM = "norm = sum(p.grad.norm() ** 2 for p in model.parameters() if p.grad is not None) ** 0.5"
BY_HAND = """for name, p in model.named_parameters():
            total += p.grad.data.norm(2).item() ** 2"""
HELPER = "def grad_norm(net):\n    return sum(torch.linalg.vector_norm(p.grad) for p in net.parameters())\n"


@pytest.mark.parametrize("after", [SUM, BY_HAND])
def test_norms_of_the_last_batch_are_found(after: str) -> None:
    found = findings(gradient_norm_of_last_batch, LOOP.format(inside="", after=after))
    assert [one.location for one in found] == ["train.py:8"]


def test_norms_by_a_helper_are_found() -> None:
    code = HELPER + textwrap.dedent(LOOP.format(inside="", after="log(grad_norm(model))"))
    assert len(findings(gradient_norm_of_last_batch, code)) == 1


@pytest.mark.parametrize(
    ("inside", "after"),
    [
        (SUM, "log(norm)"),
        ("norms.append(clip_grad_norm_(model.parameters(), 1.0))", "log(sum(norms) / len(norms))"),
        ("", "size = sum(p.norm() for p in model.parameters())"),
    ],
)
def test_norms_of_each_batch_pass(inside: str, after: str) -> None:
    assert findings(gradient_norm_of_last_batch, LOOP.format(inside=inside, after=after)) == []


TEST = """
    def test_gradients_reach_every_parameter():
        model(torch.randn(2, 3)).sum().backward()
        for name, p in model.named_parameters():
            {check}
"""


@pytest.mark.parametrize("check", ["assert p.grad is not None, name", "if p.grad is None: raise ValueError(name)"])
@pytest.mark.parametrize("kind", ["sibling", "source"])
def test_a_test_that_zeros_pass_is_found(check: str, kind: str) -> None:
    found = findings(gradient_test_passes_for_zeros, TEST.format(check=check), "tests/test_model.py", kind)
    assert [one.location for one in found] == ["tests/test_model.py:5"]


@pytest.mark.parametrize(
    "check",
    [
        "assert p.grad is not None and p.grad.abs().sum() > 0, name",
        "assert torch.isfinite(p.grad).all()",
        "assert p.requires_grad",
    ],
)
def test_a_test_of_values_passes(check: str) -> None:
    assert findings(gradient_test_passes_for_zeros, TEST.format(check=check), "tests/test_model.py", "sibling") == []

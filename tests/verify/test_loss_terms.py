"""Divergences, terms without a gradient and broadcast differences: planted bugs, and what looks like them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.verify.run_records import Run
from tests.verify.trace.runs import TRAIN, watched
from verify.report import Status
from verify.watch import judge

BAD = (Status.FAIL, Status.WARN)


def found(run: Run, rule: str) -> bool:
    return any(check.status in BAD for check in judge(run.record(), [rule]).checks)


def trained(event: dict[str, Any]) -> bool:
    return bool(event.get("grad"))


def divergence(low: float, high: float, target: tuple[float, float] = (0.0, 1.0), **more: Any) -> Run:
    scores = {"shape": [16, 10], "min": low, "max": high}
    towards = {"shape": [16, 10], "float": True, "min": target[0], "max": target[1]}
    return Run().put("loss", fn="kl_div", input=scores, target=towards, **more)


@pytest.mark.parametrize(
    ("run", "wrong"),
    [
        (divergence(0.01, 0.9), True),
        (divergence(-4.0, 5.0), True),
        (divergence(-9.0, -0.1, target=(-7.0, -0.1)), True),
        (divergence(-9.0, -0.1, target=(0.0, 0.9), log_target=True), True),
        (divergence(-9.0, -0.1), False),
        (divergence(-9.0, 1e-7), False),
        (divergence(-9.0, -0.1, target=(-7.0, -0.1), log_target=True), False),
        (Run(), False),
    ],
)
def test_what_a_divergence_is_given(run: Run, wrong: bool) -> None:
    assert found(run, "LOS914") is wrong


def with_second_loss(constant: bool, needs_grad: bool = False, grad: bool = True) -> Run:
    fields = {"fn": "kl_div", "grad": grad, "needs_grad": needs_grad, "loc": "train.py:34", "value": 1.0}
    run = Run().before("backward", "loss", step=lambda e: e["step"], reduction="mean", n=16, smoothing=0.0, **fields)
    return run.put("backward", constant=True) if constant else run


@pytest.mark.parametrize(
    ("run", "wrong"),
    [
        (with_second_loss(constant=True), True),
        (with_second_loss(constant=False), False),
        (with_second_loss(constant=True, needs_grad=True), False),
        (with_second_loss(constant=True, grad=False), False),
        (Run().put("backward", constant=True), False),
    ],
)
def test_a_term_without_a_gradient(run: Run, wrong: bool) -> None:
    assert found(run, "LOS915") is wrong


def test_a_difference_that_is_broadcast() -> None:
    assert found(Run().put("backward", broadcast=[[16], [16, 16]]), "LOS907")
    assert not found(Run().put("backward", lambda e: e["step"] == 0, broadcast=[[16], [16, 16]]), "LOS907")


BY_HAND = "loss = ((model(a)[:, 0] - b.float(){}) ** 2).mean()"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("line", "kind"),
    [
        (BY_HAND.format("[:, None]"), "broadcast"),
        ("loss = ((b.float() - model(a)[:, :1]) ** 2).mean()", "broadcast"),
        ("loss = nn.functional.cross_entropy(model(a), b) + nn.functional.mse_loss(a, a.detach())", "constant"),
        (BY_HAND.format(""), ""),
        ("z = model(a)[:, 0]; loss = ((z.unsqueeze(1) - z.unsqueeze(0)) ** 2).mean()", ""),
        ("z = model(a)[:, 0]; loss = ((z.unsqueeze(1) - b.float()) ** 2).mean()", ""),
        ("loss = nn.functional.cross_entropy(model(a), b) + 0.1 * model(a).mean()", ""),
    ],
)
def test_what_the_graph_of_a_loss_shows(tmp_path: Path, line: str, kind: str) -> None:
    script = TRAIN.replace("loss = nn.functional.cross_entropy(model(a), b)", line) + "train()\n"
    seen = [{key for key in ("broadcast", "constant") if key in e} for e in watched(tmp_path, script).of("backward")]
    assert seen
    assert all(keys == ({kind} - {""}) for keys in seen)

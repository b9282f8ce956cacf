"""Weights of classes, and targets of binary losses: planted bugs, and what looks like them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.verify.run_records import Run
from tests.verify.trace.runs import TRAIN, watched
from verify.report import Status
from verify.watch import judge

COUNTS = [400, 210, 90, 52, 31]
BAD = (Status.FAIL, Status.WARN)


def found(rule: str, **fields: Any) -> Status | None:
    run = Run().put("loss", lambda e: e["grad"], **fields)
    bad = judge(run.record(), [rule]).of(*BAD)
    return bad[0].status if bad else None


@pytest.mark.parametrize(
    ("counts", "weights", "expected"),
    [
        (COUNTS, [c / 783 for c in COUNTS], Status.FAIL),
        (COUNTS, [c**0.5 for c in COUNTS], Status.FAIL),
        ([900, 300], [1.5, 0.5], Status.WARN),
        (COUNTS, [783 / c for c in COUNTS], None),
        (COUNTS, [c**-0.5 for c in COUNTS], None),
        (COUNTS, [1.0] * 5, None),
        (COUNTS, [1.0, 2.0, 1.0, 1.0, 2.0], None),
        ([101, 99, 100, 98, 102], [2.0, 1.0, 1.5, 0.9, 2.2], None),  # balanced batches
        ([900, 300], [2.0, 1.0], None),  # what a mistake costs
        ([900, 0], [900.0, 4.0], None),  # a class that was not met
    ],
)
def test_class_weights(counts: list[int], weights: list[float], expected: Status | None) -> None:
    assert found("LOS917", counts=counts, weight=weights) is expected


@pytest.mark.parametrize(
    ("positives", "weights", "expected"),
    [
        ([40, 30, 35, 20, 44], [0.25, 0.18, 0.21, 0.11, 0.28], Status.FAIL),
        ([40], [0.25], Status.WARN),
        ([40, 30, 35, 20, 44], [4.0, 5.7, 4.7, 9.0, 3.5], None),
        ([160], [0.25], None),  # more positives than negatives
        ([100], [1.0], None),
        ([20], [0.5], None),
    ],
)
def test_positive_weights(positives: list[float], weights: list[float], expected: Status | None) -> None:
    fields = {"fn": "binary_cross_entropy_with_logits", "counts": positives, "pos_weight": weights, "count_of": 200}
    assert found("LOS917", **fields) is expected


@pytest.mark.parametrize(
    ("low", "high", "more", "expected"),
    [
        (0.0, 2.0, {}, Status.FAIL),
        (-2.1, 2.4, {}, Status.FAIL),
        (0.0, 1.05, {}, Status.WARN),
        (0.0, 1.0, {}, None),
        (0.05, 0.95, {}, None),
        (0.0, 1.0000002, {}, None),
        (-1.0, 1.0, {"reduction": "none"}, None),
        (-1.0, 1.0, {"weighted": True}, None),
    ],
)
def test_targets_of_binary_losses(low: float, high: float, more: dict[str, Any], expected: Status | None) -> None:
    target = {"shape": [16, 10], "float": True, "min": low, "max": high}
    assert found("LOS918", fn="binary_cross_entropy_with_logits", target=target, **more) is expected


def test_weights_and_counts_are_recorded(tmp_path: Path) -> None:
    script = TRAIN.replace("cross_entropy(model(a), b)", "cross_entropy(model(a), b, weight=y.bincount().float())")
    record = watched(tmp_path, script + "train()\n")
    event = record.of("loss")[0]
    assert len(event["weight"]) == 2
    assert sum(event["counts"]) == 16
    one = "one = nn.functional.one_hot(b, 2).float()\n            "
    binary = "binary_cross_entropy_with_logits(model(a), one, pos_weight=torch.tensor([2.0, 3.0]))"
    script = TRAIN.replace("optimizer.zero_grad()", one + "optimizer.zero_grad()")
    record = watched(tmp_path, script.replace("cross_entropy(model(a), b)", binary) + "train()\n")
    event = record.of("loss")[0]
    assert event["pos_weight"] == [2.0, 3.0]
    assert sum(event["counts"]) == event["count_of"] == 16


def labels(ignored: int = 3, number: int | None = 0, shape: list[int] | None = None) -> dict[str, Any]:
    target = {"shape": shape or [16], "float": False, "min": 0, "max": 9}
    return target | ({"ignored": ignored, "ignored_class": number} if ignored else {})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"target": labels()}, Status.WARN),
        ({"weight": [0.0, 1.0, 2.0], "counts": [6, 5, 5]}, Status.WARN),
        ({"target": labels(0)}, None),
        ({"target": labels(number=None)}, None),  # -100
        ({"target": labels(shape=[16, 8, 8]), "input": {"shape": [16, 3, 8, 8]}}, None),  # 0 is the background
        ({"weight": [0.0, 1.0, 2.0], "counts": [0, 8, 8]}, None),  # a class that the data does not have
    ],
)
def test_a_class_that_the_loss_leaves_out(fields: dict[str, Any], expected: Status | None) -> None:
    assert found("LOS919", **fields) is expected


def test_a_class_that_the_first_batch_does_not_have() -> None:
    run = Run().put("loss", lambda e: e["grad"], target=lambda e: labels(3 if e["step"] else 0))
    assert judge(run.record(), ["LOS919"]).of(Status.WARN)


def test_padding_of_words_is_no_class() -> None:
    """Flattened, the words of a batch look like samples; what the model returned tells them apart."""
    run = Run().put("loss", lambda e: e["grad"], target=labels(shape=[64]), input={"shape": [64, 10]}, n=64)
    run.put("pass", lambda e: e["trained"], shape=[16, 4, 10])
    assert not judge(run.record(), ["LOS919"]).of(*BAD)


def test_the_class_that_is_ignored_is_recorded(tmp_path: Path) -> None:
    for labels, number in (("b, ignore_index=0", 0), ("torch.where(b == 0, -1, b), ignore_index=-1", None)):
        script = TRAIN.replace("cross_entropy(model(a), b)", f"cross_entropy(model(a), {labels})")
        event = watched(tmp_path, script + "train()\n").of("loss")[0]
        assert event["target"]["ignored"] > 0
        assert event["target"]["ignored_class"] == number

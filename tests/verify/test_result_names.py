"""Results that are called something else than what they are: planted bugs, and what looks like them."""

from __future__ import annotations

import textwrap

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge

BAD = (Status.FAIL, Status.WARN)


def found(code: str, rule: str, run: Run | None = None) -> bool:
    run = (run or Run()).more("source", path="train.py", text="import torch\n" + textwrap.dedent(code))
    return any(check.status in BAD for check in judge(run.record(), [rule]).checks)


VALIDATE = """
def validate(loader, model):
    top1, top5 = AverageMeter("Acc@1"), AverageMeter("Acc@5")
    for x, y in loader:
        acc1, acc5 = accuracy(model(x), y, topk=(1, 5))
        top1.update(acc1.item(), len(x))
        top5.update(acc5[0], len(x))
    return top1.avg

acc1 = validate(loader, model)
best_acc1 = max(acc1, best_acc1)
"""


@pytest.mark.parametrize(
    "code",
    [
        VALIDATE.replace("return top1.avg", "return top5.avg"),
        VALIDATE.replace("return top1.avg", "return loss, top5.avg").replace("acc1 = validate", "_, acc1 = validate"),
        VALIDATE.replace("acc1, acc5 = accuracy", "acc5, acc1 = accuracy"),
        VALIDATE.replace("max(acc1, best", "max(acc5, best"),
        VALIDATE.replace("top1.update(acc1.item()", "top1.update(acc5.item()"),
        "state = {'top1': top5.avg}\n",
        "save(best_acc1=float(acc5))\n",
    ],
)
def test_top_5_that_is_called_top_1(code: str) -> None:
    assert found(code, "EVL625")


@pytest.mark.parametrize(
    "code",
    [
        VALIDATE,
        VALIDATE.replace("return top1.avg", "return top1.avg, top5.avg").replace("acc1 = val", "acc1, acc5 = val"),
        VALIDATE.replace("acc1 = validate", "prec1 = validate"),
        "acc5 = acc1\n",
        "acc1 = evaluate(models[5])\nacc1 = evaluate(model_5)\n",
        "best_acc1 = checkpoint['best_acc1']\nacc1 = results[5]\n",
        "top1 = (output.topk(5).indices == y).float().mean()\n",
        "state = {'top1': top1.avg, 'top5': top5.avg}\n",
    ],
)
def test_top_1_that_is_top_1(code: str) -> None:
    assert not found(code, "EVL625")


TESTED = """
val_loader = DataLoader(val_set)
test_loader = DataLoader(test_set)
if args.evaluate:
    validate(test_loader, model)
for epoch in range(9):
    acc = validate(val_loader, model)
test_acc = validate(test_loader, model)
"""
WRONG = TESTED.replace("test_acc = validate(test_loader", "test_acc = validate(val_loader")


def with_loaders(*, used: bool) -> Run:
    """A run that iterates a loader made in line 3, and one made in line 4 or not; others leave no trace."""
    run = Run().put("loader", lambda e: e["id"] == 1, loc="train.py:3")
    common = {k: v for e in run.events if e["kind"] == "loader" and e["id"] == 1 for k, v in e.items() if k != "kind"}
    return run.more("loader", **{**common, "id": 2, "loc": "train.py:4"}) if used else run


def test_validation_that_is_called_test() -> None:
    assert found(WRONG, "EVL626", with_loaders(used=False))
    assert found(WRONG.replace("if args.evaluate:\n    validate(test_loader, model)\n", ""), "EVL626")


@pytest.mark.parametrize(
    ("code", "used"),
    [
        (TESTED, True),
        (WRONG, True),  # the names are loose, and the test data were used all the same
        ("val_loader = DataLoader(val_set)\ntest_acc = validate(val_loader, model)\n", False),
        ("val_loader = DataLoader(v)\ntest_loader = DataLoader(t)\nval_acc = validate(val_loader)\n", False),
        (
            "val_loader = DataLoader(v)\ntest_loader = DataLoader(t)\ntest_acc = compare(val_loader, test_loader)\n",
            False,
        ),
    ],
)
def test_test_data_that_are_used_or_not_there(code: str, used: bool) -> None:
    assert not found(code, "EVL626", with_loaders(used=used))

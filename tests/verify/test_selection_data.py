"""The best model chosen by the test set: planted bugs, and what looks like them."""

from __future__ import annotations

import textwrap

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge


def found(run: Run) -> bool:
    return bool(judge(run.record(), ["EVL622"]).of(Status.WARN))


def called(run: Run, evaluated: list[str], other: list[str]) -> Run:
    """The names of the loader that the run evaluates after each epoch, and of one that it holds beside it."""
    evals = [{"id": 1, "names": evaluated, "loc": "train.py:11"}, {"id": 2, "names": other, "loc": "train.py:12"}]
    return run.more("probe", name="data", result={"train": {"id": 0}, "evals": evals})


@pytest.mark.parametrize("names", [["loaders.test"], ["self.test_loader", "test_loader"], ["testloader"]])
def test_the_test_set_alone_is_evaluated_after_each_epoch(names: list[str]) -> None:
    assert found(called(Run(), names, ["val_loader"]))


def test_the_rate_follows_the_test_set() -> None:
    run = called(Run(), ["test_dl"], ["valid_dl"]).put("save", path="last.pt")
    assert not found(run)
    saves = [number for number, event in enumerate(run.events) if event["kind"] == "save"]
    for number in reversed(saves):
        run.events.insert(number, {"kind": "sched", "id": 0, "given": [0.4], "lrs": [0.1], "step": 6, "loc": "a.py:3"})
    assert found(run)


@pytest.mark.parametrize(
    ("evaluated", "other"),
    [
        (["val_loader"], ["test_loader"]),
        (["test_loader"], ["calibration_loader"]),
        (["test_loader"], []),
        (["val_loader", "loaders.test"], ["val_loader"]),
        (["eval_loader"], ["val_loader"]),
    ],
)
def test_names_that_say_nothing_of_the_kind(evaluated: list[str], other: list[str]) -> None:
    assert not found(called(Run(), evaluated, other))


def test_a_test_that_is_only_logged() -> None:
    assert not found(called(Run(), ["test_loader"], ["val_loader"]).put("save", path="epoch.pt"))


LOOP = """
import torch
for epoch in range(epochs):
    val_loss, val_acc = evaluate(model, val_loader)
    test_loss, test_acc = evaluate(model, test_loader)
    if TEST:
        BEST
        save()
"""


@pytest.mark.parametrize(
    ("test", "best", "wrong"),
    [
        ("test_acc > best_acc", "best_acc = test_acc", True),
        ("best_loss > test_loss", "best_loss = test_loss", True),
        ("val_acc > best_acc", "best_acc = val_acc", False),
        ("test_acc > best_test_acc", "best_test_acc = test_acc", False),
    ],
)
def test_the_source_compares_with_the_best(test: str, best: str, wrong: bool) -> None:
    code = textwrap.dedent(LOOP).replace("TEST", test).replace("BEST", best)
    assert found(Run().more("source", path="train.py", text=code)) is wrong


def test_a_script_without_validation() -> None:
    code = LOOP.replace("    val_loss, val_acc = evaluate(model, val_loader)\n", "")
    code = code.replace("TEST", "test_acc > best_acc").replace("BEST", "best_acc = test_acc")
    assert not found(Run().more("source", path="train.py", text=code))

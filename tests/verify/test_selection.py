"""How the best model is chosen and used: planted bugs, and what looks like them."""

from __future__ import annotations

import textwrap

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge

BAD = (Status.FAIL, Status.WARN)

LOOP = """
best, wait = 0.0, 0
for epoch in range(epochs):
    acc = validate(model)
    if acc > best:
        best, wait = acc, 0
        torch.save(model.state_dict(), "best.pt")
    else:
        wait += 1
        if wait >= args.patience:
            break
"""
TRAINER = """
class Trainer:
    def __init__(self):
        self.best_loss = float("inf")
        self.bad_epochs = 0

    def after_epoch(self, loss):
        if loss < self.best_loss:
            self.best_loss = loss
            self.bad_epochs = 0
        else:
            self.bad_epochs += 1
        return self.bad_epochs > self.patience
"""
STOPPER = """
class Stopper:
    def __init__(self, patience):
        self.patience, self.counter, self.best_score = patience, 0, None

    def __call__(self, score):
        if self.best_score is None or score > self.best_score:
            self.best_score = score
            self.counter = 0
        else:
            self.counter += 1
            if self.counter >= self.patience:
                self.stop = True
"""


def found(code: str, rule: str) -> bool:
    run = Run().more("source", path="train.py", text="import torch\n" + textwrap.dedent(code))
    return any(check.status in BAD for check in judge(run.record(), [rule]).checks)


@pytest.mark.parametrize(
    "code",
    [
        LOOP.replace("best, wait = acc, 0\n", "wait = 0\n"),
        TRAINER.replace("            self.best_loss = loss\n", ""),
        "def fit():\n    best_f1 = 0\n    for e in range(9):\n        if f1(e) >= best_f1:\n            save()\n",
        "best = 0\nfor e in range(9):\n    if acc > best:\n        save()\n    best = acc\n",
        "best = 0\nfor e in range(9):\n    is_best = acc > best\n    best = acc\n    save(is_best)\n",
        "for e in range(9):\n    best, state = 0.0, None\n    acc = test()\n    if acc > best:\n        best = acc\n",
        "for e in range(9):\n    best_loss = float('inf')\n    if loss(e) < best_loss:\n        best_loss = loss(e)\n",
    ],
)
def test_a_best_that_is_never_kept(code: str) -> None:
    assert found(code, "EVL611")


@pytest.mark.parametrize(
    "code",
    [
        LOOP,
        TRAINER,
        STOPPER,
        "def better(acc, best):\n    return 1 if acc > best else 0\n",
        "def better(acc, best=0.0):\n    while True:\n        if acc > best:\n            return True\n",
        "best = 0\ndef test():\n    global best\n    for x in y:\n        if x > best:\n            best = x\n",
        "def run():\n    best = 0\n    def f(x):\n        nonlocal best\n        if x > best:\n            best = x\n",
        "best = 0\nfor e in range(9):\n    if acc > best:\n        save()\n    best = max(acc, best)\n",
        "for fold in folds:\n    best = 0.0\n    for e in range(9):\n        if acc > best:\n            best = acc\n",
        "for e in x:\n    best = 0\n    for t in cuts:\n        if f1(t) > best:\n            best = f1(t)\n",
        "for e in x:\n    best = 0.0\n    if a > best:\n        best = a\n    if b > best:\n        best = b\n",
        "for e in range(9):\n    best = load_best()\n    if acc > best:\n        best = acc\n",
        "best = 0\nfor e in range(9):\n    if acc <= best:\n        continue\n    best = acc\n",
        "best = 0\nfor e in range(9):\n    is_best = acc > best\n    best = max(acc, best)\n    save(is_best)\n",
        "best = 0\nfor e in range(9):\n    is_best = acc > best\n    if is_best:\n        best = acc\n",
        "best = 0\nfor e in range(9):\n    is_best = acc > best\n    if not is_best:\n        continue\n    best=acc\n",
        "for e in range(9):\n    if e > best_epoch + 3:\n        break\n",
        "best_acc = load()\nif acc > best_acc:\n    print('better')\n",
        "for acc in accs:\n    if acc > state['best']:\n        state['best'] = acc\n",
    ],
)
def test_a_best_that_is_kept(code: str) -> None:
    assert not found(code, "EVL611")


@pytest.mark.parametrize(
    "code",
    [
        LOOP.replace("best, wait = acc, 0\n", "best = acc\n"),
        TRAINER.replace("            self.bad_epochs = 0\n        else", "        else"),
        STOPPER.replace("            self.counter = 0\n", ""),
        STOPPER.replace("            self.counter = 0\n", "")
        + "\n    def load_state_dict(self, state):\n        self.counter = state['counter']\n",
    ],
)
def test_a_patience_that_is_never_reset(code: str) -> None:
    assert found(code, "EVL612")


@pytest.mark.parametrize(
    "code",
    [
        LOOP,
        TRAINER,
        STOPPER,
        "steps = 0\nfor e in range(9):\n    steps += 1\n    if steps > max_wait:\n        break\n",
        "for e in range(9):\n    if e - best_epoch > patience:\n        break\n",
    ],
)
def test_a_patience_that_is_reset(code: str) -> None:
    assert not found(code, "EVL612")


def test_a_best_that_follows_the_latest_result() -> None:
    run = Run(epochs=6)
    accuracies = iter([0.2, 0.5, 0.4, 0.6, 0.3, 0.7])
    for event in run.events:
        if event["kind"] == "held_values":
            value = next(accuracies)
            event["values"] = {"val_acc": value, "best_acc": value}
    code = LOOP.replace("best", "best_acc")
    run.more("source", path="train.py", text="import torch\n" + code)
    assert any(check.status in BAD for check in judge(run.record(), ["EVL611"]).checks)
    for event in run.events:
        if event["kind"] == "held_values":
            event["values"]["best_acc"] = 0.7
    assert not any(check.status in BAD for check in judge(run.record(), ["EVL611"]).checks)


def read_back(run: Run, *, used: bool) -> Run:
    content = {"kind": "dict", "keys": {"model": {"kind": "weights", "tensors": 6, "first": "0.weight", "prefix": ""}}}
    run.more("load", path="best.pt", own=True, weights_only=True, step=24, content=content, loc="train.py:60")
    if used:
        run.more("weights_loaded", model=0, step=24, missing=[], matched=6, given=6, own=6, aliased=0, made_at=None)
    last = [e for e in run.events if e["kind"] == "pass" and not e["trained"]][-1]
    return run.more(**last)


def test_a_checkpoint_that_is_read_and_not_used() -> None:
    assert judge(read_back(Run(), used=False).record(), ["CKP020"]).of(*BAD)
    assert not judge(read_back(Run(), used=True).record(), ["CKP020"]).of(*BAD)


CHOICE = "best = 0\nfor e in range(9):\n    if {} > best:\n        best = {}\n"


@pytest.mark.parametrize("name", ["train_acc", "stats['train_loss']", "self.train_f1", "metrics['train']['acc']"])
def test_a_best_by_training(name: str) -> None:
    assert found(CHOICE.format(name, name), "EVL618")


@pytest.mark.parametrize("name", ["val_acc", "acc", "trained_epochs", "train_time"])
def test_a_best_by_something_else(name: str) -> None:
    assert not found(CHOICE.format(name, name), "EVL618")


def test_a_best_that_is_kept_only_by_resuming() -> None:
    trainer = TRAINER.replace("            self.best_loss = loss\n", "")
    assert found(trainer + "\n    def load(self, state):\n        self.best_loss = state['best']\n", "EVL611")
    assert not found(TRAINER + "\n    def load(self, state):\n        self.best_loss = state['best']\n", "EVL611")


def test_a_comparison_that_is_kept_in_a_variable() -> None:
    code = "best = 0\nfor e in range(9):\n    improved = acc > best\n    if improved:\n        save()\n"
    assert found(code, "EVL611")
    assert not found(code + "        best = acc\n", "EVL611")

"""Sums that are never reset and formulas of metrics: planted bugs, and what looks like them."""

from __future__ import annotations

import textwrap

import pytest

from verify.report import Finding
from verify.rules import accumulators, loss_overlap, metrics
from verify.trace.record import NotSeenError, Record

HEAD = """
import numpy as np
import torch
import torch.nn.functional as F
import torchmetrics
from sklearn import metrics as skm
from sklearn.metrics import confusion_matrix, f1_score, r2_score, recall_score
from torch import nn
"""


def findings(rule, code: str) -> list[Finding]:
    text = HEAD + textwrap.dedent(code)
    try:
        return list(rule(Record([{"kind": "source", "path": "train.py", "text": text}])))
    except NotSeenError:
        return []


LOOP = """
def fit(model, loader, val, epochs):
    {before}
    for epoch in range(epochs):
        {start}
        for x, y in loader:
            loss = step(x, y)
            {grow}
        {end}
"""
LIGHTNING = """
class Task(Base):
    def __init__(self):
        self.outputs = {{"val": []}}
        self.correct = 0.0

    def validation_step(self, batch, index):
        self._collect(batch)

    def _collect(self, batch):
        {collect}

    def on_validation_epoch_end(self):
        {use}
        {clear}
"""
METER = """
class Matrix:
    def __init__(self, n):
        self.n = n
        self.reset()

    def reset(self):
        self.mat = torch.zeros(self.n, self.n)

    def update(self, pred, target):
        self.mat += count(pred, target)

    def accuracy(self):
        return self.mat.diag().sum() / self.mat.sum()


class Trainer:
    def __init__(self):
        self.val_cm = Matrix(10)

    def evaluate(self, loader):
        {start}
        for x, y in loader:
            {update}
        return self.val_cm.accuracy()

    def fit(self):
        for epoch in range(9):
            train()
            self.evaluate(loader)
"""


def loop(before: str = "total = 0.0", start: str = "pass", grow: str = "total += loss.item()", end: str = "") -> str:
    return LOOP.format(before=before, start=start, grow=grow, end=end or "print(total / len(loader))")


def lightning(
    collect: str = "self.outputs['val'].append(batch)",
    use: str = "p, y = (torch.cat(parts) for parts in zip(*self.outputs['val']))",
    clear: str = "pass",
) -> str:
    return LIGHTNING.format(collect=collect, use=use, clear=clear)


def meter(start: str = "pass", update: str = "self.val_cm.update(model(x).argmax(1), y)") -> str:
    return METER.format(start=start, update=update)


NEVER_RESET = [
    loop(),
    loop(grow="total += loss.item() * len(x)", end="print(total / len(loader.dataset))"),
    loop("total, n = 0.0, 0", "pass", "total += loss.item() * len(y); n += len(y)", "print(total / n)"),
    loop("losses = []", "pass", "losses.append(loss.item())", "print(np.mean(losses))"),
    loop("losses = []", "pass", "losses.append(loss.item())", "print(sum(losses) / len(losses))"),
    loop("preds = []", "pass", "preds.append(model(x))", "score(torch.cat(preds))"),
    lightning(),
    lightning("self.correct += (batch > 0).sum().item()", "print(self.correct / 40)"),
    meter(),
]
SET_BACK = [
    loop("pass", "total = 0.0"),
    loop("total = 0.0", "pass", "total += loss.item()", "print(total / len(loader)); total = 0.0"),
    loop(end="history.append(total)"),
    loop("seen = 0", "pass", "seen += len(x)", "print(seen / elapsed)"),
    loop("total = 0", "pass", "total += loss.item()", "print(total / ((epoch + 1) * len(loader)))"),
    loop("total, n = 0, 0", "pass", "total += loss.item()", "pass") + "    print(total / n)\n",
    loop("losses = []", "pass", "losses.append(loss.item())", "print(np.mean(losses[-100:]))"),
    loop("losses = []", "losses.clear()", "losses.append(loss.item())", "print(np.mean(losses))"),
    loop("losses = []", "pass", "losses.append(loss.item())", "plt.plot(losses)"),
    loop("done = 0", "pass", "done += 1", "print(done / total_steps)"),
    loop("tokens = 0", "pass", "tokens += mask.sum().item()", "print(tokens / 3)"),
    lightning(clear="self.outputs['val'].clear()"),
    lightning(clear="self.outputs = {'val': []}"),
    lightning(clear="for parts in self.outputs.values(): parts.clear()"),
    lightning(clear="self.outputs['val'] = []"),
    lightning(collect="self.log('val_loss', batch)", use="pass"),
    lightning("self.correct += batch.sum().item()", "print(self.correct / 40)", "self.correct = 0.0"),
    meter(start="self.val_cm.reset()"),
    meter(start="for m in (self.val_cm,): m.reset()"),
    meter(start="self.val_cm = Matrix(10)"),
    meter().replace("for epoch in range(9):\n            train()\n            ", "if True:\n            "),
    meter().replace("val_cm", "time_meter"),
]


@pytest.mark.parametrize("code", NEVER_RESET)
def test_what_is_never_set_back(code: str) -> None:
    assert findings(accumulators.sum_never_reset, code)


@pytest.mark.parametrize("code", SET_BACK)
def test_what_is_set_back_or_goes_on_for_good(code: str) -> None:
    assert not findings(accumulators.sum_never_reset, code)


SWAPPED = [
    "confusion_matrix(y_pred, y_true)",
    "skm.recall_score(probs.argmax(1), labels, average='macro')",
    "skm.roc_auc_score(y_score=y_test, y_true=scores)",
    "r2_score(np.concatenate(all_preds), np.concatenate(all_targets))",
    "criterion = nn.BCELoss()\nloss = criterion(targets, outputs)",
    "F.binary_cross_entropy_with_logits(target, logits)",
    "def iou(pred, target):\n    return 1\niou(masks_true, model_pred)",
    "def scores(pred, target):\n    return 1\nprint(scores(y_te, predict(x_te)))",
]
IN_ORDER = [
    "confusion_matrix(y_true, y_pred)",
    "skm.accuracy_score(preds, labels)",
    "f1_score(preds, labels, average='macro')",
    "confusion_matrix(a, b)",
    "confusion_matrix(labels_pred, pred_labels)",
    "criterion = nn.BCELoss()\nloss = criterion(outputs, targets)",
    "nn.MSELoss()(targets, outputs)",
    "torchmetrics.functional.accuracy(preds, target)",
    "F.kl_div(target_log_prob, pred_prob)",
    "def far(pred, target):\n    return 1\nboth = far(pred, target) + far(target, pred)",
    "class A:\n    def update(self, pred, target): ...\nclass B:\n    def update(self, target, pred): ...\n"
    "m.update(target, pred)",
]


@pytest.mark.parametrize("code", SWAPPED)
def test_arguments_that_are_swapped(code: str) -> None:
    assert findings(metrics.metric_arguments_swapped, code)


@pytest.mark.parametrize("code", IN_ORDER)
def test_arguments_in_order(code: str) -> None:
    assert not findings(metrics.metric_arguments_swapped, code)


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("mae = (pred - y).mean().abs()", True),
        ("log({f'{stage}_mae': error.mean().abs() * std})", True),
        ("def mean_absolute_error(a, b):\n    return abs(np.mean(a - b))", True),
        ("self.log('val_mae', abs((pred - y).mean()))", True),
        ("rmse = (pred - y).mean().pow(2).sqrt()", True),
        ("mae = (pred - y).abs().mean()", False),
        ("mae = np.mean(np.abs(a - b))", False),
        ("bias = (pred - y).mean().abs()", False),
        ("rmse = ((pred - y) ** 2).mean() ** 0.5", False),
        ("rmse = (errors ** 2).mean().sqrt()", False),
        ("mae = abs(F.l1_loss(a, b).mean())", False),
        ("small = (x.mean().abs() < 1e-3)", False),
    ],
)
def test_errors_that_cancel(code: str, wrong: bool) -> None:
    assert bool(findings(metrics.errors_cancel, code)) is wrong


SKLEARN = "cm = confusion_matrix(y_true, y_pred)\n"
COUNTED = """
class Matrix:
    def update(self, target, pred):
        self.mat += torch.bincount({index}, minlength=n * n).view(n, n)

    def recall(self):
        return self.mat.diag() / self.mat.sum({axis})
"""


FUNCTIONS = """
def count(y_true, y_pred, n):
    cm = np.zeros((n, n))
    np.add.at(cm, {index}, 1)
    return cm

def per_class(cm):
    tp = np.diag(cm).astype(float)
    recall = tp / np.maximum(cm.sum(axis=1), 1)
    return recall

per_class(count(y, p, 3))
"""


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        (FUNCTIONS.format(index="(y_pred, y_true)"), True),
        (FUNCTIONS.format(index="(y_true, y_pred)"), False),
        (FUNCTIONS.format(index="(a, b)"), False),
        (FUNCTIONS.format(index="(y_pred, y_true)").replace("per_class(count(y, p, 3))", "per_class(read())"), False),
        (SKLEARN + "recall = cm.diagonal() / cm.sum(axis=0)", True),
        (SKLEARN + "precision = np.diag(cm) / np.sum(cm, axis=1)", True),
        (SKLEARN + "recall = np.diag(cm) / np.sum(cm, axis=1)", False),
        (SKLEARN + "precision = np.diag(cm) / cm.sum(0)", False),
        (SKLEARN + "share = np.diag(cm) / cm.sum(0)", False),
        ("recall = cm.diagonal() / cm.sum(axis=0)", False),
        (COUNTED.format(index="target * n + pred", axis="dim=0"), True),
        (COUNTED.format(index="target * n + pred", axis="1"), False),
        (COUNTED.format(index="pred * n + target", axis="dim=0"), False),
        (COUNTED.format(index="pred * n + target", axis="dim=1"), True),
    ],
)
def test_shares_over_an_axis(code: str, wrong: bool) -> None:
    assert bool(findings(metrics.share_over_wrong_axis, code)) is wrong


BINARY = "criterion = nn.BCEWithLogitsLoss()\n"


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        (BINARY + "logits = model(x)\npred = logits > 0.5", True),
        (BINARY + "out = model(x)\nloss = criterion(out, y)\npred = (out > 0.5).float()", True),
        (
            BINARY + "def score(logits, thresholds):\n    return logits >= thresholds\nscore(a, torch.full((3,), 0.5))",
            True,
        ),
        (BINARY + "logits = model(x)\npred = logits.sigmoid() > 0.5", False),
        (BINARY + "logits = model(x)\npred = logits > 0", False),
        (BINARY + "logits = torch.sigmoid(model(x))\npred = logits > 0.5", False),
        (BINARY + "out = model(x)\nloss = criterion(out, y)\nout = out.sigmoid()\npred = out > 0.5", False),
        (BINARY + "def score(logits, threshold=0.0):\n    return logits > threshold", False),
        ("logits = model(x)\npred = logits > 0.5", False),
        (BINARY + "probs = model.predict_proba(x)\npred = probs > 0.5", False),
    ],
)
def test_thresholds_on_logits(code: str, wrong: bool) -> None:
    assert bool(findings(metrics.threshold_on_logits, code)) is wrong


DICE = """
class DiceLoss(nn.Module):
    def forward(self, logits, target):
        p = logits.softmax(1)
        dice = (2 * (p * target).sum() + 1.0) / (p.sum() + target.sum() + 1.0)
        return {}


loss = {}
"""
COEFFICIENT = "def dice_coeff(p, t):\n    return 2 * (p * t).sum() / (p.sum() + t.sum())\n"


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        (DICE.format("dice.mean()", "ce(x, y) + DiceLoss()(x, y)"), True),
        (COEFFICIENT + "def dice_loss(p, t):\n    return dice_coeff(p, t)\n", True),
        (DICE.format("1 - dice.mean()", "DiceLoss()(x, y)"), False),
        (DICE.format("-dice.mean()", "DiceLoss()(x, y)"), False),
        (DICE.format("-torch.log(dice)", "DiceLoss()(x, y)"), False),
        (DICE.format("dice.mean()", "1 - DiceLoss()(x, y)"), False),
        (COEFFICIENT + "loss = 1 - dice_coeff(p, t)\n", False),
        (COEFFICIENT + "def dice_loss(p, t):\n    return 1 - dice_coeff(p, t)\n", False),
        (COEFFICIENT, False),
    ],
)
def test_an_overlap_that_is_minimised(code: str, wrong: bool) -> None:
    assert bool(findings(loss_overlap.overlap_minimised, code)) is wrong

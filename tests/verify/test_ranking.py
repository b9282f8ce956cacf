"""Areas under curves: decisions in place of scores, and what looks like them."""

from __future__ import annotations

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge

HEAD = "import numpy as np\nimport torch\nfrom sklearn import metrics as M\nfrom sklearn.metrics import roc_auc_score\n"
COLLECTED = """
def evaluate(model, loader):
    scores, labels = [], []
    for x, y in loader:
        out = model(x)
        scores.extend({what}.cpu().tolist())
        labels.append(y)
    scores = np.concatenate(scores)
    return roc_auc_score(labels, scores)
"""
FUNCTION = """
def area(y, p):
    return roc_auc_score(np.eye(3)[y], p, average="macro")

def summarise(y, probs):
    return {{"auc": area(y, {what})}}
"""


def found(code: str) -> bool:
    run = Run().more("source", path="train.py", text=HEAD + code)
    return any(check.status in (Status.FAIL, Status.WARN) for check in judge(run.record(), ["EVL627"]).checks)


@pytest.mark.parametrize(
    "code",
    [
        "roc_auc_score(y, logits.argmax(1))\n",
        "M.average_precision_score(y, y_score=(probs > 0.5).astype(int))\n",
        "pred = torch.argmax(out, dim=1).cpu().numpy()\nroc_auc_score(y, pred)\n",
        "_, pred = torch.max(out, 1)\nroc_auc_score(y, pred)\n",
        "pred = out.max(1)[1]\nroc_auc_score(y, pred.numpy())\n",
        "roc_auc_score(y, np.round(probs))\n",
        "M.roc_curve(y, np.where(probs > t, 1, 0))\n",
        COLLECTED.format(what="out.argmax(1)"),
        FUNCTION.format(what="np.eye(3)[probs.argmax(1)]"),
    ],
)
def test_decisions_are_ranked(code: str) -> None:
    assert found(code)


@pytest.mark.parametrize(
    "code",
    [
        "roc_auc_score(y, probs[:, 1])\n",
        "roc_auc_score(y > 0, probs)\n",
        "roc_auc_score(y, np.round(probs, 4))\n",
        "roc_auc_score(y, probs.round(decimals=3))\n",
        "conf, pred = torch.max(out, 1)\nroc_auc_score(pred == y, conf)\n",
        "M.accuracy_score(y, out.argmax(1))\n",
        "pred = out.argmax(1)\npred = out[:, 1]\nroc_auc_score(y, pred)\n",
        COLLECTED.format(what="out.softmax(1)[:, 1]"),
        FUNCTION.format(what="probs"),
        FUNCTION.format(what="probs") + "area(y, probs.argmax(1))\narea(y, probs)\n",
    ],
)
def test_scores_are_ranked(code: str) -> None:
    assert not found(code)

"""Measures of rankings that get decisions, and marks of missing values: planted bugs and look-alikes."""

import textwrap

import pytest

from verify.rules.missing_values import marked_after_filling
from verify.rules.ranking import ranking_of_decisions
from verify.trace.record import Record

HEAD = """\
import numpy as np
import torch
from sklearn import metrics
from sklearn.metrics import average_precision_score, roc_auc_score

"""


def found(rule, code: str) -> int:
    text = HEAD + textwrap.dedent(code)
    return len(list(rule(Record([{"kind": "source", "path": "train.py", "text": text}]))))


@pytest.mark.parametrize(
    "code",
    [
        "auc = roc_auc_score(y, p.round())",
        "auc = roc_auc_score(y[done], np.round(oof[done]))",
        "auc = metrics.roc_auc_score(y, (p > 0.5).astype(int))",
        "auc = average_precision_score(y_true=y, y_score=logits.argmax(1).cpu().numpy())",
        "pred = (p >= threshold).long()\nauc = roc_auc_score(y, pred)",
        "preds = []\nfor x in data:\n    preds.extend(model(x).argmax(1).tolist())\na = roc_auc_score(y, preds)",
        "auc = roc_auc_score(y, np.where(p > 0.5, 1, 0))",
    ],
)
def test_decisions_are_no_scores(code: str) -> None:
    assert found(ranking_of_decisions, code) == 1


@pytest.mark.parametrize(
    "code",
    [
        "auc = roc_auc_score(y, p)",
        "auc = roc_auc_score(y > 0.5, p)",
        "auc = roc_auc_score(y, p.round(4))",
        "auc = roc_auc_score(y, np.round(p, decimals=3))",
        "acc = metrics.accuracy_score(y, p.round())",
        "auc = roc_auc_score(y, p[keep > 0])",
        "preds = []\nfor x in data:\n    preds.append(model(x).sigmoid())\nauc = roc_auc_score(y, torch.cat(preds))",
        "p = model(x)\nif hard:\n    p = p.round()\nauc = roc_auc_score(y, p)",
        "auc = roc_auc_score(y, p * (x > 0))",
    ],
)
def test_scores_pass(code: str) -> None:
    assert found(ranking_of_decisions, code) == 0


@pytest.mark.parametrize(
    "code",
    [
        "x = np.where(np.isnan(x), median, x)\nflags = np.isnan(x)[:, [5, 6]].astype(np.float32)",
        "def f(x):\n    x = np.nan_to_num(x)\n    return np.hstack([x, np.isnan(x)])",
        "df = df.fillna(0)\ndf['no_age'] = df['age'].isna().astype(int)",
        "df['age'] = df['age'].fillna(30)\ndf['no_age'] = df['age'].isnull().astype(int)",
        "x = torch.nan_to_num(x)\ny = x * 2\nmask = torch.isnan(x).float()",
    ],
)
def test_marks_come_too_late(code: str) -> None:
    assert found(marked_after_filling, code) == 1


@pytest.mark.parametrize(
    "code",
    [
        "flags = np.isnan(x)\nx = np.where(np.isnan(x), median, x)",
        "x = np.where(np.isnan(x), median, x)\nassert not np.isnan(x).any()",
        "x = np.nan_to_num(x)\nleft = np.isnan(x).sum()\nprint(np.isnan(x))",
        "x = np.nan_to_num(x)\nx = load()\nflags = np.isnan(x)",
        "df['age'] = df['age'].fillna(30)\ndf['no_fare'] = df['fare'].isna()",
        "df['age'] = df['age'].fillna(method='ffill')\nstart = df['age'].isna()",
        "df = df.fillna(medians)\ndf['no_age'] = df['age'].isna().astype(int)",
        "y = np.nan_to_num(x)\nflags = np.isnan(x)",
        "x = np.where(np.isnan(x), median, x)\nx = np.where(np.isnan(x), 0, x)",
        "x = np.where(np.isnan(x), median, x)\nx = torch.where(np.isnan(x), 0, x)",
    ],
)
def test_marks_in_time_pass(code: str) -> None:
    assert found(marked_after_filling, code) == 0

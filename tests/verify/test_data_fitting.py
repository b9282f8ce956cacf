"""Scalers and statistics of each split: planted bugs, and what looks like them."""

from __future__ import annotations

import textwrap

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge

HEAD = """\
import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.preprocessing import LabelEncoder, StandardScaler
"""


def found(code: str, rule: str) -> Status | None:
    run = Run().more("source", path="train.py", text=HEAD + textwrap.dedent(code))
    bad = judge(run.record(), [rule]).of(Status.FAIL, Status.WARN)
    return bad[0].status if bad else None


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("s = StandardScaler()\na = s.fit_transform(x_train)\nb = s.fit_transform(x_val)", Status.FAIL),
        ("s = StandardScaler()\na = s.fit_transform(x[train_mask])\nb = s.fit_transform(x[test_mask])", Status.FAIL),
        ("s = StandardScaler().fit(x_train)\na = StandardScaler().fit(x_test)", Status.WARN),
        (
            "class Data:\n    def setup(self):\n        s = StandardScaler()\n        self.train = s.fit_transform(a)\n"
            "        self.test = s.fit_transform(b)",
            Status.FAIL,
        ),
        ("e = LabelEncoder()\na = e.fit_transform(y_train)\nb = e.fit_transform(y_test)", Status.WARN),
        ("s = MyScaler()\na = s.fit_transform(x_tr)\nb = s.fit_transform(x_te)", Status.FAIL),
    ],
)
def test_fitted_again(code: str, status: Status) -> None:
    assert found(code, "DAT224") is status


@pytest.mark.parametrize(
    "code",
    [
        "s = StandardScaler()\na = s.fit_transform(x_train)\nb = s.transform(x_val)",
        "s = StandardScaler()\na = s.fit_transform(x_test)",
        "a = TSNE(2).fit_transform(train_feats)\nb = TSNE(2).fit_transform(test_feats)",
        "p = PCA(n_components=2)\na = p.fit_transform(train_feats)\nb = p.fit_transform(test_feats)",
        "def f(train):\n    s = StandardScaler()\n    if train:\n        x = s.fit_transform(x_train)\n"
        "    else:\n        x = s.fit_transform(x_test)",
        "s, t = StandardScaler(), StandardScaler()\na = s.fit_transform(x_train)\nb = t.fit_transform(y_train)",
        "trainer.fit(train_loader, val_loader)\ntrainer.fit(val_loader)",
        "s = StandardScaler()\ns.fit(np.concatenate([x_train, x_val]))",
    ],
)
def test_fitted_once(code: str) -> None:
    assert found(code, "DAT224") is None


@pytest.mark.parametrize(
    "code",
    [
        "a = (x_train - x_train.mean(0)) / x_train.std(0)\nb = (x_test - x_test.mean(0)) / x_test.std(0)",
        "m, s = x_tr.mean(axis=0), x_tr.std(axis=0)\nx_tr = (x_tr - m) / s\n"
        "m2, s2 = x_te.mean(axis=0), x_te.std(axis=0) + 1e-8\nx_te = (x_te - m2) / s2",
        "a, b = ((f - f.mean(dim=0)) / f.std(dim=0).clamp(min=1e-4) for f in (f_train, f_test))",
        "for x in [x_train, x_val]:\n    parts.append((x - np.mean(x)) / np.std(x))",
        "def load(split):\n    x = np.load(split + '.npy')\n    return (x - x.mean()) / x.std()\n"
        "a, b = load('train'), load('val')",
        "def scale(x):\n    return (x - x.mean(0)) / (x.std(0) + 1e-6)\na, b = scale(x_train), scale(x_test)",
        "class D:\n    def __init__(self, x):\n        self.x = (x - x.mean(0)) / x.std(0)\n"
        "a, b = D(x_train), D(x_test)",
    ],
)
def test_own_statistics(code: str) -> None:
    assert found(code, "DAT225") is Status.WARN


@pytest.mark.parametrize(
    "code",
    [
        "m, s = x_train.mean(0), x_train.std(0)\na, b = ((x - m) / s for x in (x_train, x_test))",
        "a, b = ((x - x.mean((1, 2))) / x.std((1, 2)) for x in (x_train, x_test))",
        "def scale(x):\n    return (x - x.mean(0)) / x.std(0)\na, b = scale(train_logits), scale(test_logits)",
        "z = (val_scores - val_scores.mean()) / val_scores.std()",
        "class D:\n    def __getitem__(self, i):\n        x = self.x[i]\n        return (x - x.mean()) / x.std()\n",
        "def load(split):\n    x = np.load('all.npy')\n    x = (x - x.mean(0)) / x.std(0)\n    return x[index[split]]\n"
        "a, b = load('train'), load('val')",
        "def load(split):\n    out = []\n    for f in files[split]:\n        x = np.load(f)\n"
        "        out.append((x - x.mean()) / x.std())\n    return out\na, b = load('train'), load('val')",
        "def one(x):\n    return (x - x.mean()) / x.std()\na = [one(x_train[i]) for i in range(9)]\n"
        "b = [one(x_test[i]) for i in range(9)]",
        "def load(x, train):\n    if train:\n        x = (x - x.mean(0)) / x.std(0)\n    return x\n"
        "a, b = load(x_train, True), load(x_test, False)",
    ],
)
def test_statistics_of_training(code: str) -> None:
    assert found(code, "DAT225") is None

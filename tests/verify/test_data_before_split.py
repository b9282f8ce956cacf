"""What is fitted on all samples before some are set aside: planted bugs, and what looks like them."""

from __future__ import annotations

import textwrap

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge

HEAD = """\
import numpy as np
import torch
from imblearn.over_sampling import SMOTE
from sklearn.decomposition import PCA
from sklearn.feature_selection import SelectKBest
from sklearn.impute import SimpleImputer
from sklearn.model_selection import KFold, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import LabelEncoder, StandardScaler, TargetEncoder
from torch.utils.data import TensorDataset, random_split
X, y = load()
"""
SPLIT = "X_train, X_test, y_train, y_test = train_test_split(X, y, random_state=0)\n"


def found(code: str) -> Status | None:
    run = Run().more("source", path="train.py", text=HEAD + textwrap.dedent(code))
    bad = judge(run.record(), ["DAT250"]).of(Status.FAIL, Status.WARN)
    return bad[0].status if bad else None


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("X = StandardScaler().fit_transform(X)\n" + SPLIT, Status.WARN),
        ("scaler = StandardScaler()\nscaler.fit(X)\nX = scaler.transform(X)\n" + SPLIT, Status.WARN),
        ("X = SimpleImputer().fit_transform(X)\nX = X.astype('float32')\n" + SPLIT, Status.WARN),
        ("X = (X - X.mean(0)) / X.std(0)\n" + SPLIT, Status.WARN),
        ("mean = X.mean(axis=0)\nstd = X.std(axis=0)\nX = (X - mean) / (std + 1e-8)\n" + SPLIT, Status.WARN),
        ("mean, std = np.mean(X, axis=0), np.std(X, axis=0)\nX = (X - mean) / std\n" + SPLIT, Status.WARN),
        ("mean, std = X.mean(0), X.std(0)\ntrain = Data(X[train_idx], mean, std)\n"
         "val = Data(X[val_idx], mean, std)\n", Status.WARN),
        ("def load_all(x, train, val):\n    mean, std = x.mean(0), x.std(0)\n"
         "    return Data(x[train], mean, std), Data(x[val], mean, std)\n", Status.WARN),
        ("Z = PCA(20).fit_transform(X)\nt = torch.tensor(Z)\nd = TensorDataset(t, torch.tensor(y))\n"
         "train, val = random_split(d, [0.8, 0.2])\n", Status.WARN),
        ("X = SelectKBest(k=20).fit_transform(X, y)\n" + SPLIT, Status.FAIL),
        ("X = TargetEncoder().fit_transform(X, y)\n" + SPLIT, Status.FAIL),
        ("X, y = SMOTE().fit_resample(X, y)\n" + SPLIT, Status.FAIL),
        ("X = StandardScaler().fit_transform(X)\nfor train, test in KFold(5).split(X):\n"
         "    a, b = X[train], X[test]\n", Status.WARN),
    ],
)  # fmt: skip
def test_fitted_on_all_samples(code: str, status: Status) -> None:
    assert found(code) is status


@pytest.mark.parametrize(
    "code",
    [
        SPLIT
        + "scaler = StandardScaler()\nX_train = scaler.fit_transform(X_train)\nX_test = scaler.transform(X_test)\n",
        SPLIT + "mean, std = X_train.mean(0), X_train.std(0)\nX_train = (X_train - mean) / std\n",
        SPLIT + "X_train, y_train = SMOTE().fit_resample(X_train, y_train)\n",
        "model = make_pipeline(StandardScaler(), net)\n" + SPLIT,
        "y = LabelEncoder().fit_transform(y)\n" + SPLIT,
        "Z = PCA(2).fit_transform(X)\nplot(Z)\n" + SPLIT,
        "for train, test in KFold(5).split(X):\n    s = StandardScaler().fit(X[train])\n    a = s.transform(X[test])",
        "X = X / 255.0\n" + SPLIT,
        "X = (X - X.mean()) / X.std()\n" + SPLIT,
        "X = (X - np.mean(X)) / np.std(X)\n" + SPLIT,
        "X = (X - X.mean(keepdims=True)) / X.std(keepdims=True)\n" + SPLIT,
        "std = np.std(published, axis=0)\nX = X / std\na, b = train_test_split(np.asarray(X))\n",
        "mean, std = X.mean(), X.std()\na, b = Data(X[train_idx], mean, std), Data(X[val_idx], mean, std)\n",
        "X = (X - 0.1307) / 0.3081\n" + SPLIT,
        "X = (X - X.mean(1, keepdims=True)) / X.std(1, keepdims=True)\n" + SPLIT,
        "X = StandardScaler().fit_transform(X)\nevaluate(net, X)\n",
        "print(X.mean(), X.std())\n" + SPLIT,
    ],
)
def test_fitted_on_a_part_or_on_nothing(code: str) -> None:
    assert found(code) is None

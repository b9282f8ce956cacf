"""Codes of each split, and random numbers that are drawn once: planted bugs, and what looks like them."""

from __future__ import annotations

import textwrap

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge

HEAD = """\
import random
import numpy as np
import pandas as pd
import torch
from sklearn.preprocessing import LabelEncoder, OrdinalEncoder
"""
ENCODE = """
def encode(values):
    table = {}
    return [table.setdefault(v, len(table)) for v in values]
"""
DATA = """
class Data:
    def __init__(self, x, shift, augment):
        self.x, self.shift, self.augment = x, shift, augment
        DRAW

    def __getitem__(self, i):
        x = self.x[i]
        if self.augment:
            USE
        return x
"""


def found(code: str, rule: str) -> bool:
    run = Run().more("source", path="train.py", text=HEAD + textwrap.dedent(code))
    return bool(judge(run.record(), [rule]).of(Status.FAIL, Status.WARN))


@pytest.mark.parametrize(
    "code",
    [
        ENCODE
        + "parts = {'train': a, 'val': b}\nfor name, rows in parts.items():\n    codes = [encode(rows[j]) for j in c]",
        ENCODE + "a, b = encode(x_train), encode(x_test)",
        "for df in (train_df, test_df):\n    df['city'] = pd.factorize(df['city'])[0]",
        "def load(split):\n    df = pd.read_csv(split + '.csv')\n    for c in COLS:\n"
        "        df[c] = df[c].astype('category').cat.codes\n    return df\na, b = load('train'), load('val')",
        "class D:\n    def __init__(self, df):\n        self.table = {c: i for i, c in enumerate(df.city.unique())}\n"
        "a, b = D(train_df), D(val_df)",
        "def prepare(df):\n    return LabelEncoder().fit_transform(df['c'])\na, b = prepare(train), prepare(test)",
    ],
)
def test_codes_of_each_split(code: str) -> None:
    assert found(code, "DAT230")


@pytest.mark.parametrize(
    "code",
    [
        ENCODE + "codes = encode(everything)\na, b = codes[train_idx], codes[test_idx]",
        "table = {c: i for i, c in enumerate(train_df.city.unique())}\n"
        "for df in (train_df, test_df):\n    df['city'] = df['city'].map(table)",
        "def load(split):\n    df = pd.read_csv('all.csv')\n    df['c'] = pd.factorize(df['c'])[0]\n"
        "    return df[df.split == split]\na, b = load('train'), load('val')",
        "class D:\n    def __init__(self, root, split):\n        self.classes = sorted(os.listdir(root + split))\n"
        "        self.table = {c: i for i, c in enumerate(self.classes)}\na, b = D(r, 'train'), D(r, 'val')",
        "class D:\n    def __init__(self, df, table=None):\n        if table is None:\n"
        "            table = {c: i for i, c in enumerate(df.city.unique())}\n        self.table = table\n"
        "a = D(train_df)\nb = D(val_df, a.table)",
        "vocab = {}\ndef read(split):\n    return [vocab.setdefault(w, len(vocab)) for w in open(split)]\n"
        "a, b = read('train'), read('val')",
    ],
)
def test_one_numbering(code: str) -> None:
    assert not found(code, "DAT230")


@pytest.mark.parametrize(
    ("draw", "use"),
    [
        (
            "self.offset = torch.randint(0, 2 * shift + 1, (2,)).tolist()",
            "dy, dx = self.offset\n            x = x[dy:, dx:]",
        ),
        ("self.flip = random.random() < 0.5", "x = x.flip(-1) if self.flip else x"),
        ("self.gain = np.random.uniform(0.8, 1.2)", "x = x * self.gain"),
        ("self.gain = torch.rand(1)", "x = x * self.gain"),
    ],
)
def test_drawn_once(draw: str, use: str) -> None:
    assert found(DATA.replace("DRAW", draw).replace("USE", use), "DAT229")


@pytest.mark.parametrize(
    ("draw", "use"),
    [
        ("self.seed = random.randint(0, 99)", "x = x + torch.Generator().manual_seed(self.seed)"),
        ("self.gains = torch.rand(len(x))", "x = x * self.gains[i]"),
        ("self.gains = np.random.uniform(0.8, 1.2, size=len(x))", "x = x * self.gains[i]"),
        ("self.noise = [random.random() for _ in x]", "x = x + self.noise[i]"),
        ("self.order = np.random.permutation(64)", "x = x[self.order]"),
        ("self.rng = np.random.default_rng(0)", "x = x + self.rng.normal()"),
        ("pass", "x = x + random.random()"),
    ],
)
def test_drawn_for_each_item(draw: str, use: str) -> None:
    assert not found(DATA.replace("DRAW", draw).replace("USE", use), "DAT229")


def test_drawn_once_and_read_in_a_helper() -> None:
    code = """
    class Digits:
        def __init__(self, x, jitter=0):
            self.x, self.jitter = x, jitter
            self.offset = torch.randint(-jitter, jitter + 1, (2,)).tolist()

        def shift(self):
            if self.jitter == 0:
                return 0, 0
            return self.offset

        def __getitem__(self, i):
            return torch.roll(self.x[i], self.shift(), (-2, -1))
    """
    assert found(code, "DAT229")
    assert not found(code.replace("self.offset = ", "self.size = "), "DAT229")
    assert not found(code.replace("return self.offset", "return torch.rand(2)"), "DAT229")


def test_a_task_that_is_drawn() -> None:
    code = """
    class Rotated:
        def __init__(self, x):
            self.x, self.angle = x, 0
            self.angle = random.uniform(0, 180)

        def __getitem__(self, i):
            return rotate(self.x[i], self.angle)
    """
    assert not found(code, "DAT229")

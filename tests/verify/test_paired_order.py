"""Results of a loader beside values in the order of its data set, with a loader that shuffles and one that does not."""

from __future__ import annotations

import pytest

from tests.verify.run_records import Run
from verify.report import Status
from verify.watch import judge

# The evaluating loader of the run is made in line 5.
LOADERS = """import torch
from torch.utils.data import DataLoader
def loaders(config):
    train = DataLoader(a, shuffle=True)
    val = DataLoader(b)
    return train, val

"""
BY_FUNCTION = LOADERS + (
    "def evaluate(model, loader):\n"
    "    y, p = predict(model, loader)\n"
    "    return by_patient(loader.dataset.patients, y, p)\n\n"
    "train, val = loaders(config)\n"
    "evaluate(model, val)\n"
)
BY_LIST = LOADERS + (
    "def submit(model, loader):\n"
    "    out = []\n"
    "    for x, _ in loader:\n"
    "        out.append(model(x).argmax(1))\n"
    "    return dict(zip(loader.dataset.paths, out))\n\n"
    "train, val = loaders(config)\n"
    "submit(model, val)\n"
)


def found(code: str, *, shuffle: bool = True) -> bool:
    run = Run().put("loader", lambda e: e["id"] == 1, shuffle=shuffle, loc="train.py:5")
    run.more("source", path="train.py", text=code)
    return any(check.status in (Status.FAIL, Status.WARN) for check in judge(run.record(), ["EVL628"]).checks)


@pytest.mark.parametrize("code", [BY_FUNCTION, BY_LIST])
def test_shuffled_results_beside_the_data_set(code: str) -> None:
    assert found(code)


@pytest.mark.parametrize(
    ("code", "shuffle"),
    [
        (BY_FUNCTION, False),
        (BY_LIST, False),
        (BY_FUNCTION.replace("evaluate(model, val)", "evaluate(model, train)"), True),
        (BY_FUNCTION.replace("loader.dataset.patients, y, p", "patients, y, p"), True),
        (BY_FUNCTION.replace("dataset.patients", "dataset.classes"), True),
        (BY_FUNCTION.replace("loader.dataset.patients, y, p", "len(loader.dataset.patients), y"), True),
        (BY_LIST.replace("zip(loader.dataset.paths, out)", "zip(loader.dataset.paths, names)"), True),
    ],
)
def test_results_in_order_and_values_about_the_whole(code: str, shuffle: bool) -> None:
    assert not found(code, shuffle=shuffle)

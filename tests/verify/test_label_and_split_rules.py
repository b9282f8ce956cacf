"""Splits that are called validation and hold training samples, batches cut by hand, masks, labels without inputs."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset, TensorDataset

from tests.verify.test_data_rules import CUT, LABELS, PICTURES, Pictures, Run, augmented, loader
from verify.report import Finding, Status
from verify.rules import data as rules
from verify.trace.child.data_probes import probe_data
from verify.trace.child.names import role, role_of_all
from verify.trace.record import NotSeenError, Record


def found(function: Any, record: Record) -> list[Finding]:
    try:
        return [made for made in function(record) if made.status is not Status.PASS]
    except NotSeenError:
        return []


# Names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("val_loader", "eval"),
        ("loaders.val", "eval"),
        ("self.testLoader", "eval"),
        ("X_test", "eval"),
        ("xte", "eval"),
        ("train_eval_loader", "train"),
        ("validation_data.train", "train"),
        ("x_tr", "train"),
        ("values", ""),
        ("latest", ""),
        ("device", ""),
        ("fixed_loader", ""),
        ("teacher", ""),
    ],
)
def test_role_of_a_name(name: str, expected: str) -> None:
    assert role(name) == expected


def test_names_that_disagree_say_nothing() -> None:
    assert role_of_all(["loader", "val_loader"]) == "eval"
    assert role_of_all(["train_loader", "val_loader"]) == ""


# DAT207: contained in training, next to a clean split


def overlap_record(names: list[str], source: str = "") -> Record:
    view = {"loc": "data.py:3", "names": names, "is_train_loader": False}
    evals = [{"id": 1, **view}, {"id": 2, "loc": "data.py:9", "names": ["test_loader"], "is_train_loader": False}]
    whole = {"method": "index", "n": 100, "common": 100, "share": 1.0}
    clean = {"method": "index", "n": 100, "common": 0, "share": 0.0}
    result = {"train": {"id": 0}, "evals": evals, "overlap": [whole, clean]}
    code = {"kind": "source", "path": "data.py", "text": source}
    return Record([code, {"kind": "probe", "name": "data", "result": result}])


@pytest.mark.parametrize(
    "record",
    [
        overlap_record(["loader", "val_loader"]),
        overlap_record([], "a = 1\nb = 2\nvalid_dl = DataLoader(seen)\n"),
        overlap_record([], "def val_dataloader(self):\n    # as in Lightning\n    return DataLoader(seen)\n"),
        overlap_record([], "loaders = {\n  'train': DataLoader(a),\n  'val': DataLoader(a)}\n"),
        overlap_record([], "a = 1\nfit_loader, val_loader = (DataLoader(b),\n  DataLoader(a))\n"),
    ],
    ids=["held", "assigned", "returned", "key", "several"],
)
def test_validation_within_training_fails_next_to_a_clean_test(record: Record) -> None:
    (finding,) = found(rules.splits_overlap, record)
    assert finding.status is Status.FAIL
    assert finding.location == "data.py:3"


@pytest.mark.parametrize(
    "record",
    [
        overlap_record(["fixed_loader"]),
        overlap_record(["train_eval_loader"]),
        overlap_record(["eval_loaders.1"]),
        overlap_record(["train_loader", "val_loader"]),
        overlap_record([]),
        overlap_record([], "a = 1\nb = 2\ntrain_acc = DataLoader(seen)\n"),
        overlap_record([], "not python at all ("),
    ],
)
def test_accuracy_on_training_data_next_to_a_clean_test_is_silent(record: Record) -> None:
    assert not found(rules.splits_overlap, record)


def test_live_loader_is_found_under_its_name() -> None:
    train_set = Pictures(None, 0, CUT)
    val_loader = loader(Pictures(None, 0, 300))
    test_loader = loader(Pictures(None, CUT))
    record = Run(loader(train_set, shuffle=True), [val_loader, test_loader]).record()
    assert "val_loader" in record.probe("data")["evals"][0]["names"]
    (finding,) = found(rules.splits_overlap, record)
    assert finding.status is Status.FAIL


# Batches that are cut by hand


def hand_cut_probe(x: torch.Tensor, y: torch.Tensor) -> dict[str, Any]:
    """What is seen of a batch; the splits are what the caller holds."""
    capture = SimpleNamespace(
        train=None, evals=[], num_classes=10, image_like=True, model=None,
        inputs=((x,), {}), targets=y, deadline=time.monotonic() + 30,
    )  # fmt: skip
    return probe_data(capture)


def hand_cut_record(x: torch.Tensor, y: torch.Tensor, *events: Any) -> Record:
    return Record([{"kind": "probe", "name": "data", "result": hand_cut_probe(x, y)}, *events])


def rows(count: int) -> torch.Tensor:
    return torch.randperm(count, generator=torch.Generator().manual_seed(1))[:64]


def test_slices_that_overlap() -> None:
    x_train, y_train = PICTURES[:1200], LABELS[:1200]
    x_val = PICTURES[1000:1400]
    batch = rows(1200)
    (finding,) = found(rules.splits_overlap, hand_cut_record(x_train[batch], y_train[batch]))
    assert finding.status is Status.FAIL
    assert f"50.0% of {len(x_val)}" in finding.measured


def test_slices_apart_are_silent() -> None:
    train, val = (PICTURES[:1000], LABELS[:1000]), {"x": PICTURES[1000:1400], "y": LABELS[1000:1400]}
    batch = rows(1000)
    record = hand_cut_record(train[0][batch], train[1][batch])
    assert record.probe("data")["evals"][0]["n"] == len(val["x"])
    assert not found(rules.splits_overlap, record)
    assert not found(rules.class_missing, record)
    assert not found(rules.labels_unrelated, record)


def test_fold_that_is_left_out_by_index_is_silent() -> None:
    data, labels = PICTURES[:1200], LABELS[:1200]
    x_val, y_val = data[900:], labels[900:]
    batch = rows(900)
    record = hand_cut_record(data[batch], labels[batch])
    assert len(x_val) == len(y_val) == record.probe("data")["overlap"][0]["n"]
    assert not found(rules.splits_overlap, record)


def test_batch_of_unknown_origin_is_no_split() -> None:
    x_test = PICTURES[:200]
    record = hand_cut_record(torch.rand(64, 3, 16, 16), LABELS[:64])
    assert len(x_test) == 200
    assert not found(rules.splits_overlap, record)


def test_class_that_training_hardly_has() -> None:
    kept = (LABELS != 9) | (torch.arange(len(LABELS)) >= 1000)
    pictures, labels = PICTURES[kept], LABELS[kept]
    x_train, y_train, x_val, y_val = pictures[:1000], labels[:1000], pictures[1000:], labels[1000:]
    batch = rows(1000)
    (finding,) = found(rules.class_missing, hand_cut_record(x_train[batch], y_train[batch]))
    assert finding.measured.startswith("class 9: ")
    assert len(x_val) == len(y_val)


def tail_events(sizes: list[int]) -> list[dict[str, Any]]:
    """Two evaluations of batches of these sizes, each after a training step."""
    events: list[dict[str, Any]] = []
    for _ in range(2):
        events.append({"kind": "backward"})
        for n in sizes:
            one = {"kind": "pass", "trained": False, "iteration": None, "grad": False, "training": False}
            events.append({**one, "n": n, "losses": [], "loc": "train.py:9"})
    return [{**event, "i": i} for i, event in enumerate(events)]


@pytest.mark.parametrize(("sizes", "count"), [([50] * 7, 1), ([50] * 7 + [20], 0), ([74] * 5, 0), ([100], 0)])
def test_evaluation_that_ends_with_the_last_whole_batch(sizes: list[int], count: int) -> None:
    view = {"id": None, "n": 370, "batch_size": None, "drop_last": False, "is_train_loader": False, "hand_cut": True}
    result = {"train": {}, "evals": [view], "overlap": []}
    record = Record([{"kind": "probe", "name": "data", "result": result, "i": -1}, *tail_events(sizes)])
    assert len(found(rules.eval_samples_dropped, record)) == count


# DAT222: masks


class Masked(Dataset):
    """Noisy blobs with their masks; `how` says what a transform does."""

    def __init__(self, how: str) -> None:
        g = torch.Generator().manual_seed(4)
        place = torch.arange(20.0)
        centre = 4 + 12 * torch.rand(80, 2, 1, 1, generator=g)
        far = (place[:, None] - centre[:, 0]) ** 2 + (place[None] - centre[:, 1]) ** 2
        self.masks = (far < 9).long()
        self.images = self.masks[:, None] + 0.3 * torch.randn(80, 1, 20, 20, generator=g)
        self.how = how

    def __len__(self) -> int:
        return 80

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, mask = self.images[i], self.masks[i]
        if self.how == "noise":
            return image + 0.1 * torch.randn(image.shape), mask
        if self.how == "views":
            return image.flip(-1) if torch.rand(()) < 0.5 else image, image[0] * 2
        if torch.rand(()) < 0.5:
            image = image.flip(-1)
            mask = mask if self.how == "image alone" else mask.flip(-1)
        return image, mask.flip(-2) if self.how == "both and mask again" and torch.rand(()) < 0.5 else mask


@pytest.mark.parametrize(
    ("how", "count"), [("image alone", 1), ("both", 0), ("noise", 0), ("views", 0), ("both and mask again", 0)]
)
def test_mask_that_stays_where_its_picture_is_flipped(how: str, count: int) -> None:
    record = Run(DataLoader(Masked(how), batch_size=16, shuffle=True)).record()
    findings = found(rules.mask_left_behind, record)
    assert len(findings) == count
    if findings:
        assert "flipped left to right" in findings[0].message


# DAT213: nothing predicts the labels


def run_that_scores(correct: int, steps: int = 60) -> list[dict[str, Any]]:
    """Steps, then one evaluation of 300 samples with so many right answers."""
    events: list[dict[str, Any]] = [{"kind": "step", "i": i} for i in range(steps)]
    passed = {"kind": "pass", "trained": False, "iteration": None, "grad": False, "training": False}
    return [*events, {**passed, "n": 300, "correct": correct, "shape": [300, 10], "losses": [], "i": steps}]


def pair_with_labels(labels: torch.Tensor) -> dict[str, Any]:
    train = loader(Pictures(augmented(), 0, CUT, labels), shuffle=True)
    return Run(train, [loader(Pictures(augmented().steps[-1], CUT, labels=labels))]).probe()


SHUFFLED = LABELS[torch.randperm(len(LABELS), generator=torch.Generator().manual_seed(7))]


@pytest.mark.parametrize(
    ("labels", "events", "count"),
    [
        (SHUFFLED, run_that_scores(31), 1),
        (SHUFFLED, run_that_scores(90), 0),
        (SHUFFLED, run_that_scores(31, steps=5), 0),
        (SHUFFLED, [], 0),
        (LABELS, run_that_scores(31), 0),
    ],
    ids=["unrelated", "but learned", "no time", "no evaluation", "related"],
)
def test_labels_that_are_shuffled_in_both_splits(labels: torch.Tensor, events: list[Any], count: int) -> None:
    made = {"kind": "probe", "name": "data", "result": pair_with_labels(labels), "i": -1}
    assert len(found(rules.labels_unrelated, Record([made, *events]))) == count


def losses(values: list[float]) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for value in values:
        events += [{"kind": "step"} for _ in range(15)] + [{"kind": "backward"}]
        one = {"kind": "pass", "trained": False, "iteration": None, "grad": False, "training": False, "n": 64}
        events.append({**one, "losses": [value], "reductions": ["mean"]})
    return [{**event, "i": i} for i, event in enumerate(events)]


@pytest.mark.parametrize(
    ("apart", "values", "count"),
    [
        (True, [1.1, 1.08, 1.05, 1.07], 1),
        (True, [1.1, 0.8, 0.6, 0.4], 0),
        (True, [1.1, 1.08], 0),
        (False, [1.1, 1.08, 1.05, 1.07], 0),
    ],
    ids=["unrelated", "but learned", "no time", "related"],
)
def test_rows_and_targets_apart(apart: bool, values: list[float], count: int) -> None:
    g = torch.Generator().manual_seed(0)
    x = torch.rand(900, 6, generator=g)
    y = (3 * x[:, 0] - x[:, 1] ** 2 + 0.1 * torch.randn(900, generator=g)).unsqueeze(1)
    y = y[torch.randperm(900, generator=g)] if apart else y
    train, val = TensorDataset(x[:600], y[:600]), TensorDataset(x[600:], y[600:])
    run = Run(loader(train, shuffle=True), [loader(val)], image_like=False)
    record = Record([{"kind": "probe", "name": "data", "result": run.probe(), "i": -1}, *losses(values)])
    assert len(found(rules.labels_unrelated, record)) == count

"""Patients and the like that are in two splits: planted bugs, and what looks like them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, Dataset, Subset

from tests.verify.test_data_rules import Run
from verify.report import Finding
from verify.rules.data_groups import groups_mixed
from verify.trace.record import NotSeenError

PATIENTS = np.random.default_rng(0).permutation(np.repeat(np.arange(0, 120, 3), 4))  # 40 patients, 4 pictures each
LABELS = torch.from_numpy((PATIENTS // 3) % 2)
ORDER = np.arange(len(PATIENTS))
BY_PATIENT = PATIENTS < 60


class Lesions(Dataset):
    def __init__(self, rows: Any = ORDER, ids: Any = PATIENTS, labels: Any = LABELS, field: str = "patients") -> None:
        self.x = torch.randn(len(rows), 8, generator=torch.Generator().manual_seed(int(rows.sum())))
        self.y = labels[torch.as_tensor(rows)]
        setattr(self, field, ids[rows])

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.x[item], self.y[item]


class Frame(dict):
    """What of a data frame is asked for."""

    columns = property(lambda self: list(self))

    def __getitem__(self, name: str) -> Any:
        return SimpleNamespace(to_numpy=lambda: np.asarray(super(Frame, self).__getitem__(name), dtype=object))

    def __len__(self) -> int:
        return len(self["age"].to_numpy())


Frame.__module__ = "pandas.core.frame"


class Table(Lesions):
    def __init__(self, rows: Any) -> None:
        super().__init__(rows, field="unused")
        self.frame = Frame(patient_id=[f"p{n}" for n in PATIENTS[rows]], age=[1.0] * len(rows))


class Columns(Lesions):
    def __init__(self, rows: Any) -> None:
        super().__init__(rows, field="unused")
        self.columns = {"patient_id": PATIENTS[rows].tolist(), "age": [1.0] * len(rows)}


class Rows(Lesions):
    def __init__(self, rows: Any) -> None:
        super().__init__(rows, field="unused")
        self.rows = [{"patient_id": f"p{n}", "age": 1.0} for n in PATIENTS[rows]]


class Described(Lesions):
    """Each item says which patient it is of; the dataset keeps it where nobody looks."""

    def __init__(self, rows: Any) -> None:
        super().__init__(rows, field="unused")
        self.described = [("", f"p{n}") for n in PATIENTS[rows]]

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor, dict[str, str]]:
        return self.x[item], self.y[item], {"patient_id": self.described[item][1]}


def found(train: Dataset, other: Dataset, source: str = "") -> list[Finding]:
    run = Run(DataLoader(train, 16, shuffle=True), [DataLoader(other, 16)], image_like=False, source=source)
    try:
        return list(groups_mixed(run.record()))
    except NotSeenError:
        return []


HALF = len(ORDER) // 2
FEW_SHARED = np.concatenate([ORDER[~BY_PATIENT], ORDER[np.isin(PATIENTS, (0, 3, 6, 9))][::2]])
ANEW = np.concatenate([np.unique(part, return_inverse=True)[1] for part in (PATIENTS[:HALF], PATIENTS[HALF:])])


@pytest.mark.parametrize(
    ("train", "other"),
    [
        (Lesions(ORDER[:HALF]), Lesions(ORDER[HALF:])),
        (Table(ORDER[:HALF]), Table(ORDER[HALF:])),
        (Subset(Lesions(), range(HALF)), Subset(Lesions(), range(HALF, len(ORDER)))),
        (Columns(ORDER[:HALF]), Columns(ORDER[HALF:])),
        (Rows(ORDER[:HALF]), Rows(ORDER[HALF:])),
        (Described(ORDER[:HALF]), Described(ORDER[HALF:])),
        (Lesions(ORDER[BY_PATIENT]), Lesions(FEW_SHARED)),
    ],
    ids=["arrays", "table", "subsets", "columns", "rows", "items", "few"],
)
def test_patients_in_both_splits(train: Dataset, other: Dataset) -> None:
    assert "patient" in found(train, other)[0].message


def test_subjects_count_when_the_source_splits_by_them() -> None:
    train, other = Lesions(ORDER[:HALF], field="subject_ids"), Lesions(ORDER[HALF:], field="subject_ids")
    assert found(train, other, "train, val = split_by_subject(rows)")
    assert not found(train, other, "train, val = by_session(rows)")


@pytest.mark.parametrize(
    ("train", "other"),
    [
        (Lesions(ORDER[BY_PATIENT]), Lesions(ORDER[~BY_PATIENT])),
        (Table(ORDER[BY_PATIENT]), Table(ORDER[~BY_PATIENT])),
        (Described(ORDER[BY_PATIENT]), Described(ORDER[~BY_PATIENT])),
        (Lesions(ORDER[:HALF], field="ids"), Lesions(ORDER[HALF:], field="ids")),
        (Lesions(ORDER[:HALF], ids=ORDER), Lesions(ORDER[HALF:], ids=ORDER)),
        (Lesions(ORDER[:HALF], ids=ANEW), Lesions(ORDER[HALF:], ids=ANEW)),
        (
            Lesions(ORDER[:HALF], labels=torch.from_numpy(PATIENTS)),
            Lesions(ORDER[HALF:], labels=torch.from_numpy(PATIENTS)),
        ),
    ],
    ids=["apart", "table-apart", "items-apart", "unknown-field", "one-each", "counted-anew", "recognised"],
)
def test_patients_apart_and_fields_that_say_nothing(train: Dataset, other: Dataset) -> None:
    assert not found(train, other)

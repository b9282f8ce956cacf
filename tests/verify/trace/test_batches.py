"""Which tensor of a batch holds the labels."""

from __future__ import annotations

import pytest
import torch

from verify.trace.child.tensors import inputs_and_targets, possible_targets

X, LABELS, LENGTHS = torch.randn(4, 7), torch.tensor([0, 2, 1, 2]), torch.tensor([7, 5, 6, 3])
IDS = torch.randint(50, (4, 7))


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        ((X, LABELS), [LABELS]),
        ((IDS, LENGTHS, LABELS), [LABELS]),
        ({"input_ids": IDS, "lengths": LENGTHS, "labels": LABELS}, [LABELS]),
        ({"lengths": LABELS, "x": X, "y": LABELS}, [LABELS]),
        ((X, LABELS, LABELS), [LABELS, LABELS]),
        ((X, torch.randn(4)), []),
    ],
)
def test_possible_targets_are_class_numbers(batch: object, expected: list[torch.Tensor]) -> None:
    assert [t.tolist() for t in possible_targets(batch, 4, 3)] == [t.tolist() for t in expected]


def test_a_batch_that_names_its_labels_is_believed() -> None:
    inputs, targets = inputs_and_targets({"lengths": LENGTHS, "input_ids": IDS, "labels": LABELS})
    assert inputs is IDS
    assert targets is LABELS

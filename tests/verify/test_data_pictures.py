"""Pictures that lie otherwise in evaluation, inputs that name their class, batches scaled by themselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.utils.data import Dataset, Subset, TensorDataset

from tests.verify.test_data_rules import (
    CUT,
    LABELS,
    PICTURES,
    N,
    Pictures,
    RandomFlip,
    Run,
    Scaled,
    healthy_pair,
    loader,
    statuses,
)
from verify.report import Status

EVEN = [i for i in range(CUT, N) if LABELS[i] % 2 == 0]


def transposed_evaluation() -> Run:
    return Run(loader(Scaled(lambda x: x, 0, CUT), shuffle=True), [loader(Scaled(lambda x: x.transpose(1, 2), CUT))])


def mirrored_evaluation() -> Run:
    return Run(loader(Pictures(None, 0, CUT), shuffle=True), [loader(Pictures(lambda x: x.flip(-1), CUT))])


def flips_in_training() -> Run:
    return Run(loader(Pictures(RandomFlip(), 0, CUT), shuffle=True), [loader(Pictures(None, CUT))])


def some_classes_in_evaluation() -> Run:
    return Run(loader(Pictures(None, 0, CUT), shuffle=True), [loader(Subset(Pictures(None), EVEN))])


class Marked(Dataset):
    """Pictures with the label in a corner, as a number or as a tile of noise that depends on nothing."""

    def __init__(self, start: int, stop: int, mark: bool = True) -> None:
        self.data, self.targets = PICTURES[start:stop].clone(), LABELS[start:stop]
        self.data[:, :, 0, 0] = self.targets[:, None] / 9 if mark else torch.rand(stop - start, 1)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.data[i], int(self.targets[i])


def label_in_the_corner() -> Run:
    return Run(loader(Marked(0, CUT), shuffle=True), [loader(Marked(CUT, N))])


def noise_in_the_corner() -> Run:
    return Run(loader(Marked(0, CUT, mark=False), shuffle=True), [loader(Marked(CUT, N, mark=False))])


def table(leak: bool) -> Dataset:
    """Eight columns of noise, and one that is the label or depends on it loosely."""
    draw = torch.Generator().manual_seed(0)
    rows, label = torch.randn(400, 9, generator=draw), torch.randint(0, 2, (400,), generator=draw)
    rows[:, 4] = label.float() + (0 if leak else 0.3 * torch.randn(400, generator=draw))
    return TensorDataset(rows, label)


def column_of_the_label() -> Run:
    return Run(loader(table(leak=True), shuffle=True), classes=2, image_like=False)


def column_near_the_label() -> Run:
    return Run(loader(table(leak=False), shuffle=True), classes=2, image_like=False)


def one_colour_a_class() -> Run:
    """Made-up data: all of a picture is its class."""
    label = torch.arange(300) % 3
    return Run(
        loader(TensorDataset((label / 3)[:, None, None, None].expand(-1, 3, 8, 8), label), shuffle=True), classes=3
    )


def scaled_by_its_batch() -> Run:
    return healthy_pair(loop=lambda x: (x - x.mean(dim=0)) / (x.std(dim=0) + 1e-5))


def channels_scaled_by_the_batch() -> Run:
    return healthy_pair(loop=lambda x: (x - x.mean((0, 2, 3), True)) / x.std((0, 2, 3), keepdim=True))


def each_scaled_by_itself() -> Run:
    return healthy_pair(loop=lambda x: (x - x.mean((2, 3), True)) / (x.std((2, 3), keepdim=True) + 1e-5))


def all_data_at_once() -> Run:
    whole = TensorDataset((PICTURES[:400] - PICTURES[:400].mean(0)), LABELS[:400])
    return Run(loader(whole, batch_size=400, shuffle=True), [loader(Pictures(None, CUT))])


PLANTED = [
    (transposed_evaluation, "DAT247"),
    (mirrored_evaluation, "DAT247"),
    (label_in_the_corner, "DAT248"),
    (column_of_the_label, "DAT248"),
    (scaled_by_its_batch, "DAT249"),
    (channels_scaled_by_the_batch, "DAT249"),
]
HEALTHY = [
    flips_in_training,
    some_classes_in_evaluation,
    noise_in_the_corner,
    column_near_the_label,
    one_colour_a_class,
    each_scaled_by_itself,
    all_data_at_once,
]
CODES = ("DAT247", "DAT248", "DAT249")


@pytest.mark.parametrize(("planted", "code"), PLANTED, ids=lambda value: getattr(value, "__name__", value))
def test_planted_bug_is_found(planted: Callable[[], Run], code: str) -> None:
    assert statuses(planted()) == {code: Status.FAIL}


@pytest.mark.parametrize("healthy", HEALTHY, ids=lambda value: value.__name__)
def test_look_alike_is_silent(healthy: Callable[[], Run]) -> None:
    assert not set(statuses(healthy())) & set(CODES)

"""Datasets that change what they hold, weighted samplers, crops without room: planted bugs and look-alikes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, TensorDataset, WeightedRandomSampler
from torchvision import transforms
from torchvision.transforms import v2

from tests.verify.test_data_rules import Run
from tests.verify.trace.runs import PLAIN, watched
from verify.report import Finding, Status
from verify.rules.data_splits import splits_overlap
from verify.rules.data_stored import crop_without_room, sampler_upside_down, stored_data_changes
from verify.trace.record import NotSeenError


def found(rule: Any, train: DataLoader, *evals: DataLoader, source: str = "") -> list[Finding]:
    try:
        return [made for made in rule(Run(train, list(evals), source).record()) if made.status is not Status.PASS]
    except NotSeenError:
        return []


class Items(Dataset):
    """96 pictures; `change` is what happens to one when it is fetched."""

    def __init__(self, change: Any, store: str = "tensor") -> None:
        pictures = torch.rand(96, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        self.pictures: Any = {"tensor": pictures, "array": pictures.numpy(), "list": list(pictures)}[store]
        self.fetched = torch.zeros(96, 8)
        self.cache: list[Any] = [None] * 96
        self.buffer = torch.zeros(96, 1, 8, 8)
        self.change = change

    def __len__(self) -> int:
        return 96

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return torch.as_tensor(self.change(self, i)), i % 3


def noise_in_place(data: Items, i: int) -> Any:
    x = data.pictures[i]
    x += 0.1 * torch.randn(1, 8, 8) if isinstance(x, torch.Tensor) else 0.1 * np.random.randn(1, 8, 8)
    return x


def flip_in_place(data: Items, i: int) -> Any:
    x = data.pictures[i]
    if torch.rand(()) < 0.5:
        x.copy_(x.flip(-1))
    return x


def hole_in_place(data: Items, i: int) -> Any:
    x = data.pictures[i]
    top, left = torch.randint(0, 6, (2,)).tolist()
    x[:, top : top + 2, left : left + 2] = 0
    return x


def noise(data: Items, i: int) -> Any:
    return data.pictures[i] + 0.1 * torch.randn(1, 8, 8)


def cached(data: Items, i: int) -> Any:
    if data.cache[i] is None:
        data.cache[i] = data.pictures[i] * 2
    return data.cache[i] + 0.1 * torch.randn(1, 8, 8)


def cached_in_array(data: Items, i: int) -> Any:
    if not data.buffer[i].any():
        data.buffer[i] = data.pictures[i] * 2
    return data.buffer[i]


def made_in_place(data: Items, i: int) -> Any:
    return torch.randn(1, 8, 8, out=data.buffer[i])


def counted(data: Items, i: int) -> Any:
    data.cache[i] = (data.cache[i] or 0) + 1
    return data.pictures[i]


@pytest.mark.parametrize("store", ["tensor", "array", "list"])
def test_noise_that_piles_up(store: str) -> None:
    made = found(stored_data_changes, DataLoader(Items(noise_in_place, store), batch_size=16, shuffle=True))
    assert [one.status for one in made] == [Status.FAIL]


@pytest.mark.parametrize("change", [flip_in_place, hole_in_place])
def test_flips_and_holes_in_place(change: Any) -> None:
    assert found(stored_data_changes, DataLoader(Items(change), batch_size=16, shuffle=True))


@pytest.mark.parametrize("change", [noise, cached, cached_in_array, made_in_place, counted])
def test_data_that_stay(change: Any) -> None:
    assert not found(stored_data_changes, DataLoader(Items(change), batch_size=16, shuffle=True))


LABELS = torch.tensor([0] * 200 + [1] * 90 + [2] * 40 + [3] * 22)


@pytest.mark.parametrize(
    ("weights", "bad"),
    [
        (LABELS.bincount().double(), True),
        (LABELS.bincount().double().sqrt(), True),
        (1 / LABELS.bincount().double(), False),
        (1 / LABELS.bincount().double().sqrt(), False),
        (torch.ones(4).double(), False),
    ],
)
def test_weights_of_a_sampler(weights: torch.Tensor, bad: bool) -> None:
    data = TensorDataset(torch.randn(len(LABELS), 8), LABELS)
    loader = DataLoader(data, batch_size=16, sampler=WeightedRandomSampler(weights[LABELS].tolist(), len(LABELS)))
    assert bool(found(sampler_upside_down, loader)) is bad


def test_weights_of_single_samples() -> None:
    weights = LABELS.bincount().double()[LABELS] * torch.rand(len(LABELS)).double().add(0.1)
    data = TensorDataset(torch.randn(len(LABELS), 8), LABELS)
    loader = DataLoader(data, batch_size=16, sampler=WeightedRandomSampler(weights.tolist(), len(LABELS)))
    assert not found(sampler_upside_down, loader)


class Pictures(Dataset):
    def __init__(self, transform: Any, sizes: tuple[int, ...] = (32,)) -> None:
        self.transform, self.sizes = transform, sizes

    def __len__(self) -> int:
        return 64

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        side = self.sizes[i % len(self.sizes)]
        picture = Image.fromarray(np.random.default_rng(i).integers(0, 255, (side, side, 3), dtype=np.uint8))
        return self.transform(picture), i % 3


@pytest.mark.parametrize("library", [transforms, v2])
@pytest.mark.parametrize(
    ("options", "sizes", "bad"),
    [
        ({}, (32,), True),
        ({"padding": 4}, (32,), False),
        ({"padding": 0}, (32,), False),
        ({}, (32, 40), False),
        ({"pad_if_needed": True}, (28,), False),
    ],
)
def test_crops(library: Any, options: dict[str, Any], sizes: tuple[int, ...], bad: bool) -> None:
    transform = transforms.Compose([library.RandomCrop(32, **options), transforms.ToTensor()])
    loader = DataLoader(Pictures(transform, sizes), batch_size=16, shuffle=True)
    given = "".join(f", {name}={value}" for name, value in options.items())
    assert bool(found(crop_without_room, loader, source=f"RandomCrop(32{given})")) is bad


class Files(Dataset):
    """Pictures that are read from files whose names only the dataset can put together."""

    def __init__(self, folder: Path, split: str, augment: bool = False) -> None:
        self.folder, self.split, self.augment = folder, split, augment

    def __len__(self) -> int:
        return len(list(self.folder.glob(f"{self.split}_*.png")))

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.folder / f"{self.split}_{i}.png") as image:
            x = torch.from_numpy(np.array(image)).float()
        return (x + torch.randn(8, 8) if self.augment else x), i % 3


@pytest.mark.parametrize(
    ("seed", "level", "bad"),
    [(0, 6, True), (0, 0, True), (1, 6, False)],
    ids=["copied", "saved-again", "others"],
)
def test_files_of_equal_content(tmp_path: Path, seed: int, level: int, bad: bool) -> None:
    for split, count, start in (("train", 80, 0), ("val", 40, seed)):
        rng = np.random.default_rng(start)
        for i in range(count):
            picture = Image.fromarray(rng.integers(0, 255, (8, 8), dtype=np.uint8))
            picture.save(tmp_path / f"{split}_{i}.png", compress_level=level if split == "val" else 6)
    train = DataLoader(Files(tmp_path, "train", augment=True), batch_size=16, shuffle=True)
    made = found(splits_overlap, train, DataLoader(Files(tmp_path, "val"), batch_size=16))
    assert bool(made) is bad
    assert not bad or made[0].status is Status.FAIL


BY_HAND = """
import torch
from torch import nn

torch.manual_seed(0)
x_train, x_val = torch.rand(96, 1, 8, 8), torch.rand(32, 1, 8, 8)
y_train, y_val = (x_train.mean((1, 2, 3)) > 0.5).long(), (x_val.mean((1, 2, 3)) > 0.5).long()
model = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
again = x_train.clone()
STORE


def train_epoch(x):
    CHANGE
    model.train()
    for index in torch.randperm(len(x)).split(16):
        loss = nn.functional.cross_entropy(model(x[index]), y_train[index])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


for epoch in range(3):
    train_epoch(x_train)
    model.eval()
    with torch.no_grad():
        print((model(x_val).argmax(1) == y_val).float().mean())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "store", "bad"),
    [
        ("x.add_(0.1 * torch.randn_like(x))", "del again", True),
        ("x.copy_(torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(3), x))\n    x.mul_(1.01)", "del again", True),
        ("x = x + 0.1 * torch.randn_like(x)", "del again", False),
        ("pass", "del again", False),
        ("x.copy_(x[torch.randperm(len(x))])", "del again", False),
        ("x.normal_()", "del again", False),
        ("x.copy_(again + 0.1 * torch.randn_like(x))", "", False),
    ],
)
def test_tensors_that_batches_are_cut_from(tmp_path: Path, change: str, store: str, bad: bool) -> None:
    script = BY_HAND.replace("STORE", store).replace("CHANGE", change)
    record = watched(tmp_path, script, cut=replace(PLAIN, probe_seconds=10.0))
    try:
        made = [one for one in stored_data_changes(record) if one.status is not Status.PASS]
    except NotSeenError:
        made = []
    assert bool(made) is bad


class Padded(Dataset):
    """Pictures that are stored with a border, of which random crops are cut; without a border as they are."""

    def __init__(self, pictures: torch.Tensor, pad: int) -> None:
        self.pictures = torch.nn.functional.pad(pictures, (pad,) * 4)
        self.pad = pad

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        top, left = torch.randint(0, 2 * self.pad + 1, (2,)).tolist() if self.pad else (0, 0)
        return self.pictures[i, :, top : top + 8, left : left + 8], i % 3


@pytest.mark.parametrize("shared", [0, 12])
def test_splits_of_which_one_is_stored_with_a_border(shared: int) -> None:
    pictures = torch.rand(160, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    train = DataLoader(Padded(pictures[: 96 + shared], 2), batch_size=16, shuffle=True)
    made = found(splits_overlap, train, DataLoader(Padded(pictures[96:], 0), batch_size=16))
    assert [one.status for one in made] == ([Status.FAIL] if shared else [])

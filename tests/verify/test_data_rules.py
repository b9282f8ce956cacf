"""The data rules find what is planted in loaders and datasets, and let the healthy look-alikes pass."""

from __future__ import annotations

import random
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import (
    ConcatDataset,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
    random_split,
)

from verify.report import Finding, Status
from verify.rules import data as rules
from verify.rules import data_pictures as pictures
from verify.trace.child.data_probes import probe_data
from verify.trace.record import NotSeenError, Record

CODES = {
    "DAT201": rules.train_augmentation_lost,
    "DAT202": rules.augmentation_never_used,
    "DAT203": rules.eval_data_random,
    "DAT204": rules.train_order_fixed,
    "DAT205": rules.order_repeats,
    "DAT206": rules.worker_randomness_repeats,
    "DAT207": rules.splits_overlap,
    "DAT209": rules.normalisation_off,
    "DAT210": rules.splits_normalised_differently,
    "DAT211": rules.pixels_scrambled,
    "DAT212": rules.class_map_differs,
    "DAT213": rules.labels_unrelated,
    "DAT214": rules.labels_out_of_range,
    "DAT215": rules.class_missing,
    "DAT216": rules.eval_samples_dropped,
    "DAT220": rules.augmentation_repeats,
    "DAT247": pictures.splits_turned,
    "DAT248": pictures.input_names_class,
    "DAT249": pictures.scaled_by_batch,
}
# Errors; the others warn.
SEVERITY = {
    *("DAT201", "DAT203", "DAT206", "DAT207", "DAT211", "DAT212", "DAT216"),
    *("DAT247", "DAT248", "DAT249"),
}


# The stand-in for a captured run


@dataclass
class Use:
    loader: Any
    dataset: Any
    name: str
    loc: str
    batches: list[Any]
    settings: dict[str, Any]


@dataclass
class Run:
    """A training loader, evaluation loaders, and what else a run shows."""

    train: Any
    evals: list[Any] = field(default_factory=list)
    source: str = ""
    classes: int | None = 10
    model: nn.Module | None = None
    loop: Callable[[torch.Tensor], torch.Tensor] = lambda x: x
    image_like: bool = True
    events: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 20.0

    def use(self, loader: Any, number: int) -> Use:
        batches = []
        torch.manual_seed(5)
        for batch in loader:
            tensors = list(batch.values()) if isinstance(batch, dict) else list(batch)
            batches.append((tensors[0], tensors[1]))
            if len(batches) == 3:
                break
        sampler = loader.sampler if loader.batch_size is not None else loader.batch_sampler
        settings = {
            "batch_size": loader.batch_size,
            "shuffle": isinstance(sampler, RandomSampler),
            "drop_last": loader.drop_last,
            "num_workers": getattr(loader, "pretended_workers", 0),
            "sampler": type(sampler).__name__,
            "worker_init_fn": loader.worker_init_fn is not None,
            "n": None if isinstance(loader.dataset, IterableDataset) else len(loader.dataset),
        }
        return Use(loader, loader.dataset, f"loader {number}", f"data.py:{number + 40}", batches, settings)

    def probe(self) -> dict[str, Any]:
        train = self.use(self.train, 0)
        inputs = ((self.loop(train.batches[0][0]),), {})
        capture = SimpleNamespace(
            train=train,
            evals=[self.use(loader, i + 1) for i, loader in enumerate(self.evals)],
            num_classes=self.classes,
            image_like=self.image_like,
            model=self.model,
            inputs=inputs,
            deadline=time.monotonic() + self.seconds,
        )
        return probe_data(capture)

    def record(self) -> Record:
        source = {"kind": "source", "path": "data.py", "text": textwrap.dedent(self.source)}
        made = {"kind": "probe", "name": "data", "result": self.probe()}
        return Record([source, made, *self.events])


def judge(record: Record) -> dict[str, list[Finding]]:
    """The findings of every data rule that are no passes."""
    found: dict[str, list[Finding]] = {}
    for code, function in CODES.items():
        try:
            findings = [made for made in function(record) if made.status not in (Status.PASS, Status.SKIP)]
        except NotSeenError:
            continue
        if findings:
            found[code] = findings
    return found


def statuses(run: Run) -> dict[str, Status]:
    return {
        code: made[0].status or (Status.FAIL if code in SEVERITY else Status.WARN)
        for code, made in judge(run.record()).items()
    }


# Data: handwritten digits as 3x16x16 pictures, so that labels can be learned and neighbours are alike


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    raw = load_digits()
    pictures = torch.tensor(raw.images, dtype=torch.float32).unsqueeze(1) / 16
    pictures = torch.nn.functional.interpolate(pictures, size=(16, 16), mode="bilinear")
    order = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(3))
    tint = torch.tensor([1.0, 0.9, 0.8]).view(1, 3, 1, 1)
    return (pictures * tint)[order], torch.tensor(raw.target)[order]


PICTURES, LABELS = digits()
N = len(PICTURES)
MEAN, STD = PICTURES.mean(dim=(0, 2, 3)), PICTURES.std(dim=(0, 2, 3))
CUT = 1400


class RandomFlip:
    """A random transform as people write it themselves."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x.flip(-1) if random.random() < 0.5 else x


class RandomShift:
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.roll(x, int(torch.randint(-3, 4, ())), -1)


class Compose:
    def __init__(self, *steps: Any) -> None:
        self.steps = steps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return x


class Normalize:
    def __init__(self, mean: Any = MEAN, std: Any = STD) -> None:
        self.mean, self.std = torch.as_tensor(mean), torch.as_tensor(std)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean.view(-1, 1, 1)) / self.std.view(-1, 1, 1)


class Pictures(Dataset):
    """A dataset with a transform, as torchvision's are."""

    def __init__(self, transform: Any = None, start: int = 0, stop: int = N, labels: torch.Tensor = LABELS) -> None:
        self.data, self.targets = PICTURES[start:stop], labels[start:stop]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        x = self.data[i].clone()
        return (self.transform(x) if self.transform else x), int(self.targets[i])


def loader(dataset: Any, **options: Any) -> DataLoader:
    return DataLoader(dataset, **{"batch_size": 64, **options})


def augmented() -> Compose:
    return Compose(RandomShift(), RandomFlip(), Normalize())


def healthy_pair(**changes: Any) -> Run:
    """Two datasets with their own transforms and disjoint samples."""
    parts = {
        "train": loader(Pictures(augmented(), 0, CUT), shuffle=True),
        "evals": [loader(Pictures(Normalize(), CUT))],
    }
    return Run(**{**parts, **changes})


# Planted bugs


def shared_transform() -> Run:
    full = Pictures(augmented())
    full.keep = full.transform  # alive elsewhere, as a local variable would be
    train, val = random_split(full, [CUT, N - CUT])
    source = """
        train_transform = Compose([RandomFlip()])
        full = Pictures(train_transform)
        train, val = random_split(full, [1400, 397])
        val.dataset.transform = eval_transform
    """
    val.dataset.transform = Normalize()
    del full.keep
    return Run(loader(train, shuffle=True), [loader(val)], source)


def shared_transform_garbage() -> Run:
    """The random transform does not exist any more; only the source tells of it."""
    full = Pictures(Normalize())
    train, val = random_split(full, [CUT, N - CUT])
    source = """
        full = Pictures(transform=Compose([RandomCrop(32, padding=4), ToTensor()]))
        train, val = random_split(full, [1400, 397])
        val.dataset.transform = ToTensor()
    """
    return Run(loader(train, shuffle=True), [loader(val)], source)


class Switched(Pictures):
    def __init__(self, augment: bool) -> None:
        super().__init__()
        self.augment = augment

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        x, y = super().__getitem__(i)
        return (x + torch.randn_like(x) if self.augment else x), y


def shared_switch() -> Run:
    full = Switched(augment=True)
    train, val = random_split(full, [CUT, N - CUT])
    val.dataset.augment = False
    source = (
        "full = Switched(augment=True)\ntrain, val = random_split(full, [1400, 397])\nval.dataset.augment = False\n"
    )
    return Run(loader(train, shuffle=True), [loader(val)], source)


def unused_transform() -> Run:
    source = """
        augment = transforms.Compose([transforms.RandomHorizontalFlip(), transforms.ToTensor()])
        plain = transforms.ToTensor()
        train = Pictures(plain)
    """
    return healthy_pair(train=loader(Pictures(Normalize(), 0, CUT), shuffle=True), source=source)


class Forgetful(Pictures):
    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.data[i], int(self.targets[i])


def transform_not_applied() -> Run:
    evals = [loader(Forgetful(None, CUT))]
    return Run(loader(Forgetful(RandomFlip(), 0, CUT), shuffle=True), evals)


def split_of_augmented() -> Run:
    train, val = random_split(Pictures(augmented()), [CUT, N - CUT])
    return Run(loader(train, shuffle=True), [loader(val)])


def random_eval_collate() -> Run:
    def collate(items: list[Any]) -> Any:
        x, y = torch.utils.data.default_collate(items)
        return x + 0.1 * torch.randn_like(x), y

    return healthy_pair(evals=[loader(Pictures(Normalize(), CUT), collate_fn=collate)])


def overlapping_subsets() -> Run:
    full, plain = Pictures(augmented()), Pictures(Normalize())
    return Run(loader(Subset(full, range(CUT)), shuffle=True), [loader(Subset(plain, range(CUT - 200, N)))])


def overlapping_samplers() -> Run:
    full = TensorDataset(PICTURES, LABELS)
    train = loader(full, sampler=SubsetRandomSampler(range(CUT)))
    return Run(train, [loader(full, sampler=SubsetRandomSampler(range(CUT - 100, N)))])


def test_is_train() -> Run:
    return Run(loader(Pictures(augmented()), shuffle=True), [loader(Pictures(Normalize()))])


def val_is_train() -> Run:
    both = TensorDataset(PICTURES, LABELS)
    return Run(loader(both, shuffle=True), [loader(both)])


def overlapping_lists() -> Run:
    pairs = list(zip(PICTURES, LABELS.tolist(), strict=True))
    return Run(loader(pairs[:CUT], shuffle=True), [loader(pairs[CUT - 300 :])])


class Scaled(Pictures):
    """Pictures after any function, without a transform object that could be looked into."""

    def __init__(self, change: Callable[[torch.Tensor], torch.Tensor], start: int = 0, stop: int = N) -> None:
        super().__init__(None, start, stop)
        self.change = change

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.change(self.data[i]), int(self.targets[i])


def scaled(change: Callable[[torch.Tensor], torch.Tensor], **options: Any) -> Run:
    return Run(loader(Scaled(change, 0, CUT), shuffle=True), [loader(Scaled(change, CUT))], **options)


def convolution() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))


def unscaled() -> Run:
    return scaled(lambda x: x * 255, model=convolution())


def constant_inputs() -> Run:
    return scaled(lambda x: (x - 125.3) / 63.0)


def constant_inputs_of_apart_channels() -> Run:
    shift, scale = torch.tensor([125.3, 123.0, 113.9]).view(3, 1, 1), torch.tensor([63.0, 62.1, 66.7]).view(3, 1, 1)
    return scaled(lambda x: (x - shift) / scale)


def swapped_constants() -> Run:
    swapped = [0.247, 0.243, 0.262], [0.491, 0.482, 0.447]
    bright = PICTURES * 0.3 + 0.5  # mean and std near (swapped[1], swapped[0])
    bright = (bright - bright.mean((0, 2, 3), keepdim=True)) / bright.std((0, 2, 3), keepdim=True)
    bright = bright * torch.tensor(swapped[0]).view(1, 3, 1, 1) + torch.tensor(swapped[1]).view(1, 3, 1, 1)
    train, val = Pictures(Normalize(*swapped), 0, CUT), Pictures(Normalize(*swapped), CUT)
    train.data, val.data = bright[:CUT], bright[CUT:]
    return Run(loader(train, shuffle=True), [loader(val)])


def odd_constants() -> Run:
    return scaled(lambda x: x * 12 - 1)


def normalize_missing() -> Run:
    return healthy_pair(evals=[loader(Pictures(None, CUT))])


def other_constants() -> Run:
    return healthy_pair(evals=[loader(Pictures(Normalize([0.5] * 3, [0.1] * 3), CUT))])


def scaler_missing() -> Run:
    x = torch.randn(500, 12) * 40 + 100
    y = (x[:, 0] > 100).long()
    train = TensorDataset((x[:400] - x[:400].mean(0)) / x[:400].std(0), y[:400])
    return Run(loader(train, shuffle=True), [loader(TensorDataset(x[400:], y[400:]))], image_like=False, classes=2)


def viewed() -> Run:
    return scaled(lambda x: x.permute(1, 2, 0).reshape(3, 16, 16))


class Named(Pictures):
    def __init__(self, names: dict[str, int], start: int, stop: int = N) -> None:
        super().__init__(Normalize(), start, stop)
        self.class_to_idx = names


def other_class_map() -> Run:
    ours, theirs = ({name: i for i, name in enumerate(order)} for order in ("abcdefghij", "bacdefghij"))
    return Run(loader(Named(ours, 0, CUT), shuffle=True), [loader(Named(theirs, CUT))])


def shuffled_labels() -> Run:
    labels = LABELS.clone()
    labels[:CUT] = labels[:CUT][torch.randperm(CUT, generator=torch.Generator().manual_seed(1))]
    return Run(loader(Pictures(Normalize(), 0, CUT, labels), shuffle=True), [loader(Pictures(Normalize(), CUT))])


def shuffled_labels_of_a_small_evaluation() -> Run:
    labels = LABELS.clone()
    start = N - 250
    labels[start:] = labels[start:][torch.randperm(250, generator=torch.Generator().manual_seed(1))]
    return Run(loader(Pictures(None, 0, CUT), shuffle=True), [loader(Pictures(None, start, N, labels))])


def renamed_labels() -> Run:
    evals = [loader(Pictures(Normalize(), CUT, N, (LABELS + 1) % 10))]
    return Run(loader(Pictures(Normalize(), 0, CUT), shuffle=True), evals)


def renamed_labels_of_the_test() -> Run:
    half = (CUT + N) // 2
    evals = [loader(Pictures(Normalize(), CUT, half)), loader(Pictures(Normalize(), half, N, (LABELS + 1) % 10))]
    return Run(loader(Pictures(Normalize(), 0, CUT), shuffle=True), evals)


def labels_from_one() -> Run:
    labels = LABELS + 1
    return Run(
        loader(Pictures(Normalize(), 0, CUT, labels), shuffle=True),
        [loader(Pictures(Normalize(), CUT, N, labels))],
        classes=11,
    )


def rare_label_outside() -> Run:
    labels = LABELS.clone()
    labels[[700, 900]] = 10
    return Run(loader(Pictures(Normalize(), 0, CUT, labels)), [loader(Pictures(Normalize(), CUT))])


def class_left_out() -> Run:
    keep = [i for i in range(CUT) if LABELS[i] != 3]
    return healthy_pair(train=loader(Subset(Pictures(augmented()), keep), shuffle=True))


def dropped_samples() -> Run:
    return healthy_pair(evals=[loader(Pictures(Normalize(), CUT), drop_last=True)])


class NumpyNoise(Pictures):
    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        x, y = super().__getitem__(i)
        return x + torch.tensor(np.random.randn(*x.shape), dtype=torch.float32) / 5, y


class OwnGenerator(Pictures):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rng = np.random.default_rng(0)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        x, y = super().__getitem__(i)
        return x + torch.tensor(self.rng.normal(size=x.shape), dtype=torch.float32) / 5, y


def noisy_pair(dataset: Any, **options: Any) -> Run:
    """A training loader that says it has two workers."""
    train = loader(dataset, shuffle=True, **options)
    train.pretended_workers = 2
    return Run(train, [loader(Pictures(None, CUT))])


def workers_seeded_alike() -> Run:
    return noisy_pair(NumpyNoise(None, 0, CUT), worker_init_fn=lambda i: np.random.seed(42))


def workers_seeded_each_epoch() -> Run:
    return noisy_pair(NumpyNoise(None, 0, CUT), worker_init_fn=lambda i: np.random.seed(42 + i))


def generator_copied_to_workers() -> Run:
    return noisy_pair(OwnGenerator(None, 0, CUT))


class SeededItems(Pictures):
    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        torch.manual_seed(i)
        random.seed(i)
        return super().__getitem__(i)


def seeded_items() -> Run:
    return healthy_pair(train=loader(SeededItems(augmented(), 0, CUT), shuffle=True))


class FixedShift(Pictures):
    """Augmentation behind a switch, with a generator that is seeded by the index."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.augment = True

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        x, y = super().__getitem__(i)
        if self.augment:
            x = torch.roll(x, int(torch.randint(1, 6, (), generator=torch.Generator().manual_seed(i))), -1)
        return x, y


def generator_seeded_by_index() -> Run:
    return healthy_pair(train=loader(FixedShift(Normalize(), 0, CUT), shuffle=True))


class ThrownAway(Pictures):
    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        x, y = super().__getitem__(i)
        self.shift(x)
        return x, y

    def shift(self, x: torch.Tensor) -> torch.Tensor:
        return torch.roll(x, int(torch.randint(1, 6, ())), -1)


def result_thrown_away() -> Run:
    source = """
        class ThrownAway(Dataset):
            def __getitem__(self, i):
                x, y = super().__getitem__(i)
                self.shift(x)
                return x, y

            def shift(self, x):
                return torch.roll(x, int(torch.randint(1, 6, ())), -1)
    """
    return healthy_pair(train=loader(ThrownAway(Normalize(), 0, CUT), shuffle=True), source=source)


def switch_ignored() -> Run:
    source = """
        class Switched(Dataset):
            def __init__(self, augment):
                self.augment = False

        train = Switched(augment=True)
    """
    return Run(loader(Switched(augment=False), shuffle=True), [], source)


def shuffled_labels_with_augmentation() -> Run:
    """The items are random; the transform of validation makes them comparable."""
    run = shuffled_labels()
    run.train.dataset.transform = augmented()
    return run


def red_and_blue_exchanged() -> Run:
    tint = torch.tensor([1.0, 0.8, 0.3]).view(3, 1, 1)
    train, val = Scaled(lambda x: x * tint, 0, CUT), Scaled(lambda x: (x * tint).flip(0), CUT)
    norm = Normalize([0.3, 0.24, 0.09], [0.3, 0.24, 0.09])
    for split in (train, val):
        split.change = lambda x, change=split.change: norm(change(x))
    return Run(loader(train, shuffle=True), [loader(val)])


def viewed_noise() -> Run:
    """Hardly any smoothness: only the colours tell."""
    x = torch.randn(600, 16, 16, 3) + 1.5 * torch.randn(600, 1, 1, 3)
    y = torch.randint(0, 10, (600,))
    x = x.reshape(600, 3, 16, 16)
    return Run(loader(TensorDataset(x[:450], y[:450]), shuffle=True), [loader(TensorDataset(x[450:], y[450:]))])


PLANTED = [
    (generator_seeded_by_index, "DAT220", Status.WARN),
    (result_thrown_away, "DAT202", Status.WARN),
    (switch_ignored, "DAT202", Status.WARN),
    (shuffled_labels_with_augmentation, "DAT213", Status.WARN),
    (red_and_blue_exchanged, "DAT210", Status.WARN),
    (viewed_noise, "DAT211", Status.FAIL),
    (shared_transform, "DAT201", Status.FAIL),
    (shared_transform_garbage, "DAT201", Status.FAIL),
    (shared_switch, "DAT201", Status.FAIL),
    (unused_transform, "DAT202", Status.WARN),
    (transform_not_applied, "DAT202", Status.WARN),
    (split_of_augmented, "DAT203", Status.FAIL),
    (random_eval_collate, "DAT203", Status.FAIL),
    (overlapping_subsets, "DAT207", Status.FAIL),
    (overlapping_samplers, "DAT207", Status.FAIL),
    (test_is_train, "DAT207", Status.FAIL),
    (val_is_train, "DAT207", Status.FAIL),
    (overlapping_lists, "DAT207", Status.FAIL),
    (unscaled, "DAT209", Status.FAIL),
    (constant_inputs, "DAT209", Status.FAIL),
    (constant_inputs_of_apart_channels, "DAT209", Status.FAIL),
    (swapped_constants, "DAT209", Status.FAIL),
    (odd_constants, "DAT209", Status.WARN),
    (normalize_missing, "DAT210", Status.FAIL),
    (other_constants, "DAT210", Status.FAIL),
    (scaler_missing, "DAT210", Status.FAIL),
    (viewed, "DAT211", Status.FAIL),
    (other_class_map, "DAT212", Status.FAIL),
    (shuffled_labels, "DAT213", Status.WARN),
    (shuffled_labels_of_a_small_evaluation, "DAT213", Status.FAIL),
    (renamed_labels, "DAT213", Status.WARN),
    (renamed_labels_of_the_test, "DAT213", Status.WARN),
    (labels_from_one, "DAT214", Status.WARN),
    (rare_label_outside, "DAT214", Status.FAIL),
    (class_left_out, "DAT215", Status.WARN),
    (dropped_samples, "DAT216", Status.FAIL),
    (workers_seeded_alike, "DAT206", Status.FAIL),
    (workers_seeded_each_epoch, "DAT206", Status.FAIL),
    (generator_copied_to_workers, "DAT206", Status.FAIL),
    (seeded_items, "DAT220", Status.WARN),
]
test_is_train.__test__ = False  # a planted bug, not a test


@pytest.mark.parametrize(
    ("planted", "code", "status"), PLANTED, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_planted_bug_is_found(planted: Callable[[], Run], code: str, status: Status) -> None:
    found = statuses(planted())
    assert found.get(code) is status, found
    assert set(found) <= {code}, found  # and it is reported once


# Healthy look-alikes


def tensors_without_transform() -> Run:
    train, val = random_split(TensorDataset(PICTURES, LABELS), [CUT, N - CUT])
    return Run(loader(train, shuffle=True), [loader(val)])


def loop_augmentation() -> Run:
    """One deterministic dataset; batches are augmented in the loop."""
    keep = RandomFlip()
    train, val = random_split(Pictures(Normalize()), [CUT, N - CUT])
    source = "flip = RandomFlip()\nfor x, y in loader:\n    x = flip(x)\n"
    made = Run(loader(train, shuffle=True), [loader(val)], source)
    made.keep = keep  # type: ignore[attr-defined]
    return made


def option_is_off() -> Run:
    full = Switched(augment=False)
    train, val = random_split(full, [CUT, N - CUT])
    return Run(loader(train, shuffle=True), [loader(val)], "full = Switched(augment=args.augment)\n")


class View(Dataset):
    """A split with a transform of its own over a shared dataset: the usual remedy."""

    def __init__(self, subset: Subset, transform: Any) -> None:
        self.subset, self.transform = subset, transform

    def __len__(self) -> int:
        return len(self.subset)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        x, y = self.subset[i]
        return self.transform(x), y


def own_views() -> Run:
    train, val = random_split(Pictures(None), [CUT, N - CUT])
    return Run(loader(View(train, augmented()), shuffle=True), [loader(View(val, Normalize()))])


def two_datasets_one_root() -> Run:
    order = torch.randperm(N).tolist()
    train, val = Subset(Pictures(augmented()), order[:CUT]), Subset(Pictures(Normalize()), order[CUT:])
    return Run(loader(train, shuffle=True), [loader(val)])


def train_metric_beside_validation() -> Run:
    train = Pictures(augmented(), 0, CUT)
    evals = [loader(Pictures(Normalize(), CUT)), loader(Pictures(Normalize(), 0, CUT), drop_last=True)]
    return Run(loader(train, shuffle=True), evals)


def augmented_train_metric() -> Run:
    train = loader(Pictures(augmented(), 0, CUT), shuffle=True, drop_last=True)
    return Run(train, [loader(Pictures(Normalize(), CUT)), train])


def balanced_sampling() -> Run:
    weights = torch.rand(CUT) + 0.1
    return healthy_pair(train=loader(Pictures(augmented(), 0, CUT), sampler=WeightedRandomSampler(weights, CUT)))


def subset_samplers() -> Run:
    full = TensorDataset(PICTURES, LABELS)
    train = loader(full, sampler=SubsetRandomSampler(range(CUT)))
    return Run(train, [loader(full, sampler=SubsetRandomSampler(range(CUT, N)))])


def raw_pictures() -> Run:
    return scaled(lambda x: x)


def plus_minus_one() -> Run:
    return scaled(lambda x: x * 2 - 1)


def imagenet_constants() -> Run:
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return scaled(lambda x: (x * 0.4 - mean.view(3, 1, 1)) / std.view(3, 1, 1))


def scaled_in_loop() -> Run:
    return scaled(lambda x: x * 255, loop=lambda x: (x / 255 - 0.3) / 0.3, model=convolution())


class ScalesItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = convolution()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x / 255)


def scaled_in_model() -> Run:
    return scaled(lambda x: x * 255, model=ScalesItself())


def sparse_pictures() -> Run:
    return scaled(lambda x: (x > 0.99).float())


def noise_pictures() -> Run:
    x = torch.randn(600, 3, 16, 16)
    y = torch.randint(0, 10, (600,))
    train, val = TensorDataset(x[:500], y[:500]), TensorDataset(x[500:], y[500:])
    return Run(loader(train, shuffle=True), [loader(val)])


def checkerboards() -> Run:
    board = (torch.arange(16).view(-1, 1) + torch.arange(16)) % 2
    x = board.float().expand(600, 3, 16, 16) * torch.rand(600, 3, 1, 1)
    y = torch.randint(0, 10, (600,))
    train, val = TensorDataset(x[:500], y[:500]), TensorDataset(x[500:], y[500:])
    return Run(loader(train, shuffle=True), [loader(val)])


class Erasing:
    """Strong augmentation: half of the pictures lose a large box."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if torch.rand(()) < 0.5:
            x = x.clone()
            x[:, 4:14, 2:14] = 0
        return x


def strong_augmentation() -> Run:
    return healthy_pair(train=loader(Pictures(Compose(RandomShift(), Normalize(), Erasing()), 0, CUT), shuffle=True))


def whitened_pictures() -> Run:
    """High-pass filtered noise: neighbours differ more than pixels further apart."""
    x = torch.randn(600, 3, 16, 16)
    x = x - (torch.roll(x, 1, -1) + torch.roll(x, -1, -1) + torch.roll(x, 1, -2) + torch.roll(x, -1, -2)) / 4
    y = torch.randint(0, 10, (600,))
    return Run(loader(TensorDataset(x[:450], y[:450]), shuffle=True), [loader(TensorDataset(x[450:], y[450:]))])


def gratings() -> Run:
    """Waves of many frequencies along one direction, also of period 3."""
    period = torch.tensor([2.0, 3.0, 3.0, 4.0, 6.0])[torch.arange(600) % 5].view(-1, 1, 1, 1)
    wave = torch.sin(2 * torch.pi * (torch.arange(18.0) / period + torch.rand(600, 1, 1, 1)))
    x = wave.expand(600, 3, 18, 18) + 0.3 * torch.randn(600, 3, 18, 18)
    y = torch.arange(600) % 5
    train, val = TensorDataset(x[:450], y[:450]), TensorDataset(x[450:], y[450:])
    return Run(loader(train, shuffle=True), [loader(val)], classes=5)


def white_background() -> Run:
    """Dark strokes on white; the border that a random crop adds is black."""
    white = Compose(lambda x: 1 - 0.5 * x, lambda x: torch.nn.functional.pad(x, (2, 2, 2, 2)), RandomWindow())
    return Run(
        loader(Pictures(Compose(white, Normalize([0.85] * 3, [0.17] * 3)), 0, CUT), shuffle=True),
        [loader(Pictures(Compose(lambda x: 1 - 0.5 * x, Normalize([0.85] * 3, [0.17] * 3)), CUT))],
    )


class RandomWindow:
    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        top, left = torch.randint(0, 5, (2,)).tolist()
        return x[:, top : top + 16, left : left + 16]


def discrete_table() -> Run:
    """Sixteen different rows: every evaluation row is in the training data by chance."""
    x = torch.randint(0, 2, (2000, 4)).float()
    y = x.sum(1).long() % 2
    train, val = TensorDataset(x[:1500], y[:1500]), TensorDataset(x[1500:], y[1500:])
    return Run(loader(train, shuffle=True), [loader(val)], image_like=False, classes=2)


def blank_pictures() -> Run:
    x = PICTURES.clone()
    x[::10] = 0
    train, val = TensorDataset(x[:CUT], LABELS[:CUT]), TensorDataset(x[CUT:], LABELS[CUT:])
    return Run(loader(train, shuffle=True), [loader(val)])


class Cached(Pictures):
    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.cache: dict[int, Any] = {}

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if i not in self.cache:
            self.cache[i] = super().__getitem__(i)
        return self.cache[i]


def cached_without_augmentation() -> Run:
    return Run(loader(Cached(Normalize(), 0, CUT), shuffle=True), [loader(Cached(Normalize(), CUT))])


class Stream(IterableDataset):
    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop

    def __iter__(self) -> Any:
        for i in range(self.start, self.stop):
            yield PICTURES[i], LABELS[i]


def streams() -> Run:
    return Run(loader(Stream(0, CUT)), [loader(Stream(CUT, N))])


class Dicts(Pictures):
    def __getitem__(self, i: int) -> dict[str, Any]:  # type: ignore[override]
        x, y = super().__getitem__(i)
        return {"image": x, "label": y, "name": str(i)}


def dicts() -> Run:
    return Run(loader(Dicts(augmented(), 0, CUT), shuffle=True), [loader(Dicts(Normalize(), CUT))])


class Breaks(Pictures):
    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        if torch.utils.data.get_worker_info() is None and len(self.data) == CUT and getattr(self, "armed", False):
            raise RuntimeError("needs a worker")
        return super().__getitem__(i)


def needs_a_worker() -> Run:
    run = healthy_pair(train=loader(Breaks(augmented(), 0, CUT), shuffle=True))
    original = run.use

    def use(made: Any, number: int) -> Use:
        captured = original(made, number)
        made.dataset.armed = True
        return captured

    run.use = use  # type: ignore[method-assign]
    return run


def concatenated() -> Run:
    train = ConcatDataset([Pictures(augmented(), 0, 700), Pictures(augmented(), 700, CUT)])
    return healthy_pair(train=loader(train, shuffle=True))


def numpy_in_workers() -> Run:
    return noisy_pair(NumpyNoise(None, 0, CUT))


def seeded_from_torch() -> Run:
    init = lambda i: np.random.seed(torch.initial_seed() % 2**32)  # noqa: E731
    return noisy_pair(NumpyNoise(None, 0, CUT), worker_init_fn=init)


class ByEpoch(Pictures):
    """Randomness that is derived from epoch and index."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        torch.manual_seed(1000 * self.epoch + i)
        random.seed(1000 * self.epoch + i)
        return super().__getitem__(i)


def seeded_by_epoch() -> Run:
    return healthy_pair(train=loader(ByEpoch(augmented(), 0, CUT), shuffle=True))


def regression() -> Run:
    x = torch.randn(500, 8)
    y = x.sum(1)
    train, val = TensorDataset(x[:400], y[:400]), TensorDataset(x[400:], y[400:])
    return Run(loader(train, shuffle=True), [loader(val)], image_like=False, classes=None)


def mapped_labels() -> Run:
    """Labels 0 to 9, of which the loop asks only whether they are even."""
    return healthy_pair(classes=2)


def evaluation_of_some_classes() -> Run:
    keep = [i for i in range(CUT, N) if LABELS[i] < 5]
    return healthy_pair(evals=[loader(Subset(Pictures(Normalize()), keep))])


def drop_last_of_a_multiple() -> Run:
    return healthy_pair(evals=[loader(Pictures(Normalize(), CUT, CUT + 320), drop_last=True)])


def no_validation() -> Run:
    return healthy_pair(evals=[])


HEALTHY = [
    healthy_pair,
    tensors_without_transform,
    loop_augmentation,
    option_is_off,
    own_views,
    two_datasets_one_root,
    train_metric_beside_validation,
    augmented_train_metric,
    balanced_sampling,
    subset_samplers,
    raw_pictures,
    plus_minus_one,
    imagenet_constants,
    scaled_in_loop,
    scaled_in_model,
    sparse_pictures,
    noise_pictures,
    checkerboards,
    strong_augmentation,
    whitened_pictures,
    gratings,
    white_background,
    discrete_table,
    blank_pictures,
    cached_without_augmentation,
    streams,
    dicts,
    needs_a_worker,
    concatenated,
    numpy_in_workers,
    seeded_from_torch,
    seeded_by_epoch,
    regression,
    mapped_labels,
    evaluation_of_some_classes,
    drop_last_of_a_multiple,
    no_validation,
]


@pytest.mark.parametrize("healthy", HEALTHY, ids=lambda value: value.__name__)
def test_healthy_data_is_silent(healthy: Callable[[], Run]) -> None:
    found = judge(healthy().record())
    assert not found, found


# Torchvision, files, time


def test_torchvision_transforms_are_seen(tmp_path: Path) -> None:
    """A CIFAR-like dataset with transforms of torchvision, split and overwritten as in the classic mistake."""
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    root = write_pictures(tmp_path / "train")
    augment = transforms.Compose(
        [transforms.RandomCrop(16, 4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    )
    full = ImageFolder(str(root), augment)
    train, val = random_split(full, [60, 20])
    good = statuses(Run(loader(train, shuffle=True, batch_size=16), [loader(val, batch_size=16)]))
    assert good == {"DAT203": Status.FAIL}
    val.dataset.transform = transforms.ToTensor()
    source = "full = ImageFolder(root, augment)\nval.dataset.transform = transforms.ToTensor()\n"
    bad = Run(loader(train, shuffle=True, batch_size=16), [loader(val, batch_size=16)], source).record()
    assert set(judge(bad)) == {"DAT201"}
    (finding,) = judge(bad)["DAT201"]
    assert finding.location == "data.py:2"
    assert "50 of 50 train items equal under 3 seeds" in finding.measured
    assert len(augment.transforms) == 3  # alive until here


def test_second_version_of_torchvision_transforms(tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    end = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.4] * 3, [0.3] * 3)]
    train = ImageFolder(str(write_pictures(tmp_path / "train")), v2.Compose([v2.RandomResizedCrop(16), *end]))
    val = ImageFolder(str(write_pictures(tmp_path / "val", first=80)), v2.Compose([v2.Resize(16), *end]))
    assert statuses(Run(loader(train, shuffle=True, batch_size=16), [loader(val, batch_size=16)])) == {}
    probe = Run(loader(train, shuffle=True, batch_size=16), [loader(val, batch_size=16)]).probe()
    assert probe["augmentation"]["run"] == ["RandomResizedCrop"]
    assert probe["augmentation"]["train"]["generators"] == ["torch"]


def write_pictures(root: Path, first: int = 0, count: int = 80, classes: str = "abcd") -> Path:
    from PIL import Image

    for i in range(first, first + count):
        folder = root / classes[i % len(classes)]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = (PICTURES[i].permute(1, 2, 0) * 255).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


def folder_run(train: Path, val: Path) -> Run:
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    sets = [ImageFolder(str(root), transforms.ToTensor()) for root in (train, val)]
    return Run(loader(sets[0], shuffle=True, batch_size=16), [loader(sets[1], batch_size=16)])


def test_copied_files_are_found_by_content(tmp_path: Path) -> None:
    healthy = folder_run(write_pictures(tmp_path / "a"), write_pictures(tmp_path / "b", first=80))
    assert statuses(healthy) == {}
    copied = folder_run(tmp_path / "a", write_pictures(tmp_path / "c", first=60))
    found = judge(copied.record())
    assert set(found) == {"DAT207"}
    assert "by file content" in found["DAT207"][0].measured


def test_missing_class_folder_shifts_the_others(tmp_path: Path) -> None:
    """Training has classes a to d, validation b to e: ImageFolder numbers both from 0."""
    train = write_pictures(tmp_path / "a")
    val = write_pictures(tmp_path / "b", first=80, classes="bcde")
    assert "DAT212" in judge(folder_run(train, val).record())


def test_same_relative_names_are_no_overlap() -> None:
    """Lists of file names that do not exist as they stand say nothing."""

    class Files(Pictures):
        def __init__(self, start: int, stop: int = N) -> None:
            super().__init__(Normalize(), start, stop)
            self.files = [f"{i:05d}.png" for i in range(len(self.data))]

    assert statuses(Run(loader(Files(0, CUT), shuffle=True), [loader(Files(CUT))])) == {}


def test_few_duplicates_are_silent_or_a_warning() -> None:
    def run(duplicates: int) -> Run:
        val = Pictures(Normalize(), CUT)
        val.data = val.data.clone()
        val.data[:duplicates] = PICTURES[:duplicates]
        return healthy_pair(evals=[loader(val)])

    assert statuses(run(1)) == {}
    assert statuses(run(10)) == {"DAT207": Status.FAIL}


def test_split_that_is_evaluated_later_makes_it_a_warning() -> None:
    """Only an evaluation of training samples was seen by then; the real test came at the end."""
    passes = [
        {"kind": "iter_end", "loader": number, "iteration": number, "forwards": 3, "steps": 0, "backwards": 0}
        for number in (1, 2)
    ]
    train, metric = Pictures(augmented(), 0, CUT), Pictures(Normalize(), 0, CUT)
    run = Run(loader(train, shuffle=True), [loader(metric)], events=passes)
    assert statuses(run) == {"DAT207": Status.WARN}


def test_loader_that_only_served_for_statistics_is_no_evaluation() -> None:
    passes = [{"kind": "iter_end", "loader": 1, "iteration": 1, "forwards": 0, "steps": 0, "backwards": 0}]
    run = Run(loader(Pictures(augmented(), 0, CUT), shuffle=True), [loader(Pictures(None, 0, CUT))], events=passes)
    assert statuses(run) == {}


class Slow(Pictures):
    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        time.sleep(0.2 if getattr(self, "armed", False) else 0.0)
        print("reading", i)
        return super().__getitem__(i)


def test_slow_and_talkative_dataset_is_bounded(capfd: pytest.CaptureFixture[str]) -> None:
    run = Run(loader(Slow(augmented(), 0, CUT), shuffle=True), [loader(Slow(Normalize(), CUT))], seconds=5.0)
    uses = [run.use(made, number) for number, made in enumerate([run.train, *run.evals])]
    capfd.readouterr()
    run.train.dataset.armed = run.evals[0].dataset.armed = True
    start = time.monotonic()
    result = probe_data(
        SimpleNamespace(
            train=uses[0],
            evals=uses[1:],
            num_classes=10,
            image_like=True,
            model=None,
            inputs=None,
            deadline=start + 5.0,
        )
    )
    assert time.monotonic() - start < 30, "as long as if nothing bounded it"
    assert capfd.readouterr().out == ""
    assert result["train"]["n"] == CUT


def test_plain_loop_is_judged_by_what_the_model_was_given() -> None:
    images = PICTURES[:32] * 255
    capture = SimpleNamespace(
        train=None,
        evals=[],
        num_classes=10,
        image_like=True,
        model=convolution(),
        inputs=((images,), {}),
        deadline=time.monotonic() + 10,
    )
    found = judge(Record([{"kind": "probe", "name": "data", "result": probe_data(capture)}]))
    assert set(found) == {"DAT209"}
    capture.inputs = ((PICTURES[:32],), {})
    assert judge(Record([{"kind": "probe", "name": "data", "result": probe_data(capture)}])) == {}


def test_model_is_left_as_it_was() -> None:
    """Other probes use the same model afterwards."""
    model = nn.Sequential(nn.BatchNorm2d(3), convolution())
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    healthy_pair(model=model).probe()
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in before.items())
    assert model.training
    assert not model[1].training
    assert not model[0]._forward_pre_hooks


def test_record_without_a_probe_skips_every_rule() -> None:
    for function in CODES.values():
        with pytest.raises(NotSeenError):
            list(function(Record([])))


# Order: handmade events


def run_events(epochs: list[list[str]], **loader_fields: Any) -> list[dict[str, Any]]:
    """Events of a loader whose batches have the given digests of labels, an epoch a list."""
    fields = {"sampler": "SequentialSampler", "shuffle": False, "batch_size": 32, "n": 640, "loc": "data.py:41"}
    made: list[dict[str, Any]] = [{"kind": "loader", "id": 0, **fields, **loader_fields}]
    classes = loader_fields.pop("classes", 9)
    for epoch, digests in enumerate(epochs):
        made.append({"kind": "iter_begin", "loader": 0, "epoch": epoch, "iteration": epoch})
        for batch, digest in enumerate(digests):
            event = {"kind": "batch_print", "loader": 0, "epoch": epoch, "batch": batch, "n": 32, "classes": classes}
            made.append({**event, "labels": digest, "inputs": "x" + digest})
        made.append({"kind": "iter_end", "loader": 0, "iteration": epoch, "steps": 3, "forwards": 3, "backwards": 3})
    return made


def order(code: str, events: list[dict[str, Any]], classes: int = 10, varying: int = 0) -> list[Finding]:
    seen = {
        "train": {"n": 50, "seeds": 3, "varying": varying, "batch_varies": False},
        "run_changes_input": False,
        "run": [],
    }
    result = {"num_classes": classes, "image_like": True, "evals": [], "augmentation": seen}
    return list(CODES[code](Record([*events, {"kind": "probe", "name": "data", "result": result}])))


FIXED = [["a", "b", "c"]] * 3
SHUFFLED = [["a", "b", "c"], ["d", "e", "f"], ["g", "h", "i"]]


def test_fixed_order_warns_and_sorted_order_fails() -> None:
    (plain,) = order("DAT204", run_events(FIXED))
    assert plain.status is Status.WARN
    assert plain.location == "data.py:41"
    (by_class,) = order("DAT204", run_events(FIXED, classes=1))
    assert by_class.status is Status.FAIL
    assert "1 of 10 classes" in by_class.measured


@pytest.mark.parametrize(
    "events",
    [
        run_events(SHUFFLED, sampler="RandomSampler", shuffle=True),
        run_events(SHUFFLED),  # the dataset shuffles itself
        run_events(FIXED[:1]),
        run_events(FIXED, n=20),
        run_events(FIXED, batch_size=640),
        run_events(FIXED, n=None, iterable=True),
        run_events(FIXED, sampler="DistributedSampler"),
        run_events(FIXED, sampler="BucketSampler", batch_size=None),
        [e for e in run_events(FIXED) if e["kind"] != "iter_end"],
        [{**e, "steps": 0, "backwards": 0} if e["kind"] == "iter_end" else e for e in run_events(FIXED)],
    ],
    ids=[
        "shuffled",
        "own shuffle",
        "one epoch",
        "tiny",
        "whole",
        "stream",
        "distributed",
        "bucket",
        "cut",
        "evaluation",
    ],
)
@pytest.mark.parametrize("code", ["DAT204", "DAT205"])
def test_healthy_order_is_silent(events: list[dict[str, Any]], code: str) -> None:
    try:
        found = order(code, events)
    except NotSeenError:
        return
    assert not found


def test_targets_that_are_no_classes() -> None:
    """A regression: the recorder has no number of classes for its batches."""
    assert order("DAT205", run_events(SHUFFLED, sampler="RandomSampler", classes=None)) == []
    (finding,) = order("DAT204", run_events(FIXED, classes=None))
    assert finding.status is Status.WARN


def test_shuffle_that_repeats() -> None:
    (finding,) = order("DAT205", run_events(FIXED, sampler="RandomSampler", shuffle=True))
    assert "each of 3 epochs" in finding.measured
    assert order("DAT204", run_events(FIXED, sampler="RandomSampler", shuffle=True)) == []


def test_loader_that_is_made_anew_every_epoch_is_one_loader() -> None:
    events = []
    for epoch, event in enumerate(FIXED):
        for made in run_events([event], sampler="RandomSampler", shuffle=True):
            made.update({"id": epoch} if made["kind"] == "loader" else {"loader": epoch})
            if "iteration" in made:
                made["iteration"] = epoch
            events.append(made)
    assert order("DAT205", events)


def test_augmentation_that_repeats() -> None:
    assert order("DAT220", run_events(FIXED, sampler="RandomSampler", shuffle=True), varying=50)
    assert not order("DAT220", run_events(FIXED), varying=0)
    other = run_events(FIXED)
    for number, event in enumerate(other):
        if event["kind"] == "batch_print":
            event["inputs"] = str(number)
    assert not order("DAT220", other, varying=50)

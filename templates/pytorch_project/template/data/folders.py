"""Images as files in folders, one folder a class: ImageNet, or any data set in the same layout.

    data/raw/imagenet/train/<class>/*.JPEG       divided into training and validation images
    data/raw/imagenet/val/<class>/*.JPEG         the test images: ImageNet publishes no labels of its own test part

Images are decoded, cropped and augmented one by one in loader processes. What happens to an image follows from the
seed, the epoch and its number alone, so training continues inside of an epoch with the same images.
"""

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.augment import NO_AUGMENTATION, Augmentation, seeded_generator
from data.loader import BatchOrder, leave_stopping_to_trainer
from data.sources import Source, stratified_split
from data.steps import augmenting_steps, compose, evaluation_crop, normalising_steps, training_crop
from engine.errors import UserError

TEST_FOLDER = "val"


@dataclass(frozen=True, eq=False)
class FolderSplit(Dataset):
    """The images of one split.

    Args:
        name: "train", "val" or "test".
        files: paths of the images.
        labels: int64 (N,).
        source: the data set, with the classes that its folders name.
        augmentation: what is done to them.
        image_size: height and width of the result, in pixels.
        seed: of the augmentation.
        fingerprint: hash of the files' names.
    """

    name: str
    files: list[Path]
    labels: np.ndarray
    source: Source
    augmentation: Augmentation
    image_size: int
    seed: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, key: tuple[int, int] | int) -> tuple[Tensor, int]:
        """The normalised image, float32 (3, H, W), and its label; `key` is (epoch, number), or a number alone.

        A number alone takes its random draws from torch's global generator.
        """
        if not isinstance(key, tuple):
            return self._transform()(_read(self.files[key])), int(self.labels[key])
        epoch, number = key
        with torch.random.fork_rng(devices=[]):
            # Stream 0 is the order of the epoch.
            seed = seeded_generator(self.seed, epoch, stream=number + 1).initial_seed()
            torch.default_generator.manual_seed(seed)
            return self[number]

    def pictures(self, numbers: list[int]) -> np.ndarray:
        """Some of the images to look at: uint8 (len(numbers), H, W, 3)."""
        crop = compose(evaluation_crop(self.image_size))
        found = [crop(_read(self.files[number])).permute(1, 2, 0).numpy() for number in numbers]
        return np.stack(found) if found else np.empty((0, self.image_size, self.image_size, 3), np.uint8)

    def _transform(self) -> Callable[[Image.Image], Tensor]:
        crop = evaluation_crop if self.augmentation == NO_AUGMENTATION else training_crop
        ends = normalising_steps(self.source.mean, self.source.std)
        return compose([*crop(self.image_size), *augmenting_steps(self.augmentation), *ends])


class _KeyedOrder(BatchOrder):
    """The batches of an epoch as pairs (epoch, number), for the loader processes know no epoch."""

    def __iter__(self) -> Iterator[list[Any]]:
        epoch = self.epoch
        for numbers in super().__iter__():
            yield [(epoch, number) for number in numbers]


class FolderLoader:
    """Batches of a folder split, as `for images, labels in loader`; the arguments are those of `BatchLoader`.

    Yields:
        images, float32 (B, 3, H, W) in channels_last memory format; and labels, int64 (B,).

    Raises:
        UserError: the loader is to be "resident", or an image cannot be read.
    """

    def __init__(
        self,
        split: FolderSplit,
        batch_size: int,
        *,
        seed: int = 0,
        shuffle: bool = False,
        device: torch.device | str = "cpu",
        loader: str = "auto",
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if loader == "resident":
            raise UserError("loader is resident, but images in folders are not kept in memory; set loader: workers")
        self.dataset = split
        self.device = torch.device(device)
        self.order = _KeyedOrder(len(split), batch_size, seed, shuffle, rank, world_size)
        self._fetch = DataLoader(
            split,
            batch_sampler=self.order,
            num_workers=num_workers,
            pin_memory=self.device.type == "cuda",
            persistent_workers=num_workers > 0,
            worker_init_fn=leave_stopping_to_trainer,
            generator=torch.Generator(),  # its own, or every epoch would take a number from the global one
        )

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch that the next iteration goes through (from 0), and the batch that it starts with."""
        self.order.epoch, self.order.first_batch = epoch, first_batch

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        try:
            for images, labels in self._fetch:
                images = images.to(self.device, non_blocking=True, memory_format=torch.channels_last)
                yield images, labels.to(self.device, non_blocking=True)
        except UserError as error:
            # From a loader process it comes with the traceback of that process as its text.
            raise UserError(str(error).strip().splitlines()[-1].rpartition("UserError: ")[2]) from None


def load_folder_training_splits(
    source: Source,
    dataset: str,
    data_dir: str,
    val_fraction: float,
    seed: int,
    augmentation: Augmentation,
    image_size: int,
) -> tuple[FolderSplit, FolderSplit]:
    """Divide the images of train/ into "train" and "val", class by class.

    Raises:
        UserError: they are not there.
    """
    root = _root(dataset, data_dir)
    classes, files, labels = _list_images(root / "train")
    source = replace(source, classes=classes)
    kept, aside = stratified_split(labels, val_fraction, seed)

    def part(name: str, index: np.ndarray, what: Augmentation) -> FolderSplit:
        chosen = [files[number] for number in index]
        return FolderSplit(name, chosen, labels[index], source, what, image_size, seed, _fingerprint(chosen, root))

    return part("train", kept, augmentation), part("val", aside, NO_AUGMENTATION)


def load_folder_test_split(source: Source, dataset: str, data_dir: str, image_size: int) -> FolderSplit:
    """The images of val/; their classes must be those of train/.

    Raises:
        UserError: they are not there, or the classes differ.
    """
    root = _root(dataset, data_dir)
    classes, files, labels = _list_images(root / TEST_FOLDER)
    known = _classes(root / "train")
    if classes != known:
        raise UserError(
            f"{root / TEST_FOLDER} has {len(classes)} classes and {root / 'train'} has {len(known)}, or of other "
            "names; both need a folder for each class"
        )
    source = replace(source, classes=classes)
    print_of = _fingerprint(files, root)
    return FolderSplit("test", files, labels, source, NO_AUGMENTATION, image_size, 0, print_of)


def _root(dataset: str, data_dir: str) -> Path:
    return Path(os.environ.get("KIT_DATA") or data_dir) / dataset


def _classes(folder: Path) -> tuple[str, ...]:
    if not folder.is_dir():
        raise UserError(
            f"{folder} does not exist; put the images there, one folder a class, or name the folder above "
            f"{folder.parent.name} in data_dir or the variable KIT_DATA"
        )
    return tuple(sorted(entry.name for entry in folder.iterdir() if entry.is_dir()))


def _list_images(folder: Path) -> tuple[tuple[str, ...], list[Path], np.ndarray]:
    """Classes, files and labels int64 (N,), in the order of torchvision's ImageFolder."""
    from torchvision.datasets import ImageFolder

    classes = _classes(folder)
    try:
        samples = ImageFolder(str(folder)).samples
    except FileNotFoundError as error:
        raise UserError(f"{folder}: {str(error).splitlines()[0].rstrip('. ')}; each class needs a folder") from None
    labels = np.array([label for _, label in samples], dtype=np.int64)
    return classes, [Path(file) for file, _ in samples], labels


def _read(path: Path) -> Image.Image:
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except OSError as error:
        raise UserError(f"{path} cannot be read as an image ({error}); repair or remove it") from None


def _fingerprint(files: list[Path], root: Path) -> str:
    names = "\n".join(path.relative_to(root).as_posix() for path in files)
    return hashlib.sha256(names.encode()).hexdigest()[:16]

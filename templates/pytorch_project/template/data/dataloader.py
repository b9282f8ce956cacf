"""The splits of a data set, and their batches: the data side of training and evaluation.

Look at the data of config.yaml, with a picture of a training batch:  python -m data.dataloader [--set dataset=digits]
"""

import argparse
import hashlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.augment import NO_AUGMENTATION
from data.folders import FolderLoader, FolderSplit, load_folder_test_split, load_folder_training_splits
from data.loader import BatchLoader, Split
from data.sources import SOURCES, Images, Labels, Source, stratified_split
from engine.config import Config, add_config_arguments, load_config
from engine.errors import UserError, run_script

Loader = BatchLoader | FolderLoader


def get_dataloaders(
    config: Config, device: torch.device | str = "cpu", *, rank: int = 0, world_size: int = 1
) -> tuple[Loader, Loader]:
    """The training batches (shuffled, augmented) and the validation batches (neither) of a configuration.

    Args:
        config: which data, and how.
        device: where the batches shall be.
        rank, world_size: which of so many training processes this is; each gets its share of every batch.

    Raises:
        UserError: the images are not there, or `num_classes` or `image_size` is not that of the data set.
    """
    rand_augment = config.rand_augment
    train, val = load_training_splits(
        config.dataset,
        data_dir=config.data_dir,
        val_fraction=config.val_fraction,
        seed=config.seed,
        augment=config.augment,
        color_jitter=0 if rand_augment else config.color_jitter,  # RandAugment changes colours itself
        rand_augment=rand_augment,
        image_size=config.image_size,
    )
    options: dict[str, Any] = {"device": device, "rank": rank, "world_size": world_size}
    return make_loader(train, config, **options), make_loader(val, config, **options)


def make_loader(
    split: Split | FolderSplit,
    config: Config,
    device: torch.device | str = "cpu",
    rank: int = 0,
    world_size: int = 1,
) -> Loader:
    """The batches of one split as `config` asks for them; only training images are shuffled.

    Raises:
        UserError: `num_classes` or `image_size` is not that of the data set, or it does not fit into memory.
    """
    _check_sizes(split.source, config)
    options: dict[str, Any] = {
        "seed": config.seed,
        "shuffle": split.name == "train",
        "device": device,
        "loader": config.loader,
        "num_workers": config.num_workers,
        "rank": rank,
        "world_size": world_size,
    }
    if isinstance(split, FolderSplit):
        return FolderLoader(split, config.batch_size, **options)
    return BatchLoader(split, config.batch_size, **options)


def _check_sizes(source: Source, config: Config) -> None:
    if config.num_classes != len(source.classes):
        raise UserError(
            f"num_classes is {config.num_classes}, but {config.dataset} has {len(source.classes)} classes; "
            "correct num_classes"
        )
    if source.image_size and config.image_size != source.image_size:
        raise UserError(
            f"image_size is {config.image_size}, but the images of {config.dataset} have {source.image_size} pixels; "
            "correct image_size"
        )


def load_training_splits(
    dataset: str,
    *,
    data_dir: str = "data/raw",
    val_fraction: float = 0.1,
    seed: int = 0,
    augment: bool = True,
    color_jitter: float = 0.2,
    rand_augment: int = 0,
    image_size: int = 32,
) -> tuple[Split, Split] | tuple[FolderSplit, FolderSplit]:
    """Divide the training images into "train" and "val"; the test images are not touched.

    Args:
        dataset: a key of `SOURCES`.
        data_dir: where data sets are.
        val_fraction: part of each class that "val" gets and "train" does not.
        seed: of that division.
        augment: whether "train" is augmented.
        color_jitter: change of brightness and contrast when it is.
        rand_augment: magnitude of RandAugment when it is; 0 is off.
        image_size: of images that have no common size of their own.

    Raises:
        UserError: the data are not there.
    """
    source = SOURCES[dataset]
    augmentation = NO_AUGMENTATION
    if augment:
        augmentation = replace(
            source.augmentation, brightness=color_jitter, contrast=color_jitter, rand_magnitude=rand_augment
        )
    if source.read is None:
        return load_folder_training_splits(source, dataset, data_dir, val_fraction, seed, augmentation, image_size)
    images, labels = source.read(Path(data_dir), "train")
    train_index, val_index = stratified_split(labels, val_fraction, seed)
    # Two objects, each with its own augmentation: what validation sees cannot depend on what is done for training.
    train = Split("train", *_tensors(images, labels, train_index), source, augmentation, _fingerprint(train_index))
    val = Split("val", *_tensors(images, labels, val_index), source, NO_AUGMENTATION, _fingerprint(val_index))
    return train, val


def load_test_split(dataset: str, *, data_dir: str = "data/raw", image_size: int = 32) -> Split | FolderSplit:
    """The test images. Called by evaluate.py alone: whatever looks at them before that makes their accuracy a lie.

    Raises:
        UserError: the data are not there.
    """
    source = SOURCES[dataset]
    if source.read is None:
        return load_folder_test_split(source, dataset, data_dir, image_size)
    images, labels = source.read(Path(data_dir), "test")
    index = np.arange(len(labels))
    return Split("test", *_tensors(images, labels, index), source, NO_AUGMENTATION, _fingerprint(index))


def _tensors(images: Images, labels: Labels, index: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(images[index]), torch.from_numpy(labels[index])


def _fingerprint(index: np.ndarray) -> str:
    return hashlib.sha256(index.astype("<i8").tobytes()).hexdigest()[:16]


def visualize_batch(loader: Loader, path: Path, num_images: int = 16) -> None:
    """Save the first images of a batch as a PNG: what the model sees, normalisation undone, with class names."""
    from engine.plots import plot_images  # matplotlib is slow to import, and training has no use for it

    images, labels = next(iter(loader))
    source = loader.dataset.source
    images = images[:num_images].permute(0, 2, 3, 1).cpu()  # (B, H, W, 3)
    pixels = (images * torch.tensor(source.std) + torch.tensor(source.mean)).clamp(0, 1).numpy()
    captions = [source.classes[label] for label in labels[:num_images].tolist()]
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_images(pixels, captions, f"A {loader.dataset.name} batch, as the model sees it", path)


def main(argv: list[str] | None = None) -> int:
    """Print the sizes of the splits and save a picture of a training batch."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    arguments = parser.parse_args(argv)
    config = load_config(arguments.config, arguments.set)
    train_loader, val_loader = get_dataloaders(config)
    print(f"Train batches: {len(train_loader)}")
    print(f"Val batches: {len(val_loader)}")
    print(f"Train samples: {len(train_loader.dataset)}")
    print(f"Val samples: {len(val_loader.dataset)}")
    path = Path("runs/sample_batch.png")
    visualize_batch(train_loader, path)
    print(f"Saved {path}")
    return 0


if __name__ == "__main__":
    sys.exit(run_script(main))

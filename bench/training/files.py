"""Folders in CIFAR-10's own format, of some of its images or of random ones."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np

FOLDER = "cifar-10-batches-py"
ALL_IMAGES = 50_000
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FILES = 5


def write_cifar10(root: Path, images: int, source: Path | None) -> None:
    """Write the five training files and `batches.meta` to `root`/cifar-10-batches-py; there are no test images.

    Args:
        root: what a data set's `root` shall be.
        images: in all five files; a multiple of 50, so that random labels are balanced in each.
        source: root of the real CIFAR-10, whose first images are taken; None: pixels are random.
    """
    folder = root / FOLDER
    folder.mkdir(parents=True)
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}, protocol=2))
    for number in range(1, FILES + 1):
        name = f"data_batch_{number}"
        batch = _first(source / FOLDER / name, images // FILES) if source else _random(images // FILES, seed=number)
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))


def _first(path: Path, images: int) -> dict[str, object]:
    with path.open("rb") as file:
        batch = pickle.load(file, encoding="latin1")
    return {"data": batch["data"][:images], "labels": batch["labels"][:images]}


def _random(images: int, seed: int) -> dict[str, object]:
    generator = np.random.default_rng(seed)
    pixels = generator.integers(0, 256, (images, 3 * 32 * 32), dtype=np.uint8)
    return {"data": pixels, "labels": generator.permutation(np.arange(images) % len(CLASSES)).tolist()}

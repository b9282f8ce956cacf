"""The data sets: where their images come from, and the facts about each that augmentation and normalisation need."""

import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from data.augment import Augmentation
from engine.errors import UserError, describe_os_error

Images = np.ndarray  # uint8 (N, H, W, 3)
Labels = np.ndarray  # int64 (N,)

CIFAR10_FOLDER = "cifar-10-batches-py"
DIGITS_TEST_SEED = 0  # fixed, so that the test images do not depend on the seed of a run


@dataclass(frozen=True)
class Source:
    """A data set.

    Args:
        classes: names of the classes, by label.
        mean, std: of each channel over the training images (validation included), for pixels in [0, 1].
        augmentation: what may happen to a training image without making its label wrong.
        read: takes the download folder and "train" or "test"; returns the images and labels of that part. None: the
            images are files in folders, see data/folders.py.
        image_size: height and width in pixels; None: any, images are cropped to what is asked for.
    """

    classes: tuple[str, ...]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    augmentation: Augmentation
    read: Callable[[Path, str], tuple[Images, Labels]] | None
    image_size: int | None = 32


def read_cifar10(data_dir: Path, part: str) -> tuple[Images, Labels]:
    """CIFAR-10 (Krizhevsky 2009): 50,000 training or 10,000 test images, 32x32.

    Reads from the folder in the environment variable KIT_DATA when that is set, otherwise from `data_dir`, where it is
    downloaded to the first time.

    Raises:
        UserError: the images are not there, are damaged, or cannot be downloaded.
    """
    root = Path(os.environ.get("KIT_DATA") or data_dir)
    if not (root / CIFAR10_FOLDER).is_dir():
        if os.environ.get("KIT_DATA"):
            raise UserError(f"KIT_DATA is {root}, but it holds no {CIFAR10_FOLDER}; correct or unset the variable")
        _download_cifar10(root)
    try:
        cifar10 = _cifar10_class(part)(root, train=part == "train", download=False)
    except RuntimeError:
        raise UserError(
            f"the CIFAR-10 files in {root / CIFAR10_FOLDER} are damaged or incomplete (checksums differ); "
            "delete that folder and start again"
        ) from None
    return cifar10.data, np.array(cifar10.targets, dtype=np.int64)


def _cifar10_class(part: str) -> type:
    from torchvision.datasets import CIFAR10  # here, because the import takes seconds that digits need not pay

    if part == "test":
        return CIFAR10

    class TrainingImages(CIFAR10):
        """CIFAR10 that leaves the test images alone: verifying the checksums would open their file as well."""

        test_list: ClassVar[list] = []

    return TrainingImages


def _download_cifar10(root: Path) -> None:
    """Download into a temporary folder and move the result in place when it is whole."""
    from torchvision.datasets import CIFAR10

    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as folder:
        try:
            CIFAR10(folder, download=True)  # shows progress, verifies the checksums
        except (OSError, RuntimeError) as error:
            reason = describe_os_error(error) if isinstance(error, OSError) else str(error)
            raise UserError(
                f"CIFAR-10 is not in {root} and could not be downloaded ({reason}); set KIT_DATA to a folder that "
                f"holds {CIFAR10_FOLDER}, or use the data set that needs no download: --set dataset=digits"
            ) from None
        shutil.move(Path(folder) / CIFAR10_FOLDER, root / CIFAR10_FOLDER)


def read_digits(data_dir: Path, part: str) -> tuple[Images, Labels]:
    """Handwritten digits of scikit-learn, 8x8 in 17 grey levels, enlarged to 32x32 RGB: 1,438 to train, 359 to test.

    There is no official test part; a fifth of each class is set aside, always the same. `data_dir` is not used: the
    images come with scikit-learn.
    """
    from sklearn.datasets import load_digits

    digits = load_digits()
    labels = digits.target.astype(np.int64)
    train, test = stratified_split(labels, fraction=0.2, seed=DIGITS_TEST_SEED)
    chosen = train if part == "train" else test
    grey = np.rint(digits.images[chosen] * (255 / 16)).astype(np.uint8)  # (N, 8, 8)
    large = grey.repeat(4, axis=1).repeat(4, axis=2)  # (N, 32, 32)
    return np.repeat(large[..., None], 3, axis=3), labels[chosen]


def stratified_split(labels: Labels, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Set aside `fraction` of each class, at least one image and never all: sorted indices (kept, set aside)."""
    generator = np.random.default_rng(seed)
    aside = []
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        aside.append(members[: min(max(1, round(fraction * len(members))), len(members) - 1)])
    set_aside = np.sort(np.concatenate(aside))
    return np.setdiff1d(np.arange(len(labels)), set_aside), set_aside


SOURCES = {
    "cifar10": Source(
        classes=("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        augmentation=Augmentation(padding=4, flip=True, brightness=0.2, contrast=0.2),
        read=read_cifar10,
    ),
    "digits": Source(
        classes=tuple("0123456789"),
        # The mean and standard deviation of all pixels of the training part; the three channels are the same.
        mean=(0.3055, 0.3055, 0.3055),
        std=(0.3759, 0.3759, 0.3759),
        # No flip: a mirrored 3 is not a 3.
        augmentation=Augmentation(padding=4, flip=False, brightness=0.2, contrast=0.2),
        read=read_digits,
    ),
    "imagenet": Source(
        classes=(),  # the folders' names
        # Of the ImageNet training images; the values that torchvision's and most published models use.
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        augmentation=Augmentation(padding=0, flip=True, brightness=0.2, contrast=0.2),
        read=None,
        image_size=None,
    ),
}

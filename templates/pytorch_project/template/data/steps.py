"""What happens to one image between its file and its batch; torchvision's transforms, put together."""

from collections.abc import Callable
from typing import Any

import torch

from data.augment import Augmentation
from data.randaugment import OPERATIONS

# For evaluation the shorter side is so much longer than the crop in its middle (Krizhevsky et al. 2012, section 4.1).
RESIZE = 256 / 224


def compose(steps: list[Any]) -> Callable[[Any], Any]:
    """All steps as one."""
    from torchvision.transforms import v2  # in functions, because the import takes seconds that others need not pay

    return v2.Compose(steps)


def training_crop(size: int) -> list[Any]:
    """A random part of 8% to 100% of the image, scaled (Szegedy et al. 2015, section 6)."""
    from torchvision.transforms import v2

    return [v2.PILToTensor(), v2.RandomResizedCrop(size, antialias=True)]


def evaluation_crop(size: int) -> list[Any]:
    """The middle of the image."""
    from torchvision.transforms import v2

    return [v2.PILToTensor(), v2.Resize(round(RESIZE * size), antialias=True), v2.CenterCrop(size)]


def augmenting_steps(augmentation: Augmentation) -> list[Any]:
    """Flip, RandAugment and colour jitter, as far as they are asked for."""
    from torchvision.transforms import v2

    steps: list[Any] = [v2.RandomHorizontalFlip()] if augmentation.flip else []
    if augmentation.rand_magnitude:
        steps.append(v2.RandAugment(num_ops=OPERATIONS, magnitude=augmentation.rand_magnitude))
    if augmentation.brightness or augmentation.contrast:
        steps.append(v2.ColorJitter(augmentation.brightness, augmentation.contrast))
    return steps


def normalising_steps(mean: tuple[float, ...], std: tuple[float, ...]) -> list[Any]:
    """Pixels to [0, 1], then to mean 0 and deviation 1."""
    from torchvision.transforms import v2

    return [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean, std)]

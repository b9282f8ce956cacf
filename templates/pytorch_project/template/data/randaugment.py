"""RandAugment (Cubuk et al. 2020): two random operations an image, such as a rotation or posterising."""

import torch
from torch import Tensor

OPERATIONS = 2  # N of the paper for ImageNet; M, the magnitude, is `rand_augment` in config.yaml


def rand_augment(pixels: Tensor, magnitude: int, seeds: list[int]) -> Tensor:
    """Change each image of uint8 (B, H, W, C) in its own way, which its seed alone decides.

    The operations are torchvision's, with `magnitude` of 30 as their strength. They draw from torch's global generator,
    so that is seeded here and put back afterwards.
    """
    from torchvision.transforms import v2  # here, because the import takes seconds that others need not pay

    operation = v2.RandAugment(num_ops=OPERATIONS, magnitude=magnitude)
    images = pixels.permute(0, 3, 1, 2)  # (B, C, H, W)
    with torch.random.fork_rng(devices=[]):
        changed = []
        for image, seed in zip(images, seeds, strict=True):
            torch.default_generator.manual_seed(seed)  # not torch.manual_seed, which seeds the GPUs as well
            changed.append(operation(image))
    return torch.stack(changed).permute(0, 2, 3, 1).contiguous()

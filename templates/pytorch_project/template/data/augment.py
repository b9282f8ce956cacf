"""Augmentation of a whole batch at once, with its own random draw for every image.

Random crop, horizontal flip and colour jitter as torchvision defines them, but vectorised: one call handles a batch of
uint8 images on the device where they are. All randomness comes from (seed, epoch, batch), so a batch has the
same augmentation on the CPU and the GPU, with and without loader workers, and when training continues inside an epoch.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from data.randaugment import rand_augment

# ITU-R BT.601 luma, the weights of PIL's and torchvision's greyscale conversion.
GREY_WEIGHTS = (0.2989, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """What may happen to a training image.

    Args:
        padding: pixels of black border added on each side before a random crop back to the original size; 0 is no crop.
        flip: mirror half of the images left to right.
        brightness, contrast: factors are drawn from [1 - value, 1 + value]; 0 is off.
        rand_magnitude: of RandAugment, see data/randaugment.py; 0 is off.
    """

    padding: int = 4
    flip: bool = True
    brightness: float = 0.2
    contrast: float = 0.2
    rand_magnitude: int = 0


@dataclass(frozen=True)
class Share:
    """Which images of a batch this process works on, where several processes share each batch.

    Random numbers are drawn for the whole batch, so that an image gets the same ones whoever works on it.

    Args:
        batch_size: images in the whole batch.
        start, stop: the share.
    """

    batch_size: int
    start: int
    stop: int

    @classmethod
    def of_rank(cls, batch_size: int, rank: int, world_size: int) -> "Share":
        """The share of process `rank` of `world_size`; they differ by one image at most."""
        return cls(batch_size, batch_size * rank // world_size, batch_size * (rank + 1) // world_size)

    @property
    def images(self) -> slice:
        """The share as an index into the batch."""
        return slice(self.start, self.stop)


NO_AUGMENTATION = Augmentation(padding=0, flip=False, brightness=0.0, contrast=0.0)


def seeded_generator(seed: int, epoch: int, stream: int) -> torch.Generator:
    """A generator whose numbers depend on nothing but the three arguments.

    `stream` 0 orders the epoch, `stream` b + 1 augments batch b. SeedSequence mixes the three, so that neighbouring
    batches are not correlated.
    """
    mixed = np.random.SeedSequence([seed, epoch, stream]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(mixed))


def pad_images(images: Tensor, padding: int) -> Tensor:
    """Add a black border: uint8 (N, H, W, C) -> (N, H + 2p, W + 2p, C)."""
    if padding == 0:
        return images
    return torch.nn.functional.pad(images, (0, 0, padding, padding, padding, padding))


def make_batch(
    padded: Tensor,
    index: Tensor,
    augmentation: Augmentation,
    mean: tuple[float, ...],
    std: tuple[float, ...],
    generator: torch.Generator | None,
    share: Share | None = None,
) -> Tensor:
    """Take images out of `padded`, augment and normalise them.

    Args:
        padded: uint8 (N, H + 2p, W + 2p, C), from `pad_images`.
        index: int64 (B,), which images.
        augmentation: what to do; its padding is the p above.
        mean, std: of each channel, for pixels in [0, 1].
        generator: a CPU generator; not needed without augmentation.
        share: what the images are of their batch; the whole, unless given.

    Returns:
        float32 (B, C, H, W) in channels_last memory format, on the device of `padded`.
    """
    share = share or Share(len(index), 0, len(index))
    pixels = random_crop(padded, index, augmentation.padding, generator, share)  # (B, H, W, C) uint8
    if augmentation.flip:
        pixels = random_flip(pixels, generator, share)
    if augmentation.rand_magnitude:
        seeds = torch.randint(2**62, (share.batch_size,), generator=generator)[share.images]
        pixels = rand_augment(pixels, augmentation.rand_magnitude, seeds.tolist())
    images = pixels.float()
    if augmentation.brightness or augmentation.contrast:
        images = color_jitter(images, augmentation.brightness, augmentation.contrast, generator, share)
    normalize_(images, mean, std)
    return images.permute(0, 3, 1, 2)


def random_crop(
    padded: Tensor, index: Tensor, padding: int, generator: torch.Generator | None, share: Share | None = None
) -> Tensor:
    """Crop each image at its own offset: (N, H + 2p, W + 2p, C) and (B,) -> (B, H, W, C)."""
    if padding == 0:
        return padded.index_select(0, index)
    _, full_height, full_width, channels = padded.shape
    height, width = full_height - 2 * padding, full_width - 2 * padding
    share = share or Share(len(index), 0, len(index))
    offsets = torch.randint(0, 2 * padding + 1, (2, share.batch_size), generator=generator)
    top, left = offsets[:, share.images].to(padded.device)
    # A sliding window over the pixels of all images, one row of a crop wide, as a view without a copy. Selecting H such
    # rows copies a crop in long contiguous pieces: eight times as fast as indexing a view of windows.
    window_count = padded.numel() // channels - width + 1
    windows = padded.as_strided((window_count, width * channels), (channels, 1))
    first_row = (index * full_height + top) * full_width + left  # (B,) the pixel where each crop starts
    rows = first_row.unsqueeze(1) + full_width * torch.arange(height, device=padded.device)  # (B, H)
    return windows.index_select(0, rows.flatten()).view(-1, height, width, channels)


def random_flip(pixels: Tensor, generator: torch.Generator | None, share: Share | None = None) -> Tensor:
    """Mirror each image of (B, H, W, C) left to right with probability 1/2."""
    count = len(pixels)
    share = share or Share(count, 0, count)
    flipped = (torch.rand(share.batch_size, generator=generator) < 0.5)[share.images].to(pixels.device)
    chosen = torch.arange(count, device=pixels.device) + count * flipped
    return torch.cat([pixels, pixels.flip(2)]).index_select(0, chosen)


def color_jitter(
    images: Tensor,
    brightness: float,
    contrast: float,
    generator: torch.Generator | None,
    share: Share | None = None,
) -> Tensor:
    """Change brightness and contrast of float images (B, H, W, C) in [0, 255], each with its own factors, in place.

    torchvision's ColorJitter applies the two in random order: brightness multiplies by b, contrast blends with the mean
    grey m as c * x + (1 - c) * m, and both clamp. Either is an affine map of the pixels, so a batch needs two passes
    `x = clamp(x * scale + offset)` whose scale and offset depend on the order that each image drew.
    """
    share = share or Share(len(images), 0, len(images))
    draws = torch.rand(3, share.batch_size, 1, generator=generator)[:, share.images].to(images.device)  # (3, B, 1)
    bright = 1 + brightness * (2 * draws[0] - 1)
    contr = 1 + contrast * (2 * draws[1] - 1)
    return apply_jitter(images, bright, contr, brightness_first=draws[2] < 0.5)


def apply_jitter(images: Tensor, bright: Tensor, contr: Tensor, brightness_first: Tensor) -> Tensor:
    """The two passes of `color_jitter` with given factors: images (B, H, W, C) in [0, 255]; the rest (B, 1)."""
    flat = images.view(len(images), -1)  # (B, H * W * C)
    pixel_count = images.shape[1] * images.shape[2]
    grey = torch.tensor(GREY_WEIGHTS, device=images.device).div(pixel_count).repeat(pixel_count)

    contrast_offset = (1 - contr) * (flat @ grey).unsqueeze(1)
    flat.mul_(torch.where(brightness_first, bright, contr))
    flat.add_(torch.where(brightness_first, 0, contrast_offset)).clamp_(0, 255)

    # The grey mean is taken again: the image that contrast now acts on is the brightened and clamped one.
    contrast_offset = (1 - contr) * (flat @ grey).unsqueeze(1)
    flat.mul_(torch.where(brightness_first, contr, bright))
    flat.add_(torch.where(brightness_first, contrast_offset, 0)).clamp_(0, 255)
    return images


def normalize_(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    """(x / 255 - mean) / std in place, for float (B, H, W, C) in [0, 255]."""
    width = images.shape[2]
    scale = 1 / (255 * torch.tensor(std))
    shift = -torch.tensor(mean) / torch.tensor(std)
    # Whole rows instead of pixels of three values: the inner loop is then long enough for vector instructions.
    rows = images.view(*images.shape[:2], -1)  # (B, H, W * C)
    rows.mul_(scale.repeat(width).to(images.device)).add_(shift.repeat(width).to(images.device))

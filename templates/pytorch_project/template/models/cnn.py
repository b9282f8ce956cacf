"""A plain convolutional network for small images: three conv blocks, two fully connected layers."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class ConvBlock(nn.Sequential):
    """3x3 convolution, batch norm, ReLU, 2x2 max-pool: (B, C_in, H, W) -> (B, C_out, H // 2, W // 2)."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(2),
        )


class SimpleCNN(nn.Module):
    """Conv blocks, then a hidden layer and the classifier. 1,147,914 parameters with the defaults.

    Args:
        num_classes: number of logits.
        channels: width of each block; every block halves the image.
        hidden: width of the hidden fully connected layer.
        in_channels: channels of the input image.
        image_size: height and width of the input image, in pixels.

    Raises:
        ValueError: a size is not positive, or the image is too small to be halved by every block.
    """

    def __init__(
        self,
        num_classes: int = 10,
        *,
        channels: Sequence[int] = (32, 64, 128),
        hidden: int = 512,
        in_channels: int = 3,
        image_size: int = 32,
    ) -> None:
        super().__init__()
        _check_sizes(num_classes, channels, hidden, in_channels, image_size)
        self.image_shape = (in_channels, image_size, image_size)
        widths = [in_channels, *channels]
        self.blocks = nn.Sequential(*(ConvBlock(*pair) for pair in pairwise(widths)))
        final_size = image_size // 2 ** len(channels)
        self.hidden = nn.Linear(channels[-1] * final_size**2, hidden)
        self.classifier = nn.Linear(hidden, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images: (B, in_channels, image_size, image_size) -> (B, num_classes)."""
        if x.shape[1:] != self.image_shape:
            raise ValueError(f"expected images (B, C, H, W) with C, H, W = {self.image_shape}, got {tuple(x.shape)}")
        x = self.blocks(x)  # (B, 128, 4, 4)
        x = torch.flatten(x, 1)  # (B, 2048)
        x = torch.relu(self.hidden(x))  # (B, 512)
        return self.classifier(x)


def _check_sizes(num_classes: int, channels: Sequence[int], hidden: int, in_channels: int, image_size: int) -> None:
    if not channels:
        raise ValueError("channels needs the width of at least one block")
    for name, value in [
        ("num_classes", num_classes),
        ("hidden", hidden),
        ("in_channels", in_channels),
        ("image_size", image_size),
        *(("channels", width) for width in channels),
    ]:
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if image_size < 2 ** len(channels):
        raise ValueError(
            f"image_size {image_size} is too small: {len(channels)} blocks halve it, so it must be at least "
            f"{2 ** len(channels)}"
        )

"""Residual networks for small images: those of He et al. 2016, "Deep residual learning", section 4.2."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STAGE_WIDTHS = (16, 32, 64)

Shortcut = Literal["A", "B"]


class PadShortcut(nn.Module):
    """Option A: every second pixel, new channels filled with zeros. Has no parameters.

    (B, C_in, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride, self.new_channels = stride, out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        """Thin out and pad."""
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class ConvShortcut(nn.Sequential):
    """Option B: 1x1 convolution with the stride, and batch norm. Shapes as for option A."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )


SHORTCUTS = {"A": PadShortcut, "B": ConvShortcut}


class BasicBlock(nn.Module):
    """Two 3x3 convolutions, batch norm after each, and a shortcut around both.

    (B, C_in, H, W) -> (B, C_out, ceil(H / stride), ceil(W / stride)).

    Args:
        in_channels, out_channels: widths before and after.
        stride: of the first convolution; 2 halves height and width.
        shortcut: what the shortcut does where it cannot be the identity, "A" or "B".
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, shortcut: Shortcut = "A") -> None:
        super().__init__()
        # No bias: batch norm would subtract it again.
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        same_shape = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if same_shape else SHORTCUTS[shortcut](in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        """relu(shortcut(x) + residual(x)); the sum comes before the last ReLU (figure 2 of the paper)."""
        residual = torch.relu(self.bn1(self.conv1(x)))
        residual = self.bn2(self.conv2(residual))
        return torch.relu(self.shortcut(x) + residual)


class ResNet(nn.Module):
    """A stem of 16 channels, three stages of 16, 32 and 64, global average pooling, a linear head.

    With n blocks a stage there are 6n + 2 weighted layers: n = 1, 3, 5, 7, 9, 18 give ResNet-8, 20, 32, 44, 56, 110.
    The default is the smallest: 75,290 parameters (78,042 with shortcut B); ResNet-20 has 269,722 (272,474).

    Initialised as in He et al. 2015, "Delving deep into rectifiers", eq. 10: normal with variance 2 / fan-in.

    Args:
        num_classes: number of logits.
        blocks_per_stage: n above.
        shortcut: "A" (zero padding, what the paper uses for CIFAR-10) or "B" (1x1 convolution and batch norm).
        in_channels: channels of the input image.

    Raises:
        ValueError: a size is not positive, or there is no such shortcut.
    """

    def __init__(
        self, num_classes: int = 10, *, blocks_per_stage: int = 1, shortcut: Shortcut = "A", in_channels: int = 3
    ) -> None:
        super().__init__()
        _check(num_classes, blocks_per_stage, shortcut, in_channels)
        self.in_channels = in_channels
        self.stem = nn.Sequential(
            nn.Conv2d(in_channels, STAGE_WIDTHS[0], 3, padding=1, bias=False),
            nn.BatchNorm2d(STAGE_WIDTHS[0]),
            nn.ReLU(),
        )
        self.stage1 = make_stage(STAGE_WIDTHS[0], STAGE_WIDTHS[0], 1, blocks_per_stage, shortcut)
        self.stage2 = make_stage(STAGE_WIDTHS[0], STAGE_WIDTHS[1], 2, blocks_per_stage, shortcut)
        self.stage3 = make_stage(STAGE_WIDTHS[1], STAGE_WIDTHS[2], 2, blocks_per_stage, shortcut)
        self.head = nn.Linear(STAGE_WIDTHS[2], num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Logits of a batch of images: (B, in_channels, H, W) -> (B, num_classes); H and W at least 4."""
        if x.dim() != 4 or x.shape[1] != self.in_channels or min(x.shape[2:]) < 4:
            raise ValueError(
                f"expected images (B, {self.in_channels}, H, W) with H and W at least 4, got {tuple(x.shape)}"
            )
        x = self.stem(x)  # (B, 16, H, W)
        x = self.stage1(x)  # (B, 16, H, W)
        x = self.stage2(x)  # (B, 32, H / 2, W / 2)
        x = self.stage3(x)  # (B, 64, H / 4, W / 4)
        x = x.mean(dim=(2, 3))  # (B, 64): global average pooling
        return self.head(x)


def make_stage(in_channels: int, out_channels: int, stride: int, blocks: int, shortcut: Shortcut) -> nn.Sequential:
    """`blocks` basic blocks; the first takes the stride and the change of width."""
    first = BasicBlock(in_channels, out_channels, stride, shortcut)
    return nn.Sequential(first, *(BasicBlock(out_channels, out_channels) for _ in range(blocks - 1)))


def _check(num_classes: int, blocks_per_stage: int, shortcut: str, in_channels: int) -> None:
    sizes = {"num_classes": num_classes, "blocks_per_stage": blocks_per_stage, "in_channels": in_channels}
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if shortcut not in SHORTCUTS:
        raise ValueError(f"shortcut must be one of {', '.join(SHORTCUTS)}, got {shortcut!r}")

"""A backbone and a head."""

import torch.nn as nn


def conv_block(in_channels, out_channels):
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.backbone = nn.Sequential(conv_block(3, 16), conv_block(16, 32), nn.Flatten())
        self.head = nn.Linear(32 * 3 * 3, num_classes)

    def forward(self, x):
        return self.head(self.backbone(x))

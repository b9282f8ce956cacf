"""Tasks of telling patches of colour apart."""

import torch
import torch.nn.functional as F
from torch.utils.data import TensorDataset


def make_task(num_classes, n, seed):
    """Images, (n, 3, 12, 12), of `num_classes` patterns that all tasks share, and labels, (n,)."""
    patterns = torch.randn(8, 3, 3, 3, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(num_classes, (n,), generator=generator)
    images = F.interpolate(patterns, size=12, mode="bilinear")[labels]
    images = images + 3 * torch.randn(images.shape, generator=generator)
    return TensorDataset(images, labels)

"""A model's answers for every image of a loader, and what they are worth."""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def predict(model: nn.Module, batches: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Logits (N, num_classes) and labels (N,) of all images, on the CPU; leaves the model in eval mode."""
    model.eval()
    logits, labels = [], []
    for images, targets in batches:
        logits.append(model(images).cpu())
        labels.append(targets.cpu())
    return torch.cat(logits), torch.cat(labels)


def loss_and_accuracy(logits: Tensor, labels: Tensor) -> tuple[float, float]:
    """Mean cross entropy and share of right answers (0 to 1), every image weighing the same."""
    loss = F.cross_entropy(logits.double(), labels).item()
    accuracy = (logits.argmax(1) == labels).sum().item() / len(labels)
    return loss, accuracy

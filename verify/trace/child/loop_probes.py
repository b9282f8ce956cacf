"""Probes of the loss and the training step, on copies of the live objects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

SATURATED = 100.0


def probe_loop(captured: Any) -> dict[str, Any]:
    """What the loss does on saturated scores."""
    return {"saturated": _saturated(captured)}


def _saturated(captured: Any) -> dict[str, Any]:
    """The last loss function on scores of +-100, with the recorded targets."""
    if captured.loss is None:
        return {"skipped": "no loss function of torch was called"}
    name, function, args, options, targets = captured.loss
    if name not in ("cross_entropy", "nll_loss", "binary_cross_entropy_with_logits"):
        return {"skipped": f"{name} is not judged"}
    if captured.num_classes is None or not isinstance(targets, Tensor) or targets.dim() != 1:
        return {"skipped": "the loss takes no class indices"}
    scores = torch.full((len(targets), captured.num_classes), -SATURATED)
    scores[:, 0] = SATURATED
    value = function(scores, targets, *args, **options)
    return {"fn": name, "finite": bool(value.isfinite().all())}

"""Seeds, and whether tensors and models are the same or share memory."""

from __future__ import annotations

import math
import random
import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn


def generators() -> tuple[Any, ...]:
    """What tells the states of all generators apart; equal before and after a pass that draws no number."""
    numpy = sys.modules.get("numpy")
    parts: list[Any] = [hash(random.getstate()), hash(tuple(torch.get_rng_state().tolist()))]
    if numpy is not None:
        parts.append(hash(str(numpy.random.get_state())))
    if torch.cuda.is_initialized():
        parts.append(hash(tuple(torch.cuda.get_rng_state().tolist())))
    return tuple(parts)


def seed_everything(seed: int) -> None:
    """Seed torch on every device, and Python's `random`, which constructors use too."""
    random.seed(seed)
    torch.manual_seed(seed)


def storage_of(tensor: Tensor) -> int | None:
    """What tensors that share memory have in common; None for sparse and opaque ones, which have no storage."""
    try:
        storage: int = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None
    return storage


def max_difference(a: Tensor, b: Tensor) -> float:
    """The largest |a - b|; the same NaN or infinity in both is no difference, other shapes an infinite one."""
    if a.shape != b.shape:
        return math.inf
    difference = (a - b).abs()
    same = (a == b) | (a.isnan() & b.isnan())
    return difference.masked_fill(same, 0).max().item() if a.numel() else 0.0


def same_tensor(a: Tensor | None, b: Tensor | None) -> bool:
    """Whether two tensors are equal but for rounding, or cannot be compared."""
    if a is None or b is None or a.shape != b.shape:
        return True  # nothing to compare
    scale = a.abs().nan_to_num(0.0, 0.0).max().item() if a.numel() else 0.0
    return max_difference(a, b) <= 1e-5 * scale


def same_parameters(model: nn.Module, other: nn.Module) -> bool:
    """Whether two builds have the same numbers, as copies of one model do."""
    others = dict(other.named_parameters())
    return all(name not in others or same_tensor(p, others[name]) for name, p in model.named_parameters())


def float_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """(name, values) of the floating point parameters and buffers."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            yield name, tensor.detach()

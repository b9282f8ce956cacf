"""Small measurements of tensors, cheap enough for every step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

SUM_TOLERANCE = 1e-4
TARGET_KEYS = ("label", "labels", "target", "targets", "y", "class", "classes", "label_ids")
LARGEST_HASHED = 4 * 2**20


def tensors_of(value: Any, depth: int = 4) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples, mappings and dataclass-like outputs, in order."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item, depth - 1)
    elif depth and isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_of(item, depth - 1)
    elif depth and hasattr(value, "logits"):
        yield from tensors_of(value.logits, depth - 1)


def named_targets(batch: Any) -> Tensor | None:
    """What a batch itself calls its labels."""
    if not isinstance(batch, Mapping):
        return None
    named = [value for key, value in batch.items() if str(key).lower() in TARGET_KEYS and isinstance(value, Tensor)]
    return named[0] if named else None


def possible_targets(batch: Any, count: int, classes: int) -> list[Tensor]:
    """The tensors of a batch that may be class numbers (count,) below `classes`."""
    named = named_targets(batch)
    found = [named] if named is not None else list(tensors_of(batch))
    whole = [t for t in found if t.dim() == 1 and len(t) == count and not t.is_floating_point() and count]
    return [t for t in whole if t.dtype is not torch.bool and int(t.min()) >= 0 and int(t.max()) < classes]


def inputs_and_targets(batch: Any) -> tuple[Tensor | None, Tensor | None]:
    """The first float tensor of a batch, and the first that may be its targets: of the same length, after it."""
    named = named_targets(batch)
    found = [t for t in tensors_of(batch) if t is not named]
    inputs = next((t for t in found if t.is_floating_point() and t.dim() >= 2), None)
    if inputs is None:
        inputs = next((t for t in found if t.dim() >= 2), None)
    if inputs is None:
        return None, None
    if named is not None and named.dim() >= 1 and len(named) == len(inputs):
        return inputs, named
    rest = [t for t in found if t is not inputs and t.dim() >= 1 and len(t) == len(inputs)]
    whole = [t for t in rest if not t.is_floating_point()]
    return inputs, next(iter(whole or rest), None)


def digest(tensor: Tensor | None) -> str:
    """A short hash of the values, of the first 4 MiB."""
    if tensor is None:
        return ""
    data = tensor.detach().to("cpu").contiguous().reshape(-1)
    if data.dtype is torch.bfloat16:
        data = data.float()
    raw = data[: LARGEST_HASHED // data.element_size()].numpy().tobytes()
    return hashlib.blake2b(raw, digest_size=8).hexdigest()


def describe_scores(scores: Tensor) -> dict[str, Any]:
    """What the inputs of a classification loss look like, (B, C) or (B, C, ...): range and sums along classes."""
    with torch.no_grad():
        x = scores.detach()
        if x.numel() > 200_000:
            x = x[: max(1, 200_000 // max(1, x[0].numel()))]
        x = x.float()
        low, high = x.min().item(), x.max().item()
        described: dict[str, Any] = {"shape": list(scores.shape), "min": round(low, 6), "max": round(high, 6)}
        if x.dim() >= 2 and x.shape[1] > 1:
            if low >= 0:
                sums = x.sum(dim=1)
                described["simplex"] = bool((sums - 1).abs().max() < SUM_TOLERANCE)
            elif high <= 0:
                sums = x.exp().sum(dim=1)
                described["log_simplex"] = bool((sums - 1).abs().max() < SUM_TOLERANCE)
                described["columns"] = bool((x.exp().sum(dim=0) - 1).abs().max() < SUM_TOLERANCE) and len(x) > 1
            if low >= 0 and x.shape[0] > 1:
                described["columns"] = bool((x.sum(dim=0) - 1).abs().max() < SUM_TOLERANCE)
        if low == 0:
            described["zeros"] = round((x == 0).float().mean().item(), 3)
    return described


def describe_target(target: Tensor, ignored: int) -> dict[str, Any]:
    """Shape, kind and range of what a loss is given as target."""
    described: dict[str, Any] = {"shape": list(target.shape), "float": target.is_floating_point()}
    with torch.no_grad():
        values = target.detach().reshape(-1)[:100_000]
        if not target.is_floating_point() and target.dtype is not torch.bool:
            known = values[values != ignored]
            if len(known) < len(values) == target.numel():
                described["ignored"] = len(values) - len(known)
                described["ignored_class"] = ignored if ignored >= 0 else None
            values = known
        if values.numel():
            described["min"], described["max"] = values.min().item(), values.max().item()
    return described


def describe_weights(target: Tensor, options: dict[str, Any]) -> dict[str, Any]:
    """The weights of a loss for classes or for positives, and how often these occur in the target."""
    weight, positive = options.get("weight"), options.get("pos_weight")
    described: dict[str, Any] = {"weighted": True} if isinstance(weight, Tensor) else {}
    with torch.no_grad():
        if _is_small(weight) and not target.is_floating_point():
            described["weight"] = [round(w, 4) for w in weight.detach().float().reshape(-1).tolist()]
            labels = target.detach().reshape(-1)
            known = labels[(labels >= 0) & (labels < weight.numel())].long()
            described["counts"] = torch.bincount(known, minlength=weight.numel()).tolist()
        if _is_small(positive) and target.is_floating_point() and target.numel() and target.min() >= 0:
            described["pos_weight"] = [round(w, 6) for w in positive.detach().float().reshape(-1).tolist()]
            described["counts"] = (target > 0.5).float().sum_to_size(positive.shape).reshape(-1).tolist()
            described["count_of"] = target.numel() // positive.numel()
    return described


def _is_small(weight: Any) -> bool:
    return isinstance(weight, Tensor) and 0 < weight.numel() <= 1000


def scalar(value: Any) -> float | None:
    """A number or a tensor of one element on the CPU as a float."""
    if isinstance(value, bool):
        return None
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, Tensor) and value.numel() == 1 and value.device.type == "cpu":
        return float(value.detach())
    if type(value).__module__ == "numpy" and getattr(value, "ndim", 1) == 0:
        return float(value)
    return None

"""What the targets say: the numbers of the classes, and which labels occur how often."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch.utils.data import TensorDataset

from .items import as_tensor, attributes_of, label_of
from .measuring import Json, Unavailable, attempt, attempt_each
from .views import View, plain_key

TARGET_NAMES = ("targets", "labels", "train_labels", "y", "ys", "target", "label", "Y", "_labels", "_targets")


def class_maps(train: View, evals: list[View]) -> Json:
    """Class name to number, of every split that has such a map."""
    ours = _class_map(train)
    if not ours:
        raise Unavailable("the training data has no map of class names")
    result = []
    for i, view in enumerate(evals):
        if view.is_train_loader or any(view.base is dataset for dataset in train.chain):
            continue
        theirs = _class_map(view)
        if theirs:
            different = [name for name in theirs if name in ours and ours[name] != theirs[name]]
            example = [[name, ours[name], theirs[name]] for name in different[:3]]
            result.append({"eval": i, "classes": len(theirs), "different": len(different), "example": example})
    return {"classes": len(ours), "evals": result}


def _class_map(view: View) -> dict[str, int]:
    for dataset in reversed(view.chain):
        own = {**{name: getattr(dataset, name, None) for name in ("class_to_idx", "classes")}, **attributes_of(dataset)}
        for name, value in own.items():
            if not re.search(r"class|label|categor|cls", name) or not isinstance(value, (dict, list, tuple)):
                continue
            found = _as_class_map(value)
            if found:
                return found
    return {}


def _as_class_map(value: Any) -> dict[str, int]:
    if not 1 < len(value) <= 20_000:
        return {}
    if isinstance(value, dict):
        if all(isinstance(k, str) and type(v) is int for k, v in value.items()):
            return dict(value)
        if all(type(k) is int and isinstance(v, str) for k, v in value.items()):
            return {v: k for k, v in value.items()}
        return {}
    unique = all(isinstance(name, str) for name in value) and len(set(value)) == len(value)
    return {name: number for number, name in enumerate(value)} if unique else {}


def labels(train: View, evals: list[View]) -> Json:
    """Which labels occur, how often, in the whole split where its targets can be read, else in the sample."""
    return {
        "train": attempt(lambda: _histogram(train)),
        "evals": attempt_each(evals, _histogram),
    }


def _histogram(view: View) -> Json:
    seen = [y for _, y in view.use.batches if isinstance(y, torch.Tensor) and not y.is_floating_point() and y.ndim == 1]
    in_batches = torch.cat(seen).tolist() if seen else []
    whole = all_targets(view)
    values = (
        whole or [label for label in (label_of(item) for _, item in view.sample) if label is not None] or in_batches
    )
    if not values:
        raise Unavailable("the targets are not class numbers")
    counts: dict[int, int] = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    return {
        "n": len(values),
        "whole": bool(whole),
        "distinct": len(counts),
        "min": min(counts),
        "max": max(counts),
        "counts": [[value, counts[value]] for value in sorted(counts)[:1100]],
        "in_batches": sorted(set(in_batches))[:1100],
        "n_in_batches": len(in_batches),
    }


def all_targets(view: View) -> list[int]:
    """Every label of a split, read from its dataset and checked against fetched items; empty when it cannot be."""
    if view.positions is None:
        return []
    stored = _stored_targets(view.base)
    if stored is None or len(stored) != len(view.base):
        return []
    values = [int(stored[position]) for position in view.positions]
    by_key = dict(zip(view.keys, values, strict=True))
    checked = [(by_key[key], label_of(item)) for key, item in view.sample[:64] if key in by_key]
    agree = [mine == fetched for mine, fetched in checked if fetched is not None]
    return values if agree and all(agree) else []


def _stored_targets(base: Any) -> list[int] | None:
    if isinstance(base, TensorDataset):
        candidates: list[Any] = list(base.tensors[1:2])
    else:
        own = attributes_of(base)
        candidates = [own[name] for name in TARGET_NAMES if name in own]
        candidates += [[pair[1] for pair in own[name]] for name in ("samples", "imgs") if _are_pairs(own.get(name))]
    for value in candidates:
        tensor = as_tensor(value) if not isinstance(value, (list, tuple)) else None
        if tensor is not None and tensor.ndim == 1 and not tensor.is_floating_point():
            return tensor.tolist()
        if isinstance(value, (list, tuple)) and value and all(isinstance(plain_key(v), int) for v in value[:100]):
            return [plain_key(v) for v in value]
    return None


def _are_pairs(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], (list, tuple)) and len(value[0]) == 2
    )

"""Whether fetching items changes what the dataset stores, and how a weighted sampler draws the classes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import TensorDataset

from .items import as_tensor, attributes_of, digest_of, label_of, leaves_of, seed_everything
from .label_probes import all_targets
from .measuring import Json, Unavailable
from .views import View

ITEMS = 24
# The seeds of each round. The first round fills what is filled when an item is fetched for the first time; the one with
# other seeds shows what the same draw made twice does not, such as a hole that is cut where there is one already.
ROUNDS = (0, 0, 0, 1, 0)
LEAST_VALUES = 4  # of a sample; counters and priorities are shorter


def stored_changes(train: View, until: float) -> Json:
    """Of items that were fetched before: how many find their stored samples changed after more fetches.

    Rounds of the same seeds are compared: a sample that is made anew into its place is then the same again, and what
    piles up is not.
    """
    if not train.map_style or train.positions is None:
        raise Unavailable("no map-style dataset was seen")
    train.require_sample(1)
    places = dict(zip(train.keys, train.positions, strict=True))
    keys = [key for key, _ in train.sample[:ITEMS] if key in places]
    containers = list(_containers(train))
    if not containers or not keys:
        raise Unavailable("the dataset holds no samples in memory")
    changed: dict[str, set[Any]] = {name: set() for name, _ in containers}
    before: dict[tuple[str, Any], str] = {}
    for number, other in enumerate(ROUNDS):
        for index, key in enumerate(keys):
            seed_everything(7000 + index + 1000 * other)
            train.dataset[key]
            if time.monotonic() > until:
                raise Unavailable("out of time")
        for name, container in containers if not other else ():
            for key in keys:
                digest = _digest(container, places[key])
                if number and digest and before[name, key] not in ("", digest):
                    changed[name].add(key)
                before[name, key] = digest
    name = max(changed, key=lambda one: len(changed[one]))
    return {"n": len(keys), "changed": len(changed[name]), "name": name, "rounds": len(ROUNDS) - 1}


def _containers(train: View) -> Iterator[tuple[str, Any]]:
    """What the innermost dataset, or one that asks it by the same numbers, holds for each sample."""
    base = train.base
    size = len(base)
    held: Json
    if isinstance(base, TensorDataset):
        held = {f"tensors[{number}]": tensor for number, tensor in enumerate(base.tensors)}
    elif isinstance(base, (list, tuple)):
        held = {"": base}
    else:
        held = attributes_of(base)
    for name, value in held.items():
        try:
            long_enough = len(value) == size and size > 0
        except TypeError:
            continue
        if long_enough and _holds_samples(value):
            yield name, value


def _holds_samples(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(t is not None and t.numel() >= LEAST_VALUES for t in map(as_tensor, leaves_of(value[0])))
    known = isinstance(value, torch.Tensor) or type(value).__module__ == "numpy"
    return known and getattr(value, "ndim", 0) >= 2 and as_tensor(value) is not None and len(value[0]) > 0


def _digest(container: Any, position: int) -> str:
    tensors = [t for t in map(as_tensor, leaves_of(container[position])) if t is not None]
    return "".join(digest_of(tensor) for tensor in tensors if tensor.numel() >= LEAST_VALUES)


def sampler_classes(train: View) -> Json:
    """[class, count, share of the draws] of a weighted sampler; `even`: the samples of a class all weigh the same."""
    sampler = getattr(train.loader, "sampler", None)
    weights = getattr(sampler, "weights", None)
    if weights is None or type(sampler).__name__ != "WeightedRandomSampler":
        raise Unavailable("training does not draw by weights")
    if any(weight <= 0 for weight in torch.as_tensor(weights).tolist()):
        raise Unavailable("some samples are never drawn")
    labels = dict(zip(train.keys, all_targets(train), strict=False))
    if not labels:
        labels = {key: label for key, item in train.sample if (label := label_of(item)) is not None}
    drawn = torch.as_tensor(weights).double().reshape(-1)
    total = float(drawn.sum())
    found: dict[int, list[float]] = {}
    for key, label in labels.items():
        found.setdefault(label, []).append(float(drawn[key]))
    even = all(max(each) <= 1.01 * min(each) for each in found.values())
    classes = [[label, len(each), sum(each) / total] for label, each in sorted(found.items())]
    return {"even": even, "whole": len(labels) == len(train.keys), "classes": classes[:1100]}

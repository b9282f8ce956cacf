"""What a dataset returns: the tensors in an item, its input and label, and the generators it may draw from."""

from __future__ import annotations

import contextlib
import hashlib
import random
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from .measuring import Json, Unavailable


def attributes_of(thing: Any) -> Json:
    """What an object keeps under its own names; nothing for one that keeps nothing so."""
    try:
        return dict(vars(thing))
    except TypeError:
        return {}


def spread_out(values: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of the values, evenly spaced, in an order in which every prefix is spread out too."""
    size = len(values)
    chosen = list(values) if size <= count else [values[i * size // count] for i in range(count)]
    random.Random(0).shuffle(chosen)
    return chosen


def leaves_of(item: Any, depth: int = 0) -> Iterator[Any]:
    """What an item or batch consists of, with containers unpacked."""
    if depth > 6:
        return
    if isinstance(item, dict):
        for value in item.values():
            yield from leaves_of(value, depth + 1)
    elif isinstance(item, (list, tuple)):
        for value in item:
            yield from leaves_of(value, depth + 1)
    elif hasattr(item, "__dataclass_fields__"):
        for value in attributes_of(item).values():
            yield from leaves_of(value, depth + 1)
    elif hasattr(item, "keys") and hasattr(item, "__getitem__"):
        for key in item.keys():  # noqa: SIM118 - a batch encoding is no dict
            yield from leaves_of(item[key], depth + 1)
    else:
        yield item


def as_tensor(value: Any) -> torch.Tensor | None:
    """A tensor with the numbers of a tensor, array or picture; None for anything else."""
    if isinstance(value, torch.Tensor):
        return value.detach()
    numpy = sys.modules.get("numpy")
    if numpy is None:
        return None
    if hasattr(value, "tobytes") and hasattr(value, "getbands"):  # a picture of PIL
        value = numpy.asarray(value)
    if isinstance(value, (numpy.ndarray, numpy.generic)) and value.dtype.kind in "biuf":
        value = numpy.asarray(value)
        if value.dtype.kind == "u" and value.dtype.itemsize > 1:
            value = value.astype("int64")
        readable = value.flags.writeable and all(stride >= 0 for stride in value.strides)
        return torch.from_numpy(value if readable else value.copy())
    return None


def size_of(leaf: Any) -> int:
    """Bytes of a leaf, about."""
    if isinstance(leaf, torch.Tensor):
        return leaf.numel() * leaf.element_size()
    return int(getattr(leaf, "nbytes", 0) or 64)


def input_of(item: Any) -> torch.Tensor | None:
    """The first floating point tensor of an item or batch, else the first that has a dimension."""
    tensors = [tensor for tensor in map(as_tensor, leaves_of(item)) if tensor is not None and tensor.ndim]
    floating = [tensor for tensor in tensors if tensor.is_floating_point() and tensor.numel() > 1]
    return (floating or tensors or [None])[0]  # type: ignore[list-item]


def target_of(item: Any) -> torch.Tensor | None:
    """The first integer leaf that is not the input: () of an item, (B,) of a batch."""
    own = input_of(item)
    for leaf in leaves_of(item):
        if isinstance(leaf, bool):
            continue
        tensor = torch.tensor(leaf) if isinstance(leaf, int) else as_tensor(leaf)
        if tensor is None or tensor.is_floating_point() or tensor.is_complex():
            continue
        if own is not None and tensor.shape == own.shape and tensor.ndim > 1:
            continue
        if tensor.ndim <= 1 and tensor is not own:
            return tensor
    return None


def label_of(item: Any) -> int | None:
    """The class of one item, when it has one integer for it."""
    target = target_of(item)
    return int(target) if target is not None and target.numel() == 1 else None


def digest_of(tensor: torch.Tensor) -> str:
    """A hash of a tensor's numbers and shape."""
    plain = tensor.detach().cpu().contiguous()
    raw = plain.flatten().view(torch.uint8) if plain.numel() else plain
    try:
        data = raw.numpy().tobytes()
    except Exception:  # torch without numpy
        data = bytes(raw.tolist())
    return hashlib.blake2b(data + str(tuple(plain.shape)).encode(), digest_size=12).hexdigest()


def item_digest(item: Any) -> str:
    """A hash of the input of an item.

    Raises:
        Unavailable: it has none.
    """
    tensor = input_of(item)
    if tensor is None:
        raise Unavailable("the items hold no tensor, array or picture")
    return digest_of(tensor)


def seed_everything(seed: int, *, numpy_seed: int | None = None, python_seed: int | None = None) -> None:
    """Seed torch, NumPy and `random`."""
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also notes a call for CUDA, which takes long
    random.seed(seed if python_seed is None else python_seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed if numpy_seed is None else numpy_seed)


def random_state() -> list[Any]:
    """What tells whether any of the generators was drawn from."""
    numpy = sys.modules.get("numpy")
    drawn = numpy.random.get_state() if numpy is not None else None
    parts = [digest_of(torch.get_rng_state()), hash(random.getstate())]
    return [*parts, (drawn[1].tobytes(), drawn[2])] if drawn is not None else parts


def next_epoch(chain: list[Any], epoch: int) -> None:
    """Tell datasets that derive their randomness from the epoch that another one has begun."""
    for dataset in chain:
        with contextlib.suppress(Exception):
            if callable(getattr(dataset, "set_epoch", None)):
                dataset.set_epoch(epoch)
        for name in ("epoch", "_epoch", "current_epoch"):
            if isinstance(attributes_of(dataset).get(name), int):
                with contextlib.suppress(Exception):
                    setattr(dataset, name, epoch)

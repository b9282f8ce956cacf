"""Whether masks follow their pictures under random flips."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from .items import as_tensor, leaves_of, seed_everything
from .measuring import Unavailable

MASK_ITEMS = 24
MASK_SEEDS = 6
MOST_VALUES = 64  # different numbers in a mask; a second picture has more
SAME_PICTURE = 0.9  # correlation of a picture with the flipped other one


def masks(train: Any, until: float) -> dict[str, Any]:
    """Of items whose picture comes flipped or turned under another seed: whether the mask is flipped with it.

    Brighter or noisier pictures are not counted: the flipped picture must be clearly more like the other one.
    """
    train.require_sample(1)
    first = _picture_and_mask(train.sample[0][1])
    if first is None:
        raise Unavailable("the items are no picture with a mask")
    followed, stayed, fetched, kind = 0, 0, 0, ""
    for key, _ in train.sample[:MASK_ITEMS]:
        variants = []
        for seed in range(MASK_SEEDS):
            seed_everything(31 * seed + 1000 * fetched)
            variants.append(_picture_and_mask(train.dataset[key]))
        fetched += 1
        for other in variants[1:]:
            verdict, name = _moved(variants[0], other)
            followed, stayed = followed + (verdict == "followed"), stayed + (verdict == "stayed")
            kind = name if verdict == "stayed" else kind
        if time.monotonic() > until:
            break
    return {"n": fetched, "followed": followed, "stayed": stayed, "kind": kind}


def _picture_and_mask(item: Any) -> tuple[torch.Tensor, torch.Tensor] | None:
    """((C, H, W) picture, (1 or more, H, W) mask) of an item, if the mask has as many places and few values."""
    tensors = [t for t in map(as_tensor, leaves_of(item)) if t is not None]
    pictures = [t for t in tensors if t.ndim in (2, 3) and min(t.shape[-2:]) >= 8]
    if len(pictures) != 2 or pictures[0].shape[-2:] != pictures[1].shape[-2:]:
        return None
    picture, mask = pictures
    values = mask.unique().numel()
    if not 2 <= values <= MOST_VALUES or picture.unique().numel() <= 2 * values:
        return None
    return picture.float(), mask


def _moves() -> Iterator[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]:
    yield "flipped left to right", lambda t: t.flip(-1)
    yield "flipped upside down", lambda t: t.flip(-2)
    yield "turned by 180 degrees", lambda t: t.flip(-1, -2)
    for turns in (1, 3):
        yield f"turned by {90 * turns} degrees", lambda t, turns=turns: t.rot90(turns, (-2, -1))


def _moved(one: Any, other: Any) -> tuple[str, str]:
    """(`followed`, `stayed` or nothing, how the picture moved)."""
    if one is None or other is None or one[0].shape != other[0].shape or one[1].shape != other[1].shape:
        return "", ""
    as_is = likeness(one[0], other[0])
    for name, move in _moves():
        turned = move(one[0])
        if turned.shape != other[0].shape or likeness(turned, other[0]) < max(SAME_PICTURE, as_is + 0.2):
            continue
        mask = move(one[1])
        if _different(mask, one[1]) < 0.02:
            return "", ""  # the mask is symmetric
        if _different(mask, other[1]) < 0.005:
            return "followed", name
        return ("stayed", name) if _different(one[1], other[1]) < 0.005 else ("", "")
    return "", ""


def likeness(a: torch.Tensor, b: torch.Tensor) -> float:
    """The correlation of two tensors of one shape."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-12))


def _different(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a != b).float().mean())

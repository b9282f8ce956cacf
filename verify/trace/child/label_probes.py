"""Whether targets follow their inputs: masks under random flips, and labels that nothing in the inputs predicts."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from . import data_probes as probes

MASK_ITEMS = 24
MASK_SEEDS = 6
MOST_VALUES = 64  # different numbers in a mask; a second picture has more
SAME_PICTURE = 0.9  # correlation of a picture with the flipped other one
RIDGE = 0.3  # of the number of samples
NUMBERS = 500


# Masks


def masks(train: Any, until: float) -> dict[str, Any]:
    """Of items whose picture comes flipped or turned under another seed: whether the mask is flipped with it.

    Brighter or noisier pictures are not counted: the flipped picture must be clearly more like the other one.
    """
    train.require_sample(1)
    first = _picture_and_mask(train.sample[0][1])
    if first is None:
        raise probes.Unavailable("the items are no picture with a mask")
    followed, stayed, fetched, kind = 0, 0, 0, ""
    for key, _ in train.sample[:MASK_ITEMS]:
        variants = []
        for seed in range(MASK_SEEDS):
            probes._seed_everything(31 * seed + 1000 * fetched)
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
    tensors = [t for t in map(probes._as_tensor, probes._leaves(item)) if t is not None]
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
    as_is = _likeness(one[0], other[0])
    for name, move in _moves():
        turned = move(one[0])
        if turned.shape != other[0].shape or _likeness(turned, other[0]) < max(SAME_PICTURE, as_is + 0.2):
            continue
        mask = move(one[1])
        if _different(mask, one[1]) < 0.02:
            return "", ""  # the mask is symmetric
        if _different(mask, other[1]) < 0.005:
            return "followed", name
        return ("stayed", name) if _different(one[1], other[1]) < 0.005 else ("", "")
    return "", ""


def _likeness(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (a.norm() * b.norm()).clamp_min(1e-12))


def _different(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a != b).float().mean())


# Labels


def spectrum(tensor: torch.Tensor) -> torch.Tensor:
    """What of a sample does not depend on place: strength by frequency, mean, spread and quantiles by channel."""
    flat = tensor.reshape(-1, *tensor.shape[-2:]) if tensor.ndim >= 2 else tensor.reshape(1, 1, -1)
    if tensor.ndim == 2 and tensor.shape[0] <= 16:  # (C, T), a signal
        flat = tensor.reshape(tensor.shape[0], 1, -1)
    strength = torch.fft.rfft2(flat.float()).abs().log1p()
    pooled = torch.nn.functional.adaptive_avg_pool2d(strength[None], (min(8, flat.shape[-2]), 8)).flatten()
    rows = flat.float().flatten(1)[:4]
    levels = torch.quantile(rows[:, :: max(1, rows.shape[1] // 4096)], torch.tensor([0.1, 0.5, 0.9]), dim=1)
    return torch.cat([pooled[:1024], rows.mean(dim=1), rows.std(dim=1, unbiased=False), levels.flatten()])


def by_plane(ours: Any, theirs: Any) -> torch.Tensor:
    """The classes of the samples `theirs` (N, F), by ridge regression on the samples and labels `ours`."""
    classes = ours[1].unique()
    wanted = (ours[1][:, None] == classes[None]).float()
    return classes[_ridge(ours[0], wanted - wanted.mean(dim=0), theirs[0]).argmax(dim=1)]


def _ridge(rows: torch.Tensor, wanted: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    kernel = rows @ rows.T / rows.shape[1]
    solved = torch.linalg.solve(kernel + RIDGE * torch.eye(len(rows)), wanted)
    return queries @ rows.T / rows.shape[1] @ solved


def numbers(train: Any, evals: list[Any], until: float) -> dict[str, Any]:
    """How well the nearest other sample, and a plane, predict a target that is one floating point number.

    Each `z` is a rank correlation in standard deviations of what shuffled targets give.
    """
    others = [view for view in evals if not view.is_train_loader]
    ours = _rows_and_numbers(train, until)
    result = {"n": len(ours[1]), "train": _rank_z(ours[1], ours[1][probes._nearest(ours[0], ours[0], same=True)])}
    half = len(ours[1]) // 2
    guessed = _ridge(ours[0][:half], ours[1][:half, None] - ours[1][:half].mean(), ours[0][half:])
    result["plane"] = _rank_z(ours[1][half:], guessed[:, 0])
    if others:
        theirs = _rows_and_numbers(others[0], until)
        if theirs[0].shape[1] == ours[0].shape[1]:
            result["n_eval"] = len(theirs[1])
            result["across"] = _rank_z(theirs[1], ours[1][probes._nearest(theirs[0], ours[0], same=False)])
    return result


def _rows_and_numbers(view: Any, until: float) -> tuple[torch.Tensor, torch.Tensor]:
    view.require_sample(100)
    rows: list[torch.Tensor] = []
    wanted: list[float] = []
    for key in probes._spread(view.keys, NUMBERS):
        probes._seed_everything(len(rows))
        tensors = [t for t in map(probes._as_tensor, probes._leaves(view.dataset[key])) if t is not None]
        given = [t for t in tensors if t.is_floating_point()]
        if len(tensors) != 2 or len(given) != 2 or given[1].numel() != 1 or given[0].numel() < 2:
            raise probes.Unavailable("the items are not a tensor with a number")
        rows.append(probes._small(given[0].float()))
        wanted.append(float(given[1]))
        if time.monotonic() > until:
            break
    if len(rows) < 100 or len({tuple(row.shape) for row in rows}) != 1:
        raise probes.Unavailable("too few items of one shape could be fetched in time")
    table = torch.stack(rows)
    table = (table - table.mean(dim=0)) / table.std(dim=0).clamp_min(1e-6)
    return table, torch.tensor(wanted)


def _rank_z(truth: torch.Tensor, guessed: torch.Tensor) -> float:
    ranks = [values.argsort().argsort().float() for values in (truth, guessed)]
    return round(_likeness(*ranks) * (len(truth) - 1) ** 0.5, 2)

"""How the inputs of training and evaluation lie to each other, and what single numbers of an input give away."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from .items import input_of, label_of, seed_everything, spread_out
from .learn_probes import transforms_of
from .measuring import Json, Unavailable
from .views import View

MOST_ITEMS, FEWEST_ITEMS = 400, 100
FEWEST_OF_A_CLASS = 3

TURNS: dict[str, Callable[[Tensor], Tensor]] = {
    "as it is": lambda x: x,
    "mirrored left to right": lambda x: x.flip(-1),
    "upside down": lambda x: x.flip(-2),
    "turned by 180 degrees": lambda x: x.flip(-1, -2),
    "with rows and columns exchanged": lambda x: x.transpose(-1, -2),
    "turned by 90 degrees to the left": lambda x: x.rot90(1, (-2, -1)),
    "turned by 90 degrees to the right": lambda x: x.rot90(-1, (-2, -1)),
    "mirrored along the other diagonal": lambda x: x.transpose(-1, -2).flip(-1, -2),
}


def turned(train: View, view: View, until: float) -> Json:
    """How far the mean picture of an evaluation is from that of training, for each of the eight ways to lay it.

    Distances are mean squares in units of their standard error: about 1 where both splits show the same things.
    `plain` has the training pictures with the transforms of the evaluation, `augmented` with their own.
    """
    if view.is_train_loader:
        raise Unavailable("it is the training loader")
    half = (time.monotonic() + until) / 2
    theirs, _ = _samples(view, half)
    augmented, _ = _samples(train, until)
    with transforms_of(view, train):
        plain, _ = _drawn_from(train, (half + until) / 2)
    return {"plain": _distances(plain, theirs), "augmented": _distances(augmented, theirs)}


def _distances(ours: Tensor, theirs: Tensor) -> dict[str, float]:
    if ours.ndim != 4 or ours.shape[1:] != theirs.shape[1:] or min(ours.shape[2:]) < 6:
        raise Unavailable("the items are no pictures of one size")
    square = ours.shape[2] == ours.shape[3]
    ways = {name: turn for name, turn in TURNS.items() if square or turn(ours).shape == ours.shape}
    return {name: round(_distance(ours, turn(theirs)), 3) for name, turn in ways.items()}


def _distance(ours: Tensor, theirs: Tensor) -> float:
    variance = ours.var(dim=0) / len(ours) + theirs.var(dim=0) / len(theirs)
    floor = variance.mean() / 20  # pixels that hardly ever change say little, however sure they are
    return (((ours.mean(dim=0) - theirs.mean(dim=0)) ** 2) / (variance + floor).clamp_min(1e-20)).mean().item()


def tells(view: View, until: float) -> Json:
    """Whether single numbers of an input are the same in all samples of a class and differ between classes.

    `place` is that of the first; `told` is how many of all `numbers` do so.
    """
    inputs, labels = _samples(view, until)
    rows = inputs.flatten(1)
    members = [rows[labels == value] for value in labels.unique()]
    if labels.unique().numel() < 2 or min(map(len, members)) < FEWEST_OF_A_CLASS:
        raise Unavailable("needs several samples of each of two classes")
    spread = rows.max(dim=0).values - rows.min(dim=0).values
    within = torch.stack([part.max(dim=0).values - part.min(dim=0).values for part in members]).max(dim=0).values
    means = torch.stack([part.mean(dim=0) for part in members]).sort(dim=0).values
    apart = means.diff(dim=0).min(dim=0).values
    told = (spread > 0) & (within <= 1e-4 * spread) & (apart > 100 * within) & (apart > 1e-6 * spread)
    found = told.nonzero().flatten().tolist()
    place = [int(i) for i in torch.unravel_index(torch.tensor(found[0]), inputs.shape[1:])] if found else []
    return {
        "n": len(rows),
        "classes": len(members),
        "numbers": rows.shape[1],
        "told": len(found),
        "place": place,
        "others_vary": not told.all() and bool((within > 0.1 * spread)[~told].float().mean() > 0.2),
    }


def _samples(view: View, until: float) -> tuple[Tensor, Tensor]:
    """(N, ...) inputs of one shape and (N,) class numbers, fetched once."""
    if view.drawn is None:
        view.drawn = _drawn_from(view, until)
    return view.drawn


def _drawn_from(view: View, until: float) -> tuple[Tensor, Tensor]:
    view.require_sample(FEWEST_ITEMS)
    pairs = list(_pairs(view, until))
    if len(pairs) < FEWEST_ITEMS:
        raise Unavailable("too few items could be fetched in time")
    if len({tuple(x.shape) for x, _ in pairs}) != 1 or not pairs[0][0].numel():
        raise Unavailable("the items differ in shape")
    return torch.stack([x.float() for x, _ in pairs]), torch.tensor([label for _, label in pairs])


def _pairs(view: View, until: float) -> Iterator[tuple[Tensor, int]]:
    for number, key in enumerate(spread_out(view.keys, MOST_ITEMS)):
        if time.monotonic() > until:
            return
        seed_everything(number)
        item = view.dataset[key]
        tensor, label = input_of(item), label_of(item)
        if tensor is None or label is None:
            raise Unavailable("the items are not a tensor with a class number")
        yield tensor, label


def centred(inputs: Tensor) -> Json:
    """Whether a batch (B, ...) has a mean of zero, by element or by channel, that its samples do not have.

    Numbers are in units of the standard deviation.
    """
    if inputs.ndim not in (2, 4) or len(inputs) < 8:
        raise Unavailable("needs eight inputs of two or four dimensions")
    unit = inputs.std().clamp_min(1e-12)
    by_element = inputs.mean(dim=0)
    each = inputs.mean(dim=(2, 3)) if inputs.ndim == 4 else inputs.mean(dim=1, keepdim=True)
    return {
        "n": len(inputs),
        "channels": inputs.ndim == 4,
        "by_element": round((by_element.abs().max() / unit).item(), 7),
        "by_channel": round((each.mean(dim=0).abs().max() / unit).item(), 7),
        "by_sample": round((each.std(dim=0).max() / unit).item(), 7),
    }

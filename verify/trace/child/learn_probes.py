"""How well simple means predict the targets from the inputs: the nearest other sample, a plane."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

from .augmentation_probes import FLAG_NAME
from .items import as_tensor, attributes_of, digest_of, input_of, label_of, leaves_of, seed_everything, spread_out
from .mask_probes import likeness
from .measuring import Json, Unavailable
from .views import View

LEARN_ITEMS = 500
RIDGE = 0.3  # of the number of samples
NUMBERS = 500


def learn(train: View, evals: list[View], until: float) -> Json:
    """How well the nearest other sample predicts a sample's label, within each split and from one to the other.

    `z` is the distance from what shuffled labels give, in standard deviations of it.
    """
    candidates = [view for view in evals if not view.is_train_loader]
    if not candidates:
        raise Unavailable("needs a validation split")
    other = candidates[0]
    with transforms_of(other, train):
        ours = _features(train, (time.monotonic() + until) / 2)
    theirs = _features(other, until)
    count = min(len(ours[1]), len(theirs[1]))
    if count < 60:
        raise Unavailable("too few samples with a class number")
    near_ours = _nearest(ours[0], ours[0], same=True)
    near_theirs = _nearest(theirs[0], theirs[0], same=True)
    result: Json = {
        "train": _agreement(ours[1], ours[1][near_ours]),
        "eval": _agreement(theirs[1], theirs[1][near_theirs]),
        "same_labels": sorted(set(ours[1].tolist())) == sorted(set(theirs[1].tolist())),
        "classes": len(set(ours[1].tolist())),
    }
    if ours[0].shape[1] == theirs[0].shape[1]:
        predicted = ours[1][_nearest(theirs[0], ours[0], same=False)]
        result["across"] = _agreement(theirs[1], predicted)
        result["mapping"] = _relabelling(predicted, theirs[1])
        result["floating"] = ours[3]
        result["other_ways"] = [
            _agreement(ours[1], ours[1][_nearest(ours[2], ours[2], same=True)]),
            _agreement(theirs[1], ours[1][_nearest(theirs[2], ours[2], same=False)]),
            _agreement(theirs[1], by_plane(ours, theirs)),
            _agreement(theirs[1], by_plane((ours[2], ours[1]), (theirs[2], theirs[1]))),
        ]
        further = [(number, view) for number, view in enumerate(evals) if view in candidates[1:3]]
        result["further"] = [made for number, view in further if (made := _further(ours, number, view, until))]
    return result


def _further(ours: Any, number: int, view: View, until: float) -> Json | None:
    """Whether the labels of a further evaluation split mean what those of training mean; None: cannot be told."""
    with contextlib.suppress(Unavailable):
        theirs = _features(view, until)
        if theirs[0].shape[1] == ours[0].shape[1]:
            predicted = ours[1][_nearest(theirs[0], ours[0], same=False)]
            return {
                "eval": number,
                "same_labels": sorted(set(ours[1].tolist())) == sorted(set(theirs[1].tolist())),
                "across": _agreement(theirs[1], predicted),
                "mapping": _relabelling(predicted, theirs[1]),
            }
    return None


@contextlib.contextmanager
def transforms_of(source: View, target: View) -> Iterator[None]:
    """Lend the transforms of one split to the datasets of another, so that its items come without augmentation."""
    lent = []
    theirs = {name: value for dataset in reversed(source.chain) for name, value in attributes_of(dataset).items()}
    for dataset in target.chain:
        for name, value in attributes_of(dataset).items():
            is_switch = isinstance(value, bool) and isinstance(theirs.get(name), bool) and FLAG_NAME.search(name)
            if name in theirs and theirs[name] is not value and ("transform" in name or is_switch):
                with contextlib.suppress(Exception):
                    setattr(dataset, name, theirs[name])
                    lent.append((dataset, name, value))
    try:
        yield
    finally:
        for dataset, name, value in lent:
            setattr(dataset, name, value)


def _features(view: View, until: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, bool]:
    """Standardised samples without augmentation (N, F), their labels (N,), what does not depend on place (N, G).

    The last value says whether the samples are floating point numbers.
    """
    view.require_sample(60)
    whole: list[torch.Tensor] = []
    floating = True
    pictures: list[torch.Tensor] = []
    targets: list[int] = []
    for key in spread_out(view.keys, LEARN_ITEMS):
        if time.monotonic() > until:
            break
        seed_everything(len(targets))
        item = view.dataset[key]
        tensor, label = input_of(item), label_of(item)
        if tensor is None or label is None:
            raise Unavailable("the items are not a tensor with a class number")
        if len(pictures) < 12:
            seed_everything(1000 + len(targets))
            again = input_of(view.dataset[key])
            if again is None or digest_of(again) != digest_of(tensor):
                raise Unavailable("the items are random")
        floating = floating and tensor.is_floating_point()
        pictures.append(_small(tensor.float()))
        whole.append(tensor)
        targets.append(label)
    if len(pictures) < 60:
        raise Unavailable("too few items could be fetched in time")
    if len({tuple(p.shape) for p in pictures}) != 1:
        raise Unavailable("the items differ in shape")
    return _standardised(pictures), torch.tensor(targets), _standardised([spectrum(x.float()) for x in whole]), floating


def _standardised(samples: list[torch.Tensor]) -> torch.Tensor:
    rows = torch.stack(samples)
    return (rows - rows.mean(dim=0)) / rows.std(dim=0).clamp_min(1e-6 + 0.05 * float(rows.std()))


def _small(tensor: torch.Tensor) -> torch.Tensor:
    """At most about 1024 numbers of a sample: pictures are averaged to 8x8, anything else is thinned."""
    if tensor.ndim in (2, 3) and min(tensor.shape[-2:]) >= 12:
        tensor = torch.nn.functional.adaptive_avg_pool2d(tensor.reshape(1, -1, *tensor.shape[-2:]), 8)
    flat = tensor.flatten()
    return flat[:: max(1, len(flat) // 1024)]


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


def _nearest(queries: torch.Tensor, rows: torch.Tensor, *, same: bool) -> torch.Tensor:
    distance = torch.cdist(queries, rows)
    if same:
        distance.fill_diagonal_(float("inf"))
    return distance.argmin(dim=1)


def by_plane(ours: Any, theirs: Any) -> torch.Tensor:
    """The classes of the samples `theirs` (N, F), by ridge regression on the samples and labels `ours`."""
    classes = ours[1].unique()
    wanted = (ours[1][:, None] == classes[None]).float()
    return classes[_ridge(ours[0], wanted - wanted.mean(dim=0), theirs[0]).argmax(dim=1)]


def _ridge(rows: torch.Tensor, wanted: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    kernel = rows @ rows.T / rows.shape[1]
    solved = torch.linalg.solve(kernel + RIDGE * torch.eye(len(rows)), wanted)
    return queries @ rows.T / rows.shape[1] @ solved


def _agreement(labels_seen: torch.Tensor, predicted: torch.Tensor) -> Json:
    accuracy = (labels_seen == predicted).float().mean().item()
    generator = torch.Generator().manual_seed(0)
    chance = torch.stack(
        [
            (labels_seen[torch.randperm(len(labels_seen), generator=generator)] == predicted).float().mean()
            for _ in range(200)
        ]
    )
    spread = max(chance.std().item(), 0.5 / len(labels_seen))
    return {
        "n": len(labels_seen),
        "accuracy": round(accuracy, 4),
        "chance": round(chance.mean().item(), 4),
        "z": round((accuracy - chance.mean().item()) / spread, 2),
    }


def _relabelling(predicted: torch.Tensor, truth: torch.Tensor) -> Json:
    """The accuracy across splits if each training label stood for the evaluation label that it mostly meets.

    The relabelling is learned on one half of the samples and scored on the other.
    """
    half = len(truth) // 2
    table: dict[int, int] = {}
    for value in predicted[:half].unique().tolist():
        met = truth[:half][predicted[:half] == value]
        table[value] = int(met.mode().values)
    renamed = torch.tensor([table.get(value, -1) for value in predicted[half:].tolist()])
    moved = [[old, new] for old, new in sorted(table.items()) if old != new]
    return {**_agreement(truth[half:], renamed), "moved": moved[:10], "count": len(moved)}


def numbers(train: Any, evals: list[Any], until: float) -> dict[str, Any]:
    """How well the nearest other sample, and a plane, predict a target that is one floating point number.

    Each `z` is a rank correlation in standard deviations of what shuffled targets give.
    """
    others = [view for view in evals if not view.is_train_loader]
    ours = _rows_and_numbers(train, until)
    result = {"n": len(ours[1]), "train": _rank_z(ours[1], ours[1][_nearest(ours[0], ours[0], same=True)])}
    half = len(ours[1]) // 2
    guessed = _ridge(ours[0][:half], ours[1][:half, None] - ours[1][:half].mean(), ours[0][half:])
    result["plane"] = _rank_z(ours[1][half:], guessed[:, 0])
    if others:
        theirs = _rows_and_numbers(others[0], until)
        if theirs[0].shape[1] == ours[0].shape[1]:
            result["n_eval"] = len(theirs[1])
            result["across"] = _rank_z(theirs[1], ours[1][_nearest(theirs[0], ours[0], same=False)])
    return result


def _rows_and_numbers(view: Any, until: float) -> tuple[torch.Tensor, torch.Tensor]:
    view.require_sample(100)
    rows: list[torch.Tensor] = []
    wanted: list[float] = []
    for key in spread_out(view.keys, NUMBERS):
        seed_everything(len(rows))
        tensors = [t for t in map(as_tensor, leaves_of(view.dataset[key])) if t is not None]
        given = [t for t in tensors if t.is_floating_point()]
        if len(tensors) != 2 or len(given) != 2 or given[1].numel() != 1 or given[0].numel() < 2:
            raise Unavailable("the items are not a tensor with a number")
        rows.append(_small(given[0].float()))
        wanted.append(float(given[1]))
        if time.monotonic() > until:
            break
    if len(rows) < 100 or len({tuple(row.shape) for row in rows}) != 1:
        raise Unavailable("too few items of one shape could be fetched in time")
    table = torch.stack(rows)
    table = (table - table.mean(dim=0)) / table.std(dim=0).clamp_min(1e-6)
    return table, torch.tensor(wanted)


def _rank_z(truth: torch.Tensor, guessed: torch.Tensor) -> float:
    ranks = [values.argsort().argsort().float() for values in (truth, guessed)]
    return round(likeness(*ranks) * (len(truth) - 1) ** 0.5, 2)

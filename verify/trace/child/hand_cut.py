"""Splits of a script without a training DataLoader: the tensors that it cuts its batches from by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.data import TensorDataset

from .items import as_tensor
from .measuring import Unavailable, attempt
from .names import held, role
from .split_probes import in_common, met_once
from .stored import row_hashes
from .tensors import tensors_of

LEAST_ROWS = 16
MOST_ROWS = 2_000_000
MOST_BYTES = 512 << 20
SURE = 3.0  # rows of one batch that must be expected in a split before their absence says something
MOST_SPLITS = 4


@dataclass
class Held:
    """A tensor that the script holds, under the first name that was found."""

    path: str
    tensor: torch.Tensor
    hashes: list[int]


def splits(capture: Any, until: float) -> tuple[Any, list[Any], list[Any]]:
    """What training cuts its batches from, the evaluation splits, and what of each of these training uses.

    The training tensor is the smallest that has all rows of the last training batch. An evaluation split has a name
    that says so. A row that both hold proves nothing (a fold may be left out by index): the last batch has to hold
    rows of the split too.

    Raises:
        Unavailable: no such tensors are held.
    """
    batch = _batch(capture)
    mine = row_hashes(_flat(batch, batch.dtype), range(len(batch)), until)
    tensors = list(_tensors(batch, until))
    sources = [one for one in tensors if _may_be_cut_from(one, mine)]
    if not sources:
        raise Unavailable("no training loader was seen")
    source = min(sources, key=lambda one: len(one.hashes))
    evals = _evaluated([one for one in tensors if one is not source])
    targets = _targets_of_batch(capture, source, mine)
    overlaps = [attempt(lambda one=one: _overlap(source, one, mine)) for one in evals]
    return _use(source, targets, len(batch)), [_use(one, _targets_beside(one, targets), 0) for one in evals], overlaps


def _may_be_cut_from(one: Held, mine: list[int]) -> bool:
    """Whether a tensor has all rows of the batch, and is not just that batch under another name."""
    whole = len(one.hashes) >= 1.5 * len(mine) or role(one.path) == "train"
    return whole and role(one.path) != "eval" and set(mine) <= set(one.hashes)


def _evaluated(tensors: list[Held]) -> list[Held]:
    """Those that are called validation or test, each once."""
    found: dict[tuple[int, int], Held] = {}
    for one in tensors:
        if role(one.path) == "eval":
            found.setdefault((one.tensor.data_ptr(), len(one.tensor)), one)
    return list(found.values())[:MOST_SPLITS]


def _batch(capture: Any) -> torch.Tensor:
    batch = next(tensors_of(capture.inputs), None) if capture.inputs is not None else None
    if batch is None or batch.ndim < 2 or len(batch) < 8 or batch[0].numel() < 2:
        raise Unavailable("no training loader was seen")
    return batch.detach().cpu()


def _table(value: Any) -> torch.Tensor | None:
    """A tensor of a tensor or array; other things of the script are not touched."""
    known = isinstance(value, torch.Tensor) or type(value).__module__ == "numpy"
    return as_tensor(value) if known else None


def _flat(tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return tensor.reshape(len(tensor), -1).to(dtype)


def _tensors(batch: torch.Tensor, until: float) -> Iterator[Held]:
    """Held tensors whose rows may be those of the batch, each once."""
    width, known, size = batch[0].numel(), set[Any](), 0
    for path, value in held():
        tensor = _table(value)
        if tensor is None or tensor.ndim < 2 or not LEAST_ROWS <= len(tensor) <= MOST_ROWS or tensor.is_cuda:
            continue
        if tensor[0].numel() != width or tensor.is_floating_point() != batch.is_floating_point():
            continue
        key = (tensor.data_ptr(), len(tensor), role(path))
        size += tensor.numel() * batch.element_size() if key not in known else 0
        if key not in known and size < MOST_BYTES:
            known.add(key)
            yield Held(path, tensor, row_hashes(_flat(tensor, batch.dtype), range(len(tensor)), until))


def _overlap(source: Held, split: Held, mine: list[int]) -> dict[str, Any]:
    result = in_common(source.hashes, split.hashes, method="rows")
    shared = met_once(source.hashes) & met_once(split.hashes)
    seen = sum(row in shared for row in mine)
    expected = len(mine) * len(shared) / max(1, len(source.hashes))
    if shared and not seen:
        if expected < SURE:
            raise Unavailable("too few rows of training batches were seen")
        return {**result, "method": "rows not trained on", "common": 0, "share": 0.0}
    return {**result, "in_last_batch": seen}


def _targets_of_batch(capture: Any, source: Held, mine: list[int]) -> Held | None:
    """The held class numbers which, at the rows of the last batch, are the targets that the loss was given."""
    wanted = capture.targets
    if wanted is None or wanted.is_floating_point() or wanted.ndim != 1 or len(wanted) != len(mine):
        return None
    once = met_once(source.hashes)
    place = {row: number for number, row in enumerate(source.hashes) if row in once}
    pairs = [(place[row], int(label)) for row, label in zip(mine, wanted.tolist()) if row in place]
    if len(pairs) < 8:
        return None
    for path, tensor in _class_numbers(len(source.hashes)):
        if all(int(tensor[number]) == label for number, label in pairs):
            return Held(path, tensor, [])
    return None


def _targets_beside(split: Held, found: Held | None) -> Held | None:
    """The class numbers of an evaluation split: as long as it, and called so, or held in one container with it."""
    if found is None:
        return None
    parent = split.path.rpartition(".")[0]
    named = [Held(path, t, []) for path, t in _class_numbers(len(split.tensor)) if role(path) == "eval"]
    beside = [one for one in named if parent and one.path.rpartition(".")[0] == parent]
    chosen = {one.tensor.data_ptr(): one for one in beside or named}
    return next(iter(chosen.values())) if len(chosen) == 1 else None


def _class_numbers(count: int) -> Iterator[tuple[str, torch.Tensor]]:
    for path, value in held():
        tensor = _table(value)
        if tensor is not None and tensor.ndim == 1 and len(tensor) == count and not tensor.is_floating_point():
            yield path, tensor


def _use(one: Held, targets: Held | None, batch_size: int) -> Any:
    """The same shape as a loader that was used, for all that can be asked of a data set alone."""
    tensors = [one.tensor] if targets is None else [one.tensor, targets.tensor]
    settings = {"batch_size": batch_size or None, "hand_cut": True}
    return SimpleNamespace(
        loader=None, dataset=TensorDataset(*tensors), name=one.path, loc="", batches=[], settings=settings
    )

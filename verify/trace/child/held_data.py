"""Whether tensors that batches are cut from by hand are the same in the next epoch."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch

from .measuring import Json, Unavailable
from .names import held, role
from .quiet import quiet
from .stored import row_hashes
from .tensors import tensors_of

LEAST_ROWS, ROWS, MOST_TENSORS = 64, 48, 8
MOST_ROWS = 200_000  # of a tensor in which rows are looked for
LEAST_ALIKE, ALIKE_BEYOND = 0.2, 0.15  # correlation of a row with what it was, and how much less with others


@dataclass
class Remembered:
    """Some rows of a tensor, as they were at the first step."""

    path: str
    tensor: weakref.ref[torch.Tensor]
    places: torch.Tensor
    rows: torch.Tensor


@quiet
def remember(recorder: Any) -> None:
    """Keep rows of the tensors that may be what training cuts its batches from; called at the first step."""
    batch = _batch(recorder.last_trained)
    if recorder.current is not None or batch is None or recorder.remembered:
        return
    known = set()
    for path, value in held():
        if not _may_hold(value, batch) or role(path) == "eval" or value.data_ptr() in known:
            continue
        known.add(value.data_ptr())
        places = torch.linspace(0, len(value) - 1, ROWS).long()
        recorder.remembered.append(Remembered(path, weakref.ref(value), places, value[places].clone()))
        if len(known) >= MOST_TENSORS:
            return


def _batch(trained: Any) -> torch.Tensor | None:
    batch = next(tensors_of(trained.model_input), None) if trained is not None else None
    return batch if batch is not None and batch.ndim >= 2 and batch.is_floating_point() and len(batch) else None


def _may_hold(value: Any, batch: torch.Tensor) -> bool:
    plain = type(value) is torch.Tensor and not value.requires_grad and value.device.type == "cpu"
    if not plain or not value.is_floating_point() or value.ndim < 2 or len(value) < max(LEAST_ROWS, 2 * len(batch)):
        return False
    return value[0].numel() == batch[0].numel() and len(value) <= MOST_ROWS


def held_changes(capture: Any, until: float) -> Json:
    """How many rows of the tensor that batches are cut from have become others that are still like what they were.

    Raises:
        Unavailable: none was remembered, or batches come from something else.
    """
    alive = [
        (one, tensor) for one in getattr(capture, "remembered", None) or [] if (tensor := one.tensor()) is not None
    ]
    batch = next(tensors_of(capture.inputs), None) if capture.inputs is not None else None
    if not alive or batch is None:
        raise Unavailable("no tensor was remembered from the first step")
    mine = _hashes(batch.detach(), until)
    untouched = [tensor.shape for one, tensor in alive if torch.equal(tensor[one.places], one.rows)]
    for one, tensor in alive:
        now = tensor[one.places]
        if tensor.shape in untouched or not _hashes(tensor.to(batch.dtype), until) >= mine:
            continue
        count = int((now != one.rows).flatten(1).any(dim=1).sum())
        moved = bool(_hashes(one.rows, until) & _hashes(tensor, until))  # shuffled in place, at least in part
        changed = count if count >= 0.9 * ROWS and not moved and _is_alike(one.rows, now) else 0
        return {"n": ROWS, "changed": changed, "name": one.path, "hand_cut": True}
    return {"n": ROWS, "changed": 0, "name": "", "hand_cut": True}


def _hashes(rows: torch.Tensor, until: float) -> set[int]:
    return set(row_hashes(rows.reshape(len(rows), -1), range(len(rows)), until))


def _is_alike(before: torch.Tensor, now: torch.Tensor) -> bool:
    """Whether rows are more like what they were than like what others were: they were changed, not made anew."""
    a, b = before.flatten(1).double(), now.flatten(1).double()
    a, b = a - a.mean(dim=0), b - b.mean(dim=0)
    table = (a @ b.T) / (a.norm(dim=1)[:, None] * b.norm(dim=1)[None, :]).clamp_min(1e-12)
    own = float(table.diagonal().mean())
    others = float((table.sum() - table.diagonal().sum()) / (table.numel() - len(table)))
    return own > LEAST_ALIKE and own > others + ALIKE_BEYOND

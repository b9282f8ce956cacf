"""What a dataset stores for each sample, before transforms: rows of a tensor, files, items of a list."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import TensorDataset

from .items import as_tensor, attributes_of, digest_of, leaves_of
from .measuring import Unavailable

if TYPE_CHECKING:
    from .views import View

HASH_WORDS = 512  # 8-byte words of a row that are hashed; of a longer row every n-th


def stored_samples(view: View, until: float) -> tuple[str, list[Any]] | None:
    """What is stored for each sample of a loader, before transforms: (kind, one hashable value a sample)."""
    positions, best = view.positions, widest_container(view)
    if positions is None or best is None:
        return None
    kind, value = best
    if kind == "files":
        return kind, [_path(value[position]) for position in positions]
    if kind.startswith("rows"):
        tensor = as_tensor(value)
        if tensor is None:
            return None
        return kind, row_hashes(tensor, positions, until)
    if len(positions) > 100_000:
        return None
    hashes = [_stored_digest(value[position]) for position in positions]
    return ("items", hashes) if all(hashes) else None


def widest_container(view: View) -> tuple[str, Any] | None:
    """The container that holds most of each sample, and how it stores them: files, rows of a tensor, or items."""
    if view.base is None:
        return None
    try:
        size = len(view.base)
    except Exception:
        return None
    best: tuple[int, str, Any] | None = None
    for value in _stored(view.base):
        kind, width = _kind(value, size)
        if kind and (best is None or width > best[0]):
            best = (width, kind, value)
    return best and (best[1], best[2])


def without_padding(train: View, other: View, until: float) -> tuple[list[int], list[int]] | None:
    """Hashes of the stored rows of two loaders, where one stores the same pictures with a border around them.

    Random crops are often cut from pictures that were padded once; evaluation keeps those as they are.
    """
    found = [widest_container(view) for view in (train, other)]
    rows = [as_tensor(one[1]) for one in found if one is not None and one[0].startswith("rows")]
    if len(rows) < 2 or rows[0] is None or rows[1] is None or train.positions is None or other.positions is None:
        return None
    shapes = [tuple(row.shape[1:]) for row in rows if row is not None]
    if rows[0].dtype != rows[1].dtype or len(shapes[0]) != len(shapes[1]) or len(shapes[0]) < 2:
        return None
    margins = [mine - theirs for mine, theirs in zip(*shapes, strict=True)]
    if any(margin % 2 for margin in margins) or min(margins) < 0 < max(margins):
        return None
    inner = [min(pair) for pair in zip(*shapes, strict=True)]
    cut = [row[_middle(row, inner)] for row in rows if row is not None]
    return row_hashes(cut[0], train.positions, until), row_hashes(cut[1], other.positions, until)


def _middle(rows: torch.Tensor, inner: list[int]) -> tuple[slice, ...]:
    """The middle of each row, of a shape that leaves as much on either side."""
    starts = [(side - kept) // 2 for side, kept in zip(rows.shape[1:], inner, strict=True)]
    return (slice(None), *(slice(start, start + kept) for start, kept in zip(starts, inner, strict=True)))


def _stored(base: Any) -> list[Any]:
    if isinstance(base, TensorDataset):
        return list(base.tensors[:1])
    if isinstance(base, (list, tuple, torch.Tensor)) or type(base).__module__ == "numpy":
        return [base]
    return list(attributes_of(base).values())


def _kind(value: Any, size: int) -> tuple[str, int]:
    """How a container stores samples, and how much of each: ("", 0) when it does not."""
    try:
        if len(value) != size or not size:
            return "", 0
    except TypeError:
        return "", 0
    if isinstance(value, torch.Tensor) or type(value).__module__ == "numpy":
        shape = tuple(value.shape[1:])
        if not shape or "object" in str(value.dtype):
            return "", 0
        width = 1
        for side in shape:
            width *= side
        return (f"rows {value.dtype} {shape}", width) if width > 1 else ("", 0)
    if not isinstance(value, (list, tuple)):
        return "", 0
    first = value[0]
    if _path(first) is not None:
        probes = [_path(value[i * (size - 1) // 4]) for i in range(5)]
        return ("files", 1 << 40) if all(p is not None and Path(p).is_file() for p in probes) else ("", 0)
    tensor = next((t for t in map(as_tensor, leaves_of(first)) if t is not None and t.numel() > 1), None)
    return ("items", tensor.numel()) if tensor is not None else ("", 0)


def _path(value: Any) -> str | None:
    """The file of a sample that is stored as a path, or as (path, label)."""
    if isinstance(value, (list, tuple)):
        if len(value) != 2 or not isinstance(value[1], int):
            return None
        value = value[0]
    if isinstance(value, (str, Path)) and len(str(value)) < 4096 and "\n" not in str(value):
        return os.path.realpath(value)
    return None


def _stored_digest(value: Any) -> str | None:
    tensor = next((t for t in map(as_tensor, leaves_of(value)) if t is not None and t.numel() > 1), None)
    return digest_of(tensor) if tensor is not None else None


def row_hashes(rows: torch.Tensor, positions: Sequence[int], until: float) -> list[int]:
    """A 63-bit hash of each row (N, ...) at `positions`, computed a block of rows at a time."""
    everything = isinstance(positions, range) and len(positions) == len(rows)
    if rows.ndim >= 3 and rows[0].numel() > 1024 and rows.shape[1] >= 16:
        rows = rows[:, 1 :: rows.shape[1] // 4]  # four lines of a picture tell it apart as well
    hashes = []
    weights: torch.Tensor | None = None
    for start in range(0, len(positions), 4096):
        end = start + 4096
        if time.monotonic() > until:
            raise Unavailable("too many samples to compare in time")
        block = rows[start:end] if everything else rows[torch.as_tensor(list(positions[start:end]))]
        flat = block.reshape(len(block), -1).contiguous().view(torch.uint8)
        if flat.shape[1] % 8:
            flat = torch.nn.functional.pad(flat, (0, 8 - flat.shape[1] % 8))
        words = flat.view(torch.int64)
        words = words[:, :: max(1, words.shape[1] // HASH_WORDS)]
        if weights is None:
            generator = torch.Generator().manual_seed(11)
            weights = torch.randint(-(1 << 62), 1 << 62, (words.shape[1],), generator=generator) | 1
        mixed = (words ^ (words >> 31)) * weights
        hashes.append((mixed ^ (mixed >> 29)).sum(dim=1))
    return torch.cat(hashes).tolist()

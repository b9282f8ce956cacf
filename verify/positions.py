"""Whether the places of a picture get different codes. In a picture of one colour, all that differs is the code."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from verify.tokens import Pass, rows_with_numbers

# Of the largest number; a convolution may add up in another order at another place.
SAME = 1e-5
# Of the rows that a table has for exactly these tokens; a class token without a code leaves one out.
SMALLEST_SHARE_READ = 0.5
# Of the features of a fixed table; a width that is no multiple of four leaves a few at zero.
LARGEST_SHARE_EMPTY = 0.4


@dataclass(frozen=True)
class Codes:
    """Codes of places that some places share.

    Attributes:
        block: name of the first module that receives the tokens.
        tokens: how many there are, learned ones aside.
        distinct: how many codes.
    """

    block: str
    tokens: int
    distinct: int


def one_colour(images: Tensor) -> Tensor:
    """(B, C, H, W) pictures of one colour each, the mean of the given ones and some noise."""
    noise = torch.randn(images.shape[:2], generator=torch.Generator().manual_seed(0)).to(images)
    return (images.mean((2, 3)) + noise)[:, :, None, None].expand_as(images).contiguous()


def shared_codes(block: str, given: Tensor) -> Codes | None:
    """What codes the tokens (2, N, D) that a block receives of pictures of one colour have, where places share them in
    equal groups.

    None where all are different, and where all are alike: such a network has no codes, or adds them later. Groups of
    different sizes come from a stem that sees the border of the picture.
    """
    unseen = rows_with_numbers(given[0] - given[1], zero=True)
    rows = given[0][[t for t in range(given.shape[1]) if t not in unseen]]
    scale = rows.abs().max().item()
    if len(rows) < 4 or not scale or not rows.isfinite().all():
        return None
    sizes: list[int] = []
    left = rows
    while len(left):
        same = (left - left[0]).abs().amax(1) <= SAME * scale
        sizes.append(int(same.sum()))
        left = left[~same]
    if len(sizes) == 1 or len(set(sizes)) > 1 or sizes[0] == 1:
        return None
    return Codes(block, len(rows), len(sizes))


def unread_rows(seen: Pass) -> list[tuple[str, int, int]]:
    """(name, rows, rows that the logits depend on) of learned tables made for exactly the tokens of the first block, of
    which only a part is read."""
    block = seen.first_block()
    if block is None or block.given is None:
        return []
    found = []
    for name, table in _tables(seen.model.named_parameters(), block.given):
        if not table.requires_grad:
            continue
        # A token that the logits depend on carries its row there, and asking the tokens spares a whole backward pass.
        gradient = seen.gradient(block.given if seen.all_read == block.given.shape[1] else seen.logits, table)
        if gradient is None or not gradient.isfinite().all():
            continue
        rows = gradient.reshape(table.shape[-2:])
        read = len(rows_with_numbers(rows))
        if 0 < read < SMALLEST_SHARE_READ * len(rows):
            found.append((name, len(rows), read))
    return found


def empty_columns(seen: Pass, tensors: Iterable[tuple[str, Tensor]]) -> list[tuple[str, int, int]]:
    """(name, features, features that are 0 at every place) of fixed tables made for the tokens of the first block."""
    block = seen.first_block()
    if block is None or block.given is None:
        return []
    found = []
    for name, table in _tables(tensors, block.given):
        columns = table.detach().reshape(table.shape[-2:])
        empty = int((columns == 0).all(0).sum())
        if LARGEST_SHARE_EMPTY * columns.shape[1] <= empty < columns.shape[1]:
            found.append((name, columns.shape[1], empty))
    return found


def _tables(tensors: Iterable[tuple[str, Tensor]], tokens: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Those of shape (N, D) or (1, N, D) for tokens (B, N, D); class tokens may have no row."""
    _, count, features = tokens.shape
    for name, tensor in tensors:
        if not tensor.is_floating_point() or tensor.dim() < 2 or tensor.numel() != tensor.shape[-2:].numel():
            continue
        rows, columns = tensor.shape[-2:]
        if columns == features and rows > 3 and count - 2 <= rows <= count and rows != columns:
            yield name, tensor

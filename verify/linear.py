"""Layers that follow each other with nothing nonlinear between, and learned tables that an index hardly reaches.

Both are seen among the primitive operations of one forward pass in eval mode, where a batch norm scales and shifts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from verify.comparing import storage_of

if TYPE_CHECKING:
    from verify.attention import Operation
    from verify.dataflow import Watcher

# A scale or a shift, if the other operand does not depend on the input.
AFFINE = frozenset({"add", "sub", "mul", "div"})
COPYING = frozenset({"clone", "_to_copy", "contiguous", "_unsafe_view", "reshape", "alias"})
PRODUCTS = frozenset({"mm", "addmm"})
# Rows of a table for tokens that have no place, such as the class token.
SPARE_ROWS = 3
LARGEST_SHARE_UNREACHED = 0.02


@dataclass(eq=False)
class Layer:
    """A product with a weight.

    Attributes:
        module: name of the innermost module around it.
        kind: "Linear" or "Conv".
        before, after: features that it reads and makes.
        kernel: (height, width) of a convolution.
        plain: whether it is no transposed, grouped or dilated convolution.
        uses: operations that read what it made, affine ones and copies aside.
        turned: whether another axis has become the last one since.
    """

    module: str
    kind: str
    before: int
    after: int
    kernel: tuple[int, ...] = ()
    plain: bool = True
    uses: int = 0
    turned: bool = False


@dataclass(frozen=True)
class SparseTable:
    """A learned table of relative positions of which an index of fixed numbers reaches a part only."""

    name: str
    rows: int
    reached: int


class LinearTracker:
    """Finds layers in a row and sparse tables among the operations of a forward pass."""

    def __init__(self, memory: Watcher) -> None:
        self.memory = memory
        self.made_by: dict[int, Layer] = {}
        self.pairs: list[tuple[Layer, Layer]] = []
        self.read_rows: dict[str, tuple[int, set[int]]] = {}

    def follow(self, operation: Operation) -> None:
        """Note what the operation does to the output of a layer."""
        if not operation.inputs or not operation.outputs:
            return
        name = operation.name
        if name == "convolution":
            self._convolution(operation)
        elif name in PRODUCTS:
            self._product(operation)
        elif name == "index":
            self._index(operation)
            self._end(operation)
        elif self._keeps(operation):
            self._carry(operation)
        else:
            self._end(operation)

    # -- layers ----------------------------------------------------------------------------------------------------

    def _convolution(self, operation: Operation) -> None:
        x, weight = operation.inputs[:2]
        transposed, groups = operation.args[6], operation.args[8]
        plain = weight.dim() == 4 and not transposed and groups == 1 and max(operation.args[5]) == 1
        layer = Layer(self.memory.place, "Conv", weight.shape[1], weight.shape[0], tuple(weight.shape[2:]), plain)
        self._layer(operation, x, layer, self._is_weight(weight))

    def _product(self, operation: Operation) -> None:
        x, weight = operation.args[-2:]
        layer = Layer(self.memory.place, "Linear", weight.shape[0], weight.shape[1])
        self._layer(operation, x, layer, self._is_weight(weight))

    def _layer(self, operation: Operation, x: Tensor, layer: Layer, is_layer: bool) -> None:
        before = self._made_by(x)
        self._end(operation)
        if not is_layer or not self.memory.from_input(x):
            return
        if before is not None:
            self.pairs.append((before, layer))
        address = storage_of(operation.outputs[0])
        if address is not None:
            self.made_by[address] = layer

    def _is_weight(self, weight: Tensor) -> bool:
        memory = self.memory.memory(weight)
        return memory is not None and memory.learned and not memory.from_input

    def _made_by(self, tensor: Tensor) -> Layer | None:
        address = storage_of(tensor)
        return None if address is None else self.made_by.get(address)

    def _keeps(self, operation: Operation) -> bool:
        """Whether the operation is a view, a copy, or a scale and shift that does not depend on the input."""
        name = operation.name
        if name in COPYING or "batch_norm" in name:
            return True
        if name in AFFINE:
            return sum(self.memory.from_input(t) for t in operation.inputs) <= 1
        return not operation.in_place and storage_of(operation.inputs[0]) == storage_of(operation.outputs[0])

    def _carry(self, operation: Operation) -> None:
        layer = next((found for t in operation.inputs if (found := self._made_by(t)) is not None), None)
        if layer is None:
            return
        layer.turned |= _turns(operation)
        address = storage_of(operation.outputs[0])
        if address is not None:
            self.made_by[address] = layer

    def _end(self, operation: Operation) -> None:
        for layer in {id(found): found for t in operation.inputs if (found := self._made_by(t)) is not None}.values():
            layer.uses += 1
        for tensor in operation.outputs:
            address = storage_of(tensor)
            if address is not None:
                self.made_by.pop(address, None)

    def returned(self, tensors: list[Tensor]) -> None:
        """What forward returns is read by whoever called it."""
        for tensor in tensors:
            layer = self._made_by(tensor)
            if layer is not None:
                layer.uses += 1

    def collapsing(self) -> list[tuple[Layer, Layer]]:
        """Pairs of layers that one layer could replace, without a bottleneck between them."""
        return [(a, b) for a, b in self.pairs if a.uses == 1 and _collapse(a, b)]

    # -- tables ----------------------------------------------------------------------------------------------------

    def _index(self, operation: Operation) -> None:
        table, indices = operation.args[:2]
        fixed = [i for i in indices if isinstance(i, Tensor)]
        memory = self.memory.memory(table)
        if len(fixed) != 1 or memory is None or not memory.given or not memory.learned or table.dim() != 2:
            return
        index = fixed[0]
        if index.is_floating_point() or index.dtype == torch.bool or self.memory.from_input(index):
            return
        axis = next(i for i, one in enumerate(indices) if isinstance(one, Tensor))
        rows = table.shape[axis]
        if not _relates_all_places(index.numel(), rows):
            return
        name = name_of(self.memory.model, table)
        reached = set((index.detach() % rows).unique().tolist())
        self.read_rows[name] = rows, self.read_rows.get(name, (0, set()))[1] | reached

    def sparse_tables(self) -> list[SparseTable]:
        """Tables of which rows are never reached."""
        return [
            SparseTable(name, rows, len(reached))
            for name, (rows, reached) in self.read_rows.items()
            if rows - len(reached) > max(SPARE_ROWS, LARGEST_SHARE_UNREACHED * rows)
        ]


def _relates_all_places(numel: int, rows: int) -> bool:
    """Whether a table has a row for each displacement within a map of h x w places, and the index an entry for each
    pair of them; the class token may have a few more of both."""
    for count in {round(numel**0.5), round(numel**0.5) - 1}:
        if numel not in (count**2, (count + 1) ** 2) or count < 4:
            continue
        for height in range(2, count // 2 + 1):
            width, rest = divmod(count, height)
            if not rest and 0 <= rows - (2 * height - 1) * (2 * width - 1) <= SPARE_ROWS:
                return True
    return False


def _collapse(first: Layer, second: Layer) -> bool:
    if first.kind != second.kind or first.after != second.before:
        return False
    middle = first.after
    if middle < min(first.before, second.after):
        return False  # a product of low rank
    if first.kind == "Linear":
        return not first.turned
    square = all(len(set(layer.kernel)) == 1 and layer.plain for layer in (first, second))
    # A projection without activation, and an expansion by the next block (MobileNetV2).
    expands = max(first.kernel) == 1 and second.after > middle
    return square and not expands


def _turns(operation: Operation) -> bool:
    if operation.name not in ("transpose", "permute", "t", "movedim", "swapaxes"):
        return False
    old, new = operation.inputs[0], operation.outputs[0]
    return (old.shape[-1], old.stride(-1)) != (new.shape[-1], new.stride(-1))


def name_of(model: nn.Module, tensor: Any) -> str:
    """The name of the parameter whose memory a tensor shows; empty if there is none."""
    address = storage_of(tensor)
    return next((name for name, p in model.named_parameters() if storage_of(p) == address), "")

"""Which parameter of one model is which of another, found from how both use them.

Layers are paired by shape, equal shapes by order of execution. Layouts may differ: products that read the same tensor
count as one, so queries, keys and values may be fused or not; a convolution over patches is a product; biases and
normalisations go with the layer that they follow; a table of positions may be cut in two.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import zip_longest

import torch
from torch import Tensor

from verify.uses import NORMS, Layer, Use, Uses

# Queries, keys and values by the words of a parameter's name, in the order in which fused layers keep them.
ROLES = ({"q", "query", "queries", "wq"}, {"k", "key", "keys", "wk", "kv"}, {"v", "value", "values", "wv"})
# Order of the outputs of fused queries, keys and values -> the axes (3, heads, width) in that order.
FUSED = {"qkv, heads": (0, 1, 2), "heads, qkv": (1, 0, 2), "heads, width, qkv": (1, 2, 0)}
CONTEXT = 2
MOST_ROWS = 40


@dataclass(frozen=True)
class Layout:
    """How two equal functions may order the numbers of a layer.

    Attributes:
        patches: "channels first" as convolutions have it, or "channels last", in a product over cut-out patches.
        reference, candidate: order of the outputs of fused queries, keys and values in each of the two models; one of
            `FUSED`.
        width: of a head; 0 where it is unknown.
    """

    patches: str = "channels first"
    reference: str = "qkv, heads"
    candidate: str = "qkv, heads"
    width: int = 0


@dataclass(eq=False)
class Unit:
    """Products that read the same tensor, side by side, or one convolution."""

    layers: list[Layer]

    @property
    def key(self) -> Hashable:
        """Equal for units that can stand for each other."""
        first = self.layers[0]
        size = first.weight.size
        if first.weight.role == "conv" and not first.patches:
            return "convolution", size, first.groups
        if first.weight.role == "conv":
            return "product", torch.Size(size[1:]).numel(), size[0]
        return "product", size[0], sum(layer.weight.size[1] for layer in self.layers)

    @property
    def has_bias(self) -> bool:
        """Whether every layer has a bias."""
        return all(layer.bias for layer in self.layers)

    @property
    def norm(self) -> dict[str, Use]:
        """Role -> use, of the normalisation that reads the result directly."""
        return self.layers[0].norm


@dataclass(eq=False)
class Pair:
    """Uses of the reference, one after the other, that hold the same numbers as these of the model.

    `fan_in` is that of the product that a bias belongs to.
    """

    reference: list[Use]
    candidate: list[Use]
    fan_in: int = 0

    def copy(self, source: Mapping[str, Tensor], target: Mapping[str, Tensor], layout: Layout) -> None:
        """Write the numbers of the reference, in `source`, into the tensors of the model, in `target`."""
        if self.reference[0].role == self.candidate[0].role == "conv":
            self.candidate[0].view(target).copy_(self.reference[0].view(source))
        elif {self.reference[0].role, self.candidate[0].role} <= {"conv", "matrix"}:
            self._copy_matrix(source, target, layout)
        else:
            numbers = torch.cat([use.view(source).reshape(-1) for use in self.reference])
            numbers = self._reordered(numbers[None], self.fan_in, layout)[0]
            parts = numbers.split([use.numel for use in self.candidate])
            for use, part in zip(self.candidate, parts, strict=True):
                use.view(target).copy_(part.reshape(use.size))

    def _copy_matrix(self, source: Mapping[str, Tensor], target: Mapping[str, Tensor], layout: Layout) -> None:
        matrix = torch.cat([_as_matrix(use.view(source), use.role) for use in self.reference], dim=1)
        cut = {use.role: use for use in (*self.reference, *self.candidate)}
        if len(cut) == 2 and layout.patches == "channels last":
            patch = cut["conv"].size[1:]
            if self.candidate[0].role == "matrix":
                matrix = matrix.reshape(*patch, -1).movedim(0, 2).reshape(matrix.shape)
            else:
                matrix = matrix.reshape(*patch[1:], patch[0], -1).movedim(2, 0).reshape(matrix.shape)
        matrix = self._reordered(matrix, len(matrix), layout)
        widths = [use.size[0 if use.role == "conv" else 1] for use in self.candidate]
        for use, part in zip(self.candidate, matrix.split(widths, dim=1), strict=True):
            use.view(target).copy_(part if use.role == "matrix" else part.T.reshape(use.size))

    def _reordered(self, matrix: Tensor, fan_in: int, layout: Layout) -> Tensor:
        """The columns of fused queries, keys and values (in, 3 * in), from the order of one model to the other's."""
        orders = [layout.reference if len(self.reference) == 1 else "qkv, heads"]
        orders.append(layout.candidate if len(self.candidate) == 1 else "qkv, heads")
        columns = matrix.shape[1]
        if orders[0] == orders[1] or not fan_in or columns != 3 * fan_in or fan_in % layout.width:
            return matrix
        sizes = (3, fan_in // layout.width, layout.width)
        now, then = (FUSED[order] for order in orders)
        parts = matrix.reshape(len(matrix), *(sizes[axis] for axis in now))
        return parts.permute(0, *(1 + now.index(axis) for axis in then)).reshape(matrix.shape)


def _as_matrix(weight: Tensor, role: str) -> Tensor:
    return weight if role == "matrix" else weight.reshape(len(weight), -1).T


@dataclass(eq=False, kw_only=True)
class Matching:
    """Attributes:
    pairs: what belongs together.
    missing: uses of the reference without a counterpart.
    surplus: uses of the model without one.
    mixed: whether some pair is a product on one side and a convolution over patches on the other.
    fused: whether the reference, and whether the model, has products with three times as many outputs as inputs.
    """

    pairs: list[Pair] = field(default_factory=list)
    missing: list[Use] = field(default_factory=list)
    surplus: list[Use] = field(default_factory=list)
    mixed: bool = False
    fused: tuple[bool, bool] = (False, False)

    @property
    def complete(self) -> bool:
        """Whether everything has a counterpart."""
        return not self.missing and not self.surplus

    @property
    def counterparts(self) -> dict[str, set[str]]:
        """Name of a parameter of the model -> names of those of the reference that it holds the numbers of."""
        found: dict[str, set[str]] = defaultdict(set)
        for pair in self.pairs:
            for use in pair.candidate:
                found[use.name] |= {other.name for other in pair.reference}
        return found


def match(reference: Uses, candidate: Uses) -> Matching:
    """Pair the parameters of two models."""
    result = _match(reference, candidate, _grouped)
    if result.complete:
        return result
    single = _match(reference, candidate, lambda layers: [Unit([layer]) for layer in layers])
    return single if len(single.missing) + len(single.surplus) < len(result.missing) + len(result.surplus) else result


def _match(reference: Uses, candidate: Uses, group: Callable[[list[Layer]], list[Unit]]) -> Matching:
    result = Matching()
    loose: tuple[list[Use], list[Use]] = (
        [*reference.vectors, *reference.tables],
        [*candidate.vectors, *candidate.tables],
    )
    units, others = group(reference.layers), group(candidate.layers)
    for unit, other in _zipped(units, others, lambda unit: unit.key, result, loose):
        _pair_units(unit, other, result, loose)
    for side in loose:
        side.sort(key=lambda use: use.order)
    keys: list[Callable[[Use], Hashable]] = [
        lambda use: (use.role, use.size, use.operation in NORMS),
        lambda use: (use.role, use.size),
        lambda use: use.size,
    ]
    left, right = loose
    for key in keys:
        left, right = _pair_loose(left, right, key, result)
    left, right = _pair_pieces(left, right, result)
    result.fused = (_has_fused(reference), _has_fused(candidate))
    result.missing += left
    result.surplus += right
    return result


def _has_fused(uses: Uses) -> bool:
    return any(u.weight.role == "matrix" and u.weight.size[1] == 3 * u.weight.size[0] for u in uses.layers)


def _grouped(layers: list[Layer]) -> list[Unit]:
    """One unit for all products that read the same tensor, with queries before keys before values."""
    units: dict[Hashable, Unit] = {}
    for layer in layers:
        alone = layer.weight.role == "conv"
        key = id(layer) if alone else (layer.source, layer.weight.size[0])
        units.setdefault(key, Unit([])).layers.append(layer)
    for unit in units.values():
        if all(_role(layer) is not None for layer in unit.layers):
            unit.layers.sort(key=lambda layer: _role(layer) or 0)
    return list(units.values())


def _role(layer: Layer) -> int | None:
    """0 for queries, 1 for keys, 2 for values; None where the name does not say."""
    words = re.split(r"[._]|\d+", layer.weight.name.lower())
    for word in reversed(words):
        for role, known in enumerate(ROLES):
            if word in known:
                return role
    return None


def _zipped(
    units: list[Unit],
    others: list[Unit],
    key: Callable[[Unit], Hashable],
    result: Matching,
    loose: tuple[list[Use], ...],
) -> Iterable[tuple[Unit, Unit]]:
    """Units with equal keys, in order; what remains goes into the lists of what has no counterpart."""
    buckets: dict[Hashable, tuple[list[Unit], list[Unit]]] = defaultdict(lambda: ([], []))
    for side, found in enumerate((units, others)):
        for unit in found:
            buckets[key(unit)][side].append(unit)
    for mine, theirs in buckets.values():
        yield from zip(mine, theirs, strict=False)
        common = min(len(mine), len(theirs))
        for rest, unpaired, pool in ((mine, result.missing, loose[0]), (theirs, result.surplus, loose[1])):
            for unit in rest[common:]:
                for layer in unit.layers:
                    unpaired += [layer.weight, *([layer.bias] if layer.bias else [])]
                    pool += layer.norm.values()


def _pair_units(unit: Unit, other: Unit, result: Matching, loose: tuple[list[Use], list[Use]]) -> None:
    weights = Pair([layer.weight for layer in unit.layers], [layer.weight for layer in other.layers])
    result.pairs.append(weights)
    result.mixed |= weights.reference[0].role != weights.candidate[0].role
    if unit.has_bias and other.has_bias:
        pair = Pair([layer.bias for layer in unit.layers], [layer.bias for layer in other.layers])  # type: ignore[misc]
        first = other.layers[0].weight
        pair.fan_in = first.size[0] if first.role == "matrix" else 0
        result.pairs.append(pair)
    else:
        loose[0].extend(layer.bias for layer in unit.layers if layer.bias)
        loose[1].extend(layer.bias for layer in other.layers if layer.bias)
    if set(unit.norm) == set(other.norm) and all(unit.norm[role].size == other.norm[role].size for role in unit.norm):
        result.pairs += [Pair([use], [other.norm[role]]) for role, use in unit.norm.items()]
    else:
        loose[0].extend(unit.norm.values())
        loose[1].extend(other.norm.values())


def _pair_loose(
    left: list[Use], right: list[Use], key: Callable[[Use], Hashable], result: Matching
) -> tuple[list[Use], list[Use]]:
    """Pair uses with equal keys in order; the rest of both."""
    waiting: dict[Hashable, list[Use]] = defaultdict(list)
    for use in right:
        waiting[key(use)].append(use)
    rest = []
    for use in left:
        partners = waiting[key(use)]
        if partners:
            result.pairs.append(Pair([use], [partners.pop(0)]))
        else:
            rest.append(use)
    return rest, [use for uses in waiting.values() for use in uses]


def _pair_pieces(left: list[Use], right: list[Use], result: Matching) -> tuple[list[Use], list[Use]]:
    """A table that the other model keeps in pieces, such as the position of the class token and those of the patches.

    The class token comes first, so the smallest piece does.
    """
    for one, many, turned in ((left, right, False), (right, left, True)):
        for use in list(one):
            pieces = sorted(
                (p for p in many if len(use.size) == 2 and p.size[-1] == use.size[-1]), key=lambda p: p.numel
            )
            if len(pieces) > 1 and sum(p.numel for p in pieces) == use.numel:
                result.pairs.append(Pair(pieces, [use]) if turned else Pair([use], pieces))
                one.remove(use)
                for piece in pieces:
                    many.remove(piece)
    return left, right


# -- two structures side by side -----------------------------------------------------------------------------------


def label(use: Use) -> str:
    """`blocks.0.norm1.weight (768,)`; a matrix is shown as (in, out)."""
    return f"{use.name} {tuple(use.size)}"


def side_by_side(reference: Uses, candidate: Uses) -> list[list[str]]:
    """Rows (reference, model, mark) in order of execution, around the places where the two differ."""
    left, right = (sorted(uses.all(), key=lambda use: use.order) for uses in (reference, candidate))
    matcher = SequenceMatcher(None, [_shape_key(u) for u in left], [_shape_key(u) for u in right], autojunk=False)
    rows: list[list[str]] = []
    for kind, i, j, k, m in matcher.get_opcodes():
        mine, theirs = [label(u) for u in left[i:j]], [label(u) for u in right[k:m]]
        if kind == "equal":
            rows += _shortened([[a, b, ""] for a, b in zip(mine, theirs, strict=True)])
            continue
        rows += [[a, b, "differs"] for a, b in zip_longest(mine, theirs, fillvalue="")]
    more = len(rows) - MOST_ROWS
    return rows if more <= 0 else [*rows[:MOST_ROWS], ["...", "...", f"{more} more rows"]]


def _shape_key(use: Use) -> Hashable:
    return use.role, use.size


def _shortened(rows: list[list[str]]) -> list[list[str]]:
    if len(rows) <= 2 * CONTEXT + 1:
        return rows
    hidden = len(rows) - 2 * CONTEXT
    return [*rows[:CONTEXT], ["...", "...", f"{hidden} equal"], *rows[-CONTEXT:]]

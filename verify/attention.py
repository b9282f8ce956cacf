"""What the attention of a model does: which axis it normalises, how it scales, which tokens it connects.

Attention is recognised by what it computes and not by the name of a class: a product of two tensors that were both
computed in the pass reaches a softmax, and the result is multiplied with a third.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from verify.dataflow import Call, Watcher

MATMULS = frozenset({"bmm", "mm", "baddbmm", "addmm"})
SOFTMAXES = frozenset({"_softmax", "_safe_softmax", "softmax"})
COPIES = frozenset(
    {"clone", "_to_copy", "contiguous", "_unsafe_view", "reshape", "view", "alias", "detach", "copy", "neg", "_conj"}
)
MASKS = frozenset({"add", "sub", "masked_fill", "where", "maximum", "minimum"})
# What a rotation of queries and keys by their position does beside multiplying; none of it changes their size.
REARRANGING = frozenset(
    {"cat", "stack", "flip", "roll", "index", "index_select", "constant_pad_nd", "dropout", "native_dropout"}
)
# One operation each; under the MATH backend only a model that asks for another backend comes here.
FUSED = (
    "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention",
    "_scaled_dot_product_cudnn_attention",
    "_scaled_dot_product_fused_attention",
)
# Rotary tables hold sines and cosines.
UNIT_TABLE = (0.9, 1.1)
# Zero-initialised projections hide everything; a little noise on the parameters of a copy uncovers it.
NOISE = 0.02
SEED = 11_000_000
LARGEST_CALLS = 6

Key = tuple[int, int, tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Operation:
    """A primitive operation; `name` is that of the out-of-place one."""

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    inputs: list[Tensor]
    outputs: list[Tensor]
    in_place: bool


@dataclass(eq=False)
class Attention:
    """Queries times keys, (rows, columns) a head, that reached a softmax.

    Attributes:
        module: name of the innermost module around the softmax.
        width: size of the contracted axis, the width of a head.
        heads: products a sample; windows count as heads do.
        factors: the numbers that the products were multiplied with, each under its own; None if a learned or computed
            tensor was among them, or if queries or keys were normalised.
        normalised: the axis that the softmax runs over: "column", "row" or "other".
        summed: the axis over which the weights were then summed with the values, or "" if that was not seen.
        shifted: whether a learned tensor was added to the weights after the softmax.
        summed_alone: whether the weights themselves were summed over the axis of their softmax, which gives ones.
        used: whether the weights went into anything else than sums.
        places: length of the sequence, or places of the feature map, that the module received; 0 where unknown.
        features: D of the sequence (B, N, D) that the module received; 0 where it received something else.
    """

    module: str
    width: int
    heads: int
    rows: int
    columns: int
    from_input: bool
    factors: tuple[float, ...] | None = None
    normalised: str = ""
    summed: str = ""
    shifted: bool = False
    summed_alone: bool = False
    used: bool = False
    places: int = 0
    features: int = 0

    @property
    def over_channels(self) -> bool:
        """Whether channels attend to channels, so that the product of queries and keys sums over the places."""
        return self.width == self.places and self.rows == self.columns

    @property
    def scale(self) -> float | None:
        """The product of the factors."""
        return None if self.factors is None else math.prod(self.factors)


@dataclass(frozen=True)
class Tag:
    """Follows scores, then weights, through views: where the axes of rows and columns are now; None if unknown."""

    site: Attention
    row: int | None
    column: int | None
    factors: tuple[float, ...] | None = None


class AttentionTracker:
    """Finds attention among the operations of a forward pass.

    Args:
        memory: says what tensors were computed from.
        batch: samples in the pass.
    """

    def __init__(self, memory: Watcher, batch: int) -> None:
        self.memory = memory
        self.batch = batch
        self.found: list[Attention] = []
        self.single_softmax: list[tuple[str, tuple[int, ...]]] = []
        # Numbers that a tensor was multiplied with since a layer made it; None or absent: unknown.
        self.factors: dict[Key, tuple[float, ...] | None] = {}
        self.scores: dict[Key, Tag] = {}
        self.weights: dict[Key, Tag] = {}

    def follow(self, operation: Operation) -> None:
        """Note what the operation does to scores, weights, queries and keys."""
        name = operation.name
        if not operation.outputs or not operation.inputs:
            return
        if name in SOFTMAXES:
            self._softmax(operation)
        elif name in MATMULS:
            self._product(operation)
        elif name == "convolution":
            self.factors[_key(operation.outputs[0])] = ()
        elif name.startswith(FUSED):
            self._fused(operation)
        elif name in ("mul", "div"):
            self._multiply(operation)
        elif name in MASKS:
            self._mask(operation)
        elif name == "sum":
            self._sum(operation)
        elif name in COPIES or _shares_memory(operation):
            self._copy(operation)
        elif name in REARRANGING:
            self._rearrange(operation)
        else:
            self._note_used(operation.inputs)
            if operation.in_place:
                self._forget(operation.outputs)

    # -- moving tags -------------------------------------------------------------------------------------------------

    def _copy(self, operation: Operation) -> None:
        source = operation.inputs[1] if operation.name == "copy" and operation.in_place else operation.inputs[0]
        old = _key(source)
        for output in operation.outputs:
            new = _key(output)
            if old in self.factors:
                self.factors[new] = self.factors[old]
            for tags in (self.scores, self.weights):
                if old in tags:
                    tag = tags[old]
                    row, column = (_same_axis(source, axis, output) for axis in (tag.row, tag.column))
                    tags[new] = Tag(tag.site, row, column, tag.factors)

    def _rearrange(self, operation: Operation) -> None:
        known = {self.factors.get(_key(t)) for t in operation.inputs if t.is_floating_point()}
        self.factors[_key(operation.outputs[0])] = known.pop() if len(known) == 1 else None

    def _forget(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            for table in (self.factors, self.scores, self.weights):
                table.pop(_key(tensor), None)

    # -- arithmetic --------------------------------------------------------------------------------------------------

    def _multiply(self, operation: Operation) -> None:
        first, second = operation.args[:2]
        if operation.name == "div" and (operation.kwargs.get("rounding_mode") or not isinstance(first, Tensor)):
            return
        output = operation.outputs[0]
        tagged, other = self._tagged(first, second, output)
        if operation.name == "div" and tagged is not first:
            self._forget([output])
            return
        number = self._number(other)
        if number is not None and operation.name == "div":
            number = 1 / number if number else None
        old, new = _key(tagged), _key(output)
        self.factors[new] = _with(self.factors.get(old), number, keep=self._is_unit_table(other))
        if old in self.scores:
            tag = self.scores[old]
            self.scores[new] = Tag(tag.site, tag.row, tag.column, _with(tag.factors, number, keep=False))
        if old in self.weights:
            if number is not None or (operation.name == "mul" and self.memory.is_constant(other)):
                self.weights[new] = self.weights[old]
            else:  # weights that are normalised again, as slot attention does, need not sum to one
                self._note_used([tagged])
                self.weights.pop(new, None)

    def _mask(self, operation: Operation) -> None:
        output = operation.outputs[0]
        tensors = [t for t in operation.inputs if t.is_floating_point()]
        old, new = [_key(t) for t in tensors], _key(output)
        moving = [key for key, t in zip(old, tensors, strict=True) if self.memory.from_input(t)]
        factors = {self.factors.get(key) for key in moving}
        alone = len(moving) == len(tensors)
        same = factors.pop() if len(factors) == 1 else None
        self.factors[new] = same if alone or not same else None
        for tags in (self.scores, self.weights):
            found = [tags[key] for key, t in zip(old, tensors, strict=True) if key in tags and t.shape == output.shape]
            if len(found) == 1:
                tags[new] = found[0]
                if tags is self.weights and operation.name in ("add", "sub") and self._adds_learned(tensors):
                    found[0].site.shifted = True
            elif found and tags is self.scores:  # a sum of several scores has no one scale
                tags[new] = Tag(found[0].site, found[0].row, found[0].column)
            elif new in tags:
                del tags[new]

    def _note_used(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            if (tag := self.weights.get(_key(tensor))) is not None:
                tag.site.used = True

    def _adds_learned(self, tensors: list[Tensor]) -> bool:
        others = [m for t in tensors if (m := self.memory.memory(t)) is not None and not m.from_input]
        return any(m.learned for m in others)

    def _sum(self, operation: Operation) -> None:
        source = operation.inputs[0]
        tag = self.weights.get(_key(source))
        axes = operation.args[1] if len(operation.args) > 1 else None
        if tag is None or not axes:
            return
        normalised = {"column": tag.column, "row": tag.row}.get(tag.site.normalised)
        if normalised is not None and normalised in [axis % source.dim() for axis in axes]:
            tag.site.summed_alone = True

    def _tagged(self, first: Any, second: Any, output: Tensor) -> tuple[Tensor, Any]:
        """The operand that is followed, and the other one."""
        if not isinstance(first, Tensor):
            return second, first
        if isinstance(second, Tensor):
            key = _key(second)
            followed = second.shape == output.shape and (key in self.scores or key in self.weights)
            if followed or (not self.memory.from_input(first) and self.memory.from_input(second)):
                return second, first
        return first, second

    def _number(self, other: Any) -> float | None:
        if isinstance(other, Tensor):
            if other.numel() != 1 or other.is_complex() or not self.memory.is_constant(other):
                return None
            other = other.item()
        return float(other) if isinstance(other, int | float) else None

    def _is_unit_table(self, other: Any) -> bool:
        if not isinstance(other, Tensor) or other.numel() < 2 or not self.memory.is_constant(other):
            return False
        if not (other.is_floating_point() or other.is_complex()):
            return False
        return UNIT_TABLE[0] < other.abs().max().item() < UNIT_TABLE[1]

    # -- attention itself ----------------------------------------------------------------------------------------------

    def _product(self, operation: Operation) -> None:
        a, b = (t for t in operation.args[-2:])
        output = operation.outputs[0]
        self._note_used([a, b])
        self._note_summed(a, a.dim() - 1)
        self._note_summed(b, b.dim() - 2)
        old = self.factors.get(_key(a)), self.factors.get(_key(b))
        self._forget([output])
        self.factors[_key(output)] = ()
        if not self._may_be_scores(operation.name, a, b):
            return
        heads = max(1, (output.shape[0] if output.dim() == 3 else 1) // self.batch)
        both = self.memory.from_input(a) and self.memory.from_input(b)
        rows, columns = output.shape[-2:]
        site = Attention(self.memory.place, a.shape[-1], heads, rows, columns, both)
        factors = None if old[0] is None or old[1] is None else old[0] + old[1]
        alpha = operation.kwargs.get("alpha", 1)
        factors = _with(factors, float(alpha), keep=True) if alpha != 1 else factors
        self.scores[_key(output)] = Tag(site, output.dim() - 2, output.dim() - 1, factors)

    def _may_be_scores(self, name: str, a: Tensor, b: Tensor) -> bool:
        """A layer's product has a parameter on one side. A query that is computed from a learned token has none, but
        only in a batched product it is told apart from a layer whose weight is computed, such as by weight norm."""
        given = [self.memory.from_input(t) for t in (a, b)]
        if name in ("mm", "addmm"):
            return all(given)
        return any(given) and self.memory.is_computed(a) and self.memory.is_computed(b)

    def _note_summed(self, weights: Tensor, axis: int) -> None:
        tag = self.weights.get(_key(weights))
        if tag is None or tag.site.summed:
            return
        if axis == tag.column:
            tag.site.summed = "column"
        elif axis == tag.row:
            tag.site.summed = "row"

    def _softmax(self, operation: Operation) -> None:
        x, axis = operation.args[0], operation.args[1] % max(operation.args[0].dim(), 1)
        output = operation.outputs[0]
        tag = self.scores.get(_key(x))
        self._forget([output])
        if x.dim() and x.shape[axis] == 1 and self._is_pointless(x, axis, tag):
            self.single_softmax.append((self.memory.place, tuple(x.shape)))
        if tag is None or (axis != tag.column and None in (tag.row, tag.column)):
            return
        site = tag.site
        site.module = self.memory.place
        site.factors = tag.factors
        site.normalised = "column" if axis == tag.column else "row" if axis == tag.row else "other"
        self._found(site)
        self.weights[_key(output)] = tag

    def _is_pointless(self, x: Tensor, axis: int, tag: Tag | None) -> bool:
        """A softmax over one element that is not simply attention to the only key there is."""
        if not self.memory.from_input(x):
            return False
        if tag is not None and tag.column in (axis, None):
            return False
        return any(size > 1 for place, size in enumerate(x.shape) if place not in (0, axis))

    def _fused(self, operation: Operation) -> None:
        query, keys = operation.args[:2]
        width = query.shape[-1]
        old = self.factors.get(_key(query)), self.factors.get(_key(keys))
        scale = operation.kwargs.get("scale") or width**-0.5
        both = self.memory.from_input(query) and self.memory.from_input(keys)
        site = Attention(self.memory.place, width, query.shape[1], query.shape[2], keys.shape[2], both)
        site.factors = None if old[0] is None or old[1] is None else (*old[0], *old[1], float(scale))
        site.normalised = site.summed = "column"
        self.factors[_key(operation.outputs[0])] = None
        self._found(site)

    def _found(self, site: Attention) -> None:
        self.found.append(site)
        around = next((call for call in reversed(self.memory.stack) if call.places), None)
        if around is not None:
            site.places, site.features = around.places, around.features
        for call in self.memory.stack:
            call.attentions.append(site)


def _key(tensor: Tensor) -> Key:
    try:
        storage = tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return (id(tensor), 0, (), ())
    return (storage, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride())


def _shares_memory(operation: Operation) -> bool:
    """Whether the operation is a view of its first argument."""
    return not operation.in_place and _key(operation.inputs[0])[0] == _key(operation.outputs[0])[0]


def _same_axis(old: Tensor, axis: int | None, new: Tensor) -> int | None:
    """Where an axis of `old` is in a view or copy of it; None if it was merged, split or cannot be told."""
    if axis is None:
        return None
    if old.shape == new.shape and (old.stride() == new.stride() or _key(old)[0] != _key(new)[0]):
        return axis
    if old.shape[axis] == 1:
        return None
    same = (old.shape[axis], old.stride(axis))
    places = [place for place, pair in enumerate(zip(new.shape, new.stride(), strict=True)) if pair == same]
    return places[0] if len(places) == 1 else None


def _with(factors: tuple[float, ...] | None, number: float | None, *, keep: bool) -> tuple[float, ...] | None:
    if factors is None:
        return None
    if number is not None:
        return (*factors, number)
    return factors if keep else None


# -- tokens ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class TokenTest:
    """What a module did with tokens whose values or order were changed. `value` is None where it could not be told."""

    call: Call
    value: float | None


def never_mixing(calls: list[Call]) -> tuple[list[TokenTest], int]:
    """Modules that run attention and yet compute every token from itself alone, and how many were asked.

    Asked is the innermost module around each attention that maps (A, B, D) to (A, B, E); A and B are batch and tokens
    in either order.
    """
    silent, asked = [], 0
    for call in _one_of_a_kind(_innermost(calls)):
        mixes = _mixes_tokens(call)
        if mixes is not None:
            asked += 1
            if not mixes:
                silent.append(TokenTest(call, 0.0))
    return silent, asked


def order_dependent(calls: list[Call], tolerance: float) -> tuple[list[TokenTest], int]:
    """Modules whose output for permuted tokens is not the permuted output, and how many were asked.

    Not asked are modules in which something has a place for each token: tables, masks, convolutions, windows.
    """
    found: list[TokenTest] = []
    asked = 0
    for call in _one_of_a_kind(c for c in calls if not c.order and _maps_tokens(c) and not _is_library(c.module)):
        change = _order_change(call)
        if change is None:
            continue
        asked += 1
        inside = any(test.call.name.startswith(f"{call.name}.") or not call.name for test in found)
        if change > tolerance and not inside:
            found.append(TokenTest(call, change))
    return found, asked


def _innermost(calls: list[Call]) -> Iterator[Call]:
    seen: set[int] = set()
    for call in calls:  # innermost first
        new = [site for site in call.attentions if id(site) not in seen and site.from_input]
        if new and _maps_tokens(call):
            seen.update(id(site) for site in new)
            yield call


def _one_of_a_kind(calls: Iterable[Call]) -> list[Call]:
    """One call of each class, the longest sequence; deepest first."""
    best: dict[type, Call] = {}
    for call in calls:
        kind = type(call.module)
        if kind not in best or call.tokens > best[kind].tokens:
            best[kind] = call
    return sorted(best.values(), key=lambda call: -call.depth)[:LARGEST_CALLS]


def _maps_tokens(call: Call) -> bool:
    output = _first_tensor(call.output)
    first = _sequence(call)
    return (
        first is not None
        and output is not None
        and call.tokens > 1
        and output.dim() == 3
        and output.shape[:2] == first.shape[:2]
    )


def _sequence(call: Call) -> Tensor | None:
    """The first argument, if it is (A, B, D)."""
    first = next((a for a in [*call.args, *call.kwargs.values()] if isinstance(a, Tensor)), None)
    return first if first is not None and first.dim() == 3 and first.is_floating_point() else None


def _first_tensor(value: Any) -> Tensor | None:
    if isinstance(value, list | tuple) and value:
        value = value[0]
    return value if isinstance(value, Tensor) else None


def _is_library(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.nn.")


def _mixes_tokens(call: Call) -> bool | None:
    """Whether some token of the output depends on another one of the input; None where it cannot be told."""
    generator = torch.Generator().manual_seed(SEED)
    try:
        module = _uncovered(call.module)
        args, kwargs, leaves = _with_leaves(call, generator)
        with torch.enable_grad():
            output = _first_tensor(module(*args, **kwargs))
            if output is None or not output.requires_grad:
                return None
            for token in sorted({0, call.tokens // 2, call.tokens - 1}):
                weights = torch.randn(output.shape[-1], generator=generator).to(output)
                watched = (output[0, token] * weights).sum()
                gradients = torch.autograd.grad(watched, leaves, retain_graph=True, allow_unused=True)
                if any(_elsewhere(g, token, call.tokens) for g in gradients if g is not None):
                    return True
    except Exception:  # a module that cannot be called again, copied or differentiated gives no verdict
        return None
    return False


def _elsewhere(gradient: Tensor, token: int, tokens: int) -> bool:
    if not gradient.isfinite().all():
        return True
    others = gradient.clone()
    if gradient.shape[1] == tokens:
        others[0, token] = 0
    return bool(others.any())


def _with_leaves(call: Call, generator: torch.Generator) -> tuple[list[Any], dict[str, Any], list[Tensor]]:
    """The arguments with each float sequence replaced by a random leaf; equal ones by the same."""
    leaves: dict[int, Tensor] = {}

    def replaced(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() != 3 or not value.is_floating_point():
            return value
        if id(value) not in leaves:
            noise = torch.randn(value.shape, generator=generator)
            leaves[id(value)] = (0.5 * noise).to(value).requires_grad_()
        return leaves[id(value)]

    args = [replaced(a) for a in call.args]
    kwargs = {name: replaced(a) for name, a in call.kwargs.items()}
    return args, kwargs, list(leaves.values())


def _uncovered(module: nn.Module) -> nn.Module:
    """A copy with noise on its parameters, in eval mode."""
    module = copy.deepcopy(module).eval()
    generator = torch.Generator().manual_seed(SEED + 1)
    with torch.no_grad():
        for p in module.parameters():
            if p.is_floating_point():
                p.add_(NOISE * torch.randn(p.shape, generator=generator).to(p))
    return module


def _has_more_for_tokens(call: Call) -> bool:
    """Whether another argument has a place for each token too, as a mask has, which would have to be permuted along."""
    given = [a for a in [*call.args, *call.kwargs.values()] if isinstance(a, Tensor) and a is not _sequence(call)]
    return any(call.tokens in a.shape for a in given)


def _order_change(call: Call) -> float | None:
    """|f(P x) - P f(x)| relative to the largest output; None where it cannot be told."""
    generator = torch.Generator().manual_seed(SEED)
    order = torch.randperm(call.tokens, generator=generator)
    try:
        module = _uncovered(call.module)
        args, kwargs, leaves = _with_leaves(call, generator)
        if len(leaves) != 1 or _has_more_for_tokens(call):
            return None
        x = leaves[0].detach()
        index = order.to(x.device)

        def run(tokens: Tensor) -> Tensor:
            given = [tokens if a is leaves[0] else a for a in args]
            named = {name: tokens if a is leaves[0] else a for name, a in kwargs.items()}
            output = _first_tensor(module(*given, **named))
            assert output is not None
            return output

        with torch.no_grad():
            expected, again = run(x)[:, index], run(x)[:, index]
            permuted = run(x[:, index])
    except Exception:
        return None
    if not torch.equal(expected, again) or not expected.isfinite().all() or not expected.any():
        return None
    return ((permuted - expected).abs().max() / expected.abs().max()).item()

"""Where two models that hold the same numbers and get the same input begin to differ.

Modules are compared by what they receive and return, not by their names: a result counts as equal when the other model
has the same numbers at the boundary of one of its modules, in whatever order of axes. The module to blame is the
innermost one that receives what the reference has too, and returns what it has not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

MOST_AXES = 5
SMALLEST = 4


@dataclass(eq=False)
class Step:
    """One call of a module: what it received and returned, copied, and the calls inside of it."""

    name: str
    module: nn.Module
    given: list[Tensor]
    made: list[Tensor] = field(default_factory=list)
    inside: list[Step] = field(default_factory=list)

    def walk(self) -> Iterator[Step]:
        """This call and those inside, outermost first."""
        yield self
        for step in self.inside:
            yield from step.walk()


@dataclass(frozen=True, kw_only=True)
class Difference:
    """The first module whose result differs.

    Attributes:
        module: its name in the model; empty for the model itself.
        counterpart: name of what takes its place in the reference; None if there is no telling.
        size: the largest difference between the two results, relative to the reference's standard deviation; None if
            they cannot be compared.
        between: (last module inside that still agrees, first one that receives something else); empty if unknown.
        own, other: how the two modules print, if neither has modules inside.
    """

    module: str
    counterpart: str | None
    size: float | None
    between: tuple[str, str]
    own: str = ""
    other: str = ""


def first_difference(
    reference: nn.Module, candidate: nn.Module, x: Tensor, counterparts: Mapping[str, set[str]], tolerance: float
) -> Difference:
    """Run both in eval mode on `x` and find the first module of `candidate` whose result differs.

    Args:
        counterparts: name of a parameter of the candidate -> names of those of the reference.
        tolerance: largest difference of equal results, relative to their standard deviation.
    """
    sides = _Sides(follow_modules(reference, x), follow_modules(candidate, x), counterparts, tolerance)
    guilty = sides.own
    while (inner := _first_wrong(guilty, sides)) is not None:
        guilty = inner
    other = sides.counterpart(guilty)
    leaves = other is not None and not guilty.inside and not other.inside
    return Difference(
        module=guilty.name,
        counterpart=None if other is None else other.name,
        size=None if other is None else _size(guilty, other),
        between=_between(guilty, sides),
        own=_printed(guilty.module) if leaves else "",
        other=_printed(other.module) if leaves and other is not None else "",
    )


def _first_wrong(step: Step, sides: _Sides) -> Step | None:
    """The first call inside that receives what the reference has and returns what it has not; None if one that
    receives something else comes before, as then `step` itself made the difference.

    A linear layer that holds the same weights cannot be wrong: the reference may have fused it with others. Neither is
    one whose result has become the same again where the next one receives it.
    """
    for inner, then in itertools.zip_longest(step.inside, step.inside[1:]):
        if not sides.same_input(inner):
            return None
        if sides.same_result(inner):
            continue
        if isinstance(inner.module, nn.Linear):
            sides.pool.add(inner.made)
            continue
        again = then is not None and then.given and inner.made and then.given[0].numel() == inner.made[0].numel()
        if not (again and sides.same_input(then)):
            return inner
    return None


def follow_modules(model: nn.Module, x: Tensor) -> Step:
    """The calls of all modules in one forward pass in eval mode. Leaves no hook behind."""
    root = Step("", model, [])
    stack = [root]

    def enter(name: str) -> Any:
        def hook(module: nn.Module, args: tuple, kwargs: dict) -> None:
            step = Step(name, module, _copies((*args, *kwargs.values())))
            stack[-1].inside.append(step)
            stack.append(step)

        return hook

    def leave(_module: nn.Module, _args: Any, output: Any) -> None:
        stack.pop().made = _copies((output,))

    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), ExitStack() as handles:
            for name, module in model.named_modules():
                with suppress(RuntimeError):  # a scripted module takes no hooks
                    handles.callback(module.register_forward_pre_hook(enter(name), with_kwargs=True).remove)
                    handles.callback(module.register_forward_hook(leave).remove)
            model.eval()(x.clone())
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
    return root.inside[0] if root.inside else root


def _copies(values: Any) -> list[Tensor]:
    return [t.detach().clone() for t in _tensors(values) if t.is_floating_point() and t.numel() >= SMALLEST]


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
        elif isinstance(value, Mapping):
            yield from _tensors(value.values())


class _Pool:
    """The tensors at the boundaries of the reference's modules."""

    def __init__(self, root: Step, tolerance: float) -> None:
        self.tolerance = tolerance
        self.by_size: dict[int, list[tuple[float, Tensor]]] = {}
        self.known: dict[int, bool] = {}
        for step in root.walk():
            self.add([*step.given, *step.made])

    def add(self, tensors: list[Tensor]) -> None:
        """Count these as the reference's too."""
        for tensor in tensors:
            self.known[id(tensor)] = True
            self.by_size.setdefault(tensor.numel(), []).append((_norm(tensor), tensor))

    def holds_all(self, tensors: list[Tensor]) -> bool:
        """Whether the reference has all of them too."""
        return all(map(self.holds, tensors))

    def holds(self, tensor: Tensor) -> bool:
        if id(tensor) not in self.known:
            norm = _norm(tensor)
            self.known[id(tensor)] = any(
                math.isclose(norm, other_norm, rel_tol=10 * self.tolerance) and self.equal(tensor, other)
                for other_norm, other in self.by_size.get(tensor.numel(), [])
            )
        return self.known[id(tensor)]

    def equal(self, a: Tensor, b: Tensor) -> bool:
        """Whether two tensors hold the same numbers; where their shapes differ, in some order of the axes."""
        if a.shape == b.shape:
            return _relative(a, b) <= self.tolerance
        a, b = a.squeeze(), b.squeeze()
        if a.numel() != b.numel() or b.dim() > MOST_AXES:
            return False
        flat = a.reshape(-1)
        return any(
            _relative(flat, b.permute(order).reshape(-1)) <= self.tolerance
            for order in itertools.permutations(range(b.dim()))
        )


def _norm(tensor: Tensor) -> float:
    return tensor.double().norm().item()


def _relative(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the standard deviation of `b`."""
    return ((a - b).abs().max() / b.std().clamp_min(1e-12)).item()


class _Sides:
    """The calls of both models, and which of them do the same work."""

    def __init__(self, theirs: Step, own: Step, counterparts: Mapping[str, set[str]], tolerance: float) -> None:
        self.theirs, self.own, self.counterparts = theirs, own, counterparts
        self.pool = _Pool(theirs, tolerance)
        self.steps = list(theirs.walk())
        self.exact: dict[int, Step | None] = {}

    def same_input(self, step: Step) -> bool:
        """Whether the reference's counterpart receives the same; without one, whether the reference has it at all."""
        other = self._exact(step)
        if other is None or not (other.given and step.given) or other.given[0].numel() != step.given[0].numel():
            return self.pool.holds_all(step.given)
        return self.pool.equal(step.given[0], other.given[0])

    def same_result(self, step: Step) -> bool:
        """The same of what `step` returns."""
        other = self._exact(step)
        if other is None or not _same_numel(step, other):
            return self.pool.holds_all(step.made)
        return self.pool.equal(step.made[0], other.made[0])

    def _exact(self, step: Step) -> Step | None:
        """The outermost call of the reference with the same parameters and no others; None if there is none."""
        if id(step) not in self.exact:
            wanted = self._parameters(step)
            fitting = (s for s in self.steps if wanted and {f"{s.name}.{n}" for n in _names(s)} == wanted)
            self.exact[id(step)] = next(fitting, None)
        return self.exact[id(step)]

    def _parameters(self, step: Step) -> set[str]:
        names = (f"{step.name}.{name}" for name in _names(step))
        return set().union(*(self.counterparts.get(name, set()) for name in names))

    def counterpart(self, step: Step) -> Step | None:
        """The module of the reference that does the work of `step`: with the same parameters, or the same input."""
        if not step.name:
            return self.theirs
        wanted = self._parameters(step)
        if wanted:
            around = [s for s in self.steps if all(name.startswith(f"{s.name}." if s.name else "") for name in wanted)]
            fitting = [s for s in around if _same_numel(s, step)]
            return self._exact(step) or (fitting or around)[-1]
        equal = [s for s in self.steps if step.given and s.given and self.pool.equal(step.given[0], s.given[0])]
        equal = [s for s in equal if _same_numel(s, step)]
        kind = [s for s in equal if not s.inside] or equal
        return kind[-1] if kind else None


def _names(step: Step) -> list[str]:
    return [name for name, _ in step.module.named_parameters()] if step.name else []


def _same_numel(a: Step, b: Step) -> bool:
    return bool(a.made and b.made) and a.made[0].numel() == b.made[0].numel()


def _size(step: Step, other: Step) -> float | None:
    if not _same_numel(step, other):
        return None
    a, b = step.made[0], other.made[0]
    if a.shape == b.shape:
        return _relative(a, b)
    flat, b = a.squeeze().reshape(-1), b.squeeze()
    return min(_relative(flat, b.permute(order).reshape(-1)) for order in itertools.permutations(range(b.dim())))


def _between(step: Step, sides: _Sides) -> tuple[str, str]:
    """Inside of `step`: the last module that agrees before the first that receives something else."""
    last = ""
    for inner in step.inside:
        if not sides.same_input(inner):
            return last, inner.name
        last = inner.name
    return last, ""


def _printed(module: nn.Module) -> str:
    return " ".join(repr(module).split())[:80]

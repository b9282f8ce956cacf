"""Measures what `expect:` in verify.yaml asks of a model's inside."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from verify.shapes import meta_forward
from verify.uses import uses_of

if TYPE_CHECKING:
    from verify.probe import ModelProbe

BATCH = 2
CLOSE = 1e-5
# Of the standard deviation that a layer norm leaves: tokens are small at first, and epsilon takes its share.
NEAR_ONE = 0.1
# What a block may apply to the sum of shortcut and branch.
ENDINGS = {"": lambda x: x, "ReLU": F.relu, "GELU": F.gelu, "SiLU": F.silu}


@dataclass(frozen=True)
class Skip:
    """What is left of a block when its residual branch gives zero.

    Attributes:
        block: its name.
        kind: "identity", "ReLU of the input" and the like; "normalised", "reshaped" or "projection" if the output
            depends on the input in another way; "changed" if the input comes out scaled or altered; "" if the output
            does not depend on the input.
    """

    block: str
    kind: str


class Expectations:
    """The inside of a model: shapes, blocks, skips."""

    def __init__(self, probe: ModelProbe) -> None:
        self.probe = probe

    @cached_property
    def shapes(self) -> dict[str, list[tuple[int, ...]]]:
        """Name of a module -> shapes of its first output, one a call, at batch 2.

        From the meta device where that works.
        """
        if self.probe.meta_model is not None:
            with suppress(Exception):
                with _shapes_of(self.probe.meta_model) as seen:
                    meta_forward(self.probe.meta_model, (BATCH, *self.probe.input_size))
                return seen
        with torch.no_grad(), _shapes_of(self.probe.model) as seen:
            self.probe.forward(self.probe.model.eval(), self.probe.images(BATCH), "in eval mode")
        return seen

    def modules(self, pattern: str) -> list[str]:
        """Names of modules that fit, in order of registration."""
        model = self.probe.meta_model if self.probe.meta_model is not None else self.probe.model
        return [name for name, _ in model.named_modules() if name and fits(name, pattern)]

    @cached_property
    def biased_convolutions(self) -> list[str]:
        """Names of biases of convolutions that a batch norm follows directly."""
        model = self.probe.model
        uses = uses_of(model, self.probe.images(BATCH))
        return [u.bias.name for u in uses.layers if u.weight.role == "conv" and u.bias and "mean" in u.norm]

    def skips(self, pattern: str) -> list[Skip]:
        """What is left of each block that fits when its branches give zero."""
        model = copy.deepcopy(self.probe.model).eval()
        names = self.modules(pattern)
        inputs: dict[str, tuple[Any, Any]] = {}
        hooks = []
        for name in names:
            module = model.get_submodule(name)
            hooks.append(module.register_forward_pre_hook(_keep_input(inputs, name), with_kwargs=True))
        with torch.no_grad():
            self.probe.forward(model, self.probe.images(BATCH), "in eval mode")
        for hook in hooks:
            hook.remove()
        return [Skip(name, _left_over(model.get_submodule(name), *inputs[name])) for name in names if name in inputs]


def fits(name: str, pattern: str) -> bool:
    """Whether a dotted name fits a pattern; `*` stands for one part or some of it, `**` for any number of parts.

    Raises nothing: a pattern that fits no name is reported by the rule that uses it.
    """
    if "**" in pattern:
        return fnmatchcase(name, pattern.replace("**", "*"))
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def shape_fits(shape: tuple[int, ...], wanted: list[str | int], batch: int = BATCH) -> bool:
    """Whether a shape is the wanted one, in which `B` is the batch and `*` any size."""
    sizes = [batch if str(size) == "B" else size for size in wanted]
    return len(shape) == len(sizes) and all(
        str(size) == "*" or str(size) == str(own) for own, size in zip(shape, sizes, strict=True)
    )


class _shapes_of:  # noqa: N801
    """While active, records the shapes that the modules of a model return."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen: dict[str, list[tuple[int, ...]]] = {}

    def __enter__(self) -> dict[str, list[tuple[int, ...]]]:
        self.hooks = [m.register_forward_hook(self._note(name)) for name, m in self.model.named_modules()]
        return self.seen

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def _note(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            for tensor in _tensors(output):
                self.seen.setdefault(name, []).append(tuple(tensor.shape))
                return

        return hook


def _keep_input(inputs: dict[str, tuple[Any, Any]], name: str) -> Any:
    def hook(_module: nn.Module, args: tuple, kwargs: dict) -> None:
        inputs.setdefault(name, (_copied(args), _copied(kwargs)))

    return hook


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, tuple | list):
        return type(value)(_copied(item) for item in value)
    return {key: _copied(item) for key, item in value.items()} if isinstance(value, dict) else value


@torch.no_grad()
def _left_over(block: nn.Module, args: tuple, kwargs: dict) -> str:
    """The kind of a `Skip`. Weights and biases become zero, and scales of normalisations stay; then, for a shortcut
    with a projection, one layer after the other gets its weights back."""
    x = next(_tensors((args, kwargs)), None)
    if x is None:
        return ""
    saved = {name: p.clone() for name, p in block.named_parameters()}
    for name, p in block.named_parameters():
        if p.dim() > 1 or "bias" in name:
            p.zero_()
    for module in block.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.zero_()
    kind = _kind(block, args, kwargs, x)
    if kind:
        return kind
    for layer in block.modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, nn.Parameter) or weight.dim() < 2:
            continue
        name = next(n for n, p in block.named_parameters() if p is weight)
        weight.copy_(saved[name])
        if _kind(block, args, kwargs, x):
            return "projection"
        weight.zero_()
    return ""


def _kind(block: nn.Module, args: tuple, kwargs: dict, x: Tensor) -> str:
    made = next(_tensors(block(*_copied(args), **_copied(kwargs))), None)
    if made is None:
        return ""
    other = next(_tensors(block(*_moved(args, x), **_moved(kwargs, x))), made)
    if torch.equal(made, other):
        return ""
    if made.shape != x.shape:
        return "reshaped"
    for name, ending in ENDINGS.items():
        if (made - ending(x)).abs().max() <= CLOSE * x.abs().max():
            return f"{name} of the input" if name else "identity"
    return "normalised" if _is_normalised(made, x) else "changed"


def _is_normalised(made: Tensor, x: Tensor) -> bool:
    """Whether a layer norm over features would make `made` of `x`, as a block with its norm at the end does."""
    size = x.shape[-1:]
    close = (F.layer_norm(made, size, eps=0.0) - F.layer_norm(x, size, eps=0.0)).abs().max() <= 1e-3
    return bool(close and (made.std(dim=-1) - 1).abs().max() < NEAR_ONE)


def _moved(value: Any, x: Tensor) -> Any:
    """The same arguments with other numbers in the tensor that equals `x`."""
    if isinstance(value, Tensor):
        same = value.shape == x.shape and torch.equal(value, x)
        return x.flip(0) + 0.5 * x.std() if same else value.clone()
    if isinstance(value, tuple | list):
        return type(value)(_moved(item, x) for item in value)
    return {key: _moved(item, x) for key, item in value.items()} if isinstance(value, dict) else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
